package drift

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"
)

// options are what all engines of a Watch share.
type options struct {
	threshold float64 // of each detector, in seconds
	delta     float64 // of each reference
	tolerance Tolerance
	block     int // 0: by the stream
	reference int // live records that make one
	project   bool
	samples   int  // of each end, for an incident
	show      bool // with their embeddings
	key       uint64
}

const (
	// delta is the probability, over the draw of the references of an instance,
	// with which a limit of shift may be too low.
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
//
// Of the four features of a rank only two are summed, its p-value and its distance
// from the middle: the others are what is missing to 1 in each record.
type betting struct {
	recursion
	block   int // 0: it has not begun
	last    float64
	n       int       // records of the block in hand
	partial []float64 // sums of their features
	seen    []int     // of the features of classes, those that are not 0 in this block
	first   mark
	sums    []float64 // of the features, of all closed blocks
	count   int64     // of the records of those blocks

	ranks  []ranks   // of the score, then of each projection
	closed []float64 // sums of the features of the blocks that close in a chunk
}

// ranks are the means of a rank in the blocks that close in a chunk.
type ranks struct {
	first         int       // of its features
	p             []float64 // those of the records, in blocks of one, else means
	means, spread [chunk]float64
}

// begin starts to bet, without evidence, on features with these limits.
func (b *betting) begin(l *layout, limits []float64, block int, threshold, now float64) {
	n := len(limits)
	alarms := b.alarms
	b.recursion = newRecursion(threshold, components(l, limits, block), n)
	b.alarms = alarms
	b.starts = make([]start, len(b.bets))
	b.block, b.last, b.n, b.count = block, now, 0, 0
	b.partial, b.sums, b.closed = make([]float64, n), make([]float64, n), make([]float64, n)
	b.seen = make([]int, 0, l.groupCount+1)
	b.ranks = []ranks{{first: featUp}}
	for k := range l.projections {
		b.ranks = append(b.ranks, ranks{first: scoreFeatures + l.groupCount + perRank*k})
	}
}

// resume finds the features of classes that are not 0 in the block in hand.
func (b *betting) resume(l *layout) {
	for g := range l.groupCount {
		if f := scoreFeatures + g; b.partial[f] != 0 {
			b.seen = append(b.seen, f)
		}
	}
}

// take adds the records of h and lets the blocks bet that close, all at one time.
// groups are those of the classes; nil: there are none. It reports whether an alarm
// begins.
func (b *betting) take(h *hand, groups []int32, retrain *recursion) (alarm bool) {
	n := len(h.rows)
	blocks, over := (b.n+n)/b.block, (b.n+n)%b.block
	beginning := b.first // of the first block that closes
	if b.n == 0 {
		beginning = h.first
		b.first = beginning
	}
	if blocks > 0 && over > 0 { // a block begins that is not closed
		b.first = h.mark(n - over)
	}
	share := 1 / float64(b.block)
	for i := range b.ranks {
		b.ranks[i].take(b, h.p[i][:n], share)
	}
	b.takeTails(h.tail[:n], retrain, share)
	if groups != nil {
		b.takeClasses(h.class[:n], groups, retrain, share)
	}
	b.n = over
	if blocks > 0 {
		alarm = b.settle(blocks, &beginning, retrain, h.now)
	}
	return alarm
}

// take adds p-values.
func (r *ranks) take(b *betting, all []float64, share float64) {
	partial, closed := b.partial[r.first:][:perRank], b.closed[r.first:][:perRank]
	sum, spread := partial[1], partial[2]
	if b.block == 1 {
		r.p = all
		out := r.spread[:len(all)]
		for i, p := range all {
			s := math.Abs(2*p - 1)
			sum += p
			spread += s
			out[i] = s
		}
		closed[1] += sum
		closed[2] += spread
		return
	}
	r.p = r.means[:]
	for left, block := b.block-b.n, 0; len(all) > 0; left, block = b.block, block+1 {
		n := min(left, len(all))
		for _, p := range all[:n] {
			sum += p
			spread += math.Abs(2*p - 1)
		}
		all = all[n:]
		if n < left {
			break
		}
		r.means[block], r.spread[block] = sum*share, spread*share
		closed[1] += sum
		closed[2] += spread
		sum, spread = 0, 0
	}
	partial[1], partial[2] = sum, spread
}

// takeTails adds records to the features of the tails: t5 has those with a tail of 1
// or 2, t1 those of 2.
func (b *betting) takeTails(tails []uint8, retrain *recursion, share float64) {
	left := b.block - b.n
	if b.block == 1 {
		left = len(tails)
	}
	for ; len(tails) > 0; left = b.block {
		n := min(left, len(tails))
		t5, t1 := countTails(tails[:n])
		tails = tails[n:]
		b.partial[featT5] += float64(t5)
		b.partial[featT1] += float64(t1)
		if n == left {
			b.close(featT5, share, retrain)
			b.close(featT1, share, retrain)
		}
	}
}

// countTails returns how many of the tails are above 0, and how many are 2.
func countTails(tails []uint8) (t5, t1 int) {
	for ; len(tails) >= 8; tails = tails[8:] {
		x := binary.LittleEndian.Uint64(tails)
		t5 += bits.OnesCount64((x | x>>1) & 0x0101010101010101)
		t1 += bits.OnesCount64(x & 0x0202020202020202)
	}
	for _, tail := range tails {
		t5 += int((tail + 1) >> 1)
		t1 += int(tail >> 1)
	}
	return t5, t1
}

// takeClasses adds records, for each of which the feature of the group of its class
// is 1.
func (b *betting) takeClasses(class, groups []int32, retrain *recursion, share float64) {
	if b.block == 1 {
		var count [maxGroups]int
		for _, c := range class {
			count[groups[c]&(maxGroups-1)]++
		}
		for g, n := range count {
			if n > 0 {
				b.partial[scoreFeatures+g] = float64(n)
				b.close(scoreFeatures+g, share, retrain)
			}
		}
		return
	}
	left := b.block - b.n
	for _, c := range class {
		b.hit(scoreFeatures + int(groups[c]))
		if left--; left > 0 {
			continue
		}
		left = b.block
		for _, f := range b.seen {
			b.close(f, share, retrain)
		}
		b.seen = b.seen[:0]
	}
}

// close tells the bets on a feature that is 0 or 1 in a record of its sum in the
// block in hand. Blocks of one record are closed together.
func (b *betting) close(feature int, share float64, retrain *recursion) {
	sum := b.partial[feature]
	if sum == 0 {
		return
	}
	for _, r := range [...]*recursion{&b.recursion, retrain} {
		switch {
		case r == nil:
		case b.block == 1:
			r.ones(feature, int(sum))
		default:
			r.mean(feature, sum*share)
		}
	}
	b.closed[feature] += sum
	b.partial[feature] = 0
}

// hit adds a record in which a feature is 1.
func (b *betting) hit(feature int) {
	n := len(b.seen) // without a branch: which of many is seen first cannot be predicted
	b.seen = b.seen[:n+1]
	b.seen[n] = feature
	b.seen = b.seen[:n+one(b.partial[feature] == 0)]
	b.partial[feature]++
}

// complete fills in the features of ranks that are not summed, for n records.
func (b *betting) complete(sums []float64, n float64) {
	for i := range b.ranks {
		f := sums[b.ranks[i].first:][:perRank]
		f[0], f[3] = n-f[1], n-f[2]
	}
}

// settle lets the blocks bet that have closed, the first of which began at first.
// A clock that is set back costs no more than the time it is set back by.
func (b *betting) settle(blocks int, first *mark, retrain *recursion, now float64) (alarm bool) {
	dt := min(max(0, now-b.last), longestGap*b.threshold)
	b.last = now
	for i := range b.ranks {
		r := &b.ranks[i]
		b.recursion.rank(r.first, r.p[:blocks], r.spread[:blocks])
		if retrain != nil {
			retrain.rank(r.first, r.p[:blocks], r.spread[:blocks])
		}
	}
	alarm = b.recursion.settle(blocks, dt, first, b.sums, b.count)
	if retrain != nil {
		retrain.settle(blocks, dt, first, b.sums, b.count)
	}
	records := blocks * b.block
	b.complete(b.closed, float64(records))
	for i, v := range b.closed {
		b.sums[i] += v
		b.closed[i] = 0
	}
	b.count += int64(records)
	return alarm
}

// An engine watches one stream: a topic's records as one instance sees them, or
// one segment of them.
type engine struct {
	*options
	calibration *reference // of the model; it makes the cells of change
	places      *places    // in the reference, as far as there is one, and in those cells
	segment     string     // "": the stream. Records of a segment need not be distributed as the calibration.
	rows        []int32    // of the batch in hand; the stream's are all

	// The reference of shift: the calibration, or from warm, or nil as yet.
	reference *reference
	layout    layout
	k1, k5    int // ranks of the tails
	warm      warmup

	shift, change betting
	shiftLimits   []float64
	retrain       recursion
	urn           *urn
	sampler       sampler

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
func newEngine(o *options, calibration *reference, segment string, now float64) *engine {
	e := &engine{options: o, calibration: calibration, segment: segment, urn: newUrn(calibration.n(), segment != ""), sampler: sampler{size: o.samples, embeddings: o.show}}
	e.rankAmong(new(ranking))
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
	return e.segment != "" || e.project || e.calibration.n() < calibrationIsEnough
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

// rankAmong ranks scores among r, and in the cells of the urn.
func (e *engine) rankAmong(r *ranking) { e.places = newPlaces(r, cellsOf(&e.calibration.ranking)) }

func (e *engine) refer(r *reference) {
	e.rankAmong(&r.ranking)
	if r.live { // nobody else ranks among them
		r.ties = nil
	}
	e.reference, e.layout = r, layoutOf(r)
	e.k1, e.k5 = int(math.Floor(tail1*float64(r.n()))), int(math.Floor(tail5*float64(r.n())))
}

func (e *engine) beginChange(block int, now float64) {
	e.change.begin(new(layout), changeLimits(e.tolerance), block, e.threshold, now)
}

func (e *engine) beginShift(block int, now float64) {
	e.shiftLimits = shiftLimits(e.reference, &e.layout, e.tolerance, e.delta)
	e.shift.begin(&e.layout, e.shiftLimits, block, e.threshold, now)
	e.retrain = newRecursion(retrainThreshold, components(&e.layout, shiftLimits(e.reference, &e.layout, retrainTolerance, e.delta), block), len(e.shiftLimits))
}

// awaited is how many records come before a detector begins.
func (e *engine) awaited() int {
	n, next := len(e.warm.scores), e.needed()
	if e.change.block == 0 && n < measured {
		next = min(next, measured)
	}
	return max(1, next-n)
}

// warmUp keeps the records of h until there are enough.
func (e *engine) warmUp(h *hand) {
	w, now := &e.warm, h.now
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
	for i, row := range h.rows {
		w.scores = append(w.scores, h.score[i])
		w.class[h.class[i]]++
		for k := range w.projections {
			w.projections[k] = append(w.projections[k], h.projections[row][k])
		}
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
		if e.change.block == 0 { // the reference is smaller than what would tell its block
			e.beginChange(max(DefaultBlock, block), now)
		}
	}
	if e.shift.block > 0 {
		e.warm = warmup{}
	}
}

// observe takes the first of the rows of a batch, each of which has a score: a
// chunk of them. It reports how many, and which detectors begin an alarm.
func (e *engine) observe(h *hand, rows []int32) (n int, shift, change bool) {
	n = min(len(rows), chunk)
	if e.shift.block == 0 {
		n = min(n, e.awaited())
	}
	h.take(rows[:n], e.records, e.ood)
	e.sampler.offer(h.rows, h.score[:n], h.class[:n], e.records, len(e.calibration.class))
	e.places.find(h.gap[:n], h.cell[:n], h.score[:n], h.tie[:n])
	change = e.observeChange(h)
	if e.shift.block > 0 {
		shift = e.observeShift(h)
	}
	e.records += int64(n)
	e.ood += h.ood
	if e.shift.block == 0 {
		e.warmUp(h)
	}
	return n, shift, change
}

// observeChange ranks the records in hand in the urn, and bets.
func (e *engine) observeChange(h *hand) (alarm bool) {
	last := len(h.rows) - 1
	p, cells, v := h.p[0][:last+1], h.cell[:last+1], h.v[:last+1]
	e.urn.draw(p[:last], cells, v, !e.change.active)
	e.urn.draw(p[last:], cells[last:], v[last:], false)
	if e.change.block > 0 {
		tail := h.tail[:len(p)]
		for i, p := range p {
			tail[i] = uint8(one(p <= tail5) + one(p <= tail1))
		}
		alarm = e.change.take(h, nil, nil)
	}
	// What comes while an alarm holds must not become normal before somebody has
	// looked. Of what made it no more than these rows do.
	if !e.change.active {
		e.urn.add(cells[last])
	}
	return alarm
}

// observeShift ranks the records in hand in the reference, and bets.
func (e *engine) observeShift(h *hand) (alarm bool) {
	n, size := len(h.rows), e.reference.n()
	p, tail, v, share := h.p[0][:n], h.tail[:n], h.v[:n], 1/float64(size+1)
	for i, gap := range h.gap[:n] {
		above := size - int(gap)
		tail[i] = uint8(one(above < e.k5) + one(above < e.k1))
		p[i] = (float64(above) + v[i]) * share
	}
	for k := range e.layout.projections {
		p := h.p[1+k][:n]
		for i, row := range h.rows {
			p[i] = e.reference.p(k, h.projections[row][k], h.v[i])
		}
	}
	before := [scoreFeatures]float64(e.shift.sums)
	alarm = e.shift.take(h, e.layout.groups, &e.retrain)
	for i := range e.featureSums {
		e.featureSums[i] += e.shift.sums[i] - before[i]
	}
	return alarm
}

func one(yes bool) (n int) {
	if yes {
		n = 1
	}
	return n
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

// recommend decides whether retraining is recommended, and reports whether it
// is from now on.
func (e *engine) recommend(now float64) bool {
	s := &e.shift
	if !s.active {
		e.recommended = false
		return false
	}
	if e.recommended {
		return false
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

// alarm tells of the evidence of b as it is now.
func (e *engine) alarm(b *betting, name string, classes []string, now float64) Alarm {
	a := Alarm{
		Detector: name, Time: seconds(now), Evidence: b.evidence, Threshold: b.threshold,
		Onset: e.onsetOf(b), Features: e.features(b, classes),
	}
	reference := e.calibration.class
	if e.reference != nil {
		reference = e.reference.class
	}
	low := len(a.Features) > 0 && a.Features[0].Feature == Features[featDn]
	a.Classes, a.Records = e.sampler.classes(reference, classes), e.sampler.samples(a.Onset.RecordsBefore, low, classes)
	return a
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
	for i, v := range b.r {
		sum[e.layout.family(b.bets[i].feature)] += v
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
