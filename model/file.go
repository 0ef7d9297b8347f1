package model

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"time"
)

const (
	formatVersion = "1"
	versionDigits = 12

	tensorBackgroundFactor  = "background.factor"
	tensorBackgroundMean    = "background.mean"
	tensorBank              = "bank"
	tensorBankClass         = "bank.class"
	tensorBias              = "bias"
	tensorCalibrationClass  = "calibration.class"
	tensorCalibrationScores = "calibration.scores"
	tensorDistanceScale     = "distance_scale"
	tensorPrecisionFactor   = "precision.factor"
	tensorPrototypes        = "prototypes"
	tensorMatrix            = "transform.matrix"
	tensorU                 = "transform.u"
	tensorV                 = "transform.v"
	tensorWeights           = "weights"
)

// Encode returns the model as the bytes of a file, and sets Version to what
// they stand for. The same model always gives the same bytes.
//
// The file is a safetensors file (https://huggingface.co/docs/safetensors):
//
//	offset  size  what
//	0       8     h, the header's length, little-endian
//	8       h     header: a JSON object, padded with spaces to a multiple of 8
//	8+h     ...   the tensors, little-endian, in this order without gaps, each
//	              where the detector has it:
//	              background.factor   [D, D] float32  relative-mahalanobis
//	              background.mean     [D]    float32  relative-mahalanobis, fdbd
//	              bank                [M, D] float32  knn
//	              bank.class          [M]    int32    knn
//	              bias                [C]    float32  softmax
//	              calibration.class   [n]    int32    all
//	              calibration.scores  [n]    float32  all, ascending
//	              distance_scale      [1]    float32  isomax+, dismax
//	              precision.factor    [D, D] float32  (relative-)mahalanobis
//	              prototypes          [C, K] float32  all but softmax and knn
//	              transform.matrix    [D, K] float32  the four heads, if there is one
//	              transform.u         [D, r] float32  the same, with transform.v
//	              transform.v         [r, D] float32  the same, with transform.u
//	              weights             [C, K] float32  softmax
//
// The header's __metadata__ holds, all as strings: format_version, detector,
// score, entropic_scale, temperature, classes (a JSON array), alpha, delta,
// created (RFC 3339), parent, training (JSON), sha256, the digest of the tensor
// bytes, and, for knn, neighbours.
func (m *Model) Encode() ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("encode model: %w", err)
	}
	classes, err := json.Marshal(m.Classes)
	if err != nil {
		return nil, fmt.Errorf("encode model: class names: %w", err)
	}
	tensors := m.rawTensors()
	digest := sha256.New()
	for _, t := range tensors {
		digest.Write(t.data)
	}
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	metadata := map[string]string{
		"format_version": formatVersion,
		"detector":       m.Detector,
		"score":          m.Score,
		"entropic_scale": number(m.EntropicScale),
		"temperature":    number(m.Temperature),
		"classes":        string(classes),
		"alpha":          number(m.Alpha),
		"delta":          number(m.Delta),
		"created":        m.Created.UTC().Format(time.RFC3339),
		"parent":         m.Parent,
		"training":       string(m.Training),
		"sha256":         hex.EncodeToString(digest.Sum(nil)),
	}
	if m.Neighbours != 0 {
		metadata["neighbours"] = strconv.Itoa(m.Neighbours)
	}
	file, err := encodeSafetensors(metadata, tensors)
	if err != nil {
		return nil, fmt.Errorf("encode model: %w", err)
	}
	m.Version = fileVersion(file)
	return file, nil
}

// SameAs reports whether two models answer alike: whether all is equal but when
// and from which parent they were made, and what is told of their training.
func (m *Model) SameAs(other *Model) (bool, error) {
	content := func(m *Model) ([]byte, error) {
		bare := *m
		bare.Created, bare.Parent, bare.Training = time.Time{}, "", nil
		return bare.Encode()
	}
	a, err := content(m)
	if err != nil {
		return false, err
	}
	b, err := content(other)
	if err != nil {
		return false, err
	}
	return bytes.Equal(a, b), nil
}

func fileVersion(file []byte) string {
	sum := sha256.Sum256(file)
	return hex.EncodeToString(sum[:])[:versionDigits]
}

func appendValues[T float32 | int32](dst []byte, values []T) []byte {
	dst = slices.Grow(dst, 4*len(values))
	for _, v := range values {
		switch v := any(v).(type) {
		case float32:
			dst = binary.LittleEndian.AppendUint32(dst, math.Float32bits(v))
		case int32:
			dst = binary.LittleEndian.AppendUint32(dst, uint32(v))
		}
	}
	return dst
}

