package capacity

import (
	"errors"
	"fmt"
	"slices"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// ErrDoesNotFit is returned by WhatIf when the pool has no room for a change.
var ErrDoesNotFit = errors.New("what is stored does not fit")

// Change is one step of a what-if: AddDevice, RemoveDevice, ResizeDevice,
// ReplaceDevice or Convert.
type Change interface {
	fmt.Stringer
	apply(w *whatIf) error
}

// AddDevice adds an empty device of the given size.
type AddDevice struct{ Size uint64 }

// RemoveDevice moves everything off a device and takes it away. A missing
// device can be removed as well: what was on it is made anew from the copies.
type RemoveDevice struct{ ID uint64 }

// ResizeDevice changes the size of a device. What lies beyond a smaller size
// is moved.
type ResizeDevice struct{ ID, Size uint64 }

// ReplaceDevice copies a device, or makes a missing one anew, onto an empty
// one of the given size, and then uses all of it.
type ReplaceDevice struct{ ID, Size uint64 }

// Convert rewrites all block groups of a type in another profile.
type Convert struct {
	Type    btrfs.BlockGroupType
	Profile btrfs.Profile
}

func (c AddDevice) String() string    { return fmt.Sprintf("add a device of %d bytes", c.Size) }
func (c RemoveDevice) String() string { return fmt.Sprintf("remove device %d", c.ID) }
func (c ResizeDevice) String() string {
	return fmt.Sprintf("resize device %d to %d bytes", c.ID, c.Size)
}
func (c ReplaceDevice) String() string {
	return fmt.Sprintf("replace device %d by one of %d bytes", c.ID, c.Size)
}
func (c Convert) String() string { return fmt.Sprintf("convert %s to %s", c.Type, c.Profile) }

// WhatIf returns the report that the pool would have after the changes, made
// in their order, and its devices then. Neither pool nor layout is changed. It
// fails with ErrDoesNotFit where the kernel would refuse a change for want of
// space, and says which one.
//
// A conversion lays out the pool anew, as the balance does that it is. After a
// removal or a smaller size the moved chunks are followed one by one in pools
// of up to maxRelocated chunks; larger ones are laid out anew.
func WhatIf(p *btrfs.Pool, l *Layout, changes ...Change) (*Report, []LayoutDevice, error) {
	w := &whatIf{pool: *p, layout: *l}
	w.pool.Devices = slices.Clone(p.Devices)
	w.pool.Spaces = slices.Clone(p.Spaces)
	for i := range w.pool.Spaces {
		w.pool.Spaces[i].Profiles = slices.Clone(p.Spaces[i].Profiles)
	}
	w.layout.Devices = slices.Clone(l.Devices)
	for i := range w.layout.Devices {
		w.layout.Devices[i].Holes = slices.Clone(l.Devices[i].Holes)
		w.layout.Devices[i].Allocated = slices.Clone(l.Devices[i].Allocated)
	}
	for _, c := range changes {
		if err := c.apply(w); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", c, err)
		}
	}
	r, err := Calculate(&w.pool, &w.layout)
	if err != nil {
		return nil, nil, err
	}
	return r, w.layout.Devices, nil
}

// whatIf is the pool as it becomes change by change.
type whatIf struct {
	pool   btrfs.Pool
	layout Layout
}

func (w *whatIf) device(id uint64) (*LayoutDevice, error) {
	for i := range w.layout.Devices {
		if w.layout.Devices[i].ID == id {
			return &w.layout.Devices[i], nil
		}
	}
	return nil, fmt.Errorf("the pool has no device %d", id)
}

const leastDevice = 16 * mib

func (c AddDevice) apply(w *whatIf) error {
	if c.Size < leastDevice {
		return fmt.Errorf("a device of %d bytes is too small (at least %d)", c.Size, uint64(leastDevice))
	}
	id := uint64(1)
	for _, d := range w.layout.Devices {
		id = max(id, d.ID+1)
	}
	w.layout.Devices = append(w.layout.Devices, LayoutDevice{
		ID: id, Size: c.Size, Usable: true, Holes: []Hole{{reservedStart, c.Size - reservedStart}},
	})
	return nil
}

