package sink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A fixture is a Producer with topics of its own.
type fixture struct {
	*kafkatest.Broker
	*Producer
	t            *testing.T
	scores, dead string
	reg          *prometheus.Registry
	ctx          context.Context
	conn         *kafkaconn.Client
}

var unsafe = regexp.MustCompile(`[^A-Za-z0-9-]+`)

func newFixture(t *testing.T, broker *kafkatest.Broker, format string, partitions int, settings ...string) *fixture {
	t.Helper()
	name := unsafe.ReplaceAllString(t.Name(), "-")
	f := &fixture{Broker: broker, t: t, scores: name + "-scores", dead: name + "-dead", reg: prometheus.NewRegistry()}
	broker.CreateTopic(f.scores, partitions, settings...)
	broker.CreateTopic(f.dead, partitions, settings...)
	var err error
	if f.conn, err = kafkaconn.New(kafkaconn.Config{Brokers: []string{broker.Address}, ClientID: "test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.conn.Close)
	cfg := Config{Topic: f.scores, DeadLetterTopic: f.dead, Format: format, Reasons: []string{"bad_json"}}
	if f.Producer, err = New(cfg, f.conn, f.reg, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	f.ctx = ctx
	return f
}

// metric returns the value of a counter's series.
func (f *fixture) metric(name, label string) float64 {
	f.t.Helper()
	families, err := f.reg.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.Metric {
			if family.GetName() == name && m.Label[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	f.t.Fatalf("no metric %s with %s", name, label)
	return 0
}

func rows(n int, id string) []testRow {
	all := make([]testRow, n)
	for i := range all {
		all[i] = testRow{id: fmt.Sprint(id, i), score: float32(i), offset: int64(i), segment: "de"}
	}
	return all
}

// offsetsOf returns the field `offset` of JSON messages, in their order.
func offsetsOf(t *testing.T, records []*kgo.Record) []int64 {
	t.Helper()
	var all []int64
	for _, r := range records {
		var row struct{ Offset int64 }
		if err := json.Unmarshal(r.Value, &row); err != nil {
			t.Fatalf("%v in %q", err, r.Value)
		}
		all = append(all, row.Offset)
	}
	return all
}

func ascends(t *testing.T, got []int64, n int) {
	t.Helper()
	if len(got) != n {
		t.Fatalf("%d results, want %d", len(got), n)
	}
	for i, v := range got {
		if v != int64(i) {
			t.Fatalf("result %d is of offset %d", i, v)
		}
	}
}

// The tests that leave the broker as it is share one.
func TestProducer(t *testing.T) {
	broker := kafkatest.Start(t)
	for name, test := range map[string]func(*testing.T, *kafkatest.Broker){
		"JSON": testJSON, "several requests": testSeveralRequests, "a topic of small messages": testSmallTopic, "a topic of tiny messages": testTinyTopic,
		"Arrow": testArrow, "dead letters": testDeadLetters, "dead letters that are too large": testLargeLetters,
		"errors": testErrors, "a compacted topic": testCompactedTopic, "no distance from the broker's clock": testTimestamps,
	} {
		t.Run(name, func(t *testing.T) { test(t, broker) })
	}
}

func testJSON(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, "json", 3)
	for partition := range 5 {
		if err := f.Write(f.ctx, partition, record(t, rows(2, fmt.Sprint("p", partition, "-"))...)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Write(f.ctx, 0, record(t)); err != nil {
		t.Errorf("no rows: %v", err)
	}
	got := map[int32][]string{}
	for _, r := range f.ReadAll(f.scores) {
		got[r.Partition] = append(got[r.Partition], string(r.Key))
		if len(r.Headers) != 1 || r.Headers[0].Key != "content-type" || string(r.Headers[0].Value) != "application/json" {
			t.Errorf("headers %v", r.Headers)
		}
		if want := fmt.Sprintf(`{"id":%q,`, r.Key); !strings.HasPrefix(string(r.Value), want) {
			t.Errorf("value %s, want it to begin with %s", r.Value, want)
		}
		if age := time.Since(r.Timestamp); age < 0 || age > time.Minute {
			t.Errorf("timestamp %v", r.Timestamp)
		}
	}
	want := map[int32][]string{0: {"p0-0", "p0-1", "p3-0", "p3-1"}, 1: {"p1-0", "p1-1", "p4-0", "p4-1"}, 2: {"p2-0", "p2-1"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("keys by partition %v, want %v", got, want)
	}
	if n := f.metric("oodmon_sink_messages_total", "scores"); n != 10 {
		t.Errorf("oodmon_sink_messages_total is %v, want 10", n)
	}
}

func testSeveralRequests(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, "json", 1)
	if err := f.Write(f.ctx, 0, record(t, rows(20_000, strings.Repeat("long ", 20))...)); err != nil {
		t.Fatal(err)
	}
	ascends(t, offsetsOf(t, f.ReadAll(f.scores)), 20_000)
	if n := f.metric("oodmon_sink_errors_total", "scores"); n != 0 {
		t.Errorf("%v requests failed", n)
	}
}

func testSmallTopic(t *testing.T, broker *kafkatest.Broker) {
	for _, format := range []string{"json", "arrow"} {
		t.Run(format, func(t *testing.T) {
			f := newFixture(t, broker, format, 1, "max.message.bytes=6000")
			var refused float64
			for i := range 2 {
				if err := f.Write(f.ctx, 0, record(t, rows(300, "id-")...)); err != nil {
					t.Fatal(err)
				}
				if n := f.metric("oodmon_sink_errors_total", "scores"); i == 0 {
					refused = n
				} else if n > refused {
					t.Errorf("%v requests more were refused: what the topic takes was known", n-refused)
				}
			}
			records := f.ReadAll(f.scores)
			if format == "json" {
				got := offsetsOf(t, records)
				ascends(t, got[:300], 300)
				ascends(t, got[300:], 300)
				return
			}
			var got int64
			for _, r := range records {
				in, err := ipc.NewReader(bytes.NewReader(r.Value))
				if err != nil || !in.Next() {
					t.Fatal(err)
				}
				got += in.Record().NumRows()
				in.Release()
			}
			if got != 600 {
				t.Errorf("%d rows, want 600", got)
			}
		})
	}
}

// A topic may take less than a kilobyte, and still every result by itself.
func testTinyTopic(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, "json", 1, "max.message.bytes=500")
	ctx, cancel := context.WithTimeout(f.ctx, 10*time.Second)
	defer cancel()
	if err := f.Write(ctx, 0, record(t, rows(9, "id-")...)); err != nil {
		t.Fatal(err)
	}
	ascends(t, offsetsOf(t, f.ReadAll(f.scores)), 9)
	if n := f.metric("oodmon_sink_errors_total", "scores"); n > 9 {
		t.Errorf("%v requests were refused", n)
	}
}

func testArrow(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, "arrow", 1)
	if err := f.Write(f.ctx, 0, record(t, examples...)); err != nil {
		t.Fatal(err)
	}
	records := f.ReadAll(f.scores)
	if len(records) != 1 || string(records[0].Headers[0].Value) != ArrowContentType {
		t.Fatalf("%d messages, headers %v", len(records), records[0].Headers)
	}
	in, err := ipc.NewReader(bytes.NewReader(records[0].Value))
	if err != nil || !in.Next() {
		t.Fatal(err)
	}
	defer in.Release()
	if got, err := AppendJSONLines(nil, in.Record()); err != nil || string(got) != exampleLines {
		t.Errorf("%v, got\n%s", err, got)
	}
}

func headersOf(r *kgo.Record) map[string]string {
	all := make(map[string]string)
	for _, h := range r.Headers {
		all[h.Key] = string(h.Value)
	}
	return all
}

func testDeadLetters(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, "json", 2)
	at := time.Date(2024, 5, 6, 7, 8, 9, 123e6, time.UTC)
	letters := []Letter{
		{Topic: "in", Partition: 3, Offset: 7, Row: -1, Time: at, Key: []byte("k"), Value: []byte("{"), Headers: []Header{{Key: "mine", Value: []byte("1")}}, Reason: "bad_json", Err: errors.New("it ends early")},
		{Topic: "in", Partition: 3, Offset: 8, Row: 0, Time: at, Value: []byte("rows"), Reason: "not_finite", Err: errors.New("NaN")},
		{Topic: "in", Partition: 3, Offset: 8, Row: 5, Time: at, Value: []byte("rows"), Reason: "not_finite", Err: errors.New("NaN")},
		{Topic: "in", Partition: 3, Offset: 9, Row: -1, Time: at, Reason: "empty", Err: errors.New("no value")},
	}
	if err := f.DeadLetter(f.ctx, 3, letters); err != nil {
		t.Fatal(err)
	}
	got := f.ReadAll(f.dead)
	if len(got) != 4 || got[0].Partition != 1 {
		t.Fatalf("%d letters, want 4 in partition 1: %v", len(got), got)
	}
	want := map[string]string{
		"mine": "1", "oodmon-reason": "bad_json", "oodmon-error": "it ends early", "oodmon-topic": "in", "oodmon-partition": "3",
		"oodmon-offset": "7", "oodmon-row": "-1", "oodmon-timestamp": "2024-05-06T07:08:09.123Z",
	}
	if headers := headersOf(got[0]); fmt.Sprint(headers) != fmt.Sprint(want) || string(got[0].Key) != "k" || string(got[0].Value) != "{" {
		t.Errorf("key %q, value %q, headers %v\nwant %v", got[0].Key, got[0].Value, headers, want)
	}
	if string(got[1].Value) != "rows" || got[2].Value != nil || headersOf(got[2])["oodmon-omitted"] == "" || headersOf(got[2])["oodmon-row"] != "5" {
		t.Errorf("values %q and %q of one message, headers %v", got[1].Value, got[2].Value, headersOf(got[2]))
	}
	if got[3].Key != nil || got[3].Value != nil {
		t.Errorf("key %v and value %v of an empty message", got[3].Key, got[3].Value)
	}
	if f.metric("oodmon_dead_letters_total", "not_finite") != 2 || f.metric("oodmon_dead_letters_total", "bad_json") != 1 || f.metric("oodmon_sink_messages_total", "dead_letter") != 4 {
		t.Error("the counters don't show 2 not_finite and 1 bad_json of 4")
	}
}

func testLargeLetters(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, "json", 1, "max.message.bytes=20000")
	letter := func(offset int64, key, value int) Letter {
		return Letter{
			Topic: "in", Offset: offset, Row: -1, Key: bytes.Repeat([]byte("k"), key), Value: bytes.Repeat([]byte("v"), value),
			Headers: []Header{{Key: "mine"}}, Reason: "too_large", Err: errors.New("too large"),
		}
	}
	wordy := letter(4, 1, 10)
	wordy.Err = errors.New(strings.Repeat("why ", 10_000))
	if err := f.DeadLetter(f.ctx, 0, []Letter{letter(0, 1, 10), letter(1, 1, 300_000), letter(2, 50_000, 50_000), letter(3, 1, 10), wordy}); err != nil {
		t.Fatal(err)
	}
	got := f.ReadAll(f.dead)
	if len(got) != 5 {
		t.Fatalf("%d letters, want 5, each once", len(got))
	}
	if why := headersOf(got[4])["oodmon-error"]; len(why) > 2100 || !strings.HasPrefix(why, "why why ") || !strings.HasSuffix(why, " ...") {
		t.Errorf("a long error is written with %d bytes", len(why))
	}
	for i, r := range got {
		headers := headersOf(r)
		if headers["oodmon-offset"] != fmt.Sprint(i) {
			t.Errorf("letter %d is of offset %s", i, headers["oodmon-offset"])
		}
		_, mine := headers["mine"]
		switch i {
		case 1:
			if n := len(r.Value); n < 5_000 || n > 20_000 || headers["oodmon-truncated"] != "300000" || !mine {
				t.Errorf("%d bytes are left, headers %v", n, headers)
			}
		case 2:
			if len(r.Key)+len(r.Value) != 0 || headers["oodmon-truncated"] != "all of 100000 bytes, and the headers" || mine {
				t.Errorf("%d bytes are left, headers %v", len(r.Key)+len(r.Value), headers)
			}
		default:
			if _, cut := headers["oodmon-truncated"]; cut || len(r.Value) != 10 || !mine {
				t.Errorf("%d bytes are left, headers %v", len(r.Value), headers)
			}
		}
	}
}

func testErrors(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, "json", 1, "max.message.bytes=6000")
	err := f.Write(f.ctx, 0, record(t, testRow{id: strings.Repeat("x", 10_000)}))
	want := "a message of 2"
	if !errors.Is(err, kafka.MessageSizeTooLarge) || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), " is larger than the topic's max.message.bytes: produce 1 messages to "+f.scores+"[0]: ") {
		t.Errorf("error %v, want it to begin with %s", err, want)
	}
	if err := f.Write(f.ctx, 0, record(t, rows(3, "after")...)); err != nil {
		t.Errorf("after the error: %v", err)
	}
	ascends(t, offsetsOf(t, f.ReadAll(f.scores)), 3)

	missing, err := New(Config{Topic: "nowhere", DeadLetterTopic: f.dead, Format: "json"}, f.conn, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	err = missing.Write(f.ctx, 0, record(t, rows(1, "")...))
	if !errors.Is(err, kafka.UnknownTopicOrPartition) || !strings.Contains(err.Error(), "kafka topic nowhere does not exist: create it, or correct the configuration") {
		t.Errorf("error %v", err)
	}
	if _, err := New(Config{Format: "xml"}, nil, nil, nil); err == nil || err.Error() != `sink: format "xml" is neither json nor arrow` {
		t.Errorf("error %v", err)
	}
}

