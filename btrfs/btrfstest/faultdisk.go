//go:build linux

package btrfstest

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The emulated hard disk: one that turns 7200 times a minute.
const (
	DefaultSeek      = 8 * time.Millisecond
	DefaultBandwidth = 150_000_000 // bytes per second
)

// FaultDisk is a disk of a FaultDir. Its controls take effect at once, also on
// requests that wait, and may be used from any goroutine at any time.
type FaultDisk struct {
	*Disk

	file *os.File // the image

	reads, writes           atomic.Int64
	bytesRead, bytesWritten atomic.Int64

	mu         sync.Mutex
	badReads   []span
	badWrites  []span
	dead       bool
	hung       chan struct{} // closed by Release; nil when the disk does not hang
	arm        *arm          // nil when the disk is as fast as it can
	waitingNow int
}

// span is a range of bytes on a disk.
type span struct{ start, end int64 }

func newSpan(offset, length int64) span {
	if length < 0 {
		return span{offset, 1<<63 - 1}
	}
	return span{offset, offset + length}
}

type requestKind int

const (
	readRequest requestKind = iota
	writeRequest
	flushRequest
)

// Reads is the number of read requests that reached the disk, the failed ones
// among them.
func (d *FaultDisk) Reads() int64 { return d.reads.Load() }

// Writes is the number of write requests that reached the disk.
func (d *FaultDisk) Writes() int64 { return d.writes.Load() }

// BytesRead is the number of bytes that read requests asked for.
func (d *FaultDisk) BytesRead() int64 { return d.bytesRead.Load() }

// BytesWritten is the number of bytes that write requests brought.
func (d *FaultDisk) BytesWritten() int64 { return d.bytesWritten.Load() }

// Waiting is the number of requests that wait because the disk hangs.
func (d *FaultDisk) Waiting() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waitingNow
}

// FailReads makes reads fail with EIO that overlap length bytes from offset; a
// negative length means to the end. Ranges add up until Heal.
func (d *FaultDisk) FailReads(offset, length int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.badReads = append(d.badReads, newSpan(offset, length))
}

// FailWrites is FailReads for writes. Flushes go through.
func (d *FaultDisk) FailWrites(offset, length int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.badWrites = append(d.badWrites, newSpan(offset, length))
}

// Dead makes all I/O fail with EIO until Heal.
func (d *FaultDisk) Dead() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
}

// Heal ends Dead, FailReads and FailWrites.
func (d *FaultDisk) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.badReads, d.badWrites, d.dead = nil, nil, false
}

// Hang makes all I/O wait until Release.
func (d *FaultDisk) Hang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hung == nil {
		d.hung = make(chan struct{})
	}
}

// Release ends Hang.
func (d *FaultDisk) Release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hung != nil {
		close(d.hung)
		d.hung = nil
	}
}

// Slow makes the disk one with a single arm, which serves requests one after
// the other in the order they come: seek for a request that does not start
// where the last one ended, then the transfer at a rate of bytesPerSecond.
// Zero stands for DefaultSeek and DefaultBandwidth.
func (d *FaultDisk) Slow(seek time.Duration, bytesPerSecond int64) {
	if seek == 0 {
		seek = DefaultSeek
	}
	if bytesPerSecond == 0 {
		bytesPerSecond = DefaultBandwidth
	}
	d.setArm(&arm{seek: seek, bytesPerSecond: bytesPerSecond, removed: make(chan struct{})})
}

// Fast ends Slow.
func (d *FaultDisk) Fast() { d.setArm(nil) }

func (d *FaultDisk) setArm(a *arm) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.arm != nil {
		close(d.arm.removed)
	}
	d.arm = a
}

// admit holds a request for as long as the disk takes, and says how it ends: 0
// where it may go on, EIO, or EINTR where nobody waits for it any more.
func (d *FaultDisk) admit(ctx context.Context, kind requestKind, offset, length int64) syscall.Errno {
	if errno := d.waitReleased(ctx); errno != 0 {
		return errno
	}
	d.mu.Lock()
	arm := d.arm
	var finish time.Time
	if arm != nil && kind != flushRequest {
		finish = arm.schedule(time.Now(), offset, length)
	}
	d.mu.Unlock()
	if !finish.IsZero() {
		timer := time.NewTimer(time.Until(finish))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-arm.removed:
		case <-ctx.Done():
			return syscall.EINTR
		}
		// A disk may have begun to hang with the request inside it.
		if errno := d.waitReleased(ctx); errno != 0 {
			return errno
		}
	}
	return d.verdict(kind, newSpan(offset, length))
}

// waitReleased waits for as long as the disk hangs.
func (d *FaultDisk) waitReleased(ctx context.Context) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.hung != nil {
		hung := d.hung
		d.waitingNow++
		d.mu.Unlock()
		var errno syscall.Errno
		select {
		case <-hung:
		case <-ctx.Done():
			errno = syscall.EINTR
		}
		d.mu.Lock()
		d.waitingNow--
		if errno != 0 {
			return errno
		}
	}
	return 0
}

func (d *FaultDisk) verdict(kind requestKind, request span) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return syscall.EIO
	}
	var bad []span
	switch kind {
	case readRequest:
		bad = d.badReads
	case writeRequest:
		bad = d.badWrites
	}
	for _, b := range bad {
		if request.start < b.end && b.start < request.end {
			return syscall.EIO
		}
	}
	return 0
}

// arm is the arm of an emulated hard disk. It only reckons with time: requests
// get the moment at which they would be served, so that the delays of timers
// do not add up. The lock of its disk guards it.
type arm struct {
	seek           time.Duration
	bytesPerSecond int64
	removed        chan struct{}

	idleFrom time.Time // when the last request so far will have been served
	position int64     // where it will have ended
}

// schedule puts a request at the end of the queue and returns when it will
// have been served.
func (a *arm) schedule(now time.Time, offset, length int64) time.Time {
	start := a.idleFrom
	if start.Before(now) {
		start = now
	}
	cost := time.Duration(float64(length) / float64(a.bytesPerSecond) * float64(time.Second))
	if offset != a.position {
		cost += a.seek
	}
	a.idleFrom, a.position = start.Add(cost), offset+length
	return a.idleFrom
}
