package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// logits64 is the definition of the logits of one row, in float64.
func logits64(kind LogitKind, x, weights, bias []float32, c, d int, scale float64) []float64 {
	unit := kind == UnitDistance || kind == MeanUnitDistance
	xn := 1.
	if unit {
		xn = math.Sqrt(sumOfSquares(x))
	}
	out, mean := make([]float64, c), 0.
	for k := range c {
		w, wn, dot, gap := weights[k*d:(k+1)*d], 1., 0., 0.
		if unit {
			wn = math.Sqrt(sumOfSquares(w))
		}
		for j := range d {
			dot += float64(x[j]) * float64(w[j])
			gap += (float64(x[j])/xn - float64(w[j])/wn) * (float64(x[j])/xn - float64(w[j])/wn)
		}
		out[k] = -scale * math.Sqrt(gap)
		if kind == InnerProduct {
			if bias != nil {
				dot += float64(bias[k])
			}
			out[k] = scale * dot
		}
		mean += out[k] / float64(c)
	}
	if kind == MeanUnitDistance {
		for k := range out {
			out[k] += mean
		}
	}
	return out
}

// stats64 is the definition of the statistics of logits.
func stats64(l []float64) LogitStats {
	s := LogitStats{Max: math.Inf(-1)}
	for k, v := range l {
		if v > s.Max {
			s.Max, s.Class = v, int32(k)
		}
		s.Mean += v / float64(len(l))
	}
	rest := 0.
	for k, v := range l {
		if int32(k) != s.Class {
			rest += math.Exp(v - s.Max)
		}
	}
	s.LogSumExp = s.Max + math.Log1p(rest)
	for _, v := range l {
		s.Entropy -= math.Exp(v-s.LogSumExp) * (v - s.Max)
	}
	s.Entropy += math.Log1p(rest)
	return s
}

// checkLogits compares Stats with the definition. Each logit may be wrong by
// slack, which is in units of the scale.
func checkLogits(t *testing.T, kind LogitKind, x, weights, bias []float32, n, c, d int, scale, slack float64) {
	t.Helper()
	for _, implementation := range Available() {
		l, err := packLogits(implementation.loops, kind, weights, bias, c, d, scale)
		if err != nil {
			t.Fatal(err)
		}
		const guard = 7
		xs := make([]float32, n*d+2)
		copy(xs[1:], x)
		out := make([]LogitStats, n+2)
		out[0].Max, out[n+1].Max = guard, guard
		var w Workspace
		l.Stats(&w, xs[1:n*d+1:n*d+1], out[1:n+1:n+1])
		if out[0] != (LogitStats{Max: guard}) || out[n+1] != (LogitStats{Max: guard}) {
			t.Fatal("wrote outside its slice")
		}
		for i := range n {
			logits := logits64(kind, x[i*d:(i+1)*d], weights, bias, c, d, scale)
			want, got := stats64(logits), out[i+1]
			at := fmt.Sprintf("%s, kind %d, %d×%d, scale %g, row %d", implementation, kind, c, d, scale, i)
			if got.Class < 0 || int(got.Class) >= c {
				t.Fatalf("%s: class %d", at, got.Class)
			}
			// Of equals, and of those that float64 cannot tell apart, any will do.
			if got.Class != want.Class && want.Max-logits[got.Class] > 1e-13*max(scale, math.Abs(want.Max)) {
				t.Fatalf("%s: class %d of logit %g, want %d of %g", at, got.Class, logits[got.Class], want.Class, want.Max)
			}
			// An error e in every logit is one of e in the log-sum-exp, and of up
			// to 2·e·(1 + log C) in the entropy.
			e := slack*scale + 1e-6
			for _, v := range []struct {
				name              string
				got, want, within float64
			}{
				{"max", got.Max, want.Max, e}, {"log-sum-exp", got.LogSumExp, want.LogSumExp, e},
				{"mean", got.Mean, want.Mean, e}, {"entropy", got.Entropy, want.Entropy, 2 * e * (1 + math.Log(float64(c)))},
			} {
				within := v.within + 1e-6*math.Abs(v.want)
				if !(math.Abs(v.got-v.want) <= within) {
					t.Fatalf("%s: %s %.9g, want %.9g within %g", at, v.name, v.got, v.want, within)
				}
			}
		}
	}
}

