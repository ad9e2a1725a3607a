package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-kit/log"
	"github.com/google/go-cmp/cmp"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

const recordedPools = "--path.recorded=../../testdata/pools"

func TestCapacityTable(t *testing.T) {
	status, stdout, stderr := runCommandLine("capacity", "attic", recordedPools, "--what-if=add=4TiB, remove=2")
	if status != 0 || stderr != "" {
		t.Errorf("exit status %d: %s", status, stderr)
	}
	const want = `Pool 64a6d7a5-fd78-483b-a8b0-b782e0c44cf1 attic
Mounted at /mnt/pool, data in raid1

                              now      then
  can still be written   6.94 TiB  8.97 TiB  with metadata that grows along, as expected
  by data alone          6.95 TiB  8.98 TiB  exact while metadata needs no new chunk
  df says                4.98 TiB
  used                   24.0 GiB  24.0 GiB  by the data of files
  more after a balance   26.0 GiB  64.0 KiB
  holds at most          7.00 TiB  9.00 TiB  of data, with the metadata there is
  room for metadata      6.95 TiB  8.98 TiB  if it got all that is unallocated
  stranded by mismatch   1.00 TiB       0 B  raw; other devices would free it
  stranded by imbalance  52.0 GiB       0 B  raw; a balance frees it

2.02 TiB more could be written.

When it is full is not known: that takes a history of a day at least, which the daemon keeps.

  devid  device                                                     size      data  metadata      free  stranded
      1  /dev/loop63  #m........                                2.00 TiB  25.0 GiB  1.00 GiB  1.97 TiB       0 B
      2  /dev/loop64  #m...                                     1.00 TiB  25.0 GiB  1.00 GiB   998 GiB       0 B
      3  /dev/loop65  ....................                      4.00 TiB       0 B       0 B  4.00 TiB       0 B
      4  /dev/loop66  ...................................xxxxx  8.00 TiB       0 B       0 B  6.95 TiB  1.05 TiB
  # data  m metadata and system  . free for data  x stranded

The devices after add=4TiB, remove=2:

  devid  device                                                     size      data  metadata      free  stranded
      1  /dev/loop63  ..........                                2.00 TiB       0 B       0 B  2.00 TiB       0 B
      3  /dev/loop65  #m..................                      4.00 TiB  13.0 GiB       0 B  3.99 TiB       0 B
      4  /dev/loop66  #m......................................  8.00 TiB  25.0 GiB  1.00 GiB  7.97 TiB       0 B
      5  (new)        #m..................                      4.00 TiB  12.0 GiB  1.00 GiB  3.99 TiB       0 B
  # data  m metadata and system  . free for data
`
	if diff := cmp.Diff(want, stdout); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestCapacityTellsWhatIsNotKnownOrOfNoUse(t *testing.T) {
	for args, wants := range map[string][]string{
		"media":                           {"estimated: it takes root", "# allocated", "size  allocated"},
		"tank":                            {"      1  missing      #-", "- unusable"},
		"9b497adc":                        {`Pool 9b497adc-2226-4656-9792-dae1031900a4 Fotos \"2024\"\nback\\slash ü`},
		"attic --what-if=convert=raid1c3": {"Data would be in raid1c3. 3.97 TiB less could be written.", "The devices after convert=raid1c3:"},
		"attic --what-if=replace=4:16TiB": {"Of the 8.00 TiB more on the devices hardly anything can be used: raid1 finds no partner for it.", "      4  (new)        "},
		"sdcard --what-if=add=64GiB":      {"more could be written."},
		"tank --what-if=replace=1:4TiB":   {"      1  (new)        "},
	} {
		status, stdout, stderr := runCommandLine(append(strings.Fields("capacity "+args), recordedPools)...)
		for _, want := range wants {
			if !strings.Contains(stdout, want) {
				t.Errorf("%s: exit status %d, %s: there is no %q in\n%s", args, status, stderr, want, stdout)
			}
		}
	}
}

func TestCapacityOfAllPools(t *testing.T) {
	status, stdout, stderr := runCommandLine("capacity", recordedPools)
	if got := strings.Count(stdout, "\nPool "); status != 0 || stderr != "" || !strings.HasPrefix(stdout, "Pool ") || got != 7 {
		t.Errorf("exit status %d, %s: %d more pools in\n%s", status, stderr, got, stdout)
	}
	status, stdout, stderr = runCommandLine("capacity", recordedPools, "--output=json")
	var list []map[string]any
	if err := json.Unmarshal([]byte(stdout), &list); status != 0 || stderr != "" || err != nil || len(list) != 8 {
		t.Errorf("exit status %d, %s: %d pools, %v", status, stderr, len(list), err)
	}
	status, stdout, stderr = runCommandLine("capacity", "attic", recordedPools, "--output=json")
	var one map[string]any
	if err := json.Unmarshal([]byte(stdout), &one); status != 0 || stderr != "" || err != nil || one["uuid"] != "64a6d7a5-fd78-483b-a8b0-b782e0c44cf1" {
		t.Errorf("exit status %d, %s: %s, %v", status, stderr, stdout, err)
	}
	none := "--path.recorded=" + t.TempDir()
	for output, want := range map[string]string{"table": "No btrfs pool is mounted.\n", "json": "[]\n"} {
		if status, stdout, stderr := runCommandLine("capacity", none, "--output="+output); status != 0 || stdout != want {
			t.Errorf("of no pool: exit status %d, %q, %s", status, stdout, stderr)
		}
	}
}

func TestCapacityErrorsSayWhatToDo(t *testing.T) {
	for args, want := range map[string]string{
		"cellar":                                   `There is no mounted pool "cellar". Mounted are "tank", "Fotos \"2024\"\nback\\slash ü", "stick", "attic", `,
		"9":                                        `"9" may be any of 5 pools: give the UUID: 94f380ac-`,
		"./nowhere":                                "nowhere: no such file",
		"--what-if=add=4TiB":                       "--what-if is of one pool: which pool? Name one of: ",
		"attic --what-if=grow=4TiB":                `--what-if: "grow=4TiB" is no change: give add=SIZE, remove=DEVID, replace=DEVID:SIZE or convert=PROFILE, separated by commas, such as add=4TiB,remove=2`,
		"attic --what-if=add=":                     `--what-if: "add=" is no change`,
		"attic --what-if=add=4TiB,":                `--what-if: "" is no change`,
		"attic --what-if=add=4TiB,add=4TiB":        "--what-if: add stands there twice: give one change of each kind",
		"attic --what-if=add=much":                 `must be a size such as 50MB or 4TiB, not "much"`,
		"attic --what-if=add=17PiB":                "16 PiB, the most that is simulated",
		"attic --what-if=remove=/dev/sdb":          `must be the devid of a device, not "/dev/sdb"`,
		"attic --what-if=remove=9":                 "That cannot be done: remove device 9: the pool has no device 9",
		"attic --what-if=replace=2":                `such as 2:8TB, not "2"`,
		"attic --what-if=replace=1:1TiB":           "what is stored does not fit",
		"attic --what-if=convert=raid7":            "want single, dup, raid0, raid1",
		"tank --what-if=convert=raid1c3,add=4TiB":  "profile raid1c3 needs 3 devices, the pool has 2",
		"attic --output=yaml":                      "must be one of table,json, got 'yaml'; see btrfs-governor capacity --help",
		"attic --path.recorded=/nowhere":           "--path.recorded: ",
		"9af5c98f-59e6-4f7d-b2a2-1c042ab1eedb/tmp": "no such file",
	} {
		words := append([]string{"capacity"}, strings.Fields(args)...)
		if !strings.Contains(args, "--path.recorded") {
			words = append(words, recordedPools)
		}
		if status, stdout, stderr := runCommandLine(words...); status != 1 || stdout != "" || !strings.HasPrefix(stderr, "btrfs-governor: ") || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit status %d, %q and %q, want %q", args, status, stdout, stderr, want)
		}
	}
	// The other order is possible.
	if status, _, stderr := runCommandLine("capacity", "tank", recordedPools, "--what-if=add=4TiB,convert=raid1c3"); status != 0 {
		t.Errorf("exit status %d: %s", status, stderr)
	}
}

