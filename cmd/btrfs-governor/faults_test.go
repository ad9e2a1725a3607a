package main

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
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
	"unsafe"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

// The tests of faults run the real program on real pools to which something
// happens. Other tests' pools are on the machine as well: they look at their
// own only.

func newPool(t testing.TB, rig *btrfstest.Rig, options btrfstest.PoolOptions) *btrfstest.Pool {
	t.Helper()
	pool, err := rig.NewPool(options)
	must(t, err)
	return pool
}

// newSmallPool makes a raid1 pool of two small disks with a file in it.
func newSmallPool(t *testing.T, rig *btrfstest.Rig, label string) *btrfstest.Pool {
	t.Helper()
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1", Label: label})
	must(t, pool.WriteFile("file", mib, newRandom()))
	must(t, pool.Sync())
	return pool
}

func newRandom() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

// look scrapes everything and keeps what is said of one pool; failures are
// part of it, and nothing at all is an empty map.
func look(t *testing.T, p *process, uuid string) poolSeries {
	t.Helper()
	s, err := tryLook(p, uuid)
	must(t, err)
	return s
}

// tryLook may be called from any goroutine.
func tryLook(p *process, uuid string) (poolSeries, error) {
	status, body, err := request(p.client, http.MethodGet, "http://"+p.addrs[0]+"/metrics")
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("scrape: status %d: %s", status, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("scrape: %w", err)
	}
	series := make(poolSeries)
	for name, family := range families {
		for _, metric := range family.GetMetric() {
			labels, ours := []string{}, false
			for _, l := range metric.GetLabel() {
				if l.GetName() == "uuid" {
					ours = l.GetValue() == uuid
					continue
				}
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			if !ours {
				continue
			}
			key := name
			if len(labels) > 0 {
				key += "{" + strings.Join(labels, ",") + "}"
			}
			if _, twice := series[key]; twice {
				return nil, fmt.Errorf("pool %s: %s is there twice", uuid, key)
			}
			series[key] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	return series, nil
}

// failed lists the collectors without success.
func (s poolSeries) failed() []string {
	var names []string
	for key, value := range s {
		if rest, ok := strings.CutPrefix(key, `btrfs_scrape_collector_success{collector="`); ok && value != 1 {
			names = append(names, strings.TrimSuffix(rest, `"}`))
		}
	}
	slices.Sort(names)
	return names
}

// incomplete says what is wrong with the series of a pool that can be read in
// full; nothing is.
func (s poolSeries) incomplete() string {
	if failed := s.failed(); len(failed) > 0 {
		return fmt.Sprintf("without success: %q", failed)
	}
	for _, name := range []string{
		"btrfs_pool_free_bytes", "btrfs_pool_size_bytes", "btrfs_pool_used_bytes", "btrfs_pool_devices",
		"btrfs_pool_device_failures_tolerated", "btrfs_metadata_devices", `btrfs_scrape_collector_success{collector="read"}`,
	} {
		if _, ok := s[name]; !ok {
			return "no " + name
		}
	}
	if s["btrfs_pool_free_exact"] != 1 {
		return "free space is not exact"
	}
	return ""
}

func (s poolSeries) checkComplete(t *testing.T) {
	t.Helper()
	if problem := s.incomplete(); problem != "" {
		t.Errorf("the pool is not complete: %s", problem)
	}
}

// check compares series with what they should be.
func (s poolSeries) check(t *testing.T, want map[string]float64) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if got, ok := s[key]; !ok || got != want[key] {
			t.Errorf("%s is %v (there: %t), want %v", key, got, ok, want[key])
		}
	}
}

// checkFree compares the free space with what the kernel gives.
func checkFree(t *testing.T, s poolSeries, pool *btrfstest.Pool) {
	t.Helper()
	free := s.bytes(t, "btrfs_pool_free_bytes")
	filled, err := pool.FillFallocate()
	must(t, err)
	if diff := free - filled; diff > mib || diff < -mib {
		t.Errorf("free is %d bytes, and the kernel gives %d: %d too many", free, filled, diff)
	}
}

// eventuallyComplete waits until a pool is exported in full.
func eventuallyComplete(t *testing.T, p *process, uuid string) {
	t.Helper()
	eventually(t, "pool "+uuid+" is complete", func() bool { return look(t, p, uuid).incomplete() == "" })
}

// label returns the value of a label of btrfs_pool_info.
func (s poolSeries) label(t *testing.T, name string) string {
	t.Helper()
	for key := range s {
		labels, ok := strings.CutPrefix(key, "btrfs_pool_info{")
		if !ok {
			continue
		}
		_, rest, ok := strings.Cut(","+labels, ","+name+"=")
		if !ok {
			break
		}
		quoted, err := strconv.QuotedPrefix(rest)
		must(t, err)
		value, err := strconv.Unquote(quoted)
		must(t, err)
		return value
	}
	t.Errorf("there is no btrfs_pool_info with %s", name)
	return ""
}

// through has another program start serve: one that changes what it may do, or
// what it sees, and then becomes it.
func through(t *testing.T, command ...string) option {
	t.Helper()
	program, err := exec.LookPath(command[0])
	must(t, err)
	return func(cmd *exec.Cmd) {
		cmd.Args = slices.Concat(command, []string{cmd.Path}, cmd.Args[1:])
		cmd.Path = program
	}
}

// withTimeout is the configuration of a short deadline.
func withTimeout(t *testing.T, timeout time.Duration) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yml")
	writeFile(t, path, fmt.Sprintf("scrape: {timeout: %s}\n", timeout))
	return "--config.file=" + path
}

