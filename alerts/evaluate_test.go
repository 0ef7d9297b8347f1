package alerts

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

// A scenario is one of promtool's unit tests.
type scenario struct {
	Name        string         `yaml:"name"`
	Interval    model.Duration `yaml:"interval"`
	InputSeries []struct {
		Series string `yaml:"series"`
		Values string `yaml:"values"`
	} `yaml:"input_series"`
	AlertRuleTest []struct {
		Alertname string         `yaml:"alertname"`
		EvalTime  model.Duration `yaml:"eval_time"`
		ExpAlerts []struct {
			Labels      map[string]string `yaml:"exp_labels"`
			Annotations map[string]string `yaml:"exp_annotations"`
		} `yaml:"exp_alerts"`
	} `yaml:"alert_rule_test"`
	PromqlExprTest []struct {
		Expr       string         `yaml:"expr"`
		EvalTime   model.Duration `yaml:"eval_time"`
		ExpSamples []struct {
			Labels string  `yaml:"labels"`
			Value  float64 `yaml:"value"`
		} `yaml:"exp_samples"`
	} `yaml:"promql_expr_test"`
}

func (s scenario) end() (end time.Duration) {
	for _, test := range s.AlertRuleTest {
		end = max(end, time.Duration(test.EvalTime))
	}
	for _, test := range s.PromqlExprTest {
		end = max(end, time.Duration(test.EvalTime))
	}
	return end
}

// The scenarios that promtool runs against the rules hold of the evaluator as
// well: same rules, same samples, same alerts, labels and texts.
func TestEvaluatorAgreesWithPromtool(t *testing.T) {
	for _, path := range []string{"rules_test.yml", "rules_days_test.yml"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var file struct {
			EvaluationInterval model.Duration `yaml:"evaluation_interval"`
			Tests              []scenario     `yaml:"tests"`
		}
		if err := yaml.Unmarshal(text, &file); err != nil {
			t.Fatal(err)
		}
		if len(file.Tests) == 0 {
			t.Fatalf("%s holds no scenario", path)
		}
		for _, s := range file.Tests {
			t.Run(s.Name, func(t *testing.T) {
				t.Parallel()
				s.run(t, time.Duration(file.EvaluationInterval))
			})
		}
	}
}

// run feeds the samples to an evaluator as time goes on, so that what it
// forgets is forgotten, and compares at each time that the scenario names.
func (s scenario) run(t *testing.T, every time.Duration) {
	e, err := NewEvaluator(Rules, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	type input struct {
		labels labels.Labels
		values []parser.SequenceValue
	}
	var inputs []input
	parse := parser.NewParser(parser.Options{})
	for _, series := range s.InputSeries {
		l, values, err := parse.ParseSeriesDesc(series.Series + " " + series.Values)
		if err != nil {
			t.Fatal(err)
		}
		if !e.store.wants(l.Get(model.MetricNameLabel)) {
			continue // no rule asks for it: it cannot matter
		}
		inputs = append(inputs, input{l, values})
	}
	loaded := 0
	at := func(d time.Duration) time.Time { return time.UnixMilli(0).Add(d).UTC() }
	for now := time.Duration(0); now <= s.end(); now += every {
		for ; time.Duration(loaded)*time.Duration(s.Interval) <= now; loaded++ {
			for _, in := range inputs {
				if loaded < len(in.values) && !in.values[loaded].Omitted {
					e.store.append(in.labels, (time.Duration(loaded) * time.Duration(s.Interval)).Milliseconds(), in.values[loaded].Value)
				}
			}
		}
		if _, err := e.evaluate(t.Context(), at(now)); err != nil {
			t.Fatalf("after %v: %v", now, err)
		}
		for _, test := range s.AlertRuleTest {
			if time.Duration(test.EvalTime) != now {
				continue
			}
			var got, want []string
			for _, a := range e.Alerts() {
				if a.Name() == test.Alertname && a.State == StateFiring {
					got = append(got, describe(a.Labels, a.Annotations))
				}
			}
			for _, a := range test.ExpAlerts {
				a.Labels["alertname"] = test.Alertname
				want = append(want, describe(a.Labels, a.Annotations))
			}
			compare(t, now, test.Alertname, got, want)
		}
		for _, test := range s.PromqlExprTest {
			if time.Duration(test.EvalTime) != now {
				continue
			}
			result, err := e.query(t.Context(), test.Expr, at(now))
			if err != nil {
				t.Fatal(err)
			}
			var got, want []string
			for _, sample := range result {
				got = append(got, fmt.Sprint(sample.Metric, sample.F))
			}
			for _, sample := range test.ExpSamples {
				l, err := parse.ParseMetric(sample.Labels)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, fmt.Sprint(l, sample.Value))
			}
			compare(t, now, test.Expr, got, want)
		}
	}
}