var logitKinds = []LogitKind{InnerProduct, Distance, UnitDistance, MeanUnitDistance}

func TestLogitStatsShapes(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 1))
	sizes := []int{1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 64, 100, 129, 130}
	for range 150 {
		c, d, n := sizes[r.IntN(len(sizes))], sizes[r.IntN(len(sizes))], r.IntN(41)
		x, weights := normal(r, n*d, 1), normal(r, c*d, 1)
		for _, kind := range logitKinds {
			var bias []float32
			if kind == InnerProduct && r.IntN(2) == 0 {
				bias = normal(r, c, 3)
			}
			// Products of rows and weights of norm √D.
			slack := 1e-7 * math.Sqrt(float64(d)) * 10
			if kind == Distance {
				slack = 1e-6 * math.Sqrt(float64(d))
			} else if kind != InnerProduct {
				slack = 1e-6
			}
			checkLogits(t, kind, x, weights, bias, n, c, d, math.Exp(r.NormFloat64()), slack)
		}
	}
}

// Near prototypes, and near-duplicates of them, distances must not come from
// products: an error of 1e-7 in a cosine of 1 is one of 4e-4 in a distance.
func TestLogitStatsNearPrototypes(t *testing.T) {
	r := rand.New(rand.NewPCG(12, 1))
	const n, c, d = 30, 20, 48
	for _, kind := range logitKinds[1:] {
		for _, noise := range []float64{0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1} {
			weights := normal(r, c*d, 1)
			for i := 10 * d; i < c*d; i++ { // half are near-duplicates of the others
				weights[i] = weights[i-10*d] * float32(1+noise*r.NormFloat64())
			}
			x := make([]float32, n*d)
			for i := range x {
				x[i] = weights[i%(c*d)] * float32(1+noise*r.NormFloat64())
			}
			slack := 2e-7
			if kind == Distance {
				slack *= math.Sqrt(d)
			}
			checkLogits(t, kind, x, weights, nil, n, c, d, 5, slack)
		}
	}
}

func TestLogitStatsScales(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 1))
	const n, c, d = 30, 20, 48
	weights := normal(r, c*d, 1)
	for _, scale := range []float64{1e-11, 1e-9, 1e15, 1e18, 3e37} {
		x := normal(r, n*d, scale)
		checkLogits(t, UnitDistance, x, weights, nil, n, c, d, 3, 1e-6)
		checkLogits(t, Distance, x, weights, nil, n, c, d, 1, 1e-6*scale*10)
		checkLogits(t, InnerProduct, x, weights, nil, n, c, d, 1, 1e-6*scale*50)
	}
	// Zero rows have distances and products, but no direction.
	zero := make([]float32, n*d)
	checkLogits(t, Distance, zero, weights, nil, n, c, d, 1, 1e-6)
	checkLogits(t, InnerProduct, zero, weights, normal(r, c, 1), n, c, d, 1, 1e-6)
	// Wide logits: exponentials of thousands of nats less than the largest are 0.
	checkLogits(t, InnerProduct, normal(r, n*d, 1), weights, nil, n, c, d, 1000, 1e-5)
}

func TestLogitStatsInvalidRows(t *testing.T) {
	r := rand.New(rand.NewPCG(14, 1))
	const n, c, d = 12, 5, 20
	for _, implementation := range Available() {
		for _, kind := range logitKinds {
			l, err := packLogits(implementation.loops, kind, normal(r, c*d, 1), nil, c, d, 1)
			if err != nil {
				t.Fatal(err)
			}
			x := normal(r, n*d, 1)
			x[3], x[d], x[5*d+19] = float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))
			clear(x[8*d : 9*d])
			for j := range d {
				x[9*d+j] = 1e-14
			}
			out := make([]LogitStats, n)
			var w Workspace
			l.Stats(&w, x, out)
			for i, s := range out {
				invalid := i == 0 || i == 1 || i == 5 || (i == 8 || i == 9) && l.unit()
				if invalid != (s.Class == -1) {
					t.Errorf("%s, kind %d, row %d: class %d", implementation, kind, i, s.Class)
				}
				for _, v := range []float64{s.Max, s.LogSumExp, s.Mean, s.Entropy} {
					if math.IsNaN(v) != invalid {
						t.Errorf("%s, kind %d, row %d: %+v", implementation, kind, i, s)
					}
				}
			}
		}
	}
}

