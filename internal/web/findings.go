package web

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/btrfs-governor/btrfs-governor/alerts"
	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

// Findings says what is wrong with a pool, the worst first, with the thresholds of
// the alerts.
func Findings(in *Input, now time.Time) []Finding {
	l := findings{thresholds: &alerts.Default}
	r := &in.Reading
	switch {
	case !in.Silent.IsZero() && r.Facts != nil:
		l.add(Critical, "BtrfsPoolNotAnswering", "The pool has given no figures for %s; those below are older. %s", span(now.Sub(in.Silent)), sentenceOf(r.Err))
	case r.Facts == nil:
		l.add(Critical, "BtrfsPoolNotAnswering", "The pool cannot be read. %s", sentenceOf(r.Err))
	case r.Err != nil:
		l.add(Warning, "BtrfsCollectorFailing", "Something could not be read. %s", sentenceOf(r.Err))
	}
	if r.Facts != nil {
		l.devices(in, now)
		l.redundancy(r.Facts)
		l.space(r.Facts)
		l.fullSoon(in)
	}
	l.forecast(in.Forecast)
	l.scrub(in.Scrub, now)
	l.snapshots(in.Snapshots, now)
	slices.SortStableFunc(l.all, func(a, b Finding) int { return cmp.Compare(b.Severity, a.Severity) })
	return l.all
}

// findings collects them.
type findings struct {
	thresholds *alerts.Thresholds
	all        []Finding
}

// add adds a finding, for which the runbook of an alert says what to do.
func (l *findings) add(s Severity, alert, format string, args ...any) {
	l.all = append(l.all, Finding{Severity: s, Text: fmt.Sprintf(format, args...), Runbook: alerts.Runbook(alert)})
}

func sentenceOf(err error) string {
	if err == nil {
		return "The reason is not known."
	}
	return sentence(err.Error())
}

func (l *findings) devices(in *Input, now time.Time) {
	f := in.Reading.Facts
	for i := range f.Pool.Devices {
		d := &f.Pool.Devices[i]
		name := deviceName(f.Pool, d.ID)
		if d.Missing.Value {
			if words := fmt.Sprintf("device %d", d.ID); name != words {
				name = words + " (" + name + ")"
			}
			l.add(Critical, "BtrfsDeviceMissing", "%s is missing.", strings.ToUpper(name[:1])+name[1:])
		}
		if e, ok := d.Errors.Get(); ok {
			switch age, words := ageOf(in, d, now); {
			case e == btrfs.ErrorCounts{}:
			case age == oldErrors:
				l.add(Info, "BtrfsDeviceErrorsOld", "%s once counted errors: %s. %s", name, errorWords(&e), words)
			default:
				l.add(Warning, "BtrfsDeviceErrors", "%s has counted errors: %s. %s", name, errorWords(&e), words)
			}
		}
	}
	if ro, ok := f.Pool.ReadOnly.Get(); ok && ro {
		l.add(Warning, "BtrfsPoolReadOnly", "The pool is mounted read-only. If nobody wanted that, the kernel did it after an error.")
	}
}

// errorAge is how old the newest error of a device is.
type errorAge int

const (
	unknownAge errorAge = iota
	newErrors           // of the last day
	oldErrors
)

// ageOf tells how old the errors are that a device has counted, and says it in a
// sentence.
func ageOf(in *Input, d *btrfs.Device, now time.Time) (errorAge, string) {
	const day = 24 * time.Hour
	before, known := in.Errors[d.ID]
	rose := newMoment(before.Rose, now)
	switch {
	case !known, before.Rose.Sub(now) > history.Step, before.Watched.Sub(now) > history.Step:
		return unknownAge, "Since when is not known." // a clock that was wrong, or is
	case history.Newer(d.Errors.Value, before.Counts):
		return newErrors, "There were some a moment ago."
	case rose != nil && now.Sub(before.Rose) < day:
		return newErrors, fmt.Sprintf("The last were seen %s.", rose.Words)
	case rose != nil:
		return oldErrors, fmt.Sprintf("There were none since %s.", rose.Exact())
	case now.Sub(before.Watched) < day:
		return unknownAge, fmt.Sprintf("There were none in the %s for which they are watched; how old they are is not known.", span(now.Sub(before.Watched)))
	}
	return oldErrors, fmt.Sprintf("There were none since %s, from when on they are watched.", newMoment(before.Watched, now).Exact())
}

// promised is how many devices may fail by the profiles of data and metadata;
// ok is false where a profile promises nothing.
func promised(p *btrfs.Pool) (n int, ok bool) {
	n, ok = 1<<20, false
	for i := range p.Spaces {
		s := &p.Spaces[i]
		if s.Type == btrfs.System {
			continue
		}
		best := 0
		for _, profile := range s.Profiles {
			best = max(best, profile.Profile.Attributes().ToleratedFailures)
		}
		n, ok = min(n, best), true
	}
	return n, ok && n > 0
}

