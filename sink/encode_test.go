package sink

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

var testSchema = arrow.NewSchema([]arrow.Field{
	{Name: "id", Type: arrow.BinaryTypes.String},
	{Name: "score", Type: arrow.PrimitiveTypes.Float32},
	{Name: "ood", Type: arrow.FixedWidthTypes.Boolean},
	{Name: "segment", Type: arrow.BinaryTypes.String, Nullable: true},
	{Name: "timestamp", Type: &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}},
	{Name: "offset", Type: arrow.PrimitiveTypes.Int64},
	{Name: "row", Type: arrow.PrimitiveTypes.Int32},
	{Name: "embedding", Type: arrow.FixedSizeListOf(2, arrow.PrimitiveTypes.Float32)},
}, nil)

// A testRow is a row of testSchema.
type testRow struct {
	id      string
	score   float32
	segment string // empty: null
	micros  int64
	offset  int64
	vector  [2]float32
}

func record(t testing.TB, rows ...testRow) arrow.Record {
	t.Helper()
	b := array.NewRecordBuilder(memory.DefaultAllocator, testSchema)
	defer b.Release()
	for i, r := range rows {
		b.Field(0).(*array.StringBuilder).Append(r.id)
		b.Field(1).(*array.Float32Builder).Append(r.score)
		b.Field(2).(*array.BooleanBuilder).Append(i%2 == 1)
		if r.segment == "" {
			b.Field(3).AppendNull()
		} else {
			b.Field(3).(*array.StringBuilder).Append(r.segment)
		}
		b.Field(4).(*array.TimestampBuilder).Append(arrow.Timestamp(r.micros))
		b.Field(5).(*array.Int64Builder).Append(r.offset)
		b.Field(6).(*array.Int32Builder).Append(int32(i))
		list := b.Field(7).(*array.FixedSizeListBuilder)
		list.Append(true)
		list.ValueBuilder().(*array.Float32Builder).AppendValues(r.vector[:], nil)
	}
	rec := b.NewRecord()
	t.Cleanup(rec.Release)
	return rec
}

var examples = []testRow{
	{id: "a", score: 0.1, segment: "de", micros: 1_700_000_000_123_456, offset: 1 << 60, vector: [2]float32{1, -0.25}},
	{id: "ä \"b\"\n\x01\xff", score: 1e-9, micros: -1, offset: -1, vector: [2]float32{float32(math.NaN()), float32(math.Inf(-1))}},
	{id: "", score: 3e38, segment: "de,\"fr\"", vector: [2]float32{0, 1e21}},
}

const exampleLines = `{"id":"a","score":0.1,"ood":false,"segment":"de","timestamp":"2023-11-14T22:13:20.123456Z","offset":1152921504606846976,"row":0,"embedding":[1,-0.25]}
{"id":"ä \"b\"\n\u0001` + "\ufffd" + `","score":1e-09,"ood":true,"segment":null,"timestamp":"1969-12-31T23:59:59.999999Z","offset":-1,"row":1,"embedding":[null,null]}
{"id":"","score":3e+38,"ood":false,"segment":"de,\"fr\"","timestamp":"1970-01-01T00:00:00.000000Z","offset":0,"row":2,"embedding":[0,1e+21]}
`

func TestAppendJSONLines(t *testing.T) {
	rec := record(t, examples...)
	got, err := AppendJSONLines([]byte("before "), rec)
	if err != nil {
		t.Fatal(err)
	}
	if want := "before " + exampleLines; string(got) != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	// A slice has offsets of its own.
	part := rec.NewSlice(1, 3)
	defer part.Release()
	got, err = AppendJSONLines(nil, part)
	if want := exampleLines[strings.Index(exampleLines, "\n")+1:]; err != nil || string(got) != want {
		t.Errorf("a slice: %v\n%swant\n%s", err, got, want)
	}
}

// Columns of one value are written as any other.
func TestAppendJSONLinesOfOneValue(t *testing.T) {
	row := testRow{id: "a\n", score: 0.5, micros: 1, offset: 7, vector: [2]float32{1, 2}}
	other := row
	other.score = 0.25
	for want, rows := range map[string][]testRow{
		"": nil,
		`{"id":"a\n","score":0.5,"ood":false,"segment":null,"timestamp":"1970-01-01T00:00:00.000001Z","offset":7,"row":0,"embedding":[1,2]}
`: {row},
		`{"id":"a\n","score":0.5,"ood":false,"segment":null,"timestamp":"1970-01-01T00:00:00.000001Z","offset":7,"row":0,"embedding":[1,2]}
{"id":"a\n","score":0.25,"ood":true,"segment":null,"timestamp":"1970-01-01T00:00:00.000001Z","offset":7,"row":1,"embedding":[1,2]}
`: {row, other},
	} {
		got, err := AppendJSONLines(nil, record(t, rows...))
		if err != nil || string(got) != want {
			t.Errorf("%d rows: %v\n%swant\n%s", len(rows), err, got, want)
		}
	}
}

