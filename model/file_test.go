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
	"strings"
	"testing"
)

func TestFileRoundTrip(t *testing.T) {
	m := small(4)
	m.Parent, m.Training = "0123456789ab", json.RawMessage(`{"epochs":30}`)
	file, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, m) {
		t.Errorf("read %+v, wrote %+v", got, m)
	}
	again, err := got.Encode()
	if err != nil || !bytes.Equal(again, file) {
		t.Errorf("encoding what was read gives other bytes (%v)", err)
	}
}

// The format must not change unseen: files of today must be read tomorrow.
func TestFileGolden(t *testing.T) {
	golden := filepath.Join("testdata", "golden.safetensors")
	file, err := small(4).Encode()
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
		t.Error("the bytes of a model file changed")
	}
}

func TestEncodeRefuses(t *testing.T) {
	for want, spoil := range map[string]func(*Model){
		`detector "knn" is not one of ["isomax+"]`: func(m *Model) { m.Detector = "knn" },
		`3 class names for 2 prototypes`:           func(m *Model) { m.Classes = []string{"a", "b", "c"} },
		`class name "a" is empty or not unique`:    func(m *Model) { m.Classes = []string{"a", "a"} },
		`tensor prototypes: the prototype of class "cat" has norm 0: it must be finite and at least 1e-12`:   func(m *Model) { clear(m.PrototypeData()[:3]) },
		`tensor prototypes: the prototype of class "dog" has norm NaN: it must be finite and at least 1e-12`: func(m *Model) { m.PrototypeData()[4] = float32(math.NaN()) },
		`class name "a\xff" is not UTF-8`:                                                           func(m *Model) { m.Classes = []string{"a\xff", "b"} },
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

// The header is fuzzed apart from the tensors: the length before it is put
// right, and so is the digest, wherever DIGEST stands for it.
func FuzzRead(f *testing.F) {
	m := small(4)
	m.Calibration = NewCalibration([]float32{1, 2, 3}, []int32{0, 1, 0})
	file, err := m.Encode()
	if err != nil {
		f.Fatal(err)
	}
	n := 8 + binary.LittleEndian.Uint64(file)
	header, body := string(file[8:n]), file[n:]
	digest := func(body []byte) string {
		sum := sha256.Sum256(body)
		return hex.EncodeToString(sum[:])
	}
	f.Add(header, body)
	if header = strings.Replace(header, digest(body), "DIGEST", 1); !strings.Contains(header, "DIGEST") {
		f.Fatal("the header does not hold the digest")
	}
	f.Add(header, body)
	f.Add(strings.Replace(header, "[12,24]", "[11,23]", 1), body)
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
		if _, err := decode(again); err != nil {
			t.Fatalf("nor read again: %v", err)
		}
	})
}

func FuzzHistory(f *testing.F) {
	f.Add([]byte(`{"time":"2026-01-02T03:04:05Z","kind":"published","version":"0123456789ab"}` + "\n{\"ti"))
	f.Fuzz(func(t *testing.T, text []byte) {
		events, _ := decodeHistory(text)
		for _, e := range events {
			if e.Kind == "" || (e.Version != "" && !isVersion(e.Version)) {
				t.Fatalf("accepted %+v", e)
			}
		}
		previousVersion(events, "0123456789ab")
	})
}
