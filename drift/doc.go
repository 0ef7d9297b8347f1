// Package drift turns the scores of a stream into evidence that the stream has
// changed. Two detectors run side by side: shift compares the scores with a
// fixed reference, change with all that came before. Both are sums of
// Shiryaev–Roberts recursions over bets (e-detectors), so that the mean time to
// a false alarm is at least what was chosen, whatever the throughput; docs/drift.md
// says what that assumes.
//
// Sources: Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for
// sequential change detection" (2022); Vovk et al., "Retrain or not retrain:
// conformal test martingales for change-point detection" (2021); Bates et al.,
// "Testing for outliers with conformal p-values" (2021).
package drift
