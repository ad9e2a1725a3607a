package collector_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
)

// timeout is that of the exporters of these tests. Those with a pool that
// hangs run in a synctest bubble, where time passes at once.
const timeout = 8 * time.Second

// fakeSource has the pools that a test gives it.
type fakeSource struct {
	mu     sync.Mutex
	mounts []btrfs.Mount
	err    error                                                // of discovery
	read   map[btrfs.UUID]func(n int) (*collector.Facts, error) // n counts the readings from 1
	reads  map[btrfs.UUID]int
}

func newFakeSource() *fakeSource {
	return &fakeSource{
		read:  make(map[btrfs.UUID]func(int) (*collector.Facts, error)),
		reads: make(map[btrfs.UUID]int),
	}
}

func (s *fakeSource) Mounts() ([]btrfs.Mount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mounts), s.err
}

func (s *fakeSource) Reader() collector.PoolReader { return s }

func (s *fakeSource) Read(m *btrfs.Mount) (*collector.Facts, error) {
	s.mu.Lock()
	s.reads[m.UUID]++
	n, read := s.reads[m.UUID], s.read[m.UUID]
	s.mu.Unlock()
	return read(n)
}

// add adds a mounted pool and returns its UUID.
func (s *fakeSource) add(id byte, read func(n int) (*collector.Facts, error)) btrfs.UUID {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := btrfs.UUID{id}
	s.mounts = append(s.mounts, btrfs.Mount{Device: fmt.Sprintf("0:%d", id), UUID: u, Points: []btrfs.MountPoint{{Path: "/mnt"}}})
	s.read[u] = read
	return u
}

// unmount takes a pool away.
func (s *fakeSource) unmount(u btrfs.UUID) (restore func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.mounts
	s.mounts = slices.DeleteFunc(slices.Clone(before), func(m btrfs.Mount) bool { return m.UUID == u })
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mounts = before
	}
}

func (s *fakeSource) readings(u btrfs.UUID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads[u]
}

// onePool is a pool of one device with a single data chunk.
func onePool(t *testing.T, id byte) *collector.Facts {
	t.Helper()
	const gib = 1 << 30
	profile := func(total, used uint64) []btrfs.ProfileSpace {
		return []btrfs.ProfileSpace{{Profile: btrfs.Single, Total: total, Used: used}}
	}
	f, err := collector.NewFacts(&btrfs.Pool{
		UUID: btrfs.UUID{id}, Label: fmt.Sprintf("pool-%d", id), Mountpoint: "/mnt",
		ReadOnly: btrfs.Some(false), Checksum: btrfs.Some("crc32c"), ExclusiveOperation: btrfs.Some("none"),
		Devices: []btrfs.Device{{
			ID: 1, Name: "sda", Path: "/dev/sda", Size: btrfs.Some[uint64](10 * gib), Used: btrfs.Some[uint64](2 * gib),
			Missing: btrfs.Some(false), Writeable: btrfs.Some(true), Errors: btrfs.Some(btrfs.ErrorCounts{Read: 3}),
		}},
		Spaces: []btrfs.Space{
			{Type: btrfs.Data, Total: gib, Used: gib / 2, Profiles: profile(gib, gib/2)},
			{Type: btrfs.Metadata, Total: gib, Used: gib / 4, Profiles: profile(gib, gib/4)},
		},
		Chunks: btrfs.Some([]btrfs.Chunk{
			{Logical: gib, Length: gib, Type: btrfs.Data, Profile: btrfs.Single, Stripes: []btrfs.Stripe{{DevID: 1, Offset: gib}}},
			{Logical: 2 * gib, Length: gib, Type: btrfs.Metadata, Profile: btrfs.Single, Stripes: []btrfs.Stripe{{DevID: 1, Offset: 2 * gib}}},
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// good adds a pool that can be read.
func (s *fakeSource) good(t *testing.T, id byte) btrfs.UUID {
	facts := onePool(t, id)
	return s.add(id, func(int) (*collector.Facts, error) { return facts, nil })
}

// disk is what a pool that may hang waits for.
type disk struct {
	mu   sync.Mutex
	hung chan struct{}
}

func (d *disk) hang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hung = make(chan struct{})
}

func (d *disk) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.hung)
	d.hung = nil
}

func (d *disk) wait() {
	d.mu.Lock()
	hung := d.hung
	d.mu.Unlock()
	if hung != nil {
		<-hung
	}
}

// onDisk adds a pool whose disk may hang.
func (s *fakeSource) onDisk(t *testing.T, id byte) (btrfs.UUID, *disk) {
	facts, d := onePool(t, id), &disk{}
	return s.add(id, func(int) (*collector.Facts, error) {
		d.wait()
		return facts, nil
	}), d
}

func allCollectors() []string {
	var names []string
	for _, info := range collector.All() {
		names = append(names, info.Name)
	}
	return names
}

func newExporter(t *testing.T, source collector.Source, change ...func(*collector.Config)) *collector.Exporter {
	t.Helper()
	c := collector.Config{Logger: log.NewNopLogger(), Source: source, Enabled: allCollectors(), Timeout: timeout}
	for _, f := range change {
		f(&c)
	}
	e, err := collector.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// series are the values of an exposition by name and labels, as in
// `name{label="value"}`.
type series map[string]float64

// scrape gathers what an exporter has to say, as a registry does.
func scrape(t *testing.T, e *collector.Exporter, names ...string) series {
	t.Helper()
	c, err := e.Collector(names...)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, gather(t, c))
}

// gather returns the exposition in the text format.
func gather(t *testing.T, c prometheus.Collector) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Error(err)
	}
	var text bytes.Buffer
	encoder := expfmt.NewEncoder(&text, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		if err := encoder.Encode(f); err != nil {
			t.Fatal(err)
		}
	}
	return text.String()
}

