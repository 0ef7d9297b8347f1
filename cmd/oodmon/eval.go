package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/oodmon/oodmon/internal/report"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/trainer"
	"github.com/spf13/cobra"
)

func newEvalCommand() *cobra.Command {
	var (
		location          string
		detectors         []string
		data, calibration []string
		in, out           []string
		reportDir         string
		asJSON            bool
	)
	opts := trainer.Options{Recipe: trainer.DefaultRecipe()}
	cmd := &cobra.Command{
		Use:   "eval (--model MODEL | --detectors LIST --data FILE) --id FILE --ood FILE",
		Short: "Compare the answers of a model, or of several detectors, with the truth",
		Long: `eval scores in-distribution records (--id) and out-of-distribution records (--ood)
that nothing was fitted or calibrated on, and prints

  accuracy             labelled --id records whose class is right; a label that
                       the model does not know counts as wrong
  ece, nll             how far probabilities are from the truth, of heads
  auroc, aupr_in, aupr_out, tnr_at_tpr95, dtacc
                       how well the score tells them apart; in-distribution is
                       the positive class (aupr_out: OOD), whatever the threshold;
                       tnr_at_tpr95 is the share of --ood rejected where 95 % of
                       --id are accepted
  false_positive_rate  share of --id flagged at the model's own threshold
  detection_rate       share of --ood flagged at it

All but nll are shares between 0 and 1. MODEL is a model file, or a registry:
then its current model.

--detectors fits detectors to --data by the default recipe, calibrates them on
--calibration (else on a fifth of the data, kept apart), and shows them side by
side, with the model if there is one: which suits your embeddings? A detector is
followed by a score where it is not to be the default: isomax+:es. 'all' is every
detector with its default score. To put one into service, fit it by 'oodmon train
--detector'.

--report writes index.html to a folder, a page that needs nothing else: curves,
histograms with the threshold, reliability, classes, confusions and a map.`,
		Example: `  oodmon eval --model head.safetensors --id test.arrow --ood ood.arrow --report report
  oodmon eval --model /var/lib/oodmon/registry --id test.parquet --ood ood.parquet --json
  oodmon eval --detectors all --data train.parquet --calibration val.parquet --id test.parquet --ood ood.parquet --report report
  oodmon eval --detectors isomax+,softmax:energy,knn --data train.parquet --id test.parquet --ood ood.parquet`,
		Args: noLooseFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			choices, err := parseDetectors(detectors)
			if err != nil {
				return withExit(exitUsage, err)
			}
			switch {
			case location == "" && len(choices) == 0:
				return withExit(exitUsage, errors.New("--model, --detectors or both are required"))
			case len(choices) > 0 && len(data) == 0:
				return withExit(exitUsage, errors.New("--detectors needs --data, the labelled embeddings to fit to"))
			case len(choices) == 0 && len(data)+len(calibration) > 0:
				return withExit(exitUsage, errors.New("--data and --calibration are for --detectors: a model is fitted and calibrated"))
			}
			if err := disjoint(fileSet{"--data", data}, fileSet{"--calibration", calibration}, fileSet{"--id", in}, fileSet{"--ood", out}); err != nil {
				return withExit(exitUsage, err)
			}
			if reportDir != "" { // before the work
				if err := os.MkdirAll(reportDir, 0o755); err != nil {
					return fmt.Errorf("--report: %w", err)
				}
			}
			inside, outside := trainer.Files(in...), trainer.Files(out...)
			var all []*trainer.Evaluation
			if location != "" {
				m, err := loadModel(cmd.Context(), "--model", location)
				if err != nil {
					return err
				}
				e, err := trainer.Evaluate(cmd.Context(), m, inside, outside)
				if err != nil {
					return err
				}
				all = append(all, e)
			}
			if len(choices) > 0 {
				opts.Data, opts.Created = trainer.Files(data...), time.Now()
				if len(calibration) > 0 {
					opts.Calibration = trainer.Files(calibration...)
				}
				fitted, err := compare(cmd.Context(), opts, choices, inside, outside, cmd.ErrOrStderr())
				if err != nil {
					return withCalibrationHint(err)
				}
				all = append(all, fitted...)
			}
			if reportDir != "" {
				path := filepath.Join(reportDir, "index.html")
				if err := writeReport(path, all); err != nil {
					return err
				}
				fmt.Fprintln(cmd.ErrOrStderr(), "oodmon: the report is", path)
			}
			switch {
			case asJSON && len(choices) == 0:
				return writeJSON(cmd.OutOrStdout(), all[0])
			case asJSON:
				return writeJSON(cmd.OutOrStdout(), all)
			case len(choices) == 0:
				return printEvaluation(cmd.OutOrStdout(), all[0])
			}
			return printEvaluations(cmd.OutOrStdout(), all)
		},
	}
	f := cmd.Flags()
	f.StringVar(&location, "model", "", "model file, or registry")
	f.StringSliceVar(&detectors, "detectors", nil, "detectors to fit and compare, or all; may be repeated")
	f.StringSliceVar(&data, "data", nil, "labelled embeddings to fit --detectors to; may be repeated")
	f.StringSliceVar(&calibration, "calibration", nil, "in-distribution embeddings to calibrate --detectors on; may be repeated")
	f.StringSliceVar(&in, "id", nil, "in-distribution records; may be repeated (required)")
	f.StringSliceVar(&out, "ood", nil, "out-of-distribution records; may be repeated (required)")
	f.StringVar(&reportDir, "report", "", "folder to write the page index.html to")
	addRateFlags(f, &opts.Alpha, &opts.Delta)
	f.Uint64Var(&opts.Recipe.Seed, "seed", 0, "of the fits of --detectors")
	f.BoolVar(&asJSON, "json", false, "print one JSON object; with --detectors an array")
	for _, flag := range []string{"id", "ood"} {
		must(cmd.MarkFlagRequired(flag))
	}
	return cmd
}

