package alerts

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-kit/log"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/collector"
	local "github.com/btrfs-governor/btrfs-governor/internal/history"
)

// randomHistories are pools to which anything happens: walks with leaps, and with
// days of which nothing is known.
func randomHistories(n int) []history {
	random := rand.New(rand.NewPCG(3, 3))
	var all []history
	for i := range n {
		h := history{name: fmt.Sprint("random ", i)}
		free, df := 100+random.Float64()*2000, 1000+random.Float64()*1000
		trend, noise := random.NormFloat64()*2, random.Float64()*20
		for range historyDays * 24 {
			free += random.NormFloat64()*noise - trend
			if random.IntN(200) == 0 {
				free += random.NormFloat64() * 500
			}
			df += random.NormFloat64() * 3
			h.free, h.df = append(h.free, max(free, 0)*gib), append(h.df, max(df, 0)*gib)
		}
		all = append(all, h)
	}
	return all
}

// valueAt is a value of an hour, and in between on the line to the next.
func valueAt(values []float64, after time.Duration) (uint64, bool) {
	hour := int(after / time.Hour)
	if hour+1 >= len(values) {
		return 0, false
	}
	part := float64(after%time.Hour) / float64(time.Hour)
	return uint64(math.Round(values[hour] + (values[hour+1]-values[hour])*part)), true
}

// TestLocalForecastIsThatOfTheRules has the histories in a real Prometheus, and
// holds the forecast of the daemon's own history against the recording rules there:
// at each quarter of an hour the same samples, so that the two must be equal; and
// scraped every five minutes at other times than the daemon takes its samples.
func TestLocalForecastIsThatOfTheRules(t *testing.T) {
	all := append(histories(t), randomHistories(14)...)
	begin := time.Now().Add(-(historyDays + 2) * day).UTC().Truncate(day)
	random := rand.New(rand.NewPCG(4, 4))
	samples := make([][]local.Sample, len(all))
	var free, metadata []byte
	for i := range all {
		h := &all[i]
		scraped := h.name + ", scraped"
		missing := time.Time{}
		for at := begin; ; at = at.Add(local.Step) {
			v, ok := valueAt(h.free, at.Sub(begin))
			m, _ := valueAt(h.df, at.Sub(begin))
			if !ok {
				break
			}
			if strings.HasPrefix(h.name, "random") && random.IntN(300) == 0 {
				missing = at.Add(time.Duration(random.IntN(100)) * time.Hour / 4)
			}
			if at.Before(missing) {
				continue
			}
			samples[i] = append(samples[i], local.Sample{Time: at, FreeExpected: btrfs.Some(v), MetadataFree: btrfs.Some(m)})
			free = fmt.Appendf(free, "%s %d %d\n", selector("btrfs_pool_free_expected_bytes", uuidOf(i)), v, at.Unix())
			metadata = fmt.Appendf(metadata, "%s %d %d\n", selector("btrfs_pool_metadata_free_bytes", uuidOf(i)), m, at.Unix())
		}
		for at := begin.Add(137 * time.Second); ; at = at.Add(5 * time.Minute) {
			v, ok := valueAt(h.free, at.Sub(begin))
			if !ok {
				break
			}
			free = fmt.Appendf(free, "%s %d %d\n", selector("btrfs_pool_free_expected_bytes", scraped), v, at.Unix())
		}
	}
	p := startPrometheus(t, slices.Concat([]byte("# TYPE btrfs_pool_free_expected_bytes gauge\n"), free, []byte("# TYPE btrfs_pool_metadata_free_bytes gauge\n"), metadata, []byte("# EOF\n")))
	rules := readRules(t)
	rule := func(record, metric, name string) string {
		for _, r := range rules {
			if r.Record == record {
				return strings.ReplaceAll(r.Expr, metric, selector(metric, name))
			}
		}
		t.Fatalf("there is no rule %s", record)
		return ""
	}

	compared, absent, errors := 0, 0, []float64(nil)
	for i := range all {
		h := &all[i]
		// The steps of the rule are at even hours: whether one at the begin of its
		// window counts differs between Prometheus 2 and 3.
		for at := begin.Add(7*time.Hour + 15*time.Minute); at.Before(begin.Add(historyDays * day)); at = at.Add(53*time.Hour + 45*time.Minute) {
			if at.Unix()%7200 == 0 {
				continue
			}
			n, found := slices.BinarySearchFunc(samples[i], at, func(s local.Sample, at time.Time) int { return s.Time.Compare(at) })
			if !found {
				continue
			}
			f, ok := local.Predict(samples[i][:n+1])
			for _, kind := range []struct {
				record, metric string
				days           btrfs.Opt[float64]
			}{
				{"btrfs:pool_days_to_full", "btrfs_pool_free_expected_bytes", f.DaysToFull},
				{"btrfs:pool_metadata_days_to_full", "btrfs_pool_metadata_free_bytes", f.MetadataDaysToFull},
			} {
				want, known := p.value(t, rule(kind.record, kind.metric, uuidOf(i)), at)
				got, gotKnown := kind.days.Get()
				switch {
				case known != gotKnown || known && !ok:
					t.Errorf("%s, day %.2f: %s is %g (known: %t), ours %g (known: %t)", h.name, at.Sub(begin).Hours()/24, kind.record, want, known, got, gotKnown)
				case !known:
					absent++
				case math.Abs(got-want) > 1e-9*want:
					t.Errorf("%s, day %.2f: %s is %g, ours %g", h.name, at.Sub(begin).Hours()/24, kind.record, want, got)
				default:
					compared++
				}
			}
			if days, known := f.DaysToFull.Get(); known && !strings.HasPrefix(h.name, "random") {
				// A moment later, as people look.
				want, wantKnown := p.value(t, rule("btrfs:pool_days_to_full", "btrfs_pool_free_expected_bytes", h.name+", scraped"), at.Add(411*time.Second))
				if !wantKnown {
					t.Errorf("%s, day %.2f: scraped there is no forecast, ours is %g", h.name, at.Sub(begin).Hours()/24, days)
					continue
				}
				// What hardly fills up has any number of days, and with the first change from
				// week to week the forecast leaps, here and there at its time.
				if want < 90 && at.After(begin.Add(8*day)) {
					errors = append(errors, math.Abs(days-want)/want)
				}
			}
		}
	}
	slices.Sort(errors)
	t.Logf("%d equal, %d absent in both; scraped every five minutes, of %d the median is off by %.4f %%, 19 of 20 by less than %.2f %%, all by less than %.2f %%",
		compared, absent, len(errors), 100*errors[len(errors)/2], 100*errors[len(errors)*19/20], 100*errors[len(errors)-1])
	if compared < 500 || absent == 0 {
		t.Errorf("only %d are compared, and %d absent", compared, absent)
	}
	if errors[len(errors)*19/20] > 0.01 || errors[len(errors)-1] > 0.1 {
		t.Errorf("scraped every five minutes, one in twenty is off by %.2f %% or more, one by %.2f %%", 100*errors[len(errors)*19/20], 100*errors[len(errors)-1])
	}
	t.Run("from Prometheus", func(t *testing.T) { fromPrometheus(t, p, samples) })
}

