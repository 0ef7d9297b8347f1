// Package bench measures the line as a user would run it: a process of its own
// against a broker.
package bench

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/monitor"
	"github.com/oodmon/oodmon/scorer"
	"github.com/schollz/progressbar/v3"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.yaml.in/yaml/v3"
	"gorgonia.org/tensor"
)

// LineOptions say what Line measures.
type LineOptions struct {
	Brokers    []string // empty: an embedded broker
	Records    int
	Dim        int
	Classes    int
	Partitions int
	Format     string // output.format
	When       string // output.when
	Delivery   string // output.delivery
	Runs       int
	Program    string    // the oodmon to run
	Progress   io.Writer // a terminal, or io.Discard
}

// A LineResult holds the medians over the runs.
type LineResult struct {
	Broker     string `json:"broker"`
	Records    int    `json:"records"`
	Dim        int    `json:"dim"`
	Classes    int    `json:"classes"`
	Partitions int    `json:"partitions"`
	Format     string `json:"format"`
	When       string `json:"when"`
	Delivery   string `json:"delivery"`
	Runs       int    `json:"runs"`
	CPUs       int    `json:"cpus"`

	RecordsPerSecond     float64 `json:"records_per_second"`
	CPUSecondsPerMillion float64 `json:"cpu_seconds_per_million_records"`
	PeakMemoryBytes      int64   `json:"peak_memory_bytes"`
}

func (o *LineOptions) validate() error {
	for _, v := range []struct {
		flag  string
		value int
	}{{"records", o.Records}, {"dim", o.Dim}, {"classes", o.Classes}, {"partitions", o.Partitions}, {"runs", o.Runs}} {
		if v.value < 1 {
			return fmt.Errorf("--%s: %d must be positive", v.flag, v.value)
		}
	}
	return nil
}

