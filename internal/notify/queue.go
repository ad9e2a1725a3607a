package notify

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

const fileName = "notifications.jsonl"

// record is a line of the journal: a notification that was accepted, or how one
// ended. One that has both is the memory of what need not be sent.
type record struct {
	ID       string                `json:"id"`
	Receiver string                `json:"receiver,omitempty"`
	Key      string                `json:"key,omitempty"`
	Accepted time.Time             `json:"accepted,omitzero"`
	Message  *alertmanager.Message `json:"message,omitempty"`
	LeftOut  leftOut               `json:"left_out,omitzero"` // alerts that Message does not have
	Result   Result                `json:"result,omitempty"`
}

// entry is a notification that has not ended. Its message is kept as it is on the
// disk, where it is smallest.
type entry struct {
	id, receiver, key, group string

	accepted time.Time
	sequence uint64 // rises with each that is accepted
	line     json.RawMessage
	ended    bool
	// unsure is set where the service may have it already.
	unsure bool
}

func newID() string {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	return hex.EncodeToString(random[:])
}

var validID = regexp.MustCompile(`^[0-9a-f]{1,64}$`)

// check reports what cannot be.
func (r *record) check() error {
	switch {
	case !validID.MatchString(r.ID):
		return fmt.Errorf("notification %.40q cannot be", r.ID)
	case r.Message == nil && !r.Result.ended():
		return fmt.Errorf("notification %s has neither a message nor a result", r.ID)
	case r.Message != nil && (r.Receiver == "" || r.Key == "" || r.Accepted.IsZero() || len(r.Message.Alerts) == 0):
		return fmt.Errorf("notification %s lacks what it needs to be sent", r.ID)
	}
	return nil
}

// keyOf is the same for messages that say the same to a receiver, whichever member
// of a cluster sends them.
func keyOf(receiver string, m *alertmanager.Message) string {
	alerts := make([]string, len(m.Alerts))
	for i := range m.Alerts {
		a := &m.Alerts[i]
		alerts[i] = string(a.Status) + " " + a.Fingerprint + " " + a.StartsAt.UTC().Format(time.RFC3339Nano)
		if a.Status == alertmanager.Resolved {
			alerts[i] += " " + a.EndsAt.UTC().Format(time.RFC3339Nano)
		}
	}
	slices.Sort(alerts)
	text, _ := json.Marshal(append([]string{receiver, m.GroupKey, string(m.Status)}, alerts...)) // strings never fail
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}

// recent remembers what was accepted, to know it again.
type recent struct {
	id, receiver string
	accepted     time.Time
	result       Result // empty while it is queued
}

// duplicateWindow is for how long a message that says the same is taken for the
// same one.
const duplicateWindow = 5 * time.Minute

// fresh reports whether it is in the window. A clock that was set back makes
// nothing fresh for longer than that.
func (r *recent) fresh(now time.Time) bool {
	return now.Sub(r.accepted).Abs() < duplicateWindow
}

// waits reports whether an entry says what the newest one of its group says that has
// not been sent yet: a reminder, of what the receiver is still to hear.
func (l *lane) waits(e *entry) bool {
	for _, other := range slices.Backward(l.queue) {
		if other.group == e.group {
			return other.key == e.key
		}
	}
	return false
}

// The journal is compacted when it has so many bytes, and half again as many as it
// needs: it stays well below what state.Journal reads.
const compactFrom = 256 << 10

// disk writes the journal. Who changes the queue holds it throughout, so that the
// two say the same.
type disk struct {
	sync.Mutex
	journal *state.Journal
	size    int
	// owed could not be written: what has ended stays ended, and is written with
	// what comes next.
	owed []json.RawMessage
}

// append writes lines, after those that are owed. With an error none of them is on
// the disk.
func (d *disk) append(lines ...json.RawMessage) error {
	lines = slices.Concat(d.owed, lines)
	values, size := make([]any, len(lines)), 0
	for i, line := range lines {
		values[i] = line
		size += len(line) + 1
	}
	if err := d.journal.Append(values...); err != nil {
		return err
	}
	d.owed = nil
	d.size += size
	return nil
}

// end writes how notifications ended, now or as soon as it can.
func (d *disk) end(lines ...json.RawMessage) error {
	err := d.append(lines...)
	if err != nil {
		d.owed = append(d.owed, lines...)
	}
	return err
}

// endLine is the line that ends a notification.
func endLine(id string, result Result) json.RawMessage {
	line, _ := json.Marshal(&record{ID: id, Result: result}) // strings never fail
	return line
}

