package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/scrub/statusfile"
)

// fakeDaemon answers on a Unix socket, each request with the next answer.
type fakeDaemon struct {
	socket string

	mu       sync.Mutex
	requests []string
	answers  []fakeAnswer
}

type fakeAnswer struct {
	status int
	body   any
}

func startFakeDaemon(t *testing.T, answers ...fakeAnswer) *fakeDaemon {
	t.Helper()
	d := &fakeDaemon{socket: filepath.Join(t.TempDir(), "s"), answers: answers}
	l, err := net.Listen("unix", d.socket)
	must(t, err)
	server := &http.Server{Handler: d}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return d
}

// ServeHTTP implements http.Handler.
func (d *fakeDaemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests = append(d.requests, r.Method+" "+r.URL.String())
	if len(d.answers) == 0 {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	a := d.answers[0]
	if len(d.answers) > 1 {
		d.answers = d.answers[1:]
	}
	w.WriteHeader(a.status)
	_ = json.NewEncoder(w).Encode(a.body)
}

func runCommandLine(args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = run(context.Background(), args, &out, &errs)
	return status, out.String(), errs.String()
}

var testPool = btrfs.UUID{0xaa, 15: 1}

func statusWith(state scrub.State, change func(*scrub.Status)) scrub.Status {
	s := scrub.Status{
		Pool: testPool, State: state, Options: scrub.Options{Mode: scrub.Auto}, Progress: 0.25,
		Started: time.Now().Add(-time.Hour), Duration: 50 * time.Minute, Yielded: 5 * time.Minute, Rate: 200 << 20, ETA: 2*time.Hour + 30*time.Minute,
		Devices: []scrub.DeviceStatus{
			{DevID: 1, Path: "/dev/sda", Size: 4 << 40, Position: 1 << 40, Rate: 100 << 20},
			{DevID: 2, Path: "/dev/sdb", Size: 4 << 40, Position: 1 << 40, Rate: 100 << 20, Limit: 1},
		},
	}
	if change != nil {
		change(&s)
	}
	return s
}

func TestScrubCommandsSendTheRightRequests(t *testing.T) {
	plan := fakeAnswer{200, scrub.Plan{Pool: testPool, Would: []string{"read and check"}}}
	one := fakeAnswer{200, map[string]any{"pools": []map[string]string{{"uuid": testPool.String()}}}}
	for _, tt := range []struct {
		args    string
		answers []fakeAnswer
		want    string
		prints  string
	}{
		{"start attic --dry-run", []fakeAnswer{plan}, "POST /api/v1/pools/attic/scrub?dry_run=true", "read and check"},
		{"start --pool attic --mode full --read-only", []fakeAnswer{{202, map[string]string{"id": "scrub-1", "pool": testPool.String()}}},
			"POST /api/v1/pools/attic/scrub?mode=full&read_only=true", "scrub-1"},
		{"start attic --limit 50MB --deadline 24h --not-before 1h", []fakeAnswer{{202, map[string]string{"id": "scrub-1", "pool": testPool.String()}}},
			"POST /api/v1/pools/attic/scrub?deadline=24h&limit=50MB&not_before=1h", "status --follow"},
		{"pause attic", []fakeAnswer{{202, statusWith(scrub.Running, nil)}}, "POST /api/v1/pools/attic/scrub/pause", "is being paused"},
		{"resume attic", []fakeAnswer{{202, statusWith(scrub.Paused, nil)}}, "POST /api/v1/pools/attic/scrub/resume", "goes on"},
		{"cancel attic", []fakeAnswer{{202, statusWith(scrub.Running, nil)}}, "DELETE /api/v1/pools/attic/scrub", "is being cancelled"},
		{"cancel attic --dry-run --output json", []fakeAnswer{plan}, "DELETE /api/v1/pools/attic/scrub?dry_run=true", `"would":["read and check"]`},
		{"status a/b", nil, "", ""},
		{"status", []fakeAnswer{one, {200, statusWith(scrub.Paused, nil)}},
			"GET /api/v1/pools|GET /api/v1/pools/" + testPool.String() + "/scrub", "Scrub paused"},
		{"status attic", []fakeAnswer{{200, statusWith(scrub.Running, nil)}}, "GET /api/v1/pools/attic/scrub", "25.0 % done, 200 MiB/s, about 2h 30m left"},
		{"status odd/../name --output json", nil, "", ""},
	} {
		d := startFakeDaemon(t, tt.answers...)
		status, stdout, stderr := runCommandLine(append(append([]string{"scrub"}, strings.Fields(tt.args)...), "--api.socket="+d.socket)...)
		if got := strings.Join(d.requests, "|"); got != tt.want || !strings.Contains(stdout, tt.prints) {
			t.Errorf("%s: sent %q, want %q; printed %q, want %q\n%s", tt.args, got, tt.want, stdout, tt.prints, stderr)
		}
		if (status != 0) != (tt.want == "") {
			t.Errorf("%s: exit status %d: %s", tt.args, status, stderr)
		}
	}
}

func TestScrubExitStatus(t *testing.T) {
	counters := func(c btrfs.ScrubCounters) func(*scrub.Status) {
		return func(s *scrub.Status) { s.Devices[0].Counters = c }
	}
	corrected := counters(btrfs.ScrubCounters{CsumErrors: 2, CorrectedErrors: 2})
	for name, tt := range map[string]struct {
		s    scrub.Status
		want int
	}{
		"clean":         {statusWith(scrub.Finished, nil), 0},
		"corrected":     {statusWith(scrub.Finished, corrected), 3},
		"uncorrectable": {statusWith(scrub.Finished, counters(btrfs.ScrubCounters{CsumErrors: 2, UncorrectableErrors: 1, CorrectedErrors: 1})), 4},
		"not written":   {statusWith(scrub.Finished, counters(btrfs.ScrubCounters{CsumErrors: 2, CorrectedErrors: 1})), 4},
		"read-only": {statusWith(scrub.Finished, func(s *scrub.Status) {
			corrected(s)
			s.Options.ReadOnly = true
		}), 4},
		"cancelled":                {statusWith(scrub.Cancelled, nil), 1},
		"failed":                   {statusWith(scrub.Failed, nil), 1},
		"failed and uncorrectable": {statusWith(scrub.Failed, counters(btrfs.ScrubCounters{CsumErrors: 1, UncorrectableErrors: 1})), 4},
		"superblock":               {statusWith(scrub.Finished, counters(btrfs.ScrubCounters{SuperErrors: 1})), 3},
	} {
		d := startFakeDaemon(t, fakeAnswer{200, tt.s})
		if got, _, stderr := runCommandLine("scrub", "status", "attic", "--api.socket="+d.socket); got != tt.want {
			t.Errorf("%s: exit status %d, want %d: %s", name, got, tt.want, stderr)
		}
	}
}

func TestScrubFollowPrintsChangesAndTheEnd(t *testing.T) {
	ofJob := func(state scrub.State, reason string) scrub.Status {
		return statusWith(state, func(s *scrub.Status) { s.JobID, s.Reason = "scrub-1", reason })
	}
	d := startFakeDaemon(t,
		fakeAnswer{202, map[string]string{"id": "scrub-1", "pool": testPool.String()}},
		fakeAnswer{200, ofJob(scrub.Running, "")},
		fakeAnswer{200, ofJob(scrub.Running, "")},
		fakeAnswer{200, ofJob(scrub.Yielding, "readers on sda")},
		fakeAnswer{200, ofJob(scrub.Finished, "No errors")},
	)
	status, stdout, stderr := runCommandLine("scrub", "start", "attic", "-f", "--api.socket="+d.socket)
	if status != 0 || stderr != "" {
		t.Errorf("exit status %d: %s", status, stderr)
	}
	for what, want := range map[string]int{"running 25.0%": 1, "(readers on sda)": 1, "finished 25.0%": 1, "Scrub finished: No errors": 1} {
		if got := strings.Count(stdout, what); got != want {
			t.Errorf("%q stands %d times, want %d, in:\n%s", what, got, want, stdout)
		}
	}
}

func TestScrubErrorsSayWhatToDo(t *testing.T) {
	d := startFakeDaemon(t, fakeAnswer{409, map[string]any{"detail": "A scrub is under way.", "job": map[string]string{"id": "scrub-7"}}})
	if status, _, stderr := runCommandLine("scrub", "start", "attic", "--api.socket="+d.socket); status != 1 || stderr != "btrfs-governor: A scrub is under way (job scrub-7)\n" {
		t.Errorf("status %d: %q", status, stderr)
	}
	none := filepath.Join(t.TempDir(), "none")
	if status, _, stderr := runCommandLine("scrub", "status", "no-such-pool", "--api.socket="+none); status != 1 || !strings.Contains(stderr, "systemctl start btrfs-governor") {
		t.Errorf("status %d: %q", status, stderr)
	}
}

func TestScrubAnswersThatAreNoAnswerAreErrors(t *testing.T) {
	for _, tt := range []struct {
		answer fakeAnswer
		want   string
	}{
		{fakeAnswer{409, map[string]any{"detail": "\"a\" may be any of 2 pools: give the UUID.", "candidates": []string{"aa", "ab"}}},
			`"a" may be any of 2 pools: give the UUID: aa, ab`},
		{fakeAnswer{502, "nonsense"}, "the daemon answers with 502 Bad Gateway"},
		{fakeAnswer{200, "nonsense"}, "read the daemon's answer: "},
	} {
		d := startFakeDaemon(t, tt.answer)
		status, stdout, stderr := runCommandLine("scrub", "status", "a", "--api.socket="+d.socket)
		if status != 1 || stdout != "" || !strings.HasPrefix(stderr, "btrfs-governor: "+tt.want) {
			t.Errorf("status %d: %q %q, want %q", status, stdout, stderr, tt.want)
		}
	}
}

func TestScrubWithoutDaemonSaysHowToGoOn(t *testing.T) {
	none := "--api.socket=" + filepath.Join(t.TempDir(), "none")
	for args, want := range map[string]string{
		"start attic":            "--foreground scrubs without it",
		"pause attic":            "`btrfs-governor serve`",
		"status --follow attic":  "`btrfs-governor serve`",
		"start attic --mode=ful": "must be one of ,auto,full,limit, got 'ful'; see btrfs-governor scrub start --help",
		"stop attic":             `see btrfs-governor scrub --help`,
	} {
		words := append([]string{"scrub"}, strings.Fields(args)...)
		if args != "stop attic" {
			words = append(words, none)
		}
		if status, stdout, stderr := runCommandLine(words...); status != 1 || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%s: status %d: %q, want %q", args, status, stderr, want)
		}
	}
}

