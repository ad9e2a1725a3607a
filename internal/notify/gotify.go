package notify

// Bounds of our own: Gotify has none, but a phone is small.
const (
	gotifyTitleLength   = 250
	gotifyMessageLength = 8000
)

// gotifyMessage is that of POST /message (gotify.net/api-docs), with the extras of
// gotify.net/docs/msgextras.
type gotifyMessage struct {
	Title    string         `json:"title"`
	Message  string         `json:"message"`
	Priority int            `json:"priority"`
	Extras   map[string]any `json:"extras"`
}

func (s *service) gotify(n *notification) ([]byte, error) {
	m := gotifyMessage{
		Title: cut(n.title, gotifyTitleLength, utf16Length), Message: n.body(markdown, gotifyMessageLength), Priority: gotifyPriority(n.view),
		Extras: map[string]any{"client::display": map[string]string{"contentType": "text/markdown"}},
	}
	if n.click != "" {
		m.Extras["client::notification"] = map[string]any{"click": map[string]string{"url": n.click}}
	}
	return encode(&m)
}

// gotifyPriority is as the Android client has it: from 1 an icon, from 4 a sound,
// from 8 a vibration too.
func gotifyPriority(v *view) int {
	u := urgency(v.Severity)
	switch {
	case v.resolved() && u == urgencyCritical:
		return 4
	case v.resolved():
		return 2
	case u == urgencyCritical:
		return 8
	case u == urgencyWarning:
		return 5
	default:
		return 3
	}
}
