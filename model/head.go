package model

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"

	"gorgonia.org/tensor"
)

// ReadHead reads the safetensors file of a head that was trained elsewhere, as
// a PyTorch user saves it. What it returns has no calibration, rates or time
// yet.
//
// The tensors, float32: prototypes [C, K] and, for isomax+ and dismax,
// distance_scale [1] or []; or, for softmax, weights [C, K] (or weight, as a
// torch.nn.Linear calls it) and bias [C], 0 where there is none; if present
// transform.matrix [D, K], or transform.u [D, r] and transform.v [r, D]. Other
// tensors are ignored.
//
// The metadata, where present: loss, which names the head; entropic_scale
// (else 10; for softmax 1); temperature (else 1); classes, a JSON array (else they
// are named by their numbers).
//
// detector names the head; "": as the metadata's loss says, else softmax where
// there are weights and isomax+ where there are none. The score is the head's
// default.
func ReadHead(path, detector string) (*Model, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read head: %w", err)
	}
	m, err := decodeHeadFile(file, detector)
	if err != nil {
		return nil, fmt.Errorf("read head %s: %w", path, err)
	}
	return m, nil
}

func decodeHeadFile(file []byte, detector string) (*Model, error) {
	metadata, tensors, _, err := decodeSafetensors(file)
	if err != nil {
		return nil, err
	}
	if weight, ok := tensors["weight"]; ok {
		if _, both := tensors[tensorWeights]; both {
			return nil, fmt.Errorf("tensors weight and %s are both there: which are the head's?", tensorWeights)
		}
		tensors[tensorWeights] = weight
	}
	if scale, ok := tensors[tensorDistanceScale]; ok && len(scale.shape) == 0 { // a parameter without dimensions
		scale.shape = []int{1}
		tensors[tensorDistanceScale] = scale
	}
	loss, told := metadata["loss"]
	switch _, weights := tensors[tensorWeights]; {
	case detector != "":
		if told && loss != detector {
			return nil, fmt.Errorf("metadata: loss is %q, but the detector was said to be %q", loss, detector)
		}
	case told:
		detector = loss
	case weights:
		detector = Softmax
	default:
		detector = IsoMaxPlus
	}
	if !HasLogits(detector) {
		if told {
			return nil, fmt.Errorf("metadata: loss %q is not one of %q", detector, Heads())
		}
		return nil, fmt.Errorf("detector %q is not one of %q", detector, Heads())
	}
	spec := specOf(detector)
	m := &Model{Detector: detector, Score: spec.scores[0], EntropicScale: 10, Temperature: 1}
	if detector == Softmax {
		m.EntropicScale = 1
	}
	own := make(map[string]rawTensor)
	for name, t := range tensors {
		if slices.Contains(spec.tensors, name) || name == tensorMatrix || name == tensorU || name == tensorV {
			own[name] = t
		}
	}
	if err := m.decodeHead(own); err != nil {
		return nil, err
	}
	if detector == Softmax && m.Weights != nil && m.Bias == nil {
		c := m.Weights.Shape()[0]
		m.Bias = tensor.New(tensor.WithShape(c), tensor.WithBacking(make([]float32, c)))
	}
	for _, name := range spec.tensors {
		if _, ok := own[name]; !ok && name != tensorBias {
			return nil, fmt.Errorf("tensor %s is missing: %s needs it; the file holds %q", name, detector, slices.Sorted(maps.Keys(tensors)))
		}
	}
	if text, ok := metadata["classes"]; ok {
		if err := json.Unmarshal([]byte(text), &m.Classes); err != nil {
			return nil, fmt.Errorf("metadata: classes: %w, expected a JSON array of strings", err)
		}
	} else {
		for i := range m.classRows() {
			m.Classes = append(m.Classes, strconv.Itoa(i))
		}
	}
	if err := m.validateHead(); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		key string
		to  *float64
	}{{"entropic_scale", &m.EntropicScale}, {"temperature", &m.Temperature}} {
		if text, ok := metadata[f.key]; ok {
			if *f.to, err = strconv.ParseFloat(text, 64); err != nil {
				return nil, fmt.Errorf("metadata: %s is %q, expected a number", f.key, text)
			}
		}
	}
	return m, nil
}

// classRows is how many classes the tensors of a head are for.
func (m *Model) classRows() int {
	if m.Weights != nil {
		return m.Weights.Shape()[0]
	}
	return m.Prototypes.Shape()[0]
}

// Heads lists the detectors that have logits.
func Heads() []string {
	return slices.DeleteFunc(Detectors(), func(d string) bool { return !HasLogits(d) })
}
