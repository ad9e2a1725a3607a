// Package snapshot takes read-only snapshots of subvolumes, lists them, and
// prunes those that no rule keeps.
//
// What it deletes it has made: of each snapshot it keeps in the state directory
// (see ledger) what the kernel called it, and compares that before it deletes
// anything. Whatever was made writable, received, renamed or put in the place of
// one of ours stays, and is named.
package snapshot

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/snapshot/retention"
)

// Errors that a caller decides on.
var (
	ErrUnknownPool = errors.New("no mounted pool has this UUID")
	ErrUnknown     = errors.New("there is no such snapshot of ours")
	ErrInvalid     = errors.New("the request cannot be carried out")
	ErrRefused     = errors.New("refused")
	ErrBusy        = errors.New("try again later")
)

// Kinds of jobs.
const (
	KindCreate = "snapshot"
	KindDelete = "snapshot-delete"
	KindPrune  = "prune"
)

// PoolSettings are what the configuration says about the snapshots of a pool.
type PoolSettings struct {
	// Pool is a UUID or a label.
	Pool string
	// Directory is where the snapshots go, from the top of the pool.
	Directory string
	// Subvolumes are those to take snapshots of, from the top of the pool; "" is
	// the top itself.
	Subvolumes []string
	Retention  retention.Policy
	// MinFree is how many bytes are to be free: below it the oldest snapshots
	// are pruned, down to Retention.KeepMin of each subvolume. 0: none.
	MinFree uint64
	Hooks   Hooks
	// Schedule says when snapshots are taken; nil is never.
	Schedule Schedule
}

// Schedule are times of a calendar.
type Schedule interface {
	// Due reports whether a run came due after last and not after now.
	Due(last, now time.Time) bool
	// Next returns the first time after t; zero is never.
	Next(t time.Time) time.Time
}

// Hooks are commands that run before and after the snapshots of a job are taken.
type Hooks struct {
	// Before and After are each a program and its arguments; no shell is
	// involved. None is not run.
	Before, After []string
	// Timeout is how long each may take.
	Timeout time.Duration
}

func (h *Hooks) any() bool { return len(h.Before) > 0 || len(h.After) > 0 }

// DefaultDirectory is where snapshots go unless the configuration says
// otherwise.
const DefaultDirectory = ".snapshots"

// CreateOptions are what can be asked of snapshots that are to be taken.
type CreateOptions struct {
	// Subvolume is the one to take a snapshot of, from the top of the pool; nil
	// are all that are configured.
	Subvolume *string `json:"subvolume,omitempty"`
	// Pin: it is never pruned, only deleted by name.
	Pin bool `json:"pin,omitempty"`
	// schedule: the clock asks for it.
	schedule bool
}

// Snapshot is one snapshot of a pool.
type Snapshot struct {
	Name string `json:"name"`
	// Subvolume is what it is a snapshot of, from the top of the pool; absent
	// where that is gone.
	Subvolume *string `json:"subvolume,omitempty"`
	// Path is where it lies, from the top of the pool.
	Path string     `json:"path"`
	ID   uint64     `json:"id"`
	UUID btrfs.UUID `json:"uuid"`
	// Created is when it was made, by the clock at the time.
	Created  time.Time `json:"created"`
	ReadOnly bool      `json:"read_only"`
	// Ours: we made it, and may prune it.
	Ours   bool `json:"ours"`
	Pinned bool `json:"pinned,omitempty"`
	// Keep are the rules that keep it, Prune why the next prune deletes it, and
	// Protected why nothing of ours ever does. One of them is set on ours.
	Keep      []string `json:"keep,omitempty"`
	Prune     string   `json:"prune,omitempty"`
	Protected string   `json:"protected,omitempty"`
	// Exclusive is what its deletion would give back, in bytes of file data;
	// absent where it was not asked for or is not known.
	Exclusive *uint64 `json:"exclusive_bytes,omitempty"`
}

