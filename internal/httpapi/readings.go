package httpapi

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
)

// Timing of the readings for the status page.
const (
	// freshEnough is how old a reading may be to be shown as of now.
	freshEnough = time.Second
	// readPatience is how long a page waits for a reading: it is wanted most when a
	// disk hangs.
	readPatience = 400 * time.Millisecond
)

// readings keeps what was read last of each pool, so that nobody who looks at the
// page waits for a disk that hangs.
type readings struct {
	pools PoolCollectors
	now   func() time.Time

	mu      sync.Mutex
	running chan struct{} // closed when the reading under way is done; nil: none is
	done    time.Time     // when the last was done
	err     error         // why pools may be missing
	held    map[btrfs.UUID]heldReading
}

// heldReading is what is known of a pool.
type heldReading struct {
	collector.PoolReading
	read time.Time // when the facts were read
	late bool      // it has not answered since
}

// get returns what is known, in order of UUID. known is false before anything was
// read.
func (r *readings) get() (all []heldReading, known bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done.IsZero() || r.now().Sub(r.done).Abs() > freshEnough {
		running := r.start()
		r.mu.Unlock()
		timer := time.NewTimer(readPatience)
		select {
		case <-running:
		case <-timer.C:
		}
		timer.Stop()
		r.mu.Lock()
	}
	all = slices.SortedFunc(maps.Values(r.held), func(a, b heldReading) int {
		return slices.Compare(a.UUID[:], b.UUID[:])
	})
	return all, !r.done.IsZero(), r.err
}

// start begins a reading unless one is under way. r.mu is held.
func (r *readings) start() <-chan struct{} {
	if r.running != nil {
		return r.running
	}
	running := make(chan struct{})
	r.running = running
	// It ends by itself: what it waits for is bounded by scrape.timeout.
	go func() {
		defer close(running)
		pools, err := r.pools.Pools()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.running, r.done, r.err = nil, r.now(), err
		r.take(pools)
	}()
	return running
}

// take keeps a reading. Of a pool that did not answer the facts of before are kept.
func (r *readings) take(pools []collector.PoolReading) {
	held := make(map[btrfs.UUID]heldReading, len(pools))
	for i := range pools {
		h := heldReading{PoolReading: pools[i], read: r.done}
		if before, ok := r.held[h.UUID]; ok && h.Facts == nil && before.Facts != nil {
			h.Facts, h.read, h.late = before.Facts, before.read, true
		}
		held[h.UUID] = h
	}
	r.held = held
}
