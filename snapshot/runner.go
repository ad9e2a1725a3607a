package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// Config is what a Runner needs.
type Config struct {
	Logger log.Logger
	Client *btrfs.Client
	// State is where it is kept which snapshots are ours; nil keeps it in memory
	// only.
	State *state.Dir
	Jobs  *job.Store
	// Free returns how many bytes can still be written to a pool; nil: nobody
	// knows, and nothing is pruned for want of space.
	Free func(pool btrfs.UUID) (uint64, error)
	// Clock is nil for that of the machine.
	Clock Clock
}

// Settings are what the configuration says.
type Settings struct {
	Pools []PoolSettings
	// Location is the zone of days and hours; nil is that of the machine.
	Location *time.Location
	// Excludes leaves out pools; nil leaves out none.
	Excludes func(uuid btrfs.UUID, label string) bool
}

// Runner takes and prunes snapshots, one job at a time on each pool. Its
// methods may be called from any goroutine.
type Runner struct {
	logger log.Logger
	client *btrfs.Client
	state  *state.Dir
	jobs   *job.Store
	free   func(btrfs.UUID) (uint64, error)
	clock  Clock
	mounts *btrfs.MountTable

	mu       sync.Mutex
	settings Settings
	pools    map[btrfs.UUID]*pool
	ctx      context.Context // set while Run runs
	workers  sync.WaitGroup
	received map[btrfs.UUID]*receivedIndex
	changed  chan struct{} // closed and replaced when a job ends
}

// New returns a Runner that knows the snapshots of the state directory. What is
// damaged there is set aside with a warning.
func New(c Config) (*Runner, error) {
	r := &Runner{
		logger: c.Logger, client: c.Client, state: c.State, jobs: c.Jobs, free: c.Free, clock: c.Clock,
		mounts: btrfs.NewMountTable(c.Client.Mounts), pools: make(map[btrfs.UUID]*pool), received: make(map[btrfs.UUID]*receivedIndex), changed: make(chan struct{}),
	}
	if r.clock == nil {
		r.clock = machineClock{}
	}
	if r.state == nil {
		return r, nil
	}
	names, err := r.state.Names("snapshots-*.jsonl")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		uuid, err := btrfs.ParseUUID(strings.TrimSuffix(strings.TrimPrefix(name, "snapshots-"), ".jsonl"))
		if err != nil {
			continue
		}
		if _, err := r.pool(uuid); err != nil {
			return nil, err
		}
	}
	return r, r.endLostJobs()
}

