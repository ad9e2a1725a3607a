// The test rig needs go-fuse, which does not build on 32-bit machines.
//go:build linux && (amd64 || arm64)

package btrfs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

// logicalOf returns the logical address of a byte of a file.
func logicalOf(t *testing.T, pool *btrfstest.Pool, file string, offset int64) uint64 {
	t.Helper()
	at, err := pool.Physical(file, offset)
	ok(t, err)
	f := open(t, pool)
	var logical uint64
	_, err = f.WalkChunks(func(c *btrfs.Chunk) error {
		for _, s := range c.Stripes {
			// The rest of the tests' pools have whole copies as stripes.
			if s.DevID == at[0].DevID && uint64(at[0].Physical) >= s.Offset && uint64(at[0].Physical)-s.Offset < c.Length {
				logical = c.Logical + uint64(at[0].Physical) - s.Offset
			}
		}
		return nil
	})
	ok(t, err)
	if logical == 0 {
		t.Fatalf("no chunk holds byte %d of %s", offset, file)
	}
	return logical
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	ok(t, unix.Lstat(path, &st))
	return st.Ino
}

// subvolumeID reads the id of a subvolume from `btrfs`.
func subvolumeID(t *testing.T, path string) uint64 {
	t.Helper()
	out, err := exec.Command("btrfs", "inspect-internal", "rootid", path).CombinedOutput()
	if err != nil {
		t.Fatalf("rootid: %v: %s", err, out)
	}
	var id uint64
	_, err = fmt.Sscan(string(out), &id)
	ok(t, err)
	return id
}

func sortInodes(inodes []btrfs.Inode) {
	slices.SortFunc(inodes, func(a, b btrfs.Inode) int {
		return bytes.Compare(fmt.Appendf(nil, "%20d %20d %20d", a.Subvolume, a.Number, a.Offset), fmt.Appendf(nil, "%20d %20d %20d", b.Subvolume, b.Number, b.Offset))
	})
}

func TestLogicalAddressLeadsToTheFilesOfAllSubvolumes(t *testing.T) {
	pool := newPool(t, btrfstest.New(t), btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1"})
	ok(t, pool.NewSubvolume("@home"))
	ok(t, os.MkdirAll(pool.Path("@home/a dir/b"), 0o755))
	ok(t, pool.WriteFile("@home/a dir/b/file ä", 4*mib, rand.New(rand.NewPCG(1, 2))))
	ok(t, os.MkdirAll(pool.Path("backup/old"), 0o755))
	ok(t, pool.Snapshot("@home", "backup/old/snap", true))
	// A subvolume within a subvolume, and a reflink with another offset.
	ok(t, pool.NewSubvolume("@home/a dir/nested"))
	clone(t, pool.Path("@home/a dir/b/file ä"), pool.Path("@home/a dir/nested/clone"), mib, 2*mib, 3*mib)
	ok(t, pool.Sync())

	home, snap, nested := subvolumeID(t, pool.Path("@home")), subvolumeID(t, pool.Path("backup/old/snap")), subvolumeID(t, pool.Path("@home/a dir/nested"))
	file, cloned := inode(t, pool.Path("@home/a dir/b/file ä")), inode(t, pool.Path("@home/a dir/nested/clone"))
	f := open(t, pool)
	const offset = 2*mib + 12288
	got, complete, err := f.LogicalInodes(logicalOf(t, pool, "@home/a dir/b/file ä", offset))
	ok(t, err)
	if !complete {
		t.Error("three files do not fit into one answer")
	}
	want := []btrfs.Inode{{file, offset, home}, {file, offset, snap}, {cloned, offset + 2*mib, nested}}
	sortInodes(got)
	sortInodes(want)
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	for _, tt := range []struct {
		subvolume, inode uint64
		path, top        string
	}{
		{home, file, "a dir/b/file ä", "@home"},
		{snap, file, "a dir/b/file ä", "backup/old/snap"},
		{nested, cloned, "clone", "@home/a dir/nested"},
		{home, inode(t, pool.Path("@home/a dir")), "a dir", "@home"},
		{home, 256, "", "@home"},
		{5, inode(t, pool.Path("backup/old")), "backup/old", ""},
	} {
		path, err := f.InodePath(tt.subvolume, tt.inode)
		if err != nil || path != tt.path {
			t.Errorf("inode %d of subvolume %d is %q (%v), want %q", tt.inode, tt.subvolume, path, err, tt.path)
		}
		top, err := f.SubvolumePath(tt.subvolume)
		if err != nil || top != tt.top {
			t.Errorf("subvolume %d is %q (%v), want %q", tt.subvolume, top, err, tt.top)
		}
	}
}

// clone makes a file that has length bytes of another from an offset on at an
// offset of its own.
func clone(t *testing.T, from, to string, fromOffset, length, toOffset uint64) {
	t.Helper()
	source, err := os.Open(from)
	ok(t, err)
	defer source.Close()
	target, err := os.Create(to)
	ok(t, err)
	defer target.Close()
	ok(t, unix.IoctlFileCloneRange(int(target.Fd()), &unix.FileCloneRange{
		Src_fd: int64(source.Fd()), Src_offset: fromOffset, Src_length: length, Dest_offset: toOffset,
	}))
}

func TestWhatIsGoneHasNoPath(t *testing.T) {
	pool := newPool(t, btrfstest.New(t), btrfstest.PoolOptions{Sizes: []int64{gib}})
	ok(t, pool.NewSubvolume("sub"))
	id := subvolumeID(t, pool.Path("sub"))
	ok(t, pool.WriteFile("file", mib, rand.New(rand.NewPCG(1, 2))))
	logical, number := logicalOf(t, pool, "file", 0), inode(t, pool.Path("file"))
	// Deleted and still open: it has data and no name.
	file, err := os.Open(pool.Path("file"))
	ok(t, err)
	ok(t, os.Remove(pool.Path("file")))
	ok(t, pool.Sync())
	f := open(t, pool)
	if inodes, _, err := f.LogicalInodes(logical); err != nil || len(inodes) != 1 || inodes[0].Number != number {
		t.Errorf("a deleted file that is open: %v, %v", inodes, err)
	}
	if path, err := f.InodePath(5, number); !errors.Is(err, unix.ENOENT) {
		t.Errorf("its path is %q, %v", path, err)
	}
	ok(t, file.Close())
	ok(t, pool.Sync())
	ok(t, pool.Sync()) // the first one commits that it is gone
	if inodes, _, err := f.LogicalInodes(logical); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a file that is gone: %v, %v", inodes, err)
	}
	if out, err := exec.Command("btrfs", "subvolume", "delete", "-c", pool.Path("sub")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if path, err := f.SubvolumePath(id); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a deleted subvolume is %q, %v", path, err)
	}
	if path, err := f.InodePath(id, 257); !errors.Is(err, unix.ENOENT) {
		t.Errorf("an inode of a deleted subvolume is %q, %v", path, err)
	}
}

