package monitor

import (
	"bytes"
	"go.yaml.in/yaml/v3"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// The example documents every default: reading it gives the defaults, but for
// the keys that have none.
func TestExampleHoldsTheDefaults(t *testing.T) {
	got, err := LoadConfig(filepath.Join("..", "deploy", "oodmon.yml"))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.Kafka.Brokers = []string{"localhost:9092"}
	want.Input.Topic, want.Output.Topic, want.DeadLetter.Topic = "embeddings", "scores", "embeddings.dead-letter"
	want.Model.Registry = "/var/lib/oodmon/registry"
	want.Retrain.Data.Files, want.Retrain.Data.Outliers = []string{}, []string{}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the example says\n%+v\nthe defaults are\n%+v", got, want)
	}
}

func TestExampleNamesEveryKey(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "deploy", "oodmon.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var keys func(t reflect.Type) []string
	keys = func(t reflect.Type) (all []string) {
		for i := range t.NumField() {
			f := t.Field(i)
			all = append(all, f.Tag.Get("yaml"))
			if f.Type.Kind() == reflect.Struct {
				all = append(all, keys(f.Type)...)
			}
		}
		return all
	}
	for _, key := range keys(reflect.TypeFor[Config]()) {
		if !strings.Contains(string(text), key+":") {
			t.Errorf("the example does not document %q", key)
		}
	}
}

const smallest = `
kafka: {brokers: ["localhost:9092"]}
input: {topic: in}
output: {topic: out}
dead_letter: {topic: dead}
model: {registry: /tmp/r}
`

func TestParseConfigRefuses(t *testing.T) {
	if _, err := parseConfig([]byte(smallest)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ text, want string }{
		{"", "the file is empty; see deploy/oodmon.yml for an example"},
		{smallest + "---\na: b", "the file holds more than one YAML document"},
		{smallest + "inputs: {}", `line 7: unknown key "inputs"`},
		{strings.Replace(smallest, "topic: in", "topic: in, bach: 3", 1), `line 3: unknown key "bach"`},
		{strings.Replace(smallest, "topic: in}", "topic: in, batch: {max_records: many}}", 1), "line 3: `many` is not a whole number"},
		{strings.Replace(smallest, "topic: in}", "topic: in, batch: {max_wait: 100}}", 1), "line 3: `100` is not a duration like 100ms, 30s or 5m"},
		{strings.Replace(smallest, "topic: in}", "topic: [in]}", 1), "line 3: a list is not one text"},
		{strings.Replace(smallest, "{topic: in}", "in", 1), "line 3: `in` is not a section of keys"},
		{strings.Replace(smallest, `["localhost:9092"]`, "localhost:9092", 1), "line 2: `localho...` is not a list like [\"a\", \"b\"]"},
		{smallest + "alerts: {ood_budget: 2%}", "line 7: `2%` is not a number like 0.01"},
		{smallest + "drift: {enabled: 1}\nweb: {enable_pprof: maybe}", "line 7: `1` is not true or false\nline 8: `maybe` is not true or false"},
		{smallest + "web: {listen_addresses: [9095]}", `web.listen_addresses[0]: "9095" is not host:port or :port`},
		{strings.Replace(smallest, "topic: in}", "topic: in, batch: {max_records: 0}}", 1), "input.batch.max_records: 0 must be positive"},
		{strings.Replace(smallest, "topic: in}", "topic: in, start: begin}", 1), `input.start: "begin" is not one of ["earliest" "latest"]`},
		{strings.Replace(smallest, "topic: out}", "topic: out, delivery: at-most-once}", 1), `output.delivery: "at-most-once" is not one of ["at-least-once" "exactly-once"]`},
		{strings.Replace(smallest, "topic: out", "topic: in", 1), `output.topic: "in" is the input topic; oodmon would read what it writes`},
		{strings.Replace(smallest, "dead_letter: {topic: dead}", "", 1), "dead_letter.topic: must not be empty; records that cannot be scored are kept there"},
		{strings.Replace(smallest, "/tmp/r", `""`, 1), "model.registry: must not be empty"},
		{strings.Replace(smallest, `["localhost:9092"]`, "[]", 1), "kafka.brokers: at least one address is needed"},
		{strings.Replace(smallest, `["localhost:9092"]`, "[localhost]", 1), `kafka.brokers[0]: "localhost" is not host:port`},
		{smallest + "retrain: {false_positive_rate: 2}", "retrain.false_positive_rate: 2 must be between 0 and 1"},
		{smallest + "retrain: {data: {files: [a.arrow], topic: t}}", "retrain.data: files and topic are both set; choose one"},
		{smallest + "retrain: {recipe: {rank: -1, bank: 0}}", "retrain.recipe.rank: -1 must be positive\nretrain.recipe.bank: 0 must be positive"},
		{smallest + "alerts: {ood_budget: 1}", "alerts.ood_budget: 1 must lie between 0 and 1"},
		{smallest + "alerts: {evaluate: {enabled: true}}\nretrain: {false_positive_rate: 0.02}", "alerts.ood_budget: 0.02 must lie above the false-positive rate, 0.02: a healthy stream would use it up"},
		{smallest + "retrain: {recipe: {epochs: 0}}", "retrain.recipe.epochs: 0 must be positive"},
		{strings.Replace(smallest, `]}`, `], sasl: {mechanism: plain, username: u, password: secret}}`, 1), `line 2: unknown key "password"`},
		{strings.Replace(smallest, `]}`, `], sasl: {mechanism: plain, username: u}}`, 1), "kafka.sasl: exactly one of password_file and password_env is needed with mechanism plain"},
	} {
		if _, err := parseConfig([]byte(test.text)); err == nil || err.Error() != test.want {
			t.Errorf("%s\ngot  %v\nwant %s", test.text, err, test.want)
		}
	}
}

