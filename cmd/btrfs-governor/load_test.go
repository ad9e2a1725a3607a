package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

var loadSeconds = flag.Int("load.seconds", 2, "how long TestLoadOfWebhooks sends 200 webhooks a second; `make load` does for 60")

const (
	loadRate   = 200       // webhooks per second
	loadMemory = 128 << 20 // bytes: MemoryMax of the systemd unit
)

// webhook is one request of the load, and how it has to be answered.
type webhook struct {
	path, body string
	status     int
}

// newWebhooks makes webhooks of which one in ten is garbage. Of the others a third
// are repeated, a third resolved, and a third new; half go to the actions and half
// to the bridge.
func newWebhooks(rng *rand.Rand, pool string, n int) []webhook {
	one := func(i int) string {
		status, fingerprint := "firing", fmt.Sprintf("%016x", i)
		switch i % 3 {
		case 1:
			fingerprint = fmt.Sprintf("%016x", i%50)
		case 2:
			status = "resolved"
		}
		labels, err := json.Marshal(map[string]string{"alertname": "BtrfsScrubOverdue", "severity": "warning", "uuid": pool, "n": fingerprint})
		if err != nil {
			panic(err)
		}
		return fmt.Sprintf(`{"version":"4","status":%q,"groupKey":%q,"alerts":[{"status":%q,"labels":%s,"annotations":{"summary":"Alert %d"},"startsAt":"2026-03-07T19:45:57Z","endsAt":"0001-01-01T00:00:00Z","fingerprint":%q}]}`,
			status, fingerprint, status, labels, i, fingerprint)
	}
	garbage := []func(string) string{
		func(s string) string { return s[:rng.IntN(len(s)-1)+1] },
		func(string) string { return "<html><body>502 Bad Gateway</body></html>" },
		func(s string) string { return strings.Replace(s, `"4"`, `"5"`, 1) },
		func(s string) string { return strings.Repeat("[", 100_000) + s },
		func(s string) string {
			return strings.Replace(s, `"groupKey":"`, `"groupKey":"`+strings.Repeat("x", 5<<20), 1)
		},
		func(s string) string { return strings.ReplaceAll(s, "fingerprint", "finger\x00print") },
	}
	all := make([]webhook, n)
	for i := range all {
		w := webhook{"/api/v1/alertmanager", one(i), http.StatusOK}
		if i%2 == 0 {
			w.path = "/api/v1/notify/phone"
		}
		if i%10 == 7 {
			w.body, w.status = garbage[rng.IntN(len(garbage))](w.body), http.StatusBadRequest
			if len(w.body) > 4<<20 {
				w.status = http.StatusRequestEntityTooLarge
			}
		}
		all[i] = w
	}
	return all
}

// TestLoadOfWebhooks sends 200 webhooks a second, one in ten of them garbage:
// every one is answered as it should be, each notification comes once, and the
// daemon needs no more memory than its systemd unit allows.
func TestLoadOfWebhooks(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib}, Data: "single", Metadata: "single", Label: "attic"})
	var (
		mu    sync.Mutex
		heard int
	)
	phone := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		defer mu.Unlock()
		heard++
		fmt.Fprint(w, `{"id":"1"}`)
	}))
	t.Cleanup(phone.Close)
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "state"), 0o700))
	const token = "0123456789abcdef0123456789abcdef"
	must(t, os.WriteFile(filepath.Join(dir, "state", "token"), []byte(token), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "config.yml"), fmt.Appendf(nil, `
alertmanager:
  actions:
    - {name: advice, match: ['alertname=~"Btrfs.+"'], action: balance, cool_down: 1s}
notify:
  receivers:
    - {name: phone, type: ntfy, url: %q, topic: attic, rate_limit: 10000}
`, phone.URL), 0o600))
	serve := startServe(t, 1, []string{
		"--web.listen-address=127.0.0.1:0", "--config.file=" + filepath.Join(dir, "config.yml"), "--state.dir=" + filepath.Join(dir, "state"), "--api.socket=",
	})

	all := newWebhooks(rand.New(rand.NewPCG(1, 2)), pool.UUID, loadRate**loadSeconds)
	var took []time.Duration
	var senders sync.WaitGroup
	type due struct {
		webhook
		at time.Time
	}
	next := make(chan due)
	for range 16 {
		senders.Go(func() {
			for w := range next {
				r, err := http.NewRequest(http.MethodPost, "http://"+serve.addrs[0]+w.path, bytes.NewReader([]byte(w.body)))
				if err != nil {
					t.Error(err)
					continue
				}
				r.Header.Set("Authorization", "Bearer "+token)
				r.Header.Set("Content-Type", "application/json")
				answer, err := serve.client.Do(r)
				if err != nil {
					// Who still sends while the answer is there may not see it.
					if w.status != http.StatusRequestEntityTooLarge {
						t.Errorf("%s %.100s: %v", w.path, w.body, err)
					}
					continue
				}
				body, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
				answer.Body.Close()
				if answer.StatusCode != w.status {
					t.Errorf("%s %.100s is answered with %s %s, want %d", w.path, w.body, answer.Status, body, w.status)
				}
				mu.Lock()
				took = append(took, time.Since(w.at)) // what it waited for a sender too
				mu.Unlock()
			}
		})
	}
	began := time.Now()
	most := 0.0
	for i, w := range all {
		// By the clock, and not by a ticker, which forgets what it could not deliver.
		d := due{w, began.Add(time.Duration(i) * time.Second / loadRate)}
		<-time.After(time.Until(d.at))
		next <- d
		if i%loadRate == 0 {
			most = max(most, metricOf(t, serve, "process_resident_memory_bytes"))
		}
	}
	close(next)
	senders.Wait()
	// The last is due one beat before the end of its second.
	rate := float64(len(all)) / max(time.Since(began), time.Duration(*loadSeconds)*time.Second).Seconds()

	// What the bridge was sent, less what it was sent before.
	distinct := make(map[string]bool)
	for _, w := range all {
		if w.status == http.StatusOK && strings.Contains(w.path, "notify") {
			key := regexp.MustCompile(`"(firing|resolved)"|"fingerprint":"\w+"`).FindAllString(w.body, -1)
			distinct[strings.Join(key, " ")] = true
		}
	}
	eventually(t, "all is sent on", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return heard >= len(distinct)
	})
	most = max(most, metricOf(t, serve, "process_resident_memory_bytes"))
	if sent := metricOf(t, serve, `btrfs_governor_notifications_total{receiver="phone",result="sent"}`); heard != len(distinct) || sent != float64(heard) {
		t.Errorf("%d notifications were heard, and %g sent, of %d", heard, sent, len(distinct))
	}
	if most > loadMemory*memoryFactor {
		t.Errorf("the daemon took %.0f bytes of memory, and may take %d", most, loadMemory*memoryFactor)
	}
	slices.Sort(took)
	t.Logf("%d webhooks at %.0f a second, half of a second's answers within %s, 99 %% within %s; at most %.1f MiB of memory; %d notifications sent on",
		len(all), rate, took[len(took)/2], took[len(took)*99/100], most/(1<<20), heard)
}

// metricOf returns the value of a series of the daemon.
func metricOf(t *testing.T, serve *process, series string) float64 {
	t.Helper()
	_, body, err := request(serve.client, http.MethodGet, "http://"+serve.addrs[0]+"/metrics")
	must(t, err)
	match := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(body)
	if match == nil {
		t.Fatalf("there is no %s", series)
	}
	value, err := strconv.ParseFloat(match[1], 64)
	must(t, err)
	return value
}
