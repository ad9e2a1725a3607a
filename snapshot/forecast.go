package snapshot

import (
	"fmt"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// Forecast is what the schedule and the retention do in the coming days.
type Forecast struct {
	Pool   btrfs.UUID      `json:"pool"`
	From   time.Time       `json:"from"`
	Until  time.Time       `json:"until"`
	Events []ForecastEvent `json:"events"`
	// Left are the names of the snapshots of ours that there are at the end.
	Left []string `json:"left"`
	// Notes are what it could not take into account.
	Notes []string `json:"notes,omitempty"`
}

// ForecastEvent is what happens at one time of the schedule.
type ForecastEvent struct {
	Time    time.Time `json:"time"`
	Created []string  `json:"created"`
	Deleted []Deleted `json:"deleted,omitempty"`
}

// maxForecast bounds a forecast: times of the schedule.
const maxForecast = 20_000

// Forecast foretells what the configured schedule and retention do until then.
func (r *Runner) Forecast(uuid btrfs.UUID, until time.Time) (*Forecast, error) {
	if _, err := r.findMount(uuid); err != nil {
		return nil, err
	}
	s, location, configured := r.settingsOf(uuid)
	if !configured || s.Schedule == nil {
		return nil, fmt.Errorf("the configuration has no schedule for pool %s: set one under snapshots.pools: %w", uuid, ErrInvalid)
	}
	p, err := r.pool(uuid)
	if err != nil {
		return nil, err
	}
	f, err := forecast(p.seen().records, &s, location, r.clock.Now(), until)
	if f != nil {
		f.Pool = uuid
	}
	return f, err
}

// forecast is pure.
func forecast(records []record, s *PoolSettings, location *time.Location, from, until time.Time) (*Forecast, error) {
	f := &Forecast{From: from, Until: until, Events: []ForecastEvent{}, Left: []string{}}
	if s.MinFree > 0 {
		f.Notes = append(f.Notes, "What min_free prunes depends on what is written, and is not foretold")
	}
	all := make([]record, len(records))
	copy(all, records)
	for i := range all {
		if len(all[i].Sent) > 0 {
			f.Notes = append(f.Notes, "Parents of incremental backups stay until the next backup, also where they are foretold to go")
			break
		}
	}
	at := from
	for n := 0; ; n++ {
		at = s.Schedule.Next(at)
		if at.IsZero() || at.After(until) {
			break
		}
		if n == maxForecast {
			return nil, fmt.Errorf("the schedule has more than %d times until %s: ask for fewer days: %w", maxForecast, until.Format(time.RFC3339), ErrInvalid)
		}
		e := ForecastEvent{Time: at}
		for _, subvolume := range s.Subvolumes {
			r := record{Subvolume: subvolume, Name: nameOf(subvolume, at, 1)}
			r.take(all, at, func(last *record) *time.Duration {
				since := at.Sub(last.Taken)
				return &since
			}, location)
			all = append(all, r)
			e.Created = append(e.Created, r.Name)
		}
		if s.Retention.KeepsAll() {
			f.Events = append(f.Events, e)
			continue
		}
		left := all[:0:0]
		for i, d := range decide(s.Retention, all, location) {
			if d.Keep {
				left = append(left, all[i])
			} else {
				e.Deleted = append(e.Deleted, Deleted{all[i].Subvolume, all[i].Name, d.String()})
			}
		}
		all = left
		f.Events = append(f.Events, e)
	}
	for i := range all {
		f.Left = append(f.Left, all[i].Name)
	}
	return f, nil
}
