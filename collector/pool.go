package collector

import (
	"errors"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

type poolCollector struct {
	info, devices, devicesMissing, size, used, statfsFree, readOnly *metric
	globalReserve, globalReserveUsed, exclusiveOperation            *metric
}

func newPoolCollector() translator {
	return &poolCollector{
		info: gauge("btrfs_pool_info", "What the pool is called, where it is mounted and how it keeps its data; 1.",
			"label", "mountpoint", "data_profile", "metadata_profile", "system_profile", "checksum"),
		devices:        gauge("btrfs_pool_devices", "Number of devices of the pool, missing ones too."),
		devicesMissing: gauge("btrfs_pool_devices_missing", "Number of devices that are missing."),
		size:           gauge("btrfs_pool_size_bytes", "Raw size: the sum of the sizes of the devices that are there."),
		used:           gauge("btrfs_pool_used_bytes", "File data in data block groups (in mixed block groups, metadata too)."),
		statfsFree:     gauge("btrfs_pool_statfs_free_bytes", "What df says is available, for contrast."),
		readOnly:       gauge("btrfs_pool_read_only", "Whether the filesystem is read-only."),
		globalReserve:  gauge("btrfs_pool_global_reserve_bytes", "Metadata that the kernel keeps back for what must not fail."),
		globalReserveUsed: gauge("btrfs_pool_global_reserve_used_bytes",
			"How much of the global reserve is in use; anything but 0 means that metadata is about to run out."),
		exclusiveOperation: gauge("btrfs_pool_exclusive_operation", "Whether the operation runs; only one can at a time.", "operation"),
	}
}

func (c *poolCollector) metrics() []*metric {
	return []*metric{c.info, c.devices, c.devicesMissing, c.size, c.used, c.statfsFree, c.readOnly,
		c.globalReserve, c.globalReserveUsed, c.exclusiveOperation}
}

// exclusiveOperations are the operations as sysfs names them, and as values of
// a label.
var exclusiveOperations = [...]struct{ name, label string }{
	{"balance", "balance"},
	{"balance paused", "balance_paused"},
	{"device add", "device_add"},
	{"device remove", "device_remove"},
	{"device replace", "device_replace"},
	{"resize", "resize"},
	{"swap activate", "swap_activate"},
}

func (c *poolCollector) update(f *Facts, m *metrics) error {
	p := f.Pool
	m.send(c.info, 1, labelValue(p.Label), labelValue(p.Mountpoint),
		profileLabel(p, btrfs.Data, f), profileLabel(p, btrfs.Metadata, f), profileLabel(p, btrfs.System, f), p.Checksum.Value)

	var (
		devices, missing int
		missingKnown     = true
		size             uint64
		sizeKnown        = true
	)
	for i := range p.Devices {
		d := &p.Devices[i]
		if d.ReplaceTarget {
			continue // not a member yet
		}
		devices++
		missingKnown = missingKnown && d.Missing.Known
		if d.Missing.Value {
			missing++
			continue
		}
		sizeKnown = sizeKnown && d.Size.Known
		size += d.Size.Value
	}
	if devices > 0 {
		m.send(c.devices, float64(devices))
		m.bytes(c.size, btrfs.Opt[uint64]{Value: size, Known: sizeKnown})
		if missingKnown {
			m.send(c.devicesMissing, float64(missing))
		}
	}
	var err error
	if s := dataSpace(p); s != nil {
		m.send(c.used, float64(s.Used))
	} else {
		err = errors.New("the space accounting of data is unknown")
	}
	m.bytes(c.statfsFree, p.StatfsFree)
	m.flag(c.readOnly, p.ReadOnly)
	m.bytes(c.globalReserve, p.GlobalReserve.Size)
	m.bytes(c.globalReserveUsed, p.GlobalReserve.Used)
	if now, ok := p.ExclusiveOperation.Get(); ok {
		for _, o := range exclusiveOperations {
			m.send(c.exclusiveOperation, number(o.name == now), o.label)
		}
	}
	return err
}

// dataSpace returns the accounting of the block groups that hold data.
func dataSpace(p *btrfs.Pool) *btrfs.Space {
	if s := p.Space(btrfs.Mixed); s != nil {
		return s
	}
	return p.Space(btrfs.Data)
}

// profileLabel names the profile of a type's next chunk; of a pool whose
// capacity is unknown, the only one it has.
func profileLabel(p *btrfs.Pool, t btrfs.BlockGroupType, f *Facts) string {
	if f.Report != nil {
		switch {
		case t == btrfs.Data || t == btrfs.Metadata && p.Space(btrfs.Mixed) != nil:
			return f.Report.DataProfile.String()
		case t == btrfs.Metadata && f.Report.MetadataProfile != 0:
			return f.Report.MetadataProfile.String()
		case t == btrfs.System && f.Report.SystemProfile != 0:
			return f.Report.SystemProfile.String()
		}
	}
	s := p.Space(t)
	if t != btrfs.System && s == nil {
		s = p.Space(btrfs.Mixed)
	}
	if s == nil || len(s.Profiles) != 1 {
		return ""
	}
	return s.Profiles[0].Profile.String()
}
