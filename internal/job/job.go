// Package job keeps the jobs of the daemon: what was asked for, by whom, and
// what became of it. The history survives a restart.
package job

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// State is what a job is about.
type State string

// The states of a job. Those from Succeeded on are its end.
const (
	Waiting   State = "waiting" // has not begun, or may not go on now
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Ended reports whether nothing more will happen.
func (s State) Ended() bool { return s == Succeeded || s == Failed || s == Cancelled }

func (s State) known() bool { return s == Waiting || s == Running || s.Ended() }

// Job is one piece of work on a pool.
type Job struct {
	ID   string     `json:"id"`
	Kind string     `json:"kind"` // such as scrub
	Pool btrfs.UUID `json:"pool"`
	// Requester is who asked for it, such as "unix socket, uid 0" or schedule.
	Requester string    `json:"requester"`
	State     State     `json:"state"`
	Reason    string    `json:"reason,omitempty"` // why it waits, or ended as it did; a sentence
	Created   time.Time `json:"created"`
	Ended     time.Time `json:"ended,omitzero"`
	// Request and Result are what was asked for and what came out, in the form
	// of the kind of job.
	Request json.RawMessage `json:"request,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
}

// Event is something that happened.
type Event struct {
	ID   uint64 `json:"id"`   // rises by one with each event of the process
	Type string `json:"type"` // job or scrub
	Data any    `json:"data"`
}

// subscriberEvents is how many events a subscriber may fall behind before it
// loses the oldest.
const subscriberEvents = 64

const fileName = "jobs.jsonl"

// compactFrom is how many lines the file has at least before it is compacted.
const compactFrom = 200

// Store holds the jobs. It is safe for concurrent use.
type Store struct {
	limit int

	mu          sync.Mutex
	journal     *state.Journal // of jobs as they became; nil: nothing is kept
	lines       int
	jobs        []Job // the oldest first
	events      uint64
	subscribers map[chan Event]bool
}

// ErrNotFound is returned for a job that there is not.
var ErrNotFound = errors.New("there is no such job")

// Open reads the history. It keeps at most limit ended jobs of each kind. With an
// error of kind state.ErrDamaged the store is good, but for the jobs that cannot
// be. Jobs that had not ended stay as they were: whoever runs them takes them up
// again or ends them.
func Open(dir *state.Dir, limit int) (*Store, error) {
	s := &Store{limit: limit, subscribers: make(map[chan Event]bool)}
	if dir == nil {
		return s, nil
	}
	index := make(map[string]int)
	var err error
	s.journal, err = dir.OpenJournal(fileName, func(line []byte) error {
		var j Job
		if err := json.Unmarshal(line, &j); err != nil {
			return err
		}
		if j.ID == "" || !j.State.known() {
			return fmt.Errorf("job %q of state %q cannot be", j.ID, j.State)
		}
		s.lines++
		if i, known := index[j.ID]; known {
			s.jobs[i] = j
		} else {
			index[j.ID] = len(s.jobs)
			s.jobs = append(s.jobs, j)
		}
		return nil
	})
	if s.journal == nil {
		return nil, err
	}
	s.forget()
	return s, err
}

// Create adds a job that waits. It is on the disk when Create returns.
func (s *Store) Create(kind string, pool btrfs.UUID, requester string, request any) (Job, error) {
	j, err := s.Add(kind, pool, requester, request)
	if err == nil {
		err = s.Sync()
	}
	return j, err
}

// Add adds a job that waits. It outlives the process, and after Sync a crash of
// the machine.
func (s *Store) Add(kind string, pool btrfs.UUID, requester string, request any) (Job, error) {
	text, err := json.Marshal(request)
	if err != nil {
		return Job{}, fmt.Errorf("create a %s job: %w", kind, err)
	}
	var random [6]byte
	_, _ = rand.Read(random[:]) // never fails
	j := Job{
		ID: kind + "-" + hex.EncodeToString(random[:]), Kind: kind, Pool: pool, Requester: requester,
		State: Waiting, Created: time.Now().UTC(), Request: text,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs = append(s.jobs, j)
	if err := s.write(&j); err != nil {
		s.jobs = s.jobs[:len(s.jobs)-1]
		return Job{}, err
	}
	s.forget()
	s.publish("job", j)
	return j, nil
}

// Update changes a job. The change is on the disk when Update returns; it stands
// even where it could not be saved.
func (s *Store) Update(id string, change func(*Job)) (Job, error) {
	j, err := s.Change(id, change)
	if err == nil {
		err = s.Sync()
	}
	return j, err
}

// Change is Update, but that the change is on the disk only after Sync.
func (s *Store) Change(id string, change func(*Job)) (Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.jobs, func(j Job) bool { return j.ID == id })
	if i < 0 {
		return Job{}, fmt.Errorf("job %s: %w", id, ErrNotFound)
	}
	change(&s.jobs[i])
	if s.jobs[i].State.Ended() && s.jobs[i].Ended.IsZero() {
		s.jobs[i].Ended = time.Now().UTC()
	}
	j := s.jobs[i]
	s.publish("job", j)
	return j, s.write(&j)
}

// Sync returns when all jobs are on the disk as they are.
func (s *Store) Sync() error {
	if s.journal == nil {
		return nil
	}
	return s.journal.Sync()
}

// Begin says that a job runs. That is not kept: after a crash it is one that has
// not ended, whether it waited or ran.
func (s *Store) Begin(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.jobs {
		if s.jobs[i].ID == id {
			s.jobs[i].State = Running
			s.publish("job", s.jobs[i])
		}
	}
}

// Get returns a job.
func (s *Store) Get(id string) (Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.jobs {
		if j.ID == id {
			return j, nil
		}
	}
	return Job{}, fmt.Errorf("job %s: %w", id, ErrNotFound)
}

// List returns all jobs, the newest first.
func (s *Store) List() []Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	jobs := slices.Clone(s.jobs)
	slices.Reverse(jobs)
	slices.SortStableFunc(jobs, func(a, b Job) int { return cmp.Compare(b.Created.UnixNano(), a.Created.UnixNano()) })
	return jobs
}

// Publish sends an event to all subscribers. It never waits for one.
func (s *Store) Publish(kind string, data any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.publish(kind, data)
}

func (s *Store) publish(kind string, data any) {
	s.events++
	e := Event{ID: s.events, Type: kind, Data: data}
	for ch := range s.subscribers {
		select {
		case ch <- e:
			continue
		default:
		}
		// It is slow: it loses the oldest event. Its ids tell it so.
		select {
		case <-ch:
		default:
		}
		select {
		case ch <- e:
		default:
		}
	}
}

// Subscribe returns the events from now on, until stop is called.
func (s *Store) Subscribe() (events <-chan Event, stop func()) {
	ch := make(chan Event, subscriberEvents)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers[ch] = true
	return ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subscribers, ch)
	}
}

// forget drops the oldest ended jobs over the limit of their kind: those of each
// hour must not push out the result of the scrub of a month.
func (s *Store) forget() {
	ended := make(map[string]int)
	for i := len(s.jobs) - 1; i >= 0; i-- {
		if !s.jobs[i].State.Ended() {
			continue
		}
		if ended[s.jobs[i].Kind]++; ended[s.jobs[i].Kind] > s.limit {
			s.jobs = slices.Delete(s.jobs, i, i+1)
		}
	}
}

// write adds a job, which s.jobs has, to the file as it is now.
func (s *Store) write(j *Job) error {
	if s.journal == nil {
		return nil
	}
	if err := s.journal.Write(j); err != nil {
		return err
	}
	s.lines++
	if s.lines < compactFrom || s.lines < 2*len(s.jobs) {
		return nil
	}
	values := make([]any, len(s.jobs))
	for i := range s.jobs {
		values[i] = &s.jobs[i]
	}
	// What was written stands; where this fails it is tried again with the next.
	if s.journal.Rewrite(values) == nil {
		s.lines = len(values)
	}
	return nil
}
