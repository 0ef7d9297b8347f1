package drift

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"math"
	"os"
	"slices"
	"time"

	"github.com/oodmon/oodmon/internal/atomicfile"
)

// The state file, version 2; in version 1 the classes were in other groups. All
// numbers are little-endian, times are seconds since 1970 as float64, and a list
// is its length as uint32 and its elements.
//
//	offset  size  what
//	0       8     "OODDRIFT"
//	8       4     format version, uint32
//	12      4     CRC-32C of all that follows
//	16      8     hash of the topic
//	24      8     hash of the configuration
//	32      8     hash of the model's version
//	40      8     when it was written
//	48      8     when retraining was last recommended; 0: never
//	56      8     key of the records' random numbers
//	64            list of watermarks: partition int32, offset int64
//	              the engine of the stream
//	              list of segments: name (a list of bytes), engine
//
// An engine:
//
//	records int64, of them ood int64
//	features of shift so far, 6 × float64
//	recommended uint8
//	kind uint8: 0 warming up, 1 reference is the calibration, 2 reference of live records, 3 warming up with the calibration as reference
//	kinds 0, 2 and 3: list of scores float32, list of class counts int64, list of projections: each a list of float32
//	urn: began empty uint8, 256 × float64
//	shift and change: block uint32, and unless that is 0
//	  last block's time, records in hand uint32, records bet on int64
//	  list of partial sums float64, list of sums float64, mark of the block in hand, recursion
//	retrain: recursion
//
// A recursion:
//
//	active uint8, active since, alarms int64
//	onset: time, record's time int64 (µs), partition int32, offset, records, records before int64, two rates float64
//	list of bets: R, C float64, and except for retrain, whose C tells nothing: mark, sum float64, count int64
//
// A mark: time, record's time int64 (µs), partition int32, offset, records, ood int64.
const (
	stateMagic   = "OODDRIFT"
	stateVersion = 2
	stateHeader  = 16
	maxState     = 1 << 30
	maxCell      = 1 << 52 // records in a cell of the urn
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errOtherState says that a state is of another topic, model or configuration.
var errOtherState = errors.New("it belongs to another")

func hash64(text string) uint64 {
	sum := sha256.Sum256([]byte(text))
	return binary.LittleEndian.Uint64(sum[:])
}

// configuration returns what decides over the meaning of the numbers in a state.
func (w *Watch) configuration() string {
	o := w.options
	return fmt.Sprint(o.threshold, o.delta, o.tolerance, o.block, o.reference, o.project, w.cfg.MaxSegments)
}

// Save writes the state file: a reader sees the old one or the new.
func (w *Watch) Save() error {
	w.saving.Lock() // or an older state might take the place of a newer one
	defer w.saving.Unlock()
	now := w.clock()
	w.mu.Lock()
	state, watermarks := w.encode(now), maps.Clone(w.watermarks)
	w.mu.Unlock()
	if err := atomicfile.Write(w.cfg.StateFile, state, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", w.cfg.StateFile, err)
	}
	w.mu.Lock()
	w.snapshot = now
	for partition, at := range watermarks { // of those that were forgotten meanwhile the snapshot holds nothing
		if is, ok := w.watermarks[partition]; !ok || is < at {
			delete(watermarks, partition)
		}
	}
	w.mu.Unlock()
	w.inJournal(func(j *journal) error { return j.keep(watermarks) })
	return nil
}

// restore takes over the state file and reports true, or says why it does not.
func (w *Watch) restore() bool {
	path := w.cfg.StateFile
	content, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		w.log.Info("no drift state yet: evidence starts at 0", "file", path)
		return false
	case err == nil:
		err = w.decode(content)
	}
	if err == nil {
		w.log.Info("drift state restored", "file", path, "written", w.snapshot, "evidence_seconds", w.stream.shift.evidence)
		return true
	}
	if errors.Is(err, errOtherState) {
		w.log.Info("drift state not taken over: evidence starts at 0", "file", path, "reason", err)
		return false
	}
	w.log.Warn("drift state not readable: evidence starts at 0", "file", path, "error", err)
	return false
}

