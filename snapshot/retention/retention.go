// Package retention says which snapshots of a subvolume are kept. It is pure.
//
// It does not look at the clock. Periods are those in which snapshots were
// taken, counted from the newest one on: where a machine was off for a year, or
// its clock was ahead by one, nothing is pruned for it.
package retention

import (
	"fmt"
	"strings"
	"time"
)

// Policy says what is kept. Whatever at least one of its rules keeps, stays,
// unless it is older than MaxAge. The zero value keeps everything.
type Policy struct {
	// KeepLast keeps that many of the newest snapshots.
	KeepLast int `json:"keep_last,omitempty"`
	// The others keep the first snapshot of each of that many hours, days, weeks
	// (which begin on Monday), months and years that have one.
	Hourly  int `json:"hourly,omitempty"`
	Daily   int `json:"daily,omitempty"`
	Weekly  int `json:"weekly,omitempty"`
	Monthly int `json:"monthly,omitempty"`
	Yearly  int `json:"yearly,omitempty"`
	// MaxAge is the most by which a snapshot may be older than the newest, see
	// Snapshot.Elapsed; 0 is no bound.
	MaxAge time.Duration `json:"max_age,omitempty"`
	// KeepMin is how many of the newest snapshots stay whatever else says; at
	// least one does.
	KeepMin int `json:"keep_min,omitempty"`
}

// KeepsAll reports whether the policy prunes nothing.
func (p *Policy) KeepsAll() bool { return !p.counts() && p.MaxAge == 0 }

// counts reports whether a rule says what is kept.
func (p *Policy) counts() bool {
	return p.KeepLast > 0 || p.Hourly > 0 || p.Daily > 0 || p.Weekly > 0 || p.Monthly > 0 || p.Yearly > 0
}

// Snapshot is what matters of a snapshot. It is decided when it is taken, see
// Next, so that nothing that happens later to it or to others can change it.
type Snapshot struct {
	// Taken is when, by the clock of the machine.
	Taken time.Time
	// Epoch is one higher than that of the snapshot before where the clock was
	// set back since.
	Epoch int
	// Elapsed is how much time had gone by since some beginning, whatever the
	// clock said.
	Elapsed time.Duration
	// First are the periods whose first snapshot it is.
	First Periods
	// Pinned: it stays, and is none of those that the rules count.
	Pinned bool
}

// Periods is a set of kinds of periods: a bit for each.
type Periods uint8

// The kinds of periods.
const (
	Hour Periods = 1 << iota
	Day
	Week // from Monday on
	Month
	Year
)

var allPeriods = []Periods{Hour, Day, Week, Month, Year}

// number returns which period of a kind a time lies in: the later, the higher.
// Hours and days are those of the time's location.
func (k Periods) number(t time.Time) int64 {
	switch k {
	case Hour:
		// The hour that comes twice when the clock on the wall goes back is two. It
		// is counted in minutes, for zones differ by less than an hour too.
		_, offset := t.Zone()
		return (t.Unix() - (t.Unix()+int64(offset))%3600) / 60
	case Day:
		return dayOf(t)
	case Week:
		return dayOf(t) / 7 // 1 January of year 1 was a Monday
	case Month:
		return int64(t.Year())*12 + int64(t.Month()) - 1
	}
	return int64(t.Year())
}

// dayOf counts the days since 1 January of year 1 by the calendar.
func dayOf(t time.Time) int64 {
	midnight := time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
	return (midnight.Unix() - time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).Unix()) / 86400
}

// untrusted bounds how much time counts as gone by where only the clock of the
// machine tells: over a restart it may have been set to anything.
const untrusted = 31 * 24 * time.Hour

// Next returns the snapshot of a subvolume that is taken now, after those of its
// history, the oldest first. since is how much time has gone by after the last of
// them as far as a clock tells that nobody can set; nil where none does. Days
// and hours are those of the location.
func Next(history []Snapshot, now time.Time, since *time.Duration, pinned bool, location *time.Location) Snapshot {
	next := Snapshot{Taken: now, Pinned: pinned}
	if n := len(history); n > 0 {
		last := &history[n-1]
		next.Epoch = last.Epoch
		gap := now.Sub(last.Taken)
		if gap < 0 {
			next.Epoch++
		}
		gap = min(max(gap, 0), untrusted)
		if since != nil {
			gap = max(*since, 0)
		}
		next.Elapsed = last.Elapsed + gap
	}
	if pinned {
		return next
	}
	var before *Snapshot // the last that counts
	for i := len(history) - 1; i >= 0 && before == nil; i-- {
		if !history[i].Pinned {
			before = &history[i]
		}
	}
	for _, k := range allPeriods {
		if before == nil || before.Epoch != next.Epoch || k.number(before.Taken.In(location)) != k.number(now.In(location)) {
			next.First |= k
		}
	}
	return next
}

