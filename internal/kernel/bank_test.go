package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// checkBank compares KthNearest with distances in float64.
func checkBank(t *testing.T, x, bank []float32, n, m, d, k int) {
	t.Helper()
	for _, implementation := range Available() {
		b, err := newBank(implementation.loops, bank, m, d)
		if err != nil {
			t.Fatal(err)
		}
		dist, nearest := make([]float32, n), make([]int32, n)
		var w Workspace
		b.KthNearest(&w, k, x, dist, nearest)
		for i := range n {
			all := make([]float64, m)
			for j := range m {
				all[j], _ = nearest64(x[i*d:(i+1)*d], bank[j*d:(j+1)*d], 1, d)
			}
			if math.IsNaN(all[0]) {
				if nearest[i] != -1 || !math.IsNaN(float64(dist[i])) {
					t.Fatalf("%s: row %d has no direction, but got %g, %d", implementation, i, dist[i], nearest[i])
				}
				continue
			}
			least := slices.Min(all)
			if nearest[i] < 0 || all[nearest[i]]-least > 2e-7 || all[nearest[i]] == least && slices.Index(all, least) != int(nearest[i]) {
				t.Fatalf("%s, %d of %d×%d: row %d is nearest to %d at %g, want %d at %g", implementation, k, m, d, i, nearest[i], all[nearest[i]], slices.Index(all, least), least)
			}
			slices.Sort(all)
			want := all[min(k, m)-1]
			if got := float64(dist[i]); !(math.Abs(got-want) <= 2e-7+1e-6*want) {
				t.Fatalf("%s, %d of %d×%d: row %d: distance %g, want %g", implementation, k, m, d, i, got, want)
			}
		}
	}
}

func TestKthNearest(t *testing.T) {
	r := rand.New(rand.NewPCG(41, 1))
	for range 40 {
		n, m, d, k := r.IntN(60), 1+r.IntN(600), 1+r.IntN(70), 1+r.IntN(20)
		checkBank(t, normal(r, n*d, 1), normal(r, m*d, 1), n, m, d, k)
	}
	checkBank(t, normal(r, 300*4, 1), normal(r, 40*4, 1), 300, 40, 4, 3)
	t.Run("in the bank", func(t *testing.T) {
		bank := normal(r, 300*24, 1)
		checkBank(t, bank[:50*24], bank, 50, 300, 24, 1)
		checkBank(t, bank[:50*24], bank, 50, 300, 24, 2)
	})
	t.Run("near-duplicates", func(t *testing.T) {
		bank := normal(r, 300*24, 1)
		for i := 5 * 24; i < 10*24; i++ {
			bank[i] = bank[i-5*24] * float32(1+1e-6*r.NormFloat64())
		}
		for k := 1; k < 4; k++ {
			checkBank(t, bank[:20*24], bank, 20, 300, 24, k)
		}
	})
	t.Run("scales", func(t *testing.T) {
		bank := normal(r, 300*24, 1)
		for _, scale := range []float64{1e-11, 1e18, 3e37} {
			checkBank(t, normal(r, 20*24, scale), bank, 20, 300, 24, 3)
		}
	})
	t.Run("without direction", func(t *testing.T) {
		x := normal(r, 5*24, 1)
		x[3], x[24] = float32(math.NaN()), float32(math.Inf(1))
		clear(x[2*24 : 3*24])
		checkBank(t, x, normal(r, 30*24, 1), 5, 30, 24, 3)
	})
}

func TestNewBankRefuses(t *testing.T) {
	for _, test := range []struct {
		x    []float32
		want string
	}{
		{[]float32{1, 2, 3}, "bank: 3 values are not 2 rows of 2"},
		{[]float32{1, 2, 0, 0}, "embedding 1 of the bank has norm 0: it must be finite and at least 1e-12"},
	} {
		if _, err := NewBank(test.x, 2, 2); err == nil || err.Error() != test.want {
			t.Errorf("%v, want %s", err, test.want)
		}
	}
}

func TestKthNearestAllocatesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(42, 1))
	b, err := NewBank(normal(r, 500*16, 1), 500, 16)
	if err != nil {
		t.Fatal(err)
	}
	var w Workspace
	x, dist, nearest := normal(r, 100*16, 1), make([]float32, 100), make([]int32, 100)
	if n := testing.AllocsPerRun(10, func() { b.KthNearest(&w, 5, x, dist, nearest) }); n != 0 {
		t.Errorf("%v allocations a call, want 0", n)
	}
}

func BenchmarkKthNearest(b *testing.B) {
	r := rand.New(rand.NewPCG(43, 1))
	const n, m, d = 240, 15_000, 384
	x, bank := normal(r, n*d, 1), normal(r, m*d, 1)
	for _, implementation := range Available() {
		for _, k := range []int{1, 50} {
			b.Run(fmt.Sprintf("%s/k=%d/d=%d/m=%d", implementation, k, d, m), func(b *testing.B) {
				nb, err := newBank(implementation.loops, bank, m, d)
				if err != nil {
					b.Fatal(err)
				}
				var w Workspace
				dist, nearest := make([]float32, n), make([]int32, n)
				for b.Loop() {
					nb.KthNearest(&w, k, x, dist, nearest)
				}
				b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "vectors/s")
				b.ReportMetric(2e-9*float64(b.N)*n*m*d/b.Elapsed().Seconds(), "GFLOP/s")
			})
		}
	}
}
