package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

var expectedRecord = flag.String("expected.record", "",
	"directory to which TestFreeExpected writes each pool as it was at each checkpoint, as a JSON array")

// TestFreeExpected fills small pools with files of one kind, by writing them,
// and compares btrfs_pool_free_expected_bytes on the way with what then still
// could be written. The smaller the files are, the more metadata they need, up
// to files that lie in the metadata altogether.
//
// Where data runs out, all that can be wrong is the number of metadata chunks,
// so that the figure is exact or off by a whole one. Where metadata runs out,
// every byte of it counts. The test is worth something only with both.
func TestFreeExpected(t *testing.T) {
	btrfstest.Require(t)
	serve := startServe(t, 1, machineArgs())
	const (
		tolerance = 0.01 // of the data that the pool finally holds
		// Where most of what is stored is inline, the pool ends with its
		// metadata, and data is the small part: whether the last chunk became
		// metadata or data weighs as much as in no other pool.
		inlineTolerance = 0.03
		leastGrowth     = 2 // pools that must have needed new metadata chunks
	)
	var grown, outOfMetadata atomic.Int32
	t.Run("pools", func(t *testing.T) {
		for _, tt := range []struct {
			name           string
			files          []int64 // their sizes, in turn
			data, metadata string
			disks          []int64
		}{
			{"files of 64 MiB", []int64{64 * mib}, "raid1", "raid1", []int64{2048 * mib, 1536 * mib, gib, gib}},
			{"files of 1 MiB", []int64{mib}, "raid0", "raid1", []int64{gib, gib, 768 * mib}},
			{"files of 64 KiB", []int64{64 * kib}, "single", "dup", []int64{2560 * mib}},
			{"files of 4 KiB", []int64{4 * kib}, "single", "dup", []int64{1500 * mib}},
			{"files of 4 KiB and inline ones", []int64{4 * kib, 2000}, "raid1", "raid1", []int64{1100 * mib, 1000 * mib, 900 * mib}},
			{"files of 4 KiB and four times as many inline ones", []int64{4 * kib, 2000, 2000, 2000, 2000}, "single", "dup", []int64{2048 * mib}},
			{"files of 16 KiB and inline ones", []int64{16 * kib, 1500}, "raid10", "raid1", []int64{1536 * mib, 1536 * mib, 1280 * mib, gib}},
			{"files of all sizes", []int64{300, mib, 4 * kib, 7 * kib, 128 * kib, 1900, 20 * kib, 4 * kib}, "single", "single", []int64{1536 * mib, gib}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				pool, err := btrfstest.New(t).NewPool(btrfstest.PoolOptions{Sizes: tt.disks, Data: tt.data, Metadata: tt.metadata})
				must(t, err)
				t.Logf("%s/%s on %s", tt.data, tt.metadata, listSizes(tt.disks))
				run := fillRun{serve: serve, pool: pool, writer: &fileWriter{pool: pool, sizes: tt.files}}
				must(t, run.fill())
				if *expectedRecord != "" {
					must(t, run.record(filepath.Join(*expectedRecord, strings.ReplaceAll(tt.name, " ", "-")+".json")))
				}
				if run.metadataChunksMade() > 0 {
					grown.Add(1)
				}
				if run.dataLeft() > 0 {
					outOfMetadata.Add(1)
				}
				if strings.Contains(tt.name, "four times as many inline ones") {
					run.check(t, inlineTolerance)
					return
				}
				run.check(t, tolerance)
			})
		}
	})
	if n := grown.Load(); n < leastGrowth {
		t.Errorf("%d pools needed new metadata chunks from half full on, want %d at least", n, leastGrowth)
	}
	if outOfMetadata.Load() == 0 {
		t.Error("no pool ran out of metadata before it ran out of data")
	}
}

// fillRun is the filling of one pool.
type fillRun struct {
	serve       *process
	pool        *btrfstest.Pool
	writer      *fileWriter
	checkpoints []checkpoint // the last one is of the full pool
}

// checkpoint is the pool at one time on the way.
type checkpoint struct {
	used, expected int64
	facts          *btrfs.Pool
}

// fill writes until nothing fits any more, and looks at the pool at each
// twentieth of it.
func (r *fillRun) fill() error {
	if err := r.look(); err != nil {
		return err
	}
	const parts = 20
	step := r.checkpoints[0].expected / parts
	for due := step; ; {
		err := r.writer.next()
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			return err
		}
		if r.writer.written >= due {
			due += step
			if err := r.look(); err != nil {
				return err
			}
		}
	}
	// The kernel may still hold reservations that it turns out not to need.
	for fits := true; fits; {
		if err := r.pool.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
			return err
		}
		fits = false
		err := r.writer.next()
		for ; err == nil; err = r.writer.next() {
			fits = true
		}
		if !errors.Is(err, unix.ENOSPC) {
			return err
		}
	}
	return r.look()
}