// needsChunks tells the series that cannot be had without CAP_SYS_ADMIN.
func needsChunks(key string) bool {
	return slices.ContainsFunc([]string{
		"btrfs_block_groups{", "btrfs_device_allocated_bytes{", "btrfs_metadata_", "btrfs_device_metadata_share_ratio{",
		"btrfs_pool_device_failures_tolerated", "btrfs_pool_worst_pair_loss_bytes{", "btrfs_pool_lost_bytes{",
	}, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}

func TestUnprivilegedSeriesAreTheSame(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{3 * gib, 2 * gib, gib, gib}, Data: "raid1", Metadata: "raid1", Label: "plain"})
	must(t, pool.Allocate("file", gib))
	locked := newSmallPool(t, rig, "locked")
	must(t, os.Chown(locked.Mountpoint, 65534, 65534))
	must(t, os.Chmod(locked.Mountpoint, 0o700))
	must(t, pool.Sync())

	privileged := startServe(t, 1, machineArgs())
	unprivileged := startServe(t, 1, machineArgs(), through(t, "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"))
	with, without := look(t, privileged, pool.UUID), look(t, unprivileged, pool.UUID)
	with.checkComplete(t)
	for key := range with {
		if _, ok := without[key]; ok == needsChunks(key) {
			t.Errorf("%s: there without privileges: %t", key, ok)
		}
	}
	for key, value := range without {
		if _, ok := with[key]; !ok {
			t.Errorf("%s is there only without privileges", key)
		}
		if strings.HasSuffix(key, "_size_bytes") && value != with[key] {
			t.Errorf("%s is %v without privileges and %v with them", key, value, with[key])
		}
	}
	without.check(t, map[string]float64{"btrfs_pool_free_exact": 0})
	if got, want := without.failed(), []string{"allocation", "loss", "metadata"}; !slices.Equal(got, want) {
		t.Errorf("without privileges %q have no success, want %q", got, want)
	}

	// A mount that it may not even enter: what sysfs tells.
	look(t, privileged, locked.UUID).checkComplete(t)
	s := look(t, unprivileged, locked.UUID)
	s.check(t, map[string]float64{
		"btrfs_pool_devices": 2, `btrfs_device_missing{devid="1"}`: 0, `btrfs_device_writeable{devid="2"}`: 1,
		`btrfs_scrape_collector_success{collector="read"}`: 0,
	})
	if got := s.label(t, "label"); got != "locked" {
		t.Errorf("label %q", got)
	}
	if n := strings.Count(unprivileged.logged(), "permission denied"); n == 0 {
		t.Error("the log does not say why")
	}
	look(t, unprivileged, locked.UUID)
	if n := strings.Count(unprivileged.logged(), locked.UUID); n != strings.Count(unprivileged.logged(), "in part only") || n > 2 {
		t.Errorf("it is logged %d times", n)
	}
}

func TestMissingDevice(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{4 * gib, 3 * gib, 2 * gib}, Data: "raid1", Metadata: "raid1"})
	must(t, pool.Allocate("file", gib))
	serve := startServe(t, 1, machineArgs())
	before := look(t, serve, pool.UUID)
	before.checkComplete(t)
	before.check(t, map[string]float64{"btrfs_pool_devices_missing": 0, "btrfs_pool_device_failures_tolerated": 1})

	must(t, pool.Detach(1))
	if s := look(t, serve, pool.UUID); len(s) > 0 {
		t.Errorf("unmounted there still are %v", s)
	}
	must(t, pool.MountDegraded(false))
	s := look(t, serve, pool.UUID)
	s.checkComplete(t)
	s.check(t, map[string]float64{
		"btrfs_pool_devices":                     3,
		"btrfs_pool_devices_missing":             1,
		`btrfs_device_missing{devid="1"}`:        1,
		`btrfs_device_missing{devid="2"}`:        0,
		`btrfs_device_missing{devid="3"}`:        0,
		`btrfs_device_writeable{devid="1"}`:      0,
		"btrfs_pool_size_bytes":                  float64(5 * gib),
		"btrfs_pool_device_failures_tolerated":   0,
		`btrfs_device_size_bytes{devid="2"}`:     float64(3 * gib),
		`btrfs_device_stranded_bytes{devid="3"}`: 0,

		`btrfs_pool_lost_bytes{block_group_type="data"}`: 0,
	})
	checkFree(t, s, pool)
}

