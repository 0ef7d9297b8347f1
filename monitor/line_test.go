package monitor

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/klauspost/compress/zstd"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"gorgonia.org/tensor"
)

const (
	testDim     = 8
	input       = "embeddings"
	output      = "scores"
	deadLetters = "dead-letters"
	partitions  = 3
)

// testModel returns a model of classes on the axes, calibrated on vectors near
// them. seed changes the version and little else.
func testModel(t testing.TB, dim int, seed uint64) *model.Model {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	prototypes := make([]float32, 4*dim)
	for c := range 4 {
		prototypes[c*dim+c] = 1
	}
	x := make([]float32, 0, 1000*dim)
	for i := range 1000 {
		x = append(x, near(random, i%4, dim)...)
	}
	m := &model.Model{
		Detector: model.IsoMaxPlus, Score: model.MDS, EntropicScale: 10, Temperature: 1, Alpha: .01, Delta: .05,
		Classes: []string{"a", "b", "c", "d"}, Created: time.Unix(1_700_000_000, 0).UTC(), DistanceScale: 1,
		Prototypes: tensor.New(tensor.WithShape(4, dim), tensor.WithBacking(prototypes)),
	}
	scores, class, err := scorer.Distances(m, x)
	if err != nil {
		t.Fatal(err)
	}
	m.Calibration = model.NewCalibration(scores, class)
	return m
}

// near returns a vector close to the axis of a class.
func near(random *rand.Rand, class, dim int) []float32 {
	x := make([]float32, dim)
	for j := range x {
		x[j] = float32(.1 * random.NormFloat64())
	}
	x[class]++
	return x
}

func raw(x []float32) []byte {
	var b []byte
	for _, v := range x {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

func arrowStream(t testing.TB, vectors ...[]float32) []byte {
	t.Helper()
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.BinaryTypes.String},
		{Name: "embedding", Type: arrow.FixedSizeListOf(int32(len(vectors[0])), arrow.PrimitiveTypes.Float32)},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for i, x := range vectors {
		b.Field(0).(*array.StringBuilder).Append(fmt.Sprintf("row-%d", i))
		list := b.Field(1).(*array.FixedSizeListBuilder)
		list.Append(true)
		list.ValueBuilder().(*array.Float32Builder).AppendValues(x, nil)
	}
	rec := b.NewRecord()
	defer rec.Release()
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, ipc.WithSchema(schema))
	if err := w.Write(rec); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// A fixture is a broker with topics, a registry with a model, and a
// configuration for both.
type fixture struct {
	*kafkatest.Broker
	cfg    *Config
	models *model.Registry
	dir    string
	log    io.Writer // takes the log of the monitors too
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{Broker: kafkatest.Start(t), log: io.Discard, dir: filepath.Join(t.TempDir(), "registry")}
	f.CreateTopic(input, partitions)
	f.CreateTopic(output, partitions)
	f.CreateTopic(deadLetters, 1)
	var err error
	if f.models, err = model.OpenRegistry(f.dir); err != nil {
		t.Fatal(err)
	}
	f.publish(t, testModel(t, testDim, 1))
	f.cfg = DefaultConfig()
	f.cfg.Name = "test"
	f.cfg.Kafka.Brokers = []string{f.Address}
	f.cfg.Input.Topic, f.cfg.Input.Start = input, "earliest"
	f.cfg.Input.Batch.MaxWait = 20 * time.Millisecond
	f.cfg.Output.Topic, f.cfg.DeadLetter.Topic = output, deadLetters
	f.cfg.Model.Registry, f.cfg.Model.PollInterval = f.dir, time.Hour
	f.cfg.Web.ListenAddresses = []string{"127.0.0.1:0"}
	return f
}

func (f *fixture) publish(t testing.TB, m *model.Model) string {
	t.Helper()
	version, err := f.models.Publish(t.Context(), m, model.Event{})
	if err != nil {
		t.Fatal(err)
	}
	return version
}

// run starts a monitor. stop ends it as SIGTERM does, and fails the test if it
// did not end well.
func (f *fixture) run(t *testing.T) (m *Monitor, stop func()) {
	t.Helper()
	m, err := New(t.Context(), f.cfg, slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), f.log), nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the monitor: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("the monitor did not stop within 30 s")
		}
	}
	t.Cleanup(stop)
	return m, stop
}

