//go:build acceptance

package drift

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// The simulations behind what docs/drift.md promises. Scores are N(0, 1), OOD
// ones N(3, 1), one a second unless it says otherwise.
//
//	go test -tags acceptance -run Acceptance -v ./drift

// In-control streams: how many raise an alarm by A/10.
func TestAcceptanceFalseAlarmsEarly(t *testing.T) {
	const streams, a, most = 2000, 1e4, 168
	for _, s := range []setting{{Change, a, Tolerance{}, 1}, {Shift, a, defaultTolerance, DefaultBlock}} {
		for _, n := range []int{300, 1000, 10000} {
			for _, discrete := range []bool{false, true} {
				name := fmt.Sprintf("%s/n=%d/discrete=%v", s.detector, n, discrete)
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					r := rand.New(rand.NewPCG(uint64(n), 1))
					alarms := 0
					for range streams {
						calibration := normal(r, n)
						if discrete {
							for i, x := range calibration {
								calibration[i] = float32(fiveValues(float64(x)))
							}
						}
						sim := simulate(calibration, s, r.Uint64())
						for range int(a / 10) {
							x := r.NormFloat64()
							if discrete {
								x = fiveValues(x)
							}
							if sim.observe(r, x, 1) {
								alarms++
								break
							}
						}
					}
					t.Logf("%s: %d of %d streams raise an alarm by A/10; at most %d", name, alarms, streams, most)
					if alarms > most {
						t.Fail()
					}
				})
			}
		}
	}
}

// falseAlarms counts the alarms of 100 streams of 100,000 records at A = 1e5.
// next makes a stream: a function that returns score after score. The block
// size is told by the calibration's order, unless it is given.
func falseAlarms(seed uint64, detector string, block int, next func(r *rand.Rand) func() float64) (alarms int, blocks map[int]int) {
	r := rand.New(rand.NewPCG(seed, 2))
	blocks = make(map[int]int)
	for range 100 {
		stream := next(r)
		calibration := make([]float32, 10000)
		for i := range calibration {
			calibration[i] = float32(stream())
		}
		b := block
		if b == 0 {
			b = blockFor(autocorrelationTime(calibration))
		}
		blocks[b]++
		sim := simulate(calibration, setting{detector, 1e5, defaultTolerance, b}, r.Uint64())
		for range 100_000 {
			sim.observe(r, stream(), 1)
		}
		alarms += int(sim.b.alarms)
	}
	return alarms, blocks
}

func independently(r *rand.Rand) func() float64 { return r.NormFloat64 }

func autoregressive(r *rand.Rand) func() float64 {
	x := r.NormFloat64()
	return func() float64 {
		x = .9*x + math.Sqrt(1-.81)*r.NormFloat64()
		return x
	}
}

// bursts are 8 frames of one scene: nearly the same score.
func bursts(r *rand.Rand) func() float64 {
	scene, left := 0., 0
	return func() float64 {
		if left == 0 {
			scene, left = r.NormFloat64(), 8
		}
		left--
		return math.Sqrt(.95)*scene + math.Sqrt(.05)*r.NormFloat64()
	}
}

func TestAcceptanceFalseAlarmsLong(t *testing.T) {
	const most = 76
	for name, test := range map[string]struct {
		block int
		next  func(*rand.Rand) func() float64
	}{
		"independent": {DefaultBlock, independently}, "AR(0.9)": {0, autoregressive}, "bursts of 8": {0, bursts},
	} {
		for _, detector := range Detectors {
			t.Run(name+"/"+detector, func(t *testing.T) {
				t.Parallel()
				alarms, blocks := falseAlarms(3, detector, test.block, test.next)
				t.Logf("%s, %s: %d alarms in 100 streams of 100,000 records at A = 1e5; at most %d; streams by block size %v", name, detector, alarms, most, blocks)
				if alarms > most {
					t.Fail()
				}
			})
		}
	}
}

