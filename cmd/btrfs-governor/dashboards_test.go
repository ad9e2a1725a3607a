package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/alerts"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/dashboards"
	"github.com/btrfs-governor/btrfs-governor/internal/testprogram"
)

// grafanaDashboard is a dashboard as far as its queries go.
type grafanaDashboard struct {
	Panels []struct {
		Title, Type string
		Targets     []grafanaTarget
	}
	Templating struct {
		List []struct {
			Name, Type, Query, Regex string
		}
	}
	Annotations struct {
		List []struct {
			Name   string
			Target grafanaTarget
		}
	}
}

type grafanaTarget struct {
	RefID        string `json:"refId"`
	Expr         string
	LegendFormat string
	Instant      bool
}

func readDashboard(t *testing.T, name string) *grafanaDashboard {
	t.Helper()
	data, err := dashboards.Files.ReadFile(name)
	must(t, err)
	d := new(grafanaDashboard)
	must(t, json.Unmarshal(data, d))
	return d
}

// grafana asks a Prometheus as Grafana does.
type grafana struct {
	stack      *stack
	pool       string // the value of the variable
	start, end time.Time
	step       time.Duration
}

// fill puts in what Grafana does for its variables.
func (g *grafana) fill(expr string) string {
	return strings.NewReplacer(
		"$__rate_interval", "8s", "$__range", fmt.Sprintf("%.0fs", g.end.Sub(g.start).Seconds()), "$__interval", fmt.Sprintf("%.0fs", g.step.Seconds()),
		"$job", ".+", "$host", ".+", "$pool", g.pool,
	).Replace(expr)
}

// series is one of a result of Prometheus.
type series struct {
	Metric map[string]string
	Value  [2]any   // at an instant
	Values [][2]any // over a range
}

// ask returns what a query has at the end, or over the whole range.
func (g *grafana) ask(expr string, instant bool) ([]series, error) {
	form := url.Values{"query": {g.fill(expr)}, "time": {fmt.Sprint(g.end.Unix())}}
	path := "query"
	if !instant {
		path = "query_range"
		form.Set("start", fmt.Sprint(g.start.Unix()))
		form.Set("end", fmt.Sprint(g.end.Unix()))
		form.Set("step", fmt.Sprint(g.step.Seconds()))
	}
	status, body, err := request(g.stack.serve.client, http.MethodGet, "http://"+g.stack.prometheus.Address+"/api/v1/"+path+"?"+form.Encode())
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", form.Get("query"), body)
	}
	var answer struct{ Data struct{ Result []series } }
	err = json.Unmarshal([]byte(body), &answer)
	return answer.Data.Result, err
}

// number is the value of a sample.
func number(t *testing.T, sample [2]any) float64 {
	t.Helper()
	text, _ := sample[1].(string)
	v, err := strconv.ParseFloat(text, 64)
	must(t, err)
	return v
}

// readWithoutPause reads a file at random places, past the page cache, until it is
// stopped.
func readWithoutPause(t *testing.T, path string, size int64) (stop func()) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	must(t, err)
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for random := newRandom(); ; {
			select {
			case <-done:
				return
			default:
			}
			if _, err := unix.Pread(fd, block, random.Int64N(size/4096)*4096); err != nil {
				t.Errorf("read %s: %v", path, err)
				return
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		close(done)
		<-ended
		_ = unix.Close(fd)
		_ = unix.Munmap(block)
	})
	t.Cleanup(stop)
	return stop
}

const (
	// fillingUp is how much of the pool was used up in a day, before the test.
	fillingUp = 100 * mib
	// historyDays is for how long that and the daily snapshots are known.
	historyDays = 36
)

