package notify_test

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/notify"
)

var kinds = []notify.Kind{notify.Ntfy, notify.Gotify, notify.Discord}

// deliver returns what a service is sent of a message.
func deliver(t testing.TB, kind notify.Kind, m *alertmanager.Message, change func(*notify.Receiver)) sent {
	t.Helper()
	s := serve(t, kind)
	r := s.receiver("phone")
	if change != nil {
		change(&r)
	}
	b := open(t, t.TempDir(), nil, r).start()
	defer b.stop()
	b.accept("phone", m)
	eventually(t, "it is sent", func() bool { return s.idle(1) })
	if len(s.all()) != 1 {
		t.FailNow()
	}
	return s.all()[0]
}

// exactly compares all that a service is sent, but for the id.
func exactly(t *testing.T, got sent, want string) {
	t.Helper()
	if got.Body["sequence_id"] != nil {
		got.Body["sequence_id"] = "ID"
	}
	var body any
	must(t, json.Unmarshal([]byte(want), &body))
	if diff := cmp.Diff(body, any(got.Body)); diff != "" {
		t.Error(diff)
	}
}

func two() *alertmanager.Message {
	second := firing("BtrfsDeviceErrors", "warning")
	second.Annotations = map[string]string{"summary": "Disk *sdb* [counts](http://evil.example) errors"}
	second.Labels["device"] = "sdb"
	return message(firing("BtrfsDeviceMissing", "critical"), second, resolved("BtrfsPoolFillingUp", "info"))
}

func TestNtfyIsSentExactlyThis(t *testing.T) {
	exactly(t, deliver(t, notify.Ntfy, two(), nil), `{
		"topic": "`+topic+`", "sequence_id": "ID", "priority": 5, "tags": ["rotating_light"],
		"title": "[FIRING:2 RESOLVED:1] BtrfsDeviceMissing, BtrfsDeviceErrors attic on nas",
		"message": "Critical: Something is wrong with pool attic\nIt says BtrfsDeviceMissing.\n\nDisk *sdb* [counts](http://evil.example) errors\n\nResolved: Something is wrong with pool attic",
		"click": "https://example.org/runbook#btrfsdevicemissing",
		"actions": [
			{"action": "view", "label": "Runbook", "url": "https://example.org/runbook#btrfsdevicemissing"},
			{"action": "view", "label": "Prometheus", "url": "https://prometheus.example.org/graph?g0.expr=up+%3D%3D+0"},
			{"action": "view", "label": "Alertmanager", "url": "https://alertmanager.example.org"}
		]}`)
}

func TestGotifyIsSentExactlyThis(t *testing.T) {
	exactly(t, deliver(t, notify.Gotify, two(), nil), `{
		"priority": 8, "title": "[FIRING:2 RESOLVED:1] BtrfsDeviceMissing, BtrfsDeviceErrors attic on nas",
		"message": "Critical: **Something is wrong with pool attic**  \nIt says BtrfsDeviceMissing.\n\n**Disk \\*sdb\\* \\[counts\\](http://evil.example) errors**\n\nResolved: **Something is wrong with pool attic**",
		"extras": {
			"client::display": {"contentType": "text/markdown"},
			"client::notification": {"click": {"url": "https://example.org/runbook#btrfsdevicemissing"}}
		}}`)
}

func TestDiscordIsSentExactlyThis(t *testing.T) {
	exactly(t, deliver(t, notify.Discord, two(), nil), `{
		"username": "btrfs-governor", "allowed_mentions": {"parse": []},
		"embeds": [{
			"title": "[FIRING:2 RESOLVED:1] BtrfsDeviceMissing, BtrfsDeviceErrors attic on nas", "color": 13840175,
			"description": "Critical: **Something is wrong with pool attic**  \nIt says BtrfsDeviceMissing.\n\n**Disk \\*sdb\\* \\[counts\\](http://evil.example) errors**\n\nResolved: **Something is wrong with pool attic**",
			"url": "https://example.org/runbook#btrfsdevicemissing", "timestamp": "2026-03-07T19:45:57Z",
			"fields": [
				{"name": "Pool", "value": "attic", "inline": true}, {"name": "Device", "value": "sdb", "inline": true},
				{"name": "Host", "value": "nas", "inline": true}, {"name": "Severity", "value": "critical, warning", "inline": true},
				{"name": "Links", "inline": false, "value": "[Runbook](https://example.org/runbook#btrfsdevicemissing) · [Prometheus](https://prometheus.example.org/graph?g0.expr=up+%3D%3D+0) · [Alertmanager](https://alertmanager.example.org)"}
			]
		}]}`)
}

