//go:build linux

package btrfs

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const fixtureUUID = "5f1c0a54-6d2b-4a33-9e0f-0123456789ab"

// modernTree is /sys/fs/btrfs/UUID as kernel 6.18 has it, of a raid1 of two
// devices that is being replaced onto a third, with a part of its data still
// single.
func modernTree() map[string]string {
	return map[string]string{
		"bdi":                                   "",
		"label":                                 "tank\n",
		"metadata_uuid":                         "99999999-6d2b-4a33-9e0f-0123456789ab\n",
		"checksum":                              "xxhash64 (xxhash64-generic)\n",
		"nodesize":                              "16384\n",
		"sectorsize":                            "4096\n",
		"exclusive_operation":                   "device replace\n",
		"commit_stats":                          "commits 44\nlast_commit_ms 7\nmax_commit_ms 120\ntotal_commit_ms 900\n",
		"features/extended_iref":                "1\n",
		"features/skinny_metadata":              "1\n",
		"features/compress_zstd":                "0\n",
		"allocation/global_rsv_size":            "5767168\n",
		"allocation/global_rsv_reserved":        "5751808\n",
		"allocation/data/total_bytes":           "2147483648\n",
		"allocation/data/bytes_used":            "1073741824\n",
		"allocation/data/bytes_readonly":        "65536\n",
		"allocation/data/chunk_size":            "10737418240\n",
		"allocation/data/raid1/total_bytes":     "1073741824\n",
		"allocation/data/single/total_bytes":    "1073741824\n",
		"allocation/metadata/total_bytes":       "268435456\n",
		"allocation/metadata/bytes_used":        "1196032\n",
		"allocation/metadata/bytes_readonly":    "0\n",
		"allocation/metadata/chunk_size":        "268435456\n",
		"allocation/metadata/raid1/total_bytes": "268435456\n",
		"allocation/system/total_bytes":         "8388608\n",
		"allocation/system/bytes_used":          "16384\n",
		"allocation/system/bytes_readonly":      "0\n",
		"allocation/system/chunk_size":          "33554432\n",
		"allocation/system/raid1/total_bytes":   "8388608\n",
		"allocation/system/raid1/of_the_future": "1\n",
		"allocation/data/raid9/total_bytes":     "1\n",
		"devinfo/0/missing":                     "0\n",
		"devinfo/0/writeable":                   "1\n",
		"devinfo/0/replace_target":              "1\n",
		"devinfo/0/error_stats":                 "write_errs 0\nread_errs 0\nflush_errs 0\ncorruption_errs 0\ngeneration_errs 0\n",
		"devinfo/2/missing":                     "0\n",
		"devinfo/2/writeable":                   "1\n",
		"devinfo/2/replace_target":              "0\n",
		"devinfo/2/error_stats":                 "write_errs 1\nread_errs 2\nflush_errs 3\ncorruption_errs 4\ngeneration_errs 5\n",
		"devinfo/10/missing":                    "1\n",
		"devinfo/10/writeable":                  "0\n",
		"devinfo/10/replace_target":             "0\n",
		"devinfo/10/error_stats":                "invalid\n",
		"devinfo/fsid-is-no-device/missing":     "0\n",
		"devices/sda/size":                      "8\n",
		"allocation/data/disk_total":            "3221225472\n",
	}
}

