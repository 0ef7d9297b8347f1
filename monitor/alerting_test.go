package monitor

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Where no Prometheus runs, the monitor evaluates its own rules: a stream of
// which half is out of distribution raises the page, on the status page and at
// the webhook.
func TestAlertsWithoutPrometheus(t *testing.T) {
	type post struct {
		Status string `json:"status"`
		Alerts []struct {
			Labels       map[string]string `json:"labels"`
			Annotations  map[string]string `json:"annotations"`
			GeneratorURL string            `json:"generatorURL"`
		} `json:"alerts"`
	}
	posts := make(chan post, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var p post
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			t.Error(err)
		}
		posts <- p
	}))
	defer receiver.Close()

	f := newFixture(t)
	f.cfg.Alerts.Evaluate.Enabled, f.cfg.Alerts.Evaluate.Interval = true, time.Second
	f.cfg.Alerts.Evaluate.WebhookURL = receiver.URL
	m, _ := f.run(t)

	random, far := rand.New(rand.NewPCG(1, 1)), make([]float32, testDim)
	kafkatest.Eventually(t, 60*time.Second, func() error {
		var records []*kgo.Record
		for i := range 100 {
			x := near(random, i%3, testDim)
			if i%2 == 0 {
				for j := range far {
					far[j] = float32(random.NormFloat64())
				}
				x = far
			}
			records = append(records, &kgo.Record{Topic: input, Value: raw(x)})
		}
		f.Produce(records...)
		for _, a := range m.Status().Alerts {
			if a.Name() == "OodmonOODRate" && a.Labels["window"] == "1h" && a.State == "firing" {
				return nil
			}
		}
		return fmt.Errorf("not firing: %+v, OOD rate %v", m.Status().Alerts, m.Status().RecentOODRate)
	})
	for {
		select {
		case p := <-posts:
			for _, a := range p.Alerts {
				if a.Labels["alertname"] != "OodmonOODRate" || a.Labels["window"] != "1h" {
					continue
				}
				if p.Status != "firing" || a.Labels["model"] != "test" || !strings.HasSuffix(a.Annotations["runbook_url"], "/OodmonOODRate.md") ||
					!strings.Contains(a.Annotations["description"], "calibrated to flag at most 1% of what it knows") ||
					a.GeneratorURL != "http://"+m.Addresses()[0]+"/" {
					t.Errorf("posted %+v", p)
				}
				return
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the webhook was not called")
		}
	}
}

func TestAlertsAreNotEvaluatedUnlessAsked(t *testing.T) {
	f := newFixture(t)
	m, _ := f.run(t)
	if m.alerting != nil || m.Status().Alerts != nil {
		t.Error("alerts are evaluated by default")
	}
}

func TestURLOfTheServer(t *testing.T) {
	for text, want := range map[string]string{
		"basic_auth_users: {}": "http://host:9095/",
		"tls_server_config: {cert_file: a, key_file: b, min_version: TLS13}": "https://host:9095/",
	} {
		cfg := WebConfig{ConfigFile: filepath.Join(t.TempDir(), "web.yml")}
		if err := os.WriteFile(cfg.ConfigFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := cfg.url("host:9095"); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %s", text, got, err, want)
		}
	}
}

func TestInstanceOf(t *testing.T) {
	for _, address := range []string{"127.0.0.1:9095", "[::1]:9095", "10.0.0.1:1"} {
		if got := instanceOf(address); got != address {
			t.Errorf("%s: %s", address, got)
		}
	}
	if got := instanceOf("[::]:9095"); strings.Contains(got, "[::]") || !strings.HasSuffix(got, ":9095") {
		t.Error(got)
	}
}
