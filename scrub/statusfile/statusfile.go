// Package statusfile reads and writes the files in which btrfs-progs keeps what
// it knows of scrubs, so that `btrfs scrub status` shows ours, and we theirs.
//
// The format was learnt from the files that btrfs-progs 6.2 writes and from
// what its `btrfs scrub status` makes of them: a line "scrub status:1", then
// for each device a line of the filesystem's UUID and the devid, and of
// key:value pairs, all divided by "|". unverified_errors is not among them.
//
// That a scrub runs is not in the file. `btrfs scrub status` says "running"
// of all devices while the kernel has progress of any
// (BTRFS_IOC_SCRUB_PROGRESS), and without that says "aborted" where a device is canceled, "finished" where it
// is finished, else "interrupted". It takes the figures from the Unix socket
// scrub.progress.UUID where one answers there, else from the file. `btrfs scrub
// start` refuses where the kernel has progress, and also where the socket
// answers.
package statusfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// Device is what a file says of one device.
type Device struct {
	DevID    uint64
	Counters btrfs.ScrubCounters
	// Started and Resumed have whole seconds; zero is never.
	Started, Resumed time.Time
	Duration         time.Duration
	// Canceled is shown as aborted. btrfs-progs then sets Finished as well.
	Canceled bool
	Finished bool
}

const header = "scrub status:1"

// maxSize bounds what is read of a file, in bytes: some hundred devices.
const maxSize = 1 << 20

// Path returns the path of a pool's file. dir is /var/lib/btrfs for
// btrfs-progs.
func Path(dir string, pool btrfs.UUID) string {
	return filepath.Join(dir, "scrub.status."+pool.String())
}

// field is one key of a device's line.
type field struct {
	key string
	get func(*Device) uint64
	set func(*Device, uint64)
}

func counter(key string, of func(*btrfs.ScrubCounters) *uint64) field {
	return field{key,
		func(d *Device) uint64 { return *of(&d.Counters) },
		func(d *Device, v uint64) { *of(&d.Counters) = v },
	}
}

func timestamp(key string, of func(*Device) *time.Time) field {
	return field{key,
		func(d *Device) uint64 {
			if of(d).IsZero() {
				return 0
			}
			return uint64(of(d).Unix())
		},
		func(d *Device, v uint64) {
			if v != 0 {
				*of(d) = time.Unix(int64(v), 0).UTC()
			}
		},
	}
}

func flag(key string, of func(*Device) *bool) field {
	return field{key,
		func(d *Device) uint64 {
			if *of(d) {
				return 1
			}
			return 0
		},
		func(d *Device, v uint64) { *of(d) = v != 0 },
	}
}

// fields are those of btrfs-progs 6.2, in its order.
var fields = []field{
	counter("data_extents_scrubbed", func(c *btrfs.ScrubCounters) *uint64 { return &c.DataExtentsScrubbed }),
	counter("tree_extents_scrubbed", func(c *btrfs.ScrubCounters) *uint64 { return &c.TreeExtentsScrubbed }),
	counter("data_bytes_scrubbed", func(c *btrfs.ScrubCounters) *uint64 { return &c.DataBytesScrubbed }),
	counter("tree_bytes_scrubbed", func(c *btrfs.ScrubCounters) *uint64 { return &c.TreeBytesScrubbed }),
	counter("read_errors", func(c *btrfs.ScrubCounters) *uint64 { return &c.ReadErrors }),
	counter("csum_errors", func(c *btrfs.ScrubCounters) *uint64 { return &c.CsumErrors }),
	counter("verify_errors", func(c *btrfs.ScrubCounters) *uint64 { return &c.VerifyErrors }),
	counter("no_csum", func(c *btrfs.ScrubCounters) *uint64 { return &c.NoCsum }),
	counter("csum_discards", func(c *btrfs.ScrubCounters) *uint64 { return &c.CsumDiscards }),
	counter("super_errors", func(c *btrfs.ScrubCounters) *uint64 { return &c.SuperErrors }),
	counter("malloc_errors", func(c *btrfs.ScrubCounters) *uint64 { return &c.MallocErrors }),
	counter("uncorrectable_errors", func(c *btrfs.ScrubCounters) *uint64 { return &c.UncorrectableErrors }),
	counter("corrected_errors", func(c *btrfs.ScrubCounters) *uint64 { return &c.CorrectedErrors }),
	counter("last_physical", func(c *btrfs.ScrubCounters) *uint64 { return &c.LastPhysical }),
	timestamp("t_start", func(d *Device) *time.Time { return &d.Started }),
	timestamp("t_resumed", func(d *Device) *time.Time { return &d.Resumed }),
	{
		"duration",
		func(d *Device) uint64 { return uint64(d.Duration / time.Second) },
		func(d *Device, v uint64) { d.Duration = time.Duration(min(v, maxDuration)) * time.Second },
	},
	flag("canceled", func(d *Device) *bool { return &d.Canceled }),
	flag("finished", func(d *Device) *bool { return &d.Finished }),
}

