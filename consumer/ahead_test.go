package consumer

import (
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

// What is asked for ahead begins after the last batch that came whole.
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
	}{
		"nothing":       {fetchResponse{}, 0},
		"two":           {fetchResponse{records: join(first, second)}, 111},
		"one cut off":   {fetchResponse{records: join(first, second[:69])}, 110},
		"first cut off": {fetchResponse{records: first[:79]}, 0},
		"old format":    {fetchResponse{records: old}, 8},
		"bad length":    {fetchResponse{records: join(first, make([]byte, 40))}, 110},
		"too large":     {fetchResponse{records: first[:batchHeader], tooLarge: 1 << 30}, 0},
	} {
		if got := test.response.next(); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}
