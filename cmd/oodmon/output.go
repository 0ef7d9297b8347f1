package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/oodmon/oodmon/internal/atomicfile"
	"github.com/spf13/cobra"
)

// writeJSON writes v for scripts: indented, one final newline.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// openOutput returns where --output is written to, and what ends it with the
// error so far; - is standard output.
func openOutput(cmd *cobra.Command, path string) (io.Writer, func(error) error, error) {
	if path == "-" {
		w := bufio.NewWriterSize(cmd.OutOrStdout(), 1<<16)
		return w, func(err error) error { return errors.Join(err, w.Flush()) }, nil
	}
	w, finish, err := createFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("--output: %w", err)
	}
	return w, finish, nil
}

// createFile returns where to write the content of a file, and what ends it with
// the error so far. A file is replaced at the end and all at once, so that a
// failure or a crash of the machine leaves the old one; what is no file, like a
// pipe, is written to.
func createFile(path string) (io.Writer, func(error) error, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, nil, err
		}
		w := bufio.NewWriterSize(f, 1<<16)
		return w, func(err error) error { return errors.Join(err, w.Flush(), f.Close()) }, nil
	}
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return nil, nil, err
	}
	w := bufio.NewWriterSize(f, 1<<16)
	return w, func(err error) error { return f.Finish(errors.Join(err, w.Flush())) }, nil
}
