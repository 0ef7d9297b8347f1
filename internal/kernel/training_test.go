package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// guarded returns a copy of v between guard values, and a check of them.
func guarded(t *testing.T, v []float32) ([]float32, func()) {
	const guard = 7
	all := make([]float32, len(v)+17)
	for i := range all {
		all[i] = guard
	}
	copy(all[1:], v)
	return all[1 : 1+len(v) : 1+len(v)], func() {
		t.Helper()
		if all[0] != guard {
			t.Fatal("wrote before its slice")
		}
		for _, x := range all[1+len(v):] {
			if x != guard {
				t.Fatal("wrote behind its slice")
			}
		}
	}
}

// checkSoftmaxLoss compares the loss and its gradient with float64.
func checkSoftmaxLoss(t *testing.T, r *rand.Rand, rows, c int, scale float64) {
	t.Helper()
	v, weight, y := normal(r, rows*c, 1), make([]float32, rows), make([]int32, rows)
	for i := range y {
		y[i], weight[i] = int32(r.IntN(c)), float32(r.Float64())
	}
	for _, implementation := range Available() {
		at := fmt.Sprintf("%s, %d×%d, scale %g", implementation, rows, c, scale)
		g, check := guarded(t, v)
		var s trainingScratch
		loss := softmaxLoss(implementation.loops, &s, g, c, y, scale, weight)
		check()
		want, size := 0., 0.
		for i := range rows {
			z, largest, sum := make([]float64, c), math.Inf(-1), 0.
			for k := range c {
				z[k] = float64(float32(scale) * v[i*c+k])
				largest = max(largest, z[k])
			}
			for k := range c {
				sum += math.Exp(z[k] - largest)
			}
			want += float64(weight[i]) * (largest + math.Log(sum) - z[y[i]])
			size += float64(weight[i])
			for k := range c {
				p := float64(weight[i]) * math.Exp(z[k]-largest) / sum
				// exp of a float32 argument, which is rounded itself.
				within := (1e-6+0x1p-23*(largest-z[k]))*p + 1e-37
				if int32(k) == y[i] {
					p -= float64(weight[i])
					within = 1e-6 * float64(weight[i])
				}
				if got := float64(g[i*c+k]); !(math.Abs(got-p) <= within) {
					t.Fatalf("%s: gradient of row %d, class %d: %g, want %g", at, i, k, got, p)
				}
			}
		}
		if !(math.Abs(loss-want) <= 1e-6*(size+want)) {
			t.Fatalf("%s: loss %g, want %g", at, loss, want)
		}
	}
}

func TestSoftmaxLoss(t *testing.T) {
	r := rand.New(rand.NewPCG(31, 1))
	for c := 1; c <= 130; c++ {
		checkSoftmaxLoss(t, r, 1+r.IntN(5), c, math.Exp(r.NormFloat64()))
	}
	checkSoftmaxLoss(t, r, 50, 100, -17)
	checkSoftmaxLoss(t, r, 50, 100, 1000)
	checkSoftmaxLoss(t, r, 50, 1000, 1)
	checkSoftmaxLoss(t, r, 50, 100, 0)
	checkSoftmaxLoss(t, r, 0, 3, 1)
}

// exp over its whole range: with two values, 0 and x, the gradient of the
// smaller is e^x/(1+e^x).
func TestExponential(t *testing.T) {
	for _, implementation := range Available() {
		worst := 0.
		for x := float32(0); x > -110; x -= 1.0 / 512 {
			v := []float32{0, x}
			var s trainingScratch
			softmaxLoss(implementation.loops, &s, v, 2, []int32{0}, 1, []float32{1})
			want := math.Exp(float64(x)) / (1 + math.Exp(float64(x)))
			got := float64(v[1])
			if x < -87 {
				if got < 0 || got > 1.7e-38 {
					t.Fatalf("%s: e^%g = %g, want 0 or next to it", implementation, x, got)
				}
				continue
			}
			worst = max(worst, math.Abs(got-want)/want)
		}
		// Of which the division and the sum have up to 1.2e-7.
		if worst > 4.2e-7 {
			t.Errorf("%s: relative error up to %g", implementation, worst)
		}
		t.Logf("%s: relative error up to %.2g", implementation, worst)
	}
}

