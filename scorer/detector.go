package scorer

import (
	"fmt"
	"math"

	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/oodmon/oodmon/model"
)

// A detector fills in the score and the class of each row of x, [n, dim]
// row-major. A row without a direction (not finite, or of a norm under 1e-12)
// has the score NaN and the class −1, whatever the detector.
type detector interface {
	score(w *Workspace, x, score []float32, class []int32)
}

// newDetector returns what scores by m.
func newDetector(m *model.Model) (detector, error) {
	switch m.Detector {
	case model.IsoMaxPlus, model.ClassMeans:
		if m.Score == model.MDS || m.Score == model.MaxLogit {
			return newHead(m)
		}
		return newLogitHead(m)
	case model.IsoMax, model.DisMax, model.Softmax:
		return newLogitHead(m)
	case model.KNN:
		return newBank(m)
	case model.Mahalanobis, model.RelativeMahalanobis:
		return newMahalanobis(m)
	case model.FDBD:
		return newFDBD(m)
	}
	return nil, fmt.Errorf("detector %q is unknown", m.Detector)
}

// hasDirection reports whether x is finite and of a norm of at least
// kernel.MinNorm.
func hasDirection(x []float32) bool {
	var sum float64
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return sum >= kernel.MinNorm*kernel.MinNorm && !math.IsInf(sum, 0)
}

// toScore rounds a score to float32. One beyond its range, of a row that is
// finite but very long, becomes the largest that there is; NaN stays.
func toScore(s float64) float32 {
	if math.IsNaN(s) {
		return float32(s)
	}
	return float32(max(-math.MaxFloat32, min(math.MaxFloat32, s)))
}
