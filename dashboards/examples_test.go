package dashboards

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

const provisioning = "../examples/grafana/provisioning"

// readExample reads an example. A key that Grafana does not know is an error:
// grafana.com/docs/grafana/latest/administration/provisioning.
func readExample(t *testing.T, name string, into any) (text string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(provisioning, name))
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(data)))
	decoder.KnownFields(true)
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return string(data)
}

func TestExampleProvisionsTheDataSource(t *testing.T) {
	var example struct {
		APIVersion  int `yaml:"apiVersion"`
		DataSources []struct {
			Name, Type, Access, URL string
			JSONData                struct {
				HTTPMethod   string `yaml:"httpMethod"`
				TimeInterval string `yaml:"timeInterval"`
			} `yaml:"jsonData"`
		} `yaml:"datasources"`
	}
	readExample(t, "datasources/prometheus.yml", &example)
	if example.APIVersion != 1 || len(example.DataSources) != 1 {
		t.Fatalf("it is %+v", example)
	}
	d := example.DataSources[0]
	if d.Name == "" || d.Type != chosen.Type || d.Access != "proxy" || !strings.HasPrefix(d.URL, "http://localhost:") || d.JSONData.HTTPMethod != "POST" {
		t.Errorf("the data source is %+v", d)
	}
	var prometheus struct {
		Global struct {
			ScrapeInterval string `yaml:"scrape_interval"`
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "../examples/prometheus.yml")), &prometheus); err != nil {
		t.Fatal(err)
	}
	if d.JSONData.TimeInterval != prometheus.Global.ScrapeInterval {
		t.Errorf("timeInterval is %s, and the example of Prometheus scrapes each %s", d.JSONData.TimeInterval, prometheus.Global.ScrapeInterval)
	}
}

func TestExampleProvisionsTheDashboards(t *testing.T) {
	var example struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name, Type, Folder    string
			DisableDeletion       bool `yaml:"disableDeletion"`
			AllowUIUpdates        bool `yaml:"allowUiUpdates"`
			UpdateIntervalSeconds int  `yaml:"updateIntervalSeconds"`
			Options               struct{ Path string }
		}
	}
	text := readExample(t, "dashboards/btrfs-governor.yml", &example)
	if example.APIVersion != 1 || len(example.Providers) != 1 {
		t.Fatalf("it is %+v", example)
	}
	p := example.Providers[0]
	if p.Name == "" || p.Type != "file" || p.AllowUIUpdates || p.UpdateIntervalSeconds < 10 {
		t.Errorf("the provider is %+v", p)
	}
	// The commands put the dashboards where they are looked for.
	for _, command := range []string{"mkdir -p ", "btrfs-governor export dashboards "} {
		if !regexp.MustCompile(`(?m)^#   ` + command + regexp.QuoteMeta(p.Options.Path) + `$`).MatchString(text) {
			t.Errorf("the comment lacks %q to %s", command, p.Options.Path)
		}
	}
	// Each file says where it goes.
	for _, name := range []string{"datasources/prometheus.yml", "dashboards/btrfs-governor.yml"} {
		if !strings.Contains(read(t, filepath.Join(provisioning, name)), "/etc/grafana/provisioning/"+name) {
			t.Errorf("%s does not say where it goes", name)
		}
	}
}