func (c ReplaceDevice) apply(w *whatIf) error {
	d, err := w.device(c.ID)
	if err != nil {
		return err
	}
	// The target takes over devid and extents, and is writeable.
	d.Missing, d.Usable = false, true
	if c.Size < d.Size {
		// The kernel wants a target at least as large (btrfs_dev_replace_start).
		return fmt.Errorf("the new device is smaller than the old one (%d bytes): resize device %d first: %w", d.Size, c.ID, ErrDoesNotFit)
	}
	d.resize(c.Size)
	return nil
}

func (c ResizeDevice) apply(w *whatIf) error {
	d, err := w.device(c.ID)
	if err != nil {
		return err
	}
	if !d.Usable {
		return fmt.Errorf("device %d is missing or read-only", c.ID)
	}
	if c.Size >= d.Size {
		d.resize(c.Size)
		return nil
	}
	if c.Size < leastDevice {
		return fmt.Errorf("%d bytes are too small (at least %d)", c.Size, uint64(leastDevice))
	}
	d.resize(c.Size)
	return w.move(c.ID, c.Size)
}

func (c RemoveDevice) apply(w *whatIf) error {
	d, err := w.device(c.ID)
	if err != nil {
		return err
	}
	if err := w.enoughWithout(c.ID); err != nil {
		return err
	}
	d.Usable, d.Holes = false, nil
	if err := w.move(c.ID, 0); err != nil {
		return err
	}
	w.layout.Devices = slices.DeleteFunc(w.layout.Devices, func(d LayoutDevice) bool { return d.ID == c.ID })
	w.forgetChunks() // they name devices by their place
	return nil
}

// enoughWithout returns why the kernel would not take the device away: each profile
// that has block groups needs so many members, missing ones among them, and none is
// given up without a conversion (btrfs_check_raid_min_devices in
// fs/btrfs/volumes.c).
func (w *whatIf) enoughWithout(id uint64) error {
	left := 0
	for _, d := range w.layout.Devices {
		if d.ID != id && d.ID != 0 { // 0 is the target of a replace
			left++
		}
	}
	for _, s := range w.pool.Spaces {
		for _, p := range s.Profiles {
			if least := p.Profile.Attributes().DevsMin; left < least {
				return fmt.Errorf("profile %s of %s needs %d devices, and %d would be left: convert it first, or replace the device", p.Profile, s.Type, least, left)
			}
		}
	}
	return nil
}

func (c Convert) apply(w *whatIf) error {
	a := c.Profile.Attributes()
	usable := 0
	for _, d := range w.layout.Devices {
		if d.Usable {
			usable++
		}
	}
	if usable < a.DevsMin {
		return fmt.Errorf("profile %s needs %d devices, the pool has %d", c.Profile, a.DevsMin, usable)
	}
	s := w.pool.Space(c.Type)
	if s == nil {
		return fmt.Errorf("the pool has no %s block groups", c.Type)
	}
	s.Profiles = []btrfs.ProfileSpace{{Profile: c.Profile, Total: s.Total, Used: s.Used}}
	w.pool.ConvertData, w.pool.ConvertMetadata, w.pool.ConvertSystem =
		btrfs.Opt[btrfs.Profile]{}, btrfs.Opt[btrfs.Profile]{}, btrfs.Opt[btrfs.Profile]{}
	return w.layOut()
}

// resize gives the device another size, as far as its holes go.
func (d *LayoutDevice) resize(size uint64) {
	if size >= d.Size {
		last := len(d.Holes) - 1
		switch {
		case size == d.Size:
		case last >= 0 && d.Holes[last].Start+d.Holes[last].Length == d.Size:
			d.Holes[last].Length += size - d.Size
		default:
			start := max(d.Size, reservedStart)
			d.Holes = append(d.Holes, Hole{start, size - start})
		}
		d.Size = size
		return
	}
	kept := d.Holes[:0]
	for _, h := range d.Holes {
		if h.Start < size {
			h.Length = min(h.Length, size-h.Start)
			kept = append(kept, h)
		}
	}
	d.Holes, d.Size = kept, size
}

