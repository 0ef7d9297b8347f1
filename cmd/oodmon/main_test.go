package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/apache/arrow/go/v15/arrow/ipc"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/monitor"
	"github.com/spf13/cobra"
)

var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "oodmon-cmd-")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "oodmon")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "GOFLAGS=") // without the race detector, which trains ten times as slowly
	if out, err := build.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("%v\n%s", err, out))
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// An outcome is what a run of the program left.
type outcome struct {
	stdout, stderr string
	code           int
}

func oodmonWith(t testing.TB, stdin string, args ...string) outcome {
	t.Helper()
	cmd := exec.Command(program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// oodmon runs the program and expects an exit code.
func oodmon(t testing.TB, code int, args ...string) outcome {
	t.Helper()
	o := oodmonWith(t, "", args...)
	if o.code != code {
		t.Fatalf("oodmon %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), o.code, code, o.stdout, o.stderr)
	}
	return o
}

func digits(name string) string { return filepath.Join("..", "..", "internal", "demo", "data", name) }

func importDigits(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.safetensors")
	oodmon(t, 0, "model", "import", "--head", digits("head.safetensors"), "--calibration", digits("calibration.arrow"), "--output", path)
	return path
}

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s: no short help", c.CommandPath())
		}
		if !c.HasSubCommands() && c.Example == "" && c.Name() != "version" {
			t.Errorf("%s: no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand())
}

func TestWrongUsage(t *testing.T) {
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"frobnicate"}, 2, `unknown command "frobnicate" for "oodmon"`},
		{[]string{"train", "--dat", "x"}, 2, "unknown flag: --dat; see 'oodmon train --help'"},
		{[]string{"train", "--data", digits("train.arrow"), "--calibration", digits("train.arrow"), "--output", "c"}, 2, "--calibration: " + digits("train.arrow") + " is one of --data too: the records have to be others"},
		{[]string{"eval", "--model", "m", "--id", digits("test.arrow"), "--ood", digits("test.arrow")}, 2, "--ood: " + digits("test.arrow") + " is one of --id too: the records have to be others"},
		{[]string{"train", "--data", "a", "--output", "nowhere/c"}, 1, "--output: stat nowhere: no such file or directory"},
		{[]string{"train", "--data", "a", "--output", "c", "--start", "nowhere"}, 1, "--start: stat nowhere: no such file or directory"},
		{[]string{"train", "--data", "a", "b", "--output", "c"}, 2, `unexpected argument "b": repeat the flag before each file; see 'oodmon train --help'`},
		{[]string{"train"}, 2, `required flag(s) "data", "output" not set`},
		{[]string{"train", "--data", "x", "--output", "y", "--detector", "hinge"}, 2, `detector: "hinge" is not one of ["isomax+" "isomax" "dismax" "softmax" "class-means" "knn" "mahalanobis" "relative-mahalanobis" "fdbd"]`},
		{[]string{"score", "--model", "x"}, 2, "requires at least 1 arg(s), only received 0"},
		{[]string{"eval", "--model", "/nowhere", "--id", "a", "--ood", "b"}, 1, "--model: stat /nowhere: no such file or directory"},
		{[]string{"model", "list"}, 2, "--registry is required"},
		{[]string{"run", "--config", "/nowhere.yml"}, 2, "read configuration: open /nowhere.yml"},
		{[]string{"demo", "--for", "-1s"}, 2, "--for must not be negative"},
		{[]string{"alerts", "generate", "--config", "/nowhere.yml"}, 2, "read configuration: open /nowhere.yml"},
		{[]string{"bench", "line", "--records", "0"}, 2, "--records: 0 must be positive"},
	} {
		if o := oodmon(t, test.code, test.args...); !strings.Contains(o.stderr, "oodmon: ") || !strings.Contains(o.stderr, test.want) {
			t.Errorf("oodmon %s: %s, want %q", strings.Join(test.args, " "), o.stderr, test.want)
		}
	}
}

