package scrub_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// cleanPool makes a RAID1 pool with some data on plain disks.
func cleanPool(t testing.TB, rig *btrfstest.Rig, disks ...*btrfstest.Disk) *btrfstest.Pool {
	t.Helper()
	o := btrfstest.PoolOptions{Disks: disks, Data: "raid1", Metadata: "raid1"}
	for range 2 - len(disks) {
		o.Sizes = append(o.Sizes, gib)
	}
	pool, err := rig.NewPool(o)
	must(t, err)
	must(t, pool.WriteFile("film", 300*mib, rand.New(rand.NewPCG(1, 1))))
	must(t, pool.DropCaches())
	return pool
}

// slowly are options with which a clean pool takes half a minute.
var slowly = scrub.Options{Mode: scrub.Limit, Limit: 10 << 20}

func isRunning(s *scrub.Status) bool {
	return s.State == scrub.Running && s.Counters().BytesScrubbed() > 0
}

func TestPauseIsQuietAndResumeGoesOn(t *testing.T) {
	rig := btrfstest.New(t)
	pool := cleanPool(t, rig)
	uuid := uuidOf(t, pool)
	r := start(t, newDirs(t))
	r.begin(uuid, scrub.Options{Mode: scrub.Limit, Limit: 30 << 20})
	r.until(uuid, "it runs", isRunning)
	_, err := r.Pause(uuid)
	must(t, err)
	// A paused scrub lets go of the pool: no scrub runs in the kernel, nothing
	// reads the disks, and it can be unmounted.
	r.until(uuid, "it is paused", func(s *scrub.Status) bool { return s.State == scrub.Paused })
	if inKernel(t, pool) {
		t.Error("it is said to be paused, and a scrub runs in the kernel")
	}
	before := bytesRead(t, pool)
	must(t, pool.Unmount())
	for i, n := range bytesRead(t, pool) {
		if n > before[i]+uint64(mib) { // what the unmount reads
			t.Errorf("device %d: %d bytes were read while the scrub was paused", i+1, n-before[i])
		}
	}
	must(t, pool.Mount())
	_, err = r.Resume(uuid)
	must(t, err)
	if s := r.finish(uuid); s.State != scrub.Finished || s.Progress != 1 {
		t.Errorf("it ended as %s (%s) with progress %v", s.State, s.Reason, s.Progress)
	}
}

func TestTwoStartsAtOnceAreOneScrub(t *testing.T) {
	rig := btrfstest.New(t)
	pool := cleanPool(t, rig)
	uuid := uuidOf(t, pool)
	r := start(t, newDirs(t))
	first := r.begin(uuid, slowly)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			j, err := r.Start(uuid, slowly, "test")
			if !errors.Is(err, scrub.ErrRunning) || j.ID != first.ID {
				t.Errorf("a second start gave job %q and %v, want %q and ErrRunning", j.ID, err, first.ID)
			}
		})
	}
	wg.Wait()
	_, err := r.Cancel(uuid)
	must(t, err)
	if s := r.finish(uuid); s.State != scrub.Cancelled {
		t.Errorf("it ended as %s", s.State)
	}
	j, err := r.jobs.Get(first.ID)
	must(t, err)
	if j.State != "cancelled" || j.Ended.IsZero() || len(j.Result) == 0 {
		t.Errorf("the job is %+v", j)
	}
}

func TestForeignScrubIsWaitedForAndNotTouched(t *testing.T) {
	rig := btrfstest.New(t)
	pool := cleanPool(t, rig)
	uuid := uuidOf(t, pool)
	setSpeedMax(t, pool, strconv.Itoa(10<<20))
	cmd := exec.Command("btrfs", "scrub", "start", "-B", pool.Mountpoint)
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	waitForKernelScrub(t, pool)
	r := start(t, newDirs(t))
	r.begin(uuid, scrub.Options{Mode: scrub.Full})
	s := r.until(uuid, "it waits", func(s *scrub.Status) bool { return s.State == scrub.Waiting && s.Reason != "" })
	if !strings.Contains(s.Reason, "nother scrub") {
		t.Errorf("it waits because: %s", s.Reason)
	}
	setSpeedMax(t, pool, "0")
	if err := <-ended; err != nil {
		t.Errorf("the scrub of btrfs-progs ended with %v", err)
	}
	if s := r.finish(uuid); s.State != scrub.Finished {
		t.Errorf("it ended as %s: %s", s.State, s.Reason)
	}
}

