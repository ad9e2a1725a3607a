package collector

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
)

// Facts are what the collectors translate: one pool as it was read, and what
// follows from it. They are not changed after they are made.
type Facts struct {
	Pool *btrfs.Pool
	// Layout tells where the chunks lie; nil where the devices' sizes are
	// unknown.
	Layout *capacity.Layout
	// Report is nil where the capacity cannot be worked out.
	Report *capacity.Report
	// WorstPair is the worst loss of two devices; known with an exact layout.
	WorstPair btrfs.Opt[capacity.Loss]
	Spread    btrfs.Opt[capacity.MetadataSpread]
}

// Source is where pools come from.
type Source interface {
	// Mounts returns the pools there are now. It may hang with a disk. With an
	// error it returns what it found.
	Mounts() ([]btrfs.Mount, error)
	// Reader returns a new reader for one pool.
	Reader() PoolReader
}

// PoolReader reads one pool again and again. It is used by one goroutine at a
// time.
type PoolReader interface {
	// Read may block as long as a disk hangs. Facts and an error together mean
	// that some facts are unknown. The error is ErrGone for a pool that there
	// no longer is.
	Read(m *btrfs.Mount) (*Facts, error)
}

// ErrGone is returned for a pool that was unmounted since it was found. A
// scrape says nothing of it, as if it had been unmounted a moment earlier.
var ErrGone = errors.New("the pool is gone")

// NewKernelSource returns the pools mounted on this machine.
func NewKernelSource(c *btrfs.Client) Source { return kernelSource{c} }

type kernelSource struct{ client *btrfs.Client }

func (s kernelSource) Mounts() ([]btrfs.Mount, error) { return s.client.Mounts() }
func (s kernelSource) Reader() PoolReader             { return &kernelReader{client: s.client} }

// kernelReader reads one pool and keeps what is dear to work out: the walk of
// the chunk tree and what follows from it.
type kernelReader struct {
	client *btrfs.Client

	tree     btrfs.ChunkTreeState
	walked   time.Time
	walkedBy []btrfs.Device // the devices of the walk
	derived  derived
	report   cachedReport
}

// derived follows from where the chunks lie.
type derived struct {
	layout    *capacity.Layout
	worstPair btrfs.Opt[capacity.Loss]
	spread    btrfs.Opt[capacity.MetadataSpread]
}

func newDerived(l *capacity.Layout) derived {
	d := derived{layout: l}
	if l.Exact {
		d.worstPair = btrfs.Some(l.LossMatrix().WorstPair())
	}
	if spread, ok := l.MetadataSpread(); ok {
		d.spread = btrfs.Some(spread)
	}
	return d
}

// cachedReport keeps the report as long as nothing it depends on changes, and
// beyond that what depends on the layout alone.
type cachedReport struct {
	pool       *btrfs.Pool
	layout     *capacity.Layout
	calculator *capacity.Calculator
	report     *capacity.Report
	err        error
}

func (c *cachedReport) get(p *btrfs.Pool, l *capacity.Layout) (*capacity.Report, error) {
	if c.layout != l {
		*c = cachedReport{layout: l, calculator: capacity.NewCalculator(l)}
	}
	if c.pool == nil || !sameAccounting(c.pool, p) {
		c.pool = p
		c.report, c.err = c.calculator.Report(p)
	}
	return c.report, c.err
}

// sameAccounting tells whether two readings of a pool agree in all that a
// report depends on beside the layout.
func sameAccounting(a, b *btrfs.Pool) bool {
	return a.GlobalReserve.Size == b.GlobalReserve.Size &&
		a.ConvertData == b.ConvertData && a.ConvertMetadata == b.ConvertMetadata && a.ConvertSystem == b.ConvertSystem &&
		slices.EqualFunc(a.Spaces, b.Spaces, func(a, b btrfs.Space) bool {
			return a.Type == b.Type && a.Total == b.Total && a.Used == b.Used && a.ReadOnly == b.ReadOnly &&
				a.MayUse == b.MayUse && a.Reserved == b.Reserved && a.ChunkSize == b.ChunkSize && slices.Equal(a.Profiles, b.Profiles)
		})
}

