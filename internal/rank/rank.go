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
	x := Index{values: values, from: from, begin: make([]uint32, cells+1)}
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
	at, last := (v-x.from)*x.scale, len(x.begin)-2
	switch {
	case !(at > 0):
		return 0
	case at >= float32(last):
		return last
	}
	return int(at)
}

// few is how many values are compared at once.
const few = 8

// Below returns how many of the values are smaller than v.
func (x *Index) Below(v float32) int {
	k := x.cell(v)
	lo, hi := int(x.begin[k]), int(x.begin[k+1])
	for hi-lo > few {
		if half := int(uint(lo+hi) >> 1); x.values[half] < v {
			lo = half + 1
		} else {
			hi = half
		}
	}
	if lo+few > len(x.values) {
		for lo < hi && x.values[lo] < v {
			lo++
		}
		return lo
	}
	// How many of eight are smaller is counted without a branch, which could not
	// be predicted. Those beyond the cell are not smaller.
	w := x.values[lo : lo+few : lo+few]
	return lo + one(w[0] < v) + one(w[1] < v) + one(w[2] < v) + one(w[3] < v) + one(w[4] < v) + one(w[5] < v) + one(w[6] < v) + one(w[7] < v)
}

func one(yes bool) (n int) {
	if yes {
		n = 1
	}
	return n
}
