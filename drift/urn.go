package drift

import "github.com/oodmon/oodmon/internal/rank"

// An urn holds the predictive distribution of the next score over cells: a
// Pólya urn. Each cell is a run of the gaps that the calibration scores leave
// on the line, and weighs as many as it has, for the next score falls into each
// gap with the same probability; then every score adds one to its cell. So the
// p-values are exactly uniform and independent while all records, calibration
// and live, are exchangeable.
//
// An urn that began empty knows the cells only: there the record itself counts,
// as in the conformal p-value of a growing bag.
type urn struct {
	cells [urnCells]int64
	// right holds, for each inner node of a binary tree over the cells, what is
	// in the cells of its right half: node 1 is all, 2n and 2n+1 are halves of n.
	right [urnCells]int64
	total int64
	empty bool // it began so
}

const (
	urnLevels = 8
	urnCells  = 1 << urnLevels
)

// newUrn returns the urn of n calibration scores, or an empty one.
func newUrn(n int, empty bool) *urn {
	u := &urn{empty: empty}
	if !empty {
		for gap := range n + 1 {
			u.add(cellOf(gap, n), 1)
		}
	}
	return u
}

// cellOf returns the cell of a gap, from 0 to n.
func cellOf(gap, n int) int { return gap * urnCells / (n + 1) }

// cellsOf returns the ranking in which the gap of a score is its cell: by the
// scores at which a cell begins.
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
	cells.find = rank.New(cells.scores)
	return cells
}

func (u *urn) add(cell int, n int64) {
	u.cells[cell] += n
	u.total += n
	node := urnCells + cell
	for range urnLevels {
		u.right[node>>1] += n & -int64(node&1)
		node >>= 1
	}
}

// draw returns the right-tail p-value of a record in cell, and adds n to the cell;
// v is uniform on [0, 1).
func (u *urn) draw(cell int, v float64, n int64) float64 {
	above := int64(0)
	for node := uint(urnCells + cell); node > 1; node >>= 1 {
		right, bit := &u.right[node>>1&(urnCells-1)], int64(node&1)
		was := *right
		above += was & (bit - 1)
		*right = was + n&-bit
	}
	own, total := u.cells[cell], u.total
	u.cells[cell] += n
	u.total += n
	if u.empty {
		own, total = own+1, total+1
	}
	return (float64(above) + v*float64(own)) / float64(total)
}
