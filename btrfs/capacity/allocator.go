package capacity

import (
	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30

	// stripeLength is the unit of striping (BTRFS_STRIPE_LEN).
	stripeLength = 64 * kib
	// reservedStart is the part at the start of each device that no chunk
	// occupies (BTRFS_DEVICE_RANGE_RESERVED).
	reservedStart = 1 * mib
	// maxStripe bounds the part of a chunk on one device.
	maxStripe = 1 * gib
	// stripeRounding is what a stripe is rounded up to where the chunk's size
	// bounds it.
	stripeRounding = 16 * mib
)

// superblockOffsets are the places of the superblock copies that a chunk can
// cover (btrfs_sb_offset). The first copy lies within reservedStart.
var superblockOffsets = [...]uint64{64 * mib, 256 * gib}

// Hole is a free piece of a device.
type Hole struct {
	Start  uint64
	Length uint64
}

// request is one kind of chunk to make.
type request struct {
	blockGroupType btrfs.BlockGroupType
	profile        btrfs.ProfileAttributes
	striped        bool // data alternates between the devices: raid0, raid10
	chunkSize      uint64
}

func newRequest(t btrfs.BlockGroupType, p btrfs.Profile, chunkSize uint64) request {
	return request{
		blockGroupType: t,
		profile:        p.Attributes(),
		striped:        p == btrfs.RAID0 || p == btrfs.RAID10,
		chunkSize:      chunkSize,
	}
}

// allocator plays the kernel's chunk allocator on a set of devices.
type allocator struct {
	devices []simulatedDevice
	// writeable is the sum of the sizes of the devices.
	writeable  uint64
	candidates []candidate
	window     window
}

// simulatedDevice is one device that chunks can be made on.
type simulatedDevice struct {
	index     int // in the layout
	size      uint64
	available uint64 // size less device extents
	over      uint64 // device extents less size, of a device that is being made smaller
	holes     []Hole // in order of Start
	// first is, for each block group type, the first hole that is not known
	// to be too small for a stripe of that type. Holes only shrink, so it
	// only moves forward.
	first [btrfs.Mixed + 1]int
	// bySize is a heap of the holes, the largest on top; built when first
	// needed.
	bySize []sizedHole
}

// candidate is a device that could take part in the next chunk.
type candidate struct {
	device       int
	hole         int
	maxAvailable uint64
	available    uint64
}

// filled is what a run of the allocator made.
type filled struct {
	bytes       uint64 // logical bytes in the new chunks
	superblocks uint64 // of them not usable, because a superblock copy lies there
	chunks      uint64
}

// data returns the bytes that can hold data.
func (f filled) data() uint64 { return f.bytes - min(f.bytes, f.superblocks) }

// fill makes chunks until no more fits or limit bytes are reached.
//
// Chunks are not played one by one: where the allocator goes round the same
// devices with the same stripe, a whole number of rounds is taken in one leap.
// A pool of any size therefore costs some microseconds.
func (a *allocator) fill(r request, limit uint64) filled {
	var total filled
	a.window.reset(a.devices)
	for total.bytes < limit {
		picked, stripe, ok := a.choose(&r)
		if !ok {
			break
		}
		chunk := a.take(&r, picked, stripe)
		total.bytes += chunk.bytes
		total.superblocks += chunk.superblocks
		total.chunks++
		a.window.note(picked, stripe, chunk, r.wanted())
		rounds := a.leap(&r, limit-min(limit, total.bytes))
		total.bytes += rounds * a.window.bytes
		total.chunks += rounds * a.window.chunks
		if rounds > 0 || a.window.done() {
			a.window.reset(a.devices)
		}
	}
	return total
}

// fillNoting fills as fill does, and notes on the devices of the layout what they
// give.
func (a *allocator) fillNoting(sp *space, limit uint64, devices []LayoutDevice) filled {
	before := make([]uint64, len(a.devices))
	for i := range a.devices {
		before[i] = a.devices[i].available
	}
	made := a.fill(sp.request(), limit)
	for i := range a.devices {
		if d := &a.devices[i]; d.available != before[i] {
			devices[d.index].allocate(sp.blockGroupType, sp.profile, int64(before[i]-d.available)) //nolint:gosec // a device has less than 8 EiB
		}
	}
	return made
}

// wanted is the hole that the allocator looks for on each device.
func (r *request) wanted() uint64 {
	return min(r.chunkSize, maxStripe) * uint64(r.profile.DevStripes)
}

