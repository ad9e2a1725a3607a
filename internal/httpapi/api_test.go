package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

const (
	theToken = "0123456789abcdef0123456789abcdef"

	atticUUID = "aaaaaaaa-0000-4000-8000-000000000001"
	barnUUID  = "aaaabbbb-0000-4000-8000-000000000002"
	emptyUUID = "cccccccc-0000-4000-8000-000000000003"
)

// apiPools are pools with and without facts.
type apiPools struct{ fakePools }

func (apiPools) Pools() ([]collector.PoolReading, error) {
	pools, err := collector.NewRecordedSource("../../testdata/pools")
	if err != nil {
		return nil, err
	}
	mounts, err := pools.Mounts()
	if err != nil {
		return nil, err
	}
	reading := func(id, label string) collector.PoolReading {
		facts, err := pools.Reader().Read(&mounts[0])
		if err != nil {
			panic(err)
		}
		uuid, err := btrfs.ParseUUID(id)
		if err != nil {
			panic(err)
		}
		pool := *facts.Pool
		pool.UUID, pool.Label = uuid, label
		copied := *facts
		copied.Pool = &pool
		return collector.PoolReading{UUID: uuid, Label: label, Facts: &copied}
	}
	empty, err := btrfs.ParseUUID(emptyUUID)
	return []collector.PoolReading{
		reading(atticUUID, "attic"), reading(barnUUID, "barn"),
		{UUID: empty, Label: "hung", Err: errors.New("no answer after 8s")},
	}, err
}

// fakeScrubs notes what it is asked for.
type fakeScrubs struct {
	jobs *job.Store

	mu      sync.Mutex
	changes []string
	running map[btrfs.UUID]string // job
}

func (f *fakeScrubs) note(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changes = append(f.changes, what)
}

func (f *fakeScrubs) Plan(pool btrfs.UUID, o scrub.Options) (*scrub.Plan, error) {
	return &scrub.Plan{Pool: pool, Options: o, Would: []string{"read and check"}, Devices: []scrub.DeviceStatus{{DevID: 1}}}, nil
}

func (f *fakeScrubs) Start(pool btrfs.UUID, o scrub.Options, requester string) (job.Job, error) {
	f.note(fmt.Sprintf("start %s %+v", pool, o.Mode))
	f.mu.Lock()
	defer f.mu.Unlock()
	if id := f.running[pool]; id != "" {
		j, err := f.jobs.Get(id)
		return j, errors.Join(scrub.ErrRunning, err)
	}
	j, err := f.jobs.Create("scrub", pool, requester, o)
	f.running[pool] = j.ID
	return j, err
}

func (f *fakeScrubs) change(what string, pool btrfs.UUID) (scrub.Status, error) {
	f.note(what)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running[pool] == "" {
		return scrub.Status{}, fmt.Errorf("pool %s: %w", pool, scrub.ErrNotRunning)
	}
	return f.status(pool), nil
}

func (f *fakeScrubs) Pause(pool btrfs.UUID) (scrub.Status, error)  { return f.change("pause", pool) }
func (f *fakeScrubs) Resume(pool btrfs.UUID) (scrub.Status, error) { return f.change("resume", pool) }
func (f *fakeScrubs) Cancel(pool btrfs.UUID) (scrub.Status, error) { return f.change("cancel", pool) }

func (f *fakeScrubs) Status(pool btrfs.UUID) (scrub.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status(pool), nil
}

func (f *fakeScrubs) status(pool btrfs.UUID) scrub.Status {
	s := scrub.Status{Pool: pool, State: scrub.Idle, Options: scrub.Options{Mode: scrub.Auto}}
	if id := f.running[pool]; id != "" {
		s.State, s.JobID, s.Progress = scrub.Running, id, 0.5
		s.Devices = []scrub.DeviceStatus{{DevID: 1, Started: time.Unix(1e9, 0)}}
		s.Damage = &scrub.Damage{Errors: []scrub.DamagedBlock{{Device: "sda", Files: []scrub.DamagedFile{{Path: "photo"}}}}}
	}
	return s
}

// forget makes all pools ones that were never scrubbed.
func (f *fakeScrubs) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.running)
}

func (f *fakeScrubs) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.changes)
}

// fakeSnapshots notes what it is asked for.
type fakeSnapshots struct {
	*fakeScrubs
	end job.State // of its jobs
}

func (f *fakeSnapshots) Overview(btrfs.UUID) (snapshot.Overview, bool) {
	return snapshot.Overview{}, false
}

func (f *fakeSnapshots) begin(what, kind string, pool btrfs.UUID, requester string, result snapshot.Result) (job.Job, error) {
	f.note(what)
	j, err := f.jobs.Create(kind, pool, requester, map[string]any{})
	if err != nil {
		return j, err
	}
	text, err := json.Marshal(result)
	if err != nil {
		return j, err
	}
	if f.end != "" {
		_, err = f.jobs.Update(j.ID, func(j *job.Job) { j.State, j.Reason, j.Result = f.end, "It is as it is", text })
	}
	return j, err
}

var aSnapshot = snapshot.Created{Subvolume: "@", Name: "@.20260307T194557Z", ID: 300, Path: "/mnt/.snapshots/@.20260307T194557Z", PoolPath: ".snapshots/@.20260307T194557Z", Nested: []string{"a"}}

func (f *fakeSnapshots) Create(pool btrfs.UUID, o snapshot.CreateOptions, requester string) (job.Job, error) {
	what := "create"
	if o.Subvolume != nil {
		what += " " + *o.Subvolume
	}
	if o.Pin {
		what += " pinned"
	}
	return f.begin(what, snapshot.KindCreate, pool, requester, snapshot.Result{Created: []snapshot.Created{aSnapshot}})
}

func (f *fakeSnapshots) Delete(pool btrfs.UUID, name, requester string) (job.Job, error) {
	if name == "unknown" {
		return job.Job{}, fmt.Errorf("snapshot %q: %w", name, snapshot.ErrUnknown)
	}
	return f.begin("delete "+name, snapshot.KindDelete, pool, requester, snapshot.Result{Deleted: []snapshot.Deleted{{Subvolume: "@", Name: name, Reason: "asked"}}})
}

