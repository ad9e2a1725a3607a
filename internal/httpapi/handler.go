// Package httpapi makes the HTTP handler of the daemon: the exposition, the
// status page, the lifecycle endpoints, as other exporters and Prometheus have
// them, and the API.
package httpapi

import (
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
)

// Config is what the handler needs. All of it must be set, except for
// MaxRequests, Process, History and DeviceErrors.
type Config struct {
	Logger log.Logger
	// Version is what the status page shows, likewise Host.
	Version string
	Host    string
	// TelemetryPath is the path of the exposition; see CheckTelemetryPath.
	TelemetryPath string
	// MaxRequests is how many scrapes are answered at once; 0 is no limit.
	MaxRequests int
	// Pools gives the metrics of the pools.
	Pools PoolCollectors
	// Process are the metrics about the program itself, part of every
	// exposition.
	Process []prometheus.Collector
	// Ready reports whether the daemon serves; before it does, and while it
	// stops, it does not.
	Ready func() bool
	// Reload reads the configuration again.
	Reload func() error

	// History is what the pools held; nil where nothing of it is kept.
	History History
	// DeviceErrors remembers the error counters; nil where nothing does.
	DeviceErrors DeviceErrors

	// Jobs are those of the runners.
	Jobs *job.Store
	// Those that follow are nil where nothing may be changed (--read-only).
	Scrubs        Scrubs
	Snapshots     Snapshots
	Alerts        AlertActions
	Notifications Notifications
	Token         *Token
	// Stopping is closed when the daemon stops: event streams then end. nil
	// never is.
	Stopping <-chan struct{}
}

// PoolCollectors are the pools, see collector.Exporter.
type PoolCollectors interface {
	// Collector gives the collector that gathers the named ones, or all that
	// are enabled when no name is given. An unknown or disabled name is an
	// error that names it.
	Collector(names ...string) (prometheus.Collector, error)
	// Pools reads all pools.
	Pools() ([]collector.PoolReading, error)
}

// History is what the pools held, see history.Store and history.Prometheus. It
// answers at once.
type History interface {
	// Samples returns at most so many samples of a pool from a time on, the oldest
	// first: of each part of that time the last.
	Samples(pool btrfs.UUID, since time.Time, most int) []history.Sample
	// Forecast is false where there is none: with less than a day of samples, or
	// none of late.
	Forecast(pool btrfs.UUID) (history.Forecast, bool)
}

// DeviceErrors remembers when the error counters of devices rose, see history.Store.
type DeviceErrors interface {
	DeviceErrors(pool btrfs.UUID) map[uint64]history.DeviceErrors
}

// CheckTelemetryPath returns why a path cannot be that of the exposition.
func CheckTelemetryPath(p string) error {
	switch {
	case !strings.HasPrefix(p, "/") || path.Clean(p) != p || strings.ContainsAny(p, "{}?#% "):
		return fmt.Errorf("%q is no plain absolute path such as /metrics", p)
	case p == "/" || slices.ContainsFunc(append([]string{"/-", "/api"}, pagePaths...), func(taken string) bool {
		return p == taken || strings.HasPrefix(p, taken+"/")
	}):
		return fmt.Errorf("%q is taken; choose another path such as /metrics", p)
	}
	return nil
}

// New returns the handler of all routes.
func New(cfg Config) (http.Handler, error) {
	metrics, err := newMetricsHandler(cfg)
	if err != nil {
		return nil, err
	}
	a := &api{cfg}
	status, err := newPage(a)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	status.register(mux)
	mux.Handle("GET "+cfg.TelemetryPath, metrics)
	mux.Handle("GET /-/healthy", healthy())
	mux.Handle("GET /-/ready", ready(cfg.Ready))
	mux.Handle("POST /-/reload", a.reload())
	a.register(mux)

	// A page of another site that a browser shows must not post here.
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.audit(r, http.StatusForbidden, "")
		problemf(http.StatusForbidden, "Requests from the pages of other sites are refused.").write(w)
	}))
	return protection.Handler(mux), nil
}

// Limits of a connection. The write timeout covers the slowest scrape that a
// configuration allows, so that a client which never reads its answer cannot
// keep its place among MaxRequests for good.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 30 * time.Second
	writeTimeout      = 6 * time.Minute
	idleTimeout       = 6 * time.Minute // Prometheus keeps its connections for 5
	maxHeaderBytes    = 64 << 10
)

// NewServer returns a server with bounds on what a client can make it hold.
func NewServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
	}
}
