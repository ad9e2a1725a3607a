package scrub

import (
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"sync"
	"time"

	"github.com/go-kit/log/level"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// DefaultBatchBytes bounds what is done again after a crash, and what runs on
// in the kernel after a SIGKILL.
const DefaultBatchBytes = 1 << 30

// A device that is done with a batch in less than batchTime gets larger ones, so
// that the checkpoints in between do not count.
const (
	batchTime     = 1500 * time.Millisecond
	maxBatchBytes = 16 << 30
)

// nextBatch returns how much to scrub by a call after one of so many bytes took
// that long.
func nextBatch(size uint64, took time.Duration) uint64 {
	switch {
	case took < batchTime:
		return min(2*size, maxBatchBytes)
	case took > 4*batchTime:
		return max(size/2, DefaultBatchBytes)
	}
	return size
}

// Outcomes of a worker, beside errors of its device.
var (
	errStopped      = errors.New("stopped")
	errHeld         = errors.New("held") // to be done again
	errCancelled    = errors.New("somebody else cancelled it (`btrfs scrub cancel`, perhaps)")
	errBusy         = errors.New("another scrub or a device replace runs")
	errOperation    = errors.New("another operation runs")
	errNotMounted   = errors.New("the pool is not mounted")
	errReadOnlyPool = errors.New("the filesystem is mounted read-only: nothing could be repaired; ask for a read-only scrub (read_only), or remount it")
)

// worker scrubs one device of a pass, on a thread of its own.
//
// It looks before it repairs. Each batch is scrubbed read-only first, which
// changes nothing and can be done again after a crash with the same result;
// its counters are saved. Only where it found errors is it scrubbed again to
// repair them, and then once more to see which of them are gone. A crash
// between these steps loses no count and counts nothing twice.
type worker struct {
	pass  *pass
	index int    // in checkpoint.Devices
	bytes uint64 // how much the next batch should have, see nextBatch

	mu         sync.Mutex
	thread     int               // its id
	filesystem *btrfs.Filesystem // open while a call is under way
	batchSize  uint64            // bytes of the extents of that call
	counting   bool              // the call is one whose counters count
}

// run scrubs the rest of the device.
func (w *worker) run() error {
	// A signal that is pending on the thread switches the kernel's throttle
	// off, and Go sends them to preempt goroutines. The thread ends with the
	// goroutine, because that never unlocks it.
	runtime.LockOSThread()
	looked := sync.OnceFunc(w.pass.superblocks.Done)
	defer looked()
	if err := maskSignals(); err != nil {
		return err
	}
	thread := unix.Gettid()
	w.mu.Lock()
	w.thread = thread
	w.mu.Unlock()
	if g := w.pass.governor; g != nil {
		// What this thread reads is not of others.
		if err := g.sampler.AddThread(w.index, thread); err != nil {
			return err
		}
		defer g.sampler.RemoveThread(w.index, thread)
	}
	if err := w.superblocks(); err != nil {
		return err
	}
	looked()
	w.pass.superblocks.Wait()
	for {
		done, err := w.batch()
		if errors.Is(err, errHeld) {
			continue // and the batch waits
		}
		if done || err != nil {
			return err
		}
	}
}

// wakeSignal is the one signal that a scrub thread takes, and wake sends it: a
// real-time signal that nobody else does. Go's runtime catches it and does
// nothing.
const wakeSignal = unix.Signal(50)

// wake ends the sleep of the kernel's throttle in the call under way, which at a
// low rate lasts up to a second (scrub_throttle_dev_io in fs/btrfs/scrub.c). The
// rest of the call is not throttled: it is about to be cancelled.
func (w *worker) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.filesystem != nil { // so the thread lives
		_ = unix.Tgkill(unix.Getpid(), w.thread, wakeSignal) // without it the cancel takes longer
	}
}