func TestSoftmaxLossOfNonFiniteRows(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, implementation := range Available() {
		for _, bad := range []float32{nan, inf} {
			for k := range 37 {
				const c = 37
				v := make([]float32, 3*c)
				v[c+k] = bad
				var s trainingScratch
				loss := softmaxLoss(implementation.loops, &s, v, c, []int32{0, 1, 2}, 1, []float32{1, 1, 1})
				if !math.IsNaN(loss) {
					t.Errorf("%s: %g at %d: loss %g, want NaN", implementation, bad, k, loss)
				}
				for j, g := range v {
					if math.IsNaN(float64(g)) != (j/c == 1) {
						t.Fatalf("%s: %g at %d: gradient %g at %d", implementation, bad, k, g, j)
					}
				}
			}
		}
		// A class of logit −Inf has probability 0; a row without any other has none.
		v := []float32{0, -inf, 0}
		var s trainingScratch
		if loss := softmaxLoss(implementation.loops, &s, v, 3, []int32{0}, 1, []float32{1}); math.Abs(loss-math.Ln2) > 1e-6 || v[1] > 1e-37 || v[2] != 0.5 {
			t.Errorf("%s: −Inf: loss %g, gradient %v", implementation, loss, v)
		}
		v = []float32{-inf, -inf}
		if loss := softmaxLoss(implementation.loops, &s, v, 2, []int32{0}, 1, []float32{1}); !math.IsNaN(loss) {
			t.Errorf("%s: −Inf alone: loss %g, want NaN", implementation, loss)
		}
	}
}

func TestDistances(t *testing.T) {
	r := rand.New(rand.NewPCG(32, 1))
	for c := 1; c <= 70; c++ {
		const rows = 3
		cos := make([]float32, rows*c)
		for i := range cos {
			cos[i] = float32(2*r.Float64() - 1)
		}
		cos[0], cos[len(cos)-1] = 1.0000001, float32(math.NaN())
		norms := []float32{1, 0.5, 3}
		for _, implementation := range Available() {
			d, check := guarded(t, cos)
			var s trainingScratch
			unitDistances(implementation.loops, &s, d, c, norms)
			check()
			for i, v := range cos {
				want := math.Sqrt(max(0, 2-2*float64(v)/float64(norms[i/c])))
				got := float64(d[i])
				if math.IsNaN(want) != math.IsNaN(got) || math.Abs(got*got-want*want) > 5e-7*(1+want*want) {
					t.Fatalf("%s, c=%d: distance %g of cosine %g, want %g", implementation, c, got, v, want)
				}
			}
			g := normal(r, rows*c, 1)
			d[0] = 0
			d[len(d)-1] = 1
			out, check := guarded(t, g)
			sum, want := distanceGradients(implementation.loops, &s, out, d, c, 3), 0.
			check()
			for i, v := range g {
				want += float64(v) * float64(d[i])
				if w := 3 * float64(v) / max(float64(d[i]), MinDistance); !(math.Abs(float64(out[i])-w) <= 5e-7*math.Abs(w)) {
					t.Fatalf("%s, c=%d: gradient %g, want %g", implementation, c, out[i], w)
				}
			}
			if !(math.Abs(sum-want) <= 1e-6*float64(rows*c)) {
				t.Fatalf("%s, c=%d: sum %g, want %g", implementation, c, sum, want)
			}
		}
	}
}

func TestRawDistancesAndColumnSums(t *testing.T) {
	r := rand.New(rand.NewPCG(33, 1))
	const n, c, d = 7, 5, 19
	x, p := normal(r, n*d, 1), normal(r, c*d, 1)
	x2, p2, dots := make([]float32, n), make([]float32, c), make([]float32, n*c)
	for i := range x2 {
		x2[i] = float32(sumOfSquares(x[i*d : (i+1)*d]))
	}
	for k := range p2 {
		p2[k] = float32(sumOfSquares(p[k*d : (k+1)*d]))
	}
	var w Workspace
	Multiply(&w, RowMajor(dots, n, c), RowMajor(x, n, d), RowMajor(p, c, d).T(), false)
	Distances(&w, dots, x2, p2)
	sums := make([]float32, c)
	ColumnSums(dots, sums)
	for k := range c {
		total := 0.
		for i := range n {
			gap := 0.
			for j := range d {
				gap += math.Pow(float64(x[i*d+j])-float64(p[k*d+j]), 2)
			}
			total += math.Sqrt(gap)
			if math.Abs(float64(dots[i*c+k])-math.Sqrt(gap)) > 1e-5 {
				t.Errorf("distance %d,%d: %g, want %g", i, k, dots[i*c+k], math.Sqrt(gap))
			}
		}
		if math.Abs(float64(sums[k])-total) > 1e-5*total {
			t.Errorf("sum of column %d: %g, want %g", k, sums[k], total)
		}
	}
}

