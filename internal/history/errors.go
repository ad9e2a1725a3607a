package history

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/go-kit/log/level"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// DeviceErrors is what is remembered of the error counters of a device, which the
// kernel counts and never dates.
type DeviceErrors struct {
	Counts btrfs.ErrorCounts `json:"counts"` // when they were last looked at
	// Watched is since when they are.
	Watched time.Time `json:"watched"`
	// Rose is when one of them was last seen to have risen; zero: never since Watched.
	Rose time.Time `json:"rose,omitzero"`
}

// Newer tells whether there are errors in counts that are not in those before. A
// counter that fell was reset, and counted from zero again.
func Newer(counts, before btrfs.ErrorCounts) bool {
	for _, c := range [][2]uint64{
		{counts.Write, before.Write}, {counts.Read, before.Read}, {counts.Flush, before.Flush},
		{counts.Corruption, before.Corruption}, {counts.Generation, before.Generation},
	} {
		if now, then := c[0], c[1]; now > then || now < then && now > 0 {
			return true
		}
	}
	return false
}

// errorsName is the file with the error counters of a pool. It is written only when
// one has changed.
func errorsName(pool btrfs.UUID) string { return filePrefix + pool.String() + ".errors.json" }

// dating is when this process dated what is remembered of a device, by how long the
// machine had been up then; 0: it did not. A clock that was wrong at the start, and was
// set right since, is made up for with it.
type dating struct{ watched, rose time.Duration }

// correct dates anew what was dated so long ago by another clock than that of now.
func (a *dating) correct(e *DeviceErrors, now time.Time, up time.Duration) (changed bool) {
	for _, d := range []struct {
		date *time.Time
		at   time.Duration
	}{{&e.Watched, a.watched}, {&e.Rose, a.rose}} {
		if d.at == 0 {
			continue
		}
		if right := now.Add(d.at - up); right.Sub(*d.date).Abs() > Step {
			*d.date, changed = right, true
		}
	}
	return changed
}

// NoteErrors remembers the error counters of the devices of a pool, and when they
// rose. Of a device that does not tell its counters what was known stays. up is how
// long the machine has been up, with the time that it was suspended
// (CLOCK_BOOTTIME of clock_gettime(2)).
func (s *Store) NoteErrors(pool *btrfs.Pool, now time.Time, up time.Duration) error {
	now = now.Round(0) // by the wall: the monotonic clock stands still in a suspend
	p, err := s.findOrMake(pool.UUID)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := s.readErrors(p); err != nil {
		return err
	}
	next, dated := make(map[uint64]DeviceErrors, len(pool.Devices)), make(map[uint64]dating, len(pool.Devices))
	changed := false
	for i := range pool.Devices {
		d := &pool.Devices[i]
		before, known := p.errors[d.ID]
		at := p.dated[d.ID]
		changed = at.correct(&before, now, up) || changed
		counts, counted := d.Errors.Get()
		switch {
		case !counted:
		case !known:
			before, known, changed = DeviceErrors{Counts: counts, Watched: now}, true, true
			at = dating{watched: up}
		case counts != before.Counts:
			if Newer(counts, before.Counts) {
				before.Rose, at.rose = now, up
			}
			before.Counts, changed = counts, true
		}
		if known {
			next[d.ID], dated[d.ID] = before, at
		}
	}
	p.dated = dated
	// That a device was removed is no reason to write: it is left out the next time.
	if !changed && !p.unsaved {
		return nil
	}
	// What cannot be written is known as long as the process lives, and tried again.
	p.errors, p.unsaved = next, true
	if err := s.dir.SaveJSON(errorsName(p.uuid), next); err != nil {
		return fmt.Errorf("remember the error counters of pool %s: %w", p.uuid, err)
	}
	p.unsaved = false
	return nil
}

// DeviceErrors returns what is remembered of the error counters of a pool, by the ids
// of its devices; nil where nothing is.
func (s *Store) DeviceErrors(pool btrfs.UUID) map[uint64]DeviceErrors {
	p := s.find(pool)
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := s.readErrors(p); err != nil {
		return nil // said where it is written
	}
	return p.errors // is never changed, only replaced
}

// readErrors reads the file once. One that is damaged is set aside.
func (s *Store) readErrors(p *poolHistory) error {
	if p.errors != nil {
		return nil
	}
	read := make(map[uint64]DeviceErrors)
	err := s.dir.LoadJSON(errorsName(p.uuid), &read, func() error {
		for id, e := range read {
			if e.Watched.IsZero() {
				return fmt.Errorf("it does not say since when device %d is watched", id)
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, state.ErrDamaged):
		level.Warn(s.logger).Log("msg", "It is not known any more when the error counters of a pool rose", "pool", p.uuid, "err", err)
		read = make(map[uint64]DeviceErrors)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read the error counters of pool %s: %w", p.uuid, err)
	}
	p.errors = read
	return nil
}
