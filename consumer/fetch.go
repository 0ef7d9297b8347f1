package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
)

// answerTime is how long a broker may take to answer, beyond the wait that the
// fetch itself asks for.
const answerTime = 20 * time.Second

// A reader reads one partition from a position on, as a transaction's reader
// does: aborted records and control records are left out.
type reader struct {
	conn      *kafkaconn.Client
	topic     string
	partition int
	position  int64 // the next offset
	end       int64 // the offset after the last that can be read, as last seen
	written   int64 // the offset after the last, those of open transactions included

	maxRecords, maxBytes, maxMessage int
	maxWait                          time.Duration
	maxOffset                        int64 // where to stop; 0: nowhere

	decoder decoder
	batch   Batch
	size    int   // bytes in batch
	records int64 // offsets that its messages stand for
	portion int   // bytes to ask for; 0: maxBytes

	// With readAhead, what follows a response is asked for while that is
	// handled: one response, no more.
	readAhead bool
	ahead     *pending
	spare     []byte // for the next response
}

// A pending is a request whose response is on the way.
type pending struct {
	offset int64
	cancel context.CancelFunc
	done   chan struct{} // closed when the fields below are set
	answer *fetchResponse
	buf    []byte
	err    error
}

// fetch asks once for what follows the position, and calls emit with batches
// of it, and with the offset that follows each. The position moves past a batch
// after emit returned nil. A last call may come with an empty batch, where only
// offsets without records were passed. What is before damage is emitted too.
func (r *reader) fetch(ctx context.Context, emit func(b *Batch, next int64) error) error {
	response, buf, err := r.response(ctx)
	if err != nil {
		return err
	}
	defer r.giveBack(buf)
	r.end, r.written = response.lastStableOffset, response.highWatermark
	next, size := response.next()
	r.portion = portion(r.maxBytes, size)
	if r.readAhead && next > r.position {
		r.ask(ctx, next)
	}
	r.begin()
	flush := func() error {
		next := r.decoder.position
		if r.maxOffset > 0 {
			next = min(next, r.maxOffset)
		}
		if len(r.batch.Messages) == 0 && next == r.position {
			return nil
		}
		r.batch.HighWatermark = r.end
		if err := emit(&r.batch, next); err != nil {
			return err
		}
		r.position = next
		r.begin()
		return nil
	}
	d := &r.decoder
	d.position, d.maxMessage = r.position, r.maxMessage
	d.take = func(m Message, size int) error {
		if r.maxOffset > 0 {
			if m.Offset >= r.maxOffset {
				return nil
			}
			m.More = min(m.More, r.maxOffset-1-m.Offset)
		}
		r.batch.Messages = append(r.batch.Messages, m)
		r.records += 1 + m.More
		if r.size += size; len(r.batch.Messages) >= r.maxRecords || r.size >= r.maxBytes {
			return flush()
		}
		return nil
	}
	if response.tooLarge > 0 {
		err = d.tooLarge(response.records, response.tooLarge, response.aborted)
	} else {
		err = d.decode(response.records, response.verified, response.aborted)
	}
	if !is[*takeError](err) {
		err = errors.Join(flush(), err) // what was read before the damage is not to wait for its mending
	}
	if err != nil {
		return fmt.Errorf("read %s[%d] from offset %d: %w", r.topic, r.partition, r.position, err)
	}
	return nil
}

// begin starts a batch in the memory of the one before.
func (r *reader) begin() {
	r.batch.Topic, r.batch.Partition = r.topic, r.partition
	r.batch.Messages = r.batch.Messages[:0]
	r.size, r.records = 0, 0
	r.decoder.arena.reset()
}

