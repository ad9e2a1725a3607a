package btrfs

import (
	"encoding/json"
	"fmt"
	"math"
)

// BlockGroupType says what a block group holds. Filesystems made with
// mkfs.btrfs --mixed keep data and metadata in the same block groups; those
// are a type of their own, as they are in sysfs.
type BlockGroupType uint8

// The block group types, in the order of sysfs allocation/.
const (
	Data BlockGroupType = iota + 1
	Metadata
	System
	Mixed
)

// BlockGroupTypes lists all block group types.
func BlockGroupTypes() []BlockGroupType {
	return []BlockGroupType{Data, Metadata, System, Mixed}
}

var blockGroupTypeNames = [...]string{Data: "data", Metadata: "metadata", System: "system", Mixed: "mixed"}

// String returns the name that sysfs allocation/ uses.
func (t BlockGroupType) String() string {
	if int(t) < len(blockGroupTypeNames) && t != 0 {
		return blockGroupTypeNames[t]
	}
	return fmt.Sprintf("BlockGroupType(%d)", uint8(t))
}

// MarshalText implements encoding.TextMarshaler.
func (t BlockGroupType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *BlockGroupType) UnmarshalText(text []byte) error {
	for _, known := range BlockGroupTypes() {
		if known.String() == string(text) {
			*t = known
			return nil
		}
	}
	return fmt.Errorf("unknown block group type %q (want data, metadata, system or mixed)", text)
}

// Block group flags of a chunk item (include/uapi/linux/btrfs_tree.h).
const (
	flagData     = 1 << 0
	flagSystem   = 1 << 1
	flagMetadata = 1 << 2
	flagRAID0    = 1 << 3
	flagRAID1    = 1 << 4
	flagDUP      = 1 << 5
	flagRAID10   = 1 << 6
	flagRAID5    = 1 << 7
	flagRAID6    = 1 << 8
	flagRAID1C3  = 1 << 9
	flagRAID1C4  = 1 << 10

	flagTypeMask    = flagData | flagSystem | flagMetadata
	flagProfileMask = flagRAID0 | flagRAID1 | flagDUP | flagRAID10 | flagRAID5 | flagRAID6 | flagRAID1C3 | flagRAID1C4

	// flagGlobalReserve marks the global reserve among the answers of
	// BTRFS_IOC_SPACE_INFO.
	flagGlobalReserve = 1 << 49
	// flagExtendedSingle is how balance arguments name the single profile,
	// which has no bit of its own in a chunk item
	// (BTRFS_AVAIL_ALLOC_BIT_SINGLE).
	flagExtendedSingle = 1 << 48
)

func typeOfFlags(flags uint64) (BlockGroupType, error) {
	switch flags & flagTypeMask {
	case flagData:
		return Data, nil
	case flagMetadata:
		return Metadata, nil
	case flagSystem:
		return System, nil
	case flagData | flagMetadata:
		return Mixed, nil
	}
	return 0, fmt.Errorf("block group flags %#x name no block group type", flags)
}

// Profile is the replication or striping profile of a block group.
type Profile uint8

// The profiles of kernel 5.15 to 6.18.
const (
	Single Profile = iota + 1
	DUP
	RAID0
	RAID1
	RAID1C3
	RAID1C4
	RAID10
	RAID5
	RAID6
)

// Profiles lists all profiles.
func Profiles() []Profile {
	return []Profile{Single, DUP, RAID0, RAID1, RAID1C3, RAID1C4, RAID10, RAID5, RAID6}
}

// ProfileAttributes are the constants by which the kernel's chunk allocator
// treats a profile (btrfs_raid_array in fs/btrfs/volumes.c).
type ProfileAttributes struct {
	Name string
	// SubStripes is the number of copies of each stripe within raid10, else 1.
	SubStripes int
	// DevStripes is the number of stripes put on each device of a chunk.
	DevStripes int
	// DevsMax is the largest number of devices a chunk spans.
	DevsMax int
	// DevsMin is the smallest number of devices a chunk can be made on.
	DevsMin int
	// DevsIncrement is what the number of devices is rounded down to.
	DevsIncrement int
	// Copies is the number of copies of each byte.
	Copies int
	// Parity is the number of parity stripes of a chunk.
	Parity int
	// ToleratedFailures is how many devices any chunk survives the loss of.
	ToleratedFailures int
}

// AllDevices is the DevsMax of a profile that spans every device.
const AllDevices = math.MaxInt32

