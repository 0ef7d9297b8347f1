package drift

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"os"
	"slices"
	"sync"
)

// The journal lies beside the state file, with ".journal" after its name. It says
// which records were about to bet since the snapshot that the state file holds, and
// when: who starts after a kill can read again what had been committed. It is a list of
// entries, little-endian:
//
//	offset  size  what
//	0       4     partition, int32
//	4       8     the first offset, int64
//	12      8     the offset after the last, int64
//	20      8     seconds since 1970, float64
//	28      4     CRC-32C of the 28 bytes before
//
// It is not synced: what a process wrote outlives that process. Where the machine
// goes down too, the bets since the snapshot may be lost, which is valid.
const (
	journalSuffix = ".journal"
	journalEntry  = 32
	maxJournal    = 16 << 20
	maxSpans      = 1 << 14 // of one partition; of more, the older half is dropped
	together      = .1      // seconds within which batches become one span
)

// A Span is a run of offsets of one partition: From, and all before To.
type Span struct{ From, To int64 }

// An announced span bet at a time, or was about to.
type announced struct {
	Span
	time float64
}

// A journal is nil where there is no state file.
type journal struct {
	mu     sync.Mutex
	path   string
	file   *os.File // nil: it is to be written anew
	size   int64
	spans  map[int32][]announced // by partition, and in no snapshot
	failed bool                  // so did the last write
	full   bool                  // spans were dropped
}

// openJournal reads the journal at path, if there is one, and writes it anew.
func openJournal(path string) (*journal, error) {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	j := &journal{path: path}
	j.read(content)
	err = j.rewrite()
	j.failed = err != nil
	return j, err
}

// read passes over entries that are damaged: a torn one is the last of a process that
// was killed, or of a disk that was full.
func (j *journal) read(content []byte) {
	j.spans = make(map[int32][]announced)
	for ; len(content) >= journalEntry; content = content[journalEntry:] {
		entry, le := content[:journalEntry], binary.LittleEndian
		if le.Uint32(entry[28:]) != crc32.Checksum(entry[:28], castagnoli) {
			continue
		}
		partition, span := int32(le.Uint32(entry)), Span{int64(le.Uint64(entry[4:])), int64(le.Uint64(entry[12:]))}
		at := math.Float64frombits(le.Uint64(entry[20:]))
		if partition >= 0 && span.From >= 0 && span.From < span.To && at-at == 0 {
			j.add(partition, announced{span, at})
		}
	}
}

// add takes a span in. What continues the last one within together is joined to it.
func (j *journal) add(partition int32, s announced) {
	spans := j.spans[partition]
	if last := len(spans) - 1; last >= 0 && spans[last].To == s.From && s.time >= spans[last].time && s.time < spans[last].time+together {
		spans[last].To = s.To
		return
	}
	if len(spans) >= maxSpans {
		spans, j.full = slices.Delete(spans, 0, maxSpans/2), true
	}
	j.spans[partition] = append(spans, s)
}

// end returns the offset after the last that was announced of a partition, or 0.
func (j *journal) end(partition int32) (end int64) {
	for _, s := range j.spans[partition] {
		end = max(end, s.To)
	}
	return end
}

// has reports whether a span was announced last, or a part of that.
func (j *journal) has(partition int32, s Span) bool {
	spans := j.spans[partition]
	last := len(spans) - 1
	return last >= 0 && spans[last].From <= s.From && s.To <= spans[last].To
}

// announce writes a span down. What comes again after a failure is there already.
func (j *journal) announce(partition int32, s announced) error {
	if known := j.has(partition, s.Span); known && !j.failed {
		return nil
	} else if !known {
		j.add(partition, s)
	}
	if j.failed || j.size >= maxJournal {
		return j.rewrite()
	}
	entry := appendEntry(make([]byte, 0, journalEntry), partition, s)
	if _, err := j.file.WriteAt(entry, j.size); err != nil {
		return err
	}
	j.size += journalEntry
	return nil
}

// keep drops what a snapshot holds.
func (j *journal) keep(watermarks map[int32]int64) error {
	for partition, at := range watermarks {
		j.spans[partition] = beyond(j.spans[partition], at)
	}
	return j.rewrite()
}