func (f *fakeSnapshots) Prune(pool btrfs.UUID, requester string) (job.Job, error) {
	return f.begin("prune", snapshot.KindPrune, pool, requester, snapshot.Result{
		Kept: []snapshot.Kept{{Subvolume: "@", Name: "a", Reason: "it was renamed"}}, Notes: []string{"a note"}, Failed: []snapshot.Failure{{Subvolume: "@", Error: "no"}},
	})
}

func (f *fakeSnapshots) Wait(ctx context.Context, id string) (job.Job, error) {
	j, err := f.jobs.Get(id)
	if err != nil || j.State.Ended() {
		return j, err
	}
	<-ctx.Done()
	return j, ctx.Err()
}

func (f *fakeSnapshots) List(_ context.Context, pool btrfs.UUID, sizes bool) (*snapshot.List, error) {
	subvolume, size := "@", uint64(5)
	l := &snapshot.List{Pool: pool, Snapshots: []snapshot.Snapshot{
		{Name: "a", Subvolume: &subvolume, Path: ".snapshots/a", ID: 300, ReadOnly: true, Ours: true, Keep: []string{"daily"}},
		{Name: "b", Path: "b", ID: 301, Exclusive: &size},
		{Name: "c", Path: ".snapshots/c", ID: 302, Ours: true, Pinned: true, Protected: "it was renamed"},
	}, Cleaning: 1}
	if sizes {
		f.note("sizes")
		l.Sizes = &snapshot.SizesInfo{Method: "extents", Seconds: 0.5, Extents: 3, Lookups: 1}
	}
	return l, nil
}

func (f *fakeSnapshots) Forecast(pool btrfs.UUID, until time.Time) (*snapshot.Forecast, error) {
	return &snapshot.Forecast{Pool: pool, From: time.Now(), Until: until, Left: []string{"a"}, Events: []snapshot.ForecastEvent{
		{Time: time.Now(), Created: []string{"a"}, Deleted: []snapshot.Deleted{{Subvolume: "@", Name: "b", Reason: "no rule"}}},
	}, Notes: []string{"a note"}}, nil
}

func (f *fakeSnapshots) PlanCreate(_ context.Context, pool btrfs.UUID, o snapshot.CreateOptions) (*snapshot.Plan, error) {
	return &snapshot.Plan{Pool: pool, Would: []string{fmt.Sprintf("take one, pinned: %t", o.Pin)}}, nil
}

func (f *fakeSnapshots) PlanDelete(_ context.Context, _ btrfs.UUID, name string) (*snapshot.Plan, error) {
	return nil, fmt.Errorf("snapshot %q stays: %w", name, snapshot.ErrRefused)
}

func (f *fakeSnapshots) PlanPrune(_ context.Context, pool btrfs.UUID) (*snapshot.Plan, error) {
	return nil, fmt.Errorf("pool %s has no retention: %w", pool, snapshot.ErrInvalid)
}

// service is the API over fakes.
type service struct {
	handler   http.Handler
	scrubs    *fakeScrubs
	snapshots *fakeSnapshots
	jobs      *job.Store
	log       *bytes.Buffer
}

func newService(t testing.TB, change func(*httpapi.Config)) *service {
	t.Helper()
	return newServiceIn(t, t.TempDir(), change)
}

// newServiceIn makes a service whose token is in a directory.
func newServiceIn(t testing.TB, dir string, change func(*httpapi.Config)) *service {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, httpapi.TokenName), []byte(theToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	token := httpapi.NewToken(state.NewDir(dir))
	if err := token.Load(""); err != nil {
		t.Fatal(err)
	}
	jobs, err := job.Open(nil, 10)
	if err != nil {
		t.Fatal(err)
	}
	s := &service{scrubs: &fakeScrubs{jobs: jobs, running: make(map[btrfs.UUID]string)}, jobs: jobs, log: new(bytes.Buffer)}
	s.snapshots = &fakeSnapshots{fakeScrubs: s.scrubs, end: job.Succeeded}
	cfg := httpapi.Config{
		Logger: log.NewLogfmtLogger(log.NewSyncWriter(s.log)), Version: "1", TelemetryPath: "/metrics",
		Pools: apiPools{fakePools{func() float64 { return 0 }}}, Process: []prometheus.Collector{},
		Ready: func() bool { return true }, Reload: func() error { s.scrubs.note("reload"); return nil },
		Jobs: jobs, Scrubs: s.scrubs, Snapshots: s.snapshots, Alerts: fakeAlerts{s.scrubs}, Notifications: fakeNotifications{s.scrubs}, Token: token,
	}
	if change != nil {
		change(&cfg)
	}
	if s.handler, err = httpapi.New(cfg); err != nil {
		t.Fatal(err)
	}
	return s
}

// sent is how a request comes.
type sent struct {
	unix    bool // the socket of the API
	webUnix bool // a Unix socket of the web server
	tls     bool
	peer    string // loopback if empty
	header  http.Header
}

func (s *service) do(method, target, body string, from sent) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	r.RemoteAddr = loopback
	if from.peer != "" {
		r.RemoteAddr = from.peer
	}
	for name, values := range from.header {
		r.Header[name] = values
	}
	if from.unix {
		r = httpapi.OverAPISocket(r)
		r.RemoteAddr = "@"
	}
	if from.webUnix {
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.UnixAddr{Name: "/s", Net: "unix"}))
		r.RemoteAddr = "@"
	}
	r.TLS = nil
	if from.tls {
		r.TLS = &tls.ConnectionState{}
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	return w
}

var socket = sent{unix: true}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

