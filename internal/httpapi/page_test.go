package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
	"github.com/btrfs-governor/btrfs-governor/internal/web"
)

// browser is how a browser sends a form of the page itself.
func browser(cookies []*http.Cookie) http.Header {
	h := http.Header{"Accept": {"text/html,application/xhtml+xml"}, "Content-Type": {"application/x-www-form-urlencoded"}, "Sec-Fetch-Site": {"same-origin"}}
	for _, c := range cookies {
		h.Add("Cookie", c.Name+"="+c.Value)
	}
	return h
}

func tokenForm(token, action, pool string) string {
	return url.Values{"token": {token}, "action": {action}, "pool": {pool}}.Encode()
}

// logIn gives the token, and returns the cookie.
func (s *service) logIn(t *testing.T, from sent) []*http.Cookie {
	t.Helper()
	from.header = browser(nil)
	w := s.do("POST", "/session", tokenForm(theToken, "", ""), from)
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/" {
		t.Fatalf("giving the token: %d %s", w.Code, w.Body)
	}
	return w.Result().Cookies()
}

func TestButtonsAskForTheTokenOnce(t *testing.T) {
	s := newService(t, nil)
	start := "/pools/" + atticUUID + "/scrub"
	w := s.do("POST", start, "", sent{header: browser(nil)})
	if w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), `type="password"`) || !strings.Contains(w.Body.String(), `name="action" value="scrub"`) {
		t.Fatalf("without a session: %d %s", w.Code, w.Body)
	}
	w = s.do("POST", "/session", tokenForm("wrong-token-of-enough-characters", "scrub", atticUUID), sent{header: browser(nil)})
	if w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), "That is not the token.") || len(w.Result().Cookies()) > 0 {
		t.Fatalf("with a wrong token: %d %s", w.Code, w.Body)
	}
	if asked := s.scrubs.asked(); len(asked) > 0 {
		t.Fatalf("something was done without the token: %v", asked)
	}
	w = s.do("POST", "/session", tokenForm(theToken, "scrub", atticUUID), sent{header: browser(nil)})
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/" {
		t.Fatalf("with the token: %d, to %s: %s", w.Code, w.Header().Get("Location"), w.Body)
	}
	cookies := w.Result().Cookies()
	if len(cookies) != 2 || !cookies[0].HttpOnly || cookies[0].SameSite != http.SameSiteStrictMode || cookies[0].Secure || strings.Contains(cookies[0].Value, theToken) {
		t.Fatalf("the cookie is %+v", cookies)
	}
	if w := s.do("GET", "/", "", sent{header: browser(cookies)}); !strings.Contains(w.Body.String(), "The scrub is started.") || w.Result().Cookies()[0].MaxAge >= 0 {
		t.Errorf("the page afterwards: %v %s", w.Header(), w.Body)
	}
	cookies = cookies[:1] // said once
	for _, action := range []string{"pause", "resume", "cancel", "snapshot"} {
		h := browser(cookies)
		h.Set("Referer", "http://127.0.0.1:10134/pools/"+atticUUID)
		w := s.do("POST", "/pools/"+atticUUID+"/"+action, "", sent{header: h})
		if want := "/pools/" + atticUUID; w.Code != http.StatusSeeOther || w.Header().Get("Location") != want {
			t.Errorf("%s: %d, to %s: %s", action, w.Code, w.Header().Get("Location"), w.Body)
		}
	}
	if got := strings.Join(s.scrubs.asked(), ", "); got != "start "+atticUUID+" auto, pause, resume, cancel, create" {
		t.Errorf("done was: %s", got)
	}
	if w := s.do("GET", "/", "", sent{header: browser(cookies)}); strings.Contains(w.Body.String(), "The scrub is started.") || !strings.Contains(w.Body.String(), "photo") {
		t.Errorf("the page afterwards: %s", w.Body)
	}
	// A script gets JSON.
	h := browser(cookies)
	h.Set("Accept", "application/json")
	w = s.do("POST", start, "", sent{header: h})
	var refused struct{ Detail string }
	if err := json.Unmarshal(w.Body.Bytes(), &refused); err != nil || w.Code != http.StatusConflict || !strings.Contains(refused.Detail, "under way") {
		t.Errorf("a second scrub: %d %s", w.Code, w.Body)
	}
	if strings.Contains(s.log.String(), theToken) || !strings.Contains(s.log.String(), `path=/pools/`+atticUUID+`/pause`) {
		t.Errorf("the log: %s", s.log)
	}
	// Locked again.
	w = s.do("POST", "/session/end", "", sent{header: browser(cookies)})
	if c := w.Result().Cookies(); w.Code != http.StatusSeeOther || len(c) != 1 || c[0].MaxAge >= 0 {
		t.Errorf("locking: %d %+v", w.Code, c)
	}
}

