package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

var (
	oracleN    = flag.Int("oracle.n", 40, "number of pools that TestOracle compares with the kernel")
	oracleSeed = flag.Uint64("oracle.seed", 1, "seed of the first of these pools; the others have the next ones")
)

// TestOracle makes random pools, reads btrfs_pool_free_bytes from one running
// daemon and then lets the kernel tell the truth by filling them.
//
// A pool that the kernel itself breaks (an aborted transaction makes it
// read-only), be it on the way or when it is full, tells nothing. It is named in the output and replaced by the next
// seed; more than one in ten is a failure.
func TestOracle(t *testing.T) {
	btrfstest.Require(t)
	o := &oracle{serve: startServe(t, 1, machineArgs()), wanted: *oracleN, next: *oracleSeed}
	var wg sync.WaitGroup
	for range max(2, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for {
				seed, ok := o.take()
				if !ok {
					return
				}
				t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { o.compare(t, seed) })
			}
		})
	}
	wg.Wait()

	t.Logf("\n%s", o.table())
	for _, d := range o.discarded {
		t.Logf("discarded, because there was no truth to compare with: %s", d)
	}
	if len(o.discarded)*10 > o.wanted {
		t.Errorf("%d of %d pools were discarded", len(o.discarded), o.wanted)
	}
}

// TestUnprivilegedFree compares what is exported without CAP_SYS_ADMIN, which
// is what shows where the chunks lie, with the kernel: on pools without holes
// it is to be within 1 %. That the series are the same is tested with the
// faults.
func TestUnprivilegedFree(t *testing.T) {
	btrfstest.Require(t)
	serve := startServe(t, 1, machineArgs(), through(t, "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"))
	for i, profile := range btrfs.Profiles() {
		t.Run(profile.String(), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			var sizes []int64
			for range max(4, profile.Attributes().DevsMin) {
				sizes = append(sizes, logUniform(rng, 4*gib, tib)/mib*mib)
			}
			pool, err := btrfstest.New(t).NewPool(btrfstest.PoolOptions{Sizes: sizes, Data: profile.String(), Metadata: "raid1"})
			must(t, err)
			series, err := scrapePool(serve, pool.UUID, "pool", "capacity")
			must(t, err)
			if exact, ok := series["btrfs_pool_free_exact"]; !ok || exact != 0 {
				t.Errorf("btrfs_pool_free_exact is %v (there: %t), want 0", exact, ok)
			}
			free := series.bytes(t, "btrfs_pool_free_bytes")
			truth, err := pool.FillFallocate()
			must(t, err)
			deviation := float64(free-truth) / float64(truth)
			t.Logf("%s: exported %d, true %d: %+.4f %%", listSizes(sizes), free, truth, 100*deviation)
			if math.Abs(deviation) > 0.01 {
				t.Errorf("btrfs_pool_free_bytes is %d, but %d bytes could be allocated", free, truth)
			}
		})
	}
}

// oracle is the state of one TestOracle, shared by its workers.
type oracle struct {
	serve  *process
	wanted int

	mu        sync.Mutex
	next      uint64
	started   int
	compared  []comparison
	discarded []string
}

// take returns the next seed as long as pools are wanted.
func (o *oracle) take() (uint64, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.started-len(o.discarded) >= o.wanted {
		return 0, false
	}
	o.started++
	o.next++
	return o.next - 1, true
}

// comparison is what was said of the free space of a pool, and the truth.
type comparison struct {
	seed      uint64
	pool      string
	truth     int64
	estimates [estimators]btrfs.Opt[int64]
}

// The estimators of free space.
const (
	governor = iota
	statfs
	usage
	mismatchFormula
	estimators
)

var estimatorNames = [estimators]string{
	governor: "governor", statfs: "df", usage: "btrfs fi usage", mismatchFormula: "min(sum/2, sum-largest)",
}

// leastTolerance is the error in bytes that is tolerated however little is
// free. Relative errors of anything smaller are told relative to it.
const leastTolerance = mib