// modernPool is what modernTree says.
func modernPool(t *testing.T) *Pool {
	t.Helper()
	metadataUUID, err := ParseUUID("99999999-6d2b-4a33-9e0f-0123456789ab")
	if err != nil {
		t.Fatal(err)
	}
	return &Pool{
		UUID:         mustUUID(t, fixtureUUID),
		MetadataUUID: metadataUUID,
		Label:        "tank",
		Checksum:     Some("xxhash64"),
		NodeSize:     Some[uint64](16384),
		SectorSize:   Some[uint64](4096),
		Features:     []string{"extended_iref", "skinny_metadata"},
		Devices: []Device{
			{ID: 0, Missing: Some(false), Writeable: Some(true), ReplaceTarget: true, Errors: Some(ErrorCounts{})},
			{ID: 2, Missing: Some(false), Writeable: Some(true), Errors: Some(ErrorCounts{1, 2, 3, 4, 5})},
			{ID: 10, Missing: Some(true), Writeable: Some(false)},
		},
		Spaces: []Space{
			{Type: Data, Total: 2 << 30, Used: 1 << 30, ReadOnly: 65536, ChunkSize: Some[uint64](10 << 30),
				Profiles: []ProfileSpace{{Profile: RAID1}, {Profile: Single}}},
			{Type: Metadata, Total: 256 << 20, Used: 1196032, ChunkSize: Some[uint64](256 << 20),
				Profiles: []ProfileSpace{{Profile: RAID1, Total: 256 << 20, Used: 1196032}}},
			{Type: System, Total: 8 << 20, Used: 16384, ChunkSize: Some[uint64](32 << 20),
				Profiles: []ProfileSpace{{Profile: RAID1, Total: 8 << 20, Used: 16384}}},
		},
		GlobalReserve:      GlobalReserve{Size: Some[uint64](5767168), Used: Some[uint64](15360)},
		Commits:            Some(Commits{Count: 44, LastMS: 7, MaxMS: 120, TotalMS: 900}),
		ExclusiveOperation: Some("device replace"),
	}
}

