package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-kit/log/level"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/snapshot/retention"
)

// maxQueue is how many jobs may wait for a pool.
const maxQueue = 16

// pool is a pool and its worker, which alone changes the ledger.
type pool struct {
	runner *Runner
	uuid   btrfs.UUID
	queue  chan *task
	wake   chan struct{} // gets a value when it is time to look at the clock
	todo   atomic.Int32  // how many of both the worker has not done
	// Each has a value while a question is being answered: asked one of a request,
	// and receives one of another pool's worker, which must not wait for ours.
	asked, receives chan struct{}

	ledger     *ledger
	configured []string       // the subvolumes that the configuration names
	names      map[string]int // the suffix of the last name of this second, by subvolume
	second     time.Time      // of the names
	nextTend   time.Time      // zero: at once
	unreadable bool           // a warning was given

	sizing sync.Mutex // held while sizes are being found

	mu   sync.Mutex
	view view
}

// task is a job in the queue.
type task struct {
	id string
	do func(ctx context.Context, p *pool) (Result, error)
	// then, if it is set, is done after a job that succeeded, for which nobody
	// waits any more.
	then func(ctx context.Context, p *pool)
	// look, where there is no job, answers a question.
	look func(ctx context.Context)
}

// put queues a task, if there is room.
func (p *pool) put(t *task) bool {
	p.todo.Add(1)
	select {
	case p.queue <- t:
		return true
	default:
		p.todo.Add(-1)
		return false
	}
}

func (p *pool) full() error {
	return fmt.Errorf("pool %s: %d jobs wait for it: %w", p.uuid, cap(p.queue), ErrBusy)
}

// view is what others may see of a pool.
type view struct {
	records                   []record
	subvolumes                map[string]subvolumeView
	looked                    time.Time // when the pool could be looked at last
	open                      bool      // a job has begun and not ended
	success                   time.Time
	created, pruned, failures map[string]uint64 // by subvolume, since the start
	cleaning                  btrfs.Opt[int]
}

func (p *pool) seen() view {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view
}

// publish shows others what the ledger says. Nobody changes a slice or a map of
// a view.
func (p *pool) publish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := slices.Concat(p.configured, slices.Collect(maps.Keys(p.view.failures)))
	p.view.records, p.view.subvolumes, p.view.success = p.ledger.share(), p.ledger.summarize(known...), p.ledger.success
	p.view.open = len(p.ledger.intents) > 0
}

// count adds to a counter of a subvolume.
func (p *pool) count(which func(*view) *map[string]uint64, subvolume string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := which(&p.view)
	next := make(map[string]uint64, len(*m)+1)
	for k, v := range *m {
		next[k] = v
	}
	next[subvolume] += uint64(n)
	*m = next
}

func createdOf(v *view) *map[string]uint64  { return &v.created }
func prunedOf(v *view) *map[string]uint64   { return &v.pruned }
func failuresOf(v *view) *map[string]uint64 { return &v.failures }

// work carries out jobs until ctx is done.
func (p *pool) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case t := <-p.queue:
			if t.look != nil {
				t.look(ctx)
			} else {
				p.carryOut(ctx, t)
			}
		case <-p.wake:
			p.tend(ctx)
		}
		p.todo.Add(-1)
	}
}

func (p *pool) carryOut(ctx context.Context, t *task) {
	p.runner.jobs.Begin(t.id)
	result, err := t.do(ctx, p)
	if err != nil {
		level.Error(p.runner.logger).Log("msg", "a job on snapshots failed", "pool", p.uuid, "job", t.id, "err", err)
	} else {
		level.Info(p.runner.logger).Log("msg", result.sentence(), "pool", p.uuid, "job", t.id)
	}
	p.runner.end(t.id, result, err)
	if syncErr := p.ledger.sync(); syncErr != nil {
		level.Error(p.runner.logger).Log("msg", "what a job on snapshots did could not be noted on the disk", "pool", p.uuid, "job", t.id, "err", syncErr)
	}
	if err == nil && t.then != nil {
		t.then(ctx, p)
	}
}

