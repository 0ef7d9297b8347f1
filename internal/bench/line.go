// Package bench measures the line as a user would run it: processes of its own
// against a broker.
package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/monitor"
	"github.com/oodmon/oodmon/scorer"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"gorgonia.org/tensor"
)

// LineOptions say what Line measures.
type LineOptions struct {
	Brokers    []string // empty: an embedded broker
	Topic      string   // one that holds Records already; empty: one is filled
	Records    int      // vectors, of a backlog or in all
	Dim        int
	Classes    int
	Partitions int
	Vectors    int     // vectors a message; from 2 on, messages are Arrow streams
	Segments   int     // values of the segment header; 0: none
	Rate       float64 // vectors a second, offered on a schedule; 0: a backlog
	Instances  int     // monitors in the group
	Pin        bool    // each monitor on a core of its own
	Read       bool    // also read the topic with kafka-go's Client.Fetch alone
	Format     string  // output.format
	When       string  // output.when
	Delivery   string  // output.delivery
	MaxRecords int     // input.batch.max_records; 0: the default
	MaxBytes   int     // input.batch.max_bytes; 0: the default
	Runs       int
	Program    string    // the oodmon to run
	Progress   io.Writer // a terminal, or io.Discard
}

// A LineResult holds the medians over the runs.
type LineResult struct {
	Broker     string  `json:"broker"`
	Records    int     `json:"records"`
	Dim        int     `json:"dim"`
	Classes    int     `json:"classes"`
	Partitions int     `json:"partitions"`
	Vectors    int     `json:"vectors_per_message"`
	Segments   int     `json:"segments"`
	Rate       float64 `json:"offered_records_per_second,omitempty"`
	Instances  int     `json:"instances"`
	Pin        bool    `json:"pinned"`
	Format     string  `json:"format"`
	When       string  `json:"when"`
	Delivery   string  `json:"delivery"`
	Runs       int     `json:"runs"`
	CPUs       int     `json:"cpus"`

	// Of the monitors, all instances together.
	RecordsPerSecond     float64 `json:"records_per_second"`
	CPUSecondsPerMillion float64 `json:"cpu_seconds_per_million_records"`
	PeakMemoryBytes      int64   `json:"peak_memory_bytes"`
	// MemoryBytes are the peaks of the twentieths of the last run.
	MemoryBytes []int64 `json:"memory_over_time_bytes"`

	Read *ReadResult `json:"kafka_go_fetch_alone,omitempty"`
	// From a record's append to the append of its score, by the broker's clock,
	// in whole milliseconds; and from the time at which the record was due,
	// whether or not it could be sent then.
	Latency             *Latency `json:"latency_ms,omitempty"`
	LatencyFromSchedule *Latency `json:"latency_from_schedule_ms,omitempty"`
}

// A ReadResult is what kafka-go's Client.Fetch reads of the same topic, in this
// process, one goroutine a partition.
type ReadResult struct {
	RecordsPerSecond float64 `json:"records_per_second"`
	// CPUSecondsPerMillion is left out where the broker is in this process.
	CPUSecondsPerMillion float64 `json:"cpu_seconds_per_million_records,omitempty"`
	// Ratio is the line's records per second over these.
	Ratio float64 `json:"line_over_read"`
}

// Validate reports the first option that cannot work, with its flag.
func (o *LineOptions) Validate() error {
	for _, v := range []struct {
		flag  string
		value int
	}{
		{"records", o.Records}, {"dim", o.Dim}, {"classes", o.Classes}, {"partitions", o.Partitions},
		{"vectors", o.Vectors}, {"instances", o.Instances}, {"runs", o.Runs},
	} {
		if v.value < 1 {
			return fmt.Errorf("--%s: %d must be positive", v.flag, v.value)
		}
	}
	switch {
	case o.Segments < 0:
		return fmt.Errorf("--segments: %d must not be negative", o.Segments)
	case o.Records%o.Vectors != 0:
		return fmt.Errorf("--records: %d is not a multiple of --vectors, %d", o.Records, o.Vectors)
	case o.Instances > o.Partitions:
		return fmt.Errorf("--instances: %d, but only %d partitions to share", o.Instances, o.Partitions)
	case o.Topic != "" && len(o.Brokers) == 0:
		return errors.New("--topic needs --brokers: the embedded broker begins empty")
	case !(o.Rate >= 0):
		return fmt.Errorf("--rate: %g must not be negative", o.Rate)
	case o.Rate > 0 && (o.Vectors > 1 || o.Topic != "" || o.Read || o.Format != "json" || o.When != "all"):
		return errors.New("--rate pairs each record with its score: it goes with one vector a message, --format json and --when all, without --topic and --read")
	}
	return nil
}