// What LogitStats promises of its errors, in every implementation, on rows far
// from all classes and near one; and that all find the same class.
func TestLogitStatsBound(t *testing.T) {
	r := rand.New(rand.NewPCG(17, 1))
	norm := func(x []float32) float64 { return math.Sqrt(sumOfSquares(x)) }
	worst := map[string]float64{} // shares of the bound
	rounds := 30
	if testing.Short() { // as on an emulated CPU
		rounds = 16
	}
	for round := range rounds {
		c, d, n := 1+r.IntN(200), 1+r.IntN(800), 30
		scale, length := math.Exp(r.NormFloat64()), math.Exp(r.NormFloat64())
		weights, x, bias := normal(r, c*d, 1), normal(r, n*d, length), normal(r, c, 3)
		if round%2 == 0 {
			for i := range x {
				x[i] = x[i]/2 + weights[i/d%c*d+i%d]
			}
		}
		longest, most := 0., 0.
		for k := range c {
			longest, most = max(longest, norm(weights[k*d:(k+1)*d])), max(most, math.Abs(float64(bias[k])))
		}
		for _, kind := range logitKinds {
			bias := bias
			if kind != InnerProduct {
				bias = nil
			}
			var classes []int32
			wants := make([]LogitStats, n)
			for i := range wants {
				wants[i] = stats64(logits64(kind, x[i*d:(i+1)*d], weights, bias, c, d, scale))
			}
			for _, impl := range Available() {
				l, err := packLogits(impl.loops, kind, weights, bias, c, d, scale)
				if err != nil {
					t.Fatal(err)
				}
				out := make([]LogitStats, n)
				l.Stats(new(Workspace), x, out)
				for i, got := range out {
					if classes = append(classes, got.Class); classes[i] != got.Class {
						t.Fatalf("%v, kind %d: class %d, but %d by %v", impl, kind, got.Class, classes[i], Available()[0])
					}
					row := x[i*d : (i+1)*d]
					within, rounding := 1e-6*scale, 8*0x1p-24*math.Sqrt(float64(d))*scale
					switch kind {
					case Distance:
						within = rounding * (norm(row) + longest)
					case InnerProduct:
						within = rounding * (norm(row)*longest + most)
					}
					want := wants[i]
					for _, v := range []struct {
						name              string
						got, want, within float64
					}{
						{"Max", got.Max, want.Max, within}, {"LogSumExp", got.LogSumExp, want.LogSumExp, within}, {"Mean", got.Mean, want.Mean, within},
						{"Entropy", got.Entropy, want.Entropy, 2 * (1 + math.Log(float64(c))) * within},
					} {
						share := math.Abs(v.got-v.want) / (v.within + 1e-6*math.Abs(v.want))
						if !(share <= 1) {
							t.Fatalf("%v, kind %d, %d×%d, scale %g: %s is %.9g, want %.9g: %.2f times the bound", impl, kind, c, d, scale, v.name, v.got, v.want, share)
						}
						at := fmt.Sprintf("%v, kind %d", impl, kind)
						worst[at] = max(worst[at], share)
					}
				}
			}
		}
	}
	for at, share := range worst {
		t.Logf("%s: up to %.2f of the bound", at, share)
	}
}

// The sums of given logits are within 1e-6 of float64, relative.
func TestSumsOfLogits(t *testing.T) {
	r := rand.New(rand.NewPCG(18, 1))
	for _, impl := range Available() {
		worst := 0.
		for n := 1; n < 300; n += 1 + n/20 {
			for _, scale := range []float64{.01, 1, 30} {
				v, out := normal(r, 5*n, scale), make([]sums, 5)
				impl.loops.sums(v, n, n, out)
				for i, got := range out {
					var total, size, exps, moment float64
					for _, l := range v[i*n : (i+1)*n] {
						total, size = total+float64(l), size+math.Abs(float64(l))
						if l < got.max {
							e := math.Exp(float64(l - got.max))
							exps, moment = exps+e, moment+float64(l-got.max)*e
						}
					}
					worst = max(worst, math.Abs(float64(got.total)-total)/size)
					if exps > 1e-30 { // below, exp may be 0
						worst = max(worst, math.Abs(float64(got.exps)-exps)/exps, math.Abs(float64(got.moment)-moment)/-moment)
					}
				}
			}
		}
		if !(worst < 1e-6) {
			t.Errorf("%v: relative error up to %.2g", impl, worst)
		}
		t.Logf("%v: relative error up to %.2g", impl, worst)
	}
}

