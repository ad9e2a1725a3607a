package dashboards

import (
	"fmt"
	"strings"
	"time"
)

// query is what a panel asks. In it POOL stands for what selects the pools that
// are chosen, and HOST for what selects their hosts.
type query struct {
	expr   string
	legend string
	colour string // of its series
}

// chosenOnly puts the variables into a query.
func chosenOnly(expr string) string {
	return strings.NewReplacer(
		"POOL", `job=~"$job", instance=~"$host", uuid=~"$pool"`,
		"HOST", `job=~"$job", instance=~"$host"`,
	).Replace(expr)
}

// withPath joins in the path of a device.
const withPath = ` * on (job, instance, uuid, devid) group_left (path) btrfs_device_info{POOL}`

// knownPools has a series for each pool, also for one whose disks do not answer,
// with the label name.
const knownPools = `label_replace(label_replace(
  btrfs_pool_info{POOL}
  or last_over_time(btrfs_pool_info{POOL}[1d])
  and on (job, instance, uuid) btrfs_scrape_collector_success{POOL, collector="read"} == 0
` + nameOf

// nameOf closes two label_replace that make the label name: that of the pool, or
// else the begin of its UUID.
const nameOf = `, "name", "$1", "uuid", "(.{8}).*"), "name", "$1", "label", "(.+)")`

// text is what a panel says in words: none where there is no data.
type text struct{ title, description, none string }

func newPanel(kind string, t text, unit string, options, custom any) panel {
	return panel{
		Type: kind, Title: t.title, Description: t.description, DataSource: &chosen, Options: options,
		FieldConfig: &fieldConfig{
			Defaults:  field{Unit: unit, NoValue: t.none, Color: fixed(grey), Custom: custom},
			Overrides: []override{},
		},
	}
}

func fixed(colour string) *fieldColor { return &fieldColor{Mode: "fixed", FixedColor: colour} }

func (p *panel) ask(q query, format string) string {
	id := string(rune('A' + len(p.Targets)))
	p.Targets = append(p.Targets, target{
		RefID: id, DataSource: chosen, Expr: chosenOnly(q.expr), LegendFormat: q.legend, Format: format,
		Instant: format == tableFormat, Range: format != tableFormat,
	})
	return id
}

// The formats of results: a table is of now, and series are of the whole range.
const (
	tableFormat  = "table"
	seriesFormat = "time_series"
)

func (p *panel) override(by, name string, properties ...property) {
	p.FieldConfig.Overrides = append(p.FieldConfig.Overrides, override{matcher{by, name}, properties})
}

// colour gives the series or the column of a name a colour.
func (p *panel) colour(name, colour string) {
	p.override("byName", name, property{"color", fixed(colour)})
}

// dash draws the series of a query with a broken line and nothing beneath.
func (p *panel) dash(refID string) {
	p.override("byFrameRefID", refID, property{"custom.lineStyle", lineStyle{"dash", []int{10, 10}}}, property{"custom.fillOpacity", 0})
}

// devices gives devices their colours by the last digit of their id; the last four
// have broken lines. Their names begin with the id.
func (p *panel) devices() {
	colours := []string{blue, orange, bluishGreen, reddishPurple, skyBlue, vermillion}
	for i, digit := range "1234567890" {
		properties := []property{{"color", fixed(colours[i%len(colours)])}}
		if i >= len(colours) {
			properties = append(properties, property{"custom.lineStyle", lineStyle{"dash", []int{10, 10}}})
		}
		p.override("byRegexp", fmt.Sprintf("/^[0-9]*%c( |$)/", digit), properties...)
	}
}

// errorTypes gives the types of errors their colours.
func (p *panel) errorTypes() {
	p.colour("write", vermillion)
	p.colour("read", orange)
	p.colour("flush", reddishPurple)
	p.colour("corruption", blue)
	p.colour("generation", skyBlue)
}

func timeSeries(t text, unit string, queries ...query) panel {
	p := newPanel("timeseries", t, unit,
		timeSeriesOptions{legend{true, "list", "bottom", []string{}}, tooltip{"multi", "desc"}},
		timeSeriesField{DrawStyle: "line", LineWidth: 2, FillOpacity: 0, ShowPoints: "auto"})
	for _, q := range queries {
		id := p.ask(q, seriesFormat)
		if q.colour != "" {
			p.override("byFrameRefID", id, property{"color", fixed(q.colour)})
		}
	}
	return p
}

// change changes how a panel with a time axis is drawn.
func (p *panel) change(how func(*timeSeriesField)) {
	custom := p.FieldConfig.Defaults.Custom.(timeSeriesField)
	how(&custom)
	p.FieldConfig.Defaults.Custom = custom
}

// stack draws series on each other.
func (p *panel) stack() {
	p.change(func(f *timeSeriesField) { f.FillOpacity, f.Stacking = 60, &stacking{"A", "normal"} })
}

