//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// isolateFlag as the first argument makes this program a wrapper that starts
// another one, see isolate.
const isolateFlag = "-isolated"

// isolate runs a program in a mount namespace in which /sys/fs/btrfs shows the
// pools in a directory of the rig and no others, so that tests which make
// pools at the same time do not get into the measurement. Args are that
// directory, the program and its arguments. It returns only on failure.
//
// The namespace has been made by the parent (SysProcAttr.Unshareflags).
func isolate(args []string) error {
	if len(args) < 2 {
		return errors.New("isolate: no program")
	}
	rigDir := args[0]
	program, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	// Mounts of other rigs, of which this namespace got copies that would
	// keep their pools busy.
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mountinfo)) {
		fields := strings.Fields(line)
		if point := fields[4]; strings.Contains(point, "/btrfs-governor-rig-") && !strings.HasPrefix(point, rigDir+"/") {
			_ = unix.Unmount(point, unix.MNT_DETACH) // it may be gone with one above it
		}
	}
	if err := unix.Mount(filepath.Join(rigDir, sysfsView), "/sys/fs/btrfs", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("isolate: hide other pools: %w", err)
	}
	return unix.Exec(program, args[1:], os.Environ())
}

// sysfsView is the directory of a rig that is shown as /sys/fs/btrfs. It
// holds a bind mount of the directory of each pool.
const sysfsView = "mnt/sysfs"

// makeSysfsView makes the view of the pools with the given UUIDs.
func makeSysfsView(rigDir string, uuids []string) error {
	for _, uuid := range uuids {
		dir := filepath.Join(rigDir, sysfsView, uuid)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("/sys/fs/btrfs/"+uuid, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("show pool %s: %w", uuid, err)
		}
	}
	return nil
}

// removeSysfsView undoes makeSysfsView.
func removeSysfsView(rigDir string, uuids []string) error {
	var errs []error
	for _, uuid := range uuids {
		errs = append(errs, unix.Unmount(filepath.Join(rigDir, sysfsView, uuid), unix.MNT_DETACH))
	}
	return errors.Join(errs...)
}