func TestPageRefuses(t *testing.T) {
	s := newService(t, nil)
	cookies := s.logIn(t, sent{})
	over := s.logIn(t, sent{tls: true, peer: remote})
	if !over[0].Secure || !strings.HasPrefix(over[0].Name, "__Host-") {
		t.Errorf("the cookie over TLS is %+v", over[0])
	}
	// It ends a little later.
	value := []byte(cookies[0].Value)
	value[9] ^= 1
	forged := []*http.Cookie{{Name: cookies[0].Name, Value: string(value)}}
	crossSite := browser(cookies)
	crossSite.Set("Sec-Fetch-Site", "cross-site")
	crossSite.Set("Origin", "https://evil.example")
	// What another program serves on this machine is the same site to a browser.
	otherPort := browser(cookies)
	otherPort.Set("Sec-Fetch-Site", "same-site")
	otherPort.Set("Origin", "http://127.0.0.1:8080")
	for name, tt := range map[string]struct {
		method, target, body string
		from                 sent
		status               int
		says                 string
	}{
		"no session":               {"POST", "/pools/" + atticUUID + "/scrub", "", sent{header: browser(nil)}, 401, "The token, please"},
		"a forged session":         {"POST", "/pools/" + atticUUID + "/scrub", "", sent{header: browser(forged)}, 401, "The token, please"},
		"another site":             {"POST", "/pools/" + atticUUID + "/scrub", "", sent{header: crossSite}, 403, "other sites"},
		"another port":             {"POST", "/pools/" + atticUUID + "/scrub", "", sent{header: otherPort}, 403, "other sites"},
		"another site's log in":    {"POST", "/session", tokenForm(theToken, "", ""), sent{header: crossSite}, 403, "other sites"},
		"over the network":         {"POST", "/pools/" + atticUUID + "/scrub", "", sent{peer: remote, header: browser(cookies)}, 403, "set up TLS"},
		"token over the network":   {"POST", "/session", tokenForm(theToken, "scrub", atticUUID), sent{peer: remote, header: browser(nil)}, 403, "set up TLS"},
		"through a proxy":          {"POST", "/pools/" + atticUUID + "/scrub", "", sent{header: func() http.Header { h := browser(cookies); h.Set("X-Forwarded-For", "192.0.2.7"); return h }()}, 403, "not through a proxy"},
		"an action there is not":   {"POST", "/pools/" + atticUUID + "/format", "", sent{header: browser(cookies)}, 404, "nothing at"},
		"a pool there is not":      {"POST", "/pools/" + strings.Replace(atticUUID, "a", "b", 1) + "/scrub", "", sent{header: browser(cookies)}, 404, "no mounted pool"},
		"a page there is not":      {"GET", "/pools/nonsense", "", sent{header: browser(nil)}, 404, "no mounted pool"},
		"the token in the query":   {"POST", "/session?token=" + theToken, "", sent{header: browser(nil)}, 401, "not the token"},
		"a form that is too large": {"POST", "/session", strings.Repeat("x", 5000), sent{header: browser(nil)}, 413, "larger than"},
		"another site's stream":    {"GET", "/live", "", sent{header: crossSite}, 403, "other sites"},
		"a stream of nonsense":     {"GET", "/live?pool=x", "", sent{}, 400, "UUID"},
	} {
		w := s.do(tt.method, tt.target, tt.body, tt.from)
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.says) {
			t.Errorf("%s: %d, want %d and %q: %s", name, w.Code, tt.status, tt.says, w.Body)
		}
		if strings.Contains(w.Body.String(), theToken) {
			t.Errorf("%s: the answer has the token", name)
		}
	}
	if asked := s.scrubs.asked(); len(asked) > 0 {
		t.Errorf("something was done: %v", asked)
	}
	if strings.Contains(s.log.String(), theToken) {
		t.Error("the token is in the log")
	}
	// The cookie is for the page alone: the API wants its header.
	if w := s.do("POST", "/api/v1/pools/"+atticUUID+"/scrub", "", sent{header: browser(cookies)}); w.Code != http.StatusUnauthorized {
		t.Errorf("the API took the cookie: %d", w.Code)
	}
	readOnly := newService(t, func(c *httpapi.Config) {
		c.Token, c.Scrubs, c.Snapshots, c.Alerts, c.Notifications = nil, nil, nil, nil, nil
	})
	for _, target := range []string{"/pools/" + atticUUID + "/scrub", "/session"} {
		if w := readOnly.do("POST", target, tokenForm(theToken, "scrub", atticUUID), sent{header: browser(cookies)}); w.Code != http.StatusForbidden {
			t.Errorf("read-only, %s: %d", target, w.Code)
		}
	}
	if w := readOnly.do("GET", "/", "", sent{}); strings.Contains(w.Body.String(), `method="post"`) || w.Code != http.StatusOK {
		t.Errorf("read-only: %d %s", w.Code, w.Body)
	}
}

