package drift

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBlockFor(t *testing.T) {
	for tau, want := range map[float64]int{1: 1, 1.2: 1, 1.3: 4, 2: 4, 2.1: 8, 8: 16, 19: 64, 32: 64, 1e9: maxBlock} {
		if got := blockFor(tau); got != want {
			t.Errorf("autocorrelation time %g: blocks of %d, want %d", tau, got, want)
		}
	}
}

func TestAutocorrelationTime(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	series := func(next func() float64) []float32 {
		v := make([]float32, 10000)
		for i := range v {
			v[i] = float32(next())
		}
		return v
	}
	x, n := 0., 0
	for _, test := range []struct {
		name       string
		values     []float32
		want, near float64
	}{
		{"independent", series(r.NormFloat64), 1, .15},
		{"AR(0.9)", series(func() float64 { x = .9*x + r.NormFloat64(); return x }), 19, 5},
		{"each 8 times", series(func() float64 {
			if n++; n%8 == 1 {
				x = r.NormFloat64()
			}
			return x
		}), 8, 2},
		{"constant", make([]float32, 10000), 1, 0},
	} {
		if got := autocorrelationTime(test.values); math.Abs(got-test.want) > test.near {
			t.Errorf("%s: %g, want %g", test.name, got, test.want)
		}
	}
}

// While calibration and live scores are exchangeable, the p-values of the urn
// are uniform and independent; also with few distinct scores.
func TestUrnIsUniform(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for name, draw := range map[string]func() float64{
		"continuous": r.NormFloat64, "five values": func() float64 { return fiveValues(r.NormFloat64()) },
	} {
		for _, empty := range []bool{false, true} {
			const streams, n, live, bins = 4000, 50, 5, 10
			var count [bins]int
			product, sum := 0., 0.
			for range streams {
				v := make([]float32, n)
				for i := range v {
					v[i] = float32(draw())
				}
				slices.Sort(v)
				ref, urn := newReference(false, v, nil, nil, r.Uint64()), newUrn(n, empty)
				places := newPlaces(&ref.ranking, cellsOf(&ref.ranking))
				last := .5
				for range live {
					_, cell := place(places, float32(draw()), r.Uint32())
					p := draw1(urn, cell, r.Float64())
					count[min(bins-1, int(p*bins))]++
					product += (p - .5) * (last - .5)
					sum += p
					last = p
				}
			}
			chi := 0.
			for _, c := range count {
				d := float64(c) - streams*live/bins
				chi += d * d / (streams * live / bins)
			}
			if chi > 27.9 { // 0.1 % of chi-squared with 9 degrees of freedom
				t.Errorf("%s, began empty %v: chi-squared %g over %v", name, empty, chi, count)
			}
			if c := product / (streams * live) * 12; math.Abs(c) > .03 {
				t.Errorf("%s, began empty %v: correlation of neighbours %g", name, empty, c)
			}
		}
	}
}

func draw1(u *urn, cell uint8, v float64) float64 {
	var p [1]float64
	u.draw(p[:], []uint8{cell}, []float64{v}, true)
	return p[0]
}

// The p-values of an urn count what is in its cells, however many are drawn at once.
func TestUrnCounts(t *testing.T) {
	r := rand.New(rand.NewPCG(10, 10))
	for _, empty := range []bool{false, true} {
		u, count, total := newUrn(1000, empty), [urnCells]int{}, 0
		if empty {
			total = 1 // the record itself
		} else {
			for gap := range 1001 {
				count[cellOf(gap, 1000)]++
			}
			total = 1001
		}
		for range 200 {
			n, learn := 1+r.IntN(600), r.IntN(4) > 0
			cells, v, p := make([]uint8, n), make([]float64, n), make([]float64, n)
			for i := range cells {
				cells[i], v[i] = uint8(r.IntN(1+r.IntN(urnCells))), r.Float64()
			}
			u.draw(p, cells, v, learn)
			for i, cell := range cells {
				above, own := 0, count[cell]
				for _, n := range count[int(cell)+1:] {
					above += n
				}
				if empty {
					own++
				}
				if want := (float64(above) + v[i]*float64(own)) / float64(total); math.Abs(p[i]-want) > 1e-15 {
					t.Fatalf("began empty %v, cell %d: %g, want %g", empty, cell, p[i], want)
				}
				if learn {
					count[cell]++
					total++
				}
			}
		}
	}
}

