package web_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-kit/log"
	"golang.org/x/net/html"

	"github.com/btrfs-governor/btrfs-governor/alerts"
	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/web"
	"github.com/btrfs-governor/btrfs-governor/scrub"
	"github.com/btrfs-governor/btrfs-governor/scrub/damage"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

var now = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

const gib = 1 << 30

// recorded are the pools of testdata, by label.
func recorded(t *testing.T) map[string]collector.PoolReading {
	t.Helper()
	source, err := collector.NewRecordedSource("../../testdata/pools")
	if err != nil {
		t.Fatal(err)
	}
	var enabled []string
	for _, info := range collector.All() {
		enabled = append(enabled, info.Name)
	}
	e, err := collector.New(collector.Config{Logger: log.NewNopLogger(), Source: source, Enabled: enabled})
	if err != nil {
		t.Fatal(err)
	}
	e.SetTimeout(time.Minute)
	readings, err := e.Pools()
	if err != nil {
		t.Fatal(err)
	}
	pools := make(map[string]collector.PoolReading)
	for _, r := range readings {
		pools[r.Label] = r
	}
	return pools
}

func renderer(t *testing.T) *web.Renderer {
	t.Helper()
	r, err := web.NewRenderer()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// full is an input of which everything is known.
func full(r collector.PoolReading) *web.Input {
	in := &web.Input{
		Reading: r, Read: now,
		Scrub: &scrub.Status{
			Pool: r.UUID, State: scrub.Running, Started: now.Add(-time.Hour), Progress: 0.421, Rate: 120 << 20, ETA: 90 * time.Minute,
			LastSuccess: now.AddDate(0, 0, -20), Devices: []scrub.DeviceStatus{{DevID: 1, Counters: btrfs.ScrubCounters{CsumErrors: 3, CorrectedErrors: 2, UncorrectableErrors: 1}}},
			Damage: &scrub.Damage{Errors: []scrub.DamagedBlock{
				{DevID: 1, Files: []damage.DamagedFile{{Subvolume: "@home", Path: "photos/cat.jpg"}}},
				{DevID: 1, Corrected: true, Files: []damage.DamagedFile{{Path: "music.flac"}}},
			}},
		},
		Snapshots: &snapshot.Overview{
			Configured: true, Next: now.Add(3 * time.Hour), Cleaning: btrfs.Some(2),
			Subvolumes: []snapshot.SubvolumeOverview{{Subvolume: "@home", Count: 31, Newest: now.Add(-time.Hour), Oldest: now.AddDate(0, -5, 0)}},
		},
		Forecast: &history.Forecast{Time: now, DaysToFull: btrfs.Some(20.0)},
	}
	for day := range 30 {
		in.History = append(in.History, history.Sample{Time: now.AddDate(0, 0, day-29), FreeExpected: btrfs.Some(uint64(50-day) * gib)})
	}
	return in
}

// drawPage draws a whole page.
func drawPage(t *testing.T, w io.Writer, p *web.Page) error {
	t.Helper()
	r := renderer(t)
	return errors.Join(r.Head(w, p), r.Body(w, p))
}

// draw draws the page of a pool.
func draw(t *testing.T, in *web.Input, control web.Control) string {
	t.Helper()
	pool := web.Build(in, control, now)
	var b bytes.Buffer
	err := drawPage(t, &b, &web.Page{
		Host: "attic", Version: "1.2.3", Metrics: "/metrics", Now: now, Control: control, Live: "/live", Pools: []*web.Pool{pool}, Summary: web.NewSummary([]*web.Pool{pool, pool}, nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func walk(n *html.Node, visit func(*html.Node)) {
	visit(n)
	for c := range n.ChildNodes() {
		walk(c, visit)
	}
}

func parse(t *testing.T, text string) *html.Node {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// text is what a person reads, with single spaces.
func text(n *html.Node) string {
	var b strings.Builder
	walk(n, func(n *html.Node) {
		if n.Type == html.TextNode {
			b.WriteString(n.Data + " ")
		}
	})
	return strings.Join(strings.Fields(b.String()), " ")
}

// The policy allows no script and no style in the page, and nothing from elsewhere.
func TestPagesLoadNothingButAssets(t *testing.T) {
	for label, reading := range recorded(t) {
		for i := range 4 * len(scrub.States()) {
			control := web.Control(i % 4)
			ids := make(map[string]int)
			var refers []string
			in := full(reading)
			in.Scrub.State = scrub.States()[i/4]
			walk(parse(t, draw(t, in, control)), func(n *html.Node) {
				if n.Type != html.ElementNode {
					return
				}
				for _, a := range n.Attr {
					switch {
					case a.Key == "style" || strings.HasPrefix(a.Key, "on"):
						t.Errorf("%s: <%s %s> is against the policy", label, n.Data, a.Key)
					case a.Key == "id":
						ids[a.Val]++
					case a.Key == "aria-labelledby" || a.Key == "for" || a.Key == "data-answer":
						refers = append(refers, a.Val)
					case a.Key == "src" || a.Key == "href" && n.Data == "link":
						if !strings.HasPrefix(a.Val, "/assets/") {
							t.Errorf("%s: <%s> loads %s", label, n.Data, a.Val)
						}
					case a.Key == "action" && !strings.HasPrefix(a.Val, "/"):
						t.Errorf("%s: a form goes to %s", label, a.Val)
					}
				}
				if n.Data == "style" || n.Data == "script" && n.FirstChild != nil {
					t.Errorf("%s: there is an inline <%s>", label, n.Data)
				}
			})
			for id, n := range ids {
				if n > 1 {
					t.Errorf("%s: id %s is there %d times", label, id, n)
				}
			}
			for _, id := range refers {
				if ids[id] == 0 {
					t.Errorf("%s: nothing has the id %s", label, id)
				}
			}
		}
	}
}

func TestWhatPeopleWroteIsEscaped(t *testing.T) {
	const evil = `"><script>alert(1)</script>`
	reading := recorded(t)["attic"]
	pool, facts := *reading.Facts.Pool, *reading.Facts
	pool.Label, pool.Mountpoint = evil, "/mnt/"+evil
	pool.Devices = slices.Clone(pool.Devices)
	for i := range pool.Devices {
		pool.Devices[i].Path, pool.Devices[i].Model, pool.Devices[i].Serial = "/dev/"+evil, evil, evil
	}
	facts.Pool = &pool
	reading.Label, reading.Facts, reading.Err = evil, &facts, errors.New(evil)
	in := full(reading)
	in.Scrub.Reason = evil
	in.Scrub.Damage.Errors[0].Files[0] = damage.DamagedFile{Subvolume: evil, Path: evil}
	in.Snapshots.Subvolumes[0].Subvolume = evil
	page := draw(t, in, web.Unlocked)
	scripts, shown := 0, 0
	walk(parse(t, page), func(n *html.Node) {
		switch {
		case n.Type == html.ElementNode && n.Data == "script":
			scripts++
		case n.Type == html.TextNode && strings.Contains(n.Data, evil):
			shown++
		}
	})
	if scripts != 1 {
		t.Errorf("the page has %d scripts, want its own alone", scripts)
	}
	if shown < 10 {
		t.Errorf("the text is shown %d times, want it at each place", shown)
	}
	var b bytes.Buffer
	if err := drawPage(t, &b, &web.Page{Token: &web.TokenForm{Host: evil, Action: evil, Pool: evil, Error: evil}, Summary: web.NewSummary(nil, errors.New(evil)), Message: &web.Message{Text: evil}}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), evil) {
		t.Error("the form for the token does not escape")
	}
}

func TestWhatOneMayDoIsWhatThereIs(t *testing.T) {
	in := full(recorded(t)["attic"])
	for control, want := range map[web.Control]struct{ there, absent []string }{
		web.ReadOnly: {nil, []string{"<button id", "cat.jpg", "/session"}},
		web.Insecure: {[]string{"over TLS"}, []string{"<button id", "cat.jpg", "/session"}},
		web.Locked:   {[]string{"/pause", "/cancel", "/snapshot\"", "named once the token"}, []string{"cat.jpg", "/resume", "/scrub\"", "/session/end"}},
		web.Unlocked: {[]string{"/pause", "/cancel", "@home/photos/cat.jpg", "music.flac (corrected)", "/session/end"}, []string{"named once the token"}},
	} {
		page := draw(t, in, control)
		for _, s := range want.there {
			if !strings.Contains(page, s) {
				t.Errorf("control %d: %q is not there", control, s)
			}
		}
		for _, s := range want.absent {
			if strings.Contains(page, s) {
				t.Errorf("control %d: %q is there", control, s)
			}
		}
	}
	for state, buttons := range map[scrub.State]string{
		scrub.Idle: "scrub", scrub.Waiting: "pause cancel", scrub.Running: "pause cancel", scrub.Yielding: "pause cancel",
		scrub.Paused: "resume cancel", scrub.Finished: "scrub", scrub.Cancelled: "scrub", scrub.Failed: "scrub",
	} {
		in.Scrub.State = state
		s := web.Build(in, web.Unlocked, now).Scrub
		var got []string
		for _, b := range []struct {
			there bool
			name  string
		}{{s.Start, "scrub"}, {s.Pause, "pause"}, {s.Resume, "resume"}, {s.Cancel, "cancel"}} {
			if b.there {
				got = append(got, b.name)
			}
		}
		if strings.Join(got, " ") != buttons {
			t.Errorf("a scrub that is %s has the buttons %v, want %s", state, got, buttons)
		}
	}
	in.Scrub.State, in.Scrub.Foreign = scrub.Running, true
	if s := web.Build(in, web.Unlocked, now).Scrub; s.Pause || s.Cancel || s.Start {
		t.Error("the scrub of somebody else has buttons")
	}
}

func TestPageSaysWhatIsKnown(t *testing.T) {
	page := text(parse(t, draw(t, full(recorded(t)["attic"]), web.Locked)))
	for _, want := range []string{
		"You can still write 6.94 TiB", "df says 4.98 TiB",
		"it will be full in 20 days, on 16 December 2026",
		"A scrub runs.", "42.1 %", "120 MiB/s", "about 90 minutes left",
		"It found 3 errors, of which 1 could not be corrected.", "The last complete scrub was 20 days ago",
		"@home 31 60 minutes ago 5 months ago", "The next snapshots are due in 3 hours", "giving back the space of 2 that were deleted",
		"Any one device may fail without the loss of a byte.",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q: %s", want, page)
		}
	}
}

// A reading that is under way when a disk hangs has the page show an older one.
func TestOldFiguresSayHowOldTheyAre(t *testing.T) {
	in := full(recorded(t)["media"])
	for age, want := range map[time.Duration]bool{0: false, 5 * time.Second: false, time.Minute: true, 26 * time.Hour: true} {
		in.Read = now.Add(-age)
		if got := strings.Contains(draw(t, in, web.Locked), "The figures below are of"); got != want {
			t.Errorf("figures that are %s old say so: %t", age, got)
		}
	}
}

// Unknown is left out, never 0.
func TestWhatIsNotKnownIsNotShown(t *testing.T) {
	reading := recorded(t)["attic"]
	for name, in := range map[string]*web.Input{
		"nothing":         {Reading: collector.PoolReading{UUID: reading.UUID, Label: "attic", Err: errors.New("disk on fire")}, Read: now},
		"only the layout": {Reading: collector.PoolReading{UUID: reading.UUID, Facts: &collector.Facts{Pool: &btrfs.Pool{UUID: reading.UUID, Devices: []btrfs.Device{{ID: 1}}}}}, Read: now},
	} {
		page := text(parse(t, draw(t, in, web.Locked)))
		for _, never := range []string{"0 B", "0 %", "NaN", "0001", "<nil>"} {
			if strings.Contains(page, never) {
				t.Errorf("%s: the page says %q: %s", name, never, page)
			}
		}
	}
}

func TestFindings(t *testing.T) {
	pools := recorded(t)
	quiet := func(reading collector.PoolReading) *web.Input { return &web.Input{Reading: reading, Read: now} }
	change := func(label string, edit func(*btrfs.Pool, *collector.Facts)) *web.Input {
		reading := pools[label]
		facts, pool := *reading.Facts, *reading.Facts.Pool
		pool.Devices, pool.Spaces = slices.Clone(pool.Devices), slices.Clone(pool.Spaces)
		report := *facts.Report
		facts.Pool, facts.Report = &pool, &report
		edit(&pool, &facts)
		reading.Facts = &facts
		return quiet(reading)
	}
	scrubbed := func(s scrub.Status) *web.Input {
		in := quiet(pools["media"])
		in.Scrub = &s
		return in
	}
	late := quiet(pools["media"])
	late.Silent, late.Read, late.Reading.Err = now.Add(-10*time.Minute), now.Add(-72*time.Hour), errors.New("input/output error")
	filling := quiet(pools["media"])
	filling.Forecast = &history.Forecast{Time: now, DaysToFull: btrfs.Some(5.5), MetadataDaysToFull: btrfs.Some(0.5)}
	hurried := func(free uint64, hour ...uint64) *web.Input {
		in := change("media", func(_ *btrfs.Pool, f *collector.Facts) { f.Report.FreeExpected, f.Report.Usable = free, 100*gib })
		for i, f := range hour {
			in.Hour = append(in.Hour, history.Sample{Time: now.Add(time.Duration(i-len(hour)) * history.Step), FreeExpected: btrfs.Some(f)})
		}
		return in
	}
	errors3 := btrfs.ErrorCounts{Read: 2, Corruption: 1}
	counted := func(before *history.DeviceErrors) *web.Input {
		in := change("media", func(p *btrfs.Pool, _ *collector.Facts) { p.Devices[0].Errors = btrfs.Some(errors3) })
		if before != nil {
			in.Errors = map[uint64]history.DeviceErrors{in.Reading.Facts.Pool.Devices[0].ID: *before}
		}
		return in
	}
	taken := func(ago time.Duration, missed int) *web.Input {
		in := quiet(pools["media"])
		in.Snapshots = &snapshot.Overview{Configured: true, Success: now.Add(-ago), Missed: missed}
		return in
	}
	tests := map[string]struct {
		in   *web.Input
		want string // severity, alert, and a part of the text
	}{
		"lost already": {change("tank", func(p *btrfs.Pool, f *collector.Facts) {
			for i := range p.Devices {
				p.Devices[i].Missing = btrfs.Some(true)
			}
			layout, err := capacity.NewLayout(p)
			if err != nil {
				t.Fatal(err)
			}
			f.Layout = layout
		}), "critical BtrfsDeviceMissing no copy on a device that is there"},
		"full within hours":       {hurried(4*gib, 12*gib, 10*gib, 8*gib, 6*gib), "critical BtrfsPoolFullSoon full in 30 minutes"},
		"errors of unknown age":   {counted(nil), "warning BtrfsDeviceErrors 2 read, 1 corruption. Since when is not known."},
		"errors of the future":    {counted(&history.DeviceErrors{Counts: btrfs.ErrorCounts{Read: 2, Corruption: 1}, Watched: now.Add(-99 * time.Hour), Rose: now.Add(time.Hour)}), "warning BtrfsDeviceErrors 2 read, 1 corruption. Since when is not known."},
		"watched from the future": {counted(&history.DeviceErrors{Counts: btrfs.ErrorCounts{Read: 2, Corruption: 1}, Watched: now.Add(999 * time.Hour)}), "warning BtrfsDeviceErrors 2 read, 1 corruption. Since when is not known."},
		"errors since a moment":   {counted(&history.DeviceErrors{Counts: btrfs.ErrorCounts{Read: 1, Corruption: 1}, Watched: now.AddDate(0, -1, 0)}), "warning BtrfsDeviceErrors There were some a moment ago."},
		"errors since a reset":    {counted(&history.DeviceErrors{Counts: btrfs.ErrorCounts{Read: 7, Corruption: 1}, Watched: now.AddDate(0, -1, 0)}), "warning BtrfsDeviceErrors There were some a moment ago."},
		"errors of today":         {counted(&history.DeviceErrors{Counts: errors3, Watched: now.AddDate(0, -1, 0), Rose: now.Add(-3 * time.Hour)}), "warning BtrfsDeviceErrors The last were seen 3 hours ago."},
		"errors of last week":     {counted(&history.DeviceErrors{Counts: errors3, Watched: now.AddDate(0, -1, 0), Rose: now.Add(-170 * time.Hour)}), "info BtrfsDeviceErrorsOld There were none since"},
		"errors of before":        {counted(&history.DeviceErrors{Counts: errors3, Watched: now.AddDate(0, -1, 0)}), "info BtrfsDeviceErrorsOld from when on they are watched"},
		"errors on the first day": {counted(&history.DeviceErrors{Counts: errors3, Watched: now.Add(-3 * time.Hour)}), "warning BtrfsDeviceErrors in the 3 hours for which"},
		"snapshots missed":        {taken(40*time.Hour, 4), "warning BtrfsSnapshotMissing 40 hours ago; the schedule wanted them more than 3 times"},
		"snapshots long missed":   {taken(8*24*time.Hour, 8), "critical BtrfsSnapshotMissing 8 days ago; the schedule wanted them more than 7 times"},
		"starved":                 {scrubbed(scrub.Status{State: scrub.Yielding, Duration: 30 * time.Hour, Yielded: 29 * time.Hour}), "info BtrfsScrubStarved of the 30 hours that it has run it gave way to others 97 %"},
		"missing":                 {quiet(pools["tank"]), "critical BtrfsDeviceMissing Device 1 is missing"},
		"redundancy":              {quiet(pools["tank"]), "warning BtrfsPoolRedundancyLost a device is missing"},
		"errors":                  {quiet(pools["attic"]), "warning BtrfsDeviceErrors 1 corruption"},
		"concentrated":            {quiet(pools["attic"]), "info BtrfsMetadataConcentrated 100 %"},
		"conversion under way": {change("scratch", func(p *btrfs.Pool, _ *collector.Facts) {
			p.ExclusiveOperation = btrfs.Some("balance")
			p.Spaces[slices.IndexFunc(p.Spaces, func(s btrfs.Space) bool { return s.Type == btrfs.Metadata })].Profiles = []btrfs.ProfileSpace{{Profile: btrfs.RAID1C3}}
			i := slices.IndexFunc(p.Spaces, func(s btrfs.Space) bool { return s.Type == btrfs.Data })
			p.Spaces[i].Profiles = []btrfs.ProfileSpace{{Profile: btrfs.RAID1C3}, {Profile: btrfs.RAID1}}
		}), "warning BtrfsPoolRedundancyLost a balance is converting it"},
		"mixed profiles": {quiet(pools["scratch"]), "warning BtrfsMixedProfiles raid1 and raid10"},
		"no answer":      {quiet(collector.PoolReading{UUID: btrfs.UUID{1}, Err: errors.New("no answer after 10s")}), "critical BtrfsPoolNotAnswering No answer after 10s."},
		"late":           {late, "critical BtrfsPoolNotAnswering has given no figures for 10 minutes; those below are older. Input/output error."},
		"read-only":      {change("media", func(p *btrfs.Pool, _ *collector.Facts) { p.ReadOnly = btrfs.Some(true) }), "warning BtrfsPoolReadOnly read-only"},
		"low": {change("media", func(_ *btrfs.Pool, f *collector.Facts) {
			f.Report.FreeExpected, f.Report.Usable = 200*gib, 4000*gib
		}), "warning BtrfsPoolFreeSpaceLow 200 GiB"},
		"very low": {change("media", func(_ *btrfs.Pool, f *collector.Facts) {
			f.Report.FreeExpected, f.Report.Usable = 20*gib, 4000*gib
		}), "critical BtrfsPoolFreeSpaceLow 20.0 GiB"},
		"metadata": {change("media", func(p *btrfs.Pool, f *collector.Facts) {
			f.Report.MetadataFree = p.Space(btrfs.Metadata).Used / 50
		}), "critical BtrfsPoolMetadataSpaceLow No space left"},
		"balance": {change("media", func(_ *btrfs.Pool, f *collector.Facts) {
			f.Report.FreeAfterBalance = f.Report.Free + f.Report.Usable/5
		}), "info BtrfsSpaceStranded A balance would give it back"},
		"filling":          {filling, "warning BtrfsPoolFillingUp 5.5 days"},
		"metadata filling": {filling, "critical BtrfsPoolMetadataFillingUp 0.5 days"},
		"uncorrectable":    {scrubbed(scrub.Status{State: scrub.Finished, Devices: []scrub.DeviceStatus{{Counters: btrfs.ScrubCounters{CsumErrors: 2, UncorrectableErrors: 2}}}}), "critical BtrfsScrubErrorsUncorrectable 2 errors"},
		"corrected":        {scrubbed(scrub.Status{State: scrub.Finished, Devices: []scrub.DeviceStatus{{Counters: btrfs.ScrubCounters{CsumErrors: 2, CorrectedErrors: 2}}}}), "warning BtrfsScrubErrorsCorrected repaired 2"},
		"failed":           {scrubbed(scrub.Status{State: scrub.Failed, Reason: "a disk is gone"}), "warning BtrfsScrubFailed A disk is gone."},
		"overdue":          {scrubbed(scrub.Status{State: scrub.Finished, LastSuccess: now.AddDate(0, 0, -40)}), "warning BtrfsScrubOverdue 40 days"},
		"long overdue":     {scrubbed(scrub.Status{State: scrub.Finished, LastSuccess: now.AddDate(0, 0, -100)}), "critical BtrfsScrubOverdue 3 months"},
	}
	for name, tt := range tests {
		found := web.Findings(tt.in, now)
		if !slices.IsSortedFunc(found, func(a, b web.Finding) int { return int(b.Severity) - int(a.Severity) }) {
			t.Errorf("%s: the worst is not the first: %v", name, found)
		}
		words := strings.SplitN(tt.want, " ", 3)
		ok := slices.ContainsFunc(found, func(f web.Finding) bool {
			return f.Severity.String() == words[0] && f.Runbook == alerts.Runbook(words[1]) && strings.Contains(f.Text, words[2])
		})
		if !ok {
			t.Errorf("%s: found %v, want %s", name, found, tt.want)
		}
		if !slices.Contains(alerts.Names(), words[1]) {
			t.Errorf("there is no alert %s", words[1])
		}
	}
	well := map[string]*web.Input{
		"fresh":                       scrubbed(scrub.Status{State: scrub.Idle}),
		"room for hours":              hurried(9*gib, 11*gib, 10*gib+gib/2, 10*gib, 9*gib+gib/2),
		"filling, with much room":     hurried(30*gib, 60*gib, 50*gib, 45*gib, 40*gib),
		"becoming emptier":            hurried(9*gib, 2*gib, 4*gib, 6*gib, 8*gib),
		"a quarter of an hour":        hurried(4*gib, 8*gib),
		"snapshots missed in a day":   taken(20*time.Hour, 10),
		"one weekly snapshot missed":  taken(9*24*time.Hour, 1),
		"snapshots as scheduled":      taken(time.Hour, 1),
		"a scrub that gets on":        scrubbed(scrub.Status{State: scrub.Running, Duration: 30 * time.Hour, Yielded: 20 * time.Hour}),
		"a scrub that gave way today": scrubbed(scrub.Status{State: scrub.Yielding, Duration: 2 * time.Hour, Yielded: 2 * time.Hour}),
		"a starved scrub that ended":  scrubbed(scrub.Status{State: scrub.Finished, LastSuccess: now, Duration: 30 * time.Hour, Yielded: 29 * time.Hour}),
	}
	for name, in := range well {
		for _, f := range web.Findings(in, now) {
			if f.Runbook != alerts.Runbook("BtrfsPoolFreeSpaceLow") { // which those of 100 GiB are
				t.Errorf("%s: %v", name, f)
			}
		}
	}
}

// The segments lie side by side, cover the device, and none is too thin to see.
func TestBarsAreToScale(t *testing.T) {
	for label, reading := range recorded(t) {
		devices := web.Build(full(reading), web.Locked, now).Devices
		largest := 0.0
		for _, d := range devices.Rows {
			x := 0.0
			for _, s := range d.Bar.Segments {
				if diff := s.X - x; diff > 0.01 || diff < -0.01 {
					t.Errorf("%s: device %d: %s begins at %g, want %g", label, d.ID, s.Kind, s.X, x)
				}
				if s.Width < 2.99 {
					t.Errorf("%s: device %d: %s is %g wide", label, d.ID, s.Kind, s.Width)
				}
				x += s.Width
			}
			if x > 1000.5 || x > d.Bar.Width+0.5 {
				t.Errorf("%s: device %d is %g wide, want at most %g", label, d.ID, x, d.Bar.Width)
			}
			largest = max(largest, d.Bar.Width)
		}
		if largest < 999.9 || largest > 1000.5 {
			t.Errorf("%s: the largest device is %g wide, want 1000", label, largest)
		}
		sizes := reading.Facts.Pool.Devices
		for i, d := range devices.Rows {
			want := 1000 * float64(sizes[i].Size.Value) / float64(slices.MaxFunc(sizes, func(a, b btrfs.Device) int {
				return int(int64(a.Size.Value)>>10 - int64(b.Size.Value)>>10)
			}).Size.Value)
			if want > 20 && (d.Bar.Width < want*0.99 || d.Bar.Width > want*1.01) {
				t.Errorf("%s: device %d is %g wide, want %g", label, d.ID, d.Bar.Width, want)
			}
		}
	}
}

// The times of the page are by the same clock as the schedules: that on the wall.
func TestTimesAreByTheClockOnTheWall(t *testing.T) {
	there := now.Add(10 * time.Hour).In(time.FixedZone("CET", 60*60)) // 23:00
	in := full(recorded(t)["attic"])
	in.Read = there.Add(-10 * time.Minute).UTC()
	in.History[0].Time = there.Add(-40*24*time.Hour + time.Hour).UTC()
	pool := web.Build(in, web.Locked, there)
	var b bytes.Buffer
	if err := drawPage(t, &b, &web.Page{Now: there, Summary: web.NewSummary(nil, nil), Pools: []*web.Pool{pool}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`As of <time datetime="2026-11-26T23:00:00+01:00">26 November 2026, 23:00 CET</time>`,
		`<time datetime="2026-11-26T22:50:00+01:00">26 November 2026, 22:50 CET</time>, 10 minutes ago`,
	} {
		if page := html.UnescapeString(b.String()); !strings.Contains(page, want) {
			t.Errorf("the page does not say %s", want)
		}
	}
	if from := pool.Space.Spark.From; from != "18 Oct" {
		t.Errorf("the history is of %s on, want 18 Oct, which it was there at midnight", from)
	}
}

func TestSparkGoesOnToTheDayItIsFull(t *testing.T) {
	in := full(recorded(t)["attic"])
	s := web.Build(in, web.Locked, now).Space.Spark
	if s == nil || s.From != "28 Oct" || s.To != "16 Dec" {
		t.Fatalf("spark %+v, want one from 28 Oct to 16 Dec", s)
	}
	// 21 GiB of 50 are left now, and nothing in 20 days, at the right end.
	if want := "355.1,58.0 600.0,100.0"; s.Forecast != want {
		t.Errorf("the forecast is %s, want %s", s.Forecast, want)
	}
	in.History = in.History[:10]
	if s := web.Build(in, web.Locked, now).Space.Spark; s == nil || s.Words != "What could be written: 50.0 GiB 29 days ago, 41.0 GiB 20 days ago." {
		t.Errorf("an old history: %+v", s)
	}
	in.History = in.History[:1]
	if s := web.Build(in, web.Locked, now).Space.Spark; s != nil {
		t.Errorf("one sample is drawn as %+v", s)
	}
}

// What nobody measured is not drawn.
func TestSparkHasHolesWhereNothingWasMeasured(t *testing.T) {
	const quarter, day = history.Step, 24 * time.Hour
	// every returns times from so long ago until so long ago.
	every := func(step, from, until time.Duration) (ago []time.Duration) {
		for ; from >= until; from -= step {
			ago = append(ago, from)
		}
		return ago
	}
	for name, tt := range map[string]struct {
		ago   []time.Duration
		parts []int // the number of the samples in each
	}{
		"whole":                  {every(quarter, day, 0), []int{97}},
		"a restart":              {slices.Concat(every(quarter, day, 10*time.Hour), every(quarter, 9*time.Hour, 0)), []int{94}},
		"five steps":             {slices.Concat(every(quarter, day, 10*time.Hour), every(quarter, 10*time.Hour-5*quarter, 0)), []int{57, 36}},
		"a week":                 {slices.Concat(every(quarter, 10*day, 8*day), every(quarter, day, 0)), []int{193, 97}},
		"one by itself":          {slices.Concat(every(quarter, 20*day, 19*day), []time.Duration{9 * day}, every(quarter, day, 0)), []int{97, 1, 97}},
		"one at either end":      {slices.Concat([]time.Duration{20 * day}, every(quarter, 10*day, 9*day), []time.Duration{0}), []int{1, 97, 1}},
		"two far apart":          {[]time.Duration{7 * day, 0}, []int{1, 1}},
		"three months":           {every(14*time.Hour+30*time.Minute, 89*day, 0), []int{148}},
		"a week of three months": {slices.Concat(every(14*time.Hour, 89*day, 40*day), every(14*time.Hour, 33*day, 0)), []int{85, 57}},
		"nights of three months": {every(day, 89*day, 0), []int{90}},
	} {
		in := full(recorded(t)["attic"])
		in.History = nil
		for _, ago := range tt.ago {
			in.History = append(in.History, history.Sample{Time: now.Add(-ago), FreeExpected: btrfs.Some[uint64](gib)})
		}
		spark := web.Build(in, web.Locked, now).Space.Spark
		var parts []int
		for _, part := range strings.Split(spark.Line, "M")[1:] {
			parts = append(parts, 1+strings.Count(part, "L"))
			if dot := strings.HasSuffix(part, "h0"); dot != !strings.Contains(part, "L") {
				t.Errorf("%s: part %q; one sample, and nothing else, is a dot", name, part)
			}
		}
		if !slices.Equal(parts, tt.parts) {
			t.Errorf("%s: the samples of the parts are %v, want %v", name, parts, tt.parts)
		}
		if !strings.Contains(draw(t, in, web.Locked), `<path d="`+spark.Line+`"/>`) {
			t.Errorf("%s: the page has another line", name)
		}
	}
	// What is not known is a hole as well.
	in := full(recorded(t)["attic"])
	in.History = nil
	for i := range 40 {
		s := history.Sample{Time: now.Add(time.Duration(i-40) * quarter)}
		if i < 10 || i >= 20 {
			s.FreeExpected = btrfs.Some[uint64](gib)
		}
		in.History = append(in.History, s)
	}
	if line := web.Build(in, web.Locked, now).Space.Spark.Line; strings.Count(line, "M") != 2 {
		t.Errorf("where it was not known there is a line: %s", line)
	}
}

func TestSummaryTellsTheWorst(t *testing.T) {
	well, bad, worse := &web.Pool{Name: "attic"}, &web.Pool{Name: "barn", Worst: web.Warning}, &web.Pool{Name: "cave", Worst: web.Critical}
	for _, tt := range []struct {
		pools []*web.Pool
		err   error
		want  string
	}{
		{nil, nil, "No pool"},
		{[]*web.Pool{well}, nil, "attic is well"},
		{[]*web.Pool{worse}, nil, "cave needs a look now"},
		{[]*web.Pool{well, well}, nil, "All 2 pools are well"},
		{[]*web.Pool{well, well}, errors.New("the mount table gives no answer"), "The 2 pools that were found are well"},
		{[]*web.Pool{well, bad}, nil, "1 of 2 pools need a look"},
		{[]*web.Pool{well, bad, worse}, nil, "2 of 3 pools need a look now"},
	} {
		s := web.NewSummary(tt.pools, tt.err)
		text, err := renderer(t).Summary(s)
		if err != nil || s.Headline != tt.want || !strings.Contains(string(text), "<h1>"+tt.want+"</h1>") {
			t.Errorf("%q, want %q: %s %v", s.Headline, tt.want, text, err)
		}
		if (tt.err != nil) != strings.Contains(string(text), "Not all pools could be found: the mount table gives no answer.") {
			t.Errorf("%s: what is missing: %s", tt.want, text)
		}
	}
}

func TestFullIsSaidInTheRightTense(t *testing.T) {
	in := full(recorded(t)["media"])
	for _, tt := range []struct {
		days, rate float64
		want       string
	}{
		{20, 1e9, "it will be full in 20 days, on 16 December 2026."}, {0, 1e9, "it is full now."},
		{3650, 1, "it will not be full for years."}, {3650, -1e9, "It has not filled up of late."},
	} {
		in.Forecast = &history.Forecast{Time: now, DaysToFull: btrfs.Some(tt.days), BytesPerDay: btrfs.Some(tt.rate)}
		if got := web.Build(in, web.Locked, now).Space.Full; !strings.HasSuffix(got, tt.want) {
			t.Errorf("%g days at %g: %q, want %q", tt.days, tt.rate, got, tt.want)
		}
	}
}

func TestWhatIfDrawsAMissingDeviceAsUnusable(t *testing.T) {
	facts := recorded(t)["tank"].Facts
	a := web.WhatIf(facts, []capacity.Change{capacity.AddDevice{Size: 8 << 40}}, 8<<40)
	for _, s := range a.Bars[0].Segments {
		if s.Kind == web.KindFree {
			t.Errorf("the missing device: %+v", a.Bars[0])
		}
	}
}

func TestWhatIfSaysWhatTheSimulationSays(t *testing.T) {
	facts := recorded(t)["attic"].Facts
	change := capacity.AddDevice{Size: 8 << 40}
	report, _, err := capacity.WhatIf(facts.Pool, facts.Layout, change)
	if err != nil {
		t.Fatal(err)
	}
	a := web.WhatIf(facts, []capacity.Change{change}, 8<<40)
	gain := fmt.Sprintf("%.2f TiB more could be written.", float64(report.FreeExpected-facts.Report.FreeExpected)/(1<<40))
	if !strings.HasPrefix(a.Words, gain) || len(a.Bars) != len(facts.Pool.Devices)+1 || a.Rows[0].Now != "6.94 TiB" {
		t.Errorf("the answer is %+v, want %q and a bar for each device", a, gain)
	}
	if last := a.Bars[len(a.Bars)-1]; last.Label != "the new device, 8.00 TiB" {
		t.Errorf("the new device is called %q", last.Label)
	}
	// What the devices are used for is told, whatever is changed.
	for _, change := range []capacity.Change{change, capacity.RemoveDevice{ID: 1}, capacity.Convert{Type: btrfs.Data, Profile: btrfs.RAID1C3}} {
		a := web.WhatIf(facts, []capacity.Change{change}, 0)
		for kind, want := range map[web.Kind]bool{web.KindData: true, web.KindMetadata: true, web.KindSystem: true, web.KindAllocated: false} {
			if slices.Contains(a.Kinds, kind) != want {
				t.Errorf("%s: the picture shows %v", change, a.Kinds)
			}
		}
	}
	if a := web.WhatIf(facts, []capacity.Change{capacity.ReplaceDevice{ID: 1, Size: gib}}, 0); !strings.Contains(a.Error, "smaller than the old one") {
		t.Errorf("a replace that cannot be done: %+v", a)
	}
}
