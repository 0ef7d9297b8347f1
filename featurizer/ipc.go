package featurizer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"unsafe"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	half "github.com/apache/arrow/go/v15/arrow/float16"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/oodmon/oodmon/internal/kernel"
)

const (
	maxMetadata    = 64 << 10 // of a message in a topic
	maxMessageRows = 1 << 16
)

// decodeArrow reads an IPC stream of one or more record batches.
func (b *Builder) decodeArrow(m *Message) error {
	row, before := int32(0), len(b.rejects)
	limits := ipcLimits{metadata: maxMetadata, body: b.cfg.MaxMessageBytes, rows: maxMessageRows}
	err := b.stream.read(m.Value, limits, func(rec arrow.Record) error {
		src, err := newSource(rec)
		if err != nil {
			return err
		}
		if src.dim != anyDim && !b.fits(src.dim) {
			return reject(WrongDimension, "column %s holds %d values a row, expected %d", ColEmbedding, src.dim, b.cfg.Dim)
		}
		if total := int64(row) + rec.NumRows(); total > maxMessageRows {
			return reject(TooLarge, "the message has %d records or more, at most %d are read", total, maxMessageRows)
		}
		for i := range int(rec.NumRows()) {
			values, err := src.embedding(i)
			if err == nil && !b.fits(len(values)) {
				err = reject(WrongDimension, "embedding has %d values, expected %d", len(values), b.cfg.Dim)
			}
			id, label, segment := src.text(colID, i), src.text(colLabel, i), src.text(colSegment, i)
			if err == nil {
				err = checkTexts(BadArrow, id, label, segment)
			}
			micros := int64(0)
			if err == nil {
				var ok bool
				if micros, ok, err = src.micros(i); !ok {
					micros = messageMicros(m)
				}
			}
			if err != nil {
				if err := b.rejectRow(m, row, len(b.rejects)-before, err); err != nil {
					return err
				}
			} else {
				if src.float32s != nil {
					b.columns.lend(values)
				} else {
					b.columns.add(values)
				}
				b.close(m, id, label, segment, micros, row)
			}
			row++
		}
		return nil
	})
	if err != nil {
		if _, ok := errors.AsType[*decodeError](err); ok {
			return err
		}
		return reject(BadArrow, "%w", err)
	}
	if row == 0 {
		return reject(Empty, "no records, expected at least one")
	}
	return nil
}

// A streamReader reads IPC streams that lie in memory. It remembers the schema
// of the last: a topic has few.
type streamReader struct {
	schemaBytes []byte
	schema      *arrow.Schema
	columns     []column
}

// read calls fn with each record batch of a stream. The records share its
// memory. Arrow's own reader copies every buffer twice; here, what the verifier
// has found to be sound is used where it lies.
func (s *streamReader) read(stream []byte, limits ipcLimits, fn func(arrow.Record) error) (err error) {
	v := &verifier{rest: stream, limits: limits}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the Arrow reader failed: %v", p)
		}
	}()
	if n := len(s.schemaBytes); n > 0 && bytes.HasPrefix(stream, s.schemaBytes) {
		v.rest, v.columns = stream[n:], s.columns
	} else if err := s.readSchema(v); err != nil {
		return err
	}
	for {
		if err := v.next(); err != nil {
			return err
		}
		if v.done {
			return nil
		}
		rec, err := v.record(s.schema)
		if err != nil {
			return err
		}
		err = fn(rec)
		rec.Release()
		if err != nil {
			return err
		}
	}
}

// readSchema reads a stream's first message.
func (s *streamReader) readSchema(v *verifier) error {
	s.schemaBytes = s.schemaBytes[:0]
	if err := v.next(); err != nil {
		return err
	}
	if v.columns == nil { // only an end marker
		return errors.New("the stream ends without a schema")
	}
	reader, err := ipc.NewReader(bytes.NewReader(v.message))
	if err != nil {
		return err
	}
	defer reader.Release()
	s.schema, s.columns = reader.Schema(), v.columns
	s.schemaBytes = append(s.schemaBytes, v.message...)
	return nil
}

// record returns the verified record batch that was read last.
func (v *verifier) record(schema *arrow.Schema) (arrow.Record, error) {
	meta := flatbuffer(v.message[8:v.meta])
	_, t, _, err := header(meta)
	if err != nil {
		return nil, err
	}
	rows, err := t.number(0, 8, 0)
	if err != nil {
		return nil, err
	}
	w, err := newBatch(t, v.message[v.meta:])
	if err != nil {
		return nil, err
	}
	columns := make([]arrow.Array, len(schema.Fields()))
	for i, field := range schema.Fields() {
		data, err := w.load(field.Type)
		if err != nil {
			return nil, err
		}
		columns[i] = array.MakeFromData(data)
		data.Release()
	}
	rec := array.NewRecord(schema, columns, rows)
	for _, col := range columns {
		col.Release()
	}
	return rec, nil
}

