package consumer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const patience = 60 * time.Second

// A fixture is a topic, a group, and what handlers were given.
type fixture struct {
	*kafkatest.Broker
	t     *testing.T
	conn  *kafkaconn.Client
	cfg   Config
	reg   *prometheus.Registry
	log   *bytes.Buffer
	logMu sync.Mutex
	// How long a coordinator that tells of an older offset is asked again; 0: as long as always.
	forgetful time.Duration
	budget    *budget // nil: that of the process
	// How long what was missed is tried to be read; 0: as long as always.
	missedPatience time.Duration

	mu      sync.Mutex
	got     map[int][]int64 // offsets by partition, in the order of delivery
	values  map[string]int
	batches int
	handle  func(ctx context.Context, b *Batch) error // before a batch is recorded
}

var notInTopics = regexp.MustCompile(`[^A-Za-z0-9-]+`)

func newFixture(t *testing.T, broker *kafkatest.Broker, partitions int, settings ...string) *fixture {
	t.Helper()
	name := notInTopics.ReplaceAllString(t.Name(), "-")
	broker.CreateTopic(name, partitions, settings...)
	f := &fixture{
		Broker: broker, t: t, reg: prometheus.NewRegistry(), log: &bytes.Buffer{},
		got: make(map[int][]int64), values: make(map[string]int),
		cfg: Config{
			Topic: name, Group: name, Start: "earliest", OutOfRange: "earliest", MaxRecords: 100, MaxBytes: 1 << 20,
			MaxWait: 100 * time.Millisecond, MaxMessageBytes: 1 << 20, SessionTimeout: 6 * time.Second, DrainTimeout: 10 * time.Second,
		},
	}
	f.connect("test")
	return f
}

// connect gives members that are started from now on a client of their own, of the
// fixture's broker where none is named.
func (f *fixture) connect(clientID string, brokers ...string) {
	f.t.Helper()
	if len(brokers) == 0 {
		brokers = []string{f.Address}
	}
	conn, err := kafkaconn.New(kafkaconn.Config{Brokers: brokers, ClientID: clientID})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(conn.Close)
	f.conn = conn
}

// Handle records a batch.
func (f *fixture) Handle(ctx context.Context, b *Batch) error {
	if f.handle != nil {
		if err := f.handle(ctx, b); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.batches++
	for i := range b.Messages {
		m := &b.Messages[i]
		f.got[b.Partition] = append(f.got[b.Partition], m.Offset)
		f.values[string(m.Value)]++
	}
	return nil
}

func (f *fixture) Write(p []byte) (int, error) {
	f.logMu.Lock()
	defer f.logMu.Unlock()
	return f.log.Write(p)
}

func (f *fixture) logged() string {
	f.logMu.Lock()
	defer f.logMu.Unlock()
	return f.log.String()
}

// start runs a member; stop ends it as SIGTERM does, and returns Run's error.
func (f *fixture) start() (c *Consumer, stop func() error) {
	f.t.Helper()
	f.reg = prometheus.NewRegistry()
	c, err := New(f.cfg, f.conn, func() Handler { return f }, f.reg, slog.New(slog.NewTextHandler(f, nil)))
	if err != nil {
		f.t.Fatal(err)
	}
	if f.forgetful > 0 {
		c.forgetful = f.forgetful
	}
	if f.missedPatience > 0 {
		c.missedPatience = f.missedPatience
	}
	if f.budget != nil {
		c.budget = f.budget
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	var once sync.Once
	stop = func() (err error) {
		once.Do(func() {
			cancel()
			select {
			case err = <-done:
			case <-time.After(patience):
				f.t.Errorf("Run did not return within %v", patience)
			}
		})
		return err
	}
	f.t.Cleanup(func() {
		_ = stop() // a test that cares has called it
		if f.t.Failed() {
			f.t.Log(f.logged())
		}
	})
	return c, stop
}

func (f *fixture) produce(partition int, values ...string) {
	f.t.Helper()
	records := make([]*kgo.Record, len(values))
	for i, v := range values {
		records[i] = &kgo.Record{Topic: f.cfg.Topic, Partition: int32(partition), Value: []byte(v)}
	}
	f.Produce(records...)
}

// numbers returns prefix0, prefix1 and so on.
func numbers(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprint(prefix, i)
	}
	return all
}

// received waits until every value has come at least once.
func (f *fixture) received(values ...string) {
	f.t.Helper()
	kafkatest.Eventually(f.t, patience, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, v := range values {
			if f.values[v] == 0 {
				return fmt.Errorf("%q has not come", v)
			}
		}
		return nil
	})
}

