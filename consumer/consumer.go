package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

const (
	defaultSessionTimeout = 30 * time.Second
	defaultDrainTimeout   = 15 * time.Second
	heartbeatInterval     = 3 * time.Second
	watchInterval         = 5 * time.Second
	joinBackoff           = time.Second
	groupTimeout          = 5 * time.Second        // of a call to the coordinator
	maxFetched            = 16 << 20               // of all partitions, those ahead included
	leastFetch            = 64 << 10               // of one, however many there are
	commitInterval        = 200 * time.Millisecond // while records come
	grace                 = time.Second            // for a handler whose context is done
	longTransaction       = time.Minute            // the default transaction.timeout.ms of producers
	tellAgain             = 30 * time.Second       // of what goes on failing in the same way
	firstPause, lastPause = 100 * time.Millisecond, 10 * time.Second
)

// A Consumer is one member of a consumer group.
type Consumer struct {
	cfg        Config
	conn       *kafkaconn.Client
	newHandler func() Handler
	metrics    *metrics
	log        *slog.Logger
	budget     *budget

	mu         sync.Mutex
	member     bool      // of a generation
	since      time.Time // when that last changed
	partitions map[int]*progress
	left       map[int]*progress // of partitions that were given up while records waited
	lastMove   time.Time         // of any partition
	fatal      error
	refused    error // why the group was not joined, while it is not

	// How far the group has come in the partitions that this member has (−1: nothing is
	// committed), since when its coordinator tells of less, and those that were made again.
	reached   map[int]int64
	doubted   map[int]time.Time
	remade    map[int]bool
	known     int  // partitions of the topic when the group began; notCounted: not known yet
	had       int  // partitions that its members have had
	settled   bool // the group has committed something
	before    bool // it had when this generation began
	forgetful time.Duration

	missedPatience time.Duration
}

// progress is how far a worker has come.
type progress struct {
	position, end, written int64     // as a reader's
	moved                  time.Time // when the position last moved, or nothing waited
	err                    error     // of the last attempt, or nil
	queued                 bool      // it waits for memory that other partitions hold
}

// New checks the configuration. It doesn't connect.
func New(cfg Config, conn *kafkaconn.Client, newHandler func() Handler, reg prometheus.Registerer, log *slog.Logger) (*Consumer, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("consumer: %w", err)
	}
	if cfg.SessionTimeout == 0 {
		cfg.SessionTimeout = defaultSessionTimeout
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = defaultDrainTimeout
	}
	return &Consumer{
		cfg: cfg, conn: conn, newHandler: newHandler, metrics: newMetrics(reg), log: log, budget: processBudget(),
		since: time.Now(), partitions: make(map[int]*progress), left: make(map[int]*progress), known: notCounted, forgetful: forgetfulTime, missedPatience: missedTime,
	}, nil
}

// Run reads until ctx is done. Then every worker finishes the batch in hand and
// commits, and the member leaves the group, all within Config.DrainTimeout.
// What fails is tried again, but for an offset that is out of range where the
// policy is to fail.
func (c *Consumer) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	// kafka-go's calls to the coordinator may outlast any patience; their
	// connections don't outlast the drain.
	connected, disconnect := context.WithCancel(context.WithoutCancel(ctx))
	defer disconnect()
	overdue := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		time.AfterFunc(c.cfg.DrainTimeout, disconnect)
		time.AfterFunc(c.cfg.DrainTimeout+grace, func() { close(overdue) })
	})()
	brokers := slices.Clone(c.conn.Brokers)
	group, err := c.join(connected, brokers)
	if err != nil {
		return err
	}
	refused, told := "", time.Time{} // what was logged last, of attempts that come each second
	for ctx.Err() == nil {
		generation, err := group.Next(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			c.metrics.errors.WithLabelValues(opJoin).Inc()
			err = c.conn.Denied(err, kafkaconn.Access{Operation: "Read", Topic: c.cfg.Topic, Group: c.cfg.Group})
			c.setRefused(err)
			if text := err.Error(); text != refused || time.Since(told) >= tellAgain {
				c.log.Warn("consumer group not joined; trying again", "group", c.cfg.Group, "error", err)
				refused, told = text, time.Now()
			}
			// kafka-go asks the first broker to which it can connect, also where
			// that one does not answer: it hangs, or only its proxy is there. A
			// rebalance is an answer, and the membership stays.
			if len(brokers) > 1 && !errors.Is(err, kafka.RebalanceInProgress) {
				brokers = append(brokers[1:], brokers[0])
				_ = group.Close() // it was not joined; nor does it wait any more before the next attempt
				if kafkaconn.Sleep(ctx, joinBackoff) != nil {
					break
				}
				if group, err = c.join(connected, brokers); err != nil {
					return err
				}
			}
			continue
		}
		refused = ""
		c.serve(ctx, overdue, generation, stop)
	}
	err = c.leave(connected, overdue, group)
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.fatal, err)
}

