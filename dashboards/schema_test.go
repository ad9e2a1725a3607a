package dashboards

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrfs-governor/btrfs-governor/internal/testprogram"
)

// schemaCheck installs schema-check in a directory of the test, with the versions of
// its lock file, and returns what runs it. Where they cannot be had the test is
// skipped; in CI it fails.
func schemaCheck(t *testing.T) func(dashboards ...string) (said string, err error) {
	t.Helper()
	npm := testprogram.Find(t, "npm", "npm")
	node := testprogram.Find(t, "node", "nodejs")
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", ".npmrc", "check.mjs"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(read(t, filepath.Join("schema-check", name))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	install := exec.CommandContext(t.Context(), npm, "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund")
	install.Dir = dir
	if output, err := install.CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("npm ci: %v\n%s", err, output)
		}
		t.Skipf("Grafana's types cannot be had: npm ci: %v\n%s", err, output)
	}
	return func(dashboards ...string) (string, error) {
		output, err := exec.CommandContext(t.Context(), node, append([]string{filepath.Join(dir, "check.mjs")}, dashboards...)...).CombinedOutput()
		return string(output), err
	}
}

func TestDashboardsFitTheTypesOfGrafana(t *testing.T) {
	check := schemaCheck(t)
	if said, err := check(Names()...); err != nil {
		t.Errorf("%v\n%s", err, said)
	}

	// It finds what does not fit: a value that is none, and a name that is none.
	text := read(t, poolFile)
	var wants []string
	for _, change := range []struct{ old, bad, want string }{
		{`"drawStyle": "line"`, `"drawStyle": "zigzag"`, `panel Free space and forecast: the fields: Type '"zigzag"'`},
		{`"showHeader": true`, `"showHeaders": true`, `panel Devices: the options: Object literal may only specify known properties, and '"showHeaders"'`},
		{`"graphTooltip": 1`, `"graphTooltip": 7`, `the dashboard: Type '7'`},
		{`"id": "custom.lineStyle"`, `"id": "custom.styleOfLines"`, `panel Free space and forecast: the override of F: Object literal`},
		{`"instant": true`, `"instant": "yes"`, `panel Days to full: query A: Type 'string'`},
		{`"name": "Alerts: critical"`, `"name": "Alerts", "scope": "x"`, `annotation Alerts: Object literal`},
	} {
		if !strings.Contains(text, change.old) {
			t.Fatalf("%s has no %s", poolFile, change.old)
		}
		text = strings.ReplaceAll(text, change.old, change.bad)
		wants = append(wants, change.want)
	}
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	said, err := check(bad)
	if err == nil {
		t.Error("what does not fit is taken")
	}
	for _, want := range wants {
		for _, version := range []string{"grafana-10", "grafana-13"} {
			if version == "grafana-13" && strings.Contains(want, "query") {
				continue // it does not know the types of queries
			}
			if !strings.Contains(said, version+": "+want) {
				t.Errorf("%s does not say %q\n%s", version, want, said)
			}
		}
	}
}
