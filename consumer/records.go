package consumer

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/segmentio/kafka-go/compress"
)

// A record batch of version 2, big-endian:
//
//	 0 base offset int64        23 last offset delta int32
//	 8 length int32, from 12    27 first timestamp int64, ms
//	12 leader epoch int32       35 last timestamp int64
//	16 version int8             43 producer id int64
//	17 CRC32C uint32, from 21   51 producer epoch int16
//	21 attributes int16         53 base sequence int32
//	                            57 number of records int32
//	61 records, compressed as the attributes say
//
// Versions 0 and 1 are single messages: offset int64, size int32, CRC32 uint32,
// version int8, attributes int8, in version 1 a timestamp int64, then key and
// value, each with an int32 length. A compressed one holds such a set as its
// value.
const (
	batchHeader   = 61
	messageHeader = 18 // up to the attributes
	maxWindow     = 128 << 20

	headerMemory = int(unsafe.Sizeof(Header{})) // of one that is two bytes in the log

	attrCodec         = 0x07
	attrAppendTime    = 0x08
	attrTransactional = 0x10
	attrControl       = 0x20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errTooLarge is a batch that does not fit in memory when it is decompressed.
var errTooLarge = errors.New("larger than what is held in memory")

// A takeError is what take returned: it says nothing of the bytes.
type takeError struct{ error }

func (e *takeError) Unwrap() error { return e.error }

// A decoder reads the record batches of a fetch response.
type decoder struct {
	position   int64 // offsets before it have been seen
	maxMessage int
	arena      arena
	// take is called with each message, in the order of offsets, and with the
	// bytes that it holds.
	take func(m Message, size int) error
	// hold takes a share of the budget for what is more than ordinary, and giveBack ends
	// that; nil: there is no bound. take has the messages handled, where a share ofRecord or ofHeaders
	// is held.
	hold     func(kind int, n int64) error
	giveBack func(kind int)
	ordinary int64 // bytes of one record
	aborted  []abortedTransaction
	dropping map[int64]bool // producers whose open transaction was aborted
}

// A verifier takes the checksums of record batches as their bytes come, while
// these are in the cache. It stops at the first batch that is damaged or not of
// version 2: decoding says of it what is wrong.
type verifier struct {
	start   int // where a batch begins: all before are right
	end     int // where it ends; start: that is not known yet; -1: stopped
	sum     uint32
	sumUpTo int
}

// verify goes on with data, which begins with what it was given before.
func (v *verifier) verify(data []byte) {
	be := binary.BigEndian
	for v.end >= 0 {
		if v.end == v.start { // a batch begins
			header := data[v.start:]
			if len(header) < messageHeader+3 {
				return
			}
			length := 12 + int(int32(be.Uint32(header[8:])))
			if header[16] != 2 || length < batchHeader {
				v.end = -1
				return
			}
			v.end, v.sum, v.sumUpTo = v.start+length, 0, v.start+21
		}
		upTo := min(len(data), v.end)
		v.sum = crc32.Update(v.sum, castagnoli, data[v.sumUpTo:upTo])
		if v.sumUpTo = upTo; upTo < v.end {
			return
		}
		if v.sum != be.Uint32(data[v.start+17:]) {
			v.end = -1
			return
		}
		v.start = v.end
	}
}

// decode reads whole batches and leaves a last one that was cut off. The
// checksums of the first verified bytes have been found right.
//
// An error is what take returned, or damage that a second read may mend. What
// cannot be read though its checksum is right is as it was sent: it would fail
// for ever, and is given to take as Message.Err.
func (d *decoder) decode(data []byte, verified int, aborted []abortedTransaction) error {
	d.begin(aborted)
	for len(data) >= messageHeader {
		base, length, version := int64(binary.BigEndian.Uint64(data)), int64(int32(binary.BigEndian.Uint32(data[8:]))), data[16]
		if length < messageHeader-12 {
			return fmt.Errorf("the record batch at offset %d has length %d", base, length)
		}
		if 12+length > int64(len(data)) {
			return nil
		}
		raw := data[:12+length]
		data = data[12+length:]
		var err error
		if version == 0 || version == 1 {
			err = d.message(raw)
		} else {
			err = d.batch(raw, len(raw) <= verified)
		}
		if err != nil {
			return fmt.Errorf("the record batch at offset %d: %w", base, err)
		}
		verified -= len(raw)
	}
	return nil
}

// tooLarge passes a batch of so many bytes of which only the header is held: its
// records are delivered as oversized, unless their transaction was aborted.
func (d *decoder) tooLarge(header []byte, size int64, aborted []abortedTransaction) error {
	d.begin(aborted)
	be := binary.BigEndian
	base := int64(be.Uint64(header))
	last := base
	if header[16] == 2 {
		last += int64(int32(be.Uint32(header[23:])))
		if last < base {
			return fmt.Errorf("the record batch at offset %d claims offsets up to %d", base, last)
		}
		if d.dropped(last, be.Uint16(header[21:]), int64(be.Uint64(header[43:]))) {
			d.position = last + 1
			return nil
		}
	}
	return d.pass(base, last, Message{Oversized: size})
}

// begin takes the aborted transactions of a response.
func (d *decoder) begin(aborted []abortedTransaction) {
	d.aborted = slices.Clone(aborted)
	slices.SortFunc(d.aborted, func(a, b abortedTransaction) int { return cmp.Compare(a.first, b.first) })
	clear(d.dropping)
}

// dropped says whether a batch that ends at an offset belongs to a transaction
// that was aborted.
func (d *decoder) dropped(last int64, attributes uint16, producer int64) bool {
	for len(d.aborted) > 0 && d.aborted[0].first <= last {
		if d.dropping == nil {
			d.dropping = make(map[int64]bool)
		}
		d.dropping[d.aborted[0].producer] = true
		d.aborted = d.aborted[1:]
	}
	return attributes&attrTransactional != 0 && attributes&attrControl == 0 && d.dropping[producer]
}

// batch reads a batch of version 2, whose checksum may have been found right.
func (d *decoder) batch(raw []byte, verified bool) error {
	be := binary.BigEndian
	if len(raw) < batchHeader {
		return fmt.Errorf("%d bytes, expected at least %d", len(raw), batchHeader)
	}
	var err error
	if raw[16] != 2 {
		err = fmt.Errorf("version %d, expected 0, 1 or 2", raw[16])
	}
	if !verified {
		if found, computed := be.Uint32(raw[17:]), crc32.Checksum(raw[21:], castagnoli); found != computed {
			return cmp.Or(err, fmt.Errorf("its checksum is %08x, and its bytes have %08x: it was damaged in the log or on the way", found, computed))
		}
	}
	base, attributes := int64(be.Uint64(raw)), be.Uint16(raw[21:])
	last := base + int64(int32(be.Uint32(raw[23:])))
	producer := int64(be.Uint64(raw[43:]))
	count := int64(int32(be.Uint32(raw[57:])))
	times := timestamps{first: int64(be.Uint64(raw[27:]))}
	if attributes&attrAppendTime != 0 {
		times = timestamps{first: int64(be.Uint64(raw[35:])), fixed: true}
	}
	if last < base || count < 0 {
		err = fmt.Errorf("it claims offsets up to %d and %d records", last, count)
		last = max(base, last)
	}
	if last < d.position {
		return nil
	}
	dropped := d.dropped(last, attributes, producer)
	if attributes&attrControl != 0 {
		if abortMarker(raw[batchHeader:]) {
			delete(d.dropping, producer)
		}
		d.position = last + 1
		return nil
	}
	if dropped {
		d.position = last + 1
		return nil
	}
	if err == nil {
		set := &recordSet{next: base, base: base, last: last, count: count, times: times}
		if codec := compress.Compression(attributes & attrCodec); codec == compress.None {
			err = d.plain(raw[batchHeader:], set)
		} else {
			err = d.compressed(codec, raw[batchHeader:], set)
		}
	}
	return d.end(err, raw, base, last, times.of(0))
}

// end passes what is left of a batch whose checksum is right: nothing, or what
// err says of it.
func (d *decoder) end(err error, raw []byte, base, last int64, at time.Time) error {
	switch {
	case err == nil:
		d.position = last + 1
		return nil
	case is[*takeError](err):
		return err
	case errors.Is(err, errTooLarge):
		return d.pass(base, last, Message{Time: at, Oversized: int64(len(raw))})
	}
	from := max(base, d.position)
	err = fmt.Errorf("offsets %d to %d of the record batch at offset %d cannot be read: %w", from, last, base, err)
	return d.pass(base, last, Message{Time: at, Err: err})
}

// pass delivers the offsets from base to last that have not been seen as one
// message: a batch of a few bytes may claim two billion.
func (d *decoder) pass(base, last int64, m Message) error {
	m.Offset = max(base, d.position)
	m.More = last - m.Offset
	if m.More < 0 {
		return nil
	}
	return d.give(m, 0)
}

// A recordSet is what the header of a batch says of its records.
type recordSet struct {
	base, last int64 // offsets
	next       int64 // the least offset that the next record may have
	count      int64
	times      timestamps
}

// place reads what a record begins with: its time and offset.
func (s *recordSet) place(f *fields) (Message, error) {
	f.skip(1) // attributes: none are defined
	m := Message{Time: s.times.of(f.varint()), Offset: s.base + f.varint()}
	if f.err != nil {
		return m, f.err
	}
	if m.Offset < s.next || m.Offset > s.last {
		return m, fmt.Errorf("its offset %d is not between %d and %d", m.Offset, s.next, s.last)
	}
	s.next = m.Offset + 1
	return m, nil
}

// timestamps computes a record's time from the batch's.
type timestamps struct {
	first int64
	fixed bool // the time of the append holds for all
}

func (t timestamps) of(delta int64) time.Time {
	if t.fixed {
		return time.UnixMilli(t.first)
	}
	return time.UnixMilli(t.first + delta)
}

// abortMarker says whether a control batch's record ends a transaction by
// aborting it.
func abortMarker(payload []byte) bool {
	f := fields{b: payload}
	f.varint()
	f.skip(1)
	f.varint()
	f.varint()
	key := f.bytes(f.varint())
	return f.err == nil && len(key) >= 4 && binary.BigEndian.Uint16(key[2:]) == 0
}

// plain reads the records where they lie.
func (d *decoder) plain(payload []byte, set *recordSet) error {
	f := fields{b: payload}
	for i := range set.count {
		one := f.bytes(f.varint())
		err := f.err
		if err == nil {
			err = d.record(one, set, d.arena)
		}
		if err != nil {
			return fmt.Errorf("record %d of %d: %w", i+1, set.count, err)
		}
	}
	if len(f.b) > 0 {
		return fmt.Errorf("%d bytes follow its %d records", len(f.b), set.count)
	}
	return nil
}

// compressed reads the records one by one from the decompressor, and never
// holds more of them than a batch: a small record batch may unfold to very much.
func (d *decoder) compressed(codec compress.Compression, payload []byte, set *recordSet) error {
	window := unfolding(codec, payload)
	if err := d.unfold(window); err != nil {
		return err
	}
	defer d.unfolded()
	plain, err := decompress(codec, payload, window)
	if err != nil {
		return err
	}
	defer func() { _ = plain.Close() }() // a reader in memory
	in := bufio.NewReaderSize(plain, 32<<10)
	// Beyond it are the offsets and the framing of the headers.
	tooLong := int64(d.maxMessage) + 1<<16
	for i := range set.count {
		before := d.arena
		length, err := binary.ReadVarint(in)
		if err == nil && length < 0 {
			err = fmt.Errorf("length %d", length)
		}
		var skipped int64
		var one []byte
		if err == nil {
			keep := length
			if length > tooLong {
				keep = 32 // as much as attributes, time and offset may take
			}
			skipped = length - keep
			if one, err = d.room(int(keep)); err != nil {
				return err
			}
			if _, err = io.ReadFull(in, one); err == nil && skipped > 0 {
				_, err = io.CopyN(io.Discard, in, skipped)
			}
		}
		if err != nil {
			return fmt.Errorf("decompress record %d of %d (%v): %w", i+1, set.count, codec, decompressError(err))
		}
		if skipped == 0 {
			err = d.record(one, set, before)
		} else {
			var m Message
			if m, err = set.place(&fields{b: one}); err == nil {
				err = d.deliver(m, int(length), before)
			}
		}
		if err != nil {
			return fmt.Errorf("record %d of %d: %w", i+1, set.count, err)
		}
	}
	switch _, err := in.ReadByte(); {
	case err == nil:
		return fmt.Errorf("more follows its %d records", set.count)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("decompress what follows its %d records (%v): %w", set.count, codec, decompressError(err))
	}
	return nil
}

// unfold takes a share of the budget for a decompressor that takes so many bytes, if
// that is more than ordinary, and unfolded gives it back.
func (d *decoder) unfold(n int64) error {
	if n <= ordinaryUnfolding {
		return nil
	}
	return d.share(ofUnfolding, n)
}

func (d *decoder) unfolded() {
	if d.giveBack != nil {
		d.giveBack(ofUnfolding)
	}
}

// share takes a share of the budget. That there was none in time says nothing of the bytes.
func (d *decoder) share(kind int, n int64) error {
	if d.hold == nil {
		return nil
	}
	if err := d.hold(kind, n); err != nil {
		return &takeError{err}
	}
	return nil
}

// room returns memory for n bytes of a record. What is large is not taken from the
// arena, which lasts.
func (d *decoder) room(n int) ([]byte, error) {
	if !d.large(n) {
		return d.arena.take(n), nil
	}
	if err := d.share(ofRecord, int64(n)); err != nil {
		return nil, err
	}
	return make([]byte, n), nil
}

// roomForHeaders returns memory for n headers of a record, as room does.
func (d *decoder) roomForHeaders(n int) ([]Header, error) {
	if !d.large(n * headerMemory) {
		return d.arena.takeHeaders(n), nil
	}
	if err := d.share(ofHeaders, int64(n*headerMemory)); err != nil {
		return nil, err
	}
	return make([]Header, n), nil
}

func (d *decoder) large(n int) bool { return d.hold != nil && int64(n) > d.ordinary }

// record reads one record of version 2, without its length, and delivers it.
// before is the arena before anything was taken for it.
func (d *decoder) record(b []byte, set *recordSet, before arena) error {
	f := fields{b: b}
	m, err := set.place(&f)
	if err != nil || m.Offset < d.position {
		d.arena.giveBack(before)
		return err
	}
	m.Key = f.bytes(f.varint())
	m.Value = f.bytes(f.varint())
	size := len(m.Key) + len(m.Value)
	if headers := f.varint(); headers != 0 && f.err == nil {
		if headers < 0 || headers > int64(len(f.b)/2) {
			return fmt.Errorf("it claims %d headers in %d bytes", headers, len(f.b))
		}
		if size += int(headers) * headerMemory; size > d.maxMessage {
			return d.deliver(m, size, before)
		}
		if m.Headers, err = d.roomForHeaders(int(headers)); err != nil {
			return err
		}
		for i := range m.Headers {
			n := f.varint()
			if n < 0 {
				return fmt.Errorf("the key of header %d of %d has length %d", i+1, headers, n)
			}
			m.Headers[i].Key = d.arena.word(f.bytes(n))
			m.Headers[i].Value = f.bytes(f.varint())
			size += len(m.Headers[i].Key) + len(m.Headers[i].Value)
		}
	}
	if f.err == nil && len(f.b) > 0 {
		f.err = fmt.Errorf("it claims %d bytes, and has %d", len(b), len(b)-len(f.b))
	}
	if f.err != nil {
		return f.err
	}
	return d.deliver(m, size, before)
}

// deliver gives a message that has not been seen. One that is too large is
// replaced, and the memory that was taken for it given back.
func (d *decoder) deliver(m Message, size int, before arena) error {
	if m.Offset < d.position {
		d.arena.giveBack(before)
		return nil
	}
	if size > d.maxMessage {
		d.arena.giveBack(before)
		m, size = Message{Offset: m.Offset, Time: m.Time, Oversized: int64(size)}, 0
	}
	return d.give(m, size)
}

func (d *decoder) give(m Message, size int) error {
	d.position = m.Offset + m.More + 1
	if err := d.take(m, size); err != nil {
		return &takeError{err}
	}
	return nil
}

// message reads a message of version 0 or 1.
func (d *decoder) message(raw []byte) error {
	if err := messageSum(raw); err != nil {
		return err
	}
	offset, at, codec, key, value, err := parseMessage(raw)
	if offset < d.position {
		return nil
	}
	first := offset
	switch {
	case err != nil:
	case codec == compress.None:
		err = d.deliver(Message{Offset: offset, Time: at, Key: key, Value: value}, len(key)+len(value), d.arena)
	default:
		first = d.position // offset is that of the last
		err = d.messageSet(raw[16], offset, codec, value)
	}
	return d.end(err, raw, first, offset, at)
}

// messageSet reads the messages that one with an offset holds, compressed.
func (d *decoder) messageSet(version byte, offset int64, codec compress.Compression, value []byte) error {
	window := unfolding(codec, value)
	if err := d.unfold(window); err != nil {
		return err
	}
	defer d.unfolded()
	set, err := decompressAll(codec, value, window, ordinaryUnfolding)
	if errors.Is(err, errTooLarge) {
		if err := d.unfold(window + 3*batchLimit); err != nil { // it grows by copies
			return err
		}
		set, err = decompressAll(codec, value, window, batchLimit)
	}
	if err != nil {
		return fmt.Errorf("decompress (%v): %w", codec, err)
	}
	// In version 1 the inner offsets are relative, and the outer one is the last.
	var inner [][]byte
	final := int64(0)
	for len(set) > 0 {
		if len(set) < messageHeader {
			return fmt.Errorf("message %d of a compressed set has %d bytes", len(inner)+1, len(set))
		}
		length := int64(int32(binary.BigEndian.Uint32(set[8:])))
		if length < messageHeader-12 || 12+length > int64(len(set)) {
			return fmt.Errorf("message %d of a compressed set has length %d", len(inner)+1, length)
		}
		final = int64(binary.BigEndian.Uint64(set))
		inner = append(inner, set[:12+length])
		set = set[12+length:]
	}
	shift := int64(0)
	if version == 1 {
		shift = offset - final
	}
	for _, one := range inner {
		if err := messageSum(one); err != nil {
			return err
		}
		at, when, codec, key, value, err := parseMessage(one)
		if err != nil {
			return err
		}
		if codec != compress.None {
			return errors.New("a compressed message set holds a compressed message")
		}
		if at += shift; at > offset {
			return fmt.Errorf("a compressed set up to offset %d holds offset %d", offset, at)
		}
		m, size, before := Message{Offset: at, Time: when, Key: key, Value: value}, len(key)+len(value), d.arena
		if size <= d.maxMessage { // it outlasts the set
			b, err := d.room(size)
			if err != nil {
				return err
			}
			n := copy(b, key)
			copy(b[n:], value)
			if key != nil {
				m.Key = b[:n:n]
			}
			if value != nil {
				m.Value = b[n:]
			}
		}
		if err := d.deliver(m, size, before); err != nil {
			return err
		}
	}
	return nil
}

// messageSum checks the checksum of a message of version 0 or 1.
func messageSum(raw []byte) error {
	if found, computed := binary.BigEndian.Uint32(raw[12:]), crc32.ChecksumIEEE(raw[16:]); found != computed {
		return fmt.Errorf("the checksum of the message is %08x, and its bytes have %08x: it was damaged in the log or on the way", found, computed)
	}
	return nil
}

func parseMessage(raw []byte) (offset int64, at time.Time, codec compress.Compression, key, value []byte, err error) {
	offset = int64(binary.BigEndian.Uint64(raw))
	codec = compress.Compression(raw[17] & attrCodec)
	f := fields{b: raw[18:]}
	if raw[16] == 1 {
		at = time.UnixMilli(int64(f.number(8)))
	}
	key = f.bytes(int64(int32(f.number(4))))
	value = f.bytes(int64(int32(f.number(4))))
	return offset, at, codec, key, value, f.err
}

// unfolding returns how many bytes a decompressor of data takes: of zstd the window of
// its first frame, which is taken before anything is decompressed, of the others their
// largest block.
func unfolding(codec compress.Compression, data []byte) (n int64) {
	switch codec {
	case compress.Snappy:
		for blocks := (&snappyReader{data: data}); ; {
			block, err := blocks.block()
			if err != nil {
				return min(n, batchLimit)
			}
			if size, err := snappy.DecodedLen(block); err == nil {
				n = max(n, int64(size))
			}
		}
	case compress.Lz4:
		if len(data) > 5 { // magic, flags, and the largest block: 4 to 7 for 64 KiB to 4 MiB
			n = 2 << (8 + 2*(data[5]>>4&7))
		}
	case compress.Zstd:
		var h zstd.Header
		if h.Decode(data[:min(len(data), zstd.HeaderMaxSize)]) != nil {
			return 0 // so says the decompressor
		}
		size := h.WindowSize
		switch {
		case h.Skippable:
			size = maxWindow // of the next frame
		case h.SingleSegment:
			size = h.FrameContentSize
		}
		n = int64(min(size, maxWindow))
	}
	return n
}

// decompress returns a reader of the plain bytes. With zstd a window that is larger is
// refused: that of a later frame, which no producer writes.
func decompress(codec compress.Compression, data []byte, window int64) (io.ReadCloser, error) {
	switch codec {
	case compress.Gzip, compress.Lz4:
		return codec.Codec().NewReader(bytes.NewReader(data)), nil
	case compress.Snappy:
		return io.NopCloser(&snappyReader{data: data}), nil
	case compress.Zstd:
		if window > ordinaryUnfolding {
			dec, err := newZstd(window)
			if err != nil {
				return nil, err
			}
			return dec.IOReadCloser(), dec.Reset(bytes.NewReader(data))
		}
		dec, _ := zstdDecoders.Get().(*zstd.Decoder)
		if dec == nil {
			var err error
			if dec, err = newZstd(ordinaryUnfolding); err != nil {
				return nil, err
			}
		}
		return zstdReader{dec}, dec.Reset(bytes.NewReader(data))
	}
	return nil, fmt.Errorf("compression codec %d, expected 1 to 4", codec)
}

func newZstd(window int64) (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(uint64(window)))
}

