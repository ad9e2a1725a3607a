//go:build linux

package btrfstest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mount is one line of /proc/self/mountinfo.
type mount struct {
	point  string
	fstype string
	minor  string // of the device number
}

func (m mount) isFUSE() bool {
	return m.fstype == "fuse" || strings.HasPrefix(m.fstype, "fuse.")
}

// holdsImages tells that of a FaultDir or a Store.
func (m mount) holdsImages() bool { return m.isFUSE() || m.fstype == "tmpfs" }

// mountsBeneath lists what is mounted in a directory, in the order in which to
// unmount it: the newest first, which no other can sit on.
func mountsBeneath(dir string) ([]mount, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	mounts, err := parseMountinfo(string(table))
	if err != nil {
		return nil, err
	}
	mounts = slices.DeleteFunc(mounts, func(m mount) bool { return !beneath(m.point, dir) })
	slices.Reverse(mounts)
	return mounts, nil
}

// parseMountinfo parses /proc/self/mountinfo, see proc(5):
//
//	36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw
func parseMountinfo(table string) ([]mount, error) {
	var mounts []mount
	for line := range strings.Lines(table) {
		before, after, found := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !found || len(left) < 6 || len(right) < 1 {
			return nil, fmt.Errorf("parse mountinfo: unexpected line %q", line)
		}
		_, minor, _ := strings.Cut(left[2], ":")
		mounts = append(mounts, mount{point: unescapeOctal(left[4]), fstype: right[0], minor: minor})
	}
	return mounts, nil
}

// unescapeOctal undoes the kernel's \040 for a space and the like.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// beneath reports whether path lies in dir. Both are clean absolute paths.
func beneath(path, dir string) bool {
	return strings.HasPrefix(path, dir+string(filepath.Separator))
}

// unmountBeneath unmounts what is mounted in a directory, or some of it. What
// is in use for longer than patience it unmounts lazily, and names: the loop
// devices beneath will tell whether its user went away in time.
func unmountBeneath(dir string, patience time.Duration, which func(mount) bool) (busy []string, err error) {
	mounts, err := mountsBeneath(dir)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, m := range mounts {
		if !which(m) {
			continue
		}
		err := unmountIdle(m, patience)
		if errors.Is(err, unix.EBUSY) {
			busy = append(busy, m.point)
			if err = unix.Unmount(m.point, unix.MNT_DETACH); err != nil {
				err = fmt.Errorf("unmount %s lazily: %w", m.point, err)
			}
		}
		errs = append(errs, err)
	}
	return busy, errors.Join(errs...)
}

// unmountIdle unmounts what nobody but the kernel uses. It fails with EBUSY
// when somebody does.
func unmountIdle(m mount, patience time.Duration) error {
	err := unmount(m.point, 0)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	if m.fstype == "btrfs" {
		// A balance, replace or scrub that a killed program started goes on in
		// the kernel and holds the mount.
		cancelOperations(m.point)
	}
	return unmount(m.point, patience)
}

// unmount unmounts, trying again while the mount is busy. It is no error when
// nothing is mounted there any more.
func unmount(point string, patience time.Duration) error {
	var last error
	err := waitFor(patience, func() (bool, error) {
		last = unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
		return !errors.Is(last, unix.EBUSY) && !errors.Is(last, unix.EINTR), nil
	})
	if errors.Is(last, unix.EINVAL) || errors.Is(last, unix.ENOENT) {
		return nil
	}
	if last != nil {
		return fmt.Errorf("unmount %s: %w", point, last)
	}
	return err
}

// fuseControl is where the kernel's FUSE control filesystem is mounted by
// convention (Documentation/filesystems/fuse/fuse.rst).
const fuseControl = "/sys/fs/fuse/connections"

// abortFUSE fails all I/O, waiting and to come, of the FUSE filesystems
// mounted beneath a run directory. It is what ends a hang whose server is gone.
func abortFUSE(dir string) error {
	mounts, err := mountsBeneath(dir)
	if err != nil {
		return err
	}
	mounts = slices.DeleteFunc(mounts, func(m mount) bool { return !m.isFUSE() })
	if len(mounts) == 0 {
		return nil
	}
	control := fuseControl
	if _, err := os.Stat(filepath.Join(control, mounts[0].minor, "abort")); err != nil {
		// Nobody has mounted the control filesystem; do so out of sight. A
		// directory of its own: another process may be doing the same.
		control, err = os.MkdirTemp(dir, "fusectl-")
		if err != nil {
			return fmt.Errorf("mount the FUSE control filesystem: %w", err)
		}
		defer os.Remove(control)
		if err := unix.Mount("fusectl", control, "fusectl", 0, ""); err != nil {
			return fmt.Errorf("mount the FUSE control filesystem on %s: %w", control, err)
		}
		defer unix.Unmount(control, unix.MNT_DETACH)
	}
	var errs []error
	for _, m := range mounts {
		// A connection is known by the minor number of the device number of
		// its mount (fs/fuse/control.c, fuse_ctl_add_conn).
		path := filepath.Join(control, m.minor, "abort")
		if err := os.WriteFile(path, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("abort FUSE filesystem %s: %w", m.point, err))
		}
	}
	return errors.Join(errs...)
}