func describe(l, annotations map[string]string) string {
	return fmt.Sprintln(labels.FromMap(l)) + fmt.Sprintln(labels.FromMap(annotations))
}

func compare(t *testing.T, at time.Duration, what string, got, want []string) {
	t.Helper()
	sort.Strings(got)
	sort.Strings(want)
	if !slices.Equal(got, want) {
		t.Errorf("after %v: %s:\ngot\n%s\nwant\n%s", at, what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A metric is kept for as long as a rule looks back, and one that no rule asks
// for not at all.
func TestSamplesAreKeptAsLongAsARuleLooksBack(t *testing.T) {
	e, err := NewEvaluator([]byte(`
groups:
  - name: g
    rules:
      - alert: A
        expr: rate(a[1h]) > 0 and max_over_time(sum(b)[2h:1m] offset 1h) > 0 and c offset 1d > 0
        annotations:
          description: '{{ with query "sum(rate(oodmon_d[10m]))" }}{{ . | first | value }}{{ end }}'
`), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]time.Duration{
		"a": time.Hour + lookback, "b": 3*time.Hour + lookback, "c": 24*time.Hour + lookback,
		"oodmon_d": 10*time.Minute + lookback, "ALERTS": lookback,
	}
	for metric, keep := range want {
		if got := time.Duration(e.store.keep[metric]) * time.Millisecond; got != keep {
			t.Errorf("%s is kept for %v, want %v", metric, got, keep)
		}
	}
	if len(e.store.keep) != len(want) {
		t.Errorf("kept: %v", e.store.keep)
	}

	l := labels.FromStrings(model.MetricNameLabel, "a")
	const seconds = 20 * 3600
	for i := range seconds {
		e.store.append(l, int64(i)*1000, float64(i))
		e.store.forget(int64(i) * 1000)
		if limit := int(math.Ceil(want["a"].Seconds() * 4 / 3)); e.store.size() > limit+1 {
			t.Fatalf("%d samples after %d s, at most %d are needed", e.store.size(), i, limit)
		}
	}
	e.store.forget((seconds + 2*3600) * 1000)
	if e.store.size() != 0 || len(e.store.series["a"]) != 0 {
		t.Errorf("%d samples of a series that ended long ago", e.store.size())
	}
}

func TestEvaluatorRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"groups: [{name: g, rules: [{alert: A, expr: 'sum('}]}]":                    `could not parse expression`,
		"groups: [{name: g, rules: [{record: 'a:b', expr: 'sum(a)'}]}]":             `"a:b" is a recording rule`,
		"groups: [{name: g, rules: [{alert: A, expr: a, sverity: page}]}]":          "field sverity not found",
		"groups: [{name: g, rules: [{alert: A, expr: a, annotations: {d: '{{'}}]}]": "unclosed action",
	} {
		if _, err := NewEvaluator([]byte(text), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

// What docs/operation.md says of the evaluator's memory: samples of an instance
// with a hundred segments, every 15 s for four days, take less than 2 MB.
func TestSamplesTakeLittleMemory(t *testing.T) {
	text, err := os.ReadFile("rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	e, err := NewEvaluator(text, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var all []labels.Labels
	for metric := range e.store.keep {
		of := []labels.Labels{labels.FromStrings(model.MetricNameLabel, metric, "job", "oodmon", "instance", "a", "model", "m")}
		each := func(name string, values ...string) {
			var next []labels.Labels
			for _, l := range of {
				for _, v := range values {
					next = append(next, labels.NewBuilder(l).Set(name, v).Labels())
				}
			}
			of = next
		}
		if strings.Contains(metric, "_drift_") {
			each("detector", "shift", "change")
		}
		if strings.Contains(metric, "_feature_") {
			each("feature", "t1", "t5", "up", "dn", "disp_up", "disp_dn", "class", "projection")
		}
		if strings.Contains(metric, "_segment_") {
			var segments []string
			for i := range 100 {
				segments = append(segments, fmt.Sprint("segment ", i))
			}
			each("segment", segments...)
		}
		all = append(all, of...)
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before, most := heap(), int64(0)
	const day = 24 * 60 * 4 // scrapes
	for i := range 4 * day {
		at := int64(i) * 15_000
		for _, l := range all {
			e.store.append(l, at, float64(i))
		}
		e.store.forget(at)
		if i%(day/4) == 0 {
			most = max(most, heap()-before)
		}
	}
	t.Logf("%d samples of %d series in %d bytes at most", e.store.size(), len(all), most)
	if most > 2_000_000 {
		t.Errorf("%d samples of %d series take up to %d bytes, want at most 2 MB", e.store.size(), len(all), most)
	}
	runtime.KeepAlive(e)
	runtime.KeepAlive(all)
}
