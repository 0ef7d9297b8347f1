package trainer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/oodmon/oodmon/model"
)

// A fitter runs a recipe over data.
type fitter struct {
	data    *dataset
	opts    Options
	report  *Report
	weights []float32 // of the classes, or nil
	random  *rand.Rand
	// of the steps, for the progress
	done, all int
}

// fit returns the head that the recipe makes of the data. It fills in what
// report says of it.
func fit(ctx context.Context, data *dataset, opts Options, report *Report) (*head, error) {
	r := opts.Recipe
	f := &fitter{data: data, opts: opts, report: report, random: rand.New(rand.NewPCG(r.Seed, 2))}
	if r.ClassWeights {
		f.weights = data.classWeights()
	}
	// A low-rank projection is what is left of a full one: from a random start
	// it does not get as far. What it loses by that, some epochs bring back.
	first, last := r.Epochs, 0
	if r.Projection == ProjectionLowRank {
		last = max(1, r.Epochs/2)
	}
	f.all = (first + last) * f.stepsOf(1)

	h, err := f.start()
	if err != nil {
		return nil, err
	}
	if err := f.run(ctx, h, first, r.LearningRate); err != nil {
		return nil, err
	}
	if r.Projection == ProjectionLowRank {
		if len(h.full.value) > 0 {
			if err := h.compress(ctx, data.parts[partFit], r.Rank, r.Seed); err != nil {
				return nil, err
			}
		}
		if err := f.run(ctx, h, last, r.LearningRate); err != nil {
			return nil, err
		}
	}
	if opts.Progress != nil {
		opts.Progress(1)
	}
	return h, nil
}

// start is where the fit starts from: the head of opts.Start as far as it goes,
// else the recipe's initial values.
func (f *fitter) start() (*head, error) {
	data, r := f.data, f.opts.Recipe
	means, err := data.means() // also where they are not started from: it refuses data that cannot be told apart
	if err != nil {
		return nil, err
	}
	if start := f.opts.Start; start != nil {
		h := newHead(r.Detector, r.Projection, r.Rank, len(data.classes), data.dim)
		known := headOf(start)
		if f.report.Restarted = h.cannotGoOnFrom(known); f.report.Restarted == "" {
			f.report.Started = start.Version
			h.goOnFrom(known, start.Classes, data.classes, means)
			return h, nil
		}
	}
	projection := r.Projection
	if projection == ProjectionLowRank {
		projection = ProjectionFull
	}
	h := newHead(r.Detector, projection, 0, len(data.classes), data.dim)
	random := rand.New(rand.NewPCG(r.Seed, 3))
	switch {
	case r.Initial == InitialMeans:
		h.startAt(means)
	case r.Detector == model.Softmax:
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

func (f *fitter) stepsOf(epochs int) int {
	return epochs * ((f.data.parts[partFit].rows + f.opts.Recipe.BatchSize - 1) / f.opts.Recipe.BatchSize)
}

// run fits h for so many epochs, by a schedule of its own from the learning rate.
func (f *fitter) run(ctx context.Context, h *head, epochs int, learningRate float64) error {
	r := f.opts.Recipe
	var optimise optimiser
	if r.Optimizer == SGD {
		optimise = newSGD(h.params(), r.WeightDecay)
	} else {
		optimise = newAdamW(h.params(), r.WeightDecay)
	}
	stop := &earlyStop{best: math.Inf(1)}
	part, validation := f.data.parts[partFit], f.data.parts[partValidation]
	if r.Patience > 0 && validation.rows == 0 {
		return errors.New("no record was kept apart to stop by: more data is needed, or patience: 0")
	}
	step, steps := 0, f.stepsOf(epochs)
	for range epochs {
		loss := 0.
		err := part.shuffled(f.random, r.BatchSize, func(x []float32, y []int32) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			loss += h.step(x, y, f.weights, r.EntropicScale) * float64(len(y))
			optimise.step(learningRate * r.Schedule.rateAt(float64(step)/float64(steps)))
			step++
			if f.done++; f.opts.Progress != nil {
				f.opts.Progress(float64(f.done) / float64(f.all))
			}
			return nil
		})
		if err != nil {
			return err
		}
		f.report.Epochs++
		if loss /= float64(part.rows); math.IsNaN(loss) || math.IsInf(loss, 0) {
			return fmt.Errorf("the loss became %g: lower the learning rate of %g", loss, learningRate)
		}
		f.report.Loss = loss
		if r.Patience > 0 {
			if loss, err = f.validate(ctx, h, validation); err != nil {
				return err
			}
			if stop.after(h, loss); stop.since >= r.Patience {
				break
			}
		}
	}
	if r.Patience > 0 {
		stop.restore(h)
		f.report.ValidationLoss = &stop.best
	}
	return nil
}

// validate returns the mean loss of the records that are kept apart.
func (f *fitter) validate(ctx context.Context, h *head, validation *spool) (float64, error) {
	loss := 0.
	err := validation.chunks(validation.raw, func(x []float32, y []int32) error {
		loss += h.lossOf(x, y, f.weights, f.opts.Recipe.EntropicScale) * float64(len(y))
		return context.Cause(ctx)
	})
	return loss / float64(validation.rows), err
}

// An earlyStop keeps the parameters of the epoch with the least loss.
type earlyStop struct {
	best  float64
	since int // epochs since the best
	kept  [][]float32
}

func (e *earlyStop) after(h *head, loss float64) {
	if e.since++; loss < e.best {
		e.best, e.since, e.kept = loss, 0, e.kept[:0]
		for _, p := range h.params() {
			e.kept = append(e.kept, append([]float32(nil), p.value...))
		}
	}
}

// restore sets h to the best epoch's parameters.
func (e *earlyStop) restore(h *head) {
	for i, p := range h.params() {
		copy(p.value, e.kept[i])
	}
}
