package capacity

import (
	"fmt"
	"math"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// Report is what a pool can still hold. Sizes are bytes.
type Report struct {
	// Exact is false where the chunks of the pool are not known.
	Exact bool
	// DataProfile is the profile of the next data chunk, likewise
	// MetadataProfile and SystemProfile.
	DataProfile, MetadataProfile, SystemProfile btrfs.Profile

	// Free is the file data that can still be written while metadata needs
	// no new chunk.
	Free uint64
	// FreeExpected is the same with metadata growing along in the proportion
	// it has now: what files like those already there can still fill.
	FreeExpected uint64
	// Usable is the file data that the devices hold when laid out from empty,
	// beside the metadata there is now.
	Usable uint64
	// FreeAfterBalance is the file data that can still be written after a full
	// balance.
	FreeAfterBalance uint64
	// MetadataFree is the metadata that can still be written, were all that
	// is unallocated given to metadata, less the global reserve.
	MetadataFree uint64

	// StrandedMismatch is the raw space that no chunk reaches even when laid
	// out from empty, because the sizes of the devices do not fit the
	// profile; StrandedImbalance is what else no chunk reaches now: what a
	// balance gives back.
	StrandedMismatch, StrandedImbalance uint64
	// Stranded is the raw space of each device that no data chunk reaches,
	// in the order of Layout.Devices.
	Stranded []uint64
}

// Calculate works out the report of a pool. The layout must be of the same
// pool. It fails where the accounting of data is unknown.
func Calculate(p *btrfs.Pool, l *Layout) (*Report, error) {
	return NewCalculator(l).Report(p)
}

// Calculator works out the reports of one pool as long as its layout stays the
// same. It keeps what does not change with every byte written. It is used by
// one goroutine at a time.
type Calculator struct {
	layout *Layout

	fills    memo[request, fillResult]
	usables  memo[usableKey, fillResult]
	balances memo[balanceKey, uint64]
}

// NewCalculator returns a Calculator of a layout.
func NewCalculator(l *Layout) *Calculator { return &Calculator{layout: l} }

// memo keeps the last results of a pure function. Pools alternate between few
// keys, so few are kept.
type memo[K comparable, V any] struct{ results map[K]V }

func (m *memo[K, V]) get(key K, work func() V) V {
	if v, ok := m.results[key]; ok {
		return v
	}
	const most = 8
	if m.results == nil || len(m.results) >= most {
		m.results = make(map[K]V, most)
	}
	v := work()
	m.results[key] = v
	return v
}

// fillResult is what filling all devices with one kind of chunk gives.
type fillResult struct {
	data   uint64
	unused []uint64 // of each device of the layout
}

type usableKey struct {
	data, metadata, system request
	metadataUsed           uint64
}

type balanceKey struct {
	data, metadata, system request
	dataUsed, metadataRoom uint64
}

// Report works out the report of the pool.
func (c *Calculator) Report(p *btrfs.Pool) (*Report, error) {
	l := c.layout
	s, err := newState(p, l)
	if err != nil {
		return nil, err
	}
	r := &Report{
		Exact:           l.Exact,
		DataProfile:     s.data.profile,
		MetadataProfile: s.metadata.profile,
		SystemProfile:   s.system.profile,
	}
	data := c.fill(s.data.request())
	r.Free = s.data.slack() + data.data
	r.Free -= min(r.Free, s.data.pending)
	r.Stranded = data.unused
	r.MetadataFree = s.metadataFree(c)
	r.FreeExpected = min(s.freeExpected(), r.Free)

	// The layout from empty and that after a balance change with what is
	// used only by whole chunks: a coarse figure is as good.
	s.reserve = roundUp(s.reserve)
	for _, sp := range s.spaces() {
		sp.used, sp.usedThere = roundUp(sp.used), roundUp(sp.usedThere)
	}
	usable := c.usables.get(usableKey{s.data.request(), s.metadata.request(), s.system.request(), s.metadata.used}, s.usable)
	balanced := c.balanced(s)
	used := dataUsed(p)
	r.Usable = max(usable.data, used)
	r.FreeAfterBalance = max(balanced, used) - used
	r.FreeAfterBalance -= min(r.FreeAfterBalance, s.data.pending)
	stranded := sum(r.Stranded)
	r.StrandedMismatch = min(sum(usable.unused), stranded)
	r.StrandedImbalance = stranded - r.StrandedMismatch
	return r, nil
}

// balanced remembers the outcome of a balance where all that it depends on is
// in the key: not where a type has several profiles, each with its own use.
func (c *Calculator) balanced(s *state) uint64 {
	for _, sp := range s.spaces() {
		if len(sp.profiles) > 1 {
			return s.balanced()
		}
	}
	key := balanceKey{s.data.request(), s.metadata.request(), s.system.request(), s.data.usedThere, s.room(&s.metadata)}
	return c.balances.get(key, s.balanced)
}

func dataUsed(p *btrfs.Pool) uint64 {
	if mixed := p.Space(btrfs.Mixed); mixed != nil {
		return mixed.Used
	}
	return p.Space(btrfs.Data).Used
}

func (c *Calculator) fill(r request) fillResult {
	return c.fills.get(r, func() fillResult {
		a := c.layout.allocator()
		made := a.fill(r, math.MaxUint64)
		return fillResult{made.data(), a.unused(len(c.layout.Devices))}
	})
}

func sum(values []uint64) uint64 {
	var total uint64
	for _, v := range values {
		total += v
	}
	return total
}

// space is the accounting of one block group type in a simulation.
type space struct {
	blockGroupType btrfs.BlockGroupType
	profile        btrfs.Profile // of the next chunk
	chunkSize      uint64
	total          uint64 // of the block groups that the next write can use
	usedThere      uint64 // in those
	used           uint64 // in all
	profiles       []btrfs.ProfileSpace
	readOnly       uint64
	// pending is what writers have reserved: not used yet, and not free.
	pending uint64
}

// slack is what existing block groups still take.
func (s *space) slack() uint64 {
	return s.total - min(s.total, s.usedThere+s.readOnly)
}

func (s *space) request() request {
	if s.profile == 0 {
		return request{} // the pool has no such block groups
	}
	return newRequest(s.blockGroupType, s.profile, s.chunkSize)
}

// state is a pool as the simulations see it.
type state struct {
	layout                 *Layout
	data, metadata, system space
	mixed                  bool
	reserve                uint64  // global reserve
	ratio                  float64 // metadata for each byte of data
}

func newState(p *btrfs.Pool, l *Layout) (*state, error) {
	s := &state{layout: l, reserve: p.GlobalReserve.Size.Value}
	data, metadata, system := p.Space(btrfs.Data), p.Space(btrfs.Metadata), p.Space(btrfs.System)
	if mixed := p.Space(btrfs.Mixed); mixed != nil {
		data, metadata, s.mixed = mixed, nil, true
		if mixed.MayUse.Known {
			s.reserve = 0 // it is part of what is reserved in the block groups of data
		}
	}
	if data == nil || metadata == nil && !s.mixed {
		return nil, fmt.Errorf("pool %s: the space accounting of data or metadata is unknown", p.UUID)
	}
	for i := range p.Devices {
		if d := &p.Devices[i]; !d.Size.Known && !d.Missing.Value && !d.ReplaceTarget {
			return nil, fmt.Errorf("pool %s: the size of device %d is unknown", p.UUID, d.ID)
		}
	}
	for _, sp := range p.Spaces {
		for _, profile := range sp.Profiles {
			if profile.Total == 0 && len(sp.Profiles) > 1 {
				return nil, fmt.Errorf("pool %s: the size of %s block groups in %s is unknown", p.UUID, sp.Type, profile.Profile)
			}
		}
	}
	devices, writeable := 0, uint64(0)
	for i := range l.Devices {
		if l.Devices[i].Usable {
			devices++
			writeable += l.Devices[i].Size
		}
	}
	s.data = newSpace(data, p.ConvertData, devices, 10*gib)
	metadataChunk := uint64(256 * mib)
	if writeable > 50*gib {
		metadataChunk = 1 * gib
	}
	if metadata != nil {
		s.metadata = newSpace(metadata, p.ConvertMetadata, devices, metadataChunk)
	}
	if system != nil {
		s.system = newSpace(system, p.ConvertSystem, devices, 32*mib)
	}
	s.ratio = metadataRatio(p, &s.data, &s.metadata)
	return s, nil
}

// newSpace decides on the profile of the next chunk. defaultChunkSize is what
// kernels use that have no allocation/<type>/chunk_size.
func newSpace(from *btrfs.Space, target btrfs.Opt[btrfs.Profile], devices int, defaultChunkSize uint64) space {
	s := space{
		blockGroupType: from.Type,
		chunkSize:      defaultChunkSize,
		used:           from.Used,
		profiles:       from.Profiles,
		pending:        from.MayUse.Value + from.Reserved.Value,
		readOnly:       from.ReadOnly,
	}
	if from.ChunkSize.Known {
		s.chunkSize = from.ChunkSize.Value
	}
	if s.profile = nextProfile(from.Profiles, devices); target.Known {
		s.profile = target.Value
	}
	if s.profile == btrfs.Single || len(from.Profiles) == 1 && from.Profiles[0].Profile == s.profile {
		s.total, s.usedThere = from.Total, from.Used
		return s
	}
	for _, p := range from.Profiles {
		if p.Profile == s.profile {
			s.total, s.usedThere = p.Total, p.Used
		}
	}
	return s
}

// preference is the order in which the kernel chooses among the profiles that
// exist (btrfs_reduce_alloc_profile; raid1 before dup was measured on 6.18).
var preference = [...]btrfs.Profile{
	btrfs.RAID1C4, btrfs.RAID6, btrfs.RAID1C3, btrfs.RAID5, btrfs.RAID10, btrfs.RAID1, btrfs.DUP, btrfs.RAID0,
}

// nextProfile returns the profile of the next chunk of a type that has block
// groups of the given profiles, on a pool with that many writeable devices.
func nextProfile(existing []btrfs.ProfileSpace, devices int) btrfs.Profile {
	for _, want := range preference {
		for _, have := range existing {
			if have.Profile == want && devices >= want.Attributes().DevsMin {
				return want
			}
		}
	}
	return btrfs.Single
}

// metadataFree is the room for metadata in existing and possible chunks.
func (s *state) metadataFree(c *Calculator) uint64 {
	room := &s.metadata
	if s.mixed {
		room = &s.data
	}
	if room.profile == 0 {
		return 0
	}
	free := room.slack() + c.fill(room.request()).data
	return free - min(free, s.reserve+room.pending)
}

// usable lays the pool out from empty: the system chunk, metadata chunks for
// the metadata there is, and data in all the rest. It returns the bytes of
// data and what stays unused of each device.
func (s *state) usable() fillResult {
	a := s.layout.emptyAllocator()
	if s.system.profile != 0 {
		a.fill(s.system.request(), 1)
	}
	if s.metadata.profile != 0 {
		for size := uint64(0); size == 0 || s.metadata.used >= metadataDue(size); {
			made := a.fill(s.metadata.request(), 1)
			if made.chunks == 0 {
				break
			}
			size += made.data()
		}
	}
	made := a.fill(s.data.request(), math.MaxUint64)
	return fillResult{made.data(), a.unused(len(s.layout.Devices))}
}
