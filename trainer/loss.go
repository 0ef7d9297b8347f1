package trainer

import (
	"math"

	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/model"
)

// minDistance keeps the gradient of a distance finite where it vanishes.
const minDistance = 1e-6

// A pass is the scratch of taking a batch of B embeddings through a head.
type pass struct {
	x              []float32 // [B, D], as given
	z              []float32 // [B, D]: x, or what the projection makes of it
	projected      []float32 // where z is kept, if it is not x
	low            []float32 // [B, rank], x·U
	norms          []float32 // [B], of the rows of z, unless the loss is softmax
	unit           []float32 // [C, D]: p^ of a directional head, else the prototypes
	unitBuffer     []float32
	prototypeNorms []float32 // [C]
	products       []float32 // [B, C]: cosines, or z·p; then the gradient by them
	logits         []float32 // [B, C]
	distances      []float32 // [B, C], of all but softmax
	gradZ          []float32 // [B, D]
	gradLow        []float32 // [B, rank]
}

func grow(s *[]float32, n int) []float32 {
	if cap(*s) < n {
		*s = make([]float32, n)
	}
	*s = (*s)[:n]
	return *s
}

// forward returns the logits, [B, C], of the embeddings x, [B, D]. They are
// valid until the next call.
//
//	isomax+  L_c = −|s|·‖z^ − p^_c‖
//	dismax   L_c = −(D_c + mean_k D_k) with D_c = |s|·‖z^ − p^_c‖/√2
//	isomax   L_c = −‖z − p_c‖
//	softmax  L_c = w_c·z + b_c
//
// z is x, or what the projection makes of it; ^ divides by the norm. Sources:
// Macêdo and Ludermir, "Enhanced Isotropy Maximization Loss", "Distinction
// Maximization Loss", "Entropic Out-of-Distribution Detection".
func (h *head) forward(x []float32, b int) []float32 {
	p, c, d := &h.pass, h.c, h.d
	p.x, p.z = x, x
	if h.projected() {
		p.z = grow(&p.projected, b*d)
		h.project(x, p.z, grow(&p.low, b*h.rank), b)
	}
	norms, prototypeNorms := grow(&p.norms, b), grow(&p.prototypeNorms, c)
	if h.loss != model.Softmax {
		rowNorms(norms, p.z, d)
		rowNorms(prototypeNorms, h.prototypes.value, d)
	}
	p.unit = h.prototypes.value
	if h.directional() {
		p.unit = grow(&p.unitBuffer, c*d)
		for k, norm := range prototypeNorms {
			row := h.prototypes.value[k*d : (k+1)*d]
			for j, v := range row {
				p.unit[k*d+j] = v / norm
			}
		}
	}
	products, logits, distances := grow(&p.products, b*c), grow(&p.logits, b*c), grow(&p.distances, b*c)
	kernel.Gemm(false, true, b, c, d, 1, p.z, d, p.unit, d, 0, products, c)
	for i := range b {
		row, l, ds := products[i*c:(i+1)*c], logits[i*c:(i+1)*c], distances[i*c:(i+1)*c]
		switch h.loss {
		case model.Softmax:
			for k, v := range row {
				l[k] = v + h.bias.value[k]
			}
		case model.IsoMax:
			// In float64, or the difference of what may be large loses digits.
			square := float64(norms[i]) * float64(norms[i])
			for k, v := range row {
				norm := float64(prototypeNorms[k])
				ds[k] = float32(math.Sqrt(max(square+norm*norm-2*float64(v), 0)))
				l[k] = -ds[k]
			}
		default:
			scale, inv, sum := h.distanceScale(), 1/norms[i], float32(0)
			for k, v := range row {
				ds[k] = sqrt(2 - 2*v*inv)
				l[k] = -scale * ds[k]
				sum += l[k]
			}
			if h.loss == model.DisMax {
				for k := range l {
					l[k] += sum / float32(c)
				}
			}
		}
	}
	return logits
}

// distanceScale is what multiplies the distance of unit vectors.
func (h *head) distanceScale() float32 {
	s := float32(math.Abs(float64(h.scale.value[0])))
	if h.loss == model.DisMax {
		s /= math.Sqrt2
	}
	return s
}

// step computes the loss of a batch and its gradient by every parameter:
//
//	loss = mean_i −w[y_i]·log softmax(E·L_i)[y_i]
//
// x is [B, D], y the classes, w the weight of each class (nil: all 1), E the
// entropic scale.
func (h *head) step(x []float32, y []int32, weights []float32, entropicScale float32) float64 {
	loss := h.lossOf(x, y, weights, entropicScale)
	h.backward(len(y))
	return loss
}

// lossOf computes the loss, and leaves its gradient by the logits in products.
func (h *head) lossOf(x []float32, y []int32, weights []float32, entropicScale float32) float64 {
	b, c := len(y), h.c
	logits, grad := h.forward(x, b), h.pass.products
	loss := 0.
	for i, class := range y {
		l, g := logits[i*c:(i+1)*c], grad[i*c:(i+1)*c]
		largest := l[0]
		for _, v := range l {
			largest = max(largest, v)
		}
		sum := float32(0)
		for k, v := range l {
			g[k] = float32(math.Exp(float64(entropicScale * (v - largest))))
			sum += g[k]
		}
		weight := float32(1)
		if weights != nil {
			weight = weights[class]
		}
		// The logarithm of the probability, as the authors take it; where that
		// underflows, which would be infinite, of what it is made of.
		log := math.Log(float64(g[class] / sum))
		if math.IsInf(log, -1) {
			log = float64(entropicScale*(l[class]-largest)) - math.Log(float64(sum))
		}
		loss -= float64(weight) * log
		share := entropicScale * weight / float32(b)
		for k := range g {
			g[k] *= share / sum
		}
		g[class] -= share
	}
	return loss / float64(b)
}

