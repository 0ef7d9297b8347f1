package consumer

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
)

// forgetfulTime is how long a coordinator may tell of an older offset than the group
// has committed.
const forgetfulTime = 30 * time.Second

// begin takes the offset that the coordinator has told, or −1, which is to be confirmed.
func (w *worker) begin(offset int64) {
	w.position, w.handled, w.committed = offset, offset, offset
	w.confirmed, w.told = false, time.Now()
}

// reach says that the group has committed an offset of the partition.
func (w *worker) reach(offset int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reached[w.partition] = offset
	w.settled = true
	delete(w.doubted, w.partition)
}

// assign forgets what is known of partitions that another member may have by now, and
// keeps what the coordinator has told of the others, if it is news.
func (c *Consumer) assign(assigned []kafka.PartitionAssignment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reached, doubted := make(map[int]int64), make(map[int]time.Time)
	for _, a := range assigned {
		if offset, ok := c.reached[a.ID]; ok || a.Offset >= 0 {
			reached[a.ID] = max(offset, a.Offset)
		}
		if since, ok := c.doubted[a.ID]; ok {
			doubted[a.ID] = since
		}
	}
	c.reached, c.doubted, c.before = reached, doubted, c.settled
	for partition := range c.left {
		if !slices.ContainsFunc(assigned, func(a kafka.PartitionAssignment) bool { return a.ID == partition }) {
			delete(c.left, partition)
		}
	}
}

// doubtful reports whether a worker doubts what the coordinator has told.
func (c *Consumer) doubtful() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.doubted) > 0
}

// doubt reports whether the group must have been beyond the position, how far if that
// is known, else −1, and how long it was doubted until the coordinator told the position.
func (w *worker) doubt() (doubt bool, known int64, since time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	known, ok := w.reached[w.partition]
	if !ok {
		known = -1
	}
	switch {
	case ok && known > w.position:
	case !ok && w.position < 0 && w.before && w.partition < w.Consumer.known:
		// Another member had it, which begins with a commit.
	default:
		delete(w.doubted, w.partition)
		return false, 0, 0
	}
	if _, ok := w.doubted[w.partition]; !ok {
		w.doubted[w.partition] = w.told
	}
	return true, known, w.told.Sub(w.doubted[w.partition])
}

// believe ends the doubt, and forgets what it was founded on.
func (w *worker) believe() {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.reached, w.partition)
	delete(w.doubted, w.partition)
}

// confirm asks whether the offset that the group's coordinator has told can be. A
// group's offset does not go back, unless the topic is made again: then what was
// committed in it is deleted with it. But Kafka 4.3 was seen to answer for a while that
// nothing is committed, where the coordinator had been elected twice while it loaded
// its log. To believe that would be to read all records again, or with `latest` none of
// those that wait. While there is doubt the group is joined anew, which makes
// the coordinator write, and notice.
func (w *worker) confirm() error {
	doubt, known, since := w.doubt()
	if !doubt {
		if w.position >= 0 {
			w.reach(w.position)
		}
		w.confirmed = true
		return nil
	}
	w.claimed = false // it is asked again
	_, end, err := w.offsets(w.running)
	if err != nil {
		return err
	}
	told := "none"
	if w.position >= 0 {
		told = strconv.FormatInt(w.position, 10)
	}
	if known <= end && since < w.forgetful {
		was := "committed"
		if known >= 0 {
			was = strconv.FormatInt(known, 10)
		}
		return fmt.Errorf("the offset of %s[%d] in group %s was %s, and its coordinator now says %s: asking again for %v",
			w.topic, w.partition, w.cfg.Group, was, told, (w.forgetful - since).Round(time.Second))
	}
	w.log.Error("the group's committed offset has gone back: the topic was made again, or the offset was changed", "offset", told, "was", known)
	if w.position < 0 {
		w.remade.Store(true)
	}
	w.believe()
	w.claimed, w.confirmed = true, true
	return nil
}
