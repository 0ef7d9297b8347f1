package featurizer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/parquet"
)

// The formats of files.
const (
	FormatArrow   = "arrow"
	FormatParquet = "parquet"
	FormatNPY     = "npy"
	FormatJSONL   = "jsonl"
)

// Formats are all of them.
var Formats = []string{FormatArrow, FormatParquet, FormatNPY, FormatJSONL}

const (
	chunkRows       = 4096     // rows of one record, at most
	chunkValues     = 16 << 20 // values of one, but it has one row at least
	maxFileMetadata = 16 << 20 // of one message of an IPC file
	maxFileBody     = 1 << 30
	maxFileRows     = 1 << 28
	maxLine         = 16 << 20 // of JSON lines
)

// A FileReader reads a file's embeddings as records of EmbeddingSchema, of at
// most 4096 rows. Its memory does not grow with the file's length, but with
// the largest record batch of an Arrow file.
type FileReader struct {
	name    string
	columns columns
	rows    iter.Seq2[fileRow, error]
	pull    func() (fileRow, error, bool)
	stop    func()
	close   func() error
	read    int64
	ahead   *fileRow // the row that told the dimension
	done    bool
}

// A fileRow is one row; its slices are valid until the next.
type fileRow struct {
	embedding []float32
	id        optional
	label     optional
	segment   optional
	micros    int64
}

// OpenFile opens a file of embeddings. The format goes by the extension:
// .arrow, .feather, .arrows and .ipc (IPC file or stream), .parquet, .npy,
// .jsonl and .ndjson. The columns or keys are those of EmbeddingSchema, of
// which only embedding is needed; a missing id is the row's number, counted
// from 0. A .npy file holds the matrix alone: its labels come, if they are
// there, from NAME.labels.txt beside NAME.npy, one a line.
func OpenFile(path string) (*FileReader, error) {
	format, err := formatOf(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err // names the path and the operation
	}
	var labels io.ReadCloser
	if format == FormatNPY {
		beside, err := os.Open(strings.TrimSuffix(path, filepath.Ext(path)) + ".labels.txt")
		if err == nil {
			labels = beside
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, errors.Join(err, f.Close())
		}
	}
	r, err := newFileReader(path, format, f, labels)
	if err != nil {
		if labels != nil {
			err = errors.Join(err, labels.Close())
		}
		return nil, errors.Join(err, f.Close())
	}
	r.close = func() error {
		if labels != nil {
			return errors.Join(f.Close(), labels.Close())
		}
		return f.Close()
	}
	return r, nil
}

// ReadStream reads embeddings of a format from r, which name stands for in
// errors. Parquet needs a file.
func ReadStream(name, format string, r io.Reader) (*FileReader, error) {
	return newFileReader(name, format, r, nil)
}

func formatOf(path string) (string, error) {
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".arrow", ".feather", ".arrows", ".ipc":
		return FormatArrow, nil
	case ".parquet":
		return FormatParquet, nil
	case ".npy":
		return FormatNPY, nil
	case ".jsonl", ".ndjson":
		return FormatJSONL, nil
	default:
		return "", fmt.Errorf("%s: extension %q is not one of .arrow, .arrows, .ipc, .feather, .parquet, .npy, .jsonl, .ndjson", path, ext)
	}
}

func newFileReader(name, format string, r io.Reader, labels io.Reader) (*FileReader, error) {
	f := &FileReader{name: name, close: func() error { return nil }}
	switch format {
	case FormatArrow:
		f.rows = arrowRows(r)
	case FormatJSONL:
		f.rows = jsonRows(r)
	case FormatNPY:
		f.rows = npyRows(r, labels)
	case FormatParquet:
		file, ok := r.(parquet.ReaderAtSeeker)
		if !ok {
			return nil, fmt.Errorf("%s: Parquet is read from its end: give a file, not a stream", name)
		}
		f.rows = parquetRows(file)
	default:
		return nil, fmt.Errorf("%s: format %q is not one of %q", name, format, Formats)
	}
	f.pull, f.stop = iter.Pull2(f.rows)
	// The first row tells the dimension.
	row, err, ok := f.pull()
	switch {
	case err != nil:
		f.stop()
		return nil, fmt.Errorf("%s: %w", name, err)
	case !ok:
		f.stop()
		return nil, fmt.Errorf("%s: holds no rows", name)
	case len(row.embedding) == 0:
		f.stop()
		return nil, fmt.Errorf("%s: row 0: the embedding is empty", name)
	}
	f.columns = newColumns(len(row.embedding))
	f.ahead = &row
	return f, nil
}