func maskSignals() error {
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	const n = int(wakeSignal) - 1 // of its bit, in words of the machine
	all.Val[n/bits.UintSize] &^= 1 << (n % bits.UintSize)
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
		return fmt.Errorf("mask the signals of a scrub thread: %w", err)
	}
	return nil
}

// superblocks counts the errors of the device's superblocks, and has them
// repaired. Each call of the kernel looks at them, so they are counted once, and
// before any device is scrubbed: a commit writes them anew, and scrubbing a
// block group can lead to one.
func (w *worker) superblocks() error {
	for {
		w.pass.wait()
		p := w.pass.pool
		d := p.device(w.index)
		if d.Supers {
			return nil
		}
		f, _, err := p.runner.open(p.uuid)
		if err != nil {
			return err
		}
		// A range before the first extent: nothing else is looked at.
		found, err := w.call(f, d.DevID, 0, 1, 0, true)
		if err == nil && found.SuperErrors > 0 {
			level.Warn(p.runner.logger).Log("msg", "the scrub found bad superblocks", "pool", p.uuid, "devid", d.DevID, "device", d.Path, "errors", found.SuperErrors)
		}
		if err == nil {
			p.updateDevice(w.index, func(d *deviceCheckpoint) {
				d.Supers = true
				d.Counters.SuperErrors += found.SuperErrors
			})
			err = p.save()
		}
		if err == nil && found.SuperErrors > 0 && !p.options().ReadOnly {
			_, err = w.call(f, d.DevID, 0, 1, 0, false)
		}
		_ = f.Close() // it was only read
		if !errors.Is(err, errHeld) {
			return err
		}
	}
}

// batch scrubs the next extents of the device; done tells that there were none.
func (w *worker) batch() (done bool, err error) {
	w.pass.wait()
	if w.pass.stopping() {
		return false, errStopped
	}
	p := w.pass.pool
	// The pool's UUID is read anew from the open mount, each time.
	f, _, err := p.runner.open(p.uuid)
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	if op, err := p.runner.client.ExclusiveOperation(p.uuid); err != nil || holdsScrub(op) {
		if err == nil {
			err = fmt.Errorf("%w: %s", errOperation, op)
		}
		return false, err
	}

	d := p.device(w.index)
	if d.Pending != nil {
		return false, w.repair(f, &d)
	}
	extents, err := f.DeviceExtents(d.DevID, d.Cursor, w.bytes)
	if err != nil {
		return false, err
	}
	if len(extents) == 0 {
		p.updateDevice(w.index, func(d *deviceCheckpoint) {
			d.Done, d.Finished = true, p.runner.now()
			d.Size = d.Position
		})
		return true, p.save()
	}
	last := extents[len(extents)-1]
	var size uint64
	for _, e := range extents {
		size += e.Length
	}
	began := p.runner.now()
	log := w.listen(&d)
	if log != nil {
		defer log.Close() //nolint:errcheck // it was only read
	}
	found, err := w.call(f, d.DevID, extents[0].Offset, last.Offset+1, size, true)
	if err != nil {
		return false, err
	}
	if p.runner.adapts {
		w.bytes = nextBatch(w.bytes, p.runner.now().Sub(began))
	}
	found.SuperErrors = 0 // counted before
	hit := w.locate(f, &d, log, extents, &found)
	if w.pass.stopping() {
		return false, errStopped // before it was known what was hit
	}
	next := last.Offset + last.Length
	repair := found.Errors() > 0 && !p.options().ReadOnly
	p.updateDevice(w.index, func(d *deviceCheckpoint) {
		p.addDamage(hit)
		correctable := found.CorrectedErrors
		found.CorrectedErrors = 0
		d.Counters.Add(&found)
		d.mark(extents[0].Offset, began)
		if repair {
			d.Pending = &pending{
				Start: extents[0].Offset, End: last.Offset + 1, Size: size, Next: next, Correctable: correctable,
			}
			return
		}
		d.Cursor = next
		d.Position += size
	})
	if err := p.save(); err != nil {
		return false, err
	}
	if found.Errors() > 0 {
		level.Warn(p.runner.logger).Log("msg", "the scrub found errors", "pool", p.uuid, "devid", d.DevID, "device", d.Path, "errors", found.Errors())
	}
	return false, nil
}