// A compacted topic takes no letter without a key, which would stop its partition.
func testCompactedTopic(t *testing.T, broker *kafkatest.Broker) {
	for _, format := range []string{"json", "arrow"} {
		t.Run(format, func(t *testing.T) {
			f := newFixture(t, broker, format, 1)
			if err := f.Check(f.ctx); err != nil {
				t.Errorf("topics that are not compacted: %v", err)
			}
			f.CreateTopic(f.scores+"-compacted", 1, "cleanup.policy=compact,delete")
			f.Producer.cfg.Topic = f.scores + "-compacted"
			if err := f.Check(f.ctx); (err != nil) != (format == "arrow") {
				t.Errorf("compacted results: %v", err)
			}
			f.Producer.cfg.DeadLetterTopic = f.scores + "-compacted"
			if err := f.Check(f.ctx); err == nil || !strings.HasPrefix(err.Error(), "kafka topic "+f.scores+"-compacted is compacted: ") {
				t.Errorf("compacted dead letters: %v", err)
			}
			if !kafkatest.Real() { // takes them
				return
			}
			letter := Letter{Topic: "in", Row: -1, Value: []byte("v"), Reason: "bad_json", Err: errors.New("bad")}
			kafkatest.Eventually(t, time.Minute, func() error { // the client may not know the topic yet
				err := f.DeadLetter(f.ctx, 0, []Letter{letter})
				if !errors.Is(err, kafka.InvalidRecord) || !strings.Contains(err.Error(), "cleanup.policy") {
					return fmt.Errorf("a letter without a key: %w", err)
				}
				return nil
			})
		})
	}
}

