package sink

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/segmentio/kafka-go"
)

const (
	// transactionTimeout is when the coordinator aborts a transaction that its
	// owner has left. A new owner aborts it at once.
	transactionTimeout = time.Minute
	// coordinatorPatience bounds the attempts at one call to a coordinator.
	coordinatorPatience = 15 * time.Second
	// Its last markers are written after a transaction has ended; the next one
	// has to wait for them, a millisecond or a few.
	firstCoordinatorPause, lastCoordinatorPause = 2 * time.Millisecond, 500 * time.Millisecond
)

// errNotFenced is a write without a producer id: before Fence, or after a
// failure that only it can mend.
var errNotFenced = errors.New("the transaction is over: another owner has fenced it, or it has failed, and the records since the last commit come again")

// A transaction is what a writer has put into the open one.
type transaction struct {
	targets map[target]bool
	letters []Letter // what is counted of them
	late    bool     // a call to a coordinator was not answered, and may be carried out yet
}

// An Offset is what a member of a consumer group commits with a transaction.
type Offset struct {
	Topic      string
	Partition  int
	Offset     int64
	Group      string
	Generation int
	Member     string
}

func (w *writer) transactional() bool { return w.cfg.TransactionalID != "" }

// transactionalID returns the id of the writer's transactions, or "".
func (w *writer) transactionalID() string {
	if !w.transactional() {
		return ""
	}
	return w.cfg.TransactionalID + "." + strconv.Itoa(w.partition)
}

// Fence makes this producer the only one that can write to and commit the
// transactions of an input partition. It aborts one that is open, and waits for
// one that is being committed; then the group's committed offset is final.
func (p *Producer) Fence(ctx context.Context, partition int) error {
	w := p.writer(partition)
	defer w.mu.Unlock()
	return w.fence(ctx)
}

func (w *writer) fence(ctx context.Context) error {
	w.id, w.tx = -1, transaction{}
	return w.call(ctx, "take over transactional id "+w.transactionalID(), kafkaconn.Access{}, func() error {
		if err := w.lookUp(ctx); err != nil {
			return err
		}
		answer, err := w.conn.Kafka.InitProducerID(ctx, &kafka.InitProducerIDRequest{
			TransactionalID: w.transactionalID(), TransactionTimeoutMs: int(transactionTimeout.Milliseconds()), ProducerID: -1, ProducerEpoch: -1,
		})
		if err == nil {
			err = answer.Error
		}
		switch {
		case errors.Is(err, kafka.InvalidTransactionTimeout):
			return fmt.Errorf("the broker's transaction.max.timeout.ms is below %v: %w", transactionTimeout, err)
		case err != nil:
			return err
		}
		w.id, w.epoch, w.next = int64(answer.Producer.ProducerID), int16(answer.Producer.ProducerEpoch), make(map[target]int32)
		w.last, w.releasing = owner{w.id, w.epoch}, false
		return nil
	})
}

// An owner of a transactional id is known by the producer id and epoch that its
// coordinator gave it.
type owner struct {
	id    int64
	epoch int16
}

// lookUp keeps what becomes of the last transaction, since a coordinator that
// gives a new epoch no longer says.
func (w *writer) lookUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	answer, err := w.conn.Transport.RoundTrip(ctx, w.conn.Kafka.Addr, &describeRequest{id: w.transactionalID(), clientID: w.conn.ClientID})
	if err != nil {
		if errors.Is(err, kafka.UnsupportedVersion) { // before Kafka 3.0
			return nil
		}
		return fmt.Errorf("ask for the last transaction: %w", err)
	}
	described := answer.(*describeResponse)
	if code := kafka.Error(described.errorCode); code != 0 && passing(code) {
		return fmt.Errorf("ask for the last transaction: %w", code)
	}
	switch {
	case described.state == "Empty":
		// Taken over since, and nothing else. What was seen before that holds if it was so
		// once only: by us, whether its answer came or not, or by another who has begun
		// nothing. Else he may have had a transaction of his own.
		once := owner{w.last.id, w.last.epoch + 1}
		w.committed = w.committed && (described.owner == w.last || described.owner == once)
	case described.state == "PrepareCommit", described.state == "CompleteCommit":
		w.committed = true
	case described.state == "Ongoing" && w.releasing && described.owner == w.last:
		// What Release has begun. To take over would abort it.
		if err := w.endAs(ctx, w.last, w.committed); err != nil {
			return fmt.Errorf("end the transaction that releases an offset: %w", err)
		}
	default:
		// One that is open is aborted by who takes over. Of none a coordinator tells where
		// the id is new, or else taking over tells.
		w.committed = false
	}
	w.last = described.owner
	return nil
}

