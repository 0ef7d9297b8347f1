package sink

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	messages    *prometheus.CounterVec
	deadLetters *prometheus.CounterVec
	errors      *prometheus.CounterVec
	duration    prometheus.Histogram

	transactions   *prometheus.CounterVec
	commitDuration prometheus.Histogram
}

// The topics, as the label `topic_kind` names them, and the operations.
const (
	kindScores     = "scores"
	kindDeadLetter = "dead_letter"

	kindTransaction = "transaction" // a call to a coordinator

	resultCommitted = "committed"
	resultFailed    = "failed"
)

func newMetrics(reg prometheus.Registerer, reasons []string) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		messages:    f.NewCounterVec(prometheus.CounterOpts{Name: "oodmon_sink_messages_total", Help: "Messages that all in-sync replicas acknowledged."}, []string{"topic_kind"}),
		deadLetters: f.NewCounterVec(prometheus.CounterOpts{Name: "oodmon_dead_letters_total", Help: "Records, or rows of one, that dead letters stand for, by reason."}, []string{"reason"}),
		errors:      f.NewCounterVec(prometheus.CounterOpts{Name: "oodmon_sink_errors_total", Help: "Failed attempts to publish, by kind of topic."}, []string{"operation"}),
		duration: f.NewHistogram(prometheus.HistogramOpts{
			Name: "oodmon_produce_duration_seconds", Help: "Time until a produce request was acknowledged.",
			Buckets: prometheus.ExponentialBuckets(.0005, 3, 10),
		}),
		transactions: f.NewCounterVec(prometheus.CounterOpts{Name: "oodmon_transactions_total", Help: "Transactions that ended, with output.delivery exactly-once. What failed comes again."}, []string{"result"}),
		commitDuration: f.NewHistogram(prometheus.HistogramOpts{
			Name: "oodmon_transaction_commit_duration_seconds", Help: "Time from the last acknowledgement in a transaction to its end.",
			Buckets: prometheus.ExponentialBuckets(.0005, 3, 10),
		}),
	}
	m.errors.WithLabelValues(kindTransaction)
	for _, result := range []string{resultCommitted, resultFailed} {
		m.transactions.WithLabelValues(result)
	}
	for _, kind := range []string{kindScores, kindDeadLetter} {
		m.messages.WithLabelValues(kind)
		m.errors.WithLabelValues(kind)
	}
	for _, reason := range reasons {
		m.deadLetters.WithLabelValues(reason)
	}
	return m
}

// count counts the records that a letter stands for.
func (m *metrics) count(l *Letter) {
	m.deadLetters.WithLabelValues(l.Reason).Add(float64(1 + l.More))
}
