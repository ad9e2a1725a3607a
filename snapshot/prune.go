package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/go-kit/log/level"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/snapshot/retention"
)

// decide returns what the retention says of each record.
func decide(policy retention.Policy, records []record, location *time.Location) []retention.Decision {
	decisions := make([]retention.Decision, len(records))
	bySubvolume := make(map[string][]int)
	for i := range records {
		bySubvolume[records[i].Subvolume] = append(bySubvolume[records[i].Subvolume], i)
	}
	for _, indices := range bySubvolume {
		some := make([]retention.Snapshot, len(indices))
		for k, i := range indices {
			some[k] = records[i].retention()
		}
		for k, d := range retention.Apply(policy, some, location) {
			decisions[indices[k]] = d
		}
	}
	return decisions
}

// facts are what is looked at before a snapshot is deleted.
type facts struct {
	live  map[uint64]btrfs.Subvolume
	mount *btrfs.Mount
	// parents are the ids of those that the next incremental backup needs, with
	// the pool that holds the copy.
	parents map[uint64]string
	// paths are those of directories, from the top of the pool, by subvolume
	// and inode.
	paths map[[2]uint64]string
}

// refusal says why a snapshot of ours must not be deleted, or nothing. s is what
// the filesystem says of it.
func (r *record) refusal(s *btrfs.Subvolume, f *facts) string {
	switch {
	case s.UUID != r.UUID || s.OTransID != r.OTransID || !s.Created.Equal(r.Created):
		return "it is another subvolume than the one that was made"
	case !s.ReadOnly:
		return "it was made writable"
	case r.Written:
		return "it was written to"
	case s.CTransID > r.CTransID: // since settle looked, or what that could not read
		return "it has changed just now, and it cannot be told how: a later prune looks again"
	case s.ReceivedUUID != r.ReceivedUUID:
		return "it was received"
	case s.Name != r.Name:
		return fmt.Sprintf("it was renamed to %q", s.Name)
	case s.Parent != r.Parent || s.Directory != r.Directory:
		return "it was moved to another directory"
	}
	if pool, is := f.parents[r.ID]; is {
		return fmt.Sprintf("it is the newest that pool %s received: the next incremental backup needs it as its parent", pool)
	}
	if dir, ok := f.paths[[2]uint64{s.Parent, s.Directory}]; ok {
		path := "/" + strings.TrimPrefix(dir+"/"+s.Name, "/")
		for _, p := range f.mount.Points {
			if p.Root == path || strings.HasPrefix(p.Root, path+"/") {
				return "it is mounted at " + p.Path
			}
		}
	}
	return ""
}

// lookBefore gathers what has to be known before anything is deleted.
func (p *pool) lookBefore(ctx context.Context, f *btrfs.Filesystem, m *btrfs.Mount) (*facts, error) {
	live, err := p.settle(ctx, f)
	if err != nil {
		return nil, err
	}
	all := &facts{live: live, mount: m, paths: make(map[[2]uint64]string)}
	if err := p.findSent(ctx, live, 0); err != nil {
		return nil, err
	}
	all.parents = parentsOf(p.ledger.records)
	for i := range p.ledger.records {
		s := live[p.ledger.records[i].ID]
		key := [2]uint64{s.Parent, s.Directory}
		if _, known := all.paths[key]; known || s.ID == 0 {
			continue
		}
		path, err := f.DirectoryPath(s.Parent, s.Directory)
		if errors.Is(err, unix.ENOENT) {
			continue // it was just moved or deleted
		}
		if err != nil {
			return nil, err
		}
		all.paths[key] = path
	}
	return all, nil
}

// parentsOf returns the newest snapshot of each subvolume that each pool has a
// received copy of: the next incremental backup builds on it. Older ones were
// parents before.
func parentsOf(records []record) map[uint64]string {
	type backup struct{ subvolume, pool string }
	newest := make(map[backup]uint64)
	for i := range records { // the oldest first
		for _, pool := range records[i].Sent {
			newest[backup{records[i].Subvolume, pool}] = records[i].ID
		}
	}
	parents := make(map[uint64]string, len(newest))
	for b, id := range newest {
		parents[id] = b.pool
	}
	return parents
}

