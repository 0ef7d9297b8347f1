package trainer

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/memory"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
)

// Every loss with every projection, optimizer, start and schedule tells apart
// what can be told apart, and gives the same file again.
func TestRecipes(t *testing.T) {
	data, fresh := clusters(1, 400, "cat", "dog", "owl"), Files(save(t, clusters(2, 300, "cat", "dog", "owl")))
	outliers := Files(save(t, cluster(rand.New(rand.NewPCG(3, 3)), 3, 300, "")))
	for _, loss := range model.Heads() {
		for _, change := range []func(r *Recipe){
			func(r *Recipe) { r.Projection = ProjectionFull },
			func(r *Recipe) { r.Projection, r.Rank = ProjectionLowRank, 4 },
			func(r *Recipe) { r.Projection = ProjectionNone },
			func(r *Recipe) {
				r.Projection, r.Optimizer, r.Schedule, r.Initial = ProjectionNone, SGD, ScheduleStep, InitialRandom
			},
			func(r *Recipe) { r.Projection, r.ClassWeights, r.Patience = ProjectionFull, true, 2 },
		} {
			opts := options(t, data)
			opts.Recipe.Detector, opts.Recipe.Epochs = loss, 10
			change(&opts.Recipe)
			r := opts.Recipe
			t.Run(fmt.Sprint(loss, " ", r.Projection, " ", r.Optimizer, " ", r.Patience), func(t *testing.T) {
				m, report, err := Train(t.Context(), opts)
				if err != nil {
					t.Fatal(err)
				}
				empty(t, opts.TempDir)
				e, err := Evaluate(t.Context(), m, fresh, outliers)
				if err != nil {
					t.Fatal(err)
				}
				if *e.Accuracy < .99 || e.AUROC < .75 {
					t.Errorf("accuracy %.4f, AUROC %.4f", *e.Accuracy, e.AUROC)
				}
				if m.Detector != loss || (r.Projection == ProjectionNone) != (m.Transform == nil) || report.Temperature.Records != report.Calibration {
					t.Errorf("detector %s, transform %v, report %+v", m.Detector, m.Transform, report)
				}
				again, _, err := Train(t.Context(), opts)
				if err != nil || again.Version != m.Version {
					t.Errorf("again: %v, another model", err)
				}
			})
		}
	}
}

