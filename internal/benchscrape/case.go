//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

const (
	gib = 1 << 30
	tib = 1 << 40

	// manyBlockGroups is the least number of block groups of the large case.
	manyBlockGroups = 20_000
)

// The limits of -check.
const (
	cpuShare      = 0.5      // of node_exporter's CPU time
	residentLimit = 20 << 20 // bytes
	uncachedLimit = 10 * time.Millisecond
)

// benchCase is a set of pools to scrape.
type benchCase struct {
	name string
	make func(*btrfstest.Rig) ([]*btrfstest.Pool, error)
	// between runs before each scrape; nil: the pools stay as they are.
	between func([]*btrfstest.Pool) error
	// limited: the figures have to be within the limits.
	limited bool
	// inProcess has the pool also read in this process.
	inProcess bool
}

func cases() []benchCase {
	return []benchCase{
		{name: "1 pool of 4 devices", make: smallPools(1), limited: true},
		{name: "8 pools of 4 devices", make: smallPools(8), limited: true},
		{name: "1 pool of 4 devices, written to before each scrape", make: smallPools(1), between: writeSomething},
		{name: "1 pool of over 20,000 block groups", make: largePool(20), limited: true, inProcess: true},
	}
}

func smallPools(n int) func(*btrfstest.Rig) ([]*btrfstest.Pool, error) {
	return func(rig *btrfstest.Rig) ([]*btrfstest.Pool, error) {
		var pools []*btrfstest.Pool
		for i := range n {
			pool, err := rig.NewPool(btrfstest.PoolOptions{
				Sizes: []int64{8 * gib, 4 * gib, 2 * gib, 1 * gib},
				Data:  "raid1", Metadata: "raid1",
				Label: fmt.Sprintf("bench%d", i),
			})
			if err != nil {
				return nil, err
			}
			if err := errors.Join(pool.Allocate("file", 2*gib), settle(pool)); err != nil {
				return nil, err
			}
			pools = append(pools, pool)
		}
		return pools, nil
	}
}

// largePool makes a pool of over so many times 1,000 block groups: data in chunks of
// 1 GiB, the largest that raid1 makes.
func largePool(thousands int) func(*btrfstest.Rig) ([]*btrfstest.Pool, error) {
	return func(rig *btrfstest.Rig) ([]*btrfstest.Pool, error) {
		pool, err := rig.NewPool(btrfstest.PoolOptions{
			Sizes: []int64{11 * tib, 11 * tib, 11 * tib, 11 * tib},
			Data:  "raid1", Metadata: "raid1",
			Label: "bench",
		})
		if err != nil {
			return nil, err
		}
		for i := range thousands {
			if err := pool.Allocate(fmt.Sprintf("file%d", i), tib); err != nil {
				return nil, err
			}
		}
		return []*btrfstest.Pool{pool}, settle(pool)
	}
}

// settle ends the transaction that made the chunks, and runs one more: hardly
// any pool in use has its newest chunk from its last transaction.
func settle(pool *btrfstest.Pool) error {
	return errors.Join(pool.Sync(), pool.Allocate("settled", 1<<20), pool.Sync())
}

// writeSomething changes how much of each pool is used. The kernel counts what
// was written when it commits it.
func writeSomething(pools []*btrfstest.Pool) error {
	for _, pool := range pools {
		file, err := os.OpenFile(pool.Path("busy"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		info, err := file.Stat()
		if err == nil {
			err = unix.Fallocate(int(file.Fd()), 0, info.Size(), 64<<10)
		}
		if err := errors.Join(err, file.Close(), pool.Sync()); err != nil {
			return err
		}
	}
	return nil
}

func (c *benchCase) run(ctx context.Context, o options, out io.Writer, limits *verdicts) (err error) {
	rig, err := newRig(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rig.Close()) }()
	pools, err := c.make(rig)
	if err != nil {
		return err
	}
	var uuids []string
	for _, p := range pools {
		uuids = append(uuids, p.UUID)
	}
	if err := makeSysfsView(rig.Dir(), uuids); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeSysfsView(rig.Dir(), uuids)) }()

	subjects, err := startAll(ctx, o, rig.Dir())
	defer func() {
		for _, s := range subjects {
			s.client.close()
			s.process.stop()
		}
	}()
	if err != nil {
		return err
	}
	between := func() error { return nil }
	if c.between != nil {
		between = func() error { return c.between(pools) }
	}
	blockGroups, err := takeTurns(ctx, o, subjects, between)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s (%d block groups): %d scrapes each, in %d blocks by turns\n", c.name, blockGroups, o.scrapes, o.blocks)
	rows := [][]string{{"", "CPU/scrape", "latency p50", "p99", "RSS", "anonymous", "series", "btrfs series", "body"}}
	for _, s := range subjects {
		resident, anonymous, err := s.process.memory()
		if err != nil {
			return err
		}
		s.resident = resident
		rows = append(rows, []string{
			s.process.name, milliseconds(s.cpuMedian()), milliseconds(quantile(s.latencies, 0.5)), milliseconds(quantile(s.latencies, 0.99)),
			mebibytes(resident), mebibytes(anonymous), fmt.Sprint(s.series), fmt.Sprint(s.btrfsSeries), fmt.Sprintf("%.1f KiB", float64(s.body)/1024),
		})
	}
	printTable(out, rows)

	if c.limited {
		governor, nodeExporter := subjects[0], subjects[1]
		share := float64(governor.cpuMedian()) / float64(nodeExporter.cpuMedian())
		limits.add(share <= cpuShare, c.name+": CPU per scrape, of node_exporter's", fmt.Sprintf("%.0f %%", share*100), fmt.Sprintf("%.0f %%", cpuShare*100))
		limits.add(governor.resident <= residentLimit, c.name+": RSS after the scrapes", mebibytes(governor.resident), mebibytes(residentLimit))
	}
	if c.inProcess {
		if blockGroups < manyBlockGroups {
			return fmt.Errorf("the pool has %d block groups, less than %d", blockGroups, manyBlockGroups)
		}
		return readInProcess(o, out, rig, pools[0], limits)
	}
	return nil
}

