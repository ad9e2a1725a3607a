package alertmanager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
)

// SilenceTiming says how often a Silencer looks and how long its silences live.
type SilenceTiming struct {
	// Look is how often the work is looked at, and what failed is tried again.
	Look time.Duration
	// Check is how often the silences are looked at that should be there.
	Check time.Duration
	// Life is how long after it was last written a silence ends by itself: that is
	// how long a crash leaves it.
	Life time.Duration
	// Extend is how long after it was last written a silence is extended, at the
	// next Check.
	Extend time.Duration
	// Request bounds a request, and Stop all that is done when the daemon stops.
	Request, Stop time.Duration
}

// DefaultSilenceTiming returns the timing of a daemon.
func DefaultSilenceTiming() SilenceTiming {
	return SilenceTiming{
		Look: 5 * time.Second, Check: 30 * time.Second,
		Life: 10 * time.Minute, Extend: 2*time.Minute + 15*time.Second,
		Request: 10 * time.Second, Stop: 5 * time.Second,
	}
}

// mostLife is more than a silence of ours has left: one that has was written by
// a clock that was wrong, or by a person, and is shortened.
func (t *SilenceTiming) mostLife() time.Duration { return t.Life * 3 / 2 }

// maxSkew is how far the clock of an Alertmanager may be from ours before we say
// so.
const maxSkew = time.Minute

// Silencer has Alertmanager keep silent about what work causes. It keeps no state
// of its own: the silences are found again in Alertmanager by their creator and
// the marker at the end of their comment. It is a prometheus.Collector.
type Silencer struct {
	work   func() []Work
	now    func() time.Time
	timing SilenceTiming
	logger log.Logger
	wake   chan struct{}

	successes, failures atomic.Uint64

	// Those are of Run alone.
	current *cluster
	retired []*cluster

	mu         sync.Mutex
	configured *cluster // what Configure brought and Run has not taken yet
	active     int
	known      bool // active is what Alertmanager said last, and it still answers
}

// cluster is what settings have become.
type cluster struct {
	settings SilenceSettings
	owner    string
	peers    []*peer
	answers  int // the index of the peer that answered last

	failing bool
	next    time.Time       // when to look at its silences again, at the latest
	until   time.Time       // none of ours is there after that
	done    []wantedSilence // what was wanted when it last was as it should be
	refused []marker        // what was said to be refused
}

// NewSilencer returns a Silencer of settings that are valid. It asks work what
// runs now, from the goroutine of Run: work should know by then what goes on
// again after a restart, for the silences of all else are expired.
func NewSilencer(settings SilenceSettings, timing SilenceTiming, work func() []Work, now func() time.Time, logger log.Logger) (*Silencer, error) {
	s := &Silencer{work: work, now: now, timing: timing, logger: logger, wake: make(chan struct{}, 1)}
	if err := s.Configure(settings); err != nil {
		return nil, err
	}
	return s, nil
}

// Configure changes the settings. With an error they stay as they were. Silences
// that are no longer wanted are expired by Run, on Alertmanagers that are no longer
// named too.
func (s *Silencer) Configure(settings SilenceSettings) error {
	use, err := s.Prepare(settings)
	if err == nil {
		use()
	}
	return err
}

// Prepare does of Configure what can fail, and changes nothing; use does the rest.
func (s *Silencer) Prepare(settings SilenceSettings) (use func(), err error) {
	if err := settings.Validate(); err != nil {
		return nil, err
	}
	c := &cluster{settings: settings, owner: owner(settings.Instance)}
	for i := range settings.Peers {
		p, err := newPeer(&settings.Peers[i], s.timing.Request, s.countRequest)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("alertmanagers[%d]: %w", i, err)
		}
		c.peers = append(c.peers, p)
	}
	return func() { s.use(c) }, nil
}

func (s *Silencer) use(c *cluster) {
	s.mu.Lock()
	replaced := s.configured
	s.configured = c
	s.mu.Unlock()
	if replaced != nil {
		replaced.close()
	}
	s.Wake()
}

func (s *Silencer) countRequest(err error) {
	if err != nil {
		s.failures.Add(1)
	} else {
		s.successes.Add(1)
	}
}

// Wake has the work looked at now. It never waits.
func (s *Silencer) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run keeps the silences until the context is done. Then it expires them, for
// SilenceTiming.Stop at most. It may be called once.
func (s *Silencer) Run(ctx context.Context) {
	again := time.NewTicker(s.timing.Look)
	defer again.Stop()
	for ctx.Err() == nil {
		s.look(ctx)
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-again.C:
		}
	}
	s.stop(ctx)
}

// look does what is due.
func (s *Silencer) look(ctx context.Context) {
	s.adopt()
	c, now := s.current, s.now()
	if c.settings.Off() {
		s.know(0, len(s.retired) == 0)
	} else if wanted := c.settings.wanted(s.work()); !now.Before(c.next) || !slices.EqualFunc(c.done, wanted, sameMarker) {
		s.keep(ctx, c, wanted)
	}
	s.retired = slices.DeleteFunc(s.retired, func(c *cluster) bool {
		if now.Before(c.next) {
			return false
		}
		changes, err := s.reconcile(ctx, c, nil, 0)
		if err == nil && changes == 0 {
			c.close()
			return true
		}
		if err == nil {
			return false // once more, to see that it is so
		}
		c.next = now.Add(s.timing.Check)
		if s.now().Before(c.until) {
			return false
		}
		level.Warn(s.logger).Log("msg", "silences could not be expired at an Alertmanager that is no longer configured; they have run out", "err", err)
		c.close()
		return true
	})
}

func sameMarker(a, b wantedSilence) bool { return a.marker == b.marker }

// adopt takes new settings over.
func (s *Silencer) adopt() {
	s.mu.Lock()
	c := s.configured
	s.configured = nil
	s.mu.Unlock()
	if c == nil {
		return
	}
	// What an earlier process left may be there.
	c.until = s.now().Add(s.timing.mostLife())
	if old := s.current; old != nil {
		if old.isAlso(c) {
			old.close() // its silences are seen by the new one
		} else if !old.settings.Off() {
			old.next = s.now()
			s.retired = append(s.retired, old)
		}
	}
	// What is configured again has no use for its end.
	s.retired = slices.DeleteFunc(s.retired, func(old *cluster) bool {
		if old.isAlso(c) {
			old.close()
			return true
		}
		return false
	})
	s.current = c
	s.know(0, false)
}

// isAlso reports whether what is ours in one cluster is ours in the other too: the
// peers are of one cluster, so one that both have is enough.
func (c *cluster) isAlso(other *cluster) bool {
	return c.owner == other.owner && slices.ContainsFunc(c.peers, func(p *peer) bool {
		return slices.ContainsFunc(other.peers, func(o *peer) bool { return o.base.String() == p.base.String() })
	})
}

func (c *cluster) close() {
	for _, p := range c.peers {
		p.client.CloseIdleConnections()
	}
}

// keep makes the silences of a cluster what they should be, and says when to look
// again.
func (s *Silencer) keep(ctx context.Context, c *cluster, wanted []wantedSilence) {
	changes, err := s.reconcile(ctx, c, wanted, 0)
	if ctx.Err() != nil {
		return
	}
	now := s.now()
	if err != nil {
		c.next, c.done = now, nil
		s.know(0, false)
		logAt := level.Debug
		if !c.failing {
			c.failing, logAt = true, level.Warn
		}
		logAt(s.logger).Log("msg", "silences cannot be kept in Alertmanager; it is tried again until they can", "err", err)
		return
	}
	if c.failing {
		c.failing = false
		level.Info(s.logger).Log("msg", "silences can be kept in Alertmanager again", "alertmanager", c.peers[c.answers].name)
	}
	c.done = wanted
	if len(wanted) > 0 || changes > 0 {
		c.until = now.Add(s.timing.mostLife())
	}
	switch {
	case changes > 0:
		// A peer that did not know yet what another was told may have made it
		// again, or a person may have expired it meanwhile.
		c.next = now.Add(s.timing.Look)
	case now.Before(c.until):
		c.next = now.Add(s.timing.Check)
	default:
		c.next = now.Add(farAway) // nothing of ours can be there until work begins
	}
}

const farAway = 100 * 365 * 24 * time.Hour

// reconcile does what decide says at the first peer that does it all, from the one
// on that did last time. A time for each peer bounds how long one that hangs keeps
// us from the next; 0 is none.
func (s *Silencer) reconcile(ctx context.Context, c *cluster, wanted []wantedSilence, forEach time.Duration) (changes int, err error) {
	var errs []string
	for i := range c.peers {
		n := (c.answers + i) % len(c.peers)
		p := c.peers[n]
		made, err := s.reconcileAt(ctx, c, p, wanted, forEach)
		changes += made
		if err == nil {
			if i > 0 {
				level.Info(s.logger).Log("msg", "silences are kept at another Alertmanager now", "alertmanager", p.name, "err", strings.Join(errs, "; "))
			}
			c.answers = n
			return changes, nil
		}
		errs = append(errs, fmt.Sprintf("%s: %s", p.name, err))
		if ctx.Err() != nil {
			break
		}
	}
	return changes, errors.New(strings.Join(errs, "; "))
}