// newEntry prepares a message for the queue.
func newEntry(receiver string, m *alertmanager.Message, now time.Time) (*entry, error) {
	e := &entry{id: newID(), receiver: receiver, key: keyOf(receiver, m), group: cutBytes(m.GroupKey, maxKeptText), accepted: now.UTC().Round(0)}
	kept, out := trim(m)
	var err error
	e.line, err = json.Marshal(&record{ID: e.id, Receiver: receiver, Key: e.key, Accepted: e.accepted, Message: kept, LeftOut: out})
	return e, err
}

// message returns what an entry holds.
func (e *entry) message() (*alertmanager.Message, leftOut, error) {
	var r record
	if err := json.Unmarshal(e.line, &r); err != nil {
		return nil, leftOut{}, fmt.Errorf("read notification %s: %w", e.id, err)
	}
	return r.Message, r.LeftOut, nil
}

// load reads the journal.
func (b *Bridge) load(dir *state.Dir) error {
	queued := make(map[string]*entry)
	known := make(map[string]*record)
	var order []*entry
	journal, err := dir.OpenJournal(fileName, func(line []byte) error {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return err
		}
		if err := r.check(); err != nil {
			return err
		}
		b.disk.size += len(line) + 1
		if r.Message == nil {
			if e := queued[r.ID]; e != nil {
				e.ended, e.line = true, nil
				known[r.ID].Result = r.Result
			} else if known[r.ID] == nil && r.Key != "" {
				known[r.ID] = &r
			}
			return nil
		}
		if known[r.ID] != nil {
			return fmt.Errorf("notification %s is there twice", r.ID)
		}
		b.sequence++
		e := &entry{
			id: r.ID, receiver: r.Receiver, key: r.Key, group: r.Message.GroupKey, accepted: r.Accepted, sequence: b.sequence, line: slices.Clone(line),
		}
		queued[e.id] = e
		order = append(order, e)
		r.Message = nil
		known[e.id] = &r
		return nil
	})
	if journal == nil {
		return err
	}
	b.disk.journal = journal
	now := b.clock.Now()
	for _, r := range known {
		seen := recent{id: r.ID, receiver: r.Receiver, accepted: r.Accepted, result: r.Result}
		if old, ok := b.recent[r.Key]; seen.fresh(now) && (!ok || old.accepted.Before(seen.accepted)) {
			b.recent[r.Key] = seen
		}
	}
	for _, e := range order {
		if e.ended {
			continue
		}
		l := b.lane(e.receiver)
		// They are sent in order: only the first can have been under way.
		e.unsure = len(l.queue) == 0
		l.push(e)
	}
	return err
}

// compact rewrites the journal when most of it has ended. The caller holds the
// disk, and what the queue has now is what is meant to be.
func (b *Bridge) compact() {
	if b.disk.size < compactFrom {
		return
	}
	b.mu.Lock()
	var entries []*entry
	live := 0
	for _, l := range b.lanes {
		entries = append(entries, l.queue...)
		live += l.bytes
	}
	now := b.clock.Now()
	var lines []any
	size := 0
	for key, r := range b.recent {
		if !r.fresh(now) {
			delete(b.recent, key)
			continue
		}
		if r.result == "" {
			continue // it is queued, and its line says all
		}
		line, _ := json.Marshal(&record{ID: r.id, Receiver: r.receiver, Key: key, Accepted: r.accepted, Result: r.result}) // was read or made by us
		lines = append(lines, json.RawMessage(line))
		size += len(line) + 1
	}
	b.mu.Unlock()
	if b.disk.size < (live+size)*3/2 {
		return
	}
	slices.SortFunc(entries, func(a, b *entry) int { return cmp.Compare(a.sequence, b.sequence) })
	for _, e := range entries {
		lines = append(lines, e.line)
		size += len(e.line) + 1
	}
	// What was written stands; where this fails it is tried again with the next.
	if err := b.disk.journal.Rewrite(lines); err == nil {
		b.disk.size, b.disk.owed = size, nil
	}
}

// Close closes the journal. What was accepted is on the disk.
func (b *Bridge) Close() error {
	b.disk.Lock()
	defer b.disk.Unlock()
	err := b.flush()
	return errors.Join(err, b.disk.journal.Close())
}

// flush writes what is owed. The caller holds the disk.
func (b *Bridge) flush() error {
	if len(b.disk.owed) == 0 {
		return nil
	}
	return b.disk.append()
}