func place(p *places, score float32, tie uint32) (gap int, cell uint8) {
	var gaps [1]uint32
	var cells [1]uint8
	p.find(gaps[:], cells[:], []float32{score}, []uint32{tie})
	return int(gaps[0]), cells[0]
}

// A score has its gap in the reference, and its cell by the gap in the calibration,
// whether these are one or two.
func TestPlaces(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	draws := map[string]func() float64{
		"continuous": r.NormFloat64, "five values": func() float64 { return fiveValues(r.NormFloat64()) },
	}
	// gap counts, one by one.
	gap := func(r *ranking, score float32, tie uint32) (below int) {
		for i, s := range r.scores {
			below += one(s < score || s == score && r.ties != nil && r.ties[i] < tie)
		}
		return below
	}
	of := func(n int, draw func() float64, key uint64) *ranking {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(draw())
		}
		slices.Sort(v)
		return &newReference(false, v, nil, nil, key).ranking
	}
	for name, draw := range draws {
		for otherName, other := range draws {
			for _, n := range []int{1, 2, 100, 254, 255, 256, 257, 1000, 10000} {
				calibration := of(n, draw, 1)
				for what, reference := range map[string]*ranking{
					"none": new(ranking), "calibration": calibration, "live": of(3000, other, 2), "one": of(1, other, 3),
				} {
					places := newPlaces(reference, cellsOf(calibration))
					for i := range 300 {
						score, tie := float32(draw()), r.Uint32()
						if i%3 == 0 && reference.n() > 0 {
							score = reference.scores[r.IntN(reference.n())]
						}
						gotGap, gotCell := place(places, score, tie)
						wantGap, wantCell := gap(reference, score, tie), cellOf(gap(calibration, score, tie), n)
						if gotGap != wantGap || int(gotCell) != wantCell {
							t.Fatalf("calibration of %d %s scores, reference %s (%s): %g with tie %d has gap %d and cell %d, want %d and %d",
								n, name, what, otherName, score, tie, gotGap, gotCell, wantGap, wantCell)
						}
					}
				}
			}
		}
	}
}

// The rank among the reference, with a place among equals.
func TestGap(t *testing.T) {
	ref := newReference(false, []float32{1, 2, 2, 2, 3}, nil, nil, 1)
	places := newPlaces(&ref.ranking, cellsOf(&ref.ranking))
	for _, test := range []struct {
		score float32
		tie   uint32
		want  int
	}{{0, 7, 0}, {1, 0, 0}, {1.5, 7, 1}, {2, 0, 1}, {2, math.MaxUint32, 4}, {2.5, 7, 4}, {4, 7, 5}} {
		if got, _ := place(places, test.score, test.tie); got != test.want {
			t.Errorf("%g with tie %d: %d, want %d", test.score, test.tie, got, test.want)
		}
	}
	if !slices.IsSorted(ref.ties[1:4]) {
		t.Errorf("ties %v", ref.ties)
	}
}

// The two halves of a record's bits are uniform, and tell nothing of each other or of
// those of the record after it, in the next row or at the next offset.
func TestRandom(t *testing.T) {
	const n = 1 << 16
	for name, at := range map[string]func(i int) (int64, int32){
		"one row a message":   func(i int) (int64, int32) { return int64(i), 0 },
		"one message of many": func(i int) (int64, int32) { return 7, int32(i) },
		"eight rows":          func(i int) (int64, int32) { return int64(i / 8), int32(i % 8) },
	} {
		seed := seedOf(5, 3)
		var high, low [n]float64 // deviations from the mean, in units of √(1/12)
		for i := range n {
			offset, row := at(i)
			x := random(seed, offset, row)
			high[i] = (float64(x>>32)/(1<<32) - .5) * math.Sqrt(12)
			low[i] = (float64(uint32(x))/(1<<32) - .5) * math.Sqrt(12)
		}
		var moments [7]float64 // the mean of each is 0, its variance below 1
		for i := range n {
			next := (i + 1) % n
			for k, v := range [...]float64{
				high[i], low[i], high[i]*high[i] - 1, low[i]*low[i] - 1, high[i] * low[i], high[i] * high[next], low[i] * low[next],
			} {
				moments[k] += v / math.Sqrt(n)
			}
		}
		for k, v := range moments {
			if math.Abs(v) > 4.5 {
				t.Errorf("%s: moment %d is %.1f standard deviations from 0", name, k, v)
			}
		}
	}
}

