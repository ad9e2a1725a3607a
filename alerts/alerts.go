// Package alerts holds the recording and alerting rules for Prometheus. The file
// that is committed is written by this package, so that each threshold stands in
// one place.
package alerts

import (
	"embed"
	"slices"
	"strings"
	"time"
)

// FileName is the file of rules that is committed, see Files.
const FileName = "btrfs.rules.yml"

// Files has the file of rules.
//
//go:embed btrfs.rules.yml
var Files embed.FS

// Names returns the names of all alerts, sorted.
func Names() []string {
	var names []string
	for _, g := range groups(&Default) {
		for i := range g.Alerts {
			names = append(names, g.Alerts[i].Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// runbook is where each alert has a section, by its name in lower case.
const runbook = "https://github.com/btrfs-governor/btrfs-governor/blob/main/docs/runbook.md#"

// Runbook returns where it stands what to do about an alert.
func Runbook(alert string) string { return runbook + strings.ToLower(alert) }

// Thresholds are the values from which something is an alert.
type Thresholds struct {
	// Days until nothing can be written any more.
	DaysInfo, DaysWarning, DaysCritical float64
	// DaysCap is what the days are at most: more is guesswork.
	DaysCap float64

	// Free space of a pool: as a share of what it holds at most, and in bytes.
	// Both have to be below.
	FreeWarning, FreeCritical           float64
	FreeBytesWarning, FreeBytesCritical float64
	// FullSoonHours is how long a pool that is low lasts at the rate of the last
	// hour.
	FullSoonHours float64

	// Metadata that can still be written, as a share of all metadata.
	MetadataWarning, MetadataCritical float64

	// Balance is the share of what a pool holds at most that a balance would give
	// back.
	Balance float64
	// DataFull is how full the data block groups are when nothing is left for
	// another one.
	DataFull float64
	// Concentration is the share of the metadata on one and the same devices.
	Concentration float64

	// ScrubWarning and ScrubCritical are since when no scrub went to its end.
	ScrubWarning, ScrubCritical time.Duration
	// ScrubYield is the share of a day that a scrub gives way.
	ScrubYield float64

	// SnapshotsWarning and SnapshotsCritical are how many times as long as usual
	// no snapshots were taken; the usual time is at least SnapshotsLeast.
	SnapshotsWarning, SnapshotsCritical float64
	SnapshotsLeast                      time.Duration
	// Cleaning is for how long the space of deleted subvolumes is being given back.
	Cleaning time.Duration

	// NotificationWait is for how long a receiver takes nothing while something
	// waits for it.
	NotificationWait time.Duration
}

const (
	day = 24 * time.Hour
	gib = 1 << 30
)

// Default are the thresholds of the committed file.
var Default = Thresholds{
	DaysInfo: 30, DaysWarning: 7, DaysCritical: 1, DaysCap: 3650,
	FreeWarning: 0.10, FreeCritical: 0.03, FreeBytesWarning: 500 * gib, FreeBytesCritical: 100 * gib,
	FullSoonHours:   3,
	MetadataWarning: 0.15, MetadataCritical: 0.05,
	Balance: 0.10, DataFull: 0.90, Concentration: 0.90,
	ScrubWarning: 35 * day, ScrubCritical: 90 * day, ScrubYield: 0.9,
	SnapshotsWarning: 3, SnapshotsCritical: 7, SnapshotsLeast: 12 * time.Hour,
	Cleaning:         12 * time.Hour,
	NotificationWait: 30 * time.Minute,
}
