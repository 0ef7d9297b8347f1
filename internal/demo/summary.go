package demo

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/oodmon/oodmon/alerts"
)

// A Summary compares what the monitor found with what was sent. Rates are
// shares between 0 and 1; in-distribution is the positive class of AUROC and
// TNR@TPR95.
type Summary struct {
	Seconds      float64 `json:"seconds"`
	ModelVersion string  `json:"model_version"`
	// Produced = Scored + DeadLettered, and nothing twice, if CountsAddUp.
	Produced     int  `json:"produced"`
	Scored       int  `json:"scored"`
	DeadLettered int  `json:"dead_lettered"`
	Broken       int  `json:"broken_sent"`
	Duplicates   int  `json:"duplicates"`
	CountsAddUp  bool `json:"counts_add_up"`
	// InDistribution and OOD count the scored records by what they were.
	InDistribution int     `json:"in_distribution"`
	OOD            int     `json:"ood"`
	Accuracy       float64 `json:"accuracy"`
	AUROC          float64 `json:"auroc"`
	TNRAtTPR95     float64 `json:"tnr_at_tpr95"`
	// TargetFPR is the false-positive rate that was chosen; FPR the share of
	// in-distribution records that were flagged; DetectionRate of the others.
	TargetFPR     float64 `json:"target_false_positive_rate"`
	FPR           float64 `json:"false_positive_rate"`
	DetectionRate float64 `json:"detection_rate"`
	// Noticed is false if the OOD rate never left what the chosen
	// false-positive rate explains. The delay counts from the first unknown digit.
	Noticed        bool    `json:"noticed"`
	DelayRecords   int     `json:"delay_records"`
	DelaySeconds   float64 `json:"delay_seconds"`
	NoticedTooSoon bool    `json:"noticed_before_ood"`
	// Alerts names those that fired. DriftDelaySeconds is from the first
	// unknown digit to OodmonDrift, negative for a false alarm, null without one.
	Alerts            []string `json:"alerts"`
	DriftDelaySeconds *float64 `json:"drift_delay_seconds"`
}

// hear enters the alerts that fired. unknown is when the first unknown digit
// was sent.
func (s *Summary) hear(fired []alerts.Alert, unknown time.Time) {
	s.Alerts = []string{}
	for _, a := range fired {
		if !slices.Contains(s.Alerts, a.Name()) {
			s.Alerts = append(s.Alerts, a.Name())
		}
		if a.Name() == "OodmonDrift" && s.DriftDelaySeconds == nil {
			delay := a.FiringSince.Sub(unknown).Seconds()
			if unknown.IsZero() {
				delay = -1
			}
			s.DriftDelaySeconds = &delay
		}
	}
}

// WriteText writes the summary for a person.
func (s *Summary) WriteText(w io.Writer) error {
	verdict := "every record is accounted for"
	if !s.CountsAddUp {
		verdict = "THE COUNTS DO NOT ADD UP"
	}
	noticed := "not noticed"
	switch {
	case s.NoticedTooSoon:
		noticed = "a false alarm before the first unknown digit"
	case s.Noticed:
		noticed = fmt.Sprintf("%d records (%v) after the first unknown digit", s.DelayRecords, time.Duration(s.DelaySeconds*float64(time.Second)).Round(10*time.Millisecond))
	}
	drift := "no"
	switch d := s.DriftDelaySeconds; {
	case d != nil && *d < 0:
		drift = "a false alarm before the first unknown digit"
	case d != nil:
		drift = fmt.Sprintf("OodmonDrift fired %.1fs after the first unknown digit", *d)
	}
	_, err := fmt.Fprintf(w, `
What was sent, and what was found
  records sent           %8d  = %d scored + %d dead-lettered, %d twice: %s
  known digits, 0-7      %8d  nearest class right for %.1f %%
  unknown digits, 8-9    %8d  AUROC %.2f %%, TNR@TPR95 %.1f %% (in-distribution positive)
  false-positive rate    %7.2f%%  of the known digits flagged; chosen: at most %.0f %%
  detection rate         %7.1f%%  of the unknown digits flagged
  noticed                %s
  alert                  %s
  model                  %s, fitted in this run
`, s.Produced, s.Scored, s.DeadLettered, s.Duplicates, verdict,
		s.InDistribution, 100*s.Accuracy,
		s.OOD, 100*s.AUROC, 100*s.TNRAtTPR95,
		100*s.FPR, 100*s.TargetFPR,
		100*s.DetectionRate, noticed, drift, s.ModelVersion)
	return err
}
