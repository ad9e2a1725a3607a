package capacity

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

const tib = 1 << 40

// fresh returns a pool as mkfs.btrfs leaves it: one block group of each type,
// made by the allocator itself, in the order system, metadata, data.
func fresh(t testing.TB, data, metadata btrfs.Profile, sizes ...uint64) *btrfs.Pool {
	t.Helper()
	p := &btrfs.Pool{
		Checksum:      btrfs.Some("crc32c"),
		NodeSize:      btrfs.Some(uint64(16 * kib)),
		SectorSize:    btrfs.Some(uint64(4 * kib)),
		GlobalReserve: btrfs.GlobalReserve{Size: btrfs.Some(uint64(5767168)), Used: btrfs.Some(uint64(0))},
		Chunks:        btrfs.Some([]btrfs.Chunk(nil)),
	}
	var total uint64
	for i, size := range sizes {
		p.Devices = append(p.Devices, btrfs.Device{ID: uint64(i + 1), Size: btrfs.Some(size), Used: btrfs.Some(uint64(0))})
		total += size
	}
	metadataChunk := uint64(256 * mib)
	if total > 50*gib {
		metadataChunk = gib
	}
	grow(t, p, btrfs.System, metadata, 8*mib, 16*kib)
	grow(t, p, btrfs.Metadata, metadata, metadataChunk, 128*kib)
	grow(t, p, btrfs.Data, data, 10*gib, 0)
	return p
}

// grow adds one chunk to a pool, where the allocator puts it.
func grow(t testing.TB, p *btrfs.Pool, bgType btrfs.BlockGroupType, profile btrfs.Profile, chunkSize, used uint64) {
	t.Helper()
	l, err := NewLayout(p)
	if err != nil {
		t.Fatal(err)
	}
	a := l.allocator()
	r := newRequest(bgType, profile, chunkSize)
	picked, stripe, ok := a.choose(&r)
	if !ok {
		t.Fatalf("no room for a %s chunk", bgType)
	}
	c := btrfs.Chunk{Logical: 1 << 20, Length: stripe * r.dataStripes(len(picked)), Type: bgType, Profile: profile}
	for _, old := range p.Chunks.Value {
		c.Logical = max(c.Logical, old.Logical+old.Length)
	}
	for _, pick := range picked {
		d := &a.devices[pick.device]
		for i := range r.profile.DevStripes {
			c.Stripes = append(c.Stripes, btrfs.Stripe{
				DevID: l.Devices[d.index].ID, Offset: d.holes[pick.hole].Start + uint64(i)*stripe,
			})
		}
		dev := p.Device(l.Devices[d.index].ID)
		dev.Used = btrfs.Some(dev.Used.Value + stripe*uint64(r.profile.DevStripes))
	}
	p.Chunks.Value = append(p.Chunks.Value, c)
	s := p.Space(bgType)
	if s == nil {
		p.Spaces = append(p.Spaces, btrfs.Space{Type: bgType, ChunkSize: btrfs.Some(chunkSize)})
		slices.SortFunc(p.Spaces, func(a, b btrfs.Space) int { return int(a.Type) - int(b.Type) })
		s = p.Space(bgType)
	}
	s.Total += c.Length
	s.Used += used
	i := slices.IndexFunc(s.Profiles, func(p btrfs.ProfileSpace) bool { return p.Profile == profile })
	if i < 0 {
		i = len(s.Profiles)
		s.Profiles = append(s.Profiles, btrfs.ProfileSpace{Profile: profile})
	}
	s.Profiles[i].Total += c.Length
	s.Profiles[i].Used += used
}

func report(t testing.TB, p *btrfs.Pool) *Report {
	t.Helper()
	l, err := NewLayout(p)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Calculate(p, l)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The figures that the common formulas get wrong. The truth was measured by
// filling such pools (TestOracle does it for any pool).
func TestFreeOfMismatchedDevices(t *testing.T) {
	tests := []struct {
		name    string
		profile btrfs.Profile
		sizes   []uint64
		want    float64 // GiB
	}{
		{"8+1+1 TiB, where usage says 5119", btrfs.RAID1, []uint64{8 * tib, 1 * tib, 1 * tib}, 2045},
		{"equal devices", btrfs.RAID1, []uint64{tib, tib}, 1023},
		{"single", btrfs.Single, []uint64{tib, 2 * tib}, 3071},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := float64(report(t, fresh(t, tt.profile, btrfs.RAID1, tt.sizes...)).Free) / gib
			if math.Abs(got-tt.want) > max(0.01, tt.want*0.001) {
				t.Errorf("free is %.3f GiB, want %.3f", got, tt.want)
			}
		})
	}
}

