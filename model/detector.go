package model

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"gorgonia.org/tensor"
)

// The detectors. x is an embedding or what the transform makes of it, x^ its
// direction, L the logits of a head, T the temperature.
const (
	// The heads, after Macêdo and Ludermir: "Entropic Out-of-Distribution
	// Detection" (isomax), "Enhanced Isotropy Maximization Loss" (isomax+),
	// "Distinction Maximization Loss" (dismax).
	IsoMaxPlus = "isomax+" // L_c = −|s|·‖x^ − p^_c‖ / T
	IsoMax     = "isomax"  // L_c = −‖x − p_c‖ / T
	DisMax     = "dismax"  // L_c = −(D_c + mean_k D_k) / T with D_c = |s|·‖x^ − p^_c‖/√2
	Softmax    = "softmax" // L_c = (w_c·x + b_c) / T

	// What needs no training. Mahalanobis distance: Lee et al., "A Simple
	// Unified Framework for Detecting Out-of-Distribution Samples" (2018), of
	// directions as Müller and Hein, "Mahalanobis++" (2025), have it; relative:
	// Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD
	// Detection" (2021); kNN: Sun et al., "Out-of-Distribution Detection with
	// Deep Nearest Neighbors" (2022); fDBD: Liu and Qin, "Fast Decision Boundary
	// based Out-of-Distribution Detector" (2024), of the nearest class mean.
	ClassMeans          = "class-means"          // min_c ‖x^ − p^_c‖
	KNN                 = "knn"                  // the k-th least ‖x^ − b^_i‖
	Mahalanobis         = "mahalanobis"          // min_c ‖(x^ − p_c)·W‖²
	RelativeMahalanobis = "relative-mahalanobis" // the same less ‖(x^ − m)·W0‖²
	FDBD                = "fdbd"                 // −mean_c d_c/‖x^ − m‖, d_c to the boundary between class c and that of x^
)

// The scores. Larger is more out of distribution: they are the negatives of the
// authors'.
const (
	MDS      = "mds"       // minimum distance score, −max L
	MaxLogit = "max-logit" // the same, by the name that it has for softmax
	MPS      = "mps"       // maximum probability score, −max softmax(L)
	ES       = "es"        // entropic score, the entropy of softmax(L)
	MMLS     = "mmls"      // −(max L + mean L)
	MMLES    = "mmles"     // −(max L + mean L − entropy of softmax(L))
	Energy   = "energy"    // −log Σ exp L (Liu et al., "Energy-based Out-of-distribution Detection")
	Distance = "distance"  // the detector's own distance
)

// A detectorSpec says what a detector has.
type detectorSpec struct {
	name string
	// scores are those that it can give; the first is the default.
	scores []string
	// tensors are what it needs beside the calibration.
	tensors   []string
	transform bool // it may have one
	// directions: only the directions of x and of the prototypes count, so
	// that no prototype may be zero.
	directions bool
}

// detectors is in the order of the documentation.
var detectors = []detectorSpec{
	{IsoMaxPlus, []string{MDS, MPS, ES, MMLS, MMLES, MaxLogit, Energy}, []string{tensorDistanceScale, tensorPrototypes}, true, true},
	{IsoMax, []string{ES, MDS, MPS, MMLS, MMLES, MaxLogit, Energy}, []string{tensorPrototypes}, true, false},
	{DisMax, []string{MMLES, MDS, MPS, ES, MMLS, MaxLogit, Energy}, []string{tensorDistanceScale, tensorPrototypes}, true, true},
	{Softmax, []string{MPS, MDS, ES, MMLS, MMLES, MaxLogit, Energy}, []string{tensorBias, tensorWeights}, true, false},
	{ClassMeans, []string{MDS}, []string{tensorPrototypes}, false, true},
	{KNN, []string{Distance}, []string{tensorBank, tensorBankClass}, false, true},
	{Mahalanobis, []string{Distance}, []string{tensorPrecisionFactor, tensorPrototypes}, false, false},
	{RelativeMahalanobis, []string{Distance}, []string{tensorBackgroundFactor, tensorBackgroundMean, tensorPrecisionFactor, tensorPrototypes}, false, false},
	{FDBD, []string{Distance}, []string{tensorBackgroundMean, tensorPrototypes}, false, false},
}

// Detectors lists the detectors: first the heads, then what needs no training.
func Detectors() []string {
	var names []string
	for _, d := range detectors {
		names = append(names, d.name)
	}
	return names
}

