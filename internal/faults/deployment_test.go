package faults

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"gorgonia.org/tensor"
)

const (
	dim        = 16
	partitions = 4
	perSecond  = 400 // records that a deployment is sent
	patience   = 4 * time.Minute

	atLeastOnce = "at-least-once"
	exactlyOnce = "exactly-once"
)

var (
	program string // to test
	scratch string // a folder until the end
)

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if scratch, err = os.MkdirTemp("", "oodmon-faults-"); err != nil {
		panic(err)
	}
	if program = *programFlag; program == "" {
		program = filepath.Join(scratch, "oodmon")
		if out, err := exec.Command("go", "build", "-o", program, "../../cmd/oodmon").CombinedOutput(); err != nil {
			panic(fmt.Sprintf("%v\n%s", err, out))
		}
	}
	code := m.Run()
	_ = os.RemoveAll(scratch)
	os.Exit(code)
}

// A deployment is three topics, a registry, a producer, and monitors.
type deployment struct {
	*kafkatest.Broker
	t        testing.TB
	name     string // the group, the client id, and the beginning of the topics' names
	delivery string
	program  string
	// environment is what its monitors have besides that of the test.
	environment []string
	config      string
	registry    string
	models      *model.Registry
	log         *os.File
	monitors    []*exec.Cmd

	in, scores, dead string
	ledger           *ledger

	produced atomic.Int64 // acknowledged
	stopped  context.CancelFunc
	flushed  chan error
	time     func(n int) time.Time // of a record; nil: now
}

