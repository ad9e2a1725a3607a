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
	// FreeAfterBalance is what of Usable is not used yet.
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
	a := l.allocator()
	r.Free = s.data.slack() + a.fill(s.data.request(), math.MaxUint64).data()
	r.Stranded = a.unused(len(l.Devices))
	r.MetadataFree = s.metadataFree()
	r.FreeExpected = s.freeExpected(r.Free)

	empty, mismatch := s.usable()
	r.Usable = max(empty, s.data.used)
	r.FreeAfterBalance = r.Usable - s.data.used
	stranded := sum(r.Stranded)
	r.StrandedMismatch = min(sum(mismatch), stranded)
	r.StrandedImbalance = stranded - r.StrandedMismatch
	return r, nil
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
	allTotal       uint64
	readOnly       uint64
}

// slack is what existing block groups still take.
func (s *space) slack() uint64 {
	return s.total - min(s.total, s.usedThere+s.readOnly)
}

func (s *space) request() request { return newRequest(s.blockGroupType, s.profile, s.chunkSize) }

// state is a pool as the simulations see it.
type state struct {
	layout                 *Layout
	data, metadata, system space
	mixed                  bool
	reserve                uint64 // global reserve
	nodeSize               uint64
}

func newState(p *btrfs.Pool, l *Layout) (*state, error) {
	s := &state{layout: l, reserve: p.GlobalReserve.Size.Value, nodeSize: p.NodeSize.Value}
	data, metadata, system := p.Space(btrfs.Data), p.Space(btrfs.Metadata), p.Space(btrfs.System)
	if mixed := p.Space(btrfs.Mixed); mixed != nil {
		data, metadata, s.mixed = mixed, nil, true
	}
	if data == nil {
		return nil, fmt.Errorf("pool %s: the space accounting of data is unknown", p.UUID)
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
	return s, nil
}

// newSpace decides on the profile of the next chunk. defaultChunkSize is what
// kernels use that have no allocation/<type>/chunk_size.
func newSpace(from *btrfs.Space, target btrfs.Opt[btrfs.Profile], devices int, defaultChunkSize uint64) space {
	s := space{
		blockGroupType: from.Type,
		chunkSize:      defaultChunkSize,
		used:           from.Used,
		allTotal:       from.Total,
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
// exist (btrfs_reduce_alloc_profile).
var preference = [...]btrfs.Profile{
	btrfs.RAID1C4, btrfs.RAID6, btrfs.RAID1C3, btrfs.RAID5, btrfs.RAID10, btrfs.DUP, btrfs.RAID1, btrfs.RAID0,
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
func (s *state) metadataFree() uint64 {
	if s.mixed {
		free := s.data.slack() + s.layout.allocator().fill(s.data.request(), math.MaxUint64).data()
		return free - min(free, s.reserve)
	}
	if s.metadata.profile == 0 {
		return 0
	}
	free := s.metadata.slack() + s.layout.allocator().fill(s.metadata.request(), math.MaxUint64).data()
	return free - min(free, s.reserve)
}

// usable lays the pool out from empty: the system chunk, metadata chunks for
// the metadata there is, and data in all the rest. It returns the bytes of
// data and what stays unused of each device.
func (s *state) usable() (uint64, []uint64) {
	a := s.layout.emptyAllocator()
	if s.system.profile != 0 {
		a.fill(s.system.request(), 1)
	}
	if s.metadata.profile != 0 {
		a.fill(s.metadata.request(), metadataSize(s.metadata.used))
	}
	data := a.fill(s.data.request(), math.MaxUint64).data()
	return data, a.unused(len(s.layout.Devices))
}

// metadataSize returns how large the block groups of the given metadata are at
// least: the kernel makes another chunk before they are 80 % full
// (should_alloc_chunk in fs/btrfs/block-group.c).
func metadataSize(used uint64) uint64 { return (used+2*mib)/80*100 + 1 }

func (s *state) freeExpected(free uint64) uint64 {
	return free // replaced below
}
