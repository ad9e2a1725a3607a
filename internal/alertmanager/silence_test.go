package alertmanager

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"
	"github.com/prometheus/common/config"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

var (
	attic = btrfs.UUID{0x5f, 0x1c, 0x0d, 0xe1, 15: 1}
	cave  = btrfs.UUID{0xca, 15: 2}
	noon  = time.Date(2026, 3, 7, 12, 0, 0, 0, time.UTC)
)

func parse(t testing.TB, lists ...string) [][]*labels.Matcher {
	t.Helper()
	var all [][]*labels.Matcher
	for _, text := range lists {
		list, err := labels.ParseMatchers(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, list)
	}
	return all
}

func testSettings(t testing.TB) SilenceSettings {
	t.Helper()
	return SilenceSettings{
		Peers:      []Peer{{URL: "http://localhost:9093"}},
		Matchers:   parse(t, `alertname="DiskLatencyHigh",instance=~"nas:.+"`),
		Operations: []string{"scrub"},
		Instance:   "nas",
	}
}

// there is a silence as Alertmanager shows it, of the work that began at noon.
func there(t testing.TB, id, state string, endsAt, updatedAt time.Time, changes ...func(*silence)) silence {
	t.Helper()
	settings := testSettings(t)
	w := settings.wanted([]Work{{Pool: attic, Label: "attic", Operation: "scrub", Since: noon}})[0]
	s := silence{UpdatedAt: updatedAt}
	s.postableSilence = postableSilence{
		ID: id, Matchers: w.matchers, StartsAt: noon.Add(time.Second), EndsAt: endsAt, CreatedBy: owner("nas"), Comment: w.comment(),
	}
	s.Status.State = state
	for _, change := range changes {
		change(&s)
	}
	return s
}

func markEnded(s *silence) { s.Comment = strings.TrimSuffix(s.Comment, "]") + " ended]" }

