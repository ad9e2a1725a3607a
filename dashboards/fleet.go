package dashboards

import (
	"fmt"
	"strings"
	"time"

	"github.com/btrfs-governor/btrfs-governor/alerts"
)

const (
	day = 24 * time.Hour
	gib = 1 << 30

	noPools    = "No pool is known: does Prometheus scrape btrfs-governor?"
	noForecast = "No forecast: it needs the recording rules and a day of data"
)

// openPool leads from the row of a pool to its dashboard.
var openPool = dataLink{
	Title: "Open the pool",
	URL:   "/d/" + poolUID + "?var-datasource=${datasource}&var-job=$__all&var-host=${__data.fields.instance}&var-pool=${__data.fields.uuid}&${__url_time_range}",
}

// orNone makes a count that finds nothing 0, where pools are known at all.
func orNone(count, known string) string { return count + "\nor on () 0 * count(" + known + ")" }

// daysLevels are the thresholds of BtrfsPoolFillingUp.
func daysLevels(t *alerts.Thresholds) *thresholds {
	return below(map[string]float64{info: t.DaysInfo, warning: t.DaysWarning, critical: t.DaysCritical})
}

// scrubLevels are the thresholds of BtrfsScrubOverdue, in seconds.
func scrubLevels(t *alerts.Thresholds) *thresholds {
	return above(map[string]float64{warning: t.ScrubWarning.Seconds(), critical: t.ScrubCritical.Seconds()})
}

// low is 1 for a pool whose free space is below both thresholds of
// BtrfsPoolFreeSpaceLow, and else 0.
func low(bytes, share float64) string {
	return fmt.Sprintf(`(btrfs_pool_free_expected_bytes{POOL} < bool %.0f) * (btrfs_pool_free_expected_bytes{POOL} < bool %g * btrfs_pool_usable_bytes{POOL})`, bytes, share)
}

// byPool keeps of a query what tells pools apart.
func byPool(aggregation, expr string) string {
	return aggregation + " by (job, instance, uuid) (" + expr + ")"
}

// firing are the alerts of the hosts that are chosen, as far as a selector adds to
// that, by severity: 1 is info, 2 warning and 3 critical.
func firing(more string) string {
	return strings.ReplaceAll(`3 * ALERTS{HOST, alertname=~"Btrfs.+", alertstate="firing", severity="critical"MORE}
or 2 * ALERTS{HOST, alertname=~"Btrfs.+", alertstate="firing", severity="warning"MORE}
or 1 * ALERTS{HOST, alertname=~"Btrfs.+", alertstate="firing", severity="info"MORE}`, "MORE", more)
}

// ofPools are alerts of the pools that are chosen.
const ofPools = `, uuid=~"$pool"`

var severities = states(state{"none", good}, state{"info", info}, state{"warning", warning}, state{"critical", critical})

func fleet(t *alerts.Thresholds) *dashboard {
	d := newDashboard(fleetUID, "btrfs fleet", "All pools of all hosts, the worst first.", 7*day)
	d.Templating = list[variable]{variables(false)}
	d.Annotations = alertAnnotations("")
	d.Links = []dashboardLink{{Title: "Pool", Tooltip: "One pool", Type: "link", Icon: "dashboard", URL: "/d/" + poolUID + "?var-datasource=${datasource}", Tags: []string{}, KeepTime: true}}
	p := &page{}
	fleetNumbers(p, t)
	p.row("Pools")
	p.place(poolTable(t), gridWidth, 12)
	p.row("Over time")
	fleetSeries(p, t)
	p.row("Alerts")
	p.place(alertTable(""), gridWidth, 8)
	d.Panels = p.panels
	return d
}

