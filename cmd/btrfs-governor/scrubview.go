package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"

	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// renderScrub tells all of a scrub: what it was asked, what it did, its devices
// and what it found damaged. The table of the devices leaves out columns that
// do not fit in width, in characters; 0 has room for all. Nothing is cut: a path
// is there whole.
func renderScrub(s *scrub.Status, now time.Time, width int) string {
	lines := headLines(s, now)
	if s.State == scrub.Idle {
		return join(lines)
	}
	c := s.Counters()
	lines = append(lines, fmt.Sprintf("Checked %s, found %s", humanize.IBytes(c.BytesScrubbed()), foundText(s)))
	lines = append(lines, deviceLines(s, width, len(s.Devices))...)
	return join(append(lines, damageLines(s.Damage)...))
}

// renderLive shows how a scrub goes in a screen of width and height characters.
// Each line fits, and all of them do.
func renderLive(s *scrub.Status, now time.Time, width, height int) []string {
	lines := headLines(s, now)
	if d := s.Damage; d != nil && len(d.Errors) > 0 {
		lines = append(lines, fmt.Sprintf("Damaged places: %d, listed at the end", len(d.Errors)))
	}
	// The last line of the screen holds the cursor, and three are for an empty
	// line, the titles, and how many devices are left out.
	lines = append(lines, deviceLines(s, width, max(1, height-len(lines)-4))...)
	for i := range lines {
		lines[i] = clip(lines[i], width)
	}
	return lines
}

func headLines(s *scrub.Status, now time.Time) []string {
	state := string(s.State)
	if s.Foreign {
		state += ", not one of ours"
	}
	if s.Reason != "" {
		state += ": " + printable(s.Reason)
	}
	lines := []string{"Pool " + s.Pool.String(), "Scrub " + state}
	if s.State == scrub.Idle {
		return lines
	}
	if s.JobID != "" {
		text := fmt.Sprintf("Job %s, %s", s.JobID, modeText(&s.Options))
		if s.Requester != "" {
			text += ", asked for by " + printable(s.Requester)
		}
		lines = append(lines, text)
	}
	for _, moment := range []struct {
		what string
		at   time.Time
	}{{"Not before", s.Options.NotBefore}, {"Deadline", s.Options.Deadline}, {"Started", s.Started}, {"Finished", s.Finished}} {
		if !moment.at.IsZero() && (moment.what != "Not before" || moment.at.After(now)) {
			lines = append(lines, moment.what+" "+timeText(moment.at, now))
		}
	}
	if s.Duration > 0 {
		text := "Ran for " + durationText(s.Duration)
		if s.Yielded >= time.Second {
			text += ", gave way for " + durationText(s.Yielded)
		}
		if s.Urged >= time.Second {
			text += ", went on beside others for " + durationText(s.Urged) + " to meet its deadline"
		}
		if s.Pauses > 0 {
			text += fmt.Sprintf(", paused %d times", s.Pauses)
		}
		lines = append(lines, text)
	}
	if s.State.Active() && (s.Progress > 0 || s.JobID != "") {
		text := fmt.Sprintf("%.1f %% done, %s/s", 100*s.Progress, humanize.IBytes(s.Rate))
		if s.ETA > 0 && runs(s) {
			text += fmt.Sprintf(", about %s left (%s)", durationText(s.ETA), now.Add(s.ETA).Format("Mon 15:04"))
		}
		lines = append(lines, text)
	}
	return lines
}

func runs(s *scrub.Status) bool { return s.State == scrub.Running || s.State == scrub.Yielding }

func modeText(o *scrub.Options) string {
	text := "mode " + string(o.Mode)
	if o.Limit > 0 {
		text += " (" + humanize.Bytes(o.Limit) + "/s on each device)"
	}
	if o.ReadOnly {
		text += ", repairing nothing"
	}
	return text
}

// foundText says what became of the errors.
func foundText(s *scrub.Status) string {
	c := s.Counters()
	if c.Errors() == 0 && c.UncorrectableErrors == 0 {
		return "no errors"
	}
	text := fmt.Sprintf("%d errors: %d corrected, %d uncorrectable", c.Errors(), c.CorrectedErrors, c.UncorrectableErrors)
	for _, kind := range []struct {
		name  string
		count uint64
	}{
		{"read", c.ReadErrors}, {"csum", c.CsumErrors}, {"verify", c.VerifyErrors}, {"super", c.SuperErrors},
		{"malloc", c.MallocErrors}, {"unverified", c.UnverifiedErrors},
	} {
		if kind.count > 0 {
			text += fmt.Sprintf(", %s=%d", kind.name, kind.count)
		}
	}
	return text
}

