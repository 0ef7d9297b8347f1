package featurizer

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"mime"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/oodmon/oodmon/internal/arrowcol"
	"github.com/oodmon/oodmon/internal/kernel"
)

// The codecs, as configuration names them.
const (
	CodecAuto        = "auto"
	CodecRaw         = "raw" // float32
	CodecRawFloat16  = "raw-float16"
	CodecRawBFloat16 = "raw-bfloat16"
	CodecJSON        = "json"
	CodecArrow       = "arrow"
)

// Codecs are all of them.
var Codecs = []string{CodecAuto, CodecRaw, CodecRawFloat16, CodecRawBFloat16, CodecJSON, CodecArrow}

// rawTypes are the codecs of raw values, by the parameter dtype of the content
// type application/octet-stream.
var rawTypes = map[string]string{"float32": CodecRaw, "float16": CodecRawFloat16, "bfloat16": CodecRawBFloat16}

// ArrowContentType is the media type of an Arrow IPC stream.
const ArrowContentType = "application/vnd.apache.arrow.stream"

// A Reason is why bytes are no embedding: one of a few, fit for a label.
type Reason string

const (
	TooLarge       Reason = "too_large"
	BadBatch       Reason = "bad_batch"
	Empty          Reason = "empty"
	UnknownCodec   Reason = "unknown_codec"
	BadJSON        Reason = "bad_json"
	BadArrow       Reason = "bad_arrow"
	WrongDimension Reason = "wrong_dimension"
	// NoDirection: an embedding that is not finite, or whose norm is under
	// 1e-12. The scorer finds it.
	NoDirection Reason = "no_direction"
)

// Reasons are all of them.
var Reasons = []Reason{TooLarge, BadBatch, Empty, UnknownCodec, BadJSON, BadArrow, WrongDimension, NoDirection}

// A Message is what a topic holds. Its value is used as long as the record that it
// becomes part of; the other slices are not kept.
type Message struct {
	Key, Value []byte
	// Size is the length that the value had in the log where it was too large
	// to be held, else 0.
	Size int
	// Err is nil, or why its bytes cannot be read from the log.
	Err error
	// Headers may be nil.
	Headers   Headers
	Time      time.Time
	Partition int32
	Offset    int64
}

// Headers look up a message's header; the answer is nil where there is none.
type Headers interface {
	Header(key string) []byte
}

func (m *Message) header(key string) []byte {
	if m.Headers == nil || key == "" {
		return nil
	}
	return m.Headers.Header(key)
}

// A Reject is a message, or one row of it, that is no embedding.
type Reject struct {
	Offset int64
	Row    int32 // -1: the whole message
	Reason Reason
	Err    error // what was found, and what was expected
}

// A Config says what a Builder expects.
type Config struct {
	// Dim is the dimension; 0: that of the first embedding that is JSON or
	// Arrow, since raw bytes could be anything.
	Dim             int
	Codec           string // one of Codecs
	MaxMessageBytes int
	// IDHeader and SegmentHeader name the headers that tell what the record
	// itself does not; "": none.
	IDHeader, SegmentHeader string
	// SegmentFromKey makes the key the segment where no header tells one either.
	SegmentFromKey bool
}

// A Builder turns messages into Arrow records. Its memory is used again from
// record to record. It is for one goroutine.
type Builder struct {
	cfg     Config
	columns columns
	rejects []Reject
	json    jsonRecord
	rows    jsonArray
	stream  streamReader
	taken   bool
	shared  shared // of the message in hand
	// contentType was the last, and contentCodec is its codec.
	contentType  []byte
	contentCodec string
}

// NewBuilder returns a Builder for embeddings of one dimension.
func NewBuilder(cfg Config) (*Builder, error) {
	if cfg.Dim < 0 {
		return nil, fmt.Errorf("featurizer: dimension %d must not be negative", cfg.Dim)
	}
	if cfg.MaxMessageBytes < 1 {
		return nil, fmt.Errorf("featurizer: the largest message of %d bytes must be positive", cfg.MaxMessageBytes)
	}
	if !slices.Contains(Codecs, cfg.Codec) {
		return nil, fmt.Errorf("featurizer: codec %q is not one of %q", cfg.Codec, Codecs)
	}
	b := &Builder{cfg: cfg}
	if cfg.Dim > 0 {
		b.columns = newColumns(cfg.Dim)
	}
	return b, nil
}

// fits reports whether n is the dimension, which it becomes if none was known.
func (b *Builder) fits(n int) bool {
	if b.cfg.Dim == 0 && n > 0 {
		b.cfg.Dim = n
		b.columns = newColumns(n)
	}
	return n > 0 && n == b.cfg.Dim
}

