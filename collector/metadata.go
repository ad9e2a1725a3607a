package collector

import "github.com/prometheus/client_golang/prometheus"

type metadataCollector struct{ devices, concentration, share *prometheus.Desc }

func newMetadataCollector() translator {
	return &metadataCollector{
		devices: desc("btrfs_metadata_devices", "Number of devices that hold metadata or system block groups."),
		concentration: desc("btrfs_metadata_concentration_ratio",
			"Share of metadata and system bytes whose copies all sit on one and the same minimal set of devices; raid1: the fullest pair."),
		share: desc("btrfs_device_metadata_share_ratio", "Share of the pool's raw metadata and system bytes that the device holds.", "devid"),
	}
}

func (c *metadataCollector) describe(ch chan<- *prometheus.Desc) {
	descs(ch, c.devices, c.concentration, c.share)
}

func (c *metadataCollector) update(f *Facts, ch chan<- prometheus.Metric) error {
	spread, ok := f.Spread.Get()
	if !ok {
		return errNoChunks
	}
	m := metrics{ch, f.Pool.UUID.String()}
	m.gauge(c.devices, float64(spread.Devices))
	m.gauge(c.concentration, spread.Concentration)
	for i, share := range spread.Share {
		m.gauge(c.share, share, devid(f.Layout.Devices[i].ID))
	}
	return nil
}
