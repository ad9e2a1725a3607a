package snapshot_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

// TestSizesAreWhatDeletingGivesBack writes and takes snapshots at random, with
// reflinks between files, subvolumes and snapshots, and then deletes snapshots
// one by one: the data in use falls by what was foretold.
func TestSizesAreWhatDeletingGivesBack(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rig := btrfstest.New(t)
			pool, uuid := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{4 * gib}, Data: "single"})
			r := start(t, t.TempDir(), settings(pool))
			rng := rand.New(rand.NewPCG(seed, 8))
			for range 12 {
				for range 1 + rng.IntN(8) {
					change(t, pool, rng)
				}
				must(t, pool.Sync())
				r.take(uuid)
			}
			var lookups uint64
			for range 10 {
				list, err := r.List(context.Background(), uuid, true)
				must(t, err)
				if list.Sizes.Method != "extents" {
					t.Fatalf("found by %s", list.Sizes.Method)
				}
				lookups += list.Sizes.Lookups
				s := list.Snapshots[rng.IntN(len(list.Snapshots))]
				if s.Exclusive == nil {
					t.Fatalf("the size of %s is not known", s.Name)
				}
				before := dataUsed(t, pool, uuid)
				progs(t, "subvolume", "delete", "-c", pool.Path(s.Path))
				progs(t, "subvolume", "sync", pool.Mountpoint)
				must(t, pool.Sync())
				if freed := before - dataUsed(t, pool, uuid); freed != *s.Exclusive {
					t.Errorf("deleting %s gave back %d bytes, foretold were %d", s.Name, freed, *s.Exclusive)
				}
			}
			t.Logf("%d lookups", lookups)
		})
	}
}

// change does something to a file of one of the subvolumes.
func change(t *testing.T, pool *btrfstest.Pool, rng *rand.Rand) {
	t.Helper()
	subvolume := []string{"@", "@home"}[rng.IntN(2)]
	path := pool.Path(fmt.Sprintf("%s/f%d", subvolume, rng.IntN(12)))
	// Extents of file data, and none that stands inline in the metadata.
	data := make([]byte, 8192+rng.IntN(512<<10))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	switch rng.IntN(5) {
	case 0:
		_ = os.Remove(path)
	case 1: // a part of it anew
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		_, err = f.WriteAt(data[:4096*(1+rng.IntN(2))], 4096*rng.Int64N(64))
		must(t, err)
		must(t, f.Close())
	case 2: // a reflink of another file, or of one in a snapshot
		all, err := filepath.Glob(pool.Path("*/f*"))
		must(t, err)
		old, err := filepath.Glob(pool.Path(".snapshots/*/f*"))
		must(t, err)
		all = append(all, old...)
		if len(all) == 0 {
			return
		}
		from, err := os.Open(all[rng.IntN(len(all))])
		must(t, err)
		defer from.Close()
		to, err := os.Create(pool.Path(fmt.Sprintf("%s/f%d", subvolume, 12+rng.IntN(4))))
		must(t, err)
		must(t, unix.IoctlFileClone(int(to.Fd()), int(from.Fd())))
		must(t, to.Close())
	default:
		must(t, os.WriteFile(path, data, 0o600))
	}
}

// dataUsed returns the bytes of data block groups that are in use.
func dataUsed(t *testing.T, pool *btrfstest.Pool, uuid btrfs.UUID) uint64 {
	t.Helper()
	client := btrfs.NewClient(btrfs.DefaultPaths())
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	p, err := client.ReadPool(f, &btrfs.Mount{UUID: uuid}, pool.Mountpoint)
	must(t, err)
	return p.Space(btrfs.Data).Used
}

// TestSizesAreThoseOfQuotas has quotas on, which count metadata too.
func TestSizesAreThoseOfQuotas(t *testing.T) {
	rig := btrfstest.New(t)
	pool, uuid := newPool(t, rig, btrfstest.PoolOptions{})
	r := start(t, t.TempDir(), settings(pool))
	r.take(uuid)
	must(t, os.Remove(pool.Path("@/file")))
	must(t, pool.Sync())
	sizes := func(method string) map[string]uint64 {
		t.Helper()
		list, err := r.List(context.Background(), uuid, true)
		must(t, err)
		if list.Sizes.Method != method {
			t.Errorf("found by %s, want %s", list.Sizes.Method, method)
		}
		got := make(map[string]uint64)
		for _, s := range list.Snapshots {
			if s.Exclusive == nil {
				t.Fatalf("the size of %s is not known", s.Name)
			}
			got[*s.Subvolume] = *s.Exclusive
		}
		return got
	}
	if got := sizes("extents"); got["@"] != uint64(mib) || got["@home"] != 0 {
		t.Errorf("by extents: %v", got)
	}
	progs(t, "quota", "enable", pool.Mountpoint)
	progs(t, "quota", "rescan", "-w", pool.Mountpoint)
	must(t, pool.Sync())
	if got := sizes("qgroups"); got["@"] < uint64(mib) || got["@"] > uint64(mib)+64<<10 || got["@home"] > 64<<10 {
		t.Errorf("by quotas: %v", got)
	}
	progs(t, "quota", "disable", pool.Mountpoint)
	must(t, pool.Sync())
	if got := sizes("extents"); got["@"] != uint64(mib) {
		t.Errorf("with quotas off again: %v", got)
	}
}

// BenchmarkSizes prints what it costs to find the sizes of 100 snapshots of
// 20,000 files, of which 200 change between two.
func BenchmarkSizes(b *testing.B) {
	rig := btrfstest.New(b)
	pool, uuid := newPool(b, rig, btrfstest.PoolOptions{Sizes: []int64{8 * gib}})
	r := start(b, b.TempDir(), settings(pool, func(s *snapshot.PoolSettings) { s.Subvolumes = []string{"@home"} }))
	data := make([]byte, 4096)
	for i := range 20_000 {
		must(b, os.WriteFile(pool.Path(fmt.Sprintf("@home/%d", i)), data, 0o600))
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 100 {
		r.take(uuid)
		for range 200 {
			must(b, os.WriteFile(pool.Path(fmt.Sprintf("@home/%d", rng.IntN(20_000))), data, 0o600))
		}
		must(b, pool.Sync())
	}
	for b.Loop() {
		began := time.Now()
		list, err := r.List(context.Background(), uuid, true)
		must(b, err)
		b.ReportMetric(time.Since(began).Seconds(), "s/sizes")
		b.ReportMetric(float64(list.Sizes.Extents), "extents")
		b.ReportMetric(float64(list.Sizes.Lookups), "lookups")
	}
	b.ReportMetric(0, "ns/op")
}
