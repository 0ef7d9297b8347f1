package featurizer

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/apache/arrow/go/v15/parquet"
	"github.com/apache/arrow/go/v15/parquet/compress"
	"github.com/apache/arrow/go/v15/parquet/file"
	"github.com/apache/arrow/go/v15/parquet/schema"
)

func write(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// halfBits are some float16 values.
var halfBits = map[float32]uint16{1: 0x3c00, 2: 0x4000, 3: 0x4200, -.5: 0xb800, 0: 0, 6e-8: 1}

// npy writes a matrix as NumPy 1.26 does.
func npy(descr string, x [][]float32) []byte {
	header := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%d, %d), }", descr, len(x), len(x[0]))
	header += strings.Repeat(" ", 63-(10+len(header))%64) + "\n"
	b := append([]byte("\x93NUMPY\x01\x00"), byte(len(header)), byte(len(header)>>8))
	b = append(b, header...)
	for _, row := range x {
		for _, v := range row {
			switch descr {
			case "<f8":
				b = binary.LittleEndian.AppendUint64(b, math.Float64bits(float64(v)))
			case "<f2":
				b = binary.LittleEndian.AppendUint16(b, halfBits[v])
			default:
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
			}
		}
	}
	return b
}

func arrowFile(t testing.TB, x [][]float32) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.arrow")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := ipc.NewFileWriter(f, ipc.WithSchema(fixedSize(len(x[0]))))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range [][][]float32{x[:1], x[1:]} {
		b := array.NewRecordBuilder(memory.DefaultAllocator, fixedSize(len(x[0])))
		fillFixed(part)(b)
		rec := b.NewRecord()
		if err := w.Write(rec); err != nil {
			t.Fatal(err)
		}
		rec.Release()
		b.Release()
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// parquetFile writes a list column as Arrow and pandas do, of float, double or,
// as FixedLenByteArray, float16, with nulls in the labels, one row group for each
// of groups.
func parquetFile(t testing.TB, kind parquet.Type, codec compress.Compression, groups ...[][]float32) []byte {
	t.Helper()
	return parquetFileOf(t, kind, []parquet.WriterProperty{parquet.WithCompression(codec)}, groups...)
}

func parquetFileOf(t testing.TB, kind parquet.Type, properties []parquet.WriterProperty, groups ...[][]float32) []byte {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	element, err := schema.NewPrimitiveNode("element", parquet.Repetitions.Optional, kind, -1, -1)
	if kind == parquet.Types.FixedLenByteArray {
		element, err = schema.NewPrimitiveNodeLogical("element", parquet.Repetitions.Optional, schema.Float16LogicalType{}, kind, 2, -1)
	}
	must(err)
	list, err := schema.NewGroupNode("list", parquet.Repetitions.Repeated, schema.FieldList{element}, -1)
	must(err)
	embedding, err := schema.NewGroupNodeLogical(ColEmbedding, parquet.Repetitions.Optional, schema.FieldList{list}, schema.NewListLogicalType(), -1)
	must(err)
	label, err := schema.NewPrimitiveNodeLogical(ColLabel, parquet.Repetitions.Optional, schema.StringLogicalType{}, parquet.Types.ByteArray, -1, -1)
	must(err)
	id, err := schema.NewPrimitiveNode(ColID, parquet.Repetitions.Required, parquet.Types.Int64, -1, -1)
	must(err)
	root, err := schema.NewGroupNode("schema", parquet.Repetitions.Required, schema.FieldList{id, embedding, label}, -1)
	must(err)
	var buf bytes.Buffer
	w := file.NewParquetWriter(&buf, root, file.WithWriterProps(parquet.NewWriterProperties(properties...)))
	row := 0
	for _, x := range groups {
		g := w.AppendRowGroup()
		column, err := g.NextColumn()
		must(err)
		var ids []int64
		for i := range x {
			ids = append(ids, int64(row+i))
		}
		_, err = column.(*file.Int64ColumnChunkWriter).WriteBatch(ids, nil, nil)
		must(err)
		must(column.Close())
		column, err = g.NextColumn()
		must(err)
		var def, rep []int16
		var floats []float32
		var doubles []float64
		var halves []parquet.FixedLenByteArray
		for _, v := range x {
			for j, f := range v {
				def, floats, doubles, halves = append(def, 3), append(floats, f), append(doubles, float64(f)), append(halves, binary.LittleEndian.AppendUint16(nil, halfBits[f]))
				rep = append(rep, int16(min(j, 1)))
			}
		}
		switch column := column.(type) {
		case *file.Float64ColumnChunkWriter:
			_, err = column.WriteBatch(doubles, def, rep)
		case *file.Float32ColumnChunkWriter:
			_, err = column.WriteBatch(floats, def, rep)
		case *file.Int32ColumnChunkWriter:
			_, err = column.WriteBatch(make([]int32, len(floats)), def, rep)
		case *file.FixedLenByteArrayColumnChunkWriter:
			_, err = column.WriteBatch(halves, def, rep)
		}
		must(err)
		must(column.Close())
		column, err = g.NextColumn()
		must(err)
		var labels []parquet.ByteArray
		def = nil
		for i := range x {
			present := int16((row + i + 1) % 2)
			if def = append(def, present); present == 1 {
				labels = append(labels, parquet.ByteArray("even"))
			}
		}
		_, err = column.(*file.ByteArrayColumnChunkWriter).WriteBatch(labels, def, nil)
		must(err)
		must(column.Close())
		must(g.Close())
		row += len(x)
	}
	must(w.Close())
	return buf.Bytes()
}

