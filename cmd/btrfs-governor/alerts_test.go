package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/alerts"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/testprogram"
)

// message is what Alertmanager sends to a webhook, as far as it matters here.
type message struct {
	Alerts []struct {
		Status      string            `json:"status"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"alerts"`
}

// person is a webhook that remembers what it was told.
type person struct {
	mu    sync.Mutex
	heard map[string]string // the description, by alert, severity and status
}

func (p *person) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var m message
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range m.Alerts {
		p.heard[a.Labels["alertname"]+" "+a.Labels["severity"]+" "+a.Status] = a.Annotations["description"]
	}
}

func (p *person) says(what string) (description string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	description, ok = p.heard[what]
	return description, ok
}

// services are an ntfy, a Gotify and a Discord that remember what they were sent.
type services struct {
	mu       sync.Mutex
	received map[string][]map[string]any // by service
	problems []string
}

func (s *services) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var service, access string
	switch {
	case r.Method == http.MethodGet: // ntfy is asked for what it has
		return
	case r.URL.Path == "/":
		service, access = "ntfy", r.Header.Get("Authorization")
	case r.URL.Path == "/message":
		service, access = "gotify", r.Header.Get("X-Gotify-Key")
	case r.URL.Path == "/api/webhooks/1/s3cr3t":
		service, access = "discord", "s3cr3t"
	}
	var sent map[string]any
	err := json.NewDecoder(r.Body).Decode(&sent)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || service == "" || !strings.Contains(access, "s3cr3t") {
		s.problems = append(s.problems, fmt.Sprintf("%s %s, %q: %v", r.Method, r.URL.Path, access, err))
		http.Error(w, "no", http.StatusBadRequest)
		return
	}
	s.received[service] = append(s.received[service], sent)
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprint(w, `{"id":"1"}`)
}

// with returns what a service was sent that holds a text.
func (s *services) with(service, text string) []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []map[string]any
	for _, sent := range s.received[service] {
		if data, err := json.Marshal(sent); err == nil && strings.Contains(string(data), text) {
			all = append(all, sent)
		}
	}
	return all
}

// stack is the daemon with Prometheus and Alertmanager, as the examples have them
// but faster, and all who hear of alerts.
type stack struct {
	t            *testing.T
	dir, socket  string
	serve        *process
	prometheus   *testprogram.Program
	alertmanager *testprogram.Program
	somebody     *person
	services     *services
}

// stackOptions change what a stack is.
type stackOptions struct {
	config string              // of the daemon; ALERTMANAGER is the address of that
	rules  func(string) string // changes the rules
	routes string              // of Alertmanager, more of them
	late   bool                // Alertmanager is not started
}

