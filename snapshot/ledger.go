package snapshot

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/snapshot/retention"
)

// record is what is known of a snapshot that we made: enough to tell it from
// whatever has its name or its place later.
type record struct {
	ID         uint64     `json:"id"`
	UUID       btrfs.UUID `json:"uuid"`
	OTransID   uint64     `json:"otransid"`
	Created    time.Time  `json:"created"` // by the filesystem
	Subvolume  string     `json:"subvolume"`
	SourceUUID btrfs.UUID `json:"source_uuid"`
	Name       string     `json:"name"`
	Parent     uint64     `json:"parent"` // where it lies, see btrfs.Subvolume
	Directory  uint64     `json:"directory"`

	// When it was taken, see retention.Snapshot, and by the clock that nobody
	// sets: time since the boot of that id.
	Taken   time.Time         `json:"taken"`
	Epoch   int               `json:"epoch,omitempty"`
	Elapsed time.Duration     `json:"elapsed"`
	First   retention.Periods `json:"first,omitempty"`
	Boot    string            `json:"boot,omitempty"`
	Uptime  time.Duration     `json:"uptime,omitempty"`

	Pinned bool   `json:"pinned,omitempty"`
	JobID  string `json:"job"`

	// ReceivedUUID is that of the snapshot when it was made: a read-only one has
	// that of its subvolume.
	ReceivedUUID btrfs.UUID `json:"received_uuid,omitzero"`
	// CTransID is the last transaction up to which it is known to be as it was
	// made.
	CTransID uint64 `json:"ctransid"`
	// Written: a file in it was changed since.
	Written bool `json:"written,omitempty"`
	// Sent are the pools on which a copy of it was seen that was received.
	Sent []string `json:"sent,omitempty"`
}

func (r *record) retention() retention.Snapshot {
	return retention.Snapshot{Taken: r.Taken, Epoch: r.Epoch, Elapsed: r.Elapsed, First: r.First, Pinned: r.Pinned}
}

// intent is what a job is about to make, noted before: what a kill leaves
// half done is found by it.
type intent struct {
	JobID string `json:"job"`
	// Generation is that of the filesystem before: what we make is later.
	Generation uint64 `json:"generation"`
	// Hooked: commands run before it, so that those after it have to.
	Hooked    bool     `json:"hooked,omitempty"`
	Snapshots []record `json:"snapshots"` // of what is known before
}

// entry is a line of the ledger. One of its members is set.
type entry struct {
	Begin   *intent    `json:"begin,omitempty"`
	Made    *record    `json:"made,omitempty"` // also one that changed
	End     string     `json:"end,omitempty"`  // the id of the job that began
	Gone    []uint64   `json:"gone,omitempty"` // ids
	Success *time.Time `json:"success,omitempty"`
	// Scheduled is when the schedule was last looked at and a run was due.
	Scheduled *time.Time `json:"scheduled,omitempty"`
}

// ledger keeps which snapshots of a pool are ours, in the order in which they
// were made. It is for one goroutine at a time.
type ledger struct {
	journal *state.Journal // nil: nothing is kept
	warn    func(error)    // of what is no reason to stop
	lines   int

	records   []record
	shared    bool                     // others read them
	summary   map[string]subvolumeView // of the records; nil: to be found
	intents   []intent                 // that have not ended
	success   time.Time
	scheduled time.Time
}

func ledgerName(pool btrfs.UUID) string { return "snapshots-" + pool.String() + ".jsonl" }

// openLedger reads the ledger of a pool. With an error of kind
// state.ErrDamaged it is good, but for the lines that were left out: those
// snapshots are no longer known to be ours, and stay.
func openLedger(dir *state.Dir, pool btrfs.UUID, warn func(error)) (*ledger, error) {
	l := &ledger{warn: warn}
	if dir == nil {
		return l, nil
	}
	var err error
	l.journal, err = dir.OpenJournal(ledgerName(pool), func(line []byte) error {
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		if m := e.Made; m != nil && (m.ID == 0 || m.UUID.IsZero() || m.Name == "") {
			return fmt.Errorf("snapshot %q (subvolume %d, UUID %s) cannot be", m.Name, m.ID, m.UUID)
		}
		l.lines++
		l.apply(&e)
		return nil
	})
	if l.journal == nil {
		return nil, err
	}
	return l, err
}

// apply changes what is in memory.
func (l *ledger) apply(e *entry) {
	switch {
	case e.Begin != nil: // anew, if names had to change
		l.end(e.Begin.JobID)
		l.intents = append(l.intents, *e.Begin)
	case e.Made != nil:
		l.made(e.Made)
	case e.End != "":
		l.end(e.End)
	case len(e.Gone) > 0:
		gone := make(map[uint64]bool, len(e.Gone))
		for _, id := range e.Gone {
			gone[id] = true
		}
		l.own()
		l.summary = nil
		l.records = slices.DeleteFunc(l.records, func(r record) bool { return gone[r.ID] })
	case e.Success != nil:
		l.success = *e.Success
	case e.Scheduled != nil:
		l.scheduled = *e.Scheduled
	}
}

