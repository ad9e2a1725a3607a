package notify

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/go-kit/log/level"
)

// lane is the queue of one receiver. Each has a worker of its own, so that a
// receiver that is slow or dead holds up no other.
type lane struct {
	bridge *Bridge
	name   string
	wake   chan struct{} // gets a value when there is something new

	// These are for who holds mu of the bridge.
	service  *service // nil before the first settings
	queue    []*entry // the oldest first
	bytes    int      // of their lines
	counts   map[Result]uint64
	failures uint64
	stop     context.CancelFunc // nil before there is a worker
}

// How what was not accepted is counted.
const (
	rejected Result = "rejected" // the queue was full
	unknown  Result = "unknown"  // there is no such receiver
)

func newLane(b *Bridge, name string) *lane {
	return &lane{bridge: b, name: name, wake: make(chan struct{}, 1), counts: make(map[Result]uint64)}
}

func (l *lane) push(e *entry) {
	l.queue = append(l.queue, e)
	l.bytes += len(e.line) + 1
}

func (l *lane) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// head returns the next to send, or nil, and to whom.
func (l *lane) head() (*entry, *service) {
	l.bridge.mu.Lock()
	defer l.bridge.mu.Unlock()
	if len(l.queue) == 0 {
		return nil, l.service
	}
	return l.queue[0], l.service
}

// end takes an entry out of the queue and writes down why. It does not come back,
// whatever the disk says.
func (l *lane) end(e *entry, result Result) {
	b := l.bridge
	b.disk.Lock()
	defer b.disk.Unlock()
	b.mu.Lock()
	if e.ended { // its receiver went meanwhile
		b.mu.Unlock()
		return
	}
	e.ended = true
	l.queue[0] = nil
	l.queue = l.queue[1:]
	l.bytes -= len(e.line) + 1
	l.counts[result]++
	b.remember(e, result)
	b.mu.Unlock()
	b.ended(b.disk.end(endLine(e.id, result)))
}

func (l *lane) failed() {
	l.bridge.mu.Lock()
	defer l.bridge.mu.Unlock()
	l.failures++
}

// The waits between attempts.
const (
	firstBackOff = time.Second
	maxBackOff   = 5 * time.Minute
	mendInterval = 5 * time.Minute // while somebody has to do something
)

// backOff is how long to wait after so many failures: twice as long each time, and
// not all at once when a service comes back.
func backOff(failures int) time.Duration {
	longest := maxBackOff
	if failures < 9 {
		longest = min(longest, 2*firstBackOff<<failures)
	}
	return longest/2 + rand.N(longest/2+1)
}

// worker is what the worker of a lane knows.
type worker struct {
	lane    *lane
	service *service
	// The attempts since one succeeded, or since the settings changed.
	failures int
	told     bool // the log knows that somebody has to do something
	looks    int  // at whether the first of the queue is there
	next     time.Time
	asked    time.Time // until then the service wants to be left alone
	attempts window
}

// maxLooks is how often it is tried to find out whether a notification is there,
// before it is sent for good.
const maxLooks = 5

// run sends what is in the queue until the context ends.
func (l *lane) run(ctx context.Context) {
	w := &worker{lane: l}
	defer func() {
		if w.service != nil {
			w.service.close()
		}
	}()
	for ctx.Err() == nil {
		e, s := l.head()
		w.use(s)
		var due <-chan time.Time
		if e != nil {
			now := l.bridge.clock.Now()
			wait := max(w.next.Sub(now), w.asked.Sub(now), w.attempts.wait(now, s.rateLimit))
			if wait <= 0 {
				w.attempt(ctx, e)
				continue
			}
			due = l.bridge.clock.After(wait)
		}
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-due:
		}
	}
}

// use goes on with other settings. They may be what was to be mended.
func (w *worker) use(s *service) {
	if s == w.service {
		return
	}
	if w.service != nil {
		w.service.close()
		if s == nil || s.url == nil || w.service.url == nil || s.url.Host != w.service.url.Host {
			w.asked = time.Time{}
		}
	}
	w.service, w.failures, w.told, w.looks, w.next = s, 0, false, 0, time.Time{}
}