func TestNothingChangesWithoutRight(t *testing.T) {
	crossOrigin := http.Header{"Origin": {"https://evil.example"}, "Sec-Fetch-Site": {"cross-site"}}
	with := func(h http.Header, more http.Header) http.Header {
		all := h.Clone()
		for k, v := range more {
			all[k] = v
		}
		return all
	}
	for name, tt := range map[string]struct {
		from   sent
		status int // 0: allowed
	}{
		"no token":                            {sent{}, 401},
		"wrong token":                         {sent{header: bearer("1" + theToken[1:])}, 401},
		"beginning of the token":              {sent{header: bearer(theToken[:31])}, 401},
		"longer than the token":               {sent{header: bearer(theToken + "0")}, 401},
		"empty token":                         {sent{header: bearer("")}, 401},
		"basic auth with the token":           {sent{header: http.Header{"Authorization": {"Basic OjAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGVm"}}}, 401},
		"basic auth over TLS":                 {sent{tls: true, peer: remote, header: http.Header{"Authorization": {"Basic cHJvbTpzZWNyZXQ="}}}, 401},
		"token in the query":                  {sent{header: http.Header{"X-Token": {theToken}}}, 401},
		"right token, remote and plain":       {sent{peer: remote, header: bearer(theToken)}, 403},
		"right token, through a proxy":        {sent{header: with(bearer(theToken), http.Header{"X-Forwarded-For": {"192.0.2.9"}})}, 403},
		"right token, Forwarded":              {sent{header: with(bearer(theToken), http.Header{"Forwarded": {"for=192.0.2.9"}})}, 403},
		"cross origin with the token":         {sent{header: with(bearer(theToken), crossOrigin)}, 403},
		"cross origin to the socket":          {sent{unix: true, header: crossOrigin}, 403},
		"right token, empty X-Forwarded-For":  {sent{header: with(bearer(theToken), http.Header{"X-Forwarded-For": {"", "192.0.2.9"}})}, 403},
		"right token, X-Forwarded-Port":       {sent{header: with(bearer(theToken), http.Header{"X-Forwarded-Port": {"80"}})}, 403},
		"Unix socket of the web server":       {sent{webUnix: true}, 401},
		"the same, through a proxy":           {sent{webUnix: true, header: with(bearer(theToken), http.Header{"X-Forwarded-For": {"192.0.2.9"}})}, 403},
		"the same, with the token":            {sent{webUnix: true, header: bearer(theToken)}, 0},
		"right token, loopback":               {sent{header: bearer(theToken)}, 0},
		"right token, IPv6 loopback":          {sent{peer: "[::1]:99", header: bearer(theToken)}, 0},
		"right token over TLS":                {sent{tls: true, peer: remote, header: bearer(theToken)}, 0},
		"right token over TLS, lower case":    {sent{tls: true, peer: remote, header: http.Header{"Authorization": {"bearer " + theToken}}}, 0},
		"right token over TLS, wrong address": {sent{tls: true, peer: "nonsense", header: bearer(theToken)}, 0},
		"socket":                              {socket, 0},
	} {
		t.Run(name, func(t *testing.T) {
			for _, rt := range []struct{ method, path string }{
				{"POST", "/api/v1/pools/attic/scrub"}, {"DELETE", "/api/v1/pools/attic/scrub"},
				{"POST", "/api/v1/pools/attic/scrub/pause"}, {"POST", "/api/v1/pools/attic/scrub/resume"},
				{"POST", "/api/v1/pools/attic/snapshots"}, {"POST", "/api/v1/pools/attic/snapshots/prune"},
				{"DELETE", "/api/v1/pools/attic/snapshots/a"}, {"POST", "/api/v1/alertmanager"},
				{"POST", "/api/v1/notify/phone"}, {"POST", "/api/v1/notify/phone/test"},
			} {
				s := newService(t, nil)
				body := ""
				if rt.path == "/api/v1/alertmanager" || rt.path == "/api/v1/notify/phone" {
					body = aMessage
				}
				w := s.do(rt.method, rt.path, body, tt.from)
				asked := s.scrubs.asked()
				if tt.status == 0 {
					if len(asked) != 1 || w.Code == 401 || w.Code == 403 {
						t.Errorf("%s %s: %d %s, want it allowed; asked: %v", rt.method, rt.path, w.Code, w.Body, asked)
					}
					continue
				}
				if w.Code != tt.status || len(asked) > 0 {
					t.Errorf("%s %s: %d, want %d; asked: %v", rt.method, rt.path, w.Code, tt.status, asked)
				}
				if w.Header().Get("Content-Type") != "application/problem+json" || strings.Contains(w.Body.String(), theToken) {
					t.Errorf("%s %s: the answer is %s %s", rt.method, rt.path, w.Header(), w.Body)
				}
				if !strings.Contains(s.log.String(), "status=") {
					t.Errorf("%s %s is not in the log:\n%s", rt.method, rt.path, s.log)
				}
				if strings.Contains(s.log.String(), theToken) {
					t.Errorf("the token is in the log")
				}
			}
		})
	}
}

// TestEachChangeIsLogged holds for every route that changes something: the log
// says who asked for what, what came of it, and the job.
func TestEachChangeIsLogged(t *testing.T) {
	jobs := 0
	for _, rt := range httpapi.Routes() {
		method, pattern, _ := strings.Cut(rt, " ")
		if method == http.MethodGet {
			continue
		}
		path := strings.NewReplacer("{pool}", "attic", "{name}", "a").Replace(pattern)
		for who, from := range map[string]sent{
			`who="unix socket, uid 0, pid 1"`: socket,
			"who=192.0.2.7":                   {tls: true, peer: "192.0.2.7:99", header: bearer(theToken)},
			"who=127.0.0.1":                   {header: bearer("not the token at all")},
		} {
			s := newService(t, nil)
			w := s.do(method, path+"?dry_run=false", "", from)
			var line string
			for l := range strings.Lines(s.log.String()) {
				if strings.Contains(l, "msg=Request ") {
					line += l
				}
			}
			wanted := []string{"level=info", who + " ", "method=" + method + " ", "path=" + path + " ", "query=\"dry_run=false\"", fmt.Sprintf("status=%d", w.Code)}
			var answer struct {
				ID string `json:"id"`
			}
			if w.Code < 300 && json.Unmarshal(w.Body.Bytes(), &answer) == nil && answer.ID != "" {
				wanted = append(wanted, " job="+answer.ID)
				jobs++
			}
			for _, want := range wanted {
				if strings.Count(line, want) != 1 {
					t.Errorf("%s %s: the log has %q, and not once %s", method, path, line, want)
				}
			}
		}
	}
	if jobs < 8 {
		t.Errorf("%d answers named a job", jobs)
	}
}

