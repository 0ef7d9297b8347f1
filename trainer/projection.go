package trainer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
)

const (
	// trialFolds is how many times a share of the classes is left out.
	trialFolds = 4
	// trialRecords is about how many records a trial looks at, of more a sample:
	// so a trial of much data costs little beside its fit.
	trialRecords = 20_000
	// trialJudged is the share of the known classes' records that judge.
	trialJudged = .2
	// trialVisits is how many records a fit of a trial sees in each of the
	// recipe's epochs, on average: fits to more records have fewer epochs. Few
	// records need all of them to show what a projection does.
	trialVisits = 5_000
	// trialGain is by how much AUROC a projection has to be better: it costs D²
	// products a record, and where the embeddings come from a network that was
	// trained on the very classes, it only fits them closer, and loses what sets
	// others apart.
	trialGain = .005
	// trialShare is how much of the progress a trial is.
	trialShare = .4
)

// A ProjectionTrial says why a recipe with the projection "auto" has the one it
// has: on records of classes that a fit was not shown, against held-out ones of
// those it was, AUROC with a full projection and without, means over Folds of
// the classes.
type ProjectionTrial struct {
	Folds int `json:"folds"` // 0: too few classes to leave any out, so none
	// Full and None are nil where there was no fold.
	Full *float64 `json:"full_auroc"`
	None *float64 `json:"none_auroc"`
}

// choice is the projection that the trial speaks for.
func (t *ProjectionTrial) choice() Projection {
	if t.Folds > 0 && *t.Full-*t.None >= trialGain {
		return ProjectionFull
	}
	return ProjectionNone
}

func (t *ProjectionTrial) String() string {
	if t.Folds == 0 {
		return "projection none: there are too few classes to leave some out and try one"
	}
	return fmt.Sprintf("projection %s: AUROC against classes left out %.4f with a full one, %.4f without; it has to be better by %g", t.choice(), *t.Full, *t.None, trialGain)
}

// chooseProjection replaces the projection "auto" in the recipe: by that of the
// model that the fit goes on from, else by a trial, in which every class is once
// left out.
func chooseProjection(ctx context.Context, data *dataset, opts *Options, report *Report) error {
	r := &opts.Recipe
	if !model.HasLogits(r.Detector) {
		r.Projection = ProjectionNone // it has none
		return nil
	}
	if opts.Start != nil {
		if known := headOf(opts.Start); known != nil && known.loss == r.Detector && known.d == data.dim {
			r.Projection, r.Rank = known.projection()
			return nil
		}
	}
	trial := &ProjectionTrial{}
	full, none := 0., 0.
	order := rand.New(rand.NewPCG(r.Seed, 7)).Perm(len(data.classes))
	folds := min(trialFolds, len(order))
	if len(order) < 3 {
		folds = 0 // two have to stay
	}
	for fold := range folds {
		out := make([]bool, len(order))
		for i := fold; i < len(order); i += folds {
			out[order[i]] = true
		}
		a, b, judged, err := tryProjection(ctx, data, opts, out)
		if err != nil {
			return fmt.Errorf("try projections: %w", err)
		}
		if judged {
			full, none = full+a, none+b
			trial.Folds++
		}
		if opts.Progress != nil {
			opts.Progress(trialShare * float64(fold+1) / float64(folds))
		}
	}
	if n := float64(trial.Folds); n > 0 {
		full, none = full/n, none/n
		trial.Full, trial.None = &full, &none
	}
	report.ProjectionTrial = trial
	if r.Projection = trial.choice(); opts.Progress != nil {
		progress := opts.Progress
		opts.Progress = func(share float64) { progress(trialShare + (1-trialShare)*share) }
	}
	return nil
}

