package faults

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/twmb/franz-go/pkg/kadm"
)

// A security is what a cluster asks of monitors: TLS with certificates of both
// sides, and a password by SCRAM-SHA-512.
type security struct {
	authority *kafkatest.Authority
	dir       string
}

// startSecured starts a broker whose listener for monitors is secured.
func startSecured(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{nodes: 1, secured: &security{authority: kafkatest.NewAuthority(t), dir: t.TempDir()}}
	cert, key := c.secured.authority.Issue(t, kafkatest.Local())
	c.begin(t, "SASL_SSL", c.secured.authority.SecuredListener(t, "PROXIED", cert, key)...)
	return c
}

// access lets a deployment in, as a user of its own, and returns what its
// configuration needs for that.
func (c *cluster) access(t testing.TB, name string) string {
	t.Helper()
	s := c.secured
	if s == nil {
		return ""
	}
	c.setPassword(t, name, "first")
	write(t, s.passwordFile(name), []byte("first\n"))
	s.certify(t, name, time.Now().Add(time.Hour))
	return fmt.Sprintf(", tls: {enabled: true, ca_file: %q, cert_file: %q, key_file: %q}, sasl: {mechanism: scram-sha-512, username: %s, password_file: %q}",
		s.authority.File, s.file(name, ".crt"), s.file(name, ".key"), name, s.passwordFile(name))
}

func (s *security) file(name, extension string) string { return filepath.Join(s.dir, name+extension) }
func (s *security) passwordFile(name string) string    { return s.file(name, ".password") }

// certify puts a certificate that ends at a time in the place of a monitor's.
func (s *security) certify(t testing.TB, name string, end time.Time) {
	t.Helper()
	cert, key := s.authority.Issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotAfter: end,
	})
	for from, to := range map[string]string{cert: s.file(name, ".crt"), key: s.file(name, ".key")} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
}

// setPassword sets the password of a user at the broker.
func (c *cluster) setPassword(t testing.TB, user, password string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	answer, err := c.Admin().AlterUserSCRAMs(ctx, nil, []kadm.UpsertSCRAM{{User: user, Mechanism: kadm.ScramSha512, Iterations: 4096, Password: password}})
	if err == nil {
		err = answer.Error()
	}
	if err != nil {
		t.Fatalf("set the password of %s: %v", user, err)
	}
}

// lockedOut waits until both monitors say in their logs that they are not let
// in, and why, with what to do; and that no record moves meanwhile.
func (tr *trial) lockedOut(advice string) {
	tr.t.Helper()
	for _, d := range tr.all {
		kafkatest.Eventually(tr.t, patience, func() error {
			for line := range strings.Lines(d.logged()) {
				if strings.Contains(line, "no progress") && strings.Contains(line, "kafka broker 127.0.0.1:") && strings.Contains(line, advice) {
					return nil
				}
			}
			return fmt.Errorf("%s: the log does not say %q", d.delivery, advice)
		})
		// A record that was on its way may have moved since.
		kafkatest.Eventually(tr.t, patience, func() error {
			if code, _ := d.get("/-/healthy"); code != 503 {
				return fmt.Errorf("%s: healthy is %d while the broker lets nobody in", d.delivery, code)
			}
			return nil
		})
	}
}

// impatient makes the monitors tell of a stall soon.
func (tr *trial) impatient() {
	for _, d := range tr.all {
		d.setting("input", "stall_timeout: 2s")
		tr.replace(d, d.monitors[0])
	}
	for _, d := range tr.all {
		d.address(1) // the second monitor runs: one that starts while nobody is let in ends
		d.waitForResults(200)
	}
}

// rotatePassword changes the passwords at the broker. The monitors are let in
// again when their files have the new ones, without a restart.
func rotatePassword(tr *trial) int {
	tr.impatient()
	for _, d := range tr.all {
		tr.setPassword(tr.t, d.name, "second")
	}
	tr.cut(tr.t, time.Second) // who is connected stays it
	tr.lockedOut("it refused the user or the password: check kafka.sasl")
	for _, d := range tr.all {
		write(tr.t, tr.secured.passwordFile(d.name), []byte("second\n"))
	}
	return 1
}

// expireBroker lets the broker's certificate expire under load.
func expireBroker(tr *trial) int {
	tr.impatient()
	end := time.Now().Add(8 * time.Second)
	tr.serve(end)
	tr.cut(tr.t, time.Second) // everybody meets the new one
	time.Sleep(time.Until(end) + time.Second)
	tr.cut(tr.t, time.Second)
	tr.lockedOut("its certificate has expired or is not valid yet: renew it on the broker, and check the clock here")
	tr.serve(time.Now().Add(time.Hour))
	return 1
}

// serve gives the broker's listener another certificate.
func (tr *trial) serve(end time.Time) {
	tr.t.Helper()
	template := kafkatest.Local()
	template.NotAfter = end
	cert, key := tr.secured.authority.Issue(tr.t, template)
	var settings []kadm.AlterConfig
	for name, value := range tr.secured.authority.Keystore(tr.t, "PROXIED", cert, key) {
		settings = append(settings, kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: &value})
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	answer, err := tr.Admin().AlterBrokerConfigs(ctx, settings, 1)
	if err == nil {
		err = answer[0].Err
	}
	if err != nil {
		tr.t.Fatalf("change the broker's certificate: %v", err)
	}
}

// expireMonitor lets the monitors' own certificates expire, and puts new ones in
// their files. A restart is not needed.
func expireMonitor(tr *trial) int {
	tr.impatient()
	for _, d := range tr.all {
		tr.secured.certify(tr.t, d.name, time.Now().Add(-time.Minute))
	}
	tr.cut(tr.t, time.Second)
	tr.lockedOut("it refused the TLS handshake: kafka.tls.cert_file ")
	for _, d := range tr.all {
		tr.secured.certify(tr.t, d.name, time.Now().Add(time.Hour))
	}
	return 1
}
