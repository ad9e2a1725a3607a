package alertmanager_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-kit/log"
	"github.com/prometheus/alertmanager/pkg/labels"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/config"
	"golang.org/x/crypto/bcrypt"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/testprogram"
)

// patience is how long anything may take.
const patience = 30 * time.Second

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// server is a real Alertmanager, on a port that it keeps when it starts again.
type server struct {
	t       testing.TB
	dir     string
	address string
	args    []string
	scheme  string
	client  *http.Client
	stop    func(os.Signal) // ends it and waits for it
}

func freePort(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	return listener.Addr().String()
}

// newServer returns one that has not been started.
func newServer(t testing.TB, args ...string) *server {
	t.Helper()
	s := &server{t: t, dir: t.TempDir(), address: freePort(t), args: args, scheme: "http", client: http.DefaultClient}
	s.write("alertmanager.yml", "route: {receiver: nobody, group_wait: 1s}\nreceivers: [{name: nobody}]\n")
	return s
}

func startServer(t testing.TB, args ...string) *server {
	t.Helper()
	s := newServer(t, append([]string{"--cluster.listen-address="}, args...)...)
	s.start()
	return s
}

func (s *server) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	must(s.t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func (s *server) start() {
	s.t.Helper()
	path := testprogram.Find(s.t, "prometheus-alertmanager", "prometheus-alertmanager")
	cmd := exec.Command(path, append([]string{
		"--config.file=" + filepath.Join(s.dir, "alertmanager.yml"), "--storage.path=" + filepath.Join(s.dir, "data"), "--web.listen-address=" + s.address,
	}, s.args...)...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	must(s.t, cmd.Start())
	var once sync.Once
	s.stop = func(signal os.Signal) {
		once.Do(func() {
			_ = cmd.Process.Signal(signal)
			_ = cmd.Wait()
		})
	}
	stop := s.stop
	s.t.Cleanup(func() {
		stop(os.Kill)
		if s.t.Failed() {
			s.t.Logf("Alertmanager %s:\n%s", s.address, output.String())
		}
	})
	eventually(s.t, "Alertmanager is ready", func() bool {
		status, _ := s.request(http.MethodGet, "/-/ready", nil)
		return status == http.StatusOK
	})
}

func (s *server) url() string { return s.scheme + "://" + s.address }

// request returns status 0 where there is no answer.
func (s *server) request(method, path string, body any) (status int, answer string) {
	s.t.Helper()
	text, err := json.Marshal(body)
	must(s.t, err)
	req, err := http.NewRequest(method, s.url()+path, bytes.NewReader(text))
	must(s.t, err)
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(content)
}

// shown is a silence or an alert as the API shows it.
type shown struct {
	ID        string           `json:"id,omitempty"`
	Matchers  []map[string]any `json:"matchers"`
	StartsAt  time.Time        `json:"startsAt"`
	EndsAt    time.Time        `json:"endsAt"`
	CreatedBy string           `json:"createdBy"`
	Comment   string           `json:"comment"`
	Status    struct {
		State string `json:"state"`
	} `json:"status"`
}

// active returns the active silences of a creator.
func (s *server) active(createdBy string) []shown {
	s.t.Helper()
	return slices.DeleteFunc(s.silences(createdBy), func(s shown) bool { return s.Status.State != "active" })
}

func (s *server) silences(createdBy string) []shown {
	s.t.Helper()
	status, answer := s.request(http.MethodGet, "/api/v2/silences", nil)
	var all []shown
	if status != http.StatusOK || json.Unmarshal([]byte(answer), &all) != nil {
		s.t.Fatalf("list the silences: %d %s", status, answer)
	}
	return slices.DeleteFunc(all, func(s shown) bool { return s.CreatedBy != createdBy })
}

// eventuallyOne waits until there is just one active silence of ours.
func (s *server) eventuallyOne(what string) (one shown) {
	s.t.Helper()
	eventually(s.t, "there is one silence: "+what, func() bool {
		active := s.active(ours)
		if len(active) == 1 {
			one = active[0]
		}
		return len(active) == 1
	})
	return one
}

func (s *server) eventuallyNone(what string) {
	s.t.Helper()
	eventually(s.t, "there is no silence: "+what, func() bool { return len(s.active(ours)) == 0 })
}

func (s *server) expire(id string) {
	s.t.Helper()
	if status, answer := s.request(http.MethodDelete, "/api/v2/silence/"+id, nil); status != http.StatusOK {
		s.t.Fatalf("expire a silence: %d %s", status, answer)
	}
}

func (s *server) post(silence shown) {
	s.t.Helper()
	if status, answer := s.request(http.MethodPost, "/api/v2/silences", silence); status != http.StatusOK {
		s.t.Fatalf("post a silence: %d %s", status, answer)
	}
}

// alertState returns unprocessed, active or suppressed.
func (s *server) alertState() string {
	s.t.Helper()
	_, answer := s.request(http.MethodGet, "/api/v2/alerts", nil)
	var all []shown
	must(s.t, json.Unmarshal([]byte(answer), &all))
	if len(all) != 1 {
		return fmt.Sprintf("%d alerts", len(all))
	}
	return all[0].Status.State
}

const ours = "btrfs-governor@nas"

var pool = btrfs.UUID{0x5f, 0x1c, 15: 1}

func matchers(t testing.TB, text string) []*labels.Matcher {
	t.Helper()
	list, err := labels.ParseMatchers(text)
	must(t, err)
	return list
}

func settings(t testing.TB, urls ...string) alertmanager.SilenceSettings {
	t.Helper()
	s := alertmanager.SilenceSettings{
		Matchers: [][]*labels.Matcher{matchers(t, `alertname="DiskLatencyHigh",instance=~"nas:.+"`)}, Operations: []string{"scrub"}, Instance: "nas",
	}
	for _, u := range urls {
		s.Peers = append(s.Peers, alertmanager.Peer{URL: u})
	}
	return s
}

// fast is quick to look and to extend, and lets nothing run out by itself.
func fast() alertmanager.SilenceTiming {
	return alertmanager.SilenceTiming{
		Look: 20 * time.Millisecond, Check: 50 * time.Millisecond, Life: 10 * time.Minute, Extend: time.Second,
		Request: 10 * time.Second, Stop: 5 * time.Second,
	}
}

// daemon is a Silencer that runs, and what it is told.
type daemon struct {
	*alertmanager.Silencer
	t    testing.TB
	stop func()

	mu   sync.Mutex
	work []alertmanager.Work
	logs bytes.Buffer
}

// aScrub is work that began a moment ago or, after a restart, at the same time.
var aScrub = alertmanager.Work{Pool: pool, Label: "attic", Operation: "scrub", Since: time.Now()}

func startDaemon(t testing.TB, s alertmanager.SilenceSettings, timing alertmanager.SilenceTiming, work ...alertmanager.Work) *daemon {
	t.Helper()
	d := &daemon{t: t, work: work}
	var err error
	d.Silencer, err = alertmanager.NewSilencer(s, timing, func() []alertmanager.Work {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.work
	}, time.Now, log.NewLogfmtLogger(d))
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.Run(ctx)
	}()
	d.stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(func() {
		d.stop()
		if t.Failed() {
			t.Logf("log:\n%s", d.log())
		}
	})
	return d
}

// Write implements io.Writer, for the log.
func (d *daemon) Write(line []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.logs.Write(line)
}

func (d *daemon) log() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.logs.String()
}