func TestParquetEncodings(t *testing.T) {
	pages, plain := parquet.WithDataPageVersion(parquet.DataPageV2), parquet.WithDictionaryDefault(false)
	delta := parquet.WithEncodingFor(ColID, parquet.Encodings.DeltaBinaryPacked)
	texts := parquet.WithEncodingFor(ColLabel, parquet.Encodings.DeltaByteArray)
	for _, properties := range [][]parquet.WriterProperty{{pages}, {plain}, {plain, delta}, {pages, plain, delta, texts}, {pages, parquet.WithCompression(compress.Codecs.Zstd)}} {
		content := parquetFileOf(t, parquet.Types.Float, properties, vectors[:1], vectors[1:])
		if rows, err := readRows(t, FormatParquet, content); err != nil || !sameBits(rows, vectors) {
			t.Errorf("%v, %v", rows, err)
		}
	}
}

// What fuzzing found: each of these hung, or took gigabytes.
func TestParquetDamaged(t *testing.T) {
	for name, want := range map[string]string{
		"children":                "a column has 625644842 columns in it, of 6 in all",
		"chunk-without-end":       "column id: a dictionary of 0 bytes has 3 entries, expected at most 0",
		"index-beyond-dictionary": "column embedding: indices into a dictionary",
		"missing-levels":          "column label: definition levels: end after 0 of 3 values",
	} {
		text, err := os.ReadFile(filepath.Join("testdata", "fuzz", "FuzzParquet", name))
		if err != nil {
			t.Fatal(err)
		}
		_, text, _ = bytes.Cut(text, []byte("[]byte("))
		content, err := strconv.Unquote(string(bytes.TrimSuffix(text, []byte(")\n"))))
		if err != nil {
			t.Fatal(err)
		}
		if rows, err := readRows(t, FormatParquet, []byte(content)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v, want %s", name, rows, err, want)
		}
	}
}

func TestFiles(t *testing.T) {
	halves := [][]float32{{1, 2, 3}, {-.5, 0, 6e-8}, {1, 1, 1}}
	lines := "{\"embedding\":[1,2,3],\"label\":\"even\"}\n\n {\"embedding\":[-0.5,0,1e-30]}\r\n{\"embedding\":[4,5,6],\"label\":\"even\"}"
	for name, test := range map[string]struct {
		content []byte
		labels  string
		label   string // of the rows that have one, if it is not "even"
		want    [][]float32
	}{
		"x.arrow":        {content: arrowFile(t, vectors)},
		"stream.arrows":  {content: stream(t, fixedSize(3), nil, fillFixed(vectors[:1]), fillFixed(vectors[1:]))},
		"x.jsonl":        {content: []byte(lines)},
		"numbers.jsonl":  {content: []byte("{\"embedding\":[1,2,3],\"label\":8}\n{\"embedding\":[-0.5,0,1e-30]}\n{\"embedding\":[4,5,6],\"label\":8}"), label: "8"},
		"x.npy":          {content: npy("<f4", vectors), labels: "even\n\neven\n"},
		"double.npy":     {content: npy("<f8", vectors), labels: "even\n\neven"},
		"half.npy":       {content: npy("<f2", halves), labels: "even\n\neven", want: halves},
		"x.parquet":      {content: parquetFile(t, parquet.Types.Float, compress.Codecs.Uncompressed, vectors)},
		"double.parquet": {content: parquetFile(t, parquet.Types.Double, compress.Codecs.Snappy, vectors)},
		"groups.parquet": {content: parquetFile(t, parquet.Types.Float, compress.Codecs.Zstd, vectors[:1], vectors[1:])},
		"half.parquet":   {content: parquetFile(t, parquet.Types.FixedLenByteArray, compress.Codecs.Snappy, halves), want: halves},
		"gzip.parquet":   {content: parquetFile(t, parquet.Types.Float, compress.Codecs.Gzip, vectors)},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, name, test.content)
			if test.labels != "" {
				beside := strings.TrimSuffix(path, ".npy") + ".labels.txt"
				if err := os.WriteFile(beside, []byte(test.labels), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r, err := OpenFile(path)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if r.Dim() != 3 {
				t.Errorf("dimension %d, want 3", r.Dim())
			}
			want := test.want
			if want == nil {
				want = vectors
			}
			row := 0
			for {
				rec, err := r.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				x, _, err := Embeddings(rec)
				if err != nil {
					t.Fatal(err)
				}
				labels, err := Column[*array.String](rec, ColLabel)
				if err != nil {
					t.Fatal(err)
				}
				offset, err := Column[*array.Int64](rec, ColOffset)
				if err != nil {
					t.Fatal(err)
				}
				for i := range int(rec.NumRows()) {
					for j, v := range want[row] {
						if got := x[3*i+j]; math.Abs(float64(got-v)) > 1e-8 {
							t.Errorf("row %d: value %d is %g, want %g", row, j, got, v)
						}
					}
					// Each batch of the Arrow files begins anew with an even row.
					even := row%2 == 0
					if strings.Contains(name, "arrow") {
						even = row != 2
					}
					if got := labels.IsValid(i) && labels.Value(i) == cmp.Or(test.label, "even"); got != even {
						t.Errorf("row %d: label %q", row, labels.ValueStr(i))
					}
					if offset.Value(i) != int64(row) {
						t.Errorf("row %d has offset %d", row, offset.Value(i))
					}
					row++
				}
				rec.Release()
			}
			if row != len(want) {
				t.Errorf("%d rows, want %d", row, len(want))
			}
		})
	}
}

