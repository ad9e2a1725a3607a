//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

const (
	// diskBytes is the size of each disk; its image is sparse. It is large
	// enough for block groups of 1 GiB, as on real disks.
	diskBytes = 12 << 30

	// uuidPrefix begins the UUID of each pool, so that what btrfs-progs keeps
	// of scrubs of a killed run is known as ours.
	uuidPrefix = "62656e63-6873-4372-"
	progsDir   = "/var/lib/btrfs"

	quietFor     = time.Second      // without requests, a disk is idle
	quietWithin  = 60 * time.Second // it must be by then
	readFileName = "data"
	writeName    = "written"
)

// benchPool is a RAID1 of two emulated hard disks.
type benchPool struct {
	*btrfstest.Pool
	rig    *btrfstest.Rig
	disks  []*btrfstest.FaultDisk
	pinned [][]byte
	limits map[string]string // scrub_speed_max as it was, by path

	// fullRate is what btrfs scrub start reads of each disk in the quiet, in
	// bytes per second.
	fullRate float64
}

// newBenchPool makes the pool and fills it at full speed.
func newBenchPool(dataBytes int64, progress io.Writer) (*benchPool, error) {
	removeProgsFiles(uuidPrefix)
	rig, err := btrfstest.NewRig()
	if err != nil {
		return nil, err
	}
	p := &benchPool{rig: rig, limits: make(map[string]string)}
	if err := p.fill(dataBytes, progress); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *benchPool) fill(dataBytes int64, progress io.Writer) error {
	faults, err := p.rig.NewFaultDir()
	if err != nil {
		return err
	}
	var disks []*btrfstest.Disk
	for range 2 {
		disk, err := faults.NewDisk(diskBytes)
		if err != nil {
			return err
		}
		p.disks = append(p.disks, disk)
		disks = append(disks, disk.Disk)
	}
	uuid := fmt.Sprintf("%s8075-%012x", uuidPrefix, rand.Uint64N(1<<48))
	p.Pool, err = p.rig.NewPool(btrfstest.PoolOptions{
		Disks: disks, Data: "raid1", Metadata: "raid1", Label: "benchscrub",
		MkfsArgs: []string{"-U", uuid}, MountOptions: []string{"noatime"},
	})
	if err != nil {
		return err
	}
	if err := p.WriteFile(readFileName, dataBytes, rand.New(rand.NewPCG(1, 2))); err != nil {
		return err
	}
	if err := p.Sync(); err != nil {
		return err
	}
	return p.pin(progress)
}

// pin holds what the disks hold in memory, so that the disk of this machine
// plays no part, whoever drops caches meanwhile.
func (p *benchPool) pin(progress io.Writer) error {
	var sum int64
	for _, disk := range p.disks {
		var stat unix.Stat_t
		if err := unix.Stat(disk.Image, &stat); err != nil {
			return fmt.Errorf("stat %s: %w", disk.Image, err)
		}
		sum += stat.Blocks * 512
	}
	if available, err := availableMemory(); err != nil {
		return err
	} else if sum > available/4*3 {
		fmt.Fprintf(progress, "The images of %d MiB do not fit into the free memory of %d MiB: the disk of this machine adds to the latency.\n", sum>>20, available>>20)
		return nil
	}
	for _, disk := range p.disks {
		if err := p.pinFile(disk.Image); err != nil {
			return fmt.Errorf("hold %s in memory: %w", disk.Image, err)
		}
	}
	return nil
}

func (p *benchPool) pinFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for at := int64(0); ; {
		start, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := f.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		mapping, err := unix.Mmap(int(f.Fd()), start, int(end-start), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			return err
		}
		p.pinned = append(p.pinned, mapping)
		if err := unix.Mlock(mapping); err != nil {
			return err
		}
		at = end
	}
}

func availableMemory() (int64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "MemAvailable:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no MemAvailable in /proc/meminfo")
}

func (p *benchPool) close() error {
	var errs []error
	if p.Pool != nil {
		errs = append(errs, p.cancelScrub(), p.restoreLimits())
	}
	for _, mapping := range p.pinned {
		errs = append(errs, unix.Munmap(mapping))
	}
	errs = append(errs, p.rig.Close())
	if p.Pool != nil {
		removeProgsFiles(p.UUID)
	}
	return errors.Join(errs...)
}