func TestForcedKernel(t *testing.T) {
	t.Setenv("OODMON_KERNEL", "sse")
	got := oodmon(t, exitUsage, "version")
	if want := "OODMON_KERNEL=sse: no such implementation; there are avx512, avx2, neon and go, and this CPU can run "; !strings.Contains(got.stderr, want) {
		t.Errorf("%q, want %q", got.stderr, want)
	}
	t.Setenv("OODMON_KERNEL", "go")
	oodmon(t, 0, "version")
}

func TestBenchKernel(t *testing.T) {
	got := oodmon(t, 0, "bench", "kernel", "--json", "--shape", "16,3", "--megabytes", "1", "--runs", "1", "--rivals=false")
	var results []map[string]any
	if err := json.Unmarshal([]byte(got.stdout), &results); err != nil {
		t.Fatalf("%v: %s", err, got.stdout)
	}
	if len(results) == 0 {
		t.Fatal("no results")
	}
	for _, r := range results {
		for _, key := range []string{"impl", "d", "c", "threads", "gflops", "vectors_per_second", "share_of_fma_peak", "share_of_read_bandwidth"} {
			if _, ok := r[key]; !ok {
				t.Errorf("%v has no %s", r, key)
			}
		}
	}
	if got := oodmon(t, exitUsage, "bench", "kernel", "--shape", "16"); !strings.Contains(got.stderr, "--shape 16: expected two integers, dimensions,classes") {
		t.Errorf("%q", got.stderr)
	}
}

func TestConfigCheck(t *testing.T) {
	if o := oodmon(t, 0, "config", "check", filepath.Join("..", "..", "deploy", "oodmon.yml")); !strings.HasSuffix(o.stdout, ": OK\n") {
		t.Errorf("%q", o.stdout)
	}
	path := filepath.Join(t.TempDir(), "oodmon.yml")
	if err := os.WriteFile(path, []byte("inputs: 3"), 0o600); err != nil {
		t.Fatal(err)
	}
	if o := oodmon(t, 2, "config", "check", path); o.stderr != "oodmon: configuration "+path+": line 1: unknown key \"inputs\"\n" {
		t.Errorf("%q", o.stderr)
	}
}