// Chunks are of bounded size, and their memory is used again.
func TestFileChunks(t *testing.T) {
	x := make([][]float32, 10_000)
	for i := range x {
		x[i] = []float32{float32(i), 1}
	}
	r, err := OpenFile(write(t, "x.npy", npy("<f4", x)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for row := 0; row < len(x); {
		rec, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		values, _, err := Embeddings(rec)
		if err != nil || len(values) > 2*chunkRows {
			t.Fatal(len(values), err)
		}
		for i := range int(rec.NumRows()) {
			if values[2*i] != float32(row) {
				t.Fatalf("row %d is %g", row, values[2*i])
			}
			row++
		}
		rec.Release()
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last row: %v", err)
	}
}

func TestFilesRefuse(t *testing.T) {
	mixed := [][]float32{{1, 2}, {1, 2, 3}}
	whole := npy("<f4", vectors)
	arrow := arrowFile(t, vectors)
	pq := parquetFile(t, parquet.Types.Float, compress.Codecs.Uncompressed, vectors)
	for name, test := range map[string]struct {
		content []byte
		want    string
	}{
		"x.txt":            {nil, `extension ".txt" is not one of .arrow, .arrows, .ipc, .feather, .parquet, .npy, .jsonl, .ndjson`},
		"empty.arrow":      {nil, "not an Arrow IPC file: unexpected EOF"},
		"text.arrow":       {[]byte("id,embedding\n1,2\n"), "a message begins with 69 64 2c 65, expected ff ff ff ff"},
		"torn.arrow":       {arrow[:len(arrow)/2], "unexpected EOF"},
		"no-rows.arrow":    {stream(t, fixedSize(3), nil), "holds no rows"},
		"dictionary.arrow": {dictionaryStream(t), "is dictionary-encoded"},
		"empty.jsonl":      {nil, "holds no rows"},
		"mixed.jsonl":      {[]byte("{\"embedding\":[1,2]}\n{\"embedding\":[1,2,3]}"), "row 1: the embedding has 3 values, the rows before have 2"},
		"bad.jsonl":        {[]byte("{\"embedding\":[1,2]}\n{\"embedding\":[1,x]}"), `line 2: `},
		"label.jsonl":      {[]byte("{\"embedding\":[1,2],\"label\":1}\n{\"embedding\":[1,2],\"label\":1.5}"), "line 2: label: 1.5 is neither a string nor an integer"},
		"none.jsonl":       {[]byte("{\"id\":\"a\"}"), "row 0: the embedding is empty"},
		"empty.npy":        {nil, "npy header: unexpected EOF"},
		"text.npy":         {[]byte("1 2 3 4 5 6 7 8 9"), "npy header: begins with 31 20 32 20 33 20, expected a .npy file"},
		"short.npy":        {whole[:len(whole)-1], "row 2 of 3: unexpected EOF"},
		"long.npy":         {append(bytes.Clone(whole), 0), "bytes follow the 3 rows of the header's shape"},
		"fortran.npy":      {bytes.Replace(whole, []byte("False"), []byte("True "), 1), "is not that of a matrix"},
		"ints.npy":         {bytes.Replace(whole, []byte("<f4"), []byte("<i4"), 1), `type "<i4", expected <f4, <f8 or <f2: little-endian floats`},
		"empty.parquet":    {nil, "not a Parquet file"},
		"text.parquet":     {[]byte("this is no parquet file"), "not a Parquet file"},
		"torn.parquet":     {append(bytes.Clone(pq[:40]), pq[60:]...), ""},
		"int32.parquet":    {parquetFile(t, parquet.Types.Int32, compress.Codecs.Uncompressed, vectors), "column embedding holds INT32, expected float, double or float16"},
		"mixed.parquet":    {parquetFile(t, parquet.Types.Float, compress.Codecs.Uncompressed, mixed), "row 1: the embedding has 3 values, the rows before have 2"},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, name, test.content)
			r, err := OpenFile(path)
			for err == nil {
				_, err = r.Next()
			}
			if r != nil {
				defer r.Close()
			}
			if errors.Is(err, io.EOF) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	if _, err := OpenFile(filepath.Join(t.TempDir(), "none.npy")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestLabelsOfAMatrix(t *testing.T) {
	for labels, want := range map[string]string{
		"a\nb\n":                               "row 2 of 3 has no label: the labels end before",
		"a\nb\nc\nd\n":                         "there are more labels than the 3 rows",
		"a\nb\n" + strings.Repeat("c", 70_000): "the label of row 2 of 3: bufio.Scanner: token too long",
		"a\nb\nc\n" + strings.Repeat("d", 70_000): "there are more labels than the 3 rows",
	} {
		path := write(t, "x.npy", npy("<f4", vectors))
		if err := os.WriteFile(strings.TrimSuffix(path, ".npy")+".labels.txt", []byte(labels), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := OpenFile(path)
		for err == nil {
			_, err = r.Next()
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %s", labels, err, want)
		}
		r.Close()
	}
}

// fuzzFile checks that the rows of a file that is read to its end are those of
// the file that encode makes of them.
func fuzzFile(f *testing.F, format string, encode func(t testing.TB, rows [][]float32) []byte, seeds ...[]byte) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		rows, err := readRows(t, format, content)
		if err != nil || len(rows) == 0 || len(rows) > 100 || len(rows[0]) > 1000 {
			return
		}
		again, err := readRows(t, format, encode(t, rows))
		same := func(v, w float32) bool { // Arrow writes one NaN for all in Parquet
			return math.Float32bits(v) == math.Float32bits(w) || v != v && w != w
		}
		if err != nil || !slices.EqualFunc(rows, again, func(a, b []float32) bool { return slices.EqualFunc(a, b, same) }) {
			t.Fatalf("accepted %v, and after a second time there is %v (%v)", rows, again, err)
		}
	})
}

func readRows(t testing.TB, format string, content []byte) (rows [][]float32, err error) {
	r, err := ReadStream("fuzz", format, bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		rec, err := r.Next()
		if err == io.EOF {
			return rows, nil
		}
		if err != nil {
			return nil, err
		}
		x, dim, err := Embeddings(rec)
		if err != nil || dim != r.Dim() || len(x) != dim*int(rec.NumRows()) {
			t.Fatalf("%d values of dimension %d: %v", len(x), dim, err)
		}
		for i := range int(rec.NumRows()) {
			rows = append(rows, slices.Clone(x[dim*i:dim*(i+1)]))
		}
		rec.Release()
		if len(rows)*dim > 1<<16 { // a few bytes can stand for any number of rows
			return rows, nil
		}
	}
}

func FuzzNPY(f *testing.F) {
	encode := func(_ testing.TB, rows [][]float32) []byte { return npy("<f4", rows) }
	fuzzFile(f, FormatNPY, encode, npy("<f4", vectors), npy("<f8", vectors), npy("<f2", [][]float32{{1}}))
}

func FuzzJSONLines(f *testing.F) {
	encode := func(t testing.TB, rows [][]float32) []byte { return bytes.Join(encodeJSON(t, rows), []byte("\n")) }
	fuzzFile(f, FormatJSONL, encode, []byte("{\"embedding\":[1,2]}\n{\"embedding\":[1,2,3]}"), []byte("{\"embedding\":[1,2]}\n{\"embedding\":[3,4]}"))
}

func FuzzArrowFile(f *testing.F) { fuzzFile(f, FormatArrow, arrowFile, arrowFile(f, vectors)) }

func FuzzParquet(f *testing.F) {
	encode := func(t testing.TB, rows [][]float32) []byte {
		return parquetFile(t, parquet.Types.Float, compress.Codecs.Uncompressed, rows)
	}
	fuzzFile(f, FormatParquet, encode, parquetFile(f, parquet.Types.Float, compress.Codecs.Uncompressed, vectors), parquetFile(f, parquet.Types.Double, compress.Codecs.Snappy, vectors[:1], vectors[1:]),
		parquetFile(f, parquet.Types.FixedLenByteArray, compress.Codecs.Uncompressed, vectors))
}
