// Command measure generates the loops that measure what a core can do: its
// peak of float32 multiply-adds, and its rate of reading memory.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// chains is how many independent multiply-adds are in flight: more than
// latency times ports of any CPU so far (4 × 2).
const chains = 12

func fma(name string, vector func() reg.VecVirtual, zero func(reg.VecVirtual), multiplyAdd func(a, b, c operand.Op)) {
	TEXT(name, NOSPLIT, "func(n int)")
	Doc(name + " does 12 vector multiply-adds n times.")
	n := Load(Param("n"), GP64())
	one := vector()
	zero(one)
	sums := make([]reg.VecVirtual, chains)
	for i := range sums {
		sums[i] = vector()
		zero(sums[i])
	}
	Label("loop")
	for _, s := range sums {
		multiplyAdd(one, one, s)
	}
	DECQ(n)
	JNZ(operand.LabelRef("loop"))
	VZEROUPPER()
	RET()
}

func read(name string, vector func() reg.VecVirtual, width int, load func(m, v operand.Op)) {
	TEXT(name, NOSPLIT, "func(x *float32, n int)")
	Doc(name + " reads n blocks of 256 bytes from x on.")
	x := Load(Param("x"), GP64())
	n := Load(Param("n"), GP64())
	Label("loop")
	for offset := 0; offset < 256; offset += width {
		load(operand.Mem{Base: x, Disp: offset}, vector())
	}
	ADDQ(operand.U32(256), x)
	DECQ(n)
	JNZ(operand.LabelRef("loop"))
	VZEROUPPER()
	RET()
}

func main() {
	ConstraintExpr("amd64")
	zmm := func() reg.VecVirtual { return ZMM() }
	ymm := func() reg.VecVirtual { return YMM() }
	fma("fmaAVX512", zmm, func(v reg.VecVirtual) { VPXORD(v, v, v) }, func(a, b, c operand.Op) { VFMADD231PS(a, b, c) })
	fma("fmaAVX2", ymm, func(v reg.VecVirtual) { VXORPS(v, v, v) }, func(a, b, c operand.Op) { VFMADD231PS(a, b, c) })
	read("readAVX512", zmm, 64, func(m, v operand.Op) { VMOVUPS(m, v) })
	read("readAVX2", ymm, 32, func(m, v operand.Op) { VMOVUPS(m, v) })
	Generate()
}
