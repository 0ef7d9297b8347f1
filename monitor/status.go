package monitor

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/oodmon/oodmon/alerts"
	"github.com/oodmon/oodmon/drift"
	"github.com/oodmon/oodmon/scorer"
)

// A Status is what a person wants to know at a glance: the status page and
// `oodmon demo` show it.
type Status struct {
	Name    string    `json:"name"`
	Started time.Time `json:"started"`
	// Model is the version in service; Threshold and TargetFPR are its own.
	Model     string  `json:"model"`
	Threshold float64 `json:"threshold"`
	TargetFPR float64 `json:"target_false_positive_rate"`
	// Records counts the scored, DeadLettered those that could not be.
	Records      int64 `json:"records"`
	OOD          int64 `json:"ood"`
	DeadLettered int64 `json:"dead_lettered"`
	// RecordsPerSecond is the rate of the last rateWindow full seconds.
	RecordsPerSecond float64 `json:"records_per_second"`
	// RecentOODRate is the share of OOD among the last minute's records.
	RecentOODRate float64   `json:"recent_ood_rate"`
	Lag           int64     `json:"lag"`
	LastRecord    time.Time `json:"last_record,omitzero"`
	// ScoreHistogram counts the scores by the model in service in bins of
	// ScoreBinWidth from ScoreBinStart, which is 0 for a score that is not
	// negative, else the least one of the calibration. Two thirds of the bins are
	// below the threshold; the first and the last also hold what is beyond.
	ScoreHistogram []int64       `json:"score_histogram"`
	ScoreBinStart  float64       `json:"score_bin_start"`
	ScoreBinWidth  float64       `json:"score_bin_width"`
	Classes        []ClassStatus `json:"classes"`
	// Alerts are those that fire or may soon, if this process evaluates the rules.
	Alerts []alerts.Alert `json:"alerts,omitempty"`
	// Drift is nil where it is off.
	Drift *drift.Status `json:"drift,omitempty"`
	// Unhealthy is why /-/healthy fails, or empty.
	Unhealthy string `json:"unhealthy,omitempty"`
}

// A ClassStatus is how often a class had the nearest prototype.
type ClassStatus struct {
	Name    string `json:"name"`
	Records int64  `json:"records"`
}

const (
	statusBins   = 48
	recentWindow = 60 // seconds
	rateWindow   = 5  // seconds
)

// tally counts what Status tells. Every worker adds to it, once a batch.
type tally struct {
	mu           sync.Mutex
	version      string // the model that histogram and classes are of
	binStart     float64
	binWidth     float64
	histogram    [statusBins]int64
	classes      []int64
	records, ood int64
	deadLettered int64
	lastRecord   time.Time
	recent       [recentWindow]struct{ second, records, ood int64 }
}

// add counts one batch that l scored at now.
func (t *tally) add(now time.Time, l *live, scores *scorer.Scores, c *counts, deadLettered int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.version != l.model.Version {
		t.version = l.model.Version
		t.binStart, t.binWidth = bins(float64(l.scorer.Threshold()), l.model.Calibration.Scores)
		t.histogram = [statusBins]int64{}
		t.classes = make([]int64, len(l.model.Classes))
	}
	for class, n := range c.classes {
		t.classes[class] += int64(n)
	}
	perBin := 1 / t.binWidth
	for i, score := range scores.Score {
		if scores.Class[i] < 0 {
			continue
		}
		bin := int(min(max((float64(score)-t.binStart)*perBin, 0), statusBins))
		t.histogram[min(max(bin, 0), statusBins-1)]++ // a NaN may be any int
	}
	t.records += int64(c.records)
	t.ood += int64(c.ood)
	t.deadLettered += deadLettered
	if c.records > 0 {
		t.lastRecord = now
	}
	slot := &t.recent[now.Unix()%recentWindow]
	if slot.second != now.Unix() {
		slot.second, slot.records, slot.ood = now.Unix(), 0, 0
	}
	slot.records += int64(c.records)
	slot.ood += int64(c.ood)
}

// bins returns where the histogram begins, and the width of its bins.
func bins(threshold float64, calibration []float32) (start, width float64) {
	if least := float64(calibration[0]); least < 0 { // they ascend
		start = least
	}
	return start, max(1e-6, 1.5*(threshold-start)/statusBins)
}

func (t *tally) fill(s *Status, now time.Time, classes []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.Classes = []ClassStatus{} // not null for the page
	s.Records, s.OOD, s.DeadLettered, s.LastRecord = t.records, t.ood, t.deadLettered, t.lastRecord
	s.ScoreHistogram, s.ScoreBinStart, s.ScoreBinWidth = slices.Clone(t.histogram[:]), t.binStart, t.binWidth
	if t.version == s.Model {
		for class, n := range t.classes {
			if n > 0 {
				s.Classes = append(s.Classes, ClassStatus{classes[class], n})
			}
		}
		slices.SortStableFunc(s.Classes, func(a, b ClassStatus) int { return cmp.Compare(b.Records, a.Records) })
	}
	records, ood, last := int64(0), int64(0), int64(0)
	for _, slot := range t.recent {
		age := now.Unix() - slot.second
		if age < recentWindow {
			records += slot.records
			ood += slot.ood
		}
		if age >= 1 && age <= rateWindow {
			last += slot.records
		}
	}
	s.RecordsPerSecond = float64(last) / max(1, min(rateWindow, math.Floor(now.Sub(s.Started).Seconds())))
	s.RecentOODRate = float64(ood) / math.Max(1, float64(records))
}
