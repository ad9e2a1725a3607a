package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

var viewTime = time.Date(2026, 3, 7, 19, 45, 57, 0, time.UTC)

// yieldingScrub has something of everything.
func yieldingScrub() *scrub.Status {
	return &scrub.Status{
		Pool: testPool, JobID: "scrub-1", State: scrub.Yielding, Reason: "readers on sda: 31 reads/s", Requester: "unix socket, uid 0",
		Options: scrub.Options{Mode: scrub.Auto, Deadline: viewTime.Add(24 * time.Hour)},
		Started: viewTime.Add(-time.Hour), Duration: 50 * time.Minute, Yielded: 5 * time.Minute, Pauses: 2,
		Progress: 0.25, Rate: 100<<20 + 1, ETA: 2*time.Hour + 30*time.Minute,
		Devices: []scrub.DeviceStatus{
			{DevID: 1, Path: "/dev/sda", Size: 4 << 40, Position: 1 << 40, Rate: 100 << 20,
				Counters: btrfs.ScrubCounters{DataBytesScrubbed: 1 << 40, CsumErrors: 2, CorrectedErrors: 2}},
			{DevID: 2, Path: "/dev/mapper/old-disk", Size: 4 << 40, Position: 2 << 40, Rate: 1, Limit: 1,
				Counters: btrfs.ScrubCounters{DataBytesScrubbed: 2 << 40, ReadErrors: 128, UncorrectableErrors: 128}},
			{DevID: 3, Size: 4 << 40, Done: true, Error: "the device is missing"},
		},
		Damage: &scrub.Damage{
			Errors: []scrub.DamagedBlock{
				{Device: "sda", Corrected: true, Files: []scrub.DamagedFile{{Subvolume: "@home", Path: "photos/é.jpg", Offset: 4096}, {Path: "evil\x1b[2J\n", Offset: 1}}},
				{Device: "dm-0", Metadata: true, Physical: 1 << 30}, {Device: "dm-0", Physical: 5},
			},
			Truncated: true, Unlocated: 3,
		},
	}
}

const yieldingReport = `Pool aa000000-0000-0000-0000-000000000001
Scrub yielding: readers on sda: 31 reads/s
Job scrub-1, mode auto, asked for by unix socket, uid 0
Deadline 2026-03-08 19:45:57 UTC (1 day from now)
Started 2026-03-07 18:45:57 UTC (1 hour ago)
Ran for 50m 0s, gave way for 5m 0s, paused 2 times
25.0 % done, 100 MiB/s, about 2h 30m left (Sat 22:15)
Checked 3.0 TiB, found 130 errors: 2 corrected, 128 uncorrectable, read=128, csum=2

  devid  device                 done              checked       rate   limit    left  errors  corrected  uncorrectable
      1  /dev/sda              25.0%  ###.......  1.0 TiB  100 MiB/s    none  2h 30m       2          2              0
      2  /dev/mapper/old-disk  50.0%  #####.....  2.0 TiB      1 B/s  yields  50m 0s     128          0            128
      3  missing                0.0%  ..........      0 B                                  0          0              0
    given up: the device is missing

Damaged:
  @home/photos/é.jpg  4096  corrected  sda
  evil\x1b[2J\n  1  corrected  sda
  (metadata, at byte 1073741824 of the device)  NOT corrected  dm-0
  (used by no file now, at byte 5 of the device)  NOT corrected  dm-0
  and more
  and 3 errors whose place is not known
`

const finishedReport = `Pool aa000000-0000-0000-0000-000000000001
Scrub finished: No errors
Job scrub-2, mode limit (50 MB/s on each device), repairing nothing
Started 2026-03-07 17:45:57 UTC (2 hours ago)
Finished 2026-03-07 19:45:47 UTC (10 seconds ago)
Ran for 1h 59m
Checked 1.0 TiB, found no errors

  devid  device      done              checked  errors  corrected  uncorrectable
      1  /dev/sda  100.0%  ##########  1.0 TiB       0          0              0
`

func TestScrubReport(t *testing.T) {
	finished := &scrub.Status{
		Pool: testPool, JobID: "scrub-2", State: scrub.Finished, Reason: "No errors", Options: scrub.Options{Mode: scrub.Limit, Limit: 50e6, ReadOnly: true},
		Started: viewTime.Add(-2 * time.Hour), Finished: viewTime.Add(-10 * time.Second), Duration: 2*time.Hour - 10*time.Second, Progress: 1,
		Devices: []scrub.DeviceStatus{{DevID: 1, Path: "/dev/sda", Size: 1 << 40, Position: 1 << 40, Done: true, Counters: btrfs.ScrubCounters{DataBytesScrubbed: 1 << 40}}},
	}
	for _, tt := range []struct {
		s    *scrub.Status
		want string
	}{
		{yieldingScrub(), yieldingReport},
		{finished, finishedReport},
		{&scrub.Status{Pool: testPool, State: scrub.Idle}, "Pool aa000000-0000-0000-0000-000000000001\nScrub idle\n"},
	} {
		if diff := cmp.Diff(tt.want, renderScrub(tt.s, viewTime, 0)); diff != "" {
			t.Error(diff)
		}
	}
}

