package drift

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
)

const (
	// DefaultBlock is how many records make a bet where the order of the
	// reference is not known.
	DefaultBlock = 16
	// measured is how many live records tell the autocorrelation.
	measured = 2048
	// independent is the autocorrelation time up to which records count as such.
	independent = 1.2
)

// blockFor returns how many records make a bet: 1 where the autocorrelation
// time is at most 1.2, else the next power of two that is twice that time.
func blockFor(tau float64) int {
	if tau <= independent {
		return 1
	}
	return min(maxBlock, 1<<bits.Len(uint(math.Ceil(2*tau))-1))
}

// autocorrelationTime returns 1+2Σρ_k of the scores in their order: how many
// records are worth one independent record. It is the larger of those of the
// rank and of its distance from the middle, summed up to the first lag that is
// five times the sum (Sokal's window).
func autocorrelationTime(scores []float32) float64 {
	n := len(scores)
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(scores[a], scores[b]) })
	rank, spread := make([]float64, n), make([]float64, n)
	for start, i := 0, 1; i <= n; i++ {
		if i == n || scores[order[i]] != scores[order[start]] {
			for _, j := range order[start:i] { // ties share their middle rank
				rank[j] = (float64(start+i) - float64(n)) / float64(n)
				spread[j] = math.Abs(rank[j])
			}
			start = i
		}
	}
	return max(integrated(rank), integrated(spread))
}

func integrated(x []float64) float64 {
	n := len(x)
	mean := 0.
	for _, v := range x {
		mean += v
	}
	mean /= float64(n)
	lag := func(k int) (sum float64) {
		for i := k; i < n; i++ {
			sum += (x[i] - mean) * (x[i-k] - mean)
		}
		return sum
	}
	variance, tau := lag(0), 1.
	if variance == 0 {
		return 1
	}
	for k := 1; k < n/4; k++ {
		tau += 2 * lag(k) / variance
		if float64(k) >= 5*tau {
			break
		}
	}
	return max(1, tau)
}
