package model

import (
	"cmp"
	"slices"
)

// A Mondrian is a calibration taken apart by the predicted class: classes with
// enough records are categories of their own, the rest are pooled into one.
type Mondrian struct {
	// Category is that of each class, an index of the others.
	Category []int
	// Calibration and Threshold are of each category.
	Calibration []Calibration
	Threshold   []float32
}

// Mondrian takes the calibration apart for a number of classes. In each category
// a share of at most alpha of the in-distribution records is flagged, with
// probability 1−delta over the draw of its calibration records. A class needs
// MinCalibration records; where those of the classes that have fewer are not
// enough together, the smallest of the other classes join them.
//
// The category is the predicted class, in calibration and live: it is known of
// every record, and a record out of distribution has no other. The source is
// Vovk, "Conditional validity of inductive conformal predictors" (2012),
// section 4.
func (c Calibration) Mondrian(classes int, alpha, delta float64) (*Mondrian, error) {
	if _, _, err := c.Threshold(alpha, delta); err != nil {
		return nil, err
	}
	need, count := MinCalibration(alpha, delta), make([]int, classes)
	for _, class := range c.Class {
		count[class]++
	}
	order := make([]int, classes)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(count[a], count[b]) })
	m := &Mondrian{Category: make([]int, classes)}
	pooled, pool := 0, 0 // classes, and their records
	for pooled < classes && (count[order[pooled]] < need || pooled > 0 && pool < need) {
		pool += count[order[pooled]]
		pooled++
	}
	categories := classes - pooled + min(pooled, 1)
	for i, class := range order[pooled:] {
		m.Category[class] = i + min(pooled, 1) // the pool is category 0
	}
	m.Calibration = make([]Calibration, categories)
	for i, score := range c.Scores { // ascending, and so are the parts
		part := &m.Calibration[m.Category[c.Class[i]]]
		part.Scores, part.Class = append(part.Scores, score), append(part.Class, c.Class[i])
	}
	for _, part := range m.Calibration {
		threshold, _, err := part.Threshold(alpha, delta)
		if err != nil {
			return nil, err
		}
		m.Threshold = append(m.Threshold, threshold)
	}
	return m, nil
}
