package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A trial is one fault, under load, on one deployment of each kind of delivery.
type trial struct {
	*cluster
	t      *testing.T
	all    []*deployment
	random *rand.Rand
	// injected is how often the fault happened to each deployment, where that is not
	// what inject returns for all.
	injected []int
}

// A fault happens to a trial's deployments, which have a monitor each and are
// sent records. inject returns how often it happened, when it is over.
type fault struct {
	name   string
	inject func(*trial) int
}

// A group of faults has clusters of one kind, lanes of them: on each one fault
// happens at a time, and most of a fault is waiting. The longest come first.
type group struct {
	name   string
	start  func(testing.TB) *cluster
	lanes  int
	faults []fault
}

var groups = []group{
	{"brokers=1", func(t testing.TB) *cluster { return startCluster(t, 1) }, 3, []fault{
		{"monitor killed (SIGKILL) at each step of a batch", killAtEachStep},
		{"30 s without an answer", blackHole},
		{"broker killed (SIGKILL) and restarted", killBroker},
		{"member stopped past its session, then resumed", stopMember},
		{"monitor killed (SIGKILL) while it writes its drift state", killAtSnapshot},
		{"topic deleted and made again", recreateTopic},
		{"members join and leave every 2 s", rebalanceStorm},
		{"disk of the registry full", fullRegistry},
		{"disk of the drift state full, then not", fullState},
		{"retention passes the committed offset", retention},
		{"200 ms delay of everything", delay},
		{"connection reset at 1 % of the requests", resets},
		{"connections cut", cutConnections},
		{"acknowledgements lost", loseAcknowledgements},
		{"slow sink: 400 ms an acknowledgement", slowSink},
		{"model file torn, truncated, bit-flipped, gone, rewritten while read", damageModels},
		{"poison, empty, oversized, wrong-dimension messages, a compressed bomb", poison},
		{"partitions added", addPartitions},
		{"the producers' clock jumps by decades", producersClock},
		{"the monitor's clock jumps by years", monitorsClock},
	}},
	{"brokers=3", func(t testing.TB) *cluster { return startCluster(t, 3) }, 1, []fault{
		{"coordinators of group and transactions lost", loseCoordinators},
		{"one broker of three killed (SIGKILL) and restarted", killOneOfThree},
		{"leaders moved", moveLeaders},
	}},
	{"secured", startSecured, 1, []fault{
		{"password rotated", rotatePassword},
		{"broker's certificate expires, then is renewed", expireBroker},
		{"monitor's certificate expires, then is renewed", expireMonitor},
	}},
}

// TestFaults injects every fault into a monitor with either delivery, on a real
// Kafka, and accounts for every record.
func TestFaults(t *testing.T) {
	kafkatest.NeedReal(t)
	t.Parallel()
	s := seed(t)
	table := &report{results: make(map[string][]result), rows: make(map[string]string)}
	for _, g := range groups {
		for _, f := range g.faults {
			table.order = append(table.order, f.name)
		}
	}
	var all sync.WaitGroup
	for _, g := range groups {
		all.Go(func() { t.Run(g.name, func(t *testing.T) { g.run(t, s, table) }) })
	}
	all.Wait()
	table.publish(t)
}

// run injects the faults of a group once in each run, with a seed of its own. The
// clusters live through all runs.
func (g group) run(t *testing.T, seed uint64, table *report) {
	type job struct{ run, fault int }
	queue := make(chan job, *runsFlag*len(g.faults))
	for run := range *runsFlag {
		for i := range g.faults {
			queue <- job{run, i}
		}
	}
	close(queue)
	var lanes sync.WaitGroup
	for range g.lanes {
		lanes.Go(func() {
			var c *cluster // started for the first fault that was chosen
			for j := range queue {
				f := g.faults[j.fault]
				t.Run(f.name, func(inner *testing.T) {
					if c == nil {
						c = g.start(t)
					}
					id := fmt.Sprintf("%s-%d-%d", strings.ReplaceAll(g.name, "=", "-"), j.run, j.fault)
					try(inner, c, f, id, seed+uint64(j.run), table)
				})
			}
		})
	}
	lanes.Wait()
}

