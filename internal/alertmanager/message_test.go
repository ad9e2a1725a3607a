package alertmanager_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
)

// overdue is a webhook as Alertmanager 0.25 sent it for an alert of ours.
const overdue = `{"receiver":"governor","status":"firing","alerts":[{"status":"firing","labels":{"alertname":"BtrfsScrubOverdue","instance":"nas:10134","job":"btrfs-governor","severity":"warning","uuid":"5f1c0de1-1111-4222-8333-444455556666"},"annotations":{"description":"Pool attic was last scrubbed 40 days ago.","runbook_url":"https://example.org/runbook#btrfsscruboverdue","summary":"A scrub is overdue"},"startsAt":"2026-03-07T19:45:57.5Z","endsAt":"0001-01-01T00:00:00Z","generatorURL":"http://prometheus:9090/graph?g0.expr=up","fingerprint":"a1b2c3d4e5f60718"}],"groupLabels":{"alertname":"BtrfsScrubOverdue"},"commonLabels":{"alertname":"BtrfsScrubOverdue","severity":"warning"},"commonAnnotations":{},"externalURL":"http://alertmanager:9093","version":"4","groupKey":"{}:{alertname=\"BtrfsScrubOverdue\"}","truncatedAlerts":0}`

func TestDecodeReadsWhatAlertmanagerSends(t *testing.T) {
	m, err := alertmanager.Decode(strings.NewReader(overdue))
	if err != nil {
		t.Fatal(err)
	}
	a := m.Alerts[0]
	want := alertmanager.Alert{
		Status: alertmanager.Firing,
		Labels: map[string]string{
			"alertname": "BtrfsScrubOverdue", "instance": "nas:10134", "job": "btrfs-governor", "severity": "warning", "uuid": "5f1c0de1-1111-4222-8333-444455556666",
		},
		Annotations: map[string]string{
			"description": "Pool attic was last scrubbed 40 days ago.", "runbook_url": "https://example.org/runbook#btrfsscruboverdue", "summary": "A scrub is overdue",
		},
		StartsAt:     time.Date(2026, 3, 7, 19, 45, 57, 5e8, time.UTC),
		GeneratorURL: "http://prometheus:9090/graph?g0.expr=up",
		Fingerprint:  "a1b2c3d4e5f60718",
	}
	if diff := cmp.Diff(want, a); diff != "" {
		t.Error(diff)
	}
	if m.Receiver != "governor" || m.ExternalURL != "http://alertmanager:9093" || m.CommonLabels["severity"] != "warning" {
		t.Errorf("the message is %+v", m)
	}
}

func TestDecodeRefusesWhatIsNoMessage(t *testing.T) {
	for _, test := range []struct{ name, body, want string }{
		{"empty", "", "EOF"},
		{"cut off", overdue[:200], "unexpected EOF"},
		{"HTML", "<html>", "invalid character"},
		{"another version", strings.Replace(overdue, `"version":"4"`, `"version":"5"`, 1), `its version is "5"`},
		{"no alerts", `{"version":"4","status":"firing","alerts":[]}`, "it has 0 alerts"},
		{"status", strings.Replace(overdue, `"alerts":[{"status":"firing"`, `"alerts":[{"status":"burning"`, 1), `alert 0: its status is "burning"`},
		{"no fingerprint", strings.Replace(overdue, "a1b2c3d4e5f60718", "", 1), "its fingerprint"},
		{"no name", strings.Replace(overdue, `{"alertname":"BtrfsScrubOverdue","inst`, `{"inst`, 1), "no label alertname"},
		{"a number for a label", strings.Replace(overdue, `"severity":"warning"`, `"severity":1`, 1), "cannot unmarshal number"},
		{"two objects", overdue + "{}", "something follows"},
		{"too large", `{"version":"4","receiver":"` + strings.Repeat("x", alertmanager.MaxMessageBytes) + `"}`, "larger than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := alertmanager.Decode(strings.NewReader(test.body))
			if !errors.Is(err, alertmanager.ErrBadMessage) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error is %v, and does not say %q", err, test.want)
			}
		})
	}
}

func TestDecodePassesOverWhatLaterVersionsAdd(t *testing.T) {
	body := strings.Replace(overdue, `"version"`, `"notificationReason":"new","version"`, 1)
	if _, err := alertmanager.Decode(strings.NewReader(body)); err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(overdue))
	f.Add([]byte(`{"version":"4","status":"resolved","alerts":[{"status":"resolved","labels":{"alertname":"a"},"fingerprint":"0000000000000000"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := alertmanager.Decode(bytes.NewReader(data))
		if err != nil {
			if m != nil || !errors.Is(err, alertmanager.ErrBadMessage) {
				t.Fatalf("%v, %v", m, err)
			}
			return
		}
		// What was read is written and read as the same.
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := alertmanager.Decode(bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if diff := cmp.Diff(m, again); diff != "" {
			t.Error(diff)
		}
	})
}
