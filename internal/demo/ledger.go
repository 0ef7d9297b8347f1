package demo

import (
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/trainer"
	"github.com/twmb/franz-go/pkg/kgo"
)

// What a sent record was.
const (
	known   = iota // a digit 0-7
	unknown        // a digit 8 or 9
	broken         // bytes that are no embedding
)

// An entry is one sent record, and what came back of it.
type entry struct {
	kind  int
	label string
	at    time.Time

	results, deadLetters int
	score                float64
	ood                  bool
	class                string
}

// A ledger holds what was sent against what came back. The records' keys are
// their places in it.
type ledger struct {
	mu       sync.Mutex
	entries  []entry
	settled  int // entries with a result or a dead letter
	strays   int // results that answer nothing that was sent
	noticer  *noticer
	firstOOD int // the place of the first unknown digit; -1: none yet
	noticed  bool
	tooSoon  bool
	delay    struct {
		records int
		time    time.Duration
	}
}

// send enters a record and returns its key.
func (l *ledger) send(kind int, label string) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if kind == unknown && l.firstOOD < 0 {
		l.firstOOD = len(l.entries)
	}
	l.entries = append(l.entries, entry{kind: kind, label: label, at: time.Now()})
	return strconv.AppendInt(nil, int64(len(l.entries)-1), 10)
}

// receive enters what the monitor wrote to the scores or dead-letter topic.
func (l *ledger) receive(r *kgo.Record) error {
	place, err := strconv.Atoi(string(r.Key))
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || place < 0 || place >= len(l.entries) {
		l.strays++
		return nil
	}
	e := &l.entries[place]
	if e.results+e.deadLetters == 0 {
		l.settled++
	}
	if r.Topic == deadLetterTopic {
		e.deadLetters++
		return nil
	}
	var result struct {
		Score float64 `json:"score"`
		OOD   bool    `json:"ood"`
		Class string  `json:"class"`
	}
	if err := json.Unmarshal(r.Value, &result); err != nil {
		return fmt.Errorf("result %s[%d]@%d: %w", r.Topic, r.Partition, r.Offset, err)
	}
	e.results++
	e.score, e.ood, e.class = result.Score, result.OOD, result.Class
	if l.noticer.observe(e.ood) && !l.noticed {
		l.noticed = true
		l.tooSoon = l.firstOOD < 0 || place < l.firstOOD
		if !l.tooSoon {
			l.delay.records = place - l.firstOOD + 1
			l.delay.time = time.Since(l.entries[l.firstOOD].at)
		}
	}
	return nil
}

// progress returns how many records were sent and how many of them are settled.
func (l *ledger) progress() (sent, settled int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.entries), l.settled
}

// moment tells how the story stands.
func (l *ledger) moment() (oodSince time.Time, noticed, tooSoon bool, delay time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.firstOOD >= 0 {
		oodSince = l.entries[l.firstOOD].at
	}
	return oodSince, l.noticed, l.tooSoon, l.delay.time
}

// summarise compares what came back with what was sent.
func (l *ledger) summarise(m *model.Model, took time.Duration) *Summary {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &Summary{
		Seconds: took.Seconds(), ModelVersion: m.Version, TargetFPR: m.Alpha, Produced: len(l.entries), Duplicates: l.strays,
		Noticed: l.noticed && !l.tooSoon, NoticedTooSoon: l.tooSoon, DelayRecords: l.delay.records, DelaySeconds: l.delay.time.Seconds(),
	}
	var inside, outside []float32
	right, flaggedIn, flaggedOut := 0, 0, 0
	for i := range l.entries {
		e := &l.entries[i]
		s.Scored += min(1, e.results)
		s.DeadLettered += min(1, e.deadLetters)
		s.Duplicates += max(0, e.results+e.deadLetters-1)
		if e.kind == broken {
			s.Broken++
		}
		if e.results == 0 {
			continue
		}
		switch e.kind {
		case known:
			inside = append(inside, float32(e.score))
			if e.class == e.label {
				right++
			}
			if e.ood {
				flaggedIn++
			}
		case unknown:
			outside = append(outside, float32(e.score))
			if e.ood {
				flaggedOut++
			}
		}
	}
	s.CountsAddUp = s.Produced == s.Scored+s.DeadLettered && s.DeadLettered == s.Broken && s.Duplicates == 0
	s.InDistribution, s.OOD = len(inside), len(outside)
	if len(inside) > 0 {
		s.Accuracy, s.FPR = float64(right)/float64(len(inside)), float64(flaggedIn)/float64(len(inside))
	}
	if len(inside) > 0 && len(outside) > 0 {
		d := trainer.Detect(inside, outside)
		s.AUROC, s.TNRAtTPR95, s.DetectionRate = d.AUROC, d.TNRAtTPR95, float64(flaggedOut)/float64(len(outside))
	}
	return s
}