// List are the snapshots of a pool.
type List struct {
	Pool      btrfs.UUID `json:"pool"`
	Snapshots []Snapshot `json:"snapshots"`
	// Cleaning is how many deleted subvolumes the kernel is still giving back
	// the space of.
	Cleaning int `json:"cleaning"`
	// Sizes says how the sizes were found, if they were asked for.
	Sizes *SizesInfo `json:"sizes,omitempty"`
}

// Created is a snapshot that a job made.
type Created struct {
	Subvolume string     `json:"subvolume"`
	Name      string     `json:"name"`
	ID        uint64     `json:"id"`
	UUID      btrfs.UUID `json:"uuid"`
	// Path is where it can be read now; absent where no mount shows it.
	Path string `json:"path,omitempty"`
	// PoolPath is where it lies, from the top of the pool.
	PoolPath string `json:"pool_path"`
	// Nested are subvolumes within the subvolume: they are not in the
	// snapshot.
	Nested []string `json:"nested,omitempty"`
}

// maxListed is how many entries each list of a result has at most.
const maxListed = 200

// trim bounds the lists of a result: results of all jobs stand in one file.
func (r *Result) trim() {
	left := 0
	cut := func(n int) int {
		left += max(n-maxListed, 0)
		return min(n, maxListed)
	}
	r.Deleted, r.Kept = r.Deleted[:cut(len(r.Deleted))], r.Kept[:cut(len(r.Kept))]
	for i := range r.Created {
		c := &r.Created[i]
		c.Nested = c.Nested[:cut(len(c.Nested))]
	}
	if left > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("%d more entries are in the log only", left))
	}
}

// Deleted is a snapshot that a job deleted, or would.
type Deleted struct {
	Subvolume string `json:"subvolume"`
	Name      string `json:"name"`
	Reason    string `json:"reason"`
}

// Kept is a snapshot that was to be deleted, and stays.
type Kept = Deleted

// Failure is a subvolume of which no snapshot was taken.
type Failure struct {
	Subvolume string `json:"subvolume"`
	Error     string `json:"error"`
}

// Result is what a job did.
type Result struct {
	Created []Created `json:"created,omitempty"`
	Failed  []Failure `json:"failed,omitempty"`
	Deleted []Deleted `json:"deleted,omitempty"`
	Kept    []Kept    `json:"kept,omitempty"`
	// Notes are what else there is to know.
	Notes []string `json:"notes,omitempty"`
}

// Plan is what a job would do now.
type Plan struct {
	Pool  btrfs.UUID `json:"pool"`
	Would []string   `json:"would"` // sentences without their subject
	// Deleted and Kept are what a prune would delete and have to leave.
	Deleted []Deleted `json:"deleted,omitempty"`
	Kept    []Kept    `json:"kept,omitempty"`
}

// timeFormat is that of names: ISO 8601 in UTC, in its basic form.
const timeFormat = "20060102T150405Z"

// maxNameBytes is the longest name of an entry.
const maxNameBytes = 255

// nameOf returns the name of a snapshot. n counts those of the same second.
func nameOf(subvolume string, taken time.Time, n int) string {
	base := strings.ReplaceAll(subvolume, "/", "-")
	if base == "" {
		base = "toplevel"
	}
	tail := "." + taken.UTC().Format(timeFormat)
	if n > 1 {
		tail += fmt.Sprintf("-%d", n)
	}
	if most := maxNameBytes - len(tail); len(base) > most {
		base = strings.ToValidUTF8(base[:most], "")
	}
	return base + tail
}

// CleanPath checks a path from the top of a pool, and returns it without
// the slashes at its ends.
func CleanPath(path string) (string, error) {
	clean := strings.Trim(path, "/")
	for part := range strings.SplitSeq(clean, "/") {
		if part == "." || part == ".." || part == "" && clean != "" || strings.ContainsRune(part, 0) || !utf8.ValidString(part) {
			return "", fmt.Errorf("%q is no path from the top of the pool, such as @home: %w", path, ErrInvalid)
		}
	}
	return clean, nil
}
