package kafkaconn_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkaconn"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
)

func server(t *testing.T, a *kafkatest.Authority, template *x509.Certificate) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(a.Issue(t, template))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.Cert)
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool}
}

func broker(t *testing.T, opts ...kfake.Opt) string {
	t.Helper()
	return kafkatest.Start(t, append(opts, kfake.SeedTopics(2, "embeddings"))...).Address
}

// check makes a client and checks for the topic embeddings, over a Client too.
func check(t *testing.T, cfg kafkaconn.Config, topics ...string) error {
	t.Helper()
	conn, err := kafkaconn.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second) // the embedded broker waits for more where TLS is not expected
	defer cancel()
	if err := conn.Check(ctx, append(topics, "embeddings")...); err != nil {
		return err
	}
	_, err = conn.Kafka.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{"embeddings": {kafka.LastOffsetOf(1)}}})
	return err
}

// wantError compares an error's text up to where a library's own begins.
func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("unexpected error %v", err)
		}
		return
	}
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error %v\nwant it to begin with %s", err, want)
	}
}

func TestTLS(t *testing.T) {
	ours, other := kafkatest.NewAuthority(t), kafkatest.NewAuthority(t)
	local := kafkatest.Local
	good := broker(t, kfake.TLS(server(t, ours, local())))
	named := broker(t, kfake.TLS(server(t, ours, &x509.Certificate{DNSNames: []string{"broker.example"}})))
	expired := broker(t, kfake.TLS(server(t, ours, &x509.Certificate{IPAddresses: local().IPAddresses, NotAfter: time.Now().Add(-time.Minute)})))
	mutualTLS := server(t, ours, local())
	mutualTLS.ClientAuth = tls.RequireAndVerifyClientCert
	mutual := broker(t, kfake.TLS(mutualTLS))
	plain := broker(t)
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	cert, key := ours.Issue(t, &x509.Certificate{ExtKeyUsage: client})
	end := time.Now().Add(-time.Minute)
	oldCert, oldKey := ours.Issue(t, &x509.Certificate{ExtKeyUsage: client, NotAfter: end})
	misused := broker(t, kfake.TLS(server(t, ours, &x509.Certificate{IPAddresses: local().IPAddresses, ExtKeyUsage: client})))

	for name, c := range map[string]struct {
		broker string
		tls    kafkaconn.TLSConfig
		want   string // after the broker's name
	}{
		"trusted":               {good, kafkaconn.TLSConfig{Enabled: true, CAFile: ours.File}, ""},
		"by its other name":     {named, kafkaconn.TLSConfig{Enabled: true, CAFile: ours.File, ServerName: "broker.example"}, ""},
		"mutual":                {mutual, kafkaconn.TLSConfig{Enabled: true, CAFile: ours.File, CertFile: cert, KeyFile: key}, ""},
		"unknown authority":     {good, kafkaconn.TLSConfig{Enabled: true, CAFile: other.File}, "its certificate is signed by an authority that is not trusted here: check kafka.tls.ca_file: "},
		"another name":          {named, kafkaconn.TLSConfig{Enabled: true, CAFile: ours.File}, "its certificate is for another name than 127.0.0.1: use one of its names as the address, or set kafka.tls.server_name: "},
		"another configured":    {good, kafkaconn.TLSConfig{Enabled: true, CAFile: ours.File, ServerName: "other.example"}, "its certificate is for another name than other.example: use one of its names"},
		"expired":               {expired, kafkaconn.TLSConfig{Enabled: true, CAFile: ours.File}, "its certificate has expired or is not valid yet: renew it on the broker, and check the clock here: "},
		"no client certificate": {mutual, kafkaconn.TLSConfig{Enabled: true, CAFile: ours.File}, "it refused the TLS handshake: check kafka.tls.cert_file, which it may require: "},
		"its certificate expired": {mutual, kafkaconn.TLSConfig{Enabled: true, CAFile: ours.File, CertFile: oldCert, KeyFile: oldKey},
			"it refused the TLS handshake: kafka.tls.cert_file " + oldCert + " has expired at " + end.UTC().Format(time.RFC3339) + ": renew it: "},
		"for no server": {misused, kafkaconn.TLSConfig{Enabled: true, CAFile: ours.File}, "its certificate is not one for a server: renew it on the broker: "},
		"no TLS there":  {plain, kafkaconn.TLSConfig{Enabled: true, CAFile: ours.File}, "it did not answer in time: check the port, firewalls, and kafka.tls.enabled: "},
		"no TLS here":   {good, kafkaconn.TLSConfig{}, "it closed the connection: it may expect kafka.tls or kafka.sasl: "},
	} {
		t.Run(name, func(t *testing.T) {
			if c.want != "" {
				c.want = "kafka broker " + c.broker + ": " + c.want
			}
			wantError(t, check(t, kafkaconn.Config{Brokers: []string{c.broker}, TLS: c.tls}), c.want)
		})
	}
}

