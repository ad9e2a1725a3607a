package dashboards

import (
	"fmt"
	"strings"

	"github.com/btrfs-governor/btrfs-governor/alerts"
)

const (
	noPool     = "Nothing is known of this pool: is it mounted, and does it answer?"
	noChunks   = "Not known: it needs the chunks, and those CAP_SYS_ADMIN"
	noScrub    = "No scrub of this pool is known"
	noSnapshot = "btrfs-governor has taken no snapshots of this pool"
)

func pool(t *alerts.Thresholds) *dashboard {
	d := newDashboard(poolUID, "btrfs pool", "One pool: its space, its devices, its scrubs and its snapshots.", 7*day)
	d.Templating = list[variable]{variables(true)}
	d.Annotations = alertAnnotations(ofPools)
	p := &page{}
	poolNumbers(p, t)
	p.row("Space")
	forecast := poolSpace(p, t)
	p.row("Devices")
	poolDevices(p, t)
	p.row("Scrubs")
	poolScrubs(p, t)
	p.row("Snapshots")
	poolSnapshots(p, t)
	p.row("Alerts and btrfs-governor")
	poolGovernor(p)
	d.Panels = p.panels
	// Of the forecast alone: nothing else is known of the future. A link with a range
	// of its own has to name the variables.
	ahead := fmt.Sprintf("/d/%s?var-datasource=${datasource}&${job:queryparam}&${host:queryparam}&${pool:queryparam}&from=now-30d&to=now%%2B30d&viewPanel=%d", poolUID, forecast)
	d.Links = []dashboardLink{
		{Title: "Fleet", Tooltip: "All pools", Type: "link", Icon: "dashboard", URL: "/d/" + fleetUID + "?var-datasource=${datasource}", Tags: []string{}, KeepTime: true},
		{Title: "Look ahead", Tooltip: "The forecast for the next 30 days, beside the last 30", Type: "link", Icon: "bolt", URL: ahead, Tags: []string{}},
	}
	return d
}

func poolNumbers(p *page, t *alerts.Thresholds) {
	place := func(what panel) { p.place(what, gridWidth/8, 4) }
	one := 1
	days := stat(text{"Days to full", fmt.Sprintf("How long the pool takes what is written to it, as it filled up over the last two weeks; %.0f is as far as it is worked out. Alert: BtrfsPoolFillingUp.", t.DaysCap), noForecast}, "none", `btrfs:pool_days_to_full{POOL}`, daysLevels(t))
	days.FieldConfig.Defaults.Decimals = &one
	place(days)
	place(stat(text{"Full on", "The day on which nothing can be written any more, if it goes on like this.", fmt.Sprintf("Not within %.0f years, or no forecast yet", t.DaysCap/365)}, "dateTimeAsIso",
		fmt.Sprintf(`1000 * (time() + 86400 * (btrfs:pool_days_to_full{POOL} < %g))`, t.DaysCap), plain()))
	free := stat(text{"Really free", "What files like those already there can still fill. Alert: BtrfsPoolFreeSpaceLow.", noPool}, "bytes", `btrfs_pool_free_expected_bytes{POOL}`, plain())
	place(free)
	place(stat(text{"df's claim", "What df says is available, for contrast.", noPool}, "bytes", `btrfs_pool_statfs_free_bytes{POOL}`, plain()))
	place(stat(text{"May fail", "Devices that can fail, beyond those already missing, without the loss of a byte. Alert, by profile: BtrfsPoolRedundancyLost.", noChunks}, "none", `btrfs_pool_device_failures_tolerated{POOL}`, plain()))
	place(stat(text{"Missing", "Devices that are missing. Alert: BtrfsDeviceMissing.", noPool}, "none", `btrfs_pool_devices_missing{POOL}`, anyIs(critical)))
	place(stat(text{"Last scrub", "How long ago a scrub went over all devices to their end. Alert: BtrfsScrubOverdue.", noScrub}, "s", `time() - btrfs_scrub_last_success_timestamp_seconds{POOL}`, scrubLevels(t)))
	place(stat(text{"Last snapshot", "How long ago all snapshots that were due were last taken. Alert: BtrfsSnapshotMissing.", noSnapshot}, "s", `time() - btrfs_snapshot_last_success_timestamp_seconds{POOL}`, plain()))
}