// The trainer and the scorer have the same logits of a model.
func TestLogitsAreTheScorers(t *testing.T) {
	data := clusters(1, 300, "cat", "dog", "owl")
	for _, loss := range model.Heads() {
		opts := options(t, data)
		opts.Recipe.Detector = loss
		m, _, err := Train(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		x := slices.Clone(data[7].Embedding)
		want, err := scorer.Logits(m, x)
		if err != nil {
			t.Fatal(err)
		}
		h := headOf(m)
		if h.directional() {
			normalise(x, x)
		}
		for k, v := range h.logits(x, 1) {
			if got := float64(v) / m.Temperature; math.Abs(got-want[k]) > 1e-4*math.Abs(want[k]) {
				t.Errorf("%s: logit %d is %g, the scorer's is %g", loss, k, got, want[k])
			}
		}
	}
}

// The best approximation of a rank is that of the singular values: of a
// projection that has the rank nothing is lost.
func TestCompressKeepsWhatTheRankHolds(t *testing.T) {
	const d, rank, n = 20, 3, 500
	random := rand.New(rand.NewPCG(1, 1))
	s, err := newSpool(t.TempDir(), d, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	s.renumber = []int32{0}
	x := make([]float32, d)
	for range n {
		for j := range x {
			x[j] = float32(random.NormFloat64() * float64(1+j))
		}
		normalise(x, x)
		if err := s.append(0, 1, x); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	h := newHead(model.IsoMaxPlus, ProjectionFull, 0, 2, d)
	for range rank {
		a, b := make([]float64, d), make([]float64, d)
		for j := range d {
			a[j], b[j] = random.NormFloat64(), random.NormFloat64()
		}
		for i := range d {
			for j := range d {
				h.full.value[i*d+j] += float32(a[i] * b[j])
			}
		}
	}
	full, low := make([]float32, d), make([]float32, d)
	h.project(x, full, nil, 1)
	if err := h.compress(t.Context(), s, rank, 0); err != nil {
		t.Fatal(err)
	}
	h.project(x, low, make([]float32, rank), 1)
	closeTo(t, "projection", low, full, 1e-4)
}

func TestEarlyStopping(t *testing.T) {
	data := clusters(1, 300, "a", "b", "c")
	opts := options(t, data)
	// Steps so large that the loss soon rises again.
	opts.Recipe.Epochs, opts.Recipe.Patience, opts.Recipe.LearningRate = 200, 3, .5
	_, report, err := Train(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if report.Epochs >= 200 || report.ValidationLoss == nil || report.Fitted > 720 {
		t.Errorf("%d epochs, validation loss %v, fitted to %d of 900", report.Epochs, report.ValidationLoss, report.Fitted)
	}
	stop, h := &earlyStop{best: math.Inf(1)}, newHead(model.IsoMaxPlus, ProjectionNone, 0, 1, 1)
	for i, loss := range []float64{3, 1, 2, 1} {
		h.prototypes.value[0] = float32(i)
		stop.after(h, loss)
	}
	stop.restore(h)
	if stop.since != 2 || stop.best != 1 || h.prototypes.value[0] != 1 {
		t.Errorf("%d epochs since the best of %g, prototype %g; want that of the second epoch", stop.since, stop.best, h.prototypes.value[0])
	}
}

// A class of which there are few is not outvoted by its neighbour.
func TestClassWeights(t *testing.T) {
	random := rand.New(rand.NewPCG(8, 8))
	overlapping := func(n int, at float32, label string) []row {
		var all []row
		for range n {
			x := []float32{1, at + float32(.5*random.NormFloat64())}
			all = append(all, row{x, label})
		}
		return all
	}
	opts := options(t, append(overlapping(2000, -.3, "common"), overlapping(60, .3, "rare")...))
	opts.Calibration = Files(save(t, overlapping(100, -.3, "common")))
	opts.Recipe.Epochs, opts.Recipe.Projection = 20, ProjectionNone
	test := Files(save(t, overlapping(1000, .3, "rare")))
	recall := func(weights bool) float64 {
		opts.Recipe.ClassWeights = weights
		m, _, err := Train(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		e, err := Evaluate(t.Context(), m, test, test)
		if err != nil {
			t.Fatal(err)
		}
		return *e.Accuracy
	}
	if without, with := recall(false), recall(true); with < without+.02 {
		t.Errorf("recall of the rare class: %.3f without weights, %.3f with", without, with)
	}
}

func TestWarmStart(t *testing.T) {
	opts := options(t, clusters(1, 300, "a", "b", "c"))
	opts.Recipe.Projection = ProjectionFull
	first, _, err := Train(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	opts.Data = Files(save(t, append(cluster(rand.New(rand.NewPCG(1, 9)), 3, 300, "d"), clusters(2, 300, "a", "b")...)))
	opts.Start, opts.Recipe.LearningRate, opts.Recipe.Epochs = first, 1e-12, 1 // it stays where it starts
	second, report, err := Train(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if report.Started != first.Version || report.Restarted != "" || strings.Join(second.Classes, "") != "abd" {
		t.Fatalf("started from %q, restarted since %q, classes %q", report.Started, report.Restarted, second.Classes)
	}
	closeTo(t, "prototypes of the classes that stay", second.PrototypeData()[:2*dim], first.PrototypeData()[:2*dim], 1e-6)
	closeTo(t, "projection", second.Transform.Matrix.Data().([]float32), first.Transform.Matrix.Data().([]float32), 1e-6)
	e, err := Evaluate(t.Context(), second, Files(save(t, cluster(rand.New(rand.NewPCG(2, 9)), 3, 100, "d"))), Files(save(t, clusters(2, 30, "a"))))
	if err != nil || *e.Accuracy < .99 {
		t.Errorf("the new class starts at its mean: accuracy %v, %v", e, err)
	}

	two := Files(save(t, []row{{[]float32{1, 0}, "a"}, {[]float32{0, 1}, "b"}}))
	for want, change := range map[string]func(o *Options){
		"its projection is not of the recipe's kind": func(o *Options) { o.Recipe.Projection = ProjectionNone },
		"its loss is isomax+, the recipe's dismax":   func(o *Options) { o.Recipe.Detector = model.DisMax },
		"its dimension is 12, the data's 2":          func(o *Options) { o.Data, o.Calibration, o.Alpha, o.Delta = two, two, .5, .5 },
	} {
		other := opts
		change(&other)
		if _, report, err := Train(t.Context(), other); err != nil || report.Restarted != want || report.Started != "" {
			t.Errorf("restarted since %q, %v; want %q", report.Restarted, err, want)
		}
	}
}

// The temperature gives probabilities that are right as often as they say.
func TestTemperature(t *testing.T) {
	// Two classes whose clusters overlap: the head is far too sure or unsure.
	random := rand.New(rand.NewPCG(4, 4))
	rows := func(n int) []row {
		var all []row
		for range n {
			class := random.IntN(2)
			x := []float32{float32(float64(2*class-1)*.5 + random.NormFloat64()), 1}
			all = append(all, row{x, []string{"a", "b"}[class]})
		}
		return all
	}
	for _, loss := range model.Heads() {
		opts := options(t, rows(3000))
		opts.Recipe.Detector, opts.Recipe.Epochs = loss, 20
		opts.Calibration = Files(save(t, rows(2000)))
		m, report, err := Train(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		f := report.Temperature
		if f.Records != 2000 || f.Value != m.Temperature || f.ECE > .08 || f.ECE > f.ECEBefore || f.NLL > f.NLLBefore {
			t.Errorf("%s: %+v", loss, f)
		}
		// No other temperature is more likely.
		h := headOf(m)
		for _, factor := range []float64{.9, 1.1} {
			l, err := h.likelihood(t.Context(), m.Classes, opts.Calibration.vectors(), 1/(factor*f.Value))
			if err != nil || l.nll < f.NLL-1e-9 {
				t.Errorf("%s: at %g times the temperature the loss is %.6f, at it %.6f", loss, factor, l.nll, f.NLL)
			}
		}
		// The scores of the calibration are at the temperature.
		s, err := scorer.New(m)
		if err != nil {
			t.Fatal(err)
		}
		e, err := Evaluate(t.Context(), m, opts.Calibration, opts.Calibration)
		if err != nil || e.FalsePositiveRate > m.Alpha || e.FalsePositiveRate == 0 {
			t.Errorf("%s: threshold %g flags %v of its own calibration, %v", loss, s.Threshold(), e, err)
		}
	}

	unlabelled := clusters(2, 100, "", "")
	opts := options(t, clusters(1, 300, "a", "b"))
	opts.Calibration = Files(save(t, unlabelled))
	m, report, err := Train(t.Context(), opts)
	if err != nil || m.Temperature != 1 || report.Temperature != (Temperature{Value: 1}) {
		t.Errorf("without labels: %+v, %v", report, err)
	}
	const want = "temperature 1: not fitted, since no calibration record has a label that the model knows"
	if got := report.Temperature.String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// What data a record comes with does not change its part, and copies share one.
func TestSplitIsOfTheRecord(t *testing.T) {
	heldOut := func(rows []row) map[string]bool {
		r := DefaultRecipe()
		d, err := r.read(t.Context(), Files(save(t, rows)), t.TempDir(), .2, .2)
		if err != nil {
			t.Fatal(err)
		}
		defer d.close()
		seen := make(map[string]bool)
		err = d.parts[partHeldOut].inOrder(func(x []float32, y []int32) error {
			for i := range y {
				seen[fmt.Sprintf("%.4f", x[i*dim:(i+1)*dim])] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return seen
	}
	old, later := clusters(1, 500, "a", "b"), clusters(2, 500, "a", "b")
	before, after := heldOut(old), heldOut(append(later, append(old, old...)...))
	if share := float64(len(before)) / 1000; math.Abs(share-.2) > .04 {
		t.Errorf("a share of %.3f is held out, want 0.2", share)
	}
	if len(after) < 300 || len(after) > 500 {
		t.Errorf("%d different records of 2000 are held out, want about 400", len(after))
	}
	missed := 0
	for x := range before {
		if !after[x] {
			missed++
		}
	}
	if missed > 2 { // the first record of each class is one to fit
		t.Errorf("%d of %d held-out records are no longer, with other data around", missed, len(before))
	}
}

// A class with one record is fitted to that one, wherever the split would have
// put it; the report of retraining says that nothing is known of it.
func TestASingleRecordOfAClassIsFitted(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	data := clusters(1, 300, "a", "b")
	var singles []string
	for i := range 6 {
		singles = append(singles, fmt.Sprint("single", i))
		data = append(data, cluster(random, 3+i, 1, singles[i])...)
	}
	report, err := Retrain(t.Context(), retrainConfig(t, data), Broker{}, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if report.Training.Classes != 8 || !slices.Equal(report.NotHeldOut, singles) || !strings.Contains(report.Text(), "no record held out single0, single1") {
		t.Errorf("not held out: %q\n%s", report.NotHeldOut, report.Text())
	}
}

// Without outliers, a model is asked for classes that are taken from it.
func TestWithout(t *testing.T) {
	data := clusters(1, 300, "a", "b", "c")
	for _, loss := range model.Heads() {
		opts := options(t, data)
		opts.Recipe.Detector = loss
		m, _, err := Train(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		less := without(m, []string{"b"})
		_, class, err := scorer.Distances(less, data[0].Embedding)
		if err != nil || strings.Join(less.Classes, "") != "ac" || len(m.Classes) != 3 {
			t.Fatalf("%s: %q, %v", loss, less.Classes, err)
		}
		want, _ := scorer.Logits(m, data[0].Embedding)
		if nearer := map[bool]int32{true: 0, false: 1}[want[0] >= want[2]]; class[0] != nearer {
			t.Errorf("%s: class %d of a and c, want %d", loss, class[0], nearer)
		}
	}
}

// stream is a source of rows of some classes that no file holds.
func stream(rows, dim int) Source {
	return func(_ context.Context, fn func(string, arrow.Record) error) error {
		random := rand.New(rand.NewPCG(1, 1))
		b := array.NewRecordBuilder(memory.DefaultAllocator, featurizer.EmbeddingSchema(dim))
		defer b.Release()
		x := make([]float32, dim)
		for first := 0; first < rows; first += 1000 {
			for i := range min(1000, rows-first) {
				class := i % 4
				for j := range x {
					x[j] = float32(random.Uint32()>>16) / (1 << 16)
				}
				x[class] += 20
				appendRow(b, x, fmt.Sprint(class))
			}
			rec := b.NewRecord()
			err := fn("stream", rec)
			rec.Release()
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// Data of ten times the memory that the process takes is fitted.
func TestMemoryDoesNotGrowWithTheData(t *testing.T) {
	if testing.Short() {
		t.Skip("writes more than a gigabyte")
	}
	if raceDetector {
		t.Skip("the race detector's own memory would be measured")
	}
	const limit, dim = 160 << 20, 256
	rows := 10 * limit / (4 * dim)
	if os.Getenv("OODMON_TEST_MEMORY") == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMemoryDoesNotGrowWithTheData$", "-test.v")
		cmd.Env = append(os.Environ(), "OODMON_TEST_MEMORY=1", "OODMON_TEST_DIR="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
		t.Logf("%d MiB of embeddings, peak memory %d MiB", rows*4*dim>>20, peak>>20)
		if peak > limit {
			t.Errorf("peak memory %d MiB, want at most %d", peak>>20, limit>>20)
		}
		return
	}
	debug.SetMemoryLimit(limit * 3 / 4)
	recipe := DefaultRecipe()
	recipe.Epochs, recipe.BatchSize, recipe.Projection = 1, 1024, ProjectionNone
	m, report, err := Train(t.Context(), Options{
		Data: stream(rows, dim), Calibration: stream(5000, dim), Recipe: recipe, Alpha: .01, Delta: .05, TempDir: os.Getenv("OODMON_TEST_DIR"),
	})
	if err != nil || report.Fitted != rows || len(m.Classes) != 4 {
		t.Fatalf("%+v, %v", report, err)
	}
}

// appendRow appends an embedding with its label, and null for all else.
func appendRow(b *array.RecordBuilder, x []float32, label string) {
	for i, f := range b.Schema().Fields() {
		switch f.Name {
		case featurizer.ColEmbedding:
			list := b.Field(i).(*array.FixedSizeListBuilder)
			list.Append(true)
			list.ValueBuilder().(*array.Float32Builder).AppendValues(x, nil)
		case featurizer.ColLabel:
			b.Field(i).(*array.StringBuilder).Append(label)
		default:
			b.Field(i).AppendNull()
		}
	}
}

// raceDetector is whether this program was built with it.
var raceDetector bool
