package scrub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// Config is what a Runner needs.
type Config struct {
	Logger log.Logger
	Client *btrfs.Client
	Paths  btrfs.Paths
	// State is where checkpoints are kept; nil keeps none.
	State *state.Dir
	Jobs  *job.Store
	// StatusDir is where btrfs-progs keeps its status files; "" is
	// DefaultStatusDir.
	StatusDir string
	// BatchBytes is how much of a device one call of the kernel scrubs: as many
	// device extents as fit, at least one. 0 is DefaultBatchBytes, and more on a
	// device that is done with that at once.
	BatchBytes uint64
	// Only is the pool to look after, zero is all. The checkpoints of others are
	// left alone.
	Only btrfs.UUID
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// DefaultStatusDir is where `btrfs scrub status` looks.
const DefaultStatusDir = "/var/lib/btrfs"

// Settings are what the configuration says. The zero value scrubs one pool at
// a time, at any hour, on no schedule.
type Settings struct {
	// MaxPools is how many pools are scrubbed at once; 0 is 1. Pools that share
	// a disk never are.
	MaxPools int
	// Hours says when scrubs may run; nil is always.
	Hours Hours
	// Schedules start scrubs by the clock.
	Schedules []Schedule
	// OnBattery reports whether the machine runs on its battery: scrubs then
	// wait. nil: they never do.
	OnBattery func() bool
	// Excludes leaves out pools; nil leaves out none.
	Excludes func(uuid btrfs.UUID, label string) bool
}

// Hours are times of the day and week.
type Hours interface {
	// Open reports whether scrubs may run at a time.
	Open(t time.Time) bool
	// NextOpen returns when they next may; zero is never.
	NextOpen(t time.Time) time.Time
}

// Schedule starts scrubs by the clock.
type Schedule struct {
	Name    string
	Pools   []string // UUIDs or labels; none is all
	Options Options
	// Within is how long a scrub may take: its deadline counts from its start. 0
	// is for ever.
	Within time.Duration
	// Due reports whether a run came due after last and not after now.
	Due func(last, now time.Time) bool
}

// Runner scrubs pools. Its methods may be called from any goroutine; none of
// them waits for a disk of a scrub, except Plan and Start, which open the pool.
type Runner struct {
	logger    log.Logger
	client    *btrfs.Client
	mounts    *btrfs.MountTable
	paths     btrfs.Paths
	state     *state.Dir
	jobs      *job.Store
	statusDir string
	batch     uint64
	adapts    bool // batches become larger where they take no time
	only      btrfs.UUID
	now       func() time.Time
	changed   chan struct{} // gets a value when the settings changed

	mu sync.Mutex
	// mountsFault is the last error of the mount table, so that one that lasts is
	// logged once.
	mountsFault string
	settings    Settings
	pools       map[btrfs.UUID]*pool
	places      map[btrfs.UUID][]string // the disks of the pools that are being scrubbed
	ctx         context.Context         // set while Run runs
	loops       sync.WaitGroup
}

// New returns a Runner with the checkpoints of the state directory. One that is
// damaged is set aside with a warning.
func New(c Config) (*Runner, error) {
	r := &Runner{
		logger: c.Logger, client: c.Client, mounts: btrfs.NewMountTable(c.Client.Mounts), paths: c.Paths, state: c.State, jobs: c.Jobs, statusDir: c.StatusDir, batch: c.BatchBytes, only: c.Only, now: c.Now,
		changed: make(chan struct{}, 1), pools: make(map[btrfs.UUID]*pool), places: make(map[btrfs.UUID][]string),
	}
	if r.statusDir == "" {
		r.statusDir = DefaultStatusDir
	}
	if r.batch == 0 {
		r.batch, r.adapts = DefaultBatchBytes, true
	}
	if r.now == nil {
		r.now = func() time.Time { return time.Now().UTC() }
	}
	if r.state == nil {
		return r, nil
	}
	names, err := r.state.Names("scrub-*.json")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		uuid, err := btrfs.ParseUUID(strings.TrimSuffix(strings.TrimPrefix(name, "scrub-"), ".json"))
		if err != nil || !c.Only.IsZero() && uuid != c.Only {
			continue
		}
		p := r.newPool(uuid)
		var cp checkpoint
		err = r.state.LoadJSON(name, &cp, func() error { return cp.check(uuid) })
		if errors.Is(err, state.ErrDamaged) {
			level.Warn(r.logger).Log("msg", "the scrub of a pool cannot go on from where it stood", "pool", uuid, "err", err)
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		p.cp = cp
		switch {
		case cp.Cancelling != "" && cp.State.Active():
			p.want, p.by = wantCancel, cp.Cancelling
		case cp.Pausing != "" && cp.State.Active():
			p.want, p.by = wantPause, cp.Pausing
		case cp.State == Paused: // by an earlier version
			p.want, p.by = wantPause, cp.Reason
		}
		r.pools[uuid] = p
	}
	return r, r.endLostJobs()
}

// endLostJobs ends the jobs whose checkpoint is gone: nothing goes on with
// them.
func (r *Runner) endLostJobs() error {
	for _, j := range r.jobs.List() {
		if j.Kind != "scrub" || j.State.Ended() || !r.only.IsZero() && j.Pool != r.only {
			continue
		}
		if p := r.pools[j.Pool]; p != nil && p.cp.JobID == j.ID && p.cp.State.Active() {
			continue
		}
		_, err := r.jobs.Update(j.ID, func(j *job.Job) {
			j.State, j.Reason = job.Failed, "Where the scrub stood was lost with its state file; start another one"
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Runner) newPool(uuid btrfs.UUID) *pool {
	return &pool{
		runner: r, uuid: uuid, changed: make(chan struct{}, 1),
		limits: make(map[uint64]uint64), live: make(map[uint64]liveDevice),
	}
}

// SetSettings changes the settings, also for scrubs that run.
func (r *Runner) SetSettings(s Settings) {
	r.mu.Lock()
	r.settings = s
	r.mu.Unlock()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// lookInterval is how often the runner looks at the clock and for scrubs of
// others.
const lookInterval = 10 * time.Second

// stopWait is how long the end of Run waits for scrubs to stop: on a disk that
// hangs they do not.
const stopWait = 5 * time.Second

// Run goes on with the scrubs that had begun, and runs those that are asked
// for, until ctx is done. Then it stops them at their checkpoints.
func (r *Runner) Run(ctx context.Context) error { return r.RunReady(ctx, func() {}) }

// RunReady is Run; it calls ready as soon as Start may be called.
func (r *Runner) RunReady(ctx context.Context, ready func()) error {
	r.mu.Lock()
	r.ctx = ctx
	for _, p := range r.pools {
		if p.cp.State.Active() {
			r.launch(p)
		}
	}
	r.mu.Unlock()
	ready()
	// Of its own, because it can hang with a disk.
	r.loops.Go(func() {
		ticker := time.NewTicker(lookInterval)
		defer ticker.Stop()
		for ctx.Err() == nil {
			r.look()
			select {
			case <-ctx.Done():
			case <-ticker.C:
			case <-r.changed:
			}
		}
	})
	<-ctx.Done()
	ended := make(chan struct{})
	go func() {
		r.loops.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(stopWait):
		level.Warn(r.logger).Log("msg", "a scrub does not stop, for its disk does not answer; it goes on from its checkpoint at the next start")
	}
	return nil
}

// launch starts the loop of a pool. r.mu is held, and Run runs.
func (r *Runner) launch(p *pool) {
	p.mu.Lock()
	p.active = true
	p.mu.Unlock()
	ctx := r.ctx
	r.loops.Go(func() { p.loop(ctx) })
}

// look puts back what could not be put back before, looks for scrubs of
// others, and starts what the schedules ask for.
func (r *Runner) look() {
	r.mu.Lock()
	pools := make([]*pool, 0, len(r.pools))
	for _, p := range r.pools {
		pools = append(pools, p)
	}
	r.mu.Unlock()
	for _, p := range pools {
		p.mu.Lock()
		leftover := p.cp.SpeedMax != nil && p.pass == nil && !p.active
		p.mu.Unlock()
		if leftover {
			p.putBack()
		}
	}
	r.lookForForeign()
	r.runSchedules()
}

// heldBack says why no scrub may run now, or nothing.
func (r *Runner) heldBack(now time.Time) string {
	r.mu.Lock()
	hours, onBattery := r.settings.Hours, r.settings.OnBattery
	r.mu.Unlock()
	if hours != nil && !hours.Open(now) {
		if next := hours.NextOpen(now); !next.IsZero() {
			return "Outside of the hours for scrubs, until " + next.Format(time.RFC1123)
		}
		return "Outside of the hours for scrubs (scrub.windows and scrub.blackout leave none)"
	}
	if onBattery != nil && onBattery() {
		return "The machine runs on its battery"
	}
	return ""
}

// takePlace takes a place among the scrubs that run, or says why there is none.
func (r *Runner) takePlace(uuid btrfs.UUID, disks []string) (release func(), reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, theirs := range r.places {
		for _, d := range disks {
			if slices.Contains(theirs, d) {
				return nil, fmt.Sprintf("Pool %s is being scrubbed, which shares disk %s", other, d)
			}
		}
	}
	if most := max(r.settings.MaxPools, 1); len(r.places) >= most {
		return nil, fmt.Sprintf("Pools that are being scrubbed: %d, the most that scrub.max_pools allows", len(r.places))
	}
	r.places[uuid] = disks
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.places, uuid)
	}, ""
}

// find returns the scrub of a pool that is mounted or was scrubbed before.
func (r *Runner) find(uuid btrfs.UUID) (*pool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.pools[uuid]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("pool %s: %w", uuid, ErrUnknownPool)
}

// Start asks for a scrub. It is a job that waits until it may run. With
// ErrRunning the job is the one under way. ErrRefused says what stands in its
// way: the pool is not mounted, or read-only.
func (r *Runner) Start(uuid btrfs.UUID, o Options, requester string) (job.Job, error) {
	if _, err := r.Plan(uuid, o); err != nil {
		return job.Job{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx == nil || r.ctx.Err() != nil {
		return job.Job{}, fmt.Errorf("scrub pool %s: the daemon is starting or stopping: %w", uuid, ErrRefused)
	}
	p := r.pools[uuid]
	if p == nil {
		p = r.newPool(uuid)
	}
	p.mu.Lock()
	active, id := p.active, p.cp.JobID
	p.mu.Unlock()
	if active {
		j, err := r.jobs.Get(id)
		return j, errors.Join(fmt.Errorf("pool %s: %w", uuid, ErrRunning), err)
	}
	j, err := r.jobs.Create("scrub", uuid, requester, o)
	if err != nil {
		return j, err
	}
	p.mu.Lock()
	before := p.cp
	p.cp = p.cp.next(uuid, j.ID, requester, o, r.now())
	p.want, p.by, p.limitFault, p.verified = wantRun, "", false, 0
	p.mu.Unlock()
	if err := p.save(); err != nil {
		p.mu.Lock()
		p.cp = before
		p.mu.Unlock()
		_, updateErr := r.jobs.Update(j.ID, func(j *job.Job) { j.State, j.Reason = job.Failed, err.Error() })
		return j, errors.Join(err, updateErr)
	}
	r.pools[uuid] = p
	r.launch(p)
	return j, nil
}

// openPatience is how long a pool may take to be opened.
const openPatience = 10 * time.Second

// tablePatience is how long a reading of the mount table is waited for. It is short,
// for each batch waits: what was found before serves as well, since the pool's UUID
// is read from the open mount.
const tablePatience = 500 * time.Millisecond

// Plan says what a scrub would do now. ErrRefused says that it would do
// nothing, and why.
func (r *Runner) Plan(uuid btrfs.UUID, o Options) (*Plan, error) {
	type answer struct {
		plan *Plan
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		p, err := r.plan(uuid, o)
		answers <- answer{p, err}
	}()
	select {
	case a := <-answers:
		return a.plan, a.err
	case <-time.After(openPatience):
		return nil, fmt.Errorf("pool %s gives no answer after %s: a disk may hang (see the kernel log): %w", uuid, openPatience, ErrRefused)
	}
}

func (r *Runner) plan(uuid btrfs.UUID, o Options) (*Plan, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	f, m, err := r.open(uuid)
	if errors.Is(err, errNotMounted) {
		return nil, fmt.Errorf("pool %s: %w", uuid, ErrUnknownPool)
	}
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", uuid, err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	facts, err := r.client.ReadPool(f, m, "")
	if facts == nil {
		return nil, err
	}
	if facts.ReadOnly.Value && !o.ReadOnly {
		return nil, fmt.Errorf("pool %s is mounted read-only, so that a scrub could repair nothing: remount it, or ask for a read-only scrub (read_only): %w", uuid, ErrRefused)
	}
	plan := &Plan{Pool: uuid, Options: o}
	r.mu.Lock()
	p := r.pools[uuid]
	r.mu.Unlock()
	if p != nil {
		p.mu.Lock()
		if p.active {
			plan.Would = append(plan.Would, "refuse: a scrub of this pool is under way already")
		}
		p.mu.Unlock()
	}
	if reason := r.heldBack(r.now()); reason != "" {
		plan.Would = append(plan.Would, "wait: "+reason)
	}
	if !o.NotBefore.IsZero() && r.now().Before(o.NotBefore) {
		plan.Would = append(plan.Would, "wait until "+o.NotBefore.Format(time.RFC3339))
	}
	if op := facts.ExclusiveOperation.Value; holdsScrub(op) {
		plan.Would = append(plan.Would, fmt.Sprintf("wait until the %s that runs has ended", op))
	}
	verb := "read and check, and repair from another copy where there is one,"
	if o.ReadOnly {
		verb = "read and check, repairing nothing,"
	}
	var sum uint64
	for _, d := range facts.Devices {
		if d.ReplaceTarget || !d.FSID.IsZero() && d.FSID != uuid {
			continue
		}
		s := DeviceStatus{DevID: d.ID, UUID: d.UUID, Name: d.Name, Path: d.Path, Size: d.Used.Value}
		if d.Missing.Value {
			s.Error = "the device is missing and would not be scrubbed"
			plan.Would = append(plan.Would, fmt.Sprintf("leave out device %d, which is missing", d.ID))
		}
		if _, err := f.ScrubProgress(d.ID); err == nil && (p == nil || !p.running()) {
			plan.Would = append(plan.Would, fmt.Sprintf("wait until the scrub of device %d that somebody else runs has ended", d.ID))
		} else if err != nil && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
		sum += s.Size
		plan.Devices = append(plan.Devices, s)
	}
	pace := map[Mode]string{
		Auto: "giving way to others",
		Full: "as fast as it can",
	}[o.Mode]
	if o.Mode == Limit {
		pace = fmt.Sprintf("at %s/s on each device", humanize.Bytes(o.Limit))
	}
	plan.Would = append(plan.Would, fmt.Sprintf("%s up to %s on %d devices, %s", verb, humanize.IBytes(sum), len(plan.Devices), pace))
	return plan, nil
}

func (p *pool) running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pass != nil
}

// Pause stops a scrub at its checkpoint until Resume. It returns at once.
func (r *Runner) Pause(uuid btrfs.UUID) (Status, error) {
	return r.ask(uuid, wantPause, "Paused by hand")
}

// Resume goes on with a paused scrub.
func (r *Runner) Resume(uuid btrfs.UUID) (Status, error) { return r.ask(uuid, wantRun, "") }

// Cancel ends a scrub.
func (r *Runner) Cancel(uuid btrfs.UUID) (Status, error) {
	return r.ask(uuid, wantCancel, "Cancelled by hand")
}

func (r *Runner) ask(uuid btrfs.UUID, w want, by string) (Status, error) {
	p, err := r.find(uuid)
	if err != nil {
		return Status{}, fmt.Errorf("pool %s: %w", uuid, ErrNotRunning)
	}
	p.mu.Lock()
	active, foreign := p.active, p.foreign != nil
	p.mu.Unlock()
	if !active {
		if foreign {
			return p.status(), fmt.Errorf("pool %s: %w: use `btrfs scrub cancel` to end it", uuid, ErrForeign)
		}
		return p.status(), fmt.Errorf("pool %s: %w", uuid, ErrNotRunning)
	}
	p.ask(w, by)
	return p.status(), nil
}

// Status returns the scrub of a pool, the running one or the last.
func (r *Runner) Status(uuid btrfs.UUID) (Status, error) {
	p, err := r.find(uuid)
	if err != nil {
		return Status{Pool: uuid, State: Idle, Options: Options{Mode: Auto}}, nil
	}
	return p.status(), nil
}

// logMounts logs an error of the mount table when it is another one than before.
func (r *Runner) logMounts(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	r.mu.Lock()
	changed := text != r.mountsFault
	r.mountsFault = text
	r.mu.Unlock()
	if changed && err != nil {
		level.Warn(r.logger).Log("msg", "could not find all pools to scrub", "err", err)
	}
}

// runSchedules starts what is due.
func (r *Runner) runSchedules() {
	r.mu.Lock()
	schedules, excludes := r.settings.Schedules, r.settings.Excludes
	r.mu.Unlock()
	if len(schedules) == 0 || r.state == nil {
		return
	}
	mounts, err := r.mounts.List(tablePatience)
	r.logMounts(err)
	var last lastRuns
	err = r.state.LoadJSON(schedulesName, &last, func() error { return nil })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		level.Warn(r.logger).Log("msg", "when schedules ran last is not known: each waits for its next time", "err", err)
	}
	if last == nil {
		last = make(lastRuns)
	}
	now := r.now()
	changed := false
	for i := range schedules {
		s := &schedules[i]
		for _, m := range mounts {
			if m.UUID.IsZero() || !r.scheduled(s, &m, excludes) {
				continue
			}
			key := s.Name + "/" + m.UUID.String()
			before, known := last[key]
			// A clock that was ahead and is right now: from now on, and nothing
			// is run twice.
			if known && before.After(now) {
				known = false
			}
			if known && !s.Due(before, now) {
				continue
			}
			last[key] = now
			changed = true
			if !known {
				continue // it begins at its next time
			}
			// Noted before it starts: a crash in between skips a run, and none
			// is run twice.
			if err := r.state.SaveJSON(schedulesName, last); err != nil {
				level.Error(r.logger).Log("msg", "a scheduled scrub is not started: it could not be noted", "schedule", s.Name, "pool", m.UUID, "err", err)
				return
			}
			o := s.Options
			if s.Within > 0 {
				o.Deadline = now.Add(s.Within)
			}
			if _, err := r.Start(m.UUID, o, "schedule "+s.Name); err != nil {
				level.Warn(r.logger).Log("msg", "a scheduled scrub was not started", "schedule", s.Name, "pool", m.UUID, "err", err)
			}
		}
	}
	if changed {
		if err := r.state.SaveJSON(schedulesName, last); err != nil {
			level.Error(r.logger).Log("msg", "when schedules ran could not be noted", "err", err)
		}
	}
}

const schedulesName = "scrub-schedules.json"

// lastRuns are when each schedule ran last, by its name and the pool.
type lastRuns map[string]time.Time

// scheduled reports whether a schedule is for a pool.
func (r *Runner) scheduled(s *Schedule, m *btrfs.Mount, excludes func(btrfs.UUID, string) bool) bool {
	label := r.client.Label(m.UUID)
	if excludes != nil && excludes(m.UUID, label) {
		return false
	}
	return len(s.Pools) == 0 || slices.ContainsFunc(s.Pools, func(name string) bool {
		return name == label || strings.EqualFold(name, m.UUID.String())
	})
}