func TestHowLoudItIs(t *testing.T) {
	for _, test := range []struct {
		name                  string
		m                     *alertmanager.Message
		ntfy, gotify, discord int
		tag                   string
	}{
		{"critical", message(firing("A", "info"), firing("BB", "critical")), 5, 8, 0xd32f2f, "rotating_light"},
		{"warning", message(firing("A", "warning"), resolved("BB", "critical")), 4, 5, 0xf9a825, "warning"},
		{"info", message(firing("A", "info")), 3, 3, 0x1976d2, "information_source"},
		{"a severity of somebody else", message(firing("A", "page")), 4, 5, 0xf9a825, "warning"},
		{"resolved", message(resolved("A", "warning")), 2, 2, 0x388e3c, "white_check_mark"},
		{"a critical one resolved", message(resolved("A", "info"), resolved("BB", "critical")), 3, 4, 0x388e3c, "white_check_mark"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := deliver(t, notify.Ntfy, test.m, nil)
			if tags := got.Body["tags"].([]any); got.Priority != test.ntfy || len(tags) != 1 || tags[0] != test.tag {
				t.Errorf("ntfy: %d %v, want %d %s", got.Priority, tags, test.ntfy, test.tag)
			}
			if got := deliver(t, notify.Gotify, test.m, nil); got.Priority != test.gotify {
				t.Errorf("Gotify: %d, want %d", got.Priority, test.gotify)
			}
			if got := deliver(t, notify.Discord, test.m, nil); got.Priority != test.discord {
				t.Errorf("Discord: %#x, want %#x", got.Priority, test.discord)
			}
		})
	}
}

func TestTitleSaysWhatAndHowMany(t *testing.T) {
	other := firing("B", "warning")
	other.Labels["label"], other.Labels["uuid"], other.Labels["instance"] = "", "0a1b2c3d-1111-4222-8333-444455556666", "[fd00::1]:10134"
	bare := alertmanager.Alert{Status: alertmanager.Resolved, Labels: map[string]string{"alertname": "Watchdog"}}
	for want, m := range map[string]*alertmanager.Message{
		"[FIRING:1] A attic on nas":                         message(firing("A", "info")),
		"[RESOLVED:1] Watchdog":                             message(bare),
		"[FIRING:2] A, B attic, 0a1b2c3d on nas, [fd00::1]": message(firing("A", "info"), other),
		"[FIRING:4] 4 alerts attic on nas":                  message(firing("A", "info"), firing("B", "info"), firing("C", "info"), firing("D", "info")),
		"[FIRING:2 RESOLVED:1] A attic on nas":              message(resolved("Z", "info"), firing("A", "info"), firing("A", "info")),
	} {
		if got := deliver(t, notify.Ntfy, m, nil); got.Title != want {
			t.Errorf("the title is %q, want %q", got.Title, want)
		}
	}
}

// many is a message of which a phone can show a part.
func many(fires, ended int, text string) *alertmanager.Message {
	var alerts []alertmanager.Alert
	for i := range ended {
		alerts = append(alerts, resolved(fmt.Sprint("Resolved", i), "info"))
	}
	for i := range fires {
		a := firing("BtrfsDeviceErrors", "warning")
		a.Annotations["summary"], a.Annotations["description"] = fmt.Sprintf("Firing number %d", i), text
		alerts = append(alerts, a)
	}
	m := message(alerts...)
	m.TruncatedAlerts = 7
	return m
}

