package config

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the zones are there on every machine

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	promconfig "github.com/prometheus/common/config"
	"gopkg.in/yaml.v3"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/schedule"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
	"github.com/btrfs-governor/btrfs-governor/snapshot/retention"
)

const exampleFile = "../../examples/config.yml"

func corpus(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", dir, "*.yml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in testdata/%s (%v)", dir, err)
	}
	return files
}

// windowsCompare lets cmp look into windows. The settings of HTTP clients are
// those of Prometheus, and left to TestHTTPConfig.
var windowsCompare = cmp.Options{cmp.AllowUnexported(schedule.Window{}), cmpopts.IgnoreUnexported(HTTPClient{})}

func windows(all ...string) []schedule.Window {
	var parsed []schedule.Window
	for _, s := range all {
		var w schedule.Window
		if err := w.UnmarshalText([]byte(s)); err != nil {
			panic(err)
		}
		parsed = append(parsed, w)
	}
	return parsed
}

func TestGoodFilesParse(t *testing.T) {
	full := &Config{
		Scrape: Scrape{Timeout: Duration(90 * time.Second)},
		Pools: Pools{Exclude: []string{
			"scratch", "3F2C1A52-8C1E-4B7E-9D53-0A4F5B6C7D8E", "a \"label\"\nof two lines, ☃", "2024",
		}},
		API: API{TokenFile: "/etc/btrfs-governor/token"},
		Scrub: Scrub{
			MaxPools: 2, Timezone: "UTC", OnBattery: "run",
			Windows: windows("22:00-07:00", "Sat,Sun 00:00-24:00"), Blackout: windows("Mon 03:00-04:00"),
			Schedules: []ScrubSchedule{
				{Name: "monthly", Cron: "0 3 1 * *"},
				{Name: "attic", Pools: []string{"attic"}, Cron: "@weekly", Mode: "limit", Limit: 50_000_000, ReadOnly: true, Deadline: Duration(24 * time.Hour)},
			},
		},
		Snapshots: Snapshots{Timezone: "UTC", Pools: []SnapshotsPool{{
			Pool: "attic", Subvolumes: []string{"@home", "/"}, Directory: "@home/.snapshots", Cron: "@hourly",
			Retention: Retention{KeepLast: 1, Hourly: 24, Daily: 7, Weekly: 4, Monthly: 12, Yearly: 3, MaxAge: Duration(4 * 365 * 24 * time.Hour), KeepMin: 2},
			MinFree:   50 << 30,
			Hooks:     SnapshotsHooks{Before: []string{"/bin/freeze", "a database"}, After: []string{"/bin/thaw"}, Timeout: Duration(10 * time.Second)},
		}}},
		Alertmanager: Alertmanager{
			Actions: []AlertAction{
				{
					Name: "scrub-overdue", Match: []string{`alertname = "BtrfsScrubOverdue"`, "severity!=info"}, Action: "scrub",
					Mode: "limit", Limit: 50_000_000, ReadOnly: true, Deadline: Duration(48 * time.Hour), DryRun: true,
				},
				{Name: "lights", Match: []string{`alertname=~"Btrfs.+"`}, Action: "webhook", URL: "https://example.org/hook?key=s3cr3t", CoolDown: defaultCoolDown},
			},
			Silences: Silences{
				Alertmanagers: []SilencesPeer{{URL: "http://localhost:9093"}, {URL: "https://am2.example.org/alerts"}},
				Matchers:      [][]string{{`alertname="DiskLatencyHigh"`, `instance=~"nas:.*"`}, {`alertname=~"Node.*"`}},
				Operations:    []string{"scrub"}, Instance: "attic",
			},
		},
		Notify: Notify{Receivers: []NotifyReceiver{
			{Name: "phone", Type: "ntfy", URL: "https://ntfy.example.org", Topic: "mine", TokenFile: "/etc/btrfs-governor/ntfy", Title: "{{ .Status }}", RateLimit: 5},
			{Name: "desk", Type: "gotify", URL: "http://localhost:8080", Token: "AbCdEf"},
			{Name: "friends", Type: "discord", URLFile: "/etc/btrfs-governor/discord", Message: "{{ len .Alerts }} alerts", Click: "https://example.org"},
		}},
	}
	exclude := func(name string) *Config {
		c := Default()
		c.Scrape.Timeout, c.Pools.Exclude = Duration(500*time.Millisecond), []string{name}
		return c
	}
	anchors := exclude("stick")
	anchors.Pools.Exclude = append(anchors.Pools.Exclude, "other")
	schedules := Default()
	schedules.Scrub.Timezone = "Europe/Berlin"
	schedules.Scrub.Windows = windows("Sun,Mon,Tue,Wed 22:00-06:30", "Sun,Sat 00:00-24:00")
	schedules.Scrub.Schedules = []ScrubSchedule{
		{Name: "quarterly", Cron: "0 3 1 */3 *", Mode: "full", Deadline: Duration(24 * time.Hour)},
		{Name: "archive", Pools: []string{"attic", "3F2C1A52-8C1E-4B7E-9D53-0A4F5B6C7D8E"}, Cron: "0 3 1-7 * SUN", Limit: 1 << 20},
		{Name: "attic", Pools: []string{"attic"}, Cron: "@monthly", ReadOnly: true},
	}
	merge := Default()
	hook := AlertAction{Name: "lights", Match: []string{`severity = "critical"`}, Action: "webhook", URL: "https://lights.example.org/hook", CoolDown: defaultCoolDown}
	siren := hook
	siren.Name, siren.CoolDown = "siren", Duration(time.Hour)
	merge.Alertmanager.Actions = []AlertAction{hook, siren}
	merge.Notify.Receivers = []NotifyReceiver{
		{Name: "phone", Type: "ntfy", URL: hook.URL, Topic: "attic"}, {Name: "tablet", Type: "gotify", URL: hook.URL, Token: "a"},
	}
	want := map[string]*Config{
		"merge.yml":     merge,
		"full.yml":      full,
		"anchors.yml":   anchors,
		"flow.yml":      exclude("json"),
		"schedules.yml": schedules,
	}
	for _, file := range corpus(t, "good") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			got, err := Load(file, false)
			if err != nil {
				t.Fatal(err)
			}
			want, ok := want[filepath.Base(file)]
			if !ok {
				want = Default()
			}
			if diff := cmp.Diff(want, got, windowsCompare); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// Each bad file has beside it the error that it must give, less the name of
// the file that it begins with.
func TestBadFilesGiveTheirError(t *testing.T) {
	for _, file := range corpus(t, "bad") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := os.ReadFile(strings.TrimSuffix(file, ".yml") + ".error")
			if err != nil {
				t.Fatal(err)
			}
			_, err = Load(file, false)
			if err == nil {
				t.Fatal("no error")
			}
			if got, want := err.Error(), file+strings.TrimSuffix(string(want), "\n"); got != want {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
			var located *Error
			if !errors.As(err, &located) || located.File != file {
				t.Errorf("got a %T, want an *Error for %s", err, file)
			}
		})
	}
}