// maxDuration is the most seconds that a time.Duration holds.
const maxDuration = uint64(1<<63-1) / uint64(time.Second)

// Format returns the content of a pool's file.
func Format(pool btrfs.UUID, devices []Device) []byte {
	b := append([]byte(header), '\n')
	for i := range devices {
		d := &devices[i]
		b = append(b, pool.String()...)
		b = append(b, ':')
		b = strconv.AppendUint(b, d.DevID, 10)
		for _, f := range fields {
			b = append(b, '|')
			b = append(b, f.key...)
			b = append(b, ':')
			b = strconv.AppendUint(b, f.get(d), 10)
		}
		b = append(b, '\n')
	}
	return b
}

// Parse reads the content of a pool's file. Keys that it does not know, of a
// later btrfs-progs, are passed over.
func Parse(data []byte, pool btrfs.UUID) ([]Device, error) {
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	if lines[0] != header {
		return nil, fmt.Errorf("the first line is %q, not %q", lines[0], header)
	}
	var devices []Device
	seen := make(map[uint64]bool)
	for i, line := range lines[1:] {
		d, err := parseLine(line, pool)
		if err == nil && seen[d.DevID] {
			err = fmt.Errorf("device %d is there twice", d.DevID)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+2, err)
		}
		seen[d.DevID] = true
		devices = append(devices, d)
	}
	return devices, nil
}

func parseLine(line string, pool btrfs.UUID) (Device, error) {
	var d Device
	id, rest, _ := strings.Cut(line, "|")
	uuid, devid, ok := strings.Cut(id, ":")
	if !ok || !strings.EqualFold(uuid, pool.String()) {
		return d, fmt.Errorf("it is of %q, not of a device of %s", id, pool)
	}
	var err error
	if d.DevID, err = strconv.ParseUint(devid, 10, 64); err != nil {
		return d, fmt.Errorf("devid: %w", err)
	}
	if rest == "" {
		return d, nil
	}
	for pair := range strings.SplitSeq(rest, "|") {
		key, value, ok := strings.Cut(pair, ":")
		if !ok {
			return d, fmt.Errorf("%q is no key and value", pair)
		}
		for _, f := range fields {
			if f.key != key {
				continue
			}
			v, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return d, fmt.Errorf("%s: %w", key, err)
			}
			f.set(&d, v)
		}
	}
	return d, nil
}

// Read reads a pool's file. One that is not there is fs.ErrNotExist.
func Read(dir string, pool btrfs.UUID) ([]Device, error) {
	f, err := os.Open(Path(dir, pool))
	if err != nil {
		return nil, fmt.Errorf("read the scrub status: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return nil, fmt.Errorf("read the scrub status: %w", err)
	}
	devices, err := Parse(data, pool)
	if err != nil {
		return nil, fmt.Errorf("read the scrub status %s: %w", f.Name(), err)
	}
	return devices, nil
}

// ErrLocked says that another program is writing the file.
var ErrLocked = errors.New("another program is writing it")

// lockPatience is how long Write waits for another program to have written the
// file, which takes less than a millisecond.
const lockPatience = time.Second

// Write writes a pool's file as btrfs-progs does: under a lock on a temporary
// file, which is renamed before the lock goes. It makes the directory if there
// is none. ErrLocked says that another program has held the lock all the time.
func Write(dir string, pool btrfs.UUID, devices []Device) error {
	if err := write(dir, pool, devices); err != nil {
		return fmt.Errorf("write the scrub status: %w", err)
	}
	return nil
}

func write(dir string, pool btrfs.UUID, devices []Device) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := Path(dir, pool)
	f, err := openLocked(name + "_tmp")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.Write(Format(pool, devices)); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func openLocked(name string) (*os.File, error) {
	deadline := time.Now().Add(lockPatience)
	for {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		err = lock(f)
		if err == nil && stillNamed(f) {
			return f, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%s: %w", name, ErrLocked)
		}
		time.Sleep(lockPatience / 1000)
	}
}

func lock(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// stillNamed reports whether a file is what its name leads to: whoever had the
// lock before has renamed it.
func stillNamed(f *os.File) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(f.Name())
	return err == nil && os.SameFile(opened, named)
}
