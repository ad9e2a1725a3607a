package main

import (
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// workWatch says which long operations run on the pools of this machine. It is for
// one goroutine.
type workWatch struct {
	client *btrfs.Client
	scrubs *scrub.Runner
	now    func() time.Time
	// seen is when an operation was first seen, of those that do not say when they
	// began: a balance never does.
	seen map[workKey]time.Time
}

type workKey struct {
	pool      btrfs.UUID
	operation string
}

// work returns what runs now: scrubs, those of others too, and balances. What
// waits or is paused leaves the disks alone.
func (w *workWatch) work() []alertmanager.Work {
	mounts, _ := w.client.Mounts() // what was found is good
	var all []alertmanager.Work
	seen := make(map[workKey]time.Time)
	add := func(pool btrfs.UUID, operation string, since time.Time) {
		key := workKey{pool, operation}
		if since.IsZero() {
			if since = w.seen[key]; since.IsZero() {
				since = w.now()
			}
			seen[key] = since
		}
		all = append(all, alertmanager.Work{Pool: pool, Label: w.client.Label(pool), Operation: operation, Since: since})
	}
	done := make(map[btrfs.UUID]bool)
	for i := range mounts {
		pool := mounts[i].UUID
		if pool.IsZero() || done[pool] {
			continue
		}
		done[pool] = true
		if s, err := w.scrubs.Status(pool); err == nil && (s.State == scrub.Running || s.State == scrub.Yielding) {
			add(pool, "scrub", s.Started)
		}
		if op, err := w.client.ExclusiveOperation(pool); err == nil && op == "balance" {
			add(pool, "balance", time.Time{})
		}
	}
	w.seen = seen
	return all
}

// wakeOnEvents has the silences looked at when a scrub changes, and not only every
// few seconds.
func wakeOnEvents(done <-chan struct{}, k *control) {
	events, stop := k.jobs.Subscribe()
	defer stop()
	for {
		select {
		case <-done:
			return
		case e := <-events:
			if e.Type == "job" {
				k.silencer.Wake()
			}
		}
	}
}
