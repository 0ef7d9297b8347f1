package scorer

import (
	"fmt"
	"math"

	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/model"
	"gorgonia.org/tensor"
)

// A logitKind says how the logit of a class follows from a row x and the
// weights w_c of the class; ^ is division by the norm, s the scale.
type logitKind int

const (
	innerProduct     logitKind = iota // s·(w_c·x + b_c)
	distance                          // −s·‖x − w_c‖
	unitDistance                      // −s·‖x^ − w^_c‖
	meanUnitDistance                  // −s·(‖x^ − w^_c‖ + the mean of it over the classes)
)

func (k logitKind) unit() bool { return k == unitDistance || k == meanUnitDistance }

// logitStats are what the scores of a row are made of, with L its logits.
type logitStats struct {
	Class     int32   // of the largest logit, of equals the lowest; −1: invalid
	Max       float64 // max_c L_c
	LogSumExp float64 // log Σ exp L_c
	Mean      float64 // Σ L_c / C
	Entropy   float64 // −Σ p_c·log p_c with p = softmax(L), in nats
}

// logits are the weights of a head's last layer.
type logits struct {
	kind          logitKind
	c, d          int
	scale         float64
	weights, bias []float32
	inv           []float64 // [C]: one over the norms for unit distances, else 1
}

func packLogits(m *model.Model) (*logits, error) {
	values := func(t *tensor.Dense) []float32 { return t.Data().([]float32) }
	l := &logits{c: m.NumClasses(), d: m.PrototypeDim(), scale: 1 / m.Temperature}
	switch m.Detector {
	case model.Softmax:
		l.kind, l.weights, l.bias = innerProduct, values(m.Weights), values(m.Bias)
	case model.IsoMax:
		l.kind, l.weights = distance, values(m.Prototypes)
	case model.IsoMaxPlus:
		l.kind, l.weights, l.scale = unitDistance, values(m.Prototypes), math.Abs(float64(m.DistanceScale))/m.Temperature
	case model.DisMax:
		l.kind, l.weights, l.scale = meanUnitDistance, values(m.Prototypes), math.Abs(float64(m.DistanceScale))/math.Sqrt2/m.Temperature
	}
	l.inv = make([]float64, l.c)
	for i := range l.inv {
		l.inv[i] = 1
		if l.kind.unit() {
			norm := norm(l.weights[i*l.d : (i+1)*l.d])
			if !(norm >= kernel.MinNorm) || math.IsInf(norm, 0) {
				return nil, fmt.Errorf("prototype %d has norm %g: it must be finite and at least %g", i, norm, kernel.MinNorm)
			}
			l.inv[i] = 1 / norm
		}
	}
	return l, nil
}

func norm(x []float32) float64 {
	var sum float64
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum)
}

// of fills in the logits of a row.
func (l *logits) of(row []float32, out []float64) {
	inv := 1.
	if l.kind.unit() {
		inv = 1 / norm(row)
	}
	total := 0.
	for c := range out {
		w, wInv, s := l.weights[c*l.d:(c+1)*l.d], l.inv[c], 0.
		if l.kind == innerProduct {
			for j, v := range row {
				s += float64(v) * float64(w[j])
			}
			out[c] = l.scale * (s + float64(l.bias[c]))
			continue
		}
		for j, v := range row {
			diff := float64(v)*inv - float64(w[j])*wInv
			s += diff * diff
		}
		out[c] = -l.scale * math.Sqrt(s)
		total += out[c]
	}
	if l.kind == meanUnitDistance {
		for c := range out {
			out[c] += total / float64(l.c)
		}
	}
}

// stats fills in out for the rows of x.
func (l *logits) stats(w *Workspace, x []float32, out []logitStats) {
	w.logits = resize(w.logits, l.c)
	for i := range out {
		l.of(x[i*l.d:(i+1)*l.d], w.logits)
		s := &out[i]
		*s = logitStats{Max: math.Inf(-1)}
		for c, v := range w.logits {
			if s.Mean += v / float64(l.c); v > s.Max {
				s.Max, s.Class = v, int32(c)
			}
		}
		if math.IsNaN(s.Mean) {
			s.Class = -1
			continue
		}
		var sum, moment float64
		for c, v := range w.logits {
			if e := math.Exp(v - s.Max); int32(c) != s.Class {
				sum += e
				moment += (v - s.Max) * e
			}
		}
		log := math.Log1p(sum)
		s.LogSumExp, s.Entropy = s.Max+log, log-moment/(1+sum)
	}
}