// readThree produces a and b to partition 0 and c to 1, and waits until they are committed.
func (f *fixture) readThree() {
	f.t.Helper()
	f.produce(0, "a", "b")
	f.produce(1, "c")
	f.received("a", "b", "c")
	f.committedIs(0, 2)
	f.committedIs(1, 1)
}

// says waits until the log holds a text.
func (f *fixture) says(text string) {
	f.t.Helper()
	kafkatest.Eventually(f.t, patience, func() error {
		if !strings.Contains(f.logged(), text) {
			return fmt.Errorf("the log does not say %q", text)
		}
		return nil
	})
}

func (f *fixture) offsets(partition int) []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.got[partition])
}

func (f *fixture) committedIs(partition int32, want int64) {
	f.t.Helper()
	kafkatest.Eventually(f.t, patience, func() error {
		if got, ok := f.Committed(f.cfg.Group, f.cfg.Topic)[partition]; !ok || got != want {
			return fmt.Errorf("partition %d: committed %d (%v), want %d", partition, got, ok, want)
		}
		return nil
	})
}

func ascending(from, to int64) []int64 {
	var all []int64
	for ; from < to; from++ {
		all = append(all, from)
	}
	return all
}

// The tests that leave the broker as it is share one.
func TestConsumer(t *testing.T) {
	broker := kafkatest.Start(t)
	for name, test := range map[string]func(*testing.T, *kafkatest.Broker){
		"resumes after the commit": testResume, "repeats what the handler refused": testHandlerFailure,
		"shares with another member": testRebalance, "reads added partitions from their start": testAddedPartition,
		"counts what retention removed": testGap, "offset out of range": testOutOfRange, "oversized": testOversized, "missed": testMissed,
		"codecs": testCodecs, "transactions": testTransactions, "drains": testDrain, "gives a hanging batch up": testHangingHandler,
		"latest": testLatest, "bounds batches": testBounds, "ReadRange": testReadRange,
	} {
		t.Run(name, func(t *testing.T) { test(t, broker) })
	}
}

func testResume(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 3)
	for p := range 3 {
		f.produce(p, numbers(fmt.Sprintf("first-%d-", p), 40)...)
	}
	_, stop := f.start()
	for p := range 3 {
		f.committedIs(int32(p), 40)
	}
	if got := f.metric("oodmon_consumer_messages_total"); got != 120 {
		t.Errorf("oodmon_consumer_messages_total is %v, want 120", got)
	}
	if n := f.series("oodmon_consumer_lag_records"); n != 3 {
		t.Errorf("%d series of the lag, want 3", n)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if n := f.series("oodmon_consumer_lag_records"); n != 0 {
		t.Errorf("%d series of the lag after the partitions were given back, want 0", n)
	}
	for p := range 3 {
		f.produce(p, fmt.Sprint("second-", p))
	}
	_, stop = f.start()
	f.received("second-0", "second-1", "second-2")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for p := range 3 {
		if got := f.offsets(p); !slices.Equal(got, ascending(0, 41)) {
			t.Errorf("partition %d: %v, want 0 to 40, each once", p, got)
		}
	}
}

// metric returns the value of a counter or gauge, of one series of it where a
// label's value is given.
func (f *fixture) metric(name string, label ...string) float64 {
	f.t.Helper()
	families, err := f.reg.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.Metric {
			if family.GetName() == name && (len(label) == 0 || len(m.Label) == 1 && m.Label[0].GetValue() == label[0]) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	f.t.Fatalf("no metric %s %v", name, label)
	return 0
}

// series returns how many series a metric has.
func (f *fixture) series(name string) int {
	f.t.Helper()
	families, err := f.reg.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return len(family.Metric)
		}
	}
	return 0
}

