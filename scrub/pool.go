package scrub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-kit/log/level"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
)

// want is what the user asked for last.
type want int

const (
	wantRun want = iota
	wantPause
	wantCancel
)

// pool is the scrub of one pool.
type pool struct {
	runner *Runner
	uuid   btrfs.UUID

	saving   sync.Mutex // one save at a time, in order
	nextSave *groupSave // of mu; one that waits for saving

	mu      sync.Mutex
	cp      checkpoint
	want    want
	by      string        // who wants it, for the reason
	changed chan struct{} // gets a value when want changed
	active  bool          // its loop runs
	pass    *pass         // nil while none runs
	foreign *Status       // a scrub that somebody else runs; nil where none does

	limits     map[uint64]uint64 // by devid, plus one: what was set last
	limitFault bool              // one was logged
	fileFault  bool              // likewise
	yielding   bool
	why        string                   // why it yields
	latency    btrfs.Opt[time.Duration] // of others' reads
	pace       pace
	live       map[uint64]liveDevice
	verified   uint64 // bytes that were read again to find errors
}

// liveDevice is what is known of a call under way.
type liveDevice struct {
	counters btrfs.ScrubCounters
	position uint64 // bytes of its extents that are done, about
	rate     uint64
}

// options returns what was asked for.
func (p *pool) options() Options {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cp.Options
}

func (p *pool) device(i int) deviceCheckpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cp.Devices[i]
}

func (p *pool) updateDevice(i int, change func(*deviceCheckpoint)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.cp.Devices[i])
	delete(p.live, p.cp.Devices[i].DevID)
}

// save writes the checkpoint.
func (p *pool) save() error {
	if p.runner.state == nil {
		return nil
	}
	p.mu.Lock()
	g, first := p.nextSave, p.nextSave == nil
	if first {
		g = &groupSave{done: make(chan struct{})}
		p.nextSave = g
	}
	p.mu.Unlock()
	if !first {
		<-g.done
		return g.err
	}
	defer close(g.done)
	p.saving.Lock()
	defer p.saving.Unlock()
	p.mu.Lock()
	p.nextSave = nil // who comes from here on may have changed more
	if a := p.pass; a != nil {
		p.cp.Active = a.before + p.runner.now().Sub(a.began)
	}
	cp := p.cp.clone()
	p.mu.Unlock()
	g.err = p.runner.state.SaveJSON(checkpointName(p.uuid), &cp)
	return g.err
}

// groupSave is a save that waits for the one before it, and that serves all
// who ask for one meanwhile: with many fast devices they would queue.
type groupSave struct {
	done chan struct{}
	err  error
}

func (p *pool) saveOrLog() {
	if err := p.save(); err != nil {
		level.Error(p.runner.logger).Log("msg", "the state of a scrub could not be saved", "pool", p.uuid, "err", err)
	}
}

// setState changes the state and tells those who watch. An unchanged one costs
// nothing.
func (p *pool) setState(s State, reason string) {
	p.mu.Lock()
	same := p.cp.State == s && p.cp.Reason == reason
	from := p.cp.State
	p.cp.State, p.cp.Reason = s, reason
	if !s.Active() {
		p.active = false
	}
	if !same && s == Paused {
		p.countPause("user")
	}
	jobID := p.cp.JobID
	p.mu.Unlock()
	if same {
		return
	}
	level.Info(p.runner.logger).Log("msg", "scrub", "pool", p.uuid, "job", jobID, "state", s, "was", from, "reason", reason)
	p.saveOrLog()
	p.updateJob(func(j *job.Job) { j.State, j.Reason = jobState(s), reason })
	p.publish()
}

// jobState is the state of the job of a scrub.
func jobState(s State) job.State {
	switch s {
	case Finished:
		return job.Succeeded
	case Failed:
		return job.Failed
	case Cancelled:
		return job.Cancelled
	case Waiting, Paused:
		return job.Waiting
	}
	return job.Running
}

// countPause counts a pause. p.mu is held.
func (p *pool) countPause(reason string) {
	p.cp.Pauses++
	if p.cp.History.Pauses == nil {
		p.cp.History.Pauses = make(map[string]uint64)
	}
	p.cp.History.Pauses[reason]++
}

func (p *pool) updateJob(change func(*job.Job)) {
	p.mu.Lock()
	id := p.cp.JobID
	p.mu.Unlock()
	if id == "" {
		return
	}
	if _, err := p.runner.jobs.Update(id, change); err != nil {
		level.Warn(p.runner.logger).Log("msg", "the job of a scrub could not be updated", "pool", p.uuid, "job", id, "err", err)
	}
}

