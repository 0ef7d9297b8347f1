package drift

import (
	"cmp"
	"slices"
	"time"
)

// A Sample is a record that an alarm shows to a person.
type Sample struct {
	ID        string    `json:"id"`
	Score     float32   `json:"score"`
	Class     string    `json:"class"`
	OOD       bool      `json:"ood"`
	Time      time.Time `json:"timestamp"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	Row       int32     `json:"row"`
	Embedding []float32 `json:"embedding,omitempty"`
}

// A ClassShare is how often a class was the nearest of late, and in the reference.
type ClassShare struct {
	Class     string  `json:"class"`
	Share     float64 `json:"share"`
	Reference float64 `json:"reference_share"`
}

const (
	// window is how many records a sample is taken of; an alarm shows the
	// present window and the one before.
	window = 10_000
	// shownClasses is how many classes an alarm names.
	shownClasses = 10
)

// A sampler keeps the records with the lowest and the highest scores of the last
// windows, and counts their classes. Once its memory has grown it allocates
// nothing but for a longer id.
type sampler struct {
	size    int // of each end
	windows [2]sampled
	at      int // of the present window
	n       int // of its records
}

type sampled struct {
	high, low extremes
	class     []int64
}

// offer takes record i of a batch, the index-th of the stream, if it is extreme.
func (s *sampler) offer(b *Batch, i int, index int64, classes int, embedding []float32) {
	if s.n == window {
		s.at, s.n = 1-s.at, 0
		w := &s.windows[s.at]
		w.high, w.low = w.high[:0], w.low[:0]
		clear(w.class)
	}
	s.n++
	w := &s.windows[s.at]
	if w.class == nil {
		w.class = make([]int64, classes)
	}
	w.class[b.Class[i]]++
	if k := w.high.offer(b.Score[i], s.size); k != nil {
		k.fill(b, i, index, embedding)
	}
	if k := w.low.offer(-b.Score[i], s.size); k != nil {
		k.fill(b, i, index, embedding)
	}
}

// A kept record is extreme among those of its window.
type kept struct {
	rank       float32 // the larger, the more extreme
	score      float32
	class, row int32
	ood        bool
	partition  int32
	offset     int64
	time       int64
	index      int64
	id         []byte
	embedding  []float32
}

func (k *kept) fill(b *Batch, i int, index int64, embedding []float32) {
	k.score, k.class, k.row, k.ood = b.Score[i], b.Class[i], b.Row[i], b.OOD[i]
	k.partition, k.offset, k.time, k.index = b.Partition, b.Offset[i], b.Time[i], index
	k.id = k.id[:0]
	if b.ID != nil {
		k.id = append(k.id, b.ID.Value(i)...)
	}
	k.embedding = append(k.embedding[:0], embedding...)
}

// extremes ascend by rank.
type extremes []kept

// offer makes room for a record of this rank if it is among the size highest,
// and returns its place. The memory of the one that it displaces is used again.
func (x *extremes) offer(rank float32, size int) *kept {
	k := *x
	at := 0
	switch {
	case len(k) < size:
		if len(k) < cap(k) {
			k = k[:len(k)+1]
		} else {
			k = append(k, kept{})
		}
		at = len(k) - 1
		free := k[at]
		for ; at > 0 && k[at-1].rank > rank; at-- {
			k[at] = k[at-1]
		}
		k[at] = free
	case size > 0 && rank > k[0].rank:
		free := k[0]
		for ; at+1 < len(k) && k[at+1].rank < rank; at++ {
			k[at] = k[at+1]
		}
		k[at] = free
	default:
		return nil
	}
	k[at].rank = rank
	*x = k
	return &k[at]
}

// samples returns the most extreme records from the index-th on, those with low
// scores if low is set.
func (s *sampler) samples(since int64, low bool, classes []string) []Sample {
	var all []*kept
	for i := range s.windows {
		end := s.windows[i].high
		if low {
			end = s.windows[i].low
		}
		for j := range end {
			if end[j].index >= since {
				all = append(all, &end[j])
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *kept) int { return cmp.Compare(b.rank, a.rank) })
	out := make([]Sample, 0, s.size)
	for _, k := range all[:min(len(all), s.size)] {
		out = append(out, Sample{
			ID: string(k.id), Score: k.score, Class: classes[k.class], OOD: k.ood, Time: time.UnixMicro(k.time).UTC(),
			Partition: k.partition, Offset: k.offset, Row: k.row, Embedding: slices.Clone(k.embedding),
		})
	}
	return out
}

// classes returns the most frequent classes of the last windows.
func (s *sampler) classes(reference []int64, names []string) []ClassShare {
	count, total, all := make([]int64, len(names)), int64(0), int64(0)
	for _, w := range s.windows {
		for c, n := range w.class {
			count[c] += n
			total += n
		}
	}
	for _, n := range reference {
		all += n
	}
	order := make([]int, len(names))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(count[b], count[a]) })
	out := []ClassShare{}
	for _, c := range order[:min(len(order), shownClasses)] {
		if count[c] > 0 {
			out = append(out, ClassShare{names[c], ratio(float64(count[c]), float64(total)), ratio(float64(reference[c]), float64(all))})
		}
	}
	return out
}
