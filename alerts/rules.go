package alerts

import (
	"bytes"
	"fmt"
	"strings"
	"text/template"
	"time"
)

// The severities: critical wants a person now, warning this week, info on
// occasion.
const (
	critical = "critical"
	warning  = "warning"
	info     = "info"
)

type group struct {
	Name     string
	Interval string // "" is that of Prometheus
	Records  []record
	Alerts   []alert
}

type record struct{ Comment, Name, Expr string }

// alert is a rule. Keep is for how long it fires on after its reason is gone,
// so that a gap between scrapes does not end it.
type alert struct {
	Name, Severity, For, Keep  string
	Expr, Summary, Description string
}

// Joins of names. The value stays what it is.
const (
	named       = "\n* on (job, instance, uuid) group_left (label) btrfs_pool_info"
	namedDevice = named + "\n* on (job, instance, uuid, devid) group_left (path, model, serial) btrfs_device_info"
)

// Names in texts.
const (
	pool   = `{{ with $labels.label }}{{ . }} {{ end }}({{ $labels.uuid }})`
	device = `{{ with $labels.path }}{{ . }}{{ else }}{{ $labels.devid }}{{ end }}{{ with $labels.model }}, {{ . }}{{ end }}{{ with $labels.serial }}, serial number {{ . }}{{ end }}`
)

// queried is a text with the value of a query about the pool of the alert; ""
// where it has none.
func queried(query, text string) string {
	return `{{ with printf "` + query + `" $labels.uuid | query }}` + text + `{{ end }}`
}

// grew is true of a counter that rose within a window, or that appeared meanwhile
// with something counted: those of scrubs do with the first scrub, and increase
// does not see that.
func grew(counter, window string) string {
	return strings.NewReplacer("COUNTER", counter, "WINDOW", window).Replace(
		`(increase(COUNTER[WINDOW]) > 0 or COUNTER > 0 unless max_over_time(COUNTER[1w] offset WINDOW))`)
}

// deviceErrors is true of a counter that rose in the last day, or while the
// machine was off before that: errors at a mount are counted before the first
// scrape.
const deviceErrors = `(increase(btrfs_device_errors_total[1d]) > 0 or btrfs_device_errors_total > last_over_time(btrfs_device_errors_total[1w] offset 1d))`

// lostNotifications are what nobody was told, by what became of it: with the
// empty receiver, what was for one that there is not.
const lostNotifications = `btrfs_governor_notifications_total{result=~"refused|dropped|unknown"}`

// daysToFull divides the room by what of it is used up in a day. That is the
// greater of two figures, neither of which one odd day can move: the changes
// from day to day over a week, of which the quartiles and the median are
// averaged, and just below the median of the changes from week to week over two
// weeks. A burst of a night, a deletion or a new device is in one day of seven,
// and in half of those weeks, and stays outside; a rhythm of days shows in the
// quartiles, one of a week in the weeks.
func daysToFull(metric string, most float64) string {
	const (
		daily = `(
    quantile_over_time(0.25, (METRIC offset 1d - METRIC)[1w:2h])
    + quantile_over_time(0.5, (METRIC offset 1d - METRIC)[1w:2h])
    + quantile_over_time(0.75, (METRIC offset 1d - METRIC)[1w:2h])
  ) / 3`
		weekly = `quantile_over_time(0.4, (METRIC offset 1w - METRIC)[2w:12h]) / 7`
	)
	expr := `clamp_max(METRIC / clamp_min(
  ` + daily + ` >= ` + weekly + `
  or ` + weekly + `
  or ` + daily + `
, 1), MOST)`
	return strings.NewReplacer("METRIC", metric, "MOST", fmt.Sprint(most)).Replace(expr)
}

// levels returns an alert for each severity; write fills in the rest.
func levels[T any](values map[string]T, write func(severity string, value T) alert) []alert {
	var alerts []alert
	for _, severity := range []string{info, warning, critical} {
		if v, ok := values[severity]; ok {
			a := write(severity, v)
			a.Severity = severity
			alerts = append(alerts, a)
		}
	}
	return alerts
}

