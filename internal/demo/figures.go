//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

// dfAvailable returns what df shows as available, in bytes.
func dfAvailable(ctx context.Context, mountpoint string) (float64, error) {
	text, err := runProgram(ctx, "df", "--block-size=1", "--output=avail", mountpoint)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(lastLine(text), 64)
}

// usageFree returns what `btrfs filesystem usage` estimates to be free.
func usageFree(ctx context.Context, mountpoint string) (float64, error) {
	text, err := runProgram(ctx, "btrfs", "filesystem", "usage", "-b", mountpoint)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "Free (estimated):"); ok {
			return strconv.ParseFloat(strings.Fields(value)[0], 64)
		}
	}
	return 0, fmt.Errorf("btrfs filesystem usage %s shows no estimate of free space", mountpoint)
}

// metrics are the series of an exposition, as they stand in it.
type metrics map[string]float64

func parseMetrics(exposition string) metrics {
	m := make(metrics)
	for line := range strings.Lines(exposition) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if v, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
			m[line[:i]] = v
		}
	}
	return m
}

// value returns the value of the series that has the labels, given as name
// and value by turns; not a number if there is none.
func (m metrics) value(name string, labels ...string) float64 {
	for series, v := range m {
		if hasLabels(series, name, labels) {
			return v
		}
	}
	return math.NaN()
}

func hasLabels(series, name string, labels []string) bool {
	if !strings.HasPrefix(series, name+"{") {
		return false
	}
	for i := 0; i < len(labels); i += 2 {
		if label(series, labels[i]) != labels[i+1] {
			return false
		}
	}
	return true
}

// label returns the value of a label of a series.
func label(series, name string) string {
	for _, before := range []string{"{", ","} {
		if _, after, ok := strings.Cut(series, before+name+`="`); ok {
			value, _, _ := strings.Cut(after, `"`)
			return value
		}
	}
	return ""
}

// printRecorded shows what df and btrfs-governor say of the recorded pools.
func printRecorded(ctx context.Context, s *process, out io.Writer) error {
	m, err := s.scrape(ctx)
	if err != nil {
		return err
	}
	rows := [][]string{{"pool", "df", "btrfs-governor", ""}}
	for series := range m {
		if !strings.HasPrefix(series, "btrfs_pool_info{") {
			continue
		}
		uuid := label(series, "uuid")
		name := label(series, "label")
		if name == "" {
			name = uuid
		}
		free, df := m.value("btrfs_pool_free_bytes", "uuid", uuid), m.value("btrfs_pool_statfs_free_bytes", "uuid", uuid)
		profile := fmt.Sprintf("%s on %.0f devices", label(series, "data_profile"), m.value("btrfs_pool_devices", "uuid", uuid))
		rows = append(rows, []string{name, bytesText(df), bytesText(free), profile})
	}
	sort.Slice(rows[1:], func(i, j int) bool { return rows[i+1][0] < rows[j+1][0] })
	fmt.Fprintf(out, "How much more can be written to each?\n\n")
	printTable(out, rows)
	fmt.Fprintln(out)
	return nil
}

func bytesText(n float64) string {
	switch {
	case math.IsNaN(n):
		return "unknown"
	case n >= tib:
		return fmt.Sprintf("%.2f TiB", n/tib)
	case n >= gib:
		return fmt.Sprintf("%.2f GiB", n/gib)
	default:
		return fmt.Sprintf("%.1f MiB", n/mib)
	}
}

func difference(said, truth float64) string {
	switch d := said - truth; {
	case math.Abs(d) < mib:
		return ""
	case d > 0:
		return bytesText(d) + " too much"
	default:
		return bytesText(-d) + " too little"
	}
}

// printTable prints rows with the middle columns aligned to the right.
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
			if i == 0 || i == len(row)-1 {
				line.WriteString("  " + cell + pad)
			} else {
				line.WriteString("  " + pad + cell)
			}
		}
		fmt.Fprintln(out, strings.TrimRight(line.String(), " "))
	}
}
