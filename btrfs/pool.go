package btrfs

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// UUID is a filesystem or device UUID, printed in lower case with dashes, as
// sysfs does.
type UUID [16]byte

// String returns the form 8-4-4-4-12.
func (u UUID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], u[0:4])
	b[8] = '-'
	hex.Encode(b[9:13], u[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], u[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], u[8:10])
	b[23] = '-'
	hex.Encode(b[24:36], u[10:16])
	return string(b[:])
}

// IsZero reports whether the UUID is unset.
func (u UUID) IsZero() bool { return u == UUID{} }

// MarshalText implements encoding.TextMarshaler.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *UUID) UnmarshalText(text []byte) error {
	parsed, err := ParseUUID(string(text))
	if err != nil {
		return err
	}
	*u = parsed
	return nil
}

// ParseUUID reads the form 8-4-4-4-12.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, fmt.Errorf("%q is not a UUID", s)
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(raw) != len(u) {
		return u, fmt.Errorf("%q is not a UUID", s)
	}
	copy(u[:], raw)
	return u, nil
}

// Pool holds the facts of one mounted filesystem, read at one time. It is a
// plain value: it can be written to JSON and read back, so that a recorded
// pool is a fixture. Sizes are bytes. What could not be read is unknown.
type Pool struct {
	UUID         UUID   `json:"uuid"`
	MetadataUUID UUID   `json:"metadata_uuid,omitzero"`
	Label        string `json:"label"`
	// Mountpoint is where the facts were read, as the host sees the path
	// (without --path.rootfs). Empty where no mount could be reached and the
	// facts come from sysfs alone.
	Mountpoint string      `json:"mountpoint"`
	ReadOnly   Opt[bool]   `json:"read_only,omitzero"`
	Checksum   Opt[string] `json:"checksum,omitzero"` // crc32c, xxhash64, sha256 or blake2b
	NodeSize   Opt[uint64] `json:"nodesize,omitzero"`
	SectorSize Opt[uint64] `json:"sectorsize,omitzero"`
	// Features are the incompatible and compatible-read-only features that
	// are on, as sysfs features/ names them, sorted.
	Features []string `json:"features,omitempty"`

	Devices       []Device      `json:"devices"` // in order of devid
	Spaces        []Space       `json:"spaces"`  // one for each block group type in use
	GlobalReserve GlobalReserve `json:"global_reserve"`
	Commits       Opt[Commits]  `json:"commits,omitzero"`
	// ExclusiveOperation is none, balance, balance paused, device add,
	// device remove, device replace, resize or swap activate.
	ExclusiveOperation Opt[string] `json:"exclusive_operation,omitzero"`
	// ConvertData is the profile that a running or paused balance converts
	// data to: new data chunks are made in it. Likewise ConvertMetadata and
	// ConvertSystem.
	ConvertData     Opt[Profile] `json:"convert_data,omitzero"`
	ConvertMetadata Opt[Profile] `json:"convert_metadata,omitzero"`
	ConvertSystem   Opt[Profile] `json:"convert_system,omitzero"`
	// StatfsFree is what df reports as available.
	StatfsFree Opt[uint64] `json:"statfs_free,omitzero"`

	// Chunks maps every block group; known only with CAP_SYS_ADMIN.
	Chunks Opt[[]Chunk] `json:"chunks,omitzero"`
}

// Device is one member of a pool.
type Device struct {
	ID   uint64 `json:"devid"`
	UUID UUID   `json:"uuid,omitzero"`
	// FSID is the filesystem the device belongs to where that is another one:
	// a seed device.
	FSID      UUID        `json:"fsid,omitzero"`
	Name      string      `json:"name,omitempty"` // kernel name, such as sda1
	Path      string      `json:"path,omitempty"` // as the kernel opened it
	Model     string      `json:"model,omitempty"`
	Serial    string      `json:"serial,omitempty"`
	Size      Opt[uint64] `json:"size,omitzero"` // total_bytes: what the filesystem may use
	Used      Opt[uint64] `json:"used,omitzero"` // bytes in device extents
	Missing   Opt[bool]   `json:"missing,omitzero"`
	Writeable Opt[bool]   `json:"writeable,omitzero"`
	// ReplaceTarget marks the device a running replace copies to.
	ReplaceTarget bool             `json:"replace_target,omitempty"`
	Errors        Opt[ErrorCounts] `json:"errors,omitzero"`
}

// Usable reports whether the chunk allocator makes new chunks on the device:
// it is there, writeable and no replace target. A state that could not be
// read counts as good: on kernels without devinfo every member is used.
func (d *Device) Usable() bool {
	return d.Size.Known && d.Used.Known && !d.ReplaceTarget &&
		!(d.Missing.Known && d.Missing.Value) && !(d.Writeable.Known && !d.Writeable.Value)
}

// ErrorCounts are the persistent error counters of a device, as
// BTRFS_IOC_GET_DEV_STATS and `btrfs device stats` give them.
type ErrorCounts struct {
	Write      uint64 `json:"write"`
	Read       uint64 `json:"read"`
	Flush      uint64 `json:"flush"`
	Corruption uint64 `json:"corruption"`
	Generation uint64 `json:"generation"`
}

// Space is the space accounting of one block group type (sysfs
// allocation/<type>). Sizes are logical bytes: before copies and parity.
type Space struct {
	Type     BlockGroupType `json:"type"`
	Total    uint64         `json:"total_bytes"`
	Used     uint64         `json:"bytes_used"`
	ReadOnly uint64         `json:"bytes_readonly"`
	// MayUse is what writers have reserved and not placed yet, such as dirty
	// pages; Reserved is what has a place and is not committed yet. Neither is
	// in Used. Read for block groups that hold data only.
	MayUse   Opt[uint64] `json:"bytes_may_use,omitzero"`
	Reserved Opt[uint64] `json:"bytes_reserved,omitzero"`
	// ChunkSize is the largest chunk of the type; unknown before kernel 6.0,
	// when it could not be set.
	ChunkSize Opt[uint64] `json:"chunk_size,omitzero"`
	// Profiles are those of the existing block groups. With more than one,
	// each has its own figures; with one they are those of the type.
	Profiles []ProfileSpace `json:"profiles"`
}

// ProfileSpace is the share of one profile in a Space. A Total of 0 is unknown:
// a profile without block groups is not listed.
type ProfileSpace struct {
	Profile Profile `json:"profile"`
	Total   uint64  `json:"total_bytes"`
	Used    uint64  `json:"bytes_used"`
}

// GlobalReserve is the metadata that the kernel keeps back for what must not
// fail, such as deleting a file on a full pool.
type GlobalReserve struct {
	Size Opt[uint64] `json:"size,omitzero"`
	Used Opt[uint64] `json:"used,omitzero"`
}

// Commits are the transaction commit statistics since the mount (sysfs
// commit_stats, kernel 6.1).
type Commits struct {
	Count   uint64 `json:"commits"`
	LastMS  uint64 `json:"last_commit_ms"`
	MaxMS   uint64 `json:"max_commit_ms"`
	TotalMS uint64 `json:"total_commit_ms"`
}

// Space returns the accounting of a block group type, or nil.
func (p *Pool) Space(t BlockGroupType) *Space {
	for i := range p.Spaces {
		if p.Spaces[i].Type == t {
			return &p.Spaces[i]
		}
	}
	return nil
}

// Device returns the member with the given id, or nil.
func (p *Pool) Device(id uint64) *Device {
	for i := range p.Devices {
		if p.Devices[i].ID == id {
			return &p.Devices[i]
		}
	}
	return nil
}