func testHandlerFailure(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 1)
	f.cfg.MaxRecords = 10
	f.produce(0, numbers("v", 30)...)
	var mu sync.Mutex
	attempts := map[int64]int{}
	f.handle = func(_ context.Context, b *Batch) error {
		mu.Lock()
		defer mu.Unlock()
		first := b.Messages[0].Offset
		if attempts[first]++; first == 10 && attempts[first] <= 3 {
			if got := f.Committed(f.cfg.Group, f.cfg.Topic)[0]; got > 10 {
				t.Errorf("offset %d is committed while the batch from 10 is refused", got)
			}
			return errors.New("the sink is down")
		}
		return nil
	}
	f.start()
	f.committedIs(0, 30)
	mu.Lock()
	defer mu.Unlock()
	if attempts[0] != 1 || attempts[10] != 4 || attempts[20] != 1 {
		t.Errorf("attempts %v, want 1 at offset 0, 4 at 10 and 1 at 20", attempts)
	}
	if got := f.offsets(0); !slices.Equal(got, ascending(0, 30)) {
		t.Errorf("acknowledged %v, want 0 to 29, each once", got)
	}
	if want := "handle " + f.cfg.Topic + "[0] from offset 10: the sink is down"; !strings.Contains(f.logged(), want) {
		t.Errorf("the log does not say %q", want)
	}
}

func testRebalance(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 4)
	produce := func(prefix string) []string {
		values := numbers(prefix, 80)
		for i, v := range values {
			f.produce(i%4, v)
		}
		return values
	}
	first, stopFirst := f.start()
	all := produce("alone-")
	f.received(all...)
	second, stopSecond := f.start()
	shared := func() error {
		for _, c := range []*Consumer{first, second} {
			c.mu.Lock()
			n := len(c.partitions)
			c.mu.Unlock()
			if n != 2 {
				return fmt.Errorf("a member has %d partitions, want 2", n)
			}
		}
		return nil
	}
	kafkatest.Eventually(t, patience, shared)
	all = produce("shared-")
	f.received(all...)
	if err := stopFirst(); err != nil {
		t.Fatal(err)
	}
	all = produce("left-")
	f.received(all...)
	if err := stopSecond(); err != nil {
		t.Fatal(err)
	}
	for p := range 4 {
		f.committedIs(int32(p), 60)
	}
}

func testAddedPartition(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 1)
	f.cfg.Start = "latest"
	f.start()
	f.committedIs(0, 0)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer, err := f.Admin().CreatePartitions(ctx, 1, f.cfg.Topic)
	if err = errors.Join(err, answer.Error()); err != nil {
		t.Fatal(err)
	}
	kafkatest.Eventually(t, patience, func() error {
		f.Client().ForceMetadataRefresh() // else it may look for minutes at one partition
		return f.Client().ProduceSync(ctx, &kgo.Record{Topic: f.cfg.Topic, Partition: 1, Value: []byte("before it was noticed")}).FirstErr()
	})
	f.received("before it was noticed")
}

func testGap(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 1)
	f.produce(0, numbers("v", 60)...)
	f.commit(10)
	f.deleteTo(50)
	f.start()
	f.committedIs(0, 60)
	if got := f.offsets(0); !slices.Equal(got, ascending(50, 60)) {
		t.Errorf("%v, want 50 to 59", got)
	}
	if got := f.metric("oodmon_consumer_gap_records_total"); got != 40 {
		t.Errorf("oodmon_consumer_gap_records_total is %v, want 40", got)
	}
	if want := "offset=10 log_start=50 log_end=60 going_on_at=50 records_lost_to_retention=40"; !strings.Contains(f.logged(), want) {
		t.Errorf("the log does not say %q", want)
	}
}

// commit commits an offset of partition 0 as the group.
func (f *fixture) commit(offset int64) { f.t.Helper(); f.commitOf(0, offset) }

