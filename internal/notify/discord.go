package notify

import (
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Limits of an embed, in characters
// (discord.com/developers/docs/resources/message#embed-object-embed-limits).
const (
	discordTitle       = 256
	discordDescription = 4096
	discordFieldValue  = 1024
	discordEmbed       = 6000 // all of it
)

// discordMessage is that of Execute Webhook
// (discord.com/developers/docs/resources/webhook#execute-webhook).
type discordMessage struct {
	Username string         `json:"username"`
	Embeds   []discordCard  `json:"embeds"`
	Mentions map[string]any `json:"allowed_mentions"`
}

type discordCard struct {
	Title       string         `json:"title"`
	Description string         `json:"description,omitempty"`
	URL         string         `json:"url,omitempty"`
	Timestamp   string         `json:"timestamp,omitempty"`
	Colour      int            `json:"color"`
	Fields      []discordField `json:"fields,omitempty"`
}

type discordField struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Inline bool   `json:"inline"`
}

func (s *service) discord(n *notification) ([]byte, error) {
	card := discordCard{Title: cut(n.title, discordTitle, utf16Length), URL: discordURL(n.click), Colour: discordColour(n.view)}
	if t := n.view.when(); !t.IsZero() {
		card.Timestamp = t.Format(time.RFC3339)
	}
	room := discordEmbed - utf16Length(card.Title)
	for _, f := range discordFields(n.view) {
		card.Fields = append(card.Fields, f)
		room -= utf16Length(f.Name) + utf16Length(f.Value)
	}
	card.Description = n.body(markdown, min(discordDescription, room))
	return encode(&discordMessage{
		// Nobody is pinged, whatever an alert says.
		Username: "btrfs-governor", Embeds: []discordCard{card}, Mentions: map[string]any{"parse": []string{}},
	})
}

// discordURL leaves out what Discord calls "not a well formed URL", and refuses the
// whole message for: one whose host has no dot, as Alertmanager's own often has none.
// It stays among the links, which are Markdown.
func discordURL(text string) string {
	if u, err := url.Parse(text); err != nil || !strings.ContainsAny(u.Hostname(), ".") {
		return ""
	}
	return text
}

// discordFields are what the alerts are about, and where to look.
func discordFields(v *view) []discordField {
	var fields []discordField
	for _, f := range []struct {
		name string
		of   func(*alertView) string
	}{
		{"Pool", (*alertView).pool},
		{"Device", func(a *alertView) string {
			if d := a.Labels["device"]; d != "" {
				return d
			}
			return a.Labels["devid"]
		}},
		{"Host", (*alertView).host},
		{"Severity", func(a *alertView) string { return a.Labels["severity"] }},
	} {
		if value := several(v.most(), 3, strings.ToLower(f.name)+"s", f.of); value != "" {
			fields = append(fields, discordField{f.name, value, true})
		}
	}
	var links string
	for _, l := range v.links() {
		text := fmt.Sprintf("[%s](%s)", l.label, l.url)
		if links != "" {
			text = " · " + text
		}
		if utf16Length(links)+utf16Length(text) <= discordFieldValue {
			links += text
		}
	}
	if links != "" {
		fields = append(fields, discordField{"Links", links, false})
	}
	return fields
}

func discordColour(v *view) int {
	const red, amber, blue, green = 0xd32f2f, 0xf9a825, 0x1976d2, 0x388e3c
	switch u := urgency(v.Severity); {
	case v.resolved():
		return green
	case u == urgencyCritical:
		return red
	case u == urgencyWarning:
		return amber
	default:
		return blue
	}
}