// waitForKernelScrub waits until a scrub of the first device runs.
func waitForKernelScrub(t *testing.T, pool *btrfstest.Pool) {
	t.Helper()
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	must(t, err)
	defer f.Close()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, err := f.ScrubProgress(1); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no scrub runs")
		}
	}
}

func TestScrubCancelledBySomebodyElseSaysSo(t *testing.T) {
	rig := btrfstest.New(t)
	pool := cleanPool(t, rig)
	uuid := uuidOf(t, pool)
	r := start(t, newDirs(t))
	r.begin(uuid, slowly)
	r.until(uuid, "it runs", isRunning)
	// Between two batches nothing runs that could be cancelled, and a kernel
	// whose batch is at its end says that it was cancelled, and lets it end
	// well: about one in ten of the first batches, which are small.
	s := r.until(uuid, "btrfs scrub cancel ends it", func(s *scrub.Status) bool {
		out, err := progs(t, "scrub", "cancel", pool.Mountpoint)
		if err != nil && !strings.Contains(out, "not running") {
			t.Fatalf("btrfs scrub cancel: %v\n%s", err, out)
		}
		return !s.State.Active()
	})
	if s.State != scrub.Cancelled || !strings.Contains(s.Reason, "omebody else") {
		t.Errorf("it ended as %s: %s", s.State, s.Reason)
	}
}

func TestReplaceIsNeverHarmed(t *testing.T) {
	rig := btrfstest.New(t)
	faults, err := rig.NewFaultDir()
	must(t, err)
	slow, err := faults.NewDisk(gib)
	must(t, err)
	pool := cleanPool(t, rig, slow.Disk)
	uuid := uuidOf(t, pool)
	slow.Slow(time.Millisecond, 4_000_000) // the replace takes a minute
	target, err := rig.NewDisk(btrfstest.DiskOptions{Size: gib})
	must(t, err)
	must(t, pool.Replace(slow.DevID, target, false))
	operation := func() string {
		op, err := pool.Sysfs("exclusive_operation")
		must(t, err)
		return op
	}
	for deadline := time.Now().Add(patience); operation() != "device replace"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the replace does not start")
		}
	}
	r := start(t, newDirs(t))
	r.begin(uuid, scrub.Options{Mode: scrub.Full})
	r.until(uuid, "it waits", func(s *scrub.Status) bool { return s.State == scrub.Waiting && strings.Contains(s.Reason, "replace") })
	_, err = r.Cancel(uuid)
	must(t, err)
	r.finish(uuid)
	r.begin(uuid, scrub.Options{Mode: scrub.Full})
	slow.Fast()
	must(t, pool.WaitReplace()) // an error if it was cancelled
	if s := r.finish(uuid); s.State != scrub.Finished {
		t.Errorf("it ended as %s: %s", s.State, s.Reason)
	}
}

