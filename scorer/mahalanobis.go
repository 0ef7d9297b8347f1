package scorer

import (
	"math"

	"github.com/oodmon/oodmon/model"
	"gorgonia.org/tensor"
)

// A mahalanobis detector measures the distance to the nearest class mean in the
// metric of the covariance that the classes share, less, for the relative one,
// that to the mean of all in the metric of the covariance of all.
//
// Embeddings are whitened, (x − m)·W, where m is the mean of the class means:
// then the distances are Euclidean, and little is lost by cancellation.
type mahalanobis struct {
	dim        int
	centre     []float32 // [D]
	factor     []float32 // [D, D]
	means      *logits   // the whitened class means
	background *background
}

type background struct{ mean, factor []float32 }

func newMahalanobis(m *model.Model) (*mahalanobis, error) {
	values := func(t *tensor.Dense) []float32 { return t.Data().([]float32) }
	d, c := m.Dim(), m.NumClasses()
	h := &mahalanobis{dim: d, centre: make([]float32, d), factor: values(m.PrecisionFactor)}
	p := values(m.Prototypes)
	for j := range d {
		sum := 0.
		for i := range c {
			sum += float64(p[i*d+j])
		}
		h.centre[j] = float32(sum / float64(c))
	}
	white := make([]float32, c*d)
	row := make([]float64, d)
	for i := range c {
		clear(row)
		for j := range d {
			v := float64(p[i*d+j]) - float64(h.centre[j])
			for k, w := range h.factor[j*d : (j+1)*d] {
				row[k] += v * float64(w)
			}
		}
		for k, v := range row {
			white[i*d+k] = float32(v)
		}
	}
	h.means = &logits{kind: distance, c: c, d: d, scale: 1, weights: white, inv: make([]float64, c)}
	for i := range h.means.inv {
		h.means.inv[i] = 1
	}
	if m.Detector == model.RelativeMahalanobis {
		h.background = &background{values(m.BackgroundMean), values(m.BackgroundFactor)}
	}
	return h, nil
}

func (h *mahalanobis) score(w *Workspace, x, score []float32, class []int32) {
	for first := 0; first < len(score); first += blockRows {
		rows := min(blockRows, len(score)-first)
		block := x[first*h.dim:][:rows*h.dim]
		w.stats = resize(w.stats, rows)
		h.means.stats(w, whiten(w, block, rows, h.centre, h.factor), w.stats)
		for i := range rows {
			s := &w.stats[i]
			if s.Class < 0 || !hasDirection(block[i*h.dim:(i+1)*h.dim]) {
				score[first+i], class[first+i] = float32(math.NaN()), -1
				continue
			}
			score[first+i], class[first+i] = toScore(s.Max*s.Max), s.Class
		}
		if h.background == nil {
			continue
		}
		z := whiten(w, block, rows, h.background.mean, h.background.factor)
		for i := range rows {
			if class[first+i] >= 0 {
				square := norm(z[i*h.dim : (i+1)*h.dim])
				score[first+i] = toScore(w.stats[i].Max*w.stats[i].Max - square*square)
			}
		}
	}
}

// whiten returns (x − centre)·factor. It is valid until the next use of w.
func whiten(w *Workspace, x []float32, rows int, centre, factor []float32) []float32 {
	d := len(centre)
	w.unit, w.projected = resize(w.unit, rows*d), resize(w.projected, rows*d)
	for i, v := range x {
		w.unit[i] = v - centre[i%d]
	}
	multiply(w.projected, w.unit, factor, rows, d, d, 0)
	return w.projected
}
