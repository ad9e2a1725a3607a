package btrfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sysfsDir reads the files below one directory of sysfs. It keeps the first
// error that is not about an absent file: kernels differ in what they have.
//
// It goes around package os, whose files are registered with the network
// poller at each open: on the scrape path that costs more than the reading.
type sysfsDir struct {
	fd     int
	within string // which directory fd is, if not the one that was opened
	err    error
	buf    [4096]byte // sysfs answers with at most a page
}

func openSysfsDir(path string) (*sysfsDir, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &sysfsDir{fd: fd}, nil
}

func (d *sysfsDir) close() { _ = unix.Close(d.fd) }

// read returns the file's text without the newline at its end, valid until
// the next read; nil and false if it cannot be read.
func (d *sysfsDir) read(name string) ([]byte, bool) {
	fd, err := openat(d.fd, name, unix.O_RDONLY)
	if err != nil {
		d.note(name, err)
		return nil, false
	}
	defer unix.Close(fd)
	n := 0
	for n < len(d.buf) {
		m, err := unix.Read(fd, d.buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			d.note(name, err)
			return nil, false
		}
		if m == 0 {
			break
		}
		n += m
		// The kernel hands out an attribute in one piece, and its text ends
		// with the line.
		if d.buf[n-1] == '\n' {
			break
		}
	}
	return bytes.TrimSuffix(d.buf[:n], []byte("\n")), true
}

// exists tells whether there is a file or link of that name.
func (d *sysfsDir) exists(name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

func (d *sysfsDir) note(name string, err error) {
	// ENODEV is a file that went away while it was open (kernfs_seq_start in
	// fs/kernfs/file.c).
	if d.err == nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		d.err = fmt.Errorf("read sysfs %s%s: %w", d.within, name, err)
	}
}

func (d *sysfsDir) text(name string) Opt[string] {
	b, ok := d.read(name)
	if !ok {
		return Opt[string]{}
	}
	return Some(string(b))
}

func (d *sysfsDir) number(name string) Opt[uint64] {
	b, ok := d.read(name)
	if !ok {
		return Opt[uint64]{}
	}
	v, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil {
		d.note(name, err)
		return Opt[uint64]{}
	}
	return Some(v)
}

func (d *sysfsDir) flag(name string) Opt[bool] {
	v, ok := d.number(name).Get()
	return Opt[bool]{Value: v != 0, Known: ok}
}

// list returns the names in a directory, sorted; nil if there is none.
func (d *sysfsDir) list(name string) []string {
	fd, err := openat(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		d.note(name, err)
		return nil
	}
	defer unix.Close(fd)
	return d.names(fd, name)
}

