package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

func TestSnapshotCommandsSendTheRightRequests(t *testing.T) {
	ended := func(r snapshot.Result) fakeAnswer {
		return fakeAnswer{200, map[string]any{"id": "snapshot-1", "pool": testPool.String(), "state": "succeeded", "result": r}}
	}
	plan := fakeAnswer{200, snapshot.Plan{Pool: testPool, Would: []string{"take a snapshot"}, Deleted: []snapshot.Deleted{{Name: "old", Reason: "no rule"}}}}
	home, size := "@home", uint64(5<<20)
	list := snapshot.List{Pool: testPool, Cleaning: 2, Snapshots: []snapshot.Snapshot{
		{Name: "@home.1", Subvolume: &home, Path: ".snapshots/@home.1", Created: time.Unix(1e9, 0), Ours: true, Keep: []string{"last", "daily"}},
		{Name: "x\x1b[31m", Path: "x\x1b[31m", Created: time.Unix(1e9, 0)},
		{Name: "@home.2", Subvolume: &home, Ours: true, Protected: "it was renamed"},
		{Name: "@home.3", Subvolume: &home, Ours: true, Prune: "no rule keeps it", Exclusive: &size},
	}}
	sized := list
	sized.Sizes = &snapshot.SizesInfo{Method: "extents", Seconds: 1.5, Lookups: 7}
	for _, tt := range []struct {
		args   string
		answer fakeAnswer
		want   string
		prints []string
	}{
		{
			"create attic", ended(snapshot.Result{Created: []snapshot.Created{{Name: "a", Path: "/mnt/a", Nested: []string{"var"}}, {Name: "b", PoolPath: ".snapshots/b"}}}),
			"POST /api/v1/pools/attic/snapshots?wait=true", []string{"/mnt/a\n  without the subvolume var in it\n", "/.snapshots/b (no mount shows it)"},
		},
		{"create --pool attic --subvolume / --pin", ended(snapshot.Result{}), "POST /api/v1/pools/attic/snapshots?pin=true&subvolume=%2F&wait=true", []string{"Nothing to do."}},
		{"create attic --dry-run", plan, "POST /api/v1/pools/attic/snapshots?dry_run=true", []string{"take a snapshot", "- old (no rule)"}},
		{"prune attic", ended(snapshot.Result{Deleted: []snapshot.Deleted{{Name: "old", Reason: "no rule"}}, Kept: []snapshot.Kept{{Name: "k", Reason: "it is mounted"}}}), "POST /api/v1/pools/attic/snapshots/prune?wait=true", []string{"deleted old (no rule)", "left k, which no rule keeps: it is mounted"}},
		{"prune attic --output json", ended(snapshot.Result{}), "POST /api/v1/pools/attic/snapshots/prune?wait=true", []string{`"state":"succeeded"`}},
		{"delete a/../b attic", ended(snapshot.Result{}), "DELETE /api/v1/pools/attic/snapshots/a%2F..%2Fb?wait=true", nil},
		{"delete @home.1 @attic", ended(snapshot.Result{}), "DELETE /api/v1/pools/@attic/snapshots/@home.1?wait=true", nil},
		{"create attic --subvolume @home", ended(snapshot.Result{}), "POST /api/v1/pools/attic/snapshots?subvolume=%40home&wait=true", nil},
		{"delete a --pool attic --dry-run", plan, "DELETE /api/v1/pools/attic/snapshots/a?dry_run=true", nil},
		{"list attic", fakeAnswer{200, list}, "GET /api/v1/pools/attic/snapshots", []string{"@home.1  /@home", "last, daily", "protected: it was renamed", "goes with the next prune: no rule keeps it", "Others made 1 more", "giving back the space of 2"}},
		{"list attic --all --sizes", fakeAnswer{200, sized}, "GET /api/v1/pools/attic/snapshots?sizes=true", []string{`/x\x1b[31m`, "(gone)", "5.0 MiB", "7 lookups"}},
		{"plan attic --days 30", fakeAnswer{200, snapshot.Forecast{
			Events: []snapshot.ForecastEvent{{Time: time.Unix(1e9, 0), Created: []string{"new"}, Deleted: []snapshot.Deleted{{Name: "old", Reason: "no rule"}}}}, Left: []string{"new"}, Notes: []string{"A note"},
		}}, "GET /api/v1/pools/attic/snapshots/plan?days=30", []string{"+ new", "- old (no rule)", "there are 1 snapshots", "A note."}},
	} {
		d := startFakeDaemon(t, tt.answer)
		status, stdout, stderr := runCommandLine(append(append([]string{"snapshot"}, strings.Fields(tt.args)...), "--api.socket="+d.socket)...)
		if got := strings.Join(d.requests, "|"); got != tt.want || status != 0 {
			t.Errorf("%s: sent %q, want %q; exit status %d: %s", tt.args, got, tt.want, status, stderr)
		}
		for _, want := range tt.prints {
			if !strings.Contains(stdout, want) {
				t.Errorf("%s: printed\n%s\nwithout %q", tt.args, stdout, want)
			}
		}
		if strings.Contains(stdout, "\x1b") {
			t.Errorf("%s: printed what commands a terminal: %q", tt.args, stdout)
		}
	}
}