// ReadFile reads the model file at path.
func ReadFile(path string) (*Model, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read model: %w", err)
	}
	defer f.Close()
	m, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// Read reads a model file to its end. It refuses whatever Encode would not
// have written: a header that is too large, gaps, overlaps, trailing bytes, a
// digest that does not match, and values that cannot score.
func Read(r io.Reader) (*Model, error) {
	file, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read model: %w", err)
	}
	m, err := decode(file)
	if err != nil {
		return nil, fmt.Errorf("read model: %w", err)
	}
	return m, nil
}

func decode(file []byte) (*Model, error) {
	metadata, tensors, body, err := decodeSafetensors(file)
	if err != nil {
		return nil, err
	}
	if v, ok := metadata["format_version"]; !ok {
		return nil, errors.New("metadata: format_version is missing: this is not a model of oodmon; a head trained elsewhere is taken in by 'oodmon model import'")
	} else if v != formatVersion {
		return nil, fmt.Errorf("metadata: format_version is %q, expected %q", v, formatVersion)
	}
	sum := sha256.Sum256(body)
	if got := hex.EncodeToString(sum[:]); metadata["sha256"] != got {
		return nil, fmt.Errorf("metadata: sha256 is %q, but the tensors have %s: the file is damaged", metadata["sha256"], got)
	}
	m := &Model{
		Version: fileVersion(file), Detector: metadata["detector"], Score: metadata["score"], Parent: metadata["parent"],
	}
	for _, f := range []struct {
		key string
		to  *float64
	}{{"entropic_scale", &m.EntropicScale}, {"temperature", &m.Temperature}, {"alpha", &m.Alpha}, {"delta", &m.Delta}} {
		if *f.to, err = strconv.ParseFloat(metadata[f.key], 64); err != nil {
			return nil, fmt.Errorf("metadata: %s is %q, expected a number", f.key, metadata[f.key])
		}
	}
	if m.Created, err = time.Parse(time.RFC3339, metadata["created"]); err != nil {
		return nil, fmt.Errorf("metadata: created is %q, expected a time like 2006-01-02T15:04:05Z", metadata["created"])
	}
	if err := json.Unmarshal([]byte(metadata["classes"]), &m.Classes); err != nil {
		return nil, fmt.Errorf("metadata: classes: %w, expected a JSON array of strings", err)
	}
	if text := metadata["training"]; text != "" {
		if !json.Valid([]byte(text)) {
			return nil, errors.New("metadata: training is not JSON")
		}
		m.Training = json.RawMessage(text)
	}
	if text, ok := metadata["neighbours"]; ok {
		if m.Neighbours, err = strconv.Atoi(text); err != nil {
			return nil, fmt.Errorf("metadata: neighbours is %q, expected a number", text)
		}
	}
	for name := range tensors {
		if !slices.Contains(tensorNames, name) {
			return nil, fmt.Errorf("tensor %q is unknown to format version %s", name, formatVersion)
		}
	}
	if err := m.decodeHead(tensors); err != nil {
		return nil, err
	}
	if m.Calibration.Scores, _, err = float32Tensor(tensors, tensorCalibrationScores, 1); err != nil {
		return nil, err
	}
	if m.Calibration.Class, err = int32Tensor(tensors, tensorCalibrationClass); err != nil {
		return nil, err
	}
	if err := m.validate(); err != nil {
		return nil, err
	}
	return m, nil
}

func float32Tensor(tensors map[string]rawTensor, name string, dims int) ([]float32, []int, error) {
	t, err := oneTensor(tensors, name, "F32", dims)
	if err != nil {
		return nil, nil, err
	}
	values := make([]float32, len(t.data)/4)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(t.data[4*i:]))
	}
	return values, t.shape, nil
}

func int32Tensor(tensors map[string]rawTensor, name string) ([]int32, error) {
	t, err := oneTensor(tensors, name, "I32", 1)
	if err != nil {
		return nil, err
	}
	values := make([]int32, len(t.data)/4)
	for i := range values {
		values[i] = int32(binary.LittleEndian.Uint32(t.data[4*i:]))
	}
	return values, nil
}

func oneTensor(tensors map[string]rawTensor, name, dtype string, dims int) (rawTensor, error) {
	t, ok := tensors[name]
	if !ok {
		return t, fmt.Errorf("tensor %s is missing", name)
	}
	if t.dtype != dtype || len(t.shape) != dims {
		return t, fmt.Errorf("tensor %s is %s%v, expected %s with %d dimensions", name, t.dtype, t.shape, dtype, dims)
	}
	if dims == 2 && (t.shape[0] == 0 || t.shape[1] == 0) {
		return t, fmt.Errorf("tensor %s has shape %v: no dimension may be 0", name, t.shape)
	}
	return t, nil
}
