package scrub_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/scrub"
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

// dirs are what outlives a daemon.
type dirs struct{ state, status string }

func newDirs(t testing.TB) dirs {
	t.Helper()
	// A Unix socket's path has 107 bytes at most, and that of t.TempDir has the
	// name of the test.
	status, err := os.MkdirTemp("", "status")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(status)) })
	return dirs{t.TempDir(), status}
}

// running is a runner that runs.
type running struct {
	*scrub.Runner
	t    testing.TB
	jobs *job.Store
	stop func()
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// start starts a runner, which ends with the test.
func start(t testing.TB, d dirs) *running {
	t.Helper()
	return startWith(t, d, func(*scrub.Config) {})
}

func startWith(t testing.TB, d dirs, change func(*scrub.Config)) *running {
	t.Helper()
	dir := state.NewDir(d.state)
	jobs, err := job.Open(dir, 100)
	must(t, err)
	cfg := scrub.Config{
		Logger: log.NewLogfmtLogger(testLog{t}), Client: btrfs.NewClient(btrfs.DefaultPaths()), Paths: btrfs.DefaultPaths(),
		State: dir, Jobs: jobs, StatusDir: d.status, BatchBytes: 1,
	}
	change(&cfg)
	r, err := scrub.New(cfg)
	must(t, err)
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

func uuidOf(t testing.TB, p *btrfstest.Pool) btrfs.UUID {
	t.Helper()
	u, err := btrfs.ParseUUID(p.UUID)
	must(t, err)
	return u
}

// begin starts a scrub; the runner may not be up yet.
func (r *running) begin(pool btrfs.UUID, o scrub.Options) job.Job {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		j, err := r.Start(pool, o, "test")
		if err == nil {
			return j
		}
		if !errors.Is(err, scrub.ErrRefused) || time.Now().After(deadline) {
			r.t.Fatal(err)
		}
	}
}

// until waits for a condition of the status.
func (r *running) until(pool btrfs.UUID, what string, condition func(*scrub.Status) bool) scrub.Status {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		s, err := r.Status(pool)
		must(r.t, err)
		if condition(&s) {
			return s
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("not within %s: %s; it is %s (%s)", patience, what, s.State, s.Reason)
		}
	}
}

func (r *running) finish(pool btrfs.UUID) scrub.Status {
	r.t.Helper()
	return r.until(pool, "the scrub ends", func(s *scrub.Status) bool { return !s.State.Active() })
}

// progs runs btrfs(8) and returns what it prints, whatever its exit status.
func progs(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("btrfs", args...)
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// reference scrubs with btrfs-progs and returns the counters of each device.
func reference(t *testing.T, p *btrfstest.Pool, args ...string) map[uint64]map[string]uint64 {
	t.Helper()
	out, err := progs(t, append(append([]string{"scrub", "start", "-B", "-R", "-d"}, args...), p.Mountpoint)...)
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 3) {
		t.Fatalf("btrfs scrub: %v\n%s", err, out)
	}
	counters := make(map[uint64]map[string]uint64)
	var current map[string]uint64
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "Scrub device ") || strings.HasPrefix(line, "scrub device ") {
			_, after, _ := strings.Cut(line, "(id ")
			id, _, _ := strings.Cut(after, ")")
			n, err := strconv.ParseUint(id, 10, 64)
			must(t, err)
			current = make(map[string]uint64)
			counters[n] = current
			continue
		}
		key, value, ok := strings.Cut(line, ": ")
		if n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64); ok && err == nil && current != nil {
			current[key] = n
		}
	}
	if len(counters) != len(p.Disks) {
		t.Fatalf("counters of %d devices in:\n%s", len(counters), out)
	}
	return counters
}

// countersOf are ours under the names of btrfs-progs.
func countersOf(s *scrub.Status) map[uint64]map[string]uint64 {
	counters := make(map[uint64]map[string]uint64)
	for _, d := range s.Devices {
		c := d.Counters
		counters[d.DevID] = map[string]uint64{
			"data_extents_scrubbed": c.DataExtentsScrubbed, "tree_extents_scrubbed": c.TreeExtentsScrubbed,
			"data_bytes_scrubbed": c.DataBytesScrubbed, "tree_bytes_scrubbed": c.TreeBytesScrubbed,
			"read_errors": c.ReadErrors, "csum_errors": c.CsumErrors, "verify_errors": c.VerifyErrors,
			"no_csum": c.NoCsum, "csum_discards": c.CsumDiscards, "super_errors": c.SuperErrors,
			"malloc_errors": c.MallocErrors, "uncorrectable_errors": c.UncorrectableErrors,
			"corrected_errors": c.CorrectedErrors, "unverified_errors": c.UnverifiedErrors,
		}
	}
	return counters
}

// movedBlocks is by how many tree blocks two scrubs of the same pool may
// differ. Each commit writes a few tree blocks to another place. While a
// metadata block group is being scrubbed it is read-only, so that place is in
// another one: behind the scrub or yet before it. Two devices of one
// uninterrupted `btrfs scrub start -B` differed by 4 of 47 blocks here, and each
// interruption can add a commit.
const movedBlocks = 16

const nodeSize = 16 << 10

func differs(name string, got, want uint64) bool {
	far := max(got, want) - min(got, want)
	switch name {
	case "last_physical":
		return false
	case "tree_extents_scrubbed":
		return far > movedBlocks
	case "tree_bytes_scrubbed":
		return far > movedBlocks*nodeSize
	}
	return far != 0
}

