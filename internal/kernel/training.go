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

// UnitDistances replaces the cosines of unit vectors, in rows of c, by their
// distances √max(0, 2 − 2·cos).
func UnitDistances(w *Workspace, cos []float32, c int) {
	implementation, _ := Active()
	unitDistances(implementation.loops, &w.training, cos, c)
}

func unitDistances(l *loops, s *trainingScratch, cos []float32, c int) {
	rows := rowsOf(cos, c)
	s.a, s.b = grow(s.a, rows), grow(s.b, rows)
	for i := range rows {
		s.a[i], s.b[i] = 2, -2
	}
	l.distances(cos, c, c, s.a[:rows], s.b[:rows], 1)
}

// SquaredNorms sets out[i] to ‖x_i‖² for the rows of x, of d values each.
func SquaredNorms(x []float32, d int, out []float32) {
	if len(x) != len(out)*d {
		panic("kernel: SquaredNorms: x and out do not fit each other")
	}
	implementation, _ := Active()
	implementation.loops.squares(x, d, out)
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
	l.distances(dots, c, c, x2, s.b[:len(x2)], 1)
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
