package drift

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"slices"
	"sync"
)

// The journal lies beside the state file, with ".journal" after its name. It says
// which records were about to bet since the snapshot that the state file holds, so
// that a process which was killed can read again what it had committed. It is a list
// of entries, little-endian:
//
//	offset  size  what
//	0       4     partition, int32
//	4       8     the first offset, int64
//	12      8     the offset after the last, int64
//	20      4     CRC-32C of the 20 bytes before
//
// It is not synced: what a process wrote outlives that process. Where the machine
// goes down too, the bets since the snapshot may be lost, which is valid.
const (
	journalSuffix = ".journal"
	journalEntry  = 24
	maxJournal    = 16 << 20
	maxSpans      = 4096 // of one partition; of more, the older half is dropped
)

// A Span is a run of offsets of one partition: From, and all before To.
type Span struct{ From, To int64 }

// A journal is nil where there is no state file.
type journal struct {
	mu     sync.Mutex
	file   *os.File
	size   int64
	failed bool             // so did the last write
	spans  map[int32][]Span // by partition: announced, and in no snapshot
}

// openJournal opens the journal at path, or begins one.
func openJournal(path string) (*journal, error) {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if len(content) > maxJournal {
		content = content[:maxJournal]
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return &journal{file: file, size: int64(len(content) / journalEntry * journalEntry), spans: readJournal(content)}, nil
}

// readJournal passes over entries that are damaged: a torn one is the last of a
// process that was killed, or of a disk that was full.
func readJournal(content []byte) map[int32][]Span {
	all := make(map[int32][]Span)
	for ; len(content) >= journalEntry; content = content[journalEntry:] {
		entry := content[:journalEntry]
		le := binary.LittleEndian
		if le.Uint32(entry[20:]) != crc32.Checksum(entry[:20], castagnoli) {
			continue
		}
		partition, span := int32(le.Uint32(entry)), Span{int64(le.Uint64(entry[4:])), int64(le.Uint64(entry[12:]))}
		if partition >= 0 && span.From >= 0 && span.From < span.To {
			all[partition] = append(bounded(all[partition]), span)
		}
	}
	return all
}

func bounded(spans []Span) []Span {
	if len(spans) < maxSpans {
		return spans
	}
	return slices.Delete(spans, 0, maxSpans/2)
}

// apart sorts spans and joins those that touch.
func apart(spans []Span) []Span {
	slices.SortFunc(spans, func(a, b Span) int { return int(min(1, max(-1, a.From-b.From))) })
	joined := spans[:0]
	for _, s := range spans {
		if n := len(joined); n > 0 && s.From <= joined[n-1].To {
			joined[n-1].To = max(joined[n-1].To, s.To)
		} else {
			joined = append(joined, s)
		}
	}
	return joined
}

func appendEntry(b []byte, partition int32, s Span) []byte {
	start, le := len(b), binary.LittleEndian
	b = le.AppendUint32(b, uint32(partition))
	b = le.AppendUint64(b, uint64(s.From))
	b = le.AppendUint64(b, uint64(s.To))
	return le.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// announce writes a span down. What comes again after a failure is there already.
func (j *journal) announce(partition int32, s Span) error {
	spans := j.spans[partition]
	switch last := len(spans) - 1; {
	case last >= 0 && spans[last].From <= s.From && s.To <= spans[last].To:
		return nil
	case last >= 0 && spans[last].From <= s.From && s.From <= spans[last].To:
		spans[last].To = s.To
	default:
		j.spans[partition] = append(bounded(spans), s)
	}
	if j.size >= maxJournal {
		return j.rewrite()
	}
	return j.write(appendEntry(make([]byte, 0, journalEntry), partition, s), j.size)
}

// keep drops what a snapshot holds.
func (j *journal) keep(watermarks map[int32]int64) error {
	for partition, spans := range j.spans {
		if at, ok := watermarks[partition]; ok {
			spans = beyond(spans, at)
		}
		if j.spans[partition] = spans; len(spans) == 0 {
			delete(j.spans, partition)
		}
	}
	return j.rewrite()
}

// beyond returns what of the spans is after an offset.
func beyond(spans []Span, offset int64) []Span {
	kept := spans[:0]
	for _, s := range spans {
		if s.To > offset+1 {
			kept = append(kept, Span{max(s.From, offset+1), s.To})
		}
	}
	return kept
}

func (j *journal) clear() error {
	clear(j.spans)
	return j.rewrite()
}

// rewrite puts the spans at the beginning of the file and then cuts off what follows:
// a process that is killed between leaves entries behind that were true before.
func (j *journal) rewrite() error {
	content := j.encode()
	if err := j.write(content, 0); err != nil {
		return err
	}
	if err := j.file.Truncate(int64(len(content))); err != nil {
		return err
	}
	j.size = int64(len(content))
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

func (j *journal) write(content []byte, at int64) error {
	n, err := j.file.WriteAt(content, at)
	if n == len(content) {
		j.size = max(j.size, at+int64(n))
	} // else the next write begins at the same place
	return err
}

// Announce says that the records of a partition from an offset on, up to but without
// another, are about to be acknowledged, and to bet. It has to be called before they
// are committed: a process that is killed before they are in a snapshot finds them
// with Missed. Where that cannot be written down the log says so, once.
func (w *Watch) Announce(partition int32, from, to int64) {
	w.inJournal(func(j *journal) error { return j.announce(partition, Span{from, to}) })
}

// inJournal writes to the journal, if there is one, and logs that it cannot be written,
// and that it can again.
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
		w.log.Info("drift journal written again", "file", j.file.Name())
	}
	j.failed = err != nil
}

// Missed returns the offsets of a partition below committed that were announced, by
// this process or the one before, and that have not bet: it was killed, or did not hear
// that they were committed. They are to be scored again and observed, in this order,
// before what follows committed; nothing else may be done with them, as that was done.
func (w *Watch) Missed(partition int32, committed int64) (all []Span) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok := w.watermarks[partition]
	if !ok {
		at = -1
	}
	if w.journal == nil {
		return nil
	}
	w.journal.mu.Lock()
	defer w.journal.mu.Unlock()
	for _, s := range beyond(apart(slices.Clone(w.journal.spans[partition])), at) {
		if s.To = min(s.To, committed); s.From < s.To {
			all = append(all, s)
		}
	}
	return all
}

// recall opens the journal. If the state was not taken over, what it holds goes with
// the evidence.
func (w *Watch) recall(restored bool) error {
	j, err := openJournal(w.cfg.StateFile + journalSuffix)
	if err != nil {
		return fmt.Errorf("drift journal: %w", err)
	}
	w.journal = j
	if restored {
		return nil
	}
	return j.clear()
}
