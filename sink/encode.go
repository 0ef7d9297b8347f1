package sink

import (
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
)

// ArrowContentType is the media type of messages in the format arrow.
const ArrowContentType = "application/vnd.apache.arrow.stream"

const jsonContentType = "application/json"

// AppendJSONLines appends one JSON object and a newline per row. The fields are
// the record's columns in their order. Times are RFC 3339 in microseconds, UTC;
// a number that is not finite is null.
func AppendJSONLines(dst []byte, rec arrow.Record) ([]byte, error) {
	enc, err := newJSONEncoder(rec)
	if err != nil {
		return dst, err
	}
	for row := range int(rec.NumRows()) {
		dst = append(enc.append(dst, row), '\n')
	}
	return dst, nil
}

// A jsonEncoder writes the rows of one record. What all of them have in common,
// the names and the columns of one value, is put together once: of the dozen
// columns of a score record about half differ from row to row.
type jsonEncoder struct {
	parts []jsonPart
	end   []byte
}

// A jsonPart is text of every row, and the column that follows it.
type jsonPart struct {
	text   []byte
	column func(dst []byte, row int) []byte
}

func newJSONEncoder(rec arrow.Record) (*jsonEncoder, error) {
	e := &jsonEncoder{}
	text := []byte{'{'}
	for i, field := range rec.Schema().Fields() {
		column, err := jsonColumn(rec.Column(i))
		if err != nil {
			return nil, fmt.Errorf("encode column %s as JSON: %w", field.Name, err)
		}
		if i > 0 {
			text = append(text, ',')
		}
		text = append(appendJSONString(text, field.Name), ':')
		if constant(rec.Column(i)) {
			text = column(text, 0)
			continue
		}
		e.parts = append(e.parts, jsonPart{text, column})
		text = nil
	}
	e.end = append(text, '}')
	return e, nil
}

func (e *jsonEncoder) append(dst []byte, row int) []byte {
	for i := range e.parts {
		dst = append(dst, e.parts[i].text...)
		dst = e.parts[i].column(dst, row)
	}
	return append(dst, e.end...)
}

// constant says whether a column has rows, and all of them are the same.
func constant(col arrow.Array) bool {
	n := col.Len()
	if n == 0 || col.NullN() > 0 {
		return n > 0 && col.NullN() == n
	}
	switch col := col.(type) {
	case *array.String:
		first := col.Value(0)
		for i := 1; i < n; i++ {
			if col.Value(i) != first {
				return false
			}
		}
		return true
	case *array.Int32:
		return same(col.Int32Values())
	case *array.Int64:
		return same(col.Int64Values())
	case *array.Timestamp:
		return same(col.TimestampValues())
	}
	return false
}

func same[T comparable](values []T) bool {
	for _, v := range values {
		if v != values[0] {
			return false
		}
	}
	return true
}

// jsonColumn returns what appends a row of a column.
func jsonColumn(col arrow.Array) (func(dst []byte, row int) []byte, error) {
	value, err := jsonValue(col)
	if err != nil || col.NullN() == 0 {
		return value, err
	}
	return func(dst []byte, row int) []byte {
		if col.IsNull(row) {
			return append(dst, "null"...)
		}
		return value(dst, row)
	}, nil
}

func jsonValue(col arrow.Array) (func(dst []byte, row int) []byte, error) {
	switch col := col.(type) {
	case *array.String:
		// Topic, model, class and segment are often those of the row before.
		var last string
		var text []byte
		return func(dst []byte, row int) []byte {
			if v := col.Value(row); v != last || text == nil {
				last, text = v, appendJSONString(text[:0], v)
			}
			return append(dst, text...)
		}, nil
	case *array.Float32:
		return func(dst []byte, row int) []byte { return appendJSONFloat(dst, col.Value(row)) }, nil
	case *array.Boolean:
		return func(dst []byte, row int) []byte { return strconv.AppendBool(dst, col.Value(row)) }, nil
	case *array.Int32:
		return func(dst []byte, row int) []byte { return strconv.AppendInt(dst, int64(col.Value(row)), 10) }, nil
	case *array.Int64:
		return func(dst []byte, row int) []byte { return strconv.AppendInt(dst, col.Value(row), 10) }, nil
	case *array.Timestamp:
		unit := col.DataType().(*arrow.TimestampType).Unit
		var clock timeFormatter
		return func(dst []byte, row int) []byte {
			dst = append(dst, '"')
			dst = clock.append(dst, col.Value(row).ToTime(unit).UnixMicro())
			return append(dst, '"')
		}, nil
	case *array.FixedSizeList:
		values, ok := col.ListValues().(*array.Float32)
		if !ok {
			break
		}
		n := int(col.DataType().(*arrow.FixedSizeListType).Len())
		floats := values.Float32Values()
		return func(dst []byte, row int) []byte {
			start := (col.Offset() + row) * n
			for i, v := range floats[start : start+n] {
				if i == 0 {
					dst = append(dst, '[')
				} else {
					dst = append(dst, ',')
				}
				dst = appendJSONFloat(dst, v)
			}
			return append(dst, ']')
		}, nil
	}
	return nil, fmt.Errorf("type %s has no encoding", col.DataType())
}