// load returns the next column.
func (w *batch) load(dt arrow.DataType) (arrow.ArrayData, error) {
	length, nulls, err := w.node()
	if err != nil {
		return nil, err
	}
	buffers, children := 2, []arrow.DataType(nil) // validity, and values
	switch dt := dt.(type) {
	case *arrow.NullType:
		buffers = 0
	case *arrow.StringType, *arrow.BinaryType, *arrow.LargeStringType, *arrow.LargeBinaryType:
		buffers = 3
	case *arrow.ListType:
		children = []arrow.DataType{dt.Elem()}
	case *arrow.LargeListType:
		children = []arrow.DataType{dt.Elem()}
	case *arrow.FixedSizeListType:
		buffers, children = 1, []arrow.DataType{dt.Elem()}
	case *arrow.StructType:
		buffers = 1
		for _, field := range dt.Fields() {
			children = append(children, field.Type)
		}
	}
	all := make([]*memory.Buffer, max(1, buffers))
	for i := range buffers {
		b, err := w.buffer()
		if err != nil {
			return nil, err
		}
		if i > 0 || nulls > 0 {
			all[i] = memory.NewBufferBytes(b)
		}
	}
	var parts []arrow.ArrayData
	for _, child := range children {
		part, err := w.load(child)
		if err != nil {
			return nil, err
		}
		defer part.Release()
		parts = append(parts, part)
	}
	return array.NewData(dt, int(length), all, parts, int(nulls), 0), nil
}

// readIPC calls fn with each record batch of an IPC stream, or of the rest of an
// IPC file after its magic word. Whatever the bytes are, it returns: Arrow's reader sees only messages that the verifier passed,
// can allocate no more than the limits, and its panics become errors.
func readIPC(r io.Reader, limits ipcLimits, file bool, fn func(arrow.Record) error) (err error) {
	v := &verifier{r: r, limits: limits, file: file}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the Arrow reader failed: %v", p)
		}
	}()
	// What it needs is bounded by what the verifier read: the body, and a
	// copy of it.
	reader, err := ipc.NewReader(v, ipc.WithAllocator(&limitedAllocator{left: 2*int64(limits.body) + 1<<20}))
	if err != nil {
		return err
	}
	defer reader.Release()
	for reader.Next() {
		if err := fn(reader.Record()); err != nil {
			return err
		}
	}
	return reader.Err()
}

// A limitedAllocator panics before it gives out more than is left.
type limitedAllocator struct{ left int64 }

func (a *limitedAllocator) Allocate(size int) []byte {
	if a.left -= int64(size); a.left < 0 {
		panic("more memory was asked for than the message can need")
	}
	return memory.DefaultAllocator.Allocate(size)
}

func (a *limitedAllocator) Reallocate(size int, b []byte) []byte {
	if a.left -= int64(size - len(b)); a.left < 0 {
		panic("more memory was asked for than the message can need")
	}
	return memory.DefaultAllocator.Reallocate(size, b)
}

func (a *limitedAllocator) Free(b []byte) {
	a.left += int64(len(b))
	memory.DefaultAllocator.Free(b)
}

// anyDim is the dimension of a column of lists that may differ.
const anyDim = -1

// A source reads the columns that are known from a record of any schema.
type source struct {
	dim       int
	values    func(i int) (start, end int64)
	float32s  []float32
	float64s  []float64
	float16s  []half.Num
	nulls     arrow.Array // the embedding column, for its nulls
	child     arrow.Array
	texts     [3]arrow.Array // id, label and segment; nil where absent
	digits    [3][]byte      // of their row, where they are integers
	timestamp *array.Timestamp
	buffer    []float32
}

