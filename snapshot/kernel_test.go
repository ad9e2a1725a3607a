package snapshot_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
	"github.com/btrfs-governor/btrfs-governor/snapshot/retention"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30

	patience = 60 * time.Second
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// running is a runner that runs.
type running struct {
	*snapshot.Runner
	t    testing.TB
	jobs *job.Store
	stop func()
}

// start starts a runner on a state directory, which ends with the test.
func start(t testing.TB, dir string, s snapshot.Settings, change ...func(*snapshot.Config)) *running {
	t.Helper()
	d := state.NewDir(dir)
	jobs, err := job.Open(d, 1000)
	must(t, err)
	c := snapshot.Config{Logger: log.NewLogfmtLogger(testLog{t}), Client: btrfs.NewClient(btrfs.DefaultPaths()), State: d, Jobs: jobs}
	for _, f := range change {
		f(&c)
	}
	r, err := snapshot.New(c)
	must(t, err)
	r.SetSettings(s)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = r.Run(ctx)
	}()
	stop := func() {
		cancel()
		<-ended
	}
	t.Cleanup(stop)
	return &running{r, t, jobs, stop}
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// settled waits until the runner has looked at a pool.
func (r *running) settled(uuid btrfs.UUID) {
	r.t.Helper()
	eventually(r.t, "the pool is looked at", func() bool { return r.Settled(uuid) })
}

