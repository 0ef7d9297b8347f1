package consumer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A forgetful coordinator tells of other offsets than are committed, as that of Kafka
// 4.3 does where it is elected twice while it loads.
type forgetful struct {
	on       atomic.Bool
	throwOut atomic.Bool // the next member that asks
}

func forget(f *fixture, told func(partition int32) (offset int64)) *forgetful {
	c := new(forgetful)
	c.on.Store(true)
	c.throwOut.Store(true)
	f.Cluster.ControlKey(int16(kmsg.OffsetFetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		f.Cluster.KeepControl()
		if !c.on.Load() {
			return nil, nil, false
		}
		r := request.(*kmsg.OffsetFetchRequest)
		answer := r.ResponseKind().(*kmsg.OffsetFetchResponse)
		for _, topic := range r.Topics {
			out := kmsg.OffsetFetchResponseTopic{Topic: topic.Topic}
			for _, p := range topic.Partitions {
				out.Partitions = append(out.Partitions, kmsg.OffsetFetchResponseTopicPartition{Partition: p, Offset: told(p), LeaderEpoch: -1})
			}
			answer.Topics = append(answer.Topics, out)
		}
		return answer, nil, true
	})
	f.Cluster.ControlKey(int16(kmsg.Heartbeat), func(request kmsg.Request) (kmsg.Response, error, bool) {
		f.Cluster.KeepControl()
		if !c.throwOut.Swap(false) {
			return nil, nil, false
		}
		answer := request.ResponseKind().(*kmsg.HeartbeatResponse)
		answer.ErrorCode = kerr.UnknownMemberID.Code
		return answer, nil, true
	})
	return c
}

func (f *fixture) times(want map[string]int) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for value, n := range want {
		if f.values[value] != n {
			f.t.Errorf("%q came %d times, want %d", value, f.values[value], n)
		}
	}
}

// commitClaims makes the handler commit, as it does with exactly-once delivery.
func (f *fixture) commitClaims() {
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

// What a coordinator says that forgets for a while is not believed: nothing comes
// twice, and nothing is passed over.
func TestForgetfulCoordinator(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		start  string
		fenced bool
		told   int64
		log    string
	}{
		"none":               {"earliest", false, -1, "was 2, and its coordinator now says none"},
		"none, latest":       {"latest", false, -1, "was 2, and its coordinator now says none"},
		"older":              {"earliest", false, 1, "was 2, and its coordinator now says 1"},
		"none, exactly-once": {"earliest", true, -1, "was 2, and its coordinator now says none"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, kafkatest.StartFake(t), 2)
			f.cfg.Start = test.start
			if test.fenced {
				f.commitClaims()
			}
			f.start()
			f.committedIs(0, 0)
			f.committedIs(1, 0)
			f.readThree()
			c := forget(f, func(partition int32) int64 {
				if partition == 1 {
					return 1
				}
				return test.told
			})
			f.says(test.log)
			f.produce(0, "d")
			c.on.Store(false)
			f.received("d")
			f.times(map[string]int{"a": 1, "b": 1, "c": 1, "d": 1})
		})
	}
}

// A coordinator that stays with it is believed in the end: the topic is another one.
// What is committed in the other partition holds.
func TestForgottenForGood(t *testing.T) {
	t.Parallel()
	f := newFixture(t, kafkatest.StartFake(t), 2)
	f.forgetful = 2 * time.Second
	f.start()
	f.readThree()
	forget(f, func(partition int32) int64 { return map[int32]int64{0: -1, 1: 1}[partition] })
	f.says("the group's committed offset has gone back")
	kafkatest.Eventually(t, patience, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.values["b"] < 2 {
			return errors.New("the beginning has not come again")
		}
		return nil
	})
	f.times(map[string]int{"a": 2, "b": 2, "c": 1})
}

// A partition that another member had begins where that one came to, though this
// member never knew: it knows that the group has committed.
func TestForgottenOfAnotherMember(t *testing.T) {
	t.Parallel()
	t.Run("of the first partitions", func(t *testing.T) { testForgottenOfAnotherMember(t, 2) })
	t.Run("of an added one", func(t *testing.T) { testForgottenOfAnotherMember(t, 1) })
}

