package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/trainer"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// loadModel reads a model file, or a registry's current model, as flag says.
func loadModel(ctx context.Context, flag, location string) (*model.Model, error) {
	info, err := os.Stat(location)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if !info.IsDir() {
		return model.ReadFile(location)
	}
	models, err := model.OpenRegistry(location)
	if err != nil {
		return nil, err
	}
	version, err := models.Current(ctx)
	if err != nil {
		return nil, err
	}
	return models.Load(ctx, version)
}

func addRateFlags(f *pflag.FlagSet, alpha, delta *float64) {
	*alpha, *delta = .01, .05
	f.Var((*share)(alpha), "alpha", "the false-positive rate: the share of in-distribution records that may be flagged")
	f.Var((*share)(delta), "delta", "the rate holds with probability 1-delta over the draw of the calibration records")
}

// A share is a flag between 0 and 1, both excluded.
type share float64

func (s *share) String() string { return strconv.FormatFloat(float64(*s), 'g', -1, 64) }
func (s *share) Type() string   { return "float" }

func (s *share) Set(text string) error {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || !(v > 0 && v < 1) {
		return errors.New("it must be a number between 0 and 1")
	}
	*s = share(v)
	return nil
}

// withCalibrationHint says by which flags there are enough calibration records.
func withCalibrationHint(err error) error {
	if errors.Is(err, model.ErrTooFewCalibrationRecords) {
		return fmt.Errorf("%w: give more of them (--calibration), or allow a higher rate (--alpha)", err)
	}
	return err
}

func must(err error) {
	if err != nil {
		panic(err) // a flag that this program does not define
	}
}

func newModelCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "model",
		Short: "Look at the models of a registry, and choose the one in service",
	}
	registry := cmd.PersistentFlags().String("registry", "", "the registry's folder")
	cmd.AddCommand(
		newModelListCommand(registry), newModelShowCommand(registry), newModelPromoteCommand(registry),
		newModelRollbackCommand(registry), newModelImportCommand(registry),
	)
	return cmd
}

func openRegistry(location string) (*model.Registry, error) {
	if location == "" {
		return nil, withExit(exitUsage, errors.New("--registry is required"))
	}
	return model.OpenRegistry(location)
}

// existing refuses a registry that is not there: a command that only looks, or
// goes back, would take a mistyped folder for an empty registry, or make it.
func existing(location string) error {
	if location == "" {
		return nil // openRegistry says so
	}
	if _, err := os.Stat(location); err != nil {
		return fmt.Errorf("--registry: %w", err)
	}
	return nil
}

// A modelInfo is what list and show print.
type modelInfo struct {
	Version       string    `json:"version"`
	Current       bool      `json:"current"`
	Created       time.Time `json:"created"`
	Detector      string    `json:"detector"`
	Score         string    `json:"score"`
	Dim           int       `json:"dim"`
	Transform     string    `json:"transform,omitempty"`
	Classes       []string  `json:"classes"`
	Alpha         float64   `json:"alpha"`
	Delta         float64   `json:"delta"`
	Threshold     float64   `json:"threshold"`
	Rank          int       `json:"rank"`
	Calibration   int       `json:"calibration"`
	DistanceScale float64   `json:"distance_scale,omitempty"`
	EntropicScale float64   `json:"entropic_scale"`
	Parent        string    `json:"parent,omitempty"`
	Training      any       `json:"training,omitempty"`
}

func describe(m *model.Model, current string) (modelInfo, error) {
	threshold, rank, err := m.Calibration.Threshold(m.Alpha, m.Delta)
	if err != nil {
		return modelInfo{}, fmt.Errorf("model %s: %w", m.Version, err)
	}
	info := modelInfo{
		Version: m.Version, Current: m.Version == current, Created: m.Created, Detector: m.Detector, Score: m.Score, Dim: m.Dim(), Classes: m.Classes,
		Alpha: m.Alpha, Delta: m.Delta, Threshold: float64(threshold), Rank: rank, Calibration: len(m.Calibration.Scores),
		DistanceScale: float64(m.DistanceScale), EntropicScale: m.EntropicScale, Parent: m.Parent,
	}
	if m.Transform != nil {
		info.Transform = m.Transform.String()
	}
	if m.Training != nil {
		info.Training = m.Training
	}
	return info, nil
}

