package trainer

import (
	"context"

	"github.com/oodmon/oodmon/model"
	"gorgonia.org/tensor"
)

// fitBaseline fits a detector that needs no training: it takes one more pass
// over what is to fit, or none. It fills in the model, and what report says of
// the fit.
func fitBaseline(ctx context.Context, data *dataset, opts Options, report *Report, m *model.Model) error {
	if opts.Start != nil {
		report.Restarted = "detector " + m.Detector + " is made anew each time"
	}
	means, err := data.means()
	if err != nil {
		return err
	}
	switch m.Detector {
	case model.KNN:
		err = fitKNN(ctx, data, opts, report, m)
	case model.Mahalanobis, model.RelativeMahalanobis:
		err = fitMahalanobis(ctx, data, means, report, m)
	case model.FDBD:
		m.BackgroundMean = vector(data.mean())
	}
	if m.Detector != model.KNN {
		m.Prototypes = matrix(means, data.dim)
	}
	if opts.Progress != nil {
		opts.Progress(1)
	}
	return err
}

func matrix(values []float32, cols int) *tensor.Dense {
	return tensor.New(tensor.WithShape(len(values)/cols, cols), tensor.WithBacking(values))
}

func vector(values []float32) *tensor.Dense {
	return tensor.New(tensor.WithShape(len(values)), tensor.WithBacking(values))
}