func try(t *testing.T, c *cluster, f fault, name string, seed uint64, table *report) {
	begun := time.Now()
	h := fnv.New64()
	h.Write([]byte(f.name))
	tr := &trial{cluster: c, t: t, random: rand.New(rand.NewPCG(seed, h.Sum64()))}
	defer c.rule(nil)
	results := make(map[string]*result)
	defer func() {
		for delivery, r := range results { // also what ended early
			r.failed = t.Failed()
			table.add(f.name, c.nodes, delivery, *r)
		}
	}()
	for _, delivery := range []string{atLeastOnce, exactlyOnce} {
		results[delivery] = &result{seed: seed}
		id := name + "-" + delivery[:2]
		tr.all = append(tr.all, deploy(t, c.Broker, c.proxied, id, delivery, c.access(t, id)))
	}
	for _, d := range tr.all {
		d.start()
		d.produce(seed)
	}
	for _, d := range tr.all {
		d.waitForResults(200)
	}
	times := f.inject(tr)
	c.rule(nil)
	over := time.Now()
	for i, d := range tr.all {
		r := results[d.delivery]
		if r.times = times; tr.injected != nil {
			r.times = tr.injected[i]
		}
		behind := d.ledger.waiting()
		if err := kafkatest.Within(patience, func() error { return d.ledger.have(behind) }); err != nil {
			t.Errorf("%s: %v", d.delivery, err)
		}
		r.recovery = time.Since(over)
	}
	for _, d := range tr.all {
		d.committedIsDurable()
		d.waitForResults(100)
		r := results[d.delivery]
		r.account = d.settle()
		t.Logf("%s: %d times, %d records in, %d lost, %d twice, recovered in %v", d.delivery, r.times, r.in, r.lost, r.twice, r.recovery.Round(time.Millisecond))
	}
	t.Logf("seed %d: %v in all", seed, time.Since(begun).Round(time.Second))
}

// pause waits between half of d and one and a half.
func (tr *trial) pause(d time.Duration) {
	time.Sleep(d/2 + time.Duration(tr.random.Int64N(int64(d))))
}

// times returns n, or less for a short run.
func (tr *trial) times(n int) int {
	if testing.Short() {
		return max(1, n/2)
	}
	return n
}

// replace kills a monitor, and starts another when it has checked that what was
// committed is durable.
func (tr *trial) replace(d *deployment, m *exec.Cmd) {
	d.end(m, syscall.SIGKILL)
	d.committedIsDurable()
	d.start()
}

// killAtEachStep kills the monitor when it makes a request, and when its answer
// arrives at the proxy, for every request that belongs to a batch.
func killAtEachStep(tr *trial) int {
	steps := map[string][]int16{
		atLeastOnce: {apiProduce, apiOffsetCommit},
		exactlyOnce: {apiInitProducerID, apiAddPartitionsToTxn, apiProduce, apiAddOffsetsToTxn, apiTxnOffsetCommit, apiEndTxn},
	}
	for _, d := range tr.all {
		d.keepState(time.Second)
	}
	times := 0
	for i := range steps[exactlyOnce] {
		for _, answer := range []bool{false, true} {
			// Both deployments are killed at a step of their own at the same time.
			var killed [2]chan struct{}
			var once [2]sync.Once
			var step [2]int16
			for k, d := range tr.all {
				killed[k] = make(chan struct{})
				step[k] = steps[d.delivery][i%len(steps[d.delivery])]
			}
			tr.rule(func(f frame) verdict {
				for k, d := range tr.all {
					if f.client == d.name && f.api == step[k] && f.answer == answer {
						once[k].Do(func() {
							_ = d.monitors[0].Process.Kill()
							close(killed[k])
						})
						return verdict{cut: true}
					}
				}
				return verdict{}
			})
			if step[1] == apiInitProducerID { // made when a partition is taken over
				tr.replace(tr.all[1], tr.all[1].monitors[0])
			}
			for k, d := range tr.all {
				select {
				case <-killed[k]:
					times++
				case <-time.After(patience):
					tr.t.Fatalf("%s: no request %d within %v", d.delivery, step[k], patience)
				}
			}
			tr.rule(nil)
			for _, d := range tr.all {
				tr.replace(d, d.monitors[0])
			}
			for _, d := range tr.all {
				d.waitForResults(50)
			}
		}
	}
	for _, d := range tr.all {
		d.restored(times / 2)
	}
	return times / 2
}

