package throttle

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// seed is fixed; THROTTLE_SEED tries another.
func seed() uint64 {
	n, _ := strconv.ParseUint(os.Getenv("THROTTLE_SEED"), 10, 64)
	return n
}

func TestForegroundIsNotFelt(t *testing.T) {
	const begin, end, length = 20 * time.Second, 140 * time.Second, 220 * time.Second
	for _, tt := range []struct {
		name string
		fg   func() []foreground
	}{
		{"random reader", func() []foreground { return []foreground{during{randomReader{30}, begin, end}} }},
		{"bursts", func() []foreground {
			return []foreground{during{&bursts{reads: 25, every: 4 * time.Second}, begin, end}}
		}},
		{"film", func() []foreground { return []foreground{during{&film{perSecond: 5e6, size: 512 << 10}, begin, end}} }},
		{"film in large reads", func() []foreground {
			return []foreground{during{&film{perSecond: 5e6, size: 2 << 20}, begin, end}}
		}},
		{"writer", func() []foreground { return []foreground{during{&writer{perSecond: 20e6}, begin, end}} }},
		{"mix", func() []foreground {
			return []foreground{
				during{randomReader{15}, begin, end}, during{&film{perSecond: 5e6, size: 512 << 10}, begin, end},
				during{&writer{perSecond: 5e6}, begin, end},
			}
		}},
	} {
		for _, psi := range []psiKind{ownCgroupPSI, systemPSI, noPSI} {
			for _, devices := range []int{1, 3} {
				t.Run(fmt.Sprintf("%s/psi=%s/devices=%d", tt.name, psi, devices), func(t *testing.T) {
					t.Parallel()
					with := func() []foreground { return append(tt.fg(), commits{}) }
					s := simulation{devices: devices, psi: psi, length: length, foregrounds: with, seed: seed()}
					idle := s.run()
					s.scrub = true
					full := s.run()
					s.governed = true
					was := ""
					s.step = func(now time.Duration, d Decision) {
						if d.Yielding && was == "" {
							t.Log(now, d.Reason, d.Hold)
						}
						if was = ""; d.Yielding {
							was = d.Reason
						}
					}
					got := s.run()
					p := func(r *result, p float64, from time.Duration) float64 {
						return float64(r.percentile(p, from)) / float64(idle.percentile(p, from))
					}
					quiet := got.ownBetween(end+5*time.Second, length) / full.ownBetween(end+5*time.Second, length)
					t.Logf("idle p99 %v; full scrub p99 x%.2f; governed p50 x%.2f p99 x%.2f, once yielded p99 x%.2f; yields %d, %v; first %.0f %%, quiet after %.0f %%",
						idle.percentile(.99, 0), p(&full, .99, 0), p(&got, .5, 0), p(&got, .99, 0), p(&got, .99, begin+20*time.Second), got.yields, got.yielded,
						100*got.ownBetween(0, begin)/full.ownBetween(0, begin), 100*quiet)
					// A regular burst is felt until the hold has learnt how long to
					// wait, however long it goes on then: so it counts.
					slow := 0
					for _, l := range got.lat {
						if l.took > 2*idle.percentile(.99, 0) {
							slow++
						}
					}
					if x := p(&got, .99, 0); x > 2 && (tt.name != "bursts" || slow > 16) {
						t.Errorf("p99 is %.2f times idle, want at most 2; %d of %d were slow", x, slow, len(got.lat))
					}
					// Of large reads there are so few that which of them meet a commit
					// matters: idle is the worse of two of its p99.
					settled := begin + 20*time.Second
					p99 := max(idle.percentile(.99, 0), idle.percentile(.99, settled))
					if x := float64(got.percentile(.99, settled)) / float64(p99); x > 1.25 {
						t.Errorf("p99 once yielded is %.2f times idle, want at most 1.25", x)
					}
					// Without a cgroup of its own the waits of a scrub with cold
					// trees look like those of others.
					want := .9
					if psi != ownCgroupPSI {
						want = .85
					}
					if x := got.ownBetween(0, begin) / full.ownBetween(0, begin); x < want {
						t.Errorf("%.0f %% of full speed in the quiet before, want %.0f %%", 100*x, 100*want)
					}
					resumed := time.Duration(0)
					for _, m := range got.marks {
						if m.now > end && !m.yielding {
							resumed = m.now - end
							break
						}
					}
					if resumed == 0 || resumed > 32*time.Second {
						t.Errorf("resumed %v after the foreground's end", resumed)
					}
				})
			}
		}
	}
}

