package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
)

// Config names the topics and the form of what is published.
type Config struct {
	// Topic takes the score records, DeadLetterTopic what could not be scored.
	Topic           string
	DeadLetterTopic string
	// Format is json (one message a row) or arrow (one IPC stream a batch).
	Format string
}

// A Header is one header of a record.
type Header = kafka.Header

// A Letter is a record, or a row of one, that could not be scored.
type Letter struct {
	Topic     string
	Partition int32
	Offset    int64
	Row       int32 // -1: the whole message
	Time      time.Time
	Key       []byte
	Value     []byte
	Headers   []Header
	Reason    string // a bounded set of words: it is a metric's label
	Err       error
}

// maxRequest is the size of the messages in one request: below the default of
// a broker's max.message.bytes, which bounds the whole.
const maxRequest = 900 << 10

const firstPause, lastPause = 100 * time.Millisecond, 5 * time.Second

// A Producer publishes synchronously: what it returned nil for is acknowledged
// by all in-sync replicas. It may be shared.
type Producer struct {
	cfg     Config
	conn    *kafkaconn.Client
	metrics *metrics
	log     *slog.Logger
	scratch sync.Pool // of *batch

	mu         sync.Mutex
	partitions map[string]int
}

// A batch is the messages of one Write. Keys and values point into buf.
type batch struct {
	buf     []byte
	ends    [][2]int // of each message, where its key and its value end in buf
	records []kafka.Record
}

// New checks the configuration. It doesn't connect.
func New(cfg Config, conn *kafkaconn.Client, reg prometheus.Registerer, log *slog.Logger) (*Producer, error) {
	if cfg.Format != "json" && cfg.Format != "arrow" {
		return nil, fmt.Errorf("sink: format %q is neither json nor arrow", cfg.Format)
	}
	return &Producer{
		cfg: cfg, conn: conn, metrics: newMetrics(reg), log: log, partitions: make(map[string]int),
		scratch: sync.Pool{New: func() any { return new(batch) }},
	}, nil
}

// Write publishes the rows of a score record, in order. partition is the input
// partition they come from: their output partition is partition modulo the
// number of output partitions. A failure is tried again until ctx is done; only
// what no attempt can mend is returned before.
func (p *Producer) Write(ctx context.Context, partition int, rec arrow.Record) error {
	if p.cfg.Format == "arrow" {
		return p.writeArrow(ctx, partition, rec)
	}
	b := p.scratch.Get().(*batch)
	defer p.scratch.Put(b)
	b.reset()
	id, err := columnOf[*array.String](rec, "id")
	if err != nil {
		return err
	}
	enc, err := newJSONEncoder(rec)
	if err != nil {
		return err
	}
	for row := range int(rec.NumRows()) {
		b.buf = append(b.buf, id.Value(row)...)
		key := len(b.buf)
		b.buf = enc.append(b.buf, row)
		b.ends = append(b.ends, [2]int{key, len(b.buf)})
	}
	return p.publish(ctx, kindScores, p.cfg.Topic, partition, b.messages(jsonContentType))
}

func (b *batch) reset() { b.buf, b.ends, b.records = b.buf[:0], b.ends[:0], b.records[:0] }

// messages returns the records once buf no longer grows.
func (b *batch) messages(contentType string) []kafka.Record {
	headers := []kafka.Header{{Key: "content-type", Value: []byte(contentType)}}
	start := 0
	for _, end := range b.ends {
		b.records = append(b.records, kafka.Record{
			Key: kafka.NewBytes(b.buf[start:end[0]]), Value: kafka.NewBytes(b.buf[end[0]:end[1]]), Headers: headers,
		})
		start = end[1]
	}
	return b.records
}

// writeArrow publishes the rows as one IPC stream, or as several where it would
// be too large.
func (p *Producer) writeArrow(ctx context.Context, partition int, rec arrow.Record) error {
	rows := rec.NumRows()
	if rows == 0 {
		return nil
	}
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, ipc.WithSchema(rec.Schema()))
	if err := errors.Join(w.Write(rec), w.Close()); err != nil {
		return fmt.Errorf("encode scores as Arrow: %w", err)
	}
	if buf.Len() > maxRequest && rows > 1 {
		for _, part := range [][2]int64{{0, rows / 2}, {rows / 2, rows}} {
			half := rec.NewSlice(part[0], part[1])
			err := p.writeArrow(ctx, partition, half)
			half.Release()
			if err != nil {
				return err
			}
		}
		return nil
	}
	return p.publish(ctx, kindScores, p.cfg.Topic, partition, []kafka.Record{{
		Value: kafka.NewBytes(buf.Bytes()), Headers: []kafka.Header{{Key: "content-type", Value: []byte(ArrowContentType)}},
	}})
}

// DeadLetter publishes what could not be scored: the message as it was, with
// headers that say where it came from and why it is here. A message that the
// topic does not take is cut short, and a header says how long it was.
func (p *Producer) DeadLetter(ctx context.Context, partition int, letters []Letter) error {
	records := make([]kafka.Record, len(letters))
	for i := range letters {
		records[i] = letters[i].record(len(letters[i].Value))
	}
	err := p.publish(ctx, kindDeadLetter, p.cfg.DeadLetterTopic, partition, records)
	if errors.Is(err, kafka.MessageSizeTooLarge) {
		err = p.deadLetterSingly(ctx, partition, letters)
	}
	if err != nil {
		return err
	}
	for _, l := range letters {
		p.metrics.deadLetters.WithLabelValues(l.Reason).Inc()
	}
	return nil
}