func TestReplaceStartedDuringAScrubIsNotHarmed(t *testing.T) {
	rig := btrfstest.New(t)
	pool := cleanPool(t, rig)
	uuid := uuidOf(t, pool)
	target, err := rig.NewDisk(btrfstest.DiskOptions{Size: gib})
	must(t, err)
	r := start(t, newDirs(t))
	r.begin(uuid, slowly)
	r.until(uuid, "it runs", isRunning)
	// The kernel refuses a replace of a device that is being scrubbed, and says
	// so; after a pause it accepts it.
	if err := pool.Replace(1, target, true); err == nil {
		t.Log("the kernel accepted the replace beside the scrub")
	} else {
		t.Logf("beside the scrub: %v", err)
		_, err = r.Pause(uuid)
		must(t, err)
		r.until(uuid, "it is paused", func(s *scrub.Status) bool { return s.State == scrub.Paused })
		must(t, pool.Replace(1, target, true))
		_, err = r.Resume(uuid)
		must(t, err)
	}
	_, err = r.Cancel(uuid)
	must(t, err)
	r.finish(uuid)
	r.begin(uuid, scrub.Options{Mode: scrub.Full})
	if s := r.finish(uuid); s.State != scrub.Finished {
		t.Errorf("it ended as %s: %s", s.State, s.Reason)
	}
}

func TestBalanceResizeAndDeviceAddBesideAScrub(t *testing.T) {
	rig := btrfstest.New(t)
	pool := cleanPool(t, rig)
	uuid := uuidOf(t, pool)
	r := start(t, newDirs(t))
	r.begin(uuid, scrub.Options{Mode: scrub.Limit, Limit: 30 << 20})
	r.until(uuid, "it runs", isRunning)
	_, err := pool.AddDisk(gib)
	must(t, err)
	must(t, pool.Balance("-dusage=50"))
	must(t, pool.ResizeDisk(1, 2*gib))
	if s := r.finish(uuid); s.State != scrub.Finished {
		t.Errorf("it ended as %s: %s", s.State, s.Reason)
	}
}

func TestHungDiskBlocksNobody(t *testing.T) {
	btrfstest.RequireFUSE(t)
	rig := btrfstest.New(t)
	faults, err := rig.NewFaultDir()
	must(t, err)
	disk, err := faults.NewDisk(gib)
	must(t, err)
	hung := cleanPool(t, rig, disk.Disk)
	other := cleanPool(t, rig)
	r := start(t, newDirs(t))
	r.SetSettings(scrub.Settings{MaxPools: 2})
	r.begin(uuidOf(t, hung), scrub.Options{Mode: scrub.Limit, Limit: 20 << 20})
	r.until(uuidOf(t, hung), "it runs", isRunning)
	disk.Hang()
	for deadline := time.Now().Add(patience); disk.Waiting() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing waits for the disk")
		}
	}
	r.begin(uuidOf(t, other), scrub.Options{Mode: scrub.Full})
	if s := r.finish(uuidOf(t, other)); s.State != scrub.Finished {
		t.Errorf("the other pool's scrub ended as %s: %s", s.State, s.Reason)
	}
	if _, err := r.Cancel(uuidOf(t, hung)); err != nil {
		t.Error(err)
	}
	disk.Release()
	if s := r.finish(uuidOf(t, hung)); s.State != scrub.Cancelled {
		t.Errorf("it ended as %s: %s", s.State, s.Reason)
	}
}

