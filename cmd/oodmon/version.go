package main

import (
	"fmt"

	"github.com/oodmon/oodmon/monitor"
	"github.com/spf13/cobra"
)

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			version, goVersion := monitor.BuildVersion()
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "oodmon %s (%s)\n", version, goVersion)
			return err
		},
	}
}
