package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/gonum"
)

// padded returns an equal matrix whose values lie apart and unaligned in memory
// of NaNs, transposed in memory or not.
func padded(r *rand.Rand, m Matrix, transposed bool) Matrix {
	rows, cols := m.rows, m.cols
	if transposed {
		rows, cols = cols, rows
	}
	step := cols + r.IntN(5)
	values := make([]float32, 1+rows*step)
	for i := range values {
		values[i] = float32(math.NaN())
	}
	out := Matrix{values[1:], rows, cols, step, 1}
	if transposed {
		out = out.T()
	}
	for i := range m.rows {
		for j := range m.cols {
			*out.at(i, j) = *m.at(i, j)
		}
	}
	if n := rows * step; n > 0 && step > cols {
		out.values = out.values[: n-(step-cols) : n-(step-cols)] // none behind the last
	}
	return out
}

func (m Matrix) at(i, j int) *float32 { return &m.values[i*m.rowStep+j*m.colStep] }

// checkMultiply compares c = a·b and c += a·b with float64, for every
// implementation.
func checkMultiply(t *testing.T, r *rand.Rand, m, n, k int) {
	t.Helper()
	a, b, c := RowMajor(normal(r, m*k, 1), m, k), RowMajor(normal(r, k*n, 1), k, n), RowMajor(normal(r, m*n, 1), m, n)
	var w multiplyScratch
	for _, implementation := range Available() {
		for form := range 8 {
			transA, transB, add := form&1 != 0, form&2 != 0, form&4 != 0
			pa, pb, pc := padded(r, a, transA), padded(r, b, transB), padded(r, c, false)
			before := append([]float32(nil), pc.values...)
			multiply(implementation.loops, &w, pc, pa, pb, add)
			for i := range m {
				for j := range n {
					want, size := 0., 0.
					if add {
						want = float64(*c.at(i, j))
						size = math.Abs(want)
					}
					for l := range k {
						p := float64(*a.at(i, l)) * float64(*b.at(l, j))
						want += p
						size += math.Abs(p)
					}
					got := float64(*pc.at(i, j))
					if !(math.Abs(got-want) <= 2e-7*math.Sqrt(float64(k+1))*size) {
						t.Fatalf("%s, %d×%d×%d, form %d: c[%d,%d] = %g, want %g", implementation, m, n, k, form, i, j, got, want)
					}
				}
			}
			for i, v := range pc.values {
				if i%pc.rowStep >= n && math.Float32bits(v) != math.Float32bits(before[i]) {
					t.Fatalf("%s, %d×%d×%d, form %d: wrote between the rows", implementation, m, n, k, form)
				}
			}
		}
	}
}

func TestMultiplyShapes(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 1))
	for range 60 {
		checkMultiply(t, r, 1+r.IntN(50), 1+r.IntN(50), 1+r.IntN(50))
	}
	for range 6 {
		checkMultiply(t, r, 1+r.IntN(130), 1+r.IntN(130), 1+r.IntN(130))
	}
	for _, s := range [][3]int{{1, 1, 1}, {12, 32, 0}, {12, 32, 7}, {24, 64, 256}, {13, 33, 257}, {5, 1030, 3}, {780, 5, 3}, {6, 16, 600}} {
		checkMultiply(t, r, s[0], s[1], s[2])
	}
	checkMultiply(t, r, 0, 3, 4)
	checkMultiply(t, r, 3, 0, 4)
}

func FuzzMultiply(f *testing.F) {
	f.Add(uint64(1), uint8(3), uint8(5), uint8(7))
	f.Fuzz(func(t *testing.T, seed uint64, m, n, k uint8) {
		checkMultiply(t, rand.New(rand.NewPCG(seed, 0)), int(m), int(n), int(k))
	})
}

