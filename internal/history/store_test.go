package history_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// The form of a file, as ring.go describes it.
const (
	headerSize = 4096
	slotSize   = 52
	slots      = 400 * 96
)

const day = 24 * time.Hour

var (
	pool  = btrfs.UUID{1, 2, 3}
	begin = time.Date(2026, 3, 7, 12, 0, 0, 0, time.UTC) // a whole quarter
)

// bench is a store with a clock that is set by hand.
type bench struct {
	t     testing.TB
	dir   string
	clock time.Time
	log   bytes.Buffer
	store *history.Store
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), clock: begin}
	b.restart()
	return b
}

func (b *bench) restart() {
	b.t.Helper()
	store, err := history.Open(log.NewLogfmtLogger(&b.log), state.NewDir(b.dir), func() time.Time { return b.clock })
	if err != nil {
		b.t.Fatal(err)
	}
	b.store = store
}

func (b *bench) path() string { return filepath.Join(b.dir, "history-"+pool.String()+".ring") }

// add adds a sample of now that has a number.
func (b *bench) add(n int) {
	b.t.Helper()
	if err := b.store.Add(pool, numbered(b.clock, n)); err != nil {
		b.t.Fatal(err)
	}
}

// run adds the samples first, first+1, ... one for each quarter of an hour.
func (b *bench) run(first, count int) {
	b.t.Helper()
	for i := range count {
		b.add(first + i)
		b.clock = b.clock.Add(history.Step)
	}
}

// numbers are those of all samples.
func (b *bench) numbers() []int {
	var all []int
	for _, s := range b.store.Samples(pool, time.Time{}, slots) {
		all = append(all, int(s.Used.Value))
	}
	return all
}

func numbered(at time.Time, n int) history.Sample {
	return history.Sample{
		Time: at, Used: btrfs.Some(uint64(n)), Free: btrfs.Some[uint64](1e12), FreeExpected: btrfs.Some(1e12 - uint64(n)),
		MetadataFree: btrfs.Some(uint64(1e9)), StatfsFree: btrfs.Some(uint64(2e12)),
	}
}

func from(first, count int) []int {
	all := make([]int, count)
	for i := range all {
		all[i] = first + i
	}
	return all
}

func TestSamplesOutliveTheProcess(t *testing.T) {
	b := newBench(t)
	want := []history.Sample{
		numbered(begin, 7),
		{Time: begin.Add(history.Step), StatfsFree: btrfs.Some[uint64](0)}, // all else is unknown
	}
	for _, s := range want {
		if err := b.store.Add(pool, s); err != nil {
			t.Fatal(err)
		}
	}
	b.clock = begin.Add(time.Hour)
	for range 2 {
		if got := b.store.Samples(pool, begin.Add(-day), 100); !slices.Equal(got, want) {
			t.Errorf("got\n%+v\nwant\n%+v", got, want)
		}
		if got := b.store.Samples(pool, begin.Add(history.Step), 100); !slices.Equal(got, want[1:]) {
			t.Errorf("of the second quarter: %+v", got)
		}
		b.restart()
	}
	if got := b.store.Samples(btrfs.UUID{9}, begin, 100); got != nil {
		t.Errorf("a pool that nothing is known of has %v", got)
	}
	if info, err := os.Stat(b.path()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v, want mode 0600", info, err)
	}
}

func TestQuarterHasOneSample(t *testing.T) {
	b := newBench(t)
	b.add(1)
	b.clock = begin.Add(history.Step - time.Second)
	b.add(2)
	b.restart()
	b.add(3)
	if got := b.numbers(); !slices.Equal(got, []int{1}) {
		t.Errorf("the samples are %v, want the first alone", got)
	}
}

