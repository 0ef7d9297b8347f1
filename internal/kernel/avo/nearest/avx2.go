package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

type avx2 struct{}

func (avx2) name() string           { return "AVX2" }
func (avx2) bytes() int             { return 32 }
func (avx2) panels() []shape        { return []shape{{16, []int{6, 2, 1}}, {narrow, []int{2, 1}}} }
func (avx2) vector() reg.VecVirtual { return YMM() }
func (avx2) zero(v reg.VecVirtual)  { VXORPS(v, v, v) }

func (avx2) masked(rem reg.GPVirtual) []func(Mem, reg.VecVirtual) {
	// A window of 64 ones and 64 zeros, of which the first rem are ones.
	window := GP64()
	LEAQ(ones, window)
	NEGQ(rem)
	LEAQ(Mem{Base: window, Index: rem, Scale: 4, Disp: 4 * lanesOfSums}, window)
	loads := make([]func(Mem, reg.VecVirtual), lanesOfSums/8)
	for i := range loads {
		loads[i] = func(m Mem, v reg.VecVirtual) {
			VMOVUPS(Mem{Base: window, Disp: 32 * i}, v)
			VMASKMOVPS(m, v, v)
		}
	}
	return loads
}

func (avx2) total(s []reg.VecVirtual) reg.VecVirtual {
	for step := 4; step > 0; step /= 2 {
		for i := range step {
			VADDPS(s[i+step], s[i], s[i])
		}
	}
	return totalOfEight(s[0])
}

// update works in memory where it can: the products fill the registers.
func (avx2) update(row []reg.VecVirtual, state Mem, classes []reg.VecVirtual) {
	best, second, class := state.Offset(stateBest*32), state.Offset(stateSecond*32), state.Offset(stateClass*32)
	if len(row) == 1 {
		k, low, number := YMM(), YMM(), YMM()
		VCMPPS(lessOrEqual, best, row[0], k) // row <= best
		VMINPS(best, row[0], low)
		VMAXPS(second, low, low)
		VBLENDVPS(k, class, classes[0], number)
		VMAXPS(best, row[0], row[0])
		VMOVUPS(row[0], best)
		VMOVUPS(low, second)
		VMOVUPS(number, class)
		return
	}
	a, b := row[0], row[1]
	k, low := YMM(), YMM()
	VCMPPS(greater, a, b, k) // b > a
	VMINPS(a, b, low)
	VMAXPS(a, b, a)
	VBLENDVPS(k, classes[1], classes[0], b)
	VCMPPS(lessOrEqual, best, a, k) // a <= best
	VMAXPS(second, low, low)
	VBLENDVPS(k, class, b, b)
	VMINPS(best, a, k)
	VMAXPS(k, low, low)
	VMAXPS(best, a, a)
	VMOVUPS(a, best)
	VMOVUPS(low, second)
	VMOVUPS(b, class)
}

// highest sets every lane to the largest of all.
func (avx2) highest(v reg.VecVirtual) reg.VecVirtual {
	all, other := YMM(), YMM()
	VPERM2F128(Imm(0x01), v, v, other)
	VMAXPS(other, v, all)
	VPERMILPS(Imm(0x4e), all, other)
	VMAXPS(other, all, all)
	VPERMILPS(Imm(0xb1), all, other)
	VMAXPS(other, all, all)
	return all
}

func (a avx2) winner(state Mem) (reg.VecVirtual, reg.GPVirtual, reg.VecVirtual) {
	lanes, k, mask := YMM(), YMM(), GP64()
	VMOVUPS(state.Offset(stateBest*32), lanes)
	best := a.highest(lanes)
	VCMPPS(equal, best, lanes, k)
	VMOVMSKPS(k, mask.As32())
	VBLENDVPS(k, state.Offset(stateSecond*32), lanes, lanes)
	return best, mask, a.highest(lanes)
}

// totalOfEight adds lanes 4 apart, 2 apart, 1 apart.
func totalOfEight(v reg.VecVirtual) reg.VecVirtual {
	low, x := XMM(), XMM()
	VEXTRACTF128(Imm(1), v.AsY(), x)
	VADDPS(x, v.AsX(), low)
	VPERMILPS(Imm(0x4e), low, x)
	VADDPS(x, low, low)
	VPERMILPS(Imm(0xb1), low, x)
	VADDSS(x, low, low)
	return low
}

