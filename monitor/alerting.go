package monitor

import (
	"context"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/oodmon/oodmon/alerts"
	"github.com/prometheus/client_golang/prometheus"
)

// alerting evaluates the alerting rules over the monitor's own series, where no
// Prometheus does. A nil one does nothing.
type alerting struct {
	cfg       alerts.EvaluateConfig
	web       WebConfig
	from      prometheus.Gatherer
	metrics   *alerts.Metrics
	evaluator *alerts.Evaluator
	webhook   *alerts.Webhook // nil where alerts are posted nowhere
	log       *slog.Logger
}

// newAlerting returns nil where alerts.evaluate.enabled is off. The series are
// registered in any case.
func newAlerting(cfg *Config, from prometheus.Gatherer, series prometheus.Registerer, log *slog.Logger) (*alerting, error) {
	a := &alerting{cfg: cfg.Alerts.Evaluate, web: cfg.Web, from: from, metrics: alerts.NewMetrics(series), log: log}
	if !a.cfg.Enabled {
		return nil, nil
	}
	rules, err := alerts.Generate(cfg.AlertParameters())
	if err != nil {
		return nil, err
	}
	if a.evaluator, err = alerts.NewEvaluator(rules, log); err != nil {
		return nil, err
	}
	if a.webhook, err = alerts.NewWebhook(a.cfg, a.metrics, log); err != nil {
		return nil, err
	}
	return a, nil
}

// run evaluates and posts until ctx is done. instance is the host and port that
// the monitor serves on.
func (a *alerting) run(ctx context.Context, instance string) {
	if a == nil {
		return
	}
	url, err := a.web.url(instance)
	if err != nil {
		a.log.Error("alerts do not say where the monitor is", "error", err)
	}
	var group sync.WaitGroup
	group.Go(func() { a.webhook.Run(ctx, url) })
	group.Go(func() { a.evaluator.Run(ctx, a.from, instance, a.cfg.Interval, a.metrics, a.changed) })
	group.Wait()
}

// changed tells the log and the webhook of alerts that fire or have ended.
func (a *alerting) changed(some []alerts.Alert) {
	for _, one := range some {
		level := slog.LevelWarn
		if one.State == alerts.StateResolved {
			level = slog.LevelInfo
		}
		a.log.Log(context.Background(), level, "alert "+one.State, "alert", one.Name(), "severity", one.Labels["severity"],
			"summary", one.Annotations["summary"], "runbook", one.Annotations["runbook_url"])
	}
	a.webhook.Notify(some)
}

// alerts returns those that are pending or firing.
func (a *alerting) alerts() []alerts.Alert {
	if a == nil {
		return nil
	}
	return a.evaluator.Alerts()
}

// instanceOf returns the host and port at which others reach a listener: the
// host's name where it listens on every address.
func instanceOf(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
		return address
	}
	if name, err := os.Hostname(); err == nil {
		return net.JoinHostPort(name, port)
	}
	return address
}
