package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
)

// TestDeviceLoss takes devices of small pools away, each, each pair and as many
// as break a profile that tolerates two, mounts what is left degraded and
// read-only, and reads all files.
//
//   - Where the layout says that no metadata and no system bytes are lost, the
//     pool must mount. Exactly those files must fail to come back with their
//     checksum of which a stripe lies on lost devices only, as follows from
//     where the chunks of the recorded pool lie; and none where the layout says
//     that nothing is lost.
//   - Where metadata or system bytes are lost, the mount must be refused or
//     files be unreadable. The pools have one chunk of either, so that it is
//     one that is needed.
//   - What is lost should be an error. Where a file of a striped profile is
//     lost in part, kernel 6.18 at times returns zeros for what is lost and no
//     error, in spite of the checksums: seen of raid0, raid5 and raid6, where a
//     read goes over lost stripes and ones that are there. Such files count as
//     lost, which they are; how many they were is logged, and nothing but
//     their lost stripes may differ.
func TestDeviceLoss(t *testing.T) {
	btrfstest.Require(t)
	serve := startServe(t, 1, machineArgs())
	for _, tt := range []struct {
		name           string
		data, metadata string
		disks          []int64
		// leastSets is the number of sets of devices that files must lie on
		// for the test to tell something.
		leastSets int
	}{
		{"raid1 on odd disks", "raid1", "raid1", []int64{1536 * mib, 1280 * mib, gib, 640 * mib}, 3},
		{"raid1c3", "raid1c3", "raid1c3", []int64{gib, gib, 896 * mib, 768 * mib}, 2},
		{"raid10", "raid10", "raid1c3", []int64{768 * mib, 768 * mib, 768 * mib, 768 * mib}, 2},
		{"raid0", "raid0", "raid1c3", []int64{768 * mib, 768 * mib, 640 * mib}, 3},
		{"raid5", "raid5", "raid1c3", []int64{768 * mib, 768 * mib, 640 * mib}, 3},
		{"raid6 and raid1c4", "raid6", "raid1c4", []int64{768 * mib, 768 * mib, 640 * mib, 640 * mib}, 3},
		{"single and raid1", "single", "raid1", []int64{gib, 896 * mib, 768 * mib}, 3},
		{"dup on one disk", "single", "dup", []int64{gib}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := spreadFiles(t, tt.leastSets, btrfstest.PoolOptions{Sizes: tt.disks, Data: tt.data, Metadata: tt.metadata})
			l.compareExported(t, serve)
			for _, ids := range subsets(l.layout, max(2, l.tolerated+1)) {
				l.lose(t, serve, ids)
			}
			l.checkTolerated(t)

			must(t, remount(l.pool))
			if failed, _ := l.read(t); len(failed) > 0 {
				t.Errorf("with all devices back, %q do not come back", failed)
			}
		})
	}
}

// spreadFiles makes a pool whose files lie on so many sets of devices at least. Where
// they come to lie is the kernel's choice: it takes a few tries at times.
func spreadFiles(t *testing.T, leastSets int, options btrfstest.PoolOptions) *lossTest {
	t.Helper()
	rig := btrfstest.New(t)
	const tries = 20
	for seed := range uint64(tries) {
		pool, err := rig.NewPool(options)
		must(t, err)
		l := newLossTest(t, pool, seed)
		if len(l.deviceSets()) >= leastSets {
			return l
		}
		must(t, pool.Unmount())
	}
	t.Fatalf("of %d pools none has files on %d sets of devices", tries, leastSets)
	return nil
}

// lossTest is a pool with known files.
type lossTest struct {
	pool      *btrfstest.Pool
	facts     *btrfs.Pool
	layout    *capacity.Layout
	matrix    *capacity.LossMatrix
	tolerated int
	files     []knownFile
	// broken holds, for each number of devices, whether the loss of so many
	// ever cost something, as observed.
	broken map[int]bool
}

type knownFile struct {
	name    string
	content []byte
	stripes []fileStripe
}

// fileStripe is a part of a file that lies on one device, or on several with a
// copy on each.
type fileStripe struct {
	offset, end int64 // in the file
	copies      []btrfstest.Location
	chunk       *btrfs.Chunk
}

const (
	// stripeLength is how much of a file lies in one stripe (BTRFS_STRIPE_LEN).
	stripeLength = 64 * kib
	// sector is the unit that has a checksum.
	sector = 4 * kib
)

