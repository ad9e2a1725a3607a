//go:build linux

package main

import (
	"context"
	"strings"
	"testing"

	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

func newBenchPool(tb testing.TB, make func(*btrfstest.Rig) ([]*btrfstest.Pool, error)) *btrfstest.Pool {
	tb.Helper()
	pools, err := make(btrfstest.New(tb))
	if err != nil {
		tb.Fatal(err)
	}
	return pools[0]
}

func benchmarkRead(b *testing.B, pool *btrfstest.Pool, cached bool) {
	mount, source, err := openPool(pool)
	if err != nil {
		b.Fatal(err)
	}
	reader := source.Reader()
	if _, err := reader.Read(mount); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if !cached {
			reader = source.Reader()
		}
		if _, err := reader.Read(mount); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead4Devices(b *testing.B) {
	pool := newBenchPool(b, smallPools(1))
	b.Run("cached", func(b *testing.B) { benchmarkRead(b, pool, true) })
	b.Run("uncached", func(b *testing.B) { benchmarkRead(b, pool, false) })
}

func BenchmarkRead20000BlockGroups(b *testing.B) {
	pool := newBenchPool(b, largePool(20))
	b.Run("cached", func(b *testing.B) { benchmarkRead(b, pool, true) })
	b.Run("uncached", func(b *testing.B) { benchmarkRead(b, pool, false) })
}

// What a cached reading allocates does not grow with the block groups. A pool of
// 20,000, of which the benchmarks are, takes minutes to make.
func TestCachedReadAllocatesNoMoreOn5000BlockGroups(t *testing.T) {
	small, err := cachedAllocations(newBenchPool(t, smallPools(1)))
	if err != nil {
		t.Fatal(err)
	}
	large, err := cachedAllocations(newBenchPool(t, largePool(5)))
	if err != nil {
		t.Fatal(err)
	}
	if !large.within(small) {
		t.Errorf("a cached reading allocates %s; on a small pool of as many devices %s", large, small)
	}
}

func TestVerdicts(t *testing.T) {
	var v verdicts
	v.add(true, "a", "1 ms", "2 ms")
	var out strings.Builder
	if !v.print(&out) || !strings.Contains(out.String(), "ok") {
		t.Errorf("good figures: %s", out.String())
	}
	v.add(false, "b", "3 ms", "2 ms")
	if v.print(&out) || !strings.Contains(out.String(), "MISSED") {
		t.Errorf("a bad figure: %s", out.String())
	}
}

func TestMissingProgramIsASentence(t *testing.T) {
	err := run(context.Background(), options{governor: "/does/not/exist", nodeExporter: "/bin/true"}, &strings.Builder{})
	if err != nil && !strings.Contains(err.Error(), "make build") {
		t.Error(err)
	}
}

func TestCounting(t *testing.T) {
	const text = "# HELP btrfs_block_groups x\nbtrfs_block_groups{type=\"data\"} 2e+04\nbtrfs_block_groups{type=\"system\"} 1\ngo_info{} 1\n"
	if n := countBlockGroups(text); n != 20001 {
		t.Errorf("%d block groups", n)
	}
	if all, matching := countSeries(text, "btrfs_"); all != 3 || matching != 2 {
		t.Errorf("%d series, %d of btrfs", all, matching)
	}
}