// createTask returns the task of a job that takes snapshots. found is as in
// Runner.open.
func createTask(id string, o CreateOptions, found *btrfs.Mount) *task {
	return &task{
		id:   id,
		do:   func(ctx context.Context, p *pool) (Result, error) { return p.create(ctx, id, o, found) },
		then: func(ctx context.Context, p *pool) { p.pruneAfter(ctx, id) },
	}
}

// tend takes the snapshots that are due, and looks now and then at what became of
// those that there are.
func (p *pool) tend(ctx context.Context) {
	now := p.runner.clock.Now()
	if p.due(now) {
		j, err := p.runner.jobs.Create(KindCreate, p.uuid, "schedule", CreateOptions{})
		if err != nil {
			level.Error(p.runner.logger).Log("msg", "scheduled snapshots are not taken: their job could not be noted", "pool", p.uuid, "err", err)
		} else {
			p.carryOut(ctx, createTask(j.ID, CreateOptions{schedule: true}, nil))
		}
	}
	if now.Before(p.nextTend) && p.nextTend.Sub(now) <= tendInterval {
		return
	}
	p.nextTend = now.Add(tendInterval)
	p.configured = nil
	if s, _, configured := p.runner.settingsOf(p.uuid); configured {
		p.configured = s.Subvolumes
	}
	err := p.look(ctx)
	p.publish()
	if err != nil && !p.unreadable {
		level.Warn(p.runner.logger).Log("msg", "the snapshots of a pool cannot be looked at", "pool", p.uuid, "err", err)
	}
	p.unreadable = err != nil
}

// due reports whether the clock asks for snapshots. That of a pool that is seen
// for the first time, or whose clock was ahead, begins to count now.
func (p *pool) due(now time.Time) bool {
	s, _, configured := p.runner.settingsOf(p.uuid)
	if !configured || s.Schedule == nil {
		return false
	}
	last := p.ledger.scheduled
	if last.IsZero() || last.After(now) {
		if err := p.ledger.note(entry{Scheduled: &now}); err != nil {
			level.Error(p.runner.logger).Log("msg", "scheduled snapshots are not taken: when they were last could not be noted", "pool", p.uuid, "err", err)
		}
		p.publish()
		return false
	}
	return s.Schedule.Due(last, now)
}

// look finds out what became of our snapshots.
func (p *pool) look(ctx context.Context) error {
	cleaning, err := p.lookAt(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.view.looked = time.Time{}
		return err
	}
	p.view.looked, p.view.cleaning = p.runner.clock.Now(), btrfs.Some(cleaning)
	return nil
}

func (p *pool) lookAt(ctx context.Context) (cleaning int, err error) {
	f, _, err := p.runner.openToRead(p.uuid)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	if len(p.ledger.records) > 0 || len(p.ledger.intents) > 0 {
		live, err := p.settle(ctx, f)
		if err == nil {
			err = p.findSent(ctx, live, lookInterval)
		}
		if err != nil {
			return 0, err
		}
	}
	ids, err := f.CleaningSubvolumes()
	return len(ids), err
}

// settle compares the ledger with the filesystem: it takes up the snapshots that
// a job made which was killed, and forgets those that others deleted. It
// returns all subvolumes that there are, by id.
func (p *pool) settle(ctx context.Context, f *btrfs.Filesystem) (map[uint64]btrfs.Subvolume, error) {
	live, moving, err := subvolumes(f)
	if err != nil {
		return nil, err
	}
	var notes []entry
	for i := range p.ledger.intents {
		in := &p.ledger.intents[i]
		made := adopt(in, live)
		for k := range made {
			notes = append(notes, entry{Made: &made[k]})
		}
		level.Warn(p.runner.logger).Log("msg", "a job was killed while it took snapshots", "pool", p.uuid, "job", in.JobID, "planned", len(in.Snapshots), "found", len(made))
		if in.Hooked {
			s, _, _ := p.runner.settingsOf(p.uuid)
			if err := s.Hooks.after(ctx, p.runner.logger, p.hookEnvironment(in.JobID, made)); err != nil {
				level.Error(p.runner.logger).Log("msg", "the hook after snapshots failed", "pool", p.uuid, "job", in.JobID, "err", err)
			}
		}
		notes = append(notes, entry{End: in.JobID})
		p.tellOfKilled(f, in, made)
	}
	var gone []uint64
	for i := range p.ledger.records {
		r := p.ledger.records[i]
		s, there := live[r.ID]
		switch {
		case !there && moving[r.ID]: // it is being renamed
		case !there, s.UUID != r.UUID: // another one got its id
			gone = append(gone, r.ID)
		case r.lookAgain(f, &s, p.runner):
			notes = append(notes, entry{Made: &r})
		}
	}
	if len(gone) > 0 {
		level.Info(p.runner.logger).Log("msg", "snapshots of ours are gone that others deleted, or we just before we were killed", "pool", p.uuid, "count", len(gone))
		notes = append(notes, entry{Gone: gone})
	}
	if len(notes) == 0 {
		return live, nil
	}
	err = p.ledger.note(notes...)
	p.publish()
	return live, err
}

