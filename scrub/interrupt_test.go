package scrub_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// asDaemon makes the test binary a process that runs a Runner on the state and
// status directories that it names, until it gets SIGTERM.
const asDaemon = "BTRFS_GOVERNOR_SCRUB_TEST_DAEMON"

func TestMain(m *testing.M) {
	if paths := os.Getenv(asDaemon); paths != "" {
		if err := daemon(paths); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func daemon(paths string) error {
	stateDir, statusDir, _ := strings.Cut(paths, ":")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	dir := state.NewDir(stateDir)
	jobs, err := job.Open(dir, 100)
	if err != nil {
		return err
	}
	r, err := scrub.New(scrub.Config{
		Logger: log.NewLogfmtLogger(os.Stderr), Client: btrfs.NewClient(btrfs.DefaultPaths()), Paths: btrfs.DefaultPaths(),
		State: dir, Jobs: jobs, StatusDir: statusDir, BatchBytes: 1,
	})
	if err != nil {
		return err
	}
	return r.RunReady(ctx, func() { fmt.Println("ready") })
}

// process is a daemon in a process of its own.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	log strings.Builder
}

func spawn(t *testing.T, d dirs) *process {
	t.Helper()
	program, err := os.Executable()
	must(t, err)
	p := &process{t: t, cmd: exec.Command(program)}
	p.cmd.Env = append(os.Environ(), asDaemon+"="+d.state+":"+d.status)
	p.cmd.Stderr = &p.log
	stdout, err := p.cmd.StdoutPipe()
	must(t, err)
	must(t, p.cmd.Start())
	t.Cleanup(func() { // of a test that failed before end
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("the daemon says %q: %v\n%s", line, err, p.log.String())
	}
	return p
}

func (p *process) end(s os.Signal) {
	p.t.Helper()
	must(p.t, p.cmd.Process.Signal(s))
	err := p.cmd.Wait()
	if s == syscall.SIGTERM && err != nil {
		p.t.Errorf("the daemon ended with %v:\n%s", err, p.log.String())
	}
}

func TestCountersAreExactThroughInterruptions(t *testing.T) {
	const interruptions = 20
	rig := btrfstest.New(t)
	pool, corrupt := corruptPool(t, rig)
	want := reference(t, pool)
	corrupt()
	uuid := uuidOf(t, pool)
	d := newDirs(t)
	setSpeedMax(t, pool, "777000000")
	before := speedMax(t, pool)

	r := start(t, d)
	r.begin(uuid, scrub.Options{Mode: scrub.Limit, Limit: 200 << 20})
	r.until(uuid, "it runs", func(s *scrub.Status) bool { return s.State == scrub.Running })
	rng := rand.New(rand.NewPCG(3, 9))
	kinds := map[string]int{}
	for i := range interruptions {
		// A device extent takes a second: most interruptions hit one halfway.
		longest := 700 * time.Millisecond
		if i%4 == 3 {
			longest = 2500 * time.Millisecond
		}
		pause := time.Duration(rng.Int64N(int64(longest)))
		switch kind := []string{"pause", "SIGTERM", "SIGKILL", "remount", "stop"}[i%5]; kind {
		case "pause", "remount":
			time.Sleep(pause) // a random moment is what is wanted
			if _, err := r.Pause(uuid); err != nil {
				t.Logf("interruption %d: %v", i, err)
				break
			}
			s := r.until(uuid, "it is paused", func(s *scrub.Status) bool { return s.State == scrub.Paused || !s.State.Active() })
			if s.State != scrub.Paused {
				t.Logf("interruption %d: it had just ended", i)
				break
			}
			if kind == "remount" {
				unmountWhenFree(t, pool)
				must(t, pool.Mount())
			}
			_, err := r.Resume(uuid)
			must(t, err)
			kinds[kind]++
		case "stop":
			time.Sleep(pause)
			r.stop()
			kinds[kind]++
			r = start(t, d)
		default:
			r.stop()
			p := spawn(t, d)
			time.Sleep(pause)
			if kind == "SIGTERM" {
				p.end(syscall.SIGTERM)
			} else {
				p.end(syscall.SIGKILL)
			}
			kinds[kind]++
			r = start(t, d)
		}
	}
	s := r.finish(uuid)
	if s.State != scrub.Finished {
		t.Fatalf("it ended as %s: %s", s.State, s.Reason)
	}
	t.Logf("interrupted by %v; %s", kinds, s.Reason)
	sameCounters(t, countersOf(&s), want)
	for devid, c := range reference(t, pool, "-r") {
		if c["corrected_errors"] != 0 || c["super_errors"] != 0 {
			t.Errorf("device %d still has errors that can be repaired: %v", devid, c)
		}
	}
	if after := speedMax(t, pool); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("scrub_speed_max is %v, and was %v", after, before)
	}
}

// TestAtMostOneBatchIsScrubbedAgainAfterSIGKILL has the kernel say how much was
// read: each copy once, and for each SIGKILL one batch of each device more.
func TestAtMostOneBatchIsScrubbedAgainAfterSIGKILL(t *testing.T) {
	const kills = 2
	rig := btrfstest.New(t)
	// Device extents of a tenth of a device, so that a scrub has many batches.
	pool, err := rig.NewPool(btrfstest.PoolOptions{Sizes: []int64{2 * gib, 2 * gib}, Data: "raid1", Metadata: "raid1"})
	must(t, err)
	for i := range 6 {
		must(t, pool.WriteFile(fmt.Sprint(i), 200*mib, rand.New(rand.NewPCG(1, uint64(i)))))
	}
	must(t, pool.DropCaches())
	uuid := uuidOf(t, pool)
	d := newDirs(t)
	once := bytesRead(t, pool)
	reference(t, pool, "-r")
	for i, n := range bytesRead(t, pool) {
		once[i] = n - once[i]
	}
	largest := largestDeviceExtent(t, pool)

	r := start(t, d)
	r.begin(uuid, scrub.Options{Mode: scrub.Limit, Limit: 300 << 20})
	r.stop()
	before := bytesRead(t, pool)
	for i := range kills {
		p := spawn(t, d)
		// It is killed when it is in its second batch.
		reads := bytesRead(t, pool)
		for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			now := bytesRead(t, pool)
			if now[0]-reads[0] > largest*9/8 && now[1]-reads[1] > largest*9/8 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("kill %d: the scrub does not go on\n%s", i, p.log.String())
			}
		}
		p.end(syscall.SIGKILL)
	}
	r = start(t, d)
	s := r.finish(uuid)
	if s.State != scrub.Finished {
		t.Fatalf("it ended as %s: %s", s.State, s.Reason)
	}
	for i, n := range bytesRead(t, pool) {
		read := n - before[i]
		// Beside the batches: the trees that a start reads.
		if most := once[i] + kills*(largest+16*uint64(mib)); read > most {
			t.Errorf("device %d: %d bytes were read, and at most %d with one batch of %d more for each of %d kills", i+1, read, most, largest, kills)
		}
		t.Logf("device %d: one scrub reads %d bytes; with %d kills %d, %.2f batches more for each", i+1, once[i], kills, read, float64(read-once[i])/float64(largest)/kills)
	}
}

