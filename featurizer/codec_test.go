package featurizer

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	half "github.com/apache/arrow/go/v15/arrow/float16"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
)

type headers map[string]string

func (h headers) Header(key string) []byte {
	if v, ok := h[key]; ok {
		return []byte(v)
	}
	return nil
}

var vectors = [][]float32{{1, 2, 3}, {-.5, 0, 1e-30}, {4, 5, 6}}

func rawBytes(x []float32) []byte {
	var b []byte
	for _, v := range x {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

func newTestBuilder(t testing.TB, dim int) *Builder {
	t.Helper()
	b, err := NewBuilder(Config{Dim: dim, Codec: CodecAuto, MaxMessageBytes: 1 << 20, IDHeader: "id", SegmentHeader: "segment"})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// stream writes record batches of one schema as an IPC stream.
func stream(t testing.TB, schema *arrow.Schema, options []ipc.Option, fill ...func(*array.RecordBuilder)) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, append(options, ipc.WithSchema(schema))...)
	for _, f := range fill {
		b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		f(b)
		rec := b.NewRecord()
		if err := w.Write(rec); err != nil {
			t.Fatal(err)
		}
		rec.Release()
		b.Release()
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func fixedSize(dim int) *arrow.Schema {
	return arrow.NewSchema([]arrow.Field{
		{Name: "text", Type: arrow.BinaryTypes.String, Nullable: true}, // a column that nobody asked for
		{Name: ColID, Type: arrow.BinaryTypes.String},
		{Name: ColEmbedding, Type: arrow.FixedSizeListOf(int32(dim), arrow.PrimitiveTypes.Float32)},
		{Name: ColLabel, Type: arrow.BinaryTypes.String, Nullable: true},
	}, nil)
}

func fillFixed(x [][]float32) func(*array.RecordBuilder) {
	return func(b *array.RecordBuilder) {
		for i, v := range x {
			b.Field(0).AppendNull()
			b.Field(1).(*array.StringBuilder).Append(fmt.Sprint("id-", i))
			list := b.Field(2).(*array.FixedSizeListBuilder)
			list.Append(true)
			list.ValueBuilder().(*array.Float32Builder).AppendValues(v, nil)
			if i%2 == 0 {
				b.Field(3).(*array.StringBuilder).Append("even")
			} else {
				b.Field(3).AppendNull()
			}
		}
	}
}

func listOf[T float32 | float64](item arrow.DataType) (*arrow.Schema, func([][]float32) func(*array.RecordBuilder)) {
	schema := arrow.NewSchema([]arrow.Field{{Name: ColEmbedding, Type: arrow.ListOf(item)}, {Name: ColID, Type: arrow.PrimitiveTypes.Int64}}, nil)
	return schema, func(x [][]float32) func(*array.RecordBuilder) {
		return func(b *array.RecordBuilder) {
			for i, v := range x {
				list := b.Field(0).(*array.ListBuilder)
				list.Append(true)
				for _, f := range v {
					switch values := list.ValueBuilder().(type) {
					case *array.Float32Builder:
						values.Append(f)
					case *array.Float64Builder:
						values.Append(float64(f))
					}
				}
				if len(b.Fields()) > 1 {
					b.Field(1).(*array.Int64Builder).Append(int64(i))
				}
			}
		}
	}
}

// A list of float16 is widened, exactly: all that there are, but a NaN's payload.
func TestArrowHalfFloat(t *testing.T) {
	schema := arrow.NewSchema([]arrow.Field{{Name: ColEmbedding, Type: arrow.FixedSizeListOf(1<<10, arrow.FixedWidthTypes.Float16)}}, nil)
	value := stream(t, schema, nil, func(b *array.RecordBuilder) {
		list := b.Field(0).(*array.FixedSizeListBuilder)
		for i := range 1 << 16 {
			if i%(1<<10) == 0 {
				list.Append(true)
			}
			list.ValueBuilder().(*array.Float16Builder).Append(half.FromBits(uint16(i)))
		}
	})
	b := newTestBuilder(t, 1<<10)
	b.Append(Message{Value: value})
	rec, rejects := b.Take()
	if len(rejects) > 0 {
		t.Fatal(rejects[0].Err)
	}
	defer rec.Release()
	x, _, err := Embeddings(rec)
	if err != nil || len(x) != 1<<16 {
		t.Fatalf("%d values, %v", len(x), err)
	}
	for i, got := range x {
		exponent, fraction := i>>10&31, float64(i&1023)
		want := math.Ldexp(1+fraction/1024, exponent-15)
		switch {
		case exponent == 0:
			want = math.Ldexp(fraction, -24)
		case exponent == 31 && fraction == 0:
			want = math.Inf(1)
		case exponent == 31:
			want = math.NaN()
		}
		if i>>15 == 1 {
			want = math.Copysign(want, -1)
		}
		if math.IsNaN(want) && math.IsNaN(float64(got)) {
			continue
		}
		if float64(got) != want || math.Signbit(float64(got)) != math.Signbit(want) {
			t.Fatalf("%#04x is %g, want %g", i, got, want)
		}
	}
}

// Raw values of 16 bits, by the codec or by the content type.
func TestRawOf16Bits(t *testing.T) {
	halves := []byte{0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00} // 1, -2, 2^-24
	brains := []byte{0x80, 0x3f, 0x00, 0xc0, 0x49, 0x71} // 1, -2, 201·2^92
	octets := func(dtype string) headers { return headers{"content-type": "application/octet-stream; dtype=" + dtype} }
	for _, test := range []struct {
		codec string
		m     Message
		want  []float32
		err   string
	}{
		{CodecRawFloat16, Message{Value: halves}, []float32{1, -2, 0x1p-24}, ""},
		{CodecRawBFloat16, Message{Value: brains}, []float32{1, -2, 201 * 0x1p92}, ""},
		{CodecAuto, Message{Value: halves, Headers: octets("float16")}, []float32{1, -2, 0x1p-24}, ""},
		{CodecAuto, Message{Value: brains, Headers: octets(`"bfloat16"`)}, []float32{1, -2, 201 * 0x1p92}, ""},
		{CodecAuto, Message{Value: rawBytes([]float32{1, 2, 3}), Headers: octets("float32")}, []float32{1, 2, 3}, ""},
		{CodecAuto, Message{Value: halves, Headers: octets("float64")}, nil, `content-type "application/octet-stream; dtype=float64": dtype is not one of float32, float16, bfloat16`},
		{CodecRawFloat16, Message{Value: halves[:5]}, nil, "the message has 5 bytes, expected 6: little-endian float16 of dimension 3"},
		{CodecRawBFloat16, Message{Value: rawBytes([]float32{1, 2, 3})}, nil, "the message has 12 bytes, expected 6: little-endian bfloat16 of dimension 3"},
		{CodecAuto, Message{Value: halves}, nil, "the message has 6 bytes, expected 12: little-endian float32 of dimension 3; for values of 16 bits the codec is raw-float16 or raw-bfloat16"},
	} {
		b, err := NewBuilder(Config{Dim: 3, Codec: test.codec, MaxMessageBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		b.Append(test.m)
		b.Append(test.m) // the content type is known by now
		rec, rejects := b.Take()
		x, _, err := Embeddings(rec)
		if err != nil {
			t.Fatal(err)
		}
		if test.err != "" {
			if len(rejects) != 2 || rejects[1].Err.Error() != test.err || len(x) > 0 {
				t.Errorf("%s: %v, %v; want %s", test.codec, x, rejects, test.err)
			}
		} else if len(rejects) > 0 || !slices.Equal(x, append(test.want, test.want...)) {
			t.Errorf("%s: %v, %v; want %v twice", test.codec, x, rejects, test.want)
		}
		rec.Release()
	}
}

// Every codec gives the same embeddings.
func TestCodecsAgree(t *testing.T) {
	float32s, fill32 := listOf[float32](arrow.PrimitiveTypes.Float32)
	float64s, fill64 := listOf[float64](arrow.PrimitiveTypes.Float64)
	for name, messages := range map[string][]Message{
		"raw":              {{Value: rawBytes(vectors[0])}, {Value: rawBytes(vectors[1])}, {Value: rawBytes(vectors[2])}},
		"JSON objects":     {{Value: []byte(`{"embedding":[1,2,3]}`)}, {Value: []byte(` {"x":[{}],"embedding":[-0.5,0,1e-30]}`)}, {Value: []byte(`{"embedding":[4, 5.0 ,6e0]}`)}},
		"JSON array":       {{Value: []byte(`[{"embedding":[1,2,3]},{"embedding":[-5e-1,0,1e-30]},{"embedding":[4,5,6]}]`)}},
		"JSON records":     {{Value: []byte(`{"records":[{"embedding":[1,2,3]},{"embedding":[-0.5,0,1e-30]},{"embedding":[4,5,6]}]}`)}},
		"Arrow fixed size": {{Value: stream(t, fixedSize(3), nil, fillFixed(vectors))}},
		"Arrow batches":    {{Value: stream(t, fixedSize(3), nil, fillFixed(vectors[:1]), fillFixed(nil), fillFixed(vectors[1:]))}},
		"Arrow list":       {{Value: stream(t, float32s, nil, fill32(vectors))}},
		"Arrow float64":    {{Value: stream(t, float64s, nil, fill64(vectors))}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newTestBuilder(t, 3)
			for round := range 2 { // the memory of a record is used again
				for i, m := range messages {
					m.Offset = int64(i)
					b.Append(m)
				}
				rec, rejects := b.Take()
				if len(rejects) > 0 {
					t.Fatal(rejects[0].Err)
				}
				x, dim, err := Embeddings(rec)
				if err != nil || dim != 3 || fmt.Sprint(x) != "[1 2 3 -0.5 0 1e-30 4 5 6]" {
					t.Fatalf("round %d: %v, dimension %d, %v", round, x, dim, err)
				}
				row, err := Column[*array.Int32](rec, ColRow)
				if err != nil {
					t.Fatal(err)
				}
				if want := int32(3 - len(messages)); row.Value(2) != want {
					t.Errorf("the last row is %d of its message, want %d", row.Value(2), want)
				}
				rec.Release()
			}
		})
	}
}

func TestEmbeddingsOfASlice(t *testing.T) {
	b := newTestBuilder(t, 3)
	for _, v := range vectors {
		b.Append(Message{Value: rawBytes(v)})
	}
	rec, _ := b.Take()
	defer rec.Release()
	part := rec.NewSlice(1, 3)
	defer part.Release()
	if x, _, err := Embeddings(part); err != nil || fmt.Sprint(x) != "[-0.5 0 1e-30 4 5 6]" {
		t.Errorf("%v, %v", x, err)
	}
}

// Embeddings that are used where they lie in a message come out as those that are
// copied, whatever else is in the batch, and the message stays as it was.
func TestEmbeddingsThatAreLent(t *testing.T) {
	const dim = 2
	b := newTestBuilder(t, dim)
	inf := float32(math.Inf(1))
	first := stream(t, fixedSize(dim), nil, fillFixed([][]float32{{1, 2}, {3, 4}}), fillFixed([][]float32{{5, 6}}))
	second := stream(t, fixedSize(dim), nil, fillFixed([][]float32{{7, 8}, {9, inf}}))
	raw := rawBytes([]float32{10, 11})
	broken := first[:len(first)-40]
	for _, test := range []struct {
		name   string
		values [][]byte
		want   []float32
	}{
		{"one message", [][]byte{first}, []float32{1, 2, 3, 4, 5, 6}},
		{"two messages", [][]byte{first, second}, []float32{1, 2, 3, 4, 5, 6, 7, 8, 9, inf}},
		{"another codec after", [][]byte{second, raw}, []float32{7, 8, 9, inf, 10, 11}},
		{"another codec before", [][]byte{raw, second}, []float32{10, 11, 7, 8, 9, inf}},
		{"one that is broken half-way", [][]byte{broken, second}, []float32{7, 8, 9, inf}},
		{"one message again", [][]byte{second}, []float32{7, 8, 9, inf}},
	} {
		for i, value := range test.values {
			before := bytes.Clone(value)
			b.Append(Message{Value: value, Offset: int64(i)})
			if !bytes.Equal(value, before) {
				t.Errorf("%s: message %d was written to", test.name, i)
			}
		}
		rec, _ := b.Take()
		x, _, err := Embeddings(rec)
		if err != nil || !slices.Equal(x, test.want) {
			t.Errorf("%s: %v, %v, want %v", test.name, x, err, test.want)
		}
		rec.Release()
	}
}

func TestFieldsOfARecord(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for _, test := range []struct {
		name                     string
		m                        Message
		id, label, segment, time string
	}{
		{"all of its own", Message{Value: []byte(`{"embedding":[1,2,3],"id":"a\u00e9","label":"l","segment":"s","timestamp":"2020-01-02T03:04:05.5+01:00"}`), Key: []byte("k"), Headers: headers{"id": "h", "segment": "g"}, Time: at}, "aé", "l", "s", "2020-01-02T02:04:05.5Z"},
		{"from headers", Message{Value: rawBytes(vectors[0]), Key: []byte("k"), Headers: headers{"id": "h", "segment": "g"}, Time: at}, "h", "(null)", "g", "2026-03-04T05:06:07Z"},
		{"from the key", Message{Value: rawBytes(vectors[0]), Key: []byte("k"), Time: at}, "k", "(null)", "(null)", "2026-03-04T05:06:07Z"},
		{"a key that is not UTF-8", Message{Value: rawBytes(vectors[0]), Key: []byte{0xff, 1}, Time: at}, "ff01", "(null)", "(null)", "2026-03-04T05:06:07Z"},
		{"a long key", Message{Value: rawBytes(vectors[0]), Key: []byte("k" + strings.Repeat("é", 200)), Time: at}, "k" + strings.Repeat("é", 127), "(null)", "(null)", "2026-03-04T05:06:07Z"},
		{"a long key that is not UTF-8", Message{Value: rawBytes(vectors[0]), Key: bytes.Repeat([]byte{0xff}, 1000), Time: at}, strings.Repeat("ff", 128), "(null)", "(null)", "2026-03-04T05:06:07Z"},
		{"numbers", Message{Value: []byte(`{"embedding":[1,2,3],"id":-12,"timestamp":1500}`), Time: at}, "-12", "(null)", "(null)", "1970-01-01T00:00:01.5Z"},
		{"other numbers", Message{Value: []byte(`{"embedding":[1,2,3],"id":0,"label":3,"segment":-4}`), Time: at}, "0", "3", "-4", "2026-03-04T05:06:07Z"},
		{"numbers of a row", Message{Value: []byte(`{"records":[{"embedding":[1,2,3],"label":12345678901234567890,"segment":5}]}`), Time: at}, "", "12345678901234567890", "5", "2026-03-04T05:06:07Z"},
		{"names in another case", Message{Value: []byte(`{"Embedding":[1,2,3],"ID":"a","LABEL":"l"}`), Time: at}, "a", "l", "(null)", "2026-03-04T05:06:07Z"},
		{"nulls", Message{Value: []byte(`{"embedding":[1,2,3],"id":null,"label":null,"segment":null,"timestamp":null}`), Time: at}, "", "(null)", "(null)", "2026-03-04T05:06:07Z"},
	} {
		b := newTestBuilder(t, 3)
		b.Append(test.m)
		rec, rejects := b.Take()
		if len(rejects) > 0 {
			t.Fatalf("%s: %v", test.name, rejects[0].Err)
		}
		var got [3]string
		for i, name := range []string{ColID, ColLabel, ColSegment} {
			col, err := Column[*array.String](rec, name)
			if err != nil {
				t.Fatal(err)
			}
			got[i] = col.ValueStr(0)
		}
		micros, err := Column[*array.Timestamp](rec, ColTimestamp)
		if err != nil {
			t.Fatal(err)
		}
		when := micros.Value(0).ToTime(arrow.Microsecond).UTC().Format(time.RFC3339Nano)
		if got != [3]string{test.id, test.label, test.segment} || when != test.time {
			t.Errorf("%s: %q at %s", test.name, got, when)
		}
		rec.Release()
	}
}

func dictionaryStream(t testing.TB) []byte {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: ColEmbedding, Type: arrow.FixedSizeListOf(3, arrow.PrimitiveTypes.Float32)},
		{Name: ColLabel, Type: &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}},
	}, nil)
	return stream(t, schema, nil, func(b *array.RecordBuilder) {
		list := b.Field(0).(*array.FixedSizeListBuilder)
		list.Append(true)
		list.ValueBuilder().(*array.Float32Builder).AppendValues(vectors[0], nil)
		if err := b.Field(1).(*array.BinaryDictionaryBuilder).AppendString("x"); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRejects(t *testing.T) {
	ints := arrow.NewSchema([]arrow.Field{{Name: ColEmbedding, Type: arrow.ListOf(arrow.PrimitiveTypes.Int32)}}, nil)
	other := arrow.NewSchema([]arrow.Field{{Name: "vector", Type: arrow.FixedSizeListOf(3, arrow.PrimitiveTypes.Float32)}}, nil)
	whole := stream(t, fixedSize(3), nil, fillFixed(vectors))
	lists, fillLists := listOf[float32](arrow.PrimitiveTypes.Float32)
	withoutIDs := arrow.NewSchema(lists.Fields()[:1], nil)
	bare := arrow.NewSchema(fixedSize(3).Fields()[2:3], nil)
	many := func(b *array.RecordBuilder) {
		list := b.Field(0).(*array.FixedSizeListBuilder)
		for range 40_000 {
			list.Append(true)
			list.ValueBuilder().(*array.Float32Builder).AppendValues(vectors[0], nil)
		}
	}
	large := stream(t, bare, nil, many, many)
	oneRow := func(fields []arrow.Field, fill func(*array.RecordBuilder)) []byte {
		return stream(t, arrow.NewSchema(append(bare.Fields(), fields...), nil), nil, func(b *array.RecordBuilder) {
			list := b.Field(0).(*array.FixedSizeListBuilder)
			list.Append(true)
			list.ValueBuilder().(*array.Float32Builder).AppendValues(vectors[0], nil)
			fill(b)
		})
	}
	texts := func(label, segment string) []byte {
		return oneRow([]arrow.Field{{Name: ColLabel, Type: arrow.BinaryTypes.String}, {Name: ColSegment, Type: arrow.BinaryTypes.String}}, func(b *array.RecordBuilder) {
			b.Field(1).(*array.StringBuilder).Append(label)
			b.Field(2).(*array.StringBuilder).Append(segment)
		})
	}
	times := func(seconds arrow.Timestamp) []byte {
		return oneRow([]arrow.Field{{Name: ColTimestamp, Type: &arrow.TimestampType{Unit: arrow.Second}}}, func(b *array.RecordBuilder) {
			b.Field(1).(*array.TimestampBuilder).Append(seconds)
		})
	}
	asArrow := headers{"content-type": ArrowContentType}
	asJSON := headers{"content-type": "application/json; charset=utf-8"}
	for _, test := range []struct {
		name   string
		m      Message
		row    int32
		reason Reason
		want   string // a part of the text
	}{
		{"empty", Message{}, -1, Empty, "the message is empty, expected an embedding"},
		{"oversized", Message{Size: 2 << 20}, -1, TooLarge, "the message has 2097152 bytes, at most 1048576 are read"},
		{"a compressed bomb", Message{Size: 5000}, -1, TooLarge, "the message's record batch has 5000 bytes in the log, and decompressed more than is held in memory"},
		{"a long content type", Message{Value: whole, Headers: headers{"content-type": strings.Repeat("\xff", 1<<20)}}, -1, UnknownCodec, `content-type "` + strings.Repeat(`\xff`, 64) + `": mime: no media type`},
		{"a long id", Message{Value: []byte(`{"embedding":[1,2,3],"id":"` + strings.Repeat("a", 5000) + `"}`)}, -1, TooLarge, "id has 5000 bytes, at most 4096 are read"},
		{"a long Arrow label", Message{Value: texts(strings.Repeat("a", 5000), "")}, 0, TooLarge, "label has 5000 bytes, at most 4096 are read"},
		{"an Arrow segment that is not UTF-8", Message{Value: texts("", "a\xff")}, 0, BadArrow, `segment is "a\xff", expected UTF-8`},
		{"an Arrow time far away", Message{Value: times(1.8e15)}, 0, BadArrow, "column timestamp is 1800000000000000 s since 1970, expected a time of the years 0 to 9999"},
		{"a time before the year 0", Message{Value: []byte(`{"embedding":[1,2,3],"timestamp":-9e13}`)}, -1, BadJSON, "timestamp: -9e13 is neither a time"},
		{"truncated", Message{Value: rawBytes(vectors[0])[:11]}, -1, WrongDimension, "the message has 11 bytes, expected 12: little-endian float32 of dimension 3"},
		{"another dimension", Message{Value: rawBytes(vectors[0])[:8]}, -1, WrongDimension, "the message has 8 bytes, expected 12"},
		{"float64", Message{Value: make([]byte, 3*8)}, -1, WrongDimension, `the message has 24 bytes, expected 12: little-endian float32 of dimension 3; these may be float64, NumPy's default, which is not read: convert them, as by astype("<f4")`},
		{"unknown content type", Message{Value: whole, Headers: headers{"content-type": "application/avro"}}, -1, UnknownCodec, `content-type "application/avro" is not one of application/octet-stream, application/json, application/vnd.apache.arrow.stream`},
		{"JSON as Arrow", Message{Value: []byte(`{"embedding":[1,2,3]}`), Headers: asArrow}, -1, BadArrow, "a message begins with 7b 22 65 6d, expected ff ff ff ff"},
		{"raw as JSON", Message{Value: rawBytes(vectors[0]), Headers: asJSON}, -1, BadJSON, "expected an object or an array of them"},
		{"no embedding", Message{Value: []byte(`{"id":"a"}`)}, -1, WrongDimension, "the field embedding is missing, null or empty, expected an array of numbers"},
		{"null embedding", Message{Value: []byte(`{"embedding":null}`)}, -1, WrongDimension, "the field embedding is missing, null or empty, expected an array of numbers"},
		{"a null in the embedding", Message{Value: []byte(`{"embedding":[1,null,3]}`)}, -1, BadJSON, `embedding: value 1 is "null", expected a number within float32`},
		{"NaN", Message{Value: []byte(`{"embedding":[1,NaN,3]}`), Headers: asJSON}, -1, BadJSON, ""},
		{"infinite", Message{Value: []byte(`{"embedding":[1,1e39,3]}`)}, -1, BadJSON, `embedding: value 1 is "1e39", expected a number within float32`},
		{"text in the embedding", Message{Value: []byte(`{"embedding":["1",2,3]}`)}, -1, BadJSON, `embedding: value 0 is "\"1\"", expected a number within float32`},
		{"nested embedding", Message{Value: []byte(`{"embedding":[[1],2,3]}`)}, -1, BadJSON, "embedding: value 0 is"},
		{"a comma too many", Message{Value: []byte(`{"embedding":[1,2,3,]}`)}, -1, BadJSON, ""},
		{"an id that is an object", Message{Value: []byte(`{"embedding":[1,2,3],"id":{}}`)}, -1, BadJSON, "id: {} is neither a string nor an integer"},
		{"an id that is a fraction", Message{Value: []byte(`{"embedding":[1,2,3],"id":7.5}`)}, -1, BadJSON, "id: 7.5 is neither a string nor an integer"},
		{"a label that is a float", Message{Value: []byte(`{"embedding":[1,2,3],"label":3.0}`)}, -1, BadJSON, "label: 3.0 is neither a string nor an integer"},
		{"a label that is no text", Message{Value: []byte(`{"embedding":[1,2,3],"label":true}`)}, -1, BadJSON, "label: true is neither a string nor an integer"},
		{"a segment that is an array", Message{Value: []byte(`{"embedding":[1,2,3],"segment":["a"]}`)}, -1, BadJSON, `segment: ["a"] is neither a string nor an integer`},
		{"a label that is no JSON", Message{Value: []byte(`{"embedding":[1,2,3],"label":03}`)}, -1, BadJSON, ""},
		{"a row that is a number", Message{Value: []byte(`[ 1 ]`)}, 0, BadJSON, "a record is 1, expected an object"},
		{"records that are a number", Message{Value: []byte(`{"records":3}`)}, -1, BadJSON, "records: 3 is not an array"},
		{"a time of another form", Message{Value: []byte(`{"embedding":[1,2,3],"timestamp":"yesterday"}`)}, -1, BadJSON, `timestamp: "yesterday" is not a time like 2006-01-02T15:04:05Z`},
		{"a time far away", Message{Value: []byte(`{"embedding":[1,2,3],"timestamp":1e300}`)}, -1, BadJSON, "timestamp: 1e300 is neither a time"},
		{"deep nesting", Message{Value: []byte(`{"x":` + strings.Repeat("[", 400_000) + strings.Repeat("]", 400_000) + `,"embedding":[1,2,3]}`)}, -1, BadJSON, ""},
		{"a wrong row among good ones", Message{Value: []byte(`[{"embedding":[1,2,3]},{"embedding":[1]},{"embedding":[1,2,3]}]`)}, 1, WrongDimension, "embedding has 1 values, expected 3"},
		{"too many rows", Message{Value: []byte("[" + strings.Repeat("1,", 1<<16) + "1]")}, -1, TooLarge, "the message has 65537 records, at most 65536 are read"},
		{"too many bad rows", Message{Value: []byte(`[{"embedding":[1,2,3]}` + strings.Repeat(",1", 33) + "]")}, -1, BadJSON, "more than 32 rows are bad; row 33: "},
		{"too many bad Arrow rows", Message{Value: stream(t, withoutIDs, nil, fillLists(make([][]float32, 33)))}, -1, WrongDimension, "more than 32 rows are bad; row 32: embedding has 0 values, expected 3"},
		{"no rows", Message{Value: []byte(`[]`)}, -1, Empty, "no records, expected at least one"},
		{"no Arrow rows", Message{Value: stream(t, fixedSize(3), nil)}, -1, Empty, "no records, expected at least one"},
		{"too many Arrow rows", Message{Value: large}, -1, TooLarge, "the message has 80000 records or more, at most 65536 are read"},
		{"Arrow of another dimension", Message{Value: stream(t, fixedSize(2), nil, fillFixed([][]float32{{1, 2}}))}, -1, WrongDimension, "column embedding holds 2 values a row, expected 3"},
		{"Arrow without the column", Message{Value: stream(t, other, nil)}, -1, Empty, "no records"},
		{"Arrow of integers", Message{Value: stream(t, ints, nil, func(b *array.RecordBuilder) { b.Field(0).AppendNull() })}, -1, BadArrow, "column embedding has type list<item: int32, nullable>, expected a list of float32"},
		{"a dictionary", Message{Value: dictionaryStream(t)}, -1, BadArrow, `field "label": is dictionary-encoded, which is not read: write it as plain utf8`},
		{"compressed", Message{Value: stream(t, fixedSize(3), []ipc.Option{ipc.WithZstd()}, fillFixed(vectors))}, -1, BadArrow, "the record batch is compressed, which is not read: write it uncompressed"},
		{"torn Arrow", Message{Value: whole[:len(whole)-20]}, -1, BadArrow, "unexpected EOF"},
		{"a gigabyte of metadata", Message{Value: []byte{255, 255, 255, 255, 0, 0, 0, 64, 1, 2, 3}}, -1, BadArrow, "a message's metadata claims 1073741824 bytes, expected 8 to 65536"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newTestBuilder(t, 3)
			m := test.m
			m.Offset = 7
			b.Append(m)
			b.Append(Message{Value: rawBytes(vectors[2]), Offset: 8})
			rec, rejects := b.Take()
			defer rec.Release()
			if len(rejects) != 1 {
				t.Fatalf("%d rejects, want 1", len(rejects))
			}
			r := rejects[0]
			if r.Offset != 7 || r.Row != test.row || r.Reason != test.reason || !strings.Contains(r.Err.Error(), test.want) {
				t.Errorf("offset %d row %d reason %s: %v", r.Offset, r.Row, r.Reason, r.Err)
			}
			// What follows is decoded all the same.
			x, _, err := Embeddings(rec)
			if err != nil || len(x) < 3 || fmt.Sprint(x[len(x)-3:]) != "[4 5 6]" {
				t.Errorf("the message after it gave %v, %v", x, err)
			}
			if want := 1 + 2*int(max(0, test.row)); int(rec.NumRows()) != want {
				t.Errorf("%d rows, want %d", rec.NumRows(), want)
			}
		})
	}
}

// A producer may write any time into a message: it becomes one that RFC 3339
// can write, and the embedding is read.
func TestTimeOfAMessageIsBounded(t *testing.T) {
	b := newTestBuilder(t, 3)
	for i, millis := range []int64{math.MinInt64, 0, 1_700_000_000_000_000, math.MaxInt64} {
		b.Append(Message{Value: rawBytes(vectors[0]), Time: time.UnixMilli(millis), Offset: int64(i)})
	}
	rec, rejects := b.Take()
	if len(rejects) > 0 {
		t.Fatal(rejects[0].Err)
	}
	defer rec.Release()
	at, err := Column[*array.Timestamp](rec, ColTimestamp)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"0000-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"} {
		got, err := at.Value(i).ToTime(arrow.Microsecond).MarshalJSON()
		if err != nil || string(got) != `"`+want+`"` {
			t.Errorf("message %d: %s, %v, want %s", i, got, err, want)
		}
	}
}

// What all rows share is not multiplied by them, and bad rows of a few bytes
// are not multiplied by what a reject takes: either once filled the memory.
func TestSmallMessagesStaySmall(t *testing.T) {
	schema, fill := listOf[float32](arrow.PrimitiveTypes.Float32)
	withoutIDs := arrow.NewSchema(schema.Fields()[:1], nil)
	good := make([][]float32, 20_000)
	for i := range good {
		good[i] = vectors[0]
	}
	rows := stream(t, withoutIDs, nil, fill(good))
	b := newTestBuilder(t, 3)
	b.Append(Message{Value: rows, Key: bytes.Repeat([]byte("k"), 200_000), Headers: headers{"segment": strings.Repeat("s", 200_000)}})
	rec, rejects := b.Take()
	if rec.NumRows() != int64(len(good)) || len(rejects) != 0 {
		t.Fatalf("%d rows, %d rejects", rec.NumRows(), len(rejects))
	}
	for _, name := range []string{ColID, ColSegment} {
		col, err := Column[*array.String](rec, name)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(col.ValueBytes()); n > 256*len(good) {
			t.Errorf("column %s holds %d bytes", name, n)
		}
	}
	rec.Release()

	// 32 bad rows are kept apart, in each message anew.
	bad := []byte(`[{"embedding":[1,2,3]}` + strings.Repeat(",1", 32) + "]")
	for range 3 {
		b.Append(Message{Value: bad})
	}
	b.Append(Message{Value: []byte("[1" + strings.Repeat(",1", 60_000) + "]")})
	rec, rejects = b.Take()
	defer rec.Release()
	if rec.NumRows() != 3 || len(rejects) != 3*32+1 {
		t.Errorf("%d rows and %d rejects, want 3 and 97", rec.NumRows(), len(rejects))
	}
}

func TestDimensionOfTheFirstEmbedding(t *testing.T) {
	b := newTestBuilder(t, 0)
	b.Append(Message{Value: rawBytes(vectors[0])})
	if rec, rejects := b.Take(); rec != nil || len(rejects) != 1 || rejects[0].Err.Error() != "the message has 12 raw bytes, and no dimension is known yet" {
		t.Fatalf("%v, %v", rec, rejects)
	}
	b.Append(Message{Value: []byte(`{"embedding":[1,2]}`)})
	b.Append(Message{Value: []byte(`{"embedding":[1,2,3]}`)})
	rec, rejects := b.Take()
	defer rec.Release()
	if rec.NumRows() != 1 || len(rejects) != 1 || rejects[0].Err.Error() != "embedding has 3 values, expected 2" {
		t.Errorf("%d rows, %v", rec.NumRows(), rejects)
	}
}

// Lists of which the first are empty tell no dimension: each is a reject, and what
// follows is taken.
func TestEmptyListsTellNoDimension(t *testing.T) {
	b := newTestBuilder(t, 0)
	schema, fill := listOf[float32](arrow.PrimitiveTypes.Float32)
	whole := stream(t, schema, nil, fill([][]float32{{1, 2, 3}}))
	b.Append(Message{Value: stream(t, schema, nil, fill([][]float32{{}, {}}))})
	b.Append(Message{Value: whole[:len(whole)-100]})
	b.Append(Message{Value: whole})
	rec, rejects := b.Take()
	defer rec.Release()
	if rec.NumRows() != 1 || len(rejects) != 3 {
		t.Errorf("%d rows, %v; want 1 and 3 rejects", rec.NumRows(), rejects)
	}
}

// accepted checks what a builder let through, and returns it with the number of
// rejects.
func accepted(t *testing.T, b *Builder) (rows [][]float32, rejected int) {
	rec, rejects := b.Take()
	defer rec.Release()
	x, dim, err := Embeddings(rec)
	if err != nil || dim != 3 || len(x) != 3*int(rec.NumRows()) {
		t.Fatalf("%d values of dimension %d in %d rows: %v", len(x), dim, rec.NumRows(), err)
	}
	ids, err := Column[*array.String](rec, ColID)
	if err != nil {
		t.Fatal(err)
	}
	for i := range ids.Len() {
		_ = ids.Value(i)
	}
	for _, r := range rejects {
		if r.Reason == "" || r.Err == nil {
			t.Fatalf("a reject without a reason: %+v", r)
		}
	}
	for i := range ids.Len() {
		rows = append(rows, slices.Clone(x[3*i:3*i+3]))
	}
	return rows, len(rejects)
}

// fuzzCodec checks that what a codec accepts is what encode makes of it, value by
// value, when that is decoded again; and what exact says of the message, where no
// row was rejected.
func fuzzCodec(f *testing.F, codec string, encode func(t testing.TB, rows [][]float32) [][]byte, exact func(t *testing.T, value []byte, rows [][]float32), seeds ...[]byte) {
	for _, s := range seeds {
		f.Add(s)
	}
	builder := func() *Builder {
		b, err := NewBuilder(Config{Dim: 3, Codec: codec, MaxMessageBytes: 1 << 16})
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	b, second := builder(), builder()
	f.Fuzz(func(t *testing.T, value []byte) {
		b.Append(Message{Value: value})
		rows, rejects := accepted(t, b)
		if len(rows) == 0 {
			return
		}
		if exact != nil && rejects == 0 {
			exact(t, value, rows)
		}
		rows = rows[:min(len(rows), 100)]
		for _, message := range encode(t, rows) {
			second.Append(Message{Value: message})
		}
		again, rejects := accepted(t, second)
		if rejects > 0 || !sameBits(rows, again) {
			t.Fatalf("accepted %v, and after a second time there is %v, with %d rejects", rows, again, rejects)
		}
	})
}

// sameBits compares floats by their bits.
func sameBits(a, b [][]float32) bool {
	return slices.EqualFunc(a, b, func(x, y []float32) bool {
		return slices.EqualFunc(x, y, func(v, w float32) bool { return math.Float32bits(v) == math.Float32bits(w) })
	})
}

func encodeRaw(_ testing.TB, rows [][]float32) (all [][]byte) {
	for _, row := range rows {
		all = append(all, rawBytes(row))
	}
	return all
}

func encodeJSON(t testing.TB, rows [][]float32) (all [][]byte) {
	for _, row := range rows {
		text, err := json.Marshal(map[string]any{"embedding": row})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text)
	}
	return all
}

func encodeArrow(t testing.TB, rows [][]float32) [][]byte {
	return [][]byte{stream(t, fixedSize(3), nil, fillFixed(rows))}
}

// exactJSON checks that a message is JSON, and that encoding/json finds the same
// values, where it holds one embedding.
func exactJSON(t *testing.T, value []byte, rows [][]float32) {
	if !json.Valid(value) {
		t.Fatalf("accepted %q, which is not JSON", value)
	}
	if value = bytes.TrimSpace(value); value[0] != '{' || bytes.Count(value, []byte(":")) > 1 {
		return
	}
	var want struct{ Embedding []float32 }
	if err := json.Unmarshal(value, &want); err != nil || !sameBits(rows, [][]float32{want.Embedding}) {
		t.Fatalf("accepted %v from %q, which holds %v (%v)", rows, value, want.Embedding, err)
	}
}

// float16Of computes what the bits of a float16 say.
func float16Of(b []byte) float32 {
	bits := binary.LittleEndian.Uint16(b)
	exponent, fraction := int(bits>>10&31), float64(bits&1023)
	v := math.Ldexp(1024+fraction, exponent-25)
	switch {
	case exponent == 0:
		v = math.Ldexp(fraction, -24)
	case exponent == 31 && fraction == 0:
		v = math.Inf(1)
	case exponent == 31:
		v = math.NaN()
	}
	if bits>>15 == 1 {
		v = math.Copysign(v, -1)
	}
	return float32(v)
}

// Of raw bytes the length alone decides, and each value is what its bits say.
func FuzzRaw(f *testing.F) {
	types := []struct {
		codec string
		size  int
		value func(b []byte) float32
	}{
		{CodecRaw, 4, func(b []byte) float32 { return math.Float32frombits(binary.LittleEndian.Uint32(b)) }},
		{CodecRawFloat16, 2, float16Of},
		{CodecRawBFloat16, 2, func(b []byte) float32 {
			return math.Float32frombits(uint32(binary.LittleEndian.Uint16(b)) << 16)
		}},
	}
	var builders []*Builder
	for i, dtype := range types {
		b, err := NewBuilder(Config{Dim: 3, Codec: dtype.codec, MaxMessageBytes: 1 << 16})
		if err != nil {
			f.Fatal(err)
		}
		builders = append(builders, b)
		f.Add([]byte(nil), uint8(i))
		f.Add(rawBytes(vectors[0])[:3*dtype.size], uint8(i))
	}
	f.Add([]byte{0, 0x7c, 1, 0xfc, 0xff, 0x83}, uint8(1)) // an infinity, a NaN, a subnormal
	f.Fuzz(func(t *testing.T, value []byte, dtype uint8) {
		i := int(dtype) % len(types)
		codec, size := types[i].codec, types[i].size
		builders[i].Append(Message{Value: value})
		rows, rejects := accepted(t, builders[i])
		if fits := len(value) == 3*size; fits != (len(rows) == 1) || fits == (rejects == 1) {
			t.Fatalf("%s: %d rows and %d rejects of %d bytes", codec, len(rows), rejects, len(value))
		}
		for _, row := range rows {
			for k, v := range row {
				want := types[i].value(value[k*size:])
				if math.Float32bits(v) != math.Float32bits(want) && (codec != CodecRawFloat16 || v == v || want == want) { // there a NaN's payload is lost
					t.Fatalf("%s: value %d is %v (%x) in %x, want %v (%x)", codec, k, v, math.Float32bits(v), value, want, math.Float32bits(want))
				}
			}
		}
	})
}

func FuzzJSON(f *testing.F) {
	fuzzCodec(f, CodecJSON, encodeJSON, exactJSON, []byte(`{"embedding":[1,2,3],"id":1,"timestamp":"2020-01-02T03:04:05Z"}`), []byte(`[{"embedding":[1,2,3]},{}]`),
		[]byte(`{"records":[{"embedding":[1e38,-0,3]}]}`), []byte(`{"embedding":[1.5,2e1,3]}`), []byte(`{"embedding":[+1,01,.5]}`),
		[]byte(`{"embedding":[1,2,3],"label":3,"segment":-4}`))
}

func FuzzAuto(f *testing.F) {
	fuzzCodec(f, CodecAuto, encodeRaw, nil, rawBytes(vectors[0]), []byte(`{"embedding":[1,2,3]}`), stream(f, fixedSize(3), nil, fillFixed(vectors)))
}

func FuzzArrow(f *testing.F) {
	float64s, fill64 := listOf[float64](arrow.PrimitiveTypes.Float64)
	fuzzCodec(f, CodecArrow, encodeArrow, nil, stream(f, fixedSize(3), nil, fillFixed(vectors)), stream(f, float64s, nil, fill64(vectors)), dictionaryStream(f))
}

// Arrow's own reader dies of about one in a hundred such inputs.
func TestMutatedArrow(t *testing.T) {
	n := 50_000
	if testing.Short() {
		n = 20_000
	}
	whole := stream(t, fixedSize(3), nil, fillFixed(vectors), fillFixed(vectors))
	random := rand.New(rand.NewPCG(1, 2))
	b := newTestBuilder(t, 3)
	survived := 0
	for range n {
		value := bytes.Clone(whole)
		for range 1 + random.IntN(4) {
			at := random.IntN(len(value) - 8)
			switch random.IntN(4) {
			case 0:
				value[at] ^= 1 << random.IntN(8)
			case 1:
				value[at] = byte(random.Uint32())
			case 2:
				binary.LittleEndian.PutUint32(value[at&^3:], random.Uint32()>>random.IntN(32))
			case 3:
				binary.LittleEndian.PutUint64(value[at&^7:], random.Uint64()>>random.IntN(64))
			}
		}
		b.Append(Message{Value: value, Headers: headers{"content-type": ArrowContentType}})
		rec, rejects := b.Take()
		if len(rejects) == 0 {
			survived++
		}
		rec.Release()
	}
	t.Logf("%d of %d mutated streams were still sound", survived, n)
}

func benchmarkBuilder(b *testing.B, rows int, m Message) {
	builder := newTestBuilder(b, 512)
	b.SetBytes(int64(len(m.Value)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		builder.Append(m)
		if i%1000 == 999 {
			rec, rejects := builder.Take()
			if len(rejects) > 0 {
				b.Fatal(rejects[0].Err)
			}
			rec.Release()
		}
	}
	b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkBuilder(b *testing.B) {
	random := rand.New(rand.NewPCG(3, 3))
	x := make([][]float32, 256)
	for i := range x {
		x[i] = make([]float32, 512)
		for j := range x[i] {
			x[i][j] = float32(random.NormFloat64())
		}
	}
	text := []byte(`{"embedding":[`)
	for i, v := range x[0] {
		if i > 0 {
			text = append(text, ',')
		}
		text = fmt.Append(text, v)
	}
	text = append(text, "]}"...)
	b.Run("raw", func(b *testing.B) { benchmarkBuilder(b, 1, Message{Value: rawBytes(x[0])}) })
	b.Run("json", func(b *testing.B) { benchmarkBuilder(b, 1, Message{Value: text}) })
	b.Run("arrow256", func(b *testing.B) {
		builder := newTestBuilder(b, 512)
		m := Message{Value: stream(b, fixedSize(512), nil, fillFixed(x))}
		b.SetBytes(int64(len(m.Value)))
		b.ReportAllocs()
		for b.Loop() {
			builder.Append(m)
			rec, rejects := builder.Take()
			if len(rejects) > 0 {
				b.Fatal(rejects[0].Err)
			}
			rec.Release()
		}
		b.ReportMetric(float64(b.N*len(x))/b.Elapsed().Seconds(), "records/s")
	})
}

// A message of the largest size, with as many records as fit, is refused before
// memory is taken for them.
func TestManyTinyRecordsTakeNoMemory(t *testing.T) {
	const size = 16 << 20
	for name, text := range map[string]string{
		"an array":          "[" + strings.Repeat("1,", size/2-2) + "1]",
		"an object":         `{"records":[` + strings.Repeat("1,", size/2-20) + `1]}`,
		"a name escaped":    `{"rec\u006frds":[` + strings.Repeat("1,", size/2-20) + `1]}`,
		"strings of commas": `[` + strings.Repeat(`",\"",`, size/6-2) + `1]`,
	} {
		t.Run(name, func(t *testing.T) {
			b, err := NewBuilder(Config{Dim: 3, Codec: CodecJSON, MaxMessageBytes: size})
			if err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			b.Append(Message{Value: []byte(text)})
			runtime.ReadMemStats(&after)
			rec, rejects := b.Take()
			defer rec.Release()
			if len(rejects) != 1 || rejects[0].Row != -1 || rejects[0].Reason != TooLarge || !strings.Contains(rejects[0].Err.Error(), " records, at most 65536 are read") {
				t.Errorf("rejects %v", rejects)
			}
			if taken := after.TotalAlloc - before.TotalAlloc; taken > 6*size {
				t.Errorf("%d MB were allocated for a message of 16", taken>>20)
			} else {
				t.Logf("%d MB were allocated", taken>>20)
			}
		})
	}
}