func testForgottenOfAnotherMember(t *testing.T, partitions int) {
	t.Parallel()
	f := newFixture(t, kafkatest.StartFake(t), partitions)
	f.cfg.Start = "latest"
	f.produce(0, "older")
	first, _ := f.start()
	f.committedIs(0, 1)
	if partitions == 1 {
		f.add(1)
		f.produce(1, "old")
		f.received("old")
		f.committedIs(1, 1)
		kafkatest.Eventually(t, patience, func() error {
			first.mu.Lock()
			defer first.mu.Unlock()
			if first.had != 2 {
				return errors.New("the first member has not looked at what the group has")
			}
			return nil
		})
	} else {
		f.committedIs(1, 0)
	}
	f.connect("z") // the members get partitions in the order of their client ids
	var stop func() error
	for stop == nil {
		_, stop = f.start()
		if has(t, first, 1)[0] != 0 { // the fake lists partitions in any order
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			has(t, first, 2)
			stop = nil
		}
	}
	f.joining(2) // what the group has had is known still
	c := forget(f, func(int32) int64 { return -1 })
	c.throwOut.Store(false)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	f.says("was committed, and its coordinator now says none")
	f.produce(0, "a")
	f.produce(1, "b")
	c.on.Store(false)
	f.received("a", "b")
	f.times(map[string]int{"a": 1, "b": 1})
}

// joining makes the coordinator say n times that the group's members are joining.
func (f *fixture) joining(n int64) {
	f.t.Helper()
	var said atomic.Int64
	f.Cluster.ControlKey(int16(kmsg.DescribeGroups), func(request kmsg.Request) (kmsg.Response, error, bool) {
		f.Cluster.KeepControl()
		if said.Load() == n {
			return nil, nil, false
		}
		said.Add(1)
		answer := request.ResponseKind().(*kmsg.DescribeGroupsResponse)
		group := kmsg.NewDescribeGroupsResponseGroup()
		group.Group, group.State = f.cfg.Group, "PreparingRebalance"
		answer.Groups = append(answer.Groups, group)
		return answer, nil, true
	})
	kafkatest.Eventually(f.t, patience, func() error {
		if got := said.Load(); got < n {
			return fmt.Errorf("the group was described %d times, want %d", got, n)
		}
		return nil
	})
}

// has waits until a consumer has n partitions, and returns which.
func has(t *testing.T, c *Consumer, n int) (partitions []int) {
	t.Helper()
	kafkatest.Eventually(t, patience, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if partitions = slices.Collect(maps.Keys(c.reached)); len(partitions) != n {
			return fmt.Errorf("the consumer has partitions %v, want %d", partitions, n)
		}
		return nil
	})
	return partitions
}

// add adds partitions to the topic, of which some have a record.
func (f *fixture) add(n int) {
	f.t.Helper()
	details, err := f.Admin().ListTopics(f.t.Context(), f.cfg.Topic)
	if err != nil {
		f.t.Fatal(err)
	}
	answer, err := f.Admin().CreatePartitions(f.t.Context(), n, f.cfg.Topic)
	if err = errors.Join(err, answer.Error()); err != nil {
		f.t.Fatal(err)
	}
	n += len(details[f.cfg.Topic].Partitions)
	kafkatest.Eventually(f.t, patience, func() error {
		f.Client().ForceMetadataRefresh() // it knows those of before
		leader, _, err := f.Client().PartitionLeader(f.cfg.Topic, int32(n-1))
		if err == nil && leader < 0 {
			err = fmt.Errorf("partition %d has no leader", n-1)
		}
		return err
	})
}

