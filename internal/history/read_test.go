package history_test

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// losing fills the history with days in which the pool lost 1 GB a day, and returns a
// reading of some time later, when it has lost as much more.
func (b *bench) losing(days int, later time.Duration) *collector.PoolReading {
	b.t.Helper()
	const free = 100e9
	at := func(t time.Time) uint64 { return uint64(free - 1e9*t.Sub(begin).Hours()/24) }
	for end := begin.Add(time.Duration(days) * day); !b.clock.After(end); b.clock = b.clock.Add(history.Step) {
		if err := b.store.Add(pool, history.Sample{Time: b.clock, FreeExpected: btrfs.Some(at(b.clock))}); err != nil {
			b.t.Fatal(err)
		}
	}
	b.clock = b.clock.Add(later - history.Step)
	r := whole(pool)
	r.Facts.Report = &capacity.Report{FreeExpected: at(b.clock)}
	return &r
}

func (b *bench) readForecast(r *collector.PoolReading) (history.Forecast, bool, error) {
	return history.ReadForecast(state.NewDir(b.dir), r, b.clock)
}

func TestForecastBesideADaemonIsItsOwn(t *testing.T) {
	b := newBench(t)
	now := b.losing(10, 0)
	want, ok := b.store.Forecast(pool)
	got, gotOK, err := b.readForecast(now)
	if !ok || !gotOK || err != nil || got != want {
		t.Errorf("beside the daemon it is %+v (%t, %v), the daemon says %+v (%t)", got, gotOK, err, want, ok)
	}
}

func TestForecastGoesOnWhereTheDaemonDoesNot(t *testing.T) {
	b := newBench(t)
	now := b.losing(10, 2*day)
	if f, ok := b.store.Forecast(pool); ok {
		t.Errorf("the daemon has no late sample, and forecasts %+v", f)
	}
	f, ok, err := b.readForecast(now)
	if days := f.DaysToFull.Value; !ok || err != nil || f.Time != b.clock || f.Source != history.SourceLocal || days < 87.9 || days > 88.1 {
		t.Errorf("with a reading of now it is %+v (%t, %v), want 88 days", f, ok, err)
	}
	b.clock = b.clock.Add(20 * day)
	if f, ok, err := b.readForecast(now); ok || err != nil {
		t.Errorf("three weeks later it is %+v (%v)", f, err)
	}
	// A pool that is not mounted now.
	b.clock = b.clock.Add(-20 * day)
	if f, ok, err := b.readForecast(&collector.PoolReading{UUID: pool}); ok || err != nil {
		t.Errorf("without a reading it is %+v (%v)", f, err)
	}
}

func TestReadingAForecastLeavesEverythingAsItIs(t *testing.T) {
	b := newBench(t)
	now := b.losing(2, 0)
	other := whole(btrfs.UUID{9})
	if f, ok, err := b.readForecast(&other); ok || err != nil {
		t.Errorf("of a pool without a history it is %+v (%v)", f, err)
	}
	good, err := os.ReadFile(b.path())
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(good)
	damaged[headerSize-1]++ // says nothing
	damaged[20]++
	if err := os.WriteFile(b.path(), damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if f, ok, err := b.readForecast(now); ok || err == nil || !strings.Contains(err.Error(), pool.String()) || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("of a damaged file it is %+v (%t, %v)", f, ok, err)
	}
	after, err := os.ReadFile(b.path())
	if err != nil || !bytes.Equal(after, damaged) {
		t.Errorf("the file has changed (%v)", err)
	}
	names, err := os.ReadDir(b.dir)
	if err != nil || len(names) != 1 {
		t.Errorf("the directory has %v (%v)", names, err)
	}
	// As root anybody may; so a directory stands for what cannot be read.
	if err := os.Remove(b.path()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(b.path(), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := b.readForecast(now); ok || err == nil {
		t.Errorf("of a directory there is an answer (%v)", err)
	}
}
