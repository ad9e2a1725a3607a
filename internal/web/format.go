package web

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// size writes bytes in binary units with three digits, such as "5.48 TiB".
func size(bytes uint64) string {
	if bytes < 1<<10 {
		return fmt.Sprintf("%d B", bytes)
	}
	return humanize.IBytesN(bytes, 3)
}

// rate writes bytes per second.
func rate(bytes uint64) string { return size(bytes) + "/s" }

// percent writes a share; what is not all is not said to be.
func percent(share float64) string {
	switch p := 100 * share; {
	case p >= 100:
		return "100 %"
	case p > 99:
		return fmt.Sprintf("%.1f %%", math.Floor(10*p)/10)
	case p <= 0:
		return "0 %"
	case p < 1:
		return "below 1 %"
	default:
		return fmt.Sprintf("%.0f %%", p)
	}
}

// count writes a number of things.
func count[N int | uint64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return humanize.Comma(int64(n)) + " " + many
}

// span writes how long something takes, roughly.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return span(-d)
	case d < 2*time.Second:
		return "a second"
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f seconds", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f minutes", d.Minutes())
	case d < 2*day:
		return fmt.Sprintf("%.0f hours", d.Hours())
	case d < 60*day:
		return fmt.Sprintf("%.0f days", d.Hours()/24)
	case d < 2*365*day:
		return fmt.Sprintf("%.0f months", d.Hours()/24/30.44)
	default:
		return fmt.Sprintf("%.0f years", d.Hours()/24/365.25)
	}
}

// list joins words as a sentence does.
func list(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}

// sentence makes a text one, with a capital letter and a full stop.
func sentence(text string) string {
	if text == "" {
		return ""
	}
	text = strings.ToUpper(text[:1]) + text[1:]
	if strings.HasSuffix(text, ".") {
		return text
	}
	return text + "."
}

// moment is a time as the page shows it: how long ago, and exactly, by the clock on
// the wall of the host, as schedules are that name no other.
type moment struct {
	At    time.Time
	Words string // "3 days ago", "in 2 hours"
}

func newMoment(t, now time.Time) *moment {
	if t.IsZero() {
		return nil
	}
	m := &moment{At: t.In(now.Location()), Words: span(now.Sub(t)) + " ago"}
	if t.After(now) {
		m.Words = "in " + span(t.Sub(now))
	}
	return m
}

// Exact is the time to the minute.
func (m *moment) Exact() string { return m.At.Format("2 January 2006, 15:04 MST") }

// Machine is the time for the attribute datetime.
func (m *moment) Machine() string { return m.At.Format(time.RFC3339) }
