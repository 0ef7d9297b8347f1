package consumer

import (
	"regexp"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A handler that hangs on the first records after a pause must not look like
// the pause.
func TestHealthyFailsWhileTheFirstBatchAfterAPauseIsStuck(t *testing.T) {
	c := &Consumer{cfg: Config{Topic: "t"}, metrics: newMetrics(prometheus.NewRegistry()), partitions: map[int]*progress{}}
	c.setMember(true)
	p := c.enter(3)
	c.moved(p, 100, 100)
	p.moved = time.Now().Add(-time.Hour) // nothing has come for an hour
	if err := c.Healthy(time.Minute); err != nil {
		t.Errorf("with nothing to read: %v", err)
	}
	c.waiting(p, 100, 110)
	want := regexp.MustCompile(`^t\[3\] stands at offset 100 of 110 since \S+Z$`)
	if err := c.Healthy(time.Minute); err == nil || !want.MatchString(err.Error()) {
		t.Errorf("with ten records in hand for an hour: %v, want %s", err, want)
	}
	if got := c.Lag(); got != 10 {
		t.Errorf("lag %d, want 10", got)
	}
	c.moved(p, 110, 110)
	if err := c.Healthy(time.Minute); err != nil {
		t.Errorf("with all read: %v", err)
	}
}
