package featurizer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"regexp"
	"strconv"

	"github.com/oodmon/oodmon/internal/arrowcol"
	"github.com/oodmon/oodmon/internal/kernel"
)

const (
	maxNPYHeader = 64 << 10
	maxDimension = 1 << 20
)

var npyHeader = regexp.MustCompile(`^\{'descr': '([^']*)', 'fortran_order': (True|False), 'shape': \(([0-9]+), ([0-9]+)\), ?\} *\n?$`)

// npyRows reads a matrix of NumPy's format
// (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html):
// float16, float32 or float64, little-endian, C order. labels is nil or holds
// one label a line.
func npyRows(r, labels io.Reader) iter.Seq2[fileRow, error] {
	return func(yield func(fileRow, error) bool) {
		in := bufio.NewReaderSize(r, 64<<10)
		rows, dim, size, err := readNPYHeader(in)
		if err != nil {
			yield(fileRow{}, err)
			return
		}
		var lines *bufio.Scanner
		if labels != nil {
			lines = bufio.NewScanner(labels)
		}
		raw, row := make([]byte, dim*size), fileRow{embedding: make([]float32, dim)}
		for i := range rows {
			if _, err := io.ReadFull(in, raw); err != nil {
				yield(fileRow{}, fmt.Errorf("row %d of %d: %w", i, rows, unexpected(err)))
				return
			}
			npyValues(row.embedding, raw, size)
			if lines != nil {
				if !lines.Scan() {
					err := fmt.Errorf("row %d of %d has no label: the labels end before", i, rows)
					if lines.Err() != nil {
						err = fmt.Errorf("the label of row %d of %d: %w", i, rows, lines.Err())
					}
					yield(fileRow{}, err)
					return
				}
				row.label = optional{lines.Bytes(), true}
			}
			if !yield(row, nil) {
				return
			}
		}
		if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
			yield(fileRow{}, fmt.Errorf("bytes follow the %d rows of the header's shape", rows))
			return
		}
		if lines != nil && (lines.Scan() || lines.Err() != nil) {
			yield(fileRow{}, fmt.Errorf("there are more labels than the %d rows", rows))
		}
	}
}

// npyValues sets to to the values of raw, of size bytes each.
func npyValues(to []float32, raw []byte, size int) {
	switch size {
	case 2:
		kernel.WidenFloat16(to, raw)
	case 4:
		copy(to, arrowcol.Floats(raw))
	default:
		for i := range to {
			to[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(raw[8*i:])))
		}
	}
}

func readNPYHeader(in io.Reader) (rows, dim, size int, err error) {
	fail := func(format string, args ...any) (int, int, int, error) {
		return 0, 0, 0, fmt.Errorf("npy header: "+format, args...)
	}
	var head [12]byte
	if _, err := io.ReadFull(in, head[:10]); err != nil {
		return fail("%w", unexpected(err))
	}
	if string(head[:6]) != "\x93NUMPY" {
		return fail("begins with % x, expected a .npy file", head[:6])
	}
	length := int(binary.LittleEndian.Uint16(head[8:]))
	if head[6] >= 2 {
		if _, err := io.ReadFull(in, head[10:]); err != nil {
			return fail("%w", unexpected(err))
		}
		length = int(min(binary.LittleEndian.Uint32(head[8:]), 1<<31-1))
	}
	if head[6] < 1 || head[6] > 3 || length > maxNPYHeader {
		return fail("version %d with %d bytes, expected 1 to 3 with at most %d", head[6], length, maxNPYHeader)
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(in, text); err != nil {
		return fail("%w", unexpected(err))
	}
	fields := npyHeader.FindSubmatch(text)
	if fields == nil {
		return fail("%.200q is not that of a matrix with two dimensions", text)
	}
	size, ok := map[string]int{"<f2": 2, "<f4": 4, "<f8": 8}[string(fields[1])]
	if !ok {
		return fail("type %q, expected <f4, <f8 or <f2: little-endian floats", fields[1])
	}
	if string(fields[2]) != "False" {
		return fail("Fortran order, expected C order: save numpy.ascontiguousarray(x)")
	}
	rows, rowsErr := strconv.Atoi(string(fields[3]))
	dim, dimErr := strconv.Atoi(string(fields[4]))
	if rowsErr != nil || dimErr != nil || dim < 1 || dim > maxDimension {
		return fail("shape (%s, %s), expected rows of 1 to %d values", fields[3], fields[4], maxDimension)
	}
	return rows, dim, size, nil
}