func killBroker(tr *trial) int {
	times := tr.times(2)
	for range times {
		tr.Kill()
		tr.pause(time.Second) // the producers and the monitors meet the dead broker
		tr.Restart()
		for _, d := range tr.all {
			d.waitForResults(200)
		}
	}
	return times
}

// rebalanceStorm lets members join, and leave well or badly.
func rebalanceStorm(tr *trial) int {
	rounds := tr.times(6)
	for round := range rounds {
		for _, d := range tr.all {
			if len(d.monitors) < 2 || len(d.monitors) < 4 && round != 1 && tr.random.IntN(2) == 0 { // one leaves at least
				d.start()
				continue
			}
			signal := syscall.SIGTERM
			if tr.random.IntN(2) == 0 {
				signal = syscall.SIGKILL
			}
			d.end(d.monitors[tr.random.IntN(len(d.monitors))], signal)
		}
		tr.pause(2 * time.Second)
	}
	return rounds
}

// stopMember stops a member for longer than its session, with another at hand
// that takes its partitions over.
func stopMember(tr *trial) int {
	times := tr.times(2)
	for _, d := range tr.all {
		d.start()
	}
	for range times {
		tr.pause(2 * time.Second)
		for _, d := range tr.all {
			if err := d.monitors[0].Process.Signal(syscall.SIGSTOP); err != nil {
				tr.t.Fatal(err)
			}
		}
		time.Sleep(6 * time.Second)
		for _, d := range tr.all { // the other one has them all now
			d.waitForResults(100)
			if err := d.monitors[0].Process.Signal(syscall.SIGCONT); err != nil {
				tr.t.Fatal(err)
			}
		}
	}
	return times
}

// whileRuled lets a rule hold for a while.
func (tr *trial) whileRuled(d time.Duration, rule func(frame) verdict) {
	tr.rule(rule)
	time.Sleep(d)
	tr.rule(nil)
}

// cutAt closes the connection at one in n of the frames that match, for a while.
func (tr *trial) cutAt(while time.Duration, n int, match func(frame) bool) int {
	var mu sync.Mutex
	counts := make(map[string]int)
	tr.whileRuled(while, func(f frame) verdict {
		mu.Lock()
		defer mu.Unlock()
		if !match(f) || tr.random.IntN(n) > 0 {
			return verdict{}
		}
		counts[f.client]++
		return verdict{cut: true}
	})
	mu.Lock()
	defer mu.Unlock()
	tr.injected = nil
	sum := 0
	for _, d := range tr.all {
		tr.injected = append(tr.injected, counts[d.name])
		sum += counts[d.name]
	}
	return sum
}

// loseAcknowledgements drops one in eight answers, with its connection, to
// whatever changes something.
func loseAcknowledgements(tr *trial) int {
	return tr.cutAt(8*time.Second, 8, func(f frame) bool {
		switch f.api {
		case apiProduce, apiOffsetCommit, apiInitProducerID, apiAddPartitionsToTxn, apiAddOffsetsToTxn, apiTxnOffsetCommit, apiEndTxn:
			return f.answer
		}
		return false
	})
}

func cutConnections(tr *trial) int {
	for range 3 {
		tr.cut(tr.t, time.Second)
		tr.pause(2 * time.Second)
	}
	return 3
}