func TestSnapshotErrorsAreOnes(t *testing.T) {
	d := startFakeDaemon(t, fakeAnswer{409, map[string]any{"detail": "The directory is a file.", "job": map[string]string{"id": "snapshot-1"}}})
	status, stdout, stderr := runCommandLine("snapshot", "create", "attic", "--api.socket="+d.socket)
	if status != 1 || stdout != "" || !strings.Contains(stderr, "The directory is a file (job snapshot-1)") {
		t.Errorf("exit status %d, %q, %q", status, stdout, stderr)
	}
	status, _, stderr = runCommandLine("snapshot", "create", "attic", "--api.socket="+filepath.Join(t.TempDir(), "none"))
	if status != 1 || !strings.Contains(stderr, "the daemon does not run") {
		t.Errorf("without a daemon: exit status %d, %q", status, stderr)
	}
}

// TestSnapshotsOfADaemon goes all the way: configuration, reload, command line,
// metrics, and a backup script with curl's way of asking.
func TestSnapshotsOfADaemon(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newSmallPool(t, rig, "attic")
	must(t, pool.NewSubvolume("@home"))
	must(t, os.WriteFile(pool.Path("@home/letter"), []byte("Dear"), 0o600))
	dir := t.TempDir()
	config, socket := filepath.Join(dir, "config.yml"), filepath.Join(dir, "api.sock")
	must(t, os.WriteFile(config, nil, 0o600))
	p := startServe(t, 1, []string{
		"--web.listen-address=127.0.0.1:0", "--config.file=" + config, "--state.dir=" + filepath.Join(dir, "state"), "--api.socket=" + socket,
	})
	command := func(want int, args ...string) string {
		t.Helper()
		status, stdout, stderr := runCommandLine(append(append([]string{"snapshot"}, args...), "--api.socket="+socket, "--pool="+pool.UUID)...)
		if status != want {
			t.Fatalf("snapshot %s: exit status %d, want %d\n%s%s", strings.Join(args, " "), status, want, stdout, stderr)
		}
		return stdout + stderr
	}
	eventually(t, "the socket is there", func() bool { _, err := os.Stat(socket); return err == nil })
	if said := command(1, "create"); !strings.Contains(said, "names no subvolumes") {
		t.Errorf("without a configuration: %s", said)
	}
	first := strings.TrimSpace(command(0, "create", "--subvolume", "@home"))
	if data, err := os.ReadFile(filepath.Join(first, "letter")); string(data) != "Dear" {
		t.Errorf("%s/letter: %q, %v", first, data, err)
	}
	if said := command(1, "prune"); !strings.Contains(said, "no retention") {
		t.Errorf("prune without a configuration: %s", said)
	}

	must(t, os.WriteFile(config, []byte("snapshots:\n  pools:\n    - pool: attic\n      subvolumes: [\"@home\"]\n      retention: {keep_last: 2}\n"), 0o600))
	if status, body := p.do("POST", "/-/reload"); status != 200 {
		t.Fatalf("reload: %d %s", status, body)
	}
	for range 3 {
		command(0, "create")
	}
	// What no rule keeps is pruned after each.
	eventually(t, "two are left, and a header", func() bool {
		said := command(0, "list")
		return strings.Count(said, "\n") == 3 && strings.Contains(said, "last")
	})
	eventually(t, "the first one is pruned", func() bool { _, err := os.Stat(first); return os.IsNotExist(err) })
	for name, want := range map[string]string{
		"btrfs_snapshot_count": "2", "btrfs_snapshot_created_total": "4", "btrfs_snapshot_pruned_total": "2", "btrfs_snapshot_failures_total": "0",
	} {
		name += `{subvolume="/@home",uuid="` + pool.UUID + `"}`
		eventually(t, name+" is "+want, func() bool { return p.metric(name) == want })
	}

	client := throughSocket(t, socket)
	status, body, err := request(client, "POST", "http://socket/api/v1/pools/attic/snapshots?wait=true")
	if err != nil || status != 200 || !strings.Contains(body, `"path":"`+pool.Path(".snapshots/@home.")) {
		t.Errorf("before a backup: %d %s %v", status, body, err)
	}
	if status, body := p.do("POST", "/api/v1/pools/attic/snapshots"); status != 401 {
		t.Errorf("over TCP without the token: %d %s", status, body)
	}
	name := filepath.Base(strings.TrimSpace(command(0, "create", "--pin")))
	if said := command(0, "delete", name); !strings.Contains(said, "deleted "+name) {
		t.Errorf("delete: %s", said)
	}
	if said := command(1, "delete", name); !strings.Contains(said, "no such snapshot") {
		t.Errorf("delete again: %s", said)
	}
	if said := command(1, "plan"); !strings.Contains(said, "no schedule") {
		t.Errorf("plan: %s", said)
	}
}

