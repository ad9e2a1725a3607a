package alertmanager

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/prometheus/alertmanager/pkg/labels"
	"github.com/prometheus/common/config"
	"github.com/prometheus/common/model"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

// Work is a long operation on a pool that runs now, and that alerts may be about
// which nobody wants to hear while it does.
type Work struct {
	Pool      btrfs.UUID
	Label     string // of the pool; may be empty
	Operation string // one of Operations
	// Since is when this run began. It has to be the same after a restart of the
	// daemon: by it a silence that a person expired is known to be of this run.
	Since time.Time
	// Earlier tells that it ran already when it was first seen, at Since: then the
	// silences that there are say which run it is of.
	Earlier bool
}

// Operations returns the operations that there may be silences for.
func Operations() []string { return []string{"scrub", "balance"} }

// Peer is one Alertmanager of a cluster.
type Peer struct {
	// URL is what the API is below, such as https://alerts.example.org:9093, with
	// the prefix that --web.route-prefix gives it.
	URL string
	// HTTP says how to reach it. Redirects are never followed, whatever it says.
	HTTP config.HTTPClientConfig
}

// SilenceSettings say which silences there are while work runs. The zero value is
// none.
type SilenceSettings struct {
	// Peers are Alertmanagers of one cluster: what one is told all know.
	Peers []Peer
	// Matchers has the matchers of one silence in each inner list.
	Matchers [][]*labels.Matcher
	// Operations are those that there are silences for.
	Operations []string
	// Instance tells our silences from those of other hosts. No two daemons that
	// talk to one cluster may have the same.
	Instance string
}

// Off reports whether there are no silences.
func (s *SilenceSettings) Off() bool { return len(s.Peers) == 0 }

// maxInstance is how long a name of an instance may be: as long as a host name.
const maxInstance = 253

// Validate returns what is wrong with the settings. No secret is in it.
func (s *SilenceSettings) Validate() error {
	if s.Off() {
		return nil
	}
	seen := make(map[string]bool)
	for i := range s.Peers {
		base, err := s.Peers[i].base()
		if err == nil && seen[base.String()] {
			err = errors.New("the url stands there twice")
		}
		if err != nil {
			return fmt.Errorf("alertmanagers[%d]: %w", i, err)
		}
		seen[base.String()] = true
		http := s.Peers[i].HTTP
		if err := http.Validate(); err != nil {
			return fmt.Errorf("alertmanagers[%d]: http_config: %w", i, err)
		}
	}
	if len(s.Matchers) == 0 {
		return errors.New("matchers: there are none, so nothing would be silenced; give at least one list")
	}
	hashes := make(map[string]bool)
	for i, list := range s.Matchers {
		if err := validateMatchers(list); err != nil {
			return fmt.Errorf("matchers[%d]: %w", i, err)
		}
		hash := hashMatchers(fromLabels(list))
		if hashes[hash] {
			return fmt.Errorf("matchers[%d]: the same matchers stand there twice", i)
		}
		hashes[hash] = true
	}
	if len(s.Operations) == 0 {
		return fmt.Errorf("operations: there are none; give some of %s", strings.Join(Operations(), ", "))
	}
	for i, operation := range s.Operations {
		if !slices.Contains(Operations(), operation) {
			return fmt.Errorf("operations[%d]: %q is none of %s", i, operation, strings.Join(Operations(), ", "))
		}
		if slices.Contains(s.Operations[:i], operation) {
			return fmt.Errorf("operations[%d]: %q stands there twice", i, operation)
		}
	}
	if s.Instance == "" || len(s.Instance) > maxInstance || strings.ContainsFunc(s.Instance, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return fmt.Errorf("instance: %.40q is not a name of 1 to %d characters without spaces", s.Instance, maxInstance)
	}
	return nil
}

// base returns the URL that the API is below. What is wrong with it is told
// without the URL: it may hold a password.
func (p *Peer) base() (*url.URL, error) {
	u, err := url.Parse(p.URL)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, errors.New("the url is not one such as http://localhost:9093")
	case u.User != nil:
		return nil, errors.New("the url has a user or a password; they belong into http_config, under basic_auth")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, errors.New("the url must end before any ? or #")
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	return u, nil
}

// validateMatchers refuses what Alertmanager would refuse, and only while work
// runs.
func validateMatchers(list []*labels.Matcher) error {
	matchesAll := true
	for _, m := range list {
		// Alertmanager before 0.27 takes no other names.
		if !model.LegacyValidation.IsValidLabelName(m.Name) {
			return fmt.Errorf("%q is no name of a label", m.Name)
		}
		matchesAll = matchesAll && m.Matches("")
	}
	if matchesAll {
		return errors.New("one matcher at least must not match an empty value")
	}
	return nil
}

