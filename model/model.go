package model

import (
	"encoding/json"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"gorgonia.org/tensor"
)

// The detectors and scores that a model can name.
const (
	IsoMaxPlus = "isomax+"
	MDS        = "mds" // minimum distance score
)

// A Model is a head and its calibration: all that is needed to score and to
// decide. It is immutable once it is encoded or read.
//
// Shapes: C classes, D the dimension of an embedding, K that of a prototype
// (D, unless a transform says otherwise), n calibration records.
type Model struct {
	// Version is the first 12 hex digits of the file's SHA-256; set by
	// Encode and Read.
	Version string
	// Detector is what computes the distances; Score what is made of them.
	Detector, Score string
	// EntropicScale is the one that the head was trained with. Inference
	// leaves it out (Macêdo and Ludermir, "Enhanced Isotropy Maximization
	// Loss", section 3).
	EntropicScale float64
	// Temperature divides the logits.
	Temperature float64
	// Classes names the prototypes, in their order.
	Classes []string
	// Alpha is the chosen false-positive rate; with probability 1−Delta over
	// the calibration set, the rate is at most Alpha.
	Alpha, Delta float64
	Created      time.Time
	// Parent is the version that was in service when this one was made, or "".
	Parent string
	// Training is the trainer's summary, a JSON object, or nil.
	Training json.RawMessage

	// Transform comes before the distances, or nil.
	Transform *Transform
	// Prototypes is [C, K] float32; not necessarily of unit norm.
	Prototypes *tensor.Dense
	// DistanceScale multiplies every distance, by its absolute value.
	DistanceScale float32
	Calibration   Calibration
}

// A Calibration is the scores of in-distribution records that the head was not
// fitted on, ascending, and the class each was nearest to.
type Calibration struct {
	Scores []float32
	Class  []int32
}

// Dim returns D.
func (m *Model) Dim() int {
	if m.Transform != nil {
		return m.Transform.Dim()
	}
	return m.PrototypeDim()
}

// PrototypeDim returns K.
func (m *Model) PrototypeDim() int { return m.Prototypes.Shape()[1] }

// NumClasses returns C.
func (m *Model) NumClasses() int { return m.Prototypes.Shape()[0] }

// PrototypeData returns the prototypes row-major. It is not a copy.
func (m *Model) PrototypeData() []float32 { return m.Prototypes.Data().([]float32) }

// validate reports the first thing that makes the model useless.
func (m *Model) validate() error {
	if m.Detector != IsoMaxPlus {
		return fmt.Errorf("detector %q is not one of [%q]", m.Detector, IsoMaxPlus)
	}
	if m.Score != MDS {
		return fmt.Errorf("score %q is not one of [%q]", m.Score, MDS)
	}
	if m.Prototypes == nil || m.Prototypes.Dims() != 2 || m.Prototypes.Dtype() != tensor.Float32 {
		return fmt.Errorf("tensor %s: must be float32 [classes, dimension]", tensorPrototypes)
	}
	if c := m.NumClasses(); c != len(m.Classes) {
		return fmt.Errorf("%d class names for %d prototypes", len(m.Classes), c)
	}
	seen := make(map[string]bool, len(m.Classes))
	for _, name := range m.Classes {
		if name == "" || seen[name] {
			return fmt.Errorf("class name %q is empty or not unique", name)
		}
		if !utf8.ValidString(name) {
			return fmt.Errorf("class name %q is not UTF-8", name)
		}
		seen[name] = true
	}
	p, d := m.PrototypeData(), m.PrototypeDim()
	for c := range m.NumClasses() {
		norm := 0.
		for _, v := range p[c*d : (c+1)*d] {
			norm += float64(v) * float64(v)
		}
		if norm = math.Sqrt(norm); !(norm >= 1e-12) || math.IsInf(norm, 0) {
			return fmt.Errorf("tensor %s: the prototype of class %q has norm %g: it must be finite and at least 1e-12", tensorPrototypes, m.Classes[c], norm)
		}
	}
	if m.Transform != nil {
		if err := m.Transform.validate(d); err != nil {
			return err
		}
	}
	if s := float64(m.DistanceScale); s == 0 || math.IsNaN(s) || math.IsInf(s, 0) {
		return fmt.Errorf("tensor %s: %g must be finite and not 0", tensorDistanceScale, m.DistanceScale)
	}
	for _, v := range []struct {
		name  string
		value float64
	}{{"entropic_scale", m.EntropicScale}, {"temperature", m.Temperature}} {
		if !(v.value > 0) || math.IsInf(v.value, 0) {
			return fmt.Errorf("%s %g must be positive and finite", v.name, v.value)
		}
	}
	if err := validateRates(m.Alpha, m.Delta); err != nil {
		return err
	}
	return m.Calibration.validate(m.NumClasses())
}

func (c *Calibration) validate(classes int) error {
	if len(c.Scores) != len(c.Class) {
		return fmt.Errorf("tensor %s has %d values, %s has %d: they must be as many", tensorCalibrationScores, len(c.Scores), tensorCalibrationClass, len(c.Class))
	}
	for i, s := range c.Scores {
		if math.IsNaN(float64(s)) || math.IsInf(float64(s), 0) {
			return fmt.Errorf("tensor %s: value %d is %g: it must be finite", tensorCalibrationScores, i, s)
		}
		if i > 0 && s < c.Scores[i-1] {
			return fmt.Errorf("tensor %s: value %d (%g) is below the one before (%g): they must ascend", tensorCalibrationScores, i, s, c.Scores[i-1])
		}
		if k := c.Class[i]; k < 0 || int(k) >= classes {
			return fmt.Errorf("tensor %s: value %d is class %d of %d", tensorCalibrationClass, i, k, classes)
		}
	}
	return nil
}
