package model

import (
	"fmt"
	"math"

	"gorgonia.org/tensor"
)

// A Transform is what an embedding x of dimension D goes through before it is
// compared with the prototypes: x·Matrix, or the identity plus low rank
// x + (x·U)·V. Either Matrix is set, or U and V are.
type Transform struct {
	Matrix *tensor.Dense // [D, K] float32
	U, V   *tensor.Dense // [D, r] and [r, D] float32
}

// Dim returns D.
func (t *Transform) Dim() int {
	if t.Matrix != nil {
		return t.Matrix.Shape()[0]
	}
	return t.U.Shape()[0]
}

// String says what it is: "matrix 384×512", or "low rank 64".
func (t *Transform) String() string {
	if t.Matrix != nil {
		return fmt.Sprintf("matrix %d×%d", t.Matrix.Shape()[0], t.Matrix.Shape()[1])
	}
	return fmt.Sprintf("low rank %d", t.U.Shape()[1])
}

// validate checks the transform of a head whose prototypes have k dimensions.
func (t *Transform) validate(k int) error {
	if (t.Matrix != nil) == (t.U != nil) || (t.U == nil) != (t.V == nil) {
		return fmt.Errorf("either tensor %s is given, or %s and %s are", tensorMatrix, tensorU, tensorV)
	}
	for _, v := range []struct {
		name       string
		t          *tensor.Dense
		rows, cols int // 0: any
	}{{tensorMatrix, t.Matrix, 0, k}, {tensorU, t.U, k, 0}, {tensorV, t.V, 0, k}} {
		if v.t == nil {
			continue
		}
		if v.t.Dims() != 2 || v.t.Dtype() != tensor.Float32 {
			return fmt.Errorf("tensor %s: must be float32 with 2 dimensions", v.name)
		}
		if shape := v.t.Shape(); v.rows > 0 && shape[0] != v.rows || v.cols > 0 && shape[1] != v.cols {
			return fmt.Errorf("tensor %s has shape %v, which does not fit prototypes of dimension %d", v.name, []int(shape), k)
		}
		for i, value := range v.t.Data().([]float32) {
			if math.IsNaN(float64(value)) || math.IsInf(float64(value), 0) {
				return fmt.Errorf("tensor %s: value %d is %g: it must be finite", v.name, i, value)
			}
		}
	}
	if t.U != nil && t.U.Shape()[1] != t.V.Shape()[0] {
		return fmt.Errorf("tensor %s has rank %d, %s has %d: they must be equal", tensorU, t.U.Shape()[1], tensorV, t.V.Shape()[0])
	}
	return nil
}

// rawTensors returns the transform as it is written.
func (t *Transform) rawTensors() []rawTensor {
	var all []rawTensor
	for _, v := range []struct {
		name string
		t    *tensor.Dense
	}{{tensorMatrix, t.Matrix}, {tensorU, t.U}, {tensorV, t.V}} {
		if v.t != nil {
			all = append(all, rawTensor{v.name, "F32", v.t.Shape(), appendValues(nil, v.t.Data().([]float32))})
		}
	}
	return all
}

// decodeTransform returns nil where the tensors hold none.
func decodeTransform(tensors map[string]rawTensor) (*Transform, error) {
	var t Transform
	for _, v := range []struct {
		name string
		to   **tensor.Dense
	}{{tensorMatrix, &t.Matrix}, {tensorU, &t.U}, {tensorV, &t.V}} {
		if _, ok := tensors[v.name]; !ok {
			continue
		}
		values, shape, err := float32Tensor(tensors, v.name, 2)
		if err != nil {
			return nil, err
		}
		*v.to = tensor.New(tensor.WithShape(shape...), tensor.WithBacking(values))
	}
	if t == (Transform{}) {
		return nil, nil
	}
	return &t, nil
}
