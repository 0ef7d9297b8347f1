package trainer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/oodmon/oodmon/model"
)

// The choices that a Recipe names.
type (
	// A Projection is what comes before the prototypes: "full", x + x·F with F
	// [D, D] started at 0; "low-rank", x + (x·U)·V; "none"; or "auto", a full one
	// where it helps to tell classes apart that the fit does not know, else none.
	Projection string
	// An Initial is where prototypes start: "means", the mean embeddings of the
	// classes; or "random", the authors' values: N(0,1), for softmax uniform
	// within ±√(1/D).
	Initial string
	// An Optimizer is "adamw", or "sgd" with Nesterov momentum 0.9.
	Optimizer string
	// A Schedule of the learning rate is "cosine", to 0; or "step", a tenth of
	// it after 1/2, 2/3 and 5/6 of the epochs.
	Schedule string
)

const (
	ProjectionAuto    Projection = "auto"
	ProjectionFull    Projection = "full"
	ProjectionLowRank Projection = "low-rank"
	ProjectionNone    Projection = "none"
	InitialMeans      Initial    = "means"
	InitialRandom     Initial    = "random"
	AdamW             Optimizer  = "adamw"
	SGD               Optimizer  = "sgd"
	ScheduleCosine    Schedule   = "cosine"
	ScheduleStep      Schedule   = "step"
)

// A Recipe says how a head is fitted. The defaults are what did best on fixed
// embeddings; docs/training.md has what was tried.
type Recipe struct {
	// Detector is a head, which is fitted by its loss, or a detector that needs
	// no training; only Score, Neighbours, Bank and Seed are of use to the latter.
	Detector      string     `yaml:"detector" json:"detector"`
	Score         string     `yaml:"score" json:"score"` // "": the detector's default
	Projection    Projection `yaml:"projection" json:"projection"`
	Rank          int        `yaml:"rank" json:"rank"` // of a low-rank projection
	Initial       Initial    `yaml:"initial" json:"initial"`
	Optimizer     Optimizer  `yaml:"optimizer" json:"optimizer"`
	Schedule      Schedule   `yaml:"schedule" json:"schedule"`
	Epochs        int        `yaml:"epochs" json:"epochs"`
	BatchSize     int        `yaml:"batch_size" json:"batch_size"`
	LearningRate  float64    `yaml:"learning_rate" json:"learning_rate"` // 0: what did best for the loss and projection
	WeightDecay   float64    `yaml:"weight_decay" json:"weight_decay"`   // of a projection towards the identity
	EntropicScale float64    `yaml:"entropic_scale" json:"entropic_scale"`
	// ClassWeights makes each class count as much as any other in the loss.
	ClassWeights bool `yaml:"class_weights" json:"class_weights"`
	// Patience, if not 0, keeps a tenth of the records apart and stops after so
	// many epochs without a lower loss on them; the parameters of the best
	// epoch are kept.
	Patience int `yaml:"patience" json:"patience"`
	// WarmStart makes Retrain go on from the model in service.
	WarmStart bool `yaml:"warm_start" json:"warm_start"`
	// Neighbours is the k of knn, and Bank how many records it keeps at most.
	Neighbours int    `yaml:"neighbours" json:"neighbours"`
	Bank       int    `yaml:"bank" json:"bank"`
	Seed       uint64 `yaml:"seed" json:"seed"`
}

// DefaultRecipe returns the recipe of a user who chose nothing.
func DefaultRecipe() Recipe {
	return Recipe{
		Detector: model.IsoMaxPlus, Projection: ProjectionAuto, Rank: 64, Initial: InitialMeans, Optimizer: AdamW, Schedule: ScheduleCosine,
		Epochs: 30, BatchSize: 64, WeightDecay: .01, EntropicScale: 10,
		Neighbours: 5, Bank: 20000,
	}
}

// Validate reports every value that cannot work, each with its key.
func (r *Recipe) Validate() error { return errors.Join(r.problems()...) }

