package featurizer

import (
	"github.com/apache/arrow/go/v15/arrow"
	"github.com/oodmon/oodmon/internal/arrowcol"
)

// columns collect the rows of one record in memory that is used again for the
// next. Nothing is copied when they become an Arrow record.
type columns struct {
	schema    *arrow.Schema
	dim       int
	embedding []float32 // in buffer, or lent by a message
	buffer    []float32
	lent      bool
	id        arrowcol.Text
	label     arrowcol.Text
	segment   arrowcol.Text
	timestamp []int64
	partition []int32
	offset    []int64
	row       []int32
}

func newColumns(dim int) columns { return columns{schema: EmbeddingSchema(dim), dim: dim} }

func (c *columns) len() int { return len(c.row) }

// truncate drops the rows from n on.
func (c *columns) truncate(n int) {
	if c.embedding = c.embedding[:n*c.dim]; n == 0 {
		c.own()
	}
	c.id.Truncate(n)
	c.label.Truncate(n)
	c.segment.Truncate(n)
	c.timestamp, c.partition, c.offset, c.row = c.timestamp[:n], c.partition[:n], c.offset[:n], c.row[:n]
}

// add copies the embedding of a row.
func (c *columns) add(values []float32) {
	c.own()
	c.embedding = append(c.embedding, values...)
}

// lend takes the embedding of a row where it lies, if it is the first or follows
// the last in memory: those of one Arrow message are not copied.
func (c *columns) lend(values []float32) {
	n := len(c.embedding)
	switch {
	case n == 0 && len(values) > 0:
		c.own()
		c.buffer, c.embedding, c.lent = c.embedding, values, true
	case c.lent && n+len(values) <= cap(c.embedding) && &c.embedding[:n+1][n] == &values[0]:
		c.embedding = c.embedding[:n+len(values)]
	default:
		c.add(values)
	}
}

// own moves what is lent into the buffer.
func (c *columns) own() {
	if c.lent {
		c.embedding, c.lent = append(c.buffer[:0], c.embedding...), false
	}
}

// A place is where a row came from.
type place struct {
	partition int32
	offset    int64
	row       int32
}

// close ends a row whose embedding was appended already.
func (c *columns) close(id []byte, label, segment optional, micros int64, at place) {
	c.id.Append(id)
	label.appendTo(&c.label)
	segment.appendTo(&c.segment)
	c.timestamp = append(c.timestamp, micros)
	c.partition = append(c.partition, at.partition)
	c.offset = append(c.offset, at.offset)
	c.row = append(c.row, at.row)
}

// record returns the rows as an Arrow record. It shares memory with c: it is
// valid until the next row is appended.
func (c *columns) record() arrow.Record {
	return arrowcol.Record(c.schema, c.len(),
		c.id.Data(), arrowcol.Lists(c.schema.Field(1).Type, c.len(), c.embedding), c.label.Data(), c.segment.Data(),
		arrowcol.Fixed(timestampType, c.timestamp), arrowcol.Fixed(arrow.PrimitiveTypes.Int32, c.partition),
		arrowcol.Fixed(arrow.PrimitiveTypes.Int64, c.offset), arrowcol.Fixed(arrow.PrimitiveTypes.Int32, c.row),
	)
}

// An optional is a text that may be absent.
type optional struct {
	text  []byte
	valid bool
}

func (o optional) appendTo(column *arrowcol.Text) {
	if o.valid {
		column.Append(o.text)
	} else {
		column.AppendNull()
	}
}
