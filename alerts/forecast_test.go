package alerts

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
	"github.com/btrfs-governor/btrfs-governor/internal/testprogram"
)

const historyDays = 60

// history is 60 days of a pool, an hour at a time.
type history struct {
	name string
	// free and df are bytes at the begin of each hour: what the simulation of the
	// allocator says, and what df does. They end with the pool being full.
	free, df []float64
	// full is the day on which nothing could be written any more; +Inf: it never
	// was.
	full float64
}

// simulatedPool is a raid1 pool of drives of different sizes, of which only the
// sums are known.
type simulatedPool struct {
	sizes, allocated               []uint64
	dataTotal, dataUsed, metaTotal uint64
}

// chunk takes a chunk from the two devices that have most left, as the kernel
// does.
func (p *simulatedPool) chunk() bool {
	order := p.byFree()
	a, b := order[0], order[1]
	size := min(gib, p.free(a), p.free(b)) &^ (64<<10 - 1)
	if size < 16<<20 {
		return false
	}
	p.allocated[a] += size
	p.allocated[b] += size
	p.dataTotal += size
	return true
}

func (p *simulatedPool) free(i int) uint64 { return p.sizes[i] - p.allocated[i] }

func (p *simulatedPool) byFree() []int {
	order := make([]int, len(p.sizes))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return int(p.free(b)>>10) - int(p.free(a)>>10) })
	return order
}

// write changes the file data by so many GiB. It is false if there is no room.
func (p *simulatedPool) write(change float64) bool {
	used := float64(p.dataUsed) + change*gib
	p.dataUsed = uint64(max(used, 0))
	for p.dataUsed > p.dataTotal {
		if !p.chunk() {
			return false
		}
	}
	return true
}

// balance lays the data out anew.
func (p *simulatedPool) balance() {
	for i := range p.allocated {
		p.allocated[i] = 1 << 20
	}
	p.allocated[0] += p.metaTotal
	p.allocated[1] += p.metaTotal
	p.dataTotal = 0
	p.write(0)
}

func (p *simulatedPool) expected(t *testing.T) float64 {
	t.Helper()
	pool := &btrfs.Pool{NodeSize: btrfs.Some[uint64](16 << 10), SectorSize: btrfs.Some[uint64](4 << 10)}
	for i := range p.sizes {
		pool.Devices = append(pool.Devices, btrfs.Device{
			ID: uint64(i + 1), Size: btrfs.Some(p.sizes[i]), Used: btrfs.Some(p.allocated[i]), Missing: btrfs.Some(false), Writeable: btrfs.Some(true),
		})
	}
	space := func(kind btrfs.BlockGroupType, total, used uint64) {
		pool.Spaces = append(pool.Spaces, btrfs.Space{Type: kind, Total: total, Used: used, Profiles: []btrfs.ProfileSpace{{Profile: btrfs.RAID1, Total: total, Used: used}}})
	}
	space(btrfs.Data, p.dataTotal, p.dataUsed)
	space(btrfs.Metadata, p.metaTotal, p.dataUsed/1000+(16<<20))
	space(btrfs.System, 8<<20, 16<<10)
	report, err := capacity.Calculate(pool, capacity.Estimate(pool.Devices))
	if err != nil {
		t.Fatal(err)
	}
	return float64(report.FreeExpected)
}

// statfs is what df says of a raid1 pool: btrfs_calc_avail_data_space in
// fs/btrfs/super.c.
func (p *simulatedPool) statfs() float64 {
	left := make([]uint64, len(p.sizes))
	for i := range left {
		left[i] = p.free(i)
	}
	slices.SortFunc(left, func(a, b uint64) int { return int(b>>10) - int(a>>10) })
	raw := uint64(0)
	for n := len(left); n >= 2; n-- {
		least := left[n-1]
		raw += 2 * least
		left[n-2] -= least
		left[n-1] = 0
	}
	return float64(p.dataTotal-p.dataUsed) + float64(raw)/2
}

