package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/oodmon/oodmon/internal/kernel"
	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/gonum"
	"gorgonia.org/tensor"
)

// KernelOptions say what Kernel measures.
type KernelOptions struct {
	Shapes  [][2]int // dimensions and classes
	Threads []int
	Bytes   int // of the embeddings
	Runs    int
	Rivals  bool // gonum and gorgonia as well
}

// KernelShapes are the shapes that are measured by default.
func KernelShapes() [][2]int {
	return [][2]int{{64, 10}, {128, 10}, {512, 10}, {512, 100}, {768, 100}, {512, 1000}, {2048, 1000}}
}

// A KernelResult is the rate at which one implementation finds nearest
// prototypes.
type KernelResult struct {
	Impl             string  `json:"impl"`
	D                int     `json:"d"`
	C                int     `json:"c"`
	Threads          int     `json:"threads"`
	XBytes           int     `json:"x_bytes"`
	GFLOPS           float64 `json:"gflops"` // useful: 2·D·C operations a vector
	VectorsPerSecond float64 `json:"vectors_per_second"`
	// Shares of what as many cores do at most, measured in the same run: of the
	// vectors that the implementation uses, or for others the best there are.
	ShareOfFMAPeak       float64 `json:"share_of_fma_peak"`
	ShareOfReadBandwidth float64 `json:"share_of_read_bandwidth"`
}

// A KernelScorer finds the nearest prototypes of rows in one way. It allocates
// what it needs for one goroutine.
type KernelScorer struct {
	Name  string
	peak  *kernel.Implementation // whose peak it is compared with
	rival bool
	// New returns a function for one goroutine.
	New func(prototypes []float32, c, d int) (func(x, dist []float32, class []int32), error)
}

// KernelScorers returns every implementation that this CPU can run, then the
// rivals: a matrix product by gonum, or by gorgonia's tensor, of normalised
// rows in blocks of 4096, followed by the maximum of each row.
func KernelScorers() []KernelScorer {
	var all []KernelScorer
	available := kernel.Available()
	for _, impl := range available {
		peak := impl
		if impl.String() == "go" {
			peak = available[0]
		}
		all = append(all, KernelScorer{Name: impl.String(), peak: peak, New: func(p []float32, c, d int) (func(x, dist []float32, class []int32), error) {
			packed, err := impl.Pack(p, c, d)
			if err != nil {
				return nil, err
			}
			var w kernel.Workspace
			return func(x, dist []float32, class []int32) { packed.Nearest(&w, x, dist, class) }, nil
		}})
	}
	return append(all,
		KernelScorer{Name: "gonum", peak: available[0], rival: true, New: func(p []float32, c, d int) (func(x, dist []float32, class []int32), error) {
			return product(p, c, d, func(x, p, out []float32, n int) error {
				gonum.Implementation{}.Sgemm(blas.NoTrans, blas.Trans, n, c, d, 1, x, d, p, d, 0, out, c)
				return nil
			}), nil
		}},
		KernelScorer{Name: "gorgonia", peak: available[0], rival: true, New: func(p []float32, c, d int) (func(x, dist []float32, class []int32), error) {
			return product(p, c, d, func(x, p, out []float32, n int) error {
				a := tensor.New(tensor.WithShape(n, d), tensor.WithBacking(x))
				b := tensor.New(tensor.WithShape(c, d), tensor.WithBacking(p))
				if err := b.T(); err != nil {
					return err
				}
				_, err := tensor.MatMul(a, b, tensor.WithReuse(tensor.New(tensor.WithShape(n, c), tensor.WithBacking(out))))
				return err
			}), nil
		}},
	)
}

// product is the usual way: normalise, multiply, take the maximum.
func product(p []float32, c, d int, multiply func(x, p, out []float32, n int) error) func(x, dist []float32, class []int32) {
	const block = 4096
	unit, out := slices.Clone(p), make([]float32, block*c)
	for i := range c {
		row := blas32.Vector{N: d, Inc: 1, Data: unit[i*d : (i+1)*d]}
		blas32.Scal(1/blas32.Nrm2(row), row)
	}
	rows := make([]float32, block*d)
	return func(x, dist []float32, class []int32) {
		for first := 0; first < len(dist); first += block {
			n := min(block, len(dist)-first)
			copy(rows, x[first*d:(first+n)*d])
			for i := range n {
				row := blas32.Vector{N: d, Inc: 1, Data: rows[i*d : (i+1)*d]}
				blas32.Scal(1/blas32.Nrm2(row), row)
			}
			if err := multiply(rows[:n*d], unit, out[:n*c], n); err != nil {
				panic(err) // the shapes are ours
			}
			for i := range n {
				best := 0
				row := out[i*c : (i+1)*c]
				for k, v := range row {
					if v > row[best] {
						best = k
					}
				}
				dist[first+i], class[first+i] = row[best], int32(best)
			}
		}
	}
}

