package trainer

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// A GateConfig holds the rules that a candidate must pass to be published. All
// figures are on held-out data that the candidate was neither fitted nor
// calibrated on.
//
// A rule is judged on the interval of its figure, not on the figure: "at least"
// holds where the lower end of the interval does, so that it is shown, not just
// not refuted. Since all rules must hold, a candidate that breaks one of them is
// published with a probability of at most 5 %.
type GateConfig struct {
	// MinAccuracy is the least accuracy of the candidate.
	MinAccuracy float64 `yaml:"min_accuracy"`
	// MinAccuracyDelta is the least of candidate minus model in service.
	MinAccuracyDelta float64 `yaml:"min_accuracy_delta"`
	// MinAUROCDelta is the same for AUROC: against retrain.data.outliers where
	// there are any, else against left-out classes.
	MinAUROCDelta float64 `yaml:"min_auroc_delta"`
	// MinRecallDelta is the least change of any class's recall, for classes
	// of both models with at least MinRecallRecords held-out records.
	MinRecallDelta   float64 `yaml:"min_recall_delta"`
	MinRecallRecords int     `yaml:"min_recall_records"`
	// AllowVanishedClasses lets a candidate lack classes of the model in service.
	AllowVanishedClasses bool `yaml:"allow_vanished_classes"`
}

// DefaultGate returns the rules of a user who chose none.
func DefaultGate() GateConfig {
	return GateConfig{MinAccuracy: .5, MinAccuracyDelta: -.01, MinAUROCDelta: -.01, MinRecallDelta: -.2, MinRecallRecords: 50}
}

// A Verdict is a rule, its figure with the interval, and whether it was kept.
type Verdict struct {
	Rule   string  `json:"rule"`
	Limit  float64 `json:"limit"`
	Figure float64 `json:"figure"`
	// Low and High are the ends of the interval: the 5th and the 95th
	// percentile of the figure over resampled held-out records. Each bounds the
	// true figure with a confidence of 95 %.
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Passed bool    `json:"passed"`
	Detail string  `json:"detail,omitempty"`
}

func (v Verdict) String() string {
	word := "passed"
	if !v.Passed {
		word = "FAILED"
	}
	text := fmt.Sprintf("%s: %.4f in [%.4f, %.4f], limit %.4f: %s", v.Rule, v.Figure, v.Low, v.High, v.Limit, word)
	if v.Detail != "" {
		text += " (" + v.Detail + ")"
	}
	return text
}

// Standing is what the gate knows of a model.
type Standing struct {
	Version  string  `json:"version"`
	Accuracy float64 `json:"accuracy"`
	// AUROC is against the outliers, or, where there are none, the mean against
	// classes that are left out in turn; nil where there is neither.
	AUROC *float64 `json:"auroc"`
	// ECE is the expected calibration error of the probabilities; nil where the
	// detector has none.
	ECE *float64 `json:"ece"`
	// FalsePositiveRate is the share of held-out records that are flagged, and
	// Recall the accuracy by class.
	FalsePositiveRate float64            `json:"false_positive_rate"`
	Recall            map[string]float64 `json:"recall"`
}

// judge applies the rules to what both models answered to the same held-out
// records. champion is nil where no model is in service. The resampling is by
// the seed.
func (g *GateConfig) judge(held *heldOut, candidate, champion *answers, alpha float64, seed uint64) []Verdict {
	figures := []figure{shareOf(candidate.right), shareOf(candidate.flagged)}
	var common []string // classes whose recall is judged
	if champion != nil {
		figures = append(figures, difference(candidate.right, champion.right))
		if candidate.rankings != nil && champion.rankings != nil {
			figures = append(figures, aurocDifference(candidate.rankings, champion.rankings))
		}
		for class, name := range held.classes {
			if held.records[class] >= g.MinRecallRecords && slices.Contains(candidate.classes, name) && slices.Contains(champion.classes, name) {
				common = append(common, name)
				figures = append(figures, recallDifference(held, class, candidate.right, champion.right))
			}
		}
	}
	estimates := bootstrap(figures, len(held.class), held.outliers, seed)
	next := func() estimate {
		e := estimates[0]
		estimates = estimates[1:]
		return e
	}

	var all []Verdict
	atLeast := func(rule string, limit float64, e estimate, detail string) {
		v := Verdict{rule, limit, e.figure, e.low, e.high, e.low >= limit, detail}
		if !v.Passed && e.figure >= limit {
			v.Detail = strings.TrimPrefix(detail+"; the figure is within the limit, its interval is not: more held-out records would tell", "; ")
		}
		all = append(all, v)
	}
	atLeast("min_accuracy", g.MinAccuracy, next(), "")
	// That the rate is at most alpha holds with the confidence of the
	// calibration; here the held-out records may refute it.
	e := next()
	all = append(all, Verdict{"calibration", alpha, e.figure, e.low, e.high, e.low <= alpha, "share of held-out records flagged; fails where its interval is above the false-positive rate"})
	if champion == nil {
		return all
	}
	atLeast("min_accuracy_delta", g.MinAccuracyDelta, next(), "")
	if candidate.rankings != nil && champion.rankings != nil {
		atLeast("min_auroc_delta", g.MinAUROCDelta, next(), "against "+held.against)
	}
	if len(common) > 0 {
		worst, at, failed := estimate{low: math.Inf(1)}, "", []string(nil)
		for _, name := range common {
			e := next()
			if e.low < g.MinRecallDelta {
				failed = append(failed, name)
			}
			if e.low < worst.low {
				worst, at = e, name
			}
		}
		detail := "class " + at
		if len(failed) > 1 {
			detail += fmt.Sprintf("; %d classes fail: %s", len(failed), strings.Join(failed, ", "))
		}
		atLeast("min_recall_delta", g.MinRecallDelta, worst, detail)
	}
	if vanished := missing(champion.classes, candidate.classes); len(vanished) > 0 {
		n := float64(len(vanished))
		all = append(all, Verdict{"allow_vanished_classes", 0, n, n, n, g.AllowVanishedClasses, strings.Join(vanished, ", ")})
	}
	return all
}

// missing returns what of all is not in some.
func missing(all, some []string) []string {
	var out []string
	for _, name := range all {
		if !slices.Contains(some, name) {
			out = append(out, name)
		}
	}
	return out
}