// silence is one as the API of Alertmanager shows it (version 2,
// api/v2/openapi.yaml of prometheus/alertmanager).
type silence struct {
	postableSilence
	UpdatedAt time.Time `json:"updatedAt"`
	Status    struct {
		State string `json:"state"`
	} `json:"status"`
}

// postableSilence is what may be written of a silence. Without an ID it is a new
// one.
type postableSilence struct {
	ID        string    `json:"id,omitempty"`
	Matchers  []matcher `json:"matchers"`
	StartsAt  time.Time `json:"startsAt"`
	EndsAt    time.Time `json:"endsAt"`
	CreatedBy string    `json:"createdBy"`
	Comment   string    `json:"comment"`
}

type matcher struct {
	Name    string `json:"name"`
	Value   string `json:"value"`
	IsRegex bool   `json:"isRegex"`
	IsEqual bool   `json:"isEqual"` // else it is != or !~
}

// UnmarshalJSON implements json.Unmarshaler: where isEqual is absent it is true.
func (m *matcher) UnmarshalJSON(text []byte) error {
	type plain matcher
	p := plain{IsEqual: true}
	if err := json.Unmarshal(text, &p); err != nil {
		return err
	}
	*m = matcher(p)
	return nil
}

func fromLabels(list []*labels.Matcher) []matcher {
	matchers := make([]matcher, len(list))
	for i, m := range list {
		matchers[i] = matcher{
			Name: m.Name, Value: m.Value,
			IsRegex: m.Type == labels.MatchRegexp || m.Type == labels.MatchNotRegexp,
			IsEqual: m.Type == labels.MatchEqual || m.Type == labels.MatchRegexp,
		}
	}
	return matchers
}

// hashMatchers returns the same for the same matchers in any order.
func hashMatchers(matchers []matcher) string {
	lines := make([]string, len(matchers))
	for i, m := range matchers {
		lines[i] = fmt.Sprintf("%q %q %t %t\n", m.Name, m.Value, m.IsRegex, m.IsEqual)
	}
	slices.Sort(lines)
	sum := sha256.Sum256([]byte(strings.Join(lines, "")))
	return hex.EncodeToString(sum[:8])
}

// expired reports whether a silence keeps nothing silent any more.
func (s *silence) expired() bool { return s.Status.State == "expired" }

// expiredByHand reports whether a silence was expired, and did not run out. Who
// expires one writes it at that moment and has it end then; one that runs out was
// last written when it was extended.
func (s *silence) expiredByHand() bool {
	return s.expired() && s.EndsAt.Sub(s.UpdatedAt) < time.Second
}

// identity is what a silence of ours is for. There is to be one of each.
type identity struct {
	pool      btrfs.UUID
	operation string
	matchers  string // hashMatchers
}

// run is the same for all silences of a run of the work.
func (i identity) run() identity {
	i.matchers = ""
	return i
}

// marker stands at the end of the comment of a silence of ours, and is how we
// find it again.
type marker struct {
	identity
	since int64 // Work.Since in Unix seconds
	// ended: it was we who expired it, and not a person.
	ended bool
}

func (m *marker) String() string {
	ended := ""
	if m.ended {
		ended = " ended"
	}
	return fmt.Sprintf("[btrfs-governor %s %s %s %d%s]", m.operation, m.pool, m.matchers, m.since, ended)
}

var markerPattern = regexp.MustCompile(`\[btrfs-governor ([a-z]+) ([0-9a-f-]{36}) ([0-9a-f]{16}) (-?[0-9]{1,18})( ended)?\]$`)

// markerOf returns the marker of a silence of the owner. One whose matchers a
// person has changed since is that person's.
func markerOf(s *silence, owner string) (m marker, ours bool) {
	parts := markerPattern.FindStringSubmatch(s.Comment)
	if s.CreatedBy != owner || parts == nil {
		return m, false
	}
	pool, err := btrfs.ParseUUID(parts[2])
	since, errSince := strconv.ParseInt(parts[4], 10, 64)
	if err != nil || errSince != nil || parts[3] != hashMatchers(s.Matchers) {
		return m, false
	}
	return marker{identity{pool, parts[1], parts[3]}, since, parts[5] != ""}, true
}

// owner is the creator of the silences of an instance.
func owner(instance string) string { return "btrfs-governor@" + instance }

// wantedSilence is one that there is to be.
type wantedSilence struct {
	marker
	matchers []matcher
	text     string // what the comment says to a person
	earlier  bool   // Work.Earlier
}

func (w *wantedSilence) comment() string { return w.text + " " + w.marker.String() }

