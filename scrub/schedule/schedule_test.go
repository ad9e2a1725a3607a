package schedule

import (
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

// TestAYearOfMinutes runs schedules for a year, minute by minute, through both
// changes of the clock: each day or week has exactly one run.
func TestAYearOfMinutes(t *testing.T) {
	for _, name := range []string{"Europe/Berlin", "America/New_York", "UTC", "Australia/Lord_Howe"} {
		l := zone(t, name)
		for expression, want := range map[string]int{"30 2 * * *": 365, "0 0 * * *": 365, "30 2 * * 0": 52, "15 3 1 * *": 12} {
			s, err := ParseTimes(expression, l)
			if err != nil {
				t.Fatal(err)
			}
			last := time.Date(2026, 1, 1, 0, 0, 0, 0, l).Add(-time.Minute)
			runs := 0
			for now := last; now.Before(time.Date(2027, 1, 1, 0, 0, 0, 0, l)); now = now.Add(7 * time.Minute) {
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
		"none":           {nil, false},
		"on mains":       {map[string]string{"AC/type": "Mains", "AC/online": "1", "BAT0/type": "Battery", "BAT0/status": "Charging"}, false},
		"full on mains":  {map[string]string{"AC/type": "Mains", "AC/online": "1", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, false},
		"on battery":     {map[string]string{"AC/type": "Mains", "AC/online": "0", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, true},
		"UPS":            {map[string]string{"ups/type": "Battery", "ups/status": "Discharging", "ups/scope": "System"}, true},
		"mouse":          {map[string]string{"mouse/type": "Battery", "mouse/status": "Discharging", "mouse/scope": "Device"}, false},
		"charged by USB": {map[string]string{"usb/type": "USB", "usb/online": "1", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, false},
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
