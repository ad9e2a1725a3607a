// Package schedule says when something is due, and when scrubs may run. It is pure:
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
}

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
	parsed.start, parsed.end = from, to
	*w = parsed
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (w Window) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// String returns the form that UnmarshalText reads.
func (w Window) String() string {
	times := fmt.Sprintf("%02d:%02d-%02d:%02d", w.start/60, w.start%60, w.end/60, w.end%60)
	var days []string
	for i, name := range dayNames {
		if w.days[i] {
			days = append(days, strings.ToUpper(name[:1])+name[1:])
		}
	}
	if len(days) == len(dayNames) {
		return times
	}
	return strings.Join(days, ",") + " " + times
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

// contains reports whether a minute of a day of the week is in the window.
func (w *Window) contains(day, minute int) bool {
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
	return h.open(onWall(t.In(h.Location)))
}

// onWall returns the day of the week and its minute.
func onWall(t time.Time) (day, minute int) { return int(t.Weekday()), t.Hour()*60 + t.Minute() }

func (h *Hours) open(day, minute int) bool {
	in := func(w Window) bool { return w.contains(day, minute) }
	return (len(h.Windows) == 0 || slices.ContainsFunc(h.Windows, in)) && !slices.ContainsFunc(h.Blackout, in)
}

// NextOpen returns t if scrubs may run then, else the minute from which they
// next may; zero where they never may.
func (h *Hours) NextOpen(t time.Time) time.Time { return h.next(t, true) }

// NextClose returns t if scrubs may not run then, else the minute from which
// they next may not; zero where they always may.
func (h *Hours) NextClose(t time.Time) time.Time { return h.next(t, false) }

func (h *Hours) next(t time.Time, open bool) time.Time {
	if h.Open(t) == open {
		return t
	}
	// Windows are of a week; a change of the clock can hide one for that week.
	// Minute by minute from one change to the next is right whatever the clock on
	// the wall does.
	next := t.Truncate(time.Minute).Add(time.Minute).In(h.Location)
	limit := next.AddDate(0, 0, 15)
	for next.Before(limit) {
		day, minute := onWall(next)
		_, change := next.ZoneBounds()
		for next.Before(limit) && (change.IsZero() || next.Before(change)) {
			if h.open(day, minute) == open {
				return next
			}
			next = next.Add(time.Minute)
			if minute++; minute == minutesOfDay {
				day, minute = (day+1)%7, 0
			}
		}
	}
	return time.Time{}
}

// Times are those of a cron expression, by the clock on the wall of a place.
//
// The expression is worked out on a clock that knows no changes (UTC), from what
// the clock on the wall shows: a time that is left out when that goes forward
// comes as soon as it has, and one that comes twice when it goes back comes the
// first time. Worked out in the zone itself, go-cron 0.9.1 ran a daily job twice in
// Europe/Berlin's long night, and lost two in Australia/Lord_Howe.
type Times struct {
	schedule cron.Schedule
	location *time.Location
}

// ParseTimes reads a cron expression of five fields, or such as @weekly, in a
// time zone.
func ParseTimes(expression string, location *time.Location) (*Times, error) {
	if strings.Contains(expression, "TZ=") {
		return nil, fmt.Errorf("cron expression %q has a time zone of its own; there is one for all", expression)
	}
	s, err := parser.Parse(expression)
	if err != nil {
		return nil, fmt.Errorf("cron expression %q: %w", expression, err)
	}
	spec, ok := s.(*cron.SpecSchedule)
	if !ok { // @every, @reboot
		return nil, fmt.Errorf("cron expression %q names no time; write one such as \"0 3 1 * *\"", expression)
	}
	spec.Location = time.UTC
	t := &Times{spec, location}
	if t.Next(time.Unix(0, 0)).IsZero() {
		return nil, fmt.Errorf("cron expression %q never comes", expression)
	}
	return t, nil
}

// parser looks ahead for 40 years: a 29 February that is a Monday comes every 28,
// and once in 40 where a century has no leap year.
var parser = cron.StandardParser().WithMaxSearchYears(40)

// Next returns the first time after t; zero is never.
func (s *Times) Next(t time.Time) time.Time {
	next := s.schedule.Next(s.wall(t))
	if next.IsZero() {
		return next
	}
	return s.reached(next)
}

// Due reports whether a time came after last and not after now. However many
// were missed, they are due once: now is the next last. Without a last, which is
// zero then, none is.
func (s *Times) Due(last, now time.Time) bool {
	if last.IsZero() {
		return false
	}
	next := s.Next(last)
	return !next.IsZero() && !now.Before(next)
}

// wall returns the latest that the clock on the wall has shown up to t, as a
// time of UTC. In an hour that comes twice it stands still the second time.
func (s *Times) wall(t time.Time) time.Time {
	t = t.In(s.location)
	if start, _ := t.ZoneBounds(); !start.IsZero() {
		before := shown(start.Add(-time.Second))
		if before.After(shown(t)) {
			return before
		}
	}
	return shown(t)
}

// shown returns the date and time of t in its location as a time of UTC.
func shown(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
}

// reached returns the first moment at which the clock on the wall shows a time,
// or a later one where it leaves that out. time.Date gives no rule for either.
func (s *Times) reached(wall time.Time) time.Time {
	// No zone is as much as 15 hours from UTC.
	t := wall.Add(-15 * time.Hour).In(s.location)
	for {
		start, end := t.ZoneBounds()
		_, offset := t.Zone()
		moment := wall.Add(-time.Duration(offset) * time.Second)
		if end.IsZero() || moment.Before(end) {
			if moment.Before(start) {
				moment = start
			}
			return moment.In(s.location)
		}
		t = end.In(s.location)
	}
}
