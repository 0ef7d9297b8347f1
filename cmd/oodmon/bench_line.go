package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/oodmon/oodmon/internal/bench"
	"github.com/spf13/cobra"
)

func newBenchLineCommand() *cobra.Command {
	opts := bench.LineOptions{}
	asJSON := false
	cmd := &cobra.Command{
		Use:   "line",
		Short: "Drive the whole line: fetch, decode, score, publish, commit",
		Long: `line fills a topic with random embeddings, one raw float32 message a record, lets
'oodmon run' drain it in a process of its own, and states records per second, the
CPU-seconds of that process per million records, and its peak memory. The broker
is embedded in this process, unless --brokers names another; there the command
makes topics of its own and deletes them at the end.

Each figure is the median over the runs. Time counts from the first record scored
to the last score acknowledged.`,
		Example: `  oodmon bench line --json
  oodmon bench line --brokers localhost:9092 --records 1000000 --dim 128 --classes 10
  oodmon bench line --brokers localhost:9092 --delivery exactly-once`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			opts.Program, opts.Progress = self, cmd.ErrOrStderr()
			if !isTerminal(cmd.ErrOrStderr()) {
				opts.Progress = io.Discard
			}
			result, err := bench.Line(cmd.Context(), opts)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), result)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintf(w, "broker\t%s\n", result.Broker)
			fmt.Fprintf(w, "records\t%d of %d float32, %d classes, %d partitions\n", result.Records, result.Dim, result.Classes, result.Partitions)
			fmt.Fprintf(w, "records/s\t%.0f\n", result.RecordsPerSecond)
			fmt.Fprintf(w, "CPU-seconds per million\t%.2f\n", result.CPUSecondsPerMillion)
			fmt.Fprintf(w, "peak memory\t%.0f MiB\n", float64(result.PeakMemoryBytes)/(1<<20))
			return w.Flush()
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&opts.Brokers, "brokers", nil, "a Kafka to use (default: an embedded broker)")
	f.IntVar(&opts.Records, "records", 200_000, "records a run")
	f.IntVar(&opts.Dim, "dim", 512, "floats a record")
	f.IntVar(&opts.Classes, "classes", 100, "prototypes of the model")
	f.IntVar(&opts.Partitions, "partitions", 4, "partitions of the topics")
	f.StringVar(&opts.Format, "format", "json", "how scores are published: json or arrow")
	f.StringVar(&opts.When, "when", "all", "which scores are published: all or ood")
	f.StringVar(&opts.Delivery, "delivery", "at-least-once", "output.delivery: at-least-once or exactly-once")
	f.IntVar(&opts.Runs, "runs", 3, "runs; each figure is their median")
	f.BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}
