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
	// expected is how large the next record batch may be, where that is more than is
	// ordinary; else 0.
	expected int
	share    share

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
// of it. The position moves past a batch
// after emit returned nil. A last call may come with an empty batch, where only
// offsets without records were passed. What is before damage is emitted too.
// Where that takes more memory than is ordinary, fetch waits for its share of the
// budget, and has given it back when it returns.
func (r *reader) fetch(ctx context.Context, emit func(b *Batch) error) error {
	defer r.letGo(ofResponse)
	response, buf, err := r.response(ctx)
	if err != nil {
		return err
	}
	defer r.giveBack(buf)
	if len(buf) <= r.ordinary() {
		r.share.giveBack(ofResponse) // a larger one was expected
	}
	r.end, r.written = response.lastStableOffset, response.highWatermark
	next, size := response.next()
	r.portion = portion(r.maxBytes, size)
	r.expect(size)
	// Nothing large is asked for ahead, nor anything while a large one is in hand.
	if r.readAhead && next > r.position && r.expected == 0 && r.share.held[ofResponse] == 0 {
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
		r.batch.From, r.batch.Next, r.batch.HighWatermark = r.position, next, r.end
		if err := emit(&r.batch); err != nil {
			return err
		}
		r.position = next
		r.begin()
		return nil
	}
	d := &r.decoder
	d.position, d.maxMessage, d.ordinary = r.position, r.maxMessage, int64(r.ordinary())
	d.hold = func(kind int, n int64) error { return r.share.hold(ctx, kind, n) }
	d.giveBack = r.share.giveBack
	d.take = func(m Message, size int) error {
		if r.maxOffset > 0 {
			if m.Offset >= r.maxOffset {
				return nil
			}
			m.More = min(m.More, r.maxOffset-1-m.Offset)
		}
		r.batch.Messages = append(r.batch.Messages, m)
		r.records += 1 + m.More
		if r.size += size; len(r.batch.Messages) >= r.maxRecords || r.size >= r.maxBytes || slices.Max(r.share.held[ofRecord:]) > 0 {
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
	r.letGo(ofRecord)
	r.batch.Topic, r.batch.Partition = r.topic, r.partition
	r.batch.Messages = r.batch.Messages[:0]
	r.size, r.records = 0, 0
	r.decoder.arena.reset()
}

// letGo gives the share back of a kind and of those after it, and holds on to nothing
// that it was for.
func (r *reader) letGo(kind int) {
	if slices.Max(r.share.held[kind:]) > 0 {
		clear(r.batch.Messages[:cap(r.batch.Messages)])
		r.share.giveBack(kind)
	}
}

// ordinary is how many bytes a response may have without a share of the budget. A
// header at least has to fit, which tells how large its batch is.
func (r *reader) ordinary() int { return max(r.maxBytes, leastFetch) }

// largest is how many bytes one may have with it.
func (r *reader) largest() int { return max(batchLimit, r.maxMessage) }

// expect takes the size of a batch that comes next, or of the last one: the next is
// often about as large. It falls slowly, since one that is larger than expected has to
// be sent a second time.
func (r *reader) expect(size int64) {
	if size <= int64(r.ordinary()) {
		r.expected = 0
		return
	}
	r.expected = max(int(min(size, int64(r.largest()))), r.expected-r.expected/8)
}

// response returns what follows the position, and the memory that it lies in:
// what was asked for ahead, if it begins there. A broker sends one record batch,
// however little was asked for. Where it is larger than expected only its size is
// kept, and with a share of the budget it is asked for again.
func (r *reader) response(ctx context.Context) (*fetchResponse, []byte, error) {
	for {
		response, buf, err := r.attempt(ctx)
		if err != nil || response.tooLarge == 0 || response.tooLarge > int64(r.largest()) {
			return response, buf, err
		}
		r.giveBack(buf)
		r.expected = int(response.tooLarge)
	}
}

func (r *reader) attempt(ctx context.Context) (*fetchResponse, []byte, error) {
	if r.ahead != nil && r.ahead.offset != r.position {
		r.drop()
	}
	if r.ahead == nil {
		limit := r.ordinary()
		if r.expected > 0 {
			limit = r.expected
			if err := r.share.hold(ctx, ofResponse, int64(limit)+int64(limit)/16); err != nil {
				return nil, nil, fmt.Errorf("fetch %s[%d] at offset %d: %w", r.topic, r.partition, r.position, err)
			}
		}
		return r.request(ctx, r.position, cmp.Or(r.portion, r.maxBytes), limit, r.take())
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
		p.answer, p.buf, p.err = r.request(ctx, offset, size, r.ordinary(), buf)
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

// giveBack keeps a buffer for the next response, but not one for which a share of the
// budget was held.
func (r *reader) giveBack(buf []byte) {
	if cap(buf) <= r.ordinary()+r.ordinary()/16 {
		r.spare = buf
	}
}

// request asks the leader for so many bytes of what follows offset, and keeps no more
// than limit. The records of the response lie in buf, or in what took its place, which
// is returned.
func (r *reader) request(ctx context.Context, offset int64, size, limit int, buf []byte) (*fetchResponse, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.maxWait+answerTime)
	defer cancel()
	request := &fetchRequest{
		topic: r.topic, partition: int32(r.partition), offset: offset, clientID: r.conn.Dialer.ClientID,
		maxBytes: int32(min(size, batchLimit)), maxWait: int32(r.maxWait.Milliseconds()),
		limit: limit, buf: buf,
	}
	answer, err := r.conn.Transport.RoundTrip(ctx, r.conn.Kafka.Addr, request)
	if err != nil {
		// It may still be read into the buffer, which is left to it.
		return nil, nil, fmt.Errorf("fetch %s[%d] at offset %d: %w", r.topic, r.partition, offset, err)
	}
	response := answer.(*fetchResponse)
	if response.errorCode != 0 {
		err := r.conn.Denied(kafka.Error(response.errorCode), kafkaconn.Access{Operation: "Read", Topic: r.topic})
		return nil, request.buf, fmt.Errorf("fetch %s[%d] at offset %d: %w", r.topic, r.partition, offset, err)
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
