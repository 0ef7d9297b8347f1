package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
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
	// Reasons are those that letters may have. Their counters begin at 0, so
	// that the first letter is seen as an increase.
	Reasons []string
	// TransactionalID, where it isn't empty, makes delivery exactly once: what is
	// published for an input partition belongs to a transaction, which begins by
	// itself after Fence, and which Commit ends. The transactional id of an input
	// partition is this, a dot and its number.
	TransactionalID string
}

// A Header is one header of a record.
type Header = kafka.Header

// maxRequest is the size of the messages in one request: below the default of
// a broker's max.message.bytes, which bounds the whole.
const maxRequest = 900 << 10

// mostKept is how much memory a buffer keeps for the next batch: no ordinary one takes
// more.
const mostKept = 4 << 20

// produceTimeout bounds one attempt.
const produceTimeout = 30 * time.Second

// undatedTime is how long a partition's messages have no timestamp after the broker
// refused one. Kafka 4 takes none that is an hour ahead of its own clock.
const undatedTime = time.Minute

const firstPause, lastPause = 100 * time.Millisecond, 5 * time.Second

// A Producer publishes synchronously: what it returned nil for is acknowledged
// by all in-sync replicas. A request whose acknowledgement was lost is known by
// its producer id and sequence when it comes again, and not appended twice. Each
// input partition has a producer id of its own, so that their writers don't wait
// for one another.
type Producer struct {
	cfg     Config
	conn    *kafkaconn.Client
	metrics *metrics
	log     *slog.Logger

	mu         sync.Mutex
	partitions map[string]int  // of the topics
	limits     map[string]int  // bytes of a request, where a topic takes fewer than maxRequest
	writers    map[int]*writer // by input partition
}

// A writer publishes what came from one input partition.
type writer struct {
	*Producer
	mu        sync.Mutex // held from Write's or DeadLetter's start to its end
	partition int

	id    int64 // -1: none yet
	epoch int16
	next  map[target]int32 // sequence numbers
	tx    transaction
	// committed says that the transaction before the last Fence was, last who had the
	// transactional id when that was seen, and releasing that Release has begun one
	// that says so again.
	committed bool
	last      owner
	releasing bool

	stream  bytes.Buffer // with the format arrow
	row     []byte       // key and value of one message
	request []byte       // with one batch
	batch   int          // where that begins

	undated time.Time // since when messages have no timestamp; zero: they have one
}

// A target is an output partition.
type target struct {
	topic     string
	partition int
}

// New checks the configuration. It doesn't connect.
func New(cfg Config, conn *kafkaconn.Client, reg prometheus.Registerer, log *slog.Logger) (*Producer, error) {
	if cfg.Format != "json" && cfg.Format != "arrow" {
		return nil, fmt.Errorf("sink: format %q is neither json nor arrow", cfg.Format)
	}
	return &Producer{
		cfg: cfg, conn: conn, metrics: newMetrics(reg, cfg.Reasons), log: log,
		partitions: make(map[string]int), limits: make(map[string]int), writers: make(map[int]*writer),
	}, nil
}

// Check refuses compacted topics, but for results in JSON, which have their ids for
// keys: they take no message without a key, and keep one of a key. Where the broker
// does not tell, a letter without a key is refused when it comes.
func (p *Producer) Check(ctx context.Context) error {
	topics := []string{p.cfg.DeadLetterTopic}
	if p.cfg.Format == "arrow" {
		topics = append(topics, p.cfg.Topic)
	}
	request := &kafka.DescribeConfigsRequest{}
	for _, topic := range topics {
		request.Resources = append(request.Resources, kafka.DescribeConfigRequestResource{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, ConfigNames: []string{"cleanup.policy"},
		})
	}
	answer, err := p.conn.Kafka.DescribeConfigs(ctx, request)
	if err != nil {
		p.log.Warn("the cleanup policies of the output topics are not known: were one compacted, it would refuse what has no key", "error", err)
		return nil
	}
	for _, topic := range answer.Resources {
		if topic.Error != nil {
			p.log.Warn("the cleanup policy of an output topic is not known: were it compacted, it would refuse what has no key", "topic", topic.ResourceName, "error", topic.Error)
		}
		for _, entry := range topic.ConfigEntries {
			if entry.ConfigName == "cleanup.policy" && strings.Contains(entry.ConfigValue, "compact") {
				return fmt.Errorf("kafka topic %s is compacted: %s", topic.ResourceName, noCompaction)
			}
		}
	}
	return nil
}