// Line fills a topic once, and lets a fresh monitor drain it in each run.
func Line(ctx context.Context, opts LineOptions) (_ *LineResult, err error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	result := &LineResult{
		Broker: "embedded (kfake)", Records: opts.Records, Dim: opts.Dim, Classes: opts.Classes, Partitions: opts.Partitions,
		Format: opts.Format, When: opts.When, Delivery: opts.Delivery, Runs: opts.Runs, CPUs: runtime.NumCPU(),
	}
	if len(opts.Brokers) == 0 {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
		if err != nil {
			return nil, fmt.Errorf("start the embedded broker: %w", err)
		}
		defer cluster.Close()
		opts.Brokers = cluster.ListenAddrs()
	} else {
		result.Broker = opts.Brokers[0]
	}
	dir, err := os.MkdirTemp("", "oodmon-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	registry := filepath.Join(dir, "registry")
	if err := publishRandomModel(ctx, registry, opts.Classes, opts.Dim); err != nil {
		return nil, err
	}

	client, err := kgo.NewClient(kgo.SeedBrokers(opts.Brokers...), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	prefix := "oodmon-bench-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	input := prefix + "-in"
	topics := []string{input}
	defer func() {
		_, deleteErr := admin.DeleteTopics(context.WithoutCancel(ctx), topics...)
		err = errors.Join(err, deleteErr)
	}()
	create := func(topic string) error {
		created, err := admin.CreateTopics(ctx, int32(opts.Partitions), 1, nil, topic)
		if err == nil {
			err = created.Error()
		}
		if err != nil {
			return fmt.Errorf("create topic %s: %w", topic, err)
		}
		// A broker answers before its metadata has the topic.
		for range 100 {
			ends, err := admin.ListEndOffsets(ctx, topic)
			if err == nil && ends.Error() == nil && len(ends[topic]) == opts.Partitions {
				return nil
			}
			time.Sleep(100 * time.Millisecond)
		}
		return fmt.Errorf("create topic %s: its partitions have no leaders", topic)
	}
	if err := create(input); err != nil {
		return nil, err
	}
	if err := fill(ctx, client, input, opts); err != nil {
		return nil, err
	}

	var rates, cpus []float64
	var memory []int64
	for run := range opts.Runs {
		output := fmt.Sprintf("%s-scores-%d", prefix, run)
		dead := fmt.Sprintf("%s-dead-%d", prefix, run)
		topics = append(topics, output, dead)
		if err := errors.Join(create(output), create(dead)); err != nil {
			return nil, err
		}
		cfg := monitor.DefaultConfig()
		cfg.Kafka.Brokers = opts.Brokers
		cfg.Input.Topic, cfg.Input.Group, cfg.Input.Start, cfg.Input.Codec = input, output, "earliest", "raw"
		cfg.Output.Topic, cfg.Output.Format, cfg.Output.When = output, opts.Format, opts.When
		cfg.Output.Delivery, cfg.DeadLetter.Topic = opts.Delivery, dead
		cfg.Model.Registry = registry
		got, err := drain(ctx, opts, cfg, filepath.Join(dir, "oodmon.yml"))
		if err != nil {
			return nil, fmt.Errorf("run %d: %w", run+1, err)
		}
		rates = append(rates, float64(opts.Records)/got.elapsed.Seconds())
		cpus = append(cpus, got.cpu.Seconds()/float64(opts.Records)*1e6)
		memory = append(memory, got.peak)
	}
	result.RecordsPerSecond, result.CPUSecondsPerMillion, result.PeakMemoryBytes = median(rates), median(cpus), median(memory)
	return result, nil
}

func median[T cmp.Ordered](all []T) T {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
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

// fill produces the records: normal deviates, little-endian float32.
func fill(ctx context.Context, client *kgo.Client, topic string, opts LineOptions) error {
	bar := progressbar.NewOptions(opts.Records, progressbar.OptionSetWriter(opts.Progress), progressbar.OptionSetDescription("filling the topic"),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionShowCount())
	random := rand.New(rand.NewPCG(2, 2))
	// A pool of values, so that filling is fast; each record is another window of it.
	pool := make([]byte, 0, 4*(opts.Dim+4099))
	for len(pool) < cap(pool) {
		pool = binary.LittleEndian.AppendUint32(pool, math.Float32bits(float32(random.NormFloat64())))
	}
	failed := make(chan error, 1)
	for i := range opts.Records {
		at := 4 * (i % 4099)
		record := &kgo.Record{Topic: topic, Key: strconv.AppendInt(nil, int64(i), 10), Value: pool[at : at+4*opts.Dim]}
		client.Produce(ctx, record, func(_ *kgo.Record, err error) {
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		})
		if i%1000 == 999 {
			_ = bar.Add(1000) // a terminal that went away ends nothing
		}
	}
	if err := client.Flush(ctx); err != nil {
		return fmt.Errorf("fill topic %s: %w", topic, err)
	}
	_ = bar.Finish()
	select {
	case err := <-failed:
		return fmt.Errorf("fill topic %s: %w", topic, err)
	default:
		return nil
	}
}

type drained struct {
	elapsed time.Duration
	cpu     time.Duration
	peak    int64
}

// drain runs the monitor until it has scored every record, and asks the
// operating system what it used.
func drain(ctx context.Context, opts LineOptions, cfg *monitor.Config, path string) (got drained, err error) {
	port, err := freePort()
	if err != nil {
		return got, err
	}
	cfg.Web.ListenAddresses = []string{port}
	text, err := yaml.Marshal(cfg)
	if err != nil {
		return got, fmt.Errorf("write configuration: %w", err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return got, fmt.Errorf("write configuration: %w", err)
	}
	var stderr bytes.Buffer
	child := exec.CommandContext(ctx, opts.Program, "run", "--config", path)
	child.Stderr = &stderr
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.WaitDelay = 30 * time.Second
	if err := child.Start(); err != nil {
		return got, fmt.Errorf("start %s: %w", opts.Program, err)
	}
	exited := make(chan error, 1)
	go func() { exited <- child.Wait() }()

	begun := time.Now() // the last time that nothing was scored yet
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for status := (monitor.Status{}); status.Records+status.DeadLettered < int64(opts.Records); {
		select {
		case err := <-exited:
			return got, fmt.Errorf("oodmon run ended early: %w\n%s", err, stderr.String())
		case <-poll.C:
		}
		if status, err = fetchStatus(ctx, port); err != nil || status.Records == 0 {
			begun = time.Now() // not up yet, or still joining the group
			continue
		}
		got.elapsed = status.LastRecord.Sub(begun)
	}
	if got.peak, err = peakMemory(child.Process.Pid); err != nil {
		return got, err
	}
	if err := child.Process.Signal(syscall.SIGTERM); err != nil {
		return got, fmt.Errorf("stop oodmon run: %w", err)
	}
	if err := <-exited; err != nil {
		return got, fmt.Errorf("oodmon run: %w\n%s", err, stderr.String())
	}
	got.cpu = child.ProcessState.UserTime() + child.ProcessState.SystemTime()
	return got, nil
}

// peakMemory returns the largest resident set of a process so far, or 0 where
// there is no /proc. The kernel's rusage will not do: it starts from the
// parent's, which holds the embedded broker.
func peakMemory(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read peak memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if kib, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kib), "kB")), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read peak memory: %w", err)
			}
			return n << 10, nil
		}
	}
	return 0, nil
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

func fetchStatus(ctx context.Context, address string) (s monitor.Status, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/api/v1/status", nil)
	if err != nil {
		return s, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	err = json.NewDecoder(resp.Body).Decode(&s)
	return s, err
}
