// Package kafkatest gives tests a Kafka broker of their own: an embedded one,
// or with OODMON_TEST_KAFKA=real a real one, started by scripts/kafka.
package kafkatest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A Broker is a Kafka of one node, or of several. It ends with the test.
type Broker struct {
	Address string // or addresses, with commas
	// Cluster is the embedded broker, or nil where it is a real one.
	Cluster *kfake.Cluster

	t      testing.TB
	dirs   []string    // of the nodes
	fake   []kfake.Opt // to start the embedded broker again
	client *kgo.Client
	admin  *kadm.Client
}

// Real reports whether brokers are real ones.
func Real() bool { return os.Getenv("OODMON_TEST_KAFKA") == "real" }

// NeedReal skips a test that only a real broker can run.
func NeedReal(t testing.TB) {
	t.Helper()
	if !Real() {
		t.Skip("needs a real Kafka: set OODMON_TEST_KAFKA=real (a JDK and Maven are needed)")
	}
}

// Start starts a broker. The options are for the embedded one only.
func Start(t testing.TB, options ...kfake.Opt) *Broker {
	t.Helper()
	b := &Broker{t: t}
	switch {
	case Real() && len(options) == 0:
		return StartReal(t, 1, FreePorts(t))
	case Real():
		t.Skip("runs on the embedded broker, without OODMON_TEST_KAFKA=real")
	default:
		b.fake = append([]kfake.Opt{
			kfake.NumBrokers(1), kfake.Ports(FreePorts(t)), kfake.DataDir(filepath.Join(t.TempDir(), "kfake")), kfake.SyncWrites(),
			kfake.GroupMinSessionTimeout(time.Second),
		}, options...)
		b.startFake()
		t.Cleanup(func() { b.Cluster.Close() })
	}
	if len(options) == 0 {
		b.Connect()
	}
	return b
}

// StartReal starts a real Kafka of some nodes on port, port+2 and so on, with
// settings like key=value; {+7} in a value stands for the node's port plus 7.
func StartReal(t testing.TB, nodes, port int, settings ...string) *Broker {
	t.Helper()
	b := &Broker{t: t}
	dir := t.TempDir()
	settings = append([]string{"group.min.session.timeout.ms=1000"}, settings...)
	if nodes == 1 {
		b.dirs = []string{dir}
		t.Cleanup(func() { b.script("kill", dir) })
		b.Address = b.script(append([]string{"start", dir, strconv.Itoa(port)}, settings...)...)
	} else {
		for id := range nodes {
			b.dirs = append(b.dirs, filepath.Join(dir, strconv.Itoa(id+1)))
		}
		t.Cleanup(func() {
			for _, dir := range b.dirs {
				b.script("kill", dir)
			}
		})
		b.Address = strings.Join(strings.Fields(b.script(append([]string{"cluster", dir, strconv.Itoa(nodes), strconv.Itoa(port)}, settings...)...)), ",")
	}
	b.Connect()
	return b
}

// StartFake starts the embedded broker, for tests of faults that a real one cannot be
// made to have. Where real ones are asked for it skips the test.
func StartFake(t testing.TB) *Broker {
	t.Helper()
	b := Start(t, kfake.NumBrokers(1))
	b.Connect()
	return b
}

// Connect makes the client that the other methods use, with what it takes to
// be let in.
func (b *Broker) Connect(options ...kgo.Opt) {
	b.t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(strings.Split(b.Address, ",")...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(15 << 20),
		kgo.MetadataMinAge(100 * time.Millisecond),
	}, options...)...)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(client.Close)
	b.client, b.admin = client, kadm.NewClient(client)
}

