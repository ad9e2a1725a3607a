package config_test

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/btrfs-governor/btrfs-governor/internal/config"
)

func TestBadReloadKeepsTheLastGoodConfiguration(t *testing.T) {
	var (
		next *config.Config
		bad  error
		// cannotUse is why a good file cannot be put to use.
		cannotUse error
		applied   []*config.Config
	)
	first := config.Default()
	r, err := config.NewReloader(first,
		func() (*config.Config, error) { return next, bad },
		func(c *config.Config) (func(), error) {
			return func() { applied = append(applied, c) }, cannotUse
		})
	if err != nil {
		t.Fatal(err)
	}

	expect := func(step string, success float64, last *config.Config, times int) {
		t.Helper()
		if len(applied) != times || applied[len(applied)-1] != last {
			t.Errorf("%s: applied %v, want %d and last %v", step, applied, times, last)
		}
		got := gather(t, r)
		if v := got["btrfs_governor_config_last_reload_successful"]; v != success {
			t.Errorf("%s: last_reload_successful is %v, want %v", step, v, success)
		}
		if v := got["btrfs_governor_config_last_reload_success_timestamp_seconds"]; time.Since(time.UnixMilli(int64(v*1e3))).Abs() > time.Minute {
			t.Errorf("%s: success timestamp is %v, which is not now", step, v)
		}
	}
	expect("start", 1, first, 1)

	bad = errors.New("config.yml:1: wrong")
	if err := r.Reload(); !errors.Is(err, bad) {
		t.Errorf("got %v, want %v", err, bad)
	}
	expect("bad reload", 0, first, 1)

	next, bad, cannotUse = config.Default(), nil, errors.New("the token cannot be read")
	if err := r.Reload(); !errors.Is(err, cannotUse) {
		t.Errorf("got %v, want %v", err, cannotUse)
	}
	expect("good file that cannot be used", 0, first, 1)

	cannotUse = nil
	next, bad = &config.Config{Scrape: config.Scrape{Timeout: config.Duration(time.Second)}}, nil
	if err := r.Reload(); err != nil {
		t.Error(err)
	}
	expect("good reload", 1, next, 2)
}

// gather returns the value of each gauge of a collector.
func gather(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, f := range families {
		values[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
	}
	return values
}
