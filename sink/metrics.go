package sink

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	messages    *prometheus.CounterVec
	deadLetters *prometheus.CounterVec
	errors      *prometheus.CounterVec
	duration    prometheus.Histogram
}

// The topics, as the label `topic_kind` names them, and the operations.
const (
	kindScores     = "scores"
	kindDeadLetter = "dead_letter"
)

func newMetrics(reg prometheus.Registerer, reasons []string) *metrics {
	counters := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		reg.MustRegister(c)
		return c
	}
	m := &metrics{
		messages:    counters("oodmon_sink_messages_total", "Messages that all in-sync replicas acknowledged.", "topic_kind"),
		deadLetters: counters("oodmon_dead_letters_total", "Records, or rows of one, in the dead-letter topic, by reason.", "reason"),
		errors:      counters("oodmon_sink_errors_total", "Failed attempts to publish, by kind of topic.", "operation"),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "oodmon_produce_duration_seconds", Help: "Time until a produce request was acknowledged.",
			Buckets: prometheus.ExponentialBuckets(.0005, 3, 10),
		}),
	}
	reg.MustRegister(m.duration)
	for _, kind := range []string{kindScores, kindDeadLetter} {
		m.messages.WithLabelValues(kind)
		m.errors.WithLabelValues(kind)
	}
	for _, reason := range reasons {
		m.deadLetters.WithLabelValues(reason)
	}
	return m
}
