// The test rig needs go-fuse, which does not build on 32-bit machines.
//go:build linux && (amd64 || arm64)

package statusfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

// progsDir is the directory of btrfs-progs. The pools of these tests are ones
// that nobody else has.
const progsDir = "/var/lib/btrfs"

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newPool(t *testing.T) (*btrfstest.Pool, btrfs.UUID) {
	t.Helper()
	p, err := btrfstest.New(t).NewPool(btrfstest.PoolOptions{Sizes: []int64{300 << 20, 300 << 20}, Data: "raid1", Metadata: "raid1"})
	ok(t, err)
	ok(t, p.WriteFile("f", 20<<20, rand.New(rand.NewPCG(1, 2))))
	ok(t, p.Sync())
	uuid, err := btrfs.ParseUUID(p.UUID)
	ok(t, err)
	t.Cleanup(func() { os.Remove(Path(progsDir, uuid)) })
	return p, uuid
}

// progs runs btrfs; what it says and its exit status are for the caller.
func progs(args ...string) (string, error) {
	out, err := exec.Command("btrfs", args...).CombinedOutput()
	return string(out), err
}

func scrubStatus(t *testing.T, args ...string) string {
	t.Helper()
	out, err := progs(append([]string{"scrub", "status"}, args...)...)
	if err != nil {
		t.Fatalf("btrfs scrub status: %v\n%s", err, out)
	}
	return out
}

// shown is what `btrfs scrub status -R -d` says of each device.
type shown struct {
	status   string
	counters map[string]uint64
}

func readShown(t *testing.T, mountpoint string) map[uint64]shown {
	t.Helper()
	devices := make(map[uint64]shown)
	var devid uint64
	lines := bufio.NewScanner(strings.NewReader(scrubStatus(t, "-R", "-d", mountpoint)))
	for lines.Scan() {
		line := lines.Text()
		if _, after, found := strings.Cut(line, "(id "); found {
			if _, err := fmt.Sscanf(after, "%d)", &devid); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			devices[devid] = shown{counters: make(map[string]uint64)}
			continue
		}
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		if devid == 0 {
			continue
		}
		d := devices[devid]
		if key == "Status" {
			d.status = value
			devices[devid] = d
		} else if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			d.counters[key] = n
		}
	}
	return devices
}

// counterKeys are the fields that `btrfs scrub status -R` shows.
var counterKeys = fields[:14]

func compareShown(t *testing.T, mountpoint string, devices []Device) {
	t.Helper()
	all := readShown(t, mountpoint)
	if len(all) != len(devices) {
		t.Errorf("btrfs scrub status shows %d devices, there are %d", len(all), len(devices))
	}
	for i := range devices {
		got, want := all[devices[i].DevID].counters, map[string]uint64{"unverified_errors": 0}
		for _, f := range counterKeys {
			want[f.key] = f.get(&devices[i])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("device %d: -ours +btrfs scrub status:\n%s", devices[i].DevID, diff)
		}
	}
}

func TestScrubOfBtrfsProgsIsRead(t *testing.T) {
	p, uuid := newPool(t)
	// Something in the counters: a bad sector, a superblock, data without
	// checksums.
	if out, err := exec.Command("chattr", "+C", p.Mountpoint).CombinedOutput(); err != nil {
		t.Fatalf("chattr: %v\n%s", err, out)
	}
	ok(t, p.WriteFile("nodatacow", 1<<20, rand.New(rand.NewPCG(3, 4))))
	ok(t, p.CorruptFile("f", 8192, 0))
	ok(t, p.CorruptPhysical(btrfstest.Location{DevID: 2, Physical: 64 << 20}, 4096))
	before := time.Now().Add(-time.Second)
	if out, err := progs("scrub", "start", "-B", p.Mountpoint); err != nil {
		t.Fatalf("btrfs scrub start: %v\n%s", err, out)
	}
	devices, err := Read(progsDir, uuid)
	ok(t, err)
	if len(devices) != 2 {
		t.Fatalf("%d devices: %+v", len(devices), devices)
	}
	var sum btrfs.ScrubCounters
	for _, d := range devices {
		sum.Add(&d.Counters)
		if !d.Finished || d.Canceled || d.Started.Before(before.Truncate(time.Second)) || d.Started.After(time.Now()) || !d.Resumed.IsZero() {
			t.Errorf("device %d: %+v", d.DevID, d)
		}
	}
	if sum.CsumErrors != 1 || sum.CorrectedErrors != 1 || sum.SuperErrors != 1 || sum.NoCsum == 0 || sum.DataBytesScrubbed < 42<<20 {
		t.Errorf("the counters lack something: %+v", sum)
	}
	compareShown(t, p.Mountpoint, devices)

	// And it writes what we would.
	text, err := os.ReadFile(Path(progsDir, uuid))
	ok(t, err)
	if got := Format(uuid, devices); string(got) != string(text) {
		t.Errorf("ours\n%sbtrfs-progs\n%s", got, text)
	}
}

