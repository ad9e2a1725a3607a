package collector

import (
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// reading is what one scrape learned of one pool.
type reading struct {
	uuid    btrfs.UUID
	label   string
	facts   *Facts // nil if the pool could not be read
	err     error
	took    time.Duration
	ignored bool // excluded, or gone
}

// read starts reading every pool and yields each as it is done, in the order
// of the source. What the iterator waits for is bounded by the timeout.
func (e *Exporter) read() (iter.Seq[reading], error) {
	e.mu.Lock()
	patience := e.timeout / 2
	e.mu.Unlock()
	mounts, err := e.mounts.List(patience)

	e.mu.Lock()
	defer e.mu.Unlock()
	type started struct {
		*poller
		*call
	}
	var (
		calls   []started
		current = make(map[string]bool, len(mounts))
		timer   = time.NewTimer(e.timeout)
		timeout = e.timeout
		exclude = e.exclude
	)
	for i := range mounts {
		m := &mounts[i]
		if exclude(m.UUID, "") {
			continue
		}
		key := m.Device + " " + m.UUID.String()
		current[key] = true
		p := e.pollers[key]
		if p == nil {
			p = &poller{logger: e.logger, reader: e.source.Reader(), uuid: m.UUID}
			e.pollers[key] = p
		}
		calls = append(calls, started{p, p.start(m)})
	}
	for key, p := range e.pollers {
		// A pool that is gone while its reading hangs keeps its poller, so
		// that it is known when it comes back.
		if !current[key] && !p.busy() {
			delete(e.pollers, key)
		}
	}
	return func(yield func(reading) bool) {
		defer timer.Stop()
		expired := false
		for _, c := range calls {
			if !expired && !c.overdue(timeout) {
				select {
				case <-c.done:
				case <-timer.C:
					expired = true
				}
			}
			if !yield(c.result(c.call, timeout, exclude)) {
				return
			}
		}
	}, err
}

// poller reads one pool, at most once at a time: however often a pool whose
// disk hangs is scraped, one goroutine waits for it.
type poller struct {
	logger log.Logger
	reader PoolReader

	mu      sync.Mutex
	uuid    btrfs.UUID // the last known
	label   string     // likewise
	running *call
	fault   string // the last error that was logged
}

// call is one reading under way, shared by all scrapes that come meanwhile.
type call struct {
	started time.Time
	done    chan struct{} // closed when facts, err and took are set
	facts   *Facts
	err     error
	took    time.Duration
}

func (p *poller) start(m *btrfs.Mount) *call {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running != nil {
		return p.running
	}
	c := &call{started: time.Now(), done: make(chan struct{})}
	p.running = c
	go func() {
		c.facts, c.err = p.reader.Read(m)
		c.took = time.Since(c.started)
		p.mu.Lock()
		p.running = nil
		if c.facts != nil {
			p.uuid, p.label = c.facts.Pool.UUID, c.facts.Pool.Label
		}
		p.mu.Unlock()
		close(c.done)
	}()
	return c
}

func (p *poller) busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running != nil
}

// overdue tells whether a reading hangs since an earlier scrape already. No
// scrape waits for it again.
func (c *call) overdue(timeout time.Duration) bool { return time.Since(c.started) >= timeout }

func (p *poller) result(c *call, timeout time.Duration, exclude func(btrfs.UUID, string) bool) reading {
	r := reading{}
	select {
	case <-c.done:
		r.facts, r.err, r.took = c.facts, c.err, c.took
	default:
		r.took = time.Since(c.started)
		r.err = fmt.Errorf("no answer after %s: a disk of the pool may hang (see the kernel log)", timeout)
	}
	p.mu.Lock()
	r.uuid, r.label = p.uuid, p.label
	r.ignored = exclude(p.uuid, p.label) || errors.Is(r.err, ErrGone)
	changed := !r.ignored && p.noteFault(r)
	p.mu.Unlock()
	// Not under the lock: where the log goes may hang as well.
	if changed {
		p.log(r)
	}
	return r
}

// noteFault tells whether a fault came, changed or went, so that it is logged
// then and not at each scrape.
func (p *poller) noteFault(r reading) bool {
	text := ""
	if r.err != nil {
		text = "partly read"
		if r.facts == nil {
			text = "not read"
		}
		text += ": " + r.err.Error()
	}
	changed := text != p.fault
	p.fault = text
	return changed
}

func (p *poller) log(r reading) {
	switch {
	case r.facts == nil:
		level.Error(p.logger).Log("msg", "pool could not be read", "pool", r.uuid, "err", r.err)
	case r.err != nil:
		level.Warn(p.logger).Log("msg", "pool could be read in part only", "pool", r.uuid, "err", r.err)
	default:
		level.Info(p.logger).Log("msg", "pool can be read again", "pool", r.uuid)
	}
}
