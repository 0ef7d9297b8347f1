package kernel

import (
	"fmt"
	"math"
	"slices"
)

// A Bank holds M embeddings of dimension D, each divided by its norm, to find
// the nearest of them. It is immutable and may be shared.
type Bank struct {
	m, d   int
	loops  *loops
	panels []float32
}

// NewBank normalises the m×d embeddings x, row-major. It keeps M·D values of its
// own. A row that is not finite, or whose norm is under MinNorm, is an error.
func NewBank(x []float32, m, d int) (*Bank, error) {
	implementation, err := Active()
	if err != nil {
		return nil, err
	}
	return newBank(implementation.loops, x, m, d)
}

func newBank(loops *loops, x []float32, m, d int) (*Bank, error) {
	if m < 1 || d < 1 || len(x) != m*d {
		return nil, fmt.Errorf("bank: %d values are not %d rows of %d", len(x), m, d)
	}
	b := &Bank{m: m, d: d, loops: loops, panels: make([]float32, roundUp(m)*d)}
	for i := range m {
		row := x[i*d : (i+1)*d]
		norm := math.Sqrt(sumOfSquares(row))
		if !hasDirection(norm) {
			return nil, fmt.Errorf("embedding %d of the bank has norm %g: it must be finite and at least %g", i, norm, MinNorm)
		}
		column := b.column(i)
		for j, v := range row {
			column[j*panelWidth] = float32(float64(v) / norm)
		}
	}
	return b, nil
}

// column returns embedding i: its values lie panelWidth apart.
func (b *Bank) column(i int) []float32 {
	return b.panels[i/panelWidth*panelWidth*b.d+i%panelWidth:]
}

// Len returns M.
func (b *Bank) Len() int { return b.m }

// Dim returns D.
func (b *Bank) Dim() int { return b.d }

const (
	bankRows    = 10 * tileRows // share one pass over the bank
	bankColumns = 256           // are multiplied at a time
	// spare is how many embeddings behind the k-th are compared in float64
	// where they are within rounding of it.
	spare = 8
)

// A neighbour is an embedding of the bank, and its product with a row.
type neighbour struct {
	dot   float32
	index int32
}

// A bankScratch is the scratch of KthNearest.
type bankScratch struct {
	unit           []float32 // [bankRows, D]
	values, padded []float32
	norms          []float64
	tie, limit     []float32
	peaks          []peak
	lists          []neighbour // [bankRows, k+spare], the largest product first
	lengths        []int
	exact          []float64
}

// KthNearest finds, for each row of x, n×D row-major, where n is len(dist), how
// far the k-th nearest embedding of the bank is, and which the nearest is:
//
//	dist[i]    = the k-th smallest of ‖x_i^ − b_m^‖ over m    in [0, 2]
//	nearest[i] = the m of the smallest; of equals the lowest
//
// Where the bank has fewer than k embeddings, the farthest counts. No n×M matrix
// is made. A row without direction has a NaN distance, and −1. The order of
// embeddings within rounding is that of float64, unless more than 8 of them are
// within rounding of the k-th; the squared distance is then wrong by at most
// 16·u·√D, u = 2⁻²⁴.
func (b *Bank) KthNearest(w *Workspace, k int, x []float32, dist []float32, nearest []int32) {
	n := len(dist)
	if k < 1 || len(x) != n*b.d || len(nearest) != n {
		panic("kernel: Bank.KthNearest: k, x, dist and nearest do not fit each other")
	}
	k = min(k, b.m)
	s := &w.bank
	s.values, s.padded = grow(s.values, tileRows*bankColumns), grow(s.padded, tileRows*b.d)
	s.unit = grow(s.unit, bankRows*b.d)
	s.lists, s.exact = grow(s.lists, bankRows*(k+spare)), grow(s.exact, k+spare)
	if s.norms == nil {
		s.norms, s.lengths = make([]float64, bankRows), make([]int, bankRows)
		s.tie, s.limit, s.peaks = make([]float32, tileRows), make([]float32, tileRows), make([]peak, tileRows)
	}
	for first := 0; first < n; first += bankRows {
		rows := min(bankRows, n-first)
		b.search(s, k, x[first*b.d:], rows)
		for i := range rows {
			dist[first+i], nearest[first+i] = b.settle(s, k, i, x[(first+i)*b.d:][:b.d])
		}
	}
}

