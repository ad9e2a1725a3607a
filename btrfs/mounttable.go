package btrfs

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// ErrNoAnswer is wrapped by the error of what was waited for long enough.
var ErrNoAnswer = errors.New("no answer: a disk may hang (see the kernel log)")

// MountTable reads the mount table, which can hang with a disk of any pool (see
// Client.Mounts), for those who cannot wait.
type MountTable struct {
	read func() ([]Mount, error)

	mu      sync.Mutex
	reading *tableReading // under way; nil if none is
	last    []Mount       // what was found last
	found   time.Time     // when
}

// tableReading is a reading of the table, shared by all who ask meanwhile.
type tableReading struct {
	started time.Time
	done    chan struct{} // closed when mounts and err are set
	mounts  []Mount
	err     error
}

// NewMountTable returns the table that is read by a function such as Client.Mounts.
func NewMountTable(read func() ([]Mount, error)) *MountTable { return &MountTable{read: read} }

// List returns what is mounted. Where that is not read within patience, it returns
// what was found last, and an error that wraps ErrNoAnswer. The patience is that
// with the reading, whoever asked for it first: nobody waits twice for a disk that
// hangs. List may be called from any goroutine, and the result is not to be changed.
func (t *MountTable) List(patience time.Duration) ([]Mount, error) {
	t.mu.Lock()
	r := t.reading
	if r == nil {
		r = &tableReading{started: time.Now(), done: make(chan struct{})}
		t.reading = r
		go func() {
			r.mounts, r.err = t.read()
			t.mu.Lock()
			t.reading = nil
			if r.err == nil || len(r.mounts) > 0 {
				t.last, t.found = r.mounts, r.started
			}
			t.mu.Unlock()
			close(r.done)
		}()
	}
	t.mu.Unlock()

	timer := time.NewTimer(patience - time.Since(r.started))
	defer timer.Stop()
	select {
	case <-r.done:
		return r.mounts, r.err
	case <-timer.C:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.found.IsZero() {
		return nil, fmt.Errorf("the mount table gives %w", ErrNoAnswer)
	}
	// The same text as long as it hangs: it is logged once.
	return t.last, fmt.Errorf("the mount table gives %w; the pools are those of %s", ErrNoAnswer, t.found.Format(time.DateTime))
}

// Find returns the mount of a filesystem that can be reached, nil where there is
// none. An error is that of List, where the filesystem was not found in spite of it.
func (t *MountTable) Find(uuid UUID, patience time.Duration) (*Mount, error) {
	mounts, err := t.List(patience)
	i := slices.IndexFunc(mounts, func(m Mount) bool { return m.UUID == uuid && len(m.Points) > 0 })
	if i >= 0 {
		return &mounts[i], nil
	}
	return nil, err
}
