package featurizer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The kinds of message headers and of types, by the format's unions.
const (
	headerSchema      = 1
	headerRecordBatch = 3

	typeNull            = 1
	typeInt             = 2
	typeFloatingPoint   = 3
	typeBinary          = 4
	typeUtf8            = 5
	typeBool            = 6
	typeDate            = 8
	typeTime            = 9
	typeTimestamp       = 10
	typeList            = 12
	typeStruct          = 13
	typeFixedSizeBinary = 15
	typeFixedSizeList   = 16
	typeDuration        = 18
	typeLargeBinary     = 19
	typeLargeUtf8       = 20
	typeLargeList       = 21
)

const (
	maxFields = 1024
	maxDepth  = 8
)

// fileMagic begins and ends an IPC file.
const fileMagic = "ARROW1"

// continuation begins every message of a stream.
var continuation = []byte{0xff, 0xff, 0xff, 0xff}

// Limits of what is read from an IPC stream.
type ipcLimits struct {
	metadata int // bytes of one message's metadata
	body     int // bytes of one message's body
	rows     int // of one record batch
}

// A column is a verified field: what is needed to check its buffers.
type column struct {
	name     string
	kind     int64
	width    int // bits of a value; of a list, its fixed size
	children []column
}

// A verifier is an io.Reader that passes on an IPC stream, message by message,
// each only after it was found to be sound. What it returns from Read is what
// Arrow's reader may believe. Without r the stream lies in memory: the messages
// are then taken off its front, and nothing is copied.
type verifier struct {
	r       io.Reader
	rest    []byte // of a stream in memory
	limits  ipcLimits
	file    bool   // a footer may follow the messages
	message []byte // the verified message
	meta    int    // where its body begins
	pending []byte // what of it was not read yet
	columns []column
	done    bool
}

func (v *verifier) Read(p []byte) (int, error) {
	for len(v.pending) == 0 {
		if v.done {
			return 0, io.EOF
		}
		if err := v.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, v.pending)
	v.pending = v.pending[n:]
	return n, nil
}

// next reads and verifies one message.
func (v *verifier) next() error {
	v.message = v.message[:0]
	if v.r == nil {
		v.message = v.rest[:0]
	}
	if err := v.take(4); err != nil {
		if errors.Is(err, io.EOF) && v.columns != nil {
			v.done = true // a stream may end without its end marker
			return nil
		}
		return fmt.Errorf("a message's beginning: %w", unexpected(err))
	}
	if string(v.message) != string(continuation) {
		if v.file && v.columns != nil && v.atFooter() {
			v.done = true
			return nil
		}
		return fmt.Errorf("a message begins with % x, expected % x", v.message, continuation)
	}
	if err := v.take(4); err != nil {
		return fmt.Errorf("a message's length: %w", unexpected(err))
	}
	length := int(int32(binary.LittleEndian.Uint32(v.message[4:])))
	if length == 0 {
		v.done = true
		v.pending = v.message
		return nil
	}
	if length < 8 || length > v.limits.metadata {
		return fmt.Errorf("a message's metadata claims %d bytes, expected 8 to %d", length, v.limits.metadata)
	}
	if err := v.take(length); err != nil {
		return fmt.Errorf("a message's metadata: %w", unexpected(err))
	}
	body, err := v.verifyMessage(flatbuffer(v.message[8 : 8+length]))
	if err != nil {
		return err
	}
	start := len(v.message)
	if err := v.take(body); err != nil {
		return fmt.Errorf("a message's body: %w", unexpected(err))
	}
	if err := v.verifyBody(flatbuffer(v.message[8:start]), v.message[start:]); err != nil {
		return err
	}
	v.pending, v.meta = v.message, start
	return nil
}

// atFooter reports whether the rest of an IPC file is its footer: some writers
// put no end marker before it. The file ends with the footer's length and a
// magic word.
func (v *verifier) atFooter() bool {
	begun := len(v.message)
	for len(v.message) <= v.limits.metadata {
		if err := v.take(1 << 10); err != nil {
			break
		}
	}
	rest := len(v.message)
	if begun != 4 || rest < 14 || string(v.message[rest-len(fileMagic):]) != fileMagic {
		return false
	}
	return int(binary.LittleEndian.Uint32(v.message[rest-10:])) == rest-10
}