func (f *fixture) commitOf(partition int32, offset int64) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	offsets := make(kadm.Offsets)
	offsets.AddOffset(f.cfg.Topic, partition, offset, -1)
	kafkatest.Eventually(f.t, patience, func() error { return f.Admin().CommitAllOffsets(ctx, f.cfg.Group, offsets) })
}

func (f *fixture) deleteTo(offset int64) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	offsets := make(kadm.Offsets)
	offsets.AddOffset(f.cfg.Topic, 0, offset, -1)
	answer, err := f.Admin().DeleteRecords(ctx, offsets)
	if err = errors.Join(err, answer.Error()); err != nil {
		f.t.Fatal(err)
	}
}

func testOutOfRange(t *testing.T, broker *kafkatest.Broker) {
	for policy, want := range map[string][]int64{"earliest": ascending(0, 21), "latest": {20}} {
		t.Run(policy, func(t *testing.T) {
			f := newFixture(t, broker, 1)
			f.cfg.OutOfRange = policy
			f.produce(0, numbers("v", 20)...)
			f.commit(1000) // the topic was made anew
			f.start()
			f.says("the log does not hold the offset")
			f.produce(0, "after")
			f.received("after")
			f.committedIs(0, 21)
			if got := f.offsets(0); !slices.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
		})
	}
	t.Run("fail", func(t *testing.T) {
		f := newFixture(t, broker, 1)
		f.cfg.OutOfRange = "fail"
		f.produce(0, numbers("v", 20)...)
		f.commit(1000)
		c, err := New(f.cfg, f.conn, func() Handler { return f }, f.reg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		want := f.cfg.Topic + "[0]: offset 1000, but the log holds 0 to 20: the offset is out of range, and the policy is to fail"
		if err := c.Run(t.Context()); err == nil || err.Error() != want {
			t.Errorf("%v\nwant %s", err, want)
		}
		if got := f.Committed(f.cfg.Group, f.cfg.Topic)[0]; got != 1000 {
			t.Errorf("committed %d, want 1000 as before", got)
		}
	})
}

func testOversized(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 1, "max.message.bytes=4000000")
	f.cfg.MaxMessageBytes, f.cfg.MaxBytes = 1000, 10_000
	var mu sync.Mutex
	sizes := map[int64]int64{}
	f.handle = func(_ context.Context, b *Batch) error {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range b.Messages {
			if sizes[m.Offset] = m.Oversized; m.Oversized > 0 && (m.Value != nil || m.Key != nil || m.Headers != nil) {
				t.Errorf("offset %d is oversized, and has bytes", m.Offset)
			}
		}
		return nil
	}
	f.produce(0, strings.Repeat("a", 1000))
	f.produce(0, strings.Repeat("b", 1001))
	f.produce(0, strings.Repeat("c", 3_000_000)) // more than a whole fetch
	f.produce(0, "after")
	f.start()
	f.committedIs(0, 4)
	mu.Lock()
	defer mu.Unlock()
	if sizes[0] != 0 || sizes[1] != 1001 || sizes[2] < 3_000_000 || sizes[3] != 0 {
		t.Errorf("oversized %v, want 0, 1001, at least 3000000 and 0", sizes)
	}
}

func testCodecs(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 1)
	var all []string
	for name, codec := range map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	} {
		client, err := kgo.NewClient(kgo.SeedBrokers(f.Address), kgo.ProducerBatchCompression(codec))
		if err != nil {
			t.Fatal(err)
		}
		var records []*kgo.Record
		for i := range 20 {
			value := strings.Repeat(fmt.Sprint(name, i, " "), 500)
			all = append(all, value)
			records = append(records, &kgo.Record{Topic: f.cfg.Topic, Value: []byte(value), Headers: []kgo.RecordHeader{{Key: "k", Value: []byte(value[:3])}}})
		}
		err = client.ProduceSync(t.Context(), records...).FirstErr()
		client.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	f.handle = func(_ context.Context, b *Batch) error {
		for i := range b.Messages {
			if m := &b.Messages[i]; string(m.Header("k")) != string(m.Value[:3]) || m.Header("other") != nil {
				t.Errorf("offset %d: headers %v", m.Offset, m.Headers)
			}
		}
		return nil
	}
	f.start()
	f.received(all...)
	f.committedIs(0, 100)
	if got := f.offsets(0); !slices.Equal(got, ascending(0, 100)) {
		t.Errorf("%v, want 0 to 99, each once", got)
	}
}

