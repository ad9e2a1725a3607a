package main

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/dustin/go-humanize"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

var balancePools = flag.Int("balance.n", 6, "pools that TestFreeAfterBalance wants to be right about")

// TestFreeAfterBalance compares btrfs_pool_free_after_balance_bytes with what
// fits after a real full balance of aged pools, until so many of them were at
// most 1 % off.
//
// Where data is in several profiles or in block groups of several size classes
// (sysfs allocation/data/size_classes), the kernel may make more new chunks
// than what is stored needs, and which extents lie where is not to be known.
// Of such pools, and of no others, one in three may be further off, by 15 % at
// most.
func TestFreeAfterBalance(t *testing.T) {
	btrfstest.Require(t)
	serve := startServe(t, 1, machineArgs())
	const tolerance, mixTolerance = 0.01, 0.15
	profiles := []string{"raid1", "single", "raid10", "raid1c3", "raid5", "raid1", "raid0", "raid6", "dup", "raid1c4"}
	right, off, worst := 0, 0, 0.0
	for seed := uint64(0); right < *balancePools; seed++ {
		if seed >= uint64(4**balancePools) {
			t.Fatalf("only %d of %d pools were at most 1 %% off", right, *balancePools)
		}
		rng := rand.New(rand.NewPCG(seed, 11))
		data := profiles[seed%uint64(len(profiles))]
		profile, err := btrfs.ParseProfile(data)
		if err != nil {
			t.Fatal(err)
		}
		devices := max(profile.Attributes().DevsMin, 2) + rng.IntN(3)
		var sizes []int64
		for range devices {
			sizes = append(sizes, (1536+rng.Int64N(3072))*mib)
		}
		result, steps, err := balancePool(t, serve, rng, btrfstest.PoolOptions{Sizes: sizes, Data: data, Metadata: "raid1"})
		if err != nil {
			// The kernel may refuse a balance for want of room, or abort: then
			// there is no truth to compare with.
			t.Logf("seed %d, %s: left out: %v", seed, data, err)
			continue
		}
		deviation := math.Abs(float64(result.foretold-result.truth)) / float64(result.truth)
		worst = max(worst, deviation)
		t.Logf("seed %d, %s on %d devices (%s): free before %s, foretold after %s, truth %s: %.3f %% off",
			seed, data, devices, result.mix, humanize.IBytes(uint64(result.before)), humanize.IBytes(uint64(result.foretold)),
			humanize.IBytes(uint64(result.truth)), 100*deviation)
		if deviation <= tolerance {
			right++
			continue
		}
		if result.mix == "" || deviation > mixTolerance {
			t.Errorf("seed %d, %s, sizes %v: %.2f %% off\n%s", seed, data, sizes, 100*deviation, strings.Join(steps, "\n"))
		}
		off++
	}
	if 3*off > right+off {
		t.Errorf("%d of %d pools were more than 1 %% off", off, right+off)
	}
	t.Logf("%d pools at most 1 %% off, %d further, worst %.3f %%", right, off, 100*worst)
}

// mixOf says what makes the outcome of a balance uncertain; "" for nothing.
func mixOf(pool *btrfstest.Pool) (string, error) {
	facts, err := readPool(pool)
	if err != nil {
		return "", err
	}
	var mix []string
	if profiles := len(facts.Space(btrfs.Data).Profiles); profiles > 1 {
		mix = append(mix, fmt.Sprintf("%d profiles", profiles))
	}
	text, err := pool.Sysfs("allocation/data/size_classes")
	if err != nil {
		return "", err
	}
	classes := 0
	for line := range strings.Lines(text) {
		name, count, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name != "none" && count != "0" {
			classes++
		}
	}
	if classes > 1 {
		mix = append(mix, fmt.Sprintf("%d size classes", classes))
	}
	return strings.Join(mix, ", "), nil
}

type balanceResult struct {
	before, foretold, truth int64
	mix                     string
}

func balancePool(t *testing.T, serve *process, rng *rand.Rand, options btrfstest.PoolOptions) (balanceResult, []string, error) {
	rig := btrfstest.New(t)
	defer func() {
		if err := rig.Close(); err != nil {
			t.Error(err)
		}
	}()
	var result balanceResult
	pool, err := rig.NewPool(options)
	if err != nil {
		t.Fatal(err)
	}
	steps, err := pool.Age(rng, 6)
	if err != nil {
		return result, steps, err
	}
	if err := pool.Sync(); err != nil {
		return result, steps, err
	}
	if result.mix, err = mixOf(pool); err != nil {
		return result, steps, err
	}
	series, err := scrapePool(serve, pool.UUID)
	if err != nil {
		t.Fatal(err)
	}
	result.before = series.bytes(t, "btrfs_pool_free_bytes")
	result.foretold = series.bytes(t, "btrfs_pool_free_after_balance_bytes")
	if err := pool.Balance("--full-balance"); err != nil {
		return result, steps, err
	}
	if err := pool.Sync(); err != nil {
		return result, steps, err
	}
	result.truth, err = pool.FillFallocate()
	return result, steps, err
}

// TestUsable compares btrfs_pool_usable_bytes with what fits into an empty pool
// after a full balance, for every profile.
func TestUsable(t *testing.T) {
	rig := btrfstest.New(t)
	serve := startServe(t, 1, machineArgs())
	for _, profile := range btrfs.Profiles() {
		t.Run(profile.String(), func(t *testing.T) {
			sizes := []int64{300 * gib, 200 * gib, 90 * gib, 70 * gib, 3 * gib}
			pool, err := rig.NewPool(btrfstest.PoolOptions{Sizes: sizes, Data: profile.String(), Metadata: "raid1"})
			if err != nil {
				t.Fatal(err)
			}
			if err := pool.Balance("--full-balance"); err != nil {
				t.Fatal(err)
			}
			series, err := scrapePool(serve, pool.UUID)
			if err != nil {
				t.Fatal(err)
			}
			usable := series.bytes(t, "btrfs_pool_usable_bytes")
			truth, err := pool.FillFallocate()
			if err != nil {
				t.Fatal(err)
			}
			deviation := math.Abs(float64(usable-truth)) / float64(truth)
			t.Logf("usable %s, truth %s: %.4f %% off", humanize.IBytes(uint64(usable)), humanize.IBytes(uint64(truth)), 100*deviation)
			if deviation > 0.01 {
				t.Errorf("usable is %d, truth %d: %.2f %% off", usable, truth, 100*deviation)
			}
			if err := pool.Unmount(); err != nil {
				t.Error(err)
			}
		})
	}
}