func newLossTest(t *testing.T, pool *btrfstest.Pool, seed uint64) *lossTest {
	t.Helper()
	l := &lossTest{pool: pool, broken: make(map[int]bool)}
	l.writeFiles(t, seed)
	var err error
	l.facts, err = readPool(pool)
	must(t, err)
	l.layout, err = capacity.NewLayout(l.facts)
	must(t, err)
	l.matrix = l.layout.LossMatrix()
	var ok bool
	if l.tolerated, ok = l.layout.FailuresTolerated(); !ok {
		t.Fatal("how many failures are tolerated is unknown")
	}
	for _, blockGroupType := range []btrfs.BlockGroupType{btrfs.Metadata, btrfs.System} {
		if n := l.chunks(blockGroupType); n != 1 {
			t.Fatalf("there are %d %s chunks, want one: what is lost of it must be needed", n, blockGroupType)
		}
	}
	for i := range l.files {
		l.locate(t, &l.files[i])
	}
	t.Logf("%d files in %d data chunks, on the devices %v; %d failures tolerated", len(l.files), l.chunks(btrfs.Data), l.deviceSets(), l.tolerated)
	return l
}

// writeFiles writes some files to each of many chunks: once they are written it
// allocates most of what is left in the chunks there are, so that the next
// files come to lie elsewhere.
func (l *lossTest) writeFiles(t *testing.T, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	const rounds = 30
	for round := range rounds {
		for i, size := range []int64{16 * kib, 64 * kib, 100 * kib, 300 * kib, 2 * mib} {
			name := fmt.Sprintf("file-%d-%d", round, i)
			if err := l.pool.WriteFile(name, size, rng); errors.Is(err, unix.ENOSPC) {
				must(t, os.Remove(l.pool.Path(name)))
				must(t, l.pool.Sync())
				return
			} else if err != nil {
				t.Fatal(err)
			}
			content, err := os.ReadFile(l.pool.Path(name))
			must(t, err)
			l.files = append(l.files, knownFile{name: name, content: content})
		}
		must(t, l.pool.Sync())
		facts, err := readPool(l.pool)
		must(t, err)
		data := facts.Space(btrfs.Data)
		if left := int64(data.Total - data.Used - data.ReadOnly); left > 0 {
			share := 0.6 + 0.35*rng.Float64()
			if err := l.pool.Allocate(fmt.Sprintf("filler-%d", round), int64(share*float64(left))); err != nil && !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
		}
	}
}

func (l *lossTest) chunks(blockGroupType btrfs.BlockGroupType) int {
	n := 0
	for i := range l.facts.Chunks.Value {
		if l.facts.Chunks.Value[i].Type == blockGroupType {
			n++
		}
	}
	return n
}

// locate finds the stripes of a file. A stripe ends where the next offset of
// its length begins: what lies there in the file may begin in the middle of
// one, so it looks at each sector.
func (l *lossTest) locate(t *testing.T, f *knownFile) {
	t.Helper()
	size := int64(len(f.content))
	for offset := int64(0); offset < size; {
		copies, err := l.pool.Physical(f.name, offset)
		must(t, err)
		chunk := l.chunkAt(copies[0])
		if chunk == nil {
			t.Fatalf("%s lies at %v, where no chunk is", f.name, copies[0])
		}
		begin := offset
		// The rest of the stripe lies beside it, unless the extent ends.
		offset += sector
		within := (copies[0].Physical - int64(l.stripeAt(chunk, copies[0]).Offset)) % stripeLength
		for next := within + sector; next < stripeLength && offset < size; next += sector {
			if again, err := l.pool.Physical(f.name, offset); err != nil || again[0] != (btrfstest.Location{
				DevID: copies[0].DevID, Physical: copies[0].Physical + next - within,
			}) {
				break
			}
			offset += sector
		}
		f.stripes = append(f.stripes, fileStripe{offset: begin, end: min(offset, size), copies: copies, chunk: chunk})
	}
}

// chunkAt returns the chunk that lies at a place of a device.
func (l *lossTest) chunkAt(at btrfstest.Location) *btrfs.Chunk {
	for i := range l.facts.Chunks.Value {
		if c := &l.facts.Chunks.Value[i]; l.stripeAt(c, at) != nil {
			return c
		}
	}
	return nil
}

// stripeAt returns the stripe of a chunk that lies at a place of a device.
func (l *lossTest) stripeAt(c *btrfs.Chunk, at btrfstest.Location) *btrfs.Stripe {
	for i := range c.Stripes {
		s := &c.Stripes[i]
		if s.DevID == at.DevID && uint64(at.Physical) >= s.Offset && uint64(at.Physical)-s.Offset < c.StripeLength() {
			return s
		}
	}
	return nil
}

// deviceSets are the sets of devices that parts of files lie on.
func (l *lossTest) deviceSets() []string {
	sets := make(map[string]bool)
	for _, f := range l.files {
		for _, s := range f.stripes {
			var ids []uint64
			for _, at := range s.copies {
				ids = append(ids, at.DevID)
			}
			slices.Sort(ids)
			sets[fmt.Sprint(ids)] = true
		}
	}
	return slices.Sorted(maps.Keys(sets))
}

