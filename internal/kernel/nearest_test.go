package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

// nearest64 is the definition, in float64.
func nearest64(x, p []float32, c, d int) (dist float64, class int32) {
	xn := math.Sqrt(sumOfSquares(x))
	if !(xn >= MinNorm) || math.IsInf(xn, 0) {
		return math.NaN(), -1
	}
	dist = math.Inf(1)
	for k := range c {
		row := p[k*d : (k+1)*d]
		pn := math.Sqrt(sumOfSquares(row))
		s := 0.
		for j := range d {
			diff := float64(x[j])/xn - float64(row[j])/pn
			s += diff * diff
		}
		if s = math.Sqrt(s); s < dist {
			dist, class = s, int32(k)
		}
	}
	return dist, class
}

// check compares Nearest with the definition, with guard values round every slice.
func check(t *testing.T, x, p []float32, n, c, d int) {
	t.Helper()
	for _, impl := range Available() {
		checkOne(t, impl, x, p, n, c, d)
	}
}

func checkOne(t *testing.T, impl *Implementation, x, p []float32, n, c, d int) {
	t.Helper()
	protos, err := impl.Pack(p, c, d)
	if err != nil {
		t.Fatal(err)
	}
	const guard = 7
	xs := make([]float32, n*d+2)
	copy(xs[1:], x[:n*d])
	dist, class := make([]float32, n+2), make([]int32, n+2)
	dist[0], dist[n+1], class[0], class[n+1] = guard, guard, guard, guard
	var w Workspace
	protos.Nearest(&w, xs[1:n*d+1], dist[1:n+1], class[1:n+1])
	if dist[0] != guard || dist[n+1] != guard || class[0] != guard || class[n+1] != guard {
		t.Fatalf("%v: wrote outside its slices", impl)
	}
	for i := range n {
		want, wantClass := nearest64(x[i*d:(i+1)*d], p, c, d)
		got, gotClass := dist[i+1], class[i+1]
		if wantClass < 0 {
			if gotClass != -1 || !math.IsNaN(float64(got)) {
				t.Fatalf("%v: row %d has no direction, but got distance %g to class %d", impl, i, got, gotClass)
			}
			continue
		}
		diff := math.Abs(float64(got) - want)
		if diff > 1e-7 && diff > 2e-6*want {
			t.Fatalf("%v: row %d: distance %g, want %g", impl, i, got, want)
		}
		if gotClass != wantClass {
			at, _ := nearest64(x[i*d:(i+1)*d], p[int(gotClass)*d:][:d], 1, d)
			if at-want > 1e-15 {
				t.Fatalf("%v: row %d: class %d at %g, want %d at %g", impl, i, gotClass, at, wantClass, want)
			}
		}
	}
}

func normal(r *rand.Rand, n int, scale float64) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(scale * r.NormFloat64())
	}
	return x
}

func TestNearestShapes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, d := range []int{1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100, 129} {
		for _, c := range []int{1, 2, 3, 8, 17, 33, 100} {
			for _, n := range []int{0, 1, 2, 3, 4, 5, 12, 13, 40} {
				check(t, normal(r, n*d, 1), normal(r, c*d, 1), n, c, d)
			}
		}
	}
}

func TestNearestHardInputs(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	const n, c, d = 64, 20, 48
	protos := normal(r, c*d, 1)
	for name, scale := range map[string]float64{"tiny": 1e-11, "denormal sums": 1e-9, "large": 1e18, "huge": 3e37} {
		t.Run(name, func(t *testing.T) { check(t, normal(r, n*d, scale), protos, n, c, d) })
	}
	t.Run("near a prototype", func(t *testing.T) {
		for _, noise := range []float64{0, 1e-7, 1e-5, 1e-3, 1e-2} {
			x := make([]float32, n*d)
			for i := range n {
				scale := math.Exp(4 * r.NormFloat64())
				for j := range d {
					x[i*d+j] = float32(scale * (float64(protos[i%c*d+j]) + noise*r.NormFloat64()))
				}
			}
			check(t, x, protos, n, c, d)
		}
	})
	t.Run("near-duplicate prototypes", func(t *testing.T) {
		for _, noise := range []float64{0, 1e-8, 1e-7, 1e-6, 1e-4} {
			close := make([]float32, c*d)
			for i := range close {
				close[i] = protos[i%d] * float32(1+noise*r.NormFloat64())
			}
			check(t, normal(r, n*d, 1), close, n, c, d)
		}
	})
	t.Run("without direction", func(t *testing.T) {
		x := normal(r, n*d, 1)
		x[3], x[1*d], x[5*d+47] = float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))
		clear(x[8*d : 9*d])
		for j := range d {
			x[9*d+j] = 1e-14
		}
		check(t, x, protos, n, c, d)
	})
}

