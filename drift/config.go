package drift

import (
	"errors"
	"fmt"
	"time"

	"github.com/oodmon/oodmon/internal/webhook"
)

// A Config is the section `drift` of oodmon.yml.
type Config struct {
	Enabled bool `yaml:"enabled"`
	// MeanTimeToFalseAlarm is what a time is divided by to give the highest
	// probability of a false alarm of an instance in it, of all its detectors and
	// segments together; the least mean time between two where they have a common past.
	MeanTimeToFalseAlarm time.Duration `yaml:"mean_time_to_false_alarm"`
	// Tolerance is how far a mean may move without being called drift.
	Tolerance Tolerance `yaml:"tolerance"`
	// Block is how many records make one bet; 0: by the autocorrelation of the stream.
	Block int `yaml:"block"`
	// ReferenceRecords is how many live records make a reference, where the
	// model's calibration is too small to be one, and for each segment.
	ReferenceRecords int `yaml:"reference_records"`
	// Projections also watches sums of the embedding itself.
	Projections bool `yaml:"projections"`
	// MaxSegments is how many segments have detectors of their own; 0: none.
	MaxSegments int `yaml:"max_segments"`
	// StateFile keeps the evidence across restarts; "": it begins at 0 each time.
	StateFile        string          `yaml:"state_file"`
	SnapshotInterval time.Duration   `yaml:"snapshot_interval"`
	Incidents        IncidentsConfig `yaml:"incidents"`
	// RetrainWebhook is called when retraining is recommended.
	RetrainWebhook WebhookConfig `yaml:"retrain_webhook"`
}

// A WebhookConfig is an address in URL or in the file URLFile; neither: nowhere. One
// that holds a token belongs in the file.
type WebhookConfig struct {
	URL     string `yaml:"url"`
	URLFile string `yaml:"url_file"`
}

// A Tolerance is how far a mean may move in the direction of an alarm, in units
// of the feature, which lies between 0 and 1.
type Tolerance struct {
	Tail  float64 `yaml:"tail"`  // share of the scores beyond the reference's upper 1 % and 5 %
	Mean  float64 `yaml:"mean"`  // mean rank and mean distance of the rank from the middle
	Class float64 `yaml:"class"` // share of a group of classes; less for those below a tenth
}

// ofClass returns how far the share of a group of classes may move: a group of 3 % that
// moves by 2 % has nearly doubled or gone.
func (t Tolerance) ofClass(share float64) float64 { return t.Class * min(1, 10*share) }

// An IncidentsConfig says what is kept of an alarm.
type IncidentsConfig struct {
	// Dir holds one JSON file an alarm, the last Keep of them; "": none is kept.
	Dir  string `yaml:"dir"`
	Keep int    `yaml:"keep"`
	// Topic takes them too; "": none.
	Topic string `yaml:"topic"`
	// Samples is how many of the records with the most extreme scores are named.
	Samples          int  `yaml:"samples"`
	IncludeEmbedding bool `yaml:"include_embedding"`
}

// DefaultConfig returns the value of every key that a file leaves out.
func DefaultConfig() Config {
	return Config{
		Enabled:              true,
		MeanTimeToFalseAlarm: 30 * 24 * time.Hour,
		Tolerance:            Tolerance{Tail: .005, Mean: .02, Class: .02},
		ReferenceRecords:     10_000,
		SnapshotInterval:     10 * time.Second,
		Incidents:            IncidentsConfig{Keep: 100, Samples: 20},
	}
}

const (
	maxBlock          = 4096
	minReference      = 1000
	maxReference      = 1_000_000
	maxSegments       = 1000
	maxSampledRecords = 1000
)

// Validate reports every value that cannot work, each with its key.
func (c *Config) Validate() error {
	var all []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			all = append(all, fmt.Errorf("drift."+format, args...))
		}
	}
	check(c.MeanTimeToFalseAlarm >= time.Minute, "mean_time_to_false_alarm: %v must be at least 1m", c.MeanTimeToFalseAlarm)
	for _, t := range []struct {
		key   string
		value float64
	}{{"tail", c.Tolerance.Tail}, {"mean", c.Tolerance.Mean}, {"class", c.Tolerance.Class}} {
		check(t.value >= 0 && t.value < .5, "tolerance.%s: %g must be at least 0 and below 0.5", t.key, t.value)
	}
	check(c.Block >= 0 && c.Block <= maxBlock, "block: %d must be between 1 and %d, or 0: chosen by the stream", c.Block, maxBlock)
	check(c.ReferenceRecords >= minReference && c.ReferenceRecords <= maxReference, "reference_records: %d must be between %d and %d", c.ReferenceRecords, minReference, maxReference)
	check(c.MaxSegments >= 0 && c.MaxSegments <= maxSegments, "max_segments: %d must be between 0 and %d", c.MaxSegments, maxSegments)
	check(c.SnapshotInterval > 0, "snapshot_interval: %v must be positive", c.SnapshotInterval)
	check(c.Incidents.Keep > 0, "incidents.keep: %d must be positive", c.Incidents.Keep)
	check(c.Incidents.Samples >= 0 && c.Incidents.Samples <= maxSampledRecords, "incidents.samples: %d must be between 0 and %d", c.Incidents.Samples, maxSampledRecords)
	hook := c.RetrainWebhook
	check(hook.URL == "" || hook.URLFile == "", "retrain_webhook: url and url_file are both set; choose one")
	if hook.URL != "" {
		err := webhook.Check(hook.URL)
		check(err == nil, "retrain_webhook.url: %w", err)
	}
	return errors.Join(all...)
}

// Address returns where to post, or "". It reads URLFile anew each time.
func (c *WebhookConfig) Address() (string, error) {
	address, err := webhook.Address(c.URL, c.URLFile)
	if err != nil {
		return "", fmt.Errorf("drift.retrain_webhook.url_file: %w", err)
	}
	return address, nil
}
