package retention_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/testprogram"
	"github.com/btrfs-governor/btrfs-governor/snapshot/retention"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// btrbkCase is a history of a subvolume and what is to be kept of it.
type btrbkCase struct {
	name   string
	policy retention.Policy
	times  []time.Time // the oldest first
	// full: each period that the policy counts has a snapshot, up to now.
	full bool
}

// btrbkPreserve says the same to btrbk, which counts the current period on top
// of those that it is told.
func btrbkPreserve(p retention.Policy) string {
	var parts []string
	for _, r := range []struct {
		count int
		unit  string
	}{{p.Hourly, "h"}, {p.Daily, "d"}, {p.Weekly, "w"}, {p.Monthly, "m"}, {p.Yearly, "y"}} {
		if r.count > 1 { // 0 is none to btrbk, and not the current one alone
			parts = append(parts, fmt.Sprintf("%d%s", r.count-1, r.unit))
		}
	}
	if len(parts) == 0 {
		return "no"
	}
	return strings.Join(parts, " ")
}

// randomCase makes a history that ends in the current hour.
func randomCase(rng *rand.Rand, i int, now time.Time) btrbkCase {
	c := btrbkCase{name: fmt.Sprintf("h%03d", i)}
	count := func(most int) int { // 0, or from 2 on
		if n := rng.IntN(most); n > 0 {
			return n + 1
		}
		return 0
	}
	c.policy = retention.Policy{KeepLast: 1, Hourly: count(8), Daily: count(6), Weekly: count(5)}
	c.full = i%2 == 0
	// The longest period that has to be covered, and a little more.
	far := max(time.Duration(c.policy.Hourly)*time.Hour, time.Duration(c.policy.Daily)*24*time.Hour, time.Duration(c.policy.Weekly)*7*24*time.Hour) * 5 / 4
	step := time.Hour
	if far > 100*time.Hour {
		step = far / 20
	}
	at := now
	for now.Sub(at) < far || len(c.times) < 5 {
		c.times = append(c.times, at)
		switch {
		case c.full:
			// At least one in each period that counts: closer together while the
			// hours do.
			least := step
			if now.Sub(at) < time.Duration(c.policy.Hourly+1)*time.Hour {
				least = time.Hour
			} else if now.Sub(at) < time.Duration(c.policy.Daily+1)*24*time.Hour {
				least = min(step, 20*time.Hour)
			}
			at = at.Add(-least/2 - time.Duration(rng.Int64N(int64(least/2))))
		default:
			at = at.Add(-time.Duration(rng.ExpFloat64() * float64(2*step)))
		}
		if len(c.times) > 25 && !c.full {
			break
		}
	}
	slices.Reverse(c.times)
	// Of the same minute there is one: the names say no more.
	c.times = slices.CompactFunc(c.times, func(a, b time.Time) bool { return a.Truncate(time.Minute).Equal(b.Truncate(time.Minute)) })
	return c
}

// mondaysCase has months and years, and snapshots on Mondays only: those of
// btrbk begin on their first Monday, ours on the first.
func mondaysCase(rng *rand.Rand, i int, now time.Time) btrbkCase {
	c := btrbkCase{
		name:   fmt.Sprintf("m%03d", i),
		policy: retention.Policy{KeepLast: 1, Weekly: rng.IntN(6) * 2, Monthly: 2 + rng.IntN(14), Yearly: rng.IntN(3) * 2},
		full:   true,
	}
	monday := now.Truncate(24 * time.Hour)
	for monday.Weekday() != time.Monday {
		monday = monday.AddDate(0, 0, -1)
	}
	for range 20 + rng.IntN(50) {
		c.times = append(c.times, monday.Add(time.Duration(rng.Int64N(int64(min(24*time.Hour, max(now.Sub(monday), time.Minute)))))))
		monday = monday.AddDate(0, 0, -7)
	}
	slices.Reverse(c.times)
	return c
}

