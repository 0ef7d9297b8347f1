package trainer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/oodmon/oodmon/model"
)

// fit runs the recipe over the data. It fills in what report says of it.
func fit(ctx context.Context, data *dataset, opts Options, report *Report) (*head, error) {
	r := opts.Recipe
	h, err := startingHead(data, opts, report)
	if err != nil {
		return nil, err
	}
	var weights []float32
	if r.ClassWeights {
		weights = data.classWeights()
	}
	var optimise optimiser
	if r.Optimizer == SGD {
		optimise = newSGD(h.params(), r.WeightDecay)
	} else {
		optimise = newAdamW(h.params(), r.WeightDecay)
	}
	var stop *earlyStop
	if r.Patience > 0 {
		if data.parts[partValidation].rows == 0 {
			return nil, errors.New("no record was kept apart to stop by: more data is needed, or patience: 0")
		}
		stop = &earlyStop{best: math.Inf(1)}
	}
	random := rand.New(rand.NewPCG(r.Seed, 2))
	part := data.parts[partFit]
	steps := r.Epochs * ((part.rows + r.BatchSize - 1) / r.BatchSize)
	step := 0
	for report.Epochs = 1; ; report.Epochs++ {
		loss := 0.
		err := part.shuffled(random, r.BatchSize, func(x []float32, y []int32) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			loss += h.step(x, y, weights, r.EntropicScale) * float64(len(y))
			optimise.step(r.LearningRate * r.Schedule.rateAt(float64(step)/float64(steps)))
			if step++; opts.Progress != nil {
				opts.Progress(float64(step) / float64(steps))
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if loss /= float64(part.rows); math.IsNaN(loss) || math.IsInf(loss, 0) {
			return nil, fmt.Errorf("the loss became %g: lower the learning rate of %g", loss, r.LearningRate)
		}
		report.Loss = loss
		if stop != nil {
			if err := stop.after(ctx, h, data.parts[partValidation], weights, r.EntropicScale); err != nil {
				return nil, err
			}
		}
		if report.Epochs == r.Epochs || stop != nil && stop.since >= r.Patience {
			break
		}
	}
	if stop != nil {
		stop.restore(h)
		report.ValidationLoss = &stop.best
	}
	if opts.Progress != nil {
		opts.Progress(1)
	}
	return h, nil
}

// startingHead is where the fit starts from: the head of opts.Start as far as it
// goes, else the recipe's initial values.
func startingHead(data *dataset, opts Options, report *Report) (*head, error) {
	means, err := data.means() // also where they are not started from: it refuses data that cannot be told apart
	if err != nil {
		return nil, err
	}
	r := opts.Recipe
	random := rand.New(rand.NewPCG(r.Seed, 3))
	h := newHead(r.Loss, r.Projection, r.Rank, len(data.classes), data.dim, random)
	if opts.Start != nil {
		known := headOf(opts.Start)
		if report.Restarted = h.cannotGoOnFrom(known); report.Restarted == "" {
			report.Started = opts.Start.Version
			h.goOnFrom(known, opts.Start.Classes, data.classes, means)
			return h, nil
		}
	}
	switch {
	case r.Initial == InitialMeans:
		h.startAt(means)
	case r.Loss == model.Softmax:
		for i := range h.prototypes.value {
			h.prototypes.value[i] = float32((2*random.Float64() - 1) / math.Sqrt(float64(h.d)))
		}
	default:
		for i := range h.prototypes.value {
			h.prototypes.value[i] = float32(random.NormFloat64())
		}
	}
	return h, nil
}

// An earlyStop keeps the parameters of the epoch with the least loss on records
// that the fit does not see.
type earlyStop struct {
	best  float64
	since int // epochs since the best
	kept  [][]float32
}

func (e *earlyStop) after(ctx context.Context, h *head, validation *spool, weights []float32, entropicScale float64) error {
	loss := 0.
	err := validation.chunks(validation.raw, func(x []float32, y []int32) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		loss += h.lossOf(x, y, weights, entropicScale) * float64(len(y))
		return nil
	})
	if err != nil {
		return err
	}
	e.since++
	if loss /= float64(validation.rows); loss < e.best {
		e.best, e.since = loss, 0
		e.kept = e.kept[:0]
		for _, p := range h.params() {
			e.kept = append(e.kept, append([]float32(nil), p.value...))
		}
	}
	return nil
}

// restore sets h to the best epoch's parameters.
func (e *earlyStop) restore(h *head) {
	for i, p := range h.params() {
		copy(p.value, e.kept[i])
	}
}