// tellOfKilled says in a job that was killed what it had made.
func (p *pool) tellOfKilled(f *btrfs.Filesystem, in *intent, made []record) {
	var result Result
	for i := range made {
		r := &made[i]
		path := r.Name
		if dir, err := f.DirectoryPath(r.Parent, r.Directory); err == nil {
			path = filepath.Join(dir, r.Name)
		}
		result.Created = append(result.Created, Created{Subvolume: r.Subvolume, Name: r.Name, ID: r.ID, UUID: r.UUID, PoolPath: path})
	}
	text, err := json.Marshal(result)
	if err == nil {
		_, err = p.runner.jobs.Update(in.JobID, func(j *job.Job) {
			j.Result = text
			j.Reason = fmt.Sprintf("The daemon was killed meanwhile; of %d snapshots %d were taken", len(in.Snapshots), len(made))
		})
	}
	if err != nil && !errors.Is(err, job.ErrNotFound) {
		level.Error(p.runner.logger).Log("msg", "what became of a job that was killed could not be noted", "job", in.JobID, "err", err)
	}
}

// lookAgain notes whether a snapshot was written to, and reports whether it noted
// something.
func (r *record) lookAgain(f *btrfs.Filesystem, s *btrfs.Subvolume, runner *Runner) bool {
	if s.CTransID <= r.CTransID || r.Written {
		return false
	}
	written, err := f.WrittenSince(r.ID, r.CTransID+1, r.Created)
	if err != nil {
		// What cannot be told is not deleted, see refusal.
		level.Warn(runner.logger).Log("msg", "a snapshot has changed, and it cannot be told how: it stays", "snapshot", r.Name, "err", err)
		return false
	}
	// A clock that was set back hides what was written.
	if written || runner.clock.Now().Before(r.Created) {
		r.Written = true
	} else {
		r.CTransID = s.CTransID
	}
	return true
}

// subvolumes returns all that there are, by id. Of those that lie nowhere moving
// are the ones that nobody deleted: they are being renamed.
func subvolumes(f *btrfs.Filesystem) (live map[uint64]btrfs.Subvolume, moving map[uint64]bool, err error) {
	live, moving = make(map[uint64]btrfs.Subvolume), make(map[uint64]bool)
	err = f.WalkSubvolumes(func(s *btrfs.Subvolume) error {
		if s.Deleted {
			moving[s.ID] = true
		} else {
			live[s.ID] = *s
		}
		return nil
	})
	if err != nil || len(moving) == 0 {
		return live, moving, err
	}
	deleted, err := f.CleaningSubvolumes()
	for _, id := range deleted {
		delete(moving, id)
	}
	return live, moving, err
}

// adopt returns those snapshots of an intent that were made: what lies in their
// place, is a read-only snapshot of their subvolume, and was made since.
func adopt(in *intent, live map[uint64]btrfs.Subvolume) []record {
	var made []record
	for _, planned := range in.Snapshots {
		for _, s := range live {
			if s.Parent == planned.Parent && s.Directory == planned.Directory && s.Name == planned.Name &&
				s.ParentUUID == planned.SourceUUID && s.ReceivedUUID == planned.ReceivedUUID && s.ReadOnly && s.OTransID >= in.Generation {
				made = append(made, planned.madeAs(&s))
			}
		}
	}
	return made
}

