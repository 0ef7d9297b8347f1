package trainer

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/oodmon/oodmon/featurizer"
)

// The rest of what is refused: TestTrainRefuses, TestBaselinesRefuse, and for an
// empty range of a topic TestRetrainFromTopicWhileRunning in monitor.

// inMemory is a source of rows as they are: JSON has no NaN.
func inMemory(rows []row) Source {
	return func(_ context.Context, fn func(string, arrow.Record) error) error {
		b := array.NewRecordBuilder(memory.DefaultAllocator, featurizer.EmbeddingSchema(dim))
		defer b.Release()
		for _, r := range rows {
			appendRow(b, r.Embedding, r.Label)
		}
		rec := b.NewRecord()
		defer rec.Release()
		return fn("memory", rec)
	}
}

// spoil makes n of the rows, all over them, not finite.
func spoil(rows []row, n int) []row {
	for i := range n {
		x := rows[i*len(rows)/n].Embedding
		x[i%dim] = []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))}[i%3]
	}
	return rows
}

// Rows that are not finite are left out and counted, up to a share of them, where
// they are fitted to, calibrated on and evaluated.
func TestRowsThatAreNotFinite(t *testing.T) {
	const tooMany = "61 of 1200 labelled records have no direction (not finite, or a norm under 1e-12), a share of 0.051; at most 0.05 is accepted: look at what makes the embeddings"
	good := func(seed uint64) []row { return clusters(seed, 400, "a", "b", "c") }
	train := func(data, calibration []row) (*Report, error) {
		opts := options(t, good(9))
		opts.Data, opts.Calibration = inMemory(data), inMemory(calibration)
		m, report, err := Train(t.Context(), opts)
		empty(t, opts.TempDir)
		if err == nil {
			for _, v := range m.PrototypeData() {
				if v != v {
					t.Fatal("a prototype is NaN")
				}
			}
		}
		return report, err
	}
	report, err := train(spoil(good(1), 60), spoil(good(2), 60))
	if err != nil || report.NoDirection != 60 || report.Records != 1140 || report.Fitted != 1140 || report.Calibration != 1140 {
		t.Errorf("60 of 1200: %+v, %v", report, err)
	}
	if _, err := train(spoil(good(1), 61), good(2)); err == nil || err.Error() != "read training data: "+tooMany {
		t.Errorf("61 of 1200 to fit: %v", err)
	}
	if _, err := train(good(1), spoil(good(2), 61)); err == nil || err.Error() != "calibrate: "+tooMany {
		t.Errorf("61 of 1200 to calibrate: %v", err)
	}

	m, _, err := Train(t.Context(), options(t, good(1)))
	if err != nil {
		t.Fatal(err)
	}
	e, err := Evaluate(t.Context(), m, inMemory(spoil(good(2), 60)), inMemory(spoil(good(3), 30)))
	if err != nil || e.WithoutScore != 90 || e.Inside != 1140 || e.Outside != 1170 || *e.Accuracy < .99 || math.IsNaN(*e.NLL+*e.ECE+e.AUROC) {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := Evaluate(t.Context(), m, inMemory(spoil(good(2), 61)), inMemory(good(3))); err == nil || err.Error() != "in-distribution records: "+tooMany {
		t.Errorf("61 of 1200: %v", err)
	}
	if _, err := Evaluate(t.Context(), m, inMemory(good(2)), inMemory(spoil(good(3), 61))); err == nil || err.Error() != "OOD records: "+tooMany {
		t.Errorf("61 of 1200: %v", err)
	}
}

// Labels that the model does not know count as wrong, and as nothing where
// probabilities are judged; a set that has only such is another set.
func TestEvaluateUnknownLabels(t *testing.T) {
	m, _, err := Train(t.Context(), options(t, clusters(1, 300, "a", "b")))
	if err != nil {
		t.Fatal(err)
	}
	known := clusters(2, 100, "a", "b")
	outliers := Files(save(t, cluster(rand.New(rand.NewPCG(3, 0)), 5, 50, "")))
	want, err := Evaluate(t.Context(), m, Files(save(t, known)), outliers)
	if err != nil {
		t.Fatal(err)
	}
	mixed := append(append([]row{}, known...), cluster(rand.New(rand.NewPCG(4, 0)), 4, 100, "zebra")...)
	mixed = append(mixed, cluster(rand.New(rand.NewPCG(5, 0)), 0, 7, "")...)
	e, err := Evaluate(t.Context(), m, Files(save(t, mixed)), outliers)
	if err != nil || e.UnknownLabels != 100 || math.Abs(*e.Accuracy-*want.Accuracy*200/300) > 1e-12 || *e.NLL != *want.NLL || *e.ECE != *want.ECE {
		t.Errorf("%+v, %v; those with known labels alone: %+v", e, err, want)
	}
	const none = `in-distribution records: none of the labels of 100 records is a class of model `
	if _, err := Evaluate(t.Context(), m, Files(save(t, mixed[200:])), outliers); err == nil || !strings.HasPrefix(err.Error(), none) || !strings.HasSuffix(err.Error(), `the first label is "zebra", the first class "a"`) {
		t.Errorf("got %v", err)
	}
}

func TestOtherDimensions(t *testing.T) {
	good, other := Files(save(t, clusters(1, 300, "a", "b"))), Files(save(t, []row{{[]float32{1, 2}, "a"}, {[]float32{2, 1}, "b"}}))
	opts := options(t, clusters(1, 300, "a", "b"))
	m, _, err := Train(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	opts.Data = func(ctx context.Context, fn func(string, arrow.Record) error) error {
		if err := good(ctx, fn); err != nil {
			return err
		}
		return other(ctx, fn)
	}
	if _, _, err := Train(t.Context(), opts); err == nil || !strings.HasSuffix(err.Error(), "rows.jsonl: embeddings have dimension 2, those before have 12") {
		t.Errorf("fit: %v", err)
	}
	opts.Data, opts.Calibration = good, other
	if _, _, err := Train(t.Context(), opts); err == nil || !strings.HasSuffix(err.Error(), "rows.jsonl: embeddings have dimension 2, the model expects 12") {
		t.Errorf("calibration: %v", err)
	}
	for what, files := range map[string][2]Source{"in-distribution records: ": {other, good}, "OOD records: ": {good, other}} {
		if _, err := Evaluate(t.Context(), m, files[0], files[1]); err == nil || !strings.HasPrefix(err.Error(), what) || !strings.HasSuffix(err.Error(), "embeddings have dimension 2, the model expects 12") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Integers are labels by their digits; other types than text are refused.
func TestLabelColumnOfAnotherType(t *testing.T) {
	rows := clusters(1, 300, "0", "1", "10")
	write := func(kind arrow.DataType, appendLabel func(b array.Builder, label string)) string {
		t.Helper()
		vector := arrow.FixedSizeListOf(dim, arrow.PrimitiveTypes.Float32)
		schema := arrow.NewSchema([]arrow.Field{{Name: featurizer.ColEmbedding, Type: vector}, {Name: featurizer.ColLabel, Type: kind}}, nil)
		b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		defer b.Release()
		for _, r := range rows {
			list := b.Field(0).(*array.FixedSizeListBuilder)
			list.Append(true)
			list.ValueBuilder().(*array.Float32Builder).AppendValues(r.Embedding, nil)
			appendLabel(b.Field(1), r.Label)
		}
		rec := b.NewRecord()
		defer rec.Release()
		path := filepath.Join(t.TempDir(), "rows.arrow")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		w := ipc.NewWriter(f, ipc.WithSchema(schema))
		if err := w.Write(rec); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		return path
	}
	number := map[string]int64{"0": 0, "1": 1, "10": 10}
	opts := options(t, rows)
	opts.Data = Files(write(arrow.PrimitiveTypes.Int64, func(b array.Builder, label string) { b.(*array.Int64Builder).Append(number[label]) }))
	m, _, err := Train(t.Context(), opts)
	if err != nil || strings.Join(m.Classes, ",") != "0,1,10" {
		t.Errorf("integers: %v", err)
	}
	path := write(arrow.PrimitiveTypes.Float64, func(b array.Builder, label string) { b.(*array.Float64Builder).Append(float64(number[label])) })
	opts.Data = Files(path)
	if _, _, err := Train(t.Context(), opts); err == nil || !strings.Contains(err.Error(), path) || !strings.HasSuffix(err.Error(), "column label has type float64, expected utf8 or an integer") {
		t.Errorf("floats: %v", err)
	}
	lines := func(label string) string {
		path := filepath.Join(t.TempDir(), "rows.jsonl")
		var text strings.Builder
		for _, r := range rows {
			fmt.Fprintf(&text, "{\"embedding\":[%g", r.Embedding[0])
			for _, v := range r.Embedding[1:] {
				fmt.Fprintf(&text, ",%g", v)
			}
			fmt.Fprintf(&text, "],\"label\":"+label+"}\n", r.Label)
		}
		if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	opts.Data = Files(lines("%s"))
	if m, _, err := Train(t.Context(), opts); err != nil || strings.Join(m.Classes, ",") != "0,1,10" {
		t.Errorf("integers in JSON: %v", err)
	}
	path = lines("%s.5")
	opts.Data = Files(path)
	if _, _, err := Train(t.Context(), opts); err == nil || !strings.Contains(err.Error(), path+": line 1: label: ") || !strings.HasSuffix(err.Error(), ".5 is neither a string nor an integer") {
		t.Errorf("fractions in JSON: %v", err)
	}
}
