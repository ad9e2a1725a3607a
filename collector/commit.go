package collector

type commitCollector struct{ commits, seconds, last, longest *metric }

func newCommitCollector() translator {
	return &commitCollector{
		commits: counter("btrfs_pool_commits_total", "Transaction commits since the mount."),
		seconds: counter("btrfs_pool_commit_seconds_total", "Time spent in transaction commits since the mount."),
		last:    gauge("btrfs_pool_last_commit_seconds", "How long the last transaction commit took."),
		longest: gauge("btrfs_pool_max_commit_seconds", "How long the longest transaction commit took since the mount or a reset of commit_stats."),
	}
}

func (c *commitCollector) metrics() []*metric {
	return []*metric{c.commits, c.seconds, c.last, c.longest}
}

func (c *commitCollector) update(f *Facts, m *metrics) error {
	// Before kernel 6.1 there are none: no fault.
	s, ok := f.Pool.Commits.Get()
	if !ok {
		return nil
	}
	const millisecond = 1e-3
	m.send(c.commits, float64(s.Count))
	m.send(c.seconds, float64(s.TotalMS)*millisecond)
	m.send(c.last, float64(s.LastMS)*millisecond)
	m.send(c.longest, float64(s.MaxMS)*millisecond)
	return nil
}
