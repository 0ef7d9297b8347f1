package sink

import (
	"encoding/binary"
	"hash/crc32"
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

// A record batch of version 2 is a header (its layout is shown in the package
// consumer) and its records.
const batchHeader = 61

// appendRecord appends a message as the i-th record of a batch.
func appendRecord(dst []byte, i int, m *message) []byte {
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
	return dst
}

// noTimestamp stands for none.
const noTimestamp = -1

// finishBatch fills in the header of a batch of n records, uncompressed, with their
// timestamp in ms, and with the numbers by which a broker knows a batch that it has already.
func finishBatch(batch []byte, n int, timestamp, producer int64, epoch int16, sequence int32, transactional bool) {
	be := binary.BigEndian
	at := uint64(timestamp)
	be.PutUint64(batch, 0) // base offset: the broker's
	be.PutUint32(batch[8:], uint32(len(batch)-12))
	be.PutUint32(batch[12:], 0xffffffff)
	batch[16] = 2 // version
	attributes := uint16(0)
	if transactional {
		attributes = attrTransactional
	}
	be.PutUint16(batch[21:], attributes)
	be.PutUint32(batch[23:], uint32(n-1))
	be.PutUint64(batch[27:], at)
	be.PutUint64(batch[35:], at)
	be.PutUint64(batch[43:], uint64(producer))
	be.PutUint16(batch[51:], uint16(epoch))
	be.PutUint32(batch[53:], uint32(sequence))
	be.PutUint32(batch[57:], uint32(n))
	be.PutUint32(batch[17:], crc32.Checksum(batch[21:], castagnoli))
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
