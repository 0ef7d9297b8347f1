package faults

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkatest"
)

// TestSoak injects faults at random for as long as -soak says, into one
// deployment of each delivery, and accounts for every record. A monitor that
// lives through it all has the memory and the goroutines in the second half that
// it had in the first.
func TestSoak(t *testing.T) {
	kafkatest.NeedReal(t)
	t.Parallel()
	s := seed(t)
	tr := &trial{cluster: startCluster(t, 1), t: t, random: rand.New(rand.NewPCG(s, 3))}
	defer tr.rule(nil)
	for _, delivery := range []string{atLeastOnce, exactlyOnce} {
		d := deploy(t, tr.Broker, tr.proxied, "soak-"+delivery[:2], delivery, "")
		tr.all = append(tr.all, d)
		d.start()
		d.produce(s)
	}
	for _, d := range tr.all {
		d.waitForResults(200)
	}
	kinds := []fault{
		{"acknowledgements lost", loseAcknowledgements},
		{"connections cut", cutConnections},
		{"connections reset", resets},
		{"slow sink", slowSink},
		{"delay", delay},
		{"another member killed", func(tr *trial) int {
			for _, d := range tr.all {
				m := d.start()
				tr.pause(4 * time.Second)
				d.end(m, syscall.SIGKILL)
			}
			return 1
		}},
		{"broker killed", func(tr *trial) int {
			tr.Kill()
			tr.pause(time.Second)
			tr.Restart()
			return 1
		}},
	}
	first := make([]string, len(tr.all)) // the address of the monitor that lives through it
	for i, d := range tr.all {
		first[i] = d.address(0)
	}
	samples := make([]map[string][]float64, len(tr.all))
	var sampling sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for i := range tr.all {
		samples[i] = make(map[string][]float64)
		sampling.Go(func() {
			tick := time.NewTicker(*soakFlag / 60)
			defer tick.Stop()
			for ctx.Err() == nil {
				_, text, err := httpGet("http://" + first[i] + "/metrics")
				for name := range steady {
					v, missing := series(text, name)
					err = errors.Join(err, missing)
					samples[i][name] = append(samples[i][name], v)
				}
				if err != nil {
					t.Error(err)
					return
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	counts := make(map[string]int)
	for begun := time.Now(); time.Since(begun) < *soakFlag; {
		f := kinds[tr.random.IntN(len(kinds))]
		counts[f.name] += f.inject(tr)
		for _, d := range tr.all {
			d.waitForResults(500)
		}
	}
	stop()
	sampling.Wait()
	t.Logf("injected: %v", counts)
	for i, d := range tr.all {
		a := d.settle()
		t.Logf("%s: %d records in, %d lost, %d twice", d.delivery, a.in, a.lost, a.twice)
		for name, slack := range steady {
			all := samples[i][name]
			if len(all) < 20 {
				t.Errorf("%s: only %d samples of %s", d.delivery, len(all), name)
				continue
			}
			all = all[len(all)/10:] // it has warmed up
			half := [][]float64{all[:len(all)/2], all[len(all)/2:]}
			for _, h := range half {
				slices.Sort(h)
			}
			before, after := half[0][len(half[0])/2], half[1][len(half[1])/2]
			mostBefore, mostAfter := half[0][len(half[0])-1], half[1][len(half[1])-1]
			t.Logf("%s: %s: a median of %.4g in the first half and of %.4g in the second, at most %.4g and %.4g", d.delivery, name,
				before, after, mostBefore, mostAfter)
			// A leak of a connection, a goroutine or a buffer at each fault would show in
			// both; in a short soak one half may have more calm than the other.
			if after > 1.2*before+slack && mostAfter > mostBefore+slack {
				t.Errorf("%s: %s grew", d.delivery, name)
			}
		}
	}
}

// steady is what does not grow while a monitor runs, and by how much it may in any case.
var steady = map[string]float64{"go_memstats_heap_inuse_bytes": 4e6, "process_resident_memory_bytes": 8e6, "go_goroutines": 5}
