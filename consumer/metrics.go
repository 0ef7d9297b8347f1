package consumer

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	messages, bytes, gap, rebalances prometheus.Counter
	lag, committed                   *prometheus.GaugeVec
	assigned, lastProgress           prometheus.Gauge
	errors                           *prometheus.CounterVec
}

// The operations that can fail, as the label `operation` names them.
const (
	opJoin   = "join"
	opClaim  = "claim"
	opFetch  = "fetch"
	opHandle = "handle"
	opCommit = "commit"
)

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		lag:          f.NewGaugeVec(prometheus.GaugeOpts{Name: "oodmon_consumer_lag_records", Help: "Offsets between the next to be read and the end of an assigned partition."}, []string{"partition"}),
		committed:    f.NewGaugeVec(prometheus.GaugeOpts{Name: "oodmon_consumer_committed_offset", Help: "The offset committed last in an assigned partition."}, []string{"partition"}),
		messages:     f.NewCounter(prometheus.CounterOpts{Name: "oodmon_consumer_messages_total", Help: "Messages handed to the line."}),
		bytes:        f.NewCounter(prometheus.CounterOpts{Name: "oodmon_consumer_bytes_total", Help: "Bytes of the keys, values and headers of those messages, and 40 for each header."}),
		gap:          f.NewCounter(prometheus.CounterOpts{Name: "oodmon_consumer_gap_records_total", Help: "Offsets that retention removed before they were read."}),
		rebalances:   f.NewCounter(prometheus.CounterOpts{Name: "oodmon_consumer_rebalances_total", Help: "Generations of the group that this instance was a member of."}),
		assigned:     f.NewGauge(prometheus.GaugeOpts{Name: "oodmon_consumer_assigned_partitions", Help: "Partitions that this instance reads."}),
		lastProgress: f.NewGauge(prometheus.GaugeOpts{Name: "oodmon_consumer_last_progress_timestamp_seconds", Help: "When an offset was committed last, or all was read."}),
		errors:       f.NewCounterVec(prometheus.CounterOpts{Name: "oodmon_consumer_errors_total", Help: "Failed attempts, by operation. Each is tried again."}, []string{"operation"}),
	}
	for _, op := range []string{opJoin, opClaim, opFetch, opHandle, opCommit} {
		m.errors.WithLabelValues(op)
	}
	return m
}

// forget removes the series of a partition that is no longer read here.
func (m *metrics) forget(partition int) {
	m.lag.DeleteLabelValues(strconv.Itoa(partition))
	m.committed.DeleteLabelValues(strconv.Itoa(partition))
}
