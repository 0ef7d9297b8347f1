package kernel

import "math"

// SoftmaxInPlace replaces each of the n rows of x, n×c row-major, by its softmax:
//
//	x[i,j] = exp(x[i,j] − m_i) / Σ_k exp(x[i,k] − m_i)    with m_i = max_k x[i,k]
//
// It panics if len(x) is not n·c.
func SoftmaxInPlace(x []float32, n, c int) {
	if n < 0 || c < 1 || len(x) != n*c {
		panic("kernel: SoftmaxInPlace: x does not hold n rows of c")
	}
	for i := range n {
		row := x[i*c : (i+1)*c]
		m := row[0]
		for _, v := range row[1:] {
			m = max(m, v)
		}
		var sum float64
		for j, v := range row {
			e := math.Exp(float64(v - m))
			row[j] = float32(e)
			sum += e
		}
		inv := float32(1 / sum)
		for j := range row {
			row[j] *= inv
		}
	}
}
