package drift

import (
	"encoding/binary"
	"math"
)

// An urn holds the predictive distribution of the next score over cells: a
// Pólya urn. Each cell is a run of the gaps that the calibration scores leave
// on the line, and weighs as many as it has, for the next score falls into each
// gap with the same probability; then every score adds one to its cell. So the
// p-values are exactly uniform and independent while all records, calibration
// and live, are exchangeable.
//
// An urn that began empty knows the cells only: there the record itself counts,
// as in the conformal p-value of a growing bag.
//
// A p-value asks for what is in all cells above one. That is summed up for each
// cell only now and then. What was added since is counted at three levels: in the
// eighths of all cells above that of the cell, in the parts above its own in this
// eighth, and in the cells above it in this part.
type urn struct {
	cells [urnCells]int64
	total int64
	empty bool // it began so

	above   [urnCells]int64 // what was in the cells above each
	added   int             // since then, at most fresh
	eighths counts          // of those above each eighth
	parts   [8]counts       // above each of the 8 parts of an eighth, in it
	within  [64]counts      // above each of the 4 cells of a part, in it
}

const (
	urnCells = 8 * 8 * 4
	fresh    = math.MaxUint8 // counts hold no more
)

// counts are what is above each of up to eight neighbours.
type counts [8]uint8

// below has a one for each of the neighbours below the n-th.
var below = [8]uint64{0, 0x1, 0x101, 0x10101, 0x1010101, 0x101010101, 0x10101010101, 0x1010101010101}

// add counts a record of the n-th neighbour, above all that are below it, if the
// mask has all bits. None overflows into the next.
func (c *counts) add(n uint, mask uint64) {
	binary.LittleEndian.PutUint64(c[:], binary.LittleEndian.Uint64(c[:])+below[n&7]&mask)
}

// newUrn returns the urn of n calibration scores, or an empty one.
func newUrn(n int, empty bool) *urn {
	u := &urn{empty: empty}
	if !empty {
		for gap := range n + 1 {
			u.cells[cellOf(gap, n)]++
		}
	}
	u.sum()
	return u
}

// cellOf returns the cell of a gap, from 0 to n.
func cellOf(gap, n int) int { return gap * urnCells / (n + 1) }

// cellsOf returns the scores of a calibration at which a cell begins, but for the
// first: a live one is in the cell with as many of them below it.
func cellsOf(r *ranking) *ranking {
	cells := new(ranking)
	for cell, gap := 1, 1; cell < urnCells; cell++ {
		for cellOf(gap, r.n()) < cell { // a gap has many cells where there are few scores
			gap++
		}
		if gap > r.n() {
			break
		}
		cells.scores = append(cells.scores, r.scores[gap-1])
		if r.ties != nil {
			cells.ties = append(cells.ties, r.ties[gap-1])
		}
	}
	return cells
}

// sum sums up what is above each cell, and in all.
func (u *urn) sum() {
	n := int64(0)
	for k := urnCells - 1; k >= 0; k-- {
		u.above[k] = n
		n += u.cells[k]
	}
	u.total = n
	u.added, u.eighths, u.parts, u.within = 0, counts{}, [8]counts{}, [64]counts{}
}

// add adds a record to its cell.
func (u *urn) add(cell uint8) {
	var p [1]float64
	u.draw(p[:], []uint8{cell}, p[:], true)
}

// draw puts into p the right-tail p-values of records in these cells, each of which
// is added to its cell before the next if learn is set; v is uniform on [0, 1).
func (u *urn) draw(p []float64, cells []uint8, v []float64, learn bool) {
	self := 0.
	if u.empty {
		self = 1
	}
	for len(p) > 0 {
		if u.added == fresh {
			u.sum()
		}
		n := min(len(p), fresh-u.added)
		mask, one := uint64(0), 0.
		if learn {
			mask, one = ^mask, 1
			u.added += n
			u.total += int64(n)
		}
		total := float64(u.total) + self - one*float64(n)
		some, out := v[:n], p[:n]
		for i, cell := range cells[:n] {
			cell := uint(cell)
			eighth, part, place := cell>>5&7, cell>>2&7, cell&3
			parts, within, own := &u.parts[eighth], &u.within[cell>>2&63], &u.cells[cell]
			above := u.above[cell] + int64(u.eighths[eighth]) + int64(parts[part]) + int64(within[place])
			out[i] = (float64(above) + float64(some[i]*(float64(*own)+self))) / total
			u.eighths.add(eighth, mask)
			parts.add(part, mask)
			within.add(place, mask)
			*own += int64(mask & 1)
			total += one
		}
		p, cells, v = p[n:], cells[n:], v[n:]
	}
}
