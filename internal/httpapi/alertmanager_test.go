package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/notify"
)

// aMessage is a webhook of Alertmanager, with one alert that fires.
const aMessage = `{"version":"4","status":"firing","groupKey":"{}","receiver":"governor","alerts":[{"status":"firing","labels":{"alertname":"BtrfsScrubOverdue","uuid":"` + atticUUID + `"},"annotations":{},"startsAt":"2026-03-07T19:45:57Z","endsAt":"0001-01-01T00:00:00Z","fingerprint":"a1b2c3d4e5f60718"}]}`

// fakeAlerts notes what it is handed.
type fakeAlerts struct{ *fakeScrubs }

func (f fakeAlerts) Handle(_ context.Context, m *alertmanager.Message, dryRun bool) ([]alertmanager.Outcome, error) {
	f.note(fmt.Sprintf("alerts %d %v", len(m.Alerts), dryRun))
	if m.GroupKey == "fail" {
		return []alertmanager.Outcome{{Action: "a", Kind: alertmanager.Scrub, Result: alertmanager.Failed, Detail: "It is full."}}, alertmanager.ErrNotDone
	}
	return []alertmanager.Outcome{{
		Action: "a", Kind: alertmanager.Scrub, Alert: m.Alerts[0].Labels["alertname"], Fingerprint: m.Alerts[0].Fingerprint, Pool: atticUUID, Result: alertmanager.Started, Job: "scrub-1",
	}}, nil
}

// fakeNotifications has one receiver, phone, and another whose queue is full.
type fakeNotifications struct{ *fakeScrubs }

func (f fakeNotifications) Accept(receiver string, m *alertmanager.Message) (notify.Result, error) {
	switch receiver {
	case "phone":
		f.note(fmt.Sprintf("notify %s %d", receiver, len(m.Alerts)))
		return notify.Queued, nil
	case "full":
		return "", notify.ErrQueueFull
	}
	return "", fmt.Errorf("receiver %q: %w", receiver, notify.ErrUnknownReceiver)
}

func (f fakeNotifications) Test(_ context.Context, receiver string) error {
	switch receiver {
	case "phone":
		f.note("test " + receiver)
		return nil
	case "full":
		return errors.New("receiver \"full\": it answers 403 Forbidden")
	}
	return fmt.Errorf("receiver %q: %w", receiver, notify.ErrUnknownReceiver)
}

func TestMessagesOfAlertmanager(t *testing.T) {
	for name, tt := range map[string]struct {
		target, body string
		status       int
		asked        string
		answer       string
	}{
		"a message":               {"/api/v1/alertmanager", aMessage, 200, "[alerts 1 false]", `"job":"scrub-1"`},
		"a dry run":               {"/api/v1/alertmanager?dry_run=true", aMessage, 200, "[alerts 1 true]", `"outcomes"`},
		"what is to come again":   {"/api/v1/alertmanager", strings.Replace(aMessage, "{}", "fail", 1), 503, "[alerts 1 false]", `"outcomes":[{"action":"a","kind":"scrub","alert":"","fingerprint":"","result":"failed","detail":"It is full."}]`},
		"no body":                 {"/api/v1/alertmanager", "", 400, "[]", "webhook_config"},
		"garbage":                 {"/api/v1/alertmanager", "<html>", 400, "[]", "webhook_config"},
		"cut off":                 {"/api/v1/alertmanager", aMessage[:100], 400, "[]", "webhook_config"},
		"another version":         {"/api/v1/alertmanager", strings.Replace(aMessage, `"4"`, `"3"`, 1), 400, "[]", "version"},
		"too large":               {"/api/v1/alertmanager", strings.Replace(aMessage, "{}", strings.Repeat("x", alertmanager.MaxMessageBytes), 1), 413, "[]", "larger than"},
		"unknown parameter":       {"/api/v1/alertmanager?mode=full", aMessage, 400, "[]", "mode"},
		"a notification":          {"/api/v1/notify/phone", aMessage, 200, "[notify phone 1]", `{"receiver":"phone","result":"queued"}`},
		"to nobody":               {"/api/v1/notify/nobody", aMessage, 404, "[]", "notify.receivers"},
		"a full queue":            {"/api/v1/notify/full", aMessage, 503, "[]", "too many"},
		"no notification":         {"/api/v1/notify/phone", "[]", 400, "[]", "webhook_config"},
		"no dry run":              {"/api/v1/notify/phone?dry_run=true", aMessage, 400, "[]", "dry_run"},
		"large notification":      {"/api/v1/notify/phone", strings.Replace(aMessage, "{}", strings.Repeat("x", alertmanager.MaxMessageBytes), 1), 413, "[]", "larger than"},
		"a test":                  {"/api/v1/notify/phone/test", "", 200, "[test phone]", `{"receiver":"phone","result":"sent"}`},
		"a test that is refused":  {"/api/v1/notify/full/test", "", 502, "[]", "it answers 403 Forbidden"},
		"a test of nobody":        {"/api/v1/notify/nobody/test", "", 404, "[]", "notify.receivers"},
		"a test with a parameter": {"/api/v1/notify/phone/test?x=1", "", 400, "[]", "x"},
		"parameter twice":         {"/api/v1/alertmanager?dry_run=true&dry_run=false", aMessage, 400, "[]", "dry_run"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t, nil)
			w := s.do("POST", tt.target, tt.body, socket)
			if w.Code != tt.status || fmt.Sprint(s.scrubs.asked()) != tt.asked || !strings.Contains(w.Body.String(), tt.answer) {
				t.Errorf("%d %s, asked %v; want %d, %s and %q", w.Code, w.Body, s.scrubs.asked(), tt.status, tt.asked, tt.answer)
			}
			if got, want := w.Header().Get("Content-Type"), "application/problem+json"; (got == want) != (tt.status >= 400) {
				t.Errorf("the answer %d is %s", w.Code, got)
			}
			path, _, _ := strings.Cut(tt.target, "?")
			validate(t, "POST", path, w)
		})
	}
}

// What the document says of a message is what Alertmanager sends.
func TestMessageIsAsTheDocumentSays(t *testing.T) {
	_, compiler := document(t)
	schema, err := compiler.Compile("openapi.json#/components/schemas/AlertmanagerMessage")
	if err != nil {
		t.Fatal(err)
	}
	var value any
	if err := json.Unmarshal([]byte(aMessage), &value); err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(value); err != nil {
		t.Error(err)
	}
}
