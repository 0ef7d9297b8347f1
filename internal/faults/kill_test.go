package faults

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oodmon/oodmon/drift"
	"github.com/oodmon/oodmon/internal/kafkatest"
	"github.com/oodmon/oodmon/monitor"
	"github.com/twmb/franz-go/pkg/kgo"
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

// A monitor that is killed again and again, and writes no snapshot of its drift state but
// at its starts, ends with the evidence of one that runs on: each record has bet once, and
// the alarms are the same. Their onsets are told by the batch, and batches are cut
// otherwise when they are read again.
func TestKilledMonitorHasTheSameAlarms(t *testing.T) {
	for _, delivery := range []string{atLeastOnce, exactlyOnce} {
		t.Run(delivery, func(t *testing.T) {
			broker := kafkatest.Start(t)
			bet, alarms := betsAndAlarms(t, deploy(t, broker, fmt.Sprintf("%q", broker.Address), "runs", delivery, ""), false)
			betKilled, alarmsKilled := betsAndAlarms(t, deploy(t, broker, fmt.Sprintf("%q", broker.Address), "killed", delivery, ""), true)
			if bet != 4000 || betKilled != bet {
				t.Errorf("%d records bet, with kills %d; 4000 were sent", bet, betKilled)
			}
			t.Logf("alarms and their onsets: %v, with kills %v", alarms, alarmsKilled)
			for _, name := range []string{"shift", "shift _other", "change", "change _other"} {
				if n := len(alarms[name]); n == 0 {
					t.Errorf("no alarm of %s: the test shows nothing", name)
				}
				for _, onsets := range []map[string][]int64{alarms, alarmsKilled} {
					for _, at := range onsets[name] {
						if at < 2700 || at > 3300 {
							t.Errorf("an onset of %s at offset %d, want about 3000", name, at)
						}
					}
				}
				if a, b := alarms[name+" alarms"], alarmsKilled[name+" alarms"]; !slices.Equal(a, b) {
					t.Errorf("%s: %v alarms, with kills %v", name, a, b)
				}
			}
		})
	}
}

// betsAndAlarms sends 4,000 records, of which the last 1,000 drift. It returns how many
// have bet in the end, by detector and segment the offsets of the onsets, and in " alarms"
// how many were counted.
func betsAndAlarms(t *testing.T, d *deployment, kill bool) (bet int64, alarms map[string][]int64) {
	dir := filepath.Dir(d.config)
	incidents := filepath.Join(dir, "incidents")
	d.setting("", fmt.Sprintf(`drift: {state_file: %q, snapshot_interval: 1h, mean_time_to_false_alarm: 1m, block: 16, reference_records: 1000, max_segments: 1, incidents: {dir: %q}}`,
		filepath.Join(dir, "drift"), incidents))
	d.start()
	random := rand.New(rand.NewPCG(1, 1))
	for _, portion := range []struct {
		records int
		drifted float64
	}{{1500, 0}, {1500, 0}, {200, .6}, {400, .6}, {400, .6}} {
		had := d.ledger.results()
		for range portion.records / 50 {
			var records []*kgo.Record
			for range 50 {
				value := embedding(random)
				if random.Float64() < portion.drifted {
					value = bytes.Repeat([]byte{0, 0, 128, 63}, dim)
				}
				records = append(records, &kgo.Record{Topic: d.in, Value: value})
			}
			d.Produce(records...)
		}
		if kill {
			kafkatest.Eventually(t, patience, func() error {
				if got := d.ledger.results() - had; got < portion.records/2 {
					return fmt.Errorf("%d results", got)
				}
				return nil
			})
			d.end(d.monitors[0], syscall.SIGKILL)
			d.start()
		}
	}
	kafkatest.Eventually(t, patience, func() error {
		if at := d.Committed(d.name, d.in)[0]; at < 4000 {
			return fmt.Errorf("4000 records were sent, the group is at %d", at)
		}
		return nil
	})
	var status struct{ Drift drift.Status }
	err := kafkatest.Within(time.Minute, func() error { // what was committed before the last kill bets now
		_, body := d.get("/api/v1/status")
		if err := json.Unmarshal([]byte(body), &status); err != nil {
			return err
		}
		if s := status.Drift.Segments; len(s) != 1 || s[0].Records < 4000 {
			return fmt.Errorf("of 4000 records not all have bet: %s", body)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	d.end(d.monitors[0], syscall.SIGTERM)
	if text := d.logged(); strings.Count(text, "evidence starts at 0") != 1 { // at the first start
		t.Errorf("the state was not taken over:\n%s", text)
	}
	d.start() // what is told now is in the snapshot of an orderly end
	if _, body := d.get("/api/v1/status"); json.Unmarshal([]byte(body), &status) != nil || len(status.Drift.Segments) != 1 {
		t.Fatalf("status %s", body)
	}
	alarms = make(map[string][]int64)
	segment := status.Drift.Segments[0]
	for _, s := range status.Drift.Detectors {
		alarms[s.Detector+" alarms"] = []int64{s.Alarms}
	}
	for _, s := range segment.Detectors {
		alarms[s.Detector+" "+segment.Segment+" alarms"] = []int64{s.Alarms}
	}
	found, err := monitor.Incidents(incidents)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range found { // one that came just before a kill comes again
		name := strings.TrimSpace(i.Detector + " " + i.Segment)
		alarms[name] = append(alarms[name], i.Onset.Offset)
	}
	return segment.Records, alarms
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
