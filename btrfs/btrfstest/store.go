//go:build linux

package btrfstest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Store is a small filesystem in memory that holds disk images, as the pool of a
// host holds thinly provisioned disks: when it is full, the disks refuse to write
// where they have not written before.
type Store struct {
	rig   *Rig
	point string
}

// NewStore mounts a store of so many bytes. The rig unmounts it.
func (r *Rig) NewStore(size int64) (*Store, error) {
	s := &Store{rig: r, point: r.newPath("stores", "store")}
	if err := os.Mkdir(s.point, 0o700); err != nil {
		return nil, fmt.Errorf("make store: %w", err)
	}
	if err := unix.Mount("btrfstest", s.point, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d", size)); err != nil {
		return nil, fmt.Errorf("mount store %s: %w", s.point, err)
	}
	return s, nil
}

// NewDisk makes a disk whose image lies in the store. It may be larger than that.
func (s *Store) NewDisk(size int64) (*Disk, error) {
	return newDisk(filepath.Join(s.point, filepath.Base(s.rig.newPath("stores", "disk"))), DiskOptions{Size: size})
}

func (s *Store) ballast() string { return filepath.Join(s.point, "ballast") }

// Fill takes all the room that is left.
func (s *Store) Fill() error {
	file, err := os.OpenFile(s.ballast(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("fill store: %w", err)
	}
	page := make([]byte, os.Getpagesize())
	for err == nil {
		_, err = file.Write(page)
	}
	if errors.Is(err, unix.ENOSPC) {
		err = nil
	}
	return errors.Join(err, file.Close())
}

// Drain gives back what Fill took.
func (s *Store) Drain() error { return os.Remove(s.ballast()) }

// Forget has a disk of a store lose what it holds in a range, which then reads as
// zeros and takes no room.
func (d *Disk) Forget(offset, length int64) error {
	image, err := os.OpenFile(d.Image, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	err = unix.Fallocate(int(image.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	if err != nil {
		err = fmt.Errorf("forget %d bytes at %d of disk %d: %w", length, offset, d.DevID, err)
	}
	return errors.Join(err, image.Close())
}