// choose decides which devices the next chunk is made on, and the bytes of
// each of its stripes.
func (a *allocator) choose(r *request) (picked []candidate, stripe uint64, ok bool) {
	devStripes := uint64(r.profile.DevStripes)
	least := stripeLength * devStripes
	a.candidates = a.candidates[:0]
	for i := range a.devices {
		d := &a.devices[i]
		if d.available < least {
			continue
		}
		hole, ok := d.find(r.blockGroupType, r.wanted())
		if !ok {
			continue
		}
		c := candidate{device: i, hole: hole, maxAvailable: min(d.holes[hole].Length, r.wanted()), available: d.available}
		if c.maxAvailable < least {
			continue
		}
		a.insert(c)
	}
	n := len(a.candidates)
	n -= n % r.profile.DevsIncrement
	if n < r.profile.DevsMin {
		return nil, 0, false
	}
	n = min(n, r.profile.DevsMax)
	picked = a.candidates[:n]

	stripe = picked[n-1].maxAvailable / devStripes
	data := r.dataStripes(n)
	maxChunk := min(a.writeable/10, r.chunkSize)
	if stripe*data > maxChunk {
		stripe = min(roundUp(maxChunk/data), stripe)
	}
	stripe = min(stripe, maxStripe)
	stripe -= stripe % stripeLength
	return picked, stripe, stripe > 0
}

// insert keeps the candidates in the allocator's order: the larger hole
// first, then the larger device.
func (a *allocator) insert(c candidate) {
	a.candidates = append(a.candidates, c)
	for i := len(a.candidates) - 1; i > 0; i-- {
		prev := &a.candidates[i-1]
		if prev.maxAvailable > c.maxAvailable || prev.maxAvailable == c.maxAvailable && prev.available >= c.available {
			return
		}
		a.candidates[i-1], a.candidates[i] = c, *prev
	}
}

// dataStripes is the number of different stripes of data in a chunk on n
// devices.
func (r *request) dataStripes(n int) uint64 {
	return uint64(max((n*r.profile.DevStripes-r.profile.Parity)/r.profile.Copies, 1))
}

// take makes the chunk that choose decided on.
func (a *allocator) take(r *request, picked []candidate, stripe uint64) filled {
	data := r.dataStripes(len(picked))
	chunk := filled{bytes: stripe * data, chunks: 1}
	chunk.superblocks = a.superblocks(r, picked, stripe, data)
	for _, c := range picked {
		a.devices[c.device].use(c.hole, stripe*uint64(r.profile.DevStripes))
	}
	return chunk
}

// superblocks returns the logical bytes of a new chunk that are lost to
// superblock copies. Two copies at the same place of two mirrors cost once.
func (a *allocator) superblocks(r *request, picked []candidate, stripe, data uint64) uint64 {
	var (
		lost uint64
		seen [2 * len(superblockOffsets)]uint64
		n    int
	)
	unit := uint64(stripeLength)
	if r.profile.Parity > 0 {
		unit *= data
	}
	for i := range len(picked) * r.profile.DevStripes {
		c := picked[i/r.profile.DevStripes]
		start := a.devices[c.device].holes[c.hole].Start + uint64(i%r.profile.DevStripes)*stripe
		for _, super := range superblockOffsets {
			if super < start || super >= start+stripe {
				continue
			}
			number := (super - start) / stripeLength
			if r.striped {
				number = (number*uint64(len(picked)) + uint64(i)) / uint64(r.profile.SubStripes)
			}
			// One chunk meets at most a handful of copies; where there are
			// more, counting one twice is the safe side.
			if indexOf(seen[:min(n, len(seen))], number) {
				continue
			}
			if n < len(seen) {
				seen[n] = number
			}
			n++
			lost += unit
		}
	}
	return lost
}

func indexOf(seen []uint64, v uint64) bool {
	for _, s := range seen {
		if s == v {
			return true
		}
	}
	return false
}

// window is a run of chunks, looked at for whether it can be repeated.
type window struct {
	taken   []uint64 // number of times each device took part
	before  []uint64 // available space of each device before the window
	chunks  uint64
	bytes   uint64
	stripe  uint64
	uniform bool
}

// reset starts a window that the devices enter as they are now.
func (w *window) reset(devices []simulatedDevice) {
	if len(w.taken) != len(devices) {
		w.taken, w.before = make([]uint64, len(devices)), make([]uint64, len(devices))
	}
	clear(w.taken)
	for i := range devices {
		w.before[i] = devices[i].available
	}
	*w = window{taken: w.taken, before: w.before, uniform: true}
}

// note adds a chunk. A window stays uniform as long as all its stripes are
// equally long, come out of holes that offered all that was wanted, and no
// superblock copy is met.
func (w *window) note(picked []candidate, stripe uint64, chunk filled, wanted uint64) {
	if w.chunks > 0 && w.stripe != stripe || chunk.superblocks > 0 {
		w.uniform = false
	}
	for _, c := range picked {
		w.taken[c.device]++
		if c.maxAvailable < wanted {
			w.uniform = false
		}
	}
	w.stripe = stripe
	w.chunks++
	w.bytes += chunk.bytes
}

