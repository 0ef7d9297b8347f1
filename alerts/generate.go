package alerts

import (
	"bytes"
	_ "embed"
	"fmt"
	"strconv"
	"text/template"
	"time"

	"github.com/prometheus/common/model"
)

// Parameters are what the rules repeat from the configuration.
type Parameters struct {
	Config
	// FalsePositiveRate is the rate that models are calibrated for (alpha).
	FalsePositiveRate float64
	// StallTimeout is how long records may wait without progress before
	// /-/healthy fails. The page comes after five times that: where something
	// restarts what is not healthy, it has had its chance.
	StallTimeout time.Duration
}

//go:embed rules.yml.tmpl
var rulesTemplate string

// CheckBudget reports a budget of the OOD rate for which the rules cannot work:
// a healthy stream would use it up, or the fastest alert could never fire. A
// configuration may have one where nobody makes rules of it.
func (p Parameters) CheckBudget() error {
	switch {
	case p.FalsePositiveRate >= 1/fastestBurn:
		return fmt.Errorf("alerts.ood_budget: no budget fits a false-positive rate of %v: it must lie above the rate, and below 1/14.4 = 0.0694", p.FalsePositiveRate)
	case p.OODBudget <= p.FalsePositiveRate:
		return fmt.Errorf("alerts.ood_budget: %v must lie above the false-positive rate, %v: a healthy stream would use it up", p.OODBudget, p.FalsePositiveRate)
	case p.OODBudget >= 1/fastestBurn:
		return fmt.Errorf("alerts.ood_budget: %v must lie below 1/14.4 = 0.0694: from there on %v times the budget is more than every record, and the fastest alert could never fire", p.OODBudget, fastestBurn)
	}
	return nil
}

// Generate returns the rule file for p. It refuses what Validate and CheckBudget do.
func Generate(p Parameters) ([]byte, error) {
	if err := p.Config.Validate(); err != nil {
		return nil, err
	}
	if err := p.CheckBudget(); err != nil {
		return nil, err
	}
	// Prometheus' own templates in the rules keep their braces.
	t, err := template.New("rules.yml").Delims("<<", ">>").Option("missingkey=error").Funcs(template.FuncMap{
		"duration": func(d time.Duration) string { return model.Duration(d).String() },
		"seconds":  secondsExpr,
	}).Parse(rulesTemplate)
	if err != nil {
		return nil, fmt.Errorf("parse the template of the rules: %w", err)
	}
	stalled := max(5*p.StallTimeout.Round(time.Second), 10*time.Second)
	var text bytes.Buffer
	err = t.Execute(&text, map[string]any{
		"Budget":            strconv.FormatFloat(p.OODBudget, 'g', -1, 64),
		"BudgetPercent":     strconv.FormatFloat(100*p.OODBudget, 'g', 4, 64) + "%",
		"FalsePositiveRate": strconv.FormatFloat(p.FalsePositiveRate, 'g', -1, 64),
		"MinRecords":        p.MinRecords,
		"MinRecordsDays":    10 * p.MinRecords,
		"Stalled":           stalled,
		"StalledHalf":       (stalled / 2).Round(time.Second),
		"MaxLag":            p.MaxLag,
		"MaxModelAge":       p.MaxModelAge,
		"MaxRetrainAge":     p.MaxRetrainAge,
	})
	if err != nil {
		return nil, fmt.Errorf("write the rules: %w", err)
	}
	return text.Bytes(), nil
}

// secondsExpr writes a duration as a number of seconds in PromQL, days as a
// product that a person can read.
func secondsExpr(d time.Duration) string {
	const day = 24 * time.Hour
	if d >= day && d%day == 0 {
		return fmt.Sprintf("%d * 86400", d/day)
	}
	return strconv.FormatFloat(d.Seconds(), 'f', -1, 64)
}
