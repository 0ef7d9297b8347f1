package consumer

import (
	"context"
	"fmt"
	"math"
	"runtime/debug"

	"golang.org/x/sync/semaphore"
)

// The kinds of memory that a partition may need beyond the ordinary, in the order in
// which it takes them.
const (
	ofResponse  = iota // a record batch that is larger than what is asked for at a time
	ofUnfolding        // a decompressor's window, or block
	ofRecord           // a record that is larger than what is asked for at a time, in memory
	ofHeaders          // its headers
	kinds
)

var kindNames = [kinds]string{"a large record batch", "decompression", "a large record", "many headers"}

const (
	// defaultBudget is how much there is of each kind where the process has no memory
	// limit, and budgetPart the part of that limit.
	defaultBudget = 64 << 20
	budgetPart    = 8
	// ordinaryUnfolding is what any decompressor may take: zstd's window at its default level.
	ordinaryUnfolding = 2 << 20
)

// A budget bounds what the partitions of a process hold beyond the ordinary: where it
// is used up, the others wait. What is larger than all of it takes it alone.
type budget struct {
	size int64 // of each kind
	free [kinds]*semaphore.Weighted
}

func newBudget(size int64) *budget {
	b := &budget{size: size}
	for kind := range b.free {
		b.free[kind] = semaphore.NewWeighted(size)
	}
	return b
}

// processBudget returns a budget for the memory limit of the process.
func processBudget() *budget {
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		return newBudget(max(1, limit/budgetPart))
	}
	return newBudget(defaultBudget)
}

// A share is what one partition holds of a budget. It never waits for a kind while it
// holds of that or of a later one, so that partitions cannot wait for one another in a
// circle: who holds of the last kind waits for nothing but its handler.
type share struct {
	budget *budget
	held   [kinds]int64
	// waits, where it isn't nil, is called when a wait begins, and when it ends.
	waits func(waits bool)
}

// hold waits until n bytes of a kind are free, and takes them, unless as much is held
// already. What is held of later kinds is given back.
func (s *share) hold(ctx context.Context, kind int, n int64) error {
	n = min(n, s.budget.size)
	if s.held[kind] >= n {
		s.giveBack(kind + 1)
		return nil
	}
	s.giveBack(kind)
	if !s.budget.free[kind].TryAcquire(n) && s.wait(ctx, kind, n) != nil {
		return fmt.Errorf("wait for %d bytes of memory for %s: %w", n, kindNames[kind], context.Cause(ctx))
	}
	s.held[kind] = n
	return nil
}

func (s *share) wait(ctx context.Context, kind int, n int64) error {
	if s.waits != nil {
		s.waits(true)
		defer s.waits(false)
	}
	return s.budget.free[kind].Acquire(ctx, n)
}

// giveBack gives back what is held of a kind and of those after it.
func (s *share) giveBack(kind int) {
	for ; kind < kinds; kind++ {
		if s.held[kind] > 0 {
			s.budget.free[kind].Release(s.held[kind])
			s.held[kind] = 0
		}
	}
}
