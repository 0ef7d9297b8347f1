package drift

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"sort"
	"strings"
	"sync"
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
// Each instance's evidence is valid by itself, whichever partitions come and
// go, and so is the average over instances: nothing moves with a partition.
type Watch struct {
	cfg    Config
	source string // the topic: offsets mean nothing in another
	clock  func() time.Time
	log    *slog.Logger

	mu          sync.Mutex
	options     options
	base        Baseline
	calibration *reference
	stream      *engine
	segments    map[string]*engine
	projector   projector
	watermarks  map[int32]int64 // of each partition, the last offset that was observed
	snapshot    time.Time
}

// New returns a Watch without evidence, or with that of the configured state
// file if it was of the same topic, model and configuration. What is wrong with
// a state file is logged, and costs its evidence only.
func New(cfg Config, source string, base Baseline, clock func() time.Time, reg prometheus.Registerer, log *slog.Logger) (*Watch, error) {
	w := &Watch{
		cfg: cfg, source: source, clock: clock, log: log,
		watermarks: make(map[int32]int64),
		options: options{
			threshold: cfg.threshold(), delta: delta, tolerance: cfg.Tolerance, block: cfg.Block,
			reference: cfg.ReferenceRecords, project: cfg.Projections,
		},
	}
	var key [8]byte
	_, _ = rand.Read(key[:]) // it never fails
	w.options.key = binary.LittleEndian.Uint64(key[:])
	w.begin(base)
	if cfg.StateFile != "" {
		w.restore()
	}
	if err := reg.Register(newMetrics(w)); err != nil {
		return nil, fmt.Errorf("drift: register metrics: %w", err)
	}
	return w, nil
}

// threshold returns A of each detector: doubled, and once more for each
// segment, so that all of them together meet the budget.
func (c *Config) threshold() float64 {
	detectors := len(Detectors)
	if c.MaxSegments > 0 {
		detectors *= 1 + c.MaxSegments + 1
	}
	return float64(detectors) * c.MeanTimeToFalseAlarm.Seconds()
}

// begin drops all evidence and starts with a baseline.
func (w *Watch) begin(base Baseline) {
	class := make([]int64, len(base.Classes))
	for _, c := range base.Class {
		class[c]++
	}
	w.base = base
	w.calibration = newReference(false, base.Scores, class, nil, w.options.key)
	w.stream = newEngine(&w.options, w.calibration, false, unix(w.clock()))
	w.segments = make(map[string]*engine)
}

// Rebase starts again with another model. The alarms that were raised stay
// counted; the time of the last recommendation to retrain stays known.
func (w *Watch) Rebase(base Baseline) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if base.Model == w.base.Model {
		return
	}
	old := w.stream
	w.begin(base)
	w.stream.recommendedAt, w.stream.featureSums = old.recommendedAt, old.featureSums
	w.stream.shift.alarms, w.stream.change.alarms = old.shift.alarms, old.change.alarms
	w.log.Info("drift evidence starts at 0 with the new model", "model", base.Model)
}

// Observe takes a batch whose results have been acknowledged and returns the
// alarms that begin with it. Records up to the partition's watermark were
// observed before and are passed over, so that none bets twice; so are records
// that another model scored.
func (w *Watch) Observe(b *Batch) []Alarm {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(b.Offset) == 0 {
		return nil
	}
	watermark, ok := w.watermarks[b.Partition]
	if !ok {
		watermark = -1
	}
	now := unix(w.clock())
	var alarms []Alarm
	if b.Model == w.base.Model {
		for i, offset := range b.Offset {
			if offset <= watermark {
				continue
			}
			// What has no finite score must not bet.
			if s := float64(b.Score[i]); b.Class[i] < 0 || math.IsNaN(s) || math.IsInf(s, 0) {
				continue
			}
			alarms = w.record(alarms, b, i, now)
		}
	}
	w.watermarks[b.Partition] = max(watermark, b.Offset[len(b.Offset)-1])
	w.stream.recommend(now)
	return alarms
}

// record lets one record bet.
func (w *Watch) record(alarms []Alarm, b *Batch, i int, now float64) []Alarm {
	bits := random(w.options.key, b.Partition, b.Offset[i], b.Row[i])
	at := mark{time: now, recordTime: b.Time[i], offset: b.Offset[i], partition: b.Partition}
	var proj *[projections]float32
	if w.options.project {
		proj = w.projector.project(b.Embedding[i*(len(b.Embedding)/len(b.Offset)):][:len(b.Embedding)/len(b.Offset)])
	}
	alarms = w.feed(w.stream, "", alarms, bits, b, i, proj, &at, now)
	if w.cfg.MaxSegments > 0 {
		name := ""
		if b.Segment != nil {
			name = b.Segment[i]
		}
		e, name := w.segment(name, now)
		alarms = w.feed(e, name, alarms, bits, b, i, proj, &at, now)
	}
	return alarms
}

func (w *Watch) feed(e *engine, segment string, alarms []Alarm, bits uint64, b *Batch, i int, proj *[projections]float32, at *mark, now float64) []Alarm {
	shift, change := e.observe(bits, b.Score[i], b.Class[i], b.OOD[i], proj, at, now)
	if shift {
		alarms = append(alarms, w.raise(e, &e.shift, Shift, segment, now))
	}
	if change {
		alarms = append(alarms, w.raise(e, &e.change, Change, segment, now))
	}
	return alarms
}

func (w *Watch) raise(e *engine, b *betting, detector, segment string, now float64) Alarm {
	a := e.raise(b, detector, w.base.Classes, now)
	a.Segment, a.Model = segment, w.base.Model
	return a
}

// segment returns the engine of a segment, which is a new one while there are
// fewer than configured, and the name that it goes by.
func (w *Watch) segment(name string, now float64) (*engine, string) {
	if e := w.segments[name]; e != nil && name != "" {
		return e, name
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
		e = newEngine(&w.options, w.calibration, true, now)
		w.segments[name] = e
	}
	return e, name
}

// Forget drops the watermark of a partition whose log ends before it: the topic
// was made anew, and its offsets count from 0 again.
func (w *Watch) Forget(partition int32, end int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at, ok := w.watermarks[partition]; ok && at >= end {
		delete(w.watermarks, partition)
		w.log.Warn("the log ends before the last record that drift has seen: the topic was made anew", "partition", partition, "seen", at, "end", end)
	}
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
