package snapshot

import (
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// Settled reports whether a pool was looked at since the start, and no job is
// open that a killed process began.
func (r *Runner) Settled(uuid btrfs.UUID) bool {
	p, err := r.pool(uuid)
	if err != nil {
		return false
	}
	v := p.seen()
	return !v.looked.IsZero() && !v.open
}

// Ours returns the names and ids of our snapshots, in the order in which they
// were made.
func (r *Runner) Ours(uuid btrfs.UUID) (names []string, ids []uint64) {
	p, err := r.pool(uuid)
	if err != nil {
		return nil, nil
	}
	for _, c := range p.seen().records {
		names = append(names, c.Name)
		ids = append(ids, c.ID)
	}
	return names, ids
}

// Idle reports whether the worker of a pool has nothing to do.
func (r *Runner) Idle(uuid btrfs.UUID) bool {
	p, err := r.pool(uuid)
	return err == nil && p.todo.Load() == 0
}

// ChangedTransactions returns how many of our snapshots have another CTransID in
// the filesystem than in the ledger.
func (r *Runner) ChangedTransactions(uuid btrfs.UUID) (n int) {
	p, err := r.pool(uuid)
	if err != nil {
		return 0
	}
	f, _, err := r.openToRead(uuid)
	if err != nil {
		return 0
	}
	defer f.Close()
	for _, c := range p.seen().records {
		if s, err := f.Subvolume(c.ID); err == nil && s.CTransID != c.CTransID {
			n++
		}
	}
	return n
}

// NameOf is nameOf.
var NameOf = nameOf

// AddOurs notes snapshots as if a job had made them: thousands of them at once.
func (r *Runner) AddOurs(uuid btrfs.UUID, subvolume string, source btrfs.UUID, made []btrfs.Subvolume, start time.Time, step time.Duration) error {
	p, err := r.pool(uuid)
	if err != nil {
		return err
	}
	notes := make([]entry, len(made))
	var records []record
	for i := range made {
		planned := record{
			Subvolume: subvolume, SourceUUID: source, Name: made[i].Name, Parent: made[i].Parent, Directory: made[i].Directory, JobID: "test",
		}
		planned.take(records, start.Add(time.Duration(i)*step), func(*record) *time.Duration { return &step }, time.UTC)
		r := planned.madeAs(&made[i])
		records = append(records, r)
		notes[i] = entry{Made: &r}
	}
	err = p.ledger.note(notes...)
	p.publish()
	return err
}

// Missed is missed.
var Missed = missed
