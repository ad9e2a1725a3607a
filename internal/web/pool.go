package web

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

// Pool is one pool as the page shows it. What is nil or "" is not known, and not
// shown.
type Pool struct {
	UUID       string
	Name       string
	Mountpoint string
	Profiles   string // such as "data raid1, metadata raid1c3"
	Control    Control
	Worst      Severity
	Findings   []Finding
	Read       *moment // when the figures are of, where that is not now
	Space      *Space
	Devices    *Devices
	Losses     *Losses
	Scrub      *Scrub
	Snapshots  *Snapshots
	WhatIf     *WhatIfForm
}

// Space is how much can be written.
type Space struct {
	Free, FreeBytes string
	Exact           bool
	Used            string
	Usable          string
	StatfsFree      string // what df says
	Balance         string // what a balance would add; "" where that is nothing
	Metadata        string // room for metadata
	Stranded        string // raw space that no chunk reaches whatever is done
	Spark           *Spark
	// Full says when the pool is full, in a sentence.
	Full string
}

// Build works out what the page shows of a pool to somebody who may do what
// control says. It is pure.
func Build(in *Input, control Control, now time.Time) *Pool {
	r := &in.Reading
	p := &Pool{UUID: r.UUID.String(), Control: control, Findings: Findings(in, now)}
	mountpoint := ""
	if r.Facts != nil {
		mountpoint = r.Facts.Pool.Mountpoint
	}
	p.Name, p.Mountpoint = poolName(r.UUID, r.Label, mountpoint), mountpoint
	for _, f := range p.Findings {
		p.Worst = max(p.Worst, f.Severity)
	}
	if r.Facts != nil && (!in.Silent.IsZero() || now.Sub(in.Read) > asOfNow) {
		p.Read = newMoment(in.Read, now)
	}
	p.Scrub = newScrub(in.Scrub, control, now)
	p.Snapshots = newSnapshots(in.Snapshots, control, now)
	if r.Facts == nil {
		return p
	}
	p.Profiles = profiles(r.Facts.Pool)
	p.Space = newSpace(in, now)
	p.Devices = newDevices(in, now)
	p.Losses = newLosses(r.Facts)
	p.WhatIf = newWhatIfForm(r.Facts)
	return p
}

// asOfNow is how old figures may be without a word: those of a reading that is under
// way when the page is drawn are a little.
const asOfNow = 10 * time.Second

// ID is the beginning of the ids of the pool's elements on the page.
func (p *Pool) ID() string { return "p" + p.UUID }

// SectionID is the id of the element that holds a section of a pool.
func SectionID(pool btrfs.UUID, section string) string { return "p" + pool.String() + "-" + section }

// profiles says in which profiles new block groups of each type are.
func profiles(p *btrfs.Pool) string {
	var words []string
	for _, t := range []btrfs.BlockGroupType{btrfs.Data, btrfs.Mixed, btrfs.Metadata} {
		s := p.Space(t)
		if s == nil || len(s.Profiles) == 0 {
			continue
		}
		var names []string
		for _, profile := range s.Profiles {
			names = append(names, profile.Profile.String())
		}
		words = append(words, t.String()+" "+list(names))
	}
	text := ""
	for i, w := range words {
		if i > 0 {
			text += ", "
		}
		text += w
	}
	return text
}

func newSpace(in *Input, now time.Time) *Space {
	facts := in.Reading.Facts
	s := &Space{Spark: newSpark(in, now), Full: fullSentence(in.Forecast, now)}
	if free, ok := facts.Pool.StatfsFree.Get(); ok {
		s.StatfsFree = size(free)
	}
	if used, ok := dataUsed(facts.Pool); ok {
		s.Used = size(used)
	}
	r := facts.Report
	if r == nil {
		return s
	}
	s.Free, s.Exact = size(r.FreeExpected), r.Exact
	s.Usable, s.Metadata = size(r.Usable), size(r.MetadataFree)
	if gain := r.FreeAfterBalance - min(r.FreeAfterBalance, r.Free); gain > r.Usable/100 {
		s.Balance = size(gain)
	}
	if r.StrandedMismatch > 0 {
		s.Stranded = size(r.StrandedMismatch)
	}
	return s
}

// dataUsed returns the bytes of file data.
func dataUsed(p *btrfs.Pool) (used uint64, known bool) {
	for _, t := range []btrfs.BlockGroupType{btrfs.Data, btrfs.Mixed} {
		if s := p.Space(t); s != nil {
			used, known = used+s.Used, true
		}
	}
	return used, known
}

// fullSentence says when a pool is full.
func fullSentence(f *history.Forecast, now time.Time) string {
	if f == nil || !f.DaysToFull.Known {
		return ""
	}
	const years = 3 * 365
	at := f.Full()
	switch {
	case f.BytesPerDay.Known && f.BytesPerDay.Value <= 0:
		return "It has not filled up of late."
	case at.IsZero() || f.DaysToFull.Value >= years:
		return "At the rate of late it will not be full for years."
	case !at.After(now):
		return "At the rate of late it is full now."
	}
	return fmt.Sprintf("At the rate of late it will be full %s, on %s.", newMoment(at, now).Words, at.In(now.Location()).Format("2 January 2006"))
}