// endLostJobs ends the jobs of a process that is gone. What one that took
// snapshots left is looked for as soon as its pool is there, see settle.
func (r *Runner) endLostJobs() error {
	for _, j := range r.jobs.List() {
		if j.State.Ended() || j.Kind != KindCreate && j.Kind != KindDelete && j.Kind != KindPrune {
			continue
		}
		_, err := r.jobs.Update(j.ID, func(j *job.Job) {
			j.State, j.Reason = job.Failed, "The daemon was stopped before it was done"
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pool returns what is kept of a pool, which is made if it is not there.
func (r *Runner) pool(uuid btrfs.UUID) (*pool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.pools[uuid]; p != nil {
		return p, nil
	}
	l, err := openLedger(r.state, uuid, func(err error) {
		level.Warn(r.logger).Log("msg", "the ledger of snapshots could not be compacted", "pool", uuid, "err", err)
	})
	if errors.Is(err, state.ErrDamaged) {
		level.Warn(r.logger).Log("msg", "some snapshots are no longer known to be ours, and are never pruned: delete them by hand", "pool", uuid, "err", err)
	} else if err != nil {
		return nil, fmt.Errorf("pool %s: %w", uuid, err)
	}
	p := &pool{runner: r, uuid: uuid, ledger: l, queue: make(chan *task, maxQueue), wake: make(chan struct{}, 1), asked: make(chan struct{}, 1), receives: make(chan struct{}, 1)}
	p.publish()
	r.pools[uuid] = p
	if r.ctx != nil {
		r.launch(p)
	}
	return p, nil
}

// launch starts the worker of a pool. r.mu is held, and Run runs.
func (r *Runner) launch(p *pool) {
	ctx := r.ctx
	r.workers.Go(func() { p.work(ctx) })
}

// SetSettings changes the settings.
func (r *Runner) SetSettings(s Settings) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settings = s
}

// settingsOf returns what the configuration says about a pool; ok is false
// where it says nothing.
func (r *Runner) settingsOf(uuid btrfs.UUID) (s PoolSettings, location *time.Location, ok bool) {
	label, excluded := r.client.Label(uuid), r.excluded(uuid)
	r.mu.Lock()
	defer r.mu.Unlock()
	location = r.settings.Location
	if location == nil {
		location = time.Local
	}
	for _, s := range r.settings.Pools {
		if s.Pool == label || strings.EqualFold(s.Pool, uuid.String()) {
			return s, location, !excluded
		}
	}
	return PoolSettings{Directory: DefaultDirectory}, location, false
}

// excluded reports whether the configuration leaves a pool out.
func (r *Runner) excluded(uuid btrfs.UUID) bool {
	r.mu.Lock()
	excludes := r.settings.Excludes
	r.mu.Unlock()
	return excludes != nil && excludes(uuid, r.client.Label(uuid))
}

// Timing of the runner.
const (
	// lookInterval is how often it looks at the clock.
	lookInterval = 10 * time.Second
	// tendInterval is how often a pool is looked at where nothing happens.
	tendInterval = time.Minute
	// stopWait is how long the end of Run waits for jobs: on a disk that hangs
	// they do not end.
	stopWait = 5 * time.Second
)

// Run takes snapshots by the clock, and carries out what is asked for, until
// ctx is done.
func (r *Runner) Run(ctx context.Context) error {
	r.mu.Lock()
	r.ctx = ctx
	for _, p := range r.pools {
		r.launch(p)
	}
	r.mu.Unlock()
	for ctx.Err() == nil {
		r.look()
		select {
		case <-ctx.Done():
		case <-r.clock.After(lookInterval):
		}
	}
	ended := make(chan struct{})
	go func() {
		r.workers.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(stopWait):
		level.Warn(r.logger).Log("msg", "a job on snapshots does not stop, for its disk does not answer; what it made is found at the next start")
	}
	return nil
}

// look wakes the workers of all pools that are mounted.
func (r *Runner) look() {
	mounts, err := r.mounts.List(tablePatience)
	if err != nil {
		level.Warn(r.logger).Log("msg", "could not find all pools to take snapshots of", "err", err)
	}
	for i := range mounts {
		if mounts[i].UUID.IsZero() || len(mounts[i].Points) == 0 || r.excluded(mounts[i].UUID) {
			continue
		}
		p, err := r.pool(mounts[i].UUID)
		if err != nil {
			level.Warn(r.logger).Log("msg", "a pool takes no snapshots", "pool", mounts[i].UUID, "err", err)
			continue
		}
		p.todo.Add(1)
		select {
		case p.wake <- struct{}{}:
		default:
			p.todo.Add(-1)
		}
	}
}

// open opens the top of a pool for changes, by a mount that was found just now,
// or nil. What it opens is that pool, however old that is: its UUID is read from
// the open mount.
func (r *Runner) open(uuid btrfs.UUID, found *btrfs.Mount) (*btrfs.Filesystem, *btrfs.Mount, error) {
	if found != nil {
		if f, err := r.client.OpenTop(found); err == nil {
			return f, found, nil
		}
	}
	m, err := r.findMount(uuid)
	if err != nil {
		return nil, nil, err
	}
	f, err := r.client.OpenTop(m)
	return f, m, err
}

// openToRead opens a pool anywhere.
func (r *Runner) openToRead(uuid btrfs.UUID) (*btrfs.Filesystem, *btrfs.Mount, error) {
	m, err := r.findMount(uuid)
	if err != nil {
		return nil, nil, err
	}
	f, _, err := r.client.Open(m)
	return f, m, err
}

// Create asks for snapshots. It is a job.
func (r *Runner) Create(uuid btrfs.UUID, o CreateOptions, requester string) (job.Job, error) {
	// First: of a pool that is not mounted the label is not known, and so not what
	// the configuration says of it.
	m, err := r.findMount(uuid)
	if err != nil {
		return job.Job{}, err
	}
	if _, err := r.sources(uuid, o); err != nil {
		return job.Job{}, err
	}
	return r.start(uuid, KindCreate, requester, o, func(id string) *task { return createTask(id, o, m) })
}

// sources returns the subvolumes to take snapshots of.
func (r *Runner) sources(uuid btrfs.UUID, o CreateOptions) ([]string, error) {
	s, _, configured := r.settingsOf(uuid)
	if o.Subvolume != nil {
		path, err := CleanPath(*o.Subvolume)
		return []string{path}, err
	}
	if !configured || len(s.Subvolumes) == 0 {
		return nil, fmt.Errorf("the configuration names no subvolumes of pool %s: name one (subvolume), or list them under snapshots.pools: %w", uuid, ErrInvalid)
	}
	return s.Subvolumes, nil
}

// Delete asks for the deletion of one snapshot of ours. It is a job.
func (r *Runner) Delete(uuid btrfs.UUID, name, requester string) (job.Job, error) {
	if _, err := r.findOurs(uuid, name); err != nil {
		return job.Job{}, err
	}
	if _, err := r.findMount(uuid); err != nil {
		return job.Job{}, err
	}
	request := map[string]string{"name": name}
	return r.start(uuid, KindDelete, requester, request, func(id string) *task {
		return &task{id: id, do: func(ctx context.Context, p *pool) (Result, error) { return p.deleteByName(ctx, name) }}
	})
}

// findOurs returns the record of a snapshot of ours by its name.
func (r *Runner) findOurs(uuid btrfs.UUID, name string) (record, error) {
	r.mu.Lock()
	p := r.pools[uuid]
	r.mu.Unlock()
	if p != nil {
		for _, c := range p.seen().records {
			if c.Name == name {
				return c, nil
			}
		}
	}
	return record{}, fmt.Errorf("pool %s: snapshot %q: %w (others' are for `btrfs subvolume delete`)", uuid, name, ErrUnknown)
}

// Prune asks for the deletion of what no rule keeps. It is a job.
func (r *Runner) Prune(uuid btrfs.UUID, requester string) (job.Job, error) {
	if _, err := r.findMount(uuid); err != nil {
		return job.Job{}, err
	}
	if err := r.prunable(uuid); err != nil {
		return job.Job{}, err
	}
	return r.start(uuid, KindPrune, requester, struct{}{}, func(id string) *task {
		return &task{id: id, do: func(ctx context.Context, p *pool) (Result, error) { return p.prune(ctx) }}
	})
}

func (r *Runner) prunable(uuid btrfs.UUID) error {
	s, _, configured := r.settingsOf(uuid)
	if !configured || s.Retention.KeepsAll() && s.MinFree == 0 {
		return fmt.Errorf("the configuration has no retention for pool %s, so that nothing may be pruned: set it under snapshots.pools: %w", uuid, ErrInvalid)
	}
	return nil
}

// start queues a job on a pool that is mounted.
func (r *Runner) start(uuid btrfs.UUID, kind, requester string, request any, newTask func(id string) *task) (job.Job, error) {
	p, err := r.running(uuid)
	if err != nil {
		return job.Job{}, err
	}
	if len(p.queue) == cap(p.queue) { // before there is a job that can only fail
		return job.Job{}, p.full()
	}
	j, err := r.jobs.Add(kind, uuid, requester, request)
	if err != nil {
		return j, err
	}
	if !p.put(newTask(j.ID)) {
		err = p.full()
		_, updateErr := r.jobs.Update(j.ID, func(j *job.Job) { j.State, j.Reason = job.Failed, err.Error() })
		return j, errors.Join(err, updateErr)
	}
	// The job begins meanwhile: what it makes it notes by itself before.
	if err := r.jobs.Sync(); err != nil {
		level.Error(r.logger).Log("msg", "a job could not be noted on the disk", "pool", uuid, "job", j.ID, "err", err)
	}
	return j, nil
}

// running returns what is kept of a pool, whose worker runs.
func (r *Runner) running(uuid btrfs.UUID) (*pool, error) {
	p, err := r.pool(uuid)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx == nil || r.ctx.Err() != nil {
		return nil, fmt.Errorf("pool %s: the daemon is starting or stopping: %w", uuid, ErrRefused)
	}
	return p, nil
}

// mounted is running for a pool that is mounted.
func (r *Runner) mounted(uuid btrfs.UUID) (*pool, error) {
	if _, err := r.findMount(uuid); err != nil {
		return nil, err
	}
	return r.running(uuid)
}

// Wait waits until a job of the runner has ended, and returns it; or until ctx
// is done.
func (r *Runner) Wait(ctx context.Context, id string) (job.Job, error) {
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		j, err := r.jobs.Get(id)
		if err != nil || j.State.Ended() {
			return j, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return j, ctx.Err()
		}
	}
}

// end ends a job.
func (r *Runner) end(id string, result Result, err error) {
	sentence := result.sentence()
	result.trim()
	text, marshalErr := json.Marshal(result)
	_, changeErr := r.jobs.Change(id, func(j *job.Job) {
		j.State, j.Reason, j.Result = job.Succeeded, sentence, text
		if err != nil {
			j.State, j.Reason = job.Failed, err.Error()
		}
	})
	r.mu.Lock()
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
	// What was done is done: nobody waits for its history to be on the disk.
	if saveErr := errors.Join(marshalErr, changeErr, r.jobs.Sync()); saveErr != nil {
		level.Error(r.logger).Log("msg", "the end of a job could not be noted", "job", id, "err", saveErr)
	}
}

// sentence says what was done.
func (r *Result) sentence() string {
	var parts []string
	count := func(n int, what string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, what))
		}
	}
	count(len(r.Created), "created")
	count(len(r.Failed), "failed")
	count(len(r.Deleted), "deleted")
	count(len(r.Kept), "left alone that were to be deleted")
	if len(parts) == 0 {
		parts = []string{"nothing to do"}
	}
	return "Snapshots: " + strings.Join(parts, ", ")
}

