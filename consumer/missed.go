package consumer

import (
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// makeUp hands over again what the handler has missed before the committed offset.
// What the log does not hold any more is left out.
func (w *worker) makeUp(handler Handler) error {
	r := reader{
		conn: w.Consumer.conn, topic: w.topic, partition: w.partition, maxWait: w.maxWait,
		maxRecords: w.maxRecords, maxBytes: w.maxBytes, maxMessage: w.maxMessage,
		share: share{budget: w.share.budget, waits: w.share.waits},
	}
	for ; len(w.missed) > 0; w.missed = w.missed[1:] {
		span := &w.missed[0]
		for span.From < span.To {
			r.position, r.maxOffset = span.From, span.To
			err := w.again(&r, handler)
			if (err == nil && r.position == span.From) || (errors.Is(err, kafka.OffsetOutOfRange) && !is[*handleError](err)) {
				err = w.skip(&r, err)
			}
			span.From = r.position
			if err != nil {
				w.vanished = w.vanished || errors.Is(err, kafka.UnknownTopicOrPartition) || errors.Is(err, protocol.ErrNoTopic)
				return err
			}
		}
	}
	return nil
}

// again hands over what one fetch brings.
func (w *worker) again(r *reader, handler Handler) error {
	return r.fetch(w.running, func(b *Batch, _ int64) error {
		if len(b.Messages) > 0 {
			b.Claim, b.Missed = nil, true
			if err := handler.Handle(w.draining, b); err != nil {
				w.failed(opHandle, fmt.Errorf("handle %s[%d] from offset %d again: %w", b.Topic, b.Partition, b.Messages[0].Offset, err))
				return &handleError{err}
			}
		}
		w.moved(w.progress, w.position, w.position, w.written) // none of the records that wait has, but they will
		return context.Cause(w.running)
	})
}

// skip passes over what is not in the log; where all is, the error is what it was.
func (w *worker) skip(r *reader, was error) error {
	first, end, err := r.offsets(w.running)
	if err != nil {
		return err
	}
	from := r.position
	switch {
	case from < first:
		r.position = min(first, r.maxOffset)
	case from >= end:
		r.position = r.maxOffset
	default:
		return was
	}
	w.log.Warn("drift misses records that are no longer in the log", "offset", from, "log_start", first, "log_end", end, "going_on_at", r.position)
	return nil
}
