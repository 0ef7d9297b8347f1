package monitor

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"
	"weak"

	"github.com/oodmon/oodmon/consumer"
	"github.com/oodmon/oodmon/drift"
	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/initproducerid"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"gorgonia.org/tensor"
)

// An acknowledger is the broker that the line cannot do without: it answers
// what the sink asks, and takes every record of partition 0 at once.
type acknowledger struct{ answer []byte }

func newAcknowledger(topic string) *acknowledger {
	be := binary.BigEndian
	b := be.AppendUint32(nil, 0)                  // correlation
	b = be.AppendUint32(b, 1)                     // topics
	b = be.AppendUint16(b, uint16(len(topic)))    // the name
	b = append(b, topic...)                       //
	b = be.AppendUint32(be.AppendUint32(b, 1), 0) // partitions, and which
	b = append(b, make([]byte, 2+8+8+8+4+2+4)...) // no error; offsets, times
	return &acknowledger{append(be.AppendUint32(nil, uint32(len(b))), b...)}
}

// A connection takes a request and holds the answer.
type connection struct{ answer []byte }

func (c *connection) Write(p []byte) (int, error) { return len(p), nil }

func (c *connection) Read(p []byte) (int, error) {
	n := copy(p, c.answer)
	c.answer = c.answer[n:]
	return n, nil
}

func (a *acknowledger) RoundTrip(_ context.Context, _ net.Addr, req kafka.Request) (kafka.Response, error) {
	switch req := req.(type) {
	case *metadata.Request:
		topics := make([]metadata.ResponseTopic, len(req.TopicNames))
		for i, name := range req.TopicNames {
			topics[i] = metadata.ResponseTopic{Name: name, Partitions: make([]metadata.ResponsePartition, 4)}
		}
		return &metadata.Response{Topics: topics}, nil
	case *initproducerid.Request:
		return &initproducerid.Response{ProducerID: 1}, nil
	}
	raw := req.(protocol.RawExchanger) // the sink's own produce request
	raw.Required(map[protocol.ApiKey]int16{protocol.Produce: 8})
	return raw.RawExchange(&connection{a.answer})
}

// newBenchLine returns the line of one partition.
func newBenchLine(t testing.TB, dim, classes int, change func(*Config)) consumer.Handler {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Input.Topic, cfg.Output.Topic, cfg.DeadLetter.Topic, cfg.Input.Codec = input, output, deadLetters, "raw"
	if change != nil {
		change(cfg)
	}
	random := rand.New(rand.NewPCG(1, 1))
	normal := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(random.NormFloat64())
		}
		return x
	}
	mod := &model.Model{
		Version: "0123456789ab", Detector: model.IsoMaxPlus, Score: model.MDS, EntropicScale: 10, Temperature: 1, Alpha: .01, Delta: .05,
		DistanceScale: 1, Prototypes: tensor.New(tensor.WithShape(classes, dim), tensor.WithBacking(normal(classes*dim))),
	}
	for i := range classes {
		mod.Classes = append(mod.Classes, fmt.Sprintf("class-%d", i))
	}
	scores, class, err := scorer.Distances(mod, normal(1000*dim))
	if err != nil {
		t.Fatal(err)
	}
	mod.Calibration = model.NewCalibration(scores, class)
	s, err := scorer.New(mod)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	registry, series := newRegistry(cfg.Name)
	m := &Monitor{cfg: cfg, log: log, registry: registry, metrics: newMetrics(series)}
	now := &live{model: mod, scorer: s}
	for _, name := range mod.Classes {
		now.predicted = append(now.predicted, m.metrics.predicted.WithLabelValues(name))
	}
	m.live.Store(now)
	if m.drift, err = drift.New(cfg.Drift, input, baselineOf(mod), time.Now, series, log); err != nil {
		t.Fatal(err)
	}
	m.conn = &kafkaconn.Client{Kafka: &kafka.Client{Addr: kafka.TCP("broker:9092"), Transport: newAcknowledger(output)}}
	if m.sink, err = newSink(cfg, m.conn, series, log); err != nil {
		t.Fatal(err)
	}
	return m.newWorker()
}

// benchBatch returns a batch of n records that differ by their seed; with vectors > 0,
// of Arrow messages of that many.
func benchBatch(t testing.TB, seed uint64, n, dim, vectors int) *consumer.Batch {
	random := rand.New(rand.NewPCG(2, seed))
	b := &consumer.Batch{Topic: input}
	normal := func() []float32 {
		x := make([]float32, dim)
		for i := range x {
			x[i] = float32(random.NormFloat64())
		}
		return x
	}
	for i := range n / max(1, vectors) {
		msg := consumer.Message{Offset: int64(i), Time: time.Unix(1_700_000_000, int64(i)*1e6), Key: []byte("record-" + strconv.Itoa(i))}
		if vectors > 0 {
			x := make([][]float32, vectors)
			for j := range x {
				x[j] = normal()
			}
			msg.Value = arrowStream(t, x...)
		} else {
			for _, v := range normal() {
				msg.Value = binary.LittleEndian.AppendUint32(msg.Value, math.Float32bits(v))
			}
		}
		b.Messages = append(b.Messages, msg)
	}
	return b
}

