//go:build linux

package btrfstest

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newFaultPool makes a pool with a file of 8 MiB on n fault disks of 1 GiB.
func newFaultPool(t *testing.T, n int, profile string) (*Rig, *Pool, []*FaultDisk) {
	t.Helper()
	RequireFUSE(t)
	rig := New(t)
	faults, err := rig.NewFaultDir()
	ok(t, err)
	var disks []*FaultDisk
	options := PoolOptions{Data: profile, Metadata: profile}
	for range n {
		disk, err := faults.NewDisk(gib)
		ok(t, err)
		disks = append(disks, disk)
		options.Disks = append(options.Disks, disk.Disk)
	}
	pool := newPool(t, rig, options)
	ok(t, pool.WriteFile("file", 8*mib, newRandom()))
	ok(t, pool.DropCaches())
	return rig, pool, disks
}

func TestEveryRequestReachesTheFaultDisk(t *testing.T) {
	_, pool, disks := newFaultPool(t, 1, "single")
	dio, err := os.ReadFile("/sys/block/" + strings.TrimPrefix(disks[0].Loop, "/dev/") + "/loop/dio")
	ok(t, err)
	if string(dio) != "1\n" {
		t.Errorf("direct I/O of the loop device is %q", dio)
	}
	for range 2 {
		before, bytesBefore := disks[0].Reads(), disks[0].BytesRead()
		_, err := os.ReadFile(pool.Path("file"))
		ok(t, err)
		if read := disks[0].BytesRead() - bytesBefore; read < 8*mib {
			t.Errorf("reading 8 MiB read %d bytes from the disk", read)
		}
		if disks[0].Reads() == before {
			t.Error("reading a file did not count as reads")
		}
		ok(t, pool.DropCaches())
	}
	before := disks[0].BytesWritten()
	ok(t, pool.WriteFile("more", 4*mib, newRandom()))
	if written := disks[0].BytesWritten() - before; written < 4*mib || disks[0].Writes() == 0 {
		t.Errorf("writing 4 MiB wrote %d bytes to the disk", written)
	}
}

func TestFailedReadsAreErrorsUntilHealed(t *testing.T) {
	_, pool, disks := newFaultPool(t, 1, "single")
	locations, err := pool.Physical("file", mib)
	ok(t, err)
	disks[0].FailReads(locations[0].Physical, sectorSize)

	file, err := os.Open(pool.Path("file"))
	ok(t, err)
	defer file.Close()
	sector := make([]byte, sectorSize)
	if _, err := file.ReadAt(sector, 4*mib); err != nil {
		t.Errorf("reading outside of the bad range: %v", err)
	}
	if _, err := file.ReadAt(sector, mib); !errors.Is(err, unix.EIO) {
		t.Errorf("reading the bad range: %v, want EIO", err)
	}
	if count := deviceErrors(t, pool, 1, "read_errs"); count == 0 {
		t.Error("the device counts no read errors")
	}
	disks[0].Heal()
	if _, err := file.ReadAt(sector, mib); err != nil {
		t.Errorf("reading after the disk was healed: %v", err)
	}
}

func TestReadErrorsOfOneMirrorAreCorrected(t *testing.T) {
	_, pool, disks := newFaultPool(t, 2, "raid1")
	want, err := os.ReadFile(pool.Path("file"))
	ok(t, err)
	disks[1].FailReads(0, -1)
	// Which mirror a process reads goes by its id; they take turns. Errors of
	// read-ahead are corrected but not counted (btrfs_log_dev_io_error in
	// fs/btrfs/bio.c), so read past the page cache.
	eventually(t, "a read from the bad mirror", func() bool {
		ok(t, pool.DropCaches())
		got, err := runCommand("dd", "if="+pool.Path("file"), "iflag=direct", "bs=1M", "status=none")
		ok(t, err)
		if got != string(want) {
			t.Fatal("the file is not what was written")
		}
		return deviceErrors(t, pool, 2, "read_errs") > 0
	})
}

func TestFailedWritesCount(t *testing.T) {
	_, pool, disks := newFaultPool(t, 2, "raid1")
	disks[1].FailWrites(0, -1)
	// The kernel goes on with the other mirror.
	ok(t, pool.WriteFile("more", mib, newRandom()))
	if count := deviceErrors(t, pool, 2, "write_errs"); count == 0 {
		t.Error("the device counts no write errors")
	}
}

func TestDeadDiskFailsAllIO(t *testing.T) {
	_, pool, disks := newFaultPool(t, 1, "single")
	disks[0].Dead()
	if _, err := os.ReadFile(pool.Path("file")); !errors.Is(err, unix.EIO) {
		t.Errorf("reading from a dead disk: %v, want EIO", err)
	}
	disks[0].Heal()
	if _, err := os.ReadFile(pool.Path("file")); err != nil {
		t.Errorf("reading from a healed disk: %v", err)
	}
}