// The example of the README, with its chunks where mkfs.btrfs 6.2 puts them.
func TestFreeOfTheReadmesPool(t *testing.T) {
	p := &btrfs.Pool{Chunks: btrfs.Some([]btrfs.Chunk{
		{Logical: 22020096, Length: 8 * mib, Type: btrfs.System, Profile: btrfs.RAID1, Stripes: []btrfs.Stripe{{DevID: 3, Offset: mib}, {DevID: 4, Offset: mib}}},
		{Logical: 30408704, Length: 256 * mib, Type: btrfs.Metadata, Profile: btrfs.RAID1, Stripes: []btrfs.Stripe{{DevID: 3, Offset: 9 * mib}, {DevID: 4, Offset: 9 * mib}}},
		{Logical: 298844160, Length: gib, Type: btrfs.Data, Profile: btrfs.RAID1, Stripes: []btrfs.Stripe{{DevID: 2, Offset: mib}, {DevID: 3, Offset: 265 * mib}}},
	})}
	used := []uint64{0, gib, 264*mib + gib, 264 * mib}
	for i, size := range []uint64{8 * gib, 4 * gib, 2 * gib, gib} {
		p.Devices = append(p.Devices, btrfs.Device{ID: uint64(i + 1), Size: btrfs.Some(size), Used: btrfs.Some(used[i])})
	}
	for _, c := range p.Chunks.Value {
		p.Spaces = append(p.Spaces, btrfs.Space{Type: c.Type, Total: c.Length, Profiles: []btrfs.ProfileSpace{{Profile: btrfs.RAID1, Total: c.Length}}})
	}
	if got := float64(report(t, p).Free) / gib; got < 5.47 || got > 5.49 {
		t.Errorf("free is %.3f GiB, want 5.48", got)
	}
}

// stepwise makes chunk after chunk, without leaps.
func (a *allocator) stepwise(r request) filled {
	var total filled
	for {
		picked, stripe, ok := a.choose(&r)
		if !ok {
			return total
		}
		made := a.take(&r, picked, stripe)
		total.bytes += made.bytes
		total.superblocks += made.superblocks
		total.chunks++
	}
}

func randomDevices(rng *rand.Rand) []LayoutDevice {
	devices := make([]LayoutDevice, 1+rng.IntN(9))
	for i := range devices {
		d := LayoutDevice{ID: uint64(i + 1), Usable: true}
		end := uint64(reservedStart)
		for range rng.IntN(6) {
			end += rng.Uint64N(3*gib) / stripeLength * stripeLength
			length := uint64(math.Exp(rng.Float64()*math.Log(float64(200*gib)/float64(stripeLength)))) * stripeLength
			if rng.IntN(3) == 0 {
				length = length / gib * gib // equal devices make ties
			}
			d.Holes = append(d.Holes, Hole{end, length})
			end += length
		}
		d.Size = end + rng.Uint64N(gib)
		var free uint64
		for _, h := range d.Holes {
			free += h.Length
		}
		d.Used = d.Size - free - reservedStart
		devices[i] = d
	}
	return devices
}

func TestLeapsEqualSingleSteps(t *testing.T) {
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		l := &Layout{Exact: true, Devices: randomDevices(rng)}
		profile := btrfs.Profiles()[rng.IntN(len(btrfs.Profiles()))]
		chunkSize := []uint64{10 * gib, gib, 256 * mib}[rng.IntN(3)]
		r := newRequest(btrfs.Data, profile, chunkSize)
		leaping, stepping := l.allocator(), l.allocator()
		got, want := leaping.fill(r, math.MaxUint64), stepping.stepwise(r)
		if got != want {
			t.Fatalf("seed %d: %s: with leaps %+v, step by step %+v", seed, profile, got, want)
		}
		if diff := cmp.Diff(stepping.unused(len(l.Devices)), leaping.unused(len(l.Devices))); diff != "" {
			t.Fatalf("seed %d: %s: unused bytes (-step by step +with leaps):\n%s", seed, profile, diff)
		}
	}
}

