package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/monitor"
	"github.com/oodmon/oodmon/trainer"
	"github.com/spf13/cobra"
)

func newRetrainCommand() *cobra.Command {
	var (
		config string
		every  time.Duration
		listen string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "retrain --config FILE",
		Short: "Refit the head, prove it against the model in service, publish it",
		Long: `retrain reads labelled embeddings from the topic or the files of retrain.data,
fits a candidate, calibrates it on records that the fit never saw, compares it
with the model in service on the same held-out records, and publishes it to the
registry if the rules of retrain.gate allow. A topic is read up to the offsets
that it has at the start. Running monitors take the new model in.

The registry's lock keeps two runs apart, and what comes of a run is recorded in
its history. Nothing half-written is ever in service.

With --listen it keeps running, and retrains when a monitor recommends it: name the
address in the monitor's drift.retrain_webhook. TLS and a password come from
web.config_file. Calls that come while it retrains are followed by one more run, if the
model that they are about is still in service. What is called for and not done when it
ends, it forgets. With --every or --listen a run that fails is tried twice more, five
minutes later each.

A candidate that equals the model in service, as one from unchanged data does, is
not published: monitors would gather their evidence of drift anew for nothing.

Exit codes: 0 published, or unchanged, 3 refused by the gate (the report says why), 1 failed,
2 wrong configuration.`,
		Example: `  oodmon retrain --config oodmon.yml
  oodmon retrain --config oodmon.yml --json > report.json
  oodmon retrain --config oodmon.yml --every 24h      # for hosts without cron
  oodmon retrain --config oodmon.yml --listen :9096   # when drift.retrain_webhook calls`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 0 {
				return withExit(exitUsage, fmt.Errorf("--every: %v must not be negative", every))
			}
			cfg, err := monitor.LoadConfig(config)
			if err != nil {
				return withExit(exitUsage, err)
			}
			if len(cfg.Retrain.Data.Files) == 0 && cfg.Retrain.Data.Topic == "" {
				return withExit(exitUsage, fmt.Errorf("configuration %s: retrain.data: neither files nor a topic is set", config))
			}
			if every == 0 && listen == "" {
				return retrainOnce(cmd.Context(), cmd, cfg, asJSON)
			}
			return keepRetraining(cmd, cfg, every, listen, asJSON)
		},
	}
	cmd.Flags().StringVar(&config, "config", "oodmon.yml", "configuration file")
	cmd.Flags().DurationVar(&every, "every", 0, "keep running, and retrain again so long after each run")
	cmd.Flags().StringVar(&listen, "listen", "", "keep running, and retrain when drift.retrain_webhook calls this address (host:port)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON on standard output")
	return cmd
}

// What may pass, brokers out of reach or the registry's lock, is tried twice more, as
// the chart's CronJob does.
const (
	retrainRetries    = 2
	retrainRetryPause = 5 * time.Minute
)

// keepRetraining retrains after each span of every, and begins at once; every 0: only
// when a monitor calls listen; listen "": nobody does.
func keepRetraining(cmd *cobra.Command, cfg *monitor.Config, every time.Duration, listen string, asJSON bool) (err error) {
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	var calls <-chan monitor.RetrainCall
	if listen != "" {
		receiver, failed := monitor.ListenForRetraining(cfg, listen, stop, slog.Default())
		if failed != nil {
			return fmt.Errorf("--listen: %w", failed)
		}
		defer func() {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			if failed := receiver.Close(closing); failed != nil {
				err = fmt.Errorf("--listen: %w", failed)
			}
		}()
		calls = receiver.Calls()
		slog.Info("waiting for calls to retrain", "address", receiver.Address())
	}
	models, err := model.OpenRegistry(cfg.Model.Registry)
	if err != nil {
		return err
	}
	if every == 0 && !due(ctx, 0, calls, models) {
		return nil
	}
	for retries := 0; ; {
		failed := retrainOnce(ctx, cmd, cfg, asJSON)
		if ctx.Err() != nil {
			return nil
		}
		if failed != nil {
			slog.Error("retraining ended without a new model", "error", failed)
		}
		pause := every
		if _, refused := errors.AsType[*exitError](failed); failed == nil || refused || retries == retrainRetries {
			retries = 0
		} else {
			retries++
			if pause == 0 || pause > retrainRetryPause {
				pause = retrainRetryPause
			}
		}
		if !due(ctx, pause, calls, models) {
			return nil
		}
	}
}

// due waits until the next run is: after pause, where it is not 0, or with a call. It
// reports false when ctx is done.
func due(ctx context.Context, pause time.Duration, calls <-chan monitor.RetrainCall, models *model.Registry) bool {
	var again <-chan time.Time
	if pause > 0 {
		again = time.After(pause)
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-again:
			return true
		case call := <-calls:
			// Another instance may have called for the same drift before.
			current, err := models.Current(ctx)
			if err != nil || current == call.Model {
				return true
			}
			slog.Info("not retrained: another model is in service by now", "incident", call.ID, "model", call.Model, "in_service", current)
		}
	}
}

func retrainOnce(ctx context.Context, cmd *cobra.Command, cfg *monitor.Config, asJSON bool) error {
	progress, done := progressBar(cmd.ErrOrStderr(), "fitting")
	report, err := trainer.Retrain(ctx, cfg.Retrain, trainer.Broker{
		Kafka: cfg.Kafka,
		Features: featurizer.Config{
			Codec: cfg.Input.Codec, MaxMessageBytes: cfg.Input.MaxMessageBytes, IDHeader: cfg.Input.IDHeader, SegmentHeader: cfg.Input.SegmentHeader,
		},
		MaxRecords: cfg.Input.Batch.MaxRecords, MaxBytes: cfg.Input.Batch.MaxBytes,
	}, cfg.Model.Registry, progress)
	done()
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return fmt.Errorf("retrain: interrupted: %w", err)
		}
		return fmt.Errorf("retrain: %w", err)
	}
	if asJSON {
		err = writeJSON(cmd.OutOrStdout(), report)
	} else {
		_, err = fmt.Fprint(cmd.OutOrStdout(), report.Text())
	}
	if err != nil {
		return err
	}
	if report.Result == model.EventRefused {
		return withExit(exitRefused, errors.New(report.Line()))
	}
	_, err = fmt.Fprintln(cmd.ErrOrStderr(), "oodmon: "+report.Line())
	return err
}