func TestWriters(t *testing.T) {
	rec := record(t, examples[0], examples[2])
	for format, want := range map[string]string{
		"jsonl": strings.Join(append(strings.SplitAfter(exampleLines, "\n")[:1], strings.Replace(strings.SplitAfter(exampleLines, "\n")[2], `"ood":false,"segment":"de,\"fr\"","timestamp":"1970-01-01T00:00:00.000000Z","offset":0,"row":2`, `"ood":true,"segment":"de,\"fr\"","timestamp":"1970-01-01T00:00:00.000000Z","offset":0,"row":1`, 1)), ""),
		"csv": "id,score,ood,segment,timestamp,offset,row,embedding\n" +
			"a,0.1,false,de,2023-11-14T22:13:20.123456Z,1152921504606846976,0,\"[1,-0.25]\"\n" +
			",3e+38,true,\"de,\"\"fr\"\"\",1970-01-01T00:00:00.000000Z,0,1,\"[0,1e+21]\"\n",
	} {
		var buf bytes.Buffer
		w, err := NewWriter(format, &buf, testSchema)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(rec); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if buf.String() != want {
			t.Errorf("%s: got\n%swant\n%s", format, buf.String(), want)
		}
	}
	var buf bytes.Buffer
	w, err := NewWriter("arrow", &buf, testSchema)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(rec); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := ipc.NewReader(&buf)
	if err != nil || !r.Next() || !array.RecordEqual(r.Record(), rec) || r.Next() {
		t.Errorf("the stream does not hold the record: %v", err)
	}
	if _, err := NewWriter("xml", &buf, testSchema); err == nil || err.Error() != `format "xml" is not one of jsonl, csv, arrow` {
		t.Errorf("error %v", err)
	}
}

func TestAppendJSONLinesRefusesATypeItDoesNotKnow(t *testing.T) {
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{{Name: "d", Type: arrow.FixedWidthTypes.Date32}}, nil))
	defer b.Release()
	rec := b.NewRecord()
	defer rec.Release()
	if _, err := AppendJSONLines(nil, rec); err == nil || err.Error() != "encode column d as JSON: type date32 has no encoding" {
		t.Errorf("error %v", err)
	}
}

// Whatever a record holds, encoding/json reads the same from it.
func FuzzJSON(f *testing.F) {
	for _, e := range examples {
		f.Add(e.id, math.Float32bits(e.score), e.segment, e.micros, e.offset)
	}
	f.Fuzz(func(t *testing.T, id string, bits uint32, segment string, micros, offset int64) {
		if year := time.UnixMicro(micros).UTC().Year(); year < 0 || year > 9999 {
			return // RFC 3339 ends there
		}
		score := math.Float32frombits(bits)
		line, err := AppendJSONLines(nil, record(t, testRow{id: id, score: score, segment: segment, micros: micros, offset: offset}))
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			ID, Segment *string
			Score       *float32
			Timestamp   time.Time
			Offset      int64
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		if finite := score-score == 0; finite != (got.Score != nil) || finite && *got.Score != score {
			t.Errorf("score %v in %s", score, line)
		}
		if got.Offset != offset || got.Timestamp.UnixMicro() != micros || (got.Segment == nil) != (segment == "") {
			t.Errorf("%+v from %s", got, line)
		}
		for _, s := range []struct {
			in  string
			out *string
		}{{id, got.ID}, {segment, got.Segment}} {
			if s.out == nil {
				continue
			}
			text, err := json.Marshal(s.in)
			if err != nil {
				t.Fatal(err)
			}
			var want string
			if err := json.Unmarshal(text, &want); err != nil {
				t.Fatal(err)
			}
			if *s.out != want {
				t.Errorf("%q became %q, want %q", s.in, *s.out, want)
			}
		}
	})
}

func BenchmarkAppendJSONLines(b *testing.B) {
	rows := make([]testRow, 4096)
	for i := range rows {
		rows[i] = testRow{id: fmt.Sprint("record-", i), score: float32(i) * 0.000123, micros: 1_700_000_000_000_000, offset: int64(i), segment: "de"}
	}
	rec := record(b, rows...)
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if dst, err = AppendJSONLines(dst[:0], rec); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*4096/b.Elapsed().Seconds(), "rows/s")
}
