package notify_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/config"
	"github.com/prometheus/common/expfmt"

	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/notify"
)

// status answers with a status and headers, so many times.
func status(times, code int, headers ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if times == 0 || r.Method != http.MethodPost {
			return false
		}
		times--
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		// What one should not, but may, say.
		http.Error(w, "no: "+r.Header.Get("X-Gotify-Key")+r.Header.Get("Authorization")+" may not write to "+r.URL.String(), code)
		return true
	}
}

// metric is the value of a series, or -1 where it is not there.
func metric(t *testing.T, b *bridge, series string) float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(b)
	families, err := registry.Gather()
	must(t, err)
	var text strings.Builder
	for _, f := range families {
		_, err := expfmt.MetricFamilyToText(&text, f)
		must(t, err)
	}
	for line := range strings.Lines(text.String()) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			var v float64
			_, err := fmt.Sscan(value, &v)
			must(t, err)
			return v
		}
	}
	return -1
}

func TestOrderIsKept(t *testing.T) {
	noMoreGoroutines(t)
	s := serve(t, notify.Gotify)
	b := open(t, t.TempDir(), nil, s.receiver("phone")).start()
	defer b.stop()
	for i := range 30 {
		b.accept("phone", number(i))
	}
	eventually(t, "all are sent", func() bool { return s.idle(30) })
	for i, m := range s.all() {
		if !strings.Contains(m.Message, fmt.Sprintf("number %d*", i)) {
			t.Errorf("number %d is %q", i, m.Message)
		}
	}
}

func TestUnknownReceiverIsAnError(t *testing.T) {
	b := open(t, t.TempDir(), nil)
	if _, err := b.Accept("phone", number(1)); !errors.Is(err, notify.ErrUnknownReceiver) {
		t.Errorf("got %v", err)
	}
	if err := b.Test(t.Context(), "phone"); !errors.Is(err, notify.ErrUnknownReceiver) {
		t.Errorf("got %v", err)
	}
	if got := metric(t, b, `btrfs_governor_notifications_total{receiver="",result="unknown"}`); got != 1 {
		t.Errorf("%v are counted, want 1", got)
	}
}

func TestWhatWaitsIsSentAfterARestart(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, notify.Discord)
	b := open(t, dir, nil, s.receiver("chat"))
	for i := range 5 {
		b.accept("chat", number(i))
	}
	must(t, b.Close())
	b = open(t, dir, nil, s.receiver("chat")).start()
	eventually(t, "all are sent", func() bool { return s.idle(5) })
	b.stop()
	b = open(t, dir, nil, s.receiver("chat")).start()
	b.accept("chat", number(5))
	eventually(t, "the next is sent", func() bool { return s.idle(6) })
	b.stop()
	if got := s.all(); len(got) != 6 || !strings.Contains(got[4].Message, "number 4") || !strings.Contains(got[5].Message, "number 5") {
		t.Errorf("%d were sent: %v", len(got), got)
	}
}

func TestTheSameIsSentOnceAlsoAcrossARestart(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	s, other := serve(t, notify.Gotify), serve(t, notify.Gotify)
	m := message(firing("A", "info"), resolved("BB", "info"))
	again := message(m.Alerts[1], m.Alerts[0])
	again.ExternalURL = "https://the-other-member.example.org"
	b := open(t, dir, c, s.receiver("phone"), other.receiver("other")).start()
	repeat := func(what string, m *alertmanager.Message, want notify.Result) {
		t.Helper()
		if got, err := b.Accept("phone", m); err != nil || got != want {
			t.Errorf("%s is %s, %v, want %s", what, got, err, want)
		}
	}
	repeat("the first", m, notify.Queued)
	repeat("a repetition", again, notify.Duplicate)
	b.accept("other", m) // is somebody else
	eventually(t, "they are sent", func() bool { return s.idle(1) && other.idle(1) })
	repeat("one that was sent", again, notify.Duplicate)
	if got := metric(t, b, `btrfs_governor_notifications_total{receiver="phone",result="duplicate"}`); got != 2 {
		t.Errorf("%v duplicates are counted, want 2", got)
	}
	b.stop()
	c.advance(4 * time.Minute)
	b = open(t, dir, c, s.receiver("phone"), other.receiver("other")).start()
	defer b.stop()
	repeat("one before the restart", m, notify.Duplicate)

	ended := message(resolved("A", "info"), m.Alerts[1])
	repeat("one that says what has ended", ended, notify.Queued)
	later := message(ended.Alerts...)
	later.Alerts[0].EndsAt = later.Alerts[0].EndsAt.Add(time.Minute)
	repeat("one that ended later", later, notify.Queued)
	anew := message(firing("A", "info"), m.Alerts[1])
	anew.Alerts[0].StartsAt = began.Add(time.Hour)
	repeat("one that fires anew", anew, notify.Queued)
	group := *m
	group.GroupKey = "another"
	repeat("another group", &group, notify.Queued)

	c.advance(61 * time.Second)
	repeat("a reminder", m, notify.Queued)
	eventually(t, "all are sent", func() bool { return s.idle(6) })
}

