package history

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"
)

// Each sample is written at once, whatever the clock says: where it belongs if that
// costs nothing, else on trial in the header, until enough others agree with it. So
// a clock that was wrong for up to two hours after a start costs no sample that was
// good, and holds none up.

// believed is how many samples must agree before something good is written over:
// six hours of them. A computer without a clock of its own starts in the past, and
// a network has set it right by then. It does not matter how often the daemon
// was started meanwhile.
const believed = 24

// grace is how much earlier than after 400 days a sample may be written over. It
// spares the trial where samples are taken as they should be.
const grace = int64(24 * time.Hour / Step)

// recent is what decides where a sample is written.
type recent struct {
	last entry // the one that was written last
	// run are those that were written last, the last first, as far as each is later
	// than the one before it; believed of them at most.
	run []entry
	// kept are the newest that are told, the newest first; believed of them at most.
	kept []entry
	// next is when samples that are of the future become told.
	next  int64
	trial [trialSlots]entry
}

func (r *ring) recent(now time.Time) *recent {
	c := &recent{last: r.last, next: math.MaxInt64, trial: r.trial}
	if n := search(r.entries, now.Unix()+1); n < len(r.entries) {
		c.next = int64(r.entries[n].seconds)
	}
	told := r.until(now)
	c.kept = slices.Clone(told[max(0, len(told)-believed):])
	slices.Reverse(c.kept)
	written := slices.Clone(r.entries)
	slices.SortFunc(written, func(a, b entry) int { return cmp.Compare(b.order, a.order) })
	for i, e := range written[:min(len(written), believed)] {
		if i > 0 && e.seconds >= written[i-1].seconds {
			break
		}
		c.run = append(c.run, e)
	}
	return c
}

// isOf tells whether it may be gone on with at a time; else the clock was set, and
// other samples are told.
func (c *recent) isOf(now time.Time) bool {
	return now.Unix() < c.next && (len(c.kept) == 0 || !c.kept[0].time().After(now))
}

// add adds the sample that is written next.
func (c *recent) add(e entry) {
	front := func(entries []entry) []entry {
		return slices.Insert(entries, 0, e)[:min(len(entries)+1, believed)]
	}
	if len(c.run) > 0 && c.run[0].seconds >= e.seconds {
		c.run = nil
	}
	c.run = front(c.run)
	if len(c.kept) == 0 || c.kept[0].seconds < e.seconds {
		c.kept = front(c.kept) // nothing told contradicts it, and it is the last in both orders
	}
	c.last = e
}

// mayReplace tells whether a sample may be written where there is another one, to
// which one that belongs there gives way.
func (c *recent) mayReplace(old, e entry) bool {
	switch {
	case old.seconds == 0 || old.seconds == e.seconds && old.order == e.order:
		return true
	case old.quarter() < e.quarter():
		// Six hours of samples say that it is 400 days old.
		return len(c.kept) == believed && old.quarter()+int64(slots) <= c.kept[believed-1].quarter()+grace
	default:
		// Six hours of samples that were written after it say that it was not yet so
		// late. All of them must: the clock may have been behind at the first, and set
		// right then.
		if len(c.run) < believed {
			return false
		}
		first := c.run[believed-1]
		return old.order < first.order && old.seconds > first.seconds && old.quarter() >= c.run[0].quarter() && e.order >= first.order
	}
}

// trialSlot returns which slot a sample on trial takes: that of the same quarter of
// an hour, else a free one, else that of the one that was written first.
func (c *recent) trialSlot(e entry) int {
	best := 0
	for i, old := range c.trial {
		if old.seconds != 0 && old.quarter() == e.quarter() {
			return i
		}
		if old.order < c.trial[best].order { // a free one has none
			best = i
		}
	}
	return best
}

// slotFile is where samples are.
type slotFile interface {
	io.ReaderAt
	io.WriterAt
}

// readSlot reads a slot. There is none beyond the end of the file.
func readSlot(f slotFile, offset int64) ([]byte, entry, error) {
	slot := make([]byte, slotSize)
	n, err := f.ReadAt(slot, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, entry{}, err
	}
	return slot, decode(slot[:n], offset), nil
}

// occupant returns the sample that is where those of a quarter of an hour are.
func occupant(f slotFile, quarter int64) (entry, error) {
	_, old, err := readSlot(f, place(quarter))
	if err != nil || place(old.quarter()) != old.offset {
		return entry{}, err
	}
	return old, nil
}

// write writes the next sample, and moves those to their places that are on trial no
// more.
func (c *recent) write(f slotFile, sample *Sample) error {
	e := entry{seconds: uint32(sample.Time.Unix()), order: c.last.order + 1}
	c.add(e)
	old, err := occupant(f, e.quarter())
	if err != nil {
		return err
	}
	e.offset = place(e.quarter())
	onTrial := !c.mayReplace(old, e)
	if onTrial {
		i := c.trialSlot(e)
		e.offset = trialPlace(i)
		c.trial[i] = e
	}
	if _, err := f.WriteAt(encode(sample, e.order), e.offset); err != nil {
		return err
	}
	return c.settle(f)
}

// settle writes the samples that are on trial no more where they belong. Their
// copies stay until others take their places, so that no moment has none.
func (c *recent) settle(f slotFile) error {
	for i, e := range c.trial {
		if e.seconds == 0 {
			continue
		}
		old, err := occupant(f, e.quarter())
		if err != nil {
			return err
		}
		if !c.mayReplace(old, e) {
			continue
		}
		slot, found, err := readSlot(f, e.offset)
		if err != nil {
			return err
		}
		if found == e {
			if _, err := f.WriteAt(slot, place(e.quarter())); err != nil {
				return fmt.Errorf("take a sample from trial: %w", err)
			}
		}
		c.trial[i] = entry{}
	}
	return nil
}
