package scorer

import (
	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/internal/arrowcol"
	"github.com/oodmon/oodmon/model"
)

// A RecordBuilder joins embeddings and their scores to records of
// featurizer.ScoreSchema. Its memory is used again from record to record. It is
// for one goroutine.
type RecordBuilder struct {
	schema    *arrow.Schema
	embedding bool

	id, class, segment, topic, version arrowcol.Text
	score, pValue, values              []float32
	ood                                arrowcol.Bool
	timestamp, offset                  []int64
	partition, row                     []int32
}

// NewRecordBuilder returns a builder; with dim > 0 its records end with the
// embedding.
func NewRecordBuilder(dim int) *RecordBuilder {
	return &RecordBuilder{schema: featurizer.ScoreSchema(dim), embedding: dim > 0}
}

// Build returns the scores of the rows of rec that have one, as m gave them;
// with onlyOOD, of those that are out of distribution. The record is valid until
// the next call; the caller releases it.
func (b *RecordBuilder) Build(rec arrow.Record, scores *Scores, m *model.Model, topic string, onlyOOD bool) (arrow.Record, error) {
	x, dim, err := featurizer.Embeddings(rec)
	if err != nil {
		return nil, err
	}
	id, err := featurizer.Column[*array.String](rec, featurizer.ColID)
	if err != nil {
		return nil, err
	}
	segment, err := featurizer.Column[*array.String](rec, featurizer.ColSegment)
	if err != nil {
		return nil, err
	}
	timestamp, err := featurizer.Column[*array.Timestamp](rec, featurizer.ColTimestamp)
	if err != nil {
		return nil, err
	}
	partition, err := featurizer.Column[*array.Int32](rec, featurizer.ColPartition)
	if err != nil {
		return nil, err
	}
	offset, err := featurizer.Column[*array.Int64](rec, featurizer.ColOffset)
	if err != nil {
		return nil, err
	}
	row, err := featurizer.Column[*array.Int32](rec, featurizer.ColRow)
	if err != nil {
		return nil, err
	}
	b.reset()
	for i, class := range scores.Class {
		if class < 0 || onlyOOD && !scores.OOD[i] {
			continue
		}
		b.id.AppendString(id.Value(i))
		b.score = append(b.score, scores.Score[i])
		b.pValue = append(b.pValue, scores.PValue[i])
		b.ood.Append(scores.OOD[i])
		b.class.AppendString(m.Classes[class])
		if segment.IsNull(i) {
			b.segment.AppendNull()
		} else {
			b.segment.AppendString(segment.Value(i))
		}
		b.timestamp = append(b.timestamp, int64(timestamp.Value(i)))
		b.topic.AppendString(topic)
		b.partition = append(b.partition, partition.Value(i))
		b.offset = append(b.offset, offset.Value(i))
		b.row = append(b.row, row.Value(i))
		b.version.AppendString(m.Version)
		if b.embedding {
			b.values = append(b.values, x[i*dim:(i+1)*dim]...)
		}
	}
	return b.record(), nil
}

func (b *RecordBuilder) reset() {
	for _, t := range []*arrowcol.Text{&b.id, &b.class, &b.segment, &b.topic, &b.version} {
		t.Truncate(0)
	}
	b.score, b.pValue, b.values = b.score[:0], b.pValue[:0], b.values[:0]
	b.ood.Reset()
	b.timestamp, b.offset = b.timestamp[:0], b.offset[:0]
	b.partition, b.row = b.partition[:0], b.row[:0]
}

// record returns the rows in the order of featurizer.ScoreSchema.
func (b *RecordBuilder) record() arrow.Record {
	n := len(b.score)
	all := []arrow.ArrayData{
		b.id.Data(), arrowcol.Fixed(arrow.PrimitiveTypes.Float32, b.score), arrowcol.Fixed(arrow.PrimitiveTypes.Float32, b.pValue),
		b.ood.Data(), b.class.Data(), b.segment.Data(), arrowcol.Fixed(b.schema.Field(6).Type, b.timestamp), b.topic.Data(),
		arrowcol.Fixed(arrow.PrimitiveTypes.Int32, b.partition), arrowcol.Fixed(arrow.PrimitiveTypes.Int64, b.offset),
		arrowcol.Fixed(arrow.PrimitiveTypes.Int32, b.row), b.version.Data(),
	}
	if b.embedding {
		all = append(all, arrowcol.Lists(b.schema.Field(12).Type, n, b.values))
	}
	return arrowcol.Record(b.schema, n, all...)
}
