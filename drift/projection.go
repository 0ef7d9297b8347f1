package drift

import "math"

// A projector computes signed-hash sums of an embedding's direction (feature
// hashing: Weinberger et al., "Feature Hashing for Large Scale Multitask
// Learning", 2009): each dimension is added, with a sign, to one of the sums.
// Which and with what sign is the same for all.
type projector struct {
	bucket []uint8 // of each dimension
	sign   []float32
}

// project fills out with the sums of x/‖x‖.
func (p *projector) project(out *[projections]float32, x []float32) {
	for d := len(p.bucket); d < len(x); d++ {
		h := mix(uint64(d) + 0x6f6f646d6f6e)
		p.bucket = append(p.bucket, uint8(h%projections))
		p.sign = append(p.sign, float32(int(h>>32&1)*2-1))
	}
	clear(out[:])
	norm := 0.
	for d, v := range x {
		norm += float64(v) * float64(v)
		out[p.bucket[d]] += p.sign[d] * v
	}
	inv := float32(1 / math.Sqrt(norm))
	for k := range out {
		out[k] *= inv
	}
}