// newRig makes a rig. It tries again, because the remains of a test that was
// killed a moment ago may not be ready to be swept away.
func newRig(ctx context.Context) (*btrfstest.Rig, error) {
	for attempt := 1; ; attempt++ {
		rig, err := btrfstest.NewRig()
		if err == nil || attempt == 5 {
			return rig, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// subject is an exporter that is measured.
type subject struct {
	process *process
	client  *client

	cpu         []time.Duration // per scrape, of each block
	latencies   []time.Duration
	series      int
	btrfsSeries int
	body        int // bytes on the wire
	resident    uint64
}

func (s *subject) cpuMedian() time.Duration { return quantile(slices.Clone(s.cpu), 0.5) }

// startAll starts btrfs-governor first, then node_exporter as it is run, and
// once more without the metrics about itself, which ours has too.
func startAll(ctx context.Context, o options, rigDir string) ([]*subject, error) {
	var subjects []*subject
	for _, e := range []struct {
		name, program string
		args          []string
	}{
		{"btrfs-governor", o.governor, []string{"serve", "--read-only", "--config.file=/dev/null", "--web.listen-address=ADDRESS"}},
		{"node_exporter", o.nodeExporter, []string{"--collector.disable-defaults", "--collector.btrfs", "--web.listen-address=ADDRESS"}},
		{"node_exporter, no go_* and process_*", o.nodeExporter, []string{
			"--collector.disable-defaults", "--collector.btrfs", "--web.disable-exporter-metrics", "--web.listen-address=ADDRESS",
		}},
	} {
		p, err := start(ctx, rigDir, e.name, e.program, e.args...)
		if err != nil {
			return subjects, err
		}
		subjects = append(subjects, &subject{process: p, client: newClient(p.url)})
	}
	return subjects, nil
}

// takeTurns scrapes the exporters, block by block by turns, and returns the
// number of block groups.
func takeTurns(ctx context.Context, o options, subjects []*subject, between func() error) (blockGroups int, err error) {
	const warmUp = 3
	for _, s := range subjects {
		for range warmUp {
			answer, err := s.client.scrape(ctx)
			if err != nil {
				return 0, err
			}
			prefix := "node_btrfs_"
			if s == subjects[0] {
				prefix = "btrfs_"
				blockGroups = countBlockGroups(answer.text)
			}
			s.series, s.btrfsSeries = countSeries(answer.text, prefix)
			s.body = answer.bytes
		}
	}
	perBlock := o.scrapes / o.blocks
	for range o.blocks {
		for _, s := range subjects {
			var used time.Duration
			for range perBlock {
				if err := between(); err != nil {
					return 0, err
				}
				before, err := s.process.cpu()
				if err != nil {
					return 0, err
				}
				answer, err := s.client.scrape(ctx)
				if err != nil {
					return 0, err
				}
				after, err := s.process.cpu()
				if err != nil {
					return 0, err
				}
				used += after - before
				s.latencies = append(s.latencies, answer.took)
			}
			s.cpu = append(s.cpu, used/time.Duration(perBlock))
		}
	}
	return blockGroups, nil
}

// countBlockGroups adds up btrfs_block_groups.
func countBlockGroups(exposition string) int {
	total := 0
	for line := range strings.Lines(exposition) {
		if !strings.HasPrefix(line, "btrfs_block_groups{") {
			continue
		}
		var n float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, '}')+1:], &n); err == nil {
			total += int(n)
		}
	}
	return total
}