func TestDecide(t *testing.T) {
	timing := DefaultSilenceTiming()
	scrub := Work{Pool: attic, Label: "attic", Operation: "scrub", Since: noon}
	again := Work{Pool: attic, Label: "attic", Operation: "scrub", Since: noon.Add(time.Hour)}
	// After a restart of the daemon.
	found := Work{Pool: attic, Label: "attic", Operation: "scrub", Since: noon.Add(2 * time.Hour), Earlier: true}
	sinceLater := func(s *silence) {
		s.Comment = strings.Replace(s.Comment, fmt.Sprint(noon.Unix()), fmt.Sprint(noon.Add(time.Hour).Unix()), 1)
	}
	now := noon.Add(2 * time.Hour)
	in := func(minutes float64) time.Time { return now.Add(time.Duration(minutes * float64(time.Minute))) }
	active := func(id string, minutes float64, changes ...func(*silence)) silence {
		return there(t, id, "active", in(minutes), in(minutes-10), changes...)
	}
	byHand := func(changes ...func(*silence)) silence {
		return there(t, "by-hand", "expired", in(-5), in(-5), changes...)
	}
	for _, tt := range []struct {
		name    string
		work    []Work
		there   []silence
		want    string // kind and id of each step
		active  int
		refused int
	}{
		{name: "nothing runs and nothing is there"},
		{name: "work begins", work: []Work{scrub}, want: "create", active: 1},
		{name: "it is reported twice", work: []Work{scrub, scrub}, want: "create", active: 1},
		{name: "work of a kind that is not silenced", work: []Work{{Pool: attic, Operation: "balance", Since: noon}}},
		{name: "work of two pools", work: []Work{scrub, {Pool: cave, Operation: "scrub", Since: noon}}, want: "create create", active: 2},
		{name: "just written", work: []Work{scrub}, there: []silence{active("a", 10)}, active: 1},
		{name: "written two minutes ago", work: []Work{scrub}, there: []silence{active("a", 8)}, active: 1},
		{name: "written three minutes ago", work: []Work{scrub}, there: []silence{active("a", 7)}, want: "extend a", active: 1},
		{name: "about to end", work: []Work{scrub}, there: []silence{active("a", 0.01)}, want: "extend a", active: 1},
		{name: "it ends too late", work: []Work{scrub}, there: []silence{active("a", 600)}, want: "extend a", active: 1},
		{name: "not yet begun, for the clocks differ", work: []Work{scrub}, there: []silence{active("a", 9, func(s *silence) { s.Status.State = "pending" })}, active: 1},
		{name: "of an earlier run", work: []Work{again}, there: []silence{active("a", 9)}, want: "extend a", active: 1},
		{name: "marked as ended by a daemon that was killed then", work: []Work{scrub}, there: []silence{active("a", 9, markEnded)}, want: "extend a", active: 1},
		{name: "duplicates", work: []Work{scrub}, there: []silence{active("a", 8), active("c", 9), active("b", 9)}, want: "end a end c", active: 1},
		{name: "the work is over", there: []silence{active("a", 9)}, want: "end a"},
		{name: "the work is over and only half ended", there: []silence{active("a", 9, markEnded)}, want: "expire a"},
		{name: "another operation took its place", work: []Work{{Pool: attic, Operation: "balance", Since: noon}}, there: []silence{active("a", 9)}, want: "end a"},
		{name: "the pool is another", work: []Work{{Pool: cave, Operation: "scrub", Since: noon}}, there: []silence{active("a", 9)}, want: "create end a", active: 1},

		{name: "it ran out", work: []Work{scrub}, there: []silence{there(t, "a", "expired", in(-1), in(-11))}, want: "create", active: 1},
		{name: "we ended it, and the work goes on after a restart", work: []Work{scrub}, there: []silence{byHand(markEnded)}, want: "create", active: 1},
		{name: "expired by hand", work: []Work{scrub}, there: []silence{byHand()}, refused: 1},
		{name: "expired by hand, written again just then", work: []Work{scrub}, there: []silence{byHand(), active("a", 9)}, want: "end a", refused: 1},
		{name: "expired by hand in an earlier run", work: []Work{again}, there: []silence{byHand()}, want: "create", active: 1},
		{name: "expired by hand in an earlier run and in this", work: []Work{scrub}, there: []silence{byHand(), byHand(func(s *silence) { s.Comment = strings.Replace(s.Comment, fmt.Sprint(noon.Unix()), "1", 1) })}, refused: 1},
		{name: "expired by hand for another pool", work: []Work{{Pool: cave, Operation: "scrub", Since: noon}}, there: []silence{byHand()}, want: "create", active: 1},

		{name: "it began nobody knows when", work: []Work{found}, want: "create", active: 1},
		{name: "found running, with its silence", work: []Work{found}, there: []silence{active("a", 9)}, active: 1},
		{name: "found running, and its silence expired by hand", work: []Work{found}, there: []silence{byHand()}, refused: 1},
		{name: "found running, its silence expired by hand in an earlier run", work: []Work{found}, there: []silence{byHand(), active("a", 9, sinceLater)}, active: 1},
		{name: "found running, after that we ended its silence", work: []Work{found}, there: []silence{byHand(), byHand(sinceLater, markEnded)}, want: "create", active: 1},
		{name: "found running, and its silence expired by hand, as that of an earlier run", work: []Work{found}, there: []silence{byHand(), byHand(sinceLater)}, refused: 1},

		{name: "of another host", there: []silence{active("a", 9, func(s *silence) { s.CreatedBy = owner("nas2") })}},
		{name: "of a person", there: []silence{active("a", 9, func(s *silence) { s.CreatedBy = "root@nas" })}},
		{name: "of another host while work runs", work: []Work{scrub}, there: []silence{active("a", 9, func(s *silence) { s.CreatedBy = owner("na") })}, want: "create", active: 1},
		{name: "with our name and without the marker", there: []silence{active("a", 9, func(s *silence) { s.Comment = "for the weekend" })}},
		{name: "with a marker that is not at the end", there: []silence{active("a", 9, func(s *silence) { s.Comment += " and more" })}},
		{name: "with a marker that cannot be", there: []silence{active("a", 9, func(s *silence) {
			s.Comment = strings.Replace(s.Comment, attic.String()+" ", strings.Repeat("-", 36)+" ", 1)
		})}},
		{name: "a person changed its matchers", work: []Work{scrub}, there: []silence{active("a", 9, func(s *silence) { s.Matchers = s.Matchers[:1] })}, want: "create", active: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			settings := testSettings(t)
			p := decide(owner("nas"), settings.wanted(tt.work), tt.there, now, &timing)
			var got []string
			for _, s := range p.steps {
				got = append(got, strings.TrimSpace(string(s.kind)+" "+s.silence.ID))
				if s.kind == expire {
					continue
				}
				if s.silence.EndsAt != now.Add(timing.Life) {
					t.Errorf("%s: it ends at %s, want 10 minutes after %s", s.kind, s.silence.EndsAt, now)
				}
				written := silence{postableSilence: s.silence}
				if m, ours := markerOf(&written, owner("nas")); !ours || m != s.marker || m.ended != (s.kind == end) {
					t.Errorf("%s: what is written has marker %s, want %s", s.kind, &m, &s.marker)
				}
			}
			if strings.Join(got, " ") != tt.want || p.active != tt.active || len(p.refused) != tt.refused {
				t.Errorf("got %q, %d active, %d refused; want %q, %d, %d", got, p.active, len(p.refused), tt.want, tt.active, tt.refused)
			}
		})
	}
}