func TestReadOnlyDaemonChangesNothing(t *testing.T) {
	s := newService(t, func(c *httpapi.Config) { c.Scrubs, c.Snapshots, c.Alerts, c.Token = nil, nil, nil, nil })
	if w := s.do("POST", "/api/v1/alertmanager", aMessage, socket); w.Code != 403 || !strings.Contains(w.Body.String(), "--read-only") {
		t.Errorf("alertmanager: %d %s, want 403 that names --read-only", w.Code, w.Body)
	}
	for _, method := range []string{"POST", "DELETE", "GET"} {
		for _, from := range []sent{socket, {header: bearer(theToken)}} {
			if w := s.do(method, "/api/v1/pools/attic/scrub", "", from); w.Code != 403 || !strings.Contains(w.Body.String(), "--read-only") {
				t.Errorf("%s: %d %s, want 403 that names --read-only", method, w.Code, w.Body)
			}
			target := "/api/v1/pools/attic/snapshots"
			if method == "DELETE" {
				target += "/a"
			}
			if w := s.do(method, target, "", from); w.Code != 403 || !strings.Contains(w.Body.String(), "--read-only") {
				t.Errorf("%s %s: %d %s, want 403 that names --read-only", method, target, w.Code, w.Body)
			}
		}
	}
}