// join begins to join the group. Its connections end with the context connected.
func (c *Consumer) join(connected context.Context, brokers []string) (*kafka.ConsumerGroup, error) {
	group, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: c.cfg.Group, Brokers: slices.Clone(brokers), Dialer: c.conn.DialerUntil(connected), Topics: []string{c.cfg.Topic},
		GroupBalancers:    []kafka.GroupBalancer{kafka.RangeGroupBalancer{}},
		HeartbeatInterval: min(heartbeatInterval, c.cfg.SessionTimeout/3), SessionTimeout: c.cfg.SessionTimeout,
		RebalanceTimeout: max(c.cfg.SessionTimeout, 2*c.cfg.DrainTimeout), JoinGroupBackoff: joinBackoff,
		Timeout: groupTimeout,
	})
	if err != nil {
		return nil, fmt.Errorf("consumer group %s: %w", c.cfg.Group, err)
	}
	return group, nil
}

// leave closes the group, which waits for the workers.
func (c *Consumer) leave(connected context.Context, overdue <-chan struct{}, group *kafka.ConsumerGroup) error {
	closed := make(chan error, 1)
	go func() { closed <- group.Close() }()
	select {
	case err := <-closed:
		if connected.Err() != nil {
			c.log.Warn("consumer group not left in time; its partitions move after the session timeout", "group", c.cfg.Group)
		}
		return err
	case <-overdue:
		return fmt.Errorf("leave consumer group %s: a handler did not return within %v after its context was done", c.cfg.Group, grace)
	}
}

// serve runs a worker for each assigned partition until the generation ends, or
// until ctx is done and every worker has drained.
func (c *Consumer) serve(ctx context.Context, overdue <-chan struct{}, generation *kafka.Generation, stop context.CancelCauseFunc) {
	assigned := generation.Assignments[c.cfg.Topic]
	c.metrics.rebalances.Inc()
	c.metrics.assigned.Set(float64(len(assigned)))
	c.assign(assigned)
	c.setMember(true)
	c.log.Info("partitions assigned", "topic", c.cfg.Topic, "group", c.cfg.Group, "generation", generation.ID, "partitions", len(assigned))
	if err := c.count(ctx, int(generation.ID)); err != nil {
		c.log.Warn("the topic's partitions could not be counted; one that is added now begins at input.start", "topic", c.cfg.Topic, "error", err)
	}
	ended := make(chan struct{})
	generation.Start(func(g context.Context) {
		<-g.Done()
		close(ended)
	})
	// A function that returns ends the generation, and the group joins again.
	generation.Start(c.watchAssignments)
	commits := &committer{send: func(offsets map[int]int64) error {
		return generation.CommitOffsets(map[string]map[int]int64{c.cfg.Topic: offsets})
	}}
	var workers sync.WaitGroup
	for _, a := range assigned {
		workers.Add(1)
		generation.Start(func(g context.Context) {
			func() {
				defer workers.Done()
				if err := c.work(ctx, g, generation, commits, a, fetchSize(c.cfg.MaxBytes, len(assigned))); err != nil {
					c.mu.Lock()
					c.fatal = errors.Join(c.fatal, err)
					c.mu.Unlock()
					stop(err)
				}
			}()
			// A function that returned would end the generation, and the group
			// would join again before it could be left.
			<-g.Done()
		})
	}
	select {
	case <-ended:
	case <-ctx.Done():
	}
	drained := make(chan struct{})
	go func() {
		workers.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-overdue:
	}
	c.setMember(false)
	c.metrics.assigned.Set(0)
}

