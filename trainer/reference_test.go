package trainer

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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
	h := newHead(loss, ProjectionNone, 0, shape[0], shape[1])
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
				x, b := floats["features"], len(ints["targets"])
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
				h.lossOf(x, ints["targets"], nil, entropicScale)
				h.backwardProducts(b, entropicScale)
				h.backwardEmbeddings(b)
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

// twoSteps is the authors' loss of a batch with logits as they take it: in float32
// the probabilities first, of which a row's is rounded to at most 24 bits, then
// their logarithm.
func twoSteps(logits []float32, c int, y []int32, entropicScale float64) float64 {
	loss, e := 0., float32(entropicScale)
	for i, class := range y {
		row := logits[i*c : (i+1)*c]
		largest, sum := e*slices.Max(row), float32(0)
		exp := func(v float32) float32 { return float32(math.Exp(float64(e*v - largest))) }
		for _, v := range row {
			sum += exp(v)
		}
		loss -= math.Log(float64(exp(row[class]) / sum))
	}
	return loss / float64(len(y))
}

// What the two-step logarithm of the authors amounts to. Of the heads as they are
// trained here, it gives their losses to 1e-4 at every step, also where a
// probability is so near 1 that its rounding shows: there the loss of step is the
// more exact one. Nothing else is allowed for but that rounding, 2⁻²⁴, which the
// last bit of a logit decides and with it the CPU's kernel. Both lead to the same parameters
// (TestTrainingAgreesWithTheAuthors). Where a probability underflows, two steps
// are infinite; step is not.
func TestTwoStepLogarithm(t *testing.T) {
	for kind, loss := range kinds {
		floats, ints, shapes := readReference(t, filepath.Join("testdata", "training_"+kind+".safetensors"))
		h := headFrom(loss, "initial.", floats, shapes)
		x, y := floats["features"], ints["targets"]
		entropicScale := 10.
		if loss == model.Softmax {
			entropicScale = 1
		}
		optimise := newSGD(h.params(), 1e-4)
		steps := len(y) / 64
		for step, want := range floats["losses"] {
			rate, first := []float64{.1, .1, .01, .001}[step/steps/5], step%steps*64
			batch, truth := x[first*h.d:(first+64)*h.d], y[first:first+64]
			if got := twoSteps(h.logits(batch, 64), h.c, truth, entropicScale); math.Abs(got-float64(want)) > 1e-4*float64(want)+0x1p-24 {
				t.Fatalf("%s, step %d: loss %.9g by two steps, the authors have %.9g", kind, step, got, want)
			}
			h.step(batch, truth, nil, entropicScale)
			optimise.step(rate)
		}
	}

	// A record at the prototype of another class, 2 from its own: E·L is 1000
	// apart.
	h := newHead(model.IsoMaxPlus, ProjectionNone, 0, 2, 2)
	copy(h.prototypes.value, []float32{1, 0, -1, 0})
	x, y := []float32{1, 1e-3}, []int32{1}
	if two := twoSteps(h.logits(x, 1), 2, y, 500); !math.IsInf(two, 1) {
		t.Errorf("two steps: loss %g, want +Inf", two)
	}
	if got := h.step(x, y, nil, 500); math.Abs(got-1000) > 1 {
		t.Errorf("loss %g, want about 1000", got)
	}
	for _, p := range h.params() {
		for _, g := range p.grad {
			if math.IsNaN(float64(g)) || math.IsInf(float64(g), 0) {
				t.Errorf("gradient %g", p.grad)
				break
			}
		}
	}
}

// ECE and NLL are those of their definitions, computed here in float64 from the
// parameters of a model, step by step: cosines, distances, probabilities, bins.
func TestCalibrationErrorByItsDefinition(t *testing.T) {
	random := rand.New(rand.NewPCG(6, 6))
	rows := func(n int) []row {
		var all []row
		for range n {
			class := random.IntN(3)
			all = append(all, cluster(random, class, 1, string(rune('a'+class)))...)
			for j := range all[len(all)-1].Embedding {
				all[len(all)-1].Embedding[j] += float32(.5 * random.NormFloat64()) // so that they overlap
			}
		}
		return all
	}
	data, judged := rows(3000), rows(2000)
	opts := options(t, data)
	opts.Recipe.Projection = ProjectionFull
	m, _, err := Train(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	e, err := Evaluate(t.Context(), m, inMemory(judged), inMemory(rows(100)))
	if err != nil {
		t.Fatal(err)
	}

	unit := func(x []float64) []float64 {
		norm := 0.
		for _, v := range x {
			norm += v * v
		}
		for j := range x {
			x[j] /= math.Sqrt(norm)
		}
		return x
	}
	matrix := m.Transform.Matrix.Data().([]float32)
	nll, records, right, confidence := 0., make([]float64, 15), make([]float64, 15), make([]float64, 15)
	for _, r := range judged {
		z := make([]float64, dim)
		for i, v := range r.Embedding {
			for j := range z {
				z[j] += float64(v) * float64(matrix[i*dim+j])
			}
		}
		unit(z)
		p, sum, best := make([]float64, 3), 0., 0
		for k := range p {
			prototype, square := make([]float64, dim), 0.
			for j := range prototype {
				prototype[j] = float64(m.PrototypeData()[k*dim+j])
			}
			for j, v := range unit(prototype) {
				square += (z[j] - v) * (z[j] - v)
			}
			p[k] = math.Exp(-math.Abs(float64(m.DistanceScale)) * math.Sqrt(square) / m.Temperature)
			if sum += p[k]; p[k] > p[best] {
				best = k
			}
		}
		class := int(r.Label[0] - 'a')
		nll -= math.Log(p[class]/sum) / float64(len(judged))
		bin := 0
		for ; float64(bin+1)/15 < p[best]/sum; bin++ { // (bin/15, (bin+1)/15]
		}
		records[bin]++
		confidence[bin] += p[best] / sum
		if best == class {
			right[bin]++
		}
	}
	ece := 0.
	for i, n := range records {
		if n > 0 {
			ece += n / float64(len(judged)) * math.Abs(right[i]/n-confidence[i]/n)
		}
	}
	if nll < .05 || ece < .002 { // else the comparison says little
		t.Errorf("NLL %g and ECE %g: the data is too easy", nll, ece)
	}
	if math.Abs(*e.NLL-nll) > 1e-5*nll || math.Abs(*e.ECE-ece) > 1e-5 {
		t.Errorf("NLL %.9f and ECE %.9f, want %.9f and %.9f", *e.NLL, *e.ECE, nll, ece)
	}
	// From given logits, to 1e-9.
	l, want := new(likelihood), 0.
	for range 500 {
		logits := []float32{float32(random.NormFloat64()), float32(random.NormFloat64()), float32(20 * random.NormFloat64())}
		class, sum := random.IntN(3), 0.
		for _, v := range logits {
			sum += math.Exp(.7 * float64(v))
		}
		want += math.Log(sum) - .7*float64(logits[class])
		l.add(logits, class, .7)
	}
	if math.Abs(l.nll-want) > 1e-9*want {
		t.Errorf("NLL of given logits %.12f, want %.12f", l.nll, want)
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
				h := newHead(loss, projection, 3, c, d)
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
