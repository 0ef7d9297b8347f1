package trainer

import (
	"math"
	"slices"

	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/model"
)

// A pass is the scratch of taking a batch of B embeddings through a head.
type pass struct {
	kernel kernel.Workspace

	x              []float32 // [B, D], as given
	z              []float32 // [B, D]: x, or the projection of it
	projected      []float32 // where z is kept, if it is not x
	low            []float32 // [B, rank], x·U
	norms          []float32 // [B], of the rows of z
	prototypes     []float32 // [C, D]; of unit norm where the head is directional
	unit           []float32 // where they are kept then
	prototypeNorms []float32 // [C], of what was given
	inverse        []float32 // [B] or [C], of norms
	products       []float32 // [B, C]: z·p; then, but for softmax, the distances
	squares        []float32 // [B] and [C], squared norms
	gradProducts   []float32 // [B, C]
	weights        []float32 // [B]
	sums           []float32 // [C]
	gradZ          []float32 // [B, D]
	gradLow        []float32 // [B, rank]
}

func grow(s *[]float32, n int) []float32 {
	*s = slices.Grow((*s)[:0], n)[:n]
	return *s
}

// multiply sets c, [m, n], to a·b, or adds it.
func (p *pass) multiply(c []float32, m, n int, a, b kernel.Matrix, add bool) {
	kernel.Multiply(&p.kernel, kernel.RowMajor(c, m, n), a, b, add)
}

// forward sets products to what the logits of the embeddings x, [B, D], are made
// of.
func (h *head) forward(x []float32, b int) {
	p, c, d := &h.pass, h.c, h.d
	p.x, p.z = x, x
	if h.projected() {
		p.z = grow(&p.projected, b*d)
		h.project(x, p.z, grow(&p.low, b*h.rank), b)
	}
	norms, prototypeNorms := grow(&p.norms, b), grow(&p.prototypeNorms, c)
	if h.loss != model.Softmax {
		rowNorms(p.z, d, norms)
		rowNorms(h.prototypes.value, d, prototypeNorms)
	}
	p.prototypes = h.prototypes.value
	if h.directional() {
		p.prototypes = grow(&p.unit, c*d)
		copy(p.prototypes, h.prototypes.value)
		kernel.ScaleRows(p.prototypes, d, p.inverses(prototypeNorms))
	}
	products := grow(&p.products, b*c)
	p.multiply(products, b, c, kernel.RowMajor(p.z, b, d), kernel.RowMajor(p.prototypes, c, d).T(), false)
	switch {
	case h.loss == model.Softmax:
		for i := range b {
			for k, v := range h.bias.value {
				products[i*c+k] += v
			}
		}
	case h.loss == model.IsoMax:
		squares := grow(&p.squares, b+c)
		for i, norm := range norms {
			squares[i] = norm * norm
		}
		for k, norm := range prototypeNorms {
			squares[b+k] = norm * norm
		}
		kernel.Distances(&p.kernel, products, squares[:b], squares[b:])
	default:
		kernel.UnitDistances(&p.kernel, products, c, norms)
	}
}

// rowNorms sets norms to those of the rows of x. PyTorch divides by at least
// 1e-12, and so does what uses them.
func rowNorms(x []float32, d int, norms []float32) {
	kernel.Norms(x, d, norms)
	for i := range norms {
		norms[i] = max(norms[i], 1e-12)
	}
}

func (p *pass) inverses(norms []float32) []float32 {
	inverse := grow(&p.inverse, len(norms))
	for i, norm := range norms {
		inverse[i] = 1 / norm
	}
	return inverse
}

// logits returns the logits, [B, C], of the embeddings x, [B, D], at temperature
// 1. They are valid until the next call.
//
//	isomax+  L_c = −|s|·‖z^ − p^_c‖
//	dismax   L_c = −(D_c + mean_k D_k) with D_c = |s|·‖z^ − p^_c‖/√2
//	isomax   L_c = −‖z − p_c‖
//	softmax  L_c = w_c·z + b_c
//
// z is x, or what the projection makes of it; ^ divides by the norm. Sources:
// Macêdo and Ludermir, "Enhanced Isotropy Maximization Loss", "Distinction
// Maximization Loss", "Entropic Out-of-Distribution Detection".
func (h *head) logits(x []float32, b int) []float32 {
	h.forward(x, b)
	logits, c := h.pass.products, h.c
	if h.loss == model.Softmax {
		return logits
	}
	factor := -float32(h.distanceScale())
	for i := range b {
		row, sum := logits[i*c:(i+1)*c], float32(0)
		for k := range row {
			row[k] *= factor
			sum += row[k]
		}
		if h.loss == model.DisMax {
			for k := range row {
				row[k] += sum / float32(c)
			}
		}
	}
	return logits
}

// distanceScale is what multiplies a distance.
func (h *head) distanceScale() float64 {
	switch h.loss {
	case model.IsoMaxPlus:
		return math.Abs(float64(h.scale.value[0]))
	case model.DisMax:
		return math.Abs(float64(h.scale.value[0])) / math.Sqrt2
	}
	return 1
}

