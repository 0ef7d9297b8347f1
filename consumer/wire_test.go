package consumer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// response encodes a fetch response of version 11 for partition 3.
func response(code int16, aborted []abortedTransaction, records []byte) []byte {
	be := binary.BigEndian
	b := make([]byte, 4+4+4+2+4) // size, correlation, throttle time, error, session
	b = be.AppendUint32(b, 1)
	b = append(be.AppendUint16(b, 1), 't')
	b = be.AppendUint32(b, 1)
	b = be.AppendUint32(b, 3)
	b = be.AppendUint16(b, uint16(code))
	for _, v := range []uint64{90, 80, 10} { // high watermark, last stable, log start
		b = be.AppendUint64(b, v)
	}
	b = be.AppendUint32(b, uint32(len(aborted)))
	for _, a := range aborted {
		b = be.AppendUint64(be.AppendUint64(b, uint64(a.producer)), uint64(a.first))
	}
	b = be.AppendUint32(b, 0xffffffff)
	b = append(be.AppendUint32(b, uint32(len(records))), records...)
	be.PutUint32(b, uint32(len(b)-4))
	return b
}

func newRequest(limit int) *fetchRequest {
	return &fetchRequest{topic: "t", partition: 3, version: 11, limit: limit}
}

func TestResponse(t *testing.T) {
	records := testBatch{base: 40, values: [][]byte{make([]byte, 500)}}.encode(t)
	aborted := []abortedTransaction{{7, 8}, {9, 10}}
	in := bytes.NewReader(append(response(1, aborted, records), "next"...))
	got, err := newRequest(1000).decode(in)
	if err != nil {
		t.Fatal(err)
	}
	if got.errorCode != 1 || got.highWatermark != 90 || got.lastStableOffset != 80 || got.logStartOffset != 10 || !bytes.Equal(got.records, records) || got.verified != len(records) || fmt.Sprint(got.aborted) != fmt.Sprint(aborted) {
		t.Errorf("%+v", got)
	}
	if in.Len() != 4 {
		t.Errorf("%d bytes are left, want those of the next response, 4", in.Len())
	}
	// What is beyond the limit is read past: whole batches of it come again.
	two := append(bytes.Clone(records), records...)
	if got, err := newRequest(len(records) + 100).decode(bytes.NewReader(response(0, nil, two))); err != nil || got.tooLarge != 0 || !bytes.Equal(got.records, two[:len(records)+100]) || got.verified != len(records) {
		t.Errorf("%v, %d bytes", err, len(got.records))
	}
	if got, err := newRequest(len(records) - 1).decode(bytes.NewReader(response(0, nil, two))); err != nil || got.tooLarge != int64(len(records)) || !bytes.Equal(got.records, records[:batchHeader]) {
		t.Errorf("%v, too large %d", err, got.tooLarge)
	}
}

func TestResponseRefuses(t *testing.T) {
	good := response(0, nil, []byte("12345678"))
	change := func(at int, v uint32) []byte {
		data := bytes.Clone(good)
		binary.BigEndian.PutUint32(data[at:], v)
		return data
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"two topics":        {change(18, 2), "the fetch response holds 2 topics, expected 1"},
		"no partition":      {change(25, 0), "the fetch response holds 0 partitions, expected 1"},
		"another partition": {change(29, 4), "the fetch response is for partition 4, expected 3"},
		"many transactions": {change(59, 1<<30), "the fetch response claims 1073741824 aborted transactions in 16 bytes"},
		"many records":      {change(67, 1<<30), "read the fetch response: it claims 1073741824 bytes of records, and has 8 left"},
		"a short one":       {change(0, 40), "read the fetch response: it ends early"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := newRequest(1 << 20).decode(bytes.NewReader(c.data)); err == nil || err.Error() != c.want {
				t.Errorf("error %v\nwant %s", err, c.want)
			}
		})
	}
	for cut := range good {
		if _, err := newRequest(1 << 20).decode(bytes.NewReader(good[:cut])); err == nil {
			t.Errorf("a response of %d bytes, cut to %d, was read", len(good), cut)
		}
	}
	old := &fetchRequest{}
	old.Required(map[protocol.ApiKey]int16{protocol.Fetch: 3})
	if _, err := old.RawExchange(nil); !errors.Is(err, kafka.UnsupportedVersion) {
		t.Errorf("a broker before 0.11: %v", err)
	}
}

// A response that claims gigabytes, and ends, takes no memory for them.
func TestResponseThatEndsEarlyTakesNoMemory(t *testing.T) {
	data := response(0, nil, nil)
	binary.BigEndian.PutUint32(data, 4<<30-1)
	binary.BigEndian.PutUint32(data[59:], 1<<27) // aborted transactions
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := newRequest(1 << 20).decode(bytes.NewReader(data))
	runtime.ReadMemStats(&after)
	if err == nil {
		t.Error("half a response was read")
	}
	if taken := after.TotalAlloc - before.TotalAlloc; taken > 1<<20 {
		t.Errorf("%d bytes were taken", taken)
	}
}

