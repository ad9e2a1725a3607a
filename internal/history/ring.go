package history

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// A file begins with a header. A slot follows for each quarter of an hour of 400
// days, and the next 400 days take the same ones again: nothing is ever moved or
// looked for. The file grows up to its last slot; what it lacks was never written.
// Numbers are little endian.
//
// The header, of which the rest is zero and may be anything:
//
//	 0  magic
//	 8  version
//	12  seconds between two samples
//	16  number of slots
//	20  size of a slot
//	24  UUID of the pool
//	40  CRC-32C of the above
//	512 slots of samples on trial, see place.go
//
// A slot:
//
//	 0  CRC-32C of the rest
//	 4  order: the number of the write, each one higher than the last
//	 8  seconds since 1970
//	12  used, free, free expected, metadata free, statfs free; all ones: unknown
const (
	magic      = "btrfshis"
	version    = 1
	headerSize = 4096
	headerUsed = 44
	trialStart = 512                                  // another sector of a disk than what is before it
	trialSlots = (headerSize - trialStart) / slotSize // 68
	slotSize   = 12 + 5*8
	slots      = int(Span / Step)
	fileSize   = headerSize + slots*slotSize // 2,000,896, below 2 MiB

	stepSeconds = int64(Step / time.Second)
	unknown     = ^uint64(0)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// quarter is the number of quarters of an hour since 1970.
func quarter(t time.Time) int64 { return t.Unix() / stepSeconds }

// place returns where in the file the slot of a quarter of an hour is.
func place(quarter int64) int64 { return headerSize + quarter%int64(slots)*slotSize }

// trialPlace returns where in the file a slot for a sample on trial is.
func trialPlace(i int) int64 { return int64(trialStart + i*slotSize) }

func header(pool btrfs.UUID) []byte {
	h := make([]byte, headerSize)
	copy(h, magic)
	for i, v := range []uint32{version, uint32(stepSeconds), uint32(slots), slotSize} {
		binary.LittleEndian.PutUint32(h[8+4*i:], v)
	}
	copy(h[24:], pool[:])
	binary.LittleEndian.PutUint32(h[40:], crc32.Checksum(h[:40], castagnoli))
	return h
}

// checkHeader returns why the slots after a header cannot be read.
func checkHeader(h []byte, pool btrfs.UUID) error {
	want := header(pool)
	switch {
	case len(h) < headerUsed || string(h[:8]) != magic:
		return errors.New("it does not begin as a history does")
	case crc32.Checksum(h[:40], castagnoli) != binary.LittleEndian.Uint32(h[40:]):
		return errors.New("the checksum of its header is wrong")
	case [16]byte(h[24:40]) != pool:
		return fmt.Errorf("it is that of pool %s", btrfs.UUID(h[24:40]))
	case string(h[:headerUsed]) != string(want[:headerUsed]):
		return fmt.Errorf("its version is %d, and not %d", binary.LittleEndian.Uint32(h[8:]), version)
	}
	return nil
}

func encode(s *Sample, order uint32) []byte {
	slot := make([]byte, slotSize)
	binary.LittleEndian.PutUint32(slot[4:], order)
	binary.LittleEndian.PutUint32(slot[8:], uint32(s.Time.Unix()))
	for i, v := range s.values() {
		stored := unknown
		if known, ok := v.Get(); ok {
			stored = known
		}
		binary.LittleEndian.PutUint64(slot[12+8*i:], stored)
	}
	binary.LittleEndian.PutUint32(slot, crc32.Checksum(slot[4:], castagnoli))
	return slot
}

// values are those of a sample in the order of a slot.
func (s *Sample) values() [5]*btrfs.Opt[uint64] {
	return [5]*btrfs.Opt[uint64]{&s.Used, &s.Free, &s.FreeExpected, &s.MetadataFree, &s.StatfsFree}
}

// entry says where a good sample is. One whose seconds are 0 is none.
type entry struct {
	seconds, order uint32
	offset         int64 // in the file
}

// decode returns the entry of a slot; none where that is torn or empty.
func decode(slot []byte, offset int64) entry {
	if len(slot) < slotSize || crc32.Checksum(slot[4:slotSize], castagnoli) != binary.LittleEndian.Uint32(slot) {
		return entry{}
	}
	return entry{binary.LittleEndian.Uint32(slot[8:]), binary.LittleEndian.Uint32(slot[4:]), offset}
}

func (e entry) time() time.Time { return time.Unix(int64(e.seconds), 0).UTC() }

func (e entry) quarter() int64 { return int64(e.seconds) / stepSeconds }

// ring is the content of a file.
type ring struct {
	data    []byte
	entries []entry // of the samples that are good, in the order of their times
	last    entry   // the one that was written last, if there is one
	trial   [trialSlots]entry
}

// readRing reads a file. Slots that are torn or empty have no sample.
func readRing(path string, pool btrfs.UUID) (*ring, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, min(info.Size(), int64(fileSize)))
	n, err := io.ReadFull(f, data)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) { // it was made shorter meanwhile
		return nil, err
	}
	return parseRing(data[:n], pool)
}

// damage is why a file is none of ours.
type damage struct{ error }

