package kernel

import (
	"math"
	"slices"
)

// A Workspace is the scratch of one caller. Its zero value is ready; it grows
// once, and must not be used by two calls at a time.
type Workspace struct {
	inv, state, partial, row, squared []float32
	near                              []int32
	logits                            logitScratch
	multiply                          multiplyScratch
	training                          trainingScratch
	bank                              bankScratch
	projection                        projectionScratch
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
	block  int           // the most bytes of a block of rows
	panels []panelKernel // the widest first
	// norms sets inv to 1/‖row‖ and empties the states. It returns how many
	// rows have a sum of squares outside [leastSum, mostSum].
	norms func(x *float32, n, d int, inv, state, next *float32) (bad int)
	// finish sets dist and class from the states, and returns the number of
	// rows, listed in near, whose runner-up is within tie of the winner or whose
	// squared distance is under tinySquare.
	finish func(x *float32, n, d int, inv, state, unit *float32, last int, tie float32, dist *float32, class, near *int32, next *float32) int
	// distances sets out to ‖x·inv − p‖² for c rows p of unit.
	distances func(x *float32, d int, inv float32, unit *float32, c int, out *float32)
}

// A panelKernel takes the dot products of rows with a panel of width prototypes.
// The first of a nearestKernel takes any number of prototypes, another one the
// last upTo.
type panelKernel struct {
	width, upTo int
	line        int          // values in a line of biases, or of products of a row
	group       int          // dimensions of a prototype that lie side by side in a panel
	part        int          // dimensions of a part: a multiple of group
	tiles       []tileKernel // the tallest first; the last has one row
}

// wide is a panelKernel whose lanes are prototypes.
func wide(width int, tiles ...tileKernel) panelKernel {
	return panelKernel{width: width, upTo: width, line: width, group: 1, part: partValues, tiles: tiles}
}

// narrow is one whose lanes are dimensions, so that none is idle where a few
// prototypes are left. A part of 512 values adds fewer roundings than
// partValues, since each lane has its own sum.
func narrow(width, upTo, lanes int, tiles ...tileKernel) panelKernel {
	return panelKernel{width: width, upTo: upTo, line: lanes, group: lanes, part: 512, tiles: tiles}
}

// A tileKernel takes the products of tiles times rows rows, by count of their d
// values, with a panel. Long rows go in parts: the products of a part are summed
// from bias or zero, and kept in partial; those of the last go into the states of
// the rows, as classes class and up.
//
// All kernels prefetch what comes next: norms and finish a line of 64 bytes for
// each 64 values of a row, the tiles step bytes for every four values of their
// rows, so that memory works while they do.
type tileKernel struct {
	rows int
	f    func(x *float32, tiles, d, count int, bias, panel, partial *float32, part int, state *float32, class int, next *float32, step int)
}

// Bits of part of a tileKernel.
const (
	partFirst = 1 // there is nothing in partial yet
	partLast  = 2 // the products are whole
)

// partValues is how many values of a row a part has: a part of a panel, and of
// a tile of rows, stay in a first-level cache of 32 KB. It also bounds how many
// roundings there are in a row, and so the gap beyond which an order is certain.
const partValues = 192

// The bounds of a sum of squares in float32 that is as exact as its summands:
// none of those that matter underflowed, and none overflowed.
const (
	leastSum = 0x1p-60
	mostSum  = 0x1p100
)

// tinySquare is the squared distance under which float32 is not exact enough.
const tinySquare = 0x1p-14

// A block of rows, with the next, stays in the second-level cache. It need not be
// large where there are few panels to read for it, nor may it have few rows where
// there are many.
const (
	blockPerPanel = 24 << 10
	fewestRows    = 48
)

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
	row := 4 * p.d
	bytes := min(max(p.kernel.block, fewestRows*row), blockPerPanel*len(p.panels))
	return max(bytes/row/24*24, 24)
}

func (w *Workspace) grow(n int, p *Prototypes) {
	grow := func(s *[]float32, n int) {
		if len(*s) < n {
			*s = make([]float32, n)
		}
	}
	if len(w.near) < n {
		w.near = make([]int32, n)
	}
	grow(&w.inv, n)
	grow(&w.state, n*3*p.kernel.lanes)
	grow(&w.partial, n*p.kernel.panels[0].line)
	grow(&w.row, p.d)
	grow(&w.squared, p.c)
}

// nearest works on one block of n > 0 rows; what follows it in x is prefetched.
func (p *Prototypes) nearest(w *Workspace, x []float32, n int, dist []float32, class []int32) {
	k, d := p.kernel, p.d
	// What comes next in x is fetched in four shares: by norms, two by the first
	// panels, by finish.
	share := min(n*d, len(x)-n*d) / 4
	fetching := min(len(p.panels), 4)
	next := func(offset int) *float32 { return &x[min(n*d+offset, len(x)-1)] }
	bad := k.norms(&x[0], n, d, &w.inv[0], &w.state[0], next(0))
	for i := range p.panels {
		panel := &p.panels[i]
		for k0 := 0; k0 < d; k0 += panel.kernel.part {
			count, part, bias := min(panel.kernel.part, d-k0), 0, &p.zero[0]
			if k0 == 0 {
				part, bias = partFirst, &panel.bias[0]
			}
			if k0+count == d {
				part |= partLast
			}
			row, width, line := 0, panel.kernel.width, panel.kernel.line
			for _, tile := range panel.kernel.tiles {
				tiles := (n - row) / tile.rows
				if tiles == 0 {
					continue
				}
				ahead, step := p.after(i, k0+count), 16*width/tiles // a part of a panel
				if i < fetching {                                   // of rows
					// A tile moves on by step bytes for four values of its rows.
					done := (n*k0 + row*count) / (2 * fetching)
					ahead, step = next(share+2*share*i/fetching+done), 8*tile.rows/fetching
				}
				tile.f(&x[row*d+k0], tiles, d, count, bias, &panel.w[k0*width], &w.partial[row*line], part, &w.state[row*3*k.lanes], panel.first, ahead, step)
				row += tiles * tile.rows
			}
		}
	}
	near := k.finish(&x[0], n, d, &w.inv[0], &w.state[0], &p.unit[0], p.c-1, p.tie, &dist[0], &class[0], &w.near[0], next(3*share))
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

// after returns the address of dimension k0 of a panel, or of the next panel.
func (p *Prototypes) after(panel, k0 int) *float32 {
	if k0 < p.d {
		return &p.panels[panel].w[k0*p.panels[panel].kernel.width]
	}
	return &p.panels[(panel+1)%len(p.panels)].w[0]
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