func newModelListCommand(registry *string) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "list --registry DIR",
		Short: "List the models of a registry, the newest first",
		Long: `list shows the models of a registry, the newest first; a star marks the one in
service. A damaged file does not hide the others: it is named, and the exit code
is 1.`,
		Example: "  oodmon model list --registry /var/lib/oodmon/registry",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			models, err := openRegistry(*registry)
			if err != nil {
				return err
			}
			if err := existing(*registry); err != nil {
				return err
			}
			versions, err := models.List(cmd.Context())
			if err != nil {
				return err
			}
			current, err := models.Current(cmd.Context())
			if err != nil && !errors.Is(err, model.ErrNoCurrent) {
				return err
			}
			all := []modelInfo{}
			var damaged error
			for _, version := range versions {
				m, err := models.Load(cmd.Context(), version)
				if err != nil {
					damaged = errors.Join(damaged, err)
					continue
				}
				info, err := describe(m, current)
				if err != nil {
					damaged = errors.Join(damaged, err)
					continue
				}
				all = append(all, info)
			}
			slices.SortStableFunc(all, func(a, b modelInfo) int { return b.Created.Compare(a.Created) })
			if asJSON {
				return errors.Join(writeJSON(cmd.OutOrStdout(), all), damaged)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "\tVERSION\tCREATED\tDETECTOR\tCLASSES\tDIM\tALPHA\tPARENT")
			for _, m := range all {
				mark := " "
				if m.Current {
					mark = "*"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%g\t%s\n", mark, m.Version, m.Created.Format(time.RFC3339), m.Detector, len(m.Classes), m.Dim, m.Alpha, m.Parent)
			}
			return errors.Join(w.Flush(), damaged)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return cmd
}

func newModelShowCommand(registry *string) *cobra.Command {
	return &cobra.Command{
		Use:   "show [--registry DIR [VERSION]|FILE]",
		Short: "Show a model, as JSON",
		Long: `show prints a model of a registry, by default the one in service, or a model file:
what it is made of, its threshold, and how it was fitted. It is JSON.`,
		Example: `  oodmon model show --registry /var/lib/oodmon/registry                # the current model
  oodmon model show --registry /var/lib/oodmon/registry 0123456789ab
  oodmon model show head.safetensors`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if *registry == "" && len(args) == 1 {
				m, err := model.ReadFile(args[0])
				if err != nil {
					return err
				}
				info, err := describe(m, "")
				if err != nil {
					return err
				}
				return writeJSON(cmd.OutOrStdout(), info)
			}
			models, err := openRegistry(*registry)
			if err != nil {
				return err
			}
			current, err := models.Current(cmd.Context())
			if err != nil && (len(args) == 0 || !errors.Is(err, model.ErrNoCurrent)) {
				return err
			}
			version := current
			if len(args) == 1 {
				version = args[0]
			}
			m, err := models.Load(cmd.Context(), version)
			if err != nil {
				return err
			}
			info, err := describe(m, current)
			if err != nil {
				return err
			}
			return writeJSON(cmd.OutOrStdout(), info)
		},
	}
}