// The kernel searches the trees of a pool for the name of a mounted subvolume when
// the mount table is read, so that a disk that hangs holds up whoever reads it.
func TestHungMountTableBlocksNobody(t *testing.T) {
	btrfstest.RequireFUSE(t)
	rig := btrfstest.New(t)
	faults, err := rig.NewFaultDir()
	must(t, err)
	disk, err := faults.NewDisk(gib)
	must(t, err)
	hung, err := rig.NewPool(btrfstest.PoolOptions{Disks: []*btrfstest.Disk{disk.Disk}, Data: "single", Metadata: "single", MkfsArgs: []string{"-n", "4096"}})
	must(t, err)
	for i := range 100 { // the root of the tree of roots is never let go, its leaves are
		must(t, hung.NewSubvolume(fmt.Sprint("subvolume", i)))
	}
	must(t, hung.Unmount())
	must(t, hung.Mount("subvol=subvolume50"))
	other := cleanPool(t, rig)
	r := start(t, newDirs(t))
	r.begin(uuidOf(t, other), slowly)
	r.until(uuidOf(t, other), "it runs", isRunning)

	must(t, hung.DropCaches())
	disk.Hang()
	defer disk.Release()
	read := make(chan error, 1)
	go func() {
		_, err := os.ReadFile("/proc/self/mountinfo")
		read <- err
	}()
	for deadline := time.Now().Add(patience); disk.Waiting() == 0; time.Sleep(time.Millisecond) {
		select {
		case err := <-read:
			t.Fatalf("the mount table is read: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing waits for the disk")
		}
	}
	_, err = r.Cancel(uuidOf(t, other))
	must(t, err)
	if s := r.finish(uuidOf(t, other)); s.State != scrub.Cancelled {
		t.Errorf("the other pool's scrub ended as %s: %s", s.State, s.Reason)
	}
	r.begin(uuidOf(t, other), scrub.Options{Mode: scrub.Full})
	if s := r.finish(uuidOf(t, other)); s.State != scrub.Finished {
		t.Errorf("the next one ended as %s: %s", s.State, s.Reason)
	}
	select {
	case <-read:
		t.Error("the mount table did not hang all that time")
	default:
	}
	disk.Release()
	must(t, <-read)
}

// A person pauses or cancels the scrub of a disk that hangs, and the daemon is
// started again. What it had the kernel do goes on there.
func TestWhatWasAskedForIsRememberedThoughTheDiskHangs(t *testing.T) {
	btrfstest.RequireFUSE(t)
	for _, tt := range []struct {
		name   string
		ask    func(*running, btrfs.UUID) (scrub.Status, error)
		want   scrub.State
		reason string
	}{
		{"pause", func(r *running, u btrfs.UUID) (scrub.Status, error) { return r.Pause(u) }, scrub.Paused, "It is about to pause"},
		{"cancel", func(r *running, u btrfs.UUID) (scrub.Status, error) { return r.Cancel(u) }, scrub.Cancelled, "It is about to end"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rig := btrfstest.New(t)
			faults, err := rig.NewFaultDir()
			must(t, err)
			disk, err := faults.NewDisk(gib)
			must(t, err)
			pool := cleanPool(t, rig, disk.Disk)
			uuid, d, again := uuidOf(t, pool), newDirs(t), newDirs(t)
			first := start(t, d)
			first.begin(uuid, slowly)
			first.until(uuid, "it runs", isRunning)
			disk.Hang()
			for deadline := time.Now().Add(patience); disk.Waiting() == 0; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("nothing waits for the disk")
				}
			}
			_, err = tt.ask(first, uuid)
			must(t, err)
			// What the next process finds where this one is killed now.
			for _, name := range []string{"scrub-" + pool.UUID + ".json", "jobs.jsonl"} {
				text, err := os.ReadFile(filepath.Join(d.state, name))
				must(t, err)
				must(t, os.WriteFile(filepath.Join(again.state, name), text, 0o600))
			}
			second := start(t, again)
			second.until(uuid, "it says what keeps it", func(s *scrub.Status) bool {
				if s.State == tt.want {
					t.Fatalf("it is %s while the kernel scrubs", s.State)
				}
				return s.State == scrub.Running && strings.HasPrefix(s.Reason, tt.reason+", when the kernel")
			})
			disk.Release()
			second.until(uuid, "what was asked for is so", func(s *scrub.Status) bool { return s.State == tt.want })
			if inKernel(t, pool) {
				t.Error("the kernel still scrubs")
			}
			first.until(uuid, "so it is in the first process", func(s *scrub.Status) bool { return s.State == tt.want })
		})
	}
}

