package collector

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// metric describes one metric. Its series have the label uuid and those in
// labels.
type metric struct {
	name, help string
	valueType  prometheus.ValueType
	labels     []string // uuid is the first
	// volatile marks a metric whose value is another one at each scrape, even
	// of a pool on which nothing happens.
	volatile bool

	desc  *prometheus.Desc
	text  textFormat
	place int // in exposition.series; set by New
}

// gauge describes a gauge that has the label uuid and the given ones.
func gauge(name, help string, labels ...string) *metric {
	return newMetric(name, help, prometheus.GaugeValue, labels)
}

// counter describes a counter that has the label uuid and the given ones.
func counter(name, help string, labels ...string) *metric {
	return newMetric(name, help, prometheus.CounterValue, labels)
}

func newMetric(name, help string, t prometheus.ValueType, labels []string) *metric {
	labels = append([]string{"uuid"}, labels...)
	return &metric{
		name: name, help: help, valueType: t, labels: labels,
		desc: prometheus.NewDesc(name, help, labels, nil),
		text: newTextFormat(name, help, t, labels),
	}
}

// textFormat holds the parts of a metric's exposition that are the same at
// each scrape.
type textFormat struct {
	header string      // the HELP and the TYPE line
	labels []textLabel // in order of their names, as client_golang writes them
}

type textLabel struct {
	lead  string // what stands before the value: `name{label="` or `",label="`
	value int    // which of the values
}

func newTextFormat(name, help string, t prometheus.ValueType, labels []string) textFormat {
	kind := "gauge"
	if t == prometheus.CounterValue {
		kind = "counter"
	}
	help = strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(help)
	f := textFormat{header: "# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n"}
	for i, label := range labels {
		f.labels = append(f.labels, textLabel{label, i})
	}
	slices.SortFunc(f.labels, func(a, b textLabel) int { return cmp.Compare(a.lead, b.lead) })
	for i := range f.labels {
		before := `",`
		if i == 0 {
			before = name + "{"
		}
		f.labels[i].lead = before + f.labels[i].lead + `="`
	}
	return f
}

// appendSeries appends a line of the text format 0.0.4.
func (f *textFormat) appendSeries(b []byte, value float64, uuid string, values []string) []byte {
	for _, l := range f.labels {
		b = append(b, l.lead...)
		if l.value == 0 {
			b = append(b, uuid...)
		} else {
			b = appendLabelValue(b, values[l.value-1])
		}
	}
	b = append(b, `"} `...)
	switch value { // the two that are most frequent
	case 0:
		b = append(b, '0')
	case 1:
		b = append(b, '1')
	default:
		b = strconv.AppendFloat(b, value, 'g', -1, 64)
	}
	return append(b, '\n')
}

func appendLabelValue(b []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; c {
		case '\\', '"':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		default:
			b = append(b, c)
		}
	}
	return b
}

// exposition collects the series of one scrape as text, each below its metric.
type exposition struct {
	metrics []*metric // in order of their names
	series  [][]byte  // of each
}

// appendTo appends the metrics that are volatile, or those that are not.
func (e *exposition) appendTo(b []byte, volatile bool) []byte {
	for i, m := range e.metrics {
		if m.volatile == volatile && len(e.series[i]) > 0 {
			b = append(b, m.text.header...)
			b = append(b, e.series[i]...)
		}
	}
	return b
}

func (e *exposition) reset() {
	for i := range e.series {
		e.series[i] = e.series[i][:0]
	}
}

// metrics takes the series of one pool: either a Prometheus registry wants
// them, or they are written as text at once. The text is what serve answers
// scrapes with: going through a registry costs ten times as much, for each
// series is allocated, hashed, sorted and checked anew.
type metrics struct {
	uuid string
	// One of the two is set.
	ch   chan<- prometheus.Metric
	text *exposition
}

// send sends a series with the values of the labels behind uuid.
func (m *metrics) send(to *metric, value float64, labels ...string) {
	if m.text != nil {
		series := &m.text.series[to.place]
		*series = to.text.appendSeries(*series, value, m.uuid, labels)
		return
	}
	m.ch <- prometheus.MustNewConstMetric(to.desc, to.valueType, value, append([]string{m.uuid}, labels...)...)
}

// bytes sends a size if it is known.
func (m *metrics) bytes(to *metric, size btrfs.Opt[uint64], labels ...string) {
	if v, ok := size.Get(); ok {
		m.send(to, float64(v), labels...)
	}
}

// flag sends 0 or 1 if it is known.
func (m *metrics) flag(to *metric, f btrfs.Opt[bool], labels ...string) {
	if v, ok := f.Get(); ok {
		m.send(to, number(v), labels...)
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// labelValue makes a text from outside fit to be a label's value.
func labelValue(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
