//go:build linux

package main

import (
	"bytes"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/testprogram"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// patience bounds every wait of these tests.
const patience = time.Minute

// asProgram is the environment variable that makes the test binary the program
// itself.
const asProgram = "BTRFS_GOVERNOR_TEST_AS_DEMO"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// running is a demonstration that was started.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	exited chan struct{}

	mu     sync.Mutex
	output bytes.Buffer
}

// Write implements io.Writer.
func (r *running) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.output.Write(p)
}

func (r *running) printed() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.output.String()
}

func start(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	r := &running{t: t, cmd: cmd, exited: make(chan struct{})}
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stdout, cmd.Stderr = r, r // and no standard input
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // the tests look at the ProcessState
		close(r.exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-r.exited
	})
	return r
}

// waitFor waits for a line that matches and returns its submatches.
func (r *running) waitFor(pattern string) []string {
	r.t.Helper()
	re := regexp.MustCompile("(?m)" + pattern)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		text := r.printed()
		if match := re.FindStringSubmatch(text); match != nil && strings.HasSuffix(text, "\n") {
			return match
		}
		select {
		case <-r.exited:
			r.t.Fatalf("it ended with %v:\n%s", r.cmd.ProcessState, r.printed())
		default:
		}
	}
	r.t.Fatalf("it does not print %q:\n%s", pattern, r.printed())
	return nil
}

// interrupt sends a signal and waits for a clean end.
func (r *running) interrupt(signal syscall.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(signal); err != nil {
		r.t.Fatal(err)
	}
	select {
	case <-r.exited:
	case <-time.After(patience):
		r.t.Fatalf("it does not end:\n%s", r.printed())
	}
	if code := r.cmd.ProcessState.ExitCode(); code != 0 {
		r.t.Errorf("it ended with %d:\n%s", code, r.printed())
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// governor builds btrfs-governor where everybody may run it.
func governor(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "demo-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "btrfs-governor")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, "../../cmd/btrfs-governor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build btrfs-governor: %v\n%s", err, text)
	}
	return path
}

func checkContains(t *testing.T, text string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile("(?m)" + p).MatchString(text) {
			t.Errorf("%q is not in:\n%s", p, text)
		}
	}
}

// checkNothingLeft checks that nothing of a demonstration is left behind that
// had its pool in dir and served on address.
func checkNothingLeft(t *testing.T, dir, address string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		t.Errorf("a mount is left beneath %s", dir)
	}
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range backing {
		if name, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(name), dir) {
			t.Errorf("%s still holds %s", file, name)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", dir, err)
	}
	if address != "" {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			t.Errorf("something still listens on %s", address)
		}
	}
}

func TestDemoShowsAPoolAndRemovesIt(t *testing.T) {
	btrfstest.Require(t)
	// The usual port may be taken; here it is.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	// The machine has a pool of its own.
	if _, err := btrfstest.New(t).NewPool(btrfstest.PoolOptions{Sizes: []int64{gib}, Label: "of the machine"}); err != nil {
		t.Fatal(err)
	}

	r := start(t, exec.Command(os.Args[0], "-governor", governor(t), "-listen", taken.Addr().String(), "-verify", "-stack=off"))
	r.waitFor("^End ")
	text := r.printed()
	checkContains(t, text,
		`is taken; serving on 127\.0\.0\.1:\d+ instead`,
		`^  df +\d+\.\d\d TiB +\d+\.\d\d TiB too little$`,
		`^  btrfs filesystem usage +\d+\.\d\d TiB +\d+\.\d\d TiB too much$`,
		`^  btrfs-governor +\d+\.\d\d TiB `,
		`^  metadata in one place +100 %`,
		`^  drives that may fail +1 `,
		`^  corruption errors +1 `,
		`^Look +curl -s http://127`,
	)
	dir := r.waitFor(`^(/.*/btrfs-governor-rig-\d+)/`)[1]
	address := r.waitFor(`^Metrics +http://(.*)/metrics$`)[1]
	verdict := r.waitFor(`^It took (\d+) bytes, and btrfs-governor had said (\d+)`)
	m := parseMetrics("took " + verdict[1] + "\nsaid " + verdict[2] + "\n")
	if off := math.Abs(m["said"] - m["took"]); off > mib {
		t.Errorf("it said %s, and %s fitted", verdict[2], verdict[1])
	}

	exposition := get(t, "http://"+address+"/metrics")
	checkContains(t, exposition,
		`^btrfs_pool_info\{.*label="demo",`,
		`^btrfs_pool_free_exact\{.*\} 1$`,
		`^btrfs_device_errors_total\{devid="1",type="corruption",.*\} 1$`,
		`^btrfs_metadata_concentration_ratio\{.*\} 1$`,
		`^btrfs_scrape_collector_success\{collector="read",.*\} 1$`,
	)

	if strings.Contains(exposition, "of the machine") {
		t.Errorf("a pool of the machine is exported:\n%s", exposition)
	}

	r.interrupt(syscall.SIGINT)
	checkContains(t, r.printed(), "^Everything is removed")
	checkNothingLeft(t, dir, address)
}