// script calls scripts/kafka and returns what it printed.
func (b *Broker) script(args ...string) string {
	b.t.Helper()
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command(filepath.Join(filepath.Dir(here), "..", "..", "scripts", "kafka"), args...)
	if os.Getenv("KAFKA_OPTS") == "" { // what starts with half the CPU time, and is slower later
		cmd.Env = append(os.Environ(), "KAFKA_OPTS=-Xmx512m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
	}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Second // the broker keeps the script's standard error
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() != 0 {
		b.t.Fatalf("scripts/kafka %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(out.String())
}

// Logs returns the files that the nodes of a real Kafka log to.
func (b *Broker) Logs() (paths []string) {
	for _, dir := range b.dirs {
		paths = append(paths, filepath.Join(dir, "broker.log"))
	}
	return paths
}

// Kill ends the broker, a real one with SIGKILL. What it acknowledged stays.
func (b *Broker) Kill() {
	b.t.Helper()
	if b.Cluster != nil {
		b.Cluster.Close()
		return
	}
	b.KillNode(0)
}

// KillNode ends one node of a real Kafka with SIGKILL, and RestartNode starts it
// again. The node with id n+1 is number n.
func (b *Broker) KillNode(n int) {
	b.t.Helper()
	b.script("kill", b.dirs[n])
}

// RestartNode starts a killed node again, on its data and its address.
func (b *Broker) RestartNode(n int) {
	b.t.Helper()
	b.script("start", b.dirs[n])
}

// Restart starts a killed broker again, on its data and its address.
func (b *Broker) Restart() {
	b.t.Helper()
	if b.Cluster != nil {
		b.startFake()
		return
	}
	b.RestartNode(0)
}

func (b *Broker) startFake() {
	b.t.Helper()
	var err error
	for range 50 { // the address of the one before may linger
		if b.Cluster, err = kfake.NewCluster(b.fake...); err == nil {
			b.Address = b.Cluster.ListenAddrs()[0]
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	b.t.Fatalf("start the embedded broker: %v", err)
}

// Client returns the client that the other methods use.
func (b *Broker) Client() *kgo.Client { return b.client }

// FreePorts returns the first of seven free neighbouring ports, below those that the
// system gives to outgoing connections. They are the test's until it ends: the eighth
// is held for them.
func FreePorts(t testing.TB) int {
	t.Helper()
	const block = 8
	listen := func(port int) (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port)) }
	for range 100 {
		port := 5000 + block*rand.IntN(7000/block)
		guard, err := listen(port + block - 1)
		if err != nil {
			continue
		}
		free := true
		for next := port; free && next < port+block-1; next++ {
			l, err := listen(next)
			if free = err == nil; free {
				_ = l.Close()
			}
		}
		if free {
			t.Cleanup(func() { _ = guard.Close() })
			return port
		}
		_ = guard.Close()
	}
	t.Fatal("no neighbouring ports are free")
	return 0
}

// CreateTopic makes a topic, with settings like retention.ms=1 if any.
func (b *Broker) CreateTopic(name string, partitions int, settings ...string) {
	b.t.Helper()
	configs := make(map[string]*string)
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		configs[key] = &value
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	answer, err := b.admin.CreateTopics(ctx, int32(partitions), int16(max(1, len(b.dirs))), configs, name)
	if err == nil {
		err = answer.Error()
	}
	// A slow broker may have made it for an attempt whose answer was not waited for.
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		b.t.Fatalf("create topic %s: %v", name, err)
	}
	// A real broker answers before its metadata has the topic.
	Eventually(b.t, 30*time.Second, func() error {
		ends, err := b.admin.ListEndOffsets(ctx, name)
		if err == nil {
			err = ends.Error()
		}
		if err == nil && len(ends[name]) != partitions {
			err = fmt.Errorf("topic %s has %d of %d partitions", name, len(ends[name]), partitions)
		}
		return err
	})
}

// Admin returns the administrative client.
func (b *Broker) Admin() *kadm.Client { return b.admin }

// Produce sends the records, in order, to the partitions that they name.
func (b *Broker) Produce(records ...*kgo.Record) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := b.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		b.t.Fatalf("produce: %v", err)
	}
}

