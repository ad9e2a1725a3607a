package damage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"unsafe"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/crypto/blake2b"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// BadBlock is a sector of data or a tree block that is not what its checksum
// says.
type BadBlock struct {
	Logical, Physical uint64
	Length            uint64 // that of a sector or of a tree block
	Metadata          bool
	Unreadable        bool // the device gave an error
}

// Verify reads what a device has of a chunk and returns the blocks that are
// bad, in order of logical address. A chunk of profile dup has two copies on
// one device: both are read. It writes nothing, so that what a scrub repairs
// has to be looked for before.
//
// Data is compared with its checksums; data without checksums is not read.
// Of metadata those tree blocks are checked that a committed transaction wrote.
// The filesystem may be in use: what changes meanwhile is no error.
//
// The device is read past the page cache, at full speed. Needs CAP_SYS_ADMIN.
// ErrParity says that the chunk is of raid5 or raid6.
func Verify(ctx context.Context, f *btrfs.Filesystem, chunk *btrfs.Chunk, devid uint64, devicePath string) ([]BadBlock, error) {
	return VerifyRange(ctx, f, chunk, devid, devicePath, chunk.Logical, chunk.Logical+chunk.Length)
}

// VerifyRange is Verify for the part of a chunk with the logical addresses from
// start to before end.
func VerifyRange(ctx context.Context, f *btrfs.Filesystem, chunk *btrfs.Chunk, devid uint64, devicePath string, start, end uint64) ([]BadBlock, error) {
	bad, err := verifyRange(ctx, f, chunk, devid, devicePath, max(start, chunk.Logical), min(end, chunk.Logical+chunk.Length))
	if err != nil {
		return nil, fmt.Errorf("verify chunk %d on device %d (%s): %w", chunk.Logical, devid, devicePath, err)
	}
	return bad, nil
}