// Whoever guesses at the token and hangs up at once stands in the log as refused.
func TestRefusalIsLoggedThoughNobodyWaitsForIt(t *testing.T) {
	s := newService(t, nil)
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	const guesses = 20
	for range guesses {
		r := httptest.NewRequestWithContext(gone, "POST", "/session", strings.NewReader(tokenForm("a guess", "", "")))
		r.Header = browser(nil)
		r.RemoteAddr = loopback
		s.handler.ServeHTTP(httptest.NewRecorder(), r)
	}
	if n := strings.Count(s.log.String(), "status=401"); n != guesses {
		t.Errorf("%d of %d refusals are in the log:\n%s", n, guesses, s.log.String())
	}
}

func TestSessionEndsWithTheToken(t *testing.T) {
	token := httpapi.NewToken(nil)
	file := t.TempDir() + "/token"
	load := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := token.Load(file); err != nil {
			t.Fatal(err)
		}
	}
	load(theToken)
	start := time.Unix(2e9, 0)
	session := token.NewSession(start.Add(httpapi.SessionLength))
	for _, tt := range []struct {
		at   time.Duration
		good bool
	}{{0, true}, {httpapi.SessionLength - time.Second, true}, {httpapi.SessionLength, false}, {-time.Hour, false}} {
		if got := token.HasSession(session, start.Add(tt.at)); got != tt.good {
			t.Errorf("after %s: %t", tt.at, got)
		}
	}
	for _, bad := range []string{"", "x", session[:len(session)-1], session + "A", strings.ToUpper(session)} {
		if token.HasSession(bad, start) {
			t.Errorf("session %q is good", bad)
		}
	}
	load(strings.Repeat("another-token", 2))
	if token.HasSession(session, start) {
		t.Error("the session outlives its token")
	}
	if httpapi.NewToken(nil).HasSession(session, start) {
		t.Error("a token that was never read has a session")
	}
}

