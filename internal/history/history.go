// Package history keeps what each pool held at each quarter of an hour of the last
// 400 days, and tells from it when the pool will be full: from files of its own, or
// from a Prometheus.
package history

import (
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// Step is the time between two samples. They are taken at its multiples.
const Step = 15 * time.Minute

// Span is for how long a sample is kept.
const Span = 400 * 24 * time.Hour

// Sample is what a pool held at a time, in bytes, as the metrics
// btrfs_pool_NAME_bytes say it.
type Sample struct {
	Time         time.Time // a whole second
	Used         btrfs.Opt[uint64]
	Free         btrfs.Opt[uint64]
	FreeExpected btrfs.Opt[uint64]
	MetadataFree btrfs.Opt[uint64]
	StatfsFree   btrfs.Opt[uint64]
}

// Source is where a forecast comes from.
type Source string

// The sources.
const (
	SourceLocal      Source = "local"
	SourcePrometheus Source = "prometheus"
)

// MaxDays is the most that a forecast says: it may as well be never.
const MaxDays = 3650

// Forecast is for how long a pool takes what is written to it.
type Forecast struct {
	// Time is that of the newest sample: from then on the days are counted.
	Time time.Time
	// Since is the time of the oldest sample that it rests on.
	Since time.Time
	// DaysToFull and MetadataDaysToFull are btrfs:pool_days_to_full and
	// btrfs:pool_metadata_days_to_full, at most MaxDays.
	DaysToFull         btrfs.Opt[float64]
	MetadataDaysToFull btrfs.Opt[float64]
	// BytesPerDay is how much less can be written to the pool each day; negative
	// where it becomes more.
	BytesPerDay btrfs.Opt[float64]
	Source      Source
}

// Full returns when there is no room for more data; zero where that is not
// known, or as far off as MaxDays.
func (f *Forecast) Full() time.Time {
	days, ok := f.DaysToFull.Get()
	if !ok || days >= MaxDays {
		return time.Time{}
	}
	return f.Time.Add(time.Duration(days * float64(24*time.Hour)))
}
