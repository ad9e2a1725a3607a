package web

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
	"github.com/btrfs-governor/btrfs-governor/btrfs/capacity"
	"github.com/btrfs-governor/btrfs-governor/collector"
)

type factsOf = collector.Facts

// Devices are those of a pool, with their picture.
type Devices struct {
	Rows []Device
	// Legend are the kinds of segments there are, in their order.
	Legend []Kind
	// Exact tells whether it is known where the chunks lie: with it there are
	// metadata and losses.
	Exact bool
	// Faults tells whether the errors of any device are known.
	Faults bool
}

// Device is one device.
type Device struct {
	ID              uint64
	Name            string
	Model, Serial   string
	Missing         bool
	ReadOnly        bool
	Size            string
	Bar             Bar
	Data, Metadata  string // bytes allocated; "" where that is not known
	MetadataShare   string // of all metadata
	Free, Stranded  string
	Errors          string // such as "5 corruption"; "none"; "" where not known
	Faulty          bool
	Loss            string // what its failure alone would cost
	LossIsSomething bool
}

// Kind is what a part of a device is used for.
type Kind string

// The kinds, which are classes in the style sheet too.
const (
	KindData      Kind = "data"
	KindMetadata  Kind = "metadata"
	KindMixed     Kind = "mixed" // data and metadata in the same block groups
	KindSystem    Kind = "system"
	KindAllocated Kind = "allocated" // what for is not known
	KindFree      Kind = "free"
	KindStranded  Kind = "stranded"
	KindUnusable  Kind = "unusable"
)

// Words says what the kind means.
func (k Kind) Words() string {
	switch k {
	case KindFree:
		return "free for data"
	case KindStranded:
		return "stranded: no data chunk reaches it"
	case KindUnusable:
		return "unusable: the device is missing or read-only"
	case KindAllocated:
		return "allocated"
	case KindMixed:
		return "data and metadata"
	}
	return string(k)
}

// Bar is the picture of a device: segments from left to right.
type Bar struct {
	// Width is that of the whole device, in thousandths of the largest one.
	Width    float64
	Segments []Segment
	Label    string // which device it is, and how large
	Words    string // the same for those who do not see it
}

// Segment is a part of a bar. X and Width are thousandths of the picture.
type Segment struct {
	Kind     Kind
	X, Width float64
	Words    string
}

// part is an amount of a kind.
type part struct {
	kind  Kind
	bytes uint64
}

// least is the least width of what is there at all, in thousandths: one can see
// that there is metadata.
const least = 3

// newBar draws a device of a size beside the largest one. Parts that are nothing
// are left out.
func newBar(name string, total, largest uint64, parts []part) Bar {
	if largest == 0 {
		return Bar{Label: name, Words: name}
	}
	b := Bar{Width: 1000 * float64(total) / float64(largest), Label: name + ", " + size(total)}
	var widths []float64
	var sum, shrinkable float64
	words := []string{}
	for _, p := range parts {
		if p.bytes == 0 {
			continue
		}
		w := max(1000*float64(p.bytes)/float64(largest), least)
		b.Segments = append(b.Segments, Segment{Kind: p.kind, Words: fmt.Sprintf("%s: %s", p.kind.Words(), size(p.bytes))})
		words = append(words, string(p.kind)+" "+size(p.bytes))
		widths = append(widths, w)
		sum += w
		if w > least {
			shrinkable += w - least
		}
	}
	// What the least widths are too much the wide ones give.
	shrink := 1.0
	if over := sum - b.Width; over > 0 && shrinkable > 0 {
		shrink = max(0, 1-over/shrinkable)
	}
	x := 0.0
	for i, w := range widths {
		if w > least {
			w = least + (w-least)*shrink
		}
		b.Segments[i].X, b.Segments[i].Width = x, w
		x += w
	}
	b.Width = max(b.Width, x)
	b.Words = b.Label + ": " + strings.Join(words, ", ")
	return b
}