// madeAs returns the record of a planned snapshot that was made.
func (r *record) madeAs(s *btrfs.Subvolume) record {
	made := *r
	made.ID, made.UUID, made.OTransID, made.CTransID, made.Created = s.ID, s.UUID, s.OTransID, s.OTransID, s.Created
	return made
}

// create takes snapshots.
func (p *pool) create(ctx context.Context, jobID string, o CreateOptions, found *btrfs.Mount) (result Result, err error) {
	defer p.publish()
	now := p.runner.clock.Now()
	if o.schedule {
		// Noted before it begins: a crash in between skips a run.
		if err := p.ledger.note(entry{Scheduled: &now}); err != nil {
			return result, fmt.Errorf("pool %s: %w", p.uuid, err)
		}
	}
	sources, err := p.runner.sources(p.uuid, o)
	if err != nil {
		return result, err
	}
	settings, location, configured := p.runner.settingsOf(p.uuid)
	// A subvolume that somebody mistyped must not get a series for good.
	counts := func(subvolume string) bool {
		return configured && slices.Contains(settings.Subvolumes, subvolume) || len(tailOf(p.ledger.records, subvolume)) > 0
	}
	fail := func(err error, subvolumes ...string) {
		for _, s := range subvolumes {
			if slices.ContainsFunc(result.Failed, func(f Failure) bool { return f.Subvolume == s }) {
				continue
			}
			result.Failed = append(result.Failed, Failure{s, err.Error()})
			if counts(s) {
				p.count(failuresOf, s, 1)
			}
		}
	}
	failAll := func(err error) (Result, error) {
		fail(err, sources...)
		return result, fmt.Errorf("pool %s: %w", p.uuid, err)
	}
	f, m, err := p.runner.open(p.uuid, found)
	if err != nil {
		return failAll(err)
	}
	defer f.Close() //nolint:errcheck // every change was committed
	if len(p.ledger.intents) > 0 {
		if _, err := p.settle(ctx, f); err != nil {
			return failAll(err)
		}
	}
	dir, err := f.MakeDirectory(settings.Directory)
	if err != nil {
		return failAll(directoryError(settings.Directory, err))
	}
	defer dir.Close()

	c := creation{pool: p, f: f, dir: dir, directory: settings.Directory, now: now, location: location}
	defer c.close()
	for _, subvolume := range sources {
		if err := c.plan(subvolume, o.Pin, jobID); err != nil {
			fail(err, subvolume)
		}
	}
	if len(c.planned) == 0 {
		return result, fmt.Errorf("pool %s: %s: %s", p.uuid, nameSubvolume(sources[0]), result.Failed[0].Error)
	}
	in := intent{JobID: jobID, Generation: f.Generation(), Hooked: settings.Hooks.any(), Snapshots: c.records()}
	if err := p.ledger.note(entry{Begin: &in}); err != nil {
		return failAll(err)
	}
	hookErr := settings.Hooks.before(ctx, p.runner.logger, p.hookEnvironment(jobID, nil))
	var notes []entry
	if hookErr == nil {
		c.makeAll(ctx, &in, fail)
		if notes, err = c.account(&in); err != nil {
			return result, fmt.Errorf("pool %s: %w", p.uuid, err) // settle finds out later
		}
	} else {
		fail(hookErr, sources...)
	}
	if settings.Hooks.any() {
		// What was made is noted before a command that may take long.
		if err := p.ledger.note(notes...); err != nil {
			return result, fmt.Errorf("pool %s: %w", p.uuid, err)
		}
		notes = nil
		hookErr = errors.Join(hookErr, settings.Hooks.after(ctx, p.runner.logger, p.hookEnvironment(jobID, c.made)))
	}
	notes = append(notes, entry{End: jobID})
	if hookErr == nil && len(result.Failed) == 0 {
		notes = append(notes, entry{Success: &now})
	}
	// The snapshots are on the disk, and what was planned is: should the machine
	// crash before this is, they are found by that. Nobody has to wait for it.
	if err := p.ledger.write(notes...); err != nil {
		return result, fmt.Errorf("pool %s: %w", p.uuid, err)
	}
	for i := range c.made {
		result.Created = append(result.Created, c.describe(&c.made[i], m))
		p.count(createdOf, c.made[i].Subvolume, 1)
	}
	if hookErr != nil {
		return result, fmt.Errorf("pool %s: %w", p.uuid, hookErr)
	}
	if len(result.Failed) > 0 {
		first := result.Failed[0]
		return result, fmt.Errorf("pool %s: no snapshot of %d of %d subvolumes, so that nothing is pruned: %s: %s", p.uuid, len(result.Failed), len(sources), nameSubvolume(first.Subvolume), first.Error)
	}
	return result, nil
}

