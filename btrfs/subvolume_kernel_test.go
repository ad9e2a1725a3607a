// The test rig needs go-fuse, which does not build on 32-bit machines.
//go:build linux && (amd64 || arm64)

package btrfs_test

import (
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

func TestSubvolumesAreFoundInTheRootTree(t *testing.T) {
	rig := btrfstest.New(t)
	pool, err := rig.NewPool(btrfstest.PoolOptions{Sizes: []int64{1 << 30}})
	ok(t, err)
	ok(t, pool.NewSubvolume("a"))
	ok(t, os.MkdirAll(pool.Path("a/deep/er"), 0o755))
	ok(t, pool.NewSubvolume("a/deep/er/b"))
	ok(t, os.Mkdir(pool.Path("snaps"), 0o755))
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	ok(t, err)
	defer f.Close()
	dir, err := f.OpenDirectory("snaps")
	ok(t, err)
	defer dir.Close()
	source, err := f.OpenDirectory("a")
	ok(t, err)
	defer source.Close()
	ok(t, dir.CreateSnapshot(source, "one"))
	if err := dir.CreateSnapshot(source, "one"); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a second one of the name: %v", err)
	}

	a, err := source.Subvolume()
	ok(t, err)
	all := make(map[string]btrfs.Subvolume)
	ok(t, f.WalkSubvolumes(func(s *btrfs.Subvolume) error {
		if _, twice := all[s.Name]; twice {
			t.Errorf("subvolume %q comes twice", s.Name)
		}
		all[s.Name] = *s
		one, err := f.Subvolume(s.ID)
		if err != nil || one != *s {
			t.Errorf("subvolume %d alone is %+v, %v; in the walk it is %+v", s.ID, one, err, *s)
		}
		return nil
	}))
	one := all["one"]
	if len(all) != 4 || all["a"] != a || one.ParentUUID != a.UUID || !one.ReadOnly || a.ReadOnly || one.Created.IsZero() || one.OTransID == 0 || one.OTransID < a.OTransID {
		t.Errorf("all are %+v", all)
	}
	if dir, err := f.DirectoryPath(one.Parent, one.Directory); err != nil || dir != "snaps" {
		t.Errorf("it lies in %q, %v", dir, err)
	}
	b := all["b"]
	if dir, err := f.DirectoryPath(b.Parent, b.Directory); err != nil || dir != "a/deep/er" {
		t.Errorf("b lies in %q, %v", dir, err)
	}
	if nested, err := f.Nested(a.ID, btrfs.Place{}); err != nil || !slices.Equal(nested, []string{"deep/er/b"}) {
		t.Errorf("nested are %q, %v", nested, err)
	}

	if err := f.DestroySubvolume(a.ID); !errors.Is(err, unix.ENOTEMPTY) {
		t.Errorf("one with another in it: %v", err)
	}
	ok(t, f.DestroySubvolume(one.ID))
	ok(t, f.Commit())
	if s, err := f.Subvolume(one.ID); !errors.Is(err, unix.ENOENT) && !s.Deleted {
		t.Errorf("after its deletion: %+v, %v", s, err)
	}
	if err := f.DestroySubvolume(one.ID); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a second deletion: %v", err)
	}
	for {
		n, err := f.CleaningSubvolumes()
		ok(t, err)
		if len(n) == 0 {
			break
		}
	}
}

func TestDirectoriesAreNotLeft(t *testing.T) {
	rig := btrfstest.New(t)
	pool, err := rig.NewPool(btrfstest.PoolOptions{Sizes: []int64{1 << 30}})
	ok(t, err)
	outside := t.TempDir()
	ok(t, os.Symlink(outside, pool.Path("link")))
	ok(t, os.Mkdir(pool.Path("mounted"), 0o755))
	ok(t, unix.Mount("none", pool.Path("mounted"), "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(pool.Path("mounted"), 0) })
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	ok(t, err)
	defer f.Close()
	for path, want := range map[string]error{
		"link": unix.ELOOP, "..": unix.EXDEV, "link/..": unix.ELOOP, "mounted": unix.EXDEV, "/etc": unix.EXDEV, "missing": unix.ENOENT,
	} {
		d, err := f.OpenDirectory(path)
		if err == nil {
			d.Close()
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	d, err := f.OpenDirectory("")
	ok(t, err)
	d.Close()
}
