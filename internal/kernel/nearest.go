package kernel

import (
	"math"
	"slices"
)

// A Workspace is the scratch of one caller. Its zero value is ready; it grows
// once, and must not be used by two calls at a time.
type Workspace struct {
	inv, state, row, squared []float32
	near                     []int32
	logits                   logitScratch
	multiply                 multiplyScratch
	training                 trainingScratch
	bank                     bankScratch
}

// A nearestKernel is what Nearest is made of. Rows are in float32, row-major;
// all of it works on n > 0 rows of a block that stays in the cache.
//
// The state of a row is three vectors of lanes: the largest dot product so far
// of the prototypes that fell into the lane, the next largest, and the class of
// the largest. So the row maximum costs a few operations a vector of products,
// and the lanes meet only once, at the end.
type nearestKernel struct {
	lanes  int
	panels []panelKernel // the widest first
	// norms sets inv to 1/‖row‖ and empties the states. It returns how many
	// rows have a sum of squares outside [leastSum, mostSum].
	norms func(x *float32, n, d int, inv, state *float32) (bad int)
	// finish sets dist and class from the states, and returns the number of
	// rows, listed in near, whose runner-up is within tie of the winner or whose
	// squared distance is under tinySquare.
	finish func(x *float32, n, d int, inv, state, unit *float32, last int, tie float32, dist *float32, class, near *int32) int
	// distances sets out to ‖x·inv − p‖² for c rows p of unit.
	distances func(x *float32, d int, inv float32, unit *float32, c int, out *float32)
}

// A panelKernel takes the dot products of rows with a panel of width prototypes.
type panelKernel struct {
	width int
	tiles []tileKernel // the tallest first; the last has one row
}

// A tileKernel takes the products of tiles times rows rows into their states,
// and prefetches step bytes from next on for every four values of a tile's rows.
type tileKernel struct {
	rows int
	f    func(panel, x *float32, tiles, d int, state *float32, class int, next *float32, step int)
}

// The bounds of a sum of squares in float32 that is as exact as its summands:
// none of those that matter underflowed, and none overflowed.
const (
	leastSum = 0x1p-60
	mostSum  = 0x1p100
)

// tinySquare is the squared distance under which float32 is not exact enough.
const tinySquare = 0x1p-14

// blockBytes is how much of x is worked on at a time, with what is worked on
// next: both stay in a second-level cache of 1 MB.
const blockBytes = 384 << 10

// Nearest finds the nearest prototype of each row of x, n×D row-major, where n
// is len(dist). For row i
//
//	dist[i]  = min_c ‖x_i/‖x_i‖ − p_c/‖p_c‖‖    in [0, 2]
//	class[i] = the c that attains it; of equals the lowest
//
// A row that holds a NaN or an infinity, or whose norm is under MinNorm, has
// no direction: its dist is NaN and its class −1.
//
// Every implementation gives the same bits. The search is by the largest cosine
// in float32, whose last bits differ; where the runner-up is within the bound of
// its rounding errors, the row is searched again in float64, by one function.
// The distance to the winner is the norm of the difference, since sqrt(2−2·cos)
// loses all its digits near 0: in float32 without fused operations, by sums in
// one fixed order; in float64 where that is tiny.
func (p *Prototypes) Nearest(w *Workspace, x []float32, dist []float32, class []int32) {
	d, n := p.d, len(dist)
	if len(x) != n*d || len(class) != n {
		panic("kernel: Nearest: x, dist and class do not fit each other")
	}
	block := p.blockRows()
	w.grow(min(block, n), p)
	for first := 0; first < n; first += block {
		rows := min(block, n-first)
		p.nearest(w, x[first*d:], rows, dist[first:], class[first:])
	}
}

// blockRows returns the number of rows of a block.
func (p *Prototypes) blockRows() int {
	return max(blockBytes/(4*p.d+4*3*p.kernel.lanes)/24*24, 24)
}

func (w *Workspace) grow(n int, p *Prototypes) {
	grow := func(s *[]float32, n int) {
		if len(*s) < n {
			*s = make([]float32, n)
		}
	}
	grow(&w.inv, n)
	grow(&w.state, n*3*p.kernel.lanes)
	grow(&w.row, p.d)
	grow(&w.squared, p.c)
	if len(w.near) < n {
		w.near = slices.Grow(w.near[:0], n)[:n]
	}
}

