package collector

type allocationCollector struct {
	size, used, blockGroups, device *metric
}

func newAllocationCollector() translator {
	return &allocationCollector{
		size:        gauge("btrfs_allocation_size_bytes", "Logical size of the block groups.", "block_group_type", "profile"),
		used:        gauge("btrfs_allocation_used_bytes", "Logical bytes in use in the block groups.", "block_group_type", "profile"),
		blockGroups: gauge("btrfs_block_groups", "Number of block groups.", "block_group_type", "profile"),
		device: gauge("btrfs_device_allocated_bytes", "Bytes of the device in block groups.",
			"devid", "block_group_type", "profile"),
	}
}

func (c *allocationCollector) metrics() []*metric {
	return []*metric{c.size, c.used, c.blockGroups, c.device}
}

func (c *allocationCollector) update(f *Facts, m *metrics) error {
	for _, s := range f.Pool.Spaces {
		for _, p := range s.Profiles {
			if p.Total == 0 {
				continue // unknown
			}
			m.send(c.size, float64(p.Total), s.Type.String(), p.Profile.String())
			m.send(c.used, float64(p.Used), s.Type.String(), p.Profile.String())
		}
	}
	if f.Layout == nil || !f.Layout.Exact {
		return errNoChunks
	}
	for _, a := range f.Layout.Allocations {
		m.send(c.blockGroups, float64(a.BlockGroups), a.Type.String(), a.Profile.String())
	}
	for i := range f.Layout.Devices {
		d := &f.Layout.Devices[i]
		for _, a := range d.Allocated {
			m.send(c.device, float64(a.Bytes), devid(d.ID), a.Type.String(), a.Profile.String())
		}
	}
	return nil
}