// Authorities and certificates that are renewed need no restart, and no name goes
// unchecked.
func TestRenewedCertificates(t *testing.T) {
	ours, old := kafkatest.NewAuthority(t), kafkatest.NewAuthority(t)
	mutual := server(t, ours, kafkatest.Local())
	mutual.ClientAuth = tls.RequireAndVerifyClientCert
	address := broker(t, kfake.TLS(mutual))
	dir := t.TempDir()
	put := func(name, from string) string {
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	issue := func(a *kafkatest.Authority) (certFile, keyFile string) {
		return a.Issue(t, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	}
	cert, key := issue(old)
	cfg := kafkaconn.Config{Brokers: []string{address}, TLS: kafkaconn.TLSConfig{
		Enabled: true, CAFile: put("ca", old.File), CertFile: put("cert", cert), KeyFile: put("key", key),
	}}
	conn, err := kafkaconn.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tried := func(want string) {
		t.Helper()
		if want != "" {
			want = "kafka broker " + address + ": " + want
		}
		wantError(t, conn.Check(t.Context(), "embeddings"), want)
	}
	tried("its certificate is signed by an authority that is not trusted here: check kafka.tls.ca_file: ")
	put("ca", ours.File)
	tried("it refused the TLS handshake: check kafka.tls.cert_file, which it may require: ")
	cert, key = issue(ours)
	put("cert", cert)
	tried("kafka.tls.cert_file " + cfg.TLS.CertFile) // the certificate is renewed, and its key is not yet
	put("key", key)
	tried("")
}

func TestSASL(t *testing.T) {
	address := broker(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "ann", "right"),
		kfake.Superuser("SCRAM-SHA-256", "ben", "right"), kfake.Superuser("SCRAM-SHA-512", "cora", "right"))
	file := filepath.Join(t.TempDir(), "password")
	t.Setenv("OODMON_TEST_PASSWORD", "right")
	for _, c := range []struct{ mechanism, user, password, want string }{
		{"plain", "ann", "right", ""}, {"scram-sha-256", "ben", "right", ""}, {"scram-sha-512", "cora", "right", ""},
		{"plain", "ann", "wrong", "it refused the user or the password: check kafka.sasl: "},
		{"scram-sha-256", "ben", "wrong", "it refused the user or the password: check kafka.sasl: "},
		{"scram-sha-512", "cora", "wrong", "it refused the user or the password: check kafka.sasl: "},
		{"plain", "nobody", "right", "it refused the user or the password: check kafka.sasl: "},
	} {
		t.Run(c.mechanism+" "+c.user+" "+c.password, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(c.password+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if c.want != "" {
				c.want = "kafka broker " + address + ": " + c.want
			}
			cfg := kafkaconn.Config{Brokers: []string{address}, SASL: kafkaconn.SASLConfig{Mechanism: c.mechanism, Username: c.user, PasswordFile: file}}
			wantError(t, check(t, cfg), c.want)
			if c.password == "right" {
				cfg.SASL.PasswordFile, cfg.SASL.PasswordEnv = "", "OODMON_TEST_PASSWORD"
				wantError(t, check(t, cfg), c.want)
			}
		})
	}
	t.Run("none here", func(t *testing.T) {
		wantError(t, check(t, kafkaconn.Config{Brokers: []string{address}}), "kafka broker "+address+": it closed the connection: it may expect kafka.tls or kafka.sasl: ")
	})
	t.Run("a new password needs no restart", func(t *testing.T) {
		write := func(word string) {
			if err := os.WriteFile(file, []byte(word), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("wrong")
		conn, err := kafkaconn.New(kafkaconn.Config{Brokers: []string{address}, SASL: kafkaconn.SASLConfig{Mechanism: "plain", Username: "ann", PasswordFile: file}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.Check(t.Context()); err == nil {
			t.Error("the wrong password was taken")
		}
		write("right")
		wantError(t, conn.Check(t.Context(), "embeddings"), "")
		if shown := fmt.Sprintf("%+v %#v", conn, conn.Dialer.SASLMechanism); strings.Contains(shown, "right") {
			t.Errorf("the password is shown: %s", shown)
		}
	})
}

func TestCheckNamesTopicsAndBrokers(t *testing.T) {
	address := broker(t)
	err := check(t, kafkaconn.Config{Brokers: []string{address}}, "scores", "dead")
	wantError(t, err, "kafka topic scores does not exist: create it, or correct the configuration, or grant the user Describe (broker "+address+" does not list it): ")
	if !errors.Is(err, kafka.UnknownTopicOrPartition) || !strings.Contains(err.Error(), "\nkafka topic dead does not exist: ") {
		t.Errorf("error %v, want the second topic too", err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	wantError(t, check(t, kafkaconn.Config{Brokers: []string{closed, "no-such-host.invalid:9092"}}),
		"kafka broker "+closed+": nothing listens there: check kafka.brokers, and whether the broker runs: ")
	wantError(t, check(t, kafkaconn.Config{Brokers: []string{closed, address}}), "")
	// A topic that a typing error names must not come to be.
	if err := check(t, kafkaconn.Config{Brokers: []string{broker(t, kfake.AllowAutoTopicCreation())}}, "embedings"); err == nil {
		t.Error("the check made the topic")
	}
}

// Connections of DialerUntil end with its context, also those that wait.
func TestDialerUntil(t *testing.T) {
	conn, err := kafkaconn.New(kafkaconn.Config{Brokers: []string{broker(t)}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	dialer := conn.DialerUntil(ctx)
	open, err := dialer.DialContext(t.Context(), "tcp", conn.Brokers[0])
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := open.Read(make([]byte, 1))
		read <- err
	}()
	cancel()
	select {
	case err := <-read:
		if err == nil {
			t.Error("a byte came from a broker that was asked nothing")
		}
	case <-time.After(30 * time.Second):
		t.Error("the connection outlived its context")
	}
	if _, err := dialer.DialContext(t.Context(), "tcp", conn.Brokers[0]); err == nil {
		t.Error("a connection was made after the end")
	}
}

// A broker whose host says nothing is passed over for the next, in time.
func TestSilentBroker(t *testing.T) {
	off, alive := silent(t), broker(t)
	var group sync.WaitGroup
	for range 8 { // each tries the two in an order of its own
		group.Go(func() {
			conn, err := kafkaconn.New(kafkaconn.Config{Brokers: []string{off, alive}})
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if _, err := conn.Kafka.Metadata(t.Context(), &kafka.MetadataRequest{}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}

// silent returns an address of this machine that answers no request to connect, like
// a host that is off: nobody accepts there, and as many wait as may. It is Linux that
// says nothing then.
func silent(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: at.(*syscall.SockaddrInet4).Port}).String()
	for range 8 {
		conn, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Skip("this system accepts connections that nobody waits for")
	return ""
}
