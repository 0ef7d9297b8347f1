package trainer

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime/debug"

	"github.com/apache/arrow/go/v15/arrow"
)

const (
	spoolChunk    = 256      // rows read at once
	shuffleWindow = 64 << 20 // bytes of rows that are shuffled together
	rowHeader     = 2        // values before the vector of a row
	// residentDefault is the residentLimit of a process without a memory limit.
	residentDefault = 256 << 20
)

// A spool keeps labelled embeddings in a temporary file of rows of one size, so
// that memory does not grow with them and every epoch can read them in another
// order. A row is D+2 float32 in the machine's byte order: the bits of its class,
// its norm, and its unit vector.
type spool struct {
	file *os.File
	w    *bufio.Writer
	dim  int
	rows int
	row  []float32 // one, to write
	// raw gives rows to a fit with their norms; else they are unit vectors.
	raw bool
	// renumber gives the class that a written one now has.
	renumber []int32
	// resident holds all rows, once they are shuffled, if they fit in memory.
	resident []float32
}

func newSpool(dir string, dim int, raw bool) (*spool, error) {
	f, err := os.CreateTemp(dir, "oodmon-spool-*")
	if err != nil {
		return nil, fmt.Errorf("make spool: %w", err)
	}
	// A file without a name takes no room any more once the process ends, however it does.
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("make spool: %w", err), f.Close())
	}
	return &spool{file: f, w: bufio.NewWriterSize(f, 1<<20), dim: dim, raw: raw, row: make([]float32, rowHeader+dim)}, nil
}

func (s *spool) close() error { return s.file.Close() }

func (s *spool) append(class int32, norm float32, unit []float32) error {
	s.row[0], s.row[1] = math.Float32frombits(uint32(class)), norm
	copy(s.row[rowHeader:], unit)
	if _, err := s.w.Write(arrow.Float32Traits.CastToBytes(s.row)); err != nil {
		return fmt.Errorf("write spool %s: %w", s.file.Name(), err)
	}
	s.rows++
	return nil
}

func (s *spool) flush() error {
	if err := s.w.Flush(); err != nil {
		return fmt.Errorf("write spool %s: %w", s.file.Name(), err)
	}
	return nil
}

// size is how many values n rows take.
func (s *spool) size(n int) int { return n * (rowHeader + s.dim) }

// read fills buf with the rows from first on.
func (s *spool) read(first int, buf []float32) error {
	if _, err := s.file.ReadAt(arrow.Float32Traits.CastToBytes(buf), 4*int64(s.size(1))*int64(first)); err != nil {
		return fmt.Errorf("read spool %s: %w", s.file.Name(), err)
	}
	return nil
}

// decode takes the values of a row into x, [D], and returns its class.
func (s *spool) decode(row, x []float32, raw bool) int32 {
	copy(x, row[rowHeader:rowHeader+len(x)])
	if norm := row[1]; raw {
		for j := range x {
			x[j] *= norm
		}
	}
	return s.renumber[math.Float32bits(row[0])]
}

// inOrder calls fn with all rows as they were given, a chunk at a time.
func (s *spool) inOrder(fn func(x []float32, y []int32) error) error {
	return s.chunks(true, fn)
}

func (s *spool) chunks(raw bool, fn func(x []float32, y []int32) error) error {
	buf, x, y := make([]float32, s.size(spoolChunk)), make([]float32, spoolChunk*s.dim), make([]int32, spoolChunk)
	for first := 0; first < s.rows; first += spoolChunk {
		n := min(spoolChunk, s.rows-first)
		if err := s.read(first, buf[:s.size(n)]); err != nil {
			return err
		}
		for i := range n {
			y[i] = s.decode(buf[s.size(i):], x[i*s.dim:(i+1)*s.dim], raw)
		}
		if err := fn(x[:n*s.dim], y[:n]); err != nil {
			return err
		}
	}
	return nil
}

// shuffled calls fn with batches of all rows in random order. Chunks come in
// random order and are shuffled within a window; if all rows fit in it, every
// order is as likely. The order does not depend on whether the rows are resident.
func (s *spool) shuffled(random *rand.Rand, batch int, fn func(x []float32, y []int32) error) error {
	if s.resident == nil && int64(4*s.size(s.rows)) <= residentLimit() {
		s.resident = make([]float32, s.size(s.rows))
		if err := s.read(0, s.resident); err != nil {
			return err
		}
	}
	chunks := (s.rows + spoolChunk - 1) / spoolChunk
	window := min(chunks, max(1, shuffleWindow/4/s.size(spoolChunk))) // chunks
	values := s.resident
	if values == nil {
		values = make([]float32, s.size(min(window*spoolChunk, s.rows)))
	}
	batch = min(batch, s.rows)
	x, y := make([]float32, batch*s.dim), make([]int32, 0, batch)
	starts := make([]int, 0, window*spoolChunk) // of the rows of the window, in values
	order := random.Perm(chunks)
	for len(order) > 0 {
		starts = starts[:0]
		for _, chunk := range order[:min(window, len(order))] {
			first := chunk * spoolChunk
			n, start := min(spoolChunk, s.rows-first), s.size(first)
			if s.resident == nil {
				start = s.size(len(starts))
				if err := s.read(first, values[start:start+s.size(n)]); err != nil {
					return err
				}
			}
			for i := range n {
				starts = append(starts, start+s.size(i))
			}
		}
		order = order[min(window, len(order)):]
		for _, i := range random.Perm(len(starts)) {
			at := len(y) * s.dim
			if y = append(y, s.decode(values[starts[i]:], x[at:at+s.dim], s.raw)); len(y) < batch {
				continue
			}
			if err := fn(x, y); err != nil {
				return err
			}
			y = y[:0]
		}
	}
	if len(y) > 0 {
		return fn(x[:len(y)*s.dim], y)
	}
	return nil
}

// residentLimit is how many bytes of rows stay in memory from epoch to epoch: a
// quarter of the Go runtime's memory limit, where one is set.
func residentLimit() int64 {
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		return limit / 4
	}
	return residentDefault
}
