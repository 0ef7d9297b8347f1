package featurizer

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"github.com/goccy/go-json"
)

// A jsonRecord is one embedding as JSON has it. Other fields are ignored.
type jsonRecord struct {
	ID        jsonID      `json:"id"`
	Embedding jsonFloats  `json:"embedding"`
	Label     jsonLabel   `json:"label"`
	Segment   jsonSegment `json:"segment"`
	Timestamp jsonTime    `json:"timestamp"`
}

// A jsonRow is a record that is not decoded yet, so that a bad one spoils no
// other.
type jsonRow = json.RawMessage

// jsonArray are the records of a message. They are counted before memory is taken
// for them: a record can have two bytes, and takes some forty as a jsonRow.
type jsonArray []jsonRow

func (r *jsonArray) UnmarshalJSON(text []byte) error {
	if text[0] != '[' {
		return fmt.Errorf("records: %.40s is not an array", text)
	}
	if n := countElements(text); n > maxMessageRows {
		return reject(TooLarge, "the message has %d records, at most %d are read", n, maxMessageRows)
	}
	return json.Unmarshal(text, (*[]jsonRow)(r))
}

// countElements returns how many elements an array has that is valid JSON.
func countElements(text []byte) int {
	depth, commas := 0, 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		case ',':
			if depth == 1 {
				commas++
			}
		}
	}
	return commas + 1
}

// A jsonText is a string, or an integer as it is written. The types made of it
// know which field they are, for their errors.
type jsonText struct{ optional }

type (
	jsonID      struct{ jsonText }
	jsonLabel   struct{ jsonText }
	jsonSegment struct{ jsonText }
)

func (id *jsonID) UnmarshalJSON(text []byte) error     { return id.read(ColID, text) }
func (l *jsonLabel) UnmarshalJSON(text []byte) error   { return l.read(ColLabel, text) }
func (s *jsonSegment) UnmarshalJSON(text []byte) error { return s.read(ColSegment, text) }

func (t *jsonText) read(field string, text []byte) error {
	switch {
	case string(text) == "null":
		*t = jsonText{}
	case text[0] == '"':
		var s string
		if err := json.Unmarshal(text, &s); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
		*t = jsonText{optional{[]byte(s), true}}
	case isInteger(text):
		*t = jsonText{optional{bytes.Clone(text), true}}
	default:
		return fmt.Errorf("%s: %.40s is neither a string nor an integer", field, text)
	}
	return nil
}

// isInteger tells integers from JSON's other values. A number with a point or an
// exponent is none, whatever its value: it can be written in many ways, and a
// label or an id is compared as text.
func isInteger(text []byte) bool {
	digits := bytes.TrimPrefix(text, []byte{'-'})
	return len(digits) > 0 && len(bytes.Trim(digits, "0123456789")) == 0
}

// jsonFloats are finite numbers: a null or a number beyond float32 is an error.
type jsonFloats []float32

func (f *jsonFloats) UnmarshalJSON(text []byte) error {
	*f = (*f)[:0]
	if string(text) == "null" {
		return nil
	}
	if text[0] != '[' || text[len(text)-1] != ']' {
		return fmt.Errorf("embedding: %.40s is not an array", text)
	}
	rest := trimSpace(text[1 : len(text)-1])
	*f = slices.Grow(*f, bytes.Count(rest, []byte{','})+1)
	for len(rest) > 0 {
		number, after, more := bytes.Cut(rest, []byte{','})
		number = trimSpace(number)
		v, err := strconv.ParseFloat(unsafe.String(unsafe.SliceData(number), len(number)), 32)
		if err != nil || !isJSONNumber(number) {
			return fmt.Errorf("embedding: value %d is %.40q, expected a number within float32", len(*f), number)
		}
		*f = append(*f, float32(v))
		if rest = after; more && len(trimSpace(rest)) == 0 {
			return fmt.Errorf("embedding: no value follows the last comma")
		}
	}
	return nil
}

// isJSONNumber excludes what ParseFloat takes and JSON does not: Inf, NaN,
// hexadecimal, underscores.
func isJSONNumber(text []byte) bool {
	for _, c := range text {
		if (c < '0' || c > '9') && c != '-' && c != '+' && c != '.' && c != 'e' && c != 'E' {
			return false
		}
	}
	return len(text) > 0
}

// A jsonTime is an RFC 3339 string, or milliseconds since 1970.
type jsonTime struct {
	micros int64
	valid  bool
}

