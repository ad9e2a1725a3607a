//go:build linux

package btrfstest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lockName is the file in a run directory on which its owner holds a
	// flock for as long as it lives. It says which process that is.
	lockName = "lock"

	// dyingPatience bounds the wait for a killed owner whose threads were
	// stuck in I/O on one of its own disks.
	dyingPatience = 10 * time.Second

	// releasePatience bounds the wait for a mount or a loop device in use.
	// Closing a file and the end of a cancelled balance come a little after
	// the call that asked for them, and udev or blkid may look at a device.
	releasePatience = 10 * time.Second

	// pollInterval is the pause between two looks at a condition.
	pollInterval = 2 * time.Millisecond
)

// errRunLocked says that a living process owns a run directory.
var errRunLocked = errors.New("run directory belongs to a running process")

// Sweep removes what killed runs left behind: for every run directory whose
// owner is dead it aborts the FUSE connections, unmounts the filesystems,
// detaches the loop devices and deletes the directory. A run whose owner lives
// is left alone, and so is everything that does not lie beneath a run
// directory. Several processes may sweep at the same time: the lock on each
// directory decides who cleans it.
func Sweep() error {
	temp, err := runParent()
	if err != nil {
		return err
	}
	dirs, err := filepath.Glob(filepath.Join(temp, runPrefix+"*"))
	if err != nil {
		return fmt.Errorf("sweep %s: %w", temp, err)
	}
	var errs []error
	for _, dir := range dirs {
		if err := sweepRun(dir); err != nil {
			errs = append(errs, fmt.Errorf("sweep %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

func sweepRun(dir string) error {
	lock, err := lockRun(dir)
	if errors.Is(err, errRunLocked) && ownerKilled(dir) {
		// A killed process goes on holding its descriptors, the lock among
		// them, while one of its threads waits for a disk that it would have
		// to serve itself. Failing that I/O ends it.
		if err := abortFUSE(dir); err != nil {
			return err
		}
		err = waitFor(dyingPatience, func() (bool, error) {
			lock, err = lockRun(dir)
			return !errors.Is(err, errRunLocked), nil
		})
		if err != nil {
			return fmt.Errorf("its killed owner does not end: %w", err)
		}
	}
	if errors.Is(err, errRunLocked) || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	return errors.Join(abortFUSE(dir), releaseRun(dir, releasePatience), removeRun(dir))
}

// lockRun takes the lock of a run directory. It fails with errRunLocked when
// another process has it, and with os.ErrNotExist when the directory is gone.
func lockRun(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errRunLocked
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// Between open and lock a sweep may have deleted the file: a lock on a
	// file without a name locks nothing.
	held, err := lock.Stat()
	if err != nil {
		lock.Close()
		return nil, err
	}
	named, err := os.Stat(path)
	if err != nil || !os.SameFile(held, named) {
		lock.Close()
		return nil, fmt.Errorf("lock %s: %w", path, os.ErrNotExist)
	}
	return lock, nil
}

// writeOwner notes in the lock file which process holds it: its id and, since
// ids are used again, its start time in clock ticks after boot.
func writeOwner(lock *os.File) error {
	process, err := readProcess(os.Getpid())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(lock, "%d %d\n", os.Getpid(), process.startTicks)
	return err
}

// ownerKilled reports whether the owner of a run directory is on its way out:
// a zombie, or with SIGKILL pending on a thread that cannot take it yet.
func ownerKilled(dir string) bool {
	note, err := os.ReadFile(filepath.Join(dir, lockName))
	if err != nil {
		return false
	}
	var pid int
	var startTicks uint64
	if _, err := fmt.Sscan(string(note), &pid, &startTicks); err != nil {
		return false
	}
	process, err := readProcess(pid)
	if err != nil || process.startTicks != startTicks {
		return false // it has ended: who holds the lock is a sweep
	}
	return process.state == "Z" || process.state == "X" || process.killPending
}

type processState struct {
	state       string // the letter of proc(5)
	startTicks  uint64
	killPending bool
}

// readProcess reads the facts about a process from /proc/PID/stat and
// /proc/PID/status, see proc(5).
func readProcess(pid int) (processState, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processState{}, err
	}
	// The command's name stands in parentheses and may hold anything.
	_, after, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	fields := strings.Fields(after)
	const stateField, startField = 3, 22 // as proc(5) numbers them
	if len(fields) <= startField-stateField {
		return processState{}, fmt.Errorf("process %d: unexpected stat %q", pid, stat)
	}
	startTicks, err := strconv.ParseUint(fields[startField-stateField], 10, 64)
	if err != nil {
		return processState{}, fmt.Errorf("process %d: start time: %w", pid, err)
	}
	process := processState{state: fields[0], startTicks: startTicks}

	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return processState{}, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		pending, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && pending&(1<<(unix.SIGKILL-1)) != 0 {
			process.killPending = true
		}
	}
	return process, nil
}

// releaseRun unmounts everything beneath a run directory and detaches the loop
// devices whose backing files lie there, waiting up to patience for each. It
// goes on after an error.
func releaseRun(dir string, patience time.Duration) error {
	// The order is the order of use, from the top: pools, their loop devices,
	// the filesystems that hold the backing files.
	busy, unmountErr := unmountBeneath(dir, patience, func(m mount) bool { return !m.holdsImages() })
	detachErr := detachBeneath(dir, patience)
	if detachErr != nil && len(busy) > 0 {
		detachErr = fmt.Errorf("%s in use, unmounted lazily: %w", strings.Join(busy, ", "), detachErr)
	}
	_, imagesErr := unmountBeneath(dir, patience, mount.holdsImages)
	return errors.Join(unmountErr, detachErr, imagesErr)
}

// removeRun deletes a run directory, unless something is still mounted there
// (its files would be deleted too) or a loop device still uses it (the next
// sweep would not find it any more).
func removeRun(dir string) error {
	mounts, err := mountsBeneath(dir)
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s stays: %s is still mounted", dir, mounts[0].point)
	}
	loops, err := loopsBeneath(dir)
	if err != nil {
		return err
	}
	if len(loops) > 0 {
		return fmt.Errorf("%s stays: %s is still attached", dir, loops[0].device)
	}
	// A sweep that looks at the directory now makes a new lock in it, and has
	// the rest to do.
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// waitFor looks at a condition until it holds. It fails with
// os.ErrDeadlineExceeded when that takes longer than patience.
func waitFor(patience time.Duration, done func() (bool, error)) error {
	deadline := time.Now().Add(patience)
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v: %w", patience, os.ErrDeadlineExceeded)
		}
		time.Sleep(pollInterval)
	}
}
