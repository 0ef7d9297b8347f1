package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/oodmon/oodmon/alerts"
	"github.com/oodmon/oodmon/drift"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/oodmon/oodmon/trainer"
	"go.yaml.in/yaml/v3"
)

// A Config is the content of oodmon.yml. Every key and its default is
// documented in deploy/oodmon.yml.
type Config struct {
	// Name tells several monitored models apart: the label `model` of every metric.
	Name string `yaml:"name"`
	// MemoryLimit is a soft limit of the Go runtime, in bytes; 0: GOMEMLIMIT, or none.
	MemoryLimit int64 `yaml:"memory_limit"`

	Kafka      kafkaconn.Config      `yaml:"kafka"`
	Input      InputConfig           `yaml:"input"`
	Output     OutputConfig          `yaml:"output"`
	DeadLetter DeadLetterConfig      `yaml:"dead_letter"`
	Model      ModelConfig           `yaml:"model"`
	Drift      drift.Config          `yaml:"drift"`
	Web        WebConfig             `yaml:"web"`
	Shutdown   ShutdownConfig        `yaml:"shutdown"`
	Retrain    trainer.RetrainConfig `yaml:"retrain"`
	Alerts     alerts.Config         `yaml:"alerts"`
}

// An InputConfig says which records are read and how their bytes are understood.
type InputConfig struct {
	Topic string `yaml:"topic"`
	Group string `yaml:"group"`
	// Start is where a partition begins that has no committed offset: earliest or latest.
	Start string `yaml:"start"`
	// OutOfRange is what follows a committed offset that the log no longer
	// holds, or does not hold yet: earliest, latest or fail.
	OutOfRange    string `yaml:"out_of_range"`
	Codec         string `yaml:"codec"`
	IDHeader      string `yaml:"id_header"`
	SegmentHeader string `yaml:"segment_header"`
	// SegmentFromKey makes the message's key the segment of a record that has none.
	SegmentFromKey  bool        `yaml:"segment_from_key"`
	MaxMessageBytes int         `yaml:"max_message_bytes"`
	Batch           BatchConfig `yaml:"batch"`
	// SessionTimeout is how long the group waits for a member that died before
	// the others get its partitions.
	SessionTimeout time.Duration `yaml:"session_timeout"`
	// StallTimeout is how long records may wait without progress before
	// /-/healthy fails.
	StallTimeout time.Duration `yaml:"stall_timeout"`
}

// A BatchConfig bounds what is scored and acknowledged at once.
type BatchConfig struct {
	MaxRecords int           `yaml:"max_records"`
	MaxBytes   int           `yaml:"max_bytes"`
	MaxWait    time.Duration `yaml:"max_wait"`
}

// An OutputConfig says which scores are published, where, and in which form.
type OutputConfig struct {
	Topic string `yaml:"topic"`
	// Format is json (one message a record) or arrow (one message a batch).
	Format string `yaml:"format"`
	// When is all or ood.
	When             string `yaml:"when"`
	IncludeEmbedding bool   `yaml:"include_embedding"`
	// Delivery is at-least-once or exactly-once: then what a batch leads to and
	// its offset are one Kafka transaction.
	Delivery string `yaml:"delivery"`
}

const (
	atLeastOnce = "at-least-once"
	exactlyOnce = "exactly-once"
)

// A DeadLetterConfig names the topic of the records that could not be scored.
type DeadLetterConfig struct {
	Topic string `yaml:"topic"`
}

// A ModelConfig says where the model in service comes from.
type ModelConfig struct {
	Registry     string        `yaml:"registry"`
	PollInterval time.Duration `yaml:"poll_interval"`
	// PerClass calibrates the threshold for each predicted class (Mondrian).
	PerClass bool `yaml:"per_class"`
}

// A WebConfig says where the HTTP endpoints listen and who may call them.
type WebConfig struct {
	ListenAddresses []string `yaml:"listen_addresses"`
	// ConfigFile is an exporter-toolkit web configuration: TLS and basic authentication.
	ConfigFile      string `yaml:"config_file"`
	EnableLifecycle bool   `yaml:"enable_lifecycle"`
	EnablePprof     bool   `yaml:"enable_pprof"`
}

// A ShutdownConfig bounds the time between SIGTERM and exit.
type ShutdownConfig struct {
	DrainTimeout time.Duration `yaml:"drain_timeout"`
}

