package schedule

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the zones are there on every machine
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	l, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func window(t *testing.T, s string) Window {
	t.Helper()
	var w Window
	if err := w.UnmarshalText([]byte(s)); err != nil {
		t.Fatal(err)
	}
	return w
}

func at(t *testing.T, l *time.Location, s string) time.Time {
	t.Helper()
	v, err := time.ParseInLocation("2006-01-02 15:04", s, l)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWindows(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	// 2026-03-02 is a Monday.
	for _, tt := range []struct {
		window, at string
		open       bool
	}{
		{"22:00-07:00", "2026-03-02 21:59", false},
		{"22:00-07:00", "2026-03-02 22:00", true},
		{"22:00-07:00", "2026-03-03 06:59", true},
		{"22:00-07:00", "2026-03-03 07:00", false},
		{"01:00-02:30", "2026-03-03 02:29", true},
		{"00:00-24:00", "2026-03-03 23:59", true},
		{"Fri 22:00-07:00", "2026-03-07 06:00", true}, // on Saturday, begun on Friday
		{"Fri 22:00-07:00", "2026-03-08 06:00", false},
		{"Sat,Sun 00:00-24:00", "2026-03-07 12:00", true},
		{"sat,sun 00:00-24:00", "2026-03-09 12:00", false},
		{"Fri-Mon 10:00-11:00", "2026-03-08 10:30", true},
		{"Fri-Mon 10:00-11:00", "2026-03-04 10:30", false},
	} {
		h := Hours{Windows: []Window{window(t, tt.window)}, Location: berlin}
		if got := h.Open(at(t, berlin, tt.at)); got != tt.open {
			t.Errorf("%s at %s: %v, want %v", tt.window, tt.at, got, tt.open)
		}
		// A blackout is the opposite.
		h = Hours{Blackout: h.Windows, Location: berlin}
		if got := h.Open(at(t, berlin, tt.at)); got == tt.open {
			t.Errorf("blackout %s at %s: %v, want %v", tt.window, tt.at, got, !tt.open)
		}
	}
}

func TestBadWindows(t *testing.T) {
	for _, s := range []string{"", "22", "22:00", "22:00-", "22:00-25:00", "2:00-3:00", "22:60-23:00", "Someday 22:00-23:00", "Mon- 22:00-23:00", "24:00-01:00", "a b c", "07:00-07:00"} {
		var w Window
		if err := w.UnmarshalText([]byte(s)); err == nil || !strings.Contains(err.Error(), "window") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestNextOpen(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	for _, tt := range []struct{ window, at, want string }{
		{"22:00-07:00", "2026-03-02 21:59", "2026-03-02 22:00"},
		{"22:00-07:00", "2026-03-02 23:00", "2026-03-02 23:00"},
		{"Sat 10:00-11:00", "2026-03-02 12:00", "2026-03-07 10:00"},
		// 02:30 does not come on the day when the clock goes forward.
		{"Sun 02:15-02:45", "2026-03-28 12:00", "2026-04-05 02:15"},
		{"02:15-02:45", "2026-03-29 01:59", "2026-03-30 02:15"},
	} {
		h := Hours{Windows: []Window{window(t, tt.window)}, Location: berlin}
		if got := h.NextOpen(at(t, berlin, tt.at)).In(berlin).Format("2006-01-02 15:04"); got != tt.want {
			t.Errorf("%s after %s: %s, want %s", tt.window, tt.at, got, tt.want)
		}
	}
	never := Hours{Windows: []Window{window(t, "10:00-11:00")}, Blackout: []Window{window(t, "00:00-24:00")}, Location: berlin}
	if got := never.NextOpen(at(t, berlin, "2026-03-02 10:30")); !got.IsZero() {
		t.Errorf("hours that never are open open at %s", got)
	}
}

func TestNextClose(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	for _, tt := range []struct{ window, blackout, at, want string }{
		{"22:00-07:00", "", "2026-03-02 23:00", "2026-03-03 07:00"},
		{"22:00-07:00", "", "2026-03-02 12:00", "2026-03-02 12:00"},
		{"22:00-07:00", "03:00-04:00", "2026-03-02 23:00", "2026-03-03 03:00"},
		{"", "Sun 03:00-04:00", "2026-03-02 23:00", "2026-03-08 03:00"},
		{"Mon-Fri 00:00-24:00", "", "2026-03-04 12:00", "2026-03-07 00:00"},
		{"22:00-02:30", "", "2026-03-28 23:00", "2026-03-29 03:00"}, // as soon as the clock has gone forward
	} {
		h := Hours{Location: berlin}
		if tt.window != "" {
			h.Windows = []Window{window(t, tt.window)}
		}
		if tt.blackout != "" {
			h.Blackout = []Window{window(t, tt.blackout)}
		}
		if got := h.NextClose(at(t, berlin, tt.at)).In(berlin).Format("2006-01-02 15:04"); got != tt.want {
			t.Errorf("%s without %s, from %s: closes at %s, want %s", tt.window, tt.blackout, tt.at, got, tt.want)
		}
	}
	always := Hours{Location: berlin}
	if got := always.NextClose(at(t, berlin, "2026-03-02 10:30")); !got.IsZero() {
		t.Errorf("hours that are always open close at %s", got)
	}
}

// An hour that comes twice is in a window both times.
func TestWindowsWhenTheClockGoesBack(t *testing.T) {
	for zoneName, start := range map[string]string{"Europe/Berlin": "2026-10-25T02:00:00+02:00", "America/New_York": "2026-11-01T01:00:00-04:00"} {
		l := zone(t, zoneName)
		begin, err := time.Parse(time.RFC3339, start)
		if err != nil {
			t.Fatal(err)
		}
		hour := begin.In(l).Hour()
		h := Hours{Windows: []Window{window(t, fmt.Sprintf("%02d:00-%02d:30", hour, hour))}, Location: l}
		for minute, want := range map[int]bool{-1: false, 0: true, 29: true, 30: false, 59: false, 60: true, 89: true, 90: false} {
			if got := h.Open(begin.Add(time.Duration(minute) * time.Minute)); got != want {
				t.Errorf("%s, minute %d: open %v, want %v", zoneName, minute, got, want)
			}
		}
	}
}

func TestWindowText(t *testing.T) {
	for in, want := range map[string]string{
		"22:00-07:00":         "22:00-07:00",
		"Sun-Sat 00:00-24:00": "00:00-24:00",
		"fri-mon 10:05-11:00": "Sun,Mon,Fri,Sat 10:05-11:00",
		" Wed  10:00-00:00 ":  "Wed 10:00-00:00",
	} {
		w := window(t, in)
		if w.String() != want {
			t.Errorf("%q: %s, want %s", in, w, want)
		}
		if again := window(t, w.String()); again != w {
			t.Errorf("%q: %s is another window", in, w)
		}
	}
}

func TestDue(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	for _, tt := range []struct {
		name, cron, last, now string
		due                   bool
	}{
		{"before its time", "0 3 1 * *", "2026-03-05 00:00", "2026-03-31 23:59", false},
		{"at its time", "0 3 1 * *", "2026-03-05 00:00", "2026-04-01 03:00", true},
		{"again at once", "0 3 1 * *", "2026-04-01 03:00", "2026-04-01 03:01", false},
		{"missed, long off", "0 3 1 * *", "2026-01-05 00:00", "2026-09-20 12:00", true},
		{"clock set back a year", "0 3 1 * *", "2026-04-01 03:00", "2025-04-01 03:00", false},
		{"weekly, in the hour that is left out", "30 2 * * 0", "2026-03-23 00:00", "2026-03-30 00:00", true},
		{"daily, in the hour that comes twice", "30 2 * * *", "2026-10-25 02:30", "2026-10-25 23:59", false},
		{"29 February", "0 0 29 2 *", "2026-03-01 00:00", "2028-02-28 00:00", false},
		{"29 February of a leap year", "0 0 29 2 *", "2026-03-01 00:00", "2028-02-29 00:00", true},
		{"Monday, 29 February", "0 0 29 2 1", "2026-03-01 00:00", "2044-02-29 00:00", true},
		{"over a century that has no leap year", "0 0 29 2 *", "2096-03-01 00:00", "2104-02-29 00:00", true},
		{"just before that", "0 0 29 2 *", "2096-03-01 00:00", "2104-02-28 23:59", false},
		{"31st in a month of 30", "0 3 31 * *", "2026-03-31 03:00", "2026-05-31 02:59", false},
		{"31st in the month after", "0 3 31 * *", "2026-03-31 03:00", "2026-05-31 03:00", true},
		{"clock set back an hour", "0 3 * * *", "2026-03-05 03:00", "2026-03-05 02:59", false},
		{"last when the clock was a year ahead", "0 3 * * *", "2027-03-05 03:00", "2026-03-06 03:00", false},
		{"the same moment", "* * * * *", "2026-03-05 03:00", "2026-03-05 03:00", false},
		{"@weekly", "@weekly", "2026-03-02 00:00", "2026-03-08 00:00", true},
	} {
		s, err := ParseTimes(tt.cron, berlin)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Due(at(t, berlin, tt.last), at(t, berlin, tt.now)); got != tt.due {
			t.Errorf("%s: due %v, want %v", tt.name, got, tt.due)
		}
	}
}

func TestNothingIsDueAtTheFirstStart(t *testing.T) {
	s, err := ParseTimes("* * * * *", time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	if s.Due(time.Time{}, time.Date(2026, 3, 5, 3, 0, 0, 0, time.UTC)) {
		t.Error("due without a last run")
	}
}

func TestNextAroundChangesOfTheClock(t *testing.T) {
	for _, tt := range []struct{ zone, cron, after, want string }{
		// Left out: as soon as the clock has gone forward.
		{"Europe/Berlin", "30 2 * * *", "2026-03-29T01:45:00+01:00", "2026-03-29T03:00:00+02:00"},
		{"America/New_York", "30 2 * * *", "2026-03-08T01:45:00-05:00", "2026-03-08T03:00:00-04:00"},
		{"America/New_York", "30 2 * * 0", "2026-03-02T00:00:00-05:00", "2026-03-08T03:00:00-04:00"},
		{"Australia/Lord_Howe", "15 2 * * *", "2026-10-04T01:59:00+10:30", "2026-10-04T02:30:00+11:00"},
		{"Pacific/Apia", "0 3 30 12 *", "2011-12-01T00:00:00-10:00", "2011-12-31T00:00:00+14:00"}, // a whole day
		{"America/Sao_Paulo", "0 0 * * *", "2018-11-03T12:00:00-03:00", "2018-11-04T01:00:00-02:00"},
		// Twice: the first, and not again.
		{"Europe/Berlin", "30 2 * * *", "2026-10-25T01:45:00+02:00", "2026-10-25T02:30:00+02:00"},
		{"Europe/Berlin", "30 2 * * *", "2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"},
		{"Europe/Berlin", "30 2 * * *", "2026-10-25T02:10:00+01:00", "2026-10-26T02:30:00+01:00"},
		{"America/New_York", "30 1 * * *", "2026-11-01T00:45:00-04:00", "2026-11-01T01:30:00-04:00"},
		{"America/New_York", "30 1 * * *", "2026-11-01T01:15:00-05:00", "2026-11-02T01:30:00-05:00"},
		// The end of the hour that comes twice is no part of it.
		{"Europe/Berlin", "0 3 * * *", "2026-10-25T02:30:00+02:00", "2026-10-25T03:00:00+01:00"},
		{"Europe/Berlin", "0 * * * *", "2026-10-25T02:00:00+02:00", "2026-10-25T03:00:00+01:00"},
	} {
		s, err := ParseTimes(tt.cron, zone(t, tt.zone))
		if err != nil {
			t.Fatal(err)
		}
		after, err := time.Parse(time.RFC3339, tt.after)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Next(after).Format(time.RFC3339); got != tt.want {
			t.Errorf("%s %q after %s: %s, want %s", tt.zone, tt.cron, tt.after, got, tt.want)
		}
	}
}

// TestNextAndDueAgree: at random times, Next is later, and a run is due from
// Next on and not before.
func TestNextAndDueAgree(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, name := range []string{"Europe/Berlin", "America/New_York", "UTC", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kathmandu", "Pacific/Apia"} {
		l := zone(t, name)
		for _, expression := range []string{"30 2 * * *", "0 0 * * *", "*/7 1-3 * * *", "30 2 * * 0", "0 3 1 * *", "59 23 31 * *"} {
			s, err := ParseTimes(expression, l)
			if err != nil {
				t.Fatal(err)
			}
			for range 100 {
				last := time.Unix(1_293_840_000+random.Int64N(20*365*86400), random.Int64N(1e9)) // from 2011 on
				if start, _ := last.In(l).ZoneBounds(); random.IntN(2) == 0 && !start.IsZero() {
					last = start.Add(time.Duration(random.Int64N(int64(6*time.Hour))) - 3*time.Hour)
				}
				next := s.Next(last)
				if !next.After(last) || s.Due(last, next.Add(-time.Nanosecond)) || !s.Due(last, next) {
					t.Fatalf("%s %q after %s: next %s, due before %v, due then %v", name, expression, last.In(l), next,
						s.Due(last, next.Add(-time.Nanosecond)), s.Due(last, next))
				}
				if s.Due(next, next) || s.Due(next, last) {
					t.Fatalf("%s %q: due again at %s", name, expression, next)
				}
				// What comes later does not come earlier from a later start.
				if later := last.Add(time.Duration(random.Int64N(int64(4 * time.Hour)))); s.Next(later).Before(next) {
					t.Fatalf("%s %q: next after %s is %s, after the later %s it is %s", name, expression, last.In(l), next, later.In(l), s.Next(later))
				}
			}
		}
	}
}

// TestAYearOfLooks looks at schedules every 23 minutes for a year, through both
// changes of the clock: each day or week has exactly one run.
func TestAYearOfLooks(t *testing.T) {
	for _, name := range []string{"Europe/Berlin", "America/New_York", "UTC", "Australia/Lord_Howe"} {
		l := zone(t, name)
		for expression, want := range map[string]int{"30 2 * * *": 365, "0 0 * * *": 365, "30 2 * * 0": 52, "15 3 1 * *": 12} {
			s, err := ParseTimes(expression, l)
			if err != nil {
				t.Fatal(err)
			}
			last := time.Date(2026, 1, 1, 0, 0, 0, 0, l).Add(-time.Minute)
			runs := 0
			for now := last; now.Before(time.Date(2027, 1, 1, 0, 0, 0, 0, l)); now = now.Add(23 * time.Minute) {
				if s.Due(last, now) {
					runs++
					last = now
				}
			}
			if runs != want {
				t.Errorf("%s %q: %d runs, want %d", name, expression, runs, want)
			}
		}
	}
}

func TestBadCron(t *testing.T) {
	for _, s := range []string{"", "* * *", "61 * * * *", "0 0 30 2 *", "@every 1h", "@reboot", "CRON_TZ=UTC 0 0 * * *", "nonsense"} {
		if _, err := ParseTimes(s, time.UTC); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

func TestOnBattery(t *testing.T) {
	for name, tt := range map[string]struct {
		supplies map[string]string // "name/file": content
		want     bool
	}{
		"none":                         {nil, false},
		"on mains":                     {map[string]string{"AC/type": "Mains", "AC/online": "1", "BAT0/type": "Battery", "BAT0/status": "Charging"}, false},
		"full on mains":                {map[string]string{"AC/type": "Mains", "AC/online": "1", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, false},
		"on battery":                   {map[string]string{"AC/type": "Mains", "AC/online": "0", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, true},
		"UPS":                          {map[string]string{"ups/type": "Battery", "ups/status": "Discharging", "ups/scope": "System"}, true},
		"mouse":                        {map[string]string{"mouse/type": "Battery", "mouse/status": "Discharging", "mouse/scope": "Device"}, false},
		"on a charger with PPS":        {map[string]string{"usb/type": "USB", "usb/online": "2", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, false},
		"USB without a charger":        {map[string]string{"usb/type": "USB", "usb/online": "0", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, true},
		"mouse on its cable":           {map[string]string{"m/type": "USB", "m/scope": "Device", "m/online": "1", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, true},
		"two, one discharges":          {map[string]string{"AC/type": "Mains", "AC/online": "0", "BAT0/type": "Battery", "BAT0/status": "Not charging", "BAT1/type": "Battery", "BAT1/status": "Discharging"}, true},
		"charging, of no known supply": {map[string]string{"BAT0/type": "Battery", "BAT0/status": "Charging"}, false},
		"no files":                     {map[string]string{"x/uevent": ""}, false},
		"charged by USB":               {map[string]string{"usb/type": "USB", "usb/online": "1", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, false},
	} {
		sys := t.TempDir()
		for file, content := range tt.supplies {
			path := filepath.Join(sys, "class/power_supply", file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := OnBattery(sys); err != nil || got != tt.want {
			t.Errorf("%s: %v %v, want %v", name, got, err, tt.want)
		}
	}
}
