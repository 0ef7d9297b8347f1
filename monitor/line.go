package monitor

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/oodmon/oodmon/consumer"
	"github.com/oodmon/oodmon/drift"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/oodmon/oodmon/scorer"
	"github.com/oodmon/oodmon/sink"
	"github.com/prometheus/client_golang/prometheus"
)

// A worker is the line of one partition. It shares nothing with the others.
type worker struct {
	m       *Monitor
	builder *featurizer.Builder
	scoring scorer.Workspace
	scores  scorer.Scores
	results *scorer.RecordBuilder
	letters []sink.Letter
	counts  counts

	driftBatch drift.Batch
}

func (m *Monitor) newHandler() consumer.Handler { return m.newWorker() }

func (m *Monitor) newWorker() *worker {
	dim := m.live.Load().model.Dim() // every model that is taken in has it
	builder, err := featurizer.NewBuilder(featurizer.Config{
		Dim: dim, Codec: m.cfg.Input.Codec, MaxMessageBytes: m.cfg.Input.MaxMessageBytes,
		IDHeader: m.cfg.Input.IDHeader, SegmentHeader: m.cfg.Input.SegmentHeader, SegmentFromKey: m.cfg.Input.SegmentFromKey,
	})
	if err != nil {
		panic(err) // the configuration was validated
	}
	embedding := 0
	if m.cfg.Output.IncludeEmbedding {
		embedding = dim
	}
	return &worker{m: m, builder: builder, results: scorer.NewRecordBuilder(embedding)}
}

// Handle takes one batch of a partition down the whole line, and returns nil
// only when every record of it is in the scores topic, held back by
// output.when, or in the dead-letter topic: then the consumer may commit. With
// exactly-once delivery all that is one transaction, with the commit.
func (w *worker) Handle(ctx context.Context, b *consumer.Batch) error {
	m := w.m
	size := 0
	for i := range b.Messages {
		size += len(b.Messages[i].Value)
	}
	if size > 2*m.cfg.Input.Batch.MaxBytes {
		// Of large messages a few at a time are in hand: what they take is not kept.
		w = m.newWorker()
	}
	defer w.forget()
	now := m.live.Load() // one model for the whole batch
	first := b.Messages[0].Offset

	start := time.Now()
	for i := range b.Messages {
		msg := &b.Messages[i]
		w.builder.Append(featurizer.Message{
			Key: msg.Key, Value: msg.Value, Size: int(msg.Oversized), Err: msg.Err, Headers: msg,
			Time: msg.Time, Partition: int32(b.Partition), Offset: msg.Offset,
		})
	}
	rec, rejects := w.builder.Take()
	defer rec.Release()
	start = m.metrics.stage(stageDecode, start)

	if err := now.scorer.Score(&w.scoring, rec, &w.scores); err != nil {
		return fmt.Errorf("%s[%d] from offset %d: %w", b.Topic, b.Partition, first, err)
	}
	invalid, err := withoutDirection(rec, &w.scores)
	if err != nil {
		return fmt.Errorf("%s[%d] from offset %d: %w", b.Topic, b.Partition, first, err)
	}
	rejects = append(rejects, invalid...)
	if err := w.prepareDrift(b, now, rec); err != nil {
		return fmt.Errorf("%s[%d] from offset %d: %w", b.Topic, b.Partition, first, err)
	}
	if b.Missed { // all the rest was done
		w.observeDrift(b)
		return nil
	}
	results, err := w.results.Build(rec, &w.scores, now.model, b.Topic, m.cfg.Output.When == "ood")
	if err != nil {
		return fmt.Errorf("%s[%d] from offset %d: %w", b.Topic, b.Partition, first, err)
	}
	defer results.Release()
	start = m.metrics.stage(stageScore, start)

	// Dead letters go first: what refuses them for good has not all scores sent again.
	deadLettered := int64(0)
	if len(rejects) > 0 {
		deadLettered = w.address(b, rejects)
		if err := m.sink.DeadLetter(ctx, b.Partition, w.letters); err != nil {
			return fmt.Errorf("dead-letter %d records of %s[%d] from offset %d: %w", deadLettered, b.Topic, b.Partition, first, err)
		}
		start = m.metrics.stage(stageDeadLetter, start)
	}
	if err := m.sink.Write(ctx, b.Partition, results); err != nil {
		return fmt.Errorf("publish the scores of %s[%d] from offset %d: %w", b.Topic, b.Partition, first, err)
	}
	start = m.metrics.stage(stagePublish, start)
	w.announceDrift(b)
	if c := b.Claim; c != nil { // exactly once
		if err := m.sink.Commit(ctx, sink.Offset{
			Topic: b.Topic, Partition: b.Partition, Offset: c.Offset, Group: c.Group, Generation: c.Generation, Member: c.Member,
		}); err != nil {
			return err
		}
		start = m.metrics.stage(stageCommit, start)
	}
	w.observeDrift(b)
	m.metrics.stage(stageDrift, start)
	w.counts.take(&w.scores, len(now.predicted))
	m.metrics.observe(now, &w.scores, &w.counts)
	m.tally.add(time.Now(), now, &w.scores, &w.counts, deadLettered)
	return nil
}

// forget holds on to no message of the batch: they may lie in a large response.
func (w *worker) forget() {
	w.builder.Reset()
	clear(w.letters)
	w.letters = w.letters[:0]
	w.driftBatch.Embedding = nil
}