func TestRequestsForScrubs(t *testing.T) {
	for _, tt := range []struct {
		name, method, target, body string
		status                     int
		want                       string
	}{
		{"by label", "POST", "/api/v1/pools/attic/scrub", "", 202, `"state":"waiting"`},
		{"by UUID in capitals", "POST", "/api/v1/pools/" + strings.ToUpper(atticUUID) + "/scrub", "", 202, atticUUID},
		{"by prefix", "POST", "/api/v1/pools/aaaaa/scrub", "", 202, atticUUID},
		{"ambiguous prefix", "POST", "/api/v1/pools/aaaa/scrub", "", 409, `"candidates":["` + atticUUID + `","` + barnUUID + `"]`},
		{"unknown pool", "POST", "/api/v1/pools/cellar/scrub", "", 404, `no mounted pool \"cellar\". Mounted are \"attic\", \"barn\", \"hung\".`},
		{"dry run", "POST", "/api/v1/pools/attic/scrub?dry_run", "", 200, `"would":["read and check"]`},
		{"dry run in the body", "POST", "/api/v1/pools/attic/scrub", `{"dry_run": true, "mode": "full"}`, 200, `"mode":"full"`},
		{"limit", "POST", "/api/v1/pools/attic/scrub?limit=50MB&dry_run=true", "", 200, `"options":{"mode":"limit","limit":50000000}`},
		{"number as limit", "POST", "/api/v1/pools/attic/scrub?dry_run=true", `{"limit": 50000000}`, 200, `"limit":50000000`},
		{"deadline", "POST", "/api/v1/pools/attic/scrub?dry_run=true&deadline=2030-01-02T03:04:05Z", "", 200, `"deadline":"2030-01-02T03:04:05Z"`},
		{"duration", "POST", "/api/v1/pools/attic/scrub?dry_run=true&deadline=1d", "", 200, `"deadline":"20`},
		{"offset with an unescaped plus", "POST", "/api/v1/pools/attic/scrub?dry_run=true&not_before=2030-01-02T03:04:05+02:00", "", 200, `"not_before":"2030-01-02T01:04:05Z"`},
		{"deadline that is over", "POST", "/api/v1/pools/attic/scrub?deadline=2020-01-02T03:04:05Z", "", 400, "is over"},
		{"time that would mean none", "POST", "/api/v1/pools/attic/scrub?not_before=0001-01-01T00:00:00Z", "", 400, "must be a time"},
		{"pool that hangs, by label", "GET", "/api/v1/pools/hung", "", 200, "no answer"},
		{"what-if too large to simulate", "GET", "/api/v1/pools/attic/capacity?add=15EiB", "", 400, "16 PiB"},
		{"limit that is a pause", "POST", "/api/v1/pools/attic/scrub?limit=1", "", 400, "too low"},
		{"limit without sense", "POST", "/api/v1/pools/attic/scrub?limit=fast", "", 400, "size such as 50MB"},
		{"limit beside full", "POST", "/api/v1/pools/attic/scrub?limit=50MB&mode=full", "", 400, "mode limit only"},
		{"mode limit alone", "POST", "/api/v1/pools/attic/scrub?mode=limit", "", 400, "too low"},
		{"unknown mode", "POST", "/api/v1/pools/attic/scrub?mode=gentle", "", 400, "auto, full, limit"},
		{"unknown parameter", "POST", "/api/v1/pools/attic/scrub?fast=1", "", 400, `known: dry_run, mode`},
		{"unknown member", "POST", "/api/v1/pools/attic/scrub", `{"fast":1}`, 400, `\"fast\"`},
		{"twice in the query", "POST", "/api/v1/pools/attic/scrub?mode=auto&mode=full", "", 400, "once"},
		{"in query and body", "POST", "/api/v1/pools/attic/scrub?mode=auto", `{"mode":"full"}`, 400, "second time"},
		{"twice in the body", "POST", "/api/v1/pools/attic/scrub", `{"mode":"auto","mode":"full"}`, 400, "second time"},
		{"object as value", "POST", "/api/v1/pools/attic/scrub", `{"mode":{}}`, 400, "must be a text"},
		{"null", "POST", "/api/v1/pools/attic/scrub", `{"mode":null}`, 400, "must be a text"},
		{"list", "POST", "/api/v1/pools/attic/scrub", `["mode"]`, 400, "no JSON object"},
		{"half an object", "POST", "/api/v1/pools/attic/scrub", `{"mode":`, 400, "no JSON object"},
		{"two objects", "POST", "/api/v1/pools/attic/scrub", `{}{}`, 400, "something follows"},
		{"body over the limit", "POST", "/api/v1/pools/attic/scrub", `{"mode":"` + strings.Repeat("x", 70<<10) + `"}`, 413, "larger than"},
		{"time without sense", "POST", "/api/v1/pools/attic/scrub?not_before=soon", "", 400, "RFC"},
		{"deadline before the beginning", "POST", "/api/v1/pools/attic/scrub?not_before=2d&deadline=1d", "", 400, "not after"},
		{"pause without a scrub", "POST", "/api/v1/pools/attic/scrub/pause", "", 409, "no scrub"},
		{"dry run of a pause", "POST", "/api/v1/pools/attic/scrub/pause?dry_run=1", "", 200, "refuse"},
		{"cancel with a parameter", "DELETE", "/api/v1/pools/attic/scrub?mode=full", "", 400, "Unknown parameter"},
		{"method", "PUT", "/api/v1/pools/attic/scrub", "", 405, "DELETE, GET, HEAD, POST"},
		{"path", "GET", "/api/v1/pool", "", 404, "openapi.json"},
		{"unknown job", "GET", "/api/v1/jobs/scrub-1", "", 404, "no such job"},
		{"GET with a parameter", "GET", "/api/v1/pools?mode=full", "", 400, "known: none"},
		{"snapshots", "POST", "/api/v1/pools/attic/snapshots", "", 202, `"kind":"snapshot"`},
		{"snapshots, waiting", "POST", "/api/v1/pools/attic/snapshots?wait=true", "", 200, `"path":"/mnt/.snapshots/@.20260307T194557Z"`},
		{"snapshots, dry run", "POST", "/api/v1/pools/attic/snapshots?dry_run&pin", "", 200, "take one, pinned: true"},
		{"hook in a request", "POST", "/api/v1/pools/attic/snapshots?hook=/bin/sh", "", 400, "Unknown parameter"},
		{"snapshots of an unknown pool", "POST", "/api/v1/pools/cellar/snapshots", "", 404, "no mounted pool"},
		{"delete", "DELETE", "/api/v1/pools/attic/snapshots/a?wait", "", 200, `"deleted":[{`},
		{"delete an unknown one", "DELETE", "/api/v1/pools/attic/snapshots/unknown", "", 404, "no such snapshot"},
		{"delete, dry run that refuses", "DELETE", "/api/v1/pools/attic/snapshots/a?dry_run", "", 409, "stays"},
		{"prune", "POST", "/api/v1/pools/attic/snapshots/prune?wait=1", "", 200, `"kept":[{`},
		{"prune without a retention", "POST", "/api/v1/pools/attic/snapshots/prune?dry_run=1", "", 400, "no retention"},
		{"list", "GET", "/api/v1/pools/attic/snapshots", "", 200, `"keep":["daily"]`},
		{"list with sizes", "GET", "/api/v1/pools/attic/snapshots?sizes=true", "", 200, `"method":"extents"`},
		{"plan", "GET", "/api/v1/pools/attic/snapshots/plan?days=30", "", 200, `"left":["a"]`},
		{"plan of too many days", "GET", "/api/v1/pools/attic/snapshots/plan?days=100000", "", 400, "from 1 to 3660"},
		{"method of a plan", "PUT", "/api/v1/pools/attic/snapshots/plan", "", 405, "GET, HEAD"},
		{"what-if", "GET", "/api/v1/pools/attic/capacity?add=4TiB", "", 200, `"what_if":{`},
		{"what-if of an unknown device", "GET", "/api/v1/pools/attic/capacity?remove=99", "", 422, "99"},
		{"what-if of each kind", "GET", "/api/v1/pools/attic/capacity?replace=1:4TiB&add=4TiB&convert=raid1c3&remove=2", "", 200, `"data_profile":"raid1c3"`},
		{"what-if in a body", "GET", "/api/v1/pools/attic/capacity", `{"add":"4TiB"}`, 200, `"what_if_devices":[{"devid":1,"missing":true,`},
		{"what-if twice of a kind", "GET", "/api/v1/pools/attic/capacity?add=4TiB&add=4TiB", "", 400, "give it once"},
		{"what-if of a device of no size", "GET", "/api/v1/pools/attic/capacity?replace=1", "", 400, "such as 2:8TB"},
		{"what-if of a size of no device", "GET", "/api/v1/pools/attic/capacity?replace=:8TB", "", 400, "such as 2:8TB"},
		{"replacement too large to simulate", "GET", "/api/v1/pools/attic/capacity?replace=1:15EiB", "", 400, "16 PiB"},
		{"replacement that is smaller", "GET", "/api/v1/pools/attic/capacity?replace=2:1TiB", "", 422, "smaller than the old one"},
		{"conversion to no profile", "GET", "/api/v1/pools/attic/capacity?convert=raid7", "", 400, "raid10, raid5 or raid6"},
		{"unknown change", "GET", "/api/v1/pools/attic/capacity?resize=1:1TiB", "", 400, "known: add, remove, replace, convert"},
		{"conversion before there are enough devices", "GET", "/api/v1/pools/attic/capacity?convert=raid1c3&replace=1:4TiB", "", 422, "raid1c3 needs 3 devices"},
		{"conversion when there are enough devices", "GET", "/api/v1/pools/attic/capacity?replace=1:4TiB&convert=raid1c3", "", 200, `"data_profile":"raid1c3"`},
		{"capacity that is not known", "GET", "/api/v1/pools/" + emptyUUID + "/capacity", "", 503, "no answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newService(t, nil)
			w := s.do(tt.method, tt.target, tt.body, socket)
			body := w.Body.String()
			want := strings.ReplaceAll(tt.want, "RFC", "2026-12-24")
			if w.Code != tt.status || !strings.Contains(body, want) {
				t.Errorf("got %d %s\nwant %d and %s", w.Code, body, tt.status, want)
			}
			kind := "application/json"
			if tt.status >= 400 {
				kind = "application/problem+json"
				if asked := s.scrubs.asked(); len(asked) > 0 && tt.status != 409 {
					t.Errorf("it was refused, and asked for %v", asked)
				}
			}
			if got := w.Header().Get("Content-Type"); got != kind {
				t.Errorf("Content-Type %q, want %q", got, kind)
			}
			validate(t, tt.method, tt.target, w)
		})
	}
}

