package kernel

import (
	"encoding/binary"
	"fmt"
	"math"
)

// WidenFloat16 sets to, [n], to the n IEEE 754 halves of from, 2·n little-endian
// bytes. Every half is a float32, so nothing is rounded; a NaN stays one, made
// quiet, with its payload. Every implementation gives the same bits. It is done
// on the way from a message into a batch, which is a copy in any case: the
// kernels see float32 only.
func WidenFloat16(to []float32, from []byte) {
	impl, _ := Active() // an implementation in any case
	impl.loops.float16(to, checkHalves(to, from))
}

// WidenBFloat16 is WidenFloat16 for bfloat16, the upper halves of float32; a NaN
// keeps all its bits.
func WidenBFloat16(to []float32, from []byte) {
	impl, _ := Active()
	impl.loops.bfloat16(to, checkHalves(to, from))
}

func checkHalves(to []float32, from []byte) []byte {
	if len(from) != 2*len(to) {
		panic(fmt.Sprintf("kernel: %d bytes are not %d values of two bytes", len(from), len(to)))
	}
	return from
}

// widenOf leaves the last values, fewer than a vector, to the function in Go.
func widenOf(f func(to *float32, from *byte, n int), rest func(to []float32, from []byte)) func([]float32, []byte) {
	return func(to []float32, from []byte) {
		n := len(to) &^ 7
		if n > 0 {
			_ = from[2*n-1]
			f(&to[0], &from[0], n)
		}
		rest(to[n:], from[2*n:])
	}
}

func float16Go(to []float32, from []byte) {
	for i := range to {
		to[i] = float16(binary.LittleEndian.Uint16(from[2*i:]))
	}
}

func bfloat16Go(to []float32, from []byte) {
	for i := range to {
		to[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(from[2*i:])) << 16)
	}
}

func float16(h uint16) float32 {
	sign, exponent, fraction := uint32(h>>15)<<31, uint32(h>>10)&31, uint32(h)&1023
	switch exponent {
	case 0:
		v := float32(fraction) * 0x1p-24
		return math.Float32frombits(math.Float32bits(v) | sign)
	case 31:
		if fraction != 0 {
			fraction |= 1 << 9 // quiet, as IEEE 754 has conversions make it
		}
		return math.Float32frombits(sign | 0xff<<23 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+112)<<23 | fraction<<13)
}
