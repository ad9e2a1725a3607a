package collector

import "fmt"

type errorCollector struct{ errors *metric }

func newErrorCollector() translator {
	return &errorCollector{
		errors: counter("btrfs_device_errors_total", "Errors that the pool met on the device, as btrfs device stats counts them.", "devid", "type"),
	}
}

func (c *errorCollector) metrics() []*metric { return []*metric{c.errors} }

func (c *errorCollector) update(f *Facts, m *metrics) error {
	var err error
	for i := range f.Pool.Devices {
		d := &f.Pool.Devices[i]
		id := devid(d.ID)
		counts, known := d.Errors.Get()
		if !known {
			if !d.Missing.Value {
				err = fmt.Errorf("device %s: its error counters are unknown", id)
			}
			continue
		}
		m.send(c.errors, float64(counts.Write), id, "write")
		m.send(c.errors, float64(counts.Read), id, "read")
		m.send(c.errors, float64(counts.Flush), id, "flush")
		m.send(c.errors, float64(counts.Corruption), id, "corruption")
		m.send(c.errors, float64(counts.Generation), id, "generation")
	}
	return err
}
