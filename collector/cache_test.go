//go:build linux

package collector_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/collector"
)

var (
	cacheSeed       = flag.Uint64("cache.seed", 1, "seed of TestCachedFactsAreThoseOfAFreshReader")
	cacheOperations = flag.Int("cache.operations", 100, "number of operations of TestCachedFactsAreThoseOfAFreshReader")
)

// A reader that keeps what it learned of a pool says the same, whatever
// happened to the pool, as one that starts from nothing.
func TestCachedFactsAreThoseOfAFreshReader(t *testing.T) {
	rig := btrfstest.New(t)
	t.Logf("go test ./collector -run %s -cache.seed=%d -cache.operations=%d", t.Name(), *cacheSeed, *cacheOperations)
	c := &cacheTest{
		t: t, rig: rig, rng: rand.New(rand.NewPCG(*cacheSeed, 0)),
		source: collector.NewKernelSource(btrfs.NewClient(btrfs.DefaultPaths())),
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what was done:\n%s", strings.Join(c.log, "\n"))
		}
	})
	c.cached = c.source.Reader()
	c.pool = newPool(t, rig, btrfstest.PoolOptions{
		Sizes: []int64{3 * gib, 2 * gib, 2 * gib, gib}, Data: "raid1", Metadata: "raid1",
		// Transactions last as long as the test lets them.
		MountOptions: []string{"commit=300"},
	})
	c.compare("made")
	for i := range *cacheOperations {
		done := fmt.Sprintf("operation %d: %s", i+1, c.operate())
		c.log = append(c.log, done)
		if c.rng.IntN(2) == 0 {
			// Within the transaction.
			c.compare(done)
		}
		ok(t, c.pool.Sync())
		c.compare(done + ", synced")
		if t.Failed() {
			return
		}
	}
	t.Logf("%d comparisons, %d of them without a change of the chunks", c.comparisons, c.unchanged)
	if c.unchanged == 0 || c.unchanged == c.comparisons {
		t.Error("the operations were all of one kind")
	}
}

type cacheTest struct {
	t      *testing.T
	rig    *btrfstest.Rig
	rng    *rand.Rand
	pool   *btrfstest.Pool
	source collector.Source
	cached collector.PoolReader
	log    []string

	made       int // names used
	files      []string
	subvolumes []string

	comparisons, unchanged int
	last                   *collector.Facts
}

// compare reads the pool with both readers. The kernel does some things in the
// background, so the fresh one goes first and last: what agrees with itself is
// what the cached one has to say too.
func (c *cacheTest) compare(when string) {
	c.t.Helper()
	for range 50 {
		before := c.read(c.source.Reader())
		got := c.read(c.cached)
		after := c.read(c.source.Reader())
		if diffFacts(before, after) != "" {
			continue
		}
		if diff := diffFacts(after, got); diff != "" {
			c.t.Errorf("%s: -fresh +cached:\n%s", when, diff)
		}
		c.comparisons++
		if c.last != nil && cmp.Equal(c.last.Layout, got.Layout, exportAll) {
			c.unchanged++
		}
		c.last = got
		return
	}
	c.t.Fatalf("%s: the pool does not come to rest", when)
}

var exportAll = cmp.Exporter(func(reflect.Type) bool { return true })

func diffFacts(a, b *collector.Facts) string { return cmp.Diff(a, b, exportAll) }

func (c *cacheTest) read(r collector.PoolReader) *collector.Facts {
	c.t.Helper()
	mounts, err := c.source.Mounts()
	ok(c.t, err)
	i := slices.IndexFunc(mounts, func(m btrfs.Mount) bool { return m.UUID.String() == c.pool.UUID })
	if i < 0 {
		c.t.Fatalf("pool %s is not found", c.pool.UUID)
	}
	facts, err := r.Read(&mounts[i])
	ok(c.t, err)
	return facts
}

// operate does something to the pool and says what. That the kernel refuses it
// for want of space or devices does not matter.
func (c *cacheTest) operate() string {
	c.t.Helper()
	operations := []struct {
		weight int
		do     func() (string, error)
	}{
		{14, c.fill},
		{10, c.write},
		{12, c.delete},
		{20, c.balance},
		{6, c.convert},
		{5, c.addDisk},
		{4, c.removeDisk},
		{6, c.resize},
		{3, c.replace},
		{8, c.snapshot},
		{3, c.remount},
		{2, c.nothing},
	}
	sum := 0
	for _, o := range operations {
		sum += o.weight
	}
	choice := c.rng.IntN(sum)
	for _, o := range operations {
		if choice -= o.weight; choice >= 0 {
			continue
		}
		done, err := o.do()
		var refused *btrfstest.CommandError
		if errors.Is(err, unix.EROFS) || err != nil && !errors.As(err, &refused) && !errors.Is(err, unix.ENOSPC) {
			c.t.Fatalf("%s: %v", done, err)
		}
		if err != nil {
			done += ": refused"
		}
		return done
	}
	panic("unreachable: the choice is below the sum of the weights")
}

func (c *cacheTest) name(kind string) string {
	c.made++
	return fmt.Sprintf("%s-%d", kind, c.made)
}

