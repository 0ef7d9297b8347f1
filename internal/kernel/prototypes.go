package kernel

import (
	"fmt"
	"math"
)

// MinNorm is the smallest norm of a row that has a direction. PyTorch's
// F.normalize divides by max(norm, 1e-12); below it there is no answer.
const MinNorm = 1e-12

// Prototypes are C class prototypes of dimension D, each divided by its norm.
// They are immutable and may be shared.
type Prototypes struct {
	c, d int
	unit []float32 // [C, D], unit norm
	raw  []float32 // [C, D], as given
	inv  []float64 // [C], one over the norm of raw
}

// Pack normalises the c×d prototypes p, row-major. It keeps a copy. A row that
// is not finite, or whose norm is under MinNorm, is an error.
func Pack(p []float32, c, d int) (*Prototypes, error) {
	if c < 1 || d < 1 || len(p) != c*d {
		return nil, fmt.Errorf("prototypes: %d values are not %d rows of %d", len(p), c, d)
	}
	ps := &Prototypes{c: c, d: d, unit: make([]float32, c*d), raw: append([]float32(nil), p...), inv: make([]float64, c)}
	for i := range c {
		norm := math.Sqrt(sumOfSquares(p[i*d : (i+1)*d]))
		if !(norm >= MinNorm) || math.IsInf(norm, 0) {
			return nil, fmt.Errorf("prototype %d has norm %g: it must be finite and at least %g", i, norm, MinNorm)
		}
		ps.inv[i] = 1 / norm
		for j := i * d; j < (i+1)*d; j++ {
			ps.unit[j] = float32(float64(p[j]) * ps.inv[i])
		}
	}
	return ps, nil
}

// Classes returns C.
func (p *Prototypes) Classes() int { return p.c }

// Dim returns D.
func (p *Prototypes) Dim() int { return p.d }

// sumOfSquares is exact enough for any float32 row: float64 neither overflows
// nor underflows on their squares. It is NaN or +Inf where a value is.
func sumOfSquares(x []float32) float64 {
	var a, b, c, d float64
	i := 0
	for ; i+4 <= len(x); i += 4 {
		v0, v1, v2, v3 := float64(x[i]), float64(x[i+1]), float64(x[i+2]), float64(x[i+3])
		a += v0 * v0
		b += v1 * v1
		c += v2 * v2
		d += v3 * v3
	}
	for ; i < len(x); i++ {
		a += float64(x[i]) * float64(x[i])
	}
	return a + b + c + d
}