// largestDeviceExtent returns the bytes of the largest device extent of a pool.
func largestDeviceExtent(t *testing.T, pool *btrfstest.Pool) (largest uint64) {
	t.Helper()
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	must(t, err)
	defer f.Close()
	for _, disk := range pool.Disks {
		for next := uint64(0); ; {
			extents, err := f.DeviceExtents(disk.DevID, next, 1)
			must(t, err)
			if len(extents) == 0 {
				break
			}
			for _, e := range extents {
				largest = max(largest, e.Length)
				next = e.Offset + e.Length
			}
		}
	}
	return largest
}

// bytesRead returns what has been read of each disk of a pool, as the kernel
// counts it.
func bytesRead(t testing.TB, pool *btrfstest.Pool) []uint64 {
	t.Helper()
	var all []uint64
	for _, disk := range pool.Disks {
		text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(disk.Loop), "stat"))
		must(t, err)
		fields := strings.Fields(string(text))
		if len(fields) < 3 {
			t.Fatalf("%s: %q", disk.Loop, text)
		}
		sectors, err := strconv.ParseUint(fields[2], 10, 64)
		must(t, err)
		all = append(all, sectors*512)
	}
	return all
}

// inKernel tells whether the kernel scrubs a device of a pool.
func inKernel(t testing.TB, pool *btrfstest.Pool) bool {
	t.Helper()
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	must(t, err)
	defer f.Close()
	for _, disk := range pool.Disks {
		if _, err := f.ScrubProgress(disk.DevID); err == nil {
			return true
		}
	}
	return false
}

// unmountWhenFree unmounts a pool as soon as a paused scrub lets go of it.
func unmountWhenFree(t *testing.T, pool *btrfstest.Pool) {
	t.Helper()
	must(t, pool.Unmount()) // which waits while it is busy
}