// Validate reports the first option that cannot work.
func (o *KernelOptions) Validate() error {
	if o.Bytes < 1 || o.Runs < 1 || len(o.Shapes) == 0 {
		return fmt.Errorf("bench kernel: %d bytes, %d runs and %d shapes: each must be at least 1", o.Bytes, o.Runs, len(o.Shapes))
	}
	for _, s := range o.Shapes {
		if s[0] < 1 || s[1] < 1 || o.Bytes/4 < s[0] {
			return fmt.Errorf("bench kernel: shape %d,%d: expected at least one dimension and class, and a row of at most %d bytes", s[0], s[1], o.Bytes)
		}
	}
	for _, threads := range o.Threads {
		if threads < 1 {
			return fmt.Errorf("bench kernel: %d threads: expected at least 1", threads)
		}
	}
	return nil
}

// Kernel measures how fast nearest prototypes are found. Each figure is the
// median of the runs; progress is told before each.
func Kernel(ctx context.Context, opts KernelOptions, progress func(string)) ([]KernelResult, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	r := rand.New(rand.NewPCG(1, 1))
	x := make([]float32, opts.Bytes/4)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	// The bandwidth is that of memory, however small x is.
	memory := x
	if least := 32 << 20; len(memory) < least {
		memory = make([]float32, least)
		for i := range memory {
			memory[i] = 1
		}
	}
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	var results []KernelResult
	for _, threads := range opts.Threads {
		runtime.GOMAXPROCS(threads)
		peaks, bandwidth := map[*kernel.Implementation]float64{}, 0.
		for _, impl := range kernel.Available() {
			progress(fmt.Sprintf("%v: peak and bandwidth, %d threads", impl, threads))
			peaks[impl] = together(threads, func(int) float64 { return impl.PeakFLOPS(200 * time.Millisecond) })
			part := len(memory) / threads
			bandwidth = max(bandwidth, together(threads, func(i int) float64 {
				return impl.ReadBandwidth(memory[i*part:(i+1)*part], 400*time.Millisecond)
			}))
		}
		for _, s := range opts.Shapes {
			d, c := s[0], s[1]
			p := make([]float32, c*d)
			for i := range p {
				p[i] = float32(r.NormFloat64())
			}
			for _, scorer := range KernelScorers() {
				if scorer.rival && !opts.Rivals {
					continue
				}
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				progress(fmt.Sprintf("%s: %d dimensions, %d classes, %d threads", scorer.Name, d, c, threads))
				rate, err := measure(scorer, x[:len(x)/d*d], p, c, d, threads, opts.Runs)
				if err != nil {
					return nil, fmt.Errorf("bench kernel: %w", err)
				}
				result := KernelResult{Impl: scorer.Name, D: d, C: c, Threads: threads, XBytes: 4 * (len(x) / d * d), VectorsPerSecond: rate, GFLOPS: 2 * float64(d) * float64(c) * rate / 1e9}
				if peak := peaks[scorer.peak]; peak > 0 {
					result.ShareOfFMAPeak = result.GFLOPS * 1e9 / peak
				}
				if bandwidth > 0 {
					result.ShareOfReadBandwidth = 4 * float64(d) * rate / bandwidth
				}
				results = append(results, result)
			}
		}
	}
	return results, nil
}

// together runs f in so many goroutines at a time and adds up what they return.
func together(n int, f func(i int) float64) float64 {
	var wait sync.WaitGroup
	values, sum := make([]float64, n), 0.
	for i := range n {
		wait.Go(func() { values[i] = f(i) })
	}
	wait.Wait()
	for _, v := range values {
		sum += v
	}
	return sum
}

// longestRun is about how long a run may take: slow ways get fewer rows.
const longestRun = 100 * time.Millisecond

// measure returns the vectors a second, the median of the runs.
func measure(scorer KernelScorer, x, p []float32, c, d, threads, runs int) (float64, error) {
	n := len(x) / d
	dist, class := make([]float32, n), make([]int32, n)
	score := make([]func(x, dist []float32, class []int32), threads)
	for i := range score {
		var err error
		if score[i], err = scorer.New(p, c, d); err != nil {
			return 0, err
		}
	}
	run := func(n int) time.Duration {
		part := (n + threads - 1) / threads
		start := time.Now()
		together(threads, func(i int) float64 {
			from, to := min(i*part, n), min((i+1)*part, n)
			score[i](x[from*d:to*d], dist[from:to], class[from:to])
			return 0
		})
		return time.Since(start)
	}
	// The first run warms up, and says how many rows, or repetitions, are enough.
	probe := min(n, 256)
	run(probe)
	perRow := float64(run(probe)) / float64(probe)
	rows := min(n, max(probe, int(float64(longestRun)/perRow)))
	repeats := max(1, int(20*float64(time.Millisecond)/(perRow*float64(rows))))
	rates := make([]float64, runs)
	for i := range rates {
		var took time.Duration
		for range repeats {
			took += run(rows)
		}
		rates[i] = float64(rows*repeats) / took.Seconds()
	}
	slices.Sort(rates)
	return (rates[(runs-1)/2] + rates[runs/2]) / 2, nil
}