func TestManyAlertsAreOneNotificationThatCountsTheRest(t *testing.T) {
	for _, kind := range kinds {
		for _, text := range []string{"short", strings.Repeat("“long” <text>\t", 500), strings.Repeat("\\", 5000), strings.Repeat("💾", 3000)} {
			got := deliver(t, kind, many(2000, 1500, text), nil)
			if !strings.Contains(got.Title, "FIRING:2000 RESOLVED:1500") {
				t.Errorf("%s: the title is %q", kind, got.Title)
			}
			whole := strings.Count(got.Message, "Firing number")
			if want := fmt.Sprintf("… and %d more, %d of them firing", 2000+1500+7-whole, 2000-whole); whole == 0 || !strings.HasSuffix(got.Message, want) {
				t.Errorf("%s: %d are shown, and it ends with %q, and not with %q", kind, whole, got.Message[max(0, len(got.Message)-80):], want)
			}
			if strings.Contains(got.Message, "Resolved:") {
				t.Errorf("%s: one that ended takes the place of one that fires", kind)
			}
		}
	}
}

// The largest message that may come, of the worst bytes.
func TestHugeMessageIsKeptAndSent(t *testing.T) {
	for _, kind := range kinds {
		m := message(firing("Huge", "critical"))
		for i := range 100 {
			m.Alerts[0].Labels[fmt.Sprint("label", i)] = strings.Repeat("<", 20_000)
			m.Alerts[0].Annotations[fmt.Sprint("annotation", i)] = strings.Repeat("\x00", 20_000)
		}
		for _, name := range []string{"alertname", "severity", "instance", "label", "uuid", "device", "devid", "subvolume", "summary", "description", "runbook_url"} {
			m.Alerts[0].Labels[name], m.Alerts[0].Annotations[name] = strings.Repeat("&", 30_000), strings.Repeat("<", 30_000)
		}
		m.CommonLabels, m.GroupLabels, m.CommonAnnotations = m.Alerts[0].Labels, m.Alerts[0].Labels, m.Alerts[0].Annotations
		m.GroupKey, m.Receiver, m.ExternalURL = strings.Repeat("<", 1<<20), strings.Repeat("<", 1<<20), "https://a.example/"+strings.Repeat("<", 1<<20)
		m.Alerts[0].GeneratorURL = m.ExternalURL
		got := deliver(t, kind, m, nil)
		if !strings.HasPrefix(got.Title, "[FIRING:1") && !strings.HasPrefix(got.Title, `\[FIRING:1`) {
			t.Errorf("%s: the title is %q", kind, got.Title)
		}
	}
}

func TestHostileDataIsShownAndDoesNothing(t *testing.T) {
	m := message(firing("A", "critical"))
	a := &m.Alerts[0]
	a.Labels["label"] = "@everyone\r\n# <@123> \u202egnp.exe"
	a.Annotations["summary"] = "**bold** `code` [click](javascript:alert(1)) <b>\x1b[31m"
	a.Annotations["description"] = "1. one\n> two | ~~three~~ &lt; \xff"
	a.Annotations["runbook_url"] = "javascript:alert(1)"
	a.GeneratorURL = "https://good.example@evil.example/"
	m.ExternalURL = "https://alertmanager.example.org/a) [b](c"
	for _, kind := range kinds {
		got := deliver(t, kind, m, nil)
		text, _ := json.Marshal(got.Body)
		for _, never := range []string{`"javascript:`, "(javascript:alert(1))\"", "evil.example", "\u202e", `\u001b`, `\r`} {
			if strings.Contains(string(text), never) {
				t.Errorf("%s has %q: %s", kind, never, text)
			}
		}
		if strings.Count(string(text), "https://alertmanager.example.org/a%29%20%5Bb%5D%28c") == 0 {
			t.Errorf("%s does not have the link: %s", kind, text)
		}
		if kind == notify.Ntfy {
			continue
		}
		if want := "Something"; strings.Contains(got.Message, want) {
			t.Errorf("%s: %s", kind, got.Message)
		}
		want := "**\\*\\*bold\\*\\* \\`code\\` \\[click\\](javascript:alert(1)) \\<b\\> \\[31m**  \n1\\. one \\> two \\| \\~\\~three\\~\\~ \\&lt; \uFFFD"
		if got.Message != want {
			t.Errorf("%s:\n%q, want\n%q", kind, got.Message, want)
		}
	}
}

