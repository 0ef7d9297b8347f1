package trainer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/oodmon/oodmon/consumer"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/oodmon/oodmon/model"
)

// A RetrainConfig is the section `retrain` of oodmon.yml.
type RetrainConfig struct {
	Data DataConfig `yaml:"data"`
	// FalsePositiveRate is alpha: it holds with probability Confidence.
	FalsePositiveRate float64    `yaml:"false_positive_rate"`
	Confidence        float64    `yaml:"confidence"`
	CalibrationShare  float64    `yaml:"calibration_share"`
	HeldOutShare      float64    `yaml:"held_out_share"`
	Recipe            Recipe     `yaml:"recipe"`
	Gate              GateConfig `yaml:"gate"`
	TempDir           string     `yaml:"temp_dir"`
}

// A DataConfig says where labelled embeddings are: in files, or in a topic.
type DataConfig struct {
	Files []string `yaml:"files"`
	Topic string   `yaml:"topic"`
	// Window is how far back the topic is read; 0: from its start.
	Window   time.Duration `yaml:"window"`
	Outliers []string      `yaml:"outliers"`
}

// DefaultRetrainConfig returns the value of every key that a file leaves out.
func DefaultRetrainConfig() RetrainConfig {
	return RetrainConfig{
		FalsePositiveRate: .01, Confidence: .95, CalibrationShare: .2, HeldOutShare: .2,
		Recipe: DefaultRecipe(), Gate: DefaultGate(),
	}
}

// Validate reports every value that cannot work, each with its key.
func (c *RetrainConfig) Validate() error {
	var all []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			all = append(all, fmt.Errorf("retrain."+format, args...))
		}
	}
	share := func(v float64) bool { return v > 0 && v < 1 }
	check(share(c.FalsePositiveRate), "false_positive_rate: %g must be between 0 and 1", c.FalsePositiveRate)
	check(share(c.Confidence), "confidence: %g must be between 0 and 1", c.Confidence)
	check(share(c.CalibrationShare) && share(c.HeldOutShare) && c.CalibrationShare+c.HeldOutShare < 1,
		"calibration_share and held_out_share: %g and %g must be positive and leave something to fit", c.CalibrationShare, c.HeldOutShare)
	check(len(c.Data.Files) == 0 || c.Data.Topic == "", "data: files and topic are both set; choose one")
	check(c.Data.Window >= 0, "data.window: %v must not be negative", c.Data.Window)
	check(c.Gate.MinAccuracy >= 0 && c.Gate.MinAccuracy <= 1, "gate.min_accuracy: %g must be between 0 and 1", c.Gate.MinAccuracy)
	check(c.Gate.MinRecallRecords > 0, "gate.min_recall_records: %d must be positive", c.Gate.MinRecallRecords)
	for _, err := range c.Recipe.problems() {
		all = append(all, fmt.Errorf("retrain.recipe.%w", err))
	}
	return errors.Join(all...)
}

// Broker says how the topic of labelled embeddings is read.
type Broker struct {
	Kafka                kafkaconn.Config
	Features             featurizer.Config // but for the dimension
	MaxRecords, MaxBytes int               // of what is read at once
}

// A RetrainReport is what a run of retraining found.
type RetrainReport struct {
	Result    model.EventKind `json:"result"` // published, unchanged or refused
	Time      time.Time       `json:"time"`
	Seconds   float64         `json:"seconds"`
	Training  *Report         `json:"training"`
	Candidate *Standing       `json:"candidate"`
	Champion  *Standing       `json:"champion"` // nil: none was in service
	HeldOut   int             `json:"held_out"`
	Rejected  int             `json:"rejected_messages"` // of the topic, that are no embedding
	// AUROCAgainst says what the AUROC of both is against: "outliers", "classes
	// left out", or "": there was nothing.
	AUROCAgainst string `json:"auroc_against"`
	// NewClasses are not known to the model in service, Vanished ones not in the
	// data; of NotHeldOut no record was held out, so that nothing is known of
	// their recall.
	NewClasses []string  `json:"new_classes"`
	Vanished   []string  `json:"vanished_classes"`
	NotHeldOut []string  `json:"not_held_out_classes"`
	Gate       []Verdict `json:"gate"`
}

// Line says the outcome in one line.
func (r *RetrainReport) Line() string {
	var failed []string
	for _, v := range r.Gate {
		if !v.Passed {
			failed = append(failed, v.String())
		}
	}
	if len(failed) > 0 {
		return fmt.Sprintf("refused model %s: %s", r.Candidate.Version, strings.Join(failed, "; "))
	}
	if r.Result == model.EventUnchanged {
		return fmt.Sprintf("unchanged: the candidate is model %s again, which is in service; nothing was published", r.Champion.Version)
	}
	text := fmt.Sprintf("published model %s: accuracy %.4f, false-positive rate %.4f on %d held-out records", r.Candidate.Version, r.Candidate.Accuracy, r.Candidate.FalsePositiveRate, r.HeldOut)
	if r.Champion != nil {
		text += fmt.Sprintf("; it replaces %s with accuracy %.4f", r.Champion.Version, r.Champion.Accuracy)
	}
	return text
}