func mustUUID(t *testing.T, s string) UUID {
	t.Helper()
	u, err := ParseUUID(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// writeTree writes files, and directories for names that end in a slash, and
// returns the client that sees them as /sys/fs/btrfs/UUID.
func writeTree(t *testing.T, tree map[string]string) *Client {
	t.Helper()
	sys := t.TempDir()
	for name, text := range tree {
		path := filepath.Join(sys, "fs/btrfs", fixtureUUID, name)
		dir := filepath.Dir(path)
		if strings.HasSuffix(name, "/") {
			dir = path
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dir == path {
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return NewClient(Paths{Proc: filepath.Join(sys, "proc"), Sys: sys, Root: "/"})
}

func TestSysfsPool(t *testing.T) {
	got, err := writeTree(t, modernTree()).ReadSysfsPool(mustUUID(t, fixtureUUID))
	if err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(modernPool(t), got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// What a kernel does not have, or a file that holds nonsense or cannot be
// read, is unknown and not 0; and it costs nothing else.
func TestSysfsUnknownIsNotZero(t *testing.T) {
	without := func(prefixes ...string) func(map[string]string) {
		return func(tree map[string]string) {
			maps.DeleteFunc(tree, func(name, _ string) bool {
				for _, p := range prefixes {
					if strings.HasPrefix(name, p) || strings.HasSuffix(name, p) {
						return true
					}
				}
				return false
			})
		}
	}
	file := func(name, text string) func(map[string]string) {
		return func(tree map[string]string) { tree[name] = text }
	}
	// Root can read every file; a directory it cannot.
	unreadable := func(name string) func(map[string]string) {
		return func(tree map[string]string) {
			delete(tree, name)
			tree[name+"/"] = ""
		}
	}
	device := func(i int, change func(*Device)) func(*Pool) {
		return func(p *Pool) { change(&p.Devices[i]) }
	}
	for _, tt := range []struct {
		name string
		tree func(map[string]string)
		want func(*Pool)
		err  string
	}{
		{"no chunk_size (before 6.0)", without("/chunk_size"), func(p *Pool) {
			for i := range p.Spaces {
				p.Spaces[i].ChunkSize = Opt[uint64]{}
			}
		}, ""},
		{"no commit_stats (before 6.1)", without("commit_stats"), func(p *Pool) { p.Commits = Opt[Commits]{} }, ""},
		{"no error_stats (before 5.14)", without("/error_stats"), func(p *Pool) {
			for i := range p.Devices {
				p.Devices[i].Errors = Opt[ErrorCounts]{}
			}
		}, ""},
		{"no devinfo", without("devinfo/"), func(p *Pool) { p.Devices = nil }, ""},
		{"no exclusive_operation", without("exclusive_operation"), func(p *Pool) { p.ExclusiveOperation = Opt[string]{} }, ""},
		{"no checksum, no sizes", without("checksum", "nodesize", "sectorsize"), func(p *Pool) {
			p.Checksum, p.NodeSize, p.SectorSize = Opt[string]{}, Opt[uint64]{}, Opt[uint64]{}
		}, ""},
		{"no global reserve", without("allocation/global_rsv"), func(p *Pool) { p.GlobalReserve = GlobalReserve{} }, ""},
		{"no allocation", without("allocation/"), func(p *Pool) { p.Spaces, p.GlobalReserve = nil, GlobalReserve{} }, ""},
		{"one type without its use", without("allocation/data/bytes_used"), func(p *Pool) { p.Spaces = p.Spaces[1:] }, ""},
		{"no features", without("features/"), func(p *Pool) { p.Features = nil }, ""},

		{"nonsense in chunk_size", file("allocation/data/chunk_size", "ten\n"), func(p *Pool) { p.Spaces[0].ChunkSize = Opt[uint64]{} }, "allocation/data/chunk_size"},
		{"negative chunk_size", file("allocation/data/chunk_size", "-1\n"), func(p *Pool) { p.Spaces[0].ChunkSize = Opt[uint64]{} }, "allocation/data/chunk_size"},
		{"empty chunk_size", file("allocation/data/chunk_size", ""), func(p *Pool) { p.Spaces[0].ChunkSize = Opt[uint64]{} }, "allocation/data/chunk_size"},
		{"total_bytes beyond 64 bits", file("allocation/data/total_bytes", "99999999999999999999\n"), func(p *Pool) { p.Spaces = p.Spaces[1:] }, "allocation/data/total_bytes"},
		{"nonsense in missing", file("devinfo/2/missing", "yes\n"), device(1, func(d *Device) { d.Missing = Opt[bool]{} }), "devinfo/2/missing"},
		{"nonsense in error_stats", file("devinfo/2/error_stats", "write_errs 1\nread_errs two\nflush_errs 3\ncorruption_errs 4\ngeneration_errs 5\n"),
			device(1, func(d *Device) { d.Errors = Opt[ErrorCounts]{} }), "devinfo/2/error_stats"},
		{"half of error_stats", file("devinfo/2/error_stats", "write_errs 1\n"), device(1, func(d *Device) { d.Errors = Opt[ErrorCounts]{} }), ""},
		{"error_stats of the future", file("devinfo/2/error_stats", "write_errs 1\nread_errs 2\nflush_errs 3\ncorruption_errs 4\ngeneration_errs 5\nbit_rot 6\n"),
			func(*Pool) {}, ""},
		{"half of commit_stats", file("commit_stats", "commits 44\n"), func(p *Pool) { p.Commits = Opt[Commits]{} }, ""},
		{"nonsense in global reserve", file("allocation/global_rsv_reserved", "some\n"), func(p *Pool) { p.GlobalReserve.Used = Opt[uint64]{} }, "global_rsv_reserved"},
		{"more reserved than there is", file("allocation/global_rsv_reserved", "5767169\n"), func(p *Pool) { p.GlobalReserve.Used = Some[uint64](0) }, ""},
		{"nonsense in metadata_uuid", file("metadata_uuid", "none\n"), func(p *Pool) { p.MetadataUUID = UUID{} }, ""},
		{"metadata_uuid as the fsid", file("metadata_uuid", fixtureUUID+"\n"), func(p *Pool) { p.MetadataUUID = UUID{} }, ""},

		{"unreadable missing", unreadable("devinfo/10/missing"), device(2, func(d *Device) { d.Missing = Opt[bool]{} }), "devinfo/10/missing: is a directory"},
		{"unreadable exclusive_operation", unreadable("exclusive_operation"), func(p *Pool) { p.ExclusiveOperation = Opt[string]{} }, "exclusive_operation: is a directory"},
		{"devinfo that is no directory", func(tree map[string]string) {
			without("devinfo/")(tree)
			tree["devinfo"] = "?"
		}, func(p *Pool) { p.Devices = nil }, "devinfo: not a directory"},

		{"label of two lines", file("label", "two\nlines\n\n"), func(p *Pool) { p.Label = "two\nlines\n" }, ""},
		{"label that is no text", file("label", "\xff\"\\\n"), func(p *Pool) { p.Label = "\xff\"\\" }, ""},
		{"no label", file("label", ""), func(p *Pool) { p.Label = "" }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree := modernTree()
			tt.tree(tree)
			got, err := writeTree(t, tree).ReadSysfsPool(mustUUID(t, fixtureUUID))
			checkError(t, err, tt.err)
			want := modernPool(t)
			tt.want(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestSysfsPoolThatIsGone(t *testing.T) {
	c := NewClient(Paths{Proc: t.TempDir(), Sys: t.TempDir(), Root: "/"})
	if p, err := c.ReadSysfsPool(mustUUID(t, fixtureUUID)); p != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v %v, want %v", p, err, fs.ErrNotExist)
	}
	// Half of it is gone already.
	tree := modernTree()
	delete(tree, "bdi")
	if p, err := writeTree(t, tree).ReadSysfsPool(mustUUID(t, fixtureUUID)); p != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v %v while it goes, want %v", p, err, fs.ErrNotExist)
	}
}

func TestMountsAddsWhatOnlySysfsKnows(t *testing.T) {
	for _, tt := range []struct{ root, process string }{{"/", "self"}, {t.TempDir(), "1"}} {
		proc, sys := t.TempDir(), t.TempDir()
		for _, name := range []string{fixtureUUID, "00000000-6d2b-4a33-9e0f-0123456789ab", "features", "debug"} {
			if err := os.MkdirAll(filepath.Join(sys, "fs/btrfs", name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		dir := filepath.Join(proc, tt.process)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		line := "36 28 0:31 / /mnt/pool rw - btrfs none rw\n"
		if err := os.WriteFile(filepath.Join(dir, "mountinfo"), []byte(line), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := NewClient(Paths{Proc: proc, Sys: sys, Root: tt.root}).Mounts()
		if err != nil {
			t.Fatal(err)
		}
		want := []Mount{
			{Device: "0:31", ReadOnly: Some(false), source: "none", Points: []MountPoint{{36, "/", "/mnt/pool"}}},
			{UUID: mustUUID(t, "00000000-6d2b-4a33-9e0f-0123456789ab")},
			{UUID: mustUUID(t, fixtureUUID)},
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Mount{})); diff != "" {
			t.Errorf("root %s (-want +got):\n%s", tt.root, diff)
		}
	}
}

func TestMountsWithoutProcIsAnError(t *testing.T) {
	_, err := NewClient(Paths{Proc: t.TempDir(), Sys: t.TempDir(), Root: "/"}).Mounts()
	checkError(t, err, "find the mounted filesystems")
}

// The unit serial number page of a disk, as vpd_pg80 holds it.
func TestReadUnitSerial(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vpd_pg80")
	for page, want := range map[string]string{
		"\x00\x80\x00\x09  WD-WX12":          "WD-WX12",
		"\x00\x80\x00\x04ABCDand more":       "ABCD",
		"\x00\x80\x00\x20short\x00\x00":      "short",
		"\x00\x80\x00\x00":                   "",
		"\x00\x80":                           "",
		"":                                   "",
		"\x00\x80\x00\x05A\xffBCD":           "ABCD",
		"\x00\x80\x00\x06 \x00\x00 \x00\x00": "",
	} {
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := readUnitSerial(path); got != want {
			t.Errorf("%q: got %q, want %q", page, got, want)
		}
	}
	if got := readUnitSerial(path + "0"); got != "" {
		t.Errorf("a page that is not there gives %q", got)
	}
}
