package consumer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	fetchAPI "github.com/segmentio/kafka-go/protocol/fetch"
)

const (
	minFetchVersion = 4  // the first with isolation levels
	maxFetchVersion = 11 // the last before flexible encodings
)

// readPortion is how much is read at once: what stays in a second-level cache
// until its checksum is taken.
const readPortion = 64 << 10

// batchLimit bounds the bytes of one record batch that are held in memory,
// compressed or not. Brokers limit batches to max.message.bytes, 1 MB by
// default.
const batchLimit = 64 << 20

// A fetchRequest reads one partition. It writes and reads its own bytes, since
// kafka-go's decoder trusts the counts and the compressed sizes that it finds,
// copies every value out of pages, and hides the aborted transactions.
type fetchRequest struct {
	topic     string
	partition int32
	offset    int64
	maxBytes  int32
	maxWait   int32 // ms
	clientID  string
	version   int16
	limit     int    // bytes of records to keep at most
	buf       []byte // for the records, reused
}

// A fetchResponse is what the leader answered for the one partition.
type fetchResponse struct {
	errorCode        int16
	highWatermark    int64
	lastStableOffset int64
	logStartOffset   int64
	aborted          []abortedTransaction
	records          []byte
	verified         int   // bytes of whole batches at their beginning whose checksums are right
	tooLarge         int64 // bytes of the first batch, where they are more than the limit; records is its header then
}

// next returns the offset that follows the last whole batch of the response, or
// 0 where there is none, and how large the batch is that was cut off at its end,
// or else the last.
func (r *fetchResponse) next() (offset, size int64) {
	be := binary.BigEndian
	for data := r.records; r.tooLarge == 0 && len(data) >= messageHeader; {
		length := 12 + int64(int32(be.Uint32(data[8:])))
		if length < messageHeader {
			break
		}
		size = length
		if length > int64(len(data)) {
			break
		}
		offset = int64(be.Uint64(data)) + 1
		if data[16] == 2 && length >= batchHeader {
			offset += int64(int32(be.Uint32(data[23:])))
		}
		data = data[length:]
	}
	return offset, size
}

// portion returns how many bytes to ask for where the batches are of about the
// given size: whole ones. A broker fills its response to the last byte, and what
// it cuts off is sent again: half of all bytes where two batches just don't fit.
func portion(maxBytes int, size int64) int {
	if size <= 0 || size > int64(maxBytes) {
		return maxBytes
	}
	n := int64(maxBytes) / size
	return int(min(int64(maxBytes), n*size+size/32)) // they may differ a little
}

// An abortedTransaction drops what a producer wrote from an offset on, up to
// its abort marker.
type abortedTransaction struct{ producer, first int64 }

func (*fetchRequest) ApiKey() protocol.ApiKey  { return protocol.Fetch }
func (*fetchResponse) ApiKey() protocol.ApiKey { return protocol.Fetch }

// Broker routes the request to the leader of its partition.
func (r *fetchRequest) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	return (&fetchAPI.Request{Topics: []fetchAPI.RequestTopic{{
		Topic: r.topic, Partitions: []fetchAPI.RequestPartition{{Partition: r.partition}},
	}}}).Broker(cluster)
}

// Required makes kafka-go call RawExchange.
func (r *fetchRequest) Required(versions map[protocol.ApiKey]int16) bool {
	r.version = min(versions[protocol.Fetch], maxFetchVersion)
	return true
}

// RawExchange writes the request and reads the response.
func (r *fetchRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if r.version < minFetchVersion {
		return nil, fmt.Errorf("the broker answers fetch requests up to version %d, expected %d (Kafka 0.11) or later: %w", r.version, minFetchVersion, kafka.UnsupportedVersion)
	}
	if _, err := rw.Write(r.encode()); err != nil {
		return nil, err
	}
	return r.decode(rw)
}

func (r *fetchRequest) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, 4, 128+len(r.topic)+len(r.clientID))
	str := func(s string) {
		b = be.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	const none = ^uint32(0) // -1
	b = be.AppendUint16(b, uint16(protocol.Fetch))
	b = be.AppendUint16(b, uint16(r.version))
	b = be.AppendUint32(b, 0) // correlation: one request at a time
	str(r.clientID)
	b = be.AppendUint32(b, none) // replica
	b = be.AppendUint32(b, uint32(r.maxWait))
	b = be.AppendUint32(b, 1) // min bytes
	b = be.AppendUint32(b, uint32(r.maxBytes))
	b = append(b, byte(kafka.ReadCommitted))
	if r.version >= 7 {
		b = be.AppendUint32(b, 0)    // no session
		b = be.AppendUint32(b, none) // session epoch
	}
	b = be.AppendUint32(b, 1)
	str(r.topic)
	b = be.AppendUint32(b, 1)
	b = be.AppendUint32(b, uint32(r.partition))
	if r.version >= 9 {
		b = be.AppendUint32(b, none) // leader epoch
	}
	b = be.AppendUint64(b, uint64(r.offset))
	if r.version >= 5 {
		b = be.AppendUint64(b, ^uint64(0)) // log start offset: for followers
	}
	b = be.AppendUint32(b, uint32(r.maxBytes))
	if r.version >= 7 {
		b = be.AppendUint32(b, 0) // forgotten topics
	}
	if r.version >= 11 {
		str("") // rack
	}
	be.PutUint32(b, uint32(len(b)-4))
	return b
}