func newStack(t *testing.T, o stackOptions) *stack {
	t.Helper()
	s := &stack{t: t, dir: t.TempDir(), somebody: &person{heard: make(map[string]string)}, services: &services{received: make(map[string][]map[string]any)}}
	s.socket = filepath.Join(s.dir, "api.sock")
	webhook := httptest.NewServer(s.somebody)
	t.Cleanup(webhook.Close)
	chat := httptest.NewServer(s.services)
	t.Cleanup(chat.Close)
	token := s.write("state/token", "0123456789abcdef0123456789abcdef\n")

	// Their addresses have to be known before they are configured.
	governor := freeAddress(t)
	s.alertmanager = testprogram.Serve(t, testprogram.Find(t, "prometheus-alertmanager", "prometheus-alertmanager"), "--cluster.listen-address=", "--storage.path="+filepath.Join(s.dir, "am"),
		"--config.file="+s.example("alertmanager.yml",
			"group_wait: 30s", "group_wait: 0s", "group_wait: 10s", "group_wait: 0s", "group_interval: 5m", "group_interval: 1s",
			// Before the others, and beside them.
			"  routes:\n", "  routes:\n"+o.routes+"    - {receiver: bridge, continue: true}\n    - {receiver: mail, continue: true}\n",
			"email_configs:\n      - to: root@example.org", "webhook_configs:\n      - url: "+webhook.URL,
			"receivers:\n", "receivers:\n"+hooks("bridge", governor, token, "notify/phone", "notify/tablet", "notify/chat")+hooks("actions", governor, token, "alertmanager"),
			// All is to be heard here.
			"inhibit_rules:", "# Not here: inhibit_rules:", "\n  - source_matchers:", "\n  #", "\n    target_matchers:", "\n  #", "\n    equal:", "\n  #"))
	if o.late {
		s.alertmanager.Kill()
	}
	s.write("config.yml", strings.ReplaceAll(o.config, "ALERTMANAGER", s.alertmanager.Address)+fmt.Sprintf(`
notify:
  receivers:
    - {name: phone, type: ntfy, url: "%[1]s", topic: attic, token: s3cr3t-ntfy, rate_limit: 1000}
    - {name: tablet, type: gotify, url: "%[1]s", token: s3cr3t-gotify, rate_limit: 1000}
    - {name: chat, type: discord, url: "%[1]s/api/webhooks/1/s3cr3t", rate_limit: 1000}
`, chat.URL))
	s.startDaemon(governor)

	rules, err := alerts.Files.ReadFile(alerts.FileName)
	must(t, err)
	text := regexp.MustCompile(`keep_firing_for: \w+`).ReplaceAllString(string(rules), "keep_firing_for: 1s")
	if o.rules != nil {
		text = o.rules(text)
	}
	s.write(alerts.FileName, text)
	s.prometheus = testprogram.Serve(t, testprogram.Find(t, "prometheus", "prometheus"), "--storage.tsdb.path="+filepath.Join(s.dir, "tsdb"), "--rules.alert.resend-delay=1s",
		"--config.file="+s.example("prometheus.yml",
			"scrape_interval: 1m", "scrape_interval: 1s", "scrape_timeout: 10s", "scrape_timeout: 1s", "evaluation_interval: 1m", "evaluation_interval: 1s",
			"localhost:9093", s.alertmanager.Address, "localhost:10134", governor))
	return s
}

// hooks is a receiver of Alertmanager that sends to the daemon.
func hooks(name, governor, token string, paths ...string) string {
	text := "  - name: " + name + "\n    webhook_configs:\n"
	for _, path := range paths {
		text += "      - url: http://" + governor + "/api/v1/" + path + "\n        send_resolved: true\n        http_config: {authorization: {credentials_file: " + token + "}}\n"
	}
	return text
}

func (s *stack) startDaemon(address string) {
	s.t.Helper()
	s.serve = startServe(s.t, 1, []string{
		"--web.listen-address=" + address, "--config.file=" + filepath.Join(s.dir, "config.yml"), "--state.dir=" + filepath.Join(s.dir, "state"), "--api.socket=" + s.socket,
	})
	eventually(s.t, "the socket is there", func() bool { _, err := os.Stat(s.socket); return err == nil })
}

func (s *stack) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	must(s.t, os.MkdirAll(filepath.Dir(path), 0o700))
	must(s.t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// example writes one of the examples, changed.
func (s *stack) example(name string, changes ...string) string {
	s.t.Helper()
	data, err := os.ReadFile("../../examples/" + name)
	must(s.t, err)
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(string(data), changes[i]) {
			s.t.Fatalf("%s does not have %q", name, changes[i])
		}
	}
	return s.write(name, strings.NewReplacer(changes...).Replace(string(data)))
}

// query tells whether a query has a result that holds a text.
func (s *stack) query(promql, text string) bool {
	_, body, err := request(s.serve.client, http.MethodGet, "http://"+s.prometheus.Address+"/api/v1/query?query="+promql)
	return err == nil && strings.Contains(body, text)
}

func (s *stack) hears(what, pool, text string) {
	s.t.Helper()
	eventually(s.t, "somebody hears "+what, func() bool { _, ok := s.somebody.says(what); return ok })
	if said, _ := s.somebody.says(what); !strings.Contains(said, text) || !strings.Contains(said, pool) {
		s.t.Errorf("%s: %s", what, said)
	}
}

// scrub scrubs a pool from the command line.
func (s *stack) scrub(pool *btrfstest.Pool, want int) {
	s.t.Helper()
	must(s.t, pool.DropCaches())
	if status, stdout, stderr := runCommandLine("scrub", "start", pool.UUID, "--mode=full", "--follow", "--api.socket="+s.socket); status != want {
		s.t.Fatalf("scrub: exit status %d, want %d\n%s%s", status, want, stdout, stderr)
	}
}

