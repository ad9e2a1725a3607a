package snapshot_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/job"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
	"github.com/btrfs-governor/btrfs-governor/snapshot/retention"
)

// manySnapshots makes n snapshots of @home, and has the runner take them for its
// own, an hour after the other.
func manySnapshots(t testing.TB, r *running, pool *btrfstest.Pool, uuid btrfs.UUID, n int) {
	t.Helper()
	if err := os.Mkdir(pool.Path(".snapshots"), 0o700); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	dir, err := f.OpenDirectory(".snapshots")
	must(t, err)
	defer dir.Close()
	source, err := f.OpenDirectory("@home")
	must(t, err)
	defer source.Close()
	start := time.Now().UTC().Add(-time.Duration(n) * time.Hour)
	for i := range n {
		must(t, dir.CreateSnapshot(source, fmt.Sprintf("@home.%d-%d", n, i)))
	}
	home, err := source.Subvolume()
	must(t, err)
	var made []btrfs.Subvolume
	must(t, f.WalkSubvolumes(func(s *btrfs.Subvolume) error {
		if s.ParentUUID == home.UUID && strings.HasPrefix(s.Name, fmt.Sprintf("@home.%d-", n)) {
			made = append(made, *s)
		}
		return nil
	}))
	if len(made) != n {
		t.Fatalf("%d snapshots were made, want %d", len(made), n)
	}
	must(t, r.AddOurs(uuid, "@home", home.UUID, made, start, time.Hour))
}

