//go:build linux

package btrfstest

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

const (
	// stripeLength is how many bytes of a striped chunk lie on one device
	// before the next one's turn comes (BTRFS_STRIPE_LEN, fs/btrfs/volumes.h).
	stripeLength = 64 << 10

	// sectorSize is the unit in which data is checked and repaired. Pools with
	// larger sectors than the common 4 KiB are not corrupted here.
	sectorSize = 4096
)

// AllMirrors stands for every copy of the data.
const AllMirrors = -1

// Location is where a copy of a piece of data lies.
type Location struct {
	DevID    uint64
	Physical int64 // bytes from the start of the device
}

// CorruptFile changes the sector that holds the byte at offset of a file, on
// the copy with the number mirror counted from 0, or on all copies with
// AllMirrors. The parity of raid5 and raid6 is left alone. Caches are dropped,
// so that the next read finds out. The path is relative to the top of the pool.
func (p *Pool) CorruptFile(path string, offset int64, mirror int) error {
	locations, err := p.Physical(path, offset-offset%sectorSize)
	if err != nil {
		return err
	}
	if mirror >= len(locations) {
		return fmt.Errorf("corrupt %s: mirror %d of %d", path, mirror, len(locations))
	}
	if mirror != AllMirrors {
		locations = locations[mirror : mirror+1]
	}
	for _, location := range locations {
		if err := p.CorruptPhysical(location, sectorSize); err != nil {
			return fmt.Errorf("corrupt %s: %w", path, err)
		}
	}
	return p.DropCaches()
}

// CorruptPhysical changes each of length bytes on a device, mounted or not. It
// drops no caches.
func (p *Pool) CorruptPhysical(at Location, length int64) error {
	disk, err := p.findDisk(at.DevID)
	if err != nil {
		return err
	}
	image, err := os.OpenFile(disk.Image, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("corrupt disk %d: %w", at.DevID, err)
	}
	defer image.Close()
	data := make([]byte, length)
	if _, err := image.ReadAt(data, at.Physical); err != nil {
		return fmt.Errorf("corrupt disk %d at %d: %w", at.DevID, at.Physical, err)
	}
	for i := range data {
		data[i] += 101 // never the byte it was, and not again when done twice
	}
	if _, err := image.WriteAt(data, at.Physical); err != nil {
		return fmt.Errorf("corrupt disk %d at %d: %w", at.DevID, at.Physical, err)
	}
	// A loop device with direct I/O does not read the page cache of the image.
	if err := image.Sync(); err != nil {
		return fmt.Errorf("corrupt disk %d at %d: %w", at.DevID, at.Physical, err)
	}
	return nil
}

// Physical finds all copies of the byte at offset of a file, by mirror. The
// path is relative to the top of the mounted pool. It fails where the file has
// a hole or an extent inside the metadata.
func (p *Pool) Physical(path string, offset int64) ([]Location, error) {
	locations, err := p.physical(p.Path(path), offset)
	if err != nil {
		return nil, fmt.Errorf("find byte %d of %s on the disks: %w", offset, path, err)
	}
	return locations, nil
}

func (p *Pool) physical(path string, offset int64) ([]Location, error) {
	logical, err := logicalAddress(path, offset)
	if err != nil {
		return nil, err
	}
	filesystem, err := btrfs.OpenFilesystem(p.Mountpoint)
	if err != nil {
		return nil, err
	}
	defer filesystem.Close()

	found := errors.New("found")
	var locations []Location
	_, err = filesystem.WalkChunks(func(c *btrfs.Chunk) error {
		if logical < c.Logical || logical-c.Logical >= c.Length {
			return nil
		}
		locations = mapChunk(c, logical-c.Logical)
		return found
	})
	if errors.Is(err, found) {
		return locations, nil
	}
	if err == nil {
		err = fmt.Errorf("no chunk has logical address %d", logical)
	}
	return nil, err
}

// mapChunk finds the copies of the byte at offset of a chunk, as
// btrfs_map_block in the kernel's fs/btrfs/volumes.c does.
func mapChunk(c *btrfs.Chunk, offset uint64) []Location {
	profile := c.Profile.Attributes()
	width := uint64(len(c.Stripes))
	number, within := offset/stripeLength, offset%stripeLength

	at := func(stripe, row, within uint64) Location {
		s := c.Stripes[stripe]
		return Location{DevID: s.DevID, Physical: int64(s.Offset + row*stripeLength + within)}
	}
	switch {
	case c.Profile == btrfs.RAID0:
		return []Location{at(number%width, number/width, within)}
	case c.Profile == btrfs.RAID10:
		copies := uint64(profile.SubStripes)
		groups := width / copies
		first, row := number%groups*copies, number/groups
		var locations []Location
		for i := range copies {
			locations = append(locations, at(first+i, row, within))
		}
		return locations
	case profile.Parity > 0:
		// The stripes of each row begin one device further on.
		data := width - uint64(profile.Parity)
		row := number / data
		return []Location{at((number%data+row)%width, row, within)}
	default: // each stripe is a whole copy
		var locations []Location
		for i := range width {
			locations = append(locations, at(i, number, within))
		}
		return locations
	}
}

// FS_IOC_FIEMAP of include/uapi/linux/fs.h and the structs of fiemap.h.
const (
	iocFiemap          = 0xc020660b
	fiemapSync         = 0x1   // FIEMAP_FLAG_SYNC
	fiemapEncoded      = 0x8   // FIEMAP_EXTENT_ENCODED: compressed
	fiemapInline       = 0x200 // FIEMAP_EXTENT_DATA_INLINE
	fiemapUnknownPlace = 0x2   // FIEMAP_EXTENT_UNKNOWN
)

type fiemapOne struct {
	start, length       uint64
	flags, mappedExtent uint32
	extentCount         uint32
	_                   uint32
	extent              fiemapExtent
}

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

// logicalAddress is the address in the pool's logical address space of the
// byte at offset of a file: what btrfs reports as the physical address of
// FIEMAP (fs/btrfs/fiemap.c). In a compressed extent it is where the extent
// begins.
func logicalAddress(path string, offset int64) (uint64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	query := fiemapOne{start: uint64(offset), length: 1, flags: fiemapSync, extentCount: 1}
	if err := ioctl(int(file.Fd()), iocFiemap, unsafe.Pointer(&query)); err != nil {
		return 0, fmt.Errorf("FIEMAP: %w", err)
	}
	extent := query.extent
	switch {
	case query.mappedExtent == 0:
		return 0, fmt.Errorf("the file has a hole there: %w", unix.ENXIO)
	case extent.flags&(fiemapInline|fiemapUnknownPlace) != 0:
		return 0, fmt.Errorf("the data has no place of its own (FIEMAP flags %#x)", extent.flags)
	case extent.flags&fiemapEncoded != 0:
		return extent.physical, nil
	}
	return extent.physical + uint64(offset) - extent.logical, nil
}