// Text says all of it, for people.
func (r *RetrainReport) Text() string {
	var text strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&text, format+"\n", args...) }
	t := r.Training
	line("data        %d records of %d classes: %d to fit, %d to calibrate, %d held out; %d without label and %d without direction left out, %d messages rejected",
		t.Records, t.Classes, t.Fitted, t.Calibration, r.HeldOut, t.Unlabelled, t.NoDirection, r.Rejected)
	switch {
	case t.Started != "":
		line("fit         %d epochs, going on from model %s; loss %.4f", t.Epochs, t.Started, t.Loss)
	case t.Restarted != "":
		line("fit         %d epochs, afresh, since from the model in service it cannot go on: %s; loss %.4f", t.Epochs, t.Restarted, t.Loss)
	default:
		line("fit         %d epochs; loss %.4f", t.Epochs, t.Loss)
	}
	if t.ProjectionTrial != nil {
		line("            %s", t.ProjectionTrial)
	}
	line("            %s", t.Temperature)
	standing := func(what string, s *Standing) {
		line("%-11s model %s: accuracy %.4f, false-positive rate %.4f%s%s", what, s.Version, s.Accuracy, s.FalsePositiveRate,
			optional(", AUROC %.4f against "+r.AUROCAgainst, s.AUROC), optional(", expected calibration error %.4f", s.ECE))
	}
	standing("candidate", r.Candidate)
	if r.Champion != nil {
		standing("in service", r.Champion)
	} else {
		line("in service  no model: there is nothing to compare with")
	}
	for _, names := range []struct {
		what string
		all  []string
	}{{"new class", r.NewClasses}, {"vanished", r.Vanished}, {"no record held out", r.NotHeldOut}} {
		if len(names.all) > 0 {
			line("%-11s %s", names.what, strings.Join(names.all, ", "))
		}
	}
	for _, v := range r.Gate {
		line("rule        %s", v)
	}
	return text.String()
}

// optional formats what may be missing.
func optional(format string, v *float64) string {
	if v == nil {
		return ""
	}
	return fmt.Sprintf(format, *v)
}

// Retrain fits a candidate, compares it with the model in service on the same
// held-out data, and publishes it if the gate passes and it is not the same again.
// Another run holds it off
// by the registry's lock. What comes of it is recorded in the registry's
// history, but for a run that was held off.
func Retrain(ctx context.Context, cfg RetrainConfig, broker Broker, registry string, progress func(share float64)) (report *RetrainReport, err error) {
	models, err := model.OpenRegistry(registry)
	if err != nil {
		return nil, err
	}
	release, err := models.Lock(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release()) }()
	failed := func(err error) error {
		// The run may have failed because ctx is done; the history still has to know.
		return errors.Join(err, models.Record(context.WithoutCancel(ctx), model.Event{Kind: model.EventFailed, Retraining: true, Detail: err.Error()}))
	}
	report, m, err := propose(ctx, cfg, broker, models, progress)
	if err != nil {
		return nil, failed(err)
	}
	event := model.Event{Retraining: true, Detail: report.Line()}
	switch event.Kind = report.Result; report.Result {
	case model.EventUnchanged:
		event.Version = report.Champion.Version
		return report, models.Record(ctx, event)
	case model.EventRefused:
		event.Version = m.Version
		return report, models.Record(ctx, event)
	}
	if _, err := models.Publish(ctx, m, event); err != nil {
		return nil, failed(err)
	}
	return report, nil
}