func spaceGroup(t *Thresholds) group {
	g := group{Name: "btrfs-space"}
	g.Alerts = append(g.Alerts, levels(map[string]float64{info: t.DaysInfo, warning: t.DaysWarning, critical: t.DaysCritical}, func(severity string, days float64) alert {
		a := alert{
			Name: "BtrfsPoolFillingUp", For: "1h", Keep: "2h",
			Expr:        fmt.Sprintf("(btrfs:pool_days_to_full < %g)", days) + named,
			Summary:     `Pool ` + pool + ` is full in {{ printf "%.1f" $value }} days`,
			Description: `As it filled up over the last two weeks, pool ` + pool + ` on {{ $labels.instance }} takes nothing more in {{ printf "%.1f" $value }} days.` + queried("btrfs_pool_free_expected_bytes{uuid='%s'}", ` {{ . | first | value | humanize1024 }}B can still be written to it.`),
		}
		if severity == info {
			a.For = "6h"
		}
		return a
	})...)
	g.Alerts = append(g.Alerts, alert{
		Name: "BtrfsPoolFullSoon", Severity: critical, For: "10m", Keep: "10m",
		Expr: fmt.Sprintf(`(
  btrfs_pool_free_expected_bytes
  and predict_linear(btrfs_pool_free_expected_bytes[1h], %g * 3600) < 0
  and btrfs_pool_free_expected_bytes < %g * btrfs_pool_usable_bytes
)`, t.FullSoonHours, t.FreeWarning) + named,
		Summary:     `Pool ` + pool + fmt.Sprintf(` is full within %g hours`, t.FullSoonHours),
		Description: `{{ $value | humanize1024 }}B can still be written to pool ` + pool + fmt.Sprintf(` on {{ $labels.instance }}. At the rate of the last hour that lasts less than %g hours.`, t.FullSoonHours),
	})
	type low struct{ share, bytes float64 }
	g.Alerts = append(g.Alerts, levels(map[string]low{warning: {t.FreeWarning, t.FreeBytesWarning}, critical: {t.FreeCritical, t.FreeBytesCritical}}, func(_ string, l low) alert {
		return alert{
			Name: "BtrfsPoolFreeSpaceLow", For: "15m", Keep: "15m",
			Expr: fmt.Sprintf(`(
  btrfs_pool_free_expected_bytes < %.0f
  and btrfs_pool_free_expected_bytes < %g * btrfs_pool_usable_bytes
)`, l.bytes, l.share) + named,
			Summary:     `Pool ` + pool + ` has {{ $value | humanize1024 }}B free`,
			Description: `{{ $value | humanize1024 }}B can still be written to pool ` + pool + fmt.Sprintf(` on {{ $labels.instance }}: less than %g %% of what it holds at most.`, 100*l.share) + queried("btrfs_pool_statfs_free_bytes{uuid='%s'}", ` df says {{ . | first | value | humanize1024 }}B.`),
		}
	})...)
	g.Alerts = append(g.Alerts, levels(map[string]float64{warning: t.MetadataWarning, critical: t.MetadataCritical}, func(_ string, share float64) alert {
		return alert{
			Name: "BtrfsPoolMetadataSpaceLow", For: "15m", Keep: "15m",
			Expr: fmt.Sprintf(`(
  btrfs_pool_metadata_free_bytes
  < on (job, instance, uuid) %g * (
    btrfs_pool_metadata_free_bytes
    + on (job, instance, uuid) sum by (job, instance, uuid) (btrfs_allocation_used_bytes{block_group_type=~"metadata|mixed"})
  )
)`, share) + named,
			Summary:     `Pool ` + pool + ` has room for {{ $value | humanize1024 }}B of metadata`,
			Description: `Only {{ $value | humanize1024 }}B of metadata can still be written to pool ` + pool + ` on {{ $labels.instance }}. Without it every write fails with "No space left on device", whatever df says, and so does deleting files.`,
		}
	})...)
	g.Alerts = append(g.Alerts, levels(map[string]float64{warning: t.DaysWarning, critical: t.DaysCritical}, func(_ string, days float64) alert {
		return alert{
			Name: "BtrfsPoolMetadataFillingUp", For: "1h", Keep: "2h",
			Expr:        fmt.Sprintf("(btrfs:pool_metadata_days_to_full < %g)", days) + named,
			Summary:     `The metadata of pool ` + pool + ` is full in {{ printf "%.1f" $value }} days`,
			Description: `As it grew over the last two weeks, there is no room for more metadata on pool ` + pool + ` on {{ $labels.instance }} in {{ printf "%.1f" $value }} days. Then every write fails with "No space left on device", whatever df says.`,
		}
	})...)
	g.Alerts = append(g.Alerts, alert{
		Name: "BtrfsChunkAllocationImminent", Severity: warning, For: "15m", Keep: "15m",
		Expr: fmt.Sprintf(`(
  sum by (job, instance, uuid) (btrfs_allocation_used_bytes{block_group_type="data"})
  / sum by (job, instance, uuid) (btrfs_allocation_size_bytes{block_group_type="data"})
  > %g
  and on (job, instance, uuid) btrfs_pool_free_bytes <= on (job, instance, uuid) 1.01 * (
    sum by (job, instance, uuid) (btrfs_allocation_size_bytes{block_group_type="data"})
    - sum by (job, instance, uuid) (btrfs_allocation_used_bytes{block_group_type="data"})
  )
)`, t.DataFull) + named,
		Summary:     `Pool ` + pool + ` can allocate no more data block groups`,
		Description: `The data block groups of pool ` + pool + ` on {{ $labels.instance }} are {{ $value | humanizePercentage }} full, and the devices have no room for another one.`,
	})
	g.Alerts = append(g.Alerts, alert{
		Name: "BtrfsSpaceStranded", Severity: info, For: "6h", Keep: "1h",
		Expr: fmt.Sprintf(`(
  btrfs_pool_free_after_balance_bytes - btrfs_pool_free_bytes
  > %g * btrfs_pool_usable_bytes
)`, t.Balance) + named,
		Summary:     `A balance of pool ` + pool + ` gives back {{ $value | humanize1024 }}B`,
		Description: `Chunks lie so on the devices of pool ` + pool + ` on {{ $labels.instance }} that {{ $value | humanize1024 }}B cannot be allocated. A balance would give them back.`,
	})
	return g
}

