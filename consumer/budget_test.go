package consumer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/segmentio/kafka-go/compress"
	"github.com/twmb/franz-go/pkg/kgo"
)

func (b *budget) wantFree(t *testing.T) {
	t.Helper()
	for kind, free := range b.free {
		if !free.TryAcquire(b.size) {
			t.Errorf("something is still held for %s", kindNames[kind])
		}
	}
}

func TestBudgetOfTheProcess(t *testing.T) {
	before := debug.SetMemoryLimit(800 << 20)
	defer debug.SetMemoryLimit(before)
	if got := processBudget().size; got != 100<<20 {
		t.Errorf("with a limit of 800 MiB %d bytes of each kind, want 100 MiB", got)
	}
	debug.SetMemoryLimit(1<<63 - 1)
	if got := processBudget().size; got != defaultBudget {
		t.Errorf("without a limit %d bytes of each kind, want %d", got, defaultBudget)
	}
}

// Partitions that take shares of every kind, some larger than all there is, and give
// up now and then, never wait for one another in a circle, and leave nothing behind.
func TestSharesEndInNoCircle(t *testing.T) {
	b := newBudget(100)
	var held [kinds]atomic.Int64
	var all sync.WaitGroup
	for seed := range uint64(16) {
		all.Go(func() {
			random := rand.New(rand.NewPCG(seed, 1))
			s := share{budget: b}
			var mine [kinds]int64
			now := func() { // what this one holds has changed
				for kind := range kinds {
					if n := held[kind].Add(s.held[kind] - mine[kind]); n > 100 {
						t.Errorf("%d bytes are held for %s, and there are 100", n, kindNames[kind])
					}
					mine[kind] = s.held[kind]
				}
			}
			for range 300 {
				ctx, cancel := context.WithCancel(t.Context())
				if random.IntN(4) == 0 {
					time.AfterFunc(time.Duration(random.IntN(100))*time.Microsecond, cancel)
				}
				for kind := range kinds {
					for range random.IntN(3) {
						// Others may have what this gives back before it is counted.
						for later := kind; later < kinds; later++ {
							held[later].Add(-mine[later])
							mine[later] = 0
						}
						if err := s.hold(ctx, kind, 1+random.Int64N(150)); err != nil && !errors.Is(err, context.Canceled) {
							t.Error(err)
						}
						now()
					}
				}
				runtime.Gosched()
				for kind := range kinds {
					held[kind].Add(-mine[kind])
					mine[kind] = 0
				}
				s.giveBack(0)
				cancel()
			}
		})
	}
	ended := make(chan struct{})
	go func() { all.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("they wait for one another")
	}
	b.wantFree(t)
}

// Batches of the largest size in many partitions are in hand a few at a time, and all
// are read in the end: plain ones, records that are compressed to little, and windows.
func TestManyPartitionsOfTheLargestBatches(t *testing.T) {
	const partitions, each, size = 24, 3, 4 << 20
	for name, c := range map[string]struct {
		codec kgo.CompressionCodec
		fill  func([]byte)
	}{
		"plain":      {kgo.NoCompression(), func([]byte) {}},
		"compressed": {kgo.GzipCompression(), func([]byte) {}},
		"both":       {kgo.GzipCompression(), func(b []byte) { randomBytes(b) }},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, kafkatest.Start(t), partitions, "max.message.bytes=8388608")
			f.cfg.MaxMessageBytes = size + 1<<10
			client, err := kgo.NewClient(kgo.SeedBrokers(f.Address), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(c.codec),
				kgo.ProducerBatchMaxBytes(8<<20), kgo.DefaultProduceTopic(f.cfg.Topic))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			for p := range int32(partitions) {
				value := make([]byte, size)
				c.fill(value)
				for range each {
					if err := client.ProduceSync(t.Context(), &kgo.Record{Partition: p, Value: value}, &kgo.Record{Partition: p, Value: []byte("small")}).FirstErr(); err != nil {
						t.Fatal(err)
					}
				}
			}
			var inHand, most, large atomic.Int64
			f.handle = func(_ context.Context, b *Batch) error {
				for i := range b.Messages {
					if len(b.Messages[i].Value) == size {
						defer inHand.Add(-1)
						most.Store(max(most.Load(), inHand.Add(1)))
						large.Add(1)
						time.Sleep(10 * time.Millisecond)
					}
				}
				return nil
			}
			f.budget = newBudget(3 * (size + size/8))
			_, stop := f.start()
			kafkatest.Eventually(t, patience, func() error {
				if n := large.Load(); n < partitions*each {
					return fmt.Errorf("%d of %d large records", n, partitions*each)
				}
				return nil
			})
			if err := stop(); err != nil {
				t.Error(err)
			}
			if n := most.Load(); n > 3 {
				t.Errorf("%d of them were in hand at a time, and there was memory for 3", n)
			}
			if n := large.Load(); n != partitions*each {
				t.Errorf("%d large records, want %d", n, partitions*each)
			}
			f.budget.wantFree(t)
		})
	}
}