func parse(t *testing.T, text string) series {
	t.Helper()
	s := make(series)
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndex(line, " ")
		value, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64)
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		if _, twice := s[line[:i]]; twice {
			t.Errorf("series %s is there twice", line[:i])
		}
		s[line[:i]] = value
	}
	return s
}

// of returns the series of one pool, those about the scrape left out.
func (s series) of(u btrfs.UUID) series {
	own := maps.Clone(s)
	maps.DeleteFunc(own, func(name string, _ float64) bool {
		return !strings.Contains(name, `uuid="`+u.String()+`"`) || strings.HasPrefix(name, "btrfs_scrape_")
	})
	return own
}

// success returns what the exposition says of a collector on a pool: 0, 1 or
// absent.
func (s series) success(name string, u btrfs.UUID) string {
	v, ok := s[fmt.Sprintf(`btrfs_scrape_collector_success{collector=%q,uuid=%q}`, name, u)]
	if !ok {
		return "absent"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// checkComplete wants everything of a pool, and no word of a failure.
func (s series) checkComplete(t *testing.T, u btrfs.UUID) {
	t.Helper()
	for _, name := range append(allCollectors(), "read") {
		if got := s.success(name, u); got != "1" {
			t.Errorf("pool %s: success of %s is %s, want 1", u, name, got)
		}
	}
	for _, name := range []string{"btrfs_pool_free_bytes", "btrfs_pool_size_bytes", "btrfs_pool_device_failures_tolerated", "btrfs_metadata_devices"} {
		if _, ok := s[fmt.Sprintf(`%s{uuid=%q}`, name, u)]; !ok {
			t.Errorf("pool %s: no %s", u, name)
		}
	}
}

// checkFailed wants that a pool could not be read, and nothing else of it.
func (s series) checkFailed(t *testing.T, u btrfs.UUID) {
	t.Helper()
	for _, name := range append(allCollectors(), "read") {
		if got := s.success(name, u); got != "0" {
			t.Errorf("pool %s: success of %s is %s, want 0", u, name, got)
		}
	}
	if left := s.of(u); len(left) > 0 {
		t.Errorf("pool %s could not be read, but there are %v", u, left)
	}
}

// checkAbsent wants no word of a pool.
func (s series) checkAbsent(t *testing.T, u btrfs.UUID) {
	t.Helper()
	for name := range s {
		if strings.Contains(name, u.String()) {
			t.Errorf("there is %s", name)
		}
	}
}

func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// hangingMounts is a source whose mount table can hang.
type hangingMounts struct {
	*fakeSource
	hang chan struct{} // nil: it does not; else until closed
}

func (s *hangingMounts) Mounts() ([]btrfs.Mount, error) {
	s.mu.Lock()
	hang := s.hang
	s.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return s.fakeSource.Mounts()
}

func (s *hangingMounts) setHang(hang chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hang = hang
}

// bubbleGoroutines returns how many goroutines there are in the synctest bubble
// of the caller. All those of the process are no measure: the runtime's own,
// which run finalizers and cleanups, come and go as the garbage collector
// likes.
func bubbleGoroutines(t *testing.T) int {
	t.Helper()
	bubble := regexp.MustCompile(`(?m)^goroutine \d+ .*(, synctest bubble \d+)\b.*:$`)
	self := make([]byte, 64<<10)
	m := bubble.FindSubmatch(self[:runtime.Stack(self, false)])
	if m == nil {
		t.Fatal("the trace of a goroutine does not name its synctest bubble")
	}
	all := make([]byte, 4<<20)
	n := runtime.Stack(all, true)
	if n == len(all) {
		t.Fatal("the traces of all goroutines were cut off")
	}
	count := 0
	for _, other := range bubble.FindAllSubmatch(all[:n], -1) {
		if bytes.Equal(other[1], m[1]) {
			count++
		}
	}
	return count
}

func TestHungMountTableCostsNoPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &hangingMounts{fakeSource: newFakeSource()}
		pool := source.good(t, 1)
		e := newExporter(t, source)
		s := scrape(t, e)
		s.checkComplete(t, pool)

		goroutines := bubbleGoroutines(t)
		hang := make(chan struct{})
		source.setHang(hang)
		for range 50 {
			if d := took(func() { s = scrape(t, e) }); d > timeout {
				t.Fatalf("a scrape took %s", d)
			}
			s.checkComplete(t, pool)
			if got, ok := s[`btrfs_scrape_collector_success{collector="discovery",uuid=""}`]; !ok || got != 0 {
				t.Fatalf("success of discovery is %v (there: %t) while the mount table hangs", got, ok)
			}
		}
		synctest.Wait()
		if now := bubbleGoroutines(t); now > goroutines+1 {
			t.Errorf("%d goroutines after 50 scrapes, %d before", now, goroutines)
		}
		source.setHang(nil)
		close(hang)
		synctest.Wait()
		source.good(t, 2)
		if d := took(func() { s = scrape(t, e) }); d != 0 {
			t.Errorf("a scrape took %s after the mount table answered", d)
		}
		s.checkComplete(t, btrfs.UUID{2})
	})
}

func TestHungPoolCostsItsSeriesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newFakeSource()
		first := source.good(t, 1)
		hung, disk := source.onDisk(t, 2)
		last := source.good(t, 3)
		e := newExporter(t, source)
		s := scrape(t, e)
		for _, u := range []btrfs.UUID{first, hung, last} {
			s.checkComplete(t, u)
		}

		goroutines := bubbleGoroutines(t)
		disk.hang()
		if d := took(func() { s = scrape(t, e) }); d != timeout {
			t.Errorf("the first scrape took %s, want the deadline of %s", d, timeout)
		}
		s.checkFailed(t, hung)
		s.checkComplete(t, first)
		s.checkComplete(t, last)

		for range 50 {
			if d := took(func() { s = scrape(t, e) }); d != 0 {
				t.Fatalf("a later scrape took %s: it waited for the pool again", d)
			}
		}
		s.checkFailed(t, hung)
		s.checkComplete(t, first)
		s.checkComplete(t, last)
		synctest.Wait()
		if now := bubbleGoroutines(t); now > goroutines+1 {
			t.Errorf("%d goroutines after 51 scrapes of a pool that hangs, %d before", now, goroutines)
		}
		if n := source.readings(hung); n != 2 {
			t.Errorf("the pool that hangs was read %d times, want once before and once since", n)
		}

		disk.release()
		synctest.Wait()
		if now := bubbleGoroutines(t); now > goroutines {
			t.Errorf("%d goroutines after the disk was released, %d before", now, goroutines)
		}
		if d := took(func() { s = scrape(t, e) }); d != 0 {
			t.Errorf("a scrape of good pools took %s", d)
		}
		s.checkComplete(t, hung)
		if n := source.readings(hung); n != 3 {
			t.Errorf("the pool was read %d times, want once more after its disk was released", n)
		}
	})
}

func TestPoolsThatHangFromTheStartShareTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newFakeSource()
		var (
			uuids []btrfs.UUID
			disks []*disk
		)
		for id := range byte(5) {
			u, d := source.onDisk(t, id+1)
			d.hang()
			uuids, disks = append(uuids, u), append(disks, d)
		}
		good := source.good(t, 9)
		e := newExporter(t, source)
		var s series
		if d := took(func() { s = scrape(t, e) }); d != timeout {
			t.Errorf("the scrape took %s, want %s", d, timeout)
		}
		for _, u := range uuids {
			s.checkFailed(t, u)
		}
		s.checkComplete(t, good)
		for _, d := range disks {
			d.release()
		}
	})
}

func TestSlowPoolIsWaitedForUpToTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newFakeSource()
		facts := onePool(t, 1)
		delay := timeout - time.Second
		u := source.add(1, func(int) (*collector.Facts, error) {
			time.Sleep(delay)
			return facts, nil
		})
		e := newExporter(t, source)
		var s series
		if d := took(func() { s = scrape(t, e) }); d != delay {
			t.Errorf("the scrape took %s, want %s", d, delay)
		}
		s.checkComplete(t, u)
		if got := s[fmt.Sprintf(`btrfs_scrape_collector_duration_seconds{collector="read",uuid=%q}`, u)]; got != delay.Seconds() {
			t.Errorf("it says that the reading took %v seconds, want %v", got, delay.Seconds())
		}
		// A configuration that is read again takes effect.
		e.SetTimeout(time.Second)
		if d := took(func() { s = scrape(t, e) }); d != time.Second {
			t.Errorf("the scrape took %s, want %s", d, time.Second)
		}
		s.checkFailed(t, u)
		time.Sleep(delay)
	})
}

func TestScrapesAtOnceShareReadings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newFakeSource()
		facts := onePool(t, 1)
		slow := source.add(1, func(int) (*collector.Facts, error) {
			time.Sleep(time.Second)
			return facts, nil
		})
		hung, disk := source.onDisk(t, 2)
		disk.hang()
		e := newExporter(t, source)
		goroutines := bubbleGoroutines(t)
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				// Some come when the others are waiting already.
				time.Sleep(time.Duration(i%4) * 200 * time.Millisecond)
				var s series
				if d := took(func() { s = scrape(t, e) }); d > timeout {
					t.Errorf("a scrape took %s, more than %s", d, timeout)
				}
				s.checkComplete(t, slow)
				s.checkFailed(t, hung)
			})
		}
		wg.Wait()
		if n := source.readings(slow); n != 1 {
			t.Errorf("the slow pool was read %d times, want once", n)
		}
		if n := source.readings(hung); n != 1 {
			t.Errorf("the pool that hangs was read %d times, want once", n)
		}
		synctest.Wait()
		if now := bubbleGoroutines(t); now > goroutines+1 {
			t.Errorf("%d goroutines after 100 scrapes, %d before", now, goroutines)
		}
		disk.release()
	})
}

func TestPoolThatIsUnmountedWhileItHangsIsKnownWhenItComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newFakeSource()
		u, disk := source.onDisk(t, 1)
		disk.hang()
		e := newExporter(t, source)
		goroutines := bubbleGoroutines(t)
		scrape(t, e).checkFailed(t, u)
		restore := source.unmount(u)
		scrape(t, e).checkAbsent(t, u)
		restore()
		if d := took(func() { scrape(t, e).checkFailed(t, u) }); d != 0 {
			t.Errorf("the scrape took %s: it waited again", d)
		}
		synctest.Wait()
		if now := bubbleGoroutines(t); now > goroutines+1 {
			t.Errorf("%d goroutines, %d before", now, goroutines)
		}
		source.unmount(u)
		disk.release()
		synctest.Wait()
		scrape(t, e).checkAbsent(t, u)
		restore()
		scrape(t, e).checkComplete(t, u)
	})
}

func TestExcludedPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newFakeSource()
		byUUID, byLabel, kept := source.good(t, 1), source.good(t, 2), source.good(t, 3)
		hangs, disk := source.onDisk(t, 4)
		exclude := func(u btrfs.UUID, label string) bool {
			return u == byUUID || label == "pool-2" || label == "pool-4"
		}
		e := newExporter(t, source, func(c *collector.Config) { c.Exclude = exclude })
		s := scrape(t, e)
		for _, u := range []btrfs.UUID{byUUID, byLabel, hangs} {
			s.checkAbsent(t, u)
		}
		s.checkComplete(t, kept)
		if n := source.readings(byUUID); n != 0 {
			t.Errorf("a pool excluded by UUID was read %d times", n)
		}
		// What the label is can no longer be read; it is remembered.
		disk.hang()
		scrape(t, e).checkAbsent(t, hangs)
		scrape(t, e).checkAbsent(t, hangs)
		disk.release()
		synctest.Wait()

		e.SetExclude(nil)
		s = scrape(t, e)
		for _, u := range []btrfs.UUID{byUUID, byLabel, kept, hangs} {
			s.checkComplete(t, u)
		}
	})
}

func TestFactsThatAreUnknownCostTheirSeriesOnly(t *testing.T) {
	full := newFakeSource()
	u := full.good(t, 1)
	all := scrape(t, newExporter(t, full)).of(u)

	for _, tt := range []struct {
		name   string
		change func(*collector.Facts)
		err    error
		failed []string // the collectors
		lost   []string // beginnings of the names of the series that are gone
	}{
		{"nothing", func(*collector.Facts) {}, nil, nil, nil},
		{"an error beside good facts", func(*collector.Facts) {}, errors.New("a file could not be read"), []string{"read"}, nil},
		{
			"the capacity", func(f *collector.Facts) { f.Report = nil }, nil, []string{"capacity"},
			[]string{"btrfs_pool_usable_", "btrfs_pool_free_", "btrfs_pool_stranded_", "btrfs_pool_metadata_free_", "btrfs_device_stranded_"},
		},
		{
			"the chunks", func(f *collector.Facts) {
				f.Pool.Chunks = btrfs.Opt[[]btrfs.Chunk]{}
				g, err := collector.NewFacts(f.Pool)
				if err != nil {
					t.Fatal(err)
				}
				*f = *g
			}, nil, []string{"allocation", "loss", "metadata"},
			[]string{"btrfs_block_groups", "btrfs_device_allocated_", "btrfs_pool_device_failures_", "btrfs_pool_worst_pair_", "btrfs_pool_lost_", "btrfs_metadata_", "btrfs_device_metadata_"},
		},
		{
			"all but what sysfs tells", func(f *collector.Facts) {
				p := f.Pool
				p.StatfsFree, p.ReadOnly = btrfs.Opt[uint64]{}, btrfs.Opt[bool]{}
				p.Devices[0].Size, p.Devices[0].Used = btrfs.Opt[uint64]{}, btrfs.Opt[uint64]{}
				*f = collector.Facts{Pool: p}
			}, nil, []string{"allocation", "capacity", "device", "loss", "metadata"},
			[]string{
				"btrfs_pool_usable_", "btrfs_pool_free_", "btrfs_pool_stranded_", "btrfs_pool_metadata_free_", "btrfs_device_stranded_",
				"btrfs_block_groups", "btrfs_device_allocated_", "btrfs_pool_device_failures_", "btrfs_pool_worst_pair_", "btrfs_pool_lost_", "btrfs_metadata_", "btrfs_device_metadata_",
				"btrfs_pool_size_", "btrfs_pool_statfs_", "btrfs_pool_read_only", "btrfs_device_size_", "btrfs_device_unallocated_",
			},
		},
		{
			"a device's error counters", func(f *collector.Facts) { f.Pool.Devices[0].Errors = btrfs.Opt[btrfs.ErrorCounts]{} }, nil,
			[]string{"error"}, []string{"btrfs_device_errors_total"},
		},
		{
			"the error counters of a missing device", func(f *collector.Facts) {
				f.Pool.Devices[0].Errors = btrfs.Opt[btrfs.ErrorCounts]{}
				f.Pool.Devices[0].Missing = btrfs.Some(true)
			}, nil, nil, []string{"btrfs_device_errors_total", "btrfs_device_unallocated_bytes"},
		},
		{
			"a device's state", func(f *collector.Facts) {
				f.Pool.Devices[0].Missing, f.Pool.Devices[0].Writeable = btrfs.Opt[bool]{}, btrfs.Opt[bool]{}
			}, nil, nil, []string{"btrfs_device_missing", "btrfs_device_writeable", "btrfs_pool_devices_missing"},
		},
		{
			"what runs", func(f *collector.Facts) { f.Pool.ExclusiveOperation = btrfs.Opt[string]{} }, nil,
			nil, []string{"btrfs_pool_exclusive_operation"},
		},
		{
			"the space accounting", func(f *collector.Facts) { f.Pool.Spaces, f.Report = nil, nil }, nil, []string{"capacity", "pool"},
			[]string{
				"btrfs_pool_usable_", "btrfs_pool_free_", "btrfs_pool_stranded_", "btrfs_pool_metadata_free_", "btrfs_device_stranded_",
				"btrfs_pool_used_bytes", "btrfs_allocation_", "btrfs_pool_worst_pair_", "btrfs_pool_lost_",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			source := newFakeSource()
			facts := onePool(t, 1)
			tt.change(facts)
			source.add(1, func(int) (*collector.Facts, error) { return facts, tt.err })
			s := scrape(t, newExporter(t, source))
			for _, name := range append(allCollectors(), "read") {
				want := "1"
				if slices.Contains(tt.failed, name) {
					want = "0"
				}
				if got := s.success(name, u); got != want {
					t.Errorf("success of %s is %s, want %s", name, got, want)
				}
			}
			lost := func(name string) bool {
				return slices.ContainsFunc(tt.lost, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
			}
			own := s.of(u)
			for name := range own {
				if lost(name) {
					t.Errorf("%s = %v is there, though it is unknown", name, own[name])
				}
			}
			for name := range all {
				if _, ok := own[name]; !ok && !lost(name) && !strings.HasPrefix(name, "btrfs_pool_info") {
					t.Errorf("%s is gone", name)
				}
			}
		})
	}
}

func TestOneFilesystemIsExportedOnce(t *testing.T) {
	source := newFakeSource()
	u := source.good(t, 1)
	other := source.good(t, 2)
	// In a container whose /dev is not the host's, the mount table does not
	// tell the UUID, and sysfs knows the same pool once more.
	facts := onePool(t, 1)
	source.mounts[0].UUID = btrfs.UUID{}
	source.read[btrfs.UUID{}] = func(int) (*collector.Facts, error) { return facts, nil }
	source.mounts = append(source.mounts, btrfs.Mount{UUID: u}, btrfs.Mount{Device: "0:77", UUID: u})
	s := scrape(t, newExporter(t, source)) // which fails on series that are there twice
	s.checkComplete(t, u)
	s.checkComplete(t, other)
}

func TestPoolThatIsGoneIsAbsent(t *testing.T) {
	source := newFakeSource()
	there := source.good(t, 1)
	facts := onePool(t, 2)
	gone := source.add(2, func(n int) (*collector.Facts, error) {
		if n == 2 {
			return nil, fmt.Errorf("/mnt: %w", collector.ErrGone)
		}
		return facts, nil
	})
	logged := &strings.Builder{}
	e := newExporter(t, source, func(c *collector.Config) { c.Logger = log.NewLogfmtLogger(log.NewSyncWriter(logged)) })
	scrape(t, e).checkComplete(t, gone)
	s := scrape(t, e)
	s.checkAbsent(t, gone)
	s.checkComplete(t, there)
	scrape(t, e).checkComplete(t, gone)
	if logged.Len() > 0 {
		t.Errorf("it logged %s", logged)
	}
}

func TestNamedCollectors(t *testing.T) {
	source := newFakeSource()
	u := source.good(t, 1)
	e := newExporter(t, source, func(c *collector.Config) {
		c.Enabled = []string{"pool", "capacity", "device", "pool"}
	})
	for _, tt := range []struct {
		names []string
		want  string // the collectors that ran
		err   string
	}{
		{nil, "capacity device pool", ""},
		{[]string{"pool"}, "pool", ""},
		{[]string{"pool", "capacity", "pool"}, "capacity pool", ""},
		{[]string{"loss"}, "", `collector "loss" is disabled (--no-collector.loss)`},
		{[]string{"pool", "read"}, "", `unknown collector "read" (known: allocation, capacity, commit, device, error, loss, metadata, pool)`},
		{[]string{""}, "", `unknown collector ""`},
	} {
		c, err := e.Collector(tt.names...)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%q: error %v, want %s", tt.names, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tt.names, err)
			continue
		}
		s := parse(t, gather(t, c))
		var ran []string
		for _, name := range allCollectors() {
			if s.success(name, u) == "1" {
				ran = append(ran, name)
			}
		}
		if got := strings.Join(ran, " "); got != tt.want {
			t.Errorf("%q: ran %s, want %s", tt.names, got, tt.want)
		}
		if s.success("read", u) != "1" || s.success("discovery", btrfs.UUID{}) == "1" {
			t.Errorf("%q: reading and discovery are not told of as they should be", tt.names)
		}
	}
	if _, err := collector.New(collector.Config{Enabled: []string{"pools"}}); err == nil || !strings.Contains(err.Error(), `unknown collector "pools"`) {
		t.Errorf("an unknown collector: %v", err)
	}
}