// forecastLine goes through what is free at the last sample, with the slope that
// btrfs:pool_days_to_full has there, and ends at 0: then there is no space left.
// It also stands where the range reaches into the future. $__range and
// $__interval take the range and the steps of the panel, and @ end() the last of
// them, so that the three values are looked for once.
const forecastLine = `clamp_min(
  last_over_time(btrfs_pool_free_expected_bytes{POOL}[$__range] @ end())
  * (1 - (time() - max_over_time(timestamp(btrfs_pool_free_expected_bytes{POOL})[$__range:$__interval] @ end()))
    / (86400 * last_over_time(btrfs:pool_days_to_full{POOL}[$__range] @ end())))
, 0)`

// lowFrom is below how many bytes BtrfsPoolFreeSpaceLow fires.
func lowFrom(bytes, share float64) string {
	return fmt.Sprintf(`clamp_max(%g * btrfs_pool_usable_bytes{POOL}, %.0f)`, share, bytes)
}

// poolSpace returns the id of the panel with the forecast.
func poolSpace(p *page, t *alerts.Thresholds) (forecast int) {
	free := timeSeries(text{
		"Free space and forecast",
		"What files like those already there can still fill, beside what df says and what the devices hold at most. The forecast is the line that the alert BtrfsPoolFillingUp goes by, and ends where nothing can be written any more; Look ahead, above, shows where. Below the two lines of the alert BtrfsPoolFreeSpaceLow there is little left.",
		noPool,
	}, "bytes",
		query{`btrfs_pool_free_expected_bytes{POOL}`, "really free", bluishGreen},
		query{`btrfs_pool_free_bytes{POOL}`, "free for a few large files", skyBlue},
		query{`btrfs_pool_statfs_free_bytes{POOL}`, "df's claim", reddishPurple},
		query{`btrfs_pool_usable_bytes{POOL}`, "ceiling", blue},
		query{`btrfs_pool_used_bytes{POOL}`, "file data", grey},
		query{forecastLine, "forecast", bluishGreen},
		query{lowFrom(t.FreeBytesWarning, t.FreeWarning), "low", warning},
		query{lowFrom(t.FreeBytesCritical, t.FreeCritical), "very low", critical},
	)
	free.fromZero()
	for _, refID := range []string{"F", "G", "H"} {
		free.dash(refID)
	}
	forecast = p.place(free, 16, 10)

	raw := timeSeries(text{"Raw space", "The bytes of all devices: what block groups of each type have, what is in none, and what of that no new data chunk reaches (stranded).", noChunks}, "bytes",
		query{`sum by (block_group_type) (btrfs_device_allocated_bytes{POOL})`, "{{block_group_type}}", ""},
		query{`sum(btrfs_device_stranded_bytes{POOL})`, "stranded", vermillion},
		query{`clamp_min(sum(btrfs_device_unallocated_bytes{POOL}) - sum(btrfs_device_stranded_bytes{POOL}), 0)`, "unallocated", grey})
	raw.colour("data", blue)
	raw.colour("metadata", orange)
	raw.colour("system", reddishPurple)
	raw.colour("mixed", skyBlue)
	raw.fromZero()
	raw.stack()
	p.place(raw, 8, 10)

	metadata := timeSeries(text{"Room for metadata", "What is free of all metadata there can be. Without any, every write fails with \"No space left on device\", whatever df says. Alert: BtrfsPoolMetadataSpaceLow.", noPool}, "percentunit",
		query{`btrfs_pool_metadata_free_bytes{POOL}
/ on (job, instance, uuid) (
  btrfs_pool_metadata_free_bytes{POOL}
  + on (job, instance, uuid) sum by (job, instance, uuid) (btrfs_allocation_used_bytes{POOL, block_group_type=~"metadata|mixed"})
)`, "free", orange},
		query{`btrfs_pool_global_reserve_used_bytes{POOL} / btrfs_pool_global_reserve_bytes{POOL}`, "global reserve in use", vermillion})
	metadata.share()
	metadata.levels(below(map[string]float64{warning: t.MetadataWarning, critical: t.MetadataCritical}))
	p.place(metadata, 8, 8)

	fill := timeSeries(text{"How full block groups are", fmt.Sprintf("Much less than full: a balance gives space back. Data above %.0f %% is the alert BtrfsChunkAllocationImminent where no device has room for another block group.", 100*t.DataFull), noPool}, "percentunit",
		query{`sum by (block_group_type) (btrfs_allocation_used_bytes{POOL}) / sum by (block_group_type) (btrfs_allocation_size_bytes{POOL})`, "{{block_group_type}}", ""})
	fill.colour("data", blue)
	fill.colour("metadata", orange)
	fill.colour("system", reddishPurple)
	fill.colour("mixed", skyBlue)
	fill.share()
	fill.levels(above(map[string]float64{warning: t.DataFull}))
	p.place(fill, 8, 8)

	gain := timeSeries(text{"What a balance gains", "What more could be written after a full balance, of what the pool holds at most. Alert: BtrfsSpaceStranded.", noPool}, "percentunit",
		query{`clamp_min(btrfs_pool_free_after_balance_bytes{POOL} - btrfs_pool_free_bytes{POOL}, 0) / btrfs_pool_usable_bytes{POOL}`, "gain", bluishGreen})
	gain.fromZero()
	gain.levels(above(map[string]float64{info: t.Balance}))
	p.place(gain, 4, 8)

	stranded := timeSeries(text{"Stranded space", "Raw space that no new data chunk reaches. By mismatch: the sizes of the devices do not fit the profile, add or swap one. By imbalance: a balance gives it back.", noPool}, "bytes",
		query{`btrfs_pool_stranded_bytes{POOL, reason="mismatch"}`, "mismatch", vermillion},
		query{`btrfs_pool_stranded_bytes{POOL, reason="imbalance"}`, "imbalance", orange})
	stranded.fromZero()
	stranded.stack()
	p.place(stranded, 4, 8)
	return forecast
}