func TestExampleShowsEveryKeyWithItsDefault(t *testing.T) {
	data, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	got, lines, err := parse(exampleFile, data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got, windowsCompare); diff != "" {
		t.Errorf("the example's values are not the defaults (-default +example):\n%s", diff)
	}
	for _, key := range keys(reflect.TypeFor[Config](), "") {
		if lines[key] == 0 {
			t.Errorf("the example has no %s", key)
		}
	}
}

// The schedule that the example shows in a comment is a good one, with the
// defaults but for what it must name.
func TestExampleShowsEveryKeyOfASchedule(t *testing.T) {
	data, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(data), "  #   schedules:\n")
	if !ok {
		t.Fatal("the example shows no schedule")
	}
	shown, _, _ := strings.Cut(rest, "  schedules: []")
	got, lines, err := parse(exampleFile, []byte("scrub:\n  schedules:\n"+strings.ReplaceAll("\n"+shown, "\n  #", "\n")))
	if err != nil {
		t.Fatalf("%v in\n%s", err, shown)
	}
	for _, key := range keys(reflect.TypeFor[ScrubSchedule](), "scrub.schedules[0]") {
		if lines[key] == 0 {
			t.Errorf("the example has no %s", key)
		}
	}
	shownOptions, defaults := got.Scrub.Schedules[0], ScrubSchedule{}
	if shownOptions.options() != defaults.options() || shownOptions.Deadline != defaults.Deadline {
		t.Errorf("the example's options are %+v, which are not the defaults", shownOptions)
	}
}