func TestMultiplyIsReproducible(t *testing.T) {
	r := rand.New(rand.NewPCG(22, 1))
	const m, n, k = 101, 77, 613
	a, b := RowMajor(normal(r, m*k, 1), m, k), RowMajor(normal(r, n*k, 1), n, k)
	encode := func(c []float32) []byte {
		out, err := binary.Append(nil, binary.LittleEndian, c)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	var vector []byte // of the implementations with fused multiply-adds
	for _, implementation := range Available() {
		whole, shares := make([]float32, m*n), make([]float32, m*n)
		var w, w1, w2 multiplyScratch
		multiply(implementation.loops, &w, RowMajor(whole, m, n), a, b.T(), false)
		c := RowMajor(shares, m, n)
		multiply(implementation.loops, &w1, c.Slice(0, 31), a.Slice(0, 31), b.T(), false)
		multiply(implementation.loops, &w2, c.Slice(31, m), a.Slice(31, m), b.T(), false)
		if !bytes.Equal(encode(whole), encode(shares)) {
			t.Errorf("%s: rows computed apart differ from those of the whole product", implementation)
		}
		if implementation == &portable {
			continue
		}
		if vector == nil {
			vector = encode(whole)
		} else if !bytes.Equal(vector, encode(whole)) {
			t.Errorf("%s differs from %s", implementation, Available()[0])
		}
	}
}

// An infinity or a NaN spoils what it is multiplied with, and nothing else.
func TestMultiplySpreadsNoNaN(t *testing.T) {
	r := rand.New(rand.NewPCG(23, 1))
	const m, n, k = 29, 35, 20
	for _, implementation := range Available() {
		a, b, c := RowMajor(normal(r, m*k, 1), m, k), RowMajor(normal(r, k*n, 1), k, n), RowMajor(make([]float32, m*n), m, n)
		*a.at(28, 3), *b.at(7, 34) = float32(math.NaN()), float32(math.Inf(1))
		var w multiplyScratch
		multiply(implementation.loops, &w, c, a, b, false)
		for i := range m {
			for j := range n {
				v := float64(*c.at(i, j))
				if math.IsNaN(v) != (i == 28) || math.IsInf(v, 0) != (i != 28 && j == 34) {
					t.Fatalf("%s: c[%d,%d] = %g", implementation, i, j, v)
				}
			}
		}
	}
}

func TestMultiplyAllocatesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(24, 1))
	const m, n, k = 50, 40, 300
	a, b, c := RowMajor(normal(r, m*k, 1), m, k), RowMajor(normal(r, k*n, 1), k, n), RowMajor(make([]float32, m*n), m, n)
	var w Workspace
	if n := testing.AllocsPerRun(10, func() { Multiply(&w, c, a, b, false) }); n != 0 {
		t.Errorf("%v allocations a call, want 0", n)
	}
}

// The products of training: forward, the gradient of the prototypes, a
// projection and its gradient; beside gonum's Sgemm.
func BenchmarkMultiply(b *testing.B) {
	r := rand.New(rand.NewPCG(25, 1))
	for _, s := range []struct {
		name           string
		m, n, k        int
		transA, transB bool
	}{
		{"forward", 1000, 100, 512, false, true},
		{"gradient", 100, 512, 1000, true, false},
		{"forward", 64, 150, 384, false, true},
		{"gradient", 150, 384, 64, true, false},
		{"projection", 1000, 512, 512, false, false},
		{"projection-gradient", 512, 512, 1000, true, false},
		{"projection", 64, 384, 384, false, false},
		{"projection-gradient", 384, 384, 64, true, false},
		{"square", 1024, 1024, 1024, false, false},
	} {
		av, bv, cv := normal(r, s.m*s.k, 1), normal(r, s.k*s.n, 1), make([]float32, s.m*s.n)
		shape := fmt.Sprintf("%s/%d×%d×%d", s.name, s.m, s.n, s.k)
		run := func(name string, f func()) {
			b.Run(name+"/"+shape, func(b *testing.B) {
				for b.Loop() {
					f()
				}
				b.ReportMetric(2e-9*float64(b.N)*float64(s.m*s.n*s.k)/b.Elapsed().Seconds(), "GFLOP/s")
			})
		}
		x, y := RowMajor(av, s.m, s.k), RowMajor(bv, s.k, s.n)
		ta, lda, tb, ldb := blas.NoTrans, s.k, blas.NoTrans, s.n
		if s.transA {
			x, ta, lda = RowMajor(av, s.k, s.m).T(), blas.Trans, s.m
		}
		if s.transB {
			y, tb, ldb = RowMajor(bv, s.n, s.k).T(), blas.Trans, s.k
		}
		for _, implementation := range Available() {
			var w multiplyScratch
			run(implementation.name, func() { multiply(implementation.loops, &w, RowMajor(cv, s.m, s.n), x, y, false) })
		}
		run("gonum", func() {
			gonum.Implementation{}.Sgemm(ta, tb, s.m, s.n, s.k, 1, av, lda, bv, ldb, 0, cv, s.n)
		})
	}
}
