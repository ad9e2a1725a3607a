package config

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Reloader reads the configuration again while the program runs. A bad file
// changes nothing: the last good configuration stays. It is a
// prometheus.Collector that tells how the last reload went.
type Reloader struct {
	load    func() (*Config, error)
	prepare func(*Config) (use func(), err error)

	mu        sync.Mutex // one reload at a time
	succeeded prometheus.Gauge
	timestamp prometheus.Gauge
}

// NewReloader puts a configuration to use that was loaded already, and returns a
// Reloader for those to come. prepare makes of a configuration what can fail to be
// made, and changes nothing yet; what it returns puts it to use.
func NewReloader(first *Config, load func() (*Config, error), prepare func(*Config) (use func(), err error)) (*Reloader, error) {
	r := &Reloader{
		load:    load,
		prepare: prepare,
		succeeded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "btrfs_governor_config_last_reload_successful",
			Help: "Whether the last attempt to read the configuration was successful.",
		}),
		timestamp: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "btrfs_governor_config_last_reload_success_timestamp_seconds",
			Help: "When the configuration was last read successfully.",
		}),
	}
	return r, r.use(first)
}

// Reload reads the configuration and applies it if it is good.
func (r *Reloader) Reload() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	cfg, err := r.load()
	if err == nil {
		err = r.use(cfg)
	}
	if err != nil {
		r.succeeded.Set(0)
	}
	return err
}

func (r *Reloader) use(cfg *Config) error {
	use, err := r.prepare(cfg)
	if err != nil {
		return err
	}
	use()
	r.succeeded.Set(1)
	r.timestamp.Set(float64(time.Now().UnixMilli()) / 1e3)
	return nil
}

// Describe implements prometheus.Collector.
func (r *Reloader) Describe(ch chan<- *prometheus.Desc) {
	r.succeeded.Describe(ch)
	r.timestamp.Describe(ch)
}

// Collect implements prometheus.Collector.
func (r *Reloader) Collect(ch chan<- prometheus.Metric) {
	r.succeeded.Collect(ch)
	r.timestamp.Collect(ch)
}