// DefaultConfig returns the value of every key that a file leaves out.
func DefaultConfig() *Config {
	return &Config{
		Name:  "default",
		Kafka: kafkaconn.Config{ClientID: "oodmon"},
		Input: InputConfig{
			Group:           "oodmon",
			Start:           "latest",
			OutOfRange:      "earliest",
			Codec:           "auto",
			IDHeader:        "id",
			SegmentHeader:   "segment",
			MaxMessageBytes: 16 << 20,
			Batch:           BatchConfig{MaxRecords: 4096, MaxBytes: 1 << 20, MaxWait: 100 * time.Millisecond},
			SessionTimeout:  30 * time.Second,
			StallTimeout:    2 * time.Minute,
		},
		Output:   OutputConfig{Format: "json", When: "all", Delivery: atLeastOnce},
		Model:    ModelConfig{PollInterval: 30 * time.Second},
		Drift:    drift.DefaultConfig(),
		Web:      WebConfig{ListenAddresses: []string{":9095"}},
		Shutdown: ShutdownConfig{DrainTimeout: 15 * time.Second},
		Retrain:  trainer.DefaultRetrainConfig(),
		Alerts:   alerts.DefaultConfig(),
	}
}

// LoadConfig reads and validates the file at path.
func LoadConfig(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	cfg, err := parseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return cfg, nil
}

func parseConfig(text []byte) (*Config, error) {
	cfg := DefaultConfig()
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(cfg); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the file is empty; see deploy/oodmon.yml for an example")
		}
		return nil, plainYAMLError(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("the file holds more than one YAML document")
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return cfg, nil
}

var (
	unknownKey = regexp.MustCompile(`^(line \d+: )field (\S+) not found in type \S+$`)
	wrongType  = regexp.MustCompile("^(line \\d+: )cannot unmarshal !!(\\w+) (?:(`.*`) )?into (\\S+)$")
)

// plainYAMLError says "unknown key", and what was expected, where the library
// names a Go type.
func plainYAMLError(err error) error {
	typed, ok := errors.AsType[*yaml.TypeError](err)
	if !ok {
		return err
	}
	var all []error
	for _, line := range typed.Errors {
		line = unknownKey.ReplaceAllString(line, `${1}unknown key "${2}"`)
		if parts := wrongType.FindStringSubmatch(line); parts != nil {
			found := parts[3]
			switch {
			case parts[2] == "seq":
				found = "a list"
			case parts[2] == "map":
				found = "a section of keys"
			}
			line = fmt.Sprintf("%s%s is not %s", parts[1], found, plainType(parts[4]))
		}
		all = append(all, errors.New(line))
	}
	return errors.Join(all...)
}

// plainType says what a value of a Go type is called in a configuration.
func plainType(name string) string {
	switch {
	case name == "time.Duration":
		return "a duration like 100ms, 30s or 5m"
	case strings.HasPrefix(name, "[]"):
		return `a list like ["a", "b"]`
	case strings.HasPrefix(name, "int"), strings.HasPrefix(name, "uint"):
		return "a whole number"
	case strings.HasPrefix(name, "float"):
		return "a number like 0.01"
	case name == "bool":
		return "true or false"
	case name == "string":
		return "one text"
	}
	return "a section of keys"
}

