package snapshot

import (
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// The metrics of snapshots. None has a series for each snapshot.
var (
	countDesc    = subvolumeDesc("btrfs_snapshot_count", "Snapshots that btrfs-governor made and that there are.")
	newestDesc   = subvolumeDesc("btrfs_snapshot_newest_timestamp_seconds", "When the newest of them was taken.")
	oldestDesc   = subvolumeDesc("btrfs_snapshot_oldest_timestamp_seconds", "When the oldest of them was taken.")
	createdDesc  = subvolumeDesc("btrfs_snapshot_created_total", "Snapshots taken.")
	prunedDesc   = subvolumeDesc("btrfs_snapshot_pruned_total", "Snapshots deleted.")
	failuresDesc = subvolumeDesc("btrfs_snapshot_failures_total", "Snapshots that could not be taken.")
	successDesc  = prometheus.NewDesc("btrfs_snapshot_last_success_timestamp_seconds", "When all snapshots that a job was to take were last taken.", []string{"uuid"}, nil)
	cleaningDesc = prometheus.NewDesc("btrfs_snapshot_cleaning", "Deleted subvolumes, whoever deleted them, whose space the kernel is still giving back.", []string{"uuid"}, nil)
)

func subvolumeDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, []string{"uuid", "subvolume"}, nil)
}

// Describe implements prometheus.Collector.
func (r *Runner) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{countDesc, newestDesc, oldestDesc, createdDesc, prunedDesc, failuresDesc, successDesc, cleaningDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. It touches no disk, and costs nothing
// that grows with the number of snapshots.
func (r *Runner) Collect(ch chan<- prometheus.Metric) {
	for _, p := range r.allPools() {
		if !r.excluded(p.uuid) {
			p.collect(ch)
		}
	}
}

func (p *pool) collect(ch chan<- prometheus.Metric) {
	v := p.seen()
	// What was seen long ago is not known: the pool is unmounted, or hangs.
	age := p.runner.clock.Now().Sub(v.looked)
	present := !v.looked.IsZero() && age.Abs() < staleAfter
	uuid := p.uuid.String()
	send := func(d *prometheus.Desc, t prometheus.ValueType, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, value, append([]string{uuid}, labels...)...)
	}
	for subvolume, s := range v.subvolumes {
		path := nameSubvolume(subvolume)
		if present {
			send(countDesc, prometheus.GaugeValue, float64(s.count), path)
		}
		if present && s.count > 0 {
			send(newestDesc, prometheus.GaugeValue, seconds(s.newest), path)
			send(oldestDesc, prometheus.GaugeValue, seconds(s.oldest), path)
		}
		send(createdDesc, prometheus.CounterValue, float64(v.created[subvolume]), path)
		send(prunedDesc, prometheus.CounterValue, float64(v.pruned[subvolume]), path)
		send(failuresDesc, prometheus.CounterValue, float64(v.failures[subvolume]), path)
	}
	if !v.success.IsZero() {
		send(successDesc, prometheus.GaugeValue, seconds(v.success))
	}
	if n, ok := v.cleaning.Get(); ok && present {
		send(cleaningDesc, prometheus.GaugeValue, float64(n))
	}
}

// staleAfter is how long what was seen of a pool is good for.
const staleAfter = 3 * tendInterval

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1e3 }

// subvolumeView is what the metrics say of a subvolume.
type subvolumeView struct {
	count          int
	newest, oldest time.Time // by the order in which they were made
}

// add counts one that was made after the others.
func (s *subvolumeView) add(r *record) {
	if s.count++; s.count == 1 {
		s.oldest = r.Taken
	}
	s.newest = r.Taken
}

// Overview is what is known of the snapshots of a pool without asking it.
type Overview struct {
	// Configured tells whether the configuration names subvolumes to take
	// snapshots of.
	Configured bool
	Subvolumes []SubvolumeOverview // by name
	Success    time.Time           // when all snapshots of a job were last taken; zero: never
	Next       time.Time           // by the schedule; zero: never
	Missed     int                 // times of the schedule since Success, as far as MaxMissed
	Cleaning   btrfs.Opt[int]      // deleted subvolumes whose space is being given back
}

// MaxMissed is how far missed times are counted: somebody looks long before.
const MaxMissed = 10

// missed counts the times of a schedule after the last success.
func missed(times Schedule, success, now time.Time) (n int) {
	if success.IsZero() {
		return 0
	}
	for at := times.Next(success); n < MaxMissed && !at.IsZero() && at.Before(now); at = times.Next(at) {
		n++
	}
	return n
}

// SubvolumeOverview is the part of one subvolume. Newest and Oldest are zero
// where there is no snapshot.
type SubvolumeOverview struct {
	Subvolume      string // from the top of the pool; / is the top
	Count          int
	Newest, Oldest time.Time
	Failures       uint64 // snapshots that could not be taken since the start
}

// Overview returns what is known of a pool. It touches no disk. ok is false where
// the pool has not been looked at of late.
func (r *Runner) Overview(uuid btrfs.UUID) (o Overview, ok bool) {
	settings, location, configured := r.settingsOf(uuid)
	r.mu.Lock()
	p := r.pools[uuid]
	r.mu.Unlock()
	if p == nil {
		return Overview{}, false
	}
	now, v := r.clock.Now(), p.seen()
	if v.looked.IsZero() || now.Sub(v.looked).Abs() >= staleAfter {
		return Overview{}, false
	}
	o = Overview{Configured: configured && len(settings.Subvolumes) > 0, Success: v.success, Cleaning: v.cleaning}
	if o.Configured && settings.Schedule != nil {
		o.Next = settings.Schedule.Next(now.In(location))
		o.Missed = missed(settings.Schedule, v.success.In(location), now)
	}
	for subvolume, s := range v.subvolumes {
		o.Subvolumes = append(o.Subvolumes, SubvolumeOverview{
			Subvolume: nameSubvolume(subvolume), Count: s.count, Newest: s.newest, Oldest: s.oldest, Failures: v.failures[subvolume],
		})
	}
	slices.SortFunc(o.Subvolumes, func(a, b SubvolumeOverview) int { return strings.Compare(a.Subvolume, b.Subvolume) })
	return o, true
}
