package trainer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/oodmon/oodmon/model"
	"gorgonia.org/tensor"
)

// A Recipe says how a head is fitted. The defaults are what did best on fixed
// embeddings; docs/training.md has what was tried.
type Recipe struct {
	Epochs        int     `yaml:"epochs" json:"epochs"`
	BatchSize     int     `yaml:"batch_size" json:"batch_size"`
	LearningRate  float64 `yaml:"learning_rate" json:"learning_rate"`
	WeightDecay   float64 `yaml:"weight_decay" json:"weight_decay"`
	EntropicScale float64 `yaml:"entropic_scale" json:"entropic_scale"`
	Seed          uint64  `yaml:"seed" json:"seed"`
}

// DefaultRecipe returns the recipe of a user who chose nothing.
func DefaultRecipe() Recipe {
	return Recipe{Epochs: 30, BatchSize: 64, LearningRate: .001, WeightDecay: .01, EntropicScale: 10}
}

func (r *Recipe) validate() error {
	var all []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			all = append(all, fmt.Errorf(format, args...))
		}
	}
	check(r.Epochs > 0, "epochs: %d must be positive", r.Epochs)
	check(r.BatchSize > 0, "batch_size: %d must be positive", r.BatchSize)
	check(r.LearningRate > 0 && !math.IsInf(r.LearningRate, 0), "learning_rate: %g must be positive", r.LearningRate)
	check(r.WeightDecay >= 0 && r.WeightDecay < 1, "weight_decay: %g must be between 0 and 1", r.WeightDecay)
	check(r.EntropicScale > 0 && !math.IsInf(r.EntropicScale, 0), "entropic_scale: %g must be positive", r.EntropicScale)
	return errors.Join(all...)
}

// Options say what Train fits, on what.
type Options struct {
	// Data is labelled. Calibration holds in-distribution embeddings that Data
	// does not; nil: a fifth of Data is kept apart for it, at random.
	Data, Calibration Source
	Recipe            Recipe
	// Alpha is the false-positive rate; it holds with probability 1−Delta.
	Alpha, Delta float64
	Created      time.Time
	Parent       string // the version in service, or ""
	TempDir      string // for the spool; "": the system's
	// Progress, if not nil, is called with the share of the work that is done.
	Progress func(share float64)
}

// calibrationShare is how much of the data is kept apart where there is no
// other calibration set.
const calibrationShare = 0.2

// A Report says how a training went. It is kept in the model.
type Report struct {
	Counts
	Fitted      int     `json:"fitted"`
	Classes     int     `json:"classes"`
	Dim         int     `json:"dim"`
	Recipe      Recipe  `json:"recipe"`
	Loss        float64 `json:"loss"` // the mean over the last epoch
	Calibration int     `json:"calibration"`
	// Threshold is the score of the Rank-th largest calibration record.
	Threshold float64 `json:"threshold"`
	Rank      int     `json:"rank"`
}

// Train fits an IsoMax+ head and calibrates it. The same data, options and
// machine give the same model.
func Train(ctx context.Context, opts Options) (_ *model.Model, _ *Report, err error) {
	shares := []float64{1}
	if opts.Calibration == nil {
		shares = []float64{1 - calibrationShare, calibrationShare}
	}
	data, err := readLabelled(ctx, opts.Data, opts.TempDir, shares, opts.Recipe.Seed)
	if err != nil {
		return nil, nil, fmt.Errorf("read training data: %w", err)
	}
	defer func() { err = errors.Join(err, data.close()) }()
	return train(ctx, data, opts)
}

