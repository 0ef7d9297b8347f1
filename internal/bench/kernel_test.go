package bench

import (
	"testing"

	"github.com/oodmon/oodmon/internal/kernel"
)

// Every implementation and rival is measured, and they agree on the classes.
func TestKernel(t *testing.T) {
	opts := KernelOptions{Shapes: [][2]int{{24, 5}}, Threads: []int{2}, Bytes: 1 << 16, Runs: 2, Rivals: true}
	results, err := Kernel(t.Context(), opts, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if want := len(kernel.Available()) + 2; len(results) != want {
		t.Fatalf("%d results, want %d", len(results), want)
	}
	for _, r := range results {
		if r.D != 24 || r.C != 5 || r.Threads != 2 || r.XBytes != 1<<16/96*96 || !(r.VectorsPerSecond > 0) || !(r.GFLOPS > 0) {
			t.Errorf("%+v", r)
		}
	}
}

func TestKernelRefuses(t *testing.T) {
	for want, opts := range map[string]KernelOptions{
		"bench kernel: 0 bytes, 1 runs and 1 shapes: each must be at least 1":                                {Shapes: [][2]int{{1, 1}}, Runs: 1},
		"bench kernel: shape 8,0: expected at least one dimension and class, and a row of at most 64 bytes":  {Shapes: [][2]int{{8, 0}}, Runs: 1, Bytes: 64},
		"bench kernel: shape 17,1: expected at least one dimension and class, and a row of at most 64 bytes": {Shapes: [][2]int{{17, 1}}, Runs: 1, Bytes: 64},
		"bench kernel: 0 threads: expected at least 1":                                                       {Shapes: [][2]int{{1, 1}}, Runs: 1, Bytes: 64, Threads: []int{0}},
	} {
		if _, err := Kernel(t.Context(), opts, func(string) {}); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestKernelScorersAgree(t *testing.T) {
	const n, c, d = 50, 7, 20
	x, p := make([]float32, n*d), make([]float32, c*d)
	for i := range x {
		x[i] = float32((i*i+3*i)%101) - 50
	}
	for i := range p {
		p[i] = float32((i*i*7+i)%67) - 33
	}
	var want []int32
	for _, s := range KernelScorers() {
		score, err := s.New(p, c, d)
		if err != nil {
			t.Fatal(err)
		}
		dist, class := make([]float32, n), make([]int32, n)
		score(x, dist, class)
		if want == nil {
			want = class
		}
		for i := range class {
			if class[i] != want[i] {
				t.Errorf("%s: row %d has class %d, want %d", s.Name, i, class[i], want[i])
			}
		}
	}
}