func TestFillStopsAtLimit(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 2))
		l := &Layout{Exact: true, Devices: randomDevices(rng)}
		r := newRequest(btrfs.Data, btrfs.Single, 10*gib)
		all := l.allocator().fill(r, math.MaxUint64)
		limit := 1 + rng.Uint64N(all.bytes+1)
		a := l.allocator()
		part := a.fill(r, limit)
		if part.bytes < limit && part != all {
			t.Fatalf("seed %d: stopped at %d of %d bytes before the limit %d", seed, part.bytes, all.bytes, limit)
		}
		if part.bytes >= limit+gib {
			t.Fatalf("seed %d: %d bytes, more than a chunk above the limit %d", seed, part.bytes, limit)
		}
		if rest := a.fill(r, math.MaxUint64); part.bytes+rest.bytes != all.bytes {
			t.Fatalf("seed %d: %d + %d bytes in two runs, %d in one", seed, part.bytes, rest.bytes, all.bytes)
		}
	}
}

// TestLargestHole holds the heap against a search.
func TestLargestHole(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 3))
		d := simulatedDevice{}
		for i := range 1 + rng.IntN(40) {
			d.holes = append(d.holes, Hole{uint64(i) * gib, rng.Uint64N(20) * mib})
		}
		for range 60 {
			want := 0
			for i, h := range d.holes {
				if h.Length > d.holes[want].Length {
					want = i
				}
			}
			got, _ := d.largest()
			if got != want {
				t.Fatalf("seed %d: hole %d of %d bytes, want %d of %d", seed, got, d.holes[got].Length, want, d.holes[want].Length)
			}
			i := rng.IntN(len(d.holes))
			d.use(i, rng.Uint64N(d.holes[i].Length+1))
			d.use(got, rng.Uint64N(d.holes[got].Length+1))
		}
	}
}

func TestNextProfile(t *testing.T) {
	tests := []struct {
		existing []btrfs.Profile
		devices  int
		want     btrfs.Profile
	}{
		{nil, 4, btrfs.Single},
		{[]btrfs.Profile{btrfs.Single}, 4, btrfs.Single},
		{[]btrfs.Profile{btrfs.RAID1}, 2, btrfs.RAID1},
		{[]btrfs.Profile{btrfs.RAID1}, 1, btrfs.Single}, // degraded
		{[]btrfs.Profile{btrfs.Single, btrfs.RAID1}, 2, btrfs.RAID1},
		{[]btrfs.Profile{btrfs.RAID1, btrfs.RAID1C3}, 3, btrfs.RAID1C3},
		{[]btrfs.Profile{btrfs.RAID1, btrfs.RAID1C3}, 2, btrfs.RAID1},
		{[]btrfs.Profile{btrfs.RAID0, btrfs.RAID5}, 3, btrfs.RAID5},
		{[]btrfs.Profile{btrfs.RAID1, btrfs.DUP}, 2, btrfs.RAID1},
		{[]btrfs.Profile{btrfs.RAID1, btrfs.DUP}, 1, btrfs.DUP},
		{[]btrfs.Profile{btrfs.RAID6, btrfs.RAID1C4}, 4, btrfs.RAID1C4},
	}
	for _, tt := range tests {
		var existing []btrfs.ProfileSpace
		for _, p := range tt.existing {
			existing = append(existing, btrfs.ProfileSpace{Profile: p})
		}
		if got := nextProfile(existing, tt.devices); got != tt.want {
			t.Errorf("%v on %d devices: %s, want %s", tt.existing, tt.devices, got, tt.want)
		}
	}
}

func TestStrandedIsSplitByReason(t *testing.T) {
	// The big device has no partner for what the small ones do not match.
	r := report(t, fresh(t, btrfs.RAID1, btrfs.RAID1, 8*tib, tib, tib))
	if want := uint64(6 * tib); r.StrandedMismatch < want-4*gib || r.StrandedMismatch > want+4*gib {
		t.Errorf("stranded by mismatch: %d, want about %d", r.StrandedMismatch, want)
	}
	if r.StrandedImbalance > 4*gib {
		t.Errorf("stranded by imbalance: %d in a fresh pool", r.StrandedImbalance)
	}

	// Two full devices and a new one: nothing can be mirrored until a balance.
	p := fresh(t, btrfs.RAID1, btrfs.RAID1, 100*gib, 100*gib)
	for range 96 {
		grow(t, p, btrfs.Data, btrfs.RAID1, 10*gib, gib)
	}
	p.Devices = append(p.Devices, btrfs.Device{ID: 3, Size: btrfs.Some(uint64(100 * gib)), Used: btrfs.Some(uint64(0))})
	r = report(t, p)
	if r.StrandedImbalance < 90*gib {
		t.Errorf("stranded by imbalance: %d, want most of the new device", r.StrandedImbalance)
	}
	if r.Stranded[2] < 90*gib {
		t.Errorf("stranded on the new device: %d", r.Stranded[2])
	}
	if gain := r.FreeAfterBalance - r.Free; gain < 45*gib || gain > 55*gib {
		t.Errorf("a balance gives back %d bytes, want about half of the new device", gain)
	}
}

