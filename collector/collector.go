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
	describe(ch chan<- *prometheus.Desc)
	update(f *Facts, ch chan<- prometheus.Metric) error
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
	logger     log.Logger
	source     Source
	collectors []namedCollector

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
	}
	e.SetExclude(c.Exclude)
	known := registrations()
	for _, name := range slices.Compact(slices.Sorted(slices.Values(c.Enabled))) {
		i := slices.IndexFunc(known, func(r registration) bool { return r.Name == name })
		if i < 0 {
			return nil, unknownCollector(name, known)
		}
		e.collectors = append(e.collectors, namedCollector{name, known[i].new()})
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

var (
	successDesc = prometheus.NewDesc("btrfs_scrape_collector_success",
		"Whether a collector (or discovery, or the reading of a pool) succeeded.", []string{"collector", "uuid"}, nil)
	durationDesc = prometheus.NewDesc("btrfs_scrape_collector_duration_seconds",
		"How long a collector (or discovery, or the reading of a pool) took.", []string{"collector", "uuid"}, nil)
)

// Describe implements prometheus.Collector.
func (s *scrape) Describe(ch chan<- *prometheus.Desc) {
	ch <- successDesc
	ch <- durationDesc
	for _, c := range s.collectors {
		c.describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (s *scrape) Collect(ch chan<- prometheus.Metric) {
	start := time.Now()
	readings, err := s.exporter.read()
	s.exporter.logDiscovery(err)
	report(ch, stageDiscovery, "", err == nil, time.Since(start))

	seen := make(map[btrfs.UUID]bool)
	for r := range readings {
		// The same filesystem may be known from the mount table and from
		// sysfs: one set of series is right.
		if r.uuid.IsZero() || seen[r.uuid] || r.excluded {
			continue
		}
		seen[r.uuid] = true
		s.translate(r, ch)
	}
}

func (s *scrape) translate(r reading, ch chan<- prometheus.Metric) {
	uuid := r.uuid.String()
	report(ch, stageRead, uuid, r.err == nil, r.took)
	for _, c := range s.collectors {
		if r.facts == nil {
			report(ch, c.name, uuid, false, 0)
			continue
		}
		start := time.Now()
		err := c.update(r.facts, ch)
		if err != nil {
			level.Debug(s.exporter.logger).Log("msg", "collector failed", "collector", c.name, "pool", uuid, "err", err)
		}
		report(ch, c.name, uuid, err == nil, time.Since(start))
	}
}

func report(ch chan<- prometheus.Metric, collector, uuid string, success bool, took time.Duration) {
	ch <- prometheus.MustNewConstMetric(successDesc, prometheus.GaugeValue, number(success), collector, uuid)
	ch <- prometheus.MustNewConstMetric(durationDesc, prometheus.GaugeValue, took.Seconds(), collector, uuid)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// labelValue makes a text from outside fit to be a label's value.
func labelValue(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// metrics sends the metrics of one pool.
type metrics struct {
	ch   chan<- prometheus.Metric
	uuid string
}

func (m metrics) gauge(d *prometheus.Desc, value float64, labels ...string) {
	m.send(d, prometheus.GaugeValue, value, labels)
}

func (m metrics) counter(d *prometheus.Desc, value float64, labels ...string) {
	m.send(d, prometheus.CounterValue, value, labels)
}

func (m metrics) send(d *prometheus.Desc, t prometheus.ValueType, value float64, labels []string) {
	m.ch <- prometheus.MustNewConstMetric(d, t, value, append([]string{m.uuid}, labels...)...)
}

// bytes sends a size if it is known.
func (m metrics) bytes(d *prometheus.Desc, size btrfs.Opt[uint64], labels ...string) {
	if v, ok := size.Get(); ok {
		m.gauge(d, float64(v), labels...)
	}
}

// flag sends 0 or 1 if it is known.
func (m metrics) flag(d *prometheus.Desc, f btrfs.Opt[bool], labels ...string) {
	if v, ok := f.Get(); ok {
		m.gauge(d, number(v), labels...)
	}
}

// desc returns the description of a metric that has the label uuid and the
// given ones.
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, append([]string{"uuid"}, labels...), nil)
}

// descs sends descriptions.
func descs(ch chan<- *prometheus.Desc, all ...*prometheus.Desc) {
	for _, d := range all {
		ch <- d
	}
}

// errNoChunks is returned by collectors that need the chunk tree.
var errNoChunks = errors.New("where the chunks lie is unknown: reading the chunk tree needs CAP_SYS_ADMIN")

func (e *Exporter) logDiscovery(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != e.discoveryFault && err != nil {
		level.Warn(e.logger).Log("msg", "could not find all mounted pools", "err", err)
	}
	e.discoveryFault = text
}
