package faults

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
	"github.com/twmb/franz-go/pkg/kgo"
	"gorgonia.org/tensor"
)

var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "oodmon-faults-")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "oodmon")
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/oodmon").CombinedOutput(); err != nil {
		panic(fmt.Sprintf("%v\n%s", err, out))
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

const (
	dim        = 16
	partitions = 4
	perSecond  = 2000
)

// A deployment is a broker, a registry, a producer and a monitor.
type deployment struct {
	*kafkatest.Broker
	t       *testing.T
	config  string
	models  *model.Registry
	monitor *exec.Cmd
	log     *os.File

	produced atomic.Int64
	stop     context.CancelFunc
	done     chan error
}

func deploy(t *testing.T) *deployment {
	t.Helper()
	d := &deployment{Broker: kafkatest.Start(t), t: t, done: make(chan error, 1)}
	d.CreateTopic("embeddings", partitions)
	d.CreateTopic("scores", partitions)
	d.CreateTopic("dead-letters", 1)
	dir := t.TempDir()
	registry, err := model.OpenRegistry(filepath.Join(dir, "registry"))
	if err != nil {
		t.Fatal(err)
	}
	d.models = registry
	d.publish(1)
	d.config = filepath.Join(dir, "oodmon.yml")
	text := fmt.Sprintf(`
kafka: {brokers: [%q]}
input: {topic: embeddings, start: earliest, session_timeout: 6s, batch: {max_records: 200, max_wait: 50ms}}
output: {topic: scores}
dead_letter: {topic: dead-letters}
model: {registry: %q}
web: {listen_addresses: ["127.0.0.1:0"]}
`, d.Address, filepath.Join(dir, "registry"))
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if d.log, err = os.Create(filepath.Join(dir, "monitor.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.monitor != nil {
			_ = d.monitor.Process.Kill()
			_ = d.monitor.Wait()
		}
		if t.Failed() {
			text, _ := os.ReadFile(d.log.Name())
			lines := strings.Split(string(text), "\n")
			t.Log("the monitor's last lines:\n" + strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
		_ = d.log.Close()
	})
	return d
}

// publish puts another model into service and returns its version.
func (d *deployment) publish(seed uint64) string {
	d.t.Helper()
	version, err := d.models.Publish(d.t.Context(), randomModel(d.t, seed), model.Event{})
	if err != nil {
		d.t.Fatal(err)
	}
	return version
}

func randomModel(t *testing.T, seed uint64) *model.Model {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	normal := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(random.NormFloat64())
		}
		return x
	}
	m := &model.Model{
		Detector: model.IsoMaxPlus, Score: model.MDS, EntropicScale: 10, Temperature: 1, Alpha: .01, Delta: .05, Classes: []string{"a", "b", "c"},
		Created: time.Unix(0, 0), DistanceScale: 1, Prototypes: tensor.New(tensor.WithShape(3, dim), tensor.WithBacking(normal(3*dim))),
	}
	scores, class, err := scorer.Distances(m, normal(1000*dim))
	if err != nil {
		t.Fatal(err)
	}
	m.Calibration = model.NewCalibration(scores, class)
	return m
}