func newDevices(in *Input, now time.Time) *Devices {
	f := in.Reading.Facts
	p := f.Pool
	if len(p.Devices) == 0 {
		return nil
	}
	largest := uint64(0)
	for i := range p.Devices {
		largest = max(largest, p.Devices[i].Size.Value)
	}
	d := &Devices{Exact: f.Layout != nil && f.Layout.Exact}
	stranded := strandedOf(f)
	var losses *capacity.LossMatrix
	if d.Exact {
		losses = f.Layout.LossMatrix()
	}
	seen := make(map[Kind]bool)
	for i := range p.Devices {
		dev := &p.Devices[i]
		row := Device{
			ID: dev.ID, Name: deviceName(p, dev.ID), Model: dev.Model, Serial: dev.Serial, Missing: dev.Missing.Value,
			ReadOnly: dev.Writeable.Known && !dev.Writeable.Value && !dev.Missing.Value,
		}
		if dev.Size.Known {
			row.Size = size(dev.Size.Value)
		}
		parts := partsOf(f, dev, stranded)
		row.Bar = newBar(row.Name, dev.Size.Value, largest, parts)
		for _, s := range row.Bar.Segments {
			seen[s.Kind] = true
		}
		row.fill(parts, p.Space(btrfs.Mixed) != nil)
		if spread, ok := f.Spread.Get(); ok && d.Exact {
			for j, l := range f.Layout.Devices {
				if l.ID == dev.ID && j < len(spread.Share) {
					row.MetadataShare = percent(spread.Share[j])
				}
			}
		}
		if errors, ok := dev.Errors.Get(); ok {
			row.Errors = errorWords(&errors)
			age, _ := ageOf(in, dev, now)
			row.Faulty, d.Faults = errors != btrfs.ErrorCounts{} && age != oldErrors, true
		}
		if losses != nil {
			for j, id := range losses.Devices {
				if id == dev.ID {
					row.Loss = cost(losses.Single[j])
					row.LossIsSomething = losses.Single[j].Total() > 0
				}
			}
		}
		d.Rows = append(d.Rows, row)
	}
	for _, k := range kinds() {
		if seen[k] {
			d.Legend = append(d.Legend, k)
		}
	}
	return d
}

// strandedOf returns the raw bytes of each device that no data chunk reaches.
func strandedOf(f *factsOf) map[uint64]uint64 {
	if f.Report == nil || f.Layout == nil || len(f.Report.Stranded) != len(f.Layout.Devices) {
		return nil
	}
	m := make(map[uint64]uint64, len(f.Layout.Devices))
	for i, d := range f.Layout.Devices {
		m[d.ID] = f.Report.Stranded[i]
	}
	return m
}

// partsOf returns what a device is used for.
func partsOf(f *factsOf, dev *btrfs.Device, stranded map[uint64]uint64) []part {
	total, known := dev.Size.Get()
	if !known {
		return nil
	}
	d := &capacity.LayoutDevice{Size: total, Used: dev.Used.Value}
	exact := false
	if f.Layout != nil && f.Layout.Exact {
		if i := slices.IndexFunc(f.Layout.Devices, func(d capacity.LayoutDevice) bool { return d.ID == dev.ID }); i >= 0 {
			d, exact = &f.Layout.Devices[i], true
		}
	}
	if !exact && !dev.Used.Known {
		return nil
	}
	return divide(d, total, dev.Usable(), stranded[dev.ID])
}

// divide returns the parts of a device of a size in bytes.
func divide(d *capacity.LayoutDevice, total uint64, usable bool, stranded uint64) []part {
	var parts []part
	if bytes, known := d.ByType(); known {
		parts = []part{{KindData, bytes[btrfs.Data]}, {KindMixed, bytes[btrfs.Mixed]}, {KindMetadata, bytes[btrfs.Metadata]}, {KindSystem, bytes[btrfs.System]}}
	} else {
		parts = []part{{KindAllocated, d.Used}}
	}
	free := total - min(total, d.Used)
	if !usable {
		return append(parts, part{KindUnusable, free})
	}
	out := min(stranded, free)
	return append(parts, part{KindFree, free - out}, part{KindStranded, out})
}

// kinds are all there are, in the order in which a device shows them.
func kinds() []Kind {
	return []Kind{KindData, KindMixed, KindMetadata, KindSystem, KindAllocated, KindFree, KindStranded, KindUnusable}
}

// fill fills the row in. What is allocated for a use that is not known has no figure;
// in a pool of mixed block groups both uses have the same.
func (d *Device) fill(parts []part, mixed bool) {
	known := !slices.ContainsFunc(parts, func(p part) bool { return p.kind == KindAllocated && p.bytes > 0 })
	for _, p := range parts {
		switch p.kind {
		case KindData:
			if known && !mixed {
				d.Data = size(p.bytes)
			}
		case KindMetadata:
			if known && !mixed {
				d.Metadata = size(p.bytes)
			}
		case KindMixed:
			if known && mixed {
				d.Data = size(p.bytes) + " with metadata"
			}
		case KindFree:
			d.Free = size(p.bytes)
		case KindStranded:
			d.Stranded = size(p.bytes)
		}
	}
}

// errorWords says which errors a device has counted.
func errorWords(e *btrfs.ErrorCounts) string {
	var words []string
	for _, c := range []struct {
		n    uint64
		name string
	}{{e.Write, "write"}, {e.Read, "read"}, {e.Flush, "flush"}, {e.Corruption, "corruption"}, {e.Generation, "generation"}} {
		if c.n > 0 {
			words = append(words, humanizeCount(c.n)+" "+c.name)
		}
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

func humanizeCount(n uint64) string { return humanize.Comma(int64(min(n, 1<<62))) }

// deviceName is what a device is called: its path, or its number where it has none.
func deviceName(p *btrfs.Pool, id uint64) string {
	if d := p.Device(id); d != nil {
		switch {
		case d.Path != "":
			return d.Path
		case d.Name != "":
			return d.Name
		}
	}
	return "device " + strconv.FormatUint(id, 10)
}