func TestPageIsGuarded(t *testing.T) {
	s := newService(t, nil)
	for _, target := range []string{"/", "/pools/" + atticUUID, "/pools/" + atticUUID + "/what-if?change=add&size=4TB"} {
		w := s.do("GET", target, "", sent{})
		policy := w.Header().Get("Content-Security-Policy")
		if w.Code != 200 || !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%s: %d, policy %q", target, w.Code, policy)
		}
		if w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", target, w.Header())
		}
	}
	page := s.do("GET", "/", "", sent{}).Body.String()
	for part := range strings.SplitSeq(page, `"`) {
		if strings.HasPrefix(part, "/assets/") {
			if w := s.do("GET", part, "", sent{}); w.Code != 200 || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
				t.Errorf("%s: %d %v", part, w.Code, w.Header())
			}
		}
	}
}

func TestWhatIfOnThePage(t *testing.T) {
	s := newService(t, nil)
	for query, want := range map[string]string{
		"change=add&size=4TB":                       "could be written",
		"change=replace&device=1&size=20TB":         "could be written",
		"change=remove&device=1":                    "could be written",
		"change=convert&profile=dup&of=both":        "could be written",
		"change=convert&profile=single&of=metadata": "could be written",
		"change=convert&profile=raid1c3&of=both":    "needs 3 devices",
		"change=add&size=4 apples":                  "such as 4TB",
		"change=add&size=9000PB":                    "up to 1.0 PiB",
		"change=replace&device=77&size=4TB":         "one of the drives",
		"change=replace&device=1&size=1GB":          "smaller than the old one",
		"change=convert&profile=raid7&of=both":      "Choose a profile",
		"change=melt":                               "Choose what is changed",
		"change=add&size=%22%3E%3Cscript%3E":        "&lt;script&gt;",
	} {
		query = strings.ReplaceAll(query, " ", "+")
		for _, target := range []string{"/pools/" + atticUUID + "/what-if?" + query, "/pools/" + atticUUID + "?" + query} {
			if w := s.do("GET", target, "", sent{}); w.Code != 200 || !strings.Contains(w.Body.String(), want) {
				t.Errorf("%s: %d, want %q: %s", target, w.Code, want, w.Body)
			}
		}
	}
}

// manyPools are as many.
type manyPools struct {
	apiPools
	n int
}

func (p manyPools) Pools() ([]collector.PoolReading, error) {
	all, err := p.apiPools.Pools()
	var pools []collector.PoolReading
	for i := range p.n {
		r := all[0]
		r.UUID[15], r.Label = byte(i), fmt.Sprint("pool", i)
		pools = append(pools, r)
	}
	return pools, err
}

func TestManyPoolsAreATable(t *testing.T) {
	for n, want := range map[int]struct{ there, absent string }{
		0:  {"No btrfs pool is mounted here.", "<article"},
		1:  {"pool0 needs a look now</h1>", `class="pools"`},
		8:  {"8 of 8 pools need a look now</h1>", "No btrfs pool"},
		64: {"64 of 64 pools need a look now</h1>", "<article"},
	} {
		s := newService(t, func(c *httpapi.Config) { c.Pools = manyPools{c.Pools.(apiPools), n} })
		page := s.do("GET", "/", "", sent{}).Body.String()
		if !strings.Contains(page, want.there) || strings.Contains(page, want.absent) || n > 1 && strings.Count(page, `<th scope="row"><a href="/pools/`) != n {
			t.Errorf("%d pools: %s", n, page)
		}
	}
}

// countedLately remembers error counters that rose three hours ago.
type countedLately struct{}

func (countedLately) DeviceErrors(btrfs.UUID) map[uint64]history.DeviceErrors {
	now := time.Now()
	return map[uint64]history.DeviceErrors{1: {Counts: btrfs.ErrorCounts{Corruption: 1}, Watched: now.AddDate(0, 0, -9), Rose: now.Add(-3 * time.Hour)}}
}

