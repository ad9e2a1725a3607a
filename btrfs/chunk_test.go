package btrfs

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// typeFlags and profileFlags are the bits of a chunk item, written out once
// more so that a slip in the table of the parser shows.
var (
	typeFlags    = map[BlockGroupType]uint64{Data: 0x1, System: 0x2, Metadata: 0x4, Mixed: 0x5}
	profileFlags = map[Profile]uint64{
		Single: 0, RAID0: 0x8, RAID1: 0x10, DUP: 0x20, RAID10: 0x40,
		RAID5: 0x80, RAID6: 0x100, RAID1C3: 0x200, RAID1C4: 0x400,
	}
)

// chunkItem writes a chunk as it stands on disk.
func chunkItem(c *Chunk) []byte {
	le := binary.LittleEndian
	item := make([]byte, chunkHeaderSize+len(c.Stripes)*stripeSize)
	le.PutUint64(item[0:], c.Length)
	le.PutUint64(item[8:], 2) // the extent tree owns it
	le.PutUint64(item[16:], 64<<10)
	le.PutUint64(item[24:], typeFlags[c.Type]|profileFlags[c.Profile])
	le.PutUint32(item[32:], 64<<10)
	le.PutUint32(item[36:], 64<<10)
	le.PutUint32(item[40:], 4096)
	le.PutUint16(item[44:], uint16(len(c.Stripes)))
	le.PutUint16(item[46:], uint16(c.Profile.Attributes().SubStripes))
	for i, s := range c.Stripes {
		at := item[chunkHeaderSize+i*stripeSize:]
		le.PutUint64(at[0:], s.DevID)
		le.PutUint64(at[8:], s.Offset)
		copy(at[16:32], "the device uuid.")
	}
	return item
}

func TestParseChunkReadsEveryTypeAndProfile(t *testing.T) {
	var got Chunk // one for all, as a walk has it
	for _, blockGroupType := range BlockGroupTypes() {
		for _, profile := range Profiles() {
			for n := range 5 {
				want := Chunk{Logical: 1 << 40, Length: 1 << 30, Type: blockGroupType, Profile: profile}
				for i := range n + 1 {
					want.Stripes = append(want.Stripes, Stripe{DevID: uint64(i + 1), Offset: uint64(i) << 33})
				}
				if err := parseChunk(want.Logical, chunkItem(&want), &got); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("chunk of %s %s (-want +got):\n%s", blockGroupType, profile, diff)
				}
			}
		}
	}
}

func TestParseChunkRefusesWhatIsNoChunk(t *testing.T) {
	good := chunkItem(&Chunk{Length: 1 << 30, Type: Data, Profile: RAID1, Stripes: make([]Stripe, 2)})
	changed := func(change func(item []byte)) []byte {
		item := append([]byte(nil), good...)
		change(item)
		return item
	}
	flags := func(v uint64) []byte {
		return changed(func(item []byte) { binary.LittleEndian.PutUint64(item[24:], v) })
	}
	for name, item := range map[string][]byte{
		"empty":             nil,
		"half a header":     good[:40],
		"header only":       good[:chunkHeaderSize],
		"a byte short":      good[:len(good)-1],
		"no stripes":        changed(func(item []byte) { item[44] = 0 }),
		"too many stripes":  changed(func(item []byte) { item[44], item[45] = 0xff, 0xff }),
		"no type":           flags(0x10),
		"data and system":   flags(0x1 | 0x2),
		"two profiles":      flags(0x1 | 0x8 | 0x10),
		"raid10 and parity": flags(0x4 | 0x40 | 0x80),
	} {
		var c Chunk
		if err := parseChunk(1, item, &c); err == nil {
			t.Errorf("%s: parsed as %+v", name, c)
		}
	}
}

func TestParseDeviceExtent(t *testing.T) {
	item := make([]byte, deviceExtentSize)
	le := binary.LittleEndian
	le.PutUint64(item[0:], treeChunk)
	le.PutUint64(item[8:], objectFirstChunk)
	le.PutUint64(item[16:], 22020096)
	le.PutUint64(item[24:], 8<<20)
	got, err := parseDeviceExtent(3, 1<<30, item)
	want := DeviceExtent{DevID: 3, Offset: 1 << 30, Length: 8 << 20, Chunk: 22020096}
	if err != nil || got != want {
		t.Errorf("got %+v %v, want %+v", got, err, want)
	}
	if got, err := parseDeviceExtent(3, 1<<30, item[:deviceExtentSize-1]); err == nil {
		t.Errorf("an item that is too short gives %+v", got)
	}
}

func TestChunkStripeLength(t *testing.T) {
	const gib = 1 << 30
	for _, tt := range []struct {
		profile         Profile
		stripes         int
		length, perDisk uint64
	}{
		{Single, 1, gib, gib},
		{DUP, 2, gib, gib},
		{RAID0, 3, 3 * gib, gib},
		{RAID1, 2, gib, gib},
		{RAID1C3, 3, gib, gib},
		{RAID1C4, 4, gib, gib},
		{RAID10, 6, 3 * gib, gib},
		{RAID10, 2, gib, gib},
		{RAID5, 4, 3 * gib, gib},
		{RAID5, 2, gib, gib},
		{RAID6, 4, 2 * gib, gib},
		{RAID6, 3, gib, gib},
	} {
		c := Chunk{Length: tt.length, Type: Data, Profile: tt.profile, Stripes: make([]Stripe, tt.stripes)}
		if got := c.StripeLength(); got != tt.perDisk {
			t.Errorf("%s of %d stripes: %d bytes a stripe, want %d", tt.profile, tt.stripes, got, tt.perDisk)
		}
	}
}

func FuzzParseChunk(f *testing.F) {
	for _, p := range Profiles() {
		f.Add(uint64(1<<20), chunkItem(&Chunk{Length: 1 << 30, Type: Metadata, Profile: p, Stripes: make([]Stripe, 4)}))
	}
	f.Add(uint64(0), []byte{})
	f.Fuzz(func(t *testing.T, logical uint64, item []byte) {
		var first, second Chunk
		if parseChunk(logical, item, &first) != nil {
			return
		}
		// What the kernel could have written is read as it was meant.
		if err := parseChunk(logical, chunkItem(&first), &second); err != nil {
			t.Fatalf("written again it is an error: %v", err)
		}
		if diff := cmp.Diff(first, second); diff != "" {
			t.Errorf("written and read again (-first +second):\n%s", diff)
		}
		if n := first.DataStripes(); n < 1 || n > len(first.Stripes) {
			t.Errorf("%d data stripes of %d", n, len(first.Stripes))
		}
		_ = first.StripeLength()
	})
}

func FuzzParseDeviceExtent(f *testing.F) {
	f.Add(make([]byte, deviceExtentSize))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, item []byte) {
		e, err := parseDeviceExtent(1, 2, item)
		if (err == nil) != (len(item) >= deviceExtentSize) {
			t.Errorf("%d bytes: %+v %v", len(item), e, err)
		}
	})
}
