package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oodmon/oodmon/consumer"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/endtxn"
	"github.com/segmentio/kafka-go/protocol/initproducerid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// transactional makes another producer of the fixture's topics: as another
// instance of oodmon would.
func (f *fixture) transactional() *Producer {
	f.t.Helper()
	p, err := New(Config{Topic: f.scores, DeadLetterTopic: f.dead, Format: "json", Reasons: []string{"bad_json"}, TransactionalID: f.scores},
		f.conn, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

// What is not committed is not seen, what a new owner has fenced can neither be
// continued nor committed, and a commit of a member that the group does not know
// is refused.
func TestFence(t *testing.T) {
	f := newFixture(t, kafkatest.Start(t), "json", 1)
	f.CreateTopic("in", 1)
	old, next := f.transactional(), f.transactional()
	if err := old.Write(f.ctx, 0, record(t, rows(1, "early")...)); !errors.Is(err, errNotFenced) {
		t.Errorf("a write before the fence: %v", err)
	}
	if err := old.Fence(f.ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := old.Write(f.ctx, 0, record(t, rows(3, "old")...)); err != nil {
		t.Fatal(err)
	}
	if n := len(f.ReadAll(f.scores)); n != 0 {
		t.Errorf("%d results are seen before they are committed", n)
	}
	if err := next.Fence(f.ctx, 0); err != nil {
		t.Fatal(err)
	}
	// A generation of -1 is no member's: of a group that nobody has joined, anybody
	// may commit the offsets.
	offset := Offset{Topic: "in", Offset: 3, Group: "group", Generation: -1}
	if err := old.Write(f.ctx, 0, record(t, rows(1, "zombie")...)); err == nil {
		t.Error("the fenced producer may write")
	}
	if err := old.Commit(f.ctx, offset); err == nil {
		t.Error("the fenced producer may commit")
	}
	if err := next.Write(f.ctx, 0, record(t, rows(2, "next")...)); err != nil {
		t.Fatal(err)
	}
	if err := next.DeadLetter(f.ctx, 0, []Letter{{Topic: "in", Offset: 2, Row: -1, Reason: "bad_json", Err: errors.New("bad")}}); err != nil {
		t.Fatal(err)
	}
	stranger := offset
	stranger.Generation, stranger.Member = 7, "stranger"
	if err := next.Commit(f.ctx, stranger); !errors.Is(err, kafka.UnknownMemberId) && !errors.Is(err, kafka.IllegalGeneration) {
		t.Errorf("the commit of a stranger: %v", err)
	}
	if err := next.Fence(f.ctx, 0); err != nil {
		t.Fatal(err)
	}
	for i := range 3 { // one transaction straight after the other
		if err := next.Write(f.ctx, 0, record(t, rows(2, fmt.Sprint("final", i, "-"))...)); err != nil {
			t.Fatal(err)
		}
		offset.Offset = int64(4 + i)
		if err := next.Commit(f.ctx, offset); err != nil {
			t.Fatal(err)
		}
	}
	var keys []string
	kafkatest.Eventually(t, time.Minute, func() error { // the markers follow the answer
		keys = nil
		for _, r := range f.ReadAll(f.scores) {
			keys = append(keys, string(r.Key))
		}
		if len(keys) < 6 {
			return fmt.Errorf("results %q", keys)
		}
		if at := f.Committed("group", "in"); at[0] != 6 {
			return fmt.Errorf("committed %v", at)
		}
		return nil
	})
	if got, want := strings.Join(keys, " "), "final0-0 final0-1 final1-0 final1-1 final2-0 final2-1"; got != want {
		t.Errorf("results %s, want %s", got, want)
	}
	if n := len(f.ReadAll(f.dead)); n != 0 {
		t.Errorf("%d dead letters of an aborted transaction are seen", n)
	}
}

// A transactionalRelay publishes a result for every message, and every seventh
// message as a dead letter, and commits with them.
type transactionalRelay struct {
	t    *testing.T
	sink *Producer
	fail func() error // between publishing and the commit
}

func (r transactionalRelay) Handle(ctx context.Context, b *consumer.Batch) error {
	var out []testRow
	var letters []Letter
	for _, m := range b.Messages {
		if m.Offset%7 == 3 {
			letters = append(letters, Letter{Topic: b.Topic, Partition: int32(b.Partition), Offset: m.Offset, Row: -1, Reason: "bad_json", Err: errors.New("bad")})
			continue
		}
		out = append(out, testRow{id: fmt.Sprintf("%d/%d", b.Partition, m.Offset), offset: m.Offset})
	}
	if err := r.sink.Write(ctx, b.Partition, record(r.t, out...)); err != nil {
		return err
	}
	if len(letters) > 0 {
		if err := r.sink.DeadLetter(ctx, b.Partition, letters); err != nil {
			return err
		}
	}
	if err := r.fail(); err != nil {
		return err
	}
	c := b.Claim
	return r.sink.Commit(ctx, Offset{Topic: b.Topic, Partition: b.Partition, Offset: c.Offset, Group: c.Group, Generation: c.Generation, Member: c.Member})
}

// relayExactlyOnce runs members of one group that come and go, and handlers that
// fail, until every offset has its result, and checks that each has one.
func relayExactlyOnce(t *testing.T, f *fixture, partitions, each int, disturb func(round int)) {
	t.Helper()
	f.CreateTopic("in", partitions)
	random := rand.New(rand.NewPCG(1, 2))
	var failures atomic.Int64
	start := func() (stop func()) {
		p := f.transactional()
		relay := transactionalRelay{t, p, func() error {
			if failures.Add(1)%17 == 5 {
				return errors.New("injected")
			}
			return nil
		}}
		c, err := consumer.New(consumer.Config{
			Topic: "in", Group: f.scores, Start: "earliest", OutOfRange: "fail", MaxRecords: 50, MaxBytes: 1 << 20,
			MaxWait: 50 * time.Millisecond, MaxMessageBytes: 1 << 20, SessionTimeout: 6 * time.Second, Fence: p.Fence, Release: p.Release,
		}, f.conn, func() consumer.Handler { return relay }, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	members := []func(){start()}
	const rounds = 4
	for round := range rounds {
		var records []*kgo.Record
		for i := range partitions * each / rounds {
			records = append(records, &kgo.Record{Topic: "in", Partition: int32(i % partitions), Value: []byte("v")})
		}
		f.Broker.Produce(records...)
		disturb(round)
		if len(members) < 2 {
			members = append(members, start())
		} else {
			members[0]()
			members = members[1:]
		}
		time.Sleep(time.Duration(random.IntN(500)) * time.Millisecond)
	}
	seen := make(map[string]int)
	kafkatest.Eventually(t, 3*time.Minute, func() error {
		clear(seen)
		for _, r := range f.ReadAll(f.scores) {
			seen[string(r.Key)]++
		}
		for _, r := range f.ReadAll(f.dead) {
			h := headersOf(r)
			seen[h["oodmon-partition"]+"/"+h["oodmon-offset"]]++
		}
		if len(seen) < partitions*each {
			return fmt.Errorf("%d of %d offsets have a result", len(seen), partitions*each)
		}
		for partition, at := range f.Committed(f.scores, "in") {
			if at != int64(each) {
				return fmt.Errorf("partition %d is committed up to %d of %d", partition, at, each)
			}
		}
		return nil
	})
	for _, stop := range members {
		stop()
	}
	for at, n := range seen {
		if n != 1 {
			t.Errorf("offset %s has %d results", at, n)
		}
	}
	if len(seen) != partitions*each {
		t.Errorf("results for %d offsets, want %d", len(seen), partitions*each)
	}
}

func TestExactlyOnceWhenMembersComeAndGo(t *testing.T) {
	f := newFixture(t, kafkatest.Start(t), "json", 3)
	relayExactlyOnce(t, f, 3, 2000, func(int) {})
}

func TestExactlyOnceWhenTheBrokerIsKilled(t *testing.T) {
	f := newFixture(t, kafkatest.Start(t), "json", 3)
	relayExactlyOnce(t, f, 3, 1200, func(round int) {
		if round == 1 || round == 2 {
			f.Kill()
			f.Restart()
		}
	})
}

// Where partitions are added to the topic after an attempt whose answer was lost,
// the next attempt would go to another one: the transaction is given up.
func TestTransactionIsGivenUpWhereItsTargetMoves(t *testing.T) {
	f := newFixture(t, kafkatest.StartFake(t), "json", 1)
	p := f.transactional()
	offset := Offset{Topic: "in", Partition: 1, Group: "group", Generation: -1}
	f.CreateTopic("in", 2)
	publish := func(id string) error {
		offset.Offset++
		if err := p.Write(f.ctx, 1, record(t, rows(1, id)...)); err != nil {
			return err
		}
		return p.Commit(f.ctx, offset)
	}
	if err := errors.Join(p.Fence(f.ctx, 1), publish("before")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Admin().CreatePartitions(f.ctx, 1, f.scores); err != nil {
		t.Fatal(err)
	}
	// The client sees the added partition when it asks for the metadata anew.
	f.Cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: 7})
	if err := publish("moved"); !errors.Is(err, errNotFenced) {
		t.Errorf("error %v, want the transaction to be over", err)
	}
	if err := errors.Join(p.Fence(f.ctx, 1), publish("again")); err != nil {
		t.Fatal(err)
	}
	kafkatest.Eventually(t, time.Minute, func() error {
		if n := len(f.ReadAll(f.scores)); n != 2 {
			return fmt.Errorf("%d results, want 2", n)
		}
		return nil
	})
}

// What was seen of a transaction holds for no later one: of an id that another
// instance has taken over since, nothing is known.
func TestFenceForgetsWhatAnotherHasFenced(t *testing.T) {
	kafkatest.NeedReal(t) // the fake one tells of open transactions only
	f := newFixture(t, kafkatest.Start(t), "json", 1)
	f.CreateTopic("in", 1)
	fence := func(p *Producer) {
		t.Helper()
		if err := p.Fence(f.ctx, 0); err != nil {
			t.Fatal(err)
		}
	}
	committed := func(p *Producer, want bool, when string) {
		t.Helper()
		w := p.writer(0)
		defer w.mu.Unlock()
		if w.committed != want {
			t.Errorf("%s: committed %v, want %v", when, w.committed, want)
		}
	}
	first, second := f.transactional(), f.transactional()
	fence(first)
	committed(first, false, "of a new id")
	if err := first.Write(f.ctx, 0, record(t, rows(1, "a")...)); err != nil {
		t.Fatal(err)
	}
	if err := first.Commit(f.ctx, Offset{Topic: "in", Offset: 1, Group: "group", Generation: -1}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		fence(first)
		committed(first, true, "after a commit")
	}
	fence(second)
	committed(second, false, "of what the first has taken over")
	if err := second.Write(f.ctx, 0, record(t, rows(1, "b")...)); err != nil {
		t.Fatal(err)
	}
	fence(second) // aborts it
	committed(second, false, "of an open one")
	fence(first)
	committed(first, false, "after another has taken over")
}

// What was given up unanswered may be carried out late: it neither ends the next
// transaction nor commits its offset in it.
func TestNothingOfATransactionReachesTheNext(t *testing.T) {
	f := newFixture(t, kafkatest.StartFake(t), "json", 1)
	f.CreateTopic("in", 1)
	var late *kmsg.TxnOffsetCommitRequest
	f.Cluster.ControlKey(int16(kmsg.TxnOffsetCommit), func(r kmsg.Request) (kmsg.Response, error, bool) {
		late = r.(*kmsg.TxnOffsetCommitRequest) // once: the next attempt is answered
		return nil, io.EOF, true
	})
	p := f.transactional()
	if err := p.Fence(f.ctx, 0); err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		if err := p.Write(f.ctx, 0, record(t, rows(3, fmt.Sprint(n))...)); err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			answer, err := f.conn.Kafka.EndTxn(f.ctx, &kafka.EndTxnRequest{
				TransactionalID: late.TransactionalID, ProducerID: int(late.ProducerID), ProducerEpoch: int(late.ProducerEpoch), Committed: true,
			})
			if err != nil || answer.Error == nil {
				t.Errorf("a late end of the first transaction: %v, %v, want a refusal", answer, err)
			}
			if seen := len(f.ReadAll(f.scores)); seen != 3 {
				t.Errorf("%d results are seen before the second commit, want 3", seen)
			}
		}
		if err := p.Commit(f.ctx, Offset{Topic: "in", Offset: int64(3 * (n + 1)), Group: "group", Generation: -1}); err != nil {
			t.Fatal(err)
		}
	}
	if seen := len(f.ReadAll(f.scores)); seen != 6 {
		t.Errorf("%d results, want 6", seen)
	}
}

// Every answer of a coordinator and of the log that may come is followed by all
// results, and by each once.
func TestExactlyOnceThroughErrors(t *testing.T) {
	for name, fault := range map[string]kfake.Fault{
		"markers pending":          {Keys: []kmsg.Key{kmsg.AddPartitionsToTxn}, Err: kerr.ConcurrentTransactions, Count: 5},
		"offsets of the fence":     {Keys: []kmsg.Key{kmsg.OffsetFetch}, Err: kerr.UnstableOffsetCommit, Count: 3},
		"coordinator loading":      {Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.CoordinatorLoadInProgress, Count: 3, TopLevel: true},
		"coordinator moved":        {Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.NotCoordinator, Count: 3, TopLevel: true},
		"group coordinator moved":  {Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.NotCoordinator, Count: 3},
		"no coordinator":           {Keys: []kmsg.Key{kmsg.AddOffsetsToTxn}, Err: kerr.CoordinatorNotAvailable, Count: 3, TopLevel: true},
		"evicted":                  {Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.IllegalGeneration, Count: 2},
		"fenced when adding":       {Keys: []kmsg.Key{kmsg.AddPartitionsToTxn}, Err: kerr.ProducerFenced, Count: 2},
		"fenced when producing":    {Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.InvalidProducerEpoch, Count: 2},
		"a state that cannot be":   {Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.InvalidTxnState, Count: 2, TopLevel: true},
		"a moved leader":           {Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition, Count: 3},
		"an acknowledgement lost":  {Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: 3},
		"a gap in the sequence":    {Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.OutOfOrderSequenceNumber, Count: 2},
		"a forgotten producer":     {Keys: []kmsg.Key{kmsg.AddOffsetsToTxn}, Err: kerr.InvalidProducerIDMapping, Count: 2, TopLevel: true},
		"a coordinator that fails": {Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.UnknownServerError, Count: 2, TopLevel: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, kafkatest.StartFake(t), "json", 1)
			handle := f.Cluster.Fault(fault)
			relayExactlyOnce(t, f, 1, 400, func(int) {})
			if handle.Hits() != fault.Count {
				t.Errorf("%d faults were met, want %d", handle.Hits(), fault.Count)
			}
		})
	}
}

