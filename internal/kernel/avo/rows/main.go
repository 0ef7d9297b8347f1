// Command rows generates the loops over the values of rows: sums of squares,
// largest values, distances, exponentials.
package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// A set writes the kernels of one instruction set. The values of a row that
// fill no vector are read and written under a mask.
type set struct {
	suffix string
	width  int // values in a vector: 16 or 8

	// Of the kernel being written:
	full  reg.GPVirtual // bytes of a row in whole vectors
	rest  reg.GPVirtual // values behind them
	kmask reg.OpmaskVirtual
	vmask reg.VecVirtual
	named map[string]reg.VecVirtual
}

// Whether a step is for a whole vector or for the rest of a row.
type part bool

const (
	whole part = false
	rest  part = true
)

func (s *set) wide() bool { return s.width == 16 }

func (s *set) vector() reg.VecVirtual {
	if s.wide() {
		return ZMM()
	}
	return YMM()
}

func (s *set) zero() reg.VecVirtual {
	v := s.vector()
	s.clear(v)
	return v
}

func (s *set) clear(v reg.VecVirtual) {
	if s.wide() {
		VPXORD(v, v, v)
	} else {
		VXORPS(v, v, v)
	}
}

// begin starts a kernel.
func (s *set) begin(name, signature, doc string) {
	TEXT(name+s.suffix, NOSPLIT, signature)
	Pragma("noescape")
	Doc(name + s.suffix + " " + doc)
	s.named = map[string]reg.VecVirtual{}
	s.vmask = nil
}

func end() {
	VZEROUPPER()
	RET()
}

// pointer loads a parameter that is an address, or a count.
func pointer(parameter string) reg.GPVirtual { return Load(Param(parameter), GP64()).(reg.GPVirtual) }

// bytes loads a parameter in values, and makes it one in bytes.
func bytes(parameter string) reg.GPVirtual {
	r := pointer(parameter)
	SHLQ(operand.U8(2), r)
	return r
}

// split takes the parameter that says how many values a row has, and makes the
// mask of the rest.
func (s *set) split(parameter string) {
	s.full, s.rest = pointer(parameter), GP64()
	MOVQ(s.full, s.rest)
	ANDQ(operand.I8(int8(s.width-1)), s.rest)
	SUBQ(s.rest, s.full)
	SHLQ(operand.U8(2), s.full)
	if s.wide() {
		bits := GP32()
		MOVQ(s.rest, reg.RCX)
		MOVL(operand.U32(1), bits)
		SHLL(reg.CL, bits)
		DECL(bits)
		s.kmask = K()
		KMOVW(bits, s.kmask)
		return
	}
	// Eight ones, then eight zeros: from 8 − rest on.
	table, at := GP64(), GP64()
	LEAQ(masks, table)
	MOVQ(operand.I32(8), at)
	SUBQ(s.rest, at)
	s.vmask = s.vector()
	VMOVUPS(operand.Mem{Base: table, Index: at, Scale: 4}, s.vmask)
}

// row runs body for each vector of a row, at an offset in bytes from its start.
func (s *set) row(label string, body func(offset reg.GPVirtual, p part)) {
	offset := GP64()
	XORQ(offset, offset)
	CMPQ(offset, s.full)
	JE(operand.LabelRef(label + "Rest"))
	Label(label)
	body(offset, whole)
	ADDQ(operand.I32(int32(4*s.width)), offset)
	CMPQ(offset, s.full)
	JNE(operand.LabelRef(label))
	Label(label + "Rest")
	TESTQ(s.rest, s.rest)
	JZ(operand.LabelRef(label + "Done"))
	body(offset, rest)
	Label(label + "Done")
}

// load reads a vector; the rest of a row with zeros behind it.
func (s *set) load(m operand.Mem, p part) reg.VecVirtual {
	v := s.vector()
	switch {
	case p == whole:
		VMOVUPS(m, v)
	case s.wide():
		VMOVUPS_Z(m, s.kmask, v)
	default:
		VMASKMOVPS(m, s.vmask, v)
	}
	return v
}

