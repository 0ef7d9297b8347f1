package model

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gorgonia.org/tensor"
)

// dense returns 1, 2, 3 ... as a matrix.
func dense(rows, cols int) *tensor.Dense {
	values := make([]float32, rows*cols)
	for i := range values {
		values[i] = float32(i + 1)
	}
	return tensor.New(tensor.WithShape(rows, cols), tensor.WithBacking(values))
}

// tiny returns small models of every shape that a file can have.
func tiny() map[string]*Model {
	with := func(t *Transform) *Model {
		m := small(4)
		m.Parent, m.Training, m.Transform = "0123456789ab", json.RawMessage(`{"epochs":30}`), t
		m.Calibration = NewCalibration([]float32{3, 1, 2}, []int32{1, 0, 1})
		return m
	}
	as := func(detector string, change func(m *Model)) *Model {
		m := with(nil)
		m.Detector, m.Score, m.Prototypes, m.DistanceScale = detector, Scores(detector)[0], nil, 0
		change(m)
		return m
	}
	return map[string]*Model{
		"head":     with(nil),
		"matrix":   with(&Transform{Matrix: dense(5, 3)}),
		"low-rank": with(&Transform{U: dense(3, 2), V: dense(2, 3)}),
		"isomax":   as(IsoMax, func(m *Model) { m.Prototypes = dense(2, 3) }),
		"dismax":   as(DisMax, func(m *Model) { m.Prototypes, m.DistanceScale = dense(2, 3), 2 }),
		"softmax": as(Softmax, func(m *Model) {
			m.Weights, m.Bias, m.Transform = dense(2, 3), vector(2), &Transform{Matrix: dense(5, 3)}
		}),
		"class-means": as(ClassMeans, func(m *Model) { m.Prototypes = dense(2, 3) }),
		"knn":         as(KNN, func(m *Model) { m.Bank, m.BankClass, m.Neighbours = dense(4, 3), []int32{0, 1, 1, 0}, 2 }),
		"mahalanobis": as(Mahalanobis, func(m *Model) { m.Prototypes, m.PrecisionFactor = dense(2, 3), dense(3, 3) }),
		"relative-mahalanobis": as(RelativeMahalanobis, func(m *Model) {
			m.Prototypes, m.PrecisionFactor, m.BackgroundMean, m.BackgroundFactor = dense(2, 3), dense(3, 3), vector(3), dense(3, 3)
		}),
		"fdbd": as(FDBD, func(m *Model) { m.Prototypes, m.BackgroundMean = dense(2, 3), vector(3) }),
	}
}

func vector(n int) *tensor.Dense {
	return tensor.New(tensor.WithShape(n), tensor.WithBacking(dense(1, n).Data()))
}

// Each detector is in the tests, so that each is in the fuzzing and the golden
// files.
func TestTinyHasEveryDetector(t *testing.T) {
	var found []string
	for _, m := range tiny() {
		found = append(found, m.Detector)
	}
	for _, d := range Detectors() {
		if !slices.Contains(found, d) {
			t.Errorf("no model of %s", d)
		}
	}
}

func TestFileRoundTrip(t *testing.T) {
	for name, m := range tiny() {
		file, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Read(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, m) {
			t.Errorf("%s: read %+v, wrote %+v", name, got, m)
		}
		again, err := got.Encode()
		if err != nil || !bytes.Equal(again, file) {
			t.Errorf("%s: encoding what was read gives other bytes (%v)", name, err)
		}
	}
}

func TestDimensions(t *testing.T) {
	for name, want := range map[string][2]int{"head": {3, 3}, "matrix": {5, 3}, "low-rank": {3, 3}, "softmax": {5, 3}, "knn": {3, 3}, "mahalanobis": {3, 3}} {
		if m := tiny()[name]; m.Dim() != want[0] || m.PrototypeDim() != want[1] {
			t.Errorf("%s: dimensions %d and %d, want %v", name, m.Dim(), m.PrototypeDim(), want)
		}
	}
}

