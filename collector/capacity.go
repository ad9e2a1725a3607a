package collector

import (
	"errors"
	"strconv"
)

type capacityCollector struct {
	usable, free, freeExpected, freeExact, freeAfterBalance *metric
	stranded, metadataFree, deviceStranded                  *metric
}

func newCapacityCollector() translator {
	return &capacityCollector{
		usable: gauge("btrfs_pool_usable_bytes",
			"File data that the devices hold at most, laid out from empty beside the metadata there is."),
		free: gauge("btrfs_pool_free_bytes",
			"File data that can still be written while metadata needs no new chunk, by simulation of the chunk allocator."),
		freeExpected: gauge("btrfs_pool_free_expected_bytes",
			"File data that can still be written if metadata grows along with it in the proportion it has now."),
		freeExact: gauge("btrfs_pool_free_exact",
			"Whether the simulation knows where the chunks lie (needs CAP_SYS_ADMIN); 0: free space is taken to be in one piece on each device."),
		freeAfterBalance: gauge("btrfs_pool_free_after_balance_bytes", "File data that could still be written after a full balance."),
		stranded: gauge("btrfs_pool_stranded_bytes",
			"Raw space that no new data chunk reaches: by mismatch of the devices' sizes, or by imbalance, which a balance gives back.", "reason"),
		metadataFree: gauge("btrfs_pool_metadata_free_bytes",
			"Metadata that can still be written, were all that is unallocated given to it, less the global reserve."),
		deviceStranded: gauge("btrfs_device_stranded_bytes", "Raw space of the device that no new data chunk reaches.", "devid"),
	}
}

func (c *capacityCollector) metrics() []*metric {
	return []*metric{c.usable, c.free, c.freeExpected, c.freeExact, c.freeAfterBalance, c.stranded, c.metadataFree, c.deviceStranded}
}

func (c *capacityCollector) update(f *Facts, m *metrics) error {
	r := f.Report
	if r == nil {
		return errors.New("the sizes of the devices are unknown")
	}
	m.send(c.usable, float64(r.Usable))
	m.send(c.free, float64(r.Free))
	m.send(c.freeExpected, float64(r.FreeExpected))
	m.send(c.freeExact, number(r.Exact))
	m.send(c.freeAfterBalance, float64(r.FreeAfterBalance))
	m.send(c.stranded, float64(r.StrandedMismatch), "mismatch")
	m.send(c.stranded, float64(r.StrandedImbalance), "imbalance")
	m.send(c.metadataFree, float64(r.MetadataFree))
	for i := range f.Layout.Devices {
		if d := &f.Layout.Devices[i]; d.Usable {
			m.send(c.deviceStranded, float64(r.Stranded[i]), devid(d.ID))
		}
	}
	return nil
}

func devid(id uint64) string { return strconv.FormatUint(id, 10) }