// findSent notes which of our snapshots have a received copy on a pool that is
// mounted now, this one too. A pool that is not there, or does not answer, is
// known by what was seen of it before. What was read of another pool may be as
// old as maxAge.
func (p *pool) findSent(ctx context.Context, live map[uint64]btrfs.Subvolume, maxAge time.Duration) error {
	if len(p.ledger.records) == 0 {
		return nil
	}
	ours := make(map[btrfs.UUID]int, len(p.ledger.records))
	for i := range p.ledger.records {
		ours[p.ledger.records[i].UUID] = i
	}
	changed := make(map[int]record)
	see := func(pool btrfs.UUID, received btrfs.UUID) {
		i, is := ours[received]
		if !is {
			return
		}
		r, already := changed[i]
		if !already {
			r = p.ledger.records[i]
		}
		if name := pool.String(); !slices.Contains(r.Sent, name) {
			r.Sent = append(slices.Clone(r.Sent), name)
			changed[i] = r
		}
	}
	for id := range live {
		see(p.uuid, live[id].ReceivedUUID)
	}
	mounts, err := p.runner.mounts.List(tablePatience)
	if err != nil {
		level.Warn(p.runner.logger).Log("msg", "not all pools could be asked which snapshots they received", "pool", p.uuid, "err", err)
	}
	for i := range mounts {
		m := &mounts[i]
		if m.UUID == p.uuid || m.UUID.IsZero() || len(m.Points) == 0 || p.runner.excluded(m.UUID) {
			continue
		}
		received, err := p.runner.receivedBy(ctx, m, maxAge)
		if err != nil {
			level.Warn(p.runner.logger).Log("msg", "a pool could not be asked which snapshots it received", "pool", p.uuid, "asked", m.UUID, "err", err)
		}
		for _, uuid := range received {
			see(m.UUID, uuid)
		}
	}
	notes := make([]entry, 0, len(changed))
	for i := range p.ledger.records {
		if r, is := changed[i]; is {
			notes = append(notes, entry{Made: &r})
		}
	}
	if len(notes) == 0 {
		return nil
	}
	err = p.ledger.note(notes...)
	p.publish()
	return err
}

// receivedIndex is what a pool has received, which all others want to know.
type receivedIndex struct {
	at    time.Time
	uuids []btrfs.UUID // of what was sent
}

// receivedBy returns the UUIDs of what a pool has received.
func (r *Runner) receivedBy(ctx context.Context, m *btrfs.Mount, maxAge time.Duration) ([]btrfs.UUID, error) {
	now := r.clock.Now()
	r.mu.Lock()
	known := r.received[m.UUID]
	r.mu.Unlock()
	if known != nil && !now.Before(known.at) && now.Sub(known.at) < maxAge {
		return known.uuids, nil
	}
	p, err := r.pool(m.UUID)
	if err != nil {
		return nil, err
	}
	uuids, err := ask(ctx, p, p.receives, func() ([]btrfs.UUID, error) { return r.readReceived(m) })
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.received[m.UUID] = &receivedIndex{now, uuids}
	return uuids, nil
}

func (r *Runner) readReceived(m *btrfs.Mount) ([]btrfs.UUID, error) {
	f, _, err := r.client.Open(m)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	var all []btrfs.UUID
	err = f.WalkSubvolumes(func(s *btrfs.Subvolume) error {
		if !s.Deleted && !s.ReceivedUUID.IsZero() {
			all = append(all, s.ReceivedUUID)
		}
		return nil
	})
	return all, err
}

// prune deletes what no rule keeps, and then the oldest for as long as there is
// less free than there should be.
func (p *pool) prune(ctx context.Context) (result Result, err error) {
	defer p.publish()
	fail := func(err error) (Result, error) { return result, fmt.Errorf("pool %s: %w", p.uuid, err) }
	f, m, err := p.runner.open(p.uuid, nil)
	if err != nil {
		return fail(err)
	}
	defer f.Close() //nolint:errcheck // every change was committed
	s, location, _ := p.runner.settingsOf(p.uuid)
	all, err := p.lookBefore(ctx, f, m)
	if err != nil {
		return fail(err)
	}
	if err := p.destroy(ctx, f, all, p.doomed(&s, location), &result); err != nil {
		return fail(err)
	}
	if s.MinFree > 0 {
		if err := p.pruneForSpace(ctx, f, all, &s, &result); err != nil {
			return fail(err)
		}
	}
	return result, nil
}

// doomed returns what no rule keeps.
func (p *pool) doomed(s *PoolSettings, location *time.Location) []doomedRecord {
	var doomed []doomedRecord
	for i, d := range decide(s.Retention, p.ledger.records, location) {
		if !d.Keep {
			doomed = append(doomed, doomedRecord{p.ledger.records[i], d.String()})
		}
	}
	return doomed
}

