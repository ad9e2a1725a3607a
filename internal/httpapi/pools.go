package httpapi

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
	"github.com/btrfs-governor/btrfs-governor/collector"
	"github.com/btrfs-governor/btrfs-governor/internal/history"
)

// poolView is a pool as the API shows it. Sizes are bytes; what is unknown is
// left out.
type poolView struct {
	UUID               btrfs.UUID        `json:"uuid"`
	Label              string            `json:"label,omitempty"`
	Mountpoint         string            `json:"mountpoint,omitempty"`
	ReadOnly           btrfs.Opt[bool]   `json:"read_only,omitzero"`
	Checksum           btrfs.Opt[string] `json:"checksum,omitzero"`
	ExclusiveOperation btrfs.Opt[string] `json:"exclusive_operation,omitzero"`
	Used               btrfs.Opt[uint64] `json:"used_bytes,omitzero"`
	StatfsFree         btrfs.Opt[uint64] `json:"statfs_free_bytes,omitzero"`
	Capacity           *capacityView     `json:"capacity,omitempty"`
	Devices            []btrfs.Device    `json:"devices"`
	// Error says what could not be read.
	Error string `json:"error,omitempty"`
}

// capacityView is what a pool can hold.
type capacityView struct {
	FreeExact         bool   `json:"free_exact"`
	DataProfile       string `json:"data_profile"`
	Free              uint64 `json:"free_bytes"`
	FreeExpected      uint64 `json:"free_expected_bytes"`
	FreeAfterBalance  uint64 `json:"free_after_balance_bytes"`
	Usable            uint64 `json:"usable_bytes"`
	MetadataFree      uint64 `json:"metadata_free_bytes"`
	StrandedMismatch  uint64 `json:"stranded_mismatch_bytes"`
	StrandedImbalance uint64 `json:"stranded_imbalance_bytes"`
}

func newCapacityView(r *capacity.Report) *capacityView {
	if r == nil {
		return nil
	}
	return &capacityView{
		FreeExact: r.Exact, DataProfile: r.DataProfile.String(), Free: r.Free, FreeExpected: r.FreeExpected,
		FreeAfterBalance: r.FreeAfterBalance, Usable: r.Usable, MetadataFree: r.MetadataFree,
		StrandedMismatch: r.StrandedMismatch, StrandedImbalance: r.StrandedImbalance,
	}
}

func newPoolView(r *collector.PoolReading) poolView {
	v := poolView{UUID: r.UUID, Label: r.Label, Devices: []btrfs.Device{}}
	if r.Err != nil {
		v.Error = r.Err.Error()
	}
	if r.Facts == nil {
		return v
	}
	p := r.Facts.Pool
	v.Mountpoint, v.ReadOnly, v.Checksum = p.Mountpoint, p.ReadOnly, p.Checksum
	v.ExclusiveOperation, v.StatfsFree = p.ExclusiveOperation, p.StatfsFree
	for _, t := range []btrfs.BlockGroupType{btrfs.Data, btrfs.Mixed} {
		if s := p.Space(t); s != nil {
			v.Used = btrfs.Some(s.Used)
		}
	}
	v.Capacity = newCapacityView(r.Facts.Report)
	if len(p.Devices) > 0 {
		v.Devices = p.Devices
	}
	return v
}

