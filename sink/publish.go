package sink

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/segmentio/kafka-go"
)

// Publish appends one JSON document to a topic that takes few of them, outside
// of any transaction. It tries again until all in-sync replicas have it, what no
// attempt can mend has happened, or ctx is done. It may be there twice.
func Publish(ctx context.Context, conn *kafkaconn.Client, topic string, key, value []byte) error {
	pause, at := firstPause, time.Time{}
	for {
		err := publishOnce(ctx, conn, topic, at, key, value)
		if errors.Is(err, kafka.InvalidTimestamp) && at.IsZero() { // of this machine's clock
			at = time.UnixMilli(noTimestamp)
			err = publishOnce(ctx, conn, topic, at, key, value)
		}
		if err == nil {
			return nil
		}
		err = fmt.Errorf("publish to %s: %w", topic, conn.Denied(err, kafkaconn.Access{Operation: "Write", Topic: topic}))
		if permanent(err) || errors.Is(err, kafka.UnknownTopicOrPartition) {
			return err
		}
		if kafkaconn.Sleep(ctx, pause) != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		pause = min(lastPause, 2*pause)
	}
}

// publishOnce makes one attempt; the zero time is now.
func publishOnce(ctx context.Context, conn *kafkaconn.Client, topic string, at time.Time, key, value []byte) error {
	meta, err := conn.Kafka.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return err
	}
	if len(meta.Topics) != 1 || len(meta.Topics[0].Partitions) == 0 {
		return kafka.UnknownTopicOrPartition
	}
	h := fnv.New32a()
	_, _ = h.Write(key) // it never fails
	answer, err := conn.Kafka.Produce(ctx, &kafka.ProduceRequest{
		Topic: topic, Partition: int(h.Sum32() % uint32(len(meta.Topics[0].Partitions))), RequiredAcks: kafka.RequireAll,
		Records: kafka.NewRecordReader(kafka.Record{Time: at, Key: kafka.NewBytes(key), Value: kafka.NewBytes(value), Headers: jsonHeaders}),
	})
	if err != nil {
		return err
	}
	return answer.Error
}