// everywhere waits until all services were sent something that holds a text, and
// returns it.
func (s *stack) everywhere(text string) (ntfy, gotify, discord map[string]any) {
	s.t.Helper()
	first := func(service string) map[string]any {
		s.t.Helper()
		eventually(s.t, service+" is sent "+text, func() bool { return len(s.services.with(service, text)) > 0 })
		return s.services.with(service, text)[0]
	}
	return first("ntfy"), first("gotify"), first("discord")
}

// TestWhatHappensReachesAPerson has real Prometheus and Alertmanager tell of what
// happens to a real pool: a block is corrupted and found by a scrub, and a device
// goes missing. It is heard by a webhook, and through the bridge by ntfy, Gotify
// and Discord. How soon an alert fires Prometheus itself says.
func TestWhatHappensReachesAPerson(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib, gib, gib}, Data: "raid1", Metadata: "raid1", Label: "attic"})
	must(t, pool.WriteFile("film", 8*mib, newRandom()))
	must(t, pool.WriteFile("lost", mib, newRandom()))
	must(t, pool.Sync())
	s := newStack(t, stackOptions{rules: recordMissing(t)})
	eventually(t, "Prometheus knows the pool as it was before", func() bool {
		return s.query("count_over_time(btrfs_device_errors_total[1m])>1", pool.UUID)
	})
	for name, want := range map[string]string{"phone": "ntfy", "tablet": "gotify", "chat": "discord"} {
		status, stdout, stderr := runCommandLine("notify", "test", name, "--api.socket="+s.socket)
		if status != 0 || !strings.Contains(stdout, "has taken the notification") || len(s.services.with(want, "")) != 1 {
			t.Errorf("notify test %s: %d %s%s", name, status, stdout, stderr)
		}
	}
	if status, _, stderr := runCommandLine("notify", "test", "nobody", "--api.socket="+s.socket); status != 1 || !strings.Contains(stderr, `"nobody"`) || !strings.Contains(stderr, "notify.receivers") {
		t.Errorf("notify test nobody: %d %s", status, stderr)
	}
	must(t, pool.CorruptFile("film", 0, 0))
	s.scrub(pool, 3)
	s.hears("BtrfsScrubErrorsCorrected warning firing", pool.UUID, "attic")
	s.hears("BtrfsDeviceErrors warning firing", pool.UUID, "corruption")
	s.everywhere("BtrfsScrubErrorsCorrected")

	must(t, pool.CorruptFile("lost", 0, 0))
	must(t, pool.CorruptFile("lost", 0, 1))
	s.scrub(pool, 4)
	s.hears("BtrfsScrubErrorsUncorrectable critical firing", pool.UUID, "no other copy could repair")
	ntfy, gotify, discord := s.everywhere("BtrfsScrubErrorsUncorrectable")
	runbook := "docs/runbook.md#btrfsscruberrorsuncorrectable"
	if ntfy["topic"] != "attic" || ntfy["priority"] != 5.0 || !strings.Contains(fmt.Sprint(ntfy["title"]), "attic") || !strings.Contains(fmt.Sprint(ntfy["actions"], ntfy["click"]), runbook) {
		t.Errorf("ntfy got %v", ntfy)
	}
	if gotify["priority"] != 8.0 || !strings.Contains(fmt.Sprint(gotify["extras"]), "text/markdown") || !strings.Contains(fmt.Sprint(gotify["title"]), "FIRING") {
		t.Errorf("Gotify got %v", gotify)
	}
	embeds, _ := discord["embeds"].([]any)
	if len(embeds) == 0 || !strings.Contains(fmt.Sprint(embeds...), runbook) || fmt.Sprint(discord["allowed_mentions"]) != "map[parse:[]]" {
		t.Errorf("Discord got %v", discord)
	}

	missed := s.missedEvaluations()
	must(t, pool.Detach(3))
	must(t, pool.MountDegraded(false))
	s.hears("BtrfsDeviceMissing critical firing", pool.UUID, "Device 3")
	s.firedAtOnce(pool.UUID, missed)
	must(t, pool.Unmount())
	must(t, pool.Attach(3))
	must(t, pool.Mount())
	s.hears("BtrfsDeviceMissing critical resolved", pool.UUID, "attic")
	if len(s.services.problems) > 0 {
		t.Errorf("the services were sent what they do not take: %q", s.services.problems)
	}
}

