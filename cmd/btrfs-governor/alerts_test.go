package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/btrfs-governor/btrfs-governor/alerts"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/testprogram"
)

// message is what Alertmanager sends to a webhook, as far as it matters here.
type message struct {
	Alerts []struct {
		Status      string            `json:"status"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"alerts"`
}

// person is a webhook that remembers what it was told.
type person struct {
	mu    sync.Mutex
	heard map[string]string // the description, by alert, severity and status
}

func (p *person) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var m message
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range m.Alerts {
		p.heard[a.Labels["alertname"]+" "+a.Labels["severity"]+" "+a.Status] = a.Annotations["description"]
	}
}

func (p *person) says(what string) (description string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	description, ok = p.heard[what]
	return description, ok
}

// TestWhatHappensReachesAPerson has real Prometheus and Alertmanager tell of what
// happens to a real pool: a block is corrupted and found by a scrub, and a device
// goes missing.
func TestWhatHappensReachesAPerson(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib, gib, gib}, Data: "raid1", Metadata: "raid1", Label: "attic"})
	must(t, pool.WriteFile("film", 8*mib, newRandom()))
	must(t, pool.WriteFile("lost", mib, newRandom()))
	must(t, pool.Sync())
	dir := t.TempDir()
	socket := filepath.Join(dir, "api.sock")
	must(t, os.WriteFile(filepath.Join(dir, "config.yml"), nil, 0o600))
	serve := startServe(t, 1, []string{
		"--web.listen-address=127.0.0.1:0", "--config.file=" + filepath.Join(dir, "config.yml"), "--state.dir=" + filepath.Join(dir, "state"), "--api.socket=" + socket,
	})
	somebody := &person{heard: make(map[string]string)}
	server := httptest.NewServer(somebody)
	t.Cleanup(server.Close)

	// The examples, but faster.
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	example := func(name string, changes ...string) string {
		t.Helper()
		data, err := os.ReadFile("../../examples/" + name)
		must(t, err)
		for i := 0; i < len(changes); i += 2 {
			if !strings.Contains(string(data), changes[i]) {
				t.Fatalf("%s does not have %q", name, changes[i])
			}
		}
		return write(name, strings.NewReplacer(changes...).Replace(string(data)))
	}
	alertmanager := testprogram.Serve(t, testprogram.Find(t, "prometheus-alertmanager", "prometheus-alertmanager"), "--cluster.listen-address=", "--storage.path="+filepath.Join(dir, "am"),
		"--config.file="+example("alertmanager.yml",
			"group_wait: 30s", "group_wait: 0s", "group_wait: 10s", "group_wait: 0s", "group_interval: 5m", "group_interval: 1s",
			"email_configs:\n      - to: root@example.org", "webhook_configs:\n      - url: "+server.URL,
			// All is to be heard here.
			"inhibit_rules:", "# Not here: inhibit_rules:", "\n  - source_matchers:", "\n  #", "\n    target_matchers:", "\n  #", "\n    equal:", "\n  #"))
	rules, err := alerts.Files.ReadFile(alerts.FileName)
	must(t, err)
	write(alerts.FileName, regexp.MustCompile(`keep_firing_for: \w+`).ReplaceAllString(string(rules), "keep_firing_for: 1s"))
	prometheus := testprogram.Serve(t, testprogram.Find(t, "prometheus", "prometheus"), "--storage.tsdb.path="+filepath.Join(dir, "tsdb"),
		"--config.file="+example("prometheus.yml",
			"scrape_interval: 1m", "scrape_interval: 1s", "scrape_timeout: 10s", "scrape_timeout: 1s", "evaluation_interval: 1m", "evaluation_interval: 1s",
			"localhost:9093", alertmanager, "localhost:10134", serve.addrs[0]))

	eventually(t, "Prometheus knows the pool as it was before", func() bool {
		_, body, err := request(serve.client, http.MethodGet, "http://"+prometheus+"/api/v1/query?query=count_over_time(btrfs_device_errors_total[1m])>1")
		return err == nil && strings.Contains(body, pool.UUID)
	})
	hears := func(what, text string) {
		t.Helper()
		eventually(t, "somebody hears "+what, func() bool { _, ok := somebody.says(what); return ok })
		if said, _ := somebody.says(what); !strings.Contains(said, text) || !strings.Contains(said, pool.UUID) {
			t.Errorf("%s: %s", what, said)
		}
	}
	scrub := func(want int) {
		t.Helper()
		eventually(t, "the socket is there", func() bool { _, err := os.Stat(socket); return err == nil })
		must(t, pool.DropCaches())
		if status, stdout, stderr := runCommandLine("scrub", "start", pool.UUID, "--mode=full", "--follow", "--api.socket="+socket); status != want {
			t.Fatalf("scrub: exit status %d, want %d\n%s%s", status, want, stdout, stderr)
		}
	}
	must(t, pool.CorruptFile("film", 0, 0))
	scrub(3)
	hears("BtrfsScrubErrorsCorrected warning firing", "attic")
	hears("BtrfsDeviceErrors warning firing", "corruption")

	must(t, pool.CorruptFile("lost", 0, 0))
	must(t, pool.CorruptFile("lost", 0, 1))
	scrub(4)
	hears("BtrfsScrubErrorsUncorrectable critical firing", "no other copy could repair")

	must(t, pool.Detach(3))
	must(t, pool.MountDegraded(false))
	hears("BtrfsDeviceMissing critical firing", fmt.Sprintf("Device %d", 3))
	must(t, pool.Unmount())
	must(t, pool.Attach(3))
	must(t, pool.Mount())
	hears("BtrfsDeviceMissing critical resolved", "attic")
}