// pruneAfter queues a prune if there is something for it to do. It is a job of
// its own: who waits for a snapshot does not wait for it.
func (p *pool) pruneAfter(ctx context.Context, jobID string) {
	if p.runner.prunable(p.uuid) != nil || ctx.Err() != nil {
		return
	}
	s, location, _ := p.runner.settingsOf(p.uuid)
	doomed := slices.ContainsFunc(decide(s.Retention, p.ledger.records, location), func(d retention.Decision) bool { return !d.Keep })
	if !doomed && s.MinFree == 0 {
		return
	}
	if _, err := p.runner.Prune(p.uuid, "after "+jobID); err != nil {
		level.Warn(p.runner.logger).Log("msg", "snapshots are not pruned", "pool", p.uuid, "err", err)
	}
}

func nameSubvolume(path string) string { return "/" + path }

func directoryError(directory string, err error) error {
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return fmt.Errorf("the directory for snapshots /%s is none, but a file or a symbolic link: move it away, or name another one (directory): %w", directory, err)
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("the directory for snapshots /%s is on another filesystem that is mounted there: name another one (directory): %w", directory, err)
	}
	return err
}

// creation is the making of the snapshots of one job.
type creation struct {
	pool      *pool
	f         *btrfs.Filesystem
	dir       *btrfs.Directory
	directory string // its path
	now       time.Time
	location  *time.Location
	planned   []plannedSnapshot
	made      []record
}

type plannedSnapshot struct {
	record record // as far as it is known before
	source *btrfs.Directory
	id     uint64 // of the source
}

func (c *creation) close() {
	for i := range c.planned {
		c.planned[i].source.Close()
	}
}

func (c *creation) records() []record {
	records := make([]record, len(c.planned))
	for i := range c.planned {
		records[i] = c.planned[i].record
	}
	return records
}

// plan opens a subvolume and decides on a name.
func (c *creation) plan(subvolume string, pin bool, jobID string) error {
	source, err := c.f.OpenDirectory(subvolume)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("there is no such subvolume; `btrfs subvolume list` shows those that there are: %w", err)
	}
	if err != nil {
		return err
	}
	s, err := source.Subvolume()
	if err != nil {
		source.Close()
		return err
	}
	r := record{Subvolume: subvolume, SourceUUID: s.UUID, ReceivedUUID: s.ReceivedUUID, Pinned: pin, JobID: jobID}
	place, err := c.dir.Place()
	r.Parent, r.Directory = place.Subvolume, place.Inode
	if err == nil {
		r.Name, err = c.freeName(subvolume)
	}
	if err != nil {
		source.Close()
		return err
	}
	r.Boot, r.Uptime = c.pool.runner.clock.Uptime()
	r.take(c.pool.ledger.records, c.now, func(last *record) *time.Duration {
		if last.Boot == "" || last.Boot != r.Boot {
			return nil
		}
		since := r.Uptime - last.Uptime
		return &since
	}, c.location)
	c.planned = append(c.planned, plannedSnapshot{r, source, s.ID})
	return nil
}

// maxSuffix bounds how many snapshots of one second there are.
const maxSuffix = 1000