func deviceGroup(t *Thresholds) group {
	return group{Name: "btrfs-devices", Alerts: []alert{
		{
			Name: "BtrfsDeviceMissing", Severity: critical, Keep: "5m",
			Expr:    `(btrfs_device_missing == 1)` + named,
			Summary: `A device of pool ` + pool + ` is missing`,
			Description: `Device {{ $labels.devid }} of pool ` + pool + ` on {{ $labels.instance }} is missing.` + queried("max by (uuid) (sum by (job, instance, uuid) (btrfs_pool_lost_bytes{uuid='%s'})) > 0", ` Block groups of {{ . | first | value | humanize1024 }}B have no copy on a device that is there: what lies in them cannot be read.{{ else }}`+
				queried("btrfs_pool_device_failures_tolerated{uuid='%s'}", ` {{ with . | first | value }}{{ . }} more{{ else }}No other{{ end }} may fail before data is lost.`)),
		},
		{
			Name: "BtrfsPoolRedundancyLost", Severity: warning, For: "10m", Keep: "10m",
			Expr: `(
  btrfs_pool_device_failures_tolerated < 1
  and on (job, instance, uuid) btrfs_pool_info{data_profile=~"raid(1|10|5|1c3|6|1c4)", metadata_profile=~"raid(1|10|5|1c3|6|1c4)"}
  or
  btrfs_pool_device_failures_tolerated < 2
  and on (job, instance, uuid) btrfs_pool_info{data_profile=~"raid(1c3|6|1c4)", metadata_profile=~"raid(1c3|6|1c4)"}
  or
  btrfs_pool_device_failures_tolerated < 3
  and on (job, instance, uuid) btrfs_pool_info{data_profile="raid1c4", metadata_profile="raid1c4"}
)` + named,
			Summary:     `Pool ` + pool + ` survives fewer failures than its profile promises`,
			Description: `Pool ` + pool + ` on {{ $labels.instance }} loses data when {{ if eq $value 0.0 }}any one device fails{{ else }}more than {{ $value }} of its devices fail{{ end }}: a device is missing, or some block groups still have another profile.`,
		},
		{
			Name: "BtrfsMixedProfiles", Severity: warning, For: "1h", Keep: "10m",
			Expr: `(
  count by (job, instance, uuid, block_group_type) (btrfs_allocation_size_bytes) > 1
  unless on (job, instance, uuid) btrfs_pool_exclusive_operation{operation=~"balance|balance_paused"} == 1
)` + named,
			Summary:     `Pool ` + pool + ` has {{ $labels.block_group_type }} in {{ $value }} profiles`,
			Description: `The {{ $labels.block_group_type }} of pool ` + pool + ` on {{ $labels.instance }} lies in block groups of {{ $value }} profiles, and no balance is converting it. That is what a conversion that was broken off leaves, or writing to a pool that was mounted degraded.`,
		},
		{
			Name: "BtrfsDeviceErrors", Severity: warning, Keep: "1h",
			Expr: `(
  btrfs_device_errors_total
  and ` + deviceErrors + `
)` + namedDevice,
			Summary:     `{{ $labels.type }} errors on a device of pool ` + pool,
			Description: `Device ` + device + ` of pool ` + pool + ` on {{ $labels.instance }} had {{ $labels.type }} errors in the last day; {{ $value }} have been counted in all.`,
		},
		{
			Name: "BtrfsDeviceFailing", Severity: critical, Keep: "1h",
			Expr: `(
  btrfs_device_errors_total{type=~"read|write|flush"}
  and increase(btrfs_device_errors_total{type=~"read|write|flush"}[1h]) > 100
)` + namedDevice,
			Summary:     `A device of pool ` + pool + ` is failing`,
			Description: `Device ` + device + ` of pool ` + pool + ` on {{ $labels.instance }} refused more than 100 requests in the last hour ({{ $labels.type }}); {{ $value }} have been counted in all.`,
		},
		{
			Name: "BtrfsDeviceErrorsOld", Severity: info, For: "1h",
			Expr: `(
  btrfs_device_errors_total > 0
  unless ` + deviceErrors + `
)` + namedDevice,
			Summary:     `A device of pool ` + pool + ` once had {{ $labels.type }} errors`,
			Description: `Device ` + device + ` of pool ` + pool + ` on {{ $labels.instance }} has counted {{ $value }} {{ $labels.type }} errors, none of them in the last day.`,
		},
		{
			Name: "BtrfsPoolReadOnly", Severity: critical, For: "1m", Keep: "10m",
			Expr: `(
  btrfs_pool_read_only == 1
  and on (job, instance, uuid) (
    min_over_time(btrfs_pool_read_only[1w]) == 0
    or ALERTS{alertname="BtrfsPoolReadOnly", alertstate="firing"}
  )
)` + named,
			Summary:     `Pool ` + pool + ` has become read-only`,
			Description: `Pool ` + pool + ` on {{ $labels.instance }} is mounted read-only and was not before. Unless somebody did it, the kernel met an error.`,
		},
		{
			Name: "BtrfsMetadataConcentrated", Severity: info, For: "6h", Keep: "1h",
			Expr: fmt.Sprintf(`(
  btrfs_metadata_concentration_ratio > %g
  and on (job, instance, uuid) (
    btrfs_pool_devices > 2 and on (job, instance, uuid) btrfs_pool_info{metadata_profile=~"raid1|raid10"}
    or btrfs_pool_devices > 3 and on (job, instance, uuid) btrfs_pool_info{metadata_profile="raid1c3"}
    or btrfs_pool_devices > 4 and on (job, instance, uuid) btrfs_pool_info{metadata_profile="raid1c4"}
  )
)`, t.Concentration) + named,
			Summary:     `The metadata of pool ` + pool + ` lies on the same devices`,
			Description: `{{ $value | humanizePercentage }} of the metadata of pool ` + pool + ` on {{ $labels.instance }} has all its copies on the same devices` + queried("btrfs_device_metadata_share_ratio{uuid='%s'} > 0.05", ` (devid{{ range . | sortByLabel "devid" }} {{ . | label "devid" }}{{ end }})`) + `, though there are more. Should these fail together, the pool is lost.`,
		},
	}}
}

