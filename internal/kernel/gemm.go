package kernel

import "sync"

// scratch is lent to the calls of Gemm, which bring none.
var scratch = sync.Pool{New: func() any { return new(Workspace) }}

// Gemm computes c = alpha·op(a)·op(b) + beta·c for row-major matrices, where
// op(a) is m×k, op(b) is k×n and c is m×n. Strides are in values. It is Multiply
// for alpha 1 and beta 0 or 1, and panics with others.
func Gemm(transA, transB bool, m, n, k int, alpha float32, a []float32, lda int, b []float32, ldb int, beta float32, c []float32, ldc int) {
	if alpha != 1 || beta != 0 && beta != 1 {
		panic("kernel: Gemm: alpha must be 1 and beta 0 or 1")
	}
	x, y := Matrix{a, m, k, lda, 1}, Matrix{b, k, n, ldb, 1}
	if transA {
		x = Matrix{a, m, k, 1, lda}
	}
	if transB {
		y = Matrix{b, k, n, 1, ldb}
	}
	w := scratch.Get().(*Workspace)
	Multiply(w, Matrix{c, m, n, ldc, 1}, x, y, beta == 1)
	scratch.Put(w)
}
