package selfstat

import (
	"math"
	"os"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// family is a metric as it is exposed.
type family struct {
	header string // HELP and TYPE
	value  float64
}

func gather(t *testing.T, c prometheus.Collector) map[string]family {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	byName := make(map[string]family)
	for _, f := range families {
		m := f.GetMetric()[0]
		byName[f.GetName()] = family{
			header: f.GetHelp() + "; " + f.GetType().String(),
			value:  m.GetGauge().GetValue() + m.GetCounter().GetValue(),
		}
	}
	return byName
}

// The figures are those of client_golang's collector, under the same names.
func TestFiguresAreThoseOfTheClientLibrary(t *testing.T) {
	ours, err := NewCollector()
	if err != nil {
		t.Fatal(err)
	}
	got, want := gather(t, ours), gather(t, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for name, within := range map[string]float64{ // relative
		"process_cpu_seconds_total":     0.5, // it is short, and theirs counts in hundredths
		"process_open_fds":              0.5,
		"process_max_fds":               0,
		"process_virtual_memory_bytes":  0.2,
		"process_resident_memory_bytes": 0.5,
		"process_start_time_seconds":    0,
	} {
		g, w := got[name], want[name]
		if g.header != w.header {
			t.Errorf("%s: %q, want %q", name, g.header, w.header)
		}
		if math.Abs(g.value-w.value) > within*math.Max(g.value, w.value)+0.02 {
			t.Errorf("%s is %g, theirs %g", name, g.value, w.value)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s is ours alone", name)
	}
}

func TestOpenFilesAreCounted(t *testing.T) {
	before, err := countFDs()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	after, err := countFDs()
	if err != nil {
		t.Fatal(err)
	}
	if after != before+1 {
		t.Errorf("%d open files after opening one more than %d", after, before)
	}
}

func TestLint(t *testing.T) {
	c, err := NewCollector()
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}
