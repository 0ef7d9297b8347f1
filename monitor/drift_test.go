package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oodmon/oodmon/drift"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// drifting has a monitor that notices within a second.
func drifting(t *testing.T) *fixture {
	f := newFixture(t)
	f.cfg.Drift.MeanTimeToFalseAlarm = time.Minute
	f.cfg.Drift.Block, f.cfg.Drift.ReferenceRecords = 16, 1000
	f.cfg.Drift.StateFile = filepath.Join(t.TempDir(), "drift")
	f.cfg.Drift.SnapshotInterval = time.Hour
	f.cfg.Drift.Incidents.Dir = filepath.Join(t.TempDir(), "incidents")
	return f
}

// produceDrift sends n records, of which a share is far from every class.
func (f *fixture) produceDrift(random *rand.Rand, first, n int, share float64) {
	var records []*kgo.Record
	for i := first; i < first+n; i++ {
		x := near(random, i%4, testDim)
		if random.Float64() < share {
			for j := range x {
				x[j] = -1 + .1*float32(random.NormFloat64())
			}
		}
		records = append(records, &kgo.Record{
			Topic: input, Partition: int32(i % partitions), Key: []byte("key-" + strconv.Itoa(i)), Value: raw(x),
			Headers: []kgo.RecordHeader{{Key: "segment", Value: []byte([]string{"eu", "us"}[i%2])}},
		})
	}
	f.Produce(records...)
}

