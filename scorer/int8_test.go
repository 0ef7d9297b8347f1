package scorer

import (
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/oodmon/oodmon/featurizer"
)

// What int8 embeddings, each row divided by its largest value over 127, do to the
// scores and decisions of real ones: see docs/performance.md.
func TestInt8Embeddings(t *testing.T) {
	const dim, alpha = 384, 0.01
	read := func(name string) (x []float32, labels []string) {
		path := filepath.Join("..", "..", "shared", "data", "clinc150", name+".arrow")
		r, err := featurizer.OpenFile(path)
		if errors.Is(err, os.ErrNotExist) {
			t.Skipf("needs the CLINC150 embeddings: %s is not there", path)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for {
			rec, err := r.Next()
			if errors.Is(err, io.EOF) {
				return x, labels
			}
			if err != nil {
				t.Fatal(err)
			}
			rows, _, err := featurizer.Embeddings(rec)
			if err != nil {
				t.Fatal(err)
			}
			x = append(x, rows...)
			label, err := featurizer.Column[*array.String](rec, featurizer.ColLabel)
			if err != nil {
				t.Fatal(err)
			}
			for i := range label.Len() {
				labels = append(labels, string([]byte(label.Value(i))))
			}
			rec.Release()
		}
	}
	x, labels := read("train")
	class := make(map[string]int)
	var sums []float32 // class means but for a factor, which makes no difference
	for i, label := range labels {
		if _, ok := class[label]; !ok {
			class[label] = len(class)
			sums = append(sums, make([]float32, dim)...)
		}
		for j, v := range x[i*dim:][:dim] {
			sums[class[label]*dim+j] += v
		}
	}
	head := calibrated(sums, dim, 1)
	scores := func(x []float32) []float32 { return slices.Clone(scored(t, head, record(t, x, dim)).Score) }
	val, _ := read("val")
	calibration := scores(val)
	slices.Sort(calibration)
	// OOD is what at most alpha·(n+1) − 1 of the calibration's scores are as large as.
	threshold := calibration[len(calibration)-int(alpha*float64(len(calibration)+1))]
	for _, name := range []string{"test", "oos_test"} {
		x, _ := read(name)
		quantised := make([]float32, len(x))
		for first := 0; first < len(x); first += dim {
			largest := 0.
			for _, v := range x[first:][:dim] {
				largest = max(largest, math.Abs(float64(v)))
			}
			for j, v := range x[first:][:dim] {
				quantised[first+j] = float32(math.Round(float64(v) / largest * 127))
			}
		}
		want, got := scores(x), scores(quantised)
		var worst, sum float64
		changed, ood := 0, 0
		for i, s := range want {
			e := math.Abs(float64(got[i] - s))
			worst, sum = max(worst, e), sum+e
			if s > threshold {
				ood++
			}
			if (s > threshold) != (got[i] > threshold) {
				changed++
			}
		}
		n := float64(len(want))
		t.Logf("%s: %d rows, %d of them OOD; score wrong by %.2g in the mean and %.2g at most; %d decisions changed, %.2f %%", name, len(want), ood, sum/n, worst, changed, 100*float64(changed)/n)
		if worst > 0.002 {
			t.Errorf("%s: a score is wrong by %.2g, more than docs/performance.md says", name, worst)
		}
	}
}
