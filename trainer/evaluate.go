package trainer

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
)

// An Evaluation compares a model with the truth. All shares are between 0 and
// 1; in-distribution is the positive class.
type Evaluation struct {
	Model    string `json:"model"` // its version
	Detector string `json:"detector"`
	Score    string `json:"score"`
	// Accuracy is the share of labelled in-distribution records whose class is
	// that of their label; nil if none has a label. A label that the model does
	// not know counts as wrong: UnknownLabels says how many records have such.
	Accuracy      *float64 `json:"accuracy"`
	UnknownLabels int      `json:"unknown_labels"`
	// ECE is the expected calibration error in 15 bins of equal width of the
	// largest probability (Guo et al., "On Calibration of Modern Neural
	// Networks"), NLL the mean negative log-likelihood in nats, over the labelled
	// records whose label the model knows; nil where the detector has no
	// probabilities, or no record such a label.
	ECE *float64 `json:"ece"`
	NLL *float64 `json:"nll"`
	Detection
	// FalsePositiveRate is the share of in-distribution records flagged at the
	// model's threshold, DetectionRate that of OOD records.
	FalsePositiveRate float64 `json:"false_positive_rate"`
	DetectionRate     float64 `json:"detection_rate"`
	// Inside and Outside count the records scored; those without a direction
	// were left out.
	Inside          int `json:"in_distribution_records"`
	Outside         int `json:"ood_records"`
	WithoutScore    int `json:"records_without_direction"`
	FittedOnRecords int `json:"fitted_on_records,omitempty"` // where it was fitted for the comparison

	Details *Details `json:"-"`
}

// Details are what a report shows beside the figures.
type Details struct {
	Model *model.Model
	// Threshold is the Rank-th largest calibration score.
	Threshold       float64
	Rank            int
	Inside, Outside Scored
	Reliability     []ReliabilityBin // of the largest probability; nil where there is none
	// Samples are rows for a map, InsideSamples before the OOD ones, in the space
	// in which the detector compares, [.., K].
	Samples       []float32
	InsideSamples []Sample
	// Directions: they, and what they are compared with, are of unit norm.
	Directions bool
}

// Scored are the answers of a model for the records that have a score.
type Scored struct {
	Scores []float32
	Class  []int32
	Label  []string // "" where there is none
}

// A Sample is an in-distribution record of a map.
type Sample struct {
	Label string
	Class int32
}

// A ReliabilityBin sums the records whose largest probability is in a bin.
type ReliabilityBin struct {
	Records    int
	Confidence float64 // mean
	Accuracy   float64
}

// mapSamples is how many records of either kind a map shows.
const mapSamples = 1500

// Evaluate scores in-distribution and OOD records by m.
func Evaluate(ctx context.Context, m *model.Model, inside, outside Source) (*Evaluation, error) {
	s, err := scorer.New(m)
	if err != nil {
		return nil, err
	}
	in, inSample, err := scoreSampled(ctx, m, inside.vectors())
	if err != nil {
		return nil, fmt.Errorf("in-distribution records: %w", err)
	}
	out, outSample, err := scoreSampled(ctx, m, outside.vectors())
	if err != nil {
		return nil, fmt.Errorf("OOD records: %w", err)
	}
	e := &Evaluation{Model: m.Version, Detector: m.Detector, Score: m.Score, Detection: Detect(in.scores, out.scores),
		Inside: len(in.scores), Outside: len(out.scores), WithoutScore: in.noDirection + out.noDirection}
	e.FalsePositiveRate = flagged(in.scores, s.Threshold())
	e.DetectionRate = flagged(out.scores, s.Threshold())
	accuracy, labelled := in.accuracy(m.Classes)
	if labelled > 0 {
		e.Accuracy = &accuracy
	}
	known := make(map[string]bool, m.NumClasses())
	for _, name := range m.Classes {
		known[name] = true
	}
	for _, label := range in.labels {
		if label != "" && !known[label] {
			e.UnknownLabels++
		}
	}
	if labelled > 0 && e.UnknownLabels == labelled {
		return nil, fmt.Errorf("in-distribution records: none of the labels of %d records is a class of model %s: the first label is %q, the first class %q", labelled, m.Version, firstLabel(in.labels), m.Classes[0])
	}
	d := &Details{Model: m, Inside: Scored{in.scores, in.classes, in.labels}, Outside: Scored{out.scores, out.classes, out.labels}}
	if e.Details = d; model.HasLogits(m.Detector) {
		l, err := likelihoodOf(ctx, m, inside.vectors())
		if err != nil {
			return nil, fmt.Errorf("in-distribution records: %w", err)
		}
		if l.records > 0 {
			ece := l.ece()
			e.ECE, e.NLL = &ece, &l.nll
			d.Reliability = l.reliability()
		}
	}
	threshold, rank, err := m.Calibration.Threshold(m.Alpha, m.Delta)
	if err != nil {
		return nil, err
	}
	d.Threshold, d.Rank = float64(threshold), rank
	for _, at := range inSample.rows {
		d.InsideSamples = append(d.InsideSamples, Sample{in.labels[at], in.classes[at]})
	}
	d.Samples, d.Directions, err = scorer.Project(m, append(inSample.x, outSample.x...))
	return e, err
}