// From records that drift to the metrics, the status, the log of incidents, the
// topic, the acknowledgement, and the evidence after a restart.
func TestDriftOnTheLine(t *testing.T) {
	f := drifting(t)
	f.CreateTopic("incidents", 2)
	f.cfg.Drift.Incidents.Topic, f.cfg.Drift.MaxSegments = "incidents", 2
	f.cfg.Drift.Incidents.Samples, f.cfg.Drift.Incidents.IncludeEmbedding = 5, true
	f.cfg.Web.EnableLifecycle = true
	random := rand.New(rand.NewPCG(1, 2))
	m, stop := f.run(t)
	f.produceDrift(random, 0, 3000, 0)
	f.waitFor(t, m, 3000)
	if s := m.Status().Drift; s.Reference != (drift.ReferenceStatus{Source: "live", Records: 1000, Needed: 1000}) || s.Detectors[0].Active {
		t.Fatalf("before: %+v", s)
	}
	f.produceDrift(random, 3000, 600, .5)
	f.waitFor(t, m, 3600)
	_, text := get(t, m, "/metrics")
	for series, want := range map[string]float64{
		`oodmon_drift_active{detector="shift",model="test"}`: 1, `oodmon_drift_alarms_total{detector="shift",model="test"}`: 1,
		`oodmon_reference_info{model="test",source="live",version="` + f.live(m) + `"}`: 1,
		`oodmon_segment_records_total{model="test",segment="eu"}`:                       1800, `oodmon_segment_records_total{model="test",segment="us"}`: 1800,
	} {
		if got := metric(t, text, series); got != want {
			t.Errorf("%s is %g, want %g", series, got, want)
		}
	}
	var status Status
	if _, body := get(t, m, "/api/v1/status"); json.Unmarshal([]byte(body), &status) != nil || !status.Drift.Detectors[0].Active || status.Drift.Detectors[0].TopFeature == "" {
		t.Errorf("status: %s", body)
	}

	find := func(all []Incident) *Incident {
		for i := range all {
			if all[i].Detector == drift.Shift && all[i].Segment == "" {
				return &all[i]
			}
		}
		t.Fatalf("no incident of shift among %+v", all)
		return nil
	}
	kept, err := Incidents(f.cfg.Drift.Incidents.Dir)
	if err != nil {
		t.Fatal(err)
	}
	incident := find(kept)
	if incident.Name != "test" || incident.Model != f.live(m) || incident.Onset.RecordsBefore < 2700 || incident.Onset.RecordsBefore > 3100 ||
		incident.Onset.OODRateAfter < .2 || len(incident.Records) != 5 || len(incident.Classes) != 4 {
		t.Errorf("incident %+v", incident)
	}
	if r := incident.Records[0]; !strings.HasPrefix(r.ID, "key-") || len(r.Embedding) != testDim || r.Embedding[0] > 0 || !r.OOD {
		t.Errorf("the most extreme record: %+v", r)
	}
	var served []Incident
	if code, body := get(t, m, "/api/v1/incidents"); code != http.StatusOK || json.Unmarshal([]byte(body), &served) != nil || len(served) != len(kept) {
		t.Errorf("served: %d %s", code, body)
	}
	kafkatest.Eventually(t, 10*time.Second, func() error {
		if got := len(f.ReadAll("incidents")); got != len(kept) {
			return fmt.Errorf("%d incidents in the topic, %d kept", got, len(kept))
		}
		return nil
	})
	var published Incident
	if r := f.ReadAll("incidents")[0]; json.Unmarshal(r.Value, &published) != nil || published.ID == "" || string(r.Key) != "test" {
		t.Errorf("published %s", r.Value)
	}

	// The evidence outlives an orderly end.
	for name, want := range map[string]os.FileMode{"": 0o700, incident.ID + incidentSuffix: 0o600} { // they hold embeddings
		if at, err := os.Stat(filepath.Join(f.cfg.Drift.Incidents.Dir, name)); err != nil || at.Mode().Perm() != want {
			t.Errorf("incidents/%s: %v, %v, want %v", name, at, err, want)
		}
	}
	evidence := m.Status().Drift.Detectors[0].Evidence
	stop()
	m, _ = f.run(t)
	if s := m.Status().Drift; s.Detectors[0].Evidence != evidence || !s.Detectors[0].Active || s.Detectors[0].Alarms != 1 || s.Snapshot.IsZero() {
		t.Errorf("after a restart: %+v, want evidence %g", s.Detectors[0], evidence)
	}
	resp, err := http.Post("http://"+m.Addresses()[0]+"/-/drift/acknowledge", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if s := m.Status().Drift.Detectors[0]; resp.StatusCode != http.StatusOK || s.Active || s.Evidence != 0 {
		t.Errorf("acknowledged: %d, %+v", resp.StatusCode, s)
	}
	// A new model begins anew.
	f.publish(t, testModel(t, testDim, 2))
	if err := m.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := m.Status().Drift; s.Reference.Records != 0 || s.Detectors[0].Block != 0 {
		t.Errorf("with a new model: %+v", s)
	}
}

// A monitor that dies after a snapshot reads from a commit before it. No record
// bets twice, the alarm is the same, and so are the offsets at the end.
func TestDriftAfterReplay(t *testing.T) {
	play := func(kill bool) (observed float64, alarms float64, committed map[int32]int64) {
		f := drifting(t)
		random := rand.New(rand.NewPCG(1, 2))
		m, stop := f.run(t)
		f.produceDrift(random, 0, 3000, 0)
		f.waitFor(t, m, 3000)
		if kill {
			var early map[int32]int64
			kafkatest.Eventually(t, 10*time.Second, func() error { // commits follow their batches
				early = f.Committed(f.cfg.Input.Group, input)
				sum := int64(0)
				for _, at := range early {
					sum += at
				}
				if sum != 3000 {
					return fmt.Errorf("%d records are committed", sum)
				}
				return nil
			})
			f.produceDrift(random, 3000, 300, .2)
			f.waitFor(t, m, 3300)
			if err := m.drift.Save(); err != nil {
				t.Fatal(err)
			}
			snapshot, err := os.ReadFile(f.cfg.Drift.StateFile)
			if err != nil {
				t.Fatal(err)
			}
			stop()
			// As if it had died with its last commits under way.
			if err := os.WriteFile(f.cfg.Drift.StateFile, snapshot, 0o600); err != nil {
				t.Fatal(err)
			}
			offsets := make(kadm.Offsets)
			for partition, at := range early {
				offsets.AddOffset(input, partition, at-100, -1)
			}
			if err := kadm.NewClient(f.Client()).CommitAllOffsets(t.Context(), f.cfg.Input.Group, offsets); err != nil {
				t.Fatal(err)
			}
			m, stop = f.run(t)
			f.waitFor(t, m, 600) // 100 of each partition come again, and the 300
			f.produceDrift(random, 3300, 700, .5)
			f.waitFor(t, m, 1300)
		} else {
			f.produceDrift(random, 3000, 300, .2)
			f.produceDrift(random, 3300, 700, .5)
			f.waitFor(t, m, 4000)
		}
		_, text := get(t, m, "/metrics")
		sum := metric(t, text, `oodmon_feature_sum_total{feature="up",model="test"}`) + metric(t, text, `oodmon_feature_sum_total{feature="dn",model="test"}`)
		alarms = metric(t, text, `oodmon_drift_alarms_total{detector="shift",model="test"}`)
		stop()
		return sum, alarms, f.Committed(f.cfg.Input.Group, input)
	}
	observed, alarms, committed := play(false)
	again, alarmsAgain, committedAgain := play(true)
	if d := observed - again; d < -1e-6 || d > 1e-6 || int(observed+.5) != 3000/16*16 {
		t.Errorf("%g records bet with a kill, %g without; want the 3000 beyond the reference, in whole blocks", again, observed)
	}
	if alarms != 1 || alarmsAgain != 1 {
		t.Errorf("%g alarms with a kill, %g without; want 1", alarmsAgain, alarms)
	}
	if fmt.Sprint(committed) != fmt.Sprint(committedAgain) {
		t.Errorf("committed %v with a kill, %v without", committedAgain, committed)
	}
}

// Incidents that wait when the monitor is told to end are published all the same;
// those that cannot be are named in the log.
func TestIncidentsAtTheEnd(t *testing.T) {
	f := newFixture(t)
	f.CreateTopic("incidents", 1)
	f.cfg.Drift.Incidents.Topic = "incidents"
	var log bytes.Buffer
	f.log = &log
	var failing atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		failing.Store(true)
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer server.Close()
	f.cfg.Drift.RetrainWebhook.URL = server.URL
	m, stop := f.run(t)
	const waiting = 30
	for range waiting {
		m.alarm(drift.Alarm{Detector: drift.Shift, Model: "0123456789ab"})
	}
	stop()
	if got := len(f.ReadAll("incidents")); got != waiting {
		t.Errorf("%d incidents are published, want %d", got, waiting)
	}

	m, stop = f.run(t)
	at := time.Unix(1_700_000_000, 0)
	m.alarm(drift.Alarm{Detector: drift.Retrain, Model: "0123456789ab", Time: at})
	kafkatest.Eventually(t, 10*time.Second, func() error {
		if !failing.Load() {
			return errors.New("the webhook is not yet called")
		}
		return nil
	})
	m.alarm(drift.Alarm{Detector: drift.Retrain, Model: "0123456789ab", Time: at.Add(time.Second)})
	stop()
	for _, id := range []string{"20231114T221320.000000Z-retrain", "20231114T221321.000000Z-retrain"} {
		if log := log.String(); !strings.Contains(log, `msg="webhook for retraining not called" incident=`+id) {
			t.Errorf("%s is not named as lost in the log:\n%s", id, log)
		}
	}
}

// With input.segment_from_key the key of a message is the segment of its record,
// unless a header tells one.
func TestSegmentFromKey(t *testing.T) {
	f := drifting(t)
	f.cfg.Drift.MaxSegments = 4
	f.cfg.Input.SegmentFromKey = true
	m, _ := f.run(t)
	random := rand.New(rand.NewPCG(1, 2))
	var records []*kgo.Record
	for i := range 60 {
		r := &kgo.Record{Topic: input, Partition: int32(i % partitions), Value: raw(near(random, i%4, testDim))}
		if key := []string{"tenant-a", "tenant-b", ""}[i%3]; key != "" {
			r.Key = []byte(key)
		}
		if i%12 == 0 { // of tenant-a
			r.Headers = []kgo.RecordHeader{{Key: f.cfg.Input.SegmentHeader, Value: []byte("eu")}}
		}
		records = append(records, r)
	}
	f.Produce(records...)
	f.waitFor(t, m, int64(len(records)))
	_, text := get(t, m, "/metrics")
	for segment, want := range map[string]float64{"tenant-a": 15, "eu": 5, "tenant-b": 20, drift.OtherSegments: 20} {
		if got := metric(t, text, `oodmon_segment_records_total{model="test",segment="`+segment+`"}`); got != want {
			t.Errorf("%g records of segment %s, want %g", got, segment, want)
		}
	}
}

func TestDriftOff(t *testing.T) {
	f := newFixture(t)
	f.cfg.Drift.Enabled, f.cfg.Web.EnableLifecycle = false, true
	f.produceDrift(rand.New(rand.NewPCG(1, 2)), 0, 300, .5)
	m, _ := f.run(t)
	f.waitFor(t, m, 300)
	if m.Status().Drift != nil {
		t.Error("a status of drift, which is off")
	}
	if _, text := get(t, m, "/metrics"); strings.Contains(text, "oodmon_drift") {
		t.Error("metrics of drift, which is off")
	}
}

// The newest incidents are kept.
func TestIncidentsAreBounded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	for i := range 7 {
		if err := keepIncident(dir, 3, &Incident{ID: "2026-0" + strconv.Itoa(i)}); err != nil {
			t.Fatal(err)
		}
	}
	all, err := Incidents(dir)
	var ids []string
	for _, i := range all {
		ids = append(ids, i.ID)
	}
	if err != nil || !slices.Equal(ids, []string{"2026-06", "2026-05", "2026-04"}) {
		t.Errorf("%v, %v", ids, err)
	}
	if got := fileName("../../etc/passwd é" + strings.Repeat("x", 100)); strings.ContainsAny(got, "/. ") || len(got) > 64 {
		t.Errorf("a segment's part of a file name is %q", got)
	}
}