func fleetNumbers(p *page, t *alerts.Thresholds) {
	const answers = `btrfs_scrape_collector_success{POOL, collector="read"}`
	for _, s := range []struct {
		text
		unit, expr string
		levels     *thresholds
	}{
		{text{"Pools", "Pools that are mounted on the hosts that are chosen.", noPools}, "none", `count(` + answers + `)`, plain()},
		{text{"Do not answer", "Pools of which the kernel says nothing: a disk hangs. Nothing else is known of them. Alert: BtrfsPoolNotAnswering.", noPools}, "none", orNone(`count(`+answers+` == 0)`, answers), anyIs(critical)},
		{text{"Critical alerts", "Alerts of btrfs-governor that want a person now.", noPools}, "none", orNone(`count(ALERTS{HOST, alertname=~"Btrfs.+", alertstate="firing", severity="critical"})`, `btrfs_governor_build_info{HOST}`), anyIs(critical)},
		{text{fmt.Sprintf("Full within %g days", t.DaysWarning), "Pools that take nothing more within that time if they go on filling up as in the last two weeks. Alert: BtrfsPoolFillingUp.", noForecast}, "none", orNone(fmt.Sprintf(`count(btrfs:pool_days_to_full{POOL} < %g)`, t.DaysWarning), `btrfs:pool_days_to_full{POOL}`), anyIs(warning)},
		{text{"Devices missing", "Devices that their pools miss. Alert: BtrfsDeviceMissing.", noPools}, "none", `sum(btrfs_pool_devices_missing{POOL})`, anyIs(critical)},
		{text{"Damaged pools", "Pools whose last scrub found errors that no other copy could repair. Alert: BtrfsScrubErrorsUncorrectable.", "No scrub is known"}, "none", orNone(`count(btrfs_scrub_last_uncorrectable_errors{POOL} > 0)`, `btrfs_scrub_last_uncorrectable_errors{POOL}`), anyIs(critical)},
		{text{"Scrub overdue", fmt.Sprintf("Pools of which no scrub went to its end for %.0f days. Alert: BtrfsScrubOverdue.", t.ScrubWarning.Hours()/24), "No scrub is known"}, "none", orNone(fmt.Sprintf(`count(time() - btrfs_scrub_last_success_timestamp_seconds{POOL} > %.0f)`, t.ScrubWarning.Seconds()), `btrfs_scrub_last_success_timestamp_seconds{POOL}`), anyIs(warning)},
		{text{"Really free", "What files like those already there can still fill, on all pools together.", noPools}, "bytes", `sum(btrfs_pool_free_expected_bytes{POOL})`, plain()},
	} {
		p.place(stat(s.text, s.unit, s.expr, s.levels), gridWidth/8, 4)
	}
}

// poolTable has a row for each pool: the one that is full first stands first.
func poolTable(t *alerts.Thresholds) panel {
	one := 1
	return table(text{
		"Pools",
		"The pool that is full first stands first. Really free is what files like those already there can still fill; df's claim is what df says. A name leads to the pool.",
		noPools,
	}, sortBy{"Days to full", false},
		column{name: "Pool", label: "name", expr: `max by (job, instance, uuid, name) (` + knownPools + `)`, link: &openPool},
		column{name: "Host", label: "instance"},
		column{name: "Answers", expr: byPool("min", `btrfs_scrape_collector_success{POOL, collector="read"}`), states: states(state{"no", critical}, state{"yes", good})},
		column{name: "Alerts", expr: byPool("max", firing(ofPools)), states: severities},
		column{name: "Days to full", expr: byPool("max", `btrfs:pool_days_to_full{POOL}`), decimals: &one, levels: daysLevels(t)},
		column{name: "Space", expr: byPool("max", low(t.FreeBytesWarning, t.FreeWarning)+"\n+ "+low(t.FreeBytesCritical, t.FreeCritical)), states: states(state{"enough", good}, state{"low", warning}, state{"very low", critical})},
		column{name: "Really free", expr: byPool("max", `btrfs_pool_free_expected_bytes{POOL}`), unit: "bytes"},
		column{name: "df's claim", expr: byPool("max", `btrfs_pool_statfs_free_bytes{POOL}`), unit: "bytes"},
		column{name: "Errors, last day", expr: byPool("sum", `round(increase(btrfs_device_errors_total{POOL}[1d]))`), levels: anyIs(warning)},
		column{name: "Errors, all", expr: byPool("sum", `btrfs_device_errors_total{POOL}`)},
		column{name: "Unrepaired", expr: byPool("max", `btrfs_scrub_last_uncorrectable_errors{POOL}`), levels: anyIs(critical)},
		column{name: "Missing", expr: byPool("max", `btrfs_pool_devices_missing{POOL}`), levels: anyIs(critical)},
		column{name: "May fail", expr: byPool("min", `btrfs_pool_device_failures_tolerated{POOL}`)},
		column{name: "Last scrub", expr: byPool("min", `time() - btrfs_scrub_last_success_timestamp_seconds{POOL}`), unit: "s", levels: scrubLevels(t)},
		column{name: "Last snapshot", expr: byPool("min", `time() - btrfs_snapshot_last_success_timestamp_seconds{POOL}`), unit: "s"},
		column{name: "UUID", label: "uuid"},
	)
}

