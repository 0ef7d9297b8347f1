package featurizer

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/apache/arrow/go/v15/parquet"
	"github.com/apache/thrift/lib/go/thrift"
)

const maxFooter = 256 << 20

// verifyFooter checks that no column of a Parquet file's schema says that it has more
// columns in it than there are: Arrow's reader takes memory for as many.
func verifyFooter(f parquet.ReaderAtSeeker) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	var tail [8]byte
	if _, err := f.ReadAt(tail[:], end-int64(len(tail))); err != nil {
		return fmt.Errorf("%d bytes: %w", end, err)
	}
	if string(tail[4:]) != "PAR1" {
		return fmt.Errorf("ends in %q, expected PAR1", tail[4:])
	}
	length, most := int64(binary.LittleEndian.Uint32(tail[:])), min(end-int64(len(tail)), maxFooter)
	if length > most {
		return fmt.Errorf("a footer of %d bytes, expected at most %d", length, most)
	}
	footer := make([]byte, length)
	if _, err := f.ReadAt(footer, end-int64(len(tail))-length); err != nil {
		return err
	}
	p := thrift.NewTCompactProtocolConf(&thrift.TMemoryBuffer{Buffer: bytes.NewBuffer(footer)}, &thrift.TConfiguration{})
	err = eachField(p, func(id int16, kind thrift.TType) (bool, error) {
		const schema = 2 // of FileMetaData
		if id != schema || kind != thrift.LIST {
			return false, nil
		}
		return true, verifySchema(p)
	})
	if err != nil {
		return fmt.Errorf("the footer: %w", err)
	}
	return nil
}

func verifySchema(p thrift.TProtocol) error {
	ctx := context.Background()
	_, size, err := p.ReadListBegin(ctx)
	for range size {
		if err != nil {
			return err
		}
		err = eachField(p, func(id int16, kind thrift.TType) (bool, error) {
			const children = 5 // of SchemaElement
			if id != children || kind != thrift.I32 {
				return false, nil
			}
			n, err := p.ReadI32(ctx)
			if err == nil && (n < 0 || int(n) > size) {
				err = fmt.Errorf("a column has %d columns in it, of %d in all", n, size)
			}
			return true, err
		})
	}
	return err
}

// eachField calls visit with every field of a structure, and skips those that it does
// not read.
func eachField(p thrift.TProtocol, visit func(id int16, kind thrift.TType) (read bool, err error)) error {
	ctx := context.Background()
	if _, err := p.ReadStructBegin(ctx); err != nil {
		return err
	}
	for {
		_, kind, id, err := p.ReadFieldBegin(ctx)
		if err != nil {
			return err
		}
		if kind == thrift.STOP {
			return p.ReadStructEnd(ctx)
		}
		read, err := visit(id, kind)
		if err == nil && !read {
			err = p.Skip(ctx, kind)
		}
		if err != nil {
			return err
		}
	}
}
