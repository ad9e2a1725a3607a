package statusfile

import (
	"errors"
	"io/fs"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
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

func TestKeysOfALaterFormatArePassedOver(t *testing.T) {
	text := "scrub status:1\n" + pool.String() + ":1|csum_errors:3|new_thing:x y|finished:1\n"
	got, err := Parse([]byte(text), pool)
	if err != nil {
		t.Fatal(err)
	}
	want := []Device{{DevID: 1, Counters: btrfs.ScrubCounters{CsumErrors: 3}, Finished: true}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWritersTakeTurns(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for writer := range uint64(4) {
		wg.Go(func() {
			for range 50 {
				if err := Write(dir, pool, []Device{device(writer + 1)}); err != nil {
					t.Error(err)
				}
				devices, err := Read(dir, pool)
				if err != nil || len(devices) != 1 {
					t.Errorf("read between writes: %v, %v", devices, err)
				}
			}
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
}

func TestLockOfAnotherProgramIsRespected(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(Path(dir, pool) + "_tmp")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir, pool, []Device{device(1)}); !errors.Is(err, ErrLocked) {
		t.Errorf("while another program has the lock: %v", err)
	}
	if _, err := Read(dir, pool); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was written all the same: %v", err)
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
