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
	c, d   int
	unit   []float32 // [C, D], unit norm
	raw    []float32 // [C, D], as given
	inv    []float64 // [C], one over the norm of raw
	kernel *nearestKernel
	panels []panel
	zero   []float32 // the bias of all parts of a panel but the first
	// tie bounds the error of the difference of two cosines, and slack that of
	// two squared distances: see Pack.
	tie, slack float32
}

// A panel is some prototypes interleaved: for each group of dimensions the values
// of each prototype in turn, zeros where there is none. The bias is a line of
// zeros, and −inf for a lane without prototype so that it never wins.
type panel struct {
	kernel  *panelKernel
	first   int // class of the first lane
	bias, w []float32
}

// Pack normalises the c×d prototypes p, row-major, for the active
// implementation. It keeps a copy. A row that is not finite, or whose norm is
// under MinNorm, is an error.
func Pack(p []float32, c, d int) (*Prototypes, error) {
	impl, err := Active()
	if err != nil {
		return nil, err
	}
	return impl.Pack(p, c, d)
}

// Pack is the function Pack for one implementation.
func (i *Implementation) Pack(p []float32, c, d int) (*Prototypes, error) {
	if c < 1 || d < 1 || len(p) != c*d {
		return nil, fmt.Errorf("prototypes: %d values are not %d rows of %d", len(p), c, d)
	}
	// A dot product in which every summand takes part in at most r roundings is
	// wrong by at most r·u·‖x‖·‖p‖, u = 2^-24 (Higham, Accuracy and Stability of
	// Numerical Algorithms, 3.1, and Cauchy-Schwarz); the rounding of p adds u.
	// So the order of two products is certain beyond twice that.
	const u = 0x1p-24
	roundings := float64(min(d, partValues) + (d+partValues-1)/partValues + 4)
	ps := &Prototypes{
		c: c, d: d, unit: make([]float32, c*d), raw: append([]float32(nil), p...), inv: make([]float64, c), kernel: i.nearest,
		zero: make([]float32, i.nearest.panels[0].line),
		tie:  float32(2.01 * u * roundings),
		// Each squared distance, at most 4, adds up d/64 + 6 rounded numbers of
		// one sign, of which each is wrong by a few u; and so is each direction.
		slack: float32(2 * 4 * u * (float64(d)/64 + 24)),
	}
	for k := range c {
		norm := math.Sqrt(sumOfSquares(p[k*d : (k+1)*d]))
		if !(norm >= MinNorm) || math.IsInf(norm, 0) {
			return nil, fmt.Errorf("prototype %d has norm %g: it must be finite and at least %g", k, norm, MinNorm)
		}
		ps.inv[k] = 1 / norm
		for j := k * d; j < (k+1)*d; j++ {
			ps.unit[j] = float32(float64(p[j]) * ps.inv[k])
		}
	}
	for first := 0; first < c; {
		kernel := &i.nearest.panels[0]
		for k := range i.nearest.panels { // the narrowest that is for all that are left
			if i.nearest.panels[k].upTo >= c-first {
				kernel = &i.nearest.panels[k]
			}
		}
		ps.panels = append(ps.panels, ps.pack(kernel, first))
		first += kernel.width
	}
	return ps, nil
}

func (p *Prototypes) pack(k *panelKernel, first int) panel {
	bias, w := make([]float32, k.line), make([]float32, (p.d+k.group-1)/k.group*k.group*k.width)
	for lane := range bias {
		class := first + lane
		if lane >= k.width || class >= p.c {
			bias[lane] = float32(math.Inf(-1))
			continue
		}
		for j, v := range p.unit[class*p.d:][:p.d] {
			w[(j/k.group*k.width+lane)*k.group+j%k.group] = v
		}
	}
	return panel{k, first, bias, w}
}

// Classes returns C.
func (p *Prototypes) Classes() int { return p.c }

// Dim returns D.
func (p *Prototypes) Dim() int { return p.d }

// sumOfSquares is exact enough for any float32 row: float64 neither overflows
// nor underflows on their squares. It is NaN or +Inf where a value is. A square
// of a float32 is exact in float64, so that fused operations change nothing.
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
