// Package alertmanager talks with Alertmanager: it reads the webhooks that it
// sends, turns alerts into actions, and has it keep silent about what work of
// ours causes.
package alertmanager

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/common/model"
)

// Message is what Alertmanager sends to a webhook receiver, of version 4
// (https://prometheus.io/docs/alerting/latest/configuration/#webhook_config).
type Message struct {
	Version  string `json:"version"`
	GroupKey string `json:"groupKey"`
	// TruncatedAlerts is how many more there are than Alerts holds.
	TruncatedAlerts   uint64            `json:"truncatedAlerts"`
	Status            Status            `json:"status"` // firing while one of the alerts is
	Receiver          string            `json:"receiver"`
	GroupLabels       map[string]string `json:"groupLabels"`
	CommonLabels      map[string]string `json:"commonLabels"`
	CommonAnnotations map[string]string `json:"commonAnnotations"`
	ExternalURL       string            `json:"externalURL"` // of Alertmanager
	Alerts            []Alert           `json:"alerts"`
}

// Alert is one alert of a Message. Its labels and annotations are data that
// anybody may have written.
type Alert struct {
	Status      Status            `json:"status"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
	EndsAt      time.Time         `json:"endsAt"` // zero while it fires
	// GeneratorURL shows the expression in Prometheus.
	GeneratorURL string `json:"generatorURL"`
	// Fingerprint is the same for the same labels.
	Fingerprint string `json:"fingerprint"`
}

// Status is the state of an alert, or of a group of them.
type Status string

// The states.
const (
	Firing   Status = "firing"
	Resolved Status = "resolved"
)

// MaxMessageBytes bounds a message: one alert of ours has about 2 kB.
const MaxMessageBytes = 4 << 20

// maxAlerts bounds the alerts of a message.
const maxAlerts = 10_000

// ErrBadMessage is what Decode returns for what is no message, with the reason.
var ErrBadMessage = errors.New("this is no webhook of Alertmanager")

// Decode reads one message, of at most MaxMessageBytes. Fields that it does not
// know are passed over: later Alertmanagers may send more.
func Decode(r io.Reader) (*Message, error) {
	limited := &io.LimitedReader{R: r, N: MaxMessageBytes + 1}
	decoder := json.NewDecoder(limited)
	var m Message
	err := decoder.Decode(&m)
	if err == nil {
		if _, more := decoder.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the JSON object")
		}
	}
	if limited.N <= 0 {
		err = fmt.Errorf("it is larger than %d bytes", MaxMessageBytes)
	}
	if err == nil {
		err = m.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadMessage, err)
	}
	return &m, nil
}

func (m *Message) check() error {
	if m.Version != "4" {
		return fmt.Errorf("its version is %q, and not \"4\"", m.Version)
	}
	if err := m.Status.check(); err != nil {
		return err
	}
	if len(m.Alerts) == 0 || len(m.Alerts) > maxAlerts {
		return fmt.Errorf("it has %d alerts, and not 1 to %d", len(m.Alerts), maxAlerts)
	}
	for i := range m.Alerts {
		a := &m.Alerts[i]
		if err := a.Status.check(); err != nil {
			return fmt.Errorf("alert %d: %w", i, err)
		}
		if _, err := model.ParseFingerprint(a.Fingerprint); err != nil || len(a.Fingerprint) != 16 {
			return fmt.Errorf("alert %d: its fingerprint is %.40q, and not 16 hexadecimal digits", i, a.Fingerprint)
		}
		if a.Labels[model.AlertNameLabel] == "" {
			return fmt.Errorf("alert %d: it has no label %s", i, model.AlertNameLabel)
		}
	}
	return nil
}

func (s Status) check() error {
	if s != Firing && s != Resolved {
		return fmt.Errorf("its status is %.40q, and not firing or resolved", string(s))
	}
	return nil
}