func (l *ledger) made(r *record) {
	i, known := l.find(r.ID)
	switch {
	case known:
		l.own()
		l.records[i] = *r
	case i == len(l.records):
		// As far as others read, nothing changes.
		l.records = append(l.records, *r)
		if l.summary != nil {
			s := l.summary[r.Subvolume]
			s.add(r)
			l.summary[r.Subvolume] = s
		}
		return
	default:
		l.own()
		l.records = slices.Insert(l.records, i, *r)
	}
	l.summary = nil
}

// own makes the records ours alone, before one of them changes.
func (l *ledger) own() {
	if l.shared {
		l.records, l.shared = slices.Clone(l.records), false
	}
}

// share returns the records for others to read, as they are now.
func (l *ledger) share() []record {
	l.shared = true
	return slices.Clip(l.records)
}

// summarize counts the records of each subvolume, also of others that have none.
func (l *ledger) summarize(others ...string) map[string]subvolumeView {
	if l.summary == nil {
		l.summary = make(map[string]subvolumeView)
		for i := range l.records {
			s := l.summary[l.records[i].Subvolume]
			s.add(&l.records[i])
			l.summary[l.records[i].Subvolume] = s
		}
	}
	all := maps.Clone(l.summary)
	for _, subvolume := range others {
		if _, counted := all[subvolume]; !counted {
			all[subvolume] = subvolumeView{}
		}
	}
	return all
}

func (l *ledger) end(jobID string) {
	l.intents = slices.DeleteFunc(l.intents, func(i intent) bool { return i.JobID == jobID })
}

// find finds a record by the id of its subvolume. They rise, and while a
// subvolume is there no other one gets its id.
func (l *ledger) find(id uint64) (index int, known bool) {
	return slices.BinarySearchFunc(l.records, id, func(r record, id uint64) int { return cmp.Compare(r.ID, id) })
}

// note adds entries, to the disk first.
func (l *ledger) note(entries ...entry) error { return l.add(entries, (*state.Journal).Append) }

// write adds entries that outlive the process, and after sync a crash of the
// machine.
func (l *ledger) write(entries ...entry) error { return l.add(entries, (*state.Journal).Write) }

func (l *ledger) sync() error {
	if l.journal == nil {
		return nil
	}
	return l.journal.Sync()
}

func (l *ledger) add(entries []entry, to func(*state.Journal, ...any) error) error {
	if l.journal != nil {
		values := make([]any, len(entries))
		for i := range entries {
			values[i] = entries[i]
		}
		if err := to(l.journal, values...); err != nil {
			return err
		}
		l.lines += len(entries)
	}
	for i := range entries {
		l.apply(&entries[i])
	}
	// What was noted stands, whatever becomes of this.
	if err := l.compact(); err != nil {
		l.warn(err)
	}
	return nil
}

// compactFrom is how many lines a ledger has at least before it is compacted.
const compactFrom = 1000

// compact writes the ledger anew when most of its lines say nothing any more.
func (l *ledger) compact() error {
	if l.journal == nil || l.lines < compactFrom || l.lines < 2*(len(l.records)+len(l.intents)) {
		return nil
	}
	var values []any
	if !l.success.IsZero() {
		values = append(values, entry{Success: &l.success})
	}
	if !l.scheduled.IsZero() {
		values = append(values, entry{Scheduled: &l.scheduled})
	}
	for i := range l.intents {
		values = append(values, entry{Begin: &l.intents[i]})
	}
	for i := range l.records {
		values = append(values, entry{Made: &l.records[i]})
	}
	if err := l.journal.Rewrite(values); err != nil {
		return err
	}
	l.lines = len(values)
	return nil
}

// tailOf returns the newest records of a subvolume, as far back as the next one
// depends on them: to the last that is not pinned. The oldest comes first.
func tailOf(records []record, subvolume string) []record {
	var tail []record
	for i := len(records) - 1; i >= 0; i-- {
		if records[i].Subvolume != subvolume {
			continue
		}
		tail = append(tail, records[i])
		if !records[i].Pinned {
			break
		}
	}
	slices.Reverse(tail)
	return tail
}

// take fills in when a snapshot is taken, after the records that there are. since
// is as in retention.Next.
func (r *record) take(records []record, now time.Time, since func(last *record) *time.Duration, location *time.Location) {
	tail := tailOf(records, r.Subvolume)
	history := make([]retention.Snapshot, len(tail))
	for i := range tail {
		history[i] = tail[i].retention()
	}
	var gap *time.Duration
	if len(tail) > 0 {
		gap = since(&tail[len(tail)-1])
	}
	next := retention.Next(history, now, gap, r.Pinned, location)
	r.Taken, r.Epoch, r.Elapsed, r.First = next.Taken, next.Epoch, next.Elapsed, next.First
}
