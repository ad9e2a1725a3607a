package main

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs/btrfstest"
)

// BenchmarkPageOfRealPools is the page of eight real pools of four devices, that have
// over 20,000 block groups together, served by the real daemon: the time until its
// first byte and until its last, and what goes over the wire. A pool that is on the
// machine beside them is on the page too. (One of 20,000 takes minutes to make; eight
// such are played by BenchmarkPage in internal/httpapi.)
func BenchmarkPageOfRealPools(b *testing.B) {
	rig := btrfstest.New(b)
	for n := range 8 {
		pool := newPool(b, rig, btrfstest.PoolOptions{
			Sizes: []int64{2 * tib, 2 * tib, 2 * tib, 2 * tib},
			Data:  "raid1", Metadata: "raid1", Label: fmt.Sprint("large", n),
		})
		for i := range 5 {
			must(b, pool.Allocate(fmt.Sprint("file", i), tib/2))
		}
		must(b, pool.Sync())
	}
	p := startServe(b, 1, machineArgs())
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	defer client.CloseIdleConnections()
	get := func() (first, last time.Duration, bytes int64) {
		r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://"+p.addrs[0]+"/", nil)
		must(b, err)
		r.Header.Set("Accept-Encoding", "gzip")
		start := time.Now()
		answer, err := client.Do(r)
		must(b, err)
		first = time.Since(start)
		bytes, err = io.Copy(io.Discard, answer.Body)
		must(b, err)
		must(b, answer.Body.Close())
		if answer.StatusCode != http.StatusOK {
			b.Fatal(answer.Status)
		}
		return first, time.Since(start), bytes
	}
	_, cold, _ := get()
	var first, last time.Duration
	var bytes int64
	for b.Loop() {
		f, l, n := get()
		first, last, bytes = first+f, last+l, n
	}
	milliseconds := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
	b.ReportMetric(milliseconds(cold), "ms/very-first-page")
	b.ReportMetric(milliseconds(first)/float64(b.N), "ms/first-byte")
	b.ReportMetric(milliseconds(last)/float64(b.N), "ms/last-byte")
	b.ReportMetric(float64(bytes)/1024, "KiB/page")
}