// watchAssignments returns when ctx is done, when a worker doubts what the
// coordinator has told, or when the group has assigned more or fewer partitions than
// the topic has: some were added, or the topic was deleted, or made again. kafka-go's
// own watch compares the topic with itself, and never sees what changed between the
// assignment and its first look.
func (c *Consumer) watchAssignments(ctx context.Context) {
	differed := false
	for kafkaconn.Sleep(ctx, watchInterval) == nil {
		if c.doubtful() {
			return // a worker has told why
		}
		assigned, have, err := c.assignments(ctx)
		if err != nil {
			differed = false // what fails is told by those who read
			continue
		}
		if assigned == have {
			c.mu.Lock()
			c.had = have
			c.mu.Unlock()
			differed = false
			continue
		}
		if differed { // a cached answer would not twice
			if have == 0 { // all partitions of the one that comes are new
				c.mu.Lock()
				c.known, c.had = 0, 0
				c.mu.Unlock()
			}
			c.log.Info("the topic has other partitions than the group has assigned; joining again", "topic", c.cfg.Topic, "partitions", have, "assigned", assigned)
			return
		}
		differed = true
	}
}

// assignments returns how many partitions of the topic the group's members have,
// and how many the topic has.
func (c *Consumer) assignments(ctx context.Context) (assigned, have int, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	groups, err := c.conn.Kafka.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{c.cfg.Group}})
	if err != nil {
		return 0, 0, err
	}
	if len(groups.Groups) != 1 || groups.Groups[0].Error != nil || groups.Groups[0].GroupState != "Stable" {
		return 0, 0, errors.New("the group is joining, or its coordinator does not know it")
	}
	for _, member := range groups.Groups[0].Members {
		for _, topic := range member.MemberAssignments.Topics {
			if topic.Topic == c.cfg.Topic {
				assigned += len(topic.Partitions)
			}
		}
	}
	meta, err := c.conn.Kafka.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{c.cfg.Topic}})
	if err != nil {
		return 0, 0, err
	}
	for _, topic := range meta.Topics {
		have += len(topic.Partitions)
	}
	return assigned, have, nil
}

const notCounted = math.MaxInt

// count finds how many partitions the topic had when the group began: with its first
// generation, all. Later the group's offsets tell: from the first without one on they
// may have been added, and are read from their first record, also one that had no leader
// since the group began.
func (c *Consumer) count(ctx context.Context, generation int) error {
	c.mu.Lock()
	counted := c.known != notCounted
	c.mu.Unlock()
	if counted {
		return nil
	}
	meta, err := kafkaconn.Retry(ctx, func() (*kafka.MetadataResponse, error) {
		return c.conn.Kafka.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{c.cfg.Topic}})
	})
	if err != nil {
		return fmt.Errorf("read metadata of %s: %w", c.cfg.Topic, err)
	}
	if len(meta.Topics) != 1 || len(meta.Topics[0].Partitions) == 0 {
		return fmt.Errorf("read metadata of %s: %w", c.cfg.Topic, kafka.UnknownTopicOrPartition)
	}
	all := make([]int, len(meta.Topics[0].Partitions))
	for i := range all {
		all[i] = i
	}
	known := len(all)
	if generation > 1 {
		offsets, err := kafkaconn.Retry(ctx, func() ([]int64, error) { return c.groupOffsets(ctx, all) })
		if err != nil {
			return err
		}
		if slices.Max(offsets) >= 0 {
			if first := slices.Index(offsets, -1); first >= 0 {
				known = first
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known, c.had = known, len(all)
	return nil
}

func (c *Consumer) setRefused(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused = err
}

// groupOffsets returns what the group has committed in partitions, -1 where that is nothing.
func (c *Consumer) groupOffsets(ctx context.Context, partitions []int) ([]int64, error) {
	answer, err := c.conn.Kafka.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: c.cfg.Group, Topics: map[string][]int{c.cfg.Topic: partitions}})
	if err == nil {
		err = answer.Error
	}
	if err != nil {
		return nil, fmt.Errorf("read the committed offsets of %s: %w", c.cfg.Topic, err)
	}
	offsets := make([]int64, len(partitions))
	for i, partition := range partitions {
		at := slices.IndexFunc(answer.Topics[c.cfg.Topic], func(p kafka.OffsetFetchPartition) bool { return p.Partition == partition })
		if at < 0 {
			return nil, fmt.Errorf("read the committed offset of %s[%d]: the coordinator did not answer for it", c.cfg.Topic, partition)
		}
		p := answer.Topics[c.cfg.Topic][at]
		if p.Error != nil {
			return nil, fmt.Errorf("read the committed offset of %s[%d]: %w", c.cfg.Topic, partition, p.Error)
		}
		offsets[i] = max(-1, p.CommittedOffset)
	}
	return offsets, nil
}