func TestAlertsGenerate(t *testing.T) {
	example := filepath.Join("..", "..", "deploy", "oodmon.yml")
	want, err := os.ReadFile(filepath.Join("..", "..", "alerts", "rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	output := filepath.Join(t.TempDir(), "rules.yml")
	oodmon(t, 0, "alerts", "generate", "--config", example, "--output", output)
	written, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	if o := oodmon(t, 0, "alerts", "generate", "--config", example); o.stdout != string(want) || string(written) != string(want) {
		t.Error("the example configuration does not give the committed rules")
	}
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "oodmon.yml")
	if err := os.WriteFile(config, []byte(strings.Replace(string(text), "ood_budget: 0.02", "ood_budget: 0.01", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	o := oodmon(t, 2, "alerts", "generate", "--config", config)
	if want := "alerts.ood_budget: 0.01 must lie above the false-positive rate, 0.01"; !strings.Contains(o.stderr, want) || o.stdout != "" {
		t.Errorf("%q, want %q", o.stderr, want)
	}
}

// Only who makes rules of it is bound by what rules can do.
func TestConfigCheckWarns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "oodmon.yml")
	text := `
kafka: {brokers: ["localhost:9092"], tls: {enabled: true, ca_file: nowhere.pem}}
input: {topic: in}
output: {topic: out}
dead_letter: {topic: dead}
model: {registry: /r}
retrain: {false_positive_rate: 0.1}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	const budget = "alerts.ood_budget: no budget fits a false-positive rate of 0.1: it must lie above the rate, and below 1/14.4 = 0.0694\n"
	o := oodmon(t, 0, "config", "check", path)
	if want := "oodmon: warning: kafka.tls.ca_file: stat nowhere.pem: no such file or directory\noodmon: warning: 'oodmon alerts generate' will refuse this: " + budget; o.stderr != want || o.stdout != path+": OK\n" {
		t.Errorf("%s%swant %s", o.stdout, o.stderr, want)
	}
	if o := oodmon(t, 2, "alerts", "generate", "--config", path); o.stderr != "oodmon: configuration "+path+": "+budget || o.stdout != "" {
		t.Errorf("%s%s", o.stdout, o.stderr)
	}
}

// What is printed is a configuration that means the same, but for what is secret.
func TestConfigPrint(t *testing.T) {
	const secret = "correct horse battery staple"
	t.Setenv("KAFKA_PASSWORD", secret)
	path := filepath.Join(t.TempDir(), "oodmon.yml")
	text := `
kafka: {brokers: ["localhost:9092"], tls: {enabled: true}, sasl: {mechanism: plain, username: u, password_env: KAFKA_PASSWORD}}
input: {topic: in}
output: {topic: out, delivery: exactly-once}
dead_letter: {topic: dead}
model: {registry: /r}
drift: {retrain_webhook: {url: "https://user:t0ken@ci.example.com/hook"}}
alerts: {evaluate: {webhook_url: "https://hooks.example.com:8443/t0ken?key=t0ken"}}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	printed := oodmon(t, 0, "config", "check", "--print", path).stdout
	for _, want := range []string{"url: https://ci.example.com/<secret>\n", "webhook_url: https://hooks.example.com:8443/<secret>\n"} {
		if !strings.Contains(printed, want) || strings.Contains(printed, "t0ken") {
			t.Errorf("printed, without %q:\n%s", want, printed)
		}
	}
	if strings.Contains(printed, secret) || !strings.Contains(printed, "password_env: KAFKA_PASSWORD") || !strings.Contains(printed, "session_timeout: 30s") {
		t.Errorf("printed:\n%s", printed)
	}
	if err := os.WriteFile(path, []byte(printed), 0o600); err != nil {
		t.Fatal(err)
	}
	if again := oodmon(t, 0, "config", "check", "--print", path).stdout; again != printed {
		t.Errorf("printed:\n%s\nand of that:\n%s", printed, again)
	}
}

func evalJSON(t *testing.T, args ...string) map[string]float64 {
	t.Helper()
	var all map[string]any
	if err := json.Unmarshal([]byte(oodmon(t, 0, append([]string{"eval", "--json"}, args...)...).stdout), &all); err != nil {
		t.Fatal(err)
	}
	keys := slices.Sorted(maps.Keys(all))
	e := make(map[string]float64)
	for key, v := range all {
		if f, ok := v.(float64); ok {
			e[key] = f
		}
	}
	if strings.Join(keys, " ") != "accuracy aupr_in aupr_out auroc detection_rate detector dtacc ece false_positive_rate in_distribution_records model nll ood_records records_without_direction score tnr_at_tpr95 unknown_labels" {
		t.Errorf("keys %q", keys)
	}
	return e
}

// The head that was trained with its network gives the figures that it was
// published with.
func TestImportedDigits(t *testing.T) {
	e := evalJSON(t, "--model", importDigits(t), "--id", digits("test.arrow"), "--ood", digits("ood.arrow"))
	for key, want := range map[string]float64{"accuracy": .991, "auroc": .984, "tnr_at_tpr95": .929} {
		if math.Abs(e[key]-want) > .0005 {
			t.Errorf("%s is %.4f, want %.3f", key, e[key], want)
		}
	}
	if e["false_positive_rate"] > .01 {
		t.Errorf("false-positive rate %.4f, chosen 0.01", e["false_positive_rate"])
	}
}

func TestEvalDetectors(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "report")
	files := []string{"--id", digits("test.arrow"), "--ood", digits("ood.arrow")}
	fit := append([]string{"eval", "--data", digits("train.arrow"), "--calibration", digits("calibration.arrow")}, files...)
	o := oodmon(t, 0, append(fit, "--detectors", "class-means,knn", "--model", importDigits(t), "--json", "--report", dir)...)
	var all []struct {
		Detector string  `json:"detector"`
		AUROC    float64 `json:"auroc"`
	}
	if err := json.Unmarshal([]byte(o.stdout), &all); err != nil || len(all) != 3 || all[0].Detector != "isomax+" || all[2].Detector != "knn" || all[2].AUROC < .98 {
		t.Errorf("%v, %+v", err, all)
	}
	if page, err := os.ReadFile(filepath.Join(dir, "index.html")); err != nil || !bytes.Contains(page, []byte("Detectors side by side")) {
		t.Errorf("no report: %v", err)
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{append([]string{"eval"}, files...), 2, "--model, --detectors or both are required"},
		{append([]string{"eval", "--detectors", "all"}, files...), 2, "--detectors needs --data"},
		{append([]string{"eval", "--model", "x", "--data", "y"}, files...), 2, "--data and --calibration are for --detectors"},
		{append(fit, "--detectors", "svm"), 2, `--detectors: "svm" is neither all nor one of ["isomax+"`},
		{append(fit, "--detectors", "knn:es"), 2, `--detectors: score "es" is not one of ["distance"] of knn`},
		{append(fit, "--detectors", "knn", "--alpha", "0.001"), 1, "knn: calibrate: too few calibration records: 1212 for a false-positive rate of 0.001 with confidence 0.95; at least 2995 are needed: give more of them (--calibration), or allow a higher rate (--alpha)"},
	} {
		if o := oodmon(t, test.code, test.args...); !strings.Contains(o.stderr, test.want) {
			t.Errorf("%v: %s, want %q", test.args, o.stderr, test.want)
		}
	}
	// Labels of which the model knows none.
	rows := rowsFile(t, filepath.Join(t.TempDir(), "rows.jsonl"), "1", "2")
	content, err := os.ReadFile(rows)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(rows, bytes.ReplaceAll(content, []byte("{"), []byte(`{"label":"zebra",`)), 0o600); err != nil {
		t.Fatal(err)
	}
	if o := oodmon(t, 1, "eval", "--model", importDigits(t), "--id", rows, "--ood", digits("ood.arrow")); !strings.Contains(o.stderr, `none of the labels of 2 records is a class of model`) {
		t.Errorf("%s", o.stderr)
	}
}

func TestCLINC150(t *testing.T) {
	data := filepath.Join("..", "..", "..", "shared", "data", "clinc150")
	if _, err := os.Stat(data); err != nil {
		t.Skip("needs the CLINC150 embeddings, which are not part of the project")
	}
	if testing.Short() {
		t.Skip("trains for ten seconds or more")
	}
	path := filepath.Join(t.TempDir(), "head.safetensors")
	oodmon(t, 0, "train", "--data", filepath.Join(data, "train.arrow"), "--calibration", filepath.Join(data, "val.arrow"), "--output", path)
	e := evalJSON(t, "--model", path, "--id", filepath.Join(data, "test.arrow"), "--ood", filepath.Join(data, "oos_test.arrow"))
	t.Logf("accuracy %.4f, AUROC %.4f, TNR@TPR95 %.4f, false-positive rate %.4f", e["accuracy"], e["auroc"], e["tnr_at_tpr95"], e["false_positive_rate"])
	if e["accuracy"] < .95 || e["auroc"] < .975 {
		t.Errorf("accuracy %.4f and AUROC %.4f, want at least 0.95 and 0.975", e["accuracy"], e["auroc"])
	}
}

func TestTrainAndScore(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "head.safetensors")
	var report map[string]any
	o := oodmon(t, 0, "train", "--data", digits("train.arrow"), "--calibration", digits("calibration.arrow"), "--output", path, "--epochs", "2", "--json")
	if err := json.Unmarshal([]byte(o.stdout), &report); err != nil {
		t.Fatal(err)
	}
	if report["fitted"] != 4846. || report["calibration"] != 1212. || report["classes"] != 8. || report["output"] != path {
		t.Errorf("report %v", report)
	}

	rows := `{"id":"zero","embedding":[` + strings.Repeat("0,", 31) + `0]}
{"id":"one","embedding":[` + strings.Repeat("1,", 31) + `1]}
`
	scored := func(args ...string) outcome {
		t.Helper()
		o := oodmonWith(t, rows, append([]string{"score", "--model", path}, append(args, "-")...)...)
		if o.code != 0 || !strings.Contains(o.stderr, "row 0 ") || !strings.Contains(o.stderr, "1 of 2 rows have no score") {
			t.Fatalf("code %d: %s", o.code, o.stderr)
		}
		return o
	}
	var line struct {
		ID    string  `json:"id"`
		Score float64 `json:"score"`
		Row   int64   `json:"offset"`
		Topic string  `json:"topic"`
		Model string  `json:"model"`
	}
	if err := json.Unmarshal([]byte(scored().stdout), &line); err != nil || line.ID != "one" || line.Row != 1 || line.Score <= 0 || line.Topic != "-" || line.Model != report["version"] {
		t.Errorf("%+v, %v", line, err)
	}
	table, err := csv.NewReader(strings.NewReader(scored("--format", "csv").stdout)).ReadAll()
	if err != nil || len(table) != 2 || table[0][1] != "score" || table[1][0] != "one" || table[1][1] != fmt.Sprint(float32(line.Score)) {
		t.Errorf("%q, %v", table, err)
	}
	reader, err := ipc.NewReader(strings.NewReader(scored("--format", "arrow").stdout))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Release()
	if !reader.Next() || reader.Record().Column(1).(*array.Float32).Value(0) != float32(line.Score) {
		t.Errorf("Arrow: %v", reader.Err())
	}
	out := filepath.Join(dir, "scores.jsonl")
	oodmon(t, 0, "score", "--model", path, "--output", out, digits("test.arrow"), digits("ood.arrow"))
	content, err := os.ReadFile(out)
	if err != nil || bytes.Count(content, []byte("\n")) != 2020+1922 {
		t.Errorf("%d lines, %v", bytes.Count(content, []byte("\n")), err)
	}
	// What fails half-way leaves no file behind.
	half := filepath.Join(dir, "half.jsonl")
	oodmon(t, 1, "score", "--model", path, "--output", half, digits("test.arrow"), digits("make.py")+".jsonl")
	if _, err := os.Stat(half); !os.IsNotExist(err) {
		t.Errorf("a half-written file stays: %v", err)
	}
}

