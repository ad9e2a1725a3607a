package config

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"
	"github.com/prometheus/common/model"

	"github.com/btrfs-governor/btrfs-governor/alerts"
	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// Alertmanager says what is done about alerts.
type Alertmanager struct {
	Actions  []AlertAction `yaml:"actions"`
	Silences Silences      `yaml:"silences"`
}

// Silences are there while work runs, see alertmanager.SilenceSettings.
type Silences struct {
	// Alertmanagers are those of one cluster; none is no silences.
	Alertmanagers []SilencesPeer `yaml:"alertmanagers"`
	// Matchers has those of one silence in each inner list.
	Matchers   [][]string `yaml:"matchers"`
	Operations []string   `yaml:"operations"`
	Instance   string     `yaml:"instance"` // the host's name if empty
}

// SilencesPeer is one Alertmanager.
type SilencesPeer struct {
	URL        string     `yaml:"url"`
	HTTPConfig HTTPClient `yaml:"http_config"`
}

// AlertAction is what is done about the alerts that match, see
// alertmanager.Action.
type AlertAction struct {
	Name string `yaml:"name"`
	// Match are matchers as Alertmanager has them, all of which must match.
	Match  []string `yaml:"match"`
	Action string   `yaml:"action"` // scrub, snapshot, balance or webhook
	// Of a scrub.
	Mode     string   `yaml:"mode"`
	Limit    Size     `yaml:"limit"`
	ReadOnly bool     `yaml:"read_only"`
	Deadline Duration `yaml:"deadline"`
	// Of a webhook.
	URL        string     `yaml:"url"`
	HTTPConfig HTTPClient `yaml:"http_config"`

	CoolDown Duration `yaml:"cool_down"`
	DryRun   bool     `yaml:"dry_run"`
}

func (c *AlertAction) setDefaults() { c.CoolDown = defaultCoolDown }

// defaultCoolDown is how long an action is not done again for a pool. An alert
// that flaps must not have a pool scrubbed all day.
const defaultCoolDown = Duration(12 * time.Hour)

// validActionName is what a name of an action has to be: it becomes the value of a
// label, and part of the requester of a job and of a header.
var validActionName = regexp.MustCompile(`^[A-Za-z0-9][-_.A-Za-z0-9]{0,63}$`)

func (a *Alertmanager) validate(snapshots *Snapshots) *keyError {
	names := make(map[string]bool)
	for i := range a.Actions {
		c := &a.Actions[i]
		key := fmt.Sprintf("alertmanager.actions[%d]", i)
		if c.Name == "" {
			return &keyError{key, "has no name; what it did is remembered by it"}
		}
		if !validActionName.MatchString(c.Name) {
			return &keyError{key + ".name", fmt.Sprintf("must be 1 to 64 letters, digits, -, _ and ., and begin with a letter or a digit, which %.80q is not", c.Name)}
		}
		if names[c.Name] {
			return &keyError{key + ".name", fmt.Sprintf("is %q a second time", c.Name)}
		}
		names[c.Name] = true
		if bad := c.validate(key); bad != nil {
			return bad
		}
		if alertmanager.Kind(c.Action) == alertmanager.Snapshot && len(snapshots.Pools) == 0 {
			return &keyError{key + ".action", "is snapshot, and no pool has any snapshots; add pools with the subvolumes to take them of under snapshots.pools"}
		}
	}
	return a.Silences.validate()
}

func (s *Silences) validate() *keyError {
	const key = "alertmanager.silences"
	settings, bad := s.settings("validated")
	if bad != nil {
		return bad
	}
	if len(s.Alertmanagers) == 0 && len(s.Matchers) > 0 {
		return &keyError{key, "has matchers and no alertmanagers; give the address of one, such as {url: http://localhost:9093}"}
	}
	if err := settings.Validate(); err != nil {
		return &keyError{key, "is wrong: " + err.Error()}
	}
	for i := range s.Alertmanagers {
		if bad := validateHTTP(fmt.Sprintf("%s.alertmanagers[%d]", key, i), &s.Alertmanagers[i].HTTPConfig); bad != nil {
			return bad
		}
	}
	for i, list := range settings.Matchers {
		// What a scrub finds must be heard while it runs.
		for _, name := range alerts.Names() {
			if couldMatch(list, name) {
				return &keyError{fmt.Sprintf("%s.matchers[%d]", key, i), fmt.Sprintf("would silence %s too; add a matcher for alertname that leaves out the alerts of btrfs-governor", name)}
			}
		}
	}
	return nil
}

// couldMatch tells whether matchers match an alert of that name, if its other
// labels fit.
func couldMatch(list labels.Matchers, alertname string) bool {
	for _, m := range list {
		if m.Name == model.AlertNameLabel && !m.Matches(alertname) {
			return false
		}
	}
	return true
}

