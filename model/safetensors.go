package model

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Larger files and headers are refused before they are looked at.
const (
	maxFile   = 1 << 30
	maxHeader = 16 << 20
)

// A rawTensor is a named array as it lies in the file.
type rawTensor struct {
	name  string
	dtype string // F32 or I32 where this package writes
	shape []int
	data  []byte
}

var dtypeSizes = map[string]int{"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "BOOL": 1}

// encodeSafetensors lays the tensors out in the order given.
func encodeSafetensors(metadata map[string]string, tensors []rawTensor) ([]byte, error) {
	type entry struct {
		Dtype   string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	header := map[string]any{"__metadata__": metadata} // encoding/json sorts the keys
	end := 0
	for _, t := range tensors {
		header[t.name] = entry{t.dtype, t.shape, [2]int{end, end + len(t.data)}}
		end += len(t.data)
	}
	text, err := json.Marshal(header)
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	for len(text)%8 != 0 {
		text = append(text, ' ')
	}
	if len(text) > maxHeader || 8+len(text)+end > maxFile {
		return nil, fmt.Errorf("a header of %d and tensors of %d bytes: at most %d and %d can be read back", len(text), end, maxHeader, maxFile)
	}
	file := make([]byte, 0, 8+len(text)+end)
	file = binary.LittleEndian.AppendUint64(file, uint64(len(text)))
	file = append(file, text...)
	for _, t := range tensors {
		file = append(file, t.data...)
	}
	return file, nil
}

// decodeSafetensors returns the metadata, the tensors by name, and all the
// tensor bytes. The tensors must cover those bytes exactly.
func decodeSafetensors(file []byte) (metadata map[string]string, tensors map[string]rawTensor, body []byte, err error) {
	if len(file) > maxFile {
		return nil, nil, nil, fmt.Errorf("the file is larger than %d bytes", maxFile)
	}
	if len(file) < 8 {
		return nil, nil, nil, fmt.Errorf("the file has %d bytes: too short for a safetensors file", len(file))
	}
	length := binary.LittleEndian.Uint64(file)
	if length > maxHeader || length > uint64(len(file)-8) {
		return nil, nil, nil, fmt.Errorf("the header claims %d bytes of a file of %d (at most %d are read): truncated, or not a safetensors file", length, len(file), maxHeader)
	}
	header, body := file[8:8+length], file[8+length:]
	fields, err := objectFields(header)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("header: %w", err)
	}
	tensors = make(map[string]rawTensor, len(fields))
	var spans []rawSpan
	for _, f := range fields {
		if f.key == "__metadata__" {
			if metadata, err = decodeMetadata(f.value); err != nil {
				return nil, nil, nil, fmt.Errorf("header: __metadata__: %w", err)
			}
			continue
		}
		t, span, err := decodeEntry(f.key, f.value, body)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("header: tensor %q: %w", f.key, err)
		}
		tensors[f.key] = t
		spans = append(spans, span)
	}
	slices.SortFunc(spans, func(a, b rawSpan) int {
		return cmp.Or(cmp.Compare(a.begin, b.begin), cmp.Compare(a.end, b.end))
	})
	at := 0
	for _, s := range spans {
		if s.begin != at {
			return nil, nil, nil, fmt.Errorf("header: tensor %q begins at byte %d, expected %d: tensors must neither overlap nor leave gaps", s.name, s.begin, at)
		}
		at = s.end
	}
	if at != len(body) {
		return nil, nil, nil, fmt.Errorf("the tensors end at byte %d of %d: truncated, or followed by other bytes", at, len(body))
	}
	return metadata, tensors, body, nil
}

type rawSpan struct {
	name       string
	begin, end int
}

func decodeMetadata(text []byte) (map[string]string, error) {
	fields, err := objectFields(text)
	if err != nil {
		return nil, err
	}
	metadata := make(map[string]string, len(fields))
	for _, f := range fields {
		var s *string
		if err := json.Unmarshal(f.value, &s); err != nil || s == nil {
			return nil, fmt.Errorf("%s is %.40s, expected a string", f.key, f.value)
		}
		metadata[f.key] = *s
	}
	return metadata, nil
}

func decodeEntry(name string, text []byte, body []byte) (rawTensor, rawSpan, error) {
	var e struct {
		Dtype   string
		Shape   []int
		Offsets []int
	}
	fields, err := objectFields(text)
	if err != nil {
		return rawTensor{}, rawSpan{}, err
	}
	known := map[string]any{"dtype": &e.Dtype, "shape": &e.Shape, "data_offsets": &e.Offsets}
	for _, f := range fields {
		to, ok := known[f.key]
		if !ok {
			return rawTensor{}, rawSpan{}, fmt.Errorf("key %q is unknown", f.key)
		}
		if err := json.Unmarshal(f.value, to); err != nil {
			return rawTensor{}, rawSpan{}, fmt.Errorf("%s: %w", f.key, err)
		}
	}
	size, ok := dtypeSizes[e.Dtype]
	if !ok {
		return rawTensor{}, rawSpan{}, fmt.Errorf("dtype %q is unknown", e.Dtype)
	}
	if len(e.Offsets) != 2 || e.Offsets[0] < 0 || e.Offsets[1] < e.Offsets[0] || e.Offsets[1] > len(body) {
		return rawTensor{}, rawSpan{}, fmt.Errorf("data_offsets %v do not lie in the file's %d tensor bytes", e.Offsets, len(body))
	}
	for _, n := range e.Shape {
		if n < 0 || n > maxFile || (n > 0 && size > maxFile/n) {
			return rawTensor{}, rawSpan{}, fmt.Errorf("shape %v is out of bounds", e.Shape)
		}
		size *= n
	}
	if size != e.Offsets[1]-e.Offsets[0] {
		return rawTensor{}, rawSpan{}, fmt.Errorf("%s%v needs %d bytes, but data_offsets %v hold %d", e.Dtype, e.Shape, size, e.Offsets, e.Offsets[1]-e.Offsets[0])
	}
	return rawTensor{name, e.Dtype, e.Shape, body[e.Offsets[0]:e.Offsets[1]]}, rawSpan{name, e.Offsets[0], e.Offsets[1]}, nil
}

type field struct {
	key   string
	value json.RawMessage
}

// objectFields splits a JSON object into its fields, and refuses a key that
// comes twice: encoding/json would quietly take the last.
func objectFields(text []byte) ([]field, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	var fields []field
	seen := make(map[string]bool)
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name, ok := key.(string)
		if !ok {
			return nil, fmt.Errorf("key %v is not a string", key)
		}
		if seen[name] {
			return nil, fmt.Errorf("key %q comes twice", name)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		seen[name] = true
		fields = append(fields, field{name, value})
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return fields, nil
}