func TestMissingDevicesTakeNoPart(t *testing.T) {
	p := fresh(t, btrfs.RAID1, btrfs.RAID1, tib, tib, tib)
	p.Devices[2].Missing, p.Devices[2].Writeable = btrfs.Some(true), btrfs.Some(false)
	if r := report(t, p); r.Free > tib {
		t.Errorf("free is %d with one of three devices missing", r.Free)
	}
	p.Devices[1].Missing = btrfs.Some(true)
	if r := report(t, p); r.DataProfile != btrfs.Single {
		t.Errorf("the next data chunk is %s with one device left, want single", r.DataProfile)
	}
}

func TestFreeExpectedCountsMetadata(t *testing.T) {
	p := fresh(t, btrfs.RAID1, btrfs.RAID1, 4*gib, 4*gib)
	half := p.Space(btrfs.Data).Total / 2
	p.Space(btrfs.Data).Used, p.Space(btrfs.Data).Profiles[0].Used = half, half

	large := report(t, p)
	if large.FreeExpected != large.Free {
		t.Errorf("large files: expected %d, free %d: metadata has room for them", large.FreeExpected, large.Free)
	}
	// Small files: as much metadata as a quarter of the data.
	p.Space(btrfs.Metadata).Used, p.Space(btrfs.Metadata).Profiles[0].Used = half/4, half/4
	small := report(t, p)
	if small.FreeExpected >= small.Free || small.FreeExpected < small.Free/2 {
		t.Errorf("small files: expected %d of free %d", small.FreeExpected, small.Free)
	}
	// Nothing but metadata: the loop ends.
	p.Space(btrfs.Data).Used, p.Space(btrfs.Data).Profiles[0].Used = 1, 1
	if r := report(t, p); r.FreeExpected > mib {
		t.Errorf("inline files only: expected %d", r.FreeExpected)
	}
}

