package scorer

import (
	"fmt"
	"math"

	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/model"
	"gorgonia.org/tensor"
)

// A logitHead computes the scores that need all logits of a head.
type logitHead struct {
	transform
	logits    *kernel.Logits
	direction bool // only the direction of a row counts
	of        func(s *kernel.LogitStats) float64
}

func newLogitHead(m *model.Model) (*logitHead, error) {
	of, ok := scoresOfLogits[m.Score]
	if !ok {
		return nil, fmt.Errorf("score %q is unknown", m.Score)
	}
	l := layerOf(m)
	logits, err := kernel.PackLogits(l.kind, l.weights, l.bias, m.NumClasses(), m.PrototypeDim(), l.scale)
	if err != nil {
		return nil, err
	}
	t, err := newTransform(m)
	if err != nil {
		return nil, err
	}
	return &logitHead{t, logits, l.direction(), of}, nil
}

// A layer is what makes the logits of a head.
type layer struct {
	kind          kernel.LogitKind
	scale         float64
	weights, bias []float32
}

func (l *layer) direction() bool {
	return l.kind == kernel.UnitDistance || l.kind == kernel.MeanUnitDistance
}

func layerOf(m *model.Model) layer {
	values := func(t *tensor.Dense) []float32 { return t.Data().([]float32) }
	switch scale := math.Abs(float64(m.DistanceScale)) / m.Temperature; m.Detector {
	case model.Softmax:
		return layer{kernel.InnerProduct, 1 / m.Temperature, values(m.Weights), values(m.Bias)}
	case model.IsoMax:
		return layer{kernel.Distance, 1 / m.Temperature, values(m.Prototypes), nil}
	case model.DisMax:
		return layer{kernel.MeanUnitDistance, scale / math.Sqrt2, values(m.Prototypes), nil}
	default:
		return layer{kernel.UnitDistance, scale, values(m.Prototypes), nil}
	}
}

// scoresOfLogits are the scores, larger being more out of distribution.
var scoresOfLogits = map[string]func(s *kernel.LogitStats) float64{
	model.MDS:      func(s *kernel.LogitStats) float64 { return -s.Max },
	model.MaxLogit: func(s *kernel.LogitStats) float64 { return -s.Max },
	model.MPS:      func(s *kernel.LogitStats) float64 { return -math.Exp(s.Max - s.LogSumExp) },
	model.ES:       func(s *kernel.LogitStats) float64 { return s.Entropy },
	model.MMLS:     func(s *kernel.LogitStats) float64 { return -(s.Max + s.Mean) },
	model.MMLES:    func(s *kernel.LogitStats) float64 { return -(s.Max + s.Mean - s.Entropy) },
	model.Energy:   func(s *kernel.LogitStats) float64 { return -s.LogSumExp },
}

func (h *logitHead) score(w *Workspace, x, score []float32, class []int32) {
	for first := 0; first < len(score); first += blockRows {
		rows := min(blockRows, len(score)-first)
		block := x[first*h.dim:][:rows*h.dim]
		w.stats = resize(w.stats, rows)
		h.logits.Stats(&w.kernel, h.apply(w, block, rows, h.direction), w.stats)
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
	l, d, c, k := layerOf(m), m.Dim(), m.NumClasses(), m.PrototypeDim()
	inverse := make([]float64, c) // of the norms of the weights
	for i := range inverse {
		inverse[i] = 1
		if l.direction() {
			inverse[i] = 1 / norm(l.weights[i*k:(i+1)*k])
		}
	}
	t, err := newTransform(m)
	if err != nil {
		return nil, fmt.Errorf("logits: %w", err)
	}
	out := make([]float64, len(x)/d*c)
	var w Workspace
	for i := range len(x) / d {
		row, logits := x[i*d:(i+1)*d], out[i*c:(i+1)*c]
		if !hasDirection(row) {
			for j := range logits {
				logits[j] = math.NaN()
			}
			continue
		}
		y, inv, total := t.apply(&w, row, 1, l.direction()), 1., 0.
		if l.direction() {
			inv = 1 / norm(y)
		}
		for j := range logits {
			weights, s := l.weights[j*k:(j+1)*k], 0.
			if l.kind == kernel.InnerProduct {
				for a, v := range y {
					s += float64(v) * float64(weights[a])
				}
				logits[j] = l.scale * (s + float64(l.bias[j]))
				continue
			}
			for a, v := range y {
				diff := float64(v)*inv - float64(weights[a])*inverse[j]
				s += diff * diff
			}
			logits[j] = -l.scale * math.Sqrt(s)
			total += logits[j]
		}
		if l.kind == kernel.MeanUnitDistance {
			for j := range logits {
				logits[j] += total / float64(c)
			}
		}
	}
	return out, nil
}

// Project returns what m compares with its prototypes, means or weights for each
// row of x, [n, D]: [n, K], behind the transform; and whether they are directions,
// where only those count. Rows without a direction have NaN. It is for maps.
func Project(m *model.Model, x []float32) (y []float32, direction bool, err error) {
	t, err := newTransform(m)
	if err != nil {
		return nil, false, fmt.Errorf("project: %w", err)
	}
	d := m.Dim()
	out := make([]float32, 0, len(x)/d*t.k)
	direction = m.Detector != model.Softmax && m.Detector != model.IsoMax
	unit := make([]float32, t.k)
	var w Workspace
	for i := range len(x) / d {
		y := t.apply(&w, x[i*d:(i+1)*d], 1, direction)
		if direction {
			toUnit(unit, y)
			y = unit
		}
		out = append(out, y...)
	}
	return out, direction, nil
}

func norm(x []float32) float64 {
	var sum float64
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum)
}
