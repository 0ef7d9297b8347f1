package scorer

import (
	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/model"
	"gorgonia.org/tensor"
)

// A mahalanobis detector measures the distance of a direction to the nearest
// class mean in the metric of the covariance that the classes share, less, for
// the relative one, that to the mean of all in the metric of the covariance of
// all.
//
// Directions are whitened, (x^ − m)·W, where m is the mean of the class means:
// then the distances are Euclidean, and little is lost by cancellation.
type mahalanobis struct {
	dim        int
	classes    whitening
	means      *kernel.Logits // the whitened class means
	background whitening      // factor nil: none
}

// A whitening is of the centre [D] and the factor [D, D].
type whitening struct{ centre, factor []float32 }

func newMahalanobis(m *model.Model) (*mahalanobis, error) {
	values := func(t *tensor.Dense) []float32 { return t.Data().([]float32) }
	d, c, p := m.Dim(), m.NumClasses(), values(m.Prototypes)
	h := &mahalanobis{dim: d, classes: whitening{make([]float32, d), values(m.PrecisionFactor)}}
	for j := range d {
		sum := 0.
		for i := range c {
			sum += float64(p[i*d+j])
		}
		h.classes.centre[j] = float32(sum / float64(c))
	}
	white, row := make([]float32, c*d), make([]float64, d)
	for i := range c {
		clear(row)
		for j := range d {
			v := float64(p[i*d+j]) - float64(h.classes.centre[j])
			for k, w := range h.classes.factor[j*d : (j+1)*d] {
				row[k] += v * float64(w)
			}
		}
		for k, v := range row {
			white[i*d+k] = float32(v)
		}
	}
	var err error
	if h.means, err = kernel.PackLogits(kernel.Distance, white, nil, c, d, 1); err != nil {
		return nil, err
	}
	if m.Detector == model.RelativeMahalanobis {
		h.background = whitening{values(m.BackgroundMean), values(m.BackgroundFactor)}
	}
	return h, nil
}

func (h *mahalanobis) score(w *Workspace, x, score []float32, class []int32) {
	for first := 0; first < len(score); first += blockRows {
		rows := min(blockRows, len(score)-first)
		w.unit = resize(w.unit, rows*h.dim)
		for i := range rows {
			toUnit(w.unit[i*h.dim:][:h.dim], x[(first+i)*h.dim:][:h.dim])
		}
		w.stats = resize(w.stats, rows)
		h.means.Stats(&w.kernel, h.classes.apply(w, rows), w.stats)
		for i := range rows {
			s := &w.stats[i]
			score[first+i], class[first+i] = toScore(s.Max*s.Max), s.Class
		}
		if h.background.factor == nil {
			continue
		}
		white := h.background.apply(w, rows)
		for i := range rows {
			if class[first+i] >= 0 {
				length := norm(white[i*h.dim : (i+1)*h.dim])
				score[first+i] = toScore(w.stats[i].Max*w.stats[i].Max - length*length)
			}
		}
	}
}

// apply whitens the rows of w.unit. A row of NaN stays one. What it returns is
// valid until the next use of w.
func (t *whitening) apply(w *Workspace, rows int) []float32 {
	d := len(t.centre)
	w.centred, w.projected = resize(w.centred, rows*d), resize(w.projected, rows*d)
	for i := range rows {
		unit, centred := w.unit[i*d:(i+1)*d], w.centred[i*d:(i+1)*d]
		for j, v := range t.centre {
			centred[j] = unit[j] - v
		}
	}
	kernel.Multiply(&w.kernel, kernel.RowMajor(w.projected, rows, d), kernel.RowMajor(w.centred, rows, d), kernel.RowMajor(t.factor, d, d), false)
	return w.projected
}