// planPrune says what prune would do now.
func (p *pool) planPrune(ctx context.Context) (*Plan, error) {
	f, m, err := p.runner.openToRead(p.uuid)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", p.uuid, err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	s, location, _ := p.runner.settingsOf(p.uuid)
	all, err := p.lookBefore(ctx, f, m)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", p.uuid, err)
	}
	plan := p.planOf(all, p.doomed(&s, location))
	if s.MinFree > 0 {
		plan.Would = append(plan.Would, fmt.Sprintf("delete more, the oldest first, while less than %s are free", humanize.IBytes(s.MinFree)))
	}
	return plan, nil
}

// planOf says what destroy would do.
func (p *pool) planOf(all *facts, doomed []doomedRecord) *Plan {
	plan := &Plan{Pool: p.uuid}
	for i := range doomed {
		d := &doomed[i]
		s, there := all.live[d.ID]
		if !there {
			continue
		}
		if why := d.refusal(&s, all); why != "" {
			plan.Kept = append(plan.Kept, Kept{d.Subvolume, d.Name, why})
		} else {
			plan.Deleted = append(plan.Deleted, Deleted{d.Subvolume, d.Name, d.reason})
		}
	}
	plan.Would = []string{fmt.Sprintf("delete %d snapshots", len(plan.Deleted))}
	return plan
}

// doomedRecord is a record of a snapshot that is to go.
type doomedRecord struct {
	record

	reason string
}

// destroy deletes snapshots, the oldest first, after a last look at each. The
// ledger forgets them only when that is on the disk: a crash before leaves
// records of what is gone, which settle finds, or of what is there again.
func (p *pool) destroy(ctx context.Context, f *btrfs.Filesystem, all *facts, doomed []doomedRecord, result *Result) error {
	var gone []uint64
	for i := range doomed {
		if ctx.Err() != nil {
			result.Notes = append(result.Notes, fmt.Sprintf("The daemon stopped before %d more were deleted", len(doomed)-i))
			break
		}
		d := &doomed[i]
		why, err := p.destroyOne(f, all, d)
		if errors.Is(err, unix.ENOENT) {
			continue // somebody else did, or renames it just now: settle tells which
		}
		if err != nil {
			why = err.Error()
		}
		if why != "" {
			result.Kept = append(result.Kept, Kept{d.Subvolume, d.Name, why})
			level.Warn(p.runner.logger).Log("msg", "a snapshot that was to be deleted stays", "pool", p.uuid, "snapshot", d.Name, "reason", why)
			continue
		}
		gone = append(gone, d.ID)
		result.Deleted = append(result.Deleted, Deleted{d.Subvolume, d.Name, d.reason})
		level.Info(p.runner.logger).Log("msg", "deleted a snapshot", "pool", p.uuid, "snapshot", d.Name, "id", d.ID, "reason", d.reason)
		p.count(prunedOf, d.Subvolume, 1)
	}
	if len(gone) == 0 {
		return nil
	}
	p.nextTend = time.Time{} // to see what is being cleaned
	if err := f.Commit(); err != nil {
		return err
	}
	return p.ledger.note(entry{Gone: gone})
}

// destroyOne deletes one snapshot, or says why it stays. unix.ENOENT says that it
// lies nowhere.
func (p *pool) destroyOne(f *btrfs.Filesystem, all *facts, d *doomedRecord) (why string, err error) {
	s, err := f.Subvolume(d.ID)
	if err != nil {
		return "", err
	}
	if s.Deleted {
		return "", unix.ENOENT
	}
	if why := d.refusal(&s, all); why != "" {
		return why, nil
	}
	err = f.DestroySubvolume(d.ID)
	if errors.Is(err, unix.EPERM) {
		return "the kernel refuses: it is being sent, or it is the default subvolume", nil
	}
	return "", err
}

// Timing of the wait for freed space.
const (
	cleanPatience = 10 * time.Minute
	cleanPoll     = 500 * time.Millisecond
)

