package kernel

// panelWidth is how many columns of a right operand lie side by side in a
// panel: a panel holds the values of the inner dimension one after the other,
// panelWidth columns each.
const panelWidth = 16

// tileRows is how many rows the kernels on packed panels take at a time: a
// multiple of the tile height of every implementation.
const tileRows = 24

// loops are the inner loops of one implementation. Each of them equals its
// twin in Go to rounding, products to the last bit, and reads and writes nothing else.
type loops struct {
	rows int // of the left operand in a tile
	// tile multiplies by one panel, wideTile by two, or is nil.
	tile     func(k int, a []float32, rowStride, stepA int, b []float32, stepB int, c []float32, strideC int, add bool)
	wideTile func(k int, a []float32, rowStride, stepA int, b []float32, stepB, nextPanel int, c []float32, strideC int, add bool)
	// transpose sets to[panelWidth·j+i] to from[i·stride+j] for i under panelWidth
	// and j under k, a multiple of 8.
	transpose  func(from []float32, stride, k int, to []float32)
	squares    func(x []float32, d int, out []float32)
	peaks      func(v []float32, n, stride int, tie, limit []float32, out []peak)
	roots      func(v []float32, n, stride int, a, b []float32, s float32)
	sums       func(v []float32, n, stride int, out []sums)
	gaps       func(x []float32, d int, inv []float32, p []float32, class []int32, out []float32)
	exps       func(v []float32, n int, scale float32, out []expSum)
	scaleRows  func(v []float32, n int, by []float32)
	tangents   func(g, x []float32, d int, inv []float32)
	adamW      func(value, grad, m, v []float32, rate *AdamWRate)
	divideRows func(g, d []float32, n int, factor float32, out []float32)
	float16    func(to []float32, from []byte)
	bfloat16   func(to []float32, from []byte)
	products   func(x []float64, slope float64) (up, down float64) // of a multiple of lanesOfProducts above 0
}

// A peak is the largest value of a row and who is near it.
type peak struct {
	max   float32
	near  int32 // how many are at least min(max − tie, limit)
	first int32 // the first of them
}

// sums are over the values l of a row, m the largest of them.
type sums struct {
	max    float32
	equal  int32   // how many equal m
	total  float32 // Σ l
	exps   float32 // Σ exp(l−m) over l < m
	moment float32 // Σ (l−m)·exp(l−m)
}

// packPanels packs the transpose of the n×k matrix p, row-major, into panels;
// the columns that fill the last one are zero.
func packPanels(p []float32, n, k int) []float32 {
	packed := make([]float32, (n+panelWidth-1)/panelWidth*panelWidth*k)
	for i := range n {
		panel := packed[i/panelWidth*panelWidth*k+i%panelWidth:]
		for j, v := range p[i*k : (i+1)*k] {
			panel[j*panelWidth] = v
		}
	}
	return packed
}

// roundUp returns n rounded up to whole panels.
func roundUp(n int) int { return (n + panelWidth - 1) / panelWidth * panelWidth }

// grow returns s with at least n values, keeping none.
func grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// multiplyPanels sets c, or adds to it, the product of the n ≤ tileRows rows of
// x, n×k row-major, with packed panels of so many columns, a multiple of
// panelWidth. c has tileRows rows, stride apart, of which those from n on become
// garbage; so does padded, of tileRows·k values.
func multiplyPanels(l *loops, padded, x []float32, n, k int, panels []float32, columns int, c []float32, stride int, add bool) {
	if n%l.rows != 0 {
		// The last tile reads whole rows: it gets them from a copy.
		copy(padded, x[:n*k])
		x = padded
	}
	j := 0
	for ; l.wideTile != nil && j+2*panelWidth <= columns; j += 2 * panelWidth {
		for i := 0; i < n; i += l.rows {
			l.wideTile(k, x[i*k:], k, 1, panels[j*k:], panelWidth, panelWidth*k, c[i*stride+j:], stride, add)
		}
	}
	for ; j < columns; j += panelWidth {
		for i := 0; i < n; i += l.rows {
			l.tile(k, x[i*k:], k, 1, panels[j*k:], panelWidth, c[i*stride+j:], stride, add)
		}
	}
}
