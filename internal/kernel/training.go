package kernel

import "math"

// MinDistance is the least distance that a gradient is divided by: it keeps the
// gradient of a distance finite where the distance vanishes.
const MinDistance = 1e-6

// A trainingScratch is the scratch of the losses, a value a row.
type trainingScratch struct {
	a, b   []float32
	target []float32
	exps   []expSum
}

// An expSum is over the values of a row.
type expSum struct {
	max, sum float32
}

// UnitDistances replaces the inner products of rows x_i and unit vectors p_k, in
// rows of c, by the distances of the directions, √max(0, 2 − 2·x_i·p_k/‖x_i‖),
// where norms holds the ‖x_i‖.
func UnitDistances(w *Workspace, dots []float32, c int, norms []float32) {
	implementation, _ := Active()
	unitDistances(implementation.loops, &w.training, dots, c, norms)
}

func unitDistances(l *loops, s *trainingScratch, dots []float32, c int, norms []float32) {
	rows := rowsOf(dots, c)
	if len(norms) != rows {
		panic("kernel: UnitDistances: dots and norms do not fit each other")
	}
	s.a, s.b = grow(s.a, rows), grow(s.b, rows)
	for i, norm := range norms {
		s.a[i], s.b[i] = 2, -2/norm
	}
	l.roots(dots, c, c, s.a[:rows], s.b[:rows], 1)
}

// Norms sets out[i] to ‖x_i‖ for the rows of x, of d values each; NaN or +Inf
// where a value is.
func Norms(x []float32, d int, out []float32) {
	if len(x) != len(out)*d {
		panic("kernel: Norms: x and out do not fit each other")
	}
	implementation, _ := Active()
	rowNorms(implementation.loops, x, d, out)
}

func rowNorms(l *loops, x []float32, d int, out []float32) {
	l.squares(x, d, out)
	for i, v := range out {
		if v > 1e-24 && v < 1e37 {
			out[i] = float32(math.Sqrt(float64(v)))
		} else { // the squares may have left float32
			out[i] = float32(math.Sqrt(sumOfSquares(x[i*d : (i+1)*d])))
		}
	}
}

// ScaleRows multiplies row i of x, of d values, by by[i].
func ScaleRows(x []float32, d int, by []float32) {
	if len(x) != len(by)*d {
		panic("kernel: ScaleRows: x and by do not fit each other")
	}
	implementation, _ := Active()
	implementation.loops.scaleRows(x, d, by)
}

// NormGradients turns the gradient g by the directions x_i/‖x_i‖ into the one by
// the rows x_i, of d values each, where norms holds the ‖x_i‖:
//
//	g_i ← (g_i − (g_i·x_i)·x_i/‖x_i‖²)/‖x_i‖
func NormGradients(w *Workspace, g, x []float32, d int, norms []float32) {
	implementation, _ := Active()
	normGradients(implementation.loops, &w.training, g, x, d, norms)
}

func normGradients(l *loops, s *trainingScratch, g, x []float32, d int, norms []float32) {
	if len(g) != len(x) || len(x) != len(norms)*d {
		panic("kernel: NormGradients: g, x and norms do not fit each other")
	}
	s.a = grow(s.a, len(norms))
	for i, norm := range norms {
		s.a[i] = 1 / norm
	}
	l.tangents(g, x, d, s.a[:len(norms)])
}

// An AdamWRate holds the factors of one step of AdamW.
type AdamWRate struct {
	newM, newV, keep, move, epsilon float32
}

// NewAdamWRate returns the factors of the step-th step, counted from 1, of
// Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2,
// with β1 = 0.9, β2 = 0.999 and ε = 1e-8.
func NewAdamWRate(rate, decay float64, step int) *AdamWRate {
	const beta1, beta2, epsilon = .9, .999, 1e-8
	// m/c1 and √(v/c2) undo that both start at zero. c1 and c2 are taken out of
	// the loop.
	c1, c2 := 1-math.Pow(beta1, float64(step)), math.Sqrt(1-math.Pow(beta2, float64(step)))
	return &AdamWRate{newM: 1 - beta1, newV: 1 - beta2, keep: float32(1 - rate*decay), move: float32(rate * c2 / c1), epsilon: float32(epsilon * c2)}
}

// AdamW moves values against their gradient, with the means m of the gradient
// and v of its square, which start at zero.
func AdamW(value, grad, m, v []float32, rate *AdamWRate) {
	if len(value) != len(grad) || len(m) != len(grad) || len(v) != len(grad) {
		panic("kernel: AdamW: value, grad, m and v do not fit each other")
	}
	implementation, _ := Active()
	implementation.loops.adamW(value, grad, m, v, rate)
}

