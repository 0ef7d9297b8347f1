package model

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// classed returns a calibration with so many records of each class; those of
// class c are uniform in [c, c+1].
func classed(r *rand.Rand, counts ...int) Calibration {
	var scores []float32
	var class []int32
	for c, n := range counts {
		for range n {
			scores, class = append(scores, float32(float64(c)+r.Float64())), append(class, int32(c))
		}
	}
	return NewCalibration(scores, class)
}

func TestMondrianCategories(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	const need = 29 // for alpha 0.1, delta 0.05
	if got := MinCalibration(.1, .05); got != need {
		t.Fatalf("needs %d, the test assumes %d", got, need)
	}
	for _, test := range []struct {
		counts []int
		want   []int // which classes share a category
	}{
		{[]int{29, 40, 50}, []int{0, 1, 2}},
		{[]int{50, 10, 40, 20}, []int{2, 0, 1, 0}}, // the two small ones are enough together
		{[]int{50, 10, 40, 5}, []int{1, 0, 0, 0}},  // they are not: the next joins them
		{[]int{20, 10, 0}, []int{0, 0, 0}},
		{[]int{0, 29}, []int{0, 0}}, // a class without records is in the pool
	} {
		m, err := classed(r, test.counts...).Mondrian(len(test.counts), .1, .05)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(m.Category, test.want) {
			t.Errorf("counts %v: categories %v, want %v", test.counts, m.Category, test.want)
		}
		for i, c := range m.Calibration {
			if len(c.Scores) < need || !slices.IsSorted(c.Scores) {
				t.Errorf("counts %v: category %d has %d scores", test.counts, i, len(c.Scores))
			}
		}
	}
	if _, err := classed(r, 20, 8).Mondrian(2, .1, .05); !errors.Is(err, ErrTooFewCalibrationRecords) {
		t.Errorf("got %v", err)
	}
}

// In each class the false-positive rate is at most alpha with probability
// 1−delta, however unlike the classes are; one threshold for all keeps the
// promise on average only.
func TestMondrianKeepsItsPromiseInEachClass(t *testing.T) {
	const draws, classes, n, alpha, delta = 1000, 3, 400, .05, .05
	r := rand.New(rand.NewPCG(2, 2))
	exceeded, worst := make([]int, classes), 0.
	for range draws {
		c := classed(r, n, n, n)
		m, err := c.Mondrian(classes, alpha, delta)
		if err != nil {
			t.Fatal(err)
		}
		marginal, _, err := c.Threshold(alpha, delta)
		if err != nil {
			t.Fatal(err)
		}
		for class := range classes {
			if float64(class+1)-float64(m.Threshold[m.Category[class]]) > alpha {
				exceeded[class]++
			}
		}
		worst += (classes - float64(marginal)) / draws // the rate in the last class
	}
	for class, x := range exceeded {
		share := float64(x) / draws
		if upper := share + 2.326*math.Sqrt(share*(1-share)/draws); upper > 1.35*delta || share < delta/5 {
			t.Errorf("class %d: the rate exceeds alpha in a share of %.3f of the draws, want about and at most %g", class, share, delta)
		}
	}
	if worst < 2*alpha {
		t.Errorf("one threshold for all has a rate of %.3f in the last class: the test shows nothing", worst)
	}
}
