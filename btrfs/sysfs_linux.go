package btrfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
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
	fd  int
	err error
	buf [4096]byte // sysfs answers with at most a page
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
	defer unix.Close(fd) //nolint:errcheck // a sysfs file that was only read
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
	}
	return bytes.TrimSuffix(d.buf[:n], []byte("\n")), true
}

func (d *sysfsDir) note(name string, err error) {
	if d.err == nil && !errors.Is(err, fs.ErrNotExist) {
		d.err = fmt.Errorf("read sysfs %s: %w", name, err)
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
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		d.note(name, err)
		return nil
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

// spaceFiles holds the sysfs names of one block group type, written out so
// that the scrape path builds no strings.
type spaceFiles struct {
	blockGroupType                        BlockGroupType
	dir, total, used, readOnly, chunkSize string
}

var allSpaceFiles = [...]spaceFiles{
	{Data, "allocation/data", "allocation/data/total_bytes", "allocation/data/bytes_used", "allocation/data/bytes_readonly", "allocation/data/chunk_size"},
	{Metadata, "allocation/metadata", "allocation/metadata/total_bytes", "allocation/metadata/bytes_used", "allocation/metadata/bytes_readonly", "allocation/metadata/chunk_size"},
	{System, "allocation/system", "allocation/system/total_bytes", "allocation/system/bytes_used", "allocation/system/bytes_readonly", "allocation/system/chunk_size"},
	{Mixed, "allocation/mixed", "allocation/mixed/total_bytes", "allocation/mixed/bytes_used", "allocation/mixed/bytes_readonly", "allocation/mixed/chunk_size"},
}

// spaces reads allocation/<type>. Only files whose cost does not grow with
// the pool are read: allocation/<type>/<profile>/used_bytes would sum over
// all block groups (raid_bytes_show in fs/btrfs/sysfs.c).
func (d *sysfsDir) spaces() []Space {
	var out []Space
	for _, files := range allSpaceFiles {
		total, known := d.number(files.total).Get()
		if !known {
			continue
		}
		used, known := d.number(files.used).Get()
		if !known {
			continue
		}
		readOnly, known := d.number(files.readOnly).Get()
		if !known {
			continue
		}
		s := Space{Type: files.blockGroupType, Total: total, Used: used, ReadOnly: readOnly, ChunkSize: d.number(files.chunkSize)}
		for _, name := range d.list(files.dir) {
			if p, err := ParseProfile(name); err == nil {
				s.Profiles = append(s.Profiles, ProfileSpace{Profile: p})
			}
		}
		if len(s.Profiles) == 1 {
			s.Profiles[0].Total, s.Profiles[0].Used = s.Total, s.Used
		}
		if len(s.Profiles) > 0 {
			out = append(out, s)
		}
	}
	return out
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
	ok := d.fields("commit_stats", map[string]*uint64{
		"commits": &c.Count, "last_commit_ms": &c.LastMS, "max_commit_ms": &c.MaxMS, "total_commit_ms": &c.TotalMS,
	})
	return Opt[Commits]{Value: c, Known: ok}
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
	ok := d.fields("devinfo/"+strconv.FormatUint(id, 10)+"/error_stats", map[string]*uint64{
		"write_errs": &e.Write, "read_errs": &e.Read, "flush_errs": &e.Flush,
		"corruption_errs": &e.Corruption, "generation_errs": &e.Generation,
	})
	return Opt[ErrorCounts]{Value: e, Known: ok}
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
