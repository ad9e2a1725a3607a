package notify

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/prometheus/common/model"

	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
)

// view is what a template sees of a message. Its texts are data that anybody may
// have written, made harmless for the service: one line each, and escaped where it
// reads Markdown. What the template itself has is left as it is.
type view struct {
	Status            string // firing or resolved
	Severity          string // the highest of what fires, or of what has ended
	GroupLabels       map[string]string
	CommonLabels      map[string]string
	CommonAnnotations map[string]string
	ExternalURL       string      // of Alertmanager
	Alerts            []alertView // those that fire first
	Firing, Resolved  []alertView
	// FiringCount and ResolvedCount count all; there may be more than are here,
	// and LeftOut is how many.
	FiringCount, ResolvedCount, LeftOut int
}

type alertView struct {
	Status       string
	Labels       map[string]string
	Annotations  map[string]string
	StartsAt     time.Time
	EndsAt       time.Time // zero while it fires
	GeneratorURL string    // the expression in Prometheus
	Fingerprint  string
}

// newView prepares a message, of which some alerts are left out already.
func newView(m *alertmanager.Message, out leftOut, escape func(string) string) *view {
	set := func(values map[string]string) map[string]string {
		clear := make(map[string]string, len(values))
		for name, value := range values {
			clear[clean(name)] = escape(clean(value))
		}
		return clear
	}
	v := &view{
		Status: string(alertmanager.Resolved), GroupLabels: set(m.GroupLabels), CommonLabels: set(m.CommonLabels), CommonAnnotations: set(m.CommonAnnotations),
		ExternalURL: safeURL(m.ExternalURL),
	}
	for i := range m.Alerts {
		a := &m.Alerts[i]
		shown := alertView{
			Status: string(a.Status), Labels: set(a.Labels), Annotations: set(a.Annotations), StartsAt: a.StartsAt, EndsAt: a.EndsAt,
			GeneratorURL: safeURL(a.GeneratorURL), Fingerprint: escape(clean(a.Fingerprint)),
		}
		// A link stays a link.
		if link := safeURL(a.Annotations["runbook_url"]); link != "" {
			shown.Annotations["runbook_url"] = link
		}
		if a.Status == alertmanager.Firing {
			v.Firing = append(v.Firing, shown)
		} else {
			v.Resolved = append(v.Resolved, shown)
		}
	}
	v.Alerts = slices.Concat(v.Firing, v.Resolved)
	v.FiringCount, v.ResolvedCount = len(v.Firing)+out.Firing, len(v.Resolved)+out.Resolved
	// Of what Alertmanager cut off the state is not known; it is no more than what
	// the message as a whole has.
	v.LeftOut = out.Firing + out.Resolved + int(min(m.TruncatedAlerts, 1<<20))
	if v.FiringCount > 0 || m.Status == alertmanager.Firing {
		v.Status = string(alertmanager.Firing)
	}
	loudest := v.Firing
	if len(loudest) == 0 {
		loudest = v.Resolved
	}
	for i := range loudest {
		if s := loudest[i].Labels["severity"]; i == 0 || urgency(s) > urgency(v.Severity) {
			v.Severity = s
		}
	}
	return v
}

// Urgencies of a severity. One that the rules here do not have is not taken
// lightly.
const (
	urgencyInfo = iota
	urgencyWarning
	urgencyCritical
)

func urgency(severity string) int {
	switch severity {
	case "critical":
		return urgencyCritical
	case "info":
		return urgencyInfo
	default:
		return urgencyWarning
	}
}

func (v *view) resolved() bool { return v.Status == string(alertmanager.Resolved) }

// most are the alerts that a title speaks of.
func (v *view) most() []alertView {
	if len(v.Firing) > 0 {
		return v.Firing
	}
	return v.Resolved
}

// summary is the title where there is no template for it: "[FIRING:2]
// BtrfsDeviceMissing attic on nas".
func (v *view) summary() string {
	var state []string
	if v.FiringCount > 0 || !v.resolved() {
		state = append(state, fmt.Sprintf("FIRING:%d", v.FiringCount))
	}
	if v.ResolvedCount > 0 {
		state = append(state, fmt.Sprintf("RESOLVED:%d", v.ResolvedCount))
	}
	text := "[" + strings.Join(state, " ") + "] " + several(v.most(), 3, "alerts", func(a *alertView) string { return a.Labels[model.AlertNameLabel] })
	if pools := several(v.most(), 2, "pools", (*alertView).pool); pools != "" {
		text += " " + pools
	}
	if hosts := several(v.most(), 2, "hosts", (*alertView).host); hosts != "" {
		text += " on " + hosts
	}
	return strings.TrimSpace(text)
}

// several names what is different among alerts, or counts it where that is more
// than most.
func several(alerts []alertView, most int, what string, of func(*alertView) string) string {
	var names []string
	for i := range alerts {
		if name := cut(of(&alerts[i]), 64, utf16Length); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) > most {
		return fmt.Sprintf("%d %s", len(names), what)
	}
	return strings.Join(names, ", ")
}

