package history_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-kit/log"
	promconfig "github.com/prometheus/common/config"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/httpclient"
)

// safeBuffer may be written to and read at the same time.
type safeBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// localHistory is what is known without a Prometheus.
type localHistory struct{}

func (localHistory) Samples(btrfs.UUID, time.Time, int) []history.Sample {
	return []history.Sample{numbered(begin, 42)}
}

func (localHistory) Forecast(btrfs.UUID) (history.Forecast, bool) {
	return history.Forecast{Time: begin, Source: history.SourceLocal}, true
}

// remote is a Prometheus that answers as a test says, and what is asked of it.
type remote struct {
	t      *testing.T
	server *httptest.Server
	source *history.Prometheus
	here   pools
	log    safeBuffer
	clock  atomic.Int64 // seconds after begin
	asked  atomic.Int64
}

func (r *remote) now() time.Time { return begin.Add(time.Duration(r.clock.Load()) * time.Second) }

func newRemote(t *testing.T, local history.Local, answer http.HandlerFunc) *remote {
	t.Helper()
	r := &remote{t: t}
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.asked.Add(1)
		if user, password, _ := req.BasicAuth(); user != "reader" || password != "hunter2" {
			t.Errorf("it is asked by %q", user)
		}
		answer(w, req)
	}))
	t.Cleanup(r.server.Close)
	address, err := history.CheckURL(r.server.URL + "/prefix/")
	if err != nil {
		t.Fatal(err)
	}
	settings := promconfig.DefaultHTTPClientConfig
	settings.BasicAuth = &promconfig.BasicAuth{Username: "reader", Password: "hunter2"}
	client, err := httpclient.New(settings, "prometheus", "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	r.here.set(whole(pool))
	r.source, err = history.NewPrometheus(history.PrometheusConfig{
		Logger: log.NewLogfmtLogger(&r.log), URL: address, Client: client, Pools: &r.here, Local: local, Now: r.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.source.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if strings.Contains(r.log.String(), "hunter2") || strings.Contains(r.log.String(), "reader") {
			t.Errorf("a secret is in the log:\n%s", &r.log)
		}
	})
	return r
}

func (r *remote) eventually(what string, condition func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("it never comes that %s\n%s", what, &r.log)
		}
	}
}

// recorded answers as a Prometheus does that has the recording rules, and one
// sample of now.
func recorded(w http.ResponseWriter, r *http.Request) { recordedAt(w, r, begin) }

func recordedAt(w http.ResponseWriter, r *http.Request, at time.Time) {
	w.Header().Set("Content-Type", "application/json")
	if strings.HasSuffix(r.URL.Path, "/query_range") {
		fmt.Fprint(w, `{"status":"success","data":{"resultType":"matrix","result":[]}}`)
		return
	}
	series := `{"metric":{"__name__":"btrfs_pool_free_bytes"},"value":[%[1]d,"7"]},{"metric":{"__name__":"btrfs_pool_used_bytes"},"value":[%[1]d,"NaN"]}`
	if strings.Contains(r.FormValue("query"), "days_to_full") {
		series = `{"metric":{"__name__":"btrfs:pool_days_to_full"},"value":[%[1]d,"12.5"]},{"metric":{"__name__":"btrfs:pool_metadata_days_to_full"},"value":[%[1]d,"+Inf"]}`
	}
	fmt.Fprintf(w, `{"status":"success","data":{"resultType":"vector","result":[`+series+`]}}`, at.Unix())
}

