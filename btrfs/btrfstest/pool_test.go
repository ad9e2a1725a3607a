//go:build linux

package btrfstest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFillFallocateReachesTheLastBlockGroup(t *testing.T) {
	rig := New(t)
	pool := newPool(t, rig, PoolOptions{Sizes: []int64{8 * gib, 4 * gib, 2 * gib, gib}, Data: "raid1", Metadata: "raid1"})
	filled, err := pool.FillFallocate()
	ok(t, err)
	// Measured on kernels 5.15 to 6.18 by other means too.
	const want = 5.48
	if got := float64(filled) / float64(gib); got < want-0.01 || got > want+0.01 {
		t.Errorf("filled %.3f GiB, want %.2f", got, want)
	}
	ok(t, pool.Sync())
	text, err := pool.Sysfs("allocation/data/bytes_used")
	ok(t, err)
	used, err := strconv.ParseInt(text, 10, 64)
	ok(t, err)
	if used-filled > mib || filled-used > mib {
		t.Errorf("filled %d bytes, and the kernel counts %d", filled, used)
	}
	if again, err := pool.FillFallocate(); err != nil || again != 0 {
		t.Errorf("filling a full pool: %d bytes, %v; want none", again, err)
	}
}

func TestFillFallocateOfTerabytes(t *testing.T) {
	rig := New(t)
	const tib = gib << 10
	pool := newPool(t, rig, PoolOptions{Sizes: []int64{8 * tib, tib, tib}, Data: "raid1", Metadata: "raid1"})
	filled, err := pool.FillFallocate()
	ok(t, err)
	if got := filled / gib; got < 2044 || got > 2047 {
		t.Errorf("filled %d GiB, want 2045", got)
	}
}

func TestPoolIsWhatWasAskedFor(t *testing.T) {
	rig := New(t)
	pool := newPool(t, rig, PoolOptions{Sizes: []int64{gib, 2 * gib}, Data: "single", Metadata: "raid1", Label: "rig", MountOptions: []string{"noatime"}})
	label, err := pool.Sysfs("label")
	ok(t, err)
	if label != "rig" {
		t.Errorf("label is %q, want rig", label)
	}
	for i, disk := range pool.Disks {
		if disk.DevID != uint64(i+1) {
			t.Errorf("disk %d has device id %d", i+1, disk.DevID)
		}
	}
	if _, err := pool.Sysfs("allocation/metadata/raid1/total_bytes"); err != nil {
		t.Error(err)
	}

	mixed := newPool(t, rig, PoolOptions{Sizes: []int64{gib}, Mixed: true})
	if _, err := mixed.Sysfs("allocation/mixed/total_bytes"); err != nil {
		t.Error(err)
	}
	_, err = rig.NewPool(PoolOptions{Sizes: []int64{gib}, Data: "raid1c4"})
	if err == nil || !strings.Contains(err.Error(), "mkfs.btrfs") || !strings.Contains(err.Error(), "raid1c4") {
		t.Errorf("error of an impossible pool is %v", err)
	}
}

