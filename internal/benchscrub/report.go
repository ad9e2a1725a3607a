//go:build linux

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// The limits. A p99 is compared with that of the same foreground without a
// scrub in the same repeat, a time with that of btrfs scrub start.
const (
	yieldedLimit   = 1.25
	wholeLimit     = 2.0
	quietRateLimit = 0.90
	quietTimeLimit = 1.05
)

// results are everything that was measured.
type results struct {
	Options options   `json:"options"`
	Began   time.Time `json:"began"`
	// FullRate is what a scrub that nothing holds back reads of each disk.
	FullRate     float64       `json:"full_rate_bytes_per_second"`
	Quiet        []quietRun    `json:"quiet"`
	Measurements []measurement `json:"measurements"`
	Verdicts     []verdict     `json:"verdicts"`
}

// verdict is a figure with a limit. The median of the repeats counts.
type verdict struct {
	What     string    `json:"what"`
	Values   []float64 `json:"values"` // of each repeat
	Limit    float64   `json:"limit"`
	AtLeast  bool      `json:"at_least,omitempty"` // the limit is the least and not the most
	Measured bool      `json:"measured"`
	Pass     bool      `json:"pass"`
}

func (v *verdict) within(value float64) bool {
	if v.AtLeast {
		return value >= v.Limit
	}
	return value <= v.Limit
}

func (r *results) find(repeat int, foreground, scrub string) *measurement {
	for i := range r.Measurements {
		if m := &r.Measurements[i]; m.Repeat == repeat && m.Foreground == foreground && m.Scrub == scrub {
			return m
		}
	}
	return nil
}

func (r *results) findQuiet(repeat int, scrub string) *quietRun {
	for i := range r.Quiet {
		if q := &r.Quiet[i]; q.Repeat == repeat && q.Scrub == scrub {
			return q
		}
	}
	return nil
}

// judge compares what was measured with the limits.
func (r *results) judge() {
	add := func(what string, limit float64, atLeast bool, value func(repeat int) (float64, bool)) {
		v := verdict{What: what, Limit: limit, AtLeast: atLeast}
		for repeat := range r.Options.Repeat {
			if f, ok := value(repeat); ok {
				v.Values = append(v.Values, f)
			}
		}
		if v.Measured = len(v.Values) > 0; v.Measured {
			v.Pass = v.within(median(v.Values))
		}
		r.Verdicts = append(r.Verdicts, v)
	}
	for _, f := range foregrounds() {
		if !chosen(r.Options.Only, f.Name) {
			continue
		}
		add(f.Name+": p99 once it has yielded / without a scrub", yieldedLimit, false, func(repeat int) (float64, bool) {
			none, ours := r.find(repeat, f.Name, noScrub), r.find(repeat, f.Name, oursScrub)
			if none == nil || ours == nil {
				return 0, false
			}
			return float64(ours.Yielded.P99 / none.All.P99), true
		})
		add(f.Name+": p99 of the whole run / without a scrub", wholeLimit, false, func(repeat int) (float64, bool) {
			none, ours := r.find(repeat, f.Name, noScrub), r.find(repeat, f.Name, oursScrub)
			if none == nil || ours == nil {
				return 0, false
			}
			return float64(ours.All.P99 / none.All.P99), true
		})
	}
	if !chosen(r.Options.Only, partIdle) {
		return
	}
	quiet := func(scrub string, ratio func(ours, progs *quietRun) float64) func(int) (float64, bool) {
		return func(repeat int) (float64, bool) {
			progs, ours := r.findQuiet(repeat, progsScrub), r.findQuiet(repeat, scrub)
			if progs == nil || ours == nil {
				return 0, false
			}
			return ratio(ours, progs), true
		}
	}
	rate := func(ours, progs *quietRun) float64 { return ours.Rate / progs.Rate }
	took := func(ours, progs *quietRun) float64 { return float64(ours.Took / progs.Took) }
	add("quiet: throughput of auto / btrfs scrub start", quietRateLimit, true, quiet(oursScrub, rate))
	add("quiet: time of auto / btrfs scrub start", quietTimeLimit, false, quiet(oursScrub, took))
	add("quiet: time of full / btrfs scrub start", quietTimeLimit, false, quiet(oursFull, took))
}

// passed reports whether all figures were measured and are within their limits.
func (r *results) passed() bool {
	return !slices.ContainsFunc(r.Verdicts, func(v verdict) bool { return !v.Pass })
}

// scrubTitle is how the tables call a scrub.
var scrubTitle = map[string]string{
	noScrub:      "no scrub",
	progsScrub:   "btrfs scrub start",
	limitedScrub: fmt.Sprintf("  limited to %.0f %%", limitShare*100),
	oursScrub:    "ours, auto",
	oursFull:     "ours, full",
}

func (r *results) print(out io.Writer) {
	fmt.Fprintf(out, "\nA RAID1 of two emulated hard disks (8 ms seek, 150 MB/s), %d MiB of data.\n", r.Options.DataMiB)
	if r.Options.Repeat > 1 {
		fmt.Fprintf(out, "Cells are the median of %d repeats and (least-greatest).\n", r.Options.Repeat)
	}
	fmt.Fprintf(out, "Latencies count from when a request should have begun; service is from when it did.\n\n")
	for _, f := range foregrounds() {
		r.printForeground(out, f)
	}
	r.printQuiet(out)
	r.printVerdicts(out)
}

