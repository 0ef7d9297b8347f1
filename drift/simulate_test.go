package drift

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// A simulation drives one detector of an engine, a record at a time.
type simulation struct {
	e    *engine
	b    *betting
	now  float64
	hand hand
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
	return simulateClasses(calibration, []int64{int64(len(calibration))}, s, key)
}

// simulateClasses does so with counts of the classes of the calibration.
func simulateClasses(calibration []float32, class []int64, s setting, key uint64) *simulation {
	sorted := slices.Clone(calibration)
	slices.Sort(sorted)
	o := &options{threshold: s.threshold, delta: delta, tolerance: s.tolerance, reference: 1 << 30, key: key}
	ref := newReference(false, sorted, class, nil, key)
	e := newEngine(o, ref, "", 0)
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
	return s.observeClass(r, score, 0, dt)
}

func (s *simulation) observeClass(r *rand.Rand, score float64, class int32, dt float64) bool {
	s.now += dt
	s.hand.seed = r.Uint64()
	return s.batch([]float32{float32(score)}, []int32{class}, s.now)
}

// batch takes records, all at one time, and reports whether an alarm begins.
func (s *simulation) batch(scores []float32, class []int32, now float64) (alarm bool) {
	h, n := &s.hand, len(scores)
	if h.Batch == nil || len(h.Row) != n {
		h.Batch = &Batch{Offset: make([]int64, n), Row: make([]int32, n), OOD: make([]bool, n), Time: make([]int64, n)}
		h.all = make([]int32, n)
	}
	h.now, h.Score, h.Class = now, scores, class
	for i := range h.all {
		h.all[i], h.Offset[i] = int32(i), s.e.records+int64(i)
	}
	for rows := h.all; len(rows) > 0; {
		n, shift, change := s.e.observe(h, rows)
		alarm = alarm || shift || change
		rows = rows[n:]
	}
	return alarm
}

func normal(r *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return v
}

var defaultTolerance = DefaultConfig().Tolerance

// fiveValues rounds a score to one of five values.
func fiveValues(x float64) float64 { return max(-2, min(2, float64(int(x+10.5)-10))) }

// The short form of the acceptance simulations: neither detector alarms while
// nothing has changed, and both do soon after a fifth is out of distribution.
func TestSimulation(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, detector := range Detectors {
		sim := simulate(normal(r, 10000), setting{detector, 1e5, defaultTolerance, DefaultBlock}, 1)
		for i := range 5000 {
			if sim.observe(r, r.NormFloat64(), 1) {
				t.Fatalf("%s: a false alarm at record %d", detector, i)
			}
		}
		delay := 1
		for after := mixed(.2); !sim.observe(r, after(r), 1); delay++ {
			if delay > 500 {
				t.Fatalf("%s: no alarm within 500 records", detector)
			}
		}
	}
}
