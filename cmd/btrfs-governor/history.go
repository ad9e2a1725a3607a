package main

import (
	"fmt"
	"net/url"
	"time"

	"github.com/go-kit/log"
	promconfig "github.com/prometheus/common/config"

	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
	"github.com/btrfs-governor/btrfs-governor/internal/httpclient"
)

// checkPrometheusURL returns what --prometheus.url says; nil where it says nothing.
func (c *serveCommand) checkPrometheusURL() (*url.URL, error) {
	if c.prometheusURL == "" {
		return nil, nil
	}
	u, err := history.CheckURL(c.prometheusURL)
	if err != nil {
		return nil, fmt.Errorf("--prometheus.url: %w", err)
	}
	return u, nil
}

// newHistory returns what tells what pools held, nil where nothing does, and the
// tasks that it needs. Without a state directory there is no store.
func newHistory(logger log.Logger, store *history.Store, exporter *collector.Exporter, prometheus *url.URL) (httpapi.History, []task, error) {
	var (
		past  httpapi.History
		tasks []task
	)
	if store != nil {
		past = store
		tasks = append(tasks, history.NewSampler(logger, store, exporter, time.Now))
	}
	if prometheus != nil {
		client, err := httpclient.New(promconfig.DefaultHTTPClientConfig, "prometheus", programName)
		if err != nil {
			return nil, nil, err
		}
		remote, err := history.NewPrometheus(history.PrometheusConfig{
			Logger: logger, URL: prometheus, Client: client, Pools: exporter, Local: past, Now: time.Now,
		})
		if err != nil {
			return nil, nil, err
		}
		past = remote
		tasks = append(tasks, remote)
	}
	return past, tasks, nil
}