// logged returns how many lines of a level have a text.
func (d *daemon) logged(level, text string) (lines int) {
	for line := range strings.Lines(d.log()) {
		if strings.Contains(line, "level="+level) && strings.Contains(line, text) {
			lines++
		}
	}
	return lines
}

func (d *daemon) does(work ...alertmanager.Work) {
	d.mu.Lock()
	d.work = work
	d.mu.Unlock()
	d.Wake()
}

// metric returns a value, and NaN where it is absent.
func (d *daemon) metric(name, result string) float64 {
	d.t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(d)
	families, err := registry.Gather()
	must(d.t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (result == "" || m.GetLabel()[0].GetValue() == result) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return math.NaN()
}

func (d *daemon) silences() float64 { return d.metric("btrfs_governor_silences", "") }

func (d *daemon) requests(result string) float64 {
	return d.metric("btrfs_governor_silence_requests_total", result)
}

// eventuallyLooks waits until the daemon has looked at the silences several times.
func (d *daemon) eventuallyLooks() {
	d.t.Helper()
	before := d.requests("success")
	eventually(d.t, "the daemon looks at the silences", func() bool { return d.requests("success") >= before+5 })
}

func TestAlertsAreSilencedWhileWorkRuns(t *testing.T) {
	am := startServer(t)
	theirs := shown{
		Matchers: []map[string]any{{"name": "alertname", "value": "Watchdog", "isRegex": false, "isEqual": true}},
		StartsAt: time.Now(), EndsAt: time.Now().Add(time.Hour), CreatedBy: "root@nas", Comment: "for the weekend",
	}
	am.post(theirs)
	d := startDaemon(t, settings(t, am.url()), fast())
	eventually(t, "no silences are known", func() bool { return d.silences() == 0 })
	if status, answer := am.request(http.MethodPost, "/api/v2/alerts", []any{map[string]any{
		"labels": map[string]string{"alertname": "DiskLatencyHigh", "instance": "nas:9100"},
	}}); status != http.StatusOK {
		t.Fatalf("post an alert: %d %s", status, answer)
	}
	eventually(t, "the alert is active", func() bool { return am.alertState() == "active" })

	d.does(aScrub)
	first := am.eventuallyOne("the scrub runs")
	if !strings.Contains(first.Comment, `A scrub of the pool "attic" (`+pool.String()+`) has been running since `) {
		t.Errorf("the comment is %q", first.Comment)
	}
	eventually(t, "the alert is suppressed", func() bool { return am.alertState() == "suppressed" })
	eventually(t, "one silence is known", func() bool { return d.silences() == 1 })
	eventually(t, "the silence is extended twice", func() bool {
		now := am.active(ours)
		return len(now) == 1 && now[0].ID == first.ID && now[0].EndsAt.After(first.EndsAt.Add(2*time.Second))
	})
	if all := am.silences(ours); len(all) != 1 {
		t.Errorf("it took %d silences: %+v", len(all), all)
	}

	d.does()
	am.eventuallyNone("the scrub is over")
	eventually(t, "the alert is active again", func() bool { return am.alertState() == "active" })
	eventually(t, "no silence is known", func() bool { return d.silences() == 0 })
	// A silence of theirs is as it was.
	left := am.active(theirs.CreatedBy)
	if len(left) != 1 || left[0].Comment != theirs.Comment || !left[0].EndsAt.Truncate(time.Second).Equal(theirs.EndsAt.UTC().Truncate(time.Second)) {
		t.Errorf("what is not ours is %+v", left)
	}
	if n := d.requests("failure"); n != 0 {
		t.Errorf("%v requests failed", n)
	}
}

// A silence of each list for each pool, and of no other operation.
func TestEachPoolHasItsSilences(t *testing.T) {
	am := startServer(t)
	s := settings(t, am.url())
	s.Matchers = append(s.Matchers, matchers(t, `alertname="DiskBusy",device!~"nvme.*"`))
	d := startDaemon(t, s, fast(), aScrub, alertmanager.Work{Pool: btrfs.UUID{2}, Operation: "scrub", Since: time.Now()},
		alertmanager.Work{Pool: pool, Operation: "balance", Since: time.Now()})
	eventually(t, "there are four silences", func() bool { return len(am.active(ours)) == 4 && d.silences() == 4 })
	d.does(aScrub)
	eventually(t, "there are two silences", func() bool { return len(am.active(ours)) == 2 && d.silences() == 2 })
	d.stop()
	am.eventuallyNone("the daemon has stopped")
	if n := len(am.silences(ours)); n != 4 {
		t.Errorf("there were %d silences, want 4", n)
	}
}

// crashingDaemon is set in the process that is to crash, to the URL of Alertmanager.
const crashingDaemon = "BTRFS_GOVERNOR_TEST_SILENCE_AT"

// crashing is the work of that process.
var crashing = alertmanager.Work{Pool: pool, Label: "attic", Operation: "scrub", Since: time.Unix(1_700_000_000, 0)}

// TestMain is also that process. It runs until it is killed, or until the test is.
func TestMain(m *testing.M) {
	url := os.Getenv(crashingDaemon)
	if url == "" {
		os.Exit(m.Run())
	}
	s := alertmanager.SilenceSettings{
		Peers: []alertmanager.Peer{{URL: url}}, Matchers: [][]*labels.Matcher{{{Name: "alertname", Value: "DiskLatencyHigh"}}},
		Operations: []string{"scrub"}, Instance: "nas",
	}
	silencer, err := alertmanager.NewSilencer(s, alertmanager.DefaultSilenceTiming(), func() []alertmanager.Work {
		return []alertmanager.Work{crashing}
	}, time.Now, log.NewLogfmtLogger(os.Stderr))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go silencer.Run(context.Background())
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(1)
}

// crash has a daemon make a silence and be killed.
func crash(t *testing.T, am *server) shown {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashingDaemon+"="+am.url())
	stdin, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		stdin.Close()
	}()
	return am.eventuallyOne("the daemon that is to crash runs")
}

