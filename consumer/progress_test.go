package consumer

import (
	"bytes"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
)

// A handler that hangs on the first records after a pause must not look like
// the pause.
func TestHealthyFailsWhileTheFirstBatchAfterAPauseIsStuck(t *testing.T) {
	c := &Consumer{cfg: Config{Topic: "t"}, metrics: newMetrics(prometheus.NewRegistry()), partitions: map[int]*progress{}, left: map[int]*progress{}}
	c.setMember(true)
	p := c.enter(3)
	c.moved(p, 100, 100, 100)
	p.moved = time.Now().Add(-time.Hour) // nothing has come for an hour
	if err := c.Healthy(time.Minute); err != nil {
		t.Errorf("with nothing to read: %v", err)
	}
	c.waiting(p, 100, 110, 110)
	want := regexp.MustCompile(`^t\[3\] stands at offset 100 of 110 since \S+Z$`)
	if err := c.Healthy(time.Minute); err == nil || !want.MatchString(err.Error()) {
		t.Errorf("with ten records in hand for an hour: %v, want %s", err, want)
	}
	if got := c.Lag(); got != 10 {
		t.Errorf("lag %d, want 10", got)
	}
	c.moved(p, 110, 110, 110)
	if err := c.Healthy(time.Minute); err != nil {
		t.Errorf("with all read: %v", err)
	}
}

// A stall that outlasts a generation of the group is one stall: neither its end
// nor the next one's beginning is progress.
func TestHealthyFailsAcrossGenerations(t *testing.T) {
	c := &Consumer{cfg: Config{Topic: "t", Group: "g"}, metrics: newMetrics(prometheus.NewRegistry()), partitions: map[int]*progress{}, left: map[int]*progress{}}
	c.setMember(true)
	stuck, idle := c.enter(3), c.enter(4)
	c.waiting(stuck, 100, 110, 110)
	c.moved(idle, 7, 7, 7)
	stuck.moved = time.Now().Add(-time.Hour)
	check := func(when, want string) {
		t.Helper()
		err := c.Healthy(time.Minute)
		if want == "" && err != nil || want != "" && (err == nil || !regexp.MustCompile(want).MatchString(err.Error())) {
			t.Errorf("%s: %v, want %s", when, err, want)
		}
	}
	stands := `^t\[3\] stands at offset 100 of 110 since \S+Z$`
	check("before", stands)
	c.exit(3)
	c.exit(4)
	c.setMember(false)
	check("between the generations", `^not a member of consumer group g, and no record has moved since \S+Z$`)
	c.assign([]kafka.PartitionAssignment{{ID: 3}, {ID: 4}})
	c.setMember(true)
	c.enter(4)
	stuck = c.enter(3)
	check("in the next one", stands)
	c.moved(stuck, 105, 110, 110)
	check("after progress", "")
	stuck.moved = time.Now().Add(-time.Hour)
	c.exit(3)
	c.assign([]kafka.PartitionAssignment{{ID: 4}})
	check("when another member has it", "")
}

// A partition that waits for memory which others hold does not stand while one of them
// moves.
func TestHealthyWhileMemoryIsWaitedFor(t *testing.T) {
	c := &Consumer{cfg: Config{Topic: "t"}, metrics: newMetrics(prometheus.NewRegistry()), partitions: map[int]*progress{}, left: map[int]*progress{}}
	c.setMember(true)
	p, other := c.enter(3), c.enter(4)
	c.waiting(p, 100, 110, 110)
	c.waitsForMemory(p, true)
	p.moved = p.moved.Add(-time.Hour)
	c.moved(other, 7, 9, 9)
	if err := c.Healthy(time.Minute); err != nil {
		t.Errorf("while it waits: %v", err)
	}
	c.waitsForMemory(p, false)
	if err := c.Healthy(time.Minute); err != nil {
		t.Errorf("after the wait: %v", err)
	}
	for _, waits := range []bool{true, false} {
		c.waitsForMemory(p, waits)
		p.moved, c.lastMove = p.moved.Add(-time.Hour), c.lastMove.Add(-time.Hour)
		if err := c.Healthy(time.Minute); err == nil || !strings.Contains(err.Error(), "t[3] stands at offset 100 of 110") {
			t.Errorf("nobody moves, and it waits: %v: %v", waits, err)
		}
	}
}

// An open transaction of a producer is told of after a minute, and then each minute.
func TestOpenTransactionIsToldOf(t *testing.T) {
	var log bytes.Buffer
	w := &worker{log: slog.New(slog.NewTextHandler(&log, nil)), reader: reader{position: 7, end: 7, written: 9}}
	at := time.Now()
	for _, step := range []struct {
		after time.Duration
		end   int64
		told  int
	}{{0, 7, 0}, {59 * time.Second, 7, 0}, {time.Minute, 7, 1}, {90 * time.Second, 7, 1}, {2 * time.Minute, 7, 2}, {3 * time.Minute, 9, 2}, {10 * time.Minute, 7, 2}} {
		w.end = step.end
		w.tellOfTransaction(at.Add(step.after))
		if got := strings.Count(log.String(), "transaction in the input topic is open"); got != step.told {
			t.Errorf("told %d times after %v, want %d", got, step.after, step.told)
		}
	}
	if !strings.Contains(log.String(), "offset=7 records=2") {
		t.Errorf("the log does not say where: %s", log.String())
	}
}
