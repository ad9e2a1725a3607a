package scrub

import (
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/go-kit/log/level"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/scrub/statusfile"
)

// status returns the scrub as it stands.
func (p *pool) status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	cp := &p.cp
	if p.foreign != nil && !p.active {
		return *p.foreign
	}
	s := Status{
		Pool: p.uuid, JobID: cp.JobID, State: cp.State, Reason: cp.Reason, Options: cp.Options, Requester: cp.Requester,
		Started: cp.Started, Finished: cp.Finished, Duration: cp.Active, Yielded: cp.Yielded, Urged: cp.Urged, Pauses: cp.Pauses,
		LastSuccess: cp.History.LastSuccess, Damage: cp.Damage, Devices: make([]DeviceStatus, len(cp.Devices)),
	}
	if s.State == "" {
		s.State, s.Options.Mode = Idle, Auto
	}
	if a := p.pass; a != nil {
		s.Duration = a.before + p.runner.now().Sub(a.began)
	}
	if s.State == Running && p.yielding {
		s.State, s.Reason = Yielding, p.why
	}
	var size, position uint64
	for i := range cp.Devices {
		d := &cp.Devices[i]
		v := DeviceStatus{
			DevID: d.DevID, UUID: d.UUID, Name: d.Name, Path: d.Path, Size: d.Size, Position: d.Position,
			Done: d.Done, Error: d.Error, Started: d.Started, Finished: d.Finished, Counters: d.Counters,
			OldestVerified: oldestVerified(cp.History.Devices[d.UUID.String()].Marks, d),
		}
		if set := p.limits[d.DevID]; set > 0 && p.pass != nil {
			v.Limit = set - 1
		}
		if l, ok := p.live[d.DevID]; ok && p.pass != nil && !d.Done {
			v.Rate = l.rate
			v.Position = min(v.Position+l.position, v.Size)
			// What the call under way has found counts when it has ended.
			v.Counters.DataBytesScrubbed += l.counters.DataBytesScrubbed
			v.Counters.TreeBytesScrubbed += l.counters.TreeBytesScrubbed
		}
		s.Rate += v.Rate
		if d.Error == "" {
			size += v.Size
			position += v.Position
		}
		s.Devices[i] = v
	}
	if size > 0 {
		s.Progress = float64(position) / float64(size)
	} else if s.State == Finished {
		s.Progress = 1
	}
	if s.Progress > 0 && s.State.Active() && s.Duration > 0 {
		s.ETA = time.Duration(float64(s.Duration) * (1 - s.Progress) / s.Progress)
	}
	return s
}

// updateProgress asks the kernel how far the calls under way are.
func (p *pool) updateProgress(a *pass) {
	now := p.runner.now()
	for _, w := range a.workers {
		d := p.device(w.index)
		c, size := w.progress(d.DevID)
		p.mu.Lock()
		before := p.live[d.DevID]
		total := d.Counters.BytesScrubbed() + c.BytesScrubbed()
		l := liveDevice{counters: c, rate: before.rate}
		if m := p.pace.at[d.DevID]; !m.at.IsZero() && now.After(m.at) {
			rate := float64(total-min(total, m.bytes)) / now.Sub(m.at).Seconds()
			// Smoothed over some seconds.
			if m.rate > 0 {
				rate = float64(m.rate)*0.7 + rate*0.3
			}
			l.rate = uint64(rate)
		}
		p.pace.note(d.DevID, now, total, l.rate)
		// Used bytes are some of those of the extents: at most all of them.
		l.position = min(c.BytesScrubbed(), size)
		p.live[d.DevID] = l
		p.mu.Unlock()
	}
}

// pace remembers where each device was, to work out its rate.
type pace struct{ at map[uint64]paceMark }

type paceMark struct {
	at    time.Time
	bytes uint64
	rate  uint64
}

func (p *pace) note(devid uint64, at time.Time, bytes, rate uint64) {
	if p.at == nil {
		p.at = make(map[uint64]paceMark)
	}
	p.at[devid] = paceMark{at, bytes, rate}
}

// writeStatusFile keeps the file that `btrfs scrub status` reads.
func (p *pool) writeStatusFile() {
	devices := p.progsStatus()
	if devices == nil {
		return
	}
	if err := statusfile.Write(p.runner.statusDir, p.uuid, devices); err != nil {
		p.fileFailed(err)
	}
}