// After 400 days the oldest samples give their places to the newest, and the file
// stays below 2 MiB.
func TestHistoryIsThatOf400DaysIn2MiB(t *testing.T) {
	b := newBench(t)
	const more = 1000
	b.run(0, slots+more)
	b.clock = b.clock.Add(-time.Second) // the last quarter is not over
	for range 2 {
		if got := b.numbers(); !slices.Equal(got, from(more, slots)) {
			t.Fatalf("there are %d samples, %d to %d", len(got), got[0], got[len(got)-1])
		}
		b.restart()
	}
	var st syscall.Stat_t
	if err := syscall.Stat(b.path(), &st); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes, %d on the disk", st.Size, st.Blocks*512)
	if st.Size > 2<<20 || st.Blocks*512 > 2<<20 {
		t.Errorf("the file has %d bytes and takes %d", st.Size, st.Blocks*512)
	}
	// What is older than that is told no more, though its place is not taken yet.
	b.clock = b.clock.Add(30 * day)
	if got := b.numbers(); got[0] != more+30*96-1 || got[len(got)-1] != slots+more-1 {
		t.Errorf("30 days later there are %d, from %d", len(got), got[0])
	}
}

func TestTornSampleIsMissingAndNothingElse(t *testing.T) {
	b := newBench(t)
	b.run(0, 5)
	whole, err := os.ReadFile(b.path())
	if err != nil {
		t.Fatal(err)
	}
	second := headerSize + int(begin.Unix()/900+1)%slots*slotSize
	for i := range slotSize {
		torn := bytes.Clone(whole)
		torn[second+i] ^= 0x40
		if err := os.WriteFile(b.path(), torn, 0o600); err != nil {
			t.Fatal(err)
		}
		b.restart()
		if got := b.numbers(); !slices.Equal(got, []int{0, 2, 3, 4}) {
			t.Errorf("with byte %d changed there are %v", i, got)
		}
	}
	// The end of the file, in the middle of the last one.
	if err := os.WriteFile(b.path(), whole[:len(whole)-slotSize/2], 0o600); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if got := b.numbers(); !slices.Equal(got, from(0, 4)) {
		t.Errorf("with its end cut off there are %v", got)
	}
	b.run(5, 1)
	if got := b.numbers(); !slices.Equal(got, []int{0, 1, 2, 3, 5}) {
		t.Errorf("after another there are %v", got)
	}
}

func TestDamagedFileIsSetAside(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"empty":          func([]byte) []byte { return nil },
		"cut off":        func(data []byte) []byte { return data[:40] },
		"zeros":          func(data []byte) []byte { return make([]byte, len(data)) },
		"magic":          func(data []byte) []byte { data[0]++; return data },
		"version":        func(data []byte) []byte { data[8]++; return data },
		"another pool":   func(data []byte) []byte { data[24]++; return data },
		"checksum":       func(data []byte) []byte { data[40]++; return data },
		"something else": func([]byte) []byte { return []byte(strings.Repeat("{}\n", 1000)) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.run(0, 5)
			data, err := os.ReadFile(b.path())
			if err == nil {
				data = damage(data)
				err = os.WriteFile(b.path(), data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			b.restart()
			b.run(5, 3)
			if got := b.numbers(); !slices.Equal(got, from(5, 3)) {
				t.Errorf("the new one has %v", got)
			}
			if kept, err := os.ReadFile(b.path() + ".damaged"); err != nil || !bytes.Equal(kept, data) {
				t.Errorf("it is not kept aside: %v", err)
			}
			if n := strings.Count(b.log.String(), "is damaged and was set aside"); n != 1 {
				t.Errorf("it is said %d times:\n%s", n, &b.log)
			}
		})
	}
}

func TestFileThatIsTakenAwayIsMadeAgain(t *testing.T) {
	b := newBench(t)
	b.run(0, 3)
	if err := os.Remove(b.path()); err != nil {
		t.Fatal(err)
	}
	b.run(3, 2)
	if got := b.numbers(); !slices.Equal(got, from(3, 2)) {
		t.Errorf("there are %v", got)
	}
}

