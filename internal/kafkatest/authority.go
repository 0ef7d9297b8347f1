package kafkatest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// An Authority signs certificates for a test.
type Authority struct {
	Cert *x509.Certificate
	File string // its certificate, in PEM form

	key *ecdsa.PrivateKey
	dir string
	n   int64
}

// NewAuthority returns an authority of its own, with files that the test's end
// removes.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{dir: t.TempDir()}
	a.Cert = &x509.Certificate{Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.File, _ = a.Issue(t, a.Cert)
	return a
}

// Issue signs a certificate, valid for an hour where the template does not say,
// and returns the files of it and of its key.
func (a *Authority) Issue(t testing.TB, template *x509.Certificate) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.n++
	template.SerialNumber = big.NewInt(a.n)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	template.NotBefore = template.NotAfter.Add(-2 * time.Hour)
	if a.key == nil {
		a.key = key // it signs itself
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if template == a.Cert {
		if a.Cert, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(a.dir, fmt.Sprint(a.n, ".crt")), filepath.Join(a.dir, fmt.Sprint(a.n, ".key"))
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// Local returns the template of a certificate for this machine's brokers.
func Local() *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: "broker"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"broker.example"}}
}

// SecuredListener returns the settings of a real broker's listener, already
// declared with protocol SASL_SSL, that has a certificate, asks for the client's,
// and takes users of SCRAM-SHA-512.
func (a *Authority) SecuredListener(t testing.TB, name, certFile, keyFile string) []string {
	t.Helper()
	prefix := "listener.name." + strings.ToLower(name) + "."
	settings := []string{
		prefix + "sasl.enabled.mechanisms=SCRAM-SHA-512",
		prefix + "scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
		prefix + "ssl.client.auth=required",
		prefix + "ssl.truststore.type=PEM",
		prefix + "ssl.truststore.certificates=" + oneLine(t, a.File),
		prefix + "ssl.keystore.type=PEM",
	}
	for key, value := range a.Keystore(t, name, certFile, keyFile) {
		settings = append(settings, key+"="+strings.ReplaceAll(value, "\n", `\n`))
	}
	return settings
}

// Keystore returns the settings of a listener's certificate, which a running
// broker takes too.
func (a *Authority) Keystore(t testing.TB, name, certFile, keyFile string) map[string]string {
	t.Helper()
	prefix := "listener.name." + strings.ToLower(name) + "."
	return map[string]string{
		prefix + "ssl.keystore.certificate.chain": read(t, certFile),
		prefix + "ssl.keystore.key":               read(t, keyFile),
	}
}

func oneLine(t testing.TB, file string) string {
	return strings.ReplaceAll(read(t, file), "\n", `\n`)
}

func read(t testing.TB, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
