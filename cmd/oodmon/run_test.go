package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// starting starts `oodmon run` and returns it, with the broker's end of its first
// connection, when it has sent a request there that nobody will answer.
func starting(t *testing.T) (cmd *exec.Cmd, stderr *bytes.Buffer, conn net.Conn) {
	t.Helper()
	registry := filepath.Join(t.TempDir(), "registry")
	oodmon(t, 0, "model", "import", "--registry", registry, "--head", digits("head.safetensors"), "--calibration", digits("calibration.arrow"), "--promote")
	broker, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broker.Close() })
	config := filepath.Join(t.TempDir(), "oodmon.yml")
	text := fmt.Sprintf("kafka: {brokers: [%q]}\ninput: {topic: in}\noutput: {topic: out}\ndead_letter: {topic: dead}\nmodel: {registry: %q}\nweb: {listen_addresses: [\"127.0.0.1:0\"]}\n",
		broker.Addr(), registry)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, stderr = exec.Command(program, "run", "--config", config), &bytes.Buffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if conn, err = broker.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return cmd, stderr, conn
}

// A SIGHUP that comes while the first broker is being reached does not end the
// process: what ends it here is that the broker hangs up.
func TestHangupWhileStarting(t *testing.T) {
	cmd, stderr, conn := starting(t)
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil { // its request: it has gone on, or is about to
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // told by the state
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(stderr.String(), "kafka broker "+conn.LocalAddr().String()) {
		t.Errorf("%v, want exit code 1 and why the broker cannot be reached\n%s", cmd.ProcessState, stderr)
	}
}

// A SIGTERM is obeyed at once then, and is no failure.
func TestTerminatedWhileStarting(t *testing.T) {
	cmd, stderr, _ := starting(t)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v, want exit code 0\n%s", err, stderr)
	}
}
