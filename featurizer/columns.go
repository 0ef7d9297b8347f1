package featurizer

import (
	"unsafe"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// columns collect the rows of one record in memory that is used again for the
// next. Nothing is copied when they become an Arrow record.
type columns struct {
	schema    *arrow.Schema
	dim       int
	embedding []float32
	id        texts
	label     texts
	segment   texts
	timestamp []int64
	partition []int32
	offset    []int64
	row       []int32
}

func newColumns(dim int) columns { return columns{schema: EmbeddingSchema(dim), dim: dim} }

func (c *columns) len() int { return len(c.row) }

// truncate drops the rows from n on.
func (c *columns) truncate(n int) {
	c.embedding = c.embedding[:n*c.dim]
	c.id.truncate(n)
	c.label.truncate(n)
	c.segment.truncate(n)
	c.timestamp, c.partition, c.offset, c.row = c.timestamp[:n], c.partition[:n], c.offset[:n], c.row[:n]
}

// A place is where a row came from.
type place struct {
	partition int32
	offset    int64
	row       int32
}

// close ends a row whose embedding was appended already.
func (c *columns) close(id []byte, label, segment optional, micros int64, at place) {
	c.id.append(optional{id, true})
	c.label.append(label)
	c.segment.append(segment)
	c.timestamp = append(c.timestamp, micros)
	c.partition = append(c.partition, at.partition)
	c.offset = append(c.offset, at.offset)
	c.row = append(c.row, at.row)
}

// record returns the rows as an Arrow record. It shares memory with c: it is
// valid until the next row is appended.
func (c *columns) record() arrow.Record {
	n := c.len()
	values := newArray(arrow.PrimitiveTypes.Float32, len(c.embedding), 0, nil, bytesOf(c.embedding))
	defer values.Release()
	list := array.NewData(c.schema.Field(1).Type, n, []*memory.Buffer{nil}, []arrow.ArrayData{values}, 0, 0)
	all := []arrow.ArrayData{
		c.id.data(), list, c.label.data(), c.segment.data(),
		newArray(timestampType, n, 0, nil, bytesOf(c.timestamp)),
		newArray(arrow.PrimitiveTypes.Int32, n, 0, nil, bytesOf(c.partition)),
		newArray(arrow.PrimitiveTypes.Int64, n, 0, nil, bytesOf(c.offset)),
		newArray(arrow.PrimitiveTypes.Int32, n, 0, nil, bytesOf(c.row)),
	}
	cols := make([]arrow.Array, len(all))
	for i, data := range all {
		cols[i] = array.MakeFromData(data)
		data.Release()
	}
	rec := array.NewRecord(c.schema, cols, int64(n))
	for _, col := range cols {
		col.Release()
	}
	return rec
}

// An optional is a text that may be absent.
type optional struct {
	text  []byte
	valid bool
}

// texts are a utf8 column.
type texts struct {
	offsets []int32
	bytes   []byte
	valid   []byte // bitmap
	nulls   int
}

func (t *texts) append(v optional) {
	if len(t.offsets) == 0 {
		t.offsets = append(t.offsets, 0)
	}
	i := len(t.offsets) - 1
	if i%8 == 0 {
		t.valid = append(t.valid, 0)
	}
	if v.valid {
		t.valid[i/8] |= 1 << (i % 8)
		t.bytes = append(t.bytes, v.text...)
	} else {
		t.nulls++
	}
	t.offsets = append(t.offsets, int32(len(t.bytes)))
}

func (t *texts) truncate(n int) {
	if len(t.offsets) == 0 {
		return
	}
	for i := n; i < len(t.offsets)-1; i++ {
		if t.valid[i/8]&(1<<(i%8)) == 0 {
			t.nulls--
		}
		t.valid[i/8] &^= 1 << (i % 8)
	}
	t.offsets = t.offsets[:n+1]
	t.bytes = t.bytes[:t.offsets[n]]
	t.valid = t.valid[:(n+7)/8]
}

func (t *texts) data() arrow.ArrayData {
	n := max(0, len(t.offsets)-1)
	return newArray(arrow.BinaryTypes.String, n, t.nulls, t.valid, bytesOf(t.offsets), t.bytes)
}

func newArray(dt arrow.DataType, n, nulls int, valid []byte, buffers ...[]byte) arrow.ArrayData {
	all := make([]*memory.Buffer, 1, 1+len(buffers))
	if nulls > 0 {
		all[0] = memory.NewBufferBytes(valid)
	}
	for _, b := range buffers {
		all = append(all, memory.NewBufferBytes(b))
	}
	return array.NewData(dt, n, all, nil, nulls, 0)
}

// bytesOf returns the memory of values as bytes: Arrow's buffers are
// little-endian, as every machine that Go runs Arrow on.
func bytesOf[T float32 | int32 | int64](values []T) []byte {
	if len(values) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&values[0])), len(values)*int(unsafe.Sizeof(values[0])))
}
