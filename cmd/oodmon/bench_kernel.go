package main

import (
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/oodmon/oodmon/internal/bench"
	"github.com/spf13/cobra"
)

func newBenchKernelCommand() *cobra.Command {
	opts := bench.KernelOptions{}
	var shapes []string
	megabytes, asJSON := 0, false
	cmd := &cobra.Command{
		Use:   "kernel",
		Short: "Find nearest prototypes by every kernel that this CPU can run, and by rivals",
		Long: `kernel scores random embeddings against random prototypes, by every implementation
of the scoring kernel that this CPU can run and by the matrix products of gonum and
gorgonia followed by a maximum. It states useful GFLOP/s (2 x dimensions x classes
a vector), vectors a second, and the shares of what the cores do at most: float32
multiply-adds, and reading memory, measured in the same run.

Each figure is the median over the runs. bench/scoring has OpenBLAS and PyTorch too.`,
		Example: `  oodmon bench kernel --json
  oodmon bench kernel --shape 384,150 --megabytes 1 --rivals=false`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, s := range shapes {
				shape, err := parseShape(s)
				if err != nil {
					return withExit(exitUsage, err)
				}
				opts.Shapes = append(opts.Shapes, shape)
			}
			if len(opts.Shapes) == 0 {
				opts.Shapes = bench.KernelShapes()
			}
			opts.Bytes = megabytes << 20
			if err := opts.Validate(); err != nil {
				return withExit(exitUsage, err)
			}
			progress := func(string) {}
			if isTerminal(cmd.ErrOrStderr()) {
				progress = func(what string) { fmt.Fprintf(cmd.ErrOrStderr(), "\r\x1b[K%s", what) }
				defer fmt.Fprint(cmd.ErrOrStderr(), "\r\x1b[K")
			}
			results, err := bench.Kernel(cmd.Context(), opts, progress)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), results)
			}
			progress("")
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', tabwriter.AlignRight)
			fmt.Fprintln(w, "implementation\tdimensions\tclasses\tthreads\tGFLOP/s\tvectors/s\tof FMA peak\tof read bandwidth\t")
			for _, r := range results {
				fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%.1f\t%.0f\t%.2f\t%.2f\t\n", r.Impl, r.D, r.C, r.Threads, r.GFLOPS, r.VectorsPerSecond, r.ShareOfFMAPeak, r.ShareOfReadBandwidth)
			}
			return w.Flush()
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&shapes, "shape", nil, "dimensions,classes; may be given again (default: seven from 64,10 to 2048,1000)")
	f.IntSliceVar(&opts.Threads, "threads", []int{1}, "numbers of threads")
	f.IntVar(&megabytes, "megabytes", 128, "size of the embeddings; 1 stays in the cache")
	f.IntVar(&opts.Runs, "runs", 10, "runs; each figure is their median")
	f.BoolVar(&opts.Rivals, "rivals", true, "measure gonum and gorgonia too")
	f.BoolVar(&asJSON, "json", false, "print the results as JSON")
	return cmd
}

func parseShape(s string) (shape [2]int, err error) {
	d, c, ok := strings.Cut(s, ",")
	if ok {
		if shape[0], err = strconv.Atoi(d); err == nil {
			shape[1], err = strconv.Atoi(c)
		}
	}
	if !ok || err != nil {
		return shape, fmt.Errorf("--shape %s: expected two integers, dimensions,classes", s)
	}
	return shape, nil
}