func TestPageSaysWhenErrorsWereCounted(t *testing.T) {
	for _, history := range []bool{true, false} {
		s := newService(t, func(c *httpapi.Config) {
			c.Pools, c.DeviceErrors = faultyPools{c.Pools.(apiPools)}, countedLately{}
			if history {
				c.History = aHistory{}
			}
		})
		if page := s.do("GET", "/pools/"+atticUUID, "", sent{}).Body.String(); !strings.Contains(page, "1 corruption. The last were seen 3 hours ago.") {
			t.Errorf("with a history (%t): %s", history, page)
		}
	}
}

// faultyPools have a device that counted an error.
type faultyPools struct{ apiPools }

func (p faultyPools) Pools() ([]collector.PoolReading, error) {
	all, err := p.apiPools.Pools()
	for i := range all {
		if all[i].Facts == nil {
			continue
		}
		facts, pool := *all[i].Facts, *all[i].Facts.Pool
		pool.Devices = slices.Clone(pool.Devices)
		pool.Devices[0].ID, pool.Devices[0].Errors = 1, btrfs.Some(btrfs.ErrorCounts{Corruption: 1})
		facts.Pool, all[i].Facts = &pool, &facts
	}
	return all, err
}

// A table of pools moves, and nobody is sent what it does not show.
func TestTableOfManyPoolsMoves(t *testing.T) {
	s := newService(t, func(c *httpapi.Config) { c.Pools = manyPools{c.Pools.(apiPools), 64} })
	server := httptest.NewServer(s.handler)
	defer server.Close()
	_, of, _ := strings.Cut(s.do("GET", "/", "", sent{}).Body.String(), `data-live="/live?of=`)
	of, _, _ = strings.Cut(of, `"`)
	stream := openStream(t, server.URL+"/live?of="+of)
	defer stream.Body.Close()
	lines := bufio.NewScanner(stream.Body)
	lines.Buffer(nil, 1<<20)
	for _, state := range []string{"idle", "running"} {
		event, data := nextEvent(t, lines)
		if event != "section" || !strings.Contains(data, `"id":"summary"`) || !strings.Contains(data, state) {
			t.Fatalf("got %s %.200s, want the summary with a scrub that is %s", event, data, state)
		}
		if w := s.do("POST", "/pools/"+atticUUID[:len(atticUUID)-2]+"07/scrub", "", sent{unix: true}); state == "idle" && w.Code != http.StatusAccepted {
			t.Fatalf("start a scrub: %d %s", w.Code, w.Body)
		}
	}
}

// Whoever opens all the streams there are keeps the others from streams, and from
// nothing else.
func TestStreamsAreBounded(t *testing.T) {
	s := newService(t, nil)
	server := httptest.NewServer(s.handler)
	t.Cleanup(server.Close)
	streams := make([]*http.Response, httpapi.MaxStreams)
	for i := range streams {
		streams[i] = openStream(t, server.URL+"/live?pool="+atticUUID)
		t.Cleanup(func() { _ = streams[i].Body.Close() })
	}
	if w := s.do("GET", "/live?pool="+atticUUID, "", sent{}); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "close some") {
		t.Errorf("one stream too many: %d %s", w.Code, w.Body)
	}
	if w := s.do("GET", "/", "", sent{}); w.Code != http.StatusOK {
		t.Errorf("the page while all streams are open: %d %s", w.Code, w.Body)
	}
	_ = streams[0].Body.Close()
	for begin := time.Now(); ; { // the server notices soon
		r := get(t, server.URL+"/live?pool="+atticUUID)
		_ = r.Body.Close()
		if r.StatusCode == http.StatusOK {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("a minute after a stream was closed there is no other: %s", r.Status)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// No more is done at once than there are places, whoever hangs up waits no longer, and
// a panic gives its place back.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most, all = 2, 20
		places := make(chan struct{}, most)
		var mu sync.Mutex
		now, seen, done := 0, 0, 0
		for range all {
			go httpapi.InTurn(places, httptest.NewRequest("GET", "/", nil), func() {
				mu.Lock()
				now++
				seen = max(seen, now)
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				now, done = now-1, done+1
				mu.Unlock()
			})
		}
		synctest.Wait() // the places are taken
		ctx, hangUp := context.WithCancel(t.Context())
		hangUp()
		if httpapi.InTurn(places, httptest.NewRequest("GET", "/", nil).WithContext(ctx), func() { t.Error("it is done for nobody") }) {
			t.Error("it says that it was done for somebody who hung up")
		}
		time.Sleep(all * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if seen != most || done != all {
			t.Errorf("%d were done, %d at once at most, want %d and %d", done, seen, all, most)
		}
		func() {
			defer func() { _ = recover() }()
			httpapi.InTurn(places, httptest.NewRequest("GET", "/", nil), func() { panic("a template") })
		}()
		if len(places) != 0 {
			t.Errorf("%d places are taken for good", len(places))
		}
	})
}

