package drift

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
	cells [urnCells]float64
	sums  [urnCells / urnRow]float64 // of each row of cells
	total float64
	empty bool // it began so
}

const (
	urnCells = 256
	urnRow   = 16
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

func (u *urn) add(cell int, weight float64) {
	u.cells[cell] += weight
	u.sums[cell/urnRow] += weight
	u.total += weight
}

// p returns the right-tail p-value of a record in cell; v is uniform on [0, 1).
func (u *urn) p(cell int, v float64) float64 {
	above := 0.
	row := cell / urnRow
	for r := row + 1; r < len(u.sums); r++ {
		above += u.sums[r]
	}
	for k := cell + 1; k < (row+1)*urnRow; k++ {
		above += u.cells[k]
	}
	own, total := u.cells[cell], u.total
	if u.empty {
		own, total = own+1, total+1
	}
	return (above + v*own) / total
}
