// Command oodmon watches a stream of embeddings for out-of-distribution
// records and refits the head that scores them.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/oodmon/oodmon/internal/kernel"
	"github.com/spf13/cobra"
)

// The exit codes, as `oodmon help` documents them.
const (
	exitFailed  = 1 // the operation failed
	exitUsage   = 2 // the command line or the configuration is wrong
	exitRefused = 3 // retrain: the gate refused the candidate
)

// An exitError carries the exit code that its error stands for.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// withExit makes main exit with code when err reaches it.
func withExit(code int, err error) error { return &exitError{code, err} }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "oodmon",
		Short: "Watch the embeddings of a classifier for out-of-distribution inputs",
		Long: `oodmon reads the embeddings of a classifier from a Kafka topic, scores each by its
distance to the class prototypes of an IsoMax+ head, says which are out of
distribution at a false-positive rate that you choose, and refits the head.

Exit codes: 0 success, 1 failure, 2 wrong usage or configuration,
3 refused by the gate (retrain).`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	// A kernel that the environment asks for and the CPU lacks ends every command
	// here, with the reason.
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if _, err := kernel.Active(); err != nil {
			return withExit(exitUsage, err)
		}
		return nil
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return withExit(exitUsage, fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath()))
	})
	root.AddCommand(
		newDemoCommand(), newRunCommand(), newRetrainCommand(), newTrainCommand(), newEvalCommand(), newScoreCommand(),
		newModelCommand(), newIncidentsCommand(), newAlertsCommand(), newConfigCommand(), newBenchCommand(), newVersionCommand(),
	)
	refuseWrongUsage(root)
	return root
}

// refuseWrongUsage gives what cobra refuses before a command runs the exit code
// of wrong usage, in cmd and all below it.
func refuseWrongUsage(cmd *cobra.Command) {
	usage := func(cmd *cobra.Command, err error) error {
		if err == nil {
			return nil
		}
		return withExit(exitUsage, fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath()))
	}
	args := cmd.Args
	if cmd.HasSubCommands() {
		cmd.SuggestionsMinimumDistance = 2
		args = unknownCommand
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	cmd.Args = func(cmd *cobra.Command, given []string) error { return usage(cmd, args(cmd, given)) }
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return usage(cmd, cmd.ValidateRequiredFlags()) }
	for _, sub := range cmd.Commands() {
		refuseWrongUsage(sub)
	}
}

func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return errors.New(text)
}

func main() {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	// A file that may not grow is an error of the write, like a full disk: Go would
	// end the process.
	signal.Ignore(syscall.SIGXFSZ)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRootCommand().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "oodmon: "+err.Error())
	code := exitFailed
	if e, ok := errors.AsType[*exitError](err); ok {
		code = e.code
	}
	os.Exit(code)
}