// look notes what is exported, and what the kernel holds after a sync.
func (r *fillRun) look() error {
	if err := r.pool.Sync(); err != nil {
		return err
	}
	series, err := scrapePool(r.serve, r.pool.UUID, "pool", "capacity")
	if err != nil {
		return err
	}
	facts, err := readPool(r.pool)
	if err != nil {
		return err
	}
	r.checkpoints = append(r.checkpoints, checkpoint{
		used:     int64(series["btrfs_pool_used_bytes"]),
		expected: int64(series["btrfs_pool_free_expected_bytes"]),
		facts:    facts,
	})
	return nil
}

// fromHalfFull returns the checkpoints at which the pool was at least half
// full, and what it finally held.
func (r *fillRun) fromHalfFull() ([]checkpoint, int64) {
	final := r.checkpoints[len(r.checkpoints)-1].used
	for i, c := range r.checkpoints {
		if c.used >= final/2 {
			return r.checkpoints[i:], final
		}
	}
	return nil, final
}

// metadataChunksMade is the number of metadata chunks that were made after the
// pool was half full.
func (r *fillRun) metadataChunksMade() int {
	checkpoints, _ := r.fromHalfFull()
	return checkpoints[len(checkpoints)-1].metadataChunks() - checkpoints[0].metadataChunks()
}

// dataLeft is the room that data still has in the full pool, when it is more
// than a rest that no file fits into.
func (r *fillRun) dataLeft() int64 {
	last := r.checkpoints[len(r.checkpoints)-1]
	data := last.facts.Space(btrfs.Data)
	if left := int64(data.Total - data.Used - data.ReadOnly); left > last.used/100 {
		return left
	}
	return 0
}

func (c *checkpoint) metadataChunks() int {
	n := 0
	for i := range c.facts.Chunks.Value {
		if c.facts.Chunks.Value[i].Type == btrfs.Metadata {
			n++
		}
	}
	return n
}

// check compares what was expected at each checkpoint with what was written
// after it.
func (r *fillRun) check(t *testing.T, tolerance float64) {
	t.Helper()
	checkpoints, final := r.fromHalfFull()
	worst := 0.0
	for _, c := range checkpoints {
		left := final - c.used
		deviation := float64(c.expected-left) / float64(final)
		worst = max(worst, math.Abs(deviation))
		ofLeft := ""
		if left > final/100 {
			ofLeft = fmt.Sprintf(" (%+.2f %% of what was left)", 100*float64(c.expected-left)/float64(left))
		}
		t.Logf("%5.1f %% full, %d metadata chunks: expected %s, written %s: %+.2f %%%s", 100*float64(c.used)/float64(final),
			c.metadataChunks(), humanize.IBytes(uint64(c.expected)), humanize.IBytes(uint64(left)), 100*deviation, ofLeft)
	}
	t.Logf("it held %s in %d files, with room left for %s of data; %d metadata chunks were made from half full on; worst error %.2f %%",
		humanize.IBytes(uint64(final)), r.writer.files, humanize.IBytes(uint64(r.dataLeft())), r.metadataChunksMade(), 100*worst)
	if worst > tolerance {
		t.Errorf("btrfs_pool_free_expected_bytes was wrong by %.2f %% of what the pool finally held, %.2f %% are tolerated", 100*worst, 100*tolerance)
	}
}

func (r *fillRun) record(path string) error {
	var pools []*btrfs.Pool
	for _, c := range r.checkpoints {
		pools = append(pools, c.facts)
	}
	text, err := json.Marshal(pools)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

// fileWriter writes files of given sizes in turn, a thousand to a directory.
type fileWriter struct {
	pool    *btrfstest.Pool
	sizes   []int64
	files   int
	written int64 // bytes

	directory string
	content   []byte
}

const filesPerDirectory = 1000

// next writes one file. With ENOSPC it may have written a part of it.
//
// It uses system calls of its own accord: os.WriteFile makes twice as many,
// and there are hundreds of thousands of files.
func (w *fileWriter) next() error {
	if w.files%filesPerDirectory == 0 {
		directory := w.pool.Path(fmt.Sprintf("files-%d", w.files/filesPerDirectory))
		if err := os.Mkdir(directory, 0o755); err != nil {
			return err
		}
		w.directory = directory
	}
	size := w.sizes[w.files%len(w.sizes)]
	if int64(len(w.content)) < size {
		w.content = make([]byte, size)
	}
	fd, err := unix.Open(fmt.Sprintf("%s/%d", w.directory, w.files), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("make file %d: %w", w.files, err)
	}
	w.files++
	for left := w.content[:size]; len(left) > 0; {
		n, err := unix.Write(fd, left)
		if err != nil {
			return errors.Join(fmt.Errorf("write file %d: %w", w.files, err), unix.Close(fd))
		}
		w.written += int64(n)
		left = left[n:]
	}
	return unix.Close(fd)
}
