package featurizer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Arrow's reader believes the lengths in a message's metadata and allocates by
// them: a few wrong bytes end the process with "out of memory", which nothing
// can catch. So every message passes this verifier first. It follows the
// format's definition (https://arrow.apache.org/docs/format/Columnar.html,
// Message.fbs and Schema.fbs) and accepts only what embeddings need.

// A flatbuffer is the metadata of a message. Every read is within bounds.
type flatbuffer []byte

var errBounds = errors.New("the metadata points outside itself")

func (b flatbuffer) u16(at int) (int, error) {
	if at < 0 || at+2 > len(b) {
		return 0, errBounds
	}
	return int(binary.LittleEndian.Uint16(b[at:])), nil
}

func (b flatbuffer) i32(at int) (int, error) {
	if at < 0 || at+4 > len(b) {
		return 0, errBounds
	}
	return int(int32(binary.LittleEndian.Uint32(b[at:]))), nil
}

func (b flatbuffer) i64(at int) (int64, error) {
	if at < 0 || at+8 > len(b) {
		return 0, errBounds
	}
	return int64(binary.LittleEndian.Uint64(b[at:])), nil
}

// follow returns where the unsigned offset at a place points to.
func (b flatbuffer) follow(at int) (int, error) {
	if at < 0 || at+4 > len(b) {
		return 0, errBounds
	}
	offset := binary.LittleEndian.Uint32(b[at:])
	if uint64(at)+uint64(offset) > uint64(len(b)) {
		return 0, errBounds
	}
	return at + int(offset), nil
}

// A table is a flatbuffer table whose vtable was checked.
type table struct {
	buf          flatbuffer
	at           int
	size         int // of the table's inline part
	vtable, slot int // the vtable, and how many bytes of slots it has
}

// table checks the table at a place.
func (b flatbuffer) table(at int) (table, error) {
	back, err := b.i32(at)
	if err != nil {
		return table{}, err
	}
	vtable := at - back
	length, err := b.u16(vtable)
	if err != nil {
		return table{}, err
	}
	size, err := b.u16(vtable + 2)
	if err != nil {
		return table{}, err
	}
	if length < 4 || length%2 != 0 || vtable+length > len(b) || size < 4 || at+size > len(b) {
		return table{}, errBounds
	}
	return table{b, at, size, vtable, length - 4}, nil
}

// field returns where the field's inline value lies, or 0 if it is absent.
// width is the value's size.
func (t table) field(n, width int) (int, error) {
	if 2*n+2 > t.slot {
		return 0, nil
	}
	offset, err := t.buf.u16(t.vtable + 4 + 2*n)
	if err != nil || offset == 0 {
		return 0, err
	}
	if offset < 4 || offset+width > t.size {
		return 0, errBounds
	}
	return t.at + offset, nil
}

// number returns an integer field of 1, 2, 4 or 8 bytes, or a default.
func (t table) number(n, width int, missing int64) (int64, error) {
	at, err := t.field(n, width)
	if err != nil || at == 0 {
		return missing, err
	}
	switch width {
	case 1:
		return int64(t.buf[at]), nil
	case 2:
		return int64(int16(binary.LittleEndian.Uint16(t.buf[at:]))), nil
	case 4:
		return int64(int32(binary.LittleEndian.Uint32(t.buf[at:]))), nil
	default:
		return t.buf.i64(at)
	}
}

// child returns a field that is a table; ok is false if it is absent.
func (t table) child(n int) (_ table, ok bool, err error) {
	at, err := t.field(n, 4)
	if err != nil || at == 0 {
		return table{}, false, err
	}
	if at, err = t.buf.follow(at); err != nil {
		return table{}, false, err
	}
	c, err := t.buf.table(at)
	return c, err == nil, err
}

// vector returns the first element and the length of a field that is a vector
// of elements of a size; an absent one has length 0.
func (t table) vector(n, size int) (first, length int, err error) {
	at, err := t.field(n, 4)
	if err != nil || at == 0 {
		return 0, 0, err
	}
	if at, err = t.buf.follow(at); err != nil {
		return 0, 0, err
	}
	if length, err = t.buf.i32(at); err != nil {
		return 0, 0, err
	}
	first = at + 4
	if length < 0 || length > (len(t.buf)-first)/size {
		return 0, 0, errBounds
	}
	return first, length, nil
}

// tables returns a field that is a vector of tables.
func (t table) tables(n int) ([]table, error) {
	first, length, err := t.vector(n, 4)
	if err != nil {
		return nil, err
	}
	all := make([]table, length) // length is at most a quarter of the metadata
	for i := range all {
		at, err := t.buf.follow(first + 4*i)
		if err != nil {
			return nil, err
		}
		if all[i], err = t.buf.table(at); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// text returns a field that is a string.
func (t table) text(n int) (string, error) {
	first, length, err := t.vector(n, 1)
	if err != nil {
		return "", err
	}
	s := t.buf[first : first+length]
	if !utf8.Valid(s) {
		return "", fmt.Errorf("%q is not UTF-8", []byte(s))
	}
	return string(s), nil
}

// pairs checks a field that is a vector of keys and values.
func (t table) pairs(n int) error {
	all, err := t.tables(n)
	if err != nil {
		return err
	}
	for _, kv := range all {
		for field := range 2 {
			if _, err := kv.text(field); err != nil {
				return err
			}
		}
	}
	return nil
}
