package notify

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// What ntfy takes: a longer message becomes an attachment
// (docs.ntfy.sh/publish/#limitations), and a JSON body may have twice that.
const (
	ntfyMessageBytes = 4096
	ntfyBodyBytes    = 2 * ntfyMessageBytes
	ntfyTitleBytes   = 250
	ntfyActions      = 3
)

// ntfyMessage is docs.ntfy.sh/publish/#publish-as-json.
type ntfyMessage struct {
	Topic    string       `json:"topic"`
	Title    string       `json:"title"`
	Message  string       `json:"message"`
	Priority int          `json:"priority"`
	Tags     []string     `json:"tags,omitempty"`
	Click    string       `json:"click,omitempty"`
	Actions  []ntfyAction `json:"actions,omitempty"`
	// SequenceID has ntfy 2.16 and later replace a notification that a phone
	// shows by one of the same (docs.ntfy.sh/publish/#updating-deleting-notifications).
	// Older ones ignore it.
	SequenceID string `json:"sequence_id,omitempty"`
}

type ntfyAction struct {
	Action string `json:"action"`
	Label  string `json:"label"`
	URL    string `json:"url"`
}

func (s *service) ntfy(n *notification) ([]byte, error) {
	m := ntfyMessage{Topic: s.topic, Title: cutBytes(n.title, ntfyTitleBytes), Click: n.click, SequenceID: n.id}
	m.Priority, m.Tags = ntfyLoudness(n.view)
	for _, l := range n.view.links() {
		if len(m.Actions) < ntfyActions {
			m.Actions = append(m.Actions, ntfyAction{Action: "view", Label: l.label, URL: l.url})
		}
	}
	// Quotes and line breaks are longer in JSON: then there is room for less.
	for limit := ntfyMessageBytes; ; {
		m.Message = n.body(plain, limit)
		body, err := encode(&m)
		excess := len(body) - ntfyBodyBytes
		if err != nil || excess <= 0 || limit == 0 {
			return body, err
		}
		limit = max(0, min(limit, len(m.Message))-max(excess/2, 1))
	}
}

// ntfyLoudness returns the priority, 1 to 5, and the tag, which is shown as an
// emoji (docs.ntfy.sh/publish/#message-priority, docs.ntfy.sh/emojis).
func ntfyLoudness(v *view) (priority int, tags []string) {
	u := urgency(v.Severity)
	switch {
	case v.resolved() && u == urgencyCritical: // whom it woke wants to know
		return 3, []string{"white_check_mark"}
	case v.resolved():
		return 2, []string{"white_check_mark"}
	case u == urgencyCritical:
		return 5, []string{"rotating_light"}
	case u == urgencyWarning:
		return 4, []string{"warning"}
	default:
		return 3, []string{"information_source"}
	}
}

// ntfyLookMargin is how much more than its age is looked for: a server counts in
// whole seconds.
const ntfyLookMargin = time.Minute

// ntfyLook asks the topic for what it was sent in a time
// (docs.ntfy.sh/subscribe/api/#fetch-cached-messages). That is given as a duration,
// for the clock of the server may differ.
func (s *service) ntfyLook(ctx context.Context, age time.Duration) (*http.Request, error) {
	u := s.url.JoinPath(s.topic, "json")
	seconds := int64((max(age, 0) + ntfyLookMargin).Seconds())
	u.RawQuery = url.Values{"poll": {"1"}, "since": {strconv.FormatInt(seconds, 10) + "s"}}.Encode()
	return http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
}

// Bounds of the answer of a topic.
const (
	maxLookBytes = 64 << 20
	maxLookLine  = 64 << 10
)

// ntfyHas reports whether the messages of a topic have one of ours. That ntfy does
// not know sequences is no.
func ntfyHas(answer io.Reader, id string) bool {
	lines := bufio.NewScanner(io.LimitReader(answer, maxLookBytes))
	lines.Buffer(nil, maxLookLine)
	for lines.Scan() {
		var m struct {
			Event      string `json:"event"`
			SequenceID string `json:"sequence_id"`
		}
		if json.Unmarshal(lines.Bytes(), &m) == nil && m.Event == "message" && m.SequenceID == id {
			return true
		}
	}
	return false
}
