package consumer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// A Claim is a member's right to commit the offset that follows a batch. The
// group refuses it when the partition has been given to another member.
type Claim struct {
	Group      string
	Generation int
	Member     string
	Offset     int64
}

// markerTime is how long an offset may be held back by a transaction that has
// ended: more than it takes a group's coordinator to hear of that.
const markerTime = 5 * time.Second

// claim makes the partition this member's own, for exactly-once delivery: it
// ends the transaction that an earlier owner, or an attempt of ours, left open,
// and then reads the committed offset. The one that the generation carries may
// be older: a transaction's offset shows only when the coordinator has written
// its markers, and kafka-go joins a group without waiting for that.
func (w *worker) claim() error {
	// A member that was evicted, and has not heard of it, must not fence the
	// partition's new owner.
	beat, err := w.Consumer.conn.Kafka.Heartbeat(w.running, &kafka.HeartbeatRequest{
		GroupID: w.cfg.Group, GenerationID: w.generation.ID, MemberID: w.generation.MemberID,
	})
	if err == nil {
		err = beat.Error
	}
	if err != nil {
		return fmt.Errorf("claim %s[%d]: ask the group %s whether it is still ours: %w", w.topic, w.partition, w.cfg.Group, err)
	}
	if err := w.cfg.Fence(w.running, w.partition); err != nil {
		return fmt.Errorf("claim %s[%d]: %w", w.topic, w.partition, err)
	}
	offset, err := w.stableOffset(w.running)
	// Fence has ended all that the transactions' coordinator knows of; the group's
	// coordinator hears of it a little later.
	for begun := time.Now(); errors.Is(err, kafka.UnstableOffsetCommit) && time.Since(begun) < markerTime; {
		select {
		case <-w.running.Done():
			return context.Cause(w.running)
		case <-time.After(100 * time.Millisecond):
		}
		offset, err = w.stableOffset(w.running)
	}
	if errors.Is(err, kafka.UnstableOffsetCommit) {
		// A marker is missing: the offset would be held back for ever.
		if err = w.cfg.Release(w.running, w.partition, w.cfg.Group); err == nil {
			err = w.cfg.Fence(w.running, w.partition) // waits for it
		}
		if err == nil {
			offset, err = w.stableOffset(w.running)
		}
	}
	if err != nil {
		return fmt.Errorf("claim %s[%d]: %w", w.topic, w.partition, err)
	}
	w.begin(offset)
	w.claimed = true
	return nil
}

// stableOffset returns what the group has committed, or -1. While a transaction
// may still change it, the error is kafka.UnstableOffsetCommit.
func (w *worker) stableOffset(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	answer, err := w.Consumer.conn.Transport.RoundTrip(ctx, w.Consumer.conn.Kafka.Addr, &stableOffsetRequest{
		group: w.cfg.Group, topic: w.topic, partition: int32(w.partition), clientID: w.Consumer.conn.Dialer.ClientID,
	})
	if err != nil {
		return 0, fmt.Errorf("read the committed offset: %w", err)
	}
	response := answer.(*stableOffsetResponse)
	if response.errorCode != 0 {
		return 0, fmt.Errorf("read the committed offset: %w", kafka.Error(response.errorCode))
	}
	return response.offset, nil
}

// A stableOffsetRequest asks the coordinator for the offset that a group has
// committed in one partition, and to wait for no open transaction but to say so:
// OffsetFetch version 7 with require_stable, of Kafka 2.5. kafka-go ends at
// version 5.
type stableOffsetRequest struct {
	group, topic, clientID string
	partition              int32
	transactions           int16 // version of TxnOffsetCommit that the broker knows
}

type stableOffsetResponse struct {
	errorCode int16
	offset    int64
}

func (*stableOffsetRequest) ApiKey() protocol.ApiKey  { return protocol.OffsetFetch }
func (*stableOffsetResponse) ApiKey() protocol.ApiKey { return protocol.OffsetFetch }

// Group routes the request to the group's coordinator.
func (r *stableOffsetRequest) Group() string { return r.group }

// Required makes kafka-go call RawExchange.
func (r *stableOffsetRequest) Required(versions map[protocol.ApiKey]int16) bool {
	r.transactions = versions[protocol.TxnOffsetCommit]
	return true
}

// RawExchange writes the request and reads the response.
func (r *stableOffsetRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	// Before version 3 the group could not refuse an evicted member's offset.
	if r.transactions < 3 {
		return nil, fmt.Errorf("exactly-once delivery needs brokers of Kafka 2.5 or later: %w", kafka.UnsupportedVersion)
	}
	if _, err := rw.Write(r.encode()); err != nil {
		return nil, err
	}
	return r.decode(rw)
}

func (r *stableOffsetRequest) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, 4, 64+len(r.group)+len(r.topic)+len(r.clientID))
	compact := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)+1))
		b = append(b, s...)
	}
	b = be.AppendUint16(b, uint16(protocol.OffsetFetch))
	b = be.AppendUint16(b, 7)
	b = be.AppendUint32(b, 0) // correlation: one request at a time
	b = be.AppendUint16(b, uint16(len(r.clientID)))
	b = append(b, r.clientID...)
	b = append(b, 0) // no tagged fields
	compact(r.group)
	b = append(b, 2) // one topic
	compact(r.topic)
	b = append(b, 2) // one partition
	b = be.AppendUint32(b, uint32(r.partition))
	b = append(b, 0, 1, 0) // no tagged fields of the topic; require_stable; none of the request
	be.PutUint32(b, uint32(len(b)-4))
	return b
}

func (r *stableOffsetRequest) decode(from io.Reader) (*stableOffsetResponse, error) {
	var size [4]byte
	if _, err := io.ReadFull(from, size[:]); err != nil {
		return nil, err
	}
	in := &wireReader{from: from, remain: int64(binary.BigEndian.Uint32(size[:]))}
	in.int32() // correlation
	in.tags()
	in.int32() // throttle time: the broker has waited already
	out := &stableOffsetResponse{offset: -1}
	topics := in.uvarint() - 1
	if in.err == nil && topics > 0 {
		if topics != 1 {
			return nil, fmt.Errorf("the offset response holds %d topics, expected 1", topics)
		}
		in.skip(in.uvarint() - 1)
		if partitions := in.uvarint() - 1; in.err == nil && partitions != 1 {
			return nil, fmt.Errorf("the offset response holds %d partitions, expected 1", partitions)
		}
		if partition := in.int32(); in.err == nil && partition != r.partition {
			return nil, fmt.Errorf("the offset response is for partition %d, expected %d", partition, r.partition)
		}
		out.offset = in.int64()
		in.int32() // leader epoch
		in.skip(in.uvarint() - 1)
		out.errorCode = in.int16()
		in.tags()
		in.tags()
	}
	if code := in.int16(); code != 0 {
		out.errorCode = code
	}
	in.skip(in.remain)
	if in.err != nil {
		return nil, fmt.Errorf("read the offset response: %w", in.err)
	}
	if topics <= 0 && out.errorCode == 0 {
		return nil, fmt.Errorf("the offset response holds no topic, expected %s", r.topic)
	}
	return out, nil
}
