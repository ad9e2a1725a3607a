package capacity

import (
	"cmp"
	"math"
	"slices"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// maxRelocated is the number of chunks up to which a balance is played chunk
// by chunk. Above it one chunk more or less on a device is no matter, and the
// layout from empty serves.
const maxRelocated = 1024

// placedChunk is a chunk with its place. Only pools of at most maxRelocated
// chunks have them in their layout.
type placedChunk struct {
	blockGroupType btrfs.BlockGroupType
	profile        btrfs.Profile
	logical        uint64
	length         uint64
	stripe         uint64 // bytes on each device
	first, stripes int    // in Layout.stripes
}

// placedStripe is one stripe of a placedChunk.
type placedStripe struct {
	device int16 // index in Layout.Devices, -1 if unknown
	start  uint64
}

// balanced plays a full balance and returns the file data that the pool holds
// after it, used and free together.
//
// The kernel relocates chunk by chunk, the one with the highest logical
// address first (__btrfs_balance in fs/btrfs/volumes.c). What is in it goes to
// the free parts of the other block groups of its type, and to a new chunk
// when those do not suffice; then its place is free. The order matters: the
// devices that are fullest before the balance are avoided at its start.
//
// What cannot be foretold is the kernel's separation of small, medium and
// large extents (btrfs_block_group_size_class): it may make a new chunk where
// the free parts of the others would have done.
func (s *state) balanced() uint64 {
	if len(s.layout.chunks) == 0 {
		return s.usable().data
	}
	m := newMover(s, s.layout.allocator())
	for i := range s.layout.chunks {
		m.relocate(&s.layout.chunks[i])
	}
	m.release()
	return m.types[s.data.blockGroupType].total + m.allocator.fill(s.data.request(), math.MaxUint64).data()
}

// mover relocates chunks.
type mover struct {
	state     *state
	allocator *allocator
	byDevice  []*simulatedDevice // in the order of Layout.Devices
	types     [btrfs.Mixed + 1]moverSpace
	// emptied is the chunk relocated last. The search for free space looks at
	// the last committed transaction, so its place is free only after the
	// next commit.
	emptied *placedChunk
	// devices note what they are used for, if that is wanted: those of the
	// layout, or nil.
	devices []LayoutDevice
}

// moverSpace is what is in the block groups that new extents can go to.
type moverSpace struct{ total, used uint64 }

func newMover(s *state, a *allocator) *mover {
	m := &mover{state: s, allocator: a, byDevice: make([]*simulatedDevice, len(s.layout.Devices))}
	for i := range s.layout.chunks {
		c := &s.layout.chunks[i]
		if sp := s.space(c.blockGroupType); sp != nil && sp.takes(c.profile) {
			m.types[c.blockGroupType].total += c.length
		}
	}
	for _, sp := range s.spaces() {
		m.types[sp.blockGroupType].used = s.room(sp)
	}
	for i := range a.devices {
		m.byDevice[a.devices[i].index] = &a.devices[i]
	}
	return m
}

// relocate empties a chunk and frees its place; false if what is in it fits
// nowhere else.
func (m *mover) relocate(c *placedChunk) bool {
	sp := m.state.space(c.blockGroupType)
	if sp == nil {
		return false
	}
	t := &m.types[c.blockGroupType]
	before := *t
	if c.blockGroupType == btrfs.Data || c.blockGroupType == btrfs.Mixed {
		// Copying data takes several transactions, so what was emptied before
		// is free when the first new chunk is needed.
		m.release()
	}
	if sp.takes(c.profile) {
		t.total -= min(t.total, c.length)
	} else {
		t.used += sp.share(c)
	}
	for t.total == 0 || t.total < t.used {
		made := m.fill(sp)
		if made.chunks == 0 && m.emptied != nil {
			m.release()
			continue
		}
		if made.chunks == 0 {
			// It stays where it is; chunks made for it already are there too.
			*t = moverSpace{total: t.total, used: before.used}
			if sp.takes(c.profile) {
				t.total += c.length
			}
			return false
		}
		t.total += made.data()
	}
	m.release()
	m.emptied = c
	return true
}

// fill makes a chunk, if there is room for it.
func (m *mover) fill(sp *space) filled {
	if m.devices == nil {
		return m.allocator.fill(sp.request(), 1)
	}
	return m.allocator.fillNoting(sp, 1, m.devices)
}

// release frees the place of the chunk relocated last.
func (m *mover) release() {
	if m.emptied == nil {
		return
	}
	for _, stripe := range m.state.layout.stripes[m.emptied.first : m.emptied.first+m.emptied.stripes] {
		if stripe.device >= 0 && m.byDevice[stripe.device] != nil {
			m.byDevice[stripe.device].release(stripe.start, m.emptied.stripe)
			if m.devices != nil {
				m.devices[stripe.device].allocate(m.emptied.blockGroupType, m.emptied.profile, -int64(m.emptied.stripe))
			}
		}
	}
	m.emptied = nil
}

// spaces returns the accounting of the types there are.
func (s *state) spaces() []*space {
	all := []*space{&s.data, &s.metadata, &s.system}
	return slices.DeleteFunc(all, func(sp *space) bool { return sp.profile == 0 })
}

// space returns the accounting of a type; nil if the pool has none of it.
func (s *state) space(t btrfs.BlockGroupType) *space {
	for _, sp := range s.spaces() {
		if sp.blockGroupType == t {
			return sp
		}
	}
	return nil
}

// room is what the block groups of a type hold at least, beside those of
// profiles that new extents do not go to.
func (s *state) room(sp *space) uint64 {
	if sp.blockGroupType == btrfs.Metadata {
		return sp.usedThere + s.reserve
	}
	return sp.usedThere
}

// takes tells whether new extents go to block groups of a profile.
func (s *space) takes(p btrfs.Profile) bool { return s.profile == btrfs.Single || s.profile == p }

// share is what a chunk of another profile holds, if all of that profile are
// equally full.
func (s *space) share(c *placedChunk) uint64 {
	for _, p := range s.profiles {
		if p.Profile == c.profile && p.Total > 0 {
			return uint64(float64(p.Used) * float64(c.length) / float64(p.Total))
		}
	}
	return 0
}

// release gives a piece of the device back. What lies beyond the end of a
// device that is being made smaller is no hole.
func (d *simulatedDevice) release(start, length uint64) {
	paid := min(d.over, length)
	d.over -= paid
	d.available += length - paid
	if start >= d.size {
		return
	}
	length = min(length, d.size-start)
	i, _ := slices.BinarySearchFunc(d.holes, start, func(h Hole, start uint64) int { return cmp.Compare(h.Start, start) })
	d.holes = slices.Insert(d.holes, i, Hole{start, length})
	if i+1 < len(d.holes) && d.holes[i].Start+d.holes[i].Length == d.holes[i+1].Start {
		d.holes[i].Length += d.holes[i+1].Length
		d.holes = slices.Delete(d.holes, i+1, i+2)
	}
	if i > 0 && d.holes[i-1].Start+d.holes[i-1].Length == d.holes[i].Start {
		d.holes[i-1].Length += d.holes[i].Length
		d.holes = slices.Delete(d.holes, i, i+1)
	}
	// What was known of the holes is no longer so.
	clear(d.first[:])
	d.bySize = d.bySize[:0]
}
