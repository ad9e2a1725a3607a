package collector

import "github.com/prometheus/client_golang/prometheus"

type allocationCollector struct {
	size, used, blockGroups, device *prometheus.Desc
}

func newAllocationCollector() translator {
	return &allocationCollector{
		size:        desc("btrfs_allocation_size_bytes", "Logical size of the block groups.", "block_group_type", "profile"),
		used:        desc("btrfs_allocation_used_bytes", "Logical bytes in use in the block groups.", "block_group_type", "profile"),
		blockGroups: desc("btrfs_block_groups", "Number of block groups.", "block_group_type", "profile"),
		device: desc("btrfs_device_allocated_bytes", "Bytes of the device in block groups.",
			"devid", "block_group_type", "profile"),
	}
}

func (c *allocationCollector) describe(ch chan<- *prometheus.Desc) {
	descs(ch, c.size, c.used, c.blockGroups, c.device)
}

func (c *allocationCollector) update(f *Facts, ch chan<- prometheus.Metric) error {
	m := metrics{ch, f.Pool.UUID.String()}
	for _, s := range f.Pool.Spaces {
		for _, p := range s.Profiles {
			m.gauge(c.size, float64(p.Total), s.Type.String(), p.Profile.String())
			m.gauge(c.used, float64(p.Used), s.Type.String(), p.Profile.String())
		}
	}
	if f.Layout == nil || !f.Layout.Exact {
		return errNoChunks
	}
	for _, a := range f.Layout.Allocations {
		m.gauge(c.blockGroups, float64(a.BlockGroups), a.Type.String(), a.Profile.String())
	}
	for i := range f.Layout.Devices {
		d := &f.Layout.Devices[i]
		for _, a := range d.Allocated {
			m.gauge(c.device, float64(a.Bytes), devid(d.ID), a.Type.String(), a.Profile.String())
		}
	}
	return nil
}
