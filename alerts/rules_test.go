package alerts

import (
	"flag"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/btrfs-governor/btrfs-governor/internal/testprogram"
)

//go:generate go test -count=1 -run ^TestFileIsUpToDate$ . -update

var update = flag.Bool("update", false, "write the generated file again")

func TestFileIsUpToDate(t *testing.T) {
	want, err := Rules(Default)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(FileName, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := Files.ReadFile(FileName)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s is out of date: run `make generate`", FileName)
	}
}

// ruleFile is a file of rules as Prometheus reads it.
type ruleFile struct {
	Groups []struct {
		Name     string `yaml:"name"`
		Interval string `yaml:"interval"`
		Rules    []rule `yaml:"rules"`
	} `yaml:"groups"`
}

type rule struct {
	Record        string            `yaml:"record"`
	Alert         string            `yaml:"alert"`
	Expr          string            `yaml:"expr"`
	For           string            `yaml:"for"`
	KeepFiringFor string            `yaml:"keep_firing_for"`
	Labels        map[string]string `yaml:"labels"`
	Annotations   map[string]string `yaml:"annotations"`
}

func (r *rule) String() string { return r.Alert + "/" + r.Labels["severity"] }

// readRules reads the file. A field that Prometheus 2.42 does not know is an error.
func readRules(t *testing.T) []rule {
	t.Helper()
	data, err := Files.ReadFile(FileName)
	if err != nil {
		t.Fatal(err)
	}
	var file ruleFile
	decoder := yaml.NewDecoder(strings.NewReader(string(data)))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		t.Fatal(err)
	}
	var rules []rule
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	return rules
}

// promtool runs promtool of Debian's Prometheus.
func promtool(t *testing.T, args ...string) string {
	t.Helper()
	output, err := exec.Command(testprogram.Find(t, "promtool", "prometheus"), args...).CombinedOutput()
	if err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return string(output)
}

func TestPrometheusTakesTheRules(t *testing.T) {
	promtool(t, "check", "rules", FileName)
}

func testFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("tests/*.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files of tests: %v", len(files), err)
	}
	return files
}

func TestAlertsFireWhenTheyMust(t *testing.T) {
	for _, file := range testFiles(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			promtool(t, "test", "rules", file)
		})
	}
}

// Each alert of each severity is tested where it fires, with its whole text,
// where it does not, and after it fired.
func TestEachAlertIsTested(t *testing.T) {
	type testFile struct {
		Tests []struct {
			Name   string `yaml:"name"`
			Alerts []struct {
				At   string `yaml:"eval_time"`
				Name string `yaml:"alertname"`
				Want []struct {
					Labels      map[string]string `yaml:"exp_labels"`
					Annotations map[string]string `yaml:"exp_annotations"`
				} `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}
	fires, ends := make(map[string]bool), make(map[string]bool)
	for _, file := range testFiles(t) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var f testFile
		if err := yaml.Unmarshal(data, &f); err != nil {
			t.Fatal(err)
		}
		for _, test := range f.Tests {
			before := make(map[string]map[string]bool) // by alert, what fired in this test so far
			for _, a := range test.Alerts {
				now := make(map[string]bool)
				for _, w := range a.Want {
					key := a.Name + "/" + w.Labels["severity"]
					fires[key], now[key] = true, true
					for _, text := range []string{"summary", "description", "runbook_url"} {
						if w.Annotations[text] == "" {
							t.Errorf("%s: %s: no %s is expected of %s", file, test.Name, text, key)
						}
					}
				}
				for key := range before[a.Name] {
					ends[key] = ends[key] || !now[key]
				}
				if before[a.Name] == nil {
					before[a.Name] = make(map[string]bool)
				}
				maps.Copy(before[a.Name], now)
			}
		}
	}
	for _, r := range readRules(t) {
		if r.Alert != "" && !fires[r.String()] {
			t.Errorf("no test has %s fire", &r)
		}
		if r.Alert != "" && fires[r.String()] && !ends[r.String()] {
			t.Errorf("no test has %s end", &r)
		}
	}
}

func TestEachAlertHasARunbook(t *testing.T) {
	data, err := os.ReadFile("../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^### (\w+)$`).FindAllStringSubmatch(string(data), -1) {
		sections[m[1]] = true
	}
	alerts := make(map[string]bool)
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		alerts[r.Alert] = true
		if !sections[r.Alert] {
			t.Errorf("docs/runbook.md has no section on %s", r.Alert)
		}
		if want := runbook + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s: the runbook is %s, want %s", &r, r.Annotations["runbook_url"], want)
		}
		if !slices.Contains([]string{critical, warning, info}, r.Labels["severity"]) {
			t.Errorf("%s: an unknown severity", &r)
		}
	}
	for section := range sections {
		if !alerts[section] {
			t.Errorf("docs/runbook.md has a section on %s, which is no alert", section)
		}
	}
}

// Thresholds that are changed change the rules, and nothing is left of the old.
func TestThresholdsStandInOnePlace(t *testing.T) {
	changed := Default
	changed.DaysWarning, changed.FreeCritical, changed.ScrubWarning = 11, 0.0123, 77*day
	text, err := Rules(changed)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"btrfs:pool_days_to_full < 11", "0.0123 * btrfs_pool_usable_bytes", "less than 1.23 %", "> 77 * 86400"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the rules lack %q", want)
		}
	}
	if strings.Contains(string(text), "< 7)") {
		t.Error("the old threshold is still there")
	}
}
