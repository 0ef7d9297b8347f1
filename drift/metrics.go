package drift

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are read off a Watch when they are asked for.
type metrics struct {
	watch                                       *Watch
	featureSum, featureLimit, featureEvidence   *prometheus.Desc
	evidence, threshold, active, alarms, onset  *prometheus.Desc
	retrain, reference, referenceInfo, snapshot *prometheus.Desc

	segmentRecords, segmentEvidence, segmentActive, segmentAlarms *prometheus.Desc
}

func newMetrics(w *Watch) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &metrics{
		watch:           w,
		featureSum:      desc("oodmon_feature_sum_total", "Sum of a feature of the score over the records that shift has bet on. up and dn add up to the number of records.", "feature"),
		featureLimit:    desc("oodmon_feature_limit_ratio", "What the mean of a feature may be without being called drift by shift.", "feature"),
		featureEvidence: desc("oodmon_drift_feature_evidence_seconds", "The part of the evidence that the bets on a feature hold.", "detector", "feature"),
		evidence:        desc("oodmon_drift_evidence_seconds", "Evidence that the stream has changed; while it has not, its mean is at most the time passed.", "detector"),
		threshold:       desc("oodmon_drift_threshold_seconds", "The evidence at which a detector raises an alarm.", "detector"),
		active:          desc("oodmon_drift_active", "1 from when the evidence reaches the threshold until it is under a hundredth of it.", "detector"),
		alarms:          desc("oodmon_drift_alarms_total", "Alarms raised.", "detector"),
		onset:           desc("oodmon_drift_onset_timestamp_seconds", "When the change of the last alarm is estimated to have begun; 0 before the first alarm.", "detector"),
		retrain:         desc("oodmon_retrain_recommended", "1 while the drift is so large and lasting that retraining is recommended."),
		reference:       desc("oodmon_reference_records", "Records of the reference that shift compares with; so far, where it is being built from live ones."),
		referenceInfo:   desc("oodmon_reference_info", "1 for the reference: the model's calibration, or live records.", "source", "version"),
		snapshot:        desc("oodmon_state_snapshot_timestamp_seconds", "When the drift state was last written; 0 where it never was."),
		segmentRecords:  desc("oodmon_segment_records_total", "Records by segment.", "segment"),
		segmentEvidence: desc("oodmon_segment_drift_evidence_seconds", "Evidence that a segment has changed.", "segment", "detector"),
		segmentActive:   desc("oodmon_segment_drift_active", "1 while an alarm of a segment lasts.", "segment", "detector"),
		segmentAlarms:   desc("oodmon_segment_drift_alarms_total", "Alarms raised for a segment.", "segment", "detector"),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		m.featureSum, m.featureLimit, m.featureEvidence, m.evidence, m.threshold, m.active, m.alarms, m.onset,
		m.retrain, m.reference, m.referenceInfo, m.snapshot,
		m.segmentRecords, m.segmentEvidence, m.segmentActive, m.segmentAlarms,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	w := m.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	e := w.stream
	for i, sum := range e.featureSums {
		counter(m.featureSum, sum, Features[i])
		limit := 1. // nothing is called drift yet
		if e.shift.block > 0 {
			limit = e.shiftLimits[i]
		}
		gauge(m.featureLimit, limit, Features[i])
	}
	for i, b := range []*betting{&e.shift, &e.change} {
		name := Detectors[i]
		gauge(m.evidence, b.evidence, name)
		gauge(m.threshold, e.threshold, name)
		gauge(m.active, number(b.active), name)
		counter(m.alarms, float64(b.alarms), name)
		gauge(m.onset, timestamp(b.onset.Time), name)
		for family, v := range e.byFamily(b) {
			if family < scoreFeatures || b == &e.shift {
				gauge(m.featureEvidence, v, name, Features[family])
			}
		}
	}
	gauge(m.retrain, number(e.recommended))
	r := e.referenceStatus()
	gauge(m.reference, float64(r.Records))
	gauge(m.referenceInfo, 1, r.Source, w.base.Model)
	gauge(m.snapshot, timestamp(w.snapshot))
	for segment, e := range w.segments {
		counter(m.segmentRecords, float64(e.records), segment)
		for i, b := range []*betting{&e.shift, &e.change} {
			gauge(m.segmentEvidence, b.evidence, segment, Detectors[i])
			gauge(m.segmentActive, number(b.active), segment, Detectors[i])
			counter(m.segmentAlarms, float64(b.alarms), segment, Detectors[i])
		}
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func timestamp(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return unix(t)
}