func (p *pool) publish() { p.runner.jobs.Publish("scrub", p.status()) }

// ask changes what is wanted.
func (p *pool) ask(w want, by string) {
	p.mu.Lock()
	p.want, p.by = w, by
	p.cp.Pausing, p.cp.Cancelling = "", ""
	switch w {
	case wantPause:
		p.cp.Pausing = by
	case wantCancel:
		p.cp.Cancelling = by
	}
	p.mu.Unlock()
	p.saveOrLog()
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

func (p *pool) wanted() (want, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.want, p.by
}

// retryInterval is how often it is looked whether a scrub that waits may go on.
const retryInterval = 500 * time.Millisecond

// loop runs the scrub to its end, or until ctx is done.
func (p *pool) loop(ctx context.Context) {
	left := p.leftover()
	for ctx.Err() == nil {
		w, by := p.wanted()
		if w != wantRun && left != nil {
			if left.over(ctx, w) {
				left = nil
			}
			continue
		}
		switch w {
		case wantCancel:
			p.finish(Cancelled, by)
			return
		case wantPause:
			p.setState(Paused, by)
			p.sleep(ctx, 0)
			continue
		}
		release, reason := p.mayRun()
		if release == nil {
			p.setState(Waiting, reason)
			p.sleep(ctx, retryInterval)
			continue
		}
		left = nil // mayRun saw no scrub in the kernel
		err := p.runPass(ctx)
		release()
		switch {
		case err == nil:
			p.conclude()
			return
		case errors.Is(err, errStopped):
		case errors.Is(err, errCancelled):
			p.finish(Cancelled, upper(errCancelled.Error()))
			return
		case errors.Is(err, errReadOnlyPool):
			p.finish(Failed, upper(errReadOnlyPool.Error()))
			return
		default:
			// Busy, unmounted, or an error that may pass: it goes on from the
			// checkpoint.
			p.setState(Waiting, upper(err.Error()))
			p.sleep(ctx, retryInterval)
		}
	}
}

func upper(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// sleep waits until something else is wanted, ctx is done or a time has
// passed; 0 is no time.
func (p *pool) sleep(ctx context.Context, d time.Duration) {
	var timer <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
	case <-p.changed:
	case <-timer:
	}
}

// mayRun looks whether the scrub may run now. If so it takes a place among
// those that run, which release gives back; else it says why not.
func (p *pool) mayRun() (release func(), reason string) {
	r := p.runner
	now := r.now()
	o := p.options()
	if now.Before(o.NotBefore) {
		return nil, "It is not to begin before " + o.NotBefore.Local().Format(time.RFC1123)
	}
	if reason := r.heldBack(now); reason != "" {
		return nil, reason
	}
	f, m, err := r.open(p.uuid)
	if err != nil {
		return nil, upper(err.Error())
	}
	defer f.Close() //nolint:errcheck // it was only read
	op, err := r.client.ExclusiveOperation(p.uuid)
	if err != nil {
		return nil, upper(err.Error())
	}
	if holdsScrub(op) {
		return nil, fmt.Sprintf("A %s runs", op)
	}
	if err := p.refreshDevices(f, m); err != nil {
		return nil, upper(err.Error())
	}
	p.mu.Lock()
	devices := slices.Clone(p.cp.Devices)
	p.mu.Unlock()
	var disks []string
	for i := range devices {
		d := &devices[i]
		if d.Done {
			continue
		}
		if _, err := f.ScrubProgress(d.DevID); err == nil {
			return nil, "Another scrub runs"
		}
		disks = append(disks, p.disksOf(d)...)
	}
	return r.takePlace(p.uuid, disks)
}

// disksOf returns the whole disks beneath a device.
func (p *pool) disksOf(d *deviceCheckpoint) []string {
	if d.Name == "" {
		return nil
	}
	disks, err := p.runner.client.Disks(d.Name)
	if err != nil {
		level.Warn(p.runner.logger).Log("msg", "the disks beneath a device are not known", "pool", p.uuid, "device", d.Name, "err", err)
		return []string{d.Name}
	}
	return disks
}

// refreshDevices holds the devices of the checkpoint against those that the
// pool has now.
func (p *pool) refreshDevices(f *btrfs.Filesystem, m *btrfs.Mount) error {
	pool, err := p.runner.client.ReadPool(f, m, "")
	if pool == nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cp.Started.IsZero() {
		p.cp.Started = p.runner.now()
	}
	var devices []deviceCheckpoint
	for _, d := range pool.Devices {
		// A seed device belongs to another filesystem, and a replace target to
		// none yet.
		if d.ReplaceTarget || !d.FSID.IsZero() && d.FSID != p.uuid {
			continue
		}
		i := slices.IndexFunc(p.cp.Devices, func(c deviceCheckpoint) bool { return c.DevID == d.ID && c.UUID == d.UUID })
		c := deviceCheckpoint{DevID: d.ID, UUID: d.UUID}
		if i >= 0 {
			c = p.cp.Devices[i]
		}
		c.Name, c.Path = d.Name, d.Path
		if !c.Done {
			c.Size = max(d.Used.Value, c.Position)
		}
		if d.Missing.Value && !c.Done {
			c.Done, c.Error = true, "the device is missing: it could not be scrubbed"
		}
		devices = append(devices, c)
	}
	p.cp.Devices = devices
	return nil
}

// runPass scrubs until all is done (nil), or until something ends it.
func (p *pool) runPass(ctx context.Context) error {
	p.mu.Lock()
	p.yielding, p.why = false, ""
	p.mu.Unlock()
	governor := p.newGovernor()
	switch o := p.options(); o.Mode {
	case Limit:
		p.limit(o.Limit)
	case Full:
		p.limit(0)
	default:
		p.limit(firstLimit)
	}
	if governor != nil && !p.warmUp(ctx, governor) {
		p.putBack()
		return errStopped
	}
	stopServing, err := p.serveStatus()
	if err != nil {
		p.putBack()
		return errBusy
	}
	defer stopServing()
	a := p.startPass(governor)
	p.setState(Running, "")
	p.watch(ctx, a, governor)

	stopped := a.outcome()
	if stopped != nil {
		told := make(chan struct{})
		go func() {
			defer close(told)
			p.tellOfHungDisk(a)
		}()
		a.cancelCalls() // it may take as long as a disk hangs
		<-told
	}
	p.mu.Lock()
	p.cp.Active = a.before + p.runner.now().Sub(a.began)
	p.pass = nil
	p.yielding, p.why, p.latency = false, "", btrfs.Opt[time.Duration]{}
	clear(p.live)
	p.mu.Unlock()
	p.putBack()
	p.saveOrLog()
	p.writeStatusFile()
	return stopped
}

// warmUp looks at the disks for a while before a scrub begins. It is false
// where something else is wanted meanwhile.
func (p *pool) warmUp(ctx context.Context, g *governor) bool {
	ticker := time.NewTicker(steerInterval)
	defer ticker.Stop()
	end := time.NewTimer(warmUp)
	defer end.Stop()
	for {
		p.steer(nil, g)
		select {
		case <-ctx.Done():
			return false
		case <-p.changed:
			if w, _ := p.wanted(); w != wantRun {
				return false
			}
		case <-end.C:
			return true
		case <-ticker.C:
		}
	}
}

// Intervals of watch.
const (
	steerInterval      = 100 * time.Millisecond
	progressInterval   = 500 * time.Millisecond
	statusFileInterval = 5 * time.Second
)

// nextSteer is how long to wait for the next sample. It varies: the kernel's
// scrub waits for all of its requests every 8 MiB, and at a steady pace of both
// each sample could find the same number of them in flight, and a sudden other
// one would look like reads of others.
func nextSteer() time.Duration {
	return time.Duration((0.7 + 0.6*rand.Float64()) * float64(steerInterval))
}

// watch looks after a pass until its workers have ended or it is to end.
func (p *pool) watch(ctx context.Context, a *pass, g *governor) {
	steer := time.NewTimer(nextSteer())
	defer steer.Stop()
	progress := time.NewTicker(progressInterval)
	defer progress.Stop()
	file := time.NewTicker(statusFileInterval)
	defer file.Stop()
	p.writeStatusFile()
	for {
		select {
		case <-a.done:
			return
		case <-ctx.Done():
			a.end(errStopped)
			return
		case <-p.changed:
			if w, _ := p.wanted(); w != wantRun {
				a.end(errStopped)
				// It is not paused before the kernel lets go of the disks: who sees
				// that it is may begin a device replace.
				p.stopping(w, "")
				return
			}
		case <-steer.C:
			p.steer(a, g)
			steer.Reset(nextSteer())
		case <-progress.C:
			if reason := p.runner.heldBack(p.runner.now()); reason != "" {
				p.mu.Lock()
				p.countPause("window")
				p.mu.Unlock()
				a.end(errStopped)
				return
			}
			p.updateProgress(a)
			p.publish()
		case <-file.C:
			p.writeStatusFile()
		}
		if a.stopping() { // a worker ended the pass
			return
		}
	}
}

// stopping says that a scrub is about to pause or to end, and what keeps it.
func (p *pool) stopping(w want, obstacle string) {
	p.mu.Lock()
	p.yielding = false
	p.mu.Unlock()
	reason := "It is about to end"
	if w == wantPause {
		reason = "It is about to pause"
	}
	p.setState(Running, reason+obstacle)
}

// tellOfHungDisk says what a pass that is to end waits for, if it does for long,
// and returns when it has ended.
func (p *pool) tellOfHungDisk(a *pass) {
	timer := time.NewTimer(stopPatience)
	defer timer.Stop()
	select {
	case <-a.done:
		return
	case <-timer.C:
	}
	level.Warn(p.runner.logger).Log("msg", "a disk does not answer: the scrub ends when it does", "pool", p.uuid)
	if w, _ := p.wanted(); w != wantRun {
		p.stopping(w, ", when a disk answers that does not yet")
	}
	<-a.done
}

// conclude ends a scrub whose devices are all done.
func (p *pool) conclude() {
	p.mu.Lock()
	var failed []string
	var uncorrectable, errs, corrected uint64
	for i := range p.cp.Devices {
		d := &p.cp.Devices[i]
		if d.Error != "" {
			failed = append(failed, fmt.Sprintf("device %d: %s", d.DevID, d.Error))
		}
		uncorrectable += d.Counters.UncorrectableErrors
		errs += d.Counters.Errors()
		corrected += d.Counters.CorrectedErrors
	}
	readOnly := p.cp.Options.ReadOnly
	cost := p.cp.deadlineCost(p.runner.now())
	p.mu.Unlock()
	switch {
	case len(failed) > 0:
		p.finish(Failed, "Not all devices were scrubbed: "+strings.Join(failed, "; ")+cost)
	case errs == 0:
		p.finish(Finished, "No errors"+cost)
	case readOnly:
		p.finish(Finished, fmt.Sprintf("%d errors, %d of them uncorrectable; nothing was repaired, for the scrub was read-only", errs, uncorrectable)+cost)
	default:
		p.finish(Finished, fmt.Sprintf("%d errors, %d corrected, %d uncorrectable", errs, corrected, uncorrectable)+cost)
	}
}

// deadlineCost continues the sentence that says how a scrub ended: whether it
// met its deadline, and what that cost those who used the disks. It is empty
// where there is no deadline.
func (c *checkpoint) deadlineCost(ended time.Time) string {
	deadline := c.Options.Deadline
	if deadline.IsZero() {
		return ""
	}
	text := "; done within its deadline"
	if late := ended.Sub(deadline); late > 0 {
		text = fmt.Sprintf("; done %s after its deadline", max(late.Round(time.Second), time.Second))
	}
	switch {
	case c.Options.Mode != Auto:
		return text // it gave way to nobody anyway
	case c.Urged < time.Second:
		return text + ", at nobody's cost"
	}
	return text + fmt.Sprintf(", for which it went on beside others for %s", c.Urged.Round(time.Second))
}

// finish ends the scrub.
func (p *pool) finish(s State, reason string) {
	p.putBack()
	p.mu.Lock()
	now := p.runner.now()
	p.cp.Finished = now
	h := &p.cp.History
	h.LastFinished, h.LastDuration, h.LastErrors = now, p.cp.Active, 0
	uncorrectable := uint64(0)
	for i := range p.cp.Devices {
		h.LastErrors += p.cp.Devices[i].Counters.Errors()
		uncorrectable += p.cp.Devices[i].Counters.UncorrectableErrors
	}
	// One that did not get far does not say that what was lost is back.
	h.LastUncorrectable = max(h.LastUncorrectable, uncorrectable)
	if s == Finished {
		h.LastSuccess, h.LastUncorrectable = now, uncorrectable
	}
	p.mu.Unlock()
	// The job first: who sees that the scrub has ended finds its result there.
	status := p.status()
	status.State, status.Reason = s, reason
	p.updateJob(func(j *job.Job) {
		j.State, j.Reason = jobState(s), reason
		if text, err := json.Marshal(status); err == nil {
			j.Result = text
		}
	})
	p.setState(s, reason)
	p.writeStatusFile()
}