func testTransactions(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 1)
	client, err := kgo.NewClient(kgo.SeedBrokers(f.Address), kgo.TransactionalID(f.cfg.Topic))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, commit := range []bool{false, true, false, true} {
		if err := client.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		record := &kgo.Record{Topic: f.cfg.Topic, Value: []byte(fmt.Sprint("committed: ", commit))}
		if err := client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := client.EndTransaction(t.Context(), kgo.TransactionEndTry(commit)); err != nil {
			t.Fatal(err)
		}
	}
	f.produce(0, "of no transaction")
	c, _ := f.start()
	f.received("of no transaction")
	// What an open one holds back waits.
	if err := client.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: f.cfg.Topic, Value: []byte("held back")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	lag := func(want int64) {
		t.Helper()
		kafkatest.Eventually(t, patience, func() error {
			if gauge, of := f.metric("oodmon_consumer_lag_records", "0"), c.Lag(); gauge != float64(want) || of != want {
				return fmt.Errorf("a lag of %v, %d, want %d", gauge, of, want)
			}
			return nil
		})
	}
	lag(1)
	if err := c.Healthy(time.Nanosecond); err != nil {
		t.Errorf("a restart would not help, but: %v", err)
	}
	if err := client.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	f.received("held back")
	lag(0)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.values["committed: true"] != 2 || f.values["committed: false"] != 0 {
		t.Errorf("%v, want both committed records and no other", f.values)
	}
}

// What is in hand when the end comes is finished and committed, and the group
// is left at once.
func testDrain(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 1)
	f.cfg.MaxRecords = 5
	f.produce(0, numbers("v", 20)...)
	begun, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.handle = func(ctx context.Context, _ *Batch) error {
		once.Do(func() { close(begun) })
		<-release
		return ctx.Err()
	}
	_, stop := f.start()
	<-begun
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	time.Sleep(200 * time.Millisecond) // Run has been told
	close(release)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if got := f.offsets(0); !slices.Equal(got, ascending(0, 5)) {
		t.Errorf("%v, want the batch in hand, 0 to 4", got)
	}
	f.committedIs(0, 5)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	groups, err := f.Admin().DescribeGroups(ctx, f.cfg.Group)
	if err != nil {
		t.Fatal(err)
	}
	if g := groups[f.cfg.Group]; len(g.Members) != 0 {
		t.Errorf("the group still has %d members", len(g.Members))
	}
}

func testHangingHandler(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 1)
	f.cfg.DrainTimeout = time.Second
	f.produce(0, "v")
	begun := make(chan struct{})
	f.handle = func(ctx context.Context, _ *Batch) error {
		close(begun)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	_, stop := f.start()
	<-begun
	if err := stop(); err != nil {
		t.Errorf("%v, want no error: the batch comes again", err)
	}
	if got := f.Committed(f.cfg.Group, f.cfg.Topic)[0]; got != 0 {
		t.Errorf("offset %d is committed, and nothing was acknowledged", got)
	}
	if want := "the drain timeout is over"; !strings.Contains(f.logged(), want) {
		t.Errorf("the log does not say %q", want)
	}
}

// A batch in hand is given up, where its partition is taken away, before the group
// gives the member up.
func TestBatchInHandIsGivenUpWithinTheSession(t *testing.T) {
	t.Parallel()
	f := newFixture(t, kafkatest.StartFake(t), 1)
	f.cfg.SessionTimeout, f.cfg.DrainTimeout = 3*time.Second, time.Minute
	f.produce(0, "v")
	begun, ended := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.handle = func(ctx context.Context, _ *Batch) (err error) {
		once.Do(func() {
			close(begun)
			<-ctx.Done()
			close(ended)
			err = context.Cause(ctx)
		})
		return err
	}
	f.start()
	<-begun
	evict(f)
	select {
	case <-ended:
	case <-time.After(5 * time.Second): // a second to the heartbeat, then half the session
		t.Fatal("the handler goes on after the session has ended")
	}
	f.received("v")
}