func (l *findings) redundancy(f *factsOf) {
	mixed := false
	balancing := f.Pool.ExclusiveOperation.Value == "balance" || f.Pool.ExclusiveOperation.Value == "balance paused"
	for i := range f.Pool.Spaces {
		s := &f.Pool.Spaces[i]
		if mixed = mixed || len(s.Profiles) > 1; len(s.Profiles) > 1 && !balancing {
			var names []string
			for _, profile := range s.Profiles {
				names = append(names, profile.Profile.String())
			}
			l.add(Warning, "BtrfsMixedProfiles", "The %s lies in block groups of several profiles (%s), and no balance is converting it.", s.Type, list(names))
		}
	}
	if f.Layout == nil {
		return
	}
	if lost := f.Layout.Lost(); lost.Total() > 0 {
		l.add(Critical, "BtrfsDeviceMissing", "Block groups of %s have no copy on a device that is there: what lies in them cannot be read while that is missing.", cost(lost))
	} else if tolerated, ok := f.Layout.FailuresTolerated(); ok {
		if want, promises := promised(f.Pool); promises && tolerated < want {
			var why string
			switch {
			case slices.ContainsFunc(f.Pool.Devices, func(d btrfs.Device) bool { return d.Missing.Value }):
				why = ": a device is missing"
			case mixed && balancing:
				why = ": a balance is converting it, and has not done it all"
			case mixed:
				why = ": some block groups have another profile"
			}
			if tolerated == 0 {
				l.add(Warning, "BtrfsPoolRedundancyLost", "Data is lost when one more device fails, though the profile promises to bear it%s.", why)
			} else {
				l.add(Warning, "BtrfsPoolRedundancyLost", "Only %d more may fail, though the profile promises %d%s.", tolerated, want, why)
			}
		}
	}
	if spread, ok := f.Spread.Get(); ok && spread.Concentration > l.thresholds.Concentration && len(spread.Fullest) > 1 && len(f.Pool.Devices) > len(spread.Fullest) {
		var names []string
		for _, id := range spread.Fullest {
			names = append(names, deviceName(f.Pool, id))
		}
		l.add(Info, "BtrfsMetadataConcentrated", "%s of the metadata has all its copies on %s. Should these fail together, the pool is lost.", percent(spread.Concentration), list(names))
	}
}

func (l *findings) space(f *factsOf) {
	r, t := f.Report, l.thresholds
	if r == nil {
		return
	}
	free, usable := float64(r.FreeExpected), float64(r.Usable)
	switch {
	case free < t.FreeBytesCritical && free < t.FreeCritical*usable:
		l.add(Critical, "BtrfsPoolFreeSpaceLow", "Only %s can still be written.", size(r.FreeExpected))
	case free < t.FreeBytesWarning && free < t.FreeWarning*usable:
		l.add(Warning, "BtrfsPoolFreeSpaceLow", "Only %s can still be written.", size(r.FreeExpected))
	}
	used, known := uint64(0), false
	for _, kind := range []btrfs.BlockGroupType{btrfs.Metadata, btrfs.Mixed} {
		if s := f.Pool.Space(kind); s != nil {
			used, known = used+s.Used, true
		}
	}
	if room := float64(r.MetadataFree); known {
		share := room / max(room+float64(used), 1)
		if severity, low := level(share, t.MetadataCritical, t.MetadataWarning); low {
			l.add(severity, "BtrfsPoolMetadataSpaceLow", "There is room for %s of metadata only. Without it every write fails with \"No space left on device\", whatever df says.", size(r.MetadataFree))
		}
	}
	if data := f.Pool.Space(btrfs.Data); data != nil && data.Total > 0 {
		if full := float64(data.Used) / float64(data.Total); full > t.DataFull && float64(r.Free) <= 1.01*float64(data.Total-min(data.Total, data.Used)) {
			l.add(Warning, "BtrfsChunkAllocationImminent", "The data block groups are %s full, and the devices have no room for another one.", percent(full))
		}
	}
	if gain := r.FreeAfterBalance - min(r.FreeAfterBalance, r.Free); float64(gain) > t.Balance*usable {
		l.add(Info, "BtrfsSpaceStranded", "Chunks lie so on the devices that %s cannot be allocated. A balance would give it back.", size(gain))
	}
}

// fullSoon looks at the last hour, which the forecast is too slow for.
func (l *findings) fullSoon(in *Input) {
	r, t := in.Reading.Facts.Report, l.thresholds
	if r == nil || float64(r.FreeExpected) >= t.FreeWarning*float64(r.Usable) {
		return
	}
	if hours, ok := lasts(in.Hour, in.Read, r.FreeExpected); ok && hours < t.FullSoonHours {
		l.add(Critical, "BtrfsPoolFullSoon", "At the rate of the last hour the pool is full in %s.", span(time.Duration(hours*float64(time.Hour))))
	}
}