func newFaultDisk(t *testing.T, faults *btrfstest.FaultDir, size int64) *btrfstest.FaultDisk {
	t.Helper()
	disk, err := faults.NewDisk(size)
	must(t, err)
	return disk
}

func newFaultDir(t *testing.T) (*btrfstest.Rig, *btrfstest.FaultDir) {
	t.Helper()
	btrfstest.RequireFUSE(t)
	rig := btrfstest.New(t)
	faults, err := rig.NewFaultDir()
	must(t, err)
	return rig, faults
}

// newDeepPool makes a pool on fault disks whose chunk tree has more than the
// root, which the kernel never lets go: it has to read it again after its
// caches were dropped.
func newDeepPool(t *testing.T, rig *btrfstest.Rig, profile string, disks ...*btrfstest.FaultDisk) *btrfstest.Pool {
	t.Helper()
	options := btrfstest.PoolOptions{Data: profile, Metadata: profile, MkfsArgs: []string{"-n", "4096"}}
	for _, d := range disks {
		options.Disks = append(options.Disks, d.Disk)
	}
	pool := newPool(t, rig, options)
	must(t, pool.Allocate("chunks", 60*gib))
	must(t, pool.Sync())
	return pool
}

// forgetChunks makes the next scrape walk the chunk tree, and the kernel read
// it from the disk.
func forgetChunks(t *testing.T, pool *btrfstest.Pool, n int) {
	t.Helper()
	must(t, pool.Allocate(fmt.Sprintf("more-%d", n), 2*gib))
	must(t, pool.DropCaches())
}

func TestHungDiskCostsItsPoolOnly(t *testing.T) {
	rig, faults := newFaultDir(t)
	disk := newFaultDisk(t, faults, 200*gib)
	pool := newDeepPool(t, rig, "single", disk)
	other := newSmallPool(t, rig, "other")
	const timeout = 5 * time.Second
	serve := startServe(t, 1, append(machineArgs(), withTimeout(t, timeout)))
	t.Cleanup(disk.Release) // before serve is ended, which would wait for it
	look(t, serve, pool.UUID).checkComplete(t)
	goroutines := serve.number(t, "go_goroutines")

	// Whoever else looks at the pools of the machine has the kernel read the chunk
	// tree again: then the scrape does not need the disk.
	n := 0
	eventually(t, "a scrape has to read from the disk", func() bool {
		n++
		forgetChunks(t, pool, n)
		disk.Hang()
		start := time.Now()
		s := look(t, serve, pool.UUID)
		if took := time.Since(start); took > timeout+5*time.Second {
			t.Errorf("a scrape took %s", took)
		}
		if disk.Waiting() > 0 && s[`btrfs_scrape_collector_success{collector="read"}`] == 0 {
			checkNothingRead(t, s)
			return true
		}
		disk.Release()
		eventuallyComplete(t, serve, pool.UUID)
		return false
	})
	logged := strings.Count(serve.logged(), pool.UUID)

	start := time.Now()
	const scrapes = 20
	for range scrapes {
		checkNothingRead(t, look(t, serve, pool.UUID))
		look(t, serve, other.UUID).checkComplete(t)
		if status, _ := serve.do(http.MethodGet, "/-/healthy"); status != http.StatusOK {
			t.Errorf("/-/healthy answers %d", status)
		}
	}
	// Had each waited for the deadline again, it would be 40 times that.
	if took := time.Since(start); took > 10*timeout {
		t.Errorf("%d scrapes took %s", 2*scrapes, took)
	}
	eventually(t, "no more than one goroutine is left behind", func() bool { return serve.number(t, "go_goroutines") <= goroutines+1 })
	if n := strings.Count(serve.logged(), pool.UUID); logged == 0 || n != logged {
		t.Errorf("the pool is in the log %d times, and %d times after the first scrape", n, logged)
	}

	disk.Release()
	eventuallyComplete(t, serve, pool.UUID)
	eventually(t, "the goroutine is gone", func() bool { return serve.number(t, "go_goroutines") <= goroutines })
}

// number returns the value of a series without labels.
func (p *process) number(t *testing.T, name string) float64 {
	t.Helper()
	value, err := strconv.ParseFloat(p.metric(name), 64)
	must(t, err)
	return value
}

// checkNothingRead wants a pool that could not be read: no success anywhere,
// and no series but those that say so.
func checkNothingRead(t *testing.T, s poolSeries) {
	t.Helper()
	if s[`btrfs_scrape_collector_success{collector="read"}`] != 0 || len(s.failed()) < 2 {
		t.Errorf("of a pool that cannot be read there are %v", s)
	}
	for key := range s {
		if !strings.HasPrefix(key, "btrfs_scrape_collector_") {
			t.Errorf("of a pool that cannot be read there is %s", key)
		}
	}
}