// figuresOf is an answer of a daemon that may know more than we do.
func figuresOf(pool btrfs.UUID) map[string]any {
	return map[string]any{
		"uuid": pool, "now": map[string]any{"free_exact": true, "data_profile": "raid1", "free_expected_bytes": 3 << 40, "new": 1},
		"devices": []any{}, "newer": []int{1},
	}
}

func TestCapacityAsksTheDaemon(t *testing.T) {
	pool := fakeAnswer{200, map[string]any{"uuid": testPool, "label": "attic"}}
	answer := fakeAnswer{200, figuresOf(testPool)}
	path := "GET /api/v1/pools/" + testPool.String() + "/capacity"
	for args, want := range map[string]string{
		"attic":                              "GET /api/v1/pools/attic|" + path,
		"--pool=attic":                       "GET /api/v1/pools/attic|" + path,
		"attic --what-if=remove=2":           "GET /api/v1/pools/attic|" + path + "?remove=2",
		"a%2/../b --what-if=add=1":           "",
		"aa --what-if=remove=2,add=4TiB":     "GET /api/v1/pools/aa|" + path + "?remove=2&add=4TiB",
		"aa --what-if=replace=2:8TB,add=a&b": "GET /api/v1/pools/aa|" + path + "?replace=2%3A8TB&add=a%26b",
	} {
		d := startFakeDaemon(t, pool, answer)
		status, stdout, stderr := runCommandLine(append(strings.Fields("capacity "+args), "--api.socket="+d.socket)...)
		if got := strings.Join(d.requests, "|"); got != want {
			t.Errorf("%s: sent %q, want %q", args, got, want)
		}
		if want != "" && (status != 0 || stderr != "" || !strings.Contains(stdout, "can still be written   3.00 TiB")) {
			t.Errorf("%s: exit status %d, %s: %s", args, status, stderr, stdout)
		}
	}
	d := startFakeDaemon(t, pool, answer)
	_, stdout, _ := runCommandLine("capacity", "attic", "--output=json", "--api.socket="+d.socket)
	want, err := json.Marshal(figuresOf(testPool))
	must(t, err)
	if stdout != string(want)+"\n" {
		t.Errorf("the answer is not as it was:\n%swant\n%s", stdout, want)
	}
}