func TestIdlePoolLosesLittle(t *testing.T) {
	const length = 60 * time.Second
	// The worst: all extents of all devices turn sparse at once.
	sparse := func(now time.Duration, _ *rand.Rand) uint64 {
		if now/(10*time.Second)%2 == 1 {
			return 64 << 10
		}
		return ownRead
	}
	for _, psi := range []psiKind{ownCgroupPSI, systemPSI, noPSI} {
		for _, tt := range []struct {
			name string
			fg   foreground
			size func(time.Duration, *rand.Rand) uint64
			want float64
		}{
			{"quiet", commits{}, nil, .95},
			{"another disk is busy", otherDisk{}, nil, .90},
			{"sparse extents", commits{}, sparse, .75},
		} {
			for _, devices := range []int{1, 2, 6} {
				t.Run(fmt.Sprintf("%s/psi=%s/devices=%d", tt.name, psi, devices), func(t *testing.T) {
					t.Parallel()
					s := simulation{devices: devices, psi: psi, length: length, scrub: true, size: tt.size, seed: seed()}
					s.foregrounds = func() []foreground { return []foreground{tt.fg} }
					full := s.run()
					s.governed = true
					was := ""
					s.step = func(now time.Duration, d Decision) {
						if d.Yielding && was == "" {
							t.Log(now, d.Reason)
						}
						if was = ""; d.Yielding {
							was = d.Reason
						}
					}
					got := s.run()
					share := float64(got.scrubed) / float64(full.scrubed)
					t.Logf("%.1f %% of full speed, yields %d, %v", 100*share, got.yields, got.yielded)
					want := tt.want
					if devices > 1 {
						want = min(want, .90)
					}
					if psi != ownCgroupPSI {
						want = min(want, .85)
					}
					if share < want {
						t.Errorf("%.1f %% of full speed, want %.0f %%", 100*share, 100*want)
					}
				})
			}
		}
	}
}

// TestBeginInTreeBlocks: a scrub whose first reads are small ones takes them for
// its own, and sees others as soon as it knows what its own are like.
func TestBeginInTreeBlocks(t *testing.T) {
	const length, comes = 20 * time.Second, 10 * time.Second
	small := func(now time.Duration, _ *rand.Rand) uint64 {
		if now < 600*time.Millisecond {
			return 128 << 10
		}
		return ownRead
	}
	for _, psi := range []psiKind{ownCgroupPSI, systemPSI, noPSI} {
		for _, devices := range []int{1, 2} {
			t.Run(fmt.Sprintf("psi=%s/devices=%d", psi, devices), func(t *testing.T) {
				s := simulation{devices: devices, psi: psi, length: length, scrub: true, governed: true, size: small, seed: seed()}
				s.foregrounds = func() []foreground { return []foreground{during{randomReader{30}, comes, length}} }
				got := s.run()
				first := time.Duration(0)
				for _, m := range got.marks {
					if m.yielding {
						first = m.now
						break
					}
				}
				if first != 0 && first < 3*time.Second {
					t.Errorf("it yields to itself, after %v", first)
				}
				// Without PSI a few reads are told from its own by counting alone.
				if psi != noPSI && (first < comes || first > comes+2*time.Second) {
					t.Errorf("it yields first after %v, want %v and soon after", first, comes)
				}
			})
		}
	}
}

func TestUrgencyKeepsTheFloor(t *testing.T) {
	s := simulation{psi: systemPSI, length: 60 * time.Second, scrub: true, governed: true, urgency: 20e6}
	s.foregrounds = func() []foreground { return []foreground{randomReader{30}} }
	got := s.run()
	if rate := float64(got.scrubed) / 59.5; rate < 18e6 || rate > 30e6 {
		t.Errorf("%.1f MB/s, want 20", rate/1e6)
	}
	t.Logf("20 MB/s: urged for %s, yielded for %s", got.urged, got.yielded)
	if got.urged < 45*time.Second {
		t.Errorf("urged for %s of a minute beside a reader", got.urged)
	}
	s.urgency = math.MaxUint64
	if got = s.run(); got.yields != 0 {
		t.Error("yields with a deadline that allows none")
	}
	t.Logf("no limit: urged for %s", got.urged)
	s.foregrounds = nil
	if got = s.run(); got.urged > 3*time.Second {
		t.Errorf("urged for %s with nobody there", got.urged)
	}
}

func TestFloor(t *testing.T) {
	const full = 100e6
	for _, tt := range []struct {
		remaining uint64
		left      time.Duration
		full      uint64
		want      uint64
	}{
		{0, 0, full, 0},
		{1, 0, full, math.MaxUint64},
		{1, -time.Second, full, math.MaxUint64},
		{1e9, 100 * time.Second, full, 0},
		{5e9, 100 * time.Second, full, 0},
		{6.5e9, 100 * time.Second, full, 50e6},
		{8e9, 100 * time.Second, full, math.MaxUint64},
		{1e9, 100 * time.Second, 0, 10e6},
	} {
		got := Floor(tt.remaining, tt.left, tt.full)
		if math.Abs(float64(got)-float64(tt.want)) > 1 {
			t.Errorf("Floor(%d, %v, %d) = %d, want %d", tt.remaining, tt.left, tt.full, got, tt.want)
		}
	}
}

func TestFloorFinishesInTime(t *testing.T) {
	// Somebody reads all the time, so that the scrub has the floor only.
	const full, size, deadline = 100e6, 100e9, 3000
	done := 0.0
	for second := range deadline {
		done += min(float64(Floor(uint64(size-done), (deadline-time.Duration(second))*time.Second, full)), full)
		if done >= size-1 {
			return
		}
	}
	t.Errorf("%.1f of %.1f GB done at the deadline", done/1e9, size/1e9)
}