func TestRepairThatTheFullStoreOfADiskRefusesIsNotCounted(t *testing.T) {
	rig := btrfstest.New(t)
	store, err := rig.NewStore(600 * mib)
	must(t, err)
	thin, err := store.NewDisk(gib)
	must(t, err)
	pool := cleanPool(t, rig, thin)
	must(t, pool.WriteFile("photo", 4*mib, rand.New(rand.NewPCG(5, 5))))
	must(t, pool.Sync())
	places, err := pool.Physical("photo", 0)
	must(t, err)
	for _, place := range places {
		if place.DevID == thin.DevID {
			must(t, thin.Forget(place.Physical, 4096))
		}
	}
	must(t, store.Fill())
	r := start(t, newDirs(t))
	uuid := uuidOf(t, pool)
	r.begin(uuid, scrub.Options{Mode: scrub.Full})
	s := r.finish(uuid)
	if c := s.Counters(); c.CsumErrors != 1 || c.CorrectedErrors != 0 {
		t.Errorf("%d checksum errors, %d corrected; want 1 and 0, for there is no room to write", c.CsumErrors, c.CorrectedErrors)
	}
	must(t, store.Drain())
	r.begin(uuid, scrub.Options{Mode: scrub.Full})
	s = r.finish(uuid)
	if c := s.Counters(); c.CsumErrors != 1 || c.CorrectedErrors != 1 {
		t.Errorf("afterwards %d checksum errors, %d corrected; want 1 and 1", c.CsumErrors, c.CorrectedErrors)
	}
}

func TestRepairThatDoesNotReachTheDiskIsNotCounted(t *testing.T) {
	btrfstest.RequireFUSE(t)
	rig := btrfstest.New(t)
	faults, err := rig.NewFaultDir()
	must(t, err)
	disk, err := faults.NewDisk(gib)
	must(t, err)
	pool := cleanPool(t, rig, disk.Disk)
	must(t, pool.WriteFile("photo", 4*mib, rand.New(rand.NewPCG(5, 5))))
	places, err := pool.Physical("photo", 0)
	must(t, err)
	for i, place := range places {
		if place.DevID == disk.DevID {
			must(t, pool.CorruptFile("photo", 0, i))
			disk.FailWrites(place.Physical&^(64<<10-1), 64<<10)
		}
	}
	r := start(t, newDirs(t))
	uuid := uuidOf(t, pool)
	r.begin(uuid, scrub.Options{Mode: scrub.Full})
	s := r.finish(uuid)
	c := s.Counters()
	if c.CsumErrors != 1 || c.CorrectedErrors != 0 {
		t.Errorf("%d checksum errors, %d corrected; want 1 and 0, for the disk refused the write", c.CsumErrors, c.CorrectedErrors)
	}
	disk.Heal()
	r.begin(uuid, scrub.Options{Mode: scrub.Full})
	s = r.finish(uuid)
	if c := s.Counters(); c.CsumErrors != 1 || c.CorrectedErrors != 1 {
		t.Errorf("afterwards %d checksum errors, %d corrected; want 1 and 1", c.CsumErrors, c.CorrectedErrors)
	}
}

func TestMissingDeviceFailsTheScrubAndTheOthersAreDone(t *testing.T) {
	rig := btrfstest.New(t)
	pool := cleanPool(t, rig)
	must(t, pool.Detach(2))
	must(t, pool.MountDegraded(false))
	r := start(t, newDirs(t))
	uuid := uuidOf(t, pool)
	r.begin(uuid, scrub.Options{Mode: scrub.Full})
	s := r.finish(uuid)
	if s.State != scrub.Failed || !strings.Contains(s.Reason, "missing") {
		t.Errorf("it ended as %s: %s", s.State, s.Reason)
	}
	if s.Devices[0].Error != "" || s.Devices[0].Counters.BytesScrubbed() == 0 {
		t.Errorf("the device that is there: %+v", s.Devices[0])
	}
}