// tryProjection fits with a full projection and without one, to some of the
// records of the classes that are not out, and returns the AUROC of either, of
// their other records against those of the classes that are. judged is false
// where there are no such records, or what is left cannot be fitted to.
func tryProjection(ctx context.Context, data *dataset, opts *Options, out []bool) (full, none float64, judged bool, err error) {
	fold, err := data.leaveOut(ctx, opts, out)
	if fold != nil {
		defer func() { err = errors.Join(err, fold.close()) }()
	}
	if err != nil {
		return 0, 0, false, err
	}
	if _, err := fold.means(); err != nil || fold.parts[partCalibration].rows == 0 || fold.parts[partHeldOut].rows == 0 {
		return 0, 0, false, nil
	}
	auroc := func(projection Projection) (float64, error) {
		o := Options{Recipe: opts.Recipe}
		o.Recipe.Projection, o.Recipe.Patience = projection, 0
		o.Recipe.Epochs = max(1, int(float64(o.Recipe.Epochs)*min(1, trialVisits/float64(fold.parts[partFit].rows))))
		o.Recipe = o.Recipe.resolved()
		h, err := fit(ctx, fold, o, &Report{})
		if err != nil {
			return 0, err
		}
		// By the default score, so that the fit does not depend on which of its
		// scores is used.
		m := &model.Model{Detector: o.Recipe.Detector, Score: model.Scores(o.Recipe.Detector)[0], EntropicScale: o.Recipe.EntropicScale, Temperature: 1, Classes: fold.classes}
		h.export(m)
		inside, err := fold.scores(m, partCalibration)
		if err != nil {
			return 0, err
		}
		outside, err := fold.scores(m, partHeldOut)
		return Detect(inside, outside).AUROC, err
	}
	if none, err = auroc(ProjectionNone); err != nil {
		return 0, 0, false, err
	}
	full, err = auroc(ProjectionFull)
	return full, none, true, err
}

// leaveOut returns the records to fit, or a sample of them, without some of the
// classes: most of them to fit, some in the calibration part, and those of the
// classes left out in the held-out part.
func (d *dataset) leaveOut(ctx context.Context, opts *Options, out []bool) (*dataset, error) {
	from := d.parts[partFit]
	fold := &dataset{dim: d.dim}
	for i := range fold.parts {
		var err error
		if fold.parts[i], err = newSpool(opts.TempDir, d.dim, from.raw); err != nil {
			return fold, err
		}
	}
	to := make([]int32, len(d.classes)) // the number of a class in the fold
	for c, name := range d.classes {
		if !out[c] {
			to[c] = int32(len(fold.classes))
			fold.classes = append(fold.classes, name)
		}
	}
	fold.sums, fold.perClass = make([]float64, len(fold.classes)*d.dim), make([]int, len(fold.classes))
	random := rand.New(rand.NewPCG(opts.Recipe.Seed, 8))
	kept, unit := min(1, trialRecords/float64(from.rows)), make([]float32, d.dim)
	err := from.chunks(true, func(x []float32, y []int32) error {
		for i, class := range y {
			keep, judge := random.Float64() < kept, random.Float64() < trialJudged
			if out[class] && !keep {
				continue
			}
			part, class := partHeldOut, to[class]
			if !out[y[i]] {
				// The first record of each class is one to fit.
				if part = partFit; fold.perClass[class] > 0 {
					if !keep {
						continue
					}
					if judge {
						part = partCalibration
					}
				}
			}
			norm, ok := normalise(unit, x[i*d.dim:(i+1)*d.dim])
			if !ok {
				return fmt.Errorf("a spooled record of class %q has no direction", d.classes[y[i]])
			}
			if part == partFit {
				fold.count(class, norm, unit, from.raw)
			}
			if err := fold.parts[part].append(class, norm, unit); err != nil {
				return err
			}
		}
		return context.Cause(ctx)
	})
	if err != nil {
		return fold, err
	}
	same := make([]int32, len(d.classes))
	for c := range same {
		same[c] = int32(c)
	}
	for _, p := range fold.parts {
		p.renumber = same
		if err := p.flush(); err != nil {
			return fold, err
		}
	}
	return fold, nil
}

// scores returns the scores of a part by m; of a record that m gives none, +Inf.
func (d *dataset) scores(m *model.Model, part int) (all []float32, err error) {
	err = d.parts[part].inOrder(func(x []float32, _ []int32) error {
		scores, classes, err := scorer.Distances(m, x)
		if err != nil {
			return err
		}
		for i, class := range classes {
			if class < 0 {
				scores[i] = float32(math.Inf(1))
			}
		}
		all = append(all, scores...)
		return nil
	})
	return all, err
}
