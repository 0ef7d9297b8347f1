package alerts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"regexp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/template"
)

const (
	// lookback is how old a sample may be to count as the present value, as
	// Prometheus has it.
	lookback = 5 * time.Minute
	// queryTimeout bounds one expression; maxSamples what it may load.
	queryTimeout = 30 * time.Second
	maxSamples   = 10_000_000
)

// An Alert is one label set for which a rule's expression holds, or just held.
type Alert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	// State is pending, firing or resolved.
	State string  `json:"state"`
	Value float64 `json:"value"`
	// ActiveSince is when the expression began to hold, FiringSince when it had
	// held for the rule's `for`, Resolved when the alert ended.
	ActiveSince time.Time `json:"active_since"`
	FiringSince time.Time `json:"firing_since,omitzero"`
	Resolved    time.Time `json:"resolved,omitzero"`
}

// The states of an alert.
const (
	StatePending  = "pending"
	StateFiring   = "firing"
	StateResolved = "resolved"
)

// Name returns the alert's name.
func (a Alert) Name() string { return a.Labels[labels.AlertName] }

// An Evaluator evaluates a rule file over samples of its own, with the
// semantics of Prometheus: the same expressions, `for`, `keep_firing_for` and
// templates, by its own packages.
//
// It keeps its samples in memory, each metric only for as long as a rule looks
// back, and knows nothing of before it started: a window of three days is one
// of three days only after three days.
type Evaluator struct {
	rules  []*rule
	store  *store
	engine *promql.Engine
	log    *slog.Logger
	now    atomic.Pointer[[]Alert]
}

// A rule is an alerting rule with its alerts.
type rule struct {
	rulefmt.Rule
	active map[uint64]*active
}

type active struct {
	Alert
	labels    labels.Labels
	keepSince time.Time
}

// NewEvaluator reads a rule file. It refuses recording rules: nothing of ours
// has any.
func NewEvaluator(text []byte, log *slog.Logger) (*Evaluator, error) {
	parse := parser.NewParser(parser.Options{})
	groups, errs := rulefmt.Parse(text, false, model.UTF8Validation, parse, log)
	if len(errs) > 0 {
		return nil, fmt.Errorf("read the alerting rules: %w", errors.Join(errs...))
	}
	e := &Evaluator{log: log}
	keep := map[string]int64{"ALERTS": lookback.Milliseconds()}
	for _, group := range groups.Groups {
		for _, r := range group.Rules {
			if r.Alert == "" {
				return nil, fmt.Errorf("read the alerting rules: %q is a recording rule; only alerts are evaluated here", r.Record)
			}
			expr, err := parse.ParseExpr(r.Expr)
			if err != nil {
				return nil, fmt.Errorf("read the alerting rules: %s: %w", r.Alert, err)
			}
			lookBack(expr, keep)
			for _, text := range r.Annotations {
				lookBackOfText(text, keep)
			}
			e.rules = append(e.rules, &rule{Rule: r, active: map[uint64]*active{}})
		}
	}
	e.store = newStore(keep)
	e.engine = promql.NewEngine(promql.EngineOpts{
		Logger: log, MaxSamples: maxSamples, Timeout: queryTimeout, LookbackDelta: lookback, Parser: parse,
		EnableAtModifier: true, EnableNegativeOffset: true,
		NoStepSubqueryIntervalFn: func(int64) int64 { return time.Minute.Milliseconds() },
	})
	e.now.Store(&[]Alert{})
	return e, nil
}

// lookBack notes how far back an expression asks for each of its metrics.
func lookBack(expr parser.Expr, keep map[string]int64) {
	parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		back := lookback + selector.OriginalOffset
		for _, above := range path {
			switch n := above.(type) {
			case *parser.MatrixSelector:
				back += n.Range
			case *parser.SubqueryExpr:
				back += n.Range + n.OriginalOffset
			}
		}
		keep[selector.Name] = max(keep[selector.Name], back.Milliseconds())
		return nil
	})
}

var (
	metricInText = regexp.MustCompile(`\boodmon_[a-z_]+`)
	rangeInText  = regexp.MustCompile(`\[(\w+)\]`)
)

// lookBackOfText notes the metrics that the queries of a template ask for, and
// the longest range in it for each: the queries are put together only when an
// alert is active.
func lookBackOfText(text string, keep map[string]int64) {
	back := lookback
	for _, match := range rangeInText.FindAllStringSubmatch(text, -1) {
		if d, err := model.ParseDuration(match[1]); err == nil {
			back = max(back, lookback+time.Duration(d))
		}
	}
	for _, metric := range metricInText.FindAllString(text, -1) {
		keep[metric] = max(keep[metric], back.Milliseconds())
	}
}

// Alerts returns the alerts that are pending or firing, firing ones first. It
// may be called from any goroutine.
func (e *Evaluator) Alerts() []Alert { return *e.now.Load() }

