package history

import (
	"context"
	"errors"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
)

// Pools are the pools of this machine, see collector.Exporter.
type Pools interface {
	Pools() ([]collector.PoolReading, error)
}

// lookEach is how often the clock is looked at, at least: it may be set, and timers
// stand still while the machine sleeps.
const lookEach = time.Minute

// removeEach is how often the histories of pools that are gone are removed, and how
// long a process runs before it first does: a clock that is wrong at the start is
// set right by then.
const removeEach = 24 * time.Hour

// Sampler adds a sample of each pool at each quarter of an hour.
type Sampler struct {
	logger log.Logger
	store  *Store
	pools  Pools
	now    func() time.Time
	up     func() time.Duration
	failed map[btrfs.UUID]bool // what could not be written, and was said
}

// NewSampler returns a sampler of pools. up is how long the machine has been up, see
// Store.NoteErrors.
func NewSampler(logger log.Logger, store *Store, pools Pools, now func() time.Time, up func() time.Duration) *Sampler {
	return &Sampler{logger: logger, store: store, pools: pools, now: now, up: up, failed: make(map[btrfs.UUID]bool)}
}

// Run takes samples until ctx is done: one at once, where the quarter of an hour has
// none yet, and then one as each begins.
func (s *Sampler) Run(ctx context.Context) error {
	remove := time.NewTicker(removeEach)
	defer remove.Stop()
	taken := int64(-1)
	for {
		now := s.now()
		if quarter(now) != taken {
			s.sample(now)
			taken = quarter(now)
		}
		next := time.Unix((quarter(now)+1)*stepSeconds, 0).Sub(s.now())
		look := time.NewTimer(min(max(next, 0), lookEach))
		select {
		case <-ctx.Done():
			look.Stop()
			return nil
		case <-look.C:
		case <-remove.C:
			if err := s.store.RemoveOld(); err != nil {
				level.Warn(s.logger).Log("msg", "The histories of pools that are gone are not all removed", "err", err)
			}
		}
		look.Stop()
	}
}

// sample adds a sample of each pool. One that cannot be read has none.
func (s *Sampler) sample(now time.Time) {
	readings, err := s.pools.Pools()
	if err != nil {
		level.Debug(s.logger).Log("msg", "Not all pools could be found for a sample", "err", err)
	}
	for i := range readings {
		uuid := readings[i].UUID
		sample, ok := sampleOf(&readings[i], now)
		if !ok {
			continue
		}
		err := errors.Join(s.store.Add(uuid, sample), s.store.NoteErrors(readings[i].Facts.Pool, now, s.up()))
		if err != nil && !s.failed[uuid] {
			level.Warn(s.logger).Log("msg", "A sample of a pool is lost; it is not said again until one is not", "err", err)
		}
		if s.failed[uuid] = err != nil; err == nil {
			delete(s.failed, uuid)
		}
	}
}

// sampleOf is false for a pool of which nothing is known.
func sampleOf(r *collector.PoolReading, now time.Time) (Sample, bool) {
	s := Sample{Time: now}
	if r.Facts == nil {
		return s, false
	}
	p := r.Facts.Pool
	s.StatfsFree = p.StatfsFree
	for _, t := range []btrfs.BlockGroupType{btrfs.Data, btrfs.Mixed} {
		if space := p.Space(t); space != nil {
			s.Used = btrfs.Some(space.Used)
		}
	}
	if report := r.Facts.Report; report != nil {
		s.Free, s.FreeExpected, s.MetadataFree = btrfs.Some(report.Free), btrfs.Some(report.FreeExpected), btrfs.Some(report.MetadataFree)
	}
	return s, s.Used.Known || s.Free.Known || s.StatfsFree.Known
}
