package docscheck

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"

	"github.com/btrfs-governor/btrfs-governor/alerts"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/config"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/notify"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

const root = "../.."

// metricName is the name of one of our metrics, in backticks.
var metricName = regexp.MustCompile("`(btrfs_[a-z0-9_]+)`")

func TestEveryMetricIsDescribedAndNoOther(t *testing.T) {
	described := make(map[string]bool)
	text := read(t, "docs/metrics.md")
	for _, match := range metricName.FindAllStringSubmatch(text, -1) {
		described[match[1]] = true
	}
	exported := exportedNames(t)
	for _, name := range slices.Sorted(maps.Keys(exported)) {
		if !described[name] {
			t.Errorf("docs/metrics.md does not describe %s", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(described)) {
		if !exported[name] {
			t.Errorf("docs/metrics.md describes %s, which is not exported", name)
		}
	}
}

// wholeName finds names of metrics in queries too, and leaves out functions of
// the kernel; what ends in * is the name of a group.
var wholeName = regexp.MustCompile(`\bbtrfs_(?:pool|device|metadata|allocation|governor|scrape|scrub|snapshot)_[a-z0-9_]*[a-z0-9]\b[^*]`)

func TestDocumentsNameOnlyMetricsThatExist(t *testing.T) {
	exported := exportedNames(t)
	for _, file := range documents(t) {
		for _, match := range wholeName.FindAllString(read(t, file), -1) {
			if name := match[:len(match)-1]; !exported[name] {
				t.Errorf("%s names %s, which is not exported", file, name)
			}
		}
	}
}

// exportedNames are the names of the metrics that a scrape of serve can have,
// without those of the Go runtime and of the process.
func exportedNames(t *testing.T) map[string]bool {
	t.Helper()
	source, err := collector.NewRecordedSource(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	settings := collector.Config{Logger: log.NewNopLogger(), Source: source, Timeout: time.Second}
	for _, info := range collector.All() {
		settings.Enabled = append(settings.Enabled, info.Name)
	}
	exporter, err := collector.New(settings)
	if err != nil {
		t.Fatal(err)
	}
	pools, err := exporter.Collector()
	if err != nil {
		t.Fatal(err)
	}
	reloader, err := config.NewReloader(config.Default(), nil, func(*config.Config) (func(), error) { return func() {}, nil })
	if err != nil {
		t.Fatal(err)
	}

	jobs, err := job.Open(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	scrubs, err := scrub.New(scrub.Config{Logger: log.NewNopLogger(), Jobs: jobs})
	if err != nil {
		t.Fatal(err)
	}

	snapshots, err := snapshot.New(snapshot.Config{Logger: log.NewNopLogger(), Jobs: jobs})
	if err != nil {
		t.Fatal(err)
	}

	actions, err := alertmanager.NewActions(alertmanager.ActionsConfig{State: state.NewDir(t.TempDir()), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	silencer, err := alertmanager.NewSilencer(alertmanager.SilenceSettings{}, alertmanager.DefaultSilenceTiming(), nil, time.Now, log.NewNopLogger())
	if err != nil {
		t.Fatal(err)
	}
	bridge, err := notify.New(notify.Config{Logger: log.NewNopLogger(), State: state.NewDir(t.TempDir())})
	if err != nil {
		t.Fatal(err)
	}

	names := make(map[string]bool)
	nameOf := regexp.MustCompile(`fqName: "([^"]+)"`)
	for _, c := range []prometheus.Collector{pools, scrubs, snapshots, actions, silencer, bridge, reloader, versioncollector.NewCollector("btrfs_governor")} {
		descriptions := make(chan *prometheus.Desc)
		go func() {
			defer close(descriptions)
			c.Describe(descriptions)
		}()
		for d := range descriptions {
			match := nameOf.FindStringSubmatch(d.String())
			if match == nil {
				t.Errorf("no name in %s", d)
				continue
			}
			names[match[1]] = true
		}
	}
	if len(names) < 30 {
		t.Fatalf("only %d metrics are exported: %v", len(names), names)
	}
	return names
}

func TestReadmeNamesTheTwoCommands(t *testing.T) {
	readme := read(t, "README.md")
	makefile := read(t, "Makefile")
	for _, command := range []string{"make demo", "make test"} {
		if !strings.Contains(readme, command) {
			t.Errorf("README.md does not name %q", command)
		}
	}
	for _, match := range regexp.MustCompile(`\bmake ([a-z-]+)`).FindAllStringSubmatch(commandsIn(readme), -1) {
		if !strings.Contains(makefile, "\n"+match[1]+":") {
			t.Errorf("README.md names %q, which the Makefile does not have", match[0])
		}
	}
}

// commandsIn returns what stands between backticks.
func commandsIn(text string) string {
	return strings.Join(regexp.MustCompile("(?s)```.*?```|`[^`]+`").FindAllString(text, -1), "\n")
}

func TestEveryFlagIsDescribedAndNoOther(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "btrfs-governor")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", binary, root+"/cmd/btrfs-governor").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	var help bytes.Buffer
	command := exec.Command(binary, "serve", "--help")
	command.Stdout = &help
	if err := command.Run(); err != nil {
		t.Fatal(err)
	}
	text := read(t, "README.md") + read(t, "docs/operations.md")
	flags := make(map[string]bool)
	for _, match := range regexp.MustCompile(`(?m)^ +(?:-h, )?--(?:\[no-\])?([a-z.-]+)`).FindAllStringSubmatch(help.String(), -1) {
		flags[match[1]] = true
	}
	if len(flags) < 20 {
		t.Fatalf("only %d flags found in:\n%s", len(flags), help.String())
	}
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		if strings.HasPrefix(name, "help") || name == "version" {
			continue
		}
		if !regexp.MustCompile(`--` + regexp.QuoteMeta(name) + `\b`).MatchString(text) {
			t.Errorf("neither README.md nor docs/operations.md describes --%s", name)
		}
	}
	// Flags of ours have a dot in their names, or are one of these.
	for _, match := range regexp.MustCompile(`--((?:config|state|path|collector|no-collector|web|log|api)\.[a-z-]+(?:\.[a-z]+)?)`).FindAllStringSubmatch(text, -1) {
		if name := strings.TrimPrefix(match[1], "no-"); !flags[name] {
			t.Errorf("--%s is described, and serve has no such flag", name)
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#]*)(#[^)]*)?\)`)

func TestLinksLeadSomewhere(t *testing.T) {
	for _, file := range documents(t) {
		for _, match := range link.FindAllStringSubmatch(read(t, file), -1) {
			target := match[1]
			if target == "" || strings.Contains(target, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(file), target)); err != nil {
				t.Errorf("%s: link to %s: %v", file, target, err)
			}
		}
	}
}

// testName is the name of a test that a document tells to run.
var testName = regexp.MustCompile(`\bTest[A-Z][A-Za-z0-9]+\b`)

func TestNamedTestsExist(t *testing.T) {
	var source strings.Builder
	for _, pattern := range []string{"btrfs/*_test.go", "btrfs/*/*_test.go", "cmd/*/*_test.go", "collector/*_test.go", "scrub/*_test.go", "snapshot/*_test.go", "snapshot/*/*_test.go", "internal/*/*_test.go"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			source.Write(text)
		}
	}
	for _, file := range documents(t) {
		for _, name := range testName.FindAllString(read(t, file), -1) {
			if !strings.Contains(source.String(), "func "+name+"(") {
				t.Errorf("%s names %s, which is no test", file, name)
			}
		}
	}
}

func TestNamedAlertsExist(t *testing.T) {
	names := alerts.Names()
	for _, file := range documents(t) {
		for _, name := range regexp.MustCompile(`\bBtrfs[A-Z][A-Za-z]+\b`).FindAllString(read(t, file), -1) {
			if !slices.Contains(names, name) {
				t.Errorf("%s names the alert %s, which there is not", file, name)
			}
		}
	}
}

// documents are the files of the documentation, as seen from the root.
func documents(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no documents in docs: %v", err)
	}
	names := []string{"README.md", "CHANGELOG.md"}
	for _, file := range files {
		names = append(names, filepath.Join("docs", filepath.Base(file)))
	}
	return names
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