func TestReadOnlyMountIsRefusedUnlessTheScrubIsReadOnly(t *testing.T) {
	rig := btrfstest.New(t)
	pool := cleanPool(t, rig)
	uuid := uuidOf(t, pool)
	r := start(t, newDirs(t))
	r.begin(uuid, scrub.Options{Mode: scrub.Full})
	r.finish(uuid)
	must(t, pool.Remount("ro"))
	if _, err := r.Start(uuid, scrub.Options{Mode: scrub.Full}, "test"); !errors.Is(err, scrub.ErrRefused) {
		t.Errorf("a scrub of a read-only mount: %v, want ErrRefused", err)
	}
	r.begin(uuid, scrub.Options{Mode: scrub.Full, ReadOnly: true})
	if s := r.finish(uuid); s.State != scrub.Finished {
		t.Errorf("it ended as %s: %s", s.State, s.Reason)
	}
}

func TestDamagedFilesAreNamed(t *testing.T) {
	rig := btrfstest.New(t)
	pool, err := rig.NewPool(btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1"})
	must(t, err)
	must(t, pool.NewSubvolume("@home"))
	rng := rand.New(rand.NewPCG(4, 4))
	for _, name := range []string{"@home/good", "@home/repaired", "@home/lost", "many"} {
		must(t, pool.WriteFile(name, 4*mib, rng))
	}
	must(t, pool.Sync())
	must(t, pool.Snapshot("@home", "@home.old", true))
	must(t, pool.CorruptFile("@home/repaired", mib, 0))
	must(t, pool.CorruptFile("@home/lost", 2*mib, btrfstest.AllMirrors))
	// More than the kernel logs: it stops at ten in five seconds.
	for i := range int64(40) {
		must(t, pool.CorruptFile("many", i*64<<10, 0))
	}
	r := start(t, newDirs(t))
	uuid := uuidOf(t, pool)
	r.begin(uuid, scrub.Options{Mode: scrub.Full})
	s := r.finish(uuid)
	if s.Damage == nil || s.Damage.Unlocated != 0 || s.Damage.Truncated {
		t.Fatalf("the damage is %+v", s.Damage)
	}
	type hit struct {
		path      string
		offset    uint64
		corrected bool
	}
	got := make(map[hit]int)
	for _, b := range s.Damage.Errors {
		if b.DevID == 0 || b.Device == "" || b.Physical == 0 {
			t.Errorf("a block without a place: %+v", b)
		}
		for _, f := range b.Files {
			got[hit{f.Subvolume + "/" + f.Path, f.Offset, b.Corrected}]++
		}
	}
	want := map[hit]int{
		{"@home/repaired", 1 << 20, true}: 1, {"@home.old/repaired", 1 << 20, true}: 1,
		{"@home/lost", 2 << 20, false}: 2, {"@home.old/lost", 2 << 20, false}: 2, // both mirrors
	}
	for i := range uint64(40) {
		want[hit{"/many", i * 64 << 10, true}] = 1
	}
	for h, n := range want {
		if got[h] != n {
			t.Errorf("%+v is named %d times, want %d", h, got[h], n)
		}
		delete(got, h)
	}
	for h := range got {
		t.Errorf("%+v is named, and was not damaged", h)
	}
	// The job has them too, for who asks later.
	j, err := r.jobs.Get(s.JobID)
	must(t, err)
	if !strings.Contains(string(j.Result), `"path":"lost"`) {
		t.Errorf("the job's result does not name the lost file: %s", j.Result)
	}
}

func TestBtrfsProgsShowOurScrubAndKeepTheirHandsOff(t *testing.T) {
	rig := btrfstest.New(t)
	pool := cleanPool(t, rig)
	uuid := uuidOf(t, pool)
	d := newDirs(t)
	d.status = scrub.DefaultStatusDir
	t.Cleanup(func() { os.Remove(filepath.Join(d.status, "scrub.status."+pool.UUID)) })
	r := start(t, d)
	// Between two batches no scrub runs in the kernel, which btrfs-progs asks.
	shows := func(want ...string) {
		t.Helper()
		var out string
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
			var err error
			out, err = progs(t, "scrub", "status", pool.Mountpoint)
			if err != nil && strings.Contains(out, "failed to open status file: Resource temporarily unavailable") {
				continue // it does not wait for who writes the file at the moment, btrfs-progs or we
			}
			if err != nil {
				t.Fatalf("btrfs scrub status: %v\n%s", err, out)
			}
			if !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(out, w) }) {
				return
			}
		}
		t.Errorf("btrfs scrub status does not say %q:\n%s", want, out)
	}
	r.begin(uuid, slowly)
	r.until(uuid, "it runs", isRunning)
	shows("running")
	if out, _ := progs(t, "scrub", "start", "-B", pool.Mountpoint); !strings.Contains(out, "already running") {
		t.Errorf("btrfs scrub start does not say that one runs already:\n%s", out)
	}
	shows("running")
	_, err := r.Pause(uuid)
	must(t, err)
	// The socket is there until the pass has ended.
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(filepath.Join(d.status, "scrub.progress."+pool.UUID)); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the socket stays")
		}
	}
	shows("interrupted")
	_, err = r.Cancel(uuid)
	must(t, err)
	r.finish(uuid)
	shows("aborted")
	r.begin(uuid, scrub.Options{Mode: scrub.Full})
	s := r.finish(uuid)
	shows("finished", "no errors found")
	if s.State != scrub.Finished {
		t.Errorf("it ended as %s: %s", s.State, s.Reason)
	}
}