// backward turns the gradient by the logits into those of the parameters.
func (h *head) backward(b int) {
	h.backwardProducts(b)
	if h.projected() {
		h.backwardProjection(b)
	}
	h.backwardPrototypes(b)
}

// backwardProducts turns the gradient by the logits into that by the products
// (cosines, where the head is directional), the bias and the scale.
func (h *head) backwardProducts(b int) {
	p, c := &h.pass, h.c
	grad := p.products
	gradBias, gradScale := h.bias.grad, 0.
	clear(gradBias)
	for i := range b {
		g, ds := grad[i*c:(i+1)*c], p.distances[i*c:(i+1)*c]
		switch h.loss {
		case model.Softmax:
			for k, v := range g {
				gradBias[k] += v
			}
		case model.IsoMax:
			for k := range g { // ∂L/∂(z·p) = 1/distance
				g[k] /= max(ds[k], minDistance)
			}
		default:
			// The mean that dismax adds is the same for all classes, and
			// softmax does not see it: the gradient is that of isomax+.
			scale, along := h.distanceScale(), float32(0)
			for k, v := range g { // ∂L/∂cos = |s|/distance
				along += v * ds[k]
				g[k] = v * scale / max(ds[k], minDistance)
			}
			gradScale -= float64(along)
		}
	}
	if h.scaled() {
		h.scale.grad[0] = float32(gradScale * float64(h.distanceScale()) / float64(h.scale.value[0]))
	}
}

// backwardPrototypes computes the gradient of the prototypes. It is the last:
// it divides that by the products.
func (h *head) backwardPrototypes(b int) {
	p, c, d := &h.pass, h.c, h.d
	grad := p.products
	if h.directional() { // the products are with z, the cosines with z^
		for i, norm := range p.norms {
			for k := range c {
				grad[i*c+k] /= norm
			}
		}
	}
	gradP := h.prototypes.grad
	kernel.Gemm(true, false, c, d, b, 1, grad, c, p.z, d, 0, gradP, d)
	switch {
	case h.directional(): // through the normalisation: what is along p^ changes nothing
		for k, norm := range p.prototypeNorms {
			g, u := gradP[k*d:(k+1)*d], p.unit[k*d:(k+1)*d]
			along := dot(g, u)
			for j := range g {
				g[j] = (g[j] - along*u[j]) / norm
			}
		}
	case h.loss == model.IsoMax: // ∂L/∂p = (z − p)/distance
		for k := range c {
			sum := float32(0)
			for i := range b {
				sum += grad[i*c+k]
			}
			for j := range d {
				gradP[k*d+j] -= sum * h.prototypes.value[k*d+j]
			}
		}
	}
}

// backwardProjection computes the gradient of the projection.
func (h *head) backwardProjection(b int) {
	p, d := &h.pass, h.d
	h.backwardEmbeddings(b)
	if len(h.full.value) > 0 {
		kernel.Gemm(true, false, d, d, b, 1, p.x, d, p.gradZ, d, 0, h.full.grad, d)
		return
	}
	kernel.Gemm(true, false, h.rank, d, b, 1, p.low, h.rank, p.gradZ, d, 0, h.v.grad, d)
	gradLow := grow(&p.gradLow, b*h.rank)
	kernel.Gemm(false, true, b, h.rank, d, 1, p.gradZ, d, h.v.value, d, 0, gradLow, h.rank)
	kernel.Gemm(true, false, d, h.rank, b, 1, p.x, d, gradLow, h.rank, 0, h.u.grad, h.rank)
}

// backwardEmbeddings sets gradZ to the gradient by z, from that by the products.
func (h *head) backwardEmbeddings(b int) {
	p, c, d := &h.pass, h.c, h.d
	grad, gradZ := p.products, grow(&p.gradZ, b*d)
	kernel.Gemm(false, false, b, d, c, 1, grad, c, p.unit, d, 0, gradZ, d)
	for i := range b {
		g, z := gradZ[i*d:(i+1)*d], p.z[i*d:(i+1)*d]
		switch {
		case h.directional():
			inv := 1 / p.norms[i]
			along := dot(g, z) * inv
			for j := range g {
				g[j] = (g[j] - along*z[j]*inv) * inv
			}
		case h.loss == model.IsoMax: // ∂L/∂z = (p − z)/distance
			sum := float32(0)
			for _, v := range grad[i*c : (i+1)*c] {
				sum += v
			}
			for j := range g {
				g[j] -= sum * z[j]
			}
		}
	}
}

// rowNorms sets norms to those of the rows of x, at least what torch divides by.
func rowNorms(norms, x []float32, d int) {
	for i := range norms {
		norms[i] = float32(max(norm(x[i*d:(i+1)*d]), 1e-12))
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

// sqrt is the root of what rounding may have left below zero.
func sqrt(v float32) float32 { return float32(math.Sqrt(float64(max(v, 0)))) }
