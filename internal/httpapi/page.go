package httpapi

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/go-kit/log/level"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/web"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

// page is the status page.
type page struct {
	*api
	renderer *web.Renderer
	readings *readings
	live     *live
	// streams holds a value for each open stream.
	streams chan struct{}
	// draws holds a value for each page that is being drawn, and whatIfs for each
	// what-if that is being worked out: they cost time of the processor, and anybody
	// may ask.
	draws, whatIfs chan struct{}
}

// maxPools is how many pools the first page shows in full; with more it has a
// table of them only.
const maxPools = 8

// maxDraws and maxWhatIfs are how many are drawn and worked out at once; the others
// wait.
const maxDraws, maxWhatIfs = 2, 2

// maxStreams is how many pages may be open: anybody who may look can open one.
const maxStreams = 256

func newPage(a *api) (*page, error) {
	renderer, err := web.NewRenderer()
	if err != nil {
		return nil, fmt.Errorf("make the status page: %w", err)
	}
	p := &page{
		api: a, renderer: renderer, streams: make(chan struct{}, maxStreams),
		draws: make(chan struct{}, maxDraws), whatIfs: make(chan struct{}, maxWhatIfs),
		readings: &readings{pools: a.cfg.Pools, about: a.about, now: time.Now},
	}
	if a.cfg.History != nil || a.cfg.DeviceErrors != nil {
		p.readings.past = a.past
	}
	p.live = newLive(p.draw, a.cfg.Jobs, a.cfg.Stopping)
	return p, nil
}

// pagePaths are the paths of the page, none of which can be that of the exposition.
var pagePaths = []string{"/pools", "/assets", "/live", "/session"}

func (p *page) register(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", p.showAll)
	mux.HandleFunc("GET /pools/{pool}", p.showOne)
	mux.HandleFunc("GET /pools/{pool}/what-if", p.showAnswer)
	mux.HandleFunc("POST /pools/{pool}/{action}", p.act)
	mux.HandleFunc("POST /session", p.beginSession)
	mux.HandleFunc("POST /session/end", p.endSession)
	mux.HandleFunc("GET /live", p.stream)
	for _, asset := range p.renderer.Assets() {
		mux.HandleFunc("GET "+asset.Path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", asset.Type)
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			writeCompressed(w, r, http.StatusOK, func() []byte { return asset.Data })
		})
	}
}

// contentSecurityPolicy lets a page load nothing but our own assets, and run
// nothing that stands in it.
const contentSecurityPolicy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// htmlHeaders are those of a page and of a part of one.
func htmlHeaders(h http.Header) {
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", contentSecurityPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// writeCompressed answers with the texts, one after the other as they are made,
// compressed for whoever takes that. Who hung up gets nothing.
func writeCompressed(w http.ResponseWriter, r *http.Request, status int, texts ...func() []byte) {
	w.Header().Add("Vary", "Accept-Encoding")
	out, flush := io.Writer(w), http.NewResponseController(w).Flush
	if acceptsGzip(r.Header) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		defer func() { _ = z.Close() }()
		network := flush
		out, flush = z, func() error { return errors.Join(z.Flush(), network()) }
	}
	w.WriteHeader(status)
	for i, text := range texts {
		if i > 0 {
			_ = flush()
		}
		_, _ = out.Write(text())
	}
}

// inTurn does something when there is a place among so many. It is false where
// nobody waits for the answer any more.
func inTurn(places chan struct{}, r *http.Request, do func()) bool {
	select {
	case places <- struct{}{}:
	case <-r.Context().Done():
		return false
	}
	defer func() { <-places }()
	do()
	return true
}