func scrubGroup(t *Thresholds) group {
	g := group{Name: "btrfs-scrub"}
	g.Alerts = append(g.Alerts, levels(map[string]time.Duration{warning: t.ScrubWarning, critical: t.ScrubCritical}, func(_ string, age time.Duration) alert {
		return alert{
			Name: "BtrfsScrubOverdue", For: "1h", Keep: "15m",
			Expr:        fmt.Sprintf(`(time() - btrfs_scrub_last_success_timestamp_seconds > %.0f * 86400)`, age.Hours()/24) + named,
			Summary:     `Pool ` + pool + ` was last scrubbed {{ $value | humanizeDuration }} ago`,
			Description: `No scrub of pool ` + pool + ` on {{ $labels.instance }} has gone to its end for {{ $value | humanizeDuration }}. What rots meanwhile is found when its other copy is gone too.`,
		}
	})...)
	g.Alerts = append(g.Alerts,
		alert{
			Name: "BtrfsScrubNever", Severity: warning, For: "1h", Keep: "1h",
			Expr: `(
  max by (job, instance, uuid) (btrfs_scrub_state{state=~"idle|waiting|paused|cancelled"} == 1)
  unless on (job, instance, uuid) btrfs_scrub_last_success_timestamp_seconds
  and on (job, instance, uuid) count_over_time(btrfs_pool_devices[1d] offset 6d)
)` + named,
			Summary:     `Pool ` + pool + ` was never scrubbed`,
			Description: `Pool ` + pool + ` on {{ $labels.instance }} was never scrubbed, as far as is known. What rots is found when its other copy is gone too.`,
		},
		alert{
			Name: "BtrfsScrubFailed", Severity: warning, For: "5m", Keep: "10m",
			Expr:        `(btrfs_scrub_state{state="failed"} == 1)` + named,
			Summary:     `The last scrub of pool ` + pool + ` failed`,
			Description: `The last scrub of pool ` + pool + ` on {{ $labels.instance }} could not go to its end.`,
		},
		alert{
			Name: "BtrfsScrubErrorsCorrected", Severity: warning, Keep: "1h",
			Expr: `(
  btrfs_scrub_corrected_errors_total
  and ` + grew("btrfs_scrub_corrected_errors_total", "1d") + `
)` + namedDevice,
			Summary:     `A scrub repaired errors on a device of pool ` + pool,
			Description: `In the last day a scrub found errors on device ` + device + ` of pool ` + pool + ` on {{ $labels.instance }} and repaired them from another copy; {{ $value }} have been repaired in all. The data is good; the device, its cable or the memory may not be.`,
		},
		alert{
			Name: "BtrfsScrubErrorsUncorrectable", Severity: critical, Keep: "1h",
			Expr: `max by (job, instance, uuid) (
  btrfs_scrub_last_uncorrectable_errors > 0
  or on (job, instance, uuid)
  btrfs_scrub_errors_total{type="uncorrectable"} and ` + grew(`btrfs_scrub_errors_total{type="uncorrectable"}`, "1d") + `
)` + named,
			Summary:     `Pool ` + pool + ` has errors that cannot be corrected`,
			Description: `A scrub of pool ` + pool + ` on {{ $labels.instance }} found errors that no other copy could repair ({{ $value }}). Its result names the files. This fires until a scrub goes to its end and finds none.`,
		},
		alert{
			Name: "BtrfsScrubStarved", Severity: info, For: "1h", Keep: "1h",
			Expr: fmt.Sprintf(`(
  sum by (job, instance, uuid) (increase(btrfs_scrub_yield_seconds_total[1d])) / 86400 > %g
)`, t.ScrubYield) + named,
			Summary:     `A scrub of pool ` + pool + ` does not get on`,
			Description: `The scrub of pool ` + pool + ` on {{ $labels.instance }} gave way to others {{ $value | humanizePercentage }} of the last day.`,
		},
	)
	return g
}

