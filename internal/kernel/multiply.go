package kernel

import "fmt"

// A Matrix is a view of values that someone else owns.
type Matrix struct {
	values           []float32
	rows, cols       int
	rowStep, colStep int // in values
}

// RowMajor returns the rows×cols matrix whose rows lie in values one after the
// other.
func RowMajor(values []float32, rows, cols int) Matrix {
	if rows < 0 || cols < 0 || len(values) != rows*cols {
		panic(fmt.Sprintf("kernel: RowMajor: %d values are not %d rows of %d", len(values), rows, cols))
	}
	return Matrix{values, rows, cols, cols, 1}
}

// T returns the transpose. It moves no value.
func (m Matrix) T() Matrix { return Matrix{m.values, m.cols, m.rows, m.colStep, m.rowStep} }

// Slice returns the rows from first up to, and not with, end. A product of rows
// is, to the byte, those rows of the whole product: callers with several cores
// may give each a share.
func (m Matrix) Slice(first, end int) Matrix {
	if first < 0 || end < first || end > m.rows {
		panic(fmt.Sprintf("kernel: Matrix.Slice: rows %d to %d of %d", first, end, m.rows))
	}
	if first < end && m.cols > 0 {
		m.values = m.values[first*m.rowStep:]
	}
	m.rows = end - first
	return m
}

// The sizes of the blocks of Multiply: innerBlock values of two panels of b, and
// as many of the rows of a tile, stay in the first cache; a packed block of b,
// or the rows that meet it, in the second.
const (
	innerBlock  = 256
	columnBlock = 1024
	rowBlocks   = 768
	// Up to so many rows of a, it does not pay to pack a b that is in row-major
	// order already.
	inPlaceRows = 512
)

// A multiplyScratch is the scratch of Multiply.
type multiplyScratch struct {
	a, b, c []float32
}

// Multiply sets c to the product of a and b, or adds it to c. c is in row-major
// order, and overlaps neither. Each value of c is the sum over the inner
// dimension in order, by float32 fused multiply-adds, in blocks of 256: it does
// not depend on where in c it stands, nor on whether the CPU has AVX2 or
// AVX-512. (The pure-Go implementation rounds each product.) NaN and infinities
// go the way of IEEE 754.
func Multiply(w *Workspace, c, a, b Matrix, add bool) {
	implementation, _ := Active()
	multiply(implementation.loops, &w.multiply, c, a, b, add)
}

func multiply(l *loops, s *multiplyScratch, c, a, b Matrix, add bool) {
	m, n, k := c.rows, c.cols, a.cols
	if a.rows != m || b.cols != n || b.rows != k || c.colStep != 1 && n > 1 {
		panic(fmt.Sprintf("kernel: Multiply: %d×%d = %d×%d · %d×%d", m, n, a.rows, a.cols, b.rows, b.cols))
	}
	if m == 0 || n == 0 {
		return
	}
	if k == 0 && !add {
		for i := range m {
			clear(c.values[i*c.rowStep:][:n])
		}
	}
	s.c = grow(s.c, tileRows*2*panelWidth)
	s.a = grow(s.a, roundUpTo(min(m, rowBlocks), l.rows)*min(k, innerBlock))
	s.b = grow(s.b, roundUp(min(n, columnBlock))*min(k, innerBlock))
	for k0 := 0; k0 < k; k0 += innerBlock {
		kb := min(innerBlock, k-k0)
		for n0 := 0; n0 < n; n0 += columnBlock {
			nb := min(columnBlock, n-n0)
			inPlace := 0 // columns of b
			if b.colStep == 1 && m <= inPlaceRows {
				inPlace = nb / (2 * panelWidth) * 2 * panelWidth
			}
			packBlock(l, s.b, b, k0, kb, n0, nb, inPlace)
			for m0 := 0; m0 < m; m0 += rowBlocks {
				mb := min(rowBlocks, m-m0)
				multiplyBlock(l, s, c, a, b, m0, mb, n0, nb, k0, kb, inPlace, add || k0 > 0)
			}
		}
	}
}