// A lineBench is one call of Line.
type lineBench struct {
	LineOptions
	dir      string
	registry string
	client   *kgo.Client
	admin    *kadm.Client
	prefix   string
	topics   []string // made here
}

// Line fills a topic once and lets fresh monitors drain it in each run; with a
// rate, it offers each run's records on a schedule to monitors that wait.
func Line(ctx context.Context, opts LineOptions) (_ *LineResult, err error) {
	result := &LineResult{
		Broker: "embedded (kfake)", Records: opts.Records, Dim: opts.Dim, Classes: opts.Classes, Partitions: opts.Partitions,
		Vectors: opts.Vectors, Segments: opts.Segments, Rate: opts.Rate, Instances: opts.Instances, Pin: opts.Pin,
		Format: opts.Format, When: opts.When, Delivery: opts.Delivery, Runs: opts.Runs, CPUs: runtime.NumCPU(),
	}
	embedded := len(opts.Brokers) == 0
	if embedded {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
		if err != nil {
			return nil, fmt.Errorf("start the embedded broker: %w", err)
		}
		defer cluster.Close()
		opts.Brokers = cluster.ListenAddrs()
	} else {
		result.Broker = opts.Brokers[0]
	}
	b := &lineBench{LineOptions: opts, prefix: "oodmon-bench-" + strconv.FormatInt(time.Now().UnixNano(), 36)}
	if b.dir, err = os.MkdirTemp("", "oodmon-bench-"); err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	b.registry = filepath.Join(b.dir, "registry")
	if err := publishRandomModel(ctx, b.registry, opts.Classes, opts.Dim); err != nil {
		return nil, err
	}
	b.client, err = kgo.NewClient(kgo.SeedBrokers(opts.Brokers...), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.MaxBufferedRecords(1<<16), kgo.MaxBufferedBytes(256<<20))
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer b.client.Close()
	b.admin = kadm.NewClient(b.client)
	defer func() {
		if len(b.topics) > 0 {
			_, deleteErr := b.admin.DeleteTopics(context.WithoutCancel(ctx), b.topics...)
			err = errors.Join(err, deleteErr)
		}
	}()
	input := opts.Topic
	if input == "" && opts.Rate == 0 {
		if input, err = b.create(ctx, "in", b.Partitions, false); err != nil {
			return nil, err
		}
		if err := b.fill(ctx, input); err != nil {
			return nil, err
		}
	}

	var rates, cpus, readRates, readCPUs []float64
	var memory []int64
	var latencies, fromSchedule []Latency
	for run := range opts.Runs {
		fail := func(err error) (*LineResult, error) { return nil, fmt.Errorf("run %d: %w", run+1, err) }
		if opts.Read {
			read, err := b.read(ctx, input)
			if err != nil {
				return fail(err)
			}
			readRates = append(readRates, float64(opts.Records)/read.elapsed.Seconds())
			readCPUs = append(readCPUs, read.cpu.Seconds()/float64(opts.Records)*1e6)
		}
		var got measured
		if opts.Rate > 0 {
			var timed timings
			if got, timed, err = b.offer(ctx, run); err == nil {
				latencies = append(latencies, timed.appended)
				fromSchedule = append(fromSchedule, timed.scheduled)
			}
		} else {
			got, err = b.drain(ctx, run, input)
		}
		if err != nil {
			return fail(err)
		}
		rates = append(rates, float64(got.records)/got.elapsed.Seconds())
		cpus = append(cpus, got.cpu.Seconds()/float64(got.records)*1e6)
		memory = append(memory, got.peak)
		result.MemoryBytes = got.memory
	}
	result.RecordsPerSecond, result.CPUSecondsPerMillion, result.PeakMemoryBytes = median(rates), median(cpus), median(memory)
	if opts.Read {
		result.Read = &ReadResult{RecordsPerSecond: median(readRates), Ratio: result.RecordsPerSecond / median(readRates)}
		if !embedded {
			result.Read.CPUSecondsPerMillion = median(readCPUs)
		}
	}
	if opts.Rate > 0 {
		result.Latency, result.LatencyFromSchedule = medianLatency(latencies), medianLatency(fromSchedule)
	}
	return result, nil
}

func median[T cmp.Ordered](all []T) T {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// create makes a topic that is deleted at the end. With appendTime its records
// have the time at which the broker appended them. It returns when every
// partition can be read and written: a broker lists a topic long before it has
// made the last partition of many, each with a checkpoint that it forces to disk,
// and who writes to one until then waits.
func (b *lineBench) create(ctx context.Context, name string, partitions int, appendTime bool) (string, error) {
	topic := b.prefix + "-" + name
	configs := make(map[string]*string)
	if appendTime {
		kind := "LogAppendTime"
		configs["message.timestamp.type"] = &kind
	}
	created, err := b.admin.CreateTopics(ctx, int32(partitions), 1, configs, topic)
	if err == nil {
		err = created.Error()
	}
	if err != nil {
		return "", fmt.Errorf("create topic %s: %w", topic, err)
	}
	b.topics = append(b.topics, topic)
	for ctx.Err() == nil {
		ends, err := b.admin.ListEndOffsets(ctx, topic)
		if err == nil && ends.Error() == nil && len(ends[topic]) == partitions {
			return topic, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return "", context.Cause(ctx)
}

// configure returns the configuration of a run's monitors, with topics of its
// own for what they publish.
func (b *lineBench) configure(ctx context.Context, run int, input, start string) (*monitor.Config, error) {
	scores, err := b.create(ctx, fmt.Sprintf("scores-%d", run), b.Partitions, b.Rate > 0)
	if err != nil {
		return nil, err
	}
	dead, err := b.create(ctx, fmt.Sprintf("dead-%d", run), 1, false)
	if err != nil {
		return nil, err
	}
	cfg := monitor.DefaultConfig()
	cfg.Kafka.Brokers = b.Brokers
	cfg.Input.Topic, cfg.Input.Group, cfg.Input.Start, cfg.Input.Codec = input, scores, start, "raw"
	if b.Vectors > 1 {
		cfg.Input.Codec = "arrow"
	}
	cfg.Output.Topic, cfg.Output.Format, cfg.Output.When, cfg.Output.Delivery = scores, b.Format, b.When, b.Delivery
	cfg.DeadLetter.Topic = dead
	cfg.Input.Batch.MaxRecords = cmp.Or(b.MaxRecords, cfg.Input.Batch.MaxRecords)
	cfg.Input.Batch.MaxBytes = cmp.Or(b.MaxBytes, cfg.Input.Batch.MaxBytes)
	cfg.Model.Registry = b.registry
	return cfg, nil
}

// publishRandomModel puts a model with random prototypes into a new registry.
// Its calibration flags about one record in a hundred.
func publishRandomModel(ctx context.Context, registry string, classes, dim int) error {
	random := rand.New(rand.NewPCG(1, 1))
	prototypes := make([]float32, classes*dim)
	for i := range prototypes {
		prototypes[i] = float32(random.NormFloat64())
	}
	names := make([]string, classes)
	for i := range names {
		names[i] = fmt.Sprintf("class-%d", i)
	}
	mod := &model.Model{
		Detector: "isomax+", Score: "mds", EntropicScale: 10, Temperature: 1, Alpha: .01, Delta: .05,
		Classes: names, Created: time.Unix(0, 0).UTC(), DistanceScale: 1,
		Prototypes: tensor.New(tensor.WithShape(classes, dim), tensor.WithBacking(prototypes)),
	}
	// In high dimensions the nearest of random prototypes is almost as far as
	// any: calibrate on deviates like those of the stream.
	x := make([]float32, 1000*dim)
	for i := range x {
		x[i] = float32(random.NormFloat64())
	}
	scores, class, err := scorer.Distances(mod, x)
	if err != nil {
		return err
	}
	mod.Calibration = model.NewCalibration(scores, class)
	models, err := model.OpenRegistry(registry)
	if err != nil {
		return err
	}
	_, err = models.Publish(ctx, mod, model.Event{})
	return err
}