func snapshotGroup(t *Thresholds) group {
	g := group{Name: "btrfs-snapshots"}
	// How often they are taken is not known, and is seen: so many times in four
	// weeks. Who takes one now and then by hand misses none. What fires goes on
	// until there are some, though those weeks end.
	g.Alerts = append(g.Alerts, levels(map[string]float64{warning: t.SnapshotsWarning, critical: t.SnapshotsCritical}, func(severity string, missed float64) alert {
		return alert{
			Name: "BtrfsSnapshotMissing", For: "15m", Keep: "15m",
			Expr: strings.NewReplacer("MISSED", fmt.Sprint(missed), "LEAST", fmt.Sprint(missed*t.SnapshotsLeast.Hours()), "SEVERITY", severity).Replace(`(
  time() - btrfs_snapshot_last_success_timestamp_seconds
  > clamp_min(MISSED * 4 * 7 * 86400 / (changes(btrfs_snapshot_last_success_timestamp_seconds[4w] offset 1w) > 3), LEAST * 3600)
  or
  time() - btrfs_snapshot_last_success_timestamp_seconds > LEAST * 3600
  and on (job, instance, uuid) ALERTS{alertname="BtrfsSnapshotMissing", severity="SEVERITY", alertstate="firing"}
)`) + named,
			Summary:     `Pool ` + pool + ` has had no snapshots for {{ $value | humanizeDuration }}`,
			Description: `The last time that all snapshots of pool ` + pool + fmt.Sprintf(` on {{ $labels.instance }} were taken was {{ $value | humanizeDuration }} ago, more than %g times as long as usual.`, missed),
		}
	})...)
	g.Alerts = append(g.Alerts,
		alert{
			Name: "BtrfsSnapshotFailed", Severity: warning, Keep: "1h",
			Expr: `(
  increase(btrfs_snapshot_failures_total[6h]) > 0
  or btrfs_snapshot_failures_total > 0 unless btrfs_snapshot_failures_total offset 6h
)` + named,
			Summary:     `A snapshot of {{ $labels.subvolume }} of pool ` + pool + ` could not be taken`,
			Description: `In the last six hours snapshots of subvolume {{ $labels.subvolume }} of pool ` + pool + ` on {{ $labels.instance }} could not be taken, so that nothing was pruned either.`,
		},
		alert{
			Name: "BtrfsSnapshotPruningStuck", Severity: warning, For: "15m", Keep: "15m",
			Expr: fmt.Sprintf(`(
  btrfs_snapshot_cleaning
  and min_over_time(btrfs_snapshot_cleaning[%[1]gh]) > 0
  and last_over_time(btrfs_snapshot_cleaning[1h] offset %[1]gh) > 0
)`, t.Cleaning.Hours()) + named,
			Summary:     `Pool ` + pool + ` does not give back the space of deleted snapshots`,
			Description: fmt.Sprintf(`For more than %.0f hours the kernel has been giving back the space of deleted subvolumes of pool `, t.Cleaning.Hours()) + pool + ` on {{ $labels.instance }}; there are still {{ $value }} of them.`,
		},
	)
	return g
}