// crowded tells whether less than half of the pool is free: nothing here is
// about full pools, on which the kernel gives up.
func (c *cacheTest) crowded() bool {
	var st unix.Statfs_t
	ok(c.t, unix.Statfs(c.pool.Mountpoint, &st))
	return st.Bavail < st.Blocks/2
}

// roomForMetadata tells whether metadata can be relocated without danger.
// Where there is no room the kernel does not refuse: it makes the filesystem
// read-only.
func (c *cacheTest) roomForMetadata() bool {
	roomy := 0
	for _, d := range c.last.Layout.Devices {
		if d.Usable && d.Size-min(d.Size, d.Used) >= uint64(512*mib) {
			roomy++
		}
	}
	return roomy >= 3
}

func (c *cacheTest) fill() (string, error) {
	if c.crowded() {
		return c.delete()
	}
	size := (16 + c.rng.Int64N(300)) * mib
	name := c.name("file")
	c.files = append(c.files, name)
	return fmt.Sprintf("allocate %d MiB", size/mib), c.pool.Allocate(name, size)
}

func (c *cacheTest) write() (string, error) {
	name := c.name("dir")
	c.files = append(c.files, name)
	dir := c.pool.Path(name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "write small files", err
	}
	n := 20 + c.rng.IntN(200)
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), make([]byte, 1+c.rng.IntN(6000)), 0o644); err != nil {
			return "write small files", err
		}
	}
	return fmt.Sprintf("write %d small files", n), nil
}

func (c *cacheTest) delete() (string, error) {
	deleted := 0
	for i := 0; i < len(c.files); {
		if c.rng.IntN(2) == 0 {
			i++
			continue
		}
		if err := os.RemoveAll(c.pool.Path(c.files[i])); err != nil {
			return "delete", err
		}
		c.files = slices.Delete(c.files, i, i+1)
		deleted++
	}
	return fmt.Sprintf("delete %d files", deleted), nil
}

func (c *cacheTest) balance() (string, error) {
	// A chunk that only moves leaves all sums as they were.
	kind := []string{"-dlimit=1", "-dusage=60,limit=1", "-dusage=0", "-mlimit=1", "-mlimit=1"}[c.rng.IntN(5)]
	if kind == "-mlimit=1" && !c.roomForMetadata() {
		return "balance no metadata", nil
	}
	return "balance " + kind, c.pool.Balance(kind)
}

func (c *cacheTest) convert() (string, error) {
	profile := []string{"single", "raid0", "raid1", "raid1", "raid10", "dup", "raid1c3", "raid5"}[c.rng.IntN(8)]
	if c.rng.IntN(4) == 0 && c.roomForMetadata() {
		metadata := []string{"raid1", "dup"}[c.rng.IntN(2)]
		return "convert metadata to " + metadata, c.pool.Convert("", metadata)
	}
	return "convert a chunk of data to " + profile, c.pool.Convert(profile, "", "limit=1")
}

func (c *cacheTest) addDisk() (string, error) {
	if len(c.pool.Disks) >= 6 {
		return c.removeDisk()
	}
	size := (1 + c.rng.Int64N(3)) * gib
	_, err := c.pool.AddDisk(size)
	return fmt.Sprintf("add a disk of %d GiB", size/gib), err
}

func (c *cacheTest) removeDisk() (string, error) {
	disk := c.anyDisk()
	if len(c.pool.Disks) <= 3 || c.crowded() {
		return "remove no disk", nil
	}
	return fmt.Sprintf("remove disk %d", disk.DevID), c.pool.RemoveDisk(disk.DevID)
}

func (c *cacheTest) anyDisk() *btrfstest.Disk { return c.pool.Disks[c.rng.IntN(len(c.pool.Disks))] }

func (c *cacheTest) resize() (string, error) {
	disk := c.anyDisk()
	size := disk.Size - c.rng.Int64N(6)*64*mib
	return fmt.Sprintf("resize disk %d to %d MiB", disk.DevID, size/mib), c.pool.ResizeDisk(disk.DevID, size)
}

func (c *cacheTest) replace() (string, error) {
	disk := c.anyDisk()
	done := fmt.Sprintf("replace disk %d", disk.DevID)
	target, err := c.rig.NewDisk(btrfstest.DiskOptions{Size: disk.Size + c.rng.Int64N(2)*256*mib})
	if err != nil {
		return done, err
	}
	return done, c.pool.Replace(disk.DevID, target, true)
}

func (c *cacheTest) snapshot() (string, error) {
	if len(c.subvolumes) > 3 {
		path := c.pool.Path(c.subvolumes[0])
		c.subvolumes = c.subvolumes[1:]
		if out, err := exec.Command("btrfs", "subvolume", "delete", path).CombinedOutput(); err != nil {
			return "delete a snapshot", fmt.Errorf("%w: %s", err, out)
		}
		return "delete a snapshot", nil
	}
	name := c.name("snapshot")
	c.subvolumes = append(c.subvolumes, name)
	return "snapshot", c.pool.Snapshot(".", name, c.rng.IntN(2) == 0)
}

func (c *cacheTest) remount() (string, error) {
	if err := c.pool.Unmount(); err != nil {
		return "mount again", err
	}
	return "mount again", c.pool.Mount()
}

func (c *cacheTest) nothing() (string, error) { return "nothing", nil }