func TestMetadataBelongsToNoFile(t *testing.T) {
	pool := newPool(t, btrfstest.New(t), btrfstest.PoolOptions{Sizes: []int64{gib}})
	f := open(t, pool)
	var chunk, end uint64
	_, err := f.WalkChunks(func(c *btrfs.Chunk) error {
		if c.Type == btrfs.Metadata {
			chunk, end = c.Logical, c.Logical+c.Length
		}
		return nil
	})
	ok(t, err)
	for logical := chunk; logical < end; logical += 16 << 10 {
		if inodes, _, err := f.LogicalInodes(logical); !errors.Is(err, unix.ENOENT) {
			t.Fatalf("%d belongs to %v, %v", logical, inodes, err)
		}
	}
	// Which of them are tree blocks, the extent tree says.
	var blocks int
	ok(t, f.WalkTreeBlocks(chunk, end, func(logical, generation uint64) error {
		if logical < chunk || logical >= end || generation == 0 {
			t.Errorf("tree block at %d of generation %d", logical, generation)
		}
		blocks++
		return nil
	}))
	if blocks < 5 {
		t.Errorf("%d tree blocks", blocks)
	}
}

func TestNamesInAFullDirectoryAndHardLinks(t *testing.T) {
	pool := newPool(t, btrfstest.New(t), btrfstest.PoolOptions{Sizes: []int64{gib}})
	// So long a path that INO_LOOKUP, which has 4080 bytes, cannot hold it.
	deep := ""
	for i := range 20 {
		deep = filepath.Join(deep, fmt.Sprintf("%02d-%s", i, strings.Repeat("x", 240)))
	}
	root, err := os.OpenRoot(pool.Mountpoint)
	ok(t, err)
	for name := range strings.SplitSeq(deep, "/") {
		ok(t, root.Mkdir(name, 0o755))
		next, err := root.OpenRoot(name)
		ok(t, err)
		root.Close()
		root = next
	}
	defer root.Close()
	file, err := root.Create("file")
	ok(t, err)
	info, err := file.Stat()
	ok(t, err)
	ok(t, file.Close())
	ok(t, pool.Sync())
	f := open(t, pool)
	number := info.Sys().(*syscall.Stat_t).Ino
	path, err := f.InodePath(5, number)
	if err != nil || path != deep+"/file" {
		t.Errorf("a path of %d bytes is read as one of %d, %v", len(deep)+5, len(path), err)
	}

	// More links than one item of names holds: btrfs then keeps the others in
	// items of another kind (INODE_EXTREF).
	ok(t, os.Mkdir(pool.Path("links"), 0o755))
	first := pool.Path("links/" + strings.Repeat("a", 200))
	ok(t, os.WriteFile(first, []byte("x"), 0o644))
	for i := range 500 {
		ok(t, os.Link(first, pool.Path(fmt.Sprintf("links/%s%04d", strings.Repeat("b", 200), i))))
	}
	// Those of the first item go, so that only the others are left.
	number = inode(t, first)
	ok(t, pool.Sync())
	for remaining := 501; remaining > 1; remaining-- {
		path, err := f.InodePath(5, number)
		if err != nil {
			t.Fatalf("with %d links: %v", remaining, err)
		}
		if inode(t, pool.Path(path)) != number {
			t.Fatalf("with %d links: %s is another file", remaining, path)
		}
		ok(t, os.Remove(pool.Path(path)))
	}
}

