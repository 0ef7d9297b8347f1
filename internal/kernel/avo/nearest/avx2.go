package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

type avx2 struct{}

func (avx2) name() string           { return "AVX2" }
func (avx2) bytes() int             { return 32 }
func (avx2) panels() []shape        { return []shape{{2, []int{6, 2, 1}}} }
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