func TestHungDiskBlocksUntilReleased(t *testing.T) {
	rig, pool, disks := newFaultPool(t, 1, "single")
	other := newPool(t, rig, PoolOptions{Disks: []*Disk{newFaultDisk(t, rig).Disk}})

	disks[0].Hang()
	read := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(pool.Path("file"))
		read <- err
	}()
	eventually(t, "a request waits", func() bool { return disks[0].Waiting() > 0 })
	// Another disk goes on meanwhile.
	ok(t, other.WriteFile("file", 8*mib, newRandom()))
	select {
	case err := <-read:
		t.Fatalf("a read from a hung disk ended with %v", err)
	default:
	}
	disks[0].Release()
	if err := <-read; err != nil {
		t.Errorf("reading after the disk was released: %v", err)
	}
	if n := disks[0].Waiting(); n != 0 {
		t.Errorf("%d requests still wait", n)
	}
}

func newFaultDisk(t *testing.T, rig *Rig) *FaultDisk {
	t.Helper()
	rig.mu.Lock()
	faults := rig.faultDirs[0]
	rig.mu.Unlock()
	disk, err := faults.NewDisk(gib)
	ok(t, err)
	return disk
}

func TestCloseReleasesHungDisks(t *testing.T) {
	RequireFUSE(t)
	rig, err := NewRig()
	ok(t, err)
	faults, err := rig.NewFaultDir()
	ok(t, err)
	disk, err := faults.NewDisk(gib)
	ok(t, err)
	pool := newPool(t, rig, PoolOptions{Disks: []*Disk{disk.Disk}})
	disk.Hang()
	written := make(chan struct{})
	go func() {
		defer close(written)
		_ = pool.WriteFile("stuck", mib, newRandom())
	}()
	eventually(t, "a request waits", func() bool { return disk.Waiting() > 0 })
	ok(t, rig.Close())
	<-written
	if left := remains(t, rig.Dir()); len(left) > 0 {
		t.Errorf("after Close there still are: %s", strings.Join(left, ", "))
	}
}

func TestCloseCancelsReplaceInTheBackground(t *testing.T) {
	rig, pool, disks := newFaultPool(t, 1, "single")
	ok(t, pool.WriteFile("more", 64*mib, newRandom()))
	target, err := rig.NewDisk(DiskOptions{Size: gib})
	ok(t, err)
	disks[0].Slow(0, mib) // a minute and more
	ok(t, pool.Replace(1, target, false))
	eventually(t, "the replace runs", func() bool {
		operation, err := pool.Sysfs("exclusive_operation")
		ok(t, err)
		return operation == "device replace"
	})
	ok(t, rig.Close())
	if left := remains(t, rig.Dir()); len(left) > 0 {
		t.Errorf("after Close there still are: %s", strings.Join(left, ", "))
	}
}

func TestSlowDiskSeeksAndTransfers(t *testing.T) {
	_, pool, disks := newFaultPool(t, 1, "single")
	file, err := os.Open(pool.Path("file"))
	ok(t, err)
	defer file.Close()
	scattered := func() time.Duration {
		t.Helper()
		ok(t, pool.DropCaches())
		sector := make([]byte, sectorSize)
		start := time.Now()
		for i := range int64(16) {
			// Backwards, which no read-ahead foresees.
			if _, err := file.ReadAt(sector, 8*mib-(i+1)*512*kib); err != nil {
				t.Fatal(err)
			}
		}
		return time.Since(start)
	}
	const least = 16 * DefaultSeek
	// A machine with other work may be slow at times.
	fast := func(when string) {
		t.Helper()
		took := scattered()
		for deadline := time.Now().Add(time.Minute); took >= least; took = scattered() {
			if time.Now().After(deadline) {
				t.Fatalf("%s 16 scattered reads take %v, want less than %v", when, took, least)
			}
		}
	}
	fast("at first")
	disks[0].Slow(0, 0)
	if slow := scattered(); slow < least {
		t.Errorf("16 scattered reads took %v on a slow disk, want at least %v", slow, least)
	}
	disks[0].Fast()
	fast("after the disk was fast again")
}

func TestArmServesRequestsOneAtATime(t *testing.T) {
	start := time.Unix(0, 0)
	a := arm{seek: 8 * time.Millisecond, bytesPerSecond: 100_000_000}
	steps := []struct {
		what           string
		now            time.Duration
		offset, length int64
		finish         time.Duration
	}{
		{"from the start of the disk", 0, 0, 1_000_000, 10 * time.Millisecond},
		{"contiguous, queued behind the first", 0, 1_000_000, 1_000_000, 20 * time.Millisecond},
		{"elsewhere, queued", 5 * time.Millisecond, 9_000_000, 100_000, 29 * time.Millisecond},
		{"contiguous, after a pause", 50 * time.Millisecond, 9_100_000, 100_000, 51 * time.Millisecond},
		{"backwards", 60 * time.Millisecond, 9_100_000, 100_000, 69 * time.Millisecond},
	}
	for _, step := range steps {
		got := a.schedule(start.Add(step.now), step.offset, step.length).Sub(start)
		if got != step.finish {
			t.Errorf("%s: served at %v, want %v", step.what, got, step.finish)
		}
	}
}

func TestFaultDiskGrows(t *testing.T) {
	_, pool, disks := newFaultPool(t, 1, "single")
	ok(t, pool.ResizeDisk(1, 2*gib))
	checkSize(t, pool, 1, 2*gib)
	if disks[0].Size != 2*gib {
		t.Errorf("the disk has %d bytes, want %d", disks[0].Size, 2*gib)
	}
}
