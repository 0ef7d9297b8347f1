package scorer

import (
	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/model"
)

// A RecordBuilder joins embeddings and their scores to records of
// featurizer.ScoreSchema. It is for one goroutine.
type RecordBuilder struct {
	builder *array.RecordBuilder

	id, class, segment, topic, version *array.StringBuilder
	score, pValue                      *array.Float32Builder
	ood                                *array.BooleanBuilder
	timestamp                          *array.TimestampBuilder
	partition, row                     *array.Int32Builder
	offset                             *array.Int64Builder
	embedding                          *array.FixedSizeListBuilder // nil: left out
}

// NewRecordBuilder returns a builder; with dim > 0 its records end with the
// embedding.
func NewRecordBuilder(dim int) *RecordBuilder {
	b := array.NewRecordBuilder(memory.DefaultAllocator, featurizer.ScoreSchema(dim))
	r := &RecordBuilder{
		builder: b,
		id:      b.Field(0).(*array.StringBuilder), score: b.Field(1).(*array.Float32Builder),
		pValue: b.Field(2).(*array.Float32Builder), ood: b.Field(3).(*array.BooleanBuilder),
		class: b.Field(4).(*array.StringBuilder), segment: b.Field(5).(*array.StringBuilder),
		timestamp: b.Field(6).(*array.TimestampBuilder), topic: b.Field(7).(*array.StringBuilder),
		partition: b.Field(8).(*array.Int32Builder), offset: b.Field(9).(*array.Int64Builder),
		row: b.Field(10).(*array.Int32Builder), version: b.Field(11).(*array.StringBuilder),
	}
	if dim > 0 {
		r.embedding = b.Field(12).(*array.FixedSizeListBuilder)
	}
	return r
}

// Build returns the scores of the rows of rec that have one, as m gave them;
// with onlyOOD, of those that are out of distribution. The caller releases the
// record.
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
	b.builder.Reserve(int(rec.NumRows()))
	for i, class := range scores.Class {
		if class < 0 || onlyOOD && !scores.OOD[i] {
			continue
		}
		b.id.Append(id.Value(i))
		b.score.Append(scores.Score[i])
		b.pValue.Append(scores.PValue[i])
		b.ood.Append(scores.OOD[i])
		b.class.Append(m.Classes[class])
		if segment.IsNull(i) {
			b.segment.AppendNull()
		} else {
			b.segment.Append(segment.Value(i))
		}
		b.timestamp.Append(timestamp.Value(i))
		b.topic.Append(topic)
		b.partition.Append(partition.Value(i))
		b.offset.Append(offset.Value(i))
		b.row.Append(row.Value(i))
		b.version.Append(m.Version)
		if b.embedding != nil {
			b.embedding.Append(true)
			b.embedding.ValueBuilder().(*array.Float32Builder).AppendValues(x[i*dim:(i+1)*dim], nil)
		}
	}
	return b.builder.NewRecord(), nil
}
