package endtoend

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.yaml.in/yaml/v3"
)

const (
	perSecond  = 500
	calmFor    = 16 * time.Second // the first 2000 records make the reference
	segments   = 2
	brokenEach = 200
)

// Two streams of handwritten digits, 0 to 7, go through two monitors. At a known
// record the digits 8 and 9 join the one, and not the other. A Prometheus
// scrapes both, with the rules that the configuration gives. OodmonDrift has to
// arrive at a receiver of its Alertmanager for the one, and nothing at all for
// the other; and every expression of every rule and panel has to have data.
//
// The rules are those of the configuration. What would take too long is
// configured shorter: the live reference, and the stall timeout, of which a rule
// looks five times as far back.
func TestPrometheusAndAlertmanager(t *testing.T) {
	if os.Getenv("OODMON_TEST_PROMETHEUS") != "real" {
		t.Skip("needs the programs prometheus and prometheus-alertmanager (Debian's packages): set OODMON_TEST_PROMETHEUS=real")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "oodmon")
	run(t, exec.Command("go", "build", "-o", program, "../../cmd/oodmon"))

	broker := kafkatest.Start(t)
	monitors := []*monitored{
		{name: "calm", dir: filepath.Join(dir, "calm"), address: freeAddress(t)},
		{name: "drifting", dir: filepath.Join(dir, "drifting"), address: freeAddress(t)},
	}
	for _, m := range monitors {
		m.start(t, program, broker)
	}
	rules := filepath.Join(dir, "rules.yml")
	run(t, exec.Command(program, "alerts", "generate", "--config", monitors[0].config(), "--output", rules))
	received := newReceiver(t)
	prom := startPrometheus(t, dir, rules, monitors, received.URL)

	known, unknown := digits(t, "test.arrow"), digits(t, "ood.arrow")
	producing, stop := context.WithCancel(t.Context())
	var producers sync.WaitGroup
	defer producers.Wait()
	defer stop()
	began := make(chan time.Time, 1)
	producers.Go(func() { produce(producing, broker, "calm", known, nil, nil) })
	producers.Go(func() { produce(producing, broker, "drifting", known, unknown, began) })

	alert := received.wait(t, "OodmonDrift", "drifting", "stream")
	noticed := time.Now()
	joined := <-began
	t.Logf("OodmonDrift arrived %v after the first unknown digit", noticed.Sub(joined).Round(100*time.Millisecond))
	if !strings.HasSuffix(alert.Annotations["runbook_url"], "/docs/runbooks/OodmonDrift.md") {
		t.Errorf("runbook %q", alert.Annotations["runbook_url"])
	}
	for _, gap := range []string{"unknown", "error expanding"} {
		if strings.Contains(alert.Annotations["description"], gap) {
			t.Errorf("the description has a gap: %s", alert.Annotations["description"])
		}
	}
	onset := prom.query(t, `oodmon_drift_onset_timestamp_seconds{model="drifting", detector="shift"}`)
	if len(onset) != 1 {
		t.Fatalf("onset: %v", onset)
	}
	// It is an estimate, and a scrape is a second old.
	if off := time.UnixMilli(int64(onset[0].value * 1000)).Sub(joined); off < -5*time.Second || off > 5*time.Second {
		t.Errorf("the onset is %v after the first unknown digit", off)
	}

	// What the calm stream, of the same digits, has raised by now and by the
	// time that the other has raised more: nothing.
	received.wait(t, "OodmonDrift", "drifting", "segment")
	time.Sleep(5 * time.Second)
	for _, a := range received.all() {
		if a.Labels["model"] != "drifting" {
			t.Errorf("received of another stream than the drifting one: %v %s", a.Labels, a.Annotations["description"])
		}
	}
	if firing := prom.query(t, `count_over_time(ALERTS{alertstate="firing", model!="drifting"}[1h])`); len(firing) > 0 {
		t.Errorf("fired of another stream than the drifting one: %v", firing)
	}

	for where, expr := range expressions(t, rules) {
		prom.hasData(t, where, expr)
	}
}

// A monitored stream has an `oodmon run` of its own.
type monitored struct {
	name, dir, address string
}

func (m *monitored) config() string { return filepath.Join(m.dir, "oodmon.yml") }

