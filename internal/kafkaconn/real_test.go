package kafkaconn_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/twmb/franz-go/pkg/kadm"
)

// What a real Kafka says to those whom it does not let in, and what we make of
// it: TLS with certificates of both sides, SCRAM-SHA-512, and access lists.
func TestRealKafkaLetsIn(t *testing.T) {
	kafkatest.NeedReal(t)
	ours, other := kafkatest.NewAuthority(t), kafkatest.NewAuthority(t)
	settings := []string{
		"listeners=PLAINTEXT://127.0.0.1:{+0},CONTROLLER://127.0.0.1:{+1},SECURED://127.0.0.1:{+2},EXPIRED://127.0.0.1:{+3}",
		"advertised.listeners=PLAINTEXT://127.0.0.1:{+0},SECURED://127.0.0.1:{+2},EXPIRED://127.0.0.1:{+3}",
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURED:SASL_SSL,EXPIRED:SASL_SSL",
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users=User:ANONYMOUS",
	}
	cert, key := ours.Issue(t, kafkatest.Local())
	settings = append(settings, ours.SecuredListener(t, "SECURED", cert, key)...)
	expired := kafkatest.Local()
	expired.NotAfter = time.Now().Add(-time.Minute)
	cert, key = ours.Issue(t, expired)
	settings = append(settings, ours.SecuredListener(t, "EXPIRED", cert, key)...)
	port := kafkatest.FreePorts(t, 4)
	broker := kafkatest.StartReal(t, 1, port, settings...)
	broker.CreateTopic("embeddings", 2)
	broker.CreateTopic("secret", 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	users, err := broker.Admin().AlterUserSCRAMs(ctx, nil, []kadm.UpsertSCRAM{{User: "ann", Mechanism: kadm.ScramSha512, Iterations: 4096, Password: "right"}})
	if err == nil {
		err = users.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	allowed := kadm.NewACLs().Allow("User:ann").AllowHosts("*").Topics("embeddings").Operations(kadm.OpRead, kadm.OpDescribe).ResourcePatternType(kadm.ACLPatternLiteral)
	if _, err := broker.Admin().CreateACLs(ctx, allowed); err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	password := func(text string) string {
		file := filepath.Join(dir, text)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	client := func(a *kafkatest.Authority, end time.Time) (certFile, keyFile string) {
		return a.Issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "monitor"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotAfter: end})
	}
	mine, mineKey := client(ours, time.Now().Add(time.Hour))
	old, oldKey := client(ours, time.Now().Add(-time.Minute))
	strange, strangeKey := client(other, time.Now().Add(time.Hour))
	at := func(offset int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port+offset)) }
	right := func() kafkaconn.Config {
		return kafkaconn.Config{
			Brokers: []string{at(2)}, TLS: kafkaconn.TLSConfig{Enabled: true, CAFile: ours.File, CertFile: mine, KeyFile: mineKey},
			SASL: kafkaconn.SASLConfig{Mechanism: "scram-sha-512", Username: "ann", PasswordFile: password("right")},
		}
	}
	for name, c := range map[string]struct {
		change func(*kafkaconn.Config)
		topics []string
		want   string // after the broker's name, where it begins with a space the whole
	}{
		"let in":                        {func(*kafkaconn.Config) {}, nil, ""},
		"by its other name":             {func(c *kafkaconn.Config) { c.TLS.ServerName = "broker.example" }, nil, ""},
		"wrong password":                {func(c *kafkaconn.Config) { c.SASL.PasswordFile = password("wrong") }, nil, "it refused the user or the password: check kafka.sasl: "},
		"unknown user":                  {func(c *kafkaconn.Config) { c.SASL.Username = "ben" }, nil, "it refused the user or the password: check kafka.sasl: "},
		"another mechanism":             {func(c *kafkaconn.Config) { c.SASL.Mechanism = "plain" }, nil, "it does not offer this mechanism: check kafka.sasl.mechanism: "},
		"no user":                       {func(c *kafkaconn.Config) { c.SASL = kafkaconn.SASLConfig{} }, nil, "it closed the connection: it may not speak TLS on this port, or expect kafka.tls.cert_file or kafka.sasl: "},
		"unknown authority":             {func(c *kafkaconn.Config) { c.TLS.CAFile = other.File }, nil, "its certificate is signed by an authority that is not trusted here: check kafka.tls.ca_file: "},
		"another name":                  {func(c *kafkaconn.Config) { c.TLS.ServerName = "other.example" }, nil, "its certificate is for another name than other.example: use one of its names as the address, or set kafka.tls.server_name: "},
		"expired":                       {func(c *kafkaconn.Config) { c.Brokers = []string{at(3)} }, nil, "its certificate has expired or is not valid: renew it on the broker, and check the clock here: "},
		"no client certificate":         {func(c *kafkaconn.Config) { c.TLS.CertFile, c.TLS.KeyFile = "", "" }, nil, "it refused the TLS handshake: check kafka.tls.cert_file, which it may require: "},
		"client certificate expired":    {func(c *kafkaconn.Config) { c.TLS.CertFile, c.TLS.KeyFile = old, oldKey }, nil, "it refused the TLS handshake: check kafka.tls.cert_file, which it may require: "},
		"client's authority is unknown": {func(c *kafkaconn.Config) { c.TLS.CertFile, c.TLS.KeyFile = strange, strangeKey }, nil, "it refused the TLS handshake: check kafka.tls.cert_file, which it may require: "},
		"no TLS here":                   {func(c *kafkaconn.Config) { c.TLS = kafkaconn.TLSConfig{} }, nil, "it closed the connection: it may expect kafka.tls or kafka.sasl: "},
		"no TLS there":                  {func(c *kafkaconn.Config) { c.Brokers = []string{at(0)} }, nil, "it closed the connection: it may not speak TLS on this port, or expect kafka.tls.cert_file or kafka.sasl: "},
		"a topic that it may not see":   {func(*kafkaconn.Config) {}, []string{"secret"}, " kafka topic secret does not exist: create it, or correct the configuration, or grant the user Describe (broker "},
		"a topic that there is not":     {func(*kafkaconn.Config) {}, []string{"embedings"}, " kafka topic embedings does not exist: create it, or correct the configuration, or grant the user Describe (broker "},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := right()
			c.change(&cfg)
			switch {
			case c.want == "":
			case c.want[0] == ' ':
				c.want = c.want[1:]
			default:
				c.want = "kafka broker " + cfg.Brokers[0] + ": " + c.want
			}
			wantError(t, check(t, cfg, c.topics...), c.want)
		})
	}
}
