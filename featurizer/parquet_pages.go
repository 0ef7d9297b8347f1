package featurizer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/apache/arrow/go/v15/parquet"
	"github.com/apache/arrow/go/v15/parquet/file"
	"github.com/apache/arrow/go/v15/parquet/schema"
	"github.com/apache/thrift/lib/go/thrift"
)

// checkedPages refuses pages that hold less than they say: pages that are longer than
// what is left of the file and dictionaries with fewer entries, for which Arrow's
// reader takes memory beforehand, and data with fewer levels, or where there are none
// fewer indices into a dictionary, for the rest of which it would ask for ever.
type checkedPages struct {
	file.PageReader
	in      *bufio.Reader // what PageReader reads
	section *io.SectionReader
	values  int64 // that the column has left
	column  *schema.Column
	entries int // of the dictionary
	err     error
}

func (p *checkedPages) Next() bool {
	if p.err != nil {
		return false
	}
	if p.values > 0 { // else what follows is another column
		p.err = p.checkHeader()
	}
	if p.err != nil || !p.PageReader.Next() {
		return false
	}
	if _, dictionary := p.Page().(*file.DictionaryPage); !dictionary {
		p.values -= int64(p.Page().NumValues())
	}
	p.err = p.check(p.Page())
	return p.err == nil
}

// A page may take pageMemory, or pageRatio times the bytes that it has in the file,
// which is more than gzip, Snappy and LZ4 make of them.
const (
	pageMemory = 64 << 20
	pageRatio  = 1100
)

// checkHeader looks at the header of the next page, if there is one.
func (p *checkedPages) checkHeader() error {
	var header pageHeader
	for size := 1 << 10; ; size *= 4 {
		view, err := p.in.Peek(min(size, parquetHeader))
		if len(view) == 0 {
			return nil
		}
		failed := header.read(view)
		if failed == nil {
			break
		}
		if err != nil || size >= parquetHeader {
			return fmt.Errorf("the header of a page: %w", failed)
		}
	}
	at, err := p.section.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	left := p.section.Size() - at + int64(p.in.Buffered())
	switch header.kind {
	case dataPage, dictionaryPage, dataPageV2:
	default: // Arrow's reader takes what follows its header for the next one
		return fmt.Errorf("a page of type %d, expected data or a dictionary", header.kind)
	}
	if header.compressed > left {
		return fmt.Errorf("a page of %d bytes, where the column has %d left", header.compressed, left)
	}
	if most := max(pageMemory, pageRatio*header.compressed); header.uncompressed > most {
		return fmt.Errorf("a page of %d bytes takes %d in memory, expected at most %d", header.compressed, header.uncompressed, most)
	}
	if header.plain && header.uncompressed != header.compressed {
		return fmt.Errorf("a page that is not compressed has %d bytes and holds %d", header.compressed, header.uncompressed)
	}
	return nil
}

// The types of pages, of parquet.thrift.
const (
	dataPage       = 0
	dictionaryPage = 2
	dataPageV2     = 3
)

// A pageHeader is what is looked at of one (PageHeader in parquet.thrift).
type pageHeader struct {
	kind, uncompressed, compressed int64
	plain                          bool // it is of version 2 and says that it is not compressed
}

func (h *pageHeader) read(view []byte) error {
	*h = pageHeader{}
	ctx := context.Background()
	p := thrift.NewTCompactProtocolConf(&thrift.TMemoryBuffer{Buffer: bytes.NewBuffer(view)}, &thrift.TConfiguration{})
	return eachField(p, func(id int16, kind thrift.TType) (bool, error) {
		if id == 8 && kind == thrift.STRUCT { // data_page_header_v2
			return true, eachField(p, func(id int16, kind thrift.TType) (bool, error) {
				if id != 7 || kind != thrift.BOOL { // is_compressed
					return false, nil
				}
				compressed, err := p.ReadBool(ctx)
				h.plain = !compressed
				return true, err
			})
		}
		field := map[int16]*int64{1: &h.kind, 2: &h.uncompressed, 3: &h.compressed}[id]
		if field == nil || kind != thrift.I32 {
			return false, nil
		}
		n, err := p.ReadI32(ctx)
		*field = int64(n)
		return true, err
	})
}

func (p *checkedPages) Err() error {
	if p.err != nil {
		return p.err
	}
	return p.PageReader.Err()
}

