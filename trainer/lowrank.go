package trainer

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/oodmon/oodmon/internal/kernel"
	"gonum.org/v1/gonum/mat"
)

// compress replaces what a full projection F adds to the identity by the product
// U·V of the given rank that comes nearest to it on the data: of all of that
// rank the one with the least Σ ‖x·F − x·U·V‖². V holds the first eigenvectors of
// M = Fᵀ·(Σ x·xᵀ)·F, and U is F·Vᵀ (Eckart and Young, 1936). The eigenvectors are
// found in a random subspace that M is applied to, after Halko, Martinsson and
// Tropp, "Finding Structure with Randomness" (2011), algorithm 4.4.
func (h *head) compress(ctx context.Context, data *spool, rank int, seed uint64) error {
	d := h.d
	rank = min(rank, d)
	f := wide(h.full.value, d, d)
	m, err := h.projectedMoments(ctx, data)
	if err != nil {
		return err
	}
	const more, times = 10, 6 // directions beyond the rank, applications of M
	width := min(rank+more, d)
	random := rand.New(rand.NewPCG(seed, 6))
	basis := mat.NewDense(d, width, nil)
	for i := range d {
		for j := range width {
			basis.Set(i, j, random.NormFloat64())
		}
	}
	var qr mat.QR
	var image, q mat.Dense
	for range times {
		image.Mul(m, basis)
		qr.Factorize(&image)
		qr.QTo(&q)
		basis.Copy(q.Slice(0, d, 0, width))
	}
	var within, small mat.Dense
	within.Mul(m, basis)
	small.Mul(basis.T(), &within)
	symmetric := mat.NewSymDense(width, nil)
	for i := range width {
		for j := i; j < width; j++ {
			symmetric.SetSym(i, j, (small.At(i, j)+small.At(j, i))/2)
		}
	}
	var eigen mat.EigenSym
	if !eigen.Factorize(symmetric, true) {
		return fmt.Errorf("low-rank projection: no eigenvectors were found")
	}
	var vectors, v, u mat.Dense
	eigen.VectorsTo(&vectors) // by rising eigenvalue
	v.Mul(basis, vectors.Slice(0, width, width-rank, width))
	u.Mul(f, &v)
	h.full, h.rank = param{}, rank
	h.u, h.v = newParam(d*rank), newParam(rank*d)
	for i := range d {
		for j := range rank {
			h.u.value[i*rank+j] = float32(u.At(i, j))
			h.v.value[j*d+i] = float32(v.At(i, j))
		}
	}
	return nil
}

// projectedMoments returns M, [D, D]: the second moments of x·F.
func (h *head) projectedMoments(ctx context.Context, data *spool) (*mat.Dense, error) {
	d := h.d
	sum, image := make([]float32, d*d), make([]float32, spoolChunk*d)
	m := mat.NewDense(d, d, nil)
	err := data.chunks(data.raw, func(x []float32, y []int32) error {
		n := len(y)
		h.pass.multiply(image[:n*d], n, d, kernel.RowMajor(x, n, d), kernel.RowMajor(h.full.value, d, d), false)
		rows := kernel.RowMajor(image[:n*d], n, d)
		h.pass.multiply(sum, d, d, rows.T(), rows, false)
		m.Add(m, wide(sum, d, d))
		return context.Cause(ctx)
	})
	return m, err
}

// wide returns values, [rows, cols], in float64.
func wide(values []float32, rows, cols int) *mat.Dense {
	m := mat.NewDense(rows, cols, nil)
	for i := range rows {
		for j := range cols {
			m.Set(i, j, float64(values[i*cols+j]))
		}
	}
	return m
}