func TestDiskThatHangsDuringACommit(t *testing.T) {
	rig, faults := newFaultDir(t)
	disk := newFaultDisk(t, faults, gib)
	pool := newPool(t, rig, btrfstest.PoolOptions{Disks: []*btrfstest.Disk{disk.Disk}, Data: "single", Metadata: "single"})
	other := newSmallPool(t, rig, "other")
	const timeout = time.Second
	serve := startServe(t, 1, append(machineArgs(), withTimeout(t, timeout)))
	t.Cleanup(disk.Release)
	look(t, serve, pool.UUID).checkComplete(t)

	disk.Hang()
	written := make(chan error, 1)
	go func() { written <- pool.WriteFile("stuck", mib, newRandom()) }()
	eventually(t, "the commit waits for the disk", func() bool { return disk.Waiting() > 0 })
	for range 5 {
		start := time.Now()
		// The kernel has all that a scrape asks for in memory. Should it not,
		// the pool is missing; never is it half there.
		if s := look(t, serve, pool.UUID); s.incomplete() != "" {
			checkNothingRead(t, s)
		}
		look(t, serve, other.UUID).checkComplete(t)
		if took := time.Since(start); took > timeout+5*time.Second {
			t.Errorf("two scrapes took %s", took)
		}
	}
	disk.Release()
	must(t, <-written)
	eventuallyComplete(t, serve, pool.UUID)
}

func TestReadErrorsAreCounted(t *testing.T) {
	rig, faults := newFaultDir(t)
	first, second := newFaultDisk(t, faults, 200*gib), newFaultDisk(t, faults, 200*gib)
	pool := newDeepPool(t, rig, "raid1", first, second)
	serve := startServe(t, 1, machineArgs())
	must(t, pool.WriteFile("file", 4*mib, newRandom()))
	const readErrors = `btrfs_device_errors_total{devid="2",type="read"}`
	s := look(t, serve, pool.UUID)
	s.checkComplete(t)
	s.check(t, map[string]float64{readErrors: 0, `btrfs_device_errors_total{devid="1",type="read"}`: 0})

	second.FailReads(0, -1)
	// Which copy is read goes by the process; the other one makes up for it.
	eventually(t, "a read error is counted", func() bool {
		must(t, pool.DropCaches())
		must(t, exec.Command("dd", "if="+pool.Path("file"), "of=/dev/null", "iflag=direct", "bs=1M", "status=none").Run())
		s := look(t, serve, pool.UUID)
		s.checkComplete(t)
		return s[readErrors] > 0
	})
	s = look(t, serve, pool.UUID)
	s.check(t, map[string]float64{`btrfs_device_errors_total{devid="1",type="read"}`: 0})
	forgetChunks(t, pool, 1)
	look(t, serve, pool.UUID).checkComplete(t)

	// No copy of the chunk tree can be read. Whoever else looks at the pools of the
	// machine may have had the kernel read it meanwhile.
	for n := 2; ; n++ {
		forgetChunks(t, pool, n)
		first.FailReads(0, -1)
		s = look(t, serve, pool.UUID)
		got, want := s.failed(), []string{"allocation", "loss", "metadata", "read"}
		if slices.Equal(got, want) {
			break
		}
		const tries = 20
		if n > tries || len(got) > 0 {
			t.Fatalf("%q have no success, want %q", got, want)
		}
		first.Heal()
	}
	s.check(t, map[string]float64{
		"btrfs_pool_devices": 2, "btrfs_pool_size_bytes": float64(400 * gib), "btrfs_pool_free_exact": 0,
	})
	if !strings.Contains(serve.logged(), "input/output error") {
		t.Error("the log does not say why")
	}
	first.Heal()
	second.Heal()
	eventuallyComplete(t, serve, pool.UUID)
}

// checkLabel wants that btrfs_pool_info, if it is there, is of the pool with a
// label.
func (s poolSeries) checkLabel(label string) error {
	for key := range s {
		if strings.HasPrefix(key, "btrfs_pool_info{") && !strings.Contains(key, fmt.Sprintf("label=%q", label)) {
			return fmt.Errorf("pool %s: there is %s", label, key)
		}
	}
	return nil
}

// scrapeUntilStopped calls scrape again and again in the background.
func scrapeUntilStopped(t *testing.T, scrape func() error) (stop func()) {
	t.Helper()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := scrape(); err != nil {
				t.Error(err)
			}
		}
	})
	var once sync.Once
	stop = func() {
		once.Do(func() {
			close(done)
			wg.Wait()
		})
	}
	t.Cleanup(stop)
	return stop
}

