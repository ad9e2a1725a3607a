package httpapi_test

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
	"github.com/btrfs-governor/btrfs-governor/scrub"
)

// bigPools are pools of so many devices with so many block groups each.
type bigPools struct {
	fakePools
	readings []collector.PoolReading
}

func (p bigPools) Pools() ([]collector.PoolReading, error) { return p.readings, nil }

func newBigPools(b *testing.B, pools, devices, blockGroups int) bigPools {
	b.Helper()
	const gib = 1 << 30
	random := rand.New(rand.NewPCG(1, 2))
	var all bigPools
	for n := range pools {
		pool := &btrfs.Pool{UUID: btrfs.UUID{byte(n + 1)}, Label: fmt.Sprint("pool", n), Mountpoint: "/srv/pool"}
		size := uint64(4*blockGroups/devices) * gib
		for i := range devices {
			pool.Devices = append(pool.Devices, btrfs.Device{
				ID: uint64(i + 1), Name: fmt.Sprint("sd", i), Path: fmt.Sprint("/dev/sd", i), Model: "ST8000DM004-2CX188", Serial: fmt.Sprint("WCT0", i),
				Size: btrfs.Some(size), Used: btrfs.Some(size / 2), Writeable: btrfs.Some(true), Missing: btrfs.Some(false), Errors: btrfs.Some(btrfs.ErrorCounts{}),
			})
		}
		builder := capacity.NewBuilder(pool.Devices)
		next := make([]uint64, devices)
		for i := range blockGroups {
			c := btrfs.Chunk{Logical: uint64(i) * gib, Length: gib, Type: btrfs.Data, Profile: btrfs.RAID1}
			if i%50 == 0 {
				c.Type = btrfs.Metadata
			}
			x := random.IntN(devices)
			for _, d := range []int{x, (x + 1 + random.IntN(devices-1)) % devices} {
				c.Stripes = append(c.Stripes, btrfs.Stripe{DevID: uint64(d + 1), Offset: 1<<20 + next[d]})
				next[d] += gib
			}
			if err := builder.Add(&c); err != nil {
				b.Fatal(err)
			}
		}
		layout, err := builder.Layout()
		if err != nil {
			b.Fatal(err)
		}
		for i := range layout.Devices {
			pool.Devices[i].Used.Value = layout.Devices[i].Used
		}
		metadata := uint64(blockGroups/50) * gib
		data := uint64(blockGroups)*gib - metadata
		raid1 := func(total uint64) []btrfs.ProfileSpace {
			return []btrfs.ProfileSpace{{Profile: btrfs.RAID1, Total: total, Used: total / 2}}
		}
		pool.Spaces = []btrfs.Space{
			{Type: btrfs.Data, Total: data, Used: data / 2, Profiles: raid1(data)},
			{Type: btrfs.Metadata, Total: metadata, Used: metadata / 2, Profiles: raid1(metadata)},
		}
		report, err := capacity.Calculate(pool, layout)
		if err != nil {
			b.Fatal(err)
		}
		facts := &collector.Facts{Pool: pool, Layout: layout, Report: report}
		if spread, ok := layout.MetadataSpread(); ok {
			facts.Spread = btrfs.Some(spread)
		}
		all.readings = append(all.readings, collector.PoolReading{UUID: pool.UUID, Label: pool.Label, Facts: facts})
	}
	return all
}

// aHistory is one of ninety days.
type aHistory struct{}

func (aHistory) Samples(_ btrfs.UUID, since time.Time, most int) (all []history.Sample) {
	for i := range most {
		all = append(all, history.Sample{Time: since.Add(time.Duration(i) * 14 * time.Hour), FreeExpected: btrfs.Some(uint64(1<<40 - i<<32))})
	}
	return all
}

func (aHistory) Forecast(btrfs.UUID) (history.Forecast, bool) {
	return history.Forecast{Time: time.Now(), DaysToFull: btrfs.Some(99.0)}, true
}

// movingScrubs are all under way, and get on each time they are looked at.
type movingScrubs struct {
	*fakeScrubs
	looks *atomic.Int64
}

