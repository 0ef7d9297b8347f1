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

// warnOf says where a model that goes into service does not fit the
// configuration: the budget of the alert rules, and thresholds by class.
func (m *Monitor) warnOf(l *live) {
	mod, p := l.model, m.cfg.AlertParameters()
	p.FalsePositiveRate = mod.Alpha
	if err := p.CheckBudget(); err != nil {
		m.log.Warn("the alert rules on the OOD rate do not fit the model: change alerts.ood_budget, or calibrate for another rate",
			"version", mod.Version, "false_positive_rate", mod.Alpha, "ood_budget", m.cfg.Alerts.OODBudget, "reason", err)
	}
	if text := l.scorer.Pooled(); text != "" {
		m.log.Warn(text, "version", mod.Version)
	}
}

// prepareDrift gathers what observeDrift will need: all that can fail comes
// before anything is published.
func (w *worker) prepareDrift(b *consumer.Batch, now *live, rec arrow.Record) error {
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
		// One that is absent has no bytes.
		if in.Segment, err = featurizer.Column[*array.String](rec, featurizer.ColSegment); err != nil {
			return err
		}
	}
	if in.ID, err = featurizer.Column[*array.String](rec, featurizer.ColID); err != nil {
		return err
	}
	if m.cfg.Drift.Projections || m.cfg.Drift.Incidents.IncludeEmbedding {
		if in.Embedding, _, err = featurizer.Embeddings(rec); err != nil {
			return err
		}
	}
	in.End, in.Missed = b.Next, b.Missed
	if m.drift.Forget(in.Partition, b.HighWatermark) {
		m.saveDriftOrLog()
	}
	return nil
}

// announceDrift comes after all that the batch led to is acknowledged, and before it is
// committed.
func (w *worker) announceDrift(b *consumer.Batch) {
	if w.m.drift != nil {
		w.m.drift.Announce(int32(b.Partition), b.From, b.Next)
	}
}

// observeDrift lets the records of a batch bet. It comes after all that the batch
// led to is acknowledged: what is not acknowledged comes again, and has not bet.
// What is not committed comes again too, and has: the Watch passes it over by its
// watermark, or has lost it with the process that died, bets and all. What is committed
// and has not bet, since the process was killed or a transaction was committed though
// its commit is an error, was announced: with a state file it comes again to bet, but is
// not counted.
func (w *worker) observeDrift(b *consumer.Batch) {
	m := w.m
	if m.drift == nil {
		return
	}
	alarms := m.drift.Observe(&w.driftBatch)
	for _, alarm := range alarms {
		m.alarm(alarm)
	}
	if len(alarms) > 0 { // after a kill it would be raised again
		m.saveDriftOrLog()
	}
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
			m.saveDriftOrLog()
		}
	}
}

func (m *Monitor) saveDriftOrLog() {
	if err := m.saveDrift(); err != nil {
		m.log.Error("drift state not saved", "error", err)
	}
}

// saveDrift writes the state: for the last time when no record comes any more.
func (m *Monitor) saveDrift() error {
	if m.drift == nil || m.cfg.Drift.StateFile == "" {
		return nil
	}
	if err := m.drift.Save(); err != nil {
		return fmt.Errorf("drift state: %w", err)
	}
	return nil
}
