package dashboards

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/btrfs-governor/btrfs-governor/alerts"
)

// committed reads the files. A field that is not ours is an error.
func committed(t *testing.T) map[string]*dashboard {
	t.Helper()
	all := make(map[string]*dashboard)
	for _, name := range Names() {
		data, err := Files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.DisallowUnknownFields()
		all[name] = new(dashboard)
		if err := decoder.Decode(all[name]); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return all
}

// eachPanel calls look with each panel that shows data.
func eachPanel(t *testing.T, look func(where string, p *panel)) {
	t.Helper()
	n := 0
	for name, d := range committed(t) {
		for i := range d.Panels {
			if p := &d.Panels[i]; p.Type != "row" {
				look(name+": "+p.Title, p)
				n++
			}
		}
	}
	if n < 30 {
		t.Errorf("there are only %d panels", n)
	}
}

// expressions are all the queries of a dashboard, those of its variables and
// annotations too.
func expressions(t *testing.T, d *dashboard) []string {
	t.Helper()
	var all []string
	for i := range d.Panels {
		for _, target := range d.Panels[i].Targets {
			all = append(all, target.Expr)
		}
	}
	for _, a := range d.Annotations.List {
		all = append(all, a.Target.Expr)
	}
	for _, v := range d.Templating.List {
		if v.Type == "query" {
			all = append(all, v.Query)
		}
	}
	return all
}

func TestPanelsSayWhatTheyShow(t *testing.T) {
	units := []string{"none", "bytes", "binBps", "s", "d", "percentunit", "dateTimeAsIso"}
	eachPanel(t, func(where string, p *panel) {
		if p.Title == "" || !strings.HasSuffix(p.Description, ".") || len(p.Description) < 20 {
			t.Errorf("%s: the description is %q", where, p.Description)
		}
		d := p.FieldConfig.Defaults
		if d.NoValue == "" {
			t.Errorf("%s does not say why there is no data", where)
		}
		if !slices.Contains(units, d.Unit) {
			t.Errorf("%s: the unit is %q", where, d.Unit)
		}
		if len(p.Targets) == 0 {
			t.Errorf("%s asks nothing", where)
		}
	})
}

func TestPanelsStandBesideEachOther(t *testing.T) {
	for name, d := range committed(t) {
		ids := make(map[int]bool)
		taken := make(map[[2]int]string)
		for _, p := range d.Panels {
			if ids[p.ID] {
				t.Errorf("%s: two panels have the id %d", name, p.ID)
			}
			ids[p.ID] = true
			if p.GridPos.X+p.GridPos.W > gridWidth {
				t.Errorf("%s: %s does not fit", name, p.Title)
			}
			for x := range p.GridPos.W {
				for y := range p.GridPos.H {
					at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
					if other, ok := taken[at]; ok {
						t.Fatalf("%s: %s lies on %s", name, p.Title, other)
					}
					taken[at] = p.Title
				}
			}
		}
	}
}

// One chooses the data source, and nothing is taken for granted of it.
func TestEverythingAsksTheChosenDataSource(t *testing.T) {
	for name, d := range committed(t) {
		if v := d.Templating.List[0]; v.Name != "datasource" || v.Type != "datasource" || v.Query != "prometheus" {
			t.Errorf("%s: the first variable is %+v", name, v)
		}
		for _, v := range d.Templating.List[1:] {
			if v.DataSource == nil || *v.DataSource != chosen {
				t.Errorf("%s: variable %s asks %v", name, v.Name, v.DataSource)
			}
		}
		for _, a := range d.Annotations.List {
			if a.DataSource != chosen || a.Target.DataSource != chosen {
				t.Errorf("%s: annotation %s asks %v", name, a.Name, a.DataSource)
			}
		}
	}
	eachPanel(t, func(where string, p *panel) {
		if p.DataSource == nil || *p.DataSource != chosen {
			t.Errorf("%s asks %v", where, p.DataSource)
		}
		for _, target := range p.Targets {
			if target.DataSource != chosen {
				t.Errorf("%s: query %s asks %v", where, target.RefID, target.DataSource)
			}
		}
	})
}

// selectors finds what selects series, with the name and the matchers.
var selectors = regexp.MustCompile(`\b(btrfs[_:][a-z0-9_:]+|ALERTS)\b(?:\{([^}]*)\})?`)

var matchers = regexp.MustCompile(`([a-z_]+)(=~|=|!=|!~)"([^"]*)"`)

// Every series is one of those that are chosen, of whatever job.
func TestQueriesAskForWhatIsChosen(t *testing.T) {
	for name, d := range committed(t) {
		for _, expr := range expressions(t, d) {
			if strings.HasPrefix(expr, "label_values(") {
				continue // by which one chooses them
			}
			for _, m := range selectors.FindAllStringSubmatch(expr, -1) {
				if !strings.Contains(m[2], `job=~"$job"`) || !strings.Contains(m[2], `instance=~"$host"`) {
					t.Errorf("%s: %s is asked for of all hosts: %s", name, m[0], expr)
				}
			}
			for _, m := range matchers.FindAllStringSubmatch(expr, -1) {
				variables := map[string]string{"job": "$job", "instance": "$host", "uuid": "$pool"}
				if want, ok := variables[m[1]]; ok && (m[2] != "=~" || m[3] != want) {
					t.Errorf("%s: %s is not chosen: %s", name, m[0], expr)
				}
			}
		}
	}
}

// Grafana makes rows of the results of several queries by the labels that all of
// them have: these must be the same of each, but for names that the first has too.
func TestRowsOfTablesFitTogether(t *testing.T) {
	by := regexp.MustCompile(`^(?:max|min|sum) by \(([a-z_, ]+)\) \(`)
	eachPanel(t, func(where string, p *panel) {
		if p.Type != "table" && p.Type != "barchart" {
			return
		}
		var first, rest []string
		for i, target := range p.Targets {
			m := by.FindStringSubmatch(target.Expr)
			if m == nil {
				t.Errorf("%s: query %s does not say what labels it has: %s", where, target.RefID, target.Expr)
				continue
			}
			labels := strings.Split(m[1], ", ")
			switch {
			case i == 0:
				first = labels
			case i == 1:
				rest = labels
				for _, l := range labels {
					if !slices.Contains(first, l) {
						t.Errorf("%s: query %s has the label %s, and the first has not", where, target.RefID, l)
					}
				}
			case !slices.Equal(labels, rest):
				t.Errorf("%s: query %s has the labels %v, and others have %v", where, target.RefID, labels, rest)
			}
			if target.Format != tableFormat || !target.Instant {
				t.Errorf("%s: query %s is not for a table", where, target.RefID)
			}
		}
	})
}

// Grafana takes a query of a variable that is query_result(...) on one line only.
func TestVariablesAreOneLine(t *testing.T) {
	for name, d := range committed(t) {
		for _, v := range d.Templating.List {
			if strings.Contains(v.Query, "\n") {
				t.Errorf("%s: variable %s is %s", name, v.Name, v.Query)
			}
		}
	}
}

// A rate over a fixed time has gaps or hides things as one zooms. What asks for
// now may look back as far as it says.
func TestRatesFitTheZoom(t *testing.T) {
	rate := regexp.MustCompile(`\b(?:rate|increase)\([a-z_]+\{[^}]*\}\[([^\]]+)\]`)
	eachPanel(t, func(where string, p *panel) {
		for _, target := range p.Targets {
			if strings.Count(target.Expr, "rate(")+strings.Count(target.Expr, "increase(") != len(rate.FindAllString(target.Expr, -1)) {
				t.Errorf("%s: this test does not understand %s", where, target.Expr)
			}
			for _, m := range rate.FindAllStringSubmatch(target.Expr, -1) {
				if (m[1] == "$__rate_interval") == target.Instant {
					t.Errorf("%s: the window is %s in %s", where, m[1], target.Expr)
				}
			}
		}
	})
}

// knownMetrics are the metrics of the golden expositions, and those that only a
// daemon with its runners has as the documentation lists them; internal/docscheck
// holds that against the program. Each has its labels.
func knownMetrics(t *testing.T) map[string]map[string]bool {
	t.Helper()
	known := make(map[string]map[string]bool)
	add := func(name string, labels ...string) {
		if known[name] == nil {
			known[name] = make(map[string]bool)
		}
		for _, l := range labels {
			known[name][l] = true
		}
	}
	label := regexp.MustCompile(`([a-z_]+)="`)
	golden, err := filepath.Glob("../testdata/golden/*.prom")
	if err != nil || len(golden) == 0 {
		t.Fatalf("%d golden expositions: %v", len(golden), err)
	}
	for _, file := range golden {
		for _, m := range regexp.MustCompile(`(?m)^(btrfs_\w+)\{(.*)\} \S+$`).FindAllStringSubmatch(read(t, file), -1) {
			add(m[1])
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				add(m[1], l[1])
			}
		}
	}
	collected := len(known)
	for _, m := range regexp.MustCompile("(?m)^\\| `(btrfs_(?:scrub|snapshot|governor)_\\w+)` \\| \\w+ \\| ([^|]*) \\|").FindAllStringSubmatch(read(t, "../docs/metrics.md"), -1) {
		add(m[1], regexp.MustCompile(`\w+`).FindAllString(m[2], -1)...)
	}
	if collected < 30 || len(known) < collected+20 {
		t.Fatalf("%d metrics are known, %d of them from golden expositions", len(known), collected)
	}
	rules, err := alerts.Files.ReadFile(alerts.FileName)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)record: (\S+)$`).FindAllStringSubmatch(string(rules), -1) {
		add(m[1], "uuid")
	}
	add("ALERTS", "alertname", "alertstate", "severity", "uuid")
	return known
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestQueriesNameOnlyMetricsThatExist(t *testing.T) {
	known := knownMetrics(t)
	for name, d := range committed(t) {
		for _, expr := range expressions(t, d) {
			for _, m := range selectors.FindAllStringSubmatch(expr, -1) {
				labels, ok := known[m[1]]
				if !ok {
					t.Errorf("%s: there is no %s: %s", name, m[1], expr)
					continue
				}
				for _, match := range matchers.FindAllStringSubmatch(m[2], -1) {
					if l := match[1]; l != "job" && l != "instance" && !labels[l] {
						t.Errorf("%s: %s has no label %s: %s", name, m[1], l, expr)
					}
				}
			}
		}
	}
}

// Each alert that a text names is one.
func TestTextsNameOnlyAlertsThatExist(t *testing.T) {
	known := alerts.Names()
	named := make(map[string]bool)
	for _, name := range Names() {
		for _, alert := range regexp.MustCompile(`\bBtrfs[A-Z]\w+`).FindAllString(read(t, name), -1) {
			named[alert] = true
			if !slices.Contains(known, alert) {
				t.Errorf("%s names the alert %s, which there is not", name, alert)
			}
		}
	}
	if len(named) < 15 {
		t.Errorf("only %d alerts are named", len(named))
	}
}

// Colours are those of Okabe and Ito, and none is left to Grafana.
func TestColoursCanBeToldApart(t *testing.T) {
	for _, name := range Names() {
		text := read(t, name)
		for _, m := range regexp.MustCompile(`"(?:color|fixedColor|iconColor)": "([^"]*)"`).FindAllStringSubmatch(text, -1) {
			if !slices.Contains([]string{orange, skyBlue, bluishGreen, blue, vermillion, reddishPurple, grey}, m[1]) {
				t.Errorf("%s has the colour %s", name, m[1])
			}
		}
		if strings.Contains(text, `"mode": "palette`) || strings.Contains(text, `"mode": "continuous`) {
			t.Errorf("%s has colours of Grafana", name)
		}
	}
}