const noCompaction = "what has no key is refused there, and of what has the same key only the last is kept: set its cleanup.policy to delete"

// writer returns the locked writer of an input partition.
func (p *Producer) writer(partition int) *writer {
	p.mu.Lock()
	w := p.writers[partition]
	if w == nil {
		w = &writer{Producer: p, partition: partition, id: -1}
		p.writers[partition] = w
	}
	p.mu.Unlock()
	w.mu.Lock()
	return w
}

// Write publishes the rows of a score record, in order. partition is the input
// partition they come from: their output partition is partition modulo the
// number of output partitions. A failure is tried again until ctx is done; only
// what no attempt can mend is returned before.
func (p *Producer) Write(ctx context.Context, partition int, rec arrow.Record) error {
	if rec.NumRows() == 0 {
		return nil
	}
	w := p.writer(partition)
	defer w.mu.Unlock()
	defer w.trim()
	if p.cfg.Format == "arrow" {
		return w.writeArrow(ctx, rec)
	}
	id, err := columnOf[*array.String](rec, "id")
	if err != nil {
		return err
	}
	enc, err := newJSONEncoder(rec)
	if err != nil {
		return err
	}
	return w.publish(ctx, kindScores, p.cfg.Topic, int(rec.NumRows()), func(row int) message {
		w.row = append(w.row[:0], id.Value(row)...)
		key := len(w.row)
		w.row = enc.append(w.row, row)
		return message{key: w.row[:key], value: w.row[key:], headers: jsonHeaders}
	})
}

var (
	jsonHeaders  = []Header{{Key: "content-type", Value: []byte(jsonContentType)}}
	arrowHeaders = []Header{{Key: "content-type", Value: []byte(ArrowContentType)}}
)

// writeArrow publishes the rows as one IPC stream, or as several where it would
// be too large.
func (w *writer) writeArrow(ctx context.Context, rec arrow.Record) error {
	w.stream.Reset()
	out := ipc.NewWriter(&w.stream, ipc.WithSchema(rec.Schema()))
	if err := errors.Join(out.Write(rec), out.Close()); err != nil {
		return fmt.Errorf("encode scores as Arrow: %w", err)
	}
	rows := rec.NumRows()
	one := message{value: w.stream.Bytes(), headers: arrowHeaders}
	if rows == 1 || one.size() <= w.limit(w.cfg.Topic) {
		err := w.publish(ctx, kindScores, w.cfg.Topic, 1, func(int) message { return one })
		if rows == 1 || !tooLarge(err) {
			return err
		}
		w.refused(w.cfg.Topic, one.size())
	}
	for _, part := range [][2]int64{{0, rows / 2}, {rows / 2, rows}} {
		half := rec.NewSlice(part[0], part[1])
		err := w.writeArrow(ctx, half)
		half.Release()
		if err != nil {
			return err
		}
	}
	return nil
}

// DeadLetter publishes what could not be scored: the message as it was, with
// headers that say where it came from and why it is here. A message that the
// topic does not take is cut short, and a header says how long it was. Of a
// message with several bad rows only the first letter has the value.
func (p *Producer) DeadLetter(ctx context.Context, partition int, letters []Letter) error {
	w := p.writer(partition)
	defer w.mu.Unlock()
	defer w.trim()
	all := make([]letter, len(letters))
	for i := range letters {
		all[i] = letter{Letter: &letters[i], keep: len(letters[i].Value)}
		all[i].omitted = i > 0 && letters[i-1].Offset == letters[i].Offset && letters[i-1].Partition == letters[i].Partition
	}
	if err := w.publish(ctx, kindDeadLetter, p.cfg.DeadLetterTopic, len(all), func(i int) message { return all[i].message() }); err != nil {
		return err
	}
	for i := range letters {
		l := &letters[i]
		if p.cfg.TransactionalID != "" {
			w.tx.letters = append(w.tx.letters, Letter{Reason: l.Reason, More: l.More}) // counted when they are committed
			continue
		}
		p.metrics.count(l)
	}
	return nil
}

