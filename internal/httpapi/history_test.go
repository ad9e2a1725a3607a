package httpapi_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
	"github.com/btrfs-governor/btrfs-governor/internal/httpapi"
)

// fakeHistory has a forecast, and samples of the attic alone.
type fakeHistory struct {
	forecast history.Forecast
	since    time.Time
	most     int
}

func (h *fakeHistory) Samples(pool btrfs.UUID, since time.Time, most int) []history.Sample {
	h.since, h.most = since, most
	if pool.String() != atticUUID {
		return nil
	}
	return []history.Sample{
		{Time: time.Unix(1.8e9, 0).UTC(), Used: btrfs.Some[uint64](0), FreeExpected: btrfs.Some[uint64](5)},
		{Time: time.Unix(1.8e9+900, 0).UTC(), Free: btrfs.Some[uint64](1), MetadataFree: btrfs.Some[uint64](2), StatfsFree: btrfs.Some[uint64](3)},
	}
}

func (h *fakeHistory) Forecast(btrfs.UUID) (history.Forecast, bool) {
	return h.forecast, h.forecast.Source != ""
}

func TestHistoryOfAPool(t *testing.T) {
	past := &fakeHistory{}
	s := newService(t, func(c *httpapi.Config) { c.History = past })
	get := func(target string, status int) string {
		t.Helper()
		w := s.do("GET", target, "", sent{})
		validate(t, "GET", target, w)
		if w.Code != status {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
		return w.Body.String()
	}
	var answer struct {
		Samples []json.RawMessage `json:"samples"`
	}
	text := get("/api/v1/pools/attic/history?days=30", 200)
	if err := json.Unmarshal([]byte(text), &answer); err != nil || len(answer.Samples) != 2 {
		t.Fatalf("%v %s", err, text)
	}
	// What is unknown is left out, and nothing else.
	for i, want := range []string{
		`{"time":"2027-01-15T08:00:00Z","used_bytes":0,"free_expected_bytes":5}`,
		`{"time":"2027-01-15T08:15:00Z","free_bytes":1,"metadata_free_bytes":2,"statfs_free_bytes":3}`,
	} {
		if got := strings.Join(strings.Fields(string(answer.Samples[i])), ""); got != want {
			t.Errorf("sample %d is %s, want %s", i, got, want)
		}
	}
	if age := time.Since(past.since).Hours() / 24; past.most != 400 || age < 29.9 || age > 30.1 {
		t.Errorf("asked for were %d of %.2f days", past.most, age)
	}
	if text := get("/api/v1/pools/barn/history", 200); !strings.Contains(strings.Join(strings.Fields(text), ""), `"samples":[]`) {
		t.Errorf("of a pool without a history: %s", text)
	}
	for _, bad := range []string{"0", "401", "-1", "x", "1.5", ""} {
		if text := get("/api/v1/pools/attic/history?days="+bad, 400); !strings.Contains(text, "from 1 to 400") {
			t.Errorf("%q days: %s", bad, text)
		}
	}
	get("/api/v1/pools/cellar/history", 404)

	if text := get("/api/v1/pools/attic/capacity", 200); strings.Contains(text, "forecast") {
		t.Errorf("there is no forecast, and it says %s", text)
	}
	past.forecast = history.Forecast{
		Time: time.Unix(1.8e9, 0).UTC(), Since: time.Unix(1.7e9, 0).UTC(), Source: history.SourceLocal,
		DaysToFull: btrfs.Some(1.5), BytesPerDay: btrfs.Some(1e9),
	}
	text = strings.Join(strings.Fields(get("/api/v1/pools/attic/capacity", 200)), "")
	if want := `"forecast":{"time":"2027-01-15T08:00:00Z","days_to_full":1.5,"bytes_per_day":1000000000,"full":"2027-01-16T20:00:00Z","since":"2023-11-14T22:13:20Z","source":"local"}`; !strings.Contains(text, want) {
		t.Errorf("got %s\nwant %s", text, want)
	}
	past.forecast = history.Forecast{Time: time.Unix(1.8e9, 0).UTC(), Source: history.SourcePrometheus, DaysToFull: btrfs.Some(3650.), MetadataDaysToFull: btrfs.Some(3.)}
	text = strings.Join(strings.Fields(get("/api/v1/pools/attic/capacity", 200)), "")
	if want := `"days_to_full":3650,"metadata_days_to_full":3,"source":"prometheus"}`; !strings.Contains(text, want) {
		t.Errorf("got %s\nwant %s", text, want)
	}
}

func TestWithoutAHistoryTheAnswerSaysWhy(t *testing.T) {
	s := newService(t, nil)
	w := s.do("GET", "/api/v1/pools/attic/history", "", sent{})
	validate(t, "GET", "/api/v1/pools/attic/history", w)
	if w.Code != 403 || !strings.Contains(w.Body.String(), "--prometheus.url") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