// render answers with a page. What build does takes time of the processor alone, as
// drawing does; a reader that is slow has no place among those who draw. The head is
// on its way before the rest is drawn: a browser then asks for the assets.
func (p *page) render(w http.ResponseWriter, r *http.Request, status int, build func() *web.Page) {
	var v *web.Page
	ok := inTurn(p.draws, r, func() {
		v = build()
		v.Host, v.Version, v.Metrics, v.Now = p.cfg.Host, p.cfg.Version, p.cfg.TelemetryPath, time.Now()
		v.Control = p.control(r)
	})
	if !ok {
		w.WriteHeader(status) // nobody reads it, but the log tells what was refused
		return
	}
	part := func(draw func(io.Writer, *web.Page) error) func() []byte {
		return func() []byte {
			var b bytes.Buffer
			var err error
			if inTurn(p.draws, r, func() { err = draw(&b, v) }) && err != nil {
				level.Warn(p.cfg.Logger).Log("msg", "The status page could not be drawn whole", "path", shorten(r.URL.Path), "err", err)
			}
			return b.Bytes()
		}
	}
	htmlHeaders(w.Header())
	writeCompressed(w, r, status, part(p.renderer.Head), part(p.renderer.Body))
}

// about adds to an input what the runners know of its pool.
func (a *api) about(in *web.Input) {
	if a.cfg.Scrubs != nil {
		if s, err := a.cfg.Scrubs.Status(in.Reading.UUID); err == nil {
			in.Scrub = &s
		}
	}
	if a.cfg.Snapshots != nil {
		if o, ok := a.cfg.Snapshots.Overview(in.Reading.UUID); ok {
			in.Snapshots = &o
		}
	}
}

// past adds to an input what the history knows of its pool.
func (a *api) past(in *web.Input, now time.Time) {
	if a.cfg.DeviceErrors != nil {
		in.Errors = a.cfg.DeviceErrors.DeviceErrors(in.Reading.UUID)
	}
	if a.cfg.History == nil {
		return
	}
	in.History = a.cfg.History.Samples(in.Reading.UUID, now.Add(-web.HistoryShown), web.HistoryPoints)
	in.Hour = a.cfg.History.Samples(in.Reading.UUID, now.Add(-time.Hour), allOfADay)
	if f, ok := a.cfg.History.Forecast(in.Reading.UUID); ok {
		in.Forecast = &f
	}
}

// allOfADay is so many samples that none of the last hour is left out, though a
// Prometheus is asked for a day and a little.
const allOfADay = 2 * int(24*time.Hour/history.Step)

// buildAll builds pools, the worst first.
func buildAll(inputs []web.Input, control web.Control) (all []*web.Pool) {
	now := time.Now()
	for i := range inputs {
		all = append(all, web.Build(&inputs[i], control, now))
	}
	slices.SortStableFunc(all, func(a, b *web.Pool) int {
		return cmp.Or(cmp.Compare(b.Worst, a.Worst), cmp.Compare(a.Name, b.Name))
	})
	return all
}

const notYet = "The pools are being read, and have not answered yet: a disk may hang. Load the page again in a moment."

// showAll answers with the page of all pools.
func (p *page) showAll(w http.ResponseWriter, r *http.Request) {
	p.renderAll(w, r, http.StatusOK, done(w, r))
}

func (p *page) renderAll(w http.ResponseWriter, r *http.Request, status int, message *web.Message) {
	inputs, known, err := p.readings.get(time.Now())
	p.render(w, r, status, func() *web.Page {
		all := buildAll(inputs, p.control(r))
		v := &web.Page{Message: message, Summary: web.NewSummary(all, err), Live: "/live?of=" + namesOf(all), Pools: all}
		switch {
		case !known:
			v.Empty = notYet
		case err == nil:
			v.Empty = "No btrfs pool is mounted here. Mount one, and it appears by itself."
		}
		if len(all) > maxPools {
			v.Pools = nil
		}
		return v
	})
}

// namesOf is short for which pools there are.
func namesOf(pools []*web.Pool) string {
	ids := make([]string, 0, len(pools))
	for _, p := range pools {
		ids = append(ids, p.UUID)
	}
	slices.Sort(ids)
	sum := sha256.Sum256([]byte(strings.Join(ids, " ")))
	return hex.EncodeToString(sum[:6])
}

// one finds the pool that the path of a request names.
func (p *page) one(r *http.Request) (*web.Input, error) {
	inputs, known, _ := p.readings.get(time.Now())
	uuid, err := btrfs.ParseUUID(strings.ToLower(r.PathValue("pool")))
	if err == nil {
		for i := range inputs {
			if inputs[i].Reading.UUID == uuid {
				return &inputs[i], nil
			}
		}
	}
	if !known {
		return nil, problemf(http.StatusServiceUnavailable, notYet)
	}
	return nil, problemf(http.StatusNotFound, "There is no mounted pool %q.", r.PathValue("pool"))
}