// deviceName is the label device of a query by devid: the id and the path.
func deviceName(expr string) string {
	return `sum by (device) (label_join(` + expr + withPath + `, "device", " ", "devid", "path"))`
}

func allocated(blockGroupType string) string {
	return deviceName(`sum by (job, instance, uuid, devid) (btrfs_device_allocated_bytes{POOL, block_group_type="` + blockGroupType + `"})`)
}

// allocation is a bar for each device.
func allocation() panel {
	p := newPanel("barchart", text{
		"What each device holds",
		"What each device gave to block groups of each type, what is in none, and what of that no new data chunk reaches (stranded).",
		noChunks,
	}, "bytes", barChartOptions{
		XField: "device", Orientation: "horizontal", Stacking: "normal", ShowValue: "never", BarWidth: 0.8, GroupWidth: 0.7, XTickLabelMaxLength: 30,
		Legend: legend{true, "list", "bottom", []string{}}, Tooltip: tooltip{"multi", "none"},
	}, barChartField{FillOpacity: 80, LineWidth: 1})
	order := organize{map[string]bool{"Time": true}, map[string]int{"device": 0}, map[string]string{}}
	for i, part := range []query{
		{allocated("data"), "data", blue},
		{allocated("metadata"), "metadata", orange},
		{allocated("system"), "system", reddishPurple},
		{allocated("mixed"), "mixed", skyBlue},
		{deviceName(`clamp_min(btrfs_device_unallocated_bytes{POOL} - (btrfs_device_stranded_bytes{POOL} or 0 * btrfs_device_unallocated_bytes{POOL}), 0)`), "unallocated", grey},
		{deviceName(`btrfs_device_stranded_bytes{POOL}`), "stranded", vermillion},
	} {
		source := "Value #" + p.ask(query{expr: part.expr}, tableFormat)
		order.IndexByName[source], order.RenameByName[source] = i+1, part.legend
		p.colour(part.legend, part.colour)
	}
	p.Transformations = []transformation{{"merge", struct{}{}}, {"organize", order}}
	return p
}

