package history_test

import (
	"math"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
)

// filling are samples until begin of a pool that loses so many bytes a day, and
// then has left of them.
func filling(days float64, perDay, left float64) []history.Sample {
	var all []history.Sample
	for at := begin.Add(-time.Duration(days * float64(day))).Truncate(history.Step); !at.After(begin); at = at.Add(history.Step) {
		free := btrfs.Some(uint64(left + perDay*begin.Sub(at).Hours()/24))
		all = append(all, history.Sample{Time: at, FreeExpected: free, MetadataFree: btrfs.Some[uint64](1e9)})
	}
	return all
}

func TestForecast(t *testing.T) {
	for name, tt := range map[string]struct {
		samples              []history.Sample
		ok                   bool
		days, rate, metadata float64
	}{
		"none":                {nil, false, 0, 0, 0},
		"one":                 {filling(0, 1, 1e12), false, 0, 0, 0},
		"less than a day":     {filling(0.95, 1e9, 1e12), false, 0, 0, 0},
		"a day and two hours": {filling(1.09, 1e9, 1e12), true, 1000, 1e9, 3650},
		"a year":              {filling(400, 1e9, 7e9), true, 7, 1e9, 3650},
		"full":                {filling(30, 1e9, 0), true, 0, 1e9, 3650},
		"flat":                {filling(30, 0, 1e12), true, 3650, 0, 3650},
		"it becomes more":     {filling(30, -1e9, 1e12), true, 3650, -1e9, 3650},
	} {
		t.Run(name, func(t *testing.T) {
			f, ok := history.Predict(tt.samples)
			if ok != tt.ok || math.Abs(f.DaysToFull.Value-tt.days) > 1e-6 || math.Abs(f.BytesPerDay.Value-tt.rate) > 1 || f.MetadataDaysToFull.Value != tt.metadata {
				t.Fatalf("got %+v, %t", f, ok)
			}
			if !ok {
				return
			}
			if want := max(tt.samples[0].Time.Unix(), begin.Add(-21*day).Unix()); !f.Time.Equal(begin) || f.Since.Unix() < want || f.Since.Unix() > want+12*3600 {
				t.Errorf("as of %s since %s", f.Time, f.Since)
			}
			want := begin.Add(time.Duration(tt.days * float64(day)))
			if tt.days == 3650 {
				want = time.Time{}
			}
			if got := f.Full(); got.Sub(want).Abs() > time.Second {
				t.Errorf("full on %s, want %s", got, want)
			}
		})
	}
}

func TestForecastOfWhatIsUnknown(t *testing.T) {
	all := filling(10, 1e9, 1e12)
	for i := range all {
		all[i].MetadataFree = btrfs.Opt[uint64]{}
	}
	if f, ok := history.Predict(all); !ok || !f.DaysToFull.Known || f.MetadataDaysToFull.Known {
		t.Errorf("without metadata: %+v %t", f, ok)
	}
	all[len(all)-1].FreeExpected = btrfs.Opt[uint64]{}
	if f, ok := history.Predict(all); ok {
		t.Errorf("with nothing known now: %+v", f)
	}
}

// A forecast rests on late samples: a pool that is gone has none.
func TestForecastEndsWithTheSamples(t *testing.T) {
	b := newBench(t)
	for _, s := range filling(10, 1e9, 50e9) {
		if err := b.store.Add(pool, s); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		after time.Duration
		ok    bool
	}{{0, true}, {10 * time.Minute, true}, {19 * time.Minute, true}, {20 * time.Minute, false}, {time.Hour, false}, {10 * time.Minute, true}} {
		b.clock = begin.Add(tt.after)
		f, ok := b.store.Forecast(pool)
		if ok != tt.ok || ok && (math.Abs(f.DaysToFull.Value-50) > 1e-6 || f.Source != history.SourceLocal) {
			t.Errorf("after %s: %+v %t", tt.after, f, ok)
		}
	}
	// It is made anew with the next sample.
	b.clock = begin.Add(history.Step)
	next := history.Sample{Time: b.clock, FreeExpected: btrfs.Some[uint64](10e9)}
	if err := b.store.Add(pool, next); err != nil {
		t.Fatal(err)
	}
	if f, ok := b.store.Forecast(pool); !ok || f.DaysToFull.Value > 11 {
		t.Errorf("after the next sample: %+v %t", f, ok)
	}
}
