package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// capacityAnswer is what the API tells of the capacity of a pool, as far as it is
// shown.
type capacityAnswer struct {
	Now           capacityFigures   `json:"now"`
	Devices       []deviceSpace     `json:"devices"`
	WhatIf        *capacityFigures  `json:"what_if"`
	WhatIfDevices []deviceSpace     `json:"what_if_devices"`
	Forecast      *capacityForecast `json:"forecast"`
}

// capacityFigures are bytes.
type capacityFigures struct {
	FreeExact         bool   `json:"free_exact"`
	DataProfile       string `json:"data_profile"`
	Free              uint64 `json:"free_bytes"`
	FreeExpected      uint64 `json:"free_expected_bytes"`
	FreeAfterBalance  uint64 `json:"free_after_balance_bytes"`
	Usable            uint64 `json:"usable_bytes"`
	MetadataFree      uint64 `json:"metadata_free_bytes"`
	StrandedMismatch  uint64 `json:"stranded_mismatch_bytes"`
	StrandedImbalance uint64 `json:"stranded_imbalance_bytes"`
}

// balanceGain is what more could be written after a full balance.
func (f *capacityFigures) balanceGain() uint64 {
	return f.FreeAfterBalance - min(f.FreeAfterBalance, f.Free)
}

// deviceSpace is what a device is used for, in its bytes.
type deviceSpace struct {
	ID        uint64            `json:"devid"`
	Path      string            `json:"path"`
	Missing   bool              `json:"missing"`
	Size      uint64            `json:"size_bytes"`
	Allocated uint64            `json:"allocated_bytes"`
	Data      btrfs.Opt[uint64] `json:"data_bytes"`
	Metadata  btrfs.Opt[uint64] `json:"metadata_bytes"`
	Free      uint64            `json:"free_bytes"`
	Stranded  uint64            `json:"stranded_bytes"`
	Unusable  uint64            `json:"unusable_bytes"`
}

type capacityForecast struct {
	Time               time.Time          `json:"time"`
	DaysToFull         btrfs.Opt[float64] `json:"days_to_full"`
	MetadataDaysToFull btrfs.Opt[float64] `json:"metadata_days_to_full"`
	BytesPerDay        btrfs.Opt[float64] `json:"bytes_per_day"`
}

// barMarks are the characters of which bars are drawn.
type barMarks struct{ data, metadata, free, stranded, unusable string }

// Marks for any output, and for a terminal that shows UTF-8.
var (
	plainMarks = barMarks{data: "#", metadata: "m", free: ".", stranded: "x", unusable: "-"}
	blockMarks = barMarks{data: "█", metadata: "▓", free: "░", stranded: "×", unusable: "-"}
)

// isUTF8 tells whether the locale is one of UTF-8 (locale(7)).
func isUTF8(getenv func(string) string) bool {
	locale := strings.ToUpper(cmp.Or(getenv("LC_ALL"), getenv("LC_CTYPE"), getenv("LANG")))
	return strings.Contains(locale, "UTF-8") || strings.Contains(locale, "UTF8")
}

// capacityView shows the capacity of a pool.
type capacityView struct {
	pool *capacityPool
	*capacityAnswer
	whatIf string
	now    time.Time
	width  int // of the terminal, in characters; 0 where it is none
	marks  barMarks
}

func (v *capacityView) render() string {
	head := "Pool " + strings.TrimSpace(v.pool.UUID.String()+" "+printable(v.pool.Label))
	second := "Data in " + v.Now.DataProfile
	if v.pool.Mountpoint != "" {
		second = "Mounted at " + printable(v.pool.Mountpoint) + ", data in " + v.Now.DataProfile
	}
	lines := []string{head, second}
	if v.pool.Error != "" {
		lines = append(lines, "Not all is known: "+printable(v.pool.Error))
	}
	lines = append(lines, "")
	lines = append(lines, v.figureLines()...)
	lines = append(lines, v.changeLines()...)
	lines = append(lines, "")
	lines = append(lines, forecastLines(v.Forecast, v.now)...)
	lines = append(lines, "")
	lines = append(lines, v.deviceLines(v.Devices, "")...)
	if v.WhatIf != nil {
		lines = append(lines, "", "The devices after "+printable(v.whatIf)+":", "")
		lines = append(lines, v.deviceLines(v.WhatIfDevices, "(new)")...)
	}
	return join(lines)
}