// Scores lists the scores that a detector can give, its default first; nil for
// one that does not exist.
func Scores(detector string) []string {
	if d := specOf(detector); d != nil {
		return slices.Clone(d.scores)
	}
	return nil
}

// HasLogits reports whether the detector is a head, which has logits and thus
// probabilities.
func HasLogits(detector string) bool { return len(Scores(detector)) > 1 }

func specOf(detector string) *detectorSpec {
	for i := range detectors {
		if detectors[i].name == detector {
			return &detectors[i]
		}
	}
	return nil
}

// tensorNames are in the order of the file.
var tensorNames = []string{
	tensorBackgroundFactor, tensorBackgroundMean, tensorBank, tensorBankClass, tensorBias, tensorCalibrationClass, tensorCalibrationScores,
	tensorDistanceScale, tensorPrecisionFactor, tensorPrototypes, tensorMatrix, tensorU, tensorV, tensorWeights,
}

// A denseTensor is a tensor of the head, with where it is kept.
type denseTensor struct {
	name string
	at   **tensor.Dense
	dims int
}

func (m *Model) denseTensors() []denseTensor {
	return []denseTensor{
		{tensorBackgroundFactor, &m.BackgroundFactor, 2}, {tensorBackgroundMean, &m.BackgroundMean, 1}, {tensorBank, &m.Bank, 2},
		{tensorBias, &m.Bias, 1}, {tensorPrecisionFactor, &m.PrecisionFactor, 2}, {tensorPrototypes, &m.Prototypes, 2}, {tensorWeights, &m.Weights, 2},
	}
}

// rawTensors returns the tensors as they are written.
func (m *Model) rawTensors() []rawTensor {
	all := []rawTensor{
		{tensorCalibrationClass, "I32", []int{len(m.Calibration.Class)}, appendValues(nil, m.Calibration.Class)},
		{tensorCalibrationScores, "F32", []int{len(m.Calibration.Scores)}, appendValues(nil, m.Calibration.Scores)},
	}
	for _, t := range m.denseTensors() {
		if *t.at != nil {
			all = append(all, rawTensor{t.name, "F32", (*t.at).Shape(), appendValues(nil, (*t.at).Data().([]float32))})
		}
	}
	if m.BankClass != nil {
		all = append(all, rawTensor{tensorBankClass, "I32", []int{len(m.BankClass)}, appendValues(nil, m.BankClass)})
	}
	if m.DistanceScale != 0 {
		all = append(all, rawTensor{tensorDistanceScale, "F32", []int{1}, appendValues(nil, []float32{m.DistanceScale})})
	}
	if m.Transform != nil {
		all = append(all, m.Transform.rawTensors()...)
	}
	slices.SortFunc(all, func(a, b rawTensor) int { return strings.Compare(a.name, b.name) })
	return all
}

// decodeHead takes in what the file holds; validateHead says whether that is
// what the detector needs.
func (m *Model) decodeHead(tensors map[string]rawTensor) (err error) {
	for _, t := range m.denseTensors() {
		if _, ok := tensors[t.name]; !ok {
			continue
		}
		values, shape, err := float32Tensor(tensors, t.name, t.dims)
		if err != nil {
			return err
		}
		*t.at = tensor.New(tensor.WithShape(shape...), tensor.WithBacking(values))
	}
	if _, ok := tensors[tensorBankClass]; ok {
		if m.BankClass, err = int32Tensor(tensors, tensorBankClass); err != nil {
			return err
		}
	}
	if _, ok := tensors[tensorDistanceScale]; ok {
		scale, shape, err := float32Tensor(tensors, tensorDistanceScale, 1)
		if err != nil {
			return err
		}
		if shape[0] != 1 {
			return fmt.Errorf("tensor %s has shape %v, expected [1]", tensorDistanceScale, shape)
		}
		if m.DistanceScale = scale[0]; m.DistanceScale == 0 {
			return errScale(0)
		}
	}
	m.Transform, err = decodeTransform(tensors)
	return err
}

func errScale(scale float32) error {
	return fmt.Errorf("tensor %s: %g must be finite and not 0", tensorDistanceScale, scale)
}