// "latest" is where the log ended when the group came, whatever happens to it
// before the first record.
func testLatest(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 1)
	f.cfg.Start = "latest"
	f.produce(0, numbers("old", 10)...)
	_, stop := f.start()
	f.committedIs(0, 10)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	f.produce(0, "while nobody looked")
	if text := f.logged(); !strings.Contains(text, "nothing is committed: starting at the end") || !strings.Contains(text, "records_before=10") {
		t.Error("the log does not say what is skipped")
	}
	_, stop = f.start()
	f.received("while nobody looked")
	if got := f.offsets(0); !slices.Equal(got, []int64{10}) {
		t.Errorf("%v, want 10 alone", got)
	}
	f.committedIs(0, 11)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// The metric says where a restart would go on also before the first commit.
	f.start()
	kafkatest.Eventually(t, patience, func() error {
		if f.series("oodmon_consumer_committed_offset") == 0 {
			return errors.New("no partition yet")
		}
		return nil
	})
	if got := f.metric("oodmon_consumer_committed_offset", "0"); got != 11 {
		t.Errorf("committed offset %v, want 11", got)
	}
}

func testBounds(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 1)
	f.cfg.MaxRecords, f.cfg.MaxBytes = 7, 1000
	values := numbers("small", 50)
	for i := range 10 {
		values = append(values, strings.Repeat(fmt.Sprint("large", i), 80))
	}
	f.produce(0, values...)
	f.handle = func(_ context.Context, b *Batch) error {
		size := 0
		for _, m := range b.Messages[:len(b.Messages)-1] {
			size += len(m.Value)
		}
		if len(b.Messages) > 7 || size >= 1000 {
			t.Errorf("%d messages, with %d bytes before the last", len(b.Messages), size)
		}
		if b.HighWatermark != 60 {
			t.Errorf("high watermark %d, want 60", b.HighWatermark)
		}
		return nil
	}
	f.start()
	f.received(values...)
}