// repair has the kernel repair a range that had errors, and looks which of
// them are gone.
func (w *worker) repair(f *btrfs.Filesystem, d *deviceCheckpoint) error {
	p := w.pass.pool
	r := d.Pending
	if _, err := w.call(f, d.DevID, r.Start, r.End, r.Size, false); err != nil {
		return err
	}
	left := btrfs.ScrubCounters{}
	if r.Correctable > 0 {
		var err error
		if left, err = w.call(f, d.DevID, r.Start, r.End, r.Size, true); err != nil {
			return err
		}
	}
	// What another copy can correct, and still is wrong, was not written.
	failed := min(left.CorrectedErrors, r.Correctable)
	if failed > 0 {
		level.Warn(p.runner.logger).Log("msg", "errors could not be repaired: the device does not take the writes",
			"pool", p.uuid, "devid", d.DevID, "device", d.Path, "errors", failed)
	}
	w.recheck(f, d, r)
	if w.pass.stopping() {
		return errStopped
	}
	p.updateDevice(w.index, func(d *deviceCheckpoint) {
		d.Counters.CorrectedErrors += r.Correctable - failed
		d.Pending = nil
		d.Cursor = r.Next
		d.Position += r.Size
	})
	return p.save()
}

// call scrubs a range. A call that does not come to its end counts nothing.
func (w *worker) call(f *btrfs.Filesystem, devid, start, end, size uint64, look bool) (btrfs.ScrubCounters, error) {
	w.mu.Lock()
	if w.pass.stopping() || w.pass.holding() {
		w.mu.Unlock()
		if w.pass.stopping() {
			return btrfs.ScrubCounters{}, errStopped
		}
		return btrfs.ScrubCounters{}, errHeld
	}
	w.filesystem, w.batchSize, w.counting = f, size, look
	w.mu.Unlock()
	before, during := w.pass.ownCancels()
	c, err := f.ScrubRange(devid, start, end, look)
	w.mu.Lock()
	w.filesystem, w.batchSize = nil, 0
	w.mu.Unlock()
	after, _ := w.pass.ownCancels()
	ours := during || after != before
	// A kernel may end a call for the signal of wake before it sees the cancel.
	ended := errors.Is(err, unix.ECANCELED) || ours && errors.Is(err, unix.EINTR)
	switch {
	case err == nil:
		return c, nil
	case ended && w.pass.stopping():
		err = errStopped
	case ended && ours:
		err = errHeld
	case errors.Is(err, unix.ECANCELED):
		err = errCancelled
	case errors.Is(err, unix.EINPROGRESS):
		err = errBusy
	case errors.Is(err, unix.EROFS):
		err = errReadOnlyPool
	}
	return btrfs.ScrubCounters{}, fmt.Errorf("pool %s: device %d: extents from %d to %d: %w", w.pass.pool.uuid, devid, start, end, err)
}

// progress returns the counters of the call under way, and the bytes of its
// extents.
func (w *worker) progress(devid uint64) (c btrfs.ScrubCounters, size uint64) {
	// The lock keeps the filesystem open meanwhile.
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.filesystem == nil || !w.counting {
		return c, 0
	}
	c, err := w.filesystem.ScrubProgress(devid)
	if err != nil {
		return btrfs.ScrubCounters{}, 0 // between two calls
	}
	return c, w.batchSize
}

// holdsScrub reports whether an exclusive operation is one that a scrub waits
// for: those that move data, and a device replace, which it would harm.
func holdsScrub(operation string) bool {
	switch operation {
	case "balance", "device remove", "device replace", "resize":
		return true
	}
	return false
}

// stopPatience is how long the end of a pass is waited for before its disk is
// said to hang.
const stopPatience = time.Second