func TestBtrfsProgsShowsWhatWasWritten(t *testing.T) {
	p, uuid := newPool(t)
	for _, tt := range []struct {
		want               string
		canceled, finished bool
	}{
		{"finished", false, true},
		{"aborted", true, false},
		{"aborted", true, true},
		{"interrupted", false, false},
	} {
		devices := []Device{device(1), device(2)}
		for i := range devices {
			devices[i].Canceled, devices[i].Finished = tt.canceled, tt.finished
		}
		ok(t, Write(progsDir, uuid, devices))
		compareShown(t, p.Mountpoint, devices)
		for devid, s := range readShown(t, p.Mountpoint) {
			if s.status != tt.want {
				t.Errorf("device %d is %s, want %s", devid, s.status, tt.want)
			}
		}
		if out := scrubStatus(t, p.Mountpoint); !strings.Contains(out, tt.want) || !strings.Contains(out, "csum=4") {
			t.Errorf("btrfs scrub status does not say %s and csum=4:\n%s", tt.want, out)
		}
	}
}

// slowScrub scrubs a device for as long as the test takes.
func slowScrub(t *testing.T, p *btrfstest.Pool, uuid btrfs.UUID, devid uint64) (stop func()) {
	t.Helper()
	client := btrfs.NewClient(btrfs.DefaultPaths())
	ok(t, client.SetScrubSpeedMax(uuid, devid, 1))
	f, err := btrfs.OpenFilesystem(p.Mountpoint)
	ok(t, err)
	control, err := btrfs.OpenFilesystem(p.Mountpoint)
	ok(t, err)
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its masked signals
		var all unix.Sigset_t
		for i := range all.Val {
			all.Val[i] = ^all.Val[i]
		}
		if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
			ended <- err
			return
		}
		_, err := f.ScrubRange(devid, 0, ^uint64(0), true)
		ended <- err
	}()
	for {
		_, err := control.ScrubProgress(devid)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOTCONN) {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			t.Fatalf("the scrub ended: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	return func() {
		t.Helper()
		ok(t, control.CancelScrub())
		if err := <-ended; !errors.Is(err, unix.ECANCELED) {
			t.Errorf("the scrub ended with %v", err)
		}
		f.Close()
		control.Close()
	}
}

func TestBtrfsProgsShowsARunningScrub(t *testing.T) {
	p, uuid := newPool(t)
	devices := []Device{device(1), device(2)}
	devices[1].Finished = true
	ok(t, Write(progsDir, uuid, devices))
	stop := slowScrub(t, p, uuid, 1)
	for devid, s := range readShown(t, p.Mountpoint) {
		if s.status != "running" { // the one that has finished too
			t.Errorf("device %d is %s, want running", devid, s.status)
		}
	}
	if out := scrubStatus(t, p.Mountpoint); !strings.Contains(out, "running") {
		t.Errorf("btrfs scrub status does not say running:\n%s", out)
	}
	stop()
	if out := scrubStatus(t, p.Mountpoint); !strings.Contains(out, "interrupted") {
		t.Errorf("without a scrub in the kernel btrfs scrub status does not say interrupted:\n%s", out)
	}
}

// serve runs Serve until the returned function is called.
func serve(t *testing.T, l net.Listener, uuid btrfs.UUID, devices []Device) (stop func()) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- Serve(l, uuid, func() []Device { return devices }) }()
	return func() {
		t.Helper()
		ok(t, l.Close())
		ok(t, <-ended)
	}
}

func TestServedFiguresAreShownAndNoOtherScrubBegins(t *testing.T) {
	p, uuid := newPool(t)
	ok(t, Write(progsDir, uuid, []Device{device(1), device(2)}))
	file, err := os.ReadFile(Path(progsDir, uuid))
	ok(t, err)
	l, err := Listen(progsDir, uuid)
	ok(t, err)
	devices := []Device{device(1), device(2)}
	devices[0].Counters.CsumErrors, devices[0].Counters.LastPhysical = 77, 4711
	stop := serve(t, l, uuid, devices)

	compareShown(t, p.Mountpoint, devices)
	// No scrub runs in the kernel now, as between two of our calls.
	for _, args := range [][]string{{"scrub", "start", "-B", p.Mountpoint}, {"scrub", "start", p.Mountpoint}, {"scrub", "resume", "-B", p.Mountpoint}} {
		if out, _ := progs(args...); !strings.Contains(out, "already running") {
			t.Errorf("%v: %s", args, out)
		}
	}
	if now, err := os.ReadFile(Path(progsDir, uuid)); err != nil || string(now) != string(file) {
		t.Errorf("the file was overwritten: %v\n%s", err, now)
	}
	compareShown(t, p.Mountpoint, devices) // it still answers
	stop()

	if _, err := os.Stat(SocketPath(progsDir, uuid)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if out, err := progs("scrub", "start", "-B", p.Mountpoint); err != nil {
		t.Errorf("afterwards: %v: %s", err, out)
	}
}

func TestListenReplacesADeadSocketOnly(t *testing.T) {
	dir := t.TempDir()
	l, err := Listen(dir, pool)
	ok(t, err)
	if info, err := os.Stat(SocketPath(dir, pool)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v %v, want 0600", info, err)
	}
	if _, err := Listen(dir, pool); !errors.Is(err, ErrServed) {
		t.Errorf("while another one listens: %v", err)
	}
	// A killed program leaves its socket.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	ok(t, l.Close())
	l, err = Listen(dir, pool)
	ok(t, err)
	want := []Device{device(1)}
	stop := serve(t, l, pool, want)
	for range 2 {
		c, err := net.Dial("unix", SocketPath(dir, pool))
		ok(t, err)
		text, err := io.ReadAll(c)
		ok(t, err)
		c.Close()
		got, err := Parse(text, pool)
		ok(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	stop()
}
