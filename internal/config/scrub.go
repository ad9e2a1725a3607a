package config

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/scrub/schedule"
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
	location, err := time.LoadLocation(s.Timezone)
	if err != nil || s.Timezone == "" {
		return &keyError{"scrub.timezone", fmt.Sprintf("must be a time zone such as Europe/Berlin, UTC or Local, not %q", s.Timezone)}
	}
	if s.OnBattery != holdOnBattery && s.OnBattery != runOnBattery {
		return &keyError{"scrub.on_battery", fmt.Sprintf("must be hold or run, not %q", s.OnBattery)}
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
		if c.Deadline < 0 {
			return &keyError{key + ".deadline", fmt.Sprintf("must not be negative, as %s is", c.Deadline)}
		}
		if o := c.options(); o.Validate() != nil {
			return &keyError{key, fmt.Sprintf("cannot be: %s", o.Validate())}
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

// ScrubSettings returns the settings of the scrub runner. sys is the mount point
// of sysfs.
func (c *Config) ScrubSettings(sys string) scrub.Settings {
	s := &c.Scrub
	// validate has seen to it that these parse.
	location, err := time.LoadLocation(s.Timezone)
	if err != nil {
		location = time.Local
	}
	settings := scrub.Settings{
		MaxPools: s.MaxPools, Excludes: c.Pools.Excludes,
		Hours: &schedule.Hours{Windows: s.Windows, Blackout: s.Blackout, Location: location},
	}
	if s.OnBattery == holdOnBattery {
		settings.OnBattery = func() bool {
			on, err := schedule.OnBattery(sys)
			return err == nil && on
		}
	}
	for i := range s.Schedules {
		c := &s.Schedules[i]
		times, err := schedule.ParseTimes(c.Cron, location)
		if err != nil {
			continue
		}
		settings.Schedules = append(settings.Schedules, scrub.Schedule{
			Name: c.Name, Pools: c.Pools, Options: c.options(), Within: time.Duration(c.Deadline), Due: times.Due,
		})
	}
	return settings
}

func (a *API) validate() *keyError {
	if a.TokenFile != "" && !filepath.IsAbs(a.TokenFile) {
		return &keyError{"api.token_file", fmt.Sprintf("must be an absolute path, not %q", a.TokenFile)}
	}
	return nil
}
