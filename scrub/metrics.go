package scrub

import (
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// The metrics of scrubs. Those of a pool have the label uuid, those of a
// device devid as well.
var (
	stateDesc = poolDesc("btrfs_scrub_state", "Whether the scrub of the pool is in the state.", "state")

	progressDesc = poolDesc("btrfs_scrub_progress_ratio", "Share of the current or last scrub that is done, by bytes of device extents.")
	etaDesc      = poolDesc("btrfs_scrub_eta_seconds", "When the running scrub is done if it goes on as so far, from now.")

	yieldDesc  = poolDesc("btrfs_scrub_yield_seconds_total", "Time for which scrubs gave way.", "reason")
	urgedDesc  = poolDesc("btrfs_scrub_urged_seconds_total", "Time for which scrubs would have given way, and went on to meet their deadline.")
	pausesDesc = poolDesc("btrfs_scrub_pauses_total", "Pauses of scrubs.", "reason")

	latencyDesc = poolDesc("btrfs_scrub_foreground_read_latency_seconds", "Mean latency of the reads of others, while the scrub gives way to them and reads nothing itself.")

	lastStartedDesc       = poolDesc("btrfs_scrub_last_started_timestamp_seconds", "When the current or last scrub began.")
	lastFinishedDesc      = poolDesc("btrfs_scrub_last_finished_timestamp_seconds", "When a scrub last ended, however it did.")
	lastSuccessDesc       = poolDesc("btrfs_scrub_last_success_timestamp_seconds", "When a scrub last went over all devices to their end.")
	lastDurationDesc      = poolDesc("btrfs_scrub_last_duration_seconds", "How long the scrub that ended last took, without pauses and waiting.")
	lastUncorrectableDesc = poolDesc("btrfs_scrub_last_uncorrectable_errors", "Uncorrectable errors of the last scrub that went to its end, or of a later one that found more before it ended.")
	lastErrorsDesc        = poolDesc("btrfs_scrub_last_errors", "Errors that the scrub which ended last found, corrected ones too.")

	scrubbedDesc = deviceDesc("btrfs_scrub_bytes_scrubbed_total", "Bytes of the device that scrubs read and checked.")
	errorsDesc   = deviceDesc("btrfs_scrub_errors_total", "Errors that scrubs found on the device. An uncorrectable error is also counted under what it is.", "type")
	correctDesc  = deviceDesc("btrfs_scrub_corrected_errors_total", "Errors that scrubs repaired on the device, and that were gone at another look.")
	limitDesc    = deviceDesc("btrfs_scrub_limit_bytes_per_second", "Limit of the running scrub on the device; +Inf is none, 1 is a pause.")
	rateDesc     = deviceDesc("btrfs_scrub_rate_bytes_per_second", "Rate of the running scrub on the device.")
	oldestDesc   = deviceDesc("btrfs_scrub_oldest_verified_timestamp_seconds", "When the least recently verified extent of the device was verified; absent where one never was.")
)

func poolDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, append([]string{"uuid"}, labels...), nil)
}

func deviceDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, append([]string{"uuid", "devid"}, labels...), nil)
}

// Describe implements prometheus.Collector.
func (r *Runner) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		stateDesc, progressDesc, etaDesc, yieldDesc, urgedDesc, pausesDesc, latencyDesc, lastStartedDesc, lastFinishedDesc, lastSuccessDesc,
		lastDurationDesc, lastErrorsDesc, lastUncorrectableDesc, scrubbedDesc, errorsDesc, correctDesc, limitDesc, rateDesc, oldestDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. It touches no disk.
func (r *Runner) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	pools := make([]*pool, 0, len(r.pools))
	for _, p := range r.pools {
		pools = append(pools, p)
	}
	r.mu.Unlock()
	for _, p := range pools {
		p.collect(ch)
	}
}