// Append decodes a message. What cannot be decoded becomes a Reject: a row, or
// the whole message where it is broken or more than 32 of its rows are bad.
//
// The id of a record is its own, else that of IDHeader, else the key as text,
// else empty. The segment is its own, else that of SegmentHeader, else with
// SegmentFromKey the key. The time is its own, else the message's. A key or header
// that is not UTF-8 is written in hexadecimal, and what is longer than 256 bytes is cut:
// it is copied into every row.
//
// The codec auto goes by the content type: application/octet-stream is raw, of
// float32 unless its parameter dtype is float16 or bfloat16; application/json is
// JSON, application/vnd.apache.arrow.stream Arrow. Without
// one, a message that begins with FF FF FF FF is Arrow; one that is valid JSON
// and begins with { or [ is JSON; any other is raw.
func (b *Builder) Append(m Message) {
	if b.taken {
		b.Reset()
	}
	start, firstReject := b.columns.len(), len(b.rejects)
	b.shared = shared{}
	if err := b.decode(&m); err != nil {
		// A message that is broken half-way is rejected whole.
		b.columns.truncate(start)
		b.rejects = b.rejects[:firstReject]
		bad := asDecodeError(err)
		b.rejects = append(b.rejects, Reject{m.Offset, -1, bad.reason, bad.err})
	}
}

// Take returns the rows since the last Take, and what was rejected. Both are
// valid until the next Append, as long as the messages' values are. The caller releases the record, which is nil
// while no dimension is known.
func (b *Builder) Take() (arrow.Record, []Reject) {
	if b.taken {
		b.Reset()
	}
	b.taken = true
	if b.cfg.Dim == 0 {
		return nil, b.rejects
	}
	return b.columns.record(), b.rejects
}

// Reset drops the rows and rejects that Append or Take left, and holds on to no
// message that they came from. What Take returned is not valid any more.
func (b *Builder) Reset() {
	b.columns.truncate(0)
	clear(b.rejects)
	b.rejects, b.taken, b.shared = b.rejects[:0], false, shared{}
}

// A decodeError is a rejection of what is being decoded.
type decodeError struct {
	reason Reason
	err    error
}

func (e *decodeError) Error() string { return e.err.Error() }

func reject(reason Reason, format string, args ...any) error {
	return &decodeError{reason, fmt.Errorf(format, args...)}
}

// maxBadRows is how many rows of one message may be bad before it is rejected
// whole: a bad row can take two bytes, and each becomes a dead letter.
const maxBadRows = 32

// rejectRow keeps a bad row apart, or returns what rejects the whole message.
// bad is how many of its rows were bad before.
func (b *Builder) rejectRow(m *Message, row int32, bad int, err error) error {
	why := asDecodeError(err)
	if bad == maxBadRows {
		return reject(why.reason, "more than %d rows are bad; row %d: %w", maxBadRows, row, why.err)
	}
	b.rejects = append(b.rejects, Reject{m.Offset, row, why.reason, why.err})
	return nil
}

// asDecodeError returns err, which only decode made.
func asDecodeError(err error) *decodeError {
	bad, ok := errors.AsType[*decodeError](err)
	if !ok {
		panic("featurizer: a decoder returned an error without a reason: " + err.Error())
	}
	return bad
}

func (b *Builder) decode(m *Message) error {
	if m.Err != nil {
		return &decodeError{BadBatch, m.Err}
	}
	if size := max(m.Size, len(m.Value)); size > b.cfg.MaxMessageBytes {
		return reject(TooLarge, "the message has %d bytes, at most %d are read", size, b.cfg.MaxMessageBytes)
	}
	if m.Size > 0 { // compressed
		return reject(TooLarge, "the message's record batch has %d bytes in the log, and decompressed more than is held in memory", m.Size)
	}
	if len(m.Value) == 0 {
		return reject(Empty, "the message is empty, expected an embedding")
	}
	codec, err := b.codec(m)
	if err != nil {
		return err
	}
	switch codec {
	case CodecJSON:
		return b.decodeJSON(m)
	case CodecArrow:
		return b.decodeArrow(m)
	default:
		return b.decodeRaw(m, codec)
	}
}

func (b *Builder) codec(m *Message) (string, error) {
	if b.cfg.Codec != CodecAuto {
		return b.cfg.Codec, nil
	}
	if contentType := m.header("content-type"); len(contentType) > 0 {
		if !bytes.Equal(contentType, b.contentType) { // a topic has few
			codec, err := codecOf(string(contentType))
			if err != nil {
				return "", err
			}
			b.contentType, b.contentCodec = append(b.contentType[:0], contentType...), codec
		}
		return b.contentCodec, nil
	}
	switch {
	case bytes.HasPrefix(m.Value, continuation):
		return CodecArrow, nil
	case looksLikeJSON(m.Value) && (len(m.Value) != 4*b.cfg.Dim || validJSON(m.Value)):
		return CodecJSON, nil
	}
	return CodecRaw, nil
}

