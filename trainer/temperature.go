package trainer

import (
	"context"
	"fmt"
	"math"

	"github.com/oodmon/oodmon/model"
)

// A Temperature divides the logits of a head, so that its probabilities are as
// often right as they say (Guo et al., "On Calibration of Modern Neural
// Networks", 2017). It is the one with the least negative log-likelihood on
// Records labelled ones that the head was not fitted on.
type Temperature struct {
	Value float64 `json:"value"`
	// Records have a label that the model knows. With none the temperature
	// stays as it is, and there are no other figures.
	Records int `json:"records"`
	// ECE is the expected calibration error in 15 bins of equal width of the
	// largest probability, NLL the mean negative log-likelihood; at the
	// temperature before and at Value.
	ECEBefore float64 `json:"ece_before"`
	ECE       float64 `json:"ece"`
	NLLBefore float64 `json:"nll_before"`
	NLL       float64 `json:"nll"`
	// Unfitted says why it could not be fitted, whatever the records.
	Unfitted string `json:"unfitted,omitempty"`
}

func (t Temperature) String() string {
	if t.Unfitted != "" {
		return fmt.Sprintf("temperature %.4g: not fitted, since %s", t.Value, t.Unfitted)
	}
	if t.Records == 0 {
		return fmt.Sprintf("temperature %.4g: not fitted, since no calibration record has a label that the model knows", t.Value)
	}
	return fmt.Sprintf("temperature %.4g, fitted to %d labelled calibration records: expected calibration error %.4f, %.4f before", t.Value, t.Records, t.ECE, t.ECEBefore)
}

// The temperatures that a fit may choose.
const minTemperature, maxTemperature = 1e-3, 1e3

// fitTemperature returns the temperature for m, by the records of src whose
// label m knows. It goes over src several times, so that memory does not grow
// with it.
func fitTemperature(ctx context.Context, m *model.Model, src vectors) (Temperature, error) {
	t := Temperature{Value: m.Temperature}
	h := headOf(m)
	if h == nil {
		if model.HasLogits(m.Detector) {
			t.Unfitted = "the transform before the head changes the dimension"
		}
		return t, nil
	}
	// The loss is convex in 1/T; Newton's method finds its least, kept between
	// what is known to be too small and too large.
	at := func(inverse float64) (*likelihood, error) { return h.likelihood(ctx, m.Classes, src, inverse) }
	before, err := at(1 / m.Temperature)
	if err != nil || before.records == 0 {
		return t, err
	}
	low, high := 1/maxTemperature, 1/minTemperature
	inverse, now := min(max(1/m.Temperature, low), high), before
	for range 50 {
		if now.slope > 0 {
			high = inverse
		} else {
			low = inverse
		}
		next := inverse - now.slope/now.curvature
		if !(next > low && next < high) {
			next = math.Sqrt(low * high)
		}
		done := math.Abs(next-inverse) <= 1e-6*inverse
		inverse = next
		if now, err = at(inverse); err != nil {
			return t, err
		}
		if done {
			break
		}
	}
	return Temperature{Value: 1 / inverse, Records: now.records, ECEBefore: before.ece(), ECE: now.ece(), NLLBefore: before.nll, NLL: now.nll}, nil
}

// A likelihood is how well probabilities fit the truth.
type likelihood struct {
	records int
	// nll is the mean negative log-likelihood; slope and curvature are its
	// derivatives by the inverse temperature.
	nll, slope, curvature float64
	bins                  [15]struct {
		records           int
		confidence, right float64
	}
}

// ece is the expected calibration error: the mean over the records of how far,
// in a bin of confidence, confidence is from accuracy.
func (l *likelihood) ece() float64 {
	sum := 0.
	for _, b := range l.bins {
		sum += math.Abs(b.confidence - b.right)
	}
	return sum / float64(l.records)
}

// likelihood compares softmax(inverse·L), L at temperature 1, with the labels
// that are among classes.
func (h *head) likelihood(ctx context.Context, classes []string, src vectors, inverse float64) (*likelihood, error) {
	l := new(likelihood)
	index := make(map[string]int, len(classes))
	for k, name := range classes {
		index[name] = k
	}
	block, truth := make([]float32, spoolChunk*h.d), make([]int, 0, spoolChunk)
	flush := func() {
		logits := h.logits(block[:len(truth)*h.d], len(truth))
		for i, class := range truth {
			l.add(logits[i*h.c:(i+1)*h.c], class, inverse)
		}
		truth = truth[:0]
	}
	err := src(ctx, func(name string, x []float32, dim int, label func(i int) string) error {
		if dim != h.d {
			return fmt.Errorf("%s: embeddings have dimension %d, the model expects %d", name, dim, h.d)
		}
		for i := range len(x) / dim {
			class, ok := index[label(i)]
			if !ok {
				continue
			}
			row := block[len(truth)*dim:][:dim]
			norm, ok := normalise(row, x[i*dim:(i+1)*dim])
			if !ok {
				continue
			}
			if !h.directional() {
				for j := range row {
					row[j] *= norm
				}
			}
			if truth = append(truth, class); len(truth) == spoolChunk {
				flush()
			}
		}
		return nil
	})
	flush()
	n := float64(max(1, l.records))
	l.nll, l.slope, l.curvature = l.nll/n, l.slope/n, l.curvature/n
	return l, err
}

// add counts a record with the logits given and its class.
func (l *likelihood) add(logits []float32, class int, inverse float64) {
	best := 0
	for k, v := range logits {
		if v > logits[best] {
			best = k
		}
	}
	var sum, mean, square float64 // of p, p·L and p·L², L from the largest
	for _, v := range logits {
		v := float64(v - logits[best])
		p := math.Exp(inverse * v)
		sum += p
		mean += p * v
		square += p * v * v
	}
	mean, square = mean/sum, square/sum
	own := float64(logits[class] - logits[best])
	l.records++
	l.nll += math.Log(sum) - inverse*own
	l.slope += mean - own
	l.curvature += square - mean*mean
	confidence := 1 / sum // of the best
	// A bin holds its upper edge, and not its lower.
	bin := &l.bins[min(max(int(math.Ceil(confidence*float64(len(l.bins))))-1, 0), len(l.bins)-1)]
	bin.records++
	bin.confidence += confidence
	if best == class {
		bin.right++
	}
}