func (p *pool) collect(ch chan<- prometheus.Metric) {
	s := p.status()
	p.mu.Lock()
	h, latency := p.cp.History, p.latency
	h.Pauses = maps.Clone(h.Pauses)
	h.Devices = maps.Clone(h.Devices)
	// What a call under way has read may still be thrown away, and a counter
	// must not fall.
	counted := make(map[uint64]btrfs.ScrubCounters, len(p.cp.Devices))
	for i := range p.cp.Devices {
		counted[p.cp.Devices[i].DevID] = p.cp.Devices[i].Counters
	}
	p.mu.Unlock()
	uuid := s.Pool.String()
	send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, v, append([]string{uuid}, labels...)...)
	}
	for _, state := range States() {
		v := 0.0
		if s.State == state {
			v = 1
		}
		send(stateDesc, prometheus.GaugeValue, v, string(state))
	}
	if s.State == Idle {
		return
	}
	send(progressDesc, prometheus.GaugeValue, s.Progress)
	if s.ETA > 0 {
		send(etaDesc, prometheus.GaugeValue, s.ETA.Seconds())
	}
	if !s.Started.IsZero() {
		send(lastStartedDesc, prometheus.GaugeValue, float64(s.Started.UnixMilli())/1e3)
	}
	if !s.Foreign {
		send(yieldDesc, prometheus.CounterValue, (h.Yielded + s.Yielded).Seconds(), "foreground")
		send(urgedDesc, prometheus.CounterValue, (h.Urged + s.Urged).Seconds())
		for reason, n := range h.Pauses {
			send(pausesDesc, prometheus.CounterValue, float64(n), reason)
		}
	}
	if v, ok := latency.Get(); ok {
		send(latencyDesc, prometheus.GaugeValue, v.Seconds())
	}
	if !h.LastFinished.IsZero() {
		send(lastFinishedDesc, prometheus.GaugeValue, float64(h.LastFinished.UnixMilli())/1e3)
		send(lastDurationDesc, prometheus.GaugeValue, h.LastDuration.Seconds())
		send(lastErrorsDesc, prometheus.GaugeValue, float64(h.LastErrors))
		send(lastUncorrectableDesc, prometheus.GaugeValue, float64(h.LastUncorrectable))
	}
	if !h.LastSuccess.IsZero() {
		send(lastSuccessDesc, prometheus.GaugeValue, float64(h.LastSuccess.UnixMilli())/1e3)
	}
	if s.Foreign {
		return // its counters are not ours to sum up
	}
	for i := range s.Devices {
		d := &s.Devices[i]
		devid := strconv.FormatUint(d.DevID, 10)
		total, current := h.Devices[d.UUID.String()].Counters, counted[d.DevID]
		total.Add(&current)
		send(scrubbedDesc, prometheus.CounterValue, float64(total.BytesScrubbed()), devid)
		for _, e := range []struct {
			kind  string
			count uint64
		}{
			{"read", total.ReadErrors}, {"csum", total.CsumErrors}, {"verify", total.VerifyErrors}, {"super", total.SuperErrors},
			{"malloc", total.MallocErrors}, {"uncorrectable", total.UncorrectableErrors}, {"unverified", total.UnverifiedErrors},
		} {
			send(errorsDesc, prometheus.CounterValue, float64(e.count), devid, e.kind)
		}
		send(correctDesc, prometheus.CounterValue, float64(total.CorrectedErrors), devid)
		if slices.Contains([]State{Running, Yielding}, s.State) && !d.Done {
			send(limitDesc, prometheus.GaugeValue, limitValue(d.Limit), devid)
			send(rateDesc, prometheus.GaugeValue, float64(d.Rate), devid)
		}
		if !d.OldestVerified.IsZero() {
			send(oldestDesc, prometheus.GaugeValue, float64(d.OldestVerified.UnixMilli())/1e3, devid)
		}
	}
}

// limitValue is the limit as a metric: no limit is more than any.
func limitValue(limit uint64) float64 {
	if limit == 0 {
		return math.Inf(1)
	}
	return float64(limit)
}