// Release ends the last transaction of an input partition once more, where the
// group still holds its offset back after Fence, in the same way: what was
// committed is committed, all else is aborted, and so is one of which the
// coordinator no longer tells, since another instance took over in between.
// Fence waits for it.
//
// Kafka 4.2 and 4.3 need that: a coordinator that takes over while a partition
// has no leader, since the only replica restarts, takes the partition for
// deleted and ends the transaction without its marker (KAFKA-20734).
func (p *Producer) Release(ctx context.Context, partition int, group string) error {
	w := p.writer(partition)
	defer w.mu.Unlock()
	if w.id < 0 {
		return errNotFenced
	}
	w.log.Warn("the group holds back the offset of a transaction that has ended: a marker is missing; writing it again", "partition", partition, "committed", w.committed)
	w.releasing = true
	if err := w.endAgain(ctx, group); err != nil {
		w.id = -1
		return fmt.Errorf("release the offset of partition %d in group %s: %w", partition, group, err)
	}
	w.releasing = false
	return nil
}

func (w *writer) endAgain(ctx context.Context, group string) error {
	for _, topic := range []string{w.cfg.Topic, w.cfg.DeadLetterTopic} {
		to, err := w.target(ctx, topic)
		if err == nil {
			err = w.include(ctx, to)
		}
		if err != nil {
			return err
		}
	}
	if err := w.addOffsets(ctx, group); err != nil {
		return err
	}
	return w.end(ctx, w.committed)
}

// Commit adds an offset to the open transaction of its partition, and commits
// both: a reader of committed records sees all that was published since the
// last commit, or none. After an error it is not known which; Fence, and then
// the group's committed offset, tell.
func (p *Producer) Commit(ctx context.Context, o Offset) error {
	w := p.writer(o.Partition)
	defer w.mu.Unlock()
	start := time.Now()
	if err := w.commit(ctx, o); err != nil {
		w.id = -1
		p.metrics.transactions.WithLabelValues(resultFailed).Inc()
		return fmt.Errorf("commit %s[%d] at offset %d with its results: %w", o.Topic, o.Partition, o.Offset, err)
	}
	p.metrics.transactions.WithLabelValues(resultCommitted).Inc()
	p.metrics.commitDuration.Observe(time.Since(start).Seconds())
	for i := range w.tx.letters {
		p.metrics.count(&w.tx.letters[i])
	}
	if w.tx.late {
		// What comes late from this transaction would end the next one, or put its offset
		// in the place of that one's: with a new epoch it is refused.
		if err := w.fence(ctx); err != nil {
			w.log.Warn("not fenced after a transaction with calls that were not answered; the next one fails first", "partition", o.Partition, "error", err)
		}
	}
	w.tx = transaction{}
	return nil
}

func (w *writer) commit(ctx context.Context, o Offset) error {
	if w.id < 0 {
		return errNotFenced
	}
	if err := w.addOffsets(ctx, o.Group); err != nil {
		return err
	}
	err := w.call(ctx, "commit the offset in the transaction", kafkaconn.Access{Operation: "Read", Topic: o.Topic, Group: o.Group}, func() error {
		answer, err := w.conn.Kafka.TxnOffsetCommit(ctx, &kafka.TxnOffsetCommitRequest{
			TransactionalID: w.transactionalID(), ProducerID: int(w.id), ProducerEpoch: int(w.epoch),
			GroupID: o.Group, GenerationID: o.Generation, MemberID: o.Member,
			Topics: map[string][]kafka.TxnOffsetCommit{o.Topic: {{Partition: o.Partition, Offset: o.Offset}}},
		})
		if err != nil {
			return err
		}
		all := answer.Topics[o.Topic]
		if len(all) != 1 {
			return fmt.Errorf("the coordinator answered for %d partitions, expected 1", len(all))
		}
		return all[0].Error
	})
	if err != nil {
		return err
	}
	return w.end(ctx, true)
}

