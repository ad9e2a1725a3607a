package throttle

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

const sectorSize = 512 // of /proc/diskstats, whatever the disk's is

// Sampler takes samples of one pool from procfs. It is safe for concurrent
// use: threads may come and go while it samples.
type Sampler struct {
	proc string

	mu       sync.Mutex
	buf      []byte
	disks    map[string]*diskCounters
	devices  []deviceSource
	pressure bool   // whether the kernel has PSI
	cgroup   string // of this process, in the second hierarchy; "" where not known
	pid      string
}

type diskCounters struct {
	reads, readSectors, readMS, writes, writeSectors uint64
	seen                                             bool
}

type deviceSource struct {
	disks   []string
	threads []thread
	ended   uint64 // bytes read by threads that are gone
}

type thread struct {
	id   int
	path string
	base uint64 // what it had read when it was added
	last uint64
}

// NewSampler returns a sampler. proc and sys are where procfs and sysfs are mounted; disks are
// the kernel names of the whole disks beneath each device of the pool, see
// btrfs.Client.Disks.
func NewSampler(proc, sys string, disks [][]string) *Sampler {
	s := &Sampler{proc: proc, disks: make(map[string]*diskCounters), pressure: true, buf: make([]byte, 16<<10)}
	s.cgroup, s.pid = ownCgroup(proc, sys), strconv.Itoa(os.Getpid())
	for _, names := range disks {
		s.devices = append(s.devices, deviceSource{disks: names})
		for _, n := range names {
			s.disks[n] = new(diskCounters)
		}
	}
	return s
}

// AddThread says that a thread of this process scrubs a device from now on:
// what it reads from now on is ours.
func (s *Sampler) AddThread(device, tid int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := thread{id: tid, path: s.proc + "/self/task/" + strconv.Itoa(tid) + "/io"}
	base, err := s.readBytes(t.path)
	if err != nil {
		return fmt.Errorf("scrub thread %d: %w", tid, err)
	}
	t.base, t.last = base, base
	s.devices[device].threads = append(s.devices[device].threads, t)
	return nil
}

// RemoveThread says that a thread no longer scrubs a device. Call it in that
// thread or while it lives, so that its last bytes are counted.
func (s *Sampler) RemoveThread(device, tid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &s.devices[device]
	for i := range d.threads {
		t := &d.threads[i]
		if t.id != tid {
			continue
		}
		if n, err := s.readBytes(t.path); err == nil && n >= t.last {
			t.last = n
		}
		d.ended += t.last - t.base
		d.threads = append(d.threads[:i], d.threads[i+1:]...)
		return
	}
}

// Sample fills in to, whose Devices are reused. Scrubbing is whether a device
// has threads. Errors are joined; what could be read is right also then, and a
// device whose disk was not found keeps its counters.
func (s *Sampler) Sample(to *Sample) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(to.Devices) != len(s.devices) {
		to.Devices = make([]DeviceSample, len(s.devices))
	}
	var errs []error

	if err := s.readDisks(); err != nil {
		errs = append(errs, err)
	} else {
		for i := range s.devices {
			if err := s.sum(&s.devices[i], &to.Devices[i]); err != nil {
				errs = append(errs, err)
			}
		}
	}

	// Ours after the disks': what we submit in between then counts as in flight,
	// which the controller sees through, and not as a read of others.
	for i := range s.devices {
		d, v := &s.devices[i], &to.Devices[i]
		kept := d.threads[:0]
		own := d.ended
		for _, t := range d.threads {
			n, err := s.readBytes(t.path)
			switch {
			case err == nil:
				t.last = max(n, t.last)
			case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
				// It ended: what it read stays.
				d.ended += t.last - t.base
				own += t.last - t.base
				continue
			default:
				errs = append(errs, fmt.Errorf("scrub thread %d: %w", t.id, err))
			}
			own += t.last - t.base
			kept = append(kept, t)
		}
		d.threads = kept
		v.OwnBytes, v.Scrubbing = own, len(kept) > 0
	}

	to.Stalled, to.OwnStalled = btrfs.Opt[time.Duration]{}, btrfs.Opt[time.Duration]{}
	if s.pressure {
		total, err := s.readPressure(s.proc + "/pressure/io")
		switch {
		case err == nil:
			to.Stalled = btrfs.Some(total)
			to.OwnStalled = s.ownPressure()
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
			s.pressure = false // the kernel has none, or was booted with psi=0
		default:
			errs = append(errs, err)
		}
	}

	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		errs = append(errs, fmt.Errorf("read the clock: %w", err))
	} else {
		to.Now = time.Duration(now.Nano())
	}
	return errors.Join(errs...)
}

func (s *Sampler) sum(d *deviceSource, v *DeviceSample) error {
	var sum diskCounters
	for _, n := range d.disks {
		c := s.disks[n]
		if !c.seen {
			return fmt.Errorf("%s/diskstats: no disk %s", s.proc, n)
		}
		sum.reads += c.reads
		sum.readSectors += c.readSectors
		sum.readMS += c.readMS
		sum.writes += c.writes
		sum.writeSectors += c.writeSectors
	}
	v.Reads, v.ReadBytes = sum.reads, sum.readSectors*sectorSize
	v.ReadTime = time.Duration(sum.readMS) * time.Millisecond
	v.Writes, v.WriteBytes = sum.writes, sum.writeSectors*sectorSize
	return nil
}

