package alerts

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// A receiver takes posts and answers with what it is told to.
type receiver struct {
	*httptest.Server
	posts chan []byte
	mu    sync.Mutex
	codes []int // of the next answers; then 200
}

func newReceiver(t *testing.T, codes ...int) *receiver {
	r := &receiver{posts: make(chan []byte, 100), codes: codes}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil {
			t.Error(err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.codes) > 0 {
			code := r.codes[0]
			r.codes = r.codes[1:]
			http.Error(w, "not now", code)
			return
		}
		r.posts <- body
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) next(t *testing.T) []byte {
	t.Helper()
	select {
	case body := <-r.posts:
		return body
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was posted")
		return nil
	}
}

// gauges is a registry whose series a rule looks at, and an evaluator over it
// that moves on when the test says so.
type gauges struct {
	*prometheus.Registry
	a *prometheus.GaugeVec
	e *Evaluator
	s *scraper
}

func newGauges(t *testing.T, rules string) *gauges {
	t.Helper()
	g := &gauges{Registry: prometheus.NewRegistry(), a: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "oodmon_a"}, []string{"model"})}
	g.MustRegister(g.a)
	var err error
	if g.e, err = NewEvaluator([]byte(rules), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	g.s = &scraper{from: g, to: g.e.store, instance: "here:1"}
	return g
}

func (g *gauges) at(t *testing.T, seconds int) []Alert {
	t.Helper()
	now := time.Unix(1_000_000_000+int64(seconds), 0).UTC()
	if err := g.s.scrape(now.UnixMilli()); err != nil {
		t.Fatal(err)
	}
	changed, err := g.e.evaluate(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

const oneRule = `
groups:
  - name: g
    rules:
      - alert: A
        expr: oodmon_a > 1
        for: 30s
        keep_firing_for: 20s
        labels: {severity: page}
        annotations: {summary: "{{ $labels.model }} is {{ $value }}"}
`

func TestAnAlertFiresStaysAndEnds(t *testing.T) {
	g := newGauges(t, oneRule)
	set := func(v float64) { g.a.WithLabelValues("m").Set(v) }
	step := func(seconds int, wantState, wantChange string) {
		t.Helper()
		changed := g.at(t, seconds)
		state := ""
		if now := g.e.Alerts(); len(now) > 0 {
			state = now[0].State
		}
		change := ""
		if len(changed) > 0 {
			change = changed[0].State
		}
		if state != wantState || change != wantChange {
			t.Errorf("after %d s: state %q, change %q, want %q and %q", seconds, state, change, wantState, wantChange)
		}
	}
	set(1)
	step(0, "", "")
	set(2)
	step(10, StatePending, "")
	set(1)
	step(20, "", "") // it never fired: no one hears of its end
	set(2)
	step(30, StatePending, "")
	step(50, StatePending, "")
	step(60, StateFiring, StateFiring)
	step(70, StateFiring, "")
	set(1)
	step(80, StateFiring, "") // kept
	set(3)
	step(90, StateFiring, "")
	g.a.DeleteLabelValues("m") // gone counts as not holding, at once and not after five minutes
	step(100, StateFiring, "")
	step(110, StateFiring, "")
	step(120, "", StateResolved)
}

func TestWebhookPostsWhatAlertmanagerWould(t *testing.T) {
	g := newGauges(t, oneRule)
	r := newReceiver(t, http.StatusServiceUnavailable, http.StatusInternalServerError)
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	var logged bytes.Buffer
	w, err := NewWebhook(EvaluateConfig{WebhookURL: r.URL + "/hook?token=secret"}, m, slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx, "http://here:1/") })

	g.a.WithLabelValues("m").Set(2)
	g.a.WithLabelValues("n").Set(3)
	w.Notify(g.at(t, 0))
	w.Notify(g.at(t, 30))
	want := `{
		"version": "4", "groupKey": "{}:{}", "truncatedAlerts": 0, "status": "firing", "receiver": "oodmon",
		"groupLabels": {}, "commonLabels": {"alertname": "A", "instance": "here:1", "job": "oodmon", "severity": "page"},
		"commonAnnotations": {}, "externalURL": "http://here:1/",
		"alerts": [
			{"status": "firing", "labels": {"alertname": "A", "instance": "here:1", "job": "oodmon", "model": "m", "severity": "page"},
			 "annotations": {"summary": "m is 2"}, "startsAt": "2001-09-09T01:47:10Z", "endsAt": "0001-01-01T00:00:00Z",
			 "generatorURL": "http://here:1/", "fingerprint": "` + fingerprintOf("m") + `"},
			{"status": "firing", "labels": {"alertname": "A", "instance": "here:1", "job": "oodmon", "model": "n", "severity": "page"},
			 "annotations": {"summary": "n is 3"}, "startsAt": "2001-09-09T01:47:10Z", "endsAt": "0001-01-01T00:00:00Z",
			 "generatorURL": "http://here:1/", "fingerprint": "` + fingerprintOf("n") + `"}
		]}`
	sameJSON(t, r.next(t), want)

	g.a.WithLabelValues("n").Set(0)
	for _, seconds := range []int{40, 50, 60} {
		w.Notify(g.at(t, seconds))
	}
	var resolved message
	if err := json.Unmarshal(r.next(t), &resolved); err != nil {
		t.Fatal(err)
	}
	if resolved.Status != "resolved" || len(resolved.Alerts) != 1 || resolved.Alerts[0].Labels["model"] != "n" ||
		!resolved.Alerts[0].EndsAt.Equal(time.Unix(1_000_000_060, 0)) {
		t.Errorf("posted %+v", resolved)
	}
	for deadline := time.Now().Add(10 * time.Second); testutil.ToFloat64(m.notifications.WithLabelValues("success")) < 2 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond) // the answer has still to arrive
	}
	stop()
	running.Wait()
	if ok, failed := testutil.ToFloat64(m.notifications.WithLabelValues("success")), testutil.ToFloat64(m.notifications.WithLabelValues("failure")); ok != 2 || failed != 2 {
		t.Errorf("%v posts taken and %v refused, want 2 and 2", ok, failed)
	}
	if strings.Contains(logged.String(), "secret") || strings.Contains(logged.String(), "not now") || !strings.Contains(logged.String(), "503 Service Unavailable") {
		t.Errorf("logged %s", logged.String())
	}
}

