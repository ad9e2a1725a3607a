package throttle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

func write(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func writeIO(t *testing.T, root string, tid int, read uint64) {
	t.Helper()
	write(t, root, fmt.Sprintf("self/task/%d/io", tid),
		fmt.Sprintf("rchar: 7\nwchar: 8\nsyscr: 1\nsyscw: 1\nread_bytes: %d\nwrite_bytes: 9\ncancelled_write_bytes: 0\n", read))
}

const diskstats = `   7       0 loop0 1 0 2 3 0 0 0 0 0 0 0 0 0 0 0 0 0
   8       0 sda 100 5 2048 30 40 6 512 70 0 8 9 0 0 0 0 1 2
   8       1 sda1 99 5 2000 30 39 6 500 70 0 8 9 0 0 0 0 1 2
   8      16 sdb 10 0 100 3 4 0 20 7 0 8 9
`

// What this process waits for is known where it has a cgroup for itself.
func TestSamplerReadsOwnPressure(t *testing.T) {
	const pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=%d\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"
	pid := strconv.Itoa(os.Getpid())
	for _, tt := range []struct {
		name, membership, mount      string
		members, typ, stat, pressure string
		want                         btrfs.Opt[time.Duration]
	}{
		{"a service", "0::/system.slice/x.service\n", "fs/cgroup/system.slice/x.service", pid + "\n", "domain\n", "nr_descendants 0\nnr_dying_descendants 3\n", fmt.Sprintf(pressure, 77), btrfs.Some(77 * time.Microsecond)},
		{"beside the first hierarchy", "9:name=systemd:/\n0::/x\n", "fs/cgroup/unified/x", pid + "\n", "domain\n", "nr_descendants 0\n", fmt.Sprintf(pressure, 5), btrfs.Some(5 * time.Microsecond)},
		{"the root of a container", "0::/\n", "fs/cgroup", pid + "\n", "domain\n", "nr_descendants 0\n", fmt.Sprintf(pressure, 5), btrfs.Some(5 * time.Microsecond)},
		{"the root", "0::/\n", "fs/cgroup", pid + "\n", "", "nr_descendants 0\n", fmt.Sprintf(pressure, 5), btrfs.Opt[time.Duration]{}},
		{"with others", "0::/x\n", "fs/cgroup/x", pid + "\n1\n", "domain\n", "nr_descendants 0\n", fmt.Sprintf(pressure, 5), btrfs.Opt[time.Duration]{}},
		{"with others beneath", "0::/x\n", "fs/cgroup/x", pid + "\n", "domain\n", "nr_descendants 1\n", fmt.Sprintf(pressure, 5), btrfs.Opt[time.Duration]{}},
		{"no pressure", "0::/x\n", "fs/cgroup/x", pid + "\n", "domain\n", "nr_descendants 0\n", "", btrfs.Opt[time.Duration]{}},
		{"only the first hierarchy", "9:name=systemd:/x\n", "fs/cgroup/x", pid + "\n", "domain\n", "nr_descendants 0\n", fmt.Sprintf(pressure, 5), btrfs.Opt[time.Duration]{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			proc, sys := t.TempDir(), t.TempDir()
			write(t, proc, "diskstats", diskstats)
			write(t, proc, "pressure/io", fmt.Sprintf(pressure, 100))
			write(t, proc, "self/cgroup", tt.membership)
			for name, text := range map[string]string{"cgroup.procs": tt.members, "cgroup.type": tt.typ, "cgroup.stat": tt.stat, "io.pressure": tt.pressure} {
				if text != "" {
					write(t, sys, tt.mount+"/"+name, text)
				}
			}
			var got Sample
			if err := NewSampler(proc, sys, [][]string{{"sda"}}).Sample(&got); err != nil {
				t.Fatal(err)
			}
			if got.OwnStalled != tt.want {
				t.Errorf("own pressure is %v, want %v", got.OwnStalled, tt.want)
			}
		})
	}
}

func TestSamplerReadsProcfs(t *testing.T) {
	proc := t.TempDir()
	write(t, proc, "diskstats", diskstats)
	write(t, proc, "pressure/io", "some avg10=0.14 avg60=0.05 avg300=0.00 total=4214891\nfull avg10=0.00 avg60=0.01 avg300=0.00 total=3773986\n")
	writeIO(t, proc, 11, 1000)
	s := NewSampler(proc, t.TempDir(), [][]string{{"sda"}, {"sdb", "sda"}})
	if err := s.AddThread(0, 11); err != nil {
		t.Fatal(err)
	}
	writeIO(t, proc, 11, 1512)
	var got Sample
	if err := s.Sample(&got); err != nil {
		t.Fatal(err)
	}
	want := Sample{Now: got.Now, Stalled: btrfs.Some(4214891 * time.Microsecond), Devices: []DeviceSample{
		{Reads: 100, ReadBytes: 2048 * 512, ReadTime: 30 * time.Millisecond, Writes: 40, WriteBytes: 512 * 512, OwnBytes: 512, Scrubbing: true},
		{Reads: 110, ReadBytes: 2148 * 512, ReadTime: 33 * time.Millisecond, Writes: 44, WriteBytes: 532 * 512},
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestSamplerKeepsWhatEndedThreadsRead(t *testing.T) {
	proc := t.TempDir()
	write(t, proc, "diskstats", diskstats)
	s := NewSampler(proc, t.TempDir(), [][]string{{"sda"}})
	var got Sample
	own := func(want uint64, scrubbing bool) {
		t.Helper()
		if err := s.Sample(&got); err != nil {
			t.Fatal(err)
		}
		if d := got.Devices[0]; d.OwnBytes != want || d.Scrubbing != scrubbing {
			t.Errorf("own bytes %d, scrubbing %t, want %d, %t", d.OwnBytes, d.Scrubbing, want, scrubbing)
		}
	}
	add := func(tid int, read uint64) {
		t.Helper()
		writeIO(t, proc, tid, read)
		if err := s.AddThread(0, tid); err != nil {
			t.Fatal(err)
		}
	}
	add(1, 50)
	writeIO(t, proc, 1, 150)
	own(100, true)
	if got.Stalled.Known {
		t.Error("pressure is known where there is no PSI")
	}
	writeIO(t, proc, 1, 250)
	s.RemoveThread(0, 1)
	own(200, false)
	add(1, 250) // the same thread again
	add(2, 0)
	writeIO(t, proc, 2, 7)
	own(207, true)
	if err := os.RemoveAll(filepath.Join(proc, "self/task/2")); err != nil {
		t.Fatal(err)
	}
	own(207, true)
	s.RemoveThread(0, 2)
	s.RemoveThread(0, 1)
	own(207, false)
}

func TestSamplerErrors(t *testing.T) {
	proc := t.TempDir()
	s := NewSampler(proc, t.TempDir(), [][]string{{"sda"}, {"sdz"}})
	var got Sample
	if err := s.Sample(&got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no diskstats: %v", err)
	}
	if err := s.AddThread(0, 5); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no thread: %v", err)
	}
	write(t, proc, "diskstats", diskstats)
	if err := s.Sample(&got); err == nil || !strings.Contains(err.Error(), "sdz") {
		t.Errorf("no disk sdz: %v", err)
	}
	if got.Devices[0].Reads != 100 {
		t.Error("the disk that is there was not read")
	}
	write(t, proc, "diskstats", "8 0 sda 1 x 3\n")
	if err := s.Sample(&got); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("malformed diskstats: %v", err)
	}
}

func TestSamplerReadsThisSystem(t *testing.T) {
	s := NewSampler("/proc", "/sys", nil)
	var got Sample
	if err := s.Sample(&got); err != nil {
		t.Fatal(err)
	}
	if got.Now == 0 {
		t.Error("no time")
	}
}

func BenchmarkSample(b *testing.B) {
	s := NewSampler("/proc", "/sys", [][]string{{}})
	if err := s.AddThread(0, os.Getpid()); err != nil {
		b.Skip(err)
	}
	var got Sample
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Sample(&got); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStep(b *testing.B) {
	c := New(Config{})
	s := Sample{Devices: make([]DeviceSample, 6)}
	b.ReportAllocs()
	for b.Loop() {
		s.Now += 100 * time.Millisecond
		c.Step(s)
	}
}
