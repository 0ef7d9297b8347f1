package kafkaconn

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  Config
		want string
	}{
		"good":            {Config{Brokers: []string{"a:1", "[::1]:9092"}}, ""},
		"no broker":       {Config{}, "kafka.brokers: at least one address is needed"},
		"no port":         {Config{Brokers: []string{"kafka"}}, `kafka.brokers[0]: "kafka" is not host:port`},
		"a port too high": {Config{Brokers: []string{"a:1", "b:65536"}}, `kafka.brokers[1]: "b:65536" is not host:port with a port from 1 to 65535`},
		"TLS is off":      {Config{Brokers: []string{"a:1"}, TLS: TLSConfig{CAFile: "ca"}}, "kafka.tls: other keys are set, and enabled is not true"},
		"half a pair":     {Config{Brokers: []string{"a:1"}, TLS: TLSConfig{Enabled: true, CertFile: "c"}}, "kafka.tls: cert_file and key_file belong together; only one is set"},
		"no mechanism":    {Config{Brokers: []string{"a:1"}, SASL: SASLConfig{Username: "u"}}, "kafka.sasl: other keys are set, and mechanism is empty"},
		"bad mechanism":   {Config{Brokers: []string{"a:1"}, SASL: SASLConfig{Mechanism: "PLAIN"}}, `kafka.sasl.mechanism: "PLAIN" is none of "plain", "scram-sha-256", "scram-sha-512" and "aws-msk-iam"`},
		"two passwords": {
			Config{Brokers: []string{"a:1"}, SASL: SASLConfig{Mechanism: "plain", PasswordFile: "f", PasswordEnv: "E"}},
			"kafka.sasl.username: must not be empty with mechanism plain\nkafka.sasl: exactly one of password_file and password_env is needed with mechanism plain",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if err := c.cfg.Validate(); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("%q\nwant %q", got, c.want)
			}
		})
	}
}

func TestNewNamesTheFileThatIsWrong(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	tls := func(c TLSConfig) Config { c.Enabled = true; return Config{Brokers: []string{"a:1"}, TLS: c} }
	sasl := func(c SASLConfig) Config {
		c.Mechanism, c.Username = "plain", "u"
		return Config{Brokers: []string{"a:1"}, SASL: c}
	}
	for name, c := range map[string]struct {
		cfg  Config
		want string
	}{
		"no authority":       {tls(TLSConfig{CAFile: missing}), "kafka.tls.ca_file: open " + missing},
		"no certificate":     {tls(TLSConfig{CAFile: empty}), "kafka.tls.ca_file: " + empty + " holds no certificate in PEM form"},
		"no pair":            {tls(TLSConfig{CertFile: empty, KeyFile: missing}), "kafka.tls.cert_file " + empty + ", key_file " + missing + ": open"},
		"no password file":   {sasl(SASLConfig{PasswordFile: missing}), "kafka.sasl.password_file: open " + missing},
		"an empty password":  {sasl(SASLConfig{PasswordFile: empty}), "kafka.sasl.password_file: " + empty + " is empty"},
		"an unset variable":  {sasl(SASLConfig{PasswordEnv: "OODMON_NOT_SET"}), "kafka.sasl.password_env: the environment variable OODMON_NOT_SET is not set"},
		"it is not validate": {Config{}, "kafka.brokers: at least one address is needed"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(c.cfg); err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("error %v\nwant it to begin with %s", err, c.want)
			}
		})
	}
}