// pool names the pool of an alert: its label, else the beginning of its UUID.
func (a *alertView) pool() string {
	if label := a.Labels["label"]; label != "" {
		return label
	}
	uuid := a.Labels["uuid"]
	if len(uuid) == 36 && uuid[8] == '-' {
		return uuid[:8]
	}
	return uuid
}

// host is the instance without its port.
func (a *alertView) host() string {
	instance := a.Labels[model.InstanceLabel]
	if i := strings.LastIndexByte(instance, ':'); i > 0 && strings.Trim(instance[i+1:], "0123456789") == "" {
		return instance[:i]
	}
	return instance
}

// layout is how a service shows an alert.
type layout struct {
	escape    func(string) string
	strong    string // on both sides of what matters most
	lineBreak string
	measure   func(string) int
}

var (
	plain    = layout{escape: func(s string) string { return s }, lineBreak: "\n", measure: byteLength}
	markdown = layout{escape: escapeMarkdown, strong: "**", lineBreak: "  \n", measure: utf16Length}
)

func (k Kind) layout() layout {
	if k == Ntfy {
		return plain
	}
	return markdown
}

// body writes the alerts where there is no template for it, as many as a limit
// allows, and how many more there are.
func (v *view) body(l layout, limit int) string {
	blocks := make([]string, len(v.Alerts))
	for i := range v.Alerts {
		blocks[i] = v.block(&v.Alerts[i], l)
	}
	most, length := 0, 0 // of whole blocks, with what is then said of the rest
	for i, b := range blocks {
		if i > 0 {
			length += l.measure(blockBreak)
		}
		if length += l.measure(b); length+l.measure(v.rest(i+1)) > limit {
			break
		}
		most = i + 1
	}
	if most == 0 && len(blocks) > 0 {
		rest := v.rest(1)
		return cut(blocks[0], limit-l.measure(rest), l.measure) + rest
	}
	return strings.Join(blocks[:most], blockBreak) + v.rest(most)
}

const blockBreak = "\n\n"

// rest says what is missing after the first n alerts.
func (v *view) rest(n int) string {
	more := len(v.Alerts) - n + v.LeftOut
	switch {
	case more == 0:
		return ""
	case v.resolved() || v.ResolvedCount == 0:
		return fmt.Sprintf("%s%s and %d more", blockBreak, ellipsis, more)
	default:
		return fmt.Sprintf("%s%s and %d more, %d of them firing", blockBreak, ellipsis, more, v.FiringCount-min(n, len(v.Firing)))
	}
}

// Where there are several alerts, none may hide the others. A summary is short
// enough that a cut always falls behind it.
const (
	maxSummary     = 300
	maxDescription = 600
)

func (v *view) block(a *alertView, l layout) string {
	head, description := a.Annotations["summary"], a.Annotations["description"]
	if head == "" {
		head = strings.TrimSpace(strings.Join([]string{a.Labels[model.AlertNameLabel], a.pool()}, " "))
	}
	head = l.strong + cut(head, maxSummary, utf16Length) + l.strong
	switch {
	case a.Status == string(alertmanager.Resolved) && len(v.Firing) > 0:
		head = "Resolved: " + head
	case urgency(a.Labels["severity"]) == urgencyCritical && len(v.Firing) > 1:
		head = "Critical: " + head
	}
	// What was described is so no longer.
	if description == "" || description == a.Annotations["summary"] || a.Status == string(alertmanager.Resolved) && a.Annotations["summary"] != "" {
		return head
	}
	if len(v.Alerts) > 1 {
		description = cut(description, maxDescription, utf16Length)
	}
	return head + l.lineBreak + description
}

// maxLink bounds a link, in bytes.
const maxLink = 1000

type link struct{ label, url string }

// links are where a person looks next, as far as an alert says.
func (v *view) links() []link {
	links := []link{{label: "Alertmanager", url: v.ExternalURL}}
	if most := v.most(); len(most) > 0 {
		links = []link{{"Runbook", safeURL(most[0].Annotations["runbook_url"])}, {"Prometheus", most[0].GeneratorURL}, links[0]}
	}
	return slices.DeleteFunc(links, func(l link) bool { return l.url == "" })
}

// click is where a tap leads where there is no template for it.
func (v *view) click() string {
	for _, l := range v.links() {
		if l.label != "Prometheus" {
			return l.url
		}
	}
	return ""
}

// when is when it began, or when all of it ended.
func (v *view) when() time.Time {
	var t time.Time
	for _, a := range v.most() {
		switch {
		case v.resolved() && a.EndsAt.After(t):
			t = a.EndsAt
		case !v.resolved() && !a.StartsAt.IsZero() && (t.IsZero() || a.StartsAt.Before(t)):
			t = a.StartsAt
		}
	}
	// What JSON cannot say, and no service would show.
	if t.Year() < 2000 || t.Year() > 9999 {
		return time.Time{}
	}
	return t.UTC()
}