// deploy makes everything but the monitors. brokers are the addresses that they
// get, in YAML; more is more of their configuration.
func deploy(t testing.TB, broker *kafkatest.Broker, brokers, name, delivery, more string) *deployment {
	t.Helper()
	d := &deployment{
		Broker: broker, t: t, name: name, delivery: delivery, program: program, in: name + "-embeddings", scores: name + "-scores", dead: name + "-dead-letters",
		flushed: make(chan error, 1),
	}
	d.CreateTopic(d.in, partitions)
	d.CreateTopic(d.scores, partitions)
	d.CreateTopic(d.dead, 1)
	dir := t.TempDir()
	d.registry = filepath.Join(dir, "registry")
	var err error
	if d.models, err = model.OpenRegistry(d.registry); err != nil {
		t.Fatal(err)
	}
	d.publish(1)
	d.config = filepath.Join(dir, "oodmon.yml")
	text := fmt.Sprintf(`
kafka: {brokers: [%s], client_id: %s%s}
input: {topic: %s, group: %s, start: earliest, session_timeout: 4s, max_message_bytes: 1000000, batch: {max_records: 200, max_wait: 100ms}}
output: {topic: %s, delivery: %s}
dead_letter: {topic: %s}
model: {registry: %q}
web: {listen_addresses: ["127.0.0.1:0"]}
`, brokers, name, more, d.in, name, d.scores, delivery, d.dead, d.registry)
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if d.log, err = os.Create(filepath.Join(dir, "monitor.log")); err != nil {
		t.Fatal(err)
	}
	d.ledger = watch(t, broker, d.in, d.scores, d.dead)
	t.Cleanup(func() {
		for _, m := range d.monitors {
			_ = m.Process.Kill()
			_ = m.Wait()
		}
		if t.Failed() {
			lines := strings.Split(d.logged(), "\n")
			keep(t, d.log.Name(), d.name+".log")
			for i, path := range d.Logs() {
				keep(t, path, fmt.Sprintf("%s-broker-%d.log", d.name, i+1))
			}
			t.Log(d.delivery + ": the monitors' last lines:\n" + strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
		_ = d.log.Close()
		// A broker with few topics is started again soon.
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := d.Admin().DeleteTopics(ctx, d.in, d.scores, d.dead); err != nil && !t.Failed() {
			t.Error(err)
		}
	})
	return d
}

// setting adds a key to a section of the configuration, before a monitor starts.
func (d *deployment) setting(section, text string) {
	d.t.Helper()
	before, err := os.ReadFile(d.config)
	if err != nil {
		d.t.Fatal(err)
	}
	after := strings.Replace(string(before), section+": {", section+": {"+text+", ", 1)
	if section == "" {
		after = string(before) + text + "\n"
	}
	if err := os.WriteFile(d.config, []byte(after), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *deployment) logged() string {
	text, err := os.ReadFile(d.log.Name())
	if err != nil {
		d.t.Fatal(err)
	}
	return string(text)
}

// publish puts another model into service and returns its version.
func (d *deployment) publish(seed uint64) string {
	d.t.Helper()
	version, err := d.models.Publish(context.Background(), randomModel(d.t, seed), model.Event{})
	if err != nil {
		d.t.Fatal(err)
	}
	return version
}

func randomModel(t testing.TB, seed uint64) *model.Model {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	normal := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(random.NormFloat64())
		}
		return x
	}
	m := &model.Model{
		Detector: model.IsoMaxPlus, Score: model.MDS, EntropicScale: 10, Temperature: 1, Alpha: .01, Delta: .05, Classes: []string{"a", "b", "c"},
		Created: time.Unix(0, 0), DistanceScale: 1, Prototypes: tensor.New(tensor.WithShape(3, dim), tensor.WithBacking(normal(3*dim))),
	}
	scores, class, err := scorer.Distances(m, normal(1000*dim))
	if err != nil {
		t.Fatal(err)
	}
	m.Calibration = model.NewCalibration(scores, class)
	return m
}

// start starts one more `oodmon run`, by the command under if there is one.
func (d *deployment) start(under ...string) *exec.Cmd {
	d.t.Helper()
	command := append(under, d.program, "run", "--config", d.config)
	m := exec.Command(command[0], command[1:]...)
	m.Env = append(os.Environ(), d.environment...)
	m.Stderr = struct{ io.Writer }{d.log} // by a pipe: a monitor that may write no file can still log
	if err := m.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.monitors = append(d.monitors, m)
	return m
}

// end waits for a monitor that was sent a signal which ends it.
func (d *deployment) end(m *exec.Cmd, signal syscall.Signal) {
	d.t.Helper()
	_ = m.Process.Signal(signal) // where it has ended, Wait says how
	err := m.Wait()
	if signal == syscall.SIGTERM && err != nil {
		d.t.Errorf("%s: after SIGTERM: %v", d.delivery, err)
	}
	for i := range d.monitors {
		if d.monitors[i] == m {
			d.monitors = append(d.monitors[:i], d.monitors[i+1:]...)
			return
		}
	}
}

var addressed = regexp.MustCompile(`addresses=\[(\S+)\]`)

// address returns where the n-th monitor that was started serves HTTP; -1 is the last.
func (d *deployment) address(n int) string {
	d.t.Helper()
	var address string
	kafkatest.Eventually(d.t, time.Minute, func() error {
		all := addressed.FindAllStringSubmatch(d.logged(), -1)
		if len(all) == 0 || n >= len(all) {
			return errors.New("no monitor has said where it listens")
		}
		if n < 0 {
			n = len(all) - 1
		}
		address = all[n][1]
		return nil
	})
	return address
}

// get asks the monitor that was started last over HTTP.
func (d *deployment) get(path string) (code int, body string) {
	d.t.Helper()
	kafkatest.Eventually(d.t, time.Minute, func() (err error) {
		code, body, err = httpGet("http://" + d.address(-1) + path)
		return err
	})
	return code, body
}

func httpGet(url string) (int, string, error) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// metric returns a series of the monitor that was started last.
func (d *deployment) metric(name string) float64 {
	d.t.Helper()
	_, text := d.get("/metrics")
	v, err := series(text, name)
	if err != nil {
		d.t.Fatal(err)
	}
	return v
}

// series returns the sum of a series' values.
func series(text, name string) (float64, error) {
	sum, found := 0., false
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, name+"{") && !strings.HasPrefix(line, name+" ") {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", name, err)
		}
		sum, found = sum+v, true
	}
	if !found {
		return 0, fmt.Errorf("no metric %s", name)
	}
	return sum, nil
}

// embedding returns a record that can be scored.
func embedding(random *rand.Rand) []byte {
	var value []byte
	for range dim {
		value = binary.LittleEndian.AppendUint32(value, math.Float32bits(float32(random.NormFloat64())))
	}
	return value
}

var jsonHeader = []kgo.RecordHeader{{Key: "content-type", Value: []byte("application/json")}}

