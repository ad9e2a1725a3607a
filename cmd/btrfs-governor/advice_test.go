package main

import (
	"strings"
	"testing"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
	"github.com/btrfs-governor/btrfs-governor/collector"
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
