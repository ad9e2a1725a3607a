package scrub

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// leftover is what an earlier process may have left in the kernel: a call goes on
// there when its process is killed, and on a disk that hangs for as long as that
// does. Who sees that a scrub is paused or has ended may begin a device replace.
// It is of one goroutine.
type leftover struct {
	pool     *pool
	ended    chan struct{} // closed when it is over; nil until it is waited for
	obstacle string
}

// leftover returns nil where nothing can be left.
func (p *pool) leftover() *leftover {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cp.State != Running && p.cp.State != Yielding {
		return nil
	}
	return &leftover{pool: p}
}

// over waits until it is over, and says meanwhile what the scrub is about to do. It
// is false where something else is wanted, or may be.
func (l *leftover) over(ctx context.Context, w want) bool {
	if l.ended == nil {
		l.ended = make(chan struct{})
		l.pool.putBack() // the faster it is over: the limit may be that of a pause
		// It can take as long as a disk hangs.
		l.pool.runner.loops.Go(func() {
			defer close(l.ended)
			l.pool.waitForKernel(ctx)
		})
	}
	l.pool.stopping(w, l.obstacle)
	timer := time.NewTimer(stopPatience)
	defer timer.Stop()
	select {
	case <-l.ended:
		return ctx.Err() == nil
	case <-ctx.Done():
	case <-l.pool.changed:
	case <-timer.C:
		l.obstacle = ", when the kernel is done with what it scrubbed before the restart"
	}
	return false
}

// waitForKernel returns when no scrub of an earlier process runs in the kernel.
func (p *pool) waitForKernel(ctx context.Context) {
	// One of btrfs-progs is none of ours, and may take a day.
	stopServing, err := p.serveStatus()
	if err != nil {
		return
	}
	stopServing()
	for p.inKernel() {
		timer := time.NewTimer(retryInterval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// inKernel reports whether a scrub runs in the kernel, or may. It can take as long
// as a disk hangs.
func (p *pool) inKernel() bool {
	op, err := p.runner.client.ExclusiveOperation(p.uuid)
	if errors.Is(err, fs.ErrNotExist) || op == "device replace" {
		return false // it is not mounted, or the progress is that of the replace
	}
	f, _, err := p.runner.open(p.uuid)
	if err != nil {
		return !errors.Is(err, errNotMounted)
	}
	defer f.Close() //nolint:errcheck // it was only read
	p.mu.Lock()
	devices := p.cp.clone().Devices
	p.mu.Unlock()
	for i := range devices {
		_, err := f.ScrubProgress(devices[i].DevID)
		if !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ENODEV) {
			return true
		}
	}
	return false
}