// addOffsets adds the offsets of a group to the transaction.
func (w *writer) addOffsets(ctx context.Context, group string) error {
	return w.call(ctx, "add the offset to the transaction", kafkaconn.Access{Group: group}, func() error {
		answer, err := w.conn.Kafka.AddOffsetsToTxn(ctx, &kafka.AddOffsetsToTxnRequest{
			TransactionalID: w.transactionalID(), ProducerID: int(w.id), ProducerEpoch: int(w.epoch), GroupID: group,
		})
		if err != nil {
			return err
		}
		return answer.Error
	})
}

// end commits the transaction, or aborts it.
func (w *writer) end(ctx context.Context, commit bool) error {
	return w.call(ctx, "end the transaction", kafkaconn.Access{}, func() error {
		return w.endAs(ctx, owner{w.id, w.epoch}, commit)
	})
}

// endAs makes one attempt to end the transaction of an owner.
func (w *writer) endAs(ctx context.Context, as owner, commit bool) error {
	answer, err := w.conn.Kafka.EndTxn(ctx, &kafka.EndTxnRequest{
		TransactionalID: w.transactionalID(), ProducerID: int(as.id), ProducerEpoch: int(as.epoch), Committed: commit,
	})
	if err != nil {
		return err
	}
	return answer.Error
}

// include adds an output partition to the transaction, where it isn't in it.
func (w *writer) include(ctx context.Context, to target) error {
	if w.tx.targets[to] {
		return nil
	}
	err := w.call(ctx, "add the partition to the transaction", kafkaconn.Access{Operation: "Write", Topic: to.topic}, func() error {
		answer, err := w.conn.Kafka.AddPartitionsToTxn(ctx, &kafka.AddPartitionsToTxnRequest{
			TransactionalID: w.transactionalID(), ProducerID: int(w.id), ProducerEpoch: int(w.epoch),
			Topics: map[string][]kafka.AddPartitionToTxn{to.topic: {{Partition: to.partition}}},
		})
		if err != nil {
			return err
		}
		all := answer.Topics[to.topic]
		if len(all) != 1 {
			return fmt.Errorf("the coordinator answered for %d partitions, expected 1", len(all))
		}
		return all[0].Error
	})
	if err != nil {
		w.id = -1
		return err
	}
	if w.tx.targets == nil {
		w.tx.targets = make(map[target]bool)
	}
	w.tx.targets[to] = true
	return nil
}

// call calls a coordinator again and again while the failure is a passing one:
// every call may be repeated. to is what it needs access to, beside the transactional id.
func (w *writer) call(ctx context.Context, what string, to kafkaconn.Access, fn func() error) error {
	to.TransactionalID = w.cfg.TransactionalID
	deadline := time.Now().Add(coordinatorPatience)
	pause := firstCoordinatorPause
	for {
		err := fn()
		if err == nil {
			return nil
		}
		err = fmt.Errorf("%s: %w", what, w.conn.Denied(err, to))
		w.tx.late = w.tx.late || unanswered(err)
		if !passing(err) || time.Now().After(deadline) {
			return err
		}
		if !errors.Is(err, kafka.ConcurrentTransactions) { // that is the rule, not a failure
			w.metrics.errors.WithLabelValues(kindTransaction).Inc()
			w.log.Debug("coordinator not ready; trying again", "partition", w.partition, "error", err)
		}
		if kafkaconn.Sleep(ctx, pause) != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		pause = min(lastCoordinatorPause, 2*pause)
	}
}

// passing says that the same call may succeed later. What isn't an answer of
// the broker is a failure of the way there.
func passing(err error) bool {
	code, ok := errors.AsType[kafka.Error](err)
	return !ok || code == kafka.ConcurrentTransactions || code.Temporary()
}

// unanswered says that a call may have been carried out for all its error, now
// or later: the broker did not answer, or does not say.
func unanswered(err error) bool {
	code, ok := errors.AsType[kafka.Error](err)
	return !ok || code == kafka.RequestTimedOut || code == kafka.NotEnoughReplicasAfterAppend
}