// history is what Prometheus knows of the pool from the weeks before.
func (s *stack) history(pool *btrfstest.Pool, instance string, now time.Time) string {
	s.t.Helper()
	var b strings.Builder
	begin, end := now.Add(-historyDays*24*time.Hour).Truncate(time.Hour), now.Add(-3*time.Hour)
	for _, metric := range []struct {
		name, labels string
		value        func(time.Time) int64
	}{
		{"btrfs_pool_info", `label="attic",`, func(time.Time) int64 { return 1 }},
		{"btrfs_pool_free_expected_bytes", "", func(at time.Time) int64 { return 3*gib + int64(now.Sub(at).Hours()*float64(fillingUp)/24) }},
		{"btrfs_snapshot_last_success_timestamp_seconds", "", func(at time.Time) int64 { return at.Truncate(24 * time.Hour).Unix() }},
	} {
		fmt.Fprintf(&b, "# TYPE %s gauge\n", metric.name)
		for at := begin; at.Before(end); at = at.Add(10 * time.Minute) {
			fmt.Fprintf(&b, "%s{%sjob=\"btrfs\",instance=%q,uuid=%q} %d %d\n", metric.name, metric.labels, instance, pool.UUID, metric.value(at), at.Unix())
		}
	}
	b.WriteString("# EOF\n")
	dir := filepath.Join(s.dir, "tsdb")
	promtool := testprogram.Find(s.t, "promtool", "prometheus")
	if output, err := exec.Command(promtool, "tsdb", "create-blocks-from", "--max-block-duration=1488h", "openmetrics", s.write("history.om", b.String()), dir).CombinedOutput(); err != nil {
		s.t.Fatalf("promtool: %v\n%s", err, output)
	}
	return dir
}

// newDashboardStack is the daemon with a Prometheus that knows the weeks before,
// without Alertmanager.
func newDashboardStack(t *testing.T, pool *btrfstest.Pool) *stack {
	t.Helper()
	s := &stack{t: t, dir: t.TempDir()}
	s.socket = filepath.Join(s.dir, "api.sock")
	s.write("state/token", "0123456789abcdef0123456789abcdef\n")
	s.write("config.yml", "snapshots:\n  pools:\n    - pool: "+pool.UUID+"\n      subvolumes: [\"@home\"]\n      retention: {keep_last: 2}\n")
	governor := freeAddress(t)
	s.startDaemon(governor)
	rules, err := alerts.Files.ReadFile(alerts.FileName)
	must(t, err)
	s.write(alerts.FileName, strings.Replace(string(rules), "interval: 2m", "interval: 1s", 1))
	s.prometheus = testprogram.Serve(t, testprogram.Find(t, "prometheus", "prometheus"), "--storage.tsdb.path="+s.history(pool, governor, time.Now()), "--storage.tsdb.retention.time=1y",
		"--config.file="+s.example("prometheus.yml",
			"scrape_interval: 1m", "scrape_interval: 2s", "scrape_timeout: 10s", "scrape_timeout: 2s", "evaluation_interval: 1m", "evaluation_interval: 1s",
			"localhost:10134", governor))
	return s
}

func (s *stack) command(want int, args ...string) {
	s.t.Helper()
	if status, stdout, stderr := runCommandLine(append(args, "--api.socket="+s.socket)...); status != want {
		s.t.Fatalf("%s: exit status %d, want %d\n%s%s", strings.Join(args, " "), status, want, stdout, stderr)
	}
}

