package retention

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// history takes snapshots at times.
func history(location *time.Location, times ...time.Time) []Snapshot {
	var all []Snapshot
	for _, t := range times {
		all = append(all, Next(all, t, nil, false, location))
	}
	return all
}

func every(start time.Time, step time.Duration, n int) []time.Time {
	var times []time.Time
	for i := range n {
		times = append(times, start.Add(time.Duration(i)*step))
	}
	return times
}

func kept(p Policy, all []Snapshot, location *time.Location) []Snapshot {
	var out []Snapshot
	for i, d := range Apply(p, all, location) {
		if d.Keep {
			out = append(out, all[i])
		}
	}
	return out
}

func taken(snapshots []Snapshot, location *time.Location) string {
	var names []string
	for _, s := range snapshots {
		names = append(names, s.Taken.In(location).Format("0102T1504"))
	}
	return strings.Join(names, " ")
}

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	location, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return location
}

func TestRulesKeepTheFirstOfEachPeriod(t *testing.T) {
	// From Saturday 28 February 2026 on, every 6 hours for 11 days.
	all := history(time.UTC, every(time.Date(2026, 2, 28, 3, 0, 0, 0, time.UTC), 6*time.Hour, 44)...)
	for _, c := range []struct {
		name   string
		policy Policy
		want   string
	}{
		{"last", Policy{KeepLast: 3}, "0310T0900 0310T1500 0310T2100"},
		{"hourly", Policy{Hourly: 2}, "0310T1500 0310T2100"},
		{"daily", Policy{Daily: 3}, "0308T0300 0309T0300 0310T0300 0310T2100"},
		{"weekly", Policy{Weekly: 2}, "0302T0300 0309T0300 0310T2100"},
		{"monthly", Policy{Monthly: 2}, "0228T0300 0301T0300 0310T2100"},
		{"yearly", Policy{Yearly: 5}, "0228T0300 0310T2100"},
		{"several", Policy{KeepLast: 1, Daily: 2, Monthly: 1}, "0301T0300 0309T0300 0310T0300 0310T2100"},
		{"at least one", Policy{Yearly: 1}, "0228T0300 0310T2100"},
		{"minimum", Policy{Yearly: 1, KeepMin: 3}, "0228T0300 0310T0900 0310T1500 0310T2100"},
		{"age", Policy{MaxAge: 12 * time.Hour}, "0310T0900 0310T1500 0310T2100"},
		{"rules and age", Policy{Daily: 30, MaxAge: 36 * time.Hour}, "0310T0300 0310T2100"},
		{"age, but the minimum", Policy{MaxAge: time.Hour, KeepMin: 2}, "0310T1500 0310T2100"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := taken(kept(c.policy, all, time.UTC), time.UTC); got != c.want {
				t.Errorf("kept %s, want %s", got, c.want)
			}
		})
	}
	if n := len(kept(Policy{}, all, time.UTC)); n != len(all) {
		t.Errorf("no rule keeps %d of %d", n, len(all))
	}
}

