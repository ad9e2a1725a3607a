// Package schedule says when scrubs are due and when they may run. It is pure:
// the time is passed in.
package schedule

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	cron "github.com/netresearch/go-cron"
)

// minutesOfDay is one more than the last minute of a day.
const minutesOfDay = 24 * 60

// Window is a time of some days of the week, by the clock on the wall. One
// whose end is not after its start goes on into the next day.
type Window struct {
	days       [7]bool // in which it begins, by time.Weekday
	start, end int     // minutes of the day
	text       string
}

// Equal reports whether two windows are the same times.
func (w Window) Equal(o Window) bool { return w.days == o.days && w.start == o.start && w.end == o.end }

// String returns the window as it was written.
func (w Window) String() string { return w.text }

// MarshalText implements encoding.TextMarshaler.
func (w Window) MarshalText() ([]byte, error) { return []byte(w.text), nil }

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// UnmarshalText implements encoding.TextUnmarshaler. It reads "22:00-07:00",
// "Mon-Fri 22:00-07:00" and "Sat,Sun 00:00-24:00".
func (w *Window) UnmarshalText(text []byte) error {
	s := string(text)
	wrong := fmt.Errorf("%q is not a window such as 22:00-07:00 or Mon-Fri 22:00-07:00", s)
	fields := strings.Fields(s)
	var parsed Window
	switch len(fields) {
	case 1:
		parsed.days = [7]bool{true, true, true, true, true, true, true}
	case 2:
		days, ok := parseDays(fields[0])
		if !ok {
			return wrong
		}
		parsed.days = days
	default:
		return wrong
	}
	start, end, ok := strings.Cut(fields[len(fields)-1], "-")
	from, okFrom := parseMinute(start)
	to, okTo := parseMinute(end)
	if !ok || !okFrom || !okTo || from == minutesOfDay {
		return wrong
	}
	if from == to {
		return fmt.Errorf("window %q begins when it ends; for the whole day write 00:00-24:00", s)
	}
	parsed.start, parsed.end, parsed.text = from, to, s
	*w = parsed
	return nil
}

func parseDays(s string) (days [7]bool, ok bool) {
	for part := range strings.SplitSeq(strings.ToLower(s), ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, to := slices.Index(dayNames, first), slices.Index(dayNames, last)
		if from < 0 || to < 0 {
			return days, false
		}
		for d := from; ; d = (d + 1) % 7 {
			days[d] = true
			if d == to {
				break
			}
		}
	}
	return days, true
}

// parseMinute reads HH:MM, up to 24:00.
func parseMinute(s string) (int, bool) {
	hour, minute, ok := strings.Cut(s, ":")
	h, errHour := strconv.ParseUint(hour, 10, 8)
	m, errMinute := strconv.ParseUint(minute, 10, 8)
	if !ok || len(hour) != 2 || len(minute) != 2 || errHour != nil || errMinute != nil || m > 59 {
		return 0, false
	}
	total := int(h)*60 + int(m)
	return total, total <= minutesOfDay
}

// contains reports whether a time is in the window. t has its location.
func (w *Window) contains(t time.Time) bool {
	day, minute := int(t.Weekday()), t.Hour()*60+t.Minute()
	if w.start < w.end {
		return w.days[day] && w.start <= minute && minute < w.end
	}
	return w.days[day] && minute >= w.start || w.days[(day+6)%7] && minute < w.end
}

// Hours say when scrubs may run: within a window, if there are any, and not in
// a blackout.
type Hours struct {
	Windows, Blackout []Window
	Location          *time.Location
}

// Open reports whether scrubs may run at a time.
func (h *Hours) Open(t time.Time) bool {
	t = t.In(h.Location)
	in := func(w Window) bool { return w.contains(t) }
	return (len(h.Windows) == 0 || slices.ContainsFunc(h.Windows, in)) && !slices.ContainsFunc(h.Blackout, in)
}

// NextOpen returns t if scrubs may run then, else the minute from which they
// next may; zero where they never may.
func (h *Hours) NextOpen(t time.Time) time.Time {
	if h.Open(t) {
		return t
	}
	// Windows are of a week; a change of the clock can hide one for that week.
	// Minute by minute is right whatever the clock on the wall does.
	next := t.Truncate(time.Minute).Add(time.Minute)
	for range 15 * minutesOfDay {
		if h.Open(next) {
			return next.In(h.Location)
		}
		next = next.Add(time.Minute)
	}
	return time.Time{}
}

// Times are those of a cron expression, by the clock on the wall of a place.
//
// The expression is worked out on a clock that knows no changes (UTC), from what
// the clock on the wall shows: a time that is left out when that goes forward
// comes as soon as it has, and one that comes twice when it goes back comes
// once. Worked out in the zone itself, go-cron 0.9.1 ran a daily job twice in
// Europe/Berlin's long night, and lost two in Australia/Lord_Howe.
type Times struct {
	schedule cron.Schedule
	location *time.Location
}

// wall returns what the clock on the wall shows, as a time of UTC.
func (s *Times) wall(t time.Time) time.Time {
	t = t.In(s.location)
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
}

// ParseTimes reads a cron expression of five fields, or such as @weekly, in a
// time zone.
func ParseTimes(expression string, location *time.Location) (*Times, error) {
	if strings.Contains(expression, "TZ=") {
		return nil, fmt.Errorf("cron expression %q has a time zone of its own; there is one for all", expression)
	}
	if strings.HasPrefix(expression, "@every") || strings.HasPrefix(expression, "@reboot") {
		return nil, fmt.Errorf("cron expression %q names no time; write one such as \"0 3 1 * *\"", expression)
	}
	s, err := cron.ParseStandard(expression)
	if err != nil {
		return nil, fmt.Errorf("cron expression %q: %w", expression, err)
	}
	spec, ok := s.(*cron.SpecSchedule)
	if !ok {
		return nil, fmt.Errorf("cron expression %q names no time; write one such as \"0 3 1 * *\"", expression)
	}
	spec.Location = time.UTC
	t := &Times{spec, location}
	if t.Next(time.Unix(0, 0)).IsZero() {
		return nil, fmt.Errorf("cron expression %q never comes", expression)
	}
	return t, nil
}

// Next returns the first time after t; zero is never.
func (s *Times) Next(t time.Time) time.Time {
	next := s.schedule.Next(s.wall(t))
	if next.IsZero() {
		return next
	}
	return time.Date(next.Year(), next.Month(), next.Day(), next.Hour(), next.Minute(), 0, 0, s.location)
}

// Due reports whether a time came after last and not after now. However many
// were missed, they are due once: now is the next last.
func (s *Times) Due(last, now time.Time) bool {
	next := s.schedule.Next(s.wall(last))
	return !next.IsZero() && now.After(last) && !next.After(s.wall(now))
}
