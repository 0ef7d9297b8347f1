package consumer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/snappy"
	"github.com/segmentio/kafka-go/compress"
)

// A testBatch is a record batch of version 2 that a test puts together.
type testBatch struct {
	base       int64
	deltas     []int64 // offset of each record; by default 0, 1, 2, ...
	last       int64   // last offset delta; by default that of the last record
	attributes uint16
	producer   int64
	first, end int64 // timestamps
	values     [][]byte
	key        []byte
	headers    []Header
	count      int // claimed; by default the number of values
	// longer is how much more than its length the first record claims.
	longer int
	after  []byte // what follows the records
}

func (b testBatch) encode(t testing.TB) []byte {
	t.Helper()
	var payload []byte
	last := b.last
	for i, value := range b.values {
		delta := int64(i)
		if b.deltas != nil {
			delta = b.deltas[i]
		}
		last = max(last, delta)
		bytesOf := func(dst, v []byte) []byte {
			if v == nil {
				return binary.AppendVarint(dst, -1)
			}
			return append(binary.AppendVarint(dst, int64(len(v))), v...)
		}
		one := binary.AppendVarint(binary.AppendVarint([]byte{0}, int64(i)), delta)
		one = binary.AppendVarint(bytesOf(bytesOf(one, b.key), value), int64(len(b.headers)))
		for _, h := range b.headers {
			one = bytesOf(bytesOf(one, []byte(h.Key)), h.Value)
		}
		claimed := len(one)
		if i == 0 {
			claimed += b.longer
		}
		payload = append(binary.AppendVarint(payload, int64(claimed)), one...)
	}
	payload = append(payload, b.after...)
	if codec := compress.Compression(b.attributes & attrCodec); codec != compress.None {
		payload = pack(t, codec, payload)
	}
	count := len(b.values)
	if b.count != 0 {
		count = b.count
	}
	be := binary.BigEndian
	out := be.AppendUint64(nil, uint64(b.base))
	out = be.AppendUint32(out, uint32(49+len(payload)))
	out = be.AppendUint32(out, 0)
	out = append(out, 2, 0, 0, 0, 0)
	out = be.AppendUint16(out, b.attributes)
	out = be.AppendUint32(out, uint32(last))
	out = be.AppendUint64(out, uint64(b.first))
	out = be.AppendUint64(out, uint64(b.end))
	out = be.AppendUint64(out, uint64(b.producer))
	out = append(out, 0, 0, 0, 0, 0, 0)
	out = be.AppendUint32(out, uint32(count))
	return reseal(append(out, payload...))
}

// reseal computes the checksum anew.
func reseal(batch []byte) []byte {
	binary.BigEndian.PutUint32(batch[17:], crc32.Checksum(batch[21:], castagnoli))
	return batch
}