// codecOf returns the codec of a content type.
func codecOf(contentType string) (string, error) {
	kind, parameters, err := mime.ParseMediaType(contentType)
	if err != nil {
		return "", reject(UnknownCodec, "content-type %.64q: %w", contentType, err)
	}
	switch kind {
	case "application/octet-stream":
		dtype, told := parameters["dtype"]
		codec, known := rawTypes[dtype]
		if !told {
			return CodecRaw, nil
		}
		if !known {
			return "", reject(UnknownCodec, "content-type %.64q: dtype is not one of float32, float16, bfloat16", contentType)
		}
		return codec, nil
	case "application/json":
		return CodecJSON, nil
	case ArrowContentType:
		return CodecArrow, nil
	}
	return "", reject(UnknownCodec, "content-type %.64q is not one of application/octet-stream, application/json, %s", contentType, ArrowContentType)
}

// decodeRaw reads little-endian values straight into the column.
func (b *Builder) decodeRaw(m *Message, codec string) error {
	dim := b.cfg.Dim
	if dim == 0 {
		return reject(WrongDimension, "the message has %d raw bytes, and no dimension is known yet", len(m.Value))
	}
	size, name := 2, strings.TrimPrefix(codec, "raw-")
	if codec == CodecRaw {
		size, name = 4, "float32"
	}
	if len(m.Value) != size*dim {
		hint := ""
		switch {
		case codec == CodecRaw && len(m.Value) == 2*dim:
			hint = fmt.Sprintf("; for values of 16 bits the codec is %s or %s", CodecRawFloat16, CodecRawBFloat16)
		case len(m.Value) == 8*dim:
			hint = "; these may be float64, NumPy's default, which is not read: convert them, as by astype(\"<f4\")"
		}
		return reject(WrongDimension, "the message has %d bytes, expected %d: little-endian %s of dimension %d%s", len(m.Value), size*dim, name, dim, hint)
	}
	c := &b.columns
	switch codec {
	case CodecRaw:
		c.add(arrowcol.Floats(m.Value))
	default:
		c.own()
		first := len(c.embedding)
		c.embedding = slices.Grow(c.embedding, dim)[:first+dim]
		widen := kernel.WidenFloat16
		if codec == CodecRawBFloat16 {
			widen = kernel.WidenBFloat16
		}
		widen(c.embedding[first:], m.Value)
	}
	b.close(m, optional{}, optional{}, optional{}, messageMicros(m), 0)
	return nil
}

// maxText bounds what a record says of itself: its score record holds the id
// twice, up to six bytes a byte, and has to fit in a message.
const maxText = 4 << 10

// checkTexts rejects texts that would end elsewhere than in a column: an output
// topic does not take a message without bound, nor Prometheus a label that is
// not UTF-8.
func checkTexts(bad Reason, id, label, segment optional) error {
	for _, c := range [...]struct {
		name string
		text []byte
	}{{ColID, id.text}, {ColLabel, label.text}, {ColSegment, segment.text}} {
		if len(c.text) > maxText {
			return reject(TooLarge, "%s has %d bytes, at most %d are read", c.name, len(c.text), maxText)
		}
		if !utf8.Valid(c.text) {
			return reject(bad, "%s is %.40q, expected UTF-8", c.name, c.text)
		}
	}
	return nil
}

// The times that RFC 3339 can write, with a year of four digits, in microseconds.
const (
	minMicros = -62167219200 * 1_000_000
	maxMicros = 253402300800*1_000_000 - 1
)

// messageMicros returns the message's time. A producer may write any number
// there, microseconds for example; that is no reason to reject its embedding.
func messageMicros(m *Message) int64 {
	switch millis := m.Time.UnixMilli(); {
	case millis < minMicros/1000:
		return minMicros
	case millis > maxMicros/1000:
		return maxMicros
	}
	return m.Time.UnixMicro()
}

// close ends a row; what the record does not say itself comes from the message.
func (b *Builder) close(m *Message, id, label, segment optional, micros int64, row int32) {
	if !b.shared.known && !(id.valid && segment.valid) {
		b.shared = b.sharedOf(m)
	}
	if !id.valid {
		id = b.shared.id
	}
	if !segment.valid {
		segment = b.shared.segment
	}
	b.columns.close(id.text, label, segment, micros, place{m.Partition, m.Offset, row})
}

// shared is what all rows of a message have that do not say it themselves.
type shared struct {
	known       bool
	id, segment optional
}

func (b *Builder) sharedOf(m *Message) shared {
	s := shared{known: true, id: optional{text: printable(m.Key)}}
	if id := m.header(b.cfg.IDHeader); len(id) > 0 {
		s.id.text = printable(id)
	}
	if segment := m.header(b.cfg.SegmentHeader); len(segment) > 0 {
		s.segment = optional{printable(segment), true}
	} else if b.cfg.SegmentFromKey && len(m.Key) > 0 {
		s.segment = optional{printable(m.Key), true}
	}
	return s
}

// maxShared bounds what all rows of a message have from its key or a header:
// a small message with many rows and a large key would fill the memory.
const maxShared = 256

// printable returns text, or if it is not UTF-8 its bytes in hexadecimal; no
// more than maxShared of it, and no part of a character.
func printable(text []byte) []byte {
	if !utf8.Valid(text) {
		text = hex.AppendEncode(nil, text[:min(len(text), maxShared/2)])
	}
	if len(text) <= maxShared {
		return text
	}
	end := maxShared
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}