func TestCrashLeavesASilenceForMinutes(t *testing.T) {
	am := startServer(t)
	s := settings(t, am.url())
	s.Matchers = [][]*labels.Matcher{matchers(t, `alertname="DiskLatencyHigh"`)} // as the process that crashes has them
	left := crash(t, am)
	now := am.eventuallyOne("the daemon was killed")
	if life := time.Until(now.EndsAt); life <= 0 || life > 15*time.Minute {
		t.Errorf("it is left for %s", life)
	}
	// Started again while the scrub goes on, it takes that silence.
	d := startDaemon(t, s, fast(), crashing)
	eventually(t, "it is extended", func() bool {
		now := am.active(ours)
		return len(now) == 1 && now[0].ID == left.ID && now[0].EndsAt.After(left.EndsAt)
	})
	d.stop()
	am.eventuallyNone("the daemon has stopped")

	// Started again when the scrub is over, it expires what is left.
	crash(t, am)
	d = startDaemon(t, s, fast())
	am.eventuallyNone("the daemon was started again")
	d.stop()
	// What it expired itself it does not take for expired by hand.
	startDaemon(t, s, fast(), crashing)
	am.eventuallyOne("the scrub goes on")
}

func TestSilenceThatAPersonExpiresStaysSo(t *testing.T) {
	am := startServer(t)
	d := startDaemon(t, settings(t, am.url()), fast(), aScrub)
	am.expire(am.eventuallyOne("the scrub runs").ID)
	eventually(t, "that is said", func() bool { return d.logged("info", "expired by hand") == 1 && d.silences() == 0 })
	d.eventuallyLooks()
	am.eventuallyNone("a person expired it")
	d.stop()
	d = startDaemon(t, settings(t, am.url()), fast(), aScrub)
	d.eventuallyLooks()
	if all := am.silences(ours); len(all) != 1 || all[0].Status.State != "expired" {
		t.Errorf("after a restart there are %+v", all)
	}
	// The next scrub is another matter.
	next := aScrub
	next.Since = time.Now().Add(time.Second)
	d.does(next)
	am.eventuallyOne("the next scrub runs")
	if n := d.logged("info", "expired by hand"); n != 1 {
		t.Errorf("it was said %d times after the restart", n)
	}
}

