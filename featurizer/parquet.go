package featurizer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"

	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/apache/arrow/go/v15/parquet"
	"github.com/apache/arrow/go/v15/parquet/file"
	"github.com/apache/arrow/go/v15/parquet/schema"
	"github.com/oodmon/oodmon/internal/kernel"
)

// parquetRows reads a Parquet file by row groups. The embedding is a list of
// float, double or float16, as Arrow, pandas and Spark write it. A file is the user's
// own: damage is an error, but memory is bounded only by what its pages claim,
// up to maxFileBody.
func parquetRows(f parquet.ReaderAtSeeker) iter.Seq2[fileRow, error] {
	return func(yield func(fileRow, error) bool) {
		stopped := false
		err := readParquet(f, func(row fileRow) bool {
			stopped = !yield(row, nil)
			return !stopped
		})
		if err != nil && !stopped {
			yield(fileRow{}, err)
		}
	}
}

func readParquet(f parquet.ReaderAtSeeker, fn func(fileRow) bool) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the Parquet reader failed: %v", p)
		}
	}()
	if err := verifyFooter(f); err != nil {
		return fmt.Errorf("not a Parquet file: %w", err)
	}
	props := parquet.NewReaderProperties(&limitedAllocator{left: maxFileBody})
	r, err := file.NewParquetReader(f, file.WithReadProps(props))
	if err != nil {
		return fmt.Errorf("not a Parquet file: %w", err)
	}
	columns := r.MetaData().Schema
	leaf := map[string]int{}
	var all []string
	for i := range columns.NumColumns() {
		path := columns.Column(i).Path()
		all = append(all, path)
		top, _, nested := strings.Cut(path, ".")
		if nested == (top == ColEmbedding) { // a list is nested, a text is not
			leaf[top] = i
		}
	}
	embedding, ok := leaf[ColEmbedding]
	if !ok || columns.Column(embedding).MaxRepetitionLevel() != 1 {
		return fmt.Errorf("there is no column %s that is a list of float; the columns are %s", ColEmbedding, all)
	}
	read := 0
	for g := range r.NumRowGroups() {
		group := r.RowGroup(g)
		rows := int(group.NumRows())
		column, err := parquetColumn(f, r, group, embedding, props.Allocator())
		if err != nil {
			return fmt.Errorf("column %s: %w", ColEmbedding, err)
		}
		vectors, err := newParquetVectors(column)
		if err != nil {
			return err
		}
		var texts [3]*parquetTexts // id, label, segment
		for i, name := range []string{ColID, ColLabel, ColSegment} {
			if at, ok := leaf[name]; ok {
				column, err := parquetColumn(f, r, group, at, props.Allocator())
				if err != nil {
					return fmt.Errorf("column %s: %w", name, err)
				}
				if texts[i], err = newParquetTexts(column, name); err != nil {
					return err
				}
			}
		}
		for range rows {
			row := fileRow{}
			if row.embedding, err = vectors.next(); err != nil {
				return fmt.Errorf("row %d: %w", read, err)
			}
			for i, to := range []*optional{&row.id, &row.label, &row.segment} {
				if texts[i] == nil {
					continue
				}
				if *to, err = texts[i].next(); err != nil {
					return fmt.Errorf("row %d: %w", read, err)
				}
			}
			if !fn(row) {
				return nil
			}
			read++
		}
	}
	return nil
}

// parquetChunk is how many values are decoded at once.
const parquetChunk = 16 << 10

// parquetHeader is the largest header of a page.
const parquetHeader = 256 << 10

// parquetVectors reads a column of lists row by row.
type parquetVectors struct {
	column   file.ColumnChunkReader
	read     func(values []float32, def, rep []int16) (levels int64, got int, err error)
	maxDef   int16
	values   []float32
	def, rep []int16
	level    int // the next level that is not used
	levels   int
	value    int
	ended    bool
	row      []float32
}

// parquetColumn is group.Column, but for the buffer that pages are read through:
// at the end of a damaged chunk Arrow's own yields what it held before, for ever.
func parquetColumn(f io.ReaderAt, r *file.Reader, group *file.RowGroupReader, i int, mem memory.Allocator) (file.ColumnChunkReader, error) {
	chunk, err := group.MetaData().ColumnChunk(i)
	if err != nil {
		return nil, err
	}
	start := chunk.DataPageOffset()
	if dictionary := chunk.DictionaryPageOffset(); chunk.HasDictionaryPage() && dictionary > 0 {
		start = min(start, dictionary)
	}
	const forgotten = 100 // bytes at most, of a dictionary's header, which parquet-mr up to 1.2.8 did not count
	section := io.NewSectionReader(f, start, chunk.TotalCompressedSize()+forgotten)
	in := bufio.NewReaderSize(section, parquetHeader)
	pages, err := file.NewPageReader(in, chunk.NumValues(), chunk.Compression(), mem, nil)
	if err != nil {
		return nil, err
	}
	column := r.MetaData().Schema.Column(i)
	return file.NewColumnReader(column, &checkedPages{PageReader: pages, in: in, section: section, values: chunk.NumValues(), column: column}, mem, r.BufferPool()), nil
}