func (r *Recipe) problems() []error {
	var all []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			all = append(all, fmt.Errorf(format, args...))
		}
	}
	choice := func(key, value string, of ...string) {
		check(slices.Contains(of, value), "%s: %q is not one of %q", key, value, of)
	}
	choice("detector", r.Detector, model.Detectors()...)
	if scores := model.Scores(r.Detector); r.Score != "" && scores != nil {
		check(slices.Contains(scores, r.Score), "score: %q is not one of %q of detector %s", r.Score, scores, r.Detector)
	}
	choice("projection", string(r.Projection), string(ProjectionAuto), string(ProjectionFull), string(ProjectionLowRank), string(ProjectionNone))
	choice("initial", string(r.Initial), string(InitialMeans), string(InitialRandom))
	choice("optimizer", string(r.Optimizer), string(AdamW), string(SGD))
	choice("schedule", string(r.Schedule), string(ScheduleCosine), string(ScheduleStep))
	check(r.Rank > 0, "rank: %d must be positive", r.Rank)
	check(r.Epochs > 0, "epochs: %d must be positive", r.Epochs)
	check(r.BatchSize > 0, "batch_size: %d must be positive", r.BatchSize)
	check(r.LearningRate >= 0 && !math.IsInf(r.LearningRate, 0), "learning_rate: %g must not be negative", r.LearningRate)
	check(r.WeightDecay >= 0 && r.WeightDecay < 1, "weight_decay: %g must be between 0 and 1", r.WeightDecay)
	check(r.EntropicScale > 0 && !math.IsInf(r.EntropicScale, 0), "entropic_scale: %g must be positive", r.EntropicScale)
	check(r.Neighbours > 0, "neighbours: %d must be positive", r.Neighbours)
	check(r.Bank > 0, "bank: %d must be positive", r.Bank)
	check(r.Patience >= 0, "patience: %d must not be negative", r.Patience)
	return all
}

// resolved fills in what depends on other choices.
func (r Recipe) resolved() Recipe {
	if r.Detector == model.Softmax || !model.HasLogits(r.Detector) {
		r.EntropicScale = 1 // it has none
	}
	if r.Score == "" {
		r.Score = model.Scores(r.Detector)[0]
	}
	if r.LearningRate == 0 {
		r.LearningRate = r.bestRate()
	}
	if r.Projection != ProjectionLowRank {
		r.Rank = 0
	}
	return r
}

// bestRate is the learning rate that did best on fixed embeddings.
func (r *Recipe) bestRate() float64 {
	switch {
	case r.Optimizer == SGD:
		return .1
	case r.Detector == model.Softmax || r.Detector == model.IsoMax:
		return .0007
	case r.Projection == ProjectionNone:
		return .001
	}
	return .0001
}

// Options say what Train fits, on what.
type Options struct {
	// Data is labelled. Calibration holds in-distribution embeddings that Data
	// does not; nil: a fifth of Data is kept apart for it, at random.
	Data, Calibration Source
	Recipe            Recipe
	// Start, if not nil, is a model whose head the fit goes on from.
	Start *model.Model
	// Alpha is the false-positive rate; it holds with probability 1−Delta.
	Alpha, Delta float64
	Created      time.Time
	Parent       string // the version in service, or ""
	TempDir      string // for the spool; "": the system's
	// Progress, if not nil, is called with the share of the work that is done.
	Progress func(share float64)
}

const (
	// calibrationShare is how much of the data is kept apart where there is no
	// other calibration set.
	calibrationShare = 0.2
	// validationShare is how much of what would be fitted is kept apart to stop
	// by.
	validationShare = 0.1
)

// A Report says how a training went. It is kept in the model.
type Report struct {
	Counts
	Fitted  int    `json:"fitted"`
	Classes int    `json:"classes"`
	Dim     int    `json:"dim"`
	Recipe  Recipe `json:"recipe"`
	// Started is the version that the fit went on from; where it could not,
	// Restarted says why.
	Started   string `json:"started,omitempty"`
	Restarted string `json:"restarted,omitempty"`
	// ProjectionTrial says why the recipe "auto" became what it is; nil where it
	// was another, or that of the model that the fit goes on from.
	ProjectionTrial *ProjectionTrial `json:"projection_trial,omitempty"`
	// Epochs were run; Loss is the mean over the last. ValidationLoss is that of
	// the epoch that was kept, where records were kept apart to stop by.
	Epochs         int         `json:"epochs"`
	Loss           float64     `json:"loss"`
	ValidationLoss *float64    `json:"validation_loss,omitempty"`
	Temperature    Temperature `json:"temperature"`
	// Bank is how many embeddings knn keeps; Shrinkage is that of the covariance
	// within the classes, for the Mahalanobis detectors.
	Bank        int     `json:"bank,omitempty"`
	Shrinkage   float64 `json:"shrinkage,omitempty"`
	Calibration int     `json:"calibration"`
	// Threshold is the score of the Rank-th largest calibration record.
	Threshold float64 `json:"threshold"`
	Rank      int     `json:"rank"`
}