func TestOtherHostsAndPersonsAreLeftAlone(t *testing.T) {
	am := startServer(t)
	d := startDaemon(t, settings(t, am.url()), fast(), aScrub)
	mine := am.eventuallyOne("the scrub runs")
	other := mine
	other.ID, other.CreatedBy = "", "btrfs-governor@nas2"
	am.post(other)
	mine.ID = ""
	am.post(mine) // as two peers that did not know of each other's would have it
	am.eventuallyOne("duplicates are expired")
	edited := am.eventuallyOne("and stay so")
	edited.Matchers = edited.Matchers[:1]
	am.post(edited) // Alertmanager expires the old one
	eventually(t, "that counts as expired by hand", func() bool { return d.logged("info", "expired by hand") == 1 })
	d.does()
	d.eventuallyLooks()
	d.stop()
	if left := am.active(other.CreatedBy); len(left) != 1 || !left[0].EndsAt.Equal(other.EndsAt) {
		t.Errorf("the silence of another host is %+v", left)
	}
	if left := am.active(ours); len(left) != 1 || len(left[0].Matchers) != 1 {
		t.Errorf("what a person edited is %+v", left)
	}
}

func TestAlertmanagerThatIsDown(t *testing.T) {
	am := newServer(t, "--cluster.listen-address=")
	d := startDaemon(t, settings(t, am.url()), fast(), aScrub)
	eventually(t, "it is tried again", func() bool { return d.requests("failure") >= 5 })
	if n := d.silences(); !math.IsNaN(n) {
		t.Errorf("%v silences are known", n)
	}
	am.start()
	am.eventuallyOne("it is up")
	eventually(t, "that is known", func() bool { return d.silences() == 1 })

	for _, tt := range []struct {
		name     string
		signal   os.Signal
		keepData bool
	}{{"with its data", syscall.SIGTERM, true}, {"without its data", syscall.SIGKILL, false}} {
		before := am.eventuallyOne("it runs")
		am.stop(tt.signal)
		eventually(t, "how many there are is not known", func() bool { return math.IsNaN(d.silences()) })
		if !tt.keepData {
			must(t, os.RemoveAll(filepath.Join(am.dir, "data")))
		}
		am.start()
		if after := am.eventuallyOne("it is up again " + tt.name); (after.ID == before.ID) != tt.keepData {
			t.Errorf("%s: the silence was %s and is %s", tt.name, before.ID, after.ID)
		}
		eventually(t, "that is known", func() bool { return d.silences() == 1 })
	}
	eventually(t, "that is said", func() bool { return d.logged("info", "in Alertmanager") >= 3 })
	d.stop()
	am.eventuallyNone("the daemon has stopped")
	for _, level := range []string{"warn", "info"} {
		if n := d.logged(level, "in Alertmanager"); n != 3 {
			t.Errorf("it is said %d times at level %s, want once for each of 3 times", n, level)
		}
	}
}