// The webhook is called for a recommendation to retrain, again until it is taken.
func TestRetrainWebhook(t *testing.T) {
	var calls atomic.Int32
	bodies := make(chan string, 4)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("content type %q", r.Header.Get("Content-Type"))
		}
		if calls.Add(1) == 1 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		bodies <- string(body)
	}))
	defer server.Close()
	f := newFixture(t)
	file := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(file, []byte(server.URL+"/?token=secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.cfg.Drift.RetrainWebhook.URLFile = file
	m, _ := f.run(t)
	m.alarm(drift.Alarm{Detector: drift.Shift, Model: "0123456789ab"}) // no reason to call
	m.alarm(drift.Alarm{Detector: drift.Retrain, Model: "0123456789ab", Records: []drift.Sample{{ID: "most extreme", Embedding: []float32{.25}}}})
	select {
	case body := <-bodies:
		var i Incident
		if err := json.Unmarshal([]byte(body), &i); err != nil || i.Detector != drift.Retrain || i.Name != "test" || i.Model != "0123456789ab" || len(i.Records) != 1 || i.Records[0].ID != "most extreme" || i.Records[0].Embedding != nil {
			t.Errorf("posted %s: %v", body, err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the webhook was not called")
	}
}

// What waits when the process is told to end is handed on all the same.
func TestIncidentsOutliveTheDrain(t *testing.T) {
	var called atomic.Int32
	posted, release := make(chan struct{}, 2), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		posted <- struct{}{}
		select {
		case <-release:
			called.Add(1)
		case <-r.Context().Done():
		}
	}))
	defer server.Close()
	f := newFixture(t)
	f.cfg.Drift.RetrainWebhook.URL = server.URL
	m, stop := f.run(t)
	kafkatest.Eventually(t, time.Minute, m.consumer.Ready)
	m.alarm(drift.Alarm{Detector: drift.Retrain, Model: "0123456789ab"})
	m.alarm(drift.Alarm{Detector: drift.Retrain, Model: "0123456789ac"})
	<-posted
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	kafkatest.Eventually(t, time.Minute, func() error {
		if m.consumer.Ready() == nil {
			return errors.New("still a member of the group")
		}
		return nil
	})
	close(release)
	<-stopped
	if n := called.Load(); n != 2 {
		t.Errorf("the webhook took %d of 2 recommendations", n)
	}
}

// A monitor that can no longer say how it is must not go on as if it could.
func TestServeStopsTheRunWhereItCannotGoOn(t *testing.T) {
	listeners, err := listen(WebConfig{ListenAddresses: []string{"127.0.0.1:0", "127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	s := serve(listeners, WebConfig{}, http.NotFoundHandler(), stop, slog.New(slog.DiscardHandler))
	if err := listeners[1].Close(); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Error("the run was not stopped within a minute")
	}
	if err := s.close(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("close returned %v, want why it stopped", err)
	}
}

// A profile that is being taken, or a client that is slow, does not make the end
// of the process a failure.
func TestCloseCutsOffALongAnswer(t *testing.T) {
	listeners, err := listen(WebConfig{ListenAddresses: []string{"127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	s := serve(listeners, WebConfig{}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
	}), func() { t.Error("the server stopped by itself") }, slog.New(slog.DiscardHandler))
	go func() {
		if resp, err := http.Get("http://" + listeners[0].Addr().String()); err == nil {
			resp.Body.Close()
		}
	}()
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.close(ctx); err != nil {
		t.Error(err)
	}
}