func exporterGroup(t *Thresholds) group {
	return group{Name: "btrfs-governor", Alerts: []alert{
		{
			Name: "BtrfsGovernorDown", Severity: warning, For: "5m",
			Expr: `up == 0
and on (job, instance) (
  last_over_time(btrfs_governor_build_info[1w])
  or ALERTS{alertname="BtrfsGovernorDown", alertstate="firing"}
)`,
			Summary:     `btrfs-governor on {{ $labels.instance }} does not answer`,
			Description: `Prometheus cannot scrape btrfs-governor on {{ $labels.instance }}: nothing is known of its pools.`,
		},
		{
			Name: "BtrfsPoolVanished", Severity: warning, For: "5m",
			Expr: `last_over_time(btrfs_pool_devices[1w])
unless btrfs_pool_devices
unless on (job, instance, uuid) btrfs_scrape_collector_success{collector="read"}
and on (job, instance) up == 1`,
			Summary:     `Pool ` + queried("last_over_time(btrfs_pool_info{uuid='%s'}[1w])", `{{ . | first | label "label" }} `) + `({{ $labels.uuid }}) is gone`,
			Description: `The pool that was mounted on {{ $labels.instance }} in the last week is mounted no more. Unless somebody unmounted it, its disks are gone.`,
		},
		{
			Name: "BtrfsPoolNotAnswering", Severity: critical, For: "5m", Keep: "5m",
			Expr: `btrfs_scrape_collector_success{collector="read"} == 0
unless on (job, instance, uuid) btrfs_pool_devices`,
			Summary:     `Pool ` + queried("last_over_time(btrfs_pool_info{uuid='%s'}[1d])", `{{ . | first | label "label" }} `) + `({{ $labels.uuid }}) does not answer`,
			Description: `The kernel does not say anything about a pool on {{ $labels.instance }}: a disk hangs, or the pool cannot be read.`,
		},
		{
			Name: "BtrfsCollectorFailing", Severity: warning, For: "15m", Keep: "15m",
			Expr: `btrfs_scrape_collector_success{uuid=""} == 0
or btrfs_scrape_collector_success{uuid!=""} == 0
and on (job, instance, uuid) btrfs_pool_devices`,
			Summary:     `The collector {{ $labels.collector }} on {{ $labels.instance }} fails`,
			Description: `The collector {{ $labels.collector }} of btrfs-governor on {{ $labels.instance }} lacks something{{ with $labels.uuid }} of pool {{ . }}{{ end }}: its metrics are missing in part or as a whole, and alerts that need them do not fire.`,
		},
		{
			Name: "BtrfsGovernorConfigReloadFailed", Severity: warning, For: "5m", Keep: "5m",
			Expr:        `btrfs_governor_config_last_reload_successful == 0`,
			Summary:     `btrfs-governor on {{ $labels.instance }} runs with an old configuration`,
			Description: `The configuration of btrfs-governor on {{ $labels.instance }} could not be read; the last good one is in force.`,
		},
		{
			// What waits is old also where more came than the receiver may be sent in
			// that time: it still takes some of it.
			Name: "BtrfsGovernorNotificationsStuck", Severity: warning, For: "5m", Keep: "10m",
			Expr: fmt.Sprintf(`btrfs_governor_notifications_oldest_queued_seconds > %.0f
unless on (job, instance, receiver) increase(btrfs_governor_notifications_total{result="sent"}[%.0fm]) > 0`, t.NotificationWait.Seconds(), t.NotificationWait.Minutes()),
			Summary:     `Receiver {{ $labels.receiver }} of btrfs-governor on {{ $labels.instance }} takes nothing`,
			Description: fmt.Sprintf(`Receiver {{ $labels.receiver }} of btrfs-governor on {{ $labels.instance }} was not seen to take anything for %.0f minutes.`, t.NotificationWait.Minutes()) + `{{ with printf "btrfs_governor_notifications_queued{instance=%q,receiver=%q}" $labels.instance $labels.receiver | query }} Notifications that wait for it: {{ . | first | value }}.{{ end }} The oldest has waited for {{ $value | humanizeDuration }}. Until it takes them nobody hears through it.`,
		},
		{
			// The counters begin at zero with the process, so what a process of less
			// than a day has counted is of that day, though no rise was seen. What was
			// counted while Prometheus was away is more than it was before.
			Name: "BtrfsGovernorNotificationsLost", Severity: warning, Keep: "1h",
			Expr: strings.ReplaceAll(`max_over_time(COUNTER[1d])
and (
  increase(COUNTER[1d]) > 0
  or COUNTER > last_over_time(COUNTER[1w] offset 1d)
  or COUNTER > 0 and on (job, instance) time() - process_start_time_seconds < 86400
)`, "COUNTER", lostNotifications),
			Summary: `Notifications {{ with $labels.receiver }}for receiver {{ . }} {{ end }}were lost by btrfs-governor on {{ $labels.instance }}`,
			Description: `In the last day btrfs-governor on {{ $labels.instance }} lost notifications{{ with $labels.receiver }} for receiver {{ . }}{{ end }}: ` +
				`{{ if eq $labels.result "refused" }}the service refused them{{ else if eq $labels.result "dropped" }}they waited when the receiver was taken out of the configuration{{ else }}Alertmanager sent them to a receiver that there is not{{ end }}. The count of them reached {{ $value }}. What they said is lost.`,
		},
	}}
}