// several returns a message of three records, the second of which is too short.
func several(random *rand.Rand) []byte {
	type row struct {
		Embedding []float32 `json:"embedding"`
	}
	rows := make([]row, 3)
	for i := range rows {
		for range dim - i%2 {
			rows[i].Embedding = append(rows[i].Embedding, float32(random.NormFloat64()))
		}
	}
	text, err := json.Marshal(rows)
	if err != nil {
		panic(err)
	}
	return text
}

// produce sends messages until settle is called. One in fifty is no embedding, one
// in ten has several. The producer's client is idempotent: what it was told is
// acknowledged is in the log once.
func (d *deployment) produce(seed uint64) {
	d.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(d.Address, ",")...), kgo.DefaultProduceTopic(d.in), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.ProducerLinger(5*time.Millisecond), kgo.MetadataMinAge(100*time.Millisecond), kgo.MetadataMaxAge(2*time.Second))
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	d.stopped = stop
	d.t.Cleanup(stop)
	go func() {
		defer client.Close()
		random := rand.New(rand.NewPCG(seed, 2))
		const ticks = 20 // a second
		tick := time.NewTicker(time.Second / ticks)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; <-tick.C {
			for range perSecond / ticks {
				value := embedding(random)
				if n%50 == 7 {
					value = value[:5]
				}
				record := &kgo.Record{Key: strconv.AppendInt(nil, int64(n), 10), Value: value}
				if n%10 == 3 {
					record.Value, record.Headers = several(random), jsonHeader
				}
				if d.time != nil {
					record.Timestamp = d.time(n)
				}
				client.Produce(context.Background(), record, func(_ *kgo.Record, err error) {
					if err == nil {
						d.produced.Add(1)
					}
				})
				n++
			}
		}
		d.flushed <- client.Flush(context.Background())
	}()
}

// stopProducing returns when everything sent is acknowledged.
func (d *deployment) stopProducing() {
	d.t.Helper()
	d.stopped()
	if err := <-d.flushed; err != nil {
		d.t.Fatal(err)
	}
}

// A place is a record of the input topic: a row of what is at an offset of a
// partition.
type place struct {
	partition int32
	offset    int64
	row       int32
}

// An outcome is what came of a record.
type outcome struct {
	times  int
	scored bool // or it is a dead letter
}

// A ledger knows all that is in a deployment's topics, as a reader of committed
// transactions sees it.
type ledger struct {
	client *kgo.Client
	done   chan struct{}

	mu       sync.Mutex
	in       map[place]bool // whether it can be scored
	out      map[place]outcome
	twice    []string // where those are that are not the first of their record
	scored   int
	reasons  map[string]int // of dead letters
	versions map[string]int // of models
	bad      error
	position map[string]map[int32]int64 // the offset after the last seen, by topic and partition
}

// watch reads the topics until the test ends.
func watch(t testing.TB, broker *kafkatest.Broker, in, scores, dead string) *ledger {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(broker.Address, ",")...), kgo.ConsumeTopics(in, scores, dead),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.MetadataMinAge(100*time.Millisecond), kgo.MetadataMaxAge(2*time.Second),
		kgo.FetchMinBytes(1<<20), kgo.FetchMaxWait(250*time.Millisecond)) // a few requests a second are enough
	if err != nil {
		t.Fatal(err)
	}
	l := &ledger{
		client: client, done: make(chan struct{}), in: make(map[place]bool), out: make(map[place]outcome),
		reasons: make(map[string]int), versions: make(map[string]int), position: make(map[string]map[int32]int64),
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(l.done)
		for ctx.Err() == nil {
			fetches := client.PollFetches(ctx) // what fails is tried again
			l.mu.Lock()
			fetches.EachRecord(func(r *kgo.Record) {
				if l.position[r.Topic] == nil {
					l.position[r.Topic] = make(map[int32]int64)
				}
				l.position[r.Topic][r.Partition] = r.Offset + 1
				if r.Attrs.IsControl() {
					return
				}
				switch r.Topic {
				case in:
					for row, good := range embeddings(r) {
						l.in[place{r.Partition, r.Offset, int32(row)}] = good
					}
				case scores:
					l.result(r)
				default:
					l.letter(r)
				}
			})
			l.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-l.done
		client.Close()
	})
	return l
}

