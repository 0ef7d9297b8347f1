package scorer

import (
	"math"

	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/model"
	"gorgonia.org/tensor"
)

// A head computes the minimum distance score of an IsoMax+ head or of class
// means: it needs the nearest prototype alone.
type head struct {
	transform
	prototypes *kernel.Prototypes
	scale      float32 // |distance scale| / temperature
}

func newHead(m *model.Model) (*head, error) {
	prototypes, err := kernel.Pack(m.PrototypeData(), m.NumClasses(), m.PrototypeDim())
	if err != nil {
		return nil, err
	}
	scale := 1.
	if m.Detector == model.IsoMaxPlus {
		scale = math.Abs(float64(m.DistanceScale))
	}
	return &head{newTransform(m), prototypes, float32(scale / m.Temperature)}, nil
}

// score needs no direction of a row that is transformed: what the transform
// makes of it must have one.
func (h *head) score(w *Workspace, x, score []float32, class []int32) {
	if h.none() {
		h.prototypes.Nearest(&w.kernel, x, score, class)
	} else {
		for first := 0; first < len(score); first += blockRows {
			rows := min(blockRows, len(score)-first)
			y := h.apply(w, x[first*h.dim:][:rows*h.dim], rows, true)
			h.prototypes.Nearest(&w.kernel, y, score[first:][:rows], class[first:][:rows])
		}
	}
	for i := range score {
		score[i] *= h.scale
	}
}

// A transform is what comes before a head: matrix [dim, k], or u [dim, rank] and
// v [rank, dim], or nothing.
type transform struct {
	dim, k, rank int
	matrix, u, v []float32
}

func newTransform(m *model.Model) transform {
	values := func(t *tensor.Dense) []float32 { return t.Data().([]float32) }
	h := transform{dim: m.Dim(), k: m.PrototypeDim()}
	if t := m.Transform; t != nil && t.Matrix != nil {
		h.matrix = values(t.Matrix)
	} else if t != nil {
		h.u, h.v, h.rank = values(t.U), values(t.V), t.U.Shape()[1]
	}
	return h
}

func (t *transform) none() bool { return t.matrix == nil && t.u == nil }

// Products of at most 64 rows and 192 columns are those that gonum computes
// without goroutines of its own.
const (
	blockRows    = 64
	blockColumns = 192
)

// apply returns the transform of the rows of x; with direction, of their
// directions. It is valid until the next use of w. Rows are divided by their
// norms first, which keeps large ones finite.
func (t *transform) apply(w *Workspace, x []float32, rows int, direction bool) []float32 {
	if t.none() {
		return x
	}
	k := t.k
	w.unit, w.low, w.projected = resize(w.unit, rows*t.dim), resize(w.low, rows*t.rank), resize(w.projected, rows*k)
	w.norms = resize(w.norms, rows)
	for r := range rows {
		w.norms[r] = toUnit(w.unit[r*t.dim:][:t.dim], x[r*t.dim:][:t.dim])
	}
	if t.matrix != nil {
		multiply(w.projected, w.unit, t.matrix, rows, t.dim, k, 0)
	} else {
		copy(w.projected, w.unit)
		multiply(w.low, w.unit, t.u, rows, t.dim, t.rank, 0)
		multiply(w.projected, w.low, t.v, rows, t.rank, k, 1)
	}
	if !direction {
		for i := range w.projected {
			w.projected[i] = float32(float64(w.projected[i]) * w.norms[i/k])
		}
	}
	return w.projected
}

func resize[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// toUnit sets unit to x/‖x‖, or to NaN where x has no direction. It returns the
// norm.
func toUnit(unit, x []float32) float64 {
	var sum float64
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	norm := math.Sqrt(sum)
	inv := 1 / norm
	if !(norm >= kernel.MinNorm) || math.IsInf(norm, 0) {
		inv = math.NaN()
	}
	for j, v := range x {
		unit[j] = float32(float64(v) * inv)
	}
	return norm
}

// multiply computes c = a·b + beta·c, where a is [m, k], b [k, n] and c [m, n].
func multiply(c, a, b []float32, m, k, n int, beta float32) {
	for j := 0; j < n; j += blockColumns {
		kernel.Gemm(false, false, m, min(blockColumns, n-j), k, 1, a, k, b[j:], n, beta, c[j:], n)
	}
}
