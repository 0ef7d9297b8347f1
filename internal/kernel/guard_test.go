package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// Whatever lies round the rows, at whatever offset they begin, each function on
// rows gives the same bits and writes nothing there.
func TestRowsAmongGuards(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 1))
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, impl := range Available() {
		for _, d := range []int{1, 3, 16, 33, 63, 64, 65, 200} {
			const c, k, n = 35, 21, 29
			p, x := normal(r, c*d, 1), normal(r, n*d, 1)
			protos, err := impl.Pack(p, c, d)
			if err != nil {
				t.Fatal(err)
			}
			bank, err := newBank(impl.loops, p, c, d)
			if err != nil {
				t.Fatal(err)
			}
			full, err := impl.PackMatrix(normal(r, d*k, 1), d, k)
			if err != nil {
				t.Fatal(err)
			}
			low, err := impl.PackLowRank(normal(r, d*3, 1), normal(r, 3*d, 1), d, 3)
			if err != nil {
				t.Fatal(err)
			}
			var w Workspace
			// nearest joins what a search returns, for the comparison of bits.
			nearest := func(search func(dist []float32, class []int32), n int) []float32 {
				dist, class := make([]float32, n), make([]int32, n)
				search(dist, class)
				for _, k := range class {
					dist = append(dist, float32(k))
				}
				return dist
			}
			type entry struct {
				name string
				f    func(x []float32, n int) []float32
			}
			entries := []entry{
				{"Nearest", func(x []float32, n int) []float32 {
					return nearest(func(dist []float32, class []int32) { protos.Nearest(&w, x, dist, class) }, n)
				}},
				{"KthNearest", func(x []float32, n int) []float32 {
					return nearest(func(dist []float32, class []int32) { bank.KthNearest(&w, 3, x, dist, class) }, n)
				}},
				{"Apply, full", func(x []float32, n int) []float32 { return slices.Clone(full.Apply(&w, x, n)) }},
				{"Apply, low rank", func(x []float32, n int) []float32 { return slices.Clone(low.Apply(&w, x, n)) }},
				{"norms", func(x []float32, n int) []float32 {
					out := make([]float32, n)
					rowNorms(impl.loops, x, d, out)
					return out
				}},
				{"multiply", func(x []float32, n int) []float32 {
					out := make([]float32, n*c)
					multiply(impl.loops, &w.multiply, RowMajor(out, n, c), RowMajor(x, n, d), RowMajor(p, c, d).T(), false)
					return out
				}},
			}
			for _, kind := range []LogitKind{InnerProduct, UnitDistance, MeanUnitDistance} {
				logits, err := packLogits(impl.loops, kind, p, nil, c, d, 1)
				if err != nil {
					t.Fatal(err)
				}
				entries = append(entries, entry{fmt.Sprintf("Stats, kind %d", kind), func(x []float32, n int) []float32 {
					stats := make([]LogitStats, n)
					logits.Stats(&w, x, stats)
					var all []float32
					for _, s := range stats {
						all = append(all, float32(s.Class), float32(s.Max), float32(s.LogSumExp), float32(s.Mean), float32(s.Entropy))
					}
					return all
				}})
			}
			for _, e := range entries {
				for _, n := range []int{1, 5, 12, n} {
					want := e.f(slices.Clip(slices.Clone(x[:n*d])), n)
					for _, guard := range []float32{nan, inf, 1e30} {
						for _, offset := range []int{1, 7, 16} {
							room := make([]float32, offset+n*d+2*lanesAround)
							for i := range room {
								room[i] = guard
							}
							rows := room[offset : offset+n*d]
							copy(rows, x)
							if got := e.f(rows, n); !sameBits(got, want) {
								t.Fatalf("%v: %s, %d rows of %d at offset %d: the guard %g changed the result", impl, e.name, n, d, offset, guard)
							}
							if !sameBits(rows, x[:n*d]) {
								t.Fatalf("%v: %s, %d rows of %d at offset %d: wrote to the rows", impl, e.name, n, d, offset)
							}
							for i, v := range room {
								if (i < offset || i >= offset+n*d) && math.Float32bits(v) != math.Float32bits(guard) {
									t.Fatalf("%v: %s, %d rows of %d at offset %d: wrote to value %d round them", impl, e.name, n, d, offset, i-offset)
								}
							}
						}
					}
				}
			}
		}
	}
}

// lanesAround is more than any vector or unrolled loop reaches past a row.
const lanesAround = 64

func sameBits(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) })
}
