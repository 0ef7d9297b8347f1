package consumer

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/segmentio/kafka-go"
)

// A topic that is made again with fewer records while its range is read has no more
// of it: that is an error, and not a loop.
func TestReadRangeEndsWhereTheTopicIsMadeAgain(t *testing.T) {
	f := newFixture(t, kafkatest.StartFake(t), 1)
	f.produce(0, "a")
	f.produce(0, "b")
	f.produce(0, "c")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	calls := 0
	err := ReadRange(ctx, f.conn, RangeConfig{Topic: f.cfg.Topic, MaxRecords: 1, MaxBytes: 1, MaxMessageBytes: 1000}, func(b *Batch) error {
		if calls++; b.Messages[0].Offset < 1 {
			return nil
		}
		if _, err := f.Admin().DeleteTopics(ctx, f.cfg.Topic); err != nil {
			t.Fatal(err)
		}
		f.CreateTopic(f.cfg.Topic, 1)
		return nil
	})
	if !errors.Is(err, kafka.OffsetOutOfRange) || calls != 2 {
		t.Errorf("%v after %d calls, want that the offset is out of range after 2", err, calls)
	}
}

// What is damaged beyond the range is not part of it.
func TestReadRangeIsNotConcernedByDamageBeyondIt(t *testing.T) {
	damaged := testBatch{base: 2, values: make([][]byte, 2)}.encode(t)
	damaged[len(damaged)-1] ^= 1
	r := responding(t, 0, func(int64) []byte {
		return append(testBatch{base: 0, values: make([][]byte, 2)}.encode(t), bytes.Clone(damaged)...)
	})
	answer, err := r.conn.Kafka.Produce(t.Context(), &kafka.ProduceRequest{
		Topic: "t", RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(kafka.Record{}, kafka.Record{}),
	})
	if err = errors.Join(err, answer.Error); err != nil {
		t.Fatal(err)
	}
	var got []int64
	err = ReadRange(t.Context(), r.conn, RangeConfig{Topic: "t", MaxRecords: 10, MaxBytes: 1 << 20, MaxMessageBytes: 1000}, func(b *Batch) error {
		got = append(got, offsets(b.Messages)...)
		return nil
	})
	if err != nil || !slices.Equal(got, []int64{0, 1}) {
		t.Errorf("%v, read %v, want 0 and 1", err, got)
	}
}
