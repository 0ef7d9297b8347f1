package trainer

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/oodmon/oodmon/model"
)

// Every detector is fitted, calibrated and scored by the same calls, and tells
// clusters apart at the rate that was chosen.
func TestEveryDetector(t *testing.T) {
	data, calibration := clusters(1, 500, "cat", "dog", "owl"), clusters(2, 1000, "cat", "dog", "owl")
	inside, outside := Files(save(t, clusters(3, 1000, "cat", "dog", "owl"))), Files(save(t, cluster(rand.New(rand.NewPCG(4, 4)), 7, 300, "")))
	for _, detector := range model.Detectors() {
		opts := options(t, data)
		opts.Recipe.Detector = detector
		opts.Calibration = Files(save(t, calibration))
		m, report, err := Train(t.Context(), opts)
		if err != nil {
			t.Errorf("%s: %v", detector, err)
			continue
		}
		empty(t, opts.TempDir)
		if m.Detector != detector || m.Score != model.Scores(detector)[0] || m.Version == "" || report.Calibration != 3000 {
			t.Errorf("%s: model %s of %s, %+v", detector, m.Version, m.Detector, report)
		}
		e, err := Evaluate(t.Context(), m, inside, outside)
		if err != nil {
			t.Errorf("%s: %v", detector, err)
			continue
		}
		least, auroc := .02, .9
		if m.Score == model.MPS || m.Score == model.ES {
			least, auroc = 0, .6 // of classes this far apart probabilities are 1 and tie, which only lowers the rate
		}
		if *e.Accuracy < .99 || e.AUROC < auroc || e.FalsePositiveRate > .07 || e.FalsePositiveRate < least {
			t.Errorf("%s: accuracy %.4f, AUROC %.4f, false-positive rate %.4f for a chosen %g", detector, *e.Accuracy, e.AUROC, e.FalsePositiveRate, m.Alpha)
		}
	}
}

func TestRecipeScore(t *testing.T) {
	opts := options(t, clusters(1, 300, "a", "b"))
	opts.Recipe.Detector, opts.Recipe.Score = model.Softmax, model.Energy
	m, _, err := Train(t.Context(), opts)
	if err != nil || m.Score != model.Energy {
		t.Errorf("%v, %v", m, err)
	}
	opts.Recipe.Detector = model.KNN
	if _, _, err := Train(t.Context(), opts); err == nil || err.Error() != `score: "energy" is not one of ["distance"] of detector knn` {
		t.Error(err)
	}
}

// The factor is of the inverse of the shrunk covariance, the shrinkage that of
// Ledoit and Wolf by their definition: the mean squared error of a record's
// z·zᵀ, over the dispersion of the eigenvalues.
func TestCovariance(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for _, shape := range []struct{ n, d int }{{2000, 7}, {40, 60}} { // D above n as well
		n, d := shape.n, shape.d
		x, mean := make([]float32, n*d), make([]float32, d)
		for j := range d {
			mean[j] = float32(r.NormFloat64())
		}
		z := make([][]float64, n)
		for i := range n {
			common := r.NormFloat64()
			z[i] = make([]float64, d)
			for j := range d {
				x[i*d+j] = mean[j] + float32(float64(1+j%3)*r.NormFloat64()+common)
				z[i][j] = float64(x[i*d+j]) - float64(mean[j])
			}
		}
		c := newCovariance(d)
		c.add(x[:n/2*d], func(int) []float32 { return mean })
		c.add(x[n/2*d:], func(int) []float32 { return mean })
		factor, shrinkage, err := c.precisionFactor()
		if err != nil {
			t.Fatal(err)
		}
		s, trace := make([]float64, d*d), 0.
		for i := range z {
			for a := range d {
				for b := range d {
					s[a*d+b] += z[i][a] * z[i][b] / float64(n)
				}
			}
		}
		for j := range d {
			trace += s[j*d+j]
		}
		variance, dispersion := 0., 0.
		for i := range z {
			for a := range d {
				for b := range d {
					diff := z[i][a]*z[i][b] - s[a*d+b]
					variance += diff * diff / float64(n) / float64(n)
				}
			}
		}
		for a := range d {
			for b := range d {
				diff := s[a*d+b]
				if a == b {
					diff -= trace / float64(d)
				}
				dispersion += diff * diff
			}
		}
		if want := variance / dispersion; math.Abs(shrinkage-want) > 1e-5*want {
			t.Errorf("n=%d, D=%d: shrinkage %g, want %g", n, d, shrinkage, want)
		}
		// Σ·W·Wᵀ = I
		worst := 0.
		for a := range d {
			for b := range d {
				sum := 0.
				for k := range d {
					sigma := (1 - shrinkage) * s[a*d+k]
					if a == k {
						sigma += shrinkage * trace / float64(d)
					}
					precision := 0.
					for l := range d {
						precision += float64(factor[k*d+l]) * float64(factor[b*d+l])
					}
					sum += sigma * precision
				}
				if a == b {
					sum--
				}
				worst = max(worst, math.Abs(sum))
			}
		}
		if worst > 1e-4 {
			t.Errorf("n=%d, D=%d: Σ·W·Wᵀ is %g from the identity", n, d, worst)
		}
	}
}

