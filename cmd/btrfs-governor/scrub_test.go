package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/scrub"
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
		{"status attic", []fakeAnswer{{200, statusWith(scrub.Running, nil)}}, "GET /api/v1/pools/attic/scrub", "25.0 % done, 200 MiB/s, about 2h30m left"},
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
	d := startFakeDaemon(t,
		fakeAnswer{202, map[string]string{"id": "scrub-1"}},
		fakeAnswer{200, statusWith(scrub.Running, nil)},
		fakeAnswer{200, statusWith(scrub.Running, nil)},
		fakeAnswer{200, statusWith(scrub.Yielding, func(s *scrub.Status) { s.Reason = "readers on sda" })},
		fakeAnswer{200, statusWith(scrub.Finished, func(s *scrub.Status) { s.Reason = "No errors" })},
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
	if status, _, stderr := runCommandLine("scrub", "status", "attic", "--api.socket="+none); status != 1 || !strings.Contains(stderr, "systemctl start btrfs-governor") {
		t.Errorf("status %d: %q", status, stderr)
	}
}

func TestScrubTableFitsTheTerminal(t *testing.T) {
	s := statusWith(scrub.Yielding, func(s *scrub.Status) {
		s.Reason = "readers on sda: 31 reads/s"
		s.Devices[1].Error = "the device is missing"
		s.Damage = &scrub.Damage{
			Errors: []scrub.DamagedBlock{
				{Device: "sda", Corrected: true, Files: []scrub.DamagedFile{{Subvolume: "@home", Path: "photos/é.jpg", Offset: 4096}}},
				{Device: "sdb", Metadata: true, Physical: 1 << 30}, {Device: "sdb", Physical: 5},
			},
			Truncated: true, Unlocated: 3,
		}
	})
	full := renderScrub(&s, time.Now(), 0)
	for _, want := range []string{
		"Scrub yielding: readers on sda: 31 reads/s", "gave way for 5m0s", "#", "yields",
		"corrected      @home/photos/é.jpg, at byte 4096, on sda", "NOT corrected  metadata, at 1073741824 on sdb",
		"no file uses", "and more", "and 3 errors whose place is not known", "the device is missing",
	} {
		if !strings.Contains(full, want) {
			t.Errorf("%q is not in:\n%s", want, full)
		}
	}
	for _, width := range []int{20, 40, 80, 120} {
		text := renderScrub(&s, time.Now(), width)
		if strings.Count(text, "\n") != strings.Count(full, "\n") {
			t.Errorf("at width %d there are other lines", width)
		}
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("width %d: %q has %d characters", width, line, n)
			}
		}
	}
}

func TestTokenIsPrinted(t *testing.T) {
	dir := t.TempDir()
	if status, _, stderr := runCommandLine("token", "--state.dir="+dir); status != 1 || !strings.Contains(stderr, "first start") {
		t.Errorf("without a token: %d %q", status, stderr)
	}
	const secret = "0123456789abcdef"
	must(t, os.WriteFile(filepath.Join(dir, "token"), []byte(secret+"\n"), 0o600))
	if status, stdout, stderr := runCommandLine("token", "--state.dir="+dir); status != 0 || stdout != fmt.Sprintln(secret) {
		t.Errorf("got %d %q %q", status, stdout, stderr)
	}
}