// Readers that take no page hold up nobody who wants one.
func TestSlowReadersOfPagesHoldUpNobody(t *testing.T) {
	s := newService(t, func(c *httpapi.Config) { c.Pools = manyPools{c.Pools.(apiPools), 8} })
	server := httptest.NewUnstartedServer(s.handler)
	server.Listener = smallBuffers{server.Listener}
	server.Start()
	t.Cleanup(server.Close)
	for range 10 {
		c, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() }) // before the server, which waits for them
		if err := errors.Join(c.(*net.TCPConn).SetReadBuffer(2048), func() error {
			_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
			return err
		}()); err != nil {
			t.Fatal(err)
		}
	}
	answer := get(t, server.URL+"/")
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != http.StatusOK || !strings.Contains(string(body), "</html>") {
		t.Errorf("the page: %s, %d bytes, %v", answer.Status, len(body), err)
	}
}

// takenAnswer is an answer that somebody reads while it is written.
type takenAnswer struct {
	*httptest.ResponseRecorder
	taken chan string
}

func (a takenAnswer) Write(b []byte) (int, error) {
	a.taken <- string(b)
	return len(b), nil
}

func (takenAnswer) SetWriteDeadline(time.Time) error { return nil }

// An open page of somebody whose session has ended is loaded again, without what only
// that showed.
func TestOpenPageOfASessionThatEnds(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		stopping := make(chan struct{})
		s := newServiceIn(t, dir, func(c *httpapi.Config) { c.Stopping = stopping })
		r := httptest.NewRequest("GET", "/live?pool="+atticUUID, nil)
		r.RemoteAddr = loopback
		cookies := s.logIn(t, sent{})
		token := httpapi.NewToken(state.NewDir(dir))
		if err := token.Load(""); err != nil {
			t.Fatal(err)
		}
		const length = 5 * time.Minute // at the end of its twelve hours
		begin := time.Now()
		cookies[0].Value = token.NewSession(begin.Add(length))
		r.Header = browser(cookies)
		ctx, cancel := context.WithCancel(t.Context())
		answer := takenAnswer{httptest.NewRecorder(), make(chan string)}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.handler.ServeHTTP(answer, r.WithContext(ctx))
		}()
		for open := true; open; {
			select {
			case text := <-answer.taken:
				if strings.HasPrefix(text, "event: reload") {
					if after := time.Since(begin); after < length || after > length+time.Minute {
						t.Errorf("it is loaded again after %s", after)
					}
					open = false
				}
			case <-ended:
				t.Error("the stream ended")
				open = false
			}
		}
		cancel()
		<-ended
		close(stopping)
	})
}

// hangingPools answer as long as answers is open.
type hangingPools struct {
	apiPools
	hang *atomic.Bool
	free chan struct{}
}

