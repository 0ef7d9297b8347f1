package kernel

import (
	"fmt"
	"math"
)

// A LogitKind says how the logit of a class follows from a row x and the
// weights w_c of the class; ^ is division by the norm, s the scale. The scale
// takes in what divides the logits, such as a temperature T.
type LogitKind int

const (
	// InnerProduct is s·(w_c·x + b_c): softmax, with s = 1/T.
	InnerProduct LogitKind = iota
	// Distance is −s·‖x − w_c‖: isomax, with s = 1/T.
	Distance
	// UnitDistance is −s·‖x^ − w^_c‖: isomax+, with s = |distance scale|/T.
	UnitDistance
	// MeanUnitDistance is −s·(‖x^ − w^_c‖ + the mean of it over the classes):
	// dismax, with s = |distance scale|/(√2·T).
	MeanUnitDistance
)

// LogitStats are what the scores of a row are made of, with L its logits:
//
//	maximum logit   −Max              MPS   −exp(Max − LogSumExp)
//	energy          −LogSumExp        ES    Entropy
//	MMLS            −(Max + Mean)     MMLES −(Max + Mean − Entropy)
//
// The logits come from float32 inner products. Against float64, with u = 2⁻²⁴,
// Max, LogSumExp and Mean are wrong by at most
//
//	unit distances   1e-6·(s + |value|)
//	Distance         8·u·√D·s·(‖x‖ + max_c ‖w_c‖) + 1e-6·|value|
//	InnerProduct     8·u·√D·s·(‖x‖·max_c ‖w_c‖ + max_c |b_c|) + 1e-6·|value|
//
// and Entropy by 2·(1 + log C) times the first summand, and 1e-6 of its value:
// the exponentials and sums add less than 1e-6 relative. √D stands for roundings
// that are not all of one sign.
type LogitStats struct {
	Class     int32   // of the largest logit, of equals the lowest; −1: invalid
	Max       float64 // max_c L_c
	LogSumExp float64 // log Σ exp L_c
	Mean      float64 // Σ L_c / C
	Entropy   float64 // −Σ p_c·log p_c with p = softmax(L), in nats
}

// Logits is the last layer of a head with C classes, packed for Stats. It is
// immutable and may be shared.
type Logits struct {
	kind   LogitKind
	c, d   int
	scale  float64
	loops  *loops
	panels []float32 // of rows
	rows   []float32 // [C, D]: raw times factor
	raw    []float32 // [C, D], as given
	factor []float64 // [C]: the scale, or one over the norms for unit distances
	bias   []float64 // [C]
	// offset is what is added to the products of x and rows, to find the largest
	// logit by: the bias times the scale, or −‖w_c‖²/2, or 0. [C, in whole panels]
	offset                 []float32
	largest, largestOffset float64 // of the norms of rows, and of |offset|
}

// PackLogits packs the weights of a head, c×d row-major, of which it keeps a
// copy. bias is for InnerProduct alone, and may be nil. Weights that are not
// finite, and for unit distances those of a norm under MinNorm, are errors.
func PackLogits(kind LogitKind, weights, bias []float32, c, d int, scale float64) (*Logits, error) {
	if c < 1 || d < 1 || len(weights) != c*d {
		return nil, fmt.Errorf("weights: %d values are not %d rows of %d", len(weights), c, d)
	}
	if bias != nil && (kind != InnerProduct || len(bias) != c) {
		return nil, fmt.Errorf("bias: %d values for %d classes, where only inner products have one each", len(bias), c)
	}
	if !(scale > 0) || math.IsInf(scale, 0) {
		return nil, fmt.Errorf("scale %g: it must be positive and finite", scale)
	}
	implementation, err := Active()
	if err != nil {
		return nil, err
	}
	return packLogits(implementation.loops, kind, weights, bias, c, d, scale)
}

func packLogits(loops *loops, kind LogitKind, weights, bias []float32, c, d int, scale float64) (*Logits, error) {
	l := &Logits{kind: kind, c: c, d: d, scale: scale, loops: loops, raw: append([]float32(nil), weights...), factor: make([]float64, c), bias: make([]float64, c), offset: make([]float32, roundUp(c))}
	l.rows = make([]float32, c*d)
	for i := range c {
		factor := 1. // of the weights that the products are made with
		square := sumOfSquares(l.raw[i*d : (i+1)*d])
		norm := math.Sqrt(square)
		if math.IsNaN(norm) || math.IsInf(norm, 0) {
			return nil, fmt.Errorf("the weights of class %d have norm %g: it must be finite", i, norm)
		}
		switch {
		case l.unit():
			if norm < MinNorm {
				return nil, fmt.Errorf("prototype %d has norm %g: it must be at least %g", i, norm, MinNorm)
			}
			factor = 1 / norm
		case kind == Distance:
			l.offset[i] = float32(-square / 2)
		case kind == InnerProduct:
			factor = scale
			if bias != nil {
				l.bias[i] = float64(bias[i])
			}
			if math.IsNaN(l.bias[i]) || math.IsInf(l.bias[i], 0) {
				return nil, fmt.Errorf("bias of class %d: %g must be finite", i, l.bias[i])
			}
			l.offset[i] = float32(scale * l.bias[i])
		}
		for j := i * d; j < (i+1)*d; j++ {
			l.rows[j] = float32(float64(l.raw[j]) * factor)
		}
		l.factor[i] = factor
		l.largest = max(l.largest, norm*factor)
		l.largestOffset = max(l.largestOffset, math.Abs(float64(l.offset[i])))
	}
	l.panels = packPanels(l.rows, c, d)
	return l, nil
}

