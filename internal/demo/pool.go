//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

const (
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

// demoPool is the pool of the demonstration.
type demoPool struct {
	rig  *btrfstest.Rig
	pool *btrfstest.Pool
	// rotten is the id of the device that had the corrupted block.
	rotten uint64
}

// newDemoPool makes the pool as such pools come about: it began on two small
// drives, and the large ones came later. With an error it may still return a
// pool, whose rig is to be closed.
func newDemoPool(ctx context.Context) (*demoPool, error) {
	rig, err := btrfstest.NewRig()
	if err != nil {
		return nil, err
	}
	d := &demoPool{rig: rig}
	d.pool, err = rig.NewPool(btrfstest.PoolOptions{
		Sizes: []int64{1 * tib, 2 * tib},
		Data:  "raid1", Metadata: "raid1",
		Label: "demo",
	})
	if err != nil {
		return d, err
	}
	steps := []func() error{
		d.writeFiles,
		// Allocated, not written: the pool is as full, and takes no space.
		func() error { return d.pool.Allocate("backup-2019.tar", 600*gib) },
		func() error { _, err := d.pool.AddDisk(4 * tib); return err },
		func() error { _, err := d.pool.AddDisk(8 * tib); return err },
		func() error { return d.pool.Allocate("films.iso", 1536*gib) },
		d.pool.Sync,
		d.rot,
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return d, err
		}
		if err := step(); err != nil {
			return d, err
		}
	}
	return d, nil
}

// writeFiles writes some small files, so that there is metadata.
func (d *demoPool) writeFiles() error {
	rng := rand.New(rand.NewPCG(8, 4))
	if err := os.Mkdir(d.pool.Path("photos"), 0o755); err != nil {
		return err
	}
	for i := range 200 {
		name := fmt.Sprintf("photos/%03d.jpg", i)
		photo := make([]byte, 16<<10+rng.IntN(64<<10))
		for i := range photo {
			photo[i] = byte(rng.Uint32())
		}
		if err := os.WriteFile(d.pool.Path(name), photo, 0o644); err != nil {
			return err
		}
	}
	return d.pool.Sync()
}

// rot corrupts one copy of a block of a photo and reads it until the kernel
// has met, and repaired, the bad one.
func (d *demoPool) rot() error {
	const photo = "photos/042.jpg"
	copies, err := d.pool.Physical(photo, 0)
	if err != nil {
		return err
	}
	d.rotten = copies[0].DevID
	if err := d.pool.CorruptFile(photo, 0, 0); err != nil {
		return err
	}
	// Which copy is read depends on the id of the thread that reads
	// (find_live_mirror in fs/btrfs/volumes.c).
	for range 64 {
		if err := d.readOnNewThread(photo); err != nil {
			return err
		}
		found, err := d.corruptions()
		if err != nil || found > 0 {
			return err
		}
		if err := d.pool.DropCaches(); err != nil {
			return err
		}
	}
	return fmt.Errorf("the kernel never read the corrupted copy of %s", photo)
}

func (d *demoPool) readOnNewThread(name string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		_, err := os.ReadFile(d.pool.Path(name))
		done <- err
	}()
	return <-done
}

// corruptions is the counter of the device with the rotten block.
func (d *demoPool) corruptions() (uint64, error) {
	stats, err := d.pool.Sysfs(fmt.Sprintf("devinfo/%d/error_stats", d.rotten))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(stats) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "corruption_errs "); ok {
			return strconv.ParseUint(value, 10, 64)
		}
	}
	return 0, errors.New("error_stats has no corruption_errs")
}

// print shows what three programs say of the free space.
func (d *demoPool) print(ctx context.Context, s *process, out io.Writer) error {
	df, err := dfAvailable(ctx, d.pool.Mountpoint)
	if err != nil {
		return err
	}
	usage, err := usageFree(ctx, d.pool.Mountpoint)
	if err != nil {
		return err
	}
	m, err := s.scrape(ctx)
	if err != nil {
		return err
	}
	one := func(name string, labels ...string) float64 {
		return m.value(name, append(labels, "uuid", d.pool.UUID)...)
	}
	free := one("btrfs_pool_free_bytes")
	fmt.Fprintf(out, `
The pool: drives of 1, 2, 4 and 8 TiB, data and metadata RAID1, mounted on
%s. It began on the two small drives, the
large ones came later, and it holds %s.

How much more can be written to it?

`, d.pool.Mountpoint, bytesText(one("btrfs_pool_used_bytes")))
	printTable(out, [][]string{
		{"df", bytesText(df), difference(df, free)},
		{"btrfs filesystem usage", bytesText(usage), difference(usage, free)},
		{"btrfs-governor", bytesText(free), "(make demo VERIFY=1 fills the pool to show that it is right)"},
	})
	fmt.Fprintf(out, "\nWhat else btrfs-governor says:\n\n")
	devid := strconv.FormatUint(d.rotten, 10)
	printTable(out, [][]string{
		{"after a full balance", bytesText(one("btrfs_pool_free_after_balance_bytes")), "could be written"},
		{"stranded by imbalance", bytesText(one("btrfs_pool_stranded_bytes", "reason", "imbalance")), "raw, which a balance gives back"},
		{"stranded by mismatch", bytesText(one("btrfs_pool_stranded_bytes", "reason", "mismatch")), "raw, which only other drives would"},
		{"metadata in one place", fmt.Sprintf("%.0f %%", 100*one("btrfs_metadata_concentration_ratio")), "on the same two of the four drives"},
		{"drives that may fail", fmt.Sprintf("%.0f", one("btrfs_pool_device_failures_tolerated")), "without the loss of a byte"},
		{"corruption errors", fmt.Sprintf("%.0f", one("btrfs_device_errors_total", "type", "corruption", "devid", devid)), "on device " + devid + ", found and repaired when a photo was read"},
	})
	fmt.Fprintln(out)
	return nil
}

// verify fills the pool and compares.
func (d *demoPool) verify(ctx context.Context, s *process, out io.Writer) error {
	m, err := s.scrape(ctx)
	if err != nil {
		return err
	}
	said := m.value("btrfs_pool_free_bytes", "uuid", d.pool.UUID)
	fmt.Fprintln(out, "Filling the pool with fallocate until the kernel says that it is full.")
	got, err := d.pool.FillFallocate()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "It took %.0f bytes, and btrfs-governor had said %.0f: %+.0f.\n", float64(got), said, said-float64(got))
	files, err := os.ReadDir(d.pool.Mountpoint)
	if err != nil {
		return err
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), "fill-") {
			if err := os.Remove(d.pool.Path(f.Name())); err != nil {
				return err
			}
		}
	}
	fmt.Fprintf(out, "The fill is deleted again.\n\n")
	return d.pool.Sync()
}