func TestDisksBeneathALoopDevice(t *testing.T) {
	pool := newPool(t, btrfstest.New(t), btrfstest.PoolOptions{Sizes: []int64{gib}})
	name := filepath.Base(pool.Disks[0].Loop)
	got, err := btrfs.NewClient(btrfs.DefaultPaths()).Disks(name)
	if err != nil || !slices.Equal(got, []string{name}) {
		t.Errorf("beneath %s: %v, %v", name, got, err)
	}
}

func TestDisksBeneathPartitionsAndStacks(t *testing.T) {
	sys := t.TempDir()
	dir := func(path string) { ok(t, os.MkdirAll(filepath.Join(sys, path), 0o755)) }
	link := func(name, target string) {
		ok(t, os.MkdirAll(filepath.Join(sys, filepath.Dir(name)), 0o755))
		ok(t, os.Symlink(filepath.Join(sys, target), filepath.Join(sys, name)))
	}
	for _, disk := range []string{"sda", "sdb"} {
		dir("devices/" + disk + "/slaves")
		dir("devices/" + disk + "/" + disk + "1")
		ok(t, os.WriteFile(filepath.Join(sys, "devices", disk, disk+"1", "partition"), []byte("1\n"), 0o644))
		link("class/block/"+disk, "devices/"+disk)
		link("class/block/"+disk+"1", "devices/"+disk+"/"+disk+"1")
	}
	dir("devices/virtual/md0/slaves")
	link("devices/virtual/md0/slaves/sda1", "devices/sda/sda1")
	link("devices/virtual/md0/slaves/sdb1", "devices/sdb/sdb1")
	link("class/block/md0", "devices/virtual/md0")
	dir("devices/virtual/dm-0/slaves")
	link("devices/virtual/dm-0/slaves/md0", "devices/virtual/md0")
	link("class/block/dm-0", "devices/virtual/dm-0")

	paths := btrfs.DefaultPaths()
	paths.Sys = sys
	client := btrfs.NewClient(paths)
	for name, want := range map[string][]string{
		"sda": {"sda"}, "sdb1": {"sdb"}, "md0": {"sda", "sdb"}, "dm-0": {"sda", "sdb"},
	} {
		got, err := client.Disks(name)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("beneath %s: %v, %v, want %v", name, got, err, want)
		}
	}
}

func TestChecksumsAreThoseOfTheData(t *testing.T) {
	for _, mkfs := range [][]string{{"--nodesize", "16384"}, {"--nodesize", "65536"}} {
		t.Run(strings.Join(mkfs, " "), func(t *testing.T) { testChecksums(t, mkfs) })
	}
}

func testChecksums(t *testing.T, mkfs []string) {
	pool := newPool(t, btrfstest.New(t), btrfstest.PoolOptions{Sizes: []int64{2 * gib}, Data: "single", MkfsArgs: mkfs})
	const size = 64 * mib // more than one item of checksums
	ok(t, pool.WriteFile("file", size, rand.New(rand.NewPCG(1, 2))))
	ok(t, pool.Sync())
	f := open(t, pool)
	if name, n, known := f.ChecksumType(); name != "crc32c" || n != 4 || !known {
		t.Fatalf("checksum %s of %d bytes, %v", name, n, known)
	}
	sector := f.SectorSize()
	image, err := os.Open(pool.Disks[0].Image)
	ok(t, err)
	defer image.Close()
	for _, piece := range []struct{ from, length int64 }{{0, size}, {mib, 0x1000}, {17 * mib, 33 * mib}} {
		start := logicalOf(t, pool, "file", piece.from)
		last := logicalOf(t, pool, "file", piece.from+piece.length-1)
		if last-start != uint64(piece.length)-1 {
			t.Fatalf("the file is not in one piece: bytes %d and %d are at %d and %d", piece.from, piece.from+piece.length-1, start, last)
		}
		at, err := pool.Physical("file", piece.from)
		ok(t, err)
		shift := at[0].Physical - int64(start)
		next := start
		data := make([]byte, sector)
		ok(t, f.WalkChecksums(start, last+1, func(logical uint64, sums []byte) error {
			if logical != next {
				return fmt.Errorf("checksums from %d on, want from %d", logical, next)
			}
			for ; len(sums) > 0; sums, logical = sums[4:], logical+sector {
				if _, err := image.ReadAt(data, int64(logical)+shift); err != nil && err != io.EOF {
					return err
				}
				if crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(sums) {
					return fmt.Errorf("the checksum at %d is another", logical)
				}
			}
			next = logical
			return nil
		}))
		if next != last+1 {
			t.Errorf("checksums up to %d, want up to %d", next, last+1)
		}
	}
}