// A topic may allow no distance from the broker's clock: then nobody's is taken.
func testTimestamps(t *testing.T, broker *kafkatest.Broker) {
	if !kafkatest.Real() {
		t.Skip("the embedded broker takes any timestamp")
	}
	f := newFixture(t, broker, "json", 1, "message.timestamp.before.max.ms=0", "message.timestamp.after.max.ms=0")
	for i := range 20 { // a millisecond may not be over
		if err := f.Write(f.ctx, 0, record(t, testRow{id: strconv.Itoa(i)})); err != nil {
			t.Fatal(err)
		}
		if err := Publish(f.ctx, f.conn, f.dead, nil, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(f.ReadAll(f.scores)); n != 20 {
		t.Errorf("%d results, want 20", n)
	}
	if n := len(f.ReadAll(f.dead)); n != 20 {
		t.Errorf("%d documents, want 20", n)
	}
}

// What fails in passing is tried again, and nothing is appended twice.
func TestProducerTriesAgain(t *testing.T) {
	for name, c := range map[string]struct {
		fault   kfake.Fault
		retries float64
	}{
		"a moved leader":        {kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition, Count: 2}, 2},
		"a lost answer":         {kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: 2}, 2},
		"too few replicas":      {kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicasAfterAppend, Count: 1}, 1},
		"a forgotten producer":  {kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.UnknownProducerID, Count: 1}, 1},
		"a gap in the sequence": {kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.OutOfOrderSequenceNumber, Count: 1}, 1},
		"no producer id":        {kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.CoordinatorLoadInProgress, Count: 1, TopLevel: true}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, kafkatest.StartFake(t), "json", 1)
			handle := f.Cluster.Fault(c.fault)
			all := rows(9, "id")
			for i := range 3 {
				if err := f.Write(f.ctx, 0, record(t, all[3*i:3*i+3]...)); err != nil {
					t.Fatal(err)
				}
			}
			ascends(t, offsetsOf(t, f.ReadAll(f.scores)), 9)
			if n := f.metric("oodmon_sink_errors_total", "scores"); n != c.retries || handle.Hits() != int(c.retries) {
				t.Errorf("%v retries after %d faults, want %v", n, handle.Hits(), c.retries)
			}
		})
	}
}