var zstdDecoders sync.Pool // of *zstd.Decoder, which keep the window that they had

// A zstdReader gives its decoder back when it is closed.
type zstdReader struct{ *zstd.Decoder }

func (z zstdReader) Close() error {
	err := z.Reset(nil) // lets go of the batch
	zstdDecoders.Put(z.Decoder)
	return err
}

// decompressAll returns the plain bytes, if they are no more than limit.
func decompressAll(codec compress.Compression, data []byte, window int64, limit int) ([]byte, error) {
	in, err := decompress(codec, data, window)
	if err != nil {
		return nil, err
	}
	defer func() { _ = in.Close() }() // a reader in memory
	out, err := io.ReadAll(io.LimitReader(in, int64(limit)+1))
	if err == nil && len(out) > limit {
		err = errTooLarge
	}
	return out, decompressError(err)
}

// decompressError makes one class of the refusals to take that much memory,
// and says what an early end is.
func decompressError(err error) error {
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return fmt.Errorf("%w: %w", errTooLarge, err)
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

var xerialMagic = []byte("\x82SNAPPY\x00")

// A snappyReader reads one block, or the blocks of the framing that Java's
// clients write. It checks the size that a block claims before it is taken.
type snappyReader struct {
	data  []byte
	begun bool
	frame bool
	plain []byte
	next  []byte // the rest of plain
}

func (s *snappyReader) Read(p []byte) (int, error) {
	for len(s.next) == 0 {
		block, err := s.block()
		if err != nil {
			return 0, err
		}
		n, err := snappy.DecodedLen(block)
		if err != nil {
			return 0, err
		}
		if n > batchLimit {
			return 0, errTooLarge
		}
		if s.plain, err = snappy.Decode(s.plain[:cap(s.plain)], block); err != nil {
			return 0, err
		}
		s.next = s.plain
	}
	n := copy(p, s.next)
	s.next = s.next[n:]
	return n, nil
}

func (s *snappyReader) block() ([]byte, error) {
	if !s.begun {
		s.begun = true
		if len(s.data) >= 16 && bytes.HasPrefix(s.data, xerialMagic) {
			s.frame, s.data = true, s.data[16:]
		}
	}
	if len(s.data) == 0 {
		return nil, io.EOF
	}
	block := s.data
	if s.frame {
		f := fields{b: s.data}
		if block = f.bytes(int64(int32(f.number(4)))); f.err != nil {
			return nil, f.err
		}
		s.data = f.b
		return block, nil
	}
	s.data = nil
	return block, nil
}

// fields takes values off the front of b.
type fields struct {
	b   []byte
	err error
}

func (f *fields) varint() int64 {
	if f.err != nil {
		return 0
	}
	v, n := binary.Varint(f.b)
	if n <= 0 {
		f.err = io.ErrUnexpectedEOF
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) number(n int) uint64 {
	b := f.bytes(int64(n))
	if f.err != nil {
		return 0
	}
	v := uint64(0)
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}

// bytes takes n bytes. -1 means null, and so does any other negative length: to
// Kafka's own client, and to brokers, which let it pass.
func (f *fields) bytes(n int64) []byte {
	if f.err != nil || n < 0 {
		return nil
	}
	if n > int64(len(f.b)) {
		f.err = fmt.Errorf("a field claims %d bytes of %d", n, len(f.b))
		return nil
	}
	out := f.b[:n:n]
	f.b = f.b[n:]
	return out
}

func (f *fields) skip(n int64) { f.bytes(n) }

// An arena holds what the messages of one batch point into, beside the fetch
// buffer. A chunk that is full is left to the messages that point into it.
type arena struct {
	chunk   []byte
	headers []Header
	words   map[string]string // header keys are few
}

func (a *arena) reset() { a.chunk, a.headers = a.chunk[:0], a.headers[:0] }

// giveBack frees what was taken since before.
func (a *arena) giveBack(before arena) { a.chunk, a.headers = before.chunk, before.headers }

func (a *arena) take(n int) []byte {
	start := len(a.chunk)
	if cap(a.chunk)-start < n {
		a.chunk = make([]byte, 0, max(n, min(2*cap(a.chunk), 16<<20), 64<<10))
		start = 0
	}
	a.chunk = a.chunk[:start+n]
	return a.chunk[start : start+n : start+n]
}

func (a *arena) takeHeaders(n int) []Header {
	start := len(a.headers)
	if cap(a.headers)-start < n {
		a.headers = make([]Header, 0, max(n, min(2*cap(a.headers), 16<<10), 64))
		start = 0
	}
	a.headers = a.headers[:start+n]
	return a.headers[start : start+n : start+n]
}

// longWord is the length of a header key that is not kept for the next record:
// this one's limit does not count it there.
const longWord = 64

func (a *arena) word(b []byte) string {
	if len(b) > longWord {
		return string(b)
	}
	if w, ok := a.words[string(b)]; ok {
		return w
	}
	if a.words == nil || len(a.words) >= 256 {
		a.words = make(map[string]string)
	}
	w := string(b)
	a.words[w] = w
	return w
}
