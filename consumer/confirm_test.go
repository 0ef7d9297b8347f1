package consumer

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A coordinator that forgets for a while what was committed, as Kafka 4.3 does where it
// is elected twice while it loads, is not believed: nothing comes twice.
func TestForgetfulCoordinator(t *testing.T) {
	for _, fenced := range []bool{false, true} {
		name := "at-least-once"
		if fenced {
			name = "exactly-once"
		}
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, kafkatest.StartFake(t), 1)
			if fenced { // the handler commits
				f.cfg.Fence = func(context.Context, int) error { return nil }
				f.cfg.Release = func(context.Context, int, string) error { return nil }
				f.handle = func(ctx context.Context, b *Batch) error {
					answer, err := f.conn.Kafka.OffsetCommit(ctx, &kafka.OffsetCommitRequest{
						GroupID: b.Claim.Group, GenerationID: b.Claim.Generation, MemberID: b.Claim.Member,
						Topics: map[string][]kafka.OffsetCommit{b.Topic: {{Partition: b.Partition, Offset: b.Claim.Offset}}},
					})
					if err == nil {
						err = answer.Topics[b.Topic][0].Error
					}
					return err
				}
			}
			f.start()
			f.produce(0, "a", "b")
			f.received("a", "b")
			f.committedIs(0, 2)
			var forgets, throwOut atomic.Bool
			forgets.Store(true)
			throwOut.Store(true)
			f.Cluster.ControlKey(int16(kmsg.OffsetFetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
				f.Cluster.KeepControl()
				if !forgets.Load() {
					return nil, nil, false
				}
				r := request.(*kmsg.OffsetFetchRequest)
				answer := r.ResponseKind().(*kmsg.OffsetFetchResponse)
				for _, topic := range r.Topics {
					out := kmsg.OffsetFetchResponseTopic{Topic: topic.Topic}
					for _, p := range topic.Partitions {
						out.Partitions = append(out.Partitions, kmsg.OffsetFetchResponseTopicPartition{Partition: p, Offset: -1, LeaderEpoch: -1})
					}
					answer.Topics = append(answer.Topics, out)
				}
				return answer, nil, true
			})
			f.Cluster.ControlKey(int16(kmsg.Heartbeat), func(request kmsg.Request) (kmsg.Response, error, bool) {
				f.Cluster.KeepControl()
				if !throwOut.Swap(false) {
					return nil, nil, false
				}
				answer := request.ResponseKind().(*kmsg.HeartbeatResponse)
				answer.ErrorCode = kerr.UnknownMemberID.Code
				return answer, nil, true
			})
			kafkatest.Eventually(t, patience, func() error {
				if !strings.Contains(f.logged(), "was 2, and its coordinator now says none") {
					return errors.New("the log does not say that the coordinator forgot")
				}
				return nil
			})
			f.produce(0, "c")
			forgets.Store(false)
			f.received("c")
			for _, value := range []string{"a", "b", "c"} {
				f.mu.Lock()
				if n := f.values[value]; n != 1 {
					t.Errorf("%q came %d times", value, n)
				}
				f.mu.Unlock()
			}
		})
	}
}