// names returns the names in an open directory, sorted.
func (d *sysfsDir) names(fd int, name string) []string {
	var names []string
	for {
		n, err := unix.ReadDirent(fd, d.buf[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			d.note(name, err)
			return nil
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(d.buf[:n], -1, names)
	}
	slices.Sort(names)
	return names
}

// fields reads lines of a word and a number, as error_stats and commit_stats
// have them.
func (d *sysfsDir) fields(name string, want map[string]*uint64) bool {
	b, ok := d.read(name)
	if !ok {
		return false
	}
	found := 0
	for line := range bytes.Lines(b) {
		key, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		p, ok := want[string(key)]
		if !ok {
			continue
		}
		v, err := strconv.ParseUint(string(value), 10, 64)
		if err != nil {
			d.note(name, err)
			return false
		}
		*p = v
		found++
	}
	return found == len(want)
}

func openat(dirfd int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// readFile is os.ReadFile for the scrape path, see sysfsDir.
func readFile(path string) ([]byte, error) {
	fd, err := openat(unix.AT_FDCWD, path, unix.O_RDONLY)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	text := make([]byte, 0, 4096)
	for {
		if len(text) == cap(text) {
			text = slices.Grow(text, cap(text))
		}
		n, err := unix.Read(fd, text[len(text):cap(text)])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return text, nil
		default:
			text = text[:len(text)+n]
		}
	}
}

// spaceDirs are the directories of the block group types, written out so that
// the scrape path builds no strings.
var spaceDirs = [...]struct {
	blockGroupType BlockGroupType
	name           string
}{
	{Data, "allocation/data/"},
	{Metadata, "allocation/metadata/"},
	{System, "allocation/system/"},
	{Mixed, "allocation/mixed/"},
}

// spaces reads allocation/<type>. Only files whose cost does not grow with
// the pool are read: allocation/<type>/<profile>/used_bytes would sum over
// all block groups (raid_bytes_show in fs/btrfs/sysfs.c).
func (d *sysfsDir) spaces() []Space {
	var out []Space
	top := d.fd
	for _, dir := range spaceDirs {
		fd, err := openat(top, dir.name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			d.note(dir.name, err)
			continue
		}
		d.fd, d.within = fd, dir.name
		if s, ok := d.space(dir.blockGroupType); ok {
			out = append(out, s)
		}
		d.fd, d.within = top, ""
		_ = unix.Close(fd)
	}
	return out
}

// space reads the directory of one type, which d has open.
func (d *sysfsDir) space(t BlockGroupType) (s Space, ok bool) {
	total, used, readOnly := d.number("total_bytes"), d.number("bytes_used"), d.number("bytes_readonly")
	if !total.Known || !used.Known || !readOnly.Known {
		return s, false
	}
	s = Space{Type: t, Total: total.Value, Used: used.Value, ReadOnly: readOnly.Value, ChunkSize: d.number("chunk_size")}
	if t == Data || t == Mixed {
		s.MayUse, s.Reserved = d.number("bytes_may_use"), d.number("bytes_reserved")
	}
	for _, name := range d.names(d.fd, "") {
		if p, ok := profileNamed(name); ok {
			s.Profiles = append(s.Profiles, ProfileSpace{Profile: p})
		}
	}
	if len(s.Profiles) == 1 {
		s.Profiles[0].Total, s.Profiles[0].Used = s.Total, s.Used
	}
	return s, len(s.Profiles) > 0
}

func (d *sysfsDir) globalReserve() GlobalReserve {
	size, reserved := d.number("allocation/global_rsv_size"), d.number("allocation/global_rsv_reserved")
	r := GlobalReserve{Size: size}
	if size.Known && reserved.Known {
		// The two are read one after the other: never below 0.
		r.Used = Some(size.Value - min(size.Value, reserved.Value))
	}
	return r
}

func (d *sysfsDir) commits() Opt[Commits] {
	var c Commits
	if !d.fields("commit_stats", map[string]*uint64{
		"commits": &c.Count, "last_commit_ms": &c.LastMS, "max_commit_ms": &c.MaxMS, "total_commit_ms": &c.TotalMS,
	}) {
		return Opt[Commits]{}
	}
	return Some(c)
}

// deviceIDs returns the members, seed devices and a replace target included.
// Devinfo is there since kernel 5.6.
func (d *sysfsDir) deviceIDs() []uint64 {
	var ids []uint64
	for _, name := range d.list("devinfo") {
		if id, err := strconv.ParseUint(name, 10, 64); err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (d *sysfsDir) device(dev *Device) {
	dir := "devinfo/" + strconv.FormatUint(dev.ID, 10) + "/"
	dev.Missing = d.flag(dir + "missing")
	dev.Writeable = d.flag(dir + "writeable")
	// Only devid 0 is ever a replace target.
	if dev.ID == 0 {
		dev.ReplaceTarget = d.flag(dir + "replace_target").Value
	}
}

// deviceErrors reads error_stats, for a pool that has no mount to ask.
func (d *sysfsDir) deviceErrors(id uint64) Opt[ErrorCounts] {
	var e ErrorCounts
	if !d.fields("devinfo/"+strconv.FormatUint(id, 10)+"/error_stats", map[string]*uint64{
		"write_errs": &e.Write, "read_errs": &e.Read, "flush_errs": &e.Flush,
		"corruption_errs": &e.Corruption, "generation_errs": &e.Generation,
	}) {
		return Opt[ErrorCounts]{}
	}
	return Some(e)
}

// features returns the names of those that are on.
func (d *sysfsDir) features() []string {
	return slices.DeleteFunc(d.list("features"), func(name string) bool { return d.text("features/"+name).Value == "0" })
}

// checksum reads a text such as "crc32c (crc32c-intel)".
func (d *sysfsDir) checksum() Opt[string] {
	s := d.text("checksum")
	s.Value, _, _ = strings.Cut(s.Value, " ")
	return s
}

func (d *sysfsDir) uuid(name string) UUID {
	u, err := ParseUUID(d.text(name).Value)
	if err != nil {
		return UUID{}
	}
	return u
}