func TestCapacityOfAPoolThatHangsHidesNoOther(t *testing.T) {
	second := btrfs.UUID{0xbb, 15: 2}
	pools := fakeAnswer{200, map[string]any{"pools": []map[string]any{{"uuid": testPool}, {"uuid": second, "error": "no fan speed"}}}}
	hung := fakeAnswer{503, map[string]any{"detail": "The capacity of pool " + testPool.String() + " is not known: no answer after 8s."}}
	for _, output := range []string{"table", "json"} {
		d := startFakeDaemon(t, pools, hung, fakeAnswer{200, figuresOf(second)})
		status, stdout, stderr := runCommandLine("capacity", "--output="+output, "--api.socket="+d.socket)
		if status != 1 || stderr != "btrfs-governor: The capacity of pool "+testPool.String()+" is not known: no answer after 8s\n" {
			t.Errorf("exit status %d, %s", status, stderr)
		}
		if output == "json" && !strings.HasPrefix(stdout, "[{") || output == "table" && !strings.Contains(stdout, "Not all is known: no fan speed\n") {
			t.Errorf("%s", stdout)
		}
		if strings.Contains(stdout, testPool.String()) {
			t.Errorf("the pool that hangs is in %s", stdout)
		}
	}
}

// TestCapacityIsTheSameWithoutTheDaemon: on a real pool each answer of the daemon is
// that of the program by itself, mistakes too, and the forecast outlives the daemon.
func TestCapacityIsTheSameWithoutTheDaemon(t *testing.T) {
	rig := btrfstest.New(t)
	pool := newPool(t, rig, btrfstest.PoolOptions{Sizes: []int64{8 * gib, 4 * gib, 2 * gib, gib}, Data: "raid1", Metadata: "raid1", Label: "capacity-test"})
	must(t, pool.WriteFile("file", 300*mib, newRandom()))
	must(t, pool.Sync())
	uuid, err := btrfs.ParseUUID(pool.UUID)
	must(t, err)
	dir, socket := t.TempDir(), filepath.Join(t.TempDir(), "api.sock")
	store, err := history.Open(log.NewNopLogger(), state.NewDir(dir), time.Now)
	must(t, err)
	// Ten days in which it lost 100 MB a day.
	now := time.Now().Truncate(history.Step).Add(-history.Step)
	for at := now.Add(-10 * 24 * time.Hour); !at.After(now); at = at.Add(history.Step) {
		must(t, store.Add(uuid, history.Sample{Time: at, FreeExpected: btrfs.Some(uint64(5.4e9 + 1e8*now.Sub(at).Hours()/24))}))
	}
	daemon := startServe(t, 1, []string{"--state.dir=" + dir, "--api.socket=" + socket, "--web.listen-address=127.0.0.1:0"})
	eventuallyComplete(t, daemon, pool.UUID)

	show := func(socket string, args ...string) (int, string, string) {
		return runCommandLine(append([]string{"capacity", "--api.socket=" + socket, "--state.dir=" + dir}, args...)...)
	}
	type capacity struct {
		UUID, Now, Devices any
		WhatIf             any `json:"what_if"`
		WhatIfDevices      any `json:"what_if_devices"`
		Forecast           map[string]any
	}
	for _, args := range [][]string{
		{pool.UUID}, {pool.Mountpoint}, {"capacity-test", "--what-if=add=8GiB"}, {pool.UUID[:13], "--what-if=remove=4"},
		{pool.UUID, "--what-if=remove=2,add=8GiB"}, {pool.UUID, "--what-if=add=8GiB,remove=1"}, {pool.UUID, "--what-if=replace=4:9GiB"},
		{pool.UUID, "--what-if=convert=raid1c3"}, {pool.UUID, "--what-if=replace=4:6GiB,convert=raid10,add=1TiB,remove=3"},
		{pool.UUID, "--what-if=remove=9"}, {pool.UUID, "--what-if=replace=1:1GiB"}, {pool.UUID, "--what-if=add=fast"}, {"no-such-pool"},
	} {
		statusWith, with, errWith := show(socket, append(args, "--output=json")...)
		status, without, err := show("", append(args, "--output=json")...)
		// Which pools there are is told of none: others come and go meanwhile.
		errWith, _, _ = strings.Cut(errWith, "Mounted are ")
		err, _, _ = strings.Cut(err, "Mounted are ")
		if status != statusWith || err != errWith {
			t.Errorf("%v: with the daemon %d %q, without %d %q", args, statusWith, errWith, status, err)
		}
		if status != 0 {
			continue
		}
		var a, b capacity
		must(t, json.Unmarshal([]byte(with), &a))
		must(t, json.Unmarshal([]byte(without), &b))
		// A commit in between may move some KiB of metadata; figures may not.
		for _, f := range []map[string]any{a.Forecast, b.Forecast} {
			if days, _ := f["days_to_full"].(float64); days < 40 || days > 70 || f["source"] != "local" {
				t.Errorf("%v: the forecast is %v", args, f)
			}
		}
		a.Forecast, b.Forecast = nil, nil // as of another moment
		if diff := cmp.Diff(a, b); diff != "" {
			t.Errorf("%v: -with the daemon, +without:\n%s", args, diff)
		}
	}
	must(t, daemon.cmd.Process.Kill())
	<-daemon.exited
	before := listing(t, dir)
	status, stdout, stderr := show(socket, pool.Mountpoint)
	if status != 0 || stderr != "No daemon answers on "+socket+"; the pools are read without it.\n" || !strings.Contains(stdout, "\nFull in 5") || !strings.Contains(stdout, "as it filled up of late: by 95.") {
		t.Errorf("after the daemon was killed: exit status %d, %s\n%s", status, stderr, stdout)
	}
	if after := listing(t, dir); after != before {
		t.Errorf("the state directory was\n%sand is\n%s", before, after)
	}
}

