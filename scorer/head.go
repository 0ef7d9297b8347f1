package scorer

import (
	"math"

	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/model"
	"gorgonia.org/tensor"
)

// A head computes the minimum distance score of a model.
type head struct {
	prototypes *kernel.Prototypes
	scale      float32 // |distance scale| / temperature
	dim        int     // of an embedding
	// The transform before the prototypes: matrix [dim, K], or u [dim, rank]
	// and v [rank, dim], or none.
	matrix, u, v []float32
	rank         int
}

func newHead(m *model.Model) (*head, error) {
	prototypes, err := kernel.Pack(m.PrototypeData(), m.NumClasses(), m.PrototypeDim())
	if err != nil {
		return nil, err
	}
	h := &head{prototypes: prototypes, scale: float32(math.Abs(float64(m.DistanceScale)) / m.Temperature), dim: m.Dim()}
	values := func(t *tensor.Dense) []float32 { return t.Data().([]float32) }
	if t := m.Transform; t != nil && t.Matrix != nil {
		h.matrix = values(t.Matrix)
	} else if t != nil {
		h.u, h.v, h.rank = values(t.U), values(t.V), t.U.Shape()[1]
	}
	return h, nil
}

// score fills in the score and the nearest class of each row of x, [n, dim]
// row-major; NaN and −1 where the row, or what the transform makes of it, has
// no direction.
func (h *head) score(w *Workspace, x, score []float32, class []int32) {
	if h.matrix == nil && h.u == nil {
		h.prototypes.Nearest(&w.kernel, x, score, class)
	} else {
		for first := 0; first < len(score); first += blockRows {
			rows := min(blockRows, len(score)-first)
			h.project(w, x[first*h.dim:][:rows*h.dim], rows)
			h.prototypes.Nearest(&w.kernel, w.projected, score[first:][:rows], class[first:][:rows])
		}
	}
	for i := range score {
		score[i] *= h.scale
	}
}

// Products of at most 64 rows and 192 columns are those that gonum computes
// without goroutines of its own.
const (
	blockRows    = 64
	blockColumns = 192
)

// project sets w.projected to the transform of the rows of x. Rows are divided
// by their norms first, which changes no direction and keeps large ones finite.
func (h *head) project(w *Workspace, x []float32, rows int) {
	k := h.prototypes.Dim()
	w.unit, w.low, w.projected = resize(w.unit, rows*h.dim), resize(w.low, rows*h.rank), resize(w.projected, rows*k)
	for r := range rows {
		toUnit(w.unit[r*h.dim:][:h.dim], x[r*h.dim:][:h.dim])
	}
	if h.matrix != nil {
		multiply(w.projected, w.unit, h.matrix, rows, h.dim, k, 0)
		return
	}
	copy(w.projected, w.unit)
	multiply(w.low, w.unit, h.u, rows, h.dim, h.rank, 0)
	multiply(w.projected, w.low, h.v, rows, h.rank, k, 1)
}

func resize(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}

// toUnit sets unit to x/‖x‖, or to NaN where x has no direction.
func toUnit(unit, x []float32) {
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
}

// multiply computes c = a·b + beta·c, where a is [m, k], b [k, n] and c [m, n].
func multiply(c, a, b []float32, m, k, n int, beta float32) {
	for j := 0; j < n; j += blockColumns {
		kernel.Gemm(false, false, m, min(blockColumns, n-j), k, 1, a, k, b[j:], n, beta, c[j:], n)
	}
}
