package alertmanager

import (
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"time"

	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// withoutURL takes the URL out of an error of package http: it may hold a secret.
func withoutURL(err error) error {
	if failed, ok := errors.AsType[*url.Error](err); ok {
		return failed.Err
	}
	return err
}

// memory is what was done for which alert. It survives a restart.
type memory struct {
	journal *state.Journal
	lines   int
	entries map[memoryKey]memoryLine
	// last is the action that was last done for a pool, or for an alert of none.
	last map[doingKey]memoryLine
	// failed tells whether a job is known to have failed: what it was to do is not
	// done.
	failed func(jobID string) bool
}

type memoryKey struct{ action, fingerprint string }

// memoryLine is one line of the journal: an action that was done.
type memoryLine struct {
	Action      string    `json:"action"`
	Fingerprint string    `json:"fingerprint"`
	Pool        string    `json:"pool,omitempty"`
	Since       time.Time `json:"since"` // when the alert began to fire
	At          time.Time `json:"at"`
	Job         string    `json:"job,omitempty"` // that does it
}

func (l *memoryLine) doing() doingKey {
	if l.Pool == "" {
		return doingKey{l.Action, l.Fingerprint}
	}
	return doingKey{l.Action, l.Pool}
}

const memoryName = "alert-actions.jsonl"

// Bounds of what is remembered. Alertmanager repeats an alert that fires every few
// hours or days.
const (
	maxMemory   = 10_000
	memoryAge   = 365 * 24 * time.Hour
	compactFrom = 1_000
)

func openMemory(dir *state.Dir, now time.Time, failed func(jobID string) bool) (*memory, error) {
	m := &memory{entries: make(map[memoryKey]memoryLine), last: make(map[doingKey]memoryLine), failed: failed}
	journal, err := dir.OpenJournal(memoryName, func(text []byte) error {
		var line memoryLine
		if err := json.Unmarshal(text, &line); err != nil {
			return err
		}
		if line.Action == "" || line.Fingerprint == "" || line.At.IsZero() {
			return errors.New("it is no line of this file")
		}
		m.lines++
		m.take(&line)
		return nil
	})
	if journal == nil {
		return nil, err
	}
	m.journal = journal
	m.forget(now)
	return m, err
}

func (m *memory) take(line *memoryLine) {
	m.entries[memoryKey{line.Action, line.Fingerprint}] = *line
	m.last[line.doing()] = *line
}

// has tells whether the action was done for this very firing of the alert.
func (m *memory) has(line *memoryLine) bool {
	before, ok := m.entries[memoryKey{line.Action, line.Fingerprint}]
	return ok && before.Since.Equal(line.Since) && !m.failed(before.Job)
}

// covers tells whether the action was done for the pool after the alert began to
// fire, for another one: then it was done for this one too.
func (m *memory) covers(line *memoryLine) bool {
	last, ok := m.last[line.doing()]
	return ok && line.Pool != "" && last.At.After(line.Since) && !last.At.After(line.At) && !m.failed(last.Job)
}

// coolsDown tells whether the action was done for the pool a short while ago: for
// another alert, or another firing of this one.
func (m *memory) coolsDown(line *memoryLine, coolDown time.Duration) bool {
	last, ok := m.last[line.doing()]
	// A clock that was set back must not hold it for ever.
	since := line.At.Sub(last.At)
	return ok && since >= 0 && since < coolDown && !m.failed(last.Job)
}

// write notes a line, durably. With an error it is noted until the process ends.
func (m *memory) write(line *memoryLine) error {
	m.take(line)
	if err := m.journal.Append(line); err != nil {
		return err
	}
	m.lines++
	if len(m.entries) > maxMemory || m.lines >= compactFrom && m.lines > 2*len(m.entries) {
		return m.compact(line.At)
	}
	return nil
}

// forget drops what is too old, and the oldest where there is too much, and
// returns what is left.
func (m *memory) forget(now time.Time) []memoryLine {
	lines := make([]memoryLine, 0, len(m.entries))
	for _, line := range m.entries {
		if now.Sub(line.At) <= memoryAge {
			lines = append(lines, line)
		}
	}
	slices.SortFunc(lines, func(a, b memoryLine) int { return a.At.Compare(b.At) })
	if len(lines) > maxMemory {
		lines = lines[len(lines)-maxMemory*3/4:]
	}
	clear(m.entries)
	clear(m.last)
	for i := range lines {
		m.take(&lines[i])
	}
	return lines
}

func (m *memory) compact(now time.Time) error {
	lines := m.forget(now)
	values := make([]any, len(lines))
	for i := range lines {
		values[i] = &lines[i]
	}
	if err := m.journal.Rewrite(values); err != nil {
		return err
	}
	m.lines = len(lines)
	return nil
}
