package throttle

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

const never = time.Duration(math.MaxInt64)

// simDisk is a disk with one arm and a FIFO queue: as that never changes its
// mind, the completion of a request is known when it is submitted.
type simDisk struct {
	rng     *rand.Rand
	busy    time.Duration // until when
	head    int64
	pending []simRequest
	done    DeviceSample
	stalls  *simPSI
}

type simRequest struct {
	at    time.Duration
	size  uint64
	write bool
}

const (
	simSeek = 8 * time.Millisecond
	simRate = 150e6
)

func (d *simDisk) submit(now time.Duration, offset int64, size uint64, write bool) time.Duration {
	service := time.Duration(float64(size) / simRate * 1e9)
	// After a pause the platter has turned away, also when the arm is right. A
	// small gap passes beneath the head.
	if gap := offset - d.head; gap > 0 && gap < 1<<20 && now <= d.busy {
		service += time.Duration(float64(gap) / simRate * 1e9)
	} else if gap != 0 || now > d.busy+time.Millisecond {
		service += simSeek/2 + time.Duration(d.rng.Int64N(int64(simSeek)))
	}
	d.busy = max(d.busy, now) + service
	d.head = offset + int64(size)
	d.pending = append(d.pending, simRequest{d.busy, size, write})
	return d.busy
}

func (d *simDisk) sample(now time.Duration) DeviceSample {
	i := 0
	for ; i < len(d.pending) && d.pending[i].at <= now; i++ {
		r := d.pending[i]
		if r.write {
			d.done.Writes++
			d.done.WriteBytes += r.size
		} else {
			d.done.Reads++
			d.done.ReadBytes += r.size
		}
	}
	d.pending = d.pending[i:]
	return d.done
}

// simPSI sums the time in which somebody waited.
type simPSI struct {
	waits [][2]time.Duration
	upTo  time.Duration
	total time.Duration
}

func (p *simPSI) wait(from, to time.Duration) {
	if to > from {
		p.waits = append(p.waits, [2]time.Duration{from, to})
	}
}

func (p *simPSI) at(now time.Duration) time.Duration {
	slices.SortFunc(p.waits, func(a, b [2]time.Duration) int { return int(a[0] - b[0]) })
	kept := p.waits[:0]
	for _, w := range p.waits {
		if from, to := max(w[0], p.upTo), min(w[1], now); to > from {
			p.total += to - from
			p.upTo = to
		}
		if w[1] > now {
			kept = append(kept, w)
		}
	}
	p.waits, p.upTo = kept, now
	return p.total
}

// simScrub is the kernel's scrub of one device: reads of 512 KiB, up to 16 in
// flight of which it waits for all, and scrub_throttle_dev_io.
type simScrub struct {
	disk, metaDisk *simDisk
	limit          uint64
	next           time.Duration // when it acts
	offset         int64
	inFlight       int
	deadline       time.Duration
	sent           uint64
	own            uint64
	size           func() uint64 // of a read
	sinceMeta      uint64
	held           bool // the runner has cancelled the call
	stalls         *simPSI
	warm           bool // the trees are in memory
}

// letGo is after how long of giving way the runner cancels the calls that
// scrub.
const letGo = 3 * time.Second

func (s *simScrub) hold(held bool, now time.Duration) {
	switch {
	case held:
		s.next = never
	case s.held:
		s.next, s.inFlight, s.deadline = now, 0, 0
	}
	s.held = held
}

func (s *simScrub) act(now time.Duration) {
	if s.inFlight == 16 {
		s.inFlight = 0
		if s.next = max(now, s.disk.busy); s.next > now {
			return
		}
	}
	// A leaf of checksums for each 16 MiB, waited for.
	if s.sinceMeta >= 16<<20 {
		s.sinceMeta = 0
		end := s.metaDisk.submit(now, s.offset+(1<<40), 16<<10, false)
		s.own += 16 << 10
		if s.warm {
			end = now
		}
		s.disk.stalls.wait(now, end)
		s.stalls.wait(now, end)
		s.next = end
		return
	}
	left, size := uint64(ownRead), s.size()
	for left > 0 { // a group of 8 stripes, in one read unless it is sparse
		s.disk.submit(now, s.offset, size, false)
		s.offset += int64(size)
		if size < ownRead {
			s.offset += int64(size)
		}
		left -= size
	}
	s.own += ownRead
	s.sinceMeta += ownRead
	s.inFlight++
	s.next = now + s.throttle(now)
}

