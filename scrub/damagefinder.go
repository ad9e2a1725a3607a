package scrub

import (
	"errors"
	"slices"

	"github.com/go-kit/log/level"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/scrub/damage"
)

// Damage is what the errors of a scrub hit.
type Damage = damage.Damage

// DamagedBlock is one place on a device.
type DamagedBlock = damage.DamagedBlock

// DamagedFile is a file that a damaged block belongs to.
type DamagedFile = damage.DamagedFile

// Bounds of what is kept of the damage of one scrub: a state file is written
// after each batch.
const (
	maxDamagedBlocks = 1000
	maxDamagedText   = 256 << 10 // bytes of paths
)

// maxVerify is how many bytes of device extents one scrub reads again, at full
// speed, to find errors that the kernel's log does not tell.
const maxVerify = 16 << 30

// listen opens the kernel's log at its end, before a batch is looked at. The
// log is nil where it cannot be read: then errors are found by reading alone.
func (w *worker) listen(d *deviceCheckpoint) *damage.KernelLog {
	p := w.pass.pool
	p.mu.Lock()
	var names []string
	for i := range p.cp.Devices {
		names = append(names, p.cp.Devices[i].Name)
	}
	p.mu.Unlock()
	log, err := damage.OpenKernelLog(names...)
	if err != nil {
		level.Debug(p.runner.logger).Log("msg", "the kernel's log cannot be read", "pool", p.uuid, "devid", d.DevID, "err", err)
		return nil
	}
	return log
}

// locate finds what the errors of a batch hit, before they are repaired: from
// the kernel's log, and where that does not tell all of them by reading the
// batch again. What it cannot find it only counts.
func (w *worker) locate(f *btrfs.Filesystem, d *deviceCheckpoint, log *damage.KernelLog, extents []btrfs.DeviceExtent, found *btrfs.ScrubCounters) *Damage {
	if found.Errors() == 0 {
		return nil
	}
	device := damage.Device{DevID: d.DevID, Name: d.Name, Path: d.Path}
	all := &Damage{}
	if log != nil {
		messages, _, err := log.Read()
		messages = slices.DeleteFunc(messages, func(m damage.Message) bool {
			return m.Device != "" && m.Device != d.Path || m.DevID != 0 && m.DevID != d.DevID
		})
		part, locateErr := damage.Locate(w.pass.ctx, f, []damage.Device{device}, messages)
		w.logLocate(d, errors.Join(err, locateErr))
		part.Errors = slices.DeleteFunc(part.Errors, func(b DamagedBlock) bool { return b.DevID != d.DevID })
		addDamage(all, part)
	}
	if blocksOf(f, all) < found.Errors() {
		for _, e := range extents {
			addDamage(all, w.verify(f, &device, e))
		}
	}
	if n := blocksOf(f, all); n < found.Errors() && !all.Truncated {
		all.Unlocated = found.Errors() - n
	}
	return all
}

// verify reads a device extent again and finds what is wrong in it.
func (w *worker) verify(f *btrfs.Filesystem, device *damage.Device, e btrfs.DeviceExtent) *Damage {
	p := w.pass.pool
	p.mu.Lock()
	p.verified += e.Length
	enough := p.verified > maxVerify
	p.mu.Unlock()
	none := &Damage{}
	if enough {
		return none
	}
	chunk, err := f.Chunk(e.Chunk)
	if err != nil {
		w.logLocate(&deviceCheckpoint{DevID: device.DevID}, err)
		return none
	}
	bad, err := damage.Verify(w.pass.ctx, f, chunk, device.DevID, device.Path)
	if err != nil && !errors.Is(err, damage.ErrParity) {
		w.logLocate(&deviceCheckpoint{DevID: device.DevID}, err)
	}
	part, err := damage.LocateBlocks(w.pass.ctx, f, *device, bad)
	w.logLocate(&deviceCheckpoint{DevID: device.DevID}, err)
	return part
}

