package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/oodmon/oodmon/monitor"
	"github.com/spf13/cobra"
)

func newRunCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Score a topic's embeddings until SIGTERM",
		Long: `run subscribes to input.topic, scores every record by the registry's current
model, publishes the scores to output.topic, what cannot be scored to
dead_letter.topic, and serves metrics, health checks and a status page.

SIGTERM or SIGINT: the batch in hand is finished and committed and the group left
within shutdown.drain_timeout; the last incidents and answers have 5 s more.
SIGHUP: the registry is read now.`,
		Example: `  oodmon run --config oodmon.yml
  kill -HUP $(pidof oodmon)     # take in the registry's current model now`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := monitor.LoadConfig(config)
			if err != nil {
				return withExit(exitUsage, err)
			}
			if os.Getenv("GOGC") == "" {
				// What the line holds is used again from batch to batch, so that
				// collections are rare: a few more of them take no time that is seen.
				debug.SetGCPercent(75)
			}
			if cfg.MemoryLimit > 0 {
				debug.SetMemoryLimit(cfg.MemoryLimit)
			}
			// From here on: a SIGHUP while brokers are being reached ends nothing.
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			m, err := monitor.New(cmd.Context(), cfg, slog.Default())
			if cmd.Context().Err() != nil {
				slog.Info("stopped before it was ready")
				return nil
			}
			if err != nil {
				return err
			}
			ctx, stop := context.WithCancel(cmd.Context())
			var reloading sync.WaitGroup
			reloading.Go(func() { reloadOnHangup(ctx, m, hangup) })
			err = m.Run(ctx)
			stop()
			reloading.Wait()
			if err == nil {
				slog.Info("stopped") // and not killed, which tells nothing
			}
			return err
		},
	}
	cmd.Flags().StringVar(&config, "config", "oodmon.yml", "configuration file")
	return cmd
}

// reloadOnHangup reads the registry at each SIGHUP until ctx is done.
func reloadOnHangup(ctx context.Context, m *monitor.Monitor, hangup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			_ = m.Reload(ctx) // logged and counted
		}
	}
}