// Median delay, in records, of changes after 2,000 records.
func TestAcceptanceDelay(t *testing.T) {
	const a, n, before, longest, runs = 1e5, 10000, 2000, 20000, 200
	changes := []struct {
		name          string
		after         func(*rand.Rand) float64
		shift, change int // at most
	}{
		{"5 % OOD", mixed(.05), 650, 280},
		{"20 % OOD", mixed(.2), 130, 45},
		{"+0.25 sd", func(r *rand.Rand) float64 { return r.NormFloat64() + .25 }, 1900, 330},
		{"sd×0.7", func(r *rand.Rand) float64 { return .7 * r.NormFloat64() }, 1100, 140},
	}
	for _, c := range changes {
		for _, test := range []struct {
			setting
			most int
		}{{setting{Shift, a, defaultTolerance, DefaultBlock}, c.shift}, {setting{Change, a, Tolerance{}, 1}, c.change}} {
			t.Run(c.name+"/"+test.detector, func(t *testing.T) {
				t.Parallel()
				r := rand.New(rand.NewPCG(4, 4))
				var delays []int
				missed, early := 0, 0
				for len(delays) < runs {
					sim := simulate(normal(r, n), test.setting, r.Uint64())
					alarm := false
					for range before {
						alarm = sim.observe(r, r.NormFloat64(), 1) || alarm
					}
					if alarm {
						early++
						continue
					}
					d := 1
					for d < longest && !sim.observe(r, c.after(r), 1) {
						d++
					}
					if d == longest {
						missed++
					}
					delays = append(delays, d)
				}
				slices.Sort(delays)
				median := delays[runs/2]
				t.Logf("%s, %s: median delay %d records, 90 %% within %d; at most %d; %d of %d missed within %d, %d false alarms before", c.name, test.detector, median, delays[runs*9/10], test.most, missed, runs, longest, early)
				if median > test.most {
					t.Fail()
				}
			})
		}
	}
}

// False alarms per A seconds at rates that vary between 0.25 and 10 a second.
func TestAcceptanceVaryingRate(t *testing.T) {
	const a, streams, spans = 1e4, 200, 10
	for _, detector := range Detectors {
		t.Run(detector, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(10, 10))
			alarms := 0
			for range streams {
				sim := simulate(normal(r, 10000), setting{detector, a, defaultTolerance, DefaultBlock}, r.Uint64())
				rate := 1.
				for sim.now < spans*a {
					rate = min(10, max(.25, rate*math.Exp(.1*r.NormFloat64())))
					sim.observe(r, r.NormFloat64(), 1/rate)
				}
				alarms += int(sim.b.alarms)
			}
			// 99 % upper bound of a Poisson mean, by Wilson and Hilferty.
			k := float64(alarms + 1)
			upper := k * math.Pow(1-1/(9*k)+2.326/(3*math.Sqrt(k)), 3) / (streams * spans)
			t.Logf("%s: %d false alarms in %d spans of A seconds: %.3f each, 99 %% upper bound %.3f; at most 1", detector, alarms, streams*spans, float64(alarms)/(streams*spans), upper)
			if upper > 1 {
				t.Fail()
			}
		})
	}
}

// A change of the mix that is spread over all classes: half of 150 get 90 % of the
// records.
func TestAcceptanceSpreadClassMix(t *testing.T) {
	const classes, a, n, before, longest, runs = 150, 1e5, 10000, 5000, 20000, 60
	for _, test := range []struct {
		tolerance float64
		most      int // of the median delay
	}{{defaultTolerance.Class, 8000}, {.005, 6000}, {0, 5000}} {
		t.Run(fmt.Sprint(test.tolerance), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(12, 12))
			s := setting{Shift, a, defaultTolerance, DefaultBlock}
			s.tolerance.Class = test.tolerance
			var delays []int
			early := 0
			for len(delays) < runs {
				class := make([]int64, classes)
				for range n {
					class[r.IntN(classes)]++
				}
				sim := simulateClasses(normal(r, n), class, s, r.Uint64())
				alarm := false
				for range before {
					alarm = sim.observeClass(r, r.NormFloat64(), int32(r.IntN(classes)), 1) || alarm
				}
				if alarm {
					early++
					continue
				}
				order := r.Perm(classes)
				after := func() int32 {
					k := r.IntN(classes / 2)
					if r.Float64() > .9 {
						k += classes / 2
					}
					return int32(order[k])
				}
				d := 1
				for d < longest && !sim.observeClass(r, r.NormFloat64(), after(), 1) {
					d++
				}
				delays = append(delays, d)
			}
			slices.Sort(delays)
			median := delays[runs/2]
			t.Logf("half of %d classes get 90 %% of the records, tolerance %g: median delay %d records, 90 %% within %d; %d means not found; %d false alarms before", classes, test.tolerance, median, delays[runs*9/10], longest, early)
			if median > test.most {
				t.Errorf("median delay %d, at most %d", median, test.most)
			}
		})
	}
}
