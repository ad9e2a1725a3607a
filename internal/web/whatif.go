package web

import (
	"fmt"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
)

// WhatIfForm is what can be asked about a pool.
type WhatIfForm struct {
	Devices  []Choice // to replace or remove
	Profiles []Choice // to convert to
	Of       []Choice // what to convert
	Asked    Question
	Answer   *Answer
}

// Choice is one of several.
type Choice struct {
	Value, Words string
	Selected     bool
}

// Question is what was asked, as it was typed.
type Question struct {
	Change  string // add, replace, remove or convert
	Size    string
	Device  string
	Profile string
	Of      string // data, metadata or both
}

// Is tells whether a change was asked for; with none, adding is.
func (q Question) Is(change string) bool {
	return q.Change == change || q.Change == "" && change == "add"
}

// Answer is what would be.
type Answer struct {
	// Error is why there is none, in a sentence.
	Error string
	Words string // what would be, in a sentence
	Rows  []Comparison
	Bars  []Bar
	Kinds []Kind
}

// Comparison is a figure as it is and as it would be.
type Comparison struct{ What, Now, Then string }

func newWhatIfForm(f *factsOf) *WhatIfForm {
	if f.Report == nil || f.Layout == nil {
		return nil
	}
	form := &WhatIfForm{}
	for i := range f.Pool.Devices {
		d := &f.Pool.Devices[i]
		words := deviceName(f.Pool, d.ID)
		if s, ok := d.Size.Get(); ok {
			words += " (" + size(s) + ")"
		}
		form.Devices = append(form.Devices, Choice{Value: fmt.Sprint(d.ID), Words: words})
	}
	for _, p := range btrfs.Profiles() {
		form.Profiles = append(form.Profiles, Choice{Value: p.String(), Words: p.String()})
	}
	form.Of = []Choice{{Value: "both", Words: "data and metadata"}, {Value: "data", Words: "data alone"}, {Value: "metadata", Words: "metadata alone"}}
	return form
}

// Ask notes what was asked, so that the form shows it.
func (form *WhatIfForm) Ask(q Question) {
	form.Asked = q
	choose := func(choices []Choice, value string) {
		for i := range choices {
			choices[i].Selected = choices[i].Value == value
		}
	}
	choose(form.Devices, q.Device)
	choose(form.Profiles, q.Profile)
	choose(form.Of, q.Of)
}

// WhatIf works out what a pool would be after changes. It is pure.
func WhatIf(f *factsOf, changes []capacity.Change, added uint64) *Answer {
	report, devices, err := capacity.WhatIf(f.Pool, f.Layout, changes...)
	if err != nil {
		return &Answer{Error: sentence("that cannot be done: " + err.Error())}
	}
	now := f.Report
	a := &Answer{Rows: []Comparison{
		{"You can still write", size(now.FreeExpected), size(report.FreeExpected)},
		{"… after a full balance", size(now.FreeAfterBalance), size(report.FreeAfterBalance)},
		{"It holds at most", size(now.Usable), size(report.Usable)},
		{"Stranded, whatever is done", size(now.StrandedMismatch), size(report.StrandedMismatch)},
	}}
	switch gain := int64(report.FreeExpected) - int64(now.FreeExpected); { //nolint:gosec // far below 8 EiB
	case gain > 0:
		a.Words = fmt.Sprintf("%s more could be written.", size(uint64(gain)))
	case gain < 0:
		a.Words = fmt.Sprintf("%s less could be written.", size(uint64(-gain)))
	default:
		a.Words = "As much as now could be written."
	}
	if gain := report.FreeAfterBalance - min(report.FreeAfterBalance, report.Free); gain > report.Usable/100 {
		a.Words += fmt.Sprintf(" A balance afterwards would give %s more.", size(gain))
	}
	if added > 0 {
		if won := report.Usable - min(report.Usable, now.Usable); won < added/10 {
			a.Words += fmt.Sprintf(" Of the %s that are added, hardly anything can be used: the profile finds no partner for it on the other devices.", size(added))
		}
	}
	if !report.Exact {
		a.Words += " This is an estimate: where the chunks lie is not known."
	}
	a.draw(f.Pool, report, devices)
	return a
}

// draw makes the picture of the devices as they would be.
func (a *Answer) draw(p *btrfs.Pool, report *capacity.Report, devices []capacity.LayoutDevice) {
	largest := uint64(0)
	for i := range devices {
		largest = max(largest, devices[i].Size)
	}
	seen := make(map[Kind]bool)
	for i := range devices {
		d := &devices[i]
		name := "the new device"
		if p.Device(d.ID) != nil {
			name = deviceName(p, d.ID)
		}
		stranded := uint64(0)
		if i < len(report.Stranded) {
			stranded = report.Stranded[i]
		}
		b := newBar(name, d.Size, largest, divide(d, d.Size, d.Usable, stranded))
		for _, s := range b.Segments {
			seen[s.Kind] = true
		}
		a.Bars = append(a.Bars, b)
	}
	for _, k := range kinds() {
		if seen[k] {
			a.Kinds = append(a.Kinds, k)
		}
	}
}
