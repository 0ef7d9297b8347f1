package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oodmon/oodmon/drift"
	"github.com/oodmon/oodmon/internal/atomicfile"
	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/oodmon/oodmon/internal/webhook"
	"github.com/oodmon/oodmon/sink"
)

// An Incident is what is kept of an alarm of drift for a person to look at.
type Incident struct {
	// ID sorts by time and names the file.
	ID string `json:"id"`
	// Name is the configured name of the monitored model.
	Name     string `json:"name"`
	Instance string `json:"instance"`
	drift.Alarm
}

const (
	incidentSuffix = ".incident.json"
	// waitingIncidents is how many may wait to be published, where the brokers or
	// the webhook are away, before the newest are only logged and kept as files.
	waitingIncidents  = 64
	webhookAttempts   = 10
	firstWebhookPause = time.Second
	lastWebhookPause  = 5 * time.Minute
)

// alarm tells of an alarm that has just begun: in the log, in a file, in a
// topic and to the webhook, as far as they are configured.
func (m *Monitor) alarm(a drift.Alarm) {
	top := ""
	if len(a.Features) > 0 {
		top = a.Features[0].Feature
	}
	host, _ := os.Hostname() // "" where there is none
	incident := &Incident{Name: m.cfg.Name, Instance: host, Alarm: a}
	incident.ID = a.Time.UTC().Format("20060102T150405.000000Z") + "-" + a.Detector
	if a.Segment != "" {
		incident.ID += "-" + fileName(a.Segment)
	}
	m.log.Warn("drift", "incident", incident.ID, "detector", a.Detector, "segment", a.Segment, "evidence_seconds", a.Evidence, "threshold_seconds", a.Threshold,
		"onset", a.Onset.Time.UTC().Format(time.RFC3339), "partition", a.Onset.Partition, "offset", a.Onset.Offset, "top_feature", top)
	cfg := m.cfg.Drift.Incidents
	if cfg.Dir != "" {
		if err := keepIncident(cfg.Dir, cfg.Keep, incident); err != nil {
			m.log.Error("incident not kept", "incident", incident.ID, "error", err)
		}
	}
	select {
	case m.incidents <- incident:
	default:
		m.log.Error("incident not published: too many wait", "incident", incident.ID)
	}
}

// fileName makes a segment part of a file's name.
func fileName(segment string) string {
	const most = 64
	safe := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, segment)
	return safe[:min(len(safe), most)]
}

// prepareIncidents makes dir, and sees that it can be written to: at the first
// alarm it is too late to learn that.
func prepareIncidents(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("drift.incidents.dir: %w", err)
	}
	probe, err := os.CreateTemp(dir, ".oodmon-*")
	if err != nil {
		return fmt.Errorf("drift.incidents.dir: %w", err)
	}
	if err := errors.Join(probe.Close(), os.Remove(probe.Name())); err != nil {
		return fmt.Errorf("drift.incidents.dir: %w", err)
	}
	return nil
}

// keepIncident writes the incident's file and removes the oldest beyond keep.
func keepIncident(dir string, keep int, incident *Incident) error {
	text, err := json.MarshalIndent(incident, "", "  ")
	if err != nil {
		return fmt.Errorf("encode incident: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("drift.incidents.dir: %w", err)
	}
	path := filepath.Join(dir, incident.ID+incidentSuffix)
	if err := atomicfile.Write(path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write incident: %w", err)
	}
	names, err := incidentFiles(dir)
	if err != nil {
		return err
	}
	for _, name := range names[:max(0, len(names)-keep)] {
		// Another partition's worker may have been first.
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the oldest incident: %w", err)
		}
	}
	return nil
}

// incidentFiles returns the names of the incidents' files, the oldest first.
func incidentFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list incidents: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), incidentSuffix) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// Incidents returns the incidents that a folder holds, the newest first.
func Incidents(dir string) ([]Incident, error) {
	names, err := incidentFiles(dir)
	if err != nil {
		return nil, err
	}
	slices.Reverse(names)
	all := make([]Incident, 0, len(names))
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was the oldest meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read incident: %w", err)
		}
		var i Incident
		if err := json.Unmarshal(text, &i); err != nil {
			return nil, fmt.Errorf("read incident %s: %w", filepath.Join(dir, name), err)
		}
		all = append(all, i)
	}
	return all, nil
}

// publishIncidents hands incidents on: to the topic, and the recommendations to
// retrain to the webhook. One that is away holds up the other incidents, and no
// record. Once all records are read it hands on what waits, and returns. When ctx
// is done that fails, and each is named in the log.
func (m *Monitor) publishIncidents(ctx context.Context, read <-chan struct{}) {
	for {
		select {
		case i := <-m.incidents:
			m.handOn(ctx, i)
		case <-read:
			for len(m.incidents) > 0 { // nobody else takes any, or adds one
				m.handOn(ctx, <-m.incidents)
			}
			return
		}
	}
}

// handOn hands an incident to the topic, and a recommendation to retrain to the
// webhook.
func (m *Monitor) handOn(ctx context.Context, i *Incident) {
	var both sync.WaitGroup
	if m.cfg.Drift.Incidents.Topic != "" {
		both.Go(func() { m.publishIncident(ctx, i) })
	}
	if i.Detector == drift.Retrain {
		both.Go(func() { m.callWebhook(ctx, i) })
	}
	both.Wait()
}

func (m *Monitor) publishIncident(ctx context.Context, i *Incident) {
	text, err := json.Marshal(i)
	if err == nil {
		err = sink.Publish(ctx, m.conn, m.cfg.Drift.Incidents.Topic, []byte(m.cfg.Name), text)
	}
	if err != nil {
		m.log.Error("incident not published", "incident", i.ID, "topic", m.cfg.Drift.Incidents.Topic, "error", err)
	}
}

// callWebhook posts a recommendation to retrain until it is taken, with growing
// pauses, a bounded number of times.
func (m *Monitor) callWebhook(ctx context.Context, i *Incident) {
	address, err := m.cfg.Drift.RetrainWebhook.Address()
	if err != nil {
		m.log.Error("webhook for retraining not called", "incident", i.ID, "error", err)
		return
	}
	if address == "" {
		return
	}
	call := *i
	call.Records = slices.Clone(call.Records)
	for k := range call.Records { // they are no matter of the receiver's
		call.Records[k].Embedding = nil
	}
	text, err := json.Marshal(&call)
	if err != nil {
		m.log.Error("webhook for retraining not called", "incident", i.ID, "error", err)
		return
	}
	pause := firstWebhookPause
	for attempt := 1; ; attempt++ {
		if err = webhook.Post(ctx, address, text); err == nil {
			m.log.Info("webhook for retraining called", "incident", i.ID)
			return
		}
		m.log.Warn("webhook for retraining failed", "incident", i.ID, "attempt", attempt, "of", webhookAttempts, "error", err)
		if attempt == webhookAttempts || kafkaconn.Sleep(ctx, pause) != nil {
			m.log.Error("webhook for retraining not called", "incident", i.ID, "error", err)
			return
		}
		pause = min(lastWebhookPause, 4*pause)
	}
}