func firstLabel(labels []string) string {
	for _, l := range labels {
		if l != "" {
			return l
		}
	}
	return ""
}

// A sample is records of a source that have a score, at random.
type sample struct {
	x    []float32
	rows []int // of the scored rows
}

// scoreSampled scores, and keeps some of the embeddings.
func scoreSampled(ctx context.Context, m *model.Model, src vectors) (scoredRows, sample, error) {
	var kept sample
	random := rand.New(rand.NewPCG(1, 5))
	row := 0
	unit := make([]float32, m.Dim())
	rows, err := score(ctx, m, func(ctx context.Context, fn func(string, []float32, int, func(int) string) error) error {
		return src(ctx, func(name string, x []float32, dim int, label func(int) string) error {
			for i := range len(x) / max(1, dim) {
				v := x[i*dim : (i+1)*dim]
				if dim != len(unit) {
					break // score says so
				}
				if _, ok := normalise(unit, v); !ok {
					continue
				}
				if at := row; at < mapSamples {
					kept.x, kept.rows = append(kept.x, v...), append(kept.rows, row)
				} else if at = random.IntN(row + 1); at < mapSamples {
					copy(kept.x[at*dim:], v)
					kept.rows[at] = row
				}
				row++
			}
			return fn(name, x, dim, label)
		})
	})
	if err == nil && row != len(rows.scores) {
		// A transform sent a row to zero: the numbers do not fit each other.
		kept = sample{}
	}
	return rows, kept, err
}

// likelihoodOf compares the probabilities of a head with the labels that it
// knows.
func likelihoodOf(ctx context.Context, m *model.Model, src vectors) (*likelihood, error) {
	l, c := new(likelihood), m.NumClasses()
	index := make(map[string]int, c)
	for k, name := range m.Classes {
		index[name] = k
	}
	narrow := make([]float32, c)
	err := src(ctx, func(name string, x []float32, dim int, label func(i int) string) error {
		logits, err := scorer.Logits(m, x)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for i := range len(x) / dim {
			class, ok := index[label(i)]
			if !ok || logits[i*c] != logits[i*c] {
				continue
			}
			for k, v := range logits[i*c : (i+1)*c] {
				narrow[k] = float32(v)
			}
			l.add(narrow, class, 1)
		}
		return nil
	})
	l.nll /= float64(max(1, l.records))
	return l, err
}

func (l *likelihood) reliability() []ReliabilityBin {
	all := make([]ReliabilityBin, len(l.bins))
	for i, b := range l.bins {
		if n := float64(b.records); n > 0 {
			all[i] = ReliabilityBin{b.records, b.confidence / n, b.right / n}
		}
	}
	return all
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

// A Choice is a detector with one of its scores.
type Choice struct{ Detector, Score string }

// Compare fits each choice by the other options, and evaluates it. Scores of one
// detector that follow each other share its fit where opts has a source of its
// own for the calibration. progress, if not nil, is called with the share that
// is done.
func Compare(ctx context.Context, opts Options, choices []Choice, inside, outside Source, progress func(share float64)) ([]*Evaluation, error) {
	var all []*Evaluation
	var m *model.Model
	var report *Report
	for i, choice := range choices {
		one := opts
		one.Recipe.Detector, one.Recipe.Score = choice.Detector, choice.Score
		name := choice.Detector
		one.Progress = func(share float64) {
			if progress != nil {
				progress((float64(i) + share) / float64(len(choices)))
			}
		}
		var err error
		if m != nil && m.Detector == choice.Detector && opts.Calibration != nil {
			again := *m
			again.Score = choice.Score
			if _, err = Calibrate(ctx, &again, opts.Calibration); err == nil {
				_, err = again.Encode()
			}
			m = &again
		} else {
			m, report, err = Train(ctx, one)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		e, err := Evaluate(ctx, m, inside, outside)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		e.FittedOnRecords = report.Fitted
		all = append(all, e)
	}
	return all, nil
}