// Run scrapes the registry and evaluates all rules every interval until ctx is
// done. It calls notify with the alerts that began to fire or were resolved.
// An error of one rule is logged and counted, and ends nothing.
func (e *Evaluator) Run(ctx context.Context, from prometheus.Gatherer, instance string, interval time.Duration, m *Metrics, notify func([]Alert)) {
	s := &scraper{from: from, to: e.store, instance: instance}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		now := time.Now()
		if err := s.scrape(now.UnixMilli()); err != nil {
			m.failures.Inc()
			e.log.Error("metrics not read for the alerts", "error", err)
		}
		changed, err := e.evaluate(ctx, now)
		if err != nil && ctx.Err() == nil {
			m.failures.Inc()
			e.log.Error("alerting rules not evaluated", "error", err)
		}
		if len(changed) > 0 {
			notify(changed)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// evaluate evaluates every rule at one time, and returns the alerts that began
// to fire or were resolved.
func (e *Evaluator) evaluate(ctx context.Context, now time.Time) (changed []Alert, err error) {
	var all []error
	current := []Alert{}
	for _, r := range e.rules {
		some, err := e.evaluateRule(ctx, r, now)
		if err != nil {
			all = append(all, fmt.Errorf("%s: %w", r.Alert, err))
		}
		changed = append(changed, some...)
		for _, a := range r.active {
			current = append(current, a.Alert)
		}
	}
	e.store.forget(now.UnixMilli())
	order := func(a, b Alert) int {
		return cmp.Or(cmp.Compare(a.State, b.State), // firing before pending
			cmp.Compare(severity(a), severity(b)), a.ActiveSince.Compare(b.ActiveSince), labels.Compare(labels.FromMap(a.Labels), labels.FromMap(b.Labels)))
	}
	slices.SortFunc(current, order)
	slices.SortFunc(changed, order)
	e.now.Store(&current)
	return changed, errors.Join(all...)
}

func severity(a Alert) int {
	return slices.Index([]string{"page", "ticket", "info"}, a.Labels["severity"])
}

// evaluateRule moves the alerts of one rule: from the expression to pending,
// after `for` to firing, and when it no longer holds, after `keep_firing_for`,
// to resolved.
func (e *Evaluator) evaluateRule(ctx context.Context, r *rule, now time.Time) (changed []Alert, err error) {
	result, err := e.query(ctx, r.Expr, now)
	if err != nil {
		return nil, err
	}
	holds := map[uint64]bool{}
	for _, s := range result {
		l, annotations := e.expand(ctx, r, s, now)
		hash := l.Hash()
		if holds[hash] {
			return nil, fmt.Errorf("two alerts have the labels %s", l)
		}
		holds[hash] = true
		a := r.active[hash]
		if a == nil {
			a = &active{Alert: Alert{Labels: l.Map(), State: StatePending, ActiveSince: now}, labels: l}
			r.active[hash] = a
		}
		a.Value, a.Annotations, a.keepSince = s.F, annotations, time.Time{}
	}
	for hash, a := range r.active {
		if !holds[hash] && !a.keeps(now, time.Duration(r.KeepFiringFor)) {
			delete(r.active, hash)
			e.store.append(a.alertSeries(a.State), now.UnixMilli(), staleNaN())
			if a.State == StateFiring {
				a.State, a.Resolved = StateResolved, now
				changed = append(changed, a.Alert)
			}
			continue
		}
		if a.State == StatePending && now.Sub(a.ActiveSince) >= time.Duration(r.For) {
			if now != a.ActiveSince {
				e.store.append(a.alertSeries(StatePending), now.UnixMilli(), staleNaN())
			}
			a.State, a.FiringSince = StateFiring, now
			changed = append(changed, a.Alert)
		}
		e.store.append(a.alertSeries(a.State), now.UnixMilli(), 1)
	}
	return changed, nil
}

// keeps reports whether an alert whose expression no longer holds goes on
// firing.
func (a *active) keeps(now time.Time, keepFor time.Duration) bool {
	if a.State != StateFiring || keepFor == 0 {
		return false
	}
	if a.keepSince.IsZero() {
		a.keepSince = now
	}
	return now.Sub(a.keepSince) < keepFor
}

// alertSeries returns the labels of the alert's series in ALERTS.
func (a *active) alertSeries(state string) labels.Labels {
	b := labels.NewBuilder(a.labels)
	b.Set(labels.MetricName, "ALERTS")
	b.Set("alertstate", state)
	return b.Labels()
}

func staleNaN() float64 { return math.Float64frombits(value.StaleNaN) }

// query evaluates an expression that gives a vector or a number.
func (e *Evaluator) query(ctx context.Context, expr string, at time.Time) (promql.Vector, error) {
	q, err := e.engine.NewInstantQuery(ctx, e.store, nil, expr, at)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	result := q.Exec(ctx)
	if result.Err != nil {
		return nil, result.Err
	}
	switch v := result.Value.(type) {
	case promql.Vector:
		return slices.Clone(v), nil // Close recycles it
	case promql.Scalar:
		return promql.Vector{{T: v.T, F: v.V}}, nil
	}
	return nil, fmt.Errorf("%s gives a %s, want a vector or a number", expr, result.Value.Type())
}

// expand returns the labels and annotations of one result of a rule.
func (e *Evaluator) expand(ctx context.Context, r *rule, s promql.Sample, now time.Time) (labels.Labels, map[string]string) {
	data := template.AlertTemplateData(s.Metric.Map(), nil, "", s)
	text := func(name, text string) string {
		t := template.NewTemplateExpander(ctx,
			"{{$labels := .Labels}}{{$externalLabels := .ExternalLabels}}{{$externalURL := .ExternalURL}}{{$value := .Value}}"+text,
			"__alert_"+r.Alert, data, model.TimeFromUnixNano(now.UnixNano()), template.QueryFunc(e.query), &url.URL{}, nil)
		out, err := t.Expand()
		if err != nil {
			e.log.Warn("template of an alert not expanded", "alert", r.Alert, "annotation", name, "error", err)
			return fmt.Sprintf("<error expanding template: %v>", err)
		}
		return out
	}
	b := labels.NewBuilder(s.Metric)
	b.Del(labels.MetricName)
	for name, value := range r.Labels {
		b.Set(name, text(name, value))
	}
	b.Set(labels.AlertName, r.Alert)
	annotations := map[string]string{}
	for name, value := range r.Annotations {
		annotations[name] = text(name, value)
	}
	return b.Labels(), annotations
}
