package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestSoftmaxInPlace(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for _, scale := range []float64{0, 1e-3, 1, 30, 1e4, 1e38} {
		for _, c := range []int{1, 2, 7, 16, 33, 100} {
			const n, guard = 5, 7
			x := normal(r, n*c, scale)
			got := append(append([]float32{guard}, x...), guard)
			SoftmaxInPlace(got[1:n*c+1], n, c)
			if got[0] != guard || got[n*c+1] != guard {
				t.Fatal("wrote outside its slice")
			}
			for i := range n {
				row := x[i*c : (i+1)*c]
				m, sum := math.Inf(-1), 0.
				for _, v := range row {
					m = math.Max(m, float64(v))
				}
				for _, v := range row {
					sum += math.Exp(float64(v) - m)
				}
				for j, v := range row {
					want := math.Exp(float64(v)-m) / sum
					if diff := math.Abs(float64(got[1+i*c+j]) - want); diff > 1e-6*want && diff > 1e-37 {
						t.Fatalf("scale %g, c %d: softmax %g, want %g", scale, c, got[1+i*c+j], want)
					}
				}
			}
		}
	}
}