// take reads n more bytes of the message. It allocates no more than twice what
// has really come.
func (v *verifier) take(n int) error {
	if v.r == nil {
		got := min(n, len(v.rest))
		v.message, v.rest = v.message[:len(v.message)+got], v.rest[got:]
		switch {
		case got == n:
			return nil
		case got == 0:
			return io.EOF
		}
		return io.ErrUnexpectedEOF
	}
	const step = 1 << 20
	for n > 0 {
		part := min(n, step)
		start := len(v.message)
		v.message = append(v.message, make([]byte, part)...)
		got, err := io.ReadFull(v.r, v.message[start:])
		if err != nil {
			v.message = v.message[:start+got]
			return err
		}
		n -= part
	}
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// header returns a message's kind, header table and body length.
func header(b flatbuffer) (kind int64, t table, body int64, err error) {
	root, err := b.follow(0)
	if err != nil {
		return 0, t, 0, err
	}
	message, err := b.table(root)
	if err != nil {
		return 0, t, 0, err
	}
	version, err := message.number(0, 2, 0)
	if err != nil {
		return 0, t, 0, err
	}
	if version != 4 { // V5
		return 0, t, 0, fmt.Errorf("metadata version V%d, expected V5", version+1)
	}
	if kind, err = message.number(1, 1, 0); err != nil {
		return 0, t, 0, err
	}
	t, ok, err := message.child(2)
	if err != nil {
		return 0, t, 0, err
	}
	if !ok {
		return 0, t, 0, errors.New("a message without a header")
	}
	if body, err = message.number(3, 8, 0); err != nil {
		return 0, t, 0, err
	}
	return kind, t, body, message.pairs(4)
}

// verifyMessage checks the metadata and returns the body's length.
func (v *verifier) verifyMessage(b flatbuffer) (int, error) {
	kind, t, body, err := header(b)
	if err != nil {
		return 0, err
	}
	if body < 0 || body > int64(v.limits.body) || body%8 != 0 {
		return 0, fmt.Errorf("a message's body claims %d bytes, expected a multiple of 8 up to %d", body, v.limits.body)
	}
	switch {
	case kind == headerSchema && v.columns == nil:
		if body != 0 {
			return 0, fmt.Errorf("the schema claims a body of %d bytes, expected none", body)
		}
		return 0, v.verifySchema(t)
	case kind == headerRecordBatch && v.columns != nil:
		return int(body), nil
	}
	return 0, fmt.Errorf("a message of kind %d, expected a schema (%d) and then record batches (%d); dictionaries are not read", kind, headerSchema, headerRecordBatch)
}

func (v *verifier) verifySchema(t table) error {
	endian, err := t.number(0, 2, 0)
	if err != nil {
		return err
	}
	if endian != 0 {
		return errors.New("the schema says big-endian, expected little-endian")
	}
	if err := t.pairs(2); err != nil {
		return err
	}
	if _, _, err := t.vector(3, 8); err != nil {
		return err
	}
	left := maxFields
	columns, err := verifyFields(t, 1, maxDepth, &left)
	if err != nil {
		return err
	}
	if len(columns) == 0 {
		return errors.New("the schema has no fields")
	}
	v.columns = columns
	return nil
}

// verifyFields checks the fields in slot n of t.
func verifyFields(t table, n, depth int, left *int) ([]column, error) {
	fields, err := t.tables(n)
	if err != nil {
		return nil, err
	}
	if *left -= len(fields); *left < 0 || depth == 0 {
		return nil, fmt.Errorf("the schema has more than %d fields, or nests them deeper than %d", maxFields, maxDepth)
	}
	columns := make([]column, len(fields))
	for i, f := range fields {
		if columns[i], err = verifyField(f, depth, left); err != nil {
			return nil, err
		}
	}
	return columns, nil
}

func verifyField(f table, depth int, left *int) (c column, err error) {
	if c.name, err = f.text(0); err != nil {
		return c, err
	}
	fail := func(err error) (column, error) { return c, fmt.Errorf("field %.40q: %w", c.name, err) }
	if _, err := f.number(1, 1, 0); err != nil {
		return fail(err)
	}
	if _, ok, err := f.child(4); err != nil {
		return fail(err)
	} else if ok {
		return fail(errors.New("is dictionary-encoded, which is not read: write it as plain utf8"))
	}
	if err := f.pairs(6); err != nil {
		return fail(err)
	}
	if c.kind, err = f.number(2, 1, 0); err != nil {
		return fail(err)
	}
	t, ok, err := f.child(3)
	if err != nil {
		return fail(err)
	}
	if !ok {
		return fail(errors.New("has no type"))
	}
	if c.children, err = verifyFields(f, 5, depth-1, left); err != nil {
		return fail(err)
	}
	if err := c.verifyType(t); err != nil {
		return fail(err)
	}
	return c, nil
}

// verifyType checks the parameters of a field's type.
func (c *column) verifyType(t table) error {
	children := 0
	switch c.kind {
	case typeNull, typeBinary, typeUtf8, typeLargeBinary, typeLargeUtf8:
	case typeBool:
		c.width = 1
	case typeInt:
		bits, err := t.number(0, 4, 0)
		if err != nil {
			return err
		}
		if _, err := t.number(1, 1, 0); err != nil {
			return err
		}
		if bits != 8 && bits != 16 && bits != 32 && bits != 64 {
			return fmt.Errorf("an integer of %d bits", bits)
		}
		c.width = int(bits)
	case typeFloatingPoint:
		precision, err := t.number(0, 2, 0)
		if err != nil {
			return err
		}
		if precision < 0 || precision > 2 {
			return fmt.Errorf("a float of precision %d", precision)
		}
		c.width = 16 << precision
	case typeDate:
		unit, err := t.number(0, 2, 1)
		if err != nil {
			return err
		}
		if c.width = 32; unit == 1 {
			c.width = 64
		}
	case typeTime:
		bits, err := t.number(1, 4, 32)
		if err != nil {
			return err
		}
		unit, err := t.number(0, 2, 1)
		if err != nil {
			return err
		}
		if (bits != 32 || unit > 1) && (bits != 64 || unit < 2) || unit < 0 || unit > 3 {
			return fmt.Errorf("a time of %d bits in unit %d", bits, unit)
		}
		c.width = int(bits)
	case typeTimestamp, typeDuration:
		unit, err := t.number(0, 2, 0)
		if err != nil {
			return err
		}
		if unit < 0 || unit > 3 {
			return fmt.Errorf("a time unit of %d", unit)
		}
		if c.kind == typeTimestamp {
			if _, err := t.text(1); err != nil {
				return err
			}
		}
		c.width = 64
	case typeFixedSizeBinary, typeFixedSizeList:
		size, err := t.number(0, 4, 0)
		if err != nil {
			return err
		}
		if size < 1 || size > 1<<20 {
			return fmt.Errorf("a fixed size of %d, expected 1 to %d", size, 1<<20)
		}
		c.width = int(size)
		if c.kind == typeFixedSizeList {
			children = 1
		}
	case typeList, typeLargeList:
		children = 1
	case typeStruct:
		children = len(c.children)
	default:
		return fmt.Errorf("has type %d of the format, which is not read", c.kind)
	}
	if len(c.children) != children {
		return fmt.Errorf("has %d child fields, expected %d", len(c.children), children)
	}
	return nil
}

// A batch walks the nodes and buffers of a record batch.
type batch struct {
	meta           flatbuffer
	body           []byte
	nodes, buffers int // where the next lies
	nodesLeft      int
	buffersLeft    int
}

// verifyBody checks every node and buffer of a record batch against the schema
// and the body. For other messages there is nothing to check.
func (v *verifier) verifyBody(b flatbuffer, body []byte) error {
	kind, t, _, err := header(b)
	if err != nil || kind != headerRecordBatch {
		return err
	}
	rows, err := t.number(0, 8, 0)
	if err != nil {
		return err
	}
	if rows < 0 || rows > int64(v.limits.rows) {
		return fmt.Errorf("a record batch claims %d rows, expected 0 to %d", rows, v.limits.rows)
	}
	if _, ok, err := t.child(3); err != nil {
		return err
	} else if ok {
		return errors.New("the record batch is compressed, which is not read: write it uncompressed")
	}
	if _, n, err := t.vector(4, 8); err != nil {
		return err
	} else if n != 0 {
		return errors.New("the record batch has variadic buffers, which are not read")
	}
	w, err := newBatch(t, body)
	if err != nil {
		return err
	}
	for _, c := range v.columns {
		if err := w.column(&c, rows, true); err != nil {
			return fmt.Errorf("column %.40q: %w", c.name, err)
		}
	}
	if w.nodesLeft != 0 || w.buffersLeft != 0 {
		return fmt.Errorf("the record batch has %d nodes and %d buffers too many for its schema", w.nodesLeft, w.buffersLeft)
	}
	return nil
}

// newBatch begins at a record batch's first column.
func newBatch(t table, body []byte) (w batch, err error) {
	w = batch{meta: t.buf, body: body}
	if w.nodes, w.nodesLeft, err = t.vector(1, 16); err != nil {
		return w, err
	}
	w.buffers, w.buffersLeft, err = t.vector(2, 16)
	return w, err
}

// node returns the next node.
func (w *batch) node() (length, nulls int64, err error) {
	if w.nodesLeft--; w.nodesLeft < 0 {
		return 0, 0, errors.New("has no node")
	}
	if length, err = w.meta.i64(w.nodes); err != nil {
		return 0, 0, err
	}
	if nulls, err = w.meta.i64(w.nodes + 8); err != nil {
		return 0, 0, err
	}
	w.nodes += 16
	return length, nulls, nil
}

// column checks one column of at least rows rows; of exactly so many where
// exact is set.
func (w *batch) column(c *column, rows int64, exact bool) error {
	length, nulls, err := w.node()
	if err != nil {
		return err
	}
	if length < rows || exact && length != rows || length > int64(8*len(w.body)) && c.kind != typeNull || nulls < 0 || nulls > length {
		return fmt.Errorf("a node claims %d values of which %d null, expected %d", length, nulls, rows)
	}
	if c.kind == typeNull {
		return nil
	}
	valid, err := w.buffer()
	if err != nil {
		return err
	}
	if nulls > 0 && int64(len(valid)) < (length+7)/8 {
		return fmt.Errorf("a validity bitmap of %d bytes for %d values", len(valid), length)
	}
	switch c.kind {
	case typeUtf8, typeBinary, typeLargeUtf8, typeLargeBinary:
		offsets, err := w.buffer()
		if err != nil {
			return err
		}
		data, err := w.buffer()
		if err != nil {
			return err
		}
		return checkOffsets(offsets, length, int64(len(data)), c.kind == typeLargeUtf8 || c.kind == typeLargeBinary)
	case typeList, typeLargeList:
		offsets, err := w.buffer()
		if err != nil {
			return err
		}
		// The child's own length is checked against what the offsets need.
		child, err := w.meta.i64(w.nodes)
		if err != nil || w.nodesLeft == 0 {
			return errBounds
		}
		if err := checkOffsets(offsets, length, child, c.kind == typeLargeList); err != nil {
			return err
		}
		return w.column(&c.children[0], 0, false)
	case typeFixedSizeList:
		if length > int64(8*len(w.body)) {
			return fmt.Errorf("%d lists in a body of %d bytes", length, len(w.body))
		}
		return w.column(&c.children[0], length*int64(c.width), false)
	case typeStruct:
		for i := range c.children {
			if err := w.column(&c.children[i], length, false); err != nil {
				return err
			}
		}
		return nil
	}
	data, err := w.buffer()
	if err != nil {
		return err
	}
	need := (length*int64(c.width) + 7) / 8
	if c.kind == typeFixedSizeBinary {
		need = length * int64(c.width)
	}
	if int64(len(data)) < need {
		return fmt.Errorf("a buffer of %d bytes for %d values, expected at least %d", len(data), length, need)
	}
	return nil
}

// buffer returns the next buffer.
func (w *batch) buffer() ([]byte, error) {
	if w.buffersLeft--; w.buffersLeft < 0 {
		return nil, errors.New("has too few buffers")
	}
	offset, err := w.meta.i64(w.buffers)
	if err != nil {
		return nil, err
	}
	length, err := w.meta.i64(w.buffers + 8)
	if err != nil {
		return nil, err
	}
	w.buffers += 16
	if offset < 0 || length < 0 || offset%8 != 0 || offset > int64(len(w.body)) || length > int64(len(w.body))-offset {
		return nil, fmt.Errorf("a buffer of %d bytes at %d, in a body of %d", length, offset, len(w.body))
	}
	return w.body[offset : offset+length], nil
}

// checkOffsets checks that n+1 offsets rise from 0 on, within end.
func checkOffsets(offsets []byte, n, end int64, large bool) error {
	size := int64(4)
	if large {
		size = 8
	}
	if n == 0 && len(offsets) == 0 {
		return nil
	}
	if int64(len(offsets))/size < n+1 {
		return fmt.Errorf("an offsets buffer of %d bytes for %d values", len(offsets), n)
	}
	last := int64(0)
	for i := range n + 1 {
		at := int64(0)
		if large {
			at = int64(binary.LittleEndian.Uint64(offsets[8*i:]))
		} else {
			at = int64(int32(binary.LittleEndian.Uint32(offsets[4*i:])))
		}
		if at < last || at > end {
			return fmt.Errorf("offset %d is %d, expected %d to %d", i, at, last, end)
		}
		last = at
	}
	return nil
}