// wanted returns the silences that there are to be while work runs.
func (s *SilenceSettings) wanted(work []Work) []wantedSilence {
	all := make(map[identity]wantedSilence)
	for _, w := range work {
		if !slices.Contains(s.Operations, w.Operation) {
			continue
		}
		for _, list := range s.Matchers {
			matchers := fromLabels(list)
			id := identity{w.Pool, w.Operation, hashMatchers(matchers)}
			if other, twice := all[id]; twice && other.since >= w.Since.Unix() {
				continue
			}
			m := marker{identity: id, since: w.Since.Unix()}
			all[id] = wantedSilence{m, matchers, w.text(), w.Earlier}
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b wantedSilence) int {
		return cmp.Compare(a.String(), b.String())
	})
}

// text says to a person what a silence is for.
func (w *Work) text() string {
	pool := w.Pool.String()
	if w.Label != "" {
		pool = fmt.Sprintf("%q (%s)", w.Label, pool) // quoted: a label may hold anything
	}
	runs := "has been running since " + w.Since.UTC().Format("2006-01-02 15:04 MST")
	if w.Earlier {
		runs = "runs"
	}
	return fmt.Sprintf("A %s of the pool %s %s; btrfs-governor ends this silence with it.", w.Operation, pool, runs)
}

// step is a request that changes a silence.
type step struct {
	kind    stepKind
	silence postableSilence
	marker  marker
}

type stepKind string

const (
	create stepKind = "create"
	extend stepKind = "extend"
	// end marks a silence as ended by us and then expires it: after a restart it
	// must not be taken for one that a person expired.
	end stepKind = "end"
	// expire is for one that has the mark already.
	expire stepKind = "expire"
)

// plan is what to do with the silences of an owner.
type plan struct {
	steps []step
	// active is how many there are of the owner when that is done.
	active int
	// refused are those that a person expired during this run of the work.
	refused []marker
}

// decide compares the silences that there are to be with those that there are. The
// clock of now is that of the Alertmanager.
func decide(owner string, wanted []wantedSilence, there []silence, now time.Time, timing *SilenceTiming) plan {
	type found struct {
		silence
		marker
	}
	live, byHand := make(map[identity][]found), make(map[identity]int64)
	// By pool and operation: since when the last run was of which we had a silence.
	lastRun := make(map[identity]int64)
	for i := range there {
		s := &there[i]
		m, ours := markerOf(s, owner)
		if !ours {
			continue
		}
		if since, known := lastRun[m.run()]; !known || since < m.since {
			lastRun[m.run()] = m.since
		}
		switch {
		case !s.expired():
			live[m.identity] = append(live[m.identity], found{*s, m})
		case s.expiredByHand() && !m.ended:
			if since, known := byHand[m.identity]; !known || since < m.since {
				byHand[m.identity] = m.since
			}
		}
	}

	var p plan
	for _, w := range wanted {
		if since, known := lastRun[w.run()]; known && w.earlier {
			w.since = since
		}
		if since, refused := byHand[w.identity]; refused && since >= w.since {
			p.refused = append(p.refused, w.marker)
			continue // those that live are ended below
		}
		p.active++
		fresh := postableSilence{Matchers: w.matchers, StartsAt: now, EndsAt: now.Add(timing.Life), CreatedBy: owner, Comment: w.comment()}
		candidates := live[w.identity]
		if len(candidates) == 0 {
			p.steps = append(p.steps, step{create, fresh, w.marker})
			continue
		}
		// All who look keep the same one.
		slices.SortFunc(candidates, func(a, b found) int {
			return cmp.Or(b.EndsAt.Compare(a.EndsAt), cmp.Compare(a.ID, b.ID))
		})
		kept := candidates[0]
		live[w.identity] = candidates[1:]
		left := kept.EndsAt.Sub(now)
		if left <= timing.Life-timing.Extend || left > timing.mostLife() || kept.marker != w.marker {
			// Alertmanager keeps the id where the matchers and the start are just as
			// they were.
			fresh.ID, fresh.StartsAt, fresh.Matchers = kept.ID, kept.StartsAt, kept.Matchers
			p.steps = append(p.steps, step{extend, fresh, w.marker})
		}
	}
	for _, left := range live {
		for _, f := range left {
			s := f.postableSilence
			if f.ended {
				p.steps = append(p.steps, step{expire, s, f.marker})
				continue
			}
			f.ended = true
			s.Comment = strings.TrimSuffix(s.Comment, "]") + " ended]"
			s.EndsAt = now.Add(timing.Life) // one that is about to end would be refused
			p.steps = append(p.steps, step{end, s, f.marker})
		}
	}
	slices.SortStableFunc(p.steps, func(a, b step) int {
		order := []stepKind{create, extend, end, expire}
		return cmp.Or(cmp.Compare(slices.Index(order, a.kind), slices.Index(order, b.kind)), cmp.Compare(a.silence.ID, b.silence.ID))
	})
	return p
}
