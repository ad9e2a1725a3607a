package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	treeExtent   = 2
	treeChecksum = 7

	itemExtent       = 168 // offset: bytes
	itemMetadata     = 169 // offset: level
	extentHeaderSize = 24  // refs, generation, flags
	extentTreeBlock  = 1 << 1

	// objectChecksum is BTRFS_EXTENT_CSUM_OBJECTID, -10.
	objectChecksum = ^uint64(0) - 9
	itemChecksum   = 128 // BTRFS_EXTENT_CSUM_KEY

	// maxLeaf is more than an item of a tree holds: the largest node size.
	maxLeaf = 64 << 10
)

// SectorSize returns the bytes of data that one checksum covers.
func (f *Filesystem) SectorSize() uint64 { return uint64(f.info.sectorsize) }

// ChecksumType returns the name of the checksum algorithm as mkfs.btrfs
// --csum takes it, and the size of a checksum in bytes. ok is false before
// kernel 5.9 and for an algorithm that is not known.
func (f *Filesystem) ChecksumType() (name string, size int, ok bool) {
	c := f.checksum()
	return c.Value, int(f.info.csumSize), c.Known
}

// WalkChecksums calls fn for each run of checksums of the data in [start, end),
// in order of logical address: sums are those of as many sectors that follow
// each other from logical on, and are valid until fn returns, which must not use
// f. Data without checksums (nodatacow, preallocated) and metadata are passed
// over. Needs CAP_SYS_ADMIN.
func (f *Filesystem) WalkChecksums(start, end uint64, fn func(logical uint64, sums []byte) error) error {
	if err := f.walkChecksums(start, end, fn); err != nil {
		return fmt.Errorf("%s: walk the checksums of [%d, %d): %w", f.path, start, end, err)
	}
	return nil
}

func (f *Filesystem) walkChecksums(start, end uint64, fn func(logical uint64, sums []byte) error) error {
	sector, size := f.SectorSize(), uint64(f.info.csumSize)
	if sector == 0 || size == 0 {
		return errors.New("the kernel does not tell the size of a checksum")
	}
	// An item that begins before start may reach into the range.
	from := start - min(start, maxLeaf/size*sector)
	err := f.walkTree(treeRange{
		tree: treeChecksum, minObject: objectChecksum, maxObject: objectChecksum,
		minType: itemChecksum, maxType: itemChecksum, minOffset: from,
	}, func(it *treeItem) error {
		if it.itemType != itemChecksum || it.objectID != objectChecksum {
			return nil
		}
		if it.offset >= end {
			return errStopWalk
		}
		if uint64(len(it.data))%size != 0 {
			return fmt.Errorf("the item at %d has %d bytes, no multiple of %d", it.offset, len(it.data), size)
		}
		logical, sums := it.offset, it.data
		if logical < start {
			skip := min((start-logical+sector-1)/sector, uint64(len(sums))/size)
			logical, sums = logical+skip*sector, sums[skip*size:]
		}
		if logical >= end {
			return nil
		}
		if n := (end - logical + sector - 1) / sector; uint64(len(sums))/size > n {
			sums = sums[:n*size]
		}
		if len(sums) == 0 {
			return nil
		}
		return fn(logical, sums)
	})
	if errors.Is(err, errStopWalk) {
		return nil
	}
	return err
}

// NodeSize returns the bytes of a tree block.
func (f *Filesystem) NodeSize() uint64 { return uint64(f.info.nodesize) }

// WalkTreeBlocks calls fn for each tree block in [start, end), in order of
// logical address, with the generation in which it was made. fn must not use
// f. Needs CAP_SYS_ADMIN.
func (f *Filesystem) WalkTreeBlocks(start, end uint64, fn func(logical, generation uint64) error) error {
	if start >= end {
		return nil
	}
	err := f.walkTree(treeRange{
		tree: treeExtent, minObject: start, maxObject: end - 1, minType: itemExtent, maxType: itemMetadata,
	}, func(it *treeItem) error {
		if it.itemType != itemExtent && it.itemType != itemMetadata {
			return nil
		}
		if len(it.data) < extentHeaderSize {
			return fmt.Errorf("extent %d: item of %d bytes is too short", it.objectID, len(it.data))
		}
		if binary.LittleEndian.Uint64(it.data[16:])&extentTreeBlock == 0 {
			return nil
		}
		return fn(it.objectID, binary.LittleEndian.Uint64(it.data[8:]))
	})
	if err != nil {
		return fmt.Errorf("%s: walk the tree blocks in [%d, %d): %w", f.path, start, end, err)
	}
	return nil
}
