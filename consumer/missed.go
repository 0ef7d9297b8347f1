package consumer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// missedTime is how long it is tried to read what was missed where the broker answers
// otherwise: it must not hold up what waits.
const missedTime = 30 * time.Second

func (w *worker) askForMissed() {
	w.asked, w.missed, w.stuck = true, w.cfg.Missed(w.partition, w.position), time.Time{}
	if n := len(w.missed); n > 0 {
		w.log.Info("reading again what was committed and has not bet, as where a process was killed", "offset", w.missed[0].From, "to", w.missed[n-1].To)
	}
}

// makeUp hands over again what the handler has missed before the committed offset.
// What the log does not hold any more is left out, and what cannot be read.
func (w *worker) makeUp(handler Handler) error {
	w.drop() // a worker holds two responses, not three
	r := reader{
		conn: w.Consumer.conn, topic: w.topic, partition: w.partition, maxWait: w.maxWait,
		maxRecords: w.maxRecords, maxBytes: w.maxBytes, maxMessage: w.maxMessage,
		share: share{budget: w.share.budget, waits: w.share.waits},
	}
	for len(w.missed) > 0 {
		from := w.missed[0].From
		r.position, r.maxOffset = from, w.missed[len(w.missed)-1].To
		err := r.fetch(w.running, func(b *Batch) error { return w.again(&r, handler, b) })
		if len(w.missed) == 0 || w.running.Err() != nil {
			return context.Cause(w.running) // what comes behind is not asked for
		}
		if w.missed[0].From > from {
			w.stuck = time.Time{}
		}
		if (err == nil && r.position == from) || (errors.Is(err, kafka.OffsetOutOfRange) && !is[*handleError](err)) {
			err = w.skip(&r, err)
		}
		if err != nil {
			return w.giveUp(err)
		}
	}
	return nil
}

// again hands over what of a batch was missed, each span by itself.
func (w *worker) again(r *reader, handler Handler, b *Batch) error {
	all, one := b.Messages, *b // the reader uses b again
	one.Missed = true
	for len(w.missed) > 0 && w.missed[0].From < b.Next {
		span := &w.missed[0]
		for len(all) > 0 && all[0].Offset < span.From {
			all = all[1:]
		}
		n := 0
		for n < len(all) && all[n].Offset < span.To {
			n++
		}
		one.From, one.Next = span.From, min(span.To, b.Next)
		if one.Messages, all = all[:n], all[n:]; n > 0 {
			if err := handler.Handle(w.draining, &one); err != nil {
				w.failed(opHandle, fmt.Errorf("handle %s[%d] from offset %d again: %w", b.Topic, b.Partition, one.From, err))
				return &handleError{err}
			}
		}
		w.missedBefore(one.Next)
	}
	// None of the records that wait has moved, but they will.
	w.waiting(w.progress, w.position, r.end, r.written)
	w.alive(w.progress)
	w.showLag(w.position, r.written)
	return context.Cause(w.running)
}

// missedBefore drops what is before an offset.
func (w *worker) missedBefore(offset int64) {
	for len(w.missed) > 0 && w.missed[0].To <= offset {
		w.missed = w.missed[1:]
	}
	if len(w.missed) > 0 {
		w.missed[0].From = max(w.missed[0].From, offset)
	}
}

// skip passes over what is not in the log.
func (w *worker) skip(r *reader, was error) error {
	first, end, err := r.offsets(w.running)
	if err != nil {
		return err
	}
	from, next := w.missed[0].From, first
	switch {
	case from >= end:
		next = r.maxOffset
	case from >= first && was == nil:
		return fmt.Errorf("the broker sends nothing from offset %d of %s[%d], whose log has %d to %d", from, w.topic, w.partition, first, end)
	case from >= first:
		return was
	}
	w.missedBefore(next)
	w.log.Warn("drift misses records that are no longer in the log", "offset", from, "log_start", first, "log_end", end)
	return nil
}

// giveUp passes over all that is left, if it has been tried for long and the broker
// answers otherwise. Else it returns the error.
func (w *worker) giveUp(err error) error {
	if errors.Is(err, kafka.UnknownTopicOrPartition) || errors.Is(err, protocol.ErrNoTopic) {
		w.vanished = true
		return err
	}
	if _, _, failed := w.offsets(w.running); failed != nil {
		w.stuck = time.Time{}
		return err
	}
	if w.stuck.IsZero() {
		w.stuck = time.Now()
	}
	if time.Since(w.stuck) < w.missedPatience {
		return err
	}
	w.log.Error("drift misses records that cannot be read again", "offset", w.missed[0].From, "to", w.missed[len(w.missed)-1].To, "error", err)
	w.missed = nil
	return nil
}
