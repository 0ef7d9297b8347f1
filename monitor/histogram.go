package monitor

import (
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The histograms here are told of the values of a batch at once, under one lock:
// a prometheus.Histogram takes them one by one, in some 25 ns each. A NaN is
// passed over.

// A classicHistogram has fixed buckets.
type classicHistogram struct {
	desc    *prometheus.Desc
	bounds  []float64 // upper ones, each in its bucket
	created time.Time

	mu     sync.Mutex
	counts []uint64 // of each bucket, and of what is above all
	sum    float64
}

func newClassicHistogram(reg prometheus.Registerer, name, help string, bounds []float64) *classicHistogram {
	h := &classicHistogram{
		desc: prometheus.NewDesc(name, help, nil, nil), bounds: bounds, created: time.Now(), counts: make([]uint64, len(bounds)+1),
	}
	reg.MustRegister(h)
	return h
}

func (h *classicHistogram) observe(values []float32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, value := range values {
		if v := float64(value); v == v {
			h.counts[below(h.bounds, v)]++
			h.sum += v
		}
	}
}

// below returns how many of few bounds are smaller than v, without a branch on v.
func below(bounds []float64, v float64) (n int) {
	for _, b := range bounds {
		smaller := 0
		if b < v {
			smaller = 1
		}
		n += smaller
	}
	return n
}

// Describe implements prometheus.Collector.
func (h *classicHistogram) Describe(to chan<- *prometheus.Desc) { to <- h.desc }

// Collect implements prometheus.Collector.
func (h *classicHistogram) Collect(to chan<- prometheus.Metric) {
	h.mu.Lock()
	defer h.mu.Unlock()
	buckets, count := make(map[float64]uint64, len(h.bounds)), uint64(0)
	for i, bound := range h.bounds {
		count += h.counts[i]
		buckets[bound] = count
	}
	count += h.counts[len(h.bounds)]
	to <- prometheus.MustNewConstHistogramWithCreatedTimestamp(h.desc, count, h.sum, buckets, h.created)
}

// A nativeHistogram has exponential buckets, eight for each doubling, and counts
// as prometheus.Histogram does with NativeHistogramBucketFactor 1.1. Where more
// than maxNativeBuckets hold something it shows wider ones.
type nativeHistogram struct {
	desc    *prometheus.Desc
	created time.Time

	mu                 sync.Mutex
	positive, negative [nativeKeys]uint64
	zero, count        uint64
	sum                float64
}

const (
	nativeSchema     = 3
	maxNativeBuckets = 160
	// Keys of buckets, for the values that a float32 has above the zero threshold.
	leastNativeKey = -1023
	infiniteKey    = 1025 // prometheus.Histogram has another, for its values are float64
	nativeKeys     = infiniteKey - leastNativeKey + 1
)

// nativeBounds are those of the buckets between a half and 1: 2^(i/8)/2.
var nativeBounds = [1 << nativeSchema]float64{
	0.5, 0.5452538663326288, 0.5946035575013605, 0.6484197773255048, 0.7071067811865475, 0.7711054127039704, 0.8408964152537144, 0.9170040432046711,
}

func newNativeHistogram(reg prometheus.Registerer, name, help string) *nativeHistogram {
	h := &nativeHistogram{desc: prometheus.NewDesc(name, help, nil, nil), created: time.Now()}
	reg.MustRegister(h)
	return h
}

func (h *nativeHistogram) observe(values []float32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, value := range values {
		v := float64(value)
		if v != v {
			continue
		}
		h.count++
		h.sum += v
		switch {
		case v > prometheus.DefNativeHistogramZeroThreshold:
			h.positive[nativeKey(v)-leastNativeKey]++
		case v < -prometheus.DefNativeHistogramZeroThreshold:
			h.negative[nativeKey(-v)-leastNativeKey]++
		default:
			h.zero++
		}
	}
}

// nativeKey returns the key of the bucket of a value of a float32 above the zero
// threshold: 2^((key-1)/8) < v ≤ 2^(key/8).
func nativeKey(v float64) int {
	bits := math.Float64bits(v) // of no subnormal number
	exponent := int(bits>>52) - 1022
	fraction := math.Float64frombits(bits&(1<<52-1) | 1022<<52) // between a half and 1
	return min(below(nativeBounds[:], fraction)+(exponent-1)<<nativeSchema, infiniteKey)
}

// Describe implements prometheus.Collector.
func (h *nativeHistogram) Describe(to chan<- *prometheus.Desc) { to <- h.desc }

// Collect implements prometheus.Collector.
func (h *nativeHistogram) Collect(to chan<- prometheus.Metric) {
	h.mu.Lock()
	defer h.mu.Unlock()
	schema, positive, negative := int32(nativeSchema), nativeBuckets(&h.positive), nativeBuckets(&h.negative)
	for len(positive)+len(negative) > maxNativeBuckets {
		schema, positive, negative = schema-1, widen(positive), widen(negative)
	}
	to <- prometheus.MustNewConstNativeHistogram(h.desc, h.count, h.sum, positive, negative, h.zero, schema, prometheus.DefNativeHistogramZeroThreshold, h.created)
}

func nativeBuckets(counts *[nativeKeys]uint64) map[int]int64 {
	buckets := make(map[int]int64)
	for i, n := range counts {
		if n > 0 {
			buckets[i+leastNativeKey] = int64(n)
		}
	}
	return buckets
}

// widen joins two buckets into one each.
func widen(buckets map[int]int64) map[int]int64 {
	wide := make(map[int]int64, len(buckets))
	for key, n := range buckets {
		wide[(key+1)>>1] += n
	}
	return wide
}
