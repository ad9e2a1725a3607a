//go:build linux

package btrfstest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// attachPatience bounds the search for a free loop device, which other
// processes may snatch away each time.
const attachPatience = 20 * time.Second

// loop is a loop device that is attached to a backing file.
type loop struct {
	device  string // /dev/loopN
	backing string // path of the backing file
}

// attachLoop attaches a free loop device to a file and returns its path. With
// directIO the device bypasses the page cache of the file, so that every
// request reaches the filesystem that holds it. See loop(4).
func attachLoop(backing string, directIO bool) (string, error) {
	// Not os.Open: it asks whether the file can be polled, which a FUSE
	// server in this process would have to answer.
	file, err := unix.Open(backing, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("attach loop device: open %s: %w", backing, err)
	}
	defer unix.Close(file)
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("attach loop device: open /dev/loop-control: %w", err)
	}
	defer unix.Close(control)

	config := unix.LoopConfig{Fd: uint32(file)}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], backing)
	if directIO {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	var device string
	var last error
	err = waitFor(attachPatience, func() (bool, error) {
		number, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return false, fmt.Errorf("attach loop device to %s: find a free one: %w", backing, err)
		}
		device = fmt.Sprintf("/dev/loop%d", number)
		last = configureLoop(device, &config)
		// The device that was free a moment ago may be another's now, or its
		// node not be there yet.
		retry := errors.Is(last, unix.EBUSY) || errors.Is(last, unix.ENXIO) || errors.Is(last, unix.ENOENT)
		return !retry, nil
	})
	if last != nil {
		return "", fmt.Errorf("attach %s to %s: %w", device, backing, last)
	}
	if err != nil {
		return "", err
	}
	return device, nil
}

func configureLoop(device string, config *unix.LoopConfig) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.IoctlLoopConfigure(fd, config)
}

// refreshLoopSize makes a loop device take over the changed size of its
// backing file.
func refreshLoopSize(device string) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("resize loop device: open %s: %w", device, err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("resize loop device %s: %w", device, err)
	}
	return nil
}

// detachLoop makes btrfs forget a loop device, detaches it from its backing
// file and waits until it is free, up to patience. It does nothing when the
// device is not attached to that file.
func detachLoop(l loop, patience time.Duration) error {
	if current, err := loopBacking(l.device); err != nil || current != l.backing {
		return err
	}
	// Else the next pool on this device number would meet its old self.
	forgetDevice(l.device)

	fd, err := unix.Open(l.device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("detach %s from %s: %w", l.device, l.backing, err)
	}
	// Does not fail while others have the device open: the kernel then clears
	// it when the last of them, us included, closes it.
	err = unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)
	unix.Close(fd)
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s from %s: %w", l.device, l.backing, err)
	}
	err = waitFor(patience, func() (bool, error) {
		current, err := loopBacking(l.device)
		return current != l.backing, err
	})
	if err != nil {
		return fmt.Errorf("detach %s from %s: still in use: %w", l.device, l.backing, err)
	}
	return nil
}

// loopBacking is the path of the file that a loop device is attached to, and
// empty when there is none.
func loopBacking(device string) (string, error) {
	path := filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file")
	name, err := os.ReadFile(path)
	// The attribute comes and goes with the file; ENXIO and ENODEV are the
	// moment in between.
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("backing file of %s: %w", device, err)
	}
	// The kernel marks the path of a file that has been deleted.
	return strings.TrimSuffix(strings.TrimSuffix(string(name), "\n"), " (deleted)"), nil
}

// loopsBeneath lists the loop devices whose backing files lie in a directory.
func loopsBeneath(dir string) ([]loop, error) {
	blocks, err := filepath.Glob("/sys/block/loop*")
	if err != nil {
		return nil, err
	}
	var loops []loop
	for _, block := range blocks {
		l := loop{device: filepath.Join("/dev", filepath.Base(block))}
		if l.backing, err = loopBacking(l.device); err != nil {
			return nil, err
		}
		if beneath(l.backing, dir) {
			loops = append(loops, l)
		}
	}
	return loops, nil
}

func detachBeneath(dir string, patience time.Duration) error {
	loops, err := loopsBeneath(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range loops {
		errs = append(errs, detachLoop(l, patience))
	}
	return errors.Join(errs...)
}
