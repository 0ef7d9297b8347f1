package sink

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/oodmon/oodmon/consumer"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A relay publishes a result for every message.
type relay struct {
	t    *testing.T
	sink *Producer
}

func (r relay) Handle(ctx context.Context, b *consumer.Batch) error {
	out := make([]testRow, len(b.Messages))
	for i, m := range b.Messages {
		out[i] = testRow{id: fmt.Sprintf("%d/%d", b.Partition, m.Offset), offset: m.Offset}
	}
	return r.sink.Write(ctx, b.Partition, record(r.t, out...))
}

// The broker is killed twice while records flow, and the reader is stopped and
// started once: every input offset has its result at least once, and what is
// committed has been published.
func TestEveryOffsetHasItsResultWhenTheBrokerIsKilled(t *testing.T) {
	const partitions, each = 4, 3000
	f := newFixture(t, kafkatest.Start(t), "json", partitions)
	f.CreateTopic("in", partitions)
	start := func() (stop func()) {
		c, err := consumer.New(consumer.Config{
			Topic: "in", Group: "relay", Start: "earliest", OutOfRange: "fail", MaxRecords: 50, MaxBytes: 1 << 20,
			MaxWait: 50 * time.Millisecond, MaxMessageBytes: 1 << 20, SessionTimeout: 6 * time.Second,
		}, f.conn, func() consumer.Handler { return relay{t, f.Producer} }, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	stop := start()
	for round := range 3 {
		var records []*kgo.Record
		for i := range partitions * each / 3 {
			records = append(records, &kgo.Record{Topic: "in", Partition: int32(i % partitions), Value: []byte("v")})
		}
		f.Broker.Produce(records...)
		if round == 2 {
			stop()
			stop = start()
			break
		}
		f.Kill()
		f.Restart()
	}
	results := func() map[string]int {
		seen := make(map[string]int)
		for _, r := range f.ReadAll(f.scores) {
			seen[string(r.Key)]++
		}
		return seen
	}
	kafkatest.Eventually(t, 2*time.Minute, func() error {
		for partition, at := range f.Committed("relay", "in") {
			if at != each {
				return fmt.Errorf("partition %d is committed up to %d of %d", partition, at, each)
			}
		}
		if n := len(results()); n < partitions*each {
			return fmt.Errorf("%d of %d results", n, partitions*each)
		}
		return nil
	})
	stop()
	seen := results()
	twice := 0
	for partition := range partitions {
		for offset := range each {
			n := seen[fmt.Sprintf("%d/%d", partition, offset)]
			if n == 0 {
				t.Errorf("offset %d of partition %d has no result", offset, partition)
			}
			if n > 1 {
				twice++
			}
		}
	}
	t.Logf("%d of %d offsets have more than one result", twice, partitions*each)
}