func (w *Watch) encode(now time.Time) []byte {
	b := writer{append(make([]byte, 0, 1<<16), stateMagic...)}
	b.u32(stateVersion)
	b.u32(0) // the checksum
	b.u64(hash64(w.source))
	b.u64(hash64(w.configuration()))
	b.u64(hash64(w.base.Model))
	b.f64(unix(now))
	b.f64(w.stream.recommendedAt)
	b.u64(w.options.key)
	b.u32(uint32(len(w.watermarks)))
	for _, partition := range slices.Sorted(maps.Keys(w.watermarks)) {
		b.u32(uint32(partition))
		b.u64(uint64(w.watermarks[partition]))
	}
	b.engine(w.stream)
	b.u32(uint32(len(w.segments)))
	for _, name := range slices.Sorted(maps.Keys(w.segments)) {
		b.u32(uint32(len(name)))
		b.b = append(b.b, name...)
		b.engine(w.segments[name])
	}
	binary.LittleEndian.PutUint32(b.b[12:], crc32.Checksum(b.b[stateHeader:], castagnoli))
	return b.b
}

// decode takes a state over whole, or not at all but for when retraining was
// recommended.
func (w *Watch) decode(content []byte) error {
	if len(content) > maxState {
		return fmt.Errorf("it has %d bytes, more than %d", len(content), maxState)
	}
	if len(content) < stateHeader || string(content[:8]) != stateMagic {
		return errors.New("it is no drift state")
	}
	if v := binary.LittleEndian.Uint32(content[8:]); v != stateVersion {
		return fmt.Errorf("%w version of oodmon: format %d, expected %d", errOtherState, v, stateVersion)
	}
	if got, want := crc32.Checksum(content[stateHeader:], castagnoli), binary.LittleEndian.Uint32(content[12:]); got != want {
		return fmt.Errorf("its checksum is %08x, expected %08x: it is damaged", got, want)
	}
	r := reader{b: content[stateHeader:]}
	source, config, model := r.u64(), r.u64(), r.u64()
	written, recommendedAt := r.f64(), r.f64()
	if r.err == nil && source == hash64(w.source) {
		w.stream.recommendedAt = recommendedAt
	}
	for _, h := range []struct {
		what       string
		got, wants uint64
	}{{"topic", source, hash64(w.source)}, {"configuration", config, hash64(w.configuration())}, {"model", model, hash64(w.base.Model)}} {
		if r.err == nil && h.got != h.wants {
			return fmt.Errorf("%w %s", errOtherState, h.what)
		}
	}
	next := Watch{cfg: w.cfg, base: w.base, options: w.options, watermarks: make(map[int32]int64), segments: make(map[string]*engine)}
	next.options.key = r.u64()
	next.calibration = newReference(false, w.base.Scores, w.calibration.class, nil, next.options.key)
	for range r.length(12) {
		partition := int32(r.u32())
		next.watermarks[partition] = int64(r.u64())
	}
	next.stream = r.engine(&w.options, next.options.key, next.calibration, "")
	for range r.length(5) {
		name := string(r.take(r.length(1)))
		if r.err == nil && name == "" {
			r.err = errors.New("a segment without a name")
		}
		next.segments[name] = r.engine(&w.options, next.options.key, next.calibration, name)
	}
	if r.err == nil && len(r.b) > 0 {
		r.err = fmt.Errorf("%d bytes are left over", len(r.b))
	}
	if r.err != nil {
		return fmt.Errorf("it is damaged: %w", r.err)
	}
	w.options.key, w.calibration, w.watermarks, w.stream, w.segments = next.options.key, next.calibration, next.watermarks, next.stream, next.segments
	w.stream.recommendedAt = recommendedAt
	w.snapshot, w.latest = seconds(written), max(w.stream.shift.last, w.stream.change.last)
	return nil
}

// What a reference is, as a state names it.
const (
	stateWarming = iota
	stateCalibration
	stateLive
	stateWarmingCalibration
)

type writer struct{ b []byte }

func (w *writer) u8(v uint8)    { w.b = append(w.b, v) }
func (w *writer) u32(v uint32)  { w.b = binary.LittleEndian.AppendUint32(w.b, v) }
func (w *writer) u64(v uint64)  { w.b = binary.LittleEndian.AppendUint64(w.b, v) }
func (w *writer) i64(v int64)   { w.u64(uint64(v)) }
func (w *writer) f64(v float64) { w.u64(math.Float64bits(v)) }
func (w *writer) bool(v bool)   { w.u8(uint8(number(v))) }

func (w *writer) f32s(v []float32) {
	w.u32(uint32(len(v)))
	for _, x := range v {
		w.u32(math.Float32bits(x))
	}
}

func (w *writer) f64s(v []float64) {
	w.u32(uint32(len(v)))
	for _, x := range v {
		w.f64(x)
	}
}

// time writes a time, 0 for none.
func (w *writer) time(t time.Time) { w.f64(timestamp(t)) }