func TestReportNeedsDataAccounting(t *testing.T) {
	p := fresh(t, btrfs.RAID1, btrfs.RAID1, tib, tib)
	p.Spaces = nil
	l, err := NewLayout(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Calculate(p, l); err == nil {
		t.Error("a report without the accounting of data")
	}
}

// TestReportIsSane holds what must be true of any pool.
func TestReportIsSane(t *testing.T) {
	for seed := range uint64(1500) {
		rng := rand.New(rand.NewPCG(seed, 4))
		l := &Layout{Exact: true, Devices: randomDevices(rng)}
		profile := btrfs.Profiles()[rng.IntN(len(btrfs.Profiles()))]
		total := rng.Uint64N(20 * gib)
		p := &btrfs.Pool{Spaces: []btrfs.Space{
			{Type: btrfs.Data, Total: total, Used: rng.Uint64N(total + 1), Profiles: []btrfs.ProfileSpace{{Profile: profile}}},
			{Type: btrfs.Metadata, Total: gib, Used: rng.Uint64N(gib), Profiles: []btrfs.ProfileSpace{{Profile: profile}}},
			{Type: btrfs.System, Total: 8 * mib, Used: 16 * kib, Profiles: []btrfs.ProfileSpace{{Profile: profile}}},
		}, GlobalReserve: btrfs.GlobalReserve{Size: btrfs.Some(uint64(16 * mib))}}
		for i := range p.Spaces {
			p.Spaces[i].Profiles[0].Total, p.Spaces[i].Profiles[0].Used = p.Spaces[i].Total, p.Spaces[i].Used
		}
		r, err := Calculate(p, l)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Calculate(p, l)
		if err != nil || !cmp.Equal(r, again) {
			t.Fatalf("seed %d: two calculations differ (or %v):\n%s", seed, err, cmp.Diff(r, again))
		}
		if r.FreeExpected > r.Free {
			t.Errorf("seed %d: expected %d is more than free %d", seed, r.FreeExpected, r.Free)
		}
		if r.Usable < p.Spaces[0].Used {
			t.Errorf("seed %d: usable %d is less than used %d", seed, r.Usable, p.Spaces[0].Used)
		}
		if got := r.StrandedImbalance + r.StrandedMismatch; got != sum(r.Stranded) {
			t.Errorf("seed %d: stranded by reason %d, by device %d", seed, got, sum(r.Stranded))
		}
	}
}

func TestCalculatorAgreesWithCalculate(t *testing.T) {
	p := fresh(t, btrfs.RAID1, btrfs.RAID1, 400*gib, 200*gib, 100*gib)
	l, err := NewLayout(p)
	if err != nil {
		t.Fatal(err)
	}
	c := NewCalculator(l)
	rng := rand.New(rand.NewPCG(5, 5))
	for range 200 {
		s := &p.Spaces[rng.IntN(2)]
		s.Used = rng.Uint64N(s.Total)
		s.Profiles[0].Used = s.Used
		got, err := c.Report(p)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(report(t, p), got); diff != "" {
			t.Fatalf("(-fresh +kept):\n%s", diff)
		}
	}
}

func TestLoss(t *testing.T) {
	chunk := func(profile btrfs.Profile, devices ...uint64) btrfs.Chunk {
		c := btrfs.Chunk{Length: 12 * gib, Type: btrfs.Data, Profile: profile}
		for _, d := range devices {
			c.Stripes = append(c.Stripes, btrfs.Stripe{DevID: d})
		}
		return c
	}
	tests := []struct {
		name      string
		chunk     btrfs.Chunk
		gone      []uint64
		lost      uint64
		tolerated int
	}{
		{"single, elsewhere", chunk(btrfs.Single, 1), []uint64{2}, 0, 0},
		{"single", chunk(btrfs.Single, 1), []uint64{1}, 12 * gib, 0},
		{"dup", chunk(btrfs.DUP, 1, 1), []uint64{1}, 12 * gib, 0},
		{"raid0 loses a share", chunk(btrfs.RAID0, 1, 2, 3, 4), []uint64{1}, 3 * gib, 0},
		{"raid1 one", chunk(btrfs.RAID1, 1, 2), []uint64{1, 3}, 0, 1},
		{"raid1 both", chunk(btrfs.RAID1, 1, 2), []uint64{2, 1}, 12 * gib, 1},
		{"raid1c3 two", chunk(btrfs.RAID1C3, 1, 2, 3), []uint64{1, 2}, 0, 2},
		{"raid1c3 three", chunk(btrfs.RAID1C3, 1, 2, 3), []uint64{1, 2, 3}, 12 * gib, 2},
		{"raid1c4 three", chunk(btrfs.RAID1C4, 1, 2, 3, 4), []uint64{1, 2, 3}, 0, 3},
		{"raid10 across mirrors", chunk(btrfs.RAID10, 1, 2, 3, 4), []uint64{1, 3}, 0, 1},
		{"raid10 a mirror", chunk(btrfs.RAID10, 1, 2, 3, 4), []uint64{3, 4}, 6 * gib, 1},
		{"raid5 one", chunk(btrfs.RAID5, 1, 2, 3), []uint64{1}, 0, 1},
		{"raid5 two", chunk(btrfs.RAID5, 1, 2, 3), []uint64{1, 2}, 8 * gib, 1},
		{"raid6 two", chunk(btrfs.RAID6, 1, 2, 3, 4), []uint64{1, 2}, 0, 2},
		{"raid6 three", chunk(btrfs.RAID6, 1, 2, 3, 4), []uint64{1, 2, 3}, 9 * gib, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := layoutOf(t, 4, tt.chunk)
			if got := l.Loss(tt.gone...); got != (Loss{Data: tt.lost}) {
				t.Errorf("lost %+v, want %d of data", got, tt.lost)
			}
			if got, ok := l.FailuresTolerated(); !ok || got != tt.tolerated {
				t.Errorf("%d failures tolerated (known: %t), want %d", got, ok, tt.tolerated)
			}
			if got := l.Lost(); got != (Loss{}) {
				t.Errorf("%+v is lost already, and nothing is missing", got)
			}
			for i := range l.Devices {
				l.Devices[i].Missing = slices.Contains(tt.gone, l.Devices[i].ID)
			}
			if got := l.Lost(); got != (Loss{Data: tt.lost}) {
				t.Errorf("%+v is lost already, want %d of data", got, tt.lost)
			}
		})
	}
}