// A pool that comes and goes is there in full or not at all; while it comes or
// goes there may be less of it, but nothing that is wrong.
func TestPoolThatIsUnmountedDuringScrapes(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newSmallPool(t, rig, "comes and goes")
	serve := startServe(t, 1, machineArgs())
	truth := look(t, serve, pool.UUID)
	truth.checkComplete(t)
	stays := []string{
		"btrfs_pool_size_bytes", "btrfs_pool_devices", "btrfs_pool_devices_missing", "btrfs_pool_used_bytes", "btrfs_pool_free_exact",
		`btrfs_device_size_bytes{devid="1"}`, `btrfs_device_size_bytes{devid="2"}`, "btrfs_pool_device_failures_tolerated",
	}

	var there, gone, partly atomic.Int64
	stop := scrapeUntilStopped(t, func() error {
		s, err := tryLook(serve, pool.UUID)
		if err != nil {
			return err
		}
		switch {
		case len(s) == 0:
			gone.Add(1)
		case s.incomplete() == "":
			there.Add(1)
		default:
			partly.Add(1)
		}
		for _, key := range stays {
			if value, ok := s[key]; ok && value != truth[key] {
				t.Errorf("%s is %v, want %v", key, value, truth[key])
			}
		}
		return s.checkLabel("comes and goes")
	})
	// A scrape may see any moment in between; each state it sees in the end.
	another := func(n *atomic.Int64) {
		t.Helper()
		before := n.Load()
		eventually(t, "a scrape sees it", func() bool { return n.Load() > before })
	}
	for range 25 {
		must(t, pool.Unmount())
		must(t, pool.Mount())
		must(t, pool.Unmount())
		another(&gone)
		must(t, pool.Mount())
		another(&there)
	}
	stop()
	t.Logf("of the scrapes %d had all of it, %d nothing, %d a part", there.Load(), gone.Load(), partly.Load())
	look(t, serve, pool.UUID).checkComplete(t)
	if log := serve.logged(); strings.Contains(log, pool.UUID) {
		t.Errorf("the log tells of it:\n%s", log)
	}
}

// mountOver mounts a filesystem somewhere in the rig, which takes it away in
// the end.
func mountOver(t *testing.T, source, target, fstype, data string) {
	t.Helper()
	must(t, unix.Mount(source, target, fstype, 0, data))
}

// checkFromSysfs wants what sysfs tells of a pool and no figure that it does
// not.
func checkFromSysfs(t *testing.T, s poolSeries, label string) {
	t.Helper()
	s.check(t, map[string]float64{
		"btrfs_pool_devices": 2, "btrfs_pool_devices_missing": 0, `btrfs_device_missing{devid="1"}`: 0,
		`btrfs_scrape_collector_success{collector="read"}`:     1,
		`btrfs_scrape_collector_success{collector="error"}`:    1,
		`btrfs_scrape_collector_success{collector="capacity"}`: 0,
	})
	if got := s.label(t, "label"); got != label {
		t.Errorf("label %q, want %q", got, label)
	}
	if got := s.label(t, "mountpoint"); got != "" {
		t.Errorf("mount point %q, want none", got)
	}
	for _, key := range []string{"btrfs_pool_size_bytes", "btrfs_pool_free_bytes", "btrfs_pool_statfs_free_bytes", `btrfs_device_size_bytes{devid="1"}`} {
		if v, ok := s[key]; ok {
			t.Errorf("%s is %v, want none", key, v)
		}
	}
}

func TestPoolHiddenBeneathAnotherMount(t *testing.T) {
	rig := btrfstest.New(t)
	hidden := newSmallPool(t, rig, "hidden")
	over := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{3 * gib}, Data: "single", Metadata: "dup", Label: "over"})
	serve := startServe(t, 1, machineArgs())
	look(t, serve, hidden.UUID).checkComplete(t)

	for _, tt := range []struct {
		name  string
		mount func(target string)
	}{
		{"tmpfs", func(target string) { mountOver(t, "none", target, "tmpfs", "") }},
		{"another pool", func(target string) { mountOver(t, over.Disks[0].Loop, target, "btrfs", "") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.mount(hidden.Mountpoint)
			checkFromSysfs(t, look(t, serve, hidden.UUID), "hidden")
			s := look(t, serve, over.UUID)
			s.checkComplete(t)
			s.check(t, map[string]float64{"btrfs_pool_devices": 1, "btrfs_pool_size_bytes": float64(3 * gib)})
			unmount(t, hidden.Mountpoint)
			look(t, serve, hidden.UUID).checkComplete(t)

			// Another mount of the pool is there.
			elsewhere := filepath.Join(rig.Dir(), "mnt", "elsewhere, and longer")
			must(t, os.MkdirAll(elsewhere, 0o755))
			must(t, unix.Mount(hidden.Mountpoint, elsewhere, "", unix.MS_BIND, ""))
			tt.mount(hidden.Mountpoint)
			s = look(t, serve, hidden.UUID)
			s.checkComplete(t)
			if got := s.label(t, "mountpoint"); got != elsewhere {
				t.Errorf("read on %q, want %q", got, elsewhere)
			}
			unmount(t, hidden.Mountpoint)
			unmount(t, elsewhere)
		})
	}
	if strings.Contains(serve.logged(), hidden.UUID) {
		t.Error("a hidden pool is logged as a fault")
	}
}

// unmount waits until nobody has the filesystem open: others look at the pools of the
// machine too.
func unmount(t *testing.T, target string) {
	t.Helper()
	eventually(t, target+" can be unmounted", func() bool {
		err := unix.Unmount(target, 0)
		if err != nil && !errors.Is(err, unix.EBUSY) {
			t.Fatalf("unmount %s: %v", target, err)
		}
		return err == nil
	})
}

