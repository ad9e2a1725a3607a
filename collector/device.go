package collector

import "fmt"

type deviceCollector struct {
	info, size, unallocated, missing, writeable *metric
}

func newDeviceCollector() translator {
	return &deviceCollector{
		info: gauge("btrfs_device_info", "What the device is called and which disk it is; 1.",
			"devid", "device", "path", "device_uuid", "model", "serial"),
		size:        gauge("btrfs_device_size_bytes", "Bytes of the device that the pool may use.", "devid"),
		unallocated: gauge("btrfs_device_unallocated_bytes", "Bytes of the device in no block group.", "devid"),
		missing:     gauge("btrfs_device_missing", "Whether the device is missing.", "devid"),
		writeable:   gauge("btrfs_device_writeable", "Whether the device can be written to; a seed device cannot.", "devid"),
	}
}

func (c *deviceCollector) metrics() []*metric {
	return []*metric{c.info, c.size, c.unallocated, c.missing, c.writeable}
}

func (c *deviceCollector) update(f *Facts, m *metrics) error {
	var err error
	for i := range f.Pool.Devices {
		d := &f.Pool.Devices[i]
		id := devid(d.ID)
		uuid := ""
		if !d.UUID.IsZero() {
			uuid = d.UUID.String()
		}
		m.send(c.info, 1, id, labelValue(d.Name), labelValue(d.Path), uuid, labelValue(d.Model), labelValue(d.Serial))
		m.bytes(c.size, d.Size, id)
		if d.Size.Known && d.Used.Known && !d.Missing.Value {
			m.send(c.unallocated, float64(d.Size.Value-min(d.Size.Value, d.Used.Value)), id)
		}
		m.flag(c.missing, d.Missing, id)
		m.flag(c.writeable, d.Writeable, id)
		if !d.Size.Known {
			err = fmt.Errorf("device %s: its size is unknown", id)
		}
	}
	return err
}