// byDevice keeps of a query what tells devices apart.
func byDevice(expr string) string { return `max by (devid) (` + expr + `)` }

func deviceTable() panel {
	return table(text{"Devices", "Each device by itself. Errors are those that btrfs device stats counts, since they were last reset; the serial number finds the drive to pull.", noPool},
		sortBy{"Id", false},
		column{name: "Id", label: "devid", expr: `max by (devid, path, model, serial) (btrfs_device_info{POOL})`},
		column{name: "Path", label: "path"},
		column{name: "Model", label: "model"},
		column{name: "Serial number", label: "serial"},
		column{name: "Missing", expr: byDevice(`btrfs_device_missing{POOL}`), states: states(state{"no", good}, state{"yes", critical})},
		column{name: "Writeable", expr: byDevice(`btrfs_device_writeable{POOL}`), states: states(state{"no", warning}, state{"yes", good})},
		column{name: "Size", expr: byDevice(`btrfs_device_size_bytes{POOL}`), unit: "bytes"},
		column{name: "Unallocated", expr: byDevice(`btrfs_device_unallocated_bytes{POOL}`), unit: "bytes"},
		column{name: "Stranded", expr: byDevice(`btrfs_device_stranded_bytes{POOL}`), unit: "bytes"},
		column{name: "Write errors", expr: byDevice(`btrfs_device_errors_total{POOL, type="write"}`), levels: anyIs(info)},
		column{name: "Read errors", expr: byDevice(`btrfs_device_errors_total{POOL, type="read"}`), levels: anyIs(info)},
		column{name: "Flush errors", expr: byDevice(`btrfs_device_errors_total{POOL, type="flush"}`), levels: anyIs(info)},
		column{name: "Corruption", expr: byDevice(`btrfs_device_errors_total{POOL, type="corruption"}`), levels: anyIs(info)},
		column{name: "Generation", expr: byDevice(`btrfs_device_errors_total{POOL, type="generation"}`), levels: anyIs(info)},
		column{name: "Errors, last day", expr: `sum by (devid) (round(increase(btrfs_device_errors_total{POOL}[1d])))`, levels: anyIs(warning)},
		column{name: "Repaired by scrubs", expr: byDevice(`btrfs_scrub_corrected_errors_total{POOL}`)},
		column{name: "Wholly verified", expr: `min by (devid) (time() - btrfs_scrub_oldest_verified_timestamp_seconds{POOL})`, unit: "s"},
	)
}

