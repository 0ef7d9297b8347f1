package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"syscall"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
	"github.com/oodmon/oodmon/sink"
	"github.com/spf13/cobra"
)

func newScoreCommand() *cobra.Command {
	var location, inputFormat, format, output, fdrMethod string
	var perClass bool
	var fdr share
	cmd := &cobra.Command{
		Use:   "score --model MODEL FILE...",
		Short: "Score files of embeddings",
		Long: `score writes one row for each embedding: id, score (larger is more out of
distribution), p_value, ood, class (the nearest), and where it came from: topic is
the file, offset its row, counted from 0. A row that has no score, because it is
not finite or its norm is under 1e-12, is left out; standard error names the first
ones and their number, and the exit code stays 0.

A row is ood above the model's threshold, which flags at most its share alpha of
what is in distribution. With --fdr q, the rows of all files are decided together
instead: of those called ood, an expected share of at most q is in distribution
(Benjamini-Hochberg, or Storey's, which finds more where many are). The files are
then read twice. To call a lone outlier among m rows that takes m/q - 1 calibration
records; standard error says so where the model has fewer.

Files are Arrow IPC, Parquet, NumPy or JSON lines; - is standard input, in the
format of --input-format. MODEL is a model file, or a registry.`,
		Example: `  oodmon score --model head.safetensors live.parquet > scores.jsonl
  oodmon score --model head.safetensors live.npy --format csv --output scores.csv
  oodmon score --model head.safetensors --fdr 0.1 batch.parquet
  zcat live.jsonl.gz | oodmon score --model head.safetensors --input-format jsonl -`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := loadModel(cmd.Context(), "--model", location)
			if err != nil {
				return err
			}
			if fdrMethod != fdrBH && fdrMethod != fdrStorey {
				return withExit(exitUsage, fmt.Errorf("--fdr-method: %q is not one of [%q %q]", fdrMethod, fdrBH, fdrStorey))
			}
			if fdr == 0 && cmd.Flags().Changed("fdr-method") {
				return withExit(exitUsage, errors.New("--fdr-method needs --fdr"))
			}
			if fdr > 0 && slices.Contains(args, "-") {
				return withExit(exitUsage, errors.New("--fdr reads its input twice, so standard input will not do: write it to a file"))
			}
			newScorer := scorer.New
			if perClass {
				newScorer = scorer.NewPerClass
			}
			s, err := newScorer(m)
			if err != nil {
				return err
			}
			if text := s.Pooled(); text != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "oodmon: "+text)
			}
			cut := float32(-1)
			if fdr > 0 {
				if cut, err = fdrCut(cmd, s, args, float64(fdr), fdrMethod == fdrStorey); err != nil {
					return err
				}
			}
			out, finish, err := openOutput(cmd, output)
			if err != nil {
				return err
			}
			w, err := sink.NewWriter(format, out, featurizer.ScoreSchema(0))
			if err != nil {
				return withExit(exitUsage, finish(fmt.Errorf("--format: %w", err)))
			}
			run := scoring{scorer: s, model: m, stderr: cmd.ErrOrStderr()}
			builder := scorer.NewRecordBuilder(0)
			run.use = func(path string, rec arrow.Record) error {
				if cut >= 0 {
					for i, p := range run.scores.PValue {
						run.scores.OOD[i] = p <= cut
					}
				}
				rows, err := builder.Build(rec, &run.scores, m, path, false)
				if err != nil {
					return err
				}
				defer rows.Release()
				return w.Write(rows)
			}
			for _, path := range args {
				if err = run.file(cmd, path, inputFormat); err != nil {
					break
				}
			}
			if err == nil {
				err = w.Close()
			}
			if err = finish(err); errors.Is(err, syscall.EPIPE) {
				return nil // whoever reads has seen enough
			}
			if err == nil && run.skipped > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "oodmon: %d of %d rows have no score\n", run.skipped, run.rows)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&location, "model", "", "model file, or registry (required)")
	f.StringVar(&format, "format", "jsonl", "output format: jsonl, csv or arrow (an IPC stream)")
	f.StringVar(&output, "output", "-", "output file; - is standard output")
	f.StringVar(&inputFormat, "input-format", featurizer.FormatJSONL, "format of standard input: arrow, npy or jsonl")
	f.BoolVar(&perClass, "per-class", false, "a threshold and p-values for each predicted class with enough calibration records")
	f.Var(&fdr, "fdr", "decide all rows together, at this false-discovery rate (default: by the threshold)")
	f.StringVar(&fdrMethod, "fdr-method", fdrBH, "bh (Benjamini-Hochberg) or storey")
	must(cmd.MarkFlagRequired("model"))
	return cmd
}

const fdrBH, fdrStorey = "bh", "storey"

// fdrCut reads the files and returns the largest p-value that is out of
// distribution at the false-discovery rate q.
func fdrCut(cmd *cobra.Command, s *scorer.Scorer, paths []string, q float64, storey bool) (float32, error) {
	var p []float32
	run := scoring{scorer: s, model: s.Model(), stderr: io.Discard} // the second reading names the rows
	run.use = func(_ string, _ arrow.Record) error {
		for i, class := range run.scores.Class {
			if class >= 0 {
				p = append(p, run.scores.PValue[i])
			}
		}
		return nil
	}
	for _, path := range paths {
		if err := run.file(cmd, path, ""); err != nil {
			return 0, err
		}
	}
	if n, need := s.CalibrationRecords(), math.Ceil(float64(len(p))/q)-1; float64(n) < need {
		fmt.Fprintf(cmd.ErrOrStderr(), "oodmon: a p-value is ranked among %d calibration records: a lone outlier among these %d rows cannot be called at --fdr %g; %.0f would be needed\n", n, len(p), q, need)
	}
	return scorer.FDR(p, q, storey), nil
}

type scoring struct {
	scorer        *scorer.Scorer
	model         *model.Model
	use           func(path string, rec arrow.Record) error // takes a record and its scores
	workspace     scorer.Workspace
	scores        scorer.Scores
	stderr        io.Writer
	rows, skipped int
}

// maxNamed is how many rows without a score are named.
const maxNamed = 10

func (s *scoring) file(cmd *cobra.Command, path, inputFormat string) (err error) {
	name := path
	var r *featurizer.FileReader
	if path == "-" {
		name = "standard input"
		if !slices.Contains(featurizer.Formats, inputFormat) {
			return withExit(exitUsage, fmt.Errorf("--input-format: %q is not one of %q", inputFormat, featurizer.Formats))
		}
		r, err = featurizer.ReadStream(name, inputFormat, cmd.InOrStdin())
	} else {
		r, err = featurizer.OpenFile(path)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for first := 0; cmd.Context().Err() == nil; {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		rows := int(rec.NumRows())
		err = s.record(path, name, first, rec)
		rec.Release()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		first += rows
	}
	return fmt.Errorf("score %s: %w", name, cmd.Context().Err())
}

// record scores a record that begins at row first of its file.
func (s *scoring) record(path, name string, first int, rec arrow.Record) error {
	if err := s.scorer.Score(&s.workspace, rec, &s.scores); err != nil {
		return err
	}
	for i, class := range s.scores.Class {
		if class >= 0 {
			continue
		}
		if s.skipped++; s.skipped <= maxNamed {
			fmt.Fprintf(s.stderr, "oodmon: %s: row %d has no direction: it is not finite or has a norm under 1e-12\n", name, first+i)
		}
	}
	s.rows += int(rec.NumRows())
	return s.use(path, rec)
}