// ProduceBatch sends one record batch, of which only the framing is put in order:
// the records may be any bytes. It returns the offset of the first.
func (b *Broker) ProduceBatch(topic string, partition int32, batch kmsg.RecordBatch) int64 {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	topics, err := b.admin.ListTopics(ctx, topic)
	if err != nil {
		b.t.Fatalf("find the leader of %s: %v", topic, err)
	}
	batch.Length = int32(49 + len(batch.Records)) // from the leader's epoch on
	batch.PartitionLeaderEpoch, batch.Magic = -1, 2
	batch.LastOffsetDelta = batch.NumRecords - 1
	batch.FirstTimestamp, batch.MaxTimestamp = time.Now().UnixMilli(), time.Now().UnixMilli()
	batch.ProducerID, batch.ProducerEpoch, batch.FirstSequence = -1, -1, -1
	raw := batch.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))

	part := kmsg.NewProduceRequestTopicPartition()
	part.Partition, part.Records = partition, raw
	in := kmsg.NewProduceRequestTopic()
	in.Topic, in.TopicID, in.Partitions = topic, topics[topic].ID, []kmsg.ProduceRequestTopicPartition{part}
	request := kmsg.NewPtrProduceRequest()
	request.Acks, request.TimeoutMillis, request.Topics = -1, 30_000, []kmsg.ProduceRequestTopic{in}
	answer, err := b.client.Broker(int(topics[topic].Partitions[partition].Leader)).RetriableRequest(ctx, request)
	if err != nil {
		b.t.Fatalf("produce a batch: %v", err)
	}
	out := answer.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(out.ErrorCode); err != nil {
		b.t.Fatalf("produce a batch: %v", err)
	}
	return out.BaseOffset
}

// ReadAll returns what a topic holds now, partition by partition, as a reader
// of committed transactions sees it.
func (b *Broker) ReadAll(topic string) []*kgo.Record {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	ends, err := b.admin.ListCommittedOffsets(ctx, topic)
	if err != nil {
		b.t.Fatalf("list offsets of %s: %v", topic, err)
	}
	starts, err := b.admin.ListStartOffsets(ctx, topic)
	if err != nil {
		b.t.Fatalf("list offsets of %s: %v", topic, err)
	}
	from, missing := make(map[int32]kgo.Offset), make(map[int32]int64) // where each partition ends
	ends.Each(func(o kadm.ListedOffset) {
		start, _ := starts.Lookup(topic, o.Partition)
		if o.Offset > start.Offset {
			from[o.Partition], missing[o.Partition] = kgo.NewOffset().At(start.Offset), o.Offset
		}
	})
	if len(missing) == 0 {
		return nil
	}
	client, err := kgo.NewClient(append(b.client.Opts(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())...)
	if err != nil {
		b.t.Fatal(err)
	}
	defer client.Close()
	var all []*kgo.Record
	for len(missing) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			b.t.Fatalf("read %s: %v (%d records; the ends %v were not reached)", topic, err, len(all), missing)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if end, ok := missing[r.Partition]; ok && r.Offset+1 >= end {
				delete(missing, r.Partition)
			}
			if !r.Attrs.IsControl() {
				all = append(all, r)
			}
		})
	}
	return all
}

// Committed returns a group's committed offsets of a topic, by partition.
func (b *Broker) Committed(group, topic string) map[int32]int64 {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	offsets, err := b.admin.FetchOffsets(ctx, group)
	for err != nil && !errors.Is(err, kerr.GroupIDNotFound) && ctx.Err() == nil { // after a restart
		time.Sleep(50 * time.Millisecond)
		offsets, err = b.admin.FetchOffsets(ctx, group)
	}
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) { // a group that was never there
		b.t.Fatalf("fetch offsets of %s: %v", group, err)
	}
	all := make(map[int32]int64)
	offsets.Each(func(o kadm.OffsetResponse) {
		if o.Topic == topic {
			all[o.Partition] = o.At
		}
	})
	return all
}

// Eventually waits until check returns nil; the test ends where it does not.
func Eventually(t testing.TB, timeout time.Duration, check func() error) {
	t.Helper()
	if err := Within(timeout, check); err != nil {
		t.Fatal(err)
	}
}

// Within waits until check returns nil, and returns its last error where it does not.
// It is called once at least.
func Within(timeout time.Duration, check func() error) error {
	for deadline := time.Now().Add(timeout); ; time.Sleep(20 * time.Millisecond) {
		err := check()
		if err == nil {
			return nil
		}
		if !time.Now().Before(deadline) {
			return fmt.Errorf("not within %v: %w", timeout, err)
		}
	}
}
