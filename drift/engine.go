package drift

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// options are what all engines of a Watch share.
type options struct {
	threshold float64 // of each detector, in seconds
	delta     float64
	tolerance Tolerance
	block     int // 0: by the stream
	reference int // live records that make one
	project   bool
	key       uint64
}

const (
	// delta is the probability, over the draw of the reference, with which the
	// limits of shift may be too low.
	delta = .05
	// calibrationIsEnough is from how many records on a model's calibration
	// serves as reference.
	calibrationIsEnough = 5000
	// longestGap is the share of the threshold that one pause of the stream adds
	// at most, so that neither a stop nor a jump of the clock is an alarm.
	longestGap = .01
)

// Retraining is recommended by a second recursion of shift, which only larger
// changes move, with a year to a false alarm.
var (
	retrainTolerance = Tolerance{Tail: .02, Mean: .06, Class: .05}
	retrainThreshold = (365 * 24 * time.Hour).Seconds()
	retrainActive    = (24 * time.Hour).Seconds()
	retrainCooldown  = (7 * 24 * time.Hour).Seconds()
)

const (
	retrainRecords  = 1000
	retrainPerClass = 50
)

// A betting is a detector with the block in hand.
type betting struct {
	recursion
	block   int // 0: it has not begun
	last    float64
	n       int       // records of the block in hand
	partial []float64 // sums of their features
	means   []float64 // scratch
	sums    []float64 // of the features, of all blocks before
	count   int64     // of the records of those blocks
	first   mark
}

// begin starts to bet, without evidence, on features with these limits.
func (b *betting) begin(l *layout, limits []float64, block int, threshold, now float64) {
	b.recursion = recursion{threshold: threshold, bets: components(l, limits, block), alarms: b.alarms}
	b.starts = make([]start, len(b.bets))
	b.block, b.last, b.n, b.count = block, now, 0, 0
	b.partial, b.means, b.sums = make([]float64, len(limits)), make([]float64, len(limits)), make([]float64, len(limits))
}

// close ends a block, and returns the seconds since the last.
// A clock that is set back costs no more than the time it is set back by.
func (b *betting) close(now float64) (dt float64) {
	for i, v := range b.partial {
		b.means[i] = v / float64(b.block)
	}
	dt = min(max(0, now-b.last), longestGap*b.threshold)
	b.last, b.n = now, 0
	return dt
}

// settle adds the block that was closed to the sums.
func (b *betting) settle() {
	for i, v := range b.partial {
		b.sums[i] += v
		b.partial[i] = 0
	}
	b.count += int64(b.block)
}

// rank adds the four features of a p-value.
func rank(sums []float64, p float64) {
	spread := math.Abs(2*p - 1)
	sums[0] += 1 - p
	sums[1] += p
	sums[2] += spread
	sums[3] += 1 - spread
}

// An engine watches one stream: a topic's records as one instance sees them, or
// one segment of them.
type engine struct {
	*options
	calibration *reference // of the model; it makes the cells of change
	segment     bool       // its records need not be distributed as the calibration

	// The reference of shift: the calibration, or from warm, or nil as yet.
	reference *reference
	layout    layout
	k1, k5    int // ranks of the tails
	warm      warmup

	shift, change betting
	shiftLimits   []float64
	retrain       recursion
	urn           *urn

	records, ood  int64
	featureSums   [scoreFeatures]float64 // of shift, since the start of the process
	recommended   bool
	recommendedAt float64
}

// A warmup is the first live records, in their order: they tell the block size,
// and become the reference where the calibration cannot be.
type warmup struct {
	scores      []float32
	class       []int64
	projections [][]float32
}

// newEngine begins without evidence.
func newEngine(o *options, calibration *reference, segment bool, now float64) *engine {
	e := &engine{options: o, calibration: calibration, segment: segment, urn: newUrn(calibration.n(), segment)}
	if !e.needsLive() {
		e.refer(calibration)
	}
	if o.block > 0 {
		e.beginChange(o.block, now)
		if e.reference != nil {
			e.beginShift(o.block, now)
		}
	}
	return e
}

// needsLive reports whether the reference is made of live records.
func (e *engine) needsLive() bool {
	return e.segment || e.project || e.calibration.n() < calibrationIsEnough
}

// needed is how many records the warm-up takes.
func (e *engine) needed() int {
	switch {
	case e.shift.block > 0:
		return 0
	case e.needsLive():
		return e.options.reference
	}
	return measured
}