func (w *writer) records(scores []float32, class []int64, projections [][]float32) {
	w.f32s(scores)
	w.u32(uint32(len(class)))
	for _, n := range class {
		w.i64(n)
	}
	w.u32(uint32(len(projections)))
	for _, p := range projections {
		w.f32s(p)
	}
}

func (w *writer) engine(e *engine) {
	w.i64(e.records)
	w.i64(e.ood)
	for _, v := range e.featureSums {
		w.f64(v)
	}
	w.bool(e.recommended)
	switch r := e.reference; {
	case r == nil:
		w.u8(stateWarming)
		w.records(e.warm.scores, e.warm.class, e.warm.projections)
	case r.live:
		w.u8(stateLive)
		w.records(r.scores, r.class, r.projections)
	case e.shift.block == 0:
		w.u8(stateWarmingCalibration)
		w.records(e.warm.scores, e.warm.class, e.warm.projections)
	default:
		w.u8(stateCalibration)
	}
	w.bool(e.urn.empty)
	for _, n := range e.urn.cells {
		w.f64(float64(n))
	}
	for _, b := range []*betting{&e.shift, &e.change} {
		w.u32(uint32(b.block))
		if b.block == 0 {
			continue
		}
		w.f64(b.last)
		w.u32(uint32(b.n))
		w.i64(b.count)
		b.complete(b.partial, float64(b.n))
		w.f64s(b.partial)
		w.f64s(b.sums)
		w.mark(&b.first)
		w.recursion(&b.recursion)
	}
	if e.shift.block > 0 {
		w.recursion(&e.retrain)
	}
}

func (w *writer) mark(m *mark) {
	w.f64(m.time)
	w.i64(m.recordTime)
	w.u32(uint32(m.partition))
	w.i64(m.offset)
	w.i64(m.records)
	w.i64(m.ood)
}

func (w *writer) recursion(r *recursion) {
	w.bool(r.active)
	w.f64(r.since)
	w.i64(r.alarms)
	o := &r.onset
	w.time(o.Time)
	w.i64(micros(o.RecordTime))
	w.u32(uint32(o.Partition))
	w.i64(o.Offset)
	w.i64(o.Records)
	w.i64(o.RecordsBefore)
	w.f64(o.OODRateBefore)
	w.f64(o.OODRateAfter)
	w.u32(uint32(len(r.bets)))
	for i := range r.bets {
		w.f64(r.r[i])
		w.f64(r.c[i])
		if r.starts != nil {
			s := &r.starts[i]
			w.mark(&s.mark)
			w.f64(s.sum)
			w.i64(s.count)
		}
	}
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// A reader takes numbers off its bytes. After the first error all are 0.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err == nil && n > len(r.b) {
		r.err = fmt.Errorf("it ends too early: %d bytes are missing", n-len(r.b))
	}
	if r.err != nil {
		return nil
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) i64() int64   { return int64(r.u64()) }
func (r *reader) f64() float64 { return math.Float64frombits(r.u64()) }
func (r *reader) bool() bool   { return r.u8() != 0 }

// length reads the length of a list of elements of at least size bytes.
func (r *reader) length(size int) int {
	n := int(r.u32())
	if r.err == nil && n > len(r.b)/size {
		r.err = fmt.Errorf("a list of %d elements is longer than what is left", n)
	}
	if r.err != nil {
		return 0
	}
	return n
}

func (r *reader) f32s() []float32 {
	v := make([]float32, r.length(4))
	for i := range v {
		v[i] = math.Float32frombits(r.u32())
	}
	return v
}

// into fills v, whose length the configuration tells.
func (r *reader) into(v []float64) {
	if n := r.length(8); r.err == nil && n != len(v) {
		r.err = fmt.Errorf("a list has %d elements, expected %d", n, len(v))
	}
	for i := range v {
		v[i] = r.f64()
	}
}

func (r *reader) time() time.Time {
	if v := r.f64(); v != 0 {
		return seconds(v)
	}
	return time.Time{}
}

// records reads records of a reference: as many of each projection as scores.
func (r *reader) records(classes int, project bool) (scores []float32, class []int64, proj [][]float32) {
	scores = r.f32s()
	class = make([]int64, r.length(8))
	for i := range class {
		class[i] = r.i64()
	}
	if r.err == nil && len(class) > 0 && len(class) != classes {
		r.err = fmt.Errorf("counts of %d classes, expected %d", len(class), classes)
	}
	for range r.length(4) {
		proj = append(proj, r.f32s())
	}
	wanted := 0
	if project && len(class) > 0 {
		wanted = projections
	}
	if r.err == nil && len(proj) != wanted {
		r.err = fmt.Errorf("%d projections, expected %d", len(proj), wanted)
	}
	for _, p := range proj {
		if r.err == nil && len(p) != len(scores) {
			r.err = fmt.Errorf("a projection of %d records, expected %d", len(p), len(scores))
		}
	}
	if r.err == nil && len(class) == 0 && len(scores) > 0 {
		r.err = errors.New("scores without classes")
	}
	return scores, class, proj
}

