package capacity

import (
	"math"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

const (
	// Metadata that each byte of file data takes at the least: its checksum,
	// and for each extent of at most 128 MiB an extent item and a file extent
	// item of 53 bytes each with their item headers of 25.
	largestExtent = 128 * mib
	extentItems   = 2 * (53 + 25)

	// maxGlobalReserve is where the global reserve stops growing
	// (btrfs_update_global_block_rsv in fs/btrfs/block-rsv.c).
	maxGlobalReserve = 512 * mib

	// pressure is the metadata that writers typically hold reserved for what
	// they have not done yet. Where it does not fit beside the metadata there
	// is, the kernel looks for a new chunk. It comes from the writers and
	// cannot be known ahead: measured on 6.18 it was up to 130 MiB with files
	// of 4 KiB, and from 4 MiB on with inline files.
	pressure = 32 * mib
	// transaction is what one that makes a file reserves while it runs, most
	// of which it gives back: 2 nodes on each of 8 levels for a dozen items
	// (btrfs_calc_insert_metadata_size in fs/btrfs/fs.h).
	transaction = 4 * mib
)

// metadataDue returns how much metadata block groups of the given size hold
// when the kernel makes another one: on a reservation that does not fit any
// more, but not before they are 80 % full (should_alloc_chunk in
// fs/btrfs/block-group.c).
func metadataDue(total uint64) uint64 {
	byShare := total / 100 * 80
	return max(byShare-min(byShare, 2*mib), total-min(total, pressure))
}

// checksumSizes are the bytes of a checksum for each sector.
func checksumSize(name string) uint64 {
	switch name {
	case "xxhash64":
		return 8
	case "sha256", "blake2b":
		return 32
	}
	return 4
}

// metadataRatio returns the metadata that each byte of file data brings along:
// as much as it has now, and at least what large files take.
func metadataRatio(p *btrfs.Pool, data, metadata *space) float64 {
	sector := uint64(4 * kib)
	if v, ok := p.SectorSize.Get(); ok && v > 0 {
		sector = v
	}
	least := float64(checksumSize(p.Checksum.Value))/float64(sector) + float64(extentItems)/largestExtent
	if data.used == 0 {
		return least
	}
	return max(least, float64(metadata.used)/float64(data.used))
}

// freeExpected plays data and metadata growing side by side: each takes new
// chunks when the kernel would, until one of the two finds no room.
func (s *state) freeExpected() uint64 {
	a := s.layout.allocator()
	if s.mixed || s.metadata.profile == 0 {
		// One kind of block group holds both.
		room := s.data.slack() + a.fill(s.data.request(), math.MaxUint64).data()
		room -= min(room, s.reserve+s.data.pending)
		return uint64(float64(room) / (1 + s.ratio))
	}
	var (
		dataRequest, metadataRequest = s.data.request(), s.metadata.request()

		data         float64 // bytes of data written so far
		room         = float64(s.data.slack()) - float64(s.data.pending)
		used         = float64(s.metadata.usedThere + s.metadata.readOnly)
		total        = float64(s.metadata.total)
		metadataFull = false
		dataFull     = false
	)
	// The reserve is the size of the trees that describe extents, so it grows
	// with the metadata.
	reserve := func() float64 {
		return max(float64(s.reserve), min(float64(s.reserve)*used/max(float64(s.metadata.used), 1), maxGlobalReserve))
	}
	for {
		for !metadataFull && used >= float64(metadataDue(uint64(total))) {
			made := a.fill(metadataRequest, 1)
			total += float64(made.data())
			metadataFull = made.chunks == 0
		}
		// How much data brings the metadata to its next chunk, or to its end.
		limit := float64(metadataDue(uint64(total)))
		if metadataFull {
			limit = total - reserve() - transaction
		}
		next := max(limit-used, 0) / s.ratio
		if next > room && !dataFull {
			made := a.fill(dataRequest, uint64(min(next-room, math.MaxInt64))+1)
			room += float64(made.data())
			dataFull = made.chunks == 0
			continue
		}
		if dataFull && room <= 0 {
			return uint64(data)
		}
		step := min(next, room)
		data += step
		room -= step
		used += step * s.ratio
		if metadataFull && next <= step {
			return uint64(data)
		}
		if !metadataFull && step < 1 && used < float64(metadataDue(uint64(total))) {
			used = float64(metadataDue(uint64(total))) // rounding: the chunk is due
		}
	}
}
