package monitor

import (
	"context"
	"fmt"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/oodmon/oodmon/consumer"
	"github.com/oodmon/oodmon/drift"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/model"
)

// baselineOf returns what drift compares the scores of a model with.
func baselineOf(m *model.Model) drift.Baseline {
	return drift.Baseline{Model: m.Version, Scores: m.Calibration.Scores, Class: m.Calibration.Class, Classes: m.Classes}
}

// warnOfBudget says when the alert rules' budget does not fit the model.
func (m *Monitor) warnOfBudget(mod *model.Model) {
	if mod.Alpha >= m.cfg.Alerts.OODBudget {
		m.log.Warn("the model's false-positive rate uses up the OOD-rate budget of the alert rules: raise alerts.ood_budget, or calibrate for a lower rate",
			"version", mod.Version, "false_positive_rate", mod.Alpha, "budget", m.cfg.Alerts.OODBudget)
	}
}

// observeDrift lets the records of an acknowledged batch bet. It comes after
// the acknowledgement and before the commit: what is not acknowledged comes
// again and has not bet; what is not committed comes again too, and the Watch
// passes it over by its watermark.
func (w *worker) observeDrift(b *consumer.Batch, now *live, rec arrow.Record) error {
	m := w.m
	if m.drift == nil {
		return nil
	}
	offset, err := featurizer.Column[*array.Int64](rec, featurizer.ColOffset)
	if err != nil {
		return err
	}
	row, err := featurizer.Column[*array.Int32](rec, featurizer.ColRow)
	if err != nil {
		return err
	}
	stamp, err := featurizer.Column[*array.Timestamp](rec, featurizer.ColTimestamp)
	if err != nil {
		return err
	}
	in := &w.driftBatch
	in.Model, in.Partition = now.model.Version, int32(b.Partition)
	in.Offset, in.Row = offset.Int64Values(), row.Int32Values()
	in.Score, in.Class, in.OOD = w.scores.Score, w.scores.Class, w.scores.OOD
	in.Time = in.Time[:0]
	for _, t := range stamp.TimestampValues() {
		in.Time = append(in.Time, int64(t))
	}
	if m.cfg.Drift.MaxSegments > 0 {
		segment, err := featurizer.Column[*array.String](rec, featurizer.ColSegment)
		if err != nil {
			return err
		}
		in.Segment = in.Segment[:0]
		for i := range segment.Len() {
			name := ""
			if segment.IsValid(i) {
				name = segment.Value(i)
			}
			in.Segment = append(in.Segment, name)
		}
	}
	if m.cfg.Drift.Projections {
		if in.Embedding, _, err = featurizer.Embeddings(rec); err != nil {
			return err
		}
	}
	m.drift.Forget(in.Partition, b.HighWatermark)
	for _, alarm := range m.drift.Observe(in) {
		m.alarm(alarm)
	}
	return nil
}

// alarm tells of an alarm that has just begun.
func (m *Monitor) alarm(a drift.Alarm) {
	top := ""
	if len(a.Features) > 0 {
		top = a.Features[0].Feature
	}
	m.log.Warn("drift", "detector", a.Detector, "segment", a.Segment, "evidence_seconds", a.Evidence, "threshold_seconds", a.Threshold,
		"onset", a.Onset.Time.UTC().Format(time.RFC3339), "partition", a.Onset.Partition, "offset", a.Onset.Offset, "top_feature", top)
}

// keepDrift writes the state of drift from time to time until ctx is done.
func (m *Monitor) keepDrift(ctx context.Context) {
	if m.drift == nil || m.cfg.Drift.StateFile == "" {
		return
	}
	tick := time.NewTicker(m.cfg.Drift.SnapshotInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := m.drift.Save(); err != nil {
				m.log.Error("drift state not saved", "error", err)
			}
		}
	}
}

// saveDrift writes the state for the last time, when no record comes any more.
func (m *Monitor) saveDrift() error {
	if m.drift == nil || m.cfg.Drift.StateFile == "" {
		return nil
	}
	if err := m.drift.Save(); err != nil {
		return fmt.Errorf("drift state not saved: %w", err)
	}
	return nil
}
