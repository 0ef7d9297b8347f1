package consumer

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
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
	opFetch  = "fetch"
	opHandle = "handle"
	opCommit = "commit"
)

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		reg.MustRegister(g)
		return g
	}
	byPartition := func(name, help string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"partition"})
		reg.MustRegister(g)
		return g
	}
	m := &metrics{
		lag:          byPartition("oodmon_consumer_lag_records", "Offsets between the next to be read and the end of an assigned partition."),
		committed:    byPartition("oodmon_consumer_committed_offset", "The offset committed last in an assigned partition."),
		messages:     counter("oodmon_consumer_messages_total", "Messages handed to the line."),
		bytes:        counter("oodmon_consumer_bytes_total", "Bytes of the keys and values of those messages."),
		gap:          counter("oodmon_consumer_gap_records_total", "Offsets that retention removed before they were read."),
		rebalances:   counter("oodmon_consumer_rebalances_total", "Generations of the group that this instance was a member of."),
		assigned:     gauge("oodmon_consumer_assigned_partitions", "Partitions that this instance reads."),
		lastProgress: gauge("oodmon_consumer_last_progress_timestamp_seconds", "When an offset was committed last, or all was read."),
		errors:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "oodmon_consumer_errors_total", Help: "Failed attempts, by operation. Each is tried again."}, []string{"operation"}),
	}
	reg.MustRegister(m.errors)
	for _, op := range []string{opJoin, opFetch, opHandle, opCommit} {
		m.errors.WithLabelValues(op)
	}
	return m
}

// forget removes the series of a partition that is no longer read here.
func (m *metrics) forget(partition int) {
	m.lag.DeleteLabelValues(strconv.Itoa(partition))
	m.committed.DeleteLabelValues(strconv.Itoa(partition))
}
