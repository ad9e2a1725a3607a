package httpapi

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
	"github.com/btrfs-governor/btrfs-governor/internal/notify"
)

// AlertActions does what is configured about alerts, see alertmanager.Actions.
type AlertActions interface {
	Handle(ctx context.Context, m *alertmanager.Message, dryRun bool) ([]alertmanager.Outcome, error)
}

// Notifications sends messages on, see notify.Bridge.
type Notifications interface {
	Accept(receiver string, m *alertmanager.Message) (notify.Result, error)
	Test(ctx context.Context, receiver string) error
}

// messageTimeout bounds what is done before a message is answered: Alertmanager
// waits for the group_interval of the route, of five minutes by default.
const messageTimeout = time.Minute

// handleAlerts takes Alertmanager's webhook.
func (a *api) handleAlerts(w http.ResponseWriter, r *http.Request) error {
	p, err := readQuery(r)
	if err != nil {
		return err
	}
	dryRun := p.flag("dry_run")
	m, err := readMessage(w, r, p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), messageTimeout)
	defer cancel()
	outcomes, err := a.cfg.Alerts.Handle(ctx, m, dryRun)
	for i := range outcomes {
		if outcomes[i].Job != "" {
			note(w, outcomes[i].Job)
		}
	}
	if err != nil {
		// Alertmanager sends a message again that is answered so.
		w.Header().Set("Content-Type", "application/problem+json")
		writeJSON(w, http.StatusServiceUnavailable, notDone{
			problemf(http.StatusServiceUnavailable, "For these alerts %v: the outcomes say why; send the message again.", err), outcomes,
		})
		return nil
	}
	writeJSON(w, http.StatusOK, map[string]any{"outcomes": outcomes})
	return nil
}

// notDone is a problem that also says what was done.
type notDone struct {
	*problem
	Outcomes []alertmanager.Outcome `json:"outcomes"`
}

// acceptNotification takes Alertmanager's webhook for a receiver. It is answered
// when the notification is on the disk.
func (a *api) acceptNotification(w http.ResponseWriter, r *http.Request) error {
	p, err := readQuery(r)
	if err != nil {
		return err
	}
	m, err := readMessage(w, r, p)
	if err != nil {
		return err
	}
	result, err := a.cfg.Notifications.Accept(r.PathValue("name"), m)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"receiver": r.PathValue("name"), "result": result})
	return nil
}

// testNotification sends one at once, and answers with what the service said.
func (a *api) testNotification(w http.ResponseWriter, r *http.Request) error {
	if err := noParameters(w, r); err != nil {
		return err
	}
	err := a.cfg.Notifications.Test(r.Context(), r.PathValue("name"))
	switch {
	case errors.Is(err, notify.ErrUnknownReceiver):
		return err
	case err != nil:
		return problemf(http.StatusBadGateway, "The notification could not be sent: %v.", err)
	}
	writeJSON(w, http.StatusOK, map[string]any{"receiver": r.PathValue("name"), "result": notify.Sent})
	return nil
}

// readMessage reads Alertmanager's message. No more parameters may be left.
func readMessage(w http.ResponseWriter, r *http.Request, p *parameters) (*alertmanager.Message, error) {
	if err := p.done(); err != nil {
		return nil, err
	}
	m, err := alertmanager.Decode(http.MaxBytesReader(w, r.Body, alertmanager.MaxMessageBytes))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, problemf(http.StatusRequestEntityTooLarge, "The body is larger than %d bytes.", alertmanager.MaxMessageBytes)
	}
	if err != nil {
		return nil, problemf(http.StatusBadRequest, "%v: send what Alertmanager sends to a webhook_config.", err)
	}
	return m, nil
}