func TestDemoInterruptedOnTheWayRemovesWhatThereIs(t *testing.T) {
	btrfstest.Require(t)
	path := governor(t)
	for _, after := range []time.Duration{50 * time.Millisecond, 300 * time.Millisecond, time.Second} {
		r := start(t, exec.Command(os.Args[0], "-governor", path, "-listen", "127.0.0.1:0", "-stack=off"))
		r.waitFor("^Making")
		time.Sleep(after)
		mine := runDirs(t, r.cmd.Process.Pid)
		r.interrupt(syscall.SIGTERM)
		for _, dir := range mine {
			checkNothingLeft(t, dir, "")
		}
	}
}

// TestDemoShowsHowAnErrorReachesAPhone runs the real Prometheus and Alertmanager,
// to the end and interrupted on the way.
func TestDemoShowsHowAnErrorReachesAPhone(t *testing.T) {
	btrfstest.Require(t)
	testprogram.Find(t, "prometheus", "prometheus")
	testprogram.Find(t, "prometheus-alertmanager", "prometheus-alertmanager")
	testprogram.Find(t, "curl", "curl")
	path := governor(t)
	for _, until := range []string{"^How an error reaches", "^A scrub is started", "^End "} {
		r := start(t, exec.Command(os.Args[0], "-governor", path, "-listen", "127.0.0.1:0", "-stack=on"))
		r.waitFor(until)
		mine, programs := runDirs(t, r.cmd.Process.Pid), children(t, r.cmd.Process.Pid)
		var pools []string
		for _, dir := range mine {
			pools = append(pools, poolsBeneath(t, dir)...)
		}
		if until == "^End " {
			checkContains(t, r.printed(),
				`^It says: 1 errors, 1 corrected, 0 uncorrectable\.$`,
				`^  \| \[FIRING:\d\] .*BtrfsScrubErrorsCorrected`,
				`^Alerts +curl -s http://127\.0\.0\.1:\d+/api/v1/alerts`,
			)
			if len(programs) != 4 {
				t.Errorf("%d programs run", len(programs))
			}
			if len(pools) != 2 {
				t.Errorf("its pools are %q", pools)
			}
			checkCommands(t, r)
		}
		r.interrupt(syscall.SIGINT)
		for _, dir := range mine {
			checkNothingLeft(t, dir, "")
		}
		for _, pid := range programs {
			if syscall.Kill(pid, 0) == nil {
				t.Errorf("interrupted after %q, process %d is left", until, pid)
			}
		}
		for _, uuid := range pools {
			if files, err := filepath.Glob(filepath.Join(scrub.DefaultStatusDir, "*"+uuid+"*")); err != nil || len(files) > 0 {
				t.Errorf("interrupted after %q, %q are left: %v", until, files, err)
			}
		}
	}
}

func TestStatusOfTheDemonstrationGoesAndThatOfOthersStays(t *testing.T) {
	const demo, other = "2d3f6a4e-7b1c-4c59-9b8e-0a1f5d6c7e80", "2d3f6a4e-7b1c-4c59-9b8e-0a1f5d6c7e81"
	dir := t.TempDir()
	for _, name := range []string{"scrub.status." + demo, "scrub.progress." + demo, "scrub.status." + other, "scrub.status." + other + "_tmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // nothing to remove is no error
		if err := removeStatus(dir, demo, true); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 2 || !strings.Contains(files[0].Name(), other) || !strings.Contains(files[1].Name(), other) {
		t.Errorf("what is left is %v", files)
	}
	dir = filepath.Join(t.TempDir(), "btrfs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := removeStatus(dir, demo, false); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("a directory that was there before: %v", err)
	}
	if err := removeStatus(dir, demo, true); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("a directory that was not there before is left: %v", err)
	}
}

func TestDemoWithoutThePrograms(t *testing.T) {
	withAptGet(t, "exit 1")
	in, err := os.Open(os.DevNull) // where nobody can be asked
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out bytes.Buffer
	if s, err := findStack(t.Context(), options{stack: stackAuto}, t.TempDir(), in, &out); s != nil || err != nil || !strings.Contains(out.String(), "apt-get install prometheus") {
		t.Errorf("%v, %v: %s", s, err, &out)
	}
	if _, err := findStack(t.Context(), options{stack: stackOn}, t.TempDir(), in, &out); err == nil || !strings.Contains(err.Error(), "install the packages") {
		t.Errorf("%v", err)
	}
	out.Reset()
	if s, err := findStack(t.Context(), options{stack: stackOff}, t.TempDir(), in, &out); s != nil || err != nil || out.Len() > 0 {
		t.Errorf("%v, %v: %s", s, err, &out)
	}
}

// runDirs returns the run directories whose lock names the process.
func runDirs(t *testing.T, pid int) []string {
	t.Helper()
	locks, err := filepath.Glob(filepath.Join(os.TempDir(), "btrfs-governor-rig-*", "lock"))
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for _, lock := range locks {
		note, err := os.ReadFile(lock)
		if err == nil && strings.HasPrefix(string(note), strconv.Itoa(pid)+" ") {
			dirs = append(dirs, filepath.Dir(lock))
		}
	}
	return dirs
}