// What may be right on another machine, or for who makes no alerting rules, is
// told and not refused.
func TestConfigWarnings(t *testing.T) {
	dir := t.TempDir()
	cfg, err := parseConfig([]byte(smallest + `
drift: {state_file: ` + dir + `/drift.state, retrain_webhook: {url_file: nowhere/url}}
retrain: {false_positive_rate: 0.1, data: {files: [` + dir + `, nowhere.arrow]}}
web: {config_file: nowhere/web.yml}
alerts: {evaluate: {webhook_url_file: nowhere/webhook}}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"web.config_file: stat nowhere/web.yml: no such file or directory",
		"drift.retrain_webhook.url_file: stat nowhere/url: no such file or directory",
		"retrain.data.files[1]: stat nowhere.arrow: no such file or directory",
		"'oodmon alerts generate' will refuse this: alerts.ood_budget: no budget fits a false-positive rate of 0.1: it must lie above the rate, and below 1/14.4 = 0.0694",
	}
	if got := cfg.Warnings(); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	cfg.Drift.StateFile = "nowhere/drift.state"
	if got := cfg.Warnings(); !slices.Contains(got, "the folder of drift.state_file: stat nowhere: no such file or directory") {
		t.Errorf("%q", got)
	}
	if cfg, err = parseConfig([]byte(smallest)); err != nil || len(cfg.Warnings()) > 0 {
		t.Errorf("%v, %q", err, cfg.Warnings())
	}
}

func TestLoadConfigNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "oodmon.yml")
	if _, err := LoadConfig(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("a: b"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(path); err == nil || !strings.HasPrefix(err.Error(), "configuration "+path+": ") {
		t.Errorf("a wrong file: %v", err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(smallest))
	f.Add([]byte("input: &a {topic: *a}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		cfg, err := parseConfig(text)
		if err != nil {
			return
		}
		if err := cfg.Validate(); err != nil {
			t.Fatalf("accepted what does not validate: %v", err)
		}
		written, err := yaml.Marshal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseConfig(written)
		if err != nil {
			t.Fatalf("what was accepted is refused a second time: %v\n%s", err, written)
		}
		if second, err := yaml.Marshal(again); err != nil || !bytes.Equal(second, written) {
			t.Fatalf("accepted\n%s\nand after a second time there is\n%s (%v)", written, second, err)
		}
	})
}