// lost reports whether a part of the file can no longer be read.
func (f *knownFile) lost(gone []uint64) bool {
	return slices.ContainsFunc(f.stripes, func(s fileStripe) bool { return s.lost(gone) })
}

// lost reports whether the devices of all copies are gone, and so are more
// devices of the chunk than it has parity for.
func (s *fileStripe) lost(gone []uint64) bool {
	for _, at := range s.copies {
		if !slices.Contains(gone, at.DevID) {
			return false
		}
	}
	return goneOf(s.chunk, gone) > s.chunk.Profile.Attributes().Parity
}

// goneOf is the number of stripes of a chunk that lie on devices that are gone.
func goneOf(c *btrfs.Chunk, gone []uint64) int {
	n := 0
	for _, s := range c.Stripes {
		if slices.Contains(gone, s.DevID) {
			n++
		}
	}
	return n
}

// lossOf adds up, chunk by chunk, what the loss of devices costs.
func (l *lossTest) lossOf(blockGroupType btrfs.BlockGroupType, gone []uint64) uint64 {
	var total uint64
	for i := range l.facts.Chunks.Value {
		c := &l.facts.Chunks.Value[i]
		if c.Type != blockGroupType {
			continue
		}
		n := goneOf(c, gone)
		switch c.Profile {
		case btrfs.RAID10: // each two stripes are a mirror
			for pair := range slices.Chunk(c.Stripes, 2) {
				if slices.Contains(gone, pair[0].DevID) && slices.Contains(gone, pair[1].DevID) {
					total += c.StripeLength()
				}
			}
		case btrfs.RAID0:
			total += uint64(n) * c.StripeLength()
		case btrfs.RAID5, btrfs.RAID6: // the parity takes turns on the devices
			if n > c.Profile.Attributes().Parity {
				total += uint64(n) * c.Length / uint64(len(c.Stripes))
			}
		default:
			if n == len(c.Stripes) {
				total += c.Length
			}
		}
	}
	return total
}

// subsets lists all sets of one to most devices.
func subsets(l *capacity.Layout, most int) [][]uint64 {
	var all [][]uint64
	for bits := range 1 << len(l.Devices) {
		var ids []uint64
		for i, d := range l.Devices {
			if bits&(1<<i) != 0 {
				ids = append(ids, d.ID)
			}
		}
		if len(ids) > 0 && len(ids) <= most {
			all = append(all, ids)
		}
	}
	slices.SortStableFunc(all, func(a, b []uint64) int { return len(a) - len(b) })
	return all
}

// lose takes devices away, compares what can still be read, and what the daemon
// says of it, with what was foretold, and brings them back.
func (l *lossTest) lose(t *testing.T, serve *process, ids []uint64) {
	t.Helper()
	loss := l.layout.Loss(ids...)
	l.compareSums(t, ids, loss)

	must(t, l.pool.Detach(ids...))
	mountError := l.pool.MountDegraded(true)
	var foretold []string
	for _, f := range l.files {
		if f.lost(ids) {
			foretold = append(foretold, f.name)
		}
	}
	var (
		failed []string
		wrong  map[string][]byte
	)
	if mountError == nil {
		failed, wrong = l.read(t)
		l.compareLost(t, serve, ids, loss)
	}
	must(t, l.pool.Unmount())
	for _, id := range ids {
		must(t, l.pool.Attach(id))
	}

	observed := fmt.Sprintf("%d of %d files do not come back, %d of them without an error", len(failed), len(l.files), len(wrong))
	if mountError != nil {
		observed = fmt.Sprintf("mount refused: %v", mountError)
	}
	t.Logf("without %v: lost %+v, %d files foretold; %s", ids, loss, len(foretold), observed)
	l.broken[len(ids)] = l.broken[len(ids)] || mountError != nil || len(failed) > 0

	switch {
	case loss.Metadata+loss.System > 0:
		if mountError == nil && len(failed) == 0 {
			t.Errorf("without %v: metadata is lost, %+v, yet everything can be read", ids, loss)
		}
	case mountError != nil:
		t.Errorf("without %v: no metadata is lost, yet: %v", ids, mountError)
	case !slices.Equal(failed, foretold):
		t.Errorf("without %v: %q do not come back, foretold were %q", ids, failed, foretold)
	case loss.Total() == 0 && len(failed) > 0:
		t.Errorf("without %v: nothing is lost, yet %q do not come back", ids, failed)
	}
	for i := range l.files {
		if content, ok := wrong[l.files[i].name]; ok {
			l.files[i].checkSilent(t, content, ids)
		}
	}
}