// Losses is what the loss of devices would cost beyond what is lost already.
type Losses struct {
	// Tolerated says how many devices may fail, in a sentence.
	Tolerated string
	// Metadata says on which devices the metadata lies, in a sentence.
	Metadata string
	// Pairs are pairs of devices whose loss costs something, the dearest first;
	// Left is how many more there are.
	Pairs []LossOfPair
	Left  int
}

// LossOfPair is what the loss of two devices costs.
type LossOfPair struct {
	A, B string // devices
	Cost string
	// Share is the part of all data that is lost.
	Share float64
}

// maxPairs is how many pairs the page shows.
const maxPairs = 10

func newLosses(f *factsOf) *Losses {
	if f.Layout == nil || !f.Layout.Exact {
		return nil
	}
	l := &Losses{}
	tolerated, ok := f.Layout.FailuresTolerated()
	lost := f.Layout.Lost()
	switch {
	case lost.Total() > 0:
		l.Tolerated = fmt.Sprintf("Without what is missing %s cannot be read already.", cost(lost))
	case !ok:
	case tolerated == 0 && len(f.Layout.Devices) == 1:
		l.Tolerated = "There is one device: its loss loses everything."
	case tolerated == 0:
		l.Tolerated = "The loss of one device, if it is the wrong one, loses data."
	case tolerated == 1:
		l.Tolerated = "Any one device may fail without the loss of a byte."
	default:
		l.Tolerated = fmt.Sprintf("Any %d devices may fail without the loss of a byte.", tolerated)
	}
	if spread, ok := f.Spread.Get(); ok {
		l.Metadata = metadataSentence(f, &spread)
	}
	m := f.Layout.LossMatrix()
	type pair struct {
		a, b int
		loss capacity.Loss
	}
	var pairs []pair
	for i := range m.Pair {
		for j := range i {
			// What one of the two costs by itself stands in the table of devices.
			if total := m.Pair[i][j].Total(); total > m.Single[i].Total()+m.Single[j].Total() {
				pairs = append(pairs, pair{j, i, m.Pair[i][j]})
			}
		}
	}
	slices.SortStableFunc(pairs, func(a, b pair) int {
		// Without metadata no file is found.
		return cmp.Or(cmp.Compare(b.loss.Metadata, a.loss.Metadata), cmp.Compare(b.loss.Total(), a.loss.Total()))
	})
	var data uint64
	for _, a := range f.Layout.Allocations {
		if a.Type == btrfs.Data || a.Type == btrfs.Mixed {
			data += a.Size
		}
	}
	for i, pr := range pairs {
		if i == maxPairs {
			l.Left = len(pairs) - i
			break
		}
		out := LossOfPair{A: deviceName(f.Pool, m.Devices[pr.a]), B: deviceName(f.Pool, m.Devices[pr.b]), Cost: cost(pr.loss)}
		if data > 0 {
			out.Share = float64(pr.loss.Data+pr.loss.Mixed) / float64(data)
		}
		l.Pairs = append(l.Pairs, out)
	}
	return l
}

// cost says what a loss costs.
func cost(l capacity.Loss) string {
	var words []string
	for _, t := range []btrfs.BlockGroupType{btrfs.Data, btrfs.Mixed, btrfs.Metadata, btrfs.System} {
		if n := l.Of(t); n > 0 {
			words = append(words, size(n)+" of "+t.String())
		}
	}
	if len(words) == 0 {
		return "nothing"
	}
	return list(words)
}

func metadataSentence(f *factsOf, spread *capacity.MetadataSpread) string {
	var holders []string
	for i, share := range spread.Share {
		if share > 0 && i < len(f.Layout.Devices) {
			holders = append(holders, deviceName(f.Pool, f.Layout.Devices[i].ID))
		}
	}
	if len(holders) == 0 {
		return ""
	}
	const most = 6
	if len(holders) > most {
		return fmt.Sprintf("The metadata lies on %d devices.", len(holders))
	}
	text := "The metadata lies on " + list(holders)
	if len(f.Layout.Devices) > len(holders) {
		text += " alone"
	}
	if c := spread.Concentration; len(spread.Fullest) > 1 && len(holders) > len(spread.Fullest) {
		var fullest []string
		for _, id := range spread.Fullest {
			fullest = append(fullest, deviceName(f.Pool, id))
		}
		text += fmt.Sprintf(", and %s of it has all its copies on %s", percent(c), list(fullest))
	}
	return text + "."
}

// Snapshots are those of a pool that are ours.
type Snapshots struct {
	Subvolumes []Subvolume
	Configured bool
	Success    *moment
	Next       *moment
	Cleaning   int
	Buttons    bool
}

