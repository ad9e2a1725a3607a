//go:build linux

package btrfstest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// victim makes a pool, says where on standard output, and waits to be killed.
func victim(kind string) error {
	rig, err := newRig()
	if err != nil {
		return err
	}
	switch kind {
	case "pool":
		pool, err := rig.NewPool(PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1"})
		if err != nil {
			return err
		}
		if _, err := os.Create(pool.Path("open")); err != nil {
			return err
		}
	case "hang":
		if err := hangingVictim(rig); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown kind of victim %q", kind)
	}
	fmt.Println(rig.Dir())
	select {}
}

// hangingVictim leaves a thread in uninterruptible wait for a disk that this
// process serves, and a program of its own in wait too.
func hangingVictim(rig *Rig) error {
	faults, err := rig.NewFaultDir()
	if err != nil {
		return err
	}
	disk, err := faults.NewDisk(gib)
	if err != nil {
		return err
	}
	pool, err := rig.NewPool(PoolOptions{Disks: []*Disk{disk.Disk}})
	if err != nil {
		return err
	}
	if err := pool.WriteFile("file", mib, newRandom()); err != nil {
		return err
	}
	disk.Hang()
	go func() { _ = pool.WriteFile("stuck", mib, newRandom()) }()
	go func() { _, _ = runCommand("btrfs", "filesystem", "sync", pool.Mountpoint) }()
	return waitFor(releasePatience, func() (bool, error) { return disk.Waiting() > 0, nil })
}

func TestSweepCleansUpAfterKilledRun(t *testing.T) {
	for _, kind := range []string{"pool", "hang"} {
		t.Run(kind, func(t *testing.T) {
			RequireFUSE(t)
			dir := killVictim(t, kind)
			// The kernel may take a moment to end the process, and another
			// process may be the one that sweeps.
			eventually(t, "sweep "+dir, func() bool {
				ok(t, Sweep())
				_, err := os.Stat(dir)
				return errors.Is(err, os.ErrNotExist)
			})
			if left := remains(t, dir); len(left) > 0 {
				t.Errorf("after the sweep there still are: %s", strings.Join(left, ", "))
			}
		})
	}
}

// killVictim starts a victim, kills it when it is ready, and returns its run
// directory.
func killVictim(t *testing.T, kind string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+kind)
	cmd.Stderr = os.Stderr
	output, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	// Not before the sweep: the victim cannot end while its I/O is stuck.
	t.Cleanup(func() { _ = cmd.Wait() })
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatalf("the victim did not say where its run directory is: %v", err)
	}
	ok(t, cmd.Process.Kill())
	dir := strings.TrimSpace(line)
	if left := remains(t, dir); len(left) == 0 {
		t.Fatalf("the victim left nothing behind in %s", dir)
	}
	return dir
}

func TestSweepsAtTheSameTimeDoNotDisturbEachOther(t *testing.T) {
	Require(t)
	dir := killVictim(t, "pool")
	var sweeps sync.WaitGroup
	for range 8 {
		sweeps.Go(func() {
			if err := Sweep(); err != nil {
				t.Error(err)
			}
		})
	}
	sweeps.Wait()
	eventually(t, "sweep "+dir, func() bool {
		ok(t, Sweep())
		return len(remains(t, dir)) == 0
	})
}

func TestSweepLeavesRunningRunsAlone(t *testing.T) {
	rig := New(t)
	pool := newPool(t, rig, PoolOptions{Sizes: []int64{gib}})
	ok(t, Sweep())
	ok(t, pool.Allocate("file", mib))
}

func TestSweepTakesDirectoryOfRunThatNeverGotItsLock(t *testing.T) {
	Require(t)
	temp, err := runParent()
	ok(t, err)
	dir, err := os.MkdirTemp(temp, runPrefix)
	ok(t, err)
	eventually(t, "sweep "+dir, func() bool {
		ok(t, Sweep())
		return len(remains(t, dir)) == 0
	})
}

func TestSweepLeavesOtherLoopDevicesAlone(t *testing.T) {
	Require(t)
	image := filepath.Join(t.TempDir(), runPrefix+"not")
	ok(t, makeSparse(image, mib))
	device, err := attachLoop(image, false)
	ok(t, err)
	ok(t, Sweep())
	backing, err := loopBacking(device)
	ok(t, err)
	if backing != image {
		t.Errorf("backing file of %s is %q after a sweep, want %q", device, backing, image)
	}
	ok(t, detachLoop(loop{device: device, backing: image}, releasePatience))
}

func TestCloseLeavesNothingBehind(t *testing.T) {
	RequireFUSE(t)
	before := openFiles(t)
	rig, err := NewRig()
	ok(t, err)
	faults, err := rig.NewFaultDir()
	ok(t, err)
	disk, err := faults.NewDisk(gib)
	ok(t, err)
	pool := newPool(t, rig, PoolOptions{Sizes: []int64{gib}, Disks: []*Disk{disk.Disk}, Data: "raid1", Metadata: "raid1"})
	newPool(t, rig, PoolOptions{Sizes: []int64{gib}, NoMount: true})
	_, err = rig.NewDisk(DiskOptions{Size: mib})
	ok(t, err)
	ok(t, pool.Allocate("file", mib))

	ok(t, rig.Close())
	if left := remains(t, rig.Dir()); len(left) > 0 {
		t.Errorf("after Close there still are: %s", strings.Join(left, ", "))
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files are open after Close, and %d were before", after, before)
	}
	if err := rig.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	ok(t, err)
	return len(files)
}

func TestCloseReportsPoolInUseAndUnmountsIt(t *testing.T) {
	Require(t)
	rig, err := NewRig()
	ok(t, err)
	rig.patience = 50 * time.Millisecond
	pool := newPool(t, rig, PoolOptions{Sizes: []int64{gib}})
	file, err := os.Create(pool.Path("open"))
	ok(t, err)
	err = rig.Close()
	ok(t, file.Close())
	if err == nil || !strings.Contains(err.Error(), pool.Mountpoint) {
		t.Errorf("error is %v, want one that names %s", err, pool.Mountpoint)
	}
	// What Close could not finish the next sweep does.
	eventually(t, "sweep "+rig.Dir(), func() bool {
		ok(t, Sweep())
		return len(remains(t, rig.Dir())) == 0
	})
}

func TestParseMountinfo(t *testing.T) {
	mounts, err := parseMountinfo("36 35 0:98 / /mnt/with\\040space rw,noatime master:1 shared:2 - fuse.btrfstest btrfstest rw\n" +
		"37 35 0:99 / /mnt/b rw - btrfs /dev/loop1 rw\n")
	ok(t, err)
	want := []mount{
		{point: "/mnt/with space", fstype: "fuse.btrfstest", minor: "98"},
		{point: "/mnt/b", fstype: "btrfs", minor: "99"},
	}
	if fmt.Sprint(mounts) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", mounts, want)
	}
	if _, err := parseMountinfo("36 35 0:98 / /mnt rw\n"); err == nil {
		t.Error("a line without a separator was accepted")
	}
}