// readFile returns a file of procfs; the bytes are valid until the next call.
// os.ReadFile would allocate each time.
func (s *Sampler) readFile(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	n := 0
	for {
		if n == len(s.buf) {
			s.buf = append(s.buf, make([]byte, len(s.buf))...)
		}
		m, err := unix.Read(fd, s.buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if m == 0 {
			return s.buf[:n], nil
		}
		n += m
	}
}

func (s *Sampler) readBytes(path string) (uint64, error) {
	b, err := s.readFile(path)
	if err != nil {
		return 0, err
	}
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte("\n"))
		if rest, ok := bytes.CutPrefix(line, []byte("read_bytes: ")); ok {
			n, ok := parseUint(rest)
			if !ok {
				return 0, fmt.Errorf("%s: read_bytes %q is no number", path, rest)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("%s: no read_bytes", path)
}

// readDisks reads /proc/diskstats (Documentation/admin-guide/iostats.rst):
// major, minor, name, reads, merged, sectors, ms, writes, merged, sectors, …
func (s *Sampler) readDisks() error {
	path := s.proc + "/diskstats"
	b, err := s.readFile(path)
	if err != nil {
		return err
	}
	for _, c := range s.disks {
		c.seen = false
	}
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte("\n"))
		_, line = field(line)
		_, line = field(line)
		name, line := field(line)
		c := s.disks[string(name)]
		if c == nil {
			continue
		}
		var v [7]uint64
		for i := range v {
			var f []byte
			f, line = field(line)
			n, ok := parseUint(f)
			if !ok {
				return fmt.Errorf("%s: %s: field %d %q is no number", path, name, i+4, f)
			}
			v[i] = n
		}
		*c = diskCounters{reads: v[0], readSectors: v[2], readMS: v[3], writes: v[4], writeSectors: v[6], seen: true}
	}
	return nil
}

// readPressure returns "some total" of a file such as /proc/pressure/io
// (Documentation/accounting/psi.rst), which is in microseconds.
func (s *Sampler) readPressure(path string) (time.Duration, error) {
	b, err := s.readFile(path)
	if err != nil {
		return 0, err
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	_, total, ok := bytes.Cut(line, []byte(" total="))
	if !ok || !bytes.HasPrefix(line, []byte("some ")) {
		return 0, fmt.Errorf("%s: %q has no total of some", path, line)
	}
	n, ok := parseUint(total)
	if !ok {
		return 0, fmt.Errorf("%s: total %q is no number", path, total)
	}
	return time.Duration(n) * time.Microsecond, nil
}

// ownPressure returns what the kernel counts for the cgroup of this process,
// where nobody else is in it: for a service of systemd and in a container that
// is so. It is unknown otherwise, and where there is no such cgroup.
func (s *Sampler) ownPressure() btrfs.Opt[time.Duration] {
	var none btrfs.Opt[time.Duration]
	if s.cgroup == "" {
		return none
	}
	members, err := s.readFile(s.cgroup + "/cgroup.procs")
	if err != nil || string(bytes.TrimSpace(members)) != s.pid {
		return none
	}
	descendants, err := s.readFile(s.cgroup + "/cgroup.stat")
	if err != nil || !bytes.HasPrefix(descendants, []byte("nr_descendants 0\n")) {
		return none
	}
	total, err := s.readPressure(s.cgroup + "/io.pressure")
	if err != nil {
		return none
	}
	return btrfs.Some(total)
}

// ownCgroup returns the cgroup of this process, "" where there is none and where
// it is the root, which counts everybody and has no type.
func ownCgroup(proc, sys string) string {
	dir := Cgroup(proc, sys)
	if _, err := os.Stat(dir + "/cgroup.type"); err != nil {
		return ""
	}
	return dir
}

// Cgroup returns the directory of this process's cgroup in the second hierarchy
// (Documentation/admin-guide/cgroup-v2.rst), "" where there is none. proc and
// sys are where procfs and sysfs are mounted.
func Cgroup(proc, sys string) string {
	membership, err := os.ReadFile(proc + "/self/cgroup")
	if err != nil {
		return ""
	}
	_, path, ok := strings.Cut("\n"+string(membership), "\n0::")
	if !ok {
		return ""
	}
	path, _, _ = strings.Cut(path, "\n")
	// systemd mounts it at one of these. The table of mounts would tell, but
	// reading that can hang with any disk.
	for _, root := range []string{"/fs/cgroup", "/fs/cgroup/unified"} {
		dir := filepath.Join(sys, root, path)
		if _, err := os.Stat(dir + "/cgroup.stat"); err == nil {
			return dir
		}
	}
	return ""
}

func field(b []byte) (f, rest []byte) {
	i := 0
	for i < len(b) && b[i] == ' ' {
		i++
	}
	j := i
	for j < len(b) && b[j] != ' ' {
		j++
	}
	return b[i:j], b[j:]
}

func parseUint(b []byte) (uint64, bool) {
	if len(b) == 0 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' || n > (1<<64-1-9)/10 {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}
