package drift

import (
	"cmp"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A fixture is a Watch with a clock of its own, and a source of batches.
type fixture struct {
	t       testing.TB
	r       *rand.Rand
	cfg     Config
	base    Baseline
	now     time.Time
	watch   *Watch
	reg     *prometheus.Registry
	log     strings.Builder
	offsets map[int32]int64
}

var classNames = []string{"a", "b", "c", "d"}

// newFixture has a calibration of n N(0, 1) scores of four classes.
func newFixture(t testing.TB, n int, change func(*Config)) *fixture {
	t.Helper()
	f := &fixture{
		t: t, r: rand.New(rand.NewPCG(1, 1)), cfg: DefaultConfig(), now: time.Unix(1_700_000_000, 0),
		offsets: make(map[int32]int64), base: Baseline{Model: "0123456789ab", Classes: classNames},
	}
	f.base.Scores = normal(f.r, n)
	slices.Sort(f.base.Scores)
	for range n {
		f.base.Class = append(f.base.Class, int32(f.r.IntN(len(classNames))))
	}
	f.cfg.MeanTimeToFalseAlarm = 12 * time.Hour // threshold 86,400 s
	f.cfg.Block = DefaultBlock
	if change != nil {
		change(&f.cfg)
	}
	f.open()
	return f
}

// open starts a Watch, as a process that starts does.
func (f *fixture) open() {
	f.t.Helper()
	f.reg = prometheus.NewRegistry()
	var err error
	f.watch, err = New(f.cfg, "topic", f.base, func() time.Time { return f.now }, f.reg, slog.New(slog.NewTextHandler(&f.log, nil)))
	if err != nil {
		f.t.Fatal(err)
	}
	if f.cfg.StateFile == "" {
		f.watch.options.key = 5 // the same in every run
	}
}

type texts []string

func (t texts) Value(i int) string { return t[i] }

// A kind says what records are like.
type kind struct {
	score     func(r *rand.Rand) float64
	class     func(r *rand.Rand) int
	segment   string
	embedding func(r *rand.Rand) []float32
}

func inControl(r *rand.Rand) float64 { return r.NormFloat64() }

func (f *fixture) batch(partition int32, n int, k kind) *Batch {
	b := &Batch{Model: f.base.Model, Partition: partition}
	var ids, segments texts
	for range n {
		score := k.score(f.r)
		class := f.r.IntN(len(f.base.Classes))
		if k.class != nil {
			class = k.class(f.r)
		}
		b.Offset = append(b.Offset, f.offsets[partition])
		b.Row = append(b.Row, 0)
		b.Score = append(b.Score, float32(score))
		b.Class = append(b.Class, int32(class))
		b.OOD = append(b.OOD, score > 2.5)
		b.Time = append(b.Time, f.now.UnixMicro())
		ids = append(ids, "id-"+time.Duration(f.offsets[partition]).String())
		segments = append(segments, k.segment)
		if k.embedding != nil {
			b.Embedding = append(b.Embedding, k.embedding(f.r)...)
		}
		f.offsets[partition]++
	}
	b.ID, b.Segment = ids, segments
	return b
}

// feed observes n records, ten a second, and returns the alarms.
func (f *fixture) feed(n int, k kind) (alarms []Alarm) {
	f.t.Helper()
	for n > 0 {
		size := min(n, 100)
		n -= size
		f.now = f.now.Add(time.Duration(size) * 100 * time.Millisecond)
		alarms = append(alarms, f.watch.Observe(f.batch(0, size, k))...)
	}
	return alarms
}

func (f *fixture) evidence(detector string) float64 {
	for _, d := range f.watch.Status().Detectors {
		if d.Detector == detector {
			return d.Evidence
		}
	}
	f.t.Fatalf("no detector %s", detector)
	return 0
}

// Each way to drift is noticed, named by the feature that drives it, and dated.
func TestAlarm(t *testing.T) {
	plain := func(r *rand.Rand, mean, sd float64) []float32 {
		x := make([]float32, 64)
		for j := range x {
			x[j] = float32(mean*float64(j%2) + sd*r.NormFloat64())
		}
		return x
	}
	usual := func(r *rand.Rand) []float32 { return plain(r, 0, 1) }
	for name, test := range map[string]struct {
		after    kind
		features []string // any of them
		project  bool
	}{
		"outliers":         {kind{score: mixed(.2)}, []string{"t1", "t5"}, false},
		"higher":           {kind{score: func(r *rand.Rand) float64 { return .5 + .9*r.NormFloat64() }}, []string{"up", "t5"}, false},
		"lower":            {kind{score: func(r *rand.Rand) float64 { return -.7 + r.NormFloat64() }}, []string{"dn"}, false},
		"narrower":         {kind{score: func(r *rand.Rand) float64 { return .5 * r.NormFloat64() }}, []string{"disp_dn"}, false},
		"wider":            {kind{score: func(r *rand.Rand) float64 { return 1.5 * r.NormFloat64() }}, []string{"disp_up", "t1", "t5"}, false},
		"class mix":        {kind{score: inControl, class: func(r *rand.Rand) int { return max(0, r.IntN(8)-4) }}, []string{"class"}, false},
		"covariates":       {kind{score: inControl, embedding: func(r *rand.Rand) []float32 { return plain(r, .5, 1) }}, []string{"projection"}, true},
		"same, projecting": {kind{score: mixed(.2)}, []string{"t1", "t5"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			before := 8000
			f := newFixture(t, 10000, func(c *Config) {
				if c.Projections = test.project; test.project {
					c.ReferenceRecords = 5000
				}
			})
			if test.after.embedding == nil {
				test.after.embedding = usual
			}
			if alarms := f.feed(before, kind{score: inControl, embedding: usual}); len(alarms) > 0 {
				t.Fatalf("before anything has changed: %+v", alarms)
			}
			changed := f.now
			var shift *Alarm
			for _, a := range f.feed(4000, test.after) {
				if a.Detector == Shift {
					shift = &a
				}
			}
			if shift == nil {
				t.Fatalf("no alarm; status %+v", f.watch.Status())
			}
			if top := shift.Features[0].Feature; !slices.Contains(test.features, top) {
				t.Errorf("driven by %s, want one of %v: %+v", top, test.features, shift.Features)
			}
			if d := shift.Onset.Time.Sub(changed); d < -20*time.Second || d > 30*time.Second {
				t.Errorf("onset %v after the change, want about 0", d)
			}
			if at := shift.Onset.RecordsBefore; at != shift.Onset.Offset || math.Abs(float64(at-int64(before))) > 300 {
				t.Errorf("onset at record %d, offset %d; the change was at %d", at, shift.Onset.Offset, before)
			}
			top := shift.Features[0]
			if !(top.After > top.Limit && top.Before < top.Limit) {
				t.Errorf("mean of %s %g before, %g after; the limit is %g", top.Feature, top.Before, top.After, top.Limit)
			}
			if name == "outliers" && (shift.Onset.OODRateBefore > .02 || shift.Onset.OODRateAfter < .08 || shift.Records[0].Score < 3 || !shift.Records[0].OOD || !strings.HasPrefix(shift.Records[0].ID, "id-")) {
				t.Errorf("OOD rate %g before, %g after; %+v", shift.Onset.OODRateBefore, shift.Onset.OODRateAfter, shift.Records[0])
			}
			if name == "lower" && shift.Records[0].Score > -2 {
				t.Errorf("the scores sink, but the first record shown has %g", shift.Records[0].Score)
			}
			if name == "class mix" && (top.Detail != "a" || shift.Classes[0].Class != "a" || shift.Classes[0].Share < shift.Classes[0].Reference) {
				t.Errorf("class %q leads; shares %+v", top.Detail, shift.Classes)
			}
			if len(shift.Records) > f.cfg.Incidents.Samples {
				t.Errorf("%d records", len(shift.Records))
			}
		})
	}
}

func mixed(share float64) func(*rand.Rand) float64 {
	return func(r *rand.Rand) float64 {
		if r.Float64() < share {
			return 3 + r.NormFloat64()
		}
		return r.NormFloat64()
	}
}

// The alarm ends when the stream is again as the reference, and counts once.
func TestAlarmEnds(t *testing.T) {
	f := newFixture(t, 10000, nil)
	f.feed(2000, kind{score: mixed(.5)})
	state := func() DetectorStatus { return f.watch.Status().Detectors[0] }
	if s := state(); !s.Active || s.Alarms != 1 {
		t.Fatalf("%+v", s)
	}
	f.feed(20000, kind{score: inControl})
	if s := state(); s.Active || s.Alarms != 1 || s.Onset.IsZero() {
		t.Errorf("after it: %+v", s)
	}
	f.feed(2000, kind{score: mixed(.5)})
	if s := state(); !s.Active || s.Alarms != 2 {
		t.Errorf("again: %+v", s)
	}
}

// What has no finite score is passed over, whatever it is, and moves nothing.
func TestInvalidScoresNeverBet(t *testing.T) {
	f, g := newFixture(t, 10000, nil), newFixture(t, 10000, nil)
	f.feed(1000, kind{score: inControl})
	g.feed(1000, kind{score: inControl})
	bad := []float64{math.NaN(), math.Inf(1), math.Inf(-1)}
	n := 0
	if alarms := f.feed(5000, kind{score: func(*rand.Rand) float64 { n++; return bad[n%3] }}); len(alarms) > 0 {
		t.Errorf("alarms %+v", alarms)
	}
	b := f.batch(0, 100, kind{score: mixed(1)})
	for i := range b.Class {
		b.Class[i] = -1
	}
	f.watch.Observe(b)
	if f.evidence(Shift) != g.evidence(Shift) || f.evidence(Change) != g.evidence(Change) {
		t.Errorf("evidence %g and %g, without the invalid %g and %g", f.evidence(Shift), f.evidence(Change), g.evidence(Shift), g.evidence(Change))
	}
}

// driftingBatches returns 240 batches of 50 records of three partitions, which drift from
// the middle on, and when each comes.
func driftingBatches(t *testing.T) (batches []*Batch, times []time.Time) {
	script := newFixture(t, 10000, nil)
	for i := range 240 {
		score := inControl
		if i > 120 {
			score = mixed(.3)
		}
		script.now = script.now.Add(5 * time.Second)
		batches = append(batches, script.batch(int32(i%3), 50, kind{score: score}))
		times = append(times, script.now)
	}
	return batches, times
}

// A process that is killed again and again, and reads from an offset at or before
// its last snapshot, raises the alarms of one that is not, and ends at the same
// evidence.
func TestKilledAndReplayed(t *testing.T) {
	batches, times := driftingBatches(t)
	play := func(killed bool) (alarms []Alarm, at []float64) {
		f := newFixture(t, 10000, func(c *Config) { c.StateFile = filepath.Join(t.TempDir(), "state") })
		f.watch.options.key = 77
		r := rand.New(rand.NewPCG(3, 3))
		save := func() {
			if err := f.watch.Save(); err != nil {
				t.Fatal(err)
			}
		}
		save()
		saved := 0 // batches in the snapshot
		lost := 0  // alarms since
		for i := 0; i < len(batches); i++ {
			f.now = times[i]
			new := f.watch.Observe(batches[i])
			alarms = append(alarms, new...)
			lost += len(new)
			switch {
			case !killed:
			case r.IntN(10) == 0:
				save()
				saved, lost = i+1, 0
			case r.IntN(20) == 0:
				alarms = alarms[:len(alarms)-lost] // they died with the process
				lost = 0
				f.open()
				i = max(0, saved-r.IntN(5)) - 1 // what was observed comes again
			}
		}
		return alarms, []float64{f.evidence(Shift), f.evidence(Change)}
	}
	want, wantAt := play(false)
	got, gotAt := play(true)
	if len(want) < 2 {
		t.Fatalf("%d alarms: the test shows nothing", len(want))
	}
	if !slices.Equal(gotAt, wantAt) {
		t.Errorf("evidence %v, without kills %v", gotAt, wantAt)
	}
	if len(got) != len(want) {
		t.Fatalf("%d alarms, without kills %d", len(got), len(want))
	}
	for i := range want {
		if a, b := got[i], want[i]; a.Detector != b.Detector || a.Time != b.Time || a.Evidence != b.Evidence || a.Onset != b.Onset {
			t.Errorf("alarm %d: %+v, without kills %+v", i, a, b)
		}
	}
}

// Batches that were acknowledged and committed after the last snapshot do not come again
// by themselves. The journal tells a process which they were: with them it goes on as one
// that was not killed: they bet as of the time when they were announced. It dies before
// and after a batch has bet, in the middle of writing an entry, and between a snapshot and
// the journal's next beginning.
func TestKilledAfterTheCommit(t *testing.T) {
	batches, times := driftingBatches(t)
	from := func(b *Batch) int64 { return b.Offset[0] }
	to := func(b *Batch) int64 { return b.Offset[len(b.Offset)-1] + 1 }
	at := make(map[Span]int) // by partition and first offset
	for i, b := range batches {
		at[Span{int64(b.Partition), from(b)}] = i
	}
	play := func(killed bool) (f *fixture, again int) {
		file := filepath.Join(t.TempDir(), "state")
		f = newFixture(t, 10000, func(c *Config) { c.StateFile = file })
		f.watch.options.key = 77
		r := rand.New(rand.NewPCG(3, 3))
		save := func() {
			if err := f.watch.Save(); err != nil {
				t.Fatal(err)
			}
		}
		save()
		for i, b := range batches {
			f.now = times[i]
			f.watch.Announce(b.Partition, from(b), to(b))
			dies := killed && r.IntN(12) == 0
			before := dies && r.IntN(2) == 0
			if !before {
				f.watch.Observe(b)
			}
			if killed && r.IntN(15) == 0 {
				journal, err := os.ReadFile(file + journalSuffix)
				if err != nil {
					t.Fatal(err)
				}
				save()
				if r.IntN(2) == 0 { // as if it had died before the journal began anew
					if err := os.WriteFile(file+journalSuffix, journal, 0o600); err != nil {
						t.Fatal(err)
					}
					dies = true
				}
			}
			if !dies {
				continue
			}
			if r.IntN(2) == 0 { // an entry of which only a part was written
				torn, err := os.OpenFile(file+journalSuffix, os.O_APPEND|os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := torn.Write(make([]byte, 1+r.IntN(journalEntry-1))); err != nil {
					t.Fatal(err)
				}
				torn.Close()
			}
			f.open()
			var missed []int
			for partition := range int32(3) {
				for _, s := range f.watch.Missed(partition, to(batches[i-i%3+int(partition)])) {
					for from := s.From; from < s.To; from += 50 {
						if n, ok := at[Span{int64(partition), from}]; ok && n <= i {
							missed = append(missed, n)
						}
					}
				}
			}
			slices.Sort(missed) // in the order of the first time: only then the bits are the same
			for _, n := range missed {
				b := *batches[n]
				b.Missed = true
				f.watch.Observe(&b)
				again++
			}
			for partition := range int32(3) {
				if s := f.watch.Missed(partition, to(b)); len(s) > 0 {
					t.Fatalf("missed again: %v", s)
				}
			}
		}
		return f, again
	}
	want, _ := play(false)
	got, again := play(true)
	if again < 20 {
		t.Fatalf("%d batches were missed: the test shows nothing", again)
	}
	if got.watch.stream.records != 240*50 {
		t.Errorf("%d records bet, want %d", got.watch.stream.records, 240*50)
	}
	a, b := got.watch.Status().Detectors, want.watch.Status().Detectors
	for i := range b {
		if a[i].Alarms != b[i].Alarms || b[i].Alarms == 0 || a[i].Evidence != b[i].Evidence || !a[i].Onset.Equal(b[i].Onset) {
			t.Errorf("%+v, without kills %+v", a[i], b[i])
		}
	}
}

// Where one partition is read on and what was missed in another comes in between, the
// seconds count once.
func TestMissedBatchesTurnNoClockBack(t *testing.T) {
	f := newFixture(t, 10000, func(c *Config) { c.StateFile = filepath.Join(t.TempDir(), "state") })
	f.watch.options.key = 77
	f.feed(200, kind{score: inControl})
	if err := f.watch.Save(); err != nil {
		t.Fatal(err)
	}
	var missed []*Batch
	for range 10 {
		f.now = f.now.Add(time.Second)
		b := f.batch(1, 16, kind{score: inControl})
		f.watch.Announce(1, b.Offset[0], b.Offset[15]+1)
		b.Missed = true
		missed = append(missed, b)
	}
	f.now = f.now.Add(time.Hour)
	f.open()
	for _, b := range missed {
		f.now = f.now.Add(time.Second)
		f.watch.Observe(f.batch(0, 16, kind{score: inControl}))
		before := f.watch.stream.change.last
		f.watch.Observe(b)
		if now := unix(f.now); before != now || f.watch.stream.change.last != now {
			t.Fatalf("at %g the last bet is of %g, and after a missed batch of %g", now, before, f.watch.stream.change.last)
		}
	}
	if n := f.watch.stream.records; n != 200+320 {
		t.Errorf("%d records bet, want 520", n)
	}
}

// Records of a topic that was made anew have small offsets again.
func TestForget(t *testing.T) {
	f := newFixture(t, 10000, nil)
	f.feed(1000, kind{score: inControl})
	f.watch.Forget(0, 1000) // the end of the log: all is well
	f.offsets[0] = 0
	f.feed(160, kind{score: inControl})
	if n := f.watch.stream.records; n != 1000 {
		t.Errorf("%d records observed, want 1000: the replay counts", n)
	}
	f.watch.Forget(0, 160)
	f.offsets[0] = 0
	f.feed(160, kind{score: inControl})
	if n := f.watch.stream.records; n != 1160 {
		t.Errorf("%d records observed, want 1160", n)
	}
}

// While no alarm begins, a stretch of the stream maps the evidence R before it to
// P·R+V, wherever it is cut: the maps of all stretches compose to that of the whole.
func TestEvidenceIsAffine(t *testing.T) {
	const n = 1000
	r := rand.New(rand.NewPCG(9, 9))
	calibration := normal(r, 10000)
	scores := normal(r, n)
	for _, set := range []setting{
		{Shift, 1e12, defaultTolerance, DefaultBlock}, {Shift, 1e12, Tolerance{}, 1},
		{Change, 1e12, defaultTolerance, DefaultBlock}, {Change, 1e12, Tolerance{}, 1},
	} {
		// run returns R of each bet after n records, begun with R at from.
		run := func(from, to int, begin float64) []float64 {
			s := simulate(calibration, set, 3)
			for i := range to {
				if i == from {
					for k := range s.b.r {
						s.b.r[k] = begin
					}
				}
				s.batch(scores[i:i+1], []int32{0}, float64(i+1))
			}
			return s.b.r
		}
		whole := run(0, n, 0)
		for range 3 {
			cuts := []int{0, 1 + r.IntN(n-1), 1 + r.IntN(n-1), 1 + r.IntN(n-1), n}
			slices.Sort(cuts)
			merged := make([]float64, len(whole))
			for i, from := range cuts[:len(cuts)-1] {
				v, one := run(from, cuts[i+1], 0), run(from, cuts[i+1], 1)
				for k := range merged {
					merged[k] = (one[k]-v[k])*merged[k] + v[k]
				}
			}
			for k := range whole {
				if math.Abs(merged[k]-whole[k]) > 1e-9*max(1, whole[k]) {
					t.Errorf("%+v cut at %d, bet %d: merged %g, in sequence %g", set, cuts, k, merged[k], whole[k])
				}
			}
		}
	}
}

// A new model has another scale of scores: all begins anew.
func TestRebase(t *testing.T) {
	f := newFixture(t, 10000, nil)
	f.feed(3000, kind{score: mixed(.3)})
	if !f.watch.Status().Detectors[0].Active {
		t.Fatal("no alarm")
	}
	old := f.base.Model
	f.base.Model = "ffffffffffff"
	f.base.Scores = slices.Clone(f.base.Scores)
	for i := range f.base.Scores {
		f.base.Scores[i] = 10 + 2*f.base.Scores[i]
	}
	f.watch.Rebase(f.base)
	s := f.watch.Status().Detectors[0]
	if s.Active || s.Evidence != 0 || s.Alarms != 1 {
		t.Errorf("after the new model: %+v", s)
	}
	b := f.batch(0, 1000, kind{score: mixed(.5)})
	b.Model = old // still under way when the model changed
	f.watch.Observe(b)
	if alarms := f.feed(5000, kind{score: func(r *rand.Rand) float64 { return 10 + 2*r.NormFloat64() }}); len(alarms) > 0 || f.watch.stream.records != 5000 {
		t.Errorf("alarms %+v, %d records", alarms, f.watch.stream.records)
	}
}

// A calibration that is too small is no reference: the first live records are.
func TestLiveReference(t *testing.T) {
	f := newFixture(t, 1000, func(c *Config) {
		c.Block, c.ReferenceRecords = 0, 6000
		c.StateFile = filepath.Join(t.TempDir(), "state")
	})
	live := kind{score: func(r *rand.Rand) float64 { return .3 + r.NormFloat64() }} // unlike the calibration, but steady
	restart := func() {
		t.Helper()
		if err := f.watch.Save(); err != nil {
			t.Fatal(err)
		}
		f.open()
	}
	f.feed(1500, live)
	restart()
	f.feed(3000, live)
	restart()
	s := f.watch.Status()
	if s.Reference != (ReferenceStatus{"live", 4500, 6000}) || s.Detectors[0].Block != 0 || s.Detectors[1].Block < DefaultBlock {
		t.Errorf("half-way: %+v", s)
	}
	f.feed(1500, live)
	s = f.watch.Status()
	if s.Reference != (ReferenceStatus{"live", 6000, 6000}) || s.Detectors[0].Block != 1 {
		t.Errorf("with independent records a block has 1: %+v", s)
	}
	restart()
	for _, a := range f.feed(20000, live) {
		if a.Detector == Shift {
			t.Errorf("%+v", a)
		}
	}
	if f.feed(3000, kind{score: mixed(.4)}); !f.watch.Status().Detectors[0].Active {
		t.Errorf("no alarm: %+v", f.watch.Status())
	}
}

// A small live reference ends the warm-up for change, too.
func TestSmallLiveReference(t *testing.T) {
	f := newFixture(t, 1000, func(c *Config) { c.Block, c.ReferenceRecords = 0, 1000 })
	f.feed(1500, kind{score: inControl})
	for _, d := range f.watch.Status().Detectors {
		if d.Block == 0 {
			t.Errorf("%s has not begun after 1500 records", d.Detector)
		}
	}
	found := make(map[string]bool)
	for _, a := range f.feed(4000, kind{score: mixed(.4)}) {
		found[a.Detector] = true
	}
	if !found[Shift] || !found[Change] {
		t.Errorf("alarms of %v, want both detectors", found)
	}
}

// One tenant drifts: its alarm names it, and the others raise none.
func TestSegments(t *testing.T) {
	f := newFixture(t, 10000, func(c *Config) { c.MaxSegments, c.ReferenceRecords, c.Block = 2, 2000, 0 })
	segments := []string{"eu", "us", "asia", ""} // the last two are watched together
	offset := map[string]float64{"us": 1}
	var alarms []Alarm
	feed := func(rounds int, drifting string) {
		for range rounds {
			for _, s := range segments {
				score := func(r *rand.Rand) float64 { return offset[s] + r.NormFloat64() }
				if s == drifting {
					score = func(r *rand.Rand) float64 { return offset[s] + mixed(.6)(r) }
				}
				alarms = append(alarms, f.feed(50, kind{score: score, segment: s})...)
			}
		}
	}
	of := func() map[string]int {
		n := make(map[string]int)
		for _, a := range alarms {
			n[a.Segment]++
		}
		return n
	}
	feed(100, "none")
	if n := of(); n["eu"]+n["us"]+n[OtherSegments] > 0 {
		t.Fatalf("before anything has changed: %v", n)
	}
	feed(60, "us")
	if n := of(); n["us"] == 0 || n["eu"]+n[OtherSegments] > 0 {
		t.Errorf("alarms by segment: %v", n)
	}
	s := f.watch.Status().Segments
	if len(s) != 3 || s[0].Segment != "us" || s[0].Records != 8000 || !s[0].Detectors[0].Active {
		t.Errorf("status: %+v", s)
	}
	for series, want := range map[string]float64{
		"oodmon_segment_drift_active,shift,us": 1, "oodmon_segment_drift_active,shift,eu": 0, "oodmon_segment_records_total,_other": 16000,
		"oodmon_segment_drift_alarms_total,change,_other": 0,
	} {
		if got, ok := f.gather()[series]; !ok || got != want {
			t.Errorf("%s is %g, want %g", series, got, want)
		}
	}
	if f.watch.stream.threshold != 2*4*f.cfg.MeanTimeToFalseAlarm.Seconds() {
		t.Errorf("threshold %g s: the detectors together must meet the budget", f.watch.stream.threshold)
	}
}

// Retraining is recommended for a large change that lasts, once.
func TestRetrainRecommended(t *testing.T) {
	f := newFixture(t, 10000, nil)
	f.feed(1000, kind{score: inControl})
	var first time.Time
	changed := f.now
	count := 0
	feed := func(hours int) {
		for range hours {
			f.now = f.now.Add(time.Hour - 10*time.Second)
			for _, a := range f.feed(100, kind{score: mixed(.3)}) {
				if a.Detector == Retrain {
					count++
					if first = a.Time; a.Onset.Records < 1000 || a.Features[0].Evidence == 0 {
						t.Errorf("%+v", a)
					}
				}
			}
		}
	}
	feed(40)
	if count != 1 || first.Sub(changed) < 24*time.Hour || !f.watch.Status().RetrainRecommended {
		t.Fatalf("recommended %d times, first %v after the change; status %v", count, first.Sub(changed), f.watch.Status().RetrainRecommended)
	}
	// A new model that does not help is not a reason to retrain again at once.
	f.base.Model = "ffffffffffff"
	f.watch.Rebase(f.base)
	if f.watch.Status().RetrainRecommended {
		t.Error("recommended still, with the new model in service")
	}
	feed(24 * 5)
	if count != 1 {
		t.Errorf("recommended again within 7 days")
	}
	feed(24 * 3)
	if count != 2 {
		t.Errorf("recommended %d times after the 7 days, want twice", count)
	}
}

// What is acknowledged is the new normal for change. shift holds on to the
// reference.
func TestAcknowledge(t *testing.T) {
	f := newFixture(t, 10000, nil)
	small := kind{score: func(r *rand.Rand) float64 { return .4 + r.NormFloat64() }}
	f.feed(3000, kind{score: inControl})
	f.feed(4000, small)
	if s := f.watch.Status(); !s.Detectors[1].Active {
		t.Fatalf("%+v", s)
	}
	f.watch.Acknowledge()
	if s := f.watch.Status(); s.Detectors[0].Evidence != 0 || s.Detectors[1].Active {
		t.Errorf("%+v", s)
	}
	f.feed(8000, small)
	if s := f.watch.Status(); s.Detectors[1].Active || !s.Detectors[0].Active {
		t.Errorf("%+v", s)
	}
}

// A stop of years, or a clock that jumps, is no evidence.
func TestClockJumps(t *testing.T) {
	f := newFixture(t, 10000, nil)
	for _, jump := range []time.Duration{5 * 365 * 24 * time.Hour, -10 * 365 * 24 * time.Hour, 5 * 365 * 24 * time.Hour} {
		f.now = f.now.Add(jump)
		if alarms := f.feed(2000, kind{score: inControl}); len(alarms) > 0 {
			t.Errorf("after a jump of %v: %+v", jump, alarms)
		}
	}
	f.now = f.now.Add(-10 * 365 * 24 * time.Hour)
	if alarms := f.feed(2000, kind{score: mixed(.5)}); len(alarms) != 2 {
		t.Errorf("%d alarms after the clock was set back, want 2", len(alarms))
	}
}

// gather returns the value of each series, named with the values of its labels.
func (f *fixture) gather() map[string]float64 {
	f.t.Helper()
	families, err := f.reg.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		for _, m := range family.Metric {
			name := family.GetName()
			for _, l := range m.Label {
				name += "," + l.GetValue()
			}
			values[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values
}

func TestMetrics(t *testing.T) {
	f := newFixture(t, 10000, nil)
	f.feed(3200, kind{score: mixed(.3)})
	values := f.gather()
	for series, want := range map[string]float64{
		"oodmon_drift_active,change": 1, "oodmon_drift_active,shift": 1, "oodmon_drift_alarms_total,change": 1, "oodmon_drift_alarms_total,shift": 1,
		"oodmon_drift_threshold_seconds,change": 86400, "oodmon_drift_threshold_seconds,shift": 86400,
		"oodmon_reference_info,calibration,0123456789ab": 1, "oodmon_reference_records": 10000, "oodmon_retrain_recommended": 0, "oodmon_state_snapshot_timestamp_seconds": 0,
	} {
		if got, ok := values[series]; !ok || got != want {
			t.Errorf("%s is %g, want %g", series, got, want)
		}
	}
	if n := values["oodmon_feature_sum_total,up"] + values["oodmon_feature_sum_total,dn"]; math.Abs(n-3200) > 1e-6 {
		t.Errorf("up and dn add up to %g, want the 3200 records", n)
	}
	if mean, limit := values["oodmon_feature_sum_total,t1"]/3200, values["oodmon_feature_limit_ratio,t1"]; mean < .1 || limit < .015 || limit > .025 {
		t.Errorf("t1: mean %g, limit %g", mean, limit)
	}
	if at := values["oodmon_drift_onset_timestamp_seconds,shift"]; math.Abs(at-1_700_000_000) > 60 {
		t.Errorf("onset %f", at)
	}
	if e := values["oodmon_drift_evidence_seconds,shift"]; e < 86400 {
		t.Errorf("evidence %g", e)
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"segments":    func(c *Config) { c.MaxSegments = 2 },
		"projections": func(c *Config) { c.Projections, c.Incidents.IncludeEmbedding = true, true },
	} {
		f := newFixture(t, 10000, func(c *Config) { change(c); c.ReferenceRecords = 5000 })
		b := f.batch(0, 1024, kind{score: inControl, segment: "eu", embedding: func(r *rand.Rand) []float32 { return normal(r, 64) }})
		next := func() {
			f.now = f.now.Add(time.Second)
			f.watch.Observe(b)
			for i := range b.Offset {
				b.Offset[i] += int64(len(b.Offset))
			}
		}
		for range 30 { // past the warm-up
			next()
		}
		if n := testing.AllocsPerRun(50, next); n != 0 {
			t.Errorf("%s: %v allocations a batch, want 0", name, n)
		}
	}
}

// Evidence stays a number where each record of many batches wins, or loses, all bets.
func TestExtremeBatches(t *testing.T) {
	for _, block := range []int{1, 2, 4, 16, 128} {
		f := newFixture(t, 10000, func(c *Config) { c.Block, c.Tolerance = block, Tolerance{} })
		alarms := 0
		for i := range 20 {
			score := float64(10 - i/5%2*20)
			f.now = f.now.Add(time.Second)
			alarms += len(f.watch.Observe(f.batch(0, 1000, kind{
				score: func(*rand.Rand) float64 { return score }, class: func(*rand.Rand) int { return i / 5 % 2 },
			})))
			for _, r := range []*recursion{&f.watch.stream.shift.recursion, &f.watch.stream.change.recursion, &f.watch.stream.retrain} {
				for k, v := range append(slices.Clone(r.r), r.c...) {
					if !(v >= 0 && v < math.Inf(1)) {
						t.Fatalf("blocks of %d, batch %d: number %d is %g", block, i, k, v)
					}
				}
				if !(r.evidence <= 2*r.threshold*float64(len(r.bets))) {
					t.Fatalf("blocks of %d, batch %d: evidence %g", block, i, r.evidence)
				}
			}
		}
		if alarms < 2 {
			t.Errorf("blocks of %d: %d alarms", block, alarms)
		}
	}
}

// The records that an alarm shows are the most extreme of the last two windows, each
// with what was said of it, however the stream falls into batches.
func TestSamples(t *testing.T) {
	f := newFixture(t, 10000, nil)
	var all []Sample
	for len(all) < 3*window+window/2 {
		b := f.batch(0, 1+f.r.IntN(window/2), kind{score: inControl})
		for i := range b.Offset {
			all = append(all, Sample{
				ID: b.ID.Value(i), Score: b.Score[i], Class: classNames[b.Class[i]], OOD: b.OOD[i],
				Time: time.UnixMicro(b.Time[i]).UTC(), Partition: 0, Offset: b.Offset[i],
			})
		}
		f.watch.Observe(b)
		*b = Batch{} // its memory is used again
	}
	for _, low := range []bool{false, true} {
		want := slices.Clone(all[(len(all)-1)/window*window-window:])
		slices.SortStableFunc(want, func(a, b Sample) int {
			if low {
				a, b = b, a
			}
			return cmp.Compare(b.Score, a.Score)
		})
		got := f.watch.stream.sampler.samples(0, low, classNames)
		if n := f.cfg.Incidents.Samples; !reflect.DeepEqual(got, want[:n]) {
			t.Errorf("low %v:\ngot  %+v\nwant %+v", low, got, want[:n])
		}
	}
}

// The whole of Observe: ranks, both detectors, the sampled extremes.
func BenchmarkObserve(b *testing.B) {
	for _, test := range []struct {
		name                          string
		calibration, classes, records int
		change                        func(*Config)
	}{
		// As the line is by default: the calibration is small, so that the first
		// records are the reference and tell the block, which is 1 for shift.
		{"line/classes=10", 1000, 10, 1999, func(c *Config) { c.Block = 0 }},
		{"line/classes=100", 1000, 100, 499, func(c *Config) { c.Block = 0 }},
		{"block=1/classes=100", 10000, 100, 2048, func(c *Config) { c.Block = 1 }},
		{"block=4/classes=100", 10000, 100, 2048, func(c *Config) { c.Block = 4 }},
		{"block=16/classes=100", 10000, 100, 2048, nil},
		{"segments", 10000, 4, 2048, func(c *Config) { c.MaxSegments = 2 }},
		{"projections", 10000, 4, 2048, func(c *Config) { c.Projections = true }},
	} {
		b.Run(test.name, func(b *testing.B) {
			f := newFixture(b, test.calibration, test.change)
			for c := len(f.base.Classes); c < test.classes; c++ {
				f.base.Classes = append(slices.Clip(f.base.Classes), fmt.Sprint("class ", c))
			}
			// Narrow, as distances are: of float32 values some are equal.
			score := func(r *rand.Rand) float64 { return 1.3 + .02*r.NormFloat64() }
			for i := range f.base.Scores {
				f.base.Scores[i] = float32(score(f.r))
				f.base.Class[i] = int32(i % test.classes)
			}
			slices.Sort(f.base.Scores)
			f.open()
			k := kind{score: score}
			if f.cfg.MaxSegments > 0 {
				k.segment = "eu"
			}
			if f.cfg.Projections {
				k.embedding = func(r *rand.Rand) []float32 { return normal(r, 64) }
			}
			observe := func(batch *Batch) (elapsed time.Duration) {
				f.now = f.now.Add(time.Second)
				start := time.Now()
				f.watch.Observe(batch)
				return time.Since(start)
			}
			// What a processor has seen before it predicts: so many different
			// records that it cannot learn them.
			for n := 0; n < 2*f.cfg.ReferenceRecords; n += test.records {
				observe(f.batch(0, test.records, k))
			}
			batches := make([]*Batch, 1<<17/test.records)
			for i := range batches {
				batches[i] = f.batch(0, test.records, k)
			}
			// Between two batches the line has read, scored and published others, by
			// way of all caches.
			other := make([]byte, 32<<20)
			b.ReportAllocs()
			records, elapsed := 0, time.Duration(0)
			for b.Loop() {
				for i := 0; i < len(other); i += 64 {
					other[i]++
				}
				batch := batches[records/test.records%len(batches)]
				elapsed += observe(batch)
				records += test.records
				for i := range batch.Offset {
					batch.Offset[i] += int64(len(batches) * test.records)
				}
			}
			b.ReportMetric(float64(elapsed.Nanoseconds())/float64(records), "ns/record")
		})
	}
}