// Dim returns the dimension of the embeddings.
func (f *FileReader) Dim() int { return f.columns.dim }

// Next returns the next record, or io.EOF. The record is valid until the next
// call, and the caller releases it. An error names the file and the row.
func (f *FileReader) Next() (arrow.Record, error) {
	f.columns.truncate(0)
	for f.columns.len() < min(chunkRows, max(1, chunkValues/f.columns.dim)) && !f.done {
		row, err, ok := fileRow{}, error(nil), true
		if f.ahead != nil {
			row, f.ahead = *f.ahead, nil
		} else {
			row, err, ok = f.pull()
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		if !ok {
			f.done = true
			break
		}
		if len(row.embedding) != f.columns.dim {
			return nil, fmt.Errorf("%s: row %d: the embedding has %d values, the rows before have %d", f.name, f.read, len(row.embedding), f.columns.dim)
		}
		f.columns.add(row.embedding)
		id := row.id.text
		if !row.id.valid {
			id = strconv.AppendInt(nil, f.read, 10)
		}
		f.columns.close(id, row.label, row.segment, row.micros, place{offset: f.read})
		f.read++
	}
	if f.columns.len() == 0 {
		return nil, io.EOF
	}
	return f.columns.record(), nil
}

// Close closes the file.
func (f *FileReader) Close() error {
	f.stop()
	return f.close()
}

// arrowRows reads an IPC file or stream. A file is a stream between two magic
// words, so both are read from front to back, and verified alike.
func arrowRows(r io.Reader) iter.Seq2[fileRow, error] {
	return func(yield func(fileRow, error) bool) {
		in := bufio.NewReaderSize(r, 64<<10)
		magic, err := in.Peek(8)
		file := err == nil && string(magic) == fileMagic+"\x00\x00"
		if file {
			_, err = in.Discard(8)
		}
		if err != nil {
			yield(fileRow{}, fmt.Errorf("not an Arrow IPC file: %w", unexpected(err)))
			return
		}
		limits := ipcLimits{metadata: maxFileMetadata, body: maxFileBody, rows: maxFileRows}
		read := 0
		stopped := errors.New("stopped")
		err = readIPC(in, limits, file, func(rec arrow.Record) error {
			src, err := newSource(rec)
			if err != nil {
				return err
			}
			for i := range int(rec.NumRows()) {
				values, err := src.embedding(i)
				if err != nil {
					return fmt.Errorf("row %d: %w", read, err)
				}
				micros, _, err := src.micros(i)
				if err != nil {
					return fmt.Errorf("row %d: %w", read, err)
				}
				if !yield(fileRow{values, src.text(colID, i), src.text(colLabel, i), src.text(colSegment, i), micros}, nil) {
					return stopped
				}
				read++
			}
			return nil
		})
		if err != nil && !errors.Is(err, stopped) {
			yield(fileRow{}, err)
		}
	}
}

// jsonRows reads one record a line; empty lines are skipped.
func jsonRows(r io.Reader) iter.Seq2[fileRow, error] {
	return func(yield func(fileRow, error) bool) {
		lines := bufio.NewScanner(r)
		lines.Buffer(make([]byte, 0, 64<<10), maxLine)
		var rec jsonRecord
		n := 0
		for lines.Scan() {
			n++
			line := trimSpace(lines.Bytes())
			if len(line) == 0 {
				continue
			}
			if err := rec.decode(line); err != nil {
				yield(fileRow{}, fmt.Errorf("line %d: %w", n, err))
				return
			}
			if !yield(fileRow{rec.Embedding, rec.ID.optional, rec.Label.optional, rec.Segment.optional, rec.Timestamp.micros}, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			if errors.Is(err, bufio.ErrTooLong) {
				err = fmt.Errorf("longer than %d bytes", maxLine)
			}
			yield(fileRow{}, fmt.Errorf("line %d: %w", n+1, err))
		}
	}
}