// multiplyBlock adds to a block of c the product of a block of a and one of b, of
// which s.b holds the columns from inPlaceB on.
func multiplyBlock(l *loops, s *multiplyScratch, c, a, b Matrix, m0, mb, n0, nb, k0, kb, inPlaceB int, add bool) {
	// Tiles of rows that lie side by side are read where they are; others, and
	// the last rows if they do not fill a tile, from a copy.
	whole := mb / l.rows * l.rows
	inPlace := whole
	if a.colStep != 1 {
		inPlace = 0
	}
	packRows(s.a, a, m0+inPlace, mb-inPlace, l.rows, k0, kb)
	for j := 0; j < nb; {
		panels := 1
		if l.wideTile != nil && nb-j > panelWidth {
			panels = 2
		}
		width := min(panels*panelWidth, nb-j)
		bv, step, next := s.b[j*kb:], panelWidth, panelWidth*kb
		if j < inPlaceB {
			bv, step, next = b.values[k0*b.rowStep+n0+j:], b.rowStep, panelWidth
		}
		for i := 0; i < mb; i += l.rows {
			rows := min(l.rows, mb-i)
			av, rowStep, colStep := s.a[max(0, i-inPlace)*kb:], 1, l.rows
			if i < inPlace {
				av, rowStep, colStep = a.values[(m0+i)*a.rowStep+k0:], a.rowStep, 1
			}
			cv, stride, addHere := c.values[(m0+i)*c.rowStep+n0+j:], c.rowStep, add
			edge := rows < l.rows || width < panels*panelWidth
			if edge {
				cv, stride, addHere = s.c, 2*panelWidth, false
			}
			if panels == 2 {
				l.wideTile(kb, av, rowStep, colStep, bv, step, next, cv, stride, addHere)
			} else {
				l.tile(kb, av, rowStep, colStep, bv, step, cv, stride, addHere)
			}
			if edge {
				for r := range rows {
					out := c.values[(m0+i+r)*c.rowStep+n0+j:][:width]
					if !add {
						copy(out, s.c[r*stride:])
						continue
					}
					for x, v := range s.c[r*stride:][:width] {
						out[x] += v
					}
				}
			}
		}
		j += panels * panelWidth
	}
}

// packBlock packs a block of b into panels, from column first on; the columns
// that fill the last one are zero.
func packBlock(loops *loops, packed []float32, b Matrix, k0, kb, n0, nb, first int) {
	for j := first; j < nb; j += panelWidth {
		panel, width := packed[j*kb:][:panelWidth*kb], min(panelWidth, nb-j)
		if width < panelWidth {
			clear(panel)
		}
		from := b.values[k0*b.rowStep+(n0+j)*b.colStep:]
		if b.colStep == 1 {
			for l := range kb {
				copy(panel[l*panelWidth:][:width], from[l*b.rowStep:])
			}
			continue
		}
		done := 0
		if width == panelWidth && b.rowStep == 1 {
			done = kb &^ 7
			loops.transpose(from, b.colStep, done, panel)
		}
		for x := range width {
			column := from[x*b.colStep:]
			for l := done; l < kb; l++ {
				panel[l*panelWidth+x] = column[l*b.rowStep]
			}
		}
	}
}

// packRows packs rows of a into tiles: of each the values of one column after
// the other.
func packRows(packed []float32, a Matrix, m0, mb, height, k0, kb int) {
	for i := 0; i < mb; i += height {
		tile, rows := packed[i*kb:][:height*kb], min(height, mb-i)
		if rows < height {
			clear(tile)
		}
		from := a.values[(m0+i)*a.rowStep+k0*a.colStep:]
		if a.rowStep == 1 {
			for l := range kb {
				copy(tile[l*height:][:rows], from[l*a.colStep:])
			}
			continue
		}
		for r := range rows {
			row := from[r*a.rowStep:]
			for l := range kb {
				tile[l*height+r] = row[l*a.colStep]
			}
		}
	}
}

func roundUpTo(n, multiple int) int { return (n + multiple - 1) / multiple * multiple }
