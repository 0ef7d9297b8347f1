// Package arrowcol collects the columns of Arrow records in memory that is used
// again from record to record, where Arrow's own builders give theirs away with
// each. The records share that memory: they are valid until the next row is
// appended.
package arrowcol

import (
	"unsafe"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

// A Text is a utf8 column. Its zero value is empty.
type Text struct {
	offsets []int32
	bytes   []byte
	valid   []byte // bitmap
	nulls   int
}

// Append adds a value.
func (t *Text) Append(value []byte) {
	t.bytes = append(t.bytes, value...)
	t.close(true)
}

// AppendString adds a value.
func (t *Text) AppendString(value string) {
	t.bytes = append(t.bytes, value...)
	t.close(true)
}

// AppendNull adds a row without a value.
func (t *Text) AppendNull() {
	t.nulls++
	t.close(false)
}

func (t *Text) close(valid bool) {
	if len(t.offsets) == 0 {
		t.offsets = append(t.offsets, 0)
	}
	i := len(t.offsets) - 1
	if i%8 == 0 {
		t.valid = append(t.valid, 0)
	}
	if valid {
		t.valid[i/8] |= 1 << (i % 8)
	}
	t.offsets = append(t.offsets, int32(len(t.bytes)))
}

// Truncate drops the rows from n on.
func (t *Text) Truncate(n int) {
	if len(t.offsets) == 0 {
		return
	}
	for i := n; t.nulls > 0 && i < len(t.offsets)-1; i++ {
		if t.valid[i/8]&(1<<(i%8)) == 0 {
			t.nulls--
		}
	}
	t.offsets = t.offsets[:n+1]
	t.bytes = t.bytes[:t.offsets[n]]
	t.valid = t.valid[:(n+7)/8]
	if n%8 > 0 {
		t.valid[n/8] &= 1<<(n%8) - 1
	}
}

// Data returns the column.
func (t *Text) Data() arrow.ArrayData {
	n := max(0, len(t.offsets)-1)
	return newArray(arrow.BinaryTypes.String, n, t.nulls, t.valid, Bytes(t.offsets), t.bytes)
}

// A Bool is a column of truth values. Its zero value is empty.
type Bool struct {
	bits []byte
	n    int
}

// Append adds a value.
func (b *Bool) Append(value bool) {
	if b.n%8 == 0 {
		b.bits = append(b.bits, 0)
	}
	if value {
		b.bits[b.n/8] |= 1 << (b.n % 8)
	}
	b.n++
}

// Reset drops all rows.
func (b *Bool) Reset() { b.bits, b.n = b.bits[:0], 0 }

// Data returns the column.
func (b *Bool) Data() arrow.ArrayData {
	return newArray(arrow.FixedWidthTypes.Boolean, b.n, 0, nil, b.bits)
}

// Fixed returns a column of values of type dt, without nulls.
func Fixed[T Number](dt arrow.DataType, values []T) arrow.ArrayData {
	return newArray(dt, len(values), 0, nil, Bytes(values))
}

// Lists returns a column of n fixed-size lists of float32, whose values stand
// one after the other.
func Lists(dt arrow.DataType, n int, values []float32) arrow.ArrayData {
	child := Fixed(arrow.PrimitiveTypes.Float32, values)
	defer child.Release()
	return array.NewData(dt, n, []*memory.Buffer{nil}, []arrow.ArrayData{child}, 0, 0)
}

// Record joins the columns, n rows each, and releases them.
func Record(schema *arrow.Schema, n int, data ...arrow.ArrayData) arrow.Record {
	cols := make([]arrow.Array, len(data))
	for i, d := range data {
		cols[i] = array.MakeFromData(d)
		d.Release()
	}
	rec := array.NewRecord(schema, cols, int64(n))
	for _, col := range cols {
		col.Release()
	}
	return rec
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

// A Number is a value of fixed width.
type Number interface{ float32 | int32 | int64 }

// Floats returns little-endian bytes as what they hold. They need not be
// aligned: where Go runs Arrow, loads may be at any address.
func Floats(b []byte) []float32 {
	if len(b) < 4 {
		return nil
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(&b[0])), len(b)/4)
}

// Bytes returns the memory of values as bytes: Arrow's buffers are
// little-endian, as every machine that Go runs Arrow on.
func Bytes[T Number](values []T) []byte {
	if len(values) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&values[0])), len(values)*int(unsafe.Sizeof(values[0])))
}
