package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dustin/go-humanize"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

// The tests of truth compare what is exported with what the kernel does.

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
	tib = int64(1) << 40
)

// machineArgs make serve export the pools of this machine, the tests' own
// among them, on a port of its own.
func machineArgs() []string {
	return []string{"--read-only", "--web.listen-address=127.0.0.1:0"}
}

// poolSeries are the series of one pool in an exposition: the value by name
// and labels, as in `btrfs_pool_stranded_bytes{reason="mismatch"}`. The label
// uuid, which is the same in all, is left out.
type poolSeries map[string]float64

// scrapePool scrapes the given collectors, or all, and keeps what is said of
// one pool. It may be called from any goroutine.
func scrapePool(p *process, uuid string, collectors ...string) (poolSeries, error) {
	address := "http://" + p.addrs[0] + "/metrics?" + url.Values{"collect[]": collectors}.Encode()
	status, body, err := request(p.client, http.MethodGet, address)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("scrape %s: status %d: %s", address, status, body)
	}
	series, err := parsePool(body, uuid)
	if err != nil {
		return nil, fmt.Errorf("scrape %s: %w", address, err)
	}
	for key, value := range series {
		if strings.HasPrefix(key, "btrfs_scrape_collector_success{") && value != 1 {
			return nil, fmt.Errorf("scrape of pool %s: %s is %v", uuid, key, value)
		}
	}
	if len(series) == 0 {
		return nil, fmt.Errorf("scrape of pool %s: it has no series", uuid)
	}
	return series, nil
}

// parsePool returns the series of one pool in an exposition.
func parsePool(exposition, uuid string) (poolSeries, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(exposition))
	if err != nil {
		return nil, err
	}
	series := make(poolSeries)
	for name, family := range families {
		for _, metric := range family.GetMetric() {
			var labels []string
			ours := false
			for _, l := range metric.GetLabel() {
				if l.GetName() == "uuid" {
					ours = l.GetValue() == uuid
					continue
				}
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			if !ours {
				continue
			}
			key := name
			if len(labels) > 0 {
				slices.Sort(labels)
				key += "{" + strings.Join(labels, ",") + "}"
			}
			// One of the two is there; the other is 0.
			series[key] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	return series, nil
}

// bytes returns a size, and fails the test where it is not exported.
func (s poolSeries) bytes(t *testing.T, key string) int64 {
	t.Helper()
	value, ok := s[key]
	if !ok {
		t.Fatalf("there is no series %s", key)
	}
	return int64(value)
}

// readPool reads everything of a mounted pool, beside the exporter.
func readPool(pool *btrfstest.Pool) (*btrfs.Pool, error) {
	client := btrfs.NewClient(btrfs.DefaultPaths())
	mounts, err := client.Mounts()
	if err != nil {
		return nil, err
	}
	for i := range mounts {
		if mounts[i].UUID.String() == pool.UUID {
			return client.Record(&mounts[i])
		}
	}
	return nil, fmt.Errorf("pool %s is not mounted", pool.UUID)
}

// df is what df(1) calls available, in bytes.
func df(pool *btrfstest.Pool) (int64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(pool.Mountpoint, &stat); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", pool.Mountpoint, err)
	}
	return int64(stat.Bavail) * stat.Bsize, nil
}

// filesystemUsage is what `btrfs filesystem usage` calls "Free (estimated)", in
// bytes.
func filesystemUsage(pool *btrfstest.Pool) (int64, error) {
	cmd := exec.Command("btrfs", "filesystem", "usage", "-b", pool.Mountpoint)
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	output, err := cmd.Output()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		return 0, fmt.Errorf("%s: %w: %s", cmd, err, failed.Stderr)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", cmd, err)
	}
	for line := range strings.Lines(string(output)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "Free (estimated):"); ok {
			return strconv.ParseInt(strings.Fields(value)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s says nothing of free space: %s", cmd, output)
}

// remount unmounts and mounts again, with the options given.
func remount(pool *btrfstest.Pool, options ...string) error {
	if err := pool.Unmount(); err != nil {
		return err
	}
	return pool.Mount(options...)
}

// listSizes is a short form of sizes for people.
func listSizes(sizes []int64) string {
	var list []string
	for _, size := range sizes {
		list = append(list, humanize.IBytes(uint64(size)))
	}
	return strings.Join(list, " + ")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
