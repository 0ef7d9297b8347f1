package trainer

import (
	"context"
	"fmt"

	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
)

// An Evaluation compares a model with the truth. All shares are between 0 and
// 1; in-distribution is the positive class.
type Evaluation struct {
	// Accuracy is the share of labelled in-distribution records whose nearest
	// prototype is that of their label; nil if none has a label.
	Accuracy *float64 `json:"accuracy"`
	Detection
	// FalsePositiveRate is the share of in-distribution records flagged at the
	// model's threshold, DetectionRate that of OOD records.
	FalsePositiveRate float64 `json:"false_positive_rate"`
	DetectionRate     float64 `json:"detection_rate"`
}

// Evaluate scores in-distribution and OOD records by m.
func Evaluate(ctx context.Context, m *model.Model, inside, outside Source) (*Evaluation, error) {
	s, err := scorer.New(m)
	if err != nil {
		return nil, err
	}
	in, err := score(ctx, m, inside.vectors())
	if err != nil {
		return nil, fmt.Errorf("in-distribution records: %w", err)
	}
	out, err := score(ctx, m, outside.vectors())
	if err != nil {
		return nil, fmt.Errorf("OOD records: %w", err)
	}
	e := &Evaluation{Detection: Detect(in.scores, out.scores)}
	e.FalsePositiveRate = flagged(in.scores, s.Threshold())
	e.DetectionRate = flagged(out.scores, s.Threshold())
	if accuracy, labelled := in.accuracy(m.Classes); labelled > 0 {
		e.Accuracy = &accuracy
	}
	return e, nil
}

func flagged(scores []float32, threshold float32) float64 {
	n := 0
	for _, s := range scores {
		if s > threshold {
			n++
		}
	}
	return float64(n) / float64(len(scores))
}

// accuracy is over the labelled rows. A label that the model does not know
// counts as wrong.
func (s *scoredRows) accuracy(classes []string) (accuracy float64, labelled int) {
	right := 0
	for i, label := range s.labels {
		if label == "" {
			continue
		}
		if labelled++; classes[s.classes[i]] == label {
			right++
		}
	}
	return float64(right) / float64(max(1, labelled)), labelled
}