func TestModels(t *testing.T) {
	registry := filepath.Join(t.TempDir(), "registry")
	if o := oodmon(t, 1, "model", "show", "--registry", registry); !strings.Contains(o.stderr, "the registry has no current model") {
		t.Errorf("%s", o.stderr)
	}
	add := func(alpha string, more ...string) string {
		t.Helper()
		args := append([]string{"model", "import", "--head", digits("head.safetensors"), "--calibration", digits("calibration.arrow"), "--registry", registry, "--alpha", alpha}, more...)
		return strings.TrimSpace(oodmon(t, 0, args...).stdout)
	}
	first, promoted := strings.CutPrefix(add("0.01", "--promote"), "in service: ")
	if !promoted {
		t.Errorf("imported and promoted: %q", first)
	}
	second := add("0.05")
	show := func() (version string, alpha float64) {
		t.Helper()
		var info struct {
			Version string  `json:"version"`
			Alpha   float64 `json:"alpha"`
		}
		if err := json.Unmarshal([]byte(oodmon(t, 0, "model", "show", "--registry", registry).stdout), &info); err != nil {
			t.Fatal(err)
		}
		return info.Version, info.Alpha
	}
	if version, alpha := show(); version != first || alpha != .01 {
		t.Errorf("in service %s at %g, want %s", version, alpha, first)
	}
	oodmon(t, 0, "model", "promote", "--registry", registry, second)
	if version, alpha := show(); version != second || alpha != .05 {
		t.Errorf("in service %s at %g, want %s", version, alpha, second)
	}
	if o := oodmon(t, 0, "model", "rollback", "--registry", registry); o.stdout != "in service: "+first+"\n" {
		t.Errorf("%s", o.stdout)
	}
	var all []struct {
		Version string `json:"version"`
		Current bool   `json:"current"`
	}
	if err := json.Unmarshal([]byte(oodmon(t, 0, "model", "list", "--registry", registry, "--json").stdout), &all); err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	for _, m := range all {
		if m.Current != (m.Version == first) {
			t.Errorf("%+v, in service is %s", m, first)
		}
	}
	if o := oodmon(t, 1, "model", "promote", "--registry", registry, "0123456789ab"); !strings.Contains(o.stderr, "no such model in the registry") {
		t.Errorf("%s", o.stderr)
	}
	if o := oodmon(t, 1, "model", "import", "--head", digits("head.safetensors"), "--calibration", digits("calibration.arrow"), "--output", "x", "--classes", "a,b"); !strings.Contains(o.stderr, "2 class names for 8 classes") {
		t.Errorf("%s", o.stderr)
	}
}