func (s *simScrub) throttle(now time.Duration) (sleep time.Duration) {
	if s.limit == 0 {
		return 0
	}
	div := min(max(s.limit/(16<<20), 1), 64)
	if s.deadline == 0 {
		s.deadline, s.sent = now+time.Second/time.Duration(div), 0
	}
	if now < s.deadline {
		s.sent += ownRead
		if s.sent <= s.limit/div {
			return 0
		}
		sleep = s.deadline - now
	}
	s.deadline = 0
	return sleep
}

// foreground is somebody who uses the first disk. act does I/O and returns
// when it acts next.
type foreground interface {
	act(now time.Duration, w *world) time.Duration
}

type world struct {
	disks  []*simDisk
	scrubs []*simScrub
	psi    simPSI
	own    simPSI // of the scrub alone
	rng    *rand.Rand
	lat    []latency
}

type latency struct{ at, took time.Duration }

// io waits for a request on the first disk and notes how long it took.
func (w *world) io(now time.Duration, offset int64, size uint64, write bool) time.Duration {
	end := w.disks[0].submit(now, offset, size, write)
	w.psi.wait(now, end)
	w.lat = append(w.lat, latency{now, end - now})
	return end
}

func (w *world) random() int64 { return w.rng.Int64N(1<<30) << 12 }

type randomReader struct{ perSecond float64 }

func (f randomReader) act(now time.Duration, w *world) time.Duration {
	end := w.io(now, w.random(), 16<<10, false)
	return max(end, now+time.Duration(w.rng.ExpFloat64()/f.perSecond*1e9))
}

type bursts struct {
	reads int
	every time.Duration
	n     int
}

func (f *bursts) act(now time.Duration, w *world) time.Duration {
	end := w.io(now, w.random(), 16<<10, false)
	if f.n++; f.n%f.reads == 0 {
		return (now/f.every + 1) * f.every
	}
	return end
}

type film struct {
	perSecond float64
	size      uint64
	offset    int64
}

func (f *film) act(now time.Duration, w *world) time.Duration {
	end := w.io(now, f.offset+1<<39, f.size, false)
	f.offset += int64(f.size)
	return max(end, now+time.Duration(float64(f.size)/f.perSecond*1e9))
}

type writer struct {
	perSecond float64
	offset    int64
}

func (f *writer) act(now time.Duration, w *world) time.Duration {
	end := w.io(now, f.offset+1<<38, 1<<20, true)
	f.offset += 1 << 20
	return max(end, now+time.Duration((1<<20)/f.perSecond*1e9))
}

// commits are what an idle filesystem writes each 30 s.
type commits struct{}

func (commits) act(now time.Duration, w *world) time.Duration {
	var end time.Duration
	for range 40 {
		end = w.disks[0].submit(now, w.random(), 16<<10, true)
	}
	for range 3 { // the superblocks, once that is done
		end = w.disks[0].submit(end, w.random(), 4<<10, true)
	}
	w.psi.wait(now, end)
	return now + 30*time.Second
}

// otherDisk is somebody who waits for a disk that is no member.
type otherDisk struct{}

func (otherDisk) act(now time.Duration, w *world) time.Duration {
	w.psi.wait(now, now+30*time.Millisecond)
	return now + 50*time.Millisecond
}

type during struct {
	foreground
	from, to time.Duration
}

func (f during) act(now time.Duration, w *world) time.Duration {
	if now < f.from {
		return f.from
	}
	if now >= f.to {
		return never
	}
	return f.foreground.act(now, w)
}

// psiKind is what the kernel tells of who waits.
type psiKind string

const (
	noPSI        psiKind = "none"
	systemPSI    psiKind = "system"
	ownCgroupPSI psiKind = "own cgroup"
)

type simulation struct {
	seed        uint64
	devices     int
	psi         psiKind
	warm        bool
	length      time.Duration
	scrub       bool
	governed    bool
	urgency     uint64
	cfg         Config
	foregrounds func() []foreground
	size        func(now time.Duration, rng *rand.Rand) uint64
	step        func(now time.Duration, d Decision)
}