func TestWaitingForSnapshots(t *testing.T) {
	s := newService(t, nil)
	plain := sent{unix: true, header: http.Header{"Accept": {"text/plain"}}}
	w := s.do("POST", "/api/v1/pools/attic/snapshots?wait=true&subvolume=@", "", plain)
	if got := w.Body.String(); w.Code != 200 || got != aSnapshot.Path+"\n" || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
		t.Errorf("the answer is %d %q, want the path alone", w.Code, got)
	}
	if asked := s.scrubs.asked(); !slices.Equal(asked, []string{"create @"}) {
		t.Errorf("asked were %q", asked)
	}
	// A job that fails is an error, so that what comes after it in a script does
	// not run.
	s.snapshots.end = job.Failed
	w = s.do("POST", "/api/v1/pools/attic/snapshots?wait=true", "", plain)
	if w.Code != 409 || !strings.Contains(w.Body.String(), "It is as it is.") || !strings.Contains(w.Body.String(), `"job":{`) {
		t.Errorf("a job that failed: %d %s", w.Code, w.Body)
	}
	validate(t, "POST", "/api/v1/pools/attic/snapshots", w)
	// One that does not end ends with the daemon.
	stopping := make(chan struct{})
	s = newService(t, func(c *httpapi.Config) { c.Stopping = stopping })
	s.snapshots.end = ""
	close(stopping)
	w = s.do("POST", "/api/v1/pools/attic/snapshots?wait=true", "", socket)
	if w.Code != 504 || !strings.Contains(w.Body.String(), "has not ended yet") {
		t.Errorf("a job that does not end: %d %s", w.Code, w.Body)
	}
	validate(t, "POST", "/api/v1/pools/attic/snapshots", w)
}

func TestSizesAreForThoseWhoMayCommand(t *testing.T) {
	s := newService(t, nil)
	w := s.do("GET", "/api/v1/pools/attic/snapshots?sizes=true", "", sent{})
	if w.Code != 401 || len(s.scrubs.asked()) > 0 {
		t.Errorf("%d %s, asked: %v", w.Code, w.Body, s.scrubs.asked())
	}
	if w := s.do("GET", "/api/v1/pools/attic/snapshots", "", sent{}); w.Code != 200 {
		t.Errorf("without sizes: %d %s", w.Code, w.Body)
	}
}

func TestFormIsToldWhatToDo(t *testing.T) {
	s := newService(t, nil)
	from := socket
	from.header = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	if w := s.do("POST", "/api/v1/pools/attic/scrub", "mode=full", from); w.Code != 415 || !strings.Contains(w.Body.String(), "query") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestTwoStartsAtOnce(t *testing.T) {
	s := newService(t, nil)
	var (
		wg        sync.WaitGroup
		mu        sync.Mutex
		started   []string
		conflicts []string
	)
	for range 16 {
		wg.Go(func() {
			w := s.do("POST", "/api/v1/pools/attic/scrub", "", socket)
			var answer struct {
				ID  string   `json:"id"`
				Job *job.Job `json:"job"`
			}
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case w.Code == 202:
				started = append(started, answer.ID)
			case w.Code == 409 && answer.Job != nil:
				conflicts = append(conflicts, answer.Job.ID)
			default:
				t.Errorf("got %d %s", w.Code, w.Body)
			}
		})
	}
	wg.Wait()
	if len(started) != 1 || len(conflicts) != 15 || len(slices.Compact(conflicts)) != 1 || conflicts[0] != started[0] {
		t.Errorf("started %v, conflicts %v", started, conflicts)
	}
}

// BenchmarkWrongToken sets the time in which a token is refused that differs in
// its first character beside that of one that differs in its last: a comparison
// that ends at the first difference would tell how much of a guess is right.
func BenchmarkWrongToken(b *testing.B) {
	s := newService(b, nil)
	guesses := []http.Header{bearer("x" + theToken[1:]), bearer(theToken[:len(theToken)-1] + "x")}
	took := make([][]time.Duration, len(guesses))
	for b.Loop() {
		for i, h := range guesses { // in turns, so that both see the same machine
			s.log.Reset()
			began := time.Now()
			w := s.do("POST", "/api/v1/pools/attic/scrub", "", sent{header: h})
			took[i] = append(took[i], time.Since(began))
			if w.Code != http.StatusUnauthorized {
				b.Fatalf("%d %s", w.Code, w.Body)
			}
		}
	}
	for i := range took {
		slices.Sort(took[i])
	}
	median := func(i int) float64 { return float64(took[i][len(took[i])/2]) }
	b.ReportMetric(median(1)/median(0), "last/first")
	b.ReportMetric(median(0), "median-ns")
}

func TestTokenIsMadeKeptAndRotated(t *testing.T) {
	dir := t.TempDir()
	token := httpapi.NewToken(state.NewDir(dir))
	if err := token.Load(""); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, httpapi.TokenName)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v, want mode 0600", info, err)
	}
	first, err := httpapi.ReadToken(path)
	if err != nil || len(first) != 64 {
		t.Fatalf("token %q, %v", first, err)
	}
	s := newService(t, func(c *httpapi.Config) { c.Token = token })
	start := func(with string) int {
		return s.do("POST", "/api/v1/pools/attic/scrub", "", sent{header: bearer(with)}).Code
	}
	if code := start(first); code != 202 {
		t.Errorf("the token that was made: %d", code)
	}
	if err := os.WriteFile(path, []byte(theToken), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := token.Load(""); err != nil {
		t.Fatal(err)
	}
	if code := start(first); code != 401 {
		t.Errorf("the old token after the rotation: %d", code)
	}
	if code := start(theToken); code != 409 {
		t.Errorf("the new token after the rotation: %d", code)
	}
	for name, content := range map[string]string{"short": "secret", "empty": "", "two lines": theToken + "\n" + theToken} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := token.Load(""); err == nil {
			t.Errorf("a token file that is %s is accepted", name)
		}
	}
	if code := start(theToken); code != 409 {
		t.Errorf("after a bad token file: %d, want the token as it was", code)
	}
	if err := os.WriteFile(path, []byte(theToken), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := token.Load(""); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a token file that everybody can read: %v", err)
	}
}

