// Package config reads the configuration file. Reading is strict: what the
// program would ignore is an error that says file, line and key. Every key has
// a default, so that an empty file is a good one.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/prometheus/common/model"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
)

// maxSize bounds what is read of a configuration file, in bytes.
const maxSize = 1 << 20

// Config is the content of the configuration file. examples/config.yml
// describes every key.
type Config struct {
	Scrape    Scrape    `yaml:"scrape"`
	Pools     Pools     `yaml:"pools"`
	API       API       `yaml:"api"`
	Scrub     Scrub     `yaml:"scrub"`
	Snapshots Snapshots `yaml:"snapshots"`
	// Alertmanager says what is done about alerts.
	Alertmanager Alertmanager `yaml:"alertmanager"`
	// Notify says to whom notifications are sent on.
	Notify Notify `yaml:"notify"`
}

// Scrape says how pools are read for a scrape.
type Scrape struct {
	// Timeout is how long the reading of one pool may take before the scrape
	// goes on without it.
	Timeout Duration `yaml:"timeout"`
}

// Pools says which pools are exported.
type Pools struct {
	// Exclude names pools by UUID or label.
	Exclude []string `yaml:"exclude"`
}

// Excludes reports whether a pool is to be left out. A UUID matches in either
// case, a label exactly.
func (p *Pools) Excludes(uuid btrfs.UUID, label string) bool {
	for _, name := range p.Exclude {
		if name == label || strings.EqualFold(name, uuid.String()) {
			return true
		}
	}
	return false
}

// Duration is a time.Duration that is written as Prometheus or Go does: 8s,
// 1m30s, 500ms, 1d.
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	if parsed, err := model.ParseDuration(s); err == nil {
		*d = Duration(parsed)
		return nil
	}
	parsed, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 8s or 1m30s", s)
	}
	*d = Duration(parsed)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String returns the form that Go prints.
func (d Duration) String() string { return time.Duration(d).String() }

// Default returns the configuration that an empty file gives.
func Default() *Config {
	return &Config{
		Scrape:    Scrape{Timeout: Duration(8 * time.Second)},
		Scrub:     Scrub{MaxPools: 1, Timezone: localZone, OnBattery: holdOnBattery},
		Snapshots: Snapshots{Timezone: localZone},
		Alertmanager: Alertmanager{
			Silences: Silences{Operations: alertmanager.Operations()},
		},
	}
}

// Bounds of scrape.timeout. Below the lower one a healthy pool whose disks
// have to spin up first is lost; above the upper one no Prometheus still
// waits.
const (
	minScrapeTimeout = Duration(100 * time.Millisecond)
	maxScrapeTimeout = Duration(5 * time.Minute)
)

// validate returns what is wrong with the values.
func (c *Config) validate() *keyError {
	if t := c.Scrape.Timeout; t < minScrapeTimeout || t > maxScrapeTimeout {
		return &keyError{"scrape.timeout", fmt.Sprintf("must be from %s to %s, not %s", minScrapeTimeout, maxScrapeTimeout, t)}
	}
	if bad := validatePools("pools.exclude", c.Pools.Exclude); bad != nil {
		return bad
	}
	if bad := c.API.validate(); bad != nil {
		return bad
	}
	if bad := c.Scrub.validate(); bad != nil {
		return bad
	}
	if bad := c.Snapshots.validate(); bad != nil {
		return bad
	}
	if bad := c.Alertmanager.validate(&c.Snapshots); bad != nil {
		return bad
	}
	return c.Notify.validate()
}

// validatePools returns what is wrong with a list of UUIDs and labels.
func validatePools(list string, names []string) *keyError {
	seen := make(map[string]bool, len(names))
	for i, name := range names {
		key := fmt.Sprintf("%s[%d]", list, i)
		if name == "" {
			return &keyError{key, "is empty; give the UUID or the label of a pool"}
		}
		if seen[name] {
			return &keyError{key, fmt.Sprintf("names %q a second time", name)}
		}
		seen[name] = true
	}
	return nil
}

// Load reads a configuration file. With optional a file that does not exist
// is an empty one.
func Load(path string, optional bool) (*Config, error) {
	data, err := readFile(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return Parse(path, data)
}

// readFile reads a file of which the size is bounded.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSize {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxSize)
	}
	return data, nil
}
