// The test rig needs go-fuse, which does not build on 32-bit machines.
//go:build linux && (amd64 || arm64)

package damage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func random() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

func newPool(t *testing.T, options btrfstest.PoolOptions) *btrfstest.Pool {
	t.Helper()
	pool, err := btrfstest.New(t).NewPool(options)
	ok(t, err)
	t.Cleanup(func() { os.Remove("/var/lib/btrfs/scrub.status." + pool.UUID) })
	return pool
}

func open(t *testing.T, pool *btrfstest.Pool) *btrfs.Filesystem {
	t.Helper()
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	ok(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func devicesOf(pool *btrfstest.Pool) []Device {
	var devices []Device
	for _, d := range pool.Disks {
		devices = append(devices, Device{DevID: d.DevID, Name: filepath.Base(d.Loop), Path: d.Loop})
	}
	return devices
}

func chunksOf(t *testing.T, f *btrfs.Filesystem) []btrfs.Chunk {
	t.Helper()
	var chunks []btrfs.Chunk
	_, err := f.WalkChunks(func(c *btrfs.Chunk) error {
		copied := *c
		copied.Stripes = slices.Clone(c.Stripes)
		chunks = append(chunks, copied)
		return nil
	})
	ok(t, err)
	return chunks
}

// logicalOf finds the logical address of a place on a device.
func logicalOf(t *testing.T, chunks []btrfs.Chunk, at btrfstest.Location) uint64 {
	t.Helper()
	for i := range chunks {
		c := &chunks[i]
		for logical := c.Logical; logical < c.Logical+c.Length; {
			copies, together, err := places(c, logical)
			ok(t, err)
			for _, p := range copies {
				if p.devid == at.DevID && uint64(at.Physical) >= p.physical && uint64(at.Physical)-p.physical < together {
					return logical + uint64(at.Physical) - p.physical
				}
			}
			logical += together
		}
	}
	t.Fatalf("no chunk has %d of device %d", at.Physical, at.DevID)
	return 0
}

// verifyAll verifies every chunk on every device.
func verifyAll(t *testing.T, pool *btrfstest.Pool, f *btrfs.Filesystem) map[uint64][]BadBlock {
	t.Helper()
	bad := make(map[uint64][]BadBlock)
	for _, c := range chunksOf(t, f) {
		for _, d := range devicesOf(pool) {
			b, err := Verify(context.Background(), f, &c, d.DevID, d.Path)
			ok(t, err)
			bad[d.DevID] = append(bad[d.DevID], b...)
		}
	}
	for devid, b := range bad {
		if len(b) == 0 {
			delete(bad, devid)
		}
	}
	return bad
}

func TestVerifyFindsTheBadSectorsOfEachProfile(t *testing.T) {
	for _, tt := range []struct {
		data  string
		mkfs  []string
		mixed bool
	}{
		{data: "single"}, {data: "dup"}, {data: "raid0"}, {data: "raid1"}, {data: "raid1c3"}, {data: "raid10"},
		{data: "raid1", mkfs: []string{"--csum", "xxhash"}},
		{data: "raid1", mkfs: []string{"--csum", "sha256"}},
		{data: "raid1", mkfs: []string{"--csum", "blake2", "--nodesize", "65536"}},
		{data: "raid1", mixed: true},
	} {
		t.Run(fmt.Sprint(tt.data, tt.mkfs, tt.mixed), func(t *testing.T) {
			options := btrfstest.PoolOptions{Sizes: []int64{gib, gib, gib, gib}, Data: tt.data, Metadata: "raid1", MkfsArgs: tt.mkfs, Mixed: tt.mixed}
			if tt.data == "dup" {
				options.Sizes, options.Metadata = options.Sizes[:1], "dup"
			}
			pool := newPool(t, options)
			ok(t, pool.WriteFile("file", 8*mib, random()))
			ok(t, pool.Snapshot(".", "snap", true))
			ok(t, pool.Sync())
			f := open(t, pool)
			if bad := verifyAll(t, pool, f); len(bad) > 0 {
				t.Fatalf("of an intact pool: %+v", bad)
			}
			chunks := chunksOf(t, f)
			want := make(map[uint64][]BadBlock)
			for i, offset := range []int64{0, 64*kib - 4*kib, 64 * kib, 3*mib + 20*kib, 8*mib - 4*kib} {
				locations, err := pool.Physical("file", offset)
				ok(t, err)
				mirror := i % len(locations)
				at := locations[mirror]
				ok(t, pool.CorruptFile("file", offset, mirror))
				want[at.DevID] = append(want[at.DevID], BadBlock{Logical: logicalOf(t, chunks, at), Physical: uint64(at.Physical), Length: 4 * kib})
			}
			got := verifyAll(t, pool, f)
			sorted := cmpopts.SortSlices(func(a, b BadBlock) bool { return a.Logical < b.Logical })
			if diff := cmp.Diff(want, got, sorted); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestVerifyOfAPoolInUseFindsNothing(t *testing.T) {
	pool := newPool(t, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1"})
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		rng := random()
		for i := 0; ; i++ {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			name := fmt.Sprint("file", i%8)
			if err := pool.WriteFile(name, 2*mib, rng); err != nil {
				stopped <- err
				return
			}
			if i%5 == 4 {
				if err := os.Remove(pool.Path(name)); err != nil {
					stopped <- err
					return
				}
			}
		}
	}()
	for range 20 {
		f, err := btrfs.OpenFilesystem(pool.Mountpoint)
		ok(t, err)
		if bad := verifyAll(t, pool, f); len(bad) > 0 {
			t.Errorf("%+v", bad)
		}
		ok(t, f.Close())
	}
	close(stop)
	ok(t, <-stopped)
}

func TestVerifyRefusesWhatItCannot(t *testing.T) {
	pool := newPool(t, btrfstest.PoolOptions{Sizes: []int64{gib, gib, gib}, Data: "raid5", Metadata: "raid1"})
	ok(t, pool.WriteFile("file", mib, random()))
	f := open(t, pool)
	devices := devicesOf(pool)
	for _, c := range chunksOf(t, f) {
		_, err := Verify(context.Background(), f, &c, 1, devices[0].Path)
		if c.Profile == btrfs.RAID5 && !errors.Is(err, ErrParity) || c.Profile != btrfs.RAID5 && err != nil {
			t.Errorf("%s: %v", c.Profile, err)
		}
		if c.Profile == btrfs.RAID5 {
			continue
		}
		if _, err := Verify(context.Background(), f, &c, 1, devices[1].Path); err == nil {
			t.Error("another device of the pool is taken for device 1")
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := Verify(ctx, f, &c, 1, devices[0].Path); c.Type == btrfs.Metadata && !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
}

func TestVerifyFindsWhatCannotBeRead(t *testing.T) {
	pool := newPool(t, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1"})
	ok(t, pool.WriteFile("file", 8*mib, random()))
	f := open(t, pool)
	// The end of the image goes: the loop device gives errors from there on.
	last, err := pool.Physical("file", 8*mib-4*kib)
	ok(t, err)
	at := last[0]
	ok(t, pool.DropCaches())
	ok(t, os.Truncate(pool.Disk(at.DevID).Image, at.Physical))
	got := verifyAll(t, pool, f)
	want := map[uint64][]BadBlock{at.DevID: {{Logical: logicalOf(t, chunksOf(t, f), at), Physical: uint64(at.Physical), Length: 4 * kib, Unreadable: true}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// limitInterval is how long the kernel says no more when it has said ten
// messages of a kind (DEFAULT_RATELIMIT_INTERVAL), of whatever pool.
const limitInterval = 5 * time.Second

// scrubbed damages a pool, runs a scrub with btrfs-progs and returns what the
// kernel said. Where that is not enough it does so again when the kernel's
// limit is over: other tests may have made it silent.
func scrubbed(t *testing.T, pool *btrfstest.Pool, damage func(), enough func([]Message) bool, args ...string) []Message {
	t.Helper()
	var names []string
	for _, d := range devicesOf(pool) {
		names = append(names, d.Name)
	}
	args = append(append([]string{"scrub", "start", "-B"}, args...), pool.Mountpoint)
	var messages []Message
	for range 12 {
		log, err := OpenKernelLog(names...)
		ok(t, err)
		damage()
		// It fails where there are uncorrectable errors.
		if out, err := exec.Command("btrfs", args...).CombinedOutput(); err != nil && !errors.As(err, new(*exec.ExitError)) {
			t.Fatalf("btrfs: %v\n%s", err, out)
		}
		messages, _, err = log.Read()
		ok(t, err)
		ok(t, log.Close())
		if enough(messages) {
			return messages
		}
		time.Sleep(limitInterval)
	}
	t.Fatalf("the kernel did not say enough: %+v", messages)
	return nil
}

// count returns a condition: so many different places of the kinds.
func count(n int, kinds ...Kind) func([]Message) bool {
	return func(messages []Message) bool {
		type at struct {
			device            string
			logical, physical uint64
		}
		seen := make(map[at]bool)
		for _, m := range messages {
			if slices.Contains(kinds, m.Kind) {
				seen[at{m.Device, m.Logical, m.Physical}] = true
			}
		}
		return len(seen) >= n
	}
}

func all(conditions ...func([]Message) bool) func([]Message) bool {
	return func(messages []Message) bool {
		return !slices.ContainsFunc(conditions, func(c func([]Message) bool) bool { return !c(messages) })
	}
}

func nothing() {}

// filePool has a file in the top, in a subvolume and in its snapshot.
func filePool(t *testing.T) *btrfstest.Pool {
	t.Helper()
	pool := newPool(t, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1"})
	ok(t, pool.NewSubvolume("@home"))
	ok(t, os.MkdirAll(pool.Path("@home/a dir"), 0o755))
	ok(t, pool.WriteFile("@home/a dir/file", mib, random()))
	ok(t, os.Mkdir(pool.Path("snapshots"), 0o755))
	ok(t, pool.Snapshot("@home", "snapshots/@home.1", true))
	ok(t, pool.WriteFile("top", mib, random()))
	ok(t, pool.Sync())
	return pool
}

func locate(t *testing.T, pool *btrfstest.Pool, messages []Message) *Damage {
	t.Helper()
	damage, err := Locate(context.Background(), open(t, pool), devicesOf(pool), messages)
	ok(t, err)
	return damage
}

// bad is the block of a byte of a file on one mirror.
func bad(t *testing.T, pool *btrfstest.Pool, file string, offset int64, mirror int, files ...DamagedFile) DamagedBlock {
	t.Helper()
	locations, err := pool.Physical(file, offset)
	ok(t, err)
	at := locations[mirror]
	return DamagedBlock{
		Device: filepath.Base(pool.Disk(at.DevID).Loop), DevID: at.DevID, Physical: uint64(at.Physical),
		Logical: logicalOf(t, chunksOf(t, open(t, pool)), at), Files: files,
	}
}

var anyInode = cmpopts.IgnoreFields(DamagedFile{}, "Inode")

func TestFilesOfUncorrectableErrors(t *testing.T) {
	for _, mode := range []string{"-r", "-q"} {
		pool := filePool(t)
		const offset, topOffset = 64*kib + 8*kib, 512*kib + 60*kib
		files := []DamagedFile{{Subvolume: "@home", Path: "a dir/file", Offset: offset}, {Subvolume: "snapshots/@home.1", Path: "a dir/file", Offset: offset}}
		top := DamagedFile{Path: "top", Offset: topOffset}
		want := &Damage{Errors: []DamagedBlock{
			bad(t, pool, "@home/a dir/file", offset, 0, files...), bad(t, pool, "@home/a dir/file", offset, 1, files...),
			bad(t, pool, "top", topOffset, 0, top), bad(t, pool, "top", topOffset, 1, top),
		}}
		ok(t, pool.CorruptFile("@home/a dir/file", offset, btrfstest.AllMirrors))
		ok(t, pool.CorruptFile("top", topOffset, btrfstest.AllMirrors))
		messages := scrubbed(t, pool, nothing, count(4, Uncorrectable), mode)
		got := locate(t, pool, messages)
		sorted := cmpopts.SortSlices(func(a, b DamagedBlock) bool {
			return a.Logical < b.Logical || a.Logical == b.Logical && a.DevID < b.DevID
		})
		if diff := cmp.Diff(want, got, anyInode, sorted); diff != "" {
			t.Errorf("scrub %s: -want +got:\n%s\n%+v", mode, diff, messages)
		}
	}
}

func TestCorrectedErrorIsBadUntilItIsRepaired(t *testing.T) {
	pool := filePool(t)
	const offset = 128*kib + 12*kib
	file := DamagedFile{Path: "top", Offset: offset}
	block := bad(t, pool, "top", offset, 1, file)
	corrupt := func() { ok(t, pool.CorruptFile("top", offset, 1)) }

	// A look finds the sector.
	messages := scrubbed(t, pool, corrupt, count(1, Corrected), "-r")
	if diff := cmp.Diff(&Damage{Errors: []DamagedBlock{block}}, locate(t, pool, messages), anyInode); diff != "" {
		t.Errorf("after a look: -want +got:\n%s\n%+v", diff, messages)
	}
	// Of what is repaired, no more is known than what the kernel said.
	block.Logical -= 12 * kib
	block.Physical -= 12 * kib
	block.Length, block.Corrected = 64*kib, true
	block.Files[0].Offset = 128 * kib
	messages = scrubbed(t, pool, corrupt, count(1, Corrected))
	if diff := cmp.Diff(&Damage{Errors: []DamagedBlock{block}}, locate(t, pool, messages), anyInode); diff != "" {
		t.Errorf("after the repair: -want +got:\n%s\n%+v", diff, messages)
	}
}

// treeBlock returns a tree block of a subvolume's tree.
func treeBlock(t *testing.T, f *btrfs.Filesystem) (*btrfs.Chunk, uint64) {
	t.Helper()
	for _, c := range chunksOf(t, f) {
		if c.Type != btrfs.Metadata {
			continue
		}
		var block uint64
		ok(t, f.WalkTreeBlocks(c.Logical, c.Logical+c.Length, func(logical, _ uint64) error {
			block = logical
			return nil
		}))
		return &c, block
	}
	t.Fatal("there is no metadata")
	return nil, 0
}

func TestTreeBlocksAndSuperblocksAreMetadata(t *testing.T) {
	pool := filePool(t)
	f := open(t, pool)
	chunk, logical := treeBlock(t, f)
	copies, _, err := places(chunk, logical)
	ok(t, err)
	at := copies[1]
	corrupt := func() {
		ok(t, pool.CorruptPhysical(btrfstest.Location{DevID: at.devid, Physical: int64(at.physical) + 4*kib}, 100))
		ok(t, pool.CorruptPhysical(btrfstest.Location{DevID: 2, Physical: 64 * mib}, 4*kib))
	}
	name := func(devid uint64) string { return filepath.Base(pool.Disk(devid).Loop) }
	tree := DamagedBlock{Device: name(at.devid), DevID: at.devid, Logical: logical, Physical: at.physical, Metadata: true}
	super := DamagedBlock{Device: name(2), DevID: 2, Physical: 64 * mib, Metadata: true}

	messages := scrubbed(t, pool, corrupt, all(count(1, SuperBlock), count(1, TreeBlock), count(1, Corrected)), "-r")
	if diff := cmp.Diff(&Damage{Errors: []DamagedBlock{super, tree}}, locate(t, pool, messages)); diff != "" {
		t.Errorf("after a look: -want +got:\n%s\n%+v", diff, messages)
	}
	tree.Corrected = true
	messages = scrubbed(t, pool, corrupt, all(count(1, TreeBlock), count(1, Corrected)))
	got := locate(t, pool, messages)
	i := slices.IndexFunc(got.Errors, func(b DamagedBlock) bool { return b.Logical != 0 })
	if i < 0 {
		t.Fatalf("after the repair: %+v\n%+v", got, messages)
	}
	if diff := cmp.Diff(tree, got.Errors[i]); diff != "" {
		t.Errorf("after the repair: -want +got:\n%s\n%+v", diff, messages)
	}
}

func TestFilesOfVerifiedBlocks(t *testing.T) {
	pool := filePool(t)
	want := bad(t, pool, "top", 8*kib, 0, DamagedFile{Path: "top", Offset: 8 * kib})
	ok(t, pool.CorruptFile("top", 8*kib, 0))
	f := open(t, pool)
	d := devicesOf(pool)[slices.IndexFunc(devicesOf(pool), func(d Device) bool { return d.DevID == want.DevID })]
	got, err := LocateBlocks(context.Background(), f, d, verifyAll(t, pool, f)[want.DevID])
	ok(t, err)
	if diff := cmp.Diff(&Damage{Errors: []DamagedBlock{want}}, got, anyInode); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestListsAreBounded(t *testing.T) {
	pool := newPool(t, btrfstest.PoolOptions{Sizes: []int64{gib}})
	ok(t, pool.WriteFile("file", 4*mib, random()))
	for i := range maxBlockFiles + 5 {
		if out, err := exec.Command("cp", "--reflink=always", pool.Path("file"), pool.Path(fmt.Sprint("copy", i))).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v\n%s", err, out)
		}
	}
	ok(t, pool.Sync())
	f := open(t, pool)
	at, err := pool.Physical("file", 0)
	ok(t, err)
	block := BadBlock{Logical: logicalOf(t, chunksOf(t, f), at[0]), Physical: uint64(at[0].Physical), Length: 4 * kib}
	d := devicesOf(pool)[0]
	got, err := LocateBlocks(context.Background(), f, d, []BadBlock{block})
	ok(t, err)
	if len(got.Errors) != 1 || len(got.Errors[0].Files) != maxBlockFiles || !got.Truncated {
		t.Errorf("%d blocks, truncated %v", len(got.Errors), got.Truncated)
	}
	blocks := make([]BadBlock, maxBlocks+1)
	for i := range blocks {
		blocks[i] = BadBlock{Logical: uint64(i) * 4 * kib, Metadata: true}
	}
	got, err = LocateBlocks(context.Background(), f, d, blocks)
	ok(t, err)
	if len(got.Errors) != maxBlocks || !got.Truncated {
		t.Errorf("%d blocks, truncated %v", len(got.Errors), got.Truncated)
	}
}
