package scorer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/oodmon/oodmon/model"
	"gorgonia.org/tensor"
)

func random(r *rand.Rand, n int, scale float64) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(scale * r.NormFloat64())
	}
	return x
}

func dense(values []float32, cols int) *tensor.Dense {
	return tensor.New(tensor.WithShape(len(values)/cols, cols), tensor.WithBacking(values))
}

// product is a·b in float64, where b has cols columns.
func product(a []float64, b []float32, cols int) []float64 {
	out := make([]float64, cols)
	for i, v := range a {
		for j := range out {
			out[j] += v * float64(b[i*cols+j])
		}
	}
	return out
}

// The transforms, in sizes on either side of the blocks.
func transforms(r *rand.Rand) map[string]struct {
	dim       int
	transform *model.Transform
	apply     func(x []float64) []float64
} {
	const dim, k, rank = 70, 250, 5
	matrix := random(r, dim*k, .1)
	for j := range k { // the first axis has no image
		matrix[j] = 0
	}
	u, v := random(r, k*rank, .3), random(r, rank*k, .3)
	return map[string]struct {
		dim       int
		transform *model.Transform
		apply     func(x []float64) []float64
	}{
		"matrix": {dim, &model.Transform{Matrix: dense(matrix, k)}, func(x []float64) []float64 { return product(x, matrix, k) }},
		"low rank": {k, &model.Transform{U: dense(u, rank), V: dense(v, k)}, func(x []float64) []float64 {
			y := product(product(x, u, rank), v, k)
			for j := range y {
				y[j] += x[j]
			}
			return y
		}},
	}
}

// The score is the smallest distance between the directions of the transformed
// row and of a prototype, times the scale.
func TestTransform(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	const k, classes, n = 250, 11, 150
	for name, test := range transforms(r) {
		t.Run(name, func(t *testing.T) {
			d := test.dim
			prototypes := random(r, classes*k, 1)
			x := random(r, n*d, 1)
			for j := range d {
				x[10*d+j] *= 1e30 // the norm alone overflows float32
				x[11*d+j] *= 1e-9
				x[64*d+j] = 0
			}
			x[3*d], x[149*d+d-1] = float32(math.NaN()), float32(math.Inf(-1))
			clear(x[20*d : 21*d])
			x[20*d] = 3 // has a direction; its image by the matrix has none
			m := calibrated(prototypes, k, 3)
			m.Transform, m.Temperature = test.transform, 2
			got := scored(t, m, record(t, x, d))
			for i := range n {
				row := make([]float64, d)
				for j := range row {
					row[j] = float64(x[i*d+j])
				}
				y := test.apply(row)
				norm := 0.
				for _, v := range y {
					norm += v * v
				}
				norm = math.Sqrt(norm)
				if !(norm > 0) || math.IsInf(norm, 0) {
					if got.Class[i] != -1 || !math.IsNaN(float64(got.Score[i])) {
						t.Errorf("row %d: score %g of class %d, but it has no direction", i, got.Score[i], got.Class[i])
					}
					continue
				}
				best, class := math.Inf(1), -1
				for c := range classes {
					p, pn, s := prototypes[c*k:(c+1)*k], 0., 0.
					for _, v := range p {
						pn += float64(v) * float64(v)
					}
					for j, v := range p {
						diff := y[j]/norm - float64(v)/math.Sqrt(pn)
						s += diff * diff
					}
					if s < best {
						best, class = s, c
					}
				}
				if want := 1.5 * math.Sqrt(best); !within(got.Score[i], want, 1e-5) || int(got.Class[i]) != class {
					t.Errorf("row %d: score %g of class %d, want %g of %d", i, got.Score[i], got.Class[i], want, class)
				}
			}
			for _, i := range []int{3, 64, 149} {
				if got.Class[i] != -1 {
					t.Errorf("row %d has class %d, want -1", i, got.Class[i])
				}
			}
			if name == "matrix" && got.Class[20] != -1 {
				t.Errorf("row 20, which the matrix sends to zero, has class %d, want -1", got.Class[20])
			}
		})
	}
}

func TestTransformAllocatesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	for name, test := range transforms(r) {
		m := calibrated(random(r, 3*250, 1), 250, 1)
		m.Transform = test.transform
		s, rec := scorerOf(t, m), record(t, random(r, 100*test.dim, 1), test.dim)
		var w Workspace
		var out Scores
		if n := testing.AllocsPerRun(20, func() {
			if err := s.Score(&w, rec, &out); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations a call, want 0", name, n)
		}
	}
}

func BenchmarkTransform(b *testing.B) {
	const dim, classes, n = 384, 150, 1024
	r := rand.New(rand.NewPCG(1, 1))
	for _, test := range []struct {
		name string
		t    *model.Transform
	}{
		{"none", nil},
		{"rank=32", &model.Transform{U: dense(random(r, dim*32, .1), 32), V: dense(random(r, 32*dim, .1), dim)}},
		{"matrix", &model.Transform{Matrix: dense(random(r, dim*dim, .1), dim)}},
	} {
		b.Run(fmt.Sprintf("d=%d/c=%d/%s", dim, classes, test.name), func(b *testing.B) {
			m := calibrated(random(r, classes*dim, 1), dim, 1)
			m.Transform = test.t
			s, rec := scorerOf(b, m), record(b, random(r, n*dim, 1), dim)
			var w Workspace
			var out Scores
			for b.Loop() {
				if err := s.Score(&w, rec, &out); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "records/s")
		})
	}
}
