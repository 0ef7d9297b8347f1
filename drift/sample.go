package drift

import (
	"cmp"
	"math"
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
	size       int  // of each end
	embeddings bool // are kept
	windows    [2]sampled
	at         int // of the present window
	n          int // of its records
}

type sampled struct {
	high, low extremes
	class     []int64
}

// offer takes those of the rows of a batch that are extreme; first is the place of
// the first of them in the stream.
func (s *sampler) offer(b *Batch, rows []int32, first int64, classes int) {
	for len(rows) > 0 {
		if s.n == window {
			s.at, s.n = 1-s.at, 0
			w := &s.windows[s.at]
			w.high, w.low = w.high[:0], w.low[:0]
			clear(w.class)
		}
		n := min(len(rows), window-s.n)
		w := &s.windows[s.at]
		if w.class == nil {
			w.class = make([]int64, classes)
		}
		high, low := w.high.least(s.size), w.low.least(s.size)
		for i, row := range rows[:n] {
			w.class[b.Class[row]]++
			score := b.Score[row]
			if score > high {
				s.fill(w.high.offer(score, s.size), b, row, first+int64(i))
				high = w.high.least(s.size)
			}
			if -score > low {
				s.fill(w.low.offer(-score, s.size), b, row, first+int64(i))
				low = w.low.least(s.size)
			}
		}
		s.n += n
		first += int64(n)
		rows = rows[n:]
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

func (s *sampler) fill(k *kept, b *Batch, row int32, index int64) {
	k.score, k.class, k.row, k.ood = b.Score[row], b.Class[row], b.Row[row], b.OOD[row]
	k.partition, k.offset, k.time, k.index = b.Partition, b.Offset[row], b.Time[row], index
	k.id = k.id[:0]
	if b.ID != nil {
		k.id = append(k.id, b.ID.Value(int(row))...)
	}
	k.embedding = k.embedding[:0]
	if s.embeddings {
		k.embedding = append(k.embedding, b.embedding(row)...)
	}
}

// extremes ascend by rank.
type extremes []kept

// least returns what the rank of a record has to be above to be among the size
// highest.
func (x extremes) least(size int) float32 {
	switch {
	case size == 0:
		return float32(math.Inf(1))
	case len(x) < size:
		return float32(math.Inf(-1))
	}
	return x[0].rank
}

// offer makes room for a record whose rank is above least, and returns its place.
// The memory of the one that it displaces is used again.
func (x *extremes) offer(rank float32, size int) *kept {
	k := *x
	at := 0
	if len(k) < size {
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
	} else {
		free := k[0]
		for ; at+1 < len(k) && k[at+1].rank < rank; at++ {
			k[at] = k[at+1]
		}
		k[at] = free
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
