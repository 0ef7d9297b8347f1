package alerts

import (
	"fmt"
	"math"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
)

// A scraper copies the wanted series of a registry into a store, as a
// Prometheus that scrapes it would: with the labels job and instance, the
// series `up`, and a stale marker where a series has gone.
type scraper struct {
	from     prometheus.Gatherer
	to       *store
	instance string
	last     map[uint64]labels.Labels
}

func (s *scraper) scrape(t int64) error {
	families, err := s.from.Gather()
	if err != nil {
		return fmt.Errorf("gather metrics: %w", err)
	}
	seen := map[uint64]labels.Labels{}
	add := func(name string, pairs []*dto.LabelPair, v float64, extra ...string) {
		if !s.to.wants(name) {
			return
		}
		b := labels.NewBuilder(labels.FromStrings(labels.MetricName, name, "job", "oodmon", "instance", s.instance))
		for _, p := range pairs {
			b.Set(p.GetName(), p.GetValue())
		}
		for i := 0; i+1 < len(extra); i += 2 {
			b.Set(extra[i], extra[i+1])
		}
		l := b.Labels()
		seen[l.Hash()] = l
		s.to.append(l, t, v)
	}
	add("up", nil, 1)
	for _, family := range families {
		name := family.GetName()
		for _, m := range family.GetMetric() {
			switch {
			case m.Counter != nil:
				add(name, m.Label, m.Counter.GetValue())
			case m.Gauge != nil:
				add(name, m.Label, m.Gauge.GetValue())
			case m.Untyped != nil:
				add(name, m.Label, m.Untyped.GetValue())
			case m.Histogram != nil:
				h := m.Histogram
				add(name+"_count", m.Label, float64(h.GetSampleCount()))
				add(name+"_sum", m.Label, h.GetSampleSum())
				for _, bucket := range h.Bucket {
					add(name+"_bucket", m.Label, float64(bucket.GetCumulativeCount()), "le", formatBound(bucket.GetUpperBound()))
				}
				if n := len(h.Bucket); n > 0 && !math.IsInf(h.Bucket[n-1].GetUpperBound(), 1) {
					add(name+"_bucket", m.Label, float64(h.GetSampleCount()), "le", "+Inf")
				}
			}
		}
	}
	for hash, l := range s.last {
		if _, ok := seen[hash]; !ok {
			s.to.append(l, t, math.Float64frombits(value.StaleNaN))
		}
	}
	s.last = seen
	return nil
}

func formatBound(x float64) string {
	if math.IsInf(x, 1) {
		return "+Inf"
	}
	return strconv.FormatFloat(x, 'g', -1, 64)
}