// histories returns what happened on pools that fill up and on pools that do not.
// write returns the GiB written in an hour.
func histories(t *testing.T) []history {
	t.Helper()
	random := rand.New(rand.NewPCG(7, 7))
	var all []history
	add := func(name string, free float64, write func(hour int) float64, events map[int]func(*simulatedPool)) {
		p := &simulatedPool{sizes: []uint64{800 * gib, 400 * gib, 300 * gib, 200 * gib}, allocated: make([]uint64, 4), metaTotal: 2 * gib}
		p.balance()
		for p.write(5) && p.expected(t) > free*gib {
		}
		h := history{name: name, full: math.Inf(1)}
		free = 0
		for hour := range historyDays * 24 {
			change := events[hour]
			if change != nil {
				change(p)
			}
			// In between what is written is what is missing.
			if change != nil || hour%6 == 0 || free < 30*gib {
				free = p.expected(t)
			}
			h.free, h.df = append(h.free, free), append(h.df, p.statfs())
			written := write(hour)
			free -= written * gib
			if h.free[hour] < written*gib || !p.write(written) {
				h.full = float64(hour+1) / 24
				break
			}
		}
		all = append(all, h)
	}
	steady := func(perDay float64) func(int) float64 { return func(int) float64 { return perDay / 24 } }
	once := func(hour, length int, perHour, perDay float64) func(int) float64 {
		return func(h int) float64 {
			if h >= hour && h < hour+length {
				return perHour
			}
			return perDay / 24
		}
	}
	add("steady", 550, steady(10), nil)
	add("weekday rhythm", 380, func(h int) float64 {
		if h/24%7 < 5 && h%24 >= 8 && h%24 < 18 {
			return 1
		}
		return 0
	}, nil)
	add("nightly backup with pruning", 300, func(h int) float64 {
		switch h % 24 {
		case 2:
			return 40
		case 5:
			return -34.5
		}
		return 0
	}, nil)
	add("staircase", 500, func(h int) float64 {
		if h%(5*24) == 12 {
			return 45
		}
		return 0
	}, nil)
	add("burst of a night", 600, once(30*24, 6, 60, 1), nil)
	add("burst, and it fills up", 600, once(30*24, 6, 25, 8), nil)
	add("deletion", 450, once(28*24, 1, -100, 10), nil)
	add("balance in the middle", 530, steady(10), map[int]func(*simulatedPool){30 * 24: (*simulatedPool).balance})
	add("device added", 350, steady(10), map[int]func(*simulatedPool){30 * 24: func(p *simulatedPool) {
		p.sizes, p.allocated = append(p.sizes, 400*gib), append(p.allocated, 1<<20)
	}})
	add("flat", 200, steady(0), nil)
	add("noisy", 480, func(int) float64 { return 9./24 + random.NormFloat64() }, nil)
	last := 0.0
	add("noisy and flat", 300, func(int) float64 {
		now := random.NormFloat64() * 5
		change := now - last
		last = now
		return change
	}, nil)
	add("accelerating", 600, func(h int) float64 { return (4 + 14*float64(h)/(55*24)) / 24 }, nil)
	add("near full, and it fills up", 25, steady(0.45), nil)
	add("near full, and it does not", 12, func(int) float64 { return random.NormFloat64() * 0.01 }, nil)
	add("weekly rotation", 300, func(h int) float64 {
		if h%(7*24) == 7*24-1 {
			return -70
		}
		return 70. / (7*24 - 1)
	}, nil)
	return all
}

// forecast is a way to tell how many days a pool lasts.
type forecast struct{ name, query string }

func forecasts(t *testing.T) []forecast {
	t.Helper()
	all := []forecast{{"btrfs:pool_days_to_full", ""}}
	for _, r := range readRules(t) {
		if r.Record == all[0].name {
			all[0].query = r.Expr
		}
	}
	// With predict_linear the days are those after which the line is at 0.
	for _, window := range []string{"1h", "1d", "7d"} {
		line := func(seconds int) string {
			return fmt.Sprintf("predict_linear(btrfs_pool_statfs_free_bytes[%s], %d)", window, seconds)
		}
		all = append(all, forecast{"df, predict_linear[" + window + "]", fmt.Sprintf("%s / clamp_min(%s - %s, 1)", line(0), line(0), line(86400))})
	}
	return all
}

// TestForecastQuality asks a real Prometheus, which has 60 days of each history,
// on which day each pool will be full.
func TestForecastQuality(t *testing.T) {
	all := histories(t)
	begin := time.Now().Add(-(historyDays + 2) * day).Truncate(day)
	p := startPrometheus(t, openMetrics(all, begin))
	at := func(d float64) time.Time {
		return begin.Add(time.Duration(d * float64(day))).Truncate(10 * time.Minute)
	}

	before := []float64{30, 14, 7, 3, 1}
	var table strings.Builder
	fmt.Fprintf(&table, "%-28s %-26s %6s", "history", "forecast", "full")
	for _, d := range before {
		fmt.Fprintf(&table, " %6.0f", d)
	}
	table.WriteString("  days before\n")
	medians := make(map[string]float64)
	for i, f := range forecasts(t) {
		var errors []float64
		for _, h := range all {
			query := strings.NewReplacer("btrfs_pool_free_expected_bytes", selector("btrfs_pool_free_expected_bytes", h.name), "btrfs_pool_statfs_free_bytes", selector("btrfs_pool_statfs_free_bytes", h.name)).Replace(f.query)
			if math.IsInf(h.full, 1) {
				// Never a page where nothing fills up.
				least, day := p.least(t, query, at(1), at(historyDays-0.1), "6h")
				fmt.Fprintf(&table, "%-28s %-26s  never  at least %.1f, on day %.1f\n", h.name, f.name, least, day)
				if i == 0 && least < Default.DaysCritical {
					t.Errorf("%s: it pages on day %.1f, with %.1f days left", h.name, day, least)
				}
				continue
			}
			fmt.Fprintf(&table, "%-28s %-26s %6.1f", h.name, f.name, h.full)
			for _, d := range before {
				if h.full-d < 1 {
					fmt.Fprintf(&table, " %6s", "-")
					continue
				}
				got, ok := p.value(t, query, at(h.full-d))
				if !ok {
					t.Errorf("%s: no value %g days before", h.name, d)
					continue
				}
				got = min(got, Default.DaysCap)
				fmt.Fprintf(&table, " %6.1f", min(got, 999))
				errors = append(errors, math.Abs(got-d)/d)
			}
			table.WriteString("\n")
			if i > 0 {
				continue
			}
			// It warns at least three days ahead, for as long as the alert waits.
			if least, _ := p.least(t, query, at(h.full-10), at(h.full-3-2./24), "2h"); least >= Default.DaysWarning {
				t.Errorf("%s: no warning three days before it is full, %.1f days are the least", h.name, least)
			}
		}
		slices.Sort(errors)
		medians[f.name] = errors[len(errors)/2]
		fmt.Fprintf(&table, "%s: median error %.1f %% of %d\n", f.name, 100*medians[f.name], len(errors))
	}
	t.Log("\n" + table.String())
	for name, median := range medians {
		if ours := medians["btrfs:pool_days_to_full"]; median < ours {
			t.Errorf("the median error of %s is %.3f, ours %.3f", name, median, ours)
		}
	}
}