// layoutOf places chunks one after the other on devices 1 to n.
func layoutOf(t testing.TB, n int, chunks ...btrfs.Chunk) *Layout {
	t.Helper()
	p := &btrfs.Pool{Chunks: btrfs.Some(chunks)}
	for i := range n {
		p.Devices = append(p.Devices, btrfs.Device{ID: uint64(i + 1), Size: btrfs.Some(uint64(tib)), Used: btrfs.Some(uint64(0))})
	}
	ends := make(map[uint64]uint64)
	for i := range chunks {
		for j := range chunks[i].Stripes {
			s := &chunks[i].Stripes[j]
			s.Offset = max(ends[s.DevID], reservedStart)
			ends[s.DevID] = s.Offset + chunks[i].StripeLength()
		}
	}
	l, err := NewLayout(p)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestLossMatrixAgreesWithLoss works out each entry the long way.
func TestLossMatrixAgreesWithLoss(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 6))
		n := 4 + rng.IntN(5)
		var chunks []btrfs.Chunk
		for i := range 1 + rng.IntN(30) {
			profile := btrfs.Profiles()[rng.IntN(len(btrfs.Profiles()))]
			a := profile.Attributes()
			c := btrfs.Chunk{
				Logical: uint64(i) * tib, Type: btrfs.BlockGroupTypes()[rng.IntN(4)], Profile: profile,
			}
			order := rng.Perm(n)
			width := min(n, a.DevsMax)
			width -= width % a.DevsIncrement
			for _, d := range order[:width] {
				for range a.DevStripes {
					c.Stripes = append(c.Stripes, btrfs.Stripe{DevID: uint64(d + 1)})
				}
			}
			c.Length = uint64(c.DataStripes()) * uint64(840*mib)
			chunks = append(chunks, c)
		}
		l := layoutOf(t, n, chunks...)
		if rng.IntN(3) == 0 {
			l.Devices[rng.IntN(n)].Missing = true
		}
		m := l.LossMatrix()
		var worst Loss
		for i, a := range m.Devices {
			if diff := cmp.Diff(l.Loss(a), m.Single[i]); diff != "" {
				t.Fatalf("seed %d: device %d (-Loss +matrix):\n%s", seed, a, diff)
			}
			for j, b := range m.Devices {
				if diff := cmp.Diff(l.Loss(a, b), m.Pair[i][j]); diff != "" {
					t.Fatalf("seed %d: devices %d and %d (-Loss +matrix):\n%s", seed, a, b, diff)
				}
				worst.Data = max(worst.Data, m.Pair[i][j].Data)
				worst.Metadata = max(worst.Metadata, m.Pair[i][j].Metadata)
				worst.System = max(worst.System, m.Pair[i][j].System)
				worst.Mixed = max(worst.Mixed, m.Pair[i][j].Mixed)
			}
		}
		if m.WorstPair() != worst {
			t.Fatalf("seed %d: worst pair %+v, want %+v", seed, m.WorstPair(), worst)
		}
	}
}

func TestFailuresToleratedBeyondMissing(t *testing.T) {
	l := layoutOf(t, 4, btrfs.Chunk{Length: gib, Type: btrfs.Data, Profile: btrfs.RAID1C3,
		Stripes: []btrfs.Stripe{{DevID: 1}, {DevID: 2}, {DevID: 3}}})
	l.Devices[0].Missing = true
	if got, _ := l.FailuresTolerated(); got != 1 {
		t.Errorf("raid1c3 with one device missing: %d more failures tolerated, want 1", got)
	}
	if _, ok := Estimate(nil).FailuresTolerated(); ok {
		t.Error("an estimate claims to know how many failures are tolerated")
	}
}

func TestMetadataSpread(t *testing.T) {
	raid1 := func(length uint64, a, b uint64) btrfs.Chunk {
		return btrfs.Chunk{Length: length, Type: btrfs.Metadata, Profile: btrfs.RAID1, Stripes: []btrfs.Stripe{{DevID: a}, {DevID: b}}}
	}
	l := layoutOf(t, 4, raid1(3*gib, 3, 4), raid1(gib, 1, 3),
		btrfs.Chunk{Length: tib / 4, Type: btrfs.Data, Profile: btrfs.Single, Stripes: []btrfs.Stripe{{DevID: 2}}})
	got, ok := l.MetadataSpread()
	want := MetadataSpread{Devices: 3, Share: []float64{0.125, 0, 0.5, 0.375}, Concentration: 0.75, Fullest: []uint64{3, 4}}
	if diff := cmp.Diff(want, got); !ok || diff != "" {
		t.Errorf("known %t (-want +got):\n%s", ok, diff)
	}
}

