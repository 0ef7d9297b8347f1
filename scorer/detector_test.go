package scorer

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/oodmon/oodmon/model"
	"gorgonia.org/tensor"
)

// kinds are the heads by the names of their reference files.
var kinds = map[string]string{"isomaxplus": model.IsoMaxPlus, "isomax": model.IsoMax, "dismax": model.DisMax, "softmax": model.Softmax}

// headOf returns the model of a reference file.
func headOf(detector string, values map[string][]float64, dim int) *model.Model {
	m := calibrated(float32s(values["prototypes"]), dim, 0)
	m.Detector = detector
	switch detector {
	case model.Softmax:
		c := len(values["bias"])
		m.Prototypes = nil
		m.Weights = tensor.New(tensor.WithShape(c, dim), tensor.WithBacking(float32s(values["weights"])))
		m.Bias = tensor.New(tensor.WithShape(c), tensor.WithBacking(float32s(values["bias"])))
		m.Classes = nil
		for i := range c {
			m.Classes = append(m.Classes, fmt.Sprint(i))
		}
	case model.IsoMaxPlus, model.DisMax:
		m.DistanceScale = float32(values["distance_scale"][0])
	}
	return m
}

// Every score of every head is the negative of the authors'.
func TestScoresAgreeWithTheAuthors(t *testing.T) {
	for kind, detector := range kinds {
		for _, path := range []string{
			"../trainer/testdata/" + kind + "_7x5x3.safetensors",
			"../trainer/testdata/" + kind + "_64x33x10.safetensors",
			"../../shared/reference/" + kind + "_128x128x100.safetensors",
		} {
			t.Run(filepath.Base(path), func(t *testing.T) {
				values, shapes := reference(t, path)
				n, dim := shapes["features"][0], shapes["features"][1]
				c := shapes["logits"][1]
				x := float32s(values["features"])
				m := headOf(detector, values, dim)
				for _, score := range model.Scores(detector) {
					m.Score = score
					got := scored(t, m, record(t, x, dim))
					for i := range n {
						logits := values["logits_f64"][i*c : (i+1)*c]
						var want float64
						switch score {
						case model.MaxLogit:
							want = -slices.Max(logits)
						case model.Energy:
							sum := 0.
							for _, l := range logits {
								sum += math.Exp(l)
							}
							want = -math.Log(sum)
						default:
							want = -values["score_f64."+score][i]
						}
						// A score that is a difference of logits, which have 24 bits,
						// keeps an error of theirs where they cancel. So has torch's.
						largest := max(math.Abs(slices.Max(logits)), math.Abs(slices.Min(logits)))
						if diff := math.Abs(float64(got.Score[i]) - want); !(diff <= 1e-5*math.Abs(want)+4*0x1p-24*largest) {
							t.Errorf("%s of row %d: %g, want %g", score, i, got.Score[i], want)
						}
						if int(got.Class[i]) != slices.Index(logits, slices.Max(logits)) {
							t.Errorf("%s, row %d: class %d", score, i, got.Class[i])
						}
					}
				}
				logits, err := Logits(m, x)
				if err != nil {
					t.Fatal(err)
				}
				for i, want := range values["logits_f64"] {
					if math.Abs(logits[i]-want) > 1e-6*math.Abs(want) {
						t.Fatalf("logit %d: %g, want %g", i, logits[i], want)
					}
				}
			})
		}
	}
}

