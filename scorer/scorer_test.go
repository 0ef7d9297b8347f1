package scorer

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/model"
	"gorgonia.org/tensor"
)

// record returns embeddings of dimension dim as a record; row i has the id and
// offset i, and an odd one the segment "odd".
func record(t testing.TB, x []float32, dim int) arrow.Record {
	t.Helper()
	b := array.NewRecordBuilder(memory.DefaultAllocator, featurizer.EmbeddingSchema(dim))
	defer b.Release()
	for i := range len(x) / dim {
		b.Field(0).(*array.StringBuilder).Append(fmt.Sprint(i))
		list := b.Field(1).(*array.FixedSizeListBuilder)
		list.Append(true)
		list.ValueBuilder().(*array.Float32Builder).AppendValues(x[i*dim:(i+1)*dim], nil)
		b.Field(2).AppendNull()
		if i%2 == 1 {
			b.Field(3).(*array.StringBuilder).Append("odd")
		} else {
			b.Field(3).AppendNull()
		}
		b.Field(4).(*array.TimestampBuilder).Append(arrow.Timestamp(1000 + i))
		b.Field(5).(*array.Int32Builder).Append(7)
		b.Field(6).(*array.Int64Builder).Append(int64(i))
		b.Field(7).(*array.Int32Builder).Append(0)
	}
	rec := b.NewRecord()
	t.Cleanup(rec.Release)
	return rec
}

// calibrated returns a model of the prototypes, whose calibration is the
// scores 0.01, 0.02 to 10: the threshold at its rates is the 5th largest, 9.96.
func calibrated(prototypes []float32, dim int, scale float32) *model.Model {
	n := len(prototypes) / dim
	m := &model.Model{
		Version: "0123456789ab", Detector: model.IsoMaxPlus, Score: model.MDS, EntropicScale: 10, Temperature: 1, Alpha: .01, Delta: .05,
		Prototypes: tensor.New(tensor.WithShape(n, dim), tensor.WithBacking(prototypes)), DistanceScale: scale,
	}
	for c := range n {
		m.Classes = append(m.Classes, fmt.Sprintf("class %d", c))
	}
	scores := make([]float32, 1000)
	for i := range scores {
		scores[i] = float32(i+1) / 100
	}
	m.Calibration = model.NewCalibration(scores, make([]int32, len(scores)))
	return m
}