// trim gives back what large messages have taken: there may be many partitions, and
// one that is idle would keep it.
func (w *writer) trim() {
	if w.stream.Cap() > mostKept {
		w.stream = bytes.Buffer{}
	}
	if cap(w.row) > mostKept {
		w.row = nil
	}
	if cap(w.request) > mostKept {
		w.request = nil
	}
}

// limit returns how many bytes a request to a topic may have.
func (p *Producer) limit(topic string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := p.limits[topic]; n > 0 {
		return n
	}
	return maxRequest
}

// refused remembers that a topic did not take that many bytes.
func (p *Producer) refused(topic string, size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits[topic] = size / 2
}

// publish sends n messages in order, in requests that a broker takes, and returns
// when all are acknowledged. A message that at returns is used until the next call
// of it; where a request is split, at is called again.
func (w *writer) publish(ctx context.Context, kind, topic string, n int, at func(i int) message) error {
	for first := 0; first < n; {
		count, size := w.fill(topic, n-first, func(i int) message { return at(first + i) })
		err := w.send(ctx, kind, topic, count)
		switch {
		case err == nil:
			w.metrics.messages.WithLabelValues(kind).Add(float64(count))
			first += count
		case !tooLarge(err):
			return err
		case count > 1:
			w.refused(topic, size)
		default:
			if l := at(first).letter; l == nil || !l.cut() {
				return fmt.Errorf("a message of %d bytes is larger than the topic's max.message.bytes: %w", size, err)
			}
		}
	}
	return nil
}

// fill begins a request with as many of n messages as fit, at least one, and
// returns how many these are, and their size.
func (w *writer) fill(topic string, n int, at func(i int) message) (count, size int) {
	limit := w.limit(topic)
	w.request = appendProduce(w.request[:0], w.conn.ClientID, w.transactionalID(), produceTimeout, topic)
	w.batch = len(w.request) - batchHeader
	for count < n {
		m := at(count)
		more := m.size()
		if count == 0 { // the others are about as large
			w.request = slices.Grow(w.request, max(more, min(limit, n*more)))
		} else if size+more > limit {
			break
		}
		w.request = appendRecord(w.request, count, &m)
		size += more
		count++
	}
	return count, size
}

// send makes the request with n messages, again and again until it is acknowledged or ctx is
// done. Only what no attempt can mend is an error before.
func (w *writer) send(ctx context.Context, kind, topic string, n int) error {
	pause, begun := firstPause, time.Now()
	var tried target
	// A broker that appended a request which was given up would take another one
	// with its sequence, of as many messages, for the same, and acknowledge it. Only
	// what no attempt can mend is said before anything is appended, and nothing else:
	// even a broker that is no longer the leader may have been it until then.
	appended := false // perhaps, by an attempt
	end := func(err error) error {
		if appended {
			w.id = -1
		}
		return err
	}
	for {
		to, err := w.target(ctx, topic)
		if err == nil && tried != (target{}) && to != tried {
			w.id = -1              // it may be in the other one already, with the sequence that comes next there
			if w.transactional() { // and would be committed there too
				err = fmt.Errorf("after an attempt at partition %d: partitions were added: %w", tried.partition, errNotFenced)
			}
		}
		if err == nil {
			tried = to
			start := time.Now()
			if err = w.produce(ctx, to, n); err == nil {
				w.metrics.duration.Observe(time.Since(start).Seconds())
				return nil
			}
		}
		err = w.conn.Denied(err, kafkaconn.Access{Operation: "Write", Topic: topic, TransactionalID: w.cfg.TransactionalID})
		err = fmt.Errorf("produce %d messages to %s[%d]: %w", n, topic, to.partition, err)
		w.metrics.errors.WithLabelValues(kind).Inc()
		if permanent(err) {
			return end(err)
		}
		appended = true
		if w.transactional() && (w.id < 0 || time.Since(begun) > transactionTimeout) {
			w.id = -1 // the coordinator aborts it now, if it has not
			return err
		}
		if errors.Is(err, kafka.UnknownTopicOrPartition) {
			// kafka-go's Client says so of whatever it cannot see at the moment.
			if really := w.conn.Check(ctx, topic); errors.Is(really, kafka.UnknownTopicOrPartition) {
				return end(errors.Join(err, really))
			}
		}
		if ctx.Err() != nil {
			return end(errors.Join(err, context.Cause(ctx)))
		}
		w.log.Warn("not published; trying again", "topic", topic, "partition", to.partition, "messages", n, "error", err)
		w.forget(topic)
		if kafkaconn.Sleep(ctx, pause) != nil {
			return end(errors.Join(err, context.Cause(ctx)))
		}
		pause = min(lastPause, 2*pause)
	}
}