func pack(t testing.TB, codec compress.Compression, plain []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := codec.Codec().NewWriter(&buf)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// collect decodes and copies what is found.
func collect(position int64, maxMessage int, data []byte, aborted ...abortedTransaction) ([]Message, int64, error) {
	var all []Message
	d := &decoder{position: position, maxMessage: maxMessage}
	d.take = func(m Message, _ int) error {
		m.Key, m.Value = bytes.Clone(m.Key), bytes.Clone(m.Value)
		m.Headers = append([]Header(nil), m.Headers...)
		all = append(all, m)
		return nil
	}
	err := d.decode(data, verified(data, 7), aborted)
	return all, d.position, err
}

// verified returns how many bytes a verifier finds right that is given the data
// in portions.
func verified(data []byte, portion int) int {
	var v verifier
	for done := 0; done < len(data); {
		done = min(done+portion, len(data))
		v.verify(data[:done])
	}
	return v.start
}

func TestVerifier(t *testing.T) {
	good := testBatch{values: [][]byte{[]byte("one"), []byte("two")}}.encode(t)
	damaged := bytes.Clone(good)
	damaged[len(damaged)-1] ^= 1
	old := bytes.Clone(good)
	old[16] = 1
	short := bytes.Clone(good)
	binary.BigEndian.PutUint32(short[8:], 48)
	negative := bytes.Clone(good)
	binary.BigEndian.PutUint32(negative[8:], 1<<31)
	n := len(good)
	for name, c := range map[string]struct {
		data []byte
		want int
	}{
		"nothing":           {nil, 0},
		"three":             {slices.Concat(good, good, good), 3 * n},
		"the last cut off":  {slices.Concat(good, good[:n-1]), n},
		"a header cut off":  {slices.Concat(good, good[:20]), n},
		"one damaged":       {slices.Concat(good, damaged, good), n},
		"one of version 1":  {slices.Concat(good, old, good), n},
		"one too short":     {slices.Concat(good, short, good), n},
		"a negative length": {slices.Concat(good, negative, good), n},
	} {
		for portion := 1; portion <= max(1, len(c.data)); portion++ {
			if got := verified(c.data, portion); got != c.want {
				t.Errorf("%s, in portions of %d: %d bytes are right, want %d", name, portion, got, c.want)
			}
		}
	}
}

func offsets(messages []Message) []int64 {
	var all []int64
	for _, m := range messages {
		all = append(all, m.Offset)
	}
	return all
}

var codecs = []compress.Compression{compress.None, compress.Gzip, compress.Snappy, compress.Lz4, compress.Zstd}

func TestDecodeReadsEveryCodec(t *testing.T) {
	for _, codec := range codecs {
		t.Run(codec.String(), func(t *testing.T) {
			want := [][]byte{[]byte("one"), {}, nil, bytes.Repeat([]byte("long "), 100_000)}
			batch := testBatch{
				base: 40, first: 1_700_000_000_000, values: want, key: []byte("key"), attributes: uint16(codec),
				headers: []Header{{Key: "a", Value: []byte("1")}, {Key: "a", Value: nil}},
			}
			got, next, err := collect(40, 1<<20, batch.encode(t))
			if err != nil {
				t.Fatal(err)
			}
			if next != 44 || len(got) != 4 {
				t.Fatalf("%d messages and the next offset %d, want 4 and 44", len(got), next)
			}
			for i, m := range got {
				if m.Offset != 40+int64(i) || !bytes.Equal(m.Value, want[i]) || (m.Value == nil) != (want[i] == nil) || string(m.Key) != "key" || m.Oversized != 0 {
					t.Errorf("message %d: offset %d, key %q, %d bytes, oversized %d", i, m.Offset, m.Key, len(m.Value), m.Oversized)
				}
				if at := time.UnixMilli(1_700_000_000_000 + int64(i)); !m.Time.Equal(at) {
					t.Errorf("message %d: time %v, want %v", i, m.Time, at)
				}
				if !reflect.DeepEqual(m.Headers, batch.headers) {
					t.Errorf("message %d: headers %v, want %v", i, m.Headers, batch.headers)
				}
			}
		})
	}
}

// Java's clients frame snappy; others write one block.
func TestDecodeReadsSnappyAsOneBlock(t *testing.T) {
	plain := testBatch{base: 1, values: [][]byte{[]byte("one"), []byte("two")}}.encode(t)
	batch := append(bytes.Clone(plain[:batchHeader]), snappy.Encode(nil, plain[batchHeader:])...)
	batch[22] = byte(compress.Snappy)
	binary.BigEndian.PutUint32(batch[8:], uint32(len(batch)-12))
	got, _, err := collect(1, 100, reseal(batch))
	if err != nil || len(got) != 2 || string(got[1].Value) != "two" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestDecodeLeavesOutWhatIsBeforeThePosition(t *testing.T) {
	data := testBatch{base: 10, values: make([][]byte, 5)}.encode(t)
	data = append(data, testBatch{base: 15, values: make([][]byte, 2)}.encode(t)...)
	for _, c := range []struct {
		position int64
		want     []int64
	}{
		{0, []int64{10, 11, 12, 13, 14, 15, 16}}, {13, []int64{13, 14, 15, 16}}, {15, []int64{15, 16}}, {17, nil},
	} {
		got, next, err := collect(c.position, 10, data)
		if err != nil || !reflect.DeepEqual(offsets(got), c.want) || next != 17 {
			t.Errorf("from %d: %v, next %d, %v; want %v and 17", c.position, offsets(got), next, err, c.want)
		}
	}
}

// Compaction leaves holes, and empty batches that hold their place in the log.
func TestDecodePassesWhatCompactionLeft(t *testing.T) {
	data := testBatch{base: 10, deltas: []int64{3, 7}, last: 9, values: make([][]byte, 2)}.encode(t)
	data = append(data, testBatch{base: 20, last: 4}.encode(t)...)
	end := int64(25)
	for _, codec := range codecs { // that the batch had when it had records
		empty := testBatch{base: end, last: 4}.encode(t)
		empty[22] = byte(codec)
		data = append(data, reseal(empty)...)
		end += 5
	}
	got, next, err := collect(10, 10, data)
	if want := []int64{13, 17}; err != nil || !reflect.DeepEqual(offsets(got), want) || next != end {
		t.Errorf("%v, next %d, %v; want %v and %d", offsets(got), next, err, want, end)
	}
}

func TestDecodeLeavesOutAbortedTransactionsAndMarkers(t *testing.T) {
	const transactional, control = attrTransactional, attrTransactional | attrControl
	marker := func(base, producer int64, kind byte) []byte {
		return testBatch{base: base, attributes: control, producer: producer, key: []byte{0, 0, 0, kind}, values: [][]byte{{0, 0, 0, 0, 0, 0}}}.encode(t)
	}
	data := bytes.Join([][]byte{
		testBatch{base: 0, attributes: transactional, producer: 7, values: make([][]byte, 2)}.encode(t), // aborted
		testBatch{base: 2, attributes: transactional, producer: 8, values: make([][]byte, 1)}.encode(t), // committed
		testBatch{base: 3, values: make([][]byte, 1)}.encode(t),                                         // of no transaction
		marker(4, 7, 0), marker(5, 8, 1),
		testBatch{base: 6, attributes: transactional, producer: 7, values: make([][]byte, 1)}.encode(t), // committed
		marker(7, 7, 1),
		testBatch{base: 8, attributes: transactional, producer: 8, values: make([][]byte, 1)}.encode(t), // aborted
		marker(9, 8, 0),
	}, nil)
	got, next, err := collect(0, 10, data, abortedTransaction{producer: 8, first: 8}, abortedTransaction{producer: 7, first: 0})
	if want := []int64{2, 3, 6}; err != nil || !reflect.DeepEqual(offsets(got), want) || next != 10 {
		t.Errorf("%v, next %d, %v; want %v and 10", offsets(got), next, err, want)
	}
}

func TestDecodeDeliversTheOffsetOfAnOversizedRecord(t *testing.T) {
	for _, codec := range codecs {
		for _, size := range []int{101, 90_000} { // just beyond, and beyond what is read of it
			t.Run(fmt.Sprint(codec, " ", size), func(t *testing.T) {
				values := [][]byte{[]byte("before"), make([]byte, size), make([]byte, 100)}
				got, next, err := collect(5, 100, testBatch{base: 5, attributes: uint16(codec), values: values}.encode(t))
				if err != nil || len(got) != 3 || next != 8 {
					t.Fatalf("%d messages, next %d, %v; want 3 and 8", len(got), next, err)
				}
				if got[0].Oversized != 0 || got[1].Value != nil || got[1].Oversized < int64(size) || got[1].Offset != 6 || len(got[2].Value) != 100 {
					t.Errorf("oversized %d, %d, %d at offset %d", got[0].Oversized, got[1].Oversized, got[2].Oversized, got[1].Offset)
				}
			})
		}
	}
}

// A small batch that unfolds to very much is read through, and held nowhere.
func TestDecodeDoesNotHoldACompressionBomb(t *testing.T) {
	values := [][]byte{make([]byte, 200<<20), []byte("after")}
	bomb := testBatch{base: 1, attributes: uint16(compress.Zstd), values: values}.encode(t)
	if len(bomb) > 1<<20 {
		t.Fatalf("the bomb has %d bytes", len(bomb))
	}
	values = nil
	d := &decoder{position: 1, maxMessage: 1 << 20}
	var got []int64
	d.take = func(m Message, _ int) error { got = append(got, m.Oversized); return nil }
	used := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		got, d.position = nil, 1
		if err := d.decode(bomb, 0, nil); err != nil {
			b.Fatal(err)
		}
	})
	if len(got) != 2 || got[0] < 200<<20 || got[1] != 0 {
		t.Errorf("oversized %v", got)
	}
	if used.AllocedBytesPerOp() > 32<<20 {
		t.Errorf("%d MB taken", used.AllocedBytesPerOp()>>20)
	}
}