func TestClockThatIsSetBackLosesNothing(t *testing.T) {
	for name, back := range map[string]time.Duration{
		"hours": 3 * time.Hour, "a month": 30 * day, "years": 1200 * day, "more than there is": 50 * 365 * day,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.run(0, 40*96)
			right := b.clock
			b.clock = right.Add(-back)
			b.restart() // a computer that starts with the wrong time
			b.run(1e6, 5)
			b.clock = right.Add(history.Step)
			for range 2 {
				b.run(len(b.numbers()), 4)
				b.restart()
			}
			if got := b.numbers(); !slices.Equal(got, from(0, 40*96+8)) {
				t.Errorf("there are %d samples, the last are %v", len(got), got[len(got)-5:])
			}
			if n := strings.Count(b.log.String(), "The clock is behind"); n != 1 {
				t.Errorf("it is said %d times:\n%s", n, &b.log)
			}
		})
	}
}

func TestSamplesOfAClockThatWasAheadAreNotTold(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"hours": 3 * time.Hour, "a day": day, "a month": 30 * day, "years": 1200 * day} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.run(0, 20*96)
			right := b.clock
			b.clock = right.Add(ahead)
			b.run(1e6, 4)
			// The clock is set right, and the machine never runs for an hour.
			b.clock = right
			for next := 20 * 96; next < 20*96+30; next += 3 {
				b.restart()
				b.run(next, 3)
				if got := b.numbers(); !slices.Equal(got, from(0, next+3)) {
					t.Fatalf("there are %d samples, the last are %v", len(got), got[len(got)-8:])
				}
			}
			// The daemon does not run when their time comes.
			b.clock = right.Add(max(ahead, day) - time.Hour)
			b.run(2e6, 1)
			b.clock = right.Add(max(ahead, day) + 2*time.Hour)
			b.run(2e6+1, 1)
			want := append(from(0, 20*96+30), 2e6, 2e6+1)
			if ahead > history.Span {
				want = want[len(want)-2:]
			}
			if got := b.numbers(); !slices.Equal(got, want) {
				t.Errorf("there are %d samples, want %d: %v", len(got), len(want), got[max(0, len(got)-8):])
			}
		})
	}
}

// A clock that was ahead for as long as there is a history is set right.
func TestClockThatWasAheadForLongIsNotBelievedForLong(t *testing.T) {
	b := newBench(t)
	b.clock = begin.Add(1000 * day)
	b.run(1e6, slots)
	b.clock = begin
	for next := 0; next < 10*96; next += 3 {
		b.restart()
		b.run(next, 3)
		b.clock = b.clock.Add(time.Hour)
	}
	if got := b.numbers(); !slices.Equal(got, from(0, 10*96)) {
		t.Errorf("there are %d samples, from %d to %d", len(got), got[0], got[len(got)-1])
	}
}