// serveStatus answers `btrfs scrub status`, and keeps `btrfs scrub start` from
// beginning a scrub of its own between two of our batches, until close.
func (p *pool) serveStatus() (stop func(), err error) {
	l, err := statusfile.Listen(p.runner.statusDir, p.uuid)
	if errors.Is(err, statusfile.ErrServed) {
		return nil, err
	}
	if err != nil {
		p.fileFailed(err)
		return func() {}, nil
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = statusfile.Serve(l, p.uuid, p.progsStatus) // the scrub does without
	}()
	return func() {
		_ = l.Close()
		<-served
	}, nil
}

func (p *pool) fileFailed(err error) {
	p.warnOnce(&p.fileFault, "`btrfs scrub status` will not show this scrub", err)
}

// progsStatus is the scrub as btrfs-progs keeps it; nil where there is none of
// ours.
func (p *pool) progsStatus() []statusfile.Device {
	s := p.status()
	if s.Foreign || s.Started.IsZero() {
		return nil
	}
	devices := make([]statusfile.Device, 0, len(s.Devices))
	for i := range s.Devices {
		d := &s.Devices[i]
		started := d.Started
		if started.IsZero() {
			started = s.Started
		}
		devices = append(devices, statusfile.Device{
			DevID: d.DevID, Counters: d.Counters, Started: started, Duration: s.Duration,
			Finished: d.Done && d.Error == "",
			Canceled: !d.Done && s.State == Cancelled,
		})
	}
	return devices
}

// lookForForeign notes the scrubs that others run on mounted pools.
func (r *Runner) lookForForeign() {
	mounts, err := r.mounts.List(tablePatience)
	if err != nil && len(mounts) == 0 {
		return
	}
	for i := range mounts {
		m := &mounts[i]
		if m.UUID.IsZero() || len(m.Points) == 0 {
			continue
		}
		r.mu.Lock()
		p := r.pools[m.UUID]
		if p == nil {
			p = r.newPool(m.UUID)
			r.pools[m.UUID] = p
		}
		r.mu.Unlock()
		p.mu.Lock()
		ours := p.active
		p.mu.Unlock()
		var foreign *Status
		if !ours {
			foreign = r.foreignScrub(m)
		}
		p.mu.Lock()
		p.foreign = foreign
		p.mu.Unlock()
	}
}

// foreignScrub returns the scrub that somebody else runs on a pool, or nil.
func (r *Runner) foreignScrub(m *btrfs.Mount) *Status {
	op, err := r.client.ExclusiveOperation(m.UUID)
	if err != nil || op == "device replace" {
		return nil // whose progress looks like a scrub's
	}
	f, _, err := r.client.Open(m)
	if err != nil {
		return nil
	}
	defer f.Close() //nolint:errcheck // it was only read
	pool, _ := r.client.ReadPool(f, m, "")
	if pool == nil {
		return nil
	}
	s := &Status{Pool: m.UUID, State: Running, Reason: "Somebody else runs it", Foreign: true}
	running := false
	for _, d := range pool.Devices {
		v := DeviceStatus{DevID: d.ID, UUID: d.UUID, Name: d.Name, Path: d.Path, Size: d.Used.Value, Done: true}
		if c, err := f.ScrubProgress(d.ID); err == nil {
			running = true
			v.Counters, v.Done = c, false
			v.Position = min(c.BytesScrubbed(), v.Size)
			v.Limit, _ = r.client.ScrubSpeedMax(m.UUID, d.ID)
		}
		s.Devices = append(s.Devices, v)
	}
	if !running {
		return nil
	}
	// When it began, and what it found on devices that are done, is in the
	// file of btrfs-progs.
	if known, err := statusfile.Read(r.statusDir, m.UUID); err == nil {
		for _, k := range known {
			i := slices.IndexFunc(s.Devices, func(d DeviceStatus) bool { return d.DevID == k.DevID })
			if i < 0 {
				continue
			}
			d := &s.Devices[i]
			d.Started = k.Started
			if s.Started.IsZero() || k.Started.Before(s.Started) {
				s.Started = k.Started
			}
			if d.Done && k.Finished {
				d.Counters, d.Position = k.Counters, d.Size
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		level.Debug(r.logger).Log("msg", "the scrub status file could not be read", "pool", m.UUID, "err", err)
	}
	var size, position uint64
	for _, d := range s.Devices {
		size += d.Size
		position += d.Position
	}
	if size > 0 {
		s.Progress = float64(position) / float64(size)
	}
	return s
}