// The two change places while they are scraped: no figure ever stands under
// the wrong UUID.
func TestPoolsThatChangePlacesDuringScrapes(t *testing.T) {
	rig := btrfstest.New(t)
	below := newSmallPool(t, rig, "below")
	above := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{3 * gib}, Data: "single", Metadata: "dup", Label: "above", NoMount: true})
	serve := startServe(t, 1, machineArgs())
	var scrapes atomic.Int64
	stop := scrapeUntilStopped(t, func() error {
		for _, want := range []struct {
			uuid, label   string
			devices, size float64
		}{{below.UUID, "below", 2, float64(2 * gib)}, {above.UUID, "above", 1, float64(3 * gib)}} {
			s, err := tryLook(serve, want.uuid)
			if err != nil {
				return err
			}
			for key, value := range map[string]float64{"btrfs_pool_devices": want.devices, "btrfs_pool_size_bytes": want.size} {
				if got, ok := s[key]; ok && got != value {
					t.Errorf("%s: %s is %v, want %v", want.label, key, got, value)
				}
			}
			if err := s.checkLabel(want.label); err != nil {
				return err
			}
		}
		scrapes.Add(1)
		return nil
	})
	for range 25 {
		must(t, unix.Mount(above.Disks[0].Loop, below.Mountpoint, "btrfs", 0, ""))
		before := scrapes.Load()
		eventually(t, "a scrape sees it", func() bool { return scrapes.Load() > before })
		unmount(t, below.Mountpoint)
	}
	stop()
}

// setLabel sets a label by BTRFS_IOC_SET_FSLABEL, which takes any; btrfs-progs
// and sysfs do not.
func setLabel(t *testing.T, pool *btrfstest.Pool, label string) {
	t.Helper()
	const setFSLabel = 0x41009432
	var text [256]byte
	copy(text[:], label)
	dir, err := os.Open(pool.Mountpoint)
	must(t, err)
	defer dir.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), setFSLabel, uintptr(unsafe.Pointer(&text))); errno != 0 {
		t.Fatalf("set the label %q: %v", label, errno)
	}
}