// start makes the topics and a model, by retraining, and starts the monitor.
func (m *monitored) start(t *testing.T, program string, broker *kafkatest.Broker) {
	t.Helper()
	for _, suffix := range []string{"", ".scores", ".dead"} {
		broker.CreateTopic(m.name+suffix, 2)
	}
	if err := os.MkdirAll(filepath.Join(m.dir, "registry"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`
name: %[1]s
kafka: {brokers: [%[2]q]}
input: {topic: %[1]s, group: %[1]s, start: earliest, codec: raw, batch: {max_wait: 50ms}, stall_timeout: 3s}
output: {topic: %[1]s.scores}
dead_letter: {topic: %[1]s.dead}
model: {registry: %[3]q}
web: {listen_addresses: [%[4]q]}
drift: {reference_records: 2000, max_segments: %[5]d, state_file: %[6]q, snapshot_interval: 1s}
retrain: {data: {files: [%[7]q]}}
`, m.name, broker.Address, filepath.Join(m.dir, "registry"), m.address, segments, filepath.Join(m.dir, "drift.state"), data("train.arrow"))
	if err := os.WriteFile(m.config(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, exec.Command(program, "retrain", "--config", m.config()))
	start(t, m.dir, program, "run", "--config", m.config())
	waitFor(t, "http://"+m.address+"/-/ready")
}

func data(name string) string { return filepath.Join("..", "demo", "data", name) }

// digits returns embeddings as they travel: little-endian float32.
func digits(t *testing.T, name string) [][]byte {
	t.Helper()
	r, err := featurizer.OpenFile(data(name))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all [][]byte
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		x, dim, err := featurizer.Embeddings(rec)
		if err != nil {
			t.Fatal(err)
		}
		for i := range int(rec.NumRows()) {
			var b []byte
			for _, v := range x[i*dim : (i+1)*dim] {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
			}
			all = append(all, b)
		}
	}
}

// produce sends random known digits until ctx is done, and now and then what is
// no embedding. Where there are unknown ones, a third is of those after
// calmFor; began is told when.
func produce(ctx context.Context, broker *kafkatest.Broker, topic string, known, unknown [][]byte, began chan<- time.Time) {
	const tick = 100 * time.Millisecond
	random, start := rand.New(rand.NewPCG(1, 2)), time.Now()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for sent := 0; ; {
		var records []*kgo.Record
		for range int(perSecond * tick.Seconds()) {
			value := known[random.IntN(len(known))]
			if unknown != nil && time.Since(start) > calmFor && random.IntN(3) == 0 {
				value = unknown[random.IntN(len(unknown))]
				if began != nil {
					began <- time.Now()
					began = nil
				}
			}
			if sent%brokenEach == 0 {
				value = []byte("no embedding")
			}
			sent++
			records = append(records, &kgo.Record{
				Topic: topic, Value: value,
				Headers: []kgo.RecordHeader{{Key: "segment", Value: []byte{byte('a' + sent%segments)}}},
			})
		}
		broker.Produce(records...)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// A receiver takes what Alertmanager posts.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	alerts []alert
}

type alert struct {
	Status      string            `json:"status"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, request *http.Request) {
		var post struct {
			Alerts []alert `json:"alerts"`
		}
		if err := json.NewDecoder(request.Body).Decode(&post); err != nil {
			t.Errorf("a post of Alertmanager: %v", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.alerts = append(r.alerts, post.Alerts...)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) all() []alert {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.alerts)
}

func (r *receiver) wait(t *testing.T, name, model, scope string) (found alert) {
	t.Helper()
	kafkatest.Eventually(t, 2*time.Minute, func() error {
		for _, a := range r.all() {
			if a.Status == "firing" && a.Labels["alertname"] == name && a.Labels["model"] == model && a.Labels["scope"] == scope {
				found = a
				return nil
			}
		}
		return fmt.Errorf("no %s of %s, scope %s; received %v", name, model, scope, r.all())
	})
	return found
}

// A prometheus is a running one.
type prometheus struct{ url string }

func startPrometheus(t *testing.T, dir, rules string, monitors []*monitored, webhook string) *prometheus {
	t.Helper()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	manager, address := freeAddress(t), freeAddress(t)
	start(t, dir, "prometheus-alertmanager", "--storage.path="+filepath.Join(dir, "alertmanager"), "--web.listen-address="+manager,
		"--cluster.listen-address=", "--config.file="+write("alertmanager.yml", fmt.Sprintf(`
route: {receiver: test, group_by: ["..."], group_wait: 0s, group_interval: 1s}
receivers: [{name: test, webhook_configs: [{url: %q}]}]
`, webhook)))
	waitFor(t, "http://"+manager+"/-/ready")

	var targets []string
	for _, m := range monitors {
		targets = append(targets, m.address)
	}
	start(t, dir, "prometheus", "--storage.tsdb.path="+filepath.Join(dir, "tsdb"), "--web.listen-address="+address,
		"--enable-feature=native-histograms", // for versions before 3.9
		"--config.file="+write("prometheus.yml", fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
alerting: {alertmanagers: [{static_configs: [{targets: [%q]}]}]}
scrape_configs: [{job_name: oodmon, static_configs: [{targets: [%s]}]}]
`, rules, manager, strings.Join(targets, ", "))))
	waitFor(t, "http://"+address+"/-/ready")
	return &prometheus{"http://" + address}
}

