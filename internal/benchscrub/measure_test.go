//go:build linux

package main

import (
	"math"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/scrub"
)

func TestPercentileIsAValueThatOccurred(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i)*time.Second)
	}
	for _, c := range []struct {
		values  []time.Duration
		percent float64
		want    seconds
	}{
		{hundred, 50, 50},
		{hundred, 99, 99},
		{[]time.Duration{3 * time.Second, time.Second, 2 * time.Second}, 99, 3},
		{[]time.Duration{time.Second}, 50, 1},
	} {
		if got := percentile(c.values, c.percent); got != c.want {
			t.Errorf("percentile %v of %d values is %v, want %v", c.percent, len(c.values), got, c.want)
		}
	}
}

func TestLatencyCountsFromWhenARequestShouldHaveBegun(t *testing.T) {
	requests := []request{
		{Intended: 0, Begun: 0, Done: 3 * time.Second},
		{Intended: time.Second, Begun: 3 * time.Second, Done: 4 * time.Second}, // waited for the first
	}
	if l := latencyOf(requests, 0); l.P50 != 3 || l.ServiceP50 != 1 {
		t.Errorf("latency %v and service %v, want 3 and 1 s", float64(l.P50), float64(l.ServiceP50))
	}
	if l := latencyOf(requests, time.Second); l.Requests != 1 {
		t.Errorf("%d requests from the first second on, want 1", l.Requests)
	}
}

func TestMomentOfYielding(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(seconds float64, state scrub.State) stateChange {
		return stateChange{Time: start.Add(time.Duration(seconds * float64(time.Second))), State: string(state)}
	}
	for _, c := range []struct {
		what   string
		states []stateChange
		want   time.Duration
	}{
		{"never", []stateChange{at(-5, scrub.Running)}, math.MaxInt64},
		{"twice", []stateChange{at(-5, scrub.Running), at(0.5, scrub.Yielding), at(1, scrub.Running), at(2, scrub.Yielding)}, 500 * time.Millisecond},
		{"before, and on", []stateChange{at(-5, scrub.Running), at(-1, scrub.Yielding), at(3, scrub.Running)}, 0},
		{"before, and again", []stateChange{at(-2, scrub.Yielding), at(-1, scrub.Running), at(1, scrub.Yielding)}, time.Second},
	} {
		report := scrubReport{States: c.states}
		if got := report.yieldedAt(start); got != c.want {
			t.Errorf("%s: yielded after %v, want %v", c.what, got, c.want)
		}
	}
}

func TestMedianOfTheRepeatsCounts(t *testing.T) {
	r := results{Options: options{Repeat: 3, Only: "film"}}
	for repeat, p99 := range []seconds{1.2, 1.1, 9} {
		r.Measurements = append(r.Measurements,
			measurement{Repeat: repeat, Foreground: "film", Scrub: noScrub, All: latency{P99: 1}},
			measurement{Repeat: repeat, Foreground: "film", Scrub: oursScrub, All: latency{P99: 2 * p99}, Yielded: &latency{P99: p99}})
	}
	r.judge()
	if len(r.Verdicts) != 2 || !r.Verdicts[0].Pass || r.Verdicts[1].Pass {
		t.Errorf("verdicts %+v, want a pass of 1.2 and a failure of 2.4", r.Verdicts)
	}
}
