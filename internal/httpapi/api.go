package httpapi

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-kit/log/level"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// Scrubs is the scrub runner, see scrub.Runner.
type Scrubs interface {
	Plan(pool btrfs.UUID, o scrub.Options) (*scrub.Plan, error)
	Start(pool btrfs.UUID, o scrub.Options, requester string) (job.Job, error)
	Pause(pool btrfs.UUID) (scrub.Status, error)
	Resume(pool btrfs.UUID) (scrub.Status, error)
	Cancel(pool btrfs.UUID) (scrub.Status, error)
	Status(pool btrfs.UUID) (scrub.Status, error)
}

// api answers the requests below /api/v1.
type api struct{ cfg Config }

// route is one method on one path of the API.
type route struct {
	method, path string
	mutates      bool
	handle       func(a *api, w http.ResponseWriter, r *http.Request) error
}

// routes are all routes of the API; openapi.json describes each.
func routes() []route {
	return []route{
		{"GET", "/api/v1/openapi.json", false, (*api).showOpenAPI},
		{"GET", "/api/v1/pools", false, (*api).listPools},
		{"GET", "/api/v1/pools/{pool}", false, (*api).showPool},
		{"GET", "/api/v1/pools/{pool}/capacity", false, (*api).showCapacity},
		{"GET", "/api/v1/pools/{pool}/history", false, (*api).showHistory},
		{"GET", "/api/v1/pools/{pool}/scrub", false, (*api).showScrub},
		{"POST", "/api/v1/pools/{pool}/scrub", true, (*api).startScrub},
		{"DELETE", "/api/v1/pools/{pool}/scrub", true, (*api).cancelScrub},
		{"POST", "/api/v1/pools/{pool}/scrub/pause", true, (*api).pauseScrub},
		{"POST", "/api/v1/pools/{pool}/scrub/resume", true, (*api).resumeScrub},
		{"GET", "/api/v1/pools/{pool}/snapshots", false, (*api).listSnapshots},
		{"POST", "/api/v1/pools/{pool}/snapshots", true, (*api).createSnapshots},
		{"DELETE", "/api/v1/pools/{pool}/snapshots/{name}", true, (*api).deleteSnapshot},
		{"POST", "/api/v1/pools/{pool}/snapshots/prune", true, (*api).pruneSnapshots},
		{"GET", "/api/v1/pools/{pool}/snapshots/plan", false, (*api).planSnapshots},
		{"POST", "/api/v1/alertmanager", true, (*api).handleAlerts},
		{"POST", "/api/v1/notify/{name}", true, (*api).acceptNotification},
		{"POST", "/api/v1/notify/{name}/test", true, (*api).testNotification},
		{"GET", "/api/v1/jobs", false, (*api).listJobs},
		{"GET", "/api/v1/jobs/{id}", false, (*api).showJob},
		{"GET", "/api/v1/events", false, (*api).streamEvents},
	}
}

// register adds the routes to a mux, and answers for what is not there.
func (a *api) register(mux *http.ServeMux) {
	allowed := make(map[string][]string)
	for _, rt := range routes() {
		allowed[rt.path] = append(allowed[rt.path], rt.method)
		mux.Handle(rt.method+" "+rt.path, a.handler(rt))
	}
	for path, methods := range allowed {
		if slices.Contains(methods, "GET") {
			methods = append(methods, "HEAD")
		}
		slices.Sort(methods)
		allow := strings.Join(methods, ", ")
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} { // GET is HEAD too
			if slices.Contains(methods, method) {
				continue
			}
			// With the method: a path without one conflicts with those that have a
			// wildcard in its place.
			mux.HandleFunc(method+" "+path, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Allow", allow)
				problemf(http.StatusMethodNotAllowed, "%s is not possible here, but %s is.", r.Method, allow).write(w)
			})
		}
	}
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		problemf(http.StatusNotFound, "There is nothing at %s: GET /api/v1/openapi.json describes what there is.", r.URL.Path).write(w)
	})
}