func (c *Consumer) setMember(member bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused = nil
	if c.member != member {
		c.member, c.since = member, time.Now()
		for _, p := range c.left {
			if p.moved.Before(c.since) {
				c.since = p.moved
			}
		}
	}
}

// A worker reads one partition during one generation of the group.
type worker struct {
	*Consumer
	reader
	generation *kafka.Generation
	commits    *committer
	progress   *progress
	log        *slog.Logger
	lag, at    prometheus.Gauge

	running   context.Context // until the consumer ends, or the partition is taken away
	draining  context.Context // a while longer: for the batch in hand
	claimed   bool            // where Config.Fence is set: since the last failure
	confirmed bool            // the offset to begin at
	told      time.Time       // when the coordinator told it
	vanished  bool            // the broker did not know the topic
	handled   int64           // everything before is acknowledged
	committed int64
	when      time.Time // of the last commit
	held      time.Time // when the open transaction was seen that holds records back, or last told of; zero: none
	retry     backoff

	asked  bool      // for what was missed
	missed []Span    // of that, what is to come
	stuck  time.Time // since when that could not be read; zero: it can
}

// fetchSize is how much is asked of one partition at a time: with many, less, so
// that the memory of an instance does not grow with their number. Two responses
// of each may be held.
func fetchSize(maxBytes, partitions int) int {
	return min(maxBytes, max(leastFetch, maxFetched/(2*partitions)))
}

// work reads one partition until ctx or the generation g is done. The error is
// one that ends the consumer.
func (c *Consumer) work(ctx, g context.Context, generation *kafka.Generation, commits *committer, a kafka.PartitionAssignment, fetchSize int) error {
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(g, func() { cancel(context.Cause(g)) })()
	draining, abandon := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abandon(nil)
	defer context.AfterFunc(running, func() {
		// The rest of the time is for the commit, and for leaving the group.
		drain := c.cfg.DrainTimeout * 4 / 5
		if ctx.Err() == nil {
			// Taken away: no heartbeat comes until the group is joined anew, and without
			// one it gives the member up.
			drain = min(drain, c.cfg.SessionTimeout/2)
		}
		time.AfterFunc(drain, func() { abandon(errors.New("the drain timeout is over")) })
	})()
	label := strconv.Itoa(a.ID)
	a.Offset = max(-1, a.Offset) // kafka-go has -2 for none
	w := &worker{
		Consumer: c, generation: generation, commits: commits, progress: c.enter(a.ID),
		log: c.log.With("topic", c.cfg.Topic, "partition", a.ID),
		lag: c.metrics.lag.WithLabelValues(label), at: c.metrics.committed.WithLabelValues(label),
		running: running, draining: draining, handled: a.Offset, committed: a.Offset, told: time.Now(),
		reader: reader{
			conn: c.conn, topic: c.cfg.Topic, partition: a.ID, position: a.Offset,
			maxRecords: c.cfg.MaxRecords, maxBytes: fetchSize, maxMessage: c.cfg.MaxMessageBytes, maxWait: c.cfg.MaxWait,
			readAhead: true, share: share{budget: c.budget},
		},
	}
	w.share.waits = func(waits bool) { c.waitsForMemory(w.progress, waits) }
	defer c.exit(a.ID)
	defer w.drop()
	if a.Offset >= 0 {
		w.at.Set(float64(a.Offset))
	}
	err := w.run(c.newHandler())
	// What was handled is committed, even when the partition has been taken
	// away: the group refuses it where another member has it already.
	_ = w.commit() // logged, and what was handled comes again
	return err
}

