package drift

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// OtherSegments is the name under which the records without a segment, and
// those of the segments beyond the configured number, are watched together.
const OtherSegments = "_other"

// maxSegmentName bounds a metric's label; a longer segment is watched with the others.
const maxSegmentName = 256

// A Watch holds the evidence of one instance: of the stream that its partitions
// make together, in the order in which they are acknowledged, and of segments.
// Each instance's evidence is valid by itself, whichever partitions come and go:
// nothing moves with a partition.
type Watch struct {
	cfg    Config
	source string // the topic: offsets mean nothing in another
	clock  func() time.Time
	log    *slog.Logger

	saving      sync.Mutex
	mu          sync.Mutex
	options     options
	base        Baseline
	calibration *reference
	stream      *engine
	segments    map[string]*engine
	hand        hand
	fed         []*engine // the segments of the batch in hand
	projector   projector
	watermarks  map[int32]int64 // of each partition, the last offset that was observed
	snapshot    time.Time
	latest      float64 // when records last bet
	journal     *journal
}

// New returns a Watch without evidence, or with that of the configured state
// file if it was of the same topic, model and configuration. What is wrong with
// the content of a state file is logged, and costs its evidence only; that it
// cannot be written is an error.
func New(cfg Config, source string, base Baseline, clock func() time.Time, reg prometheus.Registerer, log *slog.Logger) (*Watch, error) {
	w := &Watch{
		cfg: cfg, source: source, clock: clock, log: log,
		watermarks: make(map[int32]int64),
		options: options{
			threshold: cfg.threshold(), delta: cfg.delta(), tolerance: cfg.Tolerance, block: cfg.Block,
			reference: cfg.ReferenceRecords, project: cfg.Projections, samples: cfg.Incidents.Samples, show: cfg.Incidents.IncludeEmbedding,
		},
	}
	var key [8]byte
	_, _ = rand.Read(key[:]) // it never fails
	w.options.key = binary.LittleEndian.Uint64(key[:])
	w.begin(base)
	if cfg.StateFile != "" {
		err := w.recall(w.restore())
		if err == nil {
			err = w.Save()
		}
		// What cannot be written is better known now than at the first snapshot.
		switch {
		case full(err):
			w.log.Error("drift state not saved; scoring goes on without", "error", err)
		case err != nil:
			return nil, fmt.Errorf("drift.state_file: %w", err)
		}
	}
	if err := reg.Register(newMetrics(w)); err != nil {
		return nil, fmt.Errorf("drift: register metrics: %w", err)
	}
	return w, nil
}

// full says that a file could not be written for want of room, which does not mean
// that the place is a wrong one.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// engines returns how many streams have detectors of their own: the whole and,
// where there are segments, each of these and the rest.
func (c *Config) engines() int {
	if c.MaxSegments == 0 {
		return 1
	}
	return 1 + c.MaxSegments + 1
}

// threshold returns A of each detector: the budget is shared among all of them.
func (c *Config) threshold() float64 {
	return float64(len(Detectors)*c.engines()) * c.MeanTimeToFalseAlarm.Seconds()
}

// delta returns that of each reference: the probability that one of them is too far
// from its stream is shared likewise.
func (c *Config) delta() float64 { return delta / float64(c.engines()) }

// begin drops all evidence and starts with a baseline.
func (w *Watch) begin(base Baseline) {
	class := make([]int64, len(base.Classes))
	for _, c := range base.Class {
		class[c]++
	}
	w.base = base
	w.calibration = newReference(false, base.Scores, class, nil, w.options.key)
	w.stream = newEngine(&w.options, w.calibration, "", unix(w.clock()))
	w.segments = make(map[string]*engine)
}

// Rebase starts again with another model. The alarms that were raised stay
// counted; the time of the last recommendation to retrain stays known.
func (w *Watch) Rebase(base Baseline) {
	if w.rebase(base) {
		w.inJournal(func(j *journal) error {
			clear(j.spans)
			return j.rewrite()
		})
	}
}

