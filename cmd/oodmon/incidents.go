package main

import (
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/oodmon/oodmon/monitor"
	"github.com/spf13/cobra"
)

func newIncidentsCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "incidents",
		Short: "List and show the alarms of drift that a monitor has kept",
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", "", "folder of incidents, as in drift.incidents.dir (required)")
	must(cmd.MarkPersistentFlagRequired("dir"))
	cmd.AddCommand(newIncidentsListCommand(&dir), newIncidentsShowCommand(&dir))
	return cmd
}

func newIncidentsListCommand(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list --dir DIR",
		Short:   "List incidents, the newest first",
		Example: "  oodmon incidents list --dir /var/lib/oodmon/incidents",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := os.Stat(*dir); err != nil { // a monitor makes it at its start
				return fmt.Errorf("--dir: %w", err)
			}
			all, err := monitor.Incidents(*dir)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tSINCE\tSEGMENT\tTOP FEATURE\tOOD BEFORE\tOOD AFTER")
			for _, i := range all {
				top := ""
				if len(i.Features) > 0 {
					top = i.Features[0].Feature
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.2f %%\t%.2f %%\n", i.ID, i.Onset.Time.UTC().Format(time.RFC3339), i.Segment, top, 100*i.Onset.OODRateBefore, 100*i.Onset.OODRateAfter)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the incidents as JSON")
	return cmd
}

func newIncidentsShowCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "show --dir DIR ID",
		Short:   "Show all that is kept of one incident, as JSON",
		Example: "  oodmon incidents show --dir /var/lib/oodmon/incidents 20260102T030405.000000Z-shift",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := monitor.Incidents(*dir)
			if err != nil {
				return err
			}
			for _, i := range all {
				if i.ID == args[0] {
					return writeJSON(cmd.OutOrStdout(), i)
				}
			}
			return fmt.Errorf("no incident %s in %s; 'oodmon incidents list' names them", args[0], *dir)
		},
	}
}