// Validate reports every value that cannot work, each with its key.
func (c *Config) Validate() error {
	var all []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			all = append(all, fmt.Errorf(format, args...))
		}
	}
	oneOf := func(key, value string, allowed ...string) {
		for _, a := range allowed {
			if value == a {
				return
			}
		}
		all = append(all, fmt.Errorf("%s: %q is not one of %q", key, value, allowed))
	}
	require(c.Name != "", "name: must not be empty")
	require(c.MemoryLimit >= 0, "memory_limit: %d must not be negative", c.MemoryLimit)
	if err := c.Kafka.Validate(); err != nil {
		all = append(all, err)
	}
	in := c.Input
	require(in.Topic != "", "input.topic: must not be empty")
	require(in.Group != "", "input.group: must not be empty")
	oneOf("input.start", in.Start, "earliest", "latest")
	oneOf("input.out_of_range", in.OutOfRange, "earliest", "latest", "fail")
	oneOf("input.codec", in.Codec, featurizer.Codecs...)
	require(in.MaxMessageBytes > 0, "input.max_message_bytes: %d must be positive", in.MaxMessageBytes)
	require(in.Batch.MaxRecords > 0, "input.batch.max_records: %d must be positive", in.Batch.MaxRecords)
	require(in.Batch.MaxBytes > 0, "input.batch.max_bytes: %d must be positive", in.Batch.MaxBytes)
	require(in.Batch.MaxWait >= time.Millisecond, "input.batch.max_wait: %v must be at least 1ms", in.Batch.MaxWait)
	require(in.SessionTimeout > 0, "input.session_timeout: %v must be positive", in.SessionTimeout)
	require(in.StallTimeout > 0, "input.stall_timeout: %v must be positive", in.StallTimeout)
	require(c.Output.Topic != "", "output.topic: must not be empty")
	oneOf("output.format", c.Output.Format, "json", "arrow")
	oneOf("output.when", c.Output.When, "all", "ood")
	oneOf("output.delivery", c.Output.Delivery, atLeastOnce, exactlyOnce)
	require(c.DeadLetter.Topic != "", "dead_letter.topic: must not be empty; records that cannot be scored are kept there")
	for _, t := range []struct{ key, topic string }{{"output.topic", c.Output.Topic}, {"dead_letter.topic", c.DeadLetter.Topic}} {
		require(t.topic == "" || t.topic != in.Topic, "%s: %q is the input topic; oodmon would read what it writes", t.key, t.topic)
	}
	require(c.Model.Registry != "", "model.registry: must not be empty")
	require(c.Model.PollInterval > 0, "model.poll_interval: %v must be positive", c.Model.PollInterval)
	if err := c.Drift.Validate(); err != nil {
		all = append(all, err)
	}
	for _, t := range []struct{ key, topic string }{{"input.topic", in.Topic}, {"output.topic", c.Output.Topic}, {"dead_letter.topic", c.DeadLetter.Topic}} {
		require(c.Drift.Incidents.Topic == "" || c.Drift.Incidents.Topic != t.topic, "drift.incidents.topic: %q is the topic of %s; choose another", t.topic, t.key)
	}
	require(len(c.Web.ListenAddresses) > 0, "web.listen_addresses: at least one is needed")
	for i, address := range c.Web.ListenAddresses {
		_, _, err := net.SplitHostPort(address)
		require(err == nil, "web.listen_addresses[%d]: %q is not host:port or :port", i, address)
	}
	require(c.Shutdown.DrainTimeout > 0, "shutdown.drain_timeout: %v must be positive", c.Shutdown.DrainTimeout)
	if err := c.Retrain.Validate(); err != nil {
		all = append(all, err)
	}
	if err := c.Alerts.Validate(); err != nil {
		all = append(all, err)
	} else if c.Alerts.Evaluate.Enabled { // else it matters to who generates the rules, who is told
		if err := c.AlertParameters().CheckBudget(); err != nil {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// Warnings are about what may be right elsewhere: files and folders that are not
// on this machine, and a budget for which no alerting rules can be generated.
func (c *Config) Warnings() []string {
	var all []string
	there := func(key, path string) {
		if path == "" {
			return
		}
		if _, err := os.Stat(path); err != nil {
			all = append(all, fmt.Sprintf("%s: %v", key, err))
		}
	}
	there("kafka.tls.ca_file", c.Kafka.TLS.CAFile)
	there("kafka.tls.cert_file", c.Kafka.TLS.CertFile)
	there("kafka.tls.key_file", c.Kafka.TLS.KeyFile)
	there("kafka.sasl.password_file", c.Kafka.SASL.PasswordFile)
	there("web.config_file", c.Web.ConfigFile)
	if c.Drift.Enabled {
		if c.Drift.StateFile != "" {
			there("the folder of drift.state_file", filepath.Dir(c.Drift.StateFile))
		}
		there("drift.retrain_webhook.url_file", c.Drift.RetrainWebhook.URLFile)
	}
	for i, path := range c.Retrain.Data.Files {
		there(fmt.Sprintf("retrain.data.files[%d]", i), path)
	}
	for i, path := range c.Retrain.Data.Outliers {
		there(fmt.Sprintf("retrain.data.outliers[%d]", i), path)
	}
	there("retrain.temp_dir", c.Retrain.TempDir)
	if c.Alerts.Evaluate.Enabled {
		there("alerts.evaluate.webhook_url_file", c.Alerts.Evaluate.WebhookURLFile)
	}
	if err := c.AlertParameters().CheckBudget(); err != nil {
		all = append(all, fmt.Sprintf("'oodmon alerts generate' will refuse this: %v", err))
	}
	return all
}

// AlertParameters returns what the alerting rules repeat from the configuration.
func (c *Config) AlertParameters() alerts.Parameters {
	return alerts.Parameters{Config: c.Alerts, FalsePositiveRate: c.Retrain.FalsePositiveRate, StallTimeout: c.Input.StallTimeout}
}