// recordMissing has the group of the alert record in each evaluation which device
// it sees missing.
func recordMissing(t *testing.T) func(string) string {
	const before = "      - alert: BtrfsDeviceMissing\n"
	return func(text string) string {
		if strings.Count(text, before) != 1 {
			t.Fatalf("the rules do not have %q once", before)
		}
		return strings.Replace(text, before, "      - record: seen:device_missing\n        expr: btrfs_device_missing == 1\n"+before, 1)
	}
}

// point is a sample of Prometheus, with its own timestamp.
type point struct {
	at    time.Time
	value string
}

// points returns the samples of one series, the oldest first. An instant query for
// a range has them as they were stored (prometheus.io/docs/prometheus/latest/querying/api).
func (s *stack) points(selector string) (points []point) {
	s.t.Helper()
	_, body, err := request(s.serve.client, http.MethodGet, "http://"+s.prometheus.Address+"/api/v1/query?query="+url.QueryEscape(selector+"[1h]"))
	must(s.t, err)
	var answer struct {
		Data struct {
			Result []struct {
				Values [][2]any `json:"values"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || len(answer.Data.Result) > 1 {
		s.t.Fatalf("%s: %d series, where one is wanted: %v\n%s", selector, len(answer.Data.Result), err, body)
	}
	for _, r := range answer.Data.Result {
		for _, v := range r.Values {
			seconds, _ := v[0].(float64)
			value, _ := v[1].(string)
			points = append(points, point{time.UnixMilli(int64(math.Round(seconds * 1000))), value})
		}
	}
	return points
}

// missedEvaluations returns how many evaluations of the alerts about devices
// Prometheus says it had no time for.
func (s *stack) missedEvaluations() int {
	s.t.Helper()
	_, body, err := request(s.serve.client, http.MethodGet, "http://"+s.prometheus.Address+"/metrics")
	must(s.t, err)
	found := regexp.MustCompile(`(?m)^prometheus_rule_group_iterations_missed_total\{rule_group="[^"]*;btrfs-devices"\} (\d+)$`).FindStringSubmatch(body)
	if found == nil {
		s.t.Fatalf("Prometheus does not say how many evaluations it missed:\n%s", grepLines(body, "iterations"))
	}
	missed, err := strconv.Atoi(found[1])
	must(s.t, err)
	return missed
}

// firedAtOnce holds BtrfsDeviceMissing to what it promises: it fires in the first
// evaluation after the scrape that saw the device missing. All times are of
// Prometheus, so that a machine that is slow to start, send or look changes none.
// missedBefore are the evaluations that had been missed before it was.
func (s *stack) firedAtOnce(uuid string, missedBefore int) {
	s.t.Helper()
	const interval = time.Second // of scrapes and of evaluations, see newStack
	var missing []point
	eventually(s.t, "the device is missing in two scrapes", func() bool {
		missing = slices.DeleteFunc(s.points(`btrfs_device_missing{devid="3",uuid="`+uuid+`"}`), func(p point) bool { return p.value != "1" })
		return len(missing) > 1
	})
	seen := s.points(`seen:device_missing{devid="3",uuid="` + uuid + `"}`)
	firing := s.points(`ALERTS{alertname="BtrfsDeviceMissing",alertstate="firing",devid="3",uuid="` + uuid + `"}`)
	if len(seen) == 0 || len(firing) == 0 {
		s.t.Fatalf("the device was seen missing in %d evaluations and the alert fired in %d", len(seen), len(firing))
	}
	scrape, fired, missed := missing[0].at, firing[0].at, s.missedEvaluations()-missedBefore
	var took string
	for _, p := range s.points(`scrape_duration_seconds{job="btrfs"}`) {
		if p.at.Equal(scrape) {
			took = p.value
		}
	}
	s.t.Logf("the scrape that saw the device missing took %s s; the alert fired %s after that began, the first evaluation to see it was at %s; an evaluation every %s, %d missed",
		took, fired.Sub(scrape), seen[0].at.Sub(scrape), interval, missed)
	if fired.Before(scrape) || fired.After(seen[0].at) {
		s.t.Errorf("the device was missing in the scrape of %s, the first evaluation that saw it was at %s, and the alert fired at %s", scrape, seen[0].at, fired)
	}
	// What a scrape brings is there before the next begins, and an evaluation after
	// that has it.
	if latest := missing[1].at.Add(time.Duration(1+missed) * interval); fired.After(latest) {
		s.t.Errorf("the alert fired at %s, with %d evaluations missed after the scrape; it should have by %s", fired, missed, latest)
	}
}

// silencesOf returns the silences of the daemon for the pool attic, by their state.
// Tests of other packages may scrub pools at the same time.
func (s *stack) silencesOf(state string) (comments []string) {
	for _, silence := range s.silences() {
		if silence.Status.State == state {
			comments = append(comments, silence.Comment)
		}
	}
	return comments
}

// silence is one as Alertmanager shows it.
type silence struct {
	ID        string                 `json:"id"`
	CreatedBy string                 `json:"createdBy"`
	Comment   string                 `json:"comment"`
	Status    struct{ State string } `json:"status"`
}

// silences are those that the daemon made for the pool of the test.
func (s *stack) silences() (all []silence) {
	_, body, err := request(s.serve.client, http.MethodGet, "http://"+s.alertmanager.Address+"/api/v2/silences")
	if err != nil || json.Unmarshal([]byte(body), &all) != nil {
		return nil
	}
	return slices.DeleteFunc(all, func(one silence) bool {
		return one.CreatedBy != "btrfs-governor@nas" || !strings.Contains(one.Comment, "attic")
	})
}

// silenceIDs are the ids of the daemon's silences in a state.
func (s *stack) silenceIDs(state string) (ids []string) {
	for _, silence := range s.silences() {
		if silence.Status.State == state {
			ids = append(ids, silence.ID)
		}
	}
	return ids
}

// expireSilences expires those that are active, as a person does.
func (s *stack) expireSilences() {
	s.t.Helper()
	amtool := testprogram.Find(s.t, "amtool", "prometheus-alertmanager")
	url := "--alertmanager.url=http://" + s.alertmanager.Address
	ids, err := exec.Command(amtool, url, "silence", "query", "--quiet").Output()
	must(s.t, err)
	output, err := exec.Command(amtool, append([]string{url, "silence", "expire"}, strings.Fields(string(ids))...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("amtool silence expire: %v\n%s", err, output)
	}
}

const silencing = `
alertmanager:
  silences:
    alertmanagers: [{url: "http://ALERTMANAGER"}]
    matchers: [['alertname="DiskLatencyHigh"']]
    instance: nas
`

// TestOverdueScrubIsStartedAndSilent: a scrub is overdue, the alert has the daemon
// start one, there is a silence while it runs and none afterwards, and the alert
// resolves.
func TestOverdueScrubIsStartedAndSilent(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1", Label: "attic"})
	must(t, pool.WriteFile("film", 100*mib, newRandom()))
	must(t, pool.Sync())
	const days = "35 * 86400"
	s := newStack(t, stackOptions{
		config: silencing + `  actions:
    - name: scrub-overdue
      match: [alertname="BtrfsScrubOverdue", severity="warning"]
      action: scrub
      limit: 10MB
      cool_down: 1h
`,
		rules: func(text string) string {
			if strings.Count(text, days) != 1 {
				t.Fatalf("the rules do not have %q once", days)
			}
			text = strings.Replace(text, days, "15", 1)
			return strings.ReplaceAll(text, "for: 1h", "for: 0s")
		},
		routes: "    - {receiver: actions, continue: true}\n",
	})
	s.scrub(pool, 0)
	s.hears("BtrfsScrubOverdue warning firing", pool.UUID, "has gone to its end")
	// There may have been one for the scrub before, or none: that was short.
	var active []silence
	eventually(t, "there is a silence", func() bool {
		active = slices.DeleteFunc(s.silences(), func(one silence) bool { return one.Status.State != "active" })
		return len(active) == 1
	})
	if comment := active[0].Comment; !strings.Contains(comment, pool.UUID) || !strings.Contains(comment, "scrub") {
		t.Errorf("the silence says %q", comment)
	}
	status, stdout, _ := runCommandLine("scrub", "status", pool.UUID, "--output=json", "--api.socket="+s.socket)
	if status != 0 || !strings.Contains(stdout, "action scrub-overdue for alert ") {
		t.Errorf("scrub status: %d\n%s", status, stdout)
	}
	s.hears("BtrfsScrubOverdue warning resolved", pool.UUID, "attic")
	eventually(t, "the silence is expired", func() bool {
		return len(s.silencesOf("active")) == 0 && slices.Contains(s.silenceIDs("expired"), active[0].ID)
	})
	// The count is of the pools of others too, on which a balance may run.
	eventually(t, "the metrics say so", func() bool {
		_, body, err := request(s.serve.client, http.MethodGet, "http://"+s.serve.addrs[0]+"/metrics")
		must(t, err)
		if !strings.Contains(body, `btrfs_governor_alert_actions_total{action="scrub-overdue",result="started"} 1`) {
			t.Fatalf("the metrics are\n%s", grepLines(body, "btrfs_governor_(alert|silence)"))
		}
		return strings.Contains(body, "btrfs_governor_silences 0")
	})
	eventually(t, "it is overdue again, and cools down", func() bool {
		_, body, err := request(s.serve.client, http.MethodGet, "http://"+s.serve.addrs[0]+"/metrics")
		return err == nil && strings.Contains(body, `result="cooling_down"} 1`)
	})
}

// grepLines returns the lines that match.
func grepLines(text, pattern string) string {
	return strings.Join(regexp.MustCompile("(?m)^.*"+pattern+".*$").FindAllString(text, -1), "\n")
}

// TestAlertmanagerThatIsDownLosesAndDoublesNothing: it is down for the whole of a
// scrub that finds errors, and killed in the middle of another one; the daemon is
// killed too.
func TestAlertmanagerThatIsDownLosesAndDoublesNothing(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1", Label: "attic"})
	must(t, pool.WriteFile("film", 100*mib, newRandom()))
	must(t, pool.WriteFile("lost", mib, newRandom()))
	must(t, pool.Sync())
	s := newStack(t, stackOptions{config: silencing, late: true, rules: func(text string) string {
		// A scrape that takes longer than its second does not end an alert.
		return strings.ReplaceAll(text, "keep_firing_for: 1s", "keep_firing_for: 5m")
	}})
	eventually(t, "Prometheus knows the pool as it was before", func() bool {
		return s.query("count_over_time(btrfs_device_errors_total[1m])>1", pool.UUID)
	})
	must(t, pool.CorruptFile("film", 0, 0))
	s.scrub(pool, 3)
	eventually(t, "Prometheus has the alert", func() bool {
		return s.query(`ALERTS{alertname="BtrfsScrubErrorsCorrected",alertstate="firing"}`, pool.UUID)
	})
	s.alertmanager.Start()
	s.everywhere("BtrfsScrubErrorsCorrected")
	if left := s.silencesOf("active"); len(left) > 0 {
		t.Errorf("the scrub has ended, and there are silences: %q", left)
	}

	// A second one, in whose middle Alertmanager and then the daemon are killed.
	must(t, pool.CorruptFile("lost", 0, 0))
	must(t, pool.CorruptFile("lost", 0, 1))
	must(t, pool.DropCaches())
	if status, stdout, stderr := runCommandLine("scrub", "start", pool.UUID, "--limit=10MB", "--api.socket="+s.socket); status != 0 {
		t.Fatalf("scrub: exit status %d\n%s%s", status, stdout, stderr)
	}
	eventually(t, "there is a silence", func() bool { return len(s.silencesOf("active")) == 1 })
	s.alertmanager.Kill()
	must(t, s.serve.cmd.Process.Kill())
	<-s.serve.exited
	s.startDaemon(s.serve.addrs[0])
	s.alertmanager.Start()
	eventually(t, "there is a silence again", func() bool { return len(s.silencesOf("active")) == 1 })
	s.everywhere("BtrfsScrubErrorsUncorrectable")
	eventually(t, "the silence is expired", func() bool { return len(s.silencesOf("active")) == 0 })

	// Alertmanager has lost its log of what it sent, and sends it again; the bridge
	// knows. Each state of the group has come once.
	eventually(t, "nothing waits to be sent", func() bool {
		_, body, err := request(s.serve.client, http.MethodGet, "http://"+s.serve.addrs[0]+"/metrics")
		return err == nil && strings.Count(body, "btrfs_governor_notifications_queued{") == 3 && !regexp.MustCompile(`(?m)^btrfs_governor_notifications_queued.* [1-9]`).MatchString(body)
	})
	for _, service := range []string{"ntfy", "gotify", "discord"} {
		all := s.services.with(service, "")
		texts := make([]string, len(all))
		for i := range all {
			for _, volatile := range []string{"sequence_id", "nonce"} {
				delete(all[i], volatile)
			}
			data, err := json.Marshal(all[i])
			must(t, err)
			texts[i] = string(data)
		}
		slices.Sort(texts)
		if n := len(slices.Compact(slices.Clone(texts))); n != len(texts) {
			t.Errorf("%s was sent %d notifications, of which %d are different:\n%s", service, len(texts), n, strings.Join(texts, "\n"))
		}
	}
	if len(s.services.problems) > 0 {
		t.Errorf("the services were sent what they do not take: %q", s.services.problems)
	}
}

// restartDaemon kills the daemon, does something, and starts it again.
func (s *stack) restartDaemon(between func()) {
	s.t.Helper()
	must(s.t, s.serve.cmd.Process.Kill())
	<-s.serve.exited
	between()
	s.startDaemon(s.serve.addrs[0])
}

// startBalance starts a balance of a pool on slow disks, that runs until it is told
// to end.
func startBalance(t *testing.T, pool *btrfstest.Pool, disks []*btrfstest.FaultDisk) (end func()) {
	t.Helper()
	must(t, pool.DropCaches())
	for _, d := range disks {
		d.Slow(0, mib/4)
	}
	done := make(chan error, 1)
	go func() { done <- pool.Balance() }()
	end = sync.OnceFunc(func() {
		for _, d := range disks {
			d.Fast()
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	eventually(t, "the balance runs", func() bool {
		operation, err := pool.Sysfs("exclusive_operation")
		return err == nil && operation == "balance"
	})
	return end
}

// TestBalanceThatRanBeforeTheDaemonIsSilent: the kernel does not say when a balance
// began, so a daemon that finds one running asks the silences which run it is of.
func TestBalanceThatRanBeforeTheDaemonIsSilent(t *testing.T) {
	rig, faults := newFaultDir(t)
	disks := []*btrfstest.FaultDisk{newFaultDisk(t, faults, gib), newFaultDisk(t, faults, gib)}
	pool := newPool(t, rig, btrfstest.PoolOptions{Disks: []*btrfstest.Disk{disks[0].Disk, disks[1].Disk}, Data: "raid1", Metadata: "raid1", Label: "attic"})
	must(t, pool.WriteFile("film", 100*mib, newRandom()))
	must(t, pool.Sync())
	s := newStack(t, stackOptions{config: silencing})

	var end func()
	silent := func() bool { return s.serve.metric("btrfs_governor_silences") == "1" }
	s.restartDaemon(func() { end = startBalance(t, pool, disks) })
	eventually(t, "there is a silence", silent)
	first := s.silencesOf("active")
	if len(first) != 1 || !strings.Contains(first[0], "A balance of the pool") || !strings.Contains(first[0], pool.UUID) || !strings.Contains(first[0], " runs; ") {
		t.Fatalf("the silences are %q", first)
	}
	s.restartDaemon(func() {})
	eventually(t, "there is a silence after a restart", silent)
	if now, expired := s.silencesOf("active"), s.silencesOf("expired"); !slices.Equal(now, first) || len(expired) != 0 {
		t.Errorf("after a restart the silences are %q, and %q before; expired are %q", now, first, expired)
	}
	end()
	eventually(t, "the silence is expired", func() bool { return len(s.silencesOf("active")) == 0 })

	// The next one has its own. A person expires it, and it stays so for that run.
	s.restartDaemon(func() { end = startBalance(t, pool, disks) })
	eventually(t, "there is a silence of the next balance", silent)
	s.expireSilences()
	for range 2 {
		s.restartDaemon(func() {})
		eventually(t, "the daemon sees that a person expired it", func() bool { return strings.Contains(s.serve.logged(), "a silence was expired by hand") })
		if now := s.silencesOf("active"); len(now) != 0 {
			t.Errorf("a person expired it, and after a restart there are the silences %q", now)
		}
	}
	end()
}