func (r *reader) engine(o *options, key uint64, calibration *reference, segment string) *engine {
	e := &engine{options: o, calibration: calibration, segment: segment, sampler: sampler{size: o.samples, embeddings: o.show}}
	e.records, e.ood = r.i64(), r.i64()
	for i := range e.featureSums {
		e.featureSums[i] = r.f64()
	}
	e.recommended = r.bool()
	e.rankAmong(new(ranking))
	kind := r.u8()
	if wantsLive := kind == stateWarming || kind == stateLive; r.err == nil && (kind > stateWarmingCalibration || wantsLive != e.needsLive()) {
		r.err = fmt.Errorf("a reference of kind %d does not go with the configuration", kind)
	}
	if kind == stateCalibration || kind == stateWarmingCalibration {
		e.refer(calibration)
	}
	if kind != stateCalibration {
		scores, class, proj := r.records(len(calibration.class), o.project)
		switch {
		case r.err != nil:
		case kind == stateLive && (len(scores) == 0 || len(class) == 0):
			r.err = errors.New("an empty reference")
		case kind == stateLive:
			e.refer(newReference(true, scores, class, proj, key))
		case len(class) > 0:
			e.warm = warmup{scores: scores, class: class, projections: proj}
		}
	}
	e.urn = &urn{empty: r.bool()}
	for i := range e.urn.cells {
		n := r.f64()
		if r.err == nil && !(n >= 0 && n <= maxCell && n == math.Trunc(n)) {
			r.err = fmt.Errorf("%g records in a cell", n)
		}
		e.urn.cells[i] = int64(n)
	}
	e.urn.sum()
	for _, b := range []*betting{&e.shift, &e.change} {
		block := int(r.u32())
		if r.err == nil && block > maxBlock {
			r.err = fmt.Errorf("a block of %d records", block)
		}
		if r.err == nil && b == &e.shift && (block == 0) != (kind == stateWarming || kind == stateWarmingCalibration) {
			r.err = fmt.Errorf("a block of %d records with a reference of kind %d", block, kind)
		}
		if block == 0 || r.err != nil {
			continue
		}
		l := &e.layout
		if b == &e.shift {
			e.beginShift(block, 0)
		} else {
			e.beginChange(block, 0)
			l = new(layout)
		}
		b.last, b.n, b.count = r.f64(), int(r.u32()), r.i64()
		r.into(b.partial)
		r.into(b.sums)
		b.resume(l)
		b.first = r.mark()
		r.recursion(&b.recursion)
		if r.err == nil && b.n >= block {
			r.err = fmt.Errorf("%d records of a block of %d", b.n, block)
		}
	}
	if e.shift.block > 0 {
		r.recursion(&e.retrain)
	}
	return e
}

func (r *reader) mark() (m mark) {
	m.time, m.recordTime = r.f64(), r.i64()
	m.partition, m.offset = int32(r.u32()), r.i64()
	m.records, m.ood = r.i64(), r.i64()
	return m
}

func (r *reader) recursion(to *recursion) {
	to.active, to.since, to.alarms = r.bool(), r.f64(), r.i64()
	o := &to.onset
	o.Time = r.time()
	if v := r.i64(); v != 0 {
		o.RecordTime = time.UnixMicro(v).UTC()
	}
	o.Partition, o.Offset = int32(r.u32()), r.i64()
	o.Records, o.RecordsBefore = r.i64(), r.i64()
	o.OODRateBefore, o.OODRateAfter = r.f64(), r.f64()
	if n := r.length(16); r.err == nil && n != len(to.bets) {
		r.err = fmt.Errorf("%d bets, expected %d", n, len(to.bets))
	}
	to.evidence = 0
	for i := range to.bets {
		to.r[i], to.c[i] = r.f64(), r.f64()
		if r.err == nil && !(to.r[i] >= 0 && to.r[i] <= 2*to.threshold && to.c[i] >= 0) {
			r.err = fmt.Errorf("a bet with R = %g and C = %g", to.r[i], to.c[i])
		}
		to.evidence += to.r[i]
		if to.starts != nil {
			to.starts[i] = start{r.mark(), r.f64(), r.i64()}
		}
	}
}