// Distances replaces the inner products of rows x_i and p_k, in rows of
// len(p2), by their distances √max(0, ‖x_i‖² − 2·x_i·p_k + ‖p_k‖²), where x2
// and p2 hold the squared norms.
func Distances(w *Workspace, dots, x2, p2 []float32) {
	implementation, _ := Active()
	l := implementation.loops
	c := len(p2)
	if rowsOf(dots, c) != len(x2) {
		panic("kernel: Distances: dots, x2 and p2 do not fit each other")
	}
	s := &w.training
	s.b = grow(s.b, len(x2))
	for i := range x2 {
		row := dots[i*c:][:c]
		for k, v := range p2 {
			row[k] -= v / 2
		}
		s.b[i] = -2
	}
	l.roots(dots, c, c, x2, s.b[:len(x2)], 1)
}

// SoftmaxLoss computes the cross-entropy of rows of c values v_i, with classes y:
//
//	z_i  = scale·v_i
//	loss = Σ_i weight_i·(log Σ_k exp z_ik − z_i[y_i])
//
// and replaces v by the gradient by z, weight_i·(softmax(z_i)_k − [k = y_i]).
// weight holds a factor a row, such as 1/n for the mean; for the distances of
// isomax heads scale is minus the entropic scale times |distance scale|.
//
// Where a row holds a NaN or +Inf, or −Inf alone, the loss and the gradient of
// that row are NaN. exp is within 3e-7 relative of its value, for an argument
// rounded to float32; below e^−87 it is 0, or next to it. The loss is taken from z, not from a rounded probability: it is finite
// where z is.
func SoftmaxLoss(w *Workspace, v []float32, c int, y []int32, scale float64, weight []float32) (loss float64) {
	implementation, _ := Active()
	return softmaxLoss(implementation.loops, &w.training, v, c, y, scale, weight)
}

func softmaxLoss(l *loops, s *trainingScratch, v []float32, c int, y []int32, scale float64, weight []float32) (loss float64) {
	rows := rowsOf(v, c)
	if len(y) != rows || len(weight) != rows {
		panic("kernel: SoftmaxLoss: v, y and weight do not fit each other")
	}
	s.exps, s.a, s.target = grow(s.exps, rows), grow(s.a, rows), grow(s.target, rows)
	f := float32(scale)
	for i, k := range y {
		s.target[i] = f * v[i*c:][:c][k]
	}
	l.exps(v, c, f, s.exps[:rows])
	for i, e := range s.exps[:rows] {
		loss += float64(weight[i]) * (float64(e.max-s.target[i]) + math.Log(float64(e.sum)))
		s.a[i] = weight[i] / e.sum
	}
	l.scaleRows(v, c, s.a[:rows])
	for i, k := range y {
		v[i*c+int(k)] -= weight[i]
	}
	return loss
}

// DistanceGradients turns the gradient g by z = −factor·distance, in rows of c,
// into the one by the inner products (cosines, for unit vectors) that the
// distances came from:
//
//	g_k ← factor·g_k/max(distance_k, MinDistance)
//
// It returns Σ g_k·distance_k of before: −E times it is the gradient by
// |distance scale|, where factor is that times E.
func DistanceGradients(w *Workspace, g, distances []float32, c int, factor float64) float64 {
	implementation, _ := Active()
	return distanceGradients(implementation.loops, &w.training, g, distances, c, factor)
}

func distanceGradients(l *loops, s *trainingScratch, g, distances []float32, c int, factor float64) (sum float64) {
	rows := rowsOf(g, c)
	if len(distances) != len(g) {
		panic("kernel: DistanceGradients: g and distances do not fit each other")
	}
	s.a = grow(s.a, rows)
	l.divideRows(g, distances, c, float32(factor), s.a[:rows])
	for _, v := range s.a[:rows] {
		sum += float64(v)
	}
	return sum
}

// ColumnSums sets out to the sums of the columns of v, in rows of len(out).
func ColumnSums(v, out []float32) {
	rows := rowsOf(v, len(out))
	clear(out)
	for i := range rows {
		for k, x := range v[i*len(out):][:len(out)] {
			out[k] += x
		}
	}
}

func rowsOf(v []float32, c int) int {
	if c < 1 || len(v)%c != 0 {
		panic("kernel: the values are not whole rows")
	}
	return len(v) / c
}