// templates are those of a receiver; nil ones are not given.
type templates struct{ title, message, click *template.Template }

// maxTemplateText bounds what a template writes: more than any service takes.
const maxTemplateText = 64 << 10

var errTooLong = errors.New("it writes more than any service takes")

// templates parses the templates and tries them on messages such as come.
func (r *Receiver) templates() (templates, error) {
	var t templates
	for _, p := range []struct {
		name, text string
		to         **template.Template
	}{{"title", r.Title, &t.title}, {"message", r.Message, &t.message}, {"click", r.Click, &t.click}} {
		if p.text == "" {
			continue
		}
		parsed, err := template.New(p.name).Option("missingkey=zero").Funcs(functions()).Parse(p.text)
		if err != nil {
			return templates{}, fmt.Errorf("%s: %w", p.name, err)
		}
		for _, sample := range samples() {
			if _, err := write(parsed, newView(sample, leftOut{}, r.Kind.layout().escape)); err != nil {
				return templates{}, fmt.Errorf("%s: tried on a message whose alerts are %s: %w", p.name, sample.Status, err)
			}
		}
		*p.to = parsed
	}
	return t, nil
}

func functions() template.FuncMap {
	return template.FuncMap{
		"upper": strings.ToUpper,
		"lower": strings.ToLower,
		"join":  func(separator string, list []string) string { return strings.Join(list, separator) },
		"cut":   func(limit int, text string) string { return cut(text, limit, utf16Length) },
		"names": func(set map[string]string) []string { return slices.Sorted(maps.Keys(set)) },
	}
}

// write executes a template.
func write(t *template.Template, v *view) (string, error) {
	var text bounded
	if err := t.Execute(&text, v); err != nil {
		return "", err
	}
	return cleanLines(text.String()), nil
}

// bounded takes so much and no more.
type bounded struct{ strings.Builder }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxTemplateText {
		return 0, errTooLong
	}
	return b.Builder.Write(p)
}

// samples are messages that templates are tried on, and the first is what a test
// sends.
func samples() []*alertmanager.Message {
	labels := map[string]string{"alertname": "BtrfsGovernorTest", "severity": "info"}
	alert := alertmanager.Alert{
		Status: alertmanager.Firing, Labels: labels, StartsAt: time.Date(2026, 3, 7, 19, 45, 57, 0, time.UTC), Fingerprint: "0000000000000000",
		Annotations: map[string]string{
			"summary": "This is a test of btrfs-governor", "description": "Nothing is wrong. Alerts of your pools will look like this.",
		},
	}
	bare := alertmanager.Alert{Status: alertmanager.Resolved, Labels: map[string]string{"alertname": "BtrfsGovernorTest"}, EndsAt: alert.StartsAt, Fingerprint: "0000000000000001"}
	firing := &alertmanager.Message{
		Version: "4", GroupKey: "{}:{}", Status: alertmanager.Firing, Receiver: "test", GroupLabels: labels, CommonLabels: labels,
		CommonAnnotations: alert.Annotations, Alerts: []alertmanager.Alert{alert},
	}
	resolved := &alertmanager.Message{Version: "4", GroupKey: "{}:{}", Status: alertmanager.Resolved, Receiver: "test", Alerts: []alertmanager.Alert{bare}}
	return []*alertmanager.Message{firing, resolved}
}

// notification is a message as it is to be shown.
type notification struct {
	id    string // the same each time that it is sent
	view  *view
	title string
	text  string // what the template wrote; empty where there is none
	click string
}

// notification renders a message. With an error, which is that of a template, it is
// the one that is sent without it.
func (s *service) notification(id string, m *alertmanager.Message, out leftOut) (*notification, error) {
	layout := s.kind.layout()
	v := newView(m, out, layout.escape)
	// A title is no Markdown, but with Discord.
	titles := v
	if s.kind != Discord {
		titles = newView(m, out, plain.escape)
	}
	n := &notification{id: id, view: v, click: v.click()}
	var errs []error
	try := func(t *template.Template, v *view) (string, bool) {
		if t == nil {
			return "", false
		}
		text, err := write(t, v)
		if err != nil {
			errs = append(errs, err)
		}
		return text, err == nil && text != ""
	}
	if text, ok := try(s.templates.title, titles); ok {
		n.title = clean(text)
	} else {
		n.title = titles.summary()
	}
	if text, ok := try(s.templates.message, v); ok {
		n.text = text
	}
	if text, ok := try(s.templates.click, newView(m, out, plain.escape)); ok {
		n.click = safeURL(text)
	}
	return n, errors.Join(errs...)
}

// body is what is below the title.
func (n *notification) body(l layout, limit int) string {
	if n.text != "" {
		return cut(n.text, limit, l.measure)
	}
	return n.view.body(l, limit)
}
