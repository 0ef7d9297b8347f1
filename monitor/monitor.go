package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oodmon/oodmon/consumer"
	"github.com/oodmon/oodmon/drift"
	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/sink"
	"github.com/prometheus/client_golang/prometheus"
)

// A Monitor watches one topic: it scores every record by the registry's
// current model and serves what it found.
type Monitor struct {
	cfg       *Config
	log       *slog.Logger
	started   time.Time
	registry  *prometheus.Registry
	metrics   *metrics
	models    *model.Registry
	live      atomic.Pointer[live]
	reloading sync.Mutex
	torn      []int // lines of the registry's history, as last seen by poll
	tally     tally
	drift     *drift.Watch // nil: it is off
	incidents chan *Incident
	conn      *kafkaconn.Client
	alerting  *alerting // nil where Prometheus evaluates the rules
	consumer  *consumer.Consumer
	sink      *sink.Producer
	listeners []net.Listener
}

// New does everything that can fail before records are read: it loads the
// model, reaches the brokers and the topics, and opens the HTTP addresses.
// Run must be called next.
func New(ctx context.Context, cfg *Config, log *slog.Logger) (*Monitor, error) {
	registry, series := newRegistry(cfg.Name)
	m := &Monitor{cfg: cfg, log: log, started: time.Now(), registry: registry, metrics: newMetrics(series), incidents: make(chan *Incident, waitingIncidents)}
	var err error
	if m.models, err = model.OpenRegistry(cfg.Model.Registry); err != nil {
		return nil, fmt.Errorf("model.registry: %w", err)
	}
	if m.alerting, err = newAlerting(cfg, registry, series, log); err != nil {
		return nil, err
	}
	first, err := m.loadLive(ctx, 0)
	if err != nil {
		return nil, fmt.Errorf("model.registry: %w", err)
	}
	if cfg.Drift.Enabled {
		if m.drift, err = drift.New(cfg.Drift, cfg.Input.Topic, baselineOf(first.model), time.Now, series, log); err != nil {
			return nil, err
		}
		if err := prepareIncidents(cfg.Drift.Incidents.Dir); err != nil {
			return nil, err
		}
	}
	m.warnOf(first)
	m.live.Store(first)
	m.metrics.observeModel(first.model)
	m.metrics.reloadOK.Set(1)
	m.metrics.reloadOKTime.SetToCurrentTime()

	if cfg.Kafka.SASL.Mechanism == "plain" && !cfg.Kafka.TLS.Enabled {
		log.Warn("the password goes to the brokers in clear text: set kafka.tls.enabled, or a scram mechanism")
	}
	if m.conn, err = kafkaconn.New(cfg.Kafka); err != nil {
		return nil, err
	}
	if err := m.conn.Check(ctx, m.topics()...); err != nil {
		return nil, err
	}
	if m.sink, err = newSink(cfg, m.conn, series, log); err != nil {
		return nil, err
	}
	if err := m.sink.Check(ctx); err != nil {
		return nil, err
	}
	if m.consumer, err = newConsumer(cfg, m.conn, m.sink, m.drift, m.newHandler, series, log); err != nil {
		return nil, err
	}
	if m.listeners, err = listen(cfg.Web); err != nil {
		return nil, err
	}
	return m, nil
}

// topics returns every topic that is read or written.
func (m *Monitor) topics() []string {
	all := []string{m.cfg.Input.Topic, m.cfg.Output.Topic, m.cfg.DeadLetter.Topic}
	if m.cfg.Drift.Incidents.Topic != "" {
		all = append(all, m.cfg.Drift.Incidents.Topic)
	}
	return all
}

// Addresses returns where HTTP is served.
func (m *Monitor) Addresses() []string {
	var all []string
	for _, l := range m.listeners {
		all = append(all, l.Addr().String())
	}
	return all
}

// closeTimeout bounds what follows the drain: the last incidents and HTTP answers.
const closeTimeout = 5 * time.Second

// Run scores records until ctx is done. Then it finishes the batch in hand,
// commits and leaves the group, within shutdown.drain_timeout, hands on the last
// incidents and stops serving.
func (m *Monitor) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	web := serve(m.listeners, m.cfg.Web, m.handler(), stop, m.log)
	var polling sync.WaitGroup
	polling.Go(func() { m.poll(ctx) })
	polling.Go(func() { m.alerting.run(ctx, instanceOf(m.Addresses()[0])) })
	polling.Go(func() { m.keepDrift(ctx) })
	polling.Go(func() { m.watch(ctx) })
	publishing, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	read := make(chan struct{})
	var incidents sync.WaitGroup
	incidents.Go(func() { m.publishIncidents(publishing, read) })
	now := m.live.Load().model
	m.log.Info("monitoring", "topic", m.cfg.Input.Topic, "group", m.cfg.Input.Group, "model", now.Version,
		"dimension", now.Dim(), "classes", len(now.Classes), "false_positive_rate", now.Alpha, "addresses", m.Addresses())

	err := m.consumer.Run(ctx)
	stop()
	polling.Wait()
	err = errors.Join(err, m.saveDrift())
	close(read)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	defer context.AfterFunc(closing, abandon)()
	incidents.Wait()
	m.conn.Close()
	return errors.Join(err, web.close(closing))
}

// Status returns what a person wants to know at a glance.
func (m *Monitor) Status() Status {
	now := m.live.Load()
	s := Status{
		Name: m.cfg.Name, Started: m.started,
		Model: now.model.Version, Threshold: float64(now.scorer.Threshold()), TargetFPR: now.model.Alpha,
	}
	m.tally.fill(&s, time.Now(), now.model.Classes)
	if m.drift != nil {
		d := m.drift.Status()
		s.Drift = &d
	}
	s.Lag = m.consumer.Lag()
	s.Alerts = m.alerting.alerts()
	if err := m.consumer.Healthy(m.cfg.Input.StallTimeout); err != nil {
		s.Unhealthy = err.Error()
	}
	return s
}