// figureLines is the table of the figures, with a column for what would be. What
// they mean is left out where there is no room for it.
func (v *capacityView) figureLines() []string {
	data := "exact while metadata needs no new chunk"
	if !v.Now.FreeExact {
		data = "estimated: it takes root to know where the chunks lie"
	}
	rows := []struct {
		what   string
		figure func(*capacityFigures) uint64
		note   string
	}{
		{"can still be written", func(f *capacityFigures) uint64 { return f.FreeExpected }, "with metadata that grows along, as expected"},
		{"by data alone", func(f *capacityFigures) uint64 { return f.Free }, data},
		{"more after a balance", (*capacityFigures).balanceGain, ""},
		{"holds at most", func(f *capacityFigures) uint64 { return f.Usable }, "of data, with the metadata there is"},
		{"room for metadata", func(f *capacityFigures) uint64 { return f.MetadataFree }, "if it got all that is unallocated"},
		{"stranded by mismatch", func(f *capacityFigures) uint64 { return f.StrandedMismatch }, "raw; other devices would free it"},
		{"stranded by imbalance", func(f *capacityFigures) uint64 { return f.StrandedImbalance }, "raw; a balance frees it"},
	}
	columns := []column{{left: true}, {title: "now"}, {title: "then"}, {left: true}}
	add := func(cells ...string) {
		for i := range columns {
			columns[i].cells = append(columns[i].cells, cells[i])
		}
	}
	for i, row := range rows {
		then := ""
		if v.WhatIf != nil {
			then = sizeText(row.figure(v.WhatIf))
		}
		add(row.what, sizeText(row.figure(&v.Now)), then, row.note)
		if i != 1 {
			continue
		}
		if free, known := v.pool.StatfsFree.Get(); known {
			add("df says", sizeText(free), "", "")
		}
		if used, known := v.pool.Used.Get(); known {
			add("used", sizeText(used), sizeIf(v.WhatIf != nil, used), "by the data of files")
		}
	}
	if v.WhatIf == nil {
		columns = slices.Delete(columns, 2, 3)
	}
	if last := len(columns) - 1; v.width > 0 && tableWidth(columns) >= v.width {
		columns = columns[:last]
	}
	lines := make([]string, 0, len(rows)+3)
	if v.WhatIf != nil {
		lines = append(lines, tableLine(columns, func(c *column) string { return c.title }))
	}
	for i := range columns[0].cells {
		lines = append(lines, tableLine(columns, func(c *column) string { return c.cells[i] }))
	}
	return lines
}

// changeLines say what the changes come to.
func (v *capacityView) changeLines() []string {
	if v.WhatIf == nil {
		return nil
	}
	now, then := v.Now.FreeExpected, v.WhatIf.FreeExpected
	text := "As much could be written as now."
	switch {
	case then > now:
		text = sizeText(then-now) + " more could be written."
	case then < now:
		text = sizeText(now-then) + " less could be written."
	}
	if v.WhatIf.DataProfile != v.Now.DataProfile {
		text = "Data would be in " + v.WhatIf.DataProfile + ". " + text
	}
	lines := []string{"", text}
	raw := func(devices []deviceSpace) (sum uint64) {
		for i := range devices {
			sum += devices[i].Size
		}
		return sum
	}
	before, after := raw(v.Devices), raw(v.WhatIfDevices)
	// Also with four copies a quarter of what is added would be gained.
	if added := after - min(after, before); added > 0 && v.WhatIf.DataProfile == v.Now.DataProfile && v.WhatIf.Usable < v.Now.Usable+added/10 {
		lines = append(lines, fmt.Sprintf("Of the %s more on the devices hardly anything can be used: %s finds no partner for it.", sizeText(added), v.WhatIf.DataProfile))
	}
	return lines
}

// forecastLines say when the pool is full.
func forecastLines(f *capacityForecast, now time.Time) []string {
	if f == nil || !f.DaysToFull.Known && !f.MetadataDaysToFull.Known {
		return []string{"When it is full is not known: that takes a history of a day at least, which the daemon keeps."}
	}
	var lines []string
	if days, known := f.DaysToFull.Get(); known {
		line := whenText("Full", "Not full", f.Time, days, now) + ", as it filled up of late"
		if rate, known := f.BytesPerDay.Get(); known && rate >= 1 {
			line += ": by " + sizeText(uint64(rate)) + " a day"
		}
		lines = append(lines, line+".")
	}
	// Of metadata only what comes first.
	if days, known := f.MetadataDaysToFull.Get(); known && (!f.DaysToFull.Known || days < f.DaysToFull.Value) {
		lines = append(lines, whenText("No room for metadata", "Room for metadata", f.Time, days, now)+", as it grew of late.")
	}
	return lines
}

// whenText says in how many days something is, counted from a time.
func whenText(what, never string, from time.Time, days float64, now time.Time) string {
	const years = 3 * 365
	if days >= years {
		return never + " for years"
	}
	at := from.Add(time.Duration(days * 24 * float64(time.Hour))).In(now.Location())
	switch left := at.Sub(now); {
	case left <= time.Hour:
		return what + " within an hour"
	case left < 48*time.Hour:
		return fmt.Sprintf("%s in %.0f hours (%s)", what, left.Hours(), at.Format("Monday 15:04"))
	default:
		return fmt.Sprintf("%s in %.0f days (%s)", what, math.Round(left.Hours()/24), at.Format("2 January 2006"))
	}
}

// Bounds of the width of the longest bar, in characters.
const (
	leastBar = 16
	plainBar = 40 // where the width of the output is not known
	mostBar  = 60
)

