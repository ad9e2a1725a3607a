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
const maxRelocated = 4096

// placedChunk is a chunk with its place. Only pools of at most maxRelocated
// chunks have them in their layout.
type placedChunk struct {
	blockGroupType btrfs.BlockGroupType
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
func (s *state) balanced() uint64 {
	if len(s.layout.chunks) == 0 {
		return s.usable().data
	}
	m := newMover(s, s.layout.allocator())
	for i := range s.layout.chunks {
		m.relocate(&s.layout.chunks[i])
	}
	return m.total[s.data.blockGroupType] + m.allocator.fill(s.data.request(), math.MaxUint64).data()
}

// mover relocates chunks.
type mover struct {
	state     *state
	allocator *allocator
	total     [btrfs.Mixed + 1]uint64 // size of the block groups of each type
	byDevice  []*simulatedDevice      // in the order of Layout.Devices
}

func newMover(s *state, a *allocator) *mover {
	m := &mover{state: s, allocator: a, byDevice: make([]*simulatedDevice, len(s.layout.Devices))}
	for i := range s.layout.chunks {
		c := &s.layout.chunks[i]
		m.total[c.blockGroupType] += c.length
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
	total := &m.total[c.blockGroupType]
	*total -= min(*total, c.length)
	for *total == 0 || *total < m.state.room(sp) {
		made := m.allocator.fill(sp.request(), 1)
		if made.chunks == 0 {
			*total += c.length // it stays where it is
			return false
		}
		*total += made.data()
	}
	for _, stripe := range m.state.layout.stripes[c.first : c.first+c.stripes] {
		if stripe.device >= 0 && m.byDevice[stripe.device] != nil {
			m.byDevice[stripe.device].release(stripe.start, c.stripe)
		}
	}
	return true
}

// space returns the accounting of a type; nil if the pool has none of it.
func (s *state) space(t btrfs.BlockGroupType) *space {
	for _, sp := range []*space{&s.data, &s.metadata, &s.system} {
		if sp.profile != 0 && sp.blockGroupType == t {
			return sp
		}
	}
	return nil
}

// room is what the block groups of a type hold at least.
func (s *state) room(sp *space) uint64 {
	if sp.blockGroupType == btrfs.Metadata {
		return sp.used + s.reserve
	}
	return sp.used
}

// release gives a piece of the device back. What lies beyond the end of a
// device that is being made smaller is no hole.
func (d *simulatedDevice) release(start, length uint64) {
	d.available += length
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