// TestNoClockMisleadsTheHistory: at many starts the clock is wrong, by months or
// years, for an hour at most, and the process is killed in the middle of writing.
// Each sample of the right time is told at once and for 399 days, but for those
// that were being written; and none of another time is.
func TestNoClockMisleadsTheHistory(t *testing.T) {
	full := fullBench(t)
	content, err := os.ReadFile(full.path())
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			b, now, next, wrong := newBench(t), begin, 0, int(1e6)
			good := make(map[int]time.Time)
			if seed%2 == 0 { // with a history of 400 days
				for ; next < slots; next++ {
					good[next] = begin.Add(time.Duration(next) * history.Step)
				}
				now = full.clock.Add(time.Second)
				if err := os.WriteFile(b.path(), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			check := func() {
				t.Helper()
				told := make(map[int]bool)
				for _, n := range b.numbers() {
					told[n] = true
					if n >= 1e6 && n < 2e6 {
						t.Errorf("sample %d of a wrong time is told", n)
					}
				}
				for n, at := range good {
					if now.Sub(at) < 399*day && !told[n] {
						t.Errorf("sample %d of %s is not told", n, at)
					}
				}
				if info, err := os.Stat(b.path()); err != nil || info.Size() > headerSize+slots*slotSize {
					t.Errorf("the file: %v %v", info, err)
				}
				if t.Failed() {
					t.FailNow()
				}
			}
			for session := range 60 {
				b.restart()
				ahead := 0
				if random.IntN(2) == 0 {
					ahead = 1 + random.IntN(8)
					off := 30*day + time.Duration(random.Int64N(int64(1500*day)))
					switch random.IntN(3) {
					case 0:
						b.clock = now.Add(off)
					case 1:
						b.clock = now.Add(-off)
					default: // the same after each start
						b.clock = time.Unix(1e9, 0)
					}
					b.run(wrong, ahead)
					wrong += ahead
					now = now.Add(time.Duration(ahead) * history.Step)
				}
				first, count := next, ahead+1+random.IntN(12)
				for range count {
					b.clock = now
					b.add(next)
					good[next] = now
					next++
					now = now.Add(history.Step)
					if next > first+1 {
						continue
					}
					if got := b.store.Samples(pool, b.clock, 1); len(got) != 1 || got[0].Used.Value != uint64(first) {
						t.Fatalf("session %d: sample %d is not told at once: %v", session, first, got)
					}
				}
				if random.IntN(4) == 0 {
					b.clock = now
					b.killed(random, func() { b.add(2e6 + session) }) // it may be there or not
					now = now.Add(history.Step)
				}
				switch random.IntN(10) {
				case 0:
					now = now.Add(time.Duration(random.Int64N(int64(60 * day)))).Truncate(history.Step)
				case 1, 2, 3, 4, 5:
					now = now.Add(time.Duration(random.Int64N(int64(day)))).Truncate(history.Step)
				}
				if session%20 == 19 {
					b.clock = now
					check()
				}
			}
		})
	}
}

// killed does something of which only some of the slots reach the file, and one of
// them in part.
func (b *bench) killed(random *rand.Rand, write func()) {
	b.t.Helper()
	before, err := os.ReadFile(b.path())
	if err != nil {
		b.t.Fatal(err)
	}
	write()
	after, err := os.ReadFile(b.path())
	if err != nil {
		b.t.Fatal(err)
	}
	before = append(before, make([]byte, len(after)-len(before))...)
	for _, start := range []int{512, headerSize} {
		for at := start; at+slotSize <= len(after); at += slotSize {
			if at+slotSize > headerSize && start == 512 {
				break
			}
			switch random.IntN(3) {
			case 0:
				copy(before[at:at+slotSize], after[at:])
			case 1:
				copy(before[at:at+random.IntN(slotSize)], after[at:])
			}
		}
	}
	if err := os.WriteFile(b.path(), before, 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.restart()
}

// TestKilledAtAnyPoint kills a process that adds samples as fast as it can. What it
// said it had added is there, and the file is good.
func TestKilledAtAnyPoint(t *testing.T) {
	if dir := os.Getenv("HISTORY_DIR"); dir != "" {
		addForever(t, dir)
	}
	b := newBench(t)
	random := rand.New(rand.NewPCG(1, 1))
	last := -1
	for kill := range 30 {
		if kill%3 == 2 { // also while it makes the file
			if err := os.Remove(b.path()); err != nil {
				t.Fatal(err)
			}
			last = -1
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledAtAnyPoint$")
		cmd.Env = append(os.Environ(), "HISTORY_DIR="+b.dir, "HISTORY_NEXT="+strconv.Itoa(last+1))
		stdout, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		after := 1 + random.IntN(1000)
		if kill%3 == 2 {
			after = 1 + random.IntN(3)
		}
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				t.Fatalf("the process says %q", lines.Text())
			}
			last = n
			if after--; after == 0 {
				_ = cmd.Process.Kill() // what it still writes is read
			}
		}
		_ = cmd.Wait()
		b.clock = begin.Add(time.Duration(last+2) * history.Step)
		b.restart()
		got := b.numbers()
		// One more may be there than it said.
		if len(got) < last+1 || len(got) > last+2 || !slices.Equal(got, from(0, len(got))) {
			t.Fatalf("kill %d: it added up to %d, and there are %d samples", kill, last, len(got))
		}
		last = len(got) - 1
	}
	if _, err := os.Stat(b.path() + ".damaged"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was damaged: %v\n%s", err, &b.log)
	}
}