// TestLongForegroundHasTheDisksToItself reads without a pause from a pool that
// is scrubbed in mode auto: the scrub gives way, lets go of the disks, and goes
// on when the reading ends.
func TestLongForegroundHasTheDisksToItself(t *testing.T) {
	btrfstest.RequireFUSE(t)
	rig := btrfstest.New(t)
	faults, err := rig.NewFaultDir()
	must(t, err)
	var disks []*btrfstest.Disk
	var slow []*btrfstest.FaultDisk
	for range 2 {
		d, err := faults.NewDisk(gib)
		must(t, err)
		slow = append(slow, d)
		disks = append(disks, d.Disk)
	}
	pool := cleanPool(t, rig, disks...)
	before := speedMax(t, pool)
	for _, d := range slow {
		d.Slow(0, 0)
	}
	uuid := uuidOf(t, pool)
	r := start(t, newDirs(t))
	stop := readAtRandom(t, pool.Path("film"))
	r.begin(uuid, scrub.Options{Mode: scrub.Auto})
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	must(t, err)
	defer f.Close()
	quiet := func() bool {
		for devid := range uint64(2) {
			if _, err := f.ScrubProgress(devid + 1); err == nil {
				return false
			}
		}
		return true
	}
	s := r.until(uuid, "it yields, and no scrub runs in the kernel", func(s *scrub.Status) bool {
		return s.State == scrub.Yielding && s.Yielded > 6*time.Second && quiet()
	})
	if !strings.Contains(s.Reason, "loop") {
		t.Errorf("the reason is %q, and names no device", s.Reason)
	}
	registry := prometheus.NewRegistry()
	must(t, registry.Register(r.Runner))
	problems, err := testutil.GatherAndLint(registry)
	must(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	// A read takes a seek of 8 ms.
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if v := gauge(t, registry, "btrfs_scrub_foreground_read_latency_seconds"); v > 0.004 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the latency of the reads is not exported")
		}
	}
	stop()
	if s := r.finish(uuid); s.State != scrub.Finished {
		t.Errorf("it ended as %s: %s", s.State, s.Reason)
	}
	if after := speedMax(t, pool); !slices.Equal(after, before) {
		t.Errorf("scrub_speed_max is %v, and was %v", after, before)
	}
}

// readAtRandom reads 4 KiB from random places of a file, one after the other,
// past the page cache, until stop is called.
func readAtRandom(t *testing.T, path string) (stop func()) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	must(t, err)
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	rng := rand.New(rand.NewPCG(8, 8))
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := unix.Pread(fd, page, rng.Int64N(300*mib/4096)*4096); err != nil {
				t.Errorf("read the film: %v", err)
				return
			}
		}
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			close(done)
			<-ended
			_ = unix.Close(fd)
			_ = unix.Munmap(page)
		})
	}
	t.Cleanup(stop)
	return stop
}