// document is the OpenAPI document, and a compiler of its schemas.
func document(t *testing.T) (map[string]any, *jsonschema.Compiler) {
	t.Helper()
	text, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("openapi.json", value); err != nil {
		t.Fatal(err)
	}
	return value.(map[string]any), c
}

// operation finds what the document says of a request; nil where it says
// nothing.
func operation(doc map[string]any, method, path string) (map[string]any, string) {
	path, _, _ = strings.Cut(path, "?")
	for template, item := range doc["paths"].(map[string]any) {
		want, got := strings.Split(template, "/"), strings.Split(path, "/")
		if len(want) != len(got) {
			continue
		}
		fits := true
		for i := range want {
			fits = fits && (want[i] == got[i] || strings.HasPrefix(want[i], "{"))
		}
		if !fits {
			continue
		}
		if op, ok := item.(map[string]any)[strings.ToLower(method)].(map[string]any); ok {
			return op, template
		}
	}
	return nil, ""
}

// validate holds an answer against the OpenAPI document.
func validate(t *testing.T, method, target string, w *httptest.ResponseRecorder) {
	t.Helper()
	doc, compiler := document(t)
	op, template := operation(doc, method, target)
	if op == nil {
		if w.Code != 404 && w.Code != 405 {
			t.Errorf("%s %s is answered with %d, and not in the document", method, target, w.Code)
		}
		return
	}
	status := fmt.Sprint(w.Code)
	if _, ok := op["responses"].(map[string]any)[status]; !ok {
		t.Errorf("%s %s is answered with %s, which the document does not have", method, template, status)
		return
	}
	escape := strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace
	pointer := "#/paths/" + escape(template) + "/" + strings.ToLower(method) + "/responses/" + status + "/content/" + escape(w.Header().Get("Content-Type")) + "/schema"
	if w.Header().Get("Content-Type") == "application/problem+json" {
		pointer = "#/components/schemas/Problem"
	}
	schema, err := compiler.Compile("openapi.json" + pointer)
	if err != nil {
		t.Errorf("%s %s: no schema of the answer: %v", method, template, err)
		return
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(w.Body.Bytes()))
	if err != nil {
		t.Errorf("%s %s: %v", method, template, err)
		return
	}
	if err := schema.Validate(value); err != nil {
		t.Errorf("%s %s: the answer is not as the document says: %v\n%s", method, template, err, w.Body)
	}
}

func TestEveryRouteIsInTheDocumentAndNoOther(t *testing.T) {
	doc, _ := document(t)
	described := make(map[string]bool)
	for path, item := range doc["paths"].(map[string]any) {
		for method := range item.(map[string]any) {
			if method != "parameters" {
				described[strings.ToUpper(method)+" "+path] = true
			}
		}
	}
	for _, rt := range httpapi.Routes() {
		if !described[rt] {
			t.Errorf("the document does not describe %s", rt)
		}
		delete(described, rt)
	}
	for rt := range described {
		t.Errorf("the document describes %s, which there is not", rt)
	}
}

func TestAnswersAreAsTheDocumentSays(t *testing.T) {
	s := newService(t, nil)
	do := func(method, target string) *httptest.ResponseRecorder {
		w := s.do(method, target, "", socket)
		validate(t, method, target, w)
		if w.Code >= 300 {
			t.Errorf("%s %s: %d %s", method, target, w.Code, w.Body)
		}
		return w
	}
	do("GET", "/api/v1/openapi.json")
	do("GET", "/api/v1/pools")
	do("GET", "/api/v1/pools/attic")
	do("GET", "/api/v1/pools/"+emptyUUID)
	do("GET", "/api/v1/pools/attic/capacity")
	do("GET", "/api/v1/pools/attic/scrub")
	do("GET", "/api/v1/jobs")
	do("GET", "/api/v1/pools/attic/snapshots?sizes=true")
	do("GET", "/api/v1/pools/attic/snapshots/plan")
	do("GET", do("POST", "/api/v1/pools/attic/snapshots").Header().Get("Location"))
	do("POST", "/api/v1/pools/attic/snapshots?dry_run")
	do("POST", "/api/v1/pools/attic/snapshots/prune?wait=true")
	do("DELETE", "/api/v1/pools/attic/snapshots/a")
	do("POST", "/api/v1/pools/attic/scrub?dry_run")
	location := do("POST", "/api/v1/pools/attic/scrub").Header().Get("Location")
	do("GET", location)
	do("GET", "/api/v1/jobs")
	do("GET", "/api/v1/pools/attic/scrub")
	do("POST", "/api/v1/pools/attic/scrub/pause?dry_run")
	do("POST", "/api/v1/pools/attic/scrub/pause")
	do("POST", "/api/v1/pools/attic/scrub/resume")
	do("DELETE", "/api/v1/pools/attic/scrub")
}

