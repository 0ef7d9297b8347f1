package drift

import (
	"math"
	"math/bits"
	"slices"
	"sort"

	"gonum.org/v1/gonum/mathext"
)

// A reference is n scores that live ones are ranked against, with the classes
// and projections of their records.
type reference struct {
	live   bool      // built from live records, not the model's calibration
	scores []float32 // ascending
	find   index     // of scores
	// ties breaks ties: ascending within each run of equal scores. nil: there
	// are none. With it a score has a place among equals, drawn once, so that
	// discrete scores are treated as exactly as continuous ones.
	ties        []uint32
	class       []int64     // counts
	projections [][]float32 // ascending
	findEach    []index     // of projections
}

func newReference(live bool, sorted []float32, class []int64, projections [][]float32, key uint64) *reference {
	r := &reference{live: live, scores: sorted, find: newIndex(sorted), class: class, projections: projections}
	for _, p := range projections {
		r.findEach = append(r.findEach, newIndex(p))
	}
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			r.ties = make([]uint32, len(sorted))
			break
		}
	}
	if r.ties == nil {
		return r
	}
	for i := range r.ties {
		r.ties[i] = uint32(mix(key^mix(uint64(i)+1)) >> 32)
	}
	for start, i := 0, 1; i <= len(sorted); i++ {
		if i == len(sorted) || sorted[i] != sorted[start] {
			slices.Sort(r.ties[start:i])
			start = i
		}
	}
	return r
}

func (r *reference) n() int { return len(r.scores) }

// gap returns how many of the reference's scores are below s, from 0 to n; tie
// decides among equals.
func (r *reference) gap(s float32, tie uint32) int {
	lo := r.find.below(r.scores, s)
	if r.ties == nil || lo == len(r.scores) || r.scores[lo] != s {
		return lo
	}
	hi := lo + sort.Search(len(r.scores)-lo, func(i int) bool { return r.scores[lo+i] > s })
	return lo + sort.Search(hi-lo, func(i int) bool { return r.ties[lo+i] >= tie })
}

// p returns the right-tail p-value of a value of projection k; v, which is
// uniform on [0, 1), decides among equals.
func (r *reference) p(k int, x float32, v float64) float64 {
	values, find := r.projections[k], &r.findEach[k]
	gap, equal := find.below(values, x), 0
	if gap < len(values) && values[gap] == x {
		equal = find.below(values, math.Nextafter32(x, float32(math.Inf(1)))) - gap
	}
	return (float64(len(values)-gap-equal) + v*float64(equal+1)) / float64(len(values)+1)
}

// An index says where among ascending values to look: it cuts their range into
// cells of one width, and knows where each begins. Between the extreme
// thousandths, so that outliers don't make the cells wide.
type index struct {
	from, scale float32
	begin       []uint32 // of each cell, and where the last ends
}

