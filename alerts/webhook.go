package alerts

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/oodmon/oodmon/internal/webhook"
	"github.com/prometheus/common/model"
)

const (
	// A post that failed is tried again after firstRetry, then after twice
	// that, and so on up to lastRetry.
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// A Webhook posts alerts that begin to fire or are resolved to a URL, in the
// format of Alertmanager's webhook receiver (version 4). What could not be
// posted is posted again until it is taken, each alert in its latest state.
//
// It does no more than that: no routes, silences, inhibition or repetition. Who
// wants those runs Alertmanager.
type Webhook struct {
	cfg     EvaluateConfig
	log     *slog.Logger
	metrics *Metrics

	mu      sync.Mutex
	waiting map[string]Alert // by fingerprint
	woken   chan struct{}
}

// NewWebhook returns nil if the configuration names no address.
func NewWebhook(cfg EvaluateConfig, m *Metrics, log *slog.Logger) (*Webhook, error) {
	if cfg.WebhookURL == "" && cfg.WebhookURLFile == "" {
		return nil, nil
	}
	w := &Webhook{cfg: cfg, log: log, metrics: m, waiting: map[string]Alert{}, woken: make(chan struct{}, 1)}
	if _, err := w.address(); err != nil {
		return nil, err
	}
	return w, nil
}

// address returns where to post.
func (w *Webhook) address() (string, error) {
	address, err := webhook.Address(w.cfg.WebhookURL, w.cfg.WebhookURLFile)
	if err != nil {
		return "", fmt.Errorf("alerts.evaluate.webhook_url_file: %w", err)
	}
	return address, nil
}

// Notify takes alerts to be posted. It does not wait. A nil Webhook takes and
// forgets them.
func (w *Webhook) Notify(alerts []Alert) {
	if w == nil {
		return
	}
	w.mu.Lock()
	for _, a := range alerts {
		w.waiting[fingerprint(a.Labels)] = a
	}
	w.mu.Unlock()
	select {
	case w.woken <- struct{}{}:
	default: // it is awake
	}
}

// Run posts until ctx is done. What then waits is tried once more. source is
// the address of the status page, where the alerts can be looked at. A nil
// Webhook has nothing to run.
func (w *Webhook) Run(ctx context.Context, source string) {
	if w == nil {
		return
	}
	retry := time.NewTimer(0)
	defer retry.Stop()
	pause := firstRetry
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), webhook.Timeout)
			defer cancel()
			_ = w.post(last, source) // logged and counted
			return
		case <-w.woken:
		case <-retry.C:
		}
		if err := w.post(ctx, source); err != nil {
			retry.Reset(pause)
			pause = min(2*pause, lastRetry)
			continue
		}
		pause = firstRetry
	}
}

// A message is what Alertmanager's webhook receiver posts.
type message struct {
	Version           string            `json:"version"`
	GroupKey          string            `json:"groupKey"`
	TruncatedAlerts   int               `json:"truncatedAlerts"`
	Status            string            `json:"status"`
	Receiver          string            `json:"receiver"`
	GroupLabels       map[string]string `json:"groupLabels"`
	CommonLabels      map[string]string `json:"commonLabels"`
	CommonAnnotations map[string]string `json:"commonAnnotations"`
	ExternalURL       string            `json:"externalURL"`
	Alerts            []messageAlert    `json:"alerts"`
}

type messageAlert struct {
	Status       string            `json:"status"`
	Labels       map[string]string `json:"labels"`
	Annotations  map[string]string `json:"annotations"`
	StartsAt     time.Time         `json:"startsAt"`
	EndsAt       time.Time         `json:"endsAt"`
	GeneratorURL string            `json:"generatorURL"`
	Fingerprint  string            `json:"fingerprint"`
}

// post posts what waits, and forgets what was taken, unless it has changed
// since.
func (w *Webhook) post(ctx context.Context, source string) error {
	w.mu.Lock()
	sent := maps.Clone(w.waiting)
	w.mu.Unlock()
	if len(sent) == 0 {
		return nil
	}
	body, err := json.Marshal(newMessage(sent, source))
	if err != nil {
		return fmt.Errorf("encode alerts: %w", err)
	}
	if err := w.send(ctx, body); err != nil {
		w.metrics.notifications.WithLabelValues("failure").Inc()
		w.log.Warn("alerts not posted; they will be again", "alerts", len(sent), "error", err)
		return err
	}
	w.metrics.notifications.WithLabelValues("success").Inc()
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, a := range sent {
		if now := w.waiting[key]; now.State == a.State && now.FiringSince.Equal(a.FiringSince) {
			delete(w.waiting, key)
		}
	}
	return nil
}

func newMessage(alerts map[string]Alert, source string) message {
	m := message{
		Version: "4", GroupKey: "{}:{}", Status: StateResolved, Receiver: "oodmon", ExternalURL: source,
		GroupLabels: map[string]string{}, Alerts: []messageAlert{},
	}
	for key, a := range alerts {
		if a.State == StateFiring {
			m.Status = StateFiring
		}
		m.Alerts = append(m.Alerts, messageAlert{
			Status: a.State, Labels: a.Labels, Annotations: a.Annotations, StartsAt: a.FiringSince, EndsAt: a.Resolved,
			GeneratorURL: source, Fingerprint: key,
		})
		m.CommonLabels, m.CommonAnnotations = common(m.CommonLabels, a.Labels), common(m.CommonAnnotations, a.Annotations)
	}
	slices.SortFunc(m.Alerts, func(a, b messageAlert) int {
		return cmp.Or(cmp.Compare(a.Status, b.Status), cmp.Compare(a.Fingerprint, b.Fingerprint))
	})
	return m
}

// common keeps of all the pairs that b has too; of nil, it makes b.
func common(all, b map[string]string) map[string]string {
	if all == nil {
		return maps.Clone(b)
	}
	maps.DeleteFunc(all, func(k, v string) bool { other, ok := b[k]; return !ok || other != v })
	return all
}

func (w *Webhook) send(ctx context.Context, body []byte) error {
	address, err := w.address()
	if err != nil {
		return err
	}
	return webhook.Post(ctx, address, body)
}

// fingerprint identifies a label set as Alertmanager does.
func fingerprint(l map[string]string) string {
	set := model.LabelSet{}
	for name, value := range l {
		set[model.LabelName(name)] = model.LabelValue(value)
	}
	return set.Fingerprint().String()
}