// embeddings returns, for each record of a message that is sent here, whether it is
// one that can be scored.
func embeddings(r *kgo.Record) []bool {
	if len(r.Headers) == 0 {
		return []bool{len(r.Value) == 4*dim && bytes.Trim(r.Value, "\x00") != nil}
	}
	var rows []struct{ Embedding []float32 }
	if err := json.Unmarshal(r.Value, &rows); err != nil || len(rows) == 0 {
		return []bool{false}
	}
	all := make([]bool, len(rows))
	for i, row := range rows {
		all[i] = len(row.Embedding) == dim
	}
	return all
}

func (l *ledger) result(r *kgo.Record) {
	var at struct {
		Partition int32  `json:"partition"`
		Offset    int64  `json:"offset"`
		Row       int32  `json:"row"`
		Model     string `json:"model"`
	}
	if err := json.Unmarshal(r.Value, &at); err != nil {
		l.bad = errors.Join(l.bad, fmt.Errorf("result %s: %w", r.Value, err))
		return
	}
	l.count(place{at.Partition, at.Offset, at.Row}, true, r)
	l.versions[at.Model]++
	l.scored++
}

func (l *ledger) letter(r *kgo.Record) {
	var at place
	reason := ""
	for _, h := range r.Headers {
		switch h.Key {
		case "oodmon-partition":
			n, _ := strconv.Atoi(string(h.Value))
			at.partition = int32(n)
		case "oodmon-offset":
			at.offset, _ = strconv.ParseInt(string(h.Value), 10, 64)
		case "oodmon-row":
			n, _ := strconv.Atoi(string(h.Value))
			at.row = int32(max(n, 0)) // -1: the whole message, which is one record here
		case "oodmon-reason":
			reason = string(h.Value)
		}
	}
	l.count(at, false, r)
	l.reasons[reason]++
}

func (l *ledger) count(at place, scored bool, r *kgo.Record) {
	was := l.out[at]
	if was.times > 0 {
		l.twice = append(l.twice, fmt.Sprintf("%v at %s[%d] %d, producer %d epoch %d", at, r.Topic, r.Partition, r.Offset, r.ProducerID, r.ProducerEpoch))
	}
	if was.times > 0 && was.scored != scored {
		l.bad = errors.Join(l.bad, fmt.Errorf("%v has both a score and a dead letter", at))
	}
	l.out[at] = outcome{was.times + 1, scored}
}

func (at place) String() string { return fmt.Sprintf("%d/%d/%d", at.partition, at.offset, at.row) }

func (l *ledger) results() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.out)
}

// waiting returns the input that has no result yet.
func (l *ledger) waiting() []place {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []place
	for at := range l.in {
		if l.out[at].times == 0 {
			all = append(all, at)
		}
	}
	return all
}

// have returns an error as long as one of the places has no result.
func (l *ledger) have(all []place) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	missing := 0
	for _, at := range all {
		if _, still := l.in[at]; still && l.out[at].times == 0 {
			missing++
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d of %d records have no result", missing, len(all))
	}
	return nil
}

// ends returns where a topic's partitions end now, for a reader of committed
// transactions; those that hold nothing are left out.
func (d *deployment) ends(topic string) (map[int32]int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ends, err := d.Admin().ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, err
	}
	starts, err := d.Admin().ListStartOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	all := make(map[int32]int64)
	ends.Each(func(o kadm.ListedOffset) {
		if start, _ := starts.Lookup(topic, o.Partition); start.Offset < o.Offset {
			all[o.Partition] = o.Offset
		}
	})
	return all, nil
}

// behind returns an error as long as the ledger has not read a topic up to ends.
func (l *ledger) behind(topic string, ends map[int32]int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for partition, end := range ends {
		if at := l.position[topic][partition]; at < end {
			return fmt.Errorf("the ledger has read %s[%d] up to %d of %d", topic, partition, at, end)
		}
	}
	return nil
}

// caughtUp returns an error as long as the ledger has not read a topic to its end,
// which it never has while records are sent.
func (d *deployment) caughtUp(topic string) error {
	ends, err := d.ends(topic)
	if err != nil {
		return err
	}
	return d.ledger.behind(topic, ends)
}

// waitForResults waits until the monitors have published more than they had.
func (d *deployment) waitForResults(n int) {
	d.t.Helper()
	had := d.ledger.results()
	kafkatest.Eventually(d.t, patience, func() error {
		if got := d.ledger.results(); got < had+n {
			return fmt.Errorf("%s: %d results, waiting for %d", d.delivery, got, had+n)
		}
		return nil
	})
}