// The pool that the example shows in a comment is a good one, with the defaults
// but for what it must name.
func TestExampleShowsEveryKeyOfSnapshots(t *testing.T) {
	data, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(data), "  #   pools:\n")
	if !ok {
		t.Fatal("the example shows no pool")
	}
	shown, _, _ := strings.Cut(rest, "  pools: []")
	got, lines, err := parse(exampleFile, []byte("snapshots:\n  pools:\n"+strings.ReplaceAll("\n"+shown, "\n  #", "\n")))
	if err != nil {
		t.Fatalf("%v in\n%s", err, shown)
	}
	for _, key := range keys(reflect.TypeFor[SnapshotsPool](), "snapshots.pools[0]") {
		if lines[key] == 0 {
			t.Errorf("the example has no %s", key)
		}
	}
	minimal := Default()
	minimal.Snapshots.Pools = []SnapshotsPool{{Pool: "attic", Subvolumes: []string{"@home", "/"}}}
	want, shownSettings := minimal.SnapshotSettings(), got.SnapshotSettings()
	want.Pools[0].Hooks.Timeout = snapshot.DefaultHookTimeout
	want.Excludes, shownSettings.Excludes = nil, nil
	if diff := cmp.Diff(want.Pools, shownSettings.Pools, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the example's values are not the defaults (-default +example):\n%s", diff)
	}
}

func TestSnapshotSettings(t *testing.T) {
	cfg, err := Parse("config.yml", []byte(`
snapshots:
  timezone: Europe/Berlin
  pools:
    - pool: attic
      subvolumes: ["@home", /, /srv/data/]
      directory: /@/.snapshots/
      cron: "30 * * * *"
      retention: {keep_last: 1, hourly: 2, daily: 3, weekly: 4, monthly: 5, yearly: 6, max_age: 90d, keep_min: 7}
      min_free: 50GiB
      hooks: {before: [/bin/freeze, a b], after: [/bin/thaw], timeout: 10s}
`))
	if err != nil {
		t.Fatal(err)
	}
	s := cfg.SnapshotSettings()
	got := s.Pools[0]
	next := got.Schedule.Next(time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC))
	if s.Location.String() != "Europe/Berlin" || !next.Equal(time.Date(2026, 7, 1, 12, 30, 0, 0, time.UTC)) {
		t.Errorf("zone %s, next %s", s.Location, next)
	}
	got.Schedule = nil
	want := snapshot.PoolSettings{
		Pool: "attic", Directory: "@/.snapshots", Subvolumes: []string{"@home", "", "srv/data"},
		Retention: retention.Policy{KeepLast: 1, Hourly: 2, Daily: 3, Weekly: 4, Monthly: 5, Yearly: 6, MaxAge: 90 * 24 * time.Hour, KeepMin: 7},
		MinFree:   50 << 30,
		Hooks:     snapshot.Hooks{Before: []string{"/bin/freeze", "a b"}, After: []string{"/bin/thaw"}, Timeout: 10 * time.Second},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// keys returns the keys of a configuration type.
func keys(t reflect.Type, prefix string) []string {
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[HTTPClient]() {
		return []string{prefix}
	}
	var all []string
	for i := range t.NumField() {
		all = append(all, keys(t.Field(i).Type, join(prefix, t.Field(i).Tag.Get("yaml")))...)
	}
	return all
}

func TestMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yml")
	got, err := Load(path, true)
	if err != nil {
		t.Fatalf("optional: %v", err)
	}
	if diff := cmp.Diff(Default(), got, windowsCompare); diff != "" {
		t.Errorf("optional: -want +got:\n%s", diff)
	}
	_, err = Load(path, false)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("not optional: got %v, want an error that names the file", err)
	}
}

func TestHugeFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yml")
	if err := os.WriteFile(path, slices.Repeat([]byte("# padding\n"), maxSize/10+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, false); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v", err)
	}
}

func TestExcludes(t *testing.T) {
	uuid, err := btrfs.ParseUUID("3f2c1a52-8c1e-4b7e-9d53-0a4f5b6c7d8e")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		entry string
		want  bool
	}{
		{"3f2c1a52-8c1e-4b7e-9d53-0a4f5b6c7d8e", true},
		{"3F2C1A52-8C1E-4B7E-9D53-0A4F5B6C7D8E", true},
		{"3f2c1a52", false},
		{"tank", true},
		{"Tank", false},
		{"other", false},
	} {
		p := Pools{Exclude: []string{"nobody", tt.entry}}
		if got := p.Excludes(uuid, "tank"); got != tt.want {
			t.Errorf("%q: got %v, want %v", tt.entry, got, tt.want)
		}
	}
	if (&Pools{}).Excludes(uuid, "") {
		t.Error("an empty list excludes a pool without a label")
	}
}

// FuzzParse: nothing makes the parser panic, and what it accepts is written
// back to the same configuration.
func FuzzParse(f *testing.F) {
	files := append(corpus(f, "good"), exampleFile)
	for _, file := range append(files, corpus(f, "bad")...) {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := Parse("fuzz.yml", data)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("the error is not one line: %q", err)
			}
			return
		}
		again, err := yaml.Marshal(cfg)
		if err != nil {
			t.Fatalf("marshal %+v: %v", cfg, err)
		}
		got, err := Parse("again.yml", again)
		if err != nil {
			t.Fatalf("parse what was marshalled from %+v:\n%s\n%v", cfg, again, err)
		}
		if diff := cmp.Diff(cfg, got, windowsCompare); diff != "" {
			t.Errorf("-first +again:\n%s\n%s", diff, again)
		}
	})
}

