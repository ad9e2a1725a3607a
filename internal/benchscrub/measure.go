//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/btrfs-governor/btrfs-governor/scrub"
)

const (
	// lead is how long a scrub runs before the foreground begins: it is to be
	// at full speed by then.
	lead = 5 * time.Second

	// yieldBy is when a scrub is to have given way at the latest.
	yieldBy = 2 * time.Second
)

// measurement is a foreground beside a scrub.
type measurement struct {
	Repeat     int     `json:"repeat"`
	Foreground string  `json:"foreground"`
	Scrub      string  `json:"scrub"`
	All        latency `json:"all"`
	// Streams are those of the foreground, where it has several.
	Streams map[string]latency `json:"streams,omitempty"`
	// Yielded is the part from YieldedAfter on, for a scrub that gives way.
	Yielded      *latency `json:"yielded,omitempty"`
	YieldedAfter seconds  `json:"yielded_after_seconds,omitempty"`
	// ForegroundRate is what the foreground got, in bytes per second.
	ForegroundRate float64 `json:"foreground_bytes_per_second"`
	// ScrubRate is what the scrub read of each disk meanwhile, in bytes per
	// second.
	ScrubRate float64      `json:"scrub_bytes_per_second"`
	Report    *scrubReport `json:"report,omitempty"`
}

type seconds float64

// latency is how long requests took.
type latency struct {
	Requests int `json:"requests"`
	// From when a request should have begun.
	P50 seconds `json:"p50_seconds"`
	P99 seconds `json:"p99_seconds"`
	// From when it did.
	ServiceP50 seconds `json:"service_p50_seconds"`
	ServiceP99 seconds `json:"service_p99_seconds"`
}

// quietRun is a scrub without a foreground, from its start to its end.
type quietRun struct {
	Repeat int     `json:"repeat"`
	Scrub  string  `json:"scrub"`
	Took   seconds `json:"took_seconds"`
	Rate   float64 `json:"bytes_per_second"` // of each disk
}

func measureAll(ctx context.Context, o options, r *results, progress io.Writer) (err error) {
	if err := favour(niceDisk); err != nil {
		return err
	}
	fmt.Fprintf(progress, "Making a RAID1 of two emulated hard disks with %d MiB of data.\n", o.DataMiB)
	pool, err := newBenchPool(int64(o.DataMiB)<<20, progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.close()) }()
	log := &syncWriter{to: io.Discard}
	if o.verbose {
		log.to = progress
	}
	if err := calibrate(ctx, pool); err != nil {
		return fmt.Errorf("measure the full rate: %w", err)
	}
	r.FullRate = pool.fullRate
	fmt.Fprintf(progress, "btrfs scrub start reads %.1f MB/s of each disk.\n", pool.fullRate/1e6)
	for repeat := range o.Repeat {
		if chosen(o.Only, partIdle) {
			for _, name := range []string{progsScrub, oursScrub, oursFull} {
				if !chosen(o.Scrubs, name) {
					continue
				}
				q, err := measureQuiet(ctx, pool, name, log)
				if err != nil {
					return fmt.Errorf("%s, in the quiet: %w", name, err)
				}
				q.Repeat = repeat
				r.Quiet = append(r.Quiet, *q)
				fmt.Fprintf(progress, "%d/%d %-7s %-9s %.2f s, %.1f MB/s of each disk\n", repeat+1, o.Repeat, partIdle, name, q.Took, q.Rate/1e6)
			}
		}
		for _, f := range foregrounds() {
			if !chosen(o.Only, f.Name) {
				continue
			}
			for _, name := range []string{noScrub, progsScrub, limitedScrub, oursScrub} {
				if !chosen(o.Scrubs, name) {
					continue
				}
				length := time.Duration(o.Seconds*f.Length) * time.Second
				m, err := measure(ctx, pool, f, name, length, uint64(repeat), log)
				if err != nil {
					return fmt.Errorf("%s beside %s: %w", f.Name, name, err)
				}
				m.Repeat = repeat
				r.Measurements = append(r.Measurements, *m)
				fmt.Fprintf(progress, "%d/%d %-7s %-9s p50 %s, p99 %s, %s\n", repeat+1, o.Repeat, f.Name, name, m.All.P50, m.All.P99, yieldedText(m))
			}
		}
	}
	return nil
}

// calibrate measures the rate that the fixed limit is a share of.
func calibrate(ctx context.Context, p *benchPool) error {
	if err := p.settle(ctx, false); err != nil {
		return err
	}
	run, err := startProgs(p, true)
	if err != nil {
		return err
	}
	err = pause(ctx, time.Second)
	before, start := p.bytesRead(), time.Now()
	err = errors.Join(err, pause(ctx, 5*time.Second))
	p.fullRate = float64(p.bytesRead()-before) / 2 / time.Since(start).Seconds()
	_, stopErr := run.stop()
	return errors.Join(err, stopErr)
}