func TestLabelsOfAllKinds(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newSmallPool(t, rig, "from mkfs \"ü\"")
	serve := startServe(t, 1, machineArgs())
	if got := look(t, serve, pool.UUID).label(t, "label"); got != "from mkfs \"ü\"" {
		t.Errorf("label %q", got)
	}
	for label, want := range map[string]string{
		`quotes " and ' and \"`:     `quotes " and ' and \"`,
		"two\nlines\n":              "two\nlines\n",
		"\n":                        "\n",
		`back\slash \n \`:           `back\slash \n \`,
		"日本語 ü 🜚":                   "日本語 ü 🜚",
		"no text \xff\xfe":          "no text \ufffd",
		`},uuid="x"} 1`:             `},uuid="x"} 1`,
		strings.Repeat("long ", 51): strings.Repeat("long ", 51),
		" leading, tab\t, carriage\r, nbsp\u00a0": " leading, tab\t, carriage\r, nbsp\u00a0",
		"": "",
	} {
		setLabel(t, pool, label)
		s := look(t, serve, pool.UUID)
		s.checkComplete(t)
		if got := s.label(t, "label"); got != want {
			t.Errorf("label %q, want %q", got, want)
		}
	}
}

func TestMetadataUUIDThatIsAnother(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1", Label: "renamed", NoMount: true})
	runProgram(t, "btrfstune", "-f", "-m", pool.Disks[0].Loop)
	must(t, pool.Mount())
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	must(t, err)
	uuid := f.UUID().String()
	must(t, f.Close())
	if uuid == pool.UUID {
		t.Fatal("btrfstune changed nothing")
	}
	if _, err := os.Stat("/sys/fs/btrfs/" + uuid); err != nil {
		t.Error(err)
	}
	serve := startServe(t, 1, machineArgs())
	look(t, serve, uuid).checkComplete(t)
	if s := look(t, serve, pool.UUID); len(s) > 0 {
		t.Errorf("under the UUID of the metadata there are %v", s)
	}
	old := pool.UUID
	pool.UUID = uuid
	p, err := readPool(pool)
	must(t, err)
	if p.MetadataUUID.String() != old {
		t.Errorf("metadata UUID %s, want %s", p.MetadataUUID, old)
	}
}

func runProgram(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

func TestMixedBlockGroups(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1", Mixed: true})
	must(t, pool.Allocate("file", 100*mib))
	must(t, pool.Sync())
	serve := startServe(t, 1, machineArgs())
	s := look(t, serve, pool.UUID)
	s.checkComplete(t)
	for key := range s {
		if strings.Contains(key, `block_group_type="data"`) || strings.Contains(key, `block_group_type="metadata"`) {
			t.Errorf("a pool of mixed block groups has %s", key)
		}
	}
	if got := s.label(t, "data_profile") + " " + s.label(t, "metadata_profile"); got != "raid1 raid1" {
		t.Errorf("profiles %s", got)
	}
	if size := s.bytes(t, `btrfs_allocation_size_bytes{block_group_type="mixed",profile="raid1"}`); size < 100*mib {
		t.Errorf("the block groups have %d bytes", size)
	}
	// Metadata takes its share, and the global reserve.
	free := s.bytes(t, "btrfs_pool_free_bytes")
	filled, err := pool.FillFallocate()
	must(t, err)
	if diff := free - filled; diff > 8*mib || diff < -mib {
		t.Errorf("free is %d bytes, and the kernel gives %d: %d too many", free, filled, diff)
	}
}

func TestSeedDevice(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{2 * gib}, Data: "single", Metadata: "single", Label: "sprout"})
	must(t, pool.WriteFile("file", 10*mib, newRandom()))
	must(t, pool.Unmount())
	runProgram(t, "btrfstune", "-S", "1", pool.Disks[0].Loop)
	must(t, pool.Mount("ro"))
	serve := startServe(t, 1, machineArgs())
	s := look(t, serve, pool.UUID)
	s.checkComplete(t)
	s.check(t, map[string]float64{
		"btrfs_pool_devices": 1, "btrfs_pool_read_only": 1, `btrfs_device_writeable{devid="1"}`: 0, "btrfs_pool_free_bytes": 0,
	})

	seed := pool.UUID
	_, err := pool.AddDisk(3 * gib)
	must(t, err)
	must(t, pool.Remount("rw"))
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	must(t, err)
	pool.UUID = f.UUID().String()
	must(t, f.Close())
	must(t, pool.Sync())
	if pool.UUID == seed {
		t.Fatal("the sprouted filesystem has the UUID of the seed")
	}
	s = look(t, serve, pool.UUID)
	s.checkComplete(t)
	s.check(t, map[string]float64{
		"btrfs_pool_devices":                 2,
		"btrfs_pool_devices_missing":         0,
		"btrfs_pool_read_only":               0,
		`btrfs_device_writeable{devid="1"}`:  0,
		`btrfs_device_writeable{devid="2"}`:  1,
		`btrfs_device_missing{devid="1"}`:    0,
		`btrfs_device_size_bytes{devid="1"}`: float64(2 * gib),
		`btrfs_device_size_bytes{devid="2"}`: float64(3 * gib),
	})
	if s := look(t, serve, seed); len(s) > 0 {
		t.Errorf("the seed is still there: %v", s)
	}
	checkFree(t, s, pool)
}

func TestReplaceUnderWay(t *testing.T) {
	rig, faults := newFaultDir(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{2 * gib, 2 * gib}, Data: "raid1", Metadata: "raid1"})
	must(t, pool.WriteFile("file", 64*mib, newRandom()))
	serve := startServe(t, 1, machineArgs())
	before := look(t, serve, pool.UUID)
	before.checkComplete(t)

	target := newFaultDisk(t, faults, 3*gib)
	target.Slow(time.Millisecond, 4*mib)
	must(t, pool.Replace(2, target.Disk, false))
	eventually(t, "the replace runs", func() bool {
		operation, err := pool.Sysfs("exclusive_operation")
		must(t, err)
		_, err = pool.Sysfs("devinfo/0/replace_target")
		return operation == "device replace" && err == nil
	})
	s := look(t, serve, pool.UUID)
	s.checkComplete(t)
	s.check(t, map[string]float64{
		`btrfs_pool_exclusive_operation{operation="device_replace"}`: 1,
		`btrfs_pool_exclusive_operation{operation="balance"}`:        0,
		"btrfs_pool_devices":                   2,
		"btrfs_pool_devices_missing":           0,
		"btrfs_pool_size_bytes":                float64(4 * gib),
		"btrfs_pool_device_failures_tolerated": 1,
		"btrfs_metadata_devices":               2,
		`btrfs_device_missing{devid="0"}`:      0,
	})
	if operation, err := pool.Sysfs("exclusive_operation"); err != nil || operation != "device replace" {
		t.Errorf("the replace did not last: %q %v", operation, err)
	}
	target.Fast()
	must(t, pool.WaitReplace())
	must(t, pool.Sync())
	s = look(t, serve, pool.UUID)
	s.checkComplete(t)
	s.check(t, map[string]float64{
		`btrfs_pool_exclusive_operation{operation="device_replace"}`: 0,
		"btrfs_pool_devices": 2,
	})
	for key := range s {
		if strings.Contains(key, `devid="0"`) {
			t.Errorf("after the replace there is %s", key)
		}
	}
	checkFree(t, s, pool)
}

func TestHundredScrapesOfAPoolAtOnce(t *testing.T) {
	pool := newSmallPool(t, btrfstest.New(t), "busy")
	serve := startServe(t, 1, machineArgs())
	want := look(t, serve, pool.UUID)
	want.checkComplete(t)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			s, err := tryLook(serve, pool.UUID)
			if err != nil {
				t.Error(err)
				return
			}
			if problem := s.incomplete(); problem != "" {
				t.Error(problem)
			}
			if len(s) != len(want) {
				t.Errorf("%d series, want %d", len(s), len(want))
			}
		})
	}
	wg.Wait()
}

// withoutRace has the program built anew, without the race detector that the
// test may have: it would take most of the time.
func withoutRace(t *testing.T) option {
	t.Helper()
	program := filepath.Join(t.TempDir(), programName)
	build := exec.Command("go", "build", "-buildvcs=false", "-o", program, ".")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return func(cmd *exec.Cmd) { cmd.Path = program }
}

func TestScrapesLeaveNothingOpen(t *testing.T) {
	const scrapes, clients = 10_000, 4
	pool := newSmallPool(t, btrfstest.New(t), "often")
	serve := startServe(t, 1, machineArgs(), withoutRace(t))
	serve.client.Transport = &http.Transport{MaxIdleConnsPerHost: clients, DisableCompression: true}
	scrape := func(times int) {
		t.Helper()
		want := `btrfs_pool_free_bytes{uuid="` + pool.UUID + `"}`
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for range times / clients {
					status, body, err := request(serve.client, http.MethodGet, "http://"+serve.addrs[0]+"/metrics")
					if err != nil || status != http.StatusOK || !strings.Contains(body, want) {
						t.Errorf("status %d, %v: %s", status, err, body)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	// open counts the goroutines and files of the process, with one connection.
	open := func() (goroutines float64, files int) {
		t.Helper()
		serve.client.CloseIdleConnections()
		goroutines = serve.number(t, "go_goroutines")
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", serve.cmd.Process.Pid))
		must(t, err)
		return goroutines, len(fds)
	}
	scrape(clients)
	// The other connections take a moment to close.
	goroutines, files := open()
	eventually(t, "it has come to rest", func() bool {
		g, f := open()
		resting := g == goroutines && f == files
		goroutines, files = g, f
		return resting
	})
	scrape(scrapes)
	eventually(t, "no file and no goroutine more than before", func() bool {
		g, f := open()
		return g <= goroutines && f <= files
	})
}

// A container sees the host's /proc, /sys and / below a directory, and the
// pool nowhere else.
func TestHostPathsInAContainer(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newSmallPool(t, rig, "on the host")
	host := filepath.Join(rig.Dir(), "host")
	proc := filepath.Join(rig.Dir(), "hostproc")
	must(t, os.Mkdir(host, 0o755))
	must(t, os.Mkdir(proc, 0o755))
	// The outer shell plays the host, with a process 1 of its own; the inner
	// one is the container, in which the pool is only below /host.
	const script = `