func (p hangingPools) Pools() ([]collector.PoolReading, error) {
	if p.hang.Load() {
		<-p.free
	}
	return p.apiPools.Pools()
}

func TestPageDoesNotWaitForADiskThatHangs(t *testing.T) {
	hang, free := new(atomic.Bool), make(chan struct{})
	s := newService(t, func(c *httpapi.Config) {
		c.Pools = hangingPools{c.Pools.(apiPools), hang, free}
	})
	look := func() string {
		t.Helper()
		start := time.Now()
		w := s.do("GET", "/", "", sent{})
		if took := time.Since(start); w.Code != 200 || took > 20*time.Second {
			t.Fatalf("%d after %s: %s", w.Code, took, w.Body)
		}
		return w.Body.String()
	}
	hang.Store(true)
	if page := look(); !strings.Contains(page, "have not answered yet") {
		t.Errorf("before anything was read: %s", page)
	}
	hang.Store(false)
	free <- struct{}{}
	for deadline := time.Now().Add(time.Minute); !strings.Contains(look(), "attic"); { // what hung is done in a moment
		if time.Now().After(deadline) {
			t.Fatal("the pools do not come back")
		}
	}
	if page := look(); !strings.Contains(page, "No answer after 8s.") || strings.Contains(page, "The figures below are of") {
		t.Errorf("the pool that does not answer: %s", page)
	}
	hang.Store(true)
	if page := look(); !strings.Contains(page, "attic") {
		t.Errorf("while all hang: %s", page)
	}
	close(free)
}

// quietPools are one, which says nothing from a time on.
type quietPools struct {
	apiPools
	quiet *atomic.Bool
}

func (p quietPools) Pools() ([]collector.PoolReading, error) {
	all, err := p.apiPools.Pools()
	if p.quiet.Load() {
		all[0].Facts, all[0].Err = nil, errors.New("input/output error")
		err = errors.New("the mount table gives no answer")
	}
	return all[:1], err
}

func TestPoolThatFallsSilentKeepsItsFiguresAndSaysSo(t *testing.T) {
	quiet := new(atomic.Bool)
	s := newService(t, func(c *httpapi.Config) { c.Pools = quietPools{c.Pools.(apiPools), quiet} })
	before := s.do("GET", "/", "", sent{}).Body.String()
	quiet.Store(true)
	after := s.do("GET", "/", "", sent{}).Body.String()
	for _, says := range []string{"You can still write", "The pool has given no figures for", "Input/output error.", "The figures below are of", "Not all pools could be found: the mount table gives no answer."} {
		if !strings.Contains(after, says) {
			t.Errorf("it does not say %q: %s", says, after)
		}
		if says != "You can still write" && strings.Contains(before, says) {
			t.Errorf("it said before %q: %s", says, before)
		}
	}
}

// A history on a disk that hangs.
type hangingHistory struct{ free chan struct{} }

func (h hangingHistory) Samples(btrfs.UUID, time.Time, int) []history.Sample { <-h.free; return nil }
func (h hangingHistory) Forecast(btrfs.UUID) (history.Forecast, bool) {
	<-h.free
	return history.Forecast{}, false
}

func TestPageDoesNotWaitForTheHistory(t *testing.T) {
	free := make(chan struct{})
	defer close(free)
	s := newService(t, func(c *httpapi.Config) { c.History = hangingHistory{free} })
	if page := s.do("GET", "/", "", sent{}).Body.String(); !strings.Contains(page, "You can still write") {
		t.Errorf("the page: %s", page)
	}
}

// growingPools are one, and then all.
type growingPools struct {
	apiPools
	all *atomic.Bool
}

func (p growingPools) Pools() ([]collector.PoolReading, error) {
	pools, err := p.apiPools.Pools()
	if !p.all.Load() {
		pools = pools[:1]
	}
	return pools, err
}

// smallBuffers has a connection hold little that nobody has read.
type smallBuffers struct{ net.Listener }