// search fills the lists of at most bankRows rows.
func (b *Bank) search(s *bankScratch, k int, x []float32, rows int) {
	for i := range rows {
		row, unit := x[i*b.d:(i+1)*b.d], s.unit[i*b.d:(i+1)*b.d]
		norm := math.Sqrt(sumOfSquares(row))
		s.norms[i], s.lengths[i] = norm, 0
		if !hasDirection(norm) {
			clear(unit)
			continue
		}
		for j, v := range row {
			unit[j] = float32(float64(v) / norm)
		}
	}
	capacity := k + spare
	for m0 := 0; m0 < b.m; m0 += bankColumns {
		columns := min(bankColumns, b.m-m0)
		panels := b.panels[m0*b.d:][:roundUp(columns)*b.d]
		for first := 0; first < rows; first += tileRows {
			n := min(tileRows, rows-first)
			multiplyPanels(b.loops, s.padded, s.unit[first*b.d:][:n*b.d], n, b.d, panels, roundUp(columns), s.values, bankColumns, false)
			b.loops.peaks(s.values, columns, bankColumns, s.tie[:n], s.limit[:n], s.peaks[:n])
			for i := range n {
				row := first + i
				length, list := s.lengths[row], s.lists[row*capacity:][:capacity]
				if length == capacity && s.peaks[i].max <= list[capacity-1].dot {
					continue
				}
				for j, v := range s.values[i*bankColumns:][:columns] {
					if length == capacity && !(v > list[capacity-1].dot) {
						continue
					}
					length = min(length+1, capacity)
					at := length - 1
					for ; at > 0 && list[at-1].dot < v; at-- {
						list[at] = list[at-1]
					}
					list[at] = neighbour{v, int32(m0 + j)}
				}
				s.lengths[row] = length
			}
		}
	}
}

// settle takes the k-th smallest distance and the nearest embedding of a row
// from its list.
func (b *Bank) settle(s *bankScratch, k, i int, row []float32) (dist float32, nearest int32) {
	norm := s.norms[i]
	if !hasDirection(norm) {
		return float32(math.NaN()), -1
	}
	list := s.lists[i*(k+spare):][:s.lengths[i]]
	tie := float32(8 * 0x1p-24 * math.Sqrt(float64(b.d)))
	least := math.Inf(1)
	for _, candidate := range list {
		if candidate.dot < list[0].dot-tie {
			break
		}
		if v := b.squaredDistance(row, norm, candidate.index); v < least || v == least && candidate.index < nearest {
			least, nearest = v, candidate.index
		}
	}
	// Those above the band of the k-th product are nearer than it for certain.
	closer, exact := 0, s.exact[:0]
	for _, candidate := range list {
		if candidate.dot > list[k-1].dot+tie {
			closer++
		} else if candidate.dot >= list[k-1].dot-tie {
			exact = append(exact, b.squaredDistance(row, norm, candidate.index))
		}
	}
	slices.Sort(exact)
	return float32(math.Sqrt(exact[k-1-closer])), nearest
}

// squaredDistance is ‖row/norm − b_m^‖² in float64.
func (b *Bank) squaredDistance(row []float32, norm float64, m int32) float64 {
	column := b.column(int(m))
	var s float64
	for j, v := range row {
		diff := float64(v)/norm - float64(column[j*panelWidth])
		s += diff * diff
	}
	return s
}

// hasDirection tells whether a row of this norm can be divided by it.
func hasDirection(norm float64) bool { return norm >= MinNorm && !math.IsInf(norm, 0) }
