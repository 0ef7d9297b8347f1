package main

import (
	"errors"
	"fmt"
	"net/url"

	"github.com/oodmon/oodmon/monitor"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Work with the configuration file",
	}
	show := false
	check := &cobra.Command{
		Use:   "check FILE",
		Short: "Say what is wrong with a configuration file",
		Long: `check reads the file as 'oodmon run' would, with unknown keys refused, and prints
everything that is wrong with it. It connects to nothing. Exit code 2: the file
is wrong. What may be right on another machine is a warning on standard error: a
file or folder that it names and that is not here, and a budget of the OOD rate
for which 'oodmon alerts generate' can make no rules. With --print it writes the whole configuration, defaults included. That
holds no secret: passwords are named by file or environment variable, and neither
is read; of the webhooks' addresses, which may hold a token, only the host is shown.`,
		Example: `  oodmon config check oodmon.yml
  oodmon config check --print oodmon.yml`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := monitor.LoadConfig(args[0])
			if err != nil {
				return withExit(exitUsage, err)
			}
			for _, warning := range cfg.Warnings() {
				fmt.Fprintf(cmd.ErrOrStderr(), "oodmon: warning: %s\n", warning)
			}
			if show {
				hidePath(&cfg.Alerts.Evaluate.WebhookURL)
				hidePath(&cfg.Drift.RetrainWebhook.URL)
				enc := yaml.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent(2)
				return errors.Join(enc.Encode(cfg), enc.Close())
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: OK\n", args[0])
			return err
		},
	}
	check.Flags().BoolVar(&show, "print", false, "print the configuration with its defaults")
	cmd.AddCommand(check)
	return cmd
}

// hidePath leaves of an address what holds no secret.
func hidePath(address *string) {
	if u, err := url.Parse(*address); err == nil && u.Host != "" { // the configuration was validated
		*address = u.Scheme + "://" + u.Host + "/<secret>"
	}
}