func testReadRange(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 3)
	at := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	for p := range 2 { // partition 2 stays empty
		for i := range 30 {
			f.Produce(&kgo.Record{Topic: f.cfg.Topic, Partition: int32(p), Value: []byte("v"), Timestamp: at.Add(time.Duration(i) * time.Minute)})
		}
	}
	got := map[int][]int64{}
	var passed, total int64
	cfg := RangeConfig{
		Topic: f.cfg.Topic, From: at.Add(20 * time.Minute), MaxRecords: 4, MaxBytes: 1 << 20, MaxMessageBytes: 1 << 20,
		Progress: func(read, of int64) {
			if read < passed || of < read {
				t.Errorf("progress %d of %d after %d", read, of, passed)
			}
			passed, total = read, of
		},
	}
	first := true
	err := ReadRange(t.Context(), f.conn, cfg, func(b *Batch) error {
		if first { // beyond the range
			f.produce(0, "late")
			f.produce(1, "late")
			first = false
		}
		for _, m := range b.Messages {
			got[b.Partition] = append(got[b.Partition], m.Offset)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for p := range 2 {
		if !slices.Equal(got[p], ascending(20, 30)) {
			t.Errorf("partition %d: %v, want 20 to 29", p, got[p])
		}
	}
	if passed != 20 || total != 20 {
		t.Errorf("progress ended at %d of %d, want 20 of 20", passed, total)
	}
	cfg.From, cfg.Progress = time.Time{}, nil
	calls := 0
	stop := errors.New("enough")
	if err := ReadRange(t.Context(), f.conn, cfg, func(*Batch) error { calls++; return stop }); !errors.Is(err, stop) || calls != 1 {
		t.Errorf("%v after %d calls, want the error of the first call", err, calls)
	}
	// Retention passes the records while they are read.
	removed, last := false, int64(-1)
	cfg.MaxBytes = 1
	err = ReadRange(t.Context(), f.conn, cfg, func(b *Batch) error {
		if !removed {
			removed = true
			f.deleteTo(25)
		}
		if b.Partition == 0 {
			last = b.Messages[len(b.Messages)-1].Offset
		}
		return nil
	})
	if err != nil || last != 30 {
		t.Errorf("%v, the last offset read is %d, want 30", err, last)
	}
	cfg.From = time.Now().Add(time.Hour)
	if err := ReadRange(t.Context(), f.conn, cfg, func(b *Batch) error { return fmt.Errorf("%d messages of the future", len(b.Messages)) }); err != nil {
		t.Error(err)
	}
}

func TestConsumerOutlivesItsBroker(t *testing.T) {
	f := newFixture(t, kafkatest.Start(t), 2)
	c, stop := f.start()
	before := numbers("before", 50)
	f.produce(0, before...)
	f.received(before...)
	f.Kill()
	kafkatest.Eventually(t, patience, func() error {
		if c.Healthy(500*time.Millisecond) == nil {
			return errors.New("it is healthy without a broker")
		}
		return nil
	})
	f.Restart()
	after := numbers("after", 50)
	f.produce(1, after...)
	f.received(after...)
	f.committedIs(0, 50) // the broker may have died before this commit
	f.committedIs(1, 50)
	if err := errors.Join(c.Healthy(10*time.Second), c.Ready(), stop()); err != nil {
		t.Error(err)
	}
	// What was handled when the broker died may come twice.
	if got := f.offsets(1); !slices.Equal(slices.Compact(slices.Sorted(slices.Values(got))), ascending(0, 50)) {
		t.Errorf("%v, want 0 to 49", got)
	}
}

// The coordinator of a broker that has just come up is not available yet, and
// the first connections may be lost.
func TestConsumerJoinsInTheEnd(t *testing.T) {
	f := newFixture(t, kafkatest.StartFake(t), 1)
	f.produce(0, "v")
	f.Cluster.Fault(
		kfake.Fault{Keys: []kmsg.Key{kmsg.FindCoordinator}, Err: kerr.CoordinatorNotAvailable, Count: 1},
		kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Err: kerr.NotCoordinator, Count: 1},
	)
	lost := 0
	f.Cluster.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		f.Cluster.KeepControl()
		if lost++; lost <= 2 {
			return nil, io.EOF, true
		}
		return nil, nil, false
	})
	f.start()
	f.received("v")
	if want := "Group Coordinator Not Available"; !strings.Contains(f.logged(), want) {
		t.Errorf("the log does not say %q", want)
	}
}

// A commit that fails is made again; what was handled is not handled again.
func TestConsumerRepeatsTheCommitAlone(t *testing.T) {
	f := newFixture(t, kafkatest.StartFake(t), 1)
	f.produce(0, numbers("v", 10)...)
	f.Cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Group: f.cfg.Group, Err: kerr.RebalanceInProgress, Count: 3})
	f.start()
	f.committedIs(0, 10)
	if got := f.offsets(0); !slices.Equal(got, ascending(0, 10)) {
		t.Errorf("%v, want 0 to 9, each once", got)
	}
	if got := f.metric("oodmon_consumer_errors_total", "commit"); got != 3 {
		t.Errorf("%v failed commits were counted, want 3", got)
	}
}

