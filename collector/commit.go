package collector

import "github.com/prometheus/client_golang/prometheus"

type commitCollector struct{ commits, seconds, last, longest *prometheus.Desc }

func newCommitCollector() translator {
	return &commitCollector{
		commits: desc("btrfs_pool_commits_total", "Transaction commits since the mount."),
		seconds: desc("btrfs_pool_commit_seconds_total", "Time spent in transaction commits since the mount."),
		last:    desc("btrfs_pool_last_commit_seconds", "How long the last transaction commit took."),
		longest: desc("btrfs_pool_max_commit_seconds", "How long the longest transaction commit took since the mount or a reset of commit_stats."),
	}
}

func (c *commitCollector) describe(ch chan<- *prometheus.Desc) {
	descs(ch, c.commits, c.seconds, c.last, c.longest)
}

func (c *commitCollector) update(f *Facts, ch chan<- prometheus.Metric) error {
	// Before kernel 6.1 there are none: no fault.
	s, ok := f.Pool.Commits.Get()
	if !ok {
		return nil
	}
	const millisecond = 1e-3
	m := metrics{ch, f.Pool.UUID.String()}
	m.counter(c.commits, float64(s.Count))
	m.counter(c.seconds, float64(s.TotalMS)*millisecond)
	m.gauge(c.last, float64(s.LastMS)*millisecond)
	m.gauge(c.longest, float64(s.MaxMS)*millisecond)
	return nil
}
