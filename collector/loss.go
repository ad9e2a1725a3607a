package collector

import "github.com/btrfs-governor/btrfs-governor/btrfs"

type lossCollector struct{ tolerated, worstPair, lost *metric }

func newLossCollector() translator {
	return &lossCollector{
		tolerated: gauge("btrfs_pool_device_failures_tolerated",
			"Devices that can fail, beyond those already missing, without the loss of a byte: the least over all block groups."),
		worstPair: gauge("btrfs_pool_worst_pair_loss_bytes",
			"Size of the block groups, or parts of them, lost with those two devices whose loss together costs most of the type.", "block_group_type"),
		lost: gauge("btrfs_pool_lost_bytes",
			"Size of the block groups, or parts of them, that have no copy left on a device that is there.", "block_group_type"),
	}
}

func (c *lossCollector) metrics() []*metric { return []*metric{c.tolerated, c.worstPair, c.lost} }

func (c *lossCollector) update(f *Facts, m *metrics) error {
	worst, ok := f.WorstPair.Get()
	if !ok {
		return errNoChunks
	}
	if n, ok := f.Layout.FailuresTolerated(); ok {
		m.send(c.tolerated, float64(n))
	}
	lost := f.Layout.Lost()
	for _, t := range btrfs.BlockGroupTypes() {
		if f.Pool.Space(t) != nil {
			m.send(c.worstPair, float64(worst.Of(t)), t.String())
			m.send(c.lost, float64(lost.Of(t)), t.String())
		}
	}
	return nil
}
