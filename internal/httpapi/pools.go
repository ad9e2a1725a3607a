package httpapi

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
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
	return nil, noPool(name, readings)
}

// namedPools is how many pools are named to whoever asked for one that is not there.
const namedPools = 10

func noPool(name string, readings []collector.PoolReading) *problem {
	var names []string
	for i := range readings[:min(len(readings), namedPools)] {
		if label := readings[i].Label; label != "" {
			names = append(names, strconv.Quote(label))
		} else {
			names = append(names, readings[i].UUID.String())
		}
	}
	mounted := "Mounted are " + strings.Join(names, ", ")
	switch {
	case len(names) == 0:
		mounted = "None is mounted"
	case len(readings) > namedPools:
		mounted += fmt.Sprintf(" and %d more", len(readings)-namedPools)
	}
	return problemf(http.StatusNotFound, "There is no mounted pool %q. %s.", name, mounted)
}

// maxAdded bounds the device of a what-if, in bytes: the simulation takes the
// longer the larger it is, 8 s for 15 EiB.
const maxAdded = 16 << 50

// deviceSpaceView is what the space of a device is used for, in bytes of the device.
// The size is the sum of what is allocated, free, stranded and unusable.
type deviceSpaceView struct {
	ID uint64 `json:"devid"`
	// Path is left out for a device of which there is none, such as a new one.
	Path    string `json:"path,omitempty"`
	Missing bool   `json:"missing,omitempty"`
	Size    uint64 `json:"size_bytes"`
	// Allocated is in block groups. What these are for is left out where it is
	// not known: without root, or in a what-if of a device that takes no chunks.
	// Mixed ones are data.
	Allocated uint64            `json:"allocated_bytes"`
	Data      btrfs.Opt[uint64] `json:"data_bytes,omitzero"`
	Metadata  btrfs.Opt[uint64] `json:"metadata_bytes,omitzero"`
	System    btrfs.Opt[uint64] `json:"system_bytes,omitzero"`
	Free      uint64            `json:"free_bytes"`     // data can still have it
	Stranded  uint64            `json:"stranded_bytes"` // no chunk of data reaches it
	Unusable  uint64            `json:"unusable_bytes"` // free, on a device that takes no chunks
}

// newDeviceSpaces shows the devices of a layout. pathOf returns "" where there is no
// path.
func newDeviceSpaces(r *capacity.Report, devices []capacity.LayoutDevice, pathOf func(id uint64) string) []deviceSpaceView {
	views := make([]deviceSpaceView, 0, len(devices))
	for i := range devices {
		d := &devices[i]
		v := deviceSpaceView{ID: d.ID, Path: pathOf(d.ID), Missing: d.Missing, Size: d.Size, Allocated: min(d.Used, d.Size)}
		rest := d.Size - v.Allocated
		switch {
		case !d.Usable:
			v.Unusable = rest
		case i < len(r.Stranded):
			v.Stranded = min(r.Stranded[i], rest)
			v.Free = rest - v.Stranded
		}
		if bytes, known := d.ByType(); known {
			v.Data = btrfs.Some(bytes[btrfs.Data] + bytes[btrfs.Mixed])
			v.Metadata, v.System = btrfs.Some(bytes[btrfs.Metadata]), btrfs.Some(bytes[btrfs.System])
		}
		views = append(views, v)
	}
	return views
}

// pathOf is the path of a device of a pool, or its name in the kernel.
func pathOf(p *btrfs.Pool, id uint64) string {
	d := p.Device(id)
	if d == nil {
		return ""
	}
	return cmp.Or(d.Path, d.Name)
}

// whatIf is what is asked for: changes, in the order of the query.
type whatIf struct {
	changes []func(*btrfs.Pool) []capacity.Change
	gone    map[uint64]bool // the devices that are taken away
}

// readWhatIf takes the changes out of the parameters, of each kind at most one. The
// order matters: what lies on a device to remove may find room only on one that was
// added before. Those in a body have none, and come last.
func readWhatIf(p *parameters, rawQuery string) *whatIf {
	w := &whatIf{gone: make(map[uint64]bool)}
	kinds := map[string]func(){
		"add":     func() { w.add(p) },
		"remove":  func() { w.remove(p) },
		"replace": func() { w.replace(p) },
		"convert": func() { w.convert(p) },
	}
	order := make([]string, 0, 2*len(kinds))
	for pair := range strings.SplitSeq(rawQuery, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if name, err := url.QueryUnescape(name); err == nil {
			order = append(order, name)
		}
	}
	for _, name := range append(order, "add", "remove", "replace", "convert") {
		if read := kinds[name]; read != nil {
			read()
			delete(kinds, name)
		}
	}
	return w
}