// live has a pool live through all that dashboards show: snapshots that are
// pruned, errors of both kinds, a scrub that gives way, and a fill.
func (s *stack) live(pool *btrfstest.Pool, disks []*btrfstest.FaultDisk) {
	t := s.t
	t.Helper()
	is := func(what, query string) {
		t.Helper()
		eventually(t, "Prometheus knows that "+what, func() bool { return s.query(url.QueryEscape(query), pool.UUID) })
	}
	is("there is the pool", `count_over_time(btrfs_device_errors_total{uuid="`+pool.UUID+`"}[1m]) > 2`)
	for range 3 {
		s.command(0, "snapshot", "create", "--pool="+pool.UUID)
	}
	must(t, pool.CorruptFile("film", 0, 0))
	must(t, pool.CorruptFile("lost", 0, btrfstest.AllMirrors))
	s.scrub(pool, 4)

	for _, d := range disks {
		d.Slow(0, 0)
	}
	stop := readWithoutPause(t, pool.Path("film"), filmSize)
	s.command(0, "scrub", "start", pool.UUID)
	is("the scrub gives way", `btrfs_scrub_state{state="yielding"} == 1`)
	is("reads of others have a latency", `btrfs_scrub_foreground_read_latency_seconds`)
	is("it gave way for a while", `btrfs_scrub_yield_seconds_total > 2`)
	stop()
	for _, d := range disks {
		d.Fast()
	}
	s.command(0, "scrub", "cancel", pool.UUID)
	is("the scrub is cancelled", `btrfs_scrub_state{state="cancelled"} == 1`)

	must(t, pool.Allocate("fill", gib))
	must(t, pool.Sync())
	is("an alert fires", `ALERTS{alertname="BtrfsScrubErrorsUncorrectable", alertstate="firing"}`)
	is("snapshots were pruned", `btrfs_snapshot_pruned_total > 0`)
	is("the forecast has seen the fill, and that no scrape failed meanwhile", fmt.Sprintf(`max_over_time(btrfs:pool_days_to_full[%.0fs]) < %d and on (job, instance) min_over_time(up[10s]) == 1`, 2*settled.Seconds(), 3*gib/fillingUp))
}

// settled is how long after a moment nothing more becomes known of it: a scrape
// that began before has ended, however it did.
const settled = 2 * time.Second

const filmSize = 200 * mib

// withoutData are the queries that rightly have no data of the pool of this test:
// it has no mixed block groups.
var withoutData = map[string]string{
	"What each device holds: D":          "mixed",
	"Lost with the worst two devices: D": "mixed",
}

// TestEveryPanelHasData asks a real Prometheus for everything that the dashboards
// show of a real pool to which everything happened that they show.
func TestEveryPanelHasData(t *testing.T) {
	rig, faults := newFaultDir(t)
	disks := []*btrfstest.FaultDisk{newFaultDisk(t, faults, 6*gib), newFaultDisk(t, faults, 3*gib)}
	pool := newPool(t, rig, btrfstest.PoolOptions{Disks: []*btrfstest.Disk{disks[0].Disk, disks[1].Disk}, Sizes: []int64{gib}, Data: "raid1", Metadata: "raid1", Label: "attic"})
	must(t, pool.NewSubvolume("@home"))
	must(t, pool.WriteFile("film", filmSize, newRandom()))
	must(t, pool.WriteFile("lost", mib, newRandom()))
	must(t, pool.Sync())
	nameless := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1"})

	start := time.Now()
	s := newDashboardStack(t, pool)
	s.live(pool, disks)
	g := &grafana{s, pool.UUID, start, time.Now().Add(-settled), time.Second}

	empty := make(map[string]bool)
	queries := 0
	for _, name := range dashboards.Names() {
		d := readDashboard(t, name)
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				queries++
				key := p.Title + ": " + target.RefID
				found, err := g.ask(target.Expr, target.Instant)
				if err != nil {
					t.Errorf("%s: %s: %v", name, key, err)
					continue
				}
				if len(found) == 0 {
					empty[key] = true
					if withoutData[key] == "" {
						t.Errorf("%s: %s has no data: %s", name, key, g.fill(target.Expr))
					}
				}
			}
		}
		for _, a := range d.Annotations.List {
			found, err := g.ask(a.Target.Expr, false)
			if err != nil || len(found) == 0 && !strings.Contains(a.Name, "info") {
				t.Errorf("%s: %s: %d series, %v", name, a.Name, len(found), err)
			}
		}
	}
	for key := range withoutData {
		if !empty[key] {
			t.Errorf("%s is said to have no data, and has some", key)
		}
	}
	t.Logf("%d queries, of which %d have no data: %v", queries, len(empty), slices.Collect(maps.Keys(empty)))
	g.checkVariables(t, pool, nameless)
	g.checkForecast(t)
}