// maxLayoutAge bounds how long a layout is believed even though the kernel
// says that nothing changed.
const maxLayoutAge = 5 * time.Minute

// Read implements PoolReader.
func (r *kernelReader) Read(m *btrfs.Mount) (*Facts, error) {
	f, mountpoint, err := r.client.Open(m)
	if err != nil {
		return r.readUnreachable(m, err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	var p *btrfs.Pool
	// Accounting and layout have to be of the same moment: what is read before
	// a walk is read again behind it, and the walk is looked at once more.
	const attempts = 4
	for range attempts {
		if p, err = r.client.ReadPool(f, m, mountpoint); p == nil {
			return nil, err
		}
		walked, layoutErr := r.updateLayout(f, p)
		if layoutErr != nil {
			err = errors.Join(err, fmt.Errorf("pool %s: %w", p.UUID, layoutErr))
		}
		if !walked {
			break
		}
	}
	facts := &Facts{
		Pool: p, Layout: r.derived.layout, WorstPair: r.derived.worstPair, Spread: r.derived.spread,
	}
	report, reportErr := r.report.get(p, r.derived.layout)
	facts.Report = report
	return facts, errors.Join(err, reportErr)
}

// readUnreachable reads what sysfs tells of a pool that could not be opened.
// That is no fault where the pool is mounted out of reach: in another mount
// namespace, or beneath another mount.
func (r *kernelReader) readUnreachable(m *btrfs.Mount, openErr error) (*Facts, error) {
	unmounted := errors.Is(openErr, btrfs.ErrUnmounted)
	if m.UUID.IsZero() {
		if unmounted {
			return nil, ErrGone
		}
		return nil, openErr
	}
	p, err := r.client.ReadSysfsPool(m.UUID)
	if p == nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, ErrGone
		}
		return nil, errors.Join(openErr, err)
	}
	p.ReadOnly = m.ReadOnly
	if !unmounted {
		err = errors.Join(openErr, err)
	}
	return &Facts{Pool: p}, err
}

// updateLayout walks the chunk tree if it changed, and tells whether it did.
// Without the privilege, or when the walk fails, the layout is an estimate from
// the devices alone.
func (r *kernelReader) updateLayout(f *btrfs.Filesystem, p *btrfs.Pool) (walked bool, err error) {
	if r.derived.layout != nil && r.derived.layout.Exact && r.sameDevices(p) && time.Since(r.walked) < maxLayoutAge {
		changed, err := f.ChunkTreeChanged(&r.tree)
		if err == nil && !changed {
			return false, nil
		}
	}
	b := capacity.NewBuilder(p.Devices)
	tree, err := f.WalkChunks(b.Add)
	if err == nil {
		var layout *capacity.Layout
		if layout, err = b.Layout(); err == nil {
			r.tree, r.walked, r.walkedBy = tree, time.Now(), p.Devices
			r.derived = newDerived(layout)
			return true, nil
		}
		// Chunks that moved during the walk may seem to overlap.
		walked = true
	}
	if r.derived.layout == nil || r.derived.layout.Exact || !r.sameDevices(p) {
		r.walkedBy = p.Devices
		r.derived = newDerived(capacity.Estimate(p.Devices))
	}
	if errors.Is(err, unix.EPERM) {
		return false, nil // btrfs_pool_free_exact tells
	}
	return walked, err
}

// sameDevices tells whether the devices are as they were at the last walk. The
// chunk tree alone does not tell that a device is missing or read-only.
func (r *kernelReader) sameDevices(p *btrfs.Pool) bool {
	return slices.EqualFunc(p.Devices, r.walkedBy, func(a, b btrfs.Device) bool {
		return a.ID == b.ID && a.Size == b.Size && a.Used == b.Used && a.Missing == b.Missing &&
			a.Writeable == b.Writeable && a.ReplaceTarget == b.ReplaceTarget
	})
}
