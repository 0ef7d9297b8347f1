package scorer

import (
	"fmt"
	"math"

	"github.com/oodmon/oodmon/model"
)

// A logitHead computes the scores that need all logits of a head.
type logitHead struct {
	transform
	logits    *logits
	direction bool // only the direction of a row counts
	of        func(s *logitStats) float64
}

func newLogitHead(m *model.Model) (*logitHead, error) {
	l, err := packLogits(m)
	if err != nil {
		return nil, err
	}
	of, ok := scoresOfLogits[m.Score]
	if !ok {
		return nil, fmt.Errorf("score %q is unknown", m.Score)
	}
	return &logitHead{newTransform(m), l, l.kind.unit(), of}, nil
}

// scoresOfLogits are the scores, larger being more out of distribution.
var scoresOfLogits = map[string]func(s *logitStats) float64{
	model.MDS:      func(s *logitStats) float64 { return -s.Max },
	model.MaxLogit: func(s *logitStats) float64 { return -s.Max },
	model.MPS:      func(s *logitStats) float64 { return -math.Exp(s.Max - s.LogSumExp) },
	model.ES:       func(s *logitStats) float64 { return s.Entropy },
	model.MMLS:     func(s *logitStats) float64 { return -(s.Max + s.Mean) },
	model.MMLES:    func(s *logitStats) float64 { return -(s.Max + s.Mean - s.Entropy) },
	model.Energy:   func(s *logitStats) float64 { return -s.LogSumExp },
}

func (h *logitHead) score(w *Workspace, x, score []float32, class []int32) {
	for first := 0; first < len(score); first += blockRows {
		rows := min(blockRows, len(score)-first)
		block := x[first*h.dim:][:rows*h.dim]
		w.stats = resize(w.stats, rows)
		h.logits.stats(w, h.apply(w, block, rows, h.direction), w.stats)
		for i := range rows {
			s := &w.stats[i]
			if s.Class < 0 || !hasDirection(block[i*h.dim:(i+1)*h.dim]) {
				score[first+i], class[first+i] = float32(math.NaN()), -1
				continue
			}
			score[first+i], class[first+i] = toScore(h.of(s)), s.Class
		}
	}
}

// Logits returns the logits of a head, [n, C] row-major, for each row of x,
// [n, D], in float64: what probabilities are made of. Rows without a direction
// have NaN. It is for evaluation, not for the stream.
func Logits(m *model.Model, x []float32) ([]float64, error) {
	if !model.HasLogits(m.Detector) {
		return nil, fmt.Errorf("logits: detector %s has none", m.Detector)
	}
	if len(x)%m.Dim() != 0 {
		return nil, fmt.Errorf("logits: %d values are not rows of dimension %d", len(x), m.Dim())
	}
	l, err := packLogits(m)
	if err != nil {
		return nil, fmt.Errorf("logits: %w", err)
	}
	t, n, d := newTransform(m), len(x)/m.Dim(), m.Dim()
	out := make([]float64, n*l.c)
	var w Workspace
	for i := range n {
		row := x[i*d : (i+1)*d]
		if !hasDirection(row) {
			for c := range l.c {
				out[i*l.c+c] = math.NaN()
			}
			continue
		}
		l.of(t.apply(&w, row, 1, l.kind.unit()), out[i*l.c:(i+1)*l.c])
	}
	return out, nil
}