func TestFaultsAreLoggedWhenTheyChange(t *testing.T) {
	source := newFakeSource()
	facts := onePool(t, 1)
	answers := []error{nil, errA, errA, errA, errB, errB, nil, nil, errA, nil}
	source.add(1, func(n int) (*collector.Facts, error) {
		err := answers[n-1]
		if errors.Is(err, errB) {
			return facts, err
		}
		if err != nil {
			return nil, err
		}
		return facts, nil
	})
	logged := &strings.Builder{}
	e := newExporter(t, source, func(c *collector.Config) { c.Logger = log.NewLogfmtLogger(log.NewSyncWriter(logged)) })
	for range answers {
		scrape(t, e)
	}
	pool := btrfs.UUID{1}.String()
	want := strings.Join([]string{
		`level=error msg="pool could not be read" pool=` + pool + ` err=one`,
		`level=warn msg="pool could be read in part only" pool=` + pool + ` err=two`,
		`level=info msg="pool can be read again" pool=` + pool,
		`level=error msg="pool could not be read" pool=` + pool + ` err=one`,
		`level=info msg="pool can be read again" pool=` + pool,
	}, "\n") + "\n"
	if logged.String() != want {
		t.Errorf("logged\n%swant\n%s", logged, want)
	}
}

var errA, errB = errors.New("one"), errors.New("two")

