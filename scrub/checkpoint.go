package scrub

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// checkpoint is what is kept of the scrub of a pool, the running one or the
// last: enough to go on after a crash as if nothing had happened.
type checkpoint struct {
	Version   int           `json:"version"`
	Pool      btrfs.UUID    `json:"pool"`
	JobID     string        `json:"job_id"`
	Requester string        `json:"requester"`
	Options   Options       `json:"options"`
	State     State         `json:"state"`
	Reason    string        `json:"reason,omitempty"`
	Requested time.Time     `json:"requested"`
	Started   time.Time     `json:"started,omitzero"`
	Finished  time.Time     `json:"finished,omitzero"`
	Active    time.Duration `json:"active_ns"`
	Yielded   time.Duration `json:"yielded_ns"`
	Urged     time.Duration `json:"urged_ns,omitempty"`
	Pauses    uint64        `json:"pauses"`
	// Pausing and Cancelling are why a pause or an end was asked for; empty where
	// none is. The state is Paused or Cancelled only when the disks have let go,
	// which a restart must not wait for.
	Pausing    string `json:"pausing,omitempty"`
	Cancelling string `json:"cancelling,omitempty"`

	Devices []deviceCheckpoint `json:"devices"`
	// SpeedMax are the values of scrub_speed_max to put back, by devid: there
	// from before the first change until they have been put back.
	SpeedMax map[uint64]uint64 `json:"speed_max,omitempty"`
	Damage   *Damage           `json:"damage,omitempty"`

	History history `json:"history"`
}

// history are facts of the scrubs before, which a new one does not reset.
type history struct {
	LastSuccess  time.Time     `json:"last_success,omitzero"`
	LastFinished time.Time     `json:"last_finished,omitzero"`
	LastDuration time.Duration `json:"last_duration_ns"`
	LastErrors   uint64        `json:"last_errors"`
	// LastUncorrectable are the uncorrectable errors of the last scrub that went
	// to its end, or more of one that did not.
	LastUncorrectable uint64                   `json:"last_uncorrectable,omitempty"`
	Yielded           time.Duration            `json:"yielded_ns"`
	Urged             time.Duration            `json:"urged_ns,omitempty"`
	Pauses            map[string]uint64        `json:"pauses,omitempty"`  // by reason
	Devices           map[string]deviceHistory `json:"devices,omitempty"` // by device UUID
}

// deviceHistory is what was scrubbed on a device before.
type deviceHistory struct {
	Counters btrfs.ScrubCounters `json:"counters"` // of all scrubs before, summed
	Marks    []mark              `json:"marks,omitempty"`
}

// mark says when the extents from an offset on, up to the next mark, were
// verified.
type mark struct {
	Offset uint64    `json:"offset"`
	At     time.Time `json:"at"`
}

// maxMarks is how finely it is remembered what was verified when.
const maxMarks = 64

// deviceCheckpoint is the part of a scrub on one device.
type deviceCheckpoint struct {
	DevID    uint64     `json:"devid"`
	UUID     btrfs.UUID `json:"uuid"`
	Name     string     `json:"name,omitempty"`
	Path     string     `json:"path,omitempty"`
	Size     uint64     `json:"size"`
	Cursor   uint64     `json:"cursor"`   // where the next extent may begin
	Position uint64     `json:"position"` // bytes of the extents that are done
	// Supers tells that the errors of the superblocks are counted: each call
	// looks at them again.
	Supers   bool                `json:"supers,omitempty"`
	Done     bool                `json:"done,omitempty"`
	Error    string              `json:"error,omitempty"`
	Started  time.Time           `json:"started,omitzero"`
	Finished time.Time           `json:"finished,omitzero"`
	Counters btrfs.ScrubCounters `json:"counters"`
	// Pending are extents that were looked at and counted, had errors, and are
	// still to be repaired.
	Pending *pending `json:"pending,omitempty"`
	Marks   []mark   `json:"marks,omitempty"`
}

// pending is a range of a device that had errors.
type pending struct {
	Start uint64 `json:"start"`
	End   uint64 `json:"end"`
	Size  uint64 `json:"size"` // bytes of its extents
	Next  uint64 `json:"next"` // where to go on afterwards
	// Correctable is how many of the errors another copy can correct.
	Correctable uint64 `json:"correctable"`
}

const checkpointVersion = 1

func checkpointName(pool btrfs.UUID) string { return "scrub-" + pool.String() + ".json" }

