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
	// seen is what the last look found of operations that do not say when they
	// began: a balance never does.
	seen map[workKey]sighting
	// pools are those that were found last.
	pools []btrfs.UUID
}

type workKey struct {
	pool      btrfs.UUID
	operation string
}

func newWorkWatch(client *btrfs.Client, scrubs *scrub.Runner, now func() time.Time) *workWatch {
	return &workWatch{client: client, scrubs: scrubs, now: now, seen: make(map[workKey]sighting)}
}

// sighting is since when an operation has been seen to run; zero of one that was
// seen not to.
type sighting struct {
	since   time.Time
	earlier bool // it ran when it was first looked at
}

// work returns what runs now: scrubs, those of others too, and balances. What
// waits or is paused leaves the disks alone. What cannot be read is as it was.
//
// No disk that hangs holds it up, and with it the silences of all pools and the stop
// of the daemon. The runner tells what it knows, and for the rest there is sysfs, where
// neither the operation nor the label waits for a lock of the filesystem
// (btrfs_exclusive_operation_show and btrfs_label_show in fs/btrfs/sysfs.c).
func (w *workWatch) work() []alertmanager.Work {
	if uuids, err := w.client.UUIDs(); err == nil {
		w.pools = uuids
	}
	var all []alertmanager.Work
	for _, pool := range w.pools {
		scrubs, balances := workKey{pool, "scrub"}, workKey{pool, "balance"}
		if s, err := w.scrubs.Status(pool); err == nil && (s.State == scrub.Running || s.State == scrub.Yielding) {
			all = append(all, w.runs(scrubs, s.Started))
		} else {
			w.seen[scrubs] = sighting{}
		}
		op, err := w.client.ExclusiveOperation(pool)
		switch {
		case err != nil && !w.seen[balances].since.IsZero(), op == "balance":
			all = append(all, w.runs(balances, time.Time{}))
		case err != nil, op == "balance paused": // the same one may go on
		default:
			w.seen[balances] = sighting{}
		}
	}
	return all
}

// runs returns the work that an operation is which runs; since may be zero.
func (w *workWatch) runs(key workKey, since time.Time) alertmanager.Work {
	work := alertmanager.Work{Pool: key.pool, Label: w.client.Label(key.pool), Operation: key.operation, Since: since}
	if since.IsZero() {
		s, known := w.seen[key]
		if s.since.IsZero() {
			s = sighting{since: w.now(), earlier: !known}
			w.seen[key] = s
		}
		work.Since, work.Earlier = s.since, s.earlier
	}
	return work
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