// named gives the series of pools the name and the host that legends have.
func named(expr string) string {
	return expr + "\n* on (job, instance, uuid) group_left (name) max by (job, instance, uuid, name) (" + knownPools + ")"
}

const nameAndHost = "{{name}} on {{instance}}"

func fleetSeries(p *page, t *alerts.Thresholds) {
	worst := func(what panel) panel {
		what.FieldConfig.Defaults.Color = &fieldColor{Mode: "thresholds", SeriesBy: "last"}
		return what
	}
	days := timeSeries(text{"Days to full", "How long each pool takes what is written to it. Beyond the highest threshold it is cut off. Colours are those of the alert BtrfsPoolFillingUp.", noForecast}, "none",
		query{expr: named(fmt.Sprintf(`clamp_max(btrfs:pool_days_to_full{POOL}, %g)`, 3*t.DaysInfo)), legend: nameAndHost})
	days.FieldConfig.Defaults.Unit = "d"
	days.fromZero()
	days.levels(daysLevels(t))
	p.place(worst(days), 12, 9)

	free := timeSeries(text{
		"Really free", fmt.Sprintf("What is free of what the pool holds at most. The alert BtrfsPoolFreeSpaceLow wants less than %.0f and %.0f GiB as well.", t.FreeBytesWarning/gib, t.FreeBytesCritical/gib), noPools,
	}, "percentunit", query{expr: named(`btrfs_pool_free_expected_bytes{POOL} / btrfs_pool_usable_bytes{POOL}`), legend: nameAndHost})
	free.share()
	free.levels(below(map[string]float64{warning: t.FreeWarning, critical: t.FreeCritical}))
	p.place(worst(free), 12, 9)

	found := timeSeries(text{"Device errors", "Errors that pools met on their devices, as btrfs device stats counts them. Alert: BtrfsDeviceErrors.", noPools}, "none",
		query{expr: `round(sum by (type) (increase(btrfs_device_errors_total{POOL}[$__rate_interval])))`, legend: "{{type}}"})
	found.fromZero()
	found.errorTypes()
	p.place(found, 12, 8)

	scrubs := timeSeries(text{"Scrubs", "How many scrubs run, give way to others, or wait for their turn or their hours.", "No scrub is known"}, "none",
		query{`sum(btrfs_scrub_state{POOL, state="running"})`, "running", blue},
		query{`sum(btrfs_scrub_state{POOL, state="yielding"})`, "yielding", skyBlue},
		query{`sum(btrfs_scrub_state{POOL, state=~"waiting|paused"})`, "waiting or paused", reddishPurple})
	scrubs.fromZero()
	p.place(scrubs, 12, 8)
}

// alertTable has the alerts that fire, the worst first.
func alertTable(more string) panel {
	return table(text{"Alerts", "Alerts of btrfs-governor that fire. docs/runbook.md says of each what it means and what to do.", "No alert of btrfs-governor fires, if its rules are loaded"},
		sortBy{"Severity", true},
		column{name: "Severity", expr: `max by (alertname, label, job, instance, uuid, devid, type, path, block_group_type, subvolume, collector) (` + firing(more) + `)`, states: severities},
		column{name: "Alert", label: "alertname"},
		column{name: "Pool", label: "label", link: &openPool},
		column{name: "Host", label: "instance"},
		column{name: "Device", label: "devid"},
		column{name: "Path", label: "path"},
		column{name: "Errors", label: "type"},
		column{name: "Block groups", label: "block_group_type"},
		column{name: "Subvolume", label: "subvolume"},
		column{name: "Collector", label: "collector"},
		column{name: "UUID", label: "uuid"},
	)
}