// showOne answers with the page of one pool, and with what was asked about it.
func (p *page) showOne(w http.ResponseWriter, r *http.Request) {
	in, err := p.one(r)
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	q := question(r.URL.Query())
	var answer *web.Answer
	if q.Change != "" && answerable(in) {
		answer = p.answer(r, in, q)
	}
	message := done(w, r)
	p.render(w, r, http.StatusOK, func() *web.Page {
		pool := web.Build(in, p.control(r), time.Now())
		if answer != nil {
			pool.WhatIf.Ask(q)
			pool.WhatIf.Answer = answer
		}
		return &web.Page{Live: "/live?pool=" + pool.UUID, Message: message, Pools: []*web.Pool{pool}, Only: pool}
	})
}

// showAnswer answers a what-if by itself.
func (p *page) showAnswer(w http.ResponseWriter, r *http.Request) {
	in, err := p.one(r)
	if err != nil {
		p.fail(w, r, err)
		return
	}
	if !answerable(in) {
		p.fail(w, r, problemf(http.StatusServiceUnavailable, "The capacity of pool %s is not known.", in.Reading.UUID))
		return
	}
	var b bytes.Buffer
	if err := p.renderer.Answer(&b, p.answer(r, in, question(r.URL.Query()))); err != nil {
		p.fail(w, r, err)
		return
	}
	htmlHeaders(w.Header())
	_, _ = w.Write(b.Bytes()) // who hung up gets nothing
}

// answerable tells whether enough is known of a pool for a what-if.
func answerable(in *web.Input) bool {
	f := in.Reading.Facts
	return f != nil && f.Report != nil && f.Layout != nil
}

// question reads what is asked.
func question(q url.Values) web.Question {
	return web.Question{Change: q.Get("change"), Size: q.Get("size"), Device: q.Get("device"), Profile: q.Get("profile"), Of: q.Get("of")}
}

// largestDrive is what a drive in a what-if may have at most, in bytes.
const largestDrive = 1 << 50

// answer works out a what-if.
func (p *page) answer(r *http.Request, in *web.Input, q web.Question) *web.Answer {
	changes, added, err := changesOf(in.Reading.Facts.Pool, q)
	if err != nil {
		return &web.Answer{Error: err.Error()}
	}
	answer := &web.Answer{Error: "Nobody waits for the answer any more."}
	inTurn(p.whatIfs, r, func() { answer = web.WhatIf(in.Reading.Facts, changes, added) })
	return answer
}

// changesOf reads a question. The errors are sentences.
func changesOf(pool *btrfs.Pool, q web.Question) (changes []capacity.Change, added uint64, err error) {
	size := func() uint64 {
		n, parseErr := humanize.ParseBytes(q.Size)
		switch {
		case parseErr != nil || n == 0:
			err = problemf(http.StatusBadRequest, "Give the size of the new drive such as 4TB or 3.6TiB, not %q.", shorten(q.Size))
		case n > largestDrive:
			err = problemf(http.StatusBadRequest, "Give a size up to %s.", humanize.IBytes(largestDrive))
		}
		return n
	}
	device := func() uint64 {
		id, parseErr := strconv.ParseUint(q.Device, 10, 64)
		if parseErr != nil || pool.Device(id) == nil {
			err = problemf(http.StatusBadRequest, "Choose one of the drives of the pool.")
		}
		return id
	}
	switch q.Change {
	case "add":
		added = size()
		changes = []capacity.Change{capacity.AddDevice{Size: added}}
	case "replace":
		id, n := device(), size()
		if d := pool.Device(id); d != nil {
			added = n - min(n, d.Size.Value)
		}
		changes = []capacity.Change{capacity.ReplaceDevice{ID: id, Size: n}}
	case "remove":
		changes = []capacity.Change{capacity.RemoveDevice{ID: device()}}
	case "convert":
		profile, parseErr := btrfs.ParseProfile(q.Profile)
		if parseErr != nil {
			return nil, 0, problemf(http.StatusBadRequest, "Choose a profile.")
		}
		for _, t := range []btrfs.BlockGroupType{btrfs.Data, btrfs.Mixed, btrfs.Metadata, btrfs.System} {
			data := t == btrfs.Data || t == btrfs.Mixed
			if pool.Space(t) != nil && (q.Of != "data" || data) && (q.Of != "metadata" || !data) {
				changes = append(changes, capacity.Convert{Type: t, Profile: profile})
			}
		}
	default:
		return nil, 0, problemf(http.StatusBadRequest, "Choose what is changed.")
	}
	return changes, added, err
}