// committedIsDurable checks that every record before a committed offset has a
// result which a reader sees. With exactly-once delivery it may come to be seen a
// little later: the markers of a transaction that is committed are written to its
// partitions one after the other.
func (d *deployment) committedIsDurable() {
	d.t.Helper()
	committed := d.Committed(d.name, d.in)
	for _, topic := range []string{d.in, d.scores, d.dead} { // records may go on coming
		var ends map[int32]int64
		kafkatest.Eventually(d.t, patience, func() (err error) {
			ends, err = d.ends(topic)
			return err
		})
		kafkatest.Eventually(d.t, patience, func() error { return d.ledger.behind(topic, ends) })
	}
	durable := func() error {
		d.ledger.mu.Lock()
		defer d.ledger.mu.Unlock()
		for at := range d.ledger.in {
			if at.offset < committed[at.partition] && d.ledger.out[at].times == 0 {
				return fmt.Errorf("%s: %s[%d] is committed up to %d, and %v has no result", d.delivery, d.in, at.partition, committed[at.partition], at)
			}
		}
		return nil
	}
	wait := time.Duration(0)
	if d.delivery == exactlyOnce {
		wait = patience
	}
	if err := kafkatest.Within(wait, durable); err != nil {
		d.t.Error(err)
	}
}

// An account is what became of a deployment's records.
type account struct {
	in, scored, letters, lost, twice int
}

// settle stops producing, waits until all is accounted for, ends the monitors,
// and checks: every input offset has a result or a dead letter, nothing else
// has, no committed offset is before a result, and with exactly-once delivery
// none has two.
func (d *deployment) settle() account {
	d.t.Helper()
	d.stopProducing()
	err := kafkatest.Within(patience, func() error {
		if err := d.caughtUp(d.in); err != nil {
			return err
		}
		if n := len(d.ledger.waiting()); n > 0 {
			return fmt.Errorf("%s: %d records have neither a result nor a dead letter", d.delivery, n)
		}
		return nil
	})
	if err != nil {
		d.t.Error(err) // and they are counted as lost
	}
	err = kafkatest.Within(patience, func() error { // the last offset is committed after the last result
		committed := d.Committed(d.name, d.in)
		d.ledger.mu.Lock()
		defer d.ledger.mu.Unlock()
		for partition, end := range d.ledger.position[d.in] {
			if committed[partition] != end {
				return fmt.Errorf("%s: partition %d is committed up to %d of %d", d.delivery, partition, committed[partition], end)
			}
		}
		return nil
	})
	if err != nil {
		d.t.Error(err)
	}
	for len(d.monitors) > 0 {
		d.end(d.monitors[0], syscall.SIGTERM)
	}
	d.committedIsDurable()
	l := d.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	a := account{in: len(l.in), scored: l.scored}
	for _, n := range l.reasons {
		a.letters += n
	}
	for at, o := range l.out {
		if good, known := l.in[at]; !known {
			d.t.Errorf("%s: a result for %v, where no record is", d.delivery, at)
		} else if good != o.scored {
			d.t.Errorf("%s: %v can be scored: %v, and was scored: %v", d.delivery, at, good, o.scored)
		}
		a.twice += o.times - 1
	}
	messages := 0
	for at := range l.in {
		if l.out[at].times == 0 {
			a.lost++
		}
		if at.row == 0 {
			messages++
		}
	}
	if l.bad != nil {
		d.t.Error(l.bad)
	}
	if int64(messages) < d.produced.Load() {
		d.t.Errorf("%s: the broker lost messages: %d acknowledged, %d in the log", d.delivery, d.produced.Load(), messages)
	}
	if a.scored+a.letters-a.twice != a.in-a.lost {
		d.t.Errorf("%s: %d records in, but %d scored and %d dead letters, %d of them twice", d.delivery, a.in, a.scored, a.letters, a.twice)
	}
	if a.lost > 0 {
		d.t.Errorf("%s: %d records lost", d.delivery, a.lost)
	}
	if a.twice > 0 && d.delivery == exactlyOnce {
		d.t.Errorf("%s: %d results came twice: %s", d.delivery, a.twice, strings.Join(l.twice[:min(len(l.twice), 20)], "; "))
	}
	if text := d.logged(); strings.Contains(text, "panic") || strings.Contains(text, "fatal error") {
		d.t.Errorf("%s: a monitor died of itself", d.delivery)
	}
	return a
}