// nearest works on one block of n > 0 rows; what follows it in x is prefetched.
func (p *Prototypes) nearest(w *Workspace, x []float32, n int, dist []float32, class []int32) {
	k, d := p.kernel, p.d
	bad := k.norms(&x[0], n, d, &w.inv[0], &w.state[0])
	for i := range p.panels {
		panel := &p.panels[i]
		next, step := &x[0], 0
		if passes := len(p.panels) - i; passes <= 3 && len(x) > n*d {
			// The last panels bring the next block into the cache, each a share.
			step = 64
			next = &x[n*d]
			if len(p.panels) == 1 {
				step = 192
			}
		}
		row := 0
		for _, tile := range panel.kernel.tiles {
			if tiles := (n - row) / tile.rows; tiles > 0 {
				tile.f(&panel.w[0], &x[row*d], tiles, d, &w.state[row*3*k.lanes], panel.first, next, step)
				row += tiles * tile.rows
			}
		}
	}
	near := k.finish(&x[0], n, d, &w.inv[0], &w.state[0], &p.unit[0], p.c-1, p.tie, &dist[0], &class[0], &w.near[0])
	for _, i := range w.near[:near] {
		if row := x[int(i)*d:][:d]; regular(w.inv[i]) {
			p.rescan(w, row, w.inv[i], row, &dist[i], &class[i])
		}
	}
	if bad == 0 {
		return
	}
	for i, inv := range w.inv[:n] {
		if !regular(inv) {
			p.nearestExtreme(w, x[i*d:][:d], &dist[i], &class[i])
		}
	}
}

// regular tells whether inv is the inverse norm of a row whose sum of squares
// is in [leastSum, mostSum].
func regular(inv float32) bool { return inv >= 0x1p-50 && inv <= 0x1p30 }

// nearestExtreme finds the nearest prototype of a row whose squares leave the
// range of float32, if it has a direction: by its quotient in float64.
func (p *Prototypes) nearestExtreme(w *Workspace, row []float32, dist *float32, class *int32) {
	norm := math.Sqrt(sumOfSquares(row))
	if !(norm >= MinNorm) || math.IsInf(norm, 0) {
		*dist, *class = float32(math.NaN()), -1
		return
	}
	for j, v := range row {
		w.row[j] = float32(float64(v) / norm)
	}
	p.rescan(w, w.row[:p.d], 1, row, dist, class)
}

// rescan finds the nearest prototype of a row in float64, the lowest of equals.
// unit·inv is the row divided by its norm, in float32: it tells which prototypes
// can be the nearest.
func (p *Prototypes) rescan(w *Workspace, unit []float32, inv float32, row []float32, dist *float32, class *int32) {
	p.kernel.distances(&unit[0], p.d, inv, &p.unit[0], p.c, &w.squared[0])
	squared := w.squared[:p.c]
	limit := slices.Min(squared) + p.slack
	norm := math.Sqrt(sumOfSquares(row))
	nearest, least := -1, math.Inf(1)
	for c, s := range squared {
		if s > limit {
			continue
		}
		if s := p.squaredDistance(row, 1/norm, c); s < least {
			nearest, least = c, s
		}
	}
	*dist, *class = sqrt32(squared[nearest]), int32(nearest)
	if squared[nearest] < tinySquare {
		*dist = float32(math.Sqrt(least))
	}
}

// squaredDistance is ‖row·inv − p_c/‖p_c‖‖² in float64. The conversions forbid
// fused operations, which some CPUs have and others lack.
func (p *Prototypes) squaredDistance(row []float32, inv float64, c int) float64 {
	proto, pinv := p.raw[c*p.d:(c+1)*p.d], p.inv[c]
	var s float64
	for j, v := range row {
		diff := float64(float64(v)*inv) - float64(float64(proto[j])*pinv)
		s += float64(diff * diff)
	}
	return s
}

func sqrt32(v float32) float32 { return float32(math.Sqrt(float64(v))) }
