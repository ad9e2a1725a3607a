package snapshot_test

import (
	"testing"
	"time"

	"github.com/btrfs-governor/btrfs-governor/internal/schedule"
	"github.com/btrfs-governor/btrfs-governor/snapshot"
)

func TestMissedTimesOfTheSchedule(t *testing.T) {
	noon := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC) // a Wednesday
	for _, tt := range []struct {
		times   string
		success time.Time
		want    int
	}{
		{"0 * * * *", noon.Add(-time.Hour), 0}, // this one is due now
		{"0 * * * *", noon.Add(-90 * time.Minute), 1},
		{"0 * * * *", noon.Add(-4 * time.Hour), 3},
		{"0 * * * *", noon.AddDate(-1, 0, 0), snapshot.MaxMissed},
		{"0 3 * * 1", noon.AddDate(0, 0, -1), 0},
		{"0 3 * * 1", noon.AddDate(0, 0, -10), 2},
		{"0 * * * *", time.Time{}, 0},           // there never was one
		{"0 * * * *", noon.AddDate(0, 0, 1), 0}, // by a clock that was ahead
	} {
		times, err := schedule.ParseTimes(tt.times, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		if got := snapshot.Missed(times, tt.success, noon); got != tt.want {
			t.Errorf("%q since %s: missed %d, want %d", tt.times, tt.success, got, tt.want)
		}
	}
}