func (r *results) printForeground(out io.Writer, f foreground) {
	rows := [][]string{{"", "p50 ms", "p99 ms", "p99 / none", "service p99 ms", "got MB/s", "scrub MB/s", "requests"}}
	for _, scrub := range scrubNames() {
		var all, yielded, ratios, yieldedRatios []float64 // p99
		var p50, service, got, rate, after, yieldedP50, yieldedService []float64
		streams := make(map[string][3][]float64)
		requests := 0
		for repeat := range r.Options.Repeat {
			m, none := r.find(repeat, f.Name, scrub), r.find(repeat, f.Name, noScrub)
			if m == nil {
				continue
			}
			all, p50, service = append(all, m.All.P99.ms()), append(p50, m.All.P50.ms()), append(service, m.All.ServiceP99.ms())
			got, rate = append(got, m.ForegroundRate/1e6), append(rate, m.ScrubRate/1e6)
			requests += m.All.Requests
			if none != nil {
				ratios = append(ratios, float64(m.All.P99/none.All.P99))
			}
			if m.Yielded != nil {
				yielded, after = append(yielded, m.Yielded.P99.ms()), append(after, float64(m.YieldedAfter))
				yieldedP50, yieldedService = append(yieldedP50, m.Yielded.P50.ms()), append(yieldedService, m.Yielded.ServiceP99.ms())
				if none != nil {
					yieldedRatios = append(yieldedRatios, float64(m.Yielded.P99/none.All.P99))
				}
			}
			for name, l := range m.Streams {
				s := streams[name]
				streams[name] = [3][]float64{append(s[0], l.P50.ms()), append(s[1], l.P99.ms()), append(s[2], l.ServiceP99.ms())}
			}
		}
		if len(all) == 0 {
			if scrub != oursFull {
				rows = append(rows, []string{scrubTitle[scrub], "not measured"})
			}
			continue
		}
		scrubRate := spread(rate, "%.1f")
		if scrub == noScrub {
			scrubRate = ""
		}
		rows = append(rows, []string{
			scrubTitle[scrub], spread(p50, "%.1f"), spread(all, "%.1f"), spread(ratios, "%.2f"), spread(service, "%.1f"),
			spread(got, "%.2f"), scrubRate, fmt.Sprint(requests),
		})
		for _, s := range f.Streams {
			if v, has := streams[s.Name]; has {
				rows = append(rows, []string{"    " + s.Name, spread(v[0], "%.1f"), spread(v[1], "%.1f"), "", spread(v[2], "%.1f")})
			}
		}
		if len(yielded) > 0 {
			rows = append(rows, []string{
				"  once it has yielded", spread(yieldedP50, "%.1f"), spread(yielded, "%.1f"), spread(yieldedRatios, "%.2f"), spread(yieldedService, "%.1f"),
				"", "", "from " + spread(after, "%.2f") + " s on",
			})
		}
	}
	if len(rows) > 1 && slices.ContainsFunc(r.Measurements, func(m measurement) bool { return m.Foreground == f.Name }) {
		fmt.Fprintf(out, "%s: %s\n", f.Name, f.What)
		printTable(out, rows)
	}
}

func (r *results) printQuiet(out io.Writer) {
	if len(r.Quiet) == 0 {
		return
	}
	fmt.Fprintln(out, "In the quiet: a whole scrub, and nobody uses the pool")
	rows := [][]string{{"", "s", "MB/s of each disk"}}
	for _, scrub := range []string{progsScrub, oursScrub, oursFull} {
		var took, rate []float64
		for _, q := range r.Quiet {
			if q.Scrub == scrub {
				took, rate = append(took, float64(q.Took)), append(rate, q.Rate/1e6)
			}
		}
		if len(took) == 0 {
			rows = append(rows, []string{scrubTitle[scrub], "not measured"})
			continue
		}
		rows = append(rows, []string{scrubTitle[scrub], spread(took, "%.2f"), spread(rate, "%.1f")})
	}
	printTable(out, rows)
}

func (r *results) printVerdicts(out io.Writer) {
	fmt.Fprintln(out, "Limits")
	rows := [][]string{{"", "measured", "limit", "", "repeats within"}}
	for _, v := range r.Verdicts {
		limit := fmt.Sprintf("<= %.2f", v.Limit)
		if v.AtLeast {
			limit = fmt.Sprintf(">= %.2f", v.Limit)
		}
		if !v.Measured {
			rows = append(rows, []string{v.What, "not measured", limit})
			continue
		}
		mark, within := "FAIL", 0
		if v.Pass {
			mark = "pass"
		}
		for _, value := range v.Values {
			if v.within(value) {
				within++
			}
		}
		rows = append(rows, []string{v.What, spread(v.Values, "%.3f"), limit, mark, fmt.Sprintf("%d of %d", within, len(v.Values))})
	}
	printTable(out, rows)
}

func (s seconds) ms() float64 { return float64(s) * 1e3 }

func (s seconds) String() string { return fmt.Sprintf("%.1f ms", s.ms()) }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

// spread returns the median, and the least and the greatest where there are
// several values.
func spread(values []float64, format string) string {
	switch len(values) {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf(format, values[0])
	}
	return fmt.Sprintf(format+" ("+format+"-"+format+")", median(values), slices.Min(values), slices.Max(values))
}

// printTable prints rows with the first column aligned to the left and the
// others to the right.
func printTable(out io.Writer, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				line.WriteString("  " + cell + pad)
			} else {
				line.WriteString("  " + pad + cell)
			}
		}
		fmt.Fprintln(out, strings.TrimRight(line.String(), " "))
	}
	fmt.Fprintln(out)
}
