package monitor

import (
	"context"
	"time"
)

// watch logs why no record moves when /-/healthy begins to fail, and when it is
// well again, until ctx is done. A call that hangs logs nothing of itself.
func (m *Monitor) watch(ctx context.Context) {
	tick := time.NewTicker(max(10*time.Millisecond, m.cfg.Input.StallTimeout/10))
	defer tick.Stop()
	var since time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := m.consumer.Healthy(m.cfg.Input.StallTimeout)
		switch {
		case err != nil && since.IsZero():
			since = time.Now()
			m.log.Error("no progress: /-/healthy fails", "stall_timeout", m.cfg.Input.StallTimeout, "error", err)
		case err == nil && !since.IsZero():
			m.log.Info("records move again", "after", time.Since(since).Round(time.Millisecond))
			since = time.Time{}
		}
	}
}
