package kernel

import "time"

// A meter measures what a core can do at most, by the instructions of one
// implementation; nil where it has no assembly for it.
type meter struct {
	lanes int                     // float32 values in a vector
	fma   func(n int)             // 12 vector multiply-adds, n times
	read  func(x *float32, n int) // reads n blocks of 256 bytes
}

// PeakFLOPS measures the peak of float32 multiply-adds of one core, two
// operations each, for about the time given; 0 where the implementation has no
// vectors.
func (i *Implementation) PeakFLOPS(d time.Duration) float64 {
	if i.meter == nil {
		return 0
	}
	const n = 1 << 16
	return best(d, func() { i.meter.fma(n) }) * n * 12 * 2 * float64(i.meter.lanes)
}

// ReadBandwidth measures the bytes a second at which one core reads x from
// start to end, for about the time given; 0 where the implementation has no
// vectors. It tells that of memory where x is far larger than the caches.
func (i *Implementation) ReadBandwidth(x []float32, d time.Duration) float64 {
	blocks := len(x) / 64
	if i.meter == nil || blocks == 0 {
		return 0
	}
	return best(d, func() { i.meter.read(&x[0], blocks) }) * float64(blocks) * 256
}

// best returns the highest rate of calls of f a second.
func best(d time.Duration, f func()) float64 {
	least := time.Duration(1<<63 - 1)
	for start := time.Now(); time.Since(start) < d; {
		call := time.Now()
		f()
		least = min(least, time.Since(call))
	}
	return 1 / least.Seconds()
}