// column is one of the table of the devices.
type column struct {
	title string
	left  bool // set to the left
	rank  int  // where there is no room, the highest goes first; 0 never goes
	cells []string
}

func (c *column) width() int {
	w := utf8.RuneCountInString(c.title)
	for _, cell := range c.cells {
		w = max(w, utf8.RuneCountInString(cell))
	}
	return w
}

const columnGap = 2

// deviceLines is the table of at most so many devices.
func deviceLines(s *scrub.Status, width, most int) []string {
	if len(s.Devices) == 0 {
		return nil
	}
	devices := s.Devices[:min(most, len(s.Devices))]
	columns := deviceColumns(s, devices)
	for {
		total, drop := 0, 0
		for i := range columns {
			total += columns[i].width() + columnGap
			if columns[i].rank > columns[drop].rank {
				drop = i
			}
		}
		if width <= 0 || total <= width || columns[drop].rank == 0 {
			break
		}
		columns = slices.Delete(columns, drop, drop+1)
	}
	lines := []string{"", tableLine(columns, func(c *column) string { return c.title })}
	for i := range devices {
		lines = append(lines, tableLine(columns, func(c *column) string { return c.cells[i] }))
		if devices[i].Error != "" {
			lines = append(lines, "    given up: "+printable(devices[i].Error))
		}
	}
	if left := len(s.Devices) - len(devices); left > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more devices", left))
	}
	return lines
}

func deviceColumns(s *scrub.Status, devices []scrub.DeviceStatus) []column {
	columns := []column{
		{title: "devid"}, {title: "device", left: true}, {title: "done"}, {title: "", left: true, rank: 6}, {title: "checked", rank: 7},
		{title: "rate", rank: 2}, {title: "limit", rank: 4}, {title: "left", rank: 5},
		{title: "errors"}, {title: "corrected", rank: 3}, {title: "uncorrectable", rank: 1},
	}
	for i := range devices {
		d := &devices[i]
		name := d.Path
		if name == "" {
			name = d.Name
		}
		if name == "" && (d.Error != "" || !d.UUID.IsZero()) {
			name = "missing"
		}
		share := 0.0
		if d.Size > 0 {
			share = min(float64(d.Position)/float64(d.Size), 1)
		}
		if d.Done && d.Error == "" {
			share = 1
		}
		done, progress := fmt.Sprintf("%.1f%%", 100*share), bar(share, 10)
		if d.Size == 0 && !d.Done {
			done, progress = "", "" // a record of btrfs-progs tells no sizes
		}
		rate, limit, left := "", "", ""
		if runs(s) && !d.Done {
			rate, limit = humanize.IBytes(d.Rate)+"/s", limitText(d.Limit)
			// As it went until now, pauses for others among it: the rate of this
			// moment says little of that.
			if share > 0 && s.Duration > 0 {
				left = durationText(time.Duration(float64(s.Duration) * (1 - share) / share))
			}
		}
		c := &d.Counters
		for j, cell := range []string{
			strconv.FormatUint(d.DevID, 10), printable(name), done, progress, humanize.IBytes(c.BytesScrubbed()),
			rate, limit, left, strconv.FormatUint(c.Errors(), 10), strconv.FormatUint(c.CorrectedErrors, 10), strconv.FormatUint(c.UncorrectableErrors, 10),
		} {
			columns[j].cells = append(columns[j].cells, cell)
		}
	}
	// What says nothing of any device needs no room.
	return slices.DeleteFunc(columns, func(c column) bool {
		return !slices.ContainsFunc(c.cells, func(cell string) bool { return cell != "" })
	})
}