func randomBytes(b []byte) {
	random := rand.New(rand.NewPCG(1, 2))
	for i := 0; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], random.Uint64())
	}
}

// A rebalance or the end, while partitions wait for memory, ends the wait.
func TestWaitForMemoryEndsWithItsContext(t *testing.T) {
	r := responding(t, 5, func(int64) []byte { return testBatch{base: 5, values: [][]byte{make([]byte, 2<<20)}}.encode(t) })
	r.maxMessage = 4 << 20
	other := share{budget: r.share.budget}
	if err := other.hold(t.Context(), ofResponse, 1); err != nil {
		t.Fatal(err)
	}
	reason := errors.New("the partition was taken away")
	ctx, cancel := context.WithCancelCause(t.Context())
	r.share.waits = func(bool) { cancel(reason) }
	emit := func(b *Batch) error { t.Errorf("emitted %v", offsets(b.Messages)); return nil }
	if err := r.fetch(ctx, emit); !errors.Is(err, reason) || r.position != 5 {
		t.Errorf("%v, position %d; want %v and 5", err, r.position, reason)
	}
	other.giveBack(0)
	got := 0
	if err := r.fetch(t.Context(), func(b *Batch) error { got += len(b.Messages[0].Value); return nil }); err != nil || got != 2<<20 {
		t.Errorf("%d bytes, %v", got, err)
	}
	r.share.budget.wantFree(t)

	// In the midst of a response it says nothing of the batch.
	r = responding(t, 5, func(int64) []byte {
		return slices.Concat(testBatch{base: 5, values: [][]byte{[]byte("small")}}.encode(t), window(testBatch{base: 6, values: [][]byte{[]byte("large")}}.encode(t), 27))
	})
	other = share{budget: r.share.budget}
	if err := other.hold(t.Context(), ofUnfolding, 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithCancelCause(t.Context())
	r.share.waits = func(bool) { cancel(reason) }
	if err := r.fetch(ctx, emit); !errors.Is(err, reason) || r.position != 5 {
		t.Errorf("%v, position %d; want %v and 5", err, r.position, reason)
	}
}

// window makes of a plain batch one of zstd, whose frame has a window of 2^log bytes
// and one block that is not compressed.
func window(plain []byte, log int) []byte {
	payload := plain[batchHeader:]
	frame := binary.LittleEndian.AppendUint32(nil, 0xfd2fb528)
	frame = append(frame, 0, byte(log-10)<<3)
	block := uint32(len(payload)<<3 | 1)
	frame = append(append(frame, byte(block), byte(block>>8), byte(block>>16)), payload...)
	batch := append(slices.Clone(plain[:batchHeader]), frame...)
	batch[22] = byte(compress.Zstd)
	binary.BigEndian.PutUint32(batch[8:], uint32(len(batch)-12))
	return reseal(batch)
}

// Windows of zstd's highest level, 128 MiB, in many partitions at once: a decoder takes
// all of it before the first byte, so there is one at a time, and none stays.
func TestLargeWindowsInManyPartitions(t *testing.T) {
	const partitions = 16
	data := window(testBatch{base: 1, values: [][]byte{[]byte("one"), []byte("two")}}.encode(t), 27)
	b := newBudget(64 << 20)
	var decoding, most, got atomic.Int64
	var heap uint64
	var all sync.WaitGroup
	for range partitions {
		all.Go(func() {
			s := share{budget: b}
			d := &decoder{position: 1, maxMessage: 1 << 20, ordinary: 1 << 20, giveBack: s.giveBack}
			d.hold = func(kind int, n int64) error { return s.hold(t.Context(), kind, n) }
			d.take = func(m Message, _ int) error {
				if string(m.Value) == "one" {
					most.Store(max(most.Load(), decoding.Add(1)))
					var now runtime.MemStats
					runtime.GC()
					runtime.ReadMemStats(&now)
					heap = max(heap, now.HeapAlloc) // one at a time does this
				} else {
					decoding.Add(-1)
				}
				got.Add(1)
				return nil
			}
			if err := d.decode(data, 0, nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got.Load() != 2*partitions || most.Load() != 1 {
		t.Errorf("%d records, want %d; %d windows at a time, want 1", got.Load(), 2*partitions, most.Load())
	}
	if heap > 200<<20 {
		t.Errorf("%d MB were held", heap>>20)
	}
	b.wantFree(t)
	var now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&now)
	if now.HeapAlloc > 64<<20 {
		t.Errorf("%d MB stay", now.HeapAlloc>>20)
	}
}

// What a decompressor takes is known before it takes it.
func TestUnfolding(t *testing.T) {
	encoded := func(n int, options ...zstd.EOption) []byte {
		w, err := zstd.NewWriter(nil, options...)
		if err != nil {
			t.Fatal(err)
		}
		return w.EncodeAll(make([]byte, n), nil)
	}
	framed := func(blocks ...[]byte) []byte {
		out := append([]byte(nil), "\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01"...)
		for _, b := range blocks {
			out = append(binary.BigEndian.AppendUint32(out, uint32(len(b))), b...)
		}
		return out
	}
	for name, c := range map[string]struct {
		codec compress.Compression
		data  []byte
		want  int64
	}{
		"gzip":                          {compress.Gzip, pack(t, compress.Gzip, make([]byte, 5<<20)), 0},
		"one block of snappy":           {compress.Snappy, snappy.Encode(nil, make([]byte, 5<<20)), 5 << 20},
		"blocks of snappy":              {compress.Snappy, framed(snappy.Encode(nil, make([]byte, 9)), snappy.Encode(nil, make([]byte, 3<<20)), []byte{5}), 3 << 20},
		"a claim of snappy":             {compress.Snappy, []byte{0xff, 0xff, 0xff, 0xff, 0x0f}, batchLimit},
		"nothing of snappy":             {compress.Snappy, nil, 0},
		"lz4 of 4 MiB":                  {compress.Lz4, []byte{4, 0x22, 0x4d, 0x18, 0x60, 0x70, 0}, 8 << 20},
		"lz4 of 64 KiB":                 {compress.Lz4, []byte{4, 0x22, 0x4d, 0x18, 0x60, 0x40, 0}, 128 << 10},
		"nothing of lz4":                {compress.Lz4, nil, 0},
		"zstd of a known size":          {compress.Zstd, encoded(5<<20, zstd.WithSingleSegment(true)), 5 << 20},
		"zstd with a window":            {compress.Zstd, encoded(5<<20, zstd.WithWindowSize(4<<20)), 4 << 20},
		"zstd, more than may be":        {compress.Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0}, maxWindow},
		"zstd, something to be skipped": {compress.Zstd, []byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0}, maxWindow},
		"not zstd":                      {compress.Zstd, []byte("zstd?"), 0},
	} {
		if got := unfolding(c.codec, c.data); got != c.want {
			t.Errorf("%s: %d bytes, want %d", name, got, c.want)
		}
	}
}

// A set of messages that unfolds to much is read with a share, and what is in it does
// not hold on to the set.
func TestMessageSetsTakeTheirShare(t *testing.T) {
	var set []byte
	for i := range 12 {
		set = append(set, legacy(1, int64(i), 0, 0, []byte("k"), []byte(strings.Repeat(fmt.Sprint(i%10), 300<<10)))...)
	}
	data := legacy(1, 16, 0, compress.Gzip, nil, pack(t, compress.Gzip, set))
	b := newBudget(1 << 20)
	s := share{budget: b}
	d := &decoder{position: 5, maxMessage: 1 << 20, ordinary: 100 << 10, giveBack: s.giveBack}
	var asked []int
	d.hold = func(kind int, n int64) error { asked = append(asked, kind); return s.hold(t.Context(), kind, n) }
	var got []Message
	d.take = func(m Message, _ int) error { got = append(got, m); return nil }
	if err := d.decode(data, 0, nil); err != nil || len(got) != 12 {
		t.Fatalf("%d messages, %v", len(got), err)
	}
	for i, m := range got {
		if m.Offset != int64(5+i) || string(m.Key) != "k" || len(m.Value) != 300<<10 || m.Value[0] != byte('0'+i%10) {
			t.Errorf("message %d: offset %d, key %q, %d bytes", i, m.Offset, m.Key, len(m.Value))
		}
	}
	if asked[0] != ofUnfolding || asked[1] != ofRecord {
		t.Errorf("shares of the kinds %v", asked)
	}
	b.wantFree(t)
}

// Headers are much in memory that are little in the log.
func TestManyHeadersTakeTheirShare(t *testing.T) {
	for _, codec := range []compress.Compression{compress.None, compress.Zstd} {
		r := responding(t, 5, func(int64) []byte {
			return testBatch{base: 5, attributes: uint16(codec), values: make([][]byte, 3), headers: make([]Header, 50_000)}.encode(t)
		})
		r.maxMessage = 4 << 20
		batches := 0
		if err := r.fetch(t.Context(), func(b *Batch) error {
			if batches++; len(b.Messages) != 1 || len(b.Messages[0].Headers) != 50_000 || r.share.held[ofHeaders] == 0 {
				t.Errorf("%d messages, %d headers, a share of %d bytes", len(b.Messages), len(b.Messages[0].Headers), r.share.held[ofHeaders])
			}
			return nil
		}); err != nil || batches != 3 {
			t.Errorf("%v: %d batches, %v; want 3", codec, batches, err)
		}
		if cap(r.decoder.arena.headers) > 1<<10 || r.batch.Messages[:cap(r.batch.Messages)][0].Headers != nil {
			t.Errorf("%v: they are held on to", codec)
		}
		r.share.budget.wantFree(t)
	}
}

// A batch that is larger than was asked for is asked for a second time; those of the
// same size that follow are expected.
func TestLargeBatchesAreExpected(t *testing.T) {
	var asked atomic.Int64 // but for what is ahead
	r := responding(t, 0, func(offset int64) []byte {
		size := 2 << 20
		if offset < 5 {
			asked.Add(1)
		}
		if offset > 3 {
			size = 10
		}
		return testBatch{base: offset, values: [][]byte{make([]byte, size)}}.encode(t)
	})
	r.maxMessage = 4 << 20
	r.readAhead = true
	defer r.drop()
	for i := range int64(5) {
		if err := r.fetch(t.Context(), func(*Batch) error { return nil }); err != nil || r.position != i+1 {
			t.Fatalf("position %d, %v", r.position, err)
		}
		if large := i < 4; large != (r.ahead == nil) || large != (r.spare == nil) {
			t.Errorf("after offset %d: asked ahead %t, a buffer is kept %t", i, r.ahead != nil, r.spare != nil)
		}
	}
	if n := asked.Load(); n != 6 {
		t.Errorf("%d requests for 5 batches, want 6: the first twice", n)
	}
}