// action is something that a button of the page does.
type action struct {
	words string // what it is, after "to"
	done  string // what is said when it is done
	do    func(p *page, pool btrfs.UUID, requester string) (jobID string, err error)
}

func ofScrub(change func(Scrubs, btrfs.UUID) (scrub.Status, error)) func(*page, btrfs.UUID, string) (string, error) {
	return func(p *page, pool btrfs.UUID, _ string) (string, error) {
		s, err := change(p.cfg.Scrubs, pool)
		return s.JobID, err
	}
}

func ofJob(j job.Job, err error) (string, error) { return j.ID, err }

// actions are all that the buttons do, by the last part of their path.
var actions = map[string]action{
	"scrub": {"start a scrub", "The scrub is started.", func(p *page, pool btrfs.UUID, requester string) (string, error) {
		return ofJob(p.cfg.Scrubs.Start(pool, scrub.Options{Mode: scrub.Auto}, requester))
	}},
	"pause":  {"pause the scrub", "The scrub is paused.", ofScrub(Scrubs.Pause)},
	"resume": {"go on with the scrub", "The scrub goes on.", ofScrub(Scrubs.Resume)},
	"cancel": {"cancel the scrub", "The scrub is cancelled.", ofScrub(Scrubs.Cancel)},
	"snapshot": {"take snapshots", "The snapshots are being taken.", func(p *page, pool btrfs.UUID, requester string) (string, error) {
		return ofJob(p.cfg.Snapshots.Create(pool, snapshot.CreateOptions{}, requester))
	}},
}

// doneCookie names what the request before this one did, until that is said.
const doneCookie = "btrfs-governor-done"

// done says what the request before this one did, once.
func done(w http.ResponseWriter, r *http.Request) *web.Message {
	c, err := r.Cookie(doneCookie)
	if err != nil {
		return nil
	}
	http.SetCookie(w, &http.Cookie{Name: doneCookie, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil})
	if a, ok := actions[c.Value]; ok {
		return &web.Message{Severity: web.Good, Text: a.done}
	}
	return nil
}

// act does what a button says.
func (p *page) act(w http.ResponseWriter, r *http.Request) {
	sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	defer func() { p.audit(r, sw.status, sw.job) }()
	name := r.PathValue("action")
	if err := p.mayAct(r, name); err != nil {
		if refused := problemOf(err); refused.Status == http.StatusUnauthorized && wantsHTML(r) {
			p.askForToken(sw, r, name, r.PathValue("pool"), "")
			return
		}
		p.refuse(sw, r, err)
		return
	}
	p.carryOut(sw, r, name, r.PathValue("pool"))
}

// mayAct returns why an action may not be done.
func (p *page) mayAct(r *http.Request, name string) error {
	if _, known := actions[name]; !known {
		return problemf(http.StatusNotFound, "There is nothing at %s.", shorten(r.URL.Path))
	}
	switch p.control(r) {
	case web.Unlocked:
		return nil
	case web.Locked:
		return problemf(http.StatusUnauthorized, "This changes something: give the token first.")
	}
	if refused := p.authorise(r); refused != nil {
		return refused
	}
	return problemf(http.StatusForbidden, "Nothing can be changed through this page.")
}

