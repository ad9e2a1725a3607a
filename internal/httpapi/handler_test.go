package httpapi_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
)

// fakePools has the collectors a and b, each with a metric of its name.
type fakePools struct {
	collect func() float64 // the value of the metrics
}

func (f fakePools) Collector(names ...string) (prometheus.Collector, error) {
	if len(names) == 0 {
		names = []string{"a", "b"}
	}
	for _, n := range names {
		if n != "a" && n != "b" {
			return nil, fmt.Errorf("unknown collector %q", n)
		}
	}
	return fakeCollector{slices.Compact(slices.Sorted(slices.Values(names))), f.collect}, nil
}

func (f fakePools) Pools() ([]collector.PoolReading, error) { return nil, nil }

type fakeCollector struct {
	names   []string
	collect func() float64
}

// Describe sends nothing: what there is differs from scrape to scrape.
func (fakeCollector) Describe(chan<- *prometheus.Desc) {}

func (f fakeCollector) Collect(ch chan<- prometheus.Metric) {
	for _, n := range f.names {
		desc := prometheus.NewDesc("btrfs_fake_"+n, "A metric.", nil, nil)
		if v := f.collect(); v >= 0 {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v)
		} else {
			ch <- prometheus.NewInvalidMetric(desc, errors.New("disk on fire"))
		}
	}
}

// daemon is what the handler talks to.
type daemon struct {
	ready     bool
	badConfig error
	reloads   int
	value     float64
	log       bytes.Buffer
}

