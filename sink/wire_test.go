package sink

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// answering takes a request, and has its answer ready.
type answering struct{ io.Reader }

func (answering) Write(p []byte) (int, error) { return len(p), nil }

// An answer that is accepted says what another decoder finds in it.
func FuzzResponse(f *testing.F) {
	const topic, id = "scores", "oodmon.group/topic.3"
	sized := func(body []byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	produced := kmsg.NewPtrProduceResponse()
	produced.Version = maxProduceVersion
	partition := kmsg.NewProduceResponseTopicPartition()
	partition.Partition, partition.ErrorCode = 2, 29
	of := kmsg.NewProduceResponseTopic()
	of.Topic, of.Partitions = topic, []kmsg.ProduceResponseTopicPartition{partition}
	produced.Topics = []kmsg.ProduceResponseTopic{of}
	f.Add(sized(produced.AppendTo(make([]byte, 4))), false)
	described := kmsg.NewPtrDescribeTransactionsResponse()
	state := kmsg.NewDescribeTransactionsResponseTransactionState()
	state.TransactionalID, state.State, state.ProducerID, state.ProducerEpoch = id, "CompleteCommit", 7, 8
	described.TransactionStates = []kmsg.DescribeTransactionsResponseTransactionState{state}
	f.Add(sized(described.AppendTo(make([]byte, 5))), true)
	f.Add([]byte{0x7f, 0xff, 0xff, 0xff}, false)
	f.Add([]byte{0, 0, 0, 2, 0, 0}, true)
	f.Fuzz(func(t *testing.T, data []byte, describes bool) {
		if describes {
			r := &describeRequest{id: id, known: true}
			answer, err := r.RawExchange(answering{bytes.NewReader(data)})
			if err != nil {
				return
			}
			got := answer.(*describeResponse)
			again := kmsg.NewPtrDescribeTransactionsResponse()
			state := kmsg.NewDescribeTransactionsResponseTransactionState()
			state.TransactionalID, state.ErrorCode, state.State, state.ProducerID, state.ProducerEpoch = id, got.errorCode, got.state, got.owner.id, got.owner.epoch
			again.TransactionStates = []kmsg.DescribeTransactionsResponseTransactionState{state}
			second, err := r.RawExchange(answering{bytes.NewReader(sized(again.AppendTo(make([]byte, 5))))})
			if err != nil || *second.(*describeResponse) != *got {
				t.Fatalf("accepted %+v, and after a second time there is %+v (%v)", got, second, err)
			}
			return
		}
		r := &produceRequest{to: target{topic, 2}, bytes: make([]byte, 64)}
		r.Required(map[protocol.ApiKey]int16{protocol.Produce: maxProduceVersion})
		answer, err := r.RawExchange(answering{bytes.NewReader(data)})
		if err != nil {
			return
		}
		whole := kmsg.NewPtrProduceResponse()
		whole.Version = maxProduceVersion
		if err := whole.ReadFrom(data[8:]); err != nil {
			return // what follows the error is not read here
		}
		p := whole.Topics[0].Partitions[0]
		if len(whole.Topics) != 1 || whole.Topics[0].Topic != topic || len(whole.Topics[0].Partitions) != 1 || p.Partition != 2 || p.ErrorCode != answer.(*produceResponse).errorCode {
			t.Fatalf("accepted as error %d: %+v", answer.(*produceResponse).errorCode, whole.Topics)
		}
	})
}
