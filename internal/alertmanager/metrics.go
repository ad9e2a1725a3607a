package alertmanager

import "github.com/prometheus/client_golang/prometheus"

var (
	silencesDesc = prometheus.NewDesc("btrfs_governor_silences", "Silences of this instance that are active in Alertmanager; absent while that is not known.", nil, nil)
	requestsDesc = prometheus.NewDesc("btrfs_governor_silence_requests_total", "Requests to Alertmanager for silences, by result.", []string{"result"}, nil)
)

// Describe implements prometheus.Collector.
func (s *Silencer) Describe(ch chan<- *prometheus.Desc) {
	ch <- silencesDesc
	ch <- requestsDesc
}

// Collect implements prometheus.Collector. It asks nobody.
func (s *Silencer) Collect(ch chan<- prometheus.Metric) {
	s.mu.Lock()
	active, known := s.active, s.known
	s.mu.Unlock()
	if known {
		ch <- prometheus.MustNewConstMetric(silencesDesc, prometheus.GaugeValue, float64(active))
	}
	ch <- prometheus.MustNewConstMetric(requestsDesc, prometheus.CounterValue, float64(s.successes.Load()), "success")
	ch <- prometheus.MustNewConstMetric(requestsDesc, prometheus.CounterValue, float64(s.failures.Load()), "failure")
}
