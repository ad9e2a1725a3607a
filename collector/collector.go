// Package collector turns the facts of btrfs pools into Prometheus metrics:
// one file for each collector.
//
// A scrape reads each pool once, in a goroutine of its own and with a
// deadline, and hands the facts to every collector. Collectors only translate:
// they touch neither kernel nor files.
package collector

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// Info describes a collector for flags and documentation.
type Info struct {
	Name    string
	Help    string
	Default bool
}

// translator turns the facts of one pool into metrics. An error says which
// facts are unknown though they should not be; the metrics of those that are
// known are sent all the same.
type translator interface {
	metrics() []*metric
	update(f *Facts, m *metrics) error
}

type registration struct {
	Info
	new func() translator
}

// registrations are all collectors, in order of their names.
func registrations() []registration {
	return []registration{
		{Info{"allocation", "Block groups and device extents by type and profile.", true}, newAllocationCollector},
		{Info{"capacity", "Free, usable and stranded space by simulation of the chunk allocator.", true}, newCapacityCollector},
		{Info{"commit", "Transaction commit statistics.", true}, newCommitCollector},
		{Info{"device", "Members of the pool, their size and state.", true}, newDeviceCollector},
		{Info{"error", "Device error counters.", true}, newErrorCollector},
		{Info{"loss", "What the loss of devices would cost.", true}, newLossCollector},
		{Info{"metadata", "Spread of the metadata over the devices.", true}, newMetadataCollector},
		{Info{"pool", "Identity, size and state of the pool.", true}, newPoolCollector},
	}
}

// All returns the collectors there are, in order of their names.
func All() []Info {
	var infos []Info
	for _, r := range registrations() {
		infos = append(infos, r.Info)
	}
	return infos
}

// Names of what a scrape does before any collector runs, as they stand in the
// label collector of btrfs_scrape_collector_success.
const (
	stageDiscovery = "discovery" // find the mounted pools
	stageRead      = "read"      // read the facts of one pool
)

// Config is what an Exporter needs.
type Config struct {
	Logger log.Logger
	Source Source
	// Enabled are the names of the collectors to run.
	Enabled []string
	// Timeout is how long the reading of one pool may take before its series
	// are left out of a scrape.
	Timeout time.Duration
	// Exclude leaves out pools; nil leaves out none.
	Exclude func(uuid btrfs.UUID, label string) bool
}

// Exporter reads pools and exports their facts. It is safe for concurrent use.
type Exporter struct {
	logger      log.Logger
	source      Source
	collectors  []namedCollector
	metrics     []*metric // of all collectors, in order of their names
	expositions sync.Pool // of *exposition

	success, duration *metric

	mounts *btrfs.MountTable

	mu      sync.Mutex
	timeout time.Duration
	exclude func(btrfs.UUID, string) bool
	pollers map[string]*poller
	// discoveryFault is the last error of discovery, so that one that lasts
	// is logged once.
	discoveryFault string
}

type namedCollector struct {
	name string
	translator
}

// New returns an Exporter. It fails on the name of an unknown collector.
func New(c Config) (*Exporter, error) {
	e := &Exporter{
		logger:  c.Logger,
		source:  c.Source,
		timeout: c.Timeout,
		pollers: make(map[string]*poller),
		success: gauge("btrfs_scrape_collector_success",
			"Whether a collector (or discovery, or the reading of a pool) succeeded.", "collector"),
		duration: gauge("btrfs_scrape_collector_duration_seconds",
			"How long a collector (or discovery, or the reading of a pool) took.", "collector"),
	}
	e.duration.volatile = true
	e.metrics = []*metric{e.success, e.duration}
	e.SetExclude(c.Exclude)
	known := registrations()
	for _, name := range slices.Compact(slices.Sorted(slices.Values(c.Enabled))) {
		i := slices.IndexFunc(known, func(r registration) bool { return r.Name == name })
		if i < 0 {
			return nil, unknownCollector(name, known)
		}
		c := namedCollector{name, known[i].new()}
		e.collectors = append(e.collectors, c)
		e.metrics = append(e.metrics, c.metrics()...)
	}
	e.mounts = btrfs.NewMountTable(c.Source.Mounts)
	slices.SortFunc(e.metrics, func(a, b *metric) int { return cmp.Compare(a.name, b.name) })
	for i, m := range e.metrics {
		m.place = i
	}
	e.expositions.New = func() any {
		return &exposition{metrics: e.metrics, series: make([][]byte, len(e.metrics))}
	}
	return e, nil
}