// checkCommands checks that the commands that it prints work where somebody pastes
// them into another terminal.
func checkCommands(t *testing.T, r *running) {
	t.Helper()
	for pattern, want := range map[string]string{
		`^  (curl -X POST .*)$`: `"kind":"scrub"`,
		`^Alerts +(curl .*)$`:   "BtrfsScrubErrorsCorrected",
		`^Notified +(curl .*)$`: "BtrfsScrubErrorsCorrected",
		`^Look +(curl .*)$`:     "btrfs_pool_free_bytes",
	} {
		command := r.waitFor(pattern)[1]
		said, err := exec.Command("sh", "-c", command).CombinedOutput()
		if err != nil || !strings.Contains(string(said), want) {
			t.Errorf("%s: %v\n%s", command, err, said)
		}
	}
}

// poolsBeneath returns the UUIDs of the mounted pools that have their images in a
// directory.
func poolsBeneath(t *testing.T, dir string) (uuids []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/fs/btrfs/*/devices/*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		uuid := strings.Split(file, "/")[4]
		if image, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(image), dir) && !slices.Contains(uuids, uuid) {
			uuids = append(uuids, uuid)
		}
	}
	return uuids
}

func TestDemoEndsWithItsServer(t *testing.T) {
	btrfstest.Require(t)
	r := start(t, exec.Command(os.Args[0], "-governor", governor(t), "-listen", "127.0.0.1:0", "-stack=off"))
	r.waitFor("^End ")
	dir := r.waitFor(`^(/.*/btrfs-governor-rig-\d+)/`)[1]
	if err := syscall.Kill(child(t, r.cmd.Process.Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.exited:
	case <-time.After(patience):
		t.Fatal("it goes on without its server")
	}
	if code := r.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("it ended with %d:\n%s", code, r.printed())
	}
	checkNothingLeft(t, dir, "")
}

// child returns the process that another one started.
func child(t *testing.T, parent int) int {
	t.Helper()
	all := children(t, parent)
	if len(all) == 0 {
		t.Fatalf("process %d has no child", parent)
	}
	return all[0]
}

// children returns the processes that another one started: those that have it as
// their parent (proc_pid_stat(5), field 4).
func children(t *testing.T, parent int) (all []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, pid)
		}
	}
	return all
}

func TestDemoWithoutRootServesRecordedPools(t *testing.T) {
	path := governor(t)
	dir := filepath.Dir(path)
	self := filepath.Join(dir, "demo.test")
	recorded := filepath.Join(dir, "pools")
	text, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(self, text, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(recorded, os.DirFS("../../testdata/pools")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-governor", path, "-listen", "127.0.0.1:0", "-recorded", recorded)
	cmd.Dir = dir
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	r := start(t, cmd)
	address := r.waitFor(`^Metrics +http://(.*)/metrics$`)[1]
	r.waitFor("^End ")
	checkContains(t, r.printed(),
		`^Making a pool needs root: serving the pools recorded in .* instead\.$`,
		`^  pool +df +btrfs-governor$`,
		`[TGM]iB .*raid1 on 4 devices$`,
	)
	checkContains(t, get(t, "http://"+address+"/metrics"), `^btrfs_pool_free_bytes\{.*\} [1-9]`)
	r.interrupt(syscall.SIGINT)
	checkNothingLeft(t, "/nonexistent", address)
}

func TestDemoWithoutRecordedPoolsIsASentence(t *testing.T) {
	var out bytes.Buffer
	err := showRecorded(t.Context(), options{governor: governor(t), listen: "127.0.0.1:0", recorded: "/nonexistent"}, &out)
	if err == nil || !strings.Contains(err.Error(), "-recorded") {
		t.Errorf("%v", err)
	}
}

func TestServerThatEndsTellsWhy(t *testing.T) {
	_, err := startServer(t.Context(), options{governor: "/bin/false", listen: "127.0.0.1:0"}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "btrfs-governor ended") {
		t.Errorf("%v", err)
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[float64]string{
		0: "0.0 MiB", 1.5 * mib: "1.5 MiB", 5.48 * gib: "5.48 GiB", 7 * tib: "7.00 TiB", math.NaN(): "unknown",
	} {
		if got := bytesText(n); got != want {
			t.Errorf("%g: %s, want %s", n, got, want)
		}
	}
}

func TestDifference(t *testing.T) {
	for _, tt := range []struct {
		said, truth float64
		want        string
	}{
		{2 * gib, 2*gib + 1000, ""},
		{3 * gib, 2 * gib, "1.00 GiB too much"},
		{2 * gib, 3 * gib, "1.00 GiB too little"},
	} {
		if got := difference(tt.said, tt.truth); got != tt.want {
			t.Errorf("%g of %g: %q, want %q", tt.said, tt.truth, got, tt.want)
		}
	}
}