// statusWriter notes the status and the job of an answer, for the audit log.
type statusWriter struct {
	http.ResponseWriter
	status int
	job    string
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController through.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (a *api) handler(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !rt.mutates {
			if err := rt.handle(a, w, r); err != nil {
				a.fail(w, r, err)
			}
			return
		}
		sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		defer func() { a.audit(r, sw.status, sw.job) }()
		if refused := a.authorise(r); refused != nil {
			if refused.Status == http.StatusUnauthorized {
				sw.Header().Set("WWW-Authenticate", bearerChallenge)
			}
			refused.write(sw)
			return
		}
		if err := rt.handle(a, sw, r); err != nil {
			a.fail(sw, r, err)
		}
	})
}

// bearerChallenge says what a request that changes something has to bring.
const bearerChallenge = `Bearer realm="btrfs-governor"`

// fail answers with an error. One that is our own fault is logged too.
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	if p.Status == http.StatusInternalServerError {
		level.Error(a.cfg.Logger).Log("msg", "Request failed", "method", r.Method, "path", shorten(r.URL.Path), "err", err)
	}
	p.write(w)
}

// note tells the audit log of a job.
func note(w http.ResponseWriter, jobID string) {
	if sw, ok := w.(*statusWriter); ok {
		sw.job = jobID
	}
}

func (a *api) startScrub(w http.ResponseWriter, r *http.Request) error {
	p, err := readParameters(w, r)
	if err != nil {
		return err
	}
	o, dryRun, err := p.scrubOptions(time.Now())
	if err != nil {
		return err
	}
	reading, err := a.findPool(r.PathValue("pool"))
	if err != nil {
		return err
	}
	if dryRun {
		plan, err := a.cfg.Scrubs.Plan(reading.UUID, o)
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, plan)
		return nil
	}
	j, err := a.cfg.Scrubs.Start(reading.UUID, o, requester(r))
	note(w, j.ID)
	if err != nil {
		refused := problemOf(err)
		if j.ID != "" {
			refused.Job = &j
		}
		return refused
	}
	w.Header().Set("Location", "/api/v1/jobs/"+j.ID)
	writeJSON(w, http.StatusAccepted, j)
	return nil
}

// changeScrub pauses, resumes or cancels; would says what in a dry run.
func (a *api) changeScrub(w http.ResponseWriter, r *http.Request, would string, change func(btrfs.UUID) (scrub.Status, error)) error {
	p, err := readParameters(w, r)
	if err != nil {
		return err
	}
	dryRun := p.flag("dry_run")
	if err := p.done(); err != nil {
		return err
	}
	uuid, err := a.findScrub(r.PathValue("pool"))
	if err != nil {
		return err
	}
	if dryRun {
		s, err := a.cfg.Scrubs.Status(uuid)
		if err != nil {
			return err
		}
		plan := scrub.Plan{Pool: uuid, Options: s.Options, Devices: s.Devices, Would: []string{would}}
		if s.Foreign || !s.State.Active() {
			plan.Would = []string{"refuse: no scrub of ours is under way"}
		}
		if plan.Devices == nil {
			plan.Devices = []scrub.DeviceStatus{}
		}
		writeJSON(w, http.StatusOK, plan)
		return nil
	}
	s, err := change(uuid)
	note(w, s.JobID)
	if err != nil {
		return err
	}
	writeScrub(w, http.StatusAccepted, s)
	return nil
}

// findScrub finds the pool of a scrub, which need not be mounted now.
func (a *api) findScrub(name string) (btrfs.UUID, error) {
	if uuid, err := btrfs.ParseUUID(strings.ToLower(name)); err == nil && a.cfg.Scrubs != nil {
		if s, err := a.cfg.Scrubs.Status(uuid); err == nil && s.State != scrub.Idle {
			return uuid, nil
		}
	}
	reading, err := a.findPool(name)
	if err != nil {
		return btrfs.UUID{}, err
	}
	return reading.UUID, nil
}

func (a *api) pauseScrub(w http.ResponseWriter, r *http.Request) error {
	return a.changeScrub(w, r, "stop the scrub at its checkpoint, until it is resumed", a.cfg.Scrubs.Pause)
}