func (t *jsonTime) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		*t = jsonTime{}
		return nil
	}
	if text[0] == '"' {
		at, err := time.Parse(time.RFC3339Nano, string(bytes.Trim(text, `"`)))
		if err != nil {
			return fmt.Errorf("timestamp: %.40s is not a time like 2006-01-02T15:04:05Z", text)
		}
		*t = jsonTime{min(max(at.UnixMicro(), minMicros), maxMicros), true} // a zone may lead beyond
		return nil
	}
	millis, err := strconv.ParseFloat(string(text), 64)
	if err != nil || !(millis >= float64(minMicros/1000) && millis <= maxMillis) {
		return fmt.Errorf("timestamp: %.40s is neither a time like 2006-01-02T15:04:05Z nor milliseconds since 1970", text)
	}
	*t = jsonTime{int64(millis * 1000), true}
	return nil
}

const maxMillis = 1e14 // the year 5138

// looksLikeJSON reports whether the text begins and ends as an object or an
// array does.
func looksLikeJSON(text []byte) bool {
	text = trimSpace(text)
	if len(text) < 2 {
		return false
	}
	first, last := text[0], text[len(text)-1]
	return first == '{' && last == '}' || first == '[' && last == ']'
}

// trimSpace removes what JSON takes for white space; bytes.TrimSpace removes more.
func trimSpace(text []byte) []byte {
	space := func(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }
	for len(text) > 0 && space(text[0]) {
		text = text[1:]
	}
	for len(text) > 0 && space(text[len(text)-1]) {
		text = text[:len(text)-1]
	}
	return text
}

func validJSON(text []byte) bool { return json.Valid(text) }

// maxKeptValues is the largest embedding whose memory is used for the next.
const maxKeptValues = 1 << 18

// decode reads one record over the one before. The text must not be empty, nor
// begin with white space.
func (r *jsonRecord) decode(text []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = reject(BadJSON, "the decoder failed: %v", p)
		}
	}()
	*r = jsonRecord{Embedding: r.Embedding[:0]}
	if cap(r.Embedding) > maxKeptValues {
		r.Embedding = nil
	}
	if text[0] != '{' {
		return reject(BadJSON, "a record is %.40s, expected an object", text)
	}
	if err := json.Unmarshal(text, r); err != nil {
		return reject(BadJSON, "%w", err)
	}
	return nil
}

// decodeJSON reads one record, an array of records, or {"records": [...]}.
func (b *Builder) decodeJSON(m *Message) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = reject(BadJSON, "the decoder failed: %v", p)
		}
	}()
	text := trimSpace(m.Value)
	b.rows = b.rows[:0]
	switch {
	case len(text) > 0 && text[0] == '[':
		if err := json.Unmarshal(text, &b.rows); err != nil {
			return rejectJSON(err)
		}
	case len(text) > 0 && text[0] == '{':
		var many struct {
			Records *jsonArray `json:"records"`
		}
		if err := json.Unmarshal(text, &many); err != nil {
			return rejectJSON(err)
		}
		if many.Records == nil {
			return b.decodeRow(m, text, 0) // the one record is the message
		}
		b.rows = *many.Records
	default:
		return reject(BadJSON, "begins with %.20q, expected an object or an array of them", text)
	}
	if len(b.rows) == 0 {
		return reject(Empty, "no records, expected at least one")
	}
	before := len(b.rejects)
	for i, row := range b.rows {
		if err := b.decodeRow(m, row, int32(i)); err != nil {
			if err := b.rejectRow(m, int32(i), len(b.rejects)-before, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// rejectJSON rejects a message for an error of the decoder, or of what it called.
func rejectJSON(err error) error {
	if bad, ok := errors.AsType[*decodeError](err); ok {
		return bad
	}
	return reject(BadJSON, "%w", err)
}

func (b *Builder) decodeRow(m *Message, text []byte, row int32) error {
	r := &b.json
	if err := r.decode(text); err != nil {
		return err
	}
	if len(r.Embedding) == 0 {
		return reject(WrongDimension, "the field embedding is missing, null or empty, expected an array of numbers")
	}
	if !b.fits(len(r.Embedding)) {
		return reject(WrongDimension, "embedding has %d values, expected %d", len(r.Embedding), b.cfg.Dim)
	}
	id, label, segment := r.ID.optional, r.Label.optional, r.Segment.optional
	if err := checkTexts(BadJSON, id, label, segment); err != nil {
		return err
	}
	b.columns.add(r.Embedding)
	micros := r.Timestamp.micros
	if !r.Timestamp.valid {
		micros = messageMicros(m)
	}
	b.close(m, id, label, segment, micros, row)
	return nil
}
