package history

import (
	"math"
	"slices"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// forecastSpan is how far back a forecast looks: two weeks of changes from week to
// week, and the quarter of an hour that the oldest of them may be off.
const forecastSpan = 3*7*24*time.Hour + Step

// fresh is how old the newest sample may be for a forecast: a step of ours, and the
// five minutes for which Prometheus takes a value.
const fresh = Step + 5*time.Minute

// Predict tells from samples, the oldest first, when the pool will be full, as of
// the newest of them. It is the rule of btrfs:pool_days_to_full, which
// alerts/rules.go explains, step for step: a value at a time is that of the sample
// of its quarter of an hour. false is that there is no forecast.
func Predict(samples []Sample) (Forecast, bool) {
	if len(samples) == 0 {
		return Forecast{}, false
	}
	newest := &samples[len(samples)-1]
	f := Forecast{Time: newest.Time}
	for _, kind := range []struct {
		value func(*Sample) btrfs.Opt[uint64]
		days  *btrfs.Opt[float64]
		rate  *btrfs.Opt[float64]
	}{
		{func(s *Sample) btrfs.Opt[uint64] { return s.FreeExpected }, &f.DaysToFull, &f.BytesPerDay},
		{func(s *Sample) btrfs.Opt[uint64] { return s.MetadataFree }, &f.MetadataDaysToFull, new(btrfs.Opt[float64])},
	} {
		now, known := kind.value(newest).Get()
		rate, since, ok := fillRate(samples, kind.value)
		if !known || !ok {
			continue
		}
		*kind.rate = btrfs.Some(rate)
		*kind.days = btrfs.Some(min(float64(now)/max(rate, 1), MaxDays))
		if f.Since.IsZero() || since.Before(f.Since) {
			f.Since = since
		}
	}
	return f, !f.Since.IsZero()
}

// fillRate is how much less there is each day, as of the newest sample: the greater
// of the average of the quartiles and the median of the changes from day to day in
// a week, and just below the median of those from week to week in two.
func fillRate(samples []Sample, value func(*Sample) btrfs.Opt[uint64]) (rate float64, since time.Time, ok bool) {
	const (
		day  = 24 * time.Hour
		week = 7 * day
	)
	c := changes{values: make(map[int64]float64, len(samples)), end: samples[len(samples)-1].Time.Unix()}
	for i := range samples {
		if v, ok := value(&samples[i]).Get(); ok {
			c.values[quarter(samples[i].Time)] = float64(v)
		}
	}
	daily, oldestDaily := c.over(week, 2*time.Hour, day)
	weekly, oldestWeekly := c.over(2*week, 12*time.Hour, week)
	if len(daily) == 0 && len(weekly) == 0 {
		return 0, time.Time{}, false
	}
	rate = math.Inf(-1)
	if len(daily) > 0 {
		rate = (quantile(0.25, daily) + quantile(0.5, daily) + quantile(0.75, daily)) / 3
	}
	if len(weekly) > 0 {
		rate = max(rate, quantile(0.4, weekly)/7)
	}
	return rate, time.Unix(min(oldestDaily, oldestWeekly), 0).UTC(), true
}

// changes are how values changed until a time.
type changes struct {
	values map[int64]float64 // by their quarter of an hour
	end    int64
}

// over returns the sorted results of the subquery
// (METRIC offset OFFSET - METRIC)[WINDOW:STEP], and the time of the oldest value in
// it. The steps are at multiples of their length, and the window does not have its
// begin, as in Prometheus 3.
func (c *changes) over(window, step, offset time.Duration) (falls []float64, oldest int64) {
	oldest = math.MaxInt64
	seconds := func(d time.Duration) int64 { return int64(d / time.Second) }
	for at := c.end - c.end%seconds(step); at > c.end-seconds(window); at -= seconds(step) {
		now, ok := c.values[at/stepSeconds]
		before, okBefore := c.values[(at-seconds(offset))/stepSeconds]
		if ok && okBefore {
			falls = append(falls, before-now)
			oldest = at - seconds(offset)
		}
	}
	slices.Sort(falls)
	return falls, oldest
}

// quantile is that of Prometheus: between two values it is on the line from one to
// the other.
func quantile(q float64, sorted []float64) float64 {
	rank := q * float64(len(sorted)-1)
	lower := int(rank)
	upper := min(lower+1, len(sorted)-1)
	weight := rank - float64(lower)
	return sorted[lower]*(1-weight) + sorted[upper]*weight
}
