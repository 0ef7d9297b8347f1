package monitor

import (
	"context"
	"errors"
	"time"
)

// reasonTime bounds the search for the reason of a stall.
const reasonTime = 10 * time.Second

// watch logs why no record moves when /-/healthy begins to fail, and again for as
// long as it does, since the reason may be another by then; and when it is well
// again. It returns when ctx is done. A call that hangs logs nothing of itself.
func (m *Monitor) watch(ctx context.Context) {
	tick := time.NewTicker(max(10*time.Millisecond, m.cfg.Input.StallTimeout/10))
	defer tick.Stop()
	var since, told time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := m.consumer.Healthy(m.cfg.Input.StallTimeout)
		switch {
		case err != nil && (since.IsZero() || time.Since(told) > m.cfg.Input.StallTimeout):
			if since.IsZero() {
				since = time.Now()
			}
			// A client that is not let in hears of an unknown topic, or of an end
			// of the stream: a connection made for the purpose tells why.
			checking, cancel := context.WithTimeout(ctx, reasonTime)
			err = errors.Join(err, m.conn.Check(checking, m.topics()...))
			cancel()
			told = time.Now()
			m.log.Error("no progress: /-/healthy fails", "stall_timeout", m.cfg.Input.StallTimeout, "error", err)
		case err == nil && !since.IsZero():
			m.log.Info("records move again", "after", time.Since(since).Round(time.Millisecond))
			since, told = time.Time{}, time.Time{}
		}
	}
}