func TestReasonsAreGiven(t *testing.T) {
	all := history(time.UTC, every(time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), time.Hour, 3)...)
	all = append(all[:1], Next(all[:1], all[1].Taken, nil, true, time.UTC), Next(all[:1], all[2].Taken, nil, false, time.UTC))
	var got []string
	for _, d := range Apply(Policy{KeepLast: 1, Daily: 1, MaxAge: 90 * time.Minute}, all, time.UTC) {
		got = append(got, fmt.Sprintf("%t: %s", d.Keep, d.String()))
	}
	want := []string{"false: older than max_age (1h30m0s)", "true: pinned", "true: last"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestClockThatGoesBackAnHourLosesNothing(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	// Each half an hour through the night of 25 October 2026, in which 02:00 to
	// 03:00 comes twice.
	all := history(berlin, every(time.Date(2026, 10, 24, 22, 0, 0, 0, time.UTC), 30*time.Minute, 10)...)
	got := kept(Policy{Hourly: 5}, all, berlin)
	if len(got) != 6 { // the first of each hour, and the newest
		t.Errorf("kept %s", taken(got, time.UTC))
	}
	// One a day at half past midnight keeps one for each day.
	for _, name := range []string{"Europe/Berlin", "Europe/London", "America/New_York", "Australia/Lord_Howe"} {
		location := zone(t, name)
		var times []time.Time
		for day := range 400 {
			times = append(times, time.Date(2026, 1, 1+day, 0, 30, 0, 0, location))
		}
		if got := kept(Policy{Daily: 300}, history(location, times...), location); len(got) != 300 {
			t.Errorf("%s: kept %d of 300 days", name, len(got))
		}
	}
}

// TestClockThatJumpsPrunesNothing sets the clock for some snapshots: what was
// kept without that is kept with it, but for the periods that the jump itself
// adds while it lasts.
func TestClockThatJumpsPrunesNothing(t *testing.T) {
	const year = 365 * 24 * time.Hour
	policy := Policy{KeepLast: 2, Hourly: 6, Daily: 7, Weekly: 4, Monthly: 3, MaxAge: 60 * 24 * time.Hour}
	right := every(time.Date(2025, 11, 3, 0, 7, 0, 0, time.UTC), 8*time.Hour, 300)
	since := 8 * time.Hour
	for name, jump := range map[string]time.Duration{
		"a year on": year, "ten years on": 10 * year, "a year back": -year, "a second back": -time.Second, "to 1970": right[0].Sub(time.Unix(0, 0)) * -1,
	} {
		t.Run(name, func(t *testing.T) {
			// The clock is wrong from snapshot 240 to 249, or for good.
			for _, until := range []int{250, len(right)} {
				var all, plain []Snapshot
				for i, at := range right {
					shown := at
					if i >= 240 && i < until {
						shown = at.Add(jump)
					}
					all = append(all, Next(all, shown, &since, false, time.UTC))
					plain = append(plain, Next(plain, at, &since, false, time.UTC))
				}
				// Pruned after each one, as it is.
				left, leftPlain := make(map[int]bool), make(map[int]bool)
				for n := 1; n <= len(all); n++ {
					prune(policy, all, left, n)
					prune(policy, plain, leftPlain, n)
				}
				// At most one day and one week more count as long as the clock is
				// ahead; with that granted, nothing is missing.
				generous := policy
				generous.Hourly, generous.Daily, generous.Weekly, generous.Monthly = 4, 3, 2, 1
				for i, d := range Apply(generous, plain, time.UTC) {
					if d.Keep && i < 240 && !left[i] {
						t.Errorf("until %d: snapshot %d (%s) is gone, which the rules keep (%s)", until, i, right[i], d.String())
					}
				}
				for i := len(all) - 2; i < len(all); i++ {
					if !left[i] {
						t.Errorf("until %d: one of the newest is gone", until)
					}
				}
				if len(left) > 3*len(leftPlain) {
					t.Errorf("until %d: %d are left, %d without the jump", until, len(left), len(leftPlain))
				}
			}
		})
	}
}

// prune prunes what is left of the first n snapshots, the nth of them new.
func prune(p Policy, all []Snapshot, left map[int]bool, n int) {
	left[n-1] = true
	var indices []int
	var some []Snapshot
	for i := range n {
		if left[i] {
			indices = append(indices, i)
			some = append(some, all[i])
		}
	}
	for k, d := range Apply(p, some, time.UTC) {
		if !d.Keep {
			delete(left, indices[k])
		}
	}
}

func randomPolicy(rng *rand.Rand) Policy {
	n := func(most int) int {
		if rng.IntN(3) == 0 {
			return 0
		}
		return rng.IntN(most + 1)
	}
	p := Policy{KeepLast: n(4), Hourly: n(30), Daily: n(14), Weekly: n(6), Monthly: n(6), Yearly: n(3), KeepMin: n(3)}
	if rng.IntN(4) == 0 {
		p.MaxAge = time.Duration(1+rng.IntN(200)) * 24 * time.Hour
	}
	return p
}

// randomHistory has gaps, bursts, and a clock that is set now and then.
func randomHistory(rng *rand.Rand, n int, jumps bool, location *time.Location) []Snapshot {
	now := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(rng.IntN(1e6)) * time.Minute)
	all := history(location, now)
	for len(all) < n {
		step := time.Duration(rng.ExpFloat64() * float64([]time.Duration{time.Minute, time.Hour, 8 * time.Hour, 48 * time.Hour}[rng.IntN(4)]))
		now = now.Add(step)
		since := &step
		if jumps && rng.IntN(20) == 0 {
			now = now.Add(time.Duration(rng.NormFloat64() * float64(2000*time.Hour)))
		}
		if rng.IntN(10) == 0 {
			since = nil // a restart
		}
		all = append(all, Next(all, now, since, rng.IntN(30) == 0, location))
	}
	return all
}