// addForever is the process that is killed.
func addForever(t *testing.T, dir string) {
	store, err := history.Open(log.NewNopLogger(), state.NewDir(dir), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(os.Getenv("HISTORY_NEXT"))
	if err != nil {
		t.Fatal(err)
	}
	for ; n < slots; n++ {
		if err := store.Add(pool, numbered(begin.Add(time.Duration(n)*history.Step), n)); err != nil {
			t.Fatal(err)
		}
		fmt.Println(n)
	}
	os.Exit(0)
}

func TestManyPools(t *testing.T) {
	b := newBench(t)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			uuid := btrfs.UUID{byte(i), 1}
			for n := range 10 {
				if err := b.store.Add(uuid, numbered(begin.Add(time.Duration(n)*history.Step-10*history.Step), 100*i+n)); err != nil {
					t.Error(err)
				}
				b.store.Samples(uuid, begin.Add(-day), 200)
				b.store.Forecast(uuid)
			}
		})
	}
	wg.Wait()
	for i := range 64 {
		got := b.store.Samples(btrfs.UUID{byte(i), 1}, begin.Add(-day), 200)
		if len(got) != 10 || got[9].Used.Value != uint64(100*i+9) {
			t.Errorf("pool %d has %v", i, got)
		}
	}
}

func TestHistoriesAreBounded(t *testing.T) {
	b := newBench(t)
	for i := range 256 {
		if err := b.store.Add(btrfs.UUID{byte(i), 1}, numbered(begin, i)); err != nil {
			t.Fatal(err)
		}
	}
	b.restart()
	if err := b.store.Add(pool, numbered(begin, 0)); err == nil || !strings.Contains(err.Error(), "256 pools") {
		t.Errorf("one more: %v", err)
	}
	if err := b.store.Add(btrfs.UUID{7, 1}, numbered(begin.Add(time.Hour), 0)); err != nil {
		t.Errorf("one that there is: %v", err)
	}
}

