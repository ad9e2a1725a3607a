package alertmanager

import "github.com/prometheus/client_golang/prometheus"

// actionMetrics count what came of alerts.
type actionMetrics struct{ total *prometheus.CounterVec }

func newActionMetrics() *actionMetrics {
	return &actionMetrics{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "btrfs_governor_alert_actions_total",
		Help: "Alerts that an action was configured for, by what came of them.",
	}, []string{"action", "result"})}
}

// show has all results of an action appear, so that the first increase is seen.
func (m *actionMetrics) show(action string) {
	for _, r := range Results() {
		m.total.WithLabelValues(action, string(r))
	}
}

func (m *actionMetrics) count(action string, r Result) {
	m.total.WithLabelValues(action, string(r)).Inc()
}

// Describe implements prometheus.Collector.
func (a *Actions) Describe(ch chan<- *prometheus.Desc) { a.metrics.total.Describe(ch) }

// Collect implements prometheus.Collector.
func (a *Actions) Collect(ch chan<- prometheus.Metric) { a.metrics.total.Collect(ch) }
