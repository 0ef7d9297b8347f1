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

// offer takes those of the rows of a batch, with these scores and classes, that are
// extreme, whose records have to be kept before the batch is gone; first is the place
// of the first of them in the stream.
func (s *sampler) offer(rows []int32, scores []float32, class []int32, first int64, classes int) {
	for len(rows) > 0 {
		if s.n == window {
			s.at, s.n = 1-s.at, 0
			w := &s.windows[s.at]
			w.high.order, w.low.order = w.high.order[:0], w.low.order[:0]
			clear(w.class)
		}
		n := min(len(rows), window-s.n)
		w := &s.windows[s.at]
		if w.class == nil {
			w.class = make([]int64, classes)
		}
		high, low := w.high.least(s.size), w.low.least(s.size)
		for _, c := range class[:n] {
			w.class[c]++
		}
		for i, score := range scores[:n] {
			if score > high {
				w.high.offer(score, s.size, rows[i], first+int64(i))
				high = w.high.least(s.size)
			}
			if -score > low {
				w.low.offer(-score, s.size, rows[i], first+int64(i))
				low = w.low.least(s.size)
			}
		}
		s.n += n
		first += int64(n)
		rows, scores, class = rows[n:], scores[n:], class[n:]
	}
}

// A kept record is extreme among those of its window.
type kept struct {
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

// keep copies what is not kept yet of the extreme records of a batch: most that are
// extreme at first are not by its end.
func (s *sampler) keep(b *Batch) {
	for i := range s.windows {
		for _, end := range []*extremes{&s.windows[i].high, &s.windows[i].low} {
			for j := range end.order {
				if x := &end.order[j]; x.row >= 0 {
					s.fill(&end.records[x.record], b, x.row)
					x.row = -1
				}
			}
		}
	}
}

func (s *sampler) fill(k *kept, b *Batch, row int32) {
	k.score, k.class, k.row, k.ood = b.Score[row], b.Class[row], b.Row[row], b.OOD[row]
	k.partition, k.offset, k.time = b.Partition, b.Offset[row], b.Time[row]
	k.id = k.id[:0]
	if b.ID != nil {
		k.id = append(k.id, b.ID.Value(int(row))...)
	}
	k.embedding = k.embedding[:0]
	if s.embeddings {
		k.embedding = append(k.embedding, b.embedding(row)...)
	}
}

// extremes are the records with the highest ranks.
type extremes struct {
	order   []extreme // ascending by rank
	records []kept
}

type extreme struct {
	rank   float32
	record int32
	row    int32 // in the batch in hand, of which it is not kept yet; −1: it is
}

// least returns what the rank of a record has to be above to be among the size
// highest.
func (x *extremes) least(size int) float32 {
	switch {
	case size == 0:
		return float32(math.Inf(1))
	case len(x.order) < size:
		return float32(math.Inf(-1))
	}
	return x.order[0].rank
}

// offer takes a record whose rank is above least. The memory of the one that it
// displaces is used again.
func (x *extremes) offer(rank float32, size int, row int32, index int64) {
	at, record := 0, int32(len(x.order))
	if len(x.order) < size {
		if len(x.records) < size {
			x.order, x.records = make([]extreme, 0, size), make([]kept, size)
		}
		at = len(x.order)
		x.order = append(x.order, extreme{})
		for ; at > 0 && x.order[at-1].rank > rank; at-- {
			x.order[at] = x.order[at-1]
		}
	} else {
		record = x.order[0].record
		for ; at+1 < size && x.order[at+1].rank < rank; at++ {
			x.order[at] = x.order[at+1]
		}
	}
	x.order[at] = extreme{rank, record, row}
	x.records[record].index = index
}

// samples returns the most extreme records from the index-th on, those with low
// scores if low is set.
func (s *sampler) samples(since int64, low bool, classes []string) []Sample {
	type candidate struct {
		rank float32
		*kept
	}
	var all []candidate
	for i := range s.windows {
		end := &s.windows[i].high
		if low {
			end = &s.windows[i].low
		}
		for _, x := range end.order {
			if k := &end.records[x.record]; k.index >= since {
				all = append(all, candidate{x.rank, k})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return cmp.Compare(b.rank, a.rank) })
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