func poolDevices(p *page, t *alerts.Thresholds) {
	p.place(allocation(), 12, 9)

	where := timeSeries(text{"Where the metadata lies", "The share of the pool's metadata that each device holds.", noChunks}, "percentunit",
		query{`btrfs_device_metadata_share_ratio{POOL}` + withPath, "{{devid}} {{path}}", ""})
	where.share()
	where.devices()
	p.place(where, 6, 9)

	spread := timeSeries(text{"Metadata on the same devices", "The share of the metadata of which all copies lie on one and the same devices. At 100 % these have all of it: should they fail together, the pool is lost. Where there are more devices than copies: the alert BtrfsMetadataConcentrated.", noChunks}, "percentunit",
		query{`btrfs_metadata_concentration_ratio{POOL}`, "concentration", orange})
	spread.share()
	spread.levels(above(map[string]float64{info: t.Concentration}))
	p.place(spread, 6, 9)

	p.place(deviceTable(), gridWidth, 8)

	found := timeSeries(text{"Device errors", "Errors that the pool met on its devices. write, read and flush are refused by the disk; corruption is a checksum that did not match; generation a write that got lost. Alerts: BtrfsDeviceErrors, BtrfsDeviceFailing.", noPool}, "none",
		query{`round(sum by (type) (increase(btrfs_device_errors_total{POOL}[$__rate_interval])))`, "{{type}}", ""})
	found.fromZero()
	found.errorTypes()
	p.place(found, 8, 8)

	redundancy := timeSeries(text{"What may fail", "Devices that can fail without the loss of a byte, and those that are missing. Alert, by profile: BtrfsPoolRedundancyLost.", noChunks}, "none",
		query{`btrfs_pool_device_failures_tolerated{POOL}`, "may fail", blue},
		query{`btrfs_pool_devices_missing{POOL}`, "missing", vermillion})
	redundancy.fromZero()
	p.place(redundancy, 8, 8)

	loss := timeSeries(text{"Lost with the worst two devices", "Block groups that are lost with those two devices whose loss costs most, used or not; and those that are lost already with what is missing. Alert: BtrfsDeviceMissing.", noChunks}, "bytes",
		query{`btrfs_pool_worst_pair_loss_bytes{POOL, block_group_type="data"}`, "data", blue},
		query{`btrfs_pool_worst_pair_loss_bytes{POOL, block_group_type="metadata"}`, "metadata", orange},
		query{`btrfs_pool_worst_pair_loss_bytes{POOL, block_group_type="system"}`, "system", reddishPurple},
		query{`btrfs_pool_worst_pair_loss_bytes{POOL, block_group_type="mixed"}`, "mixed", skyBlue},
		query{`sum by (job, instance, uuid) (btrfs_pool_lost_bytes{POOL})`, "lost already", vermillion})
	loss.fromZero()
	p.place(loss, 8, 8)
}