func (w *worker) run(handler Handler) error {
	for w.running.Err() == nil {
		err := w.step(handler)
		switch {
		case errors.Is(err, errOutOfRange):
			return err
		case w.running.Err() != nil:
			return nil
		case err != nil:
			switch {
			case is[*handleError](err): // that was logged
			case w.cfg.Fence != nil && !w.claimed:
				w.failed(opClaim, err)
			default:
				w.failed(opFetch, err)
			}
			_ = w.retry.wait(w.running) // the loop asks why it ended
		}
	}
	return nil
}

// step does the next thing: it claims the partition, finds its start, or reads
// and handles what a fetch brings.
func (w *worker) step(handler Handler) error {
	if w.cfg.Fence != nil && !w.claimed {
		return w.claim()
	}
	if !w.confirmed {
		return w.confirm()
	}
	if w.position < 0 { // nothing is committed
		return w.start()
	}
	if w.vanished {
		return w.revisit()
	}
	if !w.asked && w.cfg.Missed != nil {
		w.askForMissed()
	}
	if len(w.missed) > 0 {
		return w.makeUp(handler)
	}
	idle := true
	err := w.fetch(w.running, func(b *Batch) error {
		idle = false
		w.waiting(w.progress, w.position, w.end, w.written)
		w.showLag(w.position, w.written)
		if len(b.Messages) > 0 {
			if err := w.handle(handler, b); err != nil {
				return err
			}
			w.metrics.messages.Add(float64(w.records))
			w.metrics.bytes.Add(float64(w.size))
		}
		w.handled = b.Next
		// A commit takes the coordinator a few milliseconds: one stands for
		// several batches. When no more come, the last is committed below.
		if time.Since(w.when) >= commitInterval {
			if err := w.commit(); err != nil {
				return err
			}
		}
		w.moved(w.progress, b.Next, w.end, w.written)
		w.showLag(b.Next, w.written)
		return w.running.Err() // what was fetched beyond is left to the next owner
	})
	switch {
	case err == nil && idle:
		w.tellOfTransaction(time.Now())
		err = w.commit()
		fallthrough
	case err == nil:
		w.retry = backoff{}
		w.moved(w.progress, w.position, w.end, w.written)
		w.showLag(w.position, w.written)
	case errors.Is(err, kafka.OffsetOutOfRange) && !is[*handleError](err):
		return w.reset(err)
	case errors.Is(err, kafka.UnknownTopicOrPartition) || errors.Is(err, protocol.ErrNoTopic):
		w.vanished = w.vanished || !is[*handleError](err) // that of the scores is another one
	}
	return err
}

func (w *worker) showLag(position, written int64) {
	w.lag.Set(float64(max(0, written-position)))
}

// tellOfTransaction logs that all that can be read has been, but for records that an
// open transaction holds back: a restart would not help, only its end does.
func (w *worker) tellOfTransaction(now time.Time) {
	switch {
	case w.position < w.end || w.end >= w.written:
		w.held = time.Time{}
	case w.held.IsZero():
		w.held = now
	case now.Sub(w.held) >= longTransaction:
		w.log.Warn("a producer's transaction in the input topic is open; the records from here on wait for its end", "offset", w.end, "records", w.written-w.end)
		w.held = now
	}
}