func TestOverlappingChunksAreAnError(t *testing.T) {
	p := &btrfs.Pool{
		Devices: []btrfs.Device{{ID: 1, Size: btrfs.Some(uint64(tib)), Used: btrfs.Some(uint64(2 * gib))}},
		Chunks: btrfs.Some([]btrfs.Chunk{
			{Logical: 0, Length: gib, Type: btrfs.Data, Profile: btrfs.Single, Stripes: []btrfs.Stripe{{DevID: 1, Offset: gib}}},
			{Logical: gib, Length: gib, Type: btrfs.Data, Profile: btrfs.Single, Stripes: []btrfs.Stripe{{DevID: 1, Offset: gib + mib}}},
		}),
	}
	if _, err := NewLayout(p); err == nil {
		t.Error("two chunks in the same place are no error")
	}
}

func TestWhatIf(t *testing.T) {
	p := fresh(t, btrfs.RAID1, btrfs.RAID1, 8*tib, 4*tib, 2*tib, tib)
	for range 1024 {
		grow(t, p, btrfs.Data, btrfs.RAID1, 10*gib, gib)
	}
	l, err := NewLayout(p)
	if err != nil {
		t.Fatal(err)
	}
	before := report(t, p)
	tests := []struct {
		changes []Change
		least   float64 // TiB free, in between
		most    float64
		err     error
	}{
		{nil, 5.9, 6.1, nil},
		{[]Change{AddDevice{4 * tib}}, 8.3, 8.6, nil},
		{[]Change{ReplaceDevice{4, 8 * tib}}, 9.9, 10.1, nil},
		{[]Change{ReplaceDevice{1, 4 * tib}}, 0, 0, ErrDoesNotFit},
		{[]Change{RemoveDevice{4}}, 4.9, 5.1, nil},
		{[]Change{RemoveDevice{4}, AddDevice{tib}}, 5.8, 6.1, nil},
		{[]Change{RemoveDevice{1}}, 1.9, 2.1, nil},
		{[]Change{RemoveDevice{1}, RemoveDevice{2}}, 0, 0, ErrDoesNotFit},
		{[]Change{RemoveDevice{1}, RemoveDevice{2}, ResizeDevice{3, tib / 2}}, 0, 0, ErrDoesNotFit},
		{[]Change{ResizeDevice{1, 4 * tib}}, 4.4, 4.6, nil},
		{[]Change{ResizeDevice{4, 2 * tib}}, 6.9, 7.1, nil},
		{[]Change{Convert{btrfs.Data, btrfs.Single}}, 13.9, 14.1, nil},
		{[]Change{Convert{btrfs.Data, btrfs.RAID1C3}}, 1.9, 2.1, nil},
		{[]Change{Convert{btrfs.Metadata, btrfs.RAID1C4}}, 5.9, 6.1, nil},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.changes), func(t *testing.T) {
			r, devices, err := WhatIf(p, l, tt.changes...)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			for _, d := range devices {
				if bytes, known := d.ByType(); !known || d.Used > 0 && bytes[btrfs.Data]+bytes[btrfs.Metadata] == 0 {
					t.Errorf("device %d: %d bytes are used, for %v", d.ID, d.Used, d.Allocated)
				}
			}
			if free := float64(r.Free) / tib; free < tt.least || free > tt.most {
				t.Errorf("free %.3f TiB (after a balance %.3f), want %.1f to %.1f", free, float64(r.FreeAfterBalance)/tib, tt.least, tt.most)
			}
		})
	}
	if diff := cmp.Diff(before, report(t, p)); diff != "" {
		t.Errorf("a what-if changed the pool:\n%s", diff)
	}
	for _, c := range []Change{AddDevice{mib}, RemoveDevice{9}, ResizeDevice{9, tib}, ResizeDevice{1, mib}, ReplaceDevice{9, tib}, Convert{btrfs.Mixed, btrfs.Single}} {
		if _, _, err := WhatIf(p, l, c); err == nil {
			t.Errorf("%s is no error", c)
		}
	}
}