func poolScrubs(p *page, t *alerts.Thresholds) {
	p.place(stateTimeline(text{"Scrubs", "What the scrub of the pool was doing. Yielding: it gave way to whoever used the disks.", noScrub},
		query{expr: `sum by (job, instance, uuid) (
  0 * btrfs_scrub_state{POOL, state="idle"}
  or 1 * btrfs_scrub_state{POOL, state="waiting"}
  or 2 * btrfs_scrub_state{POOL, state="running"}
  or 3 * btrfs_scrub_state{POOL, state="yielding"}
  or 4 * btrfs_scrub_state{POOL, state="paused"}
  or 5 * btrfs_scrub_state{POOL, state="finished"}
  or 6 * btrfs_scrub_state{POOL, state="cancelled"}
  or 7 * btrfs_scrub_state{POOL, state="failed"}
)`, legend: "scrub"},
		state{"never scrubbed", grey}, state{"waiting", reddishPurple}, state{"running", blue}, state{"yielding", skyBlue},
		state{"paused", reddishPurple}, state{"finished", bluishGreen}, state{"cancelled", orange}, state{"failed", vermillion},
	), 16, 5)
	p.place(stat(text{"Yielded, last day", "The share of the last day for which the scrub gave way. Alert: BtrfsScrubStarved.", noScrub}, "percentunit", `sum by (job, instance, uuid) (increase(btrfs_scrub_yield_seconds_total{POOL}[1d])) / 86400`, above(map[string]float64{info: t.ScrubYield})), 4, 5)
	p.place(stat(text{"Unrepaired errors", "Errors of the last scrub that no other copy could repair: files are damaged. Alert: BtrfsScrubErrorsUncorrectable.", noScrub}, "none", `btrfs_scrub_last_uncorrectable_errors{POOL}`, anyIs(critical)), 4, 5)

	progress := timeSeries(text{"Progress", "How much of the current or last scrub is done.", noScrub}, "percentunit",
		query{`btrfs_scrub_progress_ratio{POOL}`, "done", blue})
	progress.share()
	p.place(progress, 8, 8)

	rate := timeSeries(text{"Rate", "How fast the scrub goes on each device, and its limit where it has one. 1 B/s is a pause: the scrub gives way.", "No scrub runs in this time"}, "binBps",
		query{`btrfs_scrub_rate_bytes_per_second{POOL}` + withPath, "{{devid}} {{path}}", ""},
		query{`min(btrfs_scrub_limit_bytes_per_second{POOL} < Inf)`, "least limit", vermillion})
	rate.fromZero()
	rate.devices()
	rate.dash("B")
	p.place(rate, 8, 8)

	yield := timeSeries(text{"Giving way", "The share of the time for which the scrub gave way to others, and for which it would have and went on to meet its deadline.", noScrub}, "percentunit",
		query{`sum(rate(btrfs_scrub_yield_seconds_total{POOL}[$__rate_interval]))`, "gave way", skyBlue},
		query{`sum(rate(btrfs_scrub_urged_seconds_total{POOL}[$__rate_interval]))`, "urged on", orange})
	yield.share()
	p.place(yield, 8, 8)

	latency := timeSeries(text{"Foreground latency", "How long reads of others take while the scrub gives way to them.", "The scrub gave way to nobody in this time"}, "s",
		query{`btrfs_scrub_foreground_read_latency_seconds{POOL}`, "mean read", skyBlue})
	latency.fromZero()
	p.place(latency, 8, 8)

	found := timeSeries(text{"Errors that scrubs found", "All that have been found, by type, and those that were repaired. An uncorrectable one is counted under what it is as well. Alerts: BtrfsScrubErrorsCorrected, BtrfsScrubErrorsUncorrectable.", noScrub}, "none",
		query{`sum by (type) (btrfs_scrub_errors_total{POOL})`, "{{type}}", ""},
		query{`sum(btrfs_scrub_corrected_errors_total{POOL})`, "repaired", bluishGreen})
	for _, kind := range []state{{"read", orange}, {"csum", blue}, {"verify", skyBlue}, {"super", reddishPurple}, {"malloc", grey}, {"unverified", grey}, {"uncorrectable", vermillion}} {
		found.colour(kind.text, kind.colour)
	}
	found.fromZero()
	p.place(found, 8, 8)

	verified := timeSeries(text{"Age of what was verified longest ago", "How long ago the least recently verified part of each device was read and checked.", "No device was ever wholly verified"}, "s",
		query{`(time() - btrfs_scrub_oldest_verified_timestamp_seconds{POOL})` + withPath, "{{devid}} {{path}}", ""})
	verified.fromZero()
	verified.devices()
	verified.levels(scrubLevels(t))
	p.place(verified, 8, 8)
}

// missedFrom is from how many seconds without snapshots BtrfsSnapshotMissing fires.
func missedFrom(times float64, t *alerts.Thresholds) string {
	return strings.NewReplacer("TIMES", fmt.Sprint(times), "LEAST", fmt.Sprint(times*t.SnapshotsLeast.Hours())).Replace(
		`clamp_min(TIMES * 4 * 7 * 86400 / (changes(btrfs_snapshot_last_success_timestamp_seconds{POOL}[4w] offset 1w) > 3), LEAST * 3600)`)
}

