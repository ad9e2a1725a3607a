package httpapi

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"
)

func gunzip(t *testing.T, packed []byte) string {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	r.Multistream(false) // not every client reads on
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Whatever was packed before, the stream holds what was given.
func TestPackedTextIsTheText(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	texts := []string{"", "a", strings.Repeat("btrfs_pool_info 1\n", 10_000)}
	for range 5 {
		text := make([]byte, rng.IntN(200_000))
		for i := range text {
			text[i] = "btrfs_ 0123456789\n"[rng.IntN(18)]
		}
		texts = append(texts, string(text))
	}
	p := newPacker()
	for range 200 {
		stable, volatile := texts[rng.IntN(len(texts))], texts[rng.IntN(len(texts))]
		packed := p.gzip(nil, []byte(stable), []byte(volatile), rng.IntN(3) > 0)
		if got := gunzip(t, packed); got != stable+volatile {
			t.Fatalf("%d + %d bytes became %d", len(stable), len(volatile), len(got))
		}
	}
}

func TestUnchangedTextIsNotPackedAgain(t *testing.T) {
	p := newPacker()
	stable := []byte(strings.Repeat("btrfs_pool_size_bytes 1\n", 1000))
	first := p.gzip(nil, stable, []byte("a 1\n"), true)
	kept := &p.packed[0]
	if second := p.gzip(nil, stable, []byte("a 1\n"), true); !bytes.Equal(first, second) || &p.packed[0] != kept {
		t.Error("the second stream is another one")
	}
	// A filtered scrape in between costs nothing of it.
	p.gzip(nil, []byte("b 1\n"), nil, false)
	if !bytes.Equal(p.text, stable) {
		t.Error("a scrape that is not to be kept was kept")
	}
}

func TestAcceptsGzip(t *testing.T) {
	for header, want := range map[string]bool{
		"":                        false,
		"gzip":                    true,
		"GZIP":                    true,
		"gzip, deflate":           true,
		"deflate, gzip;q=0.5":     true,
		"br;q=1.0, gzip;q=0":      false,
		"gzip;q=0.0":              false,
		"gzip;q=none":             false,
		"identity":                false,
		"x-gzip":                  false,
		"gzipped":                 false,
		"zstd, br, gzip; q=0.001": true,
	} {
		h := http.Header{}
		if header != "" {
			h.Set("Accept-Encoding", header)
		}
		if got := acceptsGzip(h); got != want {
			t.Errorf("Accept-Encoding: %s: %t", header, got)
		}
	}
}

// fakeText writes another number at each scrape.
type fakeText struct {
	prometheus.Collector // not called

	mu      sync.Mutex
	scrapes int
}

func (f *fakeText) AppendText(stable, volatile []byte) ([]byte, []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.scrapes++
	stable = append(stable, strings.Repeat(fmt.Sprintf("btrfs_stable %d\n", f.scrapes/10), 5000)...)
	return stable, fmt.Appendf(volatile, "btrfs_volatile %d\n", f.scrapes)
}

// brokenCollector fails.
type brokenCollector struct{}

func (brokenCollector) Describe(chan<- *prometheus.Desc) {}
func (brokenCollector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(prometheus.NewDesc("broken", "Broken.", nil, nil), errors.New("no such thing"))
}

func newFakeExposition(t *testing.T, logged io.Writer) *expositionHandler {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(brokenCollector{}, prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Name: "process_fake", Help: "A metric."}, func() float64 { return 7 }))
	return &expositionHandler{
		pools: &fakeText{}, process: registry, log: gatherLog{log.NewLogfmtLogger(log.NewSyncWriter(logged))}, packer: newPacker(), keep: true,
	}
}

func TestManyScrapesAtOnceGetWholeAnswers(t *testing.T) {
	server := httptest.NewServer(newFakeExposition(t, io.Discard))
	defer server.Close()
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			transport := &http.Transport{DisableCompression: i%2 == 0}
			defer transport.CloseIdleConnections()
			for range 20 {
				response, err := (&http.Client{Transport: transport}).Get(server.URL)
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(response.Body)
				response.Body.Close()
				var stable, volatile, process int
				text := string(body)
				if err == nil {
					_, err = fmt.Sscanf(text[strings.LastIndex(text, "btrfs_stable"):],
						"btrfs_stable %d\nbtrfs_volatile %d\n# HELP process_fake A metric.\n# TYPE process_fake gauge\nprocess_fake %d\n", &stable, &volatile, &process)
				}
				if err != nil || stable != volatile/10 || process != 7 {
					t.Errorf("%v: stable %d, volatile %d, process %d", err, stable, volatile, process)
				}
				if n := strings.Count(text, fmt.Sprintf("btrfs_stable %d\n", stable)); n != 5000 {
					t.Errorf("%d of 5000 lines", n)
				}
			}
		})
	}
	group.Wait()
}

func TestBrokenProcessMetricIsLoggedAndTheRestServed(t *testing.T) {
	var logged bytes.Buffer
	w := httptest.NewRecorder()
	newFakeExposition(t, &logged).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	if w.Code != http.StatusOK || !strings.HasSuffix(w.Body.String(), "process_fake 7\n") {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	if !strings.Contains(logged.String(), "no such thing") {
		t.Errorf("logged: %s", logged.String())
	}
	if got, want := w.Header().Get("Content-Type"), "text/plain; version=0.0.4; charset=utf-8"; got != want {
		t.Errorf("Content-Type: %s, want %s", got, want)
	}
	if got := w.Header().Get("Content-Length"); got != fmt.Sprint(w.Body.Len()) {
		t.Errorf("Content-Length: %s of %d", got, w.Body.Len())
	}
}