mount -t proc proc "$PROC" &&
exec_in_container() { exec unshare --mount --propagation private sh -c '
	mount --rbind / "$HOST" &&
	umount "$POOL" &&
	exec "$@"' container "$@"; } &&
(exec_in_container "$@") &
wait $!`
	serve := startServe(t, 1, append(machineArgs(), "--path.rootfs="+host, "--path.procfs="+proc, "--path.sysfs="+host+"/sys"),
		withEnv("HOST="+host, "PROC="+proc, "POOL="+pool.Mountpoint),
		through(t, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c", script, "host"))
	s := look(t, serve, pool.UUID)
	s.checkComplete(t)
	if got := s.label(t, "mountpoint"); got != pool.Mountpoint {
		t.Errorf("mount point %q, want %q as the host sees it", got, pool.Mountpoint)
	}
	s.check(t, map[string]float64{"btrfs_pool_devices": 2, "btrfs_pool_size_bytes": float64(2 * gib)})
}

func TestPoolOfAnotherMountNamespace(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1", Label: "elsewhere", NoMount: true})
	for _, disk := range pool.Disks {
		runProgram(t, "btrfs", "device", "scan", disk.Loop)
	}
	ready, err := os.CreateTemp(rig.Dir(), "ready")
	must(t, err)
	must(t, ready.Close())
	must(t, os.Remove(ready.Name()))
	holder := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c",
		`mount -t btrfs "$0" "$1" && touch "$2" && read line`, pool.Disks[0].Loop, pool.Mountpoint, ready.Name())
	keep, err := holder.StdinPipe()
	must(t, err)
	must(t, holder.Start())
	ended := false
	end := func() {
		if !ended {
			ended = true
			keep.Close()
			_ = holder.Wait() // read ends with an error
		}
	}
	t.Cleanup(end)
	eventually(t, "the pool is mounted in the other namespace", func() bool {
		_, err := os.Stat(ready.Name())
		return err == nil
	})

	serve := startServe(t, 1, machineArgs())
	checkFromSysfs(t, look(t, serve, pool.UUID), "elsewhere")
	if strings.Contains(serve.logged(), pool.UUID) {
		t.Error("a pool of another namespace is logged as a fault")
	}
	end()
	eventually(t, "the pool is gone with its namespace", func() bool { return len(look(t, serve, pool.UUID)) == 0 })
}