func poolSnapshots(p *page, t *alerts.Thresholds) {
	age := timeSeries(text{"Time without snapshots", "How long ago all snapshots that were due were last taken, and from when on the alert BtrfsSnapshotMissing fires; that is known after some weeks.", noSnapshot}, "s",
		query{`time() - btrfs_snapshot_last_success_timestamp_seconds{POOL}`, "last snapshots", blue},
		query{missedFrom(t.SnapshotsWarning, t), "late", warning},
		query{missedFrom(t.SnapshotsCritical, t), "very late", critical})
	age.fromZero()
	age.dash("B")
	age.dash("C")
	p.place(age, 8, 8)

	count := timeSeries(text{"Snapshots", "How many there are of those that btrfs-governor made, and of how many deleted subvolumes the kernel is still giving back the space. Alert: BtrfsSnapshotPruningStuck.", noSnapshot}, "none",
		query{`sum(btrfs_snapshot_count{POOL})`, "snapshots", blue},
		query{`sum(btrfs_snapshot_cleaning{POOL})`, "being cleaned", orange})
	count.fromZero()
	p.place(count, 8, 8)

	made := timeSeries(text{"Taken and pruned", "Snapshots that were taken and deleted, and those that could not be taken. Alert: BtrfsSnapshotFailed.", noSnapshot}, "none",
		query{`round(sum(increase(btrfs_snapshot_created_total{POOL}[$__rate_interval])))`, "taken", blue},
		query{`round(sum(increase(btrfs_snapshot_pruned_total{POOL}[$__rate_interval])))`, "pruned", grey},
		query{`round(sum(increase(btrfs_snapshot_failures_total{POOL}[$__rate_interval])))`, "failed", vermillion})
	made.fromZero()
	p.place(made, 8, 8)

	p.place(table(text{"Subvolumes", "The snapshots of each subvolume: how many there are, and how far back they go.", noSnapshot}, sortBy{"Subvolume", false},
		column{name: "Subvolume", label: "subvolume", expr: `max by (subvolume) (btrfs_snapshot_created_total{POOL})`},
		column{name: "Snapshots", expr: `max by (subvolume) (btrfs_snapshot_count{POOL})`},
		column{name: "Newest", expr: `min by (subvolume) (time() - btrfs_snapshot_newest_timestamp_seconds{POOL})`, unit: "s"},
		column{name: "Oldest", expr: `max by (subvolume) (time() - btrfs_snapshot_oldest_timestamp_seconds{POOL})`, unit: "s"},
		column{name: "Failed, last six hours", expr: `max by (subvolume) (round(increase(btrfs_snapshot_failures_total{POOL}[6h])))`, levels: anyIs(warning)},
	), gridWidth, 6)
}

func poolGovernor(p *page) {
	p.place(alertTable(ofPools), gridWidth, 7)

	p.place(stateTimeline(text{"State of the pool", "Whether the pool is read-only, and which operation that excludes others runs. Alert: BtrfsPoolReadOnly.", noPool},
		query{expr: `label_replace(btrfs_pool_read_only{POOL}, "operation", "read-only", "", "")
or max by (job, instance, uuid, operation) (btrfs_pool_exclusive_operation{POOL})`, legend: "{{operation}}"},
		state{" ", grey}, state{"yes", orange},
	), 8, 9)

	commits := timeSeries(text{"Commits", "How long transaction commits take, and the share of the time that they take.", "Not known: it needs kernel 6.1 or later"}, "s",
		query{`rate(btrfs_pool_commit_seconds_total{POOL}[$__rate_interval]) / (rate(btrfs_pool_commits_total{POOL}[$__rate_interval]) > 0)`, "mean", blue},
		query{`btrfs_pool_last_commit_seconds{POOL}`, "last", skyBlue},
		query{`btrfs_pool_max_commit_seconds{POOL}`, "longest since the mount", grey})
	commits.fromZero()
	p.place(commits, 8, 9)

	p.place(stateTimeline(text{"Collectors", "Whether each collector had all that it needs; what it lacks is missing above. read is the reading of the pool as a whole. Alerts: BtrfsCollectorFailing, BtrfsPoolNotAnswering.", noPool},
		query{expr: `min by (collector) (btrfs_scrape_collector_success{POOL})`, legend: "{{collector}}"},
		state{"failed", vermillion}, state{"good", bluishGreen},
	), 8, 9)
}