// locked runs fn while nobody else writes to the registry.
func locked(ctx context.Context, location string, fn func(*model.Registry) error) (err error) {
	models, err := openRegistry(location)
	if err != nil {
		return err
	}
	release, err := models.Lock(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	return fn(models)
}

// checkDimension refuses to put a model into service that is for embeddings of
// another dimension than the one that is there. One that cannot be read is no
// reason to keep it.
func checkDimension(ctx context.Context, models *model.Registry, m *model.Model) error {
	version, err := models.Current(ctx)
	if errors.Is(err, model.ErrNoCurrent) {
		return nil
	}
	if err != nil {
		return err
	}
	current, err := models.Load(ctx, version)
	if err != nil || current.Dim() == m.Dim() {
		return nil
	}
	return fmt.Errorf("the model is for embeddings of dimension %d, and %s, which is in service, for dimension %d: a running monitor would not take it in, and once restarted reject every embedding of dimension %d; --force puts it into service all the same",
		m.Dim(), version, current.Dim(), current.Dim())
}

func addForceFlag(f *pflag.FlagSet, force *bool) {
	f.BoolVar(force, "force", false, "put the model into service though it is for embeddings of another dimension")
}

func newModelPromoteCommand(registry *string) *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "promote --registry DIR VERSION|FILE",
		Short: "Put a model into service",
		Long: `promote puts a version of the registry into service, or adds a model file to the
registry and puts that into service. A model for embeddings of another dimension
than the one in service needs --force: running monitors do not take it in, and
have to be restarted when the embeddings change.`,
		Example: `  oodmon model promote --registry /var/lib/oodmon/registry 0123456789ab
  oodmon model promote --registry /var/lib/oodmon/registry head.safetensors`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			version, fromFile := args[0], false
			var m *model.Model
			if _, err := os.Stat(version); err == nil {
				if m, err = model.ReadFile(version); err != nil {
					return err
				}
				fromFile = true
			} else if strings.ContainsAny(version, "./\\") { // the name of a file, not a version
				return err
			}
			return locked(cmd.Context(), *registry, func(models *model.Registry) (err error) {
				if !fromFile {
					if m, err = models.Load(cmd.Context(), version); err != nil {
						return err
					}
				}
				if !force {
					if err := checkDimension(cmd.Context(), models, m); err != nil {
						return err
					}
				}
				if fromFile {
					version, err = models.Publish(cmd.Context(), m, model.Event{Detail: "by hand"})
				} else {
					err = models.Promote(cmd.Context(), version)
				}
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "in service:", version)
				return err
			})
		},
	}
	addForceFlag(cmd.Flags(), &force)
	return cmd
}

func newModelRollbackCommand(registry *string) *cobra.Command {
	return &cobra.Command{
		Use:     "rollback --registry DIR",
		Short:   "Put the model back into service that was there before",
		Example: "  oodmon model rollback --registry /var/lib/oodmon/registry",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := existing(*registry); err != nil {
				return err
			}
			return locked(cmd.Context(), *registry, func(models *model.Registry) error {
				version, err := models.Rollback(cmd.Context())
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "in service:", version)
				return err
			})
		},
	}
}