// lasts returns for how many hours there is room at the rate of the last hour: that
// of the line which is nearest to its samples and to what was read now (least
// squares, as predict_linear of Prometheus has it).
func lasts(hour []history.Sample, read time.Time, free uint64) (hours float64, ok bool) {
	type point struct{ hours, free float64 }
	points := []point{{0, float64(free)}}
	oldest := 0.0
	for i := range hour {
		at := hour[i].Time.Sub(read).Hours()
		if value, known := hour[i].FreeExpected.Get(); known && at < 0 && at >= -1 {
			points = append(points, point{at, float64(value)})
			oldest = min(oldest, at)
		}
	}
	// Less than half an hour is no trend.
	if oldest > -0.5 {
		return 0, false
	}
	var sum, mean point
	for _, p := range points {
		sum.hours, sum.free = sum.hours+p.hours, sum.free+p.free
	}
	mean = point{sum.hours / float64(len(points)), sum.free / float64(len(points))}
	covariance, variance := 0.0, 0.0
	for _, p := range points {
		covariance += (p.hours - mean.hours) * (p.free - mean.free)
		variance += (p.hours - mean.hours) * (p.hours - mean.hours)
	}
	slope := covariance / variance
	if slope >= 0 {
		return 0, false
	}
	return max(0, mean.free-slope*mean.hours) / -slope, true
}

// level returns how bad it is that a value is low.
func level(value, critical, warning float64) (s Severity, low bool) {
	switch {
	case value < critical:
		return Critical, true
	case value < warning:
		return Warning, true
	}
	return Good, false
}

func (l *findings) forecast(f *history.Forecast) {
	if f == nil {
		return
	}
	t := l.thresholds
	if days, ok := f.DaysToFull.Get(); ok {
		if severity, low := level(days, t.DaysCritical, t.DaysWarning); low {
			l.add(severity, "BtrfsPoolFillingUp", "As it filled up of late, the pool is full in %.1f days.", days)
		} else if days < t.DaysInfo {
			l.add(Info, "BtrfsPoolFillingUp", "As it filled up of late, the pool is full in %.1f days.", days)
		}
	}
	if days, ok := f.MetadataDaysToFull.Get(); ok {
		if severity, low := level(days, t.DaysCritical, t.DaysWarning); low {
			l.add(severity, "BtrfsPoolMetadataFillingUp", "As it grew of late, there is no room for more metadata in %.1f days.", days)
		}
	}
}

func (l *findings) scrub(s *scrub.Status, now time.Time) {
	if s == nil {
		return
	}
	c := s.Counters()
	switch {
	case c.UncorrectableErrors > 0:
		l.add(Critical, "BtrfsScrubErrorsUncorrectable", "A scrub found %s that no other copy could repair.", count(c.UncorrectableErrors, "error", "errors"))
	case c.CorrectedErrors > 0 && !s.Options.ReadOnly:
		l.add(Warning, "BtrfsScrubErrorsCorrected", "A scrub found errors and repaired %s from another copy. The data is good; the device, its cable or the memory may not be.", humanizeCount(c.CorrectedErrors))
	case c.Errors() > 0:
		l.add(Warning, "BtrfsScrubErrorsCorrected", "A scrub found %s.", count(c.Errors(), "error", "errors"))
	}
	if s.State == scrub.Failed {
		l.add(Warning, "BtrfsScrubFailed", "The last scrub could not go to its end: %s", sentence(s.Reason))
	}
	// Time that it was paused does not count: somebody wanted that.
	if s.State.Active() && s.Duration >= 24*time.Hour && s.Yielded.Seconds() > l.thresholds.ScrubYield*s.Duration.Seconds() {
		l.add(Info, "BtrfsScrubStarved", "The scrub does not get on: of the %s that it has run it gave way to others %s.", span(s.Duration), percent(s.Yielded.Seconds()/s.Duration.Seconds()))
	}
	if s.LastSuccess.IsZero() {
		return // new pools have none yet, and when this one was made is not known
	}
	age := now.Sub(s.LastSuccess)
	if severity, late := level(-age.Hours(), -l.thresholds.ScrubCritical.Hours(), -l.thresholds.ScrubWarning.Hours()); late {
		l.add(severity, "BtrfsScrubOverdue", "The pool was last scrubbed %s ago. What rots meanwhile is found when its other copy is gone too.", span(age))
	}
}

func (l *findings) snapshots(o *snapshot.Overview, now time.Time) {
	if o == nil {
		return
	}
	t := l.thresholds
	for _, level := range []struct {
		severity Severity
		missed   float64
	}{{Critical, t.SnapshotsCritical}, {Warning, t.SnapshotsWarning}} {
		if age := now.Sub(o.Success); float64(o.Missed) > level.missed && age.Hours() > level.missed*t.SnapshotsLeast.Hours() {
			l.add(level.severity, "BtrfsSnapshotMissing", "The last time that all snapshots were taken was %s ago; the schedule wanted them more than %g times since.", span(age), level.missed)
			break
		}
	}
	for _, s := range o.Subvolumes {
		if s.Failures > 0 {
			l.add(Warning, "BtrfsSnapshotFailed", "%s of %s could not be taken since the daemon started.", count(s.Failures, "snapshot", "snapshots"), s.Subvolume)
		}
	}
}