// What large messages took is given back, also where nothing comes after them.
func TestProducerKeepsNothingOfLargeMessages(t *testing.T) {
	f := newFixture(t, kafkatest.StartFake(t), "arrow", 1)
	large := strings.Repeat("x", 2*mostKept)
	result := record(t, testRow{id: large, score: 1, segment: "de"})
	before := heap()
	for partition := range 4 {
		if err := f.Write(f.ctx, partition, result); !errors.Is(err, kafka.MessageSizeTooLarge) {
			t.Fatalf("a result of %d bytes: %v, want that it is too large", len(large), err)
		}
		letter := Letter{Topic: "in", Partition: int32(partition), Value: []byte(large), Reason: "bad_json", Err: errors.New("broken")}
		if err := f.DeadLetter(f.ctx, partition, []Letter{letter}); err != nil {
			t.Fatal(err)
		}
	}
	if kept := int64(heap()) - int64(before); kept > 3*mostKept {
		t.Errorf("%d MB are kept of large messages in 4 partitions", kept>>20)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// batchOf returns the record batch of a request that has one.
func batchOf(t *testing.T, request *kmsg.ProduceRequest) (batch kmsg.RecordBatch) {
	t.Helper()
	if err := batch.ReadFrom(request.Topics[0].Partitions[0].Records); err != nil {
		t.Error(err)
	}
	return batch
}

// A broker that takes no timestamp of this machine's clock is given none.
func TestProducerWithAWrongClock(t *testing.T) {
	f := newFixture(t, kafkatest.StartFake(t), "json", 1)
	f.Cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		f.Cluster.KeepControl()
		request := r.(*kmsg.ProduceRequest)
		if batch := batchOf(t, request); batch.FirstTimestamp >= 0 || // those of its records begin there
			request.Topics[0].Topic == f.scores && batch.MaxTimestamp >= 0 { // kafka-go, by which Publish goes, makes 0 of it
			return refuse(request, kerr.InvalidTimestamp), nil, true
		}
		return nil, nil, false
	})
	for i := range 3 {
		if err := f.Write(f.ctx, 0, record(t, rows(9, "id")[3*i:3*i+3]...)); err != nil {
			t.Fatal(err)
		}
	}
	ascends(t, offsetsOf(t, f.ReadAll(f.scores)), 9)
	if n := f.metric("oodmon_sink_errors_total", "scores"); n != 0 {
		t.Errorf("%v errors are counted, want 0", n)
	}
	if err := Publish(f.ctx, f.conn, f.dead, []byte("k"), []byte("{}")); err != nil {
		t.Errorf("one document: %v", err)
	}
	if got := f.ReadAll(f.dead); len(got) != 1 || string(got[0].Key) != "k" || string(got[0].Value) != "{}" {
		t.Errorf("published %v", got)
	}
}