// held decodes as a reader does that flushes a batch of limit bytes, and returns
// the most memory that was held at a flush, and the messages.
func held(t *testing.T, maxMessage, limit int, data []byte) (most uint64, messages []Message) {
	t.Helper()
	memory := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, size := memory(), 0
	d := &decoder{maxMessage: maxMessage}
	var batch []Message
	flush := func() {
		now := memory()
		most = max(most, now-min(before, now))
		for _, m := range batch {
			messages = append(messages, Message{Offset: m.Offset, Oversized: m.Oversized, Err: m.Err})
		}
		batch, size = batch[:0], 0
		d.arena.reset()
	}
	d.take = func(m Message, n int) error {
		batch = append(batch, m)
		if size += n; size >= limit {
			flush()
		}
		return nil
	}
	if err := d.decode(data, 0, nil); err != nil {
		t.Fatal(err)
	}
	flush()
	runtime.KeepAlive(data)
	return most, messages
}

// A header takes two bytes in the log, before compression, and 40 in memory.
func TestDecodeCountsTheMemoryOfHeaders(t *testing.T) {
	values := make([][]byte, 16)
	for headers, oversized := range map[int]bool{20_000: false, 500_000: true} {
		for _, codec := range []compress.Compression{compress.None, compress.Zstd} {
			data := testBatch{attributes: uint16(codec), values: values, headers: make([]Header, headers)}.encode(t)
			most, got := held(t, 1<<20, 1<<20, data)
			if len(got) != 16 || (got[0].Oversized > 1<<20) != oversized || got[15].Err != nil {
				t.Errorf("%d headers (%v): %+v", headers, codec, got)
			}
			if most > 16<<20 { // the window of zstd is among it
				t.Errorf("%d headers (%v): %d MB were held", headers, codec, most>>20)
			}
		}
	}
}

