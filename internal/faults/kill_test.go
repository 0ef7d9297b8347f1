package faults

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkatest"
)

// The tests of this file run on the embedded broker too, without proxies.

func eachDelivery(t *testing.T, test func(t *testing.T, d *deployment)) {
	for _, delivery := range []string{atLeastOnce, exactlyOnce} {
		t.Run(delivery, func(t *testing.T) {
			broker := kafkatest.Start(t)
			test(t, deploy(t, broker, fmt.Sprintf("%q", broker.Address), "oodmon", delivery, ""))
		})
	}
}

// SIGHUP takes in the current model, SIGTERM ends well: while records flow, and
// without one too few or too many.
func TestSignals(t *testing.T) {
	eachDelivery(t, func(t *testing.T, d *deployment) {
		m := d.start()
		d.produce(1)
		d.waitForResults(500)
		next := d.publish(2)
		d.hangup()
		kafkatest.Eventually(t, time.Minute, func() error {
			d.ledger.mu.Lock()
			defer d.ledger.mu.Unlock()
			if d.ledger.versions[next] == 0 {
				return fmt.Errorf("no result by model %s", next)
			}
			return nil
		})
		d.end(m, syscall.SIGTERM)
		d.start()
		d.address(1) // it runs: before, SIGTERM would kill it
		if a := d.settle(); a.twice != 0 {
			t.Errorf("%d results came twice after an orderly end", a.twice)
		}
	})
}

func TestMonitorKilled(t *testing.T) {
	eachDelivery(t, func(t *testing.T, d *deployment) {
		d.start()
		d.produce(1)
		for range 3 {
			d.waitForResults(1500)
			d.end(d.monitors[0], syscall.SIGKILL)
			d.committedIsDurable()
			d.start()
		}
		d.address(3) // the last one runs: before, SIGTERM would kill it
		a := d.settle()
		t.Logf("%d records in, 0 lost, %d twice", a.in, a.twice)
	})
}

// A monitor whose broker takes long says why it stands still, on /-/healthy and
// in its log, and is well again afterwards.
func TestWatchdog(t *testing.T) {
	eachDelivery(t, func(t *testing.T, d *deployment) {
		d.setting("input", "stall_timeout: 2s")
		d.start()
		d.produce(1)
		d.waitForResults(200)
		if code, body := d.get("/-/healthy"); code != 200 {
			t.Errorf("healthy: %d %s", code, body)
		}
		d.Kill()
		kafkatest.Eventually(t, time.Minute, func() error {
			if code, body := d.get("/-/healthy"); code != 503 || !strings.Contains(body, " stands at offset ") && !strings.Contains(body, "not a member of consumer group") {
				return fmt.Errorf("healthy while the broker is away: %d %s", code, body)
			}
			return nil
		})
		kafkatest.Eventually(t, time.Minute, func() error {
			if !strings.Contains(d.logged(), "no progress") {
				return fmt.Errorf("the log does not tell of it")
			}
			return nil
		})
		d.Restart()
		kafkatest.Eventually(t, time.Minute, func() error {
			if code, body := d.get("/-/healthy"); code != 200 {
				return fmt.Errorf("healthy after the broker's return: %d %s", code, body)
			}
			return nil
		})
		d.settle()
	})
}
