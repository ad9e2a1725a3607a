//go:build linux

package btrfstest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// childVariable asks a copy of the test binary to be the victim of a sweep
// test instead of running tests.
const childVariable = "BTRFSTEST_CHILD"

func TestMain(m *testing.M) {
	if kind := os.Getenv(childVariable); kind != "" {
		if err := victim(kind); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// newRandom returns a generator that is the same in each run.
func newRandom() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

// newPool makes a pool or fails the test.
func newPool(t *testing.T, rig *Rig, options PoolOptions) *Pool {
	t.Helper()
	pool, err := rig.NewPool(options)
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually fails the test unless a condition comes to hold.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	if err := waitFor(20*time.Second, func() (bool, error) { return condition(), nil }); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// remains lists what of a run is still there.
func remains(t *testing.T, dir string) []string {
	t.Helper()
	var left []string
	mounts, err := mountsBeneath(dir)
	ok(t, err)
	for _, m := range mounts {
		left = append(left, "mount "+m.point)
	}
	loops, err := loopsBeneath(dir)
	ok(t, err)
	for _, l := range loops {
		left = append(left, "loop device "+l.device)
	}
	if _, err := os.Stat(dir); err == nil {
		left = append(left, "directory "+dir)
	}
	return left
}

// deviceErrors reads one counter of a device's error statistics from sysfs.
func deviceErrors(t *testing.T, pool *Pool, devID uint64, name string) int {
	t.Helper()
	text, err := pool.Sysfs(filepath.Join("devinfo", fmt.Sprint(devID), "error_stats"))
	ok(t, err)
	for line := range strings.Lines(text) {
		var counter string
		var count int
		if _, err := fmt.Sscan(line, &counter, &count); err != nil {
			t.Fatalf("error_stats %q: %v", text, err)
		}
		if counter == name {
			return count
		}
	}
	t.Fatalf("error_stats has no %s: %q", name, text)
	return 0
}
