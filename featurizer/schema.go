package featurizer

import (
	"fmt"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
)

// The names of all columns, in embeddings and in scores.
const (
	ColID        = "id"
	ColEmbedding = "embedding"
	ColLabel     = "label"
	ColSegment   = "segment"
	ColTimestamp = "timestamp"
	ColTopic     = "topic"
	ColPartition = "partition"
	ColOffset    = "offset"
	ColRow       = "row"
	ColScore     = "score"
	ColPValue    = "p_value"
	ColOOD       = "ood"
	ColClass     = "class"
	ColModel     = "model"
)

// Timestamps are in microseconds, UTC.
var timestampType = &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}

func embeddingField(dim int) arrow.Field {
	return arrow.Field{Name: ColEmbedding, Type: arrow.FixedSizeListOf(int32(dim), arrow.PrimitiveTypes.Float32)}
}

// EmbeddingSchema returns the schema of embeddings of dimension dim. A label or
// a segment may be null. row numbers the records inside one message; in a file,
// partition is 0 and offset is the row's place.
func EmbeddingSchema(dim int) *arrow.Schema {
	return arrow.NewSchema([]arrow.Field{
		{Name: ColID, Type: arrow.BinaryTypes.String},
		embeddingField(dim),
		{Name: ColLabel, Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: ColSegment, Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: ColTimestamp, Type: timestampType},
		{Name: ColPartition, Type: arrow.PrimitiveTypes.Int32},
		{Name: ColOffset, Type: arrow.PrimitiveTypes.Int64},
		{Name: ColRow, Type: arrow.PrimitiveTypes.Int32},
	}, nil)
}

// ScoreSchema returns the schema of scores; with dim > 0 it ends with the
// embedding. (topic, partition, offset, row) identifies a result for ever.
func ScoreSchema(dim int) *arrow.Schema {
	fields := []arrow.Field{
		{Name: ColID, Type: arrow.BinaryTypes.String},
		{Name: ColScore, Type: arrow.PrimitiveTypes.Float32},
		{Name: ColPValue, Type: arrow.PrimitiveTypes.Float32},
		{Name: ColOOD, Type: arrow.FixedWidthTypes.Boolean},
		{Name: ColClass, Type: arrow.BinaryTypes.String},
		{Name: ColSegment, Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: ColTimestamp, Type: timestampType},
		{Name: ColTopic, Type: arrow.BinaryTypes.String},
		{Name: ColPartition, Type: arrow.PrimitiveTypes.Int32},
		{Name: ColOffset, Type: arrow.PrimitiveTypes.Int64},
		{Name: ColRow, Type: arrow.PrimitiveTypes.Int32},
		{Name: ColModel, Type: arrow.BinaryTypes.String},
	}
	if dim > 0 {
		fields = append(fields, embeddingField(dim))
	}
	return arrow.NewSchema(fields, nil)
}

// Column returns a record's column by name, as the type A.
func Column[A arrow.Array](rec arrow.Record, name string) (A, error) {
	var none A
	at := rec.Schema().FieldIndices(name)
	if len(at) != 1 {
		return none, fmt.Errorf("column %s: the record has %d of that name, expected 1", name, len(at))
	}
	col, ok := rec.Column(at[0]).(A)
	if !ok {
		return none, fmt.Errorf("column %s: has type %s, expected %T", name, rec.Column(at[0]).DataType(), none)
	}
	return col, nil
}

// Embeddings returns the embeddings of a record, [rows, dim] row-major. The
// values are the record's own: they live as long as it does.
func Embeddings(rec arrow.Record) (x []float32, dim int, err error) {
	col, err := Column[*array.FixedSizeList](rec, ColEmbedding)
	if err != nil {
		return nil, 0, err
	}
	values, ok := col.ListValues().(*array.Float32)
	if !ok {
		return nil, 0, fmt.Errorf("column %s: holds %s, expected float32", ColEmbedding, col.ListValues().DataType())
	}
	dim = int(col.DataType().(*arrow.FixedSizeListType).Len())
	// ListValues returns the whole child even of a sliced list.
	start := col.Offset() * dim
	return values.Float32Values()[start : start+col.Len()*dim], dim, nil
}