// offline makes the partitions of a topic that a function names have no leader.
func offline(f *fixture, partition func(int32) bool) {
	f.Cluster.ControlKey(int16(kmsg.ListOffsets), func(request kmsg.Request) (kmsg.Response, error, bool) {
		f.Cluster.KeepControl()
		r := request.(*kmsg.ListOffsetsRequest)
		if len(r.Topics) != 1 || r.Topics[0].Topic != f.cfg.Topic || len(r.Topics[0].Partitions) != 1 || !partition(r.Topics[0].Partitions[0].Partition) {
			return nil, nil, false
		}
		answer := r.ResponseKind().(*kmsg.ListOffsetsResponse)
		p := kmsg.NewListOffsetsResponseTopicPartition()
		p.Partition, p.ErrorCode = r.Topics[0].Partitions[0].Partition, kerr.LeaderNotAvailable.Code
		topic := kmsg.NewListOffsetsResponseTopic()
		topic.Topic, topic.Partitions = f.cfg.Topic, append(topic.Partitions, p)
		answer.Topics = append(answer.Topics, topic)
		return answer, nil, true
	})
}

// generation waits until the group has had as many generations, by the log of its member.
func (f *fixture) generation(n int) { f.t.Helper(); f.says(fmt.Sprintf("generation=%d ", n)) }

// A partition that has no leader when the group begins begins as input.start says when
// it has one, in whichever generation: nothing was committed, so nothing is forgotten.
func TestPartitionWithoutLeaderBeginsWhereItShould(t *testing.T) {
	t.Parallel()
	f := newFixture(t, kafkatest.StartFake(t), 2)
	f.cfg.Start, f.forgetful = "latest", time.Second
	f.produce(1, "old")
	var away atomic.Bool
	away.Store(true)
	offline(f, func(partition int32) bool { return partition == 1 && away.Load() })
	f.start()
	f.committedIs(0, 0)
	f.says("list offsets of " + f.cfg.Topic + "[1]")
	evict(f)
	f.generation(2)
	time.Sleep(watchInterval + time.Second) // another generation, where it is doubted
	away.Store(false)
	f.committedIs(1, 1)
	f.produce(1, "new")
	f.received("new")
	f.times(map[string]int{"old": 0, "new": 1})
	if log := f.logged(); strings.Contains(log, "asking again") || strings.Contains(log, "generation=3") {
		t.Error("an offset was doubted that never was")
	}
}

// evict makes the group throw its members out, once.
func evict(f *fixture) {
	f.Cluster.ControlKey(int16(kmsg.Heartbeat), func(request kmsg.Request) (kmsg.Response, error, bool) {
		answer := request.ResponseKind().(*kmsg.HeartbeatResponse)
		answer.ErrorCode = kerr.UnknownMemberID.Code
		return answer, nil, true
	})
}

// While a partition that another member had has no leader, the group is not joined anew
// for it: that ends all other partitions' batches.
func TestPartitionWithoutLeaderEndsNoGeneration(t *testing.T) {
	t.Parallel()
	f := newFixture(t, kafkatest.StartFake(t), 2)
	f.cfg.Start, f.forgetful = "latest", time.Second
	first, _ := f.start()
	f.committedIs(1, 0)
	_, stop := f.start()
	has(t, first, 1)
	c := forget(f, func(int32) int64 { return -1 })
	c.throwOut.Store(false)
	var away atomic.Bool
	away.Store(true)
	offline(f, func(int32) bool { return away.Load() })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	f.generation(3)
	time.Sleep(2*watchInterval + time.Second)
	if strings.Contains(f.logged(), "generation=4") {
		t.Error("the group was joined anew")
	}
	away.Store(false)
	f.says("generation=4")
}

// A partition that was added while nobody ran is newer than the group: it begins at its
// first record. One that another member of the first generation has not yet begun is not.
func TestLatestBeginsAtTheFirstRecordOfAddedPartitionsAlone(t *testing.T) {
	t.Parallel()
	f := newFixture(t, kafkatest.Start(t), 2)
	f.cfg.Start = "latest"
	f.produce(1, "old")
	f.commit(0) // of partition 0, as another member
	_, stop := f.start()
	f.committedIs(1, 1)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	f.add(2)
	f.commitOf(3, 0) // by another member, before the other one
	f.produce(2, "added")
	f.start()
	f.received("added")
	f.times(map[string]int{"old": 0, "added": 1})
}