func TestEventsReachReadersAndASlowOneHoldsUpNobody(t *testing.T) {
	stopping := make(chan struct{})
	s := newService(t, func(c *httpapi.Config) { c.Stopping = stopping })
	server := httptest.NewServer(s.handler)
	defer server.Close()
	open := func() *http.Response {
		t.Helper()
		resp, err := http.Get(server.URL + "/api/v1/events")
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	slow := open()
	defer slow.Body.Close()
	fast := open()
	defer fast.Body.Close()
	if got := fast.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("Content-Type %q", got)
	}
	lines := bufio.NewScanner(fast.Body)
	lines.Buffer(nil, 1<<20)
	if !lines.Scan() || lines.Text() != ": events follow" {
		t.Fatalf("the stream begins with %q", lines.Text())
	}
	// More than any buffer of the slow reader's connection takes.
	large := strings.Repeat("x", 64<<10)
	const events = 500
	last := make(chan string)
	go func() {
		defer close(last)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				last <- data
			}
		}
	}()
	for i := range events {
		s.jobs.Publish("scrub", fmt.Sprintf("%d %s", i, large))
		data := <-last
		if want := fmt.Sprintf(`"%d x`, i); !strings.HasPrefix(data, want) {
			t.Fatalf("event %d is %.20s", i, data)
		}
	}
	close(stopping)
	if data, more := <-last; more {
		t.Errorf("after the stop came %.20s", data)
	}
}

func FuzzScrubParameters(f *testing.F) {
	f.Add("mode=full&dry_run", `{"limit":"50MB"}`)
	f.Add("deadline=24h", `{"not_before":"2030-01-01T00:00:00Z","read_only":true}`)
	f.Add("%zz", `{"a":[`)
	jobs, err := job.Open(nil, 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, query, body string) {
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.URL.RawQuery = query
		r.Header.Set("Content-Type", "application/json")
		o, _, err := httpapi.DecodeScrub(httptest.NewRecorder(), r)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a word")
			}
			return
		}
		if err := o.Validate(); err != nil {
			t.Errorf("%q %q gives options that are wrong: %v", query, body, err)
		}
		if _, err := jobs.Create("scrub", btrfs.UUID{}, "fuzz", o); err != nil {
			t.Errorf("options that cannot be kept: %v", err)
		}
	})
}

func TestNamesOfFilesAreForThoseWhoMayCommand(t *testing.T) {
	s := newService(t, nil)
	started := s.do("POST", "/api/v1/pools/attic/scrub", "", socket)
	location := started.Header().Get("Location")
	uuid, err := btrfs.ParseUUID(atticUUID)
	if err != nil {
		t.Fatal(err)
	}
	status, err := s.scrubs.Status(uuid)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(status)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.jobs.Update(strings.TrimPrefix(location, "/api/v1/jobs/"), func(j *job.Job) { j.Result = text }); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"/api/v1/pools/attic/scrub", location, "/api/v1/jobs"} {
		for name, tt := range map[string]struct {
			from sent
			sees bool
		}{
			"socket": {socket, true}, "token": {sent{header: bearer(theToken)}, true},
			"nobody": {sent{}, false}, "wrong token": {sent{header: bearer("x" + theToken)}, false},
			"remote with the token in the clear": {sent{peer: remote, header: bearer(theToken)}, false},
		} {
			w := s.do("GET", target, "", tt.from)
			if got := strings.Contains(w.Body.String(), `"path":"photo"`); w.Code != 200 || got != tt.sees {
				t.Errorf("GET %s from %s: %d, sees the file: %v, want %v\n%s", target, name, w.Code, got, tt.sees, w.Body)
			}
			if !strings.Contains(w.Body.String(), `"device":"sda"`) {
				t.Errorf("GET %s from %s does not tell the device:\n%s", target, name, w.Body)
			}
		}
	}
}

// TestDevicesOfAWhatIf: each byte of a device is told once, and a new device has
// no path, also where it has the devid of an old one.
func TestDevicesOfAWhatIf(t *testing.T) {
	type device struct {
		ID        uint64  `json:"devid"`
		Path      string  `json:"path"`
		Size      uint64  `json:"size_bytes"`
		Allocated uint64  `json:"allocated_bytes"`
		Data      *uint64 `json:"data_bytes"`
		Metadata  uint64  `json:"metadata_bytes"`
		System    uint64  `json:"system_bytes"`
		Free      uint64  `json:"free_bytes"`
		Stranded  uint64  `json:"stranded_bytes"`
		Unusable  uint64  `json:"unusable_bytes"`
	}
	s := newService(t, nil)
	get := func(target string) (now, then []device) {
		t.Helper()
		w := s.do("GET", target, "", sent{})
		validate(t, "GET", target, w)
		var answer struct {
			Devices []device `json:"devices"`
			WhatIf  []device `json:"what_if_devices"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatal(err)
		}
		for _, d := range slices.Concat(answer.Devices, answer.WhatIf) {
			if d.Allocated+d.Free+d.Stranded+d.Unusable != d.Size {
				t.Errorf("%s: the parts of device %d are not the whole: %+v", target, d.ID, d)
			}
			if d.Data == nil || *d.Data+d.Metadata+d.System != d.Allocated {
				t.Errorf("%s: not all that is allocated of device %d is for something: %+v", target, d.ID, d)
			}
		}
		return answer.Devices, answer.WhatIf
	}
	now, then := get("/api/v1/pools/attic/capacity")
	if len(now) != 3 || len(then) != 0 || now[0].Unusable == 0 || now[0].Free != 0 || now[1].Path != "/dev/loop43" || *now[1].Data == 0 {
		t.Errorf("now there are %+v and then %+v", now, then)
	}
	_, then = get("/api/v1/pools/attic/capacity?add=4TiB&remove=3")
	if len(then) != 3 || then[1].Path != "/dev/loop43" || *then[1].Data == 0 || then[2].ID != 4 || then[2].Path != "" || then[2].Size != 4<<40 {
		t.Errorf("with one added and another removed there are %+v", then)
	}
	_, then = get("/api/v1/pools/attic/capacity?replace=3:8TiB")
	if len(then) != 3 || then[1].Path != "/dev/loop43" || then[2].ID != 3 || then[2].Path != "" || then[2].Size != 8<<40 {
		t.Errorf("with one replaced there are %+v", then)
	}
	_, then = get("/api/v1/pools/attic/capacity?replace=1:4TiB&remove=3&add=1TiB")
	if len(then) != 3 || then[2].ID != 3 || then[2].Path != "" {
		t.Errorf("with a devid given anew there are %+v", then)
	}
}