// The format must not change unseen: files of today must be read tomorrow.
func TestFileGolden(t *testing.T) {
	for name, m := range tiny() {
		golden := filepath.Join("testdata", name+".safetensors")
		file, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if os.Getenv("UPDATE_GOLDEN") != "" {
			if err := os.WriteFile(golden, file, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(file, want) {
			t.Errorf("the bytes of the model file %s changed", golden)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	for want, spoil := range map[string]func(*Model){
		`detector "hinge" is not one of ["isomax+" "isomax" "dismax" "softmax" "class-means" "knn" "mahalanobis" "relative-mahalanobis" "fdbd"]`: func(m *Model) { m.Detector = "hinge" },
		`3 class names for 2 prototypes`:        func(m *Model) { m.Classes = []string{"a", "b", "c"} },
		`class name "a" is empty or not unique`: func(m *Model) { m.Classes = []string{"a", "a"} },
		`tensor prototypes: the prototype of class "cat" has norm 0: it must be finite and at least 1e-12`:   func(m *Model) { clear(m.PrototypeData()[:3]) },
		`tensor prototypes: the prototype of class "dog" has norm NaN: it must be finite and at least 1e-12`: func(m *Model) { m.PrototypeData()[4] = float32(math.NaN()) },
		`class name "a\xff" is not UTF-8`:                                                       func(m *Model) { m.Classes = []string{"a\xff", "b"} },
		`either tensor transform.matrix is given, or transform.u and transform.v are`:           func(m *Model) { m.Transform = &Transform{U: dense(3, 2)} },
		`tensor transform.matrix has shape [5 4], which does not fit prototypes of dimension 3`: func(m *Model) { m.Transform = &Transform{Matrix: dense(5, 4)} },
		`tensor transform.u has shape [4 2], which does not fit prototypes of dimension 3`:      func(m *Model) { m.Transform = &Transform{U: dense(4, 2), V: dense(2, 3)} },
		`tensor transform.v has shape [2 4], which does not fit prototypes of dimension 3`:      func(m *Model) { m.Transform = &Transform{U: dense(3, 2), V: dense(2, 4)} },
		`tensor transform.u has rank 2, transform.v has 1: they must be equal`:                  func(m *Model) { m.Transform = &Transform{U: dense(3, 2), V: dense(1, 3)} },
		`tensor transform.matrix: value 2 is NaN: it must be finite`: func(m *Model) {
			m.Transform = &Transform{Matrix: dense(5, 3)}
			m.Transform.Matrix.Data().([]float32)[2] = float32(math.NaN())
		},
		`tensor distance_scale: 0 must be finite and not 0`:                                         func(m *Model) { m.DistanceScale = 0 },
		`temperature 0 must be positive and finite`:                                                 func(m *Model) { m.Temperature = 0 },
		`alpha 1 must be between 0 and 1`:                                                           func(m *Model) { m.Alpha = 1 },
		`tensor calibration.scores: value 7 is NaN: it must be finite`:                              func(m *Model) { m.Calibration.Scores[7] = float32(math.NaN()) },
		`tensor calibration.scores: value 8 (0.02) is below the one before (5): they must ascend`:   func(m *Model) { m.Calibration.Scores[7] = 5 },
		`tensor calibration.class: value 3 is class 2 of 2`:                                         func(m *Model) { m.Calibration.Class[3] = 2 },
		`tensor calibration.scores has 400 values, calibration.class has 399: they must be as many`: func(m *Model) { m.Calibration.Class = m.Calibration.Class[:399] },
	} {
		m := small(1)
		spoil(m)
		if _, err := m.Encode(); err == nil || err.Error() != "encode model: "+want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
}

// Each detector must have its own tensors, and no other's.
func TestEncodeRefusesTensors(t *testing.T) {
	nan := func(values *tensor.Dense) { values.Data().([]float32)[1] = float32(math.NaN()) }
	for _, test := range []struct {
		model string
		spoil func(*Model)
		want  string
	}{
		{"head", func(m *Model) { m.Prototypes = nil }, "tensor prototypes is missing: detector isomax+ needs it"},
		{"head", func(m *Model) { m.Bias = vector(2) }, "tensor bias: detector isomax+ has none"},
		{"head", func(m *Model) { m.Score = "distance" }, `score "distance" is not one of ["mds" "mps" "es" "mmls" "mmles" "max-logit" "energy"] of detector isomax+`},
		{"head", func(m *Model) { m.Neighbours = 1 }, "neighbours 1: detector isomax+ has none"},
		{"head", func(m *Model) { m.Prototypes = vector(3) }, "tensor prototypes: must be float32 with 2 dimensions"},
		{"head", func(m *Model) { m.DistanceScale = float32(math.Inf(1)) }, "tensor distance_scale: +Inf must be finite and not 0"},
		{"isomax", func(m *Model) { m.DistanceScale = 1 }, "tensor distance_scale: detector isomax has none"},
		{"isomax", func(m *Model) { nan(m.Prototypes) }, "tensor prototypes: value 1 is NaN: it must be finite"},
		{"dismax", func(m *Model) { m.DistanceScale = 0 }, "tensor distance_scale: 0 must be finite and not 0"},
		{"softmax", func(m *Model) { m.Bias = nil }, "tensor bias is missing: detector softmax needs it"},
		{"softmax", func(m *Model) { m.Bias = vector(3) }, "tensor bias has shape [3], expected [2]"},
		{"softmax", func(m *Model) { nan(m.Bias) }, "tensor bias: value 1 is NaN: it must be finite"},
		{"softmax", func(m *Model) { m.Weights = dense(3, 3) }, "2 class names for 3 weights"},
		{"class-means", func(m *Model) { m.Transform = &Transform{Matrix: dense(5, 3)} }, "detector class-means has no transform"},
		{"class-means", func(m *Model) { m.Score = "mps" }, `score "mps" is not one of ["mds"] of detector class-means`},
		{"knn", func(m *Model) { m.BankClass = nil }, "tensor bank.class is missing: detector knn needs it"},
		{"knn", func(m *Model) { m.BankClass = m.BankClass[:3] }, "tensor bank has shape [4 3], expected [3 3]"},
		{"knn", func(m *Model) { m.BankClass[3] = 2 }, "tensor bank.class: value 3 is class 2 of 2"},
		{"knn", func(m *Model) { clear(m.Bank.Data().([]float32)[3:6]) }, "tensor bank: row 1 has norm 0: it must be finite and at least 1e-12"},
		{"knn", func(m *Model) { m.Neighbours = 5 }, "neighbours 5 must be between 1 and the 4 embeddings of the bank"},
		{"mahalanobis", func(m *Model) { m.PrecisionFactor = dense(3, 2) }, "tensor precision.factor has shape [3 2], expected [3 3]"},
		{"mahalanobis", func(m *Model) { m.BackgroundMean = vector(3) }, "tensor background.mean: detector mahalanobis has none"},
		{"fdbd", func(m *Model) { m.BackgroundMean = nil }, "tensor background.mean is missing: detector fdbd needs it"},
		{"relative-mahalanobis", func(m *Model) { m.BackgroundMean = vector(2) }, "tensor background.mean has shape [2], expected [3]"},
		{"relative-mahalanobis", func(m *Model) { nan(m.BackgroundFactor) }, "tensor background.factor: value 1 is NaN: it must be finite"},
	} {
		m := tiny()[test.model]
		test.spoil(m)
		if _, err := m.Encode(); err == nil || err.Error() != "encode model: "+test.want {
			t.Errorf("%s: got %v\nwant %s", test.model, err, test.want)
		}
	}
}

// withHeader returns a file with another header before the same tensors.
func withHeader(file []byte, change func(header string) string) []byte {
	n := binary.LittleEndian.Uint64(file)
	header := change(string(file[8 : 8+n]))
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(out, header...), file[8+n:]...)
}

func TestReadRefuses(t *testing.T) {
	file, err := small(4).Encode()
	if err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) []byte {
		return withHeader(file, func(h string) string {
			if !strings.Contains(h, old) {
				t.Fatalf("the header has no %s: %s", old, h)
			}
			return strings.Replace(h, old, new, 1)
		})
	}
	for want, bytes := range map[string][]byte{
		"the file has 3 bytes: too short for a safetensors file": file[:3],
		"the header claims 9223372036854775807 bytes of a file":  append([]byte{255, 255, 255, 255, 255, 255, 255, 127}, file[8:]...),
		"header: not a JSON object":                              withHeader(file, func(string) string { return "[]" }),
		"something follows the JSON object":                      withHeader(file, func(h string) string { return h + "{}" }),
		`key "prototypes" comes twice`:                           withHeader(file, func(h string) string { return strings.TrimSpace(h[:strings.LastIndex(h, "}")]) + `,"prototypes":{}}` }),
		"tensors end at byte 3228 of 3229":                       append(append([]byte(nil), file...), 0),
		`tensor "distance_scale" begins at byte 3196, expected 3200: tensors must neither overlap nor leave gaps`:     replace(`"dtype":"F32","shape":[1],"data_offsets":[3200,3204]`, `"dtype":"F32","shape":[1],"data_offsets":[3196,3200]`),
		`tensor "calibration.scores" begins at byte 1604, expected 1600: tensors must neither overlap nor leave gaps`: replace(`"shape":[400],"data_offsets":[1600,3200]`, `"shape":[399],"data_offsets":[1604,3200]`),
		`dtype "F31" is unknown`:                                   replace(`"dtype":"F32","shape":[1]`, `"dtype":"F31","shape":[1]`),
		"needs 16 bytes, but data_offsets [3200 3204] hold 4":      replace(`"shape":[1]`, `"shape":[4]`),
		"shape [4000000000 4000000000] is out of bounds":           replace(`"shape":[1]`, `"shape":[4000000000,4000000000]`),
		"do not lie in the file's 3228 tensor bytes":               replace(`[3204,3228]`, `[3204,9999]`),
		`header: tensor "distance_scale": key "stride" is unknown`: replace(`"shape":[1]`, `"shape":[1],"stride":[1]`),
		`header: tensor "distance_scale": key "shape" comes twice`: replace(`"shape":[1]`, `"shape":[1],"shape":[1]`),
		`header: tensor "distance_scale": not a JSON object`:       replace(`{"dtype":"F32","shape":[1],"data_offsets":[3200,3204]}`, `[]`),
		`header: __metadata__: key "alpha" comes twice`:            replace(`"alpha":"0.01"`, `"alpha":"0.01","alpha":"0.9"`),
		`header: __metadata__: alpha is 0.01, expected a string`:   replace(`"alpha":"0.01"`, `"alpha":0.01`),
		`header: __metadata__: alpha is null, expected a string`:   replace(`"alpha":"0.01"`, `"alpha":null`),
		`header: __metadata__: not a JSON object`:                  withHeader(file, func(string) string { return `{"__metadata__":null}` }),
		"format_version is missing: this is not a model of oodmon": replace(`"format_version":"1"`, `"format_versio":"1"`),
		`format_version is "2", expected "1"`:                      replace(`"format_version":"1"`, `"format_version":"2"`),
		"the file is damaged":                                      replace(`"sha256":"`, `"sha256":"0`),
		`alpha is "x", expected a number`:                          replace(`"alpha":"0.01"`, `"alpha":"x"`),
		`created is "yesterday", expected a time`:                  replace(`"2026-01-02T03:04:05Z"`, `"yesterday"`),
		`tensor "prototipes" is unknown to format version 1`:       replace(`"prototypes"`, `"prototipes"`),
		`2 prototypes`: replace(`[\"cat\",\"dog\"]`, `[\"cat\"]`),
		`distance_scale is I32[1], expected F32 with 1 dimensions`: replace(`"dtype":"F32","shape":[1]`, `"dtype":"I32","shape":[1]`),
	} {
		if _, err := decode(bytes); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

// headFile returns what a PyTorch user saves.
func headFile(t *testing.T, metadata map[string]string, tensors ...rawTensor) []byte {
	t.Helper()
	if metadata == nil {
		metadata = map[string]string{}
	}
	file, err := encodeSafetensors(metadata, tensors)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestReadHead(t *testing.T) {
	float32s := func(name string, shape ...int) rawTensor {
		n := 1
		for _, s := range shape {
			n *= s
		}
		return rawTensor{name, "F32", shape, appendValues(nil, slices.Repeat([]float32{2}, n))}
	}
	path := filepath.Join(t.TempDir(), "head.safetensors")
	read := func(file []byte, detector string) (*Model, error) {
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		return ReadHead(path, detector)
	}
	prototypes, scale := float32s("prototypes", 2, 3), float32s("distance_scale", 1)
	weights, bias := float32s("weights", 2, 3), float32s("bias", 2)
	loss := func(loss string) map[string]string { return map[string]string{"loss": loss} }
	for name, test := range map[string]struct {
		file     []byte
		detector string
		want     Model
	}{
		"bare": {headFile(t, nil, prototypes, scale), "", Model{Detector: IsoMaxPlus, Score: MDS, DistanceScale: 2, EntropicScale: 10, Classes: []string{"0", "1"}}},
		"full": {headFile(t, map[string]string{"classes": `["a","b"]`, "entropic_scale": "5", "temperature": "2", "loss": "isomax+"}, prototypes, scale, float32s("transform.matrix", 4, 3), float32s("optimizer", 9)), "",
			Model{Detector: IsoMaxPlus, Score: MDS, DistanceScale: 2, EntropicScale: 5, Temperature: 2, Classes: []string{"a", "b"}, Transform: &Transform{}}},
		"dismax":                   {headFile(t, loss("dismax"), prototypes, scale), "", Model{Detector: DisMax, Score: MMLES, DistanceScale: 2, EntropicScale: 10, Classes: []string{"0", "1"}}},
		"scale without dimensions": {headFile(t, nil, prototypes, rawTensor{"distance_scale", "F32", nil, scale.data}), "", Model{Detector: IsoMaxPlus, Score: MDS, DistanceScale: 2, EntropicScale: 10, Classes: []string{"0", "1"}}},
		"isomax":                   {headFile(t, nil, prototypes, scale), "isomax", Model{Detector: IsoMax, Score: ES, EntropicScale: 10, Classes: []string{"0", "1"}}},
		"softmax":                  {headFile(t, nil, weights, bias), "", Model{Detector: Softmax, Score: MPS, EntropicScale: 1, Classes: []string{"0", "1"}, Bias: vector(2)}},
		"torch.nn.Linear":          {headFile(t, nil, float32s("weight", 2, 3)), "", Model{Detector: Softmax, Score: MPS, EntropicScale: 1, Classes: []string{"0", "1"}, Bias: vector(2)}},
	} {
		m, err := read(test.file, test.detector)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := test.want
		if want.Temperature == 0 {
			want.Temperature = 1
		}
		if m.Detector != want.Detector || m.Score != want.Score || m.DistanceScale != want.DistanceScale || m.EntropicScale != want.EntropicScale || m.Temperature != want.Temperature ||
			!slices.Equal(m.Classes, want.Classes) || (m.Transform != nil) != (want.Transform != nil) || (m.Bias != nil) != (want.Bias != nil) || (m.Weights != nil) != (want.Bias != nil) || (m.Prototypes != nil) == (want.Bias != nil) {
			t.Errorf("%s: %+v", name, m)
		}
	}
	for _, test := range []struct {
		detector string
		file     []byte
		want     string
	}{
		{"", headFile(t, nil, scale), `tensor prototypes is missing: isomax+ needs it; the file holds ["distance_scale"]`},
		{"", headFile(t, nil, prototypes), `tensor distance_scale is missing: isomax+ needs it; the file holds ["prototypes"]`},
		{"", headFile(t, nil, float32s("prototypes", 6), scale), "tensor prototypes is F32[6], expected F32 with 2 dimensions"},
		{"", headFile(t, nil, rawTensor{"prototypes", "F16", []int{2, 3}, make([]byte, 12)}, scale), "tensor prototypes is F16[2 3], expected F32 with 2 dimensions"},
		{"", headFile(t, nil, float32s("prototypes", 0, 3), scale), "tensor prototypes has shape [0 3]: no dimension may be 0"},
		{"", headFile(t, nil, prototypes, float32s("distance_scale", 2)), "tensor distance_scale has shape [2], expected [1]"},
		{"", headFile(t, loss("hinge"), prototypes, scale), `metadata: loss "hinge" is not one of ["isomax+" "isomax" "dismax" "softmax"]`},
		{"knn", headFile(t, nil, prototypes, scale), `detector "knn" is not one of ["isomax+" "isomax" "dismax" "softmax"]`},
		{"isomax+", headFile(t, loss("dismax"), prototypes, scale), `metadata: loss is "dismax", but the detector was said to be "isomax+"`},
		{"softmax", headFile(t, nil, prototypes, scale), `tensor weights is missing: softmax needs it; the file holds ["distance_scale" "prototypes"]`},
		{"", headFile(t, nil, weights, float32s("bias", 3)), "tensor bias has shape [3], expected [2]"},
		{"", headFile(t, nil, weights, float32s("weight", 2, 3)), "tensors weight and weights are both there: which are the head's?"},
		{"", headFile(t, map[string]string{"entropic_scale": "ten"}, prototypes, scale), `metadata: entropic_scale is "ten", expected a number`},
		{"", headFile(t, map[string]string{"classes": `["a"]`}, prototypes, scale), "1 class names for 2 prototypes"},
		{"", headFile(t, nil, prototypes, scale, float32s("transform.matrix", 3, 4)), "tensor transform.matrix has shape [3 4], which does not fit prototypes of dimension 3"},
		{"", headFile(t, nil, prototypes, scale, float32s("transform.u", 3, 2)), "either tensor transform.matrix is given, or transform.u and transform.v are"},
		{"", nil, "the file has 0 bytes: too short for a safetensors file"},
	} {
		if _, err := read(test.file, test.detector); err == nil || err.Error() != "read head "+path+": "+test.want {
			t.Errorf("got  %v\nwant %s", err, test.want)
		}
	}
}

// The header is fuzzed apart from the tensors: the length before it is put
// right, and so is the digest, wherever DIGEST stands for it.
func FuzzRead(f *testing.F) {
	digest := func(body []byte) string {
		sum := sha256.Sum256(body)
		return hex.EncodeToString(sum[:])
	}
	for _, m := range tiny() {
		file, err := m.Encode()
		if err != nil {
			f.Fatal(err)
		}
		n := 8 + binary.LittleEndian.Uint64(file)
		header, body := string(file[8:n]), file[n:]
		f.Add(header, body)
		if header = strings.Replace(header, digest(body), "DIGEST", 1); !strings.Contains(header, "DIGEST") {
			f.Fatal("the header does not hold the digest")
		}
		f.Add(header, body)
		f.Add(strings.Replace(header, "[12,24]", "[11,23]", 1), body)
	}
	f.Add("{}", []byte{})
	f.Fuzz(func(t *testing.T, header string, body []byte) {
		header = strings.Replace(header, "DIGEST", digest(body), 1)
		file := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
		m, err := decode(append(append(file, header...), body...))
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatalf("a model that was accepted cannot be written: %v", err)
		}
		second, err := decode(again)
		if err != nil {
			t.Fatalf("nor read again: %v", err)
		}
		if third, err := second.Encode(); err != nil || !bytes.Equal(third, again) {
			t.Fatalf("a second time it is another model (%v)", err)
		}
	})
}

// A head that is accepted is the same when it is written and read again.
func FuzzHead(f *testing.F) {
	write := func(t testing.TB, m *Model) []byte {
		classes, err := json.Marshal(m.Classes)
		if err != nil {
			t.Fatal(err)
		}
		m.Calibration = NewCalibration([]float32{1}, []int32{0}) // which a head's file need not have
		number := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
		file, err := encodeSafetensors(map[string]string{
			"loss": m.Detector, "entropic_scale": number(m.EntropicScale), "temperature": number(m.Temperature), "classes": string(classes),
		}, m.rawTensors())
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	for _, m := range tiny() {
		if !HasLogits(m.Detector) {
			continue
		}
		file := write(f, m)
		n := 8 + binary.LittleEndian.Uint64(file)
		f.Add(string(file[8:n]), file[n:], "")
		f.Add(string(file[8:n]), file[n:], IsoMaxPlus)
		f.Add(strings.ReplaceAll(string(file[8:n]), `"weights"`, `"weight"`), file[n:], m.Detector)
	}
	f.Fuzz(func(t *testing.T, header string, body []byte, detector string) {
		file := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
		m, err := decodeHeadFile(append(append(file, header...), body...), detector)
		if err != nil {
			return
		}
		again := write(t, m)
		second, err := decodeHeadFile(again, detector)
		if err != nil {
			t.Fatalf("a head that was accepted is not accepted again: %v", err)
		}
		if third := write(t, second); !bytes.Equal(third, again) {
			t.Fatal("a second time it is another head")
		}
	})
}

func FuzzHistory(f *testing.F) {
	f.Add([]byte(`{"time":"2026-01-02T03:04:05Z","kind":"published","version":"0123456789ab"}` + "\n{\"ti"))
	f.Fuzz(func(t *testing.T, text []byte) {
		events, _ := decodeHistory(text)
		var lines []byte
		for _, e := range events {
			line, err := json.Marshal(e)
			if err != nil {
				t.Fatalf("an event that was accepted cannot be written: %v", err)
			}
			lines = append(append(lines, line...), '\n')
		}
		if again, torn := decodeHistory(lines); len(torn) > 0 || !slices.EqualFunc(events, again, func(a, b Event) bool {
			same := a.Time.Equal(b.Time)
			a.Time = b.Time
			return same && a == b
		}) {
			t.Fatalf("accepted %+v, and after a second time there is %+v", events, again)
		}
		for _, e := range events {
			if e.Kind == "" || (e.Version != "" && !isVersion(e.Version)) {
				t.Fatalf("accepted %+v", e)
			}
		}
		previousVersion(events, "0123456789ab")
	})
}
