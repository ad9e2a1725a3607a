package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// renderScrub shows a scrub as lines for people, each at most width wide; 0 is
// any width.
func renderScrub(s *scrub.Status, now time.Time, width int) string {
	var b strings.Builder
	line := func(format string, args ...any) { b.WriteString(clip(fmt.Sprintf(format, args...), width) + "\n") }

	line("Pool %s", s.Pool)
	state := string(s.State)
	if s.Foreign {
		state += ", not one of ours"
	}
	if s.Reason != "" {
		state += ": " + s.Reason
	}
	line("Scrub %s", state)
	if s.State == scrub.Idle {
		return b.String()
	}
	if !s.Started.IsZero() {
		text := fmt.Sprintf("Started %s (%s)", s.Started.Local().Format("2006-01-02 15:04:05"), humanize.RelTime(s.Started, now, "ago", "from now"))
		if s.Duration > 0 {
			text += ", took " + duration(s.Duration)
			if s.State.Active() {
				text = strings.Replace(text, "took", "has run", 1)
			}
		}
		if s.Yielded >= time.Second {
			text += ", gave way for " + duration(s.Yielded)
		}
		line("%s", text)
	}
	if s.State.Active() {
		text := fmt.Sprintf("%.1f %% done, %s/s", 100*s.Progress, humanize.IBytes(s.Rate))
		if s.ETA > 0 && (s.State == scrub.Running || s.State == scrub.Yielding) {
			text += ", about " + duration(s.ETA) + " left"
		}
		line("%s", text)
	}
	if len(s.Devices) > 0 {
		line("")
		line("  %-5s %-16s %6s  %-10s %12s %12s %8s %10s %14s", "devid", "device", "done", "", "rate", "limit", "errors", "corrected", "uncorrectable")
	}
	for i := range s.Devices {
		d := &s.Devices[i]
		name := d.Path
		if name == "" {
			name = "missing"
		}
		share := 0.0
		if d.Size > 0 {
			share = float64(d.Position) / float64(d.Size)
		}
		if d.Done && d.Error == "" {
			share = 1
		}
		rate, limit := "", ""
		if s.State == scrub.Running || s.State == scrub.Yielding {
			if !d.Done {
				rate, limit = humanize.IBytes(d.Rate)+"/s", limitText(d.Limit)
			}
		}
		line("  %-5d %-16s %5.1f%%  %-10s %12s %12s %8d %10d %14d", d.DevID, name, 100*share, bar(share, 10), rate, limit,
			d.Counters.Errors(), d.Counters.CorrectedErrors, d.Counters.UncorrectableErrors)
		if d.Error != "" {
			line("        %s", d.Error)
		}
	}
	renderDamage(line, s.Damage)
	return b.String()
}

func renderDamage(line func(string, ...any), d *scrub.Damage) {
	if d == nil {
		return
	}
	line("")
	line("Damaged:")
	for _, e := range d.Errors {
		fate := "NOT corrected"
		if e.Corrected {
			fate = "corrected"
		}
		if len(e.Files) == 0 {
			what := "a place that no file uses now"
			if e.Metadata {
				what = "metadata"
			}
			line("  %-13s  %s, at %d on %s", fate, what, e.Physical, e.Device)
		}
		for _, f := range e.Files {
			path := f.Path
			if f.Subvolume != "" {
				path = f.Subvolume + "/" + f.Path
			}
			line("  %-13s  %s, at byte %d, on %s", fate, path, f.Offset, e.Device)
		}
	}
	if d.Truncated {
		line("  and more")
	}
	if d.Unlocated > 0 {
		line("  and %d errors whose place is not known", d.Unlocated)
	}
}

// plainLine is a scrub in one line, for logs and pipes.
func plainLine(s *scrub.Status) string {
	c := s.Counters()
	text := fmt.Sprintf("%s %.1f%% %s/s errors=%d corrected=%d uncorrectable=%d", s.State, 100*s.Progress, humanize.IBytes(s.Rate),
		c.Errors(), c.CorrectedErrors, c.UncorrectableErrors)
	if s.Reason != "" {
		text += " (" + s.Reason + ")"
	}
	return text
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
	full := int(share*float64(width) + 0.5)
	full = max(0, min(full, width))
	return strings.Repeat("#", full) + strings.Repeat(".", width-full)
}

func duration(d time.Duration) string {
	switch {
	case d < time.Minute:
		return d.Round(time.Second / 10).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}

// clip cuts a line to a width, in characters.
func clip(s string, width int) string {
	r := []rune(s)
	if width <= 0 || len(r) <= width {
		return s
	}
	return string(r[:width-1]) + "…"
}
