package trainer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
)

const (
	spoolChunk    = 256      // rows read at once
	shuffleWindow = 64 << 20 // bytes of rows that are shuffled together
)

// A spool keeps labelled unit embeddings in a temporary file of rows of one
// size, so that memory does not grow with them and every epoch can read them in
// another order. A row is its class, little-endian int32, and D float32.
type spool struct {
	file *os.File
	w    *bufio.Writer
	dim  int
	rows int
	buf  []byte
	// renumber gives the class that a written one now has.
	renumber []int32
}

func newSpool(dir string, dim int) (*spool, error) {
	f, err := os.CreateTemp(dir, "oodmon-spool-*")
	if err != nil {
		return nil, fmt.Errorf("make spool: %w", err)
	}
	return &spool{file: f, w: bufio.NewWriterSize(f, 1<<20), dim: dim, buf: make([]byte, 4+4*dim)}, nil
}

// close removes the file.
func (s *spool) close() error { return errors.Join(s.file.Close(), os.Remove(s.file.Name())) }

func (s *spool) append(class int32, unit []float32) error {
	binary.LittleEndian.PutUint32(s.buf, uint32(class))
	for i, v := range unit {
		binary.LittleEndian.PutUint32(s.buf[4+4*i:], math.Float32bits(v))
	}
	if _, err := s.w.Write(s.buf); err != nil {
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

// read decodes n rows from the first on.
func (s *spool) read(first, n int, x []float32, y []int32) error {
	size := 4 + 4*s.dim
	if len(s.buf) < n*size {
		s.buf = make([]byte, n*size)
	}
	buf := s.buf[:n*size]
	if _, err := s.file.ReadAt(buf, int64(first)*int64(size)); err != nil {
		return fmt.Errorf("read spool %s: %w", s.file.Name(), err)
	}
	for i := range n {
		row := buf[i*size:]
		y[i] = s.renumber[binary.LittleEndian.Uint32(row)]
		for j := range s.dim {
			x[i*s.dim+j] = math.Float32frombits(binary.LittleEndian.Uint32(row[4+4*j:]))
		}
	}
	return nil
}

// inOrder calls fn with all rows, a chunk at a time.
func (s *spool) inOrder(fn func(x []float32, y []int32) error) error {
	x, y := make([]float32, spoolChunk*s.dim), make([]int32, spoolChunk)
	for first := 0; first < s.rows; first += spoolChunk {
		n := min(spoolChunk, s.rows-first)
		if err := s.read(first, n, x, y); err != nil {
			return err
		}
		if err := fn(x[:n*s.dim], y[:n]); err != nil {
			return err
		}
	}
	return nil
}

// shuffled calls fn with batches of all rows in random order. Chunks come in
// random order and are shuffled within a window; if all rows fit in it, every
// order is as likely.
func (s *spool) shuffled(random *rand.Rand, batch int, fn func(x []float32, y []int32) error) error {
	chunks := (s.rows + spoolChunk - 1) / spoolChunk
	window := min(chunks, max(1, shuffleWindow/(spoolChunk*(4+4*s.dim)))) // chunks
	x, y := make([]float32, window*spoolChunk*s.dim), make([]int32, window*spoolChunk)
	bx, by := make([]float32, batch*s.dim), make([]int32, 0, batch)
	order := random.Perm(chunks)
	for len(order) > 0 {
		rows := 0
		for _, chunk := range order[:min(window, len(order))] {
			first := chunk * spoolChunk
			n := min(spoolChunk, s.rows-first)
			if err := s.read(first, n, x[rows*s.dim:], y[rows:]); err != nil {
				return err
			}
			rows += n
		}
		order = order[min(window, len(order)):]
		for _, i := range random.Perm(rows) {
			copy(bx[len(by)*s.dim:], x[i*s.dim:(i+1)*s.dim])
			if by = append(by, y[i]); len(by) < batch {
				continue
			}
			if err := fn(bx, by); err != nil {
				return err
			}
			by = by[:0]
		}
	}
	if len(by) > 0 {
		return fn(bx[:len(by)*s.dim], by)
	}
	return nil
}