func TestDiscoveryThatFailsInPartKeepsTheRest(t *testing.T) {
	source := newFakeSource()
	u := source.good(t, 1)
	source.err = errA
	logged := &strings.Builder{}
	e := newExporter(t, source, func(c *collector.Config) { c.Logger = log.NewLogfmtLogger(log.NewSyncWriter(logged)) })
	const discovery = `btrfs_scrape_collector_success{collector="discovery",uuid=""}`
	for range 3 {
		s := scrape(t, e)
		s.checkComplete(t, u)
		if v, ok := s[discovery]; !ok || v != 0 {
			t.Errorf("%s = %v %t, want 0", discovery, v, ok)
		}
	}
	source.err = nil
	if v := scrape(t, e)[discovery]; v != 1 {
		t.Errorf("%s = %v, want 1", discovery, v)
	}
	if n := strings.Count(logged.String(), "\n"); n != 1 {
		t.Errorf("logged %d lines, want 1:\n%s", n, logged)
	}
}

func TestTextFromOutsideMakesGoodLabels(t *testing.T) {
	source := newFakeSource()
	facts := onePool(t, 1)
	facts.Pool.Label = "a \"quoted\"\nname\\ ü\xff"
	facts.Pool.Mountpoint = "/mnt/\xfe{}"
	source.add(1, func(int) (*collector.Facts, error) { return facts, nil })
	s := scrape(t, newExporter(t, source))
	found := false
	for name := range s {
		found = found || strings.HasPrefix(name, "btrfs_pool_info{") &&
			strings.Contains(name, `label="a \"quoted\"\nname\\ ü`+"\ufffd"+`"`) &&
			strings.Contains(name, `mountpoint="/mnt/`+"\ufffd"+`{}"`)
	}
	if !found {
		t.Errorf("no such btrfs_pool_info in %q", slices.Sorted(maps.Keys(s.of(btrfs.UUID{1}))))
	}
}

func TestCollectorsAreListedInOrder(t *testing.T) {
	names := allCollectors()
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("the collectors are %q", names)
	}
	for _, info := range collector.All() {
		if info.Help == "" || strings.HasSuffix(info.Help, " ") {
			t.Errorf("the help of %s is %q", info.Name, info.Help)
		}
	}
}