func FuzzResponse(f *testing.F) {
	f.Add(response(0, []abortedTransaction{{7, 8}}, testBatch{values: [][]byte{[]byte("v")}}.encode(f)), int16(11))
	f.Add(response(1, nil, nil), int16(4))
	f.Fuzz(func(t *testing.T, data []byte, version int16) {
		r := newRequest(1 << 10)
		r.version = min(max(version, minFetchVersion), maxFetchVersion)
		got, err := r.decode(bytes.NewReader(data))
		if err != nil {
			return
		}
		if len(got.records) > 1<<10 || !bytes.Contains(data, got.records) {
			t.Fatalf("%d bytes of records, and at most %d were allowed, of those that came", len(got.records), 1<<10)
		}
		if got.tooLarge > 0 {
			return // of those records only the head is kept
		}
		records := bytes.Clone(got.records)
		again, err := newRequest(1 << 10).decode(bytes.NewReader(response(got.errorCode, got.aborted, records)))
		if err != nil || again.errorCode != got.errorCode || !slices.Equal(again.aborted, got.aborted) || !bytes.Equal(again.records, records) {
			t.Errorf("accepted %+v, and after a second time there is %+v (%v)", got, again, err)
		}
	})
}

// A batch that isn't held in memory is accounted for, once, and passed; one that
// was aborted is passed only.
func TestFetchDeliversTheOffsetsOfABatchThatIsTooLarge(t *testing.T) {
	header := testBatch{base: 40, attributes: attrTransactional, producer: 7, values: make([][]byte, 4)}.encode(t)[:batchHeader]
	for name, c := range map[string]struct {
		aborted []abortedTransaction
		want    []int64
	}{
		"committed":           {nil, []int64{41}},
		"aborted":             {[]abortedTransaction{{producer: 7, first: 38}}, []int64{}},
		"of another producer": {[]abortedTransaction{{producer: 8, first: 38}}, []int64{41}},
		"a later transaction": {[]abortedTransaction{{producer: 7, first: 44}}, []int64{41}},
	} {
		d := &decoder{position: 41}
		got := []Message{}
		d.take = func(m Message, _ int) error { got = append(got, m); return nil }
		if err := d.tooLarge(header, 1<<30, c.aborted); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(offsets(got), c.want) || d.position != 44 {
			t.Errorf("%s: offsets %v, position %d; want %v and 44", name, offsets(got), d.position, c.want)
		}
		for _, m := range got {
			if m.Oversized != 1<<30 || m.More != 2 {
				t.Errorf("%s: offset %d and %d more have %d bytes", name, m.Offset, m.More, m.Oversized)
			}
		}
	}
}

func TestFetchRefusesABatchThatIsTooLargeAndEndsBeforeItBegins(t *testing.T) {
	header := testBatch{base: 40, values: make([][]byte, 4)}.encode(t)[:batchHeader]
	binary.BigEndian.PutUint32(header[23:], 0xfffffff6) // -10
	d := &decoder{position: 41, take: func(Message, int) error { return nil }}
	if err := d.tooLarge(header, 1<<30, nil); err == nil || d.position != 41 {
		t.Errorf("error %v, position %d; want one and 41", err, d.position)
	}
}

