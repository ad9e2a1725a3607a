//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// The scrubs that are compared.
const (
	noScrub      = "none"
	progsScrub   = "progs"
	limitedScrub = "limited"
	oursScrub    = "ours"
	oursFull     = "ours-full" // in the quiet only
)

func scrubNames() []string { return []string{noScrub, progsScrub, limitedScrub, oursScrub, oursFull} }

// limitShare is the fixed limit as a share of the rate of a scrub that nothing
// holds back.
const limitShare = 0.25

// scrubRun is a scrub of the pool that runs.
type scrubRun interface {
	// wait waits for its end. One that runs again and again has none.
	wait(ctx context.Context) error
	// stop ends it and says how it was.
	stop() (scrubReport, error)
}

// scrubReport says how a scrub was.
type scrubReport struct {
	Passes int           `json:"passes"` // that came to their end
	States []stateChange `json:"states,omitempty"`
}

// stateChange is a moment at which our scrub was seen in another state.
type stateChange struct {
	Time   time.Time `json:"time"`
	State  string    `json:"state"`
	Reason string    `json:"reason,omitempty"`
}

// startScrub starts a scrub by its name. Where again is set it begins anew
// whenever it has finished. No scrub at all is nil.
func startScrub(name string, p *benchPool, again bool, log *syncWriter) (scrubRun, error) {
	switch name {
	case progsScrub:
		return startProgs(p, again)
	case limitedScrub:
		if err := p.limitScrub(int64(limitShare * p.fullRate)); err != nil {
			return nil, err
		}
		return startProgs(p, again)
	case oursScrub, oursFull:
		return startOurs(name, p, again, log)
	}
	return nil, nil
}

// progsRun is `btrfs scrub start -B`.
type progsRun struct {
	pool  *benchPool
	ended chan struct{} // closed when nothing runs any more

	mu      sync.Mutex
	stopped bool
	passes  int
	err     error
}

func startProgs(p *benchPool, again bool) (*progsRun, error) {
	r := &progsRun{pool: p, ended: make(chan struct{})}
	first := make(chan error, 1)
	go func() {
		defer close(r.ended)
		for started := first; ; started = make(chan error, 1) {
			err := r.once(started)
			r.mu.Lock()
			if err == nil {
				r.passes++
			} else if !r.stopped {
				r.err = err
			}
			done := !again || r.stopped || err != nil
			r.mu.Unlock()
			if done {
				return
			}
		}
	}()
	return r, <-first
}

func (r *progsRun) once(started chan<- error) error {
	cmd := exec.Command("btrfs", "scrub", "start", "-B", r.pool.Mountpoint)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	ended := make(chan error, 1)
	err := startBound(cmd, nicePlain, nil, func(err error) { ended <- err })
	started <- err
	if err == nil {
		err = <-ended
	}
	if err != nil {
		return fmt.Errorf("btrfs scrub start: %w: %s", err, strings.TrimSpace(output.String()))
	}
	return nil
}

func (r *progsRun) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *progsRun) wait(ctx context.Context) error {
	select {
	case <-r.ended:
		return r.failure()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *progsRun) stop() (scrubReport, error) {
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
	var errs []error
	// More than once: it may be about to begin anew.
	for deadline := time.Now().Add(childPatience); ; {
		errs = append(errs, r.pool.cancelScrub())
		select {
		case <-r.ended:
			// Nobody else has r any more.
			return scrubReport{Passes: r.passes}, errors.Join(append(errs, r.err)...)
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return scrubReport{}, errors.Join(append(errs, errors.New("btrfs scrub start does not end"))...)
		}
	}
}
