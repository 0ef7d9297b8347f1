package consumer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// offsetResponse is what a coordinator answers to OffsetFetch, version 7.
func offsetResponse(partition int32, offset int64, code, groupCode int16) []byte {
	be := binary.BigEndian
	b := make([]byte, 4)
	b = be.AppendUint32(b, 0) // correlation
	b = append(b, 0)          // no tagged fields
	b = be.AppendUint32(b, 0) // throttle time
	b = append(b, 2, 2, 't', 2)
	b = be.AppendUint32(b, uint32(partition))
	b = be.AppendUint64(b, uint64(offset))
	b = be.AppendUint32(b, 0) // leader epoch
	b = append(b, 3, 'm', 'd')
	b = be.AppendUint16(b, uint16(code))
	b = append(b, 1, 9, 1, 'x', 0) // a tagged field of the partition, none of the topic
	b = be.AppendUint16(b, uint16(groupCode))
	b = append(b, 0)
	be.PutUint32(b, uint32(len(b)-4))
	return b
}

func TestStableOffsetResponse(t *testing.T) {
	r := &stableOffsetRequest{group: "g", topic: "t", partition: 3, clientID: "c"}
	for name, c := range map[string]struct {
		data   []byte
		offset int64
		code   int16
		err    string
	}{
		"an offset":         {offsetResponse(3, 42, 0, 0), 42, 0, ""},
		"none":              {offsetResponse(3, -1, 0, 0), -1, 0, ""},
		"unstable":          {offsetResponse(3, -1, 88, 0), -1, 88, ""},
		"of the group":      {offsetResponse(3, -1, 0, 16), -1, 16, ""},
		"another partition": {offsetResponse(4, 42, 0, 0), 0, 0, "the offset response is for partition 4, expected 3"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := r.decode(bytes.NewReader(c.data))
			if c.err != "" {
				if err == nil || err.Error() != c.err {
					t.Errorf("error %v, want %s", err, c.err)
				}
				return
			}
			if err != nil || got.offset != c.offset || got.errorCode != c.code {
				t.Errorf("%+v, %v, want offset %d and code %d", got, err, c.offset, c.code)
			}
		})
	}
	good := offsetResponse(3, 42, 0, 0)
	for cut := range good {
		if _, err := r.decode(bytes.NewReader(good[:cut])); err == nil {
			t.Errorf("a response of %d bytes, cut to %d, was read", len(good), cut)
		}
	}
	r.Required(map[protocol.ApiKey]int16{protocol.TxnOffsetCommit: 2})
	if _, err := r.RawExchange(nil); !errors.Is(err, kafka.UnsupportedVersion) {
		t.Errorf("a broker before 2.5: %v", err)
	}
}

// A transaction that failed may be committed: what had been passed before it is
// not committed after it, or its records would come again.
func TestNothingIsCommittedAfterAFailedTransaction(t *testing.T) {
	c, err := New(Config{
		Topic: "t", Group: "g", Start: "earliest", OutOfRange: "fail", MaxRecords: 1, MaxBytes: 1, MaxWait: time.Millisecond, MaxMessageBytes: 1,
		Fence:   func(context.Context, int) error { return nil },
		Release: func(context.Context, int, string) error { return nil },
	}, nil, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var sent []int64
	w := &worker{
		Consumer: c, generation: &kafka.Generation{}, progress: &progress{}, log: c.log, at: c.metrics.committed.WithLabelValues("0"),
		commits: &committer{send: func(offsets map[int]int64) error { sent = append(sent, offsets[0]); return nil }},
		running: t.Context(), draining: t.Context(), claimed: true,
		committed: 10, handled: 12, // a gap was passed, and its commit waits for more
	}
	failed := errors.New("end the transaction: no answer")
	err = w.handle(handlerFunc(func(context.Context, *Batch) error { return failed }), &Batch{Messages: []Message{{Offset: 12}}, Next: 13})
	if !errors.Is(err, failed) {
		t.Fatal(err)
	}
	if err := w.commit(); err != nil || len(sent) > 0 {
		t.Errorf("committed %v, %v", sent, err)
	}
}

type handlerFunc func(ctx context.Context, b *Batch) error

func (f handlerFunc) Handle(ctx context.Context, b *Batch) error { return f(ctx, b) }

func FuzzStableOffset(f *testing.F) {
	f.Add(offsetResponse(3, 42, 0, 0))
	f.Add(offsetResponse(3, -1, 88, 16))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &stableOffsetRequest{group: "g", topic: "t", partition: 3}
		got, err := r.decode(bytes.NewReader(data))
		if err != nil {
			return
		}
		again, err := r.decode(bytes.NewReader(offsetResponse(3, got.offset, got.errorCode, 0)))
		if err != nil || *again != *got {
			t.Errorf("accepted %+v, and after a second time there is %+v (%v)", got, again, err)
		}
	})
}
