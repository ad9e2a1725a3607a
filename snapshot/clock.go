package snapshot

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells the time.
type Clock interface {
	// Now is the time by the calendar, which anybody may set.
	Now() time.Time
	// Uptime is how long the boot of that id has been up, suspended times
	// included, by a clock that nobody sets.
	Uptime() (boot string, uptime time.Duration)
	// After is time.After.
	After(d time.Duration) <-chan time.Time
}

type machineClock struct{}

func (machineClock) Now() time.Time { return time.Now().UTC().Round(0) }

func (machineClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Uptime reads CLOCK_BOOTTIME.
func (machineClock) Uptime() (string, time.Duration) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var now unix.Timespec
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return "", 0
	}
	return strings.TrimSpace(string(id)), time.Duration(now.Nano())
}