// end waits for a job, which is asked for until the runner takes it.
func (r *running) end(ask func() (job.Job, error)) (job.Job, snapshot.Result) {
	r.t.Helper()
	var j job.Job
	eventually(r.t, "the job begins", func() bool {
		var err error
		j, err = ask()
		if err != nil && !errors.Is(err, snapshot.ErrRefused) {
			r.t.Fatal(err)
		}
		return err == nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	j, err := r.Wait(ctx, j.ID)
	must(r.t, err)
	var result snapshot.Result
	must(r.t, json.Unmarshal(j.Result, &result))
	return j, result
}

func (r *running) create(uuid btrfs.UUID, o snapshot.CreateOptions) (job.Job, snapshot.Result) {
	r.t.Helper()
	return r.end(func() (job.Job, error) { return r.Create(uuid, o, "test") })
}

// take takes snapshots, which must succeed, and waits for the prune after it,
// whose result it adds.
func (r *running) take(uuid btrfs.UUID) snapshot.Result {
	r.t.Helper()
	j, result := r.create(uuid, snapshot.CreateOptions{})
	if j.State != job.Succeeded {
		r.t.Fatalf("the job %s: %s", j.State, j.Reason)
	}
	after := r.pruned(uuid, j.ID)
	result.Deleted, result.Kept = after.Deleted, after.Kept
	return result
}

// pruned returns the result of the prune after a job, which has none where there
// was nothing to prune.
func (r *running) pruned(uuid btrfs.UUID, id string) (result snapshot.Result) {
	r.t.Helper()
	eventually(r.t, "the prune after a job ends", func() bool {
		for _, j := range r.jobs.List() {
			if j.Requester != "after "+id {
				continue
			}
			if j.State == job.Succeeded {
				must(r.t, json.Unmarshal(j.Result, &result))
			}
			return j.State.Ended()
		}
		return r.Idle(uuid) // it is queued by the worker before that is done with the job
	})
	return result
}

func (r *running) prune(uuid btrfs.UUID) snapshot.Result {
	r.t.Helper()
	j, result := r.end(func() (job.Job, error) { return r.Prune(uuid, "test") })
	if j.State != job.Succeeded {
		r.t.Fatalf("the job %s: %s", j.State, j.Reason)
	}
	return result
}

// newPool makes a pool with the subvolumes @ and @home, each with a file.
func newPool(t testing.TB, rig *btrfstest.Rig, options btrfstest.PoolOptions) (*btrfstest.Pool, btrfs.UUID) {
	t.Helper()
	if len(options.Sizes) == 0 {
		options.Sizes = []int64{gib}
	}
	pool, err := rig.NewPool(options)
	must(t, err)
	for i, name := range []string{"@", "@home"} {
		must(t, pool.NewSubvolume(name))
		must(t, pool.WriteFile(name+"/file", mib, rand.New(rand.NewPCG(1, uint64(i)))))
	}
	must(t, pool.Sync())
	return pool, uuidOf(t, pool)
}

func uuidOf(t testing.TB, p *btrfstest.Pool) btrfs.UUID {
	t.Helper()
	u, err := btrfs.ParseUUID(p.UUID)
	must(t, err)
	return u
}

// settings are those of one pool with its two subvolumes.
func settings(p *btrfstest.Pool, change ...func(*snapshot.PoolSettings)) snapshot.Settings {
	s := snapshot.PoolSettings{Pool: p.UUID, Directory: ".snapshots", Subvolumes: []string{"@", "@home"}}
	for _, f := range change {
		f(&s)
	}
	return snapshot.Settings{Pools: []snapshot.PoolSettings{s}, Location: time.UTC}
}

func keepLast(n int) func(*snapshot.PoolSettings) {
	return func(s *snapshot.PoolSettings) { s.Retention = retention.Policy{KeepLast: n} }
}

// inDirectory returns the names of what is in the directory for snapshots.
func inDirectory(t testing.TB, p *btrfstest.Pool) []string {
	t.Helper()
	entries, err := os.ReadDir(p.Path(".snapshots"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func progs(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("btrfs", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("btrfs %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func readOnly(t testing.TB, path string) bool {
	t.Helper()
	return strings.Contains(progs(t, "property", "get", path, "ro"), "ro=true")
}

func TestSnapshotsAreTakenAndListed(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	r := start(t, t.TempDir(), settings(pool))
	result := r.take(uuid)
	if len(result.Created) != 2 || result.Created[0].Subvolume != "@" || result.Created[1].Subvolume != "@home" {
		t.Fatalf("created %+v", result.Created)
	}
	for _, c := range result.Created {
		if want := pool.Path(".snapshots/" + c.Name); c.Path != want {
			t.Errorf("its path is %q, want %q", c.Path, want)
		}
		if !readOnly(t, c.Path) {
			t.Errorf("%s is writable", c.Path)
		}
		data, err := os.ReadFile(c.Path + "/file")
		if err != nil || int64(len(data)) != mib {
			t.Errorf("%d bytes in the snapshot, %v", len(data), err)
		}
	}
	if st, err := os.Stat(pool.Path(".snapshots")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the directory is %v, %v", st, err)
	}
	// Others' snapshots are listed too, by what they are and not by their names.
	must(t, pool.Snapshot("@home", "@/copy", false))
	must(t, os.Mkdir(pool.Path(".snapshots/@.20200101T000000Z"), 0o755))
	list, err := r.List(context.Background(), uuid, false)
	must(t, err)
	var got []string
	for _, s := range list.Snapshots {
		got = append(got, fmt.Sprintf("%s of %s, ours %t, read-only %t, %v", s.Path, *s.Subvolume, s.Ours, s.ReadOnly, s.Keep))
	}
	want := []string{
		".snapshots/" + result.Created[0].Name + " of @, ours true, read-only true, [all]",
		".snapshots/" + result.Created[1].Name + " of @home, ours true, read-only true, [all]",
		"@/copy of @home, ours false, read-only false, []",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the list is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// Another process knows them too.
	r.stop()
	r = start(t, t.TempDir(), settings(pool))
	if list, err = r.List(context.Background(), uuid, false); err != nil || list.Snapshots[0].Ours {
		t.Errorf("with another state directory: %+v, %v", list, err)
	}
}

func TestOursAreKnownAfterARestart(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	dir := t.TempDir()
	r := start(t, dir, settings(pool))
	r.take(uuid)
	before, _ := r.Ours(uuid)
	r.stop()
	r = start(t, dir, settings(pool))
	r.settled(uuid)
	if after, _ := r.Ours(uuid); !slices.Equal(before, after) || len(after) != 2 {
		t.Errorf("before %q, after %q", before, after)
	}
	j, result := r.end(func() (job.Job, error) { return r.Delete(uuid, before[0], "test") })
	if j.State != job.Succeeded || len(result.Deleted) != 1 {
		t.Errorf("the deletion %s: %s", j.State, j.Reason)
	}
	if left := inDirectory(t, pool); !slices.Equal(left, before[1:]) {
		t.Errorf("left are %q", left)
	}
	if _, err := r.Delete(uuid, before[0], "test"); !errors.Is(err, snapshot.ErrUnknown) {
		t.Errorf("a second deletion: %v", err)
	}
}

// TestTopIsFoundWithoutAMountOfIt has only a subvolume mounted, as most
// installations do.
func TestTopIsFoundWithoutAMountOfIt(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	must(t, pool.Unmount())
	must(t, pool.Mount("subvol=@home"))
	r := start(t, t.TempDir(), settings(pool, func(s *snapshot.PoolSettings) {
		s.Directory = "@home/.snapshots"
		keepLast(1)(s)
	}))
	first := r.take(uuid)
	second := r.take(uuid)
	if len(second.Created) != 2 || len(second.Deleted) != 2 {
		t.Fatalf("second: %+v", second)
	}
	if want := pool.Path(".snapshots/" + second.Created[0].Name); second.Created[0].Path != want {
		t.Errorf("its path is %q, want %q", second.Created[0].Path, want)
	}
	if left := inDirectory(t, pool); slices.Contains(left, first.Created[0].Name) || len(left) != 2 {
		t.Errorf("left are %q", left)
	}
	// Where no mount shows the directory there is no path.
	r.SetSettings(settings(pool))
	if got := r.take(uuid); got.Created[0].Path != "" || got.Created[0].PoolPath != ".snapshots/"+got.Created[0].Name {
		t.Errorf("created %+v", got.Created[0])
	}
	r.stop()
	must(t, pool.Unmount()) // nothing holds it any more
}

func TestNameThatIsTakenGetsASuffix(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	now := time.Date(2026, 3, 7, 19, 45, 57, 0, time.UTC)
	clock := &stillClock{now: now}
	must(t, os.Mkdir(pool.Path(".snapshots"), 0o700))
	must(t, os.Mkdir(pool.Path(".snapshots/"+snapshot.NameOf("@", now, 1)), 0o700))
	must(t, os.WriteFile(pool.Path(".snapshots/"+snapshot.NameOf("@", now, 2)), []byte("mine"), 0o600))
	must(t, os.Symlink("nowhere", pool.Path(".snapshots/"+snapshot.NameOf("@", now, 3))))
	must(t, pool.NewSubvolume(".snapshots/"+snapshot.NameOf("@", now, 4)))
	r := start(t, t.TempDir(), settings(pool), func(c *snapshot.Config) { c.Clock = clock })
	result := r.take(uuid)
	if got := result.Created[0].Name; got != "@.20260307T194557Z-5" {
		t.Errorf("its name is %q", got)
	}
	if got := r.take(uuid).Created[0].Name; got != "@.20260307T194557Z-6" {
		t.Errorf("the next one's name is %q", got)
	}
	if data, err := os.ReadFile(pool.Path(".snapshots/" + snapshot.NameOf("@", now, 2))); string(data) != "mine" {
		t.Errorf("the file is %q, %v", data, err)
	}
	if n := len(inDirectory(t, pool)); n != 8 {
		t.Errorf("%d entries, want 8", n)
	}
}

// stillClock stands still until it is set.
type stillClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *stillClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *stillClock) set(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}

func (c *stillClock) Uptime() (string, time.Duration)        { return "", 0 }
func (c *stillClock) After(d time.Duration) <-chan time.Time { return time.After(d / 100) }

func TestDirectoryThatIsNoneIsRefused(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	outside := t.TempDir()
	r := start(t, t.TempDir(), settings(pool))
	for name, make := range map[string]func(path string) error{
		"a file":          func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"a symbolic link": func(path string) error { return os.Symlink(outside, path) },
	} {
		t.Run(name, func(t *testing.T) {
			must(t, make(pool.Path(".snapshots")))
			j, result := r.create(uuid, snapshot.CreateOptions{})
			if j.State != job.Failed || !strings.Contains(j.Reason, "move it away") || len(result.Failed) != 2 {
				t.Errorf("the job %s: %s, %+v", j.State, j.Reason, result)
			}
			must(t, os.Remove(pool.Path(".snapshots")))
		})
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("something was made outside of the pool: %v, %v", left, err)
	}
}

func TestReadOnlyFilesystemIsRefused(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	dir := t.TempDir()
	r := start(t, dir, settings(pool, keepLast(1)))
	r.take(uuid)
	r.stop()
	must(t, pool.Remount("ro"))
	r = start(t, dir, settings(pool, keepLast(1)))
	r.settled(uuid)
	j, result := r.create(uuid, snapshot.CreateOptions{})
	if j.State != job.Failed || !strings.Contains(j.Reason, "read-only") || len(result.Deleted) > 0 || len(result.Failed) != 2 {
		t.Errorf("the job %s: %s, %+v", j.State, j.Reason, result)
	}
	if _, err := r.PlanCreate(context.Background(), uuid, snapshot.CreateOptions{}); !errors.Is(err, unix.EROFS) {
		t.Errorf("the dry run: %v", err)
	}
	if n := len(inDirectory(t, pool)); n != 2 {
		t.Errorf("%d snapshots, want 2", n)
	}
	st, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(st)) {
		if strings.Contains(line, pool.Mountpoint) && !strings.Contains(line, " ro,") {
			t.Errorf("it was made writable: %s", line)
		}
	}
}

func TestNestedSubvolumesAreNamed(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	must(t, os.MkdirAll(pool.Path("@/var/lib"), 0o755))
	must(t, pool.NewSubvolume("@/var/lib/machines"))
	must(t, pool.NewSubvolume("@/var/lib/machines/one"))
	r := start(t, t.TempDir(), settings(pool))
	result := r.take(uuid)
	if want := []string{"var/lib/machines", "var/lib/machines/one"}; !slices.Equal(result.Created[0].Nested, want) || len(result.Created[1].Nested) > 0 {
		t.Errorf("nested are %q and %q, want %q and none", result.Created[0].Nested, result.Created[1].Nested, want)
	}
	plan, err := r.PlanCreate(context.Background(), uuid, snapshot.CreateOptions{})
	must(t, err)
	if !slices.ContainsFunc(plan.Would, func(s string) bool { return strings.HasPrefix(s, "leave out /@/var/lib/machines/one") }) {
		t.Errorf("the plan is %q", plan.Would)
	}
}

// TestWhatIsNoLongerOursStays changes each of several snapshots in another way,
// and has all of them pruned.
func TestWhatIsNoLongerOursStays(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	other, _ := newPool(t, rig, btrfstest.PoolOptions{})
	r := start(t, t.TempDir(), settings(pool, func(s *snapshot.PoolSettings) { s.Subvolumes = []string{"@"} }))
	path := func(c snapshot.Created) string { return pool.Path(".snapshots/" + c.Name) }
	reasons := []struct {
		change func(c snapshot.Created)
		want   string // why it stays; "" if it goes
	}{
		{func(c snapshot.Created) { progs(t, "property", "set", path(c), "ro", "false") }, "made writable"},
		{func(c snapshot.Created) {
			progs(t, "property", "set", path(c), "ro", "false")
			must(t, os.WriteFile(path(c)+"/new", []byte("mine"), 0o600))
			progs(t, "property", "set", path(c), "ro", "true")
		}, "written to"},
		{func(c snapshot.Created) { must(t, os.Rename(path(c), path(c)+".old")) }, "renamed"},
		{func(c snapshot.Created) { // a read-only one cannot be moved
			progs(t, "property", "set", path(c), "ro", "false")
			must(t, os.Rename(path(c), pool.Path(c.Name)))
			progs(t, "property", "set", pool.Path(c.Name), "ro", "true")
		}, "moved"},
		{func(c snapshot.Created) { // one of the same name in its place
			progs(t, "subvolume", "delete", path(c))
			must(t, pool.Snapshot("@home", ".snapshots/"+c.Name, true))
		}, "gone"},
		{func(c snapshot.Created) { // sent to another pool
			send(t, path(c), other.Mountpoint)
		}, ""}, // a newer one is
		{func(c snapshot.Created) { send(t, path(c), other.Mountpoint) }, "received"},
		{func(c snapshot.Created) {
			must(t, os.Mkdir(pool.Path("mnt"), 0o700))
			must(t, unix.Mount(pool.Disks[0].Loop, pool.Path("mnt"), "btrfs", unix.MS_RDONLY, "subvol=.snapshots/"+c.Name))
			t.Cleanup(func() { _ = unix.Unmount(pool.Path("mnt"), 0) })
		}, "is mounted"},
		{func(c snapshot.Created) { progs(t, "subvolume", "set-default", path(c)) }, "default subvolume"},
		{func(snapshot.Created) {}, ""},
	}
	var made []snapshot.Created
	for range reasons {
		made = append(made, r.take(uuid).Created...)
	}
	must(t, pool.Sync())
	must(t, pool.WriteFile("@/more", mib, rand.New(rand.NewPCG(2, 2))))
	must(t, pool.Sync()) // two transactions, in which what is new settles
	r.SetSettings(settings(pool, keepLast(100), func(s *snapshot.PoolSettings) { s.Subvolumes = []string{"@"} }))
	r.prune(uuid) // which looks at them
	for i, c := range reasons {
		c.change(made[i])
	}
	r.take(uuid) // the newest, which stays
	r.SetSettings(settings(pool, keepLast(1), func(s *snapshot.PoolSettings) { s.Subvolumes = []string{"@"} }))
	plan, err := r.PlanPrune(context.Background(), uuid)
	must(t, err)
	result := r.prune(uuid)
	for i, c := range reasons {
		kept := slices.IndexFunc(result.Kept, func(k snapshot.Kept) bool { return k.Name == made[i].Name })
		deleted := slices.ContainsFunc(result.Deleted, func(d snapshot.Deleted) bool { return d.Name == made[i].Name })
		switch {
		case c.want == "":
			if !deleted || kept >= 0 {
				t.Errorf("snapshot %d was to be deleted: %+v", i, result)
			}
		case c.want == "gone":
			if deleted || kept >= 0 {
				t.Errorf("snapshot %d is in the result, although it is gone: %+v", i, result)
			}
			if _, err := os.Stat(path(made[i]) + "/file"); err != nil {
				t.Errorf("what took its place is gone: %v", err)
			}
		case deleted || kept < 0 || !strings.Contains(result.Kept[kept].Reason, c.want):
			t.Errorf("snapshot %d was to stay because it %s: %+v", i, c.want, result)
		}
	}
	// The dry run said the same, but for what only the kernel knows.
	if len(plan.Deleted) != len(result.Deleted)+1 || len(plan.Kept) != len(result.Kept)-1 {
		t.Errorf("the dry run said %+v, done was %+v", plan, result)
	}
	for _, name := range []string{made[1].Name, made[2].Name + ".old"} {
		if _, err := os.Stat(pool.Path(".snapshots/" + name + "/file")); err != nil {
			t.Error(err)
		}
	}
	if data, err := os.ReadFile(path(made[1]) + "/new"); string(data) != "mine" {
		t.Errorf("%q, %v", data, err)
	}
}

// TestBalanceAndDeduplicationMakeNoSnapshotForeign moves the extents of
// snapshots, and lets two files in one share theirs.
func TestBalanceAndDeduplicationMakeNoSnapshotForeign(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{4 * gib}})
	data, err := os.ReadFile(pool.Path("@/file"))
	must(t, err)
	must(t, os.WriteFile(pool.Path("@/same"), data, 0o600))
	r := start(t, t.TempDir(), settings(pool, keepLast(100)))
	first := r.take(uuid)
	must(t, pool.Sync())
	r.take(uuid)
	must(t, pool.Sync())
	r.prune(uuid) // which looks at them
	must(t, pool.Balance())
	path := first.Created[0].Path
	source, err := os.Open(path + "/file")
	must(t, err)
	defer source.Close()
	target, err := os.Open(path + "/same")
	must(t, err)
	defer target.Close()
	request := unix.FileDedupeRange{Src_length: uint64(mib), Info: []unix.FileDedupeRangeInfo{{Dest_fd: int64(target.Fd())}}}
	must(t, unix.IoctlFileDedupeRange(int(source.Fd()), &request))
	if request.Info[0].Status != 0 || request.Info[0].Bytes_deduped != uint64(mib) {
		t.Fatalf("deduplicated: %+v", request.Info)
	}
	must(t, pool.Sync())
	if changed := r.ChangedTransactions(uuid); changed == 0 {
		t.Error("the deduplication changed no transaction of a snapshot: the test shows nothing")
	}
	r.SetSettings(settings(pool, keepLast(1)))
	result := r.prune(uuid)
	if len(result.Kept) > 0 || len(result.Deleted) != 2 {
		t.Errorf("%+v", result)
	}
}

// send sends a snapshot to a directory of another pool.
func send(t testing.TB, from, to string) {
	t.Helper()
	out, err := exec.Command("sh", "-c", `btrfs send -q "$0" | btrfs receive -q "$1"`, from, to).CombinedOutput()
	if err != nil {
		t.Fatalf("send %s: %v\n%s", from, err, out)
	}
}

func TestFailedCreatePrunesNothing(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	r := start(t, t.TempDir(), settings(pool))
	r.take(uuid)
	r.take(uuid)
	r.SetSettings(settings(pool, keepLast(1), func(s *snapshot.PoolSettings) { s.Subvolumes = []string{"@", "@gone", "@home"} }))
	must(t, os.Mkdir(pool.Path("@gone"), 0o700)) // a directory, and no subvolume
	j, result := r.create(uuid, snapshot.CreateOptions{})
	if j.State != job.Failed || len(result.Created) != 2 || len(result.Failed) != 1 || result.Failed[0].Subvolume != "@gone" || len(result.Deleted) > 0 {
		t.Errorf("the job %s: %s, %+v", j.State, j.Reason, result)
	}
	if n := len(inDirectory(t, pool)); n != 6 {
		t.Errorf("%d snapshots, want 6", n)
	}
}

func TestSubvolumeThatIsDeletedMeanwhile(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	r := start(t, t.TempDir(), settings(pool, keepLast(1), func(s *snapshot.PoolSettings) {
		// It runs after all subvolumes were found.
		s.Hooks.Before = []string{"/bin/sh", "-c", "btrfs subvolume delete " + pool.Path("@home")}
	}))
	j, result := r.create(uuid, snapshot.CreateOptions{})
	if j.State != job.Failed || len(result.Created) != 1 || len(result.Failed) != 1 || result.Failed[0].Subvolume != "@home" {
		t.Errorf("the job %s: %s, %+v", j.State, j.Reason, result)
	}
	if names, _ := r.Ours(uuid); !slices.Equal(names, inDirectory(t, pool)) || len(names) != 1 {
		t.Errorf("ours are %q, there are %q", names, inDirectory(t, pool))
	}
}

func TestMetadataFull(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{256 * mib}, Data: "single", Metadata: "single"})
	r := start(t, t.TempDir(), settings(pool))
	r.take(uuid)
	// All space to data, then metadata to the last block.
	_, err := pool.FillFallocate()
	must(t, err)
	for i := 0; ; i++ {
		if err := os.WriteFile(pool.Path(fmt.Sprintf("@/%d", i)), make([]byte, 2000), 0o600); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	failed := false
	for range 2000 { // each one takes some blocks more
		j, _ := r.create(uuid, snapshot.CreateOptions{})
		if failed = j.State == job.Failed; failed {
			if !strings.Contains(j.Reason, "no space left") || !strings.Contains(j.Reason, "metadata has no room") {
				t.Errorf("the job %s: %s", j.State, j.Reason)
			}
			break
		}
	}
	if !failed {
		t.Error("there was always room")
	}
	names, _ := r.Ours(uuid)
	if there := inDirectory(t, pool); !sameNames(names, there) {
		t.Errorf("ours are %q, there are %q", names, there)
	}
}

func sameNames(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

func TestAnotherFilesystemAtThePathIsLeftAlone(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{Label: "by-its-label"})
	other, otherUUID := newPool(t, rig, btrfstest.PoolOptions{Label: "cellar"})
	s := settings(pool, keepLast(1))
	s.Pools[0].Pool = "by-its-label"
	r := start(t, t.TempDir(), s)
	r.take(uuid)
	names := inDirectory(t, pool)
	must(t, other.Unmount())
	must(t, pool.Unmount())
	must(t, unix.Mount(other.Disks[0].Loop, pool.Mountpoint, "btrfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(pool.Mountpoint, 0) })
	// Something of the same name is there.
	must(t, os.Mkdir(pool.Path(".snapshots"), 0o700))
	for _, name := range names {
		progs(t, "subvolume", "snapshot", "-r", pool.Path("@"), pool.Path(".snapshots/"+name))
	}
	if _, err := r.Create(uuid, snapshot.CreateOptions{}, "test"); !errors.Is(err, snapshot.ErrUnknownPool) {
		t.Errorf("create: %v", err)
	}
	if _, err := r.Prune(uuid, "test"); !errors.Is(err, snapshot.ErrUnknownPool) {
		t.Errorf("prune: %v", err)
	}
	if _, err := r.Create(otherUUID, snapshot.CreateOptions{}, "test"); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("create on the other: %v", err)
	}
	if got := inDirectory(t, pool); !sameNames(got, names) {
		t.Errorf("the other pool has %q", got)
	}
}

func TestTwoDaemonsOnOnePool(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	clock := &stillClock{now: time.Date(2026, 3, 7, 19, 45, 57, 0, time.UTC)}
	var daemons []*running
	for range 2 {
		daemons = append(daemons, start(t, t.TempDir(), settings(pool, keepLast(3)), func(c *snapshot.Config) { c.Clock = clock }))
	}
	var wg sync.WaitGroup
	for _, r := range daemons {
		wg.Go(func() {
			for range 10 {
				r.take(uuid)
			}
		})
	}
	wg.Wait()
	var all []string
	for i, r := range daemons {
		names, _ := r.Ours(uuid)
		if len(names) != 6 {
			t.Errorf("daemon %d has %q, want 3 of each", i, names)
		}
		all = append(all, names...)
	}
	if there := inDirectory(t, pool); !sameNames(all, there) {
		t.Errorf("they know of %q, there are %q", all, there)
	}
}

func TestClockSetBackAYear(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	clock := &stillClock{now: time.Date(2026, 3, 7, 12, 0, 0, 0, time.UTC)}
	r := start(t, t.TempDir(), settings(pool, func(s *snapshot.PoolSettings) {
		s.Subvolumes = []string{"@"}
		s.Retention = retention.Policy{KeepLast: 1, Daily: 3}
	}), func(c *snapshot.Config) { c.Clock = clock })
	days := func(n int) {
		for range n {
			r.take(uuid)
			clock.set(clock.Now().AddDate(0, 0, 1))
		}
	}
	days(5)
	before, _ := r.Ours(uuid)
	clock.set(clock.Now().AddDate(-1, 0, 0))
	days(2)
	after, _ := r.Ours(uuid)
	for _, name := range before {
		if !slices.Contains(after, name) {
			t.Errorf("%s was pruned after the clock was set back", name)
		}
	}
	if len(after) != len(before)+2 {
		t.Errorf("before %q, after %q", before, after)
	}
	// When the clock is right again, all is as usual.
	clock.set(clock.Now().AddDate(1, 0, 0))
	days(4)
	left, _ := r.Ours(uuid)
	if len(left) != 3 {
		t.Errorf("left are %q, want three days", left)
	}
}

func TestHooks(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	said := filepath.Join(t.TempDir(), "said")
	shell := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	hooks := func(h snapshot.Hooks) snapshot.Settings {
		return settings(pool, func(s *snapshot.PoolSettings) { s.Hooks = h })
	}
	note := `echo "$BTRFS_GOVERNOR_HOOK $BTRFS_GOVERNOR_POOL $(ls ` + pool.Path(".snapshots") + ` | wc -l) $(echo "$BTRFS_GOVERNOR_SNAPSHOTS" | wc -w)" >> ` + said
	r := start(t, t.TempDir(), hooks(snapshot.Hooks{Before: shell(note), After: shell(note)}))
	r.take(uuid)
	want := "before " + pool.UUID + " 0 0\nafter " + pool.UUID + " 2 2\n"
	if got, err := os.ReadFile(said); string(got) != want {
		t.Errorf("the hooks said %q (%v), want %q", got, err, want)
	}
	// Before fails: no snapshot, but after.
	must(t, os.Remove(said))
	r.SetSettings(hooks(snapshot.Hooks{Before: shell("echo secret; exit 3"), After: shell(note)}))
	j, result := r.create(uuid, snapshot.CreateOptions{})
	if j.State != job.Failed || !strings.Contains(j.Reason, "exit status 3") || strings.Contains(j.Reason, "secret") || len(result.Created) > 0 || len(result.Failed) != 2 {
		t.Errorf("the job %s: %s, %+v", j.State, j.Reason, result)
	}
	if got, err := os.ReadFile(said); string(got) != "after "+pool.UUID+" 2 0\n" {
		t.Errorf("the hook after said %q, %v", got, err)
	}
	// What takes too long is killed, with what it started.
	r.SetSettings(hooks(snapshot.Hooks{Before: shell("sleep 1000 & echo $! > " + said + "; wait"), Timeout: 500 * time.Millisecond}))
	j, _ = r.create(uuid, snapshot.CreateOptions{})
	if j.State != job.Failed || !strings.Contains(j.Reason, "killed after 500ms") {
		t.Errorf("the job %s: %s", j.State, j.Reason)
	}
	pid, err := os.ReadFile(said)
	must(t, err)
	eventually(t, "what it started is gone", func() bool {
		status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/status")
		return err != nil || strings.Contains(string(status), "State:\tZ")
	})
	// After fails: the snapshots are there, and the job says so.
	r.SetSettings(hooks(snapshot.Hooks{After: []string{"/nonexistent/thaw"}}))
	j, result = r.create(uuid, snapshot.CreateOptions{})
	if j.State != job.Failed || !strings.Contains(j.Reason, "/nonexistent/thaw") || len(result.Created) != 2 {
		t.Errorf("the job %s: %s, %+v", j.State, j.Reason, result)
	}
}

func TestPinnedSnapshotIsNeverPruned(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	r := start(t, t.TempDir(), settings(pool, keepLast(1)))
	home := "/@home/"
	_, pinned := r.create(uuid, snapshot.CreateOptions{Subvolume: &home, Pin: true})
	for range 3 {
		r.take(uuid)
	}
	names, _ := r.Ours(uuid)
	if len(names) != 3 || !slices.Contains(names, pinned.Created[0].Name) {
		t.Errorf("ours are %q, pinned is %q", names, pinned.Created[0].Name)
	}
}

func TestOldestGoWhenSpaceIsLow(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{2 * gib}})
	var mu sync.Mutex
	free := []uint64{10, 20, 30, 200}
	asked := 0
	r := start(t, t.TempDir(), settings(pool, func(s *snapshot.PoolSettings) {
		s.Subvolumes = []string{"@"}
		s.Retention = retention.Policy{KeepMin: 2}
	}), func(c *snapshot.Config) {
		c.Free = func(btrfs.UUID) (uint64, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			return free[min(asked, len(free))-1], nil
		}
	})
	var made []string
	for range 6 {
		made = append(made, r.take(uuid).Created[0].Name)
	}
	low := settings(pool, func(s *snapshot.PoolSettings) {
		s.Subvolumes = []string{"@"}
		s.Retention = retention.Policy{KeepMin: 2}
		s.MinFree = 100
	})
	r.SetSettings(low)
	result := r.prune(uuid)
	if names, _ := r.Ours(uuid); !slices.Equal(names, made[3:]) || len(result.Deleted) != 3 || !strings.Contains(result.Deleted[0].Reason, "min_free") {
		t.Errorf("left are %q of %q: %+v", names, made, result)
	}
	// It never goes below the minimum.
	free = []uint64{10}
	result = r.prune(uuid)
	if names, _ := r.Ours(uuid); !slices.Equal(names, made[4:]) || len(result.Notes) != 1 {
		t.Errorf("left are %q of %q: %+v", names, made, result)
	}
}

func TestHungDiskHoldsUpNoOtherPool(t *testing.T) {
	btrfstest.RequireFUSE(t)
	rig := btrfstest.New(t)
	faults, err := rig.NewFaultDir()
	must(t, err)
	disk, err := faults.NewDisk(gib)
	must(t, err)
	hung, hungUUID := newPool(t, rig, btrfstest.PoolOptions{Disks: []*btrfstest.Disk{disk.Disk}, Sizes: []int64{gib}, Data: "single", Metadata: "single"})
	other, otherUUID := newPool(t, rig, btrfstest.PoolOptions{})
	s := settings(hung)
	s.Pools = append(s.Pools, settings(other, keepLast(1)).Pools...)
	r := start(t, t.TempDir(), s)
	r.settled(hungUUID)
	r.settled(otherUUID)
	disk.Hang()
	stuck, err := r.Create(hungUUID, snapshot.CreateOptions{}, "test")
	must(t, err)
	eventually(t, "something waits for the disk", func() bool { return disk.Waiting() > 0 })
	r.take(otherUUID)
	if got := r.take(otherUUID); len(got.Deleted) != 2 {
		t.Errorf("the other pool: %+v", got)
	}
	if j, err := r.jobs.Get(stuck.ID); err != nil || j.State.Ended() {
		t.Errorf("the job that hangs is %s: %s, %v", j.State, j.Reason, err)
	}
	r.Collect(make(chan prometheus.Metric, 100))
	disk.Release()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if j, err := r.Wait(ctx, stuck.ID); err != nil || j.State != job.Succeeded {
		t.Errorf("after the disk is back it is %s: %s, %v", j.State, j.Reason, err)
	}
}

// TestLastSuccessAndCountsOutliveTheDaemon reads the metrics.
func TestLastSuccessAndCountsOutliveTheDaemon(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	dir := t.TempDir()
	clock := &stillClock{now: time.Date(2026, 3, 7, 12, 0, 0, 0, time.UTC)}
	r := start(t, dir, settings(pool), func(c *snapshot.Config) { c.Clock = clock })
	r.take(uuid)
	clock.set(clock.Now().Add(time.Hour))
	r.take(uuid)
	r.stop()
	r = start(t, dir, settings(pool), func(c *snapshot.Config) { c.Clock = clock })
	r.settled(uuid)
	registry := prometheus.NewRegistry()
	must(t, registry.Register(r))
	eventually(t, "the metrics are there", func() bool {
		families, err := registry.Gather()
		must(t, err)
		got := make(map[string]float64)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					if l.GetName() == "subvolume" {
						name += " " + l.GetValue()
					}
				}
				got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
		noon := float64(time.Date(2026, 3, 7, 12, 0, 0, 0, time.UTC).Unix())
		want := map[string]float64{
			"btrfs_snapshot_count /@": 2, "btrfs_snapshot_count /@home": 2,
			"btrfs_snapshot_oldest_timestamp_seconds /@": noon, "btrfs_snapshot_newest_timestamp_seconds /@": noon + 3600,
			"btrfs_snapshot_oldest_timestamp_seconds /@home": noon, "btrfs_snapshot_newest_timestamp_seconds /@home": noon + 3600,
			"btrfs_snapshot_created_total /@": 0, "btrfs_snapshot_created_total /@home": 0,
			"btrfs_snapshot_pruned_total /@": 0, "btrfs_snapshot_pruned_total /@home": 0,
			"btrfs_snapshot_failures_total /@": 0, "btrfs_snapshot_failures_total /@home": 0,
			"btrfs_snapshot_last_success_timestamp_seconds": noon + 3600, "btrfs_snapshot_cleaning": 0,
		}
		return maps.Equal(got, want)
	})
	problems, err := testutil.GatherAndLint(registry)
	// Its name ends as those of a histogram's series do; that is the contract.
	problems = slices.DeleteFunc(problems, func(p promlint.Problem) bool { return p.Metric == "btrfs_snapshot_count" })
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
}
