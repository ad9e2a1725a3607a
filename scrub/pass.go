package scrub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/go-kit/log/level"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// pass is a time in which the devices of a pool are scrubbed: from one pause
// to the next. All devices run at once, each on a thread of its own.
type pass struct {
	pool     *pool
	governor *governor // nil in modes other than auto
	workers  []*worker
	began    time.Time
	// superblocks is done when those of all devices have been looked at.
	superblocks sync.WaitGroup
	ctx         context.Context // done when the pass is to end
	cancel      context.CancelFunc
	before      time.Duration // checkpoint.Active when it began

	mu   sync.Mutex
	stop error // why it is to end; nil while it is to go on
	// held is closed when the workers may go on; nil while they may.
	held chan struct{}
	// cancels counts the cancels of ours that began, and cancelling those that
	// are under way: a call that one of them ended was not ended by others.
	cancels    uint64
	cancelling int
	// yieldingSince is when the scrub began to give way; zero while it does not.
	yieldingSince time.Time

	done chan struct{} // closed when all workers have ended
}

// startPass begins a pass over the devices that are not done.
func (p *pool) startPass(g *governor) *pass {
	a := &pass{pool: p, governor: g, began: p.runner.now(), done: make(chan struct{})}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	p.mu.Lock()
	a.before = p.cp.Active
	for i := range p.cp.Devices {
		d := &p.cp.Devices[i]
		if d.Done {
			continue
		}
		if d.Started.IsZero() {
			d.Started = a.began
		}
		a.workers = append(a.workers, &worker{pass: a, index: i, bytes: p.runner.batch})
	}
	p.pass = a
	p.mu.Unlock()

	a.superblocks.Add(len(a.workers))
	var group sync.WaitGroup
	for _, w := range a.workers {
		group.Go(func() { a.ended(w, w.run()) })
	}
	go func() {
		group.Wait()
		a.cancel()
		close(a.done)
	}()
	return a
}

// ended takes the outcome of a worker.
func (a *pass) ended(w *worker, err error) {
	switch {
	case err == nil, errors.Is(err, errStopped):
		return
	case errors.Is(err, errCancelled), errors.Is(err, errBusy), errors.Is(err, errOperation),
		errors.Is(err, errNotMounted), errors.Is(err, btrfs.ErrNoAnswer), errors.Is(err, errReadOnlyPool):
		a.end(err)
		return
	}
	// It concerns this device alone: the others go on.
	if errors.Is(err, unix.ENODEV) {
		err = fmt.Errorf("the device is missing: %w", err)
	}
	level.Error(a.pool.runner.logger).Log("msg", "the scrub of a device was given up", "pool", a.pool.uuid, "err", err)
	a.pool.updateDevice(w.index, func(d *deviceCheckpoint) {
		d.Done, d.Error, d.Finished = true, err.Error(), a.pool.runner.now()
	})
	if err := a.pool.save(); err != nil {
		a.end(err)
	}
}

// end makes the pass end with an outcome, if it has none yet.
func (a *pass) end(outcome error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stop == nil {
		a.stop = outcome
		a.cancel()
	}
}

func (a *pass) stopping() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stop != nil
}

func (a *pass) outcome() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stop
}

// letGoAfter is how long a scrub gives way softly. The kernel then still reads
// half a megabyte each second, which a film meets, and keeps a block group
// read-only. Beyond that the calls are cancelled: a batch is begun anew, which
// costs some seconds once.
const letGoAfter = 3 * time.Second

// yield tells the pass whether the scrub gives way, and not even at a floor.
func (a *pass) yield(wholly bool, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !wholly:
		a.yieldingSince = time.Time{}
		if a.held != nil {
			close(a.held)
			a.held = nil
		}
	case a.yieldingSince.IsZero():
		a.yieldingSince = now
	case a.held == nil && now.Sub(a.yieldingSince) >= letGoAfter:
		held := make(chan struct{})
		a.held = held
		// It can take as long as a disk hangs.
		a.pool.runner.loops.Go(func() { a.letGo(held) })
	}
}

