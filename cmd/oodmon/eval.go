package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/oodmon/oodmon/trainer"
	"github.com/spf13/cobra"
)

func newEvalCommand() *cobra.Command {
	var (
		location string
		in, out  []string
		asJSON   bool
	)
	cmd := &cobra.Command{
		Use:   "eval --model MODEL --id FILE --ood FILE",
		Short: "Compare a model's answers with known in-distribution and OOD records",
		Long: `eval scores in-distribution records (--id) and out-of-distribution records (--ood)
that the model was neither fitted nor calibrated on, and prints

  accuracy             labelled --id records whose nearest prototype is right
  auroc, aupr_in, aupr_out, tnr_at_tpr95, dtacc
                       how well the score tells them apart; in-distribution is
                       the positive class (aupr_out: OOD), whatever the threshold;
                       tnr_at_tpr95 is the share of --ood rejected where 95 % of
                       --id are accepted
  false_positive_rate  share of --id flagged at the model's own threshold
  detection_rate       share of --ood flagged at it

All are shares between 0 and 1. MODEL is a model file, or a registry: then its
current model.`,
		Example: `  oodmon eval --model head.safetensors --id test.arrow --ood ood.arrow
  oodmon eval --model /var/lib/oodmon/registry --id test.parquet --ood ood.parquet --json`,
		Args: noLooseFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := loadModel(cmd.Context(), location)
			if err != nil {
				return err
			}
			e, err := trainer.Evaluate(cmd.Context(), m, trainer.Files(in...), trainer.Files(out...))
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), e)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			if e.Accuracy != nil {
				fmt.Fprintf(w, "accuracy\t%.2f %%\tof the labelled in-distribution records\n", 100**e.Accuracy)
			}
			fmt.Fprintf(w, "AUROC\t%.2f %%\tin-distribution positive\n", 100*e.AUROC)
			fmt.Fprintf(w, "AUPR-in\t%.2f %%\n", 100*e.AUPRIn)
			fmt.Fprintf(w, "AUPR-out\t%.2f %%\n", 100*e.AUPROut)
			fmt.Fprintf(w, "TNR@TPR95\t%.2f %%\tof OOD rejected where 95 %% of in-distribution is accepted\n", 100*e.TNRAtTPR95)
			fmt.Fprintf(w, "DTACC\t%.2f %%\n", 100*e.DTACC)
			fmt.Fprintf(w, "false-positive rate\t%.2f %%\tat the model's threshold, chosen for at most %g %%\n", 100*e.FalsePositiveRate, 100*m.Alpha)
			fmt.Fprintf(w, "detection rate\t%.2f %%\tat the model's threshold\n", 100*e.DetectionRate)
			return w.Flush()
		},
	}
	f := cmd.Flags()
	f.StringVar(&location, "model", "", "model file, or registry (required)")
	f.StringSliceVar(&in, "id", nil, "in-distribution records; may be repeated (required)")
	f.StringSliceVar(&out, "ood", nil, "out-of-distribution records; may be repeated (required)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	for _, flag := range []string{"model", "id", "ood"} {
		must(cmd.MarkFlagRequired(flag))
	}
	return cmd
}
