package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"

	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// Clock is the time. It comes in, so that tests need not wait.
type Clock interface {
	Now() time.Time
	// After sends the time once so much has passed.
	After(d time.Duration) <-chan time.Time
}

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Config is what a Bridge needs.
type Config struct {
	Logger  log.Logger
	State   *state.Dir
	Clock   Clock  // nil is that of the system
	Version string // of the program, which services are told
}

// Bridge keeps notifications and sends them. Its methods may be called from any
// goroutine.
type Bridge struct {
	logger  log.Logger
	clock   Clock
	version string

	disk    disk
	changed chan struct{} // gets a value when Run has something to do

	// Who takes both disk and mu takes disk first, so that metrics never wait for a
	// disk.
	mu       sync.Mutex
	lanes    map[string]*lane
	recent   map[string]recent // by key
	sequence uint64            // of the last entry
	// What has no receiver any more is counted here.
	dropped map[string]uint64 // by its name
	unknown uint64            // never had one
}

// Result is what became of a notification.
type Result string

// What Accept returns: Queued and Duplicate. The others are how one ends.
const (
	Queued    Result = "queued"
	Duplicate Result = "duplicate"
	Sent      Result = "sent"
	Refused   Result = "refused" // by the service
	Dropped   Result = "dropped" // with its receiver
)

func (r Result) ended() bool { return r == Sent || r == Refused || r == Dropped }

var (
	// ErrUnknownReceiver is returned for a receiver that is not configured.
	ErrUnknownReceiver = errors.New("there is no such receiver")
	// ErrQueueFull is returned while a receiver has as much waiting as may be.
	// Alertmanager sends again what is not accepted.
	ErrQueueFull = errors.New("too many notifications wait to be sent")
)

// New returns a Bridge with the queue that is on the disk. A damaged line of it is
// set aside and logged. Nothing is accepted or sent before SetSettings.
func New(c Config) (*Bridge, error) {
	b := &Bridge{
		logger: c.Logger, clock: c.Clock, version: c.Version, changed: make(chan struct{}, 1),
		lanes: make(map[string]*lane), recent: make(map[string]recent), dropped: make(map[string]uint64),
	}
	if b.clock == nil {
		b.clock = systemClock{}
	}
	err := b.load(c.State)
	if b.disk.journal == nil {
		return nil, err
	}
	if err != nil {
		level.Error(b.logger).Log("msg", "Notifications may be lost", "err", err)
	}
	return b, nil
}

// SetSettings has the bridge send to these receivers from now on, also what waits
// already. What waits for one that is no longer there is dropped. With an error
// everything stays as it was.
func (b *Bridge) SetSettings(receivers []Receiver) error {
	use, err := b.Prepare(receivers)
	if err == nil {
		use()
	}
	return err
}

// Prepare does of SetSettings what can fail, and changes nothing; use does the
// rest.
func (b *Bridge) Prepare(receivers []Receiver) (use func(), err error) {
	services, err := b.services(receivers)
	if err != nil {
		return nil, err
	}
	for i := range receivers { // in their order, so that the error is the same each time
		if err := services[receivers[i].Name].check(); err != nil {
			return nil, err
		}
	}
	return func() { b.use(services) }, nil
}

// PrepareStart is Prepare for the first settings, where there are none to stay with.
// A receiver with a file that cannot be read, or that holds something else, is no
// error: its notifications wait until that is mended.
func (b *Bridge) PrepareStart(receivers []Receiver) (use func(), err error) {
	services, err := b.services(receivers)
	if err != nil {
		return nil, err
	}
	return func() { b.use(services) }, nil
}

func (b *Bridge) services(receivers []Receiver) (map[string]*service, error) {
	services := make(map[string]*service, len(receivers))
	for i := range receivers {
		r := &receivers[i]
		if services[r.Name] != nil {
			return nil, fmt.Errorf("receiver %.64q: there are two of that name", r.Name)
		}
		s, err := r.service(b.version)
		if err != nil {
			return nil, err
		}
		services[r.Name] = s
	}
	return services, nil
}

