package kafkaconn_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oodmon/oodmon/consumer"
	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/oodmon/oodmon/sink"
	"github.com/prometheus/client_golang/prometheus"
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
	port := kafkatest.FreePorts(t)
	broker := kafkatest.StartReal(t, 1, port, settings...)
	broker.CreateTopic("embeddings", 2)
	broker.CreateTopic("secret", 1)
	broker.CreateTopic("scores", 1)
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
		"expired":                       {func(c *kafkaconn.Config) { c.Brokers = []string{at(3)} }, nil, "its certificate has expired or is not valid yet: renew it on the broker, and check the clock here: "},
		"no client certificate":         {func(c *kafkaconn.Config) { c.TLS.CertFile, c.TLS.KeyFile = "", "" }, nil, "it refused the TLS handshake: check kafka.tls.cert_file, which it may require: "},
		"client certificate expired":    {func(c *kafkaconn.Config) { c.TLS.CertFile, c.TLS.KeyFile = old, oldKey }, nil, "it refused the TLS handshake: kafka.tls.cert_file " + old + " has expired at "},
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
	t.Run("is told what to allow", func(t *testing.T) { isToldWhatToAllow(t, broker, right()) })
}

// isToldWhatToAllow grants ann one right after the other, and looks at what is said
// before each.
func isToldWhatToAllow(t *testing.T, broker *kafkatest.Broker, cfg kafkaconn.Config) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	acl := func() *kadm.ACLBuilder {
		return kadm.NewACLs().Allow("User:ann").AllowHosts("*").ResourcePatternType(kadm.ACLPatternLiteral)
	}
	allow := func(b *kadm.ACLBuilder) {
		t.Helper()
		if _, err := broker.Admin().CreateACLs(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := kafkaconn.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	says := func(what string, get func() error, want string) {
		t.Helper()
		kafkatest.Eventually(t, time.Minute, func() error {
			if err := get(); err == nil || !strings.Contains(err.Error(), want) {
				return fmt.Errorf("%s says %v\nwant %s", what, err, want)
			}
			return nil
		})
	}
	add := " on the cluster of " + strings.Join(cfg.Brokers, ", ") + ": allow it, as by kafka-acls --add --allow-principal 'User:ann' "

	letter := func(transactionalID string) error {
		producer, err := sink.New(sink.Config{Topic: "scores", DeadLetterTopic: "scores", Format: "json", TransactionalID: transactionalID}, conn, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if transactionalID != "" {
			if err := producer.Fence(ctx, 0); err != nil {
				return err
			}
		}
		if err := producer.DeadLetter(ctx, 0, []sink.Letter{{Topic: "embeddings", Value: []byte("v"), Reason: "empty", Err: errors.New("why")}}); err != nil || transactionalID == "" {
			return err
		}
		return producer.Commit(ctx, sink.Offset{Topic: "embeddings", Offset: 1, Group: "watchers", Generation: -1})
	}
	allow(acl().Topics("scores").Operations(kadm.OpDescribe))
	says("a producer", func() error { return letter("") }, "User:ann may not get a producer id, for want of a topic that it may write"+add+"--operation Write --topic scores; before Kafka 2.8 also --operation IdempotentWrite --cluster: get a producer id: ")
	says("a transaction", func() error { return letter("ours") }, "take over transactional id ours.0: User:ann may not use transactional ids that begin with ours"+add+"--operation Write --operation Describe --transactional-id ours --resource-pattern-type prefixed: ")
	allow(acl().Topics("secret").Operations(kadm.OpWrite))
	says("a producer", func() error { return letter("") }, "User:ann may not write topic scores"+add+"--operation Write --topic scores: ")
	allow(acl().TransactionalIDs("ours").ResourcePatternType(kadm.ACLPatternPrefixed).Operations(kadm.OpWrite, kadm.OpDescribe))
	says("a transaction", func() error { return letter("ours") }, "add the partition to the transaction: User:ann may not write topic scores"+add+"--operation Write --topic scores: ")
	allow(acl().Topics("scores").Operations(kadm.OpWrite))
	says("a transaction", func() error { return letter("ours") }, "User:ann may not use group watchers"+add+"--operation Read --group watchers: ")
	if err := letter(""); err != nil {
		t.Errorf("what is allowed: %v", err)
	}

	var log lockedBuffer
	c, err := consumer.New(consumer.Config{
		Topic: "scores", Group: "watchers", Start: "earliest", OutOfRange: "fail", MaxRecords: 10, MaxBytes: 1 << 20, MaxWait: 100 * time.Millisecond, MaxMessageBytes: 1 << 20,
	}, conn, func() consumer.Handler { return nobody{} }, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.Run(running) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	logged := func() error { return errors.New(log.String()) }
	healthy := func() error { return c.Healthy(0) }
	group := "User:ann may not use group watchers" + add + "--operation Read --group watchers: "
	says("the log", logged, `msg="consumer group not joined; trying again" group=watchers error="`+group)
	says("/-/healthy", healthy, group)
	says("/-/ready", c.Ready, group)
	allow(acl().Groups("watchers").Operations(kadm.OpRead))
	read := "User:ann may not read topic scores" + add + "--operation Read --topic scores: "
	says("the log", logged, read)
	says("/-/healthy", healthy, read)
	allow(acl().Topics("scores").Operations(kadm.OpRead))
	kafkatest.Eventually(t, time.Minute, func() error { return c.Healthy(time.Nanosecond) })
}

type nobody struct{}

func (nobody) Handle(context.Context, *consumer.Batch) error { return nil }

// A lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
