package snapshot_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/schedule"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
	"github.com/btrfs-governor/btrfs-governor/snapshot/retention"
)

// steppedClock goes on only when the test lets it, and stands still while the
// runner works: a slow machine changes nothing.
type steppedClock struct {
	mu    sync.Mutex
	now   time.Time
	start time.Time
	alarm chan time.Time
	at    time.Time
}

func (c *steppedClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *steppedClock) Uptime() (string, time.Duration) { return "boot", c.Now().Sub(c.start) }

func (c *steppedClock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alarm, c.at = make(chan time.Time, 1), c.now.Add(d)
	return c.alarm
}

// waits reports whether the runner waits for the clock.
func (c *steppedClock) waits() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.alarm != nil
}

// step goes on to the time that the runner waits for; false if it waits for none.
func (c *steppedClock) step() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.alarm == nil {
		return false
	}
	c.now = c.at
	c.alarm <- c.now
	c.alarm = nil
	return true
}

// TestDayOfScheduleIsAsForetold runs 24 hours of a schedule on a real pool, at
// 1,000 times the speed of a clock or more.
func TestDayOfScheduleIsAsForetold(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	berlin, err := time.LoadLocation("Europe/Berlin")
	must(t, err)
	times, err := schedule.ParseTimes("*/15 * * * *", berlin)
	must(t, err)
	// The night in which the clock goes back an hour.
	begin := time.Date(2026, 10, 24, 12, 7, 3, 0, time.UTC)
	clock := &steppedClock{now: begin, start: begin.Add(-time.Hour)}
	s := settings(pool, func(s *snapshot.PoolSettings) {
		s.Schedule = times
		s.Retention = retention.Policy{KeepLast: 3, Hourly: 8, Daily: 2}
	})
	s.Location = berlin
	r := start(t, t.TempDir(), s, func(c *snapshot.Config) { c.Clock = clock })
	r.settled(uuid)
	until := begin.Add(24 * time.Hour)
	foretold, err := r.Forecast(uuid, until)
	must(t, err)
	began := time.Now()
	for clock.Now().Before(until) {
		eventually(t, "the runner waits", func() bool { return r.Idle(uuid) && clock.step() })
	}
	eventually(t, "the runner waits once more", func() bool { return r.Idle(uuid) && clock.waits() })
	took := time.Since(began)
	if took > 24*time.Hour/1000 {
		t.Logf("slower than 1,000 times the clock")
	}

	names, _ := r.Ours(uuid)
	if there := inDirectory(t, pool); !sameNames(names, there) {
		t.Errorf("ours are %q, there are %q", names, there)
	}
	if len(foretold.Events) != 92 { // 02:00 to 03:00 comes twice, and the schedule once
		t.Errorf("%d times are foretold, want 92", len(foretold.Events))
	}
	if len(foretold.Left) < 20 {
		t.Errorf("foretold are only %q", foretold.Left)
	}
	// The runner looks at the clock every ten seconds.
	if got, want := minutes(t, names), minutes(t, foretold.Left); !slices.Equal(got, want) {
		t.Errorf("there are\n%q, foretold were\n%q", got, want)
	}
	made, failed := 0, 0
	for _, j := range r.jobs.List() {
		if j.Kind == snapshot.KindCreate {
			made++
		}
		if j.State != job.Succeeded {
			failed++
		}
	}
	if made != len(foretold.Events) || failed > 0 {
		t.Errorf("%d jobs, %d of them failed; want %d", made, failed, len(foretold.Events))
	}
	t.Logf("24 hours, %d jobs, %d snapshots left, in %.1f s: %.0f times the clock", made, len(names), took.Seconds(), 24*3600/took.Seconds())
}

// minutes returns the names up to the minute, sorted.
func minutes(t *testing.T, names []string) []string {
	t.Helper()
	var out []string
	for _, name := range names {
		if len(name) < 4 {
			t.Fatalf("name %q", name)
		}
		out = append(out, name[:len(name)-3])
	}
	slices.Sort(out)
	return out
}

// TestMissedRunIsCaughtUpOnce has the daemon off for some hours, and the pool
// unmounted.
func TestMissedRunIsCaughtUpOnce(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	times, err := schedule.ParseTimes("0 * * * *", time.UTC)
	must(t, err)
	clock := &steppedClock{now: time.Date(2026, 3, 7, 12, 30, 0, 0, time.UTC)}
	s := settings(pool, func(s *snapshot.PoolSettings) { s.Schedule = times })
	dir := t.TempDir()
	r := start(t, dir, s, func(c *snapshot.Config) { c.Clock = clock })
	count := func(want int, after string) {
		t.Helper()
		for range 3 { // a look is done when the one after the next may begin
			eventually(t, "the runner waits", func() bool { return r.Idle(uuid) && clock.step() })
		}
		eventually(t, "the runner is done", func() bool { return r.Idle(uuid) })
		if names, _ := r.Ours(uuid); len(names) != want {
			t.Errorf("%s there are %q, want %d", after, names, want)
		}
	}
	r.settled(uuid)
	count(0, "at first, before the first time,")
	r.stop()
	clock.set(clock.Now().Add(5 * time.Hour))
	r = start(t, dir, s, func(c *snapshot.Config) { c.Clock = clock })
	r.settled(uuid)
	count(2, "after five hours off")
	count(2, "right after that")
}

func (c *steppedClock) set(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now, c.alarm = now, nil
}
