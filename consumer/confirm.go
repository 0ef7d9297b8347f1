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
	w.asked, w.missed = false, nil
}

// reach says that the group has committed an offset of the partition, or none yet.
func (w *worker) reach(offset int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reached[w.partition] = offset
	delete(w.doubted, w.partition)
	if offset >= 0 {
		w.settled = true
		delete(w.remade, w.partition)
	}
}

// assign forgets what is known of partitions that another member may have by now, and
// keeps what the coordinator has told of the others, if it is news.
func (c *Consumer) assign(assigned []kafka.PartitionAssignment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reached, doubted, remade := make(map[int]int64), make(map[int]time.Time), make(map[int]bool)
	for _, a := range assigned {
		if offset, ok := c.reached[a.ID]; ok || a.Offset >= 0 {
			reached[a.ID] = max(offset, a.Offset)
		}
		if since, ok := c.doubted[a.ID]; ok {
			doubted[a.ID] = since
		}
		if c.remade[a.ID] {
			remade[a.ID] = true
		}
	}
	c.reached, c.doubted, c.remade, c.before = reached, doubted, remade, c.settled
	for partition := range c.left {
		if !slices.ContainsFunc(assigned, func(a kafka.PartitionAssignment) bool { return a.ID == partition }) {
			delete(c.left, partition)
		}
	}
}

// doubtful reports whether a worker doubts what the coordinator has told, and joining
// the group anew may help: it does not where the partition has no leader any more.
func (c *Consumer) doubtful() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, since := range c.doubted {
		if time.Since(since) < c.forgetful+forgetfulTime {
			return true
		}
	}
	return false
}

// unread reports whether nobody can have read of a partition for which nothing is
// committed: it was added after the group began, or the topic was made again. It
// begins at its first record then. All others begin as input.start says, also one that had
// no leader until now.
func (w *worker) unread() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.remade[w.partition] || w.partition >= w.known
}

// doubt reports whether the group must have been beyond the position, and how far if
// that is known, else −1.
func (w *worker) doubt() (doubt bool, known int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	known, ok := w.reached[w.partition]
	if !ok { // another member had it, which begins with a commit
		return w.position < 0 && w.before && w.partition < w.had, -1
	}
	return known > w.position, known
}

// doubtedFor returns how long the position was doubted until the coordinator told it.
func (w *worker) doubtedFor() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.doubted[w.partition]; !ok {
		w.doubted[w.partition] = w.told
	}
	return w.told.Sub(w.doubted[w.partition])
}

// believe ends the doubt.
func (w *worker) believe() {
	if w.position < 0 {
		w.mu.Lock()
		w.remade[w.partition] = true
		w.mu.Unlock()
	}
	w.reach(w.position)
}

// confirm asks whether the offset that the group's coordinator has told can be. A
// group's offset does not go back, unless the topic is made again: then what was
// committed in it is deleted with it. But Kafka 4.3 was seen to answer for a while that
// nothing is committed, where the coordinator had been elected twice while it loaded
// its log. To believe that would be to read all records again, or with `latest` none of
// those that wait. While there is doubt the group is joined anew, which makes
// the coordinator write, and notice.
func (w *worker) confirm() error {
	doubt, known := w.doubt()
	if !doubt {
		w.reach(w.position)
		w.confirmed = true
		return nil
	}
	_, end, err := w.offsets(w.running)
	if err != nil {
		return err
	}
	told, was := "none", "committed"
	if w.position >= 0 {
		told = strconv.FormatInt(w.position, 10)
	}
	if known >= 0 {
		was = strconv.FormatInt(known, 10)
	}
	if since := w.doubtedFor(); known <= end && since < w.forgetful {
		w.claimed = false // it is asked again
		return fmt.Errorf("the offset of %s[%d] in group %s was %s, and its coordinator now says %s: asking again for %v",
			w.topic, w.partition, w.cfg.Group, was, told, (w.forgetful - since).Round(time.Second))
	}
	if known >= 0 {
		w.log.Error("the group's committed offset has gone back: the topic was made again, or the offset was changed", "offset", told, "was", was)
	} else {
		w.log.Error("nothing is committed for a partition that another member had: starting at its first record, since the topic may have been made again")
	}
	w.believe()
	w.confirmed = true
	return nil
}
