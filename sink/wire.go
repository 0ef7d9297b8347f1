package sink

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	produceAPI "github.com/segmentio/kafka-go/protocol/produce"
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

// appendProduce appends a request up to its record batch, which has to follow.
func appendProduce(dst []byte, clientID, transactionalID string, timeout time.Duration, to target) []byte {
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
	str(to.topic)
	dst = be.AppendUint32(dst, 1)
	dst = be.AppendUint32(dst, uint32(to.partition))
	return be.AppendUint32(dst, 0) // length of the batch
}

// finishProduce fills in the lengths of a request whose batch begins at batch.
func finishProduce(request []byte, batch int) {
	binary.BigEndian.PutUint32(request, uint32(len(request)-4))
	binary.BigEndian.PutUint32(request[batch-4:], uint32(len(request)-batch))
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

// maxResponse bounds the answer for one partition: names, and what is wrong with
// single records.
const maxResponse = 1 << 20

// decode reads a response up to the partition's error, and passes the rest.
func (r *produceRequest) decode(from io.Reader) (*produceResponse, error) {
	be := binary.BigEndian
	var size [4]byte
	if _, err := io.ReadFull(from, size[:]); err != nil {
		return nil, err
	}
	length := int64(int32(be.Uint32(size[:])))
	if length < 0 || length > maxResponse {
		return nil, fmt.Errorf("the produce response claims %d bytes, expected at most %d", length, maxResponse)
	}
	in := make([]byte, length)
	if _, err := io.ReadFull(from, in); err != nil {
		return nil, fmt.Errorf("read the produce response: %w", err)
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
