package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	promconfig "github.com/prometheus/common/config"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/config"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
	"github.com/btrfs-governor/btrfs-governor/internal/httpclient"
)

// prometheusServer is a Prometheus, and how to talk to it.
type prometheusServer struct {
	url        *url.URL
	client     *http.Client
	inTheClear bool // what gives access to it
}

// prometheusServer returns what --prometheus.url and --prometheus.http-config say;
// nil where they say nothing.
func (c *serveCommand) prometheusServer() (*prometheusServer, error) {
	if c.prometheusURL == "" {
		if c.prometheusHTTP != "" {
			return nil, errors.New("--prometheus.http-config says how to talk to a Prometheus, and none is named: give --prometheus.url too")
		}
		return nil, nil //nolint:nilnil // there is none
	}
	u, err := history.CheckURL(c.prometheusURL)
	if err != nil {
		return nil, fmt.Errorf("--prometheus.url: %w", err)
	}
	settings := promconfig.DefaultHTTPClientConfig
	if c.prometheusHTTP != "" {
		if settings, err = config.LoadHTTP(c.prometheusHTTP); err != nil {
			return nil, fmt.Errorf("--prometheus.http-config: %w", err)
		}
	}
	client, err := httpclient.New(settings, "prometheus", programName)
	if err != nil {
		return nil, fmt.Errorf("make a client of Prometheus: %w", err)
	}
	return &prometheusServer{u, client, httpclient.InTheClear(u, &settings, false)}, nil
}

// upTime is how long the machine has been up, with the time that it was suspended.
func upTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // never fails
	return time.Duration(t.Nano())
}

// newHistory returns what tells what pools held, nil where nothing does, and the
// tasks that it needs. Without a state directory there is no store.
func newHistory(logger log.Logger, store *history.Store, exporter *collector.Exporter, server *prometheusServer) (httpapi.History, []task, error) {
	var (
		past  httpapi.History
		tasks []task
	)
	if store != nil {
		past = store
		tasks = append(tasks, history.NewSampler(logger, store, exporter, time.Now, upTime))
	}
	if server != nil {
		remote, err := history.NewPrometheus(history.PrometheusConfig{
			Logger: logger, URL: server.url, Client: server.client, Pools: exporter, Local: past, Now: time.Now,
		})
		if err != nil {
			return nil, nil, err
		}
		if server.inTheClear {
			level.Warn(logger).Log("msg", "What gives access goes over the network unencrypted; use https", "flag", "--prometheus.url")
		}
		past = remote
		tasks = append(tasks, remote)
	}
	return past, tasks, nil
}