// What may not be published is said at once, and who is to be allowed it.
func TestPublishDenied(t *testing.T) {
	f := newFixture(t, kafkatest.StartFake(t), "json", 1)
	f.Cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		f.Cluster.KeepControl()
		return refuse(r.(*kmsg.ProduceRequest), kerr.TopicAuthorizationFailed), nil, true
	})
	err := Publish(f.ctx, f.conn, f.scores, nil, []byte("{}"))
	want := "publish to " + f.scores + ": User:ANONYMOUS may not write topic " + f.scores + " on the cluster of " + f.Address + ": allow it, as by kafka-acls "
	if !errors.Is(err, kafka.TopicAuthorizationFailed) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error %v, want it to begin with %s", err, want)
	}
}

// The acknowledgement may be lost with its connection, and the connection
// before the request.
func TestProducerSurvivesLostConnections(t *testing.T) {
	f := newFixture(t, kafkatest.StartFake(t), "json", 1)
	n := 0
	f.Cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		f.Cluster.KeepControl()
		if n++; n%2 == 1 {
			return nil, io.EOF, true
		}
		return nil, nil, false
	})
	for i := range 3 {
		if err := f.Write(f.ctx, 0, record(t, rows(9, "id")[3*i:3*i+3]...)); err != nil {
			t.Fatal(err)
		}
	}
	ascends(t, offsetsOf(t, f.ReadAll(f.scores)), 9)
}

