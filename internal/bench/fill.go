package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/schollz/progressbar/v3"
	"github.com/twmb/franz-go/pkg/kgo"
)

// windows is how many different records there are: filling a topic is fast, no
// cache holds them all, and the 10,000 of a live reference have different scores.
const windows = 65521

// values returns normal deviates, little-endian float32; each record is a
// window of them.
func (b *lineBench) values() []byte {
	random := rand.New(rand.NewPCG(2, 2))
	pool := make([]byte, 0, 4*(b.Dim*b.Vectors+windows))
	for len(pool) < cap(pool) {
		pool = binary.LittleEndian.AppendUint32(pool, math.Float32bits(float32(random.NormFloat64())))
	}
	return pool
}

// messages returns a function that makes the i-th message.
func (b *lineBench) messages() (func(i int) *kgo.Record, error) {
	pool := b.values()
	headers := make([][]kgo.RecordHeader, max(1, b.Segments))
	for i := range b.Segments {
		headers[i] = []kgo.RecordHeader{{Key: "segment", Value: fmt.Appendf(nil, "segment-%d", i)}}
	}
	value := func(i int) []byte { return pool[4*(i%windows):][:4*b.Dim] }
	if b.Vectors > 1 {
		streams := make([][]byte, 64)
		for i := range streams {
			stream, err := arrowMessage(pool[4*(i*61%windows):][:4*b.Dim*b.Vectors], b.Vectors, b.Dim)
			if err != nil {
				return nil, err
			}
			streams[i] = stream
		}
		value = func(i int) []byte { return streams[i%len(streams)] }
	}
	return func(i int) *kgo.Record {
		return &kgo.Record{Key: strconv.AppendInt(nil, int64(i), 10), Value: value(i), Headers: headers[i%len(headers)]}
	}, nil
}

// arrowMessage returns an IPC stream of one batch of n embeddings with ids.
func arrowMessage(values []byte, n, dim int) ([]byte, error) {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: featurizer.ColID, Type: arrow.BinaryTypes.String},
		{Name: featurizer.ColEmbedding, Type: arrow.FixedSizeListOf(int32(dim), arrow.PrimitiveTypes.Float32)},
	}, nil)
	builder := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer builder.Release()
	list := builder.Field(1).(*array.FixedSizeListBuilder)
	floats := list.ValueBuilder().(*array.Float32Builder)
	for i := range n {
		builder.Field(0).(*array.StringBuilder).Append("row-" + strconv.Itoa(i))
		list.Append(true)
		for j := range dim {
			floats.Append(math.Float32frombits(binary.LittleEndian.Uint32(values[4*(i*dim+j):])))
		}
	}
	rec := builder.NewRecord()
	defer rec.Release()
	var out bytes.Buffer
	w := ipc.NewWriter(&out, ipc.WithSchema(schema))
	if err := errors.Join(w.Write(rec), w.Close()); err != nil {
		return nil, fmt.Errorf("encode a message: %w", err)
	}
	return out.Bytes(), nil
}

// A sender produces messages without waiting for them, and keeps the first failure.
type sender struct {
	client *kgo.Client
	failed chan error
	bar    *progressbar.ProgressBar
	sent   int
}

// newSender shows n messages on a progress bar.
func (b *lineBench) newSender(client *kgo.Client, n int, description string) *sender {
	bar := progressbar.NewOptions(n, progressbar.OptionSetWriter(b.Progress), progressbar.OptionSetDescription(description),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionShowCount())
	return &sender{client: client, failed: make(chan error, 1), bar: bar}
}

func (s *sender) send(ctx context.Context, record *kgo.Record) {
	s.client.Produce(ctx, record, func(_ *kgo.Record, err error) {
		if err != nil {
			select {
			case s.failed <- err:
			default:
			}
		}
	})
	if s.sent++; s.sent%1000 == 0 {
		_ = s.bar.Add(1000) // a terminal that went away ends nothing
	}
}

// flush waits until all that was sent is acknowledged.
func (s *sender) flush(ctx context.Context) error {
	if err := s.client.Flush(ctx); err != nil {
		return err
	}
	_ = s.bar.Finish()
	select {
	case err := <-s.failed:
		return err
	default:
		return nil
	}
}

// fill produces all records.
func (b *lineBench) fill(ctx context.Context, topic string) error {
	message, err := b.messages()
	if err != nil {
		return err
	}
	n := b.Records / b.Vectors
	out := b.newSender(b.client, n, "filling the topic")
	for i := range n {
		record := message(i)
		record.Topic = topic
		out.send(ctx, record)
	}
	if err := out.flush(ctx); err != nil {
		return fmt.Errorf("fill topic %s: %w", topic, err)
	}
	return nil
}
