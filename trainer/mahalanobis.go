package trainer

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/model"
	"gonum.org/v1/gonum/mat"
)

// fitMahalanobis estimates the covariance of directions that the classes share,
// from their differences to the means of their classes, [C, D], and, for the
// relative distance, that of all.
func fitMahalanobis(ctx context.Context, data *dataset, means []float32, report *Report, m *model.Model) error {
	d := data.dim
	within := newCovariance(d)
	var all *covariance
	mean := data.mean()
	if m.Detector == model.RelativeMahalanobis {
		all = newCovariance(d)
	}
	err := data.parts[partFit].chunks(false, func(x []float32, y []int32) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		within.add(x, func(i int) []float32 { return means[int(y[i])*d:][:d] })
		if all != nil {
			all.add(x, func(int) []float32 { return mean })
		}
		return nil
	})
	if err != nil {
		return err
	}
	factor, shrinkage, err := within.precisionFactor()
	if err != nil {
		return fmt.Errorf("covariance within the classes: %w", err)
	}
	m.PrecisionFactor, report.Shrinkage = matrix(factor, d), shrinkage
	if all == nil {
		return nil
	}
	if factor, _, err = all.precisionFactor(); err != nil {
		return fmt.Errorf("covariance of all records: %w", err)
	}
	m.BackgroundMean, m.BackgroundFactor = vector(mean), matrix(factor, d)
	return nil
}

// A covariance sums what the covariance of centred vectors, and its shrinkage,
// are made of.
type covariance struct {
	d, n     int
	products []float64 // [D, D]: Σ z·zᵀ
	fourth   float64   // Σ ‖z‖⁴
	z, chunk []float32
	w        kernel.Workspace
}

func newCovariance(d int) *covariance {
	return &covariance{d: d, products: make([]float64, d*d), chunk: make([]float32, d*d)}
}

// add takes in the rows of x less their centres. The products of a chunk are
// summed in float32, the chunks in float64.
func (c *covariance) add(x []float32, centre func(i int) []float32) {
	d, n := c.d, len(x)/c.d
	if len(c.z) < n*d {
		c.z = make([]float32, n*d)
	}
	z := c.z[:n*d]
	for i := range n {
		square := 0.
		for j, m := range centre(i) {
			v := x[i*d+j] - m
			z[i*d+j] = v
			square += float64(v) * float64(v)
		}
		c.fourth += square * square
	}
	rows := kernel.RowMajor(z, n, d)
	kernel.Multiply(&c.w, kernel.RowMajor(c.chunk, d, d), rows.T(), rows, false)
	for i, v := range c.chunk {
		c.products[i] += float64(v)
	}
	c.n += n
}

// leastShrinkage keeps a covariance without full rank invertible.
const leastShrinkage = 1e-6

// precisionFactor returns W, [D, D], of which W·Wᵀ is the inverse of the
// covariance (1−s)·S + s·tr(S)/D·I, and s, which is the estimate of Ledoit and
// Wolf, "A well-conditioned estimator for large-dimensional covariance
// matrices" (2004), lemmas 3.2 to 3.4. It exists also where D is larger than n.
func (c *covariance) precisionFactor() (factor []float32, shrinkage float64, err error) {
	d, n := float64(c.d), float64(c.n)
	trace, square := 0., 0.
	for i, v := range c.products {
		if i%(c.d+1) == 0 {
			trace += v / n
		}
		square += v / n * v / n
	}
	if !(trace > 0) {
		return nil, 0, errors.New("all embeddings are equal to their mean: there is no spread to measure by")
	}
	dispersion := (square - trace*trace/d) / d   // of the eigenvalues of S, d² in the paper
	variance := (c.fourth/n - square) / n / d    // of S about the covariance, b² in the paper
	variance = max(0, min(variance, dispersion)) // b² ≤ d²
	shrinkage = max(leastShrinkage, min(1, variance/math.Max(dispersion, math.SmallestNonzeroFloat64)))
	sigma := mat.NewSymDense(c.d, nil)
	for i := range c.d {
		for j := i; j < c.d; j++ {
			v := (1 - shrinkage) * (c.products[i*c.d+j] + c.products[j*c.d+i]) / 2 / n
			if i == j {
				v += shrinkage * trace / d
			}
			sigma.SetSym(i, j, v)
		}
	}
	var cholesky mat.Cholesky
	if !cholesky.Factorize(sigma) {
		return nil, 0, errors.New("it cannot be inverted")
	}
	// Σ = L·Lᵀ, so W = L⁻ᵀ.
	var lower, inverse mat.TriDense
	cholesky.LTo(&lower)
	if err := inverse.InverseTri(&lower); err != nil {
		var ill mat.Condition
		if !errors.As(err, &ill) || math.IsInf(float64(ill), 0) {
			return nil, 0, fmt.Errorf("it cannot be inverted: %w", err)
		}
	}
	factor = make([]float32, c.d*c.d)
	for i := range c.d {
		for j := i; j < c.d; j++ {
			factor[i*c.d+j] = float32(inverse.At(j, i))
		}
	}
	return factor, shrinkage, nil
}
