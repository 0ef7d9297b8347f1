package monitor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/scorer"
	"github.com/prometheus/client_golang/prometheus"
)

// A live value is what scores records: immutable, and swapped as a whole. A
// batch is scored by exactly one.
type live struct {
	model     *model.Model
	scorer    *scorer.Scorer
	predicted []prometheus.Counter // by class
}

// loadLive reads the registry's current model and makes it ready to score.
// dim is the dimension that the line was started with, or 0.
func (m *Monitor) loadLive(ctx context.Context, dim int) (*live, error) {
	version, err := m.models.Current(ctx)
	if errors.Is(err, model.ErrNoCurrent) {
		return nil, fmt.Errorf("%w; put one there with 'oodmon model promote', 'oodmon model import --promote' or 'oodmon retrain'", err)
	}
	if err != nil {
		return nil, err
	}
	if now := m.live.Load(); now != nil && now.model.Version == version {
		return now, nil
	}
	mod, err := m.models.Load(ctx, version)
	if err != nil {
		return nil, err
	}
	if dim != 0 && mod.Dim() != dim {
		return nil, fmt.Errorf("model %s is for embeddings of dimension %d, but this stream has %d; restart to change the dimension", version, mod.Dim(), dim)
	}
	newScorer := scorer.New
	if m.cfg.Model.PerClass {
		newScorer = scorer.NewPerClass
	}
	s, err := newScorer(mod)
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", version, err)
	}
	l := &live{model: mod, scorer: s}
	for _, class := range mod.Classes {
		l.predicted = append(l.predicted, m.metrics.predicted.WithLabelValues(class))
	}
	return l, nil
}

// Reload takes in the registry's current model if it is another than the one
// in service. When that fails, the one in service stays.
func (m *Monitor) Reload(ctx context.Context) error {
	m.reloading.Lock()
	defer m.reloading.Unlock()
	old := m.live.Load()
	next, err := m.loadLive(ctx, old.model.Dim())
	if err != nil {
		m.metrics.reloads.WithLabelValues("failure").Inc()
		m.metrics.reloadOK.Set(0)
		m.log.Error("model not taken in; the one in service stays", "in_service", old.model.Version, "error", err)
		return fmt.Errorf("reload model: %w", err)
	}
	m.metrics.reloadOK.Set(1)
	m.metrics.reloadOKTime.SetToCurrentTime()
	if next == old {
		return nil
	}
	if m.drift != nil {
		// Before the first batch by the new model; one by the old model that is
		// still under way does not bet any more.
		m.drift.Rebase(baselineOf(next.model))
	}
	m.warnOf(next)
	m.live.Store(next)
	m.metrics.observeModel(next.model)
	m.metrics.reloads.WithLabelValues("success").Inc()
	m.log.Info("model in service", "version", next.model.Version, "was", old.model.Version)
	m.saveDriftOrLog() // until then a kill would find a state of the old model
	return nil
}

// poll looks for another current model, and for the outcome of retraining,
// until ctx is done.
func (m *Monitor) poll(ctx context.Context) {
	tick := time.NewTicker(m.cfg.Model.PollInterval)
	defer tick.Stop()
	for {
		m.observeRetraining(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = m.Reload(ctx) // logged and counted
		}
	}
}

// observeRetraining exports what the registry's history says of the last
// retraining.
func (m *Monitor) observeRetraining(ctx context.Context) {
	history, torn, err := m.models.History(ctx)
	if err != nil {
		m.log.Warn("retraining history not read", "error", err)
		return
	}
	if !slices.Equal(torn, m.torn) {
		m.torn = torn // logged once
		m.log.Warn("lines of the registry's history cannot be read and are left out", "registry", m.cfg.Model.Registry, "lines", torn)
	}
	last := model.Event{}
	for _, event := range history {
		if !event.Retraining {
			continue
		}
		last = event
		m.metrics.retrainRun.Set(float64(event.Time.Unix()))
		if event.Kind == model.EventPublished || event.Kind == model.EventUnchanged {
			m.metrics.retrainOKTime.Set(float64(event.Time.Unix()))
		}
	}
	for _, kind := range model.RunResults {
		value := 0.
		if last.Kind == kind {
			value = 1
		}
		m.metrics.retrainResult.WithLabelValues(string(kind)).Set(value)
	}
}
