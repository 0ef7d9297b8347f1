package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// projected64 is the image of the direction of x, in float64.
func projected64(x, matrix, u, v []float32, k, rank int) []float64 {
	norm := math.Sqrt(sumOfSquares(x))
	if !(norm >= MinNorm) || math.IsInf(norm, 0) {
		norm = math.NaN()
	}
	unit := make([]float64, len(x))
	for j, value := range x {
		unit[j] = float64(value) / norm
	}
	times := func(x []float64, m []float32, cols int) []float64 {
		out := make([]float64, cols)
		for i, value := range x {
			for j := range out {
				out[j] += value * float64(m[i*cols+j])
			}
		}
		return out
	}
	if matrix != nil {
		return times(unit, matrix, k)
	}
	out := times(times(unit, u, rank), v, k)
	for j := range out {
		out[j] += unit[j]
	}
	return out
}

// Every image is within the rounding errors of its products: so many u, relative
// to the lengths that meet in them.
func TestProjection(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 1))
	for _, impl := range Available() {
		for _, d := range []int{1, 2, 15, 16, 17, 31, 33, 64, 100, 257, 600} {
			for _, k := range []int{1, 7, 16, 33, 70} {
				for _, n := range []int{0, 1, 5, 12, 13, 29} {
					x := normal(r, n*d, 1)
					if n > 4 {
						for j := range d {
							x[d+j] *= 1e30
							x[2*d+j] *= 1e-11
							x[3*d+j] = 0
						}
						x[4*d] = float32(math.NaN())
					}
					matrix := normal(r, d*k, 1/math.Sqrt(float64(d)))
					m, err := impl.PackMatrix(matrix, d, k)
					if err != nil {
						t.Fatal(err)
					}
					checkImages(t, fmt.Sprintf("%v: %d×%d", impl, d, k), m, x, n, matrix, nil, nil, k, 0)
					u, v := normal(r, d*k, .2), normal(r, k*d, .2)
					low, err := impl.PackLowRank(u, v, d, k)
					if err != nil {
						t.Fatal(err)
					}
					checkImages(t, fmt.Sprintf("%v: %d, rank %d", impl, d, k), low, x, n, nil, u, v, d, k)
				}
			}
		}
	}
}

func checkImages(t *testing.T, name string, p *Projection, x []float32, n int, matrix, u, v []float32, k, rank int) {
	t.Helper()
	d := p.d
	var w Workspace
	got := p.Apply(&w, x, n)
	if len(got) != n*k {
		t.Fatalf("%s: %d values for %d rows of %d", name, len(got), n, k)
	}
	length := func(m []float32) float64 { return math.Sqrt(sumOfSquares(m)) }
	within := 2 * 0x1p-24 * float64(d+rank+4) * (1 + length(matrix) + length(u)*length(v))
	for i := range n {
		want := projected64(x[i*d:(i+1)*d], matrix, u, v, k, rank)
		for j := range k {
			diff := math.Abs(float64(got[i*k+j]) - want[j])
			if math.IsNaN(want[j]) != math.IsNaN(float64(got[i*k+j])) || diff > within {
				t.Fatalf("%s: row %d, value %d of its image is %g, want %g", name, i, j, got[i*k+j], want[j])
			}
		}
	}
}

// The assembly of all CPUs gives the same bits.
func TestProjectionBits(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 2))
	const n, d, k, rank = 29, 531, 77, 21
	x, matrix, u, v := normal(r, n*d, 1), normal(r, d*k, 1), normal(r, d*rank, 1), normal(r, rank*d, 1)
	var want [2][]float32
	var first *Implementation
	for _, impl := range Available() {
		if impl == &portable {
			continue
		}
		m, err := impl.PackMatrix(matrix, d, k)
		if err != nil {
			t.Fatal(err)
		}
		low, err := impl.PackLowRank(u, v, d, rank)
		if err != nil {
			t.Fatal(err)
		}
		got := [2][]float32{m.Apply(new(Workspace), x, n), low.Apply(new(Workspace), x, n)}
		if first == nil {
			first, want = impl, got
		}
		for i := range got {
			for j := range got[i] {
				if math.Float32bits(got[i][j]) != math.Float32bits(want[i][j]) {
					t.Fatalf("value %d is %x by %v, %x by %v", j, got[i][j], impl, want[i][j], first)
				}
			}
		}
	}
}

func TestProjectionRefuses(t *testing.T) {
	for want, f := range map[string]func() (*Projection, error){
		"projection: 5 values are not 2 rows of 3":                  func() (*Projection, error) { return PackMatrix(make([]float32, 5), 2, 3) },
		"projection: 6 and 5 values are not 3 rows of 2 and 2 of 3": func() (*Projection, error) { return PackLowRank(make([]float32, 6), make([]float32, 5), 3, 2) },
	} {
		if _, err := f(); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