// move relocates every chunk that has a piece on the device at or beyond an
// offset, and takes over where the chunks are then.
func (w *whatIf) move(id, from uint64) error {
	if len(w.layout.chunks) == 0 {
		return w.layOut()
	}
	s, err := newState(&w.pool, &w.layout)
	if err != nil {
		return err
	}
	a := w.layout.allocator()
	m := newMover(s, a)
	m.devices = w.layout.Devices
	before := m.types
	kept := w.layout.chunks[:0:0]
	for i := range w.layout.chunks {
		c := &w.layout.chunks[i]
		if !w.reaches(c, id, from) {
			kept = append(kept, *c)
			continue
		}
		if !m.relocate(c) {
			return fmt.Errorf("%s chunk %d has nowhere to go: %w", c.blockGroupType, c.logical, ErrDoesNotFit)
		}
	}
	m.release()
	if len(kept) == len(w.layout.chunks) {
		return nil
	}
	for i := range a.devices {
		d := &w.layout.Devices[a.devices[i].index]
		d.Used = d.Size - min(d.Size, a.devices[i].available) + a.devices[i].over
		d.Holes = slices.DeleteFunc(a.devices[i].holes, func(h Hole) bool { return h.Length == 0 || h.Start >= d.Size })
		d.tidyAllocated()
	}
	for i := range w.pool.Spaces {
		sp := &w.pool.Spaces[i]
		w.retotal(sp, sp.Total+m.types[sp.Type].total-before[sp.Type].total)
	}
	w.forgetChunks()
	return nil
}

// forgetChunks forgets which chunks there are: it is not followed up.
func (w *whatIf) forgetChunks() {
	w.layout.chunks, w.layout.stripes, w.layout.sets, w.layout.Allocations = nil, nil, nil, nil
}

func (w *whatIf) reaches(c *placedChunk, id, from uint64) bool {
	for _, s := range w.layout.stripes[c.first : c.first+c.stripes] {
		if s.device >= 0 && w.layout.Devices[s.device].ID == id && s.start+c.stripe > from {
			return true
		}
	}
	return false
}

// retotal gives a type another size of its block groups, all in the profile of
// new ones if it had several.
func (w *whatIf) retotal(sp *btrfs.Space, total uint64) {
	sp.Total = total
	if len(sp.Profiles) == 1 {
		sp.Profiles[0].Total = total
	}
}

// layOut puts everything on the devices anew, from empty.
func (w *whatIf) layOut() error {
	s, err := newState(&w.pool, &w.layout)
	if err != nil {
		return err
	}
	a := w.layout.emptyAllocator()
	for i := range w.layout.Devices {
		w.layout.Devices[i].Allocated = nil
	}
	for _, sp := range []*space{&s.system, &s.metadata, &s.data} {
		if sp.profile == 0 {
			continue
		}
		var total uint64
		for total == 0 || total < s.room(sp) {
			made := a.fillNoting(sp, max(s.room(sp), 1)-min(total, s.room(sp)), w.layout.Devices)
			if made.chunks == 0 {
				return fmt.Errorf("%d bytes of %s: %w", sp.used, sp.blockGroupType, ErrDoesNotFit)
			}
			total += made.data()
		}
		accounting := w.pool.Space(sp.blockGroupType)
		accounting.Total, accounting.ReadOnly = total, 0
		accounting.Profiles = []btrfs.ProfileSpace{{Profile: sp.profile, Total: total, Used: accounting.Used}}
	}
	for i := range a.devices {
		d := &w.layout.Devices[a.devices[i].index]
		d.Holes = a.devices[i].holes
		d.Used = d.Size - min(d.Size, a.devices[i].available)
		d.tidyAllocated()
	}
	w.forgetChunks()
	return nil
}