// deviceLines draws the devices, and what the marks mean; unnamed are those without
// a path. Columns that do not fit beside the bars are left out.
func (v *capacityView) deviceLines(devices []deviceSpace, unnamed string) []string {
	columns := []column{
		{title: "devid"}, {title: "device", left: true}, {left: true}, {title: "size"}, {title: "data", rank: 4}, {title: "metadata", rank: 5},
		{title: "allocated", rank: 3}, {title: "free", rank: 1}, {title: "stranded", rank: 2},
	}
	const bars = 2 // the column of them
	largest, known, unknown := uint64(0), false, false
	for i := range devices {
		d := &devices[i]
		largest = max(largest, d.Size)
		known, unknown = known || d.Data.Known, unknown || !d.Data.Known
		name := printable(d.Path)
		switch {
		case d.Missing:
			name = "missing"
		case name == "":
			name = unnamed
		}
		for j, cell := range []string{
			strconv.FormatUint(d.ID, 10), name, "", sizeText(d.Size), sizeIf(d.Data.Known, d.Data.Value), sizeIf(d.Metadata.Known, d.Metadata.Value),
			sizeText(d.Allocated), sizeIf(d.Unusable == 0, d.Free), sizeIf(d.Unusable == 0, d.Stranded),
		} {
			columns[j].cells = append(columns[j].cells, cell)
		}
	}
	columns = slices.DeleteFunc(columns, func(c column) bool {
		return c.title == "allocated" && !unknown || (c.title == "data" || c.title == "metadata") && !known
	})
	width := plainBar
	if v.width > 0 {
		for width = v.room(columns); width < leastBar; width = v.room(columns) {
			drop := 0
			for i := range columns {
				if columns[i].rank > columns[drop].rank {
					drop = i
				}
			}
			if columns[drop].rank == 0 {
				break
			}
			columns = slices.Delete(columns, drop, drop+1)
		}
		width = min(max(width, leastBar), mostBar)
	}
	used := make(map[string]bool)
	for i := range devices {
		columns[bars].cells[i] = v.bar(&devices[i], largest, width, used)
	}
	lines := []string{tableLine(columns, func(c *column) string { return c.title })}
	for i := range devices {
		lines = append(lines, tableLine(columns, func(c *column) string { return c.cells[i] }))
	}
	return append(lines, v.legend(used, known))
}

// room is what columns leave for the bars.
func (v *capacityView) room(columns []column) int { return v.width - 1 - tableWidth(columns) }

func tableWidth(columns []column) int {
	total := 0
	for i := range columns {
		total += columnGap + columns[i].width()
	}
	return total
}

// bar draws a device, as wide as its share of the largest one, and notes the marks
// that it uses. What there is at all has one character at least.
func (v *capacityView) bar(d *deviceSpace, largest uint64, width int, used map[string]bool) string {
	if d.Size == 0 {
		return ""
	}
	data, metadata := d.Allocated, uint64(0)
	if known, ok := d.Data.Get(); ok {
		data, metadata = known, d.Allocated-min(d.Allocated, known) // system among it
	}
	parts := []struct {
		mark  string
		bytes uint64
	}{{v.marks.data, data}, {v.marks.metadata, metadata}, {v.marks.free, d.Free}, {v.marks.stranded, d.Stranded}, {v.marks.unusable, d.Unusable}}
	lengths := make([]int, len(parts))
	total, drawn := max(1, int(math.Round(float64(d.Size)/float64(largest)*float64(width)))), 0
	for i, p := range parts {
		if p.bytes > 0 {
			lengths[i] = max(1, int(math.Round(float64(p.bytes)/float64(d.Size)*float64(total))))
			drawn += lengths[i]
			used[p.mark] = true
		}
	}
	// What rounding made too much or too little, the longest part gives or takes.
	for drawn != total {
		longest := 0
		for i := range lengths {
			if lengths[i] > lengths[longest] {
				longest = i
			}
		}
		change := max(total-drawn, 1-lengths[longest])
		if change == 0 {
			break // a small device with a little of everything
		}
		lengths[longest] += change
		drawn += change
	}
	var b strings.Builder
	for i, p := range parts {
		b.WriteString(strings.Repeat(p.mark, lengths[i]))
	}
	return b.String()
}

// legend says what the marks mean that were used.
func (v *capacityView) legend(used map[string]bool, known bool) string {
	data := "data"
	if !known {
		data = "allocated"
	}
	var words []string
	for _, m := range []struct{ mark, means string }{
		{v.marks.data, data}, {v.marks.metadata, "metadata and system"}, {v.marks.free, "free for data"},
		{v.marks.stranded, "stranded"}, {v.marks.unusable, "unusable"},
	} {
		if used[m.mark] {
			words = append(words, m.mark+" "+m.means)
		}
	}
	line := ""
	for _, w := range words {
		if line != "" && v.width > 0 && utf8.RuneCountInString(line)+utf8.RuneCountInString(w)+2*columnGap > v.width {
			line += "\n"
		}
		line += strings.Repeat(" ", columnGap) + w
	}
	return line
}

// sizeText shows bytes in three digits.
func sizeText(bytes uint64) string {
	if bytes < 1<<10 {
		return fmt.Sprintf("%d B", bytes)
	}
	return humanize.IBytesN(bytes, 3)
}

func sizeIf(known bool, bytes uint64) string {
	if !known {
		return ""
	}
	return sizeText(bytes)
}