func sameCounters(t *testing.T, got, want map[uint64]map[string]uint64) {
	t.Helper()
	for devid, counters := range want {
		for _, name := range slices.Sorted(maps.Keys(counters)) {
			if differs(name, got[devid][name], counters[name]) {
				t.Errorf("device %d: %s is %d, and %d in an uninterrupted btrfs scrub", devid, name, got[devid][name], counters[name])
			}
		}
	}
}

// corruptPool makes a RAID1 pool with errors of all kinds that a scrub counts,
// and returns how to make them again: after a repair.
func corruptPool(t *testing.T, rig *btrfstest.Rig) (*btrfstest.Pool, func()) {
	t.Helper()
	rng := rand.New(rand.NewPCG(7, 7))
	pool, err := rig.NewPool(btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1", MountOptions: []string{"commit=3600"}})
	must(t, err)
	for i := range 36 {
		must(t, pool.WriteFile(fmt.Sprintf("file-%d", i), 16*mib, rng))
	}
	// Whoever reads a bad tree block repairs it, so that no scrub finds it any
	// more: the one to corrupt is of a tree that nobody reads.
	must(t, pool.NewSubvolume("cold"))
	for i := range 2000 {
		must(t, os.WriteFile(pool.Path(fmt.Sprintf("cold/%d", i)), nil, 0o600))
	}
	// A mount writes the trees again, as the interruptions do: afterwards they
	// have as many blocks as they will have.
	for range 2 {
		must(t, pool.Unmount())
		must(t, pool.Mount())
		must(t, pool.Sync())
	}
	corrupt := func() {
		t.Helper()
		for i := range 8 {
			at := int64(i) * mib
			must(t, pool.CorruptFile(fmt.Sprintf("file-%d", i), at, i%2))
		}
		corruptTreeBlock(t, pool)
		must(t, pool.DropCaches())
		// The second superblock, at 64 MiB; last, because each commit writes it
		// again.
		must(t, pool.CorruptPhysical(btrfstest.Location{DevID: 1, Physical: 64 << 20}, 4096))
	}
	must(t, pool.CorruptFile("file-20", 0, btrfstest.AllMirrors))
	corrupt()
	return pool, corrupt
}

// corruptTreeBlock changes a copy of a leaf of the tree of the subvolume cold.
func corruptTreeBlock(t *testing.T, pool *btrfstest.Pool) {
	t.Helper()
	must(t, pool.Sync())
	out, err := progs(t, "inspect-internal", "dump-tree", "-t", "256", pool.Disks[0].Loop)
	if err != nil {
		t.Fatalf("dump-tree: %v", err)
	}
	leaves := regexp.MustCompile(`(?m)^leaf (\d+)`).FindAllStringSubmatch(out, -1)
	if len(leaves) < 5 {
		t.Fatalf("%d leaves in:\n%.2000s", len(leaves), out)
	}
	logical, err := strconv.ParseUint(leaves[len(leaves)/2][1], 10, 64)
	must(t, err)
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	must(t, err)
	defer f.Close()
	_, err = f.WalkChunks(func(c *btrfs.Chunk) error {
		if logical < c.Logical || logical >= c.Logical+c.Length {
			return nil
		}
		s := c.Stripes[1]
		return pool.CorruptPhysical(btrfstest.Location{DevID: s.DevID, Physical: int64(s.Offset + logical - c.Logical)}, 4096)
	})
	must(t, err)
}

func TestCountersEqualThoseOfBtrfsScrub(t *testing.T) {
	rig := btrfstest.New(t)
	pool, corrupt := corruptPool(t, rig)
	want := reference(t, pool)
	if want[1]["csum_errors"]+want[2]["csum_errors"] < 8 || want[1]["super_errors"] == 0 {
		t.Fatalf("the reference found too little: %v", want)
	}
	corrupt()
	r := start(t, newDirs(t))
	uuid := uuidOf(t, pool)
	r.begin(uuid, scrub.Options{Mode: scrub.Full})
	s := r.finish(uuid)
	if s.State != scrub.Finished {
		t.Fatalf("it ended as %s: %s", s.State, s.Reason)
	}
	sameCounters(t, countersOf(&s), want)
	// What could be repaired is.
	again := reference(t, pool, "-r")
	for devid, c := range again {
		if c["corrected_errors"] != 0 || c["super_errors"] != 0 {
			t.Errorf("device %d still has errors that can be repaired: %v", devid, c)
		}
	}
}

func TestReadOnlyScrubCorrectsNothing(t *testing.T) {
	rig := btrfstest.New(t)
	pool, _ := corruptPool(t, rig)
	want := reference(t, pool, "-r")
	r := start(t, newDirs(t))
	uuid := uuidOf(t, pool)
	r.begin(uuid, scrub.Options{Mode: scrub.Full, ReadOnly: true})
	s := r.finish(uuid)
	for devid, c := range want {
		c["corrected_errors"] = 0 // which the kernel counts all the same
		_ = devid
	}
	sameCounters(t, countersOf(&s), want)
	if !strings.Contains(s.Reason, "nothing was repaired") {
		t.Errorf("the reason is %q, and does not say that nothing was repaired", s.Reason)
	}
}

func speedMax(t *testing.T, pool *btrfstest.Pool) []string {
	t.Helper()
	var values []string
	for _, d := range pool.Disks {
		v, err := pool.Sysfs(filepath.Join("devinfo", fmt.Sprint(d.DevID), "scrub_speed_max"))
		must(t, err)
		values = append(values, v)
	}
	return values
}

func setSpeedMax(t *testing.T, pool *btrfstest.Pool, value string) {
	t.Helper()
	for _, d := range pool.Disks {
		must(t, os.WriteFile("/sys/fs/btrfs/"+pool.UUID+"/devinfo/"+fmt.Sprint(d.DevID)+"/scrub_speed_max", []byte(value), 0))
	}
}