// parseDetectors reads the values of --detectors.
func parseDetectors(names []string) ([]trainer.Choice, error) {
	var choices []trainer.Choice
	for _, name := range names {
		if name == "all" {
			for _, d := range model.Detectors() {
				choices = append(choices, trainer.Choice{Detector: d, Score: model.Scores(d)[0]})
			}
			continue
		}
		detector, score, scored := strings.Cut(name, ":")
		scores := model.Scores(detector)
		if scores == nil {
			return nil, fmt.Errorf("--detectors: %q is neither all nor one of %q", detector, model.Detectors())
		}
		if !scored {
			score = scores[0]
		} else if !slices.Contains(scores, score) {
			return nil, fmt.Errorf("--detectors: score %q is not one of %q of %s", score, scores, detector)
		}
		choices = append(choices, trainer.Choice{Detector: detector, Score: score})
	}
	return choices, nil
}

func compare(ctx context.Context, opts trainer.Options, choices []trainer.Choice, inside, outside trainer.Source, stderr io.Writer) ([]*trainer.Evaluation, error) {
	progress, done := progressBar(stderr, "fitting")
	defer done()
	return trainer.Compare(ctx, opts, choices, inside, outside, progress)
}

func writeReport(path string, all []*trainer.Evaluation) error {
	w, finish, err := createFile(path)
	if err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	return finish(report.Write(w, all, time.Now()))
}

func printEvaluation(out io.Writer, e *trainer.Evaluation) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if e.Accuracy != nil {
		note := "of the labelled in-distribution records"
		if e.UnknownLabels > 0 {
			note += fmt.Sprintf("; %d have a label that the model does not know", e.UnknownLabels)
		}
		fmt.Fprintf(w, "accuracy\t%.2f %%\t%s\n", 100**e.Accuracy, note)
	}
	if e.ECE != nil {
		fmt.Fprintf(w, "ECE\t%.4f\texpected calibration error of the largest probability, 15 bins\n", *e.ECE)
		fmt.Fprintf(w, "NLL\t%.4f\tmean negative log-likelihood\n", *e.NLL)
	}
	fmt.Fprintf(w, "AUROC\t%.2f %%\tin-distribution positive\n", 100*e.AUROC)
	fmt.Fprintf(w, "AUPR-in\t%.2f %%\n", 100*e.AUPRIn)
	fmt.Fprintf(w, "AUPR-out\t%.2f %%\n", 100*e.AUPROut)
	fmt.Fprintf(w, "TNR@TPR95\t%.2f %%\tof OOD rejected where 95 %% of in-distribution is accepted\n", 100*e.TNRAtTPR95)
	fmt.Fprintf(w, "DTACC\t%.2f %%\n", 100*e.DTACC)
	fmt.Fprintf(w, "false-positive rate\t%.2f %%\tat the model's threshold, chosen for at most %g %%\n", 100*e.FalsePositiveRate, 100*e.Details.Model.Alpha)
	fmt.Fprintf(w, "detection rate\t%.2f %%\tat the model's threshold\n", 100*e.DetectionRate)
	return w.Flush()
}

func printEvaluations(out io.Writer, all []*trainer.Evaluation) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "DETECTOR\tSCORE\tACCURACY\tAUROC\tAUPR-IN\tAUPR-OUT\tTNR@TPR95\tFALSE POS.\tDETECTED\t")
	for _, e := range all {
		accuracy := "-"
		if e.Accuracy != nil {
			accuracy = fmt.Sprintf("%.2f", 100**e.Accuracy)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t\n", e.Detector, e.Score, accuracy,
			100*e.AUROC, 100*e.AUPRIn, 100*e.AUPROut, 100*e.TNRAtTPR95, 100*e.FalsePositiveRate, 100*e.DetectionRate)
	}
	fmt.Fprintln(w, "in %; in-distribution positive, but for AUPR-out")
	return w.Flush()
}