// TestAgreesWithBtrbk has btrbk decide on random histories of real snapshots.
//
// Where every period has a snapshot both keep the same. They differ in what they
// count: btrbk the periods before now, whether they have a snapshot or not, and
// we those that have one. So ours are more, and those that are more are the first
// of a period that lies further back than the count.
func TestAgreesWithBtrbk(t *testing.T) {
	testprogram.Find(t, "btrbk", "btrbk")
	rig := btrfstest.New(t)
	pool, err := rig.NewPool(btrfstest.PoolOptions{Sizes: []int64{8 << 30}})
	must(t, err)
	// Not in the first minute of an hour or day: btrbk looks at the clock later.
	now := time.Now().UTC()
	rng := rand.New(rand.NewPCG(6, 28))
	var cases []btrbkCase
	for i := range 220 {
		cases = append(cases, randomCase(rng, i, now))
	}
	for i := range 40 {
		cases = append(cases, mondaysCase(rng, i, now))
	}
	snapshots := takeAll(t, pool, cases)
	theirs := askBtrbk(t, pool, cases)
	if later := time.Now().UTC(); later.Truncate(time.Hour) != now.Truncate(time.Hour) {
		// Another hour has begun in between: btrbk counted from that one. The next
		// try is early in it.
		t.Logf("an hour ended meanwhile; once more")
		t.Run("again", TestAgreesWithBtrbk)
		return
	}

	agreed, more, differ := 0, 0, 0
	for _, c := range cases {
		var all []retention.Snapshot
		for _, at := range c.times {
			all = append(all, retention.Next(all, at, nil, false, time.UTC))
		}
		same := true
		for i, d := range retention.Apply(c.policy, all, time.UTC) {
			name := c.snapshotName(i)
			kept, known := theirs[name]
			switch {
			case !known:
				t.Fatalf("btrbk says nothing of %s", name)
			case kept == d.Keep:
			case kept:
				t.Errorf("%s: btrbk keeps %s, and we do not (%s); the policy is %+v", c.name, name, d.String(), c.policy)
				differ++
				same = false
			default:
				same = false
				more++
				if c.full {
					t.Errorf("%s: we keep %s (%s), btrbk does not; every period has a snapshot; the policy is %+v", c.name, name, d.String(), c.policy)
				} else if !fartherThan(c.policy, c.times[i], now, d.Reasons) {
					t.Errorf("%s: we keep %s (%s), btrbk does not, and it is not too far back for it; the policy is %+v", c.name, name, d.String(), c.policy)
				}
			}
		}
		if same {
			agreed++
		}
	}
	t.Logf("%d histories, %d snapshots: %d histories agree; of the others we keep %d more, for they lie behind gaps, and btrbk %d", len(cases), snapshots, agreed, more, differ)
	if agreed < 110+40 {
		t.Errorf("only %d histories agree", agreed)
	}
}

// fartherThan reports whether a snapshot lies further back than the count of each
// rule that keeps it.
func fartherThan(p retention.Policy, at, now time.Time, reasons []string) bool {
	day := 24 * time.Hour
	monday := func(t time.Time) time.Time {
		t = t.Truncate(day)
		for t.Weekday() != time.Monday {
			t = t.Add(-day)
		}
		return t
	}
	for _, r := range reasons {
		var back, count int
		switch r {
		case "hourly":
			back, count = int(now.Truncate(time.Hour).Sub(at.Truncate(time.Hour))/time.Hour), p.Hourly
		case "daily":
			back, count = int(now.Truncate(day).Sub(at.Truncate(day))/day), p.Daily
		case "weekly":
			back, count = int(monday(now).Sub(monday(at))/(7*day)), p.Weekly
		default:
			return false
		}
		if back < count {
			return false
		}
	}
	return true
}

// snapshotName is the name of the ith snapshot, as btrbk has them.
func (c *btrbkCase) snapshotName(i int) string {
	return c.name + "." + c.times[i].Format("20060102T1504")
}

// takeAll makes a subvolume for each case, and its snapshots.
func takeAll(t *testing.T, pool *btrfstest.Pool, cases []btrbkCase) (n int) {
	t.Helper()
	must(t, os.Mkdir(pool.Path("snaps"), 0o755))
	f, err := btrfs.OpenFilesystem(pool.Mountpoint)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	dir, err := f.OpenDirectory("snaps")
	must(t, err)
	defer dir.Close()
	for _, c := range cases {
		must(t, pool.NewSubvolume(c.name))
		source, err := f.OpenDirectory(c.name)
		must(t, err)
		for i := range c.times {
			must(t, dir.CreateSnapshot(source, c.snapshotName(i)))
			n++
		}
		source.Close()
	}
	return n
}

// askBtrbk returns, by name, which snapshots btrbk would keep.
func askBtrbk(t *testing.T, pool *btrfstest.Pool, cases []btrbkCase) map[string]bool {
	t.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, "timestamp_format long\npreserve_day_of_week monday\nsnapshot_preserve_min latest\nvolume %s\n snapshot_dir snaps\n", pool.Mountpoint)
	for _, c := range cases {
		fmt.Fprintf(&text, " subvolume %s\n  snapshot_preserve %s\n", c.name, btrbkPreserve(c.policy))
	}
	path := filepath.Join(t.TempDir(), "btrbk.conf")
	must(t, os.WriteFile(path, []byte(text.String()), 0o600))
	cmd := exec.Command("btrbk", "-c", path, "--dry-run", "--print-schedule", "--format", "raw", "prune")
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Fatalf("btrbk: %v\n%s", err, exit.Stderr)
	}
	must(t, err)
	kept := make(map[string]bool)
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, `format="schedule"`) && !strings.HasPrefix(line, "format='schedule'") {
			continue
		}
		values := make(map[string]string)
		for field := range strings.FieldsSeq(line) {
			key, value, _ := strings.Cut(field, "=")
			values[key] = strings.Trim(value, `'"`)
		}
		kept[filepath.Base(values["path"])] = values["action"] != "delete"
	}
	if len(kept) == 0 {
		t.Fatalf("btrbk says\n%s", out)
	}
	return kept
}
