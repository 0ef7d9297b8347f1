package monitor

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkatest"
)

// With web.config_file every address serves TLS, and lets in who has the password.
func TestWebConfigFile(t *testing.T) {
	f := newFixture(t)
	authority := kafkatest.NewAuthority(t)
	cert, key := authority.Issue(t, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	f.cfg.Web.ConfigFile = filepath.Join(t.TempDir(), "web.yml")
	file := fmt.Sprintf(`
tls_server_config: {cert_file: %s, key_file: %s}
basic_auth_users:
  someone: $2a$04$mjx.qcpmCftGOHOOV98FB.OCt7/ICXC69gqgt5eWEkJp.XZ7VxWqG # secret
`, cert, key)
	if err := os.WriteFile(f.cfg.Web.ConfigFile, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	f.cfg.Web.ListenAddresses = []string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"}
	m, stop := f.run(t)
	roots := x509.NewCertPool()
	roots.AddCert(authority.Cert)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	for _, address := range m.Addresses() {
		for password, want := range map[string]int{"secret": http.StatusOK, "wrong": http.StatusUnauthorized, "": http.StatusUnauthorized} {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/metrics", nil)
			if err != nil {
				t.Fatal(err)
			}
			if password != "" {
				request.SetBasicAuth("someone", password)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
			if response.StatusCode != want {
				t.Errorf("%s with the password %q: %s, want %d", address, password, response.Status, want)
			}
		}
		if response, err := http.Get("http://" + address + "/metrics"); err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				t.Errorf("%s serves without TLS", address)
			}
		}
	}
	stop()
	for _, address := range m.Addresses() {
		if conn, err := net.Dial("tcp", address); err == nil {
			_ = conn.Close()
			t.Errorf("%s is still open", address)
		}
	}
}
