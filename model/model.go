package model

import (
	"encoding/json"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"gorgonia.org/tensor"
)

// A Model is a detector and its calibration: all that is needed to score and to
// decide. It is immutable once it is encoded or read.
//
// Shapes: C classes, D the dimension of an embedding, K that of a prototype
// (D, unless a transform says otherwise), n calibration records, M embeddings
// in a bank.
type Model struct {
	// Version is the first 12 hex digits of the file's SHA-256; set by
	// Encode and Read.
	Version string
	// Detector is what an embedding is compared with, and how; Score what is
	// made of it. Detectors and Scores list them.
	Detector, Score string
	// EntropicScale is the one that the head was trained with; 1 where there
	// is none. Inference leaves it out (Macêdo and Ludermir, "Enhanced Isotropy
	// Maximization Loss", section 3).
	EntropicScale float64
	// Temperature divides the logits.
	Temperature float64
	// Classes names the classes, in the order of the prototypes or weights.
	Classes []string
	// Alpha is the chosen false-positive rate; with probability 1−Delta over
	// the calibration set, the rate is at most Alpha.
	Alpha, Delta float64
	Created      time.Time
	// Parent is the version that was in service when this one was made, or "".
	Parent string
	// Training is the trainer's summary, a JSON object, or nil.
	Training json.RawMessage

	// What follows is float32, and nil or 0 where the detector has no use for
	// it: detector.go says which has what.

	// Transform comes before the rest, or nil.
	Transform *Transform
	// Prototypes is [C, K]: of isomax+, isomax, dismax and class-means, not
	// necessarily of unit norm. For the Mahalanobis detectors and fdbd it holds
	// the class means, [C, D].
	Prototypes *tensor.Dense
	// DistanceScale multiplies every distance of isomax+ and dismax, by its
	// absolute value.
	DistanceScale float32
	// Weights [C, K] and Bias [C] are of softmax.
	Weights, Bias *tensor.Dense
	// Bank [M, D] holds the embeddings of knn, and BankClass their classes;
	// Neighbours is k.
	Bank       *tensor.Dense
	BankClass  []int32
	Neighbours int
	// PrecisionFactor [D, D] is W of the precision matrix W·Wᵀ that the classes
	// share; BackgroundMean [D] and BackgroundFactor [D, D] are of the one
	// Gaussian that relative-mahalanobis compares with. The mean is fdbd's too.
	PrecisionFactor                  *tensor.Dense
	BackgroundMean, BackgroundFactor *tensor.Dense

	Calibration Calibration
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

// PrototypeDim returns K, the dimension in which embeddings are compared.
func (m *Model) PrototypeDim() int {
	for _, t := range []*tensor.Dense{m.Prototypes, m.Weights, m.Bank} {
		if t != nil {
			return t.Shape()[1]
		}
	}
	return 0
}

// NumClasses returns C.
func (m *Model) NumClasses() int { return len(m.Classes) }

// PrototypeData returns the prototypes row-major. It is not a copy.
func (m *Model) PrototypeData() []float32 { return m.Prototypes.Data().([]float32) }

// validate reports the first thing that makes the model useless.
func (m *Model) validate() error {
	if err := m.validateHead(); err != nil {
		return err
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