// removeProgsFiles removes what `btrfs scrub` keeps of pools whose UUID begins
// with a prefix of our own.
func removeProgsFiles(prefix string) {
	for _, kind := range []string{"status", "progress"} {
		paths, _ := filepath.Glob(filepath.Join(progsDir, "scrub."+kind+"."+prefix+"*")) // the pattern is good
		for _, path := range paths {
			_ = os.Remove(path) // at worst a small file stays
		}
	}
}

// settle makes all measurements begin alike: nothing scrubs, no limit is set,
// nothing waits to be written, and nothing of the pool is cached. For a
// foreground the metadata of its file is: a pool in use has it, and the first
// reads would tell more of that than of the scrub.
func (p *benchPool) settle(ctx context.Context, forForeground bool) error {
	for _, disk := range p.disks {
		disk.Fast()
	}
	if err := errors.Join(p.cancelScrub(), p.restoreLimits()); err != nil {
		return err
	}
	if err := os.Remove(p.Path(writeName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := p.Sync(); err != nil {
		return err
	}
	// A remount drops the caches of this pool. Those of the machine hold the
	// images.
	if err := p.Unmount(); err != nil {
		return err
	}
	if err := p.Mount(); err != nil {
		return err
	}
	if forForeground {
		if err := p.warm(); err != nil {
			return err
		}
	}
	if err := p.Sync(); err != nil {
		return err
	}
	for _, disk := range p.disks {
		disk.Slow(0, 0)
	}
	return p.waitQuiet(ctx)
}

// warm reads the metadata of the file that is read: where it is, and its
// checksums, of which a leaf holds those of about 16 MiB.
func (p *benchPool) warm() error {
	f, err := os.OpenFile(p.Path(readFileName), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buffer := alignedBuffer(4 << 10)
	for offset := int64(0); ; offset += 2 << 20 {
		if _, err := f.ReadAt(buffer, offset); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("warm up: %w", err)
		}
	}
}

// requests is the number of requests that reached the disks.
func (p *benchPool) requests() int64 {
	var sum int64
	for _, disk := range p.disks {
		sum += disk.Reads() + disk.Writes()
	}
	return sum
}

// bytesRead is the number of bytes read from both disks.
func (p *benchPool) bytesRead() int64 {
	var sum int64
	for _, disk := range p.disks {
		sum += disk.BytesRead()
	}
	return sum
}

func (p *benchPool) waitQuiet(ctx context.Context) error {
	deadline := time.Now().Add(quietWithin)
	since, last := time.Now(), p.requests()
	for time.Since(since) < quietFor {
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
		if n := p.requests(); n != last {
			since, last = time.Now(), n
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the disks are not idle within %v", quietWithin)
		}
	}
	return nil
}

// limitScrub sets scrub_speed_max of each device.
func (p *benchPool) limitScrub(bytesPerSecond int64) error {
	for _, disk := range p.disks {
		path := fmt.Sprintf("/sys/fs/btrfs/%s/devinfo/%d/scrub_speed_max", p.UUID, disk.DevID)
		was, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if _, known := p.limits[path]; !known {
			p.limits[path] = strings.TrimSpace(string(was))
		}
		if err := os.WriteFile(path, []byte(strconv.FormatInt(bytesPerSecond, 10)), 0); err != nil {
			return err
		}
	}
	return nil
}

// restoreLimits puts scrub_speed_max back, and takes off what a scrub of ours
// has left.
func (p *benchPool) restoreLimits() error {
	var errs []error
	for _, disk := range p.disks {
		path := fmt.Sprintf("/sys/fs/btrfs/%s/devinfo/%d/scrub_speed_max", p.UUID, disk.DevID)
		was, known := p.limits[path]
		if !known {
			was = "0"
		}
		if err := os.WriteFile(path, []byte(was), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// cancelScrub ends a scrub of the pool, whoever runs it.
func (p *benchPool) cancelScrub() error {
	const noneRuns = 2 // btrfs-scrub(8), cancel
	cmd := exec.Command("btrfs", "scrub", "cancel", p.Mountpoint)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == noneRuns {
		return nil
	}
	if err != nil {
		return fmt.Errorf("btrfs scrub cancel: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// pause waits, unless ctx is done before.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