func (e *engine) refer(r *reference) {
	e.reference, e.layout = r, layoutOf(r)
	e.k1, e.k5 = int(math.Floor(tail1*float64(r.n()))), int(math.Floor(tail5*float64(r.n())))
}

func (e *engine) beginChange(block int, now float64) {
	e.change.begin(new(layout), changeLimits(e.tolerance), block, e.threshold, now)
}

func (e *engine) beginShift(block int, now float64) {
	e.shiftLimits = shiftLimits(e.reference, &e.layout, e.tolerance, e.delta)
	e.shift.begin(&e.layout, e.shiftLimits, block, e.threshold, now)
	e.retrain = recursion{threshold: retrainThreshold, bets: components(&e.layout, shiftLimits(e.reference, &e.layout, retrainTolerance, e.delta), block)}
}

// warmUp keeps a record until there are enough.
func (e *engine) warmUp(score float32, class int32, proj *[projections]float32, now float64) {
	w := &e.warm
	if w.class == nil {
		need := e.needed()
		w.scores, w.class = make([]float32, 0, need), make([]int64, len(e.calibration.class))
		if e.project {
			w.projections = make([][]float32, projections)
			for k := range w.projections {
				w.projections[k] = make([]float32, 0, need)
			}
		}
	}
	w.scores = append(w.scores, score)
	w.class[class]++
	for k := range w.projections {
		w.projections[k] = append(w.projections[k], proj[k])
	}
	if len(w.scores) == measured && e.change.block == 0 {
		// So few tell no block below the default.
		block := max(DefaultBlock, blockFor(autocorrelationTime(w.scores)))
		e.beginChange(block, now)
		if e.reference != nil {
			e.beginShift(block, now)
		}
	}
	if e.reference == nil && len(w.scores) >= e.options.reference {
		block := e.block
		if block == 0 {
			block = blockFor(autocorrelationTime(w.scores))
		}
		slices.Sort(w.scores)
		for _, p := range w.projections {
			slices.Sort(p)
		}
		e.refer(newReference(true, w.scores, w.class, w.projections, e.key))
		e.beginShift(block, now)
	}
	if e.shift.block > 0 {
		e.warm = warmup{}
	}
}

// observe takes one record that has a score. It reports which detectors begin
// an alarm.
func (e *engine) observe(bits uint64, score float32, class int32, ood bool, proj *[projections]float32, at *mark, now float64) (shift, change bool) {
	tie, v := uint32(bits>>32), float64(uint32(bits))*(1./(1<<32))
	at.records, at.ood = e.records, e.ood
	gap := e.calibration.gap(score, tie)

	cell := cellOf(gap, e.calibration.n())
	if c := &e.change; c.block > 0 {
		if c.n == 0 {
			c.first = *at
		}
		p := e.urn.p(cell, v)
		if p <= tail5 {
			c.partial[featT5]++
			if p <= tail1 {
				c.partial[featT1]++
			}
		}
		rank(c.partial[featUp:], p)
		if c.n++; c.n == c.block {
			dt := c.close(now)
			change = c.step(c.means, dt, &c.first, c.sums, c.count)
			c.settle()
		}
	}
	// What made the alarm must not become normal before somebody has looked.
	if !e.change.active {
		e.urn.add(cell, 1)
	}

	if s := &e.shift; s.block > 0 {
		if s.n == 0 {
			s.first = *at
		}
		if e.reference != e.calibration {
			gap = e.reference.gap(score, tie)
		}
		n := e.reference.n()
		above := n - gap
		p := (float64(above) + v) / float64(n+1)
		if above < e.k5 {
			s.partial[featT5]++
			if above < e.k1 {
				s.partial[featT1]++
			}
		}
		rank(s.partial[featUp:], p)
		if e.layout.groups != nil {
			s.partial[scoreFeatures+e.layout.groups[class]]++
		}
		for k := range e.layout.projections {
			r := e.reference.projections[k]
			gap := below(r, proj[k])
			equal := 0
			if gap < len(r) && r[gap] == proj[k] {
				equal = below(r[gap:], math.Nextafter32(proj[k], float32(math.Inf(1))))
			}
			rank(s.partial[scoreFeatures+e.layout.groupCount+perRank*k:], (float64(n-gap-equal)+v*float64(equal+1))/float64(n+1))
		}
		if s.n++; s.n == s.block {
			dt := s.close(now)
			shift = s.step(s.means, dt, &s.first, s.sums, s.count)
			e.retrain.step(s.means, dt, &s.first, s.sums, s.count)
			for i := range e.featureSums {
				e.featureSums[i] += s.partial[i]
			}
			s.settle()
		}
	}
	e.records++
	if ood {
		e.ood++
	}
	if e.shift.block == 0 {
		e.warmUp(score, class, proj, now)
	}
	return shift, change
}

