package job

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

var pool = btrfs.UUID{1}

func open(t *testing.T, dir string, limit int) *Store {
	t.Helper()
	s, err := Open(state.NewDir(dir), limit)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, s *Store) Job {
	t.Helper()
	j, err := s.Create("scrub", pool, "test", map[string]string{"mode": "auto"})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func end(t *testing.T, s *Store, id string) {
	t.Helper()
	if _, err := s.Update(id, func(j *Job) { j.State, j.Reason = Succeeded, "No errors" }); err != nil {
		t.Fatal(err)
	}
}

func TestHistorySurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 10)
	ended, waiting := create(t, s), create(t, s)
	end(t, s, ended.ID)

	s = open(t, dir, 10)
	got, err := s.Get(ended.ID)
	if err != nil || got.State != Succeeded || got.Reason != "No errors" || got.Ended.IsZero() || string(got.Request) != `{"mode":"auto"}` {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := s.Get(waiting.ID); err != nil || got.State != Waiting || !got.Ended.IsZero() {
		t.Errorf("got %+v, %v", got, err)
	}
	if jobs := s.List(); len(jobs) != 2 || jobs[0].ID != waiting.ID {
		t.Errorf("the list is %+v, want the newest first", jobs)
	}
	if _, err := s.Get("scrub-0"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a job that there is not: %v", err)
	}
	if _, err := s.Update("scrub-0", func(*Job) {}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a change of a job that there is not: %v", err)
	}
}

func TestJobThatBeganIsNoJobThatEnded(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 10)
	j := create(t, s)
	events, stop := s.Subscribe()
	defer stop()
	s.Begin(j.ID)
	s.Begin("scrub-0") // which there is not
	if got, err := s.Get(j.ID); err != nil || got.State != Running {
		t.Errorf("got %+v, %v", got, err)
	}
	if e, ok := (<-events).Data.(Job); !ok || e.State != Running || len(events) > 0 {
		t.Errorf("the event is %+v, and %d more", e, len(events))
	}
	if got, err := open(t, dir, 10).Get(j.ID); err != nil || got.State.Ended() {
		t.Errorf("after a restart: %+v, %v", got, err)
	}
}

func TestOnlyTheNewestEndedJobsAreKept(t *testing.T) {
	s := open(t, t.TempDir(), 3)
	running := create(t, s)
	var last Job
	for range 10 {
		last = create(t, s)
		end(t, s, last.ID)
	}
	create(t, s)
	jobs := s.List()
	if len(jobs) != 5 || jobs[1].ID != last.ID || jobs[4].ID != running.ID {
		t.Errorf("%d jobs are kept: %+v", len(jobs), jobs)
	}
}

func TestDamagedHistoryLosesWhatIsDamaged(t *testing.T) {
	const good = `{"id":"good","kind":"scrub","state":"failed"}` + "\n"
	for name, text := range map[string]string{
		"no JSON": "[{", "no id": `{"state":"failed"}`, "unknown state": `{"id":"a","state":"happy"}`, "no object": "1",
	} {
		t.Run(name, func(t *testing.T) {
			dir := state.NewDir(t.TempDir())
			if err := dir.WriteFile(fileName, []byte(good+text+"\n"+good)); err != nil {
				t.Fatal(err)
			}
			s, err := Open(dir, 10)
			if !errors.Is(err, state.ErrDamaged) {
				t.Fatalf("got %v, want ErrDamaged", err)
			}
			if _, err := os.Stat(dir.Path(fileName + ".damaged")); err != nil {
				t.Error(err)
			}
			if jobs := s.List(); len(jobs) != 1 || jobs[0].ID != "good" {
				t.Errorf("the jobs are %+v", jobs)
			}
			create(t, s) // the store is good
		})
	}
}

// The file does not grow with each change, and is compacted without a loss.
func TestFileStaysSmall(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 5)
	waits := create(t, s)
	most := int64(0)
	for i := range 3 * compactFrom {
		j := create(t, s)
		end(t, s, j.ID)
		info, err := os.Stat(filepath.Join(dir, fileName))
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, info.Size())
		if i%50 == 0 {
			again := open(t, dir, 5).List()
			s.mu.Lock()
			s.forget() // as it is at the next job
			s.mu.Unlock()
			if got := s.List(); !reflect.DeepEqual(got, again) {
				t.Fatalf("after %d jobs there are\n%+v\nand after a restart\n%+v", i, got, again)
			}
		}
	}
	if jobs := s.List(); len(jobs) != 7 || jobs[6].ID != waits.ID {
		t.Errorf("%d jobs are left", len(jobs))
	}
	if most > compactFrom*400 {
		t.Errorf("the file had %d bytes", most)
	}
}

func TestSlowSubscriberLosesTheOldestAndHoldsUpNobody(t *testing.T) {
	s := open(t, t.TempDir(), 10)
	events, stop := s.Subscribe()
	for i := range 3 * subscriberEvents {
		s.Publish("scrub", i)
	}
	first := <-events
	if want := uint64(2*subscriberEvents + 1); first.ID != want {
		t.Errorf("the oldest event it still gets is %d, want %d", first.ID, want)
	}
	stop()
	stop()
	s.Publish("scrub", 0)
	if n := len(events); n != subscriberEvents-1 {
		t.Errorf("%d events wait after the stop, want %d", n, subscriberEvents-1)
	}
}

func TestStoreIsForManyAtOnce(t *testing.T) {
	s := open(t, t.TempDir(), 100)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, stop := s.Subscribe()
			defer stop()
			j, err := s.Create("scrub", pool, "test", nil)
			if err == nil {
				_, err = s.Update(j.ID, func(j *Job) { j.State = Running })
			}
			if err != nil {
				t.Error(err)
			}
			s.List()
		})
	}
	wg.Wait()
	if n := len(s.List()); n != 8 {
		t.Errorf("%d jobs, want 8", n)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte(`[{"id":"scrub-1","kind":"scrub","pool":"00000000-0000-0000-0000-000000000001","state":"running"}]`))
	f.Add([]byte(`[{"id":"","state":"running"}]`))
	path := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := state.NewDir(path)
		if err := dir.WriteFile(fileName, data); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir, 3)
		if err != nil && !errors.Is(err, state.ErrDamaged) {
			t.Fatalf("%q: %v", data, err)
		}
		if _, err := s.Create("scrub", pool, "fuzz", nil); err != nil {
			t.Errorf("%q: %v", data, err)
		}
	})
}
