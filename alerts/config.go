package alerts

import (
	"errors"
	"fmt"
	"time"

	"github.com/oodmon/oodmon/internal/webhook"
)

// fastestBurn is the burn rate of the fastest alert on the OOD rate: this many
// times the budget, over an hour.
const fastestBurn = 14.4

// A Config is the section `alerts` of the configuration: the numbers of the
// rules, and whether this process evaluates them.
type Config struct {
	// OODBudget is the share of records that may be out of distribution for as
	// long as one likes.
	OODBudget float64 `yaml:"ood_budget"`
	// MinRecords is the least number of records in the window of an hour or
	// six for which an OOD rate is believed; in that of three days, ten times as many.
	MinRecords int `yaml:"min_records"`
	// MaxLag is how late scores may be, in time at the present speed.
	MaxLag time.Duration `yaml:"max_lag"`
	// MaxModelAge and MaxRetrainAge bound the time since the model in service
	// was made, and since retraining last published one.
	MaxModelAge   time.Duration  `yaml:"max_model_age"`
	MaxRetrainAge time.Duration  `yaml:"max_retrain_age"`
	Evaluate      EvaluateConfig `yaml:"evaluate"`
}

// An EvaluateConfig says whether the rules are evaluated in this process.
type EvaluateConfig struct {
	Enabled  bool          `yaml:"enabled"`
	Interval time.Duration `yaml:"interval"`
	// WebhookURL, or the content of the file WebhookURLFile, is where alerts
	// are posted in the format of Alertmanager's webhook receiver. Neither: nowhere.
	WebhookURL     string `yaml:"webhook_url"`
	WebhookURLFile string `yaml:"webhook_url_file"`
}

// DefaultConfig returns the value of every key that a file leaves out.
func DefaultConfig() Config {
	return Config{
		OODBudget:     .02,
		MinRecords:    100,
		MaxLag:        5 * time.Minute,
		MaxModelAge:   30 * 24 * time.Hour,
		MaxRetrainAge: 14 * 24 * time.Hour,
		Evaluate:      EvaluateConfig{Interval: 15 * time.Second},
	}
}

// Validate reports every value that cannot work, each with its key.
func (c Config) Validate() error {
	var all []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			all = append(all, fmt.Errorf(format, args...))
		}
	}
	require(c.OODBudget > 0 && c.OODBudget < 1, "alerts.ood_budget: %v must lie between 0 and 1", c.OODBudget)
	require(c.MinRecords > 0, "alerts.min_records: %d must be positive", c.MinRecords)
	wholeSeconds := func(key string, d, least time.Duration) {
		require(d >= least && d%time.Second == 0, "alerts.%s: %v must be a whole number of seconds, %v or longer", key, d, least)
	}
	wholeSeconds("max_lag", c.MaxLag, time.Second)
	wholeSeconds("max_model_age", c.MaxModelAge, time.Second)
	wholeSeconds("max_retrain_age", c.MaxRetrainAge, time.Second)
	wholeSeconds("evaluate.interval", c.Evaluate.Interval, time.Second)
	require(c.Evaluate.WebhookURL == "" || c.Evaluate.WebhookURLFile == "", "alerts.evaluate: webhook_url and webhook_url_file exclude each other")
	if c.Evaluate.WebhookURL != "" {
		if err := webhook.Check(c.Evaluate.WebhookURL); err != nil {
			all = append(all, fmt.Errorf("alerts.evaluate.webhook_url: %w", err))
		}
	}
	return errors.Join(all...)
}