// attempt tries to send an entry once.
func (w *worker) attempt(ctx context.Context, e *entry) {
	// One that is under way when the daemon stops is waited for: then it is known
	// what became of it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	b, logger := w.lane.bridge, w.lane.bridge.logger
	if w.service.closed != nil {
		w.reopen(e)
		return
	}
	now := b.clock.Now()
	if e.unsure && w.service.kind == Ntfy && w.looks < maxLooks {
		w.looks++
		found, a := w.service.look(ctx, e.id, now.Sub(e.accepted))
		switch {
		case found:
			level.Info(logger).Log("msg", "A notification of which this was not known has been sent", "receiver", w.lane.name, "notification", e.id)
			w.succeed(e, Sent)
			return
		case a.reason != "" && a.outcome == again:
			w.fail(e, a)
			return
		case a.reason != "":
			level.Warn(logger).Log("msg", "Whether a notification was sent cannot be found out; it is sent again", "receiver", w.lane.name, "err", a.reason)
		}
		e.unsure = false
	}
	m, out, err := e.message()
	if err != nil {
		w.refuse(e, err.Error())
		return
	}
	n, err := w.service.notification(e.id, m, out)
	if err != nil {
		level.Error(logger).Log("msg", "A template failed; the notification is sent without it", "receiver", w.lane.name, "err", err)
	}
	w.attempts.add(now, w.service.rateLimit)
	a := w.service.send(ctx, n)
	switch a.outcome {
	case delivered:
		level.Info(logger).Log("msg", "Sent a notification", "receiver", w.lane.name, "notification", e.id, "alerts", len(m.Alerts))
		w.succeed(e, Sent)
		w.asked = now.Add(a.after)
	case refused:
		w.refuse(e, a.reason)
	default:
		e.unsure = e.unsure || a.unsure
		w.fail(e, a)
	}
}

// reopen tries to open a service that is closed; the next attempt is with that.
func (w *worker) reopen(e *entry) {
	if s := w.lane.bridge.reopen(w.lane.name, w.service); s.closed != nil {
		w.told = true // when it was put in place
		w.fail(e, answer{outcome: mend, reason: s.closed.Error()})
	}
}

func (w *worker) refuse(e *entry, reason string) {
	level.Error(w.lane.bridge.logger).Log("msg", "A notification was refused, and is given up", "receiver", w.lane.name, "notification", e.id, "err", reason)
	w.succeed(e, Refused)
}

// succeed ends an entry: the service answers.
func (w *worker) succeed(e *entry, result Result) {
	if w.failures > 0 {
		level.Info(w.lane.bridge.logger).Log("msg", "Notifications are sent again", "receiver", w.lane.name, "failed_attempts", w.failures)
	}
	w.failures, w.told, w.looks, w.next = 0, false, 0, time.Time{}
	w.lane.end(e, result)
}

// fail keeps an entry for later.
func (w *worker) fail(e *entry, a answer) {
	w.lane.failed()
	logger := level.Debug(w.lane.bridge.logger)
	wait := backOff(w.failures)
	switch {
	case a.outcome == mend:
		if !w.told {
			logger = level.Error(w.lane.bridge.logger)
		}
		wait, w.told = mendInterval, true
	case w.failures == 0:
		logger = level.Warn(w.lane.bridge.logger)
	}
	w.failures++
	now := w.lane.bridge.clock.Now()
	w.next, w.asked = now.Add(wait), now.Add(a.after)
	wait = max(wait, a.after)
	logger.Log("msg", "A notification could not be sent; it is tried again", "receiver", w.lane.name, "notification", e.id, "err", a.reason, "wait", fmt.Sprint(wait.Round(time.Millisecond)))
}

// window is the attempts of the last minute.
type window struct{ times []time.Time }

// wait is how long until there may be another one.
func (w *window) wait(now time.Time, limit int) time.Duration {
	if len(w.times) < limit {
		return 0
	}
	return w.times[len(w.times)-limit].Add(time.Minute).Sub(now)
}

func (w *window) add(now time.Time, limit int) {
	if w.times = append(w.times, now); len(w.times) > 2*limit {
		w.times = append(w.times[:0], w.times[len(w.times)-limit:]...)
	}
}