// A member that the group gave up has its commit refused, so that the next
// owner's is never overwritten, and the batch comes again.
func TestEvictedMemberDoesNotCommit(t *testing.T) {
	f := newFixture(t, kafkatest.StartFake(t), 1)
	f.produce(0, "v")
	var mu sync.Mutex
	calls := 0
	evicted, refused := make(chan struct{}), make(chan struct{})
	f.handle = func(ctx context.Context, _ *Batch) error {
		mu.Lock()
		calls++
		first := calls == 1
		mu.Unlock()
		if first {
			close(evicted)
			<-refused // until the group has moved on
		}
		return nil
	}
	f.start()
	<-evicted
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	groups, err := f.Admin().DescribeGroups(ctx, f.cfg.Group)
	if err != nil || len(groups[f.cfg.Group].Members) != 1 {
		t.Fatalf("%v, %v", groups, err)
	}
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group = f.cfg.Group
	member := kmsg.NewLeaveGroupRequestMember()
	member.MemberID = groups[f.cfg.Group].Members[0].MemberID
	leave.Members = append(leave.Members, member)
	if _, err := leave.RequestWith(ctx, f.Client()); err != nil {
		t.Fatal(err)
	}
	close(refused)
	f.committedIs(0, 1)
	if got := f.offsets(0); !slices.Equal(got, []int64{0, 0}) {
		t.Errorf("handled %v, want offset 0 twice: the first commit had to be refused", got)
	}
}

func TestNewRefuses(t *testing.T) {
	_, err := New(Config{Start: "now", OutOfRange: "skip", SessionTimeout: -1}, nil, nil, nil, nil)
	want := `consumer: topic: must not be empty
group: must not be empty
start: "now" is neither "earliest" nor "latest"
out of range: "skip" is none of "earliest", "latest" and "fail"
max records: 0 is not positive
max bytes: 0 is not positive
max wait: 0s is below a millisecond
max message bytes: 0 is not positive
session timeout: -1ns is negative`
	if err == nil || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
}

// The first address takes connections, and nothing answers there: a proxy whose
// broker is down, or a broker that hangs.
func TestConsumerPassesOverABrokerThatDoesNotAnswer(t *testing.T) {
	f := newFixture(t, kafkatest.StartFake(t), 1)
	closing, _ := closesAll(t)
	f.connect("test", closing, f.Address)
	f.start()
	f.produce(0, "a", "b")
	f.received("a", "b")
}

// closesAll listens, and closes every connection at once. It returns where, and how
// many there were.
func closesAll(t *testing.T) (address string, connections *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	connections = new(atomic.Int64)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			_ = conn.Close()
		}
	}()
	return l.Addr().String(), connections
}

// Where no broker lets anyone join, attempts wait for one another.
func TestConsumerWaitsBeforeItJoinsAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t, kafkatest.StartFake(t), 1)
	first, ofFirst := closesAll(t)
	second, ofSecond := closesAll(t)
	f.connect("test", first, second)
	f.start()
	time.Sleep(3 * joinBackoff)
	// Each attempt looks for the coordinator at one broker after the other.
	if n := ofFirst.Load() + ofSecond.Load(); n == 0 || n > 50 {
		t.Errorf("%d connections in %v, want one or two a second", n, 3*joinBackoff)
	}
}

// A topic that is deleted and made again while the consumer runs is read from its
// beginning.
func TestConsumerFindsATopicMadeAgain(t *testing.T) {
	t.Run("at once", func(t *testing.T) { testTopicMadeAgain(t, true) })
	t.Run("later", func(t *testing.T) { testTopicMadeAgain(t, false) })
}

func testTopicMadeAgain(t *testing.T, remadeAtOnce bool) {
	f := newFixture(t, kafkatest.StartFake(t), 2)
	f.forgetful = time.Second
	f.start()
	f.readThree()
	if _, err := f.Admin().DeleteTopics(t.Context(), f.cfg.Topic); err != nil {
		t.Fatal(err)
	}
	f.says("Unknown Topic")
	if remadeAtOnce { // more than was read, before the consumer looks again
		f.CreateTopic(f.cfg.Topic, 2)
		f.Connect()
		f.produce(0, "d", "e", "f", "g")
		f.received("a", "b", "c", "d", "e", "f", "g")
		return
	}
	kafkatest.Eventually(t, patience, func() error { // it notices, and joins for nothing
		if n := f.metric("oodmon_consumer_assigned_partitions"); n != 0 {
			return fmt.Errorf("%v partitions are assigned", n)
		}
		return nil
	})
	f.CreateTopic(f.cfg.Topic, 2)
	f.Connect() // the client before knows the old topic
	f.produce(1, "d")
	f.received("a", "b", "c", "d")
}