// What is hard on float32: rows of any length, on a prototype, with equal
// prototypes, without a direction. The reference is the definition in float64.
func TestScoresOfHardRows(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	const dim, classes = 24, 6
	for _, detector := range []string{model.IsoMaxPlus, model.IsoMax, model.DisMax, model.Softmax} {
		values := map[string][]float64{"distance_scale": {-1.7}}
		for _, name := range []string{"prototypes", "weights"} {
			for range classes * dim {
				values[name] = append(values[name], float64(float32(r.NormFloat64())))
			}
			copy(values[name][2*dim:3*dim], values[name][dim:2*dim])
			for j := range dim {
				values[name][5*dim+j] *= 4
			}
		}
		values["bias"] = []float64{1, -1, .5, 0, 2, -2}
		p := values["prototypes"]
		if detector == model.Softmax {
			p = values["weights"]
		}
		row := func(f func(j int) float64) (out []float32) {
			for j := range dim {
				out = append(out, float32(f(j)))
			}
			return out
		}
		near := row(func(j int) float64 { return p[j] * (1 + 1e-6*r.NormFloat64()) })
		on := row(func(j int) float64 { return p[dim+j] })
		minus := row(func(j int) float64 { return -p[j] })
		long := row(func(j int) float64 { return 1e18 * r.NormFloat64() })
		longer := row(func(j int) float64 { return 1e30 * r.NormFloat64() })
		longest := row(func(j int) float64 { return 3e38 })
		short := row(func(j int) float64 { return 1e-9 * r.NormFloat64() })
		ordinary := row(func(j int) float64 { return r.NormFloat64() })
		none := row(func(j int) float64 { return 0 })
		tiny := row(func(j int) float64 { return 1e-18 })
		nan, inf := slices.Clone(ordinary), slices.Clone(ordinary)
		nan[3], inf[3] = float32(math.NaN()), float32(math.Inf(1))
		valid := [][]float32{near, on, minus, long, longer, longest, short, ordinary}
		x := slices.Concat(append(slices.Clone(valid), none, tiny, nan, inf)...)
		m := headOf(detector, values, dim)
		for _, score := range model.Scores(detector) {
			m.Score = score
			got := scored(t, m, record(t, x, dim))
			for i := range got.Score {
				if i >= len(valid) {
					if got.Class[i] != -1 || !math.IsNaN(float64(got.Score[i])) || got.OOD[i] {
						t.Errorf("%s %s: row %d has no direction, but score %g of class %d", detector, score, i, got.Score[i], got.Class[i])
					}
					continue
				}
				if detector == model.IsoMax && score == model.MPS && i >= 3 && i <= 5 {
					continue // so far away that float64 cannot tell the distances apart
				}
				want, class := definition(detector, score, values, valid[i], classes)
				want = math.Max(-math.MaxFloat32, math.Min(math.MaxFloat32, want))
				if diff := math.Abs(float64(got.Score[i]) - want); !(diff <= 1e-5*math.Abs(want)+1e-9) || int(got.Class[i]) != class {
					t.Errorf("%s %s: row %d: %g of class %d, want %g of %d", detector, score, i, got.Score[i], got.Class[i], want, class)
				}
			}
		}
	}
}

// definition is a score in float64, and the class of the largest logit.
func definition(detector, score string, values map[string][]float64, x []float32, classes int) (float64, int) {
	dim := len(x)
	logits := make([]float64, classes)
	length := func(v []float64) float64 {
		s := 0.
		for _, v := range v {
			s += v * v
		}
		return math.Sqrt(s)
	}
	row := make([]float64, dim)
	for j, v := range x {
		row[j] = float64(v)
	}
	total := 0.
	for c := range logits {
		if detector == model.Softmax {
			for j, v := range row {
				logits[c] += v * values["weights"][c*dim+j]
			}
			logits[c] += values["bias"][c]
			continue
		}
		p, diff := values["prototypes"][c*dim:(c+1)*dim], make([]float64, dim)
		for j := range diff {
			if detector == model.IsoMax {
				diff[j] = row[j] - p[j]
			} else {
				diff[j] = row[j]/length(row) - p[j]/length(p)
			}
		}
		switch logits[c] = -length(diff); detector {
		case model.IsoMaxPlus:
			logits[c] *= 1.7
		case model.DisMax:
			logits[c] *= 1.7 / math.Sqrt2
		}
		total += logits[c]
	}
	if detector == model.DisMax {
		for c := range logits {
			logits[c] += total / float64(classes)
		}
	}
	best := slices.Max(logits)
	sum, mean, entropy := 0., 0., 0.
	for _, l := range logits {
		sum += math.Exp(l - best)
		mean += l / float64(classes)
	}
	for _, l := range logits {
		if p := math.Exp(l-best) / sum; p > 0 {
			entropy -= p * math.Log(p)
		}
	}
	return map[string]float64{
		model.MDS: -best, model.MaxLogit: -best, model.MPS: -1 / sum, model.ES: entropy, model.MMLS: -(best + mean),
		model.MMLES: -(best + mean - entropy), model.Energy: -(best + math.Log(sum)),
	}[score], slices.Index(logits, best)
}