func (s *set) store(v reg.VecVirtual, m operand.Mem, p part) {
	switch {
	case p == whole:
		VMOVUPS(v, m)
	case s.wide():
		VMOVUPS(v, s.kmask, m)
	default:
		VMASKMOVPS(v, s.vmask, m)
	}
}

// keepMax sets acc to the larger of it and v.
func (s *set) keepMax(v, acc reg.VecVirtual, p part) {
	switch {
	case p == whole:
		VMAXPS(v, acc, acc)
	case s.wide():
		VMAXPS(v, acc, s.kmask, acc)
	default:
		t := s.vector()
		VBLENDVPS(s.vmask, v, acc, t)
		VMAXPS(t, acc, acc)
	}
}

// broadcast fills a vector with the value at m.
func (s *set) broadcast(m operand.Op) reg.VecVirtual {
	v := s.vector()
	VBROADCASTSS(m, v)
	return v
}

// constant returns a vector of a constant: in a register where there are 32 of
// them, else in memory. keep puts it into a register in any case.
func (s *set) constant(c constant) operand.Op {
	if !s.wide() {
		return c.mem
	}
	return s.keep(c)
}

func (s *set) keep(c constant) reg.VecVirtual {
	v, ok := s.named[c.name]
	if !ok {
		panic("constant " + c.name + " was not prepared")
	}
	return v
}

// prepare loads constants before a loop.
func (s *set) prepare(always bool, cs ...constant) {
	for _, c := range cs {
		if s.named[c.name] == nil && (always || s.wide()) {
			v := s.vector()
			VBROADCASTSS(c.mem, v)
			s.named[c.name] = v
		}
	}
}

// fold combines the values of v, and leaves the result in the lowest.
func (s *set) fold(v reg.VecVirtual, combine func(ops ...operand.Op)) reg.Register {
	if s.wide() {
		half := YMM()
		VEXTRACTF64X4(operand.U8(1), v, half)
		combine(v.AsY(), half, half)
		v = half
	}
	quarter, t := XMM(), XMM()
	if s.wide() {
		VEXTRACTF32X4(operand.U8(1), v.AsY(), quarter)
	} else {
		VEXTRACTF128(operand.U8(1), v, quarter)
	}
	combine(v.AsX(), quarter, quarter)
	VPERMILPS(operand.U8(0b01_00_11_10), quarter, t)
	combine(quarter, t, t)
	VPERMILPS(operand.U8(0b10_11_00_01), t, quarter)
	combine(t, quarter, quarter)
	return quarter
}

// A constant stands eight times in memory.
type constant struct {
	name string
	mem  operand.Mem
}

func define(name string, value float32) constant {
	m := GLOBL(name, RODATA|NOPTR)
	for i := range 8 {
		DATA(4*i, operand.U32(math.Float32bits(value)))
	}
	return constant{name, m}
}

var (
	masks                       operand.Mem
	negativeInfinity, lowest    constant
	log2e, ln2High, ln2Low, one constant
	minDistance                 constant
	coefficients                []constant
)

func defineConstants() {
	masks = GLOBL("rowMasks", RODATA|NOPTR)
	for i := range 16 {
		v := uint32(0)
		if i < 8 {
			v = math.MaxUint32
		}
		DATA(4*i, operand.U32(v))
	}
	negativeInfinity = define("rowNegativeInfinity", float32(math.Inf(-1)))
	lowest = define("rowLowest", -87)
	log2e = define("rowLog2e", math.Log2E)
	ln2High = define("rowLn2High", math.Ln2)
	ln2Low = define("rowLn2Low", float32(math.Ln2-float64(float32(math.Ln2))))
	one = define("rowOne", 1)
	minDistance = define("rowMinDistance", 1e-6)
	for i, c := range polynomial {
		coefficients = append(coefficients, define(fmt.Sprintf("rowExp%d", i), c))
	}
}

