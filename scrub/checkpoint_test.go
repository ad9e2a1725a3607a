package scrub

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

var testPool = btrfs.UUID{7}

func day(n int) time.Time { return time.Date(2026, 3, n, 0, 0, 0, 0, time.UTC) }

func TestOldestVerified(t *testing.T) {
	old := []mark{{0, day(1)}, {100, day(2)}, {200, day(3)}}
	for name, tt := range map[string]struct {
		old  []mark
		d    deviceCheckpoint
		want time.Time
	}{
		"never":                       {nil, deviceCheckpoint{Cursor: 50, Marks: []mark{{0, day(9)}}}, time.Time{}},
		"first scrub done":            {nil, deviceCheckpoint{Cursor: 300, Done: true, Marks: []mark{{0, day(8)}, {100, day(9)}}}, day(8)},
		"before it begins":            {old, deviceCheckpoint{}, day(1)},
		"within the first stretch":    {old, deviceCheckpoint{Cursor: 50, Marks: []mark{{0, day(9)}}}, day(1)},
		"within the second stretch":   {old, deviceCheckpoint{Cursor: 150, Marks: []mark{{0, day(9)}}}, day(2)},
		"within the last stretch":     {old, deviceCheckpoint{Cursor: 250, Marks: []mark{{0, day(9)}}}, day(3)},
		"second scrub done":           {old, deviceCheckpoint{Cursor: 300, Done: true, Marks: []mark{{0, day(9)}, {150, day(10)}}}, day(9)},
		"cancelled, then begun again": {mergeMarks(old, &deviceCheckpoint{Cursor: 150, Marks: []mark{{0, day(9)}}}), deviceCheckpoint{}, day(2)},
	} {
		if got := oldestVerified(tt.old, &tt.d); !got.Equal(tt.want) {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestMarksStayFew(t *testing.T) {
	var history []mark
	for scrubs := range 20 {
		d := deviceCheckpoint{Size: 1 << 40}
		for i := range uint64(5000) {
			d.mark(i<<28, day(1+scrubs%20))
			d.Cursor = (i + 1) << 28
		}
		d.Cursor = uint64(scrubs+1) << 35 // each is cancelled further on
		history = mergeMarks(history, &d)
		if len(d.Marks) > maxMarks || len(history) > maxMarks+1 {
			t.Fatalf("%d marks, %d in the history", len(d.Marks), len(history))
		}
	}
}

// damaged are contents of a state file that cannot have been saved.
var damaged = []string{
	"", "{", "[]", `{"version":2}`, `{"version":1,"pool":"` + testPool.String() + `","state":"idle","options":{"mode":"auto"}}`,
	`{"version":1,"pool":"` + testPool.String() + `","state":"running","options":{"mode":"gentle"}}`,
	`{"version":1,"pool":"00000000-0000-0000-0000-000000000000","state":"running","options":{"mode":"auto"}}`,
	`{"version":1,"pool":"` + testPool.String() + `","state":"running","options":{"mode":"auto"},"devices":[{"devid":1},{"devid":1}]}`,
	`{"version":1,"pool":"` + testPool.String() + `","state":"running","options":{"mode":"auto"},"devices":[{"devid":1,"pending":{"start":9,"end":9}}]}`,
	`{"version":1,"pool":"` + testPool.String() + `","state":"running","options":{"mode":"auto"},"started":"2026-03-01T00:00:00Z"}`,
}

func newTestRunner(t testing.TB, dir string) (*Runner, *job.Store, error) {
	t.Helper()
	jobs, err := job.Open(state.NewDir(dir), 10)
	if err != nil {
		return nil, nil, err
	}
	r, err := New(Config{
		Logger: log.NewNopLogger(), Client: btrfs.NewClient(btrfs.Paths{Proc: dir, Sys: dir, Root: "/"}),
		Paths: btrfs.Paths{Proc: dir, Sys: dir, Root: "/"}, State: state.NewDir(dir), Jobs: jobs, StatusDir: dir,
	})
	return r, jobs, err
}

func TestDamagedStateIsSetAsideAndItsJobEnds(t *testing.T) {
	for _, text := range damaged {
		dir := t.TempDir()
		jobs, err := job.Open(state.NewDir(dir), 10)
		if err != nil {
			t.Fatal(err)
		}
		lost, err := jobs.Create("scrub", testPool, "test", nil)
		if err != nil {
			t.Fatal(err)
		}
		name := checkpointName(testPool)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, jobs, err := newTestRunner(t, dir)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if s, err := r.Status(testPool); err != nil || s.State != Idle {
			t.Errorf("%q: state %s, %v", text, s.State, err)
		}
		if _, err := os.Stat(filepath.Join(dir, name+".damaged")); err != nil {
			t.Errorf("%q is not kept aside: %v", text, err)
		}
		if j, err := jobs.Get(lost.ID); err != nil || j.State != job.Failed {
			t.Errorf("%q: the job is %s, %v", text, j.State, err)
		}
	}
}

// largeState is of 30 devices, with as many marks, and as much damage where
// there is any, as is kept.
func largeState(damaged bool) checkpoint {
	cp := checkpoint{Version: checkpointVersion, Pool: testPool, State: Running, Options: Options{Mode: Auto}}
	cp.History.Devices = make(map[string]deviceHistory)
	for i := range 30 {
		d := deviceCheckpoint{DevID: uint64(i), UUID: btrfs.UUID{byte(i)}, Path: "/dev/mapper/a-long-name-of-a-device", Size: 1 << 44}
		for j := range uint64(maxMarks) {
			d.Marks = append(d.Marks, mark{j << 38, day(1)})
		}
		cp.Devices = append(cp.Devices, d)
		cp.History.Devices[d.UUID.String()] = deviceHistory{Marks: d.Marks}
	}
	for i := range uint64(100_000) {
		if !damaged {
			break
		}
		addTo := Damage{Errors: []DamagedBlock{{
			Device: "sda", DevID: i % 30, Physical: i << 12, Logical: i << 12,
			Files: []DamagedFile{{Path: "a/path/of/some/length/in/a/pool/file", Subvolume: "@home", Offset: i}},
		}}}
		sum := Damage{}
		if cp.Damage != nil {
			sum = *cp.Damage
		}
		if sum.Truncated {
			break
		}
		addDamage(&sum, &addTo)
		cp.Damage = &sum
	}
	return cp
}

func TestEndSaysWhatADeadlineCost(t *testing.T) {
	for _, tt := range []struct {
		options Options
		urged   time.Duration
		ended   time.Time
		want    string
	}{
		{Options{Mode: Auto}, 0, day(2), ""},
		{Options{Mode: Auto, Deadline: day(3)}, 0, day(2), "; done within its deadline, at nobody's cost"},
		{Options{Mode: Auto, Deadline: day(3)}, 83 * time.Second, day(2), "; done within its deadline, for which it went on beside others for 1m23s"},
		{Options{Mode: Auto, Deadline: day(1)}, time.Hour, day(2), "; done 24h0m0s after its deadline, for which it went on beside others for 1h0m0s"},
		{Options{Mode: Full, Deadline: day(3)}, 0, day(2), "; done within its deadline"},
	} {
		cp := checkpoint{Options: tt.options, Urged: tt.urged}
		if got := cp.deadlineCost(tt.ended); got != tt.want {
			t.Errorf("%+v, urged %s, ended %s: %q, want %q", tt.options, tt.urged, tt.ended, got, tt.want)
		}
	}
}

func TestStateStaysSmall(t *testing.T) {
	cp := largeState(true)
	text, err := json.Marshal(&cp)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 1<<20 || !cp.Damage.Truncated {
		t.Errorf("the state of 30 devices with as much damage as is kept has %d bytes, truncated %v", len(text), cp.Damage.Truncated)
	}
}

// batchSeconds is how long the batches take in the end on a device that reads so
// many bytes per second.
func batchSeconds(rate float64) float64 {
	size := uint64(DefaultBatchBytes)
	for {
		seconds := float64(size) / rate
		next := nextBatch(size, time.Duration(seconds*float64(time.Second)))
		if next == size {
			return seconds
		}
		size = next
	}
}

func TestBatchesTakeTheirTime(t *testing.T) {
	for _, tt := range []struct {
		size uint64
		took time.Duration
		want uint64
	}{
		{DefaultBatchBytes, 7 * time.Second, DefaultBatchBytes}, // a hard disk
		{DefaultBatchBytes, 300 * time.Millisecond, 2 * DefaultBatchBytes},
		{4 * DefaultBatchBytes, 2 * time.Second, 4 * DefaultBatchBytes},
		{4 * DefaultBatchBytes, 10 * time.Second, 2 * DefaultBatchBytes}, // it gave way
		{DefaultBatchBytes, time.Hour, DefaultBatchBytes},
		{maxBatchBytes, time.Millisecond, maxBatchBytes},
	} {
		if got := nextBatch(tt.size, tt.took); got != tt.want {
			t.Errorf("after %d bytes in %v: %d, want %d", tt.size, tt.took, got, tt.want)
		}
	}
}

// BenchmarkCheckpoint saves the state of a scrub, durably, in the directory for
// temporary files, and sets that beside the time in which the devices, side by
// side, read the batches that each get a checkpoint: with disks of 150 MB/s,
// and with 3 GB/s each.
func BenchmarkCheckpoint(b *testing.B) {
	for _, bb := range []struct {
		name    string
		devices int
		damaged bool
	}{{"2 devices", 2, false}, {"30 devices", 30, false}, {"30 devices, damaged", 30, true}} {
		b.Run(bb.name, func(b *testing.B) {
			r, _, err := newTestRunner(b, b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			p := r.newPool(testPool)
			p.cp = largeState(bb.damaged)
			p.cp.Devices = p.cp.Devices[:bb.devices]
			for b.Loop() {
				var wait sync.WaitGroup
				for range bb.devices { // the worst: all at once
					wait.Go(func() {
						if err := p.save(); err != nil {
							b.Error(err)
						}
					})
				}
				wait.Wait()
			}
			each := b.Elapsed().Seconds() / float64(b.N)
			b.ReportMetric(100*each/batchSeconds(150e6), "%-of-150MB/s")
			b.ReportMetric(100*each/batchSeconds(3e9), "%-of-3GB/s")
		})
	}
}

func FuzzCheckpoint(f *testing.F) {
	for _, text := range damaged {
		f.Add([]byte(text))
	}
	good := checkpoint{
		Version: checkpointVersion, Pool: testPool, State: Paused, Options: Options{Mode: Limit, Limit: 50e6}, Started: day(1),
		Devices: []deviceCheckpoint{{DevID: 1, Cursor: 5, Size: 9, Marks: []mark{{0, day(1)}}, Pending: &pending{Start: 1, End: 2, Next: 3}}},
	}
	text, err := json.Marshal(&good)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, checkpointName(testPool)), data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, _, err := newTestRunner(t, dir)
		if err != nil {
			t.Fatalf("%q stops the daemon: %v", data, err)
		}
		s, err := r.Status(testPool)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := json.Marshal(s); err != nil {
			t.Errorf("%q gives a status that cannot be shown: %v", data, err)
		}
		if _, err := r.Cancel(testPool); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%q: cancel before it runs: %v", data, err)
		}
	})
}