// propose makes the candidate and judges it.
func propose(ctx context.Context, cfg RetrainConfig, broker Broker, models *model.Registry, progress func(share float64)) (*RetrainReport, *model.Model, error) {
	start := time.Now()
	report := &RetrainReport{Time: start.UTC().Truncate(time.Second), NewClasses: []string{}, Vanished: []string{}, NotHeldOut: []string{}}
	var champion *model.Model
	version, err := models.Current(ctx)
	if err == nil {
		champion, err = models.Load(ctx, version)
	}
	if err != nil && !errors.Is(err, model.ErrNoCurrent) {
		return nil, nil, err
	}
	dim := 0
	if champion != nil {
		dim = champion.Dim()
	}
	src, err := cfg.source(broker, dim, report)
	if err != nil {
		return nil, nil, err
	}
	data, err := cfg.Recipe.read(ctx, src, cfg.TempDir, cfg.CalibrationShare, cfg.HeldOutShare)
	if err != nil {
		return nil, nil, fmt.Errorf("read training data: %w", err)
	}
	defer data.close() // a temporary file that stays behind loses nothing
	opts := Options{Recipe: cfg.Recipe, Alpha: cfg.FalsePositiveRate, Delta: 1 - cfg.Confidence, Created: start, Parent: version, TempDir: cfg.TempDir, Progress: progress}
	if champion != nil && champion.Dim() != data.dim {
		return nil, nil, fmt.Errorf("the data has dimension %d, the model in service %s has %d: publish the first model of another dimension by 'oodmon train' and 'oodmon model promote --force'", data.dim, champion.Version, champion.Dim())
	}
	if cfg.Recipe.WarmStart {
		opts.Start = champion
	}
	m, training, err := train(ctx, data, opts)
	if errors.Is(err, model.ErrTooFewCalibrationRecords) {
		return nil, nil, fmt.Errorf("%w: more labelled records would do, a larger retrain.calibration_share, or a higher retrain.false_positive_rate", err)
	}
	if err != nil {
		return nil, nil, err
	}
	report.Training = training
	if report.HeldOut = data.parts[partHeldOut].rows; report.HeldOut == 0 {
		return nil, nil, errors.New("no record was held out: more data is needed, or a larger retrain.held_out_share")
	}
	held, err := newHeldOut(ctx, data, cfg.Data.Outliers, m, champion, cfg.Recipe.Seed)
	if err != nil {
		return nil, nil, fmt.Errorf("read held-out records: %w", err)
	}
	candidate, err := held.ask(ctx, m)
	if err != nil {
		return nil, nil, fmt.Errorf("evaluate candidate: %w", err)
	}
	report.Candidate, report.AUROCAgainst = &candidate.Standing, held.against
	var inService *answers
	if champion != nil {
		if inService, err = held.ask(ctx, champion); err != nil {
			return nil, nil, fmt.Errorf("evaluate model in service %s: %w", champion.Version, err)
		}
		report.Champion = &inService.Standing
		report.NewClasses = append(report.NewClasses, missing(m.Classes, champion.Classes)...)
		report.Vanished = append(report.Vanished, missing(champion.Classes, m.Classes)...)
	}
	for class, name := range held.classes {
		if held.records[class] == 0 {
			report.NotHeldOut = append(report.NotHeldOut, name)
		}
	}
	report.Gate = cfg.Gate.judge(held, candidate, inService, m.Alpha, cfg.Recipe.Seed)
	report.Result = model.EventPublished
	if champion != nil {
		// A new version with the same content would only make the monitors' drift
		// detectors begin anew.
		same, err := m.SameAs(champion)
		if err != nil {
			return nil, nil, err
		}
		if same {
			report.Result = model.EventUnchanged
		}
	}
	for _, v := range report.Gate {
		if !v.Passed {
			report.Result = model.EventRefused
		}
	}
	report.Seconds = time.Since(start).Seconds()
	return report, m, nil
}

// source returns where the labelled embeddings come from. dim is that of the
// model in service; 0: the first embedding tells it. report counts the messages
// of a topic that are no embedding.
func (c *RetrainConfig) source(broker Broker, dim int, report *RetrainReport) (Source, error) {
	switch {
	case len(c.Data.Files) > 0:
		return Files(c.Data.Files...), nil
	case c.Data.Topic == "":
		return nil, errors.New("retrain.data: neither files nor a topic is set")
	}
	conn, err := kafkaconn.New(broker.Kafka)
	if err != nil {
		return nil, err
	}
	features := broker.Features
	features.Dim = dim
	builder, err := featurizer.NewBuilder(features)
	if err != nil {
		return nil, err
	}
	spec := consumer.RangeConfig{Topic: c.Data.Topic, MaxRecords: broker.MaxRecords, MaxBytes: broker.MaxBytes, MaxMessageBytes: features.MaxMessageBytes}
	if c.Data.Window > 0 {
		spec.From = time.Now().Add(-c.Data.Window)
	}
	return func(ctx context.Context, fn func(string, arrow.Record) error) error {
		defer conn.Close()
		if err := conn.Check(ctx, c.Data.Topic); err != nil {
			return err
		}
		var last featurizer.Reject
		accepted := int64(0)
		err := consumer.ReadRange(ctx, conn, spec, func(b *consumer.Batch) error {
			for i := range b.Messages {
				m := &b.Messages[i]
				builder.Append(featurizer.Message{
					Key: m.Key, Value: m.Value, Size: int(m.Oversized), Err: m.Err, Headers: m, Time: m.Time, Partition: int32(b.Partition), Offset: m.Offset,
				})
				report.Rejected += int(m.More)
			}
			rec, rejects := builder.Take()
			if len(rejects) > 0 {
				report.Rejected += len(rejects)
				last = rejects[len(rejects)-1]
			}
			if rec == nil {
				return nil
			}
			defer rec.Release()
			accepted += rec.NumRows()
			return fn(fmt.Sprintf("%s[%d]", b.Topic, b.Partition), rec)
		})
		if err != nil {
			return err
		}
		all := accepted + int64(report.Rejected)
		switch share := float64(report.Rejected) / float64(max(1, all)); {
		case all == 0:
			return fmt.Errorf("topic %s holds no message in the range of retrain.data.window", c.Data.Topic)
		case share > maxSkipped:
			return fmt.Errorf("topic %s: %d of %d records are no embedding, a share of %.3f; at most %g is accepted; the last is at offset %d: %w",
				c.Data.Topic, report.Rejected, all, share, maxSkipped, last.Offset, last.Err)
		}
		return nil
	}, nil
}
