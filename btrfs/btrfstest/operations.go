//go:build linux

package btrfstest

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// AddDisk makes a disk of size bytes and adds it to the mounted pool.
func (p *Pool) AddDisk(size int64) (*Disk, error) {
	disk, err := p.rig.NewDisk(DiskOptions{Size: size, DirectIO: p.directIO})
	if err != nil {
		return nil, err
	}
	if err := p.AddPreparedDisk(disk); err != nil {
		return nil, errors.Join(err, disk.discard())
	}
	return disk, nil
}

// AddPreparedDisk adds a disk of the rig that belongs to no pool yet.
func (p *Pool) AddPreparedDisk(disk *Disk) error {
	if _, err := runCommand("btrfs", "device", "add", "-f", "-K", disk.Loop, p.Mountpoint); err != nil {
		return err
	}
	// The kernel has committed the transaction: the new superblock is out.
	super, err := readSuperblock(disk.Image)
	if err != nil {
		return err
	}
	disk.DevID = super.devID
	p.Disks = append(p.Disks, disk)
	return nil
}

// RemoveDisk moves everything off a device, removes it from the mounted pool
// and deletes the disk. It also removes a missing device.
func (p *Pool) RemoveDisk(devID uint64) error {
	disk, err := p.findDisk(devID)
	if err != nil {
		return err
	}
	if _, err := runCommand("btrfs", "device", "remove", strconv.FormatUint(devID, 10), p.Mountpoint); err != nil {
		return err
	}
	p.Disks = slices.DeleteFunc(p.Disks, func(d *Disk) bool { return d == disk })
	return disk.discard()
}

// ResizeDisk makes the filesystem use newSize bytes of a device. The disk
// itself grows where it must, and never shrinks.
func (p *Pool) ResizeDisk(devID uint64, newSize int64) error {
	disk, err := p.findDisk(devID)
	if err != nil {
		return err
	}
	if err := disk.grow(newSize); err != nil {
		return err
	}
	_, err = runCommand("btrfs", "filesystem", "resize", fmt.Sprintf("%d:%d", devID, newSize), p.Mountpoint)
	return err
}

// replacement is a device replace that runs in the background.
type replacement struct {
	old, new *Disk
	done     chan error // gets one value
}

// Replace moves a device of the mounted pool to another disk of the rig, which
// must be at least as large and takes over the device id. The old disk is
// deleted. With wait false it returns at once, and WaitReplace ends it.
func (p *Pool) Replace(devID uint64, target *Disk, wait bool) error {
	old, err := p.findDisk(devID)
	if err != nil {
		return err
	}
	if p.replacing != nil {
		return fmt.Errorf("replace disk %d of pool %s: another replace has not been waited for", devID, p.UUID)
	}
	r := &replacement{old: old, new: target, done: make(chan error, 1)}
	p.replacing = r
	go func() {
		_, err := runCommand("btrfs", "replace", "start", "-B", "-f", "-K", strconv.FormatUint(devID, 10), target.Loop, p.Mountpoint)
		r.done <- err
	}()
	if wait {
		return p.WaitReplace()
	}
	return nil
}

// WaitReplace waits for the end of a Replace that runs in the background.
func (p *Pool) WaitReplace() error {
	r := p.replacing
	if r == nil {
		return nil
	}
	err := <-r.done
	p.replacing = nil
	if err != nil {
		return err
	}
	r.new.DevID = r.old.DevID
	p.Disks[slices.Index(p.Disks, r.old)] = r.new
	return r.old.discard()
}

// stopReplace cancels a Replace in the background and waits for its end. Its
// failure is then no error.
func (p *Pool) stopReplace() error {
	if p.replacing == nil {
		return nil
	}
	err := waitFor(releasePatience, func() (bool, error) {
		// The program may not have come as far as to start it yet.
		cancelOperations(p.Mountpoint)
		select {
		case <-p.replacing.done:
			return true, nil
		default:
			return false, nil
		}
	})
	if err != nil {
		return fmt.Errorf("stop replace of disk %d of pool %s: %w", p.replacing.old.DevID, p.UUID, err)
	}
	p.replacing = nil
	return nil
}

// Balance runs `btrfs balance start` with the arguments given to its end.
// Without arguments it balances everything.
func (p *Pool) Balance(args ...string) error {
	if len(args) == 0 {
		args = []string{"--full-balance"} // no ten seconds of warning
	}
	args = append(append([]string{"balance", "start"}, args...), p.Mountpoint)
	_, err := runCommand("btrfs", args...)
	return err
}

// Convert changes the profile of data, of metadata (and system) or of both;
// empty leaves it. More balance filters, such as "limit=2" or "soft", hold for
// both.
func (p *Pool) Convert(data, metadata string, filters ...string) error {
	args := []string{"-f"} // also to fewer copies
	for _, c := range []struct{ kind, profile string }{{"-d", data}, {"-m", metadata}} {
		if c.profile != "" {
			args = append(args, c.kind+strings.Join(append([]string{"convert=" + c.profile}, filters...), ","))
		}
	}
	return p.Balance(args...)
}

// Detach takes devices away, as a pulled cable does: it unmounts the pool,
// detaches the loop devices and makes the kernel forget them. The pool stays
// unmounted, see MountDegraded; the images keep their contents.
func (p *Pool) Detach(devIDs ...uint64) error {
	if err := p.Unmount(); err != nil {
		return err
	}
	for _, devID := range devIDs {
		disk, err := p.findDisk(devID)
		if err != nil {
			return err
		}
		if err := disk.detach(); err != nil {
			return fmt.Errorf("detach disk %d of pool %s: %w", devID, p.UUID, err)
		}
	}
	return nil
}

// Attach brings a detached device back. A pool that is mounted degraded goes
// on without it until it is mounted anew.
func (p *Pool) Attach(devID uint64) error {
	disk, err := p.findDisk(devID)
	if err != nil {
		return err
	}
	if disk.Loop != "" {
		return nil
	}
	if err := disk.attach(); err != nil {
		return fmt.Errorf("attach disk %d of pool %s: %w", devID, p.UUID, err)
	}
	if err := scanDevice(disk.Loop); err != nil {
		return fmt.Errorf("attach disk %d of pool %s: %w", devID, p.UUID, err)
	}
	return nil
}

// NewSubvolume makes a subvolume at a path relative to the top of the pool.
func (p *Pool) NewSubvolume(path string) error {
	_, err := runCommand("btrfs", "subvolume", "create", p.Path(path))
	return err
}

// Snapshot makes a snapshot of a subvolume; both paths are relative to the top
// of the pool, and the source may be ".".
func (p *Pool) Snapshot(source, destination string, readOnly bool) error {
	args := []string{"subvolume", "snapshot"}
	if readOnly {
		args = append(args, "-r")
	}
	_, err := runCommand("btrfs", append(args, p.Path(source), p.Path(destination))...)
	return err
}

// Sysfs reads an attribute beneath /sys/fs/btrfs/UUID, without its newline.
func (p *Pool) Sysfs(attribute string) (string, error) {
	value, err := os.ReadFile("/sys/fs/btrfs/" + p.UUID + "/" + attribute)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(value), "\n"), nil
}
