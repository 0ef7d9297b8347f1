package drift

import "math"

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

	r float64 // Shiryaev–Roberts evidence, in seconds
	c float64 // CUSUM statistic: it tells the onset
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
	classRatios  = []float64{1.3, 2}
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
type recursion struct {
	threshold float64 // A, in seconds
	bets      []component
	starts    []start // of each bet; nil: the onset is not asked for
	evidence  float64 // ΣR
	active    bool
	alarms    int64
	onset     Onset   // of the last alarm
	since     float64 // when active was set
}

// clearShare is the share of the threshold under which an alarm ends.
const clearShare = .01

// negligible evidence is dropped before it becomes a subnormal number, with
// which processors are slow.
const negligible = 1e-200

// maxCUSUM keeps C finite; it decides nothing once it is above 1.
const maxCUSUM = 1e300

// step takes the means of a block that began at first, dt seconds after the
// last. sums are those of the features over the count records before the block.
// It reports whether an alarm begins.
func (r *recursion) step(means []float64, dt float64, first *mark, sums []float64, count int64) bool {
	total, most := 0., 2*r.threshold
	for i := range r.bets {
		b := &r.bets[i]
		e := 1 + b.lambda*(means[b.feature]-b.limit)
		v := (b.r + b.weight*dt) * e
		if v > most {
			v = most
		} else if v < negligible {
			v = 0
		}
		b.r = v
		total += v
		if b.c > 1 {
			if b.c < maxCUSUM {
				b.c *= e
			}
		} else if b.c = e; e > 1 && r.starts != nil { // while it stays at 1 nobody asks where
			r.starts[i] = start{*first, sums[b.feature], count}
		}
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

// restart drops the evidence.
func (r *recursion) restart() {
	for i := range r.bets {
		r.bets[i].r, r.bets[i].c = 0, 0
	}
	r.evidence, r.active = 0, false
}

// top returns the bet with the most evidence, of one feature family or of all
// (-1); −1 where none has any.
func (r *recursion) top(l *layout, family int) int {
	best, most := -1, 0.
	for i := range r.bets {
		b := &r.bets[i]
		if (family < 0 || l.family(b.feature) == family) && b.r > most {
			best, most = i, b.r
		}
	}
	return best
}
