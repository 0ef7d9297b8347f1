package drift

import (
	"math"
	"slices"

	"github.com/oodmon/oodmon/internal/rank"
	"gonum.org/v1/gonum/mathext"
)

// A ranking is n scores in order.
type ranking struct {
	scores []float32 // ascending
	// ties breaks ties: ascending within each run of equal scores. nil: there
	// are none. With it a score has a place among equals, drawn once, so that
	// discrete scores are treated as exactly as continuous ones.
	ties []uint32
}

func (r *ranking) n() int { return len(r.scores) }

// tie returns what decides between score i and a live one that equals it: without
// ties it is never below.
func (r *ranking) tie(i int) uint32 {
	if r.ties == nil {
		return math.MaxUint32
	}
	return r.ties[i]
}

// places rank a score for both detectors at once: among those of a reference, and
// those at which the cells of an urn begin, which lie in one row.
type places struct {
	ranking
	index rank.Index
	cell  []uint8 // by the place: how many cells have begun
}

func newPlaces(reference, cells *ranking) *places {
	n := reference.n() + cells.n()
	p := &places{ranking: ranking{scores: make([]float32, 0, n)}, cell: make([]uint8, 1, n+1)}
	if reference.ties != nil || cells.ties != nil {
		p.ties = make([]uint32, 0, n)
	}
	for i, k := 0, 0; i+k < n; p.cell = append(p.cell, uint8(k)) {
		from, at := cells, &k
		if i < reference.n() && (k == cells.n() || reference.before(i, cells, k)) {
			from, at = reference, &i
		}
		p.scores = append(p.scores, from.scores[*at])
		if p.ties != nil {
			p.ties = append(p.ties, from.tie(*at))
		}
		*at++
	}
	p.index = rank.New(p.scores)
	return p
}

// before reports whether score i comes before score k of another ranking.
func (r *ranking) before(i int, other *ranking, k int) bool {
	a, b := r.scores[i], other.scores[k]
	return a < b || a == b && r.tie(i) < other.tie(k)
}

// find puts into each element of gaps how many of the reference are below that of
// scores, and its cell into cells; its tie decides among equals.
func (p *places) find(gaps []uint32, cells []uint8, scores []float32, ties []uint32) {
	p.index.BelowAll(gaps, scores)
	scores, ties, cells = scores[:len(gaps)], ties[:len(gaps)], cells[:len(gaps)]
	for i, at := range gaps {
		if p.ties != nil && int(at) < len(p.scores) && p.scores[at] == scores[i] {
			at = uint32(p.among(int(at), scores[i], ties[i]))
		}
		cell := p.cell[at]
		gaps[i], cells[i] = at-uint32(cell), cell
	}
}

// fetch brings what find needs into the caches. The sum means nothing.
func (p *places) fetch() (sum uint32) {
	for i := 0; i < len(p.cell); i += 64 {
		sum += uint32(p.cell[i])
	}
	return sum + p.index.Fetch()
}

// among returns the place of a score among its equals, which begin at at.
func (r *ranking) among(at int, score float32, tie uint32) int {
	if at+1 == len(r.scores) || r.scores[at+1] != score { // most are alone
		return at + one(r.ties[at] < tie)
	}
	below := func(i int) bool { return i < len(r.scores) && r.scores[i] == score && r.ties[i] < tie }
	for step := 1; step > 0; { // most runs are short
		if below(at + step - 1) {
			at += step
			step *= 2
		} else {
			step /= 2
		}
	}
	return at
}

// A reference is n scores that live ones are ranked against, with the classes
// and projections of their records.
type reference struct {
	ranking
	live        bool        // built from live records, not the model's calibration
	class       []int64     // counts
	projections [][]float32 // ascending
	findEach    []rank.Index
}

func newReference(live bool, sorted []float32, class []int64, projections [][]float32, key uint64) *reference {
	r := &reference{ranking: ranking{scores: sorted}, live: live, class: class, projections: projections}
	for _, p := range projections {
		r.findEach = append(r.findEach, rank.New(p))
	}
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			r.ties = make([]uint32, len(sorted))
			break
		}
	}
	for i := range r.ties {
		r.ties[i] = uint32(mix(key^mix(uint64(i)+1)) >> 32)
	}
	for start, i := 0, 1; r.ties != nil && i <= len(sorted); i++ {
		if i == len(sorted) || sorted[i] != sorted[start] {
			slices.Sort(r.ties[start:i])
			start = i
		}
	}
	return r
}

// p returns the right-tail p-value of a value of projection k; v, which is
// uniform on [0, 1), decides among equals.
func (r *reference) p(k int, x float32, v float64) float64 {
	values, find := r.projections[k], &r.findEach[k]
	gap, equal := find.Below(x), 0
	if gap < len(values) && values[gap] == x {
		equal = find.Below(math.Nextafter32(x, float32(math.Inf(1)))) - gap
	}
	return (float64(len(values)-gap-equal) + float64(v*float64(equal+1))) / float64(len(values)+1)
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

// layoutOf puts the classes into at most maxGroups groups of like number, by their
// index: groups that were made by the counts would be made of classes that the same
// reference happens to have few of, and their limits would be too low.
func layoutOf(ref *reference) layout {
	l := layout{projections: len(ref.projections)}
	total := int64(0)
	for _, n := range ref.class {
		total += n
	}
	if len(ref.class) < 2 || total == 0 {
		return l
	}
	l.groups, l.groupCount = make([]int32, len(ref.class)), min(len(ref.class), maxGroups)
	for class := range l.groups {
		l.groups[class] = int32(class % l.groupCount)
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
				limit = betaInv(1-dj, float64(m+1), float64(total-m)) + tol.ofClass(float64(m)/float64(total))
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