// relativeError is the error of an estimator in percent of the truth.
func (c *comparison) relativeError(estimator int) float64 {
	return float64(c.estimates[estimator].Value-c.truth) / float64(max(c.truth, leastTolerance)) * 100
}

// compare makes the pool of a seed and compares.
func (o *oracle) compare(t *testing.T, seed uint64) {
	t.Logf("reproduce with: make oracle N=1 SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	plan, pool := newRandomPool(t, rng)
	log, err := plan.kind.prepare(pool, rng, plan)
	if err == nil {
		var done string
		if done, err = makeMetadataRoom(pool); done != "" {
			log = append(log, done)
		}
	}
	if len(log) > 0 {
		t.Logf("steps:\n\t%s", strings.Join(log, "\n\t"))
	}
	c := comparison{seed: seed, pool: plan.String()}
	if err == nil {
		err = o.measure(t, pool, &c)
	}
	if errors.Is(err, unix.EROFS) || errors.Is(err, errCleaned) || commandFailedWith(err, "Read-only file system") {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.discarded = append(o.discarded, fmt.Sprintf("seed %d (%s): %v", seed, plan, err))
		return
	}
	must(t, err)

	o.mu.Lock()
	o.compared = append(o.compared, c)
	o.mu.Unlock()
	difference := c.estimates[governor].Value - c.truth
	t.Logf("true %d, exported %d (%+d), df %+.3f %%, usage %+.3f %%", c.truth, c.estimates[governor].Value, difference,
		c.relativeError(statfs), c.relativeError(usage))
	if tolerated := max(c.truth/1000, leastTolerance); max(difference, -difference) > tolerated {
		t.Errorf("btrfs_pool_free_bytes is %d, but %d bytes could be allocated: wrong by %+d, %d are tolerated",
			c.estimates[governor].Value, c.truth, difference, tolerated)
	}
}

// newRandomPool draws a pool and makes it.
func newRandomPool(t *testing.T, rng *rand.Rand) (*poolPlan, *btrfstest.Pool) {
	t.Helper()
	rig := btrfstest.New(t)
	for {
		plan := newPoolPlan(rng)
		t.Logf("%s; bytes: %v", plan, plan.sizes)
		pool, err := rig.NewPool(plan.options())
		if commandFailedWith(err, "not enough free space to allocate chunk") {
			t.Log("mkfs.btrfs refuses this one; draw again")
			continue
		}
		must(t, err)
		return plan, pool
	}
}

// errCleaned says that the kernel's cleaner removed an empty block group, at a
// time of its own choice, after the pool was read: what was filled then is
// another pool than the one that was read.
var errCleaned = errors.New("the kernel removed an empty block group while the pool was compared")

// measure fills in the estimates and the truth, for which it fills the pool.
func (o *oracle) measure(t *testing.T, pool *btrfstest.Pool, c *comparison) error {
	before, err := readPool(pool)
	if err != nil {
		return err
	}
	series, err := o.scrapeFresh(t, pool)
	if err != nil {
		return err
	}
	available, err := df(pool)
	if err != nil {
		return err
	}
	estimated, err := filesystemUsage(pool)
	if err != nil {
		return err
	}
	c.estimates[governor] = btrfs.Some(series.bytes(t, "btrfs_pool_free_bytes"))
	c.estimates[statfs] = btrfs.Some(available)
	c.estimates[usage] = btrfs.Some(estimated)
	c.estimates[mismatchFormula] = twoCopies(before)

	if c.truth, err = pool.FillFallocate(); err != nil {
		return err
	}
	after, err := readPool(pool)
	if err != nil {
		return err
	}
	t.Logf("before: %s", describeSpaces(before))
	t.Logf("after:  %s", describeSpaces(after))

	if after.ReadOnly.Value {
		// With mixed block groups the commit of a full pool may find no room.
		// What it gave is then gone again, and no truth.
		return fmt.Errorf("commit of the full pool %s: %w", pool.UUID, unix.EROFS)
	}
	for _, s := range before.Spaces {
		if now := after.Space(s.Type); s.Type != btrfs.Data && now != nil && now.Total < s.Total {
			return fmt.Errorf("%s of pool %s shrank from %d to %d bytes: %w", s.Type, pool.UUID, s.Total, now.Total, errCleaned)
		}
	}
	full, err := o.scrapeFresh(t, pool)
	if err != nil {
		return err
	}
	if got := full.bytes(t, "btrfs_pool_free_bytes"); got > leastTolerance {
		t.Errorf("btrfs_pool_free_bytes is %d when the pool is full", got)
	}
	if got := series.bytes(t, "btrfs_pool_statfs_free_bytes"); got != available {
		t.Errorf("btrfs_pool_statfs_free_bytes is %d, statfs says %d", got, available)
	}
	if got, want := series.bytes(t, "btrfs_pool_size_bytes"), sum(presentSizes(before)); got != want {
		t.Errorf("btrfs_pool_size_bytes is %d, the devices have %d", got, want)
	}
	if series["btrfs_pool_free_exact"] != 1 {
		t.Errorf("btrfs_pool_free_exact is %v as root", series["btrfs_pool_free_exact"])
	}
	return nil
}

// scrapeFresh returns series that were read after it was called. One scrape is
// not enough: while the pool is being read for another one, as it is here by
// all workers at a time, a scrape shares that reading, which began earlier. The
// next scrape cannot.
func (o *oracle) scrapeFresh(t *testing.T, pool *btrfstest.Pool) (poolSeries, error) {
	t.Helper()
	first, err := scrapePool(o.serve, pool.UUID, "pool", "capacity")
	if err != nil {
		return nil, err
	}
	second, err := scrapePool(o.serve, pool.UUID, "pool", "capacity")
	if err != nil {
		return nil, err
	}
	const free = "btrfs_pool_free_bytes"
	if first[free] != second[free] {
		t.Logf("a first scrape said %s %d, the next one %d", free, int64(first[free]), int64(second[free]))
	}
	return second, nil
}

// commandFailedWith reports whether a program of btrfs-progs failed with the
// message given, which is all that it tells of the kernel's error.
func commandFailedWith(err error, message string) bool {
	command, ok := errors.AsType[*btrfstest.CommandError](err)
	return ok && strings.Contains(command.Stderr, message)
}

// twoCopies is the well-known min(sum/2, sum-largest), less what is used. It
// claims something of raid1 only.
func twoCopies(p *btrfs.Pool) btrfs.Opt[int64] {
	data := p.Space(btrfs.Data)
	if data == nil || len(data.Profiles) != 1 || data.Profiles[0].Profile != btrfs.RAID1 {
		return btrfs.Opt[int64]{}
	}
	sizes := presentSizes(p)
	return btrfs.Some(min(sum(sizes)/2, sum(sizes)-slices.Max(sizes)) - int64(data.Used))
}

func presentSizes(p *btrfs.Pool) []int64 {
	var sizes []int64
	for _, d := range p.Devices {
		if !d.Missing.Value {
			sizes = append(sizes, int64(d.Size.Value))
		}
	}
	return sizes
}

func sum(values []int64) int64 {
	var total int64
	for _, v := range values {
		total += v
	}
	return total
}

// describeSpaces tells the allocation of a pool in one line.
func describeSpaces(p *btrfs.Pool) string {
	var parts []string
	for _, s := range p.Spaces {
		part := fmt.Sprintf("%s %d of %d", s.Type, s.Used, s.Total)
		if s.ReadOnly > 0 {
			part += fmt.Sprintf(", %d read-only", s.ReadOnly)
		}
		for _, profile := range s.Profiles {
			part += fmt.Sprintf(", %s %d of %d", profile.Profile, profile.Used, profile.Total)
		}
		parts = append(parts, part)
	}
	return fmt.Sprintf("%s; global reserve %d; %d chunks", strings.Join(parts, "; "), p.GlobalReserve.Size.Value, len(p.Chunks.Value))
}

// table shows all comparisons, and the worst and the median error of each
// estimator.
func (o *oracle) table() string {
	slices.SortFunc(o.compared, func(a, b comparison) int { return int(a.seed) - int(b.seed) })
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	row(w, "seed", "true", estimatorNames[:], "  pool")
	var relative [estimators][]float64
	for i := range o.compared {
		c := &o.compared[i]
		var cells []string
		for e := range c.estimates {
			if !c.estimates[e].Known {
				cells = append(cells, "-")
				continue
			}
			relative[e] = append(relative[e], math.Abs(c.relativeError(e)))
			cells = append(cells, fmt.Sprintf("%s %+9.3f %%", sizeOf(c.estimates[e].Value), c.relativeError(e)))
		}
		row(w, fmt.Sprint(c.seed), sizeOf(c.truth), cells, "  "+c.pool)
	}
	for _, statistic := range []struct {
		name string
		of   func(sorted []float64) float64
	}{
		{"worst", func(sorted []float64) float64 { return sorted[len(sorted)-1] }},
		{"median", func(sorted []float64) float64 { return sorted[len(sorted)/2] }},
	} {
		var cells []string
		for e := range relative {
			if len(relative[e]) == 0 {
				cells = append(cells, "-")
				continue
			}
			slices.Sort(relative[e])
			cells = append(cells, fmt.Sprintf("%9.3f %%", statistic.of(relative[e])))
		}
		row(w, "", statistic.name, cells, "")
	}
	w.Flush()
	return out.String()
}

// row writes a row of the table, the last cell of which is aligned left.
func row(w io.Writer, seed, truth string, cells []string, pool string) {
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", seed, truth, strings.Join(cells, "\t"), pool)
}

// sizeOf is a size for people; an estimate may be negative.
func sizeOf(bytes int64) string {
	if bytes < 0 {
		return "-" + humanize.IBytes(uint64(-bytes))
	}
	return humanize.IBytes(uint64(bytes))
}

// poolPlan is a random pool before it is made.
type poolPlan struct {
	kind           poolKind
	data, metadata btrfs.Profile
	mixed          bool
	sizes          []int64
}

// poolKind is what happened to a pool.
type poolKind struct {
	name string
	// profiles that such a pool may have.
	profiles []btrfs.Profile
	// prepare takes the new pool there, and returns a line for each step.
	prepare func(*btrfstest.Pool, *rand.Rand, *poolPlan) ([]string, error)
}

func poolKinds() []poolKind {
	return []poolKind{
		{"fresh", btrfs.Profiles(), func(*btrfstest.Pool, *rand.Rand, *poolPlan) ([]string, error) { return nil, nil }},
		{"with holes", btrfs.Profiles(), makeHoles},
		{"aged", btrfs.Profiles(), age},
		{"aged", btrfs.Profiles(), age},
		{"half-converted", btrfs.Profiles(), convertHalf},
		{"degraded", redundantProfiles(), degrade},
	}
}

func redundantProfiles() []btrfs.Profile {
	return slices.DeleteFunc(btrfs.Profiles(), func(p btrfs.Profile) bool { return p.Attributes().ToleratedFailures == 0 })
}

// Bounds of the random pools.
const (
	leastDisk   = 300 * mib
	largestDisk = 8 * tib
	mostDisks   = 8
)

// newPoolPlan draws a pool.
func newPoolPlan(rng *rand.Rand) *poolPlan {
	kinds := poolKinds()
	plan := &poolPlan{kind: kinds[rng.IntN(len(kinds))]}
	plan.data = pick(rng, plan.kind.profiles)
	disks := max(1+rng.IntN(mostDisks), plan.data.Attributes().DevsMin)
	plan.metadata = pick(rng, possibleProfiles(plan.kind.profiles, disks))
	if rng.IntN(10) == 0 {
		plan.mixed = true
		plan.metadata = plan.data
	}
	for range disks {
		size := logUniform(rng, leastDisk, largestDisk)
		plan.sizes = append(plan.sizes, size-size%(4*kib))
	}
	return plan
}

func (p *poolPlan) options() btrfstest.PoolOptions {
	return btrfstest.PoolOptions{Sizes: p.sizes, Data: p.data.String(), Metadata: p.metadata.String(), Mixed: p.mixed}
}

func (p *poolPlan) String() string {
	profiles := fmt.Sprintf("%s/%s", p.data, p.metadata)
	if p.mixed {
		profiles = "mixed " + p.data.String()
	}
	return fmt.Sprintf("%s %s on %s", p.kind.name, profiles, listSizes(p.sizes))
}

func pick[T any](rng *rand.Rand, from []T) T { return from[rng.IntN(len(from))] }

func possibleProfiles(from []btrfs.Profile, disks int) []btrfs.Profile {
	return slices.DeleteFunc(slices.Clone(from), func(p btrfs.Profile) bool { return p.Attributes().DevsMin > disks })
}

// logUniform draws from [least, most] with each order of magnitude as likely
// as the other.
func logUniform(rng *rand.Rand, least, most int64) int64 {
	return int64(float64(least) * math.Pow(float64(most)/float64(least), rng.Float64()))
}

// age ages the pool as use does.
//
// After a relocation that found no room the kernel goes on refusing new chunks
// of the type, whatever their profile, until a chunk is freed, a device added
// or the filesystem mounted anew: space_info->full stays set
// (btrfs_chunk_alloc in fs/btrfs/block-group.c), also where the device that
// could not be removed takes chunks again. Nothing tells user space. So it is
// mounted anew here.
func age(pool *btrfstest.Pool, rng *rand.Rand, _ *poolPlan) ([]string, error) {
	var log []string
	for range 4 + rng.IntN(9) {
		done, err := pool.Age(rng, 1)
		log = append(log, done...)
		if err != nil {
			return log, err
		}
		if last := log[len(log)-1]; strings.Contains(last, ": refused: ") && !strings.HasPrefix(last, "allocate") {
			log = append(log, "mount anew")
			if err := remount(pool); err != nil {
				return log, err
			}
		}
	}
	return log, settle(pool)
}

// makeHoles leaves chunks that are hardly used, and holes between them.
func makeHoles(pool *btrfstest.Pool, rng *rand.Rand, plan *poolPlan) ([]string, error) {
	log, err := scatter(pool, rng, plan, rng.Float64()/2)
	if err != nil {
		return log, err
	}
	return log, settle(pool)
}

// convertHalf stops on the way from one data profile to another.
func convertHalf(pool *btrfstest.Pool, rng *rand.Rand, plan *poolPlan) ([]string, error) {
	log, err := scatter(pool, rng, plan, 0)
	if err != nil {
		return log, err
	}
	data := pick(rng, possibleProfiles(btrfs.Profiles(), len(plan.sizes))).String()
	metadata := ""
	if plan.mixed {
		metadata = data
	}
	// Small pieces only: relocation writes what was only allocated.
	filters := []string{fmt.Sprintf("limit=%d", 1+rng.IntN(4)), fmt.Sprintf("usage=%d", usageToMove(plan.sizes))}
	log = append(log, fmt.Sprintf("convert data to %s, %s", data, strings.Join(filters, ",")))
	if err := pool.Convert(data, metadata, filters...); err != nil {
		if !commandFailedWith(err, "No space left on device") {
			return log, err
		}
		log = append(log, "refused for want of space; mount anew") // see age
		if err := remount(pool); err != nil {
			return log, err
		}
	}
	return log, settle(pool)
}

// degrade takes away as many devices as each profile tolerates, or fewer.
func degrade(pool *btrfstest.Pool, rng *rand.Rand, plan *poolPlan) ([]string, error) {
	var log []string
	if rng.IntN(3) > 0 {
		var err error
		if log, err = scatter(pool, rng, plan, 0.5); err != nil {
			return log, err
		}
	}
	tolerated := min(plan.data.Attributes().ToleratedFailures, plan.metadata.Attributes().ToleratedFailures)
	var gone []uint64
	for _, i := range rng.Perm(len(pool.Disks))[:1+rng.IntN(tolerated)] {
		gone = append(gone, pool.Disks[i].DevID)
	}
	log = append(log, fmt.Sprintf("detach devices %v and mount degraded", gone))
	if err := pool.Detach(gone...); err != nil {
		return log, err
	}
	return log, pool.MountDegraded(false)
}

// largestChunk is about the size of the largest data chunk of a pool.
func largestChunk(sizes []int64) int64 { return min(sum(sizes)/10, 10*gib) }

// usageToMove is the usage in percent up to which chunks may be relocated, so
// that no more than about 512 MiB are written for each.
func usageToMove(sizes []int64) int64 {
	return min(90, max(1, 512*mib*100/largestChunk(sizes)))
}

// scatter fills some chunks and deletes most of the files in them again, all
// but about the share of large ones to keep: it leaves chunks with little in
// them and empty ones.
func scatter(pool *btrfstest.Pool, rng *rand.Rand, plan *poolPlan, keep float64) ([]string, error) {
	var large []string
	full := false
	allocate := func(name string, size int64) error {
		err := pool.Allocate(name, size)
		if errors.Is(err, unix.ENOSPC) {
			full = true
			return nil
		}
		return err
	}
	rounds, done := 3+rng.IntN(15), 0
	for ; done < rounds && !full; done++ {
		if err := allocate(fmt.Sprintf("small-%d", done), logUniform(rng, 64*kib, min(8*mib, largestChunk(plan.sizes)))); err != nil {
			return nil, err
		}
		name := fmt.Sprintf("large-%d", done)
		large = append(large, name)
		if err := allocate(name, int64((0.3+2*rng.Float64())*float64(largestChunk(plan.sizes)))); err != nil {
			return nil, err
		}
	}
	deleted := 0
	for _, name := range large {
		if rng.Float64() < keep {
			continue
		}
		// The last one may not have come into being.
		if err := os.Remove(pool.Path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		deleted++
	}
	log := []string{fmt.Sprintf("allocate %d small and %d large files, delete %d of the large ones (out of space: %t)", done, done, deleted, full)}
	return log, pool.Sync()
}

// makeMetadataRoom makes the kernel allocate another metadata chunk where there
// is little room left in those there are, and says what it did.
//
// What is exported is free as long as metadata needs no new chunk. A pool that
// needs one right now (mkfs.btrfs begins with 8 MiB of single metadata) would
// otherwise be filled while metadata has no room: the first fallocate that asks
// for too much turns all the rest into data chunks, and then none succeeds.
func makeMetadataRoom(pool *btrfstest.Pool) (string, error) {
	const (
		least     = 16 * mib
		perDisk   = 2.0 / (1 << 20) // of the extent and chunk items that a fill makes
		batch     = 100
		inlineMax = 2000 // larger files take data
	)
	content := make([]byte, inlineMax)
	for files := 0; ; files += batch {
		if err := pool.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
			return "", err
		}
		facts, err := readPool(pool)
		if err != nil {
			return "", err
		}
		metadata := facts.Space(btrfs.Metadata)
		if metadata == nil {
			return "", nil // mixed
		}
		room := int64(metadata.Total) - int64(metadata.Used) - int64(facts.GlobalReserve.Size.Value)
		done := ""
		if files > 0 {
			done = fmt.Sprintf("write %d inline files, for another metadata chunk", files)
		}
		if room >= least+int64(perDisk*float64(sum(presentSizes(facts)))) {
			return done, nil
		}
		for i := range batch {
			err := os.WriteFile(pool.Path(fmt.Sprintf("inline-%d", files+i)), content, 0o644)
			if errors.Is(err, unix.ENOSPC) {
				return done + " (out of space)", nil
			}
			if err != nil {
				return done, err
			}
		}
	}
}

// settle makes the kernel delete the block groups that are empty, which it
// otherwise does at leisure: btrfs_remount_ro in fs/btrfs/super.c ends with a
// last pass over them.
func settle(pool *btrfstest.Pool) error {
	if err := pool.Remount("ro"); err != nil {
		return err
	}
	return pool.Remount("rw")
}
