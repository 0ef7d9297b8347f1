package main

import (
	"fmt"

	"github.com/oodmon/oodmon/alerts"
	"github.com/oodmon/oodmon/monitor"
	"github.com/spf13/cobra"
)

func newAlertsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "alerts",
		Short: "Work with the alerting rules",
	}
	cmd.AddCommand(newAlertsGenerateCommand())
	return cmd
}

func newAlertsGenerateCommand() *cobra.Command {
	var config, output string
	cmd := &cobra.Command{
		Use:   "generate --config FILE",
		Short: "Write the Prometheus rules that agree with a configuration",
		Long: `generate writes the alerting rules as a Prometheus rule file. Every number in them
that the configuration also knows comes from there: the section alerts,
input.stall_timeout and retrain.false_positive_rate. Generate them again when
one of these changes; where several monitors share a Prometheus and differ in
them, give each its own file.

The budget of the OOD rate, alerts.ood_budget, has to lie above the false-positive
rate, or a healthy stream uses it up, and below 1/14.4, or the fastest alert can
never fire. Exit code 2: it does not, or the file is wrong.`,
		Example: `  oodmon alerts generate --config oodmon.yml --output /etc/prometheus/oodmon.rules.yml
  oodmon alerts generate --output rules.yml && promtool check rules rules.yml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := monitor.LoadConfig(config)
			if err != nil {
				return withExit(exitUsage, err)
			}
			rules, err := alerts.Generate(cfg.AlertParameters())
			if err != nil {
				return withExit(exitUsage, fmt.Errorf("configuration %s: %w", config, err))
			}
			w, finish, err := openOutput(cmd, output)
			if err != nil {
				return err
			}
			_, err = w.Write(rules)
			if err = finish(err); err != nil {
				return fmt.Errorf("write the rules: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", "oodmon.yml", "configuration file")
	cmd.Flags().StringVar(&output, "output", "-", "write to this file; - is standard output")
	return cmd
}
