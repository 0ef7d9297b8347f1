package consumer

import (
	"errors"
	"maps"
	"sync"
	"testing"
)

// While a commit is on the way, those that come wait for one request together;
// each learns what became of its own.
func TestCommitterSendsTogetherWhatComesMeanwhile(t *testing.T) {
	refused := errors.New("refused")
	begun, release := make(chan struct{}), make(chan error)
	var sent []map[int]int64
	c := &committer{send: func(offsets map[int]int64) error {
		sent = append(sent, maps.Clone(offsets))
		begun <- struct{}{}
		return <-release
	}}
	var first sync.WaitGroup
	var firstErr error
	first.Go(func() { firstErr = c.commit(0, 10) })
	<-begun
	var rest sync.WaitGroup
	restErr := make([]error, 5)
	for p := 1; p < len(restErr); p++ {
		rest.Go(func() { restErr[p] = c.commit(p, int64(p)) })
	}
	for waiting := 0; waiting < 4; {
		c.mu.Lock()
		if c.next != nil {
			waiting = len(c.next.offsets)
		}
		c.mu.Unlock()
	}
	release <- nil
	<-begun
	release <- refused
	first.Wait()
	rest.Wait()
	if firstErr != nil {
		t.Errorf("the first: %v", firstErr)
	}
	for p := 1; p < len(restErr); p++ {
		if !errors.Is(restErr[p], refused) {
			t.Errorf("partition %d: %v, want %v", p, restErr[p], refused)
		}
	}
	want := []map[int]int64{{0: 10}, {1: 1, 2: 2, 3: 3, 4: 4}}
	if len(sent) != 2 || !maps.Equal(sent[0], want[0]) || !maps.Equal(sent[1], want[1]) {
		t.Errorf("sent %v, want %v", sent, want)
	}
}
