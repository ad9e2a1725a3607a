package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// TestHistoryOutlivesKills: the daemon takes a sample of a pool, is killed, and
// tells when the pool will be full from what was there before.
func TestHistoryOutlivesKills(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1"})
	uuid, err := btrfs.ParseUUID(pool.UUID)
	must(t, err)
	dir := t.TempDir()
	// Ten days in which it lost 1 GB a day.
	store, err := history.Open(log.NewNopLogger(), state.NewDir(dir), time.Now)
	must(t, err)
	now := time.Now().Truncate(history.Step).Add(-history.Step)
	for at := now.Add(-10 * 24 * time.Hour); !at.After(now); at = at.Add(history.Step) {
		must(t, store.Add(uuid, history.Sample{Time: at, FreeExpected: btrfs.Some(uint64(1e9 * (1 + now.Sub(at).Hours()/24)))}))
	}
	for range 2 {
		p := startServe(t, 1, []string{"--state.dir=" + dir, "--api.socket=" + filepath.Join(t.TempDir(), "api.sock"), "--web.listen-address=127.0.0.1:0"})
		var answer struct {
			Samples []struct {
				Time time.Time `json:"time"`
				Free uint64    `json:"free_bytes"`
			} `json:"samples"`
		}
		eventually(t, "the daemon has taken a sample", func() bool {
			_, body := p.do("GET", "/api/v1/pools/"+pool.UUID+"/history?days=1")
			must(t, json.Unmarshal([]byte(body), &answer))
			return len(answer.Samples) > 0 && answer.Samples[len(answer.Samples)-1].Free > 0
		})
		var capacity struct {
			Forecast struct {
				Days   float64 `json:"days_to_full"`
				Rate   float64 `json:"bytes_per_day"`
				Source string  `json:"source"`
			} `json:"forecast"`
		}
		_, body := p.do("GET", "/api/v1/pools/"+pool.UUID+"/capacity")
		must(t, json.Unmarshal([]byte(body), &capacity))
		if f := capacity.Forecast; f.Source != "local" || f.Days <= 0 || f.Days > 2 || f.Rate < 0.9e9 || f.Rate > 1.1e9 {
			t.Errorf("the forecast is %+v", f)
		}
		must(t, p.cmd.Process.Kill())
		<-p.exited
	}
	var st syscall.Stat_t
	must(t, syscall.Stat(filepath.Join(dir, "history-"+pool.UUID+".ring"), &st))
	if st.Blocks*512 > 2<<20 {
		t.Errorf("it takes %d bytes", st.Blocks*512)
	}
	// With --read-only nothing is kept, and nothing is touched.
	empty := t.TempDir()
	p := startServe(t, 1, []string{"--read-only", "--state.dir=" + empty, "--web.listen-address=127.0.0.1:0"})
	if status, body := p.do("GET", "/api/v1/pools/"+pool.UUID+"/history"); status != 403 || !strings.Contains(body, "keeps no history") {
		t.Errorf("with --read-only: %d %s", status, body)
	}
	if left, err := os.ReadDir(empty); err != nil || len(left) > 0 {
		t.Errorf("with --read-only there are %v (%v)", left, err)
	}
}

func TestURLOfPrometheusIsChecked(t *testing.T) {
	status, _, stderr := runCommandLine(append([]string{"serve", "--prometheus.url=ftp://reader:hunter2@nas"}, recordedArgs(t)...)...)
	if status != 1 || !strings.Contains(stderr, "--prometheus.url") || !strings.Contains(stderr, "http://127.0.0.1:9090") || strings.Contains(stderr, "hunter2") {
		t.Errorf("exit status %d: %s", status, stderr)
	}
}