// Alertmanager gives a silence another id where it is not as it was.
func TestExtensionChangesOnlyTheEnd(t *testing.T) {
	settings, timing := testSettings(t), DefaultSilenceTiming()
	now := noon.Add(time.Hour)
	before := there(t, "a", "active", now.Add(time.Minute), now)
	// An order of its own, as some Alertmanager may have.
	before.Matchers[0], before.Matchers[1] = before.Matchers[1], before.Matchers[0]
	p := decide(owner("nas"), settings.wanted([]Work{{Pool: attic, Label: "attic", Operation: "scrub", Since: noon}}), []silence{before}, now, &timing)
	want := before.postableSilence
	want.EndsAt = now.Add(10 * time.Minute)
	if len(p.steps) != 1 || !reflect.DeepEqual(p.steps[0].silence, want) {
		t.Errorf("got %+v, want %+v", p.steps, want)
	}
}

func TestCommentSaysWhatRunsOnWhichPool(t *testing.T) {
	settings := testSettings(t)
	for label, want := range map[string]string{
		"attic":                    `A scrub of the pool "attic" (5f1c0de1-0000-0000-0000-000000000001) has been running since 2026-03-07 12:00 UTC; btrfs-governor ends this silence with it. [btrfs-governor scrub 5f1c0de1-0000-0000-0000-000000000001 `,
		"":                         `A scrub of the pool 5f1c0de1-0000-0000-0000-000000000001 has been running since `,
		"[btrfs-governor scrub\n]": `A scrub of the pool "[btrfs-governor scrub\n]" (`,
	} {
		w := settings.wanted([]Work{{Pool: attic, Label: label, Operation: "scrub", Since: noon}})[0]
		if got := w.comment(); !strings.HasPrefix(got, want) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	w := settings.wanted([]Work{{Pool: attic, Operation: "scrub", Since: noon, Earlier: true}})[0]
	if got, want := w.comment(), "A scrub of the pool 5f1c0de1-0000-0000-0000-000000000001 runs; btrfs-governor ends"; !strings.HasPrefix(got, want) {
		t.Errorf("of one that began nobody knows when: got %s, want %s", got, want)
	}
}

func TestMatchersAreTheSameInAnyOrder(t *testing.T) {
	hash := func(text string) string { return hashMatchers(fromLabels(parse(t, text)[0])) }
	if hash(`a="1",b!~"2"`) != hash(`b!~"2",a="1"`) {
		t.Error("the order counts")
	}
	seen := make(map[string]string)
	for _, text := range []string{`a="1"`, `a!="1"`, `a=~"1"`, `a!~"1"`, `a="2"`, `b="1"`, `a="1",b="1"`} {
		if other, twice := seen[hash(text)]; twice {
			t.Errorf("%s and %s are taken for the same", text, other)
		}
		seen[hash(text)] = text
	}
}

func TestMatcherWithoutIsEqualIsEqual(t *testing.T) {
	var m []matcher
	err := json.Unmarshal([]byte(`[{"name":"a","value":"b","isRegex":true},{"name":"a","value":"b","isRegex":false,"isEqual":false}]`), &m)
	if want := []matcher{{"a", "b", true, true}, {"a", "b", false, false}}; err != nil || !reflect.DeepEqual(m, want) {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestSettingsAreChecked(t *testing.T) {
	if err := new(SilenceSettings).Validate(); err != nil {
		t.Errorf("no silences at all: %v", err)
	}
	if settings := testSettings(t); settings.Validate() != nil {
		t.Errorf("good settings: %v", settings.Validate())
	}
	withURL := func(url string) func(*SilenceSettings) {
		return func(s *SilenceSettings) { s.Peers[0].URL = url }
	}
	withMatchers := func(lists ...string) func(*SilenceSettings) {
		return func(s *SilenceSettings) { s.Matchers = parse(t, lists...) }
	}
	for _, tt := range []struct {
		name   string
		change func(*SilenceSettings)
		want   string
	}{
		{"no URL", withURL(""), "alertmanagers[0]: the url is not one"},
		{"no scheme", withURL("localhost:9093"), "the url is not one"},
		{"another scheme", withURL("ftp://localhost"), "the url is not one"},
		{"no host", withURL("http://:9093"), "the url is not one"},
		{"a password in the URL", withURL("http://admin:hunter2@localhost"), "basic_auth"},
		{"a password in a URL that cannot be read", withURL("http://admin:hunter2@local host"), "the url is not one"},
		{"a query", withURL("http://localhost/?token=hunter2"), "before any ?"},
		{"a fragment", withURL("http://localhost/#hunter2"), "before any ?"},
		{"the same peer twice", func(s *SilenceSettings) { s.Peers = append(s.Peers, Peer{URL: s.Peers[0].URL + "/"}) }, "alertmanagers[1]: the url stands there twice"},
		{"two ways to authenticate", func(s *SilenceSettings) {
			s.Peers[0].HTTP = config.HTTPClientConfig{BasicAuth: &config.BasicAuth{Username: "a", Password: "hunter2"}, BearerToken: "hunter2"}
		}, "alertmanagers[0]: http_config: at most one of"},
		{"no matchers", withMatchers(), "matchers: there are none"},
		{"an empty list", func(s *SilenceSettings) { s.Matchers = [][]*labels.Matcher{{}} }, "matchers[0]: one matcher at least must not match an empty value"},
		{"matches everything", withMatchers(`a="b"`, `a=~".*"`), "matchers[1]: one matcher at least must not match an empty value"},
		{"only a negative one", withMatchers(`severity!="critical"`), "one matcher at least"},
		{"the name of no label", withMatchers(`a:b="c"`), `matchers[0]: "a:b" is no name of a label`},
		{"the same list twice", withMatchers(`a="b",c="d"`, `c="d",a="b"`), "matchers[1]: the same matchers stand there twice"},
		{"no operations", func(s *SilenceSettings) { s.Operations = nil }, "operations: there are none; give some of scrub, balance"},
		{"an unknown operation", func(s *SilenceSettings) { s.Operations = []string{"defrag"} }, `operations[0]: "defrag" is none of scrub, balance`},
		{"an operation twice", func(s *SilenceSettings) { s.Operations = []string{"scrub", "scrub"} }, `operations[1]: "scrub" stands there twice`},
		{"no instance", func(s *SilenceSettings) { s.Instance = "" }, "instance: "},
		{"an instance of two words", func(s *SilenceSettings) { s.Instance = "my nas" }, "instance: "},
		{"an instance with a control character", func(s *SilenceSettings) { s.Instance = "nas\x00" }, "instance: "},
		{"a long instance", func(s *SilenceSettings) { s.Instance = strings.Repeat("a", 300) }, "instance: "},
	} {
		settings := testSettings(t)
		tt.change(&settings)
		err := settings.Validate()
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}