func TestScrubSettings(t *testing.T) {
	c, err := Load("testdata/good/full.yml", false)
	if err != nil {
		t.Fatal(err)
	}
	s := c.ScrubSettings(t.TempDir())
	if s.MaxPools != 2 || s.OnBattery != nil || len(s.Schedules) != 2 {
		t.Fatalf("got %+v", s)
	}
	if night := time.Date(2026, 3, 4, 23, 0, 0, 0, time.UTC); !s.Hours.Open(night) || s.Hours.Open(night.Add(12*time.Hour)) {
		t.Error("the hours are not those of the file")
	}
	attic := s.Schedules[1]
	want := scrub.Options{Mode: scrub.Limit, Limit: 50_000_000, ReadOnly: true}
	if attic.Options != want || attic.Within != 24*time.Hour || attic.Pools[0] != "attic" {
		t.Errorf("got %+v", attic)
	}
	if s.Schedules[0].Options.Mode != scrub.Auto {
		t.Errorf("the mode is %q, want auto", s.Schedules[0].Options.Mode)
	}
	first := time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)
	if due := s.Schedules[0].Due; due(first, first.Add(time.Hour)) || !due(first.Add(-time.Minute), first) {
		t.Error("the schedule is not due on the first at three")
	}
	if Default().ScrubSettings(t.TempDir()).OnBattery == nil {
		t.Error("by default scrubs do not wait for mains")
	}
}

func TestAlertActions(t *testing.T) {
	c, err := Load("testdata/good/full.yml", false)
	if err != nil {
		t.Fatal(err)
	}
	actions, err := c.AlertActions()
	if err != nil {
		t.Fatal(err)
	}
	overdue, lights := &actions[0], &actions[1]
	want := scrub.Options{Mode: scrub.Limit, Limit: 50_000_000, ReadOnly: true}
	if overdue.Kind != alertmanager.Scrub || overdue.Scrub != want || overdue.Within != 48*time.Hour || overdue.CoolDown != 0 || !overdue.DryRun || overdue.Match.String() != `{alertname="BtrfsScrubOverdue",severity!="info"}` {
		t.Errorf("got %+v", overdue)
	}
	if lights.Kind != alertmanager.Webhook || lights.URL != "https://example.org/hook?key=s3cr3t" || lights.Client == nil || lights.CoolDown != 12*time.Hour || lights.DryRun {
		t.Errorf("got %+v", lights)
	}
	silences, err := c.SilenceSettings("nas")
	if err != nil || silences.Instance != "attic" || len(silences.Peers) != 2 || len(silences.Matchers) != 2 || silences.Matchers[0][1].String() != `instance=~"nas:.*"` {
		t.Errorf("got %+v, %v", silences, err)
	}
	if s, err := Default().SilenceSettings("nas"); err != nil || s.Instance != "nas" || !s.Off() {
		t.Errorf("by default: %+v, %v", s, err)
	}
}