func (w *worker) logLocate(d *deviceCheckpoint, err error) {
	if err != nil && w.pass.ctx.Err() == nil {
		level.Warn(w.pass.pool.runner.logger).Log("msg", "what errors hit could not be found in full", "pool", w.pass.pool.uuid, "devid", d.DevID, "err", err)
	}
}

// recheck notes which damaged blocks of a range of a device are good now.
func (w *worker) recheck(f *btrfs.Filesystem, d *deviceCheckpoint, r *pending) {
	p := w.pass.pool
	p.mu.Lock()
	var blocks []DamagedBlock
	if p.cp.Damage != nil {
		blocks = slices.Clone(p.cp.Damage.Errors)
	}
	p.mu.Unlock()
	for i := range blocks {
		b := &blocks[i]
		if b.DevID != d.DevID || b.Physical < r.Start || b.Physical >= r.Next || b.Corrected || b.Length > 0 || b.Logical == 0 {
			continue
		}
		chunk, err := f.ChunkAt(b.Logical)
		if err != nil {
			w.logLocate(d, err)
			continue
		}
		length := f.SectorSize()
		if b.Metadata {
			length = f.NodeSize()
		}
		bad, err := damage.VerifyRange(w.pass.ctx, f, chunk, d.DevID, d.Path, b.Logical, b.Logical+length)
		if err != nil {
			w.logLocate(d, err)
			continue
		}
		b.Corrected = !slices.ContainsFunc(bad, func(still damage.BadBlock) bool { return still.Physical == b.Physical })
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cp.Damage == nil {
		return
	}
	// A new slice: views of the old one may be in use.
	errs := slices.Clone(p.cp.Damage.Errors)
	for i := range errs {
		for j := range blocks {
			if blocks[j].Corrected && blocks[j].DevID == errs[i].DevID && blocks[j].Physical == errs[i].Physical {
				errs[i].Corrected = true
			}
		}
	}
	changed := *p.cp.Damage
	changed.Errors = errs
	p.cp.Damage = &changed
}

// addDamage adds what part has and sum has not, within the bounds.
func addDamage(sum, part *Damage) {
	if part == nil {
		return
	}
	sum.Unlocated += part.Unlocated
	sum.Truncated = sum.Truncated || part.Truncated
	type place struct{ devid, physical uint64 }
	known := make(map[place]bool, len(sum.Errors))
	text := 0
	for i := range sum.Errors {
		known[place{sum.Errors[i].DevID, sum.Errors[i].Physical}] = true
		text += textOf(&sum.Errors[i])
	}
	for i := range part.Errors {
		b := &part.Errors[i]
		if known[place{b.DevID, b.Physical}] {
			continue
		}
		if text += textOf(b); len(sum.Errors) >= maxDamagedBlocks || text > maxDamagedText {
			sum.Truncated = true
			return
		}
		known[place{b.DevID, b.Physical}] = true
		sum.Errors = append(sum.Errors, *b)
	}
}

func textOf(b *DamagedBlock) int {
	n := 0
	for _, f := range b.Files {
		n += len(f.Path) + len(f.Subvolume)
	}
	return n
}

// blocksOf returns how many errors the kernel counts for the blocks: one for
// each sector, of a tree block too.
func blocksOf(f *btrfs.Filesystem, d *Damage) uint64 {
	n := uint64(0)
	for i := range d.Errors {
		if d.Errors[i].Metadata && d.Errors[i].Logical != 0 {
			n += f.NodeSize() / f.SectorSize()
		} else {
			n++
		}
	}
	return n
}

// addDamage adds to the damage of the scrub. p.mu is held.
func (p *pool) addDamage(part *Damage) {
	if part == nil {
		return
	}
	sum := &Damage{}
	if p.cp.Damage != nil {
		*sum = *p.cp.Damage
		sum.Errors = slices.Clone(sum.Errors)
	}
	addDamage(sum, part)
	p.cp.Damage = sum
}
