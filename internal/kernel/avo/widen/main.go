// Command widen generates the conversions of 16-bit floats to float32. Their
// twins in Go are in internal/kernel/widen.go.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

const (
	lanes  = 8 // of a vector of float32
	unroll = 4 // vectors a turn
)

// widen generates a function that converts n values, a multiple of lanes.
func widen(name, doc string, convert func(from Mem, to reg.VecVirtual)) {
	TEXT(name, NOSPLIT, "func(to *float32, from *byte, n int)")
	Pragma("noescape")
	Doc(fmt.Sprintf("%s sets n values of to, a multiple of %d, to %s of from.", name, lanes, doc))
	to := Load(Param("to"), GP64()).(reg.GPVirtual)
	from := Load(Param("from"), GP64()).(reg.GPVirtual)
	n := Load(Param("n"), GP64()).(reg.GPVirtual)
	vectors := func(count int) {
		values := make([]reg.VecVirtual, count)
		for i := range values {
			values[i] = YMM()
			convert(Mem{Base: from, Disp: 2 * lanes * i}, values[i])
		}
		for i, v := range values {
			VMOVUPS(v, Mem{Base: to, Disp: 4 * lanes * i})
		}
		ADDQ(U32(uint32(2*lanes*count)), from)
		ADDQ(U32(uint32(4*lanes*count)), to)
		SUBQ(U32(uint32(lanes*count)), n)
	}
	Label("many")
	CMPQ(n, U32(lanes*unroll))
	JLT(LabelRef("few"))
	vectors(unroll)
	JMP(LabelRef("many"))
	Label("few")
	CMPQ(n, U32(lanes))
	JLT(LabelRef("done"))
	vectors(1)
	JMP(LabelRef("few"))
	Label("done")
	VZEROUPPER()
	RET()
}

func main() {
	ConstraintExpr("amd64")
	widen("float16AVX2", "IEEE 754 halves", func(from Mem, to reg.VecVirtual) { VCVTPH2PS(from, to) })
	widen("bfloat16AVX2", "bfloat16 values", func(from Mem, to reg.VecVirtual) {
		VPMOVZXWD(from, to)
		VPSLLD(Imm(16), to, to)
	})
	Generate()
}