func newSource(rec arrow.Record) (*source, error) {
	s := &source{}
	find := func(name string) (arrow.Array, error) {
		at := rec.Schema().FieldIndices(name)
		if len(at) > 1 {
			return nil, reject(BadArrow, "column %s comes %d times", name, len(at))
		}
		if len(at) == 0 {
			return nil, nil
		}
		return rec.Column(at[0]), nil
	}
	embedding, err := find(ColEmbedding)
	if err != nil {
		return nil, err
	}
	switch col := embedding.(type) {
	case nil:
		return nil, reject(BadArrow, "there is no column %s; the columns are %s", ColEmbedding, names(rec.Schema()))
	case *array.FixedSizeList:
		s.dim, s.nulls, s.child = int(col.DataType().(*arrow.FixedSizeListType).Len()), col, col.ListValues()
		offset := int64(col.Offset())
		dim := int64(s.dim)
		s.values = func(i int) (int64, int64) { return (offset + int64(i)) * dim, (offset + int64(i) + 1) * dim }
	case array.ListLike:
		s.dim, s.nulls, s.child = anyDim, col, col.ListValues()
		s.values = col.ValueOffsets
	default:
		return nil, reject(BadArrow, "column %s has type %s, expected a list of float32", ColEmbedding, col.DataType())
	}
	switch child := s.child.(type) {
	case *array.Float32:
		s.float32s = child.Float32Values()
	case *array.Float64:
		s.float64s = child.Float64Values()
	case *array.Float16:
		s.float16s = child.Values()
	default:
		return nil, reject(BadArrow, "column %s has type %s, expected a list of float32", ColEmbedding, s.nulls.DataType())
	}
	for _, c := range []struct {
		name string
		to   *arrow.Array
	}{{ColID, &s.texts[colID]}, {ColLabel, &s.texts[colLabel]}, {ColSegment, &s.texts[colSegment]}} {
		col, err := find(c.name)
		if err != nil {
			return nil, err
		}
		switch col.(type) {
		case nil:
			continue
		case *array.String, *array.LargeString, *array.Int64, *array.Int32, *array.Int16, *array.Int8, *array.Uint64, *array.Uint32, *array.Uint16, *array.Uint8:
		case *array.Null:
			continue
		default:
			return nil, reject(BadArrow, "column %s has type %s, expected utf8 or an integer", c.name, col.DataType())
		}
		*c.to = col
	}
	timestamp, err := find(ColTimestamp)
	if err != nil {
		return nil, err
	}
	switch col := timestamp.(type) {
	case nil:
	case *array.Timestamp:
		s.timestamp = col
	default:
		return nil, reject(BadArrow, "column %s has type %s, expected a timestamp", ColTimestamp, col.DataType())
	}
	return s, nil
}

func names(schema *arrow.Schema) []string {
	var all []string
	for _, f := range schema.Fields() {
		all = append(all, f.Name)
	}
	return all
}

// embedding returns row i's values. They are valid until the next call.
func (s *source) embedding(i int) ([]float32, error) {
	if s.nulls.IsNull(i) {
		return nil, reject(BadArrow, "column %s is null, expected an embedding", ColEmbedding)
	}
	start, end := s.values(i)
	if s.child.NullN() > 0 {
		for j := start; j < end; j++ {
			if s.child.IsNull(int(j)) {
				return nil, reject(BadArrow, "column %s: value %d is null, expected a number", ColEmbedding, j-start)
			}
		}
	}
	if s.float32s != nil {
		return s.float32s[start:end], nil
	}
	s.buffer = s.buffer[:0]
	if s.float16s != nil {
		s.buffer = slices.Grow(s.buffer, int(end-start))[:end-start]
		kernel.WidenFloat16(s.buffer, arrow.Float16Traits.CastToBytes(s.float16s[start:end]))
		return s.buffer, nil
	}
	for j, v := range s.float64s[start:end] {
		if math.Abs(v) > math.MaxFloat32 && !math.IsInf(v, 0) {
			return nil, reject(BadArrow, "column %s: value %d is %g, expected a number within float32", ColEmbedding, j, v)
		}
		s.buffer = append(s.buffer, float32(v))
	}
	return s.buffer, nil
}

// The places of source.texts.
const (
	colID = iota
	colLabel
	colSegment
)

// text returns row i of a column of texts or integers. It is valid until the
// next call for that column.
func (s *source) text(which, i int) optional {
	col := s.texts[which]
	if col == nil || col.IsNull(i) {
		return optional{}
	}
	switch col := col.(type) {
	case *array.String:
		return optional{bytesOf(col.Value(i)), true}
	case *array.LargeString:
		return optional{bytesOf(col.Value(i)), true}
	case *array.Int64:
		s.digits[which] = strconv.AppendInt(s.digits[which][:0], col.Value(i), 10)
		return optional{s.digits[which], true}
	case *array.Uint64:
		s.digits[which] = strconv.AppendUint(s.digits[which][:0], col.Value(i), 10)
		return optional{s.digits[which], true}
	default:
		return optional{[]byte(col.ValueStr(i)), true}
	}
}

// bytesOf returns the bytes of s, which must not be written to.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// micros returns row i's timestamp in microseconds; ok is false where it has none.
func (s *source) micros(i int) (micros int64, ok bool, err error) {
	if s.timestamp == nil || s.timestamp.IsNull(i) {
		return 0, false, nil
	}
	unit := s.timestamp.DataType().(*arrow.TimestampType).Unit
	at := s.timestamp.Value(i).ToTime(unit)
	if seconds := at.Unix(); seconds < minMicros/1_000_000 || seconds > maxMicros/1_000_000 {
		return 0, false, reject(BadArrow, "column %s is %d %s since 1970, expected a time of the years 0 to 9999", ColTimestamp, s.timestamp.Value(i), unit)
	}
	return at.UnixMicro(), true, nil
}