func fingerprintOf(m string) string {
	return fingerprint(map[string]string{"alertname": "A", "instance": "here:1", "job": "oodmon", "model": m, "severity": "page"})
}

func sameJSON(t *testing.T, got []byte, want string) {
	t.Helper()
	var a, b any
	if err := json.Unmarshal(got, &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &b); err != nil {
		t.Fatal(err)
	}
	// The order of equal states is that of fingerprints, which no one promises.
	byModel := func(v any) {
		alerts := v.(map[string]any)["alerts"].([]any)
		if alerts[0].(map[string]any)["labels"].(map[string]any)["model"] != "m" {
			alerts[0], alerts[1] = alerts[1], alerts[0]
		}
	}
	byModel(a)
	byModel(b)
	x, _ := json.MarshalIndent(a, "", " ")
	y, _ := json.MarshalIndent(b, "", " ")
	if !bytes.Equal(x, y) {
		t.Errorf("posted\n%s\nwant\n%s", x, y)
	}
}

// While the receiver is away, an alert that ends waits in its last state only.
func TestWebhookHoldsTheLatestState(t *testing.T) {
	w, err := NewWebhook(EvaluateConfig{WebhookURL: "http://127.0.0.1:1/secret"}, NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	a := Alert{Labels: map[string]string{"alertname": "A"}, State: StateFiring, FiringSince: time.Unix(1, 0)}
	for range 1000 {
		w.Notify([]Alert{a})
	}
	a.State, a.Resolved = StateResolved, time.Unix(2, 0)
	w.Notify([]Alert{a})
	if err := w.post(t.Context(), ""); err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("got %v", err)
	}
	if len(w.waiting) != 1 || w.waiting[fingerprint(a.Labels)].State != StateResolved {
		t.Errorf("waiting %v", w.waiting)
	}
}

// The file is read for each post: a token in it may be renewed.
func TestWebhookURLFromAFile(t *testing.T) {
	first, second := newReceiver(t), newReceiver(t)
	path := filepath.Join(t.TempDir(), "url")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, log := NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler)
	write("nonsense")
	if _, err := NewWebhook(EvaluateConfig{WebhookURLFile: path}, m, log); err == nil || strings.Contains(err.Error(), "nonsense") {
		t.Errorf("got %v", err)
	}
	write(first.URL + "/token\n")
	w, err := NewWebhook(EvaluateConfig{WebhookURLFile: path}, m, log)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*receiver{first, second} {
		write(r.URL + "/renewed\n")
		w.Notify([]Alert{{Labels: map[string]string{"alertname": "A"}, State: StateFiring, FiringSince: time.Unix(1, 0)}})
		if err := w.post(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		r.next(t)
	}
	if w, err := NewWebhook(EvaluateConfig{}, m, log); w != nil || err != nil {
		t.Errorf("%v, %v, want none", w, err)
	}
}