func TestScrubFollowsItsJobToTheEnd(t *testing.T) {
	of := func(id string, state scrub.State) scrub.Status {
		return statusWith(state, func(s *scrub.Status) { s.JobID = id })
	}
	result, err := json.Marshal(of("scrub-1", scrub.Cancelled))
	must(t, err)
	d := startFakeDaemon(t,
		fakeAnswer{202, map[string]string{"id": "scrub-1", "pool": testPool.String()}},
		fakeAnswer{200, of("scrub-1", scrub.Running)},
		fakeAnswer{200, of("scrub-2", scrub.Running)}, // another one began meanwhile
		fakeAnswer{200, map[string]any{"id": "scrub-1", "state": "cancelled", "result": json.RawMessage(result)}},
	)
	status, stdout, stderr := runCommandLine("scrub", "start", "attic", "-f", "--output=json", "--api.socket="+d.socket)
	if status != 1 || stderr != "" { // it has not scrubbed all
		t.Errorf("exit status %d: %s", status, stderr)
	}
	var states []string
	for line := range strings.Lines(stdout) {
		var s scrub.Status
		must(t, json.Unmarshal([]byte(line), &s))
		states = append(states, s.JobID+" "+string(s.State))
	}
	if got := strings.Join(states, ", "); got != "scrub-1 running, scrub-1 cancelled" {
		t.Errorf("got %s", got)
	}
	if got := d.requests[len(d.requests)-1]; got != "GET /api/v1/jobs/scrub-1" {
		t.Errorf("the last request is %s", got)
	}
}