// The temperature divides the logits.
func TestTemperature(t *testing.T) {
	values, shapes := reference(t, "../trainer/testdata/softmax_7x5x3.safetensors")
	dim, c := shapes["features"][1], shapes["logits"][1]
	m := headOf(model.Softmax, values, dim)
	m.Score, m.Temperature = model.ES, 4
	got := scored(t, m, record(t, float32s(values["features"]), dim))
	for i, s := range got.Score {
		sum, entropy := 0., 0.
		for _, l := range values["logits_f64"][i*c : (i+1)*c] {
			sum += math.Exp(l / 4)
		}
		for _, l := range values["logits_f64"][i*c : (i+1)*c] {
			entropy -= math.Exp(l/4) / sum * math.Log(math.Exp(l/4)/sum)
		}
		if !within(s, entropy, 1e-5) {
			t.Errorf("row %d: %g, want %g", i, s, entropy)
		}
	}
}

// A transform comes before every head: x·M for those that use lengths.
func TestTransformBeforeLogits(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	const k, classes, n = 250, 11, 70
	tests := transforms(r)
	for _, name := range slices.Sorted(maps.Keys(tests)) { // in one order, so that a seed is one set of numbers
		test := tests[name]
		for _, detector := range []string{model.IsoMaxPlus, model.IsoMax, model.DisMax, model.Softmax} {
			values := map[string][]float64{"distance_scale": {1.7}}
			for range classes * k {
				values["prototypes"] = append(values["prototypes"], float64(float32(r.NormFloat64())))
			}
			values["weights"] = values["prototypes"]
			for range classes {
				values["bias"] = append(values["bias"], float64(float32(r.NormFloat64())))
			}
			m := headOf(detector, values, k)
			m.Score, m.Transform = model.MMLES, test.transform
			x := random(r, n*test.dim, 1)
			got := scored(t, m, record(t, x, test.dim))
			for i := range n {
				row := make([]float64, test.dim)
				for j := range row {
					row[j] = float64(x[i*test.dim+j])
				}
				y := test.apply(row)
				want, class := definition(detector, model.MMLES, values, float32s(y), classes)
				// The score is a difference of logits, each rounded by its own size: that counts, not the score's.
				largest, _ := definition(detector, model.MaxLogit, values, float32s(y), classes)
				if !(math.Abs(float64(got.Score[i])-want) <= 1e-5*(1+math.Abs(want))+2e-6*math.Abs(largest)) || int(got.Class[i]) != class {
					t.Errorf("%s %s: row %d: %g of class %d, want %g of %d", name, detector, i, got.Score[i], got.Class[i], want, class)
				}
			}
		}
	}
}

func knnModel(bank []float32, class []int32, dim, k, classes int) *model.Model {
	m := calibrated(make([]float32, classes*dim), dim, 0)
	m.Detector, m.Score, m.Prototypes = model.KNN, model.Distance, nil
	m.Bank, m.BankClass, m.Neighbours = dense(bank, dim), class, k
	return m
}