// Each query of a panel with lines says what colour its series have: its own, or
// one for each name.
func TestSeriesHaveColours(t *testing.T) {
	eachPanel(t, func(where string, p *panel) {
		if p.Type != "timeseries" || p.FieldConfig.Defaults.Color.Mode == "thresholds" {
			return
		}
		coloured := make(map[string]bool)
		byName := false
		for _, o := range p.FieldConfig.Overrides {
			for _, property := range o.Properties {
				if property.ID == "color" {
					coloured[o.Matcher.Options] = true
					byName = byName || o.Matcher.ID == "byName" || o.Matcher.ID == "byRegexp"
				}
			}
		}
		for _, target := range p.Targets {
			if several := strings.Contains(target.LegendFormat, "{{"); several && !byName || !several && !coloured[target.RefID] {
				t.Errorf("%s: the series of query %s have no colour", where, target.RefID)
			}
		}
	})
}

func TestLinksLeadToOurDashboards(t *testing.T) {
	for _, name := range Names() {
		links := regexp.MustCompile(`"url": "/d/([^"?]+)`).FindAllStringSubmatch(read(t, name), -1)
		if len(links) == 0 {
			t.Errorf("%s has no links", name)
		}
		for _, m := range links {
			if m[1] != fleetUID && m[1] != poolUID {
				t.Errorf("%s has a link to %s", name, m[1])
			}
		}
	}
}

