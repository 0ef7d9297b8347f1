package trainer

import (
	"flag"
	"math/rand/v2"
	"testing"

	"github.com/oodmon/oodmon/model"
)

// The sizes of BenchmarkEpoch: those of bench/training.py.
var (
	epochRows       = flag.Int("epoch.rows", 100_000, "records of BenchmarkEpoch")
	epochDim        = flag.Int("epoch.dim", 512, "dimension of BenchmarkEpoch")
	epochClasses    = flag.Int("epoch.classes", 100, "classes of BenchmarkEpoch")
	epochBatch      = flag.Int("epoch.batch", 1008, "batch of BenchmarkEpoch")
	epochProjection = flag.String("epoch.projection", "none", "projection of BenchmarkEpoch")
)

// An epoch as fit runs it: from the spool, shuffled, with the optimiser. It is on
// one core.
func BenchmarkEpoch(b *testing.B) {
	n, d, c := *epochRows, *epochDim, *epochClasses
	s, err := newSpool(b.TempDir(), d, false)
	if err != nil {
		b.Fatal(err)
	}
	defer s.close()
	random := rand.New(rand.NewPCG(1, 1))
	x := make([]float32, d)
	for i := range n {
		for j := range x {
			x[j] = float32(random.NormFloat64())
		}
		normalise(x, x)
		if err := s.append(int32(i%c), 1, x); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.flush(); err != nil {
		b.Fatal(err)
	}
	s.renumber = make([]int32, c)
	for k := range s.renumber {
		s.renumber[k] = int32(k)
	}
	h := newHead(model.IsoMaxPlus, Projection(*epochProjection), 64, c, d)
	for i := range h.prototypes.value {
		h.prototypes.value[i] = float32(random.NormFloat64())
	}
	optimise := newSGD(h.params(), 1e-4)
	b.SetBytes(int64(4 * n * d))
	for b.Loop() {
		err := s.shuffled(random, *epochBatch, func(x []float32, y []int32) error {
			h.step(x, y, nil, 10)
			optimise.step(.1)
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