// The k-th nearest is exact, also among duplicates and near duplicates.
func TestKNN(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	const dim, n, classes = 33, 61, 5
	for _, rows := range []int{1, 7, 400} {
		bank, class := random(r, rows*dim, 1), make([]int32, rows)
		for i := range rows {
			class[i] = int32(r.IntN(classes))
			if i%3 == 1 { // nearly the one before
				for j := range dim {
					bank[i*dim+j] = bank[(i-1)*dim+j] * float32(3*(1+1e-6*r.NormFloat64()))
				}
			}
		}
		x := random(r, n*dim, 1)
		copy(x, bank[:dim]) // on one
		clear(x[5*dim : 6*dim])
		x[6*dim+3] = float32(math.NaN())
		unit := func(v []float32) []float64 {
			out, s := make([]float64, dim), 0.
			for _, v := range v {
				s += float64(v) * float64(v)
			}
			for j, v := range v {
				out[j] = float64(v) / math.Sqrt(s)
			}
			return out
		}
		for _, k := range []int{1, 2, 5, rows} {
			if k > rows {
				continue
			}
			got := scored(t, knnModel(bank, class, dim, k, classes), record(t, x, dim))
			for i := range n {
				if i == 5 || i == 6 {
					if got.Class[i] != -1 || !math.IsNaN(float64(got.Score[i])) {
						t.Errorf("row %d has no direction, but score %g of class %d", i, got.Score[i], got.Class[i])
					}
					continue
				}
				all := make([]float64, rows)
				u := unit(x[i*dim : (i+1)*dim])
				for b := range rows {
					for j, v := range unit(bank[b*dim : (b+1)*dim]) {
						all[b] += (u[j] - v) * (u[j] - v)
					}
				}
				order := make([]int, rows)
				for b := range order {
					order[b] = b
				}
				slices.SortStableFunc(order, func(a, b int) int {
					if all[a] < all[b] {
						return -1
					}
					return 1
				})
				if want := math.Sqrt(all[order[k-1]]); math.Abs(float64(got.Score[i])-want) > 1e-5*want+3e-7 {
					t.Errorf("%d rows, k=%d: row %d: %g, want %g", rows, k, i, got.Score[i], want)
				}
				if k == 1 && all[order[0]] < all[order[min(1, rows-1)]]-1e-6 && got.Class[i] != class[order[0]] {
					t.Errorf("row %d: class %d, want %d", i, got.Class[i], class[order[0]])
				}
			}
		}
	}
}

func TestMahalanobis(t *testing.T) {
	r := rand.New(rand.NewPCG(10, 10))
	const dim, classes, n = 70, 9, 80
	means, factor := random(r, classes*dim, 1), random(r, dim*dim, 3)
	for i := range means {
		means[i] = .05*means[i] + .1 // as of directions, away from the origin
	}
	mean, background := random(r, dim, .1), random(r, dim*dim, 1)
	x := random(r, n*dim, 2)
	x[3*dim] = float32(math.Inf(1))
	clear(x[4*dim : 5*dim])
	copy(x[7*dim:8*dim], means[2*dim:3*dim])
	square := func(row []float32, centre, factor []float32) float64 {
		diff := make([]float64, dim)
		for j := range diff {
			diff[j] = float64(row[j])/norm(row) - float64(centre[j])
		}
		s := 0.
		for _, v := range product(diff, factor, dim) {
			s += v * v
		}
		return s
	}
	for _, detector := range []string{model.Mahalanobis, model.RelativeMahalanobis} {
		m := calibrated(means, dim, 0)
		m.Detector, m.Score, m.PrecisionFactor = detector, model.Distance, dense(factor, dim)
		if detector == model.RelativeMahalanobis {
			m.BackgroundMean = tensor.New(tensor.WithShape(dim), tensor.WithBacking(mean))
			m.BackgroundFactor = dense(background, dim)
		}
		got := scored(t, m, record(t, x, dim))
		for i := range n {
			row := x[i*dim : (i+1)*dim]
			if i == 3 || i == 4 {
				if got.Class[i] != -1 || !math.IsNaN(float64(got.Score[i])) {
					t.Errorf("row %d has no direction, but score %g of class %d", i, got.Score[i], got.Class[i])
				}
				continue
			}
			want, class := math.Inf(1), -1
			for c := range classes {
				if s := square(row, means[c*dim:(c+1)*dim], factor); s < want {
					want, class = s, c
				}
			}
			size := want
			if detector == model.RelativeMahalanobis {
				b := square(row, mean, background)
				want, size = want-b, want+b
			}
			if math.Abs(float64(got.Score[i])-want) > 1e-5*size+1e-6 || int(got.Class[i]) != class {
				t.Errorf("%s: row %d: %g of class %d, want %g of %d", detector, i, got.Score[i], got.Class[i], want, class)
			}
		}
	}
}