var profileTable = [...]ProfileAttributes{
	Single:  {Name: "single", SubStripes: 1, DevStripes: 1, DevsMax: 1, DevsMin: 1, DevsIncrement: 1, Copies: 1},
	DUP:     {Name: "dup", SubStripes: 1, DevStripes: 2, DevsMax: 1, DevsMin: 1, DevsIncrement: 1, Copies: 2},
	RAID0:   {Name: "raid0", SubStripes: 1, DevStripes: 1, DevsMax: AllDevices, DevsMin: 1, DevsIncrement: 1, Copies: 1},
	RAID1:   {Name: "raid1", SubStripes: 1, DevStripes: 1, DevsMax: 2, DevsMin: 2, DevsIncrement: 2, Copies: 2, ToleratedFailures: 1},
	RAID1C3: {Name: "raid1c3", SubStripes: 1, DevStripes: 1, DevsMax: 3, DevsMin: 3, DevsIncrement: 3, Copies: 3, ToleratedFailures: 2},
	RAID1C4: {Name: "raid1c4", SubStripes: 1, DevStripes: 1, DevsMax: 4, DevsMin: 4, DevsIncrement: 4, Copies: 4, ToleratedFailures: 3},
	RAID10:  {Name: "raid10", SubStripes: 2, DevStripes: 1, DevsMax: AllDevices, DevsMin: 2, DevsIncrement: 2, Copies: 2, ToleratedFailures: 1},
	RAID5:   {Name: "raid5", SubStripes: 1, DevStripes: 1, DevsMax: AllDevices, DevsMin: 2, DevsIncrement: 1, Copies: 1, Parity: 1, ToleratedFailures: 1},
	RAID6:   {Name: "raid6", SubStripes: 1, DevStripes: 1, DevsMax: AllDevices, DevsMin: 3, DevsIncrement: 1, Copies: 1, Parity: 2, ToleratedFailures: 2},
}

// Attributes returns the allocator's constants of a profile. The profile must
// be one of Profiles.
func (p Profile) Attributes() ProfileAttributes { return profileTable[p] }

// String returns the name that sysfs and mkfs.btrfs use.
func (p Profile) String() string {
	if int(p) < len(profileTable) && p != 0 {
		return profileTable[p].Name
	}
	return fmt.Sprintf("Profile(%d)", uint8(p))
}

// MarshalText implements encoding.TextMarshaler.
func (p Profile) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Profile) UnmarshalText(text []byte) error {
	parsed, err := ParseProfile(string(text))
	if err != nil {
		return err
	}
	*p = parsed
	return nil
}

// ParseProfile returns the profile that mkfs.btrfs and sysfs call name.
func ParseProfile(name string) (Profile, error) {
	if p, ok := profileNamed(name); ok {
		return p, nil
	}
	return 0, fmt.Errorf("unknown profile %q (want single, dup, raid0, raid1, raid1c3, raid1c4, raid10, raid5 or raid6)", name)
}

func profileNamed(name string) (Profile, bool) {
	for p := Single; p <= RAID6; p++ {
		if profileTable[p].Name == name {
			return p, true
		}
	}
	return 0, false
}

func profileOfFlags(flags uint64) (Profile, error) {
	switch flags & flagProfileMask {
	case 0:
		return Single, nil
	case flagRAID0:
		return RAID0, nil
	case flagRAID1:
		return RAID1, nil
	case flagDUP:
		return DUP, nil
	case flagRAID10:
		return RAID10, nil
	case flagRAID5:
		return RAID5, nil
	case flagRAID6:
		return RAID6, nil
	case flagRAID1C3:
		return RAID1C3, nil
	case flagRAID1C4:
		return RAID1C4, nil
	}
	return 0, fmt.Errorf("block group flags %#x name a profile this version does not know", flags)
}

// Stripe is one device extent of a chunk.
type Stripe struct {
	DevID  uint64 `json:"devid"`
	Offset uint64 `json:"offset"` // bytes from the start of the device
}

// Chunk is one block group as the chunk tree maps it. Sizes are bytes.
type Chunk struct {
	Logical uint64         `json:"logical"`
	Length  uint64         `json:"length"` // logical bytes, before copies and parity
	Type    BlockGroupType `json:"type"`
	Profile Profile        `json:"profile"`
	Stripes []Stripe       `json:"stripes"`
}

// DataStripes returns how many different data stripes the chunk has: the
// number of its stripes, less parity, divided by copies.
func (c *Chunk) DataStripes() int {
	a := c.Profile.Attributes()
	return max((len(c.Stripes)-a.Parity)/a.Copies, 1)
}

// StripeLength returns the bytes the chunk takes on the device for each of
// its stripes.
func (c *Chunk) StripeLength() uint64 { return c.Length / uint64(c.DataStripes()) }

// Opt is a value that may be unknown: the kernel is too old, a privilege is
// missing or the file cannot be read. Unknown is JSON null or absent, and is
// left out of the metrics; it is never 0.
type Opt[T any] struct {
	Value T
	Known bool
}

// Some returns a known value.
func Some[T any](v T) Opt[T] { return Opt[T]{Value: v, Known: true} }

// Get returns the value and whether it is known.
func (o Opt[T]) Get() (T, bool) { return o.Value, o.Known }

// IsZero makes encoding/json's omitzero leave out what is unknown.
func (o Opt[T]) IsZero() bool { return !o.Known }

// MarshalJSON implements json.Marshaler.
func (o Opt[T]) MarshalJSON() ([]byte, error) {
	if !o.Known {
		return []byte("null"), nil
	}
	return json.Marshal(o.Value)
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *Opt[T]) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		*o = Opt[T]{}
		return nil
	}
	o.Known = true
	return json.Unmarshal(text, &o.Value)
}
