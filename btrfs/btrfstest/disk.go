//go:build linux

package btrfstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

// Disk is a sparse image file on a loop device.
type Disk struct {
	// Image is the path of the file that holds the disk's bytes: what is
	// written there is what the disk reads.
	Image string
	// Loop is the path of the block device, like /dev/loop3, and empty while
	// the disk is detached.
	Loop string
	// Size is the size of the block device in bytes. A filesystem may use
	// less of it, see Pool.ResizeDisk.
	Size int64
	// DevID is the device id in the pool; 0 while it belongs to none.
	DevID uint64

	backing  string // what the loop device is attached to: Image, or its face in a FaultDir
	directIO bool
}

// DiskOptions describes a disk to make.
type DiskOptions struct {
	Size int64 // bytes
	// DirectIO makes the loop device bypass the page cache of the image.
	DirectIO bool
}

// NewDisk makes an empty disk that belongs to no pool yet.
func (r *Rig) NewDisk(options DiskOptions) (*Disk, error) {
	return newDisk(r.newPath("images", "disk"), options)
}

func newDisk(image string, options DiskOptions) (*Disk, error) {
	if err := makeSparse(image, options.Size); err != nil {
		return nil, err
	}
	disk := &Disk{Image: image, Size: options.Size, backing: image, directIO: options.DirectIO}
	if err := disk.attach(); err != nil {
		return nil, errors.Join(err, os.Remove(image))
	}
	return disk, nil
}

func makeSparse(path string, size int64) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	return errors.Join(file.Truncate(size), file.Close())
}

func (d *Disk) attach() error {
	device, err := attachLoop(d.backing, d.directIO)
	if err != nil {
		return err
	}
	d.Loop = device
	return nil
}

func (d *Disk) detach() error {
	if d.Loop == "" {
		return nil
	}
	if err := detachLoop(loop{device: d.Loop, backing: d.backing}, releasePatience); err != nil {
		return err
	}
	d.Loop = ""
	return nil
}

// discard detaches the disk and deletes its image.
func (d *Disk) discard() error {
	if err := d.detach(); err != nil {
		return err
	}
	d.DevID = 0
	return os.Remove(d.Image)
}

// grow makes the block device at least size bytes large.
func (d *Disk) grow(size int64) error {
	if size <= d.Size {
		return nil
	}
	if err := os.Truncate(d.Image, size); err != nil {
		return fmt.Errorf("grow disk %d: %w", d.DevID, err)
	}
	// The loop device takes the size that the kernel knows. It does not ask a
	// FUSE server by itself.
	if _, err := os.Stat(d.backing); err != nil {
		return fmt.Errorf("grow disk %d: %w", d.DevID, err)
	}
	if err := refreshLoopSize(d.Loop); err != nil {
		return fmt.Errorf("grow disk %d: %w", d.DevID, err)
	}
	d.Size = size
	return nil
}

// superblock is what the rig reads from the first superblock of a disk.
type superblock struct {
	fsid       [16]byte
	devID      uint64
	totalBytes uint64 // of this device, as far as the filesystem uses it
	bytesUsed  uint64 // allocated to block groups on this device
}

// readSuperblock reads the superblock from a disk's image, which works
// mounted or not. The layout is struct btrfs_super_block in the kernel's
// include/uapi/linux/btrfs_tree.h.
func readSuperblock(image string) (superblock, error) {
	const (
		position        = 64 << 10 // BTRFS_SUPER_INFO_OFFSET
		fsidOffset      = 32
		magicOffset     = 64
		devItemOffset   = 201 // struct btrfs_dev_item: devid, total_bytes, bytes_used
		bytesOfInterest = devItemOffset + 24
	)
	file, err := os.Open(image)
	if err != nil {
		return superblock{}, err
	}
	defer file.Close()
	block := make([]byte, bytesOfInterest)
	if _, err := file.ReadAt(block, position); err != nil {
		return superblock{}, fmt.Errorf("read superblock: %w", err)
	}
	if string(block[magicOffset:magicOffset+8]) != "_BHRfS_M" {
		return superblock{}, fmt.Errorf("read superblock of %s: not btrfs", image)
	}
	return superblock{
		fsid:       [16]byte(block[fsidOffset:]),
		devID:      binary.LittleEndian.Uint64(block[devItemOffset:]),
		totalBytes: binary.LittleEndian.Uint64(block[devItemOffset+8:]),
		bytesUsed:  binary.LittleEndian.Uint64(block[devItemOffset+16:]),
	}, nil
}