func (l *Logits) unit() bool { return l.kind == UnitDistance || l.kind == MeanUnitDistance }

// Classes returns C.
func (l *Logits) Classes() int { return l.c }

// Dim returns D.
func (l *Logits) Dim() int { return l.d }

// A logitScratch is the scratch of Stats, for tileRows rows.
type logitScratch struct {
	values                             []float32 // [tileRows, C rounded up]
	padded                             []float32 // [tileRows, D]: the last rows of x
	square, inv, tie, limit, a, b, gap []float32
	long                               []bool // float32 will not do
	class                              []int32
	peaks                              []peak
	sums                               []sums
	fixes                              []fix
	exact                              []float64 // [C]
}

// A fix is the logit of a class that float32 products do not give.
type fix struct {
	at    int // in values
	logit float32
}

func (s *logitScratch) grow(c, d int) {
	s.values, s.padded, s.exact = grow(s.values, tileRows*roundUp(c)), grow(s.padded, tileRows*d), grow(s.exact, c)
	if s.long == nil {
		for _, f := range []*[]float32{&s.square, &s.inv, &s.tie, &s.limit, &s.a, &s.b, &s.gap} {
			*f = make([]float32, tileRows)
		}
		s.long, s.class, s.peaks, s.sums = make([]bool, tileRows), make([]int32, tileRows), make([]peak, tileRows), make([]sums, tileRows)
		s.fixes = make([]fix, 0, tileRows)
	}
}

// Stats fills in out for the rows of x, n×D row-major, where n is len(out). No
// n×C matrix is made: a few rows' logits are looked at while they are in the
// cache.
//
// A row that holds a NaN or an infinity is invalid: Class −1, all else NaN. For
// unit distances, so is one whose norm is under MinNorm. Classes within
// rounding of the largest logit are compared in float64. The distance of the
// nearest class, and every distance too near for float32, is computed as the
// norm of the difference.
//
// Unlike Prototypes.Nearest, the implementations agree on Class but not on the
// last bits of the rest: each adds up in the order of its vectors, within what
// LogitStats says.
func (l *Logits) Stats(w *Workspace, x []float32, out []LogitStats) {
	if len(x) != len(out)*l.d {
		panic("kernel: Logits.Stats: x and out do not fit each other")
	}
	w.logits.grow(l.c, l.d)
	for len(out) > 0 {
		n := min(tileRows, len(out))
		l.stats(&w.logits, x[:n*l.d], out[:n])
		x, out = x[n*l.d:], out[n:]
	}
}

// Of unit vectors whose cosine is above nearCosine, and of others whose squared
// distance is under nearSquare times the squared norm of the row, the distance
// is not left to float32 products.
const nearCosine, nearSquare = 0.98, 0.04

// stats is Stats for at most tileRows rows.
func (l *Logits) stats(s *logitScratch, x []float32, out []LogitStats) {
	n, stride := len(out), roundUp(l.c)
	values := s.values[:tileRows*stride]
	l.loops.squares(x, l.d, s.square[:n])
	for i := range n {
		l.bounds(s, i)
		copy(values[i*stride:(i+1)*stride], l.offset)
	}
	multiplyPanels(l.loops, s.padded, x, n, l.d, l.panels, stride, values, stride, true)
	l.loops.peaks(values, l.c, stride, s.tie[:n], s.limit[:n], s.peaks[:n])
	s.fixes = s.fixes[:0]
	for i := range n {
		s.class[i] = max(0, s.peaks[i].first)
		if !s.long[i] && s.peaks[i].near > 1 {
			s.class[i] = l.settle(s, i, x[i*l.d:(i+1)*l.d], values[i*stride:][:l.c])
		}
	}
	if l.kind != InnerProduct {
		l.loops.gaps(x, l.d, s.inv[:n], l.rows, s.class[:n], s.gap[:n])
		l.loops.roots(values, l.c, stride, s.a[:n], s.b[:n], float32(-l.scale))
		for i := range n {
			values[i*stride+int(s.class[i])] = float32(-l.scale * math.Sqrt(float64(s.gap[i])))
		}
	}
	for _, f := range s.fixes {
		values[f.at] = f.logit
	}
	l.loops.sums(values, l.c, stride, s.sums[:n])
	for i := range n {
		if s.long[i] {
			out[i] = l.exactStats(s.exact, x[i*l.d:(i+1)*l.d])
			continue
		}
		out[i] = l.finish(s.class[i], float64(s.sums[i].max), float64(s.sums[i].equal), float64(s.sums[i].total), float64(s.sums[i].exps), float64(s.sums[i].moment))
	}
}

