package scorer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/oodmon/oodmon/model"
)

func TestFDRProcedures(t *testing.T) {
	for _, test := range []struct {
		p      []float32
		storey bool
		want   float32
	}{
		{nil, false, 0},
		{[]float32{.9, .8, .03}, false, .03},               // .1/3
		{[]float32{.9, .8, .04}, false, 0},                 // more than that
		{[]float32{.06, .9, .05, .061}, false, .061},       // .1*3/4: those below come along
		{[]float32{.0004, .07, .08, .09}, false, .09},      // all
		{[]float32{.045, .045, .9, .3}, false, .045},       // the second is at .05
		{[]float32{.055, .055, .9, .3}, false, 0},          // and this one above
		{[]float32{.055, .055, .055, .3}, true, .055},      // π0 is (1+0)/2
		{[]float32{.01, .6, .7, .8, .9, .95}, true, .01},   // π0 is 1
		{[]float32{.018, .6, .7, .8, .9, .95}, true, 0},    // .1/6
		{[]float32{1. / 1000, 1, 1, 1, 1, 1}, false, .001}, // float32 rounds
	} {
		if got := FDR(test.p, .1, test.storey); got != test.want {
			t.Errorf("%v, storey %v: %g, want %g", test.p, test.storey, got, test.want)
		}
	}
	// A lone outlier among m records needs n ≥ m/q − 1.
	lone := func(n int) float32 {
		p := make([]float32, 100)
		for i := range p {
			p[i] = 1
		}
		p[7] = float32(1 / float64(n+1))
		return FDR(p, .1, false)
	}
	if lone(999) == 0 || lone(998) != 0 {
		t.Errorf("a lone outlier among 100: cut %g with n=999, %g with n=998", lone(999), lone(998))
	}
}

// Of what is called out of distribution, a share of at most q is not, on average
// over calibration sets and batches; and most outliers are found.
func TestFDRKeepsItsPromise(t *testing.T) {
	const runs, n, m, outliers, q = 300, 10000, 1000, 100, .1
	for _, storey := range []bool{false, true} {
		t.Run(fmt.Sprintf("storey=%v", storey), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(6, 6))
			sum, squares, found := 0., 0., 0
			for range runs {
				scores := make([]float32, n)
				for i := range scores {
					scores[i] = float32(r.NormFloat64())
				}
				c := model.NewCalibration(scores, make([]int32, n))
				p := make([]float32, m)
				for i := range p {
					score := r.NormFloat64()
					if i < outliers {
						score += 3
					}
					p[i] = c.PValue(float32(score))
				}
				inside := append([]float32(nil), p...)
				cut := FDR(append([]float32(nil), p...), q, storey)
				wrong, all := 0., 0.
				for i, v := range inside {
					if v <= cut {
						all++
						if i >= outliers {
							wrong++
						} else {
							found++
						}
					}
				}
				share := wrong / max(1, all)
				sum += share
				squares += share * share
			}
			mean := sum / runs
			upper := mean + 2.326*math.Sqrt((squares/runs-mean*mean)/runs)
			t.Logf("FDR at q=%g, m=%d, storey %v: %.4f, 99 %% upper bound %.4f; %.0f %% of the outliers found", q, m, storey, mean, upper, 100*float64(found)/(runs*outliers))
			if upper > .11 {
				t.Errorf("the upper bound is above 0.11")
			}
			if found < runs*outliers/2 {
				t.Errorf("only %d of %d outliers are found", found, runs*outliers)
			}
		})
	}
}
