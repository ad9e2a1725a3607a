package httpapi

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/web"
)

// Timing of the readings for the status page.
const (
	// freshEnough is how old a reading may be to be shown as of now.
	freshEnough = time.Second
	// readPatience is how long a page waits for a reading: it is wanted most when a
	// disk hangs.
	readPatience = 400 * time.Millisecond
	// pastEvery is how often the history is looked at, which has a sample each
	// quarter of an hour.
	pastEvery = time.Minute
)

// readings keeps what was read last of each pool, so that nobody who looks at the
// page waits for a disk that hangs: not for one of a pool, and not for the one that
// the state directory is on. What may wait for a disk has a goroutine of its own, of
// which there is never more than one of a kind.
type readings struct {
	pools PoolCollectors
	// about adds to an input what the runners know of its pool.
	about func(*web.Input)
	// past adds what the history knows of it; nil where there is none.
	past func(*web.Input, time.Time)
	now  func() time.Time

	mu      sync.Mutex
	running chan struct{} // closed when the reading under way is done; nil: none is
	done    time.Time     // when the last that is done began
	err     error         // why pools may be missing
	held    map[btrfs.UUID]*web.Input

	looking chan struct{} // likewise of the history
	looked  time.Time
	pasts   map[btrfs.UUID]*web.Input // only what the history knows
}

// get returns what is known, in order of UUID, by a reading that began after a time
// if one is done soon. known is false before anything was read. The error says why
// pools may be missing.
func (r *readings) get(after time.Time) (all []web.Input, known bool, err error) {
	patience, end := context.WithTimeout(context.Background(), readPatience)
	defer end()
	r.mu.Lock()
	defer r.mu.Unlock()
	wait := func(done <-chan struct{}) (inTime bool) {
		r.mu.Unlock()
		defer r.mu.Lock()
		select {
		case <-done:
			return true
		case <-patience.Done(): // for the second wait too
			return false
		}
	}
	for r.done.IsZero() || r.done.Before(after) {
		if !wait(r.read()) {
			break
		}
	}
	if r.past != nil && (r.looked.IsZero() || r.now().Sub(r.looked).Abs() > pastEvery || r.hasNew()) {
		if looking := r.look(); r.looked.IsZero() {
			wait(looking)
		}
	}
	for _, uuid := range slices.SortedFunc(maps.Keys(r.held), func(a, b btrfs.UUID) int { return slices.Compare(a[:], b[:]) }) {
		in := *r.held[uuid]
		if past := r.pasts[uuid]; past != nil {
			in.History, in.Hour, in.Forecast, in.Errors = past.History, past.Hour, past.Forecast, past.Errors
		}
		all = append(all, in)
	}
	return all, !r.done.IsZero(), r.err
}

// hasNew tells whether there is a pool of which the history was not asked.
func (r *readings) hasNew() bool {
	for uuid := range r.held {
		if r.pasts[uuid] == nil {
			return true
		}
	}
	return false
}

// read begins a reading unless one is under way. r.mu is held.
func (r *readings) read() <-chan struct{} {
	if r.running != nil {
		return r.running
	}
	running, began := make(chan struct{}), r.now()
	r.running = running
	go func() {
		defer close(running)
		pools, err := r.pools.Pools()
		inputs := make([]*web.Input, len(pools))
		for i := range pools {
			inputs[i] = &web.Input{Reading: pools[i], Read: began}
			r.about(inputs[i])
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.running, r.done, r.err = nil, began, err
		r.take(inputs)
	}()
	return running
}

// take keeps a reading. Of a pool that gave no facts those of before are kept.
func (r *readings) take(inputs []*web.Input) {
	held := make(map[btrfs.UUID]*web.Input, len(inputs))
	for _, in := range inputs {
		uuid := in.Reading.UUID
		if before := r.held[uuid]; in.Reading.Facts == nil {
			in.Silent = in.Read
			if before != nil && !before.Silent.IsZero() {
				in.Silent = before.Silent
			}
			if before != nil && before.Reading.Facts != nil {
				in.Reading.Facts, in.Read = before.Reading.Facts, before.Read
			}
		}
		held[uuid] = in
	}
	r.held = held
}

// look asks the history unless it is being asked. r.mu is held.
func (r *readings) look() <-chan struct{} {
	if r.looking != nil {
		return r.looking
	}
	looking, now := make(chan struct{}), r.now()
	r.looking = looking
	pools := slices.Collect(maps.Keys(r.held))
	go func() {
		defer close(looking)
		pasts := make(map[btrfs.UUID]*web.Input, len(pools))
		for _, uuid := range pools {
			in := &web.Input{Reading: collector.PoolReading{UUID: uuid}}
			r.past(in, now)
			pasts[uuid] = in
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.looking, r.looked, r.pasts = nil, now, pasts
	}()
	return looking
}
