//go:build linux

package collector_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

const (
	recordedDir = "../testdata/pools"

	mib = int64(1) << 20
	gib = int64(1) << 30
	tib = int64(1) << 40
)

// record makes TestRecordedPools make the pools anew and record them:
//
//	go test ./collector -run TestRecordedPools -record
//
// It takes root. The golden files follow from the recorded pools and have to
// be updated after it.
var record = flag.Bool("record", false, "record the pools of testdata/pools again, from real ones")

// hardLabel has all that is hard on a label.
const hardLabel = "Fotos \"2024\"\nback\\slash ü"

// recordings make the pools of testdata/pools, by the name of the file.
var recordings = map[string]func(*testing.T, *btrfstest.Rig) *btrfs.Pool{
	// Four mismatched disks of which the two large ones came later: all data
	// and metadata still lie on the two small ones.
	"raid1-mismatched": func(t *testing.T, rig *btrfstest.Rig) *btrfs.Pool {
		pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{2 * tib, tib}, Data: "raid1", Metadata: "raid1", Label: "attic"})
		ok(t, pool.Allocate("films", 24*gib))
		rng := newRandom()
		ok(t, pool.WriteFile("photo", 8*mib, rng))
		for i := range 2000 {
			ok(t, os.WriteFile(pool.Path(fmt.Sprintf("note-%d", i)), make([]byte, 1500), 0o644))
		}
		_, err := pool.AddDisk(4 * tib)
		ok(t, err)
		_, err = pool.AddDisk(8 * tib)
		ok(t, err)
		// One block of the photo has rotted on one of the disks.
		ok(t, pool.CorruptFile("photo", mib, 1))
		for range 64 { // the process id tells which copy is read
			ok(t, exec.Command("dd", "if="+pool.Path("photo"), "of=/dev/null", "iflag=direct", "bs=1M", "status=none").Run())
			text, err := pool.Sysfs("devinfo/2/error_stats")
			ok(t, err)
			if !strings.Contains(text, "corruption_errs 0") {
				break
			}
			ok(t, pool.DropCaches())
		}
		return recordPool(t, pool)
	},
	"single-dup": func(t *testing.T, rig *btrfstest.Rig) *btrfs.Pool {
		pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{64 * gib}, Data: "single", Metadata: "dup", Label: "sdcard"})
		ok(t, pool.Allocate("file", 5*gib))
		ok(t, pool.WriteFile("written", 4*mib, newRandom()))
		return recordPool(t, pool)
	},
	"raid10-converting": func(t *testing.T, rig *btrfstest.Rig) *btrfs.Pool {
		pool := newPool(t, rig, btrfstest.PoolOptions{
			Sizes: []int64{6 * gib, 6 * gib, 4 * gib, 4 * gib}, Data: "raid1", Metadata: "raid1", Label: "scratch",
		})
		ok(t, pool.Allocate("file", 4*gib))
		ok(t, pool.Convert("raid10", "", "limit=2"))
		return recordPool(t, pool)
	},
	"raid5": func(t *testing.T, rig *btrfstest.Rig) *btrfs.Pool {
		pool := newPool(t, rig, btrfstest.PoolOptions{
			Sizes: []int64{4 * tib, 4 * tib, 3 * tib}, Data: "raid5", Metadata: "raid1c3", Label: "cold",
			MkfsArgs: []string{"--csum", "xxhash"},
		})
		ok(t, pool.Allocate("file", 20*gib))
		return recordPool(t, pool)
	},
	"degraded-raid1": func(t *testing.T, rig *btrfstest.Rig) *btrfs.Pool {
		pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{4 * tib, 3 * tib, 2 * tib}, Data: "raid1", Metadata: "raid1", Label: "tank"})
		ok(t, pool.Allocate("file", 12*gib))
		ok(t, pool.Detach(1))
		ok(t, pool.MountDegraded(false))
		return recordPool(t, pool)
	},
	"mixed": func(t *testing.T, rig *btrfstest.Rig) *btrfs.Pool {
		pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{2 * gib}, Data: "single", Metadata: "single", Mixed: true, Label: "stick"})
		ok(t, pool.Allocate("file", 300*mib))
		return recordPool(t, pool)
	},
	// The same kind of pool as the first, as a process sees it that may not
	// read the chunk tree.
	"unprivileged": func(t *testing.T, rig *btrfstest.Rig) *btrfs.Pool {
		pool := newPool(t, rig, btrfstest.PoolOptions{
			Sizes: []int64{8 * tib, 4 * tib, 2 * tib, tib}, Data: "raid1", Metadata: "raid1", Label: "media",
		})
		ok(t, pool.Allocate("file", 24*gib))
		p := recordPool(t, pool)
		p.Chunks = btrfs.Opt[[]btrfs.Chunk]{}
		return p
	},
	"label": func(t *testing.T, rig *btrfstest.Rig) *btrfs.Pool {
		pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{gib, gib}, Data: "raid1", Metadata: "raid1"})
		setLabel(t, pool, hardLabel)
		return recordPool(t, pool)
	},
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newPool(t *testing.T, rig *btrfstest.Rig, options btrfstest.PoolOptions) *btrfstest.Pool {
	t.Helper()
	pool, err := rig.NewPool(options)
	ok(t, err)
	return pool
}

