package capacity

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// Layout tells where the chunks of a pool lie. It holds what the calculations
// need and not the chunks themselves, so that a pool of 100,000 block groups
// takes no more memory than one of ten.
type Layout struct {
	// Exact is false where the chunks are not known: each device is then
	// taken to have all its free space in one piece.
	Exact bool
	// Devices are all members, in order of devid.
	Devices []LayoutDevice
	// Allocations are the block groups by type and profile, in that order.
	// Empty unless Exact.
	Allocations []Allocation

	sets []chunkSet
	// chunks are in the order in which a balance takes them: the highest
	// logical address first. None if there are more than maxRelocated.
	chunks  []placedChunk
	stripes []placedStripe
}

// LayoutDevice is one member of a Layout.
type LayoutDevice struct {
	ID   uint64
	Size uint64
	// Used is the sum of the device's extents.
	Used uint64
	// Usable is false for a device on which no chunk can be made: missing,
	// read-only or the target of a replace.
	Usable  bool
	Missing bool
	// Holes are the free pieces, in order.
	Holes []Hole
	// Allocated is what the device gives to each type and profile, in that
	// order. Empty where that is not known.
	Allocated []DeviceAllocation
}

// ByType returns the bytes of the device's extents by the type of their block
// groups; false where it is not known what all of them are for.
func (d *LayoutDevice) ByType() (bytes [btrfs.Mixed + 1]uint64, known bool) {
	var sum uint64
	for _, a := range d.Allocated {
		bytes[a.Type] += a.Bytes
		sum += a.Bytes
	}
	return bytes, sum == d.Used
}

// allocate notes that the device gives so much more to a type and profile, or
// so much less.
func (d *LayoutDevice) allocate(t btrfs.BlockGroupType, p btrfs.Profile, bytes int64) {
	i := slices.IndexFunc(d.Allocated, func(a DeviceAllocation) bool { return a.Type == t && a.Profile == p })
	if i < 0 {
		i = len(d.Allocated)
		d.Allocated = append(d.Allocated, DeviceAllocation{Type: t, Profile: p})
	}
	d.Allocated[i].Bytes += uint64(bytes) //nolint:gosec // a difference
}

// tidyAllocated brings what allocate noted in order.
func (d *LayoutDevice) tidyAllocated() {
	d.Allocated = slices.DeleteFunc(d.Allocated, func(a DeviceAllocation) bool { return a.Bytes == 0 })
	slices.SortFunc(d.Allocated, func(a, b DeviceAllocation) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Profile, b.Profile))
	})
}

// Allocation is the sum of the block groups of one type and profile.
type Allocation struct {
	Type        btrfs.BlockGroupType
	Profile     btrfs.Profile
	Size        uint64 // logical bytes
	BlockGroups uint64
}

// DeviceAllocation is the share of one device in an Allocation.
type DeviceAllocation struct {
	Type    btrfs.BlockGroupType
	Profile btrfs.Profile
	Bytes   uint64 // bytes of the device
}

// chunkSet is the sum of the chunks that lie on the same devices.
type chunkSet struct {
	blockGroupType btrfs.BlockGroupType
	profile        btrfs.Profile
	// devices are indexes into Layout.Devices, -1 for one that is unknown:
	// sorted, for raid10 in the order of the stripes, two and two a mirror.
	devices []int16
	size    uint64 // logical bytes
	chunks  uint64
}

// Builder collects the chunks of a pool into a Layout.
type Builder struct {
	layout  Layout
	byID    map[uint64]int16
	extents [][]Hole // of each device
	sets    map[string]int
	key     []byte
	stripes []int16
	chunks  int
}

// NewBuilder starts a layout of the given devices.
func NewBuilder(devices []btrfs.Device) *Builder {
	b := &Builder{
		byID:    make(map[uint64]int16, len(devices)),
		extents: make([][]Hole, len(devices)),
		sets:    make(map[string]int),
	}
	b.layout.Devices = layoutDevices(devices)
	for i, d := range b.layout.Devices {
		b.byID[d.ID] = int16(i)
	}
	return b
}

