package demo

import (
	"math/rand/v2"
	"testing"
)

func TestNoticer(t *testing.T) {
	const rate = 0.01
	random := rand.New(rand.NewPCG(1, 2))
	n := newNoticer(rate)
	for i := range 100_000 {
		if n.observe(random.Float64() < rate) {
			t.Fatalf("a false alarm at record %d with %d flagged in the window", i, n.ood)
		}
	}
	delay := 0
	for !n.observe(random.Float64() < 0.3) {
		if delay++; delay > noticeWindow {
			t.Fatalf("30 %% flagged and not noticed within %d records", noticeWindow)
		}
	}
	t.Logf("noticed after %d records; the limit is %d of %d", delay+1, n.limit, noticeWindow)
}
