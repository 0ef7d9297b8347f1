package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/trainer"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
)

func newTrainCommand() *cobra.Command {
	var (
		data, calibration []string
		output, loss      string
		asJSON            bool
	)
	opts := trainer.Options{Recipe: trainer.DefaultRecipe()}
	cmd := &cobra.Command{
		Use:   "train --data FILE [--data FILE]... --output MODEL",
		Short: "Fit an IsoMax+ head to labelled embeddings and calibrate it",
		Long: `train fits an IsoMax+ head to labelled embeddings, calibrates its threshold on
embeddings that the fit never saw, and writes a model file.

Files are Arrow IPC (.arrow), Parquet (.parquet), NumPy (.npy, labels one a line
in NAME.labels.txt beside it) or JSON lines (.jsonl), with the columns embedding
and label. Without --calibration a fifth of the data is kept apart for it, at
random by the seed. The same data, options and machine give the same file, but
for the time that it carries.`,
		Example: `  oodmon train --data train.parquet --calibration val.parquet --output head.safetensors
  oodmon train --data train-1.arrow --data train-2.arrow --output head.safetensors --alpha 0.05 --json`,
		Args: noLooseFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if loss != model.IsoMaxPlus {
				return withExit(exitUsage, fmt.Errorf("--loss: %q is not one of [%q]", loss, model.IsoMaxPlus))
			}
			opts.Data, opts.Created = trainer.Files(data...), time.Now()
			if len(calibration) > 0 {
				opts.Calibration = trainer.Files(calibration...)
			}
			progress, done := progressBar(cmd.ErrOrStderr(), "fitting")
			opts.Progress = progress
			m, report, err := trainer.Train(cmd.Context(), opts)
			done()
			if err != nil {
				return err
			}
			if err := writeModel(output, m); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), struct {
					Version string `json:"version"`
					Output  string `json:"output"`
					*trainer.Report
				}{m.Version, output, report})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: model %s, %d classes of dimension %d, fitted on %d records (%d without label and %d without direction left out)\n",
				output, m.Version, report.Classes, report.Dim, report.Fitted, report.Unlabelled, report.NoDirection)
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "threshold %.4f: the %d. largest of %d calibration scores; false-positive rate at most %g with probability %g\n",
				report.Threshold, report.Rank, report.Calibration, m.Alpha, 1-m.Delta)
			return err
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&data, "data", nil, "labelled embeddings to fit to; may be repeated (required)")
	f.StringSliceVar(&calibration, "calibration", nil, "in-distribution embeddings to calibrate on; may be repeated")
	f.StringVar(&output, "output", "", "model file to write (required)")
	f.StringVar(&loss, "loss", model.IsoMaxPlus, "the head and its loss: isomax+")
	addRateFlags(f, &opts.Alpha, &opts.Delta)
	f.IntVar(&opts.Recipe.Epochs, "epochs", opts.Recipe.Epochs, "passes over the data")
	f.IntVar(&opts.Recipe.BatchSize, "batch-size", opts.Recipe.BatchSize, "records a step")
	f.Float64Var(&opts.Recipe.LearningRate, "learning-rate", opts.Recipe.LearningRate, "of AdamW, at the start of the cosine schedule")
	f.Float64Var(&opts.Recipe.WeightDecay, "weight-decay", opts.Recipe.WeightDecay, "of AdamW")
	f.Float64Var(&opts.Recipe.EntropicScale, "entropic-scale", opts.Recipe.EntropicScale, "of the loss; inference leaves it out")
	f.Uint64Var(&opts.Recipe.Seed, "seed", 0, "of the order of the records and of the split")
	f.BoolVar(&asJSON, "json", false, "print the report as JSON")
	must(cmd.MarkFlagRequired("data"))
	must(cmd.MarkFlagRequired("output"))
	return cmd
}

// noLooseFiles refuses what a shell's wildcard leaves behind a flag: which set
// the files belong to must be said.
func noLooseFiles(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q: repeat the flag before each file", args[0])
	}
	return nil
}

// writeModel replaces path at once, so that nobody reads half a model.
func writeModel(path string, m *model.Model) (err error) {
	content, err := m.Encode()
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".oodmon-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(tmp.Name())))
	}
	return nil
}

// progressBar returns what shows a share of work on w, where w is a terminal,
// and what to call at its end.
func progressBar(w io.Writer, what string) (progress func(share float64), done func()) {
	if !isTerminal(w) {
		return nil, func() {}
	}
	bar := progressbar.NewOptions(1000, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(what),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true))
	// What goes wrong with the terminal must not end the work.
	return func(share float64) { _ = bar.Set(int(1000 * share)) }, func() { _ = bar.Finish() }
}
