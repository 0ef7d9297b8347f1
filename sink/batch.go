package sink

import (
	"encoding/binary"
	"hash/crc32"
	"time"
)

// A message is one record to be published.
type message struct {
	key, value []byte // nil: null
	headers    []Header
	letter     *letter // what it was made of, where it may be cut
}

// size is at least what the message takes in a batch.
func (m *message) size() int {
	const framing, perHeader = 32, 10
	size := framing + len(m.key) + len(m.value)
	for _, h := range m.headers {
		size += perHeader + len(h.Key) + len(h.Value)
	}
	return size
}

const attrTransactional = 0x10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendBatch appends a record batch of version 2 (its layout is shown in the
// package consumer), uncompressed, with the numbers by which a broker knows a
// batch that it has already.
func appendBatch(dst []byte, messages []message, now time.Time, producer int64, epoch int16, sequence int32, transactional bool) []byte {
	be := binary.BigEndian
	start := len(dst)
	at := uint64(now.UnixMilli())
	dst = be.AppendUint64(dst, 0) // base offset: the broker's
	dst = be.AppendUint32(dst, 0) // length
	dst = be.AppendUint32(dst, 0xffffffff)
	dst = append(dst, 2, 0, 0, 0, 0) // version, checksum
	attributes := uint16(0)
	if transactional {
		attributes = attrTransactional
	}
	dst = be.AppendUint16(dst, attributes)
	dst = be.AppendUint32(dst, uint32(len(messages)-1))
	dst = be.AppendUint64(be.AppendUint64(dst, at), at)
	dst = be.AppendUint64(dst, uint64(producer))
	dst = be.AppendUint16(dst, uint16(epoch))
	dst = be.AppendUint32(dst, uint32(sequence))
	dst = be.AppendUint32(dst, uint32(len(messages)))
	for i := range messages {
		m := &messages[i]
		length := 2 + varintLen(int64(i)) + bytesLen(m.key) + bytesLen(m.value) + varintLen(int64(len(m.headers)))
		for _, h := range m.headers {
			length += varintLen(int64(len(h.Key))) + len(h.Key) + bytesLen(h.Value)
		}
		dst = binary.AppendVarint(dst, int64(length))
		dst = append(dst, 0, 0) // attributes, and the time since the batch's
		dst = binary.AppendVarint(dst, int64(i))
		dst = appendBytes(appendBytes(dst, m.key), m.value)
		dst = binary.AppendVarint(dst, int64(len(m.headers)))
		for _, h := range m.headers {
			dst = append(binary.AppendVarint(dst, int64(len(h.Key))), h.Key...)
			dst = appendBytes(dst, h.Value)
		}
	}
	batch := dst[start:]
	be.PutUint32(batch[8:], uint32(len(batch)-12))
	be.PutUint32(batch[17:], crc32.Checksum(batch[21:], castagnoli))
	return dst
}

func appendBytes(dst, b []byte) []byte {
	if b == nil {
		return binary.AppendVarint(dst, -1)
	}
	return append(binary.AppendVarint(dst, int64(len(b))), b...)
}

func bytesLen(b []byte) int {
	if b == nil {
		return 1
	}
	return varintLen(int64(len(b))) + len(b)
}

func varintLen(v int64) int {
	n := 1
	for u := uint64(v)<<1 ^ uint64(v>>63); u >= 0x80; u >>= 7 {
		n++
	}
	return n
}