func groups(t *Thresholds) []group {
	return []group{
		{
			Name: "btrfs-forecast", Interval: "2m",
			Records: []record{
				{"For how many days the pool takes what is written to it. Absent with less than a day of data.", "btrfs:pool_days_to_full", daysToFull("btrfs_pool_free_expected_bytes", t.DaysCap)},
				{"The same for its metadata.", "btrfs:pool_metadata_days_to_full", daysToFull("btrfs_pool_metadata_free_bytes", t.DaysCap)},
			},
		},
		spaceGroup(t), deviceGroup(t), scrubGroup(t), snapshotGroup(t), exporterGroup(t),
	}
}

const layout = `# Rules of btrfs-governor, for Prometheus 2.42 and later. Generated by package
# alerts: the thresholds stand in alerts/alerts.go, the rules in alerts/rules.go.
#
# severity: critical wants a person now, warning this week, info on occasion.
# docs/runbook.md has a section for each alert.
groups:
{{- range $g := . }}
  - name: {{ .Name }}
{{- with .Interval }}
    interval: {{ . }}
{{- end }}
    rules:
{{- range .Records }}
      # {{ .Comment }}
      - record: {{ .Name }}
        expr: |
{{ indent .Expr }}
{{- end }}
{{- range .Alerts }}
      - alert: {{ .Name }}
        expr: |
{{ indent .Expr }}
{{- with .For }}
        for: {{ . }}
{{- end }}
{{- with .Keep }}
        keep_firing_for: {{ . }}
{{- end }}
        labels:
          severity: {{ .Severity }}
        annotations:
          summary: {{ quote .Summary }}
          description: {{ quote .Description }}
          runbook_url: {{ runbook .Name }}
{{- end }}
{{- end }}
`

// Rules returns the file of rules with these thresholds.
func Rules(t Thresholds) ([]byte, error) {
	tmpl := template.Must(template.New(FileName).Funcs(template.FuncMap{
		"indent":  func(s string) string { return "          " + strings.ReplaceAll(s, "\n", "\n          ") },
		"quote":   func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" },
		"runbook": Runbook,
	}).Parse(layout))
	var b bytes.Buffer
	if err := tmpl.Execute(&b, groups(&t)); err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	return b.Bytes(), nil
}