func TestPrometheusTellsWhatItRecorded(t *testing.T) {
	var paths sync.Map
	r := newRemote(t, localHistory{}, func(w http.ResponseWriter, req *http.Request) {
		paths.Store(req.URL.Path, true)
		recorded(w, req)
	})
	// The first answer is what is known at once.
	if f, ok := r.source.Forecast(pool); !ok || f.Source != history.SourceLocal {
		t.Errorf("at first: %+v %t", f, ok)
	}
	r.eventually("the forecast is that of Prometheus", func() bool {
		f, ok := r.source.Forecast(pool)
		return ok && f.Source == history.SourcePrometheus && f.DaysToFull.Value == 12.5 && f.MetadataDaysToFull.Value == 3650 && f.Time.Equal(begin)
	})
	r.eventually("the samples are those of Prometheus", func() bool {
		s := r.source.Samples(pool, begin.Add(-day), 100)
		return len(s) == 1 && s[0] == history.Sample{Time: begin, Free: btrfs.Some[uint64](7)}
	})
	if _, ok := paths.Load("/prefix/api/v1/query"); !ok {
		t.Error("the path of the URL is lost")
	}
	// A page that is loaded often asks for nothing more.
	asked := r.asked.Load()
	r.clock.Store(50)
	for range 1000 {
		r.source.Forecast(pool)
		r.source.Samples(pool, r.now().Add(-day), 100)
	}
	if n := r.asked.Load(); n > asked {
		t.Errorf("within a minute it is asked %d times more", n-asked)
	}
}

