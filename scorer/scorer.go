package scorer

import (
	"fmt"
	"math"
	"slices"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/internal/rank"
	"github.com/oodmon/oodmon/model"
)

// A Scorer scores by one model. It is immutable and may be shared.
type Scorer struct {
	model     *model.Model
	detector  detector
	threshold float32
	category  []int      // of each class, an index of decisions; nil: all are of one
	decisions []decision // of each category
}

// A decision is what the calibration of a category says of a score.
type decision struct {
	calibration rank.Index
	records     int
	threshold   float32
}

func newDecision(c model.Calibration, threshold float32) decision {
	return decision{rank.New(c.Scores), len(c.Scores), threshold}
}

// pValue returns what model.Calibration.PValue does, sooner.
func (d *decision) pValue(score float32) float32 {
	return float32(float64(1+d.records-d.calibration.Below(score)) / float64(d.records+1))
}

// New prepares a model for scoring. A calibration set too small for the
// model's alpha and delta is an error.
func New(m *model.Model) (*Scorer, error) {
	d, err := newDetector(m)
	if err != nil {
		return nil, fmt.Errorf("prepare scorer: %w", err)
	}
	threshold, _, err := m.Calibration.Threshold(m.Alpha, m.Delta)
	if err != nil {
		return nil, fmt.Errorf("prepare scorer: %w", err)
	}
	return &Scorer{model: m, detector: d, threshold: threshold, decisions: []decision{newDecision(m.Calibration, threshold)}}, nil
}

// NewPerClass prepares a model for scoring with a threshold, and p-values, for
// each predicted class that has enough calibration records, and one for the rest.
func NewPerClass(m *model.Model) (*Scorer, error) {
	s, err := New(m)
	if err != nil {
		return nil, err
	}
	by, err := m.Calibration.Mondrian(m.NumClasses(), m.Alpha, m.Delta)
	if err != nil {
		return nil, fmt.Errorf("prepare scorer: thresholds by class: %w", err)
	}
	s.category, s.decisions = by.Category, nil
	for i, c := range by.Calibration {
		s.decisions = append(s.decisions, newDecision(c, by.Threshold[i]))
	}
	return s, nil
}

// Model returns the model that the scorer was made from.
func (s *Scorer) Model() *model.Model { return s.model }

// Threshold returns the score above which a record is out of distribution; where
// each class has its own, the one that would be for all.
func (s *Scorer) Threshold() float32 { return s.threshold }

// CalibrationRecords returns how many records a p-value is ranked among; where
// each class has its own, the fewest.
func (s *Scorer) CalibrationRecords() int {
	n := math.MaxInt
	for _, d := range s.decisions {
		n = min(n, d.records)
	}
	return n
}

// Pooled says of a scorer by class how many classes have too few calibration
// records for a threshold of their own; "" where none has.
func (s *Scorer) Pooled() string {
	classes := make([]int, len(s.decisions)) // of each category
	for _, category := range s.category {
		classes[category]++
	}
	apart, pooled := 0, 0
	for _, n := range classes {
		if n == 1 {
			apart++
		} else {
			pooled += n
		}
	}
	if pooled == 0 {
		return ""
	}
	return fmt.Sprintf("per class: %d of %d classes have a threshold of their own, which takes %d calibration records each; the others share one",
		apart, apart+pooled, model.MinCalibration(s.model.Alpha, s.model.Delta))
}

// Scores are the answers for n records. Its slices are reused by the next call
// that is given it.
type Scores struct {
	// Score is the score that the model names: larger is more out of
	// distribution. It is NaN where Class is −1.
	Score []float32
	// PValue is how often an in-distribution record scores at least as high.
	PValue []float32
	// OOD is whether Score is above the threshold.
	OOD []bool
	// Class is the class of the largest logit, or that of the nearest
	// prototype, mean or embedding of the bank, or −1: the record has no direction,
	// since it is not finite or its norm is under 1e-12. Such a record has no
	// score and is never OOD.
	Class []int32
}

func (s *Scores) resize(n int) {
	s.Score = slices.Grow(s.Score[:0], n)[:n]
	s.PValue = slices.Grow(s.PValue[:0], n)[:n]
	s.OOD = slices.Grow(s.OOD[:0], n)[:n]
	s.Class = slices.Grow(s.Class[:0], n)[:n]
}

// A Workspace is the scratch of one caller. Its zero value is ready.
type Workspace struct {
	kernel          kernel.Workspace
	unit, projected []float32
	centred         []float32
	stats           []kernel.LogitStats
}

// Score fills out with the answers for every row of rec. It allocates nothing
// once w and out have grown.
func (s *Scorer) Score(w *Workspace, rec arrow.Record, out *Scores) error {
	x, dim, err := featurizer.Embeddings(rec)
	if err != nil {
		return fmt.Errorf("score: %w", err)
	}
	if expected := s.model.Dim(); dim != expected {
		return fmt.Errorf("score: the embeddings have dimension %d, model %s expects %d", dim, s.model.Version, expected)
	}
	out.resize(int(rec.NumRows()))
	s.detector.score(w, x, out.Score, out.Class)
	for i, score := range out.Score {
		if out.Class[i] < 0 {
			out.PValue[i], out.OOD[i] = float32(math.NaN()), false
			continue
		}
		d := &s.decisions[0]
		if s.category != nil {
			d = &s.decisions[s.category[out.Class[i]]]
		}
		out.PValue[i] = d.pValue(score)
		out.OOD[i] = score > d.threshold
	}
	return nil
}

// Distances returns, for each row of x, [n, D] row-major, the score and the
// class as Score would: what a calibration is made of. The model needs no
// calibration yet.
func Distances(m *model.Model, x []float32) (score []float32, class []int32, err error) {
	d, err := newDetector(m)
	if err != nil {
		return nil, nil, fmt.Errorf("score: %w", err)
	}
	if len(x)%m.Dim() != 0 {
		return nil, nil, fmt.Errorf("score: %d values are not rows of dimension %d", len(x), m.Dim())
	}
	n := len(x) / m.Dim()
	score, class = make([]float32, n), make([]int32, n)
	d.score(new(Workspace), x, score, class)
	return score, class, nil
}