// Files that an http_config names are beside the configuration, as with
// Prometheus, and no redirect is followed.
func TestHTTPConfig(t *testing.T) {
	c, err := Load("testdata/good/full.yml", false)
	if err != nil {
		t.Fatal(err)
	}
	lights := c.Alertmanager.Actions[1].HTTPConfig.Config()
	if lights.BasicAuth.PasswordFile != "testdata/good/password" || lights.BasicAuth.Username != "nas" {
		t.Errorf("got %+v", lights.BasicAuth)
	}
	peer := c.Alertmanager.Silences.Alertmanagers[1].HTTPConfig.Config()
	if !peer.TLSConfig.InsecureSkipVerify || !peer.EnableHTTP2 {
		t.Errorf("got %+v", peer)
	}
	target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was followed") }))
	t.Cleanup(target.Close)
	redirect := httptest.NewServer(http.RedirectHandler(target.URL, http.StatusTemporaryRedirect))
	t.Cleanup(redirect.Close)
	client, err := new(HTTPClient).client("test")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Post(redirect.URL, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusTemporaryRedirect {
		t.Errorf("got %s", resp.Status)
	}
}

func TestWhatGoesInTheClearIsNamed(t *testing.T) {
	c, err := Parse("config.yml", []byte(`
alertmanager:
  actions:
    - {name: a, match: [a=b], action: scrub}
    - {name: b, match: [a=b], action: webhook, url: 'http://lights.example.org'}
    - {name: c, match: [a=b], action: webhook, url: 'http://lights.example.org', http_config: {basic_auth: {username: a, password: b}}}
  silences:
    matchers: [['alertname = "Other"']]
    alertmanagers:
      - {url: 'http://localhost:9093', http_config: {authorization: {credentials: a}}}
      - {url: 'http://alerts.example.org', http_config: {authorization: {credentials_file: a}}}
`))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.InTheClear(), []string{"alertmanager.actions[2]", "alertmanager.silences.alertmanagers[1]"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What is written once can be used again, and what is nearer counts.
func TestHTTPConfigThatIsMergedFromOthers(t *testing.T) {
	c, err := Load("testdata/good/merge.yml", false)
	if err != nil {
		t.Fatal(err)
	}
	first, second := c.Alertmanager.Actions[0].HTTPConfig.Config(), c.Alertmanager.Actions[1].HTTPConfig.Config()
	phone, tablet := c.Notify.Receivers[0].HTTPConfig.Config(), c.Notify.Receivers[1].HTTPConfig.Config()
	if a := first.BasicAuth; a.Username != "nas" || a.Password != "a" || !first.EnableHTTP2 || first.TLSConfig.MinVersion != promconfig.TLSVersions["TLS12"] {
		t.Errorf("the first is %+v", first)
	}
	if a := second.BasicAuth; a.Username != "other" || a.Password != "" || second.EnableHTTP2 || second.TLSConfig != first.TLSConfig || second.ProxyURL.Port() != "3128" {
		t.Errorf("the second is %+v", second)
	}
	if phone.BasicAuth.Password != "a" || phone.TLSConfig != first.TLSConfig {
		t.Errorf("that of the phone is %+v", phone)
	}
	if h := tablet.HTTPHeaders.Headers["X-One"]; len(h.Secrets) != 1 || h.Secrets[0] != "a" || tablet.TLSConfig.ServerName != "https://lights.example.org/hook" {
		t.Errorf("that of the tablet is %+v", tablet)
	}
}

// What the example shows in comments are good configurations, with the defaults
// but for what must be given.
func TestExampleShowsEveryKeyOfActionsAndReceivers(t *testing.T) {
	data, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	shown := func(begin, end string, indent string) string {
		t.Helper()
		_, rest, ok := strings.Cut(string(data), "\n"+indent+"#   "+begin+"\n")
		if !ok {
			t.Fatalf("the example does not show %s", begin)
		}
		text, _, ok := strings.Cut(rest, "\n"+indent+end+"\n")
		if !ok {
			t.Fatalf("the example has no %s", end)
		}
		return strings.ReplaceAll("\n"+text, "\n"+indent+"#", "\n"+indent)
	}
	text := "alertmanager:\n  actions:" + shown("actions:", "actions: []", "  ") +
		"\n  silences:\n    alertmanagers:" + shown("alertmanagers:", "alertmanagers: []", "    ") +
		"\n    matchers:" + shown("matchers:", "matchers: []", "    ") +
		"\nnotify:\n  receivers:" + shown("receivers:", "receivers: []", "  ")
	got, lines, err := parse(exampleFile, []byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	all := keys(reflect.TypeFor[AlertAction](), "")
	for _, key := range all {
		if lines["alertmanager.actions[0]."+key] == 0 && lines["alertmanager.actions[1]."+key] == 0 {
			t.Errorf("the example of an action has no %s", key)
		}
	}
	all = keys(reflect.TypeFor[SilencesPeer](), "alertmanager.silences.alertmanagers[0]")
	for _, key := range append(all, keys(reflect.TypeFor[NotifyReceiver](), "notify.receivers[0]")...) {
		if lines[key] == 0 {
			t.Errorf("the example has no %s", key)
		}
	}
	action := AlertAction{Name: "scrub-overdue", Match: got.Alertmanager.Actions[0].Match, Action: "scrub", Mode: "auto", CoolDown: defaultCoolDown}
	receiver := NotifyReceiver{Name: "phone", Type: "ntfy", URL: "https://ntfy.sh", Topic: "the-name-of-mine"}
	if diff := cmp.Diff(action, got.Alertmanager.Actions[0], windowsCompare); diff != "" {
		t.Errorf("the values are not the defaults (-default +example):\n%s", diff)
	}
	if diff := cmp.Diff(receiver, got.Notify.Receivers[0], windowsCompare); diff != "" {
		t.Errorf("the values are not the defaults (-default +example):\n%s", diff)
	}
}
