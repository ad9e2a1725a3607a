//go:build linux

package btrfstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runPrefix begins the name of every run directory.
const runPrefix = "btrfs-governor-rig-"

// closeStall is how long Close waits for disks that were told to answer again
// before it aborts their FUSE connection.
const closeStall = 60 * time.Second

// Rig owns the pools, disks and fault directories of one test. Its methods may
// be called from several goroutines; those of a Pool may not.
type Rig struct {
	dir      string
	lock     *os.File
	patience time.Duration // of Close with what is in use

	mu        sync.Mutex
	sequence  int
	pools     []*Pool
	faultDirs []*FaultDir
	closed    bool
}

// New returns a rig that is closed when the test ends. It skips the test where
// the machine cannot run it, see [Require]. What cannot be cleaned up is an
// error of the test; what an earlier, killed run left and this one cannot
// clean up is only logged.
func New(t testing.TB) *Rig {
	t.Helper()
	Require(t)
	if err := Sweep(); err != nil {
		t.Logf("btrfstest: cannot clean up after an earlier run: %v", err)
	}
	rig, err := newRig()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rig.Close(); err != nil {
			t.Errorf("btrfstest: %v", err)
		}
	})
	return rig
}

// NewRig cleans up after killed runs with [Sweep] and makes a new run
// directory. Whoever calls it calls Close.
func NewRig() (*Rig, error) {
	if err := Sweep(); err != nil {
		return nil, err
	}
	return newRig()
}

func newRig() (*Rig, error) {
	temp, err := runParent()
	if err != nil {
		return nil, err
	}
	// A sweep in another process may take a directory between its creation
	// and the lock, and then deletes it. The next one is as good.
	for range 100 {
		dir, err := os.MkdirTemp(temp, runPrefix)
		if err != nil {
			return nil, fmt.Errorf("make run directory: %w", err)
		}
		lock, err := lockRun(dir)
		if errors.Is(err, errRunLocked) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
		rig := &Rig{dir: dir, lock: lock, patience: releasePatience}
		if err := rig.prepare(); err != nil {
			return nil, errors.Join(err, rig.Close())
		}
		return rig, nil
	}
	return nil, fmt.Errorf("make run directory in %s: taken away by a sweep each time", temp)
}

// runParent is the directory that holds the run directories, free of symbolic
// links: the kernel reports mounts and backing files by their real path.
func runParent() (string, error) {
	temp, err := filepath.EvalSymlinks(os.TempDir())
	if err != nil {
		return "", fmt.Errorf("find the directory for temporary files: %w", err)
	}
	return filepath.Abs(temp)
}

func (r *Rig) prepare() error {
	if err := writeOwner(r.lock); err != nil {
		return err
	}
	for _, name := range []string{"images", "mnt", "fuse", "stores"} {
		if err := os.Mkdir(filepath.Join(r.dir, name), 0o700); err != nil {
			return fmt.Errorf("make run directory: %w", err)
		}
	}
	return nil
}

// Dir is the run directory.
func (r *Rig) Dir() string { return r.dir }

// newPath returns a path in one of the run directory's parts that no other
// object of this rig has.
func (r *Rig) newPath(part, name string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sequence++
	return filepath.Join(r.dir, part, fmt.Sprintf("%s%d", name, r.sequence))
}

// Close lets hung disks go, stops what still runs on the pools, unmounts them,
// detaches their loop devices, unmounts FUSE and deletes the run directory.
// A pool that stays in use (a file that a test left open) is an error; the
// directory then stays for the next [Sweep]. Calling Close again does nothing.
func (r *Rig) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	pools, faultDirs := r.pools, r.faultDirs
	r.mu.Unlock()

	var errs []error
	// Disks answer first: neither an unmount nor a cancelled operation ends
	// while its I/O is stuck.
	for _, dir := range faultDirs {
		dir.releaseAll()
	}
	stalled := time.AfterFunc(closeStall, func() {
		for _, dir := range faultDirs {
			dir.abort()
		}
	})
	for _, pool := range pools {
		errs = append(errs, pool.stopReplace())
	}
	errs = append(errs, releaseRun(r.dir, r.patience))
	if !stalled.Stop() {
		errs = append(errs, fmt.Errorf("disks of %s did not answer within %v after they were released", r.dir, closeStall))
	}
	for _, dir := range faultDirs {
		errs = append(errs, dir.wait())
	}
	errs = append(errs, removeRun(r.dir))
	errs = append(errs, r.lock.Close())
	return errors.Join(errs...)
}

// Require skips the test when this process cannot make pools, with a sentence
// that says what is missing. Where the environment variable CI is "true" it
// fails the test instead: there a kernel test that does not run is an error.
func Require(t testing.TB) {
	t.Helper()
	require(t, missingForPools())
}

// RequireFUSE is [Require] for tests that use a [FaultDir].
func RequireFUSE(t testing.TB) {
	t.Helper()
	Require(t)
	if file, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		require(t, fmt.Sprintf("this test needs FUSE: %v", err))
	} else {
		file.Close()
	}
}

func require(t testing.TB, missing string) {
	t.Helper()
	switch {
	case missing == "":
	case os.Getenv("CI") == "true":
		t.Fatalf("kernel tests must run in CI: %s", missing)
	default:
		t.Skip(missing)
	}
}

// missingForPools says in a sentence what this process lacks to make pools, or
// nothing.
func missingForPools() string {
	if os.Geteuid() != 0 {
		return "this test makes btrfs pools and must run as root"
	}
	for _, program := range []string{"mkfs.btrfs", "btrfs"} {
		if _, err := findProgram(program); err != nil {
			return fmt.Sprintf("this test makes btrfs pools and needs the program %s (package btrfs-progs)", program)
		}
	}
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Sprintf("this test makes btrfs pools on loop devices, and /dev/loop-control cannot be opened: %v", err)
	}
	unix.Close(control)
	if !kernelHas("btrfs") {
		// A module that no mount has asked for yet is not in the list.
		_ = exec.Command("modprobe", "btrfs").Run()
		if !kernelHas("btrfs") {
			return "this test makes btrfs pools, and the running kernel has no btrfs"
		}
	}
	return ""
}

func kernelHas(filesystem string) bool {
	list, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(list)) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == filesystem {
			return true
		}
	}
	return false
}