func TestScrubGoesOnWhenNobodyFollows(t *testing.T) {
	d := startFakeDaemon(t, fakeAnswer{200, statusWith(scrub.Running, nil)})
	ctx, cancel := context.WithCancel(t.Context())
	seen, errs := &firstWrite{cancel: cancel}, new(bytes.Buffer)
	status := run(ctx, []string{"scrub", "status", "attic", "--follow", "--api.socket=" + d.socket}, seen, errs)
	if want := "which goes on; see it with `btrfs-governor scrub status --follow " + testPool.String(); status != 1 || !strings.Contains(errs.String(), want) {
		t.Errorf("exit status %d: %q, want %q", status, errs, want)
	}
	for _, r := range d.requests {
		if !strings.HasPrefix(r, "GET ") {
			t.Errorf("sent %s", r)
		}
	}
}

// firstWrite cancels when something was written: Ctrl-C of somebody who has seen
// it.
type firstWrite struct{ cancel func() }

func (w *firstWrite) Write(b []byte) (int, error) {
	w.cancel()
	return len(b), nil
}

func TestScrubRecordWithoutDaemon(t *testing.T) {
	began := time.Unix(1795593219, 0).UTC()
	finished := statusfile.Device{DevID: 1, Finished: true, Started: began.Add(time.Second), Duration: time.Hour, Counters: btrfs.ScrubCounters{CsumErrors: 2, CorrectedErrors: 2}}
	open, cancelled := finished, finished
	open.DevID, open.Finished, open.Started = 2, false, began
	cancelled.DevID, cancelled.Finished, cancelled.Canceled = 3, false, true
	for _, tt := range []struct {
		devices []statusfile.Device
		state   scrub.State
		exit    error
	}{
		{nil, scrub.Idle, nil},
		{[]statusfile.Device{finished}, scrub.Finished, exitStatus(3)},
		{[]statusfile.Device{open, finished}, scrub.Waiting, exitStatus(3)},
		{[]statusfile.Device{cancelled, open, finished}, scrub.Cancelled, exitStatus(1)},
	} {
		s := recordedScrub(testPool, tt.devices)
		if s.State != tt.state || !errors.Is(outcome(&s), tt.exit) {
			t.Errorf("%+v: %s and %v, want %s and %v", tt.devices, s.State, outcome(&s), tt.state, tt.exit)
		}
		if tt.state == scrub.Waiting && (s.Started != began || s.Duration != time.Hour || s.Reason == "") {
			t.Errorf("%+v", s)
		}
	}
}

func TestTokenIsPrinted(t *testing.T) {
	dir := t.TempDir()
	if status, _, stderr := runCommandLine("token", "--state.dir="+dir); status != 1 || !strings.Contains(stderr, "first start") {
		t.Errorf("without a token: %d %q", status, stderr)
	}
	if status, _, stderr := runCommandLine("token", "--token-file="+dir+"/mine"); status != 1 || !strings.Contains(stderr, dir+"/mine") {
		t.Errorf("without the file: %d %q", status, stderr)
	}
	const secret = "0123456789abcdef"
	must(t, os.WriteFile(filepath.Join(dir, "token"), []byte(secret+"\n"), 0o600))
	if status, stdout, stderr := runCommandLine("token", "--state.dir="+dir); status != 0 || stdout != fmt.Sprintln(secret) {
		t.Errorf("got %d %q %q", status, stdout, stderr)
	}
	if status, stdout, stderr := runCommandLine("token", "--token-file="+dir+"/token"); status != 0 || stdout != fmt.Sprintln(secret) {
		t.Errorf("got %d %q %q", status, stdout, stderr)
	}
}
