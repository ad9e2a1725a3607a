// Package throttle decides how fast a scrub may go, so that nobody who uses
// the disks feels it. The decision is a pure function of samples: it has no
// clock and does no I/O. See Sampler for where the samples come from.
package throttle

import (
	"fmt"
	"math"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// Limits of one device that are no rate.
const (
	// Unlimited is the value of scrub_speed_max for no limit.
	Unlimited = 0
	// Yield is the value of scrub_speed_max that pauses a scrub softly: it
	// reads 512 KiB each second. Even 1 MB/s would be felt.
	Yield = 1
)

// ownRead is what the kernel's scrub reads at a time: 8 stripes of 64 KiB,
// merged (SCRUB_STRIPES_PER_GROUP, fs/btrfs/scrub.c).
const ownRead = 512 << 10

// DeviceSample is what is known of one device of the pool. All but Scrubbing
// are cumulative.
type DeviceSample struct {
	// Reads, Writes, ReadBytes and WriteBytes are those of the whole disk, by
	// whomever; the kernel counts them when they complete.
	Reads, Writes, ReadBytes, WriteBytes uint64
	// ReadTime is how long those reads took, in sum. The controller does not
	// use it.
	ReadTime time.Duration
	// OwnBytes are the bytes read by the threads that scrub the device; the
	// kernel counts them when they are submitted.
	OwnBytes uint64
	// Scrubbing says that a scrub of the device is under way.
	Scrubbing bool
}

// Sample is what is known of a pool at one time.
type Sample struct {
	Now time.Duration // monotonic
	// Stalled is how long some task of the whole system waited for I/O, since
	// boot ("some total" of /proc/pressure/io); unknown without PSI.
	Stalled btrfs.Opt[time.Duration]
	// OwnStalled is the part of it for which this process waited, as the kernel
	// counts it for a cgroup; unknown where it has none for itself. While the
	// trees of a scrub are not in memory it waits for a third of the time.
	OwnStalled btrfs.Opt[time.Duration]
	// Devices are always the same ones in the same order.
	Devices []DeviceSample
}

// Decision is what to do until the next step.
type Decision struct {
	// Limits are the bytes per second of each device, for scrub_speed_max: 0
	// is Unlimited, 1 is Yield. The slice is valid until the next step.
	Limits []uint64
	// Yielding says that the scrub gives way to others. It may still go at
	// the rate of SetUrgency.
	Yielding bool
	// Urged says that it would give way, and goes on at the rate of SetUrgency:
	// that is what a deadline costs the others.
	Urged bool
	// Reason says why it yields or is slow, such as "readers on sdb: 31
	// reads/s"; "" at full speed.
	Reason string
	// ForegroundSeen says that others used the disks in the last second, more
	// than counts as quiet.
	ForegroundSeen bool
	// ForegroundReads are the reads per second of others, of the device where
	// they are most; ForegroundBytes are the bytes they read and wrote per
	// second on all devices. Both are estimates while the scrub is fast, and
	// exact while it yields.
	ForegroundReads, ForegroundBytes float64
	// Stalled is the share of time that some task waited for I/O, 0 without
	// PSI.
	Stalled float64
	// Hold is how long the disks have to be quiet before the scrub goes on.
	Hold time.Duration
}

// Config are the tunables. A zero value stands for its default.
type Config struct {
	// Names are the kernel names of the devices, for Decision.Reason.
	Names []string
	// Interval is the time between steps, 100 ms. It is a hint of how much to
	// remember: windows are in time, and a late step does no harm.
	Interval time.Duration
	// HoldMin and HoldMax bound how long the disks have to be quiet before
	// the scrub goes on, 5 s and 30 s. The time grows when the foreground
	// returns soon after.
	HoldMin, HoldMax time.Duration
	// Look is how long a suspicion is checked with the scrub out of the way,
	// 500 ms: the least rate of the kernel leaves the disk alone for a second.
	Look time.Duration
	// Settle is how long our requests in flight take to complete at least,
	// 100 ms.
	Settle time.Duration
	// ProbeRate is the rate at which the scrub goes on after it yielded, and
	// begins where it is not known to be quiet, 8 MB/s: the kernel reads for a
	// twentieth of each second, and in the rest others are seen clearly. Probe
	// is for how long, 2 s; then it rises fast.
	ProbeRate uint64
	Probe     time.Duration
	// StalledShare is the share of time from which PSI is a suspicion, 0.2.
	StalledShare float64
	// Reads is how many reads per second of others on a device confirm PSI,
	// 3. ReadsAlone is how many suffice without it, 6: the count is disturbed
	// by our own requests in flight.
	Reads, ReadsAlone float64
	// ReadBytes per second on a device suffice too, 1 MiB.
	ReadBytes float64
	// WriteBytes per second on all devices are a writer, 4 MiB. A commit of
	// an idle filesystem writes less.
	WriteBytes float64
	// WriteShare is the share of a second in whose steps something was
	// written, from which small writes are a writer, 0.6. A commit is over
	// sooner.
	WriteShare float64
}

func or[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (c *Config) setDefaults() {
	or(&c.Interval, 100*time.Millisecond)
	or(&c.HoldMin, 5*time.Second)
	or(&c.HoldMax, 30*time.Second)
	or(&c.Look, 500*time.Millisecond)
	or(&c.Settle, 100*time.Millisecond)
	or(&c.ProbeRate, 8e6)
	or(&c.Probe, 2*time.Second)
	or(&c.StalledShare, 0.2)
	or(&c.Reads, 3)
	or(&c.ReadsAlone, 6)
	or(&c.ReadBytes, 1<<20)
	or(&c.WriteBytes, 4<<20)
	or(&c.WriteShare, 0.6)
}

const (
	window = time.Second     // over which rates are taken
	memory = 3 * time.Second // how far back the baseline reaches
	// rampStep is how long each doubling of the rate lasts.
	rampStep = 200 * time.Millisecond
	// minDeafness is how long the first wrong suspicion is remembered.
	minDeafness = 2 * time.Second
	// unlimitedFrom is the rate from which a limit makes no sense.
	unlimitedFrom = 300e6
	// maxSettle is how long to wait at most for our requests in flight.
	maxSettle = 1500 * time.Millisecond
	// ratioTime is how long it takes to learn the size of our reads, see
	// Controller.ratio.
	ratioTime = 3 * time.Second
	// unlearned is until when nothing can be said of it: where the scrub begins
	// with tree blocks, the first reads are many small ones.
	unlearned = 500 * time.Millisecond
)

type phase uint8

const (
	starting phase = iota // too few samples to know
	running               // at rate
	looking               // yields, to see whether the suspicion is right
	holding               // yields to a foreground, and for a while after it
)

// point is one sample, as differences from the first. The foreground's share
// of a device lags by our requests in flight, as those are counted when they
// are submitted and the disk's when they complete: it is right at the peaks.
type point struct {
	now     time.Duration
	stalled time.Duration // of others, where that is known
	psi     bool
	others  time.Duration // since when stalled is that of others only; never where it is not
	writes  float64       // of all devices
	written float64       // bytes
	own     float64       // bytes of all devices
	bytes   float64       // that others read on all devices, less ours in flight
	devices []devicePoint
}

type devicePoint struct {
	disk    float64 // reads of the disk
	own     float64 // bytes that we read
	bytes   float64 // that others read, less ours in flight
	written float64
}

// reads returns those of others, less ours in flight. Only differences mean
// something.
func (p *devicePoint) reads(ratio float64) float64 { return p.disk - p.own/ownRead*ratio }

// Controller decides. It is not safe for concurrent use.
type Controller struct {
	cfg    Config
	last   Sample
	points []point // a ring
	next   int     // where the next one goes
	count  int
	// ratio of each device is how many reads the disk counts for 512 KiB of
	// ours: more than one where the extents are sparse, fewer where the disk
	// takes larger ones.
	ratio   []float64
	learned []time.Duration // how long ratio was learnt

	phase   phase
	since   time.Duration // begin of the phase
	reason  string
	limits  []uint64
	rate    uint64 // of phase running, 0 is unlimited
	stepped time.Duration
	ramping bool
	awake   bool   // the probe has begun
	before  uint64 // rate before looking

	urgency uint64

	hold       time.Duration
	lastActive time.Duration
	resumed    time.Duration // when it last went on after a foreground
	hadResumed bool
	// A suspicion that was wrong is not followed again for a while, unless
	// it is much stronger.
	deaf  deafness
	wrong evidence
	// Likewise one that rests on PSI alone, which may tell of other disks.
	stallDeaf    deafness
	stallOnly    bool          // of the current look
	at           evidence      // likewise
	baseReads    []float64     // of each device when the look began
	baseBytes    float64       // of all
	drained      float64       // bytes of others when none of ours was in flight last
	settled      bool          // none of our requests is in flight any more
	floor        time.Duration // since when
	suspectRatio []float64     // ratio just before
}

// evidence is how much of others' I/O there seems to be in a second.
type evidence struct {
	reads, bytes, devBytes float64
	written, writes        float64
	writeShare             float64
	stalled                float64
	margin                 float64 // of reads, that may be ours
	stalledBefore          float64 // one to three seconds ago
	stallBegins            bool    // somebody waits since just now, and nobody did before
	slowed                 bool    // we read less than before, though nothing limits us
	psi                    bool
	others                 bool // stalled is that of others only
	device                 int  // where it is most
}

// New returns a controller for one pool.
func New(cfg Config) *Controller {
	cfg.setDefaults()
	n := int(memory/cfg.Interval) + 12
	return &Controller{cfg: cfg, points: make([]point, n), hold: cfg.HoldMin}
}

// SetUrgency sets the bytes per second of each device below which the scrub
// does not go, even while others use the disks. 0, the default, gives way
// wholly; math.MaxUint64 never gives way. See Floor.
func (c *Controller) SetUrgency(minimumRate uint64) { c.urgency = minimumRate }

// Step takes a sample and returns what to do. Where it is called before the
// scrub begins, from half a second before, the scrub of a quiet pool begins at
// full speed, and that of a busy one does not begin.
func (c *Controller) Step(s Sample) Decision {
	if len(s.Devices) != len(c.ratio) {
		c.reset(s)
	}
	c.push(s)
	e := c.evidence(c.lookFloor())
	active := c.active(&e)

	switch c.phase {
	case starting:
		switch {
		case active:
			c.reason = c.describe(&e)
			c.enter(holding, s.Now)
			c.lastActive = s.Now
			c.baseBytes = math.Inf(-1)
		case c.span() >= 300*time.Millisecond:
			c.run(s.Now, Unlimited)
		case c.newest().own > 0:
			c.run(s.Now, c.cfg.ProbeRate)
		}
	case running:
		if c.suspicious(&e, s.Now) {
			c.suspect(&e, s.Now)
			break
		}
		// What may be others' reads is not learnt as ours, or they would never
		// be seen again.
		if c.verified() || !c.readers(&e) {
			c.learn()
		}
		c.ramp(s.Now)
	case looking:
		c.look(active, s.Now)
	case holding:
		if active {
			c.lastActive = s.Now
			c.reason = c.describe(&e)
		}
		// That activity is seen for the length of the window counts as quiet.
		if s.Now-c.lastActive >= max(c.hold-window, 0) {
			c.resumed, c.hadResumed = s.Now, true
			c.run(s.Now, c.cfg.ProbeRate)
		}
	}
	return c.decision(&e, active)
}

func (c *Controller) reset(s Sample) {
	n := len(s.Devices)
	c.last = Sample{}
	c.count, c.next = 0, 0
	c.ratio = make([]float64, n)
	c.suspectRatio = make([]float64, n)
	c.learned = make([]time.Duration, n)
	c.baseReads = make([]float64, n)
	c.limits = make([]uint64, n)
	for i := range c.ratio {
		c.ratio[i] = 1
	}
	for i := range c.points {
		c.points[i].devices = make([]devicePoint, n)
	}
	c.phase, c.rate, c.ramping, c.reason = starting, c.cfg.ProbeRate, false, ""
}

// delta of a counter; one that goes back (a disk was replaced) has none.
func delta(now, before uint64) float64 {
	if now < before {
		return 0
	}
	return float64(now - before)
}

func (c *Controller) push(s Sample) {
	p := &c.points[c.next]
	devices := p.devices
	if c.count == 0 {
		clear(devices)
		*p = point{now: s.Now, others: math.MaxInt64, devices: devices}
		c.last.Devices = append(c.last.Devices[:0], s.Devices...)
	} else {
		q := c.newest()
		copy(devices, q.devices)
		*p = *q
		p.devices = devices
		p.now = s.Now
		p.bytes = 0
		for i := range s.Devices {
			d, l, v := &s.Devices[i], &c.last.Devices[i], &devices[i]
			own := delta(d.OwnBytes, l.OwnBytes)
			v.own += own
			p.own += own
			v.disk += delta(d.Reads, l.Reads)
			v.bytes += delta(d.ReadBytes, l.ReadBytes) - own
			p.bytes += v.bytes
			p.writes += delta(d.Writes, l.Writes)
			w := delta(d.WriteBytes, l.WriteBytes)
			v.written += w
			p.written += w
		}
		now, ok := s.Stalled.Get()
		before, ok2 := c.last.Stalled.Get()
		p.psi = ok && ok2
		own, ok := s.OwnStalled.Get()
		ownBefore, ok2 := c.last.OwnStalled.Get()
		switch {
		case !p.psi || !ok || !ok2:
			p.others = math.MaxInt64
		case q.others == math.MaxInt64:
			p.others = s.Now
		}
		if p.psi {
			p.stalled += now - before
			if p.others != math.MaxInt64 {
				p.stalled -= own - ownBefore
			}
		}
		c.last.Devices = append(c.last.Devices[:0], s.Devices...)
	}
	c.last.Stalled, c.last.OwnStalled, c.last.Now = s.Stalled, s.OwnStalled, s.Now
	c.next = (c.next + 1) % len(c.points)
	c.count = min(c.count+1, len(c.points))
}

func (c *Controller) newest() *point { return c.ago(0) }

// ago returns the point that many steps before the newest.
func (c *Controller) ago(n int) *point {
	return &c.points[(c.next-1-n+2*len(c.points))%len(c.points)]
}

func (c *Controller) span() time.Duration { return c.newest().now - c.ago(c.count-1).now }

// lookFloor is from when on points are comparable: while we yield, only those
// after our requests in flight are done.
func (c *Controller) lookFloor() time.Duration {
	if c.phase != looking && c.phase != holding {
		return math.MinInt64
	}
	if !c.settled {
		n := c.newest()
		waited := n.now - c.since
		// What we saw before was right or too low by some in flight.
		c.settled = waited >= c.cfg.Settle && n.bytes >= c.baseBytes || waited >= maxSettle
		c.floor = n.now
	}
	return c.floor
}

// baseline returns the range of points, in steps ago, that the present is
// compared with: from a second ago back to three, and not before the floor.
// Where there are none it is the first from the floor on.
func (c *Controller) baseline(floor time.Duration) (first, last int) {
	now := c.newest().now
	first, last = 0, -1
	for i := range c.count {
		t := c.ago(i).now
		if t < floor || now-t > memory {
			break
		}
		if now-t < window {
			first = i
		}
		last = i
	}
	return min(first+1, max(last, 0)), max(last, 0)
}

func (c *Controller) evidence(floor time.Duration) evidence {
	var e evidence
	first, last := c.baseline(floor)
	n := c.newest()
	// The peak of the present is that of the last steps, the peak of the past
	// that of the baseline: between peaks our requests in flight do not count.
	recent := min(first, 3)
	rise := func(value func(*point) float64) float64 {
		now, before := math.Inf(-1), math.Inf(-1)
		for i := range max(recent, 1) {
			now = max(now, value(c.ago(i)))
		}
		for i := first; i <= last; i++ {
			before = max(before, value(c.ago(i)))
		}
		return max(now-before, 0)
	}
	e.bytes = rise(func(p *point) float64 { return p.bytes })
	most := 0.0
	for d := range n.devices {
		reads := rise(func(p *point) float64 { return p.devices[d].reads(c.ratio[d]) })
		bytes := rise(func(p *point) float64 { return p.devices[d].bytes })
		if reads >= e.reads {
			// How many reads ours are is learnt, and not constant.
			share := 0.03
			switch {
			case c.learned[d] < unlearned:
				// Ours may be as small as a stripe of 64 KiB. The disks were quiet
				// until just now.
				share = 7
			case c.learned[d] < ratioTime:
				share = 0.1
			}
			share += 0.3 * math.Abs(c.ratio[d]-1)
			// The more devices, the more often one of them strays.
			share *= 1 + 0.15*float64(len(n.devices)-1)
			e.reads, e.margin = reads, share*(n.devices[d].own-c.ago(first).devices[d].own)/ownRead
		}
		e.devBytes = max(e.devBytes, bytes)
		score := reads + bytes/ownRead + (n.devices[d].written-c.ago(first).devices[d].written)/ownRead
		if score > most {
			most, e.device = score, d
		}
	}

	e.written = n.written - c.ago(first).written
	e.writes = n.writes - c.ago(first).writes
	var wrote, all time.Duration
	for i := range min(first, c.count-1) {
		p, q := c.ago(i), c.ago(i+1)
		all += p.now - q.now
		if p.writes > q.writes {
			wrote += p.now - q.now
		}
	}
	e.writeShare = float64(wrote) / float64(max(all, window))

	// One long wait in a step is as telling as several over more.
	if e.psi = n.psi; e.psi {
		e.others = n.others <= c.ago(min(5, c.count-1)).now
		for _, steps := range []int{2, 5} {
			q := c.ago(min(steps, c.count-1))
			if t := n.now - q.now; t > 0 {
				e.stalled = max(e.stalled, float64(n.stalled-q.stalled)/float64(t))
			}
		}
	}
	if p, q := c.ago(first), c.ago(last); last > first {
		t := float64(p.now - q.now)
		if e.psi && q.psi {
			e.stalledBefore = float64(p.stalled-q.stalled) / t
			r := c.ago(min(2, first))
			e.stallBegins = q.others <= q.now && n.others <= n.now && e.stalledBefore <= 0.1 && t >= 0.5*float64(window) && n.now > r.now &&
				float64(n.stalled-r.stalled) >= 0.5*float64(n.now-r.now)
		}
		r := c.ago(min(3, first))
		if c.phase == running && !c.ramping && q.now >= c.since && n.now > r.now {
			e.slowed = (n.own-r.own)/float64(n.now-r.now) < 0.88*(p.own-q.own)/t
		}
	}
	return e
}

// writer reports whether somebody writes more than commits.
func (c *Controller) writer(e *evidence) bool {
	return e.written >= c.cfg.WriteBytes || (e.writeShare >= c.cfg.WriteShare && e.writes >= 12)
}

// active reports whether the disks are in use by others, as seen while we
// read next to nothing.
func (c *Controller) active(e *evidence) bool {
	if c.phase == running {
		return c.readers(e) || c.writer(e)
	}
	if c.phase == looking {
		// One or two of ours may still be in flight.
		return c.writer(e) || e.bytes >= 3*ownRead || e.bytes >= 12<<10 && e.reads >= 3
	}
	// Bytes are exact, over all devices: our reads of metadata may be of any
	// of them. Reads count ours of an unusual size too.
	if e.bytes >= ownRead/2 || (e.bytes >= 4<<10 && min(e.reads, e.bytes/512) >= 2) {
		return true
	}
	return e.written >= c.cfg.WriteBytes/4 && e.writeShare >= 0.3 || c.writer(e)
}

// readers reports whether somebody seems to read, as seen while we read too.
func (c *Controller) readers(e *evidence) bool {
	alone := c.cfg.ReadsAlone
	if c.probing() {
		alone = c.cfg.Reads // next to none of ours are in flight
	}
	bytes := c.cfg.ReadBytes
	if e.psi && e.stalled < c.cfg.StalledShare && c.phase == running && !c.probing() {
		// Nobody waits for a disk: it takes more to believe in readers. On the
		// emulated disks of the benchmark our own requests in flight were taken
		// for a few reads several times a minute.
		alone, bytes = 2*alone, 2*bytes
		if e.others && e.stalled < c.cfg.StalledShare/4 {
			// Nobody but us waits at all. The bytes that we have in flight, up to
			// 8 MiB, differ by 2 MiB from second to second on the same disks.
			bytes *= 2
		}
	}
	if e.reads-e.margin >= alone || e.devBytes >= bytes {
		return true
	}
	confirm, margin := c.cfg.Reads, e.margin/2
	if e.writes >= 10 {
		confirm *= 2 // it may be the writes, of a commit, that are waited for
	} else if e.slowed && e.reads-margin >= confirm && (!e.others || e.stalled >= c.cfg.StalledShare/2) {
		return true
	}
	if e.psi && e.stalled-e.stalledBefore >= 0.4 {
		margin = 0 // somebody has just begun to wait
	}
	return e.psi && e.stalled >= c.cfg.StalledShare && e.reads-margin >= confirm
}

// stallBegins reports whether PSI alone is reason enough to look: nobody waited
// for any disk, and now somebody does most of the time. Counting reads beside
// ours takes up to a second longer, in which a burst of reads would be over.
func (c *Controller) stallBegins(e *evidence, now time.Duration) bool {
	return e.stallBegins && now >= c.stallDeaf.until
}

func (c *Controller) suspicious(e *evidence, now time.Duration) bool {
	if c.writer(e) || c.stallBegins(e, now) {
		return true
	}
	if !c.readers(e) {
		return false
	}
	if now < c.deaf.until {
		w := &c.wrong
		return e.reads >= 3*w.reads+c.cfg.ReadsAlone || e.devBytes >= 3*w.devBytes+c.cfg.ReadBytes
	}
	return true
}

// verified reports whether we have just looked and found that what seemed to
// be others' reads was ours.
func (c *Controller) verified() bool {
	return c.newest().now < c.deaf.until && c.phase == running && c.newest().now-c.since < 2500*time.Millisecond
}

func (c *Controller) suspect(e *evidence, now time.Duration) {
	c.at = *e
	c.stallOnly = !c.writer(e) && !c.readers(e)
	c.reason = c.describe(e)
	c.before = c.rate
	first, last := c.baseline(math.MinInt64)
	for d := range c.baseReads {
		c.baseReads[d] = math.Inf(-1)
		for i := first; i <= last; i++ {
			c.baseReads[d] = max(c.baseReads[d], c.ago(i).devices[d].reads(c.ratio[d]))
		}
		c.suspectRatio[d], _ = c.windowRatio(d)
	}
	c.baseBytes = math.Inf(-1)
	for i := first; i <= last; i++ {
		c.baseBytes = max(c.baseBytes, c.ago(i).bytes)
	}
	c.enter(looking, now)
	if c.writer(e) {
		c.confirmed(now)
	}
}

// deafness is how long suspicions of a kind are not followed.
type deafness struct{ until, length time.Duration }

// mistaken says that one was wrong. The next ones count less, the more there
// were.
func (d *deafness) mistaken(now, most time.Duration) {
	if now-d.until > most {
		d.length = 0 // the last mistake is long ago
	}
	d.length = min(max(2*d.length, minDeafness), most)
	d.until = now + d.length
}

// look checks a suspicion while the scrub is out of the way.
func (c *Controller) look(active bool, now time.Duration) {
	if !c.settled {
		return
	}
	if active {
		c.confirmed(now)
		return
	}
	if now-c.floor < c.cfg.Look {
		return
	}
	// All of ours are done, and the counts are right: a burst that was
	// over before we looked shows as reads, of more bytes since the last time
	// we were out of the way than we read. Without those bytes it was our own
	// small reads.
	if c.newest().bytes-c.drained >= 2*c.cfg.ReadsAlone*(4<<10) {
		for d := range c.baseReads {
			if c.newest().devices[d].reads(c.ratio[d])-c.baseReads[d] >= 2*c.cfg.ReadsAlone+c.at.margin {
				c.confirmed(now)
				return
			}
		}
	}
	if c.stallOnly {
		c.stallDeaf.mistaken(now, c.cfg.HoldMax)
		c.run(now, c.before)
		return
	}
	copy(c.ratio, c.suspectRatio)
	c.wrong = c.at
	c.deaf.mistaken(now, c.cfg.HoldMax)
	c.run(now, c.before)
}

// confirmed begins the hold for a foreground that was last seen at seen.
func (c *Controller) confirmed(seen time.Duration) {
	start := c.since
	if c.hadResumed {
		quiet := start - c.lastActive
		ran := start - c.resumed
		switch {
		case ran < max(2*c.hold, 10*time.Second):
			// It is back soon: next time wait for longer than it was away.
			c.hold = max(2*c.hold, quiet+quiet/4)
		case ran > 2*c.cfg.HoldMax:
			c.hold = c.cfg.HoldMin
		default:
			c.hold /= 2
		}
		c.hold = min(max(c.hold, c.cfg.HoldMin), c.cfg.HoldMax)
	}
	c.deaf.length = 0
	c.lastActive = seen
	c.phase = holding // since stays: our requests settle from there
}

func (c *Controller) enter(p phase, now time.Duration) {
	c.phase, c.since, c.settled = p, now, false
}

func (c *Controller) run(now time.Duration, rate uint64) {
	c.drained = math.Inf(-1)
	for i := 0; i < c.count && (i == 0 || c.ago(i).now >= c.floor); i++ {
		c.drained = max(c.drained, c.ago(i).bytes)
	}
	c.enter(running, now)
	c.rate = rate
	c.ramping, c.awake = rate != Unlimited, false
	c.stepped = now
	c.reason = ""
}

// ramp doubles the rate of a probe. The probe begins when the scrub does: the
// kernel sleeps for up to a second before it sees the new limit.
func (c *Controller) ramp(now time.Duration) {
	if !c.ramping {
		return
	}
	wait := rampStep
	if c.probing() {
		wait = c.cfg.Probe
		if c.newest().own-c.ago(1).own >= 2*ownRead {
			c.awake = true
		}
		if !c.awake && now-c.since < 1200*time.Millisecond {
			c.stepped = now
		}
	}
	if now-c.stepped < wait {
		return
	}
	c.stepped = now
	// With 64 MB/s or more the kernel's slice is a third of a second or less.
	if c.rate = max(2*c.rate, 64e6); c.rate >= unlimitedFrom {
		c.rate, c.ramping = Unlimited, false
	}
}

func (c *Controller) probing() bool { return c.ramping && c.rate == c.cfg.ProbeRate }

// windowRatio is how many reads the disk did for each 512 KiB of ours in the
// last seconds; where we read too little to tell, what is known.
func (c *Controller) windowRatio(d int) (ratio float64, told bool) {
	first, last := c.baseline(math.MinInt64)
	if !c.verified() {
		first = last // our requests in flight disturb it less
	}
	n, q := &c.newest().devices[d], &c.ago(first).devices[d]
	own := n.own - q.own
	if own < 16*ownRead {
		return c.ratio[d], false
	}
	return min(max((n.disk-q.disk)*ownRead/own, 0.25), 8), true
}

func (c *Controller) learn() {
	if c.count < 2 {
		return
	}
	step := c.newest().now - c.ago(1).now
	for d := range c.ratio {
		r, told := c.windowRatio(d)
		if !told {
			continue
		}
		c.learned[d] = min(c.learned[d]+step, ratioTime)
		over := max(c.learned[d], window/2)
		switch {
		case c.learned[d] < unlearned && r > c.ratio[d]:
			over = step
		case c.verified():
			over = window
		case r < 0.8*c.ratio[d]:
			// Ours have become larger. What is taken for ours and is not hides
			// others.
			over = window / 2
		}
		c.ratio[d] += (r - c.ratio[d]) * min(float64(step)/float64(over), 1)
	}
}

func (c *Controller) name(d int) string {
	if d < len(c.cfg.Names) {
		return c.cfg.Names[d]
	}
	return fmt.Sprintf("device %d", d)
}

func (c *Controller) describe(e *evidence) string {
	switch {
	case c.stallOnly && c.phase == running:
		return fmt.Sprintf("somebody waits for a disk, %.0f %% of the time", 100*e.stalled)
	case c.writer(e) || e.written > e.bytes && e.reads < c.cfg.Reads:
		return fmt.Sprintf("writers on %s: %.1f MB/s", c.name(e.device), e.written/1e6)
	case e.reads < c.cfg.Reads:
		return fmt.Sprintf("readers on %s: %.1f MB/s", c.name(e.device), e.devBytes/1e6)
	default:
		return fmt.Sprintf("readers on %s: %.0f reads/s", c.name(e.device), e.reads)
	}
}

func (c *Controller) decision(e *evidence, active bool) Decision {
	d := Decision{
		Limits: c.limits, ForegroundSeen: active, Hold: c.hold, Reason: c.reason,
		ForegroundReads: e.reads, ForegroundBytes: e.bytes + e.written, Stalled: e.stalled,
	}
	limit := c.rate
	switch c.phase {
	case looking, holding:
		d.Yielding, limit = true, Yield
	case running, starting:
		if c.ramping {
			d.Reason = "probes whether the disks are quiet"
		}
	}
	if limit != Unlimited && c.urgency > limit {
		limit = c.urgency
		d.Urged = d.Yielding
		if d.Yielding {
			d.Reason += ", but the deadline is near"
		}
	}
	if limit >= 1<<40 {
		limit = Unlimited
		d.Yielding = false
	}
	for i := range d.Limits {
		d.Limits[i] = limit
	}
	return d
}

// Floor returns the rate in bytes per second that a device must keep to have
// the remaining bytes done in the time left, for SetUrgency. fullRate is what
// the device reaches undisturbed, 0 where that is not known. It is 0 while
// twice the time is left that is needed, and rises to the full rate where a
// quarter more is left; with less it is math.MaxUint64, which gives way to
// nobody, and so in the last minute. Kept to, it settles where 1.4 times the
// time needed is left.
func Floor(remainingBytes uint64, left time.Duration, fullRate uint64) uint64 {
	if remainingBytes == 0 {
		return 0
	}
	if left <= lastMinute {
		return math.MaxUint64
	}
	need := float64(remainingBytes) / left.Seconds()
	if fullRate == 0 {
		return uint64(min(math.Ceil(need), 1<<62))
	}
	switch tight := need / float64(fullRate); {
	case tight >= 0.8:
		return math.MaxUint64
	case tight <= 0.5:
		return 0
	default:
		rate := uint64((tight - 0.5) / 0.3 * float64(fullRate))
		if rate < leastFloor {
			return 0
		}
		return rate
	}
}

const lastMinute = time.Minute

// leastFloor is the rate below which a floor is felt and helps little.
const leastFloor = 1 << 20