// A request may have been appended though nobody said so. Where it is given up after
// that, none with its producer id and sequence may follow: the broker would take
// other messages for the same, and acknowledge them.
func TestProducerDoesNotReuseTheSequenceOfALostRequest(t *testing.T) {
	f := newFixture(t, kafkatest.StartFake(t), "json", 1)
	type sent struct {
		id    int64
		first int32
	}
	var all []sent
	f.Cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		f.Cluster.KeepControl()
		request := r.(*kmsg.ProduceRequest)
		batch := batchOf(t, request)
		all = append(all, sent{batch.ProducerID, batch.FirstSequence})
		switch len(all) {
		case 2: // appended, and the answer is lost
			return nil, io.EOF, true
		case 3:
			return refuse(request, kerr.TopicAuthorizationFailed), nil, true
		}
		return nil, nil, false
	})
	write := func(id string) error { return f.Write(f.ctx, 0, record(t, rows(3, id)...)) }
	if err := write("first"); err != nil {
		t.Fatal(err)
	}
	if err := write("lost"); !errors.Is(err, kafka.TopicAuthorizationFailed) {
		t.Fatalf("error %v, want that of the authorization", err)
	}
	if err := write("other"); err != nil {
		t.Fatal(err)
	}
	if len(all) != 4 || all[3] == all[1] {
		t.Errorf("sent as %v: the last must not be taken for the second", all)
	}
}