// use puts services in place.
func (b *Bridge) use(services map[string]*service) {
	b.disk.Lock()
	defer b.disk.Unlock()
	dropped := b.replace(services)
	var lines []json.RawMessage
	for name, entries := range dropped {
		level.Warn(b.logger).Log("msg", "Dropped the notifications of a receiver that is no longer configured", "receiver", name, "notifications", len(entries))
		for _, e := range entries {
			lines = append(lines, endLine(e.id, Dropped))
		}
	}
	if len(lines) > 0 {
		b.ended(b.disk.end(lines...))
	}
	for name, s := range services {
		b.tell(name, s)
	}
	b.signal()
}

// tell logs what somebody should do about a receiver.
func (b *Bridge) tell(name string, s *service) {
	switch {
	case s.closed != nil:
		level.Error(b.logger).Log("msg", "A receiver cannot be used; its notifications wait until this is mended", "receiver", name, "err", s.closed)
	case s.inTheClear():
		level.Warn(b.logger).Log("msg", "What gives access to a receiver goes over the network unencrypted; use https", "receiver", name)
	}
}

// reopen opens a service that is closed, and puts it in place unless another one is
// there by now.
func (b *Bridge) reopen(name string, closed *service) *service {
	s := closed.reopened()
	if s.closed != nil {
		return s
	}
	b.mu.Lock()
	l := b.lanes[name]
	current := l != nil && l.service == closed
	if current {
		l.service = s
		l.signal()
	}
	b.mu.Unlock()
	if current {
		level.Info(b.logger).Log("msg", "A receiver that was closed can be used", "receiver", name)
		b.tell(name, s)
	}
	return s
}

// replace puts services in place, and returns what waited for those that go.
func (b *Bridge) replace(services map[string]*service) (dropped map[string][]*entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	dropped = make(map[string][]*entry)
	for name, l := range b.lanes {
		if services[name] != nil {
			continue
		}
		if len(l.queue) > 0 {
			dropped[name] = l.queue
			b.dropped[name] += uint64(len(l.queue))
		}
		for _, e := range l.queue {
			e.ended = true
			b.remember(e, Dropped)
		}
		l.queue, l.bytes = nil, 0
		if l.stop != nil {
			l.stop()
		}
		delete(b.lanes, name)
	}
	for name, s := range services {
		l := b.lane(name)
		l.service = s
		l.signal()
	}
	return dropped
}

// remember keeps how an entry ended for as long as it may come again. The caller
// holds mu.
func (b *Bridge) remember(e *entry, result Result) {
	if r, ok := b.recent[e.key]; ok && r.id == e.id {
		r.result = result
		b.recent[e.key] = r
	}
}

// ended is called with the disk held when the end of something was written, or
// could not be.
func (b *Bridge) ended(err error) {
	if err != nil {
		level.Error(b.logger).Log("msg", "What was sent could not be written down; after a restart it may be sent again", "err", err)
		b.signal() // Run tries again
		return
	}
	b.compact()
}

func (b *Bridge) signal() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// Bounds of what waits for all receivers together, all of which is in memory. Each
// has its share, so that one that is dead leaves the others theirs.
const (
	maxQueued      = 10_000
	maxQueuedBytes = 8 << 20
	// Shares change with the number of receivers, and what waits does not.
	hardQueuedBytes = maxQueuedBytes * 3 / 2
)

// Accept takes a message for a receiver. When it returns Queued the notification is
// on the disk: it will be sent, whatever happens to this process or the machine.
// Duplicate is a message that says what one of the last five minutes said, for
// Alertmanager repeats a webhook whose answer it did not get, and each member of a
// cluster may send it; or what the newest one of its group says that is still to be
// sent. The errors are ErrUnknownReceiver, ErrQueueFull, and those of
// the disk; then nothing was kept.
//
// A notification is sent once, but where it cannot be known whether it has been:
// where the process is killed, the connection breaks or a proxy answers with an
// error, after the service took it and before its answer is written down. Each time
// that is one notification of a receiver at most. The bridge then asks the topic of
// ntfy whether it is there, for which it needs ntfy 2.16 or later and the permission
// to read the topic. With the token of an application Gotify shows no messages, and
// a webhook of Discord only those whose id it got in an answer: to these it is sent
// again rather than lost. A stop waits for the answer.
func (b *Bridge) Accept(name string, m *alertmanager.Message) (Result, error) {
	if len(m.Alerts) == 0 {
		return "", fmt.Errorf("keep a notification: %w: it has no alerts", alertmanager.ErrBadMessage)
	}
	now := b.clock.Now()
	e, err := newEntry(name, m, now)
	if err != nil {
		return "", fmt.Errorf("keep a notification: %w", err)
	}
	b.disk.Lock()
	defer b.disk.Unlock()
	duplicate, err := b.admit(e, now)
	if err != nil {
		return "", err
	}
	if duplicate {
		return Duplicate, nil
	}
	if err := b.disk.append(e.line); err != nil {
		return "", fmt.Errorf("keep a notification: %w", err)
	}
	b.mu.Lock()
	b.sequence++
	e.sequence = b.sequence
	b.recent[e.key] = recent{id: e.id, receiver: name, accepted: now}
	l := b.lane(name) // which stays while the disk is held
	l.push(e)
	l.signal()
	b.mu.Unlock()
	b.compact()
	return Queued, nil
}

