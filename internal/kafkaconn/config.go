package kafkaconn

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Config says how brokers are reached. Passwords are never part of it: they
// come from a file or an environment variable.
type Config struct {
	Brokers  []string   `yaml:"brokers"`
	ClientID string     `yaml:"client_id"`
	TLS      TLSConfig  `yaml:"tls"`
	SASL     SASLConfig `yaml:"sasl"`
}

// A TLSConfig says how a broker proves who it is, and with CertFile and KeyFile
// how the client does.
type TLSConfig struct {
	Enabled    bool   `yaml:"enabled"`
	CAFile     string `yaml:"ca_file"`
	CertFile   string `yaml:"cert_file"`
	KeyFile    string `yaml:"key_file"`
	ServerName string `yaml:"server_name"`
}

// A SASLConfig names the user and where the password is. Mechanism is plain,
// scram-sha-256, scram-sha-512 or aws-msk-iam, which takes AWS's credentials in
// the place of a user and password; empty means no authentication.
type SASLConfig struct {
	Mechanism    string `yaml:"mechanism"`
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"`
	PasswordEnv  string `yaml:"password_env"`
	Region       string `yaml:"region"` // of aws-msk-iam; empty: AWS_REGION
}

// Validate reports every value that cannot work, each with its key.
func (c *Config) Validate() error {
	var all []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			all = append(all, fmt.Errorf(format, args...))
		}
	}
	check(len(c.Brokers) > 0, "kafka.brokers: at least one address is needed")
	for i, b := range c.Brokers {
		if err := checkAddress(b); err != nil {
			all = append(all, fmt.Errorf("kafka.brokers[%d]: %w", i, err))
		}
	}
	t := c.TLS
	check(t.Enabled || t == (TLSConfig{}), "kafka.tls: other keys are set, and enabled is not true")
	check((t.CertFile == "") == (t.KeyFile == ""), "kafka.tls: cert_file and key_file belong together; only one is set")
	s := c.SASL
	switch s.Mechanism {
	case "":
		check(s == (SASLConfig{}), "kafka.sasl: other keys are set, and mechanism is empty")
	case "plain", "scram-sha-256", "scram-sha-512":
		check(s.Username != "", "kafka.sasl.username: must not be empty with mechanism %s", s.Mechanism)
		check((s.PasswordFile == "") != (s.PasswordEnv == ""),
			"kafka.sasl: exactly one of password_file and password_env is needed with mechanism %s", s.Mechanism)
		check(s.Region == "", "kafka.sasl.region: is for mechanism aws-msk-iam alone")
	case awsMSKIAM:
		check(s == SASLConfig{Mechanism: awsMSKIAM, Region: s.Region}, "kafka.sasl: mechanism aws-msk-iam takes AWS's credentials, no username or password")
		check(t.Enabled, "kafka.sasl: mechanism aws-msk-iam needs kafka.tls.enabled")
	default:
		all = append(all, fmt.Errorf(`kafka.sasl.mechanism: %q is none of "plain", "scram-sha-256", "scram-sha-512" and "aws-msk-iam"`, s.Mechanism))
	}
	return errors.Join(all...)
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not host:port", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); host == "" || err != nil || n == 0 {
		return fmt.Errorf("%q is not host:port with a port from 1 to 65535", address)
	}
	return nil
}

// expired returns when the client's certificate expired, if it has.
func (c *TLSConfig) expired(now time.Time) (end time.Time, ok bool) {
	if c.CertFile == "" {
		return end, false
	}
	cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil || cert.Leaf == nil { // load tells of it
		return end, false
	}
	return cert.Leaf.NotAfter, now.After(cert.Leaf.NotAfter)
}

// load reads the authorities and the client's certificate.
func (c *TLSConfig) load() (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("kafka.tls.ca_file: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("kafka.tls.ca_file: %s holds no certificate in PEM form", c.CAFile)
		}
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("kafka.tls.cert_file %s, key_file %s: %w", c.CertFile, c.KeyFile, err)
		}
		// Not out.Certificates: of those none is sent where the broker names the root
		// alone and the file lacks the intermediate authority that signed it.
		out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return out, nil
}

// password reads the password from where the configuration says it is.
func (c *SASLConfig) password() (string, error) {
	if c.PasswordFile != "" {
		text, err := os.ReadFile(c.PasswordFile)
		if err != nil {
			return "", fmt.Errorf("kafka.sasl.password_file: %w", err)
		}
		word := strings.TrimRight(string(text), "\r\n")
		if word == "" {
			return "", fmt.Errorf("kafka.sasl.password_file: %s is empty", c.PasswordFile)
		}
		return word, nil
	}
	word := os.Getenv(c.PasswordEnv)
	if word == "" {
		return "", fmt.Errorf("kafka.sasl.password_env: the environment variable %s is not set", c.PasswordEnv)
	}
	return word, nil
}
