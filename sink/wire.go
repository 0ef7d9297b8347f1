package sink

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	produceAPI "github.com/segmentio/kafka-go/protocol/produce"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	minProduceVersion = 3 // the first with record batches of version 2
	maxProduceVersion = 8 // the last before flexible encodings
)

// A produceRequest carries one record batch. It writes its own bytes: kafka-go
// copies a batch into pages of its own, and sends them one by one.
type produceRequest struct {
	to      target
	bytes   []byte // of the whole request, with room for the version
	version int16
}

type produceResponse struct{ errorCode int16 }

// versionAt is where a request's version is.
const versionAt = 6

func (*produceRequest) ApiKey() protocol.ApiKey  { return protocol.Produce }
func (*produceResponse) ApiKey() protocol.ApiKey { return protocol.Produce }

// appendProduce appends a request up to its batch's records, which have to follow.
// What it leaves out finishProduce and finishBatch fill in.
func appendProduce(dst []byte, clientID, transactionalID string, timeout time.Duration, topic string) []byte {
	be := binary.BigEndian
	str := func(s string) {
		dst = be.AppendUint16(dst, uint16(len(s)))
		dst = append(dst, s...)
	}
	dst = be.AppendUint32(dst, 0) // length
	dst = be.AppendUint16(dst, uint16(protocol.Produce))
	dst = be.AppendUint16(dst, 0) // version
	dst = be.AppendUint32(dst, 0) // correlation: one request at a time
	str(clientID)
	if transactionalID == "" {
		dst = be.AppendUint16(dst, 0xffff) // null
	} else {
		str(transactionalID)
	}
	dst = be.AppendUint16(dst, 0xffff) // acknowledged by all in-sync replicas
	dst = be.AppendUint32(dst, uint32(timeout.Milliseconds()))
	dst = be.AppendUint32(dst, 1)
	str(topic)
	dst = be.AppendUint32(dst, 1)
	dst = be.AppendUint32(dst, 0) // partition
	dst = be.AppendUint32(dst, 0) // length of the batch
	return append(dst, make([]byte, batchHeader)...)
}

// finishProduce fills in the lengths of a request whose batch begins at batch, and
// the partition.
func finishProduce(request []byte, batch, partition int) {
	binary.BigEndian.PutUint32(request, uint32(len(request)-4))
	binary.BigEndian.PutUint32(request[batch-8:], uint32(partition))
	binary.BigEndian.PutUint32(request[batch-4:], uint32(len(request)-batch))
}

// cloneProduce copies a request, but for its version, which may be filled in
// meanwhile.
func cloneProduce(request []byte) []byte {
	clone := make([]byte, len(request))
	copy(clone, request[:versionAt])
	copy(clone[versionAt+2:], request[versionAt+2:])
	return clone
}

// Broker routes the request to the leader of its partition.
func (r *produceRequest) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	return (&produceAPI.Request{Topics: []produceAPI.RequestTopic{{
		Topic: r.to.topic, Partitions: []produceAPI.RequestPartition{{Partition: int32(r.to.partition)}},
	}}}).Broker(cluster)
}

// Required makes kafka-go call RawExchange.
func (r *produceRequest) Required(versions map[protocol.ApiKey]int16) bool {
	r.version = min(versions[protocol.Produce], maxProduceVersion)
	return true
}

// RawExchange writes the request and reads the response.
func (r *produceRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if r.version < minProduceVersion {
		return nil, fmt.Errorf("the broker takes produce requests up to version %d, expected %d (Kafka 0.11) or later: %w", r.version, minProduceVersion, kafka.UnsupportedVersion)
	}
	binary.BigEndian.PutUint16(r.bytes[versionAt:], uint16(r.version))
	if _, err := rw.Write(r.bytes); err != nil {
		return nil, err
	}
	return r.decode(rw)
}

// maxResponse bounds an answer: names, and what is wrong with single records.
const maxResponse = 1 << 20

// readResponse reads a response from its correlation id on.
func readResponse(from io.Reader, what string) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(from, size[:]); err != nil {
		return nil, err
	}
	length := int64(int32(binary.BigEndian.Uint32(size[:])))
	if length < 0 || length > maxResponse {
		return nil, fmt.Errorf("the %s claims %d bytes, expected at most %d", what, length, maxResponse)
	}
	in := make([]byte, length)
	if _, err := io.ReadFull(from, in); err != nil {
		return nil, fmt.Errorf("read the %s: %w", what, err)
	}
	return in, nil
}