// retraining writes a configuration, whose section retrain ends with rest, into dir.
func retraining(t *testing.T, dir, rest string) string {
	t.Helper()
	path := filepath.Join(dir, "oodmon.yml")
	data, err := filepath.Abs(digits("train.arrow"))
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`
kafka: {brokers: ["localhost:9092"]}
input: {topic: in}
output: {topic: out}
dead_letter: {topic: dead}
model: {registry: %q}
retrain: {data: {files: [%q]}, recipe: {epochs: 2}%s}
`, filepath.Join(dir, "registry"), data, rest)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A monitor that recommends retraining calls, and a model is published; anything else
// that comes is refused.
func TestRetrainWhenCalled(t *testing.T) {
	dir := t.TempDir()
	registry := filepath.Join(dir, "registry")
	oodmon(t, 0, "model", "import", "--registry", registry, "--head", digits("head.safetensors"), "--calibration", digits("calibration.arrow"), "--promote")
	models, err := model.OpenRegistry(registry)
	if err != nil {
		t.Fatal(err)
	}
	first, err := models.Current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "retrain", "--config", retraining(t, dir, ""), "--listen", "127.0.0.1:0", "--json")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	address := ""
	logs := bufio.NewScanner(stderr)
	for address == "" && logs.Scan() {
		if _, rest, found := strings.Cut(logs.Text(), "waiting for calls to retrain"); found {
			_, address, _ = strings.Cut(rest, "address=")
		}
	}
	logged, passedOver := make(chan struct{}), make(chan struct{}, 1)
	go func() {
		defer close(logged)
		for logs.Scan() {
			if strings.Contains(logs.Text(), "another model is in service by now") {
				passedOver <- struct{}{}
			}
		}
	}()
	call := func(kind, body string, code int) {
		t.Helper()
		answer, err := http.Post("http://"+address+"/", kind, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != code {
			t.Errorf("%s: %s, want %d", body, answer.Status, code)
		}
	}
	recommends := func(name, version string) string {
		return fmt.Sprintf(`{"id": "1-retrain", "name": %q, "detector": "retrain", "model": %q, "records": []}`, name, version)
	}
	call("application/json", "{", 400)
	call("application/json", `{"name": "default", "detector": "shift"}`, 400)
	call("application/json", recommends("other", first), 400)
	call("text/plain", recommends("default", first), 400)
	call("application/json", recommends("default", first), 202)
	var report struct {
		Result    string `json:"result"`
		Candidate struct {
			Version string `json:"version"`
		} `json:"candidate"`
	}
	reports := json.NewDecoder(stdout)
	if err := reports.Decode(&report); err != nil || report.Result != "published" || report.Candidate.Version == first {
		t.Errorf("report %+v, %v", report, err)
	}
	second := report.Candidate.Version
	call("application/json", recommends("default", first), 202) // it is in service no more
	select {
	case <-passedOver:
	case <-time.After(30 * time.Second):
		t.Error("a call about a model that is not in service is followed")
	}
	call("application/json", recommends("default", second), 202)
	if err := reports.Decode(&report); err != nil || report.Result != "unchanged" {
		t.Errorf("the third call is the second to be followed: %+v, %v", report, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-logged
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
}

// A call about a model that is no longer in service does not put off the run that is
// to be tried again.
func TestCallPassedOverPutsOffNothing(t *testing.T) {
	registry := filepath.Join(t.TempDir(), "registry")
	oodmon(t, 0, "model", "import", "--registry", registry, "--head", digits("head.safetensors"), "--calibration", digits("calibration.arrow"), "--promote")
	models, err := model.OpenRegistry(registry)
	if err != nil {
		t.Fatal(err)
	}
	calls := make(chan monitor.RetrainCall, 1)
	calls <- monitor.RetrainCall{Model: "000000000000"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if !due(ctx, 200*time.Millisecond, calls, models) || len(calls) != 0 {
		t.Errorf("no run is due, %d calls wait", len(calls))
	}
}

// Published, refused and failed have exit codes of their own.
func TestRetrainExitCodes(t *testing.T) {
	dir := t.TempDir()
	config := func(rest string) string { return retraining(t, dir, rest) }
	o := oodmon(t, 0, "retrain", "--config", config(""), "--json")
	var report struct {
		Result    string `json:"result"`
		Candidate struct {
			Version string `json:"version"`
		} `json:"candidate"`
		Gate []struct {
			Rule   string `json:"rule"`
			Passed bool   `json:"passed"`
		} `json:"gate"`
	}
	if err := json.Unmarshal([]byte(o.stdout), &report); err != nil || report.Result != "published" || len(report.Gate) == 0 || !strings.Contains(o.stderr, "published model "+report.Candidate.Version) {
		t.Errorf("%v: %s%s", err, o.stdout, o.stderr)
	}
	o = oodmon(t, 3, "retrain", "--config", config(", gate: {min_accuracy: 1}"), "--json")
	if err := json.Unmarshal([]byte(o.stdout), &report); err != nil || report.Result != "refused" || !strings.Contains(o.stderr, "min_accuracy: ") {
		t.Errorf("%v: %s%s", err, o.stdout, o.stderr)
	}
	if o := oodmon(t, 1, "retrain", "--config", config(", false_positive_rate: 0.001")); !strings.Contains(o.stderr, "at least 2995 are needed: more labelled records would do, a larger retrain.calibration_share, or a higher retrain.false_positive_rate") {
		t.Errorf("%s", o.stderr)
	}
	if o := oodmon(t, 2, "retrain", "--config", config(", held_out_share: 0.9")); !strings.Contains(o.stderr, "must be positive and leave something to fit") {
		t.Errorf("%s", o.stderr)
	}
}

func TestDemo(t *testing.T) {
	var s struct {
		Produced     int     `json:"produced"`
		Scored       int     `json:"scored"`
		DeadLettered int     `json:"dead_lettered"`
		CountsAddUp  bool    `json:"counts_add_up"`
		AUROC        float64 `json:"auroc"`
		FPR          float64 `json:"false_positive_rate"`
		Noticed      bool    `json:"noticed"`
	}
	if err := json.Unmarshal([]byte(oodmon(t, 0, "demo", "--for", "6s", "--json").stdout), &s); err != nil {
		t.Fatal(err)
	}
	if !s.CountsAddUp || s.Produced != s.Scored+s.DeadLettered || s.Produced < 1000 || s.DeadLettered == 0 || s.AUROC < .95 || s.FPR > .02 || !s.Noticed {
		t.Errorf("%+v", s)
	}
}
