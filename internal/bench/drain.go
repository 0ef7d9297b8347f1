package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// What was measured while the monitors scored.
type measured struct {
	records int64 // within elapsed
	elapsed time.Duration
	cpu     time.Duration
	peak    int64   // bytes, of all monitors together
	memory  []int64 // the same, in each twentieth of the time
}

// A sample is what all monitors together had done by a time.
type sample struct {
	at      time.Time
	records int64
	cpu     time.Duration
	rss     int64
}

// drain lets the monitors of one run drain the topic. Where several share it,
// the time counts while all of them score: from the moment that each has, to
// the moment that the first has nothing left.
func (b *lineBench) drain(ctx context.Context, run int, input string) (got measured, err error) {
	cfg, err := b.configure(ctx, run, input, "earliest")
	if err != nil {
		return got, err
	}
	all, err := b.startAll(ctx, *cfg)
	defer func() { err = errors.Join(err, stopAll(all)) }()
	if err != nil {
		return got, err
	}
	var samples []sample
	pause := 10 * time.Millisecond
	for {
		select {
		case <-ctx.Done():
			return got, context.Cause(ctx)
		case <-time.After(pause):
		}
		now, working, last, err := sampleOf(ctx, all)
		if err != nil {
			return got, err
		}
		done := now.records >= int64(b.Records)
		if done {
			now.at = last
		}
		if len(samples) == 0 && !done && working < len(all) {
			continue // not up yet, or still joining the group
		}
		pause = 50 * time.Millisecond // being asked takes the monitor's time
		samples = append(samples, now)
		if done || len(all) > 1 && working < len(all) {
			break
		}
	}
	if got.peak, err = peakOf(all); err != nil {
		return got, err
	}
	first, last := samples[0], samples[len(samples)-1]
	got.records, got.elapsed, got.cpu = last.records-first.records, last.at.Sub(first.at), last.cpu-first.cpu
	if got.records <= 0 || got.elapsed <= 0 {
		return got, fmt.Errorf("all %d records were scored before the time could be taken: use more", b.Records)
	}
	got.memory = make([]int64, 20)
	for _, s := range samples {
		part := &got.memory[min(19, int(20*s.at.Sub(first.at)/got.elapsed))]
		*part = max(*part, s.rss)
	}
	for i := 1; i < len(got.memory); i++ { // a short run has no sample in some
		if got.memory[i] == 0 {
			got.memory[i] = got.memory[i-1]
		}
	}
	return got, nil
}

// sampleOf asks every monitor, and says how many of them have scored records and
// have more to score, and when the last record of all was.
func sampleOf(ctx context.Context, all []*process) (now sample, working int, last time.Time, err error) {
	for _, p := range all {
		if err := p.ended(); err != nil {
			return now, 0, last, err
		}
		status, err := p.status(ctx)
		if err != nil {
			continue // not up yet
		}
		u, err := p.usage()
		if err != nil {
			return now, 0, last, err
		}
		now.at = time.Now()
		now.records += status.Records + status.DeadLettered
		now.cpu += u.cpu
		now.rss += u.rss
		if status.Records > 0 && status.Lag > 0 {
			working++
		}
		if status.LastRecord.After(last) {
			last = status.LastRecord
		}
	}
	return now, working, last, nil
}
