package history

import (
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
// The header, of which the rest is zero:
//
//	 0  magic
//	 8  version
//	12  seconds between two samples
//	16  number of slots
//	20  size of a slot
//	24  UUID of the pool
//	40  CRC-32C of the above
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
	headerSize = 4096 // a page of its own: no write of a sample touches it
	headerUsed = 44
	slotSize   = 12 + 5*8
	slots      = int(Span / Step)
	fileSize   = headerSize + slots*slotSize // 2,000,896, below 2 MiB

	stepSeconds = int64(Step / time.Second)
	unknown     = ^uint64(0)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// quarter is the number of quarters of an hour since 1970.
func quarter(t time.Time) int64 { return t.Unix() / stepSeconds }

func slotOf(quarter int64) int { return int(quarter % int64(slots)) }

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

// entry says where a good sample is.
type entry struct {
	seconds, order uint32
	slot           int
}

func (e entry) time() time.Time { return time.Unix(int64(e.seconds), 0).UTC() }

// ring is the content of a file.
type ring struct {
	slots   []byte
	entries []entry // of the samples that are good, in the order of their times
	last    entry   // the one that was written last, if there is one
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
	r := &ring{slots: data[min(len(data), headerSize):]}
	r.entries = make([]entry, 0, len(r.slots)/slotSize)
	end := 0 // after the one that was written last
	for i := range len(r.slots) / slotSize {
		slot := r.slots[i*slotSize:][:slotSize]
		seconds := binary.LittleEndian.Uint32(slot[8:])
		if seconds == 0 || slotOf(int64(seconds)/stepSeconds) != i || crc32.Checksum(slot[4:], castagnoli) != binary.LittleEndian.Uint32(slot) {
			continue
		}
		e := entry{seconds, binary.LittleEndian.Uint32(slot[4:]), i}
		if len(r.entries) == 0 || e.order > r.last.order {
			r.last, end = e, len(r.entries)+1
		}
		r.entries = append(r.entries, e)
	}
	// In the order of the ring they are sorted, unless a clock was wrong, and sorting
	// costs nothing.
	r.entries = slices.Concat(r.entries[end:], r.entries[:end])
	slices.SortFunc(r.entries, func(a, b entry) int { return cmp.Compare(a.seconds, b.seconds) })
	r.entries = consistent(r.entries)
	return r, nil
}

// consistent leaves out the samples of a clock that was wrong. They were not
// written in the order of their times; of all that can be left out so that the
// rest is, the fewest are.
func consistent(entries []entry) []entry {
	if slices.IsSortedFunc(entries, func(a, b entry) int { return cmp.Compare(a.order, b.order) }) {
		return entries
	}
	// The longest increasing subsequence: ends[n] is the sample with the lowest
	// order in which one of n+1 samples can end, before those before it.
	var ends []int
	before := make([]int, len(entries))
	for i, e := range entries {
		n, _ := slices.BinarySearchFunc(ends, e.order, func(end int, order uint32) int { return cmp.Compare(entries[end].order, order) })
		before[i] = -1
		if n > 0 {
			before[i] = ends[n-1]
		}
		if n == len(ends) {
			ends = append(ends, 0)
		}
		ends[n] = i
	}
	kept := make([]entry, len(ends))
	for n, i := len(ends)-1, ends[len(ends)-1]; n >= 0; n, i = n-1, before[i] {
		kept[n] = entries[i]
	}
	return kept
}

// between returns the samples from a time to another.
func (r *ring) between(from, to time.Time) []entry {
	at := func(t time.Time) int {
		n, _ := slices.BinarySearchFunc(r.entries, t.Unix(), func(e entry, seconds int64) int { return cmp.Compare(int64(e.seconds), seconds) })
		return n
	}
	first, end := at(from), at(to.Add(time.Second))
	return r.entries[first:max(first, end)]
}

func (r *ring) samples(entries []entry) []Sample {
	samples := make([]Sample, len(entries))
	for i, e := range entries {
		slot := r.slots[e.slot*slotSize:][:slotSize]
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
	number := func(e entry) int64 { return int64(e.seconds) / stepSeconds }
	span := number(entries[len(entries)-1]) - number(entries[0])
	width := span + 1
	if most > 1 {
		width = span/int64(most-1) + 1 // what is as long as n parts may touch n+1
	}
	var thinned []entry
	for i, e := range entries {
		if i == len(entries)-1 || number(entries[i+1])/width != number(e)/width {
			thinned = append(thinned, e)
		}
	}
	return thinned[max(0, len(thinned)-most):]
}
