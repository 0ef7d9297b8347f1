package faults

import (
	"math/rand/v2"
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
		{"resets", resets},
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
	type sample struct{ memory, goroutines float64 }
	samples := make([][]sample, len(tr.all))
	first := make([]string, len(tr.all)) // the address of the monitor that lives through it
	for i, d := range tr.all {
		first[i] = d.address(0)
	}
	counts := make(map[string]int)
	for begun := time.Now(); time.Since(begun) < *soakFlag; {
		f := kinds[tr.random.IntN(len(kinds))]
		counts[f.name] += f.inject(tr)
		for i, d := range tr.all {
			d.waitForResults(500)
			text := d.ask(first[i], "/metrics")
			samples[i] = append(samples[i], sample{d.series(text, "go_memstats_heap_inuse_bytes"), d.series(text, "go_goroutines")})
		}
	}
	t.Logf("injected: %v", counts)
	for i, d := range tr.all {
		a := d.settle()
		t.Logf("%s: %d records in, %d lost, %d twice", d.delivery, a.in, a.lost, a.twice)
		half := len(samples[i]) / 2
		if half < 2 {
			continue
		}
		var most [2]sample
		for k, one := range samples[i] {
			m := &most[min(1, k/half)]
			m.memory, m.goroutines = max(m.memory, one.memory), max(m.goroutines, one.goroutines)
		}
		t.Logf("%s: at most %.0f MB of heap and %.0f goroutines in the first half, %.0f MB and %.0f in the second", d.delivery,
			most[0].memory/1e6, most[0].goroutines, most[1].memory/1e6, most[1].goroutines)
		// What is held grows with the batches in hand alone: a leak of a connection
		// or a buffer per fault would show.
		if most[1].memory > 2*most[0].memory+32e6 {
			t.Errorf("%s: the heap grew from %.0f to %.0f MB", d.delivery, most[0].memory/1e6, most[1].memory/1e6)
		}
		if most[1].goroutines > 1.5*most[0].goroutines+20 {
			t.Errorf("%s: the goroutines grew from %.0f to %.0f", d.delivery, most[0].goroutines, most[1].goroutines)
		}
	}
}
