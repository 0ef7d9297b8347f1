package model

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"

	"gonum.org/v1/gonum/mathext"
)

// ErrTooFewCalibrationRecords is wrapped by errors that say how many are needed.
var ErrTooFewCalibrationRecords = errors.New("too few calibration records")

// NewCalibration sorts the scores of in-distribution records that the head was
// not fitted on, with the classes they are nearest to. It takes both slices.
func NewCalibration(scores []float32, class []int32) Calibration {
	order := make([]int, len(scores))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(scores[a], scores[b]) })
	c := Calibration{Scores: make([]float32, len(scores)), Class: make([]int32, len(scores))}
	for to, from := range order {
		c.Scores[to], c.Class[to] = scores[from], class[from]
	}
	return c
}

// Threshold returns the score above which a record is called out of
// distribution, and k, its rank: it is the k-th largest of the n calibration
// scores. Given the calibration set, the false-positive rate is distributed as
// Beta(k, n+1−k) for continuous scores (ties only lower it); k is the largest
// for which that rate is at most alpha with probability 1−delta over the draw
// of the set. The assumption: calibration and in-distribution records are
// independent draws from one distribution.
//
// The source is Vovk, "Conditional validity of inductive conformal predictors"
// (2012), proposition 2b, and Bates et al., "Testing for outliers with
// conformal p-values" (2021).
//
// It fails where alpha or delta is not between 0 and 1, and, with
// ErrTooFewCalibrationRecords, where n is under MinCalibration.
func (c Calibration) Threshold(alpha, delta float64) (threshold float32, k int, err error) {
	if err := validateRates(alpha, delta); err != nil {
		return 0, 0, err
	}
	n := len(c.Scores)
	if need := MinCalibration(alpha, delta); n < need {
		return 0, 0, fmt.Errorf("%w: %d for a false-positive rate of %g with confidence %g; at least %d are needed", ErrTooFewCalibrationRecords, n, alpha, 1-delta, need)
	}
	// 1−BetaCDF(alpha; k, n+1−k) rises with k. As a tail of its own it keeps its
	// digits for a small delta. n being enough, k=1 holds up to rounding.
	k = max(1, sort.Search(n, func(i int) bool { return mathext.RegIncBeta(float64(n-i), float64(i+1), 1-alpha) > delta }))
	return c.Scores[n-k], k, nil
}

// MinCalibration returns the least number of calibration records for which a
// threshold exists, the n from which 1−(1−alpha)^n ≥ 1−delta. alpha and delta
// are between 0 and 1.
func MinCalibration(alpha, delta float64) int {
	// An alpha so small that the number is no int asks for more than there can be.
	return int(min(math.Ceil(math.Log(delta)/math.Log1p(-alpha)), math.MaxInt32))
}

func validateRates(alpha, delta float64) error {
	for _, v := range []struct {
		name  string
		value float64
	}{{"alpha", alpha}, {"delta", delta}} {
		if !(v.value > 0 && v.value < 1) {
			return fmt.Errorf("%s %g must be between 0 and 1", v.name, v.value)
		}
	}
	return nil
}

// PValue returns the conformal p-value (1 + #{calibration ≥ score}) / (n+1):
// how often an in-distribution record scores at least as high. It is at least
// 1/(n+1).
func (c Calibration) PValue(score float32) float32 {
	n := len(c.Scores)
	lo, hi := 0, n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if c.Scores[mid] < score {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return float32(float64(1+n-lo) / float64(n+1))
}