// train fits to the first part of data; the second calibrates, where there is
// no other source for it.
func train(ctx context.Context, data *dataset, opts Options) (*model.Model, *Report, error) {
	if err := opts.Recipe.validate(); err != nil {
		return nil, nil, err
	}
	report := &Report{Counts: data.counts, Fitted: data.parts[0].rows, Classes: len(data.classes), Dim: data.dim, Recipe: opts.Recipe}
	m := &model.Model{
		Detector: model.IsoMaxPlus, Score: model.MDS, EntropicScale: opts.Recipe.EntropicScale, Temperature: 1,
		Classes: data.classes, Alpha: opts.Alpha, Delta: opts.Delta, Created: opts.Created.UTC().Truncate(time.Second), Parent: opts.Parent,
	}
	h, loss, err := fit(ctx, data, opts)
	if err != nil {
		return nil, nil, fmt.Errorf("fit: %w", err)
	}
	report.Loss = loss
	m.Prototypes = tensor.New(tensor.WithShape(h.c, h.d), tensor.WithBacking(h.prototypes))
	m.DistanceScale = h.scale

	if opts.Calibration == nil {
		err = calibrate(ctx, m, data.vectors(1))
	} else {
		err = Calibrate(ctx, m, opts.Calibration)
	}
	if err != nil {
		return nil, nil, err
	}
	threshold, rank, err := m.Calibration.Threshold(m.Alpha, m.Delta)
	if err != nil {
		return nil, nil, fmt.Errorf("calibrate: %w", err)
	}
	report.Calibration, report.Threshold, report.Rank = len(m.Calibration.Scores), float64(threshold), rank
	if m.Training, err = json.Marshal(report); err != nil {
		return nil, nil, fmt.Errorf("write training report: %w", err)
	}
	if _, err := m.Encode(); err != nil { // sets the version
		return nil, nil, err
	}
	return m, report, nil
}

// fit runs AdamW over the data with a cosine schedule, from the class means.
func fit(ctx context.Context, data *dataset, opts Options) (*head, float64, error) {
	start, err := data.means()
	if err != nil {
		return nil, 0, err
	}
	r := opts.Recipe
	h := newHead(start, len(data.classes), data.dim)
	scale := []float32{h.scale}
	prototypes, scales := newAdamW(h.prototypes, r.WeightDecay), newAdamW(scale, r.WeightDecay)
	random := rand.New(rand.NewPCG(r.Seed, 2))
	rows := data.parts[0].rows
	steps := r.Epochs * ((rows + r.BatchSize - 1) / r.BatchSize)
	step, loss := 0, 0.
	for range r.Epochs {
		loss = 0
		err := data.parts[0].shuffled(random, r.BatchSize, func(x []float32, y []int32) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			loss += h.step(x, y, r.EntropicScale) * float64(len(y))
			rate := r.LearningRate * (1 + math.Cos(math.Pi*float64(step)/float64(steps))) / 2
			prototypes.step(h.gradPrototypes, rate)
			scales.step([]float32{h.gradScale}, rate)
			h.scale = scale[0]
			if step++; opts.Progress != nil {
				opts.Progress(float64(step) / float64(steps))
			}
			return nil
		})
		if err != nil {
			return nil, 0, err
		}
		if loss /= float64(rows); math.IsNaN(loss) || math.IsInf(loss, 0) {
			return nil, 0, fmt.Errorf("the loss became %g: lower the learning rate of %g", loss, r.LearningRate)
		}
	}
	return h, loss, nil
}

// Calibrate scores in-distribution embeddings that m was not fitted on, and
// makes them its calibration. Labels are not needed.
func Calibrate(ctx context.Context, m *model.Model, src Source) error {
	return calibrate(ctx, m, src.vectors())
}

func calibrate(ctx context.Context, m *model.Model, src vectors) error {
	rows, err := score(ctx, m, src)
	if err != nil {
		return fmt.Errorf("calibrate: %w", err)
	}
	m.Calibration = model.NewCalibration(rows.scores, rows.classes)
	if _, _, err := m.Calibration.Threshold(m.Alpha, m.Delta); err != nil {
		return fmt.Errorf("calibrate: %w", err)
	}
	return nil
}