// polynomial is q in exp(r) = 1 + r + r²·q(r) for |r| ≤ ln(2)/2, the highest
// power first: the minimax fit of the relative error, by Lawson's weights, with
// float32 coefficients. It is within 4.4e-9.
var polynomial = []float32{0.00138144672, 0.00836878084, 0.0416683927, 0.166665196, 0.49999994}

// prepareExp loads what exp needs.
func (s *set) prepareExp() {
	s.prepare(false, append([]constant{lowest, log2e, ln2High, ln2Low, one}, coefficients...)...)
}

// exp returns e^x for x ≤ 0: 2^n·e^r with n = round(x/ln 2). It is 0 below −87,
// where 2^n leaves the normal numbers, and NaN of NaN.
func (s *set) exp(x reg.VecVirtual) reg.VecVirtual {
	n, whole, p, square := s.vector(), s.vector(), s.vector(), s.vector()
	VMULPS(s.constant(log2e), x, n)
	VCVTPS2DQ(n, n) // rounds to nearest
	VCVTDQ2PS(n, whole)
	r := s.vector()
	VMOVAPS(x, r)
	VFNMADD231PS(s.constant(ln2High), whole, r)
	VFNMADD231PS(s.constant(ln2Low), whole, r)
	VMULPS(r, r, square)
	if s.wide() {
		VMOVAPS(s.keep(coefficients[0]), p)
	} else {
		VMOVUPS(coefficients[0].mem, p)
	}
	for _, c := range coefficients[1:] {
		VFMADD213PS(s.constant(c), r, p)
	}
	VFMADD213PS(r, square, p) // p·r² + r
	VADDPS(s.constant(one), p, p)
	VPSLLD(operand.U8(23), n, n)
	VPADDD(n, p, p)
	if s.wide() {
		k := K()
		VCMPPS(operand.U8(notLess), s.keep(lowest), x, k)
		VMOVAPS_Z(p, k, p)
	} else {
		t := s.vector()
		VCMPPS(operand.U8(notLess), lowest.mem, x, t)
		VANDPS(t, p, p)
	}
	return p
}

// Predicates of VCMPPS; a comparison with NaN is true for notLess alone.
const less, notLess, atLeast = 17, 21, 29

// bits compares v with w by a predicate, and returns a bit for each value of
// which it is true; none behind the rest of a row. and, if not nil, gets the mask.
func (s *set) compare(predicate uint8, w, v reg.VecVirtual, p part) (bits reg.GPVirtual, k reg.OpmaskVirtual, mask reg.VecVirtual) {
	bits = GP32()
	if s.wide() {
		k = K()
		if p == rest {
			VCMPPS(operand.U8(predicate), w, v, s.kmask, k)
		} else {
			VCMPPS(operand.U8(predicate), w, v, k)
		}
		KMOVW(k, bits)
		return bits, k, nil
	}
	mask = s.vector()
	VCMPPS(operand.U8(predicate), w, v, mask)
	if p == rest {
		VANDPS(s.vmask, mask, mask)
	}
	VMOVMSKPS(mask, bits)
	return bits, nil, mask
}

// strip runs body over the d values of a row four vectors at a time, then one,
// then the rest; lane says which accumulator is meant.
func (s *set) strip(body func(offset reg.GPVirtual, disp int, lane int, p part)) {
	offset, many := GP64(), GP64()
	XORQ(offset, offset)
	MOVQ(s.full, many)
	ANDQ(operand.I32(int32(-4*4*s.width)), many)
	JZ(operand.LabelRef("single"))
	Label("many")
	for lane := range 4 {
		body(offset, lane*4*s.width, lane, whole)
	}
	ADDQ(operand.I32(int32(4*4*s.width)), offset)
	CMPQ(offset, many)
	JNE(operand.LabelRef("many"))
	Label("single")
	CMPQ(offset, s.full)
	JE(operand.LabelRef("rest"))
	body(offset, 0, 0, whole)
	ADDQ(operand.I32(int32(4*s.width)), offset)
	JMP(operand.LabelRef("single"))
	Label("rest")
	TESTQ(s.rest, s.rest)
	JZ(operand.LabelRef("fold"))
	body(offset, 0, 1, rest)
	Label("fold")
}