// Alertmanager reminds every few hours of what a service that is gone has not heard.
func TestWhatStillWaitsNeedsNoReminder(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	s := serve(t, notify.Gotify)
	s.fail = status(-1, 500)
	b := open(t, dir, c, s.receiver("phone")).start()
	accept := func(what string, m *alertmanager.Message, want notify.Result) {
		t.Helper()
		c.advance(4 * time.Hour)
		if got, err := b.Accept("phone", m); err != nil || got != want {
			t.Errorf("%s is %s, %v, want %s", what, got, err, want)
		}
	}
	fires, ended := message(firing("A", "info")), message(resolved("A", "info"))
	other := message(firing("A", "info"))
	other.GroupKey = "another"
	accept("the first", fires, notify.Queued)
	accept("a reminder", fires, notify.Duplicate)
	accept("another group", other, notify.Queued)
	b.stop()
	b = open(t, dir, c, s.receiver("phone")).start()
	defer b.stop()
	accept("a reminder after a restart", fires, notify.Duplicate)
	accept("the end", ended, notify.Queued)
	// The end is the last that is said of the group: this is news.
	accept("the first once more", fires, notify.Queued)
	accept("its reminder", fires, notify.Duplicate)
	s.set(func(s *server) { s.fail = nil })
	eventually(t, "all four are sent", func() bool { c.advance(time.Hour); return s.idle(4) })
	eventually(t, "nothing waits", func() bool { return metric(t, b, `btrfs_governor_notifications_queued{receiver="phone"}`) == 0 })
	accept("a reminder of what was sent", fires, notify.Queued)
}

func TestFailuresAreTriedAgainMoreAndMoreSlowly(t *testing.T) {
	for _, code := range []int{500, 502, 503, 408, 425, 429} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			c := newClock()
			s := serve(t, notify.Gotify)
			s.fail = status(12, code)
			b := open(t, t.TempDir(), c, s.receiver("phone")).start()
			defer b.stop()
			b.accept("phone", number(1))
			longest := time.Second
			for i := range 12 {
				longest = min(2*longest, 5*time.Minute)
				wait := c.wait(t)
				if wait < longest/2 || wait > longest {
					t.Errorf("after %d failures it waits %s, want %s to %s", i+1, wait, longest/2, longest)
				}
				c.advance(wait)
			}
			eventually(t, "it is sent", func() bool { return s.idle(1) })
			eventually(t, "it is counted", func() bool {
				return metric(t, b, `btrfs_governor_notifications_total{receiver="phone",result="sent"}`) == 1
			})
			if got := metric(t, b, `btrfs_governor_notification_failures_total{receiver="phone"}`); got != 12 {
				t.Errorf("%v failures are counted, want 12", got)
			}
		})
	}
}

func TestServerThatIsGoneIsTriedAgain(t *testing.T) {
	c := newClock()
	s := serve(t, notify.Discord)
	gone := httptest.NewServer(nil)
	gone.Close()
	r := s.receiver("chat")
	dead := r
	dead.URL, dead.URLFile = "", filepath.Join(t.TempDir(), "url")
	must(t, os.WriteFile(dead.URLFile, []byte(gone.URL+webhook+"\n"), 0o600))
	b := open(t, t.TempDir(), c, dead).start()
	defer b.stop()
	b.accept("chat", number(1))
	c.wait(t)
	if got := metric(t, b, `btrfs_governor_notifications_queued{receiver="chat"}`); got != 1 {
		t.Errorf("%v wait, want 1", got)
	}
	c.advance(500 * time.Millisecond)
	if got := metric(t, b, `btrfs_governor_notifications_oldest_queued_seconds{receiver="chat"}`); got != 0.5 {
		t.Errorf("it waits for %v s, want 0.5", got)
	}
	// Other settings are used at once for what waits.
	must(t, b.SetSettings([]notify.Receiver{r}))
	eventually(t, "it is sent", func() bool { return s.idle(1) })
	eventually(t, "nothing waits", func() bool {
		return metric(t, b, `btrfs_governor_notifications_oldest_queued_seconds{receiver="chat"}`) == -1
	})
}

func TestRetryAfterIsObeyedAndBounded(t *testing.T) {
	for _, test := range []struct {
		code    int
		headers []string
		want    time.Duration
	}{
		{429, []string{"Retry-After", "90"}, 90 * time.Second},
		{503, []string{"Retry-After", "90.5"}, 90500 * time.Millisecond},
		{429, []string{"Retry-After", "1000000000"}, time.Hour},
		{503, []string{"Retry-After", "Sat, 07 Mar 2026 20:02:00 GMT", "Date", "Sat, 07 Mar 2026 20:00:00 GMT"}, 2 * time.Minute},
	} {
		t.Run(fmt.Sprint(test.headers), func(t *testing.T) {
			c := newClock()
			s := serve(t, notify.Ntfy)
			s.fail = status(1, test.code, test.headers...)
			b := open(t, t.TempDir(), c, s.receiver("phone")).start()
			defer b.stop()
			b.accept("phone", number(1))
			if got := c.wait(t); got != test.want {
				t.Errorf("it waits %s, want %s", got, test.want)
			}
			// A reload is no way around it.
			must(t, b.SetSettings([]notify.Receiver{s.receiver("phone")}))
			c.advance(test.want - time.Millisecond)
			c.wait(t)
			if s.idle(1) {
				t.Error("it was sent early")
			}
			c.advance(time.Millisecond)
			eventually(t, "it is sent", func() bool { return s.idle(1) })
		})
	}
}

// What a person has to mend is tried seldom, told once, and mended by a reload.
func TestWhatMustBeMendedWaits(t *testing.T) {
	for _, code := range []int{401, 403, 404, 405, 407, 411, 421, 301, 302, 307, 308} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			c := newClock()
			elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				t.Errorf("a redirect was followed with the headers %v", r.Header)
			}))
			defer elsewhere.Close()
			s := serve(t, notify.Gotify)
			s.fail = status(-1, code, "Location", elsewhere.URL)
			b := open(t, t.TempDir(), c, s.receiver("phone")).start()
			defer b.stop()
			b.accept("phone", number(1))
			for range 3 {
				if wait := c.wait(t); wait != 5*time.Minute {
					t.Errorf("it waits %s, want 5 m", wait)
				}
				c.advance(5 * time.Minute)
			}
			c.wait(t)
			if n := strings.Count(b.log.String(), "level=error"); n != 1 {
				t.Errorf("it is told %d times, want once:\n%s", n, b.log)
			}
			s.set(func(s *server) { s.fail = nil })
			must(t, b.SetSettings([]notify.Receiver{s.receiver("phone")}))
			eventually(t, "it is sent", func() bool { return s.idle(1) })
		})
	}
}

func TestRefusalEndsOneNotificationAndNotTheNext(t *testing.T) {
	s := serve(t, notify.Discord)
	failed := false
	s.fail = func(w http.ResponseWriter, r *http.Request) bool {
		if failed {
			return false
		}
		failed = true
		w.WriteHeader(400)
		fmt.Fprintf(w, `{"code":50035,"message":"no: %s"}`, r.URL)
		return true
	}
	b := open(t, t.TempDir(), nil, s.receiver("chat")).start()
	defer b.stop()
	b.accept("chat", number(1))
	b.accept("chat", number(2))
	eventually(t, "the second is sent", func() bool { return s.idle(1) })
	if got := s.all()[0]; !strings.Contains(got.Message, "number 2") {
		t.Errorf("what was sent is %q", got.Message)
	}
	if got := metric(t, b, `btrfs_governor_notifications_total{receiver="chat",result="refused"}`); got != 1 {
		t.Errorf("%v refusals are counted, want 1", got)
	}
	if !strings.Contains(b.log.String(), "discord answered 400 Bad Request: {") || !strings.Contains(b.log.String(), "<secret>") {
		t.Errorf("the log does not say why:\n%s", b.log)
	}
}

// Only the service itself can say that it never takes a notification.
func TestWhatIsOnTheWayRefusesNothing(t *testing.T) {
	for _, test := range []struct {
		kind notify.Kind
		code int
		body string
		want notify.Result // empty where it waits
	}{
		{notify.Ntfy, 400, `{"code":40024,"http":400,"error":"invalid request: title too long"}`, notify.Refused},
		{notify.Gotify, 400, `{"error":"Bad Request","errorCode":400,"errorDescription":"a field is missing"}`, notify.Refused},
		{notify.Discord, 400, `{"code":50035,"message":"Invalid Form Body"}`, notify.Refused},
		{notify.Discord, 400, `{"embeds":["0"]}`, notify.Refused},
		{notify.Ntfy, 413, `{"code":41303,"http":413,"error":"too large"}`, notify.Refused},
		{notify.Ntfy, 400, "Client sent an HTTP request to an HTTPS server.\n", ""},
		{notify.Gotify, 400, "<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>", ""},
		{notify.Gotify, 400, "", ""},
		{notify.Gotify, 400, `{"message":"of something else"}`, ""},
		{notify.Discord, 400, `"no"`, ""},
		{notify.Discord, 400, `{}`, ""},
		{notify.Gotify, 413, "<html><title>413 Request Entity Too Large</title></html>", ""},
		{notify.Discord, 405, `{"code":0,"message":"405: Method Not Allowed"}`, ""},
	} {
		t.Run(fmt.Sprintf("%s %d %s", test.kind, test.code, test.body), func(t *testing.T) {
			c := newClock()
			s := serve(t, test.kind)
			s.fail = func(w http.ResponseWriter, _ *http.Request) bool {
				w.WriteHeader(test.code)
				fmt.Fprint(w, test.body)
				return true
			}
			b := open(t, t.TempDir(), c, s.receiver("phone")).start()
			defer b.stop()
			b.accept("phone", number(1))
			if test.want != "" {
				eventually(t, "it is ended", func() bool {
					return metric(t, b, fmt.Sprintf(`btrfs_governor_notifications_total{receiver="phone",result=%q}`, test.want)) == 1
				})
				return
			}
			if wait := c.wait(t); wait != 5*time.Minute {
				t.Errorf("it waits %s, want 5 m", wait)
			}
			s.set(func(s *server) { s.fail = nil })
			c.advance(5 * time.Minute)
			eventually(t, "it is sent", func() bool { return s.idle(1) })
		})
	}
}

// A hotspot answers everything with 200 and a page.
func TestWebPageIsNoAnswer(t *testing.T) {
	c := newClock()
	s := serve(t, notify.Ntfy)
	s.fail = func(w http.ResponseWriter, _ *http.Request) bool {
		fmt.Fprint(w, "\n<!DOCTYPE html><title>Welcome</title>")
		return true
	}
	b := open(t, t.TempDir(), c, s.receiver("phone")).start()
	defer b.stop()
	b.accept("phone", number(1))
	if wait := c.wait(t); wait != 5*time.Minute {
		t.Errorf("it waits %s, want 5 m", wait)
	}
	s.set(func(s *server) { s.fail = nil })
	c.advance(5 * time.Minute)
	eventually(t, "it is sent", func() bool { return s.idle(1) })
}

func TestNoMoreAreSentInAMinuteThanMayBe(t *testing.T) {
	c := newClock()
	s := serve(t, notify.Gotify)
	r := s.receiver("phone")
	r.RateLimit = 3
	b := open(t, t.TempDir(), c, r).start()
	defer b.stop()
	for i := range 7 {
		b.accept("phone", number(i))
	}
	for sent := 3; sent < 7; sent += 3 {
		eventually(t, "some are sent", func() bool { return s.idle(sent) })
		if wait := c.wait(t); wait != time.Minute || len(s.all()) != sent {
			t.Errorf("it waits %s after %d, want a minute after %d", wait, len(s.all()), sent)
		}
		c.advance(time.Minute)
	}
	eventually(t, "all are sent", func() bool { return s.idle(7) })
}

func TestDiscordIsLeftAloneWhenItAsks(t *testing.T) {
	c := newClock()
	s := serve(t, notify.Discord)
	s.fail = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("X-RateLimit-Remaining", "0")
		w.Header().Set("X-RateLimit-Reset-After", "1.25")
		return false
	}
	b := open(t, t.TempDir(), c, s.receiver("chat")).start()
	defer b.stop()
	b.accept("chat", number(1))
	b.accept("chat", number(2))
	if wait := c.wait(t); wait != 1250*time.Millisecond || len(s.all()) != 1 {
		t.Errorf("it waits %s after %d", wait, len(s.all()))
	}
	c.advance(1250 * time.Millisecond)
	eventually(t, "the second is sent", func() bool { return s.idle(2) })
}

func TestDeadReceiverHoldsUpNoOther(t *testing.T) {
	noMoreGoroutines(t)
	release := make(chan struct{})
	dead := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer dead.Close()
	defer close(release)
	s := serve(t, notify.Gotify)
	slow := s.receiver("slow")
	slow.URL = config.Secret(dead.URL)
	b := open(t, t.TempDir(), nil, slow, s.receiver("phone")).start()
	for i := range 20 {
		b.accept("slow", number(i))
		b.accept("phone", number(i))
	}
	eventually(t, "the other got all", func() bool { return s.idle(20) })
	if got := metric(t, b, `btrfs_governor_notifications_queued{receiver="slow"}`); got != 20 {
		t.Errorf("%v wait, want 20", got)
	}
	// The one that hangs is waited for, and let go.
	must(t, b.SetSettings([]notify.Receiver{s.receiver("phone")}))
	go func() { release <- struct{}{} }()
	b.stop()
}

func TestReceiverThatGoesTakesItsQueueAlong(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, notify.Gotify)
	b := open(t, dir, nil, s.receiver("old"), s.receiver("phone"))
	for i := range 3 {
		b.accept("old", number(i))
	}
	b.accept("phone", number(1))
	must(t, b.Close())
	// Known only from the disk, and from the settings before.
	b = open(t, dir, nil, s.receiver("phone"))
	if !strings.Contains(b.log.String(), "receiver=old notifications=3") {
		t.Errorf("the log does not say what was dropped:\n%s", b.log)
	}
	dropped := func() float64 {
		return metric(t, b, `btrfs_governor_notifications_total{receiver="old",result="dropped"}`)
	}
	if got := dropped(); got != 3 {
		t.Errorf("%v are counted as dropped, want 3", got)
	}
	must(t, b.SetSettings([]notify.Receiver{s.receiver("old"), s.receiver("phone")}))
	if got := dropped(); got != 3 {
		t.Errorf("with the receiver again %v are counted as dropped, want 3", got)
	}
	b.start()
	b.accept("old", number(0)) // was never sent
	eventually(t, "the others are sent", func() bool { return s.idle(2) })
	b.stop()
	if n := len(s.all()); n != 2 {
		t.Errorf("%d were sent, want 2", n)
	}
}

