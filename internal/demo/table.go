package demo

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/oodmon/oodmon/alerts"
	"github.com/oodmon/oodmon/monitor"
)

const (
	redrawEvery = 250 * time.Millisecond // on a terminal
	lineEvery   = 4 * time.Second        // in a log
	histogram   = 12                     // rows: the threshold is between two
	barWidth    = 44
)

// A table shows the monitor's status while the story runs: redrawn in place on
// a terminal, else one line every few seconds.
type table struct {
	out    io.Writer
	redraw bool
	start  time.Time
	calm   time.Duration
	drawn  int // lines on the screen

	fired []alerts.Alert // each label set once, in the order seen
}

// hear notes the alerts that fire for the first time, and returns them.
func (t *table) hear(all []alerts.Alert) (fresh []alerts.Alert) {
	for _, a := range all {
		known := slices.ContainsFunc(t.fired, func(b alerts.Alert) bool { return maps.Equal(a.Labels, b.Labels) })
		if a.State == alerts.StateFiring && !known {
			fresh = append(fresh, a)
		}
	}
	t.fired = append(t.fired, fresh...)
	return fresh
}

func writeAlert(w io.Writer, a alerts.Alert) {
	fmt.Fprintf(w, "ALERT %s (%s)  %s\n      %s\n", a.Name(), a.Labels["severity"], a.Annotations["summary"], a.Annotations["runbook_url"])
}

func (t *table) interval() time.Duration {
	if t.redraw {
		return redrawEvery
	}
	return lineEvery
}

func (t *table) show(s monitor.Status, l *ledger) {
	now := time.Now()
	oodSince, noticed, tooSoon, delay := l.moment()
	news := fmt.Sprintf("unknown digits arrive in %v", max(0, t.calm-now.Sub(t.start)).Round(time.Second))
	switch {
	case tooSoon:
		news = "the OOD rate left its range before any unknown digit"
	case noticed:
		news = fmt.Sprintf("NOTICED %v after the first unknown digit", delay.Round(10*time.Millisecond))
	case !oodSince.IsZero():
		news = fmt.Sprintf("unknown digits arrive since %v", now.Sub(oodSince).Round(100*time.Millisecond))
	}
	fresh := t.hear(s.Alerts)
	if !t.redraw {
		fmt.Fprintf(t.out, "%4.0fs  %6d records  %5.0f/s  OOD rate %5.1f%%  dead letters %3d  lag %4d  model %s  %s\n",
			now.Sub(t.start).Seconds(), s.Records, s.RecordsPerSecond, 100*s.RecentOODRate, s.DeadLettered, s.Lag, s.Model, news)
		for _, a := range fresh {
			writeAlert(t.out, a)
		}
		return
	}

	var text strings.Builder
	fmt.Fprintf(&text, "%10s %10s %10s %13s %8s  %s\n", "records", "records/s", "OOD rate", "dead letters", "lag", "model")
	fmt.Fprintf(&text, "%10d %10.0f %9.1f%% %13d %8d  %s\n\n", s.Records, s.RecordsPerSecond, 100*s.RecentOODRate, s.DeadLettered, s.Lag, s.Model)
	fmt.Fprintf(&text, "minimum distance score (threshold %.3f: at most %.0f %% of known digits beyond)\n", s.Threshold, 100*s.TargetFPR)
	bins, top := rebin(s.ScoreHistogram), int64(1)
	for _, n := range bins {
		top = max(top, n)
	}
	width := s.ScoreBinWidth * float64(len(s.ScoreHistogram)) / histogram
	for i, n := range bins {
		bar := int(barWidth * n / top)
		if n > 0 && bar == 0 {
			bar = 1
		}
		mark := " "
		if float64(i)*width >= s.Threshold*(1-1e-9) {
			mark = "!"
		}
		fmt.Fprintf(&text, "%7.3f %s %-*s %d\n", float64(i)*width, mark, barWidth, strings.Repeat("█", bar), n)
	}
	fmt.Fprintf(&text, "\n%s\n", news)
	for _, a := range t.fired {
		writeAlert(&text, a)
	}
	if t.drawn > 0 {
		fmt.Fprintf(t.out, "\x1b[%dA\x1b[J", t.drawn)
	}
	io.WriteString(t.out, text.String())
	t.drawn = strings.Count(text.String(), "\n")
}

// rebin sums neighbouring bins so that the histogram fits a screen.
func rebin(bins []int64) []int64 {
	out := make([]int64, histogram)
	for i, n := range bins {
		out[i*histogram/len(bins)] += n
	}
	return out
}