// Blocks at one time that are settled together leave the evidence that they leave
// one by one.
func TestSettledTogether(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	classes := []int64{3000, 3000, 3990, 10}
	const n = 4096
	scores, class := make([]float32, n), make([]int32, n)
	for i := range scores {
		scores[i], class[i] = float32(mixed(.02)(r)), int32(r.IntN(4))
	}
	calibration := normal(r, 10000)
	for _, detector := range Detectors {
		for _, block := range []int{1, 2, 4, 16, 64} {
			evidence := func(every int) []float64 {
				s := simulateClasses(calibration, classes, setting{detector, 1e12, defaultTolerance, block}, 3)
				for i := 0; i < n; {
					end := min(i+every, (i/1024+1)*1024)
					s.batch(scores[i:end], class[i:end], float64(i/1024+1))
					i = end
				}
				return slices.Concat(s.b.r, s.e.retrain.r, s.b.sums)
			}
			each := evidence(1)
			if s := each[len(each)-1]; s == 0 {
				t.Errorf("%s, blocks of %d: nothing was bet on", detector, block)
			}
			for _, every := range []int{1024, 100, 37} {
				together := evidence(every)
				for i, want := range each {
					if got := together[i]; !(math.Abs(got-want) <= 1e-9*want) {
						t.Errorf("%s, blocks of %d, batches of %d, number %d: %g, one by one %g", detector, block, every, i, got, want)
					}
				}
			}
		}
	}
}

// tooLow draws a reference of n scores, uniform in [0, 1), and of as many classes, and
// reports whether one of its limits is below the true mean.
func tooLow(r *rand.Rand, n, classes int, delta float64) bool {
	v := make([]float32, n)
	class := make([]int64, classes)
	for i := range v {
		v[i] = float32(r.Float64())
		class[r.IntN(len(class))]++
	}
	slices.Sort(v)
	ref := newReference(false, v, class, nil, 1)
	l := layoutOf(ref)
	limits := shiftLimits(ref, &l, Tolerance{}, delta)
	// The mean over the scores, exactly: integrate over the gaps.
	var mean [scoreFeatures]float64
	for gap := range len(v) + 1 {
		lo, hi := 0., 1.
		if gap > 0 {
			lo = float64(v[gap-1])
		}
		if gap < len(v) {
			hi = float64(v[gap])
		}
		width, above := hi-lo, len(v)-gap
		if above < n/100 {
			mean[featT1] += width
		}
		if above < n/20 {
			mean[featT5] += width
		}
		p := (float64(above) + .5) / float64(len(v)+1)
		spread := math.Abs(2*p - 1)
		for i, s := range [perRank]float64{1 - p, p, spread, 1 - spread} {
			mean[featUp+i] += width * s
		}
	}
	bad := false
	for i, m := range mean {
		bad = bad || m > limits[i]
	}
	shares := make([]float64, l.groupCount)
	for _, g := range l.groups {
		shares[g] += 1. / float64(classes)
	}
	for g, s := range shares {
		bad = bad || s > limits[scoreFeatures+g]
	}
	return bad
}

// atMostDelta fails if more than a share delta is bad, and not by chance.
func atMostDelta(t *testing.T, bad, draws int, of string) {
	t.Helper()
	t.Logf("a limit is too low for %d of %d %s", bad, draws, of)
	if share := float64(bad) / float64(draws); share > delta+2.326*math.Sqrt(delta*(1-delta)/float64(draws)) {
		t.Errorf("a limit is too low for a share of %g of the %s, want at most %g", share, of, delta)
	}
}

// The limits of shift hold for 95 of 100 references: each mean of the true
// distribution is at or below.
func TestShiftLimits(t *testing.T) {
	for _, classes := range []int{1, 33, 40, 150} {
		r := rand.New(rand.NewPCG(3, uint64(classes)))
		const draws = 1000
		bad := 0
		for range draws {
			bad += one(tooLow(r, 1000, classes, delta))
		}
		atMostDelta(t, bad, draws, fmt.Sprintf("references of %d classes", classes))
	}
}

