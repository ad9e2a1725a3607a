package history

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// maxPools bounds the histories, and with them what they take on the disk: 512 MiB.
const maxPools = 256

// maxViews is how many answers are remembered of each pool.
const maxViews = 4

// Store keeps a history of each pool in the file history-UUID.ring of the state
// directory. A file is open only while it is read or written. It is safe for
// concurrent use.
type Store struct {
	logger log.Logger
	dir    *state.Dir
	now    func() time.Time

	mu    sync.Mutex
	pools map[btrfs.UUID]*poolHistory
}

// poolHistory is what is remembered of a file.
type poolHistory struct {
	uuid btrfs.UUID

	mu     sync.Mutex
	recent *recent // nil where it is to be read
	warned bool    // that the clock is behind

	unreadable bool // and that was said
	views      []view
	forecast   *forecastView

	errors  map[uint64]DeviceErrors // nil: not read yet
	dated   map[uint64]dating       // those of errors that this process dated
	unsaved bool                    // they could not be written
}

// view is an answer, as of a quarter of an hour.
type view struct {
	now, since int64
	most       int
	samples    []Sample
}

type forecastView struct {
	now      int64
	forecast Forecast
	ok       bool
}

const (
	filePrefix = "history-"
	fileSuffix = ".ring"
)

func fileName(pool btrfs.UUID) string { return filePrefix + pool.String() + fileSuffix }

// Open finds the histories in the state directory. It reads none of them.
func Open(logger log.Logger, dir *state.Dir, now func() time.Time) (*Store, error) {
	s := &Store{logger: logger, dir: dir, now: now, pools: make(map[btrfs.UUID]*poolHistory)}
	names, err := dir.Names(filePrefix + "*" + fileSuffix)
	if err != nil {
		return nil, fmt.Errorf("find the histories of pools: %w", err)
	}
	for _, name := range names {
		uuid, err := btrfs.ParseUUID(strings.TrimSuffix(strings.TrimPrefix(name, filePrefix), fileSuffix))
		if err == nil && fileName(uuid) == name {
			s.pools[uuid] = &poolHistory{uuid: uuid}
		}
	}
	return s, nil
}

func (s *Store) find(pool btrfs.UUID) *poolHistory {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pools[pool]
}

func (s *Store) findOrMake(pool btrfs.UUID) (*poolHistory, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pools[pool]
	if p == nil {
		if len(s.pools) >= maxPools {
			return nil, fmt.Errorf("there are histories of %d pools, and no more are kept: remove %s of a pool that is gone, and restart", len(s.pools), s.dir.Path(filePrefix+"UUID.*"))
		}
		p = &poolHistory{uuid: pool}
		s.pools[pool] = p
	}
	return p, nil
}

// Add writes a sample. It does nothing where the one that was written last is of the
// same quarter of an hour. The sample outlives the process; it is not waited for
// that it is on the disk.
func (s *Store) Add(pool btrfs.UUID, sample Sample) error {
	if err := s.add(pool, sample); err != nil {
		return fmt.Errorf("add to the history of pool %s: %w", pool, err)
	}
	return nil
}

func (s *Store) add(pool btrfs.UUID, sample Sample) error {
	if seconds := sample.Time.Unix(); seconds <= 0 || seconds > math.MaxUint32 {
		return fmt.Errorf("the clock says %s: set it", sample.Time.UTC().Format(time.RFC3339))
	}
	p, err := s.findOrMake(pool)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.recent == nil || !p.recent.isOf(sample.Time) {
		r, err := s.read(p)
		if err != nil {
			return err
		}
		p.recent = r.recent(sample.Time)
	}
	last := p.recent.last
	if last.seconds != 0 && last.quarter() == quarter(sample.Time) {
		return nil
	}
	behind := last.time().After(sample.Time)
	if !behind {
		p.warned = false
	} else if !p.warned {
		p.warned = true
		level.Warn(s.logger).Log("msg", "The clock is behind the history of a pool: it was wrong before, or is wrong now. Samples go on; once there are enough of them to tell, those of the wrong time are left out", "pool", pool, "last", last.time(), "now", sample.Time.UTC().Truncate(time.Second))
	}
	err = s.write(p, &sample)
	p.views, p.forecast = nil, nil
	if err != nil {
		p.recent = nil // what is in the file is to be found out
	}
	return err
}