func TestDisksComeAndGo(t *testing.T) {
	rig := New(t)
	pool := newPool(t, rig, PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1"})
	rng := newRandom()
	ok(t, pool.WriteFile("file", 64*mib, rng))
	want, err := os.ReadFile(pool.Path("file"))
	ok(t, err)

	disk, err := pool.AddDisk(2 * gib)
	ok(t, err)
	if disk.DevID != 3 {
		t.Errorf("added disk has device id %d, want 3", disk.DevID)
	}
	ok(t, pool.RemoveDisk(1))
	if len(pool.Disks) != 2 || pool.Disk(1) != nil {
		t.Errorf("disks after the removal: %d", len(pool.Disks))
	}
	ok(t, pool.ResizeDisk(3, 3*gib))
	checkSize(t, pool, 3, 3*gib)
	ok(t, pool.ResizeDisk(3, gib))
	checkSize(t, pool, 3, gib)
	if disk.Size != 3*gib {
		t.Errorf("disk has %d bytes after a shrink of the filesystem, want as before", disk.Size)
	}

	target, err := rig.NewDisk(DiskOptions{Size: 2 * gib})
	ok(t, err)
	ok(t, pool.Replace(2, target, true))
	if pool.Disk(2) != target {
		t.Error("the new disk did not take over device id 2")
	}
	target, err = rig.NewDisk(DiskOptions{Size: 2 * gib})
	ok(t, err)
	ok(t, pool.Replace(2, target, false))
	ok(t, pool.WaitReplace())

	ok(t, pool.Convert("single", "raid1"))
	ok(t, pool.Balance("-dusage=50"))
	ok(t, pool.Balance())
	if _, err := pool.Sysfs("allocation/data/single/total_bytes"); err != nil {
		t.Error(err)
	}
	ok(t, pool.DropCaches())
	got, err := os.ReadFile(pool.Path("file"))
	ok(t, err)
	if !bytes.Equal(got, want) {
		t.Error("the file is not what was written")
	}
}

// checkSize checks how much of a device the filesystem uses.
func checkSize(t *testing.T, pool *Pool, devID uint64, want int64) {
	t.Helper()
	super, err := pool.committedSuperblock(pool.Disk(devID))
	ok(t, err)
	if int64(super.totalBytes) != want {
		t.Errorf("the filesystem uses %d bytes of disk %d, want %d", super.totalBytes, devID, want)
	}
}

func TestDetachedDiskIsMissingUntilAttached(t *testing.T) {
	rig := New(t)
	pool := newPool(t, rig, PoolOptions{Sizes: []int64{gib, gib, gib}, Data: "raid1", Metadata: "raid1"})
	ok(t, pool.WriteFile("file", 16*mib, newRandom()))
	missing := func() string {
		t.Helper()
		text, err := pool.Sysfs("devinfo/2/missing")
		ok(t, err)
		return text
	}

	ok(t, pool.Detach(2))
	if err := pool.Mount(); err == nil {
		t.Error("a pool without one of its devices was mounted")
	}
	ok(t, pool.MountDegraded(true))
	if missing() != "1" {
		t.Error("the device is not missing")
	}
	if err := pool.Allocate("no", mib); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a pool mounted read-only: %v", err)
	}
	ok(t, pool.Unmount())
	ok(t, pool.MountDegraded(false))
	ok(t, pool.Allocate("yes", mib))

	ok(t, pool.Unmount())
	ok(t, pool.Attach(2))
	ok(t, pool.Mount())
	if missing() != "0" {
		t.Error("the device is still missing")
	}

	ok(t, pool.Detach(2))
	ok(t, pool.MountDegraded(false))
	ok(t, pool.RemoveDisk(2))
	ok(t, pool.Unmount())
	ok(t, pool.Mount())
}

func TestRemountChangesOptions(t *testing.T) {
	rig := New(t)
	pool := newPool(t, rig, PoolOptions{Sizes: []int64{gib}})
	ok(t, pool.Remount("ro"))
	if err := pool.Allocate("no", mib); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a pool remounted read-only: %v", err)
	}
	ok(t, pool.Remount("rw"))
	ok(t, pool.Allocate("yes", mib))
}

func TestSubvolumesAndSnapshots(t *testing.T) {
	rig := New(t)
	pool := newPool(t, rig, PoolOptions{Sizes: []int64{gib}})
	ok(t, pool.NewSubvolume("home"))
	ok(t, pool.Allocate("home/file", mib))
	ok(t, pool.Snapshot("home", "snapshot", true))
	if err := os.Remove(pool.Path("snapshot/file")); !errors.Is(err, unix.EROFS) {
		t.Errorf("removing a file from a read-only snapshot: %v", err)
	}
}

func TestAgeingIsRepeatableAndLeavesPoolWhole(t *testing.T) {
	rig := New(t)
	age := func(seed uint64) []string {
		t.Helper()
		pool := newPool(t, rig, PoolOptions{Sizes: []int64{4 * gib, 3 * gib, 2 * gib}, Data: "raid1", Metadata: "raid1"})
		log, err := pool.Age(rand.New(rand.NewPCG(seed, 0)), 25)
		if err != nil {
			t.Fatalf("%v\n%s", err, strings.Join(log, "\n"))
		}
		t.Logf("seed %d:\n%s", seed, strings.Join(log, "\n"))
		ok(t, pool.Unmount())
		ok(t, pool.Mount())
		_, err = pool.FillFallocate()
		ok(t, err)
		ok(t, pool.Unmount())
		if _, err := runCommand("btrfs", "check", pool.Disks[0].Loop); err != nil {
			t.Errorf("%v\n%s", err, strings.Join(log, "\n"))
		}
		return log
	}
	first, second := age(1), age(1)
	if strings.Join(first, "\n") != strings.Join(second, "\n") {
		t.Error("the same seed gave two different sequences")
	}
	age(2)
}