// A point is one result of a query.
type point struct {
	labels map[string]string
	value  float64
}

func (p *prometheus) query(t *testing.T, expr string) []point {
	t.Helper()
	resp, err := http.Get(p.url + "/api/v1/query?query=" + url.QueryEscape(expr))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct {
			ResultType string
			Result     json.RawMessage
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	if answer.Status != "success" {
		t.Fatalf("%s: %s", expr, answer.Error)
	}
	if answer.Data.ResultType == "scalar" {
		return []point{{}}
	}
	var result []struct {
		Metric    map[string]string
		Value     [2]any
		Histogram [2]any
	}
	if err := json.Unmarshal(answer.Data.Result, &result); err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	var all []point
	for _, r := range result {
		at := point{labels: r.Metric}
		if text, ok := r.Value[1].(string); ok {
			if at.value, err = strconv.ParseFloat(text, 64); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, at)
	}
	return all
}

// hasData fails the test unless an expression gives a value, or would, were it
// not for a comparison in it: then each side of that has to.
func (p *prometheus) hasData(t *testing.T, where, text string) {
	t.Helper()
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(text)
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	var check func(e parser.Expr)
	check = func(e parser.Expr) {
		if len(p.query(t, e.String())) > 0 {
			return
		}
		switch e := e.(type) {
		case *parser.ParenExpr:
			check(e.Expr)
			return
		case *parser.AggregateExpr:
			if filters(e.Expr) {
				check(e.Expr)
				return
			}
		case *parser.BinaryExpr:
			if filters(e) {
				check(e.LHS)
				check(e.RHS)
				return
			}
		case *parser.Call:
			if e.Func.Name == "absent" {
				check(e.Args[0])
				return
			}
		}
		t.Errorf("%s: no data: %s", where, e)
	}
	check(expr)
}

// filters reports whether a part of the expression drops samples by their value.
func filters(e parser.Expr) (yes bool) {
	parser.Inspect(e, func(node parser.Node, _ []parser.Node) error {
		if b, ok := node.(*parser.BinaryExpr); ok && (b.Op.IsComparisonOperator() && !b.ReturnBool || b.Op.IsSetOperator()) {
			yes = true
		}
		return nil
	})
	return yes
}

// expressions returns those of every rule, and of every panel and annotation of
// the dashboard, by where they are.
func expressions(t *testing.T, rules string) map[string]string {
	t.Helper()
	all := map[string]string{}
	text, err := os.ReadFile(rules)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		for i, r := range g.Rules {
			all[fmt.Sprintf("rule %d, %s", i+1, r.Alert)] = r.Expr
		}
	}
	if text, err = os.ReadFile("../../dashboards/oodmon.json"); err != nil {
		t.Fatal(err)
	}
	type target struct{ RefID, Expr string }
	var board struct {
		Panels []struct {
			Title   string
			Targets []target
		}
		Annotations struct {
			List []struct{ Name, Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("$__rate_interval", "20s", "$model", ".*")
	for _, p := range board.Panels {
		for _, q := range p.Targets {
			all["panel "+p.Title+", query "+q.RefID] = fill.Replace(q.Expr)
		}
	}
	for _, a := range board.Annotations.List {
		all["annotation "+a.Name] = fill.Replace(a.Expr)
	}
	if len(all) < 60 {
		t.Fatalf("%d expressions", len(all))
	}
	t.Logf("%d expressions", len(all))
	return all
}

func run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// start starts a program that ends with the test; if that fails, its last lines
// are told.
func start(t *testing.T, dir, program string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, filepath.Base(program)+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			lines := strings.Split(string(text), "\n")
			t.Logf("the last lines of %s:\n%s", program, strings.Join(lines[max(0, len(lines)-20):], "\n"))
		}
	})
}

func waitFor(t *testing.T, url string) {
	t.Helper()
	kafkatest.Eventually(t, time.Minute, func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", url, resp.Status)
		}
		return nil
	})
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