// gauge is the value of a gauge that has one series; 0 where there is none.
func gauge(t *testing.T, g prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := g.Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return 0
}

func TestSchedulesStartWhatIsDueOnce(t *testing.T) {
	rig := btrfstest.New(t)
	pool := cleanPool(t, rig)
	uuid := uuidOf(t, pool)
	d := newDirs(t)
	var clock atomic.Int64
	clock.Store(1_800_000_000)
	now := func() time.Time { return time.Unix(clock.Load(), 0).UTC() }
	hourly := scrub.Settings{Schedules: []scrub.Schedule{{
		Name: "hourly", Pools: []string{pool.UUID}, Options: scrub.Options{Mode: scrub.Full}, Within: time.Hour,
		Due: func(last, now time.Time) bool { return now.Truncate(time.Hour).After(last) },
	}}}
	r := startWith(t, d, func(c *scrub.Config) { c.Now = now })
	scrubs := func() int { return len(r.jobs.List()) }
	look := func(want int, what string) {
		t.Helper()
		noted := func() string { b, _ := os.ReadFile(filepath.Join(d.state, "scrub-schedules.json")); return string(b) }
		// What is looked at is noted, with the time of the look.
		before := noted()
		r.SetSettings(hourly)
		if want > scrubs() || before == "" {
			for deadline := time.Now().Add(patience); scrubs() < want || noted() == ""; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s: %d scrubs, want %d", what, scrubs(), want)
				}
			}
		}
		if want > 0 { // whichever look began it
			r.finish(uuid)
		}
		if n := scrubs(); n != want {
			t.Errorf("%s: %d scrubs, want %d", what, n, want)
		}
	}
	look(0, "at the first start")
	clock.Add(3600)
	look(1, "an hour later")
	r.SetSettings(hourly)
	r.SetSettings(hourly)
	r.stop()
	clock.Add(100 * 3600) // the machine was off
	r = startWith(t, d, func(c *scrub.Config) { c.Now = now })
	look(2, "after a hundred hours")
	s, err := r.Status(uuid)
	must(t, err)
	if s.Requester != "schedule hourly" || !s.Options.Deadline.Equal(now().Add(time.Hour)) {
		t.Errorf("it was asked for by %q, with the deadline %s at %s", s.Requester, s.Options.Deadline, now())
	}
}

func TestScrubsWaitForTheirHours(t *testing.T) {
	rig := btrfstest.New(t)
	pool := cleanPool(t, rig)
	uuid := uuidOf(t, pool)
	r := start(t, newDirs(t))
	var open atomic.Bool
	r.SetSettings(scrub.Settings{Hours: hours{&open}})
	r.begin(uuid, slowly)
	s := r.until(uuid, "it waits", func(s *scrub.Status) bool { return s.State == scrub.Waiting && s.Reason != "" })
	if !strings.Contains(s.Reason, "hours") {
		t.Errorf("it waits because: %s", s.Reason)
	}
	open.Store(true)
	r.until(uuid, "it runs", isRunning)
	open.Store(false)
	r.until(uuid, "it waits again", func(s *scrub.Status) bool { return s.State == scrub.Waiting })
	r.SetSettings(scrub.Settings{OnBattery: func() bool { return true }})
	s = r.until(uuid, "it waits for mains", func(s *scrub.Status) bool { return strings.Contains(s.Reason, "battery") })
	if s.Pauses != 1 {
		t.Errorf("%d pauses, want 1", s.Pauses)
	}
}

// hours are open or not.
type hours struct{ open *atomic.Bool }

func (h hours) Open(time.Time) bool            { return h.open.Load() }
func (h hours) NextOpen(t time.Time) time.Time { return t.Add(time.Hour) }
