//go:build acceptance

package drift

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
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

// begin starts a Watch whose calibration is n scores of as many classes.
func (f *fixture) begin(n, classes int, score func(*rand.Rand) float64) {
	f.base.Classes = make([]string, classes)
	f.base.Scores, f.base.Class = make([]float32, n), make([]int32, n)
	for i := range f.base.Scores {
		f.base.Scores[i], f.base.Class[i] = float32(score(f.r)), int32(f.r.IntN(classes))
	}
	slices.Sort(f.base.Scores)
	clear(f.offsets)
	f.open()
	f.watch.options.key = f.r.Uint64()
}

// In-control streams with all features, through a Watch: the classes and the
// projections too, with a live reference of 1,000 records, which come at once. How
// many raise an alarm by A/10.
func TestAcceptanceFalseAlarmsAllFeatures(t *testing.T) {
	const streams, a, most = 1000, 10_000, 78 // 99 % of Binomial(1000, 1/10) are above
	for _, classes := range []int{33, 150} {
		for _, tolerance := range []Tolerance{defaultTolerance, {}} {
			t.Run(fmt.Sprintf("%d classes, tolerance %v", classes, tolerance), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t, 1, func(c *Config) {
					c.MeanTimeToFalseAlarm, c.Projections, c.ReferenceRecords, c.Tolerance = a/2*time.Second, true, 1000, tolerance
				})
				f.r = rand.New(rand.NewPCG(uint64(classes), 14))
				like := kind{score: inControl, embedding: func(r *rand.Rand) []float32 { return normal(r, 32) }}
				var alarms [len(Detectors)]int
				for range streams {
					f.begin(300, classes, inControl)
					f.watch.Observe(f.batch(0, 1000, like))
					for range a / 10 / 10 {
						f.now = f.now.Add(10 * time.Second)
						f.watch.Observe(f.batch(0, 10, like))
					}
					e := f.watch.stream
					if e.layout.groupCount != maxGroups || e.layout.projections != projections || e.shift.count == 0 {
						t.Fatalf("%d groups of classes, %d projections, %d records bet on", e.layout.groupCount, e.layout.projections, e.shift.count)
					}
					for i, b := range []*betting{&e.shift, &e.change} {
						alarms[i] += one(b.alarms > 0)
					}
				}
				t.Logf("%d classes, %d projections, tolerance %v: shift %d, change %d of %d streams raise an alarm by A/10; at most %d", classes, projections, tolerance, alarms[0], alarms[1], streams, most)
				if max(alarms[0], alarms[1]) > most {
					t.Fail()
				}
			})
		}
	}
}

// In-control streams of four segments, of which three have detectors of their own,
// with references of 1,000 live records, and scores of their own: how many raise any
// alarm by a tenth of the time that all of them are given together.
func TestAcceptanceFalseAlarmsSegments(t *testing.T) {
	const streams, budget, most = 400, 10_000, 26 // 99 % of Binomial(400, 1/10) are above
	segments := []string{"a", "b", "c", "d"}
	for _, tolerance := range []Tolerance{defaultTolerance, {}} {
		t.Run(fmt.Sprint(tolerance), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 1, func(c *Config) {
				c.MeanTimeToFalseAlarm, c.MaxSegments, c.ReferenceRecords, c.Tolerance = budget*time.Second, 3, 1000, tolerance
			})
			f.r = rand.New(rand.NewPCG(4, 14))
			// A batch of n records of each segment, mixed as calibration and stream are.
			observe := func(n int) (alarms int) {
				var of []*Batch
				for i, name := range segments {
					of = append(of, f.batch(int32(i), n, kind{score: func(r *rand.Rand) float64 { return r.NormFloat64() + float64(i)/2 }, segment: name}))
				}
				for _, b := range of {
					alarms += len(f.watch.Observe(b))
				}
				return alarms
			}
			alarmed := 0
			for range streams {
				f.begin(6000, 40, func(r *rand.Rand) float64 { return r.NormFloat64() + float64(r.IntN(len(segments)))/2 })
				alarms := observe(1000)
				for range budget / 10 / 10 {
					f.now = f.now.Add(10 * time.Second)
					alarms += observe(10)
				}
				for _, e := range f.watch.segments {
					if e.shift.count == 0 || e.change.count == 0 {
						t.Fatalf("segment %s has not begun", e.segment)
					}
				}
				alarmed += one(alarms > 0)
			}
			t.Logf("%d engines, tolerance %v: %d of %d streams raise an alarm by a tenth of the time; at most %d", f.cfg.engines(), tolerance, alarmed, streams, most)
			if alarmed > most {
				t.Fail()
			}
		})
	}
}

// Correlated streams as a monitor sees them: the calibration has no order, and the first
// 2,048 live records tell the block. False alarms at A = 1e5.
func TestAcceptanceFalseAlarmsCorrelated(t *testing.T) {
	const streams, records, a, most = 100, 100_000, 100_000, 76
	for name, next := range map[string]func(*rand.Rand) func() float64{"AR(0.9)": autoregressive, "bursts of 8": bursts} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 1, func(c *Config) { c.MeanTimeToFalseAlarm, c.Block = a/2*time.Second, 0 })
			f.r = rand.New(rand.NewPCG(9, 14))
			var alarms [len(Detectors)]int64
			blocks := make(map[int]int)
			for range streams {
				stream := next(f.r)
				f.begin(10000, 1, inControl)
				for range records / 10 {
					f.now = f.now.Add(10 * time.Second)
					f.watch.Observe(f.batch(0, 10, kind{score: func(*rand.Rand) float64 { return stream() }}))
				}
				e := f.watch.stream
				blocks[e.shift.block]++
				alarms[0], alarms[1] = alarms[0]+e.shift.alarms, alarms[1]+e.change.alarms
			}
			t.Logf("%s: shift %d, change %d alarms in %d streams of %d records at A = 1e5; at most %d; streams by block size %v", name, alarms[0], alarms[1], streams, records, most, blocks)
			if max(alarms[0], alarms[1]) > most {
				t.Fail()
			}
		})
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
