package history_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/state"
)

// pools are pools that can be changed.
type pools struct {
	mu       sync.Mutex
	readings []collector.PoolReading
	reads    int
}

func (p *pools) Pools() ([]collector.PoolReading, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reads++
	return p.readings, errors.New("not all could be found")
}

func (p *pools) set(readings ...collector.PoolReading) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readings = readings
}

func whole(uuid btrfs.UUID) collector.PoolReading {
	return collector.PoolReading{UUID: uuid, Facts: &collector.Facts{
		Pool: &btrfs.Pool{
			UUID: uuid, StatfsFree: btrfs.Some[uint64](5),
			Devices: []btrfs.Device{{ID: 7, Errors: btrfs.Some(btrfs.ErrorCounts{Read: 5})}},
			Spaces:  []btrfs.Space{{Type: btrfs.Metadata, Used: 99}, {Type: btrfs.Data, Used: 1}},
		},
		Report: &capacity.Report{Free: 2, FreeExpected: 3, MetadataFree: 4},
	}}
}

func TestEachQuarterHasASampleOfEachPool(t *testing.T) {
	dir, logged := t.TempDir(), new(bytes.Buffer)
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(37 * time.Second) // the daemon starts within a quarter
		store, err := history.Open(log.NewLogfmtLogger(logged), state.NewDir(dir), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		hung, partial := btrfs.UUID{2}, btrfs.UUID{3}
		found := new(pools)
		found.set(whole(pool), collector.PoolReading{UUID: hung, Err: errors.New("no answer")},
			collector.PoolReading{UUID: partial, Facts: &collector.Facts{Pool: &btrfs.Pool{StatfsFree: btrfs.Some[uint64](5)}}})
		start := time.Now().UTC()
		run := func(d time.Duration) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			sampler := history.NewSampler(log.NewLogfmtLogger(logged), store, found, time.Now, upTime)
			go func() { done <- sampler.Run(ctx) }()
			time.Sleep(d)
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		run(2 * time.Hour)
		run(time.Hour) // a restart adds none to a quarter that has one
		got := store.Samples(pool, start.Add(-day), 1000)
		if len(got) != 13 {
			t.Fatalf("in three hours there are %d samples", len(got))
		}
		for i, s := range got {
			want := start
			if i > 0 {
				want = start.Truncate(history.Step).Add(time.Duration(i) * history.Step)
			}
			if !s.Time.Equal(want) {
				t.Errorf("sample %d is of %s, want %s", i, s.Time, want)
			}
			s.Time = time.Time{}
			if s != (history.Sample{Used: btrfs.Some[uint64](1), Free: btrfs.Some[uint64](2), FreeExpected: btrfs.Some[uint64](3), MetadataFree: btrfs.Some[uint64](4), StatfsFree: btrfs.Some[uint64](5)}) {
				t.Errorf("sample %d is %+v", i, s)
			}
		}
		if got := store.Samples(hung, start.Add(-day), 1000); len(got) > 0 {
			t.Errorf("the pool that cannot be read has %v", got)
		}
		if got := store.Samples(partial, start.Add(-day), 1000); len(got) != 13 || got[0].Free.Known || got[0].Used.Known || got[0].StatfsFree.Value != 5 {
			t.Errorf("the pool of which little is known has %v", got)
		}
		if got := store.DeviceErrors(pool)[7]; got.Counts.Read != 5 || !got.Watched.Equal(start) {
			t.Errorf("of the error counters it is remembered %+v, want them watched since %s", got, start)
		}
		if found.reads > 14 {
			t.Errorf("the pools were read %d times", found.reads)
		}
	})
}

func TestClockThatIsSetForwardIsFollowed(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var ahead time.Duration
		now := func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(ahead)
		}
		store, err := history.Open(log.NewNopLogger(), state.NewDir(dir), now)
		if err != nil {
			t.Fatal(err)
		}
		found := new(pools)
		found.set(whole(pool))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- history.NewSampler(log.NewNopLogger(), store, found, now, upTime).Run(ctx) }()
		time.Sleep(time.Minute)
		mu.Lock()
		ahead = 3*time.Hour + 7*time.Minute
		mu.Unlock()
		time.Sleep(2 * time.Minute)
		got := store.Samples(pool, now().Add(-day), 100)
		if len(got) != 2 || now().Sub(got[1].Time) > 2*time.Minute {
			t.Errorf("at %s there are %v", now(), got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestLostSamplesAreSaidOnce(t *testing.T) {
	dir, logged := t.TempDir(), new(bytes.Buffer)
	synctest.Test(t, func(t *testing.T) {
		logger := log.NewLogfmtLogger(logged)
		store, err := history.Open(logger, state.NewDir(dir+"/gone"), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		found := new(pools)
		found.set(whole(pool))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
		defer cancel()
		if err := history.NewSampler(logger, store, found, time.Now, upTime).Run(ctx); err != nil {
			t.Error(err)
		}
	})
	if n := strings.Count(logged.String(), "is lost"); n != 1 {
		t.Errorf("it is said %d times:\n%s", n, logged)
	}
}

// upTime is that of a machine that was never suspended.
func upTime() time.Duration { return time.Hour + time.Since(testsBegan) }

var testsBegan = time.Now()