func (a *api) resumeScrub(w http.ResponseWriter, r *http.Request) error {
	return a.changeScrub(w, r, "go on with the scrub from its checkpoint", a.cfg.Scrubs.Resume)
}

func (a *api) cancelScrub(w http.ResponseWriter, r *http.Request) error {
	return a.changeScrub(w, r, "end the scrub; the next one begins anew", a.cfg.Scrubs.Cancel)
}

func (a *api) showScrub(w http.ResponseWriter, r *http.Request) error {
	if err := noParameters(w, r); err != nil {
		return err
	}
	if a.cfg.Scrubs == nil {
		return problemf(http.StatusForbidden, "The daemon runs with --read-only: it runs no scrubs and knows of none.")
	}
	uuid, err := a.findScrub(r.PathValue("pool"))
	if err != nil {
		return err
	}
	s, err := a.cfg.Scrubs.Status(uuid)
	if err != nil {
		return err
	}
	if !a.seesFiles(r) {
		s = withoutFiles(s)
	}
	writeScrub(w, http.StatusOK, s)
	return nil
}

func writeScrub(w http.ResponseWriter, status int, s scrub.Status) {
	if s.Devices == nil {
		s.Devices = []scrub.DeviceStatus{}
	}
	writeJSON(w, status, s)
}

func (a *api) listJobs(w http.ResponseWriter, r *http.Request) error {
	if err := noParameters(w, r); err != nil {
		return err
	}
	jobs := a.cfg.Jobs.List()
	if jobs == nil {
		jobs = []job.Job{}
	}
	if !a.seesFiles(r) {
		for i := range jobs {
			jobs[i] = jobWithoutFiles(jobs[i])
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"jobs": jobs})
	return nil
}

func (a *api) showJob(w http.ResponseWriter, r *http.Request) error {
	if err := noParameters(w, r); err != nil {
		return err
	}
	j, err := a.cfg.Jobs.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	if !a.seesFiles(r) {
		j = jobWithoutFiles(j)
	}
	writeJSON(w, http.StatusOK, j)
	return nil
}

// openAPI describes the routes.
//
//go:embed openapi.json
var openAPI []byte

func (a *api) showOpenAPI(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, json.RawMessage(openAPI))
	return nil
}

// Timing of the event stream. A heartbeat keeps proxies from closing it; a
// client that takes nothing for eventTimeout loses its connection.
const (
	heartbeat    = 15 * time.Second
	eventTimeout = 30 * time.Second
)

// eventWriter writes a stream of server-sent events.
type eventWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

// newEventWriter begins a stream.
func newEventWriter(w http.ResponseWriter) *eventWriter {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	return &eventWriter{w, http.NewResponseController(w)}
}

// write sends events, and tells whether somebody took them.
func (e *eventWriter) write(events []byte) bool {
	if err := e.control.SetWriteDeadline(time.Now().Add(eventTimeout)); err != nil {
		return false
	}
	if _, err := e.w.Write(events); err != nil {
		return false
	}
	return e.control.Flush() == nil
}

// streamEvents sends the events from now on, as server-sent events. A client
// that falls behind loses the oldest: their ids are then missing.
func (a *api) streamEvents(w http.ResponseWriter, r *http.Request) error {
	if err := noParameters(w, r); err != nil {
		return err
	}
	seesFiles := a.seesFiles(r)
	events, stop := a.cfg.Jobs.Subscribe()
	defer stop()
	send := newEventWriter(w)
	if r.Method == http.MethodHead || !send.write([]byte(": events follow\n\n")) {
		return nil
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		var ok bool
		select {
		case <-r.Context().Done():
			return nil
		case <-a.cfg.Stopping:
			return nil
		case <-beat.C:
			ok = send.write([]byte(": still here\n\n"))
		case e := <-events:
			if !seesFiles {
				e.Data = eventWithoutFiles(e.Data)
			}
			data, err := json.Marshal(e.Data)
			if err != nil {
				continue
			}
			ok = send.write(fmt.Appendf(nil, "id: %d\nevent: %s\ndata: %s\n\n", e.ID, e.Type, data))
		}
		if !ok {
			return nil
		}
	}
}
