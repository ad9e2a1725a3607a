package notify_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/btrfs-governor/btrfs-governor/internal/notify"
)

// fill has each receiver accept messages until there is no room, and prints how many
// were accepted and the most memory that the process ever had, in KiB.
func fill(b *notify.Bridge, receivers []notify.Receiver) error {
	accepted := 0
	for _, r := range receivers {
		for n := 0; ; n++ {
			m := many(15, 0, strings.Repeat("x", 1000)+strconv.Itoa(n))
			m.GroupKey = strconv.Itoa(n)
			result, err := b.Accept(r.Name, m)
			if errors.Is(err, notify.ErrQueueFull) {
				break
			}
			if err != nil {
				return err
			}
			if result == notify.Queued {
				accepted++
			}
		}
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	peak := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if peak == nil {
		return errors.New("the kernel does not tell how much memory was used")
	}
	fmt.Printf("%d %s\n", accepted, peak[1])
	return nil
}

// The daemon has 128 MiB in all (examples/btrfs-governor.service).
func TestFullQueueFitsIntoTheMemoryOfTheService(t *testing.T) {
	settings := daemonSettings{State: t.TempDir(), URLs: make(map[notify.Kind]string), Fill: true}
	for _, kind := range kinds {
		settings.URLs[kind] = "http://127.0.0.1:1"
	}
	measure := func(what string) (accepted int) {
		t.Helper()
		p := spawn(t, settings)
		var peak int // KiB
		if p.lines.Scan() {
			_, err := fmt.Sscan(p.lines.Text(), &accepted, &peak)
			must(t, err)
		}
		if err := p.cmd.Wait(); err != nil {
			t.Fatalf("%s: %v\n%s", what, err, p.log.String())
		}
		t.Logf("%s: %d are accepted, with %d MiB at most", what, accepted, peak>>10)
		if limit := memoryFactor * 48 << 10; peak > limit {
			t.Errorf("%s takes %d MiB, want %d at most", what, peak>>10, limit>>10)
		}
		return accepted
	}
	if n := measure("filling the queue"); n < 200 {
		t.Errorf("%d are accepted, which is not much", n)
	}
	path := filepath.Join(settings.State, "notifications.jsonl")
	info, err := os.Stat(path)
	must(t, err)
	if info.Size() < 7<<20 || info.Size() > 9<<20 {
		t.Errorf("the full journal has %d bytes", info.Size())
	}
	if n := measure("starting with a full queue"); n > len(kinds) {
		t.Errorf("%d more are accepted", n)
	}

	// As much again that has ended, and one line that is damaged.
	content, err := os.ReadFile(path)
	must(t, err)
	var ends strings.Builder
	for line := range strings.Lines(string(content)) {
		var r struct{ ID string }
		must(t, json.Unmarshal([]byte(line), &r))
		fmt.Fprintf(&ends, `{"id":%q,"result":"sent"}`+"\n", r.ID)
	}
	must(t, os.WriteFile(path, []byte(string(content)+ends.String()+"no JSON\n"), 0o600))
	if n := measure("starting with a damaged journal of what has ended, and filling it"); n < 200 {
		t.Errorf("%d are accepted, which is not much", n)
	}
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
}
