package consumer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	fetchAPI "github.com/segmentio/kafka-go/protocol/fetch"
)

// answerTime is how long a broker may take to answer, beyond the wait that the
// fetch itself asks for.
const answerTime = 20 * time.Second

// A reader reads one partition from a position on. It uses the fetch request
// itself, since kafka-go's Client.Fetch hides the aborted transactions.
type reader struct {
	conn      *kafkaconn.Client
	topic     string
	partition int
	position  int64 // the next offset
	end       int64 // the offset after the last that can be read, as last seen

	maxRecords, maxBytes, maxMessage int
	maxWait                          time.Duration
	maxOffset                        int64 // where to stop; 0: nowhere

	batch Batch
	arena []byte
	size  int
}

// fetch asks once for what follows the position, and calls emit with batches
// of it. The position moves past a batch after emit returned nil.
func (r *reader) fetch(ctx context.Context, emit func(*Batch, int64) error) error {
	partition, err := r.request(ctx)
	if err != nil {
		return err
	}
	r.end = partition.LastStableOffset
	next := r.position
	r.reset()
	flush := func() error {
		if len(r.batch.Messages) == 0 && next == r.position {
			return nil
		}
		r.batch.HighWatermark = r.end
		if err := emit(&r.batch, next); err != nil {
			return err
		}
		r.position = next
		r.reset()
		return nil
	}

	aborted := slices.Clone(partition.AbortedTransactions)
	slices.SortFunc(aborted, func(a, b fetchAPI.ResponseTransaction) int { return int(min(1, max(-1, a.FirstOffset-b.FirstOffset))) })
	dropping := make(map[int64]bool) // producers whose open transaction was aborted
	for _, records := range split(partition.RecordSet.Records) {
		base, producer, transactional := records.Offset(), int64(-1), false
		switch records := records.(type) {
		case *protocol.ControlBatch:
			producer = records.ProducerID
			if marker, err := records.ReadControlRecord(); err == nil {
				next = max(next, marker.Offset+1)
				delete(dropping, producer)
				for len(aborted) > 0 && aborted[0].ProducerID == producer && aborted[0].FirstOffset < marker.Offset {
					aborted = aborted[1:]
				}
			}
			next = max(next, base+1)
			continue
		case *protocol.RecordBatch:
			producer, transactional = records.ProducerID, records.Attributes.Transactional()
		}
		for len(aborted) > 0 && aborted[0].FirstOffset <= base {
			dropping[aborted[0].ProducerID] = true
			aborted = aborted[1:]
		}
		drop := transactional && dropping[producer]
		for {
			rec, err := records.ReadRecord()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return fmt.Errorf("decode %s[%d] at offset %d: %w", r.topic, r.partition, next, err)
			}
			if r.maxOffset > 0 && rec.Offset >= r.maxOffset {
				closeRecord(rec)
				next = r.maxOffset
				return flush()
			}
			if rec.Offset >= r.position && !drop {
				if err := r.take(rec); err != nil {
					return fmt.Errorf("read %s[%d] at offset %d: %w", r.topic, r.partition, rec.Offset, err)
				}
			}
			next = max(next, rec.Offset+1)
			closeRecord(rec)
			if len(r.batch.Messages) >= r.maxRecords || r.size >= r.maxBytes {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		// A batch that compaction emptied holds its place in the log.
		next = max(next, base+1)
	}
	if next == r.position && partition.RecordSet.Records != nil {
		next++ // the broker's first batch holds the position, but no record there
	}
	return flush()
}

func (r *reader) reset() {
	r.batch.Topic, r.batch.Partition = r.topic, r.partition
	r.batch.Messages = r.batch.Messages[:0]
	r.arena, r.size = r.arena[:0], 0
}

func (r *reader) request(ctx context.Context) (*fetchAPI.ResponsePartition, error) {
	ctx, cancel := context.WithTimeout(ctx, r.maxWait+answerTime)
	defer cancel()
	answer, err := r.conn.Transport.RoundTrip(ctx, r.conn.Kafka.Addr, &fetchAPI.Request{
		ReplicaID: -1, MaxWaitTime: int32(r.maxWait.Milliseconds()), MinBytes: 1, MaxBytes: int32(r.maxBytes),
		IsolationLevel: int8(kafka.ReadCommitted), SessionID: 0, SessionEpoch: -1,
		Topics: []fetchAPI.RequestTopic{{Topic: r.topic, Partitions: []fetchAPI.RequestPartition{{
			Partition: int32(r.partition), CurrentLeaderEpoch: -1, FetchOffset: r.position, LogStartOffset: -1, PartitionMaxBytes: int32(r.maxBytes),
		}}}},
	})
	if err != nil {
		return nil, fmt.Errorf("fetch %s[%d] at offset %d: %w", r.topic, r.partition, r.position, err)
	}
	response, ok := answer.(*fetchAPI.Response)
	if !ok || len(response.Topics) != 1 || len(response.Topics[0].Partitions) != 1 {
		return nil, fmt.Errorf("fetch %s[%d] at offset %d: the broker did not answer for this one partition", r.topic, r.partition, r.position)
	}
	partition := &response.Topics[0].Partitions[0]
	for _, code := range []int16{response.ErrorCode, partition.ErrorCode} {
		if code != 0 {
			return nil, fmt.Errorf("fetch %s[%d] at offset %d: %w", r.topic, r.partition, r.position, kafka.Error(code))
		}
	}
	return partition, nil
}

// A batchReader is a record batch of any version.
type batchReader interface {
	protocol.RecordReader
	Offset() int64
}

// split returns the batches of a response one by one.
func split(records protocol.RecordReader) []batchReader {
	switch records := records.(type) {
	case nil:
		return nil
	case *protocol.RecordStream:
		var all []batchReader
		for _, r := range records.Records {
			all = append(all, split(r)...)
		}
		return all
	case batchReader:
		return []batchReader{records}
	default:
		return nil
	}
}

// take appends a record to the batch in hand.
func (r *reader) take(rec *protocol.Record) error {
	m := Message{Offset: rec.Offset, Time: rec.Time}
	size := length(rec.Key) + length(rec.Value)
	for _, h := range rec.Headers {
		size += len(h.Key) + len(h.Value)
	}
	if size > r.maxMessage {
		m.Oversized = int64(size)
	} else {
		var err error
		if m.Key, err = r.copy(rec.Key); err != nil {
			return err
		}
		if m.Value, err = r.copy(rec.Value); err != nil {
			return err
		}
		m.Headers = rec.Headers
		r.size += size
	}
	r.batch.Messages = append(r.batch.Messages, m)
	return nil
}

func length(b protocol.Bytes) int {
	if b == nil {
		return 0
	}
	return b.Len()
}

// copy puts the bytes into the arena. A full arena is left to the messages
// that point into it.
func (r *reader) copy(b protocol.Bytes) ([]byte, error) {
	n := length(b)
	if n == 0 {
		return nil, nil
	}
	if cap(r.arena)-len(r.arena) < n {
		r.arena = make([]byte, 0, max(n, 2*cap(r.arena), 64<<10))
	}
	start := len(r.arena)
	r.arena = r.arena[:start+n]
	dst := r.arena[start : start+n : start+n]
	_, err := io.ReadFull(b, dst)
	return dst, err
}

func closeRecord(rec *protocol.Record) {
	for _, b := range []protocol.Bytes{rec.Key, rec.Value} {
		if b != nil {
			_ = b.Close() // gives pages back to a pool
		}
	}
}

// offsets returns the first offset of the log and the one after the last that
// can be read.
func (r *reader) offsets(ctx context.Context) (first, end int64, err error) {
	if first, err = r.offsetOf(ctx, kafka.FirstOffsetOf(r.partition)); err != nil {
		return 0, 0, err
	}
	end, err = r.offsetOf(ctx, kafka.LastOffsetOf(r.partition))
	return first, end, err
}

// offsetOf asks for one offset: brokers refuse a partition that comes twice in
// a request.
func (r *reader) offsetOf(ctx context.Context, what kafka.OffsetRequest) (int64, error) {
	fail := func(err error) (int64, error) {
		return 0, fmt.Errorf("list offsets of %s[%d]: %w", r.topic, r.partition, err)
	}
	answer, err := r.conn.Kafka.ListOffsets(ctx, &kafka.ListOffsetsRequest{
		Topics: map[string][]kafka.OffsetRequest{r.topic: {what}}, IsolationLevel: kafka.ReadCommitted,
	})
	if err != nil {
		return fail(err)
	}
	for _, p := range answer.Topics[r.topic] {
		if p.Partition != r.partition {
			continue
		}
		if p.Error != nil {
			return fail(p.Error)
		}
		switch what.Timestamp {
		case kafka.FirstOffset:
			return p.FirstOffset, nil
		case kafka.LastOffset:
			return p.LastOffset, nil
		}
		for offset := range p.Offsets {
			return offset, nil
		}
	}
	return fail(errors.New("the broker did not answer for it"))
}
