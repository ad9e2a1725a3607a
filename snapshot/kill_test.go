package snapshot_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
	"github.com/btrfs-governor/btrfs-governor/snapshot/retention"
)

// asDaemon makes the test binary a process that takes and prunes snapshots of a
// pool until it is killed, and says which it has.
const asDaemon = "BTRFS_GOVERNOR_SNAPSHOT_TEST_DAEMON"

type daemonConfig struct {
	State string
	Pool  btrfs.UUID
	Keep  int
	Dirty string // a file to write to meanwhile
}

func TestMain(m *testing.M) {
	if text := os.Getenv(asDaemon); text != "" {
		if err := daemon(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func daemon(text string) error {
	var c daemonConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	dir := state.NewDir(c.State)
	jobs, err := job.Open(dir, 20)
	if err != nil {
		return err
	}
	r, err := snapshot.New(snapshot.Config{
		Logger: log.NewLogfmtLogger(os.Stderr), Client: btrfs.NewClient(btrfs.DefaultPaths()), State: dir, Jobs: jobs,
	})
	if err != nil {
		return err
	}
	r.SetSettings(snapshot.Settings{Pools: []snapshot.PoolSettings{{
		Pool: c.Pool.String(), Directory: ".snapshots", Subvolumes: []string{"@", "@home"}, Retention: retention.Policy{KeepLast: c.Keep},
	}}})
	ctx := context.Background()
	go func() { _ = r.Run(ctx) }()
	dirty, err := os.Create(c.Dirty)
	if err != nil {
		return err
	}
	go func() { // others use the pool: transactions run all the time
		for i := int64(0); ; i++ {
			_, _ = dirty.WriteAt([]byte("x"), i%1000*4096)
			_ = dirty.Sync()
		}
	}()
	for begun := false; ; {
		j, err := r.Create(c.Pool, snapshot.CreateOptions{}, "test")
		if errors.Is(err, snapshot.ErrRefused) && !begun {
			time.Sleep(time.Millisecond) // it is starting
			continue
		}
		if err != nil {
			return err
		}
		if !begun {
			begun = true
			fmt.Println("begun")
		}
		if j, err = r.Wait(ctx, j.ID); err != nil {
			return err
		}
		var result snapshot.Result
		if err := json.Unmarshal(j.Result, &result); err != nil || j.State != job.Succeeded {
			return fmt.Errorf("%s: %w", j.Reason, err)
		}
		for _, made := range result.Created {
			fmt.Println("made", made.Name)
		}
	}
}

// TestKilledAtAnyPoint kills a process at random points while it takes and
// prunes snapshots.
func TestKilledAtAnyPoint(t *testing.T) {
	const kills, keep = 50, 3
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	must(t, os.Mkdir(pool.Path(".snapshots"), 0o700))
	foreign := "@.20200101T000000Z"
	must(t, pool.Snapshot("@", ".snapshots/"+foreign, true))
	c := daemonConfig{State: t.TempDir(), Pool: uuid, Keep: keep, Dirty: pool.Path("dirty")}
	config, err := json.Marshal(c)
	must(t, err)
	program, err := os.Executable()
	must(t, err)
	rng := rand.New(rand.NewPCG(5, 50))
	found := map[int]int{}
	for i := range kills {
		cmd := exec.Command(program)
		cmd.Env = append(os.Environ(), asDaemon+"="+string(config))
		var said strings.Builder
		cmd.Stderr = &said
		stdout, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewReader(stdout)
		if line, err := lines.ReadString('\n'); err != nil {
			t.Fatalf("kill %d: the daemon says %q: %v\n%s", i, line, err, said.String())
		}
		time.Sleep(time.Duration(rng.Int64N(int64(40 * time.Millisecond)))) // a random moment is what is wanted
		must(t, cmd.Process.Signal(syscall.SIGKILL))
		rest, err := io.ReadAll(lines)
		must(t, err)
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("kill %d: the daemon ended with %v\n%s", i, err, said.String())
		}
		var made []string
		for line := range strings.Lines(string(rest)) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "made "); ok && strings.HasSuffix(line, "\n") {
				made = append(made, name)
			}
		}

		// No schedule, so that nothing changes while the next one looks.
		r := start(t, c.State, settings(pool, keepLast(keep)), func(c *snapshot.Config) { c.Logger = log.NewNopLogger() })
		r.settled(uuid)
		must(t, pool.Sync())
		names, _ := r.Ours(uuid)
		there := inDirectory(t, pool)
		if !sameNames(append(names, foreign), there) {
			t.Fatalf("kill %d: the ledger has %q, there are %q\n%s", i, names, there, said.String())
		}
		for _, name := range names {
			if !readOnly(t, pool.Path(".snapshots/"+name)) {
				t.Errorf("kill %d: %s is writable", i, name)
			}
		}
		found[len(names)]++
		// What it said to have made is there, but for what newer ones pushed out.
		for n := max(len(made)-2*(keep-1), 0); n < len(made); n++ {
			if !contains(names, made[n]) {
				t.Errorf("kill %d: %s is gone, which was made as number %d of %d; there are %q", i, made[n], n+1, len(made), names)
			}
		}
		for _, j := range r.jobs.List() {
			if !j.State.Ended() {
				t.Errorf("kill %d: job %s is %s", i, j.ID, j.State)
			}
		}
		r.stop()
	}
	t.Logf("numbers of snapshots after the kills: %v", found)
	// Pruned to what the rule keeps.
	r := start(t, c.State, settings(pool, keepLast(keep)))
	r.take(uuid)
	if names, _ := r.Ours(uuid); len(names) != 2*keep || !sameNames(append(names, foreign), inDirectory(t, pool)) {
		t.Errorf("in the end there are %q", names)
	}
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return false
}

// TestHookAfterRunsWhereTheDaemonWasKilled kills a process while the hook before
// holds what the hook after has to let go.
func TestHookAfterRunsWhereTheDaemonWasKilled(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	dir := t.TempDir()
	frozen := t.TempDir() + "/frozen"
	hooks := settings(pool, func(s *snapshot.PoolSettings) {
		s.Hooks = snapshot.Hooks{Before: []string{"/bin/touch", frozen}, After: []string{"/bin/rm", "-f", frozen}}
	})
	// What a process leaves that was killed in between.
	r := start(t, dir, hooks)
	r.take(uuid)
	r.stop()
	must(t, os.WriteFile(frozen, nil, 0o600))
	names := inDirectory(t, pool)
	before, err := os.ReadFile(dir + "/snapshots-" + pool.UUID + ".jsonl")
	must(t, err)
	// Up to the line in which the job began.
	at := strings.Index(string(before), `{"made"`)
	if at < 0 {
		t.Fatalf("the ledger is %q", before)
	}
	must(t, os.WriteFile(dir+"/snapshots-"+pool.UUID+".jsonl", before[:at], 0o600))

	r = start(t, dir, hooks)
	r.settled(uuid)
	if _, err := os.Stat(frozen); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the hook after did not run: %v", err)
	}
	if got, _ := r.Ours(uuid); !sameNames(got, names) {
		t.Errorf("ours are %q, want %q", got, names)
	}
}
