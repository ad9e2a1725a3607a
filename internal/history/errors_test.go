package history_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

func counting(counts map[uint64]btrfs.Opt[btrfs.ErrorCounts]) *btrfs.Pool {
	p := &btrfs.Pool{UUID: pool}
	for id, c := range counts {
		p.Devices = append(p.Devices, btrfs.Device{ID: id, Errors: c})
	}
	return p
}

func TestErrorCountersAreDated(t *testing.T) {
	dir := state.NewDir(t.TempDir())
	begin := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	file := dir.Path("history-" + pool.String() + ".errors.json")
	var store *history.Store
	var written int
	var last os.FileInfo
	for i, step := range []struct {
		counts  btrfs.Opt[btrfs.ErrorCounts]
		watched int // the step that it is watched since, and the one that it rose at
		rose    int
		writes  bool
	}{
		0: {counts: btrfs.Some(btrfs.ErrorCounts{Read: 5}), rose: -1, writes: true}, // from before
		1: {counts: btrfs.Some(btrfs.ErrorCounts{Read: 5}), rose: -1},
		2: {rose: -1}, // it does not tell
		3: {counts: btrfs.Some(btrfs.ErrorCounts{Read: 5, Flush: 1}), rose: 3, writes: true},
		4: {counts: btrfs.Some(btrfs.ErrorCounts{Read: 5, Flush: 1}), rose: 3},
		5: {counts: btrfs.Some(btrfs.ErrorCounts{}), rose: 3, writes: true}, // btrfs device stats -z
		6: {counts: btrfs.Some(btrfs.ErrorCounts{Generation: 1}), rose: 6, writes: true},
		7: {counts: btrfs.Some(btrfs.ErrorCounts{Corruption: 2}), rose: 7, writes: true},
	} {
		var err error
		if store, err = history.Open(log.NewNopLogger(), dir, time.Now); err != nil { // a restart in between
			t.Fatal(err)
		}
		now := begin.Add(time.Duration(i) * history.Step)
		if err := store.NoteErrors(counting(map[uint64]btrfs.Opt[btrfs.ErrorCounts]{1: step.counts, 2: btrfs.Some(btrfs.ErrorCounts{})}), now, time.Hour+time.Duration(i)*history.Step); err != nil {
			t.Fatal(err)
		}
		want := history.DeviceErrors{Counts: step.counts.Value, Watched: begin}
		if !step.counts.Known {
			want.Counts = btrfs.ErrorCounts{Read: 5}
		}
		if step.rose >= 0 {
			want.Rose = begin.Add(time.Duration(step.rose) * history.Step)
		}
		if got := store.DeviceErrors(pool); len(got) != 2 || got[1] != want || !got[2].Rose.IsZero() {
			t.Errorf("step %d: %+v, want %+v", i, got, want)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if new := last == nil || !os.SameFile(info, last); new {
			written++
			if !step.writes {
				t.Errorf("step %d wrote the file, and nothing had changed", i)
			}
		} else if step.writes {
			t.Errorf("step %d wrote nothing", i)
		}
		last = info
	}
	if written != 5 {
		t.Errorf("it was written %d times", written)
	}
	if got := store.DeviceErrors(btrfs.UUID{9}); got != nil {
		t.Errorf("a pool that nobody knows has %v", got)
	}
}

func TestDamagedErrorCountersBeginAnew(t *testing.T) {
	for name, content := range map[string]string{"torn": `{"1":{"counts":{"write":`, "of somebody else": `{"1":{"colour":"green"}}`} {
		dir, logged := state.NewDir(t.TempDir()), new(bytes.Buffer)
		file := "history-" + pool.String() + ".errors.json"
		if err := os.WriteFile(dir.Path(file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		store, err := history.Open(log.NewLogfmtLogger(logged), dir, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now().Round(0)
		if err := store.NoteErrors(counting(map[uint64]btrfs.Opt[btrfs.ErrorCounts]{1: btrfs.Some(btrfs.ErrorCounts{Read: 5})}), now, upTime()); err != nil {
			t.Fatal(err)
		}
		if got := store.DeviceErrors(pool)[1]; !got.Watched.Equal(now) || !got.Rose.IsZero() {
			t.Errorf("%s: %+v", name, got)
		}
		if _, err := os.Stat(dir.Path(file + ".damaged")); err != nil || !strings.Contains(logged.String(), "not known any more") {
			t.Errorf("%s: the damaged file: %v, log %s", name, err, logged)
		}
	}
}

// A state directory that is full costs what is remembered nothing but a restart.
func TestErrorCountersThatCannotBeWrittenAreTriedAgain(t *testing.T) {
	path := t.TempDir() + "/state"
	dir := state.NewDir(path)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	store, err := history.Open(log.NewNopLogger(), dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	note := func(read uint64, now time.Time) error {
		return store.NoteErrors(counting(map[uint64]btrfs.Opt[btrfs.ErrorCounts]{1: btrfs.Some(btrfs.ErrorCounts{Read: read})}), now, now.Sub(time.Unix(0, 0)))
	}
	begin := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	if err := note(1, begin); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := note(2, begin.Add(time.Hour)); err == nil {
		t.Error("it is written where nothing can be")
	}
	if got := store.DeviceErrors(pool)[1]; !got.Rose.Equal(begin.Add(time.Hour)) {
		t.Errorf("meanwhile it is known that %+v", got)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	if err := note(2, begin.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if store, err = history.Open(log.NewNopLogger(), dir, time.Now); err != nil {
		t.Fatal(err)
	}
	if err := note(2, begin.Add(3*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := store.DeviceErrors(pool)[1]; !got.Rose.Equal(begin.Add(time.Hour)) {
		t.Errorf("after a restart it is known that %+v", got)
	}
}

func TestErrorCountersGoWithTheHistory(t *testing.T) {
	dir := state.NewDir(t.TempDir())
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	store, err := history.Open(log.NewNopLogger(), dir, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Add(pool, history.Sample{Time: now, Used: btrfs.Some[uint64](1)}); err != nil {
		t.Fatal(err)
	}
	if err := store.NoteErrors(counting(map[uint64]btrfs.Opt[btrfs.ErrorCounts]{1: btrfs.Some(btrfs.ErrorCounts{})}), now, upTime()); err != nil {
		t.Fatal(err)
	}
	now = now.Add(history.Span + time.Hour)
	if err := store.RemoveOld(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir.Path("history-" + pool.String() + ".errors.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of a pool that is gone: %v", err)
	}
}

// A machine without a clock of its own begins with some time of before, and learns the
// right one from the network minutes later: what rose meanwhile rose now.
func TestErrorsAreDatedAnewWhenTheClockIsSetRight(t *testing.T) {
	right := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for name, off := range map[string]time.Duration{"behind": -10 * day, "ahead": 365 * day, "by no step": history.Step / 2} {
		dir := state.NewDir(t.TempDir())
		open := func() *history.Store {
			store, err := history.Open(log.NewNopLogger(), dir, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			return store
		}
		note := func(store *history.Store, read uint64, now time.Time, up time.Duration) history.DeviceErrors {
			t.Helper()
			if err := store.NoteErrors(counting(map[uint64]btrfs.Opt[btrfs.ErrorCounts]{1: btrfs.Some(btrfs.ErrorCounts{Read: read})}), now, up); err != nil {
				t.Fatal(err)
			}
			return store.DeviceErrors(pool)[1]
		}
		store := open()
		long := right.Add(-300 * day)
		note(store, 0, long, time.Hour) // by the boot before
		store = open()
		note(store, 7, right.Add(off), time.Minute)
		got := note(store, 7, right.Add(history.Step), time.Minute+history.Step)
		want := right
		if off.Abs() < history.Step {
			want = right.Add(off) // near enough, and not written again
		}
		if !got.Rose.Equal(want) || !got.Watched.Equal(long) {
			t.Errorf("%s: they rose at %s, and are watched since %s; want %s and %s", name, got.Rose, got.Watched, want, long)
		}
		// A machine that slept is no clock that was set.
		got = note(store, 7, right.Add(3*day), time.Minute+3*day)
		if !got.Rose.Equal(want) {
			t.Errorf("%s: after three days they rose at %s", name, got.Rose)
		}
		if got := note(open(), 7, right.Add(4*day), time.Minute); !got.Rose.Equal(want) {
			t.Errorf("%s: after a restart they rose at %s", name, got.Rose)
		}
	}
}
