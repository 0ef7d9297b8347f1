package trainer

import (
	"fmt"
	"slices"

	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/model"
	"gorgonia.org/tensor"
)

// A param is what an optimiser moves, with its gradient.
type param struct{ value, grad []float32 }

func newParam(n int) param { return param{make([]float32, n), make([]float32, n)} }

// A head is what is fitted: C prototypes of dimension D (for softmax: weights),
// and the linear projection before them.
type head struct {
	loss       string
	c, d, rank int

	prototypes param // [C, D]
	bias       param // [C], softmax only
	scale      param // [1], isomax+ and dismax only
	// The projection adds to the identity: full makes of x the vector x + x·F,
	// low rank x + (x·U)·V. The parameters that a head does not have are empty.
	full param // [D, D]
	u, v param // [D, rank], [rank, D]

	pass pass
}

// newHead returns a head of zeros, its scale 1, its projection the identity.
func newHead(loss string, projection Projection, rank, c, d int) *head {
	h := &head{loss: loss, c: c, d: d, prototypes: newParam(c * d)}
	if loss == model.Softmax {
		h.bias = newParam(c)
	}
	if h.scaled() {
		h.scale = newParam(1)
		h.scale.value[0] = 1
	}
	switch projection {
	case ProjectionFull:
		h.full = newParam(d * d)
	case ProjectionLowRank:
		h.rank = min(rank, d)
		h.u, h.v = newParam(d*h.rank), newParam(h.rank*d)
	}
	return h
}

// directional reports whether only directions count: of embeddings and of
// prototypes.
func (h *head) directional() bool { return h.scaled() }

// scaled reports whether the head has a distance scale.
func (h *head) scaled() bool { return h.loss == model.IsoMaxPlus || h.loss == model.DisMax }

func (h *head) projected() bool {
	kind, _ := h.projection()
	return kind != ProjectionNone
}

// projection returns what kind it is, and the rank of a low-rank one.
func (h *head) projection() (Projection, int) {
	switch {
	case len(h.full.value) > 0:
		return ProjectionFull, 0
	case h.rank > 0:
		return ProjectionLowRank, h.rank
	}
	return ProjectionNone, 0
}

// params are all that is fitted.
func (h *head) params() []param {
	var all []param
	for _, p := range []param{h.prototypes, h.bias, h.scale, h.full, h.u, h.v} {
		if len(p.value) > 0 {
			all = append(all, p)
		}
	}
	return all
}

// project sets z, [n, D], to the projection of x, and t, [n, rank], to x·U.
func (h *head) project(x, z, t []float32, n int) {
	copy(z, x)
	p, rows := &h.pass, kernel.RowMajor(x, n, h.d)
	if len(h.full.value) > 0 {
		p.multiply(z, n, h.d, rows, kernel.RowMajor(h.full.value, h.d, h.d), true)
	} else if h.rank > 0 {
		p.multiply(t, n, h.rank, rows, kernel.RowMajor(h.u.value, h.d, h.rank), false)
		p.multiply(z, n, h.d, kernel.RowMajor(t, n, h.rank), kernel.RowMajor(h.v.value, h.rank, h.d), true)
	}
}

// startAt sets the prototypes to the projections of the class means, [C, D];
// the weights of softmax to the classifier by the nearest mean.
func (h *head) startAt(means []float32) {
	h.project(means, h.prototypes.value, make([]float32, h.c*h.rank), h.c)
	for k := range h.bias.value {
		mean := h.prototypes.value[k*h.d : (k+1)*h.d]
		h.bias.value[k] = -dot(mean, mean) / 2
	}
}

// goOnFrom sets h to the head known: its projection, its scale and the
// prototypes of its classes. The other classes start at their means; classes
// that only known has are left out.
func (h *head) goOnFrom(known *head, knownClasses, classes []string, means []float32) {
	copy(h.full.value, known.full.value)
	copy(h.u.value, known.u.value)
	copy(h.v.value, known.v.value)
	copy(h.scale.value, known.scale.value)
	h.startAt(means)
	for i, name := range classes {
		if k := slices.Index(knownClasses, name); k >= 0 {
			copy(h.prototypes.value[i*h.d:(i+1)*h.d], known.prototypes.value[k*h.d:])
			if len(h.bias.value) > 0 {
				h.bias.value[i] = known.bias.value[k]
			}
		}
	}
}

// cannotGoOnFrom says why a fit of h cannot start from the head known, "" if it
// can. A known nil has no head.
func (h *head) cannotGoOnFrom(known *head) string {
	switch {
	case known == nil:
		return "it has no head that could be gone on from"
	case known.loss != h.loss:
		return fmt.Sprintf("its loss is %s, the recipe's %s", known.loss, h.loss)
	case known.d != h.d:
		return fmt.Sprintf("its dimension is %d, the data's %d", known.d, h.d)
	case len(known.full.value) != len(h.full.value) || known.rank != h.rank:
		return "its projection is not of the recipe's kind"
	}
	return ""
}

// headOf returns the head of a model, to go on from or to ask for its logits;
// nil where the model has no logits or its projection changes the dimension.
func headOf(m *model.Model) *head {
	if !model.HasLogits(m.Detector) {
		return nil
	}
	h := &head{loss: m.Detector, c: m.NumClasses(), d: m.Dim()}
	if m.PrototypeDim() != h.d {
		return nil
	}
	values := func(t *tensor.Dense) param {
		p := newParam(t.Size())
		copy(p.value, t.Data().([]float32))
		return p
	}
	if m.Detector == model.Softmax {
		h.prototypes, h.bias = values(m.Weights), values(m.Bias)
	} else {
		h.prototypes = values(m.Prototypes)
	}
	if h.scaled() {
		h.scale = newParam(1)
		h.scale.value[0] = m.DistanceScale
	}
	if t := m.Transform; t != nil && t.Matrix != nil {
		h.full = values(t.Matrix)
		for i := range h.d {
			h.full.value[i*h.d+i]--
		}
	} else if t != nil {
		h.u, h.v, h.rank = values(t.U), values(t.V), t.U.Shape()[1]
	}
	return h
}

// export puts the head into m.
func (h *head) export(m *model.Model) {
	dense := func(values []float32, shape ...int) *tensor.Dense {
		return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(values))
	}
	if h.loss == model.Softmax {
		m.Weights, m.Bias = dense(h.prototypes.value, h.c, h.d), dense(h.bias.value, h.c)
	} else {
		m.Prototypes = dense(h.prototypes.value, h.c, h.d)
	}
	if h.scaled() {
		m.DistanceScale = h.scale.value[0]
	}
	switch {
	case len(h.full.value) > 0:
		matrix := append([]float32(nil), h.full.value...)
		for i := range h.d {
			matrix[i*h.d+i]++
		}
		m.Transform = &model.Transform{Matrix: dense(matrix, h.d, h.d)}
	case h.rank > 0:
		m.Transform = &model.Transform{U: dense(h.u.value, h.d, h.rank), V: dense(h.v.value, h.rank, h.d)}
	}
}