// deadLetterSingly cuts the letters that are too large, each by halves.
func (p *Producer) deadLetterSingly(ctx context.Context, partition int, letters []Letter) error {
	for _, l := range letters {
		for keep := len(l.Value); ; keep /= 2 {
			err := p.publish(ctx, kindDeadLetter, p.cfg.DeadLetterTopic, partition, []kafka.Record{l.record(keep)})
			if err == nil {
				break
			}
			if !errors.Is(err, kafka.MessageSizeTooLarge) || keep == 0 {
				return err
			}
		}
	}
	return nil
}

// record returns the message with the first keep bytes of the value.
func (l *Letter) record(keep int) kafka.Record {
	headers := slices.Clone(l.Headers)
	add := func(key, value string) { headers = append(headers, kafka.Header{Key: key, Value: []byte(value)}) }
	add("oodmon-reason", l.Reason)
	add("oodmon-error", l.Err.Error())
	add("oodmon-topic", l.Topic)
	add("oodmon-partition", strconv.Itoa(int(l.Partition)))
	add("oodmon-offset", strconv.FormatInt(l.Offset, 10))
	add("oodmon-row", strconv.Itoa(int(l.Row)))
	add("oodmon-timestamp", l.Time.UTC().Format(time.RFC3339Nano))
	if keep < len(l.Value) {
		add("oodmon-truncated", strconv.Itoa(len(l.Value)))
	}
	r := kafka.Record{Headers: headers}
	if l.Key != nil {
		r.Key = kafka.NewBytes(l.Key)
	}
	if l.Value != nil {
		r.Value = kafka.NewBytes(l.Value[:keep])
	}
	return r
}

// publish sends the records in order, in requests that a broker takes, and
// returns when all are acknowledged.
func (p *Producer) publish(ctx context.Context, kind, topic string, partition int, records []kafka.Record) error {
	for len(records) > 0 {
		n, size := 0, 0
		for n < len(records) {
			if size += recordSize(&records[n]); n > 0 && size > maxRequest {
				break
			}
			n++
		}
		if err := p.send(ctx, kind, topic, partition, records[:n]); err != nil {
			return err
		}
		p.metrics.messages.WithLabelValues(kind).Add(float64(n))
		records = records[n:]
	}
	return nil
}

func recordSize(r *kafka.Record) int {
	const overhead = 32 // varints
	size := overhead
	for _, b := range []kafka.Bytes{r.Key, r.Value} {
		if b != nil {
			size += b.Len()
		}
	}
	for _, h := range r.Headers {
		size += len(h.Key) + len(h.Value) + 8
	}
	return size
}

// send makes one request, again and again until it is acknowledged or ctx is
// done. Only what no attempt can mend is an error before. Requests that are too
// large are halved.
func (p *Producer) send(ctx context.Context, kind, topic string, partition int, records []kafka.Record) error {
	pause := firstPause
	for {
		target, err := p.target(ctx, topic, partition)
		if err == nil {
			start := time.Now()
			if err = p.produce(ctx, topic, target, records); err == nil {
				p.metrics.duration.Observe(time.Since(start).Seconds())
				return nil
			}
		}
		err = fmt.Errorf("produce %d messages to %s[%d]: %w", len(records), topic, target, err)
		p.metrics.errors.WithLabelValues(kind).Inc()
		switch {
		case errors.Is(err, kafka.MessageSizeTooLarge) && len(records) > 1:
			half := len(records) / 2
			if err := p.send(ctx, kind, topic, partition, records[:half]); err != nil {
				return err
			}
			return p.send(ctx, kind, topic, partition, records[half:])
		case errors.Is(err, kafka.MessageSizeTooLarge):
			return fmt.Errorf("a message of %d bytes is larger than the topic's max.message.bytes: %w", recordSize(&records[0]), err)
		case ctx.Err() != nil:
			return errors.Join(err, context.Cause(ctx))
		}
		p.log.Warn("not published; trying again", "topic", topic, "partition", target, "messages", len(records), "error", err)
		p.forget(topic)
		if kafkaconn.Sleep(ctx, pause) != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		pause = min(lastPause, 2*pause)
	}
}

func (p *Producer) produce(ctx context.Context, topic string, partition int, records []kafka.Record) error {
	for i := range records { // an attempt before may have read them
		for _, b := range []kafka.Bytes{records[i].Key, records[i].Value} {
			if s, ok := b.(io.Seeker); ok {
				if _, err := s.Seek(0, io.SeekStart); err != nil {
					return err
				}
			}
		}
	}
	answer, err := p.conn.Kafka.Produce(ctx, &kafka.ProduceRequest{
		Topic: topic, Partition: partition, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...),
	})
	if err != nil {
		return err
	}
	return answer.Error
}

// target returns the output partition of an input partition.
func (p *Producer) target(ctx context.Context, topic string, partition int) (int, error) {
	p.mu.Lock()
	n := p.partitions[topic]
	p.mu.Unlock()
	if n == 0 {
		meta, err := p.conn.Kafka.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
		if err != nil {
			return 0, err
		}
		if len(meta.Topics) != 1 || len(meta.Topics[0].Partitions) == 0 {
			return 0, kafka.UnknownTopicOrPartition
		}
		n = len(meta.Topics[0].Partitions)
		p.mu.Lock()
		p.partitions[topic] = n
		p.mu.Unlock()
	}
	return partition % n, nil
}

// forget makes target ask again.
func (p *Producer) forget(topic string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.partitions, topic)
}

func columnOf[A arrow.Array](rec arrow.Record, name string) (A, error) {
	var none A
	at := rec.Schema().FieldIndices(name)
	if len(at) != 1 {
		return none, fmt.Errorf("sink: the score record has %d columns %s, expected 1", len(at), name)
	}
	col, ok := rec.Column(at[0]).(A)
	if !ok {
		return none, fmt.Errorf("sink: column %s has type %s, expected %T", name, rec.Column(at[0]).DataType(), none)
	}
	return col, nil
}
