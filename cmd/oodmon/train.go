package main

import (
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
		output, start     string
		asJSON            bool
	)
	opts := trainer.Options{Recipe: trainer.DefaultRecipe()}
	cmd := &cobra.Command{
		Use:   "train --data FILE [--data FILE]... --output MODEL",
		Short: "Fit a detector to labelled embeddings and calibrate it",
		Long: `train fits a head (IsoMax+, unless --detector says otherwise), and a linear
projection before it where a trial shows that it helps, to labelled embeddings.
It fits the temperature of the probabilities and the threshold on embeddings that
the fit never saw, and writes a model file. Of detectors that need no training it
keeps the statistics; 'oodmon eval --detectors all' compares them.

Files are Arrow IPC (.arrow), Parquet (.parquet), NumPy (.npy, labels one a line
in NAME.labels.txt beside it) or JSON lines (.jsonl), with the columns embedding
and label. Without --calibration a fifth of the data is kept apart for it, at
random by the seed; the calibration needs labels for the temperature only. The
same data, options and machine give the same file, but for the time that it
carries.`,
		Example: `  oodmon train --data train.parquet --calibration val.parquet --output head.safetensors
  oodmon train --data train.parquet --output head.safetensors --projection low-rank     # cheaper to score by
  oodmon train --data train-1.arrow --data train-2.arrow --output head.safetensors --alpha 0.05 --json`,
		Args: noLooseFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.Recipe.Validate(); err != nil {
				return withExit(exitUsage, err)
			}
			if err := disjoint(fileSet{"--data", data}, fileSet{"--calibration", calibration}); err != nil {
				return withExit(exitUsage, err)
			}
			if _, err := os.Stat(filepath.Dir(output)); err != nil { // before the work
				return fmt.Errorf("--output: %w", err)
			}
			if start != "" {
				var err error
				if opts.Start, err = loadModel(cmd.Context(), "--start", start); err != nil {
					return err
				}
				opts.Parent = opts.Start.Version
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
				return withCalibrationHint(err)
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
			if report.Restarted != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "the fit could not go on from model %s: %s; it started afresh\n", opts.Start.Version, report.Restarted)
			}
			if report.ProjectionTrial != nil {
				fmt.Fprintln(cmd.OutOrStdout(), report.ProjectionTrial)
			}
			if model.HasLogits(m.Detector) {
				fmt.Fprintln(cmd.OutOrStdout(), report.Temperature)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "threshold %.4f: the %s largest of %d calibration scores; false-positive rate at most %g with probability %g\n",
				report.Threshold, ordinal(report.Rank), report.Calibration, m.Alpha, 1-m.Delta)
			return err
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&data, "data", nil, "labelled embeddings to fit to; may be repeated (required)")
	f.StringSliceVar(&calibration, "calibration", nil, "in-distribution embeddings to calibrate on; may be repeated")
	f.StringVar(&output, "output", "", "model file to write (required)")
	f.StringVar(&start, "start", "", "model file, or registry, to go on from")
	addRateFlags(f, &opts.Alpha, &opts.Delta)
	r := &opts.Recipe
	f.StringVar(&r.Detector, "detector", r.Detector, "a head: isomax+, isomax, dismax or softmax; or what needs no training: class-means, knn, mahalanobis, relative-mahalanobis or fdbd")
	f.StringVar(&r.Score, "score", r.Score, "of a head: mds, mps, es, mmls, mmles, max-logit or energy (default: mds for isomax+, es for isomax, mmles for dismax, mps for softmax)")
	f.IntVar(&r.Neighbours, "neighbours", r.Neighbours, "of knn: the distance to this nearest record is the score")
	f.IntVar(&r.Bank, "bank", r.Bank, "of knn: of more records than this, a random sample is kept")
	f.StringVar((*string)(&r.Projection), "projection", string(r.Projection), "learned, before the prototypes: full, low-rank, none; auto: full where that helps against classes left out of a trial, else none")
	f.IntVar(&r.Rank, "rank", r.Rank, "of a low-rank projection")
	f.StringVar((*string)(&r.Initial), "initial", string(r.Initial), "where prototypes start: at the class means, or random")
	f.StringVar((*string)(&r.Optimizer), "optimizer", string(r.Optimizer), "adamw, or sgd with Nesterov momentum 0.9")
	f.StringVar((*string)(&r.Schedule), "schedule", string(r.Schedule), "of the learning rate: cosine, or step (a tenth after 1/2, 2/3 and 5/6)")
	f.IntVar(&r.Epochs, "epochs", r.Epochs, "passes over the data")
	f.IntVar(&r.BatchSize, "batch-size", r.BatchSize, "records a step")
	f.Float64Var(&r.LearningRate, "learning-rate", r.LearningRate, "at the start of the schedule; 0: what did best for the detector, projection and optimizer")
	f.Float64Var(&r.WeightDecay, "weight-decay", r.WeightDecay, "of a projection towards the identity")
	f.Float64Var(&r.EntropicScale, "entropic-scale", r.EntropicScale, "of the loss, but softmax; inference leaves it out")
	f.BoolVar(&r.ClassWeights, "class-weights", r.ClassWeights, "let every class count as much as any other")
	f.IntVar(&r.Patience, "patience", r.Patience, "stop after so many epochs without a lower loss on a tenth kept apart; 0: never")
	f.Uint64Var(&r.Seed, "seed", 0, "of the order of the records, of the split and of initial values")
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

// A fileSet is the files that a flag names.
type fileSet struct {
	flag  string
	files []string
}

// disjoint refuses a file that two flags name: what is promised and measured
// holds for records that the fit, or the calibration, never saw.
func disjoint(sets ...fileSet) error {
	type use struct {
		flag string
		info os.FileInfo
	}
	var seen []use
	for _, set := range sets {
		for _, path := range set.files {
			info, err := os.Stat(path)
			if err != nil {
				continue // whoever reads it says so
			}
			for _, other := range seen {
				if other.flag != set.flag && os.SameFile(other.info, info) {
					return fmt.Errorf("%s: %s is one of %s too: the records have to be others", set.flag, path, other.flag)
				}
			}
			seen = append(seen, use{set.flag, info})
		}
	}
	return nil
}

// ordinal writes n as 1st, 2nd, 3rd, 4th ...
func ordinal(n int) string {
	suffix := "th"
	if n/10%10 != 1 {
		switch n % 10 {
		case 1:
			suffix = "st"
		case 2:
			suffix = "nd"
		case 3:
			suffix = "rd"
		}
	}
	return fmt.Sprintf("%d%s", n, suffix)
}

// writeModel replaces path at once, so that nobody reads half a model.
func writeModel(path string, m *model.Model) error {
	content, err := m.Encode()
	if err != nil {
		return err
	}
	w, finish, err := createFile(path)
	if err == nil {
		_, err = w.Write(content)
		err = finish(err)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
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