func (s *set) squares() {
	s.begin("squares", "func(x *float32, d int, out *float32, rows int)", "is squaresGo.")
	x, step, out, rows := pointer("x"), bytes("d"), pointer("out"), pointer("rows")
	s.split("d")
	sums := []reg.VecVirtual{s.vector(), s.vector(), s.vector(), s.vector()}
	Label("row")
	for _, v := range sums {
		s.clear(v)
	}
	s.strip(func(offset reg.GPVirtual, disp, lane int, p part) {
		v := s.load(operand.Mem{Base: x, Index: offset, Scale: 1, Disp: disp}, p)
		VFMADD231PS(v, v, sums[lane])
	})
	s.store1(s.total(sums), out, 0)
	ADDQ(operand.I8(4), out)
	ADDQ(step, x)
	DECQ(rows)
	JNZ(operand.LabelRef("row"))
	end()
}

// total adds four accumulators up, and their values.
func (s *set) total(sums []reg.VecVirtual) reg.Register {
	VADDPS(sums[1], sums[0], sums[0])
	VADDPS(sums[3], sums[2], sums[2])
	VADDPS(sums[2], sums[0], sums[0])
	return s.fold(sums[0], VADDPS)
}

func (s *set) store1(v reg.Register, out reg.GPVirtual, disp int) {
	VMOVSS(v, operand.Mem{Base: out, Disp: disp})
}

func (s *set) gaps() {
	s.begin("gaps", "func(x *float32, d int, inv, p *float32, class *int32, out *float32, rows int)", "is gapsGo.")
	x, step, inv, protos, class, out, rows := pointer("x"), bytes("d"), pointer("inv"), pointer("p"), pointer("class"), pointer("out"), pointer("rows")
	s.split("d")
	sums := []reg.VecVirtual{s.vector(), s.vector(), s.vector(), s.vector()}
	Label("row")
	for _, v := range sums {
		s.clear(v)
	}
	factor := s.broadcast(operand.Mem{Base: inv})
	proto := GP64()
	MOVLQSX(operand.Mem{Base: class}, proto)
	IMULQ(step, proto)
	ADDQ(protos, proto)
	s.strip(func(offset reg.GPVirtual, disp, lane int, p part) {
		v := s.load(operand.Mem{Base: x, Index: offset, Scale: 1, Disp: disp}, p)
		w := s.load(operand.Mem{Base: proto, Index: offset, Scale: 1, Disp: disp}, p)
		VFMSUB213PS(w, factor, v) // v·factor − w
		VFMADD231PS(v, v, sums[lane])
	})
	s.store1(s.total(sums), out, 0)
	for _, p := range []reg.GPVirtual{inv, class, out} {
		ADDQ(operand.I8(4), p)
	}
	ADDQ(step, x)
	DECQ(rows)
	JNZ(operand.LabelRef("row"))
	end()
}

func at(base, offset reg.GPVirtual) operand.Mem {
	return operand.Mem{Base: base, Index: offset, Scale: 1}
}

// largest leaves the largest value of a row in all values of a vector.
func (s *set) largest(label string, v reg.GPVirtual, scale reg.VecVirtual) reg.VecVirtual {
	acc := s.vector()
	VMOVAPS(s.keep(negativeInfinity), acc)
	s.row(label, func(offset reg.GPVirtual, p part) {
		x := s.load(at(v, offset), p)
		if scale != nil {
			VMULPS(scale, x, x)
		}
		s.keepMax(x, acc, p)
	})
	return s.broadcast(s.fold(acc, VMAXPS))
}

