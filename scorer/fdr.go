package scorer

import "slices"

// FDR returns the largest p-value to call out of distribution, so that of the
// records called so an expected share of at most q is in distribution; 0 where
// none can be. It sorts p.
//
// The procedure is that of Benjamini and Hochberg (1995), or with storey that of
// Storey (2002), which estimates the share of in-distribution records by
// (1 + #{p > ½}) / (m/2), at most 1, and so finds more where many are out of
// distribution. Both hold for conformal p-values of independent records, which
// share one calibration set: Bates et al., "Testing for outliers with conformal
// p-values" (2021), theorem 2.
//
// The smallest p-value there is, 1/(n+1) with n calibration records, has to be at
// most q/m for a lone outlier among m records to be called: n ≥ m/q − 1.
func FDR(p []float32, q float64, storey bool) float32 {
	slices.Sort(p)
	m := float64(len(p))
	if storey {
		at, _ := slices.BinarySearch(p, .5+1e-6)
		q /= min(1, (1+m-float64(at))/(m/2))
	}
	const rounding = 1 + 1e-6 // of float32
	for i := len(p) - 1; i >= 0; i-- {
		if float64(p[i]) <= q*float64(i+1)/m*rounding {
			return p[i]
		}
	}
	return 0
}