func TestPrometheusThatFailsIsFallenBackFrom(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"error":   func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) },
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"wrong type": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"status":"success","data":{"resultType":"scalar","result":[1,"2"]}}`)
		},
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		},
		"redirect in a circle": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		},
		"hung up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			var good atomic.Bool
			r := newRemote(t, localHistory{}, func(w http.ResponseWriter, req *http.Request) {
				if good.Load() {
					recorded(w, req)
				} else {
					answer(w, req)
				}
			})
			isLocal := func() bool {
				f, ok := r.source.Forecast(pool)
				s := r.source.Samples(pool, begin.Add(-day), 10)
				return ok && f.Source == history.SourceLocal && len(s) == 1 && s[0].Used.Value == 42
			}
			if !isLocal() {
				t.Error("it is not the local one at first")
			}
			r.eventually("the failure is said", func() bool { return strings.Contains(r.log.String(), "Prometheus does not answer") })
			for range 5 {
				asked := r.asked.Load()
				r.eventually("it is tried again", func() bool {
					r.clock.Add(61)
					return isLocal() && r.asked.Load() > asked
				})
			}
			good.Store(true)
			r.eventually("it is Prometheus again", func() bool {
				r.clock.Add(61)
				f, _ := r.source.Forecast(pool)
				return f.Source == history.SourcePrometheus || strings.Contains(r.log.String(), "answers again")
			})
			if n := strings.Count(r.log.String(), "does not answer"); n != 1 {
				t.Errorf("it is said %d times:\n%s", n, &r.log)
			}
		})
	}
}

// Prometheus refuses what would take too many samples, and answers all else.
func TestQuestionThatIsRefusedCostsNoOther(t *testing.T) {
	var refusals atomic.Int64
	var r *remote
	r = newRemote(t, localHistory{}, func(w http.ResponseWriter, req *http.Request) {
		if from, _ := strconv.ParseFloat(req.FormValue("start"), 64); from > 0 && r.now().Sub(time.Unix(int64(from), 0)) > 300*day {
			refusals.Add(1)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprint(w, `{"status":"error","errorType":"execution","error":"query processing would load too many samples into memory"}`)
			return
		}
		recordedAt(w, req, r.now())
	})
	local := func() bool {
		s := r.source.Samples(pool, r.now().Add(-399*day), 400)
		return len(s) == 1 && s[0].Used.Value == 42
	}
	remote := func() bool {
		f, _ := r.source.Forecast(pool)
		s := r.source.Samples(pool, r.now().Add(-89*day), 150)
		return f.Source == history.SourcePrometheus && len(s) == 1 && s[0].Free.Value == 7
	}
	for minute := range int64(20) {
		// Each minute all of it is asked anew.
		r.eventually("it is refused, and the rest is that of Prometheus", func() bool {
			r.clock.Add(1)
			return local() && remote() && refusals.Load() > minute
		})
	}
	if text := r.log.String(); strings.Count(text, "refuses a question") != 1 || !strings.Contains(text, "too many samples") || strings.Contains(text, "does not answer") {
		t.Errorf("the log says\n%s", text)
	}
}

// A Prometheus that hangs holds nobody up, also not the end.
func TestPrometheusThatHangsHoldsNobodyUp(t *testing.T) {
	hang := make(chan struct{})
	r := newRemote(t, nil, func(http.ResponseWriter, *http.Request) { <-hang })
	t.Cleanup(func() { close(hang) }) // before the server is closed
	start := time.Now()
	for i := range 3000 {
		if _, ok := r.source.Forecast(pool); ok {
			t.Error("there is a forecast")
		}
		if s := r.source.Samples(pool, begin.Add(-time.Duration(i)*day), i); s != nil {
			t.Errorf("there are samples: %v", s)
		}
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
	r.eventually("it is asked", func() bool { return r.asked.Load() > 0 })
}

// Whatever is asked for, Prometheus is asked few questions, each of them once, and
// only of pools of this machine.
func TestQuestionsAreBounded(t *testing.T) {
	var (
		mu      sync.Mutex
		ranges  = make(map[string]int)
		strange []string
	)
	r := newRemote(t, nil, func(w http.ResponseWriter, req *http.Request) {
		query := req.FormValue("query")
		mu.Lock()
		if strings.HasSuffix(req.URL.Path, "/query_range") {
			ranges[query+" from "+req.FormValue("start")+" by "+req.FormValue("step")]++
		}
		if !strings.Contains(query, pool.String()) {
			strange = append(strange, query)
		}
		mu.Unlock()
		recorded(w, req)
	})
	var wg sync.WaitGroup
	for range 20 { // at the same time
		wg.Go(func() {
			for days := 1; days <= 400; days++ {
				r.source.Samples(pool, r.now().Add(-time.Duration(days)*day), 400)
				r.source.Forecast(pool)
				r.source.Forecast(btrfs.UUID{byte(days), byte(days >> 8), 9})
			}
		})
	}
	wg.Wait()
	r.eventually("all that is asked for is there", func() bool {
		for _, days := range []int{1, 2, 3, 5, 10, 30, 60, 90, 100, 365, 400} {
			if len(r.source.Samples(pool, r.now().Add(-time.Duration(days)*day), 400)) != 1 {
				return false
			}
		}
		_, ok := r.source.Forecast(pool)
		return ok
	})
	mu.Lock()
	defer mu.Unlock()
	if len(ranges) > 11 { // ten spans, and the one of the forecast
		t.Errorf("there are %d questions: %v", len(ranges), ranges)
	}
	for question, n := range ranges {
		if n > 1 {
			t.Errorf("it is asked %d times: %s", n, question)
		}
	}
	// With each there is a query of now, and one of the rules.
	if n := r.asked.Load(); n > 23 {
		t.Errorf("there are %d requests", n)
	}
	if len(strange) > 0 {
		t.Errorf("it is asked of other pools: %v", strange)
	}
}

// A pool that comes is asked for, and one that is forgotten makes room.
func TestPoolThatComesIsAskedFor(t *testing.T) {
	r := newRemote(t, nil, recorded)
	other := btrfs.UUID{7}
	for i := range 1000 {
		r.source.Forecast(btrfs.UUID{byte(i), byte(i >> 8), 9})
	}
	r.here.set(whole(pool), collector.PoolReading{UUID: other, Err: errors.New("a disk hangs")})
	r.eventually("there is its forecast", func() bool { _, ok := r.source.Forecast(other); return ok })
}

// One sees as much as one asks for, of what was fetched.
func TestSamplesBeginWhereTheyAreAskedFor(t *testing.T) {
	r := newRemote(t, nil, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if !strings.HasSuffix(req.URL.Path, "/query_range") {
			recorded(w, req)
			return
		}
		var values []string
		for hours := 14 * 24; hours > 0; hours-- {
			values = append(values, fmt.Sprintf(`[%d,"8"]`, begin.Add(-time.Duration(hours)*time.Hour).Unix()))
		}
		fmt.Fprintf(w, `{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"__name__":"btrfs_pool_free_bytes"},"values":[%s]}]}}`, strings.Join(values, ","))
	})
	since := begin.Add(-9 * day)
	r.eventually("there are samples", func() bool { return len(r.source.Samples(pool, since, 400)) > 0 })
	if got := r.source.Samples(pool, since, 400); len(got) != 9*24+1 || !got[0].Time.Equal(since) {
		t.Errorf("of nine days there are %d, from %s", len(got), got[0].Time)
	}
	if got := r.source.Samples(pool, begin.Add(-10*day), 400); len(got) != 10*24+1 {
		t.Errorf("of ten days there are %d, and nothing else is asked", len(got))
	}
}

// Whoever asks for all of a day has each quarter of its last hour: the page tells from
// them how long there is room.
func TestLastHourIsWhole(t *testing.T) {
	r := newRemote(t, nil, func(w http.ResponseWriter, req *http.Request) {
		if !strings.HasSuffix(req.URL.Path, "/query_range") {
			recorded(w, req)
			return
		}
		number := func(name string) float64 {
			v, err := strconv.ParseFloat(req.FormValue(name), 64)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			return v
		}
		var values []string
		for at := number("start"); at <= number("end"); at += max(number("step"), 1) {
			values = append(values, fmt.Sprintf(`[%.0f,"8"]`, at))
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"__name__":"btrfs_pool_free_expected_bytes"},"values":[%s]}]}}`, strings.Join(values, ","))
	})
	const allOfADay = 2 * int(24*time.Hour/history.Step)
	r.eventually("there are samples", func() bool { return len(r.source.Samples(pool, begin.Add(-time.Hour), allOfADay)) > 0 })
	if got := r.source.Samples(pool, begin.Add(-time.Hour), allOfADay); len(got) < 4 {
		t.Errorf("of the last hour there are %v", got)
	}
}