// startMonitor starts `oodmon run`; killMonitor ends it with SIGKILL.
func (d *deployment) startMonitor() {
	d.t.Helper()
	d.monitor = exec.Command(program, "run", "--config", d.config)
	d.monitor.Stderr = d.log
	if err := d.monitor.Start(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *deployment) killMonitor() {
	d.t.Helper()
	if err := d.monitor.Process.Kill(); err != nil {
		d.t.Fatal(err)
	}
	_ = d.monitor.Wait() // it was killed
	d.monitor = nil
}

// produce sends records until finish is called. One in fifty is no embedding.
// The producer's client is idempotent: what it was told is acknowledged is in
// the log once.
func (d *deployment) produce() {
	client, err := kgo.NewClient(kgo.SeedBrokers(d.Address), kgo.DefaultProduceTopic("embeddings"), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.ProducerLinger(5*time.Millisecond), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	d.stop = stop
	d.t.Cleanup(stop)
	go func() {
		defer client.Close()
		random := rand.New(rand.NewPCG(2, 2))
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; <-tick.C {
			for range perSecond / 100 {
				var value []byte
				for range dim {
					value = binary.LittleEndian.AppendUint32(value, math.Float32bits(float32(random.NormFloat64())))
				}
				if n%50 == 7 {
					value = value[:5]
				}
				client.Produce(context.Background(), &kgo.Record{Key: strconv.AppendInt(nil, int64(n), 10), Value: value}, func(_ *kgo.Record, err error) {
					if err == nil {
						d.produced.Add(1)
					}
				})
				n++
			}
		}
		d.done <- client.Flush(context.Background())
	}()
}

// finish stops producing and accounts for every record: each input offset has
// a result or a dead letter, and nothing else has.
func (d *deployment) finish() (twice int) {
	d.t.Helper()
	d.stop()
	if err := <-d.done; err != nil {
		d.t.Fatal(err)
	}
	type place struct {
		partition int
		offset    int64
	}
	var in, out []*kgo.Record
	found := make(map[place]int)
	kafkatest.Eventually(d.t, 120*time.Second, func() error {
		in, out = d.ReadAll("embeddings"), d.ReadAll("scores")
		clear(found)
		for _, r := range out {
			var at struct {
				Partition int   `json:"partition"`
				Offset    int64 `json:"offset"`
			}
			if err := json.Unmarshal(r.Value, &at); err != nil {
				d.t.Fatalf("%s: %v", r.Value, err)
			}
			found[place{at.Partition, at.Offset}]++
		}
		for _, r := range d.ReadAll("dead-letters") {
			var at place
			for _, h := range r.Headers {
				switch h.Key {
				case "oodmon-partition":
					at.partition, _ = strconv.Atoi(string(h.Value))
				case "oodmon-offset":
					at.offset, _ = strconv.ParseInt(string(h.Value), 10, 64)
				}
			}
			found[at]++
		}
		missing := 0
		for _, r := range in {
			if found[place{int(r.Partition), r.Offset}] == 0 {
				missing++
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d input records have neither a result nor a dead letter", missing, len(in))
		}
		return nil
	})
	if int64(len(in)) < d.produced.Load() {
		d.t.Errorf("the broker lost records: %d acknowledged, %d in the log", d.produced.Load(), len(in))
	}
	if len(found) != len(in) {
		d.t.Errorf("results for %d places, but there are %d input records", len(found), len(in))
	}
	for _, n := range found {
		twice += n - 1
	}
	ends := make(map[int32]int64)
	for _, r := range in {
		ends[r.Partition] = max(ends[r.Partition], r.Offset+1)
	}
	kafkatest.Eventually(d.t, 30*time.Second, func() error {
		for partition, at := range d.Committed("oodmon", "embeddings") {
			if at != ends[partition] {
				return fmt.Errorf("partition %d: committed %d of %d", partition, at, ends[partition])
			}
		}
		return nil
	})
	d.t.Logf("%d records in, 0 lost, %d twice", len(in), twice)
	return twice
}

// waitForResults waits until the monitor has published more than it had.
func (d *deployment) waitForResults(n int) {
	d.t.Helper()
	had := len(d.ReadAll("scores"))
	kafkatest.Eventually(d.t, 60*time.Second, func() error {
		if got := len(d.ReadAll("scores")); got < had+n {
			return fmt.Errorf("%d results, waiting for %d", got, had+n)
		}
		return nil
	})
}

// SIGHUP takes in the current model, SIGTERM ends well: while records flow, and
// without one too few or too many.
func TestSignals(t *testing.T) {
	d := deploy(t)
	d.startMonitor()
	d.produce()
	d.waitForResults(500)
	next := d.publish(2)
	if err := d.monitor.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	kafkatest.Eventually(t, 30*time.Second, func() error {
		for _, r := range d.ReadAll("scores") {
			if strings.Contains(string(r.Value), next) {
				return nil
			}
		}
		return fmt.Errorf("no result by model %s", next)
	})
	if err := d.monitor.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.monitor.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	d.startMonitor()
	if twice := d.finish(); twice != 0 {
		t.Errorf("%d results came twice after an orderly end", twice)
	}
}

func TestMonitorKilled(t *testing.T) {
	d := deploy(t)
	d.startMonitor()
	d.produce()
	for range 3 {
		d.waitForResults(1500)
		d.killMonitor()
		d.startMonitor()
	}
	d.finish()
}

func TestBrokerKilled(t *testing.T) {
	kafkatest.NeedReal(t)
	d := deploy(t)
	d.startMonitor()
	d.produce()
	for range 2 {
		d.waitForResults(1500)
		d.Kill()
		time.Sleep(500 * time.Millisecond) // the producer and the monitor meet the dead broker
		d.Restart()
	}
	d.waitForResults(1500)
	d.killMonitor()
	d.startMonitor()
	d.finish()
}
