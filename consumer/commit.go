package consumer

import "sync"

// A committer commits the offsets of all partitions of a generation. A commit
// takes the coordinator a few milliseconds, and it takes one at a time: while
// one is on the way, those that come wait, and the next takes all of them.
type committer struct {
	send func(offsets map[int]int64) error

	mu      sync.Mutex
	sending bool
	next    *commitRound // nil: nobody waits
}

// A commitRound is one request. One of those who wait for it sends it.
type commitRound struct {
	offsets map[int]int64
	turn    chan struct{} // holds the right to send, once
	done    chan struct{} // closed when err is set
	err     error
}

// commit returns when the group has the offset, or has refused the request that
// it was in.
func (c *committer) commit(partition int, offset int64) error {
	c.mu.Lock()
	if c.next == nil {
		c.next = &commitRound{offsets: make(map[int]int64), turn: make(chan struct{}, 1), done: make(chan struct{})}
	}
	round := c.next
	round.offsets[partition] = offset
	if !c.sending {
		c.sending = true
		round.turn <- struct{}{}
	}
	c.mu.Unlock()

	select {
	case <-round.done:
		return round.err
	case <-round.turn:
	}
	c.mu.Lock()
	c.next = nil // who comes now is in the next
	c.mu.Unlock()
	round.err = c.send(round.offsets)
	close(round.done)
	c.mu.Lock()
	if c.sending = c.next != nil; c.sending {
		c.next.turn <- struct{}{}
	}
	c.mu.Unlock()
	return round.err
}
