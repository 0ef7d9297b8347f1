package main

import (
	"fmt"
	"io"
	"os"
	"strings"
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
		Long: `line fills a topic with random embeddings, one raw float32 message a record (or,
with --vectors, Arrow streams of that many), lets 'oodmon run' drain it in a
process of its own, and states records per second, the CPU-seconds of that
process per million records, and its memory, over the whole drain. The broker is
embedded in this process, unless --brokers names another; there the command makes
topics of its own and deletes them at the end.

Each figure is the median over the runs. Rate and CPU time count from the first
record scored to the last score acknowledged. --read reads the same topic in
every run with kafka-go's Client.Fetch alone, to compare with.

With --rate the records are not a backlog: each is sent at a time that was fixed
before, whatever became of those sent earlier, so that a pause is charged to every
record that was due in it. Stated are the percentiles of the time from a record's
append to its score's append, by the broker's clock in whole milliseconds, and of
the time from when the record was due, by the clocks of both.`,
		Example: `  oodmon bench line --json
  oodmon bench line --brokers localhost:9092 --records 1000000 --dim 128 --classes 10 --read
  oodmon bench line --brokers localhost:9092 --records 1048576 --vectors 256 --format arrow
  oodmon bench line --brokers localhost:9092 --records 600000 --rate 20000
  oodmon bench line --brokers localhost:9092 --records 10000000 --dim 16 --runs 1
  oodmon bench line --brokers localhost:9092 --instances 2 --pin
  oodmon bench line --brokers localhost:9092 --delivery exactly-once`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.Validate(); err != nil {
				return withExit(exitUsage, err)
			}
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
			return printLine(cmd.OutOrStdout(), result)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&opts.Brokers, "brokers", nil, "a Kafka to use (default: an embedded broker)")
	f.StringVar(&opts.Topic, "topic", "", "a topic that holds --records already (default: one is made and filled)")
	f.IntVar(&opts.Records, "records", 200_000, "records a run")
	f.IntVar(&opts.Dim, "dim", 512, "floats a record")
	f.IntVar(&opts.Classes, "classes", 100, "prototypes of the model")
	f.IntVar(&opts.Partitions, "partitions", 4, "partitions of the topics")
	f.IntVar(&opts.Vectors, "vectors", 1, "records a message; more than one make it an Arrow stream")
	f.IntVar(&opts.Segments, "segments", 0, "different segments of the records (0: none)")
	f.Float64Var(&opts.Rate, "rate", 0, "records a second, offered on a schedule (0: a backlog)")
	f.IntVar(&opts.Instances, "instances", 1, "monitors that share the partitions")
	f.BoolVar(&opts.Pin, "pin", false, "keep each monitor on a core of its own, by taskset")
	f.BoolVar(&opts.Read, "read", false, "also read the topic with kafka-go alone, and compare")
	f.StringVar(&opts.Format, "format", "json", "how scores are published: json or arrow")
	f.StringVar(&opts.When, "when", "all", "which scores are published: all or ood")
	f.StringVar(&opts.Delivery, "delivery", "at-least-once", "output.delivery: at-least-once or exactly-once")
	f.IntVar(&opts.MaxRecords, "max-records", 0, "input.batch.max_records (0: the default)")
	f.IntVar(&opts.MaxBytes, "max-bytes", 0, "input.batch.max_bytes (0: the default)")
	f.IntVar(&opts.Runs, "runs", 3, "runs; each figure is their median")
	f.BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}

func printLine(out io.Writer, r *bench.LineResult) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "broker\t%s\n", r.Broker)
	fmt.Fprintf(w, "records\t%d of %d float32, %d a message, %d classes, %d partitions\n", r.Records, r.Dim, r.Vectors, r.Classes, r.Partitions)
	fmt.Fprintf(w, "records/s\t%.0f\n", r.RecordsPerSecond)
	fmt.Fprintf(w, "CPU-seconds per million\t%.2f\n", r.CPUSecondsPerMillion)
	fmt.Fprintf(w, "peak memory\t%.0f MiB\n", mebibytes(r.PeakMemoryBytes))
	if len(r.MemoryBytes) > 0 {
		var all []string
		for _, n := range r.MemoryBytes {
			all = append(all, fmt.Sprintf("%.0f", mebibytes(n)))
		}
		fmt.Fprintf(w, "memory over time\t%s MiB\n", strings.Join(all, " "))
	}
	if r.Read != nil {
		fmt.Fprintf(w, "kafka-go reading alone\t%.0f messages' records/s; the line reaches %.2f of it\n", r.Read.RecordsPerSecond, r.Read.Ratio)
	}
	for _, l := range []struct {
		name string
		*bench.Latency
	}{{"append to append", r.Latency}, {"due to append", r.LatencyFromSchedule}} {
		if l.Latency != nil {
			fmt.Fprintf(w, "%s\tp50 %.0f ms, p99 %.0f ms, p99.9 %.0f ms, max %.0f ms\n", l.name, l.P50, l.P99, l.P999, l.Max)
		}
	}
	return w.Flush()
}

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }
