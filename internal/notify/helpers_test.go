package notify_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/go-kit/log"
	"github.com/prometheus/common/config"

	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/notify"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

const (
	topic    = "attic-9f2c11aa"
	token    = "tk_agqdq7mvbs5ba2vsnmpx"
	webhook  = "/api/webhooks/1122334455/Zx81-secret-of-the-webhook"
	patience = 30 * time.Second
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// clock is a time that a test moves.
type clock struct {
	mu     sync.Mutex
	now    time.Time
	timers []timer
}

type timer struct {
	at time.Time
	ch chan time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 3, 7, 20, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	c.timers = append(c.timers, timer{c.now.Add(d), ch})
	return ch
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.timers = slices.DeleteFunc(c.timers, func(t timer) bool {
		if t.at.After(c.now) {
			return false
		}
		t.ch <- c.now
		return true
	})
}

// wait waits until somebody sleeps, and says until when the first does.
func (c *clock) wait(t testing.TB) time.Duration {
	t.Helper()
	var next time.Duration
	eventually(t, "somebody waits for the clock", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.timers) == 0 {
			return false
		}
		next = slices.MinFunc(c.timers, func(a, b timer) int { return a.at.Compare(b.at) }).at.Sub(c.now)
		return true
	})
	return next
}

// sent is a request that a service got.
type sent struct {
	ID       string // ntfy
	Title    string
	Message  string
	Priority int
	Body     map[string]any
}

// server is one of the services, and refuses what that would.
type server struct {
	*httptest.Server
	kind notify.Kind

	mu       sync.Mutex
	got      []sent
	looks    int
	refusals []error // of what no bridge should send
	// fail answers instead of the service, where it is not nil and returns true.
	fail func(w http.ResponseWriter, r *http.Request) bool
	// lose takes the message and then breaks the connection.
	lose bool
	// slow is how long the message is there before the answer.
	slow time.Duration
}

func serve(t testing.TB, kind notify.Kind) *server {
	s := &server{kind: kind}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.Close()
		for _, err := range s.refusals {
			t.Error(err)
		}
	})
	return s
}

// receiver is the settings that reach it.
func (s *server) receiver(name string) notify.Receiver {
	return receiver(s.kind, name, s.URL)
}

func receiver(kind notify.Kind, name, address string) notify.Receiver {
	r := notify.Receiver{Name: name, Kind: kind, URL: config.Secret(address), RateLimit: 10_000}
	switch kind {
	case notify.Ntfy:
		r.Topic, r.Token = topic, token
	case notify.Gotify:
		r.Token = token
	case notify.Discord:
		r.URL += webhook
	}
	return r
}

func (s *server) set(change func(*server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// idle reports whether a number of messages came, or one that is wrong.
func (s *server) idle(messages int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.got) >= messages || len(s.refusals) > 0
}

func (s *server) all() []sent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kind == notify.Ntfy && r.Method == http.MethodGet {
		s.look(w, r)
		return
	}
	if s.fail != nil && s.fail(w, r) {
		return
	}
	data, err := io.ReadAll(r.Body)
	var m sent
	if err == nil {
		m, err = s.read(r, data)
	}
	if err != nil {
		s.refusals = append(s.refusals, fmt.Errorf("%s would refuse this: %w\n%.2000s", s.kind, err, data))
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.got = append(s.got, m)
	if s.lose {
		s.lose = false
		panic(http.ErrAbortHandler)
	}
	n, slow := len(s.got), s.slow
	s.mu.Unlock()
	time.Sleep(slow)
	s.mu.Lock()
	fmt.Fprintf(w, `{"id":"%d"}`, n)
}

// look is the cache of a topic (docs.ntfy.sh/subscribe/api).
func (s *server) look(w http.ResponseWriter, r *http.Request) {
	s.looks++
	since, err := time.ParseDuration(r.URL.Query().Get("since"))
	if r.URL.Path != "/"+topic+"/json" || r.URL.Query().Get("poll") != "1" || err != nil || since <= 0 || r.Header.Get("Authorization") != "Bearer "+token {
		s.refusals = append(s.refusals, fmt.Errorf("ntfy is asked %s", r.URL))
	}
	if s.fail != nil && s.fail(w, r) {
		return
	}
	for i, m := range s.got {
		line, _ := json.Marshal(map[string]any{"id": fmt.Sprint(i), "event": "message", "sequence_id": m.ID, "message": m.Message})
		fmt.Fprintf(w, "%s\n", line)
	}
}

func characters(text any) int {
	s, _ := text.(string)
	return len(utf16.Encode([]rune(s)))
}

// read refuses what the service would.
func (s *server) read(r *http.Request, data []byte) (m sent, err error) {
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" || !utf8.Valid(data) {
		return m, fmt.Errorf("it is %s of %q", r.Method, r.Header.Get("Content-Type"))
	}
	if err := json.Unmarshal(data, &m.Body); err != nil {
		return m, err
	}
	switch s.kind {
	case notify.Ntfy:
		return m, s.readNtfy(r, data, &m)
	case notify.Gotify:
		if r.URL.Path != "/message" || r.Header.Get("X-Gotify-Key") != token {
			return m, fmt.Errorf("it goes to %s", r.URL)
		}
		m.Title, _ = m.Body["title"].(string)
		m.Message, _ = m.Body["message"].(string)
		m.Priority = int(m.Body["priority"].(float64))
		if m.Message == "" || m.Priority < 0 || m.Priority > 10 {
			return m, errors.New("message or priority is wrong")
		}
		return m, nil
	default:
		return m, s.readDiscord(r, &m)
	}
}

func (s *server) readNtfy(r *http.Request, data []byte, m *sent) error {
	m.ID, _ = m.Body["sequence_id"].(string)
	m.Title, _ = m.Body["title"].(string)
	m.Message, _ = m.Body["message"].(string)
	m.Priority = int(m.Body["priority"].(float64))
	actions, _ := m.Body["actions"].([]any)
	switch {
	case r.URL.Path != "/" && r.URL.Path != "", r.Header.Get("Authorization") != "Bearer "+token:
		return fmt.Errorf("it goes to %s with %q", r.URL, r.Header.Get("Authorization"))
	case m.Body["topic"] != topic:
		return fmt.Errorf("the topic is %v", m.Body["topic"])
	case len(data) > 8192, len(m.Message) > 4096, len(m.Message) == 0:
		return fmt.Errorf("it has %d bytes, and the message %d", len(data), len(m.Message))
	case m.Priority < 1, m.Priority > 5, len(actions) > 3:
		return errors.New("priority or actions")
	case m.ID == "" || len(m.ID) > 64:
		return fmt.Errorf("sequence_id is %q", m.ID)
	}
	for _, a := range actions {
		action := a.(map[string]any)
		if u, err := url.Parse(action["url"].(string)); action["action"] != "view" || action["label"] == "" || err != nil || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("action %v", action)
		}
	}
	return nil
}

func (s *server) readDiscord(r *http.Request, m *sent) error {
	if r.URL.Path != webhook || r.URL.Query().Get("wait") != "true" {
		return fmt.Errorf("it goes to %s", r.URL)
	}
	mentions, _ := m.Body["allowed_mentions"].(map[string]any)
	if parse, ok := mentions["parse"].([]any); !ok || len(parse) != 0 {
		return errors.New("it may ping somebody")
	}
	embeds, _ := m.Body["embeds"].([]any)
	if len(embeds) != 1 {
		return fmt.Errorf("there are %d embeds", len(embeds))
	}
	card := embeds[0].(map[string]any)
	m.Title, _ = card["title"].(string)
	m.Message, _ = card["description"].(string)
	m.Priority = int(card["color"].(float64))
	all := characters(m.Title) + characters(m.Message)
	if n := characters(m.Title); n == 0 || n > 256 {
		return fmt.Errorf("the title has %d", n)
	}
	if n := characters(m.Message); n > 4096 {
		return fmt.Errorf("the description has %d", n)
	}
	fields, _ := card["fields"].([]any)
	for _, f := range fields {
		field := f.(map[string]any)
		name, value := characters(field["name"]), characters(field["value"])
		if name == 0 || name > 256 || value == 0 || value > 1024 {
			return fmt.Errorf("field %v", field)
		}
		all += name + value
	}
	if all > 6000 || len(fields) > 25 {
		return fmt.Errorf("the embed has %d, and %d fields", all, len(fields))
	}
	if link, ok := card["url"].(string); ok {
		if u, err := url.Parse(link); err != nil || u.Scheme != "http" && u.Scheme != "https" || !strings.Contains(u.Host, ".") {
			return fmt.Errorf("url is %q", link)
		}
	}
	if at, ok := card["timestamp"].(string); ok {
		if _, err := time.Parse(time.RFC3339, at); err != nil {
			return err
		}
	}
	return nil
}

// bridge is a Bridge that runs.
type bridge struct {
	*notify.Bridge
	t    testing.TB
	log  *logText
	end  context.CancelFunc
	done chan error
}

type logText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// open is a Bridge that does not run yet.
func open(t testing.TB, dir string, c notify.Clock, receivers ...notify.Receiver) *bridge {
	t.Helper()
	b := unset(t, dir, c)
	must(t, b.SetSettings(receivers))
	return b
}

// unset is a Bridge that has no settings yet.
func unset(t testing.TB, dir string, c notify.Clock) *bridge {
	t.Helper()
	b := &bridge{t: t, log: &logText{}, done: make(chan error, 1)}
	var err error
	b.Bridge, err = notify.New(notify.Config{Logger: log.NewLogfmtLogger(b.log), State: state.NewDir(dir), Clock: c, Version: "1.2.3"})
	must(t, err)
	return b
}

func (b *bridge) start() *bridge {
	ctx, cancel := context.WithCancel(context.Background())
	b.end = cancel
	go func() { b.done <- b.Run(ctx) }()
	b.t.Cleanup(b.stop)
	return b
}

// stop stops it as the daemon would, and fails the test where a secret is in the log.
func (b *bridge) stop() {
	b.t.Helper()
	if b.end == nil {
		return
	}
	b.end()
	b.end = nil
	if err := <-b.done; err != nil {
		b.t.Error(err)
	}
	if err := b.Close(); err != nil {
		b.t.Error(err)
	}
	for _, secret := range []string{topic, token, webhook, "Zx81"} {
		if strings.Contains(b.log.String(), secret) {
			b.t.Errorf("the log shows %q:\n%s", secret, b.log)
		}
	}
}

func (b *bridge) accept(name string, m *alertmanager.Message) {
	b.t.Helper()
	result, err := b.Accept(name, m)
	if err != nil || result != notify.Queued {
		b.t.Fatalf("accepted as %q, %v", result, err)
	}
}

// message is a group with alerts.
func message(alerts ...alertmanager.Alert) *alertmanager.Message {
	m := &alertmanager.Message{
		Version: "4", GroupKey: `{}:{uuid="5f1c"}`, Status: alertmanager.Resolved, Receiver: "phone", ExternalURL: "https://alertmanager.example.org", Alerts: alerts,
	}
	for i := range alerts {
		if alerts[i].Status == alertmanager.Firing {
			m.Status = alertmanager.Firing
		}
	}
	return m
}

var began = time.Date(2026, 3, 7, 19, 45, 57, 0, time.UTC)

func firing(name, severity string) alertmanager.Alert {
	return alertmanager.Alert{
		Status: alertmanager.Firing, StartsAt: began, GeneratorURL: "https://prometheus.example.org/graph?g0.expr=up+%3D%3D+0", Fingerprint: fmt.Sprintf("%016x", len(name)),
		Labels: map[string]string{
			"alertname": name, "severity": severity, "label": "attic", "uuid": "5f1c0de1-1111-4222-8333-444455556666", "instance": "nas:10134",
		},
		Annotations: map[string]string{
			"summary": "Something is wrong with pool attic", "description": "It says " + name + ".", "runbook_url": "https://example.org/runbook#" + strings.ToLower(name),
		},
	}
}

func resolved(name, severity string) alertmanager.Alert {
	a := firing(name, severity)
	a.Status, a.EndsAt = alertmanager.Resolved, began.Add(time.Hour)
	return a
}

// number is a message that no other is a duplicate of.
func number(n int) *alertmanager.Message {
	a := firing("BtrfsDeviceErrors", "warning")
	a.Annotations["summary"] = fmt.Sprintf("number %d", n)
	a.StartsAt = began.Add(time.Duration(n) * time.Second)
	return message(a)
}

// noMoreGoroutines fails where a test leaves some behind.
func noMoreGoroutines(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		eventually(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
	})
}