func TestHistoryOfAPoolThatIsGoneIsRemoved(t *testing.T) {
	b := newBench(t)
	b.run(0, 3)
	other := btrfs.UUID{4}
	b.clock = begin.Add(399 * day)
	if err := errors.Join(b.store.RemoveOld(), b.store.Add(other, numbered(b.clock, 1))); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(b.path()); err != nil {
		t.Errorf("after 399 days: %v", err)
	}
	b.clock = begin.Add(401 * day)
	if err := b.store.RemoveOld(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(b.path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after 401 days: %v", err)
	}
	if got := b.store.Samples(other, begin, 10); len(got) != 1 {
		t.Errorf("the other one has %v", got)
	}
	b.run(3, 1) // it is back
	if got := b.numbers(); !slices.Equal(got, []int{3}) {
		t.Errorf("when it is back it has %v", got)
	}
}

func TestFewSamplesStandForMany(t *testing.T) {
	b := newBench(t)
	b.run(0, 90*96)
	for _, most := range []int{1, 2, 3, 7, 200, 400, 5000, 90*96 - 1, 90 * 96} {
		got := b.store.Samples(pool, begin, most)
		if len(got) > most || most > 2 && len(got) < most/2 {
			t.Errorf("of at most %d there are %d", most, len(got))
		}
		if last := got[len(got)-1].Used.Value; last != 90*96-1 {
			t.Errorf("of at most %d the last is %d", most, last)
		}
	}
	// The points stay where they are.
	before := b.store.Samples(pool, begin, 200)
	b.run(90*96, 1)
	after := b.store.Samples(pool, begin, 200)
	if !slices.Equal(before[:len(before)-1], after[:len(before)-1]) {
		t.Error("one more sample changes the others")
	}
	if got := b.store.Samples(pool, begin, 0); len(got) > 0 {
		t.Errorf("of none there are %d", len(got))
	}
}

func TestFileThatCannotBeReadIsSaidOnce(t *testing.T) {
	b := newBench(t)
	if err := os.Mkdir(b.path(), 0o700); err != nil {
		t.Fatal(err)
	}
	b.restart()
	for range 3 {
		if got := b.store.Samples(pool, begin, 10); got != nil {
			t.Errorf("it has %v", got)
		}
		if _, ok := b.store.Forecast(pool); ok {
			t.Error("it has a forecast")
		}
	}
	if n := strings.Count(b.log.String(), "cannot be read"); n != 1 {
		t.Errorf("it is said %d times:\n%s", n, &b.log)
	}
	if err := b.store.Add(pool, numbered(begin, 1)); err == nil || !strings.Contains(err.Error(), pool.String()) {
		t.Errorf("a sample: %v", err)
	}
}

func TestClockBeyondTheFormIsRefused(t *testing.T) {
	b := newBench(t)
	for _, at := range []time.Time{time.Unix(0, 0), time.Unix(-1e9, 0), time.Unix(1<<32, 0)} {
		if err := b.store.Add(pool, numbered(at, 1)); err == nil || !strings.Contains(err.Error(), "set it") {
			t.Errorf("%s: %v", at, err)
		}
	}
}

// FuzzFile reads any file. It gives samples in order, or begins anew, and takes
// another one.
func FuzzFile(f *testing.F) {
	first := time.Unix(52*slots*900, 0).UTC() // which has the first slot
	b := newBench(f)
	b.clock = first
	b.run(0, 3)
	data, err := os.ReadFile(b.path())
	if err != nil {
		f.Fatal(err)
	}
	// The rest of the head is empty.
	f.Add(data[:44], data[headerSize:])
	f.Add(data[:20], []byte{})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, head, samples []byte) {
		content := make([]byte, headerSize)
		copy(content, head)
		b := &bench{t: t, dir: dir, clock: first.Add(history.Step * 10)}
		if err := os.WriteFile(b.path(), append(content, samples...), 0o600); err != nil {
			t.Fatal(err)
		}
		b.restart()
		got := b.store.Samples(pool, time.Time{}, slots)
		for i, s := range got {
			if i > 0 && !got[i-1].Time.Before(s.Time) || s.Time.After(b.clock) {
				t.Errorf("sample %d is of %s", i, s.Time)
			}
		}
		b.store.Forecast(pool)
		b.clock = b.clock.Add(day)
		if err := b.store.Add(pool, numbered(b.clock, 1e6)); err != nil {
			t.Error(err)
		}
	})
}

func fullBench(b testing.TB) *bench {
	b.Helper()
	f := newBench(b)
	f.run(0, slots)
	f.clock = f.clock.Add(-time.Second)
	return f
}

// BenchmarkCachedPage is what the status page asks of a pool.
func BenchmarkCachedPage(b *testing.B) {
	f := fullBench(b)
	for b.Loop() {
		f.store.Samples(pool, f.clock.Add(-90*day), 200)
		f.store.Forecast(pool)
	}
}

// BenchmarkUncachedPage is the same after each new sample.
func BenchmarkUncachedPage(b *testing.B) {
	f := fullBench(b)
	for b.Loop() {
		f.restart()
		f.store.Samples(pool, f.clock.Add(-90*day), 200)
		f.store.Forecast(pool)
	}
}

func BenchmarkAdd(b *testing.B) {
	f := newBench(b)
	for n := 0; b.Loop(); n++ {
		f.run(n, 1)
	}
}
