package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A Latency holds percentiles, in milliseconds.
type Latency struct {
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99.9"`
	Max  float64 `json:"max"`
}

// latencyOf takes the milliseconds of all records. Percentiles are by nearest rank.
func latencyOf(ms []float64) Latency {
	slices.Sort(ms)
	at := func(p float64) float64 { return ms[max(0, int(math.Ceil(p*float64(len(ms))))-1)] }
	return Latency{P50: at(.5), P99: at(.99), P999: at(.999), Max: ms[len(ms)-1]}
}

func medianLatency(all []Latency) *Latency {
	part := func(of func(Latency) float64) float64 {
		var values []float64
		for _, l := range all {
			values = append(values, of(l))
		}
		return median(values)
	}
	return &Latency{
		P50: part(func(l Latency) float64 { return l.P50 }), P99: part(func(l Latency) float64 { return l.P99 }),
		P999: part(func(l Latency) float64 { return l.P999 }), Max: part(func(l Latency) float64 { return l.Max }),
	}
}

type timings struct{ appended, scheduled Latency }

// warmUp is how long records are offered before those that count.
const warmUp = time.Second

// offer sends the records at times that were fixed before, whatever became of
// those sent already: a monitor or a broker that stands still is charged for
// every record that was due meanwhile.
func (b *lineBench) offer(ctx context.Context, run int) (got measured, timed timings, err error) {
	input, err := b.create(ctx, fmt.Sprintf("in-%d", run), b.Partitions, true)
	if err != nil {
		return got, timed, err
	}
	cfg, err := b.configure(ctx, run, input, "earliest")
	if err != nil {
		return got, timed, err
	}
	message, err := b.messages()
	if err != nil {
		return got, timed, err
	}
	all, err := b.startAll(ctx, *cfg)
	defer func() { err = errors.Join(err, stopAll(all)) }()
	if err != nil {
		return got, timed, err
	}
	for _, p := range all {
		for !p.ready(ctx) {
			if err := p.ended(); err != nil {
				return got, timed, err
			}
			if ctx.Err() != nil {
				return got, timed, context.Cause(ctx)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	warm := int(b.Rate * warmUp.Seconds())
	total := warm + b.Records
	// A client of its own: no batch waits for company, and none for room.
	client, err := kgo.NewClient(kgo.SeedBrokers(b.Brokers...), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerLinger(0), kgo.MaxBufferedRecords(total+1), kgo.DefaultProduceTopic(input))
	if err != nil {
		return got, timed, fmt.Errorf("connect: %w", err)
	}
	defer client.Close()
	out := b.newSender(client, total, "offering records")
	start := time.Now().Add(50 * time.Millisecond)
	due := func(i int) time.Time { return start.Add(time.Duration(float64(i) / b.Rate * float64(time.Second))) }
	var before sample
	for i := range total {
		if wait := time.Until(due(i)); wait > 0 {
			time.Sleep(wait)
		}
		if i == warm {
			if before, _, _, err = sampleOf(ctx, all); err != nil {
				return got, timed, err
			}
		}
		out.send(ctx, message(i))
	}
	if err := out.flush(ctx); err != nil {
		return got, timed, fmt.Errorf("offer records to %s: %w", input, err)
	}
	for {
		now, _, last, err := sampleOf(ctx, all)
		if err != nil {
			return got, timed, err
		}
		if now.records >= int64(total) {
			got.records, got.elapsed, got.cpu = now.records-before.records, last.Sub(before.at), now.cpu-before.cpu
			break
		}
		if ctx.Err() != nil {
			return got, timed, context.Cause(ctx)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if got.peak, err = peakOf(all); err != nil {
		return got, timed, err
	}
	appends, err := b.appendTimes(ctx, input, total)
	if err != nil {
		return got, timed, err
	}
	scores, err := b.appendTimes(ctx, cfg.Output.Topic, total)
	if err != nil {
		return got, timed, err
	}
	appended, scheduled := make([]float64, 0, b.Records), make([]float64, 0, b.Records)
	for i := warm; i < total; i++ {
		appended = append(appended, float64(scores[i]-appends[i]))
		scheduled = append(scheduled, float64(time.UnixMilli(scores[i]).Sub(due(i)))/float64(time.Millisecond))
	}
	timed = timings{appended: latencyOf(appended), scheduled: latencyOf(scheduled)}
	return got, timed, nil
}

// appendTimes returns when the broker appended the first record of each key 0 to
// n-1, in Unix milliseconds.
func (b *lineBench) appendTimes(ctx context.Context, topic string, n int) ([]int64, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(b.Brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list offsets of %s: %w", topic, err)
	}
	left := int64(0)
	ends.Each(func(o kadm.ListedOffset) { left += o.Offset })
	times := make([]int64, n)
	seen := 0
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("read topic %s: %w", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			left--
			i, parseErr := strconv.Atoi(string(r.Key))
			if parseErr != nil || i < 0 || i >= n {
				err = fmt.Errorf("topic %s: the key %q is not one of 0 to %d", topic, r.Key, n-1)
				return
			}
			if times[i] == 0 {
				times[i] = r.Timestamp.UnixMilli()
				seen++
			}
		})
		if err != nil {
			return nil, err
		}
	}
	if seen != n {
		return nil, fmt.Errorf("topic %s holds %d of the %d records", topic, seen, n)
	}
	return times, nil
}
