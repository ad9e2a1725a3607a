package collector

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type errorCollector struct{ errors *prometheus.Desc }

func newErrorCollector() translator {
	return &errorCollector{
		errors: desc("btrfs_device_errors_total", "Errors that the pool met on the device, as btrfs device stats counts them.", "devid", "type"),
	}
}

func (c *errorCollector) describe(ch chan<- *prometheus.Desc) { ch <- c.errors }

func (c *errorCollector) update(f *Facts, ch chan<- prometheus.Metric) error {
	m := metrics{ch, f.Pool.UUID.String()}
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
		m.counter(c.errors, float64(counts.Write), id, "write")
		m.counter(c.errors, float64(counts.Read), id, "read")
		m.counter(c.errors, float64(counts.Flush), id, "flush")
		m.counter(c.errors, float64(counts.Corruption), id, "corruption")
		m.counter(c.errors, float64(counts.Generation), id, "generation")
	}
	return err
}