func TestNormsAndTheirGradients(t *testing.T) {
	r := rand.New(rand.NewPCG(35, 1))
	for d := 1; d <= 130; d++ {
		const rows = 5
		x := normal(r, rows*d, 1)
		for i, scale := range []float32{1e-25, 1, 1e30} {
			for j := range d {
				x[i*d+j] *= scale
			}
		}
		x[3*d+d/2], x[4*d+d-1] = float32(math.NaN()), float32(math.Inf(-1))
		for _, implementation := range Available() {
			got := make([]float32, rows)
			rowNorms(implementation.loops, x, d, got)
			for i, v := range got {
				want := math.Sqrt(sumOfSquares(x[i*d : (i+1)*d]))
				if !(math.Abs(float64(v)-want) <= 1e-6*want) && math.IsNaN(want) == (float64(v) == float64(v)) {
					t.Fatalf("%s, d=%d: norm %g, want %g", implementation, d, v, want)
				}
			}
			g := normal(r, 2*d, 1)
			out, check := guarded(t, g)
			var s trainingScratch
			normGradients(implementation.loops, &s, out, x[d:3*d], d, got[1:3])
			check()
			for i := range 2 {
				row, norm, dot := x[(i+1)*d:(i+2)*d], float64(got[1+i]), 0.
				for j, v := range row {
					dot += float64(v) / norm * float64(g[i*d+j])
				}
				for j, v := range row {
					want := (float64(g[i*d+j]) - dot*float64(v)/norm) / norm
					if !(math.Abs(float64(out[i*d+j])-want) <= 3e-6*(1+math.Abs(dot))/norm+1e-37) {
						t.Fatalf("%s, d=%d: gradient %g, want %g", implementation, d, out[i*d+j], want)
					}
				}
			}
		}
	}
}

func TestScaleRows(t *testing.T) {
	for c := 1; c <= 70; c++ {
		for _, implementation := range Available() {
			x := make([]float32, 2*c)
			for i := range x {
				x[i] = float32(i)
			}
			out, check := guarded(t, x)
			implementation.loops.scaleRows(out, c, []float32{2, 3})
			check()
			for i, v := range out {
				if v != x[i]*float32(2+i/c) {
					t.Fatalf("%s, c=%d: value %d: %g", implementation, c, i, v)
				}
			}
		}
	}
}

func TestAdamW(t *testing.T) {
	r := rand.New(rand.NewPCG(36, 1))
	for n := range 70 {
		for _, implementation := range Available() {
			start := normal(r, n, 1)
			value, check := guarded(t, start)
			m, checkM := guarded(t, make([]float32, n))
			v, checkV := guarded(t, make([]float32, n))
			x, m64, v64 := make([]float64, n), make([]float64, n), make([]float64, n)
			for i, s := range start {
				x[i] = float64(s)
			}
			for step := 1; step <= 5; step++ {
				grad := normal(r, n, 1)
				implementation.loops.adamW(value, grad, m, v, NewAdamWRate(.1, .2, step))
				check()
				checkM()
				checkV()
				for i, g := range grad {
					g := float64(g)
					m64[i] = .9*m64[i] + .1*g
					v64[i] = .999*v64[i] + .001*g*g
					c1, c2 := 1-math.Pow(.9, float64(step)), 1-math.Pow(.999, float64(step))
					x[i] = x[i]*(1-.1*.2) - .1*(m64[i]/c1)/(math.Sqrt(v64[i]/c2)+1e-8)
					if !(math.Abs(float64(value[i])-x[i]) <= 1e-5) {
						t.Fatalf("%s, n=%d, step %d: value %g, want %g", implementation, n, step, value[i], x[i])
					}
				}
			}
		}
	}
}

func BenchmarkSoftmaxLoss(b *testing.B) {
	r := rand.New(rand.NewPCG(34, 1))
	for _, implementation := range Available() {
		for _, c := range []int{10, 100, 1000} {
			b.Run(fmt.Sprintf("%s/c=%d", implementation, c), func(b *testing.B) {
				rows := 100_000 / c
				v, weight, y := normal(r, rows*c, 1), make([]float32, rows), make([]int32, rows)
				for i := range weight {
					weight[i] = 1
				}
				var s trainingScratch
				for b.Loop() {
					softmaxLoss(implementation.loops, &s, v, c, y, 1, weight)
				}
				b.ReportMetric(1e9*b.Elapsed().Seconds()/float64(b.N)/float64(rows*c), "ns/value")
			})
		}
	}
}