// What was taken for a record that is too large is not held by the small one
// that comes after it.
func TestDecodeHoldsNothingOfOversizedRecords(t *testing.T) {
	const maxMessage = 4 << 20
	var values [][]byte
	for range 8 {
		values = append(values, []byte("tiny"), make([]byte, maxMessage+100))
	}
	data := testBatch{attributes: uint16(compress.Zstd), values: values}.encode(t)
	values = nil
	most, got := held(t, maxMessage, 1<<20, data)
	if len(got) != 16 || got[0].Oversized != 0 || got[1].Oversized != maxMessage+100 {
		t.Errorf("%+v", got)
	}
	if most > 3*maxMessage {
		t.Errorf("%d MB were held", most>>20)
	}
}

// The keys of headers are few, and kept: but not those that are long.
func TestDecodeKeepsNoLongKeysOfHeaders(t *testing.T) {
	var data []byte
	for i := range 200 {
		key := fmt.Sprint(i, strings.Repeat("k", 64<<10))
		data = append(data, testBatch{base: int64(i), values: make([][]byte, 1), headers: []Header{{Key: key}}}.encode(t)...)
	}
	most, got := held(t, 1<<20, 1<<20, data)
	if len(got) != 200 || got[199].Oversized != 0 {
		t.Errorf("%+v", got)
	}
	if most > 4<<20 {
		t.Errorf("%d MB were held", most>>20)
	}
}

