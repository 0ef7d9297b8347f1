package alerts

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics count what evaluating and posting alerts in this process comes to.
type Metrics struct {
	failures      prometheus.Counter
	notifications *prometheus.CounterVec
}

// NewMetrics registers the series.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	m := &Metrics{
		failures:      f.NewCounter(prometheus.CounterOpts{Name: "oodmon_alert_evaluation_failures_total", Help: "Evaluations of the alerting rules in this process that failed."}),
		notifications: f.NewCounterVec(prometheus.CounterOpts{Name: "oodmon_alert_notifications_total", Help: "Posts to alerts.evaluate.webhook_url, by result."}, []string{"result"}),
	}
	for _, result := range []string{"success", "failure"} {
		m.notifications.WithLabelValues(result)
	}
	return m
}