// A broker may have appended what it refuses: one that is no longer the leader, say.
// Where such a request is given up with its generation, the batch that follows has more
// records of the same offsets, and must not be taken for it.
func TestProducerDoesNotReuseTheSequenceOfARefusedRequest(t *testing.T) {
	for name, code := range map[string]*kerr.Error{
		"no longer the leader": kerr.NotLeaderForPartition, "no word": kerr.UnknownServerError, "a failing disk": kerr.KafkaStorageError,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, kafkatest.StartFake(t), "arrow", 1)
			write := func(ctx context.Context, n int) error { return f.Write(ctx, 0, record(t, rows(n, "id")...)) }
			if err := write(f.ctx, 1); err != nil {
				t.Fatal(err)
			}
			var sent *kmsg.ProduceRequest
			f.Cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
				sent = r.(*kmsg.ProduceRequest)
				return refuse(sent, code), nil, true
			})
			f.Cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: 1})
			ctx, cancel := context.WithTimeout(f.ctx, 250*time.Millisecond)
			defer cancel()
			if err := write(ctx, 2); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("error %v, want that the time is over", err)
			}
			// The new leader has it.
			topics, err := f.Admin().ListTopics(f.ctx, f.scores)
			if err != nil {
				t.Fatal(err)
			}
			sent.Topics[0].TopicID = topics[f.scores].ID
			answer, err := f.Client().Broker(0).Request(f.ctx, sent)
			if err != nil || answer.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode != 0 {
				t.Fatalf("%v, %+v", err, answer)
			}
			if err := write(f.ctx, 9); err != nil {
				t.Fatal(err)
			}
			var got []int64
			for _, r := range f.ReadAll(f.scores) {
				in, err := ipc.NewReader(bytes.NewReader(r.Value))
				if err != nil || !in.Next() {
					t.Fatal(err)
				}
				got = append(got, in.Record().NumRows())
				in.Release()
			}
			if fmt.Sprint(got) != "[1 2 9]" {
				t.Errorf("messages of %v rows, want 1, 2 and 9", got)
			}
		})
	}
}

// refuse answers a produce request with an error.
func refuse(request *kmsg.ProduceRequest, code *kerr.Error) *kmsg.ProduceResponse {
	response := request.ResponseKind().(*kmsg.ProduceResponse)
	partition := kmsg.NewProduceResponseTopicPartition()
	partition.Partition, partition.ErrorCode = request.Topics[0].Partitions[0].Partition, code.Code
	topic := kmsg.NewProduceResponseTopic()
	topic.Topic, topic.Partitions = request.Topics[0].Topic, append(topic.Partitions, partition)
	response.Topics = append(response.Topics, topic)
	return response
}

func TestProducerGivesUpOnlyWithItsContext(t *testing.T) {
	f := newFixture(t, kafkatest.StartFake(t), "json", 1)
	f.Cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: 3})
	ctx, cancel := context.WithTimeout(f.ctx, 50*time.Millisecond)
	defer cancel()
	if err := f.Write(ctx, 0, record(t, rows(1, "")...)); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, kafka.NotEnoughReplicas) {
		t.Errorf("error %v, want the last failure and why it was the last", err)
	}
	if err := f.Write(f.ctx, 0, record(t, rows(2, "")...)); err != nil {
		t.Fatal(err)
	}
	ascends(t, offsetsOf(t, f.ReadAll(f.scores)), 2)
	for code, want := range map[*kerr.Error]kafka.Error{
		kerr.TopicAuthorizationFailed: kafka.TopicAuthorizationFailed, kerr.InvalidRecord: kafka.InvalidRecord, kerr.PolicyViolation: kafka.PolicyViolation,
	} {
		f.Cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: code, Count: 1})
		if err := f.Write(f.ctx, 0, record(t, rows(1, "")...)); !errors.Is(err, want) || !strings.Contains(err.Error(), f.scores) {
			t.Errorf("error %v", err)
		}
	}
}
