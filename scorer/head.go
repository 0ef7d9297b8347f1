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
	t, err := newTransform(m)
	if err != nil {
		return nil, err
	}
	return &head{t, prototypes, float32(scale / m.Temperature)}, nil
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

// A transform is what comes before a head, or nothing.
type transform struct {
	dim, k     int
	projection *kernel.Projection
}

func newTransform(m *model.Model) (transform, error) {
	values := func(t *tensor.Dense) []float32 { return t.Data().([]float32) }
	t := transform{dim: m.Dim(), k: m.PrototypeDim()}
	var err error
	if by := m.Transform; by != nil && by.Matrix != nil {
		t.projection, err = kernel.PackMatrix(values(by.Matrix), t.dim, t.k)
	} else if by != nil {
		t.projection, err = kernel.PackLowRank(values(by.U), values(by.V), t.dim, by.U.Shape()[1])
	}
	return t, err
}

func (t *transform) none() bool { return t.projection == nil }

// blockRows is how many rows go through a transform, and then a head, at a time.
const blockRows = kernel.ProjectionRows

// apply returns the transform of the rows of x; with direction, of their
// directions. It is valid until the next use of w.
func (t *transform) apply(w *Workspace, x []float32, rows int, direction bool) []float32 {
	if t.none() {
		return x
	}
	images := t.projection.Apply(&w.kernel, x, rows)
	if !direction {
		for r := range rows {
			length := norm(x[r*t.dim:][:t.dim])
			for i, v := range images[r*t.k:][:t.k] {
				images[r*t.k+i] = float32(float64(v) * length)
			}
		}
	}
	return images
}

func resize[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// toUnit sets unit to x/‖x‖, or to NaN where x has no direction.
func toUnit(unit, x []float32) {
	norm := norm(x)
	inv := 1 / norm
	if !(norm >= kernel.MinNorm) || math.IsInf(norm, 0) {
		inv = math.NaN()
	}
	for j, v := range x {
		unit[j] = float32(float64(v) * inv)
	}
}