func newParquetVectors(column file.ColumnChunkReader) (*parquetVectors, error) {
	v := &parquetVectors{
		column: column, maxDef: column.Descriptor().MaxDefinitionLevel(),
		values: make([]float32, parquetChunk), def: make([]int16, parquetChunk), rep: make([]int16, parquetChunk),
	}
	switch column := column.(type) {
	case *file.Float32ColumnChunkReader:
		v.read = func(values []float32, def, rep []int16) (int64, int, error) {
			return column.ReadBatch(int64(len(values)), values, def, rep)
		}
	case *file.Float64ColumnChunkReader:
		wide := make([]float64, parquetChunk)
		v.read = func(values []float32, def, rep []int16) (int64, int, error) {
			levels, got, err := column.ReadBatch(int64(len(values)), wide, def, rep)
			for i := range got {
				values[i] = float32(wide[i])
			}
			return levels, got, err
		}
	case *file.FixedLenByteArrayColumnChunkReader:
		logical := column.Descriptor().LogicalType()
		if _, ok := logical.(schema.Float16LogicalType); !ok {
			return nil, fmt.Errorf("column %s holds %s (%s), expected float, double or float16", ColEmbedding, column.Type(), logical)
		}
		arrays, raw := make([]parquet.FixedLenByteArray, parquetChunk), make([]byte, 0, 2*parquetChunk)
		v.read = func(values []float32, def, rep []int16) (int64, int, error) {
			levels, got, err := column.ReadBatch(int64(len(values)), arrays, def, rep)
			raw = raw[:0]
			for _, half := range arrays[:got] {
				raw = append(raw, half...)
			}
			kernel.WidenFloat16(values[:got], raw)
			return levels, got, err
		}
	default:
		return nil, fmt.Errorf("column %s holds %s, expected float, double or float16", ColEmbedding, column.Type())
	}
	return v, nil
}

// next returns the next row's values, valid until the next call.
func (v *parquetVectors) next() ([]float32, error) {
	v.row = v.row[:0]
	for first := true; ; first = false {
		if v.level == v.levels {
			if v.ended {
				break
			}
			levels, got, err := v.read(v.values, v.def, v.rep)
			if err = firstError(err, v.column); err == nil {
				err = present(v.def[:levels], v.maxDef, got)
			}
			if err != nil {
				return nil, fmt.Errorf("column %s: %w", ColEmbedding, err)
			}
			v.level, v.levels, v.value = 0, int(levels), 0
			if levels == 0 {
				v.ended = true
				break
			}
		}
		if !first && v.rep[v.level] == 0 {
			return v.row, nil // the next row begins
		}
		if v.def[v.level] != v.maxDef {
			return nil, fmt.Errorf("column %s: is null or holds a null, expected numbers", ColEmbedding)
		}
		if len(v.row) == chunkValues {
			return nil, fmt.Errorf("column %s: has more than %d values", ColEmbedding, chunkValues)
		}
		v.row = append(v.row, v.values[v.value])
		v.level++
		v.value++
	}
	if len(v.row) == 0 {
		return nil, fmt.Errorf("column %s: %w", ColEmbedding, io.ErrUnexpectedEOF)
	}
	return v.row, nil
}

// firstError returns what went wrong in a call of ReadBatch, which hides what its pages
// say and ends.
func firstError(err error, column file.ColumnChunkReader) error {
	if err == nil || errors.Is(err, io.EOF) {
		return column.Err()
	}
	return err
}

// present checks that there are as many values as levels say.
func present(def []int16, maxDef int16, got int) error {
	want := len(def)
	if maxDef > 0 {
		want = 0
		for _, d := range def {
			if d == maxDef {
				want++
			}
		}
	}
	if got != want {
		return fmt.Errorf("%d values where the levels say %d", got, want)
	}
	return nil
}

// parquetTexts reads a flat column of texts or integers row by row.
type parquetTexts struct {
	name   string
	column file.ColumnChunkReader
	read   func(def []int16) (levels int64, values int, err error)
	text   func(i int) []byte
	maxDef int16
	def    []int16
	level  int
	levels int
	value  int
}

func newParquetTexts(column file.ColumnChunkReader, name string) (*parquetTexts, error) {
	const chunk = 1024
	t := &parquetTexts{name: name, column: column, maxDef: column.Descriptor().MaxDefinitionLevel(), def: make([]int16, chunk)}
	if column.Descriptor().MaxRepetitionLevel() != 0 {
		return nil, fmt.Errorf("column %s is a list, expected texts", name)
	}
	switch column := column.(type) {
	case *file.ByteArrayColumnChunkReader:
		values := make([]parquet.ByteArray, chunk)
		t.read = func(def []int16) (int64, int, error) { return column.ReadBatch(chunk, values, def, nil) }
		t.text = func(i int) []byte { return values[i] }
	case *file.Int32ColumnChunkReader:
		values := make([]int32, chunk)
		t.read = func(def []int16) (int64, int, error) { return column.ReadBatch(chunk, values, def, nil) }
		t.text = func(i int) []byte { return strconv.AppendInt(nil, int64(values[i]), 10) }
	case *file.Int64ColumnChunkReader:
		values := make([]int64, chunk)
		t.read = func(def []int16) (int64, int, error) { return column.ReadBatch(chunk, values, def, nil) }
		t.text = func(i int) []byte { return strconv.AppendInt(nil, values[i], 10) }
	default:
		return nil, fmt.Errorf("column %s holds %s, expected texts or integers", name, column.Type())
	}
	return t, nil
}

func (t *parquetTexts) next() (optional, error) {
	if t.level == t.levels {
		levels, got, err := t.read(t.def)
		if err = firstError(err, t.column); err == nil {
			err = present(t.def[:levels], t.maxDef, got)
		}
		if err != nil {
			return optional{}, fmt.Errorf("column %s: %w", t.name, err)
		}
		if levels == 0 {
			return optional{}, fmt.Errorf("column %s: %w", t.name, io.ErrUnexpectedEOF)
		}
		t.level, t.levels, t.value = 0, int(levels), 0
	}
	present := t.def[t.level] == t.maxDef || t.maxDef == 0
	t.level++
	if !present {
		return optional{}, nil
	}
	t.value++
	return optional{t.text(t.value - 1), true}, nil
}
