package capacity

import (
	"math"
	"slices"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// Loss is what could no longer be read: logical bytes of block groups of which
// no copy is left, whether used or not.
type Loss struct {
	Data, Metadata, System, Mixed uint64
}

// Of returns the bytes of one block group type.
func (l Loss) Of(t btrfs.BlockGroupType) uint64 {
	switch t {
	case btrfs.Data:
		return l.Data
	case btrfs.Metadata:
		return l.Metadata
	case btrfs.System:
		return l.System
	case btrfs.Mixed:
		return l.Mixed
	}
	return 0
}

// Total returns the bytes of all types.
func (l Loss) Total() uint64 { return l.Data + l.Metadata + l.System + l.Mixed }

func (l *Loss) add(t btrfs.BlockGroupType, bytes uint64) {
	switch t {
	case btrfs.Data:
		l.Data += bytes
	case btrfs.Metadata:
		l.Metadata += bytes
	case btrfs.System:
		l.System += bytes
	case btrfs.Mixed:
		l.Mixed += bytes
	}
}

func (l *Loss) addAll(o Loss) {
	l.Data += o.Data
	l.Metadata += o.Metadata
	l.System += o.System
	l.Mixed += o.Mixed
}

// Loss returns what is lost when the devices with the given ids are gone,
// beyond the loss of those that are missing already.
func (l *Layout) Loss(ids ...uint64) Loss {
	gone := l.missing()
	for i, d := range l.Devices {
		if slices.Contains(ids, d.ID) {
			gone[i] = true
		}
	}
	already := l.missing()
	var out Loss
	for i := range l.sets {
		s := &l.sets[i]
		out.add(s.blockGroupType, s.lost(gone)-s.lost(already))
	}
	return out
}

// Lost returns what is lost already: that of which no copy is on a device that is
// there.
func (l *Layout) Lost() Loss {
	gone := l.missing()
	var out Loss
	for i := range l.sets {
		out.add(l.sets[i].blockGroupType, l.sets[i].lost(gone))
	}
	return out
}

// LossMatrix tells what the loss of each device and of each pair of devices
// would cost, beyond what is lost already with missing devices.
type LossMatrix struct {
	// Devices are the ids of the members that are there.
	Devices []uint64
	// Single[i] is the loss of Devices[i] alone.
	Single []Loss
	// Pair[i][j] is the loss of Devices[i] and Devices[j] together; Pair[i][i]
	// is Single[i].
	Pair [][]Loss
}

// LossMatrix works out the loss of every device and pair.
func (l *Layout) LossMatrix() *LossMatrix {
	var (
		m       LossMatrix
		indexes = make([]int, len(l.Devices)) // into the matrix
	)
	for i, d := range l.Devices {
		indexes[i] = -1
		if !d.Missing {
			indexes[i] = len(m.Devices)
			m.Devices = append(m.Devices, d.ID)
		}
	}
	n := len(m.Devices)
	m.Single = make([]Loss, n)
	m.Pair = make([][]Loss, n)
	for i := range m.Pair {
		m.Pair[i] = make([]Loss, n)
	}
	gone := l.missing()
	var members []int16
	for k := range l.sets {
		// Only a pair of which both hold a part of the chunk can cost more
		// than the two devices one by one.
		s := &l.sets[k]
		members = members[:0]
		for _, i := range s.devices {
			if i >= 0 && indexes[i] >= 0 && !slices.Contains(members, i) {
				members = append(members, i)
			}
		}
		before := s.lost(gone)
		for x, i := range members {
			gone[i] = true
			alone := s.lost(gone) - before
			m.Single[indexes[i]].add(s.blockGroupType, alone)
			for _, j := range members[:x] {
				gone[j] = true
				both := s.lost(gone) - before
				gone[i] = false
				other := s.lost(gone) - before
				gone[i] = true
				gone[j] = false
				a, b := indexes[i], indexes[j]
				m.Pair[max(a, b)][min(a, b)].add(s.blockGroupType, both-alone-other)
			}
			gone[i] = false
		}
	}
	for i := range m.Pair {
		for j := range i {
			m.Pair[i][j].addAll(m.Single[i])
			m.Pair[i][j].addAll(m.Single[j])
			m.Pair[j][i] = m.Pair[i][j]
		}
		m.Pair[i][i] = m.Single[i]
	}
	return &m
}

// WorstPair returns, for each block group type by itself, the most that the
// loss of any two devices would cost; of a pool of one device, what that one
// would.
func (m *LossMatrix) WorstPair() Loss {
	var worst Loss
	for i := range m.Pair {
		for j := range m.Pair[i] {
			p := m.Pair[i][j]
			worst.Data = max(worst.Data, p.Data)
			worst.Metadata = max(worst.Metadata, p.Metadata)
			worst.System = max(worst.System, p.System)
			worst.Mixed = max(worst.Mixed, p.Mixed)
		}
	}
	return worst
}

func (l *Layout) missing() []bool {
	out := make([]bool, len(l.Devices))
	for i := range l.Devices {
		out[i] = l.Devices[i].Missing
	}
	return out
}

func isGone(gone []bool, device int16) bool { return device < 0 || gone[device] }

// lost returns the logical bytes of the set that cannot be read without the
// devices that are gone.
func (s *chunkSet) lost(gone []bool) uint64 {
	n := 0
	for _, d := range s.devices {
		if isGone(gone, d) {
			n++
		}
	}
	stripes := len(s.devices)
	switch s.profile {
	case btrfs.RAID10:
		mirrors := stripes / 2
		if mirrors == 0 {
			return 0
		}
		n = 0
		for i := range mirrors {
			if isGone(gone, s.devices[2*i]) && isGone(gone, s.devices[2*i+1]) {
				n++
			}
		}
		return s.size / uint64(mirrors) * uint64(n)
	case btrfs.RAID0, btrfs.RAID5, btrfs.RAID6:
		if n <= s.profile.Attributes().Parity {
			return 0
		}
		// Each device holds an equal share of the data, and what is on a
		// device that is there can be read without the others.
		return uint64(float64(s.size) * float64(n) / float64(stripes))
	}
	if n < stripes {
		return 0
	}
	return s.size
}

// FailuresTolerated returns the least number, over all chunks, of devices that
// can be lost beyond those already missing without losing a byte. ok is false
// where the chunks are not known.
func (l *Layout) FailuresTolerated() (n int, ok bool) {
	if !l.Exact || len(l.sets) == 0 {
		return 0, false
	}
	gone := l.missing()
	least := math.MaxInt
	for i := range l.sets {
		s := &l.sets[i]
		left := s.profile.Attributes().ToleratedFailures
		if s.profile == btrfs.RAID10 {
			// One more failure is survived as long as no mirror is broken.
			for _, d := range s.devices {
				if isGone(gone, d) {
					left = 0
				}
			}
		} else {
			for _, d := range s.devices {
				if isGone(gone, d) {
					left--
				}
			}
		}
		least = min(least, max(left, 0))
	}
	return least, true
}

// MetadataSpread tells on which devices the metadata and system chunks lie.
type MetadataSpread struct {
	// Devices is the number of devices that hold any.
	Devices int
	// Share is the part of the raw bytes that each device holds, in the order
	// of Layout.Devices; their sum is 1.
	Share []float64
	// Concentration is the part of the bytes all copies of which lie on one
	// and the same minimal set of devices: for raid1 the fullest pair, for
	// single and striped profiles the fullest device.
	Concentration float64
	// Fullest are the ids of that set.
	Fullest []uint64
}

// MetadataSpread returns the spread of metadata and system chunks; ok is false
// where the chunks are not known.
func (l *Layout) MetadataSpread() (spread MetadataSpread, ok bool) {
	if !l.Exact {
		return spread, false
	}
	type copySet struct {
		devices []int16
		size    float64
	}
	var (
		sets  []copySet
		raw   = make([]float64, len(l.Devices))
		total float64
	)
	note := func(devices []int16, size float64) {
		devices = slices.Clone(devices)
		slices.Sort(devices)
		devices = slices.Compact(devices)
		i := slices.IndexFunc(sets, func(s copySet) bool { return slices.Equal(s.devices, devices) })
		if i < 0 {
			i = len(sets)
			sets = append(sets, copySet{devices: devices})
		}
		sets[i].size += size
		total += size
	}
	for i := range l.sets {
		s := &l.sets[i]
		if s.blockGroupType == btrfs.Data {
			continue
		}
		a := s.profile.Attributes()
		chunk := btrfs.Chunk{Length: s.size, Profile: s.profile, Stripes: make([]btrfs.Stripe, len(s.devices))}
		for _, d := range s.devices {
			if d >= 0 {
				raw[d] += float64(chunk.StripeLength())
			}
		}
		switch {
		case s.profile == btrfs.RAID10:
			for j := 0; j+1 < len(s.devices); j += 2 {
				note(s.devices[j:j+2], float64(s.size)/float64(len(s.devices)/2))
			}
		case a.Copies == 1:
			for j := range s.devices {
				note(s.devices[j:j+1], float64(s.size)/float64(len(s.devices)))
			}
		default:
			note(s.devices, float64(s.size))
		}
	}
	if total == 0 {
		return spread, false
	}
	spread.Share = raw
	var rawTotal float64
	for _, v := range raw {
		rawTotal += v
	}
	for i, v := range raw {
		if v > 0 {
			spread.Devices++
			spread.Share[i] = v / rawTotal
		}
	}
	for _, s := range sets {
		if s.size/total <= spread.Concentration {
			continue
		}
		spread.Concentration = s.size / total
		spread.Fullest = spread.Fullest[:0]
		for _, d := range s.devices {
			if d >= 0 {
				spread.Fullest = append(spread.Fullest, l.Devices[d].ID)
			}
		}
	}
	return spread, true
}