func TestDecodeLeavesACutBatch(t *testing.T) {
	whole := testBatch{base: 1, values: make([][]byte, 3)}.encode(t)
	second := testBatch{base: 4, values: make([][]byte, 3)}.encode(t)
	for cut := range second {
		got, next, err := collect(1, 10, append(bytes.Clone(whole), second[:cut]...))
		if err != nil || len(got) != 3 || next != 4 {
			t.Fatalf("cut to %d bytes: %d messages, next %d, %v", cut, len(got), next, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := func() []byte { return testBatch{base: 77, values: [][]byte{[]byte("value")}}.encode(t) }
	change := func(at int, b ...byte) []byte { data := good(); copy(data[at:], b); return data }
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"a flipped bit":     {change(70, 'X'), "the record batch at offset 77: its checksum is "},
		"another version":   {change(16, 9, 'X'), "the record batch at offset 77: version 9, expected 0, 1 or 2"},
		"a negative length": {change(8, 0xff, 0xff, 0xff, 0xff), "the record batch at offset 77 has length -1"},
		"a short batch":     {change(8, 0, 0, 0, 20)[:32], "the record batch at offset 77: 32 bytes, expected at least 61"},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := collect(0, 100, c.data)
			if err == nil || !strings.HasPrefix(err.Error(), c.want) || len(got) > 1 {
				t.Errorf("%d messages, error %v\nwant %s", len(got), err, c.want)
			}
		})
	}
}