// Subvolume is what is known of the snapshots of a subvolume.
type Subvolume struct {
	Name           string
	Count          int
	Newest, Oldest *moment
	Failures       uint64
}

func newSnapshots(o *snapshot.Overview, control Control, now time.Time) *Snapshots {
	if o == nil {
		return nil
	}
	s := &Snapshots{
		Configured: o.Configured, Success: newMoment(o.Success, now), Next: newMoment(o.Next, now),
		Cleaning: o.Cleaning.Value, Buttons: o.Configured && control.Buttons(),
	}
	for _, v := range o.Subvolumes {
		s.Subvolumes = append(s.Subvolumes, Subvolume{
			Name: v.Subvolume, Count: v.Count, Newest: newMoment(v.Newest, now), Oldest: newMoment(v.Oldest, now), Failures: v.Failures,
		})
	}
	return s
}

// Scrub is the scrub of a pool, the running one or the last.
type Scrub struct {
	State   string
	Active  bool
	Foreign bool
	Words   string // what it does, in a sentence
	Reason  string // why, in a sentence
	// Percent is how far it is, from 0 to 100, while it is active.
	Percent float64
	Rate    string
	ETA     string
	Errors  string // what it found, in a sentence
	Success *moment
	Files   []string // those that were hit; only for who may see them
	More    int      // files that are not listed
	Hidden  bool     // there are files, and they are not shown

	Start, Pause, Resume, Cancel bool // the buttons there are
}

// maxFiles is how many damaged files the page names.
const maxFiles = 20

func newScrub(s *scrub.Status, control Control, now time.Time) *Scrub {
	if s == nil {
		return nil
	}
	v := &Scrub{
		State: string(s.State), Active: s.State.Active() || s.Foreign, Foreign: s.Foreign, Reason: sentence(s.Reason),
		Success: newMoment(s.LastSuccess, now),
	}
	if v.Active {
		v.Percent = 100 * s.Progress
		if s.Rate > 0 {
			v.Rate = rate(s.Rate)
		}
		if s.ETA > 0 && (s.State == scrub.Running || s.State == scrub.Yielding) {
			v.ETA = span(s.ETA)
		}
	}
	v.Words = scrubWords(s, now)
	v.Errors = scrubErrors(s)
	v.addFiles(s, control)
	if control.Buttons() && !s.Foreign {
		v.Start = !s.State.Active()
		v.Pause = s.State == scrub.Running || s.State == scrub.Yielding || s.State == scrub.Waiting
		v.Resume = s.State == scrub.Paused
		v.Cancel = s.State.Active()
	}
	return v
}

func scrubWords(s *scrub.Status, now time.Time) string {
	ago := ""
	if m := newMoment(s.Finished, now); m != nil {
		ago = " " + m.Words
	}
	switch s.State {
	case scrub.Idle:
		return "No scrub was ever run here."
	case scrub.Waiting:
		return "A scrub waits."
	case scrub.Running:
		return "A scrub runs."
	case scrub.Yielding:
		return "A scrub gives way to others."
	case scrub.Paused:
		return "The scrub is paused."
	case scrub.Finished:
		return fmt.Sprintf("The last scrub finished%s, after %s.", ago, span(s.Duration))
	case scrub.Cancelled:
		return "The last scrub was cancelled" + ago + "."
	case scrub.Failed:
		return "The last scrub failed" + ago + "."
	}
	return ""
}

func scrubErrors(s *scrub.Status) string {
	if s.State == scrub.Idle || s.Started.IsZero() {
		return ""
	}
	c := s.Counters()
	if c.Errors() == 0 && c.UncorrectableErrors == 0 {
		if s.State == scrub.Finished {
			return "It found no error."
		}
		if s.State.Active() || s.Foreign {
			return "It has found no error so far."
		}
		return "It had found no error by then."
	}
	text := "It found " + count(c.Errors(), "error", "errors")
	switch {
	case c.UncorrectableErrors > 0:
		text += fmt.Sprintf(", of which %s could not be corrected", humanizeCount(c.UncorrectableErrors))
	case c.CorrectedErrors > 0:
		text += ", and corrected " + humanizeCount(c.CorrectedErrors)
	}
	return text + "."
}

// addFiles names the files that were hit, or says that there are some.
func (v *Scrub) addFiles(s *scrub.Status, control Control) {
	if s.Damage == nil {
		return
	}
	names := make(map[string]bool)
	for i := range s.Damage.Errors {
		e := &s.Damage.Errors[i]
		for _, f := range e.Files {
			name := f.Path
			if f.Subvolume != "" {
				name = f.Subvolume + "/" + f.Path
			}
			if e.Corrected {
				name += " (corrected)"
			}
			names[name] = true
		}
	}
	if len(names) == 0 {
		return
	}
	if !control.Files() {
		v.Hidden = control == Locked
		return
	}
	v.Files = slices.Sorted(maps.Keys(names))
	if len(v.Files) > maxFiles {
		v.More, v.Files = len(v.Files)-maxFiles, v.Files[:maxFiles]
	}
}