func uuidOf(i int) string { return btrfs.UUID{byte(i + 1)}.String() }

// onePool is the only pool of a machine.
type onePool btrfs.UUID

func (p onePool) Pools() ([]collector.PoolReading, error) {
	return []collector.PoolReading{{UUID: btrfs.UUID(p)}}, nil
}

// fromPrometheus holds what the daemon has from a Prometheus against its own.
func fromPrometheus(t *testing.T, p *prometheus, samples [][]local.Sample) {
	address, err := url.Parse("http://" + p.address)
	if err != nil {
		t.Fatal(err)
	}
	for i, own := range samples {
		now := own[len(own)-1].Time
		uuid := btrfs.UUID{byte(i + 1)}
		source, err := local.NewPrometheus(local.PrometheusConfig{
			Logger: log.NewNopLogger(), URL: address, Client: &http.Client{Transport: http.DefaultTransport},
			Pools: onePool(uuid), Now: func() time.Time { return now },
		})
		if err != nil {
			t.Fatal(err)
		}
		want, wantOK := local.Predict(own)
		got, ok := fetched(t, source, func() (local.Forecast, bool) { return source.Forecast(uuid) })
		if ok != wantOK || math.Abs(got.DaysToFull.Value-want.DaysToFull.Value) > 1e-9*want.DaysToFull.Value ||
			math.Abs(got.MetadataDaysToFull.Value-want.MetadataDaysToFull.Value) > 1e-9*want.MetadataDaysToFull.Value ||
			math.Abs(got.BytesPerDay.Value-want.BytesPerDay.Value) > 1e-9*math.Abs(want.BytesPerDay.Value) || !got.Time.Equal(want.Time) || got.Source != local.SourcePrometheus {
			t.Errorf("pool %d: the forecast is\n%+v, want\n%+v", i, got, want)
		}
		of, ok := fetched(t, source, func() ([]local.Sample, bool) {
			s := source.Samples(uuid, now.Add(-10*day), 100)
			return s, len(s) > 0
		})
		if !ok || len(of) > 100 || !of[len(of)-1].Time.Equal(now) {
			t.Errorf("pool %d: %d samples", i, len(of))
		}
		for _, s := range of {
			if !slices.Contains(own, s) {
				t.Errorf("pool %d: there is no such sample: %+v", i, s)
			}
		}
	}
}

// fetched asks until what was asked for in the background is there.
func fetched[T any](t *testing.T, source *local.Prometheus, ask func() (T, bool)) (T, bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if v, ok := ask(); ok || time.Now().After(deadline) {
			return v, ok
		}
	}
}