// decode reads a response up to the partition's error, and passes the rest.
func (r *produceRequest) decode(from io.Reader) (*produceResponse, error) {
	be := binary.BigEndian
	in, err := readResponse(from, "produce response")
	if err != nil {
		return nil, err
	}
	// correlation int32, topics int32, name, partitions int32, partition int32, error int16
	name := len(r.to.topic)
	if len(in) < 20+name || be.Uint32(in[4:]) != 1 || int(be.Uint16(in[8:])) != name || string(in[10:10+name]) != r.to.topic {
		return nil, fmt.Errorf("the produce response of %d bytes is not for topic %s alone", len(in), r.to.topic)
	}
	in = in[10+name:]
	if n, partition := be.Uint32(in), be.Uint32(in[4:]); n != 1 || partition != uint32(r.to.partition) {
		return nil, fmt.Errorf("the produce response is for %d partitions from %d on, expected %d alone", n, partition, r.to.partition)
	}
	return &produceResponse{errorCode: int16(be.Uint16(in[8:]))}, nil
}

// A describeRequest asks a transactional id's coordinator what has become of its
// last transaction: DescribeTransactions of Kafka 3.0, which kafka-go lacks.
type describeRequest struct {
	id, clientID string
	known        bool // to the broker
}

type describeResponse struct {
	errorCode int16
	state     string // as kafka.coordinator.transaction.TransactionState names it
	owner     owner
}

const describeTransactions protocol.ApiKey = 65

func (*describeRequest) ApiKey() protocol.ApiKey  { return describeTransactions }
func (*describeResponse) ApiKey() protocol.ApiKey { return describeTransactions }

// Transaction routes the request to the id's coordinator.
func (r *describeRequest) Transaction() string { return r.id }

// Required makes kafka-go call RawExchange.
func (r *describeRequest) Required(versions map[protocol.ApiKey]int16) bool {
	_, r.known = versions[describeTransactions]
	return true
}

// RawExchange writes the request and reads the response.
func (r *describeRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if !r.known {
		return nil, kafka.UnsupportedVersion
	}
	request := kmsg.NewPtrDescribeTransactionsRequest()
	request.TransactionalIDs = []string{r.id}
	if _, err := rw.Write(kmsg.NewRequestFormatter(kmsg.FormatterClientID(r.clientID)).AppendRequest(nil, request, 0)); err != nil {
		return nil, err
	}
	in, err := readResponse(rw, "description of a transactional id")
	if err != nil {
		return nil, err
	}
	return r.decode(in)
}

// decode reads as far as it needs. The rest has counts of its own: kmsg takes a
// minute for sixty bytes that name four billion tagged fields.
func (r *describeRequest) decode(in []byte) (*describeResponse, error) {
	// correlation int32, no tagged fields
	if len(in) < 5 || in[4] != 0 {
		return nil, fmt.Errorf("the description of transactional id %s begins with % x, expected its correlation id and no tagged fields", r.id, in[:min(len(in), 5)])
	}
	rest, short := in[5:], false
	take := func(n uint64) []byte {
		if short = short || n > uint64(len(rest)); short {
			return make([]byte, 8) // of a number
		}
		taken := rest[:n]
		rest = rest[n:]
		return taken
	}
	count := func() uint64 { // of a list or a text, one more in front of it
		n, size := binary.Uvarint(rest)
		if size <= 0 || n == 0 {
			short = true
			return 0
		}
		rest = rest[size:]
		return n - 1
	}
	be := binary.BigEndian
	take(4) // throttle_time_ms
	if n := count(); !short && n != 1 {
		return nil, fmt.Errorf("the broker described %d transactional ids, expected %s alone", n, r.id)
	}
	var got describeResponse
	got.errorCode = int16(be.Uint16(take(2)))
	if id := string(take(count())); !short && id != r.id {
		return nil, fmt.Errorf("the broker described transactional id %q, expected %s", id, r.id)
	}
	got.state = string(take(count()))
	take(4 + 8) // transaction_timeout_ms, transaction_start_time_ms
	got.owner = owner{int64(be.Uint64(take(8))), int16(be.Uint16(take(2)))}
	if short {
		return nil, fmt.Errorf("the description of transactional id %s: %w", r.id, io.ErrUnexpectedEOF)
	}
	return &got, nil
}