func forRandom(t *testing.T, test func(t *testing.T, rng *rand.Rand, location *time.Location)) {
	locations := []*time.Location{time.UTC, zone(t, "Europe/Berlin"), zone(t, "America/New_York"), zone(t, "Australia/Lord_Howe"), zone(t, "Asia/Kathmandu")}
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 7))
		test(t, rng, locations[rng.IntN(len(locations))])
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestRuleKeepsWhatItSays counts the periods in another way: by what the clock
// on the wall shows.
func TestRuleKeepsWhatItSays(t *testing.T) {
	forRandom(t, func(t *testing.T, rng *rand.Rand, location *time.Location) {
		p := randomPolicy(rng)
		p.MaxAge = 0
		all := randomHistory(rng, 1+rng.IntN(120), false, location)
		decisions := Apply(p, all, location)
		week := func(s time.Time) string { y, w := s.ISOWeek(); return fmt.Sprint(y, w) }
		for _, r := range []struct {
			name  string
			count int
			key   func(time.Time) string
		}{
			{"hourly", p.Hourly, func(s time.Time) string { return s.Format("2006-01-02 15 -0700") }},
			{"daily", p.Daily, func(s time.Time) string { return s.Format(time.DateOnly) }},
			{"weekly", p.Weekly, week},
			{"monthly", p.Monthly, func(s time.Time) string { return s.Format("2006-01") }},
			{"yearly", p.Yearly, func(s time.Time) string { return s.Format("2006") }},
		} {
			first := make(map[string]int)
			var order []string
			for i, s := range all {
				if s.Pinned {
					continue
				}
				k := r.key(s.Taken.In(location))
				if _, known := first[k]; !known {
					first[k] = i
					order = append(order, k)
				}
			}
			for _, k := range order[max(len(order)-r.count, 0):] {
				if d := decisions[first[k]]; !d.Keep || !slices.Contains(d.Reasons, r.name) {
					t.Errorf("%s %d: the first of %s is not kept by it: %+v", r.name, r.count, k, d)
				}
			}
		}
	})
}

// TestPruningTwiceIsPruningOnce prunes what was pruned, and after each snapshot
// instead of once.
func TestPruningTwiceIsPruningOnce(t *testing.T) {
	forRandom(t, func(t *testing.T, rng *rand.Rand, location *time.Location) {
		p := randomPolicy(rng)
		all := randomHistory(rng, 1+rng.IntN(100), true, location)
		once := kept(p, all, location)
		if twice := kept(p, once, location); !slices.Equal(once, twice) {
			t.Errorf("once %s, twice %s", taken(once, location), taken(twice, location))
		}
		// Deleting only some of what is to go changes nothing for the others.
		decisions := Apply(p, all, location)
		var some []Snapshot
		for i, s := range all {
			if decisions[i].Keep || rng.IntN(2) == 0 {
				some = append(some, s)
			}
		}
		if after := kept(p, some, location); !slices.Equal(once, after) {
			t.Errorf("once %s, in two runs %s", taken(once, location), taken(after, location))
		}
	})
}

// TestPruningOftenIsPruningSeldom has a clock that is right: then also what
// comes later changes nothing for what was pruned before.
func TestPruningOftenIsPruningSeldom(t *testing.T) {
	forRandom(t, func(t *testing.T, rng *rand.Rand, location *time.Location) {
		p := randomPolicy(rng)
		if !p.counts() {
			p.KeepLast = 1 // else only the age counts, and the newest
		}
		all := randomHistory(rng, 1+rng.IntN(60), false, location)
		seldom := kept(p, all, location)
		var often []Snapshot
		for i, s := range all {
			often = append(often, s)
			if rng.IntN(2) == 0 || i == len(all)-1 {
				often = kept(p, often, location)
			}
		}
		if !slices.Equal(seldom, often) {
			t.Errorf("%+v: seldom %s, often %s", p, taken(seldom, location), taken(often, location))
		}
	})
}

// TestAnotherTimeZonePrunesNothing decides in one zone on what was taken in
// another.
func TestAnotherTimeZonePrunesNothing(t *testing.T) {
	forRandom(t, func(t *testing.T, rng *rand.Rand, location *time.Location) {
		p := randomPolicy(rng)
		all := randomHistory(rng, 1+rng.IntN(100), false, location)
		here := Apply(p, all, location)
		for i, d := range Apply(p, all, zone(t, "Pacific/Kiritimati")) {
			if here[i].Keep && !d.Keep {
				t.Errorf("%+v: snapshot %d is kept in %s (%s), and not in another zone (%s)", p, i, location, here[i].String(), d.String())
			}
		}
	})
}

func TestNewestIsAlwaysKept(t *testing.T) {
	forRandom(t, func(t *testing.T, rng *rand.Rand, location *time.Location) {
		p := randomPolicy(rng)
		all := randomHistory(rng, 1+rng.IntN(60), true, location)
		decisions := Apply(p, all, location)
		left := max(p.KeepMin, p.KeepLast, 1)
		for i := len(all) - 1; i >= 0 && left > 0; i-- {
			if all[i].Pinned {
				continue
			}
			left--
			if !decisions[i].Keep && (p.MaxAge == 0 || max(p.KeepMin, 1) > max(p.KeepMin, p.KeepLast, 1)-left-1) {
				t.Errorf("%+v: snapshot %d of %d is pruned: %s", p, i, len(all), decisions[i].String())
			}
		}
		for i, d := range decisions {
			if len(d.Reasons) == 0 || all[i].Pinned && !d.Keep {
				t.Errorf("snapshot %d: %+v", i, d)
			}
		}
	})
}
