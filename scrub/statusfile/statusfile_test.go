package statusfile

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

var pool = btrfs.UUID{0xfd, 0xa4, 15: 0x75}

func device(devid uint64) Device {
	return Device{
		DevID: devid,
		Counters: btrfs.ScrubCounters{
			DataExtentsScrubbed: 320, TreeExtentsScrubbed: 11, DataBytesScrubbed: 20971520, TreeBytesScrubbed: 180224,
			ReadErrors: 1, CsumErrors: 2, VerifyErrors: 3, NoCsum: 4, CsumDiscards: 5, SuperErrors: 6, MallocErrors: 7,
			UncorrectableErrors: 8, CorrectedErrors: 9, LastPhysical: 109117440,
		},
		Started: time.Unix(1795593219, 0).UTC(), Resumed: time.Unix(1795593300, 0).UTC(), Duration: 90 * time.Second,
	}
}

func TestFormatIsThatOfBtrfsProgs(t *testing.T) {
	const want = "scrub status:1\n" +
		"fda40000-0000-0000-0000-000000000075:2|data_extents_scrubbed:320|tree_extents_scrubbed:11|data_bytes_scrubbed:20971520|tree_bytes_scrubbed:180224|" +
		"read_errors:1|csum_errors:2|verify_errors:3|no_csum:4|csum_discards:5|super_errors:6|malloc_errors:7|uncorrectable_errors:8|corrected_errors:9|" +
		"last_physical:109117440|t_start:1795593219|t_resumed:1795593300|duration:90|canceled:0|finished:0\n"
	if got := string(Format(pool, []Device{device(2)})); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	dir := t.TempDir() + "/new"
	want := []Device{device(1), device(7)}
	want[1].Canceled, want[0].Finished = true, true
	if err := Write(dir, pool, want); err != nil {
		t.Fatal(err)
	}
	got, err := Read(dir, pool)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if info, err := os.Stat(Path(dir, pool)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v %v, want 0600", info, err)
	}
	if _, err := Read(dir, btrfs.UUID{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestBadFilesAreRefused(t *testing.T) {
	id := pool.String()
	for _, bad := range []string{
		"", "scrub status:2\n", "scrub status:1\nnonsense\n", "scrub status:1\n" + id + ":x\n",
		"scrub status:1\n" + id + ":1|csum_errors\n", "scrub status:1\n" + id + ":1|csum_errors:-1\n",
		"scrub status:1\n00000000-0000-0000-0000-000000000000:1|csum_errors:1\n",
		"scrub status:1\n" + id + ":1\n" + id + ":1\n",
	} {
		if d, err := Parse([]byte(bad), pool); err == nil {
			t.Errorf("%q gives %v and no error", bad, d)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Format(pool, []Device{device(1), device(2)}))
	f.Add([]byte("scrub status:1\n" + pool.String() + ":1|later:x|duration:18446744073709551615\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		devices, err := Parse(data, pool)
		if err != nil {
			return
		}
		again, err := Parse(Format(pool, devices), pool)
		if err != nil {
			t.Fatalf("what was read is written as what cannot be read: %v", err)
		}
		if diff := cmp.Diff(devices, again); diff != "" {
			t.Error(diff)
		}
	})
}

func scrubStatus(t *testing.T, mountpoint string) string {
	t.Helper()
	out, err := exec.Command("btrfs", "scrub", "status", mountpoint).CombinedOutput()
	if err != nil {
		t.Fatalf("btrfs scrub status: %v\n%s", err, out)
	}
	return string(out)
}

// TestBtrfsProgsAndWeReadEachOther uses the directory of btrfs-progs, and a
// pool that nobody else has.
func TestBtrfsProgsAndWeReadEachOther(t *testing.T) {
	const dir = "/var/lib/btrfs"
	rig := btrfstest.New(t)
	p, err := rig.NewPool(btrfstest.PoolOptions{Sizes: []int64{300 << 20, 300 << 20}, Data: "raid1", Metadata: "raid1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WriteFile("f", 20<<20, rand.New(rand.NewPCG(1, 2))); err != nil {
		t.Fatal(err)
	}
	if err := p.Sync(); err != nil {
		t.Fatal(err)
	}
	uuid, err := btrfs.ParseUUID(p.UUID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(Path(dir, uuid)) })

	if out, err := exec.Command("btrfs", "scrub", "start", "-B", p.Mountpoint).CombinedOutput(); err != nil {
		t.Fatalf("btrfs scrub start: %v\n%s", err, out)
	}
	devices, err := Read(dir, uuid)
	if err != nil {
		t.Fatal(err)
	}
	if len(devices) != 2 || !devices[0].Finished || devices[0].Counters.DataBytesScrubbed != 20<<20 || devices[0].Started.IsZero() {
		t.Fatalf("of a scrub by btrfs-progs is read %+v", devices)
	}

	for _, tt := range []struct {
		want               string
		canceled, finished bool
	}{{"finished", false, true}, {"aborted", true, false}, {"interrupted", false, false}} {
		for i := range devices {
			devices[i].Canceled, devices[i].Finished = tt.canceled, tt.finished
			devices[i].Counters.CsumErrors = 3
		}
		if err := Write(dir, uuid, devices); err != nil {
			t.Fatal(err)
		}
		out := scrubStatus(t, p.Mountpoint)
		if !strings.Contains(out, tt.want) || !strings.Contains(out, "csum=6") {
			t.Errorf("btrfs scrub status does not say %s and csum=6:\n%s", tt.want, out)
		}
	}
}