func (m movingScrubs) Status(pool btrfs.UUID) (scrub.Status, error) {
	n := m.looks.Add(1)
	return scrub.Status{Pool: pool, State: scrub.Running, Started: time.Unix(1e9, 0), Progress: float64(n%1000) / 1000, Rate: uint64(n) << 20, Devices: []scrub.DeviceStatus{{DevID: 1}}}, nil
}

func newBigService(b *testing.B, pools, devices, blockGroups int) *service {
	b.Helper()
	big := newBigPools(b, pools, devices, blockGroups)
	return newService(b, func(c *httpapi.Config) {
		big.fakePools = c.Pools.(apiPools).fakePools
		c.Pools, c.History = big, aHistory{}
		c.Scrubs = movingScrubs{c.Scrubs.(*fakeScrubs), new(atomic.Int64)}
	})
}

// BenchmarkPage is the page of eight pools with 20,000 block groups each: the time
// until its first byte, and what goes over the wire.
func BenchmarkPage(b *testing.B) {
	for _, devices := range []int{4, 30} {
		b.Run(fmt.Sprintf("8 pools of %d devices", devices), func(b *testing.B) {
			s := newBigService(b, 8, devices, 20_000)
			server := httptest.NewServer(s.handler)
			defer server.Close()
			client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
			var first time.Duration
			var bytes int64
			for b.Loop() {
				r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, server.URL+"/", nil)
				if err != nil {
					b.Fatal(err)
				}
				r.Header.Set("Accept-Encoding", "gzip")
				start := time.Now()
				answer, err := client.Do(r)
				if err != nil {
					b.Fatal(err)
				}
				first += time.Since(start)
				n, err := io.Copy(io.Discard, answer.Body)
				if err != nil || answer.StatusCode != http.StatusOK {
					b.Fatal(answer.Status, err)
				}
				_ = answer.Body.Close()
				bytes = n
			}
			b.ReportMetric(float64(first.Microseconds())/1e3/float64(b.N), "ms/first-byte")
			b.ReportMetric(float64(bytes)/1024, "KiB/page")
		})
	}
}

// BenchmarkStreams is what 200 open pages of eight pools cost, on all of which a
// scrub gets on: the share of a core, that of the readers included.
func BenchmarkStreams(b *testing.B) {
	const streams, watched = 200, 20 * time.Second
	s := newBigService(b, 8, 4, 20_000)
	server := httptest.NewServer(s.handler)
	_, stream, _ := strings.Cut(s.do("GET", "/", "", sent{}).Body.String(), `data-live="`)
	stream, _, _ = strings.Cut(stream, `"`)
	var readers sync.WaitGroup
	var events atomic.Int64
	started := make(chan struct{}, streams)
	for range streams {
		readers.Go(func() {
			answer, err := http.Get(server.URL + html.UnescapeString(stream))
			if err != nil {
				b.Error(err)
				started <- struct{}{}
				return
			}
			defer answer.Body.Close()
			lines := bufio.NewReaderSize(answer.Body, 64<<10)
			for n := 0; ; n++ {
				if n == 1 {
					started <- struct{}{}
				}
				if _, err := lines.ReadSlice('\n'); err != nil && err != bufio.ErrBufferFull { //nolint:errorlint // it is not wrapped
					return
				}
				events.Add(1)
			}
		})
	}
	for range streams {
		<-started
	}
	time.Sleep(time.Second) // until all have everything
	for b.Loop() {
		before, from, seen := cpuTime(b), time.Now(), events.Load()
		time.Sleep(watched)
		b.ReportMetric(100*(cpuTime(b)-before).Seconds()/time.Since(from).Seconds(), "%core")
		lines := events.Load() - seen
		b.ReportMetric(float64(lines)/watched.Seconds(), "lines/s")
		if lines < streams {
			b.Fatalf("%d lines came over %d streams: nothing was measured", lines, streams)
		}
	}
	server.CloseClientConnections()
	readers.Wait()
	server.Close()
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