func (w *Watch) rebase(base Baseline) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if base.Model == w.base.Model {
		return false
	}
	old := w.stream
	w.begin(base)
	w.stream.recommendedAt, w.stream.featureSums = old.recommendedAt, old.featureSums
	w.stream.shift.alarms, w.stream.change.alarms = old.shift.alarms, old.change.alarms
	w.log.Info("drift evidence starts at 0 with the new model", "model", base.Model)
	return true
}

// Observe takes a batch whose results have been acknowledged and returns the
// alarms that begin with it. Records up to the partition's watermark were
// observed before and are passed over, so that none bets twice; so are records
// that another model scored.
func (w *Watch) Observe(b *Batch) []Alarm {
	var missed []announced
	if b.Missed { // they bet as they would have then
		missed = w.announced(b.Partition)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	watermark := w.watermark(b.Partition)
	if len(b.Offset) == 0 {
		w.watermarks[b.Partition] = max(watermark, b.End-1)
		return nil
	}
	now := unix(w.clock())
	for _, s := range missed {
		if s.From <= b.Offset[0] && b.Offset[0] < s.To {
			now = min(now, max(s.time, w.latest)) // no second counts twice
		}
	}
	w.latest = now
	var alarms []Alarm
	if b.Model == w.base.Model {
		alarms = w.records(b, watermark, now)
	}
	w.watermarks[b.Partition] = max(watermark, b.Offset[len(b.Offset)-1], b.End-1)
	if w.stream.recommend(now) {
		alarms = append(alarms, w.recommendation(now))
	}
	return alarms
}

// watermark returns the last offset of a partition that was observed, or -1.
func (w *Watch) watermark(partition int32) int64 {
	if at, ok := w.watermarks[partition]; ok {
		return at
	}
	return -1
}

// records lets those beyond the watermark bet.
func (w *Watch) records(b *Batch, watermark int64, now float64) (alarms []Alarm) {
	h := &w.hand
	h.open(b, w.options.key, watermark, now)
	if w.options.project {
		h.project(&w.projector)
	}
	alarms = w.feed(w.stream, h.all, alarms, now)
	if w.cfg.MaxSegments == 0 {
		return alarms
	}
	for _, i := range h.all {
		name := ""
		if b.Segment != nil {
			name = b.Segment.Value(int(i))
		}
		e := w.segment(name, now)
		if len(e.rows) == 0 {
			w.fed = append(w.fed, e)
		}
		e.rows = append(e.rows, i)
	}
	for _, e := range w.fed {
		alarms = w.feed(e, e.rows, alarms, now)
		e.rows = e.rows[:0]
	}
	w.fed = w.fed[:0]
	return alarms
}

// feed lets the rows in hand bet with an engine.
func (w *Watch) feed(e *engine, rows []int32, alarms []Alarm, now float64) []Alarm {
	if len(rows) > chunk { // since the last batch the line has used the caches for other things
		w.hand.fetched += e.places.fetch()
	}
	for len(rows) > 0 {
		n, shift, change := e.observe(&w.hand, rows)
		if shift {
			alarms = append(alarms, w.alarm(e, &e.shift, Shift, now))
		}
		if change {
			alarms = append(alarms, w.alarm(e, &e.change, Change, now))
		}
		rows = rows[n:]
	}
	e.sampler.keep(w.hand.Batch)
	return alarms
}

func (w *Watch) alarm(e *engine, b *betting, detector string, now float64) Alarm {
	e.sampler.keep(w.hand.Batch)
	a := e.alarm(b, detector, w.base.Classes, now)
	a.Segment, a.Model = e.segment, w.base.Model
	b.since, b.onset = now, a.Onset
	return a
}

// recommendation returns the alarm that recommends retraining.
func (w *Watch) recommendation(now float64) Alarm {
	a := w.stream.alarm(&w.stream.shift, Retrain, w.base.Classes, now)
	a.Model, a.Evidence, a.Threshold = w.base.Model, w.stream.retrain.evidence, w.stream.retrain.threshold
	a.Onset.Records = w.stream.records - a.Onset.RecordsBefore
	return a
}

// segment returns the engine of a segment, which is a new one while there are
// fewer than configured.
func (w *Watch) segment(name string, now float64) *engine {
	if e := w.segments[name]; e != nil && name != "" {
		return e
	}
	others := 0
	if w.segments[OtherSegments] != nil {
		others = 1
	}
	if name == "" || len(name) > maxSegmentName || len(w.segments)-others >= w.cfg.MaxSegments {
		name = OtherSegments
	}
	e := w.segments[name]
	if e == nil {
		name = strings.Clone(name) // the batch's memory is used again
		e = newEngine(&w.options, w.calibration, name, now)
		w.segments[name] = e
	}
	return e
}

// Forget drops the watermark of a partition whose log ends before it: the topic
// was made anew, and its offsets count from 0 again. It reports whether it did; until
// the next Save a kill would find the watermark again.
func (w *Watch) Forget(partition int32, end int64) bool {
	w.mu.Lock()
	seen := w.watermark(partition)
	if seen >= end {
		delete(w.watermarks, partition)
	}
	w.mu.Unlock()
	if j := w.journal; j != nil {
		j.mu.Lock()
		seen = max(seen, j.end(partition)-1)
		j.mu.Unlock()
	}
	if seen < end {
		return false
	}
	w.log.Warn("the log ends before the last record that drift has seen: the topic was made anew", "partition", partition, "seen", seen, "end", end)
	w.inJournal(func(j *journal) error {
		delete(j.spans, partition)
		return j.rewrite()
	})
	return true
}

// Acknowledge ends the alarms of the stream and of all segments: change takes
// what comes from now on as normal; shift begins again without evidence, and
// raises its alarm again if the stream is still unlike the reference.
func (w *Watch) Acknowledge() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := unix(w.clock())
	w.stream.acknowledge(now)
	for _, e := range w.segments {
		e.acknowledge(now)
	}
}