func TestQueueIsBounded(t *testing.T) {
	s := serve(t, notify.Gotify)
	b := open(t, t.TempDir(), nil, s.receiver("phone"), s.receiver("other"))
	m := many(100, 0, strings.Repeat("x", 2000))
	big := func(n int) *alertmanager.Message {
		m.GroupKey = fmt.Sprint(n)
		return m
	}
	n := 0
	for ; n < 10_000; n++ {
		if _, err := b.Accept("phone", big(n)); err != nil {
			if !errors.Is(err, notify.ErrQueueFull) {
				t.Fatal(err)
			}
			break
		}
	}
	// A half of 8 MiB, of messages that are cut to 192 KiB.
	if n < 15 || n > 25 {
		t.Errorf("%d are taken", n)
	}
	b.accept("other", big(0))
	if got := metric(t, b, `btrfs_governor_notifications_total{receiver="phone",result="rejected"}`); got != 1 {
		t.Errorf("%v are counted, want 1", got)
	}
	must(t, b.Close())
}

func TestJournalStaysSmall(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	s := serve(t, notify.Gotify)
	b := open(t, dir, c, s.receiver("phone")).start()
	most := int64(0)
	for i := range 250 {
		c.advance(time.Second)
		m := many(30, 0, strings.Repeat("x", 100))
		m.GroupKey = fmt.Sprint(i)
		b.accept("phone", m)
		eventually(t, "it is sent", func() bool { return s.idle(i + 1) })
		info, err := os.Stat(filepath.Join(dir, "notifications.jsonl"))
		must(t, err)
		most = max(most, info.Size())
	}
	b.stop()
	if most > 1<<20 {
		t.Errorf("the journal had %d bytes", most)
	}
	b = open(t, dir, c, s.receiver("phone")).start()
	defer b.stop()
	m := many(30, 0, strings.Repeat("x", 100))
	m.GroupKey = "249"
	if got, err := b.Accept("phone", m); err != nil || got != notify.Duplicate {
		t.Errorf("after the compaction one that was sent is %s, %v", got, err)
	}
	if n := len(s.all()); n != 250 {
		t.Errorf("%d were sent", n)
	}
}

func TestDamagedLinesAreSetAside(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, notify.Gotify)
	b := open(t, dir, nil, s.receiver("phone"))
	b.accept("phone", number(1))
	b.accept("phone", number(2))
	must(t, b.Close())
	path := filepath.Join(dir, "notifications.jsonl")
	data, err := os.ReadFile(path)
	must(t, err)
	lines := strings.SplitAfter(string(data), "\n")
	bad := lines[0] + "\x00\x00garbage\n" + `{"id":"../etc","result":"sent"}` + "\n" + `{"id":"aa","receiver":"phone","key":"k","message":{}}` + "\n" + `{"id":"bb","result":"happy"}` + "\n" +
		lines[1] + lines[1] + `{"id":"cc","result":"sent"}` + "\n" + lines[1][:40]
	must(t, os.WriteFile(path, []byte(bad), 0o600))
	b = open(t, dir, nil, s.receiver("phone")).start()
	eventually(t, "the good ones are sent", func() bool { return s.idle(2) })
	b.stop()
	if !strings.Contains(b.log.String(), "Notifications may be lost") {
		t.Errorf("the log says nothing:\n%s", b.log)
	}
	kept, err := os.ReadFile(path + ".damaged")
	if err != nil || !strings.HasPrefix(string(kept), lines[0]+"\x00\x00garbage") {
		t.Errorf("what was damaged is not kept: %v", err)
	}
	if n := len(s.all()); n != 2 {
		t.Errorf("%d were sent", n)
	}
}

// A graceful stop waits for the answer, so that nothing is sent twice.
func TestStopWaitsForTheAnswer(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, notify.Gotify)
	arrived, goOn := make(chan struct{}), make(chan struct{})
	s.fail = func(http.ResponseWriter, *http.Request) bool {
		close(arrived)
		<-goOn
		s.fail = nil
		return false
	}
	b := open(t, dir, nil, s.receiver("phone")).start()
	b.accept("phone", number(1))
	<-arrived
	time.AfterFunc(50*time.Millisecond, func() { close(goOn) })
	b.stop()
	b = open(t, dir, nil, s.receiver("phone")).start()
	b.accept("phone", number(2))
	eventually(t, "the next is sent", func() bool { return s.idle(2) })
	b.stop()
	if got := s.all(); len(got) != 2 || !strings.Contains(got[1].Message, "number 2") {
		t.Errorf("%d were sent", len(got))
	}
}

