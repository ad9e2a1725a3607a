package collector_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/testprogram"
)

//go:generate go test -count=1 -run ^TestGolden . -update

const goldenDir = "../testdata/golden"

var update = flag.Bool("update", false, "write the golden expositions of testdata/golden")

// durations are the only values that differ from one scrape to the next.
var durations = regexp.MustCompile(`(?m)^(btrfs_scrape_collector_duration_seconds\{.*\}) .*$`)

func normalise(exposition string) string { return durations.ReplaceAllString(exposition, "$1 0") }

// recordedExporter exports a single recorded pool.
func recordedExporter(t *testing.T, name string) *collector.Exporter {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(recordedDir, name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pool.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := collector.NewRecordedSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	return newExporter(t, source)
}

// Each recorded pool gives the exposition that somebody has looked at.
func TestGoldenExpositions(t *testing.T) {
	names := recordedNames(t)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			all, err := recordedExporter(t, name).Collector()
			if err != nil {
				t.Fatal(err)
			}
			got := normalise(gather(t, all))
			golden := filepath.Join(goldenDir, name+".prom")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got (make generate updates it):\n%s", diff)
			}
			checkText(t, all, got)
			problems, err := promlint.New(strings.NewReader(got)).Lint()
			if err != nil {
				t.Error(err)
			}
			for _, p := range problems {
				t.Errorf("%s: %s", p.Metric, p.Text)
			}
		})
	}
	files, err := filepath.Glob(filepath.Join(goldenDir, "*.prom"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !slices.Contains(names, strings.TrimSuffix(filepath.Base(f), ".prom")) {
			t.Errorf("%s belongs to no recorded pool", f)
		}
	}
}

// checkText compares the text that serve answers scrapes with, which goes
// around the registry, with that of the registry.
func checkText(t *testing.T, c any, registry string) {
	t.Helper()
	direct, ok := c.(interface {
		AppendText(stable, volatile []byte) ([]byte, []byte)
	})
	if !ok {
		t.Fatalf("%T cannot write text", c)
	}
	stable, volatile := direct.AppendText(nil, nil)
	if diff := cmp.Diff(sorted(registry), sorted(normalise(string(stable)+string(volatile)))); diff != "" {
		t.Errorf("-registry +text:\n%s", diff)
	}
	if again, _ := direct.AppendText(nil, nil); string(again) != string(stable) {
		t.Error("what should stay as it is differs from one scrape to the next")
	}
}

// sorted puts the metrics of an exposition, and the series of each, in order.
func sorted(exposition string) []string {
	metrics := strings.Split(strings.TrimPrefix(exposition, "# HELP "), "\n# HELP ")
	for i, m := range metrics {
		lines := strings.Split(strings.TrimSuffix(m, "\n"), "\n")
		slices.Sort(lines[2:])
		metrics[i] = strings.Join(lines, "\n")
	}
	slices.Sort(metrics)
	return metrics
}

func TestGoldenExpositionsPassPromtool(t *testing.T) {
	promtool := testprogram.Find(t, "promtool", "prometheus")
	for _, name := range recordedNames(t) {
		text, err := os.ReadFile(filepath.Join(goldenDir, name+".prom"))
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(string(text))
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
