package scrub

import (
	"slices"
	"time"

	"github.com/go-kit/log/level"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/scrub/throttle"
)

// governor has a scrub in mode auto give way to others.
type governor struct {
	controller *throttle.Controller
	sampler    *throttle.Sampler
	sample     throttle.Sample
	last       time.Time
	urged      bool // by the last decision
	latency    latencyMeter
	peak       uint64 // the highest rate of the pool so far, bytes per second
	fault      bool   // one was logged
}

// newGovernor returns the governor of a pass; nil in other modes.
func (p *pool) newGovernor() *governor {
	p.mu.Lock()
	mode, devices := p.cp.Options.Mode, slices.Clone(p.cp.Devices)
	p.mu.Unlock()
	if mode != Auto {
		return nil
	}
	var (
		names []string
		disks [][]string
	)
	for i := range devices {
		names = append(names, devices[i].Name)
		disks = append(disks, p.disksOf(&devices[i]))
	}
	return &governor{
		controller: throttle.New(throttle.Config{Interval: steerInterval, Names: names}),
		sampler:    throttle.NewSampler(p.runner.paths.Proc, p.runner.paths.Sys, disks),
	}
}

// firstLimit is the limit before the first sample, in bytes per second: who
// reads at that moment does not feel it.
const firstLimit = 25_000_000

// warmUp is how long the disks are looked at before a scrub begins: that of a
// quiet pool then begins at full speed.
const warmUp = 600 * time.Millisecond

// steer takes a sample and sets what the controller decides.
func (p *pool) steer(a *pass, g *governor) {
	if g == nil {
		return
	}
	now := p.runner.now()
	if err := g.sampler.Sample(&g.sample); err != nil {
		if !g.fault {
			g.fault = true
			level.Warn(p.runner.logger).Log("msg", "what others read and write cannot be seen: the scrub goes at a fixed rate", "pool", p.uuid, "rate", firstLimit, "err", err)
			p.limit(firstLimit)
		}
		return
	}
	g.urge(p, now)
	d := g.controller.Step(g.sample)
	p.limit(d.Limits...)
	if a != nil {
		wholly := d.Yielding && !slices.ContainsFunc(d.Limits, func(limit uint64) bool { return limit != throttle.Yield })
		a.yield(wholly, now)
	}
	// What is read while we read nothing is others'.
	latency := g.latency.measure(&g.sample, a != nil && a.holding() && !a.inCall())

	p.mu.Lock()
	was := p.yielding
	if since := now.Sub(g.last); !g.last.IsZero() {
		switch {
		case g.urged:
			p.cp.Urged += since
		case was:
			p.cp.Yielded += since
		}
	}
	g.last, g.urged = now, d.Urged
	p.yielding, p.why = d.Yielding, d.Reason
	p.latency = latency
	p.mu.Unlock()
	if was != d.Yielding {
		level.Debug(p.runner.logger).Log("msg", "scrub", "pool", p.uuid, "yielding", d.Yielding, "reason", d.Reason)
		p.publish()
	}
}

// urge raises the floor of the rate as the deadline nears.
func (g *governor) urge(p *pool, now time.Time) {
	p.mu.Lock()
	deadline := p.cp.Options.Deadline
	var left, rate, devices uint64
	for i := range p.cp.Devices {
		d := &p.cp.Devices[i]
		if d.Done {
			continue
		}
		devices++
		l := p.live[d.DevID]
		// The device that has the most left decides: all run side by side.
		left = max(left, d.Size-min(d.Size, d.Position+l.position))
		rate = max(rate, l.rate)
	}
	p.mu.Unlock()
	if deadline.IsZero() || devices == 0 {
		return
	}
	g.peak = max(g.peak, rate)
	g.controller.SetUrgency(throttle.Floor(left, deadline.Sub(now), max(g.peak, firstLimit)))
}

// latencyMeter measures how long reads take.
type latencyMeter struct {
	since time.Duration // of the samples; 0 while it does not measure
	reads uint64
	took  time.Duration
	last  btrfs.Opt[time.Duration]
}

// latencyWindow is the time over which latencies are averaged.
const latencyWindow = 2 * time.Second

// measure takes a sample, and returns the mean latency of the last window in
// which there were reads; unknown before that, and where alone is false.
func (m *latencyMeter) measure(s *throttle.Sample, alone bool) btrfs.Opt[time.Duration] {
	if !alone {
		*m = latencyMeter{}
		return m.last
	}
	var reads uint64
	var took time.Duration
	for i := range s.Devices {
		reads += s.Devices[i].Reads
		took += s.Devices[i].ReadTime
	}
	if m.since != 0 {
		if s.Now-m.since < latencyWindow {
			return m.last
		}
		if n := reads - min(reads, m.reads); n > 0 {
			m.last = btrfs.Some(max(took-m.took, 0) / time.Duration(n)) // a replaced disk counts anew
		}
	}
	m.since, m.reads, m.took = s.Now, reads, took
	return m.last
}