func (s *set) peaks() {
	s.begin("peaks", "func(v *float32, n, stride int, tie, limit *float32, out *float32, rows int)", "is peaksGo.")
	v, stride, tie, limit, out, rows := pointer("v"), bytes("stride"), pointer("tie"), pointer("limit"), pointer("out"), pointer("rows")
	s.split("n")
	s.prepare(true, negativeInfinity)
	Label("row")
	largest := s.largest("max", v, nil)
	bound, t := s.broadcast(operand.Mem{Base: tie}), s.broadcast(operand.Mem{Base: limit})
	VSUBPS(bound, largest, bound)
	VMINPS(t, bound, bound)
	near, first := GP64(), GP64()
	XORQ(near, near)
	MOVQ(operand.I32(-1), first)
	n := 0
	s.row("near", func(offset reg.GPVirtual, p part) {
		n++
		x := s.load(at(v, offset), p)
		bits, _, _ := s.compare(atLeast, bound, x, p)
		none := fmt.Sprintf("none%d", n)
		TESTL(bits, bits)
		JZ(operand.LabelRef(none))
		count := GP32()
		POPCNTL(bits, count)
		ADDQ(count.As64(), near)
		TESTQ(first, first)
		JNS(operand.LabelRef(none))
		TZCNTL(bits, bits)
		MOVQ(offset, first)
		SHRQ(operand.U8(2), first)
		ADDQ(bits.As64(), first)
		Label(none)
	})
	s.store1(largest.AsX(), out, 0)
	MOVL(near.As32(), operand.Mem{Base: out, Disp: 4})
	MOVL(first.As32(), operand.Mem{Base: out, Disp: 8})
	ADDQ(operand.I8(12), out)
	ADDQ(operand.I8(4), tie)
	ADDQ(operand.I8(4), limit)
	ADDQ(stride, v)
	DECQ(rows)
	JNZ(operand.LabelRef("row"))
	end()
}

func (s *set) distances() {
	s.begin("rowDistances", "func(v *float32, n, stride int, a, b *float32, s float32, rows int)", "is distancesGo.")
	v, stride, a, b, rows := pointer("v"), bytes("stride"), pointer("a"), pointer("b"), pointer("rows")
	factor := s.broadcast(Load(Param("s"), XMM()))
	s.split("n")
	zero := s.zero()
	Label("row")
	constant, slope := s.broadcast(operand.Mem{Base: a}), s.broadcast(operand.Mem{Base: b})
	s.row("value", func(offset reg.GPVirtual, p part) {
		x := s.load(at(v, offset), p)
		VFMADD213PS(constant, slope, x)
		VMAXPS(x, zero, x) // x where it is NaN
		VSQRTPS(x, x)
		VMULPS(factor, x, x)
		s.store(x, at(v, offset), p)
	})
	ADDQ(operand.I8(4), a)
	ADDQ(operand.I8(4), b)
	ADDQ(stride, v)
	DECQ(rows)
	JNZ(operand.LabelRef("row"))
	end()
}

func (s *set) sums() {
	s.begin("sums", "func(v *float32, n, stride int, out *float32, rows int)", "is sumsGo.")
	v, stride, out, rows := pointer("v"), bytes("stride"), pointer("out"), pointer("rows")
	s.split("n")
	s.prepare(true, negativeInfinity)
	s.prepareExp()
	total, exps, moment := s.vector(), s.vector(), s.vector()
	Label("row")
	largest := s.largest("max", v, nil)
	s.clear(total)
	s.clear(exps)
	s.clear(moment)
	equal := pointer("n")
	s.row("value", func(offset reg.GPVirtual, p part) {
		x := s.load(at(v, offset), p)
		VADDPS(x, total, total)
		bits, k, mask := s.compare(less, largest, x, p)
		POPCNTL(bits, bits)
		SUBQ(bits.As64(), equal)
		VSUBPS(largest, x, x)
		e := s.exp(x)
		if s.wide() {
			VADDPS(e, exps, k, exps)
			VFMADD231PS(e, x, k, moment)
		} else {
			VANDPS(mask, e, e)
			VADDPS(e, exps, exps)
			VFMADD231PS(e, x, moment)
		}
	})
	s.store1(largest.AsX(), out, 0)
	MOVL(equal.As32(), operand.Mem{Base: out, Disp: 4})
	for i, acc := range []reg.VecVirtual{total, exps, moment} {
		s.store1(s.fold(acc, VADDPS), out, 8+4*i)
	}
	ADDQ(operand.I8(20), out)
	ADDQ(stride, v)
	DECQ(rows)
	JNZ(operand.LabelRef("row"))
	end()
}

