package drift

import (
	"math"

	"github.com/oodmon/oodmon/internal/kernel"
)

// A mark is a place in the stream: the first record of a block.
type mark struct {
	time       float64 // when the block was observed, in seconds since 1970
	recordTime int64   // of the record, in microseconds
	offset     int64
	partition  int32
	records    int64 // how many came before
	ood        int64
}

// A component is one bet: that the mean of a feature is above its limit, by so
// much as makes lambda best.
type component struct {
	feature               int
	weight, lambda, limit float64
}

// A start is where the CUSUM statistic of a component was last 1.
type start struct {
	mark
	sum   float64 // of the feature over the records bet on before, and
	count int64   // their number
}

// How much above the limit the bets on a tail expect the mean, and the stakes
// of those on a rank.
var (
	tail1Excess  = []float64{.01, .03, .1, .3}
	tail5Excess  = []float64{.02, .06, .2}
	meanStakes   = []float64{.25, .75, 1.5}
	spreadStakes = []float64{.5, 1.5}
	classRatios  = [...]float64{1.3, 2}
)

// maxStake keeps 1+lambda·(φ−limit) positive.
const maxStake = .95

// components makes the bets on features with these limits for blocks of B
// records. Stakes grow with √B, as the deviation of a block's mean shrinks.
// A limit of 1 cannot be exceeded: no bet is made on it, and the others share
// its weight.
func components(l *layout, limits []float64, block int) []component {
	var all []component
	root := math.Sqrt(float64(block))
	group := func(share float64, add func(bet func(feature int, lambda float64))) {
		first := len(all)
		add(func(feature int, lambda float64) {
			if u := limits[feature]; u < 1 {
				all = append(all, component{feature: feature, limit: u, lambda: min(lambda*root, maxStake/u)})
			}
		})
		for i := first; i < len(all); i++ {
			all[i].weight = share / float64(len(all)-first)
		}
	}
	excess := func(feature int, excess float64) float64 {
		u := limits[feature]
		return excess / (u * (1 - u))
	}
	rank := func(bet func(int, float64), up, dispUp int) {
		for _, f := range []int{up, up + 1} {
			for _, stake := range meanStakes {
				bet(f, stake)
			}
		}
		for _, f := range []int{dispUp, dispUp + 1} {
			for _, stake := range spreadStakes {
				bet(f, stake)
			}
		}
	}
	score, class, projection := l.shares()
	group(score, func(bet func(int, float64)) {
		for _, q := range tail1Excess {
			bet(featT1, excess(featT1, q))
		}
		for _, q := range tail5Excess {
			bet(featT5, excess(featT5, q))
		}
		rank(bet, featUp, featDispUp)
	})
	group(class, func(bet func(int, float64)) {
		for g := range l.groupCount {
			f := scoreFeatures + g
			for _, ratio := range classRatios {
				bet(f, excess(f, (ratio-1)*limits[f]))
			}
		}
	})
	group(projection, func(bet func(int, float64)) {
		for k := range l.projections {
			f := scoreFeatures + l.groupCount + perRank*k
			rank(bet, f, f+2)
		}
	})
	return all
}

// A recursion is an e-detector: R_i = (R_i + w_i·Δt)·e_i for each bet, whose sum
// has a mean of at most the seconds that have passed while no limit is
// exceeded.
//
// Blocks between which no time passes only multiply R_i. So factor gathers their
// e_i, and R_i is settled for many of them at once. A block whose mean is 0, as
// most are for a tail or a group of classes, counts for its bets by its number
// alone: its e_i is idle.
//
// A product that is added to something is converted to float64 first: so it is
// rounded, also by processors that could do without, and all get the same bits.
type recursion struct {
	threshold float64 // A, in seconds
	bets      []component
	of        []int32   // where the bets of each feature begin, and the last end
	weight    []float64 // of each bet
	idle      []float64 // e of a block whose mean is 0: 1−lambda·limit
	slope     []float64 // e of a block of mean φ is idle·(1+slope·φ)
	factor    []float64 // Π of 1+slope·φ over the blocks to settle, of means above 0
	still     []float64 // idle to the power stillFor, the blocks settled at last
	stillFor  int

	r        []float64 // Shiryaev–Roberts evidence of each bet, in seconds
	c        []float64 // CUSUM statistics, which tell the onset: it is asked for where there are
	starts   []start   // of each bet
	evidence float64   // ΣR
	active   bool
	alarms   int64
	onset    Onset   // of the last alarm
	since    float64 // when active was set
}