// ntfy took it, and the connection broke before it could say so.
func TestLostAnswerOfNtfyIsFoundOut(t *testing.T) {
	c := newClock()
	s := serve(t, notify.Ntfy)
	s.lose = true
	b := open(t, t.TempDir(), c, s.receiver("phone")).start()
	defer b.stop()
	b.accept("phone", number(1))
	b.accept("phone", number(2))
	c.advance(c.wait(t))
	eventually(t, "the next is sent", func() bool { return s.idle(2) })
	if got := s.all(); len(got) != 2 || got[0].ID == got[1].ID || s.looks != 1 {
		t.Errorf("%d were sent, after %d looks", len(got), s.looks)
	}
	if got := metric(t, b, `btrfs_governor_notifications_total{receiver="phone",result="sent"}`); got < 1 {
		t.Errorf("%v are counted", got)
	}
}

// Where the topic may not be read it is sent again, with an id by which a phone
// shows it once.
func TestTopicThatMayNotBeReadLosesNothing(t *testing.T) {
	c := newClock()
	s := serve(t, notify.Ntfy)
	s.lose = true
	s.fail = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	b := open(t, t.TempDir(), c, s.receiver("phone")).start()
	defer b.stop()
	b.accept("phone", number(1))
	c.advance(c.wait(t))
	eventually(t, "it is sent again", func() bool { return s.idle(2) })
	if got := s.all(); got[0].ID != got[1].ID {
		t.Errorf("the ids are %q and %q", got[0].ID, got[1].ID)
	}
}

// The disk is full, or gone: what was sent is not sent again for that.
func TestDiskThatFailsSendsNothingTwice(t *testing.T) {
	noMoreGoroutines(t)
	dir, c := t.TempDir(), newClock()
	s := serve(t, notify.Gotify)
	s.fail = status(1, 500)
	b := open(t, dir, c, s.receiver("phone"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	b.accept("phone", number(1))
	c.advance(c.wait(t))
	b.accept("phone", number(2))
	eventually(t, "both are sent", func() bool { return s.idle(2) })
	s.set(func(s *server) { s.fail = status(1, 500) })
	b.accept("phone", number(3))
	wait := c.wait(t)
	must(t, b.Close()) // every write fails from here on
	if _, err := b.Accept("phone", number(4)); err == nil {
		t.Error("it is accepted, and is nowhere")
	}
	c.advance(wait)
	eventually(t, "the third is sent", func() bool { return s.idle(3) })
	eventually(t, "that is told", func() bool { return strings.Contains(b.log.String(), "could not be written down") })
	for range 3 { // it is tried again, and nothing else
		c.advance(c.wait(t))
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("the end does not say that something could not be written")
	}
	if n := len(s.all()); n != 3 {
		t.Errorf("%d were sent, want 3", n)
	}
}

func TestTestSaysWhatTheServiceAnswers(t *testing.T) {
	for _, kind := range kinds {
		s := serve(t, kind)
		b := open(t, t.TempDir(), nil, s.receiver("phone"))
		must(t, b.Test(t.Context(), "phone"))
		if got := s.all(); len(got) != 1 || !strings.Contains(got[0].Title+got[0].Message, "BtrfsGovernorTest") {
			t.Errorf("%s was sent %v", kind, got)
		}
		s.set(func(s *server) { s.fail = status(-1, 401) })
		err := b.Test(t.Context(), "phone")
		if err == nil || !strings.Contains(err.Error(), string(kind)+" answered 401 Unauthorized: no: ") || strings.Contains(err.Error(), token) || strings.Contains(err.Error(), "Zx81") {
			t.Errorf("%s: the error is %v", kind, err)
		}
		must(t, b.Close())
	}
}

func TestMetricsAreGood(t *testing.T) {
	s := serve(t, notify.Gotify)
	b := open(t, t.TempDir(), nil, s.receiver("phone"))
	b.accept("phone", number(1))
	problems, err := testutil.CollectAndLint(b)
	must(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if n := testutil.CollectAndCount(b); n != 9 {
		t.Errorf("there are %d series, want 9", n)
	}
}
