package main

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/oodmon/oodmon/internal/demo"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func newDemoCommand() *cobra.Command {
	var (
		length  time.Duration
		asJSON  bool
		address string
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See it work: a broker, a stream, a head, a monitor, and unknown digits",
		Long: `demo starts an embedded Kafka broker, fits an IsoMax+ head to embeddings of the
handwritten digits 0 to 7, and runs the monitor on a live stream of them. After a
while the digits 8 and 9 join the stream, which no model here has ever seen. At
the end it compares what was found with what was sent.

It needs nothing but this program, and leaves nothing behind. Exit code 0 only
if every record that was sent was scored or dead-lettered, once.`,
		Example: `  oodmon demo
  oodmon demo --for 0            # until Ctrl-C: time to look at the status page
  oodmon demo --for 20s --json   # the summary, for scripts`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if length < 0 {
				return withExit(exitUsage, errors.New("--for must not be negative"))
			}
			opts := demo.Options{For: length, Address: address, Out: cmd.OutOrStdout(), Redraw: isTerminal(cmd.OutOrStdout())}
			level := slog.LevelError // the story tells of alerts itself
			if asJSON {
				opts.Out, opts.Redraw = io.Discard, false
			}
			opts.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			summary, err := demo.Run(cmd.Context(), opts)
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), summary)
			} else {
				err = summary.WriteText(cmd.OutOrStdout())
			}
			if err == nil && !summary.CountsAddUp {
				err = errors.New("demo: the counts do not add up")
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&length, "for", 40*time.Second, "how long records are sent; 0: until Ctrl-C")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print nothing but the summary, as JSON")
	cmd.Flags().StringVar(&address, "listen-address", "", "where to serve the status page and the metrics (default 127.0.0.1:9095, or any free port)")
	return cmd
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