func (s *Silencer) reconcileAt(ctx context.Context, c *cluster, p *peer, wanted []wantedSilence, bound time.Duration) (changes int, err error) {
	if bound > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, bound)
		defer cancel()
	}
	there, now, err := p.silences(ctx, c.owner)
	if err != nil {
		return 0, err
	}
	now = s.compareClocks(p, now)
	do := decide(c.owner, wanted, there, now, &s.timing)
	for i := range do.steps {
		stepErr := s.take(ctx, p, &do.steps[i])
		if stepErr == nil {
			changes++
			continue
		}
		if err == nil {
			err = stepErr
		} else {
			err = fmt.Errorf("%w; %w", err, stepErr)
		}
		// What it answers to one need not be what it answers to the next; where it
		// does not answer the next peer is asked.
		var refused *refusedError
		if !errors.As(stepErr, &refused) {
			return changes, err
		}
	}
	if err != nil {
		return changes, err
	}
	for _, m := range do.refused {
		if !slices.Contains(c.refused, m) {
			level.Info(s.logger).Log("msg", "a silence was expired by hand: it is not made again while this run goes on", "pool", m.pool, "operation", m.operation)
		}
	}
	c.refused = do.refused
	if c == s.current {
		s.know(do.active, true)
	}
	return changes, nil
}

// compareClocks returns what time it is for an Alertmanager. The ends of silences
// are reckoned by its clock, so that they last as long as they should wherever the
// clocks differ.
func (s *Silencer) compareClocks(p *peer, theirs time.Time) time.Time {
	ours := s.now()
	if theirs.IsZero() {
		return ours
	}
	skew := theirs.Sub(ours)
	skewed := skew.Abs() > maxSkew
	if skewed && !p.skewed {
		level.Warn(s.logger).Log("msg", "the clock of an Alertmanager differs from that of this machine; set both by NTP", "alertmanager", p.name, "ahead", skew.Round(time.Second))
	}
	p.skewed = skewed
	return theirs
}

// take does one step at a peer.
func (s *Silencer) take(ctx context.Context, p *peer, do *step) error {
	w, id := &do.silence, do.silence.ID
	var err error
	if do.kind != expire {
		id, err = p.post(ctx, w)
	}
	if errors.Is(err, errNotFound) && do.kind == extend {
		w.ID = ""
		id, err = p.post(ctx, w)
	}
	msg, logAt := "a silence is extended", level.Debug
	switch do.kind {
	case create:
		msg, logAt = "alerts are silenced", level.Info
	case end, expire:
		if errors.Is(err, errNotFound) {
			return nil
		}
		msg, logAt = "a silence is expired", level.Info
		if err == nil {
			err = p.expire(ctx, id)
		}
	}
	if err != nil {
		return err
	}
	logAt(s.logger).Log("msg", msg, "pool", do.marker.pool, "operation", do.marker.operation, "silence", id, "alertmanager", p.name)
	return nil
}

// stop expires all that is ours.
func (s *Silencer) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timing.Stop)
	defer cancel()
	s.adopt()
	all := append(slices.Clone(s.retired), s.current)
	peers := 0
	for _, c := range all {
		peers += len(c.peers)
	}
	for _, c := range all {
		if len(c.peers) > 0 && s.now().Before(c.until) {
			s.endAll(ctx, c, s.timing.Stop/time.Duration(peers))
		}
		c.close()
	}
	s.know(0, false)
}

func (s *Silencer) endAll(ctx context.Context, c *cluster, forEach time.Duration) {
	// A request that the stop cut off may still have been carried out: it is seen
	// at the second look.
	for range 3 {
		changes, err := s.reconcile(ctx, c, nil, forEach)
		if err != nil {
			level.Warn(s.logger).Log("msg", "silences could not be expired; Alertmanager ends them itself", "within", s.timing.Life, "err", err)
			return
		}
		if changes == 0 {
			return
		}
	}
}

func (s *Silencer) know(active int, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active, s.known = active, known
}
