package monitor

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// gathered returns the one histogram of a registry, without the times and the sum.
func gathered(t *testing.T, reg *prometheus.Registry) (*dto.Histogram, float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	h := families[0].GetMetric()[0].GetHistogram()
	sum := h.GetSampleSum()
	h.CreatedTimestamp, h.SampleSum = nil, nil
	return h, sum
}

// The histograms count as those of client_golang do.
func TestHistograms(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	bounds := []float64{.01, .05, .1, 1}
	for name, draw := range map[string]func() float64{
		"none":         nil,
		"distances":    func() float64 { return 1.3 + .1*r.NormFloat64() },
		"both signs":   func() float64 { return math.Round(4*r.NormFloat64()) / 4 },
		"tiny":         func() float64 { return math.Ldexp(r.NormFloat64(), -126) },
		"on a bound":   func() float64 { return bounds[r.IntN(len(bounds))] },
		"powers of 2":  func() float64 { return math.Ldexp(1, r.IntN(19)-9) },
		"large":        func() float64 { return math.Ldexp(r.Float64(), 128) },
		"many buckets": func() float64 { return math.Exp(3 * r.NormFloat64()) },
	} {
		classic, native := prometheus.NewRegistry(), prometheus.NewRegistry()
		wantClassic, wantNative := prometheus.NewRegistry(), prometheus.NewRegistry()
		c, n := newClassicHistogram(classic, "x", "", bounds), newNativeHistogram(native, "x", "")
		wc := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "x", Buckets: bounds})
		wn := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "x", NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: maxNativeBuckets})
		wantClassic.MustRegister(wc)
		wantNative.MustRegister(wn)
		for range 30 {
			if draw == nil {
				break
			}
			batch := []float32{float32(math.NaN())}
			for range 1 + r.IntN(100) {
				v := float32(draw())
				batch = append(batch, v)
				wc.Observe(float64(v))
				wn.Observe(float64(v))
			}
			c.observe(batch)
			n.observe(batch)
		}
		for kind, regs := range map[string][2]*prometheus.Registry{"classic": {classic, wantClassic}, "native": {native, wantNative}} {
			got, sum := gathered(t, regs[0])
			want, wantSum := gathered(t, regs[1])
			if got.String() != want.String() {
				t.Errorf("%s, %s:\n%v, want\n%v", name, kind, got, want)
			}
			if math.Abs(sum-wantSum) > 1e-9*math.Abs(wantSum) {
				t.Errorf("%s, %s: sum %g, want %g", name, kind, sum, wantSum)
			}
		}
	}
}

// A value that is infinite is in a bucket of its own, above or below all others.
func TestNativeHistogramInfinite(t *testing.T) {
	reg := prometheus.NewRegistry()
	n := newNativeHistogram(reg, "x", "")
	inf := float32(math.Inf(1))
	n.observe([]float32{inf, math.MaxFloat32, -inf, 1})
	got, sum := gathered(t, reg)
	if !math.IsNaN(sum) || got.GetSampleCount() != 4 || len(got.GetPositiveSpan()) != 2 || len(got.GetPositiveDelta()) != 3 || len(got.GetNegativeDelta()) != 1 {
		t.Errorf("sum %g, %v", sum, got)
	}
}