// What was sent with a right checksum does not become readable by reading it
// again: it is told, with its offsets, and what follows is read.
func TestDecodePassesWhatCannotBeRead(t *testing.T) {
	three := [][]byte{[]byte("one"), []byte("two"), []byte("three")}
	good := func() []byte { return testBatch{base: 77, values: three}.encode(t) }
	change := func(at int, b ...byte) []byte { data := good(); copy(data[at:], b); return reseal(data) }
	zstd := uint16(compress.Zstd)
	inner := legacy(1, 1, 0, 0, nil, []byte("two"))
	inner[len(inner)-1] ^= 1
	set := append(legacy(1, 0, 0, 0, nil, []byte("one")), inner...)
	for name, c := range map[string]struct {
		data []byte
		from int64 // the first offset that cannot be read
		last int64
		want string
	}{
		"another version":                {change(16, 9), 77, 79, "version 9, expected 0, 1 or 2"},
		"a negative count":               {change(57, 0xff, 0xff, 0xff, 0xff), 77, 79, "it claims offsets up to 79 and -1 records"},
		"offsets backwards":              {change(23, 0xff, 0xff, 0xff, 0xff), 77, 77, "it claims offsets up to 76 and 3 records"},
		"too many records":               {testBatch{base: 77, count: math.MaxInt32, values: three, last: math.MaxInt32 - 1}.encode(t), 80, 77 + math.MaxInt32 - 1, "record 4 of 2147483647: unexpected EOF"},
		"too many records in zstd":       {testBatch{base: 77, count: 5, values: three, last: 4, attributes: zstd}.encode(t), 80, 81, "decompress record 4 of 5 (zstd): unexpected EOF"},
		"too few":                        {testBatch{base: 77, count: 1, values: three}.encode(t), 78, 79, "22 bytes follow its 1 records"},
		"too few in zstd":                {testBatch{base: 77, count: 1, values: three, attributes: zstd}.encode(t), 78, 79, "more follows its 1 records"},
		"an offset before it":            {testBatch{base: 77, deltas: []int64{-2}, last: 1, values: [][]byte{nil}}.encode(t), 77, 78, "record 1 of 1: its offset 75 is not between 77 and 78"},
		"an offset twice":                {testBatch{base: 77, deltas: []int64{0, 0, 1}, values: three}.encode(t), 78, 78, "record 2 of 3: its offset 77 is not between 78 and 78"},
		"no such codec":                  {change(22, 5), 77, 79, "compression codec 5, expected 1 to 4"},
		"not gzip":                       {change(22, 1), 77, 79, "decompress record 1 of 3 (gzip): "},
		"a value beyond its end":         {change(66, 0x7e), 77, 79, "record 1 of 3: a field claims 63 bytes of "},
		"a record that is too short":     {testBatch{base: 77, longer: -3, values: three}.encode(t), 77, 79, "record 1 of 3: a field claims 3 bytes of 1"},
		"a record that is too long":      {testBatch{base: 77, longer: 3, values: three}.encode(t), 77, 79, "record 1 of 3: it claims 12 bytes, and has 9"},
		"the same in zstd, too short":    {testBatch{base: 77, longer: -3, values: three, attributes: zstd}.encode(t), 77, 79, "record 1 of 3: a field claims 3 bytes of 1"},
		"the same in zstd, too long":     {testBatch{base: 77, longer: 3, values: three, attributes: zstd}.encode(t), 77, 79, "record 1 of 3: it claims 12 bytes, and has 9"},
		"a header without a name":        {testBatch{base: 77, values: three[:1], headers: []Header{{}}, last: 0}.namelessHeader(t), 77, 77, "record 1 of 1: the key of header 1 of 1 has length -1"},
		"a message set, damaged within":  {legacy(1, 78, 0, compress.Gzip, nil, pack(t, compress.Gzip, set)), 78, 78, "the checksum of the message is "},
		"a message set that isn't one":   {legacy(0, 78, 0, compress.Gzip, nil, []byte("gzip?")), 77, 78, "decompress (gzip): "},
		"a message longer than it is":    {legacyLonger(78), 78, 78, "a field claims 100 bytes of 5"},
		"a message set with what is not": {legacy(1, 78, 0, compress.Gzip, nil, pack(t, compress.Gzip, append(legacy(1, 0, 0, 0, nil, []byte("one")), "more"...))), 77, 78, "message 2 of a compressed set has 4 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			after := testBatch{base: c.last + 1, values: [][]byte{[]byte("after")}}.encode(t)
			got, next, err := collect(77, 100, append(c.data, after...))
			if err != nil || next != c.last+2 || len(got) < 2 {
				t.Fatalf("%d messages, next %d, %v; want %d next", len(got), next, err, c.last+2)
			}
			if last := got[len(got)-1]; string(last.Value) != "after" || last.Offset != c.last+1 {
				t.Errorf("the next batch has %+v", last)
			}
			bad := got[len(got)-2]
			if bad.Offset != c.from || bad.Offset+bad.More != c.last || bad.Err == nil || bad.Value != nil || bad.Oversized != 0 {
				t.Fatalf("%+v; want offsets %d to %d", bad, c.from, c.last)
			}
			if text := bad.Err.Error(); !strings.HasPrefix(text, fmt.Sprintf("offsets %d to %d of the record batch at offset ", c.from, c.last)) || !strings.Contains(text, " cannot be read: "+c.want) {
				t.Errorf("error %s\nwant %s", text, c.want)
			}
			for i, m := range got[:len(got)-2] {
				if m.Err != nil || m.Offset != 77+int64(i) || m.More != 0 {
					t.Errorf("before it: %+v", m)
				}
			}
		})
	}
}

// namelessHeader encodes a batch of one record with one header, whose key is null.
func (b testBatch) namelessHeader(t testing.TB) []byte {
	data := b.encode(t)
	data[len(data)-2] = 1 // a varint, -1
	return reseal(data)
}

// legacyLonger encodes a message whose value claims more than there is.
func legacyLonger(offset int64) []byte {
	data := legacy(0, offset, 0, 0, nil, []byte("value"))
	binary.BigEndian.PutUint32(data[len(data)-9:], 100)
	binary.BigEndian.PutUint32(data[12:], crc32.ChecksumIEEE(data[16:]))
	return data
}