// checkVariables looks at what one can choose.
func (g *grafana) checkVariables(t *testing.T, pool, nameless *btrfstest.Pool) {
	t.Helper()
	for _, name := range dashboards.Names() {
		for _, v := range readDashboard(t, name).Templating.List {
			if v.Type != "query" {
				continue // data sources
			}
			if m := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`).FindStringSubmatch(v.Query); m != nil {
				found, err := g.ask(m[1], true)
				if err != nil || len(found) == 0 || found[0].Metric[m[2]] == "" {
					t.Errorf("%s: variable %s: %v, %v", name, v.Name, found, err)
				}
				continue
			}
			shown := func(asked *grafana) map[string]string {
				found, err := asked.ask(strings.TrimSuffix(strings.TrimPrefix(v.Query, "query_result("), ")"), true)
				must(t, err)
				return shownBy(t, regexp.MustCompile(strings.Trim(v.Regex, "/")), found)
			}
			host := g.stack.serve.addrs[0]
			now, ahead := shown(g), shown(g.ahead())
			if now[pool.UUID] != "attic on "+host || now[nameless.UUID] != nameless.UUID[:8]+" on "+host {
				t.Errorf("%s: the pools are shown as %q", name, now)
			}
			// It can be chosen in a range that ends in the future, too.
			if ahead[pool.UUID] != now[pool.UUID] {
				t.Errorf("%s: looking ahead the pools are shown as %q", name, ahead)
			}
		}
	}
}

// shownBy is what is shown of the values of a variable, by the value: a regular
// expression takes both of what Grafana writes of a series.
func shownBy(t *testing.T, re *regexp.Regexp, found []series) map[string]string {
	t.Helper()
	shown := make(map[string]string)
	for _, one := range found {
		var labels []string
		for _, label := range slices.Sorted(maps.Keys(one.Metric)) {
			labels = append(labels, label+`="`+one.Metric[label]+`"`)
		}
		text := "{" + strings.Join(labels, ",") + "} 1 1700000000000"
		m := re.FindStringSubmatch(text)
		if m == nil {
			t.Errorf("%s does not match %s", re, text)
			continue
		}
		shown[m[re.SubexpIndex("value")]] = m[re.SubexpIndex("text")]
	}
	return shown
}

// ahead asks for the days before and those to come.
func (g *grafana) ahead() *grafana {
	return &grafana{g.stack, g.pool, g.end.Add(-30 * 24 * time.Hour), g.end.Add(30 * 24 * time.Hour), time.Hour}
}

// checkForecast looks ahead: the line starts at what is free, and is at 0 from the
// day on that the number says.
func (g *grafana) checkForecast(t *testing.T) {
	t.Helper()
	one := func(found []series, err error) series {
		t.Helper()
		must(t, err)
		if len(found) != 1 {
			t.Fatalf("%d series", len(found))
		}
		return found[0]
	}
	days := number(t, one(g.ask(`btrfs:pool_days_to_full{uuid="$pool"}`, true)).Value)
	free := number(t, one(g.ask(`btrfs_pool_free_expected_bytes{uuid="$pool"}`, true)).Value)
	now := g.end
	var line string
	for _, p := range readDashboard(t, "pool.json").Panels {
		for _, target := range p.Targets {
			if target.LegendFormat == "forecast" {
				line = target.Expr
			}
		}
	}
	var atNow, full float64
	for _, sample := range one(g.ahead().ask(line, false)).Values {
		at, v := sample[0].(float64), number(t, sample)
		if math.Abs(at-float64(now.Unix())) <= 1800 {
			atNow = v
		}
		if v == 0 && full == 0 {
			full = (at - float64(now.Unix())) / 86400
		}
	}
	t.Logf("%.2f days to full, %.0f bytes free; the line has %.0f now and reaches 0 in %.2f days", days, free, atNow, full)
	if math.Abs(full-days) > 0.3 || math.Abs(atNow-free) > 0.02*free {
		t.Errorf("the forecast says %.2f days and the line %.2f; %.0f bytes are free and the line has %.0f", days, full, free, atNow)
	}
}