func (a *api) listPools(w http.ResponseWriter, r *http.Request) error {
	if err := noParameters(w, r); err != nil {
		return err
	}
	readings, err := a.cfg.Pools.Pools()
	if err != nil && len(readings) == 0 {
		return problemf(http.StatusServiceUnavailable, "The pools could not be found: %v.", err)
	}
	views := make([]poolView, 0, len(readings))
	for i := range readings {
		views = append(views, newPoolView(&readings[i]))
	}
	answer := map[string]any{"pools": views}
	if err != nil {
		answer["error"] = "Not all pools could be found: " + err.Error()
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

func (a *api) showPool(w http.ResponseWriter, r *http.Request) error {
	if err := noParameters(w, r); err != nil {
		return err
	}
	reading, err := a.findPool(r.PathValue("pool"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, newPoolView(reading))
	return nil
}

// findPool finds a pool by its UUID, its label or the beginning of its UUID.
func (a *api) findPool(name string) (*collector.PoolReading, error) {
	readings, err := a.cfg.Pools.Pools()
	if err != nil && len(readings) == 0 {
		return nil, problemf(http.StatusServiceUnavailable, "The pools could not be found: %v.", err)
	}
	// In order of how well it fits: of several the first that fits at all.
	for _, fits := range []func(*collector.PoolReading) bool{
		func(r *collector.PoolReading) bool { return strings.EqualFold(r.UUID.String(), name) },
		func(r *collector.PoolReading) bool { return name != "" && r.Label == name },
		func(r *collector.PoolReading) bool {
			return name != "" && strings.HasPrefix(r.UUID.String(), strings.ToLower(name))
		},
	} {
		var found []*collector.PoolReading
		for i := range readings {
			if fits(&readings[i]) {
				found = append(found, &readings[i])
			}
		}
		if len(found) == 1 {
			return found[0], nil
		}
		if len(found) > 1 {
			p := problemf(http.StatusConflict, "%q may be any of %d pools: give the UUID.", name, len(found))
			for _, r := range found {
				p.Candidates = append(p.Candidates, r.UUID.String())
			}
			slices.Sort(p.Candidates)
			return nil, p
		}
	}
	return nil, problemf(http.StatusNotFound, "There is no mounted pool %q: GET /api/v1/pools lists those there are.", name)
}

// maxAdded bounds the device of a what-if, in bytes: the simulation takes the
// longer the larger it is, 8 s for 15 EiB.
const maxAdded = 16 << 50

// showCapacity answers with the capacity of a pool, and with that after changes
// that are asked for.
func (a *api) showCapacity(w http.ResponseWriter, r *http.Request) error {
	p, err := readParameters(w, r)
	if err != nil {
		return err
	}
	var changes []capacity.Change
	if size := p.size("add"); size > maxAdded {
		p.fail("add", "is more than %s, the most that is simulated", humanize.IBytes(maxAdded))
	} else if size > 0 {
		changes = append(changes, capacity.AddDevice{Size: size})
	}
	if id, given := p.text("remove"); given {
		n, err := strconv.ParseUint(id, 10, 64)
		if err != nil {
			p.fail("remove", "must be the devid of a device, not %q", id)
		}
		changes = append(changes, capacity.RemoveDevice{ID: n})
	}
	if err := p.done(); err != nil {
		return err
	}
	reading, err := a.findPool(r.PathValue("pool"))
	if err != nil {
		return err
	}
	if reading.Facts == nil || reading.Facts.Report == nil {
		return problemf(http.StatusServiceUnavailable, "The capacity of pool %s is not known: %v.", reading.UUID, reading.Err)
	}
	answer := struct {
		UUID     btrfs.UUID    `json:"uuid"`
		Now      *capacityView `json:"now"`
		WhatIf   *capacityView `json:"what_if,omitempty"`
		Forecast *forecastView `json:"forecast,omitempty"`
	}{UUID: reading.UUID, Now: newCapacityView(reading.Facts.Report), Forecast: a.forecast(reading.UUID)}
	if len(changes) > 0 {
		report, _, err := capacity.WhatIf(reading.Facts.Pool, reading.Facts.Layout, changes...)
		if err != nil {
			return problemf(http.StatusUnprocessableEntity, "That cannot be worked out: %v.", err)
		}
		answer.WhatIf = newCapacityView(report)
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// forecastView is when a pool will be full, as of a time.
type forecastView struct {
	Time               time.Time          `json:"time"`
	DaysToFull         btrfs.Opt[float64] `json:"days_to_full,omitzero"`
	MetadataDaysToFull btrfs.Opt[float64] `json:"metadata_days_to_full,omitzero"`
	BytesPerDay        btrfs.Opt[float64] `json:"bytes_per_day,omitzero"`
	Full               time.Time          `json:"full,omitzero"`
	Since              time.Time          `json:"since,omitzero"`
	Source             history.Source     `json:"source"`
}

// forecast is nil where there is none.
func (a *api) forecast(pool btrfs.UUID) *forecastView {
	if a.cfg.History == nil {
		return nil
	}
	f, ok := a.cfg.History.Forecast(pool)
	if !ok {
		return nil
	}
	return &forecastView{
		Time: f.Time, DaysToFull: f.DaysToFull, MetadataDaysToFull: f.MetadataDaysToFull, BytesPerDay: f.BytesPerDay,
		Full: f.Full(), Since: f.Since, Source: f.Source,
	}
}

// sampleView is what a pool held at a time, in bytes.
type sampleView struct {
	Time         time.Time         `json:"time"`
	Used         btrfs.Opt[uint64] `json:"used_bytes,omitzero"`
	Free         btrfs.Opt[uint64] `json:"free_bytes,omitzero"`
	FreeExpected btrfs.Opt[uint64] `json:"free_expected_bytes,omitzero"`
	MetadataFree btrfs.Opt[uint64] `json:"metadata_free_bytes,omitzero"`
	StatfsFree   btrfs.Opt[uint64] `json:"statfs_free_bytes,omitzero"`
}

// Bounds of an answer with a history.
const (
	maxSamples  = 400
	defaultDays = 90
	maxDays     = int(history.Span / (24 * time.Hour))
)

// showHistory answers with what a pool held on the last days.
func (a *api) showHistory(w http.ResponseWriter, r *http.Request) error {
	p, err := readParameters(w, r)
	if err != nil {
		return err
	}
	days := defaultDays
	if text, given := p.text("days"); given {
		if days, err = strconv.Atoi(text); err != nil || days < 1 || days > maxDays {
			p.fail("days", "must be a number of days from 1 to %d, not %q", maxDays, text)
		}
	}
	if err := p.done(); err != nil {
		return err
	}
	reading, err := a.findPool(r.PathValue("pool"))
	if err != nil {
		return err
	}
	if a.cfg.History == nil {
		return problemf(http.StatusForbidden, "The daemon keeps no history: start it without --read-only, or name a Prometheus with --prometheus.url.")
	}
	samples := a.cfg.History.Samples(reading.UUID, time.Now().AddDate(0, 0, -days), maxSamples)
	views := make([]sampleView, len(samples))
	for i, s := range samples {
		views[i] = sampleView(s)
	}
	writeJSON(w, http.StatusOK, struct {
		UUID    btrfs.UUID   `json:"uuid"`
		Samples []sampleView `json:"samples"`
	}{reading.UUID, views})
	return nil
}

// noParameters refuses all parameters.
func noParameters(w http.ResponseWriter, r *http.Request) error {
	p, err := readParameters(w, r)
	if err != nil {
		return err
	}
	return p.done()
}