// Train fits a head and calibrates it. The same data, options and machine give
// the same model.
func Train(ctx context.Context, opts Options) (_ *model.Model, _ *Report, err error) {
	if err := opts.Recipe.Validate(); err != nil {
		return nil, nil, err
	}
	share := 0.
	if opts.Calibration == nil {
		share = calibrationShare
	}
	data, err := opts.Recipe.read(ctx, opts.Data, opts.TempDir, share, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("read training data: %w", err)
	}
	defer func() { err = errors.Join(err, data.close()) }()
	return train(ctx, data, opts)
}

// read splits labelled data as the recipe needs it.
func (r *Recipe) read(ctx context.Context, src Source, dir string, calibration, heldOut float64) (*dataset, error) {
	var shares [numParts]float64
	shares[partCalibration], shares[partHeldOut] = calibration, heldOut
	shares[partFit] = 1 - calibration - heldOut
	if r.Patience > 0 && model.HasLogits(r.Detector) {
		shares[partValidation] = validationShare * shares[partFit]
		shares[partFit] -= shares[partValidation]
	}
	raw := r.Detector == model.IsoMax || r.Detector == model.Softmax
	return readLabelled(ctx, src, dir, shares, r.Seed, raw)
}

// train fits to data; its calibration part calibrates, where there is no other
// source for it.
func train(ctx context.Context, data *dataset, opts Options) (*model.Model, *Report, error) {
	report := &Report{Counts: data.counts, Fitted: data.parts[partFit].rows, Classes: len(data.classes), Dim: data.dim}
	if opts.Recipe.Projection == ProjectionAuto {
		if err := chooseProjection(ctx, data, &opts, report); err != nil {
			return nil, nil, err
		}
	}
	opts.Recipe = opts.Recipe.resolved()
	report.Recipe = opts.Recipe
	m := &model.Model{
		Detector: opts.Recipe.Detector, Score: opts.Recipe.Score, EntropicScale: opts.Recipe.EntropicScale, Temperature: 1,
		Classes: data.classes, Alpha: opts.Alpha, Delta: opts.Delta, Created: opts.Created.UTC().Truncate(time.Second), Parent: opts.Parent,
	}
	if model.HasLogits(m.Detector) {
		h, err := fit(ctx, data, opts, report)
		if err != nil {
			return nil, nil, fmt.Errorf("fit: %w", err)
		}
		h.export(m)
	} else if err := fitBaseline(ctx, data, opts, report, m); err != nil {
		return nil, nil, fmt.Errorf("fit: %w", err)
	}

	calibration := data.vectors(partCalibration)
	if opts.Calibration != nil {
		calibration = opts.Calibration.vectors()
	}
	var err error
	if report.Temperature, err = calibrate(ctx, m, calibration); err != nil {
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

// Calibrate fits the temperature of m to embeddings that it was not fitted on,
// in distribution, where they are labelled, and makes their scores at that
// temperature its calibration.
func Calibrate(ctx context.Context, m *model.Model, src Source) (Temperature, error) {
	return calibrate(ctx, m, src.vectors())
}

func calibrate(ctx context.Context, m *model.Model, src vectors) (Temperature, error) {
	t, err := fitTemperature(ctx, m, src)
	if err != nil {
		return t, fmt.Errorf("calibrate: %w", err)
	}
	m.Temperature = t.Value // before the scores, which it divides
	rows, err := score(ctx, m, src)
	if err != nil {
		return t, fmt.Errorf("calibrate: %w", err)
	}
	m.Calibration = model.NewCalibration(rows.scores, rows.classes)
	if _, _, err := m.Calibration.Threshold(m.Alpha, m.Delta); err != nil {
		return t, fmt.Errorf("calibrate: %w", err)
	}
	return t, nil
}