// A batch that a transaction aborted is no loss, whatever is in it.
func TestDecodeLeavesOutWhatCannotBeReadOfAnAbortedTransaction(t *testing.T) {
	data := testBatch{base: 5, longer: 3, attributes: attrTransactional, producer: 7, values: make([][]byte, 2)}.encode(t)
	got, next, err := collect(5, 10, data, abortedTransaction{producer: 7, first: 5})
	if err != nil || len(got) != 0 || next != 7 {
		t.Errorf("%v, next %d, %v; want none and 7", got, next, err)
	}
}

// Kafka's own client takes any negative length for null, and so do brokers.
func TestDecodeTakesNegativeLengthsForNull(t *testing.T) {
	data := testBatch{base: 5, values: [][]byte{nil, []byte("value")}}.encode(t)
	for i, at := range []int{batchHeader + 4, batchHeader + 5, batchHeader + 7 + 4} { // key, value, the second's key
		data[at] = byte(2*(i+2) - 1) // -2, -3, -4
	}
	got, next, err := collect(5, 10, reseal(data))
	if err != nil || len(got) != 2 || next != 7 || got[0].Key != nil || got[0].Value != nil || got[0].Err != nil || got[1].Key != nil || string(got[1].Value) != "value" {
		t.Errorf("%+v, next %d, %v", got, next, err)
	}
}

// legacy encodes a message of version 0 or 1.
func legacy(version byte, offset, timestamp int64, codec compress.Compression, key, value []byte) []byte {
	be := binary.BigEndian
	body := []byte{version, byte(codec)}
	if version == 1 {
		body = be.AppendUint64(body, uint64(timestamp))
	}
	for _, b := range [][]byte{key, value} {
		if b == nil {
			body = be.AppendUint32(body, math.MaxUint32)
			continue
		}
		body = append(be.AppendUint32(body, uint32(len(b))), b...)
	}
	out := be.AppendUint64(nil, uint64(offset))
	out = be.AppendUint32(out, uint32(len(body)+4))
	return append(be.AppendUint32(out, crc32.ChecksumIEEE(body)), body...)
}

func TestDecodeReadsMessageSets(t *testing.T) {
	for _, codec := range []compress.Compression{compress.None, compress.Gzip, compress.Snappy} {
		for _, version := range []byte{0, 1} {
			t.Run(fmt.Sprint(codec, " version ", version), func(t *testing.T) {
				var data []byte
				if codec == compress.None {
					data = append(legacy(version, 8, 5000, 0, []byte("k"), []byte("one")), legacy(version, 9, 5000, 0, nil, []byte("two"))...)
				} else {
					first := int64(8)
					if version == 1 {
						first = 0 // relative to the wrapper, which has the last offset
					}
					inner := append(legacy(version, first, 5000, 0, []byte("k"), []byte("one")), legacy(version, first+1, 5000, 0, nil, []byte("two"))...)
					data = legacy(version, 9, 5000, codec, nil, pack(t, codec, inner))
				}
				got, next, err := collect(8, 100, data)
				if err != nil || !reflect.DeepEqual(offsets(got), []int64{8, 9}) || next != 10 {
					t.Fatalf("offsets %v, next %d, %v; want [8 9] and 10", offsets(got), next, err)
				}
				if string(got[0].Key) != "k" || string(got[0].Value) != "one" || got[1].Key != nil || string(got[1].Value) != "two" {
					t.Errorf("%q %q, %q %q", got[0].Key, got[0].Value, got[1].Key, got[1].Value)
				}
				if version == 1 && !got[1].Time.Equal(time.UnixMilli(5000)) {
					t.Errorf("time %v", got[1].Time)
				}
				if got, _, err := collect(9, 100, data); err != nil || len(got) != 1 || got[0].Offset != 9 {
					t.Errorf("from offset 9: %v, %v", got, err)
				}
				data[len(data)-1] ^= 1
				if _, _, err := collect(8, 100, data); err == nil || !strings.Contains(err.Error(), "damaged") {
					t.Errorf("with a flipped bit: %v", err)
				}
			})
		}
	}
}