// levels colours values, and draws the thresholds where there is a time axis.
func (p *panel) levels(t *thresholds) {
	d := &p.FieldConfig.Defaults
	d.Thresholds = t
	if custom, ok := d.Custom.(timeSeriesField); ok {
		custom.ThresholdsStyle = &thresholdsStyle{"dashed"}
		d.Custom = custom
		return
	}
	d.Color = &fieldColor{Mode: "thresholds"}
}

// share shows all from nothing to everything.
func (p *panel) share() {
	none, all := 0.0, 1.0
	p.FieldConfig.Defaults.Min, p.FieldConfig.Defaults.Max = &none, &all
}

// fromZero shows how much is there.
func (p *panel) fromZero() {
	none := 0.0
	p.FieldConfig.Defaults.Min = &none
}

// above are thresholds of what is bad when it is much, by their colours.
func above(values map[string]float64) *thresholds {
	steps := []threshold{{nil, good}}
	for _, colour := range []string{info, warning, critical} {
		if v, ok := values[colour]; ok {
			steps = append(steps, threshold{&v, colour})
		}
	}
	return &thresholds{"absolute", steps}
}

// below are thresholds of what is bad when it is little, by their colours.
func below(values map[string]float64) *thresholds {
	var steps []threshold
	var from *float64
	for _, colour := range []string{critical, warning, info} {
		if v, ok := values[colour]; ok {
			steps = append(steps, threshold{from, colour})
			from = &v
		}
	}
	return &thresholds{"absolute", append(steps, threshold{from, good})}
}

// anyIs are thresholds of what there should be nothing of.
func anyIs(colour string) *thresholds { return above(map[string]float64{colour: 1}) }

// plain are thresholds of what is neither good nor bad.
func plain() *thresholds { return &thresholds{"absolute", []threshold{{nil, blue}}} }

// stat is one number of now.
func stat(t text, unit, expr string, levels *thresholds) panel {
	p := newPanel("stat", t, unit, statOptions{
		ReduceOptions: reduceOptions{[]string{"lastNotNull"}, "", false},
		Orientation:   "auto", ColorMode: "value", GraphMode: "none", JustifyMode: "auto", TextMode: "value",
	}, nil)
	p.ask(query{expr: expr}, seriesFormat)
	p.Targets[0].Instant, p.Targets[0].Range = true, false
	p.levels(levels)
	return p
}

// state is the text and the colour of a value.
type state struct{ text, colour string }

// states are texts of the values from 0 on.
func states(all ...state) []mapping {
	results := make(map[string]mappingResult)
	for i, s := range all {
		results[fmt.Sprint(i)] = mappingResult{s.text, s.colour, i}
	}
	return []mapping{{"value", results}}
}

func stateTimeline(t text, q query, all ...state) panel {
	p := newPanel("state-timeline", t, "none", stateTimelineOptions{
		AlignValue: "left", MergeValues: true, RowHeight: 0.9, ShowValue: "auto",
		Legend: legend{true, "list", "bottom", []string{}}, Tooltip: tooltip{"single", "none"},
	}, stateTimelineField{FillOpacity: 80, LineWidth: 0})
	p.ask(q, seriesFormat)
	p.FieldConfig.Defaults.Mappings = states(all...)
	p.levels(&thresholds{"absolute", []threshold{{nil, grey}}})
	return p
}

// column is one of a table. It shows the values of a query, or a label that its
// query or an earlier one has.
type column struct {
	name        string
	expr, label string
	unit        string
	decimals    *int
	levels      *thresholds
	states      []mapping
	link        *dataLink
}

// table is one with a row for each set of labels. Grafana calls the values of a
// query "Value #A" and so on, and those of a single one "Value".
func table(t text, sort sortBy, columns ...column) panel {
	p := newPanel("table", t, "none", tableOptions{ShowHeader: true, CellHeight: "sm", SortBy: []sortBy{sort}}, tableField{"auto", cellOptions{"auto"}, false})
	order := organize{map[string]bool{"Time": true, "job": true}, make(map[string]int), make(map[string]string)}
	queries := 0
	for _, c := range columns {
		if c.expr != "" {
			queries++
		}
	}
	for i, c := range columns {
		source := c.label
		if c.expr != "" {
			value := "Value #" + p.ask(query{expr: c.expr}, tableFormat)
			if queries == 1 {
				value = "Value"
			}
			if source == "" {
				source = value
			} else {
				order.ExcludeByName[value] = true
			}
		}
		order.IndexByName[source] = i
		order.RenameByName[source] = c.name
		p.override("byName", c.name, c.properties()...)
	}
	p.Transformations = []transformation{{"merge", struct{}{}}, {"organize", order}}
	return p
}