type result struct {
	lat     []latency
	scrubed uint64
	yielded time.Duration
	yields  int
	urged   time.Duration
	// rateOver is what was scrubbed at each tick.
	marks []mark
}

type mark struct {
	now      time.Duration
	own      uint64
	yielding bool
	reason   string
}

func (r *result) ownBetween(from, to time.Duration) float64 {
	var a, b uint64
	for _, m := range r.marks {
		if m.now <= from {
			a = m.own
		}
		if m.now <= to {
			b = m.own
		}
	}
	return float64(b - a)
}

// percentile of the latencies from some time on.
func (r *result) percentile(p float64, from time.Duration) time.Duration {
	var l []time.Duration
	for _, x := range r.lat {
		if x.at >= from {
			l = append(l, x.took)
		}
	}
	if len(l) == 0 {
		return 0
	}
	slices.Sort(l)
	return l[min(int(p*float64(len(l))), len(l)-1)]
}

// run simulates from half a second before the scrub, which is time 0.5 s.
func (sim simulation) run() result {
	rng := rand.New(rand.NewPCG(sim.seed, 2))
	w := &world{rng: rand.New(rand.NewPCG(sim.seed, 4))}
	sim.devices = max(sim.devices, 1)
	start := time.Duration(0)
	if sim.scrub {
		start = 500 * time.Millisecond
	}
	var now time.Duration
	for range sim.devices {
		w.disks = append(w.disks, &simDisk{rng: rng, stalls: &w.psi})
	}
	for i := range w.disks {
		size := func() uint64 { return ownRead }
		if sim.size != nil {
			size = func() uint64 { return sim.size(now, rng) }
		}
		s := &simScrub{disk: w.disks[i], metaDisk: w.disks[(i+1)%len(w.disks)], next: start, size: size, stalls: &w.own, warm: sim.warm}
		if !sim.scrub {
			s.next = never
		}
		w.scrubs = append(w.scrubs, s)
	}
	var fgs []foreground
	if sim.foregrounds != nil {
		fgs = sim.foregrounds()
	}
	fgNext := make([]time.Duration, len(fgs))
	c := New(sim.cfg)
	c.SetUrgency(sim.urgency)
	var r result
	var sample Sample
	tick := time.Duration(0)
	was := false
	var yieldedAt time.Duration
	for now < sim.length {
		// Who acts next?
		now = tick
		who := -1
		for i, s := range w.scrubs {
			if s.next < now {
				now, who = s.next, i
			}
		}
		for i, t := range fgNext {
			if t < now {
				now, who = t, len(w.scrubs)+i
			}
		}
		switch {
		case who >= len(w.scrubs):
			fgNext[who-len(w.scrubs)] = fgs[who-len(w.scrubs)].act(now, w)
		case who >= 0:
			w.scrubs[who].act(now)
		default:
			tick += 100 * time.Millisecond
			sample.Now = now
			sample.Devices = sample.Devices[:0]
			var own uint64
			for i, d := range w.disks {
				v := d.sample(now)
				v.OwnBytes, v.Scrubbing = w.scrubs[i].own, now >= start
				own += v.OwnBytes
				sample.Devices = append(sample.Devices, v)
			}
			stalled, ownStalled := w.psi.at(now), w.own.at(now)
			if sim.psi != noPSI {
				sample.Stalled = btrfs.Some(stalled)
			}
			if sim.psi == ownCgroupPSI {
				sample.OwnStalled = btrfs.Some(ownStalled)
			}
			m := mark{now: now, own: own}
			if sim.governed {
				d := c.Step(sample)
				for i, l := range d.Limits {
					w.scrubs[i].limit = l
				}
				if !d.Yielding || d.Limits[0] != Yield {
					yieldedAt = now
				}
				if sim.scrub && now >= start {
					for _, s := range w.scrubs {
						s.hold(now-yieldedAt >= letGo, now)
					}
				}
				m.yielding, m.reason = d.Yielding, d.Reason
				if d.Yielding {
					r.yielded += 100 * time.Millisecond
					if !was {
						r.yields++
					}
				}
				was = d.Yielding
				if d.Urged {
					r.urged += 100 * time.Millisecond
				}
				if sim.step != nil {
					sim.step(now, d)
				}
			}
			r.marks = append(r.marks, m)
		}
	}
	r.lat = w.lat
	r.scrubed = r.marks[len(r.marks)-1].own
	return r
}
