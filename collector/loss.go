package collector

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/btrfs-governor/btrfs-governor/btrfs"
)

type lossCollector struct{ tolerated, worstPair *prometheus.Desc }

func newLossCollector() translator {
	return &lossCollector{
		tolerated: desc("btrfs_pool_device_failures_tolerated",
			"Devices that can fail, beyond those already missing, without the loss of a byte: the least over all block groups."),
		worstPair: desc("btrfs_pool_worst_pair_loss_bytes",
			"Size of the block groups, or parts of them, lost with the two devices whose loss together costs most.", "block_group_type"),
	}
}

func (c *lossCollector) describe(ch chan<- *prometheus.Desc) { descs(ch, c.tolerated, c.worstPair) }

func (c *lossCollector) update(f *Facts, ch chan<- prometheus.Metric) error {
	worst, ok := f.WorstPair.Get()
	if !ok {
		return errNoChunks
	}
	m := metrics{ch, f.Pool.UUID.String()}
	if n, ok := f.Layout.FailuresTolerated(); ok {
		m.gauge(c.tolerated, float64(n))
	}
	for _, t := range btrfs.BlockGroupTypes() {
		if f.Pool.Space(t) != nil {
			m.gauge(c.worstPair, float64(worst.Of(t)), t.String())
		}
	}
	return nil
}