// check returns why a checkpoint cannot be one that was saved.
func (c *checkpoint) check(pool btrfs.UUID) error {
	if c.Version != checkpointVersion {
		return fmt.Errorf("it has version %d, and this program knows %d", c.Version, checkpointVersion)
	}
	if c.Pool != pool {
		return fmt.Errorf("it is of pool %s", c.Pool)
	}
	if c.State == Idle || !slices.Contains(States(), c.State) {
		return fmt.Errorf("state %q cannot be", c.State)
	}
	if err := c.Options.Validate(); err != nil {
		return err
	}
	seen := make(map[uint64]bool)
	for i := range c.Devices {
		d := &c.Devices[i]
		if seen[d.DevID] {
			return fmt.Errorf("device %d is there twice", d.DevID)
		}
		seen[d.DevID] = true
		if p := d.Pending; p != nil && (p.End <= p.Start || p.Next < p.Start) {
			return fmt.Errorf("device %d: pending range from %d to %d cannot be", d.DevID, p.Start, p.End)
		}
		if len(d.Marks) > maxMarks {
			return fmt.Errorf("device %d has %d marks", d.DevID, len(d.Marks))
		}
	}
	if c.State.Active() && len(c.Devices) == 0 && !c.Started.IsZero() {
		return errors.New("it has begun and has no devices")
	}
	return nil
}

// clone returns a copy that shares nothing which changes.
func (c *checkpoint) clone() checkpoint {
	copied := *c
	copied.Devices = slices.Clone(c.Devices)
	copied.SpeedMax = maps.Clone(c.SpeedMax)
	copied.History.Pauses = maps.Clone(c.History.Pauses)
	copied.History.Devices = maps.Clone(c.History.Devices)
	return copied
}

// next returns the checkpoint with which a new scrub begins.
func (c *checkpoint) next(pool btrfs.UUID, jobID, requester string, o Options, now time.Time) checkpoint {
	h := c.History
	if h.Devices == nil {
		h.Devices = make(map[string]deviceHistory)
	} else {
		h.Devices = maps.Clone(h.Devices)
	}
	for i := range c.Devices {
		d := &c.Devices[i]
		old := h.Devices[d.UUID.String()]
		old.Counters.Add(&d.Counters)
		old.Marks = mergeMarks(old.Marks, d)
		h.Devices[d.UUID.String()] = old
	}
	h.Yielded += c.Yielded
	h.Urged += c.Urged
	return checkpoint{
		Version: checkpointVersion, Pool: pool, JobID: jobID, Requester: requester, Options: o,
		State: Waiting, Requested: now, SpeedMax: c.SpeedMax, History: h,
	}
}

// mark notes that everything from the last mark to the cursor is verified.
func (d *deviceCheckpoint) mark(from uint64, at time.Time) {
	if n := len(d.Marks); n > 0 && from-d.Marks[n-1].Offset < d.span()/maxMarks {
		return
	}
	if len(d.Marks) < maxMarks {
		d.Marks = append(d.Marks, mark{from, at})
	}
}

// span is about how far the extents of the device reach.
func (d *deviceCheckpoint) span() uint64 { return max(d.Size, d.Cursor) }

// mergeMarks returns what is known of a device after a scrub that got as far
// as d did: the new marks up to its cursor, the old ones beyond.
func mergeMarks(old []mark, d *deviceCheckpoint) []mark {
	merged := slices.Clone(d.Marks)
	if d.Done {
		return merged
	}
	last := time.Time{}
	for _, m := range old {
		if m.Offset <= d.Cursor {
			last = m.At
			continue
		}
		break
	}
	merged = append(merged, mark{d.Cursor, last})
	for _, m := range old {
		if m.Offset > d.Cursor {
			merged = append(merged, m)
		}
	}
	// Fewer marks, each with the older time: what is said to be verified was.
	for len(merged) > maxMarks {
		kept := merged[:0]
		for i := 0; i < len(merged); i += 2 {
			m := merged[i]
			if i+1 < len(merged) && merged[i+1].At.Before(m.At) {
				m.At = merged[i+1].At
			}
			kept = append(kept, m)
		}
		merged = kept
	}
	return merged
}

// oldestVerified is when the least recently verified extent of the device
// was; zero where one never was.
func oldestVerified(old []mark, d *deviceCheckpoint) time.Time {
	var oldest time.Time
	merged := mergeMarks(old, d)
	for i, m := range merged {
		if m.At.IsZero() {
			return time.Time{}
		}
		if i == 0 || m.At.Before(oldest) {
			oldest = m.At
		}
	}
	return oldest
}