// Decision is what becomes of a snapshot.
type Decision struct {
	Keep bool `json:"keep"`
	// Reasons are the rules that keep it, or why it is pruned.
	Reasons []string `json:"reasons"`
}

// String returns the reasons as a text.
func (d *Decision) String() string { return strings.Join(d.Reasons, ", ") }

// rule keeps the first snapshot of each of some periods.
type rule struct {
	name   string
	count  int
	period Periods
}

func (p *Policy) rules() []rule {
	return []rule{
		{"hourly", p.Hourly, Hour}, {"daily", p.Daily, Day}, {"weekly", p.Weekly, Week},
		{"monthly", p.Monthly, Month}, {"yearly", p.Yearly, Year},
	}
}

// Apply decides on the snapshots of one subvolume, given in the order in which
// they were created, and returns a decision for each. Days and hours are those
// of the location.
//
// A rule goes from the newest snapshot back and keeps those that are the first of
// a period, until it has counted as many as it says. A period that is later
// than that of the newest snapshot comes from a clock that was ahead: its first
// snapshot is kept and not counted, until that time has come. Of two with the same
// number, between which the clock was set back, both are kept and one is counted.
//
// What is decided does not depend on what was pruned before: to prune after
// each snapshot, or once after many, leaves the same ones.
func Apply(policy Policy, snapshots []Snapshot, location *time.Location) []Decision {
	decisions := make([]Decision, len(snapshots))
	live := make([]int, 0, len(snapshots)) // those that the rules count
	for i := range snapshots {
		if snapshots[i].Pinned {
			decisions[i] = Decision{Keep: true, Reasons: []string{"pinned"}}
		} else {
			live = append(live, i)
		}
	}
	if len(live) == 0 {
		return decisions
	}
	keep := func(i int, reason string) {
		decisions[i].Keep = true
		decisions[i].Reasons = append(decisions[i].Reasons, reason)
	}
	young := policy.young(snapshots, live)
	if policy.counts() {
		for n := range min(policy.KeepLast, len(young)) {
			keep(young[len(young)-1-n], "last")
		}
		for _, r := range policy.rules() {
			if r.count > 0 {
				r.apply(snapshots, young, location, keep)
			}
		}
	} else {
		for _, i := range young {
			keep(i, "all")
		}
	}
	for n := range min(max(policy.KeepMin, 1), len(live)) {
		if i := live[len(live)-1-n]; !decisions[i].Keep {
			keep(i, "minimum")
		}
	}
	old := len(live) - len(young)
	for n, i := range live {
		switch {
		case decisions[i].Keep:
		case n < old:
			decisions[i].Reasons = []string{fmt.Sprintf("older than max_age (%s)", policy.MaxAge)}
		default:
			decisions[i].Reasons = []string{"no rule keeps it"}
		}
	}
	return decisions
}

// young returns those that are not older than MaxAge: as time does not go back,
// the last ones.
func (p *Policy) young(snapshots []Snapshot, live []int) []int {
	if p.MaxAge <= 0 {
		return live
	}
	newest := snapshots[live[len(live)-1]].Elapsed
	for n, i := range live {
		if newest-snapshots[i].Elapsed <= p.MaxAge {
			return live[n:]
		}
	}
	return nil
}

// apply keeps what the rule keeps. young are indices, the oldest first, one at
// least.
func (r *rule) apply(snapshots []Snapshot, young []int, location *time.Location, keep func(int, string)) {
	number := func(i int) int64 { return r.period.number(snapshots[i].Taken.In(location)) }
	newest := number(young[len(young)-1])
	counted := make(map[int64]bool, r.count)
	for n := len(young) - 1; n >= 0; n-- {
		i := young[n]
		if snapshots[i].First&r.period == 0 {
			continue
		}
		if p := number(i); p <= newest && !counted[p] {
			if len(counted) == r.count {
				continue
			}
			counted[p] = true
		}
		keep(i, r.name)
	}
}
