package drift

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// small has a state of a few kilobytes in which every part is present.
func small(t testing.TB, file string) *fixture {
	t.Helper()
	f := newFixture(t, 40, func(c *Config) {
		c.MaxSegments, c.ReferenceRecords, c.StateFile = 1, 1000, file
	})
	f.watch.options.key = 0x0102030405060708
	f.feed(100, kind{score: inControl, segment: "eu"})
	f.feed(30, kind{score: mixed(.5), segment: "us"})
	return f
}

// The bytes of a state are those of version 2 of the format.
func TestStateGolden(t *testing.T) {
	golden := filepath.Join("testdata", "state-v2")
	f := small(t, filepath.Join(t.TempDir(), "state"))
	if err := f.watch.Save(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.cfg.StateFile)
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("OODMON_UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the state has %d bytes and differs from %s, of %d: a new format needs a new version", len(got), golden, len(want))
	}
	// The header, by the byte table.
	le := binary.LittleEndian
	if string(want[:8]) != "OODDRIFT" || le.Uint32(want[8:]) != 2 || le.Uint32(want[12:]) != crc32.Checksum(want[16:], crc32.MakeTable(crc32.Castagnoli)) ||
		le.Uint64(want[56:]) != 0x0102030405060708 || le.Uint32(want[64:]) != 1 || le.Uint64(want[72:]) != 129 {
		t.Errorf("header % x", want[:80])
	}
}

// What is restored is what was saved: it goes on the same.
func TestStateRestored(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"default":     func(c *Config) { c.Block = 0 },
		"fixed block": func(c *Config) {},
		"segments":    func(c *Config) { c.MaxSegments, c.ReferenceRecords = 2, 1000 },
		"projections": func(c *Config) { c.Projections, c.ReferenceRecords, c.Block = true, 2500, 0 },
	} {
		for _, n := range []int{0, 7, 2047, 2048, 4011} {
			f := newFixture(t, 6000, func(c *Config) {
				change(c)
				c.StateFile = filepath.Join(t.TempDir(), "state")
			})
			like := kind{score: inControl, segment: "eu", embedding: func(r *rand.Rand) []float32 { return normal(r, 20) }}
			f.feed(n, like)
			if err := f.watch.Save(); err != nil {
				t.Fatal(err)
			}
			old := f.watch
			f.open()
			if a, b := old.encode(f.now), f.watch.encode(f.now); !bytes.Equal(a, b) {
				t.Errorf("%s after %d records: restored, the state is another", name, n)
			}
			for range 30 {
				f.now = f.now.Add(10 * time.Second)
				b := f.batch(0, 100, like)
				old.Observe(b)
				f.watch.Observe(b)
			}
			if a, b := old.encode(f.now), f.watch.encode(f.now); !bytes.Equal(a, b) {
				t.Errorf("%s after %d records: the restored one goes on otherwise", name, n)
			}
		}
	}
}

// A state that is damaged, or of another model, topic or configuration, costs
// its evidence, and says so.
func TestStateRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	f := small(t, file)
	if err := f.watch.Save(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what, want string, content []byte) {
		t.Helper()
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		f.log.Reset()
		f.open()
		if n := f.watch.stream.records; n != 0 {
			t.Errorf("%s: %d records are taken over", what, n)
		}
		if !strings.Contains(f.log.String(), want) || !strings.Contains(f.log.String(), "evidence starts at 0") {
			t.Errorf("%s: the log says %q, want %q", what, f.log.String(), want)
		}
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 0x10
		switch {
		case i < 8:
			refused("magic", "it is no drift state", bad)
		case i < 12:
			refused("version", "it belongs to another version of oodmon", bad)
		case i%97 == 0 || i < 80:
			refused("a bit", "it is damaged", bad)
		}
	}
	old := slices.Clone(good)
	old[8] = 1
	refused("version 1", "it belongs to another version of oodmon: format 1, expected 2", old)
	refused("half of it", "it is damaged", good[:len(good)/2])
	refused("nothing", "it is no drift state", nil)
	refused("more", "it is damaged", append(slices.Clone(good), 0))
	// Damage that the checksum does not tell.
	for _, bad := range [][]byte{append(slices.Clone(good), 0), good[:len(good)-1]} {
		bad = slices.Clone(bad)
		binary.LittleEndian.PutUint32(bad[12:], crc32.Checksum(bad[16:], castagnoli))
		refused("length", "it is damaged: ", bad)
	}
	f.cfg.MeanTimeToFalseAlarm *= 2
	refused("configuration", "it belongs to another configuration", good)
	f.cfg.MeanTimeToFalseAlarm /= 2
	f.base.Model = "ffffffffffff"
	refused("model", "it belongs to another model", good)
	f.base.Model = "0123456789ab"
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if f.open(); f.watch.stream.records != 130 {
		t.Errorf("%d records of the good state, want 130", f.watch.stream.records)
	}
}

func TestStateCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "folder")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f := small(t, filepath.Join(dir, "state"))
	written := f.watch.Status().Snapshot
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(time.Minute)
	if err := f.watch.Save(); err == nil || !strings.Contains(err.Error(), f.cfg.StateFile) {
		t.Errorf("got %v", err)
	}
	if s := f.watch.Status().Snapshot; s != written {
		t.Errorf("a snapshot of %v, but none was written since %v", s, written)
	}
	_, err := New(f.cfg, "topic", f.base, time.Now, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err == nil || !strings.HasPrefix(err.Error(), "drift.state_file: ") || !strings.Contains(err.Error(), f.cfg.StateFile) {
		t.Errorf("got %v", err)
	}
}

// What a journal holds belongs to the evidence of its state file, and to the topic that was.
func TestJournalGoesWithTheEvidence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	f := small(t, file)
	missed := func(want ...Span) {
		t.Helper()
		if got := f.watch.Missed(0, 1000); !slices.Equal(got, want) {
			t.Errorf("missed %v, want %v", got, want)
		}
	}
	if err := f.watch.Save(); err != nil { // up to offset 129
		t.Fatal(err)
	}
	f.watch.Announce(0, 120, 140)
	f.watch.Announce(0, 140, 150)
	f.watch.Announce(0, 140, 150) // after a failure
	f.watch.Announce(0, 300, 400) // another member had what is between
	f.watch.Announce(1, 0, 7)
	missed(Span{130, 150}, Span{300, 400})
	if got := f.watch.Missed(0, 145); !slices.Equal(got, []Span{{130, 145}}) {
		t.Errorf("before the commit of offset 145 %v are missed", got)
	}
	f.open()
	missed(Span{130, 150}, Span{300, 400})
	f.watch.Forget(0, 5)
	missed()
	f.open()
	missed()
	if got := f.watch.Missed(1, 1000); !slices.Equal(got, []Span{{0, 7}}) {
		t.Errorf("of partition 1 %v are missed", got)
	}
	other := f.base
	other.Model = "ffffffffffff"
	f.watch.Rebase(other)
	f.open()
	if got := f.watch.Missed(1, 1000); got != nil {
		t.Errorf("another model misses %v", got)
	}
	f.watch.Announce(1, 0, 7)
	f.base.Model = "eeeeeeeeeeee" // the state is of another model
	f.open()
	if got := f.watch.Missed(1, 1000); got != nil {
		t.Errorf("another model misses %v", got)
	}
}