func selector(metric, history string) string { return fmt.Sprintf("%s{uuid=%q}", metric, history) }

// prometheus is a process.
type prometheus struct{ address string }

// startPrometheus starts one that has what is in a text of OpenMetrics.
func startPrometheus(t *testing.T, text []byte) *prometheus {
	t.Helper()
	binary := testprogram.Find(t, "prometheus", "prometheus")
	dir := t.TempDir()
	input := filepath.Join(dir, "input.om")
	if err := os.WriteFile(input, text, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "tsdb", "create-blocks-from", "--max-block-duration=1488h", "openmetrics", input, filepath.Join(dir, "data"))
	config := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(config, []byte("global: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &prometheus{testprogram.Serve(t, binary, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--storage.tsdb.retention.time=1y").Address}
}

// openMetrics has a sample of each history each ten minutes.
func openMetrics(all []history, begin time.Time) []byte {
	var b []byte
	for _, metric := range []struct {
		name   string
		values func(*history) []float64
	}{
		{"btrfs_pool_free_expected_bytes", func(h *history) []float64 { return h.free }},
		{"btrfs_pool_statfs_free_bytes", func(h *history) []float64 { return h.df }},
	} {
		b = fmt.Appendf(b, "# TYPE %s gauge\n", metric.name)
		for i := range all {
			values := metric.values(&all[i])
			for hour, v := range values {
				next := values[min(hour+1, len(values)-1)]
				for part := range 6 {
					at := begin.Add(time.Duration(hour)*time.Hour + time.Duration(part)*10*time.Minute)
					b = fmt.Appendf(b, "%s %.0f %d\n", selector(metric.name, all[i].name), v+(next-v)*float64(part)/6, at.Unix())
				}
			}
		}
	}
	return append(b, "# EOF\n"...)
}

func (p *prometheus) ask(t *testing.T, path string, form url.Values, result any) {
	t.Helper()
	resp, err := http.PostForm("http://"+p.address+path, form)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s %v", form.Get("query"), resp.Status, body, err)
	}
	answer := struct {
		Data struct {
			Result any `json:"result"`
		} `json:"data"`
	}{}
	answer.Data.Result = result
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatal(err)
	}
}

// sample is a time in seconds and a value.
type sample [2]any

func (s sample) value(t *testing.T) float64 {
	t.Helper()
	text, _ := s[1].(string)
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// value returns the value of a query at a time; ok is false where it has none.
func (p *prometheus) value(t *testing.T, query string, at time.Time) (v float64, ok bool) {
	t.Helper()
	var result []struct {
		Value sample `json:"value"`
	}
	p.ask(t, "/api/v1/query", url.Values{"query": {query}, "time": {strconv.FormatInt(at.Unix(), 10)}}, &result)
	if len(result) != 1 {
		return 0, false
	}
	return result[0].Value.value(t), true
}

// least returns the least value, and on which day of the history it was.
func (p *prometheus) least(t *testing.T, query string, from, to time.Time, step string) (least, atDay float64) {
	t.Helper()
	var result []struct {
		Values []sample `json:"values"`
	}
	p.ask(t, "/api/v1/query_range", url.Values{
		"query": {query}, "start": {strconv.FormatInt(from.Unix(), 10)}, "end": {strconv.FormatInt(to.Unix(), 10)}, "step": {step},
	}, &result)
	least = math.Inf(1)
	for _, series := range result {
		for _, s := range series.Values {
			if v := s.value(t); v < least {
				seconds, _ := s[0].(float64)
				least, atDay = v, (seconds-float64(from.Unix()))/86400+1
			}
		}
	}
	return min(least, Default.DaysCap), atDay
}