// carryOut does an action of somebody who may.
func (p *page) carryOut(w http.ResponseWriter, r *http.Request, name, pool string) {
	uuid, err := p.find(pool)
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	a := actions[name]
	jobID, err := a.do(p, uuid, requester(r)+" (status page)")
	note(w, jobID)
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	p.live.wake()
	if !wantsHTML(r) {
		writeJSON(w, http.StatusAccepted, map[string]string{"message": a.done, "job": jobID})
		return
	}
	http.SetCookie(w, &http.Cookie{Name: doneCookie, Value: name, Path: "/", MaxAge: 30, HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil})
	http.Redirect(w, r, backTo(r, uuid), http.StatusSeeOther)
}

// find finds the pool of a button. It waits for no disk of another one.
func (p *page) find(name string) (btrfs.UUID, error) {
	uuid, err := btrfs.ParseUUID(strings.ToLower(name))
	if err == nil {
		inputs, _, _ := p.readings.get(time.Time{})
		if slices.ContainsFunc(inputs, func(in web.Input) bool { return in.Reading.UUID == uuid }) {
			return uuid, nil
		}
	}
	return p.findScrub(name)
}

// backTo is the page that a button was pressed on: that of the pool, or that of all.
func backTo(r *http.Request, pool btrfs.UUID) string {
	own := "/pools/" + pool.String()
	if u, err := url.Parse(r.Referer()); err == nil && u.Path == own {
		return own
	}
	return "/"
}

// wantsHTML tells a browser from a script.
func wantsHTML(r *http.Request) bool {
	for accepted := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		if t, _, err := mime.ParseMediaType(accepted); err == nil && t == "text/html" {
			return true
		}
	}
	return false
}

// refuse answers with an error: on the page for a browser, else as the API does.
func (p *page) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if !wantsHTML(r) {
		p.fail(w, r, err)
		return
	}
	problem := problemOf(err)
	p.renderAll(w, r, problem.Status, &web.Message{Severity: web.Critical, Text: problem.Detail})
}

// askForToken answers with the form for it; wrong says what was wrong with the last.
func (p *page) askForToken(w http.ResponseWriter, r *http.Request, name, pool, wrong string) {
	p.render(w, r, http.StatusUnauthorized, func() *web.Page {
		return &web.Page{Token: &web.TokenForm{Host: p.cfg.Host, Words: actions[name].words, Action: name, Pool: pool, Error: wrong}}
	})
}

// maxForm bounds the form with the token, in bytes.
const maxForm = 4 << 10

// beginSession takes the token, and does what it was asked for.
func (p *page) beginSession(w http.ResponseWriter, r *http.Request) {
	sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	defer func() { p.audit(r, sw.status, sw.job) }()
	switch p.control(r) {
	case web.Locked, web.Unlocked:
	default:
		p.refuse(sw, r, cmp.Or[error](p.refusal(r), problemf(http.StatusForbidden, "Nothing can be changed through this page.")))
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(sw, r.Body, maxForm))
	if err != nil {
		p.refuse(sw, r, problemf(http.StatusRequestEntityTooLarge, "The form is larger than %d bytes.", maxForm))
		return
	}
	// From the body alone: what stands in the query is in the history of the browser.
	form, err := url.ParseQuery(string(body))
	if err != nil {
		p.refuse(sw, r, problemf(http.StatusBadRequest, "The form cannot be read."))
		return
	}
	name, pool := form.Get("action"), form.Get("pool")
	if !p.cfg.Token.matches(strings.TrimSpace(form.Get("token"))) {
		p.askForToken(sw, r, name, pool, "That is not the token.")
		return
	}
	setSession(sw, r, p.cfg.Token.newSession(time.Now().Add(sessionLength)))
	if _, known := actions[name]; !known {
		http.Redirect(sw, r, "/", http.StatusSeeOther)
		return
	}
	p.carryOut(sw, r, name, pool)
}

// refusal is why a request may not change anything, as an error or nil.
func (p *page) refusal(r *http.Request) error {
	if refused := p.authorise(r); refused != nil {
		return refused
	}
	return nil
}

// endSession forgets the token.
func (p *page) endSession(w http.ResponseWriter, r *http.Request) {
	sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	defer func() { p.audit(r, sw.status, "") }()
	setSession(sw, r, "")
	http.Redirect(sw, r, "/", http.StatusSeeOther)
}
