package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
)

const (
	defaultSessionTimeout = 30 * time.Second
	defaultDrainTimeout   = 15 * time.Second
	heartbeatInterval     = 3 * time.Second
	watchInterval         = 5 * time.Second
	joinBackoff           = time.Second
	leaveTimeout          = 5 * time.Second
	firstPause, lastPause = 100 * time.Millisecond, 10 * time.Second
)

// A Consumer is one member of a consumer group.
type Consumer struct {
	cfg        Config
	conn       *kafkaconn.Client
	newHandler func(partition int) Handler
	metrics    *metrics
	log        *slog.Logger

	mu         sync.Mutex
	member     bool      // of a generation
	since      time.Time // when that last changed
	partitions map[int]*progress
	known      int // partitions of the topic when it was first seen
	fatal      error
}

// progress is how far a worker has come.
type progress struct {
	position, end int64
	moved         time.Time // when the position last moved, or nothing waited
	err           error     // of the last attempt, or nil
}

// New checks the configuration. It doesn't connect.
func New(cfg Config, conn *kafkaconn.Client, newHandler func(partition int) Handler, reg prometheus.Registerer, log *slog.Logger) (*Consumer, error) {
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
		cfg: cfg, conn: conn, newHandler: newHandler, metrics: newMetrics(reg), log: log,
		since: time.Now(), partitions: make(map[int]*progress),
	}, nil
}