// A journal that cannot be written is told of once, and once again when it can.
func TestJournalCannotBeWritten(t *testing.T) {
	f := small(t, filepath.Join(t.TempDir(), "state"))
	readOnly, err := os.Open(f.watch.journal.path)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.watch.journal.file.Close()
	f.watch.journal.file = readOnly
	blocked := f.watch.journal.path + ".new" // nor can it be written anew
	if err := os.Mkdir(blocked, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(blocked, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.log.Reset()
	for range 3 {
		f.watch.Announce(0, 500, 510)
		f.watch.Announce(0, 510, 520)
	}
	if n := strings.Count(f.log.String(), "drift journal "); n != 1 || !strings.Contains(f.log.String(), "drift journal not written") {
		t.Errorf("told %d times:\n%s", n, f.log.String())
	}
	if err := os.RemoveAll(blocked); err != nil {
		t.Fatal(err)
	}
	f.watch.Announce(0, 510, 520)
	if !strings.Contains(f.log.String(), "drift journal written again") {
		t.Errorf("the log says\n%s", f.log.String())
	}
	f.open()
	if got := f.watch.Missed(0, 1000); !slices.Equal(got, []Span{{500, 520}}) {
		t.Errorf("missed %v", got)
	}
}

// A journal stays small, however many spans there are and however long no snapshot comes,
// and says when it drops some. Batches that follow each other at once are one span.
func TestJournalIsBounded(t *testing.T) {
	f := small(t, filepath.Join(t.TempDir(), "state"))
	for i := range int64(maxSpans + 100) {
		f.watch.Announce(1, 10*i, 10*i+10)
	}
	f.open()
	if got := f.watch.Missed(1, 1<<40); !slices.Equal(got, []Span{{0, 10 * (maxSpans + 100)}}) {
		t.Errorf("%d spans of batches that follow each other", len(got))
	}
	if strings.Contains(f.log.String(), "dropped") {
		t.Error("something was dropped")
	}
	const n = maxJournal/journalEntry + 100
	for i := range int64(n) {
		f.watch.Announce(0, 1000+2*i, 1001+2*i)
	}
	info, err := os.Stat(f.watch.journal.path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > maxJournal || len(f.watch.journal.spans[0]) > maxSpans || !strings.Contains(f.log.String(), "dropped the oldest") {
		t.Errorf("%d bytes, %d spans", info.Size(), len(f.watch.journal.spans[0]))
	}
	f.open()
	if got := f.watch.Missed(0, 1<<40); len(got) < maxSpans/2 || len(got) > maxSpans || got[len(got)-1].From != 1000+2*(n-1) {
		t.Errorf("%d spans", len(got))
	}
}

// What has no record to score leaves the journal with the next snapshot too.
func TestJournalForgetsBatchesWithoutRecords(t *testing.T) {
	f := small(t, filepath.Join(t.TempDir(), "state"))
	f.watch.Announce(0, 200, 300)
	f.watch.Observe(&Batch{Model: f.base.Model, End: 300})
	b := f.batch(0, 1, kind{score: inControl})
	b.Offset[0], b.End = 350, 400 // what follows was rejected
	f.watch.Announce(0, 300, 400)
	f.watch.Observe(b)
	if got := f.watch.Missed(0, 1000); got != nil {
		t.Errorf("missed %v", got)
	}
	if err := f.watch.Save(); err != nil {
		t.Fatal(err)
	}
	if len(f.watch.journal.spans[0]) > 0 || f.watch.journal.size != 0 {
		t.Errorf("the journal has %d bytes, and spans %v", f.watch.journal.size, f.watch.journal.spans)
	}
}

// Whatever a journal holds, the spans that are missed are in order, apart and within
// what is asked for, and they are the same after it was written anew.
func FuzzJournal(f *testing.F) {
	f.Add(appendEntry(appendEntry(appendEntry(nil, 1, announced{Span{5, 9}, 1}), 1, announced{Span{8, 20}, 2}), 1, announced{Span{0, 3}, 1.05}), true)
	f.Add(appendEntry(nil, -1, announced{Span{1 << 62, -5}, math.NaN()}), true)
	f.Add(append(appendEntry(nil, 0, announced{Span{50, 60}, 1}), 1, 2, 3), false)
	f.Fuzz(func(t *testing.T, content []byte, mend bool) {
		for i := 0; mend && i+journalEntry <= len(content); i += journalEntry { // checksums that hold
			content = append(slices.Clone(content[:i]), append(appendEntry(nil, int32(binary.LittleEndian.Uint32(content[i:])),
				announced{Span{int64(binary.LittleEndian.Uint64(content[i+4:])), int64(binary.LittleEndian.Uint64(content[i+12:]))}, math.Float64frombits(binary.LittleEndian.Uint64(content[i+20:]))}), content[i+journalEntry:]...)...)
		}
		open := func(content []byte) *Watch {
			w := &Watch{journal: new(journal), watermarks: map[int32]int64{0: 41}}
			w.journal.read(content)
			return w
		}
		w := open(content)
		again := open(w.journal.encode())
		for partition := range w.journal.spans {
			spans := w.Missed(partition, 1<<50)
			if !slices.Equal(spans, again.Missed(partition, 1<<50)) {
				t.Fatalf("written anew, partition %d has other spans", partition)
			}
			at := w.watermarks[partition] - 1
			for _, s := range spans {
				if s.From <= at || s.To <= s.From || s.To > 1<<50 {
					t.Fatalf("spans %v", spans)
				}
				at = s.To - 1
			}
		}
	})
}

// Whatever a state holds, it is taken over or refused.
func FuzzState(f *testing.F) {
	x := small(f, "")
	f.Add(x.watch.encode(x.now))
	x.cfg.StateFile = "unused"
	f.Fuzz(func(t *testing.T, state []byte) {
		if len(state) < 64 {
			return
		}
		state = slices.Clone(state)
		copy(state, x.watch.encode(x.now)[:40])
		binary.LittleEndian.PutUint32(state[12:], crc32.Checksum(state[16:], castagnoli))
		empty := func() *Watch {
			w := &Watch{cfg: x.watch.cfg, source: x.watch.source, clock: x.watch.clock, options: x.watch.options, watermarks: make(map[int32]int64)}
			w.begin(x.base)
			return w
		}
		w := empty()
		if w.decode(state) == nil {
			written := w.encode(x.now)
			second := empty()
			if err := second.decode(written); err != nil {
				t.Fatalf("a state that was taken over cannot be read again: %v", err)
			}
			if !bytes.Equal(second.encode(x.now), written) {
				t.Fatal("a second time it is another state")
			}
			w.Observe(x.batch(0, 40, kind{score: inControl, segment: "eu"}))
		}
	})
}
