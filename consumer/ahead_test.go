package consumer

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// emptyBatch returns the header of a record batch up to its offsets, filled up to length.
func emptyBatch(version byte, base int64, delta int32, length int) []byte {
	b := make([]byte, length)
	binary.BigEndian.PutUint64(b, uint64(base))
	binary.BigEndian.PutUint32(b[8:], uint32(length-12))
	b[16] = version
	if version == 2 {
		binary.BigEndian.PutUint32(b[23:], uint32(delta))
	}
	return b
}

func TestFetchSize(t *testing.T) {
	for _, test := range []struct{ maxBytes, partitions, want int }{
		{1 << 20, 1, 1 << 20}, {1 << 20, 8, 1 << 20}, {1 << 20, 32, 256 << 10}, {1 << 20, 100_000, 64 << 10}, {1000, 100_000, 1000},
	} {
		if got := fetchSize(test.maxBytes, test.partitions); got != test.want {
			t.Errorf("%d partitions, at most %d bytes: %d, want %d", test.partitions, test.maxBytes, got, test.want)
		}
	}
}

// What is asked for ahead begins after the last batch that came whole; the size of
// the one that did not is known from its header.
func TestNextOffset(t *testing.T) {
	first, second, old := emptyBatch(2, 100, 9, 80), emptyBatch(2, 110, 0, 70), emptyBatch(1, 7, 0, 34)
	join := func(all ...[]byte) (out []byte) {
		for _, b := range all {
			out = append(out, b...)
		}
		return out
	}
	for name, test := range map[string]struct {
		response fetchResponse
		want     int64
		size     int64
	}{
		"nothing":       {fetchResponse{}, 0, 0},
		"two":           {fetchResponse{records: join(first, second)}, 111, 70},
		"one cut off":   {fetchResponse{records: join(first, second[:69])}, 110, 70},
		"first cut off": {fetchResponse{records: first[:79]}, 0, 80},
		"old format":    {fetchResponse{records: old}, 8, 34},
		"bad length":    {fetchResponse{records: join(first, make([]byte, 40))}, 110, 80},
		"too large":     {fetchResponse{records: first[:batchHeader], tooLarge: 1 << 30}, 0, 0},
	} {
		if got, size := test.response.next(); got != test.want || size != test.size {
			t.Errorf("%s: %d after %d bytes, want %d after %d", name, got, size, test.want, test.size)
		}
	}
}

// So much is asked for that whole batches come, and never more than is allowed.
func TestPortion(t *testing.T) {
	for _, test := range []struct {
		maxBytes   int
		size, want int64
	}{
		{1000, 0, 1000},    // not known
		{1000, 2000, 1000}, // the broker sends one all the same
		{1000, 1000, 1000}, {1000, 640, 660}, {1000, 320, 970}, {1000, 1, 1000},
	} {
		if got := portion(test.maxBytes, test.size); int64(got) != test.want {
			t.Errorf("batches of %d bytes, at most %d: %d, want %d", test.size, test.maxBytes, got, test.want)
		}
	}
}

// A buffer is kept for the next response, but not one for which a share of the budget
// was held.
func TestSpareBuffer(t *testing.T) {
	r := &reader{maxBytes: 1 << 20}
	for _, test := range []struct {
		name           string
		length, buffer int
		kept           bool
	}{
		{"as asked for", 1 << 20, 17 << 16, true},
		{"a larger batch", 2 << 20, 2 << 20, false},
		{"nothing, after a larger batch", 0, 2 << 20, false},
	} {
		r.giveBack(make([]byte, test.length, test.buffer))
		if kept := r.take() != nil; kept != test.kept {
			t.Errorf("%s: kept %t, want %t", test.name, kept, test.kept)
		}
	}
	request := newRequest(1 << 10)
	request.buf = make([]byte, 1000)
	if _, err := request.decode(bytes.NewReader(response(0, nil, nil))); err != nil || len(request.buf) != 0 {
		t.Errorf("%v; after a response without records its buffer has %d bytes", err, len(request.buf))
	}
}
