package kernel

import (
	"fmt"
	"math"
)

// A Projection is what rows x of dimension D go through before they meet
// prototypes of dimension K: x·matrix, or x + (x·u)·v. It is packed once, is
// immutable and may be shared.
type Projection struct {
	kernel  *nearestKernel
	loops   *loops
	d, k    int
	columns int // k rounded up to whole panels
	rank    int // rounded up to whole panels
	// The matrix, or u and v, in panels.
	matrix, u, v []float32
}

// PackMatrix packs the d×k matrix m, row-major, for the active implementation.
func PackMatrix(m []float32, d, k int) (*Projection, error) {
	impl, err := Active()
	if err != nil {
		return nil, err
	}
	return impl.PackMatrix(m, d, k)
}

// PackMatrix is the function PackMatrix for one implementation.
func (i *Implementation) PackMatrix(m []float32, d, k int) (*Projection, error) {
	if d < 1 || k < 1 || len(m) != d*k {
		return nil, fmt.Errorf("projection: %d values are not %d rows of %d", len(m), d, k)
	}
	return &Projection{kernel: i.nearest, loops: i.loops, d: d, k: k, columns: roundUp(k), matrix: packColumns(m, d, k, d)}, nil
}

// PackLowRank packs the identity plus the product of u, d×rank, and v, rank×d,
// both row-major, for the active implementation.
func PackLowRank(u, v []float32, d, rank int) (*Projection, error) {
	impl, err := Active()
	if err != nil {
		return nil, err
	}
	return impl.PackLowRank(u, v, d, rank)
}

// PackLowRank is the function PackLowRank for one implementation.
func (i *Implementation) PackLowRank(u, v []float32, d, rank int) (*Projection, error) {
	if d < 1 || rank < 1 || len(u) != d*rank || len(v) != rank*d {
		return nil, fmt.Errorf("projection: %d and %d values are not %d rows of %d and %d of %d", len(u), len(v), d, rank, rank, d)
	}
	p := &Projection{kernel: i.nearest, loops: i.loops, d: d, k: d, columns: roundUp(d), rank: roundUp(rank)}
	p.u, p.v = packColumns(u, d, rank, d), packColumns(v, rank, d, p.rank)
	return p, nil
}

// packColumns packs the k×n matrix m, row-major, into panels of its columns,
// with zeros up to whole panels and up to a length of rows.
func packColumns(m []float32, k, n, rows int) []float32 {
	packed := make([]float32, roundUp(n)*rows)
	for i := range k {
		for j, v := range m[i*n : (i+1)*n] {
			packed[j/panelWidth*panelWidth*rows+i*panelWidth+j%panelWidth] = v
		}
	}
	return packed
}

// ProjectionRows is the number of rows at which Apply is fastest, with what
// follows: the rows and their images stay in the second-level cache. It is a
// multiple of the tiles of all implementations.
const ProjectionRows = 96

// A projectionScratch is the scratch of Projection.Apply.
type projectionScratch struct {
	inv, state, unit, low, image []float32
}

// Apply returns the images, n×K row-major, of the directions x_i/‖x_i‖ of n rows
// of x, n×D row-major; a row without direction, as Prototypes.Nearest has it,
// becomes NaN. It is valid until the next call with w.
//
// Rows are divided by their norms so that large ones stay finite. Products are
// float32 fused multiply-adds in one order: the assembly gives the same bits on
// every CPU, the pure-Go twin, which cannot fuse, the same to rounding.
func (p *Projection) Apply(w *Workspace, x []float32, n int) []float32 {
	if len(x) != n*p.d {
		panic("kernel: Projection.Apply: x does not fit")
	}
	if n == 0 {
		return nil
	}
	s, d, rows := &w.projection, p.d, roundUpTo(n, p.loops.rows)
	s.unit, s.low, s.image = grow(s.unit, rows*d), grow(s.low, rows*p.rank), grow(s.image, rows*p.columns)
	s.inv, s.state = grow(s.inv, n), grow(s.state, n*3*p.kernel.lanes)
	copy(s.unit, x)
	if p.kernel.norms(&x[0], n, d, &s.inv[0], &s.state[0], &x[0]) > 0 {
		for i, inv := range s.inv[:n] {
			if !regular(inv) {
				unitRow(s.unit[i*d:][:d])
				s.inv[i] = 1
			}
		}
	}
	p.loops.scaleRows(s.unit, d, s.inv[:n])
	if p.matrix != nil {
		p.multiply(s.image, s.unit, n, d, p.matrix, p.columns, false)
	} else {
		for i := range n {
			copy(s.image[i*p.columns:][:d], s.unit[i*d:])
		}
		p.multiply(s.low, s.unit, n, d, p.u, p.rank, false)
		p.multiply(s.image, s.low, n, p.rank, p.v, p.columns, true)
	}
	if p.columns > p.k {
		for i := 1; i < n; i++ {
			copy(s.image[i*p.k:][:p.k], s.image[i*p.columns:])
		}
	}
	return s.image[:n*p.k]
}

// unitRow divides a row by its norm, in float64, or sets it to NaN where it has
// no direction.
func unitRow(row []float32) {
	norm := math.Sqrt(sumOfSquares(row))
	if !(norm >= MinNorm) || math.IsInf(norm, 0) {
		norm = math.NaN()
	}
	for j, v := range row {
		row[j] = float32(float64(v) / norm)
	}
}

// multiply sets c, or adds to it, the product of n rows of k values with packed
// panels of so many columns. Rows that fill the last tile become garbage. Parts
// of the panels stay in the first-level cache while the rows pass.
func (p *Projection) multiply(c, x []float32, n, k int, panels []float32, columns int, add bool) {
	l := p.loops
	for k0 := 0; k0 < k; k0 += innerBlock {
		count := min(innerBlock, k-k0)
		for j := 0; j < columns; {
			b := panels[j*k+k0*panelWidth:]
			wide := l.wideTile != nil && j+2*panelWidth <= columns
			for i := 0; i < n; i += l.rows {
				if wide {
					l.wideTile(count, x[i*k+k0:], k, 1, b, panelWidth, panelWidth*k, c[i*columns+j:], columns, add || k0 > 0)
				} else {
					l.tile(count, x[i*k+k0:], k, 1, b, panelWidth, c[i*columns+j:], columns, add || k0 > 0)
				}
			}
			j += panelWidth
			if wide {
				j += panelWidth
			}
		}
	}
}
