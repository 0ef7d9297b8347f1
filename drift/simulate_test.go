package drift

import (
	"math/rand/v2"
	"slices"
)

// A simulation drives one detector of an engine, a record at a time.
type simulation struct {
	e   *engine
	b   *betting
	now float64
}

type setting struct {
	detector  string
	threshold float64 // A
	tolerance Tolerance
	block     int
}

// simulate returns an engine whose reference is the calibration, of whatever
// size, with only the named detector betting.
func simulate(calibration []float32, s setting, key uint64) *simulation {
	sorted := slices.Clone(calibration)
	slices.Sort(sorted)
	o := &options{threshold: s.threshold, delta: delta, tolerance: s.tolerance, reference: 1 << 30, key: key}
	ref := newReference(false, sorted, nil, nil, key)
	e := newEngine(o, ref, false, 0)
	e.refer(ref)
	sim := &simulation{e: e, b: &e.shift}
	const never = 1 << 40
	shift, change := s.block, never
	if s.detector == Change {
		sim.b, shift, change = &e.change, never, s.block
	}
	e.beginShift(shift, 0)
	e.beginChange(change, 0)
	return sim
}

// observe takes one score, dt seconds after the last, and reports whether an
// alarm begins.
func (s *simulation) observe(r *rand.Rand, score, dt float64) bool {
	s.now += dt
	at := mark{time: s.now, offset: s.e.records}
	shift, change := s.e.observe(r.Uint64(), float32(score), 0, false, nil, &at, s.now)
	return shift || change
}

func normal(r *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return v
}

// fiveValues rounds a score to one of five values.
func fiveValues(x float64) float64 { return max(-2, min(2, float64(int(x+10.5)-10))) }
