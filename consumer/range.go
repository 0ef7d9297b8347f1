package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/segmentio/kafka-go"
)

// A RangeConfig says which part of a topic ReadRange reads.
type RangeConfig struct {
	Topic string
	// From is the time of the first record; the zero time means the start of the log.
	From time.Time
	// MaxRecords, MaxBytes and MaxMessageBytes bound the batches, as in Config.
	MaxRecords      int
	MaxBytes        int
	MaxMessageBytes int
	// Progress, where it isn't nil, is called after each batch with the number
	// of offsets passed and the number of offsets in the range.
	Progress func(read, total int64)
}

// ReadRange reads every partition of a topic, one after the other by number, from
// cfg.From up to the ends that they had when it was called, without a consumer
// group. Records that retention removes meanwhile are left out. Passing failures
// are tried again; an error of fn ends it and is returned.
func ReadRange(ctx context.Context, conn *kafkaconn.Client, cfg RangeConfig, fn func(*Batch) error) error {
	meta, err := kafkaconn.Retry(ctx, func() (*kafka.MetadataResponse, error) {
		return conn.Kafka.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{cfg.Topic}})
	})
	if err != nil {
		return fmt.Errorf("read metadata of %s: %w", cfg.Topic, err)
	}
	if len(meta.Topics) != 1 || len(meta.Topics[0].Partitions) == 0 {
		return fmt.Errorf("read metadata of %s: %w", cfg.Topic, kafka.UnknownTopicOrPartition)
	}
	var readers []*reader
	memory := processBudget()
	total := int64(0)
	partitions := meta.Topics[0].Partitions // in no order: the same records are to come in the same one
	slices.SortFunc(partitions, func(a, b kafka.Partition) int { return cmp.Compare(a.ID, b.ID) })
	for _, p := range partitions {
		r := &reader{
			conn: conn, topic: cfg.Topic, partition: p.ID, maxWait: 500 * time.Millisecond,
			maxRecords: cfg.MaxRecords, maxBytes: cfg.MaxBytes, maxMessage: cfg.MaxMessageBytes,
			share: share{budget: memory},
		}
		span, err := kafkaconn.Retry(ctx, func() ([2]int64, error) { return r.span(ctx, cfg.From) })
		if err != nil {
			return err
		}
		if r.position, r.maxOffset = span[0], span[1]; r.position < r.maxOffset {
			readers = append(readers, r)
			total += r.maxOffset - r.position
		}
	}
	passed := int64(0)
	for _, r := range readers {
		start := r.position
		for r.position < r.maxOffset {
			var ours error
			_, err := kafkaconn.Retry(ctx, func() (struct{}, error) {
				err := r.fetch(ctx, func(b *Batch) error {
					if len(b.Messages) > 0 {
						if ours = fn(b); ours != nil {
							return ours
						}
					}
					if cfg.Progress != nil {
						cfg.Progress(passed+b.Next-start, total)
					}
					return nil
				})
				switch {
				case ours != nil:
					err = nil // not to be tried again
				case r.position >= r.maxOffset:
					err = nil // of what follows the range
				case errors.Is(err, kafka.OffsetOutOfRange):
					if first, failed := r.offsetOf(ctx, kafka.FirstOffset); failed != nil {
						err = failed
					} else if first > r.position { // retention has passed it meanwhile
						r.position, err = first, nil
					}
				}
				return struct{}{}, err
			})
			if err = errors.Join(ours, err); err != nil {
				return err
			}
		}
		passed += r.maxOffset - start
	}
	return nil
}

// span returns the offsets of the range: the first at or after from, and the
// end of the log.
func (r *reader) span(ctx context.Context, from time.Time) (span [2]int64, err error) {
	first, end, err := r.offsets(ctx)
	if err != nil || from.IsZero() {
		return [2]int64{first, end}, err
	}
	at, err := r.offsetOf(ctx, from.UnixMilli())
	if err != nil {
		return span, err
	}
	if at < 0 { // no record is as young
		at = end
	}
	return [2]int64{max(first, at), end}, nil
}
