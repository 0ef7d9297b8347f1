package kernel

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
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

// valueOf16 is the number that 16 bits are, by the definition of IEEE 754.
func valueOf16(bits, exponentBits, fractionBits int) float64 {
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

// Every half and every bfloat16 becomes the float32 of its value.
func TestWidenIsExact(t *testing.T) {
	from, to := all16(), make([]float32, 1<<16)
	for _, impl := range Available() {
		for _, kind := range []struct {
			name                   string
			widen                  func([]float32, []byte)
			exponents, fractionals int
		}{{"float16", impl.loops.float16, 5, 10}, {"bfloat16", impl.loops.bfloat16, 8, 7}} {
			kind.widen(to, from)
			for i, got := range to {
				want := valueOf16(i, kind.exponents, kind.fractionals)
				if math.IsNaN(want) {
					// Quiet, where the conversion is an operation; the payload stays.
					bits := uint32(i>>15)<<31 | 0xff<<23 | uint32(i&(1<<kind.fractionals-1))<<(23-kind.fractionals)
					if kind.name == "float16" {
						bits |= 1 << 22
					}
					if math.Float32bits(got) != bits {
						t.Fatalf("%v: %s %#04x is %#08x, want %#08x", impl, kind.name, i, math.Float32bits(got), bits)
					}
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
		for _, kind := range []struct {
			name            string
			widen, expected func([]float32, []byte)
		}{{"float16", impl.loops.float16, float16Go}, {"bfloat16", impl.loops.bfloat16, bfloat16Go}} {
			for n := range 70 {
				for start := range 3 { // also odd addresses
					from := all[start:][:2*n]
					to, want := make([]float32, n+2), make([]float32, n)
					to[0], to[n+1] = 7, 7
					kind.expected(want, from)
					kind.widen(to[1:n+1], from)
					if !sameBits(to[1:n+1], want) {
						t.Fatalf("%v: %d values of %s are %g, want %g", impl, n, kind.name, to[1:n+1], want)
					}
					if to[0] != 7 || to[n+1] != 7 {
						t.Fatalf("%v: %d values of %s were written outside their slice", impl, n, kind.name)
					}
				}
			}
		}
	}
}

// Embeddings of 16 bits, any, score as float64 has it of their values.
func FuzzNearestOf16Bits(f *testing.F) {
	f.Add([]byte{0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00, 0x00, 0x7c, 0x01, 0xfe, 0xff, 0x03}, uint64(1), uint8(5), uint8(3), false)
	f.Add([]byte{0x80, 0x3f, 0x00, 0xc0, 0x01, 0x00, 0x80, 0x7f, 0xc1, 0xff, 0x7f, 0x7f}, uint64(2), uint8(17), uint8(2), true)
	f.Add(all16()[:4000], uint64(3), uint8(9), uint8(100), false)           // halves: zeros, subnormals, small
	f.Add(all16()[0x3f00*2:][:4000], uint64(4), uint8(33), uint8(65), true) // bfloat16: from 0.5 up
	f.Fuzz(func(t *testing.T, raw []byte, seed uint64, c, d uint8, brain bool) {
		n := 0
		if d > 0 {
			n = min(len(raw)/2/int(d), 40)
		}
		if c == 0 || n == 0 {
			return
		}
		raw = raw[:2*n*int(d)]
		exponents, fractions := 5, 10
		if brain {
			exponents, fractions = 8, 7
		}
		want := make([]float32, n*int(d))
		for i := range want {
			want[i] = float32(valueOf16(int(binary.LittleEndian.Uint16(raw[2*i:])), exponents, fractions))
		}
		p := normal(rand.New(rand.NewPCG(seed, 0)), int(c)*int(d), 1)
		for _, impl := range Available() {
			x, widen := make([]float32, len(want)), impl.loops.float16
			if brain {
				widen = impl.loops.bfloat16
			}
			widen(x, raw)
			for i, v := range x {
				if v != want[i] && (v == v || want[i] == want[i]) {
					t.Fatalf("%v: value %d is %g, want %g", impl, i, v, want[i])
				}
			}
			checkOne(t, impl, x, p, n, int(c), int(d))
		}
	})
}

// BenchmarkNearestOf16Bits compares the ways from messages of 16 bits to
// distances: a batch is widened as it is taken from them, and then searched
// (batch), which is what happens; or block by block within the search (blocks).
// Beside it are messages of float32, which are copied into the batch, and the
// batch widened by plain Go. A batch of the line has 1 MiB of messages at most.
func BenchmarkNearestOf16Bits(b *testing.B) {
	r := rand.New(rand.NewPCG(8, 8))
	for _, s := range []struct{ d, c, bytes int }{{128, 10, 1 << 20}, {512, 100, 1 << 20}, {128, 10, 32 << 20}, {512, 100, 32 << 20}} {
		n := s.bytes / 2 / s.d
		x, halves := make([]float32, n*s.d), make([]byte, 2*n*s.d)
		for i := range x {
			binary.LittleEndian.PutUint16(halves[2*i:], uint16(0x3000+r.IntN(0x1000)|r.IntN(2)<<15)) // of size 0.1 to 1
		}
		impl := Available()[0]
		impl.loops.float16(x, halves)
		protos, err := impl.Pack(normal(r, s.c*s.d, 1), s.c, s.d)
		if err != nil {
			b.Fatal(err)
		}
		var w Workspace
		batch, dist, class := make([]float32, len(x)), make([]float32, n), make([]int32, n)
		for _, way := range []struct {
			name string
			f    func()
		}{
			{"float32", func() {
				copy(batch, x)
				protos.Nearest(&w, batch, dist, class)
			}},
			{"batch", func() {
				impl.loops.float16(batch, halves)
				protos.Nearest(&w, batch, dist, class)
			}},
			{"blocks", func() {
				block := protos.blockRows()
				for first := 0; first < n; first += block {
					rows := min(block, n-first)
					impl.loops.float16(batch[:rows*s.d], halves[2*first*s.d:][:2*rows*s.d])
					protos.Nearest(&w, batch[:rows*s.d], dist[first:first+rows], class[first:first+rows])
				}
			}},
			{"go", func() {
				float16Go(batch, halves)
				protos.Nearest(&w, batch, dist, class)
			}},
		} {
			b.Run(fmt.Sprintf("d=%d/c=%d/MiB=%d/way=%s", s.d, s.c, s.bytes>>20, way.name), func(b *testing.B) {
				for b.Loop() {
					way.f()
				}
				b.ReportMetric(float64(b.N)*float64(n)/b.Elapsed().Seconds(), "vectors/s")
			})
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