// rewrite puts a file of the spans in the place of the one before.
func (j *journal) rewrite() error {
	content := j.encode()
	if len(content) > maxJournal/2 { // very many partitions
		for partition, spans := range j.spans {
			j.spans[partition], j.full = slices.Delete(spans, 0, len(spans)/2), true
		}
		content = j.encode()
	}
	next, err := os.OpenFile(j.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = next.Write(content); err == nil {
		err = os.Rename(next.Name(), j.path)
	}
	if err != nil {
		return errors.Join(err, next.Close(), os.Remove(next.Name()))
	}
	if j.file != nil {
		_ = j.file.Close() // nobody reads it any more
	}
	j.file, j.size = next, int64(len(content))
	return nil
}

func (j *journal) encode() (content []byte) {
	for partition, spans := range j.spans {
		for _, s := range spans {
			content = appendEntry(content, partition, s)
		}
	}
	return content
}

func appendEntry(b []byte, partition int32, s announced) []byte {
	start, le := len(b), binary.LittleEndian
	b = le.AppendUint32(b, uint32(partition))
	b = le.AppendUint64(b, uint64(s.From))
	b = le.AppendUint64(b, uint64(s.To))
	b = le.AppendUint64(b, math.Float64bits(s.time))
	return le.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// beyond returns what of the spans is after an offset.
func beyond(spans []announced, offset int64) []announced {
	kept := spans[:0]
	for _, s := range spans {
		if s.From = max(s.From, offset+1); s.From < s.To {
			kept = append(kept, s)
		}
	}
	return kept
}

// apart sorts spans and takes from each what an earlier one has.
func apart(spans []announced) []announced {
	slices.SortStableFunc(spans, func(a, b announced) int { return cmp.Compare(a.From, b.From) })
	kept, end := spans[:0], int64(0)
	for _, s := range spans {
		if s.From = max(s.From, end); s.From < s.To {
			kept, end = append(kept, s), s.To
		}
	}
	return kept
}

// Announce says that the records of a partition from an offset on, up to but without
// another, are acknowledged, or are about to be with their commit, and will bet. It has
// to be called before they are committed: a process that is killed before they are in a
// snapshot finds them with Missed. Where that cannot be written down the log says so.
func (w *Watch) Announce(partition int32, from, to int64) {
	at := announced{Span{from, to}, unix(w.clock())}
	w.inJournal(func(j *journal) error { return j.announce(partition, at) })
}

// inJournal writes to the journal, if there is one, and logs that it cannot be written,
// that it can again, and that it had to drop something.
func (w *Watch) inJournal(do func(j *journal) error) {
	j := w.journal
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	err := do(j)
	switch {
	case err != nil && !j.failed:
		w.log.Error("drift journal not written: a kill would lose the evidence since the last snapshot", "error", err)
	case err == nil && j.failed:
		w.log.Info("drift journal written again", "file", j.path)
	}
	j.failed = err != nil
	if j.full {
		w.log.Warn("drift journal has too many batches, and dropped the oldest: a kill would lose their evidence; take snapshots more often", "file", j.path)
		j.full = false
	}
}

// Missed returns the offsets of a partition below committed that were announced, by
// this process or the one before, and that have not bet: it was killed, or did not hear
// that they were committed. They are to be scored again and observed as Batch.Missed, no
// batch of more than one span, in this order, before what follows committed; nothing else
// may be done with them, as that was done. Without a state file there are none.
func (w *Watch) Missed(partition int32, committed int64) (all []Span) {
	spans := w.announced(partition)
	w.mu.Lock()
	at := w.watermark(partition)
	w.mu.Unlock()
	for _, s := range beyond(spans, at) {
		if s.To = min(s.To, committed); s.From < s.To {
			all = append(all, s.Span)
		}
	}
	return all
}

func (w *Watch) announced(partition int32) []announced {
	if w.journal == nil {
		return nil
	}
	w.journal.mu.Lock()
	defer w.journal.mu.Unlock()
	return apart(slices.Clone(w.journal.spans[partition]))
}

// recall opens the journal. If the state was not taken over, what it holds goes with
// the evidence.
func (w *Watch) recall(restored bool) (err error) {
	path := w.cfg.StateFile + journalSuffix
	if !restored {
		err = os.Remove(path)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		w.journal, err = openJournal(path)
	}
	if err != nil {
		return fmt.Errorf("drift journal: %w", err)
	}
	return nil
}