// TestLowSpacePrunesNoMoreThanItNeeds fills a real pool with snapshots that hold
// 60 MiB each: as many go as give back what is wanted.
func TestLowSpacePrunesNoMoreThanItNeeds(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newSmallPool(t, rig, "attic")
	must(t, pool.NewSubvolume("@home"))
	dir := t.TempDir()
	config, socket := filepath.Join(dir, "config.yml"), filepath.Join(dir, "api.sock")
	configure := func(minFree string) {
		t.Helper()
		must(t, os.WriteFile(config, []byte("snapshots:\n  pools:\n    - pool: attic\n      subvolumes: [\"@home\"]\n"+minFree), 0o600))
	}
	configure("")
	p := startServe(t, 1, []string{
		"--web.listen-address=127.0.0.1:0", "--config.file=" + config, "--state.dir=" + filepath.Join(dir, "state"), "--api.socket=" + socket,
	})
	eventually(t, "the socket is there", func() bool { _, err := os.Stat(socket); return err == nil })
	command := func(args ...string) string {
		t.Helper()
		status, stdout, stderr := runCommandLine(append(append([]string{"snapshot"}, args...), "--api.socket="+socket, "--pool="+pool.UUID)...)
		if status != 0 {
			t.Fatalf("snapshot %s: exit status %d\n%s%s", strings.Join(args, " "), status, stdout, stderr)
		}
		return stdout
	}
	const each = 60 * mib
	random := newRandom()
	var made []string
	for range 5 {
		must(t, pool.WriteFile("@home/film", each, random))
		must(t, pool.Sync())
		made = append(made, strings.TrimSpace(command("create")))
		must(t, os.Remove(pool.Path("@home/film")))
		must(t, pool.Sync())
	}
	free := func() float64 { return look(t, p, pool.UUID)["btrfs_pool_free_bytes"] }
	before := free()
	// Two of them are 120 MiB.
	want := before + float64(100*mib)
	configure(fmt.Sprintf("      min_free: %.0f\n", want))
	if status, body := p.do("POST", "/-/reload"); status != 200 {
		t.Fatalf("reload: %d %s", status, body)
	}
	said := command("prune")
	for i, path := range made {
		if _, err := os.Stat(path); os.IsNotExist(err) != (i < 2) {
			t.Errorf("snapshot %d of %d, the oldest first: %v", i+1, len(made), err)
		}
	}
	if after := free(); after < want {
		t.Errorf("%.0f bytes are free, before it were %.0f, want %.0f", after, before, want)
	}
	if strings.Count(said, "less than min_free") != 2 {
		t.Errorf("it says\n%s", said)
	}
}
