package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

type avx512 struct{}

func (avx512) name() string           { return "AVX512" }
func (avx512) bytes() int             { return 64 }
func (avx512) panels() []shape        { return []shape{{32, []int{12, 4, 1}}, {16, []int{12, 4, 1}}} }
func (avx512) vector() reg.VecVirtual { return ZMM() }
func (avx512) zero(v reg.VecVirtual)  { VPXORD(v, v, v) }

func (avx512) masked(rem reg.GPVirtual) []func(Mem, reg.VecVirtual) {
	bits, shift := GP64(), reg.RCX
	MOVQ(I32(-1), bits)
	MOVQ(rem, shift)
	SHLQ(reg.CL, bits)
	NOTQ(bits)
	all := K()
	KMOVQ(bits, all)
	loads := make([]func(Mem, reg.VecVirtual), 4)
	for i := range loads {
		loads[i] = func(m Mem, v reg.VecVirtual) {
			k := K()
			KSHIFTRQ(U8(uint8(16*i)), all, k)
			VMOVUPS_Z(m, k, v)
		}
	}
	return loads
}

func (avx512) total(s []reg.VecVirtual) reg.VecVirtual {
	VADDPS(s[2], s[0], s[0])
	VADDPS(s[3], s[1], s[1])
	VADDPS(s[1], s[0], s[0])
	upper := YMM()
	VEXTRACTF64X4(Imm(1), s[0], upper)
	VADDPS(upper, s[0].AsY(), upper)
	return totalOfEight(upper)
}

func (avx512) update(row []reg.VecVirtual, state Mem, classes []reg.VecVirtual) {
	best, second, class, low := ZMM(), ZMM(), ZMM(), ZMM()
	VMOVUPS(state.Offset(stateBest*64), best)
	VMOVUPS(state.Offset(stateSecond*64), second)
	VMOVDQU32(state.Offset(stateClass*64), class)
	for i, v := range row {
		k := K()
		VCMPPS(greater, best, v, k)
		VMINPS(best, v, low)
		VMAXPS(low, second, second)
		VMAXPS(v, best, best)
		VMOVDQA32(classes[i], k, class)
	}
	VMOVUPS(best, state.Offset(stateBest*64))
	VMOVUPS(second, state.Offset(stateSecond*64))
	VMOVDQU32(class, state.Offset(stateClass*64))
}

// highest sets every lane to the largest of all.
func (avx512) highest(v reg.VecVirtual) reg.VecVirtual {
	all, other := ZMM(), ZMM()
	VSHUFF64X2(Imm(0x4e), v, v, other)
	VMAXPS(other, v, all)
	VSHUFF64X2(Imm(0xb1), all, all, other)
	VMAXPS(other, all, all)
	VPERMILPS(Imm(0x4e), all, other)
	VMAXPS(other, all, all)
	VPERMILPS(Imm(0xb1), all, other)
	VMAXPS(other, all, all)
	return all
}

func (a avx512) winner(state Mem) (reg.VecVirtual, reg.GPVirtual, reg.VecVirtual) {
	lanes, k, mask := ZMM(), K(), GP64()
	VMOVUPS(state.Offset(stateBest*64), lanes)
	best := a.highest(lanes)
	VCMPPS(equal, best, lanes, k)
	KMOVW(k, mask.As32())
	VMOVUPS(state.Offset(stateSecond*64), k, lanes)
	return best, mask, a.highest(lanes)
}