func newRecursion(threshold float64, bets []component, features int) recursion {
	n := len(bets)
	all := make([]float64, 7*n) // in one piece, which is sooner in the caches
	list := func(k int) []float64 { return all[k*n : (k+1)*n : (k+1)*n] }
	r := recursion{
		threshold: threshold, bets: bets, of: make([]int32, features+1),
		weight: list(0), idle: list(1), slope: list(2), factor: list(3), still: list(4), r: list(5), c: list(6),
	}
	for i, b := range bets {
		r.of[b.feature+1]++
		r.weight[i] = b.weight
		r.idle[i] = 1 - float64(b.lambda*b.limit)
		r.slope[i], r.factor[i] = b.lambda/r.idle[i], 1
	}
	for f := range features { // bets ascend by their feature
		r.of[f+1] += r.of[f]
	}
	return r
}

// clearShare is the share of the threshold under which an alarm ends.
const clearShare = .01

// negligible evidence is dropped before it becomes a subnormal number, with
// which processors are slow.
const negligible = 1e-200

// maxCUSUM keeps C finite; it decides nothing once it is above 1.
const maxCUSUM = 1e100

// bounds returns where the bets on a feature begin and end.
func (r *recursion) bounds(feature int) (from, to int) {
	return int(r.of[feature]), int(r.of[feature+1])
}

// mean takes the mean of a feature in one block, unless it is 0.
func (r *recursion) mean(feature int, mean float64) {
	from, to := r.bounds(feature)
	slope, factor := r.slope[from:to], r.factor[from:to]
	for i := range factor {
		factor[i] *= 1 + float64(slope[i]*mean)
	}
}

// ones takes n blocks of one record in which a feature is 1.
func (r *recursion) ones(feature, n int) {
	from, to := r.bounds(feature)
	for i, slope := range r.slope[from:to] {
		r.factor[from+i] *= power(1+slope, n)
	}
}

// rank takes the means of a rank, whose four features begin at first, in all
// blocks to settle: of the p-value, and of its distance from the middle.
func (r *recursion) rank(first int, p, spread []float64) {
	r.opposite(first+1, first, p)
	r.opposite(first+2, first+3, spread)
}

// opposite takes the means of two features, x and 1−x. They have the same limit and
// therefore the same stakes.
func (r *recursion) opposite(x, rest int, means []float64) {
	from, to := r.bounds(x)
	opposite, _ := r.bounds(rest)
	for i, slope := range r.slope[from:to] {
		r.factor[from+i], r.factor[opposite+i] = kernel.Products(means, slope)
	}
}

// power returns x to the power n.
func power(x float64, n int) float64 {
	p := 1.
	for ; n > 0; n >>= 1 {
		if n&1 == 1 {
			p *= x
		}
		x *= x
	}
	return p
}

// settle takes the blocks that mean, ones and rank have told of, the first of which
// began at first, dt seconds after the last before them. sums are those of the
// features over the count records before. It reports whether an alarm begins.
func (r *recursion) settle(blocks int, dt float64, first *mark, sums []float64, count int64) bool {
	if blocks != r.stillFor {
		r.stillFor = blocks
		for i, idle := range r.idle {
			r.still[i] = power(idle, blocks)
		}
	}
	total, most := 0., 2*r.threshold
	n := len(r.weight)
	weight, still, e, value := r.weight[:n], r.still[:n], r.factor[:n], r.r[:n]
	for i := range weight {
		e[i] *= still[i]
		v := (value[i] + float64(weight[i]*dt)) * e[i]
		if v > most {
			v = most
		} else if v < negligible {
			v = 0
		}
		value[i] = v
		total += v
	}
	if r.starts != nil {
		r.cusum(first, sums, count)
	}
	for i := range e {
		e[i] = 1
	}
	r.evidence = total
	switch {
	case !r.active && total >= r.threshold:
		r.active = true
		r.alarms++
		return true
	case r.active && total < clearShare*r.threshold:
		r.active = false
	}
	return false
}

// cusum takes C to max(C, 1)·e of each bet, and notes where it leaves 1.
func (r *recursion) cusum(first *mark, sums []float64, count int64) {
	c := r.c[:len(r.factor)]
	for i, e := range r.factor {
		if c[i] > 1 {
			if c[i] *= e; c[i] > maxCUSUM {
				c[i] = maxCUSUM
			}
		} else if c[i] = e; e > 1 { // while it stays at 1 nobody asks where
			s := &r.starts[i]
			s.mark, s.sum, s.count = *first, sums[r.bets[i].feature], count
		}
	}
}

// restart drops the evidence.
func (r *recursion) restart() {
	clear(r.r)
	clear(r.c)
	r.evidence, r.active = 0, false
}

// top returns the bet with the most evidence, of one feature family or of all
// (-1); −1 where none has any.
func (r *recursion) top(l *layout, family int) int {
	best, most := -1, 0.
	for i, v := range r.r {
		if (family < 0 || l.family(r.bets[i].feature) == family) && v > most {
			best, most = i, v
		}
	}
	return best
}
