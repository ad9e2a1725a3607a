package notify

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/btrfs-governor/btrfs-governor/internal/alertmanager"
)

// What is kept of a message: more than any notification shows. A whole one may be
// larger than a line of the journal, where each byte may become six ("\u003c").
const (
	maxKeptBytes  = 192 << 10 // of the alerts, as JSON
	maxKeptText   = 2 << 10   // of a value, a URL or a key
	maxKeptOthers = 4 << 10   // of all in a set that is not shown
)

// shown are the labels and annotations that notifications are made from.
var shown = []string{"alertname", "severity", "instance", "label", "uuid", "device", "devid", "subvolume", "summary", "description", "runbook_url"}

// leftOut counts the alerts of a message that are not kept with it.
type leftOut struct {
	Firing   int `json:"firing,omitempty"`
	Resolved int `json:"resolved,omitempty"`
}

// trim returns a message that is small enough to keep, the alerts that fire first,
// and counts what is not in it. The original stays as it is.
func trim(m *alertmanager.Message) (*alertmanager.Message, leftOut) {
	kept := *m
	kept.GroupLabels, kept.CommonLabels, kept.CommonAnnotations = trimSet(m.GroupLabels), trimSet(m.CommonLabels), trimSet(m.CommonAnnotations)
	kept.GroupKey, kept.Receiver, kept.ExternalURL = cutBytes(m.GroupKey, maxKeptText), cutBytes(m.Receiver, maxKeptText), m.ExternalURL
	if len(kept.ExternalURL) > maxKeptText {
		kept.ExternalURL = "" // a part of a URL leads elsewhere
	}
	kept.Alerts = nil
	var out leftOut
	size := 0
	for _, status := range []alertmanager.Status{alertmanager.Firing, alertmanager.Resolved} {
		for i := range m.Alerts {
			if m.Alerts[i].Status != status {
				continue
			}
			a := trimAlert(&m.Alerts[i])
			if text, err := json.Marshal(a); err == nil {
				size += len(text)
			}
			switch {
			case size <= maxKeptBytes || len(kept.Alerts) == 0:
				kept.Alerts = append(kept.Alerts, a)
			case status == alertmanager.Firing:
				out.Firing++
			default:
				out.Resolved++
			}
		}
	}
	return &kept, out
}

func trimAlert(a *alertmanager.Alert) alertmanager.Alert {
	kept := *a
	kept.Labels, kept.Annotations = trimSet(a.Labels), trimSet(a.Annotations)
	if len(kept.GeneratorURL) > maxKeptText {
		kept.GeneratorURL = ""
	}
	return kept
}

// trimSet returns a set with what is shown first, and then by name, and no more
// than fits.
func trimSet(set map[string]string) map[string]string {
	names := slices.Sorted(maps.Keys(set))
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	kept := make(map[string]string)
	others := 0
	for _, name := range names {
		value := cutBytes(set[name], maxKeptText)
		if rank(name) == len(shown) {
			if others += len(name) + len(value); others > maxKeptOthers {
				break
			}
		}
		kept[name] = value
	}
	return kept
}

// rank is the place of a name among those that are shown.
func rank(name string) int {
	if i := slices.Index(shown, name); i >= 0 {
		return i
	}
	return len(shown)
}