// What is old is not told: a forecast, and samples of a Prometheus that is gone.
func TestOldAnswersAreNotTold(t *testing.T) {
	var gone atomic.Bool
	r := newRemote(t, nil, func(w http.ResponseWriter, req *http.Request) {
		if gone.Load() {
			panic(http.ErrAbortHandler)
		}
		recorded(w, req)
	})
	samples := func() int { return len(r.source.Samples(pool, r.now().Add(-day), 10)) }
	r.eventually("there are samples", func() bool { return samples() > 0 })
	gone.Store(true)
	r.clock.Store(4 * 60)
	if samples() == 0 {
		t.Error("after four minutes there are none")
	}
	r.clock.Store(5 * 60)
	if n := samples(); n > 0 {
		t.Errorf("after five minutes there are %d", n)
	}
}

func TestURLOfPrometheus(t *testing.T) {
	for _, bad := range []string{"", "prometheus", "localhost:9090", "ftp://a", "http://", "http://user:hunter2@a b", "http://a/?x=hunter2", "http://a/#hunter2", "http://%zz:hunter2@a", "http://a:hunter2@a", "https://hunter2@a"} {
		if _, err := history.CheckURL(bad); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := history.CheckURL("https://reader:hunter2@nas:9090"); err == nil || !strings.Contains(err.Error(), "--prometheus.http-config") {
		t.Errorf("with a password: %v", err)
	}
	for _, good := range []string{"http://127.0.0.1:9090", "https://a.example/prometheus", "http://[::1]:9090/"} {
		if u, err := history.CheckURL(good); err != nil || u.String() != good {
			t.Errorf("%q: %v %v", good, u, err)
		}
	}
}
