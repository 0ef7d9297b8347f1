package trainer

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/oodmon/oodmon/model"
)

// A GateConfig holds the rules that a candidate must pass to be published. All
// figures are on held-out data that neither model was fitted or calibrated on.
type GateConfig struct {
	// MinAccuracy is the least accuracy of the candidate.
	MinAccuracy float64 `yaml:"min_accuracy"`
	// MinAccuracyDelta is the least of candidate minus model in service.
	MinAccuracyDelta float64 `yaml:"min_accuracy_delta"`
	// MinAUROCDelta is the same for AUROC against retrain.data.outliers, where
	// there are any.
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

// A Verdict is a rule, its figure, and whether it was kept.
type Verdict struct {
	Rule   string  `json:"rule"`
	Limit  float64 `json:"limit"`
	Figure float64 `json:"figure"`
	Passed bool    `json:"passed"`
	Detail string  `json:"detail,omitempty"`
}

func (v Verdict) String() string {
	word := "passed"
	if !v.Passed {
		word = "FAILED"
	}
	text := fmt.Sprintf("%s: %.4f, limit %.4f: %s", v.Rule, v.Figure, v.Limit, word)
	if v.Detail != "" {
		text += " (" + v.Detail + ")"
	}
	return text
}

// Standing is what the gate knows of a model.
type Standing struct {
	Version  string   `json:"version"`
	Accuracy float64  `json:"accuracy"`
	AUROC    *float64 `json:"auroc"` // nil without outliers
	// FalsePositiveRate is the share of held-out records that are flagged, and
	// Recall the accuracy by class.
	FalsePositiveRate float64            `json:"false_positive_rate"`
	Recall            map[string]float64 `json:"recall"`

	held    int
	classes []string
	records map[string]int
}

func stand(m *model.Model, threshold float32, held scoredRows, outliers *scoredRows) *Standing {
	s := &Standing{Version: m.Version, Recall: make(map[string]float64), held: len(held.scores), classes: m.Classes, records: make(map[string]int)}
	s.Accuracy, _ = held.accuracy(m.Classes)
	s.FalsePositiveRate = flagged(held.scores, threshold)
	for i, label := range held.labels {
		s.records[label]++
		if m.Classes[held.classes[i]] == label {
			s.Recall[label]++
		}
	}
	for label, n := range s.records {
		s.Recall[label] /= float64(n)
	}
	if outliers != nil {
		auroc := Detect(held.scores, outliers.scores).AUROC
		s.AUROC = &auroc
	}
	return s
}

// judge applies the rules. champion is nil where no model is in service.
func (g *GateConfig) judge(candidate, champion *Standing, alpha float64) []Verdict {
	var all []Verdict
	atLeast := func(rule string, limit, figure float64, detail string) {
		all = append(all, Verdict{rule, limit, figure, figure >= limit, detail})
	}
	atLeast("min_accuracy", g.MinAccuracy, candidate.Accuracy, "")
	// The calibrated rate, within what so many held-out records can tell: the
	// rate itself is at most alpha with the confidence of the calibration.
	limit := alpha + 3*math.Sqrt(alpha*(1-alpha)/float64(candidate.held))
	all = append(all, Verdict{"calibration", limit, candidate.FalsePositiveRate, candidate.FalsePositiveRate <= limit,
		"share of held-out records flagged, at most alpha and three standard errors"})
	if champion == nil {
		return all
	}
	atLeast("min_accuracy_delta", g.MinAccuracyDelta, candidate.Accuracy-champion.Accuracy, "")
	if candidate.AUROC != nil && champion.AUROC != nil {
		atLeast("min_auroc_delta", g.MinAUROCDelta, *candidate.AUROC-*champion.AUROC, "")
	}
	worst, class := math.Inf(1), ""
	for _, name := range candidate.classes {
		if slices.Contains(champion.classes, name) && candidate.records[name] >= g.MinRecallRecords {
			if delta := candidate.Recall[name] - champion.Recall[name]; delta < worst {
				worst, class = delta, name
			}
		}
	}
	if class != "" {
		atLeast("min_recall_delta", g.MinRecallDelta, worst, "class "+class)
	}
	if vanished := missing(champion.classes, candidate.classes); len(vanished) > 0 {
		all = append(all, Verdict{"allow_vanished_classes", 0, float64(len(vanished)), g.AllowVanishedClasses, strings.Join(vanished, ", ")})
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