func verifyRange(ctx context.Context, f *btrfs.Filesystem, chunk *btrfs.Chunk, devid uint64, devicePath string, start, end uint64) ([]BadBlock, error) {
	if chunk.Profile.Attributes().Parity > 0 {
		return nil, ErrParity
	}
	sums, err := checksumsOf(f)
	if err != nil {
		return nil, err
	}
	d, err := openDevice(devicePath, devid, f.UUID())
	if err != nil {
		return nil, err
	}
	defer d.close()
	v := &verifier{ctx: ctx, filesystem: f, chunk: chunk, device: d, sums: sums}
	if chunk.Type == btrfs.Data || chunk.Type == btrfs.Mixed {
		if err := v.data(start, end); err != nil {
			return nil, err
		}
	}
	if chunk.Type != btrfs.Data {
		if err := v.metadata(start, end); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(v.bad, func(a, b BadBlock) int {
		if a.Logical != b.Logical {
			return compare(a.Logical, b.Logical)
		}
		return compare(a.Physical, b.Physical)
	})
	return v.bad, nil
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// checksums is the checksum algorithm of a filesystem.
type checksums struct {
	size int
	of   func(data []byte, sum []byte) []byte // appends to sum
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksumsOf(f *btrfs.Filesystem) (checksums, error) {
	name, size, ok := f.ChecksumType()
	if !ok {
		return checksums{}, errors.New("the checksum algorithm is not known")
	}
	c := checksums{size: size}
	want := 0
	switch name {
	case "crc32c":
		want, c.of = 4, func(data, sum []byte) []byte {
			return binary.LittleEndian.AppendUint32(sum, crc32.Checksum(data, castagnoli))
		}
	case "xxhash64":
		want, c.of = 8, func(data, sum []byte) []byte {
			return binary.LittleEndian.AppendUint64(sum, xxhash.Sum64(data))
		}
	case "sha256":
		want, c.of = sha256.Size, func(data, sum []byte) []byte {
			s := sha256.Sum256(data)
			return append(sum, s[:]...)
		}
	case "blake2b":
		want, c.of = blake2b.Size256, func(data, sum []byte) []byte {
			s := blake2b.Sum256(data)
			return append(sum, s[:]...)
		}
	}
	if size != want {
		return checksums{}, fmt.Errorf("the checksum algorithm %s with %d bytes is not known", name, size)
	}
	return c, nil
}

type verifier struct {
	ctx        context.Context
	filesystem *btrfs.Filesystem
	chunk      *btrfs.Chunk
	device     *device
	sums       checksums

	bad []BadBlock
	sum []byte // reused
}

// suspect is a block that looked bad, and the checksum or generation that it
// had when it did.
type suspect struct {
	BadBlock
	sum        []byte
	generation uint64
}

// data verifies the sectors with checksums.
func (v *verifier) data(start, end uint64) error {
	var suspects []suspect
	err := v.filesystem.WalkChecksums(start, end, func(logical uint64, sums []byte) error {
		return v.run(logical, sums, &suspects)
	})
	if err != nil {
		return err
	}
	// A sector may have been freed and written anew since its checksum was
	// read. Space is used again only when the checksum is gone: where that is
	// still the same, the data was to be what it says.
	sector := v.filesystem.SectorSize()
	for _, s := range suspects {
		same := false
		err := v.filesystem.WalkChecksums(s.Logical, s.Logical+sector, func(logical uint64, sums []byte) error {
			same = logical == s.Logical && bytes.Equal(sums, s.sum)
			return nil
		})
		if err != nil {
			return err
		}
		if same {
			v.bad = append(v.bad, s.BadBlock)
		}
	}
	return nil
}

// run verifies sectors that follow each other.
func (v *verifier) run(logical uint64, sums []byte, suspects *[]suspect) error {
	sector := v.filesystem.SectorSize()
	for len(sums) > 0 {
		if err := v.ctx.Err(); err != nil {
			return err
		}
		copies, together, err := places(v.chunk, logical)
		if err != nil {
			return err
		}
		n := min(uint64(len(sums)/v.sums.size), max(min(together, readSize)/sector, 1))
		for _, c := range copies {
			if c.devid != v.device.devid {
				continue
			}
			err := v.device.read(c.physical, n*sector, sector, func(offset uint64, data []byte, unreadable bool) {
				want := sums[offset/sector*uint64(v.sums.size):][:v.sums.size]
				if !unreadable {
					if v.sum = v.sums.of(data, v.sum[:0]); bytes.Equal(v.sum, want) {
						return
					}
				}
				*suspects = append(*suspects, suspect{
					BadBlock: BadBlock{Logical: logical + offset, Physical: c.physical + offset, Length: sector, Unreadable: unreadable},
					sum:      bytes.Clone(want),
				})
			})
			if err != nil {
				return err
			}
		}
		logical += n * sector
		sums = sums[n*uint64(v.sums.size):]
	}
	return nil
}

// metadata verifies tree blocks.
func (v *verifier) metadata(start, end uint64) error {
	type block struct{ logical, generation uint64 }
	var blocks []block
	node := v.filesystem.NodeSize()
	// A block that begins before start may reach into the range.
	from := max(v.chunk.Logical, start-min(start, node-1))
	err := v.filesystem.WalkTreeBlocks(from, end, func(logical, generation uint64) error {
		// Later ones are not on the device yet.
		if logical+node > start && generation <= v.device.generation {
			blocks = append(blocks, block{logical, generation})
		}
		return nil
	})
	if err != nil {
		return err
	}
	var suspects []suspect
	for _, b := range blocks {
		if err := v.ctx.Err(); err != nil {
			return err
		}
		copies, _, err := places(v.chunk, b.logical)
		if err != nil {
			return err
		}
		for _, c := range copies {
			if c.devid != v.device.devid {
				continue
			}
			err := v.device.read(c.physical, node, node, func(_ uint64, data []byte, unreadable bool) {
				if unreadable || !v.isTreeBlock(data, b.logical, b.generation) {
					suspects = append(suspects, suspect{
						BadBlock:   BadBlock{Logical: b.logical, Physical: c.physical, Length: node, Metadata: true, Unreadable: unreadable},
						generation: b.generation,
					})
				}
			})
			if err != nil {
				return err
			}
		}
	}
	// As with data: the block was to be there if it still is.
	for _, s := range suspects {
		same := false
		err := v.filesystem.WalkTreeBlocks(s.Logical, s.Logical+1, func(_, generation uint64) error {
			same = generation == s.generation
			return nil
		})
		if err != nil {
			return err
		}
		if same {
			v.bad = append(v.bad, s.BadBlock)
		}
	}
	return nil
}

// Layout of struct btrfs_header and struct btrfs_super_block on disk
// (include/uapi/linux/btrfs_tree.h).
const (
	checksumField = 32 // bytes that a block has for its checksum

	headerAddress    = 48
	headerGeneration = 80

	superblockOffset     = 64 << 10
	superblockSize       = 4096
	superblockFSID       = 32
	superblockMagic      = 64
	superblockGeneration = 72
	superblockDevID      = 201
)

func (v *verifier) isTreeBlock(data []byte, logical, generation uint64) bool {
	v.sum = v.sums.of(data[checksumField:], v.sum[:0])
	return bytes.Equal(v.sum, data[:v.sums.size]) &&
		binary.LittleEndian.Uint64(data[headerAddress:]) == logical &&
		binary.LittleEndian.Uint64(data[headerGeneration:]) == generation
}

// device is a block device of a filesystem, read past the page cache, in which
// nothing need be of what btrfs writes.
type device struct {
	fd         int
	devid      uint64
	generation uint64 // of the last transaction that is on it
	buffer     []byte
}

// readSize is what is read at a time.
const readSize = 1 << 20

// bufferAlignment is more than O_DIRECT asks for.
const bufferAlignment = 4096

func alignedBuffer(size int) []byte {
	b := make([]byte, size+bufferAlignment)
	skip := -uintptr(unsafe.Pointer(&b[0])) & (bufferAlignment - 1)
	return b[skip:][:size:size]
}

// openDevice opens a device and makes sure that it is the one: its path may be
// another's by now.
func openDevice(path string, devid uint64, filesystem btrfs.UUID) (*device, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	d := &device{fd: fd, devid: devid, buffer: alignedBuffer(readSize)}
	if err := d.check(filesystem); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *device) close() { _ = unix.Close(d.fd) }

func (d *device) check(filesystem btrfs.UUID) error {
	super := d.buffer[:superblockSize]
	if err := d.pread(super, superblockOffset); err != nil {
		return fmt.Errorf("read the superblock: %w", err)
	}
	if string(super[superblockMagic:][:8]) != "_BHRfS_M" || btrfs.UUID(super[superblockFSID:][:16]) != filesystem {
		return fmt.Errorf("it is not of filesystem %s", filesystem)
	}
	if id := binary.LittleEndian.Uint64(super[superblockDevID:]); id != d.devid {
		return fmt.Errorf("it is device %d", id)
	}
	d.generation = binary.LittleEndian.Uint64(super[superblockGeneration:])
	return nil
}

// errShort is a read beyond the end of the device.
var errShort = errors.New("the device ends there")

func (d *device) pread(data []byte, offset uint64) error {
	for {
		n, err := unix.Pread(d.fd, data, int64(offset))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n < len(data):
			return errShort
		}
		return nil
	}
}

// unreadable tells an error of the medium, for which another sector may be
// good, from one of the device (blk_errors in block/blk-core.c).
func unreadable(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.EILSEQ) || errors.Is(err, unix.ENODATA) || errors.Is(err, errShort)
}

// read calls fn for each block of length bytes. Where the device gives an
// error for all it is asked for each block.
func (d *device) read(physical, length, block uint64, fn func(offset uint64, data []byte, unreadable bool)) error {
	data := d.buffer[:length]
	err := d.pread(data, physical)
	if err != nil && !unreadable(err) {
		return fmt.Errorf("read at %d: %w", physical, err)
	}
	failed := err != nil
	for offset := uint64(0); offset < length; offset += block {
		b := data[offset:][:block]
		err := error(nil)
		if failed {
			if err = d.pread(b, physical+offset); err != nil && !unreadable(err) {
				return fmt.Errorf("read at %d: %w", physical+offset, err)
			}
		}
		fn(offset, b, err != nil)
	}
	return nil
}
