package trainer

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
	"gorgonia.org/tensor"
)

// leftOutFolds is how many times a share of the classes is left out.
const leftOutFolds = 4

// heldOut is what candidate and model in service are compared on.
type heldOut struct {
	data    *dataset
	classes []string // of the data
	class   []int32  // of each record, by classes
	records []int    // by class
	// Out of distribution are the outliers, or, where there are none, classes
	// that both models know, left out in turn.
	outlierSource Source
	outliers      int
	folds         [][]string
	against       string // which of both
}

// newHeldOut reads the classes of the held-out records.
func newHeldOut(ctx context.Context, data *dataset, outliers []string, candidate, champion *model.Model, seed uint64) (*heldOut, error) {
	h := &heldOut{data: data, classes: data.classes, records: make([]int, len(data.classes))}
	err := data.parts[partHeldOut].inOrder(func(_ []float32, y []int32) error {
		for _, class := range y {
			h.records[class]++
		}
		h.class = append(h.class, y...)
		return ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	if len(outliers) > 0 {
		h.outlierSource, h.against = Files(outliers...), "outliers"
		return h, nil
	}
	// Without a class's prototype, its records are unknown to the model. The fit
	// saw them, which flatters the figure, but that of both models.
	var common []string
	for class, name := range h.classes {
		if h.records[class] > 0 && canLeaveOut(candidate) && (champion == nil || canLeaveOut(champion) && slices.Contains(champion.Classes, name)) {
			common = append(common, name)
		}
	}
	if len(common) < 2 {
		return h, nil
	}
	h.against = "classes left out"
	rand.New(rand.NewPCG(seed, 5)).Shuffle(len(common), func(i, j int) { common[i], common[j] = common[j], common[i] })
	n := min(leftOutFolds, len(common))
	h.folds = make([][]string, n)
	for i, name := range common {
		h.folds[i%n] = append(h.folds[i%n], name)
	}
	return h, nil
}

// answers are those of a model to the held-out records, in their order.
type answers struct {
	Standing
	classes  []string
	right    []bool
	flagged  []bool
	rankings []ranking // nil: nothing to rank against
}

// ask has m answer.
func (h *heldOut) ask(ctx context.Context, m *model.Model) (*answers, error) {
	s, err := scorer.New(m)
	if err != nil {
		return nil, err
	}
	a := &answers{Standing: Standing{Version: m.Version, Recall: make(map[string]float64)}, classes: m.Classes}
	scores, class, err := h.score(ctx, m)
	if err != nil {
		return nil, err
	}
	a.right, a.flagged = make([]bool, len(scores)), make([]bool, len(scores))
	for i := range scores {
		name := h.classes[h.class[i]]
		a.right[i] = class[i] >= 0 && m.Classes[class[i]] == name
		a.flagged[i] = scores[i] > s.Threshold()
		if a.right[i] {
			a.Accuracy++
			a.Recall[name]++
		}
		if a.flagged[i] {
			a.FalsePositiveRate++
		}
	}
	a.Accuracy /= float64(len(scores))
	a.FalsePositiveRate /= float64(len(scores))
	for c, name := range h.classes {
		if h.records[c] > 0 {
			a.Recall[name] /= float64(h.records[c])
		}
	}
	if head := headOf(m); head != nil {
		l, err := head.likelihood(ctx, m.Classes, h.data.vectors(partHeldOut), 1/m.Temperature)
		if err != nil {
			return nil, err
		}
		if l.records > 0 {
			ece := l.ece()
			a.ECE = &ece
		}
	}
	if err := h.rank(ctx, m, a, scores); err != nil {
		return nil, err
	}
	if a.rankings != nil {
		ones := func(n int) []int32 { return slices.Repeat([]int32{1}, n) }
		auroc := meanAUROC(a.rankings, ones(len(scores)), ones(h.outliers))
		a.AUROC = &auroc
	}
	return a, nil
}

// score returns the scores and classes of the held-out records. One that the
// model gives none, since its projection has no direction, has +Inf and −1.
func (h *heldOut) score(ctx context.Context, m *model.Model) (scores []float32, class []int32, err error) {
	err = h.data.parts[partHeldOut].inOrder(func(x []float32, _ []int32) error {
		s, c, err := scorer.Distances(m, x)
		if err != nil {
			return err
		}
		for i := range c {
			if c[i] < 0 {
				s[i] = float32(math.Inf(1))
			}
		}
		scores, class = append(scores, s...), append(class, c...)
		return ctx.Err()
	})
	return scores, class, err
}

// rank fills in the rankings.
func (h *heldOut) rank(ctx context.Context, m *model.Model, a *answers, scores []float32) error {
	if h.outlierSource != nil {
		rows, err := score(ctx, m, h.outlierSource.vectors())
		if err != nil {
			return fmt.Errorf("outliers: %w", err)
		}
		h.outliers = len(rows.scores)
		r := make(ranking, 0, len(scores)+len(rows.scores))
		for i, s := range scores {
			r = append(r, ranked{score: s, at: int32(i)})
		}
		for i, s := range rows.scores {
			r = append(r, ranked{score: s, at: int32(i), outlier: true, out: true})
		}
		r.sort()
		a.rankings = []ranking{r}
		return nil
	}
	known := slices.Concat(h.folds...)
	for _, out := range h.folds {
		scores, _, err := h.score(ctx, without(m, out))
		if err != nil {
			return fmt.Errorf("leave classes out: %w", err)
		}
		var r ranking
		for i, s := range scores {
			if name := h.classes[h.class[i]]; slices.Contains(known, name) {
				r = append(r, ranked{score: s, at: int32(i), out: slices.Contains(out, name)})
			}
		}
		r.sort()
		a.rankings = append(a.rankings, r)
	}
	return nil
}

// canLeaveOut reports whether a model can do without a class: where each has a
// row of its own.
func canLeaveOut(m *model.Model) bool {
	return model.HasLogits(m.Detector) || m.Detector == model.ClassMeans
}

// without returns a model to score with that does not know some classes. It has
// no calibration.
func without(m *model.Model, classes []string) *model.Model {
	out := *m
	out.Classes, out.Calibration = nil, model.Calibration{}
	var keep []int
	for i, name := range m.Classes {
		if !slices.Contains(classes, name) {
			keep = append(keep, i)
			out.Classes = append(out.Classes, name)
		}
	}
	rows := func(t *tensor.Dense) *tensor.Dense {
		if t == nil {
			return nil
		}
		values, shape := t.Data().([]float32), slices.Clone([]int(t.Shape()))
		size := len(values) / shape[0]
		shape[0] = len(keep)
		kept := make([]float32, 0, len(keep)*size)
		for _, i := range keep {
			kept = append(kept, values[i*size:(i+1)*size]...)
		}
		return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(kept))
	}
	out.Prototypes, out.Weights, out.Bias = rows(m.Prototypes), rows(m.Weights), rows(m.Bias)
	return &out
}
