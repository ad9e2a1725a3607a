package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/web"
)

// liveInterval is how often the sections of open pages are drawn again.
const liveInterval = 2 * time.Second

// sectionID names a section of a pool.
type sectionID struct {
	pool btrfs.UUID
	name string
}

// live keeps open pages up to date. However many there are, each section is drawn
// once for all who may see the same, and only what changed is sent. A reader that is
// slow holds up nobody, and gets what is newest when it reads again.
type live struct {
	draw     func(web.Control) (map[sectionID][]byte, error)
	jobs     *job.Store
	stopping <-chan struct{}

	mu      sync.Mutex
	version uint64 // of the newest change
	views   map[web.Control]*liveView
	loop    bool          // it runs
	woken   chan struct{} // has a value when something is known to have changed
}

// liveView is what those see who may do the same.
type liveView struct {
	sections map[sectionID]liveSection
	// pools is the version at which the pools there are changed last.
	pools   uint64
	readers map[chan struct{}]bool // each gets a value when there is something new
}

// liveSection is a section, ready to be sent.
type liveSection struct {
	html    []byte
	event   []byte
	version uint64
}

func newLive(draw func(web.Control) (map[sectionID][]byte, error), jobs *job.Store, stopping <-chan struct{}) *live {
	return &live{draw: draw, jobs: jobs, stopping: stopping, views: make(map[web.Control]*liveView), woken: make(chan struct{}, 1)}
}

// wake has everything looked at now.
func (l *live) wake() {
	select {
	case l.woken <- struct{}{}:
	default:
	}
}

// join adds a reader to those who may do the same.
func (l *live) join(control web.Control) (news chan struct{}, leave func()) {
	news = make(chan struct{}, 1)
	l.mu.Lock()
	v := l.views[control]
	if v == nil {
		v = &liveView{readers: make(map[chan struct{}]bool)}
		l.views[control] = v
	}
	v.readers[news] = true
	if v.sections != nil {
		news <- struct{}{} // what changed since its page was drawn
	}
	if !l.loop {
		l.loop = true
		go l.run()
	}
	l.mu.Unlock()
	l.wake()
	return news, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if delete(v.readers, news); len(v.readers) == 0 && l.views[control] == v {
			delete(l.views, control)
		}
		l.wake() // without readers the loop ends
	}
}

// run draws for as long as there are readers.
func (l *live) run() {
	events, stop := l.jobs.Subscribe()
	defer stop()
	timer := time.NewTicker(liveInterval)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-l.woken:
		case e := <-events:
			if e.Type != "job" {
				continue // the progress of a scrub waits for the timer
			}
		case <-l.stopping:
			l.mu.Lock()
			l.loop = false
			l.mu.Unlock()
			return
		}
		l.mu.Lock()
		if len(l.views) == 0 {
			l.loop = false
			l.mu.Unlock()
			return
		}
		controls := make([]web.Control, 0, len(l.views))
		for c := range l.views {
			controls = append(controls, c)
		}
		l.mu.Unlock()
		for _, c := range controls {
			// A pool that cannot be drawn is drawn the next time.
			if sections, err := l.draw(c); err == nil {
				l.publish(c, sections)
			}
		}
	}
}

// publish notes what changed, and tells the readers.
func (l *live) publish(control web.Control, drawn map[sectionID][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.views[control]
	if v == nil {
		return
	}
	l.version++
	first, changed := v.sections == nil, false
	others := len(drawn) != len(v.sections)
	sections := make(map[sectionID]liveSection, len(drawn))
	for id, html := range drawn {
		before, known := v.sections[id]
		others = others || !known
		if known && bytes.Equal(before.html, html) {
			sections[id] = before
			continue
		}
		changed = true
		sections[id] = liveSection{html: html, event: sectionEvent(id, html), version: l.version}
	}
	v.sections = sections
	if others && !first {
		v.pools, changed = l.version, true
	}
	if !changed && !first {
		return
	}
	for news := range v.readers {
		select {
		case news <- struct{}{}:
		default:
		}
	}
}

// sectionEvent is the event that replaces a section of a page.
func sectionEvent(id sectionID, html []byte) []byte {
	text, err := json.Marshal(map[string]string{"id": web.SectionID(id.pool, id.name), "html": string(html)})
	if err != nil {
		return nil // of strings alone: it cannot be
	}
	return fmt.Appendf(nil, "event: section\ndata: %s\n\n", text)
}

// since returns the events of what is newer than a version, of one pool or of all,
// and the version that a reader of them has. reload tells that there are other pools
// than at that version, or that the one pool is gone.
func (l *live) since(control web.Control, version uint64, pool btrfs.UUID) (events []byte, now uint64, reload bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.views[control]
	if v == nil {
		return nil, version, false
	}
	there := false
	for id, s := range v.sections {
		if pool.IsZero() || pool == id.pool {
			there = true
			if s.version > version {
				events = append(events, s.event...)
			}
		}
	}
	if pool.IsZero() {
		return events, l.version, version > 0 && v.pools > version
	}
	return events, l.version, v.sections != nil && !there
}

// sections draws all sections for those who may do the same.
func (p *page) sections(control web.Control) (map[sectionID][]byte, error) {
	held, known, _ := p.readings.get()
	if !known {
		return nil, fmt.Errorf("the pools have not answered yet")
	}
	now := time.Now()
	all := make(map[sectionID][]byte)
	for i := range held {
		in := p.input(&held[i], now)
		pool := web.Build(&in, control, now)
		for _, name := range web.Sections() {
			html, err := p.renderer.Section(name, pool)
			if err != nil {
				return nil, err
			}
			all[sectionID{held[i].UUID, name}] = html
		}
	}
	return all, nil
}

// stream sends the sections of a page as they change, as server-sent events.
func (p *page) stream(w http.ResponseWriter, r *http.Request) {
	var pool btrfs.UUID
	if name := r.URL.Query().Get("pool"); name != "" {
		var err error
		if pool, err = btrfs.ParseUUID(strings.ToLower(name)); err != nil {
			p.fail(w, r, problemf(http.StatusBadRequest, "Parameter \"pool\" must be the UUID of a pool."))
			return
		}
	}
	select {
	case p.streams <- struct{}{}:
		defer func() { <-p.streams }()
	default:
		p.fail(w, r, problemf(http.StatusServiceUnavailable, "%d pages are open already: close some.", maxStreams))
		return
	}
	control := p.control(r)
	news, leave := p.live.join(control)
	defer leave()
	send := newEventWriter(w)
	if r.Method == http.MethodHead || !send.write([]byte(": what changes follows\n\n")) {
		return
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	version := uint64(0)
	for {
		var ok bool
		select {
		case <-r.Context().Done():
			return
		case <-p.cfg.Stopping:
			return
		case <-beat.C:
			if p.control(r) != control { // the session ended, or there is another token
				send.write([]byte("event: reload\ndata: {}\n\n"))
				return
			}
			ok = send.write([]byte(": still here\n\n"))
		case <-news:
			events, now, reload := p.live.since(control, version, pool)
			version = now
			if reload {
				send.write([]byte("event: reload\ndata: {}\n\n"))
				return
			}
			ok = len(events) == 0 || send.write(events)
		}
		if !ok {
			return
		}
	}
}