// decode reads a response. What it holds beyond the partition's records is
// small; their size is checked before memory is taken for it.
func (r *fetchRequest) decode(from io.Reader) (*fetchResponse, error) {
	var size [4]byte
	if _, err := io.ReadFull(from, size[:]); err != nil {
		return nil, err
	}
	in := &wireReader{from: from, remain: int64(binary.BigEndian.Uint32(size[:]))}
	in.int32() // correlation
	in.int32() // throttle time: the broker has waited already
	out := &fetchResponse{}
	r.buf = r.buf[:0]
	if r.version >= 7 {
		out.errorCode = in.int16()
		in.int32() // session
	}
	topics := in.int32()
	if in.err == nil && topics == 0 && out.errorCode != 0 {
		return out, nil
	}
	if in.err == nil && topics != 1 {
		return nil, fmt.Errorf("the fetch response holds %d topics, expected 1", topics)
	}
	in.skip(int64(in.int16())) // its name
	if partitions := in.int32(); in.err == nil && partitions != 1 {
		return nil, fmt.Errorf("the fetch response holds %d partitions, expected 1", partitions)
	}
	if partition := in.int32(); in.err == nil && partition != r.partition {
		return nil, fmt.Errorf("the fetch response is for partition %d, expected %d", partition, r.partition)
	}
	if code := in.int16(); code != 0 {
		out.errorCode = code
	}
	out.highWatermark = in.int64()
	out.lastStableOffset = in.int64()
	if r.version >= 5 {
		out.logStartOffset = in.int64()
	}
	aborted := in.int32() // -1: none
	if int64(aborted) > in.remain/16 {
		return nil, fmt.Errorf("the fetch response claims %d aborted transactions in %d bytes", aborted, in.remain)
	}
	for i := int32(0); i < aborted && in.err == nil; i++ { // both may be claimed, and nothing come
		out.aborted = append(out.aborted, abortedTransaction{producer: in.int64(), first: in.int64()})
	}
	if r.version >= 11 {
		in.int32() // preferred replica: only with a rack
	}
	if n := in.int32(); n > 0 {
		r.readRecords(in, int64(n), out)
	}
	in.skip(in.remain)
	if in.err != nil {
		return nil, fmt.Errorf("read the fetch response: %w", in.err)
	}
	return out, nil
}

func (r *fetchRequest) readRecords(in *wireReader, n int64, out *fetchResponse) {
	if n > in.remain {
		in.fail(fmt.Errorf("it claims %d bytes of records, and has %d left", n, in.remain))
		return
	}
	keep := min(n, int64(r.limit))
	start := 0
	if n > keep && keep > batchHeader { // see whether even the first batch is too large
		r.buf = append(r.buf[:0], make([]byte, batchHeader)...)
		in.read(r.buf)
		if first := 12 + int64(int32(binary.BigEndian.Uint32(r.buf[8:]))); first > keep {
			out.tooLarge, out.records = first, r.buf
			return
		}
		start = batchHeader
	}
	if int64(cap(r.buf)) < keep {
		grown := make([]byte, keep, keep+keep/16) // the next is often a little larger
		copy(grown, r.buf[:start])
		r.buf = grown
	}
	r.buf = r.buf[:keep]
	var sums verifier
	for done := start; done < len(r.buf) && in.err == nil; {
		n := min(len(r.buf)-done, readPortion)
		in.read(r.buf[done : done+n])
		done += n
		sums.verify(r.buf[:done])
	}
	out.records, out.verified = r.buf, sums.start
}

var errShort = errors.New("it ends early")

// A wireReader reads big-endian numbers, and no further than the response goes.
type wireReader struct {
	from   io.Reader
	remain int64
	err    error
	buf    [8]byte
}

func (w *wireReader) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *wireReader) read(b []byte) {
	if w.err != nil {
		return
	}
	if int64(len(b)) > w.remain {
		w.err = errShort
		return
	}
	w.remain -= int64(len(b))
	_, w.err = io.ReadFull(w.from, b)
}

func (w *wireReader) number(n int) uint64 {
	b := w.buf[:n]
	if w.read(b); w.err != nil {
		return 0
	}
	var v uint64
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}

func (w *wireReader) int16() int16 { return int16(w.number(2)) }
func (w *wireReader) int32() int32 { return int32(w.number(4)) }
func (w *wireReader) int64() int64 { return int64(w.number(8)) }

// uvarint reads a number of the compact encodings. None of ours is large.
func (w *wireReader) uvarint() int64 {
	v := int64(0)
	for shift := 0; shift < 35; shift += 7 {
		b := int64(w.number(1))
		if v |= b & 0x7f << shift; b < 0x80 {
			return v
		}
	}
	w.fail(errors.New("it holds a number of more than 35 bits"))
	return 0
}

// tags skips tagged fields.
func (w *wireReader) tags() {
	for n := w.uvarint(); n > 0 && w.err == nil; n-- {
		w.uvarint()
		w.skip(w.uvarint())
	}
}

func (w *wireReader) skip(n int64) {
	if w.err != nil || n <= 0 {
		return
	}
	if n > w.remain {
		w.err = errShort
		return
	}
	w.remain -= n
	_, w.err = io.CopyN(io.Discard, w.from, n)
}