func (l smallBuffers) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if t, ok := c.(*net.TCPConn); ok {
		err = errors.Join(err, t.SetWriteBuffer(4096))
	}
	return c, err
}

func TestLivePageGetsWhatChanges(t *testing.T) {
	all := new(atomic.Bool)
	s := newService(t, func(c *httpapi.Config) { c.Pools = growingPools{c.Pools.(apiPools), all} })
	server := httptest.NewUnstartedServer(s.handler)
	server.Listener = smallBuffers{server.Listener}
	server.Start()
	t.Cleanup(server.Close) // after the streams, for which it would wait

	// One asks for a stream and never reads it: what comes at first does not fit into
	// the buffers, so that whoever writes to it waits.
	slow, err := (&net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		return errors.Join(c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 2048) }), set)
	}}).DialContext(t.Context(), "tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := io.WriteString(slow, "GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}

	follow := func(query string) (next func() (event, data string)) {
		stream := openStream(t, server.URL+"/live"+query)
		t.Cleanup(func() { _ = stream.Body.Close() })
		lines := bufio.NewScanner(stream.Body)
		lines.Buffer(nil, 1<<20)
		return func() (event, data string) { return nextEvent(t, lines) }
	}
	_, of, _ := strings.Cut(s.do("GET", "/", "", sent{}).Body.String(), `data-live="/live?of=`)
	of, _, _ = strings.Cut(of, `"`)
	next, one := follow("?of="+of), follow("?pool="+atticUUID)
	// At first everything comes, and then what changed alone.
	for range web.Sections() {
		if event, data := one(); event != "section" || !strings.Contains(data, `"id":"p`+atticUUID) {
			t.Fatalf("%s %s", event, data)
		}
	}
	for range len(web.Sections()) + 1 {
		if event, data := next(); event != "section" || !strings.Contains(data, `"id":"p`+atticUUID) && !strings.Contains(data, `"id":"summary"`) {
			t.Fatalf("%s %s", event, data)
		}
	}
	if w := s.do("POST", "/api/v1/pools/"+atticUUID+"/scrub", "", socket); w.Code != http.StatusAccepted {
		t.Fatalf("start a scrub: %d %s", w.Code, w.Body)
	}
	event, data := next()
	if event != "section" || !strings.Contains(data, atticUUID+"-scrub") || !strings.Contains(data, "A scrub runs.") || strings.Contains(data, "photo") {
		t.Fatalf("after a scrub began: %s %s", event, data)
	}
	all.Store(true)
	if event, data := next(); event != "reload" {
		t.Fatalf("when there are other pools: %s %s", event, data)
	}
	// So it is for one that was loaded before, and had no stream meanwhile.
	if event, data := follow("?of=" + of)(); event != "reload" {
		t.Fatalf("a page of other pools: %s %s", event, data)
	}
	// The page of one pool need not care.
	s.scrubs.forget()
	for {
		event, data := one()
		if event != "section" {
			t.Fatalf("the page of one pool when there are others: %s %s", event, data)
		}
		if strings.Contains(data, "No scrub was ever run here.") {
			break
		}
	}
}

// nextEvent reads an event of a stream.
func nextEvent(t *testing.T, lines *bufio.Scanner) (event, data string) {
	t.Helper()
	for lines.Scan() {
		if after, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			event = after
		}
		if after, ok := strings.CutPrefix(lines.Text(), "data: "); ok && event != "beat" {
			return event, after
		}
	}
	t.Fatalf("the stream ended: %v", lines.Err())
	return "", ""
}

func openStream(t *testing.T, address string) *http.Response {
	t.Helper()
	answer := get(t, address)
	if answer.Header.Get("Content-Type") != "text/event-stream" {
		text, _ := io.ReadAll(answer.Body)
		t.Fatalf("%s: %s", answer.Status, text)
	}
	return answer
}

// get asks for an address. The body of the answer is not read.
func get(t *testing.T, address string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}