func parseRing(data []byte, pool btrfs.UUID) (*ring, error) {
	if err := checkHeader(data[:min(len(data), headerSize)], pool); err != nil {
		return nil, damage{err}
	}
	r := &ring{data: data}
	count := max(0, len(data)-headerSize) / slotSize
	r.entries = make([]entry, 0, count+trialSlots)
	end := 0 // after the one that was written last
	for i := range count {
		offset := int64(headerSize + i*slotSize)
		e := decode(data[offset:], offset)
		if e.seconds == 0 || place(e.quarter()) != offset {
			continue
		}
		if len(r.entries) == 0 || e.order > r.last.order {
			r.last, end = e, len(r.entries)+1
		}
		r.entries = append(r.entries, e)
	}
	// In the order of the ring they are sorted, unless a clock was wrong, and sorting
	// costs nothing.
	r.entries = slices.Concat(r.entries[end:], r.entries[:end])
	for i := range r.trial {
		offset := trialPlace(i)
		slot := data[min(offset, int64(len(data))):]
		e := decode(slot, offset)
		if e.seconds == 0 || bytes.Equal(slot[:slotSize], r.slot(place(e.quarter()))) {
			continue // there is none, or it is also where it belongs
		}
		if len(r.entries) == 0 || e.order > r.last.order {
			r.last = e
		}
		r.trial[i] = e
		r.entries = append(r.entries, e)
	}
	slices.SortStableFunc(r.entries, func(a, b entry) int { return cmp.Compare(a.seconds, b.seconds) })
	return r, nil
}

// slot returns what is at an offset; nothing where the file has no whole slot.
func (r *ring) slot(offset int64) []byte {
	if offset+slotSize > int64(len(r.data)) {
		return nil
	}
	return r.data[offset:][:slotSize]
}

// consistent leaves out the samples of a clock that was wrong. They were not
// written in the order of their times; of all that can be left out so that the
// rest is, the fewest are, and where that could be one or the other the older.
func consistent(entries []entry) []entry {
	ordered := func(i int) bool {
		return entries[i-1].seconds < entries[i].seconds && entries[i-1].order < entries[i].order
	}
	for i := 1; ; i++ {
		if i >= len(entries) {
			return entries
		}
		if !ordered(i) {
			break
		}
	}
	// The longest increasing subsequence, from its end: begins[n] is the sample with
	// the highest order with which n+1 samples can begin, after those before it.
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(a, b entry) int {
		// Of those of one second no two are taken.
		return cmp.Or(cmp.Compare(a.seconds, b.seconds), cmp.Compare(b.order, a.order))
	})
	var begins []int
	after := make([]int, len(entries))
	for i, e := range slices.Backward(entries) {
		n, _ := slices.BinarySearchFunc(begins, e.order, func(begin int, order uint32) int { return cmp.Compare(order, entries[begin].order) })
		after[i] = -1
		if n > 0 {
			after[i] = begins[n-1]
		}
		if n == len(begins) {
			begins = append(begins, 0)
		}
		begins[n] = i
	}
	kept := make([]entry, 0, len(begins))
	for i := begins[len(begins)-1]; i >= 0; i = after[i] {
		kept = append(kept, entries[i])
	}
	return kept
}

// until returns the samples that are told at a time. Those of later are of a clock
// that was wrong, and those that are too old to be told may be: neither contradict
// anything.
func (r *ring) until(now time.Time) []entry {
	first := search(r.entries, quarter(now.Add(-Span))*stepSeconds)
	end := search(r.entries, now.Unix()+1)
	return consistent(r.entries[min(first, end):end])
}

// search returns how many of some samples are before a time.
func search(entries []entry, seconds int64) int {
	n, _ := slices.BinarySearchFunc(entries, seconds, func(e entry, seconds int64) int { return cmp.Compare(int64(e.seconds), seconds) })
	return n
}

// between returns the samples from a time to another, which is now.
func (r *ring) between(from, now time.Time) []entry {
	told := r.until(now)
	return told[search(told, from.Unix()):]
}

func (r *ring) samples(entries []entry) []Sample {
	samples := make([]Sample, len(entries))
	for i, e := range entries {
		slot := r.slot(e.offset)
		samples[i].Time = e.time()
		for n, v := range samples[i].values() {
			if stored := binary.LittleEndian.Uint64(slot[12+8*n:]); stored != unknown {
				*v = btrfs.Some(stored)
			}
		}
	}
	return samples
}

// thin returns at most so many, of each part of the time the last. The parts are
// the same from one call to the next, so that a curve does not change its shape.
func thin(entries []entry, most int) []entry {
	if most <= 0 {
		return nil
	}
	if len(entries) <= most {
		return entries
	}
	span := entries[len(entries)-1].quarter() - entries[0].quarter()
	width := span + 1
	if most > 1 {
		width = span/int64(most-1) + 1 // what is as long as n parts may touch n+1
	}
	var thinned []entry
	for i, e := range entries {
		if i == len(entries)-1 || entries[i+1].quarter()/width != e.quarter()/width {
			thinned = append(thinned, e)
		}
	}
	return thinned[max(0, len(thinned)-most):]
}
