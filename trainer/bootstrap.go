package trainer

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// resamples is how often the held-out records are drawn anew.
const resamples = 1000

// A figure is computed from how often each held-out record, and each outlier,
// was drawn. NaN says that the draw does not tell.
type figure func(held, outliers []int32) float64

// An estimate is a figure with its interval: the 5th and 95th percentile of the
// bootstrap (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979).
type estimate struct{ figure, low, high float64 }

// bootstrap estimates figures of held records and outliers. All figures see the
// same draws, in which records are drawn with all that is known of them: what
// compares two models is paired.
func bootstrap(figures []figure, held, outliers int, seed uint64) []estimate {
	random := rand.New(rand.NewPCG(seed, 4))
	drawn, drawnOutliers := make([]int32, held), make([]int32, outliers)
	draws := make([][]float64, len(figures))
	for range resamples {
		for _, d := range [][]int32{drawn, drawnOutliers} {
			clear(d)
			for range d {
				d[random.IntN(len(d))]++
			}
		}
		for i, f := range figures {
			if v := f(drawn, drawnOutliers); !math.IsNaN(v) {
				draws[i] = append(draws[i], v)
			}
		}
	}
	for _, d := range [][]int32{drawn, drawnOutliers} {
		for i := range d {
			d[i] = 1
		}
	}
	all := make([]estimate, len(figures))
	for i, f := range figures {
		all[i] = estimate{f(drawn, drawnOutliers), math.NaN(), math.NaN()}
		if d := draws[i]; len(d) > 0 {
			slices.Sort(d)
			all[i].low, all[i].high = d[len(d)/20], d[len(d)-1-len(d)/20]
		}
	}
	return all
}

// shareOf is the share of the records of which the answer is true.
func shareOf(answer []bool) figure {
	return func(held, _ []int32) float64 {
		n := 0
		for i, times := range held {
			if answer[i] {
				n += int(times)
			}
		}
		return float64(n) / float64(len(held))
	}
}

// difference is the share of a less that of b.
func difference(a, b []bool) figure {
	return func(held, _ []int32) float64 {
		n := 0
		for i, times := range held {
			if a[i] {
				n += int(times)
			}
			if b[i] {
				n -= int(times)
			}
		}
		return float64(n) / float64(len(held))
	}
}

// recallDifference is the difference over the records of a class.
func recallDifference(h *heldOut, class int, a, b []bool) figure {
	var rows []int
	for i, c := range h.class {
		if int(c) == class {
			rows = append(rows, i)
		}
	}
	return func(held, _ []int32) float64 {
		n, all := 0, 0
		for _, i := range rows {
			times := int(held[i])
			all += times
			if a[i] {
				n += times
			}
			if b[i] {
				n -= times
			}
		}
		if all == 0 {
			return math.NaN()
		}
		return float64(n) / float64(all)
	}
}

// A ranking orders records by a score, to tell apart those that are in and those
// that are out of distribution.
type ranking []ranked

type ranked struct {
	score float32
	// at is the held-out record, or outlier, that it is.
	at      int32
	outlier bool
	out     bool // out of distribution
}

func (r ranking) sort() {
	slices.SortFunc(r, func(a, b ranked) int { return cmp.Compare(a.score, b.score) })
}

// auroc is the probability that what is out scores higher than what is in; ties
// count half.
func (r ranking) auroc(held, outliers []int32) float64 {
	var sum, in, out float64
	for i := 0; i < len(r); {
		var tiesIn, tiesOut float64
		score := r[i].score
		for ; i < len(r) && r[i].score == score; i++ {
			times := held
			if r[i].outlier {
				times = outliers
			}
			if n := float64(times[r[i].at]); r[i].out {
				tiesOut += n
			} else {
				tiesIn += n
			}
		}
		sum += tiesOut * (in + tiesIn/2)
		in, out = in+tiesIn, out+tiesOut
	}
	return sum / (in * out) // NaN where one of them is 0
}

// meanAUROC is the mean over rankings that tell.
func meanAUROC(all []ranking, held, outliers []int32) float64 {
	sum, n := 0., 0.
	for _, r := range all {
		if v := r.auroc(held, outliers); !math.IsNaN(v) {
			sum, n = sum+v, n+1
		}
	}
	return sum / n
}

func aurocDifference(a, b []ranking) figure {
	return func(held, outliers []int32) float64 {
		return meanAUROC(a, held, outliers) - meanAUROC(b, held, outliers)
	}
}
