package web

import (
	"fmt"
	"strings"
	"time"
)

// Spark is a line of how much could be written, and of how that goes on.
type Spark struct {
	Line     string // points of a polyline, in a box of sparkWidth by sparkHeight
	Forecast string // likewise; "" where there is none
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

// newSpark draws the history. It is nil where that has no two points.
func newSpark(in *Input, now time.Time) *Spark {
	type point struct {
		at   time.Time
		free uint64
	}
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
	var line strings.Builder
	for i, p := range h {
		if i > 0 {
			line.WriteByte(' ')
		}
		fmt.Fprintf(&line, "%.1f,%.1f", x(p.at), y(float64(p.free)))
	}
	s := &Spark{
		Line: line.String(), Now: x(now), Most: size(most),
		From: first.at.UTC().Format("2 Jan"), To: end.UTC().Format("2 Jan"),
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
