package main

import (
	"fmt"

	"github.com/oodmon/oodmon/monitor"
	"github.com/spf13/cobra"
)

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Work with the configuration file",
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "check FILE",
		Short: "Say what is wrong with a configuration file",
		Long: `check reads the file as 'oodmon run' would, with unknown keys refused, and prints
everything that is wrong with it. It connects to nothing. Exit code 2: the file
is wrong.`,
		Example: `  oodmon config check oodmon.yml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := monitor.LoadConfig(args[0]); err != nil {
				return withExit(exitUsage, err)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: OK\n", args[0])
			return err
		},
	})
	return cmd
}
