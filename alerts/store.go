package alerts

import (
	"context"
	"maps"
	"slices"
	"sort"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// A sample is a value at a time in milliseconds.
type sample struct {
	t int64
	v float64
}

// A series holds the samples of one label set, oldest first.
type series struct {
	labels  labels.Labels
	samples []sample
}

// A store keeps the samples that rules ask for, each for as long as a rule
// looks back: what PromQL is evaluated over where no Prometheus runs. It is
// used by one goroutine.
type store struct {
	// keep says how many milliseconds back each metric is asked for; what it
	// does not name is not stored.
	keep   map[string]int64
	series map[string]map[uint64]*series // by metric, by the hash of the labels
}

func newStore(keep map[string]int64) *store {
	return &store{keep: keep, series: map[string]map[uint64]*series{}}
}

// wants reports whether any rule asks for the metric.
func (s *store) wants(metric string) bool {
	_, ok := s.keep[metric]
	return ok
}

// append adds a sample of a wanted metric, later than the series' last.
func (s *store) append(l labels.Labels, t int64, v float64) {
	metric, hash := l.Get(labels.MetricName), l.Hash()
	of := s.series[metric]
	if of == nil {
		of = map[uint64]*series{}
		s.series[metric] = of
	}
	one := of[hash]
	if one == nil {
		one = &series{labels: l}
		of[hash] = one
	}
	one.samples = append(one.samples, sample{t, v})
}

// forget removes what no rule looks back to at time t.
func (s *store) forget(t int64) {
	for metric, of := range s.series {
		oldest := t - s.keep[metric]
		for hash, one := range of {
			first := sort.Search(len(one.samples), func(i int) bool { return one.samples[i].t >= oldest })
			if first == len(one.samples) {
				delete(of, hash)
				continue
			}
			// Moved seldom, so that a sample is copied once on average; a
			// quarter more than what is asked for is kept.
			if first > len(one.samples)/4 {
				one.samples = slices.Clone(one.samples[first:])
			}
		}
	}
}

// size returns how many samples are stored.
func (s *store) size() (n int) {
	for _, of := range s.series {
		for _, one := range of {
			n += len(one.samples)
		}
	}
	return n
}

// Querier implements storage.Queryable.
func (s *store) Querier(mint, maxt int64) (storage.Querier, error) {
	return &querier{s, mint, maxt}, nil
}

type querier struct {
	store      *store
	mint, maxt int64
}

// Select implements storage.Querier. The selected series share the store's
// samples.
func (q *querier) Select(_ context.Context, sorted bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	metrics := slices.Collect(maps.Keys(q.store.series))
	for _, m := range matchers {
		if m.Name == labels.MetricName && m.Type == labels.MatchEqual {
			metrics = []string{m.Value}
		}
	}
	set := &seriesSet{at: -1}
	for _, metric := range metrics {
	next:
		for _, one := range q.store.series[metric] {
			for _, m := range matchers {
				if !m.Matches(one.labels.Get(m.Name)) {
					continue next
				}
			}
			from := sort.Search(len(one.samples), func(i int) bool { return one.samples[i].t >= q.mint })
			to := sort.Search(len(one.samples), func(i int) bool { return one.samples[i].t > q.maxt })
			if from < to {
				set.series = append(set.series, &series{one.labels, one.samples[from:to]})
			}
		}
	}
	if sorted {
		slices.SortFunc(set.series, func(a, b *series) int { return labels.Compare(a.labels, b.labels) })
	}
	return set
}

// LabelValues implements storage.LabelQuerier; evaluating rules asks for none.
func (q *querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

// LabelNames implements storage.LabelQuerier; evaluating rules asks for none.
func (q *querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (q *querier) Close() error { return nil }

type seriesSet struct {
	series []*series
	at     int
}

func (s *seriesSet) Next() bool                        { s.at++; return s.at < len(s.series) }
func (s *seriesSet) At() storage.Series                { return s.series[s.at] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// Labels implements storage.Series.
func (s *series) Labels() labels.Labels { return s.labels }

// Iterator implements storage.Series.
func (s *series) Iterator(chunkenc.Iterator) chunkenc.Iterator {
	return storage.NewListSeriesIterator(samples(s.samples))
}

// samples implements storage.Samples over a series' own memory.
type samples []sample

func (s samples) Get(i int) chunks.Sample { return &s[i] }
func (s samples) Len() int                { return len(s) }

// The methods of chunks.Sample: all are floats, since no rule asks for a
// native histogram.

func (s *sample) T() int64                      { return s.t }
func (s *sample) ST() int64                     { return 0 }
func (s *sample) F() float64                    { return s.v }
func (s *sample) H() *histogram.Histogram       { return nil }
func (s *sample) FH() *histogram.FloatHistogram { return nil }
func (s *sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s *sample) Copy() chunks.Sample           { return &sample{s.t, s.v} }