const timeFormat = "2006-01-02T15:04:05.000000Z07:00"

// A timeFormatter writes times as timeFormat does. Records of a batch share
// their seconds: it remembers the text of the last one, which takes a sixth of
// the encoder's time off.
type timeFormatter struct {
	second int64
	text   []byte // up to the point; empty: none yet
}

func (f *timeFormatter) append(dst []byte, micros int64) []byte {
	second := micros / 1e6
	fraction := micros - second*1e6
	if fraction < 0 {
		second, fraction = second-1, fraction+1e6
	}
	if second != f.second || len(f.text) == 0 {
		f.second = second
		f.text = time.Unix(second, 0).UTC().AppendFormat(f.text[:0], "2006-01-02T15:04:05.")
	}
	dst = append(dst, f.text...)
	var digits [7]byte
	digits[6] = 'Z'
	for i := 5; i >= 0; i-- {
		digits[i] = byte('0' + fraction%10)
		fraction /= 10
	}
	return append(dst, digits[:]...)
}

func appendJSONFloat(dst []byte, v float32) []byte {
	if v != v || math.IsInf(float64(v), 0) {
		return append(dst, "null"...)
	}
	format := byte('f')
	if abs := math.Abs(float64(v)); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(dst, float64(v), format, -1, 32)
}

const hexDigits = "0123456789abcdef"

// plain tells the bytes that stand for themselves in a JSON string.
var plain = func() (table [256]bool) {
	for c := byte(' '); c < utf8.RuneSelf; c++ {
		table[c] = c != '"' && c != '\\'
	}
	return table
}()

// appendJSONString quotes s. Bytes that are not UTF-8 become U+FFFD.
func appendJSONString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				dst = append(append(dst, s[start:i]...), "\ufffd"...)
				start = i + size
			}
			i += size
			continue
		}
		dst = append(dst, s[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	return append(append(dst, s[start:]...), '"')
}

// A Writer writes records to a stream, for `oodmon score`.
type Writer interface {
	Write(rec arrow.Record) error
	Close() error
}

// NewWriter returns a Writer of a format: jsonl, csv or arrow (an IPC stream).
func NewWriter(format string, w io.Writer, schema *arrow.Schema) (Writer, error) {
	switch format {
	case "jsonl":
		return &jsonWriter{w: w}, nil
	case "csv":
		out := &csvWriter{w: csv.NewWriter(w)}
		for _, f := range schema.Fields() {
			out.row = append(out.row, f.Name)
		}
		return out, out.w.Write(out.row)
	case "arrow":
		return ipc.NewWriter(w, ipc.WithSchema(schema)), nil
	}
	return nil, fmt.Errorf("format %q is not one of jsonl, csv, arrow", format)
}

type jsonWriter struct {
	w   io.Writer
	buf []byte
}

func (j *jsonWriter) Write(rec arrow.Record) (err error) {
	if j.buf, err = AppendJSONLines(j.buf[:0], rec); err == nil {
		_, err = j.w.Write(j.buf)
	}
	return err
}

func (j *jsonWriter) Close() error { return nil }

type csvWriter struct {
	w   *csv.Writer
	row []string
}

func (c *csvWriter) Write(rec arrow.Record) error {
	for i := range int(rec.NumRows()) {
		for j, col := range rec.Columns() {
			c.row[j] = csvCell(col, i)
		}
		if err := c.w.Write(c.row); err != nil {
			return err
		}
	}
	c.w.Flush()
	return c.w.Error()
}

func (c *csvWriter) Close() error {
	c.w.Flush()
	return c.w.Error()
}

func csvCell(col arrow.Array, row int) string {
	if col.IsNull(row) {
		return ""
	}
	switch col := col.(type) {
	case *array.Float32:
		return strconv.FormatFloat(float64(col.Value(row)), 'g', -1, 32)
	case *array.Timestamp:
		return col.Value(row).ToTime(col.DataType().(*arrow.TimestampType).Unit).UTC().Format(timeFormat)
	case *array.String:
		return col.Value(row)
	}
	return col.ValueStr(row)
}