func newIndex(values []float32) index {
	n := len(values)
	if n == 0 {
		return index{begin: make([]uint32, 2)}
	}
	from, to := values[n/1000], values[n-1-n/1000]
	cells := 1 << bits.Len(uint(n/4))
	x := index{from: from, begin: make([]uint32, cells+1)}
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
func (x *index) cell(v float32) int {
	at, last := (v-x.from)*x.scale, len(x.begin)-2
	switch {
	case !(at > 0):
		return 0
	case at >= float32(last):
		return last
	}
	return int(at)
}

// below returns how many of the values are smaller than v.
func (x *index) below(values []float32, v float32) int {
	k := x.cell(v)
	lo, hi := int(x.begin[k]), int(x.begin[k+1])
	for hi-lo > 8 {
		if half := int(uint(lo+hi) >> 1); values[half] < v {
			lo = half + 1
		} else {
			hi = half
		}
	}
	if lo+8 > len(values) {
		for lo < hi && values[lo] < v {
			lo++
		}
		return lo
	}
	// How many of eight are smaller is counted without a branch, which could not
	// be predicted. Those beyond the cell are not smaller.
	w := values[lo : lo+8 : lo+8]
	return lo + one(w[0] < v) + one(w[1] < v) + one(w[2] < v) + one(w[3] < v) + one(w[4] < v) + one(w[5] < v) + one(w[6] < v) + one(w[7] < v)
}

func one(yes bool) (n int) {
	if yes {
		n = 1
	}
	return n
}

// betaInv returns x with BetaCDF(x; a, b) = p. mathext.InvRegIncBeta loses
// digits for the a and b of large references; bisection doesn't.
func betaInv(p, a, b float64) float64 {
	lo, hi := 0., 1.
	for range 60 {
		if mid := (lo + hi) / 2; mathext.RegIncBeta(a, b, mid) < p {
			lo = mid
		} else {
			hi = mid
		}
	}
	return (lo + hi) / 2
}

// The features of a score, by the p-value p: its right-tail rank.
const (
	featT1     = iota // p ≤ 0.01
	featT5            // p ≤ 0.05
	featUp            // 1−p
	featDn            // p
	featDispUp        // |2p−1|
	featDispDn        // 1−|2p−1|
	scoreFeatures
)

// Families of features, as metrics and alarms name them: the features of the
// score, then all class groups as one, and all projections.
const (
	familyClass = scoreFeatures + iota
	familyProjection
	families
)

// Features names the families.
var Features = [families]string{"t1", "t5", "up", "dn", "disp_up", "disp_dn", "class", "projection"}

const (
	tail1, tail5 = .01, .05
	maxGroups    = 32 // of classes
	projections  = 16
	perRank      = 4 // features of the rank of a projection: up, dn, disp_up, disp_dn
)

// A layout numbers the features of a detector: those of the score, then one for
// each group of classes, then perRank for each projection.
type layout struct {
	groups      []int32 // of each class; nil: no class mix
	groupCount  int
	projections int
}

func (l *layout) features() int { return scoreFeatures + l.groupCount + perRank*l.projections }

func (l *layout) family(feature int) int {
	switch {
	case feature < scoreFeatures:
		return feature
	case feature < scoreFeatures+l.groupCount:
		return familyClass
	}
	return familyProjection
}

// layoutOf puts the classes into at most maxGroups groups of like size.
func layoutOf(ref *reference) layout {
	l := layout{projections: len(ref.projections)}
	total := int64(0)
	for _, n := range ref.class {
		total += n
	}
	if len(ref.class) < 2 || total == 0 {
		return l
	}
	order := make([]int, len(ref.class))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return int(ref.class[b] - ref.class[a]) })
	l.groups, l.groupCount = make([]int32, len(order)), min(len(order), maxGroups)
	size, members := make([]int64, l.groupCount), make([]int, l.groupCount)
	for _, class := range order {
		least := 0
		for g := range size {
			if size[g] < size[least] || size[g] == size[least] && members[g] < members[least] {
				least = g
			}
		}
		l.groups[class] = int32(least)
		size[least] += ref.class[class]
		members[least]++
	}
	return l
}

// shares says how the bets, and the probability delta that a limit is too low,
// are divided among the kinds of features: one half the score, a quarter each
// class mix and projections, as far as there are any.
func (l *layout) shares() (score, class, projection float64) {
	score = .5
	if l.groupCount > 0 {
		class = .25
	}
	if l.projections > 0 {
		projection = .25
	}
	sum := score + class + projection
	return score / sum, class / sum, projection / sum
}

// changeLimits are the exact means under exchangeability, and the tolerance.
func changeLimits(tol Tolerance) []float64 {
	return []float64{tail1 + tol.Tail, tail5 + tol.Tail, .5 + tol.Mean, .5 + tol.Mean, .5 + tol.Mean, .5 + tol.Mean}
}

// shiftLimits are upper bounds of the features' means, given the reference, that
// hold together with probability 1−delta over the draw of it, and the
// tolerance. A feature that the reference is too small for has limit 1.
//
// Given n scores, the share above the k-th largest is Beta(k, n+1−k). The mean
// of the p-value is within a Hoeffding bound of ½ with variance 1/12, that of
// |2p−1| with a range of 1. The share of a group of classes has Clopper and
// Pearson's bound.
func shiftLimits(ref *reference, l *layout, tol Tolerance, delta float64) []float64 {
	n := float64(ref.n())
	limits := make([]float64, 0, l.features())
	scoreShare, classShare, projectionShare := l.shares()

	dj := delta * scoreShare / scoreFeatures
	for _, tail := range []float64{tail1, tail5} {
		limit := 1.
		if k := math.Floor(tail * n); k >= 1 {
			limit = betaInv(1-dj, k, n+1-k) + tol.Tail
		}
		limits = append(limits, limit)
	}
	rank := func(dj float64) {
		mean := .5 + math.Sqrt(math.Log(1/dj)/(6*n)) + tol.Mean
		disp := .5 + math.Sqrt(math.Log(1/dj)/(2*(n+2))) + tol.Mean
		limits = append(limits, mean, mean, disp, disp)
	}
	rank(dj)

	if l.groupCount > 0 {
		counts, total := make([]int64, l.groupCount), int64(0)
		for class, g := range l.groups {
			counts[g] += ref.class[class]
			total += ref.class[class]
		}
		dj := delta * classShare / float64(l.groupCount)
		for _, m := range counts {
			limit := 1.
			if m < total {
				limit = betaInv(1-dj, float64(m+1), float64(total-m)) + tol.Class
			}
			limits = append(limits, limit)
		}
	}
	for range l.projections {
		rank(delta * projectionShare / float64(perRank*l.projections))
	}
	for i := range limits {
		limits[i] = min(limits[i], 1)
	}
	return limits
}