// validateHead checks the detector, its score and its tensors, with the number
// of class names.
func (m *Model) validateHead() error {
	spec := specOf(m.Detector)
	if spec == nil {
		return fmt.Errorf("detector %q is not one of %q", m.Detector, Detectors())
	}
	if !slices.Contains(spec.scores, m.Score) {
		return fmt.Errorf("score %q is not one of %q of detector %s", m.Score, spec.scores, m.Detector)
	}
	if err := m.validateTensors(spec); err != nil {
		return err
	}
	c, k := len(m.Classes), m.PrototypeDim()
	for _, t := range []struct {
		name  string
		t     *tensor.Dense
		shape []int // 0: any
	}{
		{tensorPrototypes, m.Prototypes, []int{c, k}}, {tensorWeights, m.Weights, []int{c, k}}, {tensorBias, m.Bias, []int{c}}, {tensorBank, m.Bank, []int{len(m.BankClass), k}},
		{tensorPrecisionFactor, m.PrecisionFactor, []int{k, k}}, {tensorBackgroundMean, m.BackgroundMean, []int{k}}, {tensorBackgroundFactor, m.BackgroundFactor, []int{k, k}},
	} {
		if t.t == nil {
			continue
		}
		if shape := t.t.Shape(); !slices.Equal(shape, t.shape) {
			if len(shape) > 0 && (t.name == tensorPrototypes || t.name == tensorWeights) && shape[0] != c {
				return fmt.Errorf("%d class names for %d %s", c, shape[0], t.name)
			}
			return fmt.Errorf("tensor %s has shape %v, expected %v", t.name, []int(shape), t.shape)
		}
		if err := m.validateRows(spec, t.name, t.t); err != nil {
			return err
		}
	}
	if m.Transform != nil {
		if err := m.Transform.validate(k); err != nil {
			return err
		}
	}
	if s := float64(m.DistanceScale); math.IsNaN(s) || math.IsInf(s, 0) {
		return errScale(m.DistanceScale)
	}
	for i, class := range m.BankClass {
		if class < 0 || int(class) >= c {
			return fmt.Errorf("tensor %s: value %d is class %d of %d", tensorBankClass, i, class, c)
		}
	}
	if m.Detector == KNN && (m.Neighbours < 1 || m.Neighbours > len(m.BankClass)) {
		return fmt.Errorf("neighbours %d must be between 1 and the %d embeddings of the bank", m.Neighbours, len(m.BankClass))
	} else if m.Detector != KNN && m.Neighbours != 0 {
		return fmt.Errorf("neighbours %d: detector %s has none", m.Neighbours, m.Detector)
	}
	return nil
}

// validateTensors checks that the detector's tensors, and no others, are there.
func (m *Model) validateTensors(spec *detectorSpec) error {
	check := func(name string, there bool) error {
		switch needed := slices.Contains(spec.tensors, name); {
		case needed && !there && name == tensorDistanceScale:
			return errScale(0)
		case needed && !there:
			return fmt.Errorf("tensor %s is missing: detector %s needs it", name, spec.name)
		case !needed && there:
			return fmt.Errorf("tensor %s: detector %s has none", name, spec.name)
		}
		return nil
	}
	for _, t := range m.denseTensors() {
		if err := check(t.name, *t.at != nil); err != nil {
			return err
		}
		if *t.at != nil && ((*t.at).Dims() != t.dims || (*t.at).Dtype() != tensor.Float32) {
			return fmt.Errorf("tensor %s: must be float32 with %d dimensions", t.name, t.dims)
		}
	}
	if err := check(tensorBankClass, m.BankClass != nil); err != nil {
		return err
	}
	if err := check(tensorDistanceScale, m.DistanceScale != 0); err != nil {
		return err
	}
	if m.Transform != nil && !spec.transform {
		return fmt.Errorf("detector %s has no transform", spec.name)
	}
	return nil
}

// validateRows checks that values are finite, and that what must have a
// direction has one.
func (m *Model) validateRows(spec *detectorSpec, name string, t *tensor.Dense) error {
	values := t.Data().([]float32)
	row := func(i int) string {
		if name == tensorPrototypes {
			return fmt.Sprintf("the prototype of class %q", m.Classes[i])
		}
		return fmt.Sprintf("row %d", i)
	}
	if spec.directions {
		d := t.Shape()[1]
		for i := range t.Shape()[0] {
			if norm := norm(values[i*d : (i+1)*d]); !(norm >= 1e-12) || math.IsInf(norm, 0) {
				return fmt.Errorf("tensor %s: %s has norm %g: it must be finite and at least 1e-12", name, row(i), norm)
			}
		}
		return nil
	}
	for i, v := range values {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return fmt.Errorf("tensor %s: value %d is %g: it must be finite", name, i, v)
		}
	}
	return nil
}

func norm(x []float32) float64 {
	s := 0.
	for _, v := range x {
		s += float64(v) * float64(v)
	}
	return math.Sqrt(s)
}
