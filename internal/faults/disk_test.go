package faults

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/oodmon/oodmon/internal/kafkatest"
)

// A full disk is stood for by a limit on the size of files (RLIMIT_FSIZE) of no
// byte: each write to a file fails, and nobody else's.

// fullRegistry promotes a model where nothing can be written. The model in
// service stays, also after a restart.
func fullRegistry(tr *trial) int {
	for _, d := range tr.all {
		current, err := d.models.Current(context.Background())
		if err != nil {
			tr.t.Fatal(err)
		}
		other, err := d.models.Add(context.Background(), randomModel(tr.t, 3))
		if err != nil {
			tr.t.Fatal(err)
		}
		cmd := exec.Command("bash", "-c", `ulimit -f 0; "$0" model promote --registry "$1" "$2"`, program, d.registry, other)
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "file too large") {
			tr.t.Errorf("%s: a model was promoted on a full disk, or it was not said why not (%v):\n%s", d.delivery, err, out)
		}
		d.hangup()
		tr.replace(d, d.monitors[0])
		d.waitForResults(200)
		if now, err := d.models.Current(context.Background()); err != nil || now != current {
			tr.t.Errorf("%s: after a full disk the registry names %s (%v), want %s", d.delivery, now, err, current)
		}
	}
	return 1
}

// keepState makes a deployment's monitor keep its drift state, and returns the
// file.
func (d *deployment) keepState(interval time.Duration) string {
	d.t.Helper()
	dir := filepath.Join(filepath.Dir(d.config), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		d.t.Fatal(err)
	}
	path := filepath.Join(dir, "drift")
	d.setting("", fmt.Sprintf("drift: {state_file: %q, snapshot_interval: %v}", path, interval))
	d.end(d.monitors[0], syscall.SIGTERM)
	d.start()
	d.waitForResults(200)
	kafkatest.Eventually(d.t, patience, func() error {
		_, err := os.Stat(path)
		return err
	})
	return path
}

// restored waits until the monitor that was started last has read its state. A
// state that was torn, or another's, fails the test.
func (d *deployment) restored(times int) {
	d.t.Helper()
	kafkatest.Eventually(d.t, patience, func() error {
		text := d.logged()
		if strings.Contains(text, "drift state not readable") || strings.Contains(text, "drift state not taken over") {
			d.t.Fatalf("%s: the drift state was not restored", d.delivery)
		}
		if n := strings.Count(text, "drift state restored"); n < times {
			return fmt.Errorf("%s: the drift state was restored %d times, want %d", d.delivery, n, times)
		}
		return nil
	})
}

// killAtSnapshot kills the monitor when the file of a new state has been made,
// or has just taken the place of the old one.
func killAtSnapshot(tr *trial) int {
	paths := make([]string, len(tr.all))
	for i, d := range tr.all {
		paths[i] = d.keepState(10 * time.Millisecond)
	}
	times := tr.times(6)
	for n := range times {
		for i, d := range tr.all {
			written := func() bool {
				temporary, err := filepath.Glob(filepath.Join(filepath.Dir(paths[i]), ".*"))
				if err != nil {
					tr.t.Fatal(err)
				}
				return len(temporary) > 0
			}
			for deadline := time.Now().Add(patience); !written(); {
				if time.Now().After(deadline) {
					tr.t.Fatalf("%s: no state was written within %v", d.delivery, patience)
				}
			}
			for n%2 == 1 && written() {
			}
			d.end(d.monitors[0], syscall.SIGKILL)
			left, err := filepath.Glob(filepath.Join(filepath.Dir(paths[i]), ".*"))
			if err != nil {
				tr.t.Fatal(err)
			}
			for _, file := range left {
				if err := os.Remove(file); err != nil {
					tr.t.Fatal(err)
				}
			}
			d.start()
		}
		for _, d := range tr.all {
			d.waitForResults(100)
			d.restored(n + 1)
		}
	}
	return times
}

// fullState fills the disk of the drift state under the running monitor, starts the
// monitor again, and empties the disk. Records go on, the state of before stays,
// and what comes afterwards is written.
func fullState(tr *trial) int {
	limit := func(d *deployment, bytes string) {
		out, err := exec.Command("prlimit", "--pid", strconv.Itoa(d.monitors[0].Process.Pid), "--fsize="+bytes+":").CombinedOutput()
		if err != nil {
			tr.t.Fatalf("prlimit: %v\n%s", err, out)
		}
	}
	written := func(path string) time.Time {
		info, err := os.Stat(path)
		if err != nil {
			tr.t.Fatal(err)
		}
		return info.ModTime()
	}
	for _, d := range tr.all {
		path := d.keepState(100 * time.Millisecond)
		limit(d, "0")
		kafkatest.Eventually(tr.t, patience, func() error {
			if !strings.Contains(d.logged(), "drift state not saved") {
				return fmt.Errorf("%s: the log does not tell that the state cannot be written", d.delivery)
			}
			return nil
		})
		before := written(path)
		d.waitForResults(200)
		if now := written(path); !now.Equal(before) {
			tr.t.Errorf("%s: a state was written on a full disk", d.delivery)
		}
		d.end(d.monitors[0], syscall.SIGKILL)
		d.start("prlimit", "--fsize=0:unlimited")
		d.waitForResults(200)
		kafkatest.Eventually(tr.t, patience, func() error { // the results may have been the first one's
			if !strings.Contains(d.logged(), "scoring goes on without") {
				return fmt.Errorf("%s: the log of the second does not tell that the state cannot be written", d.delivery)
			}
			return nil
		})
		limit(d, "unlimited")
		kafkatest.Eventually(tr.t, patience, func() error {
			if !written(path).After(before) {
				return fmt.Errorf("%s: no state has been written since the disk was emptied", d.delivery)
			}
			return nil
		})
		kafkatest.Eventually(tr.t, patience, func() error {
			if text := d.logged(); !strings.Contains(text, "drift journal not written") || !strings.Contains(text, "drift journal written again") {
				return fmt.Errorf("%s: the log does not tell that the journal could not be written, and can", d.delivery)
			}
			return nil
		})
		tr.replace(d, d.monitors[0])
		d.restored(2) // by the monitor that found a full disk, and by this one
	}
	return 1
}
