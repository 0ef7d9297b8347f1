package rank

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

var shapes = map[string]func(r *rand.Rand) float64{
	"normal":            (*rand.Rand).NormFloat64,
	"five values":       func(r *rand.Rand) float64 { return float64(r.IntN(5)) },
	"one value":         func(*rand.Rand) float64 { return 3 },
	"heavy tails":       func(r *rand.Rand) float64 { return math.Exp(9 * r.NormFloat64()) },
	"the whole range":   func(r *rand.Rand) float64 { return (2*r.Float64() - 1) * math.MaxFloat32 },
	"subnormal numbers": func(r *rand.Rand) float64 { return r.Float64() * 1e-42 },
}

func draw(r *rand.Rand, n int, shape func(r *rand.Rand) float64) []float32 {
	values := make([]float32, n)
	for i := range values {
		values[i] = float32(shape(r))
	}
	return values
}

// The index finds among values of any shape what a search of them all finds.
func TestBelow(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	for name, shape := range shapes {
		for _, n := range []int{0, 1, 2, 3, 7, 8, 9, 40, 1000, 10000} {
			values := draw(r, n, shape)
			slices.Sort(values)
			x := New(values)
			inf := float32(math.Inf(1))
			live := append(draw(r, 500, shape), -inf, -math.MaxFloat32, -1, 0, 1, math.MaxFloat32, inf)
			for _, v := range values[:min(n, 500)] {
				live = append(live, v, math.Nextafter32(v, inf), math.Nextafter32(v, -inf))
			}
			for _, v := range live {
				want, _ := slices.BinarySearch(values, v)
				if got := x.Below(v); got != want {
					t.Fatalf("%s, %d values: %d are below %g, want %d", name, n, got, v, want)
				}
			}
		}
	}
}

func BenchmarkBelow(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	for name, shape := range shapes {
		b.Run(name, func(b *testing.B) {
			values, live := draw(r, 10000, shape), draw(r, 4096, shape)
			slices.Sort(values)
			x, sum := New(values), 0
			for b.Loop() {
				for _, v := range live {
					sum += x.Below(v)
				}
			}
			b.ReportMetric(b.Elapsed().Seconds()*1e9/float64(b.N*len(live)), "ns/value")
		})
	}
}
