package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-kit/log/level"

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

// leastInterval is how long it draws nothing after it has drawn, however many pages
// are opened and buttons pressed.
const leastInterval = 250 * time.Millisecond

// drawing is all that those see who may do the same.
type drawing struct {
	sections map[sectionID][]byte
	of       string // which pools it is of, see namesOf
	table    bool   // the page of all has the summary alone
}

// live keeps open pages up to date. However many there are, each section is drawn
// once for all who may see the same, and only what changed is sent. A reader that is
// slow holds up nobody, and gets what is newest when it reads again.
type live struct {
	// draw draws by readings that began after a time.
	draw     func(control web.Control, after time.Time) (drawing, error)
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
	of       string
	table    bool
	drawn    time.Time              // zero: never
	readers  map[chan struct{}]bool // each gets a value when there is something new
}

// liveSection is a section, ready to be sent.
type liveSection struct {
	html    []byte
	event   []byte
	version uint64
}

// element is the id of the element on the page.
func (id sectionID) element() string {
	if id.pool.IsZero() {
		return id.name
	}
	return web.SectionID(id.pool, id.name)
}

func newLive(draw func(web.Control, time.Time) (drawing, error), jobs *job.Store, stopping <-chan struct{}) *live {
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
	if !v.drawn.IsZero() {
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
		after := time.Time{}
		select {
		case <-timer.C:
			after = time.Now().Add(-freshEnough)
		case <-l.woken:
			after = time.Now()
		case e := <-events:
			if e.Type != "job" {
				continue // the progress of a scrub waits for the timer
			}
			after = time.Now()
		case <-l.stopping:
		}
		l.mu.Lock()
		if len(l.views) == 0 || stopped(l.stopping) {
			l.loop = false
			l.mu.Unlock()
			return
		}
		controls := slices.Collect(maps.Keys(l.views))
		l.mu.Unlock()
		for _, c := range controls {
			// What cannot be drawn is drawn the next time; meanwhile nobody is told
			// that the page is live.
			if d, err := l.draw(c, after); err == nil {
				l.publish(c, d)
			}
		}
		select {
		case <-time.After(leastInterval):
		case <-l.stopping:
		}
	}
}

func stopped(stopping <-chan struct{}) bool {
	select {
	case <-stopping:
		return true
	default:
		return false
	}
}

// publish notes what changed, and tells the readers.
func (l *live) publish(control web.Control, d drawing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.views[control]
	if v == nil {
		return
	}
	l.version++
	changed := v.drawn.IsZero() || v.of != d.of
	sections := make(map[sectionID]liveSection, len(d.sections))
	for id, html := range d.sections {
		before, known := v.sections[id]
		if known && bytes.Equal(before.html, html) {
			sections[id] = before
			continue
		}
		changed = true
		sections[id] = liveSection{html: html, event: sectionEvent(id, html), version: l.version}
	}
	v.sections, v.of, v.table, v.drawn = sections, d.of, d.table, time.Now()
	if !changed {
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
	text, err := json.Marshal(map[string]string{"id": id.element(), "html": string(html)})
	if err != nil {
		return nil // of strings alone: it cannot be
	}
	return fmt.Appendf(nil, "event: section\ndata: %s\n\n", text)
}

// news is what a reader gets.
type news struct {
	events  [][]byte // shared by all readers
	version uint64   // that the reader has then
	// reload: the pools are not those of the page.
	reload bool
}

// since returns what is newer than a version, for the page of one pool, or for that
// of all, which says which pools it is of.
func (l *live) since(control web.Control, version uint64, pool btrfs.UUID, of string) news {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.views[control]
	if v == nil || v.drawn.IsZero() {
		return news{version: version}
	}
	n := news{version: l.version}
	there := false
	for id, s := range v.sections {
		if !pool.IsZero() && pool != id.pool {
			continue
		}
		there = true
		if pool.IsZero() && v.table && !id.pool.IsZero() {
			continue
		}
		if s.version > version {
			n.events = append(n.events, s.event)
		}
	}
	n.reload = !there
	if pool.IsZero() {
		n.reload = of != v.of
	}
	return n
}

// isLive tells whether it was drawn of late for those who may do the same.
func (l *live) isLive(control web.Control) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.views[control]
	return v != nil && time.Since(v.drawn) < heartbeat
}

// sections draws everything for those who may do the same.
func (p *page) sections(control web.Control, after time.Time) (drawing, error) {
	inputs, known, missing := p.readings.get(after)
	if !known {
		return drawing{}, errors.New("the pools have not answered yet")
	}
	pools := buildAll(inputs, control)
	d := drawing{sections: make(map[sectionID][]byte), of: namesOf(pools), table: len(pools) > maxPools}
	summary, err := p.renderer.Summary(web.NewSummary(pools, missing))
	if err != nil {
		return d, err
	}
	d.sections[sectionID{name: web.SummaryID}] = summary
	for _, pool := range pools {
		uuid, err := btrfs.ParseUUID(pool.UUID)
		if err != nil {
			return d, err
		}
		for _, name := range web.Sections() {
			html, err := p.renderer.Section(name, pool)
			if err != nil {
				return d, err
			}
			d.sections[sectionID{uuid, name}] = html
		}
	}
	return d, nil
}

// draw draws for open pages. What would end a request must not end the daemon.
func (p *page) draw(control web.Control, after time.Time) (d drawing, err error) {
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("panic: %v\n%s", fault, debug.Stack())
		}
		if err != nil {
			level.Warn(p.cfg.Logger).Log("msg", "Open status pages could not be brought up to date", "err", err)
		}
	}()
	return p.sections(control, after)
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
	// The page of somebody else must not use up the streams.
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		p.fail(w, r, problemf(http.StatusForbidden, "Requests from the pages of other sites are refused."))
		return
	}
	select {
	case p.streams <- struct{}{}:
		defer func() { <-p.streams }()
	default:
		p.fail(w, r, problemf(http.StatusServiceUnavailable, "%d pages are open already: close some.", maxStreams))
		return
	}
	send := newEventWriter(w)
	if r.Method == http.MethodHead || !send.write([]byte(": what changes follows\n\n")) {
		return
	}
	control := p.control(r)
	told, leave := p.live.join(control)
	defer leave()
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
				send.write([]byte(reloadEvent))
				return
			}
			// A browser that hears nothing for a while says that the page is not live.
			if ok = true; p.live.isLive(control) {
				ok = send.write([]byte("event: beat\ndata: {}\n\n"))
			}
		case <-told:
			n := p.live.since(control, version, pool, r.URL.Query().Get("of"))
			if n.reload {
				send.write([]byte(reloadEvent))
				return
			}
			version, ok = n.version, true
			for _, event := range n.events {
				ok = ok && send.write(event)
			}
		}
		if !ok {
			return
		}
	}
}

// reloadEvent has the browser load the page again.
const reloadEvent = "event: reload\ndata: {}\n\n"