// A dimension that never varies has no variance of its own.
func TestMahalanobisOfAConstantDimension(t *testing.T) {
	data := clusters(1, 300, "a", "b")
	for i := range data {
		data[i].Embedding[dim-1] = 0
	}
	for _, detector := range []string{model.Mahalanobis, model.RelativeMahalanobis} {
		opts := options(t, data)
		opts.Recipe.Detector = detector
		m, report, err := Train(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range m.Calibration.Scores {
			if math.Abs(float64(s)) > 1e4 {
				t.Fatalf("%s: a calibration score of %g", detector, s)
			}
		}
		if report.Shrinkage < leastShrinkage {
			t.Errorf("shrinkage %g", report.Shrinkage)
		}
	}
}

func TestBaselinesRefuse(t *testing.T) {
	flat := clusters(1, 300, "a", "b") // each class is one point
	first := map[string][]float32{}
	for i := range flat {
		if first[flat[i].Label] == nil {
			first[flat[i].Label] = flat[i].Embedding
		}
		flat[i].Embedding = first[flat[i].Label]
	}
	for _, test := range []struct {
		data   []row
		change func(*Recipe)
		want   string
	}{
		{clusters(1, 300, "a"), func(r *Recipe) { r.Detector = model.KNN }, `all 300 records have the label "a": at least two classes are needed`},
		{flat, func(r *Recipe) { r.Detector = model.Mahalanobis }, "fit: covariance within the classes: all embeddings are equal to their mean: there is no spread to measure by"},
		{clusters(1, 300, "a", "b"), func(r *Recipe) { r.Detector, r.Neighbours = model.KNN, 10000 }, "fit: neighbours: 10000 of a bank of "},
		{clusters(1, 300, "a", "b"), func(r *Recipe) { r.Detector, r.Neighbours = model.KNN, 0 }, "neighbours: 0 must be positive"},
		{clusters(1, 300, "a", "b"), func(r *Recipe) { r.Detector, r.Bank = model.KNN, -1 }, "bank: -1 must be positive"},
		{clusters(1, 300, "a", "b"), func(r *Recipe) { r.Detector = "svm" }, `detector: "svm" is not one of ["isomax+" "isomax"`},
	} {
		opts := options(t, test.data)
		test.change(&opts.Recipe)
		if _, _, err := Train(t.Context(), opts); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v\nwant %s", err, test.want)
		}
		empty(t, opts.TempDir)
	}
}

// Of more records than the bank holds, each is as likely to be in it.
func TestBankIsARandomSample(t *testing.T) {
	const rows, kept, runs = 40, 10, 400
	s, err := newSpool(t.TempDir(), 2, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for i := range rows {
		if err := s.append(int32(i), 1, []float32{1, 0}); err != nil { // its class tells which it is
			t.Fatal(err)
		}
		s.renumber = append(s.renumber, int32(i))
	}
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	data := &dataset{dim: 2}
	data.parts[partFit] = s
	counts := make([]int, rows)
	for seed := range runs {
		var m model.Model
		var report Report
		opts := Options{Recipe: Recipe{Neighbours: 1, Bank: kept, Seed: uint64(seed)}}
		if err := fitKNN(t.Context(), data, opts, &report, &m); err != nil {
			t.Fatal(err)
		}
		seen := map[int32]bool{}
		for _, c := range m.BankClass {
			if seen[c] {
				t.Fatalf("record %d is twice in the bank", c)
			}
			seen[c] = true
			counts[c]++
		}
		if len(seen) != kept || report.Bank != kept {
			t.Fatalf("%d records are kept, want %d", len(seen), kept)
		}
	}
	for i, n := range counts { // mean 100, standard deviation 8.7
		if n < 60 || n > 140 {
			t.Errorf("record %d is in the bank %d times of %d, want about 100", i, n, runs)
		}
	}
}