// openPatience is how long a pool may take to answer a question.
const openPatience = 10 * time.Second

// ask asks a pool what may hang with a disk, and gives up on it. Of all who ask
// one slot one is answered after the other: a disk that hangs costs one thread.
func ask[T any](ctx context.Context, p *pool, slot chan struct{}, do func() (T, error)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeoutCause(ctx, openPatience, fmt.Errorf("pool %s: %w", p.uuid, btrfs.ErrNoAnswer))
	defer cancel()
	select {
	case slot <- struct{}{}:
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		defer func() { <-slot }()
		v, err := do()
		answers <- answer{v, err}
	}()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

// askWorker has the worker of a pool answer, which alone may look into the
// ledger.
func askWorker[T any](ctx context.Context, p *pool, do func(ctx context.Context) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	return ask(ctx, p, p.asked, func() (T, error) {
		var none T
		answers := make(chan answer, 1)
		put := p.put(&task{look: func(ctx context.Context) {
			v, err := do(ctx)
			answers <- answer{v, err}
		}})
		if !put {
			return none, p.full()
		}
		// The worker is that of a runner that runs; when it stops it answers nobody.
		select {
		case a := <-answers:
			return a.value, a.err
		case <-p.runner.stopped():
			return none, fmt.Errorf("pool %s: the daemon is stopping: %w", p.uuid, ErrRefused)
		}
	})
}

// stopped is closed when the runner stops.
func (r *Runner) stopped() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ctx.Done()
}

// tablePatience is how long a reading of the mount table is waited for.
const tablePatience = 5 * time.Second

// findMount returns the mount of a pool.
func (r *Runner) findMount(uuid btrfs.UUID) (*btrfs.Mount, error) {
	m, err := r.mounts.Find(uuid, tablePatience)
	switch {
	case err != nil:
		return nil, fmt.Errorf("pool %s: %w", uuid, err)
	case m == nil:
		return nil, fmt.Errorf("pool %s: %w", uuid, ErrUnknownPool)
	}
	return m, nil
}

// allPools returns what is kept of all pools, in no order.
func (r *Runner) allPools() []*pool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.pools))
}