// settings returns the settings; instance is for those who give none.
func (s *Silences) settings(instance string) (alertmanager.SilenceSettings, *keyError) {
	settings := alertmanager.SilenceSettings{Operations: s.Operations, Instance: s.Instance}
	if settings.Instance == "" {
		settings.Instance = instance
	}
	for _, p := range s.Alertmanagers {
		settings.Peers = append(settings.Peers, alertmanager.Peer{URL: p.URL, HTTP: p.HTTPConfig.Config()})
	}
	for i, texts := range s.Matchers {
		list, bad := parseMatchers(fmt.Sprintf("alertmanager.silences.matchers[%d]", i), texts)
		if bad != nil {
			return settings, bad
		}
		settings.Matchers = append(settings.Matchers, list)
	}
	return settings, nil
}

// SilenceSettings returns which silences there are while work runs. Where the
// configuration names no instance, it is that name of the host.
func (c *Config) SilenceSettings(host string) (alertmanager.SilenceSettings, error) {
	settings, bad := c.Alertmanager.Silences.settings(host)
	if bad != nil {
		return settings, fmt.Errorf("%s %s", bad.key, bad.problem)
	}
	return settings, nil
}

func (c *AlertAction) validate(key string) *keyError {
	if len(c.Match) == 0 {
		return &keyError{key, "has no match; give it matchers such as ['alertname = \"BtrfsScrubOverdue\"']"}
	}
	if _, bad := parseMatchers(key+".match", c.Match); bad != nil {
		return bad
	}
	if c.CoolDown < 0 {
		return &keyError{key + ".cool_down", fmt.Sprintf("must not be negative, as %s is", c.CoolDown)}
	}
	kind := alertmanager.Kind(c.Action)
	switch kind {
	case alertmanager.Scrub, alertmanager.Snapshot, alertmanager.Balance, alertmanager.Webhook:
	case "":
		return &keyError{key, "has no action; give it scrub, snapshot, balance or webhook"}
	default:
		return &keyError{key + ".action", fmt.Sprintf("must be scrub, snapshot, balance or webhook, not %q", c.Action)}
	}
	s := c.scrub()
	if kind == alertmanager.Scrub {
		if bad := s.validateOptions(key); bad != nil {
			return bad
		}
	} else if c.Mode != "" || c.Limit != 0 || c.ReadOnly || c.Deadline != 0 {
		return &keyError{key, fmt.Sprintf("has mode, limit, read_only or deadline, which go with the action scrub and not with %s", kind)}
	}
	if kind == alertmanager.Webhook {
		if bad := validateURL(key+".url", c.URL); bad != nil {
			return bad
		}
		return validateHTTP(key, &c.HTTPConfig)
	}
	if c.URL != "" || c.HTTPConfig.given != nil {
		return &keyError{key, fmt.Sprintf("has url or http_config, which go with the action webhook and not with %s", kind)}
	}
	return nil
}

func (c *AlertAction) scrub() *ScrubSchedule {
	return &ScrubSchedule{Mode: c.Mode, Limit: c.Limit, ReadOnly: c.ReadOnly, Deadline: c.Deadline}
}

// parseMatchers parses matchers, each such as severity =~ "warning|critical".
func parseMatchers(key string, texts []string) (labels.Matchers, *keyError) {
	var all labels.Matchers
	for i, text := range texts {
		m, err := labels.ParseMatcher(text)
		if err != nil {
			return nil, &keyError{fmt.Sprintf("%s[%d]", key, i), fmt.Sprintf("is no matcher such as severity = \"critical\": %s", err)}
		}
		all = append(all, m)
	}
	return all, nil
}

// AlertActions returns what is done about alerts.
func (c *Config) AlertActions() ([]alertmanager.Action, error) {
	var all []alertmanager.Action
	for i := range c.Alertmanager.Actions {
		a := &c.Alertmanager.Actions[i]
		match, bad := parseMatchers("match", a.Match)
		if bad != nil {
			return nil, fmt.Errorf("action %s: %s %s", a.Name, bad.key, bad.problem)
		}
		client, err := a.HTTPConfig.client("action " + a.Name)
		if err != nil {
			return nil, fmt.Errorf("action %s: %w", a.Name, err)
		}
		all = append(all, alertmanager.Action{
			Name: a.Name, Match: match, Kind: alertmanager.Kind(a.Action), Scrub: a.scrub().options(), Within: time.Duration(a.Deadline),
			URL: a.URL, Client: client, CoolDown: time.Duration(a.CoolDown), DryRun: a.DryRun,
		})
	}
	return all, nil
}

// validateOptions returns what is wrong with the options of a scrub.
func (c *ScrubSchedule) validateOptions(key string) *keyError {
	if c.Deadline < 0 {
		return &keyError{key + ".deadline", fmt.Sprintf("must not be negative, as %s is", c.Deadline)}
	}
	o := c.options()
	switch o.Mode {
	case scrub.Auto, scrub.Full, scrub.Limit:
	default:
		return &keyError{key + ".mode", fmt.Sprintf("must be auto, full or limit, not %q", c.Mode)}
	}
	if err := o.Validate(); err != nil {
		return &keyError{key + ".limit", "is wrong: " + strings.TrimPrefix(err.Error(), scrub.ErrInvalid.Error()+": ")}
	}
	return nil
}
