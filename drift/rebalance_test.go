package drift

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Two instances share four partitions, and one of these moves in the middle of the
// stream, with a batch that its first owner had acknowledged and not committed.
// Nothing moves with it. Beside them one instance has the whole stream.
//
// What is promised: each instance's evidence, and their average, alarm falsely no
// more often than that of the one does; and the two find what it finds.
func TestRebalance(t *testing.T) {
	const (
		streams, records = 200, 10          // of a batch, one a second
		a                = 10_000           // s
		before           = a / 10 / records // batches
		most             = 30               // 99 % of Binomial(200, 1/10), what Ville's inequality allows by A/10
		longest          = 400
	)
	type watches struct{ first, second, whole *Watch }
	falsely := map[string]int{}
	var delays, wholeDelays []int
	for seed := range streams {
		f := newFixture(t, 6000, func(c *Config) {
			c.MeanTimeToFalseAlarm, c.Block, c.Tolerance = a/2*time.Second, 1, Tolerance{}
		})
		f.r = rand.New(rand.NewPCG(uint64(seed), 11))
		f.base.Scores = normal(f.r, len(f.base.Scores))
		slices.Sort(f.base.Scores)
		var w watches
		for _, to := range []**Watch{&w.first, &w.second, &w.whole} {
			f.open()
			*to = f.watch
		}
		var uncommitted *Batch
		// step lets one batch be observed, by its owner and by the one that has all.
		step := func(i int, k kind) {
			f.now = f.now.Add(records * time.Second)
			partition := i % 4
			owner := w.second
			switch {
			case partition == 0, partition == 1 && i < before/2:
				owner = w.first
			case partition == 1 && uncommitted != nil:
				owner.Observe(uncommitted)
				uncommitted = nil
			}
			b := f.batch(int32(partition), records, k)
			owner.Observe(b)
			w.whole.Observe(b)
			if partition == 1 && i < before/2 {
				uncommitted = b
			}
		}
		reached := func(detector int) map[string]bool {
			of := func(w *Watch) float64 { return []*betting{&w.stream.shift, &w.stream.change}[detector].evidence }
			first, second, whole := of(w.first), of(w.second), of(w.whole)
			return map[string]bool{"first": first >= a, "second": second >= a, "average": (first+second)/2 >= a, "whole": whole >= a}
		}
		alarmed := map[string]bool{}
		for i := range before {
			step(i, kind{score: inControl})
			for detector, name := range Detectors {
				for who, yes := range reached(detector) {
					alarmed[name+" of the "+who] = alarmed[name+" of the "+who] || yes
				}
			}
		}
		for who, yes := range alarmed {
			if yes {
				falsely[who]++
			}
		}
		if uncommitted != nil {
			t.Fatal("the partition did not move")
		}
		if w.first.watermarks[1] >= w.second.watermarks[1] {
			t.Fatalf("partition 1 at %d in the first instance, and at %d in the second, to which it moved", w.first.watermarks[1], w.second.watermarks[1])
		}
		delay, wholeDelay := 0, 0
		for i := 0; (delay == 0 || wholeDelay == 0) && i < longest; i++ {
			step(before+i, kind{score: mixed(.3)})
			now := reached(0)
			if delay == 0 && now["average"] {
				delay = (i + 1) * records
			}
			if wholeDelay == 0 && now["whole"] {
				wholeDelay = (i + 1) * records
			}
		}
		if delay == 0 || wholeDelay == 0 {
			t.Fatalf("stream %d: found after %d records by the average of two, %d by one; 0: not within %d", seed, delay, wholeDelay, longest*records)
		}
		delays, wholeDelays = append(delays, delay), append(wholeDelays, wholeDelay)
	}
	t.Logf("of %d streams in control, by A/10: %v", streams, falsely)
	for who, n := range falsely {
		if n > most {
			t.Errorf("%s: %d of %d streams alarm by A/10, at most %d may", who, n, streams, most)
		}
	}
	slices.Sort(delays)
	slices.Sort(wholeDelays)
	two, one := delays[streams/2], wholeDelays[streams/2]
	t.Logf("30 %% out of distribution: the average of two reaches A after %d records of the stream, one with all of them after %d", two, one)
	// Each sees a part of the records, the smaller a quarter of them.
	if two > 4*one+4*records {
		t.Errorf("median delay %d records of the stream with two instances, %d with one", two, one)
	}
}