// step computes the loss of a batch and its gradient by every parameter:
//
//	loss = mean_i −w[y_i]·log softmax(E·L_i)[y_i]
//
// x is [B, D], y the classes, w the weight of each class
// (nil: all 1), E the entropic scale. The authors round the probability to
// float32 before they take its logarithm, which is infinite where it underflows,
// and a multiple of 6e-8 where the loss is small; here the loss is taken from the
// logits. TestTwoStepLogarithm compares.
func (h *head) step(x []float32, y []int32, weights []float32, entropicScale float64) float64 {
	loss := h.lossOf(x, y, weights, entropicScale)
	h.backwardProducts(len(y), entropicScale)
	if h.projected() {
		h.backwardProjection(len(y))
	}
	h.backwardPrototypes(len(y))
	return loss
}

// lossOf computes the loss, and sets gradProducts to its gradient by E·L.
func (h *head) lossOf(x []float32, y []int32, weights []float32, entropicScale float64) float64 {
	h.forward(x, len(y))
	p := &h.pass
	grad, share := grow(&p.gradProducts, len(y)*h.c), grow(&p.weights, len(y))
	copy(grad, p.products)
	for i, class := range y {
		share[i] = 1 / float32(len(y))
		if weights != nil {
			share[i] *= weights[class]
		}
	}
	// The mean that dismax adds to the logits is the same for all classes:
	// softmax does not see it, and the loss is that of isomax+.
	scale := -entropicScale * h.distanceScale()
	if h.loss == model.Softmax {
		scale = entropicScale
	}
	return kernel.SoftmaxLoss(&p.kernel, grad, h.c, y, scale, share)
}

// backwardProducts turns gradProducts into the gradient by z·p (by the cosines,
// where the head is directional), and computes those of the bias and the scale.
func (h *head) backwardProducts(b int, entropicScale float64) {
	p := &h.pass
	grad := p.gradProducts[:b*h.c]
	if h.loss == model.Softmax {
		for i := range grad {
			grad[i] *= float32(entropicScale)
		}
		kernel.ColumnSums(grad, h.bias.grad)
		return
	}
	along := kernel.DistanceGradients(&p.kernel, grad, p.products, h.c, entropicScale*h.distanceScale())
	if h.scaled() {
		h.scale.grad[0] = float32(-entropicScale * along * h.distanceScale() / float64(h.scale.value[0]))
	}
}

// backwardPrototypes computes the gradient of the prototypes. It comes last.
func (h *head) backwardPrototypes(b int) {
	p, c, d := &h.pass, h.c, h.d
	if h.directional() { // by the cosines, until here
		kernel.ScaleRows(p.gradProducts, c, p.inverses(p.norms))
	}
	grad := h.prototypes.grad
	p.multiply(grad, c, d, kernel.RowMajor(p.gradProducts, b, c).T(), kernel.RowMajor(p.z, b, d), false)
	switch {
	case h.directional():
		kernel.NormGradients(&p.kernel, grad, h.prototypes.value, d, p.prototypeNorms)
	case h.loss == model.IsoMax: // ∂L/∂p = (z − p)/distance
		sums := grow(&p.sums, c)
		kernel.ColumnSums(p.gradProducts, sums)
		for k, sum := range sums {
			for j := k * d; j < (k+1)*d; j++ {
				grad[j] -= sum * p.prototypes[j]
			}
		}
	}
}

// backwardProjection computes the gradient of the projection.
func (h *head) backwardProjection(b int) {
	p, d := &h.pass, h.d
	h.backwardEmbeddings(b)
	x, gradZ := kernel.RowMajor(p.x, b, d), kernel.RowMajor(p.gradZ, b, d)
	if len(h.full.value) > 0 {
		p.multiply(h.full.grad, d, d, x.T(), gradZ, false)
		return
	}
	p.multiply(h.v.grad, h.rank, d, kernel.RowMajor(p.low, b, h.rank).T(), gradZ, false)
	gradLow := grow(&p.gradLow, b*h.rank)
	p.multiply(gradLow, b, h.rank, gradZ, kernel.RowMajor(h.v.value, h.rank, d).T(), false)
	p.multiply(h.u.grad, d, h.rank, x.T(), kernel.RowMajor(gradLow, b, h.rank), false)
}

// backwardEmbeddings sets gradZ to the gradient by z.
func (h *head) backwardEmbeddings(b int) {
	p, c, d := &h.pass, h.c, h.d
	gradZ := grow(&p.gradZ, b*d)
	p.multiply(gradZ, b, d, kernel.RowMajor(p.gradProducts, b, c), kernel.RowMajor(p.prototypes, c, d), false)
	switch {
	case h.directional():
		kernel.NormGradients(&p.kernel, gradZ, p.z, d, p.norms)
	case h.loss == model.IsoMax: // ∂L/∂z = (p − z)/distance
		for i := range b {
			sum := float32(0)
			for _, v := range p.gradProducts[i*c : (i+1)*c] {
				sum += v
			}
			for j := i * d; j < (i+1)*d; j++ {
				gradZ[j] -= sum * p.z[j]
			}
		}
	}
}

func dot(a, b []float32) float32 {
	b = b[:len(a)]
	var s0, s1, s2, s3 float32
	i := 0
	for ; i+4 <= len(a); i += 4 {
		s0 += a[i] * b[i]
		s1 += a[i+1] * b[i+1]
		s2 += a[i+2] * b[i+2]
		s3 += a[i+3] * b[i+3]
	}
	for ; i < len(a); i++ {
		s0 += a[i] * b[i]
	}
	return s0 + s1 + s2 + s3
}