func cloneHeaders(headers []Header) (all []Header) {
	for _, h := range headers {
		all = append(all, Header{Key: strings.Clone(h.Key), Value: bytes.Clone(h.Value)})
	}
	return all
}

// Nothing that a log may hold ends the process or delivers an offset twice.
func FuzzDecode(f *testing.F) {
	for _, codec := range codecs {
		f.Add(testBatch{base: 3, attributes: uint16(codec), key: []byte("k"), values: [][]byte{[]byte("one"), nil}, headers: []Header{{Key: "h"}}}.encode(f), int64(0))
	}
	f.Add(legacy(1, 9, 0, compress.Gzip, nil, pack(f, compress.Gzip, legacy(1, 0, 0, 0, nil, []byte("one")))), int64(0))
	for _, codec := range []compress.Compression{compress.None, compress.Zstd} {
		for _, b := range []testBatch{
			{longer: 3}, {longer: -3}, {last: math.MaxInt32 - 1, count: math.MaxInt32}, {count: 1}, {deltas: []int64{0, 0}}, {after: []byte("more")},
			{headers: make([]Header, 200)}, {key: make([]byte, 1<<10)},
		} {
			b.base, b.attributes, b.values = 3, uint16(codec), [][]byte{[]byte("one"), nil}
			f.Add(b.encode(f), int64(0))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, position int64) {
		// A fuzzer does not hit a checksum: seal what has the shape of a batch.
		if len(data) >= batchHeader && data[16] >= 2 {
			reseal(data)
		} else if len(data) > messageHeader {
			binary.BigEndian.PutUint32(data[12:], crc32.ChecksumIEEE(data[16:]))
		}
		d := &decoder{position: position, maxMessage: 1 << 10}
		last, n := int64(math.MinInt64), 0
		failed := false
		var first []Message
		stop := errors.New("enough")
		d.take = func(m Message, _ int) error {
			if n > 0 && m.Offset <= last {
				t.Fatalf("offset %d after %d", m.Offset, last)
			}
			if size := len(m.Key) + len(m.Value) + headerMemory*len(m.Headers); size > 1<<10 {
				t.Fatalf("%d bytes, and at most %d were allowed", size, 1<<10)
			}
			if m.More < 0 || (m.Oversized > 0 || m.Err != nil) && (m.Key != nil || m.Value != nil || m.Headers != nil) {
				t.Fatalf("what was not read has %+v", m)
			}
			if n < 10 && m.Oversized == 0 && m.Err == nil {
				first = append(first, Message{Offset: m.Offset, Key: bytes.Clone(m.Key), Value: bytes.Clone(m.Value), Headers: cloneHeaders(m.Headers)})
			}
			if last = m.Offset + m.More; n > 10_000 {
				failed = true
				return stop
			}
			n++
			return nil
		}
		err := d.decode(data, verified(data, 64), nil)
		if failed != errors.Is(err, stop) {
			t.Fatalf("take failed: %v, and decode says %v", failed, err)
		}
		if whole := len(data) >= batchHeader && data[16] >= 2 && int64(int32(binary.BigEndian.Uint32(data[8:])))+12 == int64(len(data)); whole && !failed {
			// One batch with the right checksum blocks nothing.
			base := int64(binary.BigEndian.Uint64(data))
			if far := base < 0 || base > 1<<62; !far && (err != nil || d.position <= base) {
				t.Fatalf("the batch at offset %d is not passed: position %d, %v", base, d.position, err)
			}
		}
		for _, m := range first {
			batch := testBatch{base: m.Offset, key: m.Key, values: [][]byte{m.Value}, headers: m.Headers}.encode(t)
			got, _, err := collect(m.Offset, 1<<10, batch)
			if err != nil || len(got) != 1 || got[0].Offset != m.Offset || !bytes.Equal(got[0].Key, m.Key) || !bytes.Equal(got[0].Value, m.Value) ||
				!reflect.DeepEqual(cloneHeaders(got[0].Headers), m.Headers) {
				t.Fatalf("accepted %+v, and after a second time there is %+v (%v)", m, got, err)
			}
		}
	})
}