func TestPackLogitsRefuses(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, test := range []struct {
		kind    LogitKind
		weights []float32
		bias    []float32
		scale   float64
		want    string
	}{
		{InnerProduct, []float32{1, 2, 3}, nil, 1, "weights: 3 values are not 2 rows of 2"},
		{InnerProduct, []float32{1, 2, nan, 0}, nil, 1, "the weights of class 1 have norm NaN: it must be finite"},
		{InnerProduct, []float32{1, 2, 0, 0}, []float32{1}, 1, "bias: 1 values for 2 classes, where only inner products have one each"},
		{Distance, []float32{1, 2, 0, 0}, []float32{1, 2}, 1, "bias: 2 values for 2 classes, where only inner products have one each"},
		{InnerProduct, []float32{1, 2, 0, 0}, []float32{1, inf}, 1, "bias of class 1: +Inf must be finite"},
		{UnitDistance, []float32{1, 2, 0, 0}, nil, 1, "prototype 1 has norm 0: it must be at least 1e-12"},
		{UnitDistance, []float32{1, 2, 1, 0}, nil, 0, "scale 0: it must be positive and finite"},
	} {
		if _, err := PackLogits(test.kind, test.weights, test.bias, 2, 2, test.scale); err == nil || err.Error() != test.want {
			t.Errorf("%v: %v, want %s", test, err, test.want)
		}
	}
}

func TestLogitStatsAllocateNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 1))
	for _, implementation := range Available() {
		l, err := packLogits(implementation.loops, UnitDistance, normal(r, 10*32, 1), nil, 10, 32, 1)
		if err != nil {
			t.Fatal(err)
		}
		var w Workspace
		x, out := normal(r, 100*32, 1), make([]LogitStats, 100)
		if n := testing.AllocsPerRun(10, func() { l.Stats(&w, x, out) }); n != 0 {
			t.Errorf("%s: %v allocations a call, want 0", implementation, n)
		}
	}
}

func FuzzLogitStats(f *testing.F) {
	f.Add(uint64(1), uint8(5), uint8(3), uint8(2), int8(0))
	f.Add(uint64(2), uint8(1), uint8(1), uint8(0), int8(20))
	f.Fuzz(func(t *testing.T, seed uint64, c, d, kind uint8, exponent int8) {
		if c == 0 || d == 0 || exponent < -30 || exponent > 30 {
			return
		}
		r := rand.New(rand.NewPCG(seed, 0))
		size := math.Pow(2, float64(exponent))
		k := logitKinds[int(kind)%len(logitKinds)]
		slack := 1e-6
		switch k {
		case Distance:
			slack = 1e-6 * (1 + size) * math.Sqrt(float64(d))
		case InnerProduct:
			slack = 1e-6 * size * math.Sqrt(float64(d))
		}
		checkLogits(t, k, normal(r, 9*int(d), size), normal(r, int(c)*int(d), 1), nil, 9, int(c), int(d), 1, slack)
	})
}

func BenchmarkLogitStats(b *testing.B) {
	r := rand.New(rand.NewPCG(16, 1))
	for _, implementation := range Available() {
		for _, s := range []struct{ d, c int }{{64, 10}, {512, 10}, {512, 100}, {768, 1000}} {
			for _, kind := range []LogitKind{InnerProduct, UnitDistance} {
				b.Run(fmt.Sprintf("%s/kind=%d/d=%d/c=%d", implementation, kind, s.d, s.c), func(b *testing.B) {
					const n = 240
					l, err := packLogits(implementation.loops, kind, normal(r, s.c*s.d, 1), nil, s.c, s.d, 1)
					if err != nil {
						b.Fatal(err)
					}
					var w Workspace
					x, out := normal(r, n*s.d, 1), make([]LogitStats, n)
					b.ReportAllocs()
					for b.Loop() {
						l.Stats(&w, x, out)
					}
					b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "vectors/s")
					b.ReportMetric(2e-9*float64(b.N)*float64(n*s.d*s.c)/b.Elapsed().Seconds(), "GFLOP/s")
				})
			}
		}
	}
}
