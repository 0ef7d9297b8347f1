package alerts_test

import (
	"strings"
	"testing"
	"time"

	"github.com/oodmon/oodmon/alerts"
	"github.com/oodmon/oodmon/monitor"
)

func TestRulesAreThoseOfTheDefaultConfiguration(t *testing.T) {
	got, err := alerts.Generate(monitor.DefaultConfig().AlertParameters())
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(alerts.Rules) {
		t.Error("rules.yml is out of date: run 'go run ./cmd/oodmon alerts generate --config deploy/oodmon.yml --output alerts/rules.yml'")
	}
}

func TestRulesFollowTheConfiguration(t *testing.T) {
	cfg := monitor.DefaultConfig()
	cfg.Alerts.OODBudget, cfg.Alerts.MinRecords = .05, 7
	cfg.Alerts.MaxLag, cfg.Alerts.MaxModelAge, cfg.Alerts.MaxRetrainAge = 90*time.Second, 36*time.Hour, 48*time.Hour
	cfg.Input.StallTimeout = time.Minute
	cfg.Retrain.FalsePositiveRate = .03
	got, err := alerts.Generate(cfg.AlertParameters())
	if err != nil {
		t.Fatal(err)
	}
	text := string(got)
	for _, want := range []string{
		"> 14.4 * 0.05\n", "> 6 * 0.05\n", "              > 0.05\n", "budget of 5%", "increase(oodmon_records_total[1h])) >= 7\n",
		"increase(oodmon_records_total[3d])) >= 70\n", "            > 90\n", "> 129600\n", "more than 1d12h", "> 2 * 86400\n",
		"committed_offset[5m]", "timestamp_seconds) > 150\n        for: 2m30s\n", "retrain.false_positive_rate, 0.03",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the rules", want)
		}
	}
	for _, stale := range []string{"0.02", "<<", ">>"} {
		if strings.Contains(text, stale) {
			t.Errorf("%q in the rules", stale)
		}
	}
}

// Alpha < budget < 1/14.4: below, a healthy stream uses the budget up; above,
// the fastest alert asks for more than every record.
func TestGenerateRefusesABudgetThatCannotWork(t *testing.T) {
	for _, test := range []struct {
		budget, alpha float64
		want          string
	}{
		{.02, .02, "alerts.ood_budget: 0.02 must lie above the false-positive rate, 0.02: a healthy stream would use it up"},
		{.2, .1, "alerts.ood_budget: no budget fits a false-positive rate of 0.1: it must lie above the rate, and below 1/14.4 = 0.0694"},
		{1 / 14.4, .01, "alerts.ood_budget: 0.06944444444444445 must lie below 1/14.4 = 0.0694: from there on 14.4 times the budget is more than every record, and the fastest alert could never fire"},
		{0, .01, "alerts.ood_budget: 0 must lie between 0 and 1"},
		{.0694, .0693, ""},
		{.0101, .01, ""},
	} {
		p := monitor.DefaultConfig().AlertParameters()
		p.OODBudget, p.FalsePositiveRate = test.budget, test.alpha
		_, err := alerts.Generate(p)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("budget %v, alpha %v: got %v, want %q", test.budget, test.alpha, err, test.want)
		}
	}
}

func TestConfigRefuses(t *testing.T) {
	for want, spoil := range map[string]func(*alerts.Config){
		"alerts.min_records: 0 must be positive":                                       func(c *alerts.Config) { c.MinRecords = 0 },
		"alerts.max_lag: 500ms must be a whole number of seconds, 1s or longer":        func(c *alerts.Config) { c.MaxLag = 500 * time.Millisecond },
		"alerts.evaluate.interval: 0s must be a whole number of seconds, 1s or longer": func(c *alerts.Config) { c.Evaluate.Interval = 0 },
		"alerts.evaluate: webhook_url and webhook_url_file exclude each other":         func(c *alerts.Config) { c.Evaluate.WebhookURL, c.Evaluate.WebhookURLFile = "http://h/", "f" },
		"alerts.evaluate.webhook_url: want http:// or https://, a host, and a path":    func(c *alerts.Config) { c.Evaluate.WebhookURL = "ftp://user:secret@h/" },
	} {
		c := alerts.DefaultConfig()
		spoil(&c)
		if err := c.Validate(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
