//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// statusInterval is how often our scrub is asked how it is: a moment of giving
// way is seen that much too late at most.
const statusInterval = 20 * time.Millisecond

// oursConfig is what the child that scrubs is told.
type oursConfig struct {
	UUID  string
	Mode  scrub.Mode
	Dir   string // for its state
	Again bool
}

// beOurs is the child's main: it scrubs, and answers with each change of its
// state, until it has finished or its standard input ends.
func beOurs(config string) error {
	var c oursConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	uuid, err := btrfs.ParseUUID(c.UUID)
	if err != nil {
		return err
	}
	statusDir := filepath.Join(c.Dir, "progs")
	if err := os.MkdirAll(statusDir, 0o700); err != nil {
		return err
	}
	dir := state.NewDir(c.Dir)
	jobs, err := job.Open(dir, 100)
	if err != nil {
		return err
	}
	runner, err := scrub.New(scrub.Config{
		Logger: log.NewLogfmtLogger(os.Stderr), Client: btrfs.NewClient(btrfs.DefaultPaths()), Paths: btrfs.DefaultPaths(),
		State: dir, Jobs: jobs, StatusDir: statusDir,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- runner.Run(ctx) }()
	told := make(chan struct{})
	go func() {
		defer close(told)
		_, _ = io.Copy(io.Discard, os.Stdin) // its end is what counts
	}()
	err = c.scrub(runner, uuid, told)
	cancel()
	return errors.Join(err, <-ended)
}

func (c *oursConfig) scrub(runner *scrub.Runner, uuid btrfs.UUID, told <-chan struct{}) error {
	if err := c.start(runner, uuid); err != nil {
		return err
	}
	answers := json.NewEncoder(os.Stdout)
	ticker := time.NewTicker(statusInterval)
	defer ticker.Stop()
	var last stateChange
	for cancelled := false; ; {
		status, err := runner.Status(uuid)
		if err != nil {
			return err
		}
		now := stateChange{time.Now(), string(status.State), status.Reason}
		if now.State != last.State {
			last = now
			if err := answers.Encode(now); err != nil {
				return err
			}
		}
		switch {
		case status.State.Active():
		case status.State == scrub.Finished && c.Again && !cancelled:
			if err := c.start(runner, uuid); err != nil {
				return err
			}
		case status.State == scrub.Finished, status.State == scrub.Cancelled && cancelled:
			return nil
		default:
			return fmt.Errorf("the scrub is %s: %s", status.State, status.Reason)
		}
		select {
		case <-ticker.C:
		case <-told:
			told, cancelled = nil, true
			if _, err := runner.Cancel(uuid); err != nil && !errors.Is(err, scrub.ErrNotRunning) {
				return err
			}
		}
	}
}

// start starts a scrub, as soon as the runner runs.
func (c *oursConfig) start(runner *scrub.Runner, uuid btrfs.UUID) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		_, err := runner.Start(uuid, scrub.Options{Mode: c.Mode}, "benchscrub")
		refused := errors.Is(err, scrub.ErrRefused) || errors.Is(err, scrub.ErrRunning)
		if !refused || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// oursRun is a scrub of ours in a child.
type oursRun struct {
	child *child
	read  chan struct{} // closed when all its answers are read

	mu     sync.Mutex
	report scrubReport
}

func startOurs(name string, p *benchPool, again bool, log *syncWriter) (*oursRun, error) {
	mode := scrub.Auto
	if name == oursFull {
		mode = scrub.Full
	}
	dir, err := os.MkdirTemp(p.rig.Dir(), "ours")
	if err != nil {
		return nil, err
	}
	process, err := startChild(roleOurs, nicePlain, oursConfig{p.UUID, mode, dir, again}, log)
	if err != nil {
		return nil, err
	}
	r := &oursRun{child: process, read: make(chan struct{})}
	first := make(chan error, 1)
	go func() {
		defer close(r.read)
		for started := first; ; started = nil {
			var change stateChange
			err := process.answer(&change)
			if started != nil {
				started <- err
			}
			if err != nil {
				return
			}
			fmt.Fprintf(log, "%s %s: %s\n", change.Time.Format("15:04:05.000"), change.State, change.Reason)
			r.mu.Lock()
			r.report.States = append(r.report.States, change)
			if change.State == string(scrub.Finished) {
				r.report.Passes++
			}
			r.mu.Unlock()
		}
	}()
	if err := <-first; err != nil {
		process.kill()
		return nil, err
	}
	return r, nil
}

func (r *oursRun) wait(ctx context.Context) error {
	select {
	case <-r.child.exited:
		return r.child.stop()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *oursRun) stop() (scrubReport, error) {
	err := r.child.stop()
	<-r.read
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.report, err
}
