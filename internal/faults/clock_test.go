package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// A program without libc cannot be lied to by libfaketime. For this fault oodmon is
// built with another time.Now, which adds what a file says to the wall clock; the
// monotonic clock goes on as it does on a machine whose clock is set.

const clockVariable = "OODMON_TEST_CLOCK" // names the file, which holds seconds

const jumped = `package time

import (
	"sync/atomic"
	"syscall"
)

var jumped atomic.Int64 // seconds; Now also runs where there is no stack to read a file

func init() {
	name, set := syscall.Getenv("` + clockVariable + `")
	if !set {
		return
	}
	go func() {
		for {
			jumped.Store(seconds(name))
			Sleep(10 * Millisecond)
		}
	}()
}

func seconds(name string) (n int64) {
	fd, err := open(name)
	if err != nil {
		return 0
	}
	defer closefd(fd)
	var text [20]byte
	length, _ := read(fd, text[:])
	sign := int64(1)
	for _, c := range text[:max(length, 0)] {
		if c == '-' {
			sign = -1
		} else {
			n = 10*n + int64(c-'0')
		}
	}
	return sign * n
}
`

// jumping returns the path of an oodmon whose clock can be set. It is built once.
var jumping = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(scratch, "clock")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	std := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	original, err := os.ReadFile(filepath.Join(std, "time.go"))
	if err != nil {
		return "", err
	}
	const now = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	changed := strings.Replace(string(original), now, now+"\tsec += jumped.Load()\n", 1)
	if changed == string(original) {
		return "", errors.New("this Go has another time.Now: mend clock_test.go")
	}
	overlay := make(map[string]string)
	for name, text := range map[string]string{"time.go": changed, "jumped.go": jumped} {
		overlay[filepath.Join(std, name)] = filepath.Join(dir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	text, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), text, 0o600); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "oodmon")
	if out, err := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", path, "../../cmd/oodmon").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, nil
})

// monitorsClock sets the clock of the running monitors back and forth.
func monitorsClock(tr *trial) int {
	path, err := jumping()
	if err != nil {
		tr.t.Fatal(err)
	}
	const year = 365 * 24 * 60 * 60
	jumps := []int{20 * year, -20 * year, 3600, 0}
	clock := filepath.Join(tr.t.TempDir(), "clock")
	write(tr.t, clock, []byte("0"))
	for _, d := range tr.all {
		d.program = path
		d.environment = []string{clockVariable + "=" + clock}
		d.end(d.monitors[0], syscall.SIGTERM)
		d.start()
		d.waitForResults(200)
	}
	for _, seconds := range jumps {
		write(tr.t, clock+".next", []byte(strconv.Itoa(seconds)))
		if err := os.Rename(clock+".next", clock); err != nil {
			tr.t.Fatal(err)
		}
		for _, d := range tr.all {
			d.waitForResults(400)
		}
	}
	return len(jumps)
}