// letGo cancels the calls under way, until the workers wait or may go on.
func (a *pass) letGo(held chan struct{}) {
	ticker := time.NewTicker(cancelInterval)
	defer ticker.Stop()
	for a.inCall() {
		a.cancelOnce()
		select {
		case <-held:
			return
		case <-a.ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// wait waits until the workers may go on.
func (a *pass) wait() {
	a.mu.Lock()
	held := a.held
	a.mu.Unlock()
	if held == nil {
		return
	}
	select {
	case <-held:
	case <-a.ctx.Done():
	}
}

func (a *pass) holding() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.held != nil
}

// ownCancels returns how many cancels of ours began, and whether one is under
// way.
func (a *pass) ownCancels() (n uint64, now bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cancels, a.cancelling > 0
}

// inCall reports whether a worker is in the kernel.
func (a *pass) inCall() bool {
	for _, w := range a.workers {
		w.mu.Lock()
		in := w.filesystem != nil
		w.mu.Unlock()
		if in {
			return true
		}
	}
	return false
}

// cancelInterval is the pause between two attempts to cancel what the workers
// are in: one may be on its way into the kernel.
const cancelInterval = 20 * time.Millisecond

// cancelCalls ends the calls under way, after end. It returns when the workers
// have ended, which on a disk that hangs is when that answers.
func (a *pass) cancelCalls() {
	ticker := time.NewTicker(cancelInterval)
	defer ticker.Stop()
	for {
		a.cancelOnce()
		select {
		case <-a.done:
			return
		case <-ticker.C:
		}
	}
}

func (a *pass) cancelOnce() {
	r, uuid := a.pool.runner, a.pool.uuid
	if !a.inCall() {
		return
	}
	// A cancel would end a device replace too. Then the call is let go on to
	// its end at the pace of a pause.
	if op, err := r.client.ExclusiveOperation(uuid); err != nil || op == "device replace" {
		a.pool.limit(1)
		return
	}
	f, _, err := r.open(uuid)
	if err != nil {
		return
	}
	defer f.Close() //nolint:errcheck // it was only read
	a.mu.Lock()
	a.cancels++
	a.cancelling++
	a.mu.Unlock()
	for _, w := range a.workers {
		w.wake()
	}
	err = f.CancelScrub()
	a.mu.Lock()
	a.cancelling--
	a.mu.Unlock()
	if err != nil && !errors.Is(err, unix.ENOTCONN) {
		level.Warn(r.logger).Log("msg", "the scrub could not be cancelled", "pool", uuid, "err", err)
	}
}

// open opens a mounted pool and makes sure that it is the one.
func (r *Runner) open(uuid btrfs.UUID) (*btrfs.Filesystem, *btrfs.Mount, error) {
	m, err := r.mounts.Find(uuid, tablePatience)
	switch {
	case err != nil:
		return nil, nil, err
	case m == nil:
		return nil, nil, errNotMounted
	}
	f, _, err := r.client.Open(m)
	if errors.Is(err, btrfs.ErrUnmounted) {
		return nil, nil, fmt.Errorf("%w: %w", errNotMounted, err)
	}
	return f, m, err
}

// limit sets the limit of all devices of the pass, and notes before the first
// change what is to be put back.
func (p *pool) limit(bytesPerSecond ...uint64) {
	p.mu.Lock()
	devices := make([]uint64, len(p.cp.Devices))
	for i := range p.cp.Devices {
		devices[i] = p.cp.Devices[i].DevID
	}
	noted := p.cp.SpeedMax != nil
	p.mu.Unlock()

	if !noted {
		before := make(map[uint64]uint64, len(devices))
		for _, devid := range devices {
			v, err := p.runner.client.ScrubSpeedMax(p.uuid, devid)
			switch {
			case err == nil:
				before[devid] = v
			case !errors.Is(err, fs.ErrNotExist):
				p.limitFailed(err)
				return
			}
		}
		p.mu.Lock()
		p.cp.SpeedMax = before
		p.mu.Unlock()
		if err := p.save(); err != nil {
			p.limitFailed(err)
			return
		}
	}
	for i, devid := range devices {
		rate := bytesPerSecond[0]
		if i < len(bytesPerSecond) {
			rate = bytesPerSecond[i]
		}
		p.mu.Lock()
		_, known := p.cp.SpeedMax[devid]
		same := p.limits[devid] == rate+1
		p.mu.Unlock()
		if !known || same {
			continue
		}
		if err := p.runner.client.SetScrubSpeedMax(p.uuid, devid, rate); err != nil {
			p.limitFailed(err)
			continue
		}
		p.mu.Lock()
		p.limits[devid] = rate + 1
		p.mu.Unlock()
	}
}

func (p *pool) limitFailed(err error) {
	p.warnOnce(&p.limitFault, "the speed of the scrub cannot be set, so it is not throttled", err)
}

// warnOnce logs a fault that each pass meets often; warned is of mu.
func (p *pool) warnOnce(warned *bool, msg string, err error) {
	p.mu.Lock()
	first := !*warned
	*warned = true
	p.mu.Unlock()
	if first {
		level.Warn(p.runner.logger).Log("msg", msg, "pool", p.uuid, "err", err)
	}
}

// putBack sets scrub_speed_max to what it was.
func (p *pool) putBack() {
	p.mu.Lock()
	before := p.cp.SpeedMax
	p.mu.Unlock()
	if before == nil {
		return
	}
	for devid, v := range before {
		err := p.runner.client.SetScrubSpeedMax(p.uuid, devid, v)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			// The kernel keeps the limit of a pool that is not mounted: it is put
			// back when that is mounted again. A device that is gone has none.
			if _, err := p.runner.client.ExclusiveOperation(p.uuid); err != nil {
				return
			}
			continue
		}
		if err != nil {
			level.Warn(p.runner.logger).Log("msg", "the limit of a device's scrub could not be put back", "pool", p.uuid, "devid", devid, "limit", v, "err", err)
			return // at the next start
		}
	}
	p.mu.Lock()
	p.cp.SpeedMax = nil
	clear(p.limits)
	p.mu.Unlock()
	if err := p.save(); err != nil {
		level.Warn(p.runner.logger).Log("msg", "the state of a scrub could not be saved", "pool", p.uuid, "err", err)
	}
}