// admit reports whether an entry has been there already, or why it cannot be taken.
func (b *Bridge) admit(e *entry, now time.Time) (duplicate bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.lanes[e.receiver]
	if l == nil || l.service == nil {
		b.unknown++
		return false, fmt.Errorf("receiver %.64q: %w", e.receiver, ErrUnknownReceiver)
	}
	if r, ok := b.recent[e.key]; ok && r.fresh(now) && r.result != Dropped || l.waits(e) {
		l.counts[Duplicate]++
		return true, nil
	}
	all := 0
	for _, other := range b.lanes {
		all += other.bytes
	}
	share := len(b.lanes)
	if len(l.queue) >= max(maxQueued/share, 1) || l.bytes+len(e.line) > maxQueuedBytes/share || all+len(e.line) > hardQueuedBytes {
		l.counts[rejected]++
		return false, fmt.Errorf("receiver %q: %w: %d", e.receiver, ErrQueueFull, len(l.queue))
	}
	return false, nil
}

// lane returns that of a receiver, a new one if need be. The caller holds mu.
func (b *Bridge) lane(name string) *lane {
	l := b.lanes[name]
	if l == nil {
		l = newLane(b, name)
		b.lanes[name] = l
	}
	return l
}

// owedInterval is how often it is tried to write down what could not be.
const owedInterval = 10 * time.Second

// Run sends what was accepted, to each receiver in its own time, until the context
// ends. Then it waits for the answers that are under way, for 15 s at most. It may
// be called once.
func (b *Bridge) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	for ctx.Err() == nil {
		for _, start := range b.unstarted(ctx) {
			workers.Go(start)
		}
		var owed <-chan time.Time
		b.disk.Lock()
		if len(b.disk.owed) > 0 {
			owed = b.clock.After(owedInterval)
		}
		b.disk.Unlock()
		select {
		case <-ctx.Done():
		case <-b.changed:
		case <-owed:
			b.disk.Lock()
			b.ended(b.flush())
			b.disk.Unlock()
		}
	}
	workers.Wait()
	b.disk.Lock()
	defer b.disk.Unlock()
	return b.flush()
}

// unstarted returns the work of the lanes that have no worker yet.
func (b *Bridge) unstarted(ctx context.Context) (starts []func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lanes {
		if l.service == nil || l.stop != nil {
			continue
		}
		laneCtx, stop := context.WithCancel(ctx)
		l.stop = stop
		starts = append(starts, func() {
			defer stop()
			l.run(laneCtx)
		})
	}
	return starts
}

// Test sends a notification to a receiver at once, past the queue and the rate
// limit. The error says what the service answered.
func (b *Bridge) Test(ctx context.Context, name string) error {
	b.mu.Lock()
	var s *service
	if l := b.lanes[name]; l != nil {
		s = l.service
	}
	b.mu.Unlock()
	if s == nil {
		return fmt.Errorf("receiver %.64q: %w", name, ErrUnknownReceiver)
	}
	if s.closed != nil {
		s = b.reopen(name, s)
	}
	if err := s.check(); err != nil {
		return err
	}
	m := samples()[0]
	m.Alerts[0].StartsAt = b.clock.Now()
	n, err := s.notification(newID(), m, leftOut{})
	if err != nil {
		return fmt.Errorf("receiver %q: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if a := s.send(ctx, n); a.outcome != delivered {
		return fmt.Errorf("receiver %q: %s", name, a.reason)
	}
	return nil
}
