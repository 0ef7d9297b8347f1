package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/segmentio/kafka-go"
)

// A reading is how long it took to read a topic.
type reading struct{ elapsed, cpu time.Duration }

// read reads the whole topic as a user of kafka-go would: Client.Fetch, one
// goroutine a partition, every value copied out. Nothing is done with it.
func (b *lineBench) read(ctx context.Context, topic string) (got reading, err error) {
	client := &kafka.Client{Addr: kafka.TCP(b.Brokers...), Transport: &kafka.Transport{}}
	counts, failures := make([]int, b.Partitions), make([]error, b.Partitions)
	cpu := ownCPU()
	start := time.Now()
	var wait sync.WaitGroup
	for partition := range b.Partitions {
		wait.Go(func() { counts[partition], failures[partition] = readPartition(ctx, client, topic, partition) })
	}
	wait.Wait()
	got = reading{elapsed: time.Since(start), cpu: ownCPU() - cpu}
	client.Transport.(*kafka.Transport).CloseIdleConnections()
	if err := errors.Join(failures...); err != nil {
		return got, fmt.Errorf("read topic %s: %w", topic, err)
	}
	total := 0
	for _, n := range counts {
		total += n
	}
	if total != b.Records/b.Vectors {
		return got, fmt.Errorf("topic %s holds %d messages, expected %d", topic, total, b.Records/b.Vectors)
	}
	return got, nil
}

func readPartition(ctx context.Context, client *kafka.Client, topic string, partition int) (n int, err error) {
	value := make([]byte, 1<<20)
	for offset := int64(0); ; {
		answer, err := client.Fetch(ctx, &kafka.FetchRequest{
			Topic: topic, Partition: partition, Offset: offset, MinBytes: 1, MaxBytes: 8 << 20, MaxWait: 100 * time.Millisecond,
		})
		if err == nil {
			err = answer.Error
		}
		if err != nil {
			return n, err
		}
		for {
			record, err := answer.Records.ReadRecord()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return n, err
			}
			if record.Offset < offset {
				continue
			}
			if record.Value != nil {
				for {
					if _, err := record.Value.Read(value); err != nil {
						break
					}
				}
			}
			offset = record.Offset + 1
			n++
		}
		if offset >= answer.HighWatermark {
			return n, nil
		}
	}
}

// ownCPU is the CPU time of this process.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