// They hold for 95 of 100 instances where segments have references of their own.
func TestShiftLimitsOfSegments(t *testing.T) {
	f := newFixture(t, 6000, func(c *Config) { c.MaxSegments = 20 })
	r := rand.New(rand.NewPCG(3, 3))
	const draws = 200
	bad := 0
	for range draws {
		some := false
		for range f.cfg.engines() {
			some = tooLow(r, 1000, 4, f.watch.options.delta) || some
		}
		bad += one(some)
	}
	atMostDelta(t, bad, draws, "instances of 20 segments")
}

// No bet can lose all, whatever the block's mean, and the weights add up to 1.
func TestBetsAreFair(t *testing.T) {
	ref := newReference(false, normal(rand.New(rand.NewPCG(4, 4)), 1000), []int64{700, 299, 1}, [][]float32{make([]float32, 1000)}, 1)
	slices.Sort(ref.scores)
	l := layoutOf(ref)
	limits := shiftLimits(ref, &l, defaultTolerance, delta)
	for _, block := range []int{1, 16, 4096} {
		weight := 0.
		for _, b := range components(&l, limits, block) {
			weight += b.weight
			if lowest := 1 - b.lambda*b.limit; !(lowest > 0) || !(b.lambda > 0) {
				t.Errorf("blocks of %d, feature %d: lambda %g, limit %g", block, b.feature, b.lambda, b.limit)
			}
		}
		if math.Abs(weight-1) > 1e-12 {
			t.Errorf("blocks of %d: the weights add up to %g", block, weight)
		}
	}
}

// The groups are of like number, and the same whatever the reference counts.
func TestGroups(t *testing.T) {
	for _, classes := range []int{2, 32, 33, 150} {
		ref := &reference{class: make([]int64, classes)}
		for i := range ref.class {
			ref.class[i] = int64(1 + i)
		}
		l := layoutOf(ref)
		slices.Reverse(ref.class)
		if other := layoutOf(ref); !slices.Equal(l.groups, other.groups) {
			t.Errorf("%d classes: groups %v, with other counts %v", classes, l.groups, other.groups)
		}
		members := make([]int, l.groupCount)
		for _, g := range l.groups {
			members[g]++
		}
		if l.groupCount != min(classes, maxGroups) || slices.Max(members)-slices.Min(members) > 1 {
			t.Errorf("%d classes: groups of %v", classes, members)
		}
	}
}

func TestValidate(t *testing.T) {
	good := DefaultConfig()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.MeanTimeToFalseAlarm = time.Second }, "drift.mean_time_to_false_alarm: 1s must be at least 1m"},
		{func(c *Config) { c.Tolerance.Mean = .5 }, "drift.tolerance.mean: 0.5 must be at least 0 and below 0.5"},
		{func(c *Config) { c.Tolerance.Tail = math.NaN() }, "drift.tolerance.tail: NaN must be at least 0 and below 0.5"},
		{func(c *Config) { c.Block = -1 }, "drift.block: -1 must be between 1 and 4096, or 0: chosen by the stream"},
		{func(c *Config) { c.ReferenceRecords = 10 }, "drift.reference_records: 10 must be between 1000 and 1000000"},
		{func(c *Config) { c.MaxSegments = 1001 }, "drift.max_segments: 1001 must be between 0 and 1000"},
		{func(c *Config) { c.SnapshotInterval = 0 }, "drift.snapshot_interval: 0s must be positive"},
		{func(c *Config) { c.Incidents.Keep = 0 }, "drift.incidents.keep: 0 must be positive"},
		{func(c *Config) { c.Incidents.Samples = 2000 }, "drift.incidents.samples: 2000 must be between 0 and 1000"},
		{func(c *Config) { c.RetrainWebhook.URL = "ftp://x/secret" }, `drift.retrain_webhook.url: want http:// or https://, a host, and a path`},
		{func(c *Config) { c.RetrainWebhook = WebhookConfig{"http://x", "y"} }, "drift.retrain_webhook: url and url_file are both set; choose one"},
	} {
		c := DefaultConfig()
		test.change(&c)
		if err := c.Validate(); err == nil || err.Error() != test.want {
			t.Errorf("got  %v\nwant %s", err, test.want)
		}
	}
}

func TestToleranceOfASmallShare(t *testing.T) {
	for share, want := range map[float64]float64{.9: .02, .1: .02, .03: .006, 0: 0} {
		if got := (Tolerance{Class: .02}).ofClass(share); math.Abs(got-want) > 1e-15 {
			t.Errorf("a share of %g may move by %g, want %g", share, got, want)
		}
	}
}