// BenchmarkTenThousand sets what is done with 10,000 snapshots beside what
// cannot be done without: the ioctl alone for a creation. It prints milliseconds.
func BenchmarkTenThousand(b *testing.B) {
	const n, pruned = 10_000, 1_000
	rig := btrfstest.New(b)
	pool, uuid := newPool(b, rig, btrfstest.PoolOptions{Sizes: []int64{8 * gib}})
	r := start(b, b.TempDir(), settings(pool))
	manySnapshots(b, r, pool, uuid, n)

	best := func(times int, do func()) time.Duration {
		least := time.Duration(1 << 62)
		for range times {
			began := time.Now()
			do()
			least = min(least, time.Since(began))
		}
		return least
	}
	report := func(d time.Duration, what string) { b.ReportMetric(float64(d.Microseconds())/1e3, what) }
	for b.Loop() {
		list := best(5, func() {
			l, err := r.List(context.Background(), uuid, false)
			if err != nil || len(l.Snapshots) != n {
				b.Fatalf("%v", err)
			}
		})
		report(list, "ms/list")
		report(best(5, func() {
			ch := make(chan prometheus.Metric, 100)
			r.Collect(ch)
		}), "ms/scrape")

		// By turns: one snapshot by the ioctl alone, one by a job.
		bare, ours := bareAndOurs(b, r, pool, uuid, 1)
		report(bare, "ms/ioctl")
		report(ours, "ms/job")
		bare, ours = bareAndOurs(b, r, pool, uuid, 8)
		report(bare, "ms/ioctl-8")
		report(ours, "ms/job-8")

		keep := settings(pool)
		names, _ := r.Ours(uuid)
		keep.Pools[0].Retention = retention.Policy{KeepLast: n - pruned}
		r.SetSettings(keep)
		began := time.Now()
		j, err := r.Prune(uuid, "benchmark")
		must(b, err)
		report(time.Since(began), "ms/prune-answer")
		j, err = r.Wait(b.Context(), j.ID)
		must(b, err)
		report(time.Since(began), "ms/prune-1000")
		left, _ := r.Ours(uuid)
		if j.State != job.Succeeded || len(names)-len(left) != pruned {
			b.Fatalf("the job %s (%s), %d are gone", j.State, j.Reason, len(names)-len(left))
		}
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkHardDisk is the same for one snapshot on a pool of two emulated hard
// disks, where the ioctl takes as long as it does for most people.
func BenchmarkHardDisk(b *testing.B) {
	btrfstest.RequireFUSE(b)
	rig := btrfstest.New(b)
	faults, err := rig.NewFaultDir()
	must(b, err)
	options := btrfstest.PoolOptions{Data: "raid1", Metadata: "raid1"}
	for range 2 {
		disk, err := faults.NewDisk(2 * gib)
		must(b, err)
		options.Disks, options.Sizes = append(options.Disks, disk.Disk), append(options.Sizes, 2*gib)
		b.Cleanup(disk.Heal) // unmounting need not be slow
		disk.Slow(0, 0)
	}
	pool, uuid := newPool(b, rig, options)
	r := start(b, b.TempDir(), settings(pool))
	for b.Loop() {
		bare, ours := bareAndOurs(b, r, pool, uuid, 1)
		b.ReportMetric(float64(bare.Microseconds())/1e3, "ms/ioctl")
		b.ReportMetric(float64(ours.Microseconds())/1e3, "ms/job")
	}
	b.ReportMetric(0, "ns/op")
}

// bareAndOurs takes snapshots of some subvolumes by the ioctl and by a job, by
// turns, and returns the median of each.
func bareAndOurs(t testing.TB, r *running, pool *btrfstest.Pool, uuid btrfs.UUID, subvolumes int) (bare, ours time.Duration) {
	t.Helper()
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	must(t, os.MkdirAll(pool.Path("bare"), 0o700))
	dir, err := f.OpenDirectory("bare")
	must(t, err)
	defer dir.Close()
	var names []string
	var sources []*btrfs.Directory
	for i := range subvolumes {
		name := fmt.Sprintf("s%d-%d", subvolumes, i)
		must(t, pool.NewSubvolume(name))
		source, err := f.OpenDirectory(name)
		must(t, err)
		names, sources = append(names, name), append(sources, source)
	}
	defer func() {
		for _, s := range sources {
			s.Close()
		}
	}()
	r.SetSettings(settings(pool, func(s *snapshot.PoolSettings) { s.Subvolumes = names }))
	var a, b []time.Duration
	for i := range 60 {
		// What follows a job must not hold up the ioctl beside it.
		eventually(t, "the worker has nothing to do", func() bool { return r.Idle(uuid) })
		began := time.Now()
		for k, s := range sources {
			must(t, dir.CreateSnapshot(s, fmt.Sprintf("%d-%d-%d", subvolumes, i, k)))
		}
		a = append(a, time.Since(began))
		began = time.Now()
		j, result := r.create(uuid, snapshot.CreateOptions{})
		b = append(b, time.Since(began))
		if j.State != job.Succeeded || len(result.Created) != subvolumes {
			t.Fatalf("the job %s: %s", j.State, j.Reason)
		}
	}
	return median(a), median(b)
}

func median(d []time.Duration) time.Duration {
	sorted := append([]time.Duration(nil), d...)
	for i := range sorted {
		for k := i; k > 0 && sorted[k] < sorted[k-1]; k-- {
			sorted[k], sorted[k-1] = sorted[k-1], sorted[k]
		}
	}
	return sorted[len(sorted)/2]
}

// TestScrapeCostsNothingThatGrows counts what a scrape allocates and sends with
// few and with many snapshots.
func TestScrapeCostsNothingThatGrows(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{2 * gib}})
	r := start(t, t.TempDir(), settings(pool))
	r.settled(uuid)
	cost := func() (allocations float64, series int) {
		ch := make(chan prometheus.Metric, 1000)
		allocations = testing.AllocsPerRun(20, func() {
			r.Collect(ch)
			for series = 0; len(ch) > 0; series++ {
				<-ch
			}
		})
		return allocations, series
	}
	manySnapshots(t, r, pool, uuid, 2)
	few, fewSeries := cost()
	manySnapshots(t, r, pool, uuid, 1000)
	many, manySeries := cost()
	if many > few+2 || manySeries != fewSeries {
		t.Errorf("with 2 snapshots %.0f allocations and %d series, with 1,002 %.0f and %d", few, fewSeries, many, manySeries)
	}
}
