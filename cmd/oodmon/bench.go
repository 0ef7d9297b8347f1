package main

import "github.com/spf13/cobra"

func newBenchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure oodmon on this machine",
	}
	cmd.AddCommand(newBenchLineCommand(), newBenchKernelCommand())
	return cmd
}
