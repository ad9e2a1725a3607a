package notify

import (
	"github.com/prometheus/client_golang/prometheus"
)

// The metrics of notifications.
var (
	notificationsDesc = desc("btrfs_governor_notifications_total",
		"Notifications by what became of them: sent, refused by the service, dropped with their receiver, a duplicate of one before, rejected because too many waited, or, with an empty receiver, unknown because there is no such receiver.", "result")
	failuresDesc = desc("btrfs_governor_notification_failures_total", "Attempts to send a notification that failed and are made again.")
	queuedDesc   = desc("btrfs_governor_notifications_queued", "Notifications that wait to be sent.")
	oldestDesc   = desc("btrfs_governor_notifications_oldest_queued_seconds", "How long the notification that waits longest has waited; absent where none does.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, append([]string{"receiver"}, labels...), nil)
}

// Describe implements prometheus.Collector.
func (b *Bridge) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{notificationsDesc, failuresDesc, queuedDesc, oldestDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. It waits for no disk and no service.
func (b *Bridge) Collect(ch chan<- prometheus.Metric) {
	now := b.clock.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	notifications := func(name string, result Result, count uint64) {
		ch <- prometheus.MustNewConstMetric(notificationsDesc, prometheus.CounterValue, float64(count), name, string(result))
	}
	notifications("", unknown, b.unknown)
	for name, count := range b.dropped {
		if l := b.lanes[name]; l == nil || l.service == nil {
			notifications(name, Dropped, count)
		}
	}
	for name, l := range b.lanes {
		if l.service == nil {
			continue
		}
		notifications(name, Dropped, b.dropped[name])
		for _, result := range []Result{Sent, Refused, Duplicate, rejected} {
			notifications(name, result, l.counts[result])
		}
		ch <- prometheus.MustNewConstMetric(failuresDesc, prometheus.CounterValue, float64(l.failures), name)
		ch <- prometheus.MustNewConstMetric(queuedDesc, prometheus.GaugeValue, float64(len(l.queue)), name)
		if len(l.queue) > 0 {
			ch <- prometheus.MustNewConstMetric(oldestDesc, prometheus.GaugeValue, max(0, now.Sub(l.queue[0].accepted).Seconds()), name)
		}
	}
}