// freeName returns a name that nothing has, nor had in this second: who was told of
// a snapshot must not find another one under its name.
func (c *creation) freeName(subvolume string) (string, error) {
	p := c.pool
	if second := c.now.Truncate(time.Second); !second.Equal(p.second) {
		p.second, p.names = second, make(map[string]int)
	}
	for n := p.names[subvolume] + 1; n <= maxSuffix; n++ {
		name := nameOf(subvolume, c.now, n)
		if slices.ContainsFunc(c.planned, func(p plannedSnapshot) bool { return p.record.Name == name }) {
			continue
		}
		taken, err := c.dir.Has(name)
		if err != nil {
			return "", err
		}
		if !taken {
			p.names[subvolume] = n
			return name, nil
		}
	}
	return "", fmt.Errorf("/%s/%s and %d more names are taken: %w", c.directory, nameOf(subvolume, c.now, 1), maxSuffix-1, unix.EEXIST)
}

// makeAll takes the planned snapshots.
func (c *creation) makeAll(ctx context.Context, in *intent, fail func(error, ...string)) {
	for i := range c.planned {
		subvolume := c.planned[i].record.Subvolume
		if ctx.Err() != nil {
			fail(errors.New("the daemon stops"), subvolume)
			continue
		}
		r, err := c.make(i, in)
		if err != nil {
			fail(err, subvolume)
			continue
		}
		c.made = append(c.made, r)
	}
}

// account returns the entries of what was made, also of what was made though it
// failed: what was there could not be looked at, or somebody moved it.
func (c *creation) account(in *intent) ([]entry, error) {
	if len(c.made) < len(c.planned) {
		live, _, err := subvolumes(c.f)
		if err != nil {
			return nil, err
		}
		c.made = adopt(in, live)
	}
	notes := make([]entry, len(c.made))
	for i := range c.made {
		notes[i] = entry{Made: &c.made[i]}
	}
	return notes, nil
}

// make takes the ith snapshot.
func (c *creation) make(i int, in *intent) (record, error) {
	planned := &c.planned[i]
	for {
		err := c.dir.CreateSnapshot(planned.source, planned.record.Name)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EEXIST) {
			return record{}, createError(err)
		}
		// Somebody was quicker. What is about to be made is noted anew.
		name, err := c.freeName(planned.record.Subvolume)
		if err != nil {
			return record{}, err
		}
		planned.record.Name = name
		in.Snapshots = c.records()
		if err := c.pool.ledger.note(entry{Begin: in}); err != nil {
			return record{}, err
		}
	}
	made, err := c.dir.Open(planned.record.Name)
	if err != nil {
		return record{}, err
	}
	defer made.Close()
	s, err := made.Subvolume()
	if err != nil {
		return record{}, err
	}
	if s.ParentUUID != planned.record.SourceUUID || !s.ReadOnly {
		return record{}, fmt.Errorf("/%s/%s is not the snapshot that was just made: somebody replaced it", c.directory, planned.record.Name)
	}
	return planned.record.madeAs(&s), nil
}

func createError(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%w: metadata has no room left; delete snapshots or files, or balance (see btrfs_pool_metadata_free_bytes)", err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: the filesystem is read-only; see the kernel log, it may have become so after an error", err)
	}
	return err
}

// describe says what was made, and where it can be read.
func (c *creation) describe(r *record, m *btrfs.Mount) Created {
	path := filepath.Join(c.directory, r.Name)
	out := Created{Subvolume: r.Subvolume, Name: r.Name, ID: r.ID, UUID: r.UUID, PoolPath: path, Path: visiblePath(m, path)}
	i := slices.IndexFunc(c.planned, func(p plannedSnapshot) bool { return p.record.Name == r.Name })
	if i < 0 {
		return out
	}
	nested, err := c.f.Nested(c.planned[i].id, btrfs.Place{Subvolume: r.Parent, Inode: r.Directory})
	if err != nil {
		level.Warn(c.pool.runner.logger).Log("msg", "could not find the subvolumes within a subvolume", "pool", c.pool.uuid, "subvolume", nameSubvolume(r.Subvolume), "err", err)
	}
	out.Nested = nested
	return out
}

// visiblePath returns where a path from the top of a pool can be seen; "" if no
// mount shows it.
func visiblePath(m *btrfs.Mount, path string) string {
	for _, p := range m.Points {
		root := strings.Trim(p.Root, "/")
		if root == "" {
			return filepath.Join(p.Path, path)
		}
		if rest, ok := strings.CutPrefix(path, root+"/"); ok {
			return filepath.Join(p.Path, rest)
		}
	}
	return ""
}