func (f *fixture) waitFor(t *testing.T, m *Monitor, records int64) {
	t.Helper()
	kafkatest.Eventually(t, 60*time.Second, func() error {
		if s := m.Status(); s.Records+s.DeadLettered < records {
			return fmt.Errorf("%d scored and %d dead-lettered of %d", s.Records, s.DeadLettered, records)
		}
		return nil
	})
}

type result struct {
	ID        string    `json:"id"`
	Score     float64   `json:"score"`
	PValue    float64   `json:"p_value"`
	OOD       bool      `json:"ood"`
	Class     string    `json:"class"`
	Segment   *string   `json:"segment"`
	Timestamp time.Time `json:"timestamp"`
	Topic     string    `json:"topic"`
	Partition int       `json:"partition"`
	Offset    int64     `json:"offset"`
	Row       int       `json:"row"`
	Model     string    `json:"model"`
}

func (f *fixture) results(t *testing.T) []result {
	t.Helper()
	var all []result
	for _, r := range f.ReadAll(output) {
		var got result
		if err := json.Unmarshal(r.Value, &got); err != nil {
			t.Fatalf("%s: %v", r.Value, err)
		}
		if string(r.Key) != got.ID {
			t.Errorf("key %q, id %q", r.Key, got.ID)
		}
		if int(r.Partition) != got.Partition {
			t.Errorf("the result of partition %d is in partition %d", got.Partition, r.Partition)
		}
		all = append(all, got)
	}
	return all
}

func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