func TestTemplates(t *testing.T) {
	change := func(r *notify.Receiver) {
		r.Title = `{{ .FiringCount }} {{ .Severity | upper }}{{ range .Firing }} {{ .Labels.label }}{{ end }}`
		r.Message = "{{ range .Alerts }}* {{ .Annotations.summary | cut 9 }} {{ .StartsAt.Format \"15:04\" }}\n{{ end }}{{ .Alerts | len }}{{ .CommonLabels.none }}"
		r.Click = `https://nas.example.org/pools/{{ (index .Alerts 0).Labels.label }}`
	}
	m := two()
	m.Alerts[0].Labels["label"] = "a_b c"
	m.Alerts[0].Annotations["summary"] = "*star*"
	for kind, want := range map[notify.Kind]string{
		notify.Ntfy:    "* *star* 19:45\n* Disk *sd… 19:45\n* Somethin… 19:45\n3",
		notify.Gotify:  "* \\*star\\* 19:45\n* Disk \\*s… 19:45\n* Somethin… 19:45\n3",
		notify.Discord: "* \\*star\\* 19:45\n* Disk \\*s… 19:45\n* Somethin… 19:45\n3",
	} {
		got := deliver(t, kind, m, change)
		if got.Message != want {
			t.Errorf("%s: the message is %q, want %q", kind, got.Message, want)
		}
		title := "2 CRITICAL a_b c attic"
		if kind == notify.Discord {
			title = `2 CRITICAL a\_b c attic`
		}
		if got.Title != title {
			t.Errorf("%s: the title is %q", kind, got.Title)
		}
		if text, _ := json.Marshal(got.Body); !strings.Contains(string(text), `"https://nas.example.org/pools/a_b%20c"`) {
			t.Errorf("%s: the click is not in %s", kind, text)
		}
	}
}

// A template that fails on what comes later costs its own text and nothing else.
func TestTemplateThatFailsLaterIsDoneWithout(t *testing.T) {
	got := deliver(t, notify.Gotify, message(firing("A", "info"), firing("BB", "info"), firing("CCC", "info")), func(r *notify.Receiver) {
		r.Message = `{{ if gt (len .Alerts) 2 }}{{ (index .Alerts 7).Status }}{{ end }}fine`
	})
	if !strings.Contains(got.Message, "It says CCC.") {
		t.Errorf("the message is %q", got.Message)
	}
}

func FuzzRender(f *testing.F) {
	f.Add("BtrfsDeviceMissing", "critical", "attic", "summary", "description", "https://example.org/", 3)
	f.Add("**", "\xff", "\\", "@everyone\\", strings.Repeat("\\", 4999), "javascript:x", 60)
	f.Add("1.", "-", "]", strings.Repeat("\"", 300), strings.Repeat("💾\n", 2000), "http://[::1]:9093/(", 1)
	f.Add("A", "info", "attic", "summary", "description", `https://0"0000`, 3)
	f.Fuzz(func(t *testing.T, name, severity, label, summary, description, link string, count int) {
		var alerts []alertmanager.Alert
		for i := range max(1, min(count, 60)) {
			a := firing(name, severity)
			a.Labels["label"], a.Labels["instance"], a.Labels["uuid"] = label, link, description
			a.Annotations["summary"], a.Annotations["description"], a.Annotations["runbook_url"] = summary, description, link
			a.GeneratorURL = link
			if i%3 == 2 {
				a.Status = alertmanager.Resolved
			}
			alerts = append(alerts, a)
		}
		m := message(alerts...)
		m.ExternalURL = link
		for _, kind := range kinds {
			r := receiver(kind, "phone", "https://push.example.org")
			req, err := notify.Request(&r, m)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(req.Body)
			must(t, err)
			if _, err := (&server{kind: kind}).read(req, body); err != nil {
				t.Errorf("%s would refuse this: %v\n%s", kind, err, body)
			}
		}
	})
}