// response returns what follows the position, and the memory that it lies in:
// what was asked for ahead, if it begins there.
func (r *reader) response(ctx context.Context) (*fetchResponse, []byte, error) {
	if r.ahead != nil && r.ahead.offset != r.position {
		r.drop()
	}
	if r.ahead == nil {
		return r.request(ctx, r.position, cmp.Or(r.portion, r.maxBytes), r.take())
	}
	p := r.ahead
	select {
	case <-p.done:
		r.ahead = nil
		p.cancel()
		return p.answer, p.buf, p.err
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
}

// ask requests what follows offset, without waiting for it.
func (r *reader) ask(ctx context.Context, offset int64) {
	r.drop()
	ctx, cancel := context.WithCancel(ctx)
	p := &pending{offset: offset, cancel: cancel, done: make(chan struct{})}
	r.ahead = p
	size, buf := r.portion, r.take()
	go func() {
		defer close(p.done)
		p.answer, p.buf, p.err = r.request(ctx, offset, size, buf)
	}()
}

// drop gives up what was asked for ahead, and waits until it has ended.
func (r *reader) drop() {
	if r.ahead == nil {
		return
	}
	r.ahead.cancel()
	<-r.ahead.done
	r.giveBack(r.ahead.buf)
	r.ahead = nil
}

func (r *reader) take() []byte {
	buf := r.spare
	r.spare = nil
	return buf
}

// giveBack keeps a buffer for the next response. One that was much larger than the
// response that it held last is not held on to.
func (r *reader) giveBack(buf []byte) {
	if cap(buf) <= 2*max(r.maxBytes, len(buf)) {
		r.spare = buf
	}
}

// request asks the leader for so many bytes of what follows offset. The records of
// the response lie in buf, or in what took its place, which is returned.
func (r *reader) request(ctx context.Context, offset int64, size int, buf []byte) (*fetchResponse, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.maxWait+answerTime)
	defer cancel()
	request := &fetchRequest{
		topic: r.topic, partition: int32(r.partition), offset: offset, clientID: r.conn.Dialer.ClientID,
		maxBytes: int32(min(size, batchLimit)), maxWait: int32(r.maxWait.Milliseconds()),
		limit: max(batchLimit, r.maxMessage), buf: buf,
	}
	answer, err := r.conn.Transport.RoundTrip(ctx, r.conn.Kafka.Addr, request)
	if err != nil {
		// It may still be read into the buffer, which is left to it.
		return nil, nil, fmt.Errorf("fetch %s[%d] at offset %d: %w", r.topic, r.partition, offset, err)
	}
	response := answer.(*fetchResponse)
	if response.errorCode != 0 {
		return nil, request.buf, fmt.Errorf("fetch %s[%d] at offset %d: %w", r.topic, r.partition, offset, kafka.Error(response.errorCode))
	}
	return response, request.buf, nil
}

// offsets returns the first offset of the log and the one after the last that
// can be read.
func (r *reader) offsets(ctx context.Context) (first, end int64, err error) {
	if first, err = r.offsetOf(ctx, kafka.FirstOffset); err != nil {
		return 0, 0, err
	}
	end, err = r.offsetOf(ctx, kafka.LastOffset)
	return first, end, err
}

// offsetOf returns the first offset with at least that timestamp (ms), or -1
// where there is none. kafka.FirstOffset and kafka.LastOffset stand for the ends.
// kafka-go's ListOffsets cannot tell an absent offset from the last one.
func (r *reader) offsetOf(ctx context.Context, timestamp int64) (int64, error) {
	fail := func(err error) (int64, error) {
		return 0, fmt.Errorf("list offsets of %s[%d]: %w", r.topic, r.partition, err)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	answer, err := r.conn.Transport.RoundTrip(ctx, r.conn.Kafka.Addr, &listoffsets.Request{
		ReplicaID: -1, IsolationLevel: int8(kafka.ReadCommitted),
		Topics: []listoffsets.RequestTopic{{Topic: r.topic, Partitions: []listoffsets.RequestPartition{{
			Partition: int32(r.partition), CurrentLeaderEpoch: -1, Timestamp: timestamp,
		}}}},
	})
	if err != nil {
		return fail(err)
	}
	response, ok := answer.(*listoffsets.Response)
	if !ok || len(response.Topics) != 1 || len(response.Topics[0].Partitions) != 1 {
		return fail(fmt.Errorf("the broker did not answer for this one partition"))
	}
	p := response.Topics[0].Partitions[0]
	if p.ErrorCode != 0 {
		return fail(kafka.Error(p.ErrorCode))
	}
	return p.Offset, nil
}
