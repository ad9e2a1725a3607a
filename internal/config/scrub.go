package config

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/btrfs-governor/btrfs-governor/internal/schedule"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// API says how the daemon is commanded.
type API struct {
	// TokenFile holds the bearer token; empty is the file token in the state
	// directory, which is made if it is missing.
	TokenFile string `yaml:"token_file"`
}

// Scrub says when pools are scrubbed.
type Scrub struct {
	// MaxPools is how many pools are scrubbed at once.
	MaxPools int `yaml:"max_pools"`
	// Timezone is the zone of all times below, such as Europe/Berlin; Local is
	// that of the machine.
	Timezone string            `yaml:"timezone"`
	Windows  []schedule.Window `yaml:"windows"`
	Blackout []schedule.Window `yaml:"blackout"`
	// OnBattery is hold or run.
	OnBattery string          `yaml:"on_battery"`
	Schedules []ScrubSchedule `yaml:"schedules"`
}

// ScrubSchedule starts scrubs by the clock.
type ScrubSchedule struct {
	Name string `yaml:"name"`
	// Pools are UUIDs or labels; none is all.
	Pools    []string `yaml:"pools"`
	Cron     string   `yaml:"cron"`
	Mode     string   `yaml:"mode"` // auto if empty
	Limit    Size     `yaml:"limit"`
	ReadOnly bool     `yaml:"read_only"`
	// Deadline is how long a scrub may take; 0 is for ever.
	Deadline Duration `yaml:"deadline"`
}

// Size is a number of bytes, written as 50MB or 4TiB.
type Size uint64

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a size such as 50MB or 4TiB", text)
	}
	*s = Size(n)
	return nil
}

// Values of scrub.on_battery.
const (
	holdOnBattery = "hold"
	runOnBattery  = "run"
)

func (s *Scrub) validate() *keyError {
	if s.MaxPools < 1 {
		return &keyError{"scrub.max_pools", fmt.Sprintf("must be 1 or more, not %d", s.MaxPools)}
	}
	location, bad := validateTimezone("scrub.timezone", s.Timezone)
	if bad != nil {
		return bad
	}
	if s.OnBattery != holdOnBattery && s.OnBattery != runOnBattery {
		return &keyError{"scrub.on_battery", fmt.Sprintf("must be hold or run, not %q", s.OnBattery)}
	}
	if bad := validateWindows("scrub.windows", s.Windows); bad != nil {
		return bad
	}
	if bad := validateWindows("scrub.blackout", s.Blackout); bad != nil {
		return bad
	}
	// In UTC each week is like the other.
	hours := schedule.Hours{Windows: s.Windows, Blackout: s.Blackout, Location: time.UTC}
	if hours.NextOpen(time.Unix(0, 0)).IsZero() {
		return &keyError{"scrub.blackout", "leaves no time at which scrubs may run"}
	}
	names := make(map[string]bool)
	for i := range s.Schedules {
		c := &s.Schedules[i]
		key := fmt.Sprintf("scrub.schedules[%d]", i)
		if c.Name == "" {
			return &keyError{key, "has no name; its runs are remembered by it"}
		}
		if names[c.Name] {
			return &keyError{key + ".name", fmt.Sprintf("is %q a second time", c.Name)}
		}
		names[c.Name] = true
		if c.Cron == "" {
			return &keyError{key, "has no cron; give it times such as \"0 3 1 * *\""}
		}
		if _, err := schedule.ParseTimes(c.Cron, location); err != nil {
			return &keyError{key + ".cron", fmt.Sprintf("is wrong: %s", err)}
		}
		if bad := validatePools(key+".pools", c.Pools); bad != nil {
			return bad
		}
		if bad := c.validateOptions(key); bad != nil {
			return bad
		}
	}
	return nil
}

func validateWindows(list string, windows []schedule.Window) *keyError {
	for i, w := range windows {
		if w == (schedule.Window{}) { // an item without a value
			return &keyError{fmt.Sprintf("%s[%d]", list, i), "is empty; give a window such as 22:00-07:00"}
		}
	}
	return nil
}

func (c *ScrubSchedule) options() scrub.Options {
	o := scrub.Options{Mode: scrub.Mode(c.Mode), Limit: uint64(c.Limit), ReadOnly: c.ReadOnly}
	if o.Mode == "" {
		o.Mode = scrub.Auto
		if o.Limit > 0 {
			o.Mode = scrub.Limit
		}
	}
	return o
}

// Hours returns when scrubs may run.
func (c *Config) Hours() *schedule.Hours {
	return &schedule.Hours{Windows: c.Scrub.Windows, Blackout: c.Scrub.Blackout, Location: c.Scrub.location()}
}

// location is the zone of all times; validate has seen to it that there is one.
func (s *Scrub) location() *time.Location {
	return locationOf(s.Timezone)
}

// localZone is the name of the machine's time zone.
const localZone = "Local"

func validateTimezone(key, name string) (*time.Location, *keyError) {
	location, err := time.LoadLocation(name)
	if err != nil || name == "" { // which would be UTC
		return nil, &keyError{key, fmt.Sprintf("must be a time zone such as Europe/Berlin, UTC or Local, not %q", name)}
	}
	return location, nil
}

// locationOf returns a time zone that validate has seen.
func locationOf(name string) *time.Location {
	location, err := time.LoadLocation(name)
	if err != nil {
		return time.Local
	}
	return location
}

// Schedules returns the scrubs by the clock.
func (c *Config) Schedules() []scrub.Schedule {
	location := c.Scrub.location()
	var all []scrub.Schedule
	for i := range c.Scrub.Schedules {
		s := &c.Scrub.Schedules[i]
		times, err := schedule.ParseTimes(s.Cron, location)
		if err != nil {
			continue // validate lets none pass
		}
		all = append(all, scrub.Schedule{
			Name: s.Name, Pools: s.Pools, Options: s.options(), Within: time.Duration(s.Deadline), Due: times.Due,
		})
	}
	return all
}

// ScrubSettings returns the settings of the scrub runner. sys is the mount point
// of sysfs.
func (c *Config) ScrubSettings(sys string) scrub.Settings {
	settings := scrub.Settings{
		MaxPools: c.Scrub.MaxPools, Excludes: c.Pools.Excludes, Hours: c.Hours(), Schedules: c.Schedules(),
	}
	if c.Scrub.OnBattery == holdOnBattery {
		settings.OnBattery = func() bool {
			on, err := schedule.OnBattery(sys)
			return err == nil && on
		}
	}
	return settings
}

func (a *API) validate() *keyError {
	if a.TokenFile != "" && !filepath.IsAbs(a.TokenFile) {
		return &keyError{"api.token_file", fmt.Sprintf("must be an absolute path, not %q", a.TokenFile)}
	}
	return nil
}