// revisit asks, where a broker did not know the topic for a while, whether the group
// still has an offset in it. With a topic the broker deletes what groups have committed
// in it: where there is none, this may be another of the name, which confirm decides.
func (w *worker) revisit() error {
	if _, _, err := w.offsets(w.running); err != nil {
		return err
	}
	offsets, err := w.groupOffsets(w.running, []int{w.partition})
	if err != nil {
		return err
	}
	if offsets[0] < 0 {
		w.begin(-1)
		w.claimed = false
	}
	w.vanished = false
	return nil
}

// A handleError is what a handler returned.
type handleError struct{ error }

func (e *handleError) Unwrap() error { return e.error }

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// handle hands a batch over until it is acknowledged, or until the partition is
// no longer ours and the time to drain is over. With transactions there is one
// attempt: what became of it, only the committed offset tells.
func (w *worker) handle(handler Handler, b *Batch) error {
	b.Claim = nil
	if w.cfg.Fence != nil {
		b.Claim = &Claim{Group: w.cfg.Group, Generation: int(w.generation.ID), Member: w.generation.MemberID, Offset: b.Next}
	}
	var retry backoff
	for {
		err := handler.Handle(w.draining, b)
		if err == nil {
			if b.Claim != nil {
				w.handled, w.committed = b.Next, b.Next
				w.reach(b.Next)
				w.at.Set(float64(b.Next))
			}
			return nil
		}
		w.failed(opHandle, fmt.Errorf("handle %s[%d] from offset %d: %w", b.Topic, b.Partition, b.Messages[0].Offset, err))
		if b.Claim != nil {
			w.claimed = false
			// It may be committed all the same: an offset from before must not
			// follow, not even that of a gap.
			w.handled = w.committed
			return &handleError{err}
		}
		if retry.wait(w.running) != nil {
			return &handleError{err} // not committed: it comes again
		}
	}
}

// commit commits what was handled. It tries again until the group has it, or
// the partition has been taken away: a member that the group has given up is
// refused, and learns of it with its next heartbeat.
func (w *worker) commit() error {
	var retry backoff
	for w.handled != w.committed {
		err := w.commits.commit(w.partition, w.handled)
		w.when = time.Now()
		if err == nil {
			w.committed = w.handled
			w.reach(w.handled)
			w.at.Set(float64(w.handled))
			return nil
		}
		err = fmt.Errorf("commit %s[%d] at offset %d: %w", w.topic, w.partition, w.handled, err)
		w.failed(opCommit, err)
		if errors.Is(err, kafka.UnknownTopicOrPartition) {
			w.vanished = true // to commit it in the topic that comes would skip records there
			w.committed = w.handled
			return err
		}
		if retry.wait(w.running) != nil {
			return err
		}
	}
	return nil
}

// start finds where a partition starts for which nothing is committed, and
// commits that: `latest` means the end as it is now, not after a restart.
func (w *worker) start() error {
	first, end, err := w.offsets(w.running)
	if err != nil {
		return err
	}
	begin := end
	if w.cfg.Start == "earliest" || w.unread() {
		begin = first
	}
	w.handled = begin
	if err := w.commit(); err != nil {
		return err
	}
	w.position = begin
	if begin > first {
		w.log.Info("nothing is committed: starting at the end (input.start: latest); what was there before is not scored", "offset", begin, "records_before", begin-first)
	}
	return nil
}

var errOutOfRange = errors.New("the offset is out of range, and the policy is to fail")

// reset follows the policy for an offset that the log does not hold, as refused says.
func (w *worker) reset(refused error) error {
	first, end, err := w.offsets(w.running)
	if err != nil {
		return err
	}
	if w.position >= first && w.position <= end {
		return refused // it has come into range meanwhile, or the broker contradicts itself
	}
	if w.cfg.OutOfRange == "fail" {
		return fmt.Errorf("%s[%d]: offset %d, but the log holds %d to %d: %w", w.topic, w.partition, w.position, first, end, errOutOfRange)
	}
	next := first
	if w.cfg.OutOfRange == "latest" {
		next = end
	}
	lost := max(0, first-w.position)
	w.metrics.gap.Add(float64(lost))
	w.log.Error("the log does not hold the offset; going on elsewhere", "offset", w.position, "log_start", first, "log_end", end, "going_on_at", next, "records_lost_to_retention", lost)
	w.position, w.handled = next, next
	return w.commit()
}

