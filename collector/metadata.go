package collector

type metadataCollector struct{ devices, concentration, share *metric }

func newMetadataCollector() translator {
	return &metadataCollector{
		devices: gauge("btrfs_metadata_devices", "Number of devices that hold metadata or system block groups."),
		concentration: gauge("btrfs_metadata_concentration_ratio",
			"Share of metadata and system bytes whose copies all sit on one and the same minimal set of devices; raid1: the fullest pair."),
		share: gauge("btrfs_device_metadata_share_ratio", "Share of the pool's raw metadata and system bytes that the device holds.", "devid"),
	}
}

func (c *metadataCollector) metrics() []*metric {
	return []*metric{c.devices, c.concentration, c.share}
}

func (c *metadataCollector) update(f *Facts, m *metrics) error {
	spread, ok := f.Spread.Get()
	if !ok {
		return errNoChunks
	}
	m.send(c.devices, float64(spread.Devices))
	m.send(c.concentration, spread.Concentration)
	for i, share := range spread.Share {
		m.send(c.share, share, devid(f.Layout.Devices[i].ID))
	}
	return nil
}