// then adds changes that are the same for all pools.
func (w *whatIf) then(changes ...capacity.Change) {
	w.changes = append(w.changes, func(*btrfs.Pool) []capacity.Change { return changes })
}

func (w *whatIf) add(p *parameters) {
	if size := p.size("add"); size > maxAdded {
		p.fail("add", "is more than %s, the most that is simulated", humanize.IBytes(maxAdded))
	} else if size > 0 {
		w.then(capacity.AddDevice{Size: size})
	}
}

func (w *whatIf) remove(p *parameters) {
	text, given := p.text("remove")
	if !given {
		return
	}
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		p.fail("remove", "must be the devid of a device, not %q", text)
	}
	w.gone[id] = true
	w.then(capacity.RemoveDevice{ID: id})
}

func (w *whatIf) replace(p *parameters) {
	text, given := p.text("replace")
	if !given {
		return
	}
	device, size, _ := strings.Cut(text, ":")
	id, err := strconv.ParseUint(device, 10, 64)
	bytes, sizeErr := humanize.ParseBytes(size)
	switch {
	case err != nil || sizeErr != nil || bytes == 0:
		p.fail("replace", "must be the devid of a device and the size of the new one, such as 2:8TB, not %q", text)
	case bytes > maxAdded:
		p.fail("replace", "is more than %s, the most that is simulated", humanize.IBytes(maxAdded))
	}
	w.gone[id] = true
	w.then(capacity.ReplaceDevice{ID: id, Size: bytes})
}

// convert is of data, metadata and system, as a balance with -dconvert and -mconvert
// does it (btrfs-balance(8)).
func (w *whatIf) convert(p *parameters) {
	text, given := p.text("convert")
	if !given {
		return
	}
	profile, err := btrfs.ParseProfile(text)
	if err != nil {
		p.fail("convert", "is an %v", err)
	}
	w.changes = append(w.changes, func(pool *btrfs.Pool) (changes []capacity.Change) {
		for _, t := range []btrfs.BlockGroupType{btrfs.Data, btrfs.Mixed, btrfs.Metadata, btrfs.System} {
			if pool.Space(t) != nil {
				changes = append(changes, capacity.Convert{Type: t, Profile: profile})
			}
		}
		return changes
	})
}

// answer works out what a pool would be.
func (w *whatIf) answer(f *collector.Facts) (*capacityView, []deviceSpaceView, error) {
	var changes []capacity.Change
	for _, of := range w.changes {
		changes = append(changes, of(f.Pool)...)
	}
	report, devices, err := capacity.WhatIf(f.Pool, f.Layout, changes...)
	if err != nil {
		return nil, nil, err
	}
	path := func(id uint64) string {
		// A new device may get the devid of one that is gone.
		if w.gone[id] {
			return ""
		}
		return pathOf(f.Pool, id)
	}
	return newCapacityView(report), newDeviceSpaces(report, devices, path), nil
}

// showCapacity answers with the capacity of a pool, and with that after changes
// that are asked for.
func (a *api) showCapacity(w http.ResponseWriter, r *http.Request) error {
	p, err := readParameters(w, r)
	if err != nil {
		return err
	}
	asked := readWhatIf(p, r.URL.RawQuery)
	if err := p.done(); err != nil {
		return err
	}
	reading, err := a.findPool(r.PathValue("pool"))
	if err != nil {
		return err
	}
	f := reading.Facts
	if f == nil || f.Report == nil {
		var why any = reading.Err
		if reading.Err == nil {
			why = "it is mounted where this program cannot reach it"
		}
		return problemf(http.StatusServiceUnavailable, "The capacity of pool %s is not known: %v.", reading.UUID, why)
	}
	answer := struct {
		UUID          btrfs.UUID        `json:"uuid"`
		Now           *capacityView     `json:"now"`
		Devices       []deviceSpaceView `json:"devices"`
		WhatIf        *capacityView     `json:"what_if,omitempty"`
		WhatIfDevices []deviceSpaceView `json:"what_if_devices,omitempty"`
		Forecast      *forecastView     `json:"forecast,omitempty"`
	}{
		UUID: reading.UUID, Now: newCapacityView(f.Report),
		Devices:  newDeviceSpaces(f.Report, f.Layout.Devices, func(id uint64) string { return pathOf(f.Pool, id) }),
		Forecast: a.forecast(reading.UUID),
	}
	if len(asked.changes) > 0 {
		answer.WhatIf, answer.WhatIfDevices, err = asked.answer(f)
		if err != nil {
			return problemf(http.StatusUnprocessableEntity, "That cannot be done: %v.", err)
		}
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