// listing tells all that there is in a directory, and when it was changed.
func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	text := ""
	for _, e := range entries {
		info, err := e.Info()
		must(t, err)
		text += fmt.Sprintln(e.Name(), info.Size(), info.ModTime())
	}
	return text
}

// TestCapacityOfWhoMayNotAskTheDaemon: the socket is root's, and so is the history;
// the pools are everybody's.
func TestCapacityOfWhoMayNotAskTheDaemon(t *testing.T) {
	program, err := os.Executable()
	must(t, err)
	cmd := exec.Command(program)
	dir := t.TempDir()
	if os.Geteuid() == 0 {
		// Nobody else may run what `go test` has built.
		binary, err := os.ReadFile(program)
		must(t, err)
		cmd.Path = filepath.Join(dir, "program")
		must(t, os.WriteFile(cmd.Path, binary, 0o755))
		must(t, os.Chmod(filepath.Dir(dir), 0o755))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	d := startFakeDaemon(t)
	must(t, os.Chmod(filepath.Dir(filepath.Dir(d.socket)), 0o755))
	must(t, os.Chmod(d.socket, 0))
	var stdout, stderr bytes.Buffer
	cmd.Args = []string{programName, "capacity", "no-such-pool", "--api.socket=" + d.socket}
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = []string{asProgram + "=1"}, "/", &stdout, &stderr
	err = cmd.Run()
	want := "Only root may ask the daemon on " + d.socket + "; the pools are read without it.\nbtrfs-governor: There is no mounted pool \"no-such-pool\". "
	if err == nil || stdout.Len() > 0 || !strings.HasPrefix(stderr.String(), want) || len(d.requests) > 0 {
		t.Errorf("%v: %s%s, want %q", err, &stdout, &stderr, want)
	}
}

func TestForecastInWords(t *testing.T) {
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	some := btrfs.Some[float64]
	none := btrfs.Opt[float64]{}
	const unknown = "When it is full is not known: that takes a history of a day at least, which the daemon keeps."
	for _, tt := range []struct {
		f    *capacityForecast
		want string
	}{
		{nil, unknown},
		{&capacityForecast{Time: at}, unknown},
		{&capacityForecast{at, some(43), none, some(1 << 30)}, "Full in 43 days (8 January 2027), as it filled up of late: by 1.00 GiB a day."},
		{&capacityForecast{at.Add(-12 * time.Hour), some(43.6), none, none}, "Full in 43 days (8 January 2027), as it filled up of late."},
		{&capacityForecast{at, some(1.25), none, some(-5)}, "Full in 30 hours (Friday 18:00), as it filled up of late."},
		{&capacityForecast{at, some(0), none, none}, "Full within an hour, as it filled up of late."},
		{&capacityForecast{at.Add(-time.Hour), some(0.01), none, none}, "Full within an hour, as it filled up of late."},
		{&capacityForecast{at, some(history.MaxDays), none, some(0)}, "Not full for years, as it filled up of late."},
		{&capacityForecast{at, some(43), some(50), none}, "Full in 43 days (8 January 2027), as it filled up of late."},
		{&capacityForecast{at, some(43), some(12), none}, "Full in 43 days (8 January 2027), as it filled up of late.\nNo room for metadata in 12 days (8 December 2026), as it grew of late."},
		{&capacityForecast{at, none, some(history.MaxDays), none}, "Room for metadata for years, as it grew of late."},
	} {
		if got := strings.Join(forecastLines(tt.f, at), "\n"); got != tt.want {
			t.Errorf("%+v:\n%s\nwant\n%s", tt.f, got, tt.want)
		}
	}
}

// mismatched are devices with something of everything.
func mismatched() []deviceSpace {
	const tib = 1 << 40
	return []deviceSpace{
		{ID: 1, Path: "/dev/sda", Size: 8 * tib, Allocated: 4*tib + 8<<20, Data: btrfs.Some[uint64](4 * tib), Metadata: btrfs.Some[uint64](0), Free: 3*tib - 8<<20, Stranded: tib},
		{ID: 2, Path: "/dev/disk/by-id/a-long-name", Size: 4 * tib, Allocated: 2 * tib, Data: btrfs.Some[uint64](tib), Metadata: btrfs.Some[uint64](tib), Free: 2 * tib},
		{ID: 3, Missing: true, Size: tib, Allocated: tib / 2, Data: btrfs.Some[uint64](tib / 2), Metadata: btrfs.Some[uint64](0), Unusable: tib / 2},
		{ID: 4, Size: 1 << 30, Allocated: 3, Data: btrfs.Some[uint64](1), Metadata: btrfs.Some[uint64](1), Free: 1<<30 - 4, Stranded: 1},
		{ID: 5},
	}
}

func TestCapacityOnATerminal(t *testing.T) {
	v := capacityView{
		pool: &capacityPool{UUID: testPool}, now: time.Unix(0, 0), width: 80, marks: blockMarks,
		capacityAnswer: &capacityAnswer{Now: capacityFigures{DataProfile: "raid1", FreeExact: true}, Devices: mismatched()},
	}
	const want = `  devid  device                                                  size      free
      1  /dev/sda                     █████████▓░░░░░░░░×××  8.00 TiB  3.00 TiB
      2  /dev/disk/by-id/a-long-name  ███▓▓▓░░░░░            4.00 TiB  2.00 TiB
      3  missing                      █--                    1.00 TiB
      4                               █▓░×                   1.00 GiB  1024 MiB
      5                                                           0 B       0 B
  █ data  ▓ metadata and system  ░ free for data  × stranded  - unusable
`
	if diff := cmp.Diff(want, join(v.deviceLines(v.Devices, ""))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for width := 20; width < 200; width++ {
		v.width = width
		for _, line := range v.deviceLines(v.Devices, "") {
			for part := range strings.SplitSeq(line, "\n") {
				if n := utf8.RuneCountInString(part); width >= 72 && n >= width {
					t.Errorf("at a width of %d a line has %d: %s", width, n, part)
				}
			}
		}
		for _, line := range v.figureLines() {
			if n := utf8.RuneCountInString(line); width > 40 && n >= width {
				t.Errorf("at a width of %d a line has %d: %s", width, n, line)
			}
		}
	}
}

func TestBarsAreInProportion(t *testing.T) {
	devices := mismatched()
	v := capacityView{marks: plainMarks}
	for width := leastBar; width <= mostBar; width++ {
		for i := range devices[:3] {
			d := &devices[i]
			used := make(map[string]bool)
			got := v.bar(d, devices[0].Size, width, used)
			if want := int(math.Round(float64(width) * float64(d.Size) / float64(devices[0].Size))); len(got) != max(want, len(used)) {
				t.Errorf("%d: device %d is %d wide, want %d: %s", width, d.ID, len(got), want, got)
			}
			for mark, bytes := range map[string]uint64{"#": d.Data.Value, "m": d.Allocated - d.Data.Value, ".": d.Free, "x": d.Stranded, "-": d.Unusable} {
				n := float64(strings.Count(got, mark))
				share := float64(len(got)) * float64(bytes) / float64(d.Size)
				if bytes > 0 != (n > 0) || math.Abs(n-share) > 2 || used[mark] != (n > 0) {
					t.Errorf("%d: device %d has %g of %q, want %g: %s", width, d.ID, n, mark, share, got)
				}
			}
		}
		if got := v.bar(&devices[3], devices[0].Size, width, map[string]bool{}); got != "#m.x" {
			t.Errorf("a small device with a little of everything: %q", got)
		}
		if got := v.bar(&devices[4], devices[0].Size, width, map[string]bool{}); got != "" {
			t.Errorf("a device of no size: %q", got)
		}
	}
}

func TestBlocksAreForUTF8(t *testing.T) {
	for env, want := range map[string]bool{
		"": false, "LANG=C": false, "LANG=de_DE.UTF-8": true, "LANG=C.utf8": true, "LC_ALL=C LANG=en_US.UTF-8": false,
		"LC_CTYPE=en_US.UTF-8 LANG=C": true, "LC_ALL= LANG=C.UTF-8": true,
	} {
		getenv := func(name string) string {
			for _, assignment := range strings.Fields(env) {
				if value, ok := strings.CutPrefix(assignment, name+"="); ok {
					return value
				}
			}
			return ""
		}
		if got := isUTF8(getenv); got != want {
			t.Errorf("%q: %t", env, got)
		}
	}
}
