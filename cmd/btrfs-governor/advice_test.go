package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

func TestAdviceOnABalance(t *testing.T) {
	facts := func(free, after uint64, mountpoint string) *collector.Facts {
		return &collector.Facts{
			Pool:   &btrfs.Pool{Label: "attic", Mountpoint: mountpoint},
			Report: &capacity.Report{Free: free, FreeAfterBalance: after, Usable: 100 << 30},
		}
	}
	worth := advise(facts(1<<30, 21<<30, "/srv/it's mine"))
	if worth.Command != `btrfs balance start -d '/srv/it'\''s mine'` ||
		!strings.Contains(worth.Text, "would give back 20 GiB: 1.0 GiB are free, and 21 GiB afterwards") || !strings.HasSuffix(worth.Text, worth.Command) {
		t.Errorf("got %+v", worth)
	}
	if plain := advise(facts(1<<30, 21<<30, "/srv/attic-2")); plain.Command != "btrfs balance start -d /srv/attic-2" {
		t.Errorf("got %+v", plain)
	}
	for _, after := range []uint64{1 << 30, 2 << 30, 0} {
		if a := advise(facts(1<<30, after, "/srv")); a.Command != "" || !strings.Contains(a.Text, "not worth it") {
			t.Errorf("after a balance %d bytes are free: %+v", after, a)
		}
	}
}

func TestPoolIsOfThisMachineWhenItIsGoneToo(t *testing.T) {
	sys := t.TempDir()
	past, err := history.Open(log.NewNopLogger(), state.NewDir(t.TempDir()), time.Now)
	must(t, err)
	here := poolsHere(btrfs.NewClient(btrfs.Paths{Sys: sys}), past)
	pool := btrfs.UUID{0x5f, 0x1c, 0x0d, 0xe1}
	if here(pool) {
		t.Error("a pool of another machine is taken for one of this machine")
	}
	dir := filepath.Join(sys, "fs", "btrfs", pool.String())
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "exclusive_operation"), []byte("none\n"), 0o600))
	if !here(pool) {
		t.Error("a pool that is mounted is not taken for one of this machine")
	}
	must(t, past.Add(pool, history.Sample{Time: time.Now(), Used: btrfs.Some[uint64](1)}))
	must(t, os.RemoveAll(dir))
	if !here(pool) {
		t.Error("a pool that is gone is not taken for one of this machine")
	}
}