func (d *daemon) handler(t *testing.T, change func(*httpapi.Config)) http.Handler {
	t.Helper()
	cfg := httpapi.Config{
		Logger:        log.NewLogfmtLogger(&d.log),
		Version:       "1.2.3",
		TelemetryPath: "/metrics",
		Pools:         fakePools{func() float64 { return d.value }},
		Process: []prometheus.Collector{prometheus.NewGaugeFunc(
			prometheus.GaugeOpts{Name: "process_fake", Help: "A metric."}, func() float64 { return 7 })},
		Ready: func() bool { return d.ready },
		Reload: func() error {
			if d.badConfig == nil {
				d.reloads++
			}
			return d.badConfig
		},
	}
	if change != nil {
		change(&cfg)
	}
	h, err := httpapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

const (
	loopback = "127.0.0.1:4711"
	remote   = "192.0.2.1:4711"
)

func TestRequests(t *testing.T) {
	type step struct {
		do     func(*daemon) // before the request
		method string
		target string
		peer   string // loopback if empty
		header http.Header
		status int
		body   []string // what it contains; with a ! in front what it does not
		allow  string
	}
	for name, steps := range map[string][]step{
		"metrics": {
			{method: "GET", target: "/metrics", status: 200, body: []string{"btrfs_fake_a 0", "btrfs_fake_b 0", "process_fake 7"}},
			{method: "HEAD", target: "/metrics", status: 200},
			{method: "GET", target: "/metrics", peer: remote, status: 200},
			{method: "POST", target: "/metrics", status: 405, allow: "GET, HEAD"},
			{method: "GET", target: "/metrics/", status: 404},
		},
		"collect filter": {
			{method: "GET", target: "/metrics?collect[]=b", status: 200, body: []string{"!btrfs_fake_a", "btrfs_fake_b 0", "process_fake 7"}},
			{method: "GET", target: "/metrics?collect[]=a&collect[]=b", status: 200, body: []string{"btrfs_fake_a 0", "btrfs_fake_b 0"}},
			{method: "GET", target: "/metrics?collect%5B%5D=a&collect[]=a", status: 200, body: []string{"btrfs_fake_a 0", "!btrfs_fake_b"}},
			{method: "GET", target: "/metrics?collect[]=c", status: 400, body: []string{`unknown collector "c"`, "!btrfs_fake"}},
			{method: "GET", target: "/metrics?collect[]=", status: 400, body: []string{`unknown collector ""`}},
			{method: "GET", target: "/metrics", status: 200, body: []string{"btrfs_fake_a 0", "btrfs_fake_b 0"}},
		},
		"collector that fails hides no others": {
			{do: func(d *daemon) { d.value = -1 }, method: "GET", target: "/metrics", status: 200, body: []string{"process_fake 7", "!btrfs_fake"}},
			{do: func(d *daemon) { d.value = 1 }, method: "GET", target: "/metrics", status: 200, body: []string{"btrfs_fake_a 1"}},
		},
		"status page": {
			{method: "GET", target: "/", status: 200, body: []string{"btrfs-governor", "1.2.3", `href="/metrics"`, `href="/-/healthy"`, `href="/-/ready"`, "!debug/pprof"}},
			{method: "POST", target: "/", status: 405, allow: "GET, HEAD"},
		},
		"healthy and ready": {
			{method: "GET", target: "/-/healthy", status: 200, body: []string{"healthy"}},
			{method: "GET", target: "/-/ready", status: 503, body: []string{"starting or stopping"}},
			{do: func(d *daemon) { d.ready = true }, method: "GET", target: "/-/ready", peer: remote, status: 200, body: []string{"is ready"}},
			{do: func(d *daemon) { d.ready = false }, method: "GET", target: "/-/ready", status: 503},
			{method: "GET", target: "/-/healthy", status: 200},
			{method: "POST", target: "/-/healthy", status: 405, allow: "GET, HEAD"},
		},
		"reload": {
			{method: "POST", target: "/-/reload", status: 200, body: []string{"reloaded"}},
			{method: "GET", target: "/-/reload", status: 405, allow: "POST"},
			{method: "POST", target: "/-/reload", peer: "[::1]:4711", status: 200},
			{method: "POST", target: "/-/reload", peer: "[::ffff:127.0.0.1]:4711", status: 200},
			{do: func(d *daemon) { d.badConfig = errors.New("config.yml:3: wrong") }, method: "POST", target: "/-/reload", status: 500, body: []string{"stays as it was: config.yml:3: wrong"}},
			{do: func(d *daemon) { d.badConfig = nil }, method: "POST", target: "/-/reload", status: 200},
		},
		"reload from elsewhere": {
			{method: "POST", target: "/-/reload", peer: remote, status: 403, body: []string{"loopback", "SIGHUP"}},
			{method: "POST", target: "/-/reload", peer: "[2001:db8::1]:4711", status: 403},
			{method: "POST", target: "/-/reload", peer: "[fe80::1%eth0]:4711", status: 403},
			{method: "POST", target: "/-/reload", peer: "127.0.0.1.example.com:1", status: 403},
			{method: "POST", target: "/-/reload", peer: "@", status: 403},
			{method: "POST", target: "/-/reload", peer: remote, header: http.Header{"X-Forwarded-For": {"127.0.0.1"}}, status: 403},
		},
		"pages of other sites": {
			{method: "POST", target: "/-/reload", header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, status: 403, body: []string{"other sites"}},
			{method: "POST", target: "/-/reload", header: http.Header{"Origin": {"https://evil.example"}}, status: 403},
			{method: "POST", target: "/-/reload", header: http.Header{"Origin": {"null"}}, status: 403},
			{method: "POST", target: "/-/reload", header: http.Header{"Sec-Fetch-Site": {"same-origin"}}, status: 200},
			{method: "GET", target: "/metrics", header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, status: 200},
		},
		"unknown paths": {
			{method: "GET", target: "/favicon.ico", status: 404},
			{method: "GET", target: "/-/", status: 404},
			{method: "POST", target: "/-/quit", status: 404},
			{method: "GET", target: "/debug/pprof/", status: 404},
			{method: "GET", target: "/%2e%2e/%2e%2e/etc/passwd", status: 404},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := &daemon{}
			h := d.handler(t, nil)
			accepted := 0
			for _, s := range steps {
				if s.do != nil {
					s.do(d)
				}
				r := httptest.NewRequest(s.method, s.target, http.NoBody)
				r.RemoteAddr = loopback
				if s.peer != "" {
					r.RemoteAddr = s.peer
				}
				for k, v := range s.header {
					r.Header[k] = v
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				what := fmt.Sprintf("%s %s from %s with %v", s.method, s.target, r.RemoteAddr, s.header)
				if w.Code != s.status {
					t.Errorf("%s: got %d %q, want %d", what, w.Code, w.Body, s.status)
				}
				for _, want := range s.body {
					unwanted, not := strings.CutPrefix(want, "!")
					if strings.Contains(w.Body.String(), unwanted) == not {
						t.Errorf("%s: body %q, want %q", what, w.Body, want)
					}
				}
				if got := w.Header().Get("Allow"); got != s.allow {
					t.Errorf("%s: Allow %q, want %q", what, got, s.allow)
				}
				if s.target == "/-/reload" && s.status == 200 {
					accepted++
				}
			}
			if d.reloads != accepted {
				t.Errorf("%d reloads, want %d", d.reloads, accepted)
			}
		})
	}
}

func TestIncompleteScrapeIsLogged(t *testing.T) {
	d := &daemon{value: -1}
	d.handler(t, nil).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", http.NoBody))
	if got := d.log.String(); !strings.Contains(got, "level=error") || !strings.Contains(got, "disk on fire") {
		t.Errorf("log: %q", got)
	}
}

func TestReloadOverUnixSocket(t *testing.T) {
	d := &daemon{}
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httpapi.NewServer(d.handler(t, nil))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	resp, err := client.Post("http://socket/-/reload", "", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || d.reloads != 1 {
		t.Errorf("got %d and %d reloads", resp.StatusCode, d.reloads)
	}
	client.CloseIdleConnections()
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

func TestMaxRequests(t *testing.T) {
	const limit = 3
	running := make(chan struct{}, 2*limit)
	finish := make(chan struct{})
	h := (&daemon{}).handler(t, func(cfg *httpapi.Config) {
		cfg.MaxRequests = limit
		cfg.Pools = fakePools{func() float64 {
			running <- struct{}{}
			<-finish
			return 1
		}}
	})
	get := func(target string) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", target, http.NoBody))
		return w.Code
	}
	var wg sync.WaitGroup
	// The limit counts filtered and unfiltered scrapes together.
	for _, target := range []string{"/metrics", "/metrics?collect[]=a", "/metrics?collect[]=b"} {
		wg.Go(func() {
			if got := get(target); got != 200 {
				t.Errorf("%s: got %d, want 200", target, got)
			}
		})
	}
	for range limit {
		<-running
	}
	for _, target := range []string{"/metrics", "/metrics?collect[]=a"} {
		if got := get(target); got != 503 {
			t.Errorf("%s beyond the limit: got %d, want 503", target, got)
		}
	}
	if got := get("/-/healthy"); got != 200 {
		t.Errorf("healthy: got %d, want 200", got)
	}
	close(finish)
	wg.Wait()
	if got := get("/metrics"); got != 200 {
		t.Errorf("after the others: got %d, want 200", got)
	}
}

func TestExpositionIsCompressedOnRequest(t *testing.T) {
	r := httptest.NewRequest("GET", "/metrics", http.NoBody)
	r.Header.Set("Accept-Encoding", "gzip")
	w := httptest.NewRecorder()
	(&daemon{}).handler(t, nil).ServeHTTP(w, r)
	unzipped, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(unzipped); err != nil || !bytes.Contains(body, []byte("btrfs_fake_a 0")) {
		t.Errorf("got %q %v", body, err)
	}
}

func TestCheckTelemetryPath(t *testing.T) {
	for _, tt := range []struct {
		path string
		good bool
	}{
		{"/metrics", true},
		{"/btrfs/metrics", true},
		{"/metrics.txt", true},
		{"", false},
		{"metrics", false},
		{"/", false},
		{"/metrics/", false},
		{"/a/../b", false},
		{"//metrics", false},
		{"/{x}", false},
		{"/metrics?x=1", false},
		{"/two words", false},
		{"/-/ready", false},
		{"/-", false},
		{"/api/v1/pools", false},
	} {
		err := httpapi.CheckTelemetryPath(tt.path)
		if (err == nil) != tt.good {
			t.Errorf("%q: got %v, want good: %v", tt.path, err, tt.good)
		}
		if err == nil {
			// The path has its place in the handler.
			w := httptest.NewRecorder()
			h := (&daemon{}).handler(t, func(cfg *httpapi.Config) { cfg.TelemetryPath = tt.path })
			h.ServeHTTP(w, httptest.NewRequest("GET", tt.path, http.NoBody))
			if w.Code != 200 {
				t.Errorf("%q: got %d, want 200", tt.path, w.Code)
			}
		}
	}
}