// A device with nothing on it, that is not the last, is removed; and one is made smaller
// than what it holds, so that some of that moves.
func TestWhatIfOfAnEmptyDeviceAndOfOneTooSmall(t *testing.T) {
	p := fresh(t, btrfs.RAID1, btrfs.RAID1, 400*gib, 100*gib, 300*gib, 301*gib)
	for range 80 {
		grow(t, p, btrfs.Data, btrfs.RAID1, gib, gib)
	}
	l, err := NewLayout(p)
	if err != nil {
		t.Fatal(err)
	}
	if l.Devices[1].Used != 0 || l.Devices[0].Used <= 60*gib {
		t.Fatalf("device 2 has %d bytes, device 1 %d", l.Devices[1].Used, l.Devices[0].Used)
	}
	var used uint64
	for _, d := range l.Devices {
		used += d.Used
	}
	for _, tt := range []struct {
		change Change
		first  uint64 // what is on the first device then
	}{{RemoveDevice{2}, l.Devices[0].Used}, {ResizeDevice{1, 50 * gib}, 0}} {
		_, devices, err := WhatIf(p, l, tt.change)
		if err != nil {
			t.Errorf("%s: %v", tt.change, err)
			continue
		}
		var now uint64
		for _, d := range devices {
			now += d.Used
			if _, known := d.ByType(); !known || d.Used > d.Size {
				t.Errorf("%s: device %d of %d bytes: %d are used, for %v", tt.change, d.ID, d.Size, d.Used, d.Allocated)
			}
		}
		if now > used || now < used*9/10 || tt.first > 0 && devices[0].Used != tt.first {
			t.Errorf("%s: %d bytes are used on %v, before %d were", tt.change, now, devices, used)
		}
	}
}

// TestNoProfileIsGivenUpForARemoval: the kernel refuses to remove a device that a
// profile needs ("unable to go below two devices on raid1"), and so do we.
func TestNoProfileIsGivenUpForARemoval(t *testing.T) {
	p := fresh(t, btrfs.RAID1, btrfs.RAID1, 4*tib, 2*tib)
	l, err := NewLayout(p)
	if err != nil {
		t.Fatal(err)
	}
	if r, _, err := WhatIf(p, l, RemoveDevice{2}); err == nil || !strings.Contains(err.Error(), "raid1 of") || !strings.Contains(err.Error(), "convert it first") {
		t.Errorf("one device of two is removed: %+v, %v", r, err)
	}
	if _, _, err := WhatIf(p, l, AddDevice{tib}, RemoveDevice{2}); err != nil {
		t.Errorf("one of three is not: %v", err)
	}
	to := []Change{Convert{btrfs.Data, btrfs.Single}, Convert{btrfs.Metadata, btrfs.DUP}, Convert{btrfs.System, btrfs.DUP}, RemoveDevice{2}}
	if _, _, err := WhatIf(p, l, to...); err != nil {
		t.Errorf("after a conversion it is not: %v", err)
	}
}

func BenchmarkReport(b *testing.B) {
	for _, devices := range []int{4, 30} {
		b.Run(fmt.Sprintf("%d devices", devices), func(b *testing.B) {
			var sizes []uint64
			for i := range devices {
				sizes = append(sizes, uint64(i%5+1)*4*tib)
			}
			p := fresh(b, btrfs.RAID1, btrfs.RAID1, sizes...)
			l, err := NewLayout(p)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Calculate(p, l); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLayout100000BlockGroups(b *testing.B) {
	p := &btrfs.Pool{}
	const devices = 30
	for i := range devices {
		p.Devices = append(p.Devices, btrfs.Device{ID: uint64(i + 1), Size: btrfs.Some(uint64(20 * tib)), Used: btrfs.Some(uint64(0))})
	}
	var chunks []btrfs.Chunk
	for i := range uint64(100_000) {
		a, c := i%devices, (i*7+1)%devices
		if a == c {
			c = (c + 1) % devices
		}
		chunks = append(chunks, btrfs.Chunk{Logical: i * gib, Length: gib, Type: btrfs.Data, Profile: btrfs.RAID1,
			Stripes: []btrfs.Stripe{{DevID: a + 1, Offset: mib + 2*i*gib}, {DevID: c + 1, Offset: mib + (2*i+1)*gib}}})
	}
	b.ReportAllocs()
	for b.Loop() {
		builder := NewBuilder(p.Devices)
		for i := range chunks {
			if err := builder.Add(&chunks[i]); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := builder.Layout(); err != nil {
			b.Fatal(err)
		}
	}
}
