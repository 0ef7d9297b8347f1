package kernel_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/oodmon/oodmon/internal/bench"
)

// BenchmarkNearest runs all implementations and the rivals, on embeddings in
// memory and in the cache; benchstat -col /impl puts them side by side. `oodmon
// bench kernel` adds the shares of what the machine can do.
func BenchmarkNearest(b *testing.B) {
	r := rand.New(rand.NewPCG(4, 4))
	for _, x := range []struct {
		name string
		size int
	}{{"memory", 32 << 20}, {"cache", 64 << 10}} {
		values := make([]float32, x.size)
		for i := range values {
			values[i] = float32(r.NormFloat64())
		}
		for _, s := range bench.KernelShapes() {
			d, c := s[0], s[1]
			for _, scorer := range bench.KernelScorers() {
				b.Run(fmt.Sprintf("x=%s/d=%d/c=%d/impl=%s", x.name, d, c, scorer.Name), func(b *testing.B) {
					p := make([]float32, c*d)
					for i := range p {
						p[i] = float32(r.NormFloat64())
					}
					score, err := scorer.New(p, c, d)
					if err != nil {
						b.Fatal(err)
					}
					// Rows enough for a tenth of a second, at the pace of one core.
					n := min(x.size/d, max(256, 1_000_000_000/(c*d)))
					dist, class := make([]float32, n), make([]int32, n)
					b.ReportAllocs()
					for b.Loop() {
						score(values[:n*d], dist, class)
					}
					rate := float64(b.N) * float64(n) / b.Elapsed().Seconds()
					b.ReportMetric(rate, "vectors/s")
					b.ReportMetric(2*float64(d)*float64(c)*rate/1e9, "GFLOP/s")
				})
			}
		}
	}
}