// What people look for first is there on any terminal.
func TestScrubTableLeavesOutWhatHasNoRoom(t *testing.T) {
	for width, want := range map[int]string{
		200: "devid device done checked rate limit left errors corrected uncorrectable",
		99:  "devid device done rate limit left errors corrected uncorrectable",
		90:  "devid device done rate limit errors corrected uncorrectable",
		80:  "devid device done rate errors uncorrectable",
		64:  "devid device done errors uncorrectable",
		50:  "devid device done errors",
		20:  "devid device done errors",
	} {
		titles := deviceLines(yieldingScrub(), width, 10)[1]
		if got := strings.Join(strings.Fields(titles), " "); got != want {
			t.Errorf("width %d: %s, want %s", width, got, want)
		}
	}
	// A path is worth more than a straight edge.
	if text := renderScrub(yieldingScrub(), viewTime, 20); !strings.Contains(text, "@home/photos/é.jpg  4096  corrected  sda\n") {
		t.Errorf("at width 20 the path is not in:\n%s", text)
	}
}

func TestScrubLiveViewFitsTheScreen(t *testing.T) {
	s := yieldingScrub()
	for i := range 40 {
		d := s.Devices[0]
		d.DevID = uint64(10 + i)
		s.Devices = append(s.Devices, d)
	}
	for _, width := range []int{20, 40, 79, 120, 300} {
		for _, height := range []int{14, 24, 50, 100} {
			lines := renderLive(s, viewTime, width, height)
			// The device that was given up has a line more.
			if len(lines) > height {
				t.Errorf("%dx%d: %d lines", width, height, len(lines))
			}
			for _, line := range lines {
				if n := utf8.RuneCountInString(line); n > width {
					t.Errorf("%dx%d: %q has %d characters", width, height, line, n)
				}
			}
		}
	}
}

func TestScrubLiveViewIsDrawnInPlace(t *testing.T) {
	var out bytes.Buffer
	width := 100
	v := &view{out: &out, size: func() (int, int) { return width, 30 }}
	s := yieldingScrub()
	v.update(s, viewTime)
	first := len(v.shown)
	if n := strings.Count(out.String(), "\n"); n != first || strings.Contains(out.String(), "\x1b") {
		t.Errorf("%d lines of %d, or commands to the terminal, in %q", n, first, out.String())
	}
	out.Reset()
	v.update(s, viewTime)
	if want := fmt.Sprintf("\r\x1b[%dA\x1b[J", first); !strings.HasPrefix(out.String(), want) {
		t.Errorf("%q does not begin with %q", out.String(), want)
	}
	// Narrower, it has wrapped what was there.
	rows := 0
	width = 40
	for _, line := range v.shown {
		rows += max(1, (utf8.RuneCountInString(line)+39)/40)
	}
	out.Reset()
	v.update(s, viewTime)
	if want := fmt.Sprintf("\r\x1b[%dA\x1b[J", rows); rows <= first || !strings.HasPrefix(out.String(), want) {
		t.Errorf("%q does not begin with %q", out.String(), want)
	}
	out.Reset()
	v.end(s, viewTime)
	if !strings.Contains(out.String(), "@home/photos/é.jpg  4096  corrected  sda\n") {
		t.Errorf("the damage is not told at the end: %q", out.String())
	}
}

func TestScrubPlainLinesComeWithChangesAndEachTenSeconds(t *testing.T) {
	var out bytes.Buffer
	v := &view{out: &out, size: func() (int, int) { return 0, 0 }}
	s := yieldingScrub()
	for i := range 50 { // 25 s
		if i == 30 {
			s.State, s.Reason, s.ETA = scrub.Running, "", 0
		}
		v.update(s, viewTime.Add(time.Duration(i)*500*time.Millisecond))
	}
	want := `2026-03-07T19:45:57Z yielding 25.0% 100 MiB/s errors=130 corrected=2 uncorrectable=128 left=2h30m (readers on sda: 31 reads/s)
2026-03-07T19:46:07Z yielding 25.0% 100 MiB/s errors=130 corrected=2 uncorrectable=128 left=2h30m (readers on sda: 31 reads/s)
2026-03-07T19:46:12Z running 25.0% 100 MiB/s errors=130 corrected=2 uncorrectable=128
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestScrubJSONLinesComeWithChanges(t *testing.T) {
	var out bytes.Buffer
	v := &view{out: &out, size: func() (int, int) { return 100, 30 }, json: true}
	s := yieldingScrub()
	for range 3 {
		v.update(s, viewTime)
	}
	s.Progress = 0.5
	v.update(s, viewTime)
	v.end(s, viewTime)
	if n := strings.Count(out.String(), "\n"); n != 2 {
		t.Errorf("%d lines, want 2: %s", n, out.String())
	}
}
