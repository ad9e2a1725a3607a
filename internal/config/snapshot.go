package config

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/btrfs-governor/btrfs-governor/internal/schedule"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
	"github.com/btrfs-governor/btrfs-governor/snapshot/retention"
)

// Snapshots says of what snapshots are taken, when, and which are kept.
type Snapshots struct {
	// Timezone is the zone of all times below, and of days and hours.
	Timezone string          `yaml:"timezone"`
	Pools    []SnapshotsPool `yaml:"pools"`
}

// SnapshotsPool says so of one pool.
type SnapshotsPool struct {
	Pool       string         `yaml:"pool"`       // UUID or label
	Subvolumes []string       `yaml:"subvolumes"` // from the top of the pool; / is the top
	Directory  string         `yaml:"directory"`  // from the top of the pool
	Cron       string         `yaml:"cron"`
	Retention  Retention      `yaml:"retention"`
	MinFree    Size           `yaml:"min_free"`
	Hooks      SnapshotsHooks `yaml:"hooks"`
}

// Retention says which snapshots are kept, see retention.Policy.
type Retention struct {
	KeepLast int      `yaml:"keep_last"`
	Hourly   int      `yaml:"hourly"`
	Daily    int      `yaml:"daily"`
	Weekly   int      `yaml:"weekly"`
	Monthly  int      `yaml:"monthly"`
	Yearly   int      `yaml:"yearly"`
	MaxAge   Duration `yaml:"max_age"`
	KeepMin  int      `yaml:"keep_min"`
}

// SnapshotsHooks are commands that run before and after, see snapshot.Hooks.
type SnapshotsHooks struct {
	Before  []string `yaml:"before"`
	After   []string `yaml:"after"`
	Timeout Duration `yaml:"timeout"`
}

func (s *Snapshots) validate() *keyError {
	location, bad := validateTimezone("snapshots.timezone", s.Timezone)
	if bad != nil {
		return bad
	}
	pools := make(map[string]bool)
	for i := range s.Pools {
		p := &s.Pools[i]
		key := fmt.Sprintf("snapshots.pools[%d]", i)
		if p.Pool == "" {
			return &keyError{key, "has no pool; give its UUID or label"}
		}
		if pools[p.Pool] {
			return &keyError{key + ".pool", fmt.Sprintf("is %q a second time", p.Pool)}
		}
		pools[p.Pool] = true
		if bad := p.validate(key, location); bad != nil {
			return bad
		}
	}
	return nil
}

func (p *SnapshotsPool) validate(key string, location *time.Location) *keyError {
	if len(p.Subvolumes) == 0 {
		return &keyError{key, "has no subvolumes; list those to take snapshots of, such as [@, @home]"}
	}
	seen := make(map[string]bool)
	for i, path := range p.Subvolumes {
		key := fmt.Sprintf("%s.subvolumes[%d]", key, i)
		if path == "" {
			return &keyError{key, "is empty; the top of the pool is /"}
		}
		clean, err := snapshot.CleanPath(path)
		if err != nil {
			return &keyError{key, fmt.Sprintf("must be a path from the top of the pool such as @home, not %q", path)}
		}
		if seen[clean] {
			return &keyError{key, fmt.Sprintf("names %q a second time", path)}
		}
		seen[clean] = true
	}
	if clean, err := snapshot.CleanPath(p.Directory); err != nil || clean == "" && p.Directory != "" {
		return &keyError{key + ".directory", fmt.Sprintf("must be a path from the top of the pool such as .snapshots, not %q", p.Directory)}
	}
	if p.Cron != "" {
		if _, err := schedule.ParseTimes(p.Cron, location); err != nil {
			return &keyError{key + ".cron", fmt.Sprintf("is wrong: %s", err)}
		}
	}
	r := &p.Retention
	for _, c := range []struct {
		name  string
		count int
	}{
		{"keep_last", r.KeepLast}, {"hourly", r.Hourly}, {"daily", r.Daily}, {"weekly", r.Weekly},
		{"monthly", r.Monthly}, {"yearly", r.Yearly}, {"keep_min", r.KeepMin},
	} {
		if c.count < 0 {
			return &keyError{key + ".retention." + c.name, fmt.Sprintf("must be 0 or more, not %d", c.count)}
		}
	}
	if r.MaxAge < 0 {
		return &keyError{key + ".retention.max_age", fmt.Sprintf("must not be negative, as %s is", r.MaxAge)}
	}
	for _, h := range []struct {
		name    string
		command []string
	}{{"before", p.Hooks.Before}, {"after", p.Hooks.After}} {
		if len(h.command) > 0 && !filepath.IsAbs(h.command[0]) {
			return &keyError{key + ".hooks." + h.name, fmt.Sprintf("must begin with the absolute path of a program, not %q", h.command[0])}
		}
	}
	if p.Hooks.Timeout < 0 {
		return &keyError{key + ".hooks.timeout", fmt.Sprintf("must not be negative, as %s is", p.Hooks.Timeout)}
	}
	return nil
}

// SnapshotSettings returns the settings of the snapshot runner.
func (c *Config) SnapshotSettings() snapshot.Settings {
	location := locationOf(c.Snapshots.Timezone)
	settings := snapshot.Settings{Location: location, Excludes: c.Pools.Excludes}
	for i := range c.Snapshots.Pools {
		p := &c.Snapshots.Pools[i]
		r := p.Retention
		s := snapshot.PoolSettings{
			Pool: p.Pool, MinFree: uint64(p.MinFree), Directory: clean(p.Directory),
			Retention: retention.Policy{
				KeepLast: r.KeepLast, Hourly: r.Hourly, Daily: r.Daily, Weekly: r.Weekly, Monthly: r.Monthly, Yearly: r.Yearly,
				MaxAge: time.Duration(r.MaxAge), KeepMin: r.KeepMin,
			},
			Hooks: snapshot.Hooks{Before: p.Hooks.Before, After: p.Hooks.After, Timeout: time.Duration(p.Hooks.Timeout)},
		}
		if s.Directory == "" {
			s.Directory = snapshot.DefaultDirectory
		}
		for _, path := range p.Subvolumes {
			s.Subvolumes = append(s.Subvolumes, clean(path))
		}
		if p.Cron != "" {
			times, err := schedule.ParseTimes(p.Cron, location)
			if err == nil { // validate lets no other pass
				s.Schedule = times
			}
		}
		settings.Pools = append(settings.Pools, s)
	}
	return settings
}

// clean returns a path that validate has seen.
func clean(path string) string {
	c, err := snapshot.CleanPath(path)
	if err != nil {
		return ""
	}
	return c
}