// Thresholds that are changed change the dashboards, and nothing is left of the old.
func TestThresholdsAreThoseOfTheAlerts(t *testing.T) {
	changed := alerts.Default
	changed.DaysWarning, changed.FreeCritical, changed.ScrubWarning, changed.MetadataWarning, changed.Balance = 11, 0.0123, 77*day, 0.234, 0.345
	files, err := Dashboards(changed)
	if err != nil {
		t.Fatal(err)
	}
	for name, wants := range map[string][]string{
		fleetFile: {`"value": 11`, "Full within 11 days", "btrfs:pool_days_to_full{job=~\\\"$job\\\", instance=~\\\"$host\\\", uuid=~\\\"$pool\\\"} < 11", "0.0123", `"value": 6652800`, "for 77 days"},
		poolFile:  {`"value": 11`, "0.0123 * btrfs_pool_usable_bytes", `"value": 6652800`, `"value": 0.234`, `"value": 0.345`},
	} {
		for _, want := range wants {
			if !strings.Contains(string(files[name]), want) {
				t.Errorf("%s lacks %q", name, want)
			}
		}
		for _, old := range []string{`"value": 7,`, `"value": 3024000`, "0.03 * btrfs"} {
			if strings.Contains(string(files[name]), old) {
				t.Errorf("%s still has %q", name, old)
			}
		}
	}
}