func (c *column) properties() []property {
	// In a cell there is no room for what the panel says where there is nothing.
	all := []property{{"noValue", "–"}}
	if c.unit != "" {
		all = append(all, property{"unit", c.unit})
	}
	if c.decimals != nil {
		all = append(all, property{"decimals", *c.decimals})
	}
	if c.states != nil {
		all = append(all, property{"mappings", c.states})
	}
	if c.levels != nil {
		all = append(all, property{"thresholds", c.levels}, property{"color", fieldColor{Mode: "thresholds"}})
	}
	if c.levels != nil || c.states != nil {
		all = append(all, property{"custom.cellOptions", cellOptions{"color-text"}})
	}
	if c.link != nil {
		all = append(all, property{"links", []dataLink{*c.link}})
	}
	return all
}

// page lays panels out, from left to right and from the top down. Grafana's grid
// has 24 columns.
type page struct {
	panels       []panel
	x, y, height int
}

const gridWidth = 24

func (p *page) row(title string) {
	p.newLine()
	no, none := false, []panel{}
	p.place(panel{Type: "row", Title: title, Collapsed: &no, Panels: &none}, gridWidth, 1)
}

func (p *page) newLine() {
	p.x, p.y, p.height = 0, p.y+p.height, 0
}

// place returns the id of the panel.
func (p *page) place(what panel, width, height int) int {
	if p.x+width > gridWidth {
		p.newLine()
	}
	what.ID = len(p.panels) + 1
	what.GridPos = gridPosition{H: height, W: width, X: p.x, Y: p.y}
	p.x, p.height = p.x+width, max(p.height, height)
	p.panels = append(p.panels, what)
	return what.ID
}

// poolChoice has a series for each pool that there was in the range, so that one
// can still choose it where that begins or ends without it. It is one line:
// query_result takes no more.
const poolChoice = `max by (shown, uuid) (label_join(label_replace(label_replace(btrfs_pool_info{HOST} or last_over_time(btrfs_pool_info{HOST}[$__range:1h])` + nameOf + `, "shown", " on ", "name", "instance"))`

// variables are those by which one chooses what is shown. A pool is shown by its
// name and its host, and known by its UUID.
func variables(onePool bool) []variable {
	choice := func(name, label, description, query, regex string) variable {
		return variable{
			Name: name, Label: label, Description: description, Type: "query", DataSource: &chosen,
			Query: chosenOnly(query), Regex: regex,
			Refresh: onTimeRangeChanged, Sort: alphabetical, Multi: true, IncludeAll: true, AllValue: ".+",
			Current: &option{[]string{"All"}, []string{"$__all"}},
		}
	}
	// query_result gives texts such as {shown="attic on nas:10134",uuid="..."} 1 0, of
	// which the named groups take what is shown and what is meant:
	// grafana.com/docs/grafana/latest/dashboards/variables/add-template-variables.
	pools := choice("pool", "Pool", "The pools, by their labels.", "query_result("+poolChoice+")", `/shown="(?<text>.*)",\s*uuid="(?<value>[^"]+)"/`)
	if onePool {
		pools.Description = "The pool, by its label and its host."
		pools.Multi, pools.IncludeAll, pools.AllValue, pools.Current = false, false, "", nil
	}
	return []variable{
		{Name: "datasource", Label: "Data source", Description: "The Prometheus that scrapes btrfs-governor.", Type: "datasource", Query: "prometheus", Refresh: onLoad},
		choice("job", "Job", "The jobs of Prometheus that scrape btrfs-governor.", `label_values(btrfs_governor_build_info, job)`, ""),
		choice("host", "Host", "The hosts, as Prometheus names them.", `label_values(btrfs_governor_build_info{job=~"$job"}, instance)`, ""),
		pools,
	}
}

// When the values of a variable are asked for, and how they are sorted.
const (
	onLoad             = 1
	onTimeRangeChanged = 2
	alphabetical       = 5 // and lower case as upper case
)

// alertAnnotations show when alerts began to fire.
func alertAnnotations(pool string) list[annotation] {
	var all []annotation
	for _, a := range []struct{ severity, colour string }{{"critical", critical}, {"warning", warning}, {"info", info}} {
		all = append(all, annotation{
			Name: "Alerts: " + a.severity, DataSource: chosen, Enable: true, IconColor: a.colour,
			Target: target{
				RefID: "Anno", DataSource: chosen, Range: true,
				Expr: chosenOnly(fmt.Sprintf(`ALERTS{HOST, alertname=~"Btrfs.+", alertstate="firing", severity=%q%s}`, a.severity, pool)),
			},
			TitleFormat: "{{alertname}}", TextFormat: "{{label}} {{instance}} {{path}}", TagKeys: "severity",
		})
	}
	return list[annotation]{all}
}

func newDashboard(uid, title, description string, look time.Duration) *dashboard {
	return &dashboard{
		UID: uid, Title: title, Description: description, Tags: []string{"btrfs-governor"},
		SchemaVersion: schemaVersion, Editable: true, GraphTooltip: 1, Refresh: "1m", Timezone: "browser",
		Time: timeRange{fmt.Sprintf("now-%.0fd", look.Hours()/24), "now"},
	}
}