// bounds says of row i what is within rounding, and whether float32 will do.
func (l *Logits) bounds(s *logitScratch, i int) {
	rounding := 8 * 0x1p-24 * math.Sqrt(float64(l.d))
	square := float64(s.square[i])
	norm := math.Sqrt(square)
	s.inv[i], s.a[i], s.b[i] = 1, s.square[i], -2
	s.tie[i], s.limit[i] = float32(rounding*(norm*l.largest+l.largestOffset)), float32(math.Inf(1))
	switch {
	case l.unit():
		s.inv[i] = float32(1 / norm)
		s.a[i], s.b[i] = 2, -2*s.inv[i]
		s.limit[i] = float32(nearCosine * norm)
	case l.kind == Distance:
		s.limit[i] = float32((1 - nearSquare) * square / 2)
	}
	const least, most = 4 * MinNorm * MinNorm, 1e35
	s.long[i] = !(square <= most && norm*l.largest+l.largestOffset <= most) || square < least && l.kind != InnerProduct
}

// settle computes the logits of row i that are near the largest one, whose
// products are v, in float64, and returns the class of the largest.
func (l *Logits) settle(s *logitScratch, i int, row, v []float32) int32 {
	bound := min(s.peaks[i].max-s.tie[i], s.limit[i])
	class, largest, inv := int32(0), math.Inf(-1), l.rowInverse(row)
	for c := int(s.peaks[i].first); c < l.c; c++ {
		if v[c] < bound {
			continue
		}
		logit := l.exact(row, inv, c)
		if logit > largest {
			class, largest = int32(c), logit
		}
		s.fixes = append(s.fixes, fix{i*roundUp(l.c) + c, float32(logit)})
	}
	return class
}

// rowInverse is what a row is multiplied by before its distances.
func (l *Logits) rowInverse(row []float32) float64 {
	if !l.unit() {
		return 1
	}
	return 1 / math.Sqrt(sumOfSquares(row))
}

// exact is the logit of class c in float64, without the mean of DisMax.
func (l *Logits) exact(row []float32, inv float64, c int) float64 {
	weights := l.raw[c*l.d : (c+1)*l.d]
	var s float64
	if l.kind == InnerProduct {
		for j, v := range row {
			s += float64(v) * float64(weights[j])
		}
		return l.scale * (s + l.bias[c])
	}
	for j, v := range row {
		diff := float64(v)*inv - float64(weights[j])*l.factor[c]
		s += diff * diff
	}
	return -l.scale * math.Sqrt(s)
}

// exactStats is Stats for one row in float64.
func (l *Logits) exactStats(logits []float64, row []float32) LogitStats {
	square := sumOfSquares(row)
	if math.IsNaN(square) || math.IsInf(square, 0) || l.unit() && math.Sqrt(square) < MinNorm {
		nan := math.NaN()
		return LogitStats{-1, nan, nan, nan, nan}
	}
	class, largest, inv := 0, math.Inf(-1), l.rowInverse(row)
	var total float64
	for c := range logits {
		logits[c] = l.exact(row, inv, c)
		total += logits[c]
		if logits[c] > largest {
			class, largest = c, logits[c]
		}
	}
	var equal, exps, moment float64
	for _, v := range logits {
		if v == largest {
			equal++
			continue
		}
		e := math.Exp(v - largest)
		exps += e
		moment += (v - largest) * e
	}
	return l.finish(int32(class), largest, equal, total, exps, moment)
}

// finish makes the statistics of a row from its sums; see sums.
func (l *Logits) finish(class int32, largest, equal, total, exps, moment float64) LogitStats {
	// Where one class has the largest logit, log1p keeps what the others add.
	log := math.Log1p(equal - 1 + exps)
	st := LogitStats{Class: class, Max: largest, LogSumExp: largest + log, Mean: total / float64(l.c), Entropy: log - moment/(equal+exps)}
	if l.kind == MeanUnitDistance {
		st.Max, st.LogSumExp, st.Mean = st.Max+st.Mean, st.LogSumExp+st.Mean, 2*st.Mean
	}
	return st
}
