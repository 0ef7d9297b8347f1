package consumer

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/oodmon/oodmon/internal/kafkatest"
)

// What the handler has missed before the committed offset comes first, and only that:
// each span by itself; what fails is handed over again, what the log does not hold any
// more is left out, and so is all from what fails for long on.
func testMissed(t *testing.T, broker *kafkatest.Broker) {
	f := newFixture(t, broker, 1)
	f.produce(0, numbers("v", 100)...)
	f.commit(80)
	f.deleteTo(10)
	f.missedPatience = 4 * time.Second
	asked := int64(-1)
	f.cfg.MaxRecords = 8
	f.cfg.Missed = func(partition int, committed int64) []Span {
		if asked < 0 { // the first time
			asked = committed
			return []Span{{0, 5}, {6, 30}, {50, 51}, {60, 65}, {65, 70}, {75, 78}, {78, 80}}
		}
		return nil
	}
	failed := 0
	f.handle = func(_ context.Context, b *Batch) error {
		if b.Missed != (b.Messages[0].Offset < 80) {
			t.Errorf("offset %d: missed %v", b.Messages[0].Offset, b.Missed)
		}
		switch at := b.Messages[0].Offset; {
		case b.Missed && (at < 65 && b.Next > 65 || b.Messages[len(b.Messages)-1].Offset >= b.Next || at < b.From):
			t.Errorf("a batch of [%d, %d), of more than one span", b.From, b.Next)
		case (at == 18 || at == 60) && failed < 2:
			failed++
			return errors.New("not now")
		case at == 75:
			return errors.New("never")
		}
		return nil
	}
	_, stop := f.start()
	f.received(append(append(append(numbers("v", 30)[10:], "v50"), numbers("v", 70)[60:]...), numbers("v", 100)[80:]...)...)
	f.committedIs(0, 100)
	if err := stop(); err != nil {
		t.Error(err)
	}
	want := append(append(append(ascending(10, 30), 50), ascending(60, 70)...), ascending(80, 100)...)
	if got := f.offsets(0); !slices.Equal(got, want) {
		t.Errorf("received %v, want %v", got, want)
	}
	if asked != 80 || failed != 2 {
		t.Errorf("asked for what was missed before %d, want 80; %d failures", asked, failed)
	}
	f.says("from offset 18 again: not now")
	f.says("drift misses records that cannot be read again")
	f.says("drift misses records that are no longer in the log")
	if n := f.metric("oodmon_consumer_messages_total"); n != 20 {
		t.Errorf("%g messages are counted, want the 20 that were not committed", n)
	}
}