// withoutDirection returns a reject for each row that has no score.
func withoutDirection(rec arrow.Record, scores *scorer.Scores) ([]featurizer.Reject, error) {
	var all []featurizer.Reject
	for i, class := range scores.Class {
		if class >= 0 {
			continue
		}
		offset, err := featurizer.Column[*array.Int64](rec, featurizer.ColOffset)
		if err != nil {
			return nil, err
		}
		row, err := featurizer.Column[*array.Int32](rec, featurizer.ColRow)
		if err != nil {
			return nil, err
		}
		x, dim, err := featurizer.Embeddings(rec)
		if err != nil {
			return nil, err
		}
		all = append(all, featurizer.Reject{
			Offset: offset.Value(i), Row: row.Value(i), Reason: featurizer.NoDirection, Err: whyNoDirection(x[i*dim : (i+1)*dim]),
		})
	}
	return all, nil
}

func whyNoDirection(x []float32) error {
	for i, v := range x {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return fmt.Errorf("value %d of the embedding is %g, expected finite numbers", i, v)
		}
	}
	return fmt.Errorf("the embedding's norm is under 1e-12: it has no direction")
}

// address makes the letters of the rejects, with the messages as they came. The
// rejects of a message are put next to each other: the sink writes its bytes
// once. It returns how many records they stand for.
func (w *worker) address(b *consumer.Batch, rejects []featurizer.Reject) (records int64) {
	slices.SortFunc(rejects, func(a, b featurizer.Reject) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Row, b.Row))
	})
	at := 0
	for _, r := range rejects {
		for b.Messages[at].Offset != r.Offset {
			at++
		}
		msg := &b.Messages[at]
		w.letters = append(w.letters, sink.Letter{
			Topic: b.Topic, Partition: int32(b.Partition), Offset: r.Offset, Row: r.Row, More: msg.More, Time: msg.Time,
			Key: msg.Key, Value: msg.Value, Headers: msg.Headers, Reason: string(r.Reason), Err: r.Err,
		})
		records += 1 + msg.More
	}
	return records
}

// stage observes a stage that began at start, and returns the time now.
func (m *metrics) stage(name string, start time.Time) time.Time {
	now := time.Now()
	m.batchDuration.WithLabelValues(name).Observe(now.Sub(start).Seconds())
	return now
}

// counts are what one batch adds to the counters.
type counts struct {
	records, ood, invalid int   // records are those that have a score
	classes               []int // how often each was predicted
}

func (c *counts) take(scores *scorer.Scores, classes int) {
	*c = counts{classes: slices.Grow(c.classes[:0], classes)[:classes]}
	clear(c.classes)
	for i, class := range scores.Class {
		if class < 0 {
			c.invalid++
			continue
		}
		c.classes[class]++
		if scores.OOD[i] {
			c.ood++
		}
	}
	c.records = len(scores.Class) - c.invalid
}

// observe counts the scores of a batch that is acknowledged.
func (m *metrics) observe(l *live, scores *scorer.Scores, c *counts) {
	m.score.observe(scores.Score)
	m.pValue.observe(scores.PValue)
	for class, n := range c.classes {
		if n > 0 {
			l.predicted[class].Add(float64(n))
		}
	}
	m.records.Add(float64(c.records))
	m.ood.Add(float64(c.ood))
	m.invalid.Add(float64(c.invalid))
	if c.records > 0 {
		m.lastRecord.SetToCurrentTime()
	}
}

func newSink(cfg *Config, conn *kafkaconn.Client, reg prometheus.Registerer, log *slog.Logger) (*sink.Producer, error) {
	reasons := make([]string, len(featurizer.Reasons))
	for i, r := range featurizer.Reasons {
		reasons[i] = string(r)
	}
	transactionalID := ""
	if cfg.Output.Delivery == exactlyOnce {
		transactionalID = "oodmon." + cfg.Input.Group + "/" + cfg.Input.Topic // no topic has a slash
	}
	return sink.New(sink.Config{
		Topic: cfg.Output.Topic, DeadLetterTopic: cfg.DeadLetter.Topic, Format: cfg.Output.Format, Reasons: reasons, TransactionalID: transactionalID,
	}, conn, reg, log)
}

func newConsumer(cfg *Config, conn *kafkaconn.Client, producer *sink.Producer, watch *drift.Watch, newHandler func() consumer.Handler, reg prometheus.Registerer, log *slog.Logger) (*consumer.Consumer, error) {
	var fence func(context.Context, int) error
	var release func(context.Context, int, string) error
	if cfg.Output.Delivery == exactlyOnce {
		fence, release = producer.Fence, producer.Release
	}
	var missed func(int, int64) []consumer.Span
	if watch != nil {
		missed = func(partition int, committed int64) (all []consumer.Span) {
			for _, s := range watch.Missed(int32(partition), committed) {
				all = append(all, consumer.Span(s))
			}
			return all
		}
	}
	return consumer.New(consumer.Config{
		Fence: fence, Release: release, Missed: missed,
		Topic: cfg.Input.Topic, Group: cfg.Input.Group, Start: cfg.Input.Start, OutOfRange: cfg.Input.OutOfRange,
		MaxRecords: cfg.Input.Batch.MaxRecords, MaxBytes: cfg.Input.Batch.MaxBytes, MaxWait: cfg.Input.Batch.MaxWait,
		MaxMessageBytes: cfg.Input.MaxMessageBytes, SessionTimeout: cfg.Input.SessionTimeout, DrainTimeout: cfg.Shutdown.DrainTimeout,
	}, conn, newHandler, reg, log)
}