func tableLine(columns []column, text func(*column) string) string {
	var b strings.Builder
	for i := range columns {
		cell := text(&columns[i])
		space := strings.Repeat(" ", columns[i].width()-utf8.RuneCountInString(cell))
		b.WriteString(strings.Repeat(" ", columnGap))
		if columns[i].left {
			b.WriteString(cell + space)
		} else {
			b.WriteString(space + cell)
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// damageLines lists what the errors hit: path, offset, whether it was
// corrected, and the device.
func damageLines(d *scrub.Damage) []string {
	if d == nil {
		return nil
	}
	lines := []string{"", "Damaged:"}
	for i := range d.Errors {
		e := &d.Errors[i]
		fate := "NOT corrected"
		if e.Corrected {
			fate = "corrected"
		}
		end := "  " + fate + "  " + printable(e.Device)
		if len(e.Files) == 0 {
			what := "(used by no file now, at byte"
			if e.Metadata {
				what = "(metadata, at byte"
			}
			lines = append(lines, fmt.Sprintf("  %s %d of the device)%s", what, e.Physical, end))
		}
		for _, f := range e.Files {
			path := f.Path
			if f.Subvolume != "" {
				path = f.Subvolume + "/" + f.Path
			}
			lines = append(lines, fmt.Sprintf("  %s  %d%s", printable(path), f.Offset, end))
		}
	}
	if d.Truncated {
		lines = append(lines, "  and more")
	}
	if d.Unlocated > 0 {
		lines = append(lines, fmt.Sprintf("  and %d errors whose place is not known", d.Unlocated))
	}
	return lines
}

// plainLine is a scrub in one line, for logs and pipes.
func plainLine(s *scrub.Status, now time.Time) string {
	c := s.Counters()
	text := fmt.Sprintf("%s %s %.1f%% %s/s errors=%d corrected=%d uncorrectable=%d", now.UTC().Format(time.RFC3339), s.State, 100*s.Progress,
		humanize.IBytes(s.Rate), c.Errors(), c.CorrectedErrors, c.UncorrectableErrors)
	if s.ETA > 0 && runs(s) {
		text += " left=" + strings.ReplaceAll(durationText(s.ETA), " ", "")
	}
	if s.Reason != "" {
		text += " (" + printable(s.Reason) + ")"
	}
	return text
}

// plainInterval is the time between lines where nothing changed.
const plainInterval = 10 * time.Second

// view shows how a scrub goes on: in place on a terminal, else as lines.
type view struct {
	out io.Writer
	// size returns the size of the terminal; 0 where it is none. It may change.
	size func() (width, height int)
	json bool

	shown  []string // on the screen
	last   string
	lastAt time.Time
}

func (v *view) update(s *scrub.Status, now time.Time) {
	width, height := v.size()
	switch {
	case v.json:
		text, err := json.Marshal(s)
		if err != nil || string(text) == v.last {
			return
		}
		v.last = string(text)
		fmt.Fprintln(v.out, v.last)
	case width > 0:
		v.clear(width)
		v.shown = renderLive(s, now, width-1, height) // some terminals wrap a line that fills one
		fmt.Fprint(v.out, join(v.shown))
	default:
		state := string(s.State) + s.Reason
		if state == v.last && now.Sub(v.lastAt) < plainInterval {
			return
		}
		v.last, v.lastAt = state, now
		fmt.Fprintln(v.out, plainLine(s, now))
	}
}

// clear takes off the screen what was shown, of which a terminal that has
// become narrower has broken lines in two.
func (v *view) clear(width int) {
	rows := 0
	for _, line := range v.shown {
		rows += max(1, (utf8.RuneCountInString(line)+width-1)/width)
	}
	if rows > 0 {
		fmt.Fprintf(v.out, "\r\x1b[%dA\x1b[J", rows)
	}
	v.shown = nil
}

// end shows in full how a scrub ended.
func (v *view) end(s *scrub.Status, now time.Time) {
	if v.json {
		return
	}
	width, _ := v.size()
	if width > 0 {
		v.clear(width)
	}
	fmt.Fprint(v.out, renderScrub(s, now, width))
}

func join(lines []string) string { return strings.Join(lines, "\n") + "\n" }

func timeText(t, now time.Time) string {
	return fmt.Sprintf("%s (%s)", t.In(now.Location()).Format("2006-01-02 15:04:05 MST"), humanize.RelTime(t, now, "ago", "from now"))
}

func limitText(limit uint64) string {
	switch limit {
	case 0:
		return "none"
	case 1:
		return "yields"
	}
	return humanize.IBytes(limit) + "/s"
}

func bar(share float64, width int) string {
	full := max(0, min(int(share*float64(width)+0.5), width))
	return strings.Repeat("#", full) + strings.Repeat(".", width-full)
}

// durationText shows the two greatest units of a duration.
func durationText(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm %ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh %dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd %dh", d/day, d%day/time.Hour)
}

// printable escapes what could command a terminal or break a line: a file may
// have any name.
func printable(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

// clip cuts a line to a width, in characters.
func clip(s string, width int) string {
	r := []rune(s)
	if width <= 0 || len(r) <= width {
		return s
	}
	return string(r[:width-1]) + "…"
}