// Run reads until ctx is done. Then every worker finishes the batch in hand and
// commits, and the member leaves the group, all within Config.DrainTimeout.
// What fails is tried again, but for an offset that is out of range where the
// policy is to fail.
func (c *Consumer) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	group, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: c.cfg.Group, Brokers: c.conn.Brokers, Dialer: c.conn.Dialer, Topics: []string{c.cfg.Topic},
		GroupBalancers:    []kafka.GroupBalancer{kafka.RangeGroupBalancer{}},
		HeartbeatInterval: min(heartbeatInterval, c.cfg.SessionTimeout/3), SessionTimeout: c.cfg.SessionTimeout,
		RebalanceTimeout: max(c.cfg.SessionTimeout, 2*c.cfg.DrainTimeout), JoinGroupBackoff: joinBackoff,
		WatchPartitionChanges: true, PartitionWatchInterval: watchInterval, Timeout: 10 * time.Second,
	})
	if err != nil {
		return fmt.Errorf("consumer group %s: %w", c.cfg.Group, err)
	}
	for ctx.Err() == nil {
		generation, err := group.Next(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			c.metrics.errors.WithLabelValues(opJoin).Inc()
			c.log.Warn("consumer group not joined; trying again", "group", c.cfg.Group, "error", err)
			continue
		}
		c.serve(ctx, generation, stop)
	}
	if err := c.leave(group); err != nil {
		c.log.Warn("consumer group not left in time; its partitions move after the session timeout", "group", c.cfg.Group, "error", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fatal
}

// leave closes the group. kafka-go's Close may hang on a dead connection.
func (c *Consumer) leave(group *kafka.ConsumerGroup) error {
	closed := make(chan error, 1)
	go func() { closed <- group.Close() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(leaveTimeout):
		return fmt.Errorf("no answer within %v", leaveTimeout)
	}
}

// serve runs a worker for each assigned partition until the generation ends, or
// until ctx is done and every worker has drained.
func (c *Consumer) serve(ctx context.Context, generation *kafka.Generation, stop context.CancelCauseFunc) {
	assigned := generation.Assignments[c.cfg.Topic]
	c.metrics.rebalances.Inc()
	c.metrics.assigned.Set(float64(len(assigned)))
	c.setMember(true)
	c.log.Info("partitions assigned", "topic", c.cfg.Topic, "group", c.cfg.Group, "generation", generation.ID, "partitions", len(assigned))
	ended := make(chan struct{})
	generation.Start(func(g context.Context) {
		<-g.Done()
		close(ended)
	})
	var workers sync.WaitGroup
	for _, a := range assigned {
		workers.Add(1)
		generation.Start(func(g context.Context) {
			func() {
				defer workers.Done()
				if err := c.work(ctx, g, generation, a); err != nil {
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
	workers.Wait()
	c.setMember(false)
	c.metrics.assigned.Set(0)
}

func (c *Consumer) setMember(member bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.member != member {
		c.member, c.since = member, time.Now()
	}
}

// work reads one partition until ctx or the generation g is done. The error is
// one that ends the consumer.
func (c *Consumer) work(ctx, g context.Context, generation *kafka.Generation, a kafka.PartitionAssignment) error {
	log := c.log.With("topic", c.cfg.Topic, "partition", a.ID)
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(g, func() { cancel(context.Cause(g)) })()
	// The batch in hand may still be finished for a while.
	draining, abandon := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abandon(nil)
	defer context.AfterFunc(running, func() {
		time.AfterFunc(c.cfg.DrainTimeout, func() { abandon(errors.New("the drain timeout is over")) })
	})()

	r := &reader{
		conn: c.conn, topic: c.cfg.Topic, partition: a.ID, position: a.Offset,
		maxRecords: c.cfg.MaxRecords, maxBytes: c.cfg.MaxBytes, maxMessage: c.cfg.MaxMessageBytes, maxWait: c.cfg.MaxWait,
	}
	p := c.enter(a.ID)
	defer c.exit(a.ID)
	retry := backoff{}
	for a.Offset < 0 { // nothing is committed
		err := c.begin(running, r)
		if err == nil {
			break
		}
		if c.failed(p, log, opFetch, err); retry.wait(running) != nil {
			return nil
		}
	}
	retry = backoff{}
	handler := c.newHandler(a.ID)
	lag := c.metrics.lag.WithLabelValues(strconv.Itoa(a.ID))
	committed := func(offset int64) { c.metrics.committed.WithLabelValues(strconv.Itoa(a.ID)).Set(float64(offset)) }
	if a.Offset >= 0 {
		committed(a.Offset)
	}
	for running.Err() == nil {
		err := r.fetch(running, func(b *Batch, next int64) error {
			if len(b.Messages) > 0 {
				// While the handler waits for the brokers, these records wait.
				c.waiting(p, b.Messages[0].Offset, r.end)
				lag.Set(float64(r.end - b.Messages[0].Offset))
				if err := c.handle(running, draining, p, handler, b, log); err != nil {
					return err
				}
			}
			if err := generation.CommitOffsets(map[string]map[int]int64{c.cfg.Topic: {a.ID: next}}); err != nil {
				c.metrics.errors.WithLabelValues(opCommit).Inc()
				// What was handled comes again, to whoever has the partition then.
				return fmt.Errorf("commit %s[%d] at offset %d: %w", c.cfg.Topic, a.ID, next, err)
			}
			c.count(b)
			committed(next)
			c.moved(p, next, r.end)
			lag.Set(float64(max(0, r.end-next)))
			return running.Err() // what was fetched beyond is left to the next owner
		})
		switch {
		case err == nil:
			retry = backoff{}
			c.moved(p, r.position, r.end)
			lag.Set(float64(max(0, r.end-r.position)))
		case running.Err() != nil:
			return nil
		case errors.Is(err, kafka.OffsetOutOfRange):
			if err := c.reset(running, r, log); err != nil {
				if errors.Is(err, errOutOfRange) {
					return err
				}
				c.failed(p, log, opFetch, err)
				_ = retry.wait(running)
			}
		default:
			c.failed(p, log, opFetch, err)
			_ = retry.wait(running)
		}
	}
	return nil
}

// handle hands a batch over until it is acknowledged, or until the partition is
// no longer ours and the time to drain is over.
func (c *Consumer) handle(running, draining context.Context, p *progress, handler Handler, b *Batch, log *slog.Logger) error {
	retry := backoff{}
	for {
		err := handler.Handle(draining, b)
		if err == nil {
			return nil
		}
		c.failed(p, log, opHandle, err)
		if running.Err() != nil || draining.Err() != nil {
			return err // not committed: it comes again
		}
		if retry.wait(running) != nil {
			return err
		}
	}
}

// begin finds where a partition starts for which nothing is committed.
func (c *Consumer) begin(ctx context.Context, r *reader) error {
	meta, err := c.conn.Kafka.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{c.cfg.Topic}})
	if err != nil {
		return fmt.Errorf("read metadata of %s: %w", c.cfg.Topic, err)
	}
	if len(meta.Topics) != 1 || meta.Topics[0].Error != nil {
		return fmt.Errorf("read metadata of %s: %w", c.cfg.Topic, errors.Join(kafka.UnknownTopicOrPartition))
	}
	c.mu.Lock()
	if c.known == 0 {
		c.known = len(meta.Topics[0].Partitions)
	}
	added := r.partition >= c.known // while we ran: nobody has read its beginning
	c.mu.Unlock()
	first, end, err := r.offsets(ctx)
	if err != nil {
		return err
	}
	if r.position = end; c.cfg.Start == "earliest" || added {
		r.position = first
	}
	return nil
}

var errOutOfRange = errors.New("the offset is out of range, and the policy is to fail")

// reset follows the policy for an offset that the log does not hold.
func (c *Consumer) reset(ctx context.Context, r *reader, log *slog.Logger) error {
	first, end, err := r.offsets(ctx)
	if err != nil {
		return err
	}
	if r.position >= first && r.position <= end {
		return nil // it has come into range meanwhile
	}
	if c.cfg.OutOfRange == "fail" {
		return fmt.Errorf("%s[%d]: offset %d, but the log holds %d to %d: %w", r.topic, r.partition, r.position, first, end, errOutOfRange)
	}
	next := first
	if c.cfg.OutOfRange == "latest" {
		next = end
	}
	lost := max(0, first-r.position)
	c.metrics.gap.Add(float64(lost))
	log.Error("the log does not hold the offset; going on elsewhere", "offset", r.position, "log_start", first, "log_end", end, "going_on_at", next, "records_lost_to_retention", lost)
	r.position = next
	return nil
}

func (c *Consumer) enter(partition int) *progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &progress{moved: time.Now()}
	c.partitions[partition] = p
	return p
}

func (c *Consumer) exit(partition int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.partitions, partition)
	c.metrics.forget(partition)
}

// waiting says that the records from position on are read but not yet handled.
func (c *Consumer) waiting(p *progress, position, end int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.position, p.end = position, end
}

func (c *Consumer) moved(p *progress, position, end int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if position != p.position || position >= end {
		p.moved = time.Now()
		c.metrics.lastProgress.SetToCurrentTime()
	}
	p.position, p.end, p.err = position, end, nil
}

func (c *Consumer) failed(p *progress, log *slog.Logger, operation string, err error) {
	c.metrics.errors.WithLabelValues(operation).Inc()
	log.Warn("failed; trying again", "operation", operation, "error", err)
	c.mu.Lock()
	defer c.mu.Unlock()
	p.err = err
}

func (c *Consumer) count(b *Batch) {
	size := 0
	for i := range b.Messages {
		m := &b.Messages[i]
		size += len(m.Key) + len(m.Value)
	}
	c.metrics.messages.Add(float64(len(b.Messages)))
	c.metrics.bytes.Add(float64(size))
}

// Ready returns nil while the consumer is a member of its group.
func (c *Consumer) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.member {
		return fmt.Errorf("not a member of consumer group %s since %s", c.cfg.Group, c.since.UTC().Format(time.RFC3339))
	}
	return nil
}

// Lag returns how many offsets of the assigned partitions wait.
func (c *Consumer) Lag() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	lag := int64(0)
	for _, p := range c.partitions {
		lag += max(0, p.end-p.position)
	}
	return lag
}

// Healthy returns an error where records have waited for longer than maxStall
// and none moved, or where no membership of the group could be had for as long.
func (c *Consumer) Healthy(maxStall time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if !c.member && now.Sub(c.since) > maxStall {
		return fmt.Errorf("not a member of consumer group %s since %s", c.cfg.Group, c.since.UTC().Format(time.RFC3339))
	}
	var all []error
	for partition, p := range c.partitions {
		if p.position < p.end && now.Sub(p.moved) > maxStall {
			err := fmt.Errorf("%s[%d] stands at offset %d of %d since %s", c.cfg.Topic, partition, p.position, p.end, p.moved.UTC().Format(time.RFC3339))
			if p.err != nil {
				err = fmt.Errorf("%w: %w", err, p.err)
			}
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// backoff is a pause that doubles.
type backoff struct{ next time.Duration }

func (b *backoff) wait(ctx context.Context) error {
	b.next = min(lastPause, max(firstPause, 2*b.next))
	return kafkaconn.Sleep(ctx, b.next)
}
