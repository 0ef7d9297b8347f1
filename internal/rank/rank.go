// Package rank says how many of many numbers, which stay the same, are below
// another.
package rank

import (
	"math"
	"math/bits"
)

// An Index knows where among ascending values to look: it cuts their range into
// cells of one width, and knows where each begins. Between the extreme
// thousandths, so that outliers don't make the cells wide.
type Index struct {
	values      []float32
	from, scale float32
	last        float32  // the cell
	begin       []uint32 // of each cell, and where the last ends
}

// New returns an index of ascending values, which it keeps.
func New(values []float32) Index {
	n := len(values)
	if n == 0 {
		return Index{begin: make([]uint32, 2)}
	}
	from, to := values[n/1000], values[n-1-n/1000]
	// About three values in a cell where they are densest, if they are normal: a
	// cell of more than few is searched.
	cells := 1 << bits.Len(uint(n/2))
	x := Index{values: values, from: from, last: float32(cells - 1), begin: make([]uint32, cells+1)}
	if scale := float32(cells) / (to - from); scale > 0 && !math.IsInf(float64(scale), 0) { // else one cell is all
		x.scale = scale
	}
	for _, v := range values {
		x.begin[x.cell(v)+1]++
	}
	for k := range cells {
		x.begin[k+1] += x.begin[k]
	}
	return x
}

// cell never descends as v ascends, so that all values of lower cells are
// smaller than v, and all of higher ones larger.
func (x *Index) cell(v float32) int {
	at := (v - x.from) * x.scale
	switch {
	case !(at > 0):
		return 0
	case at >= x.last:
		return len(x.begin) - 2
	}
	return int(at)
}

// few is how many values are searched without a branch, which could not be
// predicted.
const few = 7

// Below returns how many of the values are smaller than v.
func (x *Index) Below(v float32) int {
	k := x.cell(v)
	return x.within(int(x.begin[k]), int(x.begin[k+1]), v)
}

// BelowAll puts into each element of out how many of the values are smaller than
// that of v.
func (x *Index) BelowAll(out []uint32, v []float32) {
	values, begin, out := x.values, x.begin, out[:len(v)]
	for i, v := range v {
		k := x.cell(v)
		lo, hi := int(begin[k]), int(begin[k+1])
		if hi-lo > few || lo+few >= len(values) {
			out[i] = uint32(x.within(lo, hi, v))
		} else {
			out[i] = uint32(lo + among((*[few + 1]float32)(values[lo:]), v))
		}
	}
}

// Fetch reads all of the index, from one end to the other. If it has left the
// caches, this brings it back sooner than the look-ups of many values would, line by
// line in no order. The sum means nothing.
func (x *Index) Fetch() (sum uint32) {
	const line = 64 / 4 // of a cache
	for i := 0; i < len(x.begin); i += line {
		sum += x.begin[i]
	}
	for i := 0; i < len(x.values); i += line {
		sum += math.Float32bits(x.values[i])
	}
	return sum
}

// within returns how many of the values are smaller than v, where those before lo
// are, and those from hi on are not.
func (x *Index) within(lo, hi int, v float32) int {
	for hi-lo > few {
		if half := int(uint(lo+hi) >> 1); x.values[half] < v {
			lo = half + 1
		} else {
			hi = half
		}
	}
	if lo+few >= len(x.values) {
		for lo < hi && x.values[lo] < v {
			lo++
		}
		return lo
	}
	// Those beyond the cell are not smaller.
	return lo + among((*[few + 1]float32)(x.values[lo:]), v)
}

// among returns how many of the first few of w, which ascend, are smaller than v.
func among(w *[few + 1]float32, v float32) int {
	n := 4 * one(w[3] < v)
	n += 2 * one(w[n&few+1] < v)
	return n + one(w[n&few] < v)
}

func one(yes bool) (n int) {
	if yes {
		n = 1
	}
	return n
}
