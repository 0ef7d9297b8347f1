package consumer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
)

// A Header is one header of a record.
type Header = kafka.Header

// A Message is one record of a partition. Its slices point into buffers of the
// consumer: they are valid until the handler returns and must not be written to.
type Message struct {
	Offset  int64
	Time    time.Time
	Key     []byte
	Value   []byte
	Headers []Header
	// Oversized is zero, or the number of bytes that the record takes (or the
	// whole record batch has in the log, where even that is larger than what is
	// held in memory). Then it is larger than Config.MaxMessageBytes: Key, Value
	// and Headers are nil, and the handler has to account for the offset.
	Oversized int64
	// Err is nil, or why what is left of a record batch cannot be read, though its
	// bytes are those that were sent. Key, Value and Headers are nil then too, and
	// the handler has to account for the offsets.
	Err error
	// More is how many offsets after Offset the message stands for too, where
	// Oversized or Err are those of a record batch; else 0.
	More int64
}

// Header returns the value of the first header of that name, or nil.
func (m *Message) Header(key string) []byte {
	for i := range m.Headers {
		if m.Headers[i].Key == key {
			return m.Headers[i].Value
		}
	}
	return nil
}

// A Batch is a run of consecutive messages of one partition.
type Batch struct {
	Topic     string
	Partition int
	Messages  []Message
	// The batch stands for all offsets from From on that are before Next, of which some
	// may hold no message.
	From, Next int64
	// HighWatermark is the offset after the last record that can be read now.
	HighWatermark int64
	// Claim is nil, or where Config.Fence is set what the handler has to commit in
	// the transaction that holds all that the batch led to.
	Claim *Claim
	// Missed says that the batch comes from Config.Missed: all that it led to is
	// acknowledged and committed.
	Missed bool
}

// A Span is a run of offsets of one partition: From, and all before To.
type Span struct{ From, To int64 }

// A Handler processes the batches of one partition, in order, one at a time.
// A nil error means that everything which the batch led to is durably
// acknowledged: the consumer may commit (or that the handler has committed
// Batch.Claim). After an error the same records come again. The context ends when the partition has been taken away or the
// consumer's drain timeout is over; the handler then has to return soon.
type Handler interface {
	Handle(ctx context.Context, b *Batch) error
}

// Config says what is read, and in which portions.
type Config struct {
	Topic string
	Group string
	// Start is where a partition begins for which the group has committed
	// nothing: earliest or latest. A partition that was added to the topic after
	// the group began, or with a topic that was made again, begins at its first
	// record in both cases.
	Start string
	// OutOfRange is what follows an offset that the log does not hold (retention
	// has passed it, or the topic was made anew): go on at the earliest or the
	// latest record, or fail: Run returns an error.
	OutOfRange string
	// MaxRecords and MaxBytes bound a batch. One message may exceed MaxBytes.
	// With many partitions a batch is smaller: all that is fetched is bounded too.
	MaxRecords int
	MaxBytes   int
	// MaxWait is how long a broker may hold a fetch while there is nothing to read.
	MaxWait time.Duration
	// MaxMessageBytes bounds key, value and headers of one record together, with
	// 40 bytes of memory for each header. A larger record is delivered as
	// Message.Oversized, without its bytes. So is, as one, a record batch that has
	// more than 64 MiB (or than MaxMessageBytes, where that is more) in the log. What is
	// larger than MaxBytes waits for a share of the memory that all partitions have for it.
	MaxMessageBytes int
	// SessionTimeout is how long the group waits for a heartbeat before it gives
	// the partitions to other members. Zero means 30 s.
	SessionTimeout time.Duration
	// DrainTimeout bounds the batch in hand after the context of Run is done or
	// a partition was taken away; then so does half of SessionTimeout. Zero means 15 s.
	DrainTimeout time.Duration
	// Fence, where it isn't nil, makes delivery exactly once: the handler commits
	// Batch.Claim. Fence is called before the first record of a partition is
	// read and again after a failure. When it has returned nil, no transaction
	// of an earlier owner is open or can be committed.
	Fence func(ctx context.Context, partition int) error
	// Release is called where the group still holds an offset of a transaction
	// back after Fence, of which the marker was lost. It writes the marker.
	Release func(ctx context.Context, partition int, group string) error
	// Missed, where it isn't nil, returns what of a partition below the committed
	// offset the handler has to see again, before it sees what follows that offset.
	Missed func(partition int, committed int64) []Span
}

func (c *Config) validate() error {
	var all []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			all = append(all, fmt.Errorf(format, args...))
		}
	}
	check(c.Topic != "", "topic: must not be empty")
	check(c.Group != "", "group: must not be empty")
	check(c.Start == "earliest" || c.Start == "latest", `start: %q is neither "earliest" nor "latest"`, c.Start)
	check(c.OutOfRange == "earliest" || c.OutOfRange == "latest" || c.OutOfRange == "fail",
		`out of range: %q is none of "earliest", "latest" and "fail"`, c.OutOfRange)
	check((c.Fence == nil) == (c.Release == nil), "fence and release belong together; only one is set")
	check(c.MaxRecords > 0, "max records: %d is not positive", c.MaxRecords)
	check(c.MaxBytes > 0, "max bytes: %d is not positive", c.MaxBytes)
	check(c.MaxWait >= time.Millisecond, "max wait: %v is below a millisecond", c.MaxWait)
	check(c.MaxMessageBytes > 0, "max message bytes: %d is not positive", c.MaxMessageBytes)
	check(c.SessionTimeout >= 0, "session timeout: %v is negative", c.SessionTimeout)
	check(c.DrainTimeout >= 0, "drain timeout: %v is negative", c.DrainTimeout)
	return errors.Join(all...)
}
