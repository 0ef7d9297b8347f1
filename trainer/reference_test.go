package trainer

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/oodmon/oodmon/model"
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

// kinds are the losses by the names that the reference files have.
var kinds = map[string]string{"softmax": model.Softmax, "isomax": model.IsoMax, "isomaxplus": model.IsoMaxPlus, "dismax": model.DisMax}

// references are the authors' answers for a kind: those in testdata, and the
// larger ones where they are at hand.
func references(t *testing.T, kind string) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/" + kind + "_*.safetensors")
	if err != nil || len(paths) < 2 {
		t.Fatal(paths, err)
	}
	large, err := filepath.Glob(filepath.Join("..", "..", "shared", "reference", kind+"_*x*x*.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	return append(paths, large...)
}

// headFrom makes a head of the parameters of a reference file.
func headFrom(loss, prefix string, floats map[string][]float32, shapes map[string][]int) *head {
	name := "prototypes"
	if loss == model.Softmax {
		name = "weights"
	}
	shape := shapes[prefix+name]
	h := newHead(loss, ProjectionNone, 0, shape[0], shape[1], nil)
	copy(h.prototypes.value, floats[prefix+name])
	copy(h.bias.value, floats[prefix+"bias"])
	copy(h.scale.value, floats[prefix+"distance_scale"])
	return h
}

// The logits, the loss and all gradients are those of the authors' modules.
func TestLossesAgreeWithTheAuthors(t *testing.T) {
	for kind, loss := range kinds {
		for _, path := range references(t, kind) {
			t.Run(filepath.Base(path), func(t *testing.T) {
				floats, ints, shapes := readReference(t, path)
				h := headFrom(loss, "", floats, shapes)
				x, d, b := floats["features"], h.d, len(ints["targets"])
				norms := make([]float32, b)
				if h.directional() {
					x = make([]float32, len(x))
					normaliseRows(x, floats["features"], norms, d)
				}
				entropicScale := 10.
				if loss == model.Softmax {
					entropicScale = 1
				}
				closeTo(t, "logits", h.logits(x, b), floats["logits"], 1e-5)
				closeTo(t, "loss", []float32{float32(h.step(x, ints["targets"], nil, entropicScale))}, floats["loss"], 1e-5)
				name := "prototypes"
				if loss == model.Softmax {
					name = "weights"
					closeTo(t, "gradient of the bias", h.bias.grad, floats["grad.bias"], 1e-5)
				}
				closeTo(t, "gradient of the "+name, h.prototypes.grad, floats["grad."+name], 1e-5)
				if h.scaled() {
					closeTo(t, "gradient of the scale", h.scale.grad, floats["grad.distance_scale"], 1e-5)
				}
				// What a projection gets its gradient from.
				h.backwardEmbeddings(b)
				if h.directional() {
					throughNorms(h.pass.gradZ, x, norms, d)
				}
				within := 1e-5
				if loss == model.IsoMax {
					within = 2e-5 // in the largest file PyTorch itself is 1.5e-5 from its answer in float64
				}
				closeTo(t, "gradient of the features", h.pass.gradZ, floats["grad.features"], within)
			})
		}
	}
}

// Step for step, training goes the way of the authors' modules: their recipe,
// batches in the order of the file, the learning rate a tenth from epoch 10 and a
// hundredth from epoch 15 of 20.
func TestTrainingAgreesWithTheAuthors(t *testing.T) {
	for kind, loss := range kinds {
		t.Run(kind, func(t *testing.T) {
			floats, ints, shapes := readReference(t, filepath.Join("testdata", "training_"+kind+".safetensors"))
			h := headFrom(loss, "initial.", floats, shapes)
			x, y := floats["features"], ints["targets"]
			if h.directional() {
				normaliseRows(x, x, make([]float32, len(y)), h.d)
			}
			entropicScale := 10.
			if loss == model.Softmax {
				entropicScale = 1
			}
			optimise := newSGD(h.params(), 1e-4)
			step, rate := 0, .1
			for epoch := range 20 {
				if epoch == 10 || epoch == 15 {
					rate /= 10
				}
				for i := 0; i < len(y); i += 64 {
					got := h.step(x[i*h.d:(i+64)*h.d], y[i:i+64], nil, entropicScale)
					if want := float64(floats["losses"][step]); math.Abs(got-want) > 1e-4*want+1e-7 { // a probability near 1 is rounded to 6e-8
						t.Fatalf("step %d: loss %.7f, want %.7f", step, got, want)
					}
					optimise.step(rate)
					step++
				}
			}
			if step != len(floats["losses"]) {
				t.Errorf("%d steps, want %d", step, len(floats["losses"]))
			}
			final := headFrom(loss, "final.", floats, shapes)
			for i, p := range final.params() {
				closeTo(t, fmt.Sprint("final parameter ", i), h.params()[i].value, p.value, 1e-4)
			}
		})
	}
}

// The gradients of the projections are those of finite differences.
func TestProjectionGradients(t *testing.T) {
	const b, c, d = 16, 5, 9
	for kind, loss := range kinds {
		for _, projection := range []Projection{ProjectionFull, ProjectionLowRank} {
			t.Run(kind+" "+string(projection), func(t *testing.T) {
				random := rand.New(rand.NewPCG(1, 2))
				normal := func(to []float32, scale float64) {
					for i := range to {
						to[i] = float32(scale * random.NormFloat64())
					}
				}
				h := newHead(loss, projection, 3, c, d, random)
				// Their x is not of unit norm, and need not be: the projection comes first.
				x, y := make([]float32, b*d), make([]int32, b)
				normal(x, 1)
				for i := range y {
					y[i] = int32(random.IntN(c))
				}
				for _, p := range h.params() {
					normal(p.value, .5)
				}
				weights := []float32{1, 2, .5, 1, .1}
				h.step(x, y, weights, 2)
				for i, p := range h.params() {
					grad := append([]float32(nil), p.grad...)
					for range 10 {
						at := random.IntN(len(grad))
						const eps = 1e-2
						was := p.value[at]
						p.value[at] = was + eps
						up := h.lossOf(x, y, weights, 2)
						p.value[at] = was - eps
						down := h.lossOf(x, y, weights, 2)
						p.value[at] = was
						if want := (up - down) / (2 * eps); math.Abs(float64(grad[at])-want) > 2e-3*math.Max(1, math.Abs(want)) {
							t.Errorf("parameter %d, value %d: gradient %g, finite differences give %g", i, at, grad[at], want)
						}
					}
				}
			})
		}
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
