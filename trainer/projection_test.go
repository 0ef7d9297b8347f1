package trainer

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/oodmon/oodmon/model"
)

// disturbed returns n rows of each of some classes: directions in the first half
// of the dimensions, which noise in the second half drowns.
func disturbed(seed uint64, n, classes int, noise float64) []row {
	random := rand.New(rand.NewPCG(1, 1)) // of the classes, the same for all seeds
	directions := make([][]float32, classes)
	for c := range directions {
		directions[c] = make([]float32, dim)
		for j := range dim / 2 {
			directions[c][j] = float32(random.NormFloat64())
		}
	}
	random = rand.New(rand.NewPCG(seed, 2))
	var all []row
	for range n {
		for c, direction := range directions {
			x := make([]float32, dim)
			for j, v := range direction {
				x[j] = v + float32(.2*random.NormFloat64())
				if j >= dim/2 {
					x[j] += float32(noise * random.NormFloat64())
				}
			}
			all = append(all, row{x, fmt.Sprintf("class-%02d", c)})
		}
	}
	return all
}

// A projection is taken where it helps against classes that a fit does not know.
func TestProjectionAuto(t *testing.T) {
	for name, test := range map[string]struct {
		data  []row
		want  Projection
		folds int
	}{
		"noise that a projection can take away": {disturbed(1, 150, 12, 1.5), ProjectionFull, 4},
		"classes that are apart already":        {disturbed(1, 150, 12, 0), ProjectionNone, 4},
		"three classes":                         {clusters(1, 300, "a", "b", "c"), ProjectionNone, 3},
		"two classes":                           {clusters(1, 300, "a", "b"), ProjectionNone, 0},
	} {
		t.Run(name, func(t *testing.T) {
			opts := options(t, test.data)
			opts.Recipe.Epochs, opts.Recipe.LearningRate = 20, .005
			last := 0.
			opts.Progress = func(share float64) {
				if share < last || share > 1 {
					t.Errorf("progress %g after %g", share, last)
				}
				last = share
			}
			m, report, err := Train(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			empty(t, opts.TempDir)
			trial := report.ProjectionTrial
			if trial == nil || trial.Folds != test.folds || (trial.Full == nil) != (test.folds == 0) {
				t.Fatalf("trial %+v, want %d folds", trial, test.folds)
			}
			if report.Recipe.Projection != test.want || (m.Transform != nil) != (test.want == ProjectionFull) || last != 1 {
				t.Errorf("projection %s, transform %v, want %s; %s; progress %g", report.Recipe.Projection, m.Transform, test.want, trial, last)
			}
			opts.Progress = nil
			if again, _, err := Train(t.Context(), opts); err != nil || again.Version != m.Version {
				t.Errorf("again: %v, another model", err)
			}
		})
	}
}

// What is made of the logits changes nothing of the fit.
func TestProjectionAutoDoesNotDependOnTheScore(t *testing.T) {
	fitted := func(score string) (*model.Model, *ProjectionTrial) {
		opts := options(t, disturbed(1, 100, 8, 1.5))
		opts.Recipe.Detector, opts.Recipe.Score = model.Softmax, score
		m, report, err := Train(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		return m, report.ProjectionTrial
	}
	a, first := fitted("")
	b, second := fitted(model.Energy)
	if *first.Full != *second.Full || *first.None != *second.None {
		t.Errorf("by the default score %s, by energy %s", first, second)
	}
	closeTo(t, "weights", b.Weights.Data().([]float32), a.Weights.Data().([]float32), 0)
}

// A fit that goes on from a model keeps its kind of projection, without a trial.
func TestProjectionAutoGoesOn(t *testing.T) {
	data := clusters(1, 300, "a", "b", "c")
	for _, kind := range []Projection{ProjectionFull, ProjectionLowRank, ProjectionNone} {
		opts := options(t, data)
		opts.Recipe.Projection, opts.Recipe.Rank = kind, 3
		first, _, err := Train(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		opts.Recipe.Projection, opts.Recipe.Rank, opts.Start = ProjectionAuto, 64, first
		_, report, err := Train(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		if report.Started != first.Version || report.Restarted != "" || report.Recipe.Projection != kind || report.ProjectionTrial != nil {
			t.Errorf("from %s: %+v", kind, report)
		}
	}
	// From what it cannot go on from, it tries.
	opts := options(t, data)
	opts.Recipe.Detector = model.ClassMeans
	first, _, err := Train(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	opts.Recipe.Detector, opts.Start = model.IsoMaxPlus, first
	if _, report, err := Train(t.Context(), opts); err != nil || report.ProjectionTrial == nil || report.Restarted == "" {
		t.Errorf("from class means: %+v, %v", report, err)
	}
}

// A fold has every record once, those of the classes left out apart, and of each
// class at least one to fit; of much data it has a sample.
func TestLeaveOut(t *testing.T) {
	for _, records := range []int{3000, 3 * trialRecords} {
		all := clusters(1, records/3, "a", "b", "c")
		all = append(all, cluster(rand.New(rand.NewPCG(1, 1)), 4, 1, "rare")...)
		opts := options(t, nil)
		data, err := readLabelled(t.Context(), inMemory(all), opts.TempDir, [numParts]float64{1}, 0, false)
		if err != nil {
			t.Fatal(err)
		}
		fold, err := data.leaveOut(t.Context(), &opts, []bool{false, true, false, false})
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(fold.classes) != "[a c rare]" || fold.perClass[2] != 1 || fold.parts[partFit].rows != fold.perClass[0]+fold.perClass[1]+1 {
			t.Errorf("classes %q with %d to fit", fold.classes, fold.perClass)
		}
		fitted, judged, out := fold.parts[partFit].rows, fold.parts[partCalibration].rows, fold.parts[partHeldOut].rows
		kept := min(records, trialRecords)
		near := func(what string, got int, want float64) {
			if float64(got) < .9*want || float64(got) > 1.1*want {
				t.Errorf("%d records: %d %s, want about %.0f", records, got, what, want)
			}
		}
		near("left out", out, float64(kept)/3)
		near("to judge", judged, trialJudged*float64(kept)*2/3)
		near("to fit", fitted, (1-trialJudged)*float64(kept)*2/3)
		if records == 3000 && fitted+judged+out != records+1 {
			t.Errorf("%d records of %d", fitted+judged+out, records+1)
		}
		if err := fold.close(); err != nil {
			t.Fatal(err)
		}
		if err := data.close(); err != nil {
			t.Fatal(err)
		}
		empty(t, opts.TempDir)
	}
}