// acknowledge ends the alarms: change takes what comes from now on as normal,
// and shift begins again without evidence.
func (e *engine) acknowledge(now float64) {
	e.urn = newUrn(e.calibration.n(), true)
	for _, b := range []*betting{&e.shift, &e.change} {
		b.restart()
		b.last = now
	}
	e.retrain.restart()
	e.recommended = false
}

// recommend decides whether retraining is recommended.
func (e *engine) recommend(now float64) bool {
	s := &e.shift
	if !s.active {
		e.recommended = false
		return false
	}
	if e.recommended {
		return true
	}
	since := e.records - s.onset.RecordsBefore
	e.recommended = e.retrain.evidence >= e.retrain.threshold && now-s.since >= retrainActive &&
		since >= max(retrainRecords, retrainPerClass*int64(len(e.calibration.class))) &&
		(e.recommendedAt == 0 || now-e.recommendedAt >= retrainCooldown)
	if e.recommended {
		e.recommendedAt = now
	}
	return e.recommended
}

// raise notes that an alarm of b began now, and tells of it.
func (e *engine) raise(b *betting, name string, classes []string, now float64) Alarm {
	b.since = now
	b.onset = e.onsetOf(b)
	return Alarm{
		Detector: name, Time: seconds(now), Evidence: b.evidence, Threshold: b.threshold,
		Onset: b.onset, Features: e.features(b, classes),
	}
}

func (e *engine) onsetOf(b *betting) Onset {
	top := b.top(&e.layout, -1)
	if top < 0 {
		return Onset{}
	}
	m := &b.starts[top]
	o := Onset{
		Time: seconds(m.time), RecordTime: time.UnixMicro(m.recordTime).UTC(), Partition: m.partition, Offset: m.offset,
		Records: e.records - m.records, RecordsBefore: m.records,
	}
	o.OODRateBefore = ratio(float64(m.ood), float64(o.RecordsBefore))
	o.OODRateAfter = ratio(float64(e.ood-m.ood), float64(o.Records))
	return o
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func seconds(unix float64) time.Time {
	whole, part := math.Modf(unix)
	return time.Unix(int64(whole), int64(part*1e9)).UTC()
}

func unix(t time.Time) float64 { return float64(t.Unix()) + float64(t.Nanosecond())*1e-9 }

// byFamily returns the evidence by family. The features of change are those of
// the score, which every layout begins with.
func (e *engine) byFamily(b *betting) (sum [families]float64) {
	for i := range b.bets {
		sum[e.layout.family(b.bets[i].feature)] += b.bets[i].r
	}
	return sum
}

// features returns the evidence by family, most first.
func (e *engine) features(b *betting, classes []string) []FeatureEvidence {
	l := &e.layout
	var all []FeatureEvidence
	for family, evidence := range e.byFamily(b) {
		top := b.top(l, family)
		if top < 0 {
			continue
		}
		bet, from := &b.bets[top], &b.starts[top]
		all = append(all, FeatureEvidence{
			Feature: Features[family], Evidence: evidence, Limit: bet.limit, Detail: l.detail(bet.feature, classes),
			Before: ratio(from.sum, float64(from.count)), After: ratio(b.sums[bet.feature]-from.sum, float64(b.count-from.count)),
		})
	}
	slices.SortStableFunc(all, func(x, y FeatureEvidence) int { return cmp.Compare(y.Evidence, x.Evidence) })
	return all
}

// detail names the classes of a group, or a projection.
func (l *layout) detail(feature int, classes []string) string {
	switch l.family(feature) {
	case familyClass:
		const most = 5
		text, n := "", 0
		for class, g := range l.groups {
			if int(g) != feature-scoreFeatures {
				continue
			}
			if n++; n <= most {
				if text != "" {
					text += ", "
				}
				text += classes[class]
			}
		}
		if n > most {
			text += fmt.Sprintf(" and %d more", n-most)
		}
		return text
	case familyProjection:
		return fmt.Sprintf("projection %d", (feature-scoreFeatures-l.groupCount)/perRank)
	}
	return ""
}