func yieldedText(m *measurement) string {
	text := fmt.Sprintf("scrub %.1f MB/s of each disk", m.ScrubRate/1e6)
	if m.Yielded != nil {
		text += fmt.Sprintf("; p99 %s from %.2f s on", m.Yielded.P99, m.YieldedAfter)
	}
	return text
}

func measureQuiet(ctx context.Context, p *benchPool, name string, log *syncWriter) (*quietRun, error) {
	if err := p.settle(ctx, false); err != nil {
		return nil, err
	}
	before, start := p.bytesRead(), time.Now()
	run, err := startScrub(name, p, false, log)
	if err != nil {
		return nil, err
	}
	err = run.wait(ctx)
	took := time.Since(start)
	_, stopErr := run.stop()
	if err := errors.Join(err, stopErr); err != nil {
		return nil, err
	}
	read := p.bytesRead() - before
	return &quietRun{Scrub: name, Took: seconds(took.Seconds()), Rate: float64(read) / 2 / took.Seconds()}, nil
}

func measure(ctx context.Context, p *benchPool, f foreground, name string, length time.Duration, seed uint64, log *syncWriter) (m *measurement, err error) {
	if err := p.settle(ctx, true); err != nil {
		return nil, err
	}
	foreground, err := startForeground(foregroundConfig{
		Foreground: f, Length: length, Seed: seed,
		ReadFile: p.Path(readFileName), WriteFile: p.Path(writeName),
	})
	if err != nil {
		return nil, err
	}
	defer foreground.kill()
	run, err := startScrub(name, p, true, log)
	if err != nil {
		return nil, err
	}
	m = &measurement{Foreground: f.Name, Scrub: name}
	var found *foregroundReport
	var read int64
	var took time.Duration
	if err = pause(ctx, lead); err == nil {
		before, start := p.bytesRead(), time.Now()
		fmt.Fprintf(log, "%s foreground %s begins\n", start.Format("15:04:05.000"), f.Name)
		found, err = foreground.run(ctx)
		read, took = p.bytesRead()-before, time.Since(start)
	}
	if run != nil {
		report, stopErr := run.stop()
		m.Report, err = &report, errors.Join(err, stopErr)
	}
	if err != nil {
		return nil, err
	}

	m.All = latencyOf(found.Requests, 0)
	if len(f.Streams) > 1 {
		m.Streams = make(map[string]latency)
	}
	var readBytes, bytes int
	for i, s := range f.Streams {
		var requests []request
		for _, r := range found.Requests {
			if r.Stream != i {
				continue
			}
			requests = append(requests, r)
			bytes += r.Bytes
			if s.Access != sequentialWrites {
				readBytes += r.Bytes
			}
		}
		if m.Streams != nil {
			m.Streams[s.Name] = latencyOf(requests, 0)
		}
	}
	m.ForegroundRate = float64(bytes) / took.Seconds()
	m.ScrubRate = max(float64(read-int64(readBytes)), 0) / 2 / took.Seconds()
	if name == oursScrub {
		after := min(m.Report.yieldedAt(found.Started), yieldBy)
		yielded := latencyOf(found.Requests, after)
		m.Yielded, m.YieldedAfter = &yielded, seconds(after.Seconds())
	}
	return m, nil
}

// yieldedAt returns how long after a moment the scrub first was in the state of
// giving way: 0 where it was already. For one that was not it is forever.
func (r *scrubReport) yieldedAt(start time.Time) time.Duration {
	first := time.Duration(math.MaxInt64)
	for _, change := range r.States {
		at := change.Time.Sub(start)
		switch yields := change.State == string(scrub.Yielding); {
		case at <= 0 && yields:
			first = 0
		case at <= 0: // it did and no longer does
			first = math.MaxInt64
		case yields:
			first = min(first, at)
		}
	}
	return first
}

// latencyOf returns the latency of the requests that should have begun at from
// or later.
func latencyOf(requests []request, from time.Duration) latency {
	var latencies, services []time.Duration
	for _, r := range requests {
		if r.Intended >= from {
			latencies = append(latencies, r.Done-r.Intended)
			services = append(services, r.Done-r.Begun)
		}
	}
	return latency{
		Requests: len(latencies),
		P50:      percentile(latencies, 50), P99: percentile(latencies, 99),
		ServiceP50: percentile(services, 50), ServiceP99: percentile(services, 99),
	}
}

// percentile returns the least value that a share of the values do not exceed:
// of few values the 99th percentile is the greatest. It sorts the values.
func percentile(values []time.Duration, percent float64) seconds {
	if len(values) == 0 {
		return seconds(math.NaN())
	}
	slices.Sort(values)
	i := int(math.Ceil(percent/100*float64(len(values)))) - 1
	return seconds(values[max(i, 0)].Seconds())
}

// syncWriter is a writer for several goroutines.
type syncWriter struct {
	mu sync.Mutex
	to io.Writer
}

func (w *syncWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(b)
}
