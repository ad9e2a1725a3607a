package web

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/btrfs-governor/btrfs-governor/internal/history"
)

// Spark is a line of how much could be written, and of how that goes on.
type Spark struct {
	Line     string // data of a path, in a box of sparkWidth by sparkHeight; it has holes where nothing was measured
	Forecast string // points of a polyline in that box; "" where there is none
	Now      float64
	From, To string // the days at its ends
	Most     string // what the top means
	Words    string // the same for those who do not see it
}

// The box of a spark.
const (
	sparkWidth  = 600
	sparkHeight = 100
)

// What of the history is drawn: how far back, and how many samples at most.
const (
	HistoryShown  = 90 * 24 * time.Hour
	HistoryPoints = 150
)

// coarsestStep is the most that two samples are apart with nothing missing in
// between.
const coarsestStep = HistoryShown/HistoryPoints + history.Step

// gapSteps is how many steps of the samples a line is drawn across. Beyond that it
// would claim what nobody measured.
const gapSteps = 4

// point is how much could be written at a time.
type point struct {
	at   time.Time
	free uint64
}

// gap is the longest time that a line is drawn across. The step is the usual one:
// half of the samples, or more, are no farther apart.
func gap(h []point) time.Duration {
	apart := make([]time.Duration, 0, len(h))
	for i := 1; i < len(h); i++ {
		apart = append(apart, h[i].at.Sub(h[i-1].at))
	}
	slices.Sort(apart)
	usual := apart[(len(apart)-1)/2]
	return gapSteps * min(max(usual, history.Step), coarsestStep)
}

// drawLine returns the data of a path: a part for each stretch without a gap. A
// sample by itself is a line without a length, of which the round caps are seen.
func drawLine(h []point, x func(time.Time) float64, y func(float64) float64) string {
	longest := gap(h)
	var line strings.Builder
	for begin := 0; begin < len(h); {
		end := begin + 1
		for end < len(h) && h[end].at.Sub(h[end-1].at) <= longest {
			end++
		}
		command := "M"
		for _, p := range h[begin:end] {
			fmt.Fprintf(&line, "%s%.1f,%.1f", command, x(p.at), y(float64(p.free)))
			command = "L"
		}
		if end == begin+1 {
			line.WriteString("h0")
		}
		begin = end
	}
	return line.String()
}

// newSpark draws the history. It is nil where that has no two points.
func newSpark(in *Input, now time.Time) *Spark {
	var h []point
	most := uint64(1)
	for i := range in.History {
		if free, known := in.History[i].FreeExpected.Get(); known && !in.History[i].Time.After(now) {
			h = append(h, point{in.History[i].Time, free})
			most = max(most, free)
		}
	}
	if len(h) < 2 || !h[len(h)-1].at.After(h[0].at) {
		return nil
	}
	first, last := h[0], h[len(h)-1]
	end, ahead := now, time.Duration(0)
	full := time.Time{}
	if f := in.Forecast; f != nil && f.DaysToFull.Known {
		// As far ahead as it looks back, at most.
		full = f.Time.Add(time.Duration(f.DaysToFull.Value * 24 * float64(time.Hour)))
		ahead = max(0, min(full.Sub(now), max(now.Sub(first.at), 24*time.Hour)))
		end = now.Add(ahead)
	}
	whole := end.Sub(first.at).Seconds()
	x := func(t time.Time) float64 { return sparkWidth * t.Sub(first.at).Seconds() / whole }
	y := func(free float64) float64 { return sparkHeight * (1 - free/float64(most)) }
	s := &Spark{
		Line: drawLine(h, x, y), Now: x(now), Most: size(most),
		From: first.at.In(now.Location()).Format("2 Jan"), To: end.In(now.Location()).Format("2 Jan"),
		Words: fmt.Sprintf("What could be written: %s %s, %s now.", size(first.free), newMoment(first.at, now).Words, size(last.free)),
	}
	if now.Sub(last.at) > time.Hour { // the daemon did not run, or the pool was not read
		s.Words = fmt.Sprintf("What could be written: %s %s, %s %s.", size(first.free), newMoment(first.at, now).Words, size(last.free), newMoment(last.at, now).Words)
	}
	if ahead > 0 {
		left := float64(last.free) * (1 - ahead.Seconds()/full.Sub(now).Seconds())
		s.Forecast = fmt.Sprintf("%.1f,%.1f %.1f,%.1f", x(now), y(float64(last.free)), x(end), y(left))
	}
	return s
}