// done tells whether the window cannot come to be repeatable any more: it
// never will, or more chunks than a few rounds of the devices showed no
// pattern.
func (w *window) done() bool { return !w.uniform || w.chunks > uint64(4*len(w.taken)) }

// leap repeats the window as often as the allocator surely would, and returns
// how often that was.
//
// Devices that took part equally often stand to each other as they did before
// the window. Where all others were above or below them from its beginning to
// its end and still are after a repetition, the allocator does the same again
// - as long as each device that takes part still has its hole of the wanted
// size, and no superblock copy comes in the way.
func (a *allocator) leap(r *request, limit uint64) uint64 {
	w := &a.window
	if !w.uniform {
		return 0
	}
	rounds := limit / w.bytes
	wanted := r.wanted()
	unit := w.stripe * uint64(r.profile.DevStripes)
	for i := range a.devices {
		d := &a.devices[i]
		hole, ok := d.find(r.blockGroupType, wanted)
		if !ok || d.holes[hole].Length < wanted {
			if w.taken[i] > 0 {
				return 0
			}
			continue // too small to be preferred to those that take part
		}
		if w.taken[i] > 0 {
			round := w.taken[i] * unit
			h := d.holes[hole]
			rounds = min(rounds, (h.Length-wanted)/round)
			for _, super := range superblockOffsets {
				if super >= h.Start {
					rounds = min(rounds, (super-h.Start)/round)
				}
			}
		}
		for j := range a.devices {
			if w.taken[j] >= w.taken[i] {
				continue
			}
			// i loses ground to j: it has to stay above it, or be below it.
			if w.before[i] < a.devices[j].available {
				continue
			}
			if d.available <= w.before[j] {
				return 0
			}
			rounds = min(rounds, (d.available-w.before[j]-1)/((w.taken[i]-w.taken[j])*unit))
		}
		if rounds == 0 {
			return 0
		}
	}
	for i := range a.devices {
		if w.taken[i] == 0 {
			continue
		}
		d := &a.devices[i]
		hole, _ := d.find(r.blockGroupType, wanted)
		d.use(hole, rounds*w.taken[i]*unit)
	}
	return rounds
}

// find returns the hole that the allocator takes on the device: the first of
// at least the wanted size, else the largest, of those the first.
func (d *simulatedDevice) find(t btrfs.BlockGroupType, wanted uint64) (hole int, ok bool) {
	i := d.first[t]
	for i < len(d.holes) && d.holes[i].Length < wanted {
		i++
	}
	d.first[t] = i
	if i < len(d.holes) {
		return i, true
	}
	return d.largest()
}

func (d *simulatedDevice) use(hole int, bytes uint64) {
	h := &d.holes[hole]
	h.Start += bytes
	h.Length -= bytes
	d.available -= bytes
}

// sizedHole is an entry of the heap: a hole and the length it had when it was
// put in its place.
type sizedHole struct {
	hole   int
	length uint64
}

// largest returns the largest hole. Holes shrink without the heap being told;
// an entry that claims too much is put right when it comes to the top.
func (d *simulatedDevice) largest() (hole int, ok bool) {
	if len(d.holes) == 0 {
		return 0, false
	}
	if len(d.bySize) != len(d.holes) {
		d.bySize = d.bySize[:0]
		for i, h := range d.holes {
			d.bySize = append(d.bySize, sizedHole{i, h.Length})
		}
		for i := len(d.bySize)/2 - 1; i >= 0; i-- {
			d.sink(i)
		}
	}
	for {
		top := &d.bySize[0]
		if length := d.holes[top.hole].Length; top.length != length {
			top.length = length
			d.sink(0)
			continue
		}
		return top.hole, true
	}
}

// sink moves the entry at place i down to where it belongs.
func (d *simulatedDevice) sink(i int) {
	for {
		child := 2*i + 1
		if child >= len(d.bySize) {
			return
		}
		if child+1 < len(d.bySize) && d.bySize[child+1].before(d.bySize[child]) {
			child++
		}
		if !d.bySize[child].before(d.bySize[i]) {
			return
		}
		d.bySize[i], d.bySize[child] = d.bySize[child], d.bySize[i]
		i = child
	}
}

func (a sizedHole) before(b sizedHole) bool {
	if a.length != b.length {
		return a.length > b.length
	}
	return a.hole < b.hole
}

// roundUp rounds up to a multiple of stripeRounding.
func roundUp(v uint64) uint64 { return (v + stripeRounding - 1) / stripeRounding * stripeRounding }
