package trainer

import (
	"math"

	"github.com/oodmon/oodmon/internal/kernel"
)

// minDistance keeps the gradient of a distance finite where it vanishes.
const minDistance = 1e-6

// A head is the IsoMax+ head during training: C prototypes of dimension D, and
// the distance scale.
type head struct {
	c, d       int
	prototypes []float32 // [C, D]
	scale      float32

	// Gradients of the last call of step.
	gradPrototypes []float32 // [C, D]
	gradScale      float32

	unit  []float32 // [C, D], unit norm
	norms []float64 // [C]
	cos   []float32 // [B, C], then the gradient by it
	dist  []float32 // [B, C]
}

func newHead(prototypes []float32, c, d int) *head {
	return &head{c: c, d: d, prototypes: prototypes, scale: 1,
		gradPrototypes: make([]float32, c*d), unit: make([]float32, c*d), norms: make([]float64, c)}
}

// step computes the mean loss of a batch of unit embeddings x, [B, D], with the
// classes y, and its gradients by the prototypes and the scale:
//
//	L_c  = −|s|·‖x^ − p^_c‖
//	loss = −log softmax(E·L)[y], the mean over the batch
//
// after Macêdo and Ludermir, "Enhanced Isotropy Maximization Loss", equations
// 5 to 7; E is the entropic scale.
func (h *head) step(x []float32, y []int32, entropicScale float64) (loss float64) {
	b, c, d := len(y), h.c, h.d
	if len(h.cos) < b*c {
		h.cos, h.dist = make([]float32, b*c), make([]float32, b*c)
	}
	cos, dist := h.cos[:b*c], h.dist[:b*c]
	for k := range c {
		row := h.prototypes[k*d : (k+1)*d]
		h.norms[k] = math.Max(norm(row), 1e-12)
		for j, v := range row {
			h.unit[k*d+j] = float32(float64(v) / h.norms[k])
		}
	}
	kernel.Gemm(false, true, b, c, d, 1, x, d, h.unit, d, 0, cos, c)
	s := math.Abs(float64(h.scale))
	gradS := 0.
	for i := range b {
		row, ds := cos[i*c:(i+1)*c], dist[i*c:(i+1)*c]
		least := float32(math.Inf(1))
		for k, v := range row {
			ds[k] = float32(math.Sqrt(math.Max(0, 2-2*float64(v))))
			least = min(least, ds[k])
		}
		sum := 0.
		for k, v := range ds {
			e := math.Exp(-entropicScale * s * float64(v-least))
			row[k] = float32(e)
			sum += e
		}
		loss -= math.Log(math.Max(float64(row[y[i]])/sum, math.SmallestNonzeroFloat64))
		for k := range row {
			g := float64(row[k]) / sum // ∂loss/∂(E·L_k) = P_k − [k = y]
			if int32(k) == y[i] {
				g--
			}
			g *= entropicScale / float64(b)
			gradS -= g * float64(ds[k])
			// ∂L/∂cos = |s|/distance
			row[k] = float32(g * s / math.Max(float64(ds[k]), minDistance))
		}
	}
	h.gradScale = float32(gradS)
	if h.scale < 0 {
		h.gradScale = -h.gradScale
	}
	kernel.Gemm(true, false, c, d, b, 1, cos, c, x, d, 0, h.gradPrototypes, d)
	// Through the normalisation: the part along the prototype changes nothing.
	for k := range c {
		g, u := h.gradPrototypes[k*d:(k+1)*d], h.unit[k*d:(k+1)*d]
		along := 0.
		for j := range g {
			along += float64(g[j]) * float64(u[j])
		}
		for j := range g {
			g[j] = float32((float64(g[j]) - along*float64(u[j])) / h.norms[k])
		}
	}
	return loss / float64(b)
}

func norm(x []float32) float64 {
	s := 0.
	for _, v := range x {
		s += float64(v) * float64(v)
	}
	return math.Sqrt(s)
}

// An adamW is the optimiser of Loshchilov and Hutter, "Decoupled Weight Decay
// Regularization", algorithm 2.
type adamW struct {
	m, v   []float64
	steps  int
	decay  float64
	params []float32
}

func newAdamW(params []float32, decay float64) *adamW {
	return &adamW{m: make([]float64, len(params)), v: make([]float64, len(params)), decay: decay, params: params}
}

func (a *adamW) step(grad []float32, rate float64) {
	const beta1, beta2, epsilon = .9, .999, 1e-8
	a.steps++
	c1, c2 := 1-math.Pow(beta1, float64(a.steps)), 1-math.Pow(beta2, float64(a.steps))
	for i, g32 := range grad {
		g := float64(g32)
		a.m[i] = beta1*a.m[i] + (1-beta1)*g
		a.v[i] = beta2*a.v[i] + (1-beta2)*g*g
		p := float64(a.params[i]) * (1 - rate*a.decay)
		a.params[i] = float32(p - rate*(a.m[i]/c1)/(math.Sqrt(a.v[i]/c2)+epsilon))
	}
}