func TestClusterLosesItsFirstPeer(t *testing.T) {
	gossip := []string{freePort(t), freePort(t)}
	peer := func(i int) *server {
		am := newServer(t, "--cluster.listen-address="+gossip[i], "--cluster.peer="+gossip[1-i],
			"--cluster.gossip-interval=20ms", "--cluster.pushpull-interval=1s", "--cluster.reconnect-interval=1s", "--cluster.settle-timeout=1s")
		am.start()
		return am
	}
	a, b := peer(0), peer(1)
	d := startDaemon(t, settings(t, a.url(), b.url()), fast(), aScrub)
	first := a.eventuallyOne("the scrub runs")
	if other := b.eventuallyOne("the other peer knows it"); other.ID != first.ID {
		t.Fatalf("one has %s and the other %s", first.ID, other.ID)
	}
	a.stop(os.Kill)
	eventually(t, "the other peer extends it", func() bool {
		now := b.active(ours)
		return len(now) == 1 && now[0].ID == first.ID && now[0].EndsAt.After(first.EndsAt.Add(2*time.Second))
	})
	if n := d.logged("info", "another Alertmanager"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	a.start() // with what it had: nothing
	eventually(t, "the first peer knows it again", func() bool {
		now := a.active(ours)
		return len(now) == 1 && now[0].ID == first.ID
	})
	d.does()
	a.eventuallyNone("the scrub is over")
	b.eventuallyNone("the scrub is over")
}

// Parts of a cluster that did not see each other may have a silence each.
func TestDuplicatesAreExpiredInTheWholeCluster(t *testing.T) {
	gossip := []string{freePort(t), freePort(t)}
	peer := func(i int) *server {
		am := newServer(t, "--cluster.listen-address="+gossip[i], "--cluster.peer="+gossip[1-i],
			"--cluster.gossip-interval=20ms", "--cluster.pushpull-interval=1s", "--cluster.reconnect-interval=1s", "--cluster.settle-timeout=1s")
		am.start()
		return am
	}
	a := peer(0)
	one := startDaemon(t, settings(t, a.url()), fast(), aScrub)
	copied := a.eventuallyOne("the scrub runs")
	one.stop() // and expired it
	copied.ID = ""
	a.post(copied)
	a.post(copied)
	b := peer(1)
	eventually(t, "both are known to the other", func() bool { return len(b.active(ours)) == 2 })
	startDaemon(t, settings(t, b.url()), fast(), aScrub)
	b.eventuallyOne("it was cleaned up")
	a.eventuallyOne("it was cleaned up")
}

// writeCertificate writes a new certificate for 127.0.0.1 and its key.
func (s *server) writeCertificate() (certificate, keyFile string) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(s.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(s.t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(s.t, err)
	return s.write("cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		s.write("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
}

func TestTLSAndBasicAuth(t *testing.T) {
	am := newServer(t, "--cluster.listen-address=")
	certificate, key := am.writeCertificate()
	hash, err := bcrypt.GenerateFromPassword([]byte("hunter2"), bcrypt.MinCost)
	must(t, err)
	am.args = append(am.args, "--web.config.file="+am.write("web.yml", fmt.Sprintf("tls_server_config: {cert_file: %s, key_file: %s}\nbasic_auth_users: {governor: %q}\n", certificate, key, hash)))
	with := func(password string) config.HTTPClientConfig {
		return config.HTTPClientConfig{
			BasicAuth: &config.BasicAuth{Username: "governor", Password: config.Secret(password)},
			TLSConfig: config.TLSConfig{CAFile: certificate}, FollowRedirects: true, EnableHTTP2: true,
		}
	}
	am.scheme = "https"
	am.client, err = config.NewClientFromConfig(with("hunter2"), "test")
	must(t, err)
	am.start()

	s := settings(t, am.url())
	s.Peers[0].HTTP = with("sesame-wrong")
	d := startDaemon(t, s, fast(), aScrub)
	eventually(t, "the password is wrong", func() bool { return d.logged("warn", "401 Unauthorized: look at http_config") == 1 })
	s.Peers[0].HTTP = with("hunter2")
	must(t, d.Configure(s))
	am.eventuallyOne("the password is right")
	s.Peers[0].HTTP.TLSConfig.CAFile = ""
	must(t, d.Configure(s))
	eventually(t, "the certificate is not trusted", func() bool { return d.logged("warn", "certificate") == 1 })
	s.Peers[0].HTTP.TLSConfig.CAFile = "/nonexistent"
	if err := d.Configure(s); err == nil || !strings.Contains(err.Error(), "alertmanagers[0]: http_config: ") {
		t.Errorf("a CA that there is not: %v", err)
	}
	s.Peers[0].HTTP = with("hunter2")
	must(t, d.Configure(s))
	d.stop()
	am.eventuallyNone("the daemon has stopped")
	for _, secret := range []string{"hunter2", "sesame-wrong"} {
		if strings.Contains(d.log(), secret) {
			t.Errorf("the log has %s", secret)
		}
	}
}

func TestChangedSettingsLeaveNothingBehind(t *testing.T) {
	a, b := startServer(t), startServer(t)
	s := settings(t, a.url())
	d := startDaemon(t, s, fast(), aScrub)
	first := a.eventuallyOne("the scrub runs")

	must(t, d.Configure(s)) // as a reload that changes something else
	d.eventuallyLooks()
	if now := a.eventuallyOne("nothing was changed"); now.ID != first.ID {
		t.Errorf("it is another one now")
	}
	bad := s
	bad.Instance = ""
	if err := d.Configure(bad); err == nil {
		t.Error("bad settings are taken")
	}

	s.Matchers = [][]*labels.Matcher{matchers(t, `alertname="DiskBusy"`)}
	must(t, d.Configure(s))
	eventually(t, "there is one with the new matchers", func() bool {
		now := a.active(ours)
		return len(now) == 1 && now[0].Matchers[0]["value"] == "DiskBusy"
	})

	s.Peers = settings(t, b.url()).Peers
	must(t, d.Configure(s))
	a.eventuallyNone("it is no longer configured")
	b.eventuallyOne("it is configured instead")

	s.Instance = "attic"
	must(t, d.Configure(s))
	b.eventuallyNone("the instance has another name")
	eventually(t, "there is one of the new name", func() bool { return len(b.active("btrfs-governor@attic")) == 1 })

	must(t, d.Configure(alertmanager.SilenceSettings{}))
	eventually(t, "silences are off", func() bool { return len(b.active("btrfs-governor@attic")) == 0 && d.silences() == 0 })
	must(t, d.Configure(settings(t, a.url())))
	a.eventuallyOne("silences are on again")
	must(t, d.Configure(alertmanager.SilenceSettings{}))
	d.stop()
	a.eventuallyNone("the daemon has stopped at once after the change")
}

// proxy passes requests on to Alertmanager, but for what a test makes of them.
func proxy(t *testing.T, am *server, before func(w http.ResponseWriter, r *http.Request) (answered bool), after func(*http.Response)) string {
	t.Helper()
	target, err := url.Parse(am.url())
	must(t, err)
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.ModifyResponse = func(r *http.Response) error {
		if after != nil {
			after(r)
		}
		return nil
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if before == nil || !before(w, r) {
			forward.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// posted returns the silence of a request, and leaves that as it was.
func posted(t *testing.T, r *http.Request) (silence shown) {
	t.Helper()
	if r.Method != http.MethodPost {
		return silence
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(body, &silence)
	}
	if err != nil {
		t.Error(err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return silence
}

// A person may expire a silence between our look and our writing.
func TestPersonWinsTheRace(t *testing.T) {
	am := startServer(t)
	var raced atomic.Bool
	url := proxy(t, am, func(_ http.ResponseWriter, r *http.Request) bool {
		if id := posted(t, r).ID; id != "" && raced.CompareAndSwap(false, true) {
			am.expire(id)
		}
		return false
	}, nil)
	d := startDaemon(t, settings(t, url), fast(), aScrub)
	eventually(t, "a person expires it", raced.Load)
	eventually(t, "that is seen", func() bool { return d.logged("info", "expired by hand") == 1 })
	am.eventuallyNone("a person expired it")
	d.eventuallyLooks()
	am.eventuallyNone("a person expired it")
}

func TestSilenceThatAPeerDoesNotKnowIsMadeAnew(t *testing.T) {
	am := startServer(t)
	var unknown atomic.Bool
	url := proxy(t, am, func(w http.ResponseWriter, r *http.Request) bool {
		if id := posted(t, r).ID; id != "" && unknown.CompareAndSwap(false, true) {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	}, nil)
	startDaemon(t, settings(t, url), fast(), aScrub)
	eventually(t, "it is not known", unknown.Load)
	eventually(t, "it is made anew, and the other expired", func() bool { return len(am.silences(ours)) == 2 && len(am.active(ours)) == 1 })
}

// The end of a silence is by the clock of who keeps it, else an hour of
// difference would have it end at once, or in an hour.
func TestClocksThatDiffer(t *testing.T) {
	am := startServer(t)
	const ahead = time.Hour
	url := proxy(t, am, nil, func(r *http.Response) {
		r.Header.Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
	})
	d := startDaemon(t, settings(t, url), fast(), aScrub)
	eventually(t, "there is a silence", func() bool { return len(am.silences(ours)) > 0 })
	s := am.silences(ours)[0]
	if life := time.Until(s.EndsAt) - ahead; life < 9*time.Minute || life > 10*time.Minute {
		t.Errorf("it ends at %s, in %s by the clock of Alertmanager", s.EndsAt, life)
	}
	d.eventuallyLooks()
	if n := d.logged("warn", "clock"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}

// What hangs is given up, and asked no more while another answers.
func TestPeerThatHangs(t *testing.T) {
	before := runtime.NumGoroutine()
	am := startServer(t)
	release, asked := make(chan struct{}), make(chan struct{}, 100)
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	timing := fast()
	timing.Request = 5 * time.Second
	d := startDaemon(t, settings(t, hangs.URL, am.url()), timing, aScrub)
	am.eventuallyOne("the other one answers")
	d.eventuallyLooks()
	if n := d.requests("failure"); n != 1 {
		t.Errorf("%v requests failed, want 1", n)
	}
	d.stop()
	am.eventuallyNone("the daemon has stopped")
	<-asked

	// All hang, and the daemon stops in the middle.
	timing.Request, timing.Stop = time.Minute, 200*time.Millisecond
	d = startDaemon(t, settings(t, hangs.URL), timing, aScrub)
	<-asked
	start := time.Now()
	d.stop()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %s to stop", took)
	}
	if n := d.logged("warn", "could not be expired"); n != 1 {
		t.Errorf("that nothing could be expired is said %d times", n)
	}
	close(release)
	hangs.Close()
	am.stop(os.Kill)
	http.DefaultClient.CloseIdleConnections()
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
}

// Whatever answers, it is said once and tried again.
func TestAnswersThatAreNone(t *testing.T) {
	const secret = "hunter2"
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a redirect was followed, with %q", r.Header.Get("Authorization"))
	}))
	t.Cleanup(elsewhere.Close)
	text := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	// only answers a POST by text, and the list by an empty one.
	onlyPost := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				_, _ = io.WriteString(w, "[]")
				return
			}
			text(status, body)(w, r)
		}
	}
	endless := func(begin, again string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			_, err := io.WriteString(w, begin)
			for more := []byte(strings.Repeat(again, 1000)); err == nil; {
				_, err = w.Write(more)
			}
		}
	}
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"no JSON":                {text(200, "<html>welcome</html>"), "list the silences: its answer is no list"},
		"an object":              {text(200, "{}"), "its answer is no list"},
		"a list of numbers":      {text(200, "[1]"), "cannot be read"},
		"half a list":            {text(200, `[{"id":"a"}`), "is not whole"},
		"nothing":                {text(200, ""), "its answer is no list"},
		"an endless list":        {endless("[", " "), "larger than"},
		"endless silences":       {endless(`[{"id":"a"}`, `,{"comment":"`+strings.Repeat("a", 1000)+`"}`), "larger than"},
		"one endless silence":    {endless(`[{"comment":"`, "a"), "larger than"},
		"an id of a path":        {text(200, `[{"id":"../../-/quit","createdBy":"btrfs-governor@nas"}]`), `it gives \"../../-/quit\" as the id`},
		"a redirect":             {http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect).ServeHTTP, "307 Temporary Redirect: redirects are not followed"},
		"no such API":            {http.NotFound, "404 Not Found: look at the path of the url"},
		"a failure":              {text(500, `"out of disk"`), `500 Internal Server Error: \"out of disk\"`},
		"a failure as an object": {text(422, `{"code":601,"message":"bad body"}`), `422 Unprocessable Entity: \"bad body\"`},
		"a failure of a proxy":   {text(502, "you sent "+secret), "502 Bad Gateway"},
		"an endless failure":     {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500); endless(`"`, "a")(w, r) }, "500 Internal Server Error"},
		"the silence is refused": {onlyPost(400, `"no such label"`), `write a silence: it answers 400 Bad Request: \"no such label\"`},
		"the answer has no id":   {onlyPost(200, "{}"), `write a silence: it gives \"\" as the id`},
		"the answer is no JSON":  {onlyPost(200, "ok"), "write a silence: its answer cannot be read"},
		"a POST is redirected":   {onlyPost(308, ""), "308 Permanent Redirect"},
	} {
		t.Run(name, func(t *testing.T) {
			fake := httptest.NewServer(tt.handler)
			t.Cleanup(fake.Close)
			s := settings(t, fake.URL)
			s.Peers[0].HTTP = config.HTTPClientConfig{BasicAuth: &config.BasicAuth{Username: "governor", Password: secret}, FollowRedirects: true}
			timing := fast()
			timing.Request = patience
			d := startDaemon(t, s, timing, aScrub)
			tries := 3.0
			if strings.Contains(name, "endless") {
				tries = 1 // it takes a second to read so much
			}
			eventually(t, "it is tried again", func() bool { return d.requests("failure") >= tries })
			eventually(t, "that is said", func() bool { return d.logged("warn", "in Alertmanager") > 0 })
			if n := d.logged("warn", tt.want); n != 1 || d.logged("warn", "in Alertmanager") != 1 {
				t.Errorf("it is said %d times: %s", n, d.log())
			}
			if strings.Contains(d.log(), secret) {
				t.Errorf("the log has the password: %s", d.log())
			}
			if n := d.silences(); !math.IsNaN(n) {
				t.Errorf("%v silences are known", n)
			}
		})
	}
}