func get(t *testing.T, m *Monitor, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + m.Addresses()[0] + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// metric returns the sum of a series' values in the exposition.
func metric(t *testing.T, text, series string) float64 {
	t.Helper()
	at := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(text)
	if at == nil {
		t.Fatalf("no series %s", series)
	}
	v, err := strconv.ParseFloat(at[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// One message of every kind goes down the line: each is scored, or in the
// dead-letter topic with its reason, and the partition moves on.
func TestLine(t *testing.T) {
	f := newFixture(t)
	f.cfg.Input.MaxMessageBytes = 4096
	random := rand.New(rand.NewPCG(9, 9))
	x := func(class int) []float32 { return near(random, class, testDim) }
	nan, infinite := x(0), x(1)
	nan[3], infinite[7] = float32(math.NaN()), float32(math.Inf(-1))
	far := make([]float32, testDim)
	for j := range far {
		far[j] = -1
	}
	text := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	with := func(kind string) []kgo.RecordHeader {
		return []kgo.RecordHeader{{Key: "content-type", Value: []byte(kind)}}
	}
	stream := arrowStream(t, x(0), nan, x(3))
	torn := slices.Clone(stream)
	torn[60] ^= 0xff

	sent := []*kgo.Record{
		{Key: []byte("raw"), Value: raw(x(2))},
		{Key: []byte("empty"), Value: nil},
		{Key: []byte("json"), Value: text(map[string]any{"id": "j", "embedding": x(1), "segment": "eu", "timestamp": "2026-01-02T03:04:05Z"})},
		{Key: []byte("short"), Value: raw(x(1))[:17]},
		{Key: []byte("large"), Value: make([]byte, 5000)},
		{Key: []byte("nan"), Value: raw(nan)},
		{Key: []byte("inf"), Value: raw(infinite)},
		{Key: []byte("zero"), Value: make([]byte, 4*testDim)},
		{Key: []byte("arrow"), Value: stream, Headers: with("application/vnd.apache.arrow.stream")},
		{Key: []byte("torn"), Value: torn, Headers: with("application/vnd.apache.arrow.stream")},
		{Key: []byte("wrong-dimension"), Value: text(map[string]any{"embedding": []float32{1, 2}})},
		{Key: []byte("bad-json"), Value: []byte(`{"embedding": [1, 2`), Headers: with("application/json")},
		{Key: []byte("codec"), Value: raw(x(1)), Headers: with("text/plain")},
		{Key: []byte("far"), Value: raw(far)},
		{Key: []byte{0xff, 0xfe}, Value: raw(x(3))},
	}
	for _, r := range sent {
		r.Topic, r.Partition = input, 1
	}
	f.Produce(sent...)
	m, stop := f.run(t)
	const scored, rejected = 6, 11 // the Arrow message holds two good rows and one bad
	f.waitFor(t, m, scored+rejected)

	byID := make(map[string]result)
	for _, r := range f.results(t) {
		byID[r.ID] = r
		if r.Topic != input || r.Partition != 1 || r.Model != f.live(m) {
			t.Errorf("result %+v", r)
		}
	}
	for id, want := range map[string]struct {
		class  string
		offset int64
		row    int
		ood    bool
	}{
		"raw": {"c", 0, 0, false}, "j": {"b", 2, 0, false}, "row-0": {"a", 8, 0, false}, "row-2": {"d", 8, 2, false}, "fffe": {"d", 14, 0, false},
	} {
		got, ok := byID[id]
		if !ok || got.Class != want.class || got.Offset != want.offset || got.Row != want.row || got.OOD != want.ood {
			t.Errorf("%s: got %+v, want %+v", id, got, want)
		}
	}
	if r := byID["far"]; !r.OOD || r.PValue > .0011 {
		t.Errorf("the far record: %+v", r)
	}
	if r := byID["j"]; r.Segment == nil || *r.Segment != "eu" || !r.Timestamp.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("the JSON record: %+v", r)
	}
	if len(byID) != scored {
		t.Errorf("%d results, want %d", len(byID), scored)
	}

	letters := make(map[string]*kgo.Record)
	for _, r := range f.ReadAll(deadLetters) {
		letters[string(r.Key)] = r
	}
	for key, want := range map[string]struct{ reason, text, row string }{
		"empty":           {"empty", "the message is empty, expected an embedding", "-1"},
		"short":           {"wrong_dimension", "the message has 17 bytes, expected 32: little-endian float32 of dimension 8", "-1"},
		"nan":             {"no_direction", "value 3 of the embedding is NaN, expected finite numbers", "0"},
		"inf":             {"no_direction", "value 7 of the embedding is -Inf, expected finite numbers", "0"},
		"zero":            {"no_direction", "the embedding's norm is under 1e-12: it has no direction", "0"},
		"arrow":           {"no_direction", "value 3 of the embedding is NaN, expected finite numbers", "1"},
		"wrong-dimension": {"wrong_dimension", "embedding has 2 values, expected 8", "-1"},
		"codec":           {"unknown_codec", `content-type "text/plain" is not one of application/octet-stream, application/json, application/vnd.apache.arrow.stream`, "-1"},
		"torn":            {"bad_arrow", "", "-1"},
		"bad-json":        {"bad_json", "", "-1"},
	} {
		r := letters[key]
		if r == nil {
			t.Errorf("%s: not in the dead-letter topic", key)
			continue
		}
		if header(r, "oodmon-reason") != want.reason || want.text != "" && header(r, "oodmon-error") != want.text || header(r, "oodmon-row") != want.row {
			t.Errorf("%s: %v", key, r.Headers)
		}
		at := slices.IndexFunc(sent, func(s *kgo.Record) bool { return string(s.Key) == key })
		if header(r, "oodmon-offset") != strconv.Itoa(at) || header(r, "oodmon-partition") != "1" || header(r, "oodmon-topic") != input || !bytes.Equal(r.Value, sent[at].Value) {
			t.Errorf("%s: the letter does not hold the message or its place: %v", key, r.Headers)
		}
	}
	if r := letters[""]; r == nil || header(r, "oodmon-reason") != "too_large" || header(r, "oodmon-offset") != "4" ||
		header(r, "oodmon-error") != "the message has 5005 bytes, at most 4096 are read" {
		t.Errorf("the large message: %v", r)
	}

	code, text1 := get(t, m, "/metrics")
	if code != http.StatusOK {
		t.Fatal(code)
	}
	for series, want := range map[string]float64{
		`oodmon_records_total{model="test"}`: scored, `oodmon_ood_records_total{model="test"}`: 1, `oodmon_invalid_scores_total{model="test"}`: 4,
		`oodmon_predicted_class_total{class="d",model="test"}`: 2, `oodmon_dead_letters_total{model="test",reason="no_direction"}`: 4,
		`oodmon_dead_letters_total{model="test",reason="too_large"}`: 1, `oodmon_sink_messages_total{model="test",topic_kind="scores"}`: scored,
		`oodmon_sink_messages_total{model="test",topic_kind="dead_letter"}`: rejected, `oodmon_target_false_positive_rate{model="test"}`: .01,
		`oodmon_consumer_messages_total{model="test"}`: 15, `oodmon_consumer_assigned_partitions{model="test"}`: partitions,
		`oodmon_score_count{model="test"}`: scored, `oodmon_consumer_lag_records{model="test",partition="1"}`: 0,
	} {
		if got := metric(t, text1, series); got != want {
			t.Errorf("%s is %g, want %g", series, got, want)
		}
	}
	for path, want := range map[string]string{"/-/healthy": "OK\n", "/-/ready": "OK\n"} {
		if code, body := get(t, m, path); code != http.StatusOK || body != want {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	if code, body := get(t, m, "/"); code != http.StatusOK || !strings.Contains(body, "<title>oodmon</title>") {
		t.Errorf("status page: %d", code)
	}
	stop()

	if got := f.Committed(f.cfg.Input.Group, input)[1]; got != int64(len(sent)) {
		t.Errorf("committed %d, want %d", got, len(sent))
	}
	// After a restart nothing comes twice.
	f.Produce(&kgo.Record{Topic: input, Partition: 1, Key: []byte("later"), Value: raw(x(0))})
	m, _ = f.run(t)
	f.waitFor(t, m, 1)
	if got := len(f.results(t)); got != scored+1 {
		t.Errorf("%d results after a restart, want %d", got, scored+1)
	}
}

func (f *fixture) live(m *Monitor) string { return m.live.Load().model.Version }

func TestOutputWhenOODWithEmbeddingInArrow(t *testing.T) {
	f := newFixture(t)
	f.cfg.Output.When, f.cfg.Output.Format, f.cfg.Output.IncludeEmbedding = "ood", "arrow", true
	random := rand.New(rand.NewPCG(3, 3))
	var sent []*kgo.Record
	for i := range 40 {
		x := near(random, i%4, testDim)
		if i%10 == 3 {
			for j := range x {
				x[j] = -1
			}
		}
		sent = append(sent, &kgo.Record{Topic: input, Key: []byte(strconv.Itoa(i)), Value: raw(x)})
	}
	f.Produce(sent...)
	m, _ := f.run(t)
	f.waitFor(t, m, 40)
	var ids []string
	for _, r := range f.ReadAll(output) {
		if header(r, "content-type") != "application/vnd.apache.arrow.stream" {
			t.Errorf("content-type %q", header(r, "content-type"))
		}
		reader, err := ipc.NewReader(bytes.NewReader(r.Value))
		if err != nil {
			t.Fatal(err)
		}
		for reader.Next() {
			rec := reader.Record()
			col := rec.Column(rec.Schema().FieldIndices("embedding")[0]).(*array.FixedSizeList)
			if v := col.ListValues().(*array.Float32).Value(0); v != -1 {
				t.Errorf("the embedding begins with %g, want -1", v)
			}
			for i := range int(rec.NumRows()) {
				ids = append(ids, rec.Column(0).(*array.String).Value(i))
			}
		}
		reader.Release()
	}
	if got := strings.Join(ids, " "); got != "3 13 23 33" {
		t.Errorf("published %q, want only the OOD records 3 13 23 33", got)
	}
}

// A message of many bad rows is not written once a row.
func TestManyBadRowsOfOneMessage(t *testing.T) {
	f := newFixture(t)
	value := []byte(`[{"embedding":[1]},{"embedding":[0,0,0,0,0,0,0,0]},{"embedding":[1,2]},{"embedding":[1,0,0,0,0,0,0,0]}]`)
	f.Produce(&kgo.Record{Topic: input, Value: value})
	m, _ := f.run(t)
	f.waitFor(t, m, 4)
	rows, whole := make(map[string]string), 0
	for _, r := range f.ReadAll(deadLetters) {
		rows[header(r, "oodmon-row")] = header(r, "oodmon-reason")
		if bytes.Equal(r.Value, value) {
			whole++
		}
	}
	if whole != 1 || len(rows) != 3 || rows["0"] != "wrong_dimension" || rows["1"] != "no_direction" || rows["2"] != "wrong_dimension" {
		t.Errorf("%d letters hold the message, rows %v", whole, rows)
	}
}

// Texts that no output topic would take, or no metric, are dead letters: what
// follows them in the partition is scored, and metrics are served.
func TestHostileTextsBlockNothing(t *testing.T) {
	f := newFixture(t)
	f.cfg.Drift.MaxSegments = 4
	schema := arrow.NewSchema([]arrow.Field{
		{Name: featurizer.ColEmbedding, Type: arrow.FixedSizeListOf(testDim, arrow.PrimitiveTypes.Float32)}, {Name: featurizer.ColSegment, Type: arrow.BinaryTypes.String},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	list := b.Field(0).(*array.FixedSizeListBuilder)
	list.Append(true)
	list.ValueBuilder().(*array.Float32Builder).AppendValues([]float32{1, 0, 0, 0, 0, 0, 0, 0}, nil)
	b.Field(1).(*array.StringBuilder).Append("\xff")
	var notUTF8 bytes.Buffer
	w := ipc.NewWriter(&notUTF8, ipc.WithSchema(schema))
	rec := b.NewRecord()
	defer rec.Release()
	if err := errors.Join(w.Write(rec), w.Close()); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("\\u0001", 100_000)
	f.Produce(
		&kgo.Record{Topic: input, Value: []byte(`{"embedding":[1,0,0,0,0,0,0,0],"id":"` + long + `"}`)},
		&kgo.Record{Topic: input, Value: []byte("{}"), Headers: []kgo.RecordHeader{{Key: "content-type", Value: bytes.Repeat([]byte{0xff}, 600_000)}}},
		&kgo.Record{Topic: input, Value: notUTF8.Bytes()},
	)
	f.Produce(&kgo.Record{Topic: input, Key: []byte("after"), Value: raw([]float32{1, 0, 0, 0, 0, 0, 0, 0})})
	m, _ := f.run(t)
	f.waitFor(t, m, 4)
	var reasons []string
	for _, r := range f.ReadAll(deadLetters) {
		reasons = append(reasons, header(r, "oodmon-reason"))
	}
	if got := strings.Join(reasons, " "); got != "too_large unknown_codec bad_arrow" {
		t.Errorf("dead letters for %q", got)
	}
	if all := f.results(t); len(all) != 1 || all[0].ID != "after" {
		t.Errorf("results %+v", all)
	}
	if code, text := get(t, m, "/metrics"); code != http.StatusOK {
		t.Errorf("metrics: %d %s", code, text)
	}
}

// misframed returns a batch, of a kind that brokers take in, of records that claim
// to be longer than they are, each by so many bytes.
func misframed(value []byte, longer ...int) kmsg.RecordBatch {
	var records []byte
	for i, n := range longer {
		one := kmsg.Record{OffsetDelta: int32(i), Key: []byte("bad"), Value: value}
		one.Length = int32(len(one.AppendTo(nil)) - 1 + n) // without the length itself, of one byte
		records = one.AppendTo(records)
	}
	const codecZstd = 4
	return kmsg.RecordBatch{Attributes: codecZstd, NumRecords: int32(len(longer)), Records: zstd.EncodeTo(nil, records)}
}

// Brokers take in batches whose records cannot be read. They, and all that they
// hold, are told, and what is around them is scored.
func TestBatchesThatCannotBeReadBlockNothing(t *testing.T) {
	for _, delivery := range []string{atLeastOnce, exactlyOnce} {
		t.Run(delivery, func(t *testing.T) {
			f := newFixture(t)
			f.cfg.Output.Delivery = delivery
			x := raw([]float32{1, 0, 0, 0, 0, 0, 0, 0})
			good := func(key string) { f.Produce(&kgo.Record{Topic: input, Key: []byte(key), Value: x}) }
			good("before")
			f.ProduceBatch(input, 0, misframed(x, 0, -3, 0)) // the first is good
			good("between")
			f.ProduceBatch(input, 0, misframed(x, 3, 0))
			good("after")
			m, stop := f.run(t)
			f.waitFor(t, m, 8)

			var letters []*kgo.Record
			kafkatest.Eventually(t, 60*time.Second, func() error { // the markers of a transaction come after its commit
				letters = f.ReadAll(deadLetters)
				if results := f.results(t); len(letters) < 2 || len(results) < 4 {
					return fmt.Errorf("%d results and %d dead letters", len(results), len(letters))
				}
				return nil
			})
			var ids []string
			for _, r := range f.results(t) {
				ids = append(ids, fmt.Sprint(r.ID, " ", r.Offset))
			}
			if got := strings.Join(ids, ", "); got != "before 0, bad 1, between 4, after 7" {
				t.Errorf("results %s", got)
			}
			if len(letters) != 2 {
				t.Fatalf("%d dead letters, want 2", len(letters))
			}
			for i, want := range []struct{ offset, last, text string }{
				{"2", "3", "offsets 2 to 3 of the record batch at offset 1 cannot be read: record 2 of 3: a field claims 32 bytes of 30"},
				{"5", "6", "offsets 5 to 6 of the record batch at offset 5 cannot be read: record 1 of 2: it claims 44 bytes, and has 41"},
			} {
				r := letters[i]
				if header(r, "oodmon-reason") != "bad_batch" || header(r, "oodmon-offset") != want.offset || header(r, "oodmon-last-offset") != want.last ||
					header(r, "oodmon-error") != want.text || header(r, "oodmon-row") != "-1" || r.Key != nil || r.Value != nil {
					t.Errorf("letter %d: %v", i, r.Headers)
				}
			}
			_, text := get(t, m, "/metrics")
			for series, want := range map[string]float64{
				`oodmon_records_total{model="test"}`: 4, `oodmon_dead_letters_total{model="test",reason="bad_batch"}`: 4,
				`oodmon_consumer_messages_total{model="test"}`: 8, `oodmon_sink_messages_total{model="test",topic_kind="dead_letter"}`: 2,
				`oodmon_consumer_errors_total{model="test",operation="fetch"}`: 0,
			} {
				if got := metric(t, text, series); got != want {
					t.Errorf("%s is %g, want %g", series, got, want)
				}
			}
			if s := m.Status(); s.Records != 4 || s.DeadLettered != 4 {
				t.Errorf("%d scored and %d dead-lettered", s.Records, s.DeadLettered)
			}
			stop()
			if got := f.Committed(f.cfg.Input.Group, input)[0]; got != 8 {
				t.Errorf("committed %d, want 8", got)
			}
		})
	}
}

// A new model is taken in while records flow: each is scored once, by one of
// both. A bad one is refused, and the old one stays.
func TestReload(t *testing.T) {
	f := newFixture(t)
	f.cfg.Web.EnableLifecycle = true
	old, err := f.models.Current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, _ := f.run(t)
	random := rand.New(rand.NewPCG(4, 4))
	sent := 0
	produce := func() {
		var records []*kgo.Record
		for range 200 {
			records = append(records, &kgo.Record{Topic: input, Partition: int32(sent % partitions), Key: []byte(strconv.Itoa(sent)), Value: raw(near(random, sent%4, testDim))})
			sent++
		}
		f.Produce(records...)
	}
	reload := func() (int, string) {
		resp, err := http.Post("http://"+m.Addresses()[0]+"/-/reload", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	produce()
	f.waitFor(t, m, int64(sent))
	next := f.publish(t, testModel(t, testDim, 2))
	produce()
	if code, body := reload(); code != http.StatusOK || body != "in service: "+next+"\n" {
		t.Fatalf("reload: %d %s", code, body)
	}
	produce()
	f.waitFor(t, m, int64(sent))

	// Refused: another dimension, a damaged file, a version that is not there.
	refused := func(why string) {
		t.Helper()
		code, body := reload()
		if code != http.StatusInternalServerError || !strings.Contains(body, why) {
			t.Errorf("reload: %d %s, want %q", code, body, why)
		}
		if got := f.live(m); got != next {
			t.Errorf("in service: %s, want %s", got, next)
		}
	}
	f.publish(t, testModel(t, 2*testDim, 3))
	refused("is for embeddings of dimension 16, but this stream has 8; restart to change the dimension")
	damaged := f.publish(t, testModel(t, testDim, 4))
	path := filepath.Join(f.dir, "models", damaged+".safetensors")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)-2] ^= 4
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	refused("the file is damaged")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	refused("no such model in the registry")
	_, text := get(t, m, "/metrics")
	for series, want := range map[string]float64{
		`oodmon_model_last_reload_successful{model="test"}`: 0, `oodmon_model_reloads_total{model="test",result="failure"}`: 3, `oodmon_model_reloads_total{model="test",result="success"}`: 1,
		`oodmon_model_info{detector="isomax+",model="test",score="mds",version="` + next + `"}`: 1,
	} {
		if got := metric(t, text, series); got != want {
			t.Errorf("%s is %g, want %g", series, got, want)
		}
	}
	produce()
	f.waitFor(t, m, int64(sent))
	seen, models := make(map[string]int), make(map[string]int)
	for _, r := range f.results(t) {
		seen[r.ID]++
		models[r.Model]++
	}
	for i := range sent {
		if seen[strconv.Itoa(i)] != 1 {
			t.Errorf("record %d has %d results", i, seen[strconv.Itoa(i)])
		}
	}
	if len(models) != 2 || models[old] < 200 || models[next] < 400 {
		t.Errorf("results by model: %v", models)
	}
}

func TestProfilesAreOffByDefault(t *testing.T) {
	for _, enabled := range []bool{false, true} {
		f := newFixture(t)
		f.cfg.Web.EnablePprof = enabled
		m, _ := f.run(t)
		for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline"} {
			if code, _ := get(t, m, path); (code == http.StatusOK) != enabled {
				t.Errorf("enable_pprof %v: %s answers %d", enabled, path, code)
			}
		}
	}
}

// Who may read the metrics may change nothing, unless that is allowed.
func TestLifecycleIsOffByDefault(t *testing.T) {
	f := drifting(t)
	m, _ := f.run(t)
	for _, path := range []string{"/-/reload", "/-/drift/acknowledge"} {
		resp, err := http.Post("http://"+m.Addresses()[0]+path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusForbidden || !strings.Contains(string(text), "web.enable_lifecycle") {
			t.Errorf("%s: %s: %s, %v", path, resp.Status, text, err)
		}
	}
}

// The registry's poll takes a model in without being asked, and the outcome of
// retraining is exported.
func TestPoll(t *testing.T) {
	f := newFixture(t)
	f.cfg.Model.PollInterval = 20 * time.Millisecond
	m, _ := f.run(t)
	if _, err := f.models.Publish(t.Context(), testModel(t, testDim, 2), model.Event{Retraining: true}); err != nil {
		t.Fatal(err)
	}
	if err := f.models.Record(t.Context(), model.Event{Kind: model.EventRefused, Retraining: true}); err != nil {
		t.Fatal(err)
	}
	want := testModel(t, testDim, 2)
	if _, err := want.Encode(); err != nil {
		t.Fatal(err)
	}
	kafkatest.Eventually(t, 20*time.Second, func() error {
		if got := f.live(m); got != want.Version {
			return fmt.Errorf("in service: %s, want %s", got, want.Version)
		}
		_, text := get(t, m, "/metrics")
		if metric(t, text, `oodmon_retrain_last_result{model="test",result="refused"}`) != 1 || metric(t, text, `oodmon_retrain_last_success_timestamp_seconds{model="test"}`) == 0 {
			return fmt.Errorf("the history is not exported")
		}
		return nil
	})

	// To make the same again is a success.
	at := time.Now().Add(time.Hour).Truncate(time.Second)
	if err := f.models.Record(t.Context(), model.Event{Kind: model.EventUnchanged, Retraining: true, Time: at}); err != nil {
		t.Fatal(err)
	}
	kafkatest.Eventually(t, 20*time.Second, func() error {
		_, text := get(t, m, "/metrics")
		if metric(t, text, `oodmon_retrain_last_result{model="test",result="unchanged"}`) != 1 || metric(t, text, `oodmon_retrain_last_success_timestamp_seconds{model="test"}`) != float64(at.Unix()) {
			return fmt.Errorf("the unchanged run is not exported")
		}
		return nil
	})
}

// idle makes a monitor that does not run, and what it logs to.
func (f *fixture) idle(t *testing.T) (m *Monitor, log *bytes.Buffer) {
	t.Helper()
	log = &bytes.Buffer{}
	m, err := New(t.Context(), f.cfg, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.listeners {
		t.Cleanup(func() { _ = l.Close() })
	}
	return m, log
}

// A line of the history that cannot be read is told, once.
func TestPollTellsOfTornHistory(t *testing.T) {
	f := newFixture(t)
	history, err := os.OpenFile(filepath.Join(f.dir, "history.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := history.WriteString(`{"time":"2026-01-01T00:00:00Z","ki`); err != nil {
		t.Fatal(err)
	}
	if err := history.Close(); err != nil {
		t.Fatal(err)
	}
	m, log := f.idle(t)
	m.observeRetraining(t.Context())
	m.observeRetraining(t.Context())
	if got := strings.Count(log.String(), "lines of the registry's history cannot be read"); got != 1 || !strings.Contains(log.String(), "lines=[2]") {
		t.Errorf("the log tells of it %d times:\n%s", got, log.String())
	}
}

// A model that goes into service is told of where it does not fit.
func TestModelThatDoesNotFit(t *testing.T) {
	f := newFixture(t)
	f.cfg.Model.PerClass = true
	f.cfg.Alerts.OODBudget = .2
	_, log := f.idle(t)
	for _, want := range []string{
		"per class: 0 of 4 classes have a threshold of their own, which takes 299 calibration records each; the others share one",
		"alerts.ood_budget: 0.2 must lie below 1/14.4",
	} {
		if strings.Count(log.String(), want) != 1 {
			t.Errorf("want once %q:\n%s", want, log.String())
		}
	}
}

func TestNewRefuses(t *testing.T) {
	f := newFixture(t)
	for name, test := range map[string]struct {
		spoil func(*Config)
		want  string
	}{
		"no broker":      {func(c *Config) { c.Kafka.Brokers = []string{"127.0.0.1:1"} }, "kafka broker 127.0.0.1:1: "},
		"no input topic": {func(c *Config) { c.Input.Topic = "nowhere" }, "kafka topic nowhere does not exist: create it, or correct the configuration"},
		"no output":      {func(c *Config) { c.Output.Topic = "nowhere" }, "kafka topic nowhere does not exist: create it, or correct the configuration"},
		"no model":       {func(c *Config) { c.Model.Registry = t.TempDir() }, "the registry has no current model; put one there with 'oodmon model promote', 'oodmon model import --promote' or 'oodmon retrain'"},
		"port in use":    {func(c *Config) { c.Web.ListenAddresses = []string{f.Address} }, "web.listen_addresses: listen tcp " + f.Address},
		"no incidents":   {func(c *Config) { c.Drift.Enabled, c.Drift.Incidents.Dir = true, "line_test.go/incidents" }, "drift.incidents.dir: mkdir line_test.go: not a directory"},
		"no web config":  {func(c *Config) { c.Web.ConfigFile = "/nowhere.yml" }, "web.config_file /nowhere.yml: "},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := *f.cfg
			test.spoil(&cfg)
			if _, err := New(t.Context(), &cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// The page of metrics names what is exported, no more and no less.
func TestMetricsAreDocumented(t *testing.T) {
	f := newFixture(t)
	f.cfg.Drift.MaxSegments = 1
	f.Produce(&kgo.Record{Topic: input, Value: []byte("x")}, &kgo.Record{Topic: input, Value: raw(near(rand.New(rand.NewPCG(1, 1)), 0, testDim))})
	m, _ := f.run(t)
	f.waitFor(t, m, 2)
	kafkatest.Eventually(t, 10*time.Second, func() error {
		_, text := get(t, m, "/metrics")
		page, err := os.ReadFile(filepath.Join("..", "docs", "metrics.md"))
		if err != nil {
			t.Fatal(err)
		}
		find := func(pattern, text string) []string {
			var all []string
			for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
				all = append(all, match[1])
			}
			slices.Sort(all)
			return slices.Compact(all)
		}
		exported, documented := find(`(?m)^# TYPE (oodmon_\w+) `, text), find("(?m)^\\| `(oodmon_\\w+)` \\|", string(page))
		if !slices.Equal(exported, documented) {
			return fmt.Errorf("exported %v\ndocumented %v", exported, documented)
		}
		return nil
	})
}