// checkSilent checks what a file held that read without an error and not as it
// was written. That is tolerated of a striped file that is lost in part, where
// the kernel does it, and then nothing but the stripes that are lost may
// differ.
func (f *knownFile) checkSilent(t *testing.T, content []byte, gone []uint64) {
	t.Helper()
	if len(content) != len(f.content) {
		t.Errorf("without %v: %s reads without an error, but %d of its %d bytes", gone, f.name, len(content), len(f.content))
		return
	}
	survives := false
	for _, s := range f.stripes {
		lost := s.lost(gone)
		survives = survives || !lost
		if bytes.Equal(content[s.offset:s.end], f.content[s.offset:s.end]) {
			continue
		}
		if striped := s.chunk.DataStripes() > 1 || s.chunk.Profile.Attributes().Parity > 0; !lost || !striped {
			t.Errorf("without %v: %s reads as something else from %d to %d, on %s %v (lost: %t)",
				gone, f.name, s.offset, s.end, s.chunk.Profile, s.copies, lost)
		}
	}
	if !survives {
		t.Errorf("without %v: %s reads without an error, though all of it is lost", gone, f.name)
	}
}

// compareSums compares the layout's figures with those of the chunks one by
// one. Where stripes take turns, the last round of a chunk may be a part of one.
func (l *lossTest) compareSums(t *testing.T, ids []uint64, loss capacity.Loss) {
	t.Helper()
	for _, blockGroupType := range btrfs.BlockGroupTypes() {
		got, want := int64(loss.Of(blockGroupType)), int64(l.lossOf(blockGroupType, ids))
		if tolerance := int64(l.chunks(blockGroupType)); max(got-want, want-got) > tolerance {
			t.Errorf("without %v: %d bytes of %s are lost by the layout, %d by the chunks", ids, got, blockGroupType, want)
		}
	}
	if len(ids) <= 2 {
		i, j := slices.Index(l.matrix.Devices, ids[0]), slices.Index(l.matrix.Devices, ids[len(ids)-1])
		if got := l.matrix.Pair[i][j]; got != loss {
			t.Errorf("without %v: the matrix says %+v, the layout %+v", ids, got, loss)
		}
		if len(ids) == 1 && l.matrix.Single[i] != loss {
			t.Errorf("without %v: the matrix says %+v, the layout %+v", ids, l.matrix.Single[i], loss)
		}
	}
}

// read reads all files and returns the names of those that do not come back,
// and what those of them held that read without an error. The caches are cold:
// the pool was just mounted.
func (l *lossTest) read(t *testing.T) (failed []string, wrong map[string][]byte) {
	t.Helper()
	wrong = make(map[string][]byte)
	for _, f := range l.files {
		content, err := os.ReadFile(l.pool.Path(f.name))
		switch {
		case err == nil && bytes.Equal(content, f.content):
			continue
		case err == nil:
			wrong[f.name] = content
		case !errors.Is(err, unix.EIO):
			t.Errorf("read %s: %v", f.name, err)
		}
		failed = append(failed, f.name)
	}
	return failed, wrong
}

// checkTolerated compares how many failures are said to be tolerated with what
// was observed.
func (l *lossTest) checkTolerated(t *testing.T) {
	t.Helper()
	for n := 1; n <= l.tolerated; n++ {
		if l.broken[n] {
			t.Errorf("%d failures are said to be tolerated, but a loss of %d cost something", l.tolerated, n)
		}
	}
	if !l.broken[l.tolerated+1] {
		t.Errorf("%d failures are said to be tolerated, but no loss of %d cost anything", l.tolerated, l.tolerated+1)
	}
}

// compareExported compares what the daemon exports with the layout.
func (l *lossTest) compareExported(t *testing.T, serve *process) {
	t.Helper()
	series, err := scrapePool(serve, l.pool.UUID, "loss")
	must(t, err)
	if got := series.bytes(t, "btrfs_pool_device_failures_tolerated"); got != int64(l.tolerated) {
		t.Errorf("btrfs_pool_device_failures_tolerated is %d, the layout says %d", got, l.tolerated)
	}
	worst := l.matrix.WorstPair()
	for _, s := range l.facts.Spaces {
		key := fmt.Sprintf("btrfs_pool_worst_pair_loss_bytes{block_group_type=%q}", s.Type)
		if got, want := series.bytes(t, key), int64(worst.Of(s.Type)); got != want {
			t.Errorf("%s is %d, the layout says %d", key, got, want)
		}
	}
}

// compareLost compares what the daemon says is lost with what was foretold.
func (l *lossTest) compareLost(t *testing.T, serve *process, ids []uint64, loss capacity.Loss) {
	t.Helper()
	series, err := scrapePool(serve, l.pool.UUID, "loss")
	must(t, err)
	for _, s := range l.facts.Spaces {
		key := fmt.Sprintf("btrfs_pool_lost_bytes{block_group_type=%q}", s.Type)
		if got, want := series.bytes(t, key), int64(loss.Of(s.Type)); got != want {
			t.Errorf("without %v: %s is %d, foretold was %d", ids, key, got, want)
		}
	}
}
