package scrub_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// BenchmarkPause measures how long it takes from the request for a pause until
// the disks are quiet, that is until the last byte has been read (quiet), and
// until the status says that the scrub is paused, when no scrub runs in the
// kernel any more (paused): at a low rate the kernel's throttle sleeps for up to
// a second before it looks. On disks in files, and on emulated hard disks of 8 ms
// and 150 MB/s, at several rates.
func BenchmarkPause(b *testing.B) {
	btrfstest.RequireFUSE(b)
	for _, kind := range []string{"files", "hard disks"} {
		rig := btrfstest.New(b)
		var (
			disks []*btrfstest.Disk
			slow  []*btrfstest.FaultDisk
		)
		if kind == "hard disks" {
			dir, err := rig.NewFaultDir()
			must(b, err)
			for range 2 {
				d, err := dir.NewDisk(gib)
				must(b, err)
				disks, slow = append(disks, d.Disk), append(slow, d)
			}
		}
		pool := cleanPool(b, rig, disks...)
		for _, d := range slow {
			d.Slow(8*time.Millisecond, 150_000_000)
		}
		uuid := uuidOf(b, pool)
		for _, o := range []scrub.Options{
			{Mode: scrub.Limit, Limit: 5_000_000}, {Mode: scrub.Limit, Limit: 50_000_000}, {Mode: scrub.Limit, Limit: 100_000_000}, {Mode: scrub.Full}, {Mode: scrub.Auto},
		} {
			name := fmt.Sprintf("%s/%s", kind, o.Mode)
			if o.Limit > 0 {
				name += fmt.Sprintf(" %d MB per s", o.Limit/1_000_000)
			}
			b.Run(name, func(b *testing.B) {
				r := startWith(b, newDirs(b), func(c *scrub.Config) { c.Logger = log.NewNopLogger() })
				var quiet, untilPaused []time.Duration
				for b.Loop() {
					b.StopTimer()
					must(b, pool.DropCaches())
					began := bytesRead(b, pool)
					r.begin(uuid, o)
					// In the middle of a device.
					for bytesRead(b, pool)[0]-began[0] < uint64(40*mib) {
						if s, err := r.Status(uuid); err != nil || !s.State.Active() {
							b.Fatalf("it is %s: %s, %v", s.State, s.Reason, err)
						}
						time.Sleep(time.Millisecond)
					}
					b.StartTimer()
					asked := time.Now()
					_, err := r.Pause(uuid)
					must(b, err)
					last, seen := asked, bytesRead(b, pool)
					var paused time.Time
					// Quiet is what has read nothing for half a second.
					for paused.IsZero() || time.Since(last) < 500*time.Millisecond {
						now := bytesRead(b, pool)
						if !slices.Equal(now, seen) {
							last, seen = time.Now(), now
						}
						if s, err := r.Status(uuid); err == nil && s.State == scrub.Paused && paused.IsZero() {
							paused = time.Now()
							if inKernel(b, pool) {
								b.Error("it is said to be paused, and a scrub runs in the kernel")
							}
						}
						time.Sleep(time.Millisecond)
					}
					quiet, untilPaused = append(quiet, last.Sub(asked)), append(untilPaused, paused.Sub(asked))
					b.StopTimer()
					_, err = r.Cancel(uuid)
					must(b, err)
					r.finish(uuid)
					b.StartTimer()
				}
				b.ReportMetric(float64(slices.Max(quiet).Milliseconds()), "ms-quiet-at-most")
				b.ReportMetric(float64(slices.Max(untilPaused).Milliseconds()), "ms-paused-at-most")
			})
		}
	}
}