// advance makes the batch one that comes so many messages later.
func advance(b *consumer.Batch, messages int) {
	for i := range b.Messages {
		b.Messages[i].Offset += int64(messages)
	}
}

// cpuTime is what this process has used: on a busy machine it says more than
// the time on the wall.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// No record costs an allocation: a batch of eight times as many records makes no
// more of them.
func TestLineAllocatesPerBatch(t *testing.T) {
	for _, format := range []string{"json", "arrow"} {
		allocations := func(records int) float64 {
			line := newBenchLine(t, 16, 4, func(cfg *Config) { cfg.Output.Format = format })
			batch := benchBatch(t, 1, records, 16, 0)
			return testing.AllocsPerRun(20, func() {
				if err := line.Handle(t.Context(), batch); err != nil {
					t.Fatal(err)
				}
				advance(batch, len(batch.Messages))
			})
		}
		few, many := allocations(256), allocations(2048)
		// A large batch may take a second request to publish, and a buffer grows.
		if more := many - few; more > 64 {
			t.Errorf("%s: %g allocations for a batch of 256 records, %g for 2048", format, few, many)
		}
	}
}

// The line holds on to no message that it has handled: the last one of a partition
// may lie in a large response.
func TestLineForgetsMessages(t *testing.T) {
	for name, test := range map[string]struct {
		codec string
		value func() []byte
	}{
		"dead-lettered":        {"raw", func() []byte { return make([]byte, 1001) }},
		"scored where it lies": {"arrow", func() []byte { return arrowStream(t, make([]float32, 16), make([]float32, 16), make([]float32, 16)) }},
	} {
		line := newBenchLine(t, 16, 4, func(cfg *Config) {
			cfg.Input.Codec, cfg.Drift.Incidents.IncludeEmbedding = test.codec, true
			cfg.DeadLetter.Topic = output // the acknowledger has no other
		})
		handle := func() weak.Pointer[byte] {
			value := test.value()
			if err := line.Handle(t.Context(), &consumer.Batch{Topic: input, Messages: []consumer.Message{{Value: value}}}); err != nil {
				t.Fatal(err)
			}
			return weak.Make(&value[0])
		}
		value := handle()
		runtime.GC()
		if value.Value() != nil {
			t.Errorf("%s: the message is held still", name)
		}
		runtime.KeepAlive(line)
	}
}

// BenchmarkHandle measures the line without a broker: decode, score, encode,
// the requests to publish, metrics. Its allocations are those of a batch.
func BenchmarkHandle(b *testing.B) {
	for _, v := range []struct {
		name                           string
		dim, classes, vectors, records int
		format, when                   string
	}{
		{"512B-10-json", 128, 10, 0, 4096, "json", "all"},
		{"2KB-100-json", 512, 100, 0, 1024, "json", "all"},
		{"512B-10-arrow", 128, 10, 0, 4096, "arrow", "all"},
		{"512B-10-ood", 128, 10, 0, 4096, "json", "ood"},
		{"2KB-10-256vectors-arrow", 512, 10, 256, 1024, "arrow", "all"},
	} {
		b.Run(v.name, func(b *testing.B) {
			line := newBenchLine(b, v.dim, v.classes, func(cfg *Config) {
				cfg.Output.Format, cfg.Output.When = v.format, v.when
				if v.vectors > 0 {
					cfg.Input.Codec = "arrow"
				}
			})
			// The first records are drift's reference. Those that are measured are
			// others, and so many that none comes twice within a few batches.
			const measured = 6
			warmup := (drift.DefaultConfig().ReferenceRecords + v.records - 1) / v.records
			var batches []*consumer.Batch
			handle := func(batch *consumer.Batch) {
				if err := line.Handle(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
				advance(batch, measured*len(batch.Messages))
			}
			for i := range warmup + measured {
				batch := benchBatch(b, uint64(i), v.records, v.dim, v.vectors)
				advance(batch, i*len(batch.Messages))
				handle(batch)
				if i >= warmup {
					batches = append(batches, batch)
				}
			}
			b.ReportAllocs()
			cpu := cpuTime()
			for i := 0; b.Loop(); i++ {
				handle(batches[i%measured])
			}
			b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N*v.records), "cpu-ns/record")
		})
	}
}