// responding returns a reader at an offset of a broker that answers every fetch
// with the records that answer returns for that offset.
func responding(t *testing.T, position int64, answer func(offset int64) []byte) *reader {
	t.Helper()
	broker := kafkatest.Start(t, kfake.SeedTopics(1, "t"))
	broker.Cluster.ControlKey(int16(kmsg.Fetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		broker.Cluster.KeepControl()
		response := request.ResponseKind().(*kmsg.FetchResponse)
		partition := kmsg.NewFetchResponseTopicPartition()
		partition.HighWatermark, partition.LastStableOffset = 100, 100
		partition.RecordBatches = answer(request.(*kmsg.FetchRequest).Topics[0].Partitions[0].FetchOffset)
		topic := kmsg.NewFetchResponseTopic()
		topic.Topic, topic.Partitions = "t", []kmsg.FetchResponseTopicPartition{partition}
		response.Topics = []kmsg.FetchResponseTopic{topic}
		return response, nil, true
	})
	conn, err := kafkaconn.New(kafkaconn.Config{Brokers: []string{broker.Address}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return &reader{conn: conn, topic: "t", position: position, maxRecords: 10, maxBytes: 1 << 20, maxMessage: 1000, maxWait: 10 * time.Millisecond, share: share{budget: newBudget(1 << 20)}}
}

// What comes before a damaged batch is handed on at once. The batch is asked for
// again, since it may have been damaged on the way.
func TestFetchHandsOnWhatIsBeforeDamage(t *testing.T) {
	first := testBatch{base: 5, values: make([][]byte, 2)}.encode(t)
	second := testBatch{base: 7, values: make([][]byte, 2)}.encode(t)
	damaged := bytes.Clone(second)
	damaged[len(damaged)-1] ^= 1
	asked := []int64{}
	r := responding(t, 5, func(offset int64) []byte {
		asked = append(asked, offset)
		if len(asked) == 1 {
			return append(bytes.Clone(first), damaged...)
		}
		return second
	})
	var got []int64
	emit := func(b *Batch) error { got = append(got, append(offsets(b.Messages), b.Next)...); return nil }
	if err := r.fetch(t.Context(), emit); err == nil || !strings.Contains(err.Error(), "read t[0] from offset 7: the record batch at offset 7: its checksum is ") {
		t.Errorf("error %v", err)
	}
	if !slices.Equal(got, []int64{5, 6, 7}) || r.position != 7 {
		t.Errorf("emitted %v, position %d; want 5 and 6, and then 7", got, r.position)
	}
	if err := r.fetch(t.Context(), emit); err != nil || !slices.Equal(got, []int64{5, 6, 7, 7, 8, 9}) || !slices.Equal(asked, []int64{5, 7}) {
		t.Errorf("%v, emitted %v, asked for %v", err, got, asked)
	}
}

// A batch that cannot be read is told once, and passed; of a range, what is in it.
func TestFetchPassesWhatCannotBeRead(t *testing.T) {
	data := testBatch{base: 5, values: make([][]byte, 2)}.encode(t)
	data = append(data, testBatch{base: 7, longer: 3, values: make([][]byte, 5)}.encode(t)...)
	data = append(data, testBatch{base: 12, values: make([][]byte, 2)}.encode(t)...)
	for maxOffset, want := range map[int64]struct {
		offsets []int64
		more    int64
		next    int64
	}{0: {[]int64{5, 6, 7, 12, 13}, 4, 14}, 10: {[]int64{5, 6, 7}, 2, 10}, 7: {[]int64{5, 6}, 0, 7}} {
		r := responding(t, 5, func(int64) []byte { return data })
		r.maxOffset = maxOffset
		var got []int64
		more, records := int64(0), int64(0)
		err := r.fetch(t.Context(), func(b *Batch) error {
			got = append(got, offsets(b.Messages)...)
			records += r.records
			for _, m := range b.Messages {
				more += m.More
			}
			return nil
		})
		if err != nil || !slices.Equal(got, want.offsets) || more != want.more || r.position != want.next || records != want.next-5 {
			t.Errorf("up to %d: %v, offsets %v and %d more, %d records, position %d; want %+v", maxOffset, err, got, more, records, r.position, want)
		}
	}
}

// What a handler refuses is not taken for what cannot be read.
func TestFetchPassesNothingThatWasRefused(t *testing.T) {
	r := responding(t, 5, func(int64) []byte { return testBatch{base: 5, values: make([][]byte, 20)}.encode(t) })
	refused, calls := errors.New("refused"), 0
	err := r.fetch(t.Context(), func(*Batch) error { calls++; return refused })
	if !errors.Is(err, refused) || calls != 1 || r.position != 5 {
		t.Errorf("%v after %d calls, position %d; want the error of the first, and 5", err, calls, r.position)
	}
}

// Each version of the request, with the brokers that answered it.
func TestFetchFromOlderBrokers(t *testing.T) {
	for name, version := range map[string]*kversion.Versions{
		"0.11": kversion.V0_11_0(), "1.0": kversion.V1_0_0(), "1.1": kversion.V1_1_0(), "2.0": kversion.V2_0_0(), "2.1": kversion.V2_1_0(), "2.2": kversion.V2_2_0(), "2.3": kversion.V2_3_0(), "3.0": kversion.V3_0_0(),
	} {
		t.Run(name, func(t *testing.T) {
			broker := kafkatest.Start(t, kfake.MaxVersions(version), kfake.SeedTopics(1, "t"))
			conn, err := kafkaconn.New(kafkaconn.Config{Brokers: []string{broker.Address}})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if _, err := conn.Kafka.Produce(ctx, &kafka.ProduceRequest{Topic: "t", RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(kafka.Record{Value: kafka.NewBytes([]byte("v"))})}); err != nil {
				t.Fatal(err)
			}
			r := &reader{conn: conn, topic: "t", maxRecords: 10, maxBytes: 1 << 20, maxMessage: 100, maxWait: 10 * time.Millisecond}
			var got []string
			err = r.fetch(ctx, func(b *Batch) error {
				for _, m := range b.Messages {
					got = append(got, string(m.Value))
				}
				return nil
			})
			if err != nil || strings.Join(got, " ") != "v" || r.position != 1 || r.end != 1 {
				t.Errorf("%v, read %q, position %d of %d", err, got, r.position, r.end)
			}
		})
	}
}