func blackHole(tr *trial) int {
	remove := tr.toxic(tr.t, "timeout", 1, `{"timeout": 0}`)
	time.Sleep(30 * time.Second)
	remove()
	return 1
}

func delay(tr *trial) int {
	remove := tr.toxic(tr.t, "latency", 1, `{"latency": 100, "jitter": 20}`) // there and back
	time.Sleep(10 * time.Second)
	remove()
	return 1
}

// resets makes toxiproxy reset what the wire closes: it does so with every connection
// that begins while it has a toxic that resets, though that is told to leave all alone.
func resets(tr *trial) int {
	remove := tr.toxic(tr.t, "reset_peer", 0, `{"timeout": 0}`)
	defer remove()
	tr.cut(tr.t, 0) // those of before
	for _, p := range tr.network {
		if err := errorOfClosed(p.Listen); !errors.Is(err, syscall.ECONNRESET) {
			tr.t.Errorf("a connection to %s was closed with %v, want a reset", p.Name, err)
		}
	}
	return tr.cutAt(10*time.Second, 100, func(f frame) bool { return !f.answer })
}

// errorOfClosed returns what reading says of a connection that the wire behind an
// address closes, for it has sent no request of Kafka's.
func errorOfClosed(address string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{0, 0, 0, 1, 0}); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// slowSink delays the produce requests alone. What is fetched meanwhile waits at
// the broker: a monitor holds no more than the batches in hand.
func slowSink(tr *trial) int {
	tr.whileRuled(8*time.Second, func(f frame) verdict {
		if f.api == apiProduce && f.answer {
			return verdict{wait: 400 * time.Millisecond}
		}
		return verdict{}
	})
	return 1
}

// damageModels makes the registry name a model whose file is damaged, in a way after
// the other: each is refused, and the model in service stays. Then it rewrites the
// file while the monitor is made to read it, and at last leaves it whole.
func damageModels(tr *trial) int {
	const rewritten = 10
	damages := 0
	for _, d := range tr.all {
		current, err := d.models.Current(context.Background())
		if err != nil {
			tr.t.Fatal(err)
		}
		other, err := d.models.Add(context.Background(), randomModel(tr.t, 2))
		if err != nil {
			tr.t.Fatal(err)
		}
		path := filepath.Join(d.registry, "models", other+".safetensors")
		whole, err := os.ReadFile(path)
		if err != nil {
			tr.t.Fatal(err)
		}
		name := func(version string) { write(tr.t, filepath.Join(d.registry, "CURRENT"), []byte(version+"\n")) }
		flipped := bytes.Clone(whole)
		flipped[tr.random.IntN(len(flipped))] ^= 1 << tr.random.IntN(8)
		torn := append(bytes.Clone(whole[:len(whole)/2]), make([]byte, len(whole)-len(whole)/2)...)
		damaged := [][]byte{whole[:tr.random.IntN(len(whole))], flipped, torn, nil}
		damages = len(damaged) + 1
		refused := func() int { return strings.Count(d.logged(), "model not taken in") }
		for i := range damages {
			name(current)
			if i < len(damaged) {
				write(tr.t, path, damaged[i])
			} else if err := os.Remove(path); err != nil {
				tr.t.Fatal(err)
			}
			before := refused()
			name(other)
			d.hangup()
			kafkatest.Eventually(tr.t, patience, func() error {
				if refused() == before {
					return fmt.Errorf("%s: model file with damage %d was not refused", d.delivery, i)
				}
				return nil
			})
		}
		for range rewritten {
			for _, version := range []string{current, other} {
				name(version)
				write(tr.t, path, torn)
				d.hangup()
				write(tr.t, path, whole)
			}
		}
		d.hangup()
		d.waitForResults(100)
		kafkatest.Eventually(tr.t, patience, func() error {
			d.ledger.mu.Lock()
			defer d.ledger.mu.Unlock()
			for version := range d.ledger.versions {
				if version != current && version != other {
					tr.t.Fatalf("%s: results by model %s", d.delivery, version)
				}
			}
			if d.ledger.versions[other] == 0 {
				return fmt.Errorf("%s: no result by model %s, whose file is whole again", d.delivery, other)
			}
			return nil
		})
	}
	return damages + 2*rewritten
}