func layoutDevices(devices []btrfs.Device) []LayoutDevice {
	out := make([]LayoutDevice, len(devices))
	for i := range devices {
		d := &devices[i]
		out[i] = LayoutDevice{ID: d.ID, Size: d.Size.Value, Used: d.Used.Value, Usable: d.Usable(), Missing: d.Missing.Value}
	}
	slices.SortFunc(out, func(a, b LayoutDevice) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Add takes in a chunk; it keeps nothing of it.
func (b *Builder) Add(c *btrfs.Chunk) error {
	stripe := c.StripeLength()
	b.stripes = b.stripes[:0]
	b.place(c, stripe)
	for _, s := range c.Stripes {
		i, known := b.byID[s.DevID]
		if !known {
			i = -1
		} else {
			b.extents[i] = append(b.extents[i], Hole{Start: s.Offset, Length: stripe})
			b.layout.Devices[i].allocate(c.Type, c.Profile, int64(stripe))
		}
		b.stripes = append(b.stripes, i)
	}
	if c.Profile != btrfs.RAID10 {
		slices.Sort(b.stripes)
	}
	b.key = append(b.key[:0], byte(c.Type), byte(c.Profile))
	for _, i := range b.stripes {
		b.key = append(b.key, byte(i), byte(i>>8))
	}
	i, known := b.sets[string(b.key)]
	if !known {
		i = len(b.layout.sets)
		b.sets[string(b.key)] = i
		b.layout.sets = append(b.layout.sets, chunkSet{blockGroupType: c.Type, profile: c.Profile, devices: slices.Clone(b.stripes)})
	}
	b.layout.sets[i].size += c.Length
	b.layout.sets[i].chunks++
	return nil
}

// place notes where the chunk lies, as long as there are not too many.
func (b *Builder) place(c *btrfs.Chunk, stripe uint64) {
	l := &b.layout
	if b.chunks++; b.chunks > maxRelocated {
		l.chunks, l.stripes = nil, nil
		return
	}
	l.chunks = append(l.chunks, placedChunk{
		blockGroupType: c.Type, profile: c.Profile, logical: c.Logical, length: c.Length, stripe: stripe,
		first: len(l.stripes), stripes: len(c.Stripes),
	})
	for _, s := range c.Stripes {
		i, known := b.byID[s.DevID]
		if !known {
			i = -1
		}
		l.stripes = append(l.stripes, placedStripe{device: i, start: s.Offset})
	}
}

// Layout returns the layout of the chunks added. The builder is of no use
// after it.
func (b *Builder) Layout() (*Layout, error) {
	l := &b.layout
	l.Exact = true
	slices.SortFunc(l.chunks, func(a, b placedChunk) int { return cmp.Compare(b.logical, a.logical) })
	for i := range l.Devices {
		d := &l.Devices[i]
		if err := d.findHoles(b.extents[i]); err != nil {
			return nil, err
		}
		d.tidyAllocated()
	}
	for _, s := range l.sets {
		i := slices.IndexFunc(l.Allocations, func(a Allocation) bool { return a.Type == s.blockGroupType && a.Profile == s.profile })
		if i < 0 {
			i = len(l.Allocations)
			l.Allocations = append(l.Allocations, Allocation{Type: s.blockGroupType, Profile: s.profile})
		}
		l.Allocations[i].Size += s.size
		l.Allocations[i].BlockGroups += s.chunks
	}
	slices.SortFunc(l.Allocations, func(a, b Allocation) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Profile, b.Profile))
	})
	return l, nil
}

// findHoles sorts the extents of the device and keeps what is between them.
func (d *LayoutDevice) findHoles(extents []Hole) error {
	slices.SortFunc(extents, func(a, b Hole) int { return cmp.Compare(a.Start, b.Start) })
	end := uint64(reservedStart)
	for _, e := range extents {
		if e.Start < end && e.Start >= reservedStart {
			return fmt.Errorf("device %d: two chunks overlap at %d", d.ID, e.Start)
		}
		if e.Start > end {
			d.Holes = append(d.Holes, Hole{Start: end, Length: e.Start - end})
		}
		end = max(end, e.Start+e.Length)
	}
	if d.Size > end {
		d.Holes = append(d.Holes, Hole{Start: end, Length: d.Size - end})
	}
	return nil
}

// NewLayout returns the layout of a pool whose chunks are known, such as a
// recorded one.
func NewLayout(p *btrfs.Pool) (*Layout, error) {
	if !p.Chunks.Known {
		return Estimate(p.Devices), nil
	}
	b := NewBuilder(p.Devices)
	for i := range p.Chunks.Value {
		if err := b.Add(&p.Chunks.Value[i]); err != nil {
			return nil, err
		}
	}
	return b.Layout()
}

// Estimate returns the layout of devices whose chunks are not known: the free
// space of each is taken to be one hole at its end.
func Estimate(devices []btrfs.Device) *Layout {
	l := &Layout{Devices: layoutDevices(devices)}
	for i := range l.Devices {
		d := &l.Devices[i]
		if start := max(d.Used, reservedStart); d.Size > start {
			free := min(d.Size-d.Used, d.Size-reservedStart)
			d.Holes = []Hole{{Start: d.Size - free, Length: free}}
		}
	}
	return l
}

// allocator returns an allocator on the layout as it is.
func (l *Layout) allocator() *allocator { return l.newAllocator(false) }

// emptyAllocator returns an allocator on the same devices, all empty.
func (l *Layout) emptyAllocator() *allocator { return l.newAllocator(true) }

func (l *Layout) newAllocator(empty bool) *allocator {
	a := &allocator{devices: make([]simulatedDevice, 0, len(l.Devices))}
	for i := range l.Devices {
		d := &l.Devices[i]
		if !d.Usable {
			continue
		}
		a.writeable += d.Size
		s := simulatedDevice{index: i, size: d.Size}
		if empty {
			s.available = d.Size
			if d.Size > reservedStart {
				s.holes = []Hole{{Start: reservedStart, Length: d.Size - reservedStart}}
			}
		} else {
			s.available = d.Size - min(d.Size, d.Used)
			s.over = d.Used - min(d.Size, d.Used)
			s.holes = slices.Clone(d.Holes)
		}
		a.devices = append(a.devices, s)
	}
	return a
}

// unused returns the bytes of each device of the layout that the allocator
// has not given to a chunk, in the order of Layout.Devices.
func (a *allocator) unused(devices int) []uint64 {
	out := make([]uint64, devices)
	for i := range a.devices {
		d := &a.devices[i]
		for _, h := range d.holes {
			out[d.index] += h.Length
		}
	}
	return out
}