func (c *Consumer) enter(partition int) *progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.left[partition] // a stall goes on, whichever generation it is in
	if p == nil {
		p = &progress{moved: time.Now()}
	}
	c.partitions[partition] = p
	return p
}

func (c *Consumer) exit(partition int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.left, partition)
	if p := c.partitions[partition]; p.position < p.end || p.err != nil {
		c.left[partition] = p
	}
	delete(c.partitions, partition)
	c.metrics.forget(partition)
}

// waiting says that the records from position on are read but not yet handled.
func (c *Consumer) waiting(p *progress, position, end, written int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.position, p.end, p.written = position, end, written
}

func (c *Consumer) moved(p *progress, position, end, written int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if position != p.position || position >= end {
		p.moved = time.Now()
		c.lastMove = p.moved
		c.metrics.lastProgress.SetToCurrentTime()
	}
	p.position, p.end, p.written, p.err = position, end, written, nil
}

// alive says that the partition is at work, though none of the records that wait has moved.
func (c *Consumer) alive(p *progress) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.moved, p.err = time.Now(), nil
	c.lastMove = p.moved
}

// waitsForMemory keeps a wait for memory from counting as a stall, as long as another
// partition moves.
func (c *Consumer) waitsForMemory(p *progress, waits bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.moved = c.movedLast(p)
	p.queued = waits
}

// movedLast returns when a partition moved, or where it waits for memory any did.
func (c *Consumer) movedLast(p *progress) time.Time {
	if p.queued && c.lastMove.After(p.moved) {
		return c.lastMove
	}
	return p.moved
}

func (w *worker) failed(operation string, err error) {
	err = w.Consumer.conn.Denied(err, kafkaconn.Access{Operation: "Read", Topic: w.topic, Group: w.cfg.Group})
	w.metrics.errors.WithLabelValues(operation).Inc()
	w.log.Warn("failed; trying again", "operation", operation, "error", err)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.progress.err = err
}

// Ready returns nil while the consumer is a member of its group.
func (c *Consumer) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.member {
		return because(fmt.Errorf("not a member of consumer group %s since %s", c.cfg.Group, c.since.UTC().Format(time.RFC3339)), c.refused)
	}
	return nil
}

// Lag returns how many offsets of the assigned partitions wait, those of open
// transactions included.
func (c *Consumer) Lag() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	lag := int64(0)
	for _, p := range c.partitions {
		lag += max(0, p.written-p.position)
	}
	return lag
}

// Healthy returns an error where records have waited, or could not even be asked
// for, for longer than maxStall and none moved, or where no membership of the
// group could be had for as long.
func (c *Consumer) Healthy(maxStall time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if !c.member && now.Sub(c.since) > maxStall {
		return because(fmt.Errorf("not a member of consumer group %s, and no record has moved since %s", c.cfg.Group, c.since.UTC().Format(time.RFC3339)), c.refused)
	}
	var all []error
	for partition, p := range c.partitions {
		if moved := c.movedLast(p); (p.position < p.end || p.err != nil) && now.Sub(moved) > maxStall {
			err := fmt.Errorf("%s[%d] stands at offset %d of %d since %s", c.cfg.Topic, partition, p.position, p.end, moved.UTC().Format(time.RFC3339))
			all = append(all, because(err, p.err))
		}
	}
	return errors.Join(all...)
}

// because adds a cause to an error, if there is one.
func because(err, cause error) error {
	if cause == nil {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// backoff is a pause that doubles.
type backoff struct{ next time.Duration }

func (b *backoff) wait(ctx context.Context) error {
	b.next = min(lastPause, max(firstPause, 2*b.next))
	return kafkaconn.Sleep(ctx, b.next)
}