// One silence that is refused keeps no other from being made.
func TestOneRefusedSilenceKeepsNoOtherFromBeingMade(t *testing.T) {
	am := startServer(t)
	var refused atomic.Int64 // how many matchers the first one has
	url := proxy(t, am, func(w http.ResponseWriter, r *http.Request) bool {
		n := int64(len(posted(t, r).Matchers))
		if n > 0 && (refused.CompareAndSwap(0, n) || refused.Load() == n) {
			w.WriteHeader(http.StatusBadRequest)
			return true
		}
		return false
	}, nil)
	s := settings(t, url)
	s.Matchers = append(s.Matchers, matchers(t, `alertname="DiskBusy"`))
	d := startDaemon(t, s, fast(), aScrub)
	am.eventuallyOne("the other one is made")
	eventually(t, "it is tried again", func() bool { return d.requests("failure") >= 3 })
	if n := len(am.silences(ours)); n != 1 {
		t.Errorf("%d silences were made", n)
	}
}

func TestIdleDaemonAsksNobody(t *testing.T) {
	var asked atomic.Int64
	fake := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = io.WriteString(w, "[]")
	}))
	t.Cleanup(fake.Close)
	timing := fast()
	timing.Life = 200 * time.Millisecond // how long something of an earlier process may be there
	var looks atomic.Int64
	s, err := alertmanager.NewSilencer(settings(t, fake.URL), timing, func() []alertmanager.Work {
		looks.Add(1)
		return nil
	}, time.Now, log.NewNopLogger())
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	eventually(t, "it has looked for long", func() bool { return looks.Load() >= 50 })
	before := asked.Load()
	eventually(t, "it has looked longer", func() bool { return looks.Load() >= 100 })
	cancel()
	<-done
	if now := asked.Load(); now != before || before == 0 {
		t.Errorf("it asked %d times, and %d times more when nothing could be there any longer", before, now-before)
	}
}

func TestMetricsAreWellFormed(t *testing.T) {
	d := startDaemon(t, alertmanager.SilenceSettings{}, fast(), aScrub)
	eventually(t, "silences are off", func() bool { return d.silences() == 0 })
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(d)
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
}