func newRandom() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

// setLabel sets a label by BTRFS_IOC_SET_FSLABEL, which takes any; btrfs-progs
// and sysfs do not.
func setLabel(t *testing.T, pool *btrfstest.Pool, label string) {
	t.Helper()
	const setFSLabel = 0x41009432
	var text [256]byte
	copy(text[:], label)
	dir, err := os.Open(pool.Mountpoint)
	ok(t, err)
	defer dir.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), setFSLabel, uintptr(unsafe.Pointer(&text))); errno != 0 {
		t.Fatalf("set the label %q: %v", label, errno)
	}
}

// findMount returns a pool as discovery finds it.
func findMount(t *testing.T, client *btrfs.Client, uuid string) *btrfs.Mount {
	t.Helper()
	mounts, err := client.Mounts()
	ok(t, err)
	for i := range mounts {
		if mounts[i].UUID.String() == uuid {
			return &mounts[i]
		}
	}
	t.Fatalf("pool %s is not found", uuid)
	return nil
}

// recordPool reads everything of a pool.
func recordPool(t *testing.T, pool *btrfstest.Pool) *btrfs.Pool {
	t.Helper()
	ok(t, pool.Sync())
	client := btrfs.NewClient(btrfs.DefaultPaths())
	p, err := client.Record(findMount(t, client, pool.UUID))
	ok(t, err)
	p.Mountpoint = "/mnt/pool"
	return p
}

func recordedText(p *btrfs.Pool) ([]byte, error) {
	text, err := json.MarshalIndent(p, "", "\t")
	return append(text, '\n'), err
}

// The recorded pools are those of recordings, written as we would write them
// today, and say nothing of the machine they were recorded on.
func TestRecordedPools(t *testing.T) {
	if *record {
		for name, make := range recordings {
			text, err := recordedText(make(t, btrfstest.New(t)))
			ok(t, err)
			ok(t, os.WriteFile(filepath.Join(recordedDir, name+".json"), text, 0o644))
		}
	}
	uuids := map[btrfs.UUID]string{}
	for _, name := range recordedNames(t) {
		if recordings[name] == nil {
			t.Errorf("%s: nothing tells how it was recorded", name)
		}
		text, err := os.ReadFile(filepath.Join(recordedDir, name+".json"))
		ok(t, err)
		var p btrfs.Pool
		ok(t, json.Unmarshal(text, &p))
		again, err := recordedText(&p)
		ok(t, err)
		if diff := cmp.Diff(string(text), string(again)); diff != "" {
			t.Errorf("%s (-recorded +written again):\n%s", name, diff)
		}
		if other, twice := uuids[p.UUID]; twice {
			t.Errorf("%s and %s have the same UUID", name, other)
		}
		uuids[p.UUID] = name
		if p.Mountpoint != "/mnt/pool" {
			t.Errorf("%s: it was recorded on %s", name, p.Mountpoint)
		}
		for _, d := range p.Devices {
			if d.Path != "" && !strings.HasPrefix(d.Path, "/dev/loop") {
				t.Errorf("%s: device %d is %s", name, d.ID, d.Path)
			}
		}
	}
	if len(uuids) != len(recordings) {
		t.Errorf("there are %d recorded pools, want %d", len(uuids), len(recordings))
	}
}

// recordedNames are the names of the recorded pools, without .json.
func recordedNames(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(recordedDir, "*.json"))
	ok(t, err)
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".json"))
	}
	slices.Sort(names)
	return names
}