// Status returns what a person wants to know at a glance.
func (w *Watch) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := Status{
		Detectors: w.stream.status(w.base.Classes), Reference: w.stream.referenceStatus(),
		RetrainRecommended: w.stream.recommended, Snapshot: w.snapshot,
	}
	for name, e := range w.segments {
		s.Segments = append(s.Segments, SegmentStatus{
			Segment: name, Records: e.records, Detectors: e.status(w.base.Classes), Reference: e.referenceStatus(),
		})
	}
	sort.Slice(s.Segments, func(i, j int) bool {
		a, b := s.Segments[i], s.Segments[j]
		if x, y := a.evidence(), b.evidence(); x != y {
			return x > y
		}
		return a.Segment < b.Segment
	})
	return s
}

func (s *SegmentStatus) evidence() (most float64) {
	for _, d := range s.Detectors {
		most = max(most, d.Evidence)
	}
	return most
}

func (e *engine) status(classes []string) []DetectorStatus {
	all := make([]DetectorStatus, 0, len(Detectors))
	for i, b := range []*betting{&e.shift, &e.change} {
		s := DetectorStatus{
			Detector: Detectors[i], Evidence: b.evidence, Threshold: e.threshold, Block: b.block, Active: b.active, Alarms: b.alarms,
			Onset: b.onset.Time, Features: e.features(b, classes),
		}
		if len(s.Features) > 0 {
			s.TopFeature = s.Features[0].Feature
		}
		all = append(all, s)
	}
	return all
}

func (e *engine) referenceStatus() ReferenceStatus {
	s := ReferenceStatus{Source: "calibration", Records: e.calibration.n(), Needed: e.calibration.n()}
	if e.needsLive() {
		s = ReferenceStatus{Source: "live", Records: len(e.warm.scores), Needed: e.options.reference}
		if e.reference != nil {
			s.Records = e.reference.n()
		}
	}
	return s
}
