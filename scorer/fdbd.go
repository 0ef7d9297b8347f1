package scorer

import (
	"fmt"
	"math"

	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/model"
	"gorgonia.org/tensor"
)

// maxBoundaries is how many classes fdbd takes: it keeps a value for each pair of
// them.
const maxBoundaries = 4096

// An fdbd detector measures how far a direction is from the boundaries between
// its class and the others, of the classifier by the nearest class mean: with k
// the class of x^, and m the mean of all,
//
//	−mean_{c≠k} d_c / ‖x^ − m‖, d_c = (‖x^ − p_c‖² − ‖x^ − p_k‖²) / (2·‖p_k − p_c‖)
//
// after Liu and Qin, "Fast Decision Boundary based Out-of-Distribution Detector"
// (ICML 2024), whose classifier is the last layer of the network.
//
// ‖x^ − p_c‖² is ‖x^‖² − 2·(x^·p_c − ‖p_c‖²/2). All is taken less m, which moves
// no boundary and loses less by cancellation.
type fdbd struct {
	dim, c  int
	mean    []float32 // [D]
	means   []float32 // [C, D], less the mean
	bias    []float32 // [C], −‖p_c‖²/2
	inverse []float32 // [C, C], 1/((C−1)·‖p_k − p_c‖), 0 for k = c
}

func newFDBD(m *model.Model) (*fdbd, error) {
	values := func(t *tensor.Dense) []float32 { return t.Data().([]float32) }
	d, c, p := m.Dim(), m.NumClasses(), values(m.Prototypes)
	if c < 2 || c > maxBoundaries {
		return nil, fmt.Errorf("detector %s needs between 2 and %d classes, model %s has %d", model.FDBD, maxBoundaries, m.Version, c)
	}
	f := &fdbd{dim: d, c: c, mean: values(m.BackgroundMean), means: make([]float32, c*d), bias: make([]float32, c), inverse: make([]float32, c*c)}
	for k := range c {
		for j, v := range f.mean {
			f.means[k*d+j] = p[k*d+j] - v
		}
		length := norm(f.means[k*d : (k+1)*d])
		f.bias[k] = float32(-length * length / 2)
		for o := range k {
			sum := 0.
			for j, v := range p[k*d : (k+1)*d] {
				diff := float64(v) - float64(p[o*d+j])
				sum += diff * diff
			}
			v := float32(1 / (float64(c-1) * math.Sqrt(sum)))
			if math.IsInf(float64(v), 0) {
				return nil, fmt.Errorf("the means of classes %q and %q are equal: there is no boundary between them", m.Classes[o], m.Classes[k])
			}
			f.inverse[k*c+o], f.inverse[o*c+k] = v, v
		}
	}
	return f, nil
}

func (f *fdbd) score(w *Workspace, x, score []float32, class []int32) {
	d, c := f.dim, f.c
	for first := 0; first < len(score); first += blockRows {
		rows := min(blockRows, len(score)-first)
		w.centred, w.projected = resize(w.centred, rows*d), resize(w.projected, rows*c)
		for i := range rows {
			centred := w.centred[i*d:][:d]
			toUnit(centred, x[(first+i)*d:][:d])
			for j, v := range f.mean {
				centred[j] -= v
			}
		}
		kernel.Multiply(&w.kernel, kernel.RowMajor(w.projected, rows, c), kernel.RowMajor(w.centred, rows, d), kernel.RowMajor(f.means, c, d).T(), false)
		for i := range rows {
			logits, best := w.projected[i*c:][:c], 0
			for k, v := range f.bias {
				if logits[k] += v; logits[k] > logits[best] {
					best = k
				}
			}
			if logits[best] != logits[best] {
				score[first+i], class[first+i] = float32(math.NaN()), -1
				continue
			}
			sum, own := float32(0), logits[best]
			for k, v := range f.inverse[best*c:][:c] {
				sum += (own - logits[k]) * v
			}
			// A record at the mean of all has no direction from it: as far from all
			// boundaries as can be said, which is not at all.
			length := max(norm(w.centred[i*d:][:d]), kernel.MinNorm)
			score[first+i], class[first+i] = toScore(-float64(sum)/length), int32(best)
		}
	}
}
