//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/collector"
)

// openPool returns the mount of a pool, and where readers for it come from.
func openPool(pool *btrfstest.Pool) (*btrfs.Mount, collector.Source, error) {
	source := collector.NewKernelSource(btrfs.NewClient(btrfs.DefaultPaths()))
	mounts, err := source.Mounts()
	for i := range mounts {
		if mounts[i].UUID.String() == pool.UUID {
			return &mounts[i], source, nil
		}
	}
	return nil, nil, errors.Join(fmt.Errorf("pool %s is not mounted", pool.UUID), err)
}

// readInProcess measures in this process what a reading of a large pool costs
// with an empty cache (all facts, the walk of the chunk tree and the
// simulation), and what it allocates with a full one.
func readInProcess(o options, out io.Writer, rig *btrfstest.Rig, pool *btrfstest.Pool, limits *verdicts) error {
	mount, source, err := openPool(pool)
	if err != nil {
		return err
	}
	var (
		costs       []time.Duration
		blockGroups uint64
	)
	for range o.walks {
		reader := source.Reader()
		start := processCPU()
		facts, err := reader.Read(mount)
		costs = append(costs, processCPU()-start)
		if err != nil {
			return err
		}
		blockGroups = 0
		for _, a := range facts.Layout.Allocations {
			blockGroups += a.BlockGroups
		}
	}
	median, p99 := quantile(costs, 0.5), quantile(costs, 0.99)
	fmt.Fprintf(out, "Reading the pool of %d block groups with an empty cache, %d times: median %s of CPU, p99 %s\n",
		blockGroups, o.walks, milliseconds(median), milliseconds(p99))
	limits.add(median <= uncachedLimit, "uncached reading of 20,000 block groups: CPU", milliseconds(median), milliseconds(uncachedLimit))

	smallPool, err := smallPools(1)(rig)
	if err != nil {
		return err
	}
	small, err := cachedAllocations(smallPool[0])
	if err != nil {
		return err
	}
	large, err := cachedAllocations(pool)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "A cached reading allocates %s; of a small pool of as many devices %s\n\n", large, small)
	limits.add(large.within(small), "cached reading of 20,000 block groups: allocation, of a small pool's", large.String(), small.String())
	return nil
}

// processCPU returns the CPU time that this process has used, its garbage
// collector included.
func processCPU() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		panic(err) // no Linux is without this clock
	}
	return time.Duration(t.Nano())
}

// allocations are those of one reading, on average.
type allocations struct{ count, bytes float64 }

func (a allocations) String() string {
	return fmt.Sprintf("%.0f times, %.0f bytes", a.count, a.bytes)
}

// within allows for the allocations of the runtime itself, and for pooled
// buffers that the garbage collector took (the race detector has a sync.Pool
// lose some on purpose): less than a byte for each block group.
func (a allocations) within(b allocations) bool {
	return a.count <= b.count+2 && a.bytes < b.bytes+20_000
}

// cachedAllocations measures the readings of a pool that does not change.
func cachedAllocations(pool *btrfstest.Pool) (allocations, error) {
	mount, source, err := openPool(pool)
	if err != nil {
		return allocations{}, err
	}
	reader := source.Reader()
	const readings = 200
	var before, after runtime.MemStats
	for i := range readings + 2 {
		if i == 2 { // the cache is warm
			runtime.ReadMemStats(&before)
		}
		if _, err := reader.Read(mount); err != nil {
			return allocations{}, err
		}
	}
	runtime.ReadMemStats(&after)
	return allocations{
		count: float64(after.Mallocs-before.Mallocs) / readings,
		bytes: float64(after.TotalAlloc-before.TotalAlloc) / readings,
	}, nil
}
