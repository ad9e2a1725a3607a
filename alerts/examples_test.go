package alerts

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/btrfs-governor/btrfs-governor/internal/testprogram"
)

func TestPrometheusTakesTheExample(t *testing.T) {
	dir := t.TempDir()
	for source, name := range map[string]string{"../examples/prometheus.yml": "prometheus.yml", FileName: FileName} {
		data, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if said := promtool(t, "check", "config", filepath.Join(dir, "prometheus.yml")); !strings.Contains(said, "1 rule files found") {
		t.Errorf("promtool says\n%s", said)
	}
}

func TestAlertmanagerTakesTheExample(t *testing.T) {
	const example = "../examples/alertmanager.yml"
	path := testprogram.Find(t, "amtool", "prometheus-alertmanager")
	if output, err := exec.Command(path, "check-config", example).CombinedOutput(); err != nil {
		t.Fatalf("amtool check-config: %v\n%s", err, output)
	}
	for _, severity := range []string{critical, warning, info} {
		output, err := exec.Command(path, "config", "routes", "test", "--config.file="+example, "alertname=BtrfsPoolFillingUp", "severity="+severity).Output()
		if got := strings.TrimSpace(string(output)); err != nil || got != "mail" {
			t.Errorf("an alert of severity %s goes to %q: %v", severity, got, err)
		}
	}
	const governor = "../examples/alertmanager-governor.yml"
	if output, err := exec.Command(path, "check-config", governor).CombinedOutput(); err != nil {
		t.Fatalf("amtool check-config: %v\n%s", err, output)
	}
	for severity, want := range map[string]string{critical: "actions,chat,phone", warning: "actions,phone"} {
		output, err := exec.Command(path, "config", "routes", "test", "--config.file="+governor, "alertname=BtrfsPoolFillingUp", "severity="+severity).Output()
		if got := strings.TrimSpace(string(output)); err != nil || got != want {
			t.Errorf("an alert of severity %s goes to %q: %v, and not to %s", severity, got, err, want)
		}
	}
	// A receiver that is broken does not tell of itself.
	for _, name := range []string{"BtrfsGovernorNotificationsStuck", "BtrfsGovernorNotificationsLost"} {
		output, err := exec.Command(path, "config", "routes", "test", "--config.file="+governor, "alertname="+name, "severity="+warning).Output()
		if got, want := strings.TrimSpace(string(output)), "actions,mail,phone"; err != nil || got != want {
			t.Errorf("%s goes to %q: %v, and not to %s", name, got, err, want)
		}
	}
	// What they name exists.
	known := make(map[string]bool)
	for _, r := range readRules(t) {
		known[r.Alert] = true
	}
	for _, file := range []string{example, governor} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`\bBtrfs\w+`).FindAllString(string(data), -1) {
			if !known[name] {
				t.Errorf("%s names the alert %s, which there is not", file, name)
			}
		}
	}
}