func unknownCollector(name string, known []registration) error {
	var names []string
	for _, r := range known {
		names = append(names, r.Name)
	}
	return fmt.Errorf("unknown collector %q (known: %s)", name, strings.Join(names, ", "))
}

// SetTimeout changes how long the reading of one pool may take.
func (e *Exporter) SetTimeout(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.timeout = d
}

// SetExclude changes which pools are left out.
func (e *Exporter) SetExclude(exclude func(btrfs.UUID, string) bool) {
	if exclude == nil {
		exclude = func(btrfs.UUID, string) bool { return false }
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.exclude = exclude
}

// Collector returns a Prometheus collector that runs the named collectors, or
// all that are enabled if none is named. A name that is unknown or not enabled
// is an error.
func (e *Exporter) Collector(names ...string) (prometheus.Collector, error) {
	if len(names) == 0 {
		return &scrape{exporter: e, collectors: e.collectors}, nil
	}
	s := &scrape{exporter: e}
	for _, name := range names {
		i := slices.IndexFunc(e.collectors, func(c namedCollector) bool { return c.name == name })
		if i < 0 {
			if known := registrations(); !slices.ContainsFunc(known, func(r registration) bool { return r.Name == name }) {
				return nil, unknownCollector(name, known)
			}
			return nil, fmt.Errorf("collector %q is disabled (--no-collector.%s)", name, name)
		}
		if !slices.ContainsFunc(s.collectors, func(c namedCollector) bool { return c.name == name }) {
			s.collectors = append(s.collectors, e.collectors[i])
		}
	}
	slices.SortFunc(s.collectors, func(a, b namedCollector) int { return cmp.Compare(a.name, b.name) })
	return s, nil
}

// scrape is a prometheus.Collector over some of the collectors.
type scrape struct {
	exporter   *Exporter
	collectors []namedCollector
}

// Describe implements prometheus.Collector.
func (s *scrape) Describe(ch chan<- *prometheus.Desc) {
	ch <- s.exporter.success.desc
	ch <- s.exporter.duration.desc
	for _, c := range s.collectors {
		for _, m := range c.metrics() {
			ch <- m.desc
		}
	}
}

// Collect implements prometheus.Collector.
func (s *scrape) Collect(ch chan<- prometheus.Metric) { s.collect(metrics{ch: ch}) }

// AppendText appends what Collect sends, in the text format that Prometheus
// scrapes (version 0.0.4): to stable the metrics that stay as they are while
// nothing happens on the pools, to volatile the others.
func (s *scrape) AppendText(stable, volatile []byte) ([]byte, []byte) {
	e := s.exporter.expositions.Get().(*exposition)
	defer s.exporter.expositions.Put(e)
	e.reset()
	s.collect(metrics{text: e})
	return e.appendTo(stable, false), e.appendTo(volatile, true)
}

func (s *scrape) collect(m metrics) {
	start := time.Now()
	readings, err := s.exporter.read()
	s.exporter.logDiscovery(err)
	s.report(&m, stageDiscovery, err == nil, time.Since(start))

	seen := make(map[btrfs.UUID]bool)
	for r := range readings {
		// The same filesystem may be known from the mount table and from
		// sysfs: one set of series is right.
		if r.uuid.IsZero() || seen[r.uuid] || r.ignored {
			continue
		}
		seen[r.uuid] = true
		m.uuid = r.uuid.String()
		s.translate(r, &m)
	}
}

func (s *scrape) translate(r reading, m *metrics) {
	s.report(m, stageRead, r.err == nil, r.took)
	for _, c := range s.collectors {
		if r.facts == nil {
			s.report(m, c.name, false, 0)
			continue
		}
		start := time.Now()
		err := c.update(r.facts, m)
		if err != nil {
			level.Debug(s.exporter.logger).Log("msg", "collector failed", "collector", c.name, "pool", m.uuid, "err", err)
		}
		s.report(m, c.name, err == nil, time.Since(start))
	}
}

func (s *scrape) report(m *metrics, collector string, success bool, took time.Duration) {
	m.send(s.exporter.success, number(success), collector)
	m.send(s.exporter.duration, took.Seconds(), collector)
}

// errNoChunks is returned by collectors that need the chunk tree.
var errNoChunks = errors.New("where the chunks lie is unknown: reading the chunk tree needs CAP_SYS_ADMIN")

func (e *Exporter) logDiscovery(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	e.mu.Lock()
	changed := text != e.discoveryFault
	e.discoveryFault = text
	e.mu.Unlock()
	if changed && err != nil {
		level.Warn(e.logger).Log("msg", "could not find all mounted pools", "err", err)
	}
}