// pruneForSpace deletes the oldest snapshot after the other, as long as there is
// less free than there should be.
func (p *pool) pruneForSpace(ctx context.Context, f *btrfs.Filesystem, all *facts, s *PoolSettings, result *Result) error {
	if p.runner.free == nil {
		return nil
	}
	stays := make(map[uint64]bool) // what cannot be deleted
	for ctx.Err() == nil {
		free, err := p.runner.free(p.uuid)
		if err != nil {
			result.Notes = append(result.Notes, fmt.Sprintf("How much is free is not known, so that min_free prunes nothing: %v", err))
			return nil
		}
		if free >= s.MinFree {
			return nil
		}
		next, ok := oldestToSpare(p.ledger.records, max(s.Retention.KeepMin, 1), stays)
		if !ok {
			result.Notes = append(result.Notes, fmt.Sprintf("%s are free, less than min_free (%s), and no snapshot is left that may be pruned for it", humanize.IBytes(free), humanize.IBytes(s.MinFree)))
			return nil
		}
		reason := fmt.Sprintf("%s are free, less than min_free (%s)", humanize.IBytes(free), humanize.IBytes(s.MinFree))
		before := len(result.Deleted)
		if err := p.destroy(ctx, f, all, []doomedRecord{{next, reason}}, result); err != nil {
			return err
		}
		if len(result.Deleted) == before {
			stays[next.ID] = true
			continue
		}
		p.publish()
		if err := p.waitClean(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// oldestToSpare returns the oldest snapshot that may go while at least keepMin
// of each subvolume stay.
func oldestToSpare(records []record, keepMin int, stays map[uint64]bool) (record, bool) {
	left := make(map[string]int)
	for i := range records {
		if !records[i].Pinned {
			left[records[i].Subvolume]++
		}
	}
	for i := range records {
		r := &records[i]
		if r.Pinned {
			continue
		}
		if left[r.Subvolume] > keepMin && !stays[r.ID] {
			return *r, true
		}
		left[r.Subvolume]-- // the next of it has fewer after it
	}
	return record{}, false
}

// waitClean waits until the space of deleted subvolumes is given back.
func (p *pool) waitClean(ctx context.Context, f *btrfs.Filesystem) error {
	ctx, cancel := context.WithTimeout(ctx, cleanPatience)
	defer cancel()
	for {
		cleaning, err := f.CleaningSubvolumes()
		if err != nil || len(cleaning) == 0 {
			return errors.Join(err, f.Commit()) // what was freed counts from then on
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the kernel still gives back the space of %d deleted subvolumes after %s", len(cleaning), cleanPatience)
		case <-time.After(cleanPoll):
		}
	}
}

// deleteByName deletes one snapshot of ours.
func (p *pool) deleteByName(ctx context.Context, name string) (result Result, err error) {
	defer p.publish()
	f, m, err := p.runner.open(p.uuid, nil)
	if err != nil {
		return result, fmt.Errorf("pool %s: %w", p.uuid, err)
	}
	defer f.Close() //nolint:errcheck // every change was committed
	all, err := p.lookBefore(ctx, f, m)
	if err != nil {
		return result, fmt.Errorf("pool %s: %w", p.uuid, err)
	}
	d, err := p.byName(name)
	if err != nil {
		return result, err
	}
	err = p.destroy(ctx, f, all, []doomedRecord{d}, &result)
	if err == nil && len(result.Kept) > 0 {
		err = fmt.Errorf("snapshot %q stays: %s", name, result.Kept[0].Reason)
	}
	if err != nil {
		return result, fmt.Errorf("pool %s: %w", p.uuid, err)
	}
	return result, nil
}

// byName returns the record of a name, to be deleted.
func (p *pool) byName(name string) (doomedRecord, error) {
	i := slices.IndexFunc(p.ledger.records, func(r record) bool { return r.Name == name })
	if i < 0 {
		return doomedRecord{}, fmt.Errorf("pool %s: snapshot %q: %w (others' are for `btrfs subvolume delete`)", p.uuid, name, ErrUnknown)
	}
	return doomedRecord{p.ledger.records[i], "asked for by name"}, nil
}

// planDelete says what deleteByName would do now.
func (p *pool) planDelete(ctx context.Context, name string) (*Plan, error) {
	f, m, err := p.runner.openToRead(p.uuid)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", p.uuid, err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	all, err := p.lookBefore(ctx, f, m)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", p.uuid, err)
	}
	d, err := p.byName(name)
	if err != nil {
		return nil, err
	}
	plan := p.planOf(all, []doomedRecord{d})
	if len(plan.Kept) > 0 {
		return nil, fmt.Errorf("pool %s: snapshot %q stays: %s: %w", p.uuid, name, plan.Kept[0].Reason, ErrRefused)
	}
	return plan, nil
}
