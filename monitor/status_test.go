package monitor

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
)

// The histogram shows the scores on both sides of the threshold, also of a
// score that is negative, as the maximum probability score is.
func TestHistogramOfANegativeScore(t *testing.T) {
	for _, detector := range []string{model.MDS, model.MPS} {
		m := testModel(t, testDim, 1)
		m.Score = detector
		if detector == model.MPS { // from -1 on
			for i := range m.Calibration.Scores {
				m.Calibration.Scores[i] = -1 + float32(i)/2000
			}
		}
		if _, err := m.Encode(); err != nil { // it sets the version
			t.Fatal(err)
		}
		s, err := scorer.New(m)
		if err != nil {
			t.Fatal(err)
		}
		threshold := s.Threshold()
		low := m.Calibration.Scores[0]
		all := &scorer.Scores{
			Score: []float32{low - 1, (low + threshold) / 2, threshold + (threshold-low)/4, threshold + 10},
			Class: []int32{0, 1, 2, 3}, OOD: []bool{false, false, true, true},
		}
		var tally tally
		var counts counts
		counts.take(all, len(m.Classes))
		tally.add(time.Now(), &live{model: m, scorer: s}, all, &counts, 0)
		var status Status
		tally.fill(&status, time.Now(), m.Classes)
		var at []int
		for bin, n := range status.ScoreHistogram {
			for range n {
				at = append(at, bin)
			}
		}
		edge := int((float64(threshold) - status.ScoreBinStart) / status.ScoreBinWidth)
		if len(at) != 4 || at[0] != 0 || at[1] < edge/3 || at[1] >= edge || at[2] < edge || at[2] == statusBins-1 || at[3] != statusBins-1 || !slices.IsSorted(at) {
			t.Errorf("%s: the bins are %v, the threshold's %d; from %g, %g wide", detector, at, edge, status.ScoreBinStart, status.ScoreBinWidth)
		}
	}
}

// Before the first record the page has a list of no classes to show, not null.
func TestStatusOfNothing(t *testing.T) {
	var status Status
	new(tally).fill(&status, time.Now(), []string{"a"})
	if text, err := json.Marshal(status); err != nil || !strings.Contains(string(text), `"classes":[]`) {
		t.Errorf("%s, %v", text, err)
	}
}