// tooLarge says that a request may be taken in parts.
func tooLarge(err error) bool {
	return errors.Is(err, kafka.MessageSizeTooLarge) || errors.Is(err, kafka.RecordListTooLarge)
}

// permanent says that no attempt can mend an error.
func permanent(err error) bool {
	for _, class := range []kafka.Error{
		kafka.MessageSizeTooLarge, kafka.RecordListTooLarge, kafka.InvalidTopic, kafka.TopicAuthorizationFailed, kafka.ClusterAuthorizationFailed,
		kafka.TransactionalIDAuthorizationFailed, kafka.InvalidRecord, kafka.PolicyViolation,
	} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}

// produce makes one attempt with the request of n messages.
func (w *writer) produce(ctx context.Context, to target, n int) error {
	if err := w.begin(ctx); err != nil {
		return err
	}
	if w.transactional() {
		if err := w.include(ctx, to); err != nil {
			return err
		}
	}
	if time.Since(w.undated) > undatedTime {
		w.undated = time.Time{}
	}
	sequence := w.next[to]
	timestamp := time.Now().UnixMilli()
	if !w.undated.IsZero() {
		timestamp = noTimestamp
	}
	finishBatch(w.request[w.batch:], n, timestamp, w.id, w.epoch, sequence, w.transactional())
	finishProduce(w.request, w.batch, to.partition)
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	answer, err := w.conn.Kafka.Transport.RoundTrip(ctx, w.conn.Kafka.Addr, &produceRequest{to: to, bytes: w.request})
	if err != nil {
		w.request = cloneProduce(w.request) // one that was given up may still be sent
		return err
	}
	code := kafka.Error(answer.(*produceResponse).errorCode)
	switch {
	case code == 0 || code == kafka.DuplicateSequenceNumber: // appended before
		w.next[to] = int32((int64(sequence) + int64(n)) & math.MaxInt32)
		return nil
	case code == kafka.OutOfOrderSequenceNumber || code == kafka.UnknownProducerId ||
		code == kafka.InvalidProducerEpoch || code == kafka.InvalidProducerIDMapping ||
		code == kafka.InvalidTransactionState || code == kafka.ProducerFenced:
		w.id = -1 // the broker has forgotten us, or the topic was made anew, or another owns the partition
	case code == kafka.InvalidTimestamp && w.undated.IsZero():
		w.log.Warn("published without timestamps, since the broker takes none of this machine's clock: set the clock", "topic", to.topic, "partition", to.partition)
		w.undated = time.Now()
		return w.produce(ctx, to, n)
	case code == kafka.InvalidRecord:
		return fmt.Errorf("if the topic is compacted, %s: %w", noCompaction, code)
	}
	return code
}

// begin gets a producer id, where there is none.
func (w *writer) begin(ctx context.Context) error {
	if w.id >= 0 {
		return nil
	}
	if w.transactional() {
		return errNotFenced
	}
	answer, err := w.conn.Kafka.InitProducerID(ctx, &kafka.InitProducerIDRequest{ProducerID: -1, ProducerEpoch: -1})
	if err == nil {
		err = answer.Error
	}
	if err != nil {
		return fmt.Errorf("get a producer id: %w", err)
	}
	w.id, w.epoch, w.next = int64(answer.Producer.ProducerID), int16(answer.Producer.ProducerEpoch), make(map[target]int32)
	return nil
}

// target returns the output partition of the writer's input partition.
func (w *writer) target(ctx context.Context, topic string) (target, error) {
	w.Producer.mu.Lock()
	n := w.partitions[topic]
	w.Producer.mu.Unlock()
	if n == 0 {
		meta, err := w.conn.Kafka.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
		if err != nil {
			return target{}, err
		}
		if len(meta.Topics) != 1 || len(meta.Topics[0].Partitions) == 0 {
			return target{}, kafka.UnknownTopicOrPartition
		}
		n = len(meta.Topics[0].Partitions)
		w.Producer.mu.Lock()
		w.partitions[topic] = n
		w.Producer.mu.Unlock()
	}
	return target{topic: topic, partition: w.partition % n}, nil
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
