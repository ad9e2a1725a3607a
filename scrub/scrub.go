// Package scrub runs scrubs that give way to people: extent by extent,
// throttled in closed loop, and resumed after a crash from where they stood.
package scrub

import (
	"errors"
	"fmt"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// Mode says how fast a scrub goes.
type Mode string

// The modes.
const (
	Auto  Mode = "auto"  // as fast as nobody feels
	Full  Mode = "full"  // as fast as it can
	Limit Mode = "limit" // at Options.Limit on each device
)

// Options are what is asked of a scrub.
type Options struct {
	Mode Mode `json:"mode"`
	// Limit is the rate of each device in bytes per second; with mode limit
	// only.
	Limit uint64 `json:"limit,omitempty"`
	// ReadOnly repairs nothing.
	ReadOnly bool `json:"read_only,omitempty"`
	// NotBefore is when it may begin.
	NotBefore time.Time `json:"not_before,omitzero"`
	// Deadline is when it is to have finished: as that nears it gives way less.
	Deadline time.Time `json:"deadline,omitzero"`
}

// Validate returns what is wrong with the options, as ErrInvalid.
func (o *Options) Validate() error {
	if err := o.validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

func (o *Options) validate() error {
	switch o.Mode {
	case Auto, Full:
		if o.Limit != 0 {
			return fmt.Errorf("a limit goes with mode limit only, not with mode %s", o.Mode)
		}
	case Limit:
		if o.Limit < minLimit {
			return fmt.Errorf("a limit of %d bytes per second is too low: the least is %d", o.Limit, minLimit)
		}
	default:
		return fmt.Errorf("mode %q is none of auto, full, limit", o.Mode)
	}
	if !o.Deadline.IsZero() && !o.NotBefore.IsZero() && !o.Deadline.After(o.NotBefore) {
		return errors.New("the deadline is not after not_before")
	}
	return nil
}

// minLimit is the least rate that is no pause: the kernel reads 512 KiB at a
// time.
const minLimit = 1 << 20

// State is what the scrub of a pool is about.
type State string

// The states. Those from Finished on are its end.
const (
	Idle      State = "idle"     // never scrubbed
	Waiting   State = "waiting"  // may not run now, see Status.Reason
	Running   State = "running"  //
	Yielding  State = "yielding" // gives way to others
	Paused    State = "paused"   // until it is resumed by hand
	Finished  State = "finished"
	Cancelled State = "cancelled"
	Failed    State = "failed"
)

// States lists all states.
func States() []State {
	return []State{Idle, Waiting, Running, Yielding, Paused, Finished, Cancelled, Failed}
}

// Active reports whether a scrub in this state is to go on.
func (s State) Active() bool { return s == Waiting || s == Running || s == Yielding || s == Paused }

// Status is the scrub of one pool, the running one or the last.
type Status struct {
	Pool      btrfs.UUID `json:"pool"`
	JobID     string     `json:"job_id,omitempty"`
	State     State      `json:"state"`
	Reason    string     `json:"reason,omitempty"` // why it waits, yields, or ended as it did
	Options   Options    `json:"options"`
	Requester string     `json:"requester,omitempty"`
	// Foreign marks a scrub that somebody else runs: it is shown and not
	// touched.
	Foreign bool `json:"foreign,omitempty"`

	Started  time.Time     `json:"started,omitzero"`
	Finished time.Time     `json:"finished,omitzero"`
	Duration time.Duration `json:"duration_ns"` // without pauses and waiting
	// LastSuccess is when a scrub last went to its end on all devices.
	LastSuccess time.Time `json:"last_success,omitzero"`

	// Progress is the share that is done, from 0 to 1; a device counts by the
	// bytes of its extents.
	Progress float64       `json:"progress"`
	Rate     uint64        `json:"rate_bytes_per_second"`
	ETA      time.Duration `json:"eta_ns,omitempty"` // 0: not known
	Yielded  time.Duration `json:"yielded_ns"`       // it gave way for so long
	// Urged is for how long it would have given way, and did not because its
	// deadline was near: what that cost the others.
	Urged  time.Duration `json:"urged_ns,omitempty"`
	Pauses uint64        `json:"pauses"`

	Devices []DeviceStatus `json:"devices"`
	Damage  *Damage        `json:"damage,omitempty"` // nil where no error was found
}

// Counters returns the sum over the devices.
func (s *Status) Counters() btrfs.ScrubCounters {
	var sum btrfs.ScrubCounters
	for i := range s.Devices {
		sum.Add(&s.Devices[i].Counters)
	}
	return sum
}

// DeviceStatus is the part of a scrub on one device.
type DeviceStatus struct {
	DevID    uint64     `json:"devid"`
	UUID     btrfs.UUID `json:"uuid"`
	Name     string     `json:"name,omitempty"` // kernel name
	Path     string     `json:"path,omitempty"`
	Size     uint64     `json:"size"`                   // bytes of its extents
	Position uint64     `json:"position"`               // bytes of its extents that are done
	Done     bool       `json:"done"`                   //
	Error    string     `json:"error,omitempty"`        // why it was given up
	Limit    uint64     `json:"limit_bytes_per_second"` // 0 is none
	Rate     uint64     `json:"rate_bytes_per_second"`
	Started  time.Time  `json:"started,omitzero"`
	Finished time.Time  `json:"finished,omitzero"`
	// OldestVerified is when the least recently verified of its extents was;
	// zero where one never was.
	OldestVerified time.Time `json:"oldest_verified,omitzero"`
	// Counters are exact: each extent counts once. CorrectedErrors are those
	// that a second look no longer found.
	Counters btrfs.ScrubCounters `json:"counters"`
}

// Plan is what a scrub would do.
type Plan struct {
	Pool    btrfs.UUID `json:"pool"`
	Options Options    `json:"options"`
	// Would says it in sentences.
	Would   []string       `json:"would"`
	Devices []DeviceStatus `json:"devices"`
}

// Errors on which a caller decides.
var (
	ErrInvalid     = errors.New("the options of the scrub are wrong")
	ErrUnknownPool = errors.New("there is no such pool")
	ErrRunning     = errors.New("a scrub of the pool is under way already")
	ErrNotRunning  = errors.New("no scrub of the pool is under way")
	ErrForeign     = errors.New("the scrub is not one of ours")
	ErrRefused     = errors.New("cannot be done now") // what stands in its way follows
)