// fDBD by its definition, in float64: the distances of a direction to the
// hyperplanes between its nearest mean and the others.
func TestFDBDByDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(12, 12))
	const dim, classes, n = 23, 9, 217
	means, mean, x := random(r, classes*dim, .3), random(r, dim, .1), random(r, n*dim, 5)
	x[3*dim] = float32(math.NaN())
	clear(x[4*dim : 5*dim])
	copy(x[7*dim:8*dim], means[2*dim:3*dim])
	m := calibrated(means, dim, 0)
	m.Detector, m.Score = model.FDBD, model.Distance
	m.BackgroundMean = tensor.New(tensor.WithShape(dim), tensor.WithBacking(mean))
	got := scored(t, m, record(t, x, dim))
	for i := range n {
		if i == 3 || i == 4 {
			if got.Class[i] != -1 || !math.IsNaN(float64(got.Score[i])) {
				t.Errorf("row %d has no direction, but score %g of class %d", i, got.Score[i], got.Class[i])
			}
			continue
		}
		row, unit := x[i*dim:(i+1)*dim], make([]float64, dim)
		var fromMean float64
		for j := range unit {
			unit[j] = float64(row[j]) / norm(row)
			fromMean += (unit[j] - float64(mean[j])) * (unit[j] - float64(mean[j]))
		}
		best, least := -1, math.Inf(1)
		for c := range classes {
			square := 0.
			for j, v := range means[c*dim : (c+1)*dim] {
				square += (unit[j] - float64(v)) * (unit[j] - float64(v))
			}
			if square < least {
				best, least = c, square
			}
		}
		sum := 0.
		for c := range classes {
			if c == best {
				continue
			}
			// The hyperplane goes through the middle of both means; its normal is
			// their difference.
			along, length := 0., 0.
			for j := range unit {
				k, o := float64(means[best*dim+j]), float64(means[c*dim+j])
				along += (unit[j] - (k+o)/2) * (k - o)
				length += (k - o) * (k - o)
			}
			sum += along / math.Sqrt(length)
		}
		want := -sum / (classes - 1) / math.Sqrt(fromMean)
		if math.Abs(float64(got.Score[i])-want) > 2e-6 || int(got.Class[i]) != best {
			t.Errorf("row %d: %g of class %d, want %g of %d", i, got.Score[i], got.Class[i], want, best)
		}
	}

	copy(means[:dim], means[5*dim:6*dim])
	if _, err := New(m); err == nil || !strings.Contains(err.Error(), "are equal: there is no boundary between them") {
		t.Errorf("two equal means: %v", err)
	}
}

// Scoring allocates nothing once the workspace has grown, whatever the detector.
func TestDetectorsAllocateNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 11))
	const dim, classes = 20, 4
	softmax := headOf(model.Softmax, map[string][]float64{"weights": make([]float64, classes*dim), "bias": make([]float64, classes)}, dim)
	softmax.Score = model.MMLES
	maha := calibrated(random(r, classes*dim, 1), dim, 0)
	maha.Detector, maha.Score, maha.PrecisionFactor = model.RelativeMahalanobis, model.Distance, dense(random(r, dim*dim, 1), dim)
	maha.BackgroundMean, maha.BackgroundFactor = tensor.New(tensor.WithShape(dim), tensor.WithBacking(random(r, dim, 1))), dense(random(r, dim*dim, 1), dim)
	knn := knnModel(random(r, 300*dim, 1), make([]int32, 300), dim, 5, classes)
	boundaries := calibrated(random(r, classes*dim, 1), dim, 0)
	boundaries.Detector, boundaries.Score, boundaries.BackgroundMean = model.FDBD, model.Distance, tensor.New(tensor.WithShape(dim), tensor.WithBacking(random(r, dim, 1)))
	for _, m := range []*model.Model{softmax, maha, knn, boundaries} {
		s, rec := scorerOf(t, m), record(t, random(r, 100*dim, 1), dim)
		var w Workspace
		var out Scores
		if n := testing.AllocsPerRun(20, func() {
			if err := s.Score(&w, rec, &out); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations a call, want 0", m.Detector, n)
		}
	}
}

func TestLogitsRefuses(t *testing.T) {
	knn := knnModel([]float32{1, 0}, []int32{0}, 2, 1, 1)
	if _, err := Logits(knn, []float32{1, 2}); err == nil || err.Error() != "logits: detector knn has none" {
		t.Error(err)
	}
	if _, err := Logits(calibrated([]float32{1, 0}, 2, 1), []float32{1, 2, 3}); err == nil || err.Error() != "logits: 3 values are not rows of dimension 2" {
		t.Error(err)
	}
}
