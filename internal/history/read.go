package history

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// ReadForecast tells when a pool will be full, from its file in a state directory
// and from a reading of now. It is for a program beside the daemon, which may be
// running: it locks and writes nothing, and a file that is damaged stays where it
// is. It is false where there is no file, or too little in it; and with an error
// where the file cannot be read.
func ReadForecast(dir *state.Dir, pool *collector.PoolReading, now time.Time) (Forecast, bool, error) {
	r, err := readRing(dir.Path(fileName(pool.UUID)), pool.UUID)
	if errors.Is(err, fs.ErrNotExist) {
		return Forecast{}, false, nil
	}
	if err != nil {
		return Forecast{}, false, fmt.Errorf("read the history of pool %s: %w", pool.UUID, err)
	}
	samples := r.samples(r.between(now.Add(-forecastSpan-fresh), now))
	// The daemon may not have run for hours; what is read now is as good as a sample
	// of its own.
	if current, ok := sampleOf(pool, now.Truncate(time.Second)); ok {
		samples = append(samples, current)
	}
	if len(samples) == 0 || !isFresh(samples[len(samples)-1].Time, now) {
		return Forecast{}, false, nil
	}
	f, ok := Predict(samples)
	f.Source = SourceLocal
	return f, ok, nil
}
