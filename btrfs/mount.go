package btrfs

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Mount is one filesystem as mountinfo shows it: however many subvolume and
// bind mounts it has, and with the path where each can be reached.
type Mount struct {
	// Device is the major:minor number of the filesystem, the same for all
	// its mounts. Empty for a filesystem known from sysfs alone.
	Device string
	// UUID as far as it is known without touching the filesystem.
	UUID UUID
	// Points are the mount points, the best to read facts from first.
	Points []MountPoint
	// ReadOnly is the state of the filesystem, not that of a mount.
	ReadOnly Opt[bool]

	source string
}

// MountPoint is one place where a filesystem is mounted.
type MountPoint struct {
	ID   uint64 // as statx(2) gives it with STATX_MNT_ID
	Root string // the directory of the filesystem that is mounted
	Path string // as the mount namespace sees it
}

// parseMountinfo returns the btrfs filesystems of a mountinfo file
// (proc_pid_mountinfo(5)). Lines of other filesystems are passed over without
// being parsed: a container host has thousands of them, and nothing in them
// may cost us a pool. procfs.GetMounts does not serve here: it gives up at the
// first line it does not like, and leaves \040 and its like in the paths.
func parseMountinfo(mountinfo []byte) ([]Mount, error) {
	var (
		mounts []Mount
		bad    error
	)
	for line := range bytes.Lines(mountinfo) {
		before, after, ok := bytes.Cut(line, []byte(" - btrfs "))
		if !ok {
			continue
		}
		// Of white space the kernel escapes only what separates (mangle in
		// fs/seq_file.c): a path may hold a carriage return or U+00A0.
		fields := strings.Split(string(before), " ")
		superblock := strings.Split(strings.TrimSuffix(string(after), "\n"), " ")
		if len(fields) < 6 || len(superblock) < 2 {
			bad = fmt.Errorf("mountinfo line %q is malformed", bytes.TrimSpace(line))
			continue
		}
		id, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			bad = fmt.Errorf("mountinfo line %q: mount id: %w", bytes.TrimSpace(line), err)
			continue
		}
		i := slices.IndexFunc(mounts, func(m Mount) bool { return m.Device == fields[2] })
		if i < 0 {
			i = len(mounts)
			mounts = append(mounts, Mount{
				Device:   fields[2],
				ReadOnly: Some(slices.Contains(strings.Split(superblock[1], ","), "ro")),
				source:   unescapeOctal(superblock[0]),
			})
		}
		mounts[i].Points = append(mounts[i].Points, MountPoint{
			ID: id, Root: unescapeOctal(fields[3]), Path: unescapeOctal(fields[4]),
		})
	}
	for _, m := range mounts {
		slices.SortStableFunc(m.Points, func(a, b MountPoint) int {
			return cmp.Or(
				cmp.Compare(deleted(a.Root), deleted(b.Root)),
				cmp.Compare(len(a.Root), len(b.Root)),
				cmp.Compare(len(a.Path), len(b.Path)),
				cmp.Compare(a.Path, b.Path),
			)
		})
	}
	return mounts, bad
}

// deleted is 1 for a mount whose directory was removed since.
func deleted(root string) int {
	if strings.HasSuffix(root, "//deleted") {
		return 1
	}
	return 0
}

// unescapeOctal undoes the kernel's \ooo for space, tab, newline and
// backslash in paths.
func unescapeOctal(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