// write writes a sample. A file that is not there is made.
func (s *Store) write(p *poolHistory, sample *Sample) error {
	path := s.dir.Path(fileName(p.uuid))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.dir.WriteFile(fileName(p.uuid), header(p.uuid)); err != nil {
			return err
		}
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return err
	}
	return errors.Join(p.recent.write(f, sample), f.Close())
}

// read reads a file. One that is not there, or is damaged and therefore set aside,
// is empty.
func (s *Store) read(p *poolHistory) (*ring, error) {
	name := fileName(p.uuid)
	r, err := readRing(s.dir.Path(name), p.uuid)
	if damaged, is := errors.AsType[damage](err); is {
		err = os.Rename(s.dir.Path(name), s.dir.Path(name+".damaged"))
		if err == nil {
			level.Warn(s.logger).Log("msg", "The history of a pool begins anew", "err", fmt.Errorf("state file %s %w as %s.damaged: %w", s.dir.Path(name), state.ErrDamaged, name, damaged))
		}
		r = &ring{}
	} else if errors.Is(err, fs.ErrNotExist) {
		r, err = &ring{}, nil
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// look reads a file for an answer. What cannot be read is said once.
func (s *Store) look(p *poolHistory) *ring {
	r, err := s.read(p)
	if err != nil {
		if !p.unreadable {
			level.Warn(s.logger).Log("msg", "The history of a pool cannot be read", "pool", p.uuid, "err", err)
		}
		p.unreadable = true
		return nil
	}
	p.unreadable = false
	return r
}

// Samples returns at most so many samples of a pool from a time on, the oldest
// first: of each part of that time the last. Those of the future are of a clock that
// was wrong, and are not told.
func (s *Store) Samples(pool btrfs.UUID, since time.Time, most int) []Sample {
	p := s.find(pool)
	if p == nil || most <= 0 {
		return nil
	}
	now := s.now()
	if oldest := now.Add(-Span); since.Before(oldest) {
		since = oldest
	}
	v := view{now: quarter(now), since: quarter(since), most: most}
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.views, func(w view) bool { return w.now == v.now && w.since == v.since && w.most == most })
	if i < 0 {
		r := s.look(p)
		if r == nil {
			return nil
		}
		from := time.Unix(v.since*stepSeconds, 0)
		v.samples = r.samples(thin(r.between(from, now), most))
		p.views = append(p.views, v)
		p.views = p.views[max(0, len(p.views)-maxViews):]
		i = len(p.views) - 1
	}
	return slices.Clone(p.views[i].samples)
}

// Forecast tells when a pool will be full. It is false with less than a day of
// samples, or with none of late.
func (s *Store) Forecast(pool btrfs.UUID) (Forecast, bool) {
	p := s.find(pool)
	if p == nil {
		return Forecast{}, false
	}
	now := s.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.forecast == nil || p.forecast.now != quarter(now) {
		r := s.look(p)
		if r == nil {
			return Forecast{}, false
		}
		v := &forecastView{now: quarter(now)}
		v.forecast, v.ok = Predict(r.samples(r.between(now.Add(-forecastSpan-fresh), now)))
		v.forecast.Source = SourceLocal
		p.forecast = v
	}
	f := p.forecast.forecast
	return f, p.forecast.ok && isFresh(f.Time, now)
}

func isFresh(newest, now time.Time) bool { return !newest.After(now) && now.Sub(newest) < fresh }

// RemoveOld removes the histories of pools that were not seen for as long as a
// history is. It trusts the clock.
func (s *Store) RemoveOld() error {
	s.mu.Lock()
	pools := make([]*poolHistory, 0, len(s.pools))
	for _, p := range s.pools {
		pools = append(pools, p)
	}
	s.mu.Unlock()
	var failed error
	for _, p := range pools {
		if err := s.removeIfOld(p); err != nil {
			failed = errors.Join(failed, fmt.Errorf("remove the history of pool %s: %w", p.uuid, err))
		}
	}
	return failed
}

func (s *Store) removeIfOld(p *poolHistory) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, err := s.read(p)
	if err != nil {
		return err
	}
	// Any sample that is not old keeps it, whichever was written last.
	oldest := s.now().Add(-Span)
	if len(r.entries) == 0 || r.last.time().After(oldest) || r.entries[len(r.entries)-1].time().After(oldest) {
		return nil
	}
	if err := errors.Join(s.dir.Remove(fileName(p.uuid)), s.dir.Remove(errorsName(p.uuid))); err != nil {
		return err
	}
	level.Info(s.logger).Log("msg", "Removed the history of a pool that is gone", "pool", p.uuid, "last", r.last.time())
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pools, p.uuid)
	return nil
}