func newModelImportCommand(registry *string) *cobra.Command {
	var (
		head, output    string
		detector, score string
		calibration     []string
		classes         []string
		promote, force  bool
		alpha, delta    float64
	)
	cmd := &cobra.Command{
		Use:   "import --head FILE --calibration FILE (--output MODEL | --registry DIR)",
		Short: "Make a model of a head that was trained elsewhere",
		Long: `import reads the head of a network that was trained elsewhere, for example in
PyTorch, and calibrates it on in-distribution embeddings that the training never
saw. The file holds, in float32,

  isomax+, dismax  prototypes [C, D] and distance_scale [1]
  isomax           prototypes [C, D]
  softmax          weight or weights [C, D] and bias [C], as of a torch.nn.Linear

  from safetensors.torch import save_file
  save_file({"prototypes": head.prototypes, "distance_scale": head.distance_scale}, "head.safetensors")
  save_file(model.classifier.state_dict(), "head.safetensors")      # a torch.nn.Linear

--detector says which head it is; else the file's metadata (loss), else softmax
where there are weights and isomax+ where there are prototypes. A
linear layer between the embeddings and the head comes along as the tensor
transform.matrix [D, K] (a torch.nn.Linear's weight, transposed), or, for identity
plus low rank, x + (x·U)·V, as transform.u [D, r] and transform.v [r, D].
The temperature of the probabilities is fitted to the calibration records that
have a label; without labels, or behind a layer with K other than D, it stays what
the file says. Class names come from --classes, else from the file's metadata
(classes, a JSON array), else they are numbers. The model goes to a file, or to a
registry; there --promote puts it into service, under the rules of 'model promote'.`,
		Example: `  oodmon model import --head head.safetensors --calibration val.arrow --output model.safetensors
  oodmon model import --head head.safetensors --calibration val.parquet --registry /var/lib/oodmon/registry --promote
  oodmon model import --head classifier.safetensors --detector softmax --score energy --calibration val.parquet --output model.safetensors`,
		Args: noLooseFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (output == "") == (*registry == "") {
				return withExit(exitUsage, errors.New("exactly one of --output and --registry is required"))
			}
			if promote && *registry == "" {
				return withExit(exitUsage, errors.New("--promote needs --registry"))
			}
			if force && !promote {
				return withExit(exitUsage, errors.New("--force needs --promote"))
			}
			m, err := importHead(head, detector, score, classes, alpha, delta)
			if err != nil {
				return err
			}
			temperature, err := trainer.Calibrate(cmd.Context(), m, trainer.Files(calibration...))
			if err != nil {
				return withCalibrationHint(err)
			}
			text := temperature.String()
			if temperature.Records == 0 && temperature.Unfitted == "" && classes == nil {
				text += "; where they have labels, name the classes as these do, by --classes"
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "oodmon: "+text)
			if output != "" {
				if err := writeModel(output, m); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: model %s\n", output, m.Version)
				return err
			}
			return locked(cmd.Context(), *registry, func(models *model.Registry) error {
				what := ""
				if promote {
					what = "in service: "
					if !force {
						if err := checkDimension(cmd.Context(), models, m); err != nil {
							return err
						}
					}
					if _, err := models.Publish(cmd.Context(), m, model.Event{Detail: "imported from " + head}); err != nil {
						return err
					}
				} else if _, err := models.Add(cmd.Context(), m); err != nil {
					return err
				} else if err := models.Record(cmd.Context(), model.Event{Kind: model.EventImported, Version: m.Version, Detail: "from " + head}); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), what+m.Version)
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&head, "head", "", "safetensors file of the head (required)")
	f.StringVar(&detector, "detector", "", "the head: isomax+, isomax, dismax or softmax (default: as the file says)")
	f.StringVar(&score, "score", "", "the score to decide by: mds, mps, es, mmls, mmles, max-logit or energy (default: mds for isomax+, es for isomax, mmles for dismax, mps for softmax)")
	f.StringSliceVar(&calibration, "calibration", nil, "in-distribution embeddings; may be repeated (required)")
	f.StringSliceVar(&classes, "classes", nil, "class names in the order of the prototypes")
	f.StringVar(&output, "output", "", "model file to write")
	f.BoolVar(&promote, "promote", false, "put the model into service")
	addForceFlag(f, &force)
	addRateFlags(f, &alpha, &delta)
	must(cmd.MarkFlagRequired("head"))
	must(cmd.MarkFlagRequired("calibration"))
	return cmd
}

func importHead(path, detector, score string, classes []string, alpha, delta float64) (*model.Model, error) {
	m, err := model.ReadHead(path, detector)
	if err != nil {
		return nil, err
	}
	if score != "" {
		if allowed := model.Scores(m.Detector); !slices.Contains(allowed, score) {
			return nil, withExit(exitUsage, fmt.Errorf("--score: %q is not one of %q of %s", score, allowed, m.Detector))
		}
		m.Score = score
	}
	if classes != nil {
		if len(classes) != m.NumClasses() {
			return nil, fmt.Errorf("%s: %d class names for %d classes", path, len(classes), m.NumClasses())
		}
		m.Classes = classes
	}
	m.Alpha, m.Delta, m.Created = alpha, delta, time.Now().UTC().Truncate(time.Second)
	return m, nil
}