// narrow is how many prototypes a narrow panel has: with two rows, their sums
// leave room for what they are sums of.
const narrow = 5

// narrowProducts generates the dot products of one or two rows with a narrow
// panel, in lanes 0 to 4 of a vector. Its lanes are eight dimensions until the
// end, so that none is idle; those of the panel come eight of each prototype in turn.
func narrowProducts(height int, pointers []reg.GPVirtual, stride, next, step reg.GPVirtual) [][]reg.VecVirtual {
	sums := make([][]reg.VecVirtual, height)
	for r := range sums {
		for range narrow {
			v := YMM()
			VXORPS(v, v, v)
			sums[r] = append(sums[r], v)
		}
	}
	w, x := param("panel"), pointers[0]
	multiply := func(eight int, load func(Mem, reg.VecVirtual)) {
		values := make([]reg.VecVirtual, height)
		for r := range values {
			values[r] = YMM()
			load(at(pointers, stride, r, 32*eight), values[r])
		}
		for i := range narrow {
			line := Mem{Base: w, Disp: 32 * (eight*narrow + i)}
			if height > 1 { // one load for all rows
				v := YMM()
				VMOVUPS(line, v)
				for r := range values {
					VFMADD231PS(v, values[r], sums[r][i])
				}
			} else {
				VFMADD231PS(line, values[0], sums[0][i])
			}
		}
	}
	whole := func(m Mem, v reg.VecVirtual) { VMOVUPS(m, v) }
	// The next rows, into the first-level cache: the CPU foresees no jump of a
	// long row.
	ahead := GP64()
	LEAQ(Mem{Base: x, Index: stride, Scale: uint8(height)}, ahead)
	sixteen, eight, rest, end := label("sixteen"), label("eight"), label("rest"), label("end")
	count := param("count")
	SUBQ(Imm(16), count)
	JLT(LabelRef(eight))
	Label(sixteen)
	multiply(0, whole)
	multiply(1, whole)
	PREFETCHT1(Mem{Base: next})
	for r := range height {
		PREFETCHT0(at([]reg.GPVirtual{ahead}, stride, r, 0))
	}
	ADDQ(Imm(64), ahead)
	LEAQ(Mem{Base: next, Index: step, Scale: 4}, next)
	ADDQ(Imm(64), x)
	ADDQ(U32(64*narrow), w)
	SUBQ(Imm(16), count)
	JGE(LabelRef(sixteen))
	Label(eight)
	ADDQ(Imm(8), count)
	JLT(LabelRef(rest))
	multiply(0, whole)
	ADDQ(Imm(32), x)
	ADDQ(U32(32*narrow), w)
	SUBQ(Imm(8), count)
	Label(rest)
	ADDQ(Imm(8), count)
	JZ(LabelRef(end))
	window, mask := GP64(), YMM()
	LEAQ(ones, window)
	NEGQ(count)
	VMOVUPS(Mem{Base: window, Index: count, Scale: 4, Disp: 4 * lanesOfSums}, mask)
	multiply(0, func(m Mem, v reg.VecVirtual) { VMASKMOVPS(m, mask, v) })
	Label(end)
	bias := param("bias")
	products := make([][]reg.VecVirtual, height)
	for r, s := range sums {
		VHADDPS(s[1], s[0], s[0])
		VHADDPS(s[3], s[2], s[2])
		VHADDPS(s[4], s[4], s[4])
		VHADDPS(s[2], s[0], s[0])
		VHADDPS(s[4], s[4], s[4])
		// The halves of four sums, and those of the fifth.
		VPERM2F128(Imm(0x20), s[4], s[0], s[1])
		VPERM2F128(Imm(0x31), s[4], s[0], s[2])
		VADDPS(s[2], s[1], s[1])
		VADDPS(Mem{Base: bias}, s[1], s[1])
		products[r] = s[1:2]
	}
	return products
}
