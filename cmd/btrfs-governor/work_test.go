package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-kit/log"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// The kernel does not say when a balance began. What it is asked never waits for a
// disk, as the mount table may, which is a pipe here that never answers.
func TestBalanceIsTheSameUntilItIsSeenToBeOver(t *testing.T) {
	root := t.TempDir()
	pool := btrfs.UUID{0x5f, 0x1c, 0x0d, 0xe1}
	must(t, os.Mkdir(filepath.Join(root, "self"), 0o755))
	must(t, unix.Mkfifo(filepath.Join(root, "self", "mountinfo"), 0o600))
	file := filepath.Join(root, "fs", "btrfs", pool.String(), "exclusive_operation")
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(t, os.Mkdir(filepath.Join(root, "fs", "btrfs", "features"), 0o755))
	is := func(operation string) {
		t.Helper()
		must(t, os.RemoveAll(file))
		if operation == "" { // it cannot be read
			must(t, os.Mkdir(file, 0o755))
			return
		}
		must(t, os.WriteFile(file, []byte(operation+"\n"), 0o600))
	}
	client := btrfs.NewClient(btrfs.Paths{Proc: root, Sys: root, Root: "/"})
	jobs, err := job.Open(nil, 0)
	must(t, err)
	scrubs, err := scrub.New(scrub.Config{Logger: log.NewNopLogger(), Client: client, Jobs: jobs})
	must(t, err)

	start := time.Date(2026, 3, 7, 12, 0, 0, 0, time.UTC)
	now := start
	watch := newWorkWatch(client, scrubs, func() time.Time { return now })
	for i, tt := range []struct {
		operation string
		restart   bool
		since     int // in minutes from the start; -1: nothing runs
		earlier   bool
	}{
		{operation: "balance", since: 0, earlier: true},
		{operation: "balance", since: 0, earlier: true},
		{operation: "", since: 0, earlier: true},
		{operation: "balance paused", since: -1},
		{operation: "balance", since: 0, earlier: true},
		{operation: "none", since: -1},
		{operation: "", since: -1},
		{operation: "balance", since: 7},
		{operation: "balance", since: 7},
		{operation: "", since: -1, restart: true},
		{operation: "balance", since: 10, earlier: true},
		{operation: "device replace", since: -1},
		{operation: "balance", since: 12},
	} {
		now = start.Add(time.Duration(i) * time.Minute)
		if tt.restart {
			watch = newWorkWatch(client, scrubs, func() time.Time { return now })
		}
		is(tt.operation)
		var want []alertmanager.Work
		if tt.since >= 0 {
			want = []alertmanager.Work{{Pool: pool, Operation: "balance", Since: start.Add(time.Duration(tt.since) * time.Minute), Earlier: tt.earlier}}
		}
		found := make(chan []alertmanager.Work, 1)
		go func() { found <- watch.work() }()
		var got []alertmanager.Work
		select {
		case got = <-found:
		case <-time.After(patience):
			t.Fatalf("minute %d: it waits for the mount table", i)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("minute %d, %q (-want +got):\n%s", i, tt.operation, diff)
		}
	}
}
