package trainer

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/oodmon/oodmon/featurizer"
)

// A Source gives records of featurizer.EmbeddingSchema, one after the other. A
// record is valid until fn returns. name stands for where its rows came from,
// in errors.
type Source func(ctx context.Context, fn func(name string, rec arrow.Record) error) error

// Files is a Source of files that featurizer.OpenFile reads, in their order.
func Files(paths ...string) Source {
	return func(ctx context.Context, fn func(string, arrow.Record) error) error {
		for _, path := range paths {
			if err := readFile(ctx, path, fn); err != nil {
				return err
			}
		}
		return nil
	}
}

func readFile(ctx context.Context, path string, fn func(string, arrow.Record) error) (err error) {
	f, err := featurizer.OpenFile(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for ctx.Err() == nil {
		rec, err := f.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		err = fn(path, rec)
		rec.Release()
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("read %s: %w", path, context.Cause(ctx))
}
