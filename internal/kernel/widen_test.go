package kernel

import (
	"encoding/binary"
	"math"
	"testing"
)

// all16 are all values of 16 bits.
func all16() []byte {
	var b []byte
	for i := range 1 << 16 {
		b = binary.LittleEndian.AppendUint16(b, uint16(i))
	}
	return b
}

// Every half and every bfloat16 becomes the float32 of its value.
func TestWidenIsExact(t *testing.T) {
	value := func(bits, exponentBits, fractionBits int) float64 {
		exponent, fraction := bits>>fractionBits&(1<<exponentBits-1), float64(bits&(1<<fractionBits-1))
		bias, v := 1<<(exponentBits-1)-1, 0.
		switch exponent {
		case 0:
			v = math.Ldexp(fraction, 1-bias-fractionBits)
		case 1<<exponentBits - 1:
			v = math.Inf(1)
			if fraction > 0 {
				v = math.NaN()
			}
		default:
			v = math.Ldexp(1+math.Ldexp(fraction, -fractionBits), exponent-bias)
		}
		return math.Copysign(v, 1-2*float64(bits>>15))
	}
	from, to := all16(), make([]float32, 1<<16)
	for _, impl := range Available() {
		for _, kind := range []struct {
			name                   string
			widen                  func([]float32, []byte)
			exponents, fractionals int
		}{{"float16", impl.loops.float16, 5, 10}, {"bfloat16", impl.loops.bfloat16, 8, 7}} {
			kind.widen(to, from)
			for i, got := range to {
				want := value(i, kind.exponents, kind.fractionals)
				if math.IsNaN(want) && math.IsNaN(float64(got)) {
					continue
				}
				if float64(got) != want || math.Signbit(float64(got)) != math.Signbit(want) {
					t.Fatalf("%v: %s %#04x is %g, want %g", impl, kind.name, i, got, want)
				}
			}
		}
	}
}

// Every length and alignment, with guard values on both sides.
func TestWidenTails(t *testing.T) {
	all := all16()[0x3c00*2:] // from 1 on
	for _, impl := range Available() {
		for n := range 70 {
			for start := range 3 { // also odd addresses
				from := all[start:][:2*n]
				to, want := make([]float32, n+2), make([]float32, n)
				to[0], to[n+1] = 7, 7
				float16Go(want, from)
				impl.loops.float16(to[1:n+1], from)
				for i, v := range want {
					if math.Float32bits(to[i+1]) != math.Float32bits(v) && v == v {
						t.Fatalf("%v: value %d of %d is %g, want %g", impl, i, n, to[i+1], v)
					}
				}
				if to[0] != 7 || to[n+1] != 7 {
					t.Fatalf("%v: %d values were written outside their slice", impl, n)
				}
			}
		}
	}
}

// BenchmarkWiden compares with a copy of as many float32, which a message of
// these takes on the same way.
func BenchmarkWiden(b *testing.B) {
	const n = 512
	to, from, singles := make([]float32, n), make([]byte, 2*n), make([]float32, n)
	run := func(name string, f func()) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(4 * n)
			for b.Loop() {
				f()
			}
		})
	}
	for _, impl := range Available() {
		run("float16/"+impl.String(), func() { impl.loops.float16(to, from) })
		run("bfloat16/"+impl.String(), func() { impl.loops.bfloat16(to, from) })
	}
	run("float32/copy", func() { copy(to, singles) })
}
