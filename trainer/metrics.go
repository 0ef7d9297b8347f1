package trainer

import (
	"cmp"
	"math"
	"slices"
)

// Detection holds the usual metrics of telling in-distribution from
// out-of-distribution records by a score. In-distribution is the positive
// class, but for AUPROut. All are between 0 and 1.
type Detection struct {
	// AUROC is the probability that an OOD record scores higher than an
	// in-distribution one; ties count half.
	AUROC float64 `json:"auroc"`
	// AUPRIn and AUPROut are average precisions, with in-distribution and OOD
	// as the positive class.
	AUPRIn  float64 `json:"aupr_in"`
	AUPROut float64 `json:"aupr_out"`
	// TNRAtTPR95 is the share of OOD records rejected by the threshold that
	// accepts at least 95 % of in-distribution ones. Its complement is FPR95
	// as ODIN defines it.
	TNRAtTPR95 float64 `json:"tnr_at_tpr95"`
	// DTACC is the best mean of both acceptance rates over all thresholds.
	DTACC float64 `json:"dtacc"`
}

// Detect computes the metrics of scores of which a larger one is more out of
// distribution. Both must hold at least one score, and no NaN.
func Detect(inside, outside []float32) Detection {
	type scored struct {
		score float32
		out   bool
	}
	all := make([]scored, 0, len(inside)+len(outside))
	for _, s := range inside {
		all = append(all, scored{s, false})
	}
	for _, s := range outside {
		all = append(all, scored{s, true})
	}
	slices.SortFunc(all, func(a, b scored) int { return cmp.Compare(a.score, b.score) })

	nIn, nOut := float64(len(inside)), float64(len(outside))
	var d Detection
	d.TNRAtTPR95 = math.NaN()
	in, out := 0., 0. // accepted so far: scores up to here
	for i := 0; i < len(all); {
		tiesIn, tiesOut := 0., 0.
		j := i
		for ; j < len(all) && all[j].score == all[i].score; j++ {
			if all[j].out {
				tiesOut++
			} else {
				tiesIn++
			}
		}
		d.AUROC += tiesOut * (in + tiesIn/2)
		// Average precision sums the precision at each threshold, weighted by
		// the recall that it adds.
		d.AUPROut += tiesOut * (nOut - out) / (nOut - out + nIn - in)
		in, out, i = in+tiesIn, out+tiesOut, j
		d.AUPRIn += tiesIn * in / (in + out)
		d.DTACC = max(d.DTACC, (in/nIn+1-out/nOut)/2)
		if in >= 0.95*nIn && math.IsNaN(d.TNRAtTPR95) {
			d.TNRAtTPR95 = 1 - out/nOut
		}
	}
	d.DTACC = max(d.DTACC, .5) // the threshold that accepts none
	d.AUROC /= nIn * nOut
	d.AUPRIn /= nIn
	d.AUPROut /= nOut
	return d
}