func scorerOf(t testing.TB, m *model.Model) *Scorer {
	t.Helper()
	s, err := New(m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func scored(t testing.TB, m *model.Model, rec arrow.Record) Scores {
	t.Helper()
	var w Workspace
	var out Scores
	if err := scorerOf(t, m).Score(&w, rec, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// reference reads the tensors of a safetensors file as float64.
func reference(t *testing.T, path string) (values map[string][]float64, shapes map[string][]int) {
	t.Helper()
	file, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		t.Skipf("needs %s, which is not part of the project", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(file)
	var header map[string]struct {
		Dtype   string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	if err := json.Unmarshal(file[8:8+n], &header); err != nil {
		t.Fatal(err)
	}
	values, shapes = make(map[string][]float64), make(map[string][]int)
	for name, h := range header {
		shapes[name] = h.Shape
		data := file[8+n:][h.Offsets[0]:h.Offsets[1]]
		for len(data) > 0 {
			switch h.Dtype {
			case "F64":
				values[name] = append(values[name], math.Float64frombits(binary.LittleEndian.Uint64(data)))
				data = data[8:]
			case "F32":
				values[name] = append(values[name], float64(math.Float32frombits(binary.LittleEndian.Uint32(data))))
				data = data[4:]
			default:
				data = nil
			}
		}
	}
	return values, shapes
}

func float32s(values []float64) []float32 {
	out := make([]float32, len(values))
	for i, v := range values {
		out[i] = float32(v)
	}
	return out
}

func within(got float32, want, relative float64) bool {
	return math.Abs(float64(got)-want) <= relative*math.Abs(want)
}

// The score is the negative of the largest logit of the authors' module, the
// class the one that has it.
func TestScoreAgreesWithTheAuthors(t *testing.T) {
	for _, path := range []string{
		"../trainer/testdata/isomaxplus_7x5x3.safetensors",
		"../trainer/testdata/isomaxplus_64x33x10.safetensors",
		"../../shared/reference/isomaxplus_128x128x100.safetensors",
	} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			values, shapes := reference(t, path)
			n, dim, c := shapes["features"][0], shapes["features"][1], shapes["prototypes"][0]
			m := calibrated(float32s(values["prototypes"]), dim, float32(values["distance_scale"][0]))
			got := scored(t, m, record(t, float32s(values["features"]), dim))
			if len(got.Score) != n {
				t.Fatalf("%d scores, want %d", len(got.Score), n)
			}
			for i := range n {
				logits := values["logits_f64"][i*c : (i+1)*c]
				if best := slices.Max(logits); !within(got.Score[i], -best, 1e-5) || !within(got.Score[i], -values["score_f64.mds"][i], 1e-5) {
					t.Errorf("row %d: score %g, want %g", i, got.Score[i], -best)
				} else if int(got.Class[i]) != slices.Index(logits, best) {
					t.Errorf("row %d: class %d, want %d", i, got.Class[i], slices.Index(logits, best))
				}
			}
		})
	}
}

// Where torch is exact, so is the score: nearly on a prototype, on it, far
// beyond it. Where torch has no direction, there is no score.
func TestScoreOfHardRows(t *testing.T) {
	values, shapes := reference(t, "testdata/isomaxplus_hard.safetensors")
	n, dim, c := shapes["features"][0], shapes["features"][1], shapes["prototypes"][0]
	scale := float32(values["distance_scale"][0])
	if _, err := New(calibrated(float32s(values["prototypes"]), dim, scale)); err == nil || err.Error() != "prepare scorer: prototype 3 has norm 0: it must be finite and at least 1e-12" {
		t.Errorf("a zero prototype: %v", err)
	}
	const zero = 3
	prototypes := slices.Delete(slices.Clone(values["prototypes"]), zero*dim, (zero+1)*dim)
	got := scored(t, calibrated(float32s(prototypes), dim, scale), record(t, float32s(values["features"]), dim))
	for i, directionless := range []bool{true, false, false, true, false, false} {
		if directionless {
			if got.Class[i] != -1 || got.OOD[i] || !math.IsNaN(float64(got.Score[i])) || !math.IsNaN(float64(got.PValue[i])) {
				t.Errorf("row %d: score %g, p-value %g, ood %v, class %d; want none", i, got.Score[i], got.PValue[i], got.OOD[i], got.Class[i])
			}
			continue
		}
		logits := slices.Delete(slices.Clone(values["logits_f64"][i*c:(i+1)*c]), zero, zero+1)
		best := slices.Max(logits)
		if !within(got.Score[i], -best, 1e-5) {
			t.Errorf("row %d: score %g, want %g", i, got.Score[i], -best)
		}
		if int(got.Class[i]) != slices.Index(logits, best) {
			t.Errorf("row %d: class %d, want %d", i, got.Class[i], slices.Index(logits, best))
		}
	}
	if n != 6 {
		t.Errorf("%d rows, want 6", n)
	}
}

// On the unit circle with the prototype (1, 0), scale 5 and temperature 1, the
// score of (cos a, sin a) is 5·2·sin(a/2).
func TestDecision(t *testing.T) {
	m := calibrated([]float32{3, 0}, 2, -5)
	s := scorerOf(t, m)
	if s.Threshold() != 9.96 {
		t.Fatalf("threshold %g, want 9.96: the 5th largest of 1000", s.Threshold())
	}
	at := func(score float64) []float32 {
		a := 2 * math.Asin(score/10)
		return []float32{float32(7 * math.Cos(a)), float32(7 * math.Sin(a))}
	}
	for _, test := range []struct {
		x      []float32
		score  float64
		pValue float64
		ood    bool
	}{
		{at(0), 0, 1, false},
		{at(5.005), 5.005, 501. / 1001, false}, // 500 of 1000 are at least as high
		{at(9.955), 9.955, 6. / 1001, false},
		{at(9.965), 9.965, 5. / 1001, true},
		{[]float32{-1, 0}, 10, 2. / 1001, true}, // as high as the highest
	} {
		got := scored(t, m, record(t, test.x, 2))
		if math.Abs(float64(got.Score[0])-test.score) > 1e-4 || !within(got.PValue[0], test.pValue, 1e-6) || got.OOD[0] != test.ood {
			t.Errorf("%v: score %g, p-value %g, ood %v; want %g, %g, %v", test.x, got.Score[0], got.PValue[0], got.OOD[0], test.score, test.pValue, test.ood)
		}
	}
	// Exactly at the threshold is not above it.
	m.Calibration = model.NewCalibration(slices.Repeat([]float32{10}, 1000), make([]int32, 1000))
	if got := scored(t, m, record(t, []float32{-1, 0}, 2)); got.OOD[0] || got.PValue[0] != 1 {
		t.Errorf("at the threshold: ood %v, p-value %g; want false, 1", got.OOD[0], got.PValue[0])
	}
	m.Temperature = 4
	if got := scored(t, m, record(t, []float32{-1, 0}, 2)); got.Score[0] != 2.5 {
		t.Errorf("temperature 4: score %g, want 2.5", got.Score[0])
	}
}

// The scorer's p-values are those that the calibration defines.
func TestPValue(t *testing.T) {
	const dim = 4
	r := rand.New(rand.NewPCG(3, 3))
	x := make([]float32, 5000*dim)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	m := calibrated([]float32{1, 0, 0, 0, 0, 1, 0, 0}, dim, 3)
	scores, class, err := Distances(m, x[:2000*dim])
	if err != nil {
		t.Fatal(err)
	}
	m.Calibration = model.NewCalibration(scores, class)
	got := scored(t, m, record(t, x, dim))
	for i, score := range got.Score {
		if want := m.Calibration.PValue(score); got.PValue[i] != want {
			t.Fatalf("row %d with score %g: p-value %g, want %g", i, score, got.PValue[i], want)
		}
	}
}

// A row without a score must not show the decision on the row that was there.
func TestInvalidRowIsNeverOOD(t *testing.T) {
	s := scorerOf(t, calibrated([]float32{1, 0}, 2, 5))
	var w Workspace
	var out Scores
	for _, x := range [][]float32{{-1, 0}, {0, 0}} {
		if err := s.Score(&w, record(t, x, 2), &out); err != nil {
			t.Fatal(err)
		}
		if out.OOD[0] != (x[0] == -1) {
			t.Errorf("%v: ood %v", x, out.OOD[0])
		}
	}
}

// Scores are reused: what an earlier, longer record left must not show.
func TestScoreOfSlicesAndReuse(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	const n, dim = 40, 9
	x := make([]float32, n*dim)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	x[5*dim+3] = float32(math.Inf(1))
	m := calibrated(slices.Clone(x[:4*dim]), dim, 2)
	rec := record(t, x, dim)
	all := scored(t, m, rec)
	s := scorerOf(t, m)
	var w Workspace
	var out Scores
	for _, part := range [][2]int64{{0, n}, {3, 17}, {5, 6}, {39, 40}, {8, 8}} {
		piece := rec.NewSlice(part[0], part[1])
		if err := s.Score(&w, piece, &out); err != nil {
			t.Fatal(err)
		}
		piece.Release()
		if len(out.Score) != int(part[1]-part[0]) || len(out.Class) != len(out.Score) || len(out.OOD) != len(out.Score) || len(out.PValue) != len(out.Score) {
			t.Fatalf("rows %v: %d scores", part, len(out.Score))
		}
		for i := range out.Score {
			j := int(part[0]) + i
			if math.Float32bits(out.Score[i]) != math.Float32bits(all.Score[j]) || out.Class[i] != all.Class[j] || out.OOD[i] != all.OOD[j] || math.Float32bits(out.PValue[i]) != math.Float32bits(all.PValue[j]) {
				t.Errorf("rows %v: row %d is %g of class %d, in the whole record %g of %d", part, j, out.Score[i], out.Class[i], all.Score[j], all.Class[j])
			}
		}
	}
	if all.Class[5] != -1 || all.Class[0] != 0 || all.Score[0] > 1e-6 {
		t.Errorf("row 5 has class %d, want -1; row 0 is a prototype and has score %g of class %d", all.Class[5], all.Score[0], all.Class[0])
	}
	// What a calibration is made of is the same.
	scores, class, err := Distances(m, x)
	if err != nil {
		t.Fatal(err)
	}
	for i := range scores {
		if math.Float32bits(scores[i]) != math.Float32bits(all.Score[i]) || class[i] != all.Class[i] {
			t.Errorf("row %d: Distances gives %g of class %d, Score %g of %d", i, scores[i], class[i], all.Score[i], all.Class[i])
		}
	}
}

func TestScoreRefuses(t *testing.T) {
	m := calibrated([]float32{1, 2, 3}, 3, 1)
	s := scorerOf(t, m)
	var w Workspace
	var out Scores
	scoresOnly := array.NewRecord(arrow.NewSchema(nil, nil), nil, 0)
	defer scoresOnly.Release()
	for want, rec := range map[string]arrow.Record{
		"score: the embeddings have dimension 2, model 0123456789ab expects 3": record(t, []float32{1, 2}, 2),
		"score: column embedding: the record has 0 of that name, expected 1":   scoresOnly,
	} {
		if err := s.Score(&w, rec, &out); err == nil || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
	if _, _, err := Distances(m, make([]float32, 4)); err == nil || err.Error() != "score: 4 values are not rows of dimension 3" {
		t.Errorf("%v", err)
	}
	m.Calibration = model.NewCalibration([]float32{1}, []int32{0})
	if _, err := New(m); err == nil || !strings.Contains(err.Error(), "too few calibration records: 1 for a false-positive rate of 0.01 with confidence 0.95; at least 299 are needed") {
		t.Errorf("%v", err)
	}
}

func TestScoreAllocatesNothing(t *testing.T) {
	const dim = 16
	x := make([]float32, 64*dim)
	for i := range x {
		x[i] = float32(i%7 - 3)
	}
	s, rec := scorerOf(t, calibrated(slices.Clone(x[:3*dim]), dim, 1)), record(t, x, dim)
	var w Workspace
	var out Scores
	if n := testing.AllocsPerRun(20, func() {
		if err := s.Score(&w, rec, &out); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a call, want 0", n)
	}
}

func TestRecordBuilder(t *testing.T) {
	nan := float32(math.NaN())
	m := calibrated([]float32{1, 0}, 2, 5)
	rec := record(t, []float32{1, 0, -1, 0, nan, 0, 1, 1}, 2)
	scores := scored(t, m, rec)
	for _, test := range []struct {
		dim     int
		onlyOOD bool
		ids     []string
	}{
		{0, false, []string{"0", "1", "3"}}, // row 2 has no score
		{2, false, []string{"0", "1", "3"}},
		{2, true, []string{"1"}},
	} {
		b := NewRecordBuilder(test.dim)
		for range 2 { // a builder is used again
			out, err := b.Build(rec, &scores, m, "topic", test.onlyOOD)
			if err != nil {
				t.Fatal(err)
			}
			if !out.Schema().Equal(featurizer.ScoreSchema(test.dim)) || int(out.NumRows()) != len(test.ids) {
				t.Fatalf("%d rows of %v", out.NumRows(), out.Schema())
			}
			for i, id := range test.ids {
				var line [1]struct {
					ID        string    `json:"id"`
					Score     float32   `json:"score"`
					PValue    float32   `json:"p_value"`
					OOD       bool      `json:"ood"`
					Class     string    `json:"class"`
					Segment   *string   `json:"segment"`
					Topic     string    `json:"topic"`
					Partition int32     `json:"partition"`
					Offset    int64     `json:"offset"`
					Model     string    `json:"model"`
					Embedding []float32 `json:"embedding"`
				}
				text, err := out.NewSlice(int64(i), int64(i+1)).MarshalJSON()
				if err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(text, &line); err != nil {
					t.Fatalf("%v: %s", err, text)
				}
				got, row := line[0], int(id[0]-'0')
				if got.ID != id || got.Score != scores.Score[row] || got.PValue != scores.PValue[row] || got.OOD != (row == 1) || got.Class != "class 0" ||
					(got.Segment != nil) != (row%2 == 1) || got.Topic != "topic" || got.Partition != 7 || got.Offset != int64(row) || got.Model != m.Version || len(got.Embedding) != test.dim {
					t.Errorf("row %s: %s", id, text)
				}
			}
			out.Release()
		}
	}
}

func BenchmarkScore(b *testing.B) {
	for _, s := range []struct{ dim, classes int }{{64, 10}, {512, 100}} {
		b.Run(fmt.Sprintf("d=%d/c=%d", s.dim, s.classes), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 1))
			const n = 1024
			x := make([]float32, n*s.dim)
			for i := range x {
				x[i] = float32(r.NormFloat64())
			}
			sc, rec := scorerOf(b, calibrated(slices.Clone(x[:s.classes*s.dim]), s.dim, 1)), record(b, x, s.dim)
			var w Workspace
			var out Scores
			b.ReportAllocs()
			for b.Loop() {
				if err := sc.Score(&w, rec, &out); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "records/s")
		})
	}
}

func BenchmarkRecordBuilder(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	const n, dim = 4096, 16
	x := make([]float32, n*dim)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	m := calibrated(slices.Clone(x[:10*dim]), dim, 1)
	rec := record(b, x, dim)
	scores := scored(b, m, rec)
	builder := NewRecordBuilder(0)
	b.ReportAllocs()
	for b.Loop() {
		out, err := builder.Build(rec, &scores, m, "embeddings", false)
		if err != nil {
			b.Fatal(err)
		}
		out.Release()
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "records/s")
}

// With thresholds by class, a score is judged among its own class's records.
func TestPerClass(t *testing.T) {
	m := calibrated([]float32{1, 0, 0, 1}, 2, 1)
	scores, class := make([]float32, 800), make([]int32, 800)
	for i := range scores { // class 0 lies within 0.1, class 1 within 1
		class[i] = int32(i % 2)
		scores[i] = float32(i+1) / 800 * []float32{.1, 1}[i%2]
	}
	m.Calibration = model.NewCalibration(scores, class)
	rec := record(t, []float32{1, .2, .2, 1}, 2) // both 0.197 away
	s, err := NewPerClass(m)
	if err != nil {
		t.Fatal(err)
	}
	var w Workspace
	var out Scores
	if err := s.Score(&w, rec, &out); err != nil {
		t.Fatal(err)
	}
	if !out.OOD[0] || out.OOD[1] || out.PValue[0] > .003 || out.PValue[1] < .5 || s.CalibrationRecords() != 400 {
		t.Errorf("OOD %v, p-values %v, among %d records", out.OOD, out.PValue, s.CalibrationRecords())
	}
	if text := s.Pooled(); text != "" {
		t.Errorf("each class has enough, but: %s", text)
	}
	if all := scored(t, m, rec); all.OOD[0] || all.PValue[0] != all.PValue[1] {
		t.Errorf("with one threshold for all: OOD %v, p-values %v", all.OOD, all.PValue)
	}
}