func TestPackRefuses(t *testing.T) {
	nan := float32(math.NaN())
	for _, test := range []struct {
		p    []float32
		c, d int
		want string
	}{
		{[]float32{1, 2, 3}, 2, 2, "prototypes: 3 values are not 2 rows of 2"},
		{[]float32{1, 2, 0, 0}, 2, 2, "prototype 1 has norm 0: it must be finite and at least 1e-12"},
		{[]float32{nan, 2}, 1, 2, "prototype 0 has norm NaN: it must be finite and at least 1e-12"},
	} {
		if _, err := Pack(test.p, test.c, test.d); err == nil || err.Error() != test.want {
			t.Errorf("Pack(%v) = %v, want %s", test.p, err, test.want)
		}
	}
}

func TestNearestAllocatesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	p, err := Pack(normal(r, 10*32, 1), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	var w Workspace
	x, dist, class := normal(r, 100*32, 1), make([]float32, 100), make([]int32, 100)
	if n := testing.AllocsPerRun(10, func() { p.Nearest(&w, x, dist, class) }); n != 0 {
		t.Errorf("%v allocations a call, want 0", n)
	}
}

func FuzzNearest(f *testing.F) {
	f.Add(uint64(1), uint8(5), uint8(3), int8(0))
	f.Add(uint64(2), uint8(1), uint8(1), int8(100))
	f.Fuzz(func(t *testing.T, seed uint64, c, d uint8, exponent int8) {
		if c == 0 || d == 0 {
			return
		}
		r := rand.New(rand.NewPCG(seed, 0))
		check(t, normal(r, 9*int(d), math.Pow(2, float64(exponent))), normal(r, int(c)*int(d), 1), 9, int(c), int(d))
	})
}

// Every implementation gives the same bits, ties and hard rows included.
func TestNearestBits(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for _, s := range []struct{ n, c, d int }{{200, 10, 64}, {97, 33, 700}, {60, 100, 129}, {31, 1, 5}, {500, 17, 2}} {
		p := normal(r, s.c*s.d, 1)
		if s.c > 3 {
			copy(p[2*s.d:3*s.d], p[:s.d]) // equal
			for j := range s.d {          // equal to rounding
				p[3*s.d+j] = p[s.d+j] * 1.0000001
			}
		}
		x := normal(r, s.n*s.d, 1)
		for i := range s.n {
			row := x[i*s.d : (i+1)*s.d]
			if i%3 == 0 { // near a prototype
				for j := range row {
					row[j] = p[i%s.c*s.d+j] + float32(math.Pow(10, -float64(i%9)))*row[j]
				}
			}
			scale := float32(math.Pow(2, float64(i%7-3)*30))
			for j := range row {
				row[j] *= scale
			}
		}
		x[5*s.d] = float32(math.NaN())
		var dist []float32
		var class []int32
		for _, impl := range Available() {
			protos, err := impl.Pack(p, s.c, s.d)
			if err != nil {
				t.Fatal(err)
			}
			var w Workspace
			got, gotClass := make([]float32, s.n), make([]int32, s.n)
			protos.Nearest(&w, x, got, gotClass)
			if dist == nil {
				dist, class = got, gotClass
			}
			for i := range got {
				if math.Float32bits(got[i]) != math.Float32bits(dist[i]) || gotClass[i] != class[i] {
					t.Fatalf("%v: %v: row %d is %x from class %d, but %x from %d by %v", s, impl, i, got[i], gotClass[i], dist[i], class[i], Available()[0])
				}
			}
		}
	}
}

// Long rows go in parts, whose last may end within a vector; the next row begins there.
func TestNearestParts(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for _, d := range []int{191, 193, 384, 511, 513, 520, 529, 1025} {
		for _, c := range []int{1, 5, 6, 10, 11, 20, 26} {
			const n = 61
			x := normal(r, n*d, 1)
			for i := 0; i < n; i += 3 { // rows without direction among the others
				x[i*d] = float32(math.NaN())
			}
			check(t, x, normal(r, c*d, 1), n, c, d)
		}
	}
}

// All tails: every dimension and number of classes from 1 to 130 occurs, with
// numbers of rows up to 40.
func TestNearestTails(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	for i := range 130 {
		if i > 70 && i < 94 || i > 98 && i < 126 { // the work grows with i squared
			continue
		}
		for _, other := range []int{1, 31, 32, 33, 64, 100} {
			check(t, normal(r, 40*(i+1), 1), normal(r, other*(i+1), 1), 1+(i+other)%40, other, i+1)
			check(t, normal(r, 40*other, 1), normal(r, (i+1)*other, 1), (7*i+other)%41, i+1, other)
		}
	}
}