func (s *set) exps() {
	s.begin("exps", "func(v *float32, n int, scale float32, out *float32, rows int)", "is expsGo.")
	v, step, out, rows := pointer("v"), bytes("n"), pointer("out"), pointer("rows")
	scale := s.broadcast(Load(Param("scale"), XMM()))
	s.split("n")
	s.prepare(true, negativeInfinity)
	s.prepareExp()
	sum := s.vector()
	Label("row")
	largest := s.largest("max", v, scale)
	s.clear(sum)
	s.row("value", func(offset reg.GPVirtual, p part) {
		x := s.load(at(v, offset), p)
		VMULPS(scale, x, x)
		VSUBPS(largest, x, x)
		e := s.exp(x)
		s.store(e, at(v, offset), p)
		switch {
		case p == whole:
			VADDPS(e, sum, sum)
		case s.wide():
			VADDPS(e, sum, s.kmask, sum)
		default:
			VANDPS(s.vmask, e, e)
			VADDPS(e, sum, sum)
		}
	})
	s.store1(largest.AsX(), out, 0)
	s.store1(s.fold(sum, VADDPS), out, 4)
	ADDQ(operand.I8(8), out)
	ADDQ(step, v)
	DECQ(rows)
	JNZ(operand.LabelRef("row"))
	end()
}

func (s *set) scaleRows() {
	s.begin("scaleRows", "func(v *float32, n int, by *float32, rows int)", "is scaleRowsGo.")
	v, step, by, rows := pointer("v"), bytes("n"), pointer("by"), pointer("rows")
	s.split("n")
	Label("row")
	factor := s.broadcast(operand.Mem{Base: by})
	s.row("value", func(offset reg.GPVirtual, p part) {
		x := s.load(at(v, offset), p)
		VMULPS(factor, x, x)
		s.store(x, at(v, offset), p)
	})
	ADDQ(operand.I8(4), by)
	ADDQ(step, v)
	DECQ(rows)
	JNZ(operand.LabelRef("row"))
	end()
}

func (s *set) divideRows() {
	s.begin("divideRows", "func(grad, d *float32, n int, factor float32, out *float32, rows int)", "is divideRowsGo.")
	g, d, step, out, rows := pointer("grad"), pointer("d"), bytes("n"), pointer("out"), pointer("rows")
	factor := s.broadcast(Load(Param("factor"), XMM()))
	s.split("n")
	s.prepare(true, minDistance)
	sum := s.vector()
	Label("row")
	s.clear(sum)
	s.row("value", func(offset reg.GPVirtual, p part) {
		x, by := s.load(at(g, offset), p), s.load(at(d, offset), p)
		VFMADD231PS(by, x, sum)
		VMAXPS(by, s.keep(minDistance), by) // by where it is NaN
		VMULPS(factor, x, x)
		VDIVPS(by, x, x)
		s.store(x, at(g, offset), p)
	})
	s.store1(s.fold(sum, VADDPS), out, 0)
	ADDQ(operand.I8(4), out)
	ADDQ(step, g)
	ADDQ(step, d)
	DECQ(rows)
	JNZ(operand.LabelRef("row"))
	end()
}

func main() {
	ConstraintExpr("amd64")
	defineConstants()
	for _, s := range []set{{suffix: "AVX512", width: 16}, {suffix: "AVX2", width: 8}} {
		s.squares()
		s.gaps()
		s.peaks()
		s.distances()
		s.sums()
		s.exps()
		s.scaleRows()
		s.divideRows()
	}
	Generate()
}
