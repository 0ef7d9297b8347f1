package report

import (
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/trainer"
	"gonum.org/v1/gonum/mathext"
)

//go:embed report.html
var page string

// Write writes the page of evaluations, of which the first is shown open.
func Write(w io.Writer, all []*trainer.Evaluation, written time.Time) error {
	t, err := template.New("report").Funcs(template.FuncMap{
		"percent": percent, "share": func(v float64) string { return percent(&v) }, "figure": figure,
	}).Parse(page)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	data := struct {
		Written  string
		All      []*trainer.Evaluation
		Best     map[string]string
		Sections []*section
	}{Written: written.UTC().Format("2 January 2006, 15:04 UTC"), All: all, Best: best(all)}
	for _, e := range all {
		s, err := newSection(e)
		if err != nil {
			return fmt.Errorf("report: %s: %w", e.Detector, err)
		}
		data.Sections = append(data.Sections, s)
	}
	if err := t.Execute(w, data); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

func percent(v *float64) string {
	if v == nil {
		return "–"
	}
	return strconv.FormatFloat(100**v, 'f', 2, 64)
}

func figure(v *float64) string {
	if v == nil {
		return "–"
	}
	return strconv.FormatFloat(*v, 'f', 4, 64)
}

// best says of each column of the table which text is the best, to mark it.
func best(all []*trainer.Evaluation) map[string]string {
	marks := make(map[string]string)
	if len(all) < 2 {
		return marks
	}
	for name, of := range map[string]func(e *trainer.Evaluation) *float64{
		"accuracy": func(e *trainer.Evaluation) *float64 { return e.Accuracy }, "auroc": func(e *trainer.Evaluation) *float64 { return &e.AUROC },
		"aupr_in": func(e *trainer.Evaluation) *float64 { return &e.AUPRIn }, "aupr_out": func(e *trainer.Evaluation) *float64 { return &e.AUPROut },
		"tnr": func(e *trainer.Evaluation) *float64 { return &e.TNRAtTPR95 }, "dtacc": func(e *trainer.Evaluation) *float64 { return &e.DTACC },
	} {
		largest := math.Inf(-1)
		for _, e := range all {
			if v := of(e); v != nil && *v > largest {
				largest = *v
				marks[name] = percent(v)
			}
		}
	}
	return marks
}

// A section is what the page shows of one evaluation.
type section struct {
	*trainer.Evaluation
	Classes, Calibration int
	Threshold            string
	Rank                 int
	Alpha, Confidence    float64
	FPRLow, FPRHigh      float64
	ROC, Histogram       template.HTML
	Reliability, Map     template.HTML // "": none
	MapShare             float64       // of the variance
	PerClass             []classRow
	Matrix               [][]cell // nil: too many classes
	MatrixClasses        []string
	Confusions           []confusion
	OODClasses           []share
}

type classRow struct {
	Name              string
	Records           int
	Recall, Precision *float64
	Flagged           *float64
	OOD               int // OOD records that are nearest to it
}

type cell struct {
	N    int
	Tint string // the alpha of the background
}

type confusion struct {
	Label, Class string
	Records      int
	Share        float64 // of the label's records
}

type share struct {
	Class   string
	Records int
	Share   float64
}

const (
	matrixClasses = 24
	shownRows     = 15
)

func newSection(e *trainer.Evaluation) (*section, error) {
	d := e.Details
	m := d.Model
	s := &section{
		Evaluation: e, Classes: m.NumClasses(), Calibration: len(m.Calibration.Scores), Threshold: strconv.FormatFloat(d.Threshold, 'g', 5, 64), Rank: d.Rank,
		Alpha: m.Alpha, Confidence: 1 - m.Delta,
	}
	s.FPRLow, s.FPRHigh = clopperPearson(e.FalsePositiveRate, e.Inside)
	s.tables(d)
	var err error
	if s.ROC, err = plotROC(d.Inside.Scores, d.Outside.Scores, e); err != nil {
		return nil, err
	}
	if s.Histogram, err = plotHistogram(d.Inside.Scores, d.Outside.Scores, d.Threshold); err != nil {
		return nil, err
	}
	if d.Reliability != nil {
		if s.Reliability, err = plotReliability(d.Reliability); err != nil {
			return nil, err
		}
	}
	if len(d.InsideSamples) > 0 {
		if s.Map, s.MapShare, err = plotMap(d); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// clopperPearson is the 95 % interval of a share of n records.
func clopperPearson(share float64, n int) (low, high float64) {
	k := math.Round(share * float64(n))
	high = 1
	if k > 0 {
		low = mathext.InvRegIncBeta(k, float64(n)-k+1, .025)
	}
	if k < float64(n) {
		high = mathext.InvRegIncBeta(k+1, float64(n)-k, .975)
	}
	return low, high
}

// tables fills in what is counted by class.
func (s *section) tables(d *trainer.Details) {
	m := d.Model
	c := len(m.Classes)
	index := make(map[string]int, c)
	for i, name := range m.Classes {
		index[name] = i
	}
	counts := make([][]int, c) // [label][class]
	for i := range counts {
		counts[i] = make([]int, c)
	}
	rows := make([]classRow, c)
	flagged, predicted := make([]int, c), make([]int, c)
	labelled := 0
	for i, label := range d.Inside.Label {
		class := d.Inside.Class[i]
		k, ok := index[label]
		if !ok {
			continue
		}
		labelled++
		rows[k].Records++
		counts[k][class]++
		predicted[class]++
		if float64(d.Inside.Scores[i]) > d.Threshold {
			flagged[k]++
		}
	}
	for _, class := range d.Outside.Class {
		rows[class].OOD++
	}
	ratio := func(a, b int) *float64 {
		if b == 0 {
			return nil
		}
		v := float64(a) / float64(b)
		return &v
	}
	for k := range rows {
		rows[k].Name = m.Classes[k]
		rows[k].Recall, rows[k].Precision, rows[k].Flagged = ratio(counts[k][k], rows[k].Records), ratio(counts[k][k], predicted[k]), ratio(flagged[k], rows[k].Records)
		if n := rows[k].OOD; n > 0 {
			s.OODClasses = append(s.OODClasses, share{m.Classes[k], n, float64(n) / float64(len(d.Outside.Class))})
		}
		for j, n := range counts[k] {
			if j != k && n > 0 {
				s.Confusions = append(s.Confusions, confusion{m.Classes[k], m.Classes[j], n, float64(n) / float64(rows[k].Records)})
			}
		}
	}
	s.PerClass = rows
	slices.SortStableFunc(s.Confusions, func(a, b confusion) int { return cmp.Compare(b.Records, a.Records) })
	slices.SortStableFunc(s.OODClasses, func(a, b share) int { return cmp.Compare(b.Records, a.Records) })
	s.Confusions = s.Confusions[:min(len(s.Confusions), shownRows)]
	s.OODClasses = s.OODClasses[:min(len(s.OODClasses), shownRows)]
	if c > matrixClasses || labelled == 0 {
		return
	}
	s.MatrixClasses = m.Classes
	for k := range counts {
		row := make([]cell, c)
		for j, n := range counts[k] {
			row[j] = cell{n, strconv.FormatFloat(float64(n)/float64(max(1, rows[k].Records)), 'f', 3, 64)}
		}
		s.Matrix = append(s.Matrix, row)
	}
}

// HasProbabilities reports whether the detector is a head.
func (s *section) HasProbabilities() bool { return model.HasLogits(s.Detector) }
