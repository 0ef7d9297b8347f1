package consumer

import (
	"fmt"
	"strconv"
	"time"
)

// forgetfulTime is how long a coordinator may tell of an older offset than the group
// has committed.
const forgetfulTime = 30 * time.Second

// reached is how far a group is known to be in a partition.
type reached struct {
	offset  int64     // that this process has committed, or has been told
	doubted time.Time // since when an older one is told; zero: it is not
}

// reach says that the group has committed an offset of the partition.
func (w *worker) reach(offset int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.groupReached[w.partition] = reached{offset: offset}
}

// doubt reports whether the group has been beyond the position, how far, and for how
// long that has been doubted.
func (w *worker) doubt() (doubt bool, offset int64, since time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.groupReached[w.partition]
	if !ok || r.offset <= w.position {
		return false, 0, 0
	}
	if r.doubted.IsZero() {
		r.doubted = time.Now()
		w.groupReached[w.partition] = r
	}
	return true, r.offset, time.Since(r.doubted)
}

// madeAgain says that the topic is another one than before.
func (c *Consumer) madeAgain() {
	c.remade.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.groupReached)
}

// confirm asks whether the offset that the group's coordinator has told can be. A
// group's offset does not go back, unless the topic is made again: then what was
// committed in it is deleted with it. But Kafka 4.3 was seen to answer for a while that
// nothing is committed, where the coordinator had been elected twice while it loaded
// its log. To believe that would be to read all records again, or with `latest` none of
// those that wait.
func (w *worker) confirm() error {
	if doubt, known, since := w.doubt(); doubt {
		told := "none"
		if w.position >= 0 {
			told = strconv.FormatInt(w.position, 10)
		}
		first, end, err := w.offsets(w.running)
		if err != nil {
			return err
		}
		if known >= first && known <= end && since < forgetfulTime {
			w.claimed = false
			w.rejoin.Store(true) // which makes the coordinator write, and notice
			return fmt.Errorf("the committed offset of %s[%d] in group %s was %d, and its coordinator now says %s: asking again for %v",
				w.topic, w.partition, w.cfg.Group, known, told, (forgetfulTime - since).Round(time.Second))
		}
		w.log.Error("the group's committed offset has gone back: the topic was made again, or the offset was changed; going on there", "offset", told, "was", known)
		if w.position < 0 {
			w.madeAgain()
		}
	}
	if w.position >= 0 {
		w.reach(w.position)
	}
	w.confirmed = true
	return nil
}
