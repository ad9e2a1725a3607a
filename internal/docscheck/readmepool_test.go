//go:build linux

package docscheck

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
)

// TestReadmePool makes the pool of the README's table, asks everybody how much
// is free, and fills it. The table must say what came out.
func TestReadmePool(t *testing.T) {
	const gib = int64(1) << 30
	sizes := []int64{8 * gib, 4 * gib, 2 * gib, 1 * gib}
	pool, err := btrfstest.New(t).NewPool(btrfstest.PoolOptions{Sizes: sizes, Data: "raid1", Metadata: "raid1"})
	if err != nil {
		t.Fatal(err)
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(pool.Mountpoint, &stat); err != nil {
		t.Fatal(err)
	}
	total, largest := 15*gib, 8*gib
	free := map[string]int64{
		"df":                        int64(stat.Bavail) * stat.Bsize,
		"`btrfs filesystem usage`":  usage(t, pool.Mountpoint),
		"`min(sum/2, sum-largest)`": min(total/2, total-largest),
		"`btrfs_pool_free_bytes`":   simulated(t, pool.UUID),
	}
	filled, err := pool.FillFallocate()
	if err != nil {
		t.Fatal(err)
	}
	free["what could be written"] = filled

	text, err := os.ReadFile(root + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for who, bytes := range free {
		t.Logf("%-26s %5.2f GiB", who, float64(bytes)/float64(gib))
		match := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(who) + ` \| ([0-9.]+) GiB`).FindStringSubmatch(string(text))
		if match == nil {
			t.Errorf("README.md has no row for %s", who)
			continue
		}
		said, err := strconv.ParseFloat(match[1], 64)
		if err != nil || math.Abs(said-float64(bytes)/float64(gib)) > 0.011 {
			t.Errorf("README.md says %s GiB of %s, and it is %.3f", match[1], who, float64(bytes)/float64(gib))
		}
	}
}

func usage(t *testing.T, path string) int64 {
	t.Helper()
	out, err := exec.Command("btrfs", "filesystem", "usage", "-b", path).CombinedOutput()
	if err != nil {
		t.Fatalf("btrfs filesystem usage: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		var bytes int64
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "Free (estimated): %d", &bytes); err == nil {
			return bytes
		}
	}
	t.Fatalf("no estimate in:\n%s", out)
	return 0
}

func simulated(t *testing.T, uuid string) int64 {
	t.Helper()
	client := btrfs.NewClient(btrfs.DefaultPaths())
	mounts, err := client.Mounts()
	if err != nil {
		t.Log(err)
	}
	for i := range mounts {
		if mounts[i].UUID.String() != uuid {
			continue
		}
		facts, err := client.Record(&mounts[i])
		if err != nil {
			t.Fatal(err)
		}
		layout, err := capacity.NewLayout(facts)
		if err != nil {
			t.Fatal(err)
		}
		report, err := capacity.Calculate(facts, layout)
		if err != nil {
			t.Fatal(err)
		}
		return int64(report.Free)
	}
	t.Fatalf("pool %s is not mounted", uuid)
	return 0
}
