package trainer

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"
)

// readReference reads the float32 and int32 tensors of a safetensors file.
func readReference(t testing.TB, path string) (floats map[string][]float32, ints map[string][]int32, shapes map[string][]int) {
	t.Helper()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(file)
	var header map[string]struct {
		Dtype   string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	if err := json.Unmarshal(file[8:8+n], &header); err != nil {
		t.Fatal(err)
	}
	floats, ints, shapes = make(map[string][]float32), make(map[string][]int32), make(map[string][]int)
	for name, h := range header {
		data := file[8+n:][h.Offsets[0]:h.Offsets[1]]
		shapes[name] = h.Shape
		for i := 0; i+4 <= len(data); i += 4 {
			bits := binary.LittleEndian.Uint32(data[i:])
			switch h.Dtype {
			case "F32":
				floats[name] = append(floats[name], math.Float32frombits(bits))
			case "I32":
				ints[name] = append(ints[name], int32(bits))
			}
		}
	}
	return floats, ints, shapes
}

// closeTo compares within a share of the largest value.
func closeTo(t *testing.T, what string, got, want []float32, within float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	largest := 0.
	for _, v := range want {
		largest = math.Max(largest, math.Abs(float64(v)))
	}
	for i := range want {
		if diff := math.Abs(float64(got[i] - want[i])); !(diff <= within*largest) {
			t.Errorf("%s: value %d is %g, want %g", what, i, got[i], want[i])
			return
		}
	}
}

func references(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/isomaxplus_*.safetensors")
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	return paths
}

// The loss and its gradients are those of the authors' module.
func TestLossAgreesWithTheAuthors(t *testing.T) {
	for _, path := range references(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			floats, ints, shapes := readReference(t, path)
			c, d := shapes["prototypes"][0], shapes["prototypes"][1]
			h := newHead(floats["prototypes"], c, d)
			h.scale = floats["distance_scale"][0]
			unit := make([]float32, len(floats["features"]))
			for i := 0; i < len(unit); i += d {
				if !normalise(unit[i:i+d], floats["features"][i:i+d]) {
					t.Fatal("a feature without direction")
				}
			}
			loss := h.step(unit, ints["targets"], 10)
			closeTo(t, "loss", []float32{float32(loss)}, floats["loss"], 1e-5)
			closeTo(t, "gradient of the prototypes", h.gradPrototypes, floats["grad.prototypes"], 1e-5)
			closeTo(t, "gradient of the scale", []float32{h.gradScale}, floats["grad.distance_scale"], 1e-5)
		})
	}
}

// The metrics are scikit-learn's.
func TestMetricsAgreeWithScikitLearn(t *testing.T) {
	path := filepath.Join("..", "..", "shared", "reference", "metrics.json")
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		t.Skip("needs the reference metrics, which are not part of the project")
	}
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Cases []struct {
			Name    string `json:"name"`
			Inside  []any  `json:"in"`
			Outside []any  `json:"out"`
			Detection
			Authors struct {
				DTACC float64 `json:"DTACC"`
			} `json:"authors"`
		} `json:"cases"`
	}
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, c := range document.Cases {
		// Theirs are float64, and larger is more in-distribution.
		float32s := func(all []any) (out []float32) {
			for _, v := range all {
				if f, ok := v.(float64); ok {
					out = append(out, -float32(f))
				}
			}
			return out
		}
		want := c.Detection // scikit-learn's, which has no DTACC
		want.DTACC = c.Authors.DTACC
		got := Detect(float32s(c.Inside), float32s(c.Outside))
		for _, v := range []struct {
			what      string
			got, want float64
		}{{"AUROC", got.AUROC, want.AUROC}, {"AUPR-in", got.AUPRIn, want.AUPRIn}, {"AUPR-out", got.AUPROut, want.AUPROut}, {"TNR@TPR95", got.TNRAtTPR95, want.TNRAtTPR95}, {"DTACC", got.DTACC, want.DTACC}} {
			if math.Abs(v.got-v.want) > 1e-9 {
				t.Errorf("%s: %s is %.12f, want %.12f", c.Name, v.what, v.got, v.want)
			}
			checked++
		}
	}
	if checked < 50 {
		t.Errorf("only %d figures were checked", checked)
	}
}

func TestDetect(t *testing.T) {
	for _, test := range []struct {
		name            string
		inside, outside []float32
		want            Detection
	}{
		{"separated", []float32{1, 2}, []float32{3, 4}, Detection{1, 1, 1, 1, 1}},
		{"reversed", []float32{3, 4}, []float32{1, 2}, Detection{0, 5. / 12, 5. / 12, 0, .5}},
		{"all equal", []float32{1, 1}, []float32{1, 1}, Detection{.5, .5, .5, 0, .5}},
	} {
		got := Detect(test.inside, test.outside)
		if math.Abs(got.AUROC-test.want.AUROC)+math.Abs(got.AUPRIn-test.want.AUPRIn)+math.Abs(got.AUPROut-test.want.AUPROut)+math.Abs(got.TNRAtTPR95-test.want.TNRAtTPR95)+math.Abs(got.DTACC-test.want.DTACC) > 1e-12 {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}
