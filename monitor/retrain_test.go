package monitor

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/trainer"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Labelled embeddings in a topic become a model, the running monitor takes it
// in, and what comes after is scored by it.
func TestRetrainFromTopicWhileRunning(t *testing.T) {
	f := newFixture(t)
	f.cfg.Model.PollInterval = 50 * time.Millisecond
	f.cfg.Retrain.Data.Topic = "labelled"
	f.CreateTopic("labelled", 2)
	random := rand.New(rand.NewPCG(5, 5))
	classes := []string{"a", "b", "c", "d", "e"} // the model in service does not know e
	var records []*kgo.Record
	for i := range 4000 {
		value, err := json.Marshal(map[string]any{"embedding": near(random, i%5, testDim), "label": classes[i%5]})
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, &kgo.Record{Topic: "labelled", Partition: int32(i % 2), Value: value})
	}
	records = append(records, &kgo.Record{Topic: "labelled", Value: []byte("no embedding")})
	f.Produce(records...)
	f.ProduceBatch("labelled", 1, misframed([]byte("none can be read"), 3, 0, 0))

	m, _ := f.run(t)
	old := f.live(m)
	broker := trainer.Broker{
		Kafka: f.cfg.Kafka, Features: featurizer.Config{Codec: "auto", MaxMessageBytes: 1 << 20}, MaxRecords: 500, MaxBytes: 1 << 20,
	}
	report, err := trainer.Retrain(t.Context(), f.cfg.Retrain, broker, f.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if report.Result != model.EventPublished || report.Training.Records != 4000 || report.Rejected != 4 || report.Champion == nil || report.Champion.Version != old {
		t.Errorf("report %+v", report)
	}
	if len(report.NewClasses) != 1 || report.NewClasses[0] != "e" {
		t.Errorf("new classes %q, want [e]", report.NewClasses)
	}
	kafkatest.Eventually(t, 20*time.Second, func() error {
		if got := f.live(m); got != report.Candidate.Version {
			return fmt.Errorf("in service %s, want %s", got, report.Candidate.Version)
		}
		return nil
	})
	for i := range 50 {
		f.Produce(&kgo.Record{Topic: input, Key: []byte(strconv.Itoa(i)), Value: raw(near(random, 4, testDim))})
	}
	f.waitFor(t, m, 50)
	for _, r := range f.results(t) {
		if r.Model != report.Candidate.Version || r.Class != "e" {
			t.Errorf("result %+v, want class e by %s", r, report.Candidate.Version)
		}
	}

	// A window that begins after the last record holds nothing.
	f.cfg.Retrain.Data.Window = time.Nanosecond
	const want = "read training data: topic labelled holds no message in the range of retrain.data.window"
	if _, err := trainer.Retrain(t.Context(), f.cfg.Retrain, broker, f.dir, nil); err == nil || err.Error() != want {
		t.Errorf("an empty window: %v, want %s", err, want)
	}

	// A topic with much that is no embedding is refused, whatever the rest of it is.
	f.cfg.Retrain.Data.Window = 0
	for range 400 {
		f.Produce(&kgo.Record{Topic: "labelled", Value: []byte("no embedding")})
	}
	const refused = "read training data: topic labelled: 404 of 4404 records are no embedding, a share of 0.092; at most 0.05 is accepted; the last is at offset "
	if _, err := trainer.Retrain(t.Context(), f.cfg.Retrain, broker, f.dir, nil); err == nil || !strings.HasPrefix(err.Error(), refused) {
		t.Errorf("a topic with many broken messages: %v, want %s", err, refused)
	}
}