// hangup makes the monitor read the registry.
func (d *deployment) hangup() {
	d.t.Helper()
	if err := d.monitors[0].Process.Signal(syscall.SIGHUP); err != nil {
		d.t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// poison sends what no embedding is.
func poison(tr *trial) int {
	bomb := make([]byte, 32<<20) // of which zstd makes some kilobytes
	random := make([]byte, 2<<20)
	for i := range random {
		random[i] = byte(tr.random.Uint32())
	}
	wrong := bytes.Repeat([]byte{1, 2, 3, 4}, dim+1)
	json := func(text string) *kgo.Record {
		return &kgo.Record{Value: []byte(text), Headers: []kgo.RecordHeader{{Key: "content-type", Value: []byte("application/json")}}}
	}
	times := 0
	for _, d := range tr.all {
		client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(d.Address, ",")...), kgo.DefaultProduceTopic(d.in), kgo.ProducerBatchMaxBytes(40<<20),
			kgo.ProducerBatchCompression(kgo.ZstdCompression()), kgo.BrokerMaxWriteBytes(80<<20))
		if err != nil {
			tr.t.Fatal(err)
		}
		records := []*kgo.Record{
			{}, {Value: []byte{}}, {Value: wrong}, {Value: random}, {Value: bomb}, {Value: make([]byte, 4*dim)},
			json(`{"embedding": [1, 2, 3`), json(`{}`), json(`{"embedding": [` + strings.Repeat("1,", 100_000) + `1]}`),
			json(strings.Repeat("[", 100_000)), json(`{"embedding": [` + strings.Repeat("NaN,", dim-1) + `1]}`),
			{Value: make([]byte, 4*dim), Headers: make([]kgo.RecordHeader, 300_000)}, // of two bytes, and of 40 in memory
			{Value: random[:1000], Headers: []kgo.RecordHeader{{Key: "content-type", Value: []byte("application/vnd.apache.arrow.stream")}}},
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		for range 3 {
			for _, r := range records {
				one := *r
				if err := client.ProduceSync(ctx, &one).FirstErr(); err != nil {
					tr.t.Fatalf("produce %d bytes: %v", len(r.Value), err)
				}
				d.produced.Add(1)
				times++
			}
		}
		cancel()
		client.Close()
		kafkatest.Eventually(tr.t, patience, func() error {
			d.ledger.mu.Lock()
			defer d.ledger.mu.Unlock()
			for _, reason := range featurizer.Reasons {
				switch reason {
				case featurizer.UnknownCodec, featurizer.BadBatch: // need another configuration, another broker
				default:
					if d.ledger.reasons[string(reason)] < 3 {
						return fmt.Errorf("%s: dead letters by reason: %v, where is %s", d.delivery, d.ledger.reasons, reason)
					}
				}
			}
			return nil
		})
	}
	return times / 2
}

func addPartitions(tr *trial) int {
	for _, d := range tr.all {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		answer, err := d.Admin().CreatePartitions(ctx, 2, d.in)
		if err == nil {
			err = answer.Error()
		}
		cancel()
		if err != nil {
			tr.t.Fatal(err)
		}
	}
	for _, d := range tr.all {
		kafkatest.Eventually(tr.t, patience, func() error {
			d.ledger.mu.Lock()
			defer d.ledger.mu.Unlock()
			for _, p := range []int32{partitions, partitions + 1} {
				found := false
				for at := range d.ledger.out {
					found = found || at.partition == p
				}
				if !found {
					return fmt.Errorf("%s: no result of partition %d", d.delivery, p)
				}
			}
			return nil
		})
	}
	return 1
}

// recreateTopic deletes the input topic when all of it has a result, and makes
// it again under the running monitors. The account is of the second topic, the
// first one's is checked before.
func recreateTopic(tr *trial) int {
	for _, d := range tr.all {
		d.stopProducing()
		kafkatest.Eventually(tr.t, patience, func() error {
			if err := d.caughtUp(d.in); err != nil {
				return err
			}
			return d.ledger.have(d.ledger.waiting())
		})
		d.committedIsDurable()
	}
	for _, d := range tr.all {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		d.ledger.client.PurgeTopicsFromConsuming(d.in)
		if _, err := d.Admin().DeleteTopics(ctx, d.in); err != nil {
			tr.t.Fatal(err)
		}
		cancel()
		tr.pause(2 * time.Second)
		l := d.ledger
		l.mu.Lock()
		for at, o := range l.out {
			if o.times > 1 && d.delivery == exactlyOnce {
				tr.t.Errorf("%s: the result of %v came %d times", d.delivery, at, o.times)
			}
		}
		clear(l.in)
		clear(l.out)
		l.twice = nil
		clear(l.reasons)
		clear(l.position[d.in])
		l.scored = 0
		l.mu.Unlock()
		d.produced.Store(0)
		// kafka-go's group may have made it already, by asking for it, where the
		// broker makes what it is asked for.
		kafkatest.Eventually(tr.t, patience, func() error {
			_, err := d.Admin().CreateTopic(context.Background(), partitions, 1, nil, d.in)
			if errors.Is(err, kerr.TopicAlreadyExists) {
				return nil
			}
			return err
		})
		l.client.AddConsumeTopics(d.in)
		d.produce(tr.random.Uint64())
		d.waitForResults(200)
	}
	return 1
}

// retention removes records that nobody has read while the monitors are away:
// they are counted as a gap, exactly.
func retention(tr *trial) int {
	for _, d := range tr.all {
		d.end(d.monitors[0], syscall.SIGTERM)
	}
	tr.pause(3 * time.Second)
	for _, d := range tr.all {
		committed := d.Committed(d.name, d.in)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		offsets := kadm.Offsets{}
		gap := int64(0)
		for partition, at := range committed {
			remove := at + 1 + tr.random.Int64N(100)
			offsets.AddOffset(d.in, partition, remove, -1)
			gap += remove - at
			d.ledger.mu.Lock()
			for record := range d.ledger.in {
				if record.partition == partition && record.offset >= at && record.offset < remove {
					delete(d.ledger.in, record)
				}
			}
			d.produced.Add(at - remove)
			d.ledger.mu.Unlock()
		}
		if _, err := d.Admin().DeleteRecords(ctx, offsets); err != nil {
			tr.t.Fatal(err)
		}
		cancel()
		d.start()
		d.waitForResults(100)
		kafkatest.Eventually(tr.t, patience, func() error {
			if got := d.metric("oodmon_consumer_gap_records_total"); int64(got) != gap {
				return fmt.Errorf("%s: oodmon_consumer_gap_records_total is %v, want %d", d.delivery, got, gap)
			}
			return nil
		})
	}
	return 1
}

// producersClock makes the producers write times of the past and the future.
func producersClock(tr *trial) int {
	for _, d := range tr.all {
		d.stopProducing()
		d.time = func(n int) time.Time {
			return time.Unix([]int64{0, 1, 4e9, 1.7e9}[n/100%4], 0)
		}
		d.produce(tr.random.Uint64())
		d.waitForResults(2000)
	}
	return 1
}

// moveLeaders makes every partition's leader the next one, under load.
func moveLeaders(tr *trial) int {
	times := tr.times(4)
	for range times {
		for _, d := range tr.all {
			var move kadm.AlterPartitionAssignmentsReq
			var set kadm.TopicsSet
			want := make(map[string]map[int32]int32)
			for topic, partitions := range tr.leaders(d.in, d.scores, d.dead) {
				want[topic] = make(map[int32]int32)
				for p, leader := range partitions {
					next := leader%3 + 1
					want[topic][p] = next
					move.Assign(topic, p, []int32{next, next%3 + 1, leader})
					set.Add(topic, p)
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			answer, err := d.Admin().AlterPartitionAssignments(ctx, move)
			if err == nil {
				err = answer.Error()
			}
			if err != nil {
				tr.t.Fatal(err)
			}
			kafkatest.Eventually(tr.t, patience, func() error {
				if _, err := d.Admin().ElectLeaders(ctx, kadm.ElectPreferredReplica, set); err != nil {
					return err
				}
				if got := tr.leaders(d.in, d.scores, d.dead); !reflect.DeepEqual(got, want) {
					return fmt.Errorf("leaders are %v, want %v", got, want)
				}
				return nil
			})
			cancel()
		}
		tr.pause(2 * time.Second)
	}
	return times
}

// leaders returns who leads the partitions of topics.
func (tr *trial) leaders(topics ...string) map[string]map[int32]int32 {
	tr.t.Helper()
	all := make(map[string]map[int32]int32)
	kafkatest.Eventually(tr.t, patience, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		details, err := tr.Admin().ListTopics(ctx, topics...)
		if err == nil {
			err = details.Error()
		}
		if err != nil {
			return err
		}
		for topic, detail := range details {
			all[topic] = make(map[int32]int32)
			for p, partition := range detail.Partitions {
				if partition.Leader < 1 {
					return fmt.Errorf("%s[%d] has no leader", topic, p)
				}
				all[topic][p] = partition.Leader
			}
		}
		return nil
	})
	return all
}

func killOneOfThree(tr *trial) int {
	node := tr.random.IntN(3)
	tr.KillNode(node)
	for _, d := range tr.all {
		d.waitForResults(200) // the others go on
	}
	tr.RestartNode(node)
	tr.inSync()
	return 1
}

// inSync waits until every replica is: only then may the next one be lost.
func (tr *trial) inSync() {
	tr.t.Helper()
	kafkatest.Eventually(tr.t, patience, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		topics, err := tr.Admin().ListTopicsWithInternal(ctx)
		if err != nil {
			return err
		}
		for _, topic := range topics {
			for _, p := range topic.Partitions {
				if len(p.ISR) < len(p.Replicas) {
					return fmt.Errorf("%s[%d] has %d of %d replicas in sync", topic.Topic, p.Partition, len(p.ISR), len(p.Replicas))
				}
			}
		}
		return nil
	})
}

// loseCoordinators kills the broker that coordinates a deployment's group, of each
// in turn, and the one that coordinates the transactions of a partition.
func loseCoordinators(tr *trial) int {
	group := func(ctx context.Context, d *deployment) int32 {
		return d.Admin().FindGroupCoordinators(ctx, d.name)[d.name].NodeID
	}
	transactions := func(ctx context.Context, d *deployment) int32 {
		id := "oodmon." + d.name + "/" + d.in + "." + strconv.Itoa(tr.random.IntN(partitions))
		return d.Admin().FindTxnCoordinators(ctx, id)[id].NodeID
	}
	tr.injected = make([]int, len(tr.all))
	for _, one := range []struct {
		of   int // which deployment
		find func(ctx context.Context, d *deployment) int32
	}{{0, group}, {1, group}, {1, transactions}} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		node := one.find(ctx, tr.all[one.of])
		cancel()
		if node < 1 {
			tr.t.Fatalf("no coordinator of %s was found", tr.all[one.of].name)
		}
		tr.KillNode(int(node) - 1)
		tr.pause(time.Second)
		for _, d := range tr.all {
			d.waitForResults(100)
		}
		tr.RestartNode(int(node) - 1)
		tr.inSync()
		tr.injected[one.of]++
	}
	return 3
}