func (p *checkedPages) check(page file.Page) (err error) {
	maxRep, maxDef := p.column.MaxRepetitionLevel(), p.column.MaxDefinitionLevel()
	n, values := int(page.NumValues()), page.Data()
	switch page := page.(type) {
	case *file.DictionaryPage:
		least := 4 // bytes of an entry; those of texts have their length before them
		switch p.column.PhysicalType() {
		case parquet.Types.Int64, parquet.Types.Double:
			least = 8
		case parquet.Types.FixedLenByteArray:
			least = max(1, p.column.TypeLength())
		}
		if n > len(values)/least {
			return fmt.Errorf("a dictionary of %d bytes has %d entries, expected at most %d", len(values), n, len(values)/least)
		}
		p.entries = n
		return nil
	case *file.DataPageV1:
		for _, level := range []struct {
			name     string
			max      int16
			encoding parquet.Encoding
		}{{"repetition", maxRep, page.RepetitionLevelEncoding()}, {"definition", maxDef, page.DefinitionLevelEncoding()}} {
			if level.max == 0 {
				continue
			}
			if level.encoding != parquet.Encodings.RLE {
				return fmt.Errorf("%s levels are encoded as %s, expected RLE", level.name, level.encoding)
			}
			if len(values) < 4 || uint64(binary.LittleEndian.Uint32(values)) > uint64(len(values)-4) {
				return fmt.Errorf("%s levels reach beyond their page of %d bytes", level.name, len(page.Data()))
			}
			size := int(binary.LittleEndian.Uint32(values))
			if err := hasRuns(values[4:4+size], bits.Len16(uint16(level.max)), n); err != nil {
				return fmt.Errorf("%s levels: %w", level.name, err)
			}
			values = values[4+size:]
		}
	case *file.DataPageV2:
		rep, def := int(page.RepetitionLevelByteLen()), int(page.DefinitionLevelByteLen())
		if rep < 0 || def < 0 || rep > len(values) || def > len(values)-rep {
			return fmt.Errorf("levels of %d and %d bytes reach beyond their page of %d", rep, def, len(values))
		}
		if maxRep > 0 {
			err = hasRuns(values[:rep], bits.Len16(uint16(maxRep)), n)
		}
		if err == nil && maxDef > 0 {
			err = hasRuns(values[rep:rep+def], bits.Len16(uint16(maxDef)), n)
		}
		if err != nil {
			return fmt.Errorf("levels: %w", err)
		}
		values = values[rep+def:]
	default:
		return nil
	}
	if n == 0 {
		return nil
	}
	switch encoding := parquet.Encoding(page.Encoding()); encoding {
	case parquet.Encodings.PlainDict, parquet.Encodings.RLEDict:
		if len(values) == 0 {
			values = []byte{0} // none, where all are null
		}
		// For an index there is memory, whether it is an entry or not.
		if most := max(16, bits.Len(uint(p.entries))); int(values[0]) > most {
			return fmt.Errorf("indices into a dictionary of %d have no width of up to %d bits", p.entries, most)
		}
		if maxDef == 0 {
			err = hasRuns(values[1:], int(values[0]), n)
		}
		if err != nil {
			return fmt.Errorf("indices into the dictionary: %w", err)
		}
	case parquet.Encodings.DeltaBinaryPacked, parquet.Encodings.DeltaLengthByteArray, parquet.Encodings.DeltaByteArray:
		// They begin with integers of the first kind, and these with the size of their
		// blocks, the number of parts of one, and their own number.
		for field, what := range []string{"block size", "parts", "values"} {
			number, size := binary.Uvarint(values)
			if size <= 0 || field == 2 && maxDef == 0 && number < uint64(n) {
				return fmt.Errorf("encoded as %s: %d %s, expected %d values", encoding, number, what, n)
			}
			values = values[size:]
		}
	}
	return nil
}

// hasRuns checks that data holds n values of so many bits, in Parquet's hybrid of
// runs and packed bits (RLE).
func hasRuns(data []byte, width, n int) error {
	for at := 0; at < n; {
		header, size := binary.Uvarint(data)
		count := header >> 1
		if size <= 0 || count == 0 || count > 1<<31 {
			return fmt.Errorf("end after %d of %d values", at, n)
		}
		data = data[size:]
		bytes := uint64(width+7) / 8 // of the one value of a run
		if header&1 == 1 {
			bytes = min(count*uint64(width), uint64(len(data))) // groups of eight; the last need not be whole
			count *= 8
			if width > 0 {
				count = min(count, bytes*8/uint64(width))
			}
		}
		if bytes > uint64(len(data)) {
			return fmt.Errorf("end after %d of %d values", at, n)
		}
		data = data[bytes:]
		at += int(min(count, uint64(n)))
	}
	return nil
}