// lossy is a network that loses an answer once.
type lossy struct {
	kafka.RoundTripper
	mu    sync.Mutex
	loses func(kafka.Request) bool
}

func (l *lossy) lose(loses func(kafka.Request) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loses = loses
}

func (l *lossy) RoundTrip(ctx context.Context, addr net.Addr, r kafka.Request) (kafka.Response, error) {
	l.mu.Lock()
	lost := l.loses != nil && l.loses(r)
	if lost {
		l.loses = nil
	}
	l.mu.Unlock()
	answer, err := l.RoundTripper.RoundTrip(ctx, addr, r)
	if lost {
		return nil, io.ErrUnexpectedEOF
	}
	return answer, err
}

// A transaction without its marker, in the group's offsets and in the topic of
// the results, holds both back for ever, until Release ends it as its coordinator
// has. Brokers that verify what is written let nobody make one; this one doesn't.
func TestReleaseWritesALostMarker(t *testing.T) {
	kafkatest.NeedReal(t)
	f := newFixture(t, kafkatest.StartReal(t, 1, kafkatest.FreePorts(t), "transaction.partition.verification.enable=false"), "json", 1)
	for name, c := range map[string]struct {
		committed, interrupted bool
		offset                 int64 // of the group, after Release
		results                string
	}{
		"committed":              {true, false, 7, "before lost after"},
		"aborted":                {false, false, -1, "after"},
		"committed, interrupted": {true, true, 7, "before lost after"},
		"aborted, interrupted":   {false, true, -1, "after"},
	} {
		t.Run(name, func(t *testing.T) {
			f := *f
			id := strings.ReplaceAll(name, ", ", "-")
			f.t, f.scores = t, "scores-"+id
			in, group := "in-"+id, "group-"+id
			f.CreateTopic(in, 1)
			f.CreateTopic(f.scores, 1)
			kafkatest.Eventually(t, time.Minute, func() error { return f.conn.Check(f.ctx, f.scores) })
			write := func(p *Producer, key string) {
				t.Helper()
				if err := p.Write(f.ctx, 0, record(t, rows(1, key+" ")...)); err != nil {
					t.Fatal(err)
				}
			}
			old := f.transactional()
			if err := old.Fence(f.ctx, 0); err != nil {
				t.Fatal(err)
			}
			write(old, "before")
			w := old.writer(0)
			err := w.addOffsets(f.ctx, group)
			if err == nil {
				err = w.end(f.ctx, c.committed)
			}
			if err != nil {
				t.Fatal(err)
			}
			kafkatest.Eventually(t, time.Minute, func() error {
				answer, err := f.conn.Transport.RoundTrip(f.ctx, f.conn.Kafka.Addr, &describeRequest{id: w.transactionalID()})
				if err == nil && !strings.HasPrefix(answer.(*describeResponse).state, "Complete") {
					err = fmt.Errorf("the transaction is %s", answer.(*describeResponse).state)
				}
				return err
			})
			// The next ones belong to no transaction that the coordinator knows.
			w.mu.Unlock()
			kafkatest.Eventually(t, time.Minute, func() error {
				answer, err := f.conn.Kafka.TxnOffsetCommit(f.ctx, &kafka.TxnOffsetCommitRequest{
					TransactionalID: w.transactionalID(), ProducerID: int(w.id), ProducerEpoch: int(w.epoch), GroupID: group, GenerationID: -1,
					Topics: map[string][]kafka.TxnOffsetCommit{in: {{Partition: 0, Offset: 7}}},
				})
				if err != nil {
					return err
				}
				return answer.Topics[in][0].Error
			})
			write(old, "lost")

			next := f.transactional()
			if err := next.Release(f.ctx, 0, group); !errors.Is(err, errNotFenced) {
				t.Errorf("released before Fence: %v", err)
			}
			network := &lossy{RoundTripper: f.conn.Kafka.Transport}
			conn := *f.conn
			conn.Kafka = &kafka.Client{Addr: f.conn.Kafka.Addr, Transport: network}
			next.conn = &conn
			// The second one is told less by the coordinator, and so is the repetition of the
			// first, whose answer is lost.
			for range 2 {
				network.lose(func(r kafka.Request) bool { _, ok := r.(*initproducerid.Request); return ok })
				if err := next.Fence(f.ctx, 0); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := f.stable(group, in); !errors.Is(err, kerr.UnstableOffsetCommit) {
				t.Fatalf("the transaction holds nothing back: %v", err)
			}
			if c.interrupted {
				ctx, cancel := context.WithCancel(f.ctx)
				network.lose(func(r kafka.Request) bool {
					_, ok := r.(*endtxn.Request)
					if ok {
						cancel()
					}
					return ok
				})
				if err := next.Release(ctx, 0, group); !errors.Is(err, context.Canceled) {
					t.Fatalf("Release was interrupted: %v", err)
				}
			} else if err := next.Release(f.ctx, 0, group); err != nil {
				t.Fatal(err)
			}
			if err := next.Fence(f.ctx, 0); err != nil {
				t.Fatal(err)
			}
			kafkatest.Eventually(t, 20*time.Second, func() error {
				if at, err := f.stable(group, in); err != nil || at != c.offset {
					return fmt.Errorf("after Release the group's offset is %d (%v), want %d", at, err, c.offset)
				}
				return nil
			})
			write(next, "after")
			if err := next.Commit(f.ctx, Offset{Topic: in, Partition: 0, Offset: 9, Group: group, Generation: -1}); err != nil {
				t.Fatal(err)
			}
			// The markers of a transaction that is committed come a little later.
			kafkatest.Eventually(t, 20*time.Second, func() error {
				if at, err := f.stable(group, in); err != nil || at != 9 {
					return fmt.Errorf("the group's offset is %d (%v), want 9", at, err)
				}
				var keys []string
				for _, r := range f.ReadAll(f.scores) {
					keys = append(keys, strings.Fields(string(r.Key))[0])
				}
				if got := strings.Join(keys, " "); got != c.results {
					return fmt.Errorf("results %s, want %s", got, c.results)
				}
				return nil
			})
		})
	}
}

// stable is what the group has committed, as one asks who waits for no open
// transaction: or kerr.UnstableOffsetCommit.
func (f *fixture) stable(group, topic string) (int64, error) {
	ask := kmsg.NewOffsetFetchRequest()
	ask.RequireStable = true
	of := kmsg.NewOffsetFetchRequestGroup()
	of.Group = group
	partitions := kmsg.NewOffsetFetchRequestGroupTopic()
	partitions.Topic, partitions.Partitions = topic, []int32{0}
	of.Topics = append(of.Topics, partitions)
	ask.Groups = append(ask.Groups, of)
	answer, err := ask.RequestWith(f.ctx, f.Client())
	if err != nil {
		return 0, err
	}
	p := answer.Groups[0].Topics[0].Partitions[0]
	return p.Offset, kerr.ErrorForCode(p.ErrorCode)
}
