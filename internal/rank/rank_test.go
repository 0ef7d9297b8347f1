package rank

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
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
			all := make([]uint32, len(live))
			x.BelowAll(all, live)
			for i, v := range live {
				want, _ := slices.BinarySearch(values, v)
				if got := x.Below(v); got != want || int(all[i]) != want {
					t.Fatalf("%s, %d values: %d are below %g, among others %d, want %d", name, n, got, v, all[i], want)
				}
			}
		}
	}
}

// With each 2,048 values the caches are filled with something else, as they are
// where a batch is scored.
func BenchmarkBelow(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	values, live := draw(r, 10000, shapes["normal"]), draw(r, 2048, shapes["normal"])
	slices.Sort(values)
	x, out, other := New(values), make([]uint32, len(live)), make([]byte, 32<<20)
	for _, evict := range []bool{false, true} {
		for name, all := range map[string]func(){
			"one by one": func() {
				for i, v := range live {
					out[i] = uint32(x.Below(v))
				}
			},
			"all":         func() { x.BelowAll(out, live) },
			"all fetched": func() { out[0] = x.Fetch(); x.BelowAll(out, live) },
		} {
			b.Run(fmt.Sprintf("%s/evict=%v", name, evict), func(b *testing.B) {
				var spent time.Duration
				for b.Loop() {
					if evict {
						clear(other)
					}
					start := time.Now()
					all()
					spent += time.Since(start)
				}
				b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N*len(live)), "ns/value")
			})
		}
	}
}
