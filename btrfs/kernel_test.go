// The test rig needs go-fuse, which does not build on 32-bit machines.
//go:build linux && (amd64 || arm64)

package btrfs_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newPool(t *testing.T, rig *btrfstest.Rig, options btrfstest.PoolOptions) *btrfstest.Pool {
	t.Helper()
	pool, err := rig.NewPool(options)
	ok(t, err)
	return pool
}

func open(t *testing.T, pool *btrfstest.Pool) *btrfs.Filesystem {
	t.Helper()
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	ok(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// findMount returns a pool as discovery finds it, and nil if it does not.
func findMount(t *testing.T, client *btrfs.Client, uuid string) *btrfs.Mount {
	t.Helper()
	mounts, err := client.Mounts()
	ok(t, err)
	var found *btrfs.Mount
	for i := range mounts {
		if mounts[i].UUID.String() != uuid {
			continue
		}
		if found != nil {
			t.Fatalf("pool %s is there twice: %+v and %+v", uuid, *found, mounts[i])
		}
		found = &mounts[i]
	}
	return found
}

func record(t *testing.T, pool *btrfstest.Pool) *btrfs.Pool {
	t.Helper()
	client := btrfs.NewClient(btrfs.DefaultPaths())
	m := findMount(t, client, pool.UUID)
	if m == nil {
		t.Fatalf("pool %s is not found", pool.UUID)
	}
	p, err := client.Record(m)
	ok(t, err)
	return p
}

// agedPool is a pool of four mismatched disks that has been in use.
func agedPool(t *testing.T, rig *btrfstest.Rig) *btrfstest.Pool {
	t.Helper()
	pool := newPool(t, rig, btrfstest.PoolOptions{
		Sizes: []int64{3 * gib, 2 * gib, gib, gib}, Data: "raid1", Metadata: "raid1", Label: "aged",
	})
	steps, err := pool.Age(rand.New(rand.NewPCG(7, 7)), 12)
	if err != nil {
		t.Fatalf("%v, after:\n%s", err, strings.Join(steps, "\n"))
	}
	return pool
}

func TestPoolReadsBackFromJSON(t *testing.T) {
	want := record(t, agedPool(t, btrfstest.New(t)))
	if !want.Chunks.Known || len(want.Chunks.Value) == 0 || len(want.Devices) == 0 || len(want.Spaces) < 3 || want.Label != "aged" {
		t.Errorf("the recorded pool is not complete: %+v", want)
	}
	text, err := json.MarshalIndent(want, "", "\t")
	ok(t, err)
	var got btrfs.Pool
	ok(t, json.Unmarshal(text, &got))
	if diff := gocmp.Diff(want, &got); diff != "" {
		t.Errorf("-recorded +read back:\n%s", diff)
	}
}

func TestDeviceExtentsAgreeWithChunks(t *testing.T) {
	f := open(t, agedPool(t, btrfstest.New(t)))
	var fromChunks, fromDevices []btrfs.DeviceExtent
	_, err := f.WalkChunks(func(c *btrfs.Chunk) error {
		for _, s := range c.Stripes {
			fromChunks = append(fromChunks, btrfs.DeviceExtent{DevID: s.DevID, Offset: s.Offset, Length: c.StripeLength(), Chunk: c.Logical})
		}
		return nil
	})
	ok(t, err)
	slices.SortFunc(fromChunks, func(a, b btrfs.DeviceExtent) int {
		return cmp.Or(cmp.Compare(a.DevID, b.DevID), cmp.Compare(a.Offset, b.Offset))
	})
	ok(t, f.WalkDeviceExtents(func(e btrfs.DeviceExtent) error {
		fromDevices = append(fromDevices, e)
		return nil
	}))
	if len(fromDevices) == 0 {
		t.Error("there are no device extents")
	}
	if diff := gocmp.Diff(fromDevices, fromChunks); diff != "" {
		t.Errorf("-device extents +chunks:\n%s", diff)
	}
}

// The sums over the chunks are what the kernel accounts for each device.
func TestChunksAddUpToTheKernelsAccounting(t *testing.T) {
	p := record(t, agedPool(t, btrfstest.New(t)))
	used := map[uint64]uint64{}
	sizes := map[btrfs.BlockGroupType]uint64{}
	for _, c := range p.Chunks.Value {
		sizes[c.Type] += c.Length
		for _, s := range c.Stripes {
			used[s.DevID] += c.StripeLength()
		}
	}
	for _, d := range p.Devices {
		if d.Used != btrfs.Some(used[d.ID]) {
			t.Errorf("device %d: %d bytes in chunks, and the kernel says %+v", d.ID, used[d.ID], d.Used)
		}
	}
	for _, s := range p.Spaces {
		if s.Total != sizes[s.Type] {
			t.Errorf("%s: %d bytes in chunks, and the kernel says %d", s.Type, sizes[s.Type], s.Total)
		}
		var total, inUse uint64
		for _, profile := range s.Profiles {
			total += profile.Total
			inUse += profile.Used
		}
		if total != s.Total || inUse != s.Used {
			t.Errorf("%s: the profiles add up to %d of %d bytes, and the kernel says %d of %d", s.Type, inUse, total, s.Used, s.Total)
		}
	}
}

// treeWatch holds what was last seen of a pool's chunk tree. It opens the pool
// anew for each look, as scrapes do.
type treeWatch struct {
	t      *testing.T
	pool   *btrfstest.Pool
	state  btrfs.ChunkTreeState
	chunks []btrfs.Chunk
}

func (w *treeWatch) opened(use func(*btrfs.Filesystem)) {
	w.t.Helper()
	f, err := btrfs.OpenFilesystem(w.pool.Mountpoint)
	ok(w.t, err)
	defer f.Close()
	use(f)
}

func (w *treeWatch) look() {
	w.t.Helper()
	w.opened(func(f *btrfs.Filesystem) {
		var err error
		w.chunks = nil
		w.state, err = f.WalkChunks(func(c *btrfs.Chunk) error {
			chunk := *c
			chunk.Stripes = slices.Clone(c.Stripes)
			w.chunks = append(w.chunks, chunk)
			return nil
		})
		ok(w.t, err)
	})
}

// expect checks what ChunkTreeChanged says, and against the chunks themselves.
func (w *treeWatch) expect(what string, want bool) {
	w.t.Helper()
	before := w.chunks
	for range 3 { // it may remember something from the times before
		w.opened(func(f *btrfs.Filesystem) {
			changed, err := f.ChunkTreeChanged(&w.state)
			ok(w.t, err)
			if changed != want {
				w.t.Errorf("%s: changed %t, want %t", what, changed, want)
			}
		})
	}
	w.look()
	diff := gocmp.Diff(before, w.chunks)
	if !want && diff != "" {
		w.t.Errorf("%s: but the chunks are others now:\n%s", what, diff)
	}
	if want && diff == "" {
		w.t.Errorf("%s: but the chunks are the same; the test did not do what it meant to", what)
	}
}

func TestChunkTreeChanged(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{
		Sizes: []int64{8 * gib, 8 * gib}, Data: "raid1", Metadata: "raid1",
		// The test says when a transaction ends.
		MountOptions: []string{"commit=300"},
	})
	rng := rand.New(rand.NewPCG(1, 1))
	// Of the same size as those to come: extents of another size class get
	// another chunk (btrfs_calc_block_group_size_class in
	// fs/btrfs/block-group.c).
	ok(t, pool.WriteFile("first", 64<<10, rng))
	// Nothing may be left that the kernel would clean up by itself.
	ok(t, pool.Balance("-dusage=0", "-musage=0"))
	w := &treeWatch{t: t, pool: pool}
	w.look()
	w.expect("nothing done", false)

	for i := range 40 {
		ok(t, pool.WriteFile(fmt.Sprintf("file-%d", i), 64<<10, rng))
		ok(t, pool.Sync())
	}
	w.expect("40 transactions within the chunks there are", false)

	generation := func() string {
		t.Helper()
		text, err := pool.Sysfs("generation")
		ok(t, err)
		return text
	}
	changes := map[string]int{}
	for i := range 4 {
		ok(t, pool.Allocate(fmt.Sprintf("large-%d", i), gib))
		w.expect("a chunk made", true)
		changes[generation()]++
		w.expect("nothing done since", false)
	}
	if most := slices.Max(slices.Collect(mapValues(changes))); most < 2 {
		t.Errorf("no two of the changes were made in one transaction: %v", changes)
	}
	ok(t, pool.Sync())
	w.expect("the transaction committed", false)

	for i := range 4 {
		ok(t, os.Remove(pool.Path(fmt.Sprintf("large-%d", i))))
	}
	ok(t, pool.Sync())
	w.look() // the cleaner may or may not have been there already
	ok(t, pool.Allocate("again", 2*gib))
	w.look()
	ok(t, os.Remove(pool.Path("again")))
	ok(t, pool.Sync())
	ok(t, pool.Balance("-dusage=0"))
	w.expect("empty chunks removed", true)
	ok(t, pool.Balance("-d"))
	w.expect("data balanced", true)
	ok(t, pool.Convert("single", ""))
	w.expect("data converted", true)

	_, err := pool.AddDisk(2 * gib)
	ok(t, err)
	ok(t, pool.Balance("-m"))
	w.expect("a device added and metadata balanced", true)
	ok(t, pool.RemoveDisk(1))
	w.expect("a device removed", true)
}

func mapValues(m map[string]int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// bind makes a bind mount of source, a path on a pool, and undoes it with the
// test.
func bind(t *testing.T, source, target string) {
	t.Helper()
	ok(t, unix.Mount(source, target, "", unix.MS_BIND, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
}

func TestMountsFindsEachPoolOnce(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1"})
	ok(t, pool.NewSubvolume("@home"))
	ok(t, os.WriteFile(pool.Path("@home/file"), []byte("x"), 0o644))
	ok(t, os.Mkdir(pool.Path("gone"), 0o755))

	subvolume := filepath.Join(rig.Dir(), "mnt", "a subvolume\tof \\ it\n#é")
	ok(t, os.Mkdir(subvolume, 0o755))
	ok(t, unix.Mount(pool.Disks[1].Loop, subvolume, "btrfs", 0, "subvol=@home"))
	file, directory := filepath.Join(rig.Dir(), "mnt", "file"), filepath.Join(rig.Dir(), "mnt", "dir")
	ok(t, os.WriteFile(file, nil, 0o644))
	ok(t, os.Mkdir(directory, 0o755))
	bind(t, pool.Path("@home/file"), file)
	bind(t, pool.Path("gone"), directory)
	ok(t, os.Remove(pool.Path("gone")))

	client := btrfs.NewClient(btrfs.DefaultPaths())
	m := findMount(t, client, pool.UUID)
	if m == nil {
		t.Fatal("the pool is not found")
	}
	var paths []string
	for _, p := range m.Points {
		paths = append(paths, p.Path)
	}
	if want := []string{pool.Mountpoint, subvolume, file, directory}; !slices.Equal(paths, want) {
		t.Errorf("mounted on %q, want %q", paths, want)
	}
	if m.ReadOnly != btrfs.Some(false) {
		t.Errorf("read-only %+v", m.ReadOnly)
	}

	// Any of them will do to read the pool, the best is taken.
	for range 4 {
		f, mountpoint, err := client.Open(m)
		ok(t, err)
		p, err := client.ReadPool(f, m, mountpoint)
		ok(t, err)
		ok(t, f.Close())
		if p.UUID.String() != pool.UUID || p.Mountpoint != paths[0] {
			t.Errorf("read pool %s on %q, want %s on %q", p.UUID, p.Mountpoint, pool.UUID, paths[0])
		}
		ok(t, unix.Unmount(paths[0], 0))
		paths = paths[1:]
		// The list of mounts is the one from before: what is gone since is
		// passed over.
		if len(paths) == 0 {
			break
		}
	}
	if _, _, err := client.Open(m); err == nil {
		t.Error("a pool that is mounted nowhere can be opened")
	}
	ok(t, pool.Unmount())
	if m := findMount(t, client, pool.UUID); m != nil {
		t.Errorf("an unmounted pool is found: %+v", m)
	}
}

func TestOpenRefusesAnotherFilesystem(t *testing.T) {
	btrfstest.Require(t)
	if f, err := btrfs.OpenFilesystem("/proc"); !errors.Is(err, btrfs.ErrNotBtrfs) {
		t.Errorf("/proc: got %v %v", f, err)
	}
	if f, err := btrfs.OpenFilesystem(filepath.Join(t.TempDir(), "none")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a path that is not there: got %v %v", f, err)
	}
}

// What is read agrees with btrfs-progs.
func TestReadPoolAgreesWithBtrfsProgs(t *testing.T) {
	pool := agedPool(t, btrfstest.New(t))
	p := record(t, pool)
	usage, err := exec.Command("btrfs", "filesystem", "usage", "-b", pool.Mountpoint).Output()
	ok(t, err)
	value := func(name string) string {
		t.Helper()
		for line := range strings.Lines(string(usage)) {
			if rest, found := strings.CutPrefix(strings.TrimSpace(line), name+":"); found {
				return strings.Fields(rest)[0]
			}
		}
		t.Fatalf("no %s in\n%s", name, usage)
		return ""
	}
	var size, allocated uint64
	for _, d := range p.Devices {
		size += d.Size.Value
		allocated += d.Used.Value
	}
	for _, tt := range []struct {
		name string
		got  uint64
	}{
		{"Device size", size},
		{"Device allocated", allocated},
		{"Global reserve", p.GlobalReserve.Size.Value},
		{"Free (statfs, df)", p.StatfsFree.Value},
	} {
		if want := value(tt.name); fmt.Sprint(tt.got) != want {
			t.Errorf("%s: %d, and btrfs filesystem usage says %s", tt.name, tt.got, want)
		}
	}
}
