package model

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

func uniform(r *rand.Rand, n int) Calibration {
	scores := make([]float32, n)
	for i := range scores {
		scores[i] = float32(r.Float64())
	}
	return NewCalibration(scores, make([]int32, n))
}

func TestThresholdRank(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, test := range []struct {
		n            int
		alpha, delta float64
		k            int
	}{
		{1000, .01, .05, 5}, // the design's figure
		{299, .01, .05, 1},
		{10000, .05, .05, 465},
		{1000, .1, .1, 88},
	} {
		c := uniform(r, test.n)
		threshold, k, err := c.Threshold(test.alpha, test.delta)
		if err != nil {
			t.Fatal(err)
		}
		if test.n >= 10000 || test.alpha == .1 { // checked against the normal approximation only
			mean, sd := test.alpha*float64(test.n), math.Sqrt(test.alpha*(1-test.alpha)*float64(test.n))
			z := map[float64]float64{.05: 1.645, .1: 1.282}[test.delta]
			if math.Abs(float64(k)-(mean-z*sd)) > 3 {
				t.Errorf("n=%d: k=%d, the normal approximation says %.1f", test.n, k, mean-z*sd)
			}
		} else if k != test.k {
			t.Errorf("n=%d alpha=%g delta=%g: k=%d, want %d", test.n, test.alpha, test.delta, k, test.k)
		}
		above := 0
		for _, s := range c.Scores {
			if s > threshold {
				above++
			}
		}
		if above != k-1 {
			t.Errorf("n=%d: %d calibration scores are above the threshold, want k-1 = %d", test.n, above, k-1)
		}
	}
}

func TestThresholdNeedsRecords(t *testing.T) {
	c := uniform(rand.New(rand.NewPCG(1, 1)), 298)
	_, _, err := c.Threshold(.01, .05)
	const want = "too few calibration records: 298 for a false-positive rate of 0.01 with confidence 0.95; at least 299 are needed"
	if !errors.Is(err, ErrTooFewCalibrationRecords) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestThresholdRefusesRates(t *testing.T) {
	c := uniform(rand.New(rand.NewPCG(1, 1)), 1000)
	for _, test := range []struct {
		alpha, delta float64
		want         string
	}{
		{0, .05, "alpha 0 must be between 0 and 1"},
		{1, .05, "alpha 1 must be between 0 and 1"},
		{math.NaN(), .05, "alpha NaN must be between 0 and 1"},
		{.01, 0, "delta 0 must be between 0 and 1"},
		{.01, 1, "delta 1 must be between 0 and 1"},
		{1e-300, .05, "too few calibration records: 1000 for a false-positive rate of 1e-300 with confidence 0.95; at least 2147483647 are needed"},
	} {
		if _, _, err := c.Threshold(test.alpha, test.delta); err == nil || err.Error() != test.want {
			t.Errorf("alpha=%g delta=%g: %v, want %s", test.alpha, test.delta, err, test.want)
		}
	}
}

// With just as many records as are needed there is a threshold, however alpha
// and delta round: the largest score.
func TestThresholdAtTheLeastNumber(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	try := func(alpha, delta float64) {
		n := MinCalibration(alpha, delta)
		c := uniform(r, n)
		threshold, k, err := c.Threshold(alpha, delta)
		if err != nil || k != 1 || threshold != c.Scores[n-1] {
			t.Errorf("alpha=%g delta=%g n=%d: k=%d, %v; want 1", alpha, delta, n, k, err)
		}
	}
	for n := 1; n < 200; n++ {
		for _, alpha := range []float64{.01, .05, .1} {
			try(alpha, math.Pow(1-alpha, float64(n)))
		}
	}
	try(.01, 1e-30)
}

// The guarantee: over draws of the calibration set, the false-positive rate
// exceeds alpha with probability at most delta.
func TestThresholdKeepsItsPromise(t *testing.T) {
	const draws, n, alpha, delta = 4000, 1000, .01, .05
	r := rand.New(rand.NewPCG(7, 7))
	exceeded := 0
	for range draws {
		threshold, _, err := uniform(r, n).Threshold(alpha, delta)
		if err != nil {
			t.Fatal(err)
		}
		if 1-float64(threshold) > alpha { // the rate, for scores uniform in [0, 1]
			exceeded++
		}
	}
	share := float64(exceeded) / draws
	upper := share + 2.326*math.Sqrt(share*(1-share)/draws)
	t.Logf("P(FPR > alpha) = %.4f, 99 %% upper bound %.4f", share, upper)
	if upper > delta {
		t.Errorf("the false-positive rate exceeds alpha in a share of %.4f of the draws (99 %% upper bound %.4f), want at most %g", share, upper, delta)
	}
	if share < delta/4 {
		t.Errorf("a share of only %.4f: the threshold is higher than it need be", share)
	}
}

func TestPValue(t *testing.T) {
	c := NewCalibration([]float32{3, 1, 2, 2}, []int32{0, 1, 2, 3})
	for _, test := range []struct{ score, want float32 }{
		{0, 1}, {1, 1}, {1.5, .8}, {2, .8}, {2.5, .4}, {3, .4}, {4, .2},
	} {
		if got := c.PValue(test.score); got != test.want {
			t.Errorf("PValue(%g) = %g, want %g", test.score, got, test.want)
		}
	}
	for i, class := range []int32{1, 2, 3, 0} {
		if c.Class[i] != class {
			t.Errorf("class %d is %d, want %d: classes must follow their scores", i, c.Class[i], class)
		}
	}
}
